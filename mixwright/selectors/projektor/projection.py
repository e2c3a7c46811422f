"""From the sizes of the small trainings to the size of the real one. Pure functions over arrays.

Losses are scores turned so that less is better. With N0 < N1 the sizes of the runs and L0, L1 what is predicted
there:

``log_linear``
    Kang et al., arXiv 2307.02460, section 3.3: [log(N/N0) L1 − log(N/N1) L0] / log(N1/N0), for each mixture by
    itself; without bounds.
``power``
    The same line between the logarithms of L − best: a power law with an exponent for each mixture.
``power_shared``
    best + (L1 − best) · (N/N1)^−γ with one exponent γ for all mixtures, from every mixture that was trained at
    several sizes. It keeps the ranking of the mixtures at N1.
``power_pooled``
    A power law whose exponents are shrunk to the common one, the more the less they differ between mixtures and
    the less well each is known (partial pooling, Gelman and Hill 2007, section 12.2).

``best`` is the best possible score (0 bits, accuracy 1), so that a law of powers applies to what is above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

ProjectionName = Literal["power_pooled", "power_shared", "power", "log_linear"]

LARGEST_NOISE_GAIN = 3.0
"""Beyond it an answer carries a warning."""
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Exponent:
    """γ of losses ∝ N^−γ, shared by all mixtures.

    ``error`` is its standard error, ``spread`` the standard deviation of single mixtures' exponents around it (the
    runs' noise in it), ``information`` Σ (log N − mean)² inside the mixtures that gave it.
    """

    value: float
    error: float
    spread: float
    information: float


def shared_exponent(weights: FloatArray, sizes: FloatArray, excess: FloatArray) -> Exponent | None:
    """The exponent of ``excess`` (n,) by ``sizes`` (n,), each mixture (n, k) with a level of its own.

    Least squares of log excess on log size and one intercept a mixture; None if no mixture has two sizes. Runs
    without excess are left out: a perfect score has no logarithm.
    """
    imperfect = excess > _SMALLEST
    weights, sizes, excess = weights[imperfect], sizes[imperfect], excess[imperfect]
    if not len(excess):
        return None
    _, mixture = np.unique(np.round(weights, 9), axis=0, return_inverse=True)
    mixture = mixture.ravel()
    count = np.bincount(mixture)
    x, y = np.log(sizes), np.log(excess)
    x = x - (np.bincount(mixture, weights=x) / count)[mixture]
    y = y - (np.bincount(mixture, weights=y) / count)[mixture]
    information = float((x**2).sum())
    if information <= 1e-9:
        return None
    slope = float((x * y).sum() / information)
    freedom = max(len(y) - len(count) - 1, 1)
    variance = float(((y - slope * x) ** 2).sum()) / freedom
    each = np.bincount(mixture, weights=x**2)
    known = each > 1e-9
    slopes = np.bincount(mixture, weights=x * y)[known] / each[known]
    spread = float(np.sqrt(((slopes - slope) ** 2).sum() / max(len(slopes) - 1, 1)))
    return Exponent(-slope, float(np.sqrt(variance / information)), spread, information)


def pooled_exponents(
    exponents: FloatArray, variances: FloatArray, shared: Exponent, between: float
) -> tuple[FloatArray, FloatArray]:
    """Exponents (m,) of mixtures shrunk to the shared one, and their variances (m,).

    ``exponents`` and ``variances`` (m,) are those that the mixtures' own two losses give; ``between`` is the
    variance of the true exponents. The share that an own exponent keeps is between / (between + variance).
    """
    kept = between / np.maximum(between + variances, 1e-300)
    pooled = shared.value + kept * (exponents - shared.value)
    # Of what is not known of a mixture's own exponent, the spread of all of them is to be expected.
    return pooled, kept * variances + (1 - kept) * (shared.error**2 + shared.spread**2)


def project_log_linear(
    small: FloatArray, large: FloatArray, sizes: tuple[float, float], size: float
) -> FloatArray:
    """Losses (m,) at ``size`` from those at the two ``sizes`` (N0, N1), a straight line in log N."""
    low, high = sizes
    span = np.log(high / low)
    return np.asarray((np.log(size / low) * large - np.log(size / high) * small) / span)


def project_power(
    small: FloatArray, large: FloatArray, best: float, sizes: tuple[float, float], size: float
) -> FloatArray:
    """Losses (m,) at ``size`` by a power law of each mixture's own through its two losses."""
    low, high = (np.log(np.maximum(each - best, _SMALLEST)) for each in (small, large))
    return np.asarray(best + np.exp(project_log_linear(low, high, sizes, size)))


def project_power_shared(large: FloatArray, best: float, exponent: float | FloatArray, ratio: float) -> FloatArray:
    """Losses (m,) at ``ratio`` = N / N1 times the size of the losses ``large`` (m,)."""
    return np.asarray(best + np.maximum(large - best, 0.0) * ratio**-exponent)


def noise_gain(sizes: tuple[float, float], size: float) -> float:
    """How much the noise of two fits grows on the line through them, √(log²(N/N0) + log²(N/N1)) / log(N1/N0)."""
    low, high = sizes
    return float(np.hypot(np.log(size / low), np.log(size / high)) / np.log(high / low))


def shared_noise_gain(exponent: Exponent, ratio: float) -> float:
    """The same under one exponent for all mixtures: √(1 + log²(N/N1) / information)."""
    return float(np.sqrt(1 + np.log(ratio) ** 2 / exponent.information))
