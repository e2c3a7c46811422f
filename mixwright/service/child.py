"""A process of a service that has several: ``python -m mixwright.service.child http|jobs HOST DESCRIPTOR…``.

The supervisor starts it (``mixwright.service.supervisor``); nobody else needs to.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from mixwright.config import Settings, load_settings
from mixwright.errors import MixwrightError
from mixwright.logs import configure_logging
from mixwright.service.app import create_app
from mixwright.service.metrics import DIRECTORY_VARIABLE
from mixwright.service.server import run
from mixwright.service.state import make_services
from mixwright.service.supervisor import WorkerMark

_log = logging.getLogger("mixwright.service.child")

_TICK_SECONDS = 0.2


def main(role: str, host: str, control: socket.socket, listener: socket.socket | None) -> int:
    """Be one of the processes until SIGTERM, or until the supervisor is gone; returns the exit status."""
    settings = load_settings()
    configure_logging(settings)
    mark = WorkerMark(Path(os.environ[DIRECTORY_VARIABLE]))
    threading.Thread(target=_end_with, args=(control,), name="mixwright-supervisor", daemon=True).start()

    def ready() -> None:
        control.send(b"r")

    try:
        if listener is None:
            return _run_jobs(settings, mark, ready)
        app = create_app(settings, run_worker=False, worker_elsewhere=mark.alive, host=host)
        run(app, settings, listener, ready, alone=False)
    except MixwrightError as error:
        _log.error("the %s process does not start: %s", role, error)
        return 1
    return 0


def _run_jobs(settings: Settings, mark: WorkerMark, ready: Callable[[], None]) -> int:
    """Run the jobs until SIGTERM; 1 if the worker has stopped by itself."""
    told: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        told.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hear)
    services = make_services(settings, run_worker=True)
    worker = services.worker
    if worker is None:
        raise RuntimeError("the services were made without a worker")
    worker.start()
    mark.hold()
    ready()
    while not told and worker.alive:
        time.sleep(_TICK_SECONDS)
    mark.release()
    worker.stop()
    services.database.close()
    if not told:
        _log.error("the job worker has stopped")
    return 0 if told else 1


def _end_with(control: socket.socket) -> None:
    """Stop this process in its usual way when its supervisor is gone: what it serves may end first."""
    control.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sockets = [socket.socket(fileno=int(each)) for each in sys.argv[3:]]
    sys.exit(main(sys.argv[1], sys.argv[2], sockets[0], sockets[1] if len(sockets) > 1 else None))
