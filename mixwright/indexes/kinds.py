"""The kinds of index: how each is written for FAISS, what memory it takes, what trades speed for recall.

Figures of every kind: docs/indexes.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import takewhile

from mixwright.schemas.requests import IndexKind

Settings = dict[str, float]
"""Search parameters: ``nprobe`` (lists that are scanned), ``efSearch`` (nodes that a walk through the graph
keeps), ``k_factor`` (k · k_factor candidates are scored again)."""

LARGEST_FLAT = 100_000
"""Up to this many rows ``auto`` searches exactly."""

_LISTS_PER_ROOT = 4
_TRAIN_PER_LIST = 64
_LEAST_PER_LIST = 39
"""FAISS's own rule: k-means with fewer points a centroid is not to be trusted."""

_TRAIN_PLAIN = 65_536
LEAST_TRAIN = 16
"""A 4-bit product quantizer has 16 centroids, and does not train on fewer points."""

_HNSW_LINKS = 32
_FAST_SCAN = 32
"""Codes of a list are packed in blocks of 32."""

_HEADER = 8192
_LONGEST_LADDER = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """One way to build an index of n rows.

    ``n_bytes`` is what it takes on disk and, once all of it has been touched, in memory; ``ladders`` has the
    values of each search parameter, least effort first; ``n_train`` rows train it (0: nothing to train).
    """

    kind: str
    factory: str
    n_bytes: int
    n_train: int
    ladders: dict[str, tuple[int, ...]]


def recipes(kind: IndexKind, n: int, d: int, target: float) -> list[Recipe]:
    """The recipes that a request for ``kind`` may use, in the order in which they are tried."""
    if kind == "flat":
        return [_flat(n, d)]
    if kind == "hnsw":
        return [_hnsw(n, d)]
    if kind == "ivf":
        return [_ivf(n, d)]
    if kind == "ivf-pq":
        return [_ivf_pq(n, d, refine) for refine in _REFINES]
    rabitq = [_rabitq(n, d, refine) for refine in _REFINES]
    if kind == "rabitq":
        return rabitq
    if n <= LARGEST_FLAT or target == 1:
        return [_flat(n, d), *rabitq]
    return [*rabitq, _ivf(n, d), _flat(n, d)]


_REFINES = {"SQ8": 1, "SQfp16": 2}
"""Bytes a coordinate of the copy that re-scores the candidates."""


def n_lists(n: int) -> int:
    """Lists of an inverted file: 4 √n, or fewer where that leaves too few training points a list."""
    return max(min(round(_LISTS_PER_ROOT * math.sqrt(n)), n // _LEAST_PER_LIST), 1)


def ladder(first: int, last: int) -> tuple[int, ...]:
    """``first``, 1.5 ``first``, 2 ``first``, 3 ``first``, 4 ``first`` … up to ``last``, which is the last one.

    >>> ladder(1, 10)
    (1, 2, 3, 4, 6, 8, 10)
    """
    powers = takewhile(lambda value: value < last, (first << i for i in range(_LONGEST_LADDER.bit_length())))
    rungs = {rung for power in powers for rung in (power, power * 3 // 2) if rung < last}
    return (*sorted(rungs), last)


def _flat(n: int, d: int) -> Recipe:
    return Recipe("flat", "Flat", 4 * d * n + _HEADER, 0, {})


def _hnsw(n: int, d: int) -> Recipe:
    # Two times M links on the ground level, M on each higher one, a level and an offset; a row has 1/(M − 1)
    # higher levels in the mean, and up to twice that in small indexes.
    per_row = 4 * d + 4 * 2 * _HNSW_LINKS + 4 * _HNSW_LINKS * 2 / (_HNSW_LINKS - 1) + 12
    return Recipe(
        "hnsw",
        f"HNSW{_HNSW_LINKS},Flat",
        math.ceil(per_row * n) + _HEADER,
        0,
        {"efSearch": ladder(16, max(min(n, 4096), 16))},
    )


def _ivf(n: int, d: int) -> Recipe:
    lists = n_lists(n)
    n_bytes = (4 * d + 8) * n + _lists_bytes(lists, d)
    return Recipe("ivf", f"IVF{lists},Flat", n_bytes, _n_train(n, lists), {"nprobe": ladder(1, lists)})


def _ivf_pq(n: int, d: int, refine: str) -> Recipe:
    # Sub-vectors of four coordinates, 4 bits each: a dimension that four does not divide is filled with zeros.
    lists, padded = n_lists(n), math.ceil(d / 4) * 4
    pad = f"Pad{padded}," if padded != d else ""
    code = math.ceil(padded / 8)
    n_bytes = (code + 8 + _REFINES[refine] * d) * n + _lists_bytes(lists, padded, code) + 64 * padded + 8 * d
    factory = f"{pad}IVF{lists},PQ{padded // 4}x4fsr,Refine({refine})"
    return Recipe("ivf-pq", factory, n_bytes, _n_train(n, lists), _refined(n, {"nprobe": ladder(1, lists)}))


def _rabitq(n: int, d: int, refine: str) -> Recipe:
    # One bit a coordinate and two floats a row. The random rotation spreads the variance over the bits.
    code = math.ceil(d / 8) + 8
    rotation = 4 * d * d + 4 * d
    row = code + _REFINES[refine] * d
    if n <= LARGEST_FLAT:
        factory, n_bytes, lists = f"RR{d},RaBitQfs,Refine({refine})", row * n, None
    else:
        lists = n_lists(n)
        factory = f"RR{d},IVF{lists},RaBitQfs,Refine({refine})"
        n_bytes = (row + 8) * n + _lists_bytes(lists, d, code)
    return Recipe(
        "rabitq",
        factory,
        n_bytes + rotation + 16 * d + _FAST_SCAN * code + _HEADER,
        _n_train(n, lists) if lists else min(n, _TRAIN_PLAIN),
        _refined(n, {"nprobe": ladder(1, lists)} if lists else {}),
    )


def _refined(n: int, ladders: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return ladders | {"k_factor": ladder(2, max(min(256, n), 2))}


def _lists_bytes(lists: int, d: int, code: int = 0) -> int:
    """Centroids, list sizes, and the blocks of codes that are not full."""
    return lists * (4 * d + 16 + _FAST_SCAN * code) + _HEADER


def _n_train(n: int, lists: int) -> int:
    return min(n, max(_TRAIN_PER_LIST * lists, LEAST_TRAIN))
