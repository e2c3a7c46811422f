"""Batches of texts of like length."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixwright.indexes.batching import length_batches

LENGTHS = st.lists(st.integers(0, 300), max_size=60)


@given(LENGTHS, st.integers(1, 600))
def test_every_text_comes_once_and_only_a_lone_text_exceeds_the_budget(lengths: list[int], budget: int) -> None:
    batches = length_batches(np.array(lengths, dtype=np.int64), budget)
    assert sorted(int(row) for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[row] for row in batch) * len(batch)
        assert padded <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 600))
def test_batches_are_sorted_and_as_full_as_the_budget_allows(lengths: list[int], budget: int) -> None:
    batches = length_batches(np.array(lengths, dtype=np.int64), budget)
    in_order = [lengths[row] for batch in batches for row in batch]
    assert in_order == sorted(lengths, reverse=True)
    for batch in batches[:-1]:
        # One text more would have exceeded the budget.
        assert max(1, *(lengths[row] for row in batch), 1) * (len(batch) + 1) > budget


def test_a_batch_by_hand() -> None:
    batches = length_batches(np.array([3, 100, 10, 9, 0, 3], dtype=np.int64), budget=20)
    assert [batch.tolist() for batch in batches] == [[1], [2, 3], [0, 5, 4]]


def test_no_text_is_no_batch() -> None:
    assert length_batches(np.array([], dtype=np.int64), budget=8) == []
