"""Rows of a mixture as a byte stream: JSON lines or Arrow IPC, made as fast as the client reads.

Chunks are made in threads of their own, not in those that answer the other routes: a few, because making them is
work of the processor under Python's lock, and more of them only wait for each other. First chunks have their own
threads too, so that a new reader does not queue behind the streams that are under way.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Literal, TypeVar

import anyio.to_thread
import pyarrow as pa
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from backports.zstd import ZstdCompressor

from mixwright.selectors.streams import to_ndjson
from mixwright.service.negotiation import best_offer, qualities

ResultT = TypeVar("ResultT")

RowsMediaType = Literal["application/x-ndjson", "application/vnd.apache.arrow.stream"]
NDJSON: RowsMediaType = "application/x-ndjson"
ARROW: RowsMediaType = "application/vnd.apache.arrow.stream"
_OFFERS: dict[str, RowsMediaType] = {NDJSON: NDJSON, ARROW: ARROW, "application/json": NDJSON}

Encoding = Literal["identity", "gzip", "zstd"]
_CODINGS: dict[Encoding, tuple[str, ...]] = {
    "zstd": ("zstd",),
    "gzip": ("gzip", "x-gzip"),
    "identity": ("identity",),
}
"""Their names in a header, by preference where a client has none."""
_LEAST = 0.0001
"""The q of what a client takes without having asked for it: below any that it can write."""

Chunks = Generator[bytes, None, None]

_OPENING_THREADS = 8
"""Threads that make first chunks: more than cores, for those that wait for a corpus to be copied to the cache."""
_GOING_ON_THREADS = max(2, min(4, os.cpu_count() or 1))
_opening: RunVar[CapacityLimiter] = RunVar("opening")
_going_on: RunVar[CapacityLimiter] = RunVar("going_on")


def negotiate(accept: str | None) -> RowsMediaType | None:
    """The media type to answer an Accept header with; None if it takes neither."""
    best = best_offer(accept, list(_OFFERS))
    return None if best is None else _OFFERS[best]


def negotiate_encoding(accept_encoding: str | None) -> Encoding | None:
    """The content coding to answer an Accept-Encoding header with; None if it takes none that there is.

    The highest q wins, then zstd before gzip. Without the header, and for ``*`` alone, nothing is compressed.
    """
    named = qualities(accept_encoding or "")

    def quality(coding: Encoding) -> float:
        given = [named[name] for name in _CODINGS[coding] if name in named]
        if given:
            return max(given)
        # A plain answer is taken unless it is refused, another coding only where "*" stands for it.
        return named.get("*", _LEAST) if coding == "identity" else named.get("*", 0.0) * _LEAST

    best = max(_CODINGS, key=quality)
    return best if quality(best) > 0 else None


def encode(
    tables: Iterator[pa.Table], schema: pa.Schema, media_type: RowsMediaType, encoding: Encoding = "identity"
) -> Chunks:
    """The tables as bytes, one chunk a table; a client can read all rows of a chunk once it has the chunk."""
    chunks = _arrow(tables, schema) if media_type == ARROW else _ndjson(tables)
    if encoding == "identity":
        return chunks
    return _gzip(chunks) if encoding == "gzip" else _zstd(chunks)


def _gzip(chunks: Chunks) -> Chunks:
    # The lowest level: a stream is made as it is read, and 9 takes ten times as long for a quarter less.
    compressor = zlib.compressobj(1, wbits=31)
    for chunk in chunks:
        yield compressor.compress(chunk) + compressor.flush(zlib.Z_SYNC_FLUSH)
    yield compressor.flush()


def _zstd(chunks: Chunks) -> Chunks:
    compressor = ZstdCompressor(level=1)
    for chunk in chunks:
        yield compressor.compress(chunk, ZstdCompressor.FLUSH_BLOCK)
    yield compressor.flush()


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


async def opened(work: Callable[[], ResultT]) -> ResultT:
    """The result of ``work``, done in one of the threads that begin streams."""
    return await _in_thread(work, _opening, _OPENING_THREADS)


async def streamed(first: bytes, chunks: Chunks) -> AsyncIterator[bytes]:
    """``first``, then the chunks, each made in a thread once the client has taken the one before."""
    waiting = [first]
    del first
    try:
        # Taken out of the list, so that it does not stay in memory as long as the stream is read.
        yield waiting.pop()
        while (chunk := await _in_thread(lambda: next(chunks, None), _going_on, _GOING_ON_THREADS)) is not None:
            yield chunk
    finally:
        chunks.close()


async def _in_thread(work: Callable[[], ResultT], threads: RunVar[CapacityLimiter], n: int) -> ResultT:
    try:
        limiter = threads.get()
    except LookupError:
        limiter = CapacityLimiter(n)
        threads.set(limiter)
    return await anyio.to_thread.run_sync(work, limiter=limiter)
