"""The embed job: a corpus to embeddings, one shard at a time, on as many workers as there are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mixwright.corpora import Corpus, check_template, template_texts
from mixwright.errors import DataError
from mixwright.fingerprint import fingerprint
from mixwright.indexes.encoders import EncoderSource, LoadedEncoder, find_encoder
from mixwright.jobs.marked_shards import (
    ShardFolder,
    ShardMark,
    Workers,
    finish_shards,
    paced,
    shards_of,
)
from mixwright.jobs.worker_encoder import load_worker_encoder
from mixwright.progress import Progress
from mixwright.schemas.manifests import ArtifactInput, EmbeddingsManifest, FileEntry
from mixwright.schemas.references import parse_reference
from mixwright.schemas.requests import EmbedRequest
from mixwright.store import Store, software_versions

_LONGEST_NAME = 128
_LIBRARIES = ("torch", "sentence-transformers", "transformers", "numpy", "ray")


class EmbedMark(ShardMark):
    """A shard of vectors is finished."""

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
    check_template(corpus, request.template)
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
        folder = ShardFolder(staging.path.resolve(), "npy", EmbedMark)
        workers = _workers(corpus, source, request, folder)
        marks = finish_shards(folder, shards_of(corpus), workers, f"embed {corpus.manifest.ref}", progress)
        files = folder.entries(marks)
        draft = _manifest(reference.name, corpus, source, parameters, identity, list(marks.values()), files)
        for warning in draft.warnings:
            progress.note(f"warning: {warning}")
        return store.publish(staging, draft)


def default_name(corpus: str, source: EncoderSource) -> str:
    """CORPUS.ENCODER, as a reference may be written."""
    return f"{corpus}.{source.slug}"[:_LONGEST_NAME]


def _workers(
    corpus: Corpus, source: EncoderSource, request: EmbedRequest, folder: ShardFolder[EmbedMark]
) -> Workers:
    arguments = (
        corpus.shards[0].parent.resolve(),
        folder,
        source,
        request.template,
        request.dtype,
        request.batch_tokens,
    )
    return Workers(EmbedWorker, arguments, request.device, request.workers)


class EmbedWorker:
    """A Ray actor that embeds one shard after the other with one encoder in memory."""

    def __init__(
        self,
        corpus: Path,
        folder: ShardFolder[EmbedMark],
        source: EncoderSource,
        template: str,
        dtype: str,
        batch_tokens: int | None,
        device: str,
    ) -> None:
        self._corpus = corpus
        self._folder = folder
        self._source = source
        self._template = template
        self._dtype = dtype
        self._batch_tokens = batch_tokens
        self._device = device
        self._encoder: LoadedEncoder | None = None

    def ready(self) -> None:
        """Answers as soon as Ray has found room for this worker."""

    def run(self, shard: str) -> Iterator[int]:
        """Embed one shard; yields the number of its rows done, a few times a second, and at the end."""
        yield from paced(self._embed(shard))

    def _embed(self, shard: str) -> Iterator[int]:
        encoder = self._load()
        texts = template_texts(pl.scan_parquet(self._corpus / f"{shard}.parquet"), self._template)
        vectors = np.empty((len(texts), encoder.dim), dtype=self._dtype)
        n_truncated = 0
        for batch in encoder.encode_batches(texts, self._batch_tokens):
            if not np.isfinite(batch.vectors).all():
                raise DataError(f"{shard}: encoder {encoder.name} gave a vector that is not finite: use another")
            vectors[batch.rows] = batch.vectors
            n_truncated += batch.n_truncated
            yield len(batch.rows)
        with self._folder.writing(shard) as file:
            np.save(file, vectors, allow_pickle=False)
        self._folder.finish(
            shard,
            len(vectors),
            n_truncated=n_truncated,
            dim=encoder.dim,
            max_tokens=encoder.max_tokens,
            compute_dtype=encoder.compute_dtype,
        )

    def _load(self) -> LoadedEncoder:
        """The encoder, loaded at the first shard."""
        if self._encoder is None:
            self._encoder = load_worker_encoder(self._source, self._device)
        return self._encoder


def _manifest(
    name: str,
    corpus: Corpus,
    source: EncoderSource,
    parameters: dict[str, Any],
    identity: str,
    marks: list[EmbedMark],
    files: list[FileEntry],
) -> EmbeddingsManifest:
    any_mark = marks[0]
    n_truncated = sum(mark.n_truncated for mark in marks)
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
        files=files,
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
        compute_dtypes=sorted({mark.compute_dtype for mark in marks}),
    )
