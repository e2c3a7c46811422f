"""Every request: its id, its line in the log, its share in the metrics.

The line has no query string and no header, where keys could be. The id is the client's ``X-Request-ID`` if it is
harmless, else a new one; every answer carries it, and every line of the log that is written on the way.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mixwright.logs import request_id
from mixwright.service.metrics import Metrics

_log = logging.getLogger(__name__)
_access_log = logging.getLogger("mixwright.access")

HEADER = "X-Request-ID"
_HARMLESS_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_LEFT = 499
"""The status in log and metrics of a request whose client went away before there was an answer."""

Outcome = Literal["complete", "left", "failed", "cut_off"]


class Requests:
    """Middleware around the whole app. ``routes`` are the app's, to name what was refused before it was routed."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, self._metrics)
        root_path = scope.get("root_path", "")
        scope.setdefault("state", {})["request_id"] = exchange.id
        token = request_id.set(exchange.id)
        try:
            with self._metrics.in_progress.track_inprogress():
                await self._app(scope, receive, exchange.sending(send))
        except asyncio.CancelledError:
            exchange.outcome = "cut_off"
            raise
        except Exception as error:
            exchange.fail(error)
            raise
        finally:
            exchange.end(_template(scope, root_path, self._routes))
            request_id.reset(token)


class _Exchange:
    """One request and what has been answered so far."""

    def __init__(self, scope: Scope, metrics: Metrics) -> None:
        given = Headers(scope=scope).get(HEADER, "")
        self.id = given if _HARMLESS_ID.fullmatch(given) else secrets.token_hex(16)
        self.outcome: Outcome = "left"
        self._scope = scope
        self._metrics = metrics
        self._began = time.monotonic()
        self._status: int | None = None
        self._first_byte_at: float | None = None
        self._is_stream = False
        self._n_bytes = 0

    def sending(self, send: Send) -> Send:
        """``send``, seen."""

        async def see(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._start(message)
            elif message.get("more_body", False):
                self._begin_stream()
            await send(message)
            if message["type"] == "http.response.body":
                self._n_bytes += len(message.get("body", b""))
                if self._first_byte_at is None and self._n_bytes:
                    self._first_byte_at = time.monotonic()
                if not message.get("more_body", False):
                    self.outcome = "complete"

        return see

    def _start(self, message: Message) -> None:
        self._status = message["status"]
        headers = MutableHeaders(raw=message.setdefault("headers", []))
        headers[HEADER] = self.id
        if self._status in (200, 206) and "content-length" not in headers:
            self._begin_stream()

    def _begin_stream(self) -> None:
        if not self._is_stream and self._scope["method"] != "HEAD":
            self._is_stream = True
            self._metrics.streams_open.inc()

    def fail(self, error: Exception) -> None:
        """The app raised: after a complete answer that is an error of which the handler has written, else not."""
        if self.outcome != "complete":
            self.outcome = "failed"
            _log.error("request %s failed in the middle of its answer", self.id, exc_info=error)

    def end(self, route: str) -> None:
        """Count the request, and write its line."""
        seconds = time.monotonic() - self._began
        status = self._status or (_LEFT if self.outcome == "left" else 500)
        method = self._scope["method"] if self._scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, status).inc()
        if self._is_stream:
            self._count_stream(route, seconds)
        else:
            self._metrics.request_seconds.labels(method, route).observe(seconds)
        if _access_log.isEnabledFor(logging.INFO):
            self._write(route, status, seconds)

    def _count_stream(self, route: str, seconds: float) -> None:
        self._metrics.streams_open.dec()
        self._metrics.streams.labels(route, self.outcome).inc()
        self._metrics.stream_seconds.labels(route).observe(seconds)
        self._metrics.stream_bytes.labels(route).inc(self._n_bytes)
        if self._first_byte_at is not None:
            self._metrics.stream_first_byte_seconds.labels(route).observe(self._first_byte_at - self._began)

    def _write(self, route: str, status: int, seconds: float) -> None:
        path = quote(self._scope["path"], safe="/@:!$&'()*+,;=~")
        client = self._scope.get("client")
        fields: dict[str, Any] = {
            "request_id": self.id,
            "method": self._scope["method"],
            "route": route,
            "path": path,
            "status": status,
            "seconds": round(seconds, 6),
            "bytes": self._n_bytes,
            "client": client[0] if client else None,
            "key": self._scope.get("state", {}).get("key_id"),
        }
        if self._is_stream:
            fields["outcome"] = self.outcome
        line = f"{fields['method']} {path} {status} {seconds:.3f} s {self._n_bytes} bytes"
        _access_log.info("%s%s", line, f" {self.outcome}" if self._is_stream else "", extra=fields)


def _template(scope: Scope, root_path: str, routes: Iterable[BaseRoute]) -> str:
    """The template of the route that answers, such as ``/v1/mixtures/{ref}``; ``unmatched`` if none does."""
    found = scope.get("route")
    if found is not None:
        return str(found.path)
    # Nobody has routed it, or a mount has, and changed the root.
    asked = {**scope, "root_path": root_path}
    for route in _flat(routes):
        if route.matches(asked)[0] is not Match.NONE:
            path = getattr(route, "path", "unmatched")
            return f"{path}/{{path}}" if isinstance(route, Mount) else str(path)
    return "unmatched"


def _flat(routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    """The routes, and those of the routers among them."""
    for route in routes:
        router = getattr(route, "original_router", None)
        if router is None:
            yield route
        else:
            yield from _flat(router.routes)
