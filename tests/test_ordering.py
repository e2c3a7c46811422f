"""The order of a mixture's rows against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixwright.errors import ConfigError
from mixwright.hashing import derive_key, keyed_hash
from mixwright.selectors.ordering import Share, interleave, locate, permute, position_of

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


# Counts of which some are tiny beside the others, and some are nothing.
UNEVEN = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 60), st.integers(500, 900)), min_size=1, max_size=7)


@given(UNEVEN.filter(sum))
def test_every_prefix_keeps_the_shares(counts: list[int]) -> None:
    total, k = sum(counts), np.count_nonzero(counts)
    component, _ = interleave(np.asarray(counts), 0, total)
    for i, count in enumerate(counts):
        served = np.concatenate([[0], np.cumsum(component == i)])
        off = served - np.arange(total + 1) * count / total
        bound = (1 + (k - 2) * count / total) / 2 + 1e-9
        assert np.abs(off).max() <= bound
        # Any run of rows is the difference of two prefixes.
        assert off.max() - off.min() <= 2 * bound
        assert served[-1] == count


def test_the_bound_of_a_prefix_is_as_good_as_reached() -> None:
    """Many components of one row each come at the same time, and the large one waits for them."""
    counts, share = [1000, *[1] * 9], 1000 / 1009
    component, _ = interleave(np.asarray(counts), 0, 1009)
    off = np.cumsum(component == 0) - np.arange(1, 1010) * share
    assert np.abs(off).max() == pytest.approx((1 + 8 * share) / 2, rel=0.01)


def test_tokens_of_a_prefix_keep_to_the_bound_of_serfling() -> None:
    """As docs/mixtures.md has it, though the documents are sorted by their length in the corpus."""
    lengths = np.sort(np.random.default_rng(0).integers(1, 1000, 500))
    n = np.arange(1, len(lengths) + 1)
    failure = 0.05
    spread = lengths.max() - lengths.min()
    bound = spread * np.sqrt(n * (1 - (n - 1) / len(lengths)) * np.log(2 / failure) / 2)
    outside = [
        np.abs(np.cumsum(lengths[permute(n - 1, len(lengths), derive_key(seed))]) - n * lengths.mean()) > bound
        for seed in range(200)
    ]
    assert np.mean(outside, axis=0).max() <= failure
    # Served as they lie in the corpus they would be far outside of it.
    assert np.mean(np.abs(np.cumsum(lengths) - n * lengths.mean()) > bound) > 0.2


@given(UNEVEN.filter(sum), st.data())
def test_positions_are_located_wherever_they_are(counts: list[int], data: st.DataObject) -> None:
    positions = np.unique(data.draw(st.lists(st.integers(0, sum(counts) - 1), max_size=40))).astype(np.int64)
    component, row = locate(np.asarray(counts), positions)
    everything = brute_force(counts)
    assert list(zip(component.tolist(), row.tolist(), strict=True)) == [everything[each] for each in positions]


def test_positions_of_many_components_are_located_in_parts() -> None:
    counts = np.arange(1, 3000)
    positions = np.arange(0, int(counts.sum()), 40_000)
    component, row = locate(counts, positions)
    for i, position in enumerate(positions):
        one_component, one_row = interleave(counts, int(position), int(position) + 1)
        assert (one_component[0], one_row[0]) == (component[i], row[i])
        assert position_of(counts, int(component[i]), row[i : i + 1])[0] == position


# Shares of readers


@given(st.integers(0, 60), st.integers(1, 6), st.integers(1, 7), st.integers(0, 70))
def test_readers_share_every_position_from_the_offset_on(
    total: int, world_size: int, block_rows: int, offset: int
) -> None:
    blocks: list[list[int]] = [[] for _ in range(world_size)]
    for i, position in enumerate(range(offset, total)):
        blocks[i // block_rows % world_size].append(position)
    for rank, expected in enumerate(blocks):
        share = Share(rank, world_size, block_rows, offset)
        assert share.n_rows(total) == len(expected)
        assert share.positions(0, len(expected)).tolist() == expected
        assert share.positions(len(expected) // 2, len(expected)).tolist() == expected[len(expected) // 2 :]


@pytest.mark.parametrize(
    "wrong", [(2, 2, 1, 0), (-1, 2, 1, 0), (0, 0, 1, 0), (0, 1, 0, 0), (0, 1, 1, -1), (0, 2**31, 1, 0)]
)
def test_impossible_shares_are_refused(wrong: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError):
        Share(*wrong)


def test_a_seek_far_into_a_huge_mixture_is_exact() -> None:
    counts = np.asarray([10**12, 3 * 10**11, 7, 1])
    middle = int(counts.sum()) // 2
    component, row = interleave(counts, middle, middle + 5000)
    again = [interleave(counts, middle + i, middle + i + 1) for i in (0, 1, 2499, 4999)]
    for i, (one_component, one_row) in zip((0, 1, 2499, 4999), again, strict=True):
        assert (one_component[0], one_row[0]) == (component[i], row[i])
    # The two halves of the two rare components are on either side of the middle.
    assert np.bincount(component, minlength=4)[:2] == pytest.approx([5000 * 10 / 13, 5000 * 3 / 13], abs=2)
