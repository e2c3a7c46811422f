"""From one deep search to a curve: what smaller stores would have found, and how a score grows with the store.

A store of a share p of the passages need not be built. Membership is a fixed function of the passage, its
document or its near-duplicate cluster (its key): keep iff hash64(seed, key) / 2⁶⁴ < p. Then the best hits of the
smaller store are the best members among the hits of the whole store, as long as the search went deep enough
and was exact, and a store of a smaller share is contained in that of a larger one with the same seed. (The idea
is that of MassiveDS, arXiv 2407.12854. Its published code draws anew for each query and rank, which is no store.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mixwright.hashing import UInt64Array
from mixwright.indexes.datastores.filters import sampled
from mixwright.indexes.retrieval_metrics import Float64Array, percentiles, resampled_means

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PROBABILITIES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class DeepHits:
    """The first K hits of q queries in the whole store, best first; all arrays are (q, K).

    ``ids`` are numbers of passages, −1 where the store has no further one. ``keys`` are what is drawn: of the
    passage, its document or its cluster. With ``clusters``, only the best hit of each near-duplicate cluster
    counts. ``contaminated`` marks hits that may not be used.
    """

    ids: Int64Array
    keys: UInt64Array
    clusters: UInt64Array | None = None
    contaminated: BoolArray | None = None

    @cached_property
    def _by_cluster(self) -> tuple[Int64Array, BoolArray]:
        """Columns of each line in order of cluster, best first in each, and where a cluster begins."""
        clusters = np.zeros_like(self.keys) if self.clusters is None else self.clusters
        order = np.argsort(clusters, axis=1, kind="stable")
        ordered = np.take_along_axis(clusters, order, axis=1)
        begins = np.ones(ordered.shape, dtype=np.bool_)
        begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        return order, begins

    def best_of_clusters(self, kept: BoolArray) -> BoolArray:
        """Of the hits ``kept`` (q, K), the best of each cluster; all of them without clusters."""
        if self.clusters is None:
            return kept
        order, begins = self._by_cluster
        ordered = np.take_along_axis(kept, order, axis=1)
        running = np.cumsum(ordered, axis=1)
        before = np.maximum.accumulate(np.where(begins, running - ordered, 0), axis=1)
        best: BoolArray = np.empty_like(kept)
        np.put_along_axis(best, order, ordered & (running - before == 1), axis=1)
        return best


@dataclass(frozen=True)
class SubsetHits:
    """What a smaller store finds for q queries.

    ``columns`` (q, k) say where in the deep list the hits stand, best first, −1 where there are too few;
    ``n_survivors`` (q,) is how many of the deep list could be used. A query with fewer than k survivors has to be
    searched deeper, unless the deep list is the whole store.
    """

    columns: Int64Array
    n_survivors: Int64Array

    @property
    def short(self) -> BoolArray:
        """Queries (q,) with fewer hits than asked for."""
        short: BoolArray = self.n_survivors < self.columns.shape[1]
        return short


@dataclass(frozen=True)
class CurvePoint:
    """A score at one share of the store: its mean over seeds with a 95 % confidence interval.

    ``by_seed`` are the means over queries; ``short_queries`` are, by seed, how many queries had too few hits.
    """

    probability: float
    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    short_queries: tuple[int, ...]

    def exponential(self) -> CurvePoint:
        """The point as perplexities, where it is of NLL: exp is monotone, so the interval's ends stay its ends.

        The value is then the geometric mean of the seeds' perplexities.
        """
        value, low, high = (math.exp(each) for each in (self.value, self.low, self.high))
        return replace(self, value=value, low=low, high=high, by_seed=tuple(map(math.exp, self.by_seed)))


def subset_hits(deep: DeepHits, k: int, probability: float, seed: int) -> SubsetHits:
    """The k best hits of each query in the store that has the keys of ``sampled`` (0 < probability ≤ 1) alone.

    Members first, then the best of each near-duplicate cluster, then what is not contaminated: the order in
    which that store itself would be searched. Drawing clusters, it does not matter whether members or the best
    of each cluster are found first; drawing passages or documents, a near-duplicate stands in for one that is
    no member.
    """
    members = sampled(deep.keys.ravel(), probability, seed).reshape(deep.keys.shape)
    kept = deep.best_of_clusters((deep.ids >= 0) & members)
    if deep.contaminated is not None:
        kept = kept & ~deep.contaminated
    rank = np.cumsum(kept, axis=1)
    lines, places = np.nonzero(kept & (rank <= k))
    columns = np.full((len(kept), k), -1, dtype=np.int64)
    columns[lines, rank[lines, places] - 1] = places
    return SubsetHits(columns, kept.sum(axis=1))


def survival_probability(n_hits: int, probability: float, k: int) -> float:
    """P[Bin(n_hits, probability) ≥ k]: that of so many usable hits at least k are in a share of the store.

    It holds where the keys are drawn one by one: many hits of one document or cluster are in or out together.
    """
    from scipy.special import betainc

    if k <= 0:
        return 1.0
    return float(betainc(k, n_hits - k + 1, probability)) if k <= n_hits else 0.0


def scaling_curve(
    probabilities: Sequence[float],
    totals: Float64Array,
    n_short: Int64Array,
    weights: Float64Array | None = None,
    seed: int = 0,
) -> list[CurvePoint]:
    """The curve of a score over shares of the store.

    ``totals`` (P, S, q): of P shares, S seeds and q queries. A seed's score is Σ totals / Σ weights over the
    queries, with ``weights`` (q,) (tokens, where the totals are NLL sums) or, without, the mean; a point's value
    is the mean over seeds. ``n_short`` (P, S): queries with too few hits.

    The interval is a percentile bootstrap: each of 10,000 resamples draws q queries and, apart from them, S seeds
    with replacement, the same for every share. Three seeds show little of how much seeds differ, and one
    nothing: the interval is then too narrow by that.
    """
    n_shares, n_seeds, q = totals.shape
    draws = resampled_means(totals.reshape(-1, q), weights, seed).reshape(-1, n_shares, n_seeds)
    chosen = np.random.default_rng([seed, 1]).integers(0, n_seeds, (len(draws), 1, n_seeds))
    resampled = np.take_along_axis(draws, chosen, axis=2).mean(axis=2)
    means = totals.sum(axis=2) / (q if weights is None else weights.sum())
    return [
        CurvePoint(
            float(probability),
            float(means[i].mean()),
            *percentiles(resampled[:, i]),
            tuple(means[i].tolist()),
            tuple(n_short[i].tolist()),
        )
        for i, probability in enumerate(probabilities)
    ]
