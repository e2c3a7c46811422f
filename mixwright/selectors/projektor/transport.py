"""Optimal transport from weighted pilot samples to a validation set, with its gradient by the mixture.

Kang et al., arXiv 2307.02460, section 3. The pilots are fixed and a mixture only weighs them, μ_p = Σ_i p_i ·
μ_i, so that OT(μ_p, ν) is deterministic and convex in p; drawing samples of every mixture anew carries draw
noise instead.

By duality OT(p) = max_v { ⟨ν, v⟩ + Σ_i p_i G_i(v) } with G_i(v) = Σ_x μ_i(x) · min_y (C_xy − v_y): a maximum of
functions that are linear in p, one for each potential v. Every exact solution gives the one that is tight there,
and with it the gradient. ``TransportProblem`` keeps them all: their maximum is a lower bound of OT everywhere,
exact where it was solved, and takes microseconds.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConvergenceError, DataError

FloatArray = npt.NDArray[np.float64]
CostArray = npt.NDArray[np.float32]
VectorArray = npt.NDArray[np.floating[Any]]
Int64Array = npt.NDArray[np.int64]

_ITERATIONS = 20_000_000
_SAME = 9
"""Decimals by which two mixtures are the same."""


@dataclass(frozen=True)
class Transport:
    """OT at one mixture: ``value`` and ``gradient`` (k,), the derivatives by the shares.

    The gradient sums to 0 (shares that sum to 1 leave a constant free); ``slopes`` (k,) are without that
    centring, and ``value + slopes · (q − p)`` is a lower bound of OT at every other mixture q.
    """

    value: float
    gradient: FloatArray
    slopes: FloatArray


@dataclass(frozen=True)
class Points:
    """A weighted sample of one source, or of the validation set.

    ``vectors`` (n, d), ``mass`` (n,) summing to 1, ``labels`` (n,) class numbers or None.
    """

    vectors: VectorArray
    mass: FloatArray
    labels: Int64Array | None = None

    @classmethod
    def of(cls, vectors: VectorArray, labels: Int64Array | None = None) -> Points:
        """Points of equal mass. Raises DataError without any, or with labels of another length."""
        if not len(vectors):
            raise DataError("a sample has no rows: give each source and the validation set at least one")
        if labels is not None and len(labels) != len(vectors):
            raise DataError(f"{len(labels)} labels for {len(vectors)} vectors: give one label a vector")
        return cls(vectors, np.full(len(vectors), 1 / len(vectors)), labels)


class TransportProblem:
    """OT(p) of mixtures of k sources to one validation set; solutions are kept by mixture.

    ``costs`` (n, v) float32 from the n points of all sources to the v validation points, ``source`` (n,) the
    number of each point's source, ``mass`` (n,) its share in it, ``target`` (v,) the validation points' masses.
    """

    def __init__(self, costs: CostArray, source: Int64Array, mass: FloatArray, target: FloatArray) -> None:
        self.costs = costs
        self.source = source
        self.mass = mass
        self.target = target
        self.n_sources = int(source.max()) + 1
        self._solved: dict[bytes, Transport] = {}
        # One float64 copy: POT converts at every call otherwise.
        self._costs = np.ascontiguousarray(costs, dtype=np.float64)
        self._potentials: FloatArray | None = None
        self._intercepts: list[float] = []
        self._slopes: list[FloatArray] = []
        self._cuts: tuple[FloatArray, FloatArray] | None = None

    @classmethod
    def of(cls, pilots: Sequence[Points], validation: Points, costs: Sequence[CostArray]) -> TransportProblem:
        """The problem of these pilots, with one cost block (n_i, v) for each (see ``cost_blocks``)."""
        return cls(
            np.concatenate(costs),
            np.repeat(np.arange(len(pilots)), [len(each.mass) for each in pilots]),
            np.concatenate([each.mass for each in pilots]),
            validation.mass,
        )

    def solve(self, weights: FloatArray) -> Transport:
        """Exact OT at the mixture ``weights`` (k,). Raises ConvergenceError if POT stops before the optimum."""
        key = np.round(weights, _SAME).tobytes()
        if key not in self._solved:
            self._solved[key] = self._solve(weights)
        return self._solved[key]

    def values(self, weights: FloatArray) -> FloatArray:
        """Exact OT (m,) at mixtures (m, k)."""
        return np.asarray([self.solve(each).value for each in weights])

    def lower_bound(self, weights: FloatArray) -> FloatArray:
        """The largest lower bound (m,) at mixtures (m, k) by what has been solved; −∞ before anything was."""
        if not self._slopes:
            return np.full(len(weights), -np.inf)
        slopes, intercepts = self.cuts
        return np.asarray((weights @ slopes.T + intercepts).max(axis=1))

    def bound_slopes(self, weights: FloatArray) -> FloatArray:
        """The slopes (k,) of the lower bound at one mixture (k,), centred."""
        slopes, intercepts = self.cuts
        best = slopes[int(np.argmax(slopes @ weights + intercepts))]
        return np.asarray(best - best.mean())

    @property
    def cuts(self) -> tuple[FloatArray, FloatArray]:
        """Slopes (c, k) and intercepts (c,) of the bounds that solutions gave; OT is above all of them."""
        if self._cuts is None:
            self._cuts = np.asarray(self._slopes), np.asarray(self._intercepts)
        return self._cuts

    def _solve(self, weights: FloatArray) -> Transport:
        masses = weights[self.source] * self.mass
        used = masses > 0
        masses = masses[used] / masses[used].sum()
        costs = self._costs if used.all() else np.ascontiguousarray(self._costs[used])
        value, right = self._emd(masses, costs)
        # The best left potential for the right one: also where a source has no share, which POT never saw.
        left = (self._costs - right).min(axis=1)
        slopes = np.bincount(self.source, weights=self.mass * left, minlength=self.n_sources).astype(np.float64)
        intercept = float(self.target @ right)
        self._slopes.append(slopes)
        self._intercepts.append(intercept)
        self._cuts = None
        return Transport(value, slopes - slopes.mean(), slopes)

    def _emd(self, masses: FloatArray, costs: FloatArray) -> tuple[float, FloatArray]:
        ot = import_pot()
        start = None
        if self._potentials is not None:
            start = ((costs - self._potentials).min(axis=1), self._potentials)
        with warnings.catch_warnings():
            # The status below says the same, and more.
            warnings.simplefilter("ignore", UserWarning)
            plan, log = ot.emd(masses, self.target, costs, numItermax=_ITERATIONS, log=True, potentials_init=start)
        if log["result_code"] != 1:
            raise ConvergenceError(
                f"optimal transport of {len(masses):,} to {len(self.target):,} points stopped after "
                f"{_ITERATIONS:,} iterations: use fewer pilot or validation rows"
            )
        del plan
        self._potentials = np.asarray(log["v"], dtype=np.float64)
        return float(log["cost"]), self._potentials


def import_pot() -> Any:
    """POT with NumPy alone: importing its other backends takes seconds."""
    for backend in ("PYTORCH", "JAX", "CUPY", "TENSORFLOW"):
        os.environ.setdefault(f"POT_BACKEND_DISABLE_{backend}", "1")
    import ot

    return ot
