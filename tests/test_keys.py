"""API keys: what is stored of them, what opens, and the commands that make, list and revoke them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from mixwright.cli import app as command_line
from mixwright.errors import AuthError, ConfigError, NotFoundError
from mixwright.jobs.database import Database
from mixwright.service.security import access
from mixwright.service.security.access import Credentials, Recent
from mixwright.service.security.keys import SCOPES, SESSION_LENGTH, Keys, parse_expiry, parse_key, sha256

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'home' / 'catalog.sqlite'}")
    database.upgrade()
    yield database
    database.close()


@pytest.fixture
def keys(database: Database) -> Keys:
    return Keys(database)


def opens(keys: Keys, header: str) -> bool:
    """Whether a header is let in by a process that has just started."""
    with suppress(AuthError):
        return Credentials(keys).by_header([header]).key is not None
    return False


def test_a_key_is_long_and_never_twice_the_same(keys: Keys) -> None:
    made = [keys.create("me", "read") for _ in range(50)]
    assert len({text for _, text in made}) == len({key.id for key, _ in made}) == 50
    for key, text_ in made:
        parts = parse_key(text_)
        assert parts is not None
        assert text_ == f"mw_{key.id}_{parts.secret}"
        # Base64 holds six bits a character: 43 of them are all of 256.
        assert len(parts.secret) * 6 >= 256
    # Random bits use all of the alphabet.
    assert len(set("".join(text_[16:] for _, text_ in made))) == 64


def test_only_the_hash_is_stored(keys: Keys, database: Database, tmp_path: Path) -> None:
    key, text_ = keys.create("me", "read")
    token = keys.open_session(key.id)
    parts = parse_key(text_)
    assert parts is not None
    database.close()
    stored = b"".join(path.read_bytes() for path in (tmp_path / "home").iterdir())
    assert key.id.encode() in stored
    for secret in (text_, parts.secret, token):
        assert secret.encode() not in stored
        assert hashlib.sha256(secret.removeprefix(f"mw_{key.id}_").encode()).hexdigest().encode() in stored


def test_nothing_but_the_key_opens(keys: Keys) -> None:
    key, text_ = keys.create("me", "read")
    other, _ = keys.create("you", "read")
    secret = text_.rpartition(f"{key.id}_")[2]
    assert opens(keys, f"Bearer {text_}")
    assert opens(keys, f"bearer  {text_} ")
    wrong = [
        f"mw_{key.id}_{secret[:-1]}{'A' if secret[-1] != 'A' else 'B'}",
        f"mw_{key.id}_{'A' if secret[0] != 'A' else 'B'}{secret[1:]}",
        f"mw_{key.id}_{secret.swapcase()}",
        f"mw_{other.id}_{secret}",
        f"mw_{'0' * 12}_{secret}",
        f"mw_{key.id.upper()}_{secret}" if key.id.upper() != key.id else f"MW_{key.id}_{secret}",
        f"mw_{key.id}_{secret}x",
        f"mw_{key.id}_{secret[:-1]}",
        f"mw_{key.id}_{sha256(secret)}",
        f"mw_{key.id}_",
        f"mw_{key.id}_{'é' * 43}",
        secret,
        "",
        "' OR 1=1 --",
        "\x00",
    ]
    for each in wrong:
        assert not opens(keys, f"Bearer {each}"), each
    for each in (text_, f"Basic {text_}", f"Token {text_}", f"Bearer{text_}"):
        assert not opens(keys, each), each
    with pytest.raises(AuthError):
        Credentials(keys).by_header([f"Bearer {text_}"] * 2)


def test_revoked_and_expired_keys_open_nothing(keys: Keys) -> None:
    revoked, revoked_text = keys.create("revoked", "admin")
    _, expired_text = keys.create("expired", "admin", datetime.now(UTC) - timedelta(seconds=1))
    _, later_text = keys.create("later", "admin", datetime.now(UTC) + timedelta(hours=1))
    assert opens(keys, f"Bearer {revoked_text}")
    first = keys.revoke(revoked.id)
    assert not opens(keys, f"Bearer {revoked_text}")
    assert not opens(keys, f"Bearer {expired_text}")
    assert opens(keys, f"Bearer {later_text}")
    assert keys.revoke(revoked.id) == first
    with pytest.raises(NotFoundError, match="keys list"):
        keys.revoke("absent")


def test_every_process_knows_of_a_revocation_within_seconds(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(access.time, "monotonic", lambda: now[0])
    key, text_ = keys.create("me", "read")
    other_process = Credentials(keys)
    other_process.by_header([f"Bearer {text_}"])
    keys.revoke(key.id)
    now[0] += 5
    with pytest.raises(AuthError):
        other_process.by_header([f"Bearer {text_}"])


def test_a_key_that_expires_while_it_is_remembered(keys: Keys) -> None:
    _, text_ = keys.create("me", "read", datetime.now(UTC) + timedelta(milliseconds=150))
    process = Credentials(keys)
    process.by_header([f"Bearer {text_}"])
    end = datetime.now(UTC) + timedelta(seconds=2)
    while datetime.now(UTC) < end:
        try:
            process.by_header([f"Bearer {text_}"])
        except AuthError:
            return
    pytest.fail("the key outlived its time")


def test_the_memory_is_bounded_and_asks_seldom() -> None:
    asked: list[int] = []
    recent = Recent(seconds=60, size=10)

    def find(number: int) -> int:
        asked.append(number)
        return number

    for number in [*range(100), *range(90, 100)]:
        assert recent.get(number, lambda number=number: find(number)) == number
    assert asked == list(range(100))
    assert len(recent._found) == 10


def test_sessions_end_with_their_time_their_key_and_by_signing_out(
    keys: Keys, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = keys.create("me", "write")
    tokens = [keys.open_session(key.id) for _ in range(3)]
    for token in tokens:
        found = Credentials(keys).by_cookie(token)
        assert (found.scope, found.by) == ("write", "session")
    signed_out = Credentials(keys)
    signed_out.by_cookie(tokens[0])
    signed_out.sign_out(tokens[0])
    assert signed_out.by_cookie(tokens[0]).scope is None
    with database.writing() as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        session.execute(
            text("UPDATE sessions SET expires_at = :past WHERE token_sha256 = :hash"),
            {"past": past.replace(tzinfo=None), "hash": sha256(tokens[1])},
        )
    assert Credentials(keys).by_cookie(tokens[1]).scope is None
    assert Credentials(keys).by_cookie(tokens[2]).scope == "write"
    keys.revoke(key.id)
    assert Credentials(keys).by_cookie(tokens[2]).scope is None
    assert Credentials(keys).by_cookie(sha256(tokens[2])).scope is None
    assert timedelta(hours=1) < SESSION_LENGTH < timedelta(days=2)


def test_use_is_noted_at_most_once_a_minute(keys: Keys, database: Database) -> None:
    key, _ = keys.create("me", "read")

    def used() -> datetime | None:
        found = keys.find(key.id)
        assert found is not None
        return found.key.last_used_at

    assert used() is None
    keys.note_use(key.id)
    first = used()
    assert first is not None
    keys.note_use(key.id)
    assert used() == first
    with database.writing() as session:
        session.execute(
            text("UPDATE api_keys SET last_used_at = :then"), {"then": NOW.replace(year=2020, tzinfo=None)}
        )
    keys.note_use(key.id)
    assert used() is not None
    assert first <= used()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("30d", NOW + timedelta(days=30)),
        ("12h", NOW + timedelta(hours=12)),
        ("45m", NOW + timedelta(minutes=45)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T10:00+02:00", datetime(2027, 1, 31, 8, tzinfo=UTC)),
    ],
)
def test_when_a_key_expires(given: str, expected: datetime) -> None:
    assert parse_expiry(given, NOW) == expected


@pytest.mark.parametrize("given", ["", "0d", "-3d", "30", "d", "soon", "2026-04-30", "2027-02-30", "9999999d"])
def test_when_no_key_can_expire(given: str) -> None:
    with pytest.raises(ConfigError, match="--expires"):
        parse_expiry(given, NOW)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[31m", "n" * 129])
def test_names_that_show_nothing(keys: Keys, name: str) -> None:
    with pytest.raises(ConfigError, match="printable"):
        keys.create(name, "read")
    assert keys.list() == []


# The commands


def run(home: Path, *arguments: str) -> str:
    result = CliRunner().invoke(command_line, ["keys", *arguments, "--home", str(home)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def printed(home: Path, *arguments: str) -> Any:
    return json.loads(run(home, *arguments, "--json"))


def test_keys_at_the_command_line(tmp_path: Path, keys: Keys) -> None:
    home = tmp_path / "home"
    text_ = run(home, "create", "trainer of the blue team").strip()
    assert opens(keys, f"Bearer {text_}")
    made = [printed(home, "create", scope, "--scope", scope, "--expires", "30d") for scope in SCOPES]
    for each, scope in zip(made, SCOPES, strict=True):
        assert Credentials(keys).by_header([f"Bearer {each['key']}"]).scope == each["scope"] == scope
    listed = printed(home, "list")
    assert {each["name"] for each in listed} == {"trainer of the blue team", *SCOPES}
    assert all(each["state"] == "active" for each in listed)
    secrets = [each["key"][16:] for each in made] + [text_[16:]]
    assert not any(secret in run(home, "list") + run(home, "list", "--json") for secret in secrets)
    revoked = printed(home, "revoke", made[0]["id"])
    assert revoked["revoked_at"] is not None
    states = {each["id"]: each["state"] for each in printed(home, "list")}
    assert [state for key, state in states.items() if key == made[0]["id"]] == ["revoked"]
    assert not opens(keys, f"Bearer {made[0]['key']}")
    assert re.search(rf"{made[1]['id']}.*write", run(home, "list"))
    with pytest.raises(NotFoundError):
        run(home, "revoke", "absent")
    with pytest.raises(ConfigError):
        run(home, "create", "late", "--expires", "2020-01-01")
