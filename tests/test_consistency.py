"""Consistency: the same question, answers that agree, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest

from mixwright.indexes.vectors import ArrayVectors
from mixwright.selectors.consistency import (
    CONFLICT,
    CONSISTENT,
    DUPLICATE,
    ConceptGraph,
    Conflicts,
    find_conflicts,
    left_out,
    near_duplicates,
    rake_phrases,
    responses_agree,
    same_question,
)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def planted(n: int, n_twins: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, 32))
    vectors[n - n_twins :] = vectors[:n_twins] + 0.1 * rng.standard_normal((n_twins, 32))
    return unit_rows(vectors)


def nearest_landmarks(vectors: np.ndarray, n_landmarks: int) -> np.ndarray:
    return np.argsort(-(vectors @ vectors[:n_landmarks].T), axis=1, kind="stable")[:, :5].astype(np.int32)


def test_near_duplicates_are_those_of_brute_force() -> None:
    vectors = planted(1500, 200, 0)
    pairs = near_duplicates(ArrayVectors(vectors), nearest_landmarks(vectors, 40), 0.95)
    expected = np.argwhere(np.triu(vectors @ vectors.T, 1) >= 0.95)
    assert len(expected) >= 190
    np.testing.assert_array_equal(pairs, expected)


def test_each_row_keeps_its_nearest_neighbours() -> None:
    rng = np.random.default_rng(1)
    vectors = unit_rows(np.ones((60, 16)) + 0.05 * rng.standard_normal((60, 16)))
    pairs = near_duplicates(ArrayVectors(vectors), np.zeros((60, 1), dtype=np.int32), 0.9, max_neighbours=3)
    similarity = vectors @ vectors.T - 2 * np.eye(60)
    nearest = np.argsort(-similarity, axis=1)[:, :3]
    expected = {tuple(sorted((row, int(other)))) for row in range(60) for other in nearest[row]}
    assert {tuple(pair) for pair in pairs.tolist()} == expected


@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_is_a_duplicate_of_itself(rows: int) -> None:
    vectors = ArrayVectors(np.ones((rows, 4), dtype=np.float32))
    assert near_duplicates(vectors, np.zeros((rows, 1), dtype=np.int32), 0.9).shape == (0, 2)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("What is the capital of Australia?", "what's the capital of Australia", True),
        ("What is the capital of Australia?", "Tell me: the capital city of Australia", True),
        ("What is the capital of Australia?", "What is the capital of Austria?", False),
        ("What is 3 + 4?", "What is 3 + 5?", False),
        ("What is 3 + 4?", "What is 3 - 4?", False),
        ("Why?", "Why not?", False),
        ("Why?", "Why?", True),
    ],
)
def test_the_same_question_has_the_same_content_words(first: str, second: str, same: bool) -> None:
    assert same_question(first, second) == same == same_question(second, first)


@pytest.mark.parametrize(
    ("first", "second", "agree"),
    [
        ("Canberra", "The capital is Canberra.", True),
        ("The capital is Sydney.", "The capital is Canberra.", False),
        ("It is safe.", "It is not safe.", False),
        ("It isn't safe.", "No, it is not safe. It isn't.", True),
        ("4", "The answer is 4.", True),
        ("4", "The answer is 14.", False),
    ],
)
def test_responses_agree_where_the_longer_says_the_shorter(first: str, second: str, agree: bool) -> None:
    assert responses_agree(first, second) == agree == responses_agree(second, first)


PROMPTS = ["What is the capital of Australia?"] * 4 + ["What does a cat do in Paris?", "What do cats eat?"]
RESPONSES = ["Sydney", "Canberra", "It is Canberra.", "Sydney", "It sits on roofs.", "Fish."]


def test_of_contradictory_answers_the_one_most_agree_with_is_kept() -> None:
    pairs = np.array([(i, j) for i in range(4) for j in range(i + 1, 4)])
    conflicts = find_conflicts(pairs, PROMPTS, [*RESPONSES[:3], "Canberra!", *RESPONSES[4:]])
    reasons = left_out(conflicts, np.array([9.0, 1, 2, 3, 1, 1]), np.arange(6, dtype=np.uint64))
    # Sydney has the largest value and is alone; of the three that agree the one of the largest value stays.
    assert reasons.tolist() == [CONFLICT, DUPLICATE, DUPLICATE, CONSISTENT, CONSISTENT, CONSISTENT]


def test_sydney_and_canberra_are_never_both_kept() -> None:
    conflicts = find_conflicts(np.array([[0, 1]]), PROMPTS[:2], RESPONSES[:2])
    reasons = left_out(conflicts, np.array([1.0, 2.0]), np.array([5, 6], dtype=np.uint64))
    assert reasons.tolist() == [CONFLICT, CONSISTENT]


def test_a_pair_that_asks_otherwise_is_no_conflict() -> None:
    found = find_conflicts(np.array([[4, 5]]), PROMPTS, RESPONSES)
    assert len(found.pairs) == 0


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_is_a_maximal_independent_set_whatever_the_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 40
    pairs = np.unique(np.sort(rng.integers(0, n, (60, 2)), axis=1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    conflicts = Conflicts(pairs, rng.random(len(pairs)) < 0.5)
    values, ids = rng.integers(0, 5, n).astype(float), rng.permutation(n).astype(np.uint64)
    reasons = left_out(conflicts, values, ids)
    kept = reasons == CONSISTENT
    assert not (kept[pairs[:, 0]] & kept[pairs[:, 1]]).any()
    for number in np.flatnonzero(~kept):
        others = [(pair, agree) for pair, agree in zip(pairs, conflicts.agree, strict=True) if number in pair]
        assert any(kept[pair[0] + pair[1] - number] for pair, _ in others)
    permutation = rng.permutation(n)
    place = np.argsort(permutation)
    again = left_out(Conflicts(place[pairs], conflicts.agree), values[permutation], ids[permutation])
    np.testing.assert_array_equal(again, reasons[permutation])


def test_the_published_graph_has_its_published_flaws() -> None:
    """It accepts Sydney and then Canberra, and rejects the cat in Paris: why it is not the default."""
    graph = ConceptGraph()
    assert graph.accept(rake_phrases("The capital of Australia is Sydney."))
    assert graph.accept(rake_phrases("Canberra is lovely."))
    assert not graph.accept(rake_phrases("The capital is Canberra."))
    fresh = ConceptGraph()
    assert fresh.accept(rake_phrases("A capital: Sydney."))
    assert fresh.accept(rake_phrases("A capital: Canberra."))
    assert fresh.accept(rake_phrases("The cat: asleep."))
    assert fresh.accept(rake_phrases("Paris is big."))
    assert not fresh.accept(rake_phrases("The cat: Paris."))
