"""Datastores that the service keeps open, and searches that are gathered: one at a time, for all who wait."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

from mixwright.errors import MixwrightError
from mixwright.indexes.datastores.datastore import Answer, Datastore
from mixwright.schemas.datastores import SearchRequest

_log = logging.getLogger(__name__)

_OPEN_DATASTORES = 8

Observe = Callable[[int, float], None]
"""Told of each search: the queries that were searched together, and the seconds that it took."""


def _unobserved(n_queries: int, seconds: float) -> None:
    return None


@dataclass
class _Waiting:
    """A search, and what became of it once a thread has taken it up."""

    request: SearchRequest
    answer: Answer | Exception | None = None


class GatheredSearch:
    """Searches one datastore for many threads.

    While a search runs, those that arrive wait; then one thread takes all of them and searches for all at once.
    Nobody waits for others to come: a search alone is answered at once.
    """

    def __init__(self, datastore: Datastore, observe: Observe = _unobserved) -> None:
        self.datastore = datastore
        self._observe = observe
        self._waiting: list[_Waiting] = []
        self._list = threading.Lock()
        self._searching = threading.Lock()

    def search(self, request: SearchRequest) -> Answer:
        """Answer a search; raises what ``Datastore.search`` raises."""
        self.datastore.check(request)
        mine = _Waiting(request)
        with self._list:
            self._waiting.append(mine)
        with self._searching:
            # The thread before may have answered this one, too.
            if mine.answer is None:
                with self._list:
                    taken, self._waiting = self._waiting, []
                self._answer(taken)
        if isinstance(mine.answer, Answer):
            return mine.answer
        raise mine.answer or RuntimeError("a search was left without an answer")

    def _answer(self, taken: list[_Waiting]) -> None:
        for _, group in groupby(sorted(taken, key=_kind), key=_kind):
            self._answer_together(list(group))

    def _answer_together(self, together: list[_Waiting]) -> None:
        began = time.monotonic()
        try:
            answers = self.datastore.search_together([each.request for each in together])
        except MixwrightError as error:
            for each in together:
                each.answer = error
        except Exception as error:  # noqa: BLE001  # the thread of the request raises it
            if len(together) == 1:
                together[0].answer = error
                return
            # It may be the fault of one of them, or of all of them together: out of memory, say.
            _log.warning("%d searches failed together (%r): each is tried alone", len(together), error)
            for each in together:
                self._answer_together([each])
            return
        else:
            for each, answer in zip(together, answers, strict=True):
                each.answer = answer
        self._observe(sum(_n_queries(each.request) for each in together), time.monotonic() - began)


def _n_queries(request: SearchRequest) -> int:
    return len(request.queries if request.queries is not None else request.vectors or ())


def _kind(waiting: _Waiting) -> str:
    """What searches that are answered together have in common."""
    request = waiting.request
    own = f"alone {id(waiting)}" if request.decontaminate is not None else ""
    return f"{own}{request.queries is None} {request.options.model_dump_json()}"


@dataclass(eq=False)
class _Opened:
    """A datastore that one thread opens, and others wait for; how many use it, or are about to."""

    search: Future[GatheredSearch] = field(default_factory=Future)
    users: int = 0

    def close(self) -> None:
        if self.search.exception() is None:
            self.search.result().datastore.close()


class OpenDatastores:
    """The datastores of a service, the last few kept open."""

    def __init__(self, open_datastore: Callable[[str], Datastore], observe: Observe = _unobserved) -> None:
        """``open_datastore`` opens one by its ref; ``observe`` is told of every search."""
        self._open_datastore = open_datastore
        self._observe = observe
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, str], _Opened] = OrderedDict()

    @contextmanager
    def of(self, ref: str, fingerprint: str) -> Iterator[GatheredSearch]:
        """The datastore of that ref, which stays open while the block runs.

        One thread opens it, and others wait only for a datastore that they want themselves. Where it does not
        open, all who wait get the same error, and the next one tries again. Raises NotFoundError, DataError for
        damaged files.
        """
        opened, is_opener = self._taken((ref, fingerprint))
        try:
            if is_opener:
                self._open_for_all(ref, (ref, fingerprint), opened)
            yield opened.search.result()
        finally:
            self._given_back(opened)

    def close(self) -> None:
        """Let go of all of them; one that is in use is closed by its last user."""
        with self._lock:
            kept = list(self._open.values())
            self._open.clear()
            unused = [opened for opened in kept if not opened.users]
        for opened in unused:
            opened.close()

    def _taken(self, key: tuple[str, str]) -> tuple[_Opened, bool]:
        """The datastore, with one more user; and whether that user has to open it."""
        with self._lock:
            found = self._open.pop(key, None)
            opened = found or _Opened()
            self._open[key] = opened
            opened.users += 1
            too_many = [self._open.popitem(last=False)[1] for _ in range(len(self._open) - _OPEN_DATASTORES)]
            unused = [each for each in too_many if not each.users]
        for each in unused:
            each.close()
        return opened, found is None

    def _open_for_all(self, ref: str, key: tuple[str, str], opened: _Opened) -> None:
        try:
            opened.search.set_result(GatheredSearch(self._open_datastore(ref), self._observe))
        except BaseException as error:
            with self._lock:
                if self._open.get(key) is opened:
                    del self._open[key]
            opened.search.set_exception(error)
            raise

    def _given_back(self, opened: _Opened) -> None:
        """One user less; the last one closes what is not kept any more."""
        with self._lock:
            opened.users -= 1
            done = not opened.users and opened not in self._open.values()
        if done:
            opened.close()
