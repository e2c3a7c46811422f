"""The Parquet shards of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mixwright.schemas.documents import DOCUMENT_SCHEMA

_SHARDS, _LEAST_ROWS, _MOST_ROWS = 64, 128, 10_000
_SHARD_BYTES = 128 << 20
_GROUP_ROWS = 2048
_GROUP_BYTES = 4 << 20
_TOP_DOMAINS = 100
_COUNTED_ROWS = 4_000_000


def default_shard_rows(n_documents: int) -> int:
    """Documents a shard: a 64th of the corpus, within 128 and 10,000.

    A shard is what a worker does at a time and what a restarted job need not do again: a small corpus has
    enough of them to share out, a large one not more than its manifest can list.
    """
    return min(max(-(-n_documents // _SHARDS), _LEAST_ROWS), _MOST_ROWS)


class ShardWriter:
    """Writes documents in order to ``folder/part-00000.parquet`` and so on, zstd, in modest row groups.

    A shard is closed at ``shard_rows`` rows, or at the row group that takes it to 128 MiB of text.
    """

    def __init__(self, folder: Path, shard_rows: int) -> None:
        folder.mkdir()
        self.shards: list[tuple[Path, int]] = []
        self._folder = folder
        self._shard_rows = shard_rows
        self._writer: Any = None
        self._rows = self._bytes = 0
        self._group: list[Any] = []
        self._group_rows = self._group_bytes = 0

    def write(self, batch: Any) -> None:
        """Append a batch of DOCUMENT_SCHEMA."""
        while batch.num_rows:
            piece = batch.slice(0, self._shard_rows - self._rows - self._group_rows)
            batch = batch.slice(piece.num_rows)
            self._group.append(piece)
            self._group_rows += piece.num_rows
            self._group_bytes += piece.column("text").nbytes
            is_last = self._rows + self._group_rows == self._shard_rows
            if is_last or self._group_rows >= _GROUP_ROWS or self._group_bytes >= _GROUP_BYTES:
                self._write_group()
            if is_last or self._bytes >= _SHARD_BYTES:
                self.close()

    def close(self) -> None:
        """Finish the shard in work."""
        self._write_group()
        if self._writer is not None:
            self._writer.close()
            self.shards.append((self._path, self._rows))
        self._writer = None
        self._rows = self._bytes = 0

    @property
    def _path(self) -> Path:
        return self._folder / f"part-{len(self.shards):05d}.parquet"

    def _write_group(self) -> None:
        if not self._group:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path, DOCUMENT_SCHEMA, compression="zstd", use_dictionary=["source", "domain"]
            )
        self._writer.write_table(pa.Table.from_batches(self._group), row_group_size=self._group_rows)
        self._rows += self._group_rows
        self._bytes += self._group_bytes
        self._group, self._group_rows, self._group_bytes = [], 0, 0


def count_domains(shards: Sequence[Path], n_rows: int) -> tuple[dict[str, int], int]:
    """Documents of each of the 100 commonest domains, commonest first, and the number of domains.

    Domains may be as many as documents. They are counted in parts, by hash, so that no part has more than
    about 4 million; each part reads the one column again.
    """
    domains = pl.scan_parquet(list(shards)).select("domain").drop_nulls()
    n_parts = -(-n_rows // _COUNTED_ROWS)
    top: list[tuple[str, int]] = []
    n_domains = 0
    for part in range(n_parts):
        mine = domains.filter(pl.col("domain").hash() % n_parts == part)
        counts = mine.group_by("domain").len("n").collect()
        n_domains += counts.height
        best = counts.sort(["n", "domain"], descending=[True, False]).head(_TOP_DOMAINS)
        top += list(zip(best["domain"], best["n"], strict=True))
    top.sort(key=lambda each: (-each[1], each[0]))
    return dict(top[:_TOP_DOMAINS]), n_domains
