"""Near-duplicate clusters: texts (or vectors) that are alike are linked, and a cluster is what links connect.

Two texts are linked if the Jaccard similarity of their sets (see ``sketches``) is at least a threshold; sketches
say which pairs to compare, and each of those is compared truly. The texts are read twice. Sketches and pairs go to
files, so that memory is about 30 bytes a text and a fixed rest. Clusters depend on the texts alone, not on their
order: with millions of texts as with a few.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.errors import AlignmentError, DataError
from mixwright.hashing import mix64
from mixwright.indexes.disjoint_sets import DisjointSets
from mixwright.indexes.hash_files import HashFiles
from mixwright.indexes.sketches import Method, TextMethod, jaccard
from mixwright.indexes.words import Ragged, UInt64Array, counted_up, offsets_of
from mixwright.progress import Progress

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
TextBatches = Callable[[], Iterator[Sequence[str]]]
"""Reads all texts in row order, in batches; called twice."""

DEFAULT_JACCARD = 0.8

_MOST_TEXTS = 1 << 32
_PAIRS_AT_A_TIME = 4096
_BAND = np.dtype([("hash", "<u8"), ("row", "<u4")])
_LOW_HALF = np.uint64(0xFFFFFFFF)
_NO_HASHES = np.empty(0, dtype=np.uint64)
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Clusters:
    """The cluster (n,) of each row: the smallest key of its members, shown as 16 hexadecimal digits.

    A row that is like no other has its own key. ``warnings`` say where links may have been missed.
    """

    ids: UInt64Array
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, linked: DisjointSets, keys: UInt64Array, warnings: tuple[str, ...] = ()) -> Clusters:
        """The clusters that the linked rows make; ``keys`` (n,)."""
        roots = linked.all_roots()
        smallest = np.full(len(keys), np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(smallest, roots, keys)
        return cls(smallest[roots], warnings)

    def sizes(self) -> Int64Array:
        """(n,): rows of each row's cluster."""
        _, cluster, counts = np.unique(self.ids, return_inverse=True, return_counts=True)
        return counts[cluster].astype(np.int64)

    def smallest(self, keys: UInt64Array) -> BoolArray:
        """(n,): True for one row of each cluster, that of the smallest key; of several with that key the first."""
        owners = np.flatnonzero(keys == self.ids)
        smallest = np.zeros(len(keys), dtype=np.bool_)
        smallest[owners[np.unique(keys[owners], return_index=True)[1]]] = True
        return smallest

    def repeats(self) -> BoolArray:
        """(n,): True for a row whose cluster has an earlier row."""
        repeats = np.ones(len(self.ids), dtype=np.bool_)
        repeats[np.unique(self.ids, return_index=True)[1]] = False
        return repeats


def near_duplicate_clusters(
    batches: TextBatches,
    keys: UInt64Array,
    folder: Path,
    progress: Progress,
    *,
    method: TextMethod = "minhash",
    threshold: float = DEFAULT_JACCARD,
) -> Clusters:
    """The clusters of n texts that ``batches`` reads; ``keys`` (n,) are the first 64 bits of their ids.

    ``threshold`` in (0, 1] is for ``minhash``. ``folder`` is created, takes about 12 bytes a band and text and 8
    for each element of a set that is compared, and is removed. Raises AlignmentError if there are not n texts,
    DataError for 2³² of them or more.
    """
    if len(keys) >= _MOST_TEXTS:
        raise DataError(f"{len(keys):,} texts are too many to be clustered at once: divide them")
    how = Method.of(method, threshold)
    folder.mkdir(parents=True)
    try:
        bands = _sketch(batches, len(keys), how, folder / "bands", progress)
        pairs, compared = _candidates(bands, keys, how, folder / "pairs")
        sets = _stored_sets(batches, how, compared, folder / "sets", progress)
        linked = _link(pairs, sets, len(keys), how, progress)
        return Clusters.of(linked, keys, _warnings(bands, linked.all_roots(), how))
    finally:
        shutil.rmtree(folder)


# Which pairs to compare


def _sketch(batches: TextBatches, n: int, how: Method, folder: Path, progress: Progress) -> HashFiles:
    """Every text's bands, in files."""
    progress.start("sketch texts", total=n, unit="texts")
    files = HashFiles(folder, _BAND, n * how.n_bands)
    start = 0
    for texts in batches():
        sets = how.sets(texts)
        rows = np.flatnonzero(np.diff(sets.offsets))
        hashes = how.bands(Ragged(sets.values, np.append(sets.offsets[rows], sets.offsets[-1])))
        records = np.empty(hashes.shape, dtype=_BAND)
        records["hash"], records["row"] = hashes, (rows + start)[:, None]
        files.add(hashes.ravel(), records.ravel())
        start += len(texts)
        progress.advance(len(texts))
    if start != n:
        raise AlignmentError(f"{start:,} texts for {n:,} keys: give each text its key")
    return files


class _Groups(NamedTuple):
    """Rows (m,) of one file; group i of g, which share a band, has ``sizes[i]`` of them from ``starts[i]`` on."""

    rows: Int64Array
    starts: Int64Array
    sizes: Int64Array

    @classmethod
    def of(cls, records: npt.NDArray[Any], least: int) -> _Groups:
        """The groups of ``least`` rows or more."""
        order = np.argsort(records["hash"])
        hashes, rows = records["hash"][order], records["row"][order].astype(np.int64)
        starts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1]))
        sizes = np.diff(np.append(starts, len(rows)))
        return cls(rows, starts[sizes >= least], sizes[sizes >= least])

    def where(self, kept: BoolArray) -> _Groups:
        return _Groups(self.rows, self.starts[kept], self.sizes[kept])

    def all_pairs(self) -> Iterator[tuple[Int64Array, Int64Array]]:
        """All pairs of each group, in several portions (m,), (m,)."""
        places = counted_up(self.starts, self.sizes)
        ends = np.repeat(self.starts + self.sizes, self.sizes)
        for distance in range(1, int(self.sizes.max(initial=1))):
            here = places + distance < ends
            places, ends = places[here], ends[here]
            yield self.rows[places], self.rows[places + distance]

    def pairs_with_one(self, keys: UInt64Array) -> tuple[Int64Array, Int64Array]:
        """Each row of a group with that of the smallest key, (m,) and (m,)."""
        group = np.repeat(np.arange(len(self.sizes)), self.sizes)
        rows = self.rows[counted_up(self.starts, self.sizes)]
        rows = rows[np.lexsort((keys[rows], group))]
        return np.repeat(rows[offsets_of(self.sizes)[:-1]], self.sizes), rows


def _candidates(bands: HashFiles, keys: UInt64Array, how: Method, folder: Path) -> tuple[HashFiles, BoolArray]:
    """The pairs to compare (low row · 2³² + high row), in files, and which texts (n,) are in one."""
    files = HashFiles(folder, np.uint64, len(keys) * how.n_bands)
    compared = np.zeros(len(keys), dtype=np.bool_)
    for records in bands:
        groups = _Groups.of(records, least=2)
        small = groups.sizes <= how.most_compared
        for first, second in chain(groups.where(small).all_pairs(), [groups.where(~small).pairs_with_one(keys)]):
            compared[first] = compared[second] = True
            low, high = np.minimum(first, second), np.maximum(first, second)
            pairs = (low << 32 | high).astype(np.uint64)
            files.add(mix64(pairs), pairs)
    return files, compared


# Comparing them


@dataclass(frozen=True)
class _StoredSets:
    """The set of each of ``rows`` (c,), sorted and distinct."""

    rows: Int64Array
    sets: Ragged

    def similar(self, first: Int64Array, second: Int64Array, threshold: float) -> BoolArray:
        """Which pairs of rows (m,), (m,) have a Jaccard similarity of the threshold or more."""
        values, offsets = self.sets
        first, second = np.searchsorted(self.rows, first), np.searchsorted(self.rows, second)
        sizes = np.diff(offsets)
        # The smaller set over the larger is the most that the similarity can be.
        low, high = np.minimum(sizes[first], sizes[second]), np.maximum(sizes[first], sizes[second])
        similar = low >= threshold * high - _ROUNDING
        for pair in np.flatnonzero(similar):
            one = values[offsets[first[pair]] : offsets[first[pair] + 1]]
            other = values[offsets[second[pair]] : offsets[second[pair] + 1]]
            similar[pair] = jaccard(one, other) >= threshold - _ROUNDING
        return np.asarray(similar)


def _stored_sets(
    batches: TextBatches, how: Method, compared: BoolArray, path: Path, progress: Progress
) -> _StoredSets:
    """The sets of the texts (n,) that are compared, in a file."""
    progress.start("read candidates", total=len(compared), unit="texts")
    counts: list[int] = []
    start = 0
    with path.open("wb") as sink:
        for texts in batches():
            used = compared[start : start + len(texts)].tolist()
            sets = how.sets([text for text, wanted in zip(texts, used, strict=True) if wanted])
            distinct = [np.unique(each) for each in np.split(sets.values, sets.offsets[1:-1])] if any(used) else []
            counts += map(len, distinct)
            np.concatenate([_NO_HASHES, *distinct]).tofile(sink)
            start += len(texts)
            progress.advance(len(texts))
    values = np.memmap(path, np.uint64, "r") if counts else _NO_HASHES
    return _StoredSets(np.flatnonzero(compared), Ragged(values, offsets_of(np.asarray(counts, dtype=np.int64))))


def _link(pairs: HashFiles, sets: _StoredSets, n: int, how: Method, progress: Progress) -> DisjointSets:
    """Join the texts of every pair that is similar. Of texts that are joined already there is nothing to learn."""
    linked = DisjointSets(n)
    progress.start("compare candidates", unit="pairs")
    for records in pairs:
        distinct = np.unique(records)
        for start in range(0, len(distinct), _PAIRS_AT_A_TIME):
            block = distinct[start : start + _PAIRS_AT_A_TIME]
            first, second = (block >> np.uint64(32)).astype(np.int64), (block & _LOW_HALF).astype(np.int64)
            apart = linked.roots(first) != linked.roots(second)
            first, second = first[apart], second[apart]
            similar = sets.similar(first, second, how.threshold)
            linked.join(first[similar], second[similar])
            progress.advance(len(block))
    return linked


def _warnings(bands: HashFiles, roots: Int64Array, how: Method) -> tuple[str, ...]:
    """A line if groups that were compared with one member alone hold texts of several clusters."""
    if how.most_compared == 1:
        return ()
    divided = largest = 0
    for records in bands:
        groups = _Groups.of(records, least=how.most_compared + 1)
        for start, size in zip(groups.starts.tolist(), groups.sizes.tolist(), strict=True):
            _, counts = np.unique(roots[groups.rows[start : start + size]], return_counts=True)
            divided += len(counts) > 1
            largest = max(largest, size if len(counts) > 1 else 0)
    if not divided:
        return ()
    return (
        f"{divided:,} groups of texts that share a band of their sketch were too large (up to {largest:,}) to be "
        "compared all with all, and fell into several clusters: some near-duplicates among them may not be linked",
    )
