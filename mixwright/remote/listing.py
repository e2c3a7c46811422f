"""What is published in a remote store: a listing that is kept for a moment.

The catalog asks what there is at every request, and a bucket answers in hundredths of a second. A listing is
therefore used for a second, or ten times as long as it took. Who does not find in it what should be there forgets
it and looks again, so that nothing is said not to exist that does. While the bucket does not answer, versions that
were found before still are: they never change.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

from mixwright.errors import UnavailableError
from mixwright.remote.object_storage import ObjectStorage, StoredObject
from mixwright.schemas.references import KINDS, Kind
from mixwright.store import FOLDERS, MANIFEST_NAME

_log = logging.getLogger(__name__)

_SECONDS = 1.0
_TIMES_ITS_COST = 10
_ROOT = "artifacts"

_KINDS: dict[str, Kind] = {FOLDERS[kind]: kind for kind in KINDS}
_Versions = dict[int, str]
"""The tag of each version's manifest."""


def manifest_key(kind: Kind, name: str, version: int) -> str:
    """Where a manifest is in a remote store."""
    return f"{_ROOT}/{FOLDERS[kind]}/{name}/{version}/{MANIFEST_NAME}"


class RemoteListing:
    """Names and versions of the artifacts of a remote store; any number of threads may ask at once."""

    def __init__(self, storage: ObjectStorage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._known: dict[tuple[Kind, str], _Versions] = {}
        self._until: dict[tuple[Kind, str], float] = {}
        self._all_until = 0.0
        self._failure: UnavailableError | None = None
        self._failed_until = 0.0

    def names(self, kind: Kind) -> list[str]:
        """The names with a published version, sorted."""
        with self._lock:
            self._list_all()
            return sorted(name for each, name in self._known if each == kind)

    def versions(self, kind: Kind, name: str) -> list[int]:
        """The published versions of a name, in any order."""
        with self._lock:
            return list(self._versions(kind, name))

    def tag(self, kind: Kind, name: str, version: int) -> str | None:
        """The tag of a manifest; None if there is none."""
        with self._lock:
            return self._known.get((kind, name), {}).get(version) or self._versions(kind, name).get(version)

    def look(self) -> None:
        """List everything, unless that was done a moment ago: one question for many names."""
        with self._lock:
            self._list_all()

    def forget(self, kind: Kind, name: str) -> None:
        """Ask the bucket when this name is looked up the next time."""
        with self._lock:
            self._until[kind, name] = 0.0

    def forget_all(self) -> None:
        """Ask the bucket the next time."""
        with self._lock:
            self._all_until = 0.0
            self._until.clear()

    def _list_all(self) -> None:
        began = time.monotonic()
        if began < self._all_until:
            return
        self._known = self._list(_ROOT)
        self._until.clear()
        self._all_until = _kept_until(began)

    def _versions(self, kind: Kind, name: str) -> _Versions:
        began, key = time.monotonic(), (kind, name)
        if began >= self._until.get(key, self._all_until):
            try:
                found = self._list(f"{_ROOT}/{FOLDERS[kind]}/{name}")
            except UnavailableError as error:
                if key not in self._known:
                    raise
                _log.warning("%s %s is answered by what was there a moment ago: %s", kind, name, error)
                return self._known[key]
            self._known.pop(key, None)
            self._until.pop(key, None)
            if key in found:
                # Names that are nowhere are not remembered: there is no end of them.
                self._known[key], self._until[key] = found[key], _kept_until(began)
        return self._known.get(key, {})

    def _list(self, prefix: str) -> dict[tuple[Kind, str], _Versions]:
        if self._failure is not None and time.monotonic() < self._failed_until:
            # Threads that waited for a storage that does not answer do not wait for it again, one after the other.
            raise UnavailableError(str(self._failure))
        try:
            return _by_name(self._storage.list(prefix))
        except UnavailableError as error:
            self._failure, self._failed_until = error, time.monotonic() + _SECONDS
            raise


def _kept_until(began: float) -> float:
    now = time.monotonic()
    return now + max(_SECONDS, _TIMES_ITS_COST * (now - began))


def _by_name(objects: Iterable[StoredObject]) -> dict[tuple[Kind, str], _Versions]:
    found: dict[tuple[Kind, str], _Versions] = {}
    for each in objects:
        parts = each.key.split("/")
        if len(parts) == 5 and parts[4] == MANIFEST_NAME and parts[1] in _KINDS and parts[3].isdecimal():
            found.setdefault((_KINDS[parts[1]], parts[2]), {})[int(parts[3])] = each.tag
    return found
