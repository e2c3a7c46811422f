"""``mixwright decontaminate``: documents that hold evaluation texts."""

from __future__ import annotations

from typing import Annotated

import typer

from mixwright.cli.common import Home, Json, build, open_store, run, summary, unescaped
from mixwright.cli.output import print_json
from mixwright.schemas.requests import DecontaminateRequest

_SHOWN_MATCHES = 5
_SHOWN_CHARACTERS = 60


def decontaminate(
    corpus: Annotated[str, typer.Argument(help="Corpus, name or name@version.")],
    against: Annotated[list[str], typer.Option(help="Corpus of evaluation texts; repeat for more.")],
    template: Annotated[
        str, typer.Option(help="An evaluation text, with {field} placeholders: '{text} {answer}', say.")
    ] = "{text}",
    ngram: Annotated[int, typer.Option(help="Words of an n-gram; of a shorter evaluation text all.")] = 13,
    containment: Annotated[
        float, typer.Option(help="Share of an evaluation text's n-grams that contaminates.")
    ] = 0.8,
    longest_run: Annotated[int, typer.Option(help="Words in a row that contaminate.")] = 32,
    name: Annotated[str | None, typer.Option(help="Name of the result; default CORPUS.contamination.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Find documents that hold evaluation texts: attributes contaminated, contamination and longest_run."""
    from mixwright.jobs.decontaminate import read_matches, run_decontaminate

    settings, store = open_store(home)
    request = build(
        DecontaminateRequest,
        corpus=corpus,
        against=against,
        template=unescaped(template),
        ngram=ngram,
        containment=containment,
        longest_run=longest_run,
        name=name,
    )
    manifest = run(settings, store, run_decontaminate, request, json=json)
    if json:
        print_json(summary(manifest, "corpus", "n_rows", "counts", "columns", "warnings"))
        return
    matches = read_matches(store.directory(manifest))
    typer.echo(
        f"{manifest.ref}: {manifest.counts['contaminated']:,} of {manifest.n_rows:,} documents are contaminated "
        f"by {matches['evaluation_id'].n_unique():,} evaluation texts"
    )
    worst = matches.sort(["containment", "longest_run"], descending=True).head(_SHOWN_MATCHES)
    for each in worst.iter_rows(named=True):
        typer.echo(
            f"row {each['row']} has {each['containment']:.0%} of {each['evaluation_corpus']} row "
            f"{each['evaluation_row']}, {each['longest_run']} words in a row: {_shortened(each['text'])}"
        )
    if matches.height > _SHOWN_MATCHES:
        typer.echo(f"all {matches.height:,} matches: {store.directory(manifest) / 'matches.parquet'}")


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 2] + " …"
