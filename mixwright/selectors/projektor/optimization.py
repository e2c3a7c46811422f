"""The best mixture: transport alone, and predicted scores. Caps (k,) are the largest shares of the sources."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mixwright.selectors.projektor.descent import descend
from mixwright.selectors.projektor.design import Design
from mixwright.selectors.projektor.mixmin import ensemble_slopes
from mixwright.selectors.projektor.score_model import ScoreModel
from mixwright.selectors.projektor.simplex import dirichlet, finest_grid, project_to_simplex
from mixwright.selectors.projektor.transport import TransportProblem

FloatArray = npt.NDArray[np.float64]
_GRID = 2000
"""Mixtures at which the optimum is checked against a grid, or draws where a grid has more."""
_STARTS = 6
_POLISHING = 30


def least_transport(problem: TransportProblem, caps: FloatArray) -> FloatArray:
    """The mixture (k,) that is nearest to the validation set: arg min OT(p), which needs no training at all.

    OT is convex in the mixture, so that no other start finds a better one.
    """

    def evaluate(point: FloatArray) -> tuple[float, FloatArray]:
        solved = problem.solve(point)
        return solved.value, solved.gradient

    return descend(evaluate, np.full(len(caps), 1 / len(caps)), caps)[0]


def best_mixture(
    model: ScoreModel, caps: FloatArray, size: float, starts: Sequence[FloatArray], seed: int
) -> FloatArray:
    """The mixture (k,) with the least predicted loss at ``size``, no share above its cap.

    The best of the given ``starts`` and of a grid (or Dirichlet draws), by the lower bound of the transport,
    begin a descent each; where the best of them ends, a last descent goes on with the transport solved exactly.
    """
    candidates = project_to_simplex(np.concatenate([np.asarray(starts), _scattered(len(caps), seed)]), caps)
    values = _losses(model, candidates, size)
    order = np.argsort(values, kind="stable")[:_STARTS]
    rows = np.union1d(order, np.arange(len(starts)))
    ends = [descend(lambda p: _bounded(model, p, size), candidates[row], caps) for row in rows]
    rough = min(ends, key=lambda each: each[1])[0]
    points = [rough, *starts]
    exact = model.losses(model.design(project_to_simplex(np.asarray(points), caps)), size)
    start = points[int(np.argmin(exact))]
    return descend(lambda p: _exact(model, p, size), start, caps, _POLISHING)[0]


def loss_gradient(
    model: ScoreModel, point: FloatArray, transport: float, slopes: FloatArray, size: float, step: float = 1e-4
) -> tuple[float, FloatArray]:
    """The predicted loss at a mixture (k,) and its gradient (k,) by the shares, up to a constant.

    ∂L/∂p_i + ∂L/∂OT · ∂OT/∂p_i, and the same of the ensemble's loss where there is one: the derivatives of L by
    differences of the predictor, which is cheap; ``transport`` and ``slopes`` (k,) are OT and its gradient.
    """
    k = len(point)
    # A share that is not there is raised, one that is there is moved to both sides.
    below = np.minimum(step, point)
    moved = np.vstack([point, point, point, point + step * np.eye(k), point - below[:, None] * np.eye(k)])
    transports = np.full(len(moved), transport)
    nudge = step * max(abs(transport), 1e-6)
    transports[1] += nudge
    ensemble = model.ensemble(point[None])
    ensembles = None if ensemble is None else ensemble[0] + step * (np.arange(len(moved)) == 2)
    found = model.losses(Design(moved, transports, ensembles), size)
    gradient = (found[3 : k + 3] - found[k + 3 :]) / (step + below) + (found[1] - found[0]) / nudge * slopes
    if model.likelihoods is not None:
        gradient += (found[2] - found[0]) / step * ensemble_slopes(point, model.likelihoods)
    return float(found[0]), np.asarray(gradient - gradient.mean())


def _losses(model: ScoreModel, weights: FloatArray, size: float) -> FloatArray:
    bounds = model.problem.lower_bound(weights)
    return model.losses(model.design(weights, bounds), size)


def _bounded(model: ScoreModel, point: FloatArray, size: float) -> tuple[float, FloatArray]:
    bound = float(model.problem.lower_bound(point[None])[0])
    return loss_gradient(model, point, bound, model.problem.bound_slopes(point), size)


def _exact(model: ScoreModel, point: FloatArray, size: float) -> tuple[float, FloatArray]:
    solved = model.problem.solve(point)
    return loss_gradient(model, point, solved.value, solved.gradient, size)


def _scattered(n_sources: int, seed: int) -> FloatArray:
    """Mixtures all over the simplex: a grid as fine as it may be, or draws, half of them near the edges."""
    grid = finest_grid(n_sources, _GRID)
    if grid is not None:
        return grid
    halves = [dirichlet(n_sources, _GRID // 2, seed, concentration) for concentration in (1.0, 0.1)]
    return np.concatenate(halves)
