"""``mixwright select KIND``: one command a selector, one flag a parameter, read from the selectors themselves."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import typer
from pydantic.fields import FieldInfo

from mixwright.cli.common import Home, Json, build, open_store, run, shares_of, summary, unescaped
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
    if _is_nested(base):
        return Annotated[str | None, typer.Option(help=f"{description}; JSON, or a .json file.")], None
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


def _is_nested(hint: Any) -> bool:
    """Whether values of this type have fields of their own, and are no name or file instead."""
    parts = [get_args(each)[0] if get_origin(each) is Annotated else each for each in get_args(hint)]
    return dataclasses.is_dataclass(hint) or (str not in parts and any(_is_nested(each) for each in parts))


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
        base = get_args(hints[field.name])[0] if field.name != "kind" else None
        if field.name == "kind" or (value is None and (field.default == () or _is_nested(base))):
            continue
        if _is_nested(base):
            found[field.name] = json_value(str(value), f"--{field.name}")
            continue
        if get_origin(base) is dict:
            value = _values_by_name(field.name, value or [], get_args(base)[1])
        elif field.name == "results" and isinstance(value, str) and _is_file(value):
            value = read_runs(Path(value), flags["source"])
        found[field.name] = unescaped(value)
    return found


def _is_file(name: str) -> bool:
    """Whether results are a table of the user's own, and not a published artifact."""
    return Path(name).suffix in (".csv", ".json", ".jsonl", ".ndjson", ".tsv") or Path(name).is_file()


def _values_by_name(field: str, given: list[str], kind: Any) -> dict[str, Any]:
    """``wiki=1000`` to ``{"wiki": "1000"}``; the request says what is wrong with the values.

    Shares may stand in one option too: ``wiki=0.7,web=0.3``.
    """
    found: dict[str, Any] = {}
    flag = f"--{field.replace('_', '-')}"
    number = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    for each in given:
        name, separator, value = each.partition("=")
        if number is int:
            value = value.replace("_", "").replace(",", "")
        values: dict[str, Any] = {**shares_of(each, flag)} if number is float else {name: value}
        if not separator or found.keys() & values.keys():
            raise ConfigError(f"{flag} {each}: write NAME=VALUE, each name once")
        found |= values
    return found


def json_value(text: str, what: str) -> Any:
    """JSON on the command line, or in the file that it names; raises ConfigError."""
    if text.lstrip()[:1] not in ("{", "["):
        try:
            text = Path(text).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{what}: {text} cannot be read ({error}): give JSON, or a file of it") from error
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{what}: not JSON ({error}): correct it") from error


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
        budget=None if tokens is None and documents is None else {"tokens": tokens, "documents": documents},
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
