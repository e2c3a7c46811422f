"""Single rows out of a mapped piece, fast: hits lie scattered, and Arrow's own ``take`` is made for many rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

Reader = Callable[[int], Any]
"""The value of one row."""


class PieceFields:
    """The fields of the rows of one piece, a table of one chunk; columns are set up when first read."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._readers: dict[tuple[str, ...], list[tuple[str, Reader]]] = {}

    def row(self, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
        """The values of a row, by column."""
        readers = self._readers.get(columns)
        if readers is None:
            readers = [(column, _reader_of(self._table[column].chunk(0))) for column in columns]
            self._readers[columns] = readers
        return {column: read(row) for column, read in readers}


def _reader_of(array: Any) -> Reader:
    """How one value of an Arrow array is read: numbers, strings, or a dictionary of strings."""
    if pa.types.is_dictionary(array.type):
        codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        word = cache(_reader_of(array.dictionary))
        return lambda row: None if codes[row] < 0 else word(int(codes[row]))
    if array.null_count:
        return lambda row: array[row].as_py()
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        _, offsets, data = array.buffers()
        width = np.int32 if pa.types.is_string(array.type) else np.int64
        ends = np.frombuffer(offsets, dtype=width, count=array.offset + len(array) + 1)[array.offset :]
        characters = memoryview(data) if data is not None else memoryview(b"")
        return lambda row: str(characters[ends[row] : ends[row + 1]], "utf-8")
    numbers = array.to_numpy()
    return lambda row: numbers[row].item()
