"""What a projektor selection shows a person: predictions beside others, with what they rest on.

Everything here is JSON or a table that is published with the mixture; pages and plots are made of it. Scores are
in the metric's own direction. The fields are described in docs/selectors/projektor.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mixwright.results import WEIGHT_PREFIX
from mixwright.schemas.predictions import MixturePrediction, Prediction
from mixwright.schemas.training_runs import Metric
from mixwright.selectors.projektor.methods import choices
from mixwright.selectors.projektor.simplex import simplex_grid
from mixwright.selectors.projektor.study import Study

if TYPE_CHECKING:
    from mixwright.selectors.projektor.selector import Projektor

FloatArray = npt.NDArray[np.float64]

SURFACE_TABLE, SLICES_TABLE = "surface", "slices"
"""A mixture's tables: predictions over the simplex of three sources, and along the share of each source."""

_SURFACE_STEPS, _SLICE_STEPS = 40, 40


def projektor_report(selector: Projektor, study: Study) -> dict[str, Any]:
    """The report of a selection."""
    model = study.model
    return {
        "settings": {
            "predictor": selector.predictor,
            "projection": selector.projection,
            "label_cost": selector.label_cost or ("zero_one" if selector.label else "none"),
            "encoder": selector.encoder,
            "validation": selector.validation,
            "size": round(study.predicted_size),
            "unit": study.unit,
        },
        "metric": None if model is None else _metric(model.metric),
        "sources": _sources(selector, study),
        "candidates": _candidates(study),
        "runs": _runs(study),
        "cross_validation": _cross_validation(study),
        "projection": _projection(study),
        "methods": _methods(study),
    }


def projektor_tables(study: Study) -> dict[str, pl.DataFrame]:
    """The tables of a selection: ``slices`` of more than one source, and ``surface`` of three."""
    tables = {}
    if len(study.names) > 1:
        tables[SLICES_TABLE] = _slices(study)
    if len(study.names) == 3:
        grid = simplex_grid(3, _SURFACE_STEPS)
        columns: dict[str, Any] = {WEIGHT_PREFIX + name: grid[:, i] for i, name in enumerate(study.names)}
        predicted = _predicted(study, grid)
        columns |= {name: predicted[name] for name in ("mean", "sd", "transport") if name in predicted}
        tables[SURFACE_TABLE] = pl.DataFrame(columns)
    return tables


def _predicted(study: Study, weights: FloatArray) -> dict[str, FloatArray]:
    """transport, and with results mean, sd, low and high (m,) of mixtures (m, k).

    The transport is its lower bound, which was solved exactly where it matters.
    """
    transport = study.problem.lower_bound(weights)
    if study.model is None:
        return {"transport": transport}
    forecast = study.model.predict(weights, study.predicted_size, transport)
    low, high = forecast.interval
    return {"mean": forecast.mean, "sd": forecast.deviation, "low": low, "high": high, "transport": transport}


def _shares(study: Study, weights: FloatArray) -> dict[str, float]:
    return {name: float(share) for name, share in zip(study.names, weights, strict=True)}


def _metric(metric: Metric) -> dict[str, Any]:
    return {"name": metric.name, "direction": metric.direction, "low": metric.low, "high": metric.high}


def _sources(selector: Projektor, study: Study) -> list[dict[str, Any]]:
    transports = study.problem.values(np.eye(len(study.names)))
    return [
        {
            "name": name,
            "ref": study.refs[number],
            "pilot_rows": study.pilot_rows[number],
            "declared_size": selector.declared_sizes.get(name),
            "largest_share": float(study.caps[number]),
            "transport": float(transports[number]),
        }
        for number, name in enumerate(study.names)
    ]


def predictions(study: Study, weights: FloatArray, size: float | None = None) -> list[dict[str, Any]]:
    """What is said of mixtures (m, k) at a size: exact transport, mean, sd and 95 % interval, extrapolation."""
    transports = study.problem.values(weights)
    rows: list[dict[str, Any]] = [
        {
            "weights": _shares(study, each),
            "transport": float(transport),
            "mean": None,
            "sd": None,
            "low": None,
            "high": None,
            "extrapolates": study.extrapolates(each),
        }
        for each, transport in zip(weights, transports, strict=True)
    ]
    if study.model is not None:
        forecast = study.model.predict(weights, study.predicted_size if size is None else size, transports)
        low, high = forecast.interval
        for number, row in enumerate(rows):
            row |= {
                "mean": float(forecast.mean[number]),
                "sd": float(forecast.deviation[number]),
                "low": float(low[number]),
                "high": float(high[number]),
            }
    return rows


def mixture_prediction(
    study: Study, report: dict[str, Any], weights: FloatArray, sizes: Sequence[int]
) -> MixturePrediction:
    """What is said of mixtures (m, k), and of the best, at these sizes; without any, at the study's own.

    Raises ConfigError for a size that the results say nothing of.
    """
    at = [float(size) for size in sizes] or [study.predicted_size]

    def predicted(mixtures: FloatArray) -> list[Prediction]:
        return [
            Prediction(size=round(size), noise_gain=study.noise_gain(size), **row)
            for size in at
            for row in (predictions(study, mixtures, size) if len(mixtures) else [])
        ]

    return MixturePrediction(
        metric=None if study.model is None else study.model.metric,
        unit=study.unit,
        predictions=predicted(weights),
        chosen=predicted(study.chosen[None]),
        warnings=list(study.warnings),
        **{name: report[name] for name in ("candidates", "cross_validation", "projection", "methods")},
    )


def _candidates(study: Study) -> list[dict[str, Any]]:
    """The chosen mixture, and those that anybody would compare it with."""
    named = {"chosen": study.chosen, "uniform": study.uniform, "proportional": study.proportional}
    best = study.best_pilot
    if best is not None:
        named["best pilot"] = best[0]
    named["least transport"] = study.nearest
    rows = predictions(study, np.asarray(list(named.values())))
    found = [{"name": name, **row, "observed": None} for name, row in zip(named, rows, strict=True)]
    if best is not None and best[2] == study.predicted_size:
        # At another size what was observed is not what is predicted.
        next(each for each in found if each["name"] == "best pilot")["observed"] = best[1]
    return found


def _runs(study: Study) -> list[dict[str, Any]]:
    """Every run with what the other folds predict of it, at its own size."""
    model = study.model
    if model is None:
        return []
    predicted: list[float | None] = [None] * len(model.table)
    for size, surface in model.surfaces.items():
        errors = surface.validation.errors[model.predictor]
        rows = np.arange(len(model.table)) if model.pooled else np.flatnonzero(model.table.at(size))
        if errors.out_of_fold is None:
            continue
        for row, loss in zip(rows, errors.out_of_fold, strict=True):
            # Pooled runs were carried to the largest size: only those of that size compare.
            if model.table.sizes[row] == size:
                predicted[row] = model.sign * float(loss)
    transports = study.problem.values(model.table.weights)
    return [
        {
            "weights": _shares(study, model.table.weights[row]),
            "size": round(model.table.sizes[row]),
            "score": float(model.table.scores[row]),
            "transport": float(transports[row]),
            "predicted": predicted[row],
        }
        for row in range(len(model.table))
    ]


def _cross_validation(study: Study) -> list[dict[str, Any]]:
    if study.model is None:
        return []
    return [
        {
            "predictor": each.predictor,
            "coefficients": each.coefficients,
            "size": round(size),
            "mean_absolute_error": each.mean_absolute_error,
            "root_mean_square_error": each.root_mean_square_error,
            "rank_correlation": each.rank_correlation,
            "weight": surface.validation.weights.get(each.predictor),  # type: ignore[call-overload]
            "note": each.note,
        }
        for size, surface in study.model.surfaces.items()
        for each in surface.validation.errors.values()
    ]


def _projection(study: Study) -> dict[str, Any]:
    model = study.model
    if model is None:
        return {"kind": "none", "sizes": [], "exponent": None, "noise_gain": None}
    return {
        "kind": model.projection or "none",
        "sizes": [round(size) for size in sorted(model.surfaces)],
        "exponent": None if model.exponent is None else model.exponent.value,
        "noise_gain": study.noise_gain(study.predicted_size),
    }


def _methods(study: Study) -> list[dict[str, Any]]:
    found = choices(study)
    answered = [each.weights for each in found if each.weights is not None]
    judged = iter(predictions(study, np.asarray(answered)))
    rows = []
    for each in found:
        judgement = next(judged) if each.weights is not None else {}
        kept = {name: judgement.get(name) for name in ("weights", "mean", "sd")}
        rows.append({"method": each.method, **kept, "note": each.note})
    return rows


def _slices(study: Study) -> pl.DataFrame:
    """Along the share of each source, the others in the proportions of the chosen mixture."""
    k, parts = len(study.names), []
    for number, name in enumerate(study.names):
        shares = np.linspace(0, float(study.caps[number]), _SLICE_STEPS + 1)
        others = np.where(np.arange(k) == number, 0.0, study.chosen)
        if others.sum() <= 0:
            # Of a mixture of one source nothing says how the others stand to each other.
            others = np.where(np.arange(k) == number, 0.0, 1.0)
        weights = (1 - shares)[:, None] * (others / others.sum())
        weights[:, number] = shares
        predicted = _predicted(study, weights)
        columns: dict[str, Any] = {"source": [name] * len(shares), "share": shares}
        columns |= {key: predicted[key] for key in ("mean", "low", "high", "transport") if key in predicted}
        parts.append(pl.DataFrame(columns))
    return pl.concat(parts)
