"""Predictors of the loss of a mixture from a few trainings, behind one interface.

A loss is a score turned so that less is better. Every predictor is fitted at one size. With n runs of k sources,
``coefficients`` says how many numbers it determines, which least squares needs several runs each for.

========================  ============================================================================
``mean``                  the mean of the runs, to compare with
``linear``                a + Σ b_i p_i
``pseudo_quadratic``      a + Σ (b_i p_i + c_i p_i²)
``quadratic``             all products p_i p_j
``pq_ols``, ``pq_ridge``  Σ (b2_i p_i² + b1_i p_i + b0) · OT + Σ (c2_i p_i² + c1_i p_i + c0): Kang et al., arXiv
                          2307.02460, section 3.2, by least squares as published, or by ridge regression
``rational``              c + Σ_i 1 / (Σ_j λ_ij p_j): Hashimoto, ICML 2021
``rational_ot``           the same, + β · OT
``ot_linear``             a + b · OT
``ot_gp``                 a Gaussian process (see ``gaussian_process``)
``mixing_law``            c + exp(a + Σ t_i p_i): data mixing laws, Ye et al., arXiv 2403.16952, eq. 6
``regmix``                boosted trees on the shares: RegMix, Liu et al., arXiv 2407.01492
``mixmin``                a + b · loss of the ensemble of single-source models: MixMin (see ``mixmin``)
``mixmin_gp``             the Gaussian process with that loss in place of the transport
========================  ============================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mixwright.selectors.projektor.design import Design
from mixwright.selectors.projektor.gaussian_process import GaussianProcess

FloatArray = npt.NDArray[np.float64]

PredictorName = Literal[
    "mean",
    "linear",
    "pseudo_quadratic",
    "quadratic",
    "pq_ols",
    "pq_ridge",
    "rational",
    "rational_ot",
    "ot_linear",
    "ot_gp",
    "mixing_law",
    "regmix",
    "mixmin",
    "mixmin_gp",
]


@dataclass(frozen=True)
class Fitted:
    """Predicted losses ``mean`` (m,) of mixtures, and their standard deviations where the predictor gives any."""

    mean: Callable[[Design], FloatArray]
    deviation: Callable[[Design], FloatArray] | None = None


@dataclass(frozen=True)
class Predictor:
    """One way to predict. ``fit(design, losses, seed)``; ``coefficients(k)`` numbers are determined.

    ``regularised`` predictors have priors or penalties and make sense with fewer runs than coefficients.
    """

    name: PredictorName
    fit: Callable[[Design, FloatArray, int], Fitted]
    coefficients: Callable[[int], int]
    regularised: bool = True
    needs_ensemble: bool = False
    most_sources: int | None = None

    def refusal(self, design: Design) -> str | None:
        """Why it cannot be fitted to these runs; None if it can."""
        n_sources, n_runs = design.weights.shape[1], len(design)
        if self.needs_ensemble and design.ensemble is None:
            return "needs single-source runs with likelihoods"
        if self.most_sources is not None and n_sources > self.most_sources:
            return f"is for at most {self.most_sources} sources"
        if not self.regularised and n_runs < self.coefficients(n_sources):
            return f"needs {2 * self.coefficients(n_sources)} runs or more"
        return None

    def warning(self, design: Design) -> str | None:
        """What is doubtful about it with these runs; None if nothing is."""
        wanted = 2 * self.coefficients(design.weights.shape[1])
        if not self.regularised and len(design) < wanted:
            return f"{len(design)} runs are fewer than {wanted}, twice its coefficients"
        return None


Features = Callable[[Design], FloatArray]


def _squares(design: Design) -> FloatArray:
    return np.hstack([design.weights, design.weights**2])


def _products(design: Design) -> FloatArray:
    rows, columns = np.triu_indices(design.weights.shape[1])
    return np.asarray(design.weights[:, rows] * design.weights[:, columns])


def _paper(design: Design) -> FloatArray:
    squares, transport = _squares(design), design.transport[:, None]
    return np.hstack([squares * transport, transport, squares])


def _transport(design: Design) -> FloatArray:
    return design.transport[:, None]


def _ensemble(design: Design) -> FloatArray:
    return np.asarray(design.ensemble)[:, None]


def _nothing(design: Design) -> FloatArray:
    return np.zeros((len(design), 0))


def _least_squares(features: Features) -> Callable[[Design, FloatArray, int], Fitted]:
    """Ordinary least squares with an intercept; of several solutions the shortest."""

    def fit(design: Design, losses: FloatArray, seed: int) -> Fitted:
        inputs = features(design)
        centre, middle = inputs.mean(axis=0), float(losses.mean())
        slopes = np.linalg.lstsq(inputs - centre, losses - middle, rcond=None)[0]
        return Fitted(lambda asked: np.asarray(middle + (features(asked) - centre) @ slopes))

    return fit


_PENALTIES = np.logspace(-4, 3, 29)


def _ridge(features: Features) -> Callable[[Design, FloatArray, int], Fitted]:
    """Ridge regression on standardised features; the penalty by leave-one-out."""

    def fit(design: Design, losses: FloatArray, seed: int) -> Fitted:
        from sklearn.linear_model import RidgeCV

        inputs = features(design)
        centre, deviations = inputs.mean(axis=0), inputs.std(axis=0)
        # A feature that does not vary among the runs says nothing of what lies beyond them.
        scale = np.where(deviations > 1e-9, deviations, np.inf)
        model = RidgeCV(alphas=_PENALTIES).fit((inputs - centre) / scale, losses)
        return Fitted(lambda asked: np.asarray(model.predict((features(asked) - centre) / scale)))

    return fit


_RATIONAL_PRIOR = 0.3
"""Weight of the prior λ = 1. Without it the poles at shares of 0 make predictions there explode."""
_RATIONAL_STARTS = 4


def _rational(with_transport: bool) -> Callable[[Design, FloatArray, int], Fitted]:
    def fit(design: Design, losses: FloatArray, seed: int) -> Fitted:
        from scipy.optimize import least_squares

        k = design.weights.shape[1]
        middle, scale = float(losses.mean()), float(losses.std()) or 1.0
        targets = (losses - middle) / scale
        centre, spread = float(design.transport.mean()), float(design.transport.std()) + 1e-12

        def model(x: FloatArray, asked: Design) -> FloatArray:
            rates = np.exp(x[: k * k].reshape(k, k))
            found = x[k * k] + (1 / (asked.weights @ rates.T + 1e-9)).sum(axis=1)
            if with_transport:
                found = found + x[-1] * (asked.transport - centre) / spread
            return np.asarray(found)

        def residuals(x: FloatArray) -> FloatArray:
            prior = [_RATIONAL_PRIOR * x[: k * k], [1e-2 * x[-1] if with_transport else 0.0]]
            return np.concatenate([model(x, design) - targets, *prior])

        rng = np.random.default_rng(seed)
        floor = float(targets.min()) - 1.0
        starts = [
            np.concatenate([(np.eye(k) + rng.normal(0, 0.3, (k, k))).ravel(), [floor, 0.0]])
            for _ in range(_RATIONAL_STARTS)
        ]
        best = min(
            (least_squares(residuals, x, method="lm", max_nfev=100 * (k * k + 3)) for x in starts),
            key=lambda each: float(each.cost),
        )
        return Fitted(lambda asked: middle + scale * model(best.x, asked))

    return fit


def _fit_gaussian_process(design: Design, losses: FloatArray, seed: int) -> Fitted:
    process = GaussianProcess.fit(design, losses)
    return Fitted(process.mean, process.deviation)


def _with_ensemble(design: Design) -> Design:
    """The mixtures with the ensemble's loss where the transport stands."""
    return Design(design.weights, np.asarray(design.ensemble))


def _fit_ensemble_process(design: Design, losses: FloatArray, seed: int) -> Fitted:
    process = GaussianProcess.fit(_with_ensemble(design), losses)
    return Fitted(
        lambda asked: process.mean(_with_ensemble(asked)),
        lambda asked: process.deviation(_with_ensemble(asked)),
    )


_LAW_PRIOR = 0.05
_LAW_STARTS = 6


def _fit_mixing_law(design: Design, losses: FloatArray, seed: int) -> Fitted:
    from scipy.optimize import least_squares

    k = design.weights.shape[1]
    middle, scale = float(losses.mean()), float(losses.std()) or 1.0
    targets = (losses - middle) / scale

    def model(x: FloatArray, asked: Design) -> FloatArray:
        return np.asarray(x[k] + np.exp(np.clip(x[k + 1] + asked.weights @ x[:k], -30, 30)))

    def residuals(x: FloatArray) -> FloatArray:
        return np.concatenate([model(x, design) - targets, _LAW_PRIOR * x[:k]])

    def derivatives(x: FloatArray) -> FloatArray:
        grown = (model(x, design) - x[k])[:, None]
        fit = np.hstack([grown * design.weights, np.ones((len(design), 1)), grown])
        return np.vstack([fit, _LAW_PRIOR * np.eye(k, k + 2)])

    rng = np.random.default_rng(seed)
    starts = [np.concatenate([rng.normal(0, 1, k), [targets.min() - 1, 0.0]]) for _ in range(_LAW_STARTS)]
    best = min(
        (least_squares(residuals, x, derivatives, method="lm", max_nfev=200) for x in starts),
        key=lambda each: float(each.cost),
    )
    return Fitted(lambda asked: middle + scale * model(best.x, asked))


def _fit_trees(design: Design, losses: FloatArray, seed: int) -> Fitted:
    from sklearn.ensemble import GradientBoostingRegressor

    model = GradientBoostingRegressor(
        n_estimators=200, learning_rate=0.05, max_depth=3, subsample=0.8, random_state=seed
    )
    model.fit(design.weights, losses)
    return Fitted(lambda asked: np.asarray(model.predict(asked.weights)))


PREDICTORS: dict[PredictorName, Predictor] = {
    each.name: each
    for each in (
        Predictor("mean", _least_squares(_nothing), lambda k: 1),
        Predictor("linear", _least_squares(lambda design: design.weights), lambda k: k, regularised=False),
        Predictor("pseudo_quadratic", _least_squares(_squares), lambda k: 2 * k, regularised=False),
        Predictor("quadratic", _least_squares(_products), lambda k: k * (k + 1) // 2, regularised=False),
        Predictor("pq_ols", _least_squares(_paper), lambda k: 4 * k, regularised=False),
        Predictor("pq_ridge", _ridge(_paper), lambda k: 4 * k),
        Predictor("rational", _rational(with_transport=False), lambda k: k * k + 1, most_sources=8),
        Predictor("rational_ot", _rational(with_transport=True), lambda k: k * k + 2, most_sources=8),
        Predictor("ot_linear", _least_squares(_transport), lambda k: 2, regularised=False),
        Predictor("ot_gp", _fit_gaussian_process, lambda k: k + 2),
        Predictor("mixing_law", _fit_mixing_law, lambda k: k + 2),
        Predictor("regmix", _fit_trees, lambda k: k),
        Predictor("mixmin", _least_squares(_ensemble), lambda k: 2, regularised=False, needs_ensemble=True),
        Predictor("mixmin_gp", _fit_ensemble_process, lambda k: k + 2, needs_ensemble=True),
    )
}
"""Every predictor by name."""
