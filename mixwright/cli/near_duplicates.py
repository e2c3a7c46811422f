"""``mixwright near-duplicates``: clusters of documents that are nearly the same."""

from __future__ import annotations

from typing import Annotated

import typer

from mixwright.cli.common import Home, Json, build, open_store, run, summary, unescaped
from mixwright.cli.output import print_json
from mixwright.schemas.requests import DuplicateMethod, NearDuplicatesRequest


def near_duplicates(
    corpus: Annotated[str, typer.Argument(help="Corpus, name or name@version.")],
    method: Annotated[
        DuplicateMethod, typer.Option(help="By the normalized text, runs of five words, or vectors.")
    ] = "minhash",
    threshold: Annotated[
        float | None,
        typer.Option(help="Least similarity: Jaccard of minhash, default 0.8; cosine of semantic, default 0.95."),
    ] = None,
    template: Annotated[str, typer.Option(help="What is compared, with {field} placeholders.")] = "{text}",
    encoder: Annotated[
        str | None, typer.Option(help="semantic: name, hub id or local folder; default all-minilm-l6-v2.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the result; default CORPUS.near-duplicates.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Cluster near-duplicates: attributes duplicate_cluster, duplicate_size and duplicate_first."""
    from mixwright.jobs.near_duplicates import run_near_duplicates

    settings, store = open_store(home)
    request = build(
        NearDuplicatesRequest,
        corpus=corpus,
        method=method,
        threshold=threshold,
        template=unescaped(template),
        encoder=encoder,
        name=name,
        workers=settings.workers,
    )
    manifest = run(settings, store, run_near_duplicates, request, json=json)
    if json:
        print_json(summary(manifest, "corpus", "n_rows", "counts", "columns", "warnings"))
        return
    counts = manifest.counts
    typer.echo(
        f"{manifest.ref}: {manifest.n_rows:,} documents, {counts['alone']:,} of them like no other; "
        f"{counts['duplicates']:,} are near-duplicates of one that stays"
    )
