"""The catalog as an HTTP service."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from mixwright import __version__
from mixwright.config import Settings
from mixwright.service.html import STATIC
from mixwright.service.problems import install_handlers, problem_responses
from mixwright.service.queries import refuse_unknown_query
from mixwright.service.routes import (
    artifacts,
    corpora,
    datastores,
    evaluations,
    health,
    jobs,
    mixtures,
    pages,
    predict,
)
from mixwright.service.state import Services, make_services

_DESCRIPTION = """Corpora, mixtures and the jobs that make them.

`{ref}` is `name` (the newest version) or `name@version`. Published artifacts never change: their ETag is made of
their fingerprint, and `If-None-Match` answers 304. Errors are `application/problem+json`.
"""
_TAGS = [
    {"name": "corpora", "description": "Named, versioned documents."},
    {"name": "mixtures", "description": "What to train on, in which proportion and order."},
    {"name": "datastores", "description": "What a language model retrieves from."},
    {"name": "evaluations", "description": "What a datastore is worth, at every size."},
    {
        "name": "attributes, embeddings, indexes and results",
        "description": "Extra columns and vectors of a corpus, their nearest neighbours, and small trainings.",
    },
    {"name": "predictions", "description": "What a mixture will score before it is trained."},
    {"name": "jobs", "description": "Long work: ingest, embed, index, score, select, pilot."},
    {"name": "health", "description": "For load balancers and people."},
]


def create_app(settings: Settings, *, run_worker: bool = True) -> FastAPI:
    """The app of one service: the catalog of ``settings.home``, and a worker for its jobs unless told otherwise.

    Raises ConfigError for a wrong database URL.
    """
    services = make_services(settings, run_worker=run_worker)
    app = FastAPI(
        title="mixwright",
        version=__version__,
        summary="Curates and selects training data for language models.",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        # The pages of Swagger and ReDoc load their scripts from a CDN; the service must work without a network.
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        generate_unique_id_function=_operation_id,
    )
    app.state.services = services
    install_handlers(app)
    for router in (
        corpora.router,
        mixtures.router,
        predict.router,
        datastores.router,
        evaluations.router,
        artifacts.router,
        jobs.router,
        health.router,
    ):
        app.include_router(router, dependencies=[Depends(refuse_unknown_query)], responses=problem_responses(422))
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    await run_in_threadpool(_open, services)
    if services.serving is not None and threading.current_thread() is threading.main_thread():
        _take_signals_back()
    try:
        yield
    finally:
        await run_in_threadpool(_close, services)


def _take_signals_back() -> None:
    """Let the process end as before: Ray, when it starts, puts handlers of its own behind Python's back."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.getsignal(number))


def _open(services: Services) -> None:
    services.store.home.mkdir(parents=True, exist_ok=True)
    services.database.upgrade()
    services.catalog.sync()
    if services.serving is not None:
        services.serving.start()
    if services.worker is not None:
        services.worker.start()


def _close(services: Services) -> None:
    if services.worker is not None:
        services.worker.stop()
    services.datastores.close()
    if services.serving is not None:
        services.serving.stop()
    services.database.close()
