"""The catalog as an HTTP service."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from mixwright import __version__
from mixwright.config import Settings
from mixwright.service.heads import Heads
from mixwright.service.pages.html import STATIC
from mixwright.service.problems import install_handlers, problem_responses
from mixwright.service.queries import refuse_unknown_query
from mixwright.service.requests import Requests
from mixwright.service.routes import (
    artifacts,
    corpora,
    datastores,
    evaluations,
    exports,
    health,
    jobs,
    login,
    mixtures,
    pages,
    predict,
    query,
)
from mixwright.service.security.guard import GUARD_STATUSES, Security, install_guard
from mixwright.service.security.headers import SecurityHeaders
from mixwright.service.state import Services, make_services

_DESCRIPTION = """Corpora, mixtures and the jobs that make them.

`{ref}` is `name` (the newest version) or `name@version`. Published artifacts never change: their ETag is made of
their fingerprint, and `If-None-Match` answers 304. Errors are `application/problem+json`.
"""
_TAGS = [
    {"name": "corpora", "description": "Named, versioned documents."},
    {"name": "mixtures", "description": "What to train on, in which proportion and order."},
    {"name": "exports", "description": "Mixtures in the forms that trainers read."},
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


class _App(FastAPI):
    """FastAPI with what must be around everything, its own answer to the unforeseen too."""

    _describing = threading.Lock()

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made once: it takes a second, and all of the first requests ask for it."""
        with self._describing:
            return super().openapi()

    def build_middleware_stack(self) -> ASGIApp:
        services: Services = self.state.services
        guarded = SecurityHeaders(super().build_middleware_stack())
        return Requests(Heads(guarded), services.metrics, self.routes)


def create_app(
    settings: Settings,
    *,
    run_worker: bool = True,
    worker_elsewhere: Callable[[], bool] | None = None,
    host: str = "127.0.0.1",
) -> FastAPI:
    """The app of one service: the catalog of ``settings.home``, and a worker for its jobs unless told otherwise.

    ``worker_elsewhere`` says whether the worker lives that runs the jobs in another process. ``host`` is the
    address that the service listens on: requests need a key unless it is a loopback address. Raises ConfigError
    for a wrong database URL or rate limit.
    """
    services = make_services(settings, run_worker=run_worker, worker_elsewhere=worker_elsewhere)
    app = _App(
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
        exports.router,
        query.router,
        predict.router,
        datastores.router,
        evaluations.router,
        artifacts.router,
        jobs.router,
        health.router,
    ):
        app.include_router(
            router,
            dependencies=[Depends(refuse_unknown_query)],
            responses=problem_responses(422, *GUARD_STATUSES),
        )
    app.include_router(login.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    install_guard(app, Security.of(settings, services.database, host))
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
