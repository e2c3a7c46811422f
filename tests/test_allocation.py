"""Sharing a budget: closed forms, the published algorithm and brute force as oracles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixwright.selectors.allocation import (
    binding_source,
    fill,
    largest_remainder,
    temperature_weights,
    water_fill,
)


def unimax(sizes: list[int], epochs: float, budget: float) -> list[float]:
    """Algorithm 1 of arXiv 2304.09151, before its normalisation."""
    amounts = [0.0] * len(sizes)
    left = budget
    for position, i in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        share = left / (len(sizes) - position)
        amounts[i] = min(share, sizes[i] * epochs)
        left -= amounts[i]
    return amounts


SIZES = st.lists(st.integers(1, 10**9), min_size=1, max_size=8)


@given(SIZES, st.floats(0.1, 20), st.floats(0.001, 1))
def test_equal_weights_give_unimax(sizes: list[int], epochs: float, part: float) -> None:
    budget = part * sum(sizes) * epochs
    ours = water_fill(np.ones(len(sizes)), np.asarray(sizes) * epochs, budget)
    assert ours == pytest.approx(unimax(sizes, epochs, budget), rel=1e-9)


def test_the_figures_of_the_unimax_paper() -> None:
    sizes, budget = np.asarray([1e9, 1e11, 1e12]), 1e12
    assert water_fill(np.ones(3), sizes * 1, budget) / budget == pytest.approx([0.001, 0.1, 0.899])
    assert water_fill(np.ones(3), sizes * 4, budget) / budget == pytest.approx([0.004, 0.4, 0.596])


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.1, 100)), min_size=1, max_size=6),
    st.floats(0.01, 0.99),
)
def test_water_fill_satisfies_its_optimality_conditions(pairs: list[tuple[float, float]], part: float) -> None:
    weights, capacities = map(np.asarray, zip(*pairs, strict=True))
    total = part * capacities.sum()
    amounts = water_fill(weights, capacities, total)
    assert amounts.sum() == pytest.approx(total)
    assert (amounts <= capacities * (1 + 1e-12)).all()
    level = (amounts / weights)[amounts < capacities * (1 - 1e-9)]
    # All that are not full stand at one level, and none that is full would be below it.
    if len(level):
        assert level == pytest.approx(level[0])
        assert ((amounts / weights) <= level[0] * (1 + 1e-9)).all()


def test_temperature_against_the_published_shares() -> None:
    sizes = np.asarray([10**12, 10**11, 10**9])
    assert temperature_weights(sizes, 3.33) == pytest.approx([0.615, 0.308, 0.077], abs=5e-4)
    assert temperature_weights(sizes, 1.0) == pytest.approx(sizes / sizes.sum())
    assert temperature_weights(sizes, 1e9) == pytest.approx([1 / 3] * 3)
    assert temperature_weights(sizes, 1e-3) == pytest.approx([1, 0, 0])


def test_the_binding_source_is_the_first_to_run_out() -> None:
    weights, capacities = np.asarray([0.5, 0.3, 0.2]), np.asarray([100.0, 20.0, 50.0])
    # Shares reach capacities at totals of 200, 67 and 250.
    assert binding_source(weights, capacities) == 1


@given(st.lists(st.floats(0, 50), min_size=1, max_size=8).filter(lambda a: sum(a) > 0))
def test_largest_remainder_keeps_quota_and_total(amounts: list[float]) -> None:
    total = round(sum(amounts))
    exact = np.asarray(amounts) * total / sum(amounts)
    counts = largest_remainder(exact, total, np.full(len(amounts), 10**6))
    assert counts.sum() == total
    assert (np.abs(counts - exact) < 1 + 1e-6).all()


def test_largest_remainder_does_not_pass_a_capacity() -> None:
    counts = largest_remainder(np.asarray([2.0, 3.5, 4.5]), 10, np.asarray([2, 3, 9]))
    assert counts.tolist() == [2, 3, 5]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.integers(0, 120), st.randoms())
def test_fill_leaves_no_room_for_another(tokens: list[int], target: int, random: object) -> None:
    order = np.asarray(random.sample(range(len(tokens)), len(tokens)))  # type: ignore[attr-defined]
    chosen = fill(order, np.asarray(tokens), target)
    total = sum(tokens[i] for i in chosen)
    left_out = set(range(len(tokens))) - set(chosen.tolist())
    assert total <= target
    assert all(total + tokens[i] > target for i in left_out)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    # The rows before the first that does not fit are all taken.
    running = list(itertools.accumulate(tokens[i] for i in order))
    fitting = list(itertools.takewhile(lambda total: total <= target, running))
    assert set(order[: len(fitting)].tolist()) <= set(chosen.tolist())
