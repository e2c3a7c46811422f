"""``mixwright score``: how far a pruned language model is from its original on each document."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from mixwright.cli.common import Home, Json, build, open_store, run, summary, unescaped
from mixwright.cli.output import print_json
from mixwright.schemas.requests import ModelDtype, PromptFormat, ScoreRequest


def score(
    corpus: Annotated[str, typer.Argument(help="Corpus, name or name@version.")],
    original: Annotated[str, typer.Option(help="Hub id, folder or .gguf file of the original model.")],
    pruned: Annotated[str, typer.Option(help="The same of the pruned model; both have one tokenizer.")],
    prompt: Annotated[
        str | None,
        typer.Option(help="Prompt, '{instruction}\\n{input}' say; '' for none; default by the usual field names."),
    ] = None,
    response: Annotated[str | None, typer.Option(help="Response, '{output}' say; default likewise.")] = None,
    prompt_format: Annotated[
        PromptFormat, typer.Option(help="auto is the tokenizer's chat template if it has one, else plain.")
    ] = "auto",
    max_tokens: Annotated[int, typer.Option(help="Longer pairs are counted, not scored.")] = 2048,
    dtype: Annotated[
        ModelDtype, typer.Option(help="Of the forward passes; auto is bfloat16 where the hardware has it.")
    ] = "auto",
    cache_top_k: Annotated[
        int | None,
        typer.Option(help="One model after the other, keeping the original's k likeliest tokens on disk."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the result; default CORPUS.scores.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the models run.")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Worker processes; default one a core or GPU.")] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Padded tokens a batch; default 2,048 on a CPU, 32,768 on a GPU.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Score a corpus's responses by two language models: a Ray job that resumes where it was stopped."""
    from mixwright.jobs.score import run_score

    settings, store = open_store(home)
    request = build(
        ScoreRequest,
        corpus=corpus,
        original=original,
        pruned=pruned,
        prompt=unescaped(prompt),
        response=unescaped(response),
        prompt_format=prompt_format,
        max_tokens=max_tokens,
        dtype=dtype,
        cache_top_k=cache_top_k,
        name=name,
        device=device,
        workers=workers or settings.workers,
        batch_tokens=batch_tokens,
    )
    manifest = run(settings, store, run_score, request, json=json)
    if json:
        print_json(summary(manifest, "corpus", "n_rows", "counts", "columns"))
        return
    from mixwright.attributes import Attributes

    mean = Attributes.open(store, manifest.ref).scan().select("jsd").mean().collect().item()
    counts = ", ".join(f"{n:,} {status.replace('_', ' ')}" for status, n in manifest.counts.items())
    typer.echo(f"{manifest.ref}: mean jsd {mean:.4f}; {counts}")
