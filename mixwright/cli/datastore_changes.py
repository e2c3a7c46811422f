"""``mixwright datastore build``, ``add``, ``delete`` and ``compact``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mixwright.cli.common import Home, Json, build, open_store, run, summary, unescaped
from mixwright.cli.model_flags import model_flags
from mixwright.cli.output import print_json
from mixwright.cli.select import with_flags
from mixwright.schemas.datastores import (
    DatastoreAddRequest,
    DatastoreCompactRequest,
    DatastoreDeleteRequest,
    DatastoreRequest,
    PassageWindow,
    WindowUnit,
)
from mixwright.schemas.manifests import DatastoreManifest

Corpora = Annotated[list[str], typer.Argument(metavar="CORPUS...", help="Corpora, name or name@version.")]
Datastore = Annotated[str, typer.Argument(help="Datastore, name or name@version.")]
_FLAGS = model_flags(DatastoreRequest, without=("kind", "corpora", "window"))


def _build(
    corpora: list[str],
    window: WindowUnit,
    window_size: int,
    overlap: int,
    home: Path | None,
    json: bool,
    **flags: Any,
) -> None:
    from mixwright.jobs.datastores.build import run_datastore

    settings, store = open_store(home)
    flags["workers"] = flags["workers"] or settings.workers
    request = build(
        DatastoreRequest,
        corpora=corpora,
        window=build(PassageWindow, unit=window, size=window_size, overlap=overlap),
        **{name: unescaped(value) for name, value in flags.items()},
    )
    _print_new(run(settings, store, run_datastore, request, json=json), json=json)


build_datastore = with_flags(
    _build,
    {
        "corpora": (Corpora, ...),
        **_FLAGS,
        "window": (Annotated[WindowUnit, typer.Option(help="What a passage is cut by.")], "words"),
        "window_size": (Annotated[int, typer.Option(help="Words or tokens of a passage, at most.")], 256),
        "overlap": (Annotated[int, typer.Option(help="Words or tokens that the next passage repeats.")], 0),
        "home": (Home, None),
        "json": (Json, False),
    },
    "Build a datastore: passages, vectors, indexes. Resumes where it was stopped.",
)


def add(
    datastore: Datastore,
    corpora: Corpora,
    shards: Annotated[int | None, typer.Option(help="New shards; default one for every ten million.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes; default one a core or GPU.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Add corpora to a datastore: its next version, which shares all that is there already."""
    from mixwright.jobs.datastores.changes import run_datastore_add

    settings, store = open_store(home)
    request = build(
        DatastoreAddRequest,
        datastore=datastore,
        corpora=corpora,
        shards=shards,
        workers=workers or settings.workers,
    )
    _print_new(run(settings, store, run_datastore_add, request, json=json), json=json)


def delete(
    datastore: Datastore,
    documents: Annotated[list[str], typer.Argument(metavar="DOCUMENT_ID...", help="Ids of documents.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Delete documents from a datastore: its next version, in which no search finds them."""
    from mixwright.jobs.datastores.changes import run_datastore_delete

    settings, store = open_store(home)
    request = build(DatastoreDeleteRequest, datastore=datastore, documents=documents)
    _print_new(run(settings, store, run_datastore_delete, request, json=json), json=json)


def compact(
    datastore: Datastore,
    shards: Annotated[int | None, typer.Option(help="Shards; default as in the build.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes; default one a core.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Write a datastore anew without what was deleted, and tune its index again."""
    from mixwright.jobs.datastores.changes import run_datastore_compact

    settings, store = open_store(home)
    request = build(
        DatastoreCompactRequest, datastore=datastore, shards=shards, workers=workers or settings.workers
    )
    _print_new(run(settings, store, run_datastore_compact, request, json=json), json=json)


def _print_new(manifest: DatastoreManifest, *, json: bool) -> None:
    if json:
        print_json(
            summary(
                manifest,
                "encoder",
                "n_rows",
                "n_deleted",
                "n_documents",
                "n_repeats",
                "n_tokens",
                "n_bytes",
                "n_clusters",
                "index_kind",
                "factory",
                "search_parameters",
                "recall",
                "warnings",
            )
            | {"n_passages": manifest.n_rows - manifest.n_deleted, "n_shards": len(manifest.shards)}
        )
        return
    measured = "" if manifest.index_kind == "flat" else f", recall@10 {manifest.recall.measured:.3f}"
    typer.echo(
        f"{manifest.ref}: {manifest.n_rows - manifest.n_deleted:,} passages of {manifest.n_documents:,} documents "
        f"in {len(manifest.shards)} shards of {manifest.factory}{measured}, {manifest.n_clusters:,} near-"
        f"duplicate clusters, {manifest.n_bytes:,} bytes"
    )
    if manifest.n_repeats:
        typer.echo(f"{manifest.n_repeats:,} documents were left out: another corpus has the same text")
    for warning in manifest.warnings:
        typer.echo(f"warning: {warning}")
