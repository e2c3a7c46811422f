"""A datastore's shards in Ray actors against its shards in one process, in one run on the same store.

    python benchmarks/sharded_search.py [--passages 100000] [--shards 2] [--dim 384] [--k 10] [--repeats 9]

Builds a datastore of generated passages with flat indexes, and asks both for the same queries, taking turns in
each repeat: one query at a time, batches of 64 at once, and single queries from four threads. Figures are medians
over the repeats: milliseconds a search and queries a second. A ratio is that of the queries a second in one repeat
(above 1 the actors are faster), with the least and the greatest in brackets. The encoder hashes words, so that
queries cost next to nothing to embed.

The actors run wherever Ray does: on this machine, or on the cluster of RAY_ADDRESS, which must see the folder of
--home (default: a temporary one).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixwright.indexes.datastores.datastore import Datastore
from mixwright.jobs.datastores.build import run_datastore
from mixwright.jobs.ingest import run_ingest
from mixwright.jobs.ray_pool import cpu_count
from mixwright.jobs.shard_actors import ServingSession, open_sharded_datastore
from mixwright.progress import NoProgress
from mixwright.schemas.datastores import DatastoreRequest, SearchRequest
from mixwright.schemas.requests import IngestRequest
from mixwright.store import Store

WORDS = 48
VOCABULARY = 20_000


class Load(NamedTuple):
    """``n_searches`` of ``batch`` queries each, from so many threads."""

    name: str
    batch: int
    n_searches: int
    n_threads: int


LOADS = (Load("1 query", 1, 40, 1), Load("64 queries", 64, 3, 1), Load("1 query × 4 threads", 1, 80, 4))


def make_store(home: Path, passages: int, shards: int, dim: int) -> Store:
    """A store with the datastore ``bench``, of documents that are one passage each."""
    store, path = Store(home), home / "texts.jsonl"
    home.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for words in np.random.default_rng(0).zipf(1.2, size=(passages, WORDS)) % VOCABULARY:
            file.write(json.dumps({"text": " ".join(f"w{word}" for word in words)}) + "\n")
    run_ingest(store, IngestRequest(name="bench", paths=[str(path)]), NoProgress())
    request = DatastoreRequest(
        name="bench",
        corpora=["bench"],
        encoder=f"hashing:{dim}",
        index_kind="flat",
        near_duplicates="exact",
        shards=shards,
    )
    run_datastore(store, request, NoProgress())
    return store


def requests_of(load: Load, mode: str, k: int) -> list[SearchRequest]:
    drawn = np.random.default_rng(1).zipf(1.2, size=(load.n_searches, load.batch, WORDS // 6)) % VOCABULARY
    return [
        SearchRequest.model_validate(
            {"queries": [" ".join(f"w{word}" for word in words) for words in batch], "k": k, "mode": mode}
        )
        for batch in drawn
    ]


def run(datastore: Datastore, load: Load, requests: Sequence[SearchRequest]) -> tuple[float, float]:
    """Median milliseconds of a search, and queries a second of all."""

    def milliseconds(request: SearchRequest) -> float:
        begin = time.perf_counter()
        datastore.search(request)
        return 1000 * (time.perf_counter() - begin)

    with ThreadPoolExecutor(load.n_threads) as pool:
        begin = time.perf_counter()
        times = list(pool.map(milliseconds, requests))
        seconds = time.perf_counter() - begin
    return statistics.median(times), load.batch * load.n_searches / seconds


def compare(local: Datastore, sharded: Datastore, load: Load, mode: str, k: int, repeats: int) -> str:
    """One line of the table."""
    requests = requests_of(load, mode, k)
    if [local.search(each).hits for each in requests] != [sharded.search(each).hits for each in requests]:
        raise SystemExit("the two find different passages")
    found: dict[str, list[tuple[float, float]]] = {"local": [], "sharded": []}
    for number in range(repeats):
        turns = [("local", local), ("sharded", sharded)]
        for name, datastore in turns if number % 2 else reversed(turns):
            found[name].append(run(datastore, load, requests))
    ratios = [theirs[1] / ours[1] for ours, theirs in zip(found["local"], found["sharded"], strict=True)]
    cells = [statistics.median(each[part] for each in found[name]) for part in (0, 1) for name in found]
    return (
        f"| {mode} | {load.name} | {cells[0]:.2f} | {cells[1]:.2f} | {cells[2]:,.0f} | {cells[3]:,.0f} "
        f"| {statistics.median(ratios):.2f} [{min(ratios):.2f}–{max(ratios):.2f}] |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--home", type=Path)
    asked = parser.parse_args()
    session = ServingSession()
    session.start()
    with tempfile.TemporaryDirectory() as folder:
        home = asked.home or Path(folder) / "home"
        store = make_store(home, asked.passages, asked.shards, asked.dim)
        local, sharded = Datastore.open(store, "bench"), open_sharded_datastore(store, "bench")
        print(
            f"{len(local):,} passages, {asked.shards} shards, dim {asked.dim}, k {asked.k}, {cpu_count()} cores, "
            f"{asked.repeats} repeats"
        )
        print("| mode | load | process ms | actors ms | process queries/s | actors queries/s | ratio |")
        print("|---|---|---|---|---|---|---|")
        for mode in ("dense", "bm25", "hybrid"):
            for load in LOADS:
                print(compare(local, sharded, load, mode, asked.k, asked.repeats), flush=True)
        sharded.close()
    session.stop()


if __name__ == "__main__":
    main()
