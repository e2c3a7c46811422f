"""Progress of long work: jobs report to a ``Progress``; who shows it is not their concern."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of one piece of work at a time.

    ``start`` opens a stage (``total`` is None where it is not known beforehand), ``advance`` adds to it, and
    ``note`` says one line to the user, a warning for instance.
    """

    def start(self, stage: str, total: int | None = None, unit: str = "documents") -> None: ...

    def advance(self, n: int = 1) -> None: ...

    def note(self, message: str) -> None: ...


class NoProgress:
    """Shows nothing."""

    def start(self, stage: str, total: int | None = None, unit: str = "documents") -> None:
        return None

    def advance(self, n: int = 1) -> None:
        return None

    def note(self, message: str) -> None:
        return None
