"""How long a declared mixture takes, which is selected while its client waits.

    python benchmarks/query.py [--documents 1000000] [--repeats 3]

Makes a home with three corpora of one-character texts in a temporary folder, and prints seconds of a query with
shares alone, with a condition on metadata, with tags, and with all of these in three stages: median and range over
the repeats, each another mixture.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from mixwright.jobs.query import query_mixture
from mixwright.progress import NoProgress
from mixwright.schemas.documents import DOCUMENT_SCHEMA
from mixwright.schemas.manifests import CorpusManifest
from mixwright.schemas.references import Reference
from mixwright.selectors.query import MixtureQuery
from mixwright.store import Store

SHARES = {"web": 0.6, "books": 0.3, "code": 0.1}
STAGES = [
    {"name": "one", "share": 0.6},
    {"name": "two", "share": 0.3, "weights": {"web": 1, "code": 1}},
    {"name": "three", "share": 0.1, "weights": {"books": 1}},
]
QUERIES: dict[str, dict[str, Any]] = {
    "shares": {"weights": SHARES},
    "condition": {"where": "year > 2000"},
    "tags": {"tags": {}},
    "all, in three stages": {"where": "year > 2000 AND n_tokens > 50", "tags": {}, "stages": STAGES},
}


def publish(store: Store, name: str, n: int, shard_rows: int = 500_000) -> int:
    """A corpus of n documents whose lengths are log-normal; returns its tokens."""
    rng = np.random.default_rng(n)
    n_tokens = rng.lognormal(5.5, 1, n).astype(np.int64) + 1
    with store.stage("corpus", Reference(name), f"{n:064x}") as staging:
        (staging.path / "shards").mkdir()
        files = []
        for number, start in enumerate(range(0, n, shard_rows)):
            stop = min(start + shard_rows, n)
            columns = {
                "id": [
                    f"{high:016x}{low:016x}" for high, low in rng.integers(0, 2**63, (stop - start, 2)).tolist()
                ],
                "text": ["x"] * (stop - start),
                "source": [name] * (stop - start),
                "domain": [f"site{row % 5000}.org" for row in range(start, stop)],
                "url": [None] * (stop - start),
                "n_tokens": n_tokens[start:stop],
                "metadata": [f'{{"year": {1990 + row % 30}}}' for row in range(start, stop)],
            }
            path = f"shards/part-{number:05d}.parquet"
            pq.write_table(pa.table(columns, schema=DOCUMENT_SCHEMA), staging.path / path)
            files.append(staging.entry(path, stop - start))
        draft = CorpusManifest(
            name=name,
            version=1,
            fingerprint=f"{n:064x}",
            files=files,
            created_at=datetime.now(UTC),
            n_documents=n,
            n_duplicates=0,
            n_quarantined=0,
            n_tokens=int(n_tokens.sum()),
            n_text_bytes=n,
            tokenizer="bytes",
        )
        return store.publish(staging, draft).n_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        total = sum(publish(store, name, int(share * options.documents)) for name, share in SHARES.items())
        for label, declared in QUERIES.items():
            seconds = []
            for seed in range(options.repeats):
                body = {"sources": list(SHARES), "budget": {"tokens": total // 2}, "seed": seed, **declared}
                query = TypeAdapter(MixtureQuery).validate_python(body)
                began = time.perf_counter()
                query_mixture(store, query, NoProgress())
                seconds.append(time.perf_counter() - began)
            print(
                f"{label:22} {statistics.median(seconds):6.2f} s [{min(seconds):.2f}–{max(seconds):.2f}]",
                flush=True,
            )


if __name__ == "__main__":
    main()
