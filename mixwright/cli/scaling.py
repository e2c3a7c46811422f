"""``mixwright predict-scaling``: what a larger or longer training will score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from pydantic import TypeAdapter

from mixwright.cli.common import Json, validate_document
from mixwright.cli.output import print_json, print_table
from mixwright.cli.select import json_value
from mixwright.errors import ConfigError, first_line
from mixwright.schemas.scaling import Law, ScalingAnswer, ScalingRequest

_FIELDS = ("params", "tokens", "loss", "error")


def predict_scaling(
    runs: Annotated[
        str | None,
        typer.Argument(help="Trainings: CSV or JSON with params, tokens, loss and, if measured, error."),
    ] = None,
    target: Annotated[
        list[str],
        typer.Option(
            help="Training to predict, 'PARAMS,TOKENS', '7e9,1.4e11' say; repeat for more. data-constrained: "
            "and a third number, the tokens without repeats."
        ),
    ] = [],  # noqa: B006  # Typer wants a list and changes none
    law: Annotated[Law, typer.Option(help="over-training is fitted to the runs, data-constrained to none.")] = (
        "over-training"
    ),
    json: Json = False,
) -> None:
    """Predict loss and downstream error of trainings by a scaling law; publishes nothing."""
    from mixwright.selectors.scaling_answers import scaling_answer

    asked = {
        "law": law,
        "runs": _read_runs(runs) if runs is not None else [],
        "targets": [_target(each) for each in target],
    }
    request = validate_document(TypeAdapter(ScalingRequest), asked)
    answer = scaling_answer(request)
    if json:
        print_json(answer.model_dump(mode="json"))
        return
    _print_answer(answer)


def _target(text: str) -> dict[str, float]:
    try:
        numbers = [float(each) for each in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3):
        raise ConfigError(f"--target {text}: write PARAMS,TOKENS, such as 7e9,1.4e11")
    return dict(zip(("params", "tokens", "unique_tokens"), numbers, strict=False))


def _read_runs(given: str) -> list[dict[str, Any]]:
    """Runs from JSON, a JSON file or a CSV file; raises ConfigError for what is none of them."""
    if not given.lower().endswith(".csv"):
        rows = json_value(given, "the runs")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ConfigError('the runs are no list of objects: write [{"params": N, "tokens": D, "loss": L}, …]')
        return rows
    try:
        table = pl.read_csv(Path(given))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(
            f"{given} cannot be read ({first_line(error)}): give a CSV file with a header"
        ) from error
    if missing := [name for name in _FIELDS[:3] if name not in table.columns]:
        raise ConfigError(f"{given} has no column {missing[0]}: give params, tokens, loss and, if measured, error")
    return table.select(name for name in _FIELDS if name in table.columns).to_dicts()


def _print_answer(answer: ScalingAnswer) -> None:
    typer.echo(answer.formula)
    every = {**answer.coefficients, **(answer.error_coefficients or {})}
    typer.echo(", ".join(f"{name} {value:.5g}" for name, value in every.items()))
    if answer.predictions:
        print_table(
            ("params", "tokens", "tokens a parameter", "epochs", "loss", "error"),
            [
                (
                    f"{each.params:.4g}",
                    f"{each.tokens:.4g}",
                    f"{each.tokens_per_param:.4g}",
                    _number(each.epochs),
                    f"{each.loss:.4f}",
                    _number(each.error),
                )
                for each in answer.predictions
            ],
        )
    if answer.residuals:
        worst = max(answer.residuals, key=lambda each: abs(each.relative))
        typer.echo(f"largest residual of the {len(answer.residuals)} runs: {worst.relative:+.2%} of the loss")
    for warning in answer.warnings:
        typer.echo(f"warning: {warning}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
