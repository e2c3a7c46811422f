"""Shares, budgets and orders by degradation, against brute force and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixwright.selectors.consistency import CONFLICT, CONSISTENT, DUPLICATE, rake_phrases
from mixwright.selectors.degradation import (
    cluster_budgets,
    cluster_means,
    cluster_weights,
    efficiency,
    pick_order,
)
from mixwright.selectors.filling import fill_clusters, fill_with_graph


def test_the_degradation_of_a_cluster_is_the_mean_over_its_scored_documents() -> None:
    scores = np.array([0.1, np.nan, 0.3, 0.5, np.inf])
    means = cluster_means(scores, np.array([0, 0, 0, 2, 2]), 4)
    np.testing.assert_allclose(means, [0.2, 0.0, 0.5, 0.0])


def test_weights_are_those_of_the_paper_and_its_variants() -> None:
    means, sizes = np.array([0.3, 0.1, -0.2, 0.4]), np.array([10, 30, 5, 0])
    np.testing.assert_allclose(cluster_weights(means, sizes, "cds"), [0.75, 0.25, 0, 0])
    np.testing.assert_allclose(cluster_weights(means, sizes, "cds_times_size"), [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(cluster_weights(means, sizes, "size"), sizes / 45)
    np.testing.assert_allclose(cluster_weights(np.zeros(4), sizes, "cds"), sizes / 45)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 50)), min_size=1, max_size=12),
    st.integers(0, 400),
)
@settings(max_examples=300, deadline=None)
def test_budgets_sum_to_what_there_is_and_stay_within_the_clusters(
    clusters: list[tuple[float, int]], total: int
) -> None:
    means, sizes = np.array([mean for mean, _ in clusters]), np.array([size for _, size in clusters])
    budgets = cluster_budgets(cluster_weights(means, sizes, "cds"), sizes, total)
    assert budgets.sum() == min(total, sizes.sum())
    assert (budgets >= 0).all()
    assert (budgets <= sizes).all()


def test_a_cluster_without_damage_gives_only_what_the_others_cannot() -> None:
    weights = cluster_weights(np.array([0.2, 0.0, 0.0]), np.array([10, 30, 60]), "cds")
    assert cluster_budgets(weights, np.array([10, 30, 60]), 8).tolist() == [8, 0, 0]
    assert cluster_budgets(weights, np.array([10, 30, 60]), 40).tolist() == [10, 10, 20]


def test_efficiency_is_that_of_its_formula() -> None:
    scores, prompt, response = np.array([0.2, 0.2]), np.array([30.0, 90.0]), np.array([10.0, 10.0])
    np.testing.assert_allclose(efficiency(scores, prompt, response, "tokens"), [0.05, 0.02])
    np.testing.assert_allclose(efficiency(scores, prompt, response, "paper"), 0.2 / np.log([1600, 10000]))
    assert efficiency(scores, prompt, response, "none") is scores
    # A document of one token has log cost 0: it must not come out infinite.
    assert np.isfinite(efficiency(scores, np.zeros(2), np.ones(2), "paper")).all()


def test_the_best_come_first_whatever_their_order() -> None:
    values, ids = np.array([0.1, 0.5, 0.3, 0.5]), np.array([7, 8, 9, 10], dtype=np.uint64)
    order = pick_order(values, ids, "top", 0)
    assert sorted(order[:2]) == [1, 3]
    assert order[2:].tolist() == [2, 0]
    shuffled = np.array([2, 0, 3, 1])
    assert (ids[shuffled][pick_order(values[shuffled], ids[shuffled], "top", 0)] == ids[order]).all()


def test_sampling_draws_in_proportion_to_the_value() -> None:
    values, ids = np.array([1.0, 2.0, 5.0, 0.0, -1.0]), np.arange(5, dtype=np.uint64)
    orders = np.array([pick_order(values, ids, "sample", seed) for seed in range(4000)])
    first = np.bincount(orders[:, 0], minlength=5) / 4000
    # Binomial standard deviation below .008.
    np.testing.assert_allclose(first, [1 / 8, 2 / 8, 5 / 8, 0, 0], atol=0.03)
    # Second, after document 2: 1/3 and 2/3 of what is left.
    second = orders[orders[:, 0] == 2, 1]
    assert (second == 1).mean() == pytest.approx(2 / 3, abs=0.04)
    assert set(orders[:, 3:].ravel()) == {3, 4}


LABELS = np.repeat([0, 1, 2], [50, 30, 20])
WEIGHTS = np.array([0.2, 0.3, 0.5])
NONE = np.full(100, CONSISTENT, dtype=np.int8)


def test_clusters_give_their_share_of_documents_and_the_first_of_their_order() -> None:
    order = np.random.default_rng(0).permutation(100)
    filled = fill_clusters(order, LABELS, WEIGHTS, np.ones(100, dtype=np.int64), 30, NONE)
    assert filled.budgets.tolist() == [6, 9, 15]
    for cluster, n in enumerate([6, 9, 15]):
        expected = [number for number in order if LABELS[number] == cluster][:n]
        assert set(filled.chosen[LABELS[filled.chosen] == cluster]) == set(expected)


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_a_budget_of_tokens_is_met_to_within_the_shortest_document_left(total: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    amounts, order = rng.integers(3, 60, 100), rng.permutation(100)
    filled = fill_clusters(order, LABELS, WEIGHTS, amounts, total, NONE)
    assert len(np.unique(filled.chosen)) == len(filled.chosen)
    missing = total - amounts[filled.chosen].sum()
    others = np.delete(amounts, filled.chosen)
    assert missing >= 0
    assert not len(others) or missing < others.min()


def test_what_was_left_out_is_taken_only_when_nothing_else_is_left() -> None:
    reasons = NONE.copy()
    reasons[:40], reasons[40:70] = DUPLICATE, CONFLICT
    ones = np.ones(100, dtype=np.int64)
    few = fill_clusters(np.arange(100), LABELS, WEIGHTS, ones, 30, reasons)
    assert few.chosen.tolist() == list(range(70, 100))
    assert len(few.relaxed) == 0
    more = fill_clusters(np.arange(100), LABELS, WEIGHTS, ones, 60, reasons)
    assert len(more.chosen) == 60
    assert more.relaxed.tolist() == list(range(30))
    most = fill_clusters(np.arange(100), LABELS, WEIGHTS, ones, 90, reasons)
    assert set(range(40)) <= set(most.relaxed.tolist())
    assert len(most.chosen) == 90


def test_the_graph_is_offered_the_best_first_and_the_budget_is_filled() -> None:
    labels, ones = np.array([0, 0, 0, 1, 1]), np.ones(5, dtype=np.int64)
    texts = ["red lamp.", "green lamp.", "red, lamp, green", "red. stone", "lamp. stone"]
    # "red lamp" is one phrase; 3 brings "red" and "stone" together after 2 brought "red" and "lamp" together.
    order = np.array([2, 0, 1, 3, 4])
    filled = fill_with_graph(order, labels, np.array([0.5, 0.5]), ones, 3, [texts[i] for i in order])
    assert filled.chosen.tolist() == [0, 2, 3]
    assert not len(filled.relaxed)
    all_of_them = fill_with_graph(order, labels, np.array([0.5, 0.5]), ones, 5, [texts[i] for i in order])
    assert all_of_them.chosen.tolist() == [0, 1, 2, 3, 4]
    # 4 has "lamp" and "stone", both known and never together.
    assert all_of_them.relaxed.tolist() == [4]


def test_rake_phrases_are_runs_between_stop_words_and_marks() -> None:
    text = "The capital of Australia is Sydney, a big city."
    assert rake_phrases(text) == {"capital", "australia", "sydney", "big city"}
