"""Searching a FAISS index: exact answers where the kind is exact, always k hits, no shared state."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

from mixwright.errors import ConfigError, DataError
from mixwright.indexes.building import inverted_file
from mixwright.indexes.faiss_import import import_faiss
from mixwright.indexes.hits import missing_hits, order_hits, pad_hits
from mixwright.indexes.kinds import Settings
from mixwright.indexes.protocols import FloatArray, Hits

_ROUNDING = 1e-6
"""Scores closer than this, relative to the line's largest, may come out in either order of a matrix product."""

_GPU_LIMIT = 2048
"""The largest k and nprobe of FAISS on a GPU; what asks for more is searched on the CPU."""


class Searcher:
    """Searches one FAISS index; any number of threads may use it at once.

    ``gpu`` copies the vectors to a GPU where the kind can be searched there: flat and ivf.
    """

    def __init__(self, index: Any, *, gpu: bool = False) -> None:
        faiss = import_faiss()
        self.index = index
        self._ivf = inverted_file(index)
        self._gpu = None
        self._gpu_lock = threading.Lock()
        if gpu and isinstance(index, faiss.IndexFlat | faiss.IndexIVFFlat):
            self._gpu = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)

    def search(self, queries: FloatArray, k: int, settings: Settings) -> Hits:
        """The k rows nearest to each query (q, d), by inner product.

        A line is short of k hits only where the index has fewer than k rows. A flat index gives the exact
        order, equal scores by rising id, whatever else is in the batch. ``settings`` are those of this call.
        Raises ConfigError for k < 1, DataError for queries of another form.
        """
        if k < 1:
            raise ConfigError(f"k is {k}: ask for at least one hit")
        checked = checked_queries(queries, int(self.index.d))
        wanted = min(k, int(self.index.ntotal))
        if not len(checked) or not wanted:
            return missing_hits(len(checked), k)
        if isinstance(self.index, import_faiss().IndexFlat):
            return pad_hits(self._exact(self.index, checked, wanted), k)
        return pad_hits(self._deepening(checked, wanted, settings), k)

    def _exact(self, flat: Any, queries: FloatArray, k: int) -> Hits:
        """Exact hits (q, k) of an ``IndexFlat``, k ≤ its rows.

        FAISS multiplies matrices, in which the same two vectors get scores that differ in the last bits from
        batch to batch, and of several equal rows it keeps any. So each hit is scored again on its own, and
        where the last hits are equal (documents that occur twice) more are fetched until the tie is whole.
        """
        hits = missing_hits(len(queries), k)
        open_lines = np.arange(len(queries))
        fetch = k + 1
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
        faiss = import_faiss()
        ids = self._find(flat, queries, k, {}).ids
        scores = np.empty(ids.shape, np.float32)
        pointers = [faiss.swig_ptr(array) for array in (queries, scores, ids)]
        flat.compute_distance_subset(len(queries), pointers[0], k, pointers[1], pointers[2])
        return order_hits(Hits(ids, scores))

    def _deepening(self, queries: FloatArray, k: int, settings: Settings) -> Hits:
        """Search, and search the lines again that are short of k hits, with twice the effort each time."""
        hits = order_hits(self._find(self.index, queries, k, settings))
        limits = {"nprobe": int(self._ivf.nlist) if self._ivf else 0, "efSearch": int(self.index.ntotal)}
        while len(short := np.flatnonzero((hits.ids < 0).any(axis=1))):
            deeper = {name: min(2 * value, limits.get(name, value)) for name, value in settings.items()}
            if deeper == settings:
                hits.ids[short], hits.scores[short] = self._exhaustive(queries[short], k)
                break
            settings = deeper
            found = self._find(self.index, queries[short], k, settings)
            hits.ids[short], hits.scores[short] = order_hits(found)
        return hits

    def _exhaustive(self, queries: FloatArray, k: int) -> Hits:
        """Hits among all rows, by the vectors that the index keeps beside its graph or its codes.

        For the rows that a search never reaches: no link of a graph leads to them (as among many equal rows),
        or they are the very worst of a list, which fast-scan codes cannot tell from nothing.
        """
        faiss = import_faiss()
        if isinstance(self.index, faiss.IndexHNSW):
            return self._exact(faiss.downcast_index(self.index.storage), queries, k)
        scores, ids = faiss.downcast_index(self.index.refine_index).search(queries, k)
        return order_hits(Hits(ids, scores))

    def _find(self, index: Any, queries: FloatArray, k: int, settings: Settings) -> Hits:
        """FAISS's own answer (ids (q, k), scores (q, k)), on the GPU where it is there and k is small enough."""
        parameters = self._parameters(k, settings)
        if self._gpu is not None and max(k, settings.get("nprobe", 0)) <= _GPU_LIMIT:
            with self._gpu_lock:  # a GPU index has one scratch memory
                scores, ids = self._gpu.search(queries, k, params=parameters)
        else:
            scores, ids = index.search(queries, k, params=parameters)
        return Hits(ids, scores)

    def _parameters(self, k: int, settings: Settings) -> Any:
        """The settings as FAISS's parameter objects; None without settings. A rotation passes them on."""
        faiss = import_faiss()
        parameters = None
        if "efSearch" in settings:
            parameters = faiss.SearchParametersHNSW(efSearch=max(int(settings["efSearch"]), k))
        if "nprobe" in settings and self._ivf is not None:
            parameters = faiss.SearchParametersIVF(nprobe=min(int(settings["nprobe"]), int(self._ivf.nlist)))
        if "k_factor" in settings:
            k_factor = min(settings["k_factor"], math.ceil(self.index.ntotal / k))
            parameters = faiss.IndexRefineSearchParameters(k_factor=k_factor, base_index_params=parameters)
        return parameters


def checked_queries(queries: FloatArray, dim: int) -> FloatArray:
    """The queries as (q, dim) float32 in C order; raises DataError for another form or a NaN."""
    found = np.ascontiguousarray(queries, dtype=np.float32)
    if found.ndim != 2 or found.shape[1] != dim:
        raise DataError(f"queries have shape {found.shape}, the index wants (q, {dim}): use the index's encoder")
    if not np.isfinite(found).all():
        raise DataError("a query has a coordinate that is not finite: encode the queries again")
    return found
