"""Tables read ahead by a thread, so that a trainer does not wait for the network."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import pyarrow as pa

_JOIN_SECONDS = 1.0


class ReadAhead:
    """Iterates over tables that a thread reads meanwhile: at most ``rows`` rows and ``n_bytes`` bytes, or a table.

    Used as a context manager: leaving it ends the thread. An error of the tables is raised when its turn comes.
    """

    def __init__(self, tables: Iterator[pa.Table], rows: int, n_bytes: int) -> None:
        self._tables = tables
        self._most = (rows, n_bytes)
        self._ready: deque[pa.Table] = deque()
        self._changed = threading.Condition()
        self._ended = self._left = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, name="mixwright-read-ahead", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._left = True
            self._ready.clear()
            self._changed.notify_all()
        # A thread that waits for the network ends when something comes; nobody waits for that.
        self._thread.join(_JOIN_SECONDS)

    def __iter__(self) -> Iterator[pa.Table]:
        while (table := self._next()) is not None:
            yield table

    def _next(self) -> pa.Table | None:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
        if self._error is not None:
            raise self._error
        return None

    def _fill(self) -> None:
        try:
            for table in self._tables:
                with self._changed:
                    while not self._left and not self._has_room(table):
                        self._changed.wait()
                    if self._left:
                        break
                    self._ready.append(table)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  # whoever iterates raises it
            self._error = error
        finally:
            # Here, in the thread that reads: a generator cannot be closed while another thread runs it.
            close = getattr(self._tables, "close", None)
            if close is not None:
                close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _has_room(self, table: pa.Table) -> bool:
        waiting = [*self._ready, table]
        rows, n_bytes = self._most
        return len(waiting) == 1 or (
            sum(each.num_rows for each in waiting) <= rows and sum(each.nbytes for each in waiting) <= n_bytes
        )
