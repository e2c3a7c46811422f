"""``mixwright assign``: the clusters of a PASER mixture for the documents of another corpus."""

from __future__ import annotations

from typing import Annotated

import typer

from mixwright.cli.common import Home, Json, build, open_store, run, summary
from mixwright.cli.output import print_json
from mixwright.schemas.requests import AssignRequest


def assign(
    corpus: Annotated[str, typer.Argument(help="Corpus, name or name@version.")],
    mixture: Annotated[str, typer.Option(help="Mixture by paser, whose clusters are used.")],
    name: Annotated[str | None, typer.Option(help="Name of the result; default CORPUS.MIXTURE-clusters.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Label documents with the clusters of a PASER mixture: attributes cluster and cluster_similarity."""
    from mixwright.jobs.assign import run_assign

    settings, store = open_store(home)
    request = build(AssignRequest, corpus=corpus, mixture=mixture, name=name, workers=settings.workers)
    manifest = run(settings, store, run_assign, request, json=json)
    if json:
        print_json(summary(manifest, "corpus", "n_rows", "counts", "columns"))
        return
    counts = ", ".join(f"{name}: {n:,}" for name, n in manifest.counts.items())
    typer.echo(f"{manifest.ref}: {manifest.n_rows:,} documents ({counts})")
