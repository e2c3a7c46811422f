"""Pages from templates. What artifacts say is escaped."""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mixwright import __version__
from mixwright.service.pages.evaluation_view import size_text
from mixwright.service.pages.paser_view import short

_ROOM = Path(__file__).parents[1]
STATIC = _ROOM / "static"
STYLES = ("base.css", "charts.css")

NAVIGATION = (
    ("mixtures", "Mixtures"),
    ("corpora", "Corpora"),
    ("datastores", "Datastores"),
    ("evaluations", "Evaluations"),
    ("jobs", "Jobs"),
)
"""The sections that every page leads to: address and heading."""

ACCOUNT_MARK = "<!-- account -->"
"""Where a page has a link to whoever is signed in; only the answer to a request knows."""

_NOT_IN_HTML = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Control characters and the like, which documents may have and pages may not."""

_BYTES = ("bytes", "kB", "MB", "GB", "TB")


def render(template: str, **context: Any) -> str:
    """A template of the service's as text.

    ``crumbs`` are the pages above this one as (heading, address); ``section`` is the address of the section that
    the page is in, ``scripts`` are files of the static folder.
    """
    defaults: dict[str, Any] = {"section": None, "crumbs": (), "scripts": (), "styles": None}
    page = _environment().get_template(template).render({**defaults, **context})
    return _NOT_IN_HTML.sub("\N{REPLACEMENT CHARACTER}", page)


def web_address(url: str | None) -> str | None:
    """The URL where a link may lead to it: a web page. ``javascript:`` and its like are text only."""
    try:
        parts = urlsplit(url or "")
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.netloc else None


def bytes_text(n: float) -> str:
    """``1.5 MB``."""
    power = 0
    while n >= 999.5 and power < len(_BYTES) - 1:
        n, power = n / 1000, power + 1
    return f"{n:.3g} {_BYTES[power]}"


def quoted(text: str) -> str:
    """The text in quotes, its line breaks as ``\\n``: for templates and other short texts of which all counts."""
    return json.dumps(text, ensure_ascii=False)


def moment(time: datetime) -> str:
    """``2026-01-31 12:00``."""
    return time.strftime("%Y-%m-%d %H:%M")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_ROOM / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["count"] = "{:,}".format
    environment.filters["percent"] = "{:.1%}".format
    environment.filters["place"] = "{:.3f}%".format
    environment.filters["short"] = short
    environment.filters["size"] = size_text
    environment.filters["bytes"] = bytes_text
    environment.filters["moment"] = moment
    environment.filters["quoted"] = quoted
    environment.filters["web_address"] = web_address
    environment.globals.update(navigation=NAVIGATION, style_files=STYLES, version=__version__)
    environment.globals["account_mark"] = ACCOUNT_MARK
    return environment
