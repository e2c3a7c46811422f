"""Datastores that the service keeps open, and searches that are gathered: one at a time, for all who wait."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

from mixwright.errors import MixwrightError
from mixwright.indexes.datastores.datastore import Answer, Datastore
from mixwright.schemas.datastores import SearchRequest

_OPEN_DATASTORES = 8


@dataclass
class _Waiting:
    """A search, and what became of it once a thread has taken it up."""

    request: SearchRequest
    answer: Answer | MixwrightError | None = None


class GatheredSearch:
    """Searches one datastore for many threads.

    While a search runs, those that arrive wait; then one thread takes all of them and searches for all at once.
    Nobody waits for others to come: a search alone is answered at once.
    """

    def __init__(self, datastore: Datastore) -> None:
        self.datastore = datastore
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
        ordered = sorted(taken, key=_kind)
        for _, group in groupby(ordered, key=_kind):
            together = list(group)
            try:
                answers = self.datastore.search_together([each.request for each in together])
            except MixwrightError as error:
                for each in together:
                    each.answer = error
            else:
                for each, answer in zip(together, answers, strict=True):
                    each.answer = answer


def _kind(waiting: _Waiting) -> str:
    """What searches that are answered together have in common."""
    request = waiting.request
    own = f"alone {id(waiting)}" if request.decontaminate is not None else ""
    return f"{own}{request.queries is None} {request.options.model_dump_json()}"


class OpenDatastores:
    """The datastores of a service, the last few kept open."""

    def __init__(self, open_datastore: Callable[[str], Datastore]) -> None:
        """``open_datastore`` opens one by its ref."""
        self._open_datastore = open_datastore
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, str], GatheredSearch] = OrderedDict()
        self._users: Counter[GatheredSearch] = Counter()

    @contextmanager
    def of(self, ref: str, fingerprint: str) -> Iterator[GatheredSearch]:
        """The datastore of that ref, which stays open while the block runs.

        Raises NotFoundError, DataError for damaged files.
        """
        with self._lock:
            found = self._open.pop((ref, fingerprint), None) or GatheredSearch(self._open_datastore(ref))
            self._open[ref, fingerprint] = found
            self._users[found] += 1
            while len(self._open) > _OPEN_DATASTORES:
                _, oldest = self._open.popitem(last=False)
                self._close_unused(oldest)
        try:
            yield found
        finally:
            with self._lock:
                self._users[found] -= 1
                self._close_unused(found)

    def _close_unused(self, found: GatheredSearch) -> None:
        """Close one that is not kept any more, unless searches go on in it: the last of them will."""
        if not self._users[found] and found not in self._open.values():
            del self._users[found]
            found.datastore.close()

    def close(self) -> None:
        """Let go of all of them."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].datastore.close()
