"""Exact duplicates, found on disk: which rows repeat the id of an earlier one.

Ids are spread over 256 files by their first byte, so that equal ids meet in one file, and one file at a time
is sorted. On disk this takes 24 bytes a row and one byte for the answer; in memory, besides a fixed buffer, a
few times 24 bytes for each row of the largest file, which is the 256th part of all rows since ids are hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

_BUCKETS = 256
_BUFFER_ROWS = 1 << 18
_RECORD = np.dtype([("high", ">u8"), ("low", ">u8"), ("row", "<i8")])


class DuplicateFinder:
    """Takes ids in row order; ``folder`` is created, and may be removed when the answer is no longer needed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._n_rows = 0
        self._buffer: list[npt.NDArray[np.void]] = []
        self._buffered = 0

    def add(self, ids: Sequence[str]) -> None:
        """Add the ids (32 hexadecimal digits each) of the next rows."""
        records = np.empty(len(ids), _RECORD)
        halves = np.frombuffer(bytes.fromhex("".join(ids)), dtype=">u8").reshape(-1, 2)
        records["high"], records["low"] = halves[:, 0], halves[:, 1]
        records["row"] = np.arange(self._n_rows, self._n_rows + len(ids))
        self._n_rows += len(ids)
        self._buffer.append(records)
        self._buffered += len(ids)
        if self._buffered >= _BUFFER_ROWS:
            self._flush()

    def repeats(self) -> npt.NDArray[np.bool_]:
        """(rows,): True where a row's id is that of an earlier row. The array is mapped from a file."""
        self._flush()
        answer = np.memmap(self._folder / "repeats", np.bool_, mode="w+", shape=(self._n_rows,))
        for path in sorted(self._folder.glob("bucket-*")):
            records = np.fromfile(path, _RECORD)
            order = np.lexsort((records["row"], records["low"], records["high"]))
            high, low = records["high"][order], records["low"][order]
            again = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
            answer[records["row"][order[1:][again]]] = True
        return answer

    def _flush(self) -> None:
        if not self._buffer:
            return
        records = np.concatenate(self._buffer)
        self._buffer, self._buffered = [], 0
        buckets = (records["high"] >> np.uint64(56)).astype(np.int64)
        order = np.argsort(buckets, kind="stable")
        ends = np.cumsum(np.bincount(buckets, minlength=_BUCKETS))
        for bucket, part in enumerate(np.split(records[order], ends[:-1])):
            if len(part):
                with (self._folder / f"bucket-{bucket:03d}").open("ab") as sink:
                    part.tofile(sink)
