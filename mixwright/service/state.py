"""What the routes share: the store, the catalog, the board, the worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from fastapi import Depends, Request

from mixwright.config import Settings
from mixwright.corpora import Corpus
from mixwright.indexes.datastores.datastore import Datastore
from mixwright.indexes.rerankers import Reranker, load_reranker
from mixwright.jobs.board import Board
from mixwright.jobs.database import Database
from mixwright.jobs.shard_actors import ServingSession, open_sharded_datastore
from mixwright.jobs.worker import Worker
from mixwright.schemas.jobs import JobResult
from mixwright.selectors.streams import MixtureStream
from mixwright.service.catalog import Catalog
from mixwright.service.datastores import OpenDatastores
from mixwright.service.studies import Studies
from mixwright.store import Store

_OPEN_ARTIFACTS = 64
"""Corpora, and mixtures, kept open: each is some memory maps."""


@dataclass(frozen=True)
class Services:
    """One service's parts. ``corpus`` and ``mixture`` open by (ref, fingerprint) and keep open."""

    settings: Settings
    store: Store
    database: Database
    catalog: Catalog
    board: Board
    worker: Worker | None
    corpus: Callable[[str, str], Corpus]
    mixture: Callable[[str, str], MixtureStream]
    studies: Studies
    datastores: OpenDatastores
    serving: ServingSession | None


def make_services(settings: Settings, *, run_worker: bool) -> Services:
    """Put the parts together; nothing is opened yet. Raises ConfigError for a wrong database URL."""
    store = Store(settings.home)
    database = Database(settings.catalog_url)
    catalog = Catalog(database, store)
    board = Board(database)

    def record(result: JobResult) -> None:
        catalog.manifest(result.ref, result.kind)

    @lru_cache(maxsize=_OPEN_ARTIFACTS)
    def open_corpus(ref: str, fingerprint: str) -> Corpus:
        return Corpus.open(store, ref)

    @lru_cache(maxsize=_OPEN_ARTIFACTS)
    def open_mixture(ref: str, fingerprint: str) -> MixtureStream:
        return MixtureStream.open(store, ref)

    @lru_cache(maxsize=1)
    def reranker() -> Reranker | None:
        return load_reranker(settings.reranker) if settings.reranker else None

    def open_datastore(ref: str) -> Datastore:
        if settings.search_on == "ray":
            return open_sharded_datastore(store, ref, reranker())
        return Datastore.open(store, ref, reranker())

    return Services(
        settings=settings,
        store=store,
        database=database,
        catalog=catalog,
        board=board,
        worker=Worker(settings, board, record) if run_worker else None,
        corpus=open_corpus,
        mixture=open_mixture,
        studies=Studies(store),
        datastores=OpenDatastores(open_datastore),
        serving=ServingSession() if settings.search_on == "ray" else None,
    )


def _services(request: Request) -> Services:
    services = request.app.state.services
    if not isinstance(services, Services):
        raise TypeError("the app was not made by create_app")
    return services


ServicesDep = Annotated[Services, Depends(_services)]
