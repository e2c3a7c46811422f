"""The order of a mixture's rows, as pure functions: nothing is shuffled, stored or remembered.

Two parts. ``permute`` is a keyed bijection on {0, …, n − 1}: a Feistel network on the smallest even-bit domain
that holds n, with cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002), so that the
j-th document of a pass costs O(1) whatever n is. ``interleave`` merges components: row j of a component with c
rows stands at virtual time (2j + 1) / 2c, and rows are served by time, so that every prefix holds each
component's share to within half a row of its own clock.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mixwright.hashing import UInt64Array, derive_key, mix64

Int64Array = npt.NDArray[np.int64]

_ROUNDS = 6


def permute(indices: Int64Array, n: int, key: np.uint64) -> Int64Array:
    """Where a keyed permutation of {0, …, n − 1} sends each index; shapes (m,) → (m,)."""
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    values = _feistel(indices.astype(np.uint64), half, key)
    outside = np.flatnonzero(values >= np.uint64(n))
    # The domain is less than four times n, so a walk takes four steps on average.
    while len(outside):
        values[outside] = _feistel(values[outside], half, key)
        outside = outside[values[outside] >= np.uint64(n)]
    return values.astype(np.int64)


def _feistel(values: UInt64Array, half: int, key: np.uint64) -> UInt64Array:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for round_number in range(_ROUNDS):
        round_key = derive_key(int(key), round_number)
        left, right = right, left ^ (mix64(right ^ round_key) & mask)
    return (left << shift) | right


def interleave(counts: Int64Array, start: int, stop: int) -> tuple[Int64Array, Int64Array]:
    """Component and row-in-component of positions ``start … stop − 1``.

    ``counts`` (k,) are the rows of each component; 0 ≤ start ≤ stop ≤ counts.sum(). Returns two (stop − start,)
    arrays. Costs O(k log n) to find the place and O(stop − start) to read on, whatever the position.
    """
    low = _latest_time(counts, start)
    high = _earliest_time(counts, stop)
    first, last = _rows_before(counts, low), _rows_before(counts, high)
    taken = last - first
    component = np.repeat(np.arange(len(counts)), taken)
    row = np.arange(len(component)) - np.repeat(np.cumsum(taken) - taken, taken) + np.repeat(first, taken)
    order = np.lexsort((component, _time(row, counts[component])))
    skip = start - int(first.sum())
    order = order[skip : skip + stop - start]
    return component[order], row[order]


def _time(row: Int64Array, count: Int64Array) -> npt.NDArray[np.float64]:
    # Correctly rounded division: the same bits on every machine, and strictly increasing for count < 2**51.
    return np.asarray((2.0 * row + 1.0) / (2.0 * count))


def _rows_before(counts: Int64Array, time: float) -> Int64Array:
    """Rows of each component with a time strictly below ``time``."""
    rows: Int64Array = np.clip(np.ceil(counts * time - 0.5).astype(np.int64), 0, counts)
    safe = np.maximum(counts, 1)
    # The estimate is rounded: settle it by the very comparison that sorts.
    for _ in range(2):
        rows = np.where((rows > 0) & (_time(rows - 1, safe) >= time), rows - 1, rows)
        rows = np.where((rows < counts) & (_time(rows, safe) < time), rows + 1, rows)
    return rows


def _latest_time(counts: Int64Array, position: int) -> float:
    """The largest time (as the bisection finds it) with at most ``position`` rows before it."""
    low, high = 0.0, 2.0
    while (middle := (low + high) / 2) not in (low, high):
        if int(_rows_before(counts, middle).sum()) <= position:
            low = middle
        else:
            high = middle
    return low


def _earliest_time(counts: Int64Array, position: int) -> float:
    """The smallest time (as the bisection finds it) with at least ``position`` rows before it."""
    low, high = 0.0, 2.0
    while (middle := (low + high) / 2) not in (low, high):
        if int(_rows_before(counts, middle).sum()) >= position:
            high = middle
        else:
            low = middle
    return high if position else 0.0
