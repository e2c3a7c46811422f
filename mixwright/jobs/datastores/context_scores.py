"""The NLL of targets behind retrieved passages, by a language model on Ray workers.

The same passages are found for a query again and again, in stores of many sizes: every distinct context (a target
and the passages before it) is scored once. Contexts are sorted by length and cut into chunks of some seconds each.
A finished chunk is kept in the staging folder with its checksum, so that a run that is killed loses little.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mixwright.indexes.batching import length_batches
from mixwright.indexes.datastores.pieces import Pieces
from mixwright.jobs.marked_shards import ShardFolder, ShardMark, Workers, finish_shards, paced, use_one_thread
from mixwright.language_models.gguf import unpack_gguf
from mixwright.language_models.loading import (
    LanguageModelSource,
    LoadedLanguageModel,
    check_files,
    load_language_model,
    read_pretrained,
    weight_bytes,
)
from mixwright.language_models.matching import read_tokenizer
from mixwright.language_models.retrieval import (
    ContextSequence,
    CutCounts,
    TargetPair,
    batch_budget,
    beginning_ids,
    context_sequence,
    cut_counts,
    passage_ids,
    target_nll,
)
from mixwright.progress import Progress
from mixwright.schemas.evaluations import EvaluationRequest

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_CHUNK_TOKENS, _MOST_CHUNKS = 16_384, 1000
"""Tokens of a chunk: a minute's work on one core for a small model; more where that would be too many files."""

_TABLES = ("passages", "targets", "contexts")
_TOKENS = pa.list_(pa.int32())
_PAIR = TargetPair._fields
_PASSAGES_AT_ONCE = 1024
_PROCESS_BYTES = 1 << 30
"""What a worker takes beside the model's weights: libraries, activations, a block of logits."""


@dataclass(frozen=True)
class ScoringModel:
    """A language model as the driver knows it: its tokenizer, how a text begins, and how much it reads."""

    source: LanguageModelSource
    tokenizer: Any
    beginning: list[int]
    max_positions: int | None

    @classmethod
    def open(cls, source: LanguageModelSource, cache: Path, progress: Progress) -> ScoringModel:
        """Read all but the weights; a GGUF file is unpacked under ``cache`` at its first use.

        Raises DataError for a model that transformers cannot load, MissingExtraError without what reads GGUF.
        """
        from transformers import AutoConfig

        source = unpack_gguf(source, cache, progress)
        tokenizer = read_tokenizer(source)
        config = read_pretrained(AutoConfig.from_pretrained, source, {}).get_text_config()
        return cls(
            source, tokenizer, beginning_ids(tokenizer), getattr(config, "max_position_embeddings", None) or None
        )


class ContextScores(NamedTuple):
    """NLL sums (m,) in nats, how much the model could not read, and the arithmetic of the forward passes."""

    nll: Float64Array
    cuts: CutCounts
    compute_dtype: str


class ScoredMark(ShardMark):
    """A chunk of contexts is scored; ``cuts`` as in ``CutCounts``."""

    cuts: tuple[int, int, int, int]
    compute_dtype: str


@dataclass(frozen=True)
class ScoringPlan:
    """What a worker is told: the model, the folder of the tables, and which contexts each chunk has."""

    model: LanguageModelSource
    beginning: tuple[int, ...]
    max_positions: int | None
    dtype: str
    batch_tokens: int | None
    folder: Path
    chunks: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class ContextScorer:
    """Scores contexts of one store; finished chunks are kept under ``folder``."""

    model: ScoringModel
    pieces: Pieces
    request: EvaluationRequest
    folder: Path
    progress: Progress

    def score(self, pairs: Sequence[TargetPair], contexts: Int64Array) -> ContextScores:
        """The NLL of contexts (m, 1 + k): the number of a pair, then k ≥ 1 store rows, best first, −1 for none.

        Raises ConfigError for a query and target that the model cannot read, DataError where it gives a value that
        is not finite.
        """
        model = self.model
        longest = max(pairs, key=lambda pair: len(pair.query) + len(pair.target))
        context_sequence(longest, [], model.beginning, model.max_positions)
        distinct, inverse = np.unique(contexts, axis=0, return_inverse=True)
        tables, order, lengths = self._tables(pairs, distinct)
        data = [_ipc_bytes(table) for table in tables]
        # Another run of the same request finds its chunks; a request whose contexts are others finds nothing.
        digest = hashlib.sha256(b"".join(hashlib.sha256(each).digest() for each in data)).hexdigest()
        folder = self.folder.resolve() / f"scores-{digest[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, each in zip(_TABLES, data, strict=True):
            (folder / f"{name}.arrow").write_bytes(each)
        scored = self._finish(folder, _chunks(lengths[order]))
        nll = np.empty(len(distinct))
        nll[order] = scored.nll
        return scored._replace(nll=nll[inverse.reshape(-1)])

    def _tables(
        self, pairs: Sequence[TargetPair], contexts: Int64Array
    ) -> tuple[list[pa.Table], Int64Array, Int64Array]:
        """Passages, targets and contexts as tables, contexts in the order of their length, which is (m,) too."""
        found = contexts[:, 1:]
        rows = np.unique(found[found >= 0])
        passages = self._passage_tokens(rows)
        # One more, without tokens, stands for a passage that is missing.
        n_tokens = np.append(pc.list_value_length(passages).to_numpy().astype(np.int64), 0)
        numbers = np.where(found >= 0, np.searchsorted(rows, found), -1)
        of_pair = np.array([len(pair.query) + len(pair.target) for pair in pairs], dtype=np.int64)
        lengths = of_pair[contexts[:, 0]] + n_tokens[numbers].sum(axis=1) + len(self.model.beginning)
        lengths = np.minimum(lengths, self.model.max_positions or lengths)
        order = np.argsort(-lengths, kind="stable")
        lists = pa.FixedSizeListArray.from_arrays(pa.array(numbers[order].ravel()), found.shape[1])
        return (
            [
                pa.table({"tokens": passages}),
                pa.table({name: pa.array([getattr(pair, name) for pair in pairs], _TOKENS) for name in _PAIR}),
                pa.table({"target": contexts[order, 0], "passages": lists}),
            ],
            order,
            lengths,
        )

    def _passage_tokens(self, rows: Int64Array) -> pa.ChunkedArray:
        """Token ids of the passages of these store rows, as they stand in a context: lists, (r,)."""
        tokens = []
        self.progress.start("tokenize passages", total=len(rows), unit="passages")
        for start in range(0, len(rows), _PASSAGES_AT_ONCE):
            texts = self.pieces.take(rows[start : start + _PASSAGES_AT_ONCE], ["text"])["text"].to_pylist()
            tokens.append(pa.array(passage_ids(self.model.tokenizer, texts), _TOKENS))
            self.progress.advance(len(texts))
        return pa.chunked_array(tokens, _TOKENS)

    def _finish(self, folder: Path, chunks: dict[str, tuple[int, int]]) -> ContextScores:
        """Score the chunks that no earlier run finished; returns the scores of all, in their order."""
        request, model = self.request, self.model
        plan = ScoringPlan(
            model.source,
            tuple(model.beginning),
            model.max_positions,
            request.dtype,
            request.batch_tokens,
            folder,
            chunks,
        )
        kept = ShardFolder(folder, "npy", ScoredMark)
        memory = weight_bytes(model.source, request.dtype) + _PROCESS_BYTES
        workers = Workers(ContextWorker, (plan, kept), request.device, request.workers, memory)
        sizes = {name: stop - start for name, (start, stop) in chunks.items()}
        marks = finish_shards(kept, sizes, workers, f"score with {model.source.name}", self.progress, "contexts")
        return ContextScores(
            np.concatenate([np.load(kept.path(name)) for name in chunks]),
            CutCounts(*(sum(column) for column in zip(*(mark.cuts for mark in marks.values()), strict=True))),
            " and ".join(sorted({mark.compute_dtype for mark in marks.values()})),
        )


def _chunks(lengths: Int64Array) -> dict[str, tuple[int, int]]:
    """First context and the one behind the last of each chunk, by name; ``lengths`` (m,) in their order."""
    tokens = np.cumsum(lengths)
    size = max(_CHUNK_TOKENS, -(-int(tokens[-1]) // _MOST_CHUNKS))
    edges = np.flatnonzero(np.diff((tokens - lengths) // size, prepend=-1))
    stops = [*edges[1:].tolist(), len(lengths)]
    return {f"{number:05d}": chunk for number, chunk in enumerate(zip(edges.tolist(), stops, strict=True))}


def _ipc_bytes(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return memoryview(sink.getvalue())


class ContextWorker:
    """A Ray actor that scores one chunk of contexts after the other."""

    def __init__(self, plan: ScoringPlan, folder: ShardFolder[ScoredMark], device: str) -> None:
        self._plan = plan
        self._folder = folder
        self._device = device
        if device == "cpu":
            use_one_thread()

    def ready(self) -> None:
        """Answers as soon as Ray has found room for this worker."""

    def run(self, chunk: str) -> Iterator[int]:
        """Score one chunk; yields the number of its contexts done, a few times a second, and at the end."""
        yield from paced(self._score(chunk))

    def _score(self, chunk: str) -> Iterator[int]:
        sequences = self._sequences(*self._plan.chunks[chunk])
        lengths = np.array([len(each.ids) for each in sequences], dtype=np.int64)
        nll = np.empty(len(sequences))
        for batch in length_batches(lengths, batch_budget(self._model, self._plan.batch_tokens)):
            nll[batch] = target_nll(self._model, [sequences[i] for i in batch], [np.arange(len(batch))])
            yield len(batch)
        with self._folder.writing(chunk) as file:
            np.save(file, nll)
        self._folder.finish(
            chunk, len(nll), cuts=tuple(cut_counts(sequences)), compute_dtype=self._model.compute_dtype
        )

    def _sequences(self, start: int, stop: int) -> list[ContextSequence]:
        passages, targets, contexts = self._tables
        sequences = []
        for context in contexts.slice(start, stop - start).to_pylist():
            pair = TargetPair(*(targets[name][context["target"]].as_py() for name in _PAIR))
            found = [passages["tokens"][number].as_py() for number in context["passages"] if number >= 0]
            sequences.append(context_sequence(pair, found, self._plan.beginning, self._plan.max_positions))
        return sequences

    @cached_property
    def _tables(self) -> list[pa.Table]:
        paths = [self._plan.folder / f"{name}.arrow" for name in _TABLES]
        return [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths]

    @cached_property
    def _model(self) -> LoadedLanguageModel:
        check_files(self._plan.model)
        return load_language_model(self._plan.model, self._device, self._plan.dtype)
