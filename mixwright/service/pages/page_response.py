"""Pages as answers: what a browser may do with them, and whether it has them already."""

from __future__ import annotations

import hashlib
from html import escape

from fastapi import Request
from starlette.responses import HTMLResponse, Response

from mixwright.service.caching import not_modified
from mixwright.service.pages.html import ACCOUNT_MARK
from mixwright.service.security.access import access_of

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-cache",
}


def page_response(request: Request, html: str, status: int = 200) -> Response:
    """The page with an ETag of its own bytes; a 304 if the browser has these.

    A page shows what changes without its artifact (lineage, jobs, newer releases), so nothing else can say whether
    it is still the same.
    """
    html = html.replace(ACCOUNT_MARK, _account(request))
    digest = hashlib.sha256(html.encode()).hexdigest()[:32]
    headers = {**PAGE_HEADERS, "ETag": f'"{digest}"'}
    unchanged = not_modified(request, headers) if status == 200 else None
    return unchanged or HTMLResponse(html.encode(), status, headers)


def wants_page(request: Request) -> bool:
    """Whether a person's browser asks for something that is no part of the API."""
    path = request.url.path
    asks = "text/html" in request.headers.get("accept", "")
    return asks and not path.startswith(("/v1/", "/static/")) and path != "/openapi.json"


def _account(request: Request) -> str:
    """A link to the page where whoever is signed in may sign out."""
    access = access_of(request)
    if access.by != "session" or access.key is None:
        return ""
    return f'<a href="/login">Signed in as {escape(access.key.name)}</a>'
