"""A function of rows over the vectors of a large source, shard by shard, on Ray workers.

Selectors ask for it through ``Pool.map_vectors`` and know nothing of Ray. A row's result does not depend on the
rows beside it, so the number of workers changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mixwright.errors import DataError
from mixwright.indexes.embeddings import Embeddings
from mixwright.jobs.marked_shards import ShardFolder, ShardMark, Workers, finish_shards, paced, use_one_thread
from mixwright.progress import Progress
from mixwright.selectors.pool import RowFunction, Source, VectorMap, map_here

RAY_ROWS = 2_000_000
"""Sources with fewer vectors are mapped in this process, unless a number of workers is asked for."""

_BLOCK_ROWS = 16_384


def ray_vector_map(folder: Path, workers: int | None, progress: Progress) -> VectorMap:
    """A map over sources that runs on Ray where the source is large, or ``workers`` says so.

    ``folder`` takes each shard's result until the map is complete.
    """

    def map_source(source: Source, function: RowFunction) -> tuple[np.ndarray[Any, Any], ...]:
        vectors = source.vectors
        if not isinstance(vectors, Embeddings) or (workers is None and len(vectors) < RAY_ROWS):
            return map_here(source, function)
        results = ShardFolder(folder / source.name, "npz", ShardMark)
        shards = {Path(each.path).stem: each.n_rows or 0 for each in vectors.manifest.files}
        arguments = (vectors.directory.resolve(), function, results)
        finish_shards(
            results, shards, Workers(MapWorker, arguments, "cpu", workers), f"map {source.ref}", progress
        )
        parts = [np.load(results.path(shard)) for shard in shards]
        return tuple(np.concatenate([part[name] for part in parts]) for name in parts[0].files)

    return map_source


class MapWorker:
    """A Ray actor that applies a function of rows to one shard of vectors after the other."""

    def __init__(
        self, directory: Path, function: RowFunction, results: ShardFolder[ShardMark], device: str
    ) -> None:
        use_one_thread()
        self._directory = directory
        self._function = function
        self._results = results

    def ready(self) -> None:
        """Answers as soon as Ray has found room for this worker."""

    def run(self, shard: str) -> Iterator[int]:
        """Map one shard; yields the number of its rows done, a few times a second, and at the end."""
        vectors = np.load(self._directory / "shards" / f"{shard}.npy", mmap_mode="r", allow_pickle=False)
        made: list[tuple[np.ndarray[Any, Any], ...]] = []
        yield from paced(self._map(shard, vectors, made))
        with self._results.writing(shard) as file:
            np.savez(file, *(np.concatenate(column) for column in zip(*made, strict=True)))
        self._results.finish(shard, len(vectors))

    def _map(self, shard: str, vectors: Any, made: list[tuple[np.ndarray[Any, Any], ...]]) -> Iterator[int]:
        for start in range(0, len(vectors), _BLOCK_ROWS):
            block = np.asarray(vectors[start : start + _BLOCK_ROWS], dtype=np.float32)
            if not np.isfinite(block).all():
                raise DataError(f"{shard}: a vector has a coordinate that is not finite: embed the corpus again")
            made.append(self._function(block))
            yield len(block)
