"""Pages from templates. What artifacts say is escaped."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mixwright.service.paser_view import short

_ROOM = Path(__file__).parent
STATIC = _ROOM / "static"


def render(template: str, **context: Any) -> str:
    """A template of the service's as text."""
    return _environment().get_template(template).render(context)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_ROOM / "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["count"] = "{:,}".format
    environment.filters["percent"] = "{:.1%}".format
    environment.filters["short"] = short
    return environment
