"""Several server processes on one socket, and one more that runs the jobs.

uvicorn has a supervisor of its own, but no place in it for the process of the jobs, for the time that open streams
get, and for the death of the supervisor itself; it also kills a process that is busy for five seconds, as one is
that loads a model. This one starts a process again when it has died, and nothing else.

Between the supervisor and each process is a pair of sockets. The process writes a byte there when it is ready;
either side sees at once when the other one is gone, however it went.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from types import FrameType
from typing import IO, Literal

from prometheus_client.multiprocess import mark_process_dead

from mixwright.config import Settings
from mixwright.errors import MixwrightError
from mixwright.jobs.worker import environment_of
from mixwright.service.metrics import DIRECTORY_VARIABLE

_log = logging.getLogger(__name__)

Role = Literal["http", "jobs"]

_TICK_SECONDS = 0.2
_GRACE_SECONDS = 20.0
"""What processes get beyond the time of their open streams: a job may have a Ray cluster to take down."""
_STABLE_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 30.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def supervise(
    settings: Settings, listener: socket.socket, host: str, n_servers: int, on_ready: Callable[[], None]
) -> None:
    """Run the processes until SIGINT or SIGTERM, which ends this process as it would have without a handler.

    ``host`` is the address of the socket: what it lets in needs keys, or not.

    Raises MixwrightError if one of them does not start at first; why is in the log. A second signal kills all.
    """
    with tempfile.TemporaryDirectory(prefix="mixwright-serve-") as folder:
        supervisor = _Supervisor(settings, listener, host, n_servers, Path(folder), on_ready)
        with _heard(supervisor.hear):
            supervisor.run()
    if supervisor.told:
        signal.raise_signal(supervisor.told[0])


@dataclass
class _Place:
    """The place of a process, whichever has it now, and how often in a row it has died young."""

    role: Role
    child: subprocess.Popen[bytes] | None = None
    control: socket.socket | None = None
    ready: bool = False
    started_at: float = 0.0
    start_at: float = 0.0
    n_deaths: int = 0


class _Supervisor:
    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        host: str,
        n_servers: int,
        folder: Path,
        on_ready: Callable[[], None],
    ) -> None:
        self.told: list[int] = []
        self._settings = settings
        self._listener = listener
        self._host = host
        self._folder = folder
        self._on_ready = on_ready
        self._announced = False
        self._selector = DefaultSelector()
        self._places = [_Place("http") for _ in range(n_servers)] + [_Place("jobs")]

    def hear(self, number: int, frame: FrameType | None) -> None:
        """A signal: the first one stops the service, the second one ends it at once."""
        self.told.append(number)

    def run(self) -> None:
        try:
            while not self.told:
                for place in self._places:
                    if place.child is None and time.monotonic() >= place.start_at:
                        self._start(place)
                self._listen()
                self._announce()
            # The processes still take connections while they drain; here they would wait for nobody.
            self._listener.close()
            self._stop()
        finally:
            self._kill()
            self._selector.close()

    def _start(self, place: _Place) -> None:
        control, theirs = socket.socketpair()
        descriptors = [theirs.fileno(), *([self._listener.fileno()] if place.role == "http" else [])]
        with theirs:
            place.child = subprocess.Popen(
                [sys.executable, "-m", "mixwright.service.child", place.role, self._host, *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                env=environment_of(self._settings) | {DIRECTORY_VARIABLE: str(self._folder)},
                # Ctrl-C at a terminal is for the supervisor, which passes it on once.
                start_new_session=True,
            )
        place.control, place.ready, place.started_at = control, False, time.monotonic()
        self._selector.register(control, EVENT_READ, place)

    def _listen(self) -> None:
        """Wait for a moment for what the processes say, or for their ends."""
        for key, _ in self._selector.select(_TICK_SECONDS):
            place: _Place = key.data
            if place.control is not None and place.control.recv(1):
                place.ready = True
            else:
                self._bury(place)

    def _announce(self) -> None:
        if not self._announced and all(place.ready for place in self._places):
            self._announced = True
            self._on_ready()

    def _bury(self, place: _Place) -> None:
        """Take note of a process that has ended; it is started again, later and later if it keeps dying."""
        child = self._let_go(place)
        if self.told:
            return
        how = _how(child.returncode)
        if not self._announced:
            raise MixwrightError(
                f"the {place.role} process of the service {how} before it was ready: read the log above"
            )
        lived = time.monotonic() - place.started_at
        place.n_deaths = 1 if lived >= _STABLE_SECONDS else place.n_deaths + 1
        pause = 0.0 if place.n_deaths == 1 else min(2.0 ** (place.n_deaths - 2), _LONGEST_PAUSE_SECONDS)
        place.start_at = time.monotonic() + pause
        _log.error("the %s process %d %s; another one starts in %g s", place.role, child.pid, how, pause)

    def _let_go(self, place: _Place) -> subprocess.Popen[bytes]:
        child, control = place.child, place.control
        if child is None or control is None:
            raise RuntimeError("there is no process to let go of")
        self._selector.unregister(control)
        control.close()
        child.wait()
        mark_process_dead(child.pid, str(self._folder))  # type: ignore[no-untyped-call]
        place.child = place.control = None
        return child

    def _stop(self) -> None:
        """Ask all processes to end, and wait for them, but not for ever, and no longer than to the next signal."""
        for child in self._children():
            child.terminate()
        end = time.monotonic() + self._settings.drain_seconds + self._settings.shutdown_seconds + _GRACE_SECONDS
        while self._children() and len(self.told) == 1 and time.monotonic() < end:
            self._listen()

    def _kill(self) -> None:
        for place in self._places:
            if place.child is not None:
                place.child.kill()
                self._let_go(place)

    def _children(self) -> list[subprocess.Popen[bytes]]:
        return [place.child for place in self._places if place.child is not None]


@contextmanager
def _heard(hear: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, hear) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _how(returncode: int) -> str:
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"


class WorkerMark:
    """A file that the process of the jobs holds locked while it works. The kernel unlocks it when that dies."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "worker.lock"
        self._held: IO[bytes] | None = None

    def hold(self) -> None:
        """Say that the worker lives, until ``release`` or the end of this process."""
        self._held = self._path.open("wb")
        fcntl.flock(self._held, fcntl.LOCK_EX)

    def release(self) -> None:
        """Say that the worker has ended."""
        if self._held is not None:
            self._held.close()

    def alive(self) -> bool:
        """True while a process holds the mark."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False
