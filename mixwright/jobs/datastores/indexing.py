"""From pieces to shards: one training on a sample, then a FAISS index and a BM25 index for each range of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from mixwright.fingerprint import file_sha256
from mixwright.indexes.bm25 import write_bm25
from mixwright.indexes.building import add_vectors, train_index
from mixwright.indexes.datastore_plan import SHARD_PASSAGES
from mixwright.indexes.datastores.pieces import Pieces
from mixwright.indexes.datastores.shards import (
    BM25_FOLDER,
    INDEXES_FOLDER,
    MergedIndexes,
    ShardIndex,
    read_shard_index,
    shard_index,
)
from mixwright.indexes.encoders import find_encoder, load_encoder
from mixwright.indexes.faiss_import import import_faiss
from mixwright.indexes.kinds import Recipe, Settings
from mixwright.indexes.recall import RECALL_K, Truth, true_neighbours
from mixwright.indexes.tuning import (
    Attempt,
    Trial,
    draw_trial,
    first_that_meets,
    recipes_within_budget,
    tuned_recall,
)
from mixwright.jobs.marked_shards import ShardFolder, ShardMark, Workers, finish_shards
from mixwright.jobs.ray_pool import cpu_count
from mixwright.progress import Progress
from mixwright.schemas.datastores import DatastoreRequest
from mixwright.schemas.manifests import DatastoreShard, FileEntry, RecallReport
from mixwright.templates import fill_template, fill_templates, template_fields

_QUERY_WORDS = 12
"""Words of a query that is drawn from a passage; questions to search engines and data sets are as long."""

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Rows:
    """The pieces under ``directory``: ``lengths`` passages each, and vectors of ``dim`` coordinates.

    ``template`` says what of a passage is searched for words.
    """

    directory: Path
    lengths: tuple[int, ...]
    dim: int
    template: str

    def open(self) -> Pieces:
        """The pieces, opened by memory map."""
        return Pieces(self.directory, self.lengths, self.dim)

    def texts(self, pieces: Pieces, start: int, stop: int) -> list[str]:
        """What BM25 reads of the passages ``start … stop - 1``."""
        frame = pieces.frame(start, stop, template_fields(self.template))
        return [text or "" for text in fill_templates(self.template, frame)]


class Added(NamedTuple):
    """The shards' FAISS indexes: where they were written, and their marks."""

    folder: ShardFolder[ShardMark]
    marks: dict[str, ShardMark]


class Built(NamedTuple):
    """How the rows were indexed, by which trained index, and the shards with their vectors."""

    recipe: Recipe
    settings: Settings
    recall: RecallReport
    candidates: list[dict[str, Any]]
    trained: Path
    added: Added


def ranges(n_rows: int, wanted: int | None, first_row: int = 0, first_number: int = 0) -> list[DatastoreShard]:
    """Cut ``n_rows`` rows from ``first_row`` on into shards of even size, never more shards than rows."""
    n_shards = min(wanted or -(-n_rows // SHARD_PASSAGES), n_rows)
    edges = [first_row + n_rows * number // n_shards for number in range(n_shards + 1)]
    return [
        DatastoreShard(name=f"{first_number + number:05d}", start=start, stop=stop)
        for number, (start, stop) in enumerate(pairwise(edges))
    ]


def build_bm25(
    rows: Rows, shards: Sequence[DatastoreShard], workers: int | None, progress: Progress
) -> list[FileEntry]:
    """The BM25 index of each shard, where no earlier run finished it; returns the files."""
    folder = ShardFolder(rows.directory, "", ShardMark, name=BM25_FOLDER)
    actors = Workers(Bm25Worker, (rows, folder, {each.name: each for each in shards}), "cpu", workers)
    return folder.entries(finish_shards(folder, _lengths(shards), actors, "BM25", progress, "passages"))


def build_indexes(
    rows: Rows,
    shards: Sequence[DatastoreShard],
    request: DatastoreRequest,
    device: Literal["cpu", "gpu"],
    progress: Progress,
) -> Built:
    """Train, add, tune and measure: the first recipe that keeps to the memory budget and meets the recall.

    A flat index compares with every row: there is nothing to measure. Raises what ``first_that_meets`` raises.
    """
    pieces = rows.open()
    wanted = recipes_within_budget(len(pieces), rows.dim, request)
    drawn: list[Trial] = []

    def attempt(recipe: Recipe) -> Attempt[tuple[Path, Added]]:
        trained = _trained(rows, pieces, recipe, request.seed, device, progress)
        added = add_to_shards(rows, shards, trained, request.workers, progress)
        if recipe.kind == "flat":
            return Attempt((trained, added), {}, _exact_recall(request))
        if not drawn:
            drawn.append(draw_queries(pieces, request, device, progress))
        opened = shard_indexes(added.folder.root, pieces, shards)
        return Attempt((trained, added), *tuned_recall(MergedIndexes(opened), recipe, drawn[0], request))

    recipe, chosen, candidates = first_that_meets(wanted, request, attempt, progress)
    return Built(recipe, chosen.settings, chosen.recall, candidates, *chosen.index)


def add_to_shards(
    rows: Rows, shards: Sequence[DatastoreShard], trained: Path, workers: int | None, progress: Progress
) -> Added:
    """The FAISS index of each shard: the trained one with the shard's vectors added.

    They are written below ``work``, in a folder of this very training, so that another one finds nothing there.
    """
    root = rows.directory / "work" / file_sha256(trained)[:16]
    folder = ShardFolder(root, "faiss", ShardMark, name=INDEXES_FOLDER)
    n_workers = min(workers or cpu_count(), len(shards))
    plan = AddPlan(rows, trained.resolve(), max(cpu_count() // n_workers, 1))
    actors = Workers(AddWorker, (plan, folder, {each.name: each for each in shards}), "cpu", workers)
    return Added(folder, finish_shards(folder, _lengths(shards), actors, "add to the index", progress, "vectors"))


def shard_indexes(root: Path, pieces: Pieces, shards: Sequence[DatastoreShard]) -> list[ShardIndex]:
    """The shards' indexes under ``root``."""
    folder = root / INDEXES_FOLDER
    return [
        shard_index(
            read_shard_index(folder / f"{shard.name}.faiss", shard.stop - shard.start, pieces.dim), pieces, shard
        )
        for shard in shards
    ]


def draw_queries(
    pieces: Pieces,
    request: DatastoreRequest,
    device: Literal["cpu", "gpu"],
    progress: Progress,
) -> Trial:
    """Queries as a user would ask them: runs of words drawn from passages, half to tune and half to measure.

    They are no rows of the store, so that a graph is not flattered, and they are short, as questions are. Where
    the encoder reads no words, they are rows, each left out of its own neighbours.
    """
    if not find_encoder(request.encoder).reads_words:
        as_rows = request.model_copy(update={"index_kind": "auto"})
        return draw_trial(pieces.vectors(0, len(pieces)), as_rows, device, progress)
    random = np.random.default_rng([request.seed, 1])
    n = min(2 * request.queries, len(pieces))
    chosen = np.sort(random.choice(len(pieces), size=n, replace=False)).astype(np.int64)
    random.shuffle(chosen)
    vectors = pieces.vectors(0, len(pieces))
    texts = pieces.take(chosen, ["text"])["text"].to_pylist()
    progress.start("embed queries that measure recall", total=n, unit="queries")
    asked = [fill_template(request.query_template, {"text": _words_of(text, random)}) or text for text in texts]
    queries = load_encoder(request.encoder, request.device).encode(asked)
    progress.start("true neighbours", total=len(pieces), unit="vectors")
    truth: Truth = true_neighbours(vectors, queries, None, device=device, advance=progress.advance)
    return Trial(
        vectors,
        truth.part(slice(0, n // 2)),
        truth.part(slice(n // 2, n)),
        outside=False,
        drawn=f"runs of {_QUERY_WORDS} words from passages drawn",
    )


def _words_of(text: str, random: np.random.Generator) -> str:
    words = text.split()
    start = int(random.integers(0, max(len(words) - _QUERY_WORDS, 0) + 1))
    return " ".join(words[start : start + _QUERY_WORDS]) or text


def _exact_recall(request: DatastoreRequest) -> RecallReport:
    return RecallReport(
        k=RECALL_K,
        n_queries=0,
        target=request.recall,
        measured=1.0,
        lower_bound=1.0,
        queries="none: a flat index compares a query with every row",
    )


def _trained(
    rows: Rows, pieces: Pieces, recipe: Recipe, seed: int, device: Literal["cpu", "gpu"], progress: Progress
) -> Path:
    """The file of the index that is trained on a sample of all rows, where no earlier run finished it."""
    folder = ShardFolder(rows.directory / "work", "faiss", ShardMark, name="trained")
    name = recipe.factory.replace(",", "-")
    folder.prepare()
    if not folder.finished({name: recipe.n_train}):
        progress.start(f"train {recipe.factory}", total=recipe.n_train, unit="vectors")
        index = train_index(recipe, pieces.vectors(0, len(pieces)), seed=seed, device=device)
        with folder.writing(name) as file:
            write_to(index, file)
        folder.finish(name, recipe.n_train)
    return folder.path(name)


def write_to(index: Any, file: BinaryIO) -> None:
    """Write a FAISS index into an open file."""
    faiss = import_faiss()
    faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def _lengths(shards: Sequence[DatastoreShard]) -> dict[str, int]:
    return {each.name: each.stop - each.start for each in shards}


@dataclass(frozen=True)
class AddPlan:
    """What the workers that add vectors are told."""

    rows: Rows
    trained: Path
    threads: int


class AddWorker:
    """A Ray actor that adds the vectors of one shard after the other to the trained index."""

    def __init__(
        self, plan: AddPlan, folder: ShardFolder[ShardMark], shards: dict[str, DatastoreShard], device: str
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._shards = shards

    def ready(self) -> None:
        """Answers as soon as Ray has found room for this worker."""

    def run(self, name: str) -> Iterator[int]:
        """Make the index of one shard; yields its number of rows."""
        faiss = import_faiss()
        faiss.omp_set_num_threads(self._plan.threads)
        shard = self._shards[name]
        index = faiss.read_index(str(self._plan.trained))
        add_vectors(index, self._plan.rows.open().vectors(shard.start, shard.stop))
        with self._folder.writing(name) as file:
            write_to(index, file)
        self._folder.finish(name, shard.stop - shard.start)
        yield shard.stop - shard.start


class Bm25Worker:
    """A Ray actor that makes the BM25 index of one shard after the other."""

    def __init__(
        self, rows: Rows, folder: ShardFolder[ShardMark], shards: dict[str, DatastoreShard], device: str
    ) -> None:
        self._rows = rows
        self._folder = folder
        self._shards = shards

    def ready(self) -> None:
        """Answers as soon as Ray has found room for this worker."""

    def run(self, name: str) -> Iterator[int]:
        """Make the BM25 index of one shard; yields its number of rows."""
        shard, pieces = self._shards[name], self._rows.open()
        batches = (
            self._rows.texts(pieces, start, min(start + _ROWS_AT_ONCE, shard.stop))
            for start in range(shard.start, shard.stop, _ROWS_AT_ONCE)
        )
        with self._folder.filling(name) as folder:
            write_bm25(batches, folder)
        self._folder.finish(name, shard.stop - shard.start)
        yield shard.stop - shard.start
