"""Artifacts that the service keeps open: each is opened once, however many requests ask for it together."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

ArtifactT = TypeVar("ArtifactT")


class OpenedOnce(Generic[ArtifactT]):
    """Opens artifacts by (ref, fingerprint) and keeps the ``most`` that were used last.

    Requests that come while an artifact is being opened wait for it. A failure is not kept.
    """

    def __init__(self, open_artifact: Callable[[str], ArtifactT], most: int) -> None:
        self._open = open_artifact
        self._most = most
        self._lock = threading.Lock()
        self._opened: OrderedDict[tuple[str, str], Future[ArtifactT]] = OrderedDict()

    def __call__(self, ref: str, fingerprint: str) -> ArtifactT:
        """The open artifact; raises what opening it raises."""
        key = (ref, fingerprint)
        with self._lock:
            found = self._opened.get(key)
            future = self._opened.setdefault(key, found or Future())
            self._opened.move_to_end(key)
            while len(self._opened) > self._most:
                self._opened.popitem(last=False)
        if found is None:
            self._fill(key, future)
        return future.result()

    def _fill(self, key: tuple[str, str], future: Future[ArtifactT]) -> None:
        try:
            future.set_result(self._open(key[0]))
        except BaseException as error:
            with self._lock:
                if self._opened.get(key) is future:
                    del self._opened[key]
            future.set_exception(error)
            raise
