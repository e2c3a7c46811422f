"""The index job: embeddings to a FAISS index that meets a recall target."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from mixwright.corpora import Corpus
from mixwright.errors import DataError, NotFoundError
from mixwright.fingerprint import fingerprint
from mixwright.indexes.embeddings import Embeddings
from mixwright.indexes.encoders import find_encoder
from mixwright.indexes.faiss_import import resolve_device, threads
from mixwright.indexes.faiss_index import INDEX_FILE, write_index
from mixwright.indexes.tuning import ChosenIndex, choose_index
from mixwright.progress import Progress
from mixwright.schemas.manifests import ArtifactInput, EmbeddingsManifest, FileEntry, IndexManifest
from mixwright.schemas.references import parse_reference
from mixwright.schemas.requests import IndexRequest
from mixwright.store import Store, software_versions

_LONGEST_NAME = 128
_LIBRARIES = ("faiss-cpu", "faiss-gpu", "numpy")


def run_index(store: Store, request: IndexRequest, progress: Progress) -> IndexManifest:
    """Index the embeddings of a corpus and publish; an equal index that is published already is returned.

    Raises NotFoundError for a missing corpus or one without embeddings, AlignmentError for embeddings of other
    rows, ConfigError for a GPU that is not there or a memory budget that excludes every kind, ConvergenceError
    for a kind that cannot meet the recall target, MissingExtraError without FAISS.
    """
    corpus = Corpus.open(store, request.corpus)
    embeddings = Embeddings.open(store, find_embeddings(store, corpus, request.encoder).ref, corpus)
    if len(embeddings) == 0:
        raise DataError(f"embeddings {embeddings.manifest.ref} have no rows: ingest and embed some documents")
    name = f"{embeddings.manifest.name}.{request.index_kind}"[:_LONGEST_NAME]
    reference = parse_reference(request.name or name)
    parameters = request.model_dump(include={"index_kind", "recall", "memory_budget", "queries", "seed"})
    identity = fingerprint("index", [embeddings.manifest.fingerprint], parameters)
    existing = store.existing("index", reference, identity)
    if isinstance(existing, IndexManifest):
        return existing
    device = resolve_device(request.device)
    with store.stage("index", reference, identity) as staging, threads(request.threads):
        chosen = choose_index(embeddings, request, device, progress)
        write_index(chosen.index, staging.path / INDEX_FILE)
        entry = staging.entry(INDEX_FILE, len(embeddings))
        draft = _manifest(reference.name, embeddings.manifest, parameters, identity, chosen, entry, device)
        return store.publish(staging, draft)


def find_embeddings(store: Store, corpus: Corpus, encoder: str | None) -> EmbeddingsManifest:
    """The newest embeddings of this version of the corpus, by ``encoder`` if one is named.

    Raises NotFoundError with the command that makes them.
    """
    found = [
        each
        for each in store.manifests("embeddings")
        if isinstance(each, EmbeddingsManifest)
        and corpus.manifest.fingerprint in [made_of.fingerprint for made_of in each.inputs]
    ]
    if encoder is not None:
        # The name as recorded needs no encoder on this machine; another spelling (a relative path) does.
        named = [each for each in found if each.encoder == encoder]
        found = named or [each for each in found if each.encoder_revision == find_encoder(encoder).revision]
    if not found:
        by = f" by encoder {encoder}" if encoder is not None else ""
        flag = f" --encoder {encoder}" if encoder is not None else ""
        ref = corpus.manifest.ref
        raise NotFoundError(f"corpus {ref} has no embeddings{by}: run  mixwright embed {ref}{flag}  first")
    return max(found, key=lambda each: each.created_at)


def _manifest(
    name: str,
    embeddings: EmbeddingsManifest,
    parameters: dict[str, Any],
    identity: str,
    chosen: ChosenIndex,
    entry: FileEntry,
    device: Literal["cpu", "gpu"],
) -> IndexManifest:
    return IndexManifest(
        name=name,
        version=1,
        fingerprint=identity,
        inputs=[
            *embeddings.inputs,
            ArtifactInput(kind="embeddings", ref=embeddings.ref, fingerprint=embeddings.fingerprint),
        ],
        parameters=parameters,
        files=[entry],
        created_at=datetime.now(UTC),
        software=software_versions(*_LIBRARIES),
        corpus=embeddings.corpus,
        embeddings=embeddings.ref,
        encoder=embeddings.encoder,
        index_kind=chosen.recipe.kind,
        factory=chosen.recipe.factory,
        search_parameters=dict(chosen.settings),
        n_rows=embeddings.n_rows,
        dim=embeddings.dim,
        n_bytes=entry.n_bytes,
        recall=chosen.recall,
        candidates=chosen.candidates,
        device=device,
    )
