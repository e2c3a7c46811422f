"""``mixwright mixture query``: the mixture of a declaration, as ``POST /v1/mixtures/query`` makes it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import TypeAdapter

from mixwright.cli.common import Home, Json, open_store, run, summary, validate_document
from mixwright.cli.output import print_json, print_table
from mixwright.cli.select import json_value, print_mixture
from mixwright.errors import ConfigError
from mixwright.progress import Progress
from mixwright.schemas.manifests import MixtureManifest
from mixwright.selectors.query import MixtureQuery
from mixwright.store import Store

if TYPE_CHECKING:
    from mixwright.schemas.previews import MixturePreview


def query(
    declaration: Annotated[
        str,
        typer.Argument(help="JSON, a .json file, or - for standard input: the body of POST /v1/mixtures/query."),
    ],
    preview: Annotated[bool, typer.Option("--preview", help="Show what it would be; publish nothing.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Publish the mixture that a declaration describes; the same declaration is the same mixture."""
    settings, store = open_store(home)
    given = json_value(sys.stdin.read() if declaration == "-" else declaration, "the declaration")
    if not isinstance(given, dict):
        raise ConfigError('the declaration is no JSON object: write {"sources": […], "budget": {"tokens": N}}')
    wanted = validate_document(TypeAdapter(MixtureQuery), given)
    if preview:
        _preview(store, wanted, json)
        return
    manifest = run(settings, store, _publish, wanted, json=json)
    if json:
        print_json(summary(manifest, "n_rows", "n_tokens", "warnings", "components"))
        return
    print_mixture(manifest)


def _publish(store: Store, wanted: MixtureQuery, progress: Progress) -> MixtureManifest:
    from mixwright.jobs.query import query_mixture

    return query_mixture(store, wanted, progress).manifest


def _preview(store: Store, wanted: MixtureQuery, json: bool) -> None:
    from mixwright.jobs.query import preview_mixture

    found = preview_mixture(store, wanted)
    if json:
        print_json(found.model_dump(mode="json"))
        return
    _print_preview(found)


def _print_preview(found: MixturePreview) -> None:
    typer.echo(
        f"{found.ref or found.name}: {found.n_rows:,} rows, {found.n_tokens:,} tokens, nothing is published"
    )
    print_table(
        ("stage", "source", "share", "rows", "tokens", "epochs"),
        [
            (
                stage["name"],
                part["name"],
                f"{part['weight']:.2%}",
                part["n_rows"],
                part["n_tokens"],
                f"{part['epochs']:.2f}",
            )
            for stage in found.report["stages"]
            for part in stage["components"]
        ],
    )
    for warning in found.warnings:
        typer.echo(f"warning: {warning}")
