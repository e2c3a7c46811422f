"""BM25 over the shards of a datastore: memory-mapped postings, statistics that add up, exact order.

Why own code: a datastore has shards, deleted rows and filters of one request, and a passage must score the same
however the store is cut, so document frequencies and lengths are summed over all shards before any of them scores;
the libraries (bm25s, tantivy) score each index by its own. A search takes three steps:

1. ``bm25_query`` makes terms of each query, ``distinct_terms`` those of all of them;
2. every shard counts them (``Bm25Shard.statistics``), and ``sum_statistics`` adds the counts;
3. every shard scores its rows by the sum (``Bm25Shard.search``), and ``merge_hits`` merges the hits.

The score is Lucene's BM25 with exact lengths (Kamphuis, de Vries, Boytsov and Lin, "Which BM25 do you mean?",
ECIR 2020, "Lucene (accurate)"): of a row of length l in which query term t, c times in the query, comes f times

    sum over t of  c * idf(t) * f / (f + k1 * (1 - b + b * l / average length))
    idf(t) = ln(1 + (N - df(t) + 0.5) / (df(t) + 0.5))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError, DataError
from mixwright.hashing import UInt64Array
from mixwright.indexes.bm25_building import (
    FREQUENCIES_FILE,
    LENGTHS_FILE,
    OFFSETS_FILE,
    ROWS_FILE,
    TERMS_FILE,
    write_bm25,
)
from mixwright.indexes.bm25_terms import hash_terms, terms
from mixwright.indexes.hits import missing_hits, order_hits
from mixwright.indexes.protocols import FloatArray, Hits, IdArray

__all__ = [
    "K1",
    "B",
    "Bm25Query",
    "Bm25Shard",
    "Bm25Statistics",
    "bm25_query",
    "distinct_terms",
    "sum_statistics",
    "write_bm25",
]

K1 = 1.2
"""How slowly more occurrences of a term stop adding to the score; values between 1.2 and 2 are usual."""

B = 0.75
"""How much the length of a row counts, 0 to 1; values between 0.5 and 0.8 are usual.

Both ranges are those of Robertson and Zaragoza, "The probabilistic relevance framework: BM25 and beyond" (2009).
"""

_WINDOW = 1 << 18
"""Rows that are scored at once: their scores stay in the processor's cache."""

_GROUPS = 1 << 12
"""Groups of a window's rows, whose best scores bound the k-th best from below."""

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


class Bm25Query(NamedTuple):
    """Distinct ``terms`` (t,) of a query, as rising hashes, and how often each is in it: ``counts`` (t,)."""

    terms: UInt64Array
    counts: Int64Array


@dataclass(frozen=True, eq=False)
class Bm25Statistics:
    """What scores depend on beside the row itself: counts of some rows, in one shard or summed over all.

    ``frequencies`` (t,): how many of the ``n_rows`` rows have each of the ``terms`` (t,), distinct rising hashes.
    ``total_length``: terms of all rows together, with repeats.
    """

    terms: UInt64Array
    frequencies: Int64Array
    n_rows: int
    total_length: int

    @property
    def average_length(self) -> float:
        """Terms a row."""
        return self.total_length / self.n_rows

    def weights(self, query: Bm25Query) -> Float64Array:
        """Weights (t,) of the query's terms: the term's count in the query times its inverse document frequency.

        Raises ConfigError if one of the terms was not counted.
        """
        places = np.searchsorted(self.terms, query.terms)
        if not np.array_equal(self.terms[places[places < len(self.terms)]], query.terms):
            raise ConfigError("BM25 statistics lack a term of a query: count the terms of all queries first")
        pairs = zip(query.counts.tolist(), self.frequencies[places].tolist(), strict=True)
        return np.array([count * self._idf(frequency) for count, frequency in pairs], dtype=np.float64)

    def _idf(self, frequency: int) -> float:
        return math.log(1 + (self.n_rows - frequency + 0.5) / (frequency + 0.5))


def bm25_query(text: str) -> Bm25Query:
    """The terms of a query's text; none if it has only stop words, which finds nothing."""
    return Bm25Query(*np.unique(hash_terms(terms(text)), return_counts=True))


def distinct_terms(queries: Sequence[Bm25Query]) -> UInt64Array:
    """The terms (t,) of several queries, rising: what statistics are to count."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(query.terms for query in queries)]))


def sum_statistics(parts: Sequence[Bm25Statistics]) -> Bm25Statistics:
    """The statistics of all shards together; each part counts the same terms in other rows.

    Raises ConfigError without any part, or if they count different terms.
    """
    if not parts:
        raise ConfigError("there are no BM25 statistics to sum: count in at least one shard")
    if not all(np.array_equal(part.terms, parts[0].terms) for part in parts):
        raise ConfigError("BM25 statistics of different terms cannot be summed: count the same in every shard")
    return Bm25Statistics(
        parts[0].terms,
        np.sum([part.frequencies for part in parts], axis=0, dtype=np.int64),
        sum(part.n_rows for part in parts),
        sum(part.total_length for part in parts),
    )


class _Postings(NamedTuple):
    """Rows (p,) that have a term, rising, and how often: ``frequencies`` (p,)."""

    rows: npt.NDArray[np.uint32]
    frequencies: npt.NDArray[np.unsignedinteger[Any]]


class Bm25Shard:
    """The index of one shard's rows, opened by memory map; any number of threads may use it at once."""

    def __init__(
        self, terms: UInt64Array, offsets: Int64Array, postings: _Postings, lengths: npt.NDArray[np.uint32]
    ) -> None:
        self._terms = terms
        self._offsets = offsets
        self._postings = postings
        self._lengths = lengths

    @classmethod
    def open(cls, folder: Path) -> Bm25Shard:
        """Open what ``write_bm25`` wrote. Pages are read when a search first touches them.

        Raises DataError naming a file that is missing or damaged.
        """
        terms = _load(folder / TERMS_FILE, np.uint64)
        offsets = _load(folder / OFFSETS_FILE, np.int64, len(terms) + 1)
        n_postings = int(offsets[-1])
        rows = _load(folder / ROWS_FILE, np.uint32, n_postings)
        frequencies = _load(folder / FREQUENCIES_FILE, np.unsignedinteger, n_postings)
        return cls(terms, offsets, _Postings(rows, frequencies), _load(folder / LENGTHS_FILE, np.uint32))

    @property
    def n_rows(self) -> int:
        """Rows of the shard."""
        return len(self._lengths)

    @cached_property
    def total_length(self) -> int:
        """Terms of all rows together, with repeats."""
        return int(self._lengths.sum(dtype=np.int64))

    def statistics(self, terms: UInt64Array) -> Bm25Statistics:
        """Counts for ``terms`` (t,), which are distinct and rising, over all rows of the shard."""
        frequencies = [len(self._postings_of(term).rows) for term in terms]
        return Bm25Statistics(terms, np.array(frequencies, dtype=np.int64), self.n_rows, self.total_length)

    def search(
        self,
        queries: Sequence[Bm25Query],
        statistics: Bm25Statistics,
        k: int,
        allowed: BoolArray | None = None,
    ) -> Hits:
        """The k rows with the highest scores for each of q queries: ids (q, k), scores (q, k).

        Only rows with a term of the query are hits, and with ``allowed`` (n_rows,) only those where it is True.
        Equal scores (as float32) go to the lower row. A row's score depends on ``statistics``, not on the shard
        that it is in: its terms are added up in float64 in the order of their hashes. Raises ConfigError for k
        below 1 or statistics that lack a term, DataError for ``allowed`` of another length.
        """
        if k < 1:
            raise ConfigError(f"a search for {k} hits: ask for at least 1")
        if allowed is not None:
            self._check_allowed(allowed)
        best = [_Best(k) for _ in queries]
        if statistics.total_length:
            terms = [self._weighted_terms(query, statistics) for query in queries]
            for start, norms in self._windows(statistics.average_length):
                window = slice(start, start + len(norms))
                for query_terms, found in zip(terms, best, strict=True):
                    scores = _scores(query_terms, start, norms)
                    if scores is not None:
                        found.add(start, scores if allowed is None else scores * allowed[window])
        return _hits(best, k)

    def _postings_of(self, term: np.uint64) -> _Postings:
        place = int(np.searchsorted(self._terms, term))
        if place == len(self._terms) or self._terms[place] != term:
            return _Postings(self._postings.rows[:0], self._postings.frequencies[:0])
        here = slice(int(self._offsets[place]), int(self._offsets[place + 1]))
        return _Postings(self._postings.rows[here], self._postings.frequencies[here])

    def _weighted_terms(self, query: Bm25Query, statistics: Bm25Statistics) -> list[_WeightedTerm]:
        starts = np.arange(0, self.n_rows, _WINDOW, dtype=np.uint32)
        found = []
        for term, weight in zip(query.terms, statistics.weights(query).tolist(), strict=True):
            rows, frequencies = self._postings_of(term)
            cuts = [*np.searchsorted(rows, starts).tolist(), len(rows)]
            found.append(_WeightedTerm(rows, frequencies, weight, cuts))
        return found

    def _windows(self, average_length: float) -> Iterator[tuple[int, Float64Array]]:
        """First row of each window, and what a frequency is compared with in each of its rows."""
        for start in range(0, self.n_rows, _WINDOW):
            lengths = self._lengths[start : start + _WINDOW].astype(np.float64)
            yield start, K1 * (1 - B + B / average_length * lengths)

    def _check_allowed(self, allowed: BoolArray) -> None:
        if allowed.shape != (self.n_rows,) or allowed.dtype != np.bool_:
            raise DataError(
                f"allowed rows are {allowed.dtype} {allowed.shape}: give one bool for each of {self.n_rows} rows"
            )


class _WeightedTerm(NamedTuple):
    """A term's postings and weight. Those of window i begin at ``cuts[i]`` and end before ``cuts[i + 1]``."""

    rows: npt.NDArray[np.uint32]
    frequencies: npt.NDArray[np.unsignedinteger[Any]]
    weight: float
    cuts: list[int]


def _scores(terms: Sequence[_WeightedTerm], start: int, norms: Float64Array) -> FloatArray | None:
    """Scores (w,) of the rows from ``start``, 0 without any of the terms; None if no row has one."""
    window = start // _WINDOW
    if not any(term.cuts[window] < term.cuts[window + 1] for term in terms):
        return None
    scores = np.zeros(len(norms))
    for term in terms:
        here = slice(term.cuts[window], term.cuts[window + 1])
        rows = term.rows[here].astype(np.intp)
        rows -= start
        frequencies = term.frequencies[here].astype(np.float64)
        gains = norms[rows]
        gains += frequencies
        np.divide(frequencies, gains, out=gains)
        gains *= term.weight
        scores[rows] += gains
    return scores.astype(np.float32)


class _Best:
    """The k best of the rows seen so far: ``rows`` rising, and their ``scores``."""

    def __init__(self, k: int) -> None:
        self.rows: IdArray = np.empty(0, np.int64)
        self.scores: FloatArray = np.empty(0, np.float32)
        self._k = k

    def add(self, start: int, scores: FloatArray) -> None:
        """See the rows from ``start``, which come behind all that were seen, with their scores (w,)."""
        # A row as good as the worst of k is no better: it has the higher number.
        floor = self.scores.min() if len(self.rows) == self._k else np.float32(0)
        rows = _candidates(scores, self._k, floor)
        self.rows = np.concatenate([self.rows, rows + start])
        self.scores = np.concatenate([self.scores, scores[rows]])
        if len(self.rows) > self._k:
            kept = _k_best(self.scores, self._k)
            self.rows, self.scores = self.rows[kept], self.scores[kept]


def _candidates(scores: FloatArray, k: int, floor: np.float32) -> IdArray:
    """Rows above ``floor``, all that can be among the k best with them, and few others."""
    depth = len(scores) // _GROUPS
    if depth > 1 and k <= _GROUPS:
        # k groups have a row as good as the k-th best group, so the k-th best row is no worse.
        best = scores[: depth * _GROUPS].reshape(depth, _GROUPS).max(axis=0)
        bound = np.partition(best, -k)[-k]
        if bound > floor:
            return np.flatnonzero(scores >= bound)
    return np.flatnonzero(scores > floor)


def _k_best(scores: FloatArray, k: int) -> IdArray:
    """Positions (k,), rising, of the k highest scores; of equal ones the first."""
    least = np.partition(scores, -k)[-k]
    kept = scores > least
    kept[np.flatnonzero(scores == least)[: k - np.count_nonzero(kept)]] = True
    return np.flatnonzero(kept)


def _hits(best: Sequence[_Best], k: int) -> Hits:
    hits = missing_hits(len(best), k)
    for line, found in enumerate(best):
        hits.ids[line, : len(found.rows)] = found.rows
        hits.scores[line, : len(found.rows)] = found.scores
    return order_hits(hits)


def _load(path: Path, kind: Any, length: int | None = None) -> npt.NDArray[Any]:
    """A one-dimensional array by memory map; raises DataError unless it is of that kind and length."""
    try:
        # np.load raises other errors too, such as EOFError for an empty file.
        loaded = np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError) as error:
        raise DataError(f"BM25 index: {path} is missing or damaged: build it again") from error
    if loaded.ndim != 1 or not np.issubdtype(loaded.dtype, kind) or length not in (None, len(loaded)):
        raise DataError(
            f"BM25 index: {path} is {loaded.dtype} {loaded.shape}, which does not fit the files beside it: "
            "build it again"
        )
    return loaded
