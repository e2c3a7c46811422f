"""What the routes share: the store, the catalog, the board, the worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated

from fastapi import Depends, Request

from mixwright.config import Settings
from mixwright.corpora import Corpus
from mixwright.indexes.datastores.datastore import Datastore
from mixwright.indexes.rerankers import Reranker, load_reranker
from mixwright.jobs.board import Board
from mixwright.jobs.confinement import Confinement
from mixwright.jobs.database import Database
from mixwright.jobs.shard_actors import ServingSession, open_sharded_datastore
from mixwright.jobs.worker import Worker
from mixwright.remote.store import store_of
from mixwright.schemas.jobs import JobResult
from mixwright.selectors.streams import MixtureStream
from mixwright.service.catalog import Catalog
from mixwright.service.checks import service_readiness
from mixwright.service.datastores import OpenDatastores
from mixwright.service.gauges import ServiceCollector
from mixwright.service.metrics import Metrics
from mixwright.service.opened import OpenedOnce
from mixwright.service.readiness import Readiness
from mixwright.service.studies import Studies
from mixwright.store import Store

_OPEN_ARTIFACTS = 64
"""Corpora, and mixtures, kept open: each is some memory maps."""


@dataclass
class Life:
    """Where a service is in its life: told to stop, it is not ready any more and ends what has no end."""

    stopping: bool = False


@dataclass(frozen=True)
class Services:
    """One service's parts. ``corpus`` and ``mixture`` open by (ref, fingerprint) and keep open."""

    settings: Settings
    store: Store
    database: Database
    catalog: Catalog
    board: Board
    confinement: Confinement
    worker: Worker | None
    corpus: Callable[[str, str], Corpus]
    mixture: Callable[[str, str], MixtureStream]
    studies: Studies
    datastores: OpenDatastores
    serving: ServingSession | None
    metrics: Metrics
    readiness: Readiness
    life: Life


def make_services(
    settings: Settings, *, run_worker: bool, worker_elsewhere: Callable[[], bool] | None = None
) -> Services:
    """Put the parts together; nothing is opened yet. Raises ConfigError for a wrong database URL.

    ``worker_elsewhere`` says whether the worker lives that runs the jobs in another process.
    """
    store = store_of(settings)
    database = Database(settings.catalog_url)
    catalog = Catalog(database, store)
    board = Board(database)
    metrics = Metrics()

    def record(result: JobResult) -> None:
        catalog.manifest(result.ref, result.kind)

    @lru_cache(maxsize=1)
    def reranker() -> Reranker | None:
        return load_reranker(settings.reranker) if settings.reranker else None

    def open_datastore(ref: str) -> Datastore:
        if settings.search_on == "ray":
            return open_sharded_datastore(store, ref, reranker(), settings.search_timeout_seconds)
        return Datastore.open(store, ref, reranker())

    worker = Worker(settings, board, record, on_end=metrics.job_ended) if run_worker else None
    worker_alive = worker_elsewhere if worker is None else lambda: worker.alive
    readiness = service_readiness(database, store, worker_alive)
    metrics.look_up(ServiceCollector(database, readiness))
    return Services(
        settings=settings,
        store=store,
        database=database,
        catalog=catalog,
        board=board,
        confinement=Confinement.of(settings),
        worker=worker,
        corpus=OpenedOnce(partial(Corpus.open, store), _OPEN_ARTIFACTS),
        mixture=OpenedOnce(partial(MixtureStream.open, store), _OPEN_ARTIFACTS),
        studies=Studies(store),
        datastores=OpenDatastores(open_datastore, metrics.searched),
        serving=ServingSession() if settings.search_on == "ray" else None,
        metrics=metrics,
        readiness=readiness,
        life=Life(),
    )


def _services(request: Request) -> Services:
    services = request.app.state.services
    if not isinstance(services, Services):
        raise TypeError("the app was not made by create_app")
    return services


ServicesDep = Annotated[Services, Depends(_services)]
