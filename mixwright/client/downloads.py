"""Exports that a service sends as tar archives: unpacked as they arrive, checked, and published by one rename."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import httpx2

from mixwright.client.connection import AnswerFile
from mixwright.errors import ConflictError, DataError, first_line
from mixwright.fingerprint import file_sha256
from mixwright.schemas.exports import ExportResult

_RESULT = "export.json"
_BUFFER_BYTES = 1 << 20


def unpack_export(response: httpx2.Response, out: Path) -> Path:
    """Write what is in an archive's one folder into the new folder ``out``, all or nothing.

    Raises ConflictError if ``out`` has something in it already, DataError for an archive that is damaged or would
    write elsewhere, and what the connection raises if it breaks off.
    """
    refuse_occupied(out)
    staging = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    staging.mkdir(parents=True)
    body = AnswerFile(response)
    try:
        with (
            io.BufferedReader(body, _BUFFER_BYTES) as source,
            tarfile.open(fileobj=source, mode="r|") as archive,
        ):
            for member in archive:
                _, _, name = member.name.partition("/")
                if name:
                    archive.extract(member.replace(name=name, deep=False), staging, filter="data")
        _check(staging)
        if out.exists():
            out.rmdir()
        staging.rename(out)
    except tarfile.TarError as error:
        raise body.failure or DataError(
            f"the export is no whole archive ({first_line(error)}): ask for it again"
        ) from error
    finally:
        if staging.exists():
            shutil.rmtree(staging)
    return out


def refuse_occupied(out: Path) -> None:
    """Raise ConflictError for a folder that has something in it, or a file."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConflictError(f"{out} exists and is not empty: name a new folder")


def _check(folder: Path) -> None:
    """Raise DataError unless every file is there, as the service wrote it."""
    try:
        result = ExportResult.model_validate_json((folder / _RESULT).read_bytes(), extra="ignore")
        damaged = [each.path for each in result.files if file_sha256(folder / each.path) != each.sha256]
    except FileNotFoundError as error:
        raise DataError(f"the export lacks {Path(error.filename).name}: ask for it again") from error
    if damaged:
        raise DataError(f"{damaged[0]} of the export is not what the service wrote: ask for it again")
