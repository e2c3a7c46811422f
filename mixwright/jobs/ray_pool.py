"""Ray: start it or connect to it, and run tasks on a pool of actors.

With ``RAY_ADDRESS`` set the jobs run on that cluster, whose machines must see the home folder under the same
path and have mixwright installed. Otherwise a Ray of this process's own is started, and ends with it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import mixwright
from mixwright.errors import ConfigError, JobError, MixwrightError, first_line
from mixwright.progress import Progress

MAX_ATTEMPTS = 3
"""Workers that one task may take with it before it is given up."""

_PATIENCE_SECONDS = 60.0
_CONNECT_SECONDS = 5.0


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Make Ray usable inside the block; what was running before the block runs on after it.

    Around several jobs it starts Ray once for all of them. ``num_cpus`` is how many workers of one core each
    a Ray started here has room for; default: the cores of this machine. Raises ConfigError if the cluster
    of ``RAY_ADDRESS`` cannot be reached.
    """
    _prepare_environment()
    import ray

    _join_logs()
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        ray.init(address=address, num_cpus=num_cpus or cpu_count(), include_dashboard=False, **quiet)
    else:
        _check_reachable(address)
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ConfigError(_no_cluster(address, error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _join_logs() -> None:
    """Let Ray's log go where this program's goes, in its form.

    Ray's own handler keeps the standard error of the moment in which Ray was imported, also when that was replaced
    and closed later.
    """
    logger = logging.getLogger("ray")
    logger.handlers.clear()
    logger.propagate = True


def _check_reachable(address: str) -> None:
    """Raise ConfigError at once where Ray would try a head node that is not there for minutes."""
    if address.startswith("ray://"):
        raise ConfigError(
            f"RAY_ADDRESS={address}: jobs do not run through Ray Client: work on a machine of the cluster, with "
            "RAY_ADDRESS=auto"
        )
    host, separator, port = address.rpartition(":")
    if separator:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise ConfigError(_no_cluster(address, error)) from error


def ray_state(timeout_seconds: float) -> Literal["ok", "on demand"]:
    """Whether jobs have a Ray: ``ok`` where one runs and answers, ``on demand`` where a job starts its own.

    Starts nothing, and does not import Ray. Raises ConfigError if the cluster of ``RAY_ADDRESS`` does not answer
    in time, or Ray is not installed.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("Ray is not installed: install mixwright with its dependencies")
        return "on demand"
    host, _, port = (_address_of_this_machine() if address == "auto" else address).rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_seconds) as connection:
            connection.settimeout(timeout_seconds)
            connection.sendall(_HTTP2_GREETING)
            answer = connection.recv(9)
    except (OSError, ValueError) as error:
        raise ConfigError(_no_cluster(address, error)) from error
    if answer[3:4] != _HTTP2_SETTINGS:
        raise ConfigError(_no_cluster(address, ValueError("something else listens there")))
    return "ok"


# A gRPC server, as the head of a cluster is, answers the greeting of an HTTP/2 client with its settings (RFC 9113,
# sections 3.4 and 4.1). A process that hangs accepts a connection, but does not answer.
_HTTP2_SETTINGS = b"\x04"
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _HTTP2_SETTINGS + bytes(5)


def _address_of_this_machine() -> str:
    """Where ``ray start`` on this machine has noted the cluster's address."""
    try:
        return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster").read_text().strip()
    except OSError as error:
        raise ConfigError(_no_cluster("auto", error)) from error


def _no_cluster(address: str, error: Exception) -> str:
    return (
        f"RAY_ADDRESS={address}: no Ray answers there ({first_line(error)}): start it, or unset the variable to "
        "work on this machine alone"
    )


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare_environment() -> None:
    """Set what Ray reads from the environment when it is imported; what the user has set stays."""
    if Path.cwd() == Path(mixwright.__file__).parent:
        # Ray puts the working directory on its workers' sys.path, where the package's `selectors` would
        # then hide Python's own.
        raise ConfigError(f"{Path.cwd()} is the folder of the package itself: work from another folder")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray prints a paragraph on standard output for each worker that dies, in the middle of a command's JSON:
    # skip every line that it would print; a dead worker is noted by the pool.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    local = os.environ.get("RAY_ADDRESS", "local") == "local"
    if local and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        # Ray listens on every network interface, and who reaches it runs code: its processes must show a
        # secret, which lives in this process's environment only (Ray's own default writes it to ~/.ray).
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def run_on_pool(
    create: Callable[[], Any], tasks: Sequence[str], size: int, progress: Progress
) -> Iterator[tuple[str, Any]]:
    """Run every task on one of ``size`` actors; yields (task, item) for each item that a worker yields.

    ``create`` starts an actor. It has a method ``ready()``, and a generator ``run(task)`` whose effect must
    bear repetition: when an actor dies, a new one runs its task from the start, so that items come again.
    Raises what ``run`` raises, as a MixwrightError, and JobError naming a task whose workers died three times.
    No actor outlives the iteration.
    """
    pool = _Pool(create, tasks, progress)
    try:
        for _ in range(min(size, len(tasks))):
            pool.start_actor()
        while pool.unfinished:
            yield from pool.step()
    finally:
        pool.stop()


class _Pool:
    """The state of one ``run_on_pool``: which actor does what, what waits, what has failed."""

    def __init__(self, create: Callable[[], Any], tasks: Sequence[str], progress: Progress) -> None:
        self._create = create
        self._progress = progress
        self._waiting = deque(tasks)
        self._deaths: Counter[str | None] = Counter()
        # By what is awaited: the ref of ready() (task None), or the generator of run(task).
        self._running: dict[Any, tuple[Any, str | None]] = {}
        self._patient = True

    @property
    def unfinished(self) -> bool:
        return bool(self._waiting) or any(task is not None for _, task in self._running.values())

    def start_actor(self) -> None:
        actor = self._create()
        self._running[actor.ready.remote()] = (actor, None)

    def step(self) -> Iterator[tuple[str, Any]]:
        """Wait for one event, and act on it."""
        import ray

        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=_PATIENCE_SECONDS)
        if not ready:
            self._note_no_worker()
            return
        source = ready[0]
        actor, task = self._running[source]
        try:
            item = ray.get(source if task is None else next(source))
        except StopIteration:
            task = None
        except ray.exceptions.RayTaskError as error:
            afterwards = " and run the job again; finished shards are kept"
            raise as_mixwright_error(error, task or "a worker", afterwards) from error
        except ray.exceptions.RayError as error:
            self._bury(source, task, error)
            return
        if task is not None:
            yield task, item
            return
        del self._running[source]
        self._dispatch(actor)

    def stop(self) -> None:
        import ray

        for actor, _ in self._running.values():
            ray.kill(actor)

    def _dispatch(self, actor: Any) -> None:
        """Give an idle actor the next task, or end it where there is none left."""
        import ray

        if not self._waiting:
            ray.kill(actor)
            return
        task = self._waiting.popleft()
        generator = actor.run.options(num_returns="streaming").remote(task)
        self._running[generator] = (actor, task)

    def _bury(self, source: Any, task: str | None, error: Exception) -> None:
        """Replace a dead actor, and put its task back to the front of the queue."""
        del self._running[source]
        self._deaths[task] += 1
        if self._deaths[task] >= MAX_ATTEMPTS:
            raise JobError(
                f"{task or 'the start of a worker'}: the worker died {MAX_ATTEMPTS} times "
                f"({first_line(error)}): look for its memory use, and run the job again with fewer workers or "
                "smaller batches; finished shards are kept"
            ) from error
        if task is not None:
            self._waiting.appendleft(task)
            self._progress.note(f"{task}: its worker died; another one takes it over")
        if self._waiting:
            self.start_actor()

    def _note_no_worker(self) -> None:
        """Say once that the cluster has no room; an actor that is at work but slow is no reason to."""
        if self._patient and all(task is None for _, task in self._running.values()):
            self._progress.note("waiting for Ray to start a worker: the cluster has no free core or GPU")
            self._patient = False


def as_mixwright_error(error: Any, name: str, afterwards: str = "") -> MixwrightError:
    """The error behind a RayTaskError of what ``name`` says; its own where it is one of ours, without Ray's trace.

    ``afterwards`` is what to do once the cause is mended.
    """
    cause = error.cause
    if isinstance(cause, MixwrightError):
        return cause
    hint = "use smaller batches" if "OutOfMemory" in type(cause).__name__ else "correct the cause"
    return MixwrightError(f"{name} failed with {type(cause).__name__} ({first_line(cause)}): {hint}{afterwards}")
