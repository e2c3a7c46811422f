"""``mixwright ingest``, ``embed`` and ``index``: files to a corpus, to embeddings, to an index."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from mixwright.cli.common import Home, Json, build, open_store, run, summary, unescaped
from mixwright.cli.output import print_json
from mixwright.schemas.defaults import DEFAULT_ENCODER, DEFAULT_TOKENIZER
from mixwright.schemas.requests import EmbedRequest, IndexKind, IndexRequest, IngestRequest, InputFormat

Name = Annotated[str | None, typer.Option(help="Name of the result, or name@version.")]


def ingest(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, folders, globs or URLs.")],
    name: Annotated[str, typer.Option(help="Name of the corpus, or name@version.")],
    format: Annotated[InputFormat, typer.Option(help="auto goes by the file's suffix.")] = "auto",
    text_field: Annotated[str, typer.Option(help="Field or column of the text.")] = "text",
    text_template: Annotated[
        str | None,
        typer.Option(help="Text of several fields, '{instruction}\\n{output}' say; not with --text-field."),
    ] = None,
    url_field: Annotated[str, typer.Option(help="Field or column of the URL.")] = "url",
    domain_field: Annotated[str | None, typer.Option(help="Field of the domain; default: the URL's host.")] = None,
    domain: Annotated[str | None, typer.Option(help="Domain of every document.")] = None,
    source: Annotated[str | None, typer.Option(help="Value of `source`; default: the corpus's name.")] = None,
    tokenizer: Annotated[str, typer.Option(help="Counts tokens: a name, a tokenizer.json, or bytes.")] = (
        DEFAULT_TOKENIZER
    ),
    duplicates: Annotated[
        Literal["drop", "keep", "drop-near"],
        typer.Option(help="Documents with the same text; drop-near: and those with nearly the same."),
    ] = "drop",
    on_bad_row: Annotated[
        Literal["quarantine", "fail"], typer.Option(help="Keep bad rows in a sidecar file, or stop.")
    ] = "quarantine",
    shard_rows: Annotated[
        int | None, typer.Option(help="Documents a Parquet shard; default a 64th of them, within 128 and 10,000.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Read files into a corpus: JSON lines, Parquet, CSV or plain text, also .gz and .zst."""
    from mixwright.jobs.ingest import run_ingest

    settings, store = open_store(home)
    request = build(
        IngestRequest,
        name=name,
        paths=paths,
        format=format,
        text_field=text_field,
        text_template=unescaped(text_template),
        url_field=url_field,
        domain_field=domain_field,
        domain=domain,
        source=source,
        tokenizer=tokenizer,
        duplicates=duplicates,
        on_bad_row=on_bad_row,
        shard_rows=shard_rows,
    )
    manifest = run(settings, store, run_ingest, request, json=json)
    if json:
        print_json(summary(manifest, "n_documents", "n_duplicates", "n_quarantined", "n_tokens"))
        return
    typer.echo(
        f"{manifest.ref}: {manifest.n_documents:,} documents, {manifest.n_tokens:,} tokens "
        f"({manifest.tokenizer}), {manifest.n_duplicates:,} duplicates, {manifest.n_quarantined:,} quarantined"
    )
    if manifest.n_quarantined:
        typer.echo(f"bad rows with file, line and reason: {store.directory(manifest) / 'quarantine.jsonl'}")


def embed(
    corpus: Annotated[str, typer.Argument(help="Corpus, name or name@version.")],
    encoder: Annotated[str, typer.Option(help="Name, hub id or local folder of the encoder.")] = DEFAULT_ENCODER,
    template: Annotated[str, typer.Option(help="What is embedded, with {field} placeholders.")] = "{text}",
    name: Name = None,
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="Of the stored vectors.")] = "float32",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the encoder runs.")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Worker processes; default one a core or GPU.")] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Padded tokens a batch; default 2,048 on a CPU, 65,536 on a GPU.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Embed a corpus: a Ray job over its shards that resumes where it was stopped."""
    from mixwright.jobs.embed import run_embed

    settings, store = open_store(home)
    request = build(
        EmbedRequest,
        corpus=corpus,
        encoder=encoder,
        template=unescaped(template),
        name=name,
        dtype=dtype,
        device=device,
        workers=workers or settings.workers,
        batch_tokens=batch_tokens,
    )
    manifest = run(settings, store, run_embed, request, json=json)
    if json:
        print_json(summary(manifest, "corpus", "encoder", "template", "n_rows", "n_truncated", "dim", "dtype"))
        return
    typer.echo(f"{manifest.ref}: {manifest.n_rows:,} vectors of {manifest.dim} dimensions")


def index(
    corpus: Annotated[str, typer.Argument(help="Corpus, name or name@version.")],
    kind: Annotated[IndexKind, typer.Option(help="auto picks by size, memory budget and recall.")] = "auto",
    recall: Annotated[float, typer.Option(help="Target of recall@10 against brute force.")] = 0.95,
    memory_budget: Annotated[int | None, typer.Option(help="Bytes the opened index may take.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Which embeddings; default: the newest.")] = None,
    queries: Annotated[int, typer.Option(help="Held-out queries that measure recall.")] = 1000,
    name: Name = None,
    seed: Annotated[int, typer.Option(help="Training sample and held-out queries.")] = 0,
    device: Annotated[Literal["auto", "cpu", "gpu"], typer.Option(help="Where the index is built.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Threads of the build; default all cores.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Build a FAISS index over a corpus's embeddings and measure its recall."""
    from mixwright.jobs.index import run_index

    settings, store = open_store(home)
    request = build(
        IndexRequest,
        corpus=corpus,
        encoder=encoder,
        name=name,
        index_kind=kind,
        recall=recall,
        memory_budget=memory_budget,
        queries=queries,
        seed=seed,
        device=device,
        threads=threads,
    )
    manifest = run(settings, store, run_index, request, json=json)
    if json:
        print_json(
            summary(
                manifest,
                "corpus",
                "embeddings",
                "index_kind",
                "factory",
                "n_rows",
                "dim",
                "n_bytes",
                "search_parameters",
                "recall",
            )
        )
        return
    typer.echo(
        f"{manifest.ref}: {manifest.factory} over {manifest.n_rows:,} vectors, recall@{manifest.recall.k} "
        f"{manifest.recall.measured:.3f} on {manifest.recall.n_queries:,} held-out queries, "
        f"{manifest.n_bytes:,} bytes"
    )
