"""Searching a FAISS index: exact answers where the kind is exact, always k hits, no shared state."""

from __future__ import annotations

import math
import threading
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError, DataError
from mixwright.indexes.building import inverted_file
from mixwright.indexes.faiss_import import import_faiss
from mixwright.indexes.hits import merge_hits, missing_hits, order_hits, pad_hits
from mixwright.indexes.kinds import Settings
from mixwright.indexes.protocols import FloatArray, Hits, IdArray
from mixwright.indexes.vectors import BLOCK_BYTES, Vectors

BoolArray = npt.NDArray[np.bool_]

_ROUNDING = 1e-6
"""Scores closer than this, relative to the line's largest, may come out in either order of a matrix product."""

_SPARE = 8
"""Hits that are fetched beyond the k-th, to see whether it is tied."""

_FEW_ROWS = 1 << 16
"""So many rows are compared one by one sooner than an index passes over all the others."""

_GPU_LIMIT = 2048
"""The largest k and nprobe of FAISS on a GPU; what asks for more is searched on the CPU."""


class Searcher:
    """Searches one FAISS index; any number of threads may use it at once.

    ``vectors`` are those of the rows, for exact searches of other kinds than flat. ``gpu`` copies the vectors
    to a GPU where the kind can be searched there: flat and ivf.
    """

    def __init__(self, index: Any, vectors: Vectors | None = None, *, gpu: bool = False) -> None:
        faiss = import_faiss()
        self.index = index
        self._vectors = ReconstructedVectors(index) if isinstance(index, faiss.IndexFlat) else vectors
        self._ivf = inverted_file(index)
        self._gpu = None
        self._gpu_lock = threading.Lock()
        if gpu and isinstance(index, faiss.IndexFlat | faiss.IndexIVFFlat):
            self._gpu = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)

    @property
    def n_lists(self) -> int:
        """Lists of the index's inverted file; 0 without one."""
        return int(self._ivf.nlist) if self._ivf is not None else 0

    def search(self, queries: FloatArray, k: int, settings: Settings, *, deepen: bool = True) -> Hits:
        """The k rows nearest to each query (q, d), by inner product.

        A line is short of k hits only where the index has fewer than k rows, or without ``deepen``, where the
        lists that are scanned have. A flat index gives the exact order, equal scores by rising id, whatever else
        is in the batch. ``settings`` are those of this call. Raises ConfigError for k < 1, DataError for queries
        of another form.
        """
        if k < 1:
            raise ConfigError(f"k is {k}: ask for at least one hit")
        checked = checked_queries(queries, int(self.index.d))
        wanted = min(k, int(self.index.ntotal))
        if not len(checked) or not wanted:
            return missing_hits(len(checked), k)
        if isinstance(self.index, import_faiss().IndexFlat):
            return pad_hits(self._exact(self.index, checked, wanted), k)
        return pad_hits(self._searched(checked, wanted, settings, deepen=deepen), k)

    def search_among(
        self, queries: FloatArray, k: int, settings: Settings, allowed: AllowedRows, *, deepen: bool = True
    ) -> Hits:
        """The k nearest of the rows that are allowed; short of k only where fewer are, or as in ``search``.

        Exact where the index is flat or few rows are allowed. Else FAISS passes over the other rows inside the
        index, and as many more lists are scanned as keep the number of allowed rows in them. Raises ConfigError
        for k < 1, DataError for queries of another form.
        """
        if allowed.are_all:
            return self.search(queries, k, settings, deepen=deepen)
        if len(allowed.rows) <= _FEW_ROWS or not self._passes_over:
            return self.search_exactly(queries, k, allowed.rows)
        checked = checked_queries(queries, int(self.index.d))
        if "nprobe" in settings and self._ivf is not None:
            wider = math.ceil(settings["nprobe"] * len(allowed.mask) / len(allowed.rows))
            settings = settings | {"nprobe": min(wider, int(self._ivf.nlist))}
        wanted = min(k, len(allowed.rows))
        return pad_hits(self._searched(checked, wanted, settings, allowed, deepen=deepen), k)

    def search_exactly(self, queries: FloatArray, k: int, rows: IdArray | None = None) -> Hits:
        """The k nearest of ``rows`` (m,), rising; default: of all, whatever the kind of index.

        The scores are those of a flat index over these rows alone, to the last bit. Raises as ``search_among``.
        """
        if k < 1:
            raise ConfigError(f"k is {k}: ask for at least one hit")
        checked = checked_queries(queries, int(self.index.d))
        if self._vectors is None:
            raise ConfigError("the index keeps no vectors of its own: search it without exact")
        if rows is None:
            rows = np.arange(self.index.ntotal, dtype=np.int64)
        faiss = import_faiss()
        size = max(BLOCK_BYTES // (4 * int(self.index.d)), 1)
        found = missing_hits(len(checked), k)
        for start in range(0, len(rows) if len(checked) else 0, size):
            part = rows[start : start + size]
            flat = faiss.IndexFlatIP(int(self.index.d))
            flat.add(self._vectors.rows(part))
            hits = self._exact(flat, checked, min(k, len(part)))
            found = merge_hits([found, Hits(np.where(hits.ids >= 0, part[hits.ids], -1), hits.scores)], k)
        return found

    def rescored(self, queries: FloatArray, hits: Hits) -> Hits:
        """Hits (q, k) ordered by the inner products of the stored vectors; raises as ``search_exactly``."""
        checked = checked_queries(queries, int(self.index.d))
        if self._vectors is None:
            raise ConfigError("the index keeps no vectors of its own: search it without exact")
        rows, places = np.unique(hits.ids, return_inverse=True)
        n_missing = int(np.searchsorted(rows, 0))
        if n_missing == len(rows):
            return hits
        flat = import_faiss().IndexFlatIP(int(self.index.d))
        flat.add(self._vectors.rows(rows[n_missing:]))
        local = places.reshape(hits.ids.shape) - n_missing
        scores = _scores_one_by_one(flat, checked, np.maximum(local, 0).astype(np.int64))
        return order_hits(Hits(hits.ids, scores))

    @cached_property
    def _passes_over(self) -> bool:
        """Whether FAISS can leave rows out inside the index: fast-scan RaBitQ cannot without an inverted file."""
        faiss = import_faiss()
        return self._ivf is not None or isinstance(self.index, faiss.IndexHNSW)

    def _exact(self, flat: Any, queries: FloatArray, k: int) -> Hits:
        """Exact hits (q, k) of an ``IndexFlat``, k ≤ its rows.

        FAISS multiplies matrices, in which the same two vectors get scores that differ in the last bits from
        batch to batch, and of several equal rows it keeps any. So each hit is scored again on its own, and
        where the last hits are equal (documents that occur twice) more are fetched until the tie is whole.
        """
        hits = missing_hits(len(queries), k)
        open_lines = np.arange(len(queries))
        fetch = k + _SPARE
        while len(open_lines):
            fetch = min(fetch, int(flat.ntotal))
            found = self._scored_one_by_one(flat, queries[open_lines], fetch)
            last, margin = found.scores[:, -1], _ROUNDING * np.abs(found.scores).max(axis=1)
            settled = (found.scores[:, k - 1] > last + margin) | (fetch == flat.ntotal)
            hits.ids[open_lines[settled]] = found.ids[settled, :k]
            hits.scores[open_lines[settled]] = found.scores[settled, :k]
            open_lines, fetch = open_lines[~settled], 4 * fetch
        return hits

    def _scored_one_by_one(self, flat: Any, queries: FloatArray, k: int) -> Hits:
        ids = self._find(flat, queries, k, {}).ids
        return order_hits(Hits(ids, _scores_one_by_one(flat, queries, ids)))

    def _searched(
        self,
        queries: FloatArray,
        k: int,
        settings: Settings,
        allowed: AllowedRows | None = None,
        *,
        deepen: bool,
    ) -> Hits:
        """Search, and search the lines again that are short of k hits, with twice the effort each time."""
        hits = order_hits(self._find(self.index, queries, k, settings, allowed))
        limits = {"nprobe": self.n_lists, "efSearch": int(self.index.ntotal)}
        while deepen and len(short := np.flatnonzero((hits.ids < 0).any(axis=1))):
            deeper = {name: min(2 * value, limits.get(name, value)) for name, value in settings.items()}
            if deeper == settings:
                hits.ids[short], hits.scores[short] = self._exhaustive(queries[short], k, allowed)
                break
            settings = deeper
            found = self._find(self.index, queries[short], k, settings, allowed)
            hits.ids[short], hits.scores[short] = order_hits(found)
        return hits

    def _exhaustive(self, queries: FloatArray, k: int, allowed: AllowedRows | None) -> Hits:
        """Hits among all rows, by the vectors that the index keeps beside its graph or its codes.

        For the rows that a search never reaches: no link of a graph leads to them (as among many equal rows),
        or they are the very worst of a list, which fast-scan codes cannot tell from nothing.
        """
        faiss = import_faiss()
        if allowed is not None:
            return self.search_exactly(queries, k, allowed.rows)
        if isinstance(self.index, faiss.IndexHNSW):
            return self._exact(faiss.downcast_index(self.index.storage), queries, k)
        scores, ids = faiss.downcast_index(self.index.refine_index).search(queries, k)
        return order_hits(Hits(ids, scores))

    def _find(
        self, index: Any, queries: FloatArray, k: int, settings: Settings, allowed: AllowedRows | None = None
    ) -> Hits:
        """FAISS's own answer (ids (q, k), scores (q, k)), on the GPU where it is there and k is small enough."""
        parameters = self._parameters(k, settings, allowed)
        if self._gpu is not None and allowed is None and max(k, settings.get("nprobe", 0)) <= _GPU_LIMIT:
            with self._gpu_lock:  # a GPU index has one scratch memory
                scores, ids = self._gpu.search(queries, k, params=parameters)
        else:
            scores, ids = index.search(queries, k, params=parameters)
        return Hits(ids, scores)

    def _parameters(self, k: int, settings: Settings, allowed: AllowedRows | None) -> Any:
        """The settings as FAISS's parameter objects; None without settings. A rotation passes them on."""
        faiss = import_faiss()
        parameters = None
        selected = {} if allowed is None else {"sel": allowed.selector}
        if "efSearch" in settings:
            parameters = faiss.SearchParametersHNSW(efSearch=max(int(settings["efSearch"]), k), **selected)
        if "nprobe" in settings and self._ivf is not None:
            nprobe = min(int(settings["nprobe"]), int(self._ivf.nlist))
            parameters = faiss.SearchParametersIVF(nprobe=nprobe, **selected)
        if "k_factor" in settings:
            k_factor = min(settings["k_factor"], math.ceil(self.index.ntotal / k))
            parameters = faiss.IndexRefineSearchParameters(k_factor=k_factor, base_index_params=parameters)
        return parameters


class AllowedRows:
    """Rows that a search may find: ``mask`` (n,), kept together with the forms in which searches read it."""

    def __init__(self, mask: BoolArray) -> None:
        self.mask = mask

    @cached_property
    def rows(self) -> IdArray:
        """The numbers of the allowed rows, rising."""
        return np.flatnonzero(self.mask)

    @cached_property
    def are_all(self) -> bool:
        """Whether no row is left out."""
        return bool(self.mask.all())

    @cached_property
    def selector(self) -> Any:
        """The rows as FAISS reads them inside an index: a bitmap of which it keeps a pointer."""
        faiss = import_faiss()
        return faiss.IDSelectorBitmap(len(self.mask), faiss.swig_ptr(self._bits))

    @cached_property
    def _bits(self) -> npt.NDArray[np.uint8]:
        return np.packbits(self.mask, bitorder="little")


class ReconstructedVectors:
    """The vectors that a flat index holds."""

    def __init__(self, index: Any) -> None:
        self._index = index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        return int(self._index.d)

    def rows(self, rows: IdArray) -> FloatArray:
        found: FloatArray = self._index.reconstruct_batch(rows)
        return found


def _scores_one_by_one(flat: Any, queries: FloatArray, ids: IdArray) -> FloatArray:
    """Inner products (q, k) of each query with the rows ``ids`` (q, k) of a flat index, each on its own."""
    faiss = import_faiss()
    scores = np.empty(ids.shape, np.float32)
    pointers = [faiss.swig_ptr(array) for array in (queries, scores, ids)]
    flat.compute_distance_subset(len(queries), pointers[0], ids.shape[1], pointers[1], pointers[2])
    return scores


def checked_queries(queries: FloatArray, dim: int) -> FloatArray:
    """The queries as (q, dim) float32 in C order; raises DataError for another form or a NaN."""
    found = np.ascontiguousarray(queries, dtype=np.float32)
    if found.ndim != 2 or found.shape[1] != dim:
        raise DataError(f"queries have shape {found.shape}, the index wants (q, {dim}): use the index's encoder")
    if not np.isfinite(found).all():
        raise DataError("a query has a coordinate that is not finite: encode the queries again")
    return found
