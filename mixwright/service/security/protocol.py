"""The server's HTTP protocol, with bounds on what comes before a request: its headers.

uvicorn bounds neither their length nor their time with httptools; a client that sends one byte of a header a
minute would hold its connection for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 << 10
HEADER_SECONDS = 20.0


class BoundedHeaders(HttpToolsProtocol):
    """Answers 431 to headers that are too long, and 408 to those that take too long, and closes the connection."""

    _timer: asyncio.TimerHandle | None = None
    _in_headers = True
    _n_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._begin_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_headers:
            self._n_bytes += len(data)
            if self._n_bytes > MAX_HEADER_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_headers()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_timer()
        length = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if length > MAX_HEADER_BYTES:
            # Raised through the parser, which stops there.
            raise ValueError("the headers are too long")
        super().on_headers_complete()

    def _begin_headers(self) -> None:
        self._stop_timer()
        self._in_headers, self._n_bytes = True, 0
        self._timer = self.loop.call_later(HEADER_SECONDS, self._refuse, b"408 Request Timeout")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: bytes) -> None:
        self._stop_timer()
        transport: Any = self.transport
        if transport.is_closing():
            return
        # Nobody waits for an answer who has asked nothing, and another request's answer may be under way.
        if self._n_bytes and (self.cycle is None or self.cycle.response_complete):
            transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        transport.close()
