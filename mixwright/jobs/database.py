"""The database of the catalog and the job board: engine, tables, schema migrations.

SQLite inside the home folder unless another SQLAlchemy URL is set. The catalog's tables can be rebuilt from
the store; only the job board's history lives here alone.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    UniqueConstraint,
    create_engine,
    event,
    text,
)
from sqlalchemy.engine import URL, Connection, Dialect, Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from mixwright.errors import ConfigError, MissingExtraError, first_line

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_MS = 30_000
_MAX_CONNECTIONS = 48
"""To a server, from one process: its 40 threads for requests, its worker, and what it asks beside them."""
_KEPT_CONNECTIONS = 10
_POOL_SECONDS = 10
_PATIENCE = {"connect_timeout": 5, "tcp_user_timeout": 30_000}
"""Seconds to connect, and milliseconds that sent data may wait for a network that has gone."""
_UPGRADE_LOCK = 0x6D697877
"""Key of the PostgreSQL advisory lock that keeps two services from upgrading at once."""


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, stored in UTC and read back with its zone (SQLite keeps none)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Tables of this database. Constraints are named, so that a migration can change them anywhere."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
        int: BigInteger(),
    }


class ArtifactRow(Base):
    """A published artifact."""

    __tablename__ = "artifacts"
    __table_args__ = (
        UniqueConstraint("kind", "name", "version"),
        Index(None, "kind", "created_at", "name", "version"),
    )

    # SQLite numbers rows by itself only where the column's type is exactly INTEGER.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(128))
    version: Mapped[int]
    fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[datetime]
    n_rows: Mapped[int]
    n_tokens: Mapped[int | None]
    selector: Mapped[str | None] = mapped_column(String(64))
    manifest: Mapped[dict[str, Any]]
    inputs: Mapped[list[ArtifactInputRow]] = relationship(
        cascade="all, delete-orphan", passive_deletes=True, order_by="ArtifactInputRow.position"
    )


class ArtifactInputRow(Base):
    """An edge of the lineage: an artifact and one of its inputs, which need not be in the catalog."""

    __tablename__ = "artifact_inputs"
    __table_args__ = (Index(None, "kind", "name", "version"),)

    artifact_id: Mapped[int] = mapped_column(
        BigInteger(), ForeignKey("artifacts.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(128))
    version: Mapped[int]
    fingerprint: Mapped[str] = mapped_column(String(64))


class ArtifactDomainRow(Base):
    """A domain that occurs in a corpus."""

    __tablename__ = "artifact_domains"

    artifact_id: Mapped[int] = mapped_column(
        BigInteger(), ForeignKey("artifacts.id", ondelete="CASCADE"), primary_key=True
    )
    domain: Mapped[str] = mapped_column(String(), primary_key=True, index=True)


class JobRow(Base):
    """A job. ``attempts`` is also the number that a running attempt must show to change its row."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "state", "created_at"), Index(None, "created_at", "id"))

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    request: Mapped[dict[str, Any]]
    request_fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    # The request's fingerprint while the job is queued or running, else null: no two such jobs ask the same.
    active_fingerprint: Mapped[str | None] = mapped_column(String(64), unique=True)
    inputs_state: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int]
    cancel_requested: Mapped[bool]
    owner: Mapped[str | None] = mapped_column(String(255))
    lease_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]


class ApiKeyRow(Base):
    """An API key. Its secret is not here: only its hash."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    scope: Mapped[str] = mapped_column(String(16))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class SessionRow(Base):
    """A browser that somebody signed in with a key. The token in its cookie is not here: only its hash."""

    __tablename__ = "sessions"

    token_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(16), ForeignKey("api_keys.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Database:
    """One database: sessions to read and to write, and its schema.

    Raises ConfigError for a URL that SQLAlchemy does not understand, MissingExtraError where PostgreSQL's driver
    is not installed. Nothing is opened until it is needed.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = _with_driver(make_url(url))
            self.engine = _engine(parsed)
        except ModuleNotFoundError as error:
            if error.name != "psycopg":
                raise _unusable(error) from error
            raise MissingExtraError("psycopg", "postgresql") from error
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise _unusable(error) from error
        self.url = parsed

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads."""
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session of one transaction: committed at the end, rolled back if an exception passes."""
        with Session(self.engine.execution_options(mixwright_write=True)) as session, session.begin():
            yield session

    def upgrade(self) -> None:
        """Bring the schema up to date; safe to call from several processes at once.

        Raises ConfigError if the database cannot be reached or was written by a newer mixwright.
        """
        try:
            if self.url.get_backend_name() == "sqlite":
                Path(self.url.database or "").parent.mkdir(parents=True, exist_ok=True)
            upgrade(self.engine)
        except (OperationalError, OSError) as error:
            reason = first_line(error.orig or error) if isinstance(error, OperationalError) else error.strerror
            raise ConfigError(
                f"the catalog database {self.url.render_as_string()} does not open ({reason}): check "
                "MIXWRIGHT_DATABASE_URL and the home folder"
            ) from error
        except CommandError as error:
            raise ConfigError(
                f"the catalog database was written by another mixwright version ({error}): install that "
                "version or use another home folder"
            ) from error

    def check(self) -> None:
        """Ask the database for one row; raises sqlalchemy.exc.OperationalError if it does not answer."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1 FROM jobs WHERE 1 = 0"))

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        self.engine.dispose()


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Run the migrations up to ``revision`` in one transaction."""
    _migrate(engine, command.upgrade, revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Run the migrations back to ``revision`` in one transaction; ``base`` is an empty database."""
    _migrate(engine, command.downgrade, revision)


def _migrate(engine: Engine, run: Any, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with engine.execution_options(mixwright_write=True).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        config.attributes["connection"] = connection
        run(config, revision)


def _with_driver(url: URL) -> URL:
    """``postgresql://`` means our driver, which is not the default of every SQLAlchemy."""
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _unusable(error: Exception) -> ConfigError:
    return ConfigError(
        f"MIXWRIGHT_DATABASE_URL is not a usable database URL ({error}): write one such as "
        "sqlite:////data/catalog.sqlite or postgresql://user@host/name, and install its driver"
    )


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        patience = _PATIENCE if url.get_driver_name() == "psycopg" else {}
        return create_engine(
            url,
            # A connection that the server has closed meanwhile is replaced, not used.
            pool_pre_ping=True,
            pool_size=_KEPT_CONNECTIONS,
            max_overflow=_MAX_CONNECTIONS - _KEPT_CONNECTIONS,
            pool_timeout=_POOL_SECONDS,
            connect_args={key: value for key, value in patience.items() if key not in url.query},
        )
    engine = create_engine(url)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, record: Any) -> None:
    # Python's sqlite3 begins transactions on its own and late; _begin_sqlite does it instead.
    connection.isolation_level = None
    for pragma in (f"busy_timeout = {_BUSY_TIMEOUT_MS}", "synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()
    _use_write_ahead_log(connection)


def _use_write_ahead_log(connection: Any) -> None:
    """Two processes that open a new database switch it at once; SQLite does not wait there by its busy timeout."""
    end = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: two readers that both turn writers would fail, not wait.
    write = connection.get_execution_options().get("mixwright_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
