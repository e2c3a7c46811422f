"""Who asks: a key or a session that is known, or anybody where no key is asked for; and what each may."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from starlette.requests import Request

from mixwright.errors import AuthError
from mixwright.service.security.keys import (
    SCOPES,
    ApiKey,
    Keys,
    Scope,
    StoredKey,
    StoredSession,
    opens,
    parse_key,
    sha256,
)

COOKIE = "mixwright_session"

_KEPT_SECONDS = 3.0
"""How long what the database said of a key is believed: so long a revoked key may still open."""
_KEPT = 4096
_NOTED_SECONDS = 60.0
_READING_POSTS = re.compile(r"/v1/datastores/[^/]+/search|/v1/predict/[^/]+|/v1/mixtures/preview")
"""Questions that come as POST because they are long."""
_OPEN = re.compile(r"/healthz|/readyz|/login|/static/.*")
"""What needs no key. None of it says anything about what is published."""
_API = re.compile(r"/(v1/.*|v1|metrics|openapi\.json|logout)")

_ValueT = TypeVar("_ValueT")


@dataclass(frozen=True)
class Access:
    """Who asks and what they may. ``key`` is None where no key is asked for, and where there is none."""

    scope: Scope | None
    key: ApiKey | None = None
    by: Literal["key", "session", "nobody"] = "nobody"

    def may(self, needed: Scope) -> bool:
        """Whether a scope is enough."""
        return self.scope is not None and SCOPES.index(self.scope) >= SCOPES.index(needed)


EVERYTHING = Access("admin")
"""Where no key is asked for: whoever reaches a loopback address may use the machine."""
NOTHING = Access(None)


def needed_scope(method: str, path: str) -> Scope | None:
    """The scope that a request needs: none, read, and whatever is not known to only read needs write."""
    if _OPEN.fullmatch(path):
        return None
    reads = method in ("GET", "HEAD", "OPTIONS") or (method == "POST" and _READING_POSTS.fullmatch(path))
    # Whoever is signed in may sign out.
    return "read" if reads or path == "/logout" else "write"


def is_page(method: str, path: str) -> bool:
    """Whether a person's browser asks for a page: it is sent to where one signs in, rather than refused."""
    return method in ("GET", "HEAD") and not _API.fullmatch(path)


def access_of(request: Request) -> Access:
    """Who asks, as the guard has found."""
    found = request.scope.get("mixwright.access")
    return found if isinstance(found, Access) else NOTHING


def require(request: Request, needed: Scope) -> None:
    """Raise AuthError, 403, unless whoever asks has this scope: for what depends on more than the address."""
    if not access_of(request).may(needed):
        raise AuthError(f"this needs a key of scope {needed}: make one with  mixwright keys create", status=403)


class Recent:
    """What was found a moment ago, so that not every request asks the database. Bounded in time and number."""

    def __init__(self, seconds: float = _KEPT_SECONDS, size: int = _KEPT) -> None:
        self._seconds, self._size = seconds, size
        self._lock = threading.Lock()
        self._found: OrderedDict[Any, tuple[float, Any]] = OrderedDict()

    def get(self, key: Any, find: Callable[[], _ValueT]) -> _ValueT:
        """What was found under the key within the last seconds, or else what is found now; None counts, too."""
        now = time.monotonic()
        with self._lock:
            kept = self._found.get(key)
            if kept is not None and now - kept[0] < self._seconds:
                value: _ValueT = kept[1]
                return value
        value = find()
        with self._lock:
            self._found[key] = (now, value)
            self._found.move_to_end(key)
            while len(self._found) > self._size:
                self._found.popitem(last=False)
        return value

    def has(self, key: Any) -> bool:
        """Whether ``get`` would find it here."""
        with self._lock:
            kept = self._found.get(key)
        return kept is not None and time.monotonic() - kept[0] < self._seconds

    def forget(self, key: Any) -> None:
        """Ask the database again next time."""
        with self._lock:
            self._found.pop(key, None)


class Credentials:
    """Keys and sessions, looked up by what a request carries."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self._recent = Recent()
        self._lock = threading.Lock()
        self._noted: dict[str, float] = {}

    def by_header(self, values: list[str]) -> Access:
        """Who sends these Authorization headers; raises AuthError for one that opens nothing.

        What is wrong with a key is not said: a key that was revoked and one that never was look the same.
        """
        scheme, _, text = (values[0] if len(values) == 1 else "").strip().partition(" ")
        parts = parse_key(text.strip()) if scheme.lower() == "bearer" else None
        if parts is not None:
            stored = self._stored(parts.id)
            if opens(parts.secret, stored) and stored is not None and _is_active(stored.key):
                return Access(stored.key.scope, stored.key, "key")
        raise AuthError("this API key opens nothing: send  Authorization: Bearer KEY  with one that is valid")

    def by_cookie(self, token: str) -> Access:
        """Who is signed in with this token; nobody, if it stands for nothing."""
        hashed = sha256(token)
        session: StoredSession | None = self._recent.get(
            ("session", hashed), lambda: self.keys.find_session(hashed)
        )
        stored = self._stored(session.key_id) if session is not None else None
        if session is None or stored is None or session.expires_at <= datetime.now(UTC):
            return NOTHING
        return Access(stored.key.scope, stored.key, "session") if _is_active(stored.key) else NOTHING

    def sign_out(self, token: str) -> None:
        """End the session of a token; in this process at once, in others within seconds."""
        self.keys.end_session(token)
        self._recent.forget(("session", sha256(token)))

    def are_recent(self, headers: list[str]) -> bool:
        """Whether ``by_header`` needs no database for these headers, and so no thread to wait in."""
        parts = parse_key(headers[0].rpartition(" ")[2])
        return parts is not None and self._recent.has(("key", parts.id))

    def use_is_new(self, key: ApiKey) -> bool:
        """True for the first use of a key within a minute, in this process."""
        with self._lock:
            now = time.monotonic()
            new = now - self._noted.get(key.id, -math.inf) >= _NOTED_SECONDS
            if new:
                self._noted[key.id] = now
        return new

    def _stored(self, identifier: str) -> StoredKey | None:
        return self._recent.get(("key", identifier), lambda: self.keys.find(identifier))


def _is_active(key: ApiKey) -> bool:
    return key.state(datetime.now(UTC)) == "active"
