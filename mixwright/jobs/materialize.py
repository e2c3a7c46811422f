"""A mixture's rows as Parquet files, for trainers that read files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from mixwright.errors import ConflictError
from mixwright.fingerprint import file_sha256
from mixwright.progress import Progress
from mixwright.schemas.manifests import FileEntry
from mixwright.selectors.streams import MixtureStream, Tokenization

_ROWS_PER_FILE = 65_536


def materialize_mixture(
    stream: MixtureStream, out: Path, tokenization: Tokenization | None, progress: Progress
) -> list[FileEntry]:
    """Write ``part-00000.parquet`` … and ``mixture.json`` (the manifest) into a new folder, all or nothing.

    Rows are in the stream's order. Raises ConflictError if ``out`` has something in it already.
    """
    with new_folder(out) as staging:
        progress.start(f"materialize {stream.manifest.ref}", total=len(stream), unit="rows")
        files = _write_files(stream, staging, tokenization, progress)
        (staging / "mixture.json").write_text(stream.manifest.model_dump_json(indent=2) + "\n")
    return files


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``out`` at the end, or goes away on an error.

    Raises ConflictError if ``out`` has something in it already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConflictError(f"{out} exists and is not empty: name a new folder")
    staging = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    staging.mkdir(parents=True)
    try:
        yield staging
        if out.exists():
            out.rmdir()
        staging.rename(out)
    finally:
        if staging.exists():
            shutil.rmtree(staging)


def _write_files(
    stream: MixtureStream, folder: Path, tokenization: Tokenization | None, progress: Progress
) -> list[FileEntry]:
    files = []
    for number, start in enumerate(range(0, len(stream), _ROWS_PER_FILE)):
        path = folder / f"part-{number:05d}.parquet"
        n_rows = 0
        writer: pq.ParquetWriter | None = None
        for table in stream.read(start, _ROWS_PER_FILE, tokenization=tokenization):
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            n_rows += table.num_rows
            progress.advance(table.num_rows)
        if writer is not None:
            writer.close()
        files.append(_entry(path, n_rows))
    return files


def _entry(path: Path, n_rows: int) -> FileEntry:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
    return FileEntry(path=path.name, n_bytes=path.stat().st_size, sha256=file_sha256(path), n_rows=n_rows)
