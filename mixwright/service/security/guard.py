"""What every request passes before a route sees it, and every answer on its way out.

In this order: the host it was sent to (where no key is asked for), the key or session, the site whose page sent it
(where a browser would send it along by itself), its scope, how often and how much at a time, and its body.
Whatever address is not known to be open needs a key: a route that is added later is not forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mixwright.config import Settings
from mixwright.errors import AuthError, MixwrightError
from mixwright.jobs.database import Database
from mixwright.service.problems import problem_response
from mixwright.service.security.access import (
    COOKIE,
    EVERYTHING,
    NOTHING,
    Access,
    Credentials,
    is_page,
    needed_scope,
)
from mixwright.service.security.bodies import bounded_body
from mixwright.service.security.keys import Keys
from mixwright.service.security.limits import DEFAULT_RATE, Limits
from mixwright.service.security.origins import (
    is_loopback,
    refuse_other_forms,
    refuse_other_hosts,
    refuse_other_sites,
)

_log = logging.getLogger(__name__)

GUARD_STATUSES = (401, 403, 408, 413, 415, 421, 429, 503)
"""What the guard may answer to any request."""

_UNCOUNTED = ("/healthz", "/readyz")
"""Refused to a load balancer, these would take the service out of use."""


@dataclass(frozen=True)
class Security:
    """How one app is guarded. ``required``: requests need a key."""

    settings: Settings
    required: bool
    credentials: Credentials
    limits: Limits
    hosts: frozenset[str]

    @classmethod
    def of(cls, settings: Settings, database: Database, host: str) -> Security:
        """For a service that listens on ``host``. Raises ConfigError for a wrong rate limit."""
        required = needs_keys(settings, host)
        rate = settings.rate_limit or (DEFAULT_RATE if required else None)
        names = (settings.allowed_hosts or "").replace(",", " ").lower().split()
        return cls(
            settings,
            required,
            Credentials(Keys(database)),
            Limits(rate, settings.max_concurrent_requests),
            frozenset(names),
        )


def needs_keys(settings: Settings, host: str) -> bool:
    """Whether requests to a service that listens on ``host`` need a key."""
    return settings.auth == "on" or not is_loopback(host)


def warn_without_keys(settings: Settings, host: str) -> None:
    """Write to the log how one makes a key, where keys are asked for and there is none yet."""
    if not needs_keys(settings, host):
        return
    database = Database(settings.catalog_url)
    try:
        now = datetime.now(UTC)
        if not any(key.state(now) == "active" for key in Keys(database).list()):
            _log.warning(
                "requests to %s need an API key, and there is none yet: make one with  mixwright keys create NAME "
                "--scope read --home %s",
                host,
                settings.home,
            )
    finally:
        database.close()


def install_guard(app: FastAPI, security: Security) -> None:
    """Guard the app, and say in its OpenAPI description how one signs in."""
    app.state.security = security
    app.add_middleware(Guard, security=security)
    if security.required:
        _describe(app)


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, security: Security) -> None:
        self._app = app
        self._security = security

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            access = await self._admit(request)
            with self._security.limits.running(_who(request, access)):
                receive = await self._body(request, receive)
                await self._answer(scope, receive, send)
        except ClientDisconnect:
            return
        except _Elsewhere as elsewhere:
            await elsewhere.response(scope, receive, send)
        except (MixwrightError, HTTPException) as refusal:
            await _refusal(request, refusal)(scope, receive, send)
        else:
            await self._note_use(access)

    async def _admit(self, request: Request) -> Access:
        security, path = self._security, request.url.path
        if not security.required:
            refuse_other_hosts(request, security.hosts)
        try:
            access = await self._access(request)
        except AuthError:
            self._count(request, NOTHING)
            raise
        request.scope["mixwright.access"] = access
        # For the line of the log.
        request.scope.setdefault("state", {})["key_id"] = access.key.id if access.key is not None else None
        self._count(request, access)
        _authorize(request, access)
        if access.by != "key":
            refuse_other_sites(request, must_say=access.by == "session")
        if path not in ("/login", "/logout"):
            refuse_other_forms(request)
        return access

    async def _access(self, request: Request) -> Access:
        """Who asks; raises AuthError for a key that opens nothing, HTTPException for a silent database."""
        security = self._security
        if not security.required:
            return EVERYTHING
        headers, token = request.headers.getlist("authorization"), request.cookies.get(COOKIE)
        try:
            if headers and security.credentials.are_recent(headers):
                return security.credentials.by_header(headers)
            if headers:
                return await run_in_threadpool(security.credentials.by_header, headers)
            if token:
                return await run_in_threadpool(security.credentials.by_cookie, token)
        except SQLAlchemyError as error:
            _log.error("keys cannot be looked up: %s", error)
            raise HTTPException(
                503, "the catalog database does not answer: try again in a moment", {"Retry-After": "5"}
            ) from error
        return NOTHING

    def _count(self, request: Request, access: Access) -> None:
        if request.url.path not in _UNCOUNTED:
            self._security.limits.count(_who(request, access))

    async def _body(self, request: Request, receive: Receive) -> Receive:
        settings = self._security.settings
        return await bounded_body(request, receive, settings.max_body_bytes, settings.body_timeout_seconds)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app; if its answer does not begin in time, say so to the client.

        A thread cannot be ended: it works on, and what it answers in the end is thrown away.
        """
        answer = _Answer(scope, receive, send)
        timer = asyncio.get_running_loop().call_later(
            self._security.settings.request_timeout_seconds, answer.give_up
        )
        try:
            await self._app(scope, receive, answer.send)
        finally:
            timer.cancel()
            await answer.given_up()

    async def _note_use(self, access: Access) -> None:
        key = access.key
        if key is None or not self._security.credentials.use_is_new(key):
            return
        try:
            await run_in_threadpool(self._security.credentials.keys.note_use, key.id)
        except SQLAlchemyError as error:
            _log.warning("the use of key %s was not noted: %s", key.id, error)


class _Answer:
    """One answer on its way: that of the app, or, once it has been given up, that it came too late."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._started = False
        self._late: asyncio.Task[None] | None = None

    async def send(self, message: Message) -> None:
        if self._late is None:
            self._started = True
            await self._send(message)

    def give_up(self) -> None:
        if not self._started:
            self._late = asyncio.ensure_future(self._say_so())

    async def given_up(self) -> None:
        if self._late is not None:
            await self._late

    async def _say_so(self) -> None:
        late = HTTPException(
            503,
            "the answer takes too long: ask for less at a time, or have MIXWRIGHT_REQUEST_TIMEOUT_SECONDS raised",
        )
        await _refusal(Request(self._scope), late)(self._scope, self._receive, self._send)


class _Elsewhere(Exception):  # noqa: N818  # not an error
    """A person who is not signed in asks for a page: to where one signs in, and back."""

    def __init__(self, request: Request) -> None:
        query = f"?{request.url.query}" if request.url.query else ""
        self.response = RedirectResponse(
            f"/login?next={quote(request.url.path + query, safe='')}", status_code=303
        )


def _authorize(request: Request, access: Access) -> None:
    """Raise AuthError or _Elsewhere unless the address is open, or may be used by whoever asks."""
    needed = needed_scope(request.method, request.url.path)
    if needed is None or access.may(needed):
        return
    if access.scope is not None:
        raise AuthError(
            f"this needs scope {needed}, and your key has {access.scope}: make one with  mixwright keys create",
            status=403,
        )
    if is_page(request.method, request.url.path):
        raise _Elsewhere(request)
    raise AuthError("this needs an API key: send  Authorization: Bearer KEY, or sign in at /login")


def _who(request: Request, access: Access) -> str:
    if access.key is not None:
        return f"key {access.key.id}"
    return f"address {request.client.host if request.client else 'unknown'}"


def _refusal(request: Request, refusal: MixwrightError | HTTPException) -> Response:
    headers = {}
    if isinstance(refusal, AuthError):
        sent = "authorization" in request.headers
        reason = {401: ', error="invalid_token"' if sent else "", 403: ', error="insufficient_scope"'}
        headers["WWW-Authenticate"] = f'Bearer realm="mixwright"{reason[refusal.status]}'
    return problem_response(request, refusal, headers)


def _describe(app: FastAPI) -> None:
    """Add the two ways to sign in to the description, and say which addresses need neither."""
    plain = app.openapi

    def openapi() -> dict[str, object]:
        schema = plain()
        if "security" not in schema:
            schema.setdefault("components", {})["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer", "description": "an API key"},
                "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "set by /login"},
            }
            schema["security"] = [{"key": []}, {"session": []}]
            for path, operations in schema["paths"].items():
                for method, operation in operations.items():
                    if needed_scope(method.upper(), path) is None:
                        operation["security"] = []
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation says
