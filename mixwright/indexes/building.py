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
    if device == "gpu" and recipe.kind == "ivf":
        index = _new_index(recipe, vectors.dim, seed)
        gpu = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
        _train(gpu, recipe, vectors, seed)
        add_vectors(gpu, vectors, advance)
        return faiss.index_gpu_to_cpu(gpu)
    index = train_index(recipe, vectors, seed=seed, device=device)
    add_vectors(index, vectors, advance)
    return index


def train_index(recipe: Recipe, vectors: Vectors, *, seed: int = 0, device: Literal["cpu", "gpu"] = "cpu") -> Any:
    """A FAISS index that is trained on a sample of ``vectors`` and has no rows yet.

    Several indexes to which different rows are added after this one training find, merged, what a single one
    with all rows finds. Raises DataError for a vector that is not finite.
    """
    faiss = import_faiss()
    index = _new_index(recipe, vectors.dim, seed)
    ivf = inverted_file(index)
    if device == "gpu" and ivf is not None:
        # The codes may exist on the CPU only, but most of the work is the k-means of the lists.
        assigner = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, faiss.IndexFlatIP(ivf.d))
        ivf.clustering_index = assigner
        _train(index, recipe, vectors, seed)
        ivf.clustering_index = None
    else:
        _train(index, recipe, vectors, seed)
    return index


def add_vectors(index: Any, vectors: Vectors, advance: Callable[[int], None] = lambda n: None) -> None:
    """Add all ``vectors``, block by block; ``advance`` is told the number of rows after each.

    Raises DataError for a vector that is not finite, AlignmentError if the index ends up with other rows.
    """
    before = index.ntotal
    for _, block in blocks(vectors):
        index.add(block)
        advance(len(block))
    if index.ntotal - before != len(vectors):
        raise AlignmentError(f"the index took {index.ntotal - before} rows of {len(vectors)}: build it again")


def inverted_file(index: Any) -> Any | None:
    """The inverted file inside an index, behind a refinement and a rotation; None where there is none."""
    faiss = import_faiss()
    inner = faiss.downcast_index(index.base_index) if isinstance(index, faiss.IndexRefine) else index
    if isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return inner if isinstance(inner, faiss.IndexIVF) else None


def _new_index(recipe: Recipe, dim: int, seed: int) -> Any:
    faiss = import_faiss()
    index = faiss.index_factory(dim, recipe.factory, faiss.METRIC_INNER_PRODUCT)
    ivf = inverted_file(index)
    if ivf is not None:
        _seed_clustering(ivf, seed)
    return index


def _train(index: Any, recipe: Recipe, vectors: Vectors, seed: int) -> None:
    if recipe.n_train:
        index.train(_sample(vectors, recipe.n_train, seed))


def _sample(vectors: Vectors, n: int, seed: int) -> Any:
    """``n`` rows drawn by ``seed``; where there are fewer than FAISS trains on, they are repeated."""
    rows = np.random.default_rng(seed).choice(len(vectors), size=n, replace=False, shuffle=False)
    return finite_rows(vectors, np.resize(np.sort(rows), max(n, LEAST_TRAIN)).astype(np.int64))


def _seed_clustering(ivf: Any, seed: int) -> None:
    for clustering in [ivf.cp, *([ivf.pq.cp] if hasattr(ivf, "pq") else [])]:
        clustering.seed = seed % _LARGEST_SEED
        # The recipe chose the sample; FAISS would print a warning for a corpus of a few rows.
        clustering.min_points_per_centroid = 1
