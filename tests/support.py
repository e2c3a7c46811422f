"""Helpers that tests share."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from mixwright.schemas.documents import DOCUMENT_SCHEMA, ID_LENGTH


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


def kill_half_way(code: str, arguments: Sequence[str], home: Path, n_marks: int) -> Path:
    """Run a job's code in a session of its own, SIGKILL all of the session once there are some marks.

    Returns the staging folder that it leaves.
    """
    child = subprocess.Popen([sys.executable, "-c", code, str(home), *arguments], start_new_session=True)
    try:
        wait_for(lambda: len(list(home.glob("staging/*/marks/*.json"))) >= n_marks)
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
