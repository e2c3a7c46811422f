"""Texts as sets of hashes, and sketches of sets: which of many sets to compare with each other.

By ``exact`` a text is its normalized form, by ``minhash`` its runs of five words. MinHash (Broder, On the
resemblance and containment of documents, 1997) with banding (Leskovec, Rajaraman and Ullman, Mining of Massive
Datasets, section 3.4): sets that are alike agree in many columns of their signatures, and so in all columns of at
least one band.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.hashing import mix64
from mixwright.indexes.words import Ragged, Runs, UInt64Array, counted_up, hashed_words, normalized, offsets_of

TextMethod = Literal["exact", "minhash"]

SHINGLE_WORDS = 5
PERMUTATIONS = 128

_ROWS_PER_BAND = (8, 4, 2, 1)
_MOST_MISSED = 1e-3
"""Pairs at the threshold that may share no band: 5e-8 of them with the usual 32 bands of 4 at 0.8."""

_MOST_COMPARED = 64
_SEED = 0


class Method(NamedTuple):
    """How texts are compared: ``sets`` of texts, ``bands`` (t, n_bands) of sets, and the least similarity.

    Sets that share a band are compared: of up to ``most_compared`` all with all, of more each with one of them.
    A set without elements is like none.
    """

    sets: Callable[[Sequence[str]], Ragged]
    bands: Callable[[Ragged], UInt64Array]
    n_bands: int
    threshold: float
    most_compared: int

    @classmethod
    def of(cls, method: TextMethod, threshold: float) -> Method:
        """The method of that name; ``threshold`` in (0, 1] is for ``minhash``."""
        if method == "exact":
            # Equality is transitive: to compare each text with one other is enough.
            return cls(whole_texts, _first_elements, 1, 1.0, most_compared=1)
        rows = rows_per_band(threshold)
        return cls(
            shingles, lambda sets: _minhash_bands(sets, rows), PERMUTATIONS // rows, threshold, _MOST_COMPARED
        )


def shingles(texts: Sequence[str]) -> Ragged:
    """Hashes of every run of five words of each text; a shorter text is one run, of all its words.

    A text without words is its normalized form, and an empty one has no hash. Repeats are not removed.
    """
    words = hashed_words(texts)
    n_words = np.diff(words.offsets)
    counts = np.where(n_words > 0, np.maximum(n_words - SHINGLE_WORDS + 1, 1), 0)
    starts = counted_up(words.offsets[:-1], counts)
    lengths = np.repeat(np.minimum(n_words, SHINGLE_WORDS), counts)
    values = Runs(words.values).hashes(starts, starts + lengths)
    wordless = np.flatnonzero(n_words == 0).tolist()
    if not wordless:
        return Ragged(values, offsets_of(counts))
    whole = whole_texts([texts[number] for number in wordless])
    places = np.repeat(offsets_of(counts)[wordless], np.diff(whole.offsets))
    counts[wordless] = np.diff(whole.offsets)
    return Ragged(np.insert(values, places, whole.values), offsets_of(counts))


def whole_texts(texts: Sequence[str]) -> Ragged:
    """Two hashes of each text's normalized form (NFKC, casefold, white space collapsed); none of an empty one."""
    forms = [" ".join(normalized(text).split()).encode("utf-8", "surrogatepass") for text in texts]
    digests = b"".join(hashlib.sha256(form).digest()[:16] for form in forms if form)
    counts = np.asarray([2 if form else 0 for form in forms], dtype=np.int64)
    return Ragged(np.frombuffer(digests, dtype="<u8"), offsets_of(counts))


def minhash(sets: Ragged, n_permutations: int = PERMUTATIONS) -> UInt64Array:
    """Signatures (t, n_permutations) of t sets, none of them empty: the smallest value under each hash function.

    Two sets agree in a column with a probability of their Jaccard similarity. The elements are hashes already.
    """
    from rensa import RMinHash

    values, offsets = np.ascontiguousarray(sets.values), np.ascontiguousarray(sets.offsets, dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(values, offsets, n_permutations, _SEED)
    return np.asarray(matrix.to_rows(), dtype=np.uint64).reshape(len(sets.offsets) - 1, n_permutations)


def rows_per_band(threshold: float) -> int:
    """The longest bands of which two sets at the threshold nearly always share one: 4 at 0.8, 8 at 0.95."""
    for rows in _ROWS_PER_BAND:
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= _MOST_MISSED:
            return rows
    return 1


def jaccard(one: UInt64Array, other: UInt64Array) -> float:
    """|A ∩ B| / |A ∪ B| of two sets that are sorted, distinct and not both empty."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _minhash_bands(sets: Ragged, rows: int) -> UInt64Array:
    """The hash (t, bands) of each band of ``rows`` columns of the signatures."""
    signatures = minhash(sets).reshape(len(sets.offsets) - 1, PERMUTATIONS // rows, rows)
    bands: npt.NDArray[np.uint64] = np.zeros(signatures.shape[:2], dtype=np.uint64)
    bands += np.arange(signatures.shape[1], dtype=np.uint64)
    for column in range(rows):
        bands = mix64(bands ^ signatures[:, :, column])
    return bands


def _first_elements(sets: Ragged) -> UInt64Array:
    return sets.values[sets.offsets[:-1]][:, None]
