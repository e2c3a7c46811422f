"""The Ray actors of the score job: a shard of documents to batches, and batches to scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mixwright.corpora import template_texts
from mixwright.errors import DataError
from mixwright.indexes.batching import length_batches
from mixwright.jobs.marked_shards import ShardFolder, ShardMark, paced, use_one_thread
from mixwright.language_models.loading import (
    LanguageModelSource,
    LoadedLanguageModel,
    check_files,
    load_language_model,
)
from mixwright.language_models.matching import SharedLimits, read_tokenizer
from mixwright.language_models.prompts import STATUSES, ChosenFormat, TokenizedPairs, tokenize_pairs
from mixwright.language_models.responses import (
    ResponseBatch,
    compare_models,
    compare_with_top_tokens,
    original_top_tokens,
    response_batch,
    response_means,
)
from mixwright.schemas.requests import ScoreRequest

if TYPE_CHECKING:
    from torch import Tensor

    from mixwright.language_models.divergence import TokenScores, TopTokens

Int64Array = npt.NDArray[np.int64]

_BATCH_TOKENS = {"cpu": 2048, "cuda": 32_768}

_SCHEMA = pa.schema(
    [
        pa.field("jsd", pa.float32()),
        pa.field("nll_original", pa.float32()),
        pa.field("nll_pruned", pa.float32()),
        pa.field("n_prompt_tokens", pa.int32(), nullable=False),
        pa.field("n_response_tokens", pa.int32(), nullable=False),
        pa.field("score_status", pa.string(), nullable=False),
    ]
)
_SCORES = ("jsd", "nll_original", "nll_pruned")


class ScoreMark(ShardMark):
    """The scores of a shard are complete."""

    counts: dict[str, int]
    compute_dtype: str


class OriginalMark(ShardMark):
    """What is kept of the original's distributions over a shard is complete."""


@dataclass(frozen=True)
class ScorePlan:
    """What a worker is told beside its device and its folders; ``corpus`` is the folder of the Parquet shards."""

    corpus: Path
    original: LanguageModelSource
    pruned: LanguageModelSource
    limits: SharedLimits
    prompt: str
    response: str
    prompt_format: ChosenFormat
    request: ScoreRequest

    @property
    def max_tokens(self) -> int:
        """Tokens that a pair may have: what is asked for, but not more than both models can read."""
        return min(self.request.max_tokens, self.limits.max_positions or self.request.max_tokens)

    @property
    def stored(self) -> np.dtype[Any]:
        """One response token of what is kept of the original, 8 k + 8 bytes."""
        k = min(self.request.cache_top_k or 0, self.limits.vocabulary)
        return np.dtype(
            [("ids", "<i4", (k,)), ("log_probabilities", "<f4", (k,)), ("log_tail", "<f4"), ("nll", "<f4")]
        )


class _Worker:
    """One shard after the other, with what it needs in memory from the first one on."""

    def __init__(self, plan: ScorePlan, device: str) -> None:
        self._plan = plan
        self._device = device
        if device == "cpu":
            use_one_thread()

    def ready(self) -> None:
        """Answers as soon as Ray has found room for this worker."""

    @cached_property
    def _tokenizer(self) -> Any:
        return read_tokenizer(self._plan.original)

    @cached_property
    def _original(self) -> LoadedLanguageModel:
        return self._load(self._plan.original)

    @cached_property
    def _pruned(self) -> LoadedLanguageModel:
        return self._load(self._plan.pruned)

    def _load(self, source: LanguageModelSource) -> LoadedLanguageModel:
        check_files(source)
        return load_language_model(source, self._device, self._plan.request.dtype)

    def _pairs(self, shard: str) -> TokenizedPairs:
        documents = pl.scan_parquet(self._plan.corpus / f"{shard}.parquet")
        responses = template_texts(documents, self._plan.response)
        prompts = template_texts(documents, self._plan.prompt) if self._plan.prompt else [""] * len(responses)
        return tokenize_pairs(self._tokenizer, prompts, responses, self._plan.prompt_format, self._plan.max_tokens)

    def _batches(
        self, pairs: TokenizedPairs, *models: LoadedLanguageModel
    ) -> Iterator[tuple[Int64Array, ResponseBatch]]:
        """The pairs to be scored, as (rows, batch), from the longest to the shortest whatever the batch size."""
        budget = self._plan.request.batch_tokens or _BATCH_TOKENS[models[0].device]
        budget = min([budget, *(model.max_batch_tokens for model in models if model.max_batch_tokens)])
        rows = np.array([row for row, each in enumerate(pairs.status) if each == "scored"], dtype=np.int64)
        lengths = (pairs.n_prompt + pairs.n_response)[rows]
        for batch in length_batches(lengths, budget):
            chosen = rows[batch]
            ids = [pairs.ids[row] for row in chosen]
            yield chosen, response_batch(ids, pairs.n_prompt[chosen].tolist(), models[0].device)

    def _means(
        self, shard: str, rows: Int64Array, values: Tensor, lengths: Int64Array, model: LanguageModelSource
    ) -> npt.NDArray[np.float32]:
        """``response_means`` of −log probabilities; raises DataError naming the row where one is not finite."""
        means = response_means(values, lengths)
        if not np.isfinite(means).all():
            row = rows[~np.isfinite(means)][0]
            advice = "mend its weights, or use --dtype float32 if it computes in half precision"
            raise DataError(f"{shard}, row {row}: model {model.name} gives a value that is not finite: {advice}")
        return means


class ScoreWorker(_Worker):
    """Scores shards with both models in memory."""

    def __init__(self, plan: ScorePlan, folder: ShardFolder[ScoreMark], device: str) -> None:
        super().__init__(plan, device)
        self._folder = folder

    def run(self, shard: str) -> Iterator[int]:
        """Score one shard; yields the number of its rows done, a few times a second, and at the end."""
        yield from paced(self._score(shard))

    def _score(self, shard: str) -> Iterator[int]:
        pairs = self._pairs(shard)
        counts = Counter(pairs.status)
        yield len(pairs.status) - counts["scored"]
        values = {name: np.zeros(len(pairs.status), dtype=np.float32) for name in _SCORES}
        for rows, scores in self._scores(shard, pairs):
            lengths = pairs.n_response[rows]
            values["jsd"][rows] = response_means(scores.jsd, lengths)
            values["nll_original"][rows] = self._means(
                shard, rows, scores.nll_original, lengths, self._plan.original
            )
            values["nll_pruned"][rows] = self._means(shard, rows, scores.nll_pruned, lengths, self._plan.pruned)
            yield len(rows)
        with self._folder.writing(shard) as file:
            pq.write_table(_table(pairs, values), file, compression="zstd")
        self._folder.finish(
            shard,
            len(pairs.status),
            counts={each: counts[each] for each in STATUSES},
            compute_dtype=self._pruned.compute_dtype,
        )

    def _scores(self, shard: str, pairs: TokenizedPairs) -> Iterator[tuple[Int64Array, TokenScores]]:
        vocabulary = self._plan.limits.vocabulary
        for rows, batch in self._batches(pairs, self._original, self._pruned):
            yield rows, compare_models(self._original, self._pruned, batch, vocabulary)


class OriginalWorker(_Worker):
    """Keeps the original's likeliest tokens of shards on disk, in the order of the batches."""

    def __init__(self, plan: ScorePlan, folder: ShardFolder[OriginalMark], device: str) -> None:
        super().__init__(plan, device)
        self._folder = folder

    def run(self, shard: str) -> Iterator[int]:
        """Do one shard; yields the number of its rows done, a few times a second, and at the end."""
        yield from paced(self._keep(shard))

    def _keep(self, shard: str) -> Iterator[int]:
        pairs = self._pairs(shard)
        yield len(pairs.status) - pairs.status.count("scored")
        limits, stored = self._plan.limits, self._plan.stored
        with self._folder.writing(shard) as file:
            for rows, batch in self._batches(pairs, self._original):
                k = stored["ids"].shape[0]
                top = original_top_tokens(self._original, batch, limits.vocabulary, k)
                self._means(shard, rows, top.nll, pairs.n_response[rows], self._plan.original)
                file.write(_to_bytes(top, stored))
                yield len(rows)
        self._folder.finish(shard, len(pairs.status))


class PrunedWorker(ScoreWorker):
    """Scores shards with the pruned model in memory, and what is kept of the original on disk."""

    def __init__(
        self, plan: ScorePlan, folder: ShardFolder[ScoreMark], kept: ShardFolder[OriginalMark], device: str
    ) -> None:
        super().__init__(plan, folder, device)
        self._kept = kept

    def _scores(self, shard: str, pairs: TokenizedPairs) -> Iterator[tuple[Int64Array, TokenScores]]:
        # Batches of another size would come in the same order of rows, so one pass over the file will do.
        with self._kept.path(shard).open("rb") as file:
            for rows, batch in self._batches(pairs, self._pruned):
                top = _from_bytes(file.read(len(batch.targets) * self._plan.stored.itemsize), self._plan.stored)
                yield rows, compare_with_top_tokens(top, self._pruned, batch, self._plan.limits.vocabulary)


def _to_bytes(top: TopTokens, stored: np.dtype[Any]) -> bytes:
    rows = np.empty(len(top.nll), dtype=stored)
    for name, values in top._asdict().items():
        rows[name] = values.cpu().numpy()
    return rows.tobytes()


def _from_bytes(data: bytes, stored: np.dtype[Any]) -> TopTokens:
    import torch

    from mixwright.language_models.divergence import TopTokens

    rows = np.frombuffer(data, dtype=stored)
    return TopTokens(*(torch.from_numpy(np.array(rows[name])) for name in TopTokens._fields))


def _table(pairs: TokenizedPairs, values: dict[str, npt.NDArray[np.float32]]) -> pa.Table:
    missing = np.array([each != "scored" for each in pairs.status], dtype=np.bool_)
    columns = {name: pa.array(each, mask=missing) for name, each in values.items()}
    columns["n_prompt_tokens"] = pairs.n_prompt.astype(np.int32)
    columns["n_response_tokens"] = pairs.n_response.astype(np.int32)
    columns["score_status"] = pairs.status
    return pa.table(columns, schema=_SCHEMA)
