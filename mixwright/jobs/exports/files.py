"""Files that several formats write. The same rows give the same bytes, compressed or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_ROWS_PER_GROUP = 16_384


def json_text(value: Any) -> str:
    """JSON, indented by two, with its keys in their order."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def yaml_text(value: Any) -> str:
    """YAML in block style, with its keys in their order; text that another type could be read from is quoted."""
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False, width=115))


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """One JSON object a line in UTF-8, compressed as the name ends (.gz, .zst); returns the number of rows."""
    n_rows = 0
    encode = msgspec.json.Encoder().encode
    with _opened(path) as sink:
        for row in rows:
            sink.write(encode(row) + b"\n")
            n_rows += 1
    return n_rows


def write_parquet(path: Path, tables: Iterable[pa.Table], schema: pa.Schema | None = None) -> int:
    """A Parquet file with zstd; returns the number of rows.

    Tables are gathered into row groups, so that a reader's skips do not depend on how they were cut.
    """
    n_rows = 0
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.Table] = []

    def flush() -> None:
        nonlocal writer
        if waiting:
            table = pa.concat_tables(waiting)
            waiting.clear()
            writer = writer or pq.ParquetWriter(path, schema or table.schema, compression="zstd")
            writer.write_table(table)

    try:
        for table in tables:
            waiting.append(table)
            n_rows += table.num_rows
            if sum(each.num_rows for each in waiting) >= _ROWS_PER_GROUP:
                flush()
        flush()
        if writer is None and schema is not None:
            writer = pq.ParquetWriter(path, schema, compression="zstd")
    finally:
        if writer is not None:
            writer.close()
    return n_rows


def _opened(path: Path) -> BinaryIO:
    name = _COMPRESSION.get(path.suffix)
    # Arrow's gzip writes no time into the header: two exports of one mixture are the same bytes.
    return cast(BinaryIO, pa.output_stream(str(path), compression=name))
