"""Fixtures that every test file may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Two OpenMP pools on two cores are slower than one, and Ray must not report or authenticate in tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from support import published_corpus

from mixwright.schemas.manifests import CorpusManifest
from mixwright.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "home")


PublishCorpus = Callable[..., CorpusManifest]


@pytest.fixture
def publish_corpus(store: Store) -> PublishCorpus:
    """Publishes a table of documents as a corpus, without the ingest job."""

    return partial(published_corpus, store)
