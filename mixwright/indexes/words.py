"""Words of texts as 64-bit hashes: what near-duplicates and contamination are found by.

Two texts have the same words if they differ in case, in Unicode form (NFKC), in punctuation and in white space
alone. A word is a run of letters, digits and marks; in scripts that put no space between words (Han, kana, Thai,
Lao, Burmese, Khmer) each character is one. Everything is computed for many texts at once, by NumPy, and depends on
the texts alone: not on the process, the machine or a library's version (but on Python's Unicode tables).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.hashing import mix64

UInt64Array = npt.NDArray[np.uint64]
UInt32Array = npt.NDArray[np.uint32]
UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]

BATCH_CHARACTERS = 1 << 20
"""Texts are worked on in batches of this many characters: about 60 MiB of arrays."""

_SEPARATOR, _LETTER, _ALONE, _IGNORED = range(4)
"""What a character is to words: between them, part of one, one by itself, or not there at all."""

_CHARACTERS = 0x110000
_ASSIGNED = 0x33480
"""Above are only private characters and those that select the form of another."""

_ALONE_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x312F),  # Han radicals and marks, kana, bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0x20000, 0x33479),
)
_IGNORED_RANGES = ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0000, 0xE0FFF))
"""Variation selectors and tags. Characters of category Cf (soft hyphen, joiners) are ignored too."""

_STRETCH = re.compile(r"\s+|\S+")

_BASE = 0x9FB21C651E98DF25
_INVERSE = pow(_BASE, -1, 1 << 64)


class Ragged(NamedTuple):
    """Several arrays as one: the i-th of t is ``values[offsets[i]:offsets[i + 1]]``; ``offsets`` is (t + 1,)."""

    values: UInt64Array
    offsets: Int64Array


class Runs:
    """Hashes of runs of ``values`` (m,): equal runs have equal hashes, wherever they stand.

    A polynomial modulo 2⁶⁴ (Karp and Rabin 1987) whose values are hashes themselves: the sum over a run is a
    difference of two prefix sums, so that a run costs the same whatever its length.
    """

    def __init__(self, values: UInt64Array) -> None:
        self._inverse = _powers(_INVERSE, len(values))
        self._prefix = np.zeros(len(values) + 1, dtype=np.uint64)
        np.cumsum(values * _powers(_BASE, len(values)), out=self._prefix[1:])

    def hashes(self, starts: Int64Array, ends: Int64Array) -> UInt64Array:
        """Hash (r,) of each run ``values[start:end]``, none of them empty."""
        return mix64((self._prefix[ends] - self._prefix[starts]) * self._inverse[starts])


def normalized(text: str) -> str:
    """The text without differences of case and Unicode form: NFKC, casefold, and NFKC of that."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def hashed_words(texts: Sequence[str]) -> Ragged:
    """The hash of each word of each text, in order."""
    parts = [_hash_batch(texts[start:stop]) for start, stop in text_batches(texts)]
    if not parts:
        return Ragged(np.empty(0, dtype=np.uint64), np.zeros(1, dtype=np.int64))
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    return Ragged(np.concatenate([part.values for part in parts]), offsets_of(counts))


def text_batches(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) of texts that have BATCH_CHARACTERS together, or one more text than that."""
    start = total = 0
    for number, text in enumerate(texts):
        total += len(text)
        if total >= BATCH_CHARACTERS:
            yield start, number + 1
            start, total = number + 1, 0
    if start < len(texts):
        yield start, len(texts)


def offsets_of(counts: npt.NDArray[np.integer]) -> Int64Array:
    """Where each of several arrays starts in one after the other, and the end: (t,) lengths to (t + 1,)."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def counted_up(firsts: Int64Array, counts: Int64Array) -> Int64Array:
    """The ranges ``first … first + count - 1``, one after the other: (r,) and (r,) to (Σ counts,)."""
    steps = np.arange(int(counts.sum()), dtype=np.int64)
    return steps + np.repeat(firsts - offsets_of(counts)[:-1], counts)


def word_spans(text: str) -> Int64Array:
    """Where each word (w,) of a text is in it: (w, 2) characters, start and end.

    The words are those of ``hashed_words``. A letter with its marks counts as one place; where normalization
    joins more than that (Korean in single letters), all words of the stretch between two spaces have its place.
    """
    pieces = _pieces(text)
    folded = [normalized(text[start:stop]) for start, stop in pieces]
    places = np.repeat(np.asarray(pieces, dtype=np.int64).reshape(-1, 2), [len(each) for each in folded], axis=0)
    words = _find_words("".join(folded))
    return np.stack([places[words.first, 0], places[words.last, 1]], axis=1)


class _Tables(NamedTuple):
    kinds: UInt8Array
    hashes: UInt64Array


@cache
def _tables() -> _Tables:
    """What each character is to words, and its hash; both (0x110000,). Takes 50 ms, once."""
    kinds = np.full(_CHARACTERS, _SEPARATOR, dtype=np.uint8)
    categories = [unicodedata.category(chr(code)) for code in range(_ASSIGNED)]
    kinds[:_ASSIGNED][[each[0] in "LMN" for each in categories]] = _LETTER
    kinds[:_ASSIGNED][[each == "Cf" for each in categories]] = _IGNORED
    for first, last in _ALONE_RANGES:
        here = kinds[first : last + 1]
        here[here == _LETTER] = _ALONE
    for first, last in _IGNORED_RANGES:
        kinds[first : last + 1] = _IGNORED
    return _Tables(kinds, mix64(np.arange(_CHARACTERS, dtype=np.uint64)))


def _hash_batch(texts: Sequence[str]) -> Ragged:
    folded = [normalized(text) for text in texts]
    # A line break behind each text keeps its last word from the next one's first.
    boundaries = offsets_of(np.fromiter((len(each) + 1 for each in folded), np.int64, len(folded)))
    words = _find_words("\n".join(folded))
    hashes = Runs(_tables().hashes.take(words.codes)).hashes(words.starts, words.ends)
    return Ragged(hashes, np.searchsorted(words.first, boundaries).astype(np.int64))


class _Words(NamedTuple):
    """The characters that are not ignored (k,), ``starts`` and ``ends`` of the words (w,) among them, and the
    places of the words' first and last characters in the text (w,)."""

    codes: UInt32Array
    starts: Int64Array
    ends: Int64Array
    first: Int64Array
    last: Int64Array


def _find_words(text: str) -> _Words:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    kinds = _tables().kinds.take(codes)
    kept = None
    if (kinds == _IGNORED).any():
        kept = np.flatnonzero(kinds != _IGNORED)
        codes, kinds = codes[kept], kinds[kept]
    letter, alone = kinds == _LETTER, kinds == _ALONE
    starts, ends = letter | alone, letter | alone
    starts[1:] &= ~(letter[1:] & letter[:-1])
    ends[:-1] &= ~(letter[1:] & letter[:-1])
    first, last = np.flatnonzero(starts), np.flatnonzero(ends)
    places = (first, last) if kept is None else (kept[first], kept[last])
    return _Words(codes, first, last + 1, *places)


def _pieces(text: str) -> list[tuple[int, int]]:
    """The text (start, end) in pieces that can be normalized one by one: a character with its marks.

    Where that is not so, the piece is the whole stretch between two spaces.
    """
    if text.isascii():
        return [(place, place + 1) for place in range(len(text))]
    pieces: list[tuple[int, int]] = []
    for match in _STRETCH.finditer(text):
        found = _with_marks(text, *match.span())
        if "".join(normalized(text[start:end]) for start, end in found) != normalized(match[0]):
            found = [match.span()]
        pieces += found
    return pieces


def _with_marks(text: str, start: int, end: int) -> list[tuple[int, int]]:
    starts = [start, *(at for at in range(start + 1, end) if unicodedata.category(text[at])[0] != "M")]
    return list(zip(starts, [*starts[1:], end], strict=True))


def _powers(base: int, n: int) -> UInt64Array:
    """The powers 0 … n - 1 of an odd number modulo 2⁶⁴."""
    return _usual_powers(base)[:n] if n <= 2 * BATCH_CHARACTERS else _computed_powers(base, n)


@cache
def _usual_powers(base: int) -> UInt64Array:
    return _computed_powers(base, 2 * BATCH_CHARACTERS)


def _computed_powers(base: int, n: int) -> UInt64Array:
    powers = np.full(n, base, dtype=np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)
