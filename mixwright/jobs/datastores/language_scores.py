"""What both kinds of evaluation share where a language model is scored: its targets, its contexts, its means."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixwright.indexes.datastores.datastore import Datastore
from mixwright.indexes.retrieval_metrics import Band, mean_band
from mixwright.jobs.datastores.context_scores import ContextScorer, ContextScores, ScoringModel
from mixwright.jobs.datastores.evaluation_inputs import EvaluationInputs
from mixwright.jobs.datastores.evaluation_search import PreparedQueries, find_hits, prepare_queries
from mixwright.jobs.datastores.evaluation_targets import Targets, answer_targets, window_targets
from mixwright.jobs.ray_pool import cpu_count, ray_session
from mixwright.language_models.retrieval import CutCounts, TargetPair
from mixwright.progress import Progress
from mixwright.schemas.datastores import SearchOptions
from mixwright.schemas.evaluations import (
    ContextFacts,
    Estimate,
    EvaluationRequest,
    LanguageMetric,
    ModelFacts,
    TargetFacts,
)
from mixwright.store import Store

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


def scoring_session(request: EvaluationRequest) -> AbstractContextManager[None]:
    """One Ray for all that a model scores; none without a model."""
    return ray_session(max(cpu_count(), request.workers or 1)) if request.model is not None else nullcontext()


@dataclass(frozen=True)
class LanguageModel:
    """The language model of an evaluation, and what it scores."""

    inputs: EvaluationInputs
    scorer: ContextScorer
    progress: Progress

    @classmethod
    def open(
        cls, store: Store, inputs: EvaluationInputs, folder: Path, progress: Progress
    ) -> LanguageModel | None:
        """The model that a request names, or None; finished scores are kept under ``folder``."""
        if inputs.model is None:
            return None
        model = ScoringModel.open(inputs.model, store.home / "cache", progress)
        return cls(
            inputs, ContextScorer(model, inputs.datastore.pieces, inputs.request, folder, progress), progress
        )

    def targets(self, metric: LanguageMetric) -> Targets:
        """The targets of a metric, from the answers to the queries or from the texts."""
        request, tokenizer = self.inputs.request, self.scorer.model.tokenizer
        if metric == "perplexity" and self.inputs.texts is not None:
            return window_targets(self.inputs.texts, tokenizer, request, self.progress)
        queries = self.inputs.queries.queries if self.inputs.queries is not None else []
        return answer_targets(queries, tokenizer, request, self._alone)

    def prepare(self, targets: Targets) -> PreparedQueries:
        """The queries of targets, embedded."""
        return prepare_queries(self.inputs.datastore, targets.queries, self.inputs.request.mode, self.progress)

    def score(self, targets: Targets, rows: Int64Array) -> TargetScores:
        """Score targets without passages, and behind those of ``rows`` (c, n, k), in each of c cells."""
        c, n, k = rows.shape
        number = np.tile(np.arange(n), c)
        contexts = np.vstack(
            [alone_contexts(n, k), np.column_stack([number, rows.reshape(-1, k)])],
        )
        found = self.scorer.score(targets.pairs, contexts)
        totals = targets.totals(found.nll.reshape(1 + c, n))
        return TargetScores(totals[0], totals[1:], targets.n_tokens.astype(np.float64), found)

    def facts(self, compute_dtype: str) -> ModelFacts:
        """The model, for the report."""
        source = self.scorer.model.source
        return ModelFacts(name=source.name, revision=source.revision, compute_dtype=compute_dtype)

    def _alone(self, pairs: list[TargetPair]) -> Float64Array:
        return self.scorer.score(pairs, alone_contexts(len(pairs), 1)).nll


def alone_contexts(n: int, k: int) -> Int64Array:
    """Contexts (n, 1 + k) of n targets without any passage."""
    return np.column_stack([np.arange(n), np.full((n, k), -1)])


@dataclass(frozen=True)
class TargetScores:
    """NLL sums of u units: ``alone`` (u,), and ``retrieved`` (c, u) of c cells, over ``weights`` (u,) tokens."""

    alone: Float64Array
    retrieved: Float64Array
    weights: Float64Array
    contexts: ContextScores

    def estimate(self, metric: LanguageMetric, totals: Float64Array) -> Estimate:
        """The mean over tokens, as a perplexity where the metric is one: exp is monotone, so ends stay ends."""
        return estimate(mean_band(totals, self.weights), math.exp if metric == "perplexity" else float)

    def change(self, totals: Float64Array) -> Estimate:
        """By how much NLL sums (u,) differ from the model's alone, in nats a token; on the same resamples."""
        return estimate(mean_band(totals - self.alone, self.weights))


def estimate(band: Band, transform: Callable[[float], float] = float) -> Estimate:
    """A mean with its interval, for a report."""
    value, low, high = (float(transform(each)) for each in band)
    return Estimate(value=value, low=low, high=high)


def target_facts(
    targets: Targets, prepared: PreparedQueries, n_decontaminated: int, cuts: CutCounts
) -> TargetFacts:
    """What was scored, for a report."""
    return TargetFacts(
        unit=targets.unit,
        n_units=len(targets.unit_ids),
        n_targets=len(targets.pairs),
        n_tokens=int(targets.n_tokens.sum()),
        n_left_out=targets.n_left_out,
        n_not_drawn=targets.n_not_drawn,
        n_truncated=int(prepared.truncated.sum()),
        n_decontaminated=n_decontaminated,
        contexts=ContextFacts(
            n_contexts=cuts.n_sequences,
            n_cut_contexts=cuts.n_cut_sequences,
            n_passage_tokens=cuts.n_passage_tokens,
            n_cut_tokens=cuts.n_cut_tokens,
        ),
    )


def count_decontaminated(
    datastore: Datastore, targets: Targets, prepared: PreparedQueries, options: SearchOptions
) -> int:
    """Targets whose best ``options.k`` passages of the whole store are others without the decontamination."""
    if targets.forbidden is None:
        return 0
    plain, clean = (
        find_hits(datastore, prepared.queries, options, forbidden).ids for forbidden in (None, targets.forbidden)
    )
    return int((plain != clean).any(axis=1).sum())


def language_warnings(metric: str, facts: TargetFacts) -> Iterator[str]:
    """What a reader of the scores should know."""
    contexts = facts.contexts
    if facts.n_left_out:
        reasons = {
            "question": "questions without an answer",
            "document": "documents that are too short, or windows with a blank query,",
        }
        yield f"{metric}: {facts.n_left_out:,} {reasons[facts.unit]} are left out"
    if facts.n_truncated:
        yield (
            f"{metric}: {facts.n_truncated:,} of {facts.n_targets:,} queries are longer than the encoder reads: "
            "they were searched for by their start"
        )
    if contexts.n_cut_contexts:
        yield (
            f"{metric}: {contexts.n_cut_contexts:,} of {contexts.n_contexts:,} contexts did not fit into the "
            f"model: {contexts.n_cut_tokens:,} of {contexts.n_passage_tokens:,} tokens of passages were cut"
        )
    if facts.n_units < 2:
        yield f"{metric}: the interval of a single {facts.unit} says nothing"
