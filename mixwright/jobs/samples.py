"""Parts of corpora that are too large to be embedded whole: corpora of their own, embedded once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mixwright.corpora import Corpus, id_bits
from mixwright.errors import DataError
from mixwright.fingerprint import fingerprint
from mixwright.indexes.embeddings import Embeddings
from mixwright.jobs.embeddings_of import embeddings_of, published_embeddings
from mixwright.progress import Progress
from mixwright.schemas.manifests import ArtifactInput, CorpusManifest
from mixwright.schemas.references import Reference
from mixwright.selectors.mixture import smallest_of
from mixwright.selectors.pool import Requirements
from mixwright.store import Store, software_versions

Int64Array = npt.NDArray[np.int64]

_SHARD_ROWS = 128
"""As few as a shard of an ingested corpus has, so that workers share a small sample."""
WORTH_IT = 2
"""A corpus of not more than this many samples is embedded whole."""


def make_embeddings(
    store: Store, sources: Sequence[str], requirements: Requirements, progress: Progress
) -> tuple[dict[str, Embeddings], dict[str, str]]:
    """The embeddings that a selector wants, by ref, and the samples of corpora that are too large to be embedded.

    What is not published yet is made. ``Pool.open`` takes both.
    """
    if requirements.encoder is None:
        return {}, {}
    references, samples = [], {}
    for corpus in _corpora(store, sources, requirements):
        ref, n = corpus.manifest.ref, requirements.sample
        if n is not None and len(corpus) > WORTH_IT * n and _published(store, corpus, requirements) is None:
            samples[ref] = publish_sample(store, corpus, n).ref
        references.append(samples.get(ref, ref))
    found = embeddings_of(store, references, requirements.encoder, requirements.template, progress)
    return found, samples


def find_embeddings(
    store: Store, sources: Sequence[str], requirements: Requirements
) -> tuple[dict[str, Embeddings], dict[str, str]]:
    """The same of what is published already; raises DataError naming the first corpus that is not embedded."""
    found, samples = {}, {}
    for corpus in _corpora(store, sources, requirements):
        ref, embeddings = corpus.manifest.ref, _published(store, corpus, requirements)
        if embeddings is None and (sample := _published_sample(store, corpus, requirements)) is not None:
            samples[ref], embeddings = sample.manifest.ref, _published(store, sample, requirements)
        if embeddings is None:
            raise DataError(
                f"corpus {ref} is not embedded by {requirements.encoder}: embed it with the same encoder and "
                "template, or select from it once, which embeds a sample"
            )
        found[samples.get(ref, ref)] = embeddings
    return found, samples


def _corpora(store: Store, sources: Sequence[str], requirements: Requirements) -> list[Corpus]:
    wanted = [*sources, *([requirements.examples] if requirements.examples else [])]
    return [Corpus.open(store, reference) for reference in wanted]


def _published(store: Store, corpus: Corpus, requirements: Requirements) -> Embeddings | None:
    template = requirements.template(corpus.metadata_fields)
    return published_embeddings(store, corpus, requirements.encoder or "", template)


def _published_sample(store: Store, corpus: Corpus, requirements: Requirements) -> Corpus | None:
    if requirements.sample is None:
        return None
    reference, identity = _sample_identity(corpus, requirements.sample)
    existing = store.existing("corpus", reference, identity)
    return Corpus.open(store, existing.ref) if existing is not None else None


def _sample_identity(corpus: Corpus, n: int) -> tuple[Reference, str]:
    reference = Reference(f"{corpus.manifest.name}.sample-{n}"[:128])
    return reference, fingerprint("corpus", [corpus.manifest.fingerprint], {"sample": n})


def publish_sample(store: Store, corpus: Corpus, n: int) -> CorpusManifest:
    """Publish the ``n`` documents with the smallest hashes of their ids as a corpus, in row order.

    An equal sample that is published already is returned. Raises ConflictError.
    """
    reference, identity = _sample_identity(corpus, n)
    existing = store.existing("corpus", reference, identity)
    if isinstance(existing, CorpusManifest):
        return existing
    ids = corpus.scan().select(id_bits()).collect().to_series().to_numpy()
    return _publish(store, corpus, np.sort(smallest_of(ids, n)), reference, identity)


def publish_rows(store: Store, corpus: Corpus, rows: Int64Array, what: str) -> CorpusManifest:
    """Publish the documents of these rows (n,), which are sorted, as a corpus named ``CORPUS.what-HASH``.

    An equal one that is published already is returned. Raises ConflictError.
    """
    digest = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    identity = fingerprint("corpus", [corpus.manifest.fingerprint], {"rows": digest})
    reference = Reference(f"{corpus.manifest.name[:100]}.{what}-{digest[:8]}")
    existing = store.existing("corpus", reference, identity)
    if isinstance(existing, CorpusManifest):
        return existing
    return _publish(store, corpus, rows, reference, identity)


def _publish(
    store: Store, corpus: Corpus, rows: Int64Array, reference: Reference, identity: str
) -> CorpusManifest:
    table = corpus.take(rows)
    with store.stage("corpus", reference, identity) as staging:
        (staging.path / "shards").mkdir()
        files = []
        for number, start in enumerate(range(0, table.num_rows, _SHARD_ROWS)):
            shard = table.slice(start, _SHARD_ROWS)
            path = f"shards/part-{number:05d}.parquet"
            pq.write_table(shard, staging.path / path, compression="zstd")
            files.append(staging.entry(path, shard.num_rows))
        draft = _manifest(corpus, reference, identity, table)
        return store.publish(staging, draft.model_copy(update={"files": files}))


def _manifest(corpus: Corpus, reference: Reference, identity: str, table: pa.Table) -> CorpusManifest:
    frame = pl.DataFrame(pl.from_arrow(table))
    domains = frame["domain"].drop_nulls().value_counts(sort=True)
    return CorpusManifest(
        name=reference.name,
        version=1,
        fingerprint=identity,
        inputs=[ArtifactInput(kind="corpus", ref=corpus.manifest.ref, fingerprint=corpus.manifest.fingerprint)],
        parameters={"sample": table.num_rows},
        created_at=datetime.now(UTC),
        software=software_versions("polars", "pyarrow"),
        n_documents=table.num_rows,
        n_duplicates=0,
        n_quarantined=0,
        n_tokens=int(frame["n_tokens"].sum()),
        n_text_bytes=int(frame["text"].str.len_bytes().sum()),
        tokenizer=corpus.manifest.tokenizer,
        domains=dict(domains.head(100).rows()),
        n_domains=domains.height,
    )
