"""Mixtures as points of the simplex: projections, grids, draws, hulls. Pure functions over arrays.

A mixture of k sources is ``weights`` (k,), not negative, summing to 1; ``caps`` (k,) are the largest shares that
the sources can have.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError

FloatArray = npt.NDArray[np.float64]

_BISECTIONS = 100


def project_to_simplex(points: FloatArray, caps: FloatArray | None = None) -> FloatArray:
    """The nearest mixtures (…, k) to ``points`` (…, k), in Euclidean distance, with no share above its cap.

    The projection is clip(x − τ, 0, cap) with the τ at which it sums to 1 (Wang and Lu, arXiv 1503.01002), found
    by bisection. Raises ConfigError if the caps sum to less than 1.
    """
    limits = np.ones(points.shape[-1]) if caps is None else np.minimum(caps, 1.0)
    if limits.sum() < 1 - 1e-9:
        raise ConfigError(
            f"the sources' caps sum to {limits.sum():.3f}: raise a cap, the passes, or lower the size"
        )
    low = points.min(axis=-1, keepdims=True) - 1.0
    high = points.max(axis=-1, keepdims=True)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        over = np.clip(points - middle, 0.0, limits).sum(axis=-1, keepdims=True) > 1
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    found = np.clip(points - (low + high) / 2, 0.0, limits)
    return np.asarray(found / found.sum(axis=-1, keepdims=True))


def simplex_grid(n_sources: int, steps: int) -> FloatArray:
    """Every mixture (n, k) whose shares are multiples of 1 / ``steps``: C(steps + k − 1, k − 1) of them."""
    bars = combinations(range(steps + n_sources - 1), n_sources - 1)
    edges = np.asarray([(-1, *each, steps + n_sources - 1) for each in bars])
    return np.asarray((np.diff(edges, axis=1) - 1) / steps, dtype=np.float64)


def dirichlet(n_sources: int, n: int, seed: int, concentration: float = 1.0) -> FloatArray:
    """Random mixtures (n, k); concentration 1 is uniform over the simplex, less favours its edges."""
    return np.random.default_rng(seed).dirichlet(np.full(n_sources, concentration), n)


def finest_grid(n_sources: int, most: int) -> FloatArray | None:
    """The finest of some grids with at most so many mixtures; None where even steps of a fourth are too many."""
    for steps in (40, 20, 10, 5, 4):
        if math.comb(steps + n_sources - 1, n_sources - 1) <= most:
            return simplex_grid(n_sources, steps)
    return None


def inside_hull(weights: FloatArray, sampled: FloatArray, tolerance: float = 0.02) -> bool:
    """True if the mixture (k,) is an average of ``sampled`` mixtures (n, k), up to a total variation.

    Solves min ‖w − Σ λ_j s_j‖₁ / 2 over the averages by linear programming.
    """
    from scipy.optimize import linprog

    n, k = sampled.shape
    # Variables: λ (n), then what is above and below the average (k each).
    costs = np.concatenate([np.zeros(n), np.full(2 * k, 0.5)])
    equal = np.block([[sampled.T, np.eye(k), -np.eye(k)], [np.ones((1, n)), np.zeros((1, 2 * k))]])
    solved = linprog(costs, A_eq=equal, b_eq=np.concatenate([weights, [1.0]]), method="highs")
    return bool(solved.status == 0 and solved.fun <= tolerance)
