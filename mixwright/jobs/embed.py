"""The embed job: a corpus to embeddings, one shard at a time, on as many workers as there are.

A finished shard is a file of vectors and then a mark that has its checksum. A run that is killed, at any
moment, leaves them in the staging folder, and the next run of the same request goes on with what is missing.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from mixwright.corpora import Corpus, template_texts
from mixwright.errors import ConfigError, DataError
from mixwright.fingerprint import file_sha256, fingerprint
from mixwright.indexes.encoders import EncoderSource, LoadedEncoder, find_encoder, load_encoder
from mixwright.jobs.ray_pool import cpu_count, ray_session, run_on_pool
from mixwright.progress import Progress
from mixwright.schemas.documents import DOCUMENT_COLUMNS
from mixwright.schemas.manifests import ArtifactInput, EmbeddingsManifest, FileEntry
from mixwright.schemas.references import parse_reference
from mixwright.schemas.requests import EmbedRequest
from mixwright.store import Staging, Store, software_versions
from mixwright.templates import template_fields

_REPORT_SECONDS = 0.2
_LONGEST_NAME = 128
_LIBRARIES = ("torch", "sentence-transformers", "transformers", "numpy", "ray")


class ShardMark(BaseModel):
    """A shard is finished: ``marks/part-00000.json`` beside ``shards/part-00000.npy``."""

    model_config = ConfigDict(frozen=True)

    n_rows: int
    n_bytes: int
    sha256: str
    n_truncated: int
    dim: int
    max_tokens: int | None
    compute_dtype: str


def run_embed(store: Store, request: EmbedRequest, progress: Progress) -> EmbeddingsManifest:
    """Embed a corpus and publish the vectors; equal embeddings that are published already are returned.

    Raises NotFoundError for a missing corpus or encoder, ConfigError for a device that is not there,
    ConflictError if another process is embedding the same, JobError for a shard whose workers keep dying.
    """
    corpus = Corpus.open(store, request.corpus)
    _check_template(corpus, request.template)
    if len(corpus) == 0:
        raise DataError(f"corpus {corpus.manifest.ref} has no documents: ingest some")
    source = find_encoder(request.encoder)
    reference = parse_reference(request.name or default_name(corpus.manifest.name, source))
    # The revision stands for the encoder's files, and so for dim and max_tokens too; that keeps this line,
    # and a second run of a job, free of torch.
    parameters = {
        "encoder_revision": source.revision,
        "template": request.template,
        "dtype": request.dtype,
        "normalized": True,
    }
    identity = fingerprint("embeddings", [corpus.manifest.fingerprint], parameters)
    existing = store.existing("embeddings", reference, identity)
    if isinstance(existing, EmbeddingsManifest):
        return existing
    with store.stage("embeddings", reference, identity, resume=True) as staging:
        marks = _embed_shards(corpus, source, request, staging, progress)
        draft = _manifest(reference.name, corpus, source, parameters, identity, marks)
        for warning in draft.warnings:
            progress.note(f"warning: {warning}")
        return store.publish(staging, draft)


def _check_template(corpus: Corpus, template: str) -> None:
    known = {*DOCUMENT_COLUMNS, *corpus.metadata_fields} if len(corpus) else set()
    if unknown := [name for name in template_fields(template) if known and name not in known]:
        raise ConfigError(
            f"template {template!r}: documents of {corpus.manifest.ref} have no field {unknown[0]!r}: name one of "
            f"{', '.join(sorted(known))}"
        )


def default_name(corpus: str, source: EncoderSource) -> str:
    """CORPUS.ENCODER, as a reference may be written."""
    return f"{corpus}.{source.slug}"[:_LONGEST_NAME]


def _embed_shards(
    corpus: Corpus, source: EncoderSource, request: EmbedRequest, staging: Staging, progress: Progress
) -> dict[str, ShardMark]:
    """Embed the shards that an earlier run did not finish; returns the marks of all, by shard."""
    rows = {path.stem: entry.n_rows for path, entry in zip(corpus.shards, corpus.manifest.shards, strict=True)}
    temporary = staging.path / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    for folder in (temporary, staging.path / "shards", staging.path / "marks"):
        folder.mkdir(exist_ok=True)
    marks = {shard: mark for shard, n in rows.items() if (mark := _finished(staging.path, shard, n))}
    progress.start(f"embed {corpus.manifest.ref}", total=len(corpus))
    progress.advance(sum(mark.n_rows for mark in marks.values()))
    missing = [shard for shard in rows if shard not in marks]
    if missing:
        with ray_session(max(cpu_count(), request.workers or 1)):
            _embed_missing(corpus, source, request, staging.path, missing, progress)
    shutil.rmtree(temporary)
    return marks | {shard: _read_mark(staging.path, shard) for shard in missing}


def _embed_missing(
    corpus: Corpus,
    source: EncoderSource,
    request: EmbedRequest,
    staging: Path,
    missing: list[str],
    progress: Progress,
) -> None:
    size, device, resources = _placement(request, len(missing))
    folder = corpus.shards[0].parent.resolve()
    arguments = (
        folder,
        staging.resolve(),
        source,
        request.template,
        device,
        request.dtype,
        request.batch_tokens,
    )

    def create() -> Any:
        import ray

        return ray.remote(**resources)(EmbedWorker).remote(*arguments)

    # A shard that another worker takes over is counted from its start again: report only what is new.
    reported = dict.fromkeys(missing, 0)
    for shard, done in run_on_pool(create, missing, size, progress):
        progress.advance(max(done - reported[shard], 0))
        reported[shard] = max(done, reported[shard])


def _placement(request: EmbedRequest, n_shards: int) -> tuple[int, str, dict[str, Any]]:
    """Number of workers, their device, and what each takes of Ray: a GPU, or a core."""
    import ray

    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), max(int(resources.get("CPU", 1)), 1)
    device = request.device
    if device == "auto":
        device = "cuda" if gpus and _torch_sees_gpu() else "cpu"
    if device == "cpu":
        return min(n_shards, request.workers or cpus), "cpu", {"num_cpus": 1}
    if not gpus:
        raise ConfigError("device cuda: Ray sees no GPU: use device cpu, or a machine that has one")
    return min(n_shards, request.workers or gpus, gpus), "cuda", {"num_cpus": 1, "num_gpus": 1}


def _torch_sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


class EmbedWorker:
    """A Ray actor that embeds one shard after the other with one encoder in memory."""

    def __init__(
        self,
        corpus: Path,
        staging: Path,
        source: EncoderSource,
        template: str,
        device: str,
        dtype: str,
        batch_tokens: int | None,
    ) -> None:
        self._corpus = corpus
        self._staging = staging
        self._source = source
        self._template = template
        self._device = device
        self._dtype = dtype
        self._batch_tokens = batch_tokens
        self._encoder: LoadedEncoder | None = None

    def ready(self) -> None:
        """Answers as soon as Ray has found room for this worker."""

    def run(self, shard: str) -> Iterator[int]:
        """Embed one shard; yields the number of its rows done, a few times a second, and at the end."""
        encoder = self._load()
        texts = template_texts(pl.scan_parquet(self._corpus / f"{shard}.parquet"), self._template)
        vectors = np.empty((len(texts), encoder.dim), dtype=self._dtype)
        n_truncated, done, reported = 0, 0, time.monotonic()
        for batch in encoder.encode_batches(texts, self._batch_tokens):
            if not np.isfinite(batch.vectors).all():
                raise DataError(f"{shard}: encoder {encoder.name} gave a vector that is not finite: use another")
            vectors[batch.rows] = batch.vectors
            n_truncated += batch.n_truncated
            done += len(batch.rows)
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                yield done
        self._finish(shard, vectors, n_truncated, encoder)
        yield done

    def _load(self) -> LoadedEncoder:
        """The encoder, loaded at the first shard."""
        if self._encoder is None:
            if self._device == "cpu":
                # One thread each, since there is a worker a core. torch reads this when it is imported.
                os.environ["OMP_NUM_THREADS"] = "1"
                os.environ["TOKENIZERS_PARALLELISM"] = "false"
            encoder = load_encoder(self._source.name, self._device)
            if encoder.revision != self._source.revision:
                raise ConfigError(
                    f"encoder {self._source.name} has other files on the worker's machine: copy the same ones to "
                    "every machine"
                )
            self._encoder = encoder
        return self._encoder

    def _finish(self, shard: str, vectors: Any, n_truncated: int, encoder: LoadedEncoder) -> None:
        """Write the vectors, then the mark that says they are complete."""
        path = self._staging / "shards" / f"{shard}.npy"
        self._write(path, lambda file: np.save(file, vectors, allow_pickle=False))
        mark = ShardMark(
            n_rows=len(vectors),
            n_bytes=path.stat().st_size,
            sha256=file_sha256(path),
            n_truncated=n_truncated,
            dim=encoder.dim,
            max_tokens=encoder.max_tokens,
            compute_dtype=encoder.compute_dtype,
        )
        data = mark.model_dump_json().encode()
        self._write(_mark_path(self._staging, shard), lambda file: file.write(data))

    def _write(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        temporary = self._staging / "tmp" / f"{path.name}.{os.getpid()}"
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)


def _mark_path(staging: Path, shard: str) -> Path:
    return staging / "marks" / f"{shard}.json"


def _read_mark(staging: Path, shard: str) -> ShardMark:
    return ShardMark.model_validate_json(_mark_path(staging, shard).read_bytes())


def _finished(staging: Path, shard: str, n_rows: int | None) -> ShardMark | None:
    """The mark of a shard if its vectors are there and whole, else None."""
    path = staging / "shards" / f"{shard}.npy"
    with suppress(FileNotFoundError, ValidationError):
        mark = _read_mark(staging, shard)
        if (mark.n_rows, mark.n_bytes) == (n_rows, path.stat().st_size) and mark.sha256 == file_sha256(path):
            return mark
    return None


def _manifest(
    name: str,
    corpus: Corpus,
    source: EncoderSource,
    parameters: dict[str, Any],
    identity: str,
    marks: dict[str, ShardMark],
) -> EmbeddingsManifest:
    shards = [(path.stem, marks[path.stem]) for path in corpus.shards]
    any_mark = shards[0][1]
    n_truncated = sum(mark.n_truncated for _, mark in shards)
    truncated = (
        f"{n_truncated} of {len(corpus)} documents are longer than {any_mark.max_tokens} tokens: the vectors are "
        "of their starts"
    )
    return EmbeddingsManifest(
        name=name,
        version=1,
        fingerprint=identity,
        inputs=[ArtifactInput(kind="corpus", ref=corpus.manifest.ref, fingerprint=corpus.manifest.fingerprint)],
        parameters=parameters,
        files=[
            FileEntry(path=f"shards/{shard}.npy", n_bytes=mark.n_bytes, sha256=mark.sha256, n_rows=mark.n_rows)
            for shard, mark in shards
        ],
        created_at=datetime.now(UTC),
        software=software_versions(*_LIBRARIES),
        warnings=[truncated] if n_truncated else [],
        corpus=corpus.manifest.ref,
        encoder=source.name,
        encoder_revision=source.revision,
        template=str(parameters["template"]),
        max_tokens=any_mark.max_tokens,
        n_rows=len(corpus),
        n_truncated=n_truncated,
        dim=any_mark.dim,
        dtype=str(parameters["dtype"]),
        normalized=True,
        compute_dtypes=sorted({mark.compute_dtype for _, mark in shards}),
    )
