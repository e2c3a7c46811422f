"""``mixwright select KIND``: one command a selector, one flag a parameter, read from the selectors themselves."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo

from mixwright.cli.common import Home, Json, build, open_store, run, summary, unescaped
from mixwright.cli.output import print_json, print_table
from mixwright.errors import ConfigError
from mixwright.results import read_runs
from mixwright.schemas.manifests import MixtureManifest
from mixwright.selectors.left_out import KeepOrDrop
from mixwright.selectors.registry import SELECTORS
from mixwright.selectors.requests import SelectRequest

select_app = typer.Typer(name="select", help="From a pool of corpora to a mixture.", no_args_is_help=True)

_SHARED: dict[str, tuple[Any, Any]] = {
    "source": (Annotated[list[str], typer.Option(help="Corpus of the pool; repeat for more.")], ...),
    "name": (Annotated[str, typer.Option(help="Name of the mixture, or name@version.")], ...),
    "tokens": (Annotated[int | None, typer.Option(help="Budget in tokens.")], None),
    "documents": (Annotated[int | None, typer.Option(help="Budget in documents.")], None),
    "near_duplicates": (
        Annotated[KeepOrDrop, typer.Option(help="drop: only the first of each cluster of near-duplicates.")],
        "keep",
    ),
    "contaminated": (
        Annotated[KeepOrDrop, typer.Option(help="drop: no document that holds an evaluation text.")],
        "keep",
    ),
    "workers": (
        Annotated[int | None, typer.Option(help="Ray workers; default: none below 2 million vectors.")],
        None,
    ),
    "home": (Home, None),
    "json": (Json, False),
}


def _flag(hint: Any, default: Any) -> tuple[Any, Any]:
    """A dataclass field as a Typer option: its type and its description."""
    base, description = hint, ""
    if get_origin(hint) is Annotated:
        base, *annotations = get_args(hint)
        for each in annotations:
            if isinstance(each, FieldInfo) and each.description:
                description = each.description
    if default == () and get_origin(base) is not tuple:
        # Values, or what they are read from: a name or a file.
        return Annotated[str | None, typer.Option(help=description)], None
    if get_origin(base) is dict:
        return Annotated[list[str], typer.Option(help=description)], []
    if get_origin(base) is tuple:
        # A tuple of any length is an option that may come several times.
        base = list[get_args(base)[0]]  # type: ignore[misc]  # only known when it runs
    elif len([each for each in get_args(base) if each is not type(None)]) > 1 and get_origin(base) is not Literal:
        # Typer knows no unions: the request says what is wrong with the text.
        base, default = str, str(default)
    return Annotated[base, typer.Option(help=description)], default


def _command(kind: str, selector: type[Any]) -> Callable[..., None]:
    own = selector_flags(selector)

    def command(**flags: Any) -> None:
        parameters = selector_parameters(selector, flags)
        _select(kind, parameters, **{name: flags[name] for name in _SHARED})

    return with_flags(command, {**_SHARED, **own}, (selector.__doc__ or "").split("\n\n")[0])


def selector_flags(selector: type[Any]) -> dict[str, tuple[Any, Any]]:
    """A selector's parameters as options of a command: annotation and default by name."""
    hints = get_type_hints(selector, include_extras=True)
    return {
        field.name: _flag(hints[field.name], field.default)
        for field in dataclasses.fields(selector)
        if field.name != "kind"
    }


def selector_parameters(selector: type[Any], flags: dict[str, Any]) -> dict[str, Any]:
    """The selector's parameters among the values of a command's options."""
    hints = get_type_hints(selector, include_extras=True)
    found = {}
    for field in dataclasses.fields(selector):
        value = flags.get(field.name)
        if field.name == "kind" or (value is None and field.default == ()):
            continue
        if get_origin(get_args(hints[field.name])[0]) is dict:
            value = _named_values(field.name, value or [])
        elif field.name == "results" and isinstance(value, str) and _is_file(value):
            value = read_runs(Path(value), flags["source"])
        found[field.name] = unescaped(value)
    return found


def _is_file(name: str) -> bool:
    """Whether results are a table of the user's own, and not a published artifact."""
    return Path(name).suffix in (".csv", ".json", ".jsonl", ".ndjson", ".tsv") or Path(name).is_file()


def _named_values(flag: str, given: list[str]) -> dict[str, str]:
    """``wiki=1000`` to ``{"wiki": "1000"}``; the request says what is wrong with the values."""
    found = {}
    for each in given:
        name, separator, value = each.partition("=")
        if not separator or name in found:
            raise ConfigError(f"--{flag.replace('_', '-')} {each}: write NAME=VALUE, each name once")
        found[name] = value.replace("_", "").replace(",", "")
    return found


def with_flags(
    command: Callable[..., None], flags: dict[str, tuple[Any, Any]], description: str
) -> Callable[..., None]:
    """The command with these options (annotation and default by name), as Typer reads them."""
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=annotation,
            default=inspect.Parameter.empty if default is ... else default,
        )
        for name, (annotation, default) in flags.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = description
    return command


def _select(
    kind: str,
    parameters: dict[str, Any],
    *,
    source: list[str],
    name: str,
    tokens: int | None,
    documents: int | None,
    near_duplicates: KeepOrDrop,
    contaminated: KeepOrDrop,
    workers: int | None,
    home: Path | None,
    json: bool,
) -> None:
    from mixwright.jobs.select import run_select

    settings, store = open_store(home)
    request = build(
        SelectRequest,
        name=name,
        sources=source,
        selector={"kind": kind, **parameters},
        budget={"tokens": tokens, "documents": documents},
        near_duplicates=near_duplicates,
        contaminated=contaminated,
        workers=workers,
    )
    manifest = run(settings, store, run_select, request, json=json)
    if json:
        print_json(summary(manifest, "n_rows", "n_tokens", "warnings", "components"))
        return
    print_mixture(manifest)


def print_mixture(manifest: MixtureManifest) -> None:
    """A mixture for a person: one line, its components, its stages, its tags and its warnings."""
    typer.echo(f"{manifest.ref}: {manifest.n_rows:,} rows, {manifest.n_tokens:,} tokens by {manifest.selector}")
    print_table(
        ("source", "weight", "rows", "tokens", "epochs"),
        [
            (each.source, f"{each.weight:.2%}", each.n_rows, each.n_tokens, f"{each.epochs:.2f}")
            for each in manifest.components
        ],
    )
    if len(manifest.stages) > 1:
        stages = ", ".join(f"{each.name} ({each.n_rows:,} rows)" for each in manifest.stages)
        typer.echo(f"stages: {stages}")
    if coverage := manifest.report.get("coverage"):
        share = coverage["tagged_documents"] / coverage["documents"]
        typer.echo(
            f"tags: {share:.1%} of the pool's documents can be tagged, {coverage['distinct_tags']:,} distinct"
        )
    for warning in manifest.warnings:
        typer.echo(f"warning: {warning}")


for _kind, _selector in SELECTORS.items():
    select_app.command(_kind)(_command(_kind, _selector))
