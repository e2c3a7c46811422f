"""``mixwright datastore search``: passages for a query."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from mixwright.cli.common import Home, Json, build, open_store
from mixwright.cli.model_flags import model_flags
from mixwright.cli.output import print_json
from mixwright.cli.select import with_flags
from mixwright.schemas.datastores import Hit, SearchOptions, SearchRequest

_K = (Annotated[int, typer.Option("--k", "-k", help="Hits a query.")], 3)
_SHOWN = 300


def _search(
    name: str,
    queries: list[str],
    domain: list[str] | None,
    decontaminate: list[str] | None,
    reranker: str | None,
    home: Path | None,
    json: bool,
    **options: Any,
) -> None:
    from mixwright.indexes.datastores.datastore import Datastore
    from mixwright.indexes.rerankers import load_reranker

    settings, store = open_store(home)
    request = build(
        SearchRequest, queries=queries, domains=domain or None, decontaminate=decontaminate or None, **options
    )
    model = reranker or settings.reranker
    datastore = Datastore.open(store, name, load_reranker(model) if model and request.rerank else None)
    answer = datastore.search(request)
    if json:
        print_json(answer.model_dump(mode="json"))
        return
    for query, hits in zip(queries, answer.hits, strict=True):
        if len(queries) > 1:
            typer.echo(f"{query}\n")
        for rank, hit in enumerate(hits, 1):
            typer.echo(_shown(rank, hit))
        if not hits:
            typer.echo("no passage qualifies\n")
    for warning in answer.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _shown(rank: int, hit: Hit) -> str:
    where = " · ".join(each for each in (hit.source, hit.domain, hit.url) if each)
    text = textwrap.shorten(hit.text, _SHOWN, placeholder=" …")
    return (
        f"{rank}. {hit.score:.4f}  {where}\n"
        f"   document {hit.document_id}, characters {hit.start} to {hit.end}\n"
        f"{textwrap.indent(textwrap.fill(text, 100), '   ')}\n"
    )


search = with_flags(
    _search,
    {
        "name": (Annotated[str, typer.Argument(help="Datastore, name or name@version.")], ...),
        "queries": (Annotated[list[str], typer.Argument(metavar="QUERY...", help="What is looked for.")], ...),
        "k": _K,
        "domain": (Annotated[list[str], typer.Option(help="Only passages of this domain; repeat for more.")], []),
        "decontaminate": (
            Annotated[list[str], typer.Option(help="A text that no hit may contain; repeat for more.")],
            [],
        ),
        **model_flags(SearchOptions, without=("k", "domains", "decontaminate", "allow_partial")),
        "reranker": (
            Annotated[str | None, typer.Option(help="Cross-encoder for --rerank; default $MIXWRIGHT_RERANKER.")],
            None,
        ),
        "home": (Home, None),
        "json": (Json, False),
    },
    "Search a datastore.",
)
