"""Jobs that change a datastore: add corpora, delete documents, compact.

A store is never changed in place. Each job publishes the next version; what both versions have, files of pieces
and shards, is shared by hard links, so that adding costs what is added, deleting next to nothing, and an old
version can be searched while a new one is made, and removed afterwards.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from mixwright.errors import ConflictError, DataError, NotFoundError
from mixwright.fingerprint import fingerprint
from mixwright.indexes.bm25_terms import ANALYSIS
from mixwright.indexes.datastores.datastore import datastore_manifest
from mixwright.indexes.datastores.pieces import Pieces, piece_name, write_passages
from mixwright.indexes.datastores.shards import (
    CLUSTERS_FILE,
    DELETED_FILE,
    TRAINED_FILE,
    MergedIndexes,
    TunedIndexes,
    alive_rows,
    check_terms,
    stored_vectors,
)
from mixwright.indexes.encoders import find_encoder
from mixwright.indexes.faiss_import import resolve_device
from mixwright.indexes.kinds import Recipe, recipes
from mixwright.indexes.tuning import tuned_recall
from mixwright.indexes.vectors import StackedVectors
from mixwright.jobs.datastores.build import inputs_of, metadata_fields_of, open_corpora, plan_pieces, repeats_file
from mixwright.jobs.datastores.contents import (
    Contents,
    Counts,
    index_contents,
    keep_indexes,
    published_pieces,
    scratch_of,
    write_clusters,
)
from mixwright.jobs.datastores.indexing import (
    Rows,
    add_to_shards,
    build_bm25,
    draw_queries,
    ranges,
    shard_indexes,
)
from mixwright.jobs.datastores.pieces import PieceMark, make_pieces, piece_counts, piece_folder
from mixwright.jobs.marked_shards import ShardFolder
from mixwright.jobs.ray_pool import cpu_count, ray_session
from mixwright.progress import Progress
from mixwright.schemas.datastores import (
    DatastoreAddRequest,
    DatastoreCompactRequest,
    DatastoreDeleteRequest,
    DatastoreRequest,
)
from mixwright.schemas.manifests import ArtifactInput, DatastoreManifest, RecallReport
from mixwright.schemas.references import Reference
from mixwright.schemas.requests import IndexKind
from mixwright.store import Staging, Store, link_or_copy

_RETRAIN = 4
"""A store that has grown by this factor since its index was trained should be compacted."""

_MANY = 5


AnyArray = npt.NDArray[Any]


class _Change(NamedTuple):
    """A change of a store: the version it starts from, and what the next version is called."""

    base: DatastoreManifest
    directory: Path
    identity: str
    parameters: dict[str, Any]

    @property
    def reference(self) -> Reference:
        """The store's name: a change publishes its next version."""
        return Reference(self.base.name)

    @property
    def request(self) -> DatastoreRequest:
        """The request of the build that the store began with."""
        fields = {name: value for name, value in self.parameters.items() if name in DatastoreRequest.model_fields}
        named = {"name": self.base.name, "corpora": [self.base.name], "encoder": self.base.encoder}
        return DatastoreRequest.model_validate(fields | named)


_RequestT = TypeVar("_RequestT", DatastoreAddRequest, DatastoreDeleteRequest, DatastoreCompactRequest)
_Job = Callable[[Store, _RequestT, Progress], DatastoreManifest]


def _one_at_a_time(run: _Job[_RequestT]) -> _Job[_RequestT]:
    """Let no two changes of one store run at once: the later one to publish would undo the other.

    The job raises ConflictError while another one is at work.
    """

    @wraps(run)
    def alone(store: Store, request: _RequestT, progress: Progress) -> DatastoreManifest:
        base = datastore_manifest(store, request.datastore)
        with store.stage("datastore", Reference(base.name), "change"):
            return run(store, request, progress)

    return alone


@_one_at_a_time
def run_datastore_add(store: Store, request: DatastoreAddRequest, progress: Progress) -> DatastoreManifest:
    """Add corpora and publish the store's next version.

    Documents that the store has already are left out, unless it was built with ``duplicates`` keep; where nothing
    is left the store is returned as it is. Raises what ``run_datastore`` raises, and DataError for an encoder
    that has changed since.
    """
    base = datastore_manifest(store, request.datastore)
    corpora = open_corpora(store, request.corpora, base.tokenizer)
    change = _change(
        store, base, {"add": [corpus.manifest.fingerprint for corpus in corpora], "shards": request.shards}
    )
    found = store.existing("datastore", change.reference, change.identity)
    if isinstance(found, DatastoreManifest):
        return found
    _refuse_older(store, base)
    source = find_encoder(base.encoder)
    if source.revision != base.encoder_revision:
        raise DataError(f"encoder {base.encoder} has changed since {base.ref} was built: build the store again")
    check_terms(base)
    resources = request.model_dump(include={"device", "workers", "batch_tokens"})
    built_by = change.request.model_copy(update=resources)
    with (
        store.stage("datastore", change.reference, change.identity, resume=True) as staging,
        ray_session(max(cpu_count(), request.workers or 1)),
    ):
        directory = staging.path.resolve()
        known = _alive_documents(change) if built_by.duplicates == "drop" else iter(())
        repeats = repeats_file(corpora, built_by, directory, known)
        plan, documents = plan_pieces(corpora, built_by, source, repeats, len(base.pieces))
        folder = piece_folder(directory)
        marks = make_pieces(folder, plan, documents, built_by, progress)
        if not sum(mark.n_passages for mark in marks.values()):
            progress.note(f"{base.ref} has all documents of these corpora already: nothing was added")
            shutil.rmtree(directory)
            return base
        counts = Counts.of(list(marks.values()))
        files = published_pieces(folder.entries(marks), base.index_kind)
        n_repeats = sum(documents.values()) - counts.n_documents
        added = Contents(
            Rows(directory, (*base.pieces, *counts.pieces), base.dim, base.words_template),
            counts,
            files,
            ranges(counts.n_rows, request.shards, base.n_rows, len(base.shards)),
            n_repeats,
            sorted({*base.metadata_fields, *metadata_fields_of(corpora)}),
        )
        draft = _with_added(staging, change, added, built_by, progress)
        inputs = [_as_input(base), *inputs_of(corpora)]
        return store.publish(staging, draft.model_copy(update={"inputs": inputs}), scratch_of(draft))


@_one_at_a_time
def run_datastore_delete(store: Store, request: DatastoreDeleteRequest, progress: Progress) -> DatastoreManifest:
    """Delete documents and publish the store's next version, in which no search finds them.

    Their passages stay in the files until the store is compacted. Where all are deleted already the store is
    returned as it is. Raises NotFoundError for documents that the store does not have.
    """
    base = datastore_manifest(store, request.datastore)
    change = _change(store, base, {"delete": sorted(set(request.documents))})
    found = store.existing("datastore", change.reference, change.identity)
    if isinstance(found, DatastoreManifest):
        return found
    _refuse_older(store, base)
    progress.start(f"find documents of {base.ref}", total=base.n_rows, unit="passages")
    pieces = Pieces(change.directory, base.pieces, base.dim)
    rows = _rows_of(pieces, set(request.documents), base.ref, progress)
    alive = alive_rows(change.directory, base)
    if not alive[rows].any():
        progress.note(f"these documents of {base.ref} are deleted already")
        return base
    alive[rows] = False
    if not alive.any():
        raise DataError(f"that would delete every document of {base.ref}: remove the store instead")
    with store.stage("datastore", change.reference, change.identity) as staging:
        kept = [entry for entry in base.files if entry.path != DELETED_FILE]
        _link(change.directory, [entry.path for entry in kept], staging.path)
        deleted = np.flatnonzero(~alive).astype(np.uint64)
        np.save(staging.path / DELETED_FILE, deleted)
        files = [*kept, staging.entry(DELETED_FILE, len(deleted))]
        n_documents, n_tokens = _count_alive(pieces, alive)
        draft = base.model_copy(
            update={
                "fingerprint": change.identity,
                "inputs": [_as_input(base)],
                "parameters": change.parameters,
                "files": sorted(files, key=lambda each: each.path),
                "n_bytes": sum(each.n_bytes for each in files),
                "created_at": datetime.now(UTC),
                "n_deleted": len(deleted),
                "n_documents": n_documents,
                "n_tokens": n_tokens,
            }
        )
        return store.publish(staging, draft)


@_one_at_a_time
def run_datastore_compact(store: Store, request: DatastoreCompactRequest, progress: Progress) -> DatastoreManifest:
    """Write a store anew without what was deleted, and publish it as the next version.

    Nothing is embedded again. The shards are cut evenly, and the kind of index, its training, its tuning and the
    clusters are those of a new build of the same passages. A store that has just been compacted so is returned.
    """
    base = datastore_manifest(store, request.datastore)
    change = _change(store, base, {"compact": True, "shards": request.shards}, {"bm25_terms": ANALYSIS})
    if change.parameters == base.parameters:
        return base
    found = store.existing("datastore", change.reference, change.identity)
    if isinstance(found, DatastoreManifest):
        return found
    _refuse_older(store, base)
    built_by = change.request.model_copy(update={"workers": request.workers})
    with (
        store.stage("datastore", change.reference, change.identity, resume=True) as staging,
        ray_session(max(cpu_count(), request.workers or 1)),
    ):
        directory = staging.path.resolve()
        folder = piece_folder(directory)
        marks = _rewrite(change, folder, progress)
        counts = Counts.of(list(marks.values()))
        contents = Contents(
            Rows(directory, tuple(counts.pieces), base.dim, base.words_template),
            counts,
            folder.entries(marks),
            ranges(counts.n_rows, request.shards or built_by.shards),
            base.n_repeats,
            base.metadata_fields,
        )
        draft = index_contents(staging, contents, built_by, base.tokenizer, progress)
        named = {
            "fingerprint": change.identity,
            "inputs": [_as_input(base)],
            "parameters": change.parameters,
        }
        return store.publish(staging, draft.model_copy(update=named), scratch_of(draft))


# What the jobs share


def _refuse_older(store: Store, base: DatastoreManifest) -> None:
    """Raise ConflictError for a version that is not the newest: the next one would lose what came after it."""
    newest = store.versions("datastore", base.name)[-1]
    if base.version != newest:
        raise ConflictError(
            f"{base.ref} is not the newest version of {base.name}, which is {newest}: change that one, or build a "
            "store of another name"
        )


def _change(
    store: Store, base: DatastoreManifest, what: dict[str, Any], more: dict[str, Any] | None = None
) -> _Change:
    parameters = base.parameters | (more or {}) | {"change": what}
    identity = fingerprint("datastore", [base.fingerprint], parameters)
    return _Change(base, store.directory(base), identity, parameters)


def _as_input(base: DatastoreManifest) -> ArtifactInput:
    return ArtifactInput(kind="datastore", ref=base.ref, fingerprint=base.fingerprint)


def _link(source: Path, paths: Sequence[str], target: Path) -> None:
    for path in paths:
        link_or_copy(source / path, target / path)


# Adding


def _alive_documents(change: _Change) -> Iterator[Sequence[str]]:
    """Ids of the documents that are not deleted, piece by piece."""
    pieces = Pieces(change.directory, change.base.pieces, change.base.dim)
    alive = alive_rows(change.directory, change.base)
    for start, stop in zip(pieces.offsets[:-1], pieces.offsets[1:], strict=True):
        documents = pieces.frame(start, stop, ["document_id"])["document_id"]
        yield documents.filter(pl.Series(alive[start:stop])).unique().to_list()


def _with_added(
    staging: Staging, change: _Change, added: Contents, request: DatastoreRequest, progress: Progress
) -> DatastoreManifest:
    """The old shards and the new ones, tuned together; the manifest has no inputs yet."""
    base, rows = change.base, added.rows
    kept = [entry for entry in base.files if entry.path != CLUSTERS_FILE]
    _link(change.directory, [entry.path for entry in kept], staging.path)
    bm25 = build_bm25(rows, added.shards, request.workers, progress)
    indexed = add_to_shards(rows, added.shards, staging.path / TRAINED_FILE, request.workers, progress)
    indexes = keep_indexes(rows.directory, indexed)
    shards = [*base.shards, *added.shards]
    merged = MergedIndexes(shard_indexes(staging.path, rows.open(), shards))
    settings, recall, warnings = _tuned(change, rows, merged, request, progress)
    vectors = _all_vectors(change, rows)
    n_clusters, cluster_warnings = write_clusters(
        rows, vectors, request.near_duplicates, TunedIndexes(merged, settings), progress
    )
    files = [*kept, *added.files, *bm25, *indexes, staging.entry(CLUSTERS_FILE, sum(rows.lengths))]
    sources = dict(Counter(base.sources) + Counter(added.counts.sources))
    return base.model_copy(
        update={
            "fingerprint": change.identity,
            "parameters": change.parameters,
            "files": sorted(files, key=lambda each: each.path),
            "n_bytes": sum(each.n_bytes for each in files),
            "created_at": datetime.now(UTC),
            "warnings": [*warnings, *cluster_warnings],
            "n_rows": sum(rows.lengths),
            "n_documents": base.n_documents + added.counts.n_documents,
            "n_repeats": base.n_repeats + added.n_repeats,
            "n_tokens": base.n_tokens + added.counts.n_tokens,
            "pieces": list(rows.lengths),
            "shards": shards,
            "sources": sources,
            "metadata_fields": added.metadata_fields,
            "n_clusters": n_clusters,
            "search_parameters": settings,
            "recall": recall,
        }
    )


def _tuned(
    change: _Change, rows: Rows, merged: MergedIndexes, request: DatastoreRequest, progress: Progress
) -> tuple[dict[str, float], RecallReport, list[str]]:
    """Settings with which the grown store meets its recall, what it reaches, and warnings."""
    base = change.base
    if base.index_kind == "flat":
        return {}, base.recall, []
    device = resolve_device("cpu" if request.device == "cpu" else "auto")
    trial = draw_queries(rows.open(), request, device, progress)
    settings, recall = tuned_recall(merged, _recipe(base), trial, request)
    warnings = []
    if recall.measured < request.recall or sum(rows.lengths) > _RETRAIN * base.n_trained:
        warnings.append(
            f"the index was trained on {base.n_trained} passages and now has {sum(rows.lengths)}; its recall is "
            f"{recall.measured:.4f} of {request.recall:g} asked: run  mixwright datastore compact {base.name}"
        )
    return settings, recall, warnings


def _recipe(base: DatastoreManifest) -> Recipe:
    """The recipe by which a store's index was built."""
    for recipe in recipes(cast(IndexKind, base.index_kind), base.n_trained, base.dim, base.recall.target):
        if recipe.factory == base.factory:
            return recipe
    raise DataError(f"the index of {base.ref} is of another mixwright version: run  mixwright datastore compact")


def _all_vectors(change: _Change, rows: Rows) -> StackedVectors:
    """The vectors of old rows and new ones; a flat index holds the old ones itself."""
    pieces, n_old = rows.open(), change.base.n_rows
    old = stored_vectors(change.directory, change.base)
    return old.followed_by(pieces.vectors(n_old, len(pieces)))


# Deleting


def _rows_of(pieces: Pieces, documents: set[str], ref: str, progress: Progress) -> AnyArray:
    """The rows of the documents with these ids; raises NotFoundError for ids that no row has."""
    rows, seen = [], set()
    wanted = pl.Series(sorted(documents), dtype=pl.String)
    for start, stop in zip(pieces.offsets[:-1], pieces.offsets[1:], strict=True):
        ids = pieces.frame(start, stop, ["document_id"])["document_id"]
        here = ids.is_in(wanted.implode()).to_numpy()
        rows.append(np.flatnonzero(here) + start)
        seen |= set(ids.filter(pl.Series(here)).to_list())
        progress.advance(int(stop - start))
    if missing := sorted(documents - seen):
        more = f" and {len(missing) - _MANY} more" if len(missing) > _MANY else ""
        raise NotFoundError(
            f"datastore {ref} has no document {', '.join(missing[:_MANY])}{more}: give the document_id of a hit"
        )
    return np.concatenate(rows)


def _count_alive(pieces: Pieces, alive: AnyArray) -> tuple[int, int]:
    """Documents and tokens of the rows that are not deleted."""
    n_documents = n_tokens = 0
    for start, stop in zip(pieces.offsets[:-1], pieces.offsets[1:], strict=True):
        frame = pieces.frame(start, stop, ["document_id", "n_tokens"]).filter(pl.Series(alive[start:stop]))
        n_documents += frame["document_id"].n_unique()
        n_tokens += int(frame["n_tokens"].sum())
    return n_documents, n_tokens


# Compacting


def _rewrite(change: _Change, folder: ShardFolder[PieceMark], progress: Progress) -> dict[str, PieceMark]:
    """The pieces without the rows that are deleted, numbered anew; returns the marks.

    A piece that loses all of its rows is left out.
    """
    base = change.base
    pieces = Pieces(change.directory, base.pieces, base.dim)
    alive = alive_rows(change.directory, base)
    kept = [(start, stop) for start, stop in pairwise(pieces.offsets.tolist()) if alive[start:stop].any()]
    lengths = {piece_name(number): stop - start for number, (start, stop) in enumerate(kept)}
    folder.prepare()
    marks = folder.finished(lengths)
    progress.start(f"rewrite {base.ref}", total=sum(lengths.values()), unit="passages")
    vectors = stored_vectors(change.directory, base)
    for (piece, length), (start, stop) in zip(lengths.items(), kept, strict=True):
        if piece not in marks:
            rows = np.flatnonzero(alive[start:stop]) + start
            _rewrite_piece(folder, piece, length, pieces.take(rows), vectors.rows(rows).astype(base.dtype), base)
        progress.advance(length)
    return {piece: folder.mark(piece) for piece in lengths}


def _rewrite_piece(
    folder: ShardFolder[PieceMark],
    piece: str,
    length: int,
    passages: pa.Table,
    vectors: AnyArray,
    base: DatastoreManifest,
) -> None:
    with folder.writing(piece) as file:
        write_passages(passages, file)
    with folder.writing(piece, beside=0) as file:
        np.save(file, vectors, allow_pickle=False)
    folder.finish(piece, length, **piece_counts(passages), max_tokens=base.max_tokens, dim=base.dim)
