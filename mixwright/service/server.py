"""Runs the app on a socket, in this process or in several."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mixwright.config import Settings
from mixwright.errors import ConfigError
from mixwright.jobs.database import Database
from mixwright.logs import configure_logging
from mixwright.remote.store import store_of
from mixwright.service.app import create_app
from mixwright.service.security.guard import warn_without_keys
from mixwright.service.security.protocol import BoundedHeaders
from mixwright.service.state import Services
from mixwright.service.supervisor import supervise


def serve(settings: Settings, host: str, port: int, announce: Callable[[str], None], processes: int = 1) -> None:
    """Serve the catalog and run its jobs until SIGINT or SIGTERM; port 0 takes a free one.

    ``announce`` gets the address once requests are answered. With more than one of ``processes`` they share the
    socket, and one more runs the jobs. Raises ConfigError if the address cannot be had or the database not be
    opened.
    """
    configure_logging(settings)
    _check(settings, processes)
    listener = _listen(host, port)
    address = f"http://{_shown(host)}:{listener.getsockname()[1]}"
    warn_without_keys(settings, host)
    try:
        if processes == 1:
            run(create_app(settings, host=host), settings, listener, lambda: announce(address))
        else:
            supervise(settings, listener, host, processes, lambda: announce(address))
    finally:
        listener.close()


def run(
    app: FastAPI, settings: Settings, listener: socket.socket, on_ready: Callable[[], None], *, alone: bool = True
) -> None:
    """Answer requests in this process until SIGINT or SIGTERM.

    ``alone`` is False where another process looks after this one, and ends it if it does not end by itself.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level=settings.log_level.lower(),
        access_log=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        ws="none",
        http=BoundedHeaders,
        server_header=False,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    _Server(config, on_ready, app.state.services, alone=alone).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says when it is ready, and stops in steps.

    The first signal makes the service not ready, and its worker give back the running job. Connections are taken
    for ``drain_seconds`` more; then what is open has ``shutdown_seconds`` to end, and is cut off in the middle
    after that, so that no client takes it for complete. A second signal ends the process at once.
    """

    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[], None], services: Services, *, alone: bool
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._services = services
        self._alone = alone
        self._told_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._told_at is None:
            self._services.life.stopping = True
            self._told_at = time.monotonic()
            self._captured_signals.append(sig)
        elif self._alone:
            signal.signal(sig, signal.SIG_DFL)
            os.kill(os.getpid(), sig)
            os._exit(128 + sig)  # the first process of a container does not die of a signal

    async def on_tick(self, counter: int) -> bool:
        if self._told_at is not None:
            self._release_job()
            if time.monotonic() - self._told_at >= self._services.settings.drain_seconds:
                self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._services.life.stopping = True
        self._release_job()
        await super().shutdown(sockets)

    def _release_job(self) -> None:
        if self._services.worker is not None:
            self._services.worker.ask_to_stop()


def _is_news(record: logging.LogRecord) -> bool:
    """False for what uvicorn says of an exception, which ``mixwright.service.requests`` has written already."""
    return not record.getMessage().startswith("Exception in ASGI application")


def _check(settings: Settings, processes: int) -> None:
    """What is wrong is one line now, and a stack trace once the server runs."""
    if processes > 1 and settings.search_on == "ray":
        raise ConfigError(
            f"MIXWRIGHT_SEARCH_ON=ray works with one server process, not {processes}, each of which would start "
            "actors of its own for every datastore: leave --workers out, or MIXWRIGHT_SEARCH_ON"
        )
    database = Database(settings.catalog_url)
    try:
        database.upgrade()
    finally:
        database.close()
    if settings.store_url is not None:
        store_of(settings).check()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (socket.gaierror, OverflowError) as error:
        raise ConfigError(
            f"{host}:{port} is no address to listen on ({error}): correct --host or --port"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        reason = "is taken by another program" if error.errno == errno.EADDRINUSE else f"({error.strerror})"
        raise ConfigError(f"cannot listen on {host}:{port}, it {reason}: choose another --port") from error
    return listener


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
