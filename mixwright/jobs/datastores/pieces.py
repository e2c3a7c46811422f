"""From corpora to pieces: the passages of each shard of a corpus and their vectors, on all workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mixwright.corpora import Corpus, template_texts
from mixwright.errors import DataError
from mixwright.indexes.datastores.pieces import PASSAGES_FOLDER, VECTORS_FOLDER, piece_name, write_passages
from mixwright.indexes.encoders import EncoderSource, LoadedEncoder
from mixwright.indexes.passages import passages_of
from mixwright.indexes.protocols import FloatArray
from mixwright.jobs.duplicates import DuplicateFinder
from mixwright.jobs.marked_shards import ShardFolder, ShardMark, Workers, finish_shards, paced
from mixwright.jobs.worker_encoder import load_worker_encoder
from mixwright.progress import Progress
from mixwright.schemas.datastores import DatastoreRequest, LongPassages, PassageWindow
from mixwright.tokenization import load_tokenizer

BoolArray = npt.NDArray[np.bool_]

_IDS_AT_ONCE = 1 << 16


class PieceMark(ShardMark):
    """A piece is finished: ``n_rows`` are the documents of the shard, of which ``n_documents`` were taken."""

    n_documents: int
    n_passages: int
    n_tokens: int
    max_tokens: int | None
    dim: int
    sources: dict[str, int]


@dataclass(frozen=True)
class PiecePlan:
    """What the workers are told. ``shards`` are the corpora's Parquet files by the name of their piece.

    ``repeats`` (documents,) is a file with the documents to leave out, or None; ``first_documents`` says at
    which of them each piece begins.
    """

    shards: dict[str, Path]
    first_documents: dict[str, int]
    repeats: Path | None
    encoder: EncoderSource
    template: str
    window: PassageWindow
    long_passages: LongPassages
    tokenizer: str
    dtype: str
    batch_tokens: int | None


def piece_folder(root: Path) -> ShardFolder[PieceMark]:
    """Where the pieces of a store are written: passages/part-00000.arrow and vectors/part-00000.npy."""
    return ShardFolder(root, "arrow", PieceMark, name=PASSAGES_FOLDER, beside=((VECTORS_FOLDER, "npy"),))


def pieces_of(corpora: Sequence[Corpus], first: int) -> tuple[dict[str, Path], dict[str, int]]:
    """The Parquet shards of the corpora, and their numbers of documents, by the names of their pieces.

    ``first`` is the number of the first piece.
    """
    shards = [
        (path, entry.n_rows or 0)
        for corpus in corpora
        for path, entry in zip(corpus.shards, corpus.manifest.shards, strict=True)
    ]
    names = [piece_name(first + number) for number in range(len(shards))]
    paths = {name: path.resolve() for name, (path, _) in zip(names, shards, strict=True)}
    return paths, {name: n_rows for name, (_, n_rows) in zip(names, shards, strict=True)}


def find_repeats(corpora: Sequence[Corpus], known: Iterable[Sequence[str]], folder: Path) -> BoolArray:
    """(documents,): which documents of the corpora, in their order, have the id of an earlier one.

    ``known`` are ids that count as earlier. ``folder`` is created, and can be removed afterwards.
    """
    finder = DuplicateFinder(folder)
    n_known = 0
    for ids in known:
        finder.add(ids)
        n_known += len(ids)
    for corpus in corpora:
        for path in corpus.shards:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=_IDS_AT_ONCE, columns=["id"]):
                finder.add(batch.column(0).to_pylist())
    return finder.repeats()[n_known:]


def make_pieces(
    folder: ShardFolder[PieceMark],
    plan: PiecePlan,
    documents: dict[str, int],
    request: DatastoreRequest,
    progress: Progress,
) -> dict[str, PieceMark]:
    """Make the pieces that no earlier run finished; returns the marks of all, in their order."""
    actors = Workers(PieceWorker, (plan, folder), request.device, request.workers)
    return finish_shards(folder, documents, actors, "passages and vectors", progress)


class PieceWorker:
    """A Ray actor that makes one piece after the other with one encoder in memory."""

    def __init__(self, plan: PiecePlan, folder: ShardFolder[PieceMark], device: str) -> None:
        self._plan = plan
        self._folder = folder
        self._device = device
        self._encoder: LoadedEncoder | None = None

    def ready(self) -> None:
        """Answers as soon as Ray has found room for this worker."""

    def run(self, piece: str) -> Iterator[int]:
        """Make one piece; yields the number of its documents done, a few times a second, and at the end."""
        yield from paced(self._make(piece))

    def _make(self, piece: str) -> Iterator[int]:
        encoder, plan = self._load(), self._plan
        n_documents, documents = self._read(piece)
        passages = passages_of(
            documents,
            plan.window,
            plan.long_passages,
            encoder,
            plan.template,
            load_tokenizer(plan.tokenizer).count,
        )
        texts = template_texts(pl.LazyFrame(pl.from_arrow(passages)), plan.template)
        vectors = np.empty((len(texts), encoder.dim), dtype=plan.dtype)
        yield from _embed(encoder, texts, vectors, n_documents, plan.batch_tokens)
        with self._folder.writing(piece) as file:
            write_passages(passages, file)
        with self._folder.writing(piece, beside=0) as file:
            np.save(file, vectors, allow_pickle=False)
        self._folder.finish(
            piece, n_documents, **piece_counts(passages), max_tokens=encoder.max_tokens, dim=encoder.dim
        )

    def _read(self, piece: str) -> tuple[int, pa.Table]:
        """Documents of the shard, and those that are taken."""
        documents = pq.read_table(self._plan.shards[piece])
        if self._plan.repeats is None:
            return documents.num_rows, documents
        first = self._plan.first_documents[piece]
        repeats = np.load(self._plan.repeats, mmap_mode="r")[first : first + documents.num_rows]
        return documents.num_rows, documents.filter(pa.array(~repeats))

    def _load(self) -> LoadedEncoder:
        """The encoder, loaded at the first piece."""
        if self._encoder is None:
            self._encoder = load_worker_encoder(self._plan.encoder, self._device)
        return self._encoder


def piece_counts(passages: pa.Table) -> dict[str, Any]:
    """What a mark says of a table of passages."""
    frame = pl.DataFrame(pl.from_arrow(passages.select(["source", "document_id", "n_tokens"])))
    sources = frame["source"].value_counts(name="n").sort("source")
    return {
        "n_documents": frame["document_id"].n_unique(),
        "n_passages": len(frame),
        "n_tokens": int(frame["n_tokens"].sum()),
        "sources": dict(sources.iter_rows()),
    }


def _embed(
    encoder: LoadedEncoder, texts: Sequence[str], vectors: FloatArray, n_documents: int, batch_tokens: int | None
) -> Iterator[int]:
    """Fill ``vectors`` (m, d) with those of the texts (m,); yields documents done, in proportion to the texts."""
    n_texts = n_reported = 0
    for batch in encoder.encode_batches(texts, batch_tokens):
        if not np.isfinite(batch.vectors).all():
            raise DataError(f"encoder {encoder.name} gave a vector that is not finite: use another")
        if batch.n_truncated:
            raise DataError(
                f"{batch.n_truncated} passages are longer than the {encoder.max_tokens} tokens that encoder "
                f"{encoder.name} reads, although they were made to fit: use smaller windows"
            )
        vectors[batch.rows] = batch.vectors
        n_texts += len(batch.rows)
        n_done = n_documents * n_texts // len(texts)
        yield n_done - n_reported
        n_reported = n_done
    yield n_documents - n_reported
