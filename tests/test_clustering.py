"""The clustering of PASER: planted clusters, islands, dense oracles, assignment, and the published formulas."""

from __future__ import annotations

import csv
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.sparse import block_diag, csr_array
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from mixwright.errors import ConfigError, DataError
from mixwright.indexes.encoders import load_encoder
from mixwright.indexes.faiss_import import threads
from mixwright.indexes.kmeans import kmeans
from mixwright.indexes.vectors import ArrayVectors
from mixwright.selectors.clustering import Clustering, fit_clustering
from mixwright.selectors.paser_paper import gaussian_affinity, laplacian_eigenvectors, paper_clustering
from mixwright.selectors.spectral import factorize, leading_eigenvectors, neighbour_graph, normalised

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def unit(vectors: npt.NDArray[np.float64]) -> Array:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def near(middles: Array, cosine: float, rng: np.random.Generator) -> Array:
    """A unit vector at about the given cosine to each of ``middles``."""
    noise = unit(rng.standard_normal(middles.shape))
    return unit(cosine * middles + np.sqrt(1 - cosine**2) * noise)


def blobs(n: int, k: int, cosine: float = 0.7, dim: int = 48, seed: int = 0) -> tuple[Array, Labels]:
    """n unit vectors of k groups: vectors (n, dim), group (n,)."""
    rng = np.random.default_rng(seed)
    middles = unit(rng.standard_normal((k, dim)))
    groups = rng.integers(k, size=n)
    return near(middles[groups], cosine, rng), groups


def islands(n: int, k: int = 8, n_islands: int = 25, share: float = 0.5, dim: int = 96) -> tuple[Array, Labels]:
    """k topics; a ``share`` of the vectors are in tight islands (texts of one template), each within a topic."""
    rng = np.random.default_rng(1)
    topics = unit(rng.standard_normal((k, dim)))
    island_topic = np.arange(n_islands) % k
    centres = near(topics[island_topic], 0.6, rng)
    on_island = rng.random(n) < share
    island = rng.integers(n_islands, size=n)
    topic = np.where(on_island, island_topic[island], rng.integers(k, size=n))
    vectors = np.where(on_island[:, None], near(centres[island], 0.97, rng), near(topics[topic], 0.6, rng))
    return vectors, topic


def agreement(a: Labels, b: Labels) -> float:
    """Share of equal labels under the best renaming."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    return float(table[linear_sum_assignment(-table)].sum() / len(a))


def relative_graph(m: int = 400) -> csr_array:
    return normalised(neighbour_graph(blobs(m, 4)[0], 20), np.ones(m))


# The whole


@pytest.mark.parametrize("n", [500, 2600])
def test_planted_clusters_are_found_and_numbered_by_size(n: int) -> None:
    vectors, groups = blobs(n, 6)
    clustering = fit_clustering(vectors, n_clusters=6, seed=0)
    labels = clustering.assign(vectors)
    assert adjusted_rand_score(groups, labels) == 1
    assert clustering.n_clusters == 6
    assert np.bincount(labels).tolist() == sorted(np.bincount(groups).tolist(), reverse=True)
    assert clustering.landmarks.dtype == np.float32
    assert len(clustering.landmarks) == min(n, 2000)
    assert clustering.memberships.shape == (len(clustering.landmarks), 6)
    np.testing.assert_allclose(clustering.memberships.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(clustering.memberships.argmax(axis=1), clustering.landmark_labels)


@pytest.mark.parametrize("n", [700, 2600])
def test_the_same_input_gives_the_same_bytes_with_one_thread_and_with_two(n: int) -> None:
    vectors, _ = blobs(n, 9, cosine=0.4)
    found = []
    for n_threads in (1, 1, 2):
        with threads(n_threads):
            found.append(fit_clustering(vectors, n_clusters=7, seed=3))
    for other in found[1:]:
        for name in ("landmarks", "landmark_labels", "memberships", "eigenvalues"):
            np.testing.assert_array_equal(getattr(found[0], name), getattr(other, name))


def test_labels_follow_a_permutation_of_the_rows() -> None:
    vectors, _ = blobs(900, 7, cosine=0.15)
    order = np.random.default_rng(5).permutation(len(vectors))
    labels = fit_clustering(vectors, n_clusters=7, seed=0).assign(vectors)
    permuted = vectors[order]
    np.testing.assert_array_equal(fit_clustering(permuted, n_clusters=7, seed=0).assign(permuted), labels[order])


def test_sorted_rows_give_the_same_clusters_whatever_order_they_came_in() -> None:
    vectors, _ = blobs(2500, 7, cosine=0.45)
    order = np.random.default_rng(5).permutation(len(vectors))

    class Sorted(ArrayVectors):
        def rows(self, rows: Labels) -> Array:
            return super().rows(np.argsort(order)[rows])

    direct = fit_clustering(vectors, n_clusters=7, seed=0)
    restored = fit_clustering(Sorted(vectors[order]), n_clusters=7, seed=0)
    np.testing.assert_array_equal(direct.assign(vectors), restored.assign(vectors))


@pytest.mark.parametrize(("n", "n_islands", "share"), [(1500, 12, 0.5), (1500, 25, 0.9), (4000, 25, 0.5)])
def test_islands_neither_take_the_clusters_nor_leave_one_giant(n: int, n_islands: int, share: float) -> None:
    vectors, topics = islands(n, n_islands=n_islands, share=share)
    labels = fit_clustering(vectors, n_clusters=8, seed=0).assign(vectors)
    assert np.bincount(labels).max() < 0.6 * n
    assert adjusted_rand_score(topics, labels) > 0.95


def test_new_vectors_get_the_labels_that_a_refit_gives() -> None:
    vectors, _ = blobs(3000, 8, cosine=0.5)
    old, new = vectors[:2400], vectors[2400:]
    assigned = fit_clustering(old, n_clusters=8, seed=0).assign(new)
    refitted = fit_clustering(vectors, n_clusters=8, seed=0).assign(vectors)[2400:]
    assert agreement(assigned, refitted) >= 0.95


def test_no_more_rows_are_read_than_landmarks_need() -> None:
    read = []

    class Counting:
        dim = 8

        def __len__(self) -> int:
            return 10**7

        def rows(self, rows: Labels) -> Array:
            read.append(len(rows))
            raise DataError("enough")

    with pytest.raises(DataError, match="enough"):
        fit_clustering(Counting(), n_clusters=8, seed=0)
    assert read == [40_000]


# Assignment


def test_labels_do_not_depend_on_the_rows_beside_them_nor_on_threads() -> None:
    vectors, _ = blobs(5000, 6, cosine=0.3)
    clustering = fit_clustering(vectors, n_clusters=6, seed=0)
    ids, similarities = clustering.nearest_landmarks(vectors)
    for size in (1, 7, 999, 4097):
        for start in (0, 4200):
            part = slice(start, min(start + 2 * size, start + 800))
            pieces = [
                clustering.nearest_landmarks(vectors[at : min(at + size, part.stop)])
                for at in range(part.start, part.stop, size)
            ]
            np.testing.assert_array_equal(np.concatenate([each[0] for each in pieces]), ids[part])
            np.testing.assert_array_equal(np.concatenate([each[1] for each in pieces]), similarities[part])
    for n_threads in (1, 2):
        with threads(n_threads):
            np.testing.assert_array_equal(clustering.nearest_landmarks(vectors)[1], similarities)


def test_the_nearest_landmarks_are_those_of_brute_force() -> None:
    vectors, _ = blobs(300, 6, cosine=0.3)
    clustering = fit_clustering(vectors, n_clusters=6, seed=0)
    ids, similarities = clustering.nearest_landmarks(vectors)
    cosines = vectors.astype(np.float64) @ clustering.landmarks.T.astype(np.float64)
    np.testing.assert_array_equal(ids, np.argsort(-cosines, axis=1)[:, :5])
    np.testing.assert_allclose(similarities, -np.sort(-cosines, axis=1)[:, :5], atol=1e-6)
    assert (ids.dtype, similarities.dtype) == (np.int32, np.float32)


def test_votes_are_counted_and_ties_go_to_the_nearest() -> None:
    clustering = Clustering(np.eye(6, dtype=np.float32), np.asarray([0, 0, 1, 1, 2, 2]), 3)
    ids = np.asarray(
        [[0, 2, 3, 4, 5], [4, 2, 3, 0, 1], [0, 2, 3, 1, 4], [5, 0, 4, 1, 2], [0, 2, 3, 4, 1]], np.int32
    )
    similarities = np.tile(np.asarray([0.9, 0.8, 0.7, 0.6, 0.5], np.float32), (5, 1))
    assert clustering.vote(ids, similarities).tolist() == [1, 1, 0, 2, 0]


# The number of clusters


@pytest.mark.parametrize("k", [3, 7])
def test_auto_finds_the_planted_number_of_clusters(k: int) -> None:
    vectors, groups = blobs(800, k)
    clustering = fit_clustering(vectors, n_clusters="auto", seed=0)
    assert clustering.n_clusters == k
    assert adjusted_rand_score(groups, clustering.assign(vectors)) == 1
    chosen = [each for each in clustering.candidates if each["chosen"]]
    assert [each["k"] for each in chosen] == [k]
    assert chosen[0]["stability"] == 1
    assert chosen[0]["eigengap"] == pytest.approx(clustering.eigenvalues[k - 1] - clustering.eigenvalues[k])


def test_auto_weighs_the_gap_by_the_stability_of_overlapping_clusters() -> None:
    vectors, _ = blobs(800, 6, cosine=0.35)
    candidates = fit_clustering(vectors, n_clusters="auto", seed=0).candidates
    assert len(candidates) == 5
    assert [each["k"] for each in candidates] == sorted({each["k"] for each in candidates})
    assert all(0 <= each["stability"] <= 1 for each in candidates)
    assert len({each["stability"] for each in candidates}) > 1
    best = max(candidates, key=lambda each: each["eigengap"] * each["stability"])
    assert [each["chosen"] for each in candidates] == [each is best for each in candidates]


# Pieces against dense oracles


def test_the_graph_is_that_of_the_k_nearest_by_cosine() -> None:
    vectors, _ = blobs(120, 1, cosine=0.5)
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1)[:, :9]
    weights = np.zeros((120, 120))
    for row, columns in enumerate(nearest):
        weights[row, columns] = np.maximum(cosines[row, columns], 0)
    np.testing.assert_allclose(neighbour_graph(vectors, 9).toarray(), (weights + weights.T) / 2, atol=1e-6)


def test_pieces_of_the_graph_are_joined_without_touching_the_edges_inside() -> None:
    from scipy.sparse.csgraph import connected_components

    rng = np.random.default_rng(0)
    middles = np.eye(8, 32, dtype=np.float32)
    vectors = near(np.repeat(middles, 30, axis=0), 0.98, rng)
    alone = block_diag([neighbour_graph(vectors[at : at + 30], 6) for at in range(0, 240, 30)]).toarray()
    joined = neighbour_graph(vectors, 6)
    assert connected_components(joined)[0] == 1
    np.testing.assert_allclose(joined.toarray()[alone > 0], alone[alone > 0], atol=1e-6)


def test_only_the_smaller_pieces_reach_out() -> None:
    rng = np.random.default_rng(0)
    vectors = near(np.repeat(np.eye(2, 32, dtype=np.float32), [200, 20], axis=0), 0.98, rng)
    inside = sum(neighbour_graph(part, 10).nnz for part in (vectors[:200], vectors[200:]))
    assert 0 < neighbour_graph(vectors, 10).nnz - inside <= 2 * 20


@pytest.mark.parametrize("k", [1, 5, 12])
def test_eigenvectors_are_those_of_a_dense_solver(k: int) -> None:
    matrix = relative_graph()
    dense_values, dense_vectors = np.linalg.eigh(matrix.toarray())
    values, vectors = leading_eigenvectors(matrix, k, seed=0)
    np.testing.assert_allclose(values, dense_values[::-1][:k], atol=1e-6)
    np.testing.assert_allclose(vectors @ vectors.T, dense_vectors[:, -k:] @ dense_vectors[:, -k:].T, atol=1e-3)
    assert (vectors[np.abs(vectors).argmax(axis=0), np.arange(k)] > 0).all()


def test_no_eigenvalue_of_separate_islands_is_missed() -> None:
    rng = np.random.default_rng(2)
    vectors = near(np.repeat(np.eye(12, 64, dtype=np.float32), 60, axis=0), 0.97, rng)
    matrix = normalised(neighbour_graph(vectors, 30), np.ones(len(vectors)))
    values, _ = leading_eigenvectors(matrix, 13, seed=0)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix.toarray())[::-1][:13], atol=1e-5)


def test_copies_count_as_if_each_stood_in_the_graph_apart() -> None:
    rng = np.random.default_rng(4)
    graph = neighbour_graph(blobs(60, 3)[0], 12)
    copies = rng.integers(1, 6, 60)
    node = np.repeat(np.arange(60), copies)
    apart = graph.toarray()[np.ix_(node, node)]
    apart[node[:, None] == node] = 1
    np.fill_diagonal(apart, 0)
    degrees = apart.sum(axis=1)
    dense = apart / np.sqrt(degrees[:, None] * degrees)
    reduced = normalised(graph, copies.astype(np.float64)).toarray()
    # Vectors that do not tell copies apart: √c_i each in the reduced space.
    spread = np.eye(60)[node] / np.sqrt(copies)
    np.testing.assert_allclose(spread.T @ dense @ spread, reduced, atol=1e-12)
    np.testing.assert_allclose(dense @ spread, spread @ reduced, atol=1e-12)


@pytest.mark.parametrize("n", [900, 3000])
def test_an_instruction_that_many_documents_share_is_a_cluster_of_its_own(n: int) -> None:
    """As "Classify the customer's intent." is, when only instructions are embedded."""
    vectors, groups = blobs(n, 3)
    shared = np.repeat(unit(np.random.default_rng(9).standard_normal((1, vectors.shape[1]))), n // 4, axis=0)
    every = np.concatenate([vectors, shared.astype(np.float32)])
    labels = fit_clustering(every, n_clusters=4, seed=0).assign(every)
    assert agreement(np.concatenate([groups, np.full(n // 4, 3)]), labels) > 0.97


def test_the_factorization_never_gets_worse_and_takes_the_documented_step() -> None:
    matrix, k = relative_graph(), 4
    dense = matrix.toarray()
    start = np.random.default_rng(0).integers(k, size=len(dense))
    once = np.ones(len(dense))
    steps = [factorize(matrix, once, start, k, iterations=number) for number in range(1, 40)]
    objective = [np.linalg.norm(dense - each.h @ each.h.T) for each in steps]
    assert (np.diff(objective) <= 1e-12).all()
    assert objective[-1] < objective[0]
    for before, after in pairwise(steps):
        h = before.h
        expected = h * (0.5 + 0.5 * (dense @ h) / (h @ h.T @ h))
        np.testing.assert_allclose(after.h, expected, rtol=1e-9)
        assert after.residual == pytest.approx(np.linalg.norm(expected - h) / np.linalg.norm(h))
    assert steps[-1].h.min() >= 0


def test_k_means_centroids_are_the_directions_of_their_vectors() -> None:
    vectors, groups = blobs(600, 5)
    centroids = kmeans(vectors, 5, seed=0, iterations=20, restarts=5)
    nearest = (vectors @ centroids.T).argmax(axis=1)
    assert adjusted_rand_score(groups, nearest) == 1
    means = unit(np.stack([vectors[nearest == number].mean(axis=0) for number in range(5)]).astype(np.float64))
    np.testing.assert_allclose(centroids, means, atol=1e-5)


@pytest.mark.parametrize("k", [0, 11])
def test_k_means_refuses_more_centroids_than_vectors(k: int) -> None:
    with pytest.raises(ConfigError, match="k-means of 10 vectors"):
        kmeans(blobs(10, 2)[0], k, seed=0, iterations=1)


# Inputs of odd form


@pytest.mark.parametrize("n_clusters", [1, 2, 5, "auto"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_few_vectors_give_at_most_as_many_clusters(n: int, n_clusters: int) -> None:
    vectors, _ = blobs(n, 3)
    clustering = fit_clustering(vectors, n_clusters=n_clusters, seed=0)
    labels = clustering.assign(vectors)
    assert labels.shape == (n,)
    assert set(clustering.landmark_labels.tolist()) == set(range(clustering.n_clusters))
    assert clustering.n_clusters <= (n if n_clusters == "auto" else n_clusters)


def test_as_many_clusters_as_vectors_gives_each_its_own() -> None:
    vectors, _ = blobs(8, 3)
    clustering = fit_clustering(vectors, n_clusters=20, seed=0, votes=1)
    assert sorted(clustering.assign(vectors).tolist()) == list(range(8))
    np.testing.assert_array_equal(clustering.memberships, np.eye(8))


@pytest.mark.parametrize("n", [300, 2400])
def test_equal_vectors_get_one_label(n: int) -> None:
    equal = np.repeat(blobs(1, 1)[0], n, axis=0)
    for n_clusters in (4, "auto"):
        assert len(set(fit_clustering(equal, n_clusters=n_clusters, seed=0).assign(equal).tolist())) == 1
        assert not fit_clustering(equal * 0, n_clusters=n_clusters, seed=0).assign(equal * 0).any()


def test_few_different_vectors_among_many_are_the_landmarks() -> None:
    distinct, _ = blobs(40, 4)
    shared = np.repeat(distinct, 60, axis=0) + np.random.default_rng(0).normal(0, 1e-6, (2400, 48)).astype(
        np.float32
    )
    clustering = fit_clustering(shared, n_clusters=4, seed=0)
    assert len(clustering.landmarks) <= 40
    np.testing.assert_array_equal(clustering.assign(shared), np.repeat(clustering.assign(distinct), 60))


def test_duplicates_change_no_cluster_and_zeros_disturb_none() -> None:
    vectors, groups = blobs(300, 4)
    single = fit_clustering(vectors, n_clusters=4, seed=0)
    double = np.concatenate([vectors, vectors])
    np.testing.assert_array_equal(
        fit_clustering(double, n_clusters=4, seed=0).assign(vectors), single.assign(vectors)
    )
    padded = np.concatenate([vectors, np.zeros((5, vectors.shape[1]), np.float32)])
    labels = fit_clustering(padded, n_clusters=4, seed=0).assign(padded)
    assert adjusted_rand_score(groups, labels[:300]) == 1
    assert len(set(labels[300:].tolist())) == 1


def test_vectors_without_any_positive_cosine_are_clustered() -> None:
    vectors = np.eye(300, dtype=np.float32)
    clustering = fit_clustering(vectors, n_clusters=3, seed=0)
    assert np.isfinite(clustering.memberships).all()
    assert set(clustering.assign(vectors).tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("fit", [fit_clustering, paper_clustering])
def test_bad_input_is_refused(fit: object) -> None:
    vectors, _ = blobs(30, 3)
    with pytest.raises(DataError, match="no vectors"):
        fit(vectors[:0], n_clusters=3, seed=0)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="n_clusters is 0"):
        fit(vectors, n_clusters=0, seed=0)  # type: ignore[operator]
    vectors[17, 3] = np.nan
    with pytest.raises(DataError, match="vector 17"):
        fit(vectors, n_clusters=3, seed=0)  # type: ignore[operator]


@pytest.mark.parametrize("parameter", ["neighbours", "votes"])
def test_parameters_are_checked(parameter: str) -> None:
    with pytest.raises(ConfigError, match=f"{parameter} is 0"):
        fit_clustering(blobs(30, 3)[0], n_clusters=3, seed=0, **{parameter: 0})


# The published formulas


def test_paper_eigenvectors_span_what_a_dense_solver_of_the_laplacian_finds() -> None:
    vectors, _ = blobs(80, 3, cosine=0.6)
    points = vectors.astype(np.float64)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    sigma = np.median(distances[np.triu_indices(80, 1)])
    affinity = np.exp(-(distances**2) / (2 * sigma**2))
    np.testing.assert_allclose(gaussian_affinity(vectors), affinity, rtol=1e-6)
    values, right = np.linalg.eig(np.eye(80) - affinity / affinity.sum(axis=1, keepdims=True))
    order = np.argsort(values.real)[:4]
    v = right[:, order].real
    found_values, found = laplacian_eigenvectors(affinity, 4)
    np.testing.assert_allclose(found_values, values.real[order], atol=1e-9)
    np.testing.assert_allclose(found @ found.T, v @ v.T, atol=1e-7)


def test_paper_mode_finds_planted_clusters_in_the_order_of_the_rows() -> None:
    vectors, groups = blobs(240, 4, cosine=0.8)
    clustering = paper_clustering(vectors, n_clusters=4, seed=0)
    assert adjusted_rand_score(groups, clustering.landmark_labels) == 1
    np.testing.assert_array_equal(clustering.landmarks, vectors)
    again = paper_clustering(ArrayVectors(vectors), n_clusters=4, seed=0)
    np.testing.assert_array_equal(clustering.landmark_labels, again.landmark_labels)
    sizes = np.bincount(clustering.landmark_labels)
    assert (np.diff(sizes) <= 0).all()


def test_paper_mode_takes_one_vector_and_equal_ones() -> None:
    vectors, _ = blobs(1, 1)
    assert paper_clustering(vectors, n_clusters=10, seed=0).landmark_labels.tolist() == [0]
    equal = paper_clustering(np.repeat(vectors, 20, axis=0), n_clusters=3, seed=0)
    assert len(equal.landmark_labels) == 20


def test_paper_mode_refuses_what_is_too_large_for_dense_matrices() -> None:
    with pytest.raises(
        ConfigError, match=r"mode paper takes up to 4,000 documents, there are 4,001.*GB.*landmarks"
    ):
        paper_clustering(np.zeros((4001, 2), np.float32), n_clusters=10, seed=0)


# Real data


@pytest.mark.skipif("MIXWRIGHT_DATA" not in os.environ, reason="MIXWRIGHT_DATA names no folder of labelled data")
def test_intents_of_real_questions_are_found_better_than_by_k_means_and_by_the_paper() -> None:
    with (Path(os.environ["MIXWRIGHT_DATA"]) / "labelled" / "banking77_test.csv").open() as file:
        rows = list(csv.DictReader(file))[::3]
    vectors = np.asarray(load_encoder("all-minilm-l6-v2").encode([row["text"] for row in rows]))
    labels = np.unique([row["category"] for row in rows], return_inverse=True)[1]
    k = labels.max() + 1
    ours = fit_clustering(vectors, n_clusters=k, seed=0).assign(vectors)
    others = [
        KMeans(k, n_init=1, random_state=0).fit_predict(vectors),
        paper_clustering(vectors, n_clusters=k, seed=0).landmark_labels,
    ]
    for other in others:
        assert adjusted_rand_score(labels, ours) > adjusted_rand_score(labels, other)
