"""Recall@k against brute force, with an honest bound.

The queries are rows of the corpus, since a corpus has no other. Each is left out of its own neighbours, for it
would always find itself. The rows that tune a search are never the rows that measure it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mixwright.indexes.faiss_import import import_faiss
from mixwright.indexes.hits import leave_out, merge_hits
from mixwright.indexes.protocols import FloatArray, Hits, IdArray
from mixwright.indexes.vectors import Vectors, blocks

RECALL_K = 10

_ROUNDING = 1e-6
"""Error of an inner product in float32, relative to the two lengths."""

_RESAMPLES = 10_000
_CONFIDENCE = 0.95
_QUERIES_AT_ONCE = 512

Float64Array = npt.NDArray[np.float64]
SearchFunction = Callable[[FloatArray, int], Hits]


@dataclass(frozen=True)
class Truth:
    """The true neighbours of q queries (q, d) among ``vectors``.

    ``ids`` (q, k) of the nearest rows, ``least`` (q,) what as good a hit as the k-th scores. ``rows`` (q,): the
    queries are these rows of ``vectors``, and left out of their own neighbours; None: they are none of them.
    """

    vectors: Vectors
    queries: FloatArray
    rows: IdArray | None
    ids: IdArray
    least: Float64Array

    @property
    def k(self) -> int:
        """True neighbours a query."""
        return int(self.ids.shape[1])

    def part(self, which: slice) -> Truth:
        """Some of the queries."""
        rows = self.rows[which] if self.rows is not None else None
        return Truth(self.vectors, self.queries[which], rows, self.ids[which], self.least[which])


def brute_force(
    vectors: Vectors,
    queries: FloatArray,
    k: int,
    *,
    device: Literal["cpu", "gpu"] = "cpu",
    advance: Callable[[int], None] = lambda n: None,
) -> Hits:
    """The k largest inner products of each query (q, d) with all ``vectors``, block by block."""
    faiss = import_faiss()
    resources = faiss.StandardGpuResources() if device == "gpu" else None
    best: Hits | None = None
    for start, block in blocks(vectors):
        columns, metric = min(k, len(block)), faiss.METRIC_INNER_PRODUCT
        if resources is None:
            scores, ids = faiss.knn(queries, block, columns, metric=metric)
        else:
            scores, ids = faiss.knn_gpu(resources, queries, block, columns, metric=metric)
        found = Hits(ids + start, scores)
        best = merge_hits([found] if best is None else [best, found], k)
        advance(len(block))
    return merge_hits([], k) if best is None else best


def true_neighbours(
    vectors: Vectors,
    queries: FloatArray,
    rows: IdArray | None,
    *,
    device: Literal["cpu", "gpu"] = "cpu",
    advance: Callable[[int], None] = lambda n: None,
) -> Truth:
    """The 10 true neighbours of each query, or all there are: the query's own row, if it has one, is left out."""
    if rows is None:
        ids = brute_force(vectors, queries, min(RECALL_K, len(vectors)), device=device, advance=advance).ids
    else:
        k = min(RECALL_K, len(vectors) - 1)
        ids = leave_out(brute_force(vectors, queries, k + 1, device=device, advance=advance), rows).ids
    return Truth(vectors, queries, rows, ids, _least_scores(vectors, queries, ids))


def _least_scores(vectors: Vectors, queries: FloatArray, ids: IdArray) -> Float64Array:
    """What a hit must score to be as good as the last of ``ids`` (q, k), as far as float32 can tell."""
    if ids.shape[1] == 0:
        return np.zeros(len(queries))
    last = vectors.rows(ids[:, -1]).astype(np.float64)
    norms = np.linalg.norm(queries, axis=1) * np.linalg.norm(last, axis=1)
    scores: Float64Array = (queries * last).sum(axis=1) - _ROUNDING * norms
    return scores


def exact_scores(vectors: Vectors, queries: FloatArray, ids: IdArray) -> Float64Array:
    """Inner products (q, k) in float64 of each query (q, d) with the rows ``ids`` (q, k)."""
    scores = np.empty(ids.shape)
    for start in range(0, len(ids), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        found = vectors.rows(ids[part].ravel()).reshape(*ids[part].shape, -1)
        scores[part] = np.einsum("qd,qkd->qk", queries[part].astype(np.float64), found.astype(np.float64))
    return scores


def recall_per_query(truth: Truth, search: SearchFunction) -> Float64Array:
    """Recall@k of each query, (q,): the share of its k hits that are true neighbours.

    A hit that is not among the true ids but scores as well as the k-th of them, to float32's precision, is
    right: which of several equal documents is found is no error.
    """
    if truth.k == 0:
        return np.ones(len(truth.queries))
    if truth.rows is None:
        ids = search(truth.queries, truth.k).ids
    else:
        ids = leave_out(search(truth.queries, truth.k + 1), truth.rows).ids
    right = (ids[:, :, None] == truth.ids[:, None, :]).any(axis=2)
    lines = np.flatnonzero(~right.all(axis=1))
    if len(lines):
        found = np.maximum(ids[lines], 0)
        as_good = exact_scores(truth.vectors, truth.queries[lines], found) >= truth.least[lines, None]
        right[lines] |= as_good & (ids[lines] >= 0)
    recalls: Float64Array = right.mean(axis=1)
    return recalls


def bootstrap_lower_bound(recalls: Float64Array, seed: int = 0) -> float:
    """One-sided 95 % lower bound of the mean of ``recalls`` (q,): percentile bootstrap over the queries.

    (Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3.) A query's recall is one of k + 1
    values, so a resample is one multinomial draw of how often each value comes.
    """
    if not len(recalls):
        return 1.0
    values, counts = np.unique(recalls, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(recalls), counts / counts.sum(), size=_RESAMPLES)
    return float(np.quantile(draws @ values / len(recalls), 1 - _CONFIDENCE))
