"""MixMin: the mixture whose ensemble of single-source models has the least loss.

Thudi et al., arXiv 2502.10510: for a large enough model the best mixture of sources is that of a convex problem,
min_λ −E[log Σ_i λ_i f_i(y | x)] over the simplex, where f_i is a model trained on source i alone. It needs k small
trainings and no regression.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConvergenceError
from mixwright.selectors.projektor.descent import descend
from mixwright.selectors.projektor.simplex import project_to_simplex

FloatArray = npt.NDArray[np.float64]
LikelihoodArray = npt.NDArray[np.floating]

_FLOOR = 1e-12
_ITERATIONS = 20_000
_GAP = 1e-6
_LARGEST_GAP = 1e-4
"""In nats. Nearly equal models are slow to tell apart, and it matters little which of them is taken."""
_BLOCK = 64


def ensemble_losses(weights: FloatArray, likelihoods: LikelihoodArray) -> FloatArray:
    """Mean −log Σ_i p_i f_i (m,), in nats, of mixtures (m, k) by ``likelihoods`` (u, k) of u validation units."""
    losses = np.empty(len(weights))
    for start in range(0, len(weights), _BLOCK):
        mixed = likelihoods @ weights[start : start + _BLOCK].T
        losses[start : start + _BLOCK] = -np.log(np.maximum(mixed, _FLOOR)).mean(axis=0)
    return losses


def ensemble_slopes(weights: FloatArray, likelihoods: LikelihoodArray) -> FloatArray:
    """The derivatives (k,) of the ensemble's loss at a mixture (k,), centred: −E[f_i / Σ_j p_j f_j]."""
    mixed = np.maximum(likelihoods @ weights, _FLOOR)
    slopes = -np.asarray((1 / mixed) @ likelihoods, dtype=np.float64) / len(likelihoods)
    return np.asarray(slopes - slopes.mean())


def mixmin_weights(likelihoods: LikelihoodArray, caps: FloatArray | None = None) -> FloatArray:
    """The mixture (k,) with the least ensemble loss, no share above its cap (k,).

    Without caps by expectation maximisation, λ_i ← λ_i · E[f_i / Σ_j λ_j f_j], which raises the likelihood at
    every step; its gap to the optimum is at most log max_i E[f_i / Σ λ f]. With caps by projected gradient from
    there. Raises ConvergenceError.
    """
    values = np.maximum(np.asarray(likelihoods, dtype=np.float64), _FLOOR)
    weights = np.full(values.shape[1], 1 / values.shape[1])
    for _ in range(_ITERATIONS):
        gains = (1 / (values @ weights)) @ values / len(values)
        if np.log(gains.max()) < _GAP:
            break
        weights = weights * gains
        weights /= weights.sum()
    if np.log(gains.max()) > _LARGEST_GAP:
        raise ConvergenceError(
            f"MixMin stopped after {_ITERATIONS:,} iterations with a gap of {np.log(gains.max()):.2g} nats: use "
            "fewer sources or fewer validation units"
        )
    if caps is None or (weights <= caps + 1e-9).all():
        return weights
    return _capped(values, project_to_simplex(weights, caps), caps)


def _capped(values: FloatArray, weights: FloatArray, caps: FloatArray) -> FloatArray:
    def evaluate(point: FloatArray) -> tuple[float, FloatArray]:
        return float(ensemble_losses(point[None], values)[0]), ensemble_slopes(point, values)

    return descend(evaluate, weights, caps)[0]
