"""Search through REST against the bare FAISS call, in one run on the same vectors.

    python benchmarks/datastore_search.py [--passages 200000] [--dim 384] [--batch 64] [--k 10] [--repeats 15]

Builds a datastore of generated passages with a flat index, serves it on loopback in a process of its own, and asks
for the same batches of queries: as vectors by REST, as texts by REST, from ``Datastore.search`` in this process,
and from FAISS alone. A figure is the median of the repeats in milliseconds a batch, with the least and the most
in brackets; a ratio is that of the medians. The encoder hashes words: texts cost next to nothing to embed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from mixwright.indexes.datastores.datastore import Datastore
from mixwright.indexes.datastores.shards import INDEXES_FOLDER
from mixwright.indexes.faiss_import import import_faiss
from mixwright.jobs.datastores.build import run_datastore
from mixwright.jobs.ingest import run_ingest
from mixwright.progress import NoProgress
from mixwright.schemas.datastores import DatastoreRequest, SearchRequest
from mixwright.schemas.requests import IngestRequest
from mixwright.store import Store

WORDS = 24
VOCABULARY = 5000


def make_store(home: Path, passages: int, dim: int) -> Store:
    """A datastore ``bench`` of one shard, of documents that are one passage each."""
    rng = np.random.default_rng(0)
    store = Store(home)
    path = home / "texts.jsonl"
    home.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for words in rng.zipf(1.3, size=(passages, WORDS)) % VOCABULARY:
            file.write(json.dumps({"text": " ".join(f"w{word}" for word in words)}) + "\n")
    run_ingest(store, IngestRequest(name="bench", paths=[str(path)], duplicates="keep"), NoProgress())
    request = DatastoreRequest(
        name="bench", corpora=["bench"], encoder=f"hashing:{dim}", index_kind="flat", near_duplicates="exact"
    )
    run_datastore(store, request, NoProgress())
    return store


@contextmanager
def service(home: Path) -> Iterator[int]:
    """The service of that home in a process of its own, on a free port of loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "mixwright", "serve", "--home", str(home), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with suppress(ConnectionError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def timed(what: Callable[[int], object], repeats: int) -> list[float]:
    """Milliseconds of each of the calls, after one that warms up."""
    what(0)
    times = []
    for number in range(repeats):
        begin = time.perf_counter()
        what(number)
        times.append(1000 * (time.perf_counter() - begin))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=15)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as services:
        home = Path(folder) / "home"
        store = make_store(home, asked.passages, asked.dim)
        datastore = Datastore.open(store, "bench")
        faiss = import_faiss()
        index = faiss.read_index(str(datastore.directory / INDEXES_FOLDER / "00000.faiss"), faiss.IO_FLAG_MMAP_IFC)
        rng = np.random.default_rng(1)
        drawn = rng.zipf(1.3, size=(asked.repeats, asked.batch, WORDS // 2)) % VOCABULARY
        texts = [[" ".join(f"w{word}" for word in words) for words in batch] for batch in drawn]
        vectors = [datastore.encoder.encode(batch)[0] for batch in texts]
        port = services.enter_context(service(home))
        connection = http.client.HTTPConnection("127.0.0.1", port)

        def ask(body: bytes) -> None:
            connection.request("POST", "/v1/datastores/bench/search", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise SystemExit(content.decode())

        text_bodies = [json.dumps({"queries": batch, "k": asked.k}).encode() for batch in texts]
        vector_bodies = [json.dumps({"vectors": batch.tolist(), "k": asked.k}).encode() for batch in vectors]
        requests = [SearchRequest(vectors=batch.tolist(), k=asked.k) for batch in vectors]
        searches = {
            "FAISS alone": lambda number: index.search(vectors[number], asked.k),
            "Datastore.search, vectors": lambda number: datastore.search(requests[number]),
            "REST, vectors": lambda number: ask(vector_bodies[number]),
            "REST, texts": lambda number: ask(text_bodies[number]),
        }
        times = {name: timed(search, asked.repeats) for name, search in searches.items()}
        bare = statistics.median(times["FAISS alone"])
        threads = faiss.omp_get_max_threads()
        print(
            f"{asked.passages} passages of {asked.dim}, batches of {asked.batch}, k {asked.k}, {threads} threads"
        )
        for name, each in times.items():
            middle = statistics.median(each)
            print(f"{name:26} {middle:8.1f} ms [{min(each):.1f}, {max(each):.1f}]  {middle / bare:.2f} x FAISS")


if __name__ == "__main__":
    main()
