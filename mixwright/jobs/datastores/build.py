"""The build job: corpora to a published datastore.

Pieces are made first (passages and vectors, one Ray task a shard of a corpus), then clusters of near-duplicates,
and the BM25 and FAISS indexes of each shard. Everything is finished under another name, synced, renamed and
marked with its checksum, so that a build that is killed at any moment goes on with what is missing, and ends with
the same passages and ids as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mixwright.corpora import Corpus, check_template
from mixwright.errors import DataError
from mixwright.fingerprint import fingerprint
from mixwright.indexes.bm25_terms import ANALYSIS
from mixwright.indexes.encoders import EncoderSource, find_encoder
from mixwright.jobs.datastores.contents import Contents, Counts, index_contents, scratch_of, temporary_folder
from mixwright.jobs.datastores.indexing import Rows, ranges
from mixwright.jobs.datastores.pieces import PiecePlan, find_repeats, make_pieces, piece_folder, pieces_of
from mixwright.jobs.ray_pool import cpu_count, ray_session
from mixwright.progress import Progress
from mixwright.schemas.datastores import DatastoreRequest
from mixwright.schemas.manifests import ArtifactInput, DatastoreManifest
from mixwright.schemas.references import parse_reference
from mixwright.store import Store

_NOT_IDENTITY = {"kind", "name", "corpora", "encoder", "template", "device", "workers", "batch_tokens"}
"""Fields of a request that are resources, or stand for something else: an encoder's revision for its name."""

_TITLED = "{title}\n{text}"
"""What is embedded of a passage, unless a request says otherwise, where documents have a title."""


def run_datastore(store: Store, request: DatastoreRequest, progress: Progress) -> DatastoreManifest:
    """Build a datastore and publish it; an equal one that is published already is returned.

    Raises NotFoundError for a missing corpus or encoder, DataError for corpora without documents or with tokens
    of different tokenizers, ConfigError for a template, a device or a memory budget that does not work,
    ConvergenceError where no index meets the recall, ConflictError if another process is building the same.
    """
    reference = parse_reference(request.name)
    corpora = open_corpora(store, request.corpora)
    source = find_encoder(request.encoder)
    words_template = default_template(corpora)
    template = request.template or words_template
    for corpus in corpora:
        if request.template is not None:
            check_template(corpus, template)
    request = request.model_copy(update={"template": template})
    parameters = request.model_dump(mode="json", exclude=_NOT_IDENTITY) | {
        "encoder_revision": source.revision,
        "template": template,
        "bm25_terms": ANALYSIS,
    }
    identity = fingerprint("datastore", [corpus.manifest.fingerprint for corpus in corpora], parameters)
    existing = store.existing("datastore", reference, identity)
    if isinstance(existing, DatastoreManifest):
        return existing
    with (
        store.stage("datastore", reference, identity, resume=True) as staging,
        ray_session(max(cpu_count(), request.workers or 1)),
    ):
        directory = staging.path.resolve()
        repeats = repeats_file(corpora, request, directory)
        plan, documents = plan_pieces(corpora, request, source, repeats)
        folder = piece_folder(directory)
        marks = list(make_pieces(folder, plan, documents, request, progress).values())
        counts = Counts.of(marks)
        contents = Contents(
            # What an encoder of vectors reads are no words.
            Rows(directory, tuple(counts.pieces), counts.dim, template if source.reads_words else words_template),
            counts,
            folder.entries(dict(zip(documents, marks, strict=True))),
            ranges(counts.n_rows, request.shards),
            sum(documents.values()) - counts.n_documents,
            metadata_fields_of(corpora),
        )
        draft = index_contents(staging, contents, request, corpora[0].manifest.tokenizer, progress)
        named = {"fingerprint": identity, "inputs": inputs_of(corpora), "parameters": parameters}
        return store.publish(staging, draft.model_copy(update=named), scratch_of(draft))


def open_corpora(store: Store, references: Sequence[str], tokenizer: str | None = None) -> list[Corpus]:
    """The corpora, whose tokens must have been counted by one tokenizer (``tokenizer``, if it is given).

    Raises NotFoundError, and DataError for a corpus that is named twice or has another tokenizer.
    """
    corpora = [Corpus.open(store, reference) for reference in references]
    names = [corpus.manifest.ref for corpus in corpora]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise DataError(f"corpus {sorted(repeated)[0]} is named twice: name each corpus once")
    wanted = tokenizer or corpora[0].manifest.tokenizer
    for corpus in corpora:
        if corpus.manifest.tokenizer != wanted:
            raise DataError(
                f"corpus {corpus.manifest.ref} counts tokens by {corpus.manifest.tokenizer}, not by {wanted}: "
                "ingest all corpora with one tokenizer"
            )
    return corpora


def metadata_fields_of(corpora: Sequence[Corpus]) -> list[str]:
    """The keys of the documents' metadata, as the start of every shard has them, sorted."""
    return sorted({field for corpus in corpora for field in corpus.metadata_fields})


def default_template(corpora: Sequence[Corpus]) -> str:
    """Title and text where documents have a title, else the text."""
    return _TITLED if "title" in metadata_fields_of(corpora) else "{text}"


def repeats_file(
    corpora: Sequence[Corpus], request: DatastoreRequest, directory: Path, known: Iterable[Sequence[str]] = ()
) -> Path | None:
    """A file that marks the documents to leave out, in the staging folder; None where all are taken.

    ``known`` are ids of documents that are in the store already.
    """
    if request.duplicates == "keep":
        return None
    work = directory / "work"
    work.mkdir(exist_ok=True)
    path = work / "repeats.npy"
    with temporary_folder(work / "ids") as folder:
        np.save(path, find_repeats(corpora, known, folder))
    return path


def plan_pieces(
    corpora: Sequence[Corpus],
    request: DatastoreRequest,
    source: EncoderSource,
    repeats: Path | None,
    first_piece: int = 0,
) -> tuple[PiecePlan, dict[str, int]]:
    """What the workers are told, and the number of documents behind each piece."""
    shards, documents = pieces_of(corpora, first_piece)
    starts = np.cumsum([0, *documents.values()])
    plan = PiecePlan(
        shards=shards,
        first_documents=dict(zip(documents, starts.tolist(), strict=False)),
        repeats=repeats,
        encoder=source,
        template=request.template or "{text}",
        window=request.window,
        long_passages=request.long_passages,
        tokenizer=corpora[0].manifest.tokenizer,
        dtype=request.dtype,
        batch_tokens=request.batch_tokens,
    )
    return plan, documents


def inputs_of(corpora: Sequence[Corpus]) -> list[ArtifactInput]:
    """The corpora as a manifest names its inputs."""
    return [
        ArtifactInput(kind="corpus", ref=each.manifest.ref, fingerprint=each.manifest.fingerprint)
        for each in corpora
    ]
