"""Fixtures that every test file may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

# Two OpenMP pools on two cores are slower than one, and Ray must not report or authenticate in tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixwright.fingerprint import fingerprint
from mixwright.schemas.manifests import CorpusManifest
from mixwright.schemas.references import Reference
from mixwright.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "home")


PublishCorpus = Callable[..., CorpusManifest]


@pytest.fixture
def publish_corpus(store: Store) -> PublishCorpus:
    """Publishes a table of documents as a corpus, without the ingest job."""

    def publish(name: str, table: pa.Table, shard_rows: int = 1000) -> CorpusManifest:
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

    return publish
