"""The rows of a datastore: passages and their vectors, in files that are mapped into memory.

A piece is what was made of one shard of a corpus: an uncompressed Arrow file of passages and a .npy file of
vectors. Columns that repeat from passage to passage (the document's id, its metadata …) are dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from mixwright.corpora import Int64Array, field_expression, id_bits, take_rows
from mixwright.errors import AlignmentError, DataError
from mixwright.hashing import UInt64Array
from mixwright.indexes.datastores.fields import PieceFields
from mixwright.indexes.vectors import StackedVectors
from mixwright.schemas.documents import PASSAGE_SCHEMA

PASSAGES_FOLDER = "passages"
VECTORS_FOLDER = "vectors"

_DICTIONARIES = ("source", "domain", "url", "metadata", "document_id")
_PIECE_SCHEMA = pa.schema(
    [
        *(
            field.with_type(pa.dictionary(pa.int32(), field.type)) if field.name in _DICTIONARIES else field
            for field in PASSAGE_SCHEMA
        ),
        # The first 64 bits of the two ids: what samples, clusters and deletions go by.
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("document_key", pa.uint64(), nullable=False),
    ]
)


def piece_name(number: int) -> str:
    """The name of a piece's files, without suffix."""
    return f"part-{number:05d}"


def write_passages(passages: pa.Table, file: BinaryIO) -> None:
    """Write passages, a table of PASSAGE_SCHEMA, as a piece: one Arrow batch."""
    keys = pl.LazyFrame(pl.from_arrow(passages.select(["id", "document_id"]))).select(
        key=id_bits(), document_key=id_bits("document_id")
    )
    columns = {name: passages[name] for name in PASSAGE_SCHEMA.names}
    columns |= {name: columns[name].combine_chunks().dictionary_encode() for name in _DICTIONARIES}
    columns |= {name: values.to_arrow() for name, values in keys.collect().to_dict().items()}
    table = pa.table([columns[field.name] for field in _PIECE_SCHEMA], schema=_PIECE_SCHEMA)
    with pa.ipc.new_file(file, _PIECE_SCHEMA) as writer:
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)


class Pieces:
    """Passages and vectors of a datastore by row number, opened by memory map."""

    def __init__(self, directory: Path, lengths: Sequence[int], dim: int) -> None:
        """``lengths`` are the passages of each piece, ``dim`` the coordinates of a vector."""
        self.directory = directory
        self.dim = dim
        self.offsets: Int64Array = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._tables: dict[int, pa.Table] = {}
        self._fields: dict[int, PieceFields] = {}

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def vectors(self, start: int, stop: int) -> StackedVectors:
        """The vectors of rows ``start … stop - 1``, numbered from 0; raises DataError for a damaged file."""
        arrays = [self._open_vectors(piece)[begin:end] for piece, begin, end in self._spans(start, stop)]
        return StackedVectors(arrays, self.dim)

    def take(self, rows: Int64Array, columns: Sequence[str] | None = None) -> pa.Table:
        """Passages (m,) of the given rows (m,), in that order, with these columns (default: PASSAGE_SCHEMA's)."""
        names = list(columns or PASSAGE_SCHEMA.names)
        if len(rows) == 0:
            return _plain(_PIECE_SCHEMA.empty_table().select(names))
        return take_rows(self.offsets, rows, lambda piece: self._table(piece).select(names), _plain)

    def fields(self, rows: Int64Array, columns: tuple[str, ...]) -> list[dict[str, Any]]:
        """The values (m,) of some columns for a few rows (m,), in that order: faster than ``take`` for those."""
        numbers = np.searchsorted(self.offsets, rows, side="right") - 1
        local = (rows - self.offsets[numbers]).tolist()
        found = []
        for piece, row in zip(numbers.tolist(), local, strict=True):
            if piece not in self._fields:
                self._fields[piece] = PieceFields(self._table(piece))
            found.append(self._fields[piece].row(row, columns))
        return found

    def rows(self, offset: int, length: int) -> pa.Table:
        """Passages ``offset … offset + length - 1`` in row order (fewer at the end)."""
        stop = min(offset + max(length, 0), len(self))
        return self.take(np.arange(min(offset, stop), stop, dtype=np.int64))

    def frame(self, start: int, stop: int, columns: Sequence[str]) -> pl.DataFrame:
        """Rows ``start … stop - 1`` with these fields: columns of a passage, or keys of its metadata, as text."""
        wanted = [pl.col(name) if name in _PIECE_SCHEMA.names else field_expression(name) for name in columns]
        read = sorted({name if name in _PIECE_SCHEMA.names else "metadata" for name in columns})
        parts = [
            pl.LazyFrame(pl.from_arrow(_plain(part))).select(wanted).collect()
            for part in self._parts(start, stop, read)
        ]
        return pl.concat(parts)

    def keys(self, start: int, stop: int, column: str = "key") -> UInt64Array:
        """The first 64 bits of the passages' ids, or of their documents' (``document_key``), (stop - start,)."""
        parts = [part[column].to_numpy() for part in self._parts(start, stop, [column])]
        return np.concatenate([np.empty(0, np.uint64), *parts])

    def texts(self, start: int, stop: int) -> list[str]:
        """The texts of rows ``start … stop - 1``."""
        return [text for part in self._parts(start, stop, ["text"]) for text in part["text"].to_pylist()]

    def _parts(self, start: int, stop: int, columns: Sequence[str]) -> list[pa.Table]:
        parts = [
            self._table(piece).select(list(columns)).slice(begin, end - begin)
            for piece, begin, end in self._spans(start, stop)
        ]
        return parts or [_PIECE_SCHEMA.empty_table().select(list(columns))]

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The pieces that have rows ``start … stop - 1``, and which of their own rows those are."""
        first, last = np.searchsorted(self.offsets, [start, max(stop - 1, start)], side="right") - 1
        for piece in range(int(first), min(int(last) + 1, len(self.offsets) - 1)):
            low, high = int(self.offsets[piece]), int(self.offsets[piece + 1])
            yield piece, max(start, low) - low, min(stop, high) - low

    def _table(self, piece: int) -> pa.Table:
        if piece not in self._tables:
            path = self.directory / PASSAGES_FOLDER / f"{piece_name(piece)}.arrow"
            try:
                table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            except (OSError, pa.ArrowInvalid) as error:
                raise DataError(
                    f"{path.name} is missing or damaged: restore it or build the store again"
                ) from error
            if table.num_rows != self.offsets[piece + 1] - self.offsets[piece]:
                raise AlignmentError(f"{path.name} has {table.num_rows} passages, the manifest says otherwise")
            self._tables[piece] = table
        return self._tables[piece]

    def _open_vectors(self, piece: int) -> npt.NDArray[Any]:
        path = self.directory / VECTORS_FOLDER / f"{piece_name(piece)}.npy"
        try:
            vectors: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(_damaged(path)) from error
        if vectors.shape != (self.offsets[piece + 1] - self.offsets[piece], self.dim):
            raise AlignmentError(
                f"{path.name} has shape {vectors.shape}, the manifest says otherwise: build the store again"
            )
        return vectors


def _damaged(path: Path) -> str:
    return f"{path.name} is missing or damaged: restore it or build the store again"


def _plain(table: pa.Table) -> pa.Table:
    """The table with its dictionaries written out: those of different pieces differ."""
    columns = [
        pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)
        if pa.types.is_dictionary(column.type)
        else column
        for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)
