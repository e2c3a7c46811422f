"""Building a BM25 index: texts in row order to sorted postings on disk, in bounded memory.

Texts are counted in runs. A run is the postings of some consecutive rows, sorted by term, written behind the runs
before it. The runs are then merged, one part of the terms' hash space after the other. The rows of a run are all
behind those of the run before, so merging the postings of a term is putting them one behind the other.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.errors import DataError
from mixwright.hashing import UInt64Array
from mixwright.indexes.bm25_terms import hash_terms, terms

TERMS_FILE = "terms.npy"
OFFSETS_FILE = "offsets.npy"
ROWS_FILE = "rows.npy"
FREQUENCIES_FILE = "frequencies.npy"
LENGTHS_FILE = "lengths.npy"

RUN_TERMS = 1 << 24
"""Terms, with repeats, that are counted in memory before they are written as a run."""

PART_POSTINGS = 1 << 24
"""Postings that are merged at once, about: a part holds all postings of each of its terms."""

MOST_ROWS = 1 << 32
"""Row numbers have 32 bits."""

_MOST_ENTRIES = 1 << 20
_MOST_CHARACTERS = 1 << 26
_LONGEST_REMEMBERED = 64

Int64Array = npt.NDArray[np.int64]
UInt32Array = npt.NDArray[np.uint32]


def write_bm25(batches: Iterable[Sequence[str]], folder: Path) -> None:
    """Write the index of some texts, one a row in their order, as .npy files into ``folder``.

    The files of t terms, p postings and n rows; postings are sorted by term, then by row:

    - ``terms`` (t,) uint64: hashes of the terms, rising;
    - ``offsets`` (t + 1,) int64: postings of term i begin at offset i and end before offset i + 1;
    - ``rows`` (p,) uint32 and ``frequencies`` (p,): rows that have the term, and how often, in the smallest of
      uint8, uint16 and uint32 that holds the largest;
    - ``lengths`` (n,) uint32: terms of each row, with repeats.

    The same texts give the same bytes however they are batched. Memory and disk: docs/bm25.md. Raises DataError
    for more rows than 32 bits can number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="runs-", dir=folder) as scratch:
        with _RunWriter(Path(scratch)) as runs, ArrayWriter(folder / LENGTHS_FILE, np.uint32) as lengths:
            for run_lengths, run in _count(batches):
                lengths.append(run_lengths)
                runs.append(run)
        _merge(Path(scratch), runs.sizes, folder, _smallest_type(runs.most_frequent))


class ArrayWriter:
    """A one-dimensional .npy file that is written piece by piece, with the bytes of ``np.save`` of the whole."""

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._file = path.open("wb")
        self._n_values = 0
        self._write_header()

    def append(self, values: npt.NDArray[Any]) -> None:
        """Write ``values`` (n,) behind what is there."""
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self._n_values += len(values)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, *_: object) -> None:
        # NumPy leaves room for any length in a header, so it can be written again now that the length is known.
        with closing(self._file):
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        described = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": described, "fortran_order": False, "shape": (self._n_values,)}
        np.lib.format.write_array_header_1_0(self._file, header)


class _Run(NamedTuple):
    """Postings of consecutive rows, or a part of them: ``terms`` (t,), the number of ``postings`` (t,) that each
    has, and of the postings (p,) the ``rows`` and ``frequencies``."""

    terms: UInt64Array
    postings: UInt32Array
    rows: UInt32Array
    frequencies: UInt32Array


class _Vocabulary(dict[str, tuple[int, ...]]):
    """Chunk of a text without white space → positions of its terms in the order in which they first came.

    Most chunks come again and again, so that few have to be analysed. A long one rarely does: it is not kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self._positions: dict[str, int] = {}
        self._hashes = np.empty(0, np.uint64)
        self._n_characters = 0

    def __missing__(self, chunk: str) -> tuple[int, ...]:
        positions = self._positions
        found = tuple([positions.setdefault(term, len(positions)) for term in terms(chunk)])
        self._n_characters += len(chunk)
        if len(chunk) <= _LONGEST_REMEMBERED:
            self[chunk] = found
        return found

    @property
    def full(self) -> bool:
        """Whether it has grown to the memory that it may take."""
        entries = max(len(self), len(self._positions))
        return entries >= _MOST_ENTRIES or self._n_characters >= _MOST_CHARACTERS

    def hashes(self) -> UInt64Array:
        """Hashes of the terms, by position."""
        new = list(islice(self._positions, len(self._hashes), None))
        self._hashes = np.concatenate([self._hashes, hash_terms(new)])
        return self._hashes


def _count(batches: Iterable[Sequence[str]]) -> Iterator[tuple[UInt32Array, _Run]]:
    """Lengths of rows and a run of their postings, with about RUN_TERMS terms unless the vocabulary is full."""
    vocabulary, positions, lengths = _Vocabulary(), array("I"), array("I")
    first_row = 0
    for text in chain.from_iterable(batches):
        if first_row + len(lengths) >= MOST_ROWS:
            raise DataError(f"a shard has more than {MOST_ROWS:,} texts: build more shards")
        before = len(positions)
        positions.extend(chain.from_iterable(map(vocabulary.__getitem__, text.split())))
        lengths.append(len(positions) - before)
        if len(positions) >= RUN_TERMS or vocabulary.full:
            yield _counted(vocabulary, positions, lengths, first_row)
            first_row += len(lengths)
            positions, lengths = array("I"), array("I")
            if vocabulary.full:
                vocabulary = _Vocabulary()
    yield _counted(vocabulary, positions, lengths, first_row)


def _counted(
    vocabulary: _Vocabulary, positions: array[int], lengths: array[int], first_row: int
) -> tuple[UInt32Array, _Run]:
    """The lengths of the rows from ``first_row``, which have their terms at ``positions``, and their postings."""
    hashes, ranks = np.unique(vocabulary.hashes(), return_inverse=True)
    row_lengths = np.array(lengths, dtype=np.uint32)
    # One key sorts by term, then by row; equal keys are one term, again and again in one row.
    keys = ranks.astype(np.uint64)[np.frombuffer(positions, dtype=np.uint32)] << np.uint64(32)
    keys |= np.repeat(np.arange(first_row, first_row + len(lengths), dtype=np.uint64), row_lengths)
    keys.sort()
    starts = _starts(keys)
    frequencies = np.diff(starts, append=len(keys)).astype(np.uint32)
    keys = keys[starts]
    rows = keys.astype(np.uint32)
    keys >>= np.uint64(32)
    starts = _starts(keys)
    postings = np.diff(starts, append=len(keys)).astype(np.uint32)
    return row_lengths, _Run(hashes[keys[starts]], postings, rows, frequencies)


def _starts(values: UInt64Array) -> Int64Array:
    """Where a value differs from the one before it, the first value included."""
    if not len(values):
        return np.empty(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))


_RUN_FILES = (
    (TERMS_FILE, np.uint64),
    ("postings.npy", np.uint32),
    (ROWS_FILE, np.uint32),
    (FREQUENCIES_FILE, np.uint32),
)


class _RunWriter(ExitStack):
    """Writes runs one behind the other into a file an array, and remembers their sizes."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []
        self.most_frequent = 0
        self._files = [self.enter_context(ArrayWriter(folder / name, kind)) for name, kind in _RUN_FILES]

    def append(self, run: _Run) -> None:
        arrays: tuple[npt.NDArray[Any], ...] = run
        for file, values in zip(self._files, arrays, strict=True):
            file.append(values)
        self.sizes.append((len(run.terms), len(run.rows)))
        self.most_frequent = max(self.most_frequent, int(run.frequencies.max(initial=0)))


def _merge(scratch: Path, sizes: Sequence[tuple[int, int]], folder: Path, kind: npt.DTypeLike) -> None:
    """Merge the runs in ``scratch``, each of ``sizes`` (terms, postings), to the index."""
    runs = _open_runs(scratch, sizes)
    n_postings = sum(len(run.rows) for run in runs)
    with (
        ArrayWriter(folder / TERMS_FILE, np.uint64) as terms_file,
        ArrayWriter(folder / OFFSETS_FILE, np.int64) as offsets_file,
        ArrayWriter(folder / ROWS_FILE, np.uint32) as rows_file,
        ArrayWriter(folder / FREQUENCIES_FILE, kind) as frequencies_file,
    ):
        offsets_file.append(np.zeros(1, np.int64))
        written = 0
        for part in _parts(runs, -(-n_postings // PART_POSTINGS)):
            merged = _merge_part(part)
            terms_file.append(merged.terms)
            offsets_file.append(written + np.cumsum(merged.postings, dtype=np.int64))
            rows_file.append(merged.rows)
            frequencies_file.append(merged.frequencies)
            written += len(merged.rows)


def _open_runs(scratch: Path, sizes: Sequence[tuple[int, int]]) -> list[_Run]:
    whole = [np.asarray(np.load(scratch / name, mmap_mode="r")) for name, _ in _RUN_FILES]
    runs = []
    first_term = first_posting = 0
    for n_terms, n_postings in sizes:
        of_terms = slice(first_term, first_term + n_terms)
        of_postings = slice(first_posting, first_posting + n_postings)
        runs.append(_Run(whole[0][of_terms], whole[1][of_terms], whole[2][of_postings], whole[3][of_postings]))
        first_term, first_posting = of_terms.stop, of_postings.stop
    return runs


def _parts(runs: Sequence[_Run], n_parts: int) -> Iterator[list[_Run]]:
    """For each of ``n_parts`` equal parts of the hash space what every run has of it."""
    # uint64 cannot hold the end of the last part, which is that of the run.
    borders = np.array([part * (1 << 64) // n_parts for part in range(1, n_parts)], dtype=np.uint64)
    ends = []
    for run in runs:
        of_terms = np.concatenate([[0], np.searchsorted(run.terms, borders), [len(run.terms)]])
        of_postings = np.concatenate([[0], np.cumsum(run.postings, dtype=np.int64)])[of_terms]
        ends.append((of_terms, of_postings))
    for part in range(n_parts):
        found = []
        for run, (of_terms, of_postings) in zip(runs, ends, strict=True):
            here, there = slice(*of_terms[part : part + 2]), slice(*of_postings[part : part + 2])
            found.append(_Run(run.terms[here], run.postings[here], run.rows[there], run.frequencies[there]))
        yield found


def _merge_part(runs: Sequence[_Run]) -> _Run:
    """The runs' postings together, of each term in the order of the runs."""
    merged, term_of = np.unique(np.concatenate([run.terms for run in runs]), return_inverse=True)
    postings = np.concatenate([run.postings for run in runs]).astype(np.int64)
    totals = np.zeros(len(merged), np.int64)
    np.add.at(totals, term_of, postings)
    free = np.cumsum(totals) - totals
    rows, frequencies = np.empty(totals.sum(), np.uint32), np.empty(totals.sum(), np.uint32)
    first = 0
    for run in runs:
        terms_here = term_of[first : first + len(run.terms)]
        first += len(run.terms)
        counts = run.postings.astype(np.int64)
        # Posting i of the run goes where its term's free room begins, behind those of its term before it.
        places = np.repeat(free[terms_here] - (np.cumsum(counts) - counts), counts) + np.arange(len(run.rows))
        rows[places], frequencies[places] = run.rows, run.frequencies
        free[terms_here] += counts
    return _Run(merged, totals.astype(np.uint32), rows, frequencies)


def _smallest_type(largest: int) -> npt.DTypeLike:
    return next(kind for kind in (np.uint8, np.uint16, np.uint32) if largest <= np.iinfo(kind).max)
