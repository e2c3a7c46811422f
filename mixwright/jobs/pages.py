"""Pages of a list: an opaque cursor names the last row that was seen, so that new rows move nothing."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from mixwright.errors import ConfigError

ItemT = TypeVar("ItemT")


class Page(BaseModel, Generic[ItemT]):
    """One page of a list, newest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: list[ItemT]
    next_cursor: str | None = Field(description="pass it as `cursor` to get the next page; null on the last one")


def encode_cursor(*key: datetime | str | int) -> str:
    """The cursor that stands behind the row with this sort key."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).rstrip(b"=").decode()


def decode_cursor(cursor: str, types: tuple[type, ...]) -> list[Any]:
    """The sort key in a cursor; raises ConfigError if it is not one of this list's cursors."""
    try:
        values = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if len(values) != len(types):
            raise ValueError("another list's cursor")
        return [_restored(value, type_) for value, type_ in zip(values, types, strict=True)]
    except (msgspec.DecodeError, ValueError, TypeError, OverflowError, binascii.Error) as error:
        raise ConfigError(
            f"{cursor!r} is not a cursor of this list: use next_cursor of the page before, or none"
        ) from error


def _restored(value: Any, type_: type) -> Any:
    if type_ is datetime:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError("a time without a zone")
        return moment.astimezone(UTC)
    if not isinstance(value, type_) or isinstance(value, bool):
        raise ValueError("a key of another type")
    if (isinstance(value, str) and "\0" in value) or (isinstance(value, int) and value >= 1 << 63):
        raise ValueError("a key that no database holds")
    return value
