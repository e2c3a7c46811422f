"""The log of a process: lines for people, or one JSON object a line for machines, on standard error.

Every line that is written while a request is answered carries that request's id, also from the threads that work
for it.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import TextIO

from mixwright.config import Settings

request_id: ContextVar[str | None] = ContextVar("mixwright_request_id", default=None)
"""The id of the request that is being answered, if one is."""


def configure_logging(settings: Settings) -> None:
    """Send the log of this process to standard error; for the edge of a program.

    Without effect where the root logger has handlers already, as in a program that embeds mixwright.
    """
    handler = StandardErrorHandler()
    handler.addFilter(_add_request_id)
    handler.setFormatter(_json() if settings.log_format == "json" else _text())
    logging.basicConfig(level=settings.log_level, handlers=[handler])


class StandardErrorHandler(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` is when a line is written, not when the handler was made.

    A program may have replaced it, and closed the old one, in between: tests do.
    """

    def __init__(self) -> None:
        # Not StreamHandler's, which would keep the stream of now.
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute there
        return sys.stderr


def _add_request_id(record: logging.LogRecord) -> bool:
    given = request_id.get()
    if given is not None and not hasattr(record, "request_id"):
        record.request_id = given
    return True


class _TextFormatter(logging.Formatter):
    """``time level logger: message``, with the request's id where there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        line = super().formatMessage(record)
        given = getattr(record, "request_id", None)
        return line if given is None else f"{line} [request {given}]"


def _text() -> logging.Formatter:
    return _TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


def _json() -> logging.Formatter:
    """One object a line: time in UTC, level, logger, message, and what the caller gave as ``extra``."""
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        "{levelname}{name}{message}",
        style="{",
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="time",
        # The last is uvicorn's: a message with escapes of a terminal.
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],
    )
