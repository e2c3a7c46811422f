"""Evaluations of datastores: what is asked, and what is reported.

Fields marked "resource" never enter a fingerprint.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mixwright.schemas.datastores import Probability, SamplingUnit, SearchMode
from mixwright.schemas.reads import InputPath, ModelName
from mixwright.schemas.references import ReferenceText
from mixwright.schemas.requests import FieldName, ModelDtype

ScalingMetric = Literal["recall", "ndcg", "answer_nll", "perplexity"]
LanguageMetric = Literal["answer_nll", "perplexity"]
Decontamination = Literal["off", "query", "query-and-answer"]

CUTOFF = 10
"""nDCG and MRR look at so many documents."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EvaluationRequest(_Model):
    """What both kinds of evaluation are asked."""

    datastore: ReferenceText
    name: ReferenceText | None = Field(
        default=None, description="default: DATASTORE.evaluation, or DATASTORE.scaling"
    )
    queries: InputPath | None = Field(
        default=None, min_length=1, description="a BEIR folder, or a file of rows with text, answers and positives"
    )
    texts: ReferenceText | None = Field(default=None, description="corpus whose perplexity is measured")
    model: ModelName | None = Field(
        default=None, min_length=1, description="hub id, local folder or .gguf file of the language model"
    )
    id_field: FieldName = Field(
        default="_id", description="metadata key or column that has the ids by which documents are judged"
    )
    k: int = Field(default=10, ge=1, le=1000, description="documents of recall@k")
    passages: int = Field(default=3, ge=1, le=1000, description="passages put before what the model is scored on")
    mode: SearchMode = Field(default="dense", description="dense, bm25, or both by reciprocal rank fusion")
    dedup: bool = Field(default=False, description="of each near-duplicate cluster only the best hit")
    limit: int | None = Field(
        default=None, ge=1, description="at most so many queries, and so many windows of the texts, drawn by seed"
    )
    seed: int = Field(default=0, ge=0, le=(1 << 31) - 1, description="of what is drawn by limit")
    decontaminate: Decontamination = Field(
        default="off",
        description="passages that hold the query, or the query with its answer, are not put before it",
    )
    ngram: int = Field(default=13, ge=1, le=100, description="decontaminate: words of an n-gram")
    containment: Probability = Field(
        default=0.8, description="decontaminate: share of the n-grams that a passage may not reach"
    )
    longest_run: int = Field(
        default=32, ge=1, le=10_000, description="decontaminate: words in a row that a passage may not share"
    )
    question_template: str = Field(
        default="Question: {question}\nAnswer:", description="what the model reads before an answer"
    )
    answer_template: str = Field(default=" {answer}", description="the answer that it is scored on")
    window: int = Field(default=1024, ge=2, description="texts: tokens of query and target together")
    stride: int = Field(default=512, ge=1, description="texts: tokens of a target")
    dtype: ModelDtype = Field(
        default="auto", description="of the forward passes; auto: bfloat16 where the hardware has it, else float32"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="resource: of the language model")
    workers: int | None = Field(default=None, ge=1, description="resource: default one a core or GPU")
    batch_tokens: int | None = Field(
        default=None, ge=1, description="resource: padded tokens a batch; default: 2,048 on a CPU, 32,768 on a GPU"
    )

    @model_validator(mode="after")
    def _has_something_to_measure(self) -> Self:
        if self.queries is None and self.texts is None:
            raise ValueError("there is nothing to evaluate on: give queries, or texts and a model")
        if self.texts is not None and self.model is None:
            raise ValueError("texts are read by a model: give one, or leave texts out")
        if self.stride >= self.window:
            raise ValueError("stride must be below window: a target needs a query before it")
        return self


class EvaluateRequest(EvaluationRequest):
    """How well a datastore finds what is relevant, and what its passages are worth to a language model."""

    kind: Literal["evaluate"] = "evaluate"
    exact: bool = Field(default=False, description="compare with every vector instead of using the index")


class ScaleRequest(EvaluationRequest):
    """Scores against the size of the datastore, from one deep search of the whole store."""

    kind: Literal["scale"] = "scale"
    metrics: list[ScalingMetric] | None = Field(
        default=None, min_length=1, description="default: all that queries, texts and model allow"
    )
    probabilities: list[Probability] = Field(
        default=[0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0], min_length=1, description="shares of the store"
    )
    seeds: int = Field(default=3, ge=1, le=100, description="draws of each share: seeds 0, 1, …")
    subsample_by: SamplingUnit = Field(
        default="passage", description="what is drawn: passage, document or cluster"
    )
    depth: int = Field(default=1000, ge=1, le=100_000, description="hits of the one search of the whole store")
    exact: bool = Field(
        default=True, description="compare with every vector: through an approximate index the curve bends"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("metrics", "probabilities"):
            values = getattr(self, name) or []
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has a value twice: give each once")
        for metric in self.metrics or []:
            source = "texts" if metric == "perplexity" else "queries"
            if getattr(self, source) is None:
                raise ValueError(f"{metric} is measured on {source}: give them, or leave {metric} out")
            if metric == "answer_nll" and self.model is None:
                raise ValueError("answer_nll is measured with a model: give one, or leave answer_nll out")
        return self


class Estimate(_Model):
    """A mean with its two-sided 95 % bootstrap interval over queries, documents and, of a curve, seeds."""

    value: float
    low: float
    high: float


class StoreFacts(_Model):
    """The datastore that was evaluated."""

    ref: str
    n_passages: int
    n_documents: int
    n_tokens: int
    encoder: str
    index_kind: str


class SearchFacts(_Model):
    """How it was searched."""

    mode: SearchMode
    exact: bool = Field(description="every vector was compared, whether by request or because the index is flat")
    dedup: bool
    decontaminate: Decontamination


class QueryFacts(_Model):
    """The queries that were asked."""

    path: str
    n_queries: int
    n_left_out: int = Field(description="not drawn, where there is a limit")
    n_unjudged: int = Field(
        description="of a BEIR folder, without a relevant document in its judgements: left out"
    )
    n_truncated: int = Field(description="longer than the encoder reads: searched for by their start")


class JudgementFacts(_Model):
    """The documents that are relevant to some query, and what of them is in the store."""

    n_queries: int = Field(description="queries with a relevant document")
    n_relevant: int = Field(description="ids of relevant documents")
    n_missing: int = Field(description="of them not in the store: they count as not found")
    missing: list[str] = Field(description="the first of those ids")
    n_ambiguous: int = Field(description="of them the ids of several documents: any of these counts, once")


class RetrievalReport(_Model):
    """How the documents of the hits were ranked. Several passages of a document count once, at the first."""

    n_queries: int
    k: int = Field(description="documents of recall")
    cutoff: int = Field(description="documents of nDCG and MRR")
    recall: Estimate
    ndcg: Estimate
    mrr: Estimate


class IndexRecallReport(_Model):
    """The share of the k nearest passages that the index finds, on these queries, which it was not tuned on."""

    k: int
    n_queries: int
    recall: Estimate


class SpeedReport(_Model):
    """How fast the queries were answered by this machine, in batches of ``batch``; not reproducible."""

    batch: int
    queries_per_second: float = Field(description="of the search alone")
    embedded_per_second: float | None = Field(description="queries to vectors; null for bm25")


class ModelFacts(_Model):
    """The language model."""

    name: str
    revision: str
    compute_dtype: str = Field(description="arithmetic of the forward passes: as the machine had it")


class ContextFacts(_Model):
    """Of the texts that the model read: passages that did not fit were cut, the beginning of the worst first."""

    n_contexts: int
    n_cut_contexts: int
    n_passage_tokens: int
    n_cut_tokens: int


class TargetFacts(_Model):
    """What the model was scored on: answers to questions, or windows of documents."""

    unit: Literal["question", "document"] = Field(description="what is resampled for an interval")
    n_units: int
    n_targets: int
    n_tokens: int
    n_left_out: int = Field(
        description="questions without an answer; documents that are too short, and windows with a blank query"
    )
    n_not_drawn: int = Field(description="windows, where there is a limit")
    n_truncated: int = Field(description="queries longer than the encoder reads: searched for by their start")
    n_decontaminated: int = Field(description="targets that lost one of their passages to the decontamination")
    contexts: ContextFacts


class LanguageReport(_Model):
    """What retrieved passages are worth to the model; ``alone`` is without any."""

    metric: LanguageMetric
    passages: int
    targets: TargetFacts
    n_short: int = Field(description="targets for which fewer passages were found")
    alone: Estimate
    retrieved: Estimate
    change: Estimate = Field(description="of the NLL with retrieval, in nats a token; below 0 is better")


class CurvePointReport(_Model):
    """A score at one share of the store."""

    probability: float
    n_passages: float = Field(description="mean over seeds")
    n_tokens: float = Field(description="mean over seeds")
    passages_by_seed: list[int]
    tokens_by_seed: list[int]
    value: float
    low: float
    high: float
    by_seed: list[float]
    change: Estimate | None = Field(
        default=None, description="of the NLL from the model alone to this share, in nats a token"
    )
    searched_again: list[int] = Field(
        description="by seed, queries with too few hits among the first: their share was searched by itself"
    )
    short: list[int] = Field(description="by seed, queries for which that share of the store has too few hits")


class Curve(_Model):
    """A score against the size of the store. ``baseline`` is the model alone: a store of size 0."""

    metric: ScalingMetric
    k: int = Field(description="documents of a ranking, or passages before a target")
    n_units: int = Field(description="queries, questions or documents")
    targets: TargetFacts | None = None
    baseline: Estimate | None = None
    points: list[CurvePointReport]


class EvaluateReport(_Model):
    """What ``evaluate`` found."""

    job: Literal["evaluate"] = "evaluate"
    datastore: StoreFacts
    search: SearchFacts
    queries: QueryFacts | None = None
    judgements: JudgementFacts | None = None
    retrieval: RetrievalReport | None = None
    index: IndexRecallReport | None = None
    speed: SpeedReport | None = None
    texts: str | None = Field(default=None, description="ref of the corpus")
    model: ModelFacts | None = None
    language: list[LanguageReport] = []


class ScaleReport(_Model):
    """What ``scale`` found."""

    job: Literal["scale"] = "scale"
    datastore: StoreFacts
    search: SearchFacts
    depth: int = Field(description="hits of the one search; 0: every share was searched by itself")
    subsample_by: SamplingUnit
    seeds: list[int]
    queries: QueryFacts | None = None
    judgements: JudgementFacts | None = None
    texts: str | None = Field(default=None, description="ref of the corpus")
    model: ModelFacts | None = None
    curves: list[Curve]


EvaluationReport = Annotated[EvaluateReport | ScaleReport, Field(discriminator="job")]
