"""Helpers that tests share."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from mixwright.fingerprint import fingerprint
from mixwright.schemas.documents import DOCUMENT_SCHEMA, ID_LENGTH
from mixwright.schemas.manifests import CorpusManifest
from mixwright.schemas.references import Reference
from mixwright.store import Store

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.routing import APIRoute
    from starlette.types import ASGIApp

    from mixwright.jobs.marked_shards import Workers
    from mixwright.progress import Progress


RETRIEVAL_DIM = 16
RETRIEVAL_WORDS = [f"{first}{rest}" for first in "bdfgklmnprst" for rest in ("arn", "elt", "ilk", "omb")]


def document_table(
    texts: Sequence[str],
    *,
    source: str = "wiki",
    domains: Sequence[str | None] | None = None,
    urls: Sequence[str | None] | None = None,
    n_tokens: Sequence[int] | None = None,
    metadata: Sequence[str] | None = None,
) -> pa.Table:
    """Document rows made by hand; tokens are words unless given."""
    n = len(texts)
    return pa.table(
        {
            "id": [hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH] for text in texts],
            "text": texts,
            "source": [source] * n,
            "domain": domains or [None] * n,
            "url": urls or [None] * n,
            "n_tokens": n_tokens if n_tokens is not None else [len(text.split()) for text in texts],
            "metadata": metadata or ["{}"] * n,
        },
        schema=DOCUMENT_SCHEMA,
    )


def retrieval_table(n: int = 220, seed: int = 0, source: str = "wiki") -> pa.Table:
    """Documents of one to three passages. Many vectors are equal, and every fifth text is nearly one before it.

    A vector has four coordinates of ±0.5: its products with whole numbers are exact, and ties are common.
    """
    generator = np.random.default_rng(seed)
    texts, metadata, domains = [], [], []
    for number in range(n):
        words = generator.choice(RETRIEVAL_WORDS, size=generator.integers(4, 50)).tolist()
        if number % 5 == 4 and len(texts[number - 3].split()) > 20:
            words = [*texts[number - 3].split()[:-1], "other"]
        texts.append(" ".join([*words, f"n{number}"]))
        vector = [0] * RETRIEVAL_DIM
        for place in generator.choice(RETRIEVAL_DIM, size=4, replace=False).tolist():
            vector[place] = int(generator.choice([-1, 1]))
        if number > 3 and (number % 3 == 2 or number % 10 == 4):
            vector = json.loads(json.loads(metadata[number - 3])["vector"])
        metadata.append(json.dumps({"vector": json.dumps(vector), "year": 1990 + number % 30}))
        domains.append(["a.org", "b.org", "c.org", None][number % 4])
    return document_table(texts, source=source, domains=domains, metadata=metadata)


def published_corpus(store: Store, name: str, table: pa.Table, shard_rows: int = 1000) -> CorpusManifest:
    """Publish a table of documents as a corpus, without the ingest job."""
    identity = fingerprint("corpus", table["id"].to_pylist(), {"source": table["source"][0].as_py()})
    with store.stage("corpus", Reference(name), identity) as staging:
        (staging.path / "shards").mkdir()
        files = []
        for number, start in enumerate(range(0, table.num_rows, shard_rows)):
            shard = table.slice(start, shard_rows)
            path = f"shards/part-{number:05d}.parquet"
            pq.write_table(shard, staging.path / path)
            files.append(staging.entry(path, shard.num_rows))
        draft = CorpusManifest(
            name=name,
            version=1,
            fingerprint=identity,
            files=files,
            created_at=datetime.now(UTC),
            n_documents=table.num_rows,
            n_duplicates=0,
            n_quarantined=0,
            n_tokens=sum(table["n_tokens"].to_pylist()),
            n_text_bytes=sum(len(text.encode()) for text in table["text"].to_pylist()),
            tokenizer="bytes",
        )
        return store.publish(staging, draft)


def run_workers_here(patch: Callable[[object, str, object], None] = setattr) -> None:
    """Let the datastore jobs of this process run their shard workers in it, one after the other, without Ray.

    ``patch`` sets an attribute: ``setattr`` for good, or that of a MonkeyPatch. FAISS trains with one thread.
    """
    from mixwright.jobs import marked_shards
    from mixwright.jobs.datastores import build, changes, indexing, language_scores

    def run(workers: Workers, missing: list[str], progress: Progress) -> None:
        worker = workers.actor(*workers.arguments, "cpu")
        for shard in missing:
            for before, reached in pairwise([0, *worker.run(shard)]):
                progress.advance(reached - before)

    patch(marked_shards, "_run", run)
    for module in (marked_shards, build, changes, language_scores):
        patch(module, "ray_session", lambda *_: nullcontext())
    patch(indexing, "cpu_count", lambda: 1)


_KILLABLE_JOBS = """
import json, os, sys
from pathlib import Path

import faiss, polars, pyarrow.parquet
from support import run_workers_here

from mixwright.jobs.run import REQUEST_ADAPTER, run_request
from mixwright.progress import NoProgress
from mixwright.store import Store

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link"}
run_workers_here()


def work(home, request, last_change, answer):
    n_changes = 0

    def count(event, arguments):
        nonlocal n_changes
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if opened or event in CHANGES:
            n_changes += 1
            if n_changes == last_change:
                os.kill(os.getpid(), 9)

    sys.addaudithook(count)
    run_request(Store(Path(home)), REQUEST_ADAPTER.validate_python(request), NoProgress())
    os.write(answer, str(n_changes).encode())


for line in sys.stdin:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            work(*json.loads(line), write)
        except BaseException as error:
            os.write(write, repr(error).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        print(answer.read().decode() or "killed", flush=True)
    os.waitpid(child, 0)
"""


class KillableJobs:
    """Runs jobs, each in a process of its own, that die of SIGKILL just before a given change of the file system.

    They are forked from one process that has imported all that jobs need, and start in some milliseconds.
    """

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _KILLABLE_JOBS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def run(self, store: Store, request: BaseModel, last_change: int = 0) -> int | None:
        """Run a job; returns how often it changed the file system, or None if it was killed at ``last_change``."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(
            json.dumps([str(store.home), request.model_dump(mode="json"), last_change]),
            file=self._server.stdin,
            flush=True,
        )
        answer = self._server.stdout.readline().strip()
        assert answer == "killed" or answer.isdigit(), answer
        return None if answer == "killed" else int(answer)

    def close(self) -> None:
        """End the process that jobs are forked from."""
        self._server.communicate()


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The address of an app that a thread of this process serves on a free port."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=2))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_for(lambda: server.started or not thread.is_alive())
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


_KILLABLE_SERVICES = """
import json, os, sys, traceback
from pathlib import Path

import polars, pyarrow.parquet

from mixwright.config import Settings
from mixwright.service.server import serve

for line in sys.stdin:
    home, port = json.loads(line)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        try:
            serve(Settings(home=Path(home)), "127.0.0.1", port, lambda url: os.write(write, f"{url}\\n".encode()))
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(write)
    with open(read) as answer:
        print(json.dumps([child, answer.readline().strip()]), flush=True)
"""


class KillableService:
    """``mixwright serve`` of one home in a process of its own, which can die of SIGKILL and be started again.

    It is forked from one process that has imported all that a service needs, and keeps its port.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._forker = subprocess.Popen(
            [sys.executable, "-c", _KILLABLE_SERVICES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._pid = 0
        self.url = "http://127.0.0.1:0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        port = int(self.url.rpartition(":")[2])
        print(json.dumps([str(self._home), port]), file=self._forker.stdin, flush=True)
        self._pid, self.url = json.loads(self._forker.stdout.readline())
        assert self.url, "the service did not start"

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        pid, self._pid = self._pid, 0
        os.kill(pid, signal.SIGKILL)
        # Its port is free when it is gone.
        wait_for(lambda: stat_field(pid, 1) == -1)

    def close(self) -> None:
        """End it, and what it is forked from."""
        if self._pid:
            self.kill()
        self._forker.communicate()


class Recorder:
    """A Progress that remembers, and calls ``on_advance`` at the first documents done."""

    def __init__(self, on_advance: Callable[[], None] | None = None) -> None:
        self.total: int | None = None
        self.done = 0
        self.notes: list[str] = []
        self._on_advance = on_advance

    def start(self, stage: str, total: int | None = None, unit: str = "documents") -> None:
        self.total = total

    def advance(self, n: int = 1) -> None:
        assert n >= 0
        self.done += n
        if self.done and self._on_advance:
            callback, self._on_advance = self._on_advance, None
            callback()

    def note(self, message: str) -> None:
        self.notes.append(message)


def api_routes(app: FastAPI) -> list[APIRoute]:
    """The app's routes, those of the routers that it includes too, which it keeps as they are."""
    from fastapi.routing import APIRoute

    found, waiting = [], list(app.routes)
    while waiting:
        route = waiting.pop(0)
        if isinstance(route, APIRoute):
            found.append(route)
        waiting += getattr(getattr(route, "original_router", None), "routes", [])
    return found


def stat_field(pid: int, field: int) -> int:
    """A field of /proc/PID/stat counted from behind the command's name: 1 parent, 3 session; -1 if gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] == "Z" else int(fields[field])


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def identities(folder: Path, pattern: str) -> dict[str, tuple[int, int]]:
    """Inode and time of the last change of each file: another one after a file was written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob(pattern)}


def kill_half_way(
    code: str, arguments: Sequence[str], home: Path, n_marks: int, marks: str = "marks/*.json"
) -> Path:
    """Run a job's code in a session of its own, SIGKILL all of the session once there are some marks.

    Returns the staging folder that it leaves.
    """
    child = subprocess.Popen([sys.executable, "-c", code, str(home), *arguments], start_new_session=True)
    try:
        wait_for(lambda: len(list(home.glob(f"staging/*/{marks}"))) >= n_marks)
    finally:
        members = [pid for pid in processes() if stat_field(pid, 3) == child.pid]
        for pid in members:
            os.kill(pid, signal.SIGKILL)
        child.wait()
    wait_for(lambda: not any(stat_field(pid, 3) == child.pid for pid in processes()))
    assert child.returncode == -signal.SIGKILL
    return next(path for path in home.glob("staging/*/") if path.is_dir())


def total_variation(weights: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Half the L1 distance (n, m) between mixtures (n, k) and (m, k): the share of the tokens that moves."""
    return np.abs(weights[:, None] - others[None]).sum(axis=-1) / 2
