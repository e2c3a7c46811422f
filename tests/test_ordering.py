"""The order of a mixture's rows against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixwright.hashing import derive_key, keyed_hash
from mixwright.selectors.ordering import interleave, permute

COUNTS = st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(sum)


@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_permute_is_a_bijection(n: int, seed: int) -> None:
    images = permute(np.arange(n), n, derive_key(seed))
    assert sorted(images.tolist()) == list(range(n))


@given(st.integers(2, 3000), st.data())
def test_permute_of_a_few_indices_is_the_same_as_of_all(n: int, data: st.DataObject) -> None:
    few = np.asarray(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    everything = permute(np.arange(n), n, derive_key(7))
    assert permute(few, n, derive_key(7)).tolist() == everything[few].tolist()


def test_permute_works_on_a_source_that_no_memory_holds() -> None:
    n = 10**15 + 7
    images = permute(np.arange(1000), n, derive_key(1))
    assert len(set(images.tolist())) == 1000
    assert images.min() >= 0
    assert images.max() < n


def test_permutations_of_a_small_set_are_equally_likely() -> None:
    orders = [tuple(permute(np.arange(4), 4, derive_key(seed)).tolist()) for seed in range(6000)]
    observed = np.unique(np.asarray(orders), axis=0, return_counts=True)[1]
    assert len(observed) == 24
    # A Feistel network is no ideal cipher on 16 points: only gross unevenness fails.
    assert observed.min() > 100
    assert observed.max() < 500


def test_places_of_a_permutation_look_uniform() -> None:
    n = 10_000
    images = permute(np.arange(n), n, derive_key(3))
    tenth = np.bincount(images[: n // 10] * 10 // n, minlength=10)
    assert stats.chisquare(tenth).pvalue > 1e-4
    assert abs(np.corrcoef(np.arange(n), images)[0, 1]) < 0.05


def test_keyed_hash_is_uniform_and_changes_with_each_part_of_the_key() -> None:
    ids = np.arange(20_000, dtype=np.uint64)
    hashes = keyed_hash(ids, 1, 0)
    assert stats.kstest(hashes / 2**64, "uniform").pvalue > 1e-4
    for other in (keyed_hash(ids, 2, 0), keyed_hash(ids, 1, 1)):
        assert abs(np.corrcoef(hashes.astype(float), other.astype(float))[0, 1]) < 0.05


def brute_force(counts: list[int]) -> list[tuple[int, int]]:
    rows = [((2 * j + 1) / (2 * c), i, j) for i, c in enumerate(counts) for j in range(c)]
    return [(i, j) for _, i, j in sorted(rows)]


@given(COUNTS, st.data())
def test_interleave_equals_a_sort_of_all_rows(counts: list[int], data: st.DataObject) -> None:
    total = sum(counts)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    component, row = interleave(np.asarray(counts), start, stop)
    assert list(zip(component.tolist(), row.tolist(), strict=True)) == brute_force(counts)[start:stop]


@given(COUNTS)
def test_every_prefix_keeps_the_shares(counts: list[int]) -> None:
    total, k = sum(counts), len(counts)
    component, _ = interleave(np.asarray(counts), 0, total)
    for i, count in enumerate(counts):
        served = np.cumsum(component == i)
        expected = np.arange(1, total + 1) * count / total
        # Half a row by the component's own clock, and the other clocks' halves weighted by its share.
        assert np.abs(served - expected).max() <= 0.5 + k * count / (2 * total) + 1


def test_a_seek_far_into_a_huge_mixture_is_exact() -> None:
    counts = np.asarray([10**12, 3 * 10**11, 7, 1])
    middle = int(counts.sum()) // 2
    component, row = interleave(counts, middle, middle + 5000)
    again = [interleave(counts, middle + i, middle + i + 1) for i in (0, 1, 2499, 4999)]
    for i, (one_component, one_row) in zip((0, 1, 2499, 4999), again, strict=True):
        assert (one_component[0], one_row[0]) == (component[i], row[i])
    # The two halves of the two rare components are on either side of the middle.
    assert np.bincount(component, minlength=4)[:2] == pytest.approx([5000 * 10 / 13, 5000 * 3 / 13], abs=2)
