"""Building a FAISS index from a recipe: train on a sample, add block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from mixwright.errors import AlignmentError
from mixwright.indexes.faiss_import import import_faiss
from mixwright.indexes.kinds import LEAST_TRAIN, Recipe
from mixwright.indexes.vectors import Vectors, blocks, finite_rows

_LARGEST_SEED = 2**31 - 1


def build_index(
    recipe: Recipe,
    vectors: Vectors,
    *,
    seed: int = 0,
    device: Literal["cpu", "gpu"] = "cpu",
    advance: Callable[[int], None] = lambda n: None,
) -> Any:
    """A trained FAISS index of all ``vectors``, in memory; the ids are row numbers.

    The same vectors, recipe and seed give the same bytes on the same machine with the same number of threads.
    ``advance`` is told the number of rows after each block. Raises DataError for a vector that is not finite,
    AlignmentError if the index ends up with another number of rows.
    """
    faiss = import_faiss()
    index = faiss.index_factory(vectors.dim, recipe.factory, faiss.METRIC_INNER_PRODUCT)
    ivf = inverted_file(index)
    if ivf is not None:
        _seed_clustering(ivf, seed)
    if device == "gpu" and recipe.kind == "ivf":
        gpu = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
        _fill(gpu, recipe, vectors, seed, advance)
        index = faiss.index_gpu_to_cpu(gpu)
    elif device == "gpu" and ivf is not None:
        # These codes exist on the CPU only, but most of the work is the k-means of the lists.
        assigner = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, faiss.IndexFlatIP(ivf.d))
        ivf.clustering_index = assigner
        _fill(index, recipe, vectors, seed, advance)
        ivf.clustering_index = None
    else:
        _fill(index, recipe, vectors, seed, advance)
    if index.ntotal != len(vectors):
        raise AlignmentError(f"the index has {index.ntotal} rows of {len(vectors)}: build it again")
    return index


def inverted_file(index: Any) -> Any | None:
    """The inverted file inside an index, behind a refinement and a rotation; None where there is none."""
    faiss = import_faiss()
    inner = faiss.downcast_index(index.base_index) if isinstance(index, faiss.IndexRefine) else index
    if isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return inner if isinstance(inner, faiss.IndexIVF) else None


def _fill(index: Any, recipe: Recipe, vectors: Vectors, seed: int, advance: Callable[[int], None]) -> None:
    if recipe.n_train:
        index.train(_sample(vectors, recipe.n_train, seed))
    for _, block in blocks(vectors):
        index.add(block)
        advance(len(block))


def _sample(vectors: Vectors, n: int, seed: int) -> Any:
    """``n`` rows drawn by ``seed``; where there are fewer than FAISS trains on, they are repeated."""
    rows = np.random.default_rng(seed).choice(len(vectors), size=n, replace=False, shuffle=False)
    return finite_rows(vectors, np.resize(np.sort(rows), max(n, LEAST_TRAIN)).astype(np.int64))


def _seed_clustering(ivf: Any, seed: int) -> None:
    for clustering in [ivf.cp, *([ivf.pq.cp] if hasattr(ivf, "pq") else [])]:
        clustering.seed = seed % _LARGEST_SEED
        # The recipe chose the sample; FAISS would print a warning for a corpus of a few rows.
        clustering.min_points_per_centroid = 1
