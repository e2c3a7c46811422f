"""How fast a mixture's rows are read, and that a seek costs the same everywhere.

    python benchmarks/streams.py [--documents 200000] [--repeats 5]

Makes a home with three corpora and a mixture in a temporary folder, then prints rows a second of a sequential
read (with and without tags, as Arrow tables and as JSON lines) and the milliseconds to the first 64 rows at
several positions, each as median and range over the repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mixwright.jobs.ingest import run_ingest
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.mixtures import Budget
from mixwright.schemas.requests import IngestRequest
from mixwright.selectors.requests import SelectRequest
from mixwright.selectors.streams import MixtureStream, to_ndjson
from mixwright.store import Store


def make_mixtures(store: Store, folder: Path, documents: int) -> None:
    """Three corpora of unequal size, and one mixture with and one without tags over 80 % of their tokens."""
    shares, total = {"web": 0.7, "books": 0.25, "code": 0.05}, 0
    for name, share in shares.items():
        path = folder / f"{name}.jsonl"
        with path.open("w") as sink:
            for i in range(int(documents * share)):
                url = f"https://site{i % 500}.example.org/{i}"
                sink.write(json.dumps({"text": f"{name} {i} " + "lorem ipsum " * (i % 80), "url": url}) + "\n")
        request = IngestRequest(name=name, paths=[str(path)], tokenizer="bytes")
        total += run_ingest(store, request, NoProgress()).n_tokens
    for kind in ("proportional", "domain-tags"):
        select = SelectRequest(
            name=kind, sources=list(shares), selector={"kind": kind}, budget=Budget(tokens=int(total * 0.8))
        )
        run_select(store, select, NoProgress())


def timed(repeats: int, work: Callable[[], int]) -> tuple[list[float], int]:
    """Seconds of each repeat, after one that warms the page cache, and what ``work`` counted."""
    count = work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return seconds, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "home")
        make_mixtures(store, Path(folder), arguments.documents)
        print("rows a second, one process: median (range)")
        for kind in ("proportional", "domain-tags"):
            stream = MixtureStream.open(store, kind)
            ways: dict[str, Callable[[], int]] = {
                "Arrow tables": lambda s=stream: sum(table.num_rows for table in s.read(count=50_000)),
                "JSON lines": lambda s=stream: sum(to_ndjson(t).count(b"\n") for t in s.read(count=50_000)),
            }
            for way, work in ways.items():
                seconds, count = timed(arguments.repeats, work)
                rates = sorted(count / each for each in seconds)
                median = statistics.median(rates)
                print(f"  {kind:13} {way:13} {median:9,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})")
        stream = MixtureStream.open(store, "domain-tags")
        print("milliseconds to the first 64 rows: median (range)")
        for part in (0.0, 0.25, 0.5, 0.999):
            start = int(len(stream) * part)
            seconds, _ = timed(arguments.repeats, lambda at=start: next(stream.read(at, 64)).num_rows)
            spread = sorted(each * 1000 for each in seconds)
            median = statistics.median(spread)
            print(f"  position {start:9,}  {median:6.1f} ({spread[0]:.1f} to {spread[-1]:.1f})")


if __name__ == "__main__":
    main()
