"""What commands print: one JSON document under ``--json``, else lines for a person; progress on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from mixwright.errors import MixwrightError
from mixwright.progress import NoProgress, Progress


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    typer.echo(msgspec.json.encode(value).decode())


def print_error(error: MixwrightError, *, as_json: bool) -> None:
    """An error on standard error: one line, or its problem document."""
    line = msgspec.json.encode(error.problem()).decode() if as_json else f"error: {error}"
    typer.echo(line, err=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for a person on standard output; a line saying so where there are no rows."""
    if not rows:
        typer.echo("nothing here yet")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        numeric = all(isinstance(row[number], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row))
    Console().print(table)


class LineProgress:
    """Progress as plain lines on standard error: one when a stage begins, then one every few seconds."""

    def __init__(self, seconds_between_lines: float = 5.0) -> None:
        self._pause = seconds_between_lines
        self._stage, self._unit, self._total, self._done = "", "", 0, 0
        self._last = 0.0

    def start(self, stage: str, total: int | None = None, unit: str = "documents") -> None:
        self._stage, self._unit, self._total, self._done = stage, unit, total or 0, 0
        self._last = time.monotonic()
        typer.echo(f"{stage}: {total:,} {unit}" if total else stage, err=True)

    def advance(self, n: int = 1) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._last >= self._pause:
            self._last = now
            of_total = f" of {self._total:,}" if self._total else ""
            typer.echo(f"{self._stage}: {self._done:,}{of_total} {self._unit}", err=True)

    def note(self, message: str) -> None:
        typer.echo(message, err=True)


class BarProgress:
    """Progress as a bar on the terminal."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def start(self, stage: str, total: int | None = None, unit: str = "documents") -> None:
        self.finish()
        self._task = self._bars.add_task(stage, total=total, unit=unit)

    def advance(self, n: int = 1) -> None:
        if self._task is not None:
            self._bars.advance(self._task, n)

    def note(self, message: str) -> None:
        self._bars.console.print(message, markup=False, highlight=False)

    def finish(self) -> None:
        """Show the last stage as done: a job that found its work done before has less to advance."""
        if self._task is not None:
            task = self._bars.tasks[self._bars.task_ids.index(self._task)]
            self._bars.update(
                self._task, total=task.total or task.completed, completed=task.total or task.completed
            )
            self._task = None


@contextmanager
def progress_on_stderr(*, for_a_program: bool = False) -> Iterator[Progress]:
    """A bar on a terminal; otherwise plain lines, and nothing where a program reads the problem document."""
    if not sys.stderr.isatty():
        yield NoProgress() if for_a_program else LineProgress()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        progress = BarProgress(bars)
        yield progress
        progress.finish()
