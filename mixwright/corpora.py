"""Reading a corpus: whole columns, ranges of rows, and single rows in any order.

Parquet is made for scans; a mixture is read in shuffled order, where each row would cost a decompressed row
group. ``take`` therefore reads from an uncompressed Arrow copy of the shards, made at the first use under
``HOME/cache`` and opened by memory map: the operating system's page cache holds what is hot, and deleting the
copy loses nothing.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mixwright.errors import ConfigError, DataError
from mixwright.schemas.documents import DOCUMENT_COLUMNS
from mixwright.schemas.manifests import CorpusManifest
from mixwright.store import Store
from mixwright.templates import fill_templates, template_fields

Int64Array = npt.NDArray[np.int64]


_HEAD_ROWS = 256
"""Rows of a shard that show which fields documents have."""


class Corpus:
    """A published corpus: ``manifest`` and the rows behind it."""

    def __init__(self, manifest: CorpusManifest, directory: Path, cache: Path) -> None:
        self.manifest = manifest
        self.directory = directory
        self._cache = cache / "rows"
        self._tables: dict[int, pa.Table] = {}
        self._selected: dict[tuple[int, tuple[str, ...]], pa.Table] = {}
        self._ends: dict[tuple[int, str], Int64Array] = {}

    @classmethod
    def open(cls, store: Store, reference: str) -> Corpus:
        """Open a corpus by reference; raises NotFoundError."""
        manifest = store.manifest(reference, "corpus")
        if not isinstance(manifest, CorpusManifest):
            raise DataError(f"{reference} is not a corpus: name a corpus")
        return cls(manifest, store.directory(manifest), store.home / "cache")

    def __len__(self) -> int:
        return self.manifest.n_documents

    @cached_property
    def shards(self) -> list[Path]:
        """Paths of the Parquet shards, in row order."""
        return [self.directory / entry.path for entry in self.manifest.shards]

    @cached_property
    def _offsets(self) -> Int64Array:
        """Row number at which each shard starts, then the number of rows; shape (shards + 1,)."""
        rows = [entry.n_rows or 0 for entry in self.manifest.shards]
        return np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)

    def scan(self) -> pl.LazyFrame:
        """All rows in row order, lazily."""
        return pl.scan_parquet(self.shards)

    @cached_property
    def metadata_fields(self) -> list[str]:
        """The keys of the documents' metadata, as the start of every shard has them, sorted."""
        heads = [
            next(file.iter_batches(batch_size=_HEAD_ROWS, columns=["metadata"]), None)
            for file in map(pq.ParquetFile, self.shards)
        ]
        return metadata_fields(pa.Table.from_batches([head for head in heads if head is not None]))

    def rows(self, offset: int, length: int) -> pa.Table:
        """Rows ``offset … offset + length - 1`` in row order (fewer at the end)."""
        stop = min(offset + max(length, 0), len(self))
        return self.take(np.arange(min(offset, stop), stop, dtype=np.int64))

    def take(self, rows: Int64Array, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of the given numbers, in the given order, repeats allowed; all columns or only the named ones.

        ``rows`` is (n,) with values in [0, len(self)); raises DataError outside of it.
        """
        if len(rows) == 0:
            empty = pa.Table.from_batches([], self._schema)
            return empty if columns is None else empty.select(columns)
        self._check(rows)
        if columns is None:
            return take_rows(self._offsets, rows, self._table)
        return take_rows(self._offsets, rows, lambda shard: self._columns_of(shard, tuple(columns)))

    def text_bytes(self, rows: Int64Array, columns: Sequence[str] = ("text",)) -> Int64Array:
        """Bytes of UTF-8 in these columns together of the given rows (n,): no text is read for it."""
        self._check(rows)
        sizes = np.zeros(len(rows), dtype=np.int64)
        for shard, places, local in _by_table(self._offsets, rows):
            for column in columns:
                ends = self._ends_of(shard, column)
                sizes[places] += ends[local + 1] - ends[local]
        return sizes

    def _check(self, rows: Int64Array) -> None:
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise DataError(f"row {int(rows.max())} of {self.manifest.ref}: it has {len(self)} rows")

    @cached_property
    def _schema(self) -> pa.Schema:
        return pq.read_schema(self.shards[0])

    def _columns_of(self, shard: int, columns: tuple[str, ...]) -> pa.Table:
        if (shard, columns) not in self._selected:
            self._selected[shard, columns] = self._table(shard).select(columns)
        return self._selected[shard, columns]

    def _ends_of(self, shard: int, column: str) -> Int64Array:
        """Where each value of a large_string column of a shard ends, behind a 0; mapped like the values."""
        if (shard, column) not in self._ends:
            (chunk,) = self._table(shard)[column].chunks
            self._ends[shard, column] = np.frombuffer(chunk.buffers()[1], dtype=np.int64)[chunk.offset :]
        return self._ends[shard, column]

    def _table(self, shard: int) -> pa.Table:
        """A shard as one memory-mapped Arrow batch."""
        if shard not in self._tables:
            # By the shard's checksum: two corpora of one fingerprint may be cut into different shards.
            path = self._cache / f"{self.manifest.shards[shard].sha256}.arrow"
            if not path.exists():
                with _alone(path):
                    if not path.exists():
                        _write_arrow(pq.read_table(self.shards[shard]), path)
            # Kept open for the life of this object; a mapped file costs address space, not memory.
            self._tables[shard] = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        return self._tables[shard]


def metadata_fields(documents: pa.Table) -> list[str]:
    """The keys of the metadata of document rows, sorted."""
    decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
    return sorted({key for each in documents["metadata"].to_pylist() for key in decode(each)})


def check_template(corpus: Corpus, template: str) -> None:
    """Raise ConfigError for a malformed template, and for one that names a field no document has."""
    known = {*DOCUMENT_COLUMNS, *corpus.metadata_fields} if len(corpus) else set()
    if unknown := [name for name in template_fields(template) if known and name not in known]:
        raise ConfigError(
            f"template {template!r}: documents of {corpus.manifest.ref} have no field {unknown[0]!r}: name one of "
            f"{', '.join(sorted(known))}"
        )


def template_texts(frame: pl.LazyFrame, template: str) -> list[str]:
    """What a template makes of each document row of ``frame``; "" where its fields are missing or blank."""
    names = template_fields(template)
    values = frame.select([field_expression(name).alias(name) for name in names]).collect()
    return [text or "" for text in fill_templates(template, values)]


def id_bits(column: str = "id") -> pl.Expr:
    """The first 64 bits of a document's id: what selections and schedules are keyed by."""
    return pl.col(column).str.head(16).str.to_integer(base=16, dtype=pl.UInt64)


def field_expression(field: str) -> pl.Expr:
    """A document field as strings: a column, or a key of the metadata object; null where it is missing."""
    if field in DOCUMENT_COLUMNS:
        return pl.col(field).cast(pl.String)
    path = "$['" + field.replace("\\", "\\\\").replace("'", "\\'") + "']"
    return pl.col("metadata").str.json_path_match(path).alias(field)


def take_rows(
    offsets: Int64Array,
    rows: Int64Array,
    table_of: Callable[[int], pa.Table],
    finish: Callable[[pa.Table], pa.Table] = lambda table: table,
) -> pa.Table:
    """The given rows (m,), m > 0, of tables that are numbered through, in the given order, repeats allowed.

    ``offsets`` (tables + 1,) are the row numbers at which the tables start; ``finish`` is done to what was taken
    of each table, before the parts are joined.
    """
    parts, order = [], []
    for number, places, local in _by_table(offsets, rows):
        parts.append(finish(table_of(number).take(pa.array(local))))
        order.append(places)
    if len(parts) == 1:
        return parts[0]
    return _concat(parts).take(pa.array(np.argsort(np.concatenate(order))))


def _by_table(offsets: Int64Array, rows: Int64Array) -> Iterator[tuple[int, Int64Array, Int64Array]]:
    """Each table that has some of the rows (m,): which of them, in their order, and their numbers inside it."""
    number_of = np.searchsorted(offsets, rows, side="right") - 1
    order = np.argsort(number_of, kind="stable")
    numbers, begins = np.unique(number_of[order], return_index=True)
    for number, places in zip(numbers.tolist(), np.split(order, begins[1:]), strict=True):
        yield number, places, rows[places] - offsets[number]


def _concat(tables: list[pa.Table]) -> pa.Table:
    """One chunk a column, so that a following take is a gather."""
    return pa.concat_tables(tables).combine_chunks()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other thread or process makes this file: each copy of a shard takes its memory and time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write_arrow(table: Any, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
