"""The job board and its worker: claims, leases, cancelling, and jobs that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from mixwright.config import Settings
from mixwright.errors import ConfigError, ConflictError, DataError, NotFoundError
from mixwright.jobs import worker as worker_module
from mixwright.jobs.board import MAX_ATTEMPTS, Board, Claim, log_path
from mixwright.jobs.database import Database, JobRow
from mixwright.jobs.inputs import inputs_state
from mixwright.jobs.worker import Worker
from mixwright.schemas.jobs import Job, JobProgress, JobResult
from mixwright.schemas.manifests import CorpusManifest
from mixwright.schemas.requests import EmbedRequest, IngestRequest
from mixwright.store import Store

MANIFEST = CorpusManifest(
    name="wiki",
    version=1,
    fingerprint="a" * 64,
    created_at=datetime.now(UTC),
    n_documents=1,
    n_duplicates=0,
    n_quarantined=0,
    n_tokens=1,
    n_text_bytes=1,
    tokenizer="bytes",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Of the worker's tests, which start processes and wait, one database is enough.
    if "board" in metafunc.fixturenames and "child" not in metafunc.fixturenames:
        metafunc.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def settings(tmp_path: Path, database_url: str | None) -> Settings:
    return Settings(home=tmp_path / "home", database_url=database_url)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.catalog_url)
    database.upgrade()
    yield database
    database.close()


@pytest.fixture
def board(database: Database) -> Board:
    return Board(database)


def request(name: str = "wiki", **fields: Any) -> dict[str, Any]:
    return {"kind": "ingest", "name": name, "paths": ["wiki.jsonl"], **fields}


def expire(database: Database, job_id: str) -> None:
    with database.writing() as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_until=past))


def claimed(board: Board, owner: str = "worker") -> Claim:
    claim = board.claim(owner)
    assert claim is not None
    return claim


# Submitting


def test_a_job_keeps_its_request(board: Board) -> None:
    job = board.submit(request(domain="en.wikipedia.org"))
    assert board.get(job.id) == job
    assert (job.kind, job.state, job.attempts) == ("ingest", "queued", 0)
    assert job.request == {"name": "wiki", "paths": ["wiki.jsonl"], "domain": "en.wikipedia.org"}


def test_the_same_active_request_is_the_same_job(board: Board) -> None:
    job = board.submit(request())
    assert board.submit(dict(reversed(request().items()))).id == job.id
    assert board.submit(request("web")).id != job.id
    claimed(board)
    assert board.submit(request()).id == job.id


def test_a_succeeded_job_answers_only_for_unchanged_inputs(board: Board) -> None:
    job = board.submit(request(), "state 1")
    board.succeed(claimed(board), MANIFEST)
    assert board.submit(request(), "state 1").id == job.id
    changed = board.submit(request(), "state 2")
    assert changed.id != job.id
    board.succeed(claimed(board), MANIFEST)
    # Unknown inputs can always have changed.
    assert board.submit(request(), None).id not in (job.id, changed.id)


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_failed_and_cancelled_jobs_may_be_submitted_again(board: Board, end: str) -> None:
    job = board.submit(request(), "state")
    claim = claimed(board)
    assert board.fail(claim, DataError("broken")) if end == "failed" else board.end_cancelled(claim)
    assert board.get(job.id).state == end
    assert board.submit(request(), "state").id != job.id


def test_threads_that_submit_the_same_get_one_job(board: Board) -> None:
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.append(board.submit(request()).id)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1


def test_unknown_jobs_are_named(board: Board) -> None:
    for call in (board.get, board.cancel):
        for job_id in ("no-such-job", "no-such-job\0", ""):
            with pytest.raises(NotFoundError, match=f"no job {job_id}"):
                call(job_id)


def test_pages_hold_every_job_once(board: Board) -> None:
    submitted = [board.submit(request(f"corpus-{number}")).id for number in range(5)]
    seen, cursor = [], None
    while True:
        page = board.page(2, cursor)
        seen += [job.id for job in page.items]
        board.submit(request(f"later-{len(seen)}"))
        if (cursor := page.next_cursor) is None:
            break
    assert seen == submitted[::-1]
    with pytest.raises(ConfigError, match="cursor"):
        board.page(2, "nonsense")


def test_pages_filter_by_state_and_kind(board: Board) -> None:
    first = board.submit(request("first"))
    second = board.submit({"kind": "embed", "corpus": "first"})
    claimed(board)
    assert [job.id for job in board.page(10, state="running").items] == [first.id]
    assert [job.id for job in board.page(10, state="queued").items] == [second.id]
    assert [job.id for job in board.page(10, kind="embed").items] == [second.id]


# Claims and leases

CLAIMER = """
import sys
from mixwright.jobs.board import Board
from mixwright.jobs.database import Database
board = Board(Database(sys.argv[1]))
while claim := board.claim("process"):
    print(claim.job_id)
"""


def test_every_job_is_claimed_once_by_threads_and_processes(board: Board, settings: Settings) -> None:
    submitted = {board.submit(request(f"corpus-{number}")).id for number in range(60)}
    processes = [
        subprocess.Popen([sys.executable, "-c", CLAIMER, settings.catalog_url], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    mine: list[str] = []

    def claim_some() -> None:
        while claim := board.claim("thread"):
            mine.append(claim.job_id)
            time.sleep(0.05)

    threads = [threading.Thread(target=claim_some) for _ in range(3)]
    for thread in threads:
        thread.start()
    theirs = [line for process in processes for line in process.communicate(timeout=60)[0].split()]
    for thread in threads:
        thread.join()
    assert Counter(mine + theirs) == Counter(submitted)


def test_jobs_are_claimed_oldest_first(board: Board) -> None:
    submitted = [board.submit(request(f"corpus-{number}")).id for number in range(3)]
    assert [claimed(board).job_id for _ in range(3)] == submitted
    assert board.claim("worker") is None


def test_an_expired_lease_goes_back_and_its_attempt_is_shut_out(board: Board, database: Database) -> None:
    job = board.submit(request())
    late = claimed(board, "one")
    assert board.claim("two") is None
    expire(database, job.id)
    current = claimed(board, "two")
    assert (current.job_id, current.attempt) == (job.id, 2)
    progress = JobProgress(stage="read", done=1, total=2, unit="files", rate=1.0, eta_seconds=1.0)
    assert not board.heartbeat(late)
    assert not board.report(late, progress)
    assert not board.fail(late, DataError("late"))
    assert not board.succeed(late, MANIFEST)
    assert board.get(job.id).state == "running"
    assert board.report(current, progress)
    assert board.get(job.id).progress == progress
    assert board.succeed(current, MANIFEST)
    assert board.get(job.id).result == JobResult(kind="corpus", ref="wiki@1", fingerprint="a" * 64)


def test_a_heartbeat_keeps_the_lease(board: Board, database: Database) -> None:
    job = board.submit(request())
    claim = claimed(board)
    expire(database, job.id)
    assert board.heartbeat(claim)
    assert board.claim("other") is None


def test_a_job_that_kills_its_workers_fails_in_the_end(board: Board, database: Database) -> None:
    job = board.submit(request())
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert claimed(board).attempt == attempt
        expire(database, job.id)
    assert board.claim("worker") is None
    failed = board.get(job.id)
    assert failed.state == "failed"
    assert failed.error is not None
    assert f"{MAX_ATTEMPTS} times" in failed.error["detail"]


def test_a_released_job_has_lost_no_attempt(board: Board) -> None:
    board.submit(request())
    for _ in range(MAX_ATTEMPTS + 2):
        claim = claimed(board)
        assert claim.attempt == 1
        assert board.release(claim)


# Cancelling


def test_cancelling(board: Board, database: Database) -> None:
    queued = board.submit(request("queued"))
    assert board.cancel(queued.id).state == "cancelled"
    assert board.cancel(queued.id).state == "cancelled"
    assert board.claim("worker") is None
    running = board.submit(request("running"))
    claimed(board)
    asked = board.cancel(running.id)
    assert (asked.state, asked.cancel_requested) == ("running", True)
    # Its worker dies before it can obey.
    expire(database, running.id)
    assert board.claim("worker") is None
    assert board.get(running.id).state == "cancelled"


def test_a_finished_job_cannot_be_cancelled(board: Board) -> None:
    job = board.submit(request())
    board.succeed(claimed(board), MANIFEST)
    with pytest.raises(ConflictError, match="succeeded"):
        board.cancel(job.id)


# What a request reads


def test_the_state_of_files_changes_with_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one")

    def state(*paths: str) -> str | None:
        return inputs_state(store, IngestRequest(name="n", paths=list(paths)))

    ways = [str(folder), str(folder / "a.txt"), str(folder / "*.txt")]
    first = [state(way) for way in ways]
    assert None not in first
    assert [state(way) for way in ways] == first
    (folder / "a.txt").write_text("two")
    os.utime(folder / "a.txt", (1, 1))
    second = [state(way) for way in ways]
    assert all(new not in (old, None) for new, old in zip(second, first, strict=True))
    (folder / "b.txt").write_text("three")
    assert state(str(folder)) != second[0]
    assert state(str(folder / "absent.txt")) is None


def test_the_state_of_artifacts_changes_with_a_new_version(store: Store, publish_corpus: Any) -> None:
    from support import document_table

    wanted = EmbedRequest(corpus="wiki")
    publish_corpus("wiki", document_table(["a"]))
    first = inputs_state(store, wanted)
    assert inputs_state(store, wanted) == first
    publish_corpus("wiki", document_table(["b"]))
    assert inputs_state(store, wanted) != first


# The worker, with a real process a job that does as its request says

CHILD = """
import os, signal, subprocess, sys, time, types
from datetime import UTC, datetime
from pathlib import Path
from mixwright.config import Settings
from mixwright.errors import ShortfallError
from mixwright.schemas.manifests import CorpusManifest
from mixwright.schemas.requests import IngestRequest
from pydantic import TypeAdapter

def run_request(store, request, progress):
    behaviour = request.name
    progress.start("read files", total=4, unit="files")
    for _ in range(4):
        progress.advance()
    progress.note("a warning line")
    if behaviour == "refuse":
        raise ShortfallError("wiki has too few: ask for less", source="wiki", largest_budget=7)
    if behaviour == "crash":
        raise ValueError("an unforeseen thing")
    if behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "sleep":
        helper = subprocess.Popen(["sleep", "300"])
        Path(request.paths[0]).write_text(f"{os.getpid()} {helper.pid}")
        time.sleep(300)
    if behaviour == "wait":
        Path(request.paths[0]).write_text(str(os.getpid()))
        while Path(request.paths[0]).exists():
            time.sleep(0.02)
    if behaviour == "slow-exit":
        # The result is written, the process lingers: over several heartbeats, in this test.
        import atexit
        atexit.register(time.sleep, 1.0)
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        helper = subprocess.Popen(["sleep", "300"])  # which ignores it too
        Path(request.paths[0]).write_text(f"{os.getpid()} {helper.pid}")
        time.sleep(300)
    return CorpusManifest(name=behaviour, version=1, fingerprint="b" * 64, created_at=datetime.now(UTC),
        n_documents=1, n_duplicates=0, n_quarantined=0, n_tokens=1, n_text_bytes=1, tokenizer="bytes")

fake = types.ModuleType("mixwright.jobs.run")
fake.REQUEST_ADAPTER = TypeAdapter(IngestRequest)
fake.run_request = run_request
sys.modules["mixwright.jobs.run"] = fake
from mixwright.jobs.worker import run_claimed_job
sys.exit(run_claimed_job(Settings(home=Path(sys.argv[3])), sys.argv[1]))
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    monkeypatch.setattr(worker_module, "_COMMAND", (sys.executable, str(script)))
    return script


@pytest.fixture
def results() -> list[JobResult]:
    return []


@pytest.fixture
def worker(settings: Settings, board: Board, child: Path, results: list[JobResult]) -> Iterator[Worker]:
    worker = Worker(settings, board, results.append, grace_seconds=1.0)
    worker.start()
    yield worker
    worker.stop()


def wait_for(found: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError("did not happen in time")


def finished(board: Board, job: Job) -> Job:
    def final() -> Job | None:
        seen = board.get(job.id)
        return seen if seen.is_final else None

    return wait_for(final)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def pids_in(path: Path) -> list[int]:
    return wait_for(lambda: path.exists() and [int(word) for word in path.read_text().split()])


def test_a_job_that_succeeds(worker: Worker, board: Board, results: list[JobResult], settings: Settings) -> None:
    job = board.submit(request("fine"))
    worker.wake()
    done = finished(board, job)
    assert done.state == "succeeded"
    assert done.result == JobResult(kind="corpus", ref="fine@1", fingerprint="b" * 64)
    assert done.progress is not None
    assert (done.progress.stage, done.progress.done, done.progress.total) == ("read files", 4, 4)
    assert done.progress.eta_seconds == 0
    assert done.attempts == 1
    wait_for(lambda: results == [done.result])
    assert "a warning line" in log_path(settings.home, job.id).read_text()


def test_a_job_runs_on_while_the_board_does_not_answer(
    board: Board,
    settings: Settings,
    database: Database,
    child: Path,
    results: list[JobResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "_HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(worker_module, "_WATCH_SECONDS", 0.1)
    failures = []

    class LostBoard(Board):
        def heartbeat(self, claim: Claim) -> bool:
            if len(failures) < 4:
                failures.append(claim)
                raise OperationalError("UPDATE jobs", {}, Exception("the server closed the connection"))
            return super().heartbeat(claim)

    worker = Worker(settings, LostBoard(database), results.append)
    worker.start()
    waiting = tmp_path / "waiting"
    job = board.submit(request("wait", paths=[str(waiting)]))
    worker.wake()
    wait_for(lambda: len(failures) == 4 and waiting.exists())
    waiting.unlink()
    wait_for(lambda: results)
    worker.stop()
    assert (board.get(job.id).state, board.get(job.id).attempts) == ("succeeded", 1)


def test_a_process_that_lingers_after_its_result(
    board: Board,
    settings: Settings,
    child: Path,
    results: list[JobResult],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(worker_module, "_HEARTBEAT_SECONDS", 0.1)
    worker = Worker(settings, board, results.append, grace_seconds=5.0)
    worker.start()
    job = board.submit(request("slow-exit"))
    wait_for(lambda: results)
    worker.stop()
    assert board.get(job.id).result == results[0]
    assert caplog.text == ""


def test_a_job_that_is_refused(worker: Worker, board: Board, results: list[JobResult], settings: Settings) -> None:
    done = finished(board, board.submit(request("refuse")))
    assert done.state == "failed"
    assert done.error == {
        "type": "urn:mixwright:error:shortfall",
        "title": "Budget cannot be met",
        "status": 409,
        "detail": "wiki has too few: ask for less",
        "source": "wiki",
        "largest_budget": 7,
    }
    assert "Traceback" in log_path(settings.home, done.id).read_text()
    assert results == []


def test_jobs_that_die_without_a_word(worker: Worker, board: Board, settings: Settings) -> None:
    crashed = finished(board, board.submit(request("crash")))
    assert crashed.state == "failed"
    assert crashed.error is not None
    assert "exit code 1" in crashed.error["detail"]
    assert "Traceback" not in str(crashed.error)
    assert "ValueError: an unforeseen thing" in log_path(settings.home, crashed.id).read_text()
    killed = finished(board, board.submit(request("killed")))
    assert killed.error is not None
    assert "SIGKILL" in killed.error["detail"]
    # And the worker goes on.
    assert finished(board, board.submit(request("fine"))).state == "succeeded"


@pytest.mark.parametrize("behaviour", ["sleep", "stubborn"])
def test_cancelling_ends_the_whole_process_group(
    worker: Worker, board: Board, tmp_path: Path, behaviour: str
) -> None:
    job = board.submit(request(behaviour, paths=[str(tmp_path / "pids")]))
    pids = pids_in(tmp_path / "pids")
    board.cancel(job.id)
    assert finished(board, job).state == "cancelled"
    assert not any(alive(pid) for pid in pids)


def test_stopping_the_worker_puts_its_job_back(worker: Worker, board: Board, tmp_path: Path) -> None:
    job = board.submit(request("sleep", paths=[str(tmp_path / "pids")]))
    pids = pids_in(tmp_path / "pids")
    worker.stop()
    seen = board.get(job.id)
    assert (seen.state, seen.attempts, seen.progress) == ("queued", 0, None)
    assert not any(alive(pid) for pid in pids)
    assert not worker.alive


def test_a_job_does_not_outlive_a_killed_service(
    board: Board, settings: Settings, child: Path, tmp_path: Path, database: Database
) -> None:
    service = tmp_path / "service.py"
    service.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from mixwright.config import Settings\n"
        "from mixwright.jobs import worker\n"
        "from mixwright.jobs.board import Board\n"
        "from mixwright.jobs.database import Database\n"
        f"worker._COMMAND = (sys.executable, {str(child)!r})\n"
        f"settings = Settings(home=Path({str(settings.home)!r}))\n"
        "worker.Worker(settings, Board(Database(settings.catalog_url)), print).start()\n"
        "time.sleep(300)\n"
    )
    job = board.submit(request("sleep", paths=[str(tmp_path / "pids")]))
    process = subprocess.Popen([sys.executable, str(service)])
    pids = pids_in(tmp_path / "pids")
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(alive(pid) for pid in pids))
    assert board.get(job.id).state == "running"
    expire(database, job.id)
    assert claimed(board).attempt == 2


def test_only_claimed_jobs_run(board: Board, settings: Settings, child: Path) -> None:
    job = board.submit(request("fine"))
    command = [sys.executable, str(child), job.id, "--home", str(settings.home)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert "only a worker runs jobs" in found.stderr
    assert board.get(job.id).state == "queued"
