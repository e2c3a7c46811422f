"""The worker: claims jobs from the board and runs each in a process of its own.

A job that crashes, leaks or is killed takes only its own process with it. The process leads a process group, so
that cancelling ends whatever it started. Its standard output and error are the job's log; the board gets one line.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType

from sqlalchemy.exc import SQLAlchemyError

from mixwright.config import Settings
from mixwright.errors import ConflictError, JobError, MixwrightError
from mixwright.jobs.board import LEASE, Board, Claim, log_path
from mixwright.jobs.confinement import Confinement, confined
from mixwright.jobs.database import Database
from mixwright.jobs.train_command import refuse_train_command
from mixwright.logs import configure_logging
from mixwright.remote.store import store_of
from mixwright.schemas.jobs import Job, JobProgress, JobResult
from mixwright.schemas.requests import EmbedRequest, PilotRequest

_log = logging.getLogger(__name__)

_TICK_SECONDS = 0.2
_WATCH_SECONDS = 0.5
"""How often cancel requests are looked for, and idle workers look at the board."""
_HEARTBEAT_SECONDS = LEASE.total_seconds() / 5
_GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL: a job may have a Ray cluster to take down."""
_REPORT_SECONDS = 0.5
_TERMINATED = 128 + signal.SIGTERM


class Worker:
    """Runs the board's jobs, one at a time, in a thread beside the service.

    ``on_success`` is called with the result of every job that succeeded, ``on_end`` with every job that has ended.
    """

    def __init__(
        self,
        settings: Settings,
        board: Board,
        on_success: Callable[[JobResult], None],
        grace_seconds: float = _GRACE_SECONDS,
        on_end: Callable[[Job], None] | None = None,
    ) -> None:
        self._settings = settings
        self._board = board
        self._on_success = on_success
        self._grace_seconds = grace_seconds
        self._on_end = on_end
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to work."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="mixwright-worker", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look at the board now: there is a new job."""
        self._wake.set()

    def ask_to_stop(self) -> None:
        """Begin to stop: the running job ends and goes back into the queue, in its own time."""
        self._stopping.set()
        self._wake.set()

    def stop(self) -> None:
        """End the running job, put it back into the queue, and wait for the thread."""
        self.ask_to_stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def alive(self) -> bool:
        """True while the worker works."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                claim = self._board.claim(self._owner)
                if claim is not None:
                    self._work(claim)
                    continue
            except (SQLAlchemyError, OSError, MixwrightError) as error:
                _log.warning("the worker tries again in a moment: %s", error)
            self._wake.wait(_WATCH_SECONDS)
            self._wake.clear()

    def _work(self, claim: Claim) -> None:
        path = log_path(self._settings.home, claim.job_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as log:
            log.write(f"attempt {claim.attempt}, {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode())
            log.flush()
            child = subprocess.Popen(
                [*_COMMAND, claim.job_id, "--home", str(self._settings.home)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its log is for people.
                env=environment_of(self._settings) | {"MIXWRIGHT_LOG_FORMAT": "text"},
                start_new_session=True,
            )
        try:
            self._watch(claim, child)
        finally:
            # Whatever happened above, no process of the job outlives its worker's interest in it.
            _end_group(child, self._grace_seconds)
        self._tell(self._board.get(claim.job_id))

    def _tell(self, job: Job) -> None:
        _log.info("job %s (%s), attempt %d: %s", job.id, job.kind, job.attempts, job.state)
        if job.is_final and self._on_end is not None:
            self._on_end(job)

    def _watch(self, claim: Claim, child: subprocess.Popen[bytes]) -> None:
        """Follow a running job to its end."""
        next_heartbeat = time.monotonic() + _HEARTBEAT_SECONDS
        next_look = time.monotonic()
        while _returncode(child, _TICK_SECONDS) is None:
            now = time.monotonic()
            if self._stopping.is_set():
                return self._give_back(claim, child)
            cancelled, held = False, True
            try:
                if now >= next_look:
                    next_look = now + _WATCH_SECONDS
                    cancelled = self._board.get(claim.job_id).cancel_requested
                if now >= next_heartbeat:
                    next_heartbeat = now + _HEARTBEAT_SECONDS
                    held = self._board.heartbeat(claim)
            except SQLAlchemyError as error:
                # Should another worker have taken it over meanwhile, the next heartbeat tells.
                _log.warning("job %s runs on while the board does not answer: %s", claim.job_id, error)
            if cancelled:
                return self._cancel(claim, child)
            if not held:
                return self._let_go(claim, child)
        # Without effect on a job that has written its result or its error, as all do that do not die.
        self._board.fail(claim, JobError(_cause_of_death(claim.job_id, child.returncode)))
        return self._conclude(claim)

    def _let_go(self, claim: Claim, child: subprocess.Popen[bytes]) -> None:
        """The job is not running any more, by what the board says."""
        if not self._board.get(claim.job_id).is_final:
            _log.warning("job %s was taken over by another worker", claim.job_id)
            return
        _returncode(child, self._grace_seconds)
        self._conclude(claim)

    def _give_back(self, claim: Claim, child: subprocess.Popen[bytes]) -> None:
        _end_group(child, self._grace_seconds)
        if self._board.get(claim.job_id).cancel_requested:
            self._board.end_cancelled(claim)
        else:
            self._board.release(claim)

    def _cancel(self, claim: Claim, child: subprocess.Popen[bytes]) -> None:
        _end_group(child, self._grace_seconds)
        self._board.end_cancelled(claim)

    def _conclude(self, claim: Claim) -> None:
        job = self._board.get(claim.job_id)
        if job.result is not None:
            self._on_success(job.result)


_COMMAND = (sys.executable, "-m", "mixwright", "jobs", "run")


def run_claimed_job(settings: Settings, job_id: str) -> int:
    """Run a job that a worker has claimed, in this process; returns its exit status.

    The result, or the error of a job that failed on purpose, goes to the board; stack traces to standard error.
    Raises NotFoundError, ConflictError if no worker has claimed the job.
    """
    configure_logging(settings)
    database = Database(settings.catalog_url)
    try:
        return _run_claimed(settings, Board(database), job_id)
    finally:
        database.close()


def _run_claimed(settings: Settings, board: Board, job_id: str) -> int:
    from mixwright.jobs.run import REQUEST_ADAPTER, run_request

    job = board.get(job_id)
    if job.state != "running":
        raise ConflictError(f"job {job_id} is {job.state}: only a worker runs jobs, submit it and wait")
    claim = Claim(job_id, job.attempts)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    _end_with_parent()
    try:
        request = REQUEST_ADAPTER.validate_python({"kind": job.kind, **job.request})
        if isinstance(request, PilotRequest):
            refuse_train_command(request.evaluator, settings)
        confinement = Confinement.of(settings)
        confinement.check(request)
        if isinstance(request, EmbedRequest | PilotRequest) and request.workers is None:
            request = request.model_copy(update={"workers": settings.workers})
        progress = BoardProgress(board, claim)
        with confined(confinement):
            manifest = run_request(store_of(settings), request, progress)
        progress.flush()
        board.succeed(claim, manifest)
    except MixwrightError as error:
        traceback.print_exc()
        board.fail(claim, error)
        return 1
    return 0


class BoardProgress:
    """A Progress that writes to the board, at most twice a second, and notes to standard error."""

    def __init__(self, board: Board, claim: Claim) -> None:
        self._board = board
        self._claim = claim
        self._stage, self._unit = "", "documents"
        self._total: int | None = None
        self._done = 0
        self._began = self._reported = time.monotonic()

    def start(self, stage: str, total: int | None = None, unit: str = "documents") -> None:
        self.flush()
        self._stage, self._total, self._unit, self._done = stage, total, unit, 0
        self._began = time.monotonic()
        sys.stderr.write(f"{stage}\n")
        self.flush()

    def advance(self, n: int = 1) -> None:
        self._done += n
        if time.monotonic() - self._reported >= _REPORT_SECONDS:
            self.flush()

    def note(self, message: str) -> None:
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()

    def flush(self) -> None:
        """Write what has been reported so far."""
        if not self._stage:
            return
        self._reported = time.monotonic()
        try:
            self._board.report(self._claim, self._progress())
        except SQLAlchemyError as error:
            # Work is not lost because nobody could be told about it.
            _log.warning("progress was not stored: %s", error)

    def _progress(self) -> JobProgress:
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = self._done / seconds
        left = None if self._total is None else max(self._total - self._done, 0)
        return JobProgress(
            stage=self._stage,
            done=self._done,
            total=self._total,
            unit=self._unit,
            rate=round(rate, 3),
            eta_seconds=round(left / rate, 1) if left is not None and self._done else None,
        )


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment of another process that is to read the same settings."""
    values = {f"MIXWRIGHT_{name.upper()}": value for name, value in settings.model_dump().items()}
    values["MIXWRIGHT_DATABASE_URL"] = settings.catalog_url
    fixed = {name: str(value) for name, value in values.items() if value is not None}
    return {**os.environ, **fixed, "PYTHONUNBUFFERED": "1"}


def _returncode(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _end_group(child: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """Ask the process group of a job to end, then end it; returns when its leader is gone."""
    if child.poll() is None:
        _signal_group(child.pid, signal.SIGTERM)
        _returncode(child, grace_seconds)
    # Also after the leader has gone: it may have left processes behind.
    _signal_group(child.pid, signal.SIGKILL)
    child.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _cause_of_death(job_id: str, returncode: int) -> str:
    if returncode < 0:
        names = {each.value: each.name for each in signal.Signals}
        how = f"was killed by {names.get(-returncode, -returncode)}"
        hint = " (often: out of memory)" if returncode == -signal.SIGKILL else ""
    else:
        how, hint = f"ended with exit code {returncode}", ""
    return f"the process of job {job_id} {how}{hint} and gave no reason: read the job's log, then submit it again"


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    # An exception, so that what the job opened is closed and its staging folder removed.
    raise SystemExit(_TERMINATED)


def _end_with_parent() -> None:
    """End this process group when the worker that started it is gone, however it went."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    if os.getpgrp() == os.getpid():
        threading.Thread(target=watch, name="mixwright-parent", daemon=True).start()
