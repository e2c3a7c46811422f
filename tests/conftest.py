"""Fixtures that every test file may use."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

# Two OpenMP pools on two cores are slower than one, and Ray must not report or authenticate in tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The test client says that it talks to "testserver", and what tests have jobs read is in temporary folders.
os.environ.setdefault("MIXWRIGHT_ALLOWED_HOSTS", "testserver")
os.environ.setdefault("MIXWRIGHT_ALLOWED_PATHS", os.pathsep.join([tempfile.gettempdir(), os.getcwd()]))

import pytest
from support import published_corpus

from mixwright.schemas.manifests import CorpusManifest
from mixwright.store import Store

if TYPE_CHECKING:
    from postgresql_server import Postgresql
    from s3_server import S3Server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "home")


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 server on loopback."""
    from s3_server import S3Server

    server = S3Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgresql]:
    """A running PostgreSQL server."""
    from postgresql_server import Postgresql

    server = Postgresql()
    yield server
    server.close()


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """An empty database of the kind that a test is parametrised by; None is SQLite in the home folder."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield None
        return
    server: Postgresql = request.getfixturevalue("postgresql")
    with server.schema() as url:
        yield url


PublishCorpus = Callable[..., CorpusManifest]


@pytest.fixture
def publish_corpus(store: Store) -> PublishCorpus:
    """Publishes a table of documents as a corpus, without the ingest job."""

    return partial(published_corpus, store)
