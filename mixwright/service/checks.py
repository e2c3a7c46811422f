"""What the service needs: its database, its store, its worker, and Ray. One question to each.

The answers go to anybody who asks (``/readyz`` needs no key), so they name no path, address or host: those are in
the service's log.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from mixwright.errors import MixwrightError, UnavailableError
from mixwright.jobs.database import Database
from mixwright.jobs.ray_pool import ray_state
from mixwright.service.readiness import TIMEOUT_SECONDS, BrokenError, Readiness
from mixwright.store import Store

_log = logging.getLogger(__name__)


def service_readiness(database: Database, store: Store, worker_alive: Callable[[], bool] | None) -> Readiness:
    """The readiness of a service; ``worker_alive`` is None where it runs no jobs."""
    return Readiness(
        {
            "database": lambda: _database(database),
            "store": lambda: _store(store),
            "worker": lambda: _worker(worker_alive),
            "ray": _ray,
        }
    )


def _database(database: Database) -> str:
    try:
        database.check()
    except SQLAlchemyError as error:
        _log.warning("the catalog database does not answer: %s", error)
        raise BrokenError("does not answer: check MIXWRIGHT_DATABASE_URL and the home folder") from error
    return "ok"


def _store(store: Store) -> str:
    """Reads the home folder, and writes a nameless file in it: a full disk is found too."""
    try:
        os.scandir(store.home).close()
        with tempfile.TemporaryFile(dir=store.home) as probe:
            probe.write(b"mixwright")
        store.check()
    except UnavailableError as error:
        _log.warning("the store does not answer: %s", error)
        raise BrokenError("does not answer: check MIXWRIGHT_STORE_URL and the credentials for it") from error
    except OSError as error:
        _log.warning("the store does not work: %s", error)
        raise BrokenError("cannot be read or written: check the home folder, its owner and its disk") from error
    return "ok"


def _worker(alive: Callable[[], bool] | None) -> str:
    if alive is None:
        return "off"
    if not alive():
        raise BrokenError("has stopped: read the service's log and restart it")
    return "ok"


def _ray() -> str:
    try:
        return ray_state(TIMEOUT_SECONDS / 2)
    except MixwrightError as error:
        _log.warning("Ray does not answer: %s", error)
        raise BrokenError("does not answer: check RAY_ADDRESS and the cluster's head") from error
