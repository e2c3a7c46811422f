"""Signing in and out: how a person's browser comes to be known, where the service asks for keys.

A browser cannot be told to send a key along when it goes from page to page; it sends cookies. The cookie does not
hold the key but a random token that stands for a session of twelve hours, of which the database has the hash: the
token is of no use anywhere else, signing out ends the session, and so does revoking the key.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response

from mixwright.errors import AuthError
from mixwright.service.pages.html import render
from mixwright.service.security.access import COOKIE, access_of
from mixwright.service.security.guard import Security
from mixwright.service.security.keys import SESSION_LENGTH
from mixwright.service.security.origins import safe_next

router = APIRouter(include_in_schema=False)

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
}


def _security(request: Request) -> Security:
    security = request.app.state.security
    if not isinstance(security, Security):
        raise TypeError("the app was not made by create_app")
    return security


SecurityDep = Annotated[Security, Depends(_security)]


@router.get("/login", name="login", response_class=HTMLResponse)
def login(
    request: Request, security: SecurityDep, next: Annotated[str, Query(description="where to go then")] = "/"
) -> Response:
    """Ask for a key, or say who is signed in."""
    if not security.required:
        return RedirectResponse("/", status_code=303)
    access = access_of(request)
    return _page(next, key=access.key if access.by == "session" else None)


@router.post("/login", name="sign_in", response_class=HTMLResponse)
async def sign_in(request: Request, security: SecurityDep) -> Response:
    """Open a session for a key and go on to ``next``, a page of this service."""
    try:
        form = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=8)
    except ValueError:
        # More fields than any form of ours has.
        form = {}
    key, address = (form.get(name, [""])[0] for name in ("key", "next"))
    credentials = security.credentials
    try:
        access = await run_in_threadpool(credentials.by_header, [f"Bearer {key.strip()}"])
    except AuthError:
        return _page(address, wrong=True)
    if access.key is None:
        return _page(address, wrong=True)
    token = await run_in_threadpool(credentials.keys.open_session, access.key.id)
    answer = RedirectResponse(safe_next(address), status_code=303)
    answer.set_cookie(
        COOKIE,
        token,
        max_age=int(SESSION_LENGTH.total_seconds()),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


@router.post("/logout", name="sign_out")
def sign_out(request: Request, security: SecurityDep) -> Response:
    """End the session, and have the browser forget what it has kept of the pages."""
    token = request.cookies.get(COOKIE)
    if token:
        security.credentials.sign_out(token)
    answer = RedirectResponse("/login", status_code=303, headers={"Clear-Site-Data": '"cache"'})
    answer.delete_cookie(COOKIE, secure=request.url.scheme == "https", httponly=True, samesite="strict")
    return answer


def _page(address: str, *, key: object = None, wrong: bool = False) -> Response:
    page = render("login.html", next=safe_next(address), key=key, wrong=wrong)
    return HTMLResponse(page, 401 if wrong else 200, headers=_HEADERS)
