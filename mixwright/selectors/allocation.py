"""How a budget is shared: weights, caps and whole numbers. Pure functions over arrays.

Weights are shares of tokens. Sizes, capacities and amounts are in tokens or in documents, all in one unit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


def temperature_weights(sizes: Int64Array, temperature: float) -> FloatArray:
    """q_i ∝ p_i^(1/τ) with p the sources' shares of the tokens, shape (k,).

    τ = 1 is proportional, τ → ∞ uniform (Devlin et al., multilingual BERT, 2018; τ = 3.33 in XLM-R and mT5).
    """
    # In logarithms, so that a very small τ underflows to a zero share and not to 0/0.
    logits = np.log(np.asarray(sizes, dtype=np.float64)) / temperature
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def water_fill(weights: FloatArray, capacities: FloatArray, total: float) -> FloatArray:
    """Share ``total`` by ``weights`` under ``capacities``; all (k,), returns amounts (k,).

    Sources whose share passes their capacity are fixed at it and the rest is shared among the others, until
    none passes. For equal weights this is UniMax (arXiv 2304.09151, Algorithm 1). The amounts sum to
    min(total, capacity of the sources with a positive weight).
    """
    amounts = np.zeros(len(weights))
    open_ = weights > 0
    left = float(total)
    while open_.any() and left > 0:
        share = np.where(open_, weights, 0.0) / weights[open_].sum() * left
        full = open_ & (share >= capacities)
        if not full.any():
            return np.where(open_, share, amounts)
        amounts[full] = capacities[full]
        left = float(total) - float(amounts[~open_ | full].sum())
        open_ &= ~full
    return amounts


def binding_source(weights: FloatArray, capacities: FloatArray) -> int:
    """The source that runs out first as the budget grows: the largest weight for its capacity."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return int(np.argmax(np.where(weights > 0, weights / capacities, -1.0)))


def largest_remainder(amounts: FloatArray, total: int, capacities: Int64Array) -> Int64Array:
    """Whole numbers (k,) that sum to ``total``, each within one of ``amounts`` and within ``capacities``.

    Hamilton's method: floors first, then one each to the largest fractions; ties go to the earlier source.
    """
    # A share such as 2.9999999999 is 3 that lost its last bits.
    counts = np.floor(amounts + 1e-9).astype(np.int64)
    missing = total - int(counts.sum())
    fractions = np.where(counts < capacities, amounts - counts, -np.inf)
    counts[np.argsort(-fractions, kind="stable")[:missing]] += 1
    return counts


def fill(order: Int64Array, n_tokens: Int64Array, target: int) -> Int64Array:
    """Rows, taken in ``order``, whose tokens sum to at most ``target`` and leave no room for another.

    ``order`` (m,) are row numbers, ``n_tokens`` (n,) is indexed by row number. The first rows up to the target
    are taken; where the next would pass it, later rows that still fit are. Returns sorted row numbers.
    """
    tokens = n_tokens[order]
    stop = int(np.searchsorted(np.cumsum(tokens), target, side="right"))
    chosen = [order[:stop]]
    left = target - int(tokens[:stop].sum())
    place = stop + 1
    while place < len(order):
        fits = np.flatnonzero(tokens[place:] <= left)
        if not len(fits):
            break
        place += int(fits[0])
        chosen.append(order[place : place + 1])
        left -= int(tokens[place])
        place += 1
    return np.sort(np.concatenate(chosen))
