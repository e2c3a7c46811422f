"""Contamination: which texts hold evaluation texts, or long stretches of them.

Two measures of a text D and an evaluation text Q, both over words (see ``words``):

- containment |G(Q) ∩ G(D)| / |G(Q)| of the distinct runs of n words, n = 13 or all words of a shorter Q. Unlike
  the Jaccard similarity it reaches 1 for a short question inside a long passage;
- the longest run of words that stands in both.

Both come from one index of the evaluation texts' runs (seeds), so that time grows with the texts and with what
matches, not with all pairs. Where the seeds of one Q match on and on, at the same distance, D and Q share a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.hashing import mix64
from mixwright.indexes.words import Ragged, Runs, counted_up, hashed_words, offsets_of, text_batches

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

DEFAULT_NGRAM = 13
DEFAULT_CONTAINMENT = 0.8
DEFAULT_LONGEST_RUN = 32

_MOST_MATCHES = 1 << 22
"""Matches of seeds that are worked on at a time, if they are of several texts: about 400 MiB of arrays."""

_SLOTS_PER_SEED, _MOST_SLOTS = 16, 1 << 26
_NO_PLACES = np.empty(0, dtype=np.int64)
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Overlaps:
    """Pairs of a text and an evaluation text that share a seed; all arrays are (m,), by text and evaluation text.

    ``longest_run`` counts words; ``start`` is the word of the text at which the first of the longest runs begins.
    """

    text: Int64Array
    evaluation: Int64Array
    containment: FloatArray
    longest_run: Int64Array
    start: Int64Array

    @classmethod
    def joined(cls, parts: Sequence[Overlaps]) -> Overlaps:
        """The overlaps of several portions of texts, whose ``text`` is numbered through already."""
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    def exceed(self, containment: float, longest_run: int) -> BoolArray:
        """(m,): True where a measure reaches its limit."""
        return (self.containment >= containment - _ROUNDING) | (self.longest_run >= longest_run)


class EvaluationTexts:
    """An index of evaluation texts.

    Runs of ``ngram`` words give the containment. Common runs are found from that many words on, or from
    ``longest_run`` if that is less, and in shorter evaluation texts from all of their words on.
    """

    def __init__(
        self, texts: Sequence[str], *, ngram: int = DEFAULT_NGRAM, longest_run: int = DEFAULT_LONGEST_RUN
    ) -> None:
        words = hashed_words(texts)
        runs = Runs(words.values)
        self.n_words = np.diff(words.offsets)
        self._text_of = np.repeat(np.arange(len(texts)), self.n_words)
        gram_words = np.minimum(self.n_words, ngram)
        self._grams = _Grams.of(words, runs, gram_words)
        self._seed_words = np.minimum(gram_words, longest_run)
        lengths = np.unique(self._seed_words[self.n_words > 0]).tolist()
        self._seeds = [_Seeds(words, runs, self._seed_words == length, length) for length in lengths]

    def __len__(self) -> int:
        return len(self.n_words)

    def check(self, texts: Sequence[str]) -> Overlaps:
        """All pairs of a text and an evaluation text that share a seed.

        Of other pairs the containment is 0 and the longest common run shorter than a seed.
        """
        parts = [self._check(texts[start:stop], start) for start, stop in text_batches(texts)]
        return Overlaps.joined(parts or [self._measure([], np.zeros(1, dtype=np.int64), 0)])

    def _check(self, texts: Sequence[str], first: int) -> Overlaps:
        """The overlaps of some texts, which are numbered from ``first`` on."""
        words = hashed_words(texts)
        runs = Runs(words.values)
        found = [seeds.find(words, runs) for seeds in self._seeds]
        if sum(int(each.counts.sum()) for each in found) > _MOST_MATCHES and len(texts) > 1:
            half = len(texts) // 2
            return Overlaps.joined([self._check(texts[:half], first), self._check(texts[half:], first + half)])
        return self._measure(found, words.offsets, first)

    def _measure(self, found: Sequence[_Found], offsets: Int64Array, first: int) -> Overlaps:
        """What the seeds found in texts say together; ``offsets`` are the texts' first words."""
        place = np.concatenate([_NO_PLACES, *(np.repeat(each.places, each.counts) for each in found)])
        other = np.concatenate([_NO_PLACES, *(each.others for each in found)])
        text, evaluation = np.searchsorted(offsets, place, side="right") - 1, self._text_of[other]
        order = np.lexsort((place, place - other, text * len(self) + evaluation))
        place, other, text, evaluation = (each[order] for each in (place, other, text, evaluation))
        pair = text * len(self) + evaluation
        # A run goes on where the next match of the pair is one word further in both texts.
        begins = np.ones(len(place), dtype=np.bool_)
        begins[1:] = (np.diff(pair) != 0) | (np.diff(place) != 1) | (np.diff(other) != 1)
        heads = np.flatnonzero(begins)
        lengths = np.diff(np.append(heads, len(place))) + self._seed_words[evaluation[heads]] - 1
        run_ends = (other[heads] + lengths)[np.cumsum(begins) - 1]
        pairs, at = np.unique(pair[heads], return_index=True)
        longest = heads[np.lexsort((place[heads], -lengths, pair[heads]))[at]]
        return Overlaps(
            text=text[heads[at]] + first,
            evaluation=evaluation[heads[at]],
            containment=self._grams.containment(text, evaluation, other, run_ends, pairs),
            longest_run=np.maximum.reduceat(lengths, at) if len(at) else lengths,
            start=place[longest] - offsets[text[longest]],
        )


def contaminated(
    passages: Sequence[str],
    texts: Sequence[str],
    *,
    ngram: int = DEFAULT_NGRAM,
    containment: float = DEFAULT_CONTAINMENT,
    longest_run: int = DEFAULT_LONGEST_RUN,
) -> BoolArray:
    """Which passages (p) hold which texts (t): (p, t), True where one of the two measures reaches its limit."""
    overlaps = EvaluationTexts(texts, ngram=ngram, longest_run=longest_run).check(passages)
    exceed = overlaps.exceed(containment, longest_run)
    answer = np.zeros((len(passages), len(texts)), dtype=np.bool_)
    answer[overlaps.text[exceed], overlaps.evaluation[exceed]] = True
    return answer


@dataclass(frozen=True)
class _Grams:
    """The distinct n-grams (g,) of evaluation texts.

    ``at`` is the n-gram that begins at each word (w,), -1 where none does; ``words`` is n of each text (t,),
    ``counts`` its distinct n-grams (t,), and ``owner`` the text of each (g,).
    """

    at: Int64Array
    words: Int64Array
    counts: Int64Array
    owner: Int64Array

    @classmethod
    def of(cls, words: Ragged, runs: Runs, gram_words: Int64Array) -> _Grams:
        n_words = np.diff(words.offsets)
        counts = np.where(n_words > 0, n_words - gram_words + 1, 0)
        starts = counted_up(words.offsets[:-1], counts)
        text = np.repeat(np.arange(len(n_words)), counts)
        hashes = runs.hashes(starts, starts + gram_words[text])
        _, first, number = np.unique(
            mix64(hashes ^ mix64(text.astype(np.uint64))), return_index=True, return_inverse=True
        )
        at = np.full(len(words.values), -1, dtype=np.int64)
        at[starts] = number
        return cls(at, gram_words, np.bincount(text[first], minlength=len(n_words)), text[first])

    def containment(
        self, text: Int64Array, evaluation: Int64Array, other: Int64Array, run_ends: Int64Array, pairs: Int64Array
    ) -> FloatArray:
        """The containment of each of ``pairs`` (p,), text · t + evaluation text, sorted.

        Each match (m,) of a seed has its text and evaluation text, its word ``other`` of the evaluation texts, and
        the word there at which the common run ends that it is part of: an n-gram is shared that ends no later.
        """
        n_texts, n_grams = len(self.words), len(self.owner)
        shared = other + self.words[evaluation] <= run_ends
        distinct = np.unique(text[shared] * n_grams + self.at[other[shared]])
        pair_of = distinct // max(n_grams, 1) * n_texts + self.owner[distinct % max(n_grams, 1)]
        n_shared = np.bincount(np.searchsorted(pairs, pair_of), minlength=len(pairs))
        return np.asarray(n_shared / self.counts[pairs % max(n_texts, 1)])


class _Found(NamedTuple):
    """Words (m,) of texts where a seed begins, and the words (Σ counts,) of evaluation texts where it begins too:
    ``counts`` (m,) of them for each, one after the other."""

    places: Int64Array
    counts: Int64Array
    others: Int64Array


class _Seeds:
    """The runs of ``length`` words of some of the evaluation texts, those of the mask ``wanted`` (t,), by hash."""

    def __init__(self, words: Ragged, runs: Runs, wanted: BoolArray, length: int) -> None:
        counts = np.where(wanted, np.diff(words.offsets) - length + 1, 0)
        places = counted_up(words.offsets[:-1], counts)
        hashes = runs.hashes(places, places + length)
        order = np.argsort(hashes, kind="stable")
        self._length = length
        self._places = places[order]
        self._hashes, counts = np.unique(hashes, return_counts=True)
        self._offsets = offsets_of(counts)
        # Most runs of a text are no seed, and one look into a table of bits says so.
        bits = min(_SLOTS_PER_SEED * len(self._hashes), _MOST_SLOTS).bit_length()
        self._shift = np.uint64(64 - bits)
        self._slots = np.zeros(1 << bits, dtype=np.bool_)
        self._slots[self._hashes >> self._shift] = True

    def find(self, words: Ragged, runs: Runs) -> _Found:
        """Where these seeds are in texts."""
        counts = np.maximum(np.diff(words.offsets) - self._length + 1, 0)
        places = counted_up(words.offsets[:-1], counts)
        hashes = runs.hashes(places, places + self._length)
        likely = np.flatnonzero(self._slots[hashes >> self._shift])
        places, hashes = places[likely], hashes[likely]
        seeds = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        here = self._hashes[seeds] == hashes
        places, seeds = places[here], seeds[here]
        starts, ends = self._offsets[seeds], self._offsets[seeds + 1]
        return _Found(places, ends - starts, self._places[counted_up(starts, ends - starts)])
