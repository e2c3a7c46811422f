"""Near-duplicates by vectors: rows whose cosine is at least a threshold are linked, and links make clusters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.indexes.disjoint_sets import DisjointSets
from mixwright.indexes.near_duplicates import Clusters
from mixwright.indexes.protocols import FloatArray, Index
from mixwright.indexes.vectors import Vectors, blocks, finite_rows
from mixwright.indexes.words import UInt64Array
from mixwright.progress import Progress

Int64Array = npt.NDArray[np.int64]

DEFAULT_COSINE = 0.95

_BLOCK = 16_384
"""Rows that are read and brought to unit length at a time."""

_TILE = 2048
"""Rows that are multiplied with as many others at a time: 16 MiB of cosines."""

_NEIGHBOURS = 64
_QUERIES_AT_A_TIME = 1024
_PAIRS_AT_A_TIME = 65_536
_ROUNDING = 1e-6
"""Unit vectors in float32 have products that are off by less than this."""

_MARGIN = 1e-4
"""What a matrix product may be off by, whatever it is made of; pairs above are multiplied again on their own."""


def semantic_clusters(
    vectors: Vectors,
    keys: UInt64Array,
    progress: Progress,
    *,
    threshold: float = DEFAULT_COSINE,
    index: Index | None = None,
) -> Clusters:
    """The clusters of n rows by the cosine of their vectors (n, d); ``keys`` (n,) name them.

    Without an ``index`` all pairs are compared: n² d operations. With one, of the same vectors at unit length,
    each row is compared with the 64 nearest rows that the index finds, so that links may be missed. A vector of
    zeros is like none. Raises DataError for a vector that is not finite.
    """
    linked = DisjointSets(len(keys))
    progress.start("compare vectors", total=len(keys), unit="vectors")
    portions = _all_pairs(vectors, threshold, progress) if index is None else _nearest(vectors, index, progress)
    for pairs in portions:
        for start in range(0, len(pairs.first), _PAIRS_AT_A_TIME):
            part = slice(start, start + _PAIRS_AT_A_TIME)
            first, second = pairs.first[part], pairs.second[part]
            apart = linked.roots(first) != linked.roots(second)
            first, second = first[apart], second[apart]
            similar = _cosines(vectors, first, second) >= threshold - _ROUNDING
            linked.join(first[similar], second[similar])
    return Clusters.of(linked, keys)


class _Pairs(NamedTuple):
    """Rows (m,) and rows (m,) that may be alike."""

    first: Int64Array
    second: Int64Array


def _all_pairs(vectors: Vectors, threshold: float, progress: Progress) -> Iterator[_Pairs]:
    """The pairs of all rows whose product is at least the threshold, or just below."""
    n = len(vectors)
    for row in range(0, n, _BLOCK):
        rows = _unit(finite_rows(vectors, _range(row, n)))
        for column in range(row, n, _BLOCK):
            columns = rows if column == row else _unit(finite_rows(vectors, _range(column, n)))
            for i in range(0, len(rows), _TILE):
                for j in range(i if column == row else 0, len(columns), _TILE):
                    products = rows[i : i + _TILE] @ columns[j : j + _TILE].T
                    first, second = np.nonzero(products >= threshold - _MARGIN)
                    yield _Pairs(first + row + i, second + column + j)
        progress.advance(len(rows))


def _nearest(vectors: Vectors, index: Index, progress: Progress) -> Iterator[_Pairs]:
    """Each row with its nearest rows."""
    for row, block in blocks(vectors):
        for start in range(0, len(block), _QUERIES_AT_A_TIME):
            queries = _unit(block[start : start + _QUERIES_AT_A_TIME])
            hits = index.search(queries, min(_NEIGHBOURS, len(vectors)))
            found = hits.ids >= 0
            asked = np.arange(row + start, row + start + len(queries))
            yield _Pairs(np.broadcast_to(asked[:, None], hits.ids.shape)[found], hits.ids[found])
            progress.advance(len(queries))


def _cosines(vectors: Vectors, first: Int64Array, second: Int64Array) -> npt.NDArray[np.float64]:
    """The cosine (m,) of each pair, by itself: the same in whatever order the rows come."""
    one, other = (_unit(vectors.rows(rows)).astype(np.float64) for rows in (first, second))
    return np.asarray(np.einsum("ij,ij->i", one, other))


def _range(start: int, n: int) -> Int64Array:
    """The rows of the block that starts there."""
    return np.arange(start, min(start + _BLOCK, n), dtype=np.int64)


def _unit(vectors: FloatArray) -> FloatArray:
    """The vectors (b, d) at unit length; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)
