"""How much a service answers over HTTP: small requests and streams of rows, with one server process and with more.

    python benchmarks/serving.py [--workers 1 --workers 2] [--clients 4] [--seconds 5]

Clients are processes of their own beside the service; their share of the cores is part of the figures. Rows are
100 words of 5 letters. Medians over the repeats, with the least and the greatest.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mixwright.jobs.ingest import run_ingest
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.requests import IngestRequest
from mixwright.selectors.requests import SelectRequest
from mixwright.store import Store

N_ROWS = 50_000
ROWS = "/v1/mixtures/blend/rows"
LOADS = {
    "small requests/s": ("/v1/mixtures/blend", "application/json"),
    "rows/s as JSON lines": (ROWS, "application/x-ndjson"),
    "rows/s as Arrow": (ROWS, "application/vnd.apache.arrow.stream"),
}


def make_home(home: Path) -> None:
    """A home with the mixture blend of generated documents."""
    generator = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
    words = [bytes(row).decode() for row in generator.choice(letters, size=(5000, 5))]
    texts = [" ".join(row) for row in np.asarray(words)[generator.integers(0, len(words), size=(N_ROWS, 100))]]
    home.mkdir(parents=True)
    pq.write_table(pa.table({"text": texts}), home / "texts.parquet")
    store = Store(home)
    ingest = {"name": "texts", "paths": [str(home / "texts.parquet")], "tokenizer": "bytes"}
    run_ingest(store, IngestRequest.model_validate(ingest), NoProgress())
    select = {
        "name": "blend",
        "sources": ["texts"],
        "selector": {"kind": "uniform"},
        "budget": {"documents": N_ROWS},
    }
    run_select(store, SelectRequest.model_validate(select), NoProgress())


def client(port: int, path: str, accept: str, seconds: float, answer: multiprocessing.Queue[int]) -> None:
    """Ask again and again for some time; answers how many requests were answered, or rows came."""
    end, done = time.monotonic() + seconds, 0
    connection = http.client.HTTPConnection("127.0.0.1", port)
    while time.monotonic() < end:
        connection.request("GET", path, headers={"Accept": accept})
        response = connection.getresponse()
        if path != ROWS:
            response.read()
            done += 1
        elif "arrow" in accept:
            done += _arrow_rows(response, end)
        else:
            while time.monotonic() < end and (part := response.read1(1 << 16)):
                done += part.count(b"\n")
        if not response.isclosed():
            connection.close()
    answer.put(done)


def _arrow_rows(response: http.client.HTTPResponse, end: float) -> int:
    done = 0
    for batch in pa.ipc.open_stream(response):
        done += batch.num_rows
        if time.monotonic() >= end:
            break
    return done


def measure(port: int, load: str, n_clients: int, seconds: float) -> float:
    """Answers, or rows, a second, of all clients together."""
    path, accept = LOADS[load]
    answer: multiprocessing.Queue[int] = multiprocessing.Queue()
    clients = [
        multiprocessing.Process(target=client, args=(port, path, accept, seconds, answer))
        for _ in range(n_clients)
    ]
    for each in clients:
        each.start()
    done = sum(answer.get(timeout=seconds + 60) for _ in clients)
    for each in clients:
        each.join()
    return done / seconds


def main() -> None:
    """Print one table for all numbers of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, action="append")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"| processes | {' | '.join(LOADS)} |\n|---|{'---|' * len(LOADS)}")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        make_home(home)
        for n_workers in arguments.workers or [1, 2]:
            command = [sys.executable, "-m", "mixwright", "serve", "--home", str(home), "--port", "0"]
            service = subprocess.Popen([*command, "--workers", str(n_workers)], stdout=subprocess.PIPE, text=True)
            assert service.stdout is not None  # noqa: S101
            port = int(service.stdout.readline().rpartition(":")[2])
            cells = []
            for load in LOADS:
                found = [
                    measure(port, load, arguments.clients, arguments.seconds) for _ in range(arguments.repeats)
                ]
                cells.append(f"{statistics.median(found):,.0f} [{min(found):,.0f}–{max(found):,.0f}]")
            service.terminate()
            service.wait()
            print(f"| {n_workers} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
