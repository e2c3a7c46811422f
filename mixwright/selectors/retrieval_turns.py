"""Which documents target examples take: each its nearest, turn by turn. Arrays in, arrays out.

The result is that of a matrix of all cosines (documents, targets), which is never made: lists of each target's
nearest documents are, in bounded memory, and made again, without what is gone, where one of them runs out.

Documents are numbered by their ids, so ties go to the smaller id, and where a row stands changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mixwright.indexes.protocols import FloatArray as VectorArray
from mixwright.indexes.vectors import blocks
from mixwright.selectors.documents import Documents
from mixwright.selectors.pool import vectors_of

FloatArray = npt.NDArray[np.float64]
CosineArray = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]

CELLS = 1 << 22
"""Cosines that are in memory at a time: 32 MB in double precision."""

LIST_ENTRIES = 1 << 23
"""Entries of all lists together, at most: 64 MB, and some times that while they are merged."""

_LONGEST_TURN_LIST = 4
_LIST_SPARE = 64
_WINDOW = 32
"""Entries of a list that are read together."""

_LOOK_AT = 256
"""Documents, about, that are compared with the chosen ones together."""

_SIGN, _LOW = np.uint32(1 << 31), np.uint64((1 << 32) - 1)


def cosines(vectors: VectorArray, targets: FloatArray) -> CosineArray:
    """Inner products (b, t) of documents (b, d) and targets (t, d), all of unit length.

    In double precision, then rounded: the last bits of a matrix product depend on the other rows in it, and of
    two documents that are equally near the choice must not.
    """
    return (vectors.astype(np.float64) @ targets.T).astype(np.float32)


def pieces(n: int, n_targets: int) -> Iterator[slice]:
    """Cuts n rows so that one piece has about ``CELLS`` cosines with the targets."""
    step = max(CELLS // max(n_targets, 1), 1)
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


@dataclass(frozen=True)
class Lists:
    """Documents by falling cosine, one list a target: ``numbers`` (t, m).

    ``complete``: each list has every document that was asked for.
    """

    numbers: Int64Array
    complete: bool


MakeLists = Callable[[BoolArray, int], Lists]
"""Lists of the documents that a mask (n,) wants, of at most so many entries each."""


def nearest_lists(documents: Documents, targets: FloatArray, wanted: BoolArray, length: int) -> Lists:
    """The ``length`` documents nearest to each target (t, d), among those that ``wanted`` (n,) says.

    Exact: every wanted document is compared with every target, block by block.
    """
    n_wanted = int(wanted.sum())
    length = max(min(length, n_wanted, LIST_ENTRIES // len(targets)), min(n_wanted, 1))
    best = np.empty((len(targets), 0), dtype=np.uint64)
    for numbers, vectors in _wanted_blocks(documents, wanted):
        # Pieces no shorter than the lists, so that merging costs no more than comparing.
        step = max(CELLS // len(targets), length)
        for start in range(0, len(numbers), step):
            piece = slice(start, start + step)
            keys = _keys(cosines(vectors[piece], targets).T, numbers[piece])
            best = _largest(np.concatenate([best, keys], axis=1), length)
    best = np.sort(best, axis=1)[:, ::-1]
    return Lists((_LOW - (best & _LOW)).astype(np.int64), complete=length == n_wanted)


def _wanted_blocks(documents: Documents, wanted: BoolArray) -> Iterator[tuple[Int64Array, VectorArray]]:
    """Numbers (b,) and vectors (b, d) of the wanted documents, as they are stored."""
    for place, source in enumerate(documents.pool.sources):
        number_of = np.full(len(source.ids), -1, dtype=np.int64)
        here = np.flatnonzero((documents.source == place) & wanted)
        number_of[documents.row[here]] = here
        for start, block in blocks(vectors_of(source)):
            numbers = number_of[start : start + len(block)]
            kept = numbers >= 0
            yield numbers[kept], block[kept]


def _keys(similarities: CosineArray, numbers: Int64Array) -> UInt64Array:
    """One whole number for each cosine (t, b) and its document (b,), larger for what comes earlier in a list.

    The upper half orders as the cosine does (a float's bits do, once negative ones are turned round), the lower
    half falls with the document's number.
    """
    bits = np.ascontiguousarray(similarities + np.float32(0)).view(np.uint32)
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN).astype(np.uint64)
    return (ordered << np.uint64(32)) | (_LOW - numbers.astype(np.uint64))


def _largest(keys: UInt64Array, length: int) -> UInt64Array:
    if keys.shape[1] <= length:
        return keys
    return np.partition(keys, keys.shape[1] - length, axis=1)[:, keys.shape[1] - length :]


class Repeats:
    """Says which documents repeat one that is chosen: in its near-duplicate cluster, or almost as its vector.

    ``clusters`` (n,) are numbers of near-duplicate clusters, −1 for a document in none. Comparing costs
    m² d / 2 multiplications for m chosen documents.
    """

    # Two equal vectors of unit length have a product that is some last bits below 1.
    _ROUNDING = 1e-6

    def __init__(self, documents: Documents, threshold: float, clusters: Int64Array) -> None:
        self._documents = documents
        self._threshold = np.float32(threshold - self._ROUNDING)
        self._clusters = clusters
        self._seen: set[int] = set()
        self._chosen = np.empty((1024, documents.dim), dtype=np.float32)
        self._n_chosen = 0
        # Documents that were looked at: vector, how many of the chosen it was compared with, and the outcome.
        self._known: dict[int, tuple[VectorArray, int, bool]] = {}

    def knows(self, number: int) -> bool:
        """Whether a document was looked at."""
        return number in self._known

    def look_at(self, numbers: Int64Array) -> None:
        """Compare documents (b,) with all that is chosen so far, in one product."""
        new = np.asarray([number for number in numbers.tolist() if not self.knows(number)], dtype=np.int64)
        vectors = self._documents.rows(new)
        repeats = np.zeros(len(new), dtype=np.bool_)
        for piece in pieces(self._n_chosen, len(new)):
            repeats |= (vectors @ self._chosen[piece].T >= self._threshold).any(axis=1)
        for number, vector, repeat in zip(new.tolist(), vectors, repeats.tolist(), strict=True):
            self._known[number] = (vector, self._n_chosen, repeat)

    def refuses(self, number: int) -> bool:
        """Whether a document that was looked at repeats one that is chosen by now; if so, it is forgotten."""
        vector, compared, repeat = self._known[number]
        later = self._chosen[compared : self._n_chosen]
        repeat = (
            repeat or int(self._clusters[number]) in self._seen or bool((later @ vector >= self._threshold).any())
        )
        if repeat:
            del self._known[number]
        return repeat

    def choose(self, number: int) -> None:
        """Count a document that was looked at among the chosen."""
        vector, _, _ = self._known.pop(number)
        if self._n_chosen == len(self._chosen):
            self._chosen = np.concatenate([self._chosen, np.empty_like(self._chosen)])
        self._chosen[self._n_chosen] = vector
        self._n_chosen += 1
        if self._clusters[number] >= 0:
            self._seen.add(int(self._clusters[number]))


@dataclass(frozen=True)
class Taken:
    """``chosen`` (m,) documents in the order in which they were taken, ``turns`` (m,) whose turn each was.

    ``refused`` (r,) repeat a chosen one; ``relaxed`` is how many of the chosen are such documents.
    """

    chosen: Int64Array
    turns: Int64Array
    refused: Int64Array
    relaxed: int


def take_turns(
    make_lists: MakeLists,
    order: Int64Array,
    amounts: Int64Array,
    total: int,
    eligible: BoolArray,
    repeats: Repeats | None,
) -> Taken:
    """Fill ``total``: the lists in ``order`` (t,), over and over, each take their best document that is left.

    ``amounts`` (n,) and ``total`` are in documents (every amount 1) or tokens. A document that does not fit into
    what is left is passed by. Repeats come last, where all other documents are not enough. The total is met, or
    falls short by less than the smallest amount of a document that is left and is no repeat.
    """
    turns = _Turns(make_lists, amounts, total, eligible, repeats)
    turns.run(order)
    n_new, refused = len(turns.chosen), np.asarray(turns.refused, dtype=np.int64)
    if not turns.free.any() and len(refused) and turns.left:
        turns.allow(refused)
        turns.run(order)
    return Taken(
        np.asarray(turns.chosen, dtype=np.int64),
        np.asarray(turns.taken_by, dtype=np.int64),
        refused,
        len(turns.chosen) - n_new,
    )


class _Turns:
    """What is taken, what is left, and how far each list has been read."""

    def __init__(
        self, make_lists: MakeLists, amounts: Int64Array, total: int, eligible: BoolArray, repeats: Repeats | None
    ) -> None:
        self._make_lists = make_lists
        self._amounts = amounts
        self._repeats = repeats
        self.left = total
        self.free = eligible.copy()
        self.chosen: list[int] = []
        self.taken_by: list[int] = []
        self.refused: list[int] = []

    def allow(self, refused: Int64Array) -> None:
        """Leave only the repeats to be taken, and take them."""
        self.free[refused] = True
        self._repeats = None

    def run(self, order: Int64Array) -> None:
        """Take turns until no document that is left fits."""
        self._start(len(order))
        while self.left > 0:
            for turn in order.tolist():
                number = self._next(turn)
                if number is None:
                    return
                self._take(number, turn)

    def _start(self, n_lists: int) -> None:
        fitting = self._amounts[self.free & (self._amounts <= self.left)]
        expected = self.left / max(float(fitting.mean()), 1.0) if len(fitting) else 0.0
        # As if every list gave its share, and lists overlapped a few times over.
        self._length = int(_LONGEST_TURN_LIST * expected / n_lists) + _LIST_SPARE
        self._renew()

    def _renew(self) -> None:
        """Lists of what is free and fits, longer than before."""
        self._lists = self._make_lists(self.free & (self._amounts <= self.left), self._length)
        self._places = np.zeros(len(self._lists.numbers), dtype=np.int64)
        self._length *= 2

    def _next(self, turn: int) -> int | None:
        """The best document for a list that is free, fits and repeats none; None where the pool has none."""
        if self.left <= 0:
            return None
        while (number := self._read(turn)) is None and not self._lists.complete:
            self._renew()
        return number

    def _read(self, turn: int) -> int | None:
        """The next such document in the list as it is, read as far as that."""
        numbers = self._lists.numbers[turn]
        while (place := int(self._places[turn])) < len(numbers):
            window = numbers[place : place + _WINDOW]
            for step in np.flatnonzero(self.free[window] & (self._amounts[window] <= self.left)).tolist():
                number = int(window[step])
                self._places[turn] = place + step
                if not self._is_repeat(number):
                    return number
                self.free[number] = False
                self.refused.append(number)
            self._places[turn] = place + len(window)
        return None

    def _is_repeat(self, number: int) -> bool:
        if self._repeats is None:
            return False
        if not self._repeats.knows(number):
            self._repeats.look_at(np.union1d(self._coming(), [number]))
        return self._repeats.refuses(number)

    def _coming(self) -> Int64Array:
        """What the lists will offer next: looked at together, documents cost much less than one by one."""
        numbers = self._lists.numbers
        places = self._places[:, None] + np.arange(min(_WINDOW, numbers.shape[1]))
        windows = np.take_along_axis(numbers, np.minimum(places, numbers.shape[1] - 1), axis=1)
        open_ = self.free[windows] & (self._amounts[windows] <= self.left)
        return windows[open_ & (np.cumsum(open_, axis=1) <= max(_LOOK_AT // len(numbers), 2))]

    def _take(self, number: int, turn: int) -> None:
        self.free[number] = False
        self.left -= int(self._amounts[number])
        self.chosen.append(number)
        self.taken_by.append(turn)
        if self._repeats is not None:
            self._repeats.choose(number)
