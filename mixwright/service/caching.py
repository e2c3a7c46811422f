"""ETags: a published artifact never changes, so its fingerprint is its validator."""

from __future__ import annotations

import hashlib

from fastapi import Request
from starlette.responses import Response

from mixwright.schemas.references import parse_reference


def cache_headers(reference: str, fingerprint: str, *variant: object) -> dict[str, str]:
    """ETag and Cache-Control of something made from one artifact.

    ``variant`` is what else decides the bytes: a page, a media type. A name without a version may be another
    artifact tomorrow, so it is asked for again every time (and mostly answered 304).
    """
    tag = fingerprint
    if variant:
        tag += "-" + hashlib.sha256(repr(variant).encode()).hexdigest()[:16]
    fixed = parse_reference(reference).version is not None
    return {"ETag": f'"{tag}"', "Cache-Control": "private, max-age=3600" if fixed else "private, no-cache"}


def not_modified(request: Request, headers: dict[str, str]) -> Response | None:
    """A 304 if the client has this version (If-None-Match), else None."""
    wanted = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    if "*" in wanted or headers["ETag"] in wanted:
        return Response(status_code=304, headers=headers)
    return None
