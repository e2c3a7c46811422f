"""How much a model lost where, and what that buys: shares, budgets and orders. Pure functions over arrays.

PASER (arXiv 2502.12594): the degradation of a cluster is the mean score of its documents (the capability
degradation score, section 3.3), clusters get budget by it (Eq. 6), and inside a cluster the documents whose score
is large for their cost come first (Eq. 7). The score is any number of which more is better to train on.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from mixwright.hashing import keyed_hash
from mixwright.selectors.allocation import largest_remainder, water_fill

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]

Weight = Literal["cds", "cds_times_size", "size"]
Cost = Literal["tokens", "paper", "none"]
Pick = Literal["top", "sample"]

_PICK = 4
"""The use of the seed that orders documents inside their cluster."""


def cluster_means(scores: FloatArray, labels: Int64Array, n_clusters: int) -> FloatArray:
    """The mean score of each cluster, shape (k,), over the documents (n,) that have one; 0 where none has.

    The capability degradation score where the scores are divergences.
    """
    scored = np.isfinite(scores)
    totals = np.bincount(labels[scored], weights=scores[scored], minlength=n_clusters)
    counts = np.bincount(labels[scored], minlength=n_clusters)
    means: FloatArray = totals / np.maximum(counts, 1)
    return means


def cluster_weights(means: FloatArray, sizes: Int64Array, weight: Weight) -> FloatArray:
    """The share of the budget that each cluster should have, shape (k,), summing to 1.

    ``means`` and ``sizes`` (documents or tokens) are (k,). ``cds`` is the paper's Eq. 6: a small cluster that is
    damaged as much as a large one gets as much. A negative mean counts as 0; where every mean is 0 the shares
    are those of the sizes.
    """
    raw = np.where(sizes > 0, np.maximum(means, 0.0), 0.0)
    if weight == "size" or not raw.any():
        raw = sizes.astype(np.float64)
    elif weight == "cds_times_size":
        raw = raw * sizes
    total = raw.sum()
    return raw / total if total else raw


def cluster_budgets(weights: FloatArray, capacities: Int64Array, total: int) -> Int64Array:
    """Whole numbers (k,) by ``weights`` (k,), none above its capacity, that sum to min(total, capacities).

    Water-filling hands on what a full cluster cannot take; when all clusters with a weight are full, the rest is
    shared among those without one by their capacities. Then largest remainders.
    """
    total = min(total, int(capacities.sum()))
    caps = capacities.astype(np.float64)
    amounts = water_fill(weights, caps, total)
    rest = total - float(amounts.sum())
    if rest > 1e-6 * max(total, 1):
        amounts = amounts + water_fill(np.where(weights > 0, 0.0, caps), caps, rest)
    return largest_remainder(np.minimum(amounts, caps), total, capacities)


def efficiency(scores: FloatArray, n_prompt: FloatArray, n_response: FloatArray, cost: Cost) -> FloatArray:
    """What a document's training tokens buy, shape (n,).

    ``scores`` are means over the response's tokens; ``n_prompt`` and ``n_response`` count tokens. ``tokens``: the
    score summed over the response, for each token that is trained on, ``score · |y| / (|x| + |y|)``; a long
    prompt costs and teaches nothing. ``paper``: Eq. 7, ``score / log (|x| + |y|)²``. ``none``: the score.
    """
    length = n_prompt + n_response
    if cost == "none":
        return scores
    if cost == "paper":
        return np.asarray(scores / (2 * np.log(np.maximum(length, 2))))
    return np.asarray(scores * n_response / np.maximum(length, 1))


def pick_order(values: FloatArray, ids: UInt64Array, pick: Pick, seed: int) -> Int64Array:
    """The order (n,) in which documents are taken, by their values (n,).

    ``top``: the largest value first, ties by hash of the id. ``sample``: drawn one after the other without
    replacement with a probability proportional to the value (Efraimidis and Spirakis, 2006: smallest −ln u / w
    first), where u is a hash of seed and id: documents without value come last, and the order of the input
    does not matter.
    """
    hashes = keyed_hash(ids, _PICK, seed)
    if pick == "top":
        return np.lexsort((hashes, -values))
    uniform = (hashes.astype(np.float64) + 0.5) / 2.0**64
    with np.errstate(divide="ignore"):
        race = -np.log(uniform) / np.maximum(values, 0.0)
    return np.lexsort((hashes, race))
