"""HEAD for every GET route: the route answers as to GET, and its body is dropped. A stream is not made."""

from __future__ import annotations

import anyio
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MARK = "mixwright.headers_only"


def headers_only(request: Request) -> bool:
    """Whether the body of the answer will be dropped, so that a route need not begin a stream."""
    return _MARK in request.scope


class Heads:
    """Middleware around the whole app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        # A copy: the server must go on to take the request for what it is.
        as_get = {**scope, "method": "GET", _MARK: True}
        with anyio.CancelScope() as work:

            async def send_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    is_stream = "content-length" not in Headers(raw=message["headers"])
                else:
                    is_stream = message.get("more_body", False)
                if is_stream:
                    work.cancel()  # it may be long

            await self._app(as_get, receive, send_headers)
        scope["route"] = as_get.get("route")
