"""The ingest job: files to a corpus.

The files are read three times in effect: once for their hashes (an ingest that is published already ends
there), once for their rows, and the rows once more, from an Arrow file in the staging folder, without those
that repeat an earlier one. Tokens are counted in that last pass, the slowest: bad input is known before it
starts, and no duplicate is counted. docs/ingest.md states what memory and disk this takes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mixwright.errors import DataError
from mixwright.fingerprint import fingerprint, stream_sha256
from mixwright.indexes.near_duplicates import DEFAULT_JACCARD, near_duplicate_clusters
from mixwright.jobs.documents import UNCOUNTED_SCHEMA, DocumentBlock, FieldMapping
from mixwright.jobs.duplicates import DuplicateFinder
from mixwright.jobs.input_files import InputFile, find_input_files, open_stored
from mixwright.jobs.readers import BadRow, DamagedFileError, Row, read_rows
from mixwright.jobs.shards import ShardWriter, count_domains, default_shard_rows
from mixwright.progress import Progress
from mixwright.schemas.documents import DOCUMENT_SCHEMA
from mixwright.schemas.manifests import CorpusManifest
from mixwright.schemas.references import parse_reference
from mixwright.schemas.requests import IngestRequest
from mixwright.store import Staging, Store, software_versions
from mixwright.tokenization import Tokenizer, load_tokenizer

_QUARANTINE = "quarantine.jsonl"
_RAW_CHARACTERS = 1000
_CREDENTIALS = re.compile(r"(?<=//)[^/\s?#\"'@]+@")
_LIBRARIES = ("pyarrow", "polars", "tokenizers", "msgspec", "numpy")


@dataclass(frozen=True)
class HashedFile:
    """An input file with its size and SHA-256; ``state`` is that of the file when it was hashed."""

    file: InputFile
    n_bytes: int
    sha256: str
    state: str

    def entry(self) -> dict[str, Any]:
        """How the manifest records it."""
        return {
            "name": self.file.name,
            "format": self.file.format,
            "n_bytes": self.n_bytes,
            "sha256": self.sha256,
        }


class Quarantine:
    """Bad rows: written to ``path``, one JSON object each, or an error at the first."""

    def __init__(self, path: Path, fail: bool) -> None:
        self.n_rows = 0
        self.first: str | None = None
        self._path = path
        self._fail = fail
        self._sink: BinaryIO | None = None

    def add(self, file: InputFile, row: BadRow) -> None:
        """Keep a bad row; raises DataError where bad rows are not accepted."""
        where = f"{file.name}:{row.line}: {row.reason}"
        if self._fail:
            raise DataError(f"{where}; correct it, or set on_bad_row to quarantine")
        self.first = self.first or where
        self.n_rows += 1
        # No character of UTF-8 is longer than four bytes.
        raw = row.raw[: 4 * _RAW_CHARACTERS].decode(errors="backslashreplace")[:_RAW_CHARACTERS]
        entry = {
            "file": file.name,
            "line": row.line,
            "reason": row.reason,
            "raw": _CREDENTIALS.sub("", raw),
        }
        if self._sink is None:
            self._sink = self._path.open("wb")
        self._sink.write(msgspec.json.encode(entry) + b"\n")

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()


@dataclass
class _Rows:
    """What the pass over the rows leaves: documents in an Arrow file, and which of them repeat."""

    spool: Path
    repeats: npt.NDArray[np.bool_]
    n_quarantined: int
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Totals:
    n_documents: int = 0
    n_tokens: int = 0
    n_text_bytes: int = 0


def run_ingest(store: Store, request: IngestRequest, progress: Progress) -> CorpusManifest:
    """Read files into a corpus and publish it; one published already from the same is returned.

    Raises DataError for paths that name nothing, input without a single good document, a bad row where
    ``on_bad_row`` is ``fail``, and files that change while they are read; NotFoundError for an unknown
    tokenizer; ConflictError if the version exists with other contents or another process is at work on it.
    """
    reference = parse_reference(request.name)
    tokenizer = load_tokenizer(request.tokenizer)
    files, warnings = find_input_files(request.paths, request.format)
    hashed = _hash_files(files, reference.name, progress)
    mapping = FieldMapping.of(request, reference.name)
    parameters = _parameters(request, mapping, tokenizer, files)
    identity = fingerprint("corpus", [each.sha256 for each in hashed], parameters)
    existing = store.existing("corpus", reference, identity)
    if isinstance(existing, CorpusManifest):
        return existing
    with store.stage("corpus", reference, identity) as staging:
        rows = _read_files(hashed, mapping, request, staging, progress)
        rows.warnings[:0] = warnings
        if request.duplicates == "drop-near":
            _find_near_repeats(rows, progress)
        for warning in rows.warnings:
            progress.note(f"warning: {warning}")
        keep = request.duplicates == "keep"
        shard_rows = request.shard_rows or default_shard_rows(len(rows.repeats))
        writer = ShardWriter(staging.path / "shards", shard_rows)
        totals = _write_documents(rows, keep, tokenizer, writer, reference.name, progress)
        parameters = {**parameters, "files": [each.entry() for each in hashed]}
        draft = _manifest(staging, parameters, identity, tokenizer, rows, totals, writer.shards)
        shutil.rmtree(_work_folder(staging))
        return store.publish(staging, draft)


def _hash_files(files: Sequence[InputFile], name: str, progress: Progress) -> list[HashedFile]:
    progress.start(f"hash {name}", total=sum(file.size() for file in files), unit="bytes")
    hashed = []
    for file in files:
        state = file.state()
        with open_stored(file, progress.advance) as stream:
            sha256, n_bytes = stream_sha256(stream)
        hashed.append(HashedFile(file, n_bytes, sha256, state))
    return hashed


def _parameters(
    request: IngestRequest, mapping: FieldMapping, tokenizer: Tokenizer, files: Sequence[InputFile]
) -> dict[str, Any]:
    """Everything besides the files' bytes that decides what the rows are."""
    near = {"near_duplicate_threshold": DEFAULT_JACCARD} if request.duplicates == "drop-near" else {}
    return {
        "formats": [file.format for file in files],
        "text_field": mapping.text_field,
        "text_template": mapping.text_template,
        "url_field": mapping.url_field,
        "domain_field": mapping.domain_field,
        "domain": mapping.domain,
        "source": mapping.source,
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "duplicates": request.duplicates,
        "on_bad_row": request.on_bad_row,
        **near,
    }


# First pass: rows


def _read_files(
    files: Sequence[HashedFile],
    mapping: FieldMapping,
    request: IngestRequest,
    staging: Staging,
    progress: Progress,
) -> _Rows:
    progress.start(f"ingest {staging.reference.name}", total=sum(each.n_bytes for each in files), unit="bytes")
    work = _work_folder(staging)
    work.mkdir()
    finder = DuplicateFinder(work / "duplicates")
    quarantine = Quarantine(staging.path / _QUARANTINE, request.on_bad_row == "fail")
    warnings: list[str] = []
    n_documents = 0
    try:
        with _spool_sink(work / "documents.arrow") as sink:
            block = DocumentBlock(mapping)
            for each in files:
                for _ in _good_rows(each, mapping, block, quarantine, warnings, progress):
                    n_documents += 1
                    if block.is_full:
                        _spool(block, sink, finder)
            _spool(block, sink, finder)
    finally:
        quarantine.close()
    if not n_documents:
        raise _no_documents(quarantine, len(files))
    return _Rows(work / "documents.arrow", finder.repeats(), quarantine.n_rows, warnings)


def _good_rows(
    hashed: HashedFile,
    mapping: FieldMapping,
    block: DocumentBlock,
    quarantine: Quarantine,
    warnings: list[str],
    progress: Progress,
) -> Iterator[Row]:
    """Add a file's good rows to the block, each yielded when it is in, and its bad rows to the quarantine."""
    file = hashed.file
    n_good = n_bad = 0
    try:
        for row in read_rows(file, mapping.text_field, progress.advance):
            reason = row.reason if isinstance(row, BadRow) else block.add(row.fields)
            if isinstance(row, Row) and reason is None:
                n_good += 1
                yield row
                continue
            n_bad += 1
            quarantine.add(file, row if isinstance(row, BadRow) else _as_bad(row, reason or ""))
    except DamagedFileError as damage:
        quarantine.add(file, BadRow(damage.line, damage.reason, b""))
        warnings.append(f"{file.name}:{damage.line}: {damage.reason}; the {n_good} documents before it are kept")
    if n_bad and not n_good and file.form != "text":
        warnings.append(f"{file.name}: none of its {n_bad} rows is a document")
    if file.state() != hashed.state:
        raise DataError(f"{file.name} changed while it was read: ingest it when nothing writes to it")


def _as_bad(row: Row, reason: str) -> BadRow:
    return BadRow(row.line, reason, msgspec.json.encode(row.fields) if row.raw is None else row.raw)


def _spool(block: DocumentBlock, sink: Any, finder: DuplicateFinder) -> None:
    batch = block.take()
    if batch.num_rows:
        sink.write_batch(batch)
        finder.add(batch.column("id").to_pylist())


@contextmanager
def _spool_sink(path: Path) -> Iterator[Any]:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, UNCOUNTED_SCHEMA, options=options) as sink:
        yield sink


def _no_documents(quarantine: Quarantine, n_files: int) -> DataError:
    where = "the file" if n_files == 1 else f"{n_files} files"
    if quarantine.first is None:
        return DataError(f"no row in {where}: give at least one document")
    return DataError(
        f"no good document in {where}; of {quarantine.n_rows} bad rows the first is {quarantine.first}: "
        "correct the input, or set text_field to the field that holds the text"
    )


# Between the passes, where near-duplicates are dropped


def _find_near_repeats(rows: _Rows, progress: Progress) -> None:
    """Let ``rows.repeats`` say which rows are like an earlier one."""
    keys = np.empty(len(rows.repeats), dtype=np.uint64)
    start = 0
    for ids in _spooled(rows.spool, "id"):
        keys[start : start + len(ids)] = np.frombuffer(bytes.fromhex("".join(ids)), dtype=">u8")[::2]
        start += len(ids)
    folder = rows.spool.parent / "near-duplicates"
    clusters = near_duplicate_clusters(lambda: _spooled(rows.spool, "text"), keys, folder, progress)
    rows.repeats = clusters.repeats()
    rows.warnings += clusters.warnings


def _spooled(spool: Path, column: str) -> Iterator[list[str]]:
    """A column of the documents that wait, batch by batch."""
    with pa.OSFile(str(spool), "rb") as file, pa.ipc.open_stream(file) as batches:
        for batch in batches:
            yield batch.column(column).to_pylist()


# Second pass: documents


def _write_documents(
    rows: _Rows,
    keep_repeats: bool,
    tokenizer: Tokenizer,
    writer: ShardWriter,
    name: str,
    progress: Progress,
) -> _Totals:
    n_repeats = 0 if keep_repeats else int(rows.repeats.sum())
    progress.start(f"tokenize {name}", total=len(rows.repeats) - n_repeats, unit="documents")
    totals = _Totals()
    start = 0
    with pa.OSFile(str(rows.spool), "rb") as file, pa.ipc.open_stream(file) as batches:
        for batch in batches:
            repeats = rows.repeats[start : start + batch.num_rows]
            start += batch.num_rows
            if not keep_repeats and repeats.any():
                batch = batch.filter(pa.array(~repeats))
            texts = batch.column("text")
            counts = pa.array(tokenizer.count(texts.to_pylist()), pa.int64())
            totals.n_documents += batch.num_rows
            totals.n_tokens += counts.sum().as_py() or 0
            totals.n_text_bytes += pc.sum(pc.binary_length(texts)).as_py() or 0
            writer.write(_with_counts(batch, counts))
            progress.advance(batch.num_rows)
    writer.close()
    return totals


def _with_counts(batch: Any, counts: Any) -> Any:
    columns = {**dict(zip(batch.schema.names, batch.columns, strict=True)), "n_tokens": counts}
    return pa.record_batch([columns[name] for name in DOCUMENT_SCHEMA.names], schema=DOCUMENT_SCHEMA)


def _manifest(
    staging: Staging,
    parameters: dict[str, Any],
    identity: str,
    tokenizer: Tokenizer,
    rows: _Rows,
    totals: _Totals,
    shards: Sequence[tuple[Path, int]],
) -> CorpusManifest:
    files = [staging.entry(path.relative_to(staging.path).as_posix(), n_rows) for path, n_rows in shards]
    if rows.n_quarantined:
        files.append(staging.entry(_QUARANTINE, rows.n_quarantined))
    domains, n_domains = count_domains([path for path, _ in shards], totals.n_documents)
    return CorpusManifest(
        name=staging.reference.name,
        version=staging.reference.version or 1,
        fingerprint=identity,
        parameters=parameters,
        files=files,
        created_at=datetime.now(UTC),
        software=software_versions(*_LIBRARIES),
        warnings=rows.warnings,
        n_documents=totals.n_documents,
        n_duplicates=int(rows.repeats.sum()),
        n_quarantined=rows.n_quarantined,
        n_tokens=totals.n_tokens,
        n_text_bytes=totals.n_text_bytes,
        tokenizer=tokenizer.name,
        domains=domains,
        n_domains=n_domains,
    )


def _work_folder(staging: Staging) -> Path:
    return staging.path / "work"
