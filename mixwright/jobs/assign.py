"""The assign job: the documents of a corpus to the clusters of a PASER mixture."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import polars as pl

from mixwright.corpora import Corpus
from mixwright.errors import DataError
from mixwright.fingerprint import fingerprint
from mixwright.indexes.embeddings import Embeddings
from mixwright.jobs.embed import run_embed
from mixwright.progress import Progress
from mixwright.schemas.manifests import ArtifactInput, AttributeColumn, AttributesManifest, MixtureManifest
from mixwright.schemas.references import parse_reference
from mixwright.schemas.requests import AssignRequest, EmbedRequest
from mixwright.selectors.clustering import Clustering
from mixwright.selectors.paser import Paser
from mixwright.selectors.paser_report import read_clustering
from mixwright.selectors.registry import SELECTOR_ADAPTER
from mixwright.store import Staging, Store, software_versions

_LONGEST_NAME = 128
_COLUMNS = [
    AttributeColumn(name="cluster", dtype="int32", description="number of the cluster in the mixture's report"),
    AttributeColumn(
        name="cluster_similarity", dtype="float", description="cosine with the nearest landmark: low is unlike any"
    ),
]


def run_assign(store: Store, request: AssignRequest, progress: Progress) -> AttributesManifest:
    """Label and publish; equal attributes that are published already are returned.

    The corpus is embedded first, as the mixture's sources were, where it is not. Raises NotFoundError for a
    missing corpus, mixture or encoder, DataError for a mixture of another selector, ConflictError.
    """
    corpus = Corpus.open(store, request.corpus)
    mixture = store.manifest(request.mixture, "mixture")
    if not isinstance(mixture, MixtureManifest) or mixture.selector != "paser":
        raise DataError(f"mixture {request.mixture} was not selected by paser: name one that was")
    reference = parse_reference(request.name or f"{corpus.manifest.name}.{mixture.name}-clusters"[:_LONGEST_NAME])
    inputs = [corpus.manifest, mixture]
    identity = fingerprint("attributes", [each.fingerprint for each in inputs], {"job": "assign"})
    existing = store.existing("attributes", reference, identity)
    if isinstance(existing, AttributesManifest):
        return existing
    embeddings = _embeddings(store, corpus, mixture, request.workers, progress)
    clustering = read_clustering(store.directory(mixture))
    with store.stage("attributes", reference, identity) as staging:
        counts = _write(corpus, embeddings, clustering, staging, progress)
        draft = AttributesManifest(
            name=reference.name,
            version=1,
            fingerprint=identity,
            inputs=[
                ArtifactInput(kind=each.kind, ref=each.ref, fingerprint=each.fingerprint)
                for each in (*inputs, embeddings.manifest)
            ],
            parameters={"job": "assign"},
            files=[
                staging.entry(f"shards/{path.name}", entry.n_rows)
                for path, entry in zip(corpus.shards, corpus.manifest.shards, strict=True)
            ],
            created_at=datetime.now(UTC),
            software=software_versions("faiss-cpu", "numpy", "polars"),
            corpus=corpus.manifest.ref,
            n_rows=len(corpus),
            columns=_COLUMNS,
            counts={f"cluster {number}": int(n) for number, n in enumerate(counts)},
        )
        return store.publish(staging, draft)


def _embeddings(
    store: Store, corpus: Corpus, mixture: MixtureManifest, workers: int | None, progress: Progress
) -> Embeddings:
    """Vectors of the corpus, made as those of the mixture's sources were."""
    selector = SELECTOR_ADAPTER.validate_python(mixture.parameters["selector"])
    if not isinstance(selector, Paser):
        raise DataError(f"mixture {mixture.ref} was not selected by paser: name one that was")
    request = EmbedRequest(
        corpus=corpus.manifest.ref,
        encoder=selector.encoder,
        template=selector.requirements().template(corpus.metadata_fields),
        workers=workers,
    )
    return Embeddings.open(store, run_embed(store, request, progress).ref, corpus)


def _write(
    corpus: Corpus, embeddings: Embeddings, clustering: Clustering, staging: Staging, progress: Progress
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Write one Parquet shard for each of the corpus; returns the documents of each cluster (k,)."""
    progress.start(f"assign {corpus.manifest.ref}", total=len(corpus))
    (staging.path / "shards").mkdir()
    counts, start = np.zeros(clustering.n_clusters, dtype=np.int64), 0
    for path, entry in zip(corpus.shards, corpus.manifest.shards, strict=True):
        rows = np.arange(start, start + (entry.n_rows or 0), dtype=np.int64)
        nearest, similarities = clustering.nearest_landmarks(embeddings.rows(rows))
        labels = clustering.vote(nearest, similarities)
        table = pl.DataFrame(
            {"cluster": labels.astype(np.int32), "cluster_similarity": similarities[:, 0].astype(np.float32)}
        )
        table.write_parquet(staging.path / "shards" / path.name)
        counts += np.bincount(labels, minlength=len(counts))
        start += len(rows)
        progress.advance(len(rows))
    return counts
