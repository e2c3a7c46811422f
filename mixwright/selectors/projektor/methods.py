"""What other methods would choose, side by side: each by its own rule, all judged by the same prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mixwright.selectors.projektor.descent import descend
from mixwright.selectors.projektor.design import Design
from mixwright.selectors.projektor.mixmin import mixmin_weights
from mixwright.selectors.projektor.predictors import PREDICTORS, PredictorName
from mixwright.selectors.projektor.simplex import dirichlet, project_to_simplex
from mixwright.selectors.projektor.study import Study

FloatArray = npt.NDArray[np.float64]

_SIMULATED = 10_000
_AVERAGED = 100
"""RegMix simulates many mixtures and averages the best 100 of them (arXiv 2407.01492, section 3.2)."""


@dataclass(frozen=True)
class Choice:
    """What a method chooses: ``weights`` (k,), or why it has no answer."""

    method: str
    weights: FloatArray | None
    note: str | None = None


def choices(study: Study) -> list[Choice]:
    """The choice of every method, ours first."""
    return [
        Choice("projektor", study.chosen),
        Choice("least transport", study.nearest),
        _mixmin(study),
        _regmix(study),
        _mixing_law(study),
    ]


def _mixmin(study: Study) -> Choice:
    if study.model is None or study.model.likelihoods is None:
        return Choice("mixmin", None, PREDICTORS["mixmin"].refusal(_no_runs(study)))
    return Choice("mixmin", mixmin_weights(study.model.likelihoods, study.caps))


def _no_runs(study: Study) -> Design:
    return Design(np.empty((0, len(study.names))), np.empty(0))


def _regmix(study: Study) -> Choice:
    objective = _own_prediction(study, "regmix")
    if objective is None:
        return Choice("regmix", None, "needs runs")
    simulated = project_to_simplex(dirichlet(len(study.names), _SIMULATED, study.seed), study.caps)
    best = np.argsort(objective(simulated), kind="stable")[:_AVERAGED]
    return Choice("regmix", simulated[best].mean(axis=0))


def _mixing_law(study: Study) -> Choice:
    objective = _own_prediction(study, "mixing_law")
    if objective is None:
        return Choice("mixing_law", None, "needs runs")
    k = len(study.names)

    def evaluate(point: FloatArray) -> tuple[float, FloatArray]:
        step = 1e-5
        values = objective(np.vstack([point, point + step * np.eye(k)]))
        slopes = (values[1:] - values[0]) / step
        return float(values[0]), slopes - slopes.mean()

    # exp of a linear function of the shares is monotone in it, so that one start is enough.
    return Choice("mixing_law", descend(evaluate, study.uniform, study.caps)[0])


def _own_prediction(study: Study, name: PredictorName) -> Callable[[FloatArray], FloatArray] | None:
    """The losses that a predictor of shares alone gives mixtures (m, k), fitted at the largest size."""
    model = study.model
    if model is None:
        return None
    here = model.at_reference
    design = Design(model.table.weights[here], np.zeros(int(here.sum())))
    fitted = PREDICTORS[name].fit(design, model.sign * model.table.scores[here], study.seed)
    return lambda weights: fitted.mean(Design(weights, np.zeros(len(weights))))
