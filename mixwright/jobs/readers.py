"""Files to rows: every row of a file in order, good or bad, with the line where it starts.

No more than a few MiB, or one row, is held at a time. Parquet has no lines: rows count instead, from 1.
"""

from __future__ import annotations

import csv
import json
import re
import zlib
from collections.abc import Iterator
from itertools import count
from typing import Any, BinaryIO, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from mixwright.errors import DataError
from mixwright.jobs.input_files import Advance, InputFile, open_decompressed, open_stored

MAX_ROW_BYTES = 64 << 20
"""A line, CSV record or text file with more bytes is a bad row."""

_TOO_LONG = f"more than {MAX_ROW_BYTES >> 20} MiB"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DAMAGE = (EOFError, OSError, zlib.error)
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 2048
_SURROGATE = re.compile("[\ud800-\udfff]")


class Row(NamedTuple):
    """A row. ``raw`` is its input, where that is text."""

    line: int
    fields: dict[str, Any]
    raw: bytes | None = None


class BadRow(NamedTuple):
    """A row that cannot be read."""

    line: int
    reason: str
    raw: bytes


class DamagedFileError(DataError):
    """The file cannot be read any further; what was read before is sound."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


def read_rows(file: InputFile, text_field: str, advance: Advance) -> Iterator[Row | BadRow]:
    """The rows of a file. A text file is one row with the one field ``text_field``.

    Blank lines of JSON lines and CSV are no rows. Raises DamagedFileError where the file breaks off or is
    damaged, DataError where the file system fails. ``advance`` is told of the stored bytes as they are read.
    """
    if file.form == "parquet":
        with open_stored(file, advance) as stored:
            yield from _parquet_rows(stored)
        return
    with open_decompressed(file, advance) as stream:
        if file.form == "text":
            yield from _text_row(stream, text_field)
        elif file.form == "jsonl":
            yield from _json_rows(stream)
        else:
            yield from _csv_rows(stream, "\t" if file.form == "tsv" else ",")


# Lines


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Numbered lines with their ends; of a line that is too long, the first MAX_ROW_BYTES + 1 bytes."""
    for number in count(1):
        try:
            line = stream.readline(MAX_ROW_BYTES + 1)
            rest = line
            while len(rest) > MAX_ROW_BYTES and not rest.endswith(b"\n"):
                rest = stream.readline(MAX_ROW_BYTES + 1)
        except _DAMAGE as error:
            raise DamagedFileError(number, f"the file breaks off or is damaged here ({error})") from error
        if not line:
            return
        yield number, line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line


def _json_rows(stream: BinaryIO) -> Iterator[Row | BadRow]:
    decode = msgspec.json.Decoder().decode
    for number, line in _lines(stream):
        if len(line) > MAX_ROW_BYTES:
            yield BadRow(number, _TOO_LONG, line)
            continue
        if not line.strip():
            continue
        try:
            value = decode(line)
        except (msgspec.DecodeError, ValueError, RecursionError):
            yield BadRow(number, _json_fault(line), line)
            continue
        if isinstance(value, dict):
            yield Row(number, value, line)
        else:
            yield BadRow(number, "not a JSON object: each line must be one {…}", line)


def _json_fault(line: bytes) -> str:
    """Why a line is not JSON, in words: the standard library is slower, but says where."""
    try:
        text = line.decode()
        value = json.loads(text)
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        return f"invalid JSON: {error.msg} at character {error.pos + 1}"
    except (ValueError, RecursionError):
        return "invalid JSON: a number too long or objects nested too deeply"
    if _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        return "invalid JSON: a lone surrogate is no character"
    return "invalid JSON: NaN, Infinity and numbers beyond a float are not JSON"


# CSV


class _RecordLines:
    """Feeds lines to csv.reader and keeps those of the record in work."""

    def __init__(self, stream: BinaryIO) -> None:
        self._lines = _lines(stream)
        self.start()

    def start(self) -> None:
        self.first = self.last = 0
        self.is_utf8 = True
        self._taken: list[bytes] = []
        self._size = 0

    @property
    def raw(self) -> bytes:
        return b"".join(self._taken)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.last, line = next(self._lines)
        self.first = self.first or self.last
        self._taken.append(line)
        self._size += len(line)
        if self._size > MAX_ROW_BYTES:
            raise csv.Error(_TOO_LONG)
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.is_utf8 = False
            return line.decode(errors="surrogateescape")


def _csv_rows(stream: BinaryIO, delimiter: str) -> Iterator[Row | BadRow]:
    if csv.field_size_limit() < MAX_ROW_BYTES:
        # The module's own limit is 128 KiB, for the whole process; it is only ever raised.
        csv.field_size_limit(MAX_ROW_BYTES)
    lines = _RecordLines(stream)
    records = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        lines.start()
        try:
            values = next(records, None)
        except csv.Error as error:
            if header is None:
                raise DamagedFileError(lines.first, f"the header cannot be read ({error})") from error
            yield BadRow(lines.first, f"invalid CSV{_span(lines)}: {error}", lines.raw)
            continue
        if values is None:
            return
        if not values:
            continue
        if header is None:
            header = _checked_header(values, lines)
        elif not lines.is_utf8:
            yield BadRow(lines.first, f"invalid UTF-8{_span(lines)}", lines.raw)
        elif len(values) != len(header):
            reason = f"{len(values)} fields where the header has {len(header)}{_span(lines)}"
            yield BadRow(lines.first, reason, lines.raw)
        else:
            yield Row(lines.first, dict(zip(header, values, strict=True)), lines.raw)


def _span(lines: _RecordLines) -> str:
    return "" if lines.last == lines.first else f" (lines {lines.first}–{lines.last})"


def _checked_header(names: list[str], lines: _RecordLines) -> list[str]:
    if not lines.is_utf8:
        raise DamagedFileError(lines.first, "the header is not UTF-8")
    _check_unique(names, lines.first)
    return names


def _check_unique(names: list[str], line: int) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DamagedFileError(line, f"two columns are named {twice!r}")


# Text


def _text_row(stream: BinaryIO, text_field: str) -> Iterator[Row | BadRow]:
    try:
        data = stream.read(MAX_ROW_BYTES + 1)
    except _DAMAGE as error:
        raise DamagedFileError(1, f"the file breaks off or is damaged ({error})") from error
    data = data.removeprefix(_BYTE_ORDER_MARK)
    if len(data) > MAX_ROW_BYTES:
        yield BadRow(1, _TOO_LONG, data)
        return
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        yield BadRow(data.count(b"\n", 0, error.start) + 1, "invalid UTF-8", data)
        return
    yield Row(1, {text_field: text}, data)


# Parquet


def _parquet_rows(stored: Any) -> Iterator[Row | BadRow]:
    start = 1
    try:
        parquet = pq.ParquetFile(stored, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
        _check_unique(parquet.schema_arrow.names, 1)
        schema = pa.schema([each.with_type(_plain_type(each.type)) for each in parquet.schema_arrow])
        for group in range(parquet.num_row_groups):
            # A batch over several row groups would lose the sound ones before a damaged one.
            n_rows = _batch_rows(parquet.metadata.row_group(group))
            for batch in parquet.iter_batches(n_rows, row_groups=[group], use_threads=False):
                yield from _batch_to_rows(batch if batch.schema.equals(schema) else batch.cast(schema), start)
                start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        reason = f"the Parquet file is cut off or damaged here ({str(error).splitlines()[0]})"
        raise DamagedFileError(start, reason) from error


def _batch_rows(group: Any) -> int:
    """Rows of about 4 MiB, by the row group's own size."""
    row_bytes = int(group.total_byte_size) // max(int(group.num_rows), 1)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(row_bytes, 1)))


def _batch_to_rows(batch: Any, start: int) -> Iterator[Row | BadRow]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        # Some value has no Python form: text that is not UTF-8, a year beyond 9999. Which one?
        for i in range(batch.num_rows):
            yield _row_or_fault(batch, i, start + i)
        return
    for i, fields in enumerate(rows):
        yield Row(start + i, fields)


def _row_or_fault(batch: Any, i: int, line: int) -> Row | BadRow:
    fields, fault = {}, ""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            fields[name] = column[i].as_py()
        except UnicodeDecodeError:
            fault = f"invalid UTF-8 in column {name!r}"
        except (ValueError, OverflowError) as error:
            fault = f"column {name!r}: {error}"
    return BadRow(line, fault, msgspec.json.encode(fields)) if fault else Row(line, fields)


def _plain_type(type_: Any) -> Any:
    """The type with nanoseconds as text (durations: as a number), as Python's own types have none."""
    types = pa.types
    if types.is_timestamp(type_) or types.is_time(type_):
        return pa.string() if type_.unit == "ns" else type_
    if types.is_duration(type_):
        return pa.int64() if type_.unit == "ns" else type_
    if types.is_list(type_):
        return pa.list_(type_.value_field.with_type(_plain_type(type_.value_type)))
    if types.is_large_list(type_):
        return pa.large_list(type_.value_field.with_type(_plain_type(type_.value_type)))
    if types.is_struct(type_):
        return pa.struct([each.with_type(_plain_type(each.type)) for each in type_])
    return type_
