"""What a new version of a datastore holds: counts, clusters, indexes, and the manifest that describes them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mixwright.errors import DataError
from mixwright.indexes.datastores.pieces import VECTORS_FOLDER
from mixwright.indexes.datastores.shards import (
    CLUSTERS_FILE,
    INDEXES_FOLDER,
    TRAINED_FILE,
    MergedIndexes,
    TunedIndexes,
)
from mixwright.indexes.encoders import find_encoder
from mixwright.indexes.faiss_import import resolve_device
from mixwright.indexes.kinds import LARGEST_FLAT
from mixwright.indexes.near_duplicates import near_duplicate_clusters
from mixwright.indexes.semantic_duplicates import semantic_clusters
from mixwright.indexes.vectors import Vectors
from mixwright.jobs.datastores.indexing import Added, Rows, build_bm25, build_indexes, shard_indexes
from mixwright.jobs.datastores.pieces import PieceMark
from mixwright.progress import Progress
from mixwright.schemas.datastores import DatastoreRequest
from mixwright.schemas.manifests import DatastoreManifest, DatastoreShard, FileEntry
from mixwright.schemas.requests import DuplicateMethod
from mixwright.store import Staging, link_or_copy, software_versions

_LIBRARIES = ("torch", "sentence-transformers", "transformers", "faiss-cpu", "PyStemmer", "rensa", "numpy", "ray")
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Counts:
    """What pieces add up to; ``pieces`` are the passages of each."""

    pieces: list[int]
    n_documents: int
    n_tokens: int
    max_tokens: int | None
    dim: int
    sources: dict[str, int]

    @property
    def n_rows(self) -> int:
        """Passages of all pieces."""
        return sum(self.pieces)

    @classmethod
    def of(cls, marks: Sequence[PieceMark]) -> Counts:
        """The sums over pieces; raises DataError if no passage is among them."""
        if not sum(mark.n_passages for mark in marks):
            raise DataError("the corpora have no documents to retrieve from: ingest some")
        sources: Counter[str] = Counter()
        for mark in marks:
            sources.update(mark.sources)
        return cls(
            [mark.n_passages for mark in marks],
            sum(mark.n_documents for mark in marks),
            sum(mark.n_tokens for mark in marks),
            marks[0].max_tokens,
            marks[0].dim,
            dict(sources),
        )


@dataclass(frozen=True)
class Contents:
    """Pieces that are in the staging folder, and the shards that they are to be searched in.

    ``files`` are those of the pieces; ``n_repeats`` documents were left out; ``metadata_fields`` are those of the
    documents.
    """

    rows: Rows
    counts: Counts
    files: list[FileEntry]
    shards: list[DatastoreShard]
    n_repeats: int
    metadata_fields: list[str]


SCRATCH = ("work", "marks")
"""Folders of the staging folder that are not published."""


def index_contents(
    staging: Staging, contents: Contents, request: DatastoreRequest, tokenizer: str, progress: Progress
) -> DatastoreManifest:
    """Cluster and index the pieces; returns the manifest without fingerprint, inputs and parameters."""
    rows, counts = contents.rows, contents.counts
    pieces = rows.open()
    bm25 = build_bm25(rows, contents.shards, request.workers, progress)
    device = resolve_device("cpu" if request.device == "cpu" else "auto")
    built = build_indexes(rows, contents.shards, request, device, progress)
    searched = MergedIndexes(shard_indexes(built.added.folder.root, pieces, contents.shards))
    n_clusters, warnings = write_clusters(
        rows,
        pieces.vectors(0, len(pieces)),
        request.near_duplicates,
        TunedIndexes(searched, built.settings),
        progress,
    )
    files = [
        *published_pieces(contents.files, built.recipe.kind),
        *bm25,
        *keep_indexes(rows.directory, built.added),
        keep_trained(staging, built.trained),
        staging.entry(CLUSTERS_FILE, len(pieces)),
    ]
    source = find_encoder(request.encoder)
    return DatastoreManifest(
        name=staging.reference.name,
        version=1,
        fingerprint="",
        files=sorted(files, key=lambda each: each.path),
        created_at=datetime.now(UTC),
        software=software_versions(*_LIBRARIES),
        warnings=warnings,
        encoder=source.name,
        encoder_revision=source.revision,
        template=request.template or "{text}",
        words_template=rows.template,
        query_template=request.query_template,
        window=request.window,
        max_tokens=counts.max_tokens,
        dim=counts.dim,
        dtype=request.dtype,
        tokenizer=tokenizer,
        n_rows=counts.n_rows,
        n_documents=counts.n_documents,
        n_repeats=contents.n_repeats,
        n_tokens=counts.n_tokens,
        n_trained=counts.n_rows,
        n_bytes=sum(each.n_bytes for each in files),
        pieces=counts.pieces,
        shards=contents.shards,
        sources=counts.sources,
        metadata_fields=contents.metadata_fields,
        n_clusters=n_clusters,
        index_kind=built.recipe.kind,
        factory=built.recipe.factory,
        search_parameters=dict(built.settings),
        recall=built.recall,
        candidates=built.candidates,
    )


def scratch_of(manifest: DatastoreManifest) -> tuple[str, ...]:
    """What is not published of a staging folder: a flat index holds the vectors itself."""
    return (*SCRATCH, VECTORS_FOLDER) if manifest.index_kind == "flat" else SCRATCH


def write_clusters(
    rows: Rows, vectors: Vectors, method: DuplicateMethod, index: TunedIndexes, progress: Progress
) -> tuple[int, list[str]]:
    """Write the near-duplicate cluster of every row; returns the number of clusters, and warnings.

    ``semantic`` compares all pairs of up to 100,000 vectors, and of more those that ``index`` finds.
    """
    pieces = rows.open()
    keys = pieces.keys(0, len(pieces))

    def batches() -> Iterator[list[str]]:
        for start in range(0, len(pieces), _ROWS_AT_ONCE):
            yield pieces.texts(start, min(start + _ROWS_AT_ONCE, len(pieces)))

    if method == "semantic":
        few = len(pieces) <= LARGEST_FLAT
        clusters = semantic_clusters(vectors, keys, progress, index=None if few else index)
    else:
        with temporary_folder(rows.directory / "work" / "near-duplicates") as folder:
            clusters = near_duplicate_clusters(batches, keys, folder, progress, method=method)
    np.save(rows.directory / CLUSTERS_FILE, clusters.ids)
    return len(np.unique(clusters.ids)), list(clusters.warnings)


def keep_indexes(directory: Path, added: Added) -> list[FileEntry]:
    """Put the shards' finished FAISS indexes where they are published; returns their entries."""
    for name in added.marks:
        path = added.folder.path(name)
        link_or_copy(path, directory / INDEXES_FOLDER / path.name)
    return added.folder.entries(added.marks)


def keep_trained(staging: Staging, trained: Path) -> FileEntry:
    """Keep the index without rows, to which later additions are added."""
    link_or_copy(trained, staging.path / TRAINED_FILE)
    return staging.entry(TRAINED_FILE, 0)


def published_pieces(files: Sequence[FileEntry], kind: str) -> list[FileEntry]:
    """The files of the pieces that are published."""
    return [each for each in files if kind != "flat" or not each.path.startswith(f"{VECTORS_FOLDER}/")]


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A path at which nothing is, and at which nothing is left afterwards."""
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(exist_ok=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
