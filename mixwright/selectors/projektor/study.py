"""A pool, a validation set and the results of small trainings, ready to be asked about mixtures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError, DataError
from mixwright.schemas.mixtures import Budget
from mixwright.schemas.training_runs import Metric, TrainingRun, Unit
from mixwright.selectors.allocation import temperature_weights
from mixwright.selectors.mixture import smallest_hashes
from mixwright.selectors.pool import Pool, Source, vectors_of
from mixwright.selectors.projektor.optimization import best_mixture, least_transport
from mixwright.selectors.projektor.problem import compressed_pilot, transport_problem
from mixwright.selectors.projektor.projection import LARGEST_NOISE_GAIN
from mixwright.selectors.projektor.score_model import RunTable, ScoreModel, fit_score_model
from mixwright.selectors.projektor.simplex import inside_hull
from mixwright.selectors.projektor.transport import Points, TransportProblem

if TYPE_CHECKING:
    from mixwright.selectors.projektor.selector import Projektor

FloatArray = npt.NDArray[np.float64]

_VERTEX_STARTS = 10
_NEGLIGIBLE = 1e-4
"""Shares below it are noise of the search."""


@dataclass(frozen=True)
class Study:
    """What is known of the mixtures of k sources. ``model`` is None without results.

    ``available`` (k,) are the sources' sizes in tokens or documents (``unit``), declared or counted; ``caps``
    (k,) the largest shares they can have of ``size``; ``pilot_rows`` documents stand for each source.
    """

    names: tuple[str, ...]
    refs: tuple[str, ...]
    problem: TransportProblem
    model: ScoreModel | None
    unit: Unit
    size: int
    available: FloatArray
    caps: FloatArray
    pilot_rows: tuple[int, ...]
    seed: int

    @classmethod
    def of(cls, selector: Projektor, pool: Pool, budget: Budget | None) -> Study:
        """Prepare transport and predictor. Raises DataError for what is missing, ConfigError for what contradicts.

        Without a ``budget`` mixtures are judged at the size that the selector names, or the largest of the runs.
        """
        names = tuple(source.name for source in pool.sources)
        runs, metric, unit = _results(selector, pool)
        size = _size(selector, budget, runs, unit)
        samples = _samples(selector, pool)
        label_cost = selector.label_cost or ("zero_one" if selector.label else "none")
        problem = transport_problem(
            samples.pilots, samples.validation, label_cost=label_cost, centroids=selector.centroids or None
        )
        model = None
        if runs:
            model = fit_score_model(
                RunTable.of(runs, names),
                problem,
                metric,
                predictor=selector.predictor,
                projection=selector.projection,
                likelihoods=_likelihoods(pool, names),
                seed=selector.seed,
            )
        available = _available(selector, pool, unit)
        target = size or (round(model.reference) if model is not None else 1)
        caps = np.minimum(available * selector.max_epochs / target, 1.0)
        if caps.sum() < 1:
            most = int(available.sum() * selector.max_epochs)
            if selector.size is not None:
                raise ConfigError(
                    f"size {target:,} is more than the sources give in {selector.max_epochs:g} epochs, "
                    f"{most:,} {unit}: declare what there is of them by declared_sizes, raise max_epochs, or "
                    "lower the size"
                )
            # A budget that is too large says so itself when it is filled.
            caps = caps / caps.sum()
        return cls(
            names,
            tuple(source.ref for source in pool.sources),
            problem,
            model,
            unit,
            target,
            available,
            caps,
            samples.n_rows,
            selector.seed,
        )

    @property
    def uniform(self) -> FloatArray:
        """Equal shares (k,)."""
        return np.full(len(self.names), 1 / len(self.names))

    @property
    def proportional(self) -> FloatArray:
        """The sources' shares (k,) of what is available."""
        return temperature_weights(np.maximum(self.available, 1).astype(np.int64), 1.0)

    @cached_property
    def nearest(self) -> FloatArray:
        """The mixture (k,) of least transport within the caps."""
        return _tidy(least_transport(self.problem, self.caps))

    @cached_property
    def best_pilot(self) -> tuple[FloatArray, float, float] | None:
        """The run with the best score at the largest size: mixture (k,), score and size."""
        if self.model is None:
            return None
        table, largest = self.model.table, self.model.table.sizes.max()
        losses = np.where(table.at(largest), self.model.sign * table.scores, np.inf)
        best = int(np.argmin(losses))
        return table.weights[best].copy(), float(table.scores[best]), float(largest)

    @cached_property
    def chosen(self) -> FloatArray:
        """The mixture (k,) with the best predicted score within the caps; without results the nearest."""
        if self.model is None or len(self.names) == 1:
            return self.nearest
        starts = [self.uniform, self.proportional, self.nearest, *np.eye(len(self.names))[:_VERTEX_STARTS]]
        if self.best_pilot is not None:
            starts.append(self.best_pilot[0])
        return _tidy(best_mixture(self.model, self.caps, self.predicted_size, starts, self.seed))

    @property
    def predicted_size(self) -> float:
        """The size that predictions are for: ``size``, or the runs' own where nothing says how to get there."""
        if self.model is None or self.model.projection is not None or float(self.size) in self.model.surfaces:
            return float(self.size)
        return self.model.reference

    def noise_gain(self, size: float) -> float | None:
        """By how much the noise of the runs grows on the way to this size; None where nothing is projected."""
        return None if self.model is None else self.model.noise_gain(size)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the predictions must know."""
        model = self.model
        if model is None:
            return (
                "there are no results: the mixture is the nearest to the validation set, no score is predicted",
            )
        found = list(model.notes)
        if self.predicted_size != self.size:
            found.append(
                f"the runs have one size only, so that scores are predicted for {self.predicted_size:,.0f} "
                f"{self.unit}, not {self.size:,}"
            )
        gain = self.noise_gain(self.predicted_size)
        if gain is not None and gain > LARGEST_NOISE_GAIN:
            found.append(
                f"the noise of the runs grows {gain:.1f} times on the way to {self.predicted_size:,.0f} "
                f"{self.unit}: train some runs at a larger size"
            )
        if self.extrapolates(self.chosen):
            found.append("the chosen mixture is outside of those that were trained: train it, or some beyond it")
        return tuple(found)

    def weights_of(self, shares: Mapping[str, float]) -> FloatArray:
        """A mixture (k,) from shares by name, divided by their sum.

        Raises ConfigError for an unknown name, and where no share is above 0.
        """
        if unknown := [name for name in shares if name not in self.names]:
            raise ConfigError(f"weights: {unknown[0]} is none of the sources {', '.join(self.names)}: name those")
        weights = np.asarray([shares.get(name, 0.0) for name in self.names])
        if not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
            raise ConfigError("weights: give shares of 0 or more, one of them above 0")
        return np.asarray(weights / weights.sum())

    def extrapolates(self, weights: FloatArray) -> bool:
        """True if the mixture (k,) is no average of mixtures that were trained."""
        return self.model is not None and not inside_hull(weights, self.model.table.weights)


def _tidy(weights: FloatArray) -> FloatArray:
    """Without shares that are too small to mean anything."""
    kept = np.where(weights < _NEGLIGIBLE, 0.0, weights)
    return np.asarray(kept / kept.sum())


def _results(selector: Projektor, pool: Pool) -> tuple[Sequence[TrainingRun], Metric, Unit]:
    """The runs, their metric and the unit of their sizes: of published results, or as the selector has them."""
    if pool.results is not None:
        manifest = pool.results.manifest
        return pool.results.runs(), selector.metric_or(manifest.metric), manifest.unit
    if isinstance(selector.results, str):
        raise DataError(
            f"results {selector.results} were not opened with the pool: open it with the selector's needs"
        )
    return selector.results, selector.metric_or(Metric()), selector.unit


def _likelihoods(pool: Pool, names: tuple[str, ...]) -> npt.NDArray[np.float32] | None:
    """Those of the results, with a column for each source of the pool; None where one is missing."""
    if pool.results is None or (found := pool.results.likelihoods()) is None:
        return None
    columns = pool.results.manifest.sources
    return found[:, [columns.index(name) for name in names]] if set(names) <= set(columns) else None


def _size(selector: Projektor, budget: Budget | None, runs: Sequence[TrainingRun], unit: Unit) -> int | None:
    """The size that mixtures are judged at, in the runs' unit; None: the largest of the runs."""
    if selector.size is not None or budget is None:
        return selector.size
    in_unit = budget.tokens if unit == "tokens" else budget.documents
    if in_unit is None and not runs:
        return budget.tokens or budget.documents
    return in_unit


@dataclass(frozen=True)
class _Samples:
    """What stands for the sources and the validation set; ``n_rows`` (k,) documents stand for each source."""

    pilots: list[Points]
    validation: Points
    n_rows: tuple[int, ...]


def _samples(selector: Projektor, pool: Pool) -> _Samples:
    """The pilot sample of each source, compressed before the next is read, and the validation set."""
    if pool.examples is None:
        raise DataError(
            "there is no validation set: name a corpus of what the model will be judged on by validation"
        )
    classes: dict[str, int] = {}
    validation = _points(pool.examples, selector.validation_rows, selector.label, classes)
    pilots, n_rows = [], []
    for source in pool.sources:
        points = _points(source, selector.pilot_rows, selector.label, classes)
        n_rows.append(len(points.mass))
        if selector.centroids:
            points = compressed_pilot(points, len(pool.sources), selector.centroids, 0)
        pilots.append(points)
    return _Samples(pilots, validation, tuple(n_rows))


def _points(source: Source, n: int, label: str | None, classes: dict[str, int]) -> Points:
    """``n`` documents of a source. ``classes`` numbers the labels, and learns those that are new."""
    shown = source.sample or source
    # By hash of the documents, so that the order of the rows does not matter.
    rows = smallest_hashes(shown, None, 0)[:n]
    vectors = vectors_of(shown).rows(rows)
    if label is None:
        return Points.of(vectors)
    texts = _label_texts(shown, label, rows)
    for text in sorted(set(texts) - set(classes)):
        classes[text] = len(classes)
    return Points.of(vectors, np.asarray([classes[text] for text in texts], dtype=np.int64))


def _label_texts(source: Source, label: str, rows: npt.NDArray[np.int64]) -> list[str]:
    texts = source.fields([label]).to_series()[rows]
    if texts.null_count():
        raise DataError(
            f"{texts.null_count()} of {len(texts)} documents of {source.name} have no {label}: name a field that "
            "all have, or leave label out"
        )
    return texts.to_list()


def _available(selector: Projektor, pool: Pool, unit: Unit) -> FloatArray:
    """What the sources have (k,): as declared, or as counted."""
    names = [source.name for source in pool.sources]
    if unknown := [name for name in selector.declared_sizes if name not in names]:
        raise ConfigError(f"declared_sizes: {unknown[0]} is none of the sources {', '.join(names)}")
    counted = [int(source.n_tokens.sum()) if unit == "tokens" else len(source.ids) for source in pool.sources]
    return np.asarray(
        [selector.declared_sizes.get(name, n) for name, n in zip(names, counted, strict=True)], dtype=np.float64
    )
