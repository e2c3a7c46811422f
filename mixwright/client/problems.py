"""Problem documents of a service as the errors that they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx2
import msgspec

from mixwright.errors import (
    AuthError,
    ConfigError,
    ConflictError,
    MixwrightError,
    NotFoundError,
    UnavailableError,
)

_BY_STATUS: dict[int, type[MixwrightError]] = {
    400: ConfigError,
    401: AuthError,
    403: AuthError,
    404: NotFoundError,
    405: ConfigError,
    406: ConfigError,
    409: ConflictError,
    413: ConfigError,
    415: ConfigError,
    422: ConfigError,
    429: UnavailableError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}
_STANDARD = {"type", "title", "status", "detail", "instance"}


def error_of(problem: Mapping[str, Any]) -> MixwrightError:
    """The error that a problem document is about: of the same class, with the same message and members.

    A document without one of mixwright's types is told apart by its status.
    """
    status = problem.get("status")
    kinds = {each.urn(): each for each in _kinds(MixwrightError)}
    kind = kinds.get(str(problem.get("type"))) or _BY_STATUS.get(status or 0, MixwrightError)
    # Their constructors take what the document has as members of its own.
    error = kind.__new__(kind)
    Exception.__init__(error, str(problem.get("detail") or problem.get("title") or "the service gave no reason"))
    for name, value in problem.items():
        if name not in _STANDARD and name.isidentifier() and not hasattr(error, name):
            setattr(error, name, value)
    if isinstance(status, int):
        error.status = status
    return error


def error_of_answer(response: httpx2.Response) -> MixwrightError:
    """The error of an answer that is no success; one that is no problem document is quoted by its status."""
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        try:
            return error_of(msgspec.json.decode(response.content, type=dict[str, Any]))
        except msgspec.DecodeError:
            pass
    kind = _BY_STATUS.get(response.status_code, MixwrightError)
    error = kind(
        f"{response.request.url} was answered {response.status_code} {response.reason_phrase}, and not by "
        "mixwright: see that base_url is the address of a service, and what stands between"
    )
    error.status = response.status_code
    return error


def _kinds(kind: type[MixwrightError]) -> Iterator[type[MixwrightError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)
