"""Requests: what a job is asked to do. The CLI's flags and the REST bodies are these fields.

Fields marked "resource" never enter a fingerprint.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from mixwright.schemas.defaults import DEFAULT_ENCODER, DEFAULT_TOKENIZER
from mixwright.schemas.numbers import WholeNumber
from mixwright.schemas.reads import EncoderName, InputPath, ModelName, Program, TokenizerName
from mixwright.schemas.references import ReferenceText
from mixwright.schemas.training_runs import Metric, Unit

FieldName = Annotated[str, StringConstraints(min_length=1)]
InputFormat = Literal["auto", "jsonl", "parquet", "csv", "text"]
PromptFormat = Literal["auto", "chat", "plain", "none"]
ModelDtype = Literal["auto", "float32", "bfloat16", "float16"]
Evaluator = Literal["ngram", "linear_probe", "command"]
DuplicateMethod = Literal["exact", "minhash", "semantic"]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]
IndexKind = Literal["auto", "flat", "hnsw", "ivf", "ivf-pq", "rabitq"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IngestRequest(_Request):
    """Files to a corpus."""

    kind: Literal["ingest"] = "ingest"
    name: ReferenceText = Field(description="name of the corpus, or name@version")
    paths: list[InputPath] = Field(min_length=1, description="files, folders, globs or fsspec URLs")
    format: InputFormat = Field(default="auto", description="auto: by the file name's suffix")
    text_field: FieldName = Field(default="text", description="field or column that holds the text")
    text_template: str | None = Field(
        default=None,
        description="text made of several fields: {instruction}\\n{output}, say; instead of text_field",
    )
    url_field: FieldName = Field(default="url", description="field or column that holds the URL")
    domain_field: FieldName | None = Field(default=None, description="field that holds the domain")
    domain: str | None = Field(default=None, min_length=1, description="constant domain of every document")
    source: str | None = Field(default=None, min_length=1, description="value of `source`; default: the name")
    tokenizer: TokenizerName = Field(default=DEFAULT_TOKENIZER, description="counts n_tokens")
    duplicates: Literal["drop", "keep", "drop-near"] = Field(
        default="drop", description="documents with the same text; drop-near: and those with nearly the same"
    )
    on_bad_row: Literal["quarantine", "fail"] = Field(default="quarantine")
    shard_rows: int | None = Field(
        default=None,
        ge=1,
        description="resource: documents a Parquet shard, at most; default: a 64th of them, within 128 and 10,000",
    )

    @model_validator(mode="after")
    def _one_domain(self) -> Self:
        if self.domain is not None and self.domain_field is not None:
            raise ValueError("domain and domain_field exclude each other: give one of the two")
        if self.text_template is not None and self.text_field != "text":
            raise ValueError("text_template and text_field exclude each other: give one of the two")
        return self


class EmbedRequest(_Request):
    """A corpus to embeddings."""

    kind: Literal["embed"] = "embed"
    corpus: ReferenceText
    encoder: EncoderName = Field(
        default=DEFAULT_ENCODER, description="name, hub id or local folder of the encoder"
    )
    template: str = Field(default="{text}", description="what is embedded, with {field} placeholders")
    name: ReferenceText | None = Field(default=None, description="default: CORPUS.ENCODER")
    dtype: Literal["float32", "float16"] = Field(default="float32", description="of the stored vectors")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="resource")
    workers: int | None = Field(default=None, ge=1, description="resource: default one a core or GPU")
    batch_tokens: int | None = Field(
        default=None, ge=1, description="resource: padded tokens a batch; default: 2,048 on a CPU, 65,536 on a GPU"
    )


class ScoreRequest(_Request):
    """How far a pruned language model is from its original on each response of a corpus, as attributes."""

    kind: Literal["score"] = "score"
    corpus: ReferenceText
    original: ModelName = Field(
        min_length=1, description="hub id, local folder or .gguf file of the original model"
    )
    pruned: ModelName = Field(
        min_length=1, description="the same of the pruned model, which has the same tokenizer"
    )
    name: ReferenceText | None = Field(default=None, description="default: CORPUS.scores")
    prompt: str | None = Field(
        default=None,
        description="prompt, with {field} placeholders; empty: none; default: by the usual names of fields",
    )
    response: str | None = Field(
        default=None, min_length=1, description="response, with {field} placeholders; default: likewise"
    )
    prompt_format: PromptFormat = Field(
        default="auto", description="auto: the tokenizer's chat template if it has one, else plain"
    )
    max_tokens: int = Field(
        default=2048, ge=2, description="longer pairs of prompt and response are counted, not scored"
    )
    dtype: ModelDtype = Field(
        default="auto", description="of the forward passes; auto: bfloat16 where the hardware has it, else float32"
    )
    cache_top_k: int | None = Field(
        default=None,
        ge=1,
        description="run one model after the other, keeping the original's k likeliest tokens; default: both",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="resource")
    workers: int | None = Field(default=None, ge=1, description="resource: default one a core or GPU")
    batch_tokens: int | None = Field(
        default=None, ge=1, description="resource: padded tokens a batch; default: 2,048 on a CPU, 32,768 on a GPU"
    )


class AssignRequest(_Request):
    """Documents of a corpus to the clusters of a PASER mixture, as attributes."""

    kind: Literal["assign"] = "assign"
    corpus: ReferenceText
    mixture: ReferenceText = Field(description="mixture by paser, whose clusters are used")
    name: ReferenceText | None = Field(default=None, description="default: CORPUS.MIXTURE-clusters")
    workers: int | None = Field(default=None, ge=1, description="resource: of the embedding, if it is missing")


class IndexRequest(_Request):
    """Embeddings of a corpus to a FAISS index."""

    kind: Literal["index"] = "index"
    corpus: ReferenceText
    encoder: EncoderName | None = Field(default=None, description="which embeddings; default: the newest")
    name: ReferenceText | None = Field(default=None, description="default: EMBEDDINGS.KIND")
    index_kind: IndexKind = "auto"
    recall: float = Field(default=0.95, gt=0, le=1, description="target of recall@10 against brute force")
    memory_budget: int | None = Field(default=None, ge=1, description="bytes the opened index may take")
    queries: int = Field(default=1000, ge=10, description="held-out queries that measure recall")
    seed: WholeNumber = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "gpu"] = Field(default="auto", description="resource")
    threads: int | None = Field(default=None, ge=1, description="resource")


class PilotRequest(_Request):
    """Small trainings on mixtures of the sources, each scored on a validation corpus, as results."""

    kind: Literal["pilot"] = "pilot"
    name: ReferenceText = Field(description="name of the results, or name@version")
    sources: list[ReferenceText] = Field(min_length=1, description="corpora that are mixed")
    validation: ReferenceText = Field(description="corpus that the trainings are scored on")
    evaluator: Evaluator = Field(
        description="what trains and scores: a byte n-gram model, a linear classifier of embeddings, or a program"
    )
    mixtures: list[Annotated[dict[str, Share], Field(min_length=1)]] | None = Field(
        default=None, min_length=1, description="shares by source, of the tokens; default: planned"
    )
    runs: int = Field(default=12, ge=1, le=10_000, description="how many mixtures are planned")
    sizes: list[Annotated[int, Field(ge=1)]] = Field(
        min_length=1, description="each mixture is trained at each of these sizes"
    )
    unit: Unit = Field(default="tokens", description="of the sizes")
    repeats: int = Field(default=1, ge=1, le=1000, description="trainings of each mixture, with other seeds")
    seed: WholeNumber = Field(default=0, ge=0, le=(1 << 31) - 1)
    max_epochs: float = Field(
        default=4.0, gt=0, allow_inf_nan=False, description="times that a source may be read in a training"
    )
    order: int = Field(default=6, ge=1, le=8, description="ngram: bytes of an n-gram")
    label: FieldName | None = Field(
        default=None, description="linear_probe: metadata key or column with the documents' classes"
    )
    encoder: EncoderName = Field(default=DEFAULT_ENCODER, description="linear_probe: encoder of the documents")
    template: str = Field(
        default="{text}", description="linear_probe: what is embedded, with {field} placeholders"
    )
    train_command: Program | None = Field(
        default=None,
        min_length=1,
        description="command: the program and its arguments, with {mixture}, {rows}, {validation}, {size}, {seed} "
        "and {score}",
    )
    metric: Metric | None = Field(
        default=None, description="command: what its score is; default: a score to be minimized"
    )
    workers: int | None = Field(
        default=None, ge=1, description="resource: trainings at a time; default: one a core, of a command 1"
    )
    timeout_seconds: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="resource: of each run of a command; default: none"
    )

    @model_validator(mode="after")
    def _fits_the_evaluator(self) -> Self:
        if self.evaluator == "linear_probe" and self.label is None:
            raise ValueError("linear_probe needs label: name the metadata key or column that has the classes")
        if self.evaluator == "command" and self.train_command is None:
            raise ValueError("command needs train_command: give the program that trains and scores")
        only: dict[str, tuple[str, ...]] = {
            "linear_probe": ("label",),
            "command": ("train_command", "metric", "timeout_seconds"),
        }
        for evaluator, fields in only.items():
            for field in fields:
                if self.evaluator != evaluator and getattr(self, field) is not None:
                    raise ValueError(f"{field} is for the evaluator {evaluator}: leave it out or use {evaluator}")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError("sizes has a size twice: give each once; repeats trains again")
        if any(not sum(each.values()) for each in self.mixtures or []):
            raise ValueError("mixtures has one without a share above 0: give at least one source a share")
        low, high = (self.metric.low, self.metric.high) if self.metric else (None, None)
        if low is not None and high is not None and low >= high:
            raise ValueError(f"metric is between {low:g} and {high:g}: low must be below high")
        return self


class NearDuplicatesRequest(_Request):
    """Clusters of documents of a corpus that are nearly the same, as attributes."""

    kind: Literal["near-duplicates"] = "near-duplicates"
    corpus: ReferenceText
    method: DuplicateMethod = Field(
        default="minhash",
        description="exact: the same but for case, Unicode form and white space; minhash: runs of five words in "
        "common; semantic: like vectors",
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="least similarity: Jaccard of minhash, default 0.8; cosine of semantic, default 0.95",
    )
    template: str = Field(default="{text}", description="what is compared, with {field} placeholders")
    encoder: EncoderName | None = Field(
        default=None, description=f"semantic: name, hub id or local folder; default: {DEFAULT_ENCODER}"
    )
    name: ReferenceText | None = Field(default=None, description="default: CORPUS.near-duplicates")
    workers: int | None = Field(default=None, ge=1, description="resource: of the embedding, if it is missing")

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        if self.method == "exact" and self.threshold is not None:
            raise ValueError("exact has no threshold: leave it out, or use minhash")
        if self.method != "semantic" and self.encoder is not None:
            raise ValueError(f"{self.method} needs no encoder: leave it out, or use semantic")
        return self


class DecontaminateRequest(_Request):
    """Which documents of a corpus hold evaluation texts, or long stretches of them, as attributes."""

    kind: Literal["decontaminate"] = "decontaminate"
    corpus: ReferenceText
    against: list[ReferenceText] = Field(min_length=1, description="corpora of evaluation texts")
    template: str = Field(
        default="{text}", description="an evaluation text, with {field} placeholders: '{text} {answer}', say"
    )
    ngram: int = Field(default=13, ge=1, le=100, description="words of an n-gram")
    containment: float = Field(
        default=0.8, gt=0, le=1, description="share of an evaluation text's n-grams that contaminates"
    )
    longest_run: int = Field(default=32, ge=1, le=10_000, description="words in a row that contaminate")
    name: ReferenceText | None = Field(default=None, description="default: CORPUS.contamination")
