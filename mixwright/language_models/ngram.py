"""A byte n-gram language model, trained in seconds: what a text is worth for another, in bits a byte.

Interpolated absolute discounting (Chen and Goodman 1999, section 2.7): for a history h of n − 1 bytes, P(b | h)
= max(c(h b) − D, 0) / c(h) + D · N1+(h ·) / c(h) · P(b | h'), down to the uniform distribution over 256 bytes,
with D = n1 / (n1 + 2 n2) of the order's counts. Bytes need no vocabulary, so that the bits of any two corpora
compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.float64]
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]

MAX_ORDER = 8
"""Bytes that fit into one 64-bit number."""

_BOUNDARY = 0xFF
"""Stands before each text, as often as a history is long; no byte of UTF-8 is it."""


@dataclass(frozen=True)
class _Order:
    """Counts of one order: sorted n-grams and their counts, sorted histories, their totals and continuations."""

    grams: UInt64Array
    counts: Int64Array
    histories: UInt64Array
    totals: Int64Array
    distinct: Int64Array
    discount: float


class NgramModel:
    """P(byte | the bytes before it), of all orders up to the model's."""

    def __init__(self, orders: Sequence[_Order]) -> None:
        self._orders = orders

    @classmethod
    def train(cls, texts: Sequence[str], order: int = 6) -> NgramModel:
        """Count the bytes of the texts. Raises DataError for texts without a byte, ConfigError for the order."""
        if not 1 <= order <= MAX_ORDER:
            raise ConfigError(f"n-grams of order {order}: give 1 to {MAX_ORDER}")
        stream = _bytes(texts, order)
        scored = stream != _BOUNDARY
        if not scored.any():
            raise DataError("a language model of no text: train on documents that have some")
        return cls([_count(_grams(stream, n)[scored]) for n in range(1, order + 1)])

    def probabilities(self, texts: Sequence[str]) -> FloatArray:
        """The probability (m,) of each of the m bytes of the texts, in order; every text begins a new history."""
        stream = _bytes(texts, len(self._orders))
        scored = stream != _BOUNDARY
        found = np.full(int(scored.sum()), 1 / 256)
        for n, order in enumerate(self._orders, 1):
            grams = _grams(stream, n)[scored]
            at, known = _find(order.histories, grams >> np.uint64(8))
            there, seen = _find(order.grams, grams)
            counts = np.where(seen, order.counts[there], 0)
            direct = np.maximum(counts - order.discount, 0.0)
            back = order.discount * order.distinct[at] * found
            found = np.where(known, (direct + back) / order.totals[at], found)
        return found

    def bits_per_byte(self, texts: Sequence[str]) -> float:
        """Mean −log2 of the probabilities of the texts' bytes. Raises DataError for texts without a byte."""
        found = self.probabilities(texts)
        if not len(found):
            raise DataError("a validation set of no text: give documents that have some")
        return float(-np.log2(found).mean())


def _bytes(texts: Sequence[str], order: int) -> UInt64Array:
    """The bytes of the texts (n,), with a history of boundaries before each."""
    boundary = bytes([_BOUNDARY]) * max(order - 1, 1)
    joined = b"".join(boundary + text.encode("utf-8", "surrogatepass") for text in texts)
    return np.frombuffer(joined, dtype=np.uint8).astype(np.uint64)


def _grams(stream: UInt64Array, n: int) -> UInt64Array:
    """The last n bytes up to each place (m,), packed into a number; the first places have fewer."""
    packed = stream.copy()
    for back in range(1, n):
        packed[back:] |= stream[:-back] << np.uint64(8 * back)
    return packed


def _count(grams: UInt64Array) -> _Order:
    distinct_grams, counts = np.unique(grams, return_counts=True)
    histories, first = np.unique(distinct_grams >> np.uint64(8), return_index=True)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return _Order(
        grams=distinct_grams,
        counts=counts,
        histories=histories,
        totals=np.add.reduceat(counts, first),
        distinct=np.diff(np.append(first, len(distinct_grams))),
        # Where no count is 1 or 2 nothing is known of what is unseen: half a count.
        discount=once / (once + 2 * twice) if once else 0.5,
    )


def _find(sorted_values: UInt64Array, wanted: UInt64Array) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
    """The place of each wanted value (m,) among sorted ones, and whether it is there."""
    at = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    return at, sorted_values[at] == wanted
