"""Runs the app on a socket."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import uvicorn

from mixwright.config import Settings, configure_logging
from mixwright.errors import ConfigError
from mixwright.service.app import create_app

_SHUTDOWN_SECONDS = 3
"""What open streams get to end by themselves when the service stops."""


def serve(settings: Settings, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve the catalog and run its jobs until SIGINT or SIGTERM; port 0 takes a free one.

    ``announce`` gets the address once requests are answered. Raises ConfigError
    if the address cannot be had or the database not be opened.
    """
    configure_logging(settings)
    app = create_app(settings)
    # Opened here as well: what is wrong is one line now, and a stack trace once uvicorn runs.
    app.state.services.database.upgrade()
    listener = _listen(host, port)
    address = f"http://{_shown(host)}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level=settings.log_level.lower(),
        access_log=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        ws="none",
    )
    server = _Server(config, lambda: announce(address))
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()


class _Server(uvicorn.Server):
    """Says when it is ready."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


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
