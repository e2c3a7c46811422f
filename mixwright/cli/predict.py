"""``mixwright predict``, ``compare`` and ``pilot plan``: questions about mixtures that publish nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import TypeAdapter

from mixwright.cli.common import Home, Json, open_store, shares_of, validate
from mixwright.cli.output import print_json, print_table, progress_on_stderr
from mixwright.cli.select import selector_flags, selector_parameters, with_flags
from mixwright.selectors.projektor.selector import Projektor

if TYPE_CHECKING:
    from mixwright.selectors.projektor.study import Study

_POOL: dict[str, tuple[Any, Any]] = {
    "source": (Annotated[list[str], typer.Option(help="Corpus of the pool; repeat for more.")], ...),
}
_OUTPUT: dict[str, tuple[Any, Any]] = {"home": (Home, None), "json": (Json, False)}


def _command(run: Callable[..., None], more: dict[str, tuple[Any, Any]], description: str) -> Callable[..., None]:
    def command(**flags: Any) -> None:
        selector = validate(TypeAdapter(Projektor), selector_parameters(Projektor, flags))
        run(selector, flags["source"], flags["home"], flags["json"], **{name: flags[name] for name in more})

    return with_flags(command, {**_POOL, **more, **selector_flags(Projektor), **_OUTPUT}, description)


def _open(selector: Projektor, sources: list[str], home: Path | None, json: bool) -> Study:
    from mixwright.jobs.study import open_study

    _, store = open_store(home)
    with progress_on_stderr(for_a_program=json) as progress:
        return open_study(store, sources, selector, None, progress)


def _predict(selector: Projektor, sources: list[str], home: Path | None, json: bool, weights: list[str]) -> None:
    import numpy as np

    from mixwright.selectors.projektor.report import mixture_prediction, projektor_report

    study = _open(selector, sources, home, json)
    asked = np.asarray([study.weights_of(shares_of(each, "--weights")) for each in weights]).reshape(
        -1, len(study.names)
    )
    answer = mixture_prediction(study, projektor_report(selector, study), asked, [])
    if json:
        print_json(answer.model_dump(mode="json"))
        return
    rows = [(f"asked {number}", each.model_dump()) for number, each in enumerate(answer.predictions, 1)]
    rows += [(each["name"], each) for each in answer.candidates]
    metric = answer.metric.name if answer.metric else "no results"
    typer.echo(f"{metric} at {study.predicted_size:,.0f} {study.unit}")
    print_table(
        ("mixture", *study.names, "predicted", "95 %", "transport", "outside"),
        [
            (
                name,
                *(f"{row['weights'][source]:.1%}" for source in study.names),
                _number(row["mean"]),
                f"{_number(row['low'])}–{_number(row['high'])}",
                _number(row["transport"]),
                "yes" if row["extrapolates"] else "no",
            )
            for name, row in rows
        ],
    )
    for warning in answer.warnings:
        typer.echo(f"warning: {warning}")


def _compare(selector: Projektor, sources: list[str], home: Path | None, json: bool) -> None:
    from mixwright.selectors.projektor.report import projektor_report

    study = _open(selector, sources, home, json)
    report = projektor_report(selector, study)
    if json:
        print_json({name: report[name] for name in ("metric", "methods", "candidates", "cross_validation")})
        return
    typer.echo(f"choices, all judged by projektor's prediction at {study.predicted_size:,.0f} {study.unit}")
    print_table(
        ("method", *study.names, "predicted", "sd", "note"),
        [
            (
                row["method"],
                *("" if row["weights"] is None else f"{row['weights'][name]:.1%}" for name in study.names),
                _number(row["mean"]),
                _number(row["sd"]),
                row["note"] or "",
            )
            for row in report["methods"]
        ],
    )
    if not report["cross_validation"]:
        return
    typer.echo("\nerrors of the predictors on runs that they were not fitted to")
    print_table(
        ("predictor", "size", "mean absolute error", "rank correlation", "note"),
        [
            (
                row["predictor"],
                row["size"],
                _number(row["mean_absolute_error"]),
                _number(row["rank_correlation"]),
                row["note"] or "",
            )
            for row in report["cross_validation"]
        ],
    )


def _plan(selector: Projektor, sources: list[str], home: Path | None, json: bool, runs: int) -> None:
    from mixwright.selectors.projektor.planning import plan_next

    study = _open(selector, sources, home, json)
    planned = plan_next(study, runs)
    rows = [dict(zip(study.names, (round(float(x), 4) for x in each), strict=True)) for each in planned]
    if json:
        print_json(rows)
        return
    print_table(study.names, [tuple(f"{share:.1%}" for share in row.values()) for row in rows])
    for row in rows:
        typer.echo("--mixture " + ",".join(f"{name}={share:g}" for name, share in row.items() if share))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


predict = _command(
    _predict,
    {
        "weights": (
            Annotated[list[str], typer.Option(help="Mixture to predict, 'wiki=0.7,web=0.3'; repeat for more.")],
            [],
        )
    },
    "Predict what mixtures will score, beside the best and the usual ones; publishes nothing.",
)
compare = _command(_compare, {}, "Show what projektor, MixMin, RegMix and data mixing laws choose, side by side.")
plan = _command(
    _plan,
    {"runs": (Annotated[int, typer.Option(min=1, help="Mixtures to propose.")], 6)},
    "Propose the mixtures to train next, by what the results have shown.",
)
