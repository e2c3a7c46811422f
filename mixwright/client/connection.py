"""Requests to a service: one pool of connections, patience with failures that pass, errors of mixwright's own.

A failure passes if the service cannot be reached, breaks off, or answers 429, 502, 503 or 504. Every request of
the client may be sent again: reads change nothing, and a job or a mixture that is asked for twice is the same one.
"""

from __future__ import annotations

import email.utils
import io
import os
import random
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2

from mixwright import __version__
from mixwright.client.problems import error_of_answer
from mixwright.errors import ConfigError, MixwrightError, UnavailableError, first_line

_PASSING = frozenset({429, 502, 503, 504})
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 30.0
"""Seconds before the first and, at most, before any further attempt."""
_CONNECT_SECONDS = 10.0

BROKEN = (httpx2.TransportError, httpx2.DecodingError)
"""What httpx2 raises when an answer does not come, or not to its end."""


class PassingError(Exception):
    """An answer that may be another one in a moment."""

    def __init__(self, error: MixwrightError, wait: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


class Patience:
    """Counts the failures in a row of one piece of work, and waits after each.

    Waits double from a quarter of a second to half a minute, each by chance up to a half shorter, so that readers
    who lost the same service do not come back at the same moment.
    """

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._failures = 0

    def reset(self) -> None:
        """The work went on: earlier failures are forgotten."""
        self._failures = 0

    def wait(self, failure: MixwrightError, at_least: float | None = None) -> None:
        """Wait before the next attempt; raises the failure when there is to be none."""
        if self._failures >= self._retries:
            raise failure
        seconds = min(_FIRST_WAIT * 2**self._failures, _LONGEST_WAIT) * random.uniform(0.5, 1)
        self._failures += 1
        time.sleep(max(seconds, at_least or 0.0))


class Connection:
    """One service, as a process talks to it; may be used by several threads, and pickled to other processes."""

    def __init__(
        self, base_url: str, api_key: str | None, timeout: float, retries: int, compress: bool = False
    ) -> None:
        self.base_url = _checked_url(base_url)
        self._api_key = _checked_key(api_key)
        if timeout <= 0 or retries < 0:
            raise ConfigError(
                f"timeout {timeout} and retries {retries}: give seconds above 0, and 0 or more retries"
            )
        self._timeout = timeout
        self._retries = retries
        self._compress = compress
        self._pool: tuple[int, httpx2.Client] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}

    def patience(self) -> Patience:
        """The patience for one piece of work."""
        return Patience(self._retries)

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> httpx2.Response:
        """The whole answer to GET; raises the service's error, or UnavailableError where it does not answer."""
        return self._whole("GET", path, params=_given(params))

    def post(self, path: str, body: Any = None) -> httpx2.Response:
        """The whole answer to POST with a JSON body, or with none."""
        return self._whole("POST", path, **({} if body is None else {"json": body}))

    def _whole(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        patience = self.patience()
        while True:
            try:
                with self.stream(method, path, **arguments) as response:
                    response.read()
                return response
            except PassingError as failure:
                patience.wait(failure.error, failure.wait)
            except BROKEN as error:
                patience.wait(self.unreachable(error))

    @contextmanager
    def stream(self, method: str, path: str, **arguments: Any) -> Iterator[httpx2.Response]:
        """One attempt: an answer whose body is yet to be read.

        Raises PassingError or one of BROKEN for a failure that may pass, else the service's error.
        """
        with self._client().stream(method, path, **arguments) as response:
            if not response.is_success:
                response.read()
                error = error_of_answer(response)
                if response.status_code in _PASSING:
                    raise PassingError(error, _retry_after(response))
                raise error
            yield response

    def unreachable(self, error: BaseException) -> UnavailableError:
        """The error for a service that did not answer to the end."""
        return UnavailableError(
            f"the service at {self.base_url} does not answer ({first_line(error)}): start it, or correct base_url "
            "or MIXWRIGHT_URL"
        )

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        if self._pool is not None:
            _close(*self._pool)
        self._pool = None

    def _client(self) -> httpx2.Client:
        # Two processes must never write to one socket: after a fork each has a pool of its own.
        if self._pool is None or self._pool[0] != os.getpid():
            headers = {"User-Agent": f"mixwright/{__version__}"}
            if self._api_key is not None:
                headers["Authorization"] = f"Bearer {self._api_key}"
            if not self._compress:
                headers["Accept-Encoding"] = "identity"
            timeout = httpx2.Timeout(self._timeout, connect=min(self._timeout, _CONNECT_SECONDS))
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
            client = httpx2.Client(base_url=self.base_url, headers=headers, timeout=timeout, limits=limits)
            self._pool = (os.getpid(), client)
            weakref.finalize(self, _close, *self._pool)
        return self._pool[1]


def _close(pid: int, client: httpx2.Client) -> None:
    """Close the connections of a Connection that nobody has any more, in the process that opened them."""
    if pid == os.getpid():
        client.close()


class AnswerFile(io.RawIOBase):
    """The bytes of an answer, as a file to read from; keeps what broke it off."""

    def __init__(self, response: httpx2.Response) -> None:
        self._chunks = response.iter_bytes()
        self._left = memoryview(b"")
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            while not self._left:
                self._left = memoryview(next(self._chunks))
        except StopIteration:
            return 0
        except BROKEN as error:
            self.failure = error
            raise
        n = min(len(buffer), len(self._left))
        buffer[:n] = self._left[:n]
        self._left = self._left[n:]
        return n


def _checked_url(text: str) -> str:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"base_url {text!r} is no address ({error}): write http://HOST:PORT") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"base_url {text!r} is no address of a service: write http://HOST:PORT")
    if url.userinfo:
        raise ConfigError("base_url has a user name in it: leave it out, and give api_key")
    return text.rstrip("/")


def _checked_key(key: str | None) -> str | None:
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key and key):
        raise ConfigError("api_key has characters that no key has: copy it again, without spaces around it")
    return key


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the service asks to wait: a number, or a date."""
    text = response.headers.get("retry-after", "")
    if text.isdigit():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())
