"""``mixwright pilot``: small trainings on mixtures, and what they scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mixwright.cli.common import Home, Json, build, open_catalog, open_store, run, shares_of, summary, unescaped
from mixwright.cli.output import print_json, print_table
from mixwright.results import Results, weights_of
from mixwright.schemas.defaults import DEFAULT_ENCODER
from mixwright.schemas.manifests import ResultsManifest
from mixwright.schemas.requests import Evaluator, PilotRequest
from mixwright.schemas.training_runs import Direction, Metric, Unit
from mixwright.store import Store

pilot_app = typer.Typer(
    name="pilot", help="Small trainings on mixtures, and what they scored.", no_args_is_help=True
)

_FIELDS = ("n_rows", "metric", "sources")

Low = Annotated[float | None, typer.Option(help="Lowest score that there can be; default no bound.")]
High = Annotated[float | None, typer.Option(help="Highest score that there can be; default no bound.")]


@pilot_app.command("run")
def run_pilots(
    source: Annotated[list[str], typer.Option(help="Corpus that is mixed; repeat for more.")],
    validation: Annotated[str, typer.Option(help="Corpus that the trainings are scored on.")],
    evaluator: Annotated[
        Evaluator, typer.Option(help="Trains and scores: byte n-grams, a classifier of embeddings, or a program.")
    ],
    name: Annotated[str, typer.Option(help="Name of the results, or name@version.")],
    size: Annotated[list[int], typer.Option(help="Size of each training; repeat for more sizes.")],
    mixture: Annotated[
        list[str] | None, typer.Option(help="Shares of the tokens, 'wiki=0.7,web=0.3'; repeat; default planned.")
    ] = None,
    runs: Annotated[int, typer.Option(help="How many mixtures are planned.")] = 12,
    unit: Annotated[Unit, typer.Option(help="Of the sizes.")] = "tokens",
    repeats: Annotated[int, typer.Option(help="Trainings of each mixture, with other seeds.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    max_epochs: Annotated[float, typer.Option(help="Times that a source may be read in a training.")] = 4.0,
    order: Annotated[int, typer.Option(help="ngram: bytes of an n-gram, 1 to 8.")] = 6,
    label: Annotated[str | None, typer.Option(help="linear_probe: metadata key or column with classes.")] = None,
    encoder: Annotated[str, typer.Option(help="linear_probe: encoder of the documents.")] = DEFAULT_ENCODER,
    template: Annotated[str, typer.Option(help="linear_probe: what is embedded of a document.")] = "{text}",
    train_command: Annotated[
        str | None,
        typer.Option(
            help="command: program and arguments, with {mixture}, {rows}, {validation}, {size}, {seed}, {score}."
        ),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="command: name of its score; default score.")] = None,
    direction: Annotated[Direction | None, typer.Option(help="command: what is better; default minimize.")] = None,
    low: Low = None,
    high: High = None,
    workers: Annotated[
        int | None, typer.Option(help="Trainings at a time; default one a core, of a command 1.")
    ] = None,
    timeout_seconds: Annotated[float | None, typer.Option(help="command: longest run; default none.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Train small models on mixtures and score them: a Ray job that resumes where it was stopped."""
    from mixwright.jobs.pilot import run_pilot

    settings, store = open_store(home)
    request = build(
        PilotRequest,
        name=name,
        sources=source,
        validation=validation,
        evaluator=evaluator,
        mixtures=[shares_of(each, "--mixture") for each in mixture] if mixture else None,
        runs=runs,
        sizes=size,
        unit=unit,
        repeats=repeats,
        seed=seed,
        max_epochs=max_epochs,
        order=order,
        label=label,
        encoder=encoder,
        template=unescaped(template),
        train_command=train_command,
        metric=_metric(metric, direction, low, high),
        workers=workers or (None if evaluator == "command" else settings.workers),
        timeout_seconds=timeout_seconds,
    )
    manifest = run(settings, store, run_pilot, request, json=json)
    _print_new(store, manifest, json)


@pilot_app.command()
def show(
    results: Annotated[str, typer.Argument(metavar="RESULTS", help="Results, name or name@version.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """The trainings of results: mixture, size and score of each."""
    _, store = open_store(home)
    found = Results.open(store, results)
    if not json:
        _print(found)
        return
    runs = [
        {"weights": weights_of(row, found.manifest.sources)}
        | {field: row[field] for field in ("size", "score", "seed", "seconds")}
        for row in found.table().iter_rows(named=True)
    ]
    fields = ("evaluator", "validation", "unit", "likelihoods", "warnings")
    print_json(summary(found.manifest, *_FIELDS, *fields) | {"runs": runs})


@pilot_app.command("import")
def import_runs(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV table, JSON list of objects, or JSON lines.")],
    name: Annotated[str, typer.Option(help="Name of the results, or name@version.")],
    metric: Annotated[str, typer.Option(help="Name of the score.")],
    direction: Annotated[Direction, typer.Option(help="What is better.")],
    source: Annotated[
        list[str] | None,
        typer.Option(help="Source, and column of its shares; repeat; default the columns weight:NAME."),
    ] = None,
    low: Low = None,
    high: High = None,
    unit: Annotated[Unit, typer.Option(help="Of the sizes.")] = "tokens",
    home: Home = None,
    json: Json = False,
) -> None:
    """Publish a table of trainings that were made elsewhere, a row each: shares, size and score."""
    from mixwright.jobs.results import import_results

    settings, store = open_store(home)
    manifest = import_results(store, file, name, source, Metric(metric, direction, low, high), unit)
    with open_catalog(settings) as catalog:
        catalog.record(manifest)
    _print_new(store, manifest, json)


@pilot_app.command("merge")
def merge_runs(
    results: Annotated[list[str], typer.Argument(metavar="RESULTS...", help="Results, names or name@version.")],
    name: Annotated[str, typer.Option(help="Name of the merged results, or name@version.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Publish the trainings of several results as one, of the first runs and of those planned by them, say."""
    from mixwright.jobs.results import merge_results

    settings, store = open_store(home)
    manifest = merge_results(store, results, name)
    with open_catalog(settings) as catalog:
        catalog.record(manifest)
    _print_new(store, manifest, json)


def _metric(
    name: str | None, direction: Direction | None, low: float | None, high: float | None
) -> dict[str, Any] | None:
    given = {"name": name, "direction": direction, "low": low, "high": high}
    return {field: value for field, value in given.items() if value is not None} or None


def _print_new(store: Store, manifest: ResultsManifest, json: bool) -> None:
    if json:
        print_json(summary(manifest, *_FIELDS))
        return
    _print(Results.open(store, manifest.ref))


def _print(results: Results) -> None:
    """Results for a person: one line, the best run, the table and the warnings."""
    manifest, metric = results.manifest, results.manifest.metric
    table = results.table()
    goal = "higher" if metric.direction == "maximize" else "lower"
    on = f" on {manifest.validation}" if manifest.validation else ""
    typer.echo(
        f"{manifest.ref}: {len(results):,} trainings by {manifest.evaluator}{on}; {goal} {metric.name} is better"
    )
    rows = [
        (*(f"{row[f'weight:{source}']:.2%}" for source in manifest.sources), row["size"], f"{row['score']:.4f}")
        for row in table.iter_rows(named=True)
    ]
    print_table((*manifest.sources, manifest.unit, metric.name), rows)
    for warning in manifest.warnings:
        typer.echo(f"warning: {warning}")
