"""The same indexes on a GPU. Without one these tests do not run."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest

from mixwright.indexes.building import build_index
from mixwright.indexes.kinds import recipes
from mixwright.indexes.recall import brute_force
from mixwright.indexes.searching import Searcher
from mixwright.indexes.vectors import ArrayVectors

pytestmark = pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="FAISS sees no GPU on this machine")

N, D = 20_000, 64


@pytest.fixture(scope="module")
def vectors() -> Any:
    found = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "ivf-pq", "rabitq"])
def test_an_index_built_with_a_gpu_finds_what_brute_force_finds(vectors: Any, kind: Any) -> None:
    recipe = recipes(kind, N, D, 0.9)[0]
    index = build_index(recipe, ArrayVectors(vectors), device="gpu")
    assert index.ntotal == N
    faiss.serialize_index(index)  # it is a CPU index again
    effort = {name: values[-1] for name, values in recipe.ladders.items()}
    truth = np.argsort(-(vectors[:100].astype(np.float64) @ vectors.T.astype(np.float64)))[:, :10]
    for searcher in (Searcher(index), Searcher(index, gpu=True)):
        hits = searcher.search(vectors[:100], 10, effort)
        recall = np.mean([len(set(a) & set(b)) for a, b in zip(hits.ids, truth, strict=True)]) / 10
        assert recall > (0.999 if kind in ("flat", "ivf") else 0.9)


def test_flat_answers_on_a_gpu_are_those_of_the_cpu(vectors: Any) -> None:
    twice = np.vstack([vectors[:5000], vectors[:5000]])
    index = build_index(recipes("flat", len(twice), D, 1.0)[0], ArrayVectors(twice))
    on_cpu, on_gpu = Searcher(index), Searcher(index, gpu=True)
    for k in (1, 10, 3000):  # 3,000 is more than FAISS finds on a GPU
        expected, found = on_cpu.search(vectors[:200], k, {}), on_gpu.search(vectors[:200], k, {})
        assert (found.ids == expected.ids).all()
        assert (found.scores == expected.scores).all()


def test_brute_force_on_a_gpu_is_that_of_the_cpu(vectors: Any) -> None:
    queries = vectors[:100]
    expected = brute_force(ArrayVectors(vectors), queries, 10)
    found = brute_force(ArrayVectors(vectors), queries, 10, device="gpu")
    assert np.mean(found.ids == expected.ids) > 0.999
    assert np.allclose(found.scores, expected.scores, atol=1e-5)
