"""Query parameters that several routes take, and the refusal of those that a route does not know."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query, Request
from fastapi.dependencies.models import Dependant
from pydantic import StringConstraints

from mixwright.errors import ConfigError
from mixwright.schemas.reads import Reads
from mixwright.schemas.references import REFERENCE_PATTERN
from mixwright.service.viewer import ROWS_PER_PAGE

Ref = Annotated[
    str,
    Path(
        description="`name` (the newest version) or `name@version`",
        json_schema_extra={"pattern": f"^{REFERENCE_PATTERN}$"},
        openapi_examples={
            "newest": {"summary": "newest version", "value": "wiki"},
            "version": {"summary": "one version", "value": "wiki@1"},
        },
    ),
]
Limit = Annotated[int, Query(ge=1, le=1000, description="items a page")]
Offset = Annotated[int, Query(ge=0, description="first row")]
Length = Annotated[int, Query(ge=1, le=ROWS_PER_PAGE, description="rows, at most")]
# PostgreSQL holds no NUL characters, so nothing with one can be found.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
Tokenizer = Annotated[Text, Reads("tokenizer")]
Cursor = Annotated[Text | None, Query(min_length=1, description="`next_cursor` of the page before")]


def refuse_unknown_query(request: Request) -> None:
    """Raise ConfigError for a query parameter that the route does not have, or has twice.

    Ignored, a misspelt ``world_sise`` would serve the wrong rows without a word.
    """
    given = [name for name, _ in request.query_params.multi_items()]
    if not given:
        return
    known = _query_names(request.scope["route"].dependant)
    takes = f"it takes {', '.join(known)}" if known else "it takes none"
    for name in given:
        if name not in known:
            raise ConfigError(f"{request.url.path} has no query parameter {name!r}: {takes}")
        if given.count(name) > 1:
            raise ConfigError(f"query parameter {name!r} is given {given.count(name)} times: give it once")


def _query_names(dependant: Dependant) -> list[str]:
    """What a route and its dependencies read of a query, without the OpenAPI document, which takes a second."""
    own = [field.alias for field in dependant.query_params]
    return list(dict.fromkeys([*own, *(name for each in dependant.dependencies for name in _query_names(each))]))
