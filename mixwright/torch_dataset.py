"""A mixture of a service as a PyTorch data set: the same batches however many workers, resumed at the next row.

::

    from torch.utils.data import DataLoader
    from mixwright.torch_dataset import MixtureDataset

    dataset = MixtureDataset("http://127.0.0.1:8000", "blend@1", block_rows=32, tokenizer="all-minilm-l6-v2")
    loader = DataLoader(dataset, batch_size=32, num_workers=4, collate_fn=...)

Ranks and workers take blocks of ``block_rows`` rows in turn: worker w of n on rank r of W reads every nW-th block,
from block wW + r on. A data loader takes batches from its workers in turn; if a batch is a block, then batch s of
rank r is block sW + r of the mixture, whatever n is. The batches of all ranks at one step are neighbours in the
mixture, so that each step has its shares (see ``mixwright.selectors.ordering``).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from mixwright.client import Client
from mixwright.client.read_ahead import ReadAhead
from mixwright.errors import ConfigError
from mixwright.selectors.ordering import Share

_TOKENS = {"input_ids": np.int64, "loss_mask": np.bool_}


class MixtureDataset(IterableDataset[dict[str, Any]]):
    """The rows of one rank, as dicts; with a tokenizer ``input_ids`` (int64) and ``loss_mask`` (bool) are tensors.

    ``client`` is a Client or the address of a service (None: the environment's). ``rank`` and ``world_size``
    default to those of ``torch.distributed`` if it is initialised, else to one rank alone. A ``ref`` without a
    version stands for its newest one now: name the version where several processes read one mixture.

    Set ``block_rows`` to the batch size of the loader. ``offset`` is the position in the mixture to begin at. Up
    to ``read_ahead_rows`` rows and ``read_ahead_bytes`` bytes (or one table) are read ahead by a thread in each
    worker.

    ``state_dict`` and ``load_state_dict`` keep the place, as ``torchdata.stateful_dataloader`` wants them;
    ``state_after`` is for loaders that do not ask their workers.
    """

    def __init__(
        self,
        client: Client | str | None,
        ref: str,
        rank: int | None = None,
        world_size: int | None = None,
        *,
        block_rows: int = 64,
        offset: int = 0,
        tokenizer: str | None = None,
        bos: int | None = None,
        eos: int | None = None,
        window: int | None = None,
        read_ahead_rows: int = 1024,
        read_ahead_bytes: int = 16 << 20,
    ) -> None:
        super().__init__()
        if (rank is None) != (world_size is None):
            raise ConfigError("rank and world_size belong together: give both, or neither")
        if min(read_ahead_rows, read_ahead_bytes) < 1:
            raise ConfigError("read_ahead_rows and read_ahead_bytes must be at least 1: 1 reads one table ahead")
        self.client = client if isinstance(client, Client) else Client(client)
        rank, world_size = _distributed() if rank is None or world_size is None else (rank, world_size)
        self.share = Share(rank, world_size, block_rows, offset)
        self.pin = self.client.pin(ref)
        self._tokens: dict[str, Any] = {"tokenizer": tokenizer, "bos": bos, "eos": eos, "window": window}
        self._read_ahead = (read_ahead_rows, read_ahead_bytes)
        # The state that the next iterator begins from, and the one that the last did; none: the beginning.
        self._next: dict[str, Any] | None = None
        self._last: dict[str, Any] | None = None
        # The share of the last iterator, and how many of its rows were read.
        self._place: tuple[Share, int] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        share, rows = self._beginning(self._next)
        self._next, self._last, self._place = None, self._next, (share, rows)
        return self._rows(share, rows)

    def _rows(self, share: Share, rows: int) -> Generator[dict[str, Any], None, None]:
        tables = self.client.tables(
            self.pin,
            rows,
            rank=share.rank,
            world_size=share.world_size,
            block_rows=share.block_rows,
            offset=share.offset,
            **self._tokens,
        )
        with ReadAhead(tables, *self._read_ahead) as ahead:
            for table in ahead:
                for row in _rows_of(table):
                    rows += 1
                    self._place = (share, rows)
                    yield row

    def state_dict(self) -> dict[str, Any]:
        """The place of the last iterator of this process, or of the next one: numbers and strings."""
        if self._next is not None:
            return dict(self._next)
        share, rows = self._place or self._beginning(None)
        return self._state(share, rows, workers=share.world_size // self.share.world_size)

    def state_after(self, rows: int) -> dict[str, Any]:
        """The place after ``rows`` rows of this rank, counted from where the data set begins or was resumed.

        For loaders with workers, which leave the state of this process as it was: after n batches it is
        ``state_after(n * block_rows)``, with any number of workers.
        """
        if rows < 0:
            raise ConfigError(f"rows {rows} must not be negative: count the rows that this rank has read")
        share, before = self._beginning(self._next or self._last, of_worker=False)
        return self._state(share, before + rows, workers=1)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iterator where the state was taken.

        With the same world size, workers and blocks it goes on at exactly the next row. With others it begins
        behind what all ranks had read, if the state says what that is: it is of a rank without workers, alone or
        at the end of a block (the other ranks are taken to have read as many). Raises ConfigError for another
        mixture, and for a state that fits neither way: here, or in a worker when its iterator begins.
        """
        if state["fingerprint"] != self.pin.fingerprint:
            raise ConfigError(
                f"the state is of mixture {state['mixture']}, and this data set reads {self.pin.ref}: make it of "
                f"{state['mixture']}, or begin without the state"
            )
        if state["workers"] == 1:
            self._beginning(state, of_worker=False)
        self._next = dict(state)

    def _state(self, share: Share, rows: int, workers: int) -> dict[str, Any]:
        return {
            "mixture": self.pin.ref,
            "fingerprint": self.pin.fingerprint,
            "world_size": self.share.world_size,
            "block_rows": share.block_rows,
            "offset": share.offset,
            "workers": workers,
            "worker": share.rank // self.share.world_size,
            "rows": rows,
        }

    def _beginning(self, state: dict[str, Any] | None, *, of_worker: bool = True) -> tuple[Share, int]:
        """The share of this process, and the first of its rows that is to be read behind a state."""
        info = get_worker_info() if of_worker else None
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        own = self.share
        offset, rows = (own.offset, 0) if state is None else _resumed(state, own, worker, workers)
        return Share(worker * own.world_size + own.rank, workers * own.world_size, own.block_rows, offset), rows


def _resumed(state: dict[str, Any], share: Share, worker: int, workers: int) -> tuple[int, int]:
    """Offset, and rows of the worker from it on, that continue a state."""
    offset, rows, block = int(state["offset"]), int(state["rows"]), state["block_rows"]
    as_before = (state["world_size"], state["workers"], state["worker"], block)
    if as_before == (share.world_size, workers, worker, share.block_rows):
        return offset, rows
    if state["workers"] == 1 and (state["world_size"] == 1 or rows % block == 0):
        return offset + rows * state["world_size"], 0
    if state["workers"] == 1:
        raise ConfigError(
            f"the state is of {rows} rows, in the middle of a block of {block}: resume it with "
            f"{state['world_size']} ranks, no workers and block_rows={block}, or take states at the end of a block"
        )
    raise ConfigError(
        f"the state is of worker {state['worker']} of {state['workers']} on one of {state['world_size']} ranks "
        f"with block_rows={block}, and this is worker {worker} of {workers} on one of {share.world_size} with "
        f"block_rows={share.block_rows}: resume it as it was, or resume from state_after(rows), which fits all"
    )


def _distributed() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    tokens = [name for name in _TOKENS if name in table.schema.names]
    rows = table.drop_columns(tokens).to_pylist()
    columns = {name: table[name].combine_chunks() for name in tokens}
    for number, row in enumerate(rows):
        for name, column in columns.items():
            values = column[number].values.to_numpy(zero_copy_only=False)
            row[name] = torch.from_numpy(values.astype(_TOKENS[name]))
        yield row
