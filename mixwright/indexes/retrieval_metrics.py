"""How good a ranking is against judgements, and how sure a mean over queries is. Pure functions.

A ranking is ids, best first; judgements give the relevance of some of the ids, and what is not judged is not
relevant. An id that comes again (two passages of one document) counts at its first rank, and what follows moves
up. The definitions are trec_eval's, which BEIR (arXiv 2104.08663) uses too.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from mixwright.errors import DataError

Float64Array = npt.NDArray[np.float64]
Id = TypeVar("Id", bound=Hashable)

CONFIDENCE = 0.95

_RESAMPLES = 10_000
_DRAWS_AT_ONCE = 1 << 21


class Band(NamedTuple):
    """A value and its two-sided 95 % confidence interval."""

    value: float
    low: float
    high: float


def recall_at(ranking: Sequence[Id], judged: Mapping[Id, int], k: int) -> float:
    """The share of the relevant ids that are among the first k. Raises DataError where none is relevant."""
    n_relevant = len(_ideal(judged))
    return sum(gain > 0 for gain in _gains(ranking, judged, k)) / n_relevant


def ndcg_at(ranking: Sequence[Id], judged: Mapping[Id, int], k: int) -> float:
    """Normalized discounted cumulative gain: Σ relevance / log2(rank + 1) over the first k, divided by the best.

    The best is that of all judged ids in order of their relevance; a relevance below 0 counts as 0.
    (Järvelin and Kekäläinen 2002, with the discount of trec_eval.) Raises DataError where no id is relevant.
    """
    return _discounted(_gains(ranking, judged, k)) / _discounted(_ideal(judged)[:k])


def reciprocal_rank_at(ranking: Sequence[Id], judged: Mapping[Id, int], k: int) -> float:
    """1 / rank of the first relevant id among the first k, or 0; its mean over queries is MRR@k.

    Raises DataError where no id is relevant.
    """
    _ideal(judged)
    return next((1 / rank for rank, gain in enumerate(_gains(ranking, judged, k), 1) if gain > 0), 0.0)


def _gains(ranking: Sequence[Id], judged: Mapping[Id, int], k: int) -> list[int]:
    """Relevance of the first k distinct ids."""
    return [max(judged.get(each, 0), 0) for each in list(dict.fromkeys(ranking))[:k]]


def _ideal(judged: Mapping[Id, int]) -> list[int]:
    """Relevance of all relevant ids, the most relevant first."""
    ideal = sorted((relevance for relevance in judged.values() if relevance > 0), reverse=True)
    if not ideal:
        raise DataError("a query has no relevant document: leave it out, or judge one as relevant")
    return ideal


def _discounted(gains: Sequence[int]) -> float:
    return float(np.sum(np.array(gains) / np.log2(np.arange(2, len(gains) + 2))))


def mean_band(totals: Float64Array, weights: Float64Array | None = None, seed: int = 0) -> Band:
    """Σ totals / Σ weights over q queries, both (q,), with its confidence interval; without weights, the mean.

    With NLL sums and token counts it is the mean over tokens. Percentile bootstrap over the queries (Efron and
    Tibshirani, An Introduction to the Bootstrap, section 13.3), 10,000 resamples: it tells of the choice of the
    queries, and of nothing else. Raises DataError without a query.
    """
    draws = resampled_means(totals[None], weights, seed)[:, 0]
    value = totals.mean() if weights is None else totals.sum() / weights.sum()
    return Band(float(value), *percentiles(draws))


def resampled_means(totals: Float64Array, weights: Float64Array | None = None, seed: int = 0) -> Float64Array:
    """Σ totals / Σ weights of m rows (m, q) on 10,000 resamples of the q queries, shape (10,000, m).

    All rows are resampled alike, so that their differences may be taken. ``weights`` is (q,); None: ones.
    Raises DataError without a query.
    """
    m, q = totals.shape
    if not q:
        raise DataError("there are no queries to take a mean over: give some")
    weights = np.ones(q) if weights is None else weights
    generator = np.random.default_rng(seed)
    means = np.empty((_RESAMPLES, m))
    rows = max(_DRAWS_AT_ONCE // q, 1)
    for start in range(0, _RESAMPLES, rows):
        n = min(rows, _RESAMPLES - start)
        drawn = generator.integers(0, q, (n, q)) + np.arange(n)[:, None] * q
        counts = np.bincount(drawn.ravel(), minlength=n * q).reshape(n, q).astype(np.float64)
        means[start : start + n] = (counts @ totals.T) / (counts @ weights)[:, None]
    return means


def percentiles(draws: Float64Array) -> tuple[float, float]:
    """The ends of the interval that holds the middle 95 % of the draws (b,)."""
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
