"""References: ``name`` (the newest version), ``name@version``, and ``kind:name@version`` where kinds mix."""

from __future__ import annotations

import re
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import AfterValidator, Field

from mixwright.errors import ConfigError

Kind = Literal["corpus", "attributes", "embeddings", "index", "mixture", "datastore", "results", "evaluation"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REFERENCE = re.compile(rf"(?:(?P<kind>[a-z]+):)?(?P<name>{_NAME.pattern})(?:@(?P<version>[1-9][0-9]{{0,8}}))?")


class Reference(NamedTuple):
    """A parsed reference. ``version`` None means the newest, ``kind`` None any kind."""

    name: str
    version: int | None = None
    kind: Kind | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


def parse_reference(text: str) -> Reference:
    """Parse ``[kind:]name[@version]``; raises ConfigError that says what a reference looks like."""
    match = _REFERENCE.fullmatch(text)
    kind = next((each for each in KINDS if match and match["kind"] == each), None)
    if match is None or (match["kind"] and kind is None):
        raise ConfigError(
            f"{text!r} is not a reference: write name or name@version (letters, digits, '.', '_', '-', and "
            "first a letter or digit; a version is a positive whole number)"
        )
    version = int(match["version"]) if match["version"] else None
    return Reference(match["name"], version, kind)


def _checked(text: str) -> str:
    try:
        parse_reference(text)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return text


REFERENCE_PATTERN = rf"{_NAME.pattern}(@[1-9][0-9]{{0,8}})?"
"""A reference without a kind, for JSON schemas."""

_ANY_REFERENCE = rf"^(({'|'.join(KINDS)}):)?{REFERENCE_PATTERN}$"

ReferenceText = Annotated[str, AfterValidator(_checked), Field(json_schema_extra={"pattern": _ANY_REFERENCE})]
"""A string field that holds a valid reference."""
