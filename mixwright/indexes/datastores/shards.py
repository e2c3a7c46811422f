"""A shard of a datastore: a range of its rows, with a FAISS index and a BM25 index of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mixwright.errors import AlignmentError, ConfigError, DataError
from mixwright.hashing import UInt64Array
from mixwright.indexes.bm25 import Bm25Query, Bm25Shard, Bm25Statistics
from mixwright.indexes.bm25_terms import ANALYSIS
from mixwright.indexes.datastores.filters import BoolArray, RowFilter, qualifying
from mixwright.indexes.datastores.pieces import Pieces
from mixwright.indexes.faiss_import import import_faiss
from mixwright.indexes.hits import merge_hits, missing_hits, pad_hits
from mixwright.indexes.kinds import Settings
from mixwright.indexes.protocols import FloatArray, Hits
from mixwright.indexes.recall import RECALL_K
from mixwright.indexes.searching import AllowedRows, Searcher
from mixwright.indexes.vectors import StackedVectors, Vectors
from mixwright.schemas.manifests import DatastoreManifest, DatastoreShard

CLUSTERS_FILE = "clusters.npy"
DELETED_FILE = "deleted.npy"
INDEXES_FOLDER = "indexes"
BM25_FOLDER = "bm25"
TRAINED_FILE = "trained.faiss"
"""The index without rows that all shards were started from."""

_KEPT_FILTERS = 16
"""Filters whose rows a shard keeps: a byte a row, and eight for each that qualifies."""

_RESCORED = 2
"""An index of lossy codes is asked for so many times k hits, which are then compared exactly."""

_LEAST_RESCORED = _RESCORED * RECALL_K
"""… and for no fewer than when its recall was measured."""

_MOST_EFFORT = 1 << 30


class ShardIndex:
    """A FAISS index over a range of the store's rows that begins at ``start``; hits' ids are store rows.

    A flat index is exact. Of other kinds the best 2 k are found by the index and compared by the stored
    ``vectors`` (of these rows; None for a flat index), so that every score is that of a flat index.
    """

    def __init__(self, index: Any, vectors: Vectors | None, start: int) -> None:
        self.is_exact = isinstance(index, import_faiss().IndexFlat)
        self._n_rows = int(index.ntotal)
        self._start = start
        self._searcher = Searcher(index, vectors)

    def search(
        self,
        queries: FloatArray,
        k: int,
        settings: Settings,
        allowed: AllowedRows,
        *,
        exact: bool = False,
        effort: int = 1,
    ) -> Hits:
        """The k rows nearest to each query (q, d) by inner product, of those that are allowed.

        ``exact`` compares with all of them, whatever the kind. Where there are lists, ``effort`` times as many are
        scanned, and a line is short of k hits where they have no more: see ``search_shards``.
        """
        if self.is_exact:
            found = self._searcher.search_among(queries, k, settings, allowed)
        elif exact or settings.get("nprobe", 0) * (effort // 2) >= self._searcher.n_lists > 0:
            found = self._searcher.search_exactly(queries, k, allowed.rows)
        else:
            deeper = settings | {name: settings[name] * effort for name in settings.keys() & {"nprobe"}}
            found = self._rescored(queries, k, deeper, allowed)
        return Hits(np.where(found.ids >= 0, found.ids + self._start, found.ids), found.scores)

    def _rescored(self, queries: FloatArray, k: int, settings: Settings, allowed: AllowedRows) -> Hits:
        """The k best by the stored vectors of those that the index finds.

        Where the worst of these is as good as the k-th (rows that are equal), more are fetched until the tie is
        whole: which of them is a hit must not depend on how the rows are sharded.
        """
        hits, open_lines = missing_hits(len(queries), k), np.arange(len(queries))
        fetch = max(_RESCORED * k, _LEAST_RESCORED)
        while len(open_lines):
            fetch, asked = min(fetch, self._n_rows), queries[open_lines]
            candidates = self._searcher.search_among(
                asked, fetch, settings, allowed, deepen=not self._searcher.n_lists
            )
            found = pad_hits(self._searcher.rescored(asked, candidates), max(fetch, k))
            settled = found.scores[:, k - 1] > found.scores[:, -1]
            settled |= (found.ids[:, -1] < 0) | (fetch == self._n_rows)
            hits.ids[open_lines[settled]] = found.ids[settled, :k]
            hits.scores[open_lines[settled]] = found.scores[settled, :k]
            open_lines, fetch = open_lines[~settled], 4 * fetch
        return hits

    def __len__(self) -> int:
        return self._n_rows


def search_shards(
    search: Callable[[FloatArray, int], Sequence[Hits]], queries: FloatArray, k: int, n_rows: Callable[[], int]
) -> Hits:
    """The k nearest rows of all shards: what one index with all of them finds.

    ``search(queries, effort)`` gives each shard's hits. Lines that are short of k, although ``n_rows()`` rows
    qualify, are searched again with twice the effort in every shard: one that is short by itself says nothing.
    """
    hits, effort = merge_hits(search(queries, 1), k), 1
    if (hits.ids[:, -1:] < 0).any() and (wanted := min(k, n_rows())):
        while len(short := np.flatnonzero(hits.ids[:, wanted - 1] < 0)) and effort < _MOST_EFFORT:
            effort *= 2
            hits.ids[short], hits.scores[short] = merge_hits(search(queries[short], effort), k)
    return hits


class MergedIndexes:
    """Several shards' indexes as one, for tuning and measuring."""

    def __init__(self, indexes: Sequence[ShardIndex]) -> None:
        self._indexes = [(index, AllowedRows(np.ones(len(index), dtype=np.bool_))) for index in indexes]

    def search(self, queries: FloatArray, k: int, settings: Settings) -> Hits:
        """The k rows of all shards nearest to each query."""

        def search(some: FloatArray, effort: int) -> list[Hits]:
            return [index.search(some, k, settings, rows, effort=effort) for index, rows in self._indexes]

        return search_shards(search, queries, k, lambda: sum(len(index) for index, _ in self._indexes))


@dataclass(frozen=True)
class TunedIndexes:
    """The indexes of a store with the settings that they were tuned to: an ``Index``."""

    indexes: MergedIndexes
    settings: Settings

    def search(self, queries: FloatArray, k: int) -> Hits:
        """The k rows nearest to each query (q, d)."""
        return self.indexes.search(queries, k, self.settings)


@dataclass(frozen=True)
class DenseSearch:
    """How vectors are compared: with every row, or through the index with these settings (none: as tuned).

    ``effort``: so many times the lists are scanned; see ``search_shards``.
    """

    exact: bool = False
    overrides: tuple[tuple[str, float], ...] = ()
    effort: int = 1


class Shard:
    """One shard, opened by memory map; any number of threads may search it at once. Hits' ids are store rows."""

    def __init__(self, directory: Path, manifest: DatastoreManifest, shard: DatastoreShard) -> None:
        self._shard = shard
        self._manifest = manifest
        self._pieces = Pieces(directory, manifest.pieces, manifest.dim)
        self._clusters = open_rows(directory / CLUSTERS_FILE, manifest.n_rows)[shard.start : shard.stop]
        self._alive = alive_rows(directory, manifest, shard.start, shard.stop)
        self._bm25 = Bm25Shard.open(directory / BM25_FOLDER / shard.name)
        index = read_shard_index(directory / INDEXES_FOLDER / f"{shard.name}.faiss", len(self), manifest.dim)
        self._index = shard_index(index, self._pieces, shard)
        self._allowed: Callable[[RowFilter], AllowedRows] = lru_cache(maxsize=_KEPT_FILTERS)(self._find_allowed)

    def __len__(self) -> int:
        return self._shard.stop - self._shard.start

    def n_qualifying(self, rows: RowFilter) -> int:
        """How many rows of the shard a filter keeps, without those that are deleted."""
        return len(self._allowed(rows).rows)

    def dense(self, queries: FloatArray, k: int, rows: RowFilter, how: DenseSearch) -> Hits:
        """The k rows nearest to each query (q, d), among those that qualify; see ``ShardIndex``.

        Raises ConfigError for a setting that the kind of index does not have.
        """
        return self._index.search(
            queries, k, self._settings(how), self._allowed(rows), exact=how.exact, effort=how.effort
        )

    def bm25_statistics(self, terms: UInt64Array) -> Bm25Statistics:
        """What of the shard counts for scores; of deleted rows too, until the store is compacted.

        Raises DataError for a store whose terms were made in another way than a query's are now.
        """
        check_terms(self._manifest)
        return self._bm25.statistics(terms)

    def bm25(self, queries: Sequence[Bm25Query], statistics: Bm25Statistics, k: int, rows: RowFilter) -> Hits:
        """The k rows with the highest scores above 0 for each query, among those that qualify."""
        allowed = self._allowed(rows)
        found = self._bm25.search(queries, statistics, k, None if allowed.are_all else allowed.mask)
        return Hits(np.where(found.ids >= 0, found.ids + self._shard.start, found.ids), found.scores)

    def _find_allowed(self, rows: RowFilter) -> AllowedRows:
        if rows.is_open:
            return AllowedRows(self._alive)
        kept = qualifying(rows, self._pieces, self._shard.start, self._shard.stop, self._clusters)
        return AllowedRows(np.asarray(kept & self._alive))

    def _settings(self, how: DenseSearch) -> Settings:
        tuned: Settings = dict(self._manifest.search_parameters)
        for name, _ in how.overrides:
            if name not in tuned:
                known = ", ".join(tuned) or "none"
                raise ConfigError(
                    f"a datastore of index kind {self._manifest.index_kind} has no search parameter {name}: it "
                    f"has {known}"
                )
        return tuned | dict(how.overrides)


@dataclass(frozen=True)
class Answers:
    """What the shards of a store answered, in their order; ``n_missing`` of them did not."""

    results: list[Any]
    n_missing: int = 0


class ShardGroup(Protocol):
    """The shards of one store, wherever they are."""

    def __len__(self) -> int: ...

    def call(self, method: str, *arguments: Any) -> Answers:
        """Call a method of every shard, named as in ``Shard``; raises what a shard raises."""
        ...

    def close(self) -> None:
        """Let go of the shards."""
        ...


class LocalShards:
    """All shards of a store in this process, searched at the same time: a thread a shard, up to one a core."""

    def __init__(self, directory: Path, manifest: DatastoreManifest) -> None:
        self._shards = [Shard(directory, manifest, shard) for shard in manifest.shards]
        faiss = import_faiss()
        # FAISS has a number of threads in each thread that calls it: together they are as many as before.
        all_threads = int(faiss.omp_get_max_threads())
        n_threads = min(len(self._shards), all_threads)
        self._pool = None
        if n_threads > 1:
            each = (all_threads // n_threads,)
            self._pool = ThreadPoolExecutor(
                n_threads, "shard", initializer=faiss.omp_set_num_threads, initargs=each
            )

    def __len__(self) -> int:
        return len(self._shards)

    def call(self, method: str, *arguments: Any) -> Answers:
        if self._pool is None:
            return Answers([getattr(shard, method)(*arguments) for shard in self._shards])
        return Answers(list(self._pool.map(lambda shard: getattr(shard, method)(*arguments), self._shards)))

    def close(self) -> None:
        """Nothing to do: a search that is still at work needs the shards, and its end frees them."""


def check_terms(manifest: DatastoreManifest) -> None:
    """Raise DataError for a store whose BM25 index was made with another analysis of words."""
    if manifest.parameters.get("bm25_terms") != ANALYSIS:
        raise DataError(
            f"the BM25 index of {manifest.ref} is of another mixwright version: run  mixwright datastore compact "
            f"{manifest.name}"
        )


def open_rows(path: Path, n_rows: int) -> UInt64Array:
    """A number for each row of the store (n,), memory-mapped; raises DataError for a damaged file."""
    try:
        values: UInt64Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path.name} is missing or damaged: restore it or build the store again") from error
    if values.shape != (n_rows,):
        raise AlignmentError(f"{path.name} has {values.shape} numbers of {n_rows}: build the store again")
    return values


def alive_rows(directory: Path, manifest: DatastoreManifest, start: int = 0, stop: int | None = None) -> BoolArray:
    """(stop - start,): which of the rows ``start … stop - 1`` are not deleted; default: of all rows."""
    stop = manifest.n_rows if stop is None else stop
    alive = np.ones(stop - start, dtype=np.bool_)
    if manifest.n_deleted:
        deleted = open_rows(directory / DELETED_FILE, manifest.n_deleted)
        first, last = np.searchsorted(deleted, np.array([start, stop], dtype=np.uint64))
        alive[deleted[first:last].astype(np.int64) - start] = False
    return alive


def shard_index(index: Any, pieces: Pieces, shard: DatastoreShard) -> ShardIndex:
    """A shard's FAISS index together with the vectors that it compares with."""
    flat = isinstance(index, import_faiss().IndexFlat)
    return ShardIndex(index, None if flat else pieces.vectors(shard.start, shard.stop), shard.start)


def stored_vectors(directory: Path, manifest: DatastoreManifest) -> StackedVectors:
    """The vectors of all rows of a store: those of its pieces, or those that its flat indexes hold."""
    if manifest.index_kind != "flat":
        return Pieces(directory, manifest.pieces, manifest.dim).vectors(0, manifest.n_rows)
    return StackedVectors(
        [
            _held_vectors(
                directory / INDEXES_FOLDER / f"{shard.name}.faiss", shard.stop - shard.start, manifest.dim
            )
            for shard in manifest.shards
        ],
        manifest.dim,
    )


def _held_vectors(path: Path, n_rows: int, dim: int) -> FloatArray:
    """The vectors (n, d) of a flat index, mapped from the end of its file, where FAISS writes them."""
    index = read_shard_index(path, n_rows, dim)
    vectors: FloatArray = np.memmap(
        path, dtype=np.float32, mode="r", offset=path.stat().st_size - 4 * n_rows * dim, shape=(n_rows, dim)
    )
    for row in (0, n_rows - 1):
        if not np.array_equal(vectors[row], index.reconstruct(row)):
            raise DataError(f"{path.name} is written in a way that this mixwright does not know: build it again")
    return vectors


def read_shard_index(path: Path, n_rows: int, dim: int) -> Any:
    """A shard's FAISS index, memory-mapped; raises DataError for a damaged file, AlignmentError for another."""
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise DataError(f"{path.name} is missing or damaged: restore it or build the store again") from error
    if (index.ntotal, index.d) != (n_rows, dim):
        raise AlignmentError(
            f"{path.name} holds {index.ntotal} vectors of {index.d} coordinates, the manifest says {n_rows} of "
            f"{dim}: build the store again"
        )
    return index
