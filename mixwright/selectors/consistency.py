"""Consistency: which documents teach the same thing twice, or one thing and its contrary.

Two documents are about the same question where their prompts' vectors have a cosine above a threshold and every
content word (numbers among them) of the shorter prompt is in the longer one: the cosine alone takes "3 + 4" and
"3 + 5" for the same. Their responses agree where every word of the shorter is in the longer and both or neither
deny. One document of a question is kept; of several answers the one that most of the others agree with. Nothing
depends on the order of the documents.

The published concept graph (PASER, arXiv 2502.12594, section 3.5) is here too, as ``ConceptGraph``. It accepts two
contradictory answers whose concepts are new, rejects harmless new combinations, and depends on the order.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from mixwright.indexes.vectors import Vectors

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
UInt64Array = npt.NDArray[np.uint64]
Int8Array = npt.NDArray[np.int8]

CONSISTENT, DUPLICATE, CONFLICT = 0, 1, 2
"""Why a document is left out: its question is answered alike, or otherwise, by one that is kept."""

MAX_NEIGHBOURS = 32
"""Near-duplicates of one document that are looked at, the nearest ones."""

_QUERIES = 1024
_CANDIDATES = 16_384
_WORD = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")
_NEGATIONS = frozenset(("not", "no", "never", "none", "cannot", "nor", "without"))


@cache
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


# The same question


def near_duplicates(
    vectors: Vectors, nearest: Int32Array, threshold: float, max_neighbours: int = MAX_NEIGHBOURS
) -> Int64Array:
    """Pairs (p, 2), i < j, of rows whose vectors have an inner product of at least ``threshold``.

    ``vectors`` (n, d) have unit length; ``nearest`` (n, c) are the landmarks nearest to each, nearest first. Rows
    are compared where the nearest landmark of the one is among those of the other, so that a pair far above
    the threshold is found unless a cell border and c − 1 others run between them. Each row keeps its
    ``max_neighbours`` nearest.
    """
    order = np.argsort(nearest[:, 0], kind="stable")
    cells = np.split(order, np.flatnonzero(np.diff(nearest[order, 0])) + 1) if len(order) else []
    flat = nearest.ravel()
    by_landmark = np.argsort(flat, kind="stable")
    starts = np.searchsorted(flat[by_landmark], np.arange(int(flat.max(initial=-1)) + 2))
    found = []
    # The products are small: a thread each would cost more than it gives.
    with threadpool_limits(limits=1, user_api="blas"):
        for cell in cells:
            landmark = int(nearest[cell[0], 0])
            candidates = by_landmark[starts[landmark] : starts[landmark + 1]] // nearest.shape[1]
            for start in range(0, len(cell), _QUERIES):
                queries = cell[start : start + _QUERIES]
                found.append(_similar(vectors, queries, candidates, threshold, max_neighbours))
    pairs = np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _similar(
    vectors: Vectors, rows: Int64Array, candidates: Int64Array, threshold: float, max_neighbours: int
) -> Int64Array:
    """Pairs (p, 2) of one of ``rows`` with one of ``candidates``, the nearest ``max_neighbours`` a row."""
    queries = vectors.rows(rows)
    left, right, similarity = [], [], []
    for start in range(0, len(candidates), _CANDIDATES):
        block = candidates[start : start + _CANDIDATES]
        scores = queries @ vectors.rows(block).T
        scores[rows[:, None] == block[None, :]] = -np.inf
        at, of = np.nonzero(scores >= threshold)
        left.append(at)
        right.append(block[of])
        similarity.append(scores[at, of])
    at, other = np.concatenate(left), np.concatenate(right)
    order = np.lexsort((other, -np.concatenate(similarity), at))
    at, other = at[order], other[order]
    rank = np.arange(len(at)) - np.searchsorted(at, at, side="left")
    kept = rank < max_neighbours
    return np.stack([rows[at[kept]], other[kept]], axis=1)


def same_question(first: str, second: str) -> bool:
    """Whether every content word of the prompt with fewer of them is in the other prompt."""
    a, b = (frozenset(_words(text)) - _stop_words() for text in (first, second))
    # Prompts of stop words and signs alone ("Why?") are compared as they are.
    return first.split() == second.split() if not a or not b else a <= b or b <= a


def responses_agree(first: str, second: str) -> bool:
    """Whether every word of the shorter response is in the longer one, and both or neither deny."""
    a, b = (frozenset(_words(text)) for text in (first, second))
    denials = [any(word in _NEGATIONS or word.endswith(("n't", "n’t")) for word in words) for words in (a, b)]
    return denials[0] == denials[1] and (a <= b or b <= a)


def _words(text: str) -> list[str]:
    """Words, numbers and signs of operation in lower case; sentence marks left out."""
    return [word for word in _WORD.findall(text.lower()) if word not in _SENTENCE_MARKS]


_SENTENCE_MARKS = frozenset(".,;:!?\"'`’“”()[]{}…")


# What is kept


@dataclass(frozen=True)
class Conflicts:
    """Pairs of documents about the same question: ``pairs`` (p, 2) and whether they ``agree`` (p,)."""

    pairs: Int64Array
    agree: npt.NDArray[np.bool_]


def find_conflicts(pairs: Int64Array, prompts: Sequence[str], responses: Sequence[str]) -> Conflicts:
    """Those of the near-duplicate ``pairs`` (p, 2) that ask the same, and whether their responses agree.

    ``pairs`` index ``prompts`` and ``responses`` (m,).
    """
    same = [place for place, (i, j) in enumerate(pairs.tolist()) if same_question(prompts[i], prompts[j])]
    kept = pairs[same]
    agree = [responses_agree(responses[i], responses[j]) for i, j in kept.tolist()]
    return Conflicts(kept, np.asarray(agree, dtype=np.bool_))


def left_out(conflicts: Conflicts, values: FloatArray, ids: UInt64Array) -> Int8Array:
    """Why each document (n,) is left out: CONSISTENT (it is kept), DUPLICATE or CONFLICT.

    Documents are taken by the number of others that agree with them, then by value (n,), then by id, and one is
    left out if a document about the same question was taken before: a maximal independent set. Conflict goes
    before duplicate.
    """
    reasons = np.full(len(values), CONSISTENT, dtype=np.int8)
    support = np.bincount(conflicts.pairs[conflicts.agree].ravel(), minlength=len(values))
    neighbours: defaultdict[int, list[tuple[int, bool]]] = defaultdict(list)
    for (i, j), agree in zip(conflicts.pairs.tolist(), conflicts.agree.tolist(), strict=True):
        neighbours[i].append((j, agree))
        neighbours[j].append((i, agree))
    nodes = np.fromiter(neighbours, dtype=np.int64, count=len(neighbours))
    taken: set[int] = set()
    for node in nodes[np.lexsort((ids[nodes], -values[nodes], -support[nodes]))].tolist():
        before = [agree for other, agree in neighbours[node] if other in taken]
        if not before:
            taken.add(node)
        else:
            reasons[node] = DUPLICATE if all(before) else CONFLICT
    return reasons


# The published concept graph


def rake_phrases(text: str) -> frozenset[str]:
    """Candidate phrases of RAKE (Rose et al., 2010): runs of words between stop words and marks."""
    phrases, run = set(), list[str]()
    for word in [*_WORD.findall(text.lower()), "."]:
        if word in _stop_words() or not word[0].isalnum():
            if run:
                phrases.add(" ".join(run))
            run = []
        else:
            run.append(word)
    return frozenset(phrases)


class ConceptGraph:
    """The concept consistency graph as published: vertices are concepts, edges concepts of one document."""

    def __init__(self) -> None:
        self._edges: defaultdict[str, set[str]] = defaultdict(set)

    def accept(self, concepts: frozenset[str]) -> bool:
        """Add a document's concepts, unless two of them are known and have never come together."""
        known = [concept for concept in sorted(concepts) if concept in self._edges]
        if any(second not in self._edges[first] for first, second in combinations(known, 2)):
            return False
        for concept in concepts:
            self._edges[concept] |= concepts
        return True
