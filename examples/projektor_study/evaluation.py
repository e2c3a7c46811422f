"""What is predicted and chosen from K training mixtures, and what is true: numbers of one seed, as JSON."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mixwright.selectors.allocation import temperature_weights
from mixwright.selectors.projektor.cross_validation import CrossValidation, Member, Surface, fit_surface
from mixwright.selectors.projektor.design import Design
from mixwright.selectors.projektor.mixmin import ensemble_losses
from mixwright.selectors.projektor.optimization import best_mixture, least_transport
from mixwright.selectors.projektor.predictors import PREDICTORS, PredictorName
from mixwright.selectors.projektor.projection import (
    ProjectionName,
    project_log_linear,
    project_power,
    project_power_shared,
    shared_exponent,
)
from mixwright.selectors.projektor.score_model import RunTable, ScoreModel, fit_score_model
from mixwright.selectors.projektor.transport import TransportProblem
from projektor_study.world import PILOT, TRUTH, FloatArray, Trainings, World

Int64Array = npt.NDArray[np.int64]

PLAIN: tuple[PredictorName, ...] = (
    "mean",
    "linear",
    "pseudo_quadratic",
    "rational",
    "pq_ols",
    "pq_ridge",
    "ot_linear",
    "rational_ot",
    "mixing_law",
    "regmix",
)
"""Predictors that are fitted as they are; ``ot_gp`` and ``auto`` have intervals as well."""
WITH_SINGLES: tuple[PredictorName, ...] = ("mixmin", "mixmin_gp")
"""Predictors that need the models of the single sources, three trainings beside the K."""
OVER_SHARES, SINGLES = "ot_gp over p", " (K + 3)"
PROJECTIONS: tuple[ProjectionName, ...] = ("power_pooled", "power_shared", "power", "log_linear")
_MOST_UNITS = 20_000


@dataclass(frozen=True)
class Plan:
    """What is trained: ``sizes`` N0 < N1 of the pilots and the size to predict, a grid of mixtures, and how many
    of them (``runs``) the predictors see. Truths are means of ``repeats`` trainings.
    """

    sizes: tuple[int, int, int]
    grid: FloatArray
    runs: tuple[int, ...]
    repeats: int


@dataclass(frozen=True)
class Facts:
    """Of a world and seed: ``pilots`` (2, d, n) scores at N0 and N1 of each draw, ``truth`` (3, n) at all sizes,
    ``transports`` (n,) of the grid by label cost.
    """

    world: World
    plan: Plan
    trainings: Trainings
    seed: int
    problem: TransportProblem
    transports: dict[str, FloatArray]
    pilots: FloatArray
    truth: FloatArray

    @classmethod
    def of(cls, world: World, plan: Plan, trainings: Trainings, seed: int, draws: int) -> Facts:
        """Train everything that predictors are compared on."""
        problems = {cost: world.transport(cost) for cost in world.label_costs}
        grid, sizes = plan.grid, plan.sizes
        return cls(
            world,
            plan,
            trainings,
            seed,
            problems[world.label_costs[0]],
            {cost: problem.values(grid) for cost, problem in problems.items()},
            np.stack([trainings.scores(grid, size, PILOT, range(draws)) for size in sizes[:2]]),
            np.stack([trainings.scores(grid, size, TRUTH, range(plan.repeats)).mean(axis=0) for size in sizes]),
        )

    @property
    def sign(self) -> int:
        """Losses are scores times this."""
        return 1 if self.world.metric.direction == "minimize" else -1

    @property
    def design(self) -> Design:
        return Design(self.plan.grid, self.transports[self.world.label_costs[0]])

    def true_scores(self, weights: FloatArray) -> list[float]:
        """The truth at N1 and at the size to predict of a mixture (k,), which need not be of the grid."""
        repeats = range(self.plan.repeats)
        return [
            float(self.trainings.scores(weights[None], size, TRUTH, repeats).mean())
            for size in self.plan.sizes[1:]
        ]


def describe(facts: Facts) -> dict[str, Any]:
    """What does not depend on which mixtures predictors see."""
    world, plan = facts.world, facts.plan
    uniform = np.full(len(world.sources), 1 / len(world.sources))
    fixed = {
        "uniform": uniform,
        "proportional": temperature_weights(world.available.astype(np.int64), 1.0),
        "least transport, off the grid": least_transport(facts.problem, np.ones(len(uniform))),
    }
    return {
        "seed": facts.seed,
        "transports": {cost: _list(values) for cost, values in facts.transports.items()},
        "pilots": _list(facts.pilots),
        "truth": _list(facts.truth),
        "projected": {name: _list(values) for name, values in _projected_truth(facts).items()},
        "choices": {
            "least transport": {"row": int(facts.design.transport.argmin())},
            **{name: {"weights": _list(p), "scores": facts.true_scores(p)} for name, p in fixed.items()},
        },
        "sizes": list(plan.sizes),
    }


def evaluate(facts: Facts, n_runs: int, draw: int) -> dict[str, Any]:
    """Predictions and choices from the first ``n_runs`` mixtures of a random order of the grid."""
    grid = facts.plan.grid
    rows = np.random.default_rng([facts.seed, draw]).permutation(len(grid))[:n_runs]
    vertices = np.flatnonzero(grid.max(axis=1) == 1)
    every = facts.design
    design, pilots = every.take(rows), facts.sign * facts.pilots[:, draw]
    losses = pilots[1, rows]
    model = _score_model(facts, rows, draw)
    auto = model.surfaces[model.reference]
    surfaces = {"ot_gp": _process_surface(design, losses, auto.validation), "auto": auto}
    predicted = _fit_plain(every, design, losses)
    predicted |= {name: surface.mean(every) for name, surface in surfaces.items()}
    ensemble = _with_ensemble(facts, draw)
    more = np.union1d(rows, vertices)
    for name in WITH_SINGLES:
        fitted = PREDICTORS[name].fit(ensemble.take(more), pilots[1, more], 0)
        predicted[name + SINGLES] = fitted.mean(ensemble)
    predicted["auto" + SINGLES] = fit_surface(ensemble.take(more), pilots[1, more], "auto", 0).mean(ensemble)
    return {
        "runs": n_runs,
        "draw": draw,
        "rows": rows.tolist(),
        "rows_with_singles": more.tolist(),
        "members": {name: round(weight, 3) for name, weight in auto.validation.weights.items()},
        "predicted": {name: _list(facts.sign * values) for name, values in predicted.items()},
        "deviations": {name: _list(surface.deviation(every)) for name, surface in surfaces.items()},
        "projected": {
            name: _list(facts.sign * replace(model, projection=name).losses(every, facts.plan.sizes[2]))
            for name in PROJECTIONS
        },
        "choices": _choices(facts, model, rows, pilots, predicted, ensemble),
    }


def _score_model(facts: Facts, rows: Int64Array, draw: int) -> ScoreModel:
    """What projektor fits to the runs at N0 and N1."""
    low, high, _ = facts.plan.sizes
    table = RunTable(
        np.tile(facts.plan.grid[rows], (2, 1)),
        np.repeat([float(low), float(high)], len(rows)),
        facts.pilots[:, draw, rows].ravel(),
    )
    return fit_score_model(table, facts.problem, facts.world.metric)


def _process_surface(design: Design, losses: FloatArray, validation: CrossValidation) -> Surface:
    """What ``fit_surface`` gives for ot_gp, without the cross-validation, which auto has done."""
    fitted, errors = PREDICTORS["ot_gp"].fit(design, losses, 0), validation.errors["ot_gp"]
    member = Member(1.0, fitted, max(1.0, errors.standardised or 1.0))
    return Surface((member,), errors.root_mean_square_error or float(losses.std()), validation)


def _fit_plain(every: Design, design: Design, losses: FloatArray) -> dict[str, FloatArray]:
    """Losses (n,) predicted for the whole grid."""
    predicted = {
        name: PREDICTORS[name].fit(design, losses, 0).mean(every)
        for name in PLAIN
        if PREDICTORS[name].refusal(design) is None
    }
    predicted[OVER_SHARES] = process_over_shares(design, losses)(every)
    return predicted


def process_over_shares(design: Design, losses: FloatArray) -> Callable[[Design], FloatArray]:
    """The line a + b · OT by least squares, and a Gaussian process over the shares on what it leaves."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    line = PREDICTORS["ot_linear"].fit(design, losses, 0)
    scale = float(losses.std()) or 1.0
    kernel = ConstantKernel(1.0, (1e-3, 1e2)) * RBF(0.5, (0.05, 10)) + WhiteKernel(0.1, (1e-4, 1e1))
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
    with warnings.catch_warnings():
        # Hyperparameters at their bounds: nothing is left to explain, or all is noise.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(design.weights, (losses - line.mean(design)) / scale)
    return lambda asked: np.asarray(line.mean(asked) + scale * process.predict(asked.weights))


def _with_ensemble(facts: Facts, draw: int) -> Design:
    """The grid with the loss of the ensemble of the single sources' models."""
    likelihoods = facts.trainings.likelihoods(facts.plan.sizes[1], draw)
    likelihoods = likelihoods[:: -(-len(likelihoods) // _MOST_UNITS)]
    return replace(facts.design, ensemble=ensemble_losses(facts.plan.grid, likelihoods))


def _choices(
    facts: Facts,
    model: ScoreModel,
    rows: Int64Array,
    pilots: FloatArray,
    predicted: dict[str, FloatArray],
    ensemble: Design,
) -> dict[str, Any]:
    """The mixture that each method takes: a row of the grid, or weights with their true scores.

    A shared exponent keeps the order of the predictions at N1, so that a choice is the same for every size; the
    published method projects every mixture by itself.
    """
    every, size = facts.design, facts.plan.sizes[2]
    k = every.weights.shape[1]
    best_pilot = int(rows[pilots[1, rows].argmin()])
    found: dict[str, Any] = {
        "projektor": {"row": int(model.losses(every, size).argmin())},
        "projektor" + SINGLES: {"row": int(predicted["auto" + SINGLES].argmin())},
        "regmix": {"row": int(predicted["regmix"].argmin())},
        "mixing_law": {"row": int(predicted["mixing_law"].argmin())},
        "mixmin": {"row": int(np.asarray(ensemble.ensemble).argmin())},
        "best pilot": {"row": best_pilot},
    }
    if "pq_ols" in predicted:
        small, large = (PREDICTORS["pq_ols"].fit(every.take(rows), each[rows], 0).mean(every) for each in pilots)
        ahead = project_log_linear(small, large, (facts.plan.sizes[0], facts.plan.sizes[1]), size)
        found["published"] = {"row": int(ahead.argmin())}
    starts = [np.full(k, 1 / k), *np.eye(k), every.weights[every.transport.argmin()], every.weights[best_pilot]]
    chosen = best_mixture(model, np.ones(k), size, starts, 0)
    found["projektor, off the grid"] = {"weights": _list(chosen), "scores": facts.true_scores(chosen)}
    return found


def _projected_truth(facts: Facts) -> dict[str, FloatArray]:
    """Scores (n,) at the size to predict, from the true means at N0 and N1."""
    low, high, size = facts.plan.sizes
    small, large, _ = facts.sign * facts.truth
    best = facts.sign * (facts.world.metric.best or 0.0)
    excess = np.concatenate([small, large]) - best
    grid = np.tile(facts.plan.grid, (2, 1))
    exponent = shared_exponent(grid, np.repeat([float(low), float(high)], len(small)), excess)
    losses = {
        "power": project_power(small, large, best, (low, high), size),
        "log_linear": project_log_linear(small, large, (low, high), size),
    }
    if exponent is not None:
        losses["power_shared"] = project_power_shared(large, best, exponent.value, size / high)
    return {name: facts.sign * losses[name] for name in PROJECTIONS if name in losses}


def _list(values: FloatArray) -> Any:
    return np.round(values, 6).tolist()
