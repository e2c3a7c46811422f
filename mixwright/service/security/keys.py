"""API keys: made, listed, revoked, and the sessions that people open with them.

A key is ``mw_ID_SECRET``. It is looked up by its id; of its secret only the SHA-256 is stored. A slow hash, as for
passwords, would add nothing: the secret has 256 random bits, which nobody can try through at any speed, and the
hash would cost every request a tenth of a second.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict
from sqlalchemy import delete, or_, select, update

from mixwright.errors import ConfigError, NotFoundError
from mixwright.jobs.database import ApiKeyRow, Database, SessionRow

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
"""Each may what those before it may."""

SESSION_LENGTH = timedelta(hours=12)
_SECRET_BYTES = 32
_ID_BYTES = 6
_KEY = re.compile(r"mw_(?P<id>[0-9a-f]{12})_(?P<secret>[A-Za-z0-9_-]{43})", re.ASCII)
_LONGEST_NAME = 128
_USE_IS_NOTED_EVERY = timedelta(minutes=1)
_DURATION = re.compile(r"(?P<number>[1-9][0-9]{0,5})(?P<unit>[mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


class ApiKey(BaseModel):
    """What is known of a key, but for its secret."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        """Whether it opens anything."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


class KeyParts(NamedTuple):
    """A key as it is written, taken apart."""

    id: str
    secret: str


class StoredKey(NamedTuple):
    """A key as it is stored."""

    key: ApiKey
    secret_sha256: str


class StoredSession(NamedTuple):
    """A session as it is stored."""

    key_id: str
    expires_at: datetime


def parse_key(text: str) -> KeyParts | None:
    """The parts of a key; None for a text that is none."""
    match = _KEY.fullmatch(text)
    return KeyParts(match["id"], match["secret"]) if match else None


def sha256(text: str) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()


def opens(secret: str, stored: StoredKey | None) -> bool:
    """Whether the secret is that of the stored key, in a time that does not tell how much of it is right."""
    expected = stored.secret_sha256 if stored is not None else "0" * 64
    return hmac.compare_digest(sha256(secret), expected) and stored is not None


def parse_expiry(text: str, now: datetime) -> datetime:
    """``30d``, ``12h``, ``45m`` from now, or a date in UTC; raises ConfigError for anything else, and the past."""
    if match := _DURATION.fullmatch(text):
        return now + timedelta(**{_UNITS[match["unit"]]: int(match["number"])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"--expires {text!r}: write a time such as 30d or 12h, or a date such as 2027-01-31"
        ) from error
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    if moment <= now:
        raise ConfigError(f"--expires {text!r} is in the past: give a later date")
    return moment


class Keys:
    """The keys and sessions of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, scope: Scope, expires_at: datetime | None = None) -> tuple[ApiKey, str]:
        """A new key and its text, which can be had only now. Raises ConfigError for a name that shows nothing."""
        if not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise ConfigError(
                f"the name of a key has 1 to {_LONGEST_NAME} printable characters: say whose it is, or what for"
            )
        identifier, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
        row = ApiKeyRow(
            id=identifier,
            name=name,
            scope=scope,
            secret_sha256=sha256(secret),
            created_at=datetime.now(UTC),
            expires_at=expires_at,
        )
        with self._database.writing() as session:
            session.add(row)
            session.flush()
            key = _key_of(row)
        return key, f"mw_{identifier}_{secret}"

    def list(self) -> Sequence[ApiKey]:
        """All keys, newest first, those that open nothing any more among them."""
        with self._database.reading() as session:
            rows = session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at.desc(), ApiKeyRow.id))
            return [_key_of(row) for row in rows]

    def revoke(self, identifier: str) -> ApiKey:
        """Let a key, and the sessions opened with it, open nothing any more.

        Revoking again changes nothing. Raises NotFoundError.
        """
        with self._database.writing() as session:
            row = session.get(ApiKeyRow, identifier)
            if row is None:
                raise NotFoundError(f"no key {identifier}: mixwright keys list  shows the ids")
            row.revoked_at = row.revoked_at or datetime.now(UTC)
            session.execute(delete(SessionRow).where(SessionRow.key_id == identifier))
            session.flush()
            return _key_of(row)

    def find(self, identifier: str) -> StoredKey | None:
        """The stored key of that id."""
        with self._database.reading() as session:
            row = session.get(ApiKeyRow, identifier)
            return StoredKey(_key_of(row), row.secret_sha256) if row is not None else None

    def note_use(self, identifier: str) -> None:
        """Remember that a key was used just now, unless that was done within the last minute."""
        now = datetime.now(UTC)
        unnoted = or_(ApiKeyRow.last_used_at.is_(None), ApiKeyRow.last_used_at < now - _USE_IS_NOTED_EVERY)
        with self._database.writing() as session:
            session.execute(update(ApiKeyRow).where(ApiKeyRow.id == identifier, unnoted).values(last_used_at=now))

    def open_session(self, identifier: str) -> str:
        """A new session of a key; returns the token that stands for it. Sessions that have ended are removed."""
        token, now = secrets.token_urlsafe(_SECRET_BYTES), datetime.now(UTC)
        with self._database.writing() as session:
            session.execute(delete(SessionRow).where(SessionRow.expires_at <= now))
            session.add(SessionRow(token_sha256=sha256(token), key_id=identifier, expires_at=now + SESSION_LENGTH))
        return token

    def find_session(self, token_sha256: str) -> StoredSession | None:
        """The session whose token has that hash. The hash says nothing of the token, so that the database may look
        it up, in whatever time that takes.
        """
        with self._database.reading() as session:
            row = session.get(SessionRow, token_sha256)
            return StoredSession(row.key_id, row.expires_at) if row is not None else None

    def end_session(self, token: str) -> None:
        """Sign out."""
        with self._database.writing() as session:
            session.execute(delete(SessionRow).where(SessionRow.token_sha256 == sha256(token)))


def _key_of(row: ApiKeyRow) -> ApiKey:
    return ApiKey.model_validate({name: getattr(row, name) for name in ApiKey.model_fields})
