"""Can the service work? Each part is asked in a thread of its own, with a time limit, and not at every request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from dataclasses import dataclass

_log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 2.0
KEPT_SECONDS = 1.0


class BrokenError(Exception):
    """A part does not work; the message is one line for whoever asks, without paths, addresses or secrets."""


@dataclass(frozen=True)
class State:
    """What a part answered: a word such as ``ok``, or what is broken and what to look at."""

    ok: bool
    text: str


class Readiness:
    """Asks the parts of a service. Any thread may call."""

    def __init__(
        self,
        parts: Mapping[str, Callable[[], str]],
        timeout_seconds: float = TIMEOUT_SECONDS,
        kept_seconds: float = KEPT_SECONDS,
    ) -> None:
        """A part returns a word such as ``ok``, or raises BrokenError."""
        self._parts = {name: _Part(name, ask, timeout_seconds, kept_seconds) for name, ask in parts.items()}

    def states(self) -> dict[str, State]:
        """The state of every part by its name, after at most the time limit."""
        for part in self._parts.values():
            part.begin()
        return {name: part.state() for name, part in self._parts.items()}


class _Part:
    """One part: its last answer, and the thread that waits for the next one. A part that hangs has one thread."""

    def __init__(self, name: str, ask: Callable[[], str], timeout_seconds: float, kept_seconds: float) -> None:
        self._name = name
        self._ask = ask
        self._timeout_seconds = timeout_seconds
        self._kept_seconds = kept_seconds
        self._lock = threading.Lock()
        self._answer: Future[State] | None = None
        self._asked_at = 0.0

    def begin(self) -> None:
        """Ask, unless an answer is on its way or still fresh."""
        with self._lock:
            if self._answer is not None and (not self._answer.done() or self._age() < self._kept_seconds):
                return
            self._answer, self._asked_at = Future(), time.monotonic()
            arguments = (self._answer,)
        threading.Thread(target=self._run, args=arguments, name=f"mixwright-{self._name}", daemon=True).start()

    def state(self) -> State:
        """The answer, or that there is none in time."""
        with self._lock:
            answer, left = self._answer, self._timeout_seconds - self._age()
        try:
            return answer.result(max(left, 0)) if answer is not None else State(False, "was not asked")
        except LateError:
            return State(False, f"does not answer within {self._timeout_seconds:g} s")

    def _run(self, answer: Future[State]) -> None:
        try:
            answer.set_result(State(True, self._ask()))
        except BrokenError as error:
            answer.set_result(State(False, str(error)))
        except Exception:  # noqa: BLE001  # whatever it is, the part does not work
            _log.exception("the check of the %s failed", self._name)
            answer.set_result(State(False, "cannot be checked: read the service's log"))

    def _age(self) -> float:
        return time.monotonic() - self._asked_at
