"""The predicted score of any mixture at any size, fitted to the results of a few small trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError, DataError
from mixwright.schemas.training_runs import Metric, TrainingRun
from mixwright.selectors.projektor.cross_validation import Surface, fit_surface
from mixwright.selectors.projektor.design import Design
from mixwright.selectors.projektor.mixmin import ensemble_losses
from mixwright.selectors.projektor.projection import (
    Exponent,
    ProjectionName,
    noise_gain,
    pooled_exponents,
    project_log_linear,
    project_power,
    project_power_shared,
    shared_exponent,
    shared_noise_gain,
)
from mixwright.selectors.projektor.transport import TransportProblem

FloatArray = npt.NDArray[np.float64]
LikelihoodArray = npt.NDArray[np.floating]

_SAME_SIZE = 1.05
_MOST_UNITS = 20_000
_FEWEST_RUNS = 4
"""Different mixtures that a size needs so that a surface is fitted there."""


@dataclass(frozen=True)
class RunTable:
    """Trainings as arrays: ``weights`` (n, k) in the order of the sources, ``sizes`` (n,), ``scores`` (n,)."""

    weights: FloatArray
    sizes: FloatArray
    scores: FloatArray

    @classmethod
    def of(cls, runs: Sequence[TrainingRun], sources: Sequence[str]) -> RunTable:
        """The table of these runs. Shares are divided by their sum; sizes within 5 % of each other count as one.

        Raises DataError for a source that is not in the pool, and for a run without any share.
        """
        weights = np.zeros((len(runs), len(sources)))
        for number, run in enumerate(runs):
            if unknown := [name for name, share in run.weights.items() if share > 0 and name not in sources]:
                raise DataError(
                    f"run {number + 1} has a share of {unknown[0]}, which is none of the sources "
                    f"{', '.join(sources)}: name the sources as the pool does"
                )
            weights[number] = [run.weights.get(name, 0.0) for name in sources]
            if weights[number].sum() <= 0:
                raise DataError(f"run {number + 1} has no share above 0: give at least one")
            weights[number] /= weights[number].sum()
        sizes = _grouped(np.asarray([run.size for run in runs], dtype=np.float64))
        return cls(weights, sizes, np.asarray([run.score for run in runs], dtype=np.float64))

    def __len__(self) -> int:
        return len(self.scores)

    def at(self, size: float) -> npt.NDArray[np.bool_]:
        """Which runs (n,) have this size."""
        return np.asarray(self.sizes == size)

    def n_mixtures(self, size: float | None = None) -> int:
        """Different mixtures, of one size or of all."""
        rows = self.weights if size is None else self.weights[self.at(size)]
        return len(np.unique(np.round(rows, 9), axis=0))


@dataclass(frozen=True)
class Forecast:
    """Predicted scores of m mixtures, in the metric's own direction: mean and standard deviation (m,) each."""

    mean: FloatArray
    deviation: FloatArray
    metric: Metric

    @property
    def interval(self) -> tuple[FloatArray, FloatArray]:
        """Ends (m,) of the 95 % interval, inside the metric's range."""
        reach = 1.96 * self.deviation
        return _clip(self.mean - reach, self.metric), _clip(self.mean + reach, self.metric)


@dataclass(frozen=True)
class ScoreModel:
    """What was fitted: ``surfaces`` by size of the runs, and how they are carried to other sizes.

    ``pooled`` is True where the runs of all sizes were first carried to ``reference`` by the shared exponent,
    because too few have that size itself. ``projection`` may be another one than was asked for: ``notes`` say
    why.
    """

    table: RunTable
    problem: TransportProblem
    metric: Metric
    predictor: str
    projection: ProjectionName | None
    surfaces: dict[float, Surface]
    exponent: Exponent | None
    pooled: bool
    likelihoods: LikelihoodArray | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def reference(self) -> float:
        """The largest size at which a surface was fitted."""
        return max(self.surfaces)

    @property
    def sizes(self) -> tuple[float, float]:
        """N0 and N1: smallest and largest size at which a surface was fitted."""
        return min(self.surfaces), max(self.surfaces)

    @property
    def at_reference(self) -> npt.NDArray[np.bool_]:
        """The runs (n,) that the surface at the largest size was fitted to."""
        return np.ones(len(self.table), dtype=np.bool_) if self.pooled else self.table.at(self.reference)

    @property
    def sign(self) -> int:
        """Losses are scores times this."""
        return 1 if self.metric.direction == "minimize" else -1

    def design(self, weights: FloatArray, transport: FloatArray | None = None) -> Design:
        """What the predictors see of mixtures (m, k); ``transport`` (m,), if it is known, saves solving it."""
        values = self.problem.values(weights) if transport is None else transport
        return Design(weights, values, self.ensemble(weights))

    def ensemble(self, weights: FloatArray) -> FloatArray | None:
        """The ensemble's losses (m,) of mixtures (m, k); None without likelihoods."""
        return None if self.likelihoods is None else ensemble_losses(weights, self.likelihoods)

    def predict(
        self, weights: FloatArray, size: float | None = None, transport: FloatArray | None = None
    ) -> Forecast:
        """The score of mixtures (m, k) trained on ``size``; default: the largest size of the runs.

        Raises ConfigError for another size when the runs have one size only.
        """
        return self.forecast(self.design(weights, transport), size)

    def forecast(self, design: Design, size: float | None = None) -> Forecast:
        """The same for mixtures whose transport is known."""
        at = size or self.reference
        mean = _clip(self.sign * self.losses(design, at), self.metric)
        return Forecast(mean, self.deviations(design, at), self.metric)

    def losses(self, design: Design, size: float) -> FloatArray:
        """Predicted losses (m,), not clipped: what is optimised."""
        if size in self.surfaces:
            return self.surfaces[size].mean(design)
        large = self.surfaces[self.reference].mean(design)
        match self._projected(size):
            case "power_shared":
                return project_power_shared(large, self._best, self._exponent.value, size / self.reference)
            case "power_pooled":
                exponents = self._pooled(design)[0]
                return project_power_shared(large, self._best, exponents, size / self.reference)
            case "power":
                small = self.surfaces[self.sizes[0]].mean(design)
                return project_power(small, large, self._best, self.sizes, size)
            case _:
                return project_log_linear(self.surfaces[self.sizes[0]].mean(design), large, self.sizes, size)

    def deviations(self, design: Design, size: float) -> FloatArray:
        """Standard deviations (m,) of the predicted losses: the surfaces', carried on as the losses are."""
        if size in self.surfaces:
            return self.surfaces[size].deviation(design)
        projection, best = self._projected(size), self._best
        large, deviation = (
            self.surfaces[self.reference].mean(design),
            self.surfaces[self.reference].deviation(design),
        )
        if projection in ("power_shared", "power_pooled"):
            ratio, shared = size / self.reference, self._exponent
            exponents, variances = np.asarray(shared.value), np.asarray(shared.error**2 + shared.spread**2)
            if projection == "power_pooled":
                exponents, variances = self._pooled(design)
            unsure = np.maximum(large - best, 0.0) * abs(np.log(ratio)) * np.sqrt(variances)
            return np.asarray(ratio**-exponents * np.hypot(deviation, unsure))
        low, high = self.sizes
        of_large, of_small = np.log(size / low) / np.log(high / low), np.log(size / high) / np.log(high / low)
        small = self.surfaces[low].mean(design)
        small_deviation = self.surfaces[low].deviation(design)
        if projection == "power":
            # The line is between logarithms, so it is relative deviations that add up.
            found = project_power(small, large, best, self.sizes, size) - best
            of_large = of_large * found / np.maximum(large - best, 1e-12)
            of_small = of_small * found / np.maximum(small - best, 1e-12)
        return np.asarray(np.hypot(of_large * deviation, of_small * small_deviation))

    def noise_gain(self, size: float) -> float | None:
        """By how much noise grows on the way to this size; None where nothing is projected."""
        if self.projection is None or size in self.surfaces:
            return None
        if self.projection in ("power_shared", "power_pooled") and self.exponent is not None:
            return shared_noise_gain(self.exponent, size / self.reference)
        return noise_gain(self.sizes, size)

    def _own_exponents(self, design: Design) -> tuple[FloatArray, FloatArray]:
        """Exponents (m,) by the two surfaces, and their variances (m,)."""
        low, high = self.sizes
        logs, relative = [], []
        for size in (low, high):
            excess = np.maximum(self.surfaces[size].mean(design) - self._best, 1e-12)
            logs.append(np.log(excess))
            relative.append(self.surfaces[size].deviation(design) / excess)
        span = np.log(high / low)
        return (logs[0] - logs[1]) / span, np.asarray((relative[0] ** 2 + relative[1] ** 2) / span**2)

    def _pooled(self, design: Design) -> tuple[FloatArray, FloatArray]:
        """Exponents (m,) of mixtures shrunk to the shared one, and their variances (m,)."""
        return pooled_exponents(*self._own_exponents(design), self._exponent, self._between)

    @cached_property
    def _between(self) -> float:
        """The variance of the trained mixtures' true exponents: of the fitted ones, less that of the fits."""
        exponents, variances = self._own_exponents(self.design(self.table.weights[self.table.at(self.reference)]))
        return max(float(((exponents - self._exponent.value) ** 2).mean() - variances.mean()), 0.0)

    def _projected(self, size: float) -> ProjectionName:
        if self.projection is None:
            raise ConfigError(
                f"the runs have one size only ({self.reference:,.0f}), which says nothing of {size:,.0f}: add "
                f"runs of another size, or predict at {self.reference:,.0f}"
            )
        return self.projection

    @property
    def _exponent(self) -> Exponent:
        if self.exponent is None:
            raise ConfigError("no exponent was fitted: add runs of another size")
        return self.exponent

    @property
    def _best(self) -> float:
        return self.sign * (self.metric.best or 0.0)


def fit_score_model(
    table: RunTable,
    problem: TransportProblem,
    metric: Metric,
    *,
    predictor: str = "auto",
    projection: ProjectionName = "power_pooled",
    likelihoods: LikelihoodArray | None = None,
    seed: int = 0,
) -> ScoreModel:
    """Fit to n runs. ``likelihoods`` (u, k): of validation units by models of the single sources (see ``mixmin``).

    Raises DataError for fewer than two different mixtures, for scores outside of the metric's range, and where the
    predictor cannot be fitted.
    """
    _check(table, metric)
    if likelihoods is not None:
        # Every so many of the units, for all mixtures the same ones, are as good and faster.
        likelihoods = likelihoods[:: -(-len(likelihoods) // _MOST_UNITS)]
    sign = 1 if metric.direction == "minimize" else -1
    losses, best = sign * table.scores, metric.best
    notes: list[str] = []
    exponent = None
    if best is not None:
        exponent = shared_exponent(table.weights, table.sizes, np.maximum(losses - sign * best, 0.0))
    fitted_sizes, pooled = _fitted_sizes(table, exponent)
    if not pooled and table.n_mixtures(fitted_sizes[0]) < 2:
        raise DataError(
            "no two different mixtures were trained at the same size, and no mixture at two sizes: give runs of "
            "about the same size one size"
        )
    chosen = _projection(table, fitted_sizes, projection, exponent, metric, notes)

    def surface(weights: FloatArray, at: FloatArray) -> Surface:
        ensemble = None if likelihoods is None else ensemble_losses(weights, likelihoods)
        return fit_surface(Design(weights, problem.values(weights), ensemble), at, predictor, seed)

    surfaces = {}
    for size in fitted_sizes:
        here = table.at(size)
        at = losses
        if pooled and exponent is not None and best is not None:
            here = np.ones(len(table), dtype=np.bool_)
            ratio = (size / table.sizes) ** -exponent.value
            at = sign * best + (losses - sign * best) * ratio
        surfaces[size] = surface(table.weights[here], at[here])
    return ScoreModel(
        table, problem, metric, predictor, chosen, surfaces, exponent, pooled, likelihoods, tuple(notes)
    )


def _grouped(sizes: FloatArray) -> FloatArray:
    """Sizes (n,) with those that are nearly equal, as token counts of real trainings are, set to their mean."""
    order = np.sort(np.unique(sizes))
    groups = np.zeros(len(order), dtype=np.int64)
    first = order[:1]
    for number, size in enumerate(order[1:], 1):
        groups[number] = groups[number - 1] + (size > first * _SAME_SIZE).item()
        first = order[number : number + 1] if groups[number] > groups[number - 1] else first
    group = groups[np.searchsorted(order, sizes)]
    return np.asarray(np.round(np.bincount(group, weights=sizes) / np.bincount(group))[group])


def _check(table: RunTable, metric: Metric) -> None:
    if not len(table) or table.n_mixtures() < 2:
        raise DataError("the runs are of fewer than two different mixtures: train more, or leave the results out")
    for bound, name, outside in (
        (metric.low, "below", table.scores < (-np.inf if metric.low is None else metric.low)),
        (metric.high, "above", table.scores > (np.inf if metric.high is None else metric.high)),
    ):
        if outside.any():
            run = int(np.argmax(outside))
            raise DataError(
                f"run {run + 1} has the {metric.name} {table.scores[run]:g}, {name} the metric's bound {bound:g}: "
                "correct the score or the bound (is an accuracy in percent?)"
            )


def _fitted_sizes(table: RunTable, exponent: Exponent | None) -> tuple[list[float], bool]:
    """The sizes to fit surfaces at, and whether all runs are carried to the largest."""
    sizes = np.unique(table.sizes)
    full = [float(size) for size in sizes if table.n_mixtures(size) >= min(_FEWEST_RUNS, table.n_mixtures())]
    most = max(table.n_mixtures(size) for size in sizes)
    if full and table.n_mixtures(full[-1]) * 2 >= table.n_mixtures() and full[-1] == sizes[-1]:
        return full, False
    if exponent is not None:
        return [float(sizes[-1])], True
    # Nothing says how sizes compare: the size that knows most mixtures, and no other.
    return [float(next(size for size in sizes[::-1] if table.n_mixtures(size) == most))], False


def _projection(
    table: RunTable,
    fitted: list[float],
    asked: ProjectionName,
    exponent: Exponent | None,
    metric: Metric,
    notes: list[str],
) -> ProjectionName | None:
    two = len(fitted) >= 2
    if len(np.unique(table.sizes)) < 2:
        return None
    if two and fitted[-1] / fitted[0] < 4:
        notes.append(
            f"the sizes of the runs are only {fitted[-1] / fitted[0]:.1f} times apart: projections want 4 or more"
        )
    if asked in ("power_shared", "power_pooled"):
        if exponent is not None:
            # Exponents of single mixtures need a surface at each of two sizes.
            return asked if two else "power_shared"
        reason, remedy = "no mixture was trained at two sizes", "train one at another size"
        if metric.best is None:
            bound = "low" if metric.direction == "minimize" else "high"
            reason, remedy = f"{metric.name} has no best possible value", f"give the metric its {bound}"
        outcome = "scores are projected by log_linear" if two else "nothing is projected"
        notes.append(f"{reason}, so that {outcome}: {remedy}")
        return "log_linear" if two else None
    if not two:
        notes.append(f"projection {asked} wants {_FEWEST_RUNS} mixtures at each of two sizes")
        return "power_shared" if exponent is not None else None
    if asked == "power" and metric.best is None:
        notes.append(f"{metric.name} has no best possible value, so it is projected by log_linear")
        return "log_linear"
    return asked


def _clip(scores: FloatArray, metric: Metric) -> FloatArray:
    low = -np.inf if metric.low is None else metric.low
    high = np.inf if metric.high is None else metric.high
    return np.clip(scores, low, high)
