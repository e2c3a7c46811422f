"""Rows of a mixture as a byte stream: JSON lines or Arrow IPC, made as fast as the client reads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from typing import Literal

import pyarrow as pa
from starlette.concurrency import run_in_threadpool

from mixwright.selectors.streams import to_ndjson

RowsMediaType = Literal["application/x-ndjson", "application/vnd.apache.arrow.stream"]
NDJSON: RowsMediaType = "application/x-ndjson"
ARROW: RowsMediaType = "application/vnd.apache.arrow.stream"
_RANGES: dict[str, RowsMediaType] = {
    NDJSON: NDJSON,
    ARROW: ARROW,
    "application/json": NDJSON,
    "application/*": NDJSON,
    "*/*": NDJSON,
}

Chunks = Generator[bytes, None, None]


def negotiate(accept: str | None) -> RowsMediaType | None:
    """The media type to answer an Accept header with; None if it takes neither.

    The highest q wins, then the more specific range, then JSON lines.
    """
    if not accept:
        return NDJSON
    offers: list[tuple[float, bool, bool, RowsMediaType]] = []
    for part in accept.split(","):
        name, *parameters = (each.strip().lower() for each in part.split(";"))
        quality = _quality(parameters)
        if name in _RANGES and quality > 0:
            found = _RANGES[name]
            offers.append((quality, "*" not in name, found == NDJSON, found))
    return max(offers)[3] if offers else None


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


def encode(tables: Iterator[pa.Table], schema: pa.Schema, media_type: RowsMediaType) -> Chunks:
    """The tables as bytes, one chunk a table."""
    return _arrow(tables, schema) if media_type == ARROW else _ndjson(tables)


def _ndjson(tables: Iterator[pa.Table]) -> Chunks:
    for table in tables:
        yield to_ndjson(table)


def _arrow(tables: Iterator[pa.Table], schema: pa.Schema) -> Chunks:
    sink = _Sink()
    with pa.ipc.new_stream(sink, schema) as writer:
        for table in tables:
            writer.write_table(table)
            yield sink.taken()
    yield sink.taken()


class _Sink:
    """A file to write to, whose content can be taken away again and again."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        return None

    def close(self) -> None:
        return None

    def taken(self) -> bytes:
        """What was written since the last time."""
        content = b"".join(self._parts)
        self._parts.clear()
        return content


async def streamed(first: bytes, chunks: Chunks) -> AsyncIterator[bytes]:
    """``first``, then the chunks, each made in a thread once the client has taken the one before."""
    try:
        yield first
        while (chunk := await run_in_threadpool(next, chunks, None)) is not None:
            yield chunk
    finally:
        chunks.close()
