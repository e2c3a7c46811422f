"""Building, searching, merging and measuring FAISS indexes, against brute force in numpy."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixwright.errors import ConfigError, DataError, MissingExtraError
from mixwright.indexes import vectors as vectors_module
from mixwright.indexes.building import build_index
from mixwright.indexes.faiss_import import import_faiss, resolve_device, threads
from mixwright.indexes.hits import leave_out, merge_hits
from mixwright.indexes.kinds import LARGEST_FLAT, Recipe, ladder, n_lists, recipes
from mixwright.indexes.protocols import Hits
from mixwright.indexes.recall import bootstrap_lower_bound, brute_force, recall_per_query, true_neighbours
from mixwright.indexes.searching import Searcher
from mixwright.indexes.tuning import raised, tune
from mixwright.indexes.vectors import ArrayVectors, OtherVectors

KINDS = ("flat", "hnsw", "ivf", "ivf-pq", "rabitq")
LARGE = LARGEST_FLAT + 1


def oracle(vectors: Any, queries: Any, k: int) -> tuple[Any, Any]:
    """Ids (q, k) and float64 scores of the k best rows: falling score, then rising id; −1 and −inf behind."""
    scores = np.einsum("qd,nd->qn", queries.astype(np.float64), vectors.astype(np.float64))
    ids = np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores))[:, :k]
    best = np.take_along_axis(scores, ids, 1)
    pad = ((0, 0), (0, max(k - len(vectors), 0)))
    return np.pad(ids, pad, constant_values=-1), np.pad(best, pad, constant_values=-np.inf)


def whole_vectors(n: int, d: int, seed: int = 0) -> Any:
    """Vectors of small whole numbers: products are exact in float32, and ties are common."""
    return np.random.default_rng(seed).integers(-2, 3, (n, d)).astype(np.float32)


def clustered(n: int, d: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(n // 50, 1), d))
    found = centres[rng.integers(0, len(centres), n)] + 0.7 * rng.standard_normal((n, d))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def every_recipe(n: int, d: int) -> list[Recipe]:
    """The recipes of all kinds for n rows; rabitq also with lists, as it is built for more rows."""
    small = [recipe for kind in KINDS for recipe in recipes(kind, n, d, 0.9)]  # type: ignore[arg-type]
    lists = n_lists(n)
    probes = {"nprobe": ladder(1, lists), "k_factor": ladder(2, 64)}
    return [*small, Recipe("rabitq", f"RR{d},IVF{lists},RaBitQfs,Refine(SQ8)", 0, n, probes)]


def highest(recipe: Recipe) -> dict[str, float]:
    return {name: values[-1] for name, values in recipe.ladders.items()}


def lowest(recipe: Recipe) -> dict[str, float]:
    return {name: values[0] for name, values in recipe.ladders.items()}


def searcher(recipe: Recipe, vectors: Any, **options: Any) -> Searcher:
    return Searcher(build_index(recipe, ArrayVectors(vectors), **options))


def flat(vectors: Any) -> Searcher:
    return searcher(recipes("flat", *vectors.shape, 1.0)[0], vectors)


# Flat


@pytest.mark.parametrize("q", [1, 19, 64, 300])
@pytest.mark.parametrize("k", [1, 10, 99, 150, 400, 450])
def test_flat_is_brute_force_with_ties_to_the_lower_id(q: int, k: int) -> None:
    vectors, queries = whole_vectors(400, 6), whole_vectors(q, 6, seed=1)
    ids, scores = oracle(vectors, queries, k)
    hits = flat(vectors).search(queries, k, {})
    assert (hits.ids == ids).all()
    assert (hits.scores == scores).all()


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 120), d=st.integers(1, 5), k=st.integers(1, 130), seed=st.integers(0, 9))
def test_flat_is_brute_force_at_any_size(n: int, d: int, k: int, seed: int) -> None:
    vectors, queries = whole_vectors(n, d, seed), whole_vectors(7, d, seed + 1)
    ids, scores = oracle(vectors, queries, k)
    hits = flat(vectors).search(queries, k, {})
    assert (hits.ids == ids).all()
    assert (hits.scores == scores).all()


def test_a_flat_answer_does_not_depend_on_the_batch() -> None:
    """The matrix product gives equal rows scores that differ in the last bits, otherwise in another batch."""
    vectors = np.repeat(clustered(40, 384), 50, axis=0)
    queries = clustered(1000, 384, seed=1)
    index = flat(vectors)
    together = index.search(queries, 10, {})
    alone = [index.search(query[None], 10, {}) for query in queries[:50]]
    assert (together.ids[:50] == np.vstack([hits.ids for hits in alone])).all()
    assert (together.scores[:50] == np.vstack([hits.scores for hits in alone])).all()
    assert (together.ids % 50 == np.arange(10)).all()  # of 50 equal rows, the ten of the lowest ids


# Merging


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 100), k=st.integers(1, 110), cuts=st.lists(st.integers(0, 100), max_size=5))
def test_merged_shards_answer_as_one_flat_index(n: int, k: int, cuts: list[int]) -> None:
    vectors, queries = whole_vectors(n, 4, seed=n), whole_vectors(5, 4, seed=n + 1)
    starts = sorted({0, *(cut for cut in cuts if cut < n)})
    parts = []
    for start, stop in zip(starts, [*starts[1:], n], strict=True):
        hits = flat(vectors[start:stop]).search(queries, k, {})
        parts.append(Hits(np.where(hits.ids < 0, -1, hits.ids + start), hits.scores))
    merged, single = merge_hits(parts[::-1], k), flat(vectors).search(queries, k, {})
    assert (merged.ids == single.ids).all()
    assert (merged.scores == single.scores).all()


def test_a_missing_hit_is_never_merged_before_a_row() -> None:
    low = np.float32(-3.0e38)
    parts = [
        Hits(np.array([[4, -1]]), np.array([[low, 9.0]], np.float32)),
        Hits(np.array([[-1]]), np.array([[1.0]], np.float32)),
    ]
    merged = merge_hits(parts, 4)
    assert merged.ids.tolist() == [[4, -1, -1, -1]]
    assert merged.scores.tolist() == [[low, -np.inf, -np.inf, -np.inf]]


def test_merging_nothing_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="search at least one index"):
        merge_hits([], 3)


def test_leave_out_drops_the_own_row_or_else_the_last() -> None:
    hits = Hits(np.array([[7, 3, 5], [1, 2, 4]]), np.array([[3, 2, 1], [3, 2, 1]], np.float32))
    left = leave_out(hits, np.array([3, 9]))
    assert left.ids.tolist() == [[7, 5], [1, 2]]
    assert left.scores.tolist() == [[3, 1], [3, 2]]


# Every kind

N, D = 1500, 32
RECIPES = every_recipe(N, D)


@pytest.fixture(scope="module")
def vectors() -> Any:
    return clustered(N, D)


@pytest.fixture(scope="module", params=RECIPES, ids=[recipe.factory for recipe in RECIPES])
def built(request: pytest.FixtureRequest, vectors: Any) -> tuple[Recipe, Searcher]:
    return request.param, searcher(request.param, vectors)


def test_the_greatest_effort_finds_nearly_all(built: tuple[Recipe, Searcher], vectors: Any) -> None:
    recipe, index = built
    queries = clustered(200, D, seed=1)
    truth, _ = oracle(vectors, queries, 10)
    hits = index.search(queries, 10, highest(recipe))
    recall = np.mean([len(set(a) & set(b)) for a, b in zip(hits.ids, truth, strict=True)]) / 10
    exact = recipe.kind in ("flat", "ivf")
    assert recall == 1 if exact else recall > 0.95


@pytest.mark.parametrize("k", [1, 10, 700, N, N + 3])
def test_lines_are_full_of_different_rows(built: tuple[Recipe, Searcher], vectors: Any, k: int) -> None:
    """Even at the least effort, where few lists are scanned and k is larger than what they hold."""
    recipe, index = built
    hits = index.search(vectors[:5], k, lowest(recipe))
    assert hits.ids.shape == hits.scores.shape == (5, k)
    for ids, scores in zip(hits.ids, hits.scores, strict=True):
        found = ids[: min(k, N)]
        assert len(set(found)) == len(found)
        assert found.min() >= 0
        assert found.max() < N
        assert (ids[N:] == -1).all()
        assert np.isneginf(scores[N:]).all()
        assert np.isfinite(scores[: min(k, N)]).all()
        assert (np.diff(scores[: min(k, N)]) <= 0).all()


def test_scores_are_inner_products(built: tuple[Recipe, Searcher], vectors: Any) -> None:
    """To the last bits where vectors are kept whole; to the rounding of the copy where they are not."""
    recipe, index = built
    queries = clustered(50, D, seed=2)
    hits = index.search(queries, 10, highest(recipe))
    true = np.einsum("qd,qkd->qk", queries, vectors[hits.ids])
    tolerance = 1e-6 if "Refine" not in recipe.factory else 5e-3 if "SQ8" in recipe.factory else 1e-3
    assert np.abs(hits.scores - true).max() < tolerance


def test_settings_are_of_one_call(built: tuple[Recipe, Searcher]) -> None:
    recipe, index = built
    if not recipe.ladders:
        pytest.skip("nothing to set")
    queries = np.random.default_rng(3).standard_normal((300, D)).astype(np.float32)
    little, much = index.search(queries, 10, lowest(recipe)), index.search(queries, 10, highest(recipe))
    # In a graph of so few rows the least effort may find all there is.
    assert recipe.kind == "hnsw" or (little.ids != much.ids).any()
    assert (index.search(queries, 10, lowest(recipe)).ids == little.ids).all()


def test_threads_with_different_settings_do_not_meet(built: tuple[Recipe, Searcher]) -> None:
    recipe, index = built
    queries = clustered(40, D, seed=4)
    efforts = [lowest(recipe), highest(recipe)]
    expected = [index.search(queries, 10, effort) for effort in efforts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: index.search(queries, 10, efforts[number % 2]), range(20)))
    for number, hits in enumerate(found):
        assert (hits.ids == expected[number % 2].ids).all()
        assert (hits.scores == expected[number % 2].scores).all()


def test_written_and_mapped_it_answers_the_same(built: tuple[Recipe, Searcher], tmp_path: Any) -> None:
    recipe, index = built
    faiss.write_index(index.index, str(tmp_path / "index"))
    mapped = Searcher(faiss.read_index(str(tmp_path / "index"), faiss.IO_FLAG_MMAP_IFC))
    queries = clustered(50, D, seed=5)
    for settings_ in (lowest(recipe), highest(recipe)):
        before, after = index.search(queries, 20, settings_), mapped.search(queries, 20, settings_)
        assert (before.ids == after.ids).all()
        assert (before.scores == after.scores).all()


def test_the_same_seed_builds_the_same_bytes(built: tuple[Recipe, Searcher], vectors: Any) -> None:
    recipe, index = built
    with threads(4 if recipe.kind == "hnsw" else None):  # a graph does not depend on who comes first
        again = build_index(recipe, ArrayVectors(vectors))
    assert faiss.serialize_index(again).tobytes() == faiss.serialize_index(index.index).tobytes()


def test_the_seed_matters_where_something_is_trained(vectors: Any) -> None:
    recipe = recipes("ivf", N, D, 0.9)[0]
    indexes = [build_index(recipe, ArrayVectors(vectors), seed=seed) for seed in (0, 1)]
    centroids = [faiss.downcast_index(index.quantizer).reconstruct_n() for index in indexes]
    assert not np.array_equal(*centroids)


@pytest.mark.parametrize("n", [1, 2, 3, 15])
@pytest.mark.parametrize("d", [1, 3, 16])
def test_every_kind_holds_a_handful_of_rows(n: int, d: int) -> None:
    vectors = np.random.default_rng(n).standard_normal((n, d)).astype(np.float32)
    for recipe in every_recipe(n, d):
        hits = searcher(recipe, vectors).search(vectors, n + 1, lowest(recipe))
        assert (np.sort(hits.ids[:, :n]) == np.arange(n)).all(), recipe.factory
        assert (hits.ids[:, n] == -1).all()


@pytest.mark.parametrize("rows", ["equal", "zero"])
def test_every_kind_survives_rows_that_are_all_the_same(rows: str) -> None:
    vectors = np.repeat(clustered(3, 8), 300, axis=0)
    if rows == "zero":
        vectors[:450] = 0
    for recipe in every_recipe(len(vectors), 8):
        hits = searcher(recipe, vectors).search(vectors[[0, 899]], 400, lowest(recipe))
        assert all(len(set(ids) - {-1}) == 400 for ids in hits.ids), recipe.factory


def test_queries_of_another_form_are_refused(vectors: Any) -> None:
    index = flat(vectors)
    with pytest.raises(DataError, match=r"shape \(2, 5\).*\(q, 32\)"):
        index.search(np.zeros((2, 5), np.float32), 3, {})
    with pytest.raises(DataError, match="not finite"):
        index.search(np.full((1, D), np.nan, np.float32), 3, {})
    with pytest.raises(ConfigError, match="at least one hit"):
        index.search(vectors[:1], 0, {})
    assert index.search(np.zeros((0, D), np.float32), 3, {}).ids.shape == (0, 3)


def test_a_vector_that_is_not_finite_is_named(vectors: Any) -> None:
    spoiled = vectors.copy()
    spoiled[1234, 5] = np.inf
    for recipe in RECIPES:
        with pytest.raises(DataError, match="vector 1234 "):
            build_index(recipe, ArrayVectors(spoiled))


# Recipes


@pytest.mark.parametrize("n", [1, 40, 20_000])
def test_a_recipe_knows_the_bytes_it_takes(n: int) -> None:
    vectors = clustered(n, 48)
    for recipe in every_recipe(n, 48)[:-1]:
        n_bytes = faiss.serialize_index(build_index(recipe, ArrayVectors(vectors))).nbytes
        assert n_bytes <= recipe.n_bytes, recipe.factory
        assert recipe.n_bytes <= 1.05 * n_bytes + (1 << 15), recipe.factory


def test_bytes_of_an_inverted_rabitq_index() -> None:
    recipe = recipes("rabitq", LARGE, 8, 0.9)[0]
    assert "IVF" in recipe.factory
    n_bytes = faiss.serialize_index(build_index(recipe, ArrayVectors(clustered(LARGE, 8)))).nbytes
    assert n_bytes <= recipe.n_bytes <= 1.5 * n_bytes


def test_lists_have_enough_to_train_on() -> None:
    for n in (1, 38, 39, 1000, 50_000, 10**6, 10**8):
        lists = n_lists(n)
        assert 1 <= lists <= 4 * n**0.5 + 1
        assert lists == 1 or n / lists >= 39
        assert recipes("ivf", n, 8, 0.9)[0].n_train <= n
    assert n_lists(10**6) == 4000


def test_auto_tries_exact_search_first_for_small_corpora_and_last_for_large_ones() -> None:
    def kinds(n: int, target: float) -> list[str]:
        return [recipe.kind for recipe in recipes("auto", n, 64, target)]

    assert kinds(LARGEST_FLAT, 0.95) == ["flat", "rabitq", "rabitq"]
    assert kinds(LARGE, 0.95) == ["rabitq", "rabitq", "ivf", "flat"]
    assert kinds(LARGE, 1.0)[0] == "flat"


def test_a_ladder_ends_at_its_last_value() -> None:
    assert ladder(1, 1) == (1,)
    assert ladder(1, 10) == (1, 2, 3, 4, 6, 8, 10)
    assert ladder(16, 64) == (16, 24, 32, 48, 64)


# Recall


def test_brute_force_in_blocks_is_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = whole_vectors(500, 6), whole_vectors(30, 6, seed=1)
    monkeypatch.setattr(vectors_module, "BLOCK_BYTES", 4 * 6 * 64)
    advanced: list[int] = []
    hits = brute_force(ArrayVectors(vectors), queries, 20, advance=advanced.append)
    assert (np.sort(hits.scores) == np.sort(oracle(vectors, queries, 20)[1])).all()
    assert (np.einsum("qd,qkd->qk", queries, vectors[hits.ids]) == hits.scores).all()
    assert sum(advanced) == 500
    assert max(advanced) == 64


def test_true_neighbours_leave_the_row_itself_out_but_not_its_copies() -> None:
    vectors = np.vstack([clustered(100, 8), clustered(100, 8)[:5]])
    rows = np.array([2, 50])
    truth = true_neighbours(ArrayVectors(vectors), vectors[rows], rows)
    assert truth.ids[0, 0] == 102
    ids, _ = oracle(vectors, vectors[rows], 11)
    for row, found, expected in zip(rows, truth.ids, ids, strict=True):
        assert set(found) == set(expected) - {row}


def test_recall_counts_true_neighbours() -> None:
    vectors = clustered(300, 8)
    rows = np.arange(20)
    truth = true_neighbours(ArrayVectors(vectors), vectors[rows], rows)

    def search(queries: Any, k: int) -> Hits:
        """True neighbours, of which the last ``line`` are replaced by the worst rows (at most ten)."""
        ids, scores = oracle(vectors, queries, k)
        worst, _ = oracle(vectors, -queries, k)
        for line in range(len(queries)):
            ids[line, k - min(line, 10) :] = worst[line, : min(line, 10)]
        return Hits(ids, scores)

    assert np.allclose(recall_per_query(truth, search), [1 - min(line, 10) / 10 for line in range(20)])


def test_any_of_several_equal_rows_is_right_and_a_missing_hit_is_wrong() -> None:
    vectors = np.repeat(clustered(4, 8), 30, axis=0)
    rows = np.array([0])
    truth = true_neighbours(ArrayVectors(vectors), vectors[rows], rows)

    def others(queries: Any, k: int) -> Hits:
        return Hits(np.arange(15, 15 + k)[None], np.ones((1, k), np.float32))

    def half(queries: Any, k: int) -> Hits:
        ids = np.full((1, k), -1)
        ids[0, :5] = np.arange(15, 20)
        return Hits(ids, np.ones((1, k), np.float32))

    assert recall_per_query(truth, others).tolist() == [1.0]
    assert recall_per_query(truth, half).tolist() == [0.5]


def test_queries_from_outside_are_compared_with_what_is_indexed() -> None:
    vectors = clustered(200, 8)
    rows = np.array([3, 150])
    rest = OtherVectors(ArrayVectors(vectors), rows)
    assert len(rest) == 198
    truth = true_neighbours(rest, vectors[rows], None)
    ids, _ = oracle(np.delete(vectors, rows, axis=0), vectors[rows], 10)
    assert [set(line) for line in truth.ids] == [set(line) for line in ids]
    exact = flat(np.delete(vectors, rows, axis=0))
    assert recall_per_query(truth, lambda queries, k: exact.search(queries, k, {})).tolist() == [1, 1]


def test_the_lower_bound_is_the_bootstraps() -> None:
    rng = np.random.default_rng(0)
    recalls = rng.choice([0.5, 0.8, 0.9, 1.0], 300)
    means = rng.choice(recalls, (20_000, 300)).mean(axis=1)
    assert bootstrap_lower_bound(recalls) == pytest.approx(np.quantile(means, 0.05), abs=0.001)
    assert bootstrap_lower_bound(recalls) == bootstrap_lower_bound(recalls)
    assert bootstrap_lower_bound(np.ones(10)) == 1.0
    assert bootstrap_lower_bound(np.array([])) == 1.0


# Tuning


def test_tuning_finds_the_least_effort() -> None:
    ladders = {"nprobe": (1, 2, 4, 8, 16, 32), "k_factor": (2, 4, 8, 16)}
    asked: list[dict[str, float]] = []

    def measure(at: dict[str, float]) -> Any:
        asked.append(at)
        return np.array([min(at["nprobe"] / 8, 1) * min(at["k_factor"] / 4, 1)])

    assert tune(measure, ladders, lambda found: found.mean() >= 1) == {"nprobe": 8, "k_factor": 4}
    assert len(asked) == len({tuple(each.items()) for each in asked})  # nothing is measured twice


def test_tuning_stops_at_the_top() -> None:
    ladders = {"nprobe": (1, 2, 4)}
    assert tune(lambda at: np.zeros(3), ladders, lambda found: found.mean() > 0.5) == {"nprobe": 4}
    assert tune(lambda at: np.ones(3), {}, lambda found: True) == {}
    assert raised({"nprobe": 2}, ladders) == {"nprobe": 4}
    assert raised({"nprobe": 4}, ladders) == {"nprobe": 4}


# FAISS itself


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="there is a GPU: tests/test_gpu_index.py")
@pytest.mark.parametrize("kind", KINDS)
def test_the_way_over_a_gpu_gives_the_same_index(kind: Any, vectors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins that leave an index where it is: what FAISS does on a GPU itself cannot be seen here."""
    moved: list[str] = []

    def move(resources: object, device: int, index: Any) -> Any:
        moved.append(type(index).__name__)
        return faiss.clone_index(index)

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", move, raising=False)
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", faiss.clone_index, raising=False)
    recipe = recipes(kind, N, D, 0.9)[0]
    on_gpu = build_index(recipe, ArrayVectors(vectors), device="gpu")
    expected = searcher(recipe, vectors).search(vectors[:50], 10, lowest(recipe))
    found = Searcher(on_gpu, gpu=True).search(vectors[:50], 10, lowest(recipe))
    assert (found.ids == expected.ids).all()
    assert (found.scores == expected.scores).all()
    trained = {"ivf": ["IndexIVFFlat"], "ivf-pq": ["IndexFlatIP"]}.get(kind, [])
    searched = {"flat": ["IndexFlat"], "ivf": ["IndexIVFFlat"]}.get(kind, [])
    assert moved == trained + searched


def test_without_faiss_the_pip_command_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mixwright\[cpu\]'"):
        import_faiss()


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="use device cpu"):
        resolve_device("gpu")


def test_threads_are_put_back() -> None:
    before = faiss.omp_get_max_threads()
    with threads(before + 1):
        assert faiss.omp_get_max_threads() == before + 1
    assert faiss.omp_get_max_threads() == before
