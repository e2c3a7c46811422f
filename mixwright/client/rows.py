"""Rows of a mixture over a connection that may break: read on at exactly the next row, whatever happened.

Position → row is a pure function of the mixture, so a stream that broke off is asked for again from the first row
that did not arrive whole. Nothing is taken on trust: every table must hold the very positions that are next, and a
stream that ends before its last row has broken off, however politely.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx2
import numpy as np
import pyarrow as pa

from mixwright.client.connection import BROKEN, AnswerFile, Connection, PassingError
from mixwright.errors import ConfigError, ConflictError, DataError
from mixwright.selectors.ordering import Share

_ARROW = "application/vnd.apache.arrow.stream"
_BUFFER_BYTES = 1 << 18


class Pin(NamedTuple):
    """One version of a mixture, for good: a name alone may be another mixture tomorrow."""

    ref: str
    fingerprint: str
    n_rows: int


class _BreakError(Exception):
    """A stream that ended before its last row."""


def read_tables(
    connection: Connection,
    pin: Pin,
    share: Share,
    start: int,
    count: int | None,
    tokens: dict[str, Any],
) -> Iterator[pa.Table]:
    """Tables of the share's own rows ``start … start + count - 1``, or to its end, in order, none empty.

    ``tokens`` are the query parameters of the tokenization. Raises ConflictError if the version was replaced under
    its name, DataError if the service answers other rows, UnavailableError after too many failures in a row.
    """
    if start < 0 or (count is not None and count < 0):
        raise ConfigError(f"start {start} and count {count} must not be negative: give 0 or more")
    own_rows = share.n_rows(pin.n_rows)
    stop = own_rows if count is None else min(start + count, own_rows)
    return _going_on(connection, pin, share, start, stop, tokens)


def _going_on(
    connection: Connection, pin: Pin, share: Share, start: int, stop: int, tokens: dict[str, Any]
) -> Iterator[pa.Table]:
    patience = connection.patience()
    while start < stop:
        params = {**tokens, **_query(share), "start": start, "count": stop - start}
        try:
            with connection.stream(
                "GET", f"/v1/mixtures/{pin.ref}/rows", params=params, headers={"Accept": _ARROW}
            ) as response:
                _check_fingerprint(response, pin)
                for table in _tables(response):
                    _check_positions(table, share, start, stop, pin)
                    start += table.num_rows
                    patience.reset()
                    yield table
            if start < stop:
                raise _BreakError(f"the stream ended {stop - start} rows before its end")
        except PassingError as failure:
            patience.wait(failure.error, failure.wait)
        except (*BROKEN, _BreakError) as error:
            patience.wait(connection.unreachable(error))


def _query(share: Share) -> dict[str, int]:
    """The parameters of a share, as far as they are not the defaults."""
    defaults = Share()
    names = ("rank", "world_size", "block_rows", "offset")
    return {name: getattr(share, name) for name in names if getattr(share, name) != getattr(defaults, name)}


def _check_fingerprint(response: httpx2.Response, pin: Pin) -> None:
    tag = response.headers.get("etag")
    if tag is not None and not tag.removeprefix("W/").strip('"').startswith(pin.fingerprint):
        raise ConflictError(
            f"mixture {pin.ref} is not the one that this reader began with: another one stands under its name; "
            "begin again"
        )


def _check_positions(table: pa.Table, share: Share, start: int, stop: int, pin: Pin) -> None:
    if start + table.num_rows <= stop:
        expected = share.positions(start, start + table.num_rows)
        if np.array_equal(table["position"].to_numpy(), expected):
            return
    raise DataError(
        f"the service answered other rows of {pin.ref} than it was asked for, at row {start} of rank "
        f"{share.rank}: use a service and a client of one mixwright version, and no cache between them"
    )


def _tables(response: httpx2.Response) -> Iterator[pa.Table]:
    """The tables of an Arrow stream as they arrive; raises one of BROKEN or _BreakError if it breaks off."""
    body = AnswerFile(response)
    try:
        with io.BufferedReader(body, _BUFFER_BYTES) as buffered, pa.ipc.open_stream(buffered) as reader:
            for batch in reader:
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise body.failure or _BreakError(f"the stream ended in the middle of a row ({error})") from error
