"""The order of a mixture's rows, as pure functions: nothing is shuffled, stored or remembered.

Three parts. ``permute`` is a keyed bijection on {0, …, n − 1}: a Feistel network on the smallest even-bit domain
that holds n, with cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002), so that the
j-th document of a pass costs O(1) whatever n is. ``interleave`` merges components: row j of a component with c
rows stands at virtual time (2j + 1) / 2c, and rows are served by time. ``Share`` says which positions a reader
among several reads.

How near a prefix is to its shares. Take the first m of N rows, and let t be the time of the last of them. The
rows of component i among them are those before t and perhaps one at t: n_i = c_i t + e_i with |e_i| ≤ 1/2. They
sum to m, so t = (m - Σ e_j) / N, and with w_i = c_i / N

    n_i - m w_i = e_i (1 - w_i) - w_i Σ_{j≠i} e_j,    |n_i - m w_i| ≤ (1 + (k - 2) w_i) / 2

for k components that have rows. Any run of rows is the difference of two prefixes, and is within twice that. Every
component serves exactly its rows over the whole, however small its share.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError
from mixwright.hashing import UInt64Array, derive_key, mix64

Int64Array = npt.NDArray[np.int64]

_ROUNDS = 6
_NEAR = 8
"""Positions at most so far apart are read on to, not looked up anew."""
MAX_READERS = (1 << 31) - 1
"""Largest world size, and largest block of rows."""
_CELLS = 1 << 16
"""Positions times components that are looked up at once."""


@dataclass(frozen=True)
class Share:
    """The positions that one of several readers reads: blocks of rows, dealt out in turn from ``offset`` on.

    Reader r of W has positions offset + (jW + r)b + i for j = 0, 1, … and i < b: its own rows, numbered through.
    The readers together have every position from ``offset`` on, once. Raises ConfigError for impossible numbers.
    """

    rank: int = 0
    world_size: int = 1
    block_rows: int = 1
    offset: int = 0

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank {self.rank} of world size {self.world_size}: a rank is between 0 and the world size "
                "less one"
            )
        if max(self.world_size, self.block_rows) > MAX_READERS or self.block_rows < 1 or self.offset < 0:
            raise ConfigError(
                f"world size {self.world_size}, block_rows {self.block_rows}, offset {self.offset}: give 1 to "
                f"{MAX_READERS} for the first two, and an offset of 0 or more"
            )

    def n_rows(self, total: int) -> int:
        """How many of ``total`` positions are this reader's."""
        rounds, left = divmod(max(0, total - self.offset), self.world_size * self.block_rows)
        return rounds * self.block_rows + min(max(left - self.rank * self.block_rows, 0), self.block_rows)

    def positions(self, start: int, stop: int) -> Int64Array:
        """Positions of the reader's own rows ``start … stop - 1``, increasing."""
        block, place = np.divmod(np.arange(start, stop, dtype=np.int64), self.block_rows)
        return np.asarray(self.offset + (block * self.world_size + self.rank) * self.block_rows + place)


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
    for round_key in _round_keys(int(key)):
        left, right = right, left ^ (mix64(right ^ round_key) & mask)
    return (left << shift) | right


@lru_cache(maxsize=4096)
def _round_keys(key: int) -> tuple[np.uint64, ...]:
    return tuple(derive_key(key, round_number) for round_number in range(_ROUNDS))


def interleave(counts: Int64Array, start: int, stop: int) -> tuple[Int64Array, Int64Array]:
    """Component and row-in-component of positions ``start … stop − 1``.

    ``counts`` (k,) are the rows of each component; 0 ≤ start ≤ stop ≤ counts.sum(). Returns two (stop − start,)
    arrays. Costs O(k + stop − start), whatever the position.
    """
    return _runs(counts, np.asarray([start]), np.asarray([stop]))


def locate(counts: Int64Array, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Component and row-in-component of increasing positions (m,), two arrays (m,).

    Costs O(m + k) where they lie close together and O(m k) where they lie apart, however far.
    """
    if len(positions) == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    behind = np.flatnonzero(np.diff(positions) > _NEAR) + 1
    starts, stops = positions[np.r_[0, behind]], positions[np.r_[behind, len(positions)] - 1] + 1
    step = max(1, _CELLS // len(counts))
    parts = [_runs(counts, starts[i : i + step], stops[i : i + step]) for i in range(0, len(starts), step)]
    lengths = stops - starts
    # Where each position is among the positions of all runs.
    place = positions + np.repeat(np.cumsum(lengths) - lengths - starts, np.diff(np.r_[0, behind, len(positions)]))
    return np.concatenate([each[0] for each in parts])[place], np.concatenate([each[1] for each in parts])[place]


def _runs(counts: Int64Array, starts: Int64Array, stops: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Component and row of the positions of some runs (m,), one run behind the other."""
    total, (m, k) = max(int(counts.sum()), 1), (len(starts), len(counts))
    # At most N t + k / 2 rows are before time t, and at least N t - k / 2: a few rows too many on either side.
    first = _rows_before(counts, ((starts - k / 2 - 1) / total)[:, None])
    last = _rows_before(counts, ((stops + k / 2 + 1) / total)[:, None])
    taken = (last - first).ravel()
    run = np.repeat(np.repeat(np.arange(m), k), taken)
    component = np.repeat(np.tile(np.arange(k), m), taken)
    row = np.arange(len(run)) + np.repeat(first.ravel() - np.cumsum(taken) + taken, taken)
    order = np.lexsort((component, _time(row, counts[component]), run))
    # Of each run's rows, which are sorted now, those from its first position to its last.
    lengths, found = stops - starts, np.bincount(run, minlength=m)
    begin = np.cumsum(found) - found + starts - first.sum(axis=1)
    wanted = np.arange(int(lengths.sum())) + np.repeat(begin - np.cumsum(lengths) + lengths, lengths)
    return component[order[wanted]], row[order[wanted]]


def position_of(counts: Int64Array, component: int, rows: Int64Array) -> Int64Array:
    """Positions of these rows (m,) of one component: the inverse of ``interleave``. Costs O(m k)."""
    times = _time(rows, counts[component])[:, None]
    before = _rows_before(counts, times)
    # At one time the component with the smaller number is served first.
    earlier = np.arange(len(counts)) < component
    ties = earlier & (before < counts) & (_time(before, np.maximum(counts, 1)) == times)
    return np.asarray((before + ties).sum(axis=1), dtype=np.int64)


def _time(row: Int64Array, count: Int64Array) -> npt.NDArray[np.float64]:
    # Correctly rounded division: the same bits on every machine, and strictly increasing for count < 2**51.
    return np.asarray((2.0 * row + 1.0) / (2.0 * count))


def _rows_before(counts: Int64Array, time: float | npt.NDArray[np.float64]) -> Int64Array:
    """Rows of each component (k,) with a time strictly below ``time``; for times (m, 1) it is (m, k)."""
    rows: Int64Array = np.clip(np.ceil(counts * time - 0.5).astype(np.int64), 0, counts)
    safe = np.maximum(counts, 1)
    # The estimate is rounded: settle it by the very comparison that sorts.
    for _ in range(2):
        rows = np.where((rows > 0) & (_time(rows - 1, safe) >= time), rows - 1, rows)
        rows = np.where((rows < counts) & (_time(rows, safe) < time), rows + 1, rows)
    return rows
