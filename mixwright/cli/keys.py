"""``mixwright keys``: API keys of the service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mixwright.cli.common import Home, Json, open_database, open_store
from mixwright.cli.output import print_json, print_table

if TYPE_CHECKING:
    from mixwright.service.security.keys import Keys

keys_app = typer.Typer(name="keys", help="API keys of the service.", no_args_is_help=True)


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is, or what it is for.")],
    scope: Annotated[
        Literal["read", "write", "admin"],
        typer.Option(
            help="read: what is published, searches and predictions. write: jobs and mixtures, too. admin: stack "
            "traces, too."
        ),
    ] = "read",
    expires: Annotated[
        str | None, typer.Option(help="When it ends: 30d, 12h, or a date such as 2027-01-31; default: never.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Make a key and print it. It is shown this once only."""
    from mixwright.service.security.keys import parse_expiry

    expires_at = parse_expiry(expires, datetime.now(UTC)) if expires is not None else None
    with _open_keys(home) as keys:
        key, text = keys.create(name, scope, expires_at)
    if json:
        print_json(key.model_dump(mode="json") | {"key": text})
        return
    typer.echo(text)
    until = f", until {_moment(key.expires_at)}" if key.expires_at else ""
    typer.echo(f"key {key.id} of {key.name}, scope {key.scope}{until}: keep it, it is not shown again", err=True)


@keys_app.command("list")
def list_keys(home: Home = None, json: Json = False) -> None:
    """List the keys, newest first."""
    with _open_keys(home) as keys:
        found = keys.list()
    now = datetime.now(UTC)
    if json:
        print_json([key.model_dump(mode="json") | {"state": key.state(now)} for key in found])
        return
    print_table(
        ("key", "name", "scope", "state", "created", "expires", "last used"),
        [
            (
                key.id,
                key.name,
                key.scope,
                key.state(now),
                *(_moment(each) for each in (key.created_at, key.expires_at, key.last_used_at)),
            )
            for key in found
        ],
    )


@keys_app.command("revoke")
def revoke_key(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as  keys list  shows it.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Let a key open nothing any more; running services know within seconds."""
    with _open_keys(home) as keys:
        key = keys.revoke(identifier)
    if json:
        print_json(key.model_dump(mode="json"))
        return
    typer.echo(f"key {key.id} of {key.name} is revoked")


@contextmanager
def _open_keys(home: Path | None) -> Iterator[Keys]:
    from mixwright.service.security.keys import Keys

    settings, _ = open_store(home)
    with open_database(settings) as database:
        yield Keys(database)


def _moment(time: datetime | None) -> str:
    return "" if time is None else f"{time:%Y-%m-%d %H:%M}"
