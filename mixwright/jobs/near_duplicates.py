"""The near-duplicates job: documents of a corpus that are nearly the same, as attributes.

It runs in one process: a document costs about 0.1 ms, a tenth of what it costs to be tokenized.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from mixwright.corpora import Corpus, check_template, id_bits
from mixwright.errors import DataError
from mixwright.fingerprint import fingerprint
from mixwright.indexes.embeddings import Embeddings
from mixwright.indexes.encoders import find_encoder
from mixwright.indexes.kinds import Settings
from mixwright.indexes.near_duplicates import DEFAULT_JACCARD, Clusters, near_duplicate_clusters
from mixwright.indexes.protocols import FloatArray, Hits
from mixwright.indexes.searching import Searcher
from mixwright.indexes.semantic_duplicates import DEFAULT_COSINE, semantic_clusters
from mixwright.indexes.tuning import choose_index
from mixwright.jobs.embed import run_embed
from mixwright.jobs.texts import corpus_texts
from mixwright.progress import Progress
from mixwright.schemas.defaults import DEFAULT_ENCODER
from mixwright.schemas.manifests import ArtifactInput, AttributeColumn, AttributesManifest
from mixwright.schemas.references import parse_reference
from mixwright.schemas.requests import DuplicateMethod, EmbedRequest, IndexRequest, NearDuplicatesRequest
from mixwright.store import Staging, Store, software_versions

UInt64Array = npt.NDArray[np.uint64]

MOST_COMPARED = 100_000
"""Vectors that are compared all with all: a minute or two. Of more, an index finds the neighbours."""

_LONGEST_NAME = 128
_THRESHOLDS: dict[DuplicateMethod, float | None] = {
    "exact": None,
    "minhash": DEFAULT_JACCARD,
    "semantic": DEFAULT_COSINE,
}
_LIBRARIES = ("numpy", "polars", "pyarrow")


def run_near_duplicates(store: Store, request: NearDuplicatesRequest, progress: Progress) -> AttributesManifest:
    """Cluster and publish; equal attributes that are published already are returned.

    By ``semantic`` the corpus is embedded first where it is not. Raises NotFoundError for a missing corpus or
    encoder, ConfigError for a template of unknown fields, DataError for an empty corpus, ConflictError.
    """
    corpus = Corpus.open(store, request.corpus)
    check_template(corpus, request.template)
    if len(corpus) == 0:
        raise DataError(f"corpus {corpus.manifest.ref} has no documents: ingest some")
    reference = parse_reference(request.name or f"{corpus.manifest.name}.near-duplicates"[:_LONGEST_NAME])
    parameters = _parameters(request)
    identity = fingerprint("attributes", [corpus.manifest.fingerprint], parameters)
    existing = store.existing("attributes", reference, identity)
    if isinstance(existing, AttributesManifest):
        return existing
    embeddings = _embeddings(store, corpus, request, progress) if request.method == "semantic" else None
    with store.stage("attributes", reference, identity) as staging:
        keys = corpus.scan().select(id_bits()).collect().to_series().to_numpy()
        clusters = _clusters(corpus, embeddings, keys, parameters, staging, progress)
        for warning in clusters.warnings:
            progress.note(f"warning: {warning}")
        counts = _write(corpus, clusters, keys, staging)
        draft = _manifest(staging, corpus, embeddings, parameters, identity, clusters, counts)
        return store.publish(staging, draft)


def _parameters(request: NearDuplicatesRequest) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "job": "near-duplicates",
        "method": request.method,
        "threshold": request.threshold or _THRESHOLDS[request.method],
        "template": request.template,
    }
    if request.method == "semantic":
        parameters["encoder_revision"] = find_encoder(request.encoder or DEFAULT_ENCODER).revision
    return parameters


def _embeddings(store: Store, corpus: Corpus, request: NearDuplicatesRequest, progress: Progress) -> Embeddings:
    embed = EmbedRequest(
        corpus=corpus.manifest.ref,
        encoder=request.encoder or DEFAULT_ENCODER,
        template=request.template,
        workers=request.workers,
    )
    return Embeddings.open(store, run_embed(store, embed, progress).ref, corpus)


def _clusters(
    corpus: Corpus,
    embeddings: Embeddings | None,
    keys: UInt64Array,
    parameters: dict[str, Any],
    staging: Staging,
    progress: Progress,
) -> Clusters:
    if embeddings is not None:
        return _semantic(embeddings, keys, parameters["threshold"], progress)
    return near_duplicate_clusters(
        lambda: corpus_texts(corpus, parameters["template"]),
        keys,
        staging.path / "work",
        progress,
        method=parameters["method"],
        threshold=parameters["threshold"] or 1.0,
    )


class _TunedIndex(NamedTuple):
    """An index in memory, searched as it was tuned."""

    searcher: Searcher
    settings: Settings

    def search(self, queries: FloatArray, k: int) -> Hits:
        return self.searcher.search(queries, k, self.settings)


def _semantic(embeddings: Embeddings, keys: UInt64Array, threshold: float, progress: Progress) -> Clusters:
    if len(embeddings) <= MOST_COMPARED:
        return semantic_clusters(embeddings, keys, progress, threshold=threshold)
    chosen = choose_index(embeddings, IndexRequest(corpus=embeddings.manifest.corpus), "cpu", progress)
    index = _TunedIndex(Searcher(chosen.index), chosen.settings)
    clusters = semantic_clusters(embeddings, keys, progress, threshold=threshold, index=index)
    warning = (
        f"{len(embeddings):,} vectors are too many to compare all with all: each was compared with the nearest "
        f"that an index of recall@{chosen.recall.k} {chosen.recall.measured:.3f} finds"
    )
    return Clusters(clusters.ids, (*clusters.warnings, warning))


def _write(corpus: Corpus, clusters: Clusters, keys: UInt64Array, staging: Staging) -> dict[str, int]:
    """Write one Parquet shard for each of the corpus; returns the manifest's counts."""
    sizes, first = clusters.sizes(), clusters.smallest(keys)
    (staging.path / "shards").mkdir()
    start = 0
    for path, entry in zip(corpus.shards, corpus.manifest.shards, strict=True):
        rows = slice(start, start + (entry.n_rows or 0))
        start = rows.stop
        table = pl.DataFrame(
            {
                "duplicate_cluster": [f"{each:016x}" for each in clusters.ids[rows].tolist()],
                "duplicate_size": sizes[rows],
                "duplicate_first": first[rows],
            },
            schema_overrides={"duplicate_cluster": pl.String},
        )
        table.write_parquet(staging.path / "shards" / path.name)
    n_first = int(first.sum())
    return {"first": n_first, "duplicates": len(keys) - n_first, "alone": int((sizes == 1).sum())}


def _manifest(
    staging: Staging,
    corpus: Corpus,
    embeddings: Embeddings | None,
    parameters: dict[str, Any],
    identity: str,
    clusters: Clusters,
    counts: dict[str, int],
) -> AttributesManifest:
    read = [corpus.manifest, *([embeddings.manifest] if embeddings is not None else [])]
    how = parameters["method"] + (f" at {parameters['threshold']:g}" if parameters["threshold"] else "")
    return AttributesManifest(
        name=staging.reference.name,
        version=1,
        fingerprint=identity,
        inputs=[ArtifactInput(kind=each.kind, ref=each.ref, fingerprint=each.fingerprint) for each in read],
        parameters=parameters,
        files=[
            staging.entry(f"shards/{path.name}", entry.n_rows)
            for path, entry in zip(corpus.shards, corpus.manifest.shards, strict=True)
        ],
        created_at=datetime.now(UTC),
        software=software_versions(*_LIBRARIES),
        warnings=list(clusters.warnings),
        corpus=corpus.manifest.ref,
        n_rows=len(corpus),
        columns=_columns(how),
        counts=counts,
    )


def _columns(how: str) -> list[AttributeColumn]:
    about = {
        "duplicate_cluster": (
            "string",
            f"near-duplicates by {how} have the same: 16 hexadecimal digits, the smallest start of their ids",
        ),
        "duplicate_size": ("int64", "documents of the cluster"),
        "duplicate_first": (
            "bool",
            "true for the one document of the cluster that stays, that of the smallest id",
        ),
    }
    return [AttributeColumn(name=name, dtype=dtype, description=text) for name, (dtype, text) in about.items()]
