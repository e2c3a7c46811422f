"""Limits of what one key, or one address, may ask of a process: how often, and how much at a time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

from starlette.exceptions import HTTPException

from mixwright.errors import ConfigError

DEFAULT_RATE = "6000/minute"
"""Where keys are asked for. On a loopback address there is no limit unless one is set."""


class Limits:
    """The limits of one process. Several processes of one service limit each for itself."""

    def __init__(self, rate: str | None, max_concurrent: int) -> None:
        """``rate`` is as in ``600/minute`` or ``10/second;1000/hour``, or none.

        Raises ConfigError for anything else.
        """
        from limits import parse_many
        from limits.storage import MemoryStorage
        from limits.strategies import MovingWindowRateLimiter

        try:
            self._rates = [] if rate in (None, "none") else parse_many(str(rate))
        except ValueError as error:
            raise ConfigError(
                f"MIXWRIGHT_RATE_LIMIT: {rate!r} is no rate: write 600/minute, say, or none"
            ) from error
        self._limiter = MovingWindowRateLimiter(MemoryStorage()) if self._rates else None
        self._max_concurrent = max_concurrent
        self._running: Counter[str] = Counter()

    def count(self, who: str) -> None:
        """Count one request; raises HTTPException 429 that says when to come back."""
        if self._limiter is None:
            return
        for rate in self._rates:
            if not self._limiter.hit(rate, who):
                wait = self._limiter.get_window_stats(rate, who).reset_time - time.time()
                seconds = max(1, ceil(wait))
                raise HTTPException(
                    429,
                    f"more than {rate.amount} requests in {rate.get_expiry()} seconds: wait {seconds} seconds, or "
                    "have MIXWRIGHT_RATE_LIMIT raised",
                    {"Retry-After": str(seconds)},
                )

    @contextmanager
    def running(self, who: str) -> Iterator[None]:
        """While a request is answered; raises HTTPException 429 if there are too many already."""
        if self._running[who] >= self._max_concurrent:
            raise HTTPException(
                429,
                f"more than {self._max_concurrent} requests at a time: wait for one to end, or have "
                "MIXWRIGHT_MAX_CONCURRENT_REQUESTS raised",
                {"Retry-After": "1"},
            )
        self._running[who] += 1
        try:
            yield
        finally:
            self._running[who] -= 1
            if not self._running[who]:
                del self._running[who]
