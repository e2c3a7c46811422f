"""Errors over HTTP: every one is an RFC 9457 problem document, and none shows a stack trace."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.routing import compile_path

from mixwright.errors import ConfigError, MixwrightError
from mixwright.service.pages.error_page import error_page
from mixwright.service.pages.page_response import PAGE_HEADERS, wants_page

_log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """An RFC 9457 problem document. Some errors have more members."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="a URN of the kind of error, or about:blank")
    title: str
    status: int
    detail: str = Field(description="one line that says what to change")
    instance: str = Field(description="path of the request")


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of a route's errors."""
    return {status: _documented(status) for status in statuses}


def install_handlers(app: FastAPI) -> None:
    """Make the app answer every error with a problem document."""
    app.add_exception_handler(MixwrightError, _mixwright_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _no_database)
    app.add_exception_handler(PoolTimeoutError, _no_database)
    app.add_exception_handler(UnicodeEncodeError, _unencodable)
    app.add_exception_handler(Exception, _unexpected)


def problem_response(
    request: Request, error: MixwrightError | HTTPException, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to an error that was raised where no handler sees it, with further headers."""
    answer = _mixwright_error(request, error) if isinstance(error, MixwrightError) else _http_error(request, error)
    answer.headers.update(headers or {})
    return answer


def _mixwright_error(request: Request, error: Exception) -> Response:
    problem = error.problem() if isinstance(error, MixwrightError) else {}
    return _response(request, problem)


def _invalid_request(request: Request, error: Exception) -> Response:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    body = error.body if isinstance(error, RequestValidationError) else None
    errors = [{"field": _field(each["loc"], body), "message": _message(each)} for each in found]
    first = errors[0]
    more = f" (and {len(errors) - 1} more, see errors)" if len(errors) > 1 else ""
    refused = ConfigError(f"{first['field']}: {first['message']}{more}; correct it and ask again")
    return _response(request, {**refused.problem(), "title": "Invalid request", "errors": errors})


def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return _unexpected(request, error)
    phrase = HTTPStatus(error.status_code).phrase
    detail, headers = error.detail, dict(error.headers or {})
    if error.status_code == 405:
        # Of several routes that fit a path, the framework names only the methods of the first.
        paths = request.app.openapi()["paths"].items()
        fitting = [each for template, each in paths if compile_path(template)[0].match(request.url.path)]
        operations = {method for each in fitting for method in each}
        allowed = {method.upper() for method in operations} or set(headers.get("Allow", "GET").split(", "))
        # Every GET route answers HEAD (see mixwright.service.heads).
        headers["Allow"] = ", ".join(sorted(allowed | {"HEAD"} if "GET" in allowed else allowed))
        detail = f"{request.url.path} does not take {request.method}: use {headers['Allow']}"
    elif error.status_code == 404 and detail == phrase:
        detail = f"there is nothing at {request.url.path}: see /openapi.json for what there is"
    elif error.status_code == 400:
        detail = f"{detail[:1].lower()}{detail[1:]}: send JSON in UTF-8"
    problem = {"type": "about:blank", "title": phrase, "status": error.status_code, "detail": detail}
    return _response(request, problem, headers)


def _no_database(request: Request, error: Exception) -> Response:
    _log.error("the catalog database does not answer: %s", error)
    detail = "the catalog database does not answer: try again in a moment, or check MIXWRIGHT_DATABASE_URL"
    problem = {"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": detail}
    return _response(request, problem, {"Retry-After": "5"})


def _unencodable(request: Request, error: Exception) -> Response:
    if not isinstance(error, UnicodeEncodeError) or error.reason != "surrogates not allowed":
        return _unexpected(request, error)
    found = ascii(error.object[error.start])
    refused = ConfigError(
        f"a text of the request has a lone surrogate, {found}, which is no character: correct it"
    )
    return _response(request, refused.problem())


def _unexpected(request: Request, error: Exception) -> Response:
    request_id = getattr(request.state, "request_id", None) or secrets.token_hex(16)
    _log.error("request %s (%s %s) failed", request_id, request.method, request.url.path, exc_info=error)
    detail = f"an error inside mixwright: report it with the lines of the service's log at request {request_id}"
    problem = {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "detail": detail,
        "request_id": request_id,
    }
    return _response(request, problem)


def _response(request: Request, problem: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    if wants_page(request):
        return HTMLResponse(error_page(problem), problem["status"], {**PAGE_HEADERS, **(headers or {})})
    # The standard library's JSON: it can write any string, lone surrogates too.
    content = json.dumps({**problem, "instance": request.url.path})
    return Response(content, problem["status"], dict(headers or {}), MEDIA_TYPE)


def _field(location: tuple[int | str, ...], body: Any) -> str:
    """``("body", "ingest", "request", "paths", 0)`` to ``request.paths[0]``."""
    where, *parts = location
    if where == "body" and len(parts) > 1 and isinstance(body, dict) and parts[0] not in body:
        # The tag of a union, which is nowhere in what the client wrote.
        parts = parts[1:]
    if where == "body" and len(parts) == 1 and isinstance(parts[0], int):
        return f"body at character {parts[0]}"
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")
    return name or str(where)


def _message(error: Mapping[str, Any]) -> str:
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return "there is no such field"
    if error["type"] == "json_invalid":
        return f"not JSON ({error['ctx']['error']})"
    text = str(error["msg"]).removeprefix("Value error, ")
    return " ".join(text.split())


_SCHEMA = Problem.model_json_schema()
_EXAMPLES = {
    400: ("about:blank", "Bad Request", "there was an error parsing the body: send JSON in UTF-8"),
    401: ("urn:mixwright:error:auth", "Not authorized", "this needs an API key: send  Authorization: Bearer KEY"),
    403: ("urn:mixwright:error:auth", "Not authorized", "this needs a key of scope write, and yours is read"),
    404: ("urn:mixwright:error:not-found", "Not found", "no mixture blend: there are blend-small, web"),
    406: ("about:blank", "Not Acceptable", "rows come as application/x-ndjson or …: ask for one of the two"),
    409: ("urn:mixwright:error:conflict", "Conflict", "job 5f0c… has succeeded and cannot be cancelled: …"),
    408: ("about:blank", "Request Timeout", "the body did not arrive within 60 seconds: send it faster, …"),
    413: ("about:blank", "Content Too Large", "the body is longer than 16,777,216 bytes: send less at a time, …"),
    415: ("about:blank", "Unsupported Media Type", "bodies are JSON here: send  Content-Type: application/json"),
    421: ("about:blank", "Misdirected Request", "the service answers to localhost only as long as …"),
    422: ("urn:mixwright:error:config", "Invalid request", "limit: Input should be less than or equal to 1000; …"),
    429: ("about:blank", "Too Many Requests", "more than 6000 requests in 60 seconds: wait 12 seconds, …"),
    503: ("about:blank", "Service Unavailable", "the catalog database does not answer: try again in a moment, …"),
}


def _documented(status: int) -> dict[str, Any]:
    type_, title, detail = _EXAMPLES[status]
    example = {"type": type_, "title": title, "status": status, "detail": detail, "instance": "/v1/…"}
    return {"description": title, "content": {MEDIA_TYPE: {"schema": _SCHEMA, "example": example}}}
