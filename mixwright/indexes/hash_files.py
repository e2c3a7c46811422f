"""Records spread over files by a hash: equal hashes meet in one file, and one file at a time is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

_FILE_BYTES = 32 << 20
_MOST_FILES = 4096
_BUFFER_BYTES = 16 << 20


class HashFiles:
    """Takes records of ``dtype`` in any order; ``folder`` is created.

    ``n_records`` is about how many there will be: it sets the number of files, for 32 MiB each.
    """

    def __init__(self, folder: Path, dtype: npt.DTypeLike, n_records: int) -> None:
        folder.mkdir()
        self._folder = folder
        self._dtype = np.dtype(dtype)
        wanted = min(n_records * self._dtype.itemsize // _FILE_BYTES, _MOST_FILES)
        self._bits = max(int(wanted).bit_length(), 1)
        self._buffer: list[tuple[UInt64Array, npt.NDArray[Any]]] = []
        self._buffered = 0

    def add(self, hashes: UInt64Array, records: npt.NDArray[Any]) -> None:
        """Add records (m,) with their hashes (m,), which are even in their upper bits."""
        self._buffer.append((hashes >> np.uint64(64 - self._bits), records))
        self._buffered += len(records)
        if self._buffered * self._dtype.itemsize >= _BUFFER_BYTES:
            self._flush()

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """The records of one file after the other, each (m,)."""
        self._flush()
        for path in sorted(self._folder.iterdir()):
            yield np.fromfile(path, self._dtype)

    def _flush(self) -> None:
        if not self._buffer:
            return
        files = np.concatenate([each for each, _ in self._buffer]).astype(np.int64)
        records = np.concatenate([each for _, each in self._buffer])
        self._buffer, self._buffered = [], 0
        order = np.argsort(files, kind="stable")
        ends = np.cumsum(np.bincount(files, minlength=1 << self._bits))
        for number, part in enumerate(np.split(records[order], ends[:-1])):
            if len(part):
                with (self._folder / f"{number:04d}").open("ab") as sink:
                    part.tofile(sink)
