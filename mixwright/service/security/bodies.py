"""Bodies of requests: read whole before a route sees them, within bounds of length and time."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from mixwright.service.security.origins import has_body

# What is left of the body is not read: the connection cannot go on behind it.
_CLOSE = {"Connection": "close"}


async def bounded_body(request: Request, receive: Receive, max_bytes: int, seconds: float) -> Receive:
    """Read the body, and return what gives it to the routes.

    Raises HTTPException: 413 for a body that is, or says it is, longer than ``max_bytes``, and 408 for one that
    takes longer than ``seconds``; ClientDisconnect.
    """
    if not has_body(request):
        return receive
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_long(max_bytes)
    try:
        async with asyncio.timeout(seconds):
            body = await _read(receive, max_bytes)
    except TimeoutError as error:
        raise HTTPException(
            408, f"the body did not arrive within {seconds:g} seconds: send it faster, or in parts", _CLOSE
        ) from error
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _read(receive: Receive, max_bytes: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_long(max_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _too_long(max_bytes: int) -> HTTPException:
    return HTTPException(
        413,
        f"the body is longer than {max_bytes:,} bytes: send less at a time, or raise MIXWRIGHT_MAX_BODY_BYTES",
        _CLOSE,
    )
