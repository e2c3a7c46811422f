"""``mixwright serve`` as processes of their own: how they share a port, stop, die and start again."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import document_table, processes, published_corpus, stat_field, wait_for

from mixwright.config import Settings
from mixwright.errors import ConfigError
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.selectors.requests import SelectRequest
from mixwright.service.server import serve
from mixwright.store import Store

N_ROWS = 3000
ROWS = "/v1/mixtures/blend/rows"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose mixture blend is some 25 MB as JSON lines: more than the buffers between two programs hold."""
    store = Store(tmp_path_factory.mktemp("server") / "home")
    texts = [f"{number} ".ljust(8000, "x") for number in range(N_ROWS)]
    published_corpus(store, "wiki", document_table(texts))
    request = {"name": "blend", "sources": ["wiki"], "budget": {"documents": N_ROWS}}
    run_select(store, SelectRequest.model_validate({**request, "selector": {"kind": "uniform"}}), NoProgress())
    return store.home


@contextmanager
def serving(home: Path, *arguments: str, **settings: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves, and its address. Whatever happens, it and its children end."""
    command = [sys.executable, "-m", "mixwright", "serve", "--home", str(home), "--port", "0", *arguments]
    service = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # What a killed parent leaves in the temporary folder goes with the home.
        env=os.environ
        | {"TMPDIR": str(home.parent)}
        | {f"MIXWRIGHT_{name.upper()}": value for name, value in settings.items()},
    )
    assert service.stdout is not None
    members = {service.pid}
    try:
        yield service, service.stdout.readline().split()[-1]
    finally:
        members.update(children(service.pid))
        for pid in members:
            if stat_field(pid, 1) != -1:
                os.kill(pid, signal.SIGKILL)
        service.communicate(timeout=30)


def children(pid: int, role: str = "") -> list[int]:
    """The processes that a process has started, or those of one role."""
    found = [each for each in processes() if stat_field(each, 1) == pid]
    return [each for each in found if f"mixwright.service.child\0{role}" in _command(each)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


class SlowReader:
    """A client that has begun to read a stream, and leaves the rest where it is until it is told to go on."""

    def __init__(self, address: str, path: str) -> None:
        host, _, port = address.removeprefix("http://").rpartition(":")
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(60)
        self._socket.connect((host, int(port)))
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        self.received = self._socket.recv(4096)
        assert self.received.startswith(b"HTTP/1.1 200 ")

    def read_on(self) -> bytes:
        """Everything up to the end of the connection."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        parts = [self.received]
        with self._socket:
            while part := self._socket.recv(1 << 16):
                parts.append(part)
        return b"".join(parts)


def is_complete(answer: bytes) -> bool:
    """Whether a chunked answer has its last chunk, without which no client takes it for complete."""
    return answer.endswith(b"\r\n0\r\n\r\n")


def test_open_streams_end_before_the_service_does(home: Path) -> None:
    with (
        serving(home, drain_seconds="2", shutdown_seconds="60") as (service, address),
        # Each request has a connection of its own.
        httpx2.Client(base_url=address, headers={"Connection": "close"}) as balancer,
    ):
        reader = SlowReader(address, ROWS)
        assert balancer.get("/readyz").json()["status"] == "ready"
        service.terminate()
        # Not ready at once, but still there: load balancers have some time to see it.
        answers: list[httpx2.Response] = []
        wait_for(lambda: answers.append(balancer.get("/readyz")) or answers[-1].status_code == 503, 1.9)
        assert "about to stop" in answers[-1].json()["detail"]
        wait_for(lambda: not listens(address))
        assert service.poll() is None
        answer = reader.read_on()
        assert is_complete(answer)
        assert sorted(int(n) for n in re.findall(rb'"text":"(\d+) x', answer)) == list(range(N_ROWS))
        assert service.wait(20) == -signal.SIGTERM


def listens(address: str) -> bool:
    host, _, port = address.removeprefix("http://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def test_a_second_signal_ends_the_service_at_once(home: Path) -> None:
    with serving(home, shutdown_seconds="60") as (service, address):
        reader = SlowReader(address, ROWS)
        service.terminate()
        wait_for(lambda: not listens(address))
        time.sleep(0.2)
        assert service.poll() is None
        service.terminate()
        assert service.wait(5) == -signal.SIGTERM
        assert not is_complete(reader.read_on())


def test_several_processes_live_and_die(home: Path) -> None:
    with serving(home, "--workers", "2", shutdown_seconds="1") as (service, address):
        first, second = children(service.pid, "http")
        (jobs,) = children(service.pid, "jobs")
        # A process is killed: the other one answers, and a new one comes.
        os.kill(first, signal.SIGKILL)
        with httpx2.Client(base_url=address, timeout=30) as client:
            for _ in range(20):
                assert client.get("/v1/mixtures").status_code == 200
            os.kill(jobs, signal.SIGKILL)
            wait_for(lambda: client.get("/readyz").status_code == 503)
            wait_for(lambda: client.get("/readyz").status_code == 200, 60)
        wait_for(lambda: len(children(service.pid, "http")) == 2)
        assert second in children(service.pid, "http")
        assert jobs not in children(service.pid, "jobs")
        _check_figures_of_all(service.pid, address)
        # The parent is killed: nobody is left behind, and what was open breaks off after a second.
        reader = SlowReader(address, ROWS)
        left = children(service.pid)
        service.kill()
        wait_for(lambda: not listens(address))
        wait_for(lambda: all(stat_field(pid, 1) == -1 for pid in left))
        answer = reader.read_on()
        assert len(answer) > 10_000
        assert not is_complete(answer)


def _check_figures_of_all(supervisor: int, address: str) -> None:
    """Whichever process is asked adds up what all of them count."""
    for _ in range(10):
        httpx2.get(f"{address}/v1/corpora")  # each on a connection of its own

    def value(name: str, **labels: str) -> float:
        return samples[name, frozenset(labels.items())]

    families = list(text_string_to_metric_families(httpx2.get(f"{address}/metrics").text))
    samples = {
        (each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples
    }
    assert value("mixwright_http_requests_total", method="GET", route="/v1/corpora", status="200") == 10
    assert value("mixwright_http_requests_in_progress") == 1
    assert value("mixwright_component_up", component="worker") == 1
    page = os.sysconf("SC_PAGE_SIZE")
    resident = sum(stat_field(pid, 21) * page for pid in children(supervisor))
    assert value("process_resident_memory_bytes") == pytest.approx(resident, rel=0.2)


def test_ray_actors_are_of_one_process(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, search_on="ray")
    with pytest.raises(ConfigError, match="--workers"):
        serve(settings, "127.0.0.1", 0, pytest.fail, processes=2)
