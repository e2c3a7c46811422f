"""Datastores: how text becomes passages, what a build, a change and a search are asked, what a search answers.

Fields marked "resource" never enter a fingerprint.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from mixwright.schemas.defaults import DEFAULT_ENCODER
from mixwright.schemas.numbers import WholeNumber
from mixwright.schemas.reads import EncoderName
from mixwright.schemas.references import ReferenceText
from mixwright.schemas.requests import DuplicateMethod, FieldName, IndexKind

WindowUnit = Literal["words", "tokens", "sentences"]
LongPassages = Literal["split", "refuse"]
SearchMode = Literal["dense", "bm25", "hybrid"]
SamplingUnit = Literal["passage", "document", "cluster"]
Probability = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PassageWindow(_Model):
    """How a document is cut into passages.

    ``words`` and ``tokens`` (of the encoder) give windows of ``size`` of them; ``sentences`` gives as many whole
    sentences as fit into ``size`` words. ``overlap`` words or tokens are repeated at the start of the next window.
    """

    unit: WindowUnit = "words"
    size: int = Field(default=256, ge=1, le=1_000_000, description="words or tokens of a passage, at most")
    overlap: int = Field(default=0, ge=0, description="words or tokens that the next passage repeats")

    @model_validator(mode="after")
    def _moves_on(self) -> Self:
        if self.overlap >= self.size:
            raise ValueError("overlap must be below size: a passage has to begin after the one before it")
        return self


class DatastoreRequest(_Model):
    """Corpora to a datastore: passages, their vectors, sharded indexes, BM25 and near-duplicate clusters."""

    kind: Literal["datastore"] = "datastore"
    name: ReferenceText = Field(description="name of the datastore, or name@version")
    corpora: list[ReferenceText] = Field(min_length=1, description="what is retrieved from")
    encoder: EncoderName = Field(
        default=DEFAULT_ENCODER, description="name, hub id or local folder of the encoder"
    )
    template: str | None = Field(
        default=None,
        description="what is embedded of a passage, with {field} placeholders; default: {title}\\n{text} where "
        "documents have a title, else {text}",
    )
    query_template: str = Field(default="{text}", description="what is embedded of a query, as in 'query: {text}'")
    window: PassageWindow = PassageWindow()
    long_passages: LongPassages = Field(
        default="split", description="passages longer than the encoder reads: split them, or refuse to build"
    )
    duplicates: Literal["drop", "keep"] = Field(
        default="drop", description="documents with the same text in several corpora"
    )
    near_duplicates: DuplicateMethod = Field(
        default="minhash", description="how near-duplicate passages are found, for searches with dedup"
    )
    index_kind: IndexKind = "auto"
    recall: float = Field(default=0.95, gt=0, le=1, description="target of recall@10 against brute force")
    memory_budget: int | None = Field(default=None, ge=1, description="bytes that the opened indexes may take")
    queries: int = Field(default=1000, ge=10, description="held-out queries that measure recall")
    shards: int | None = Field(
        default=None, ge=1, le=100_000, description="default: one for every ten million passages"
    )
    dtype: Literal["float32", "float16"] = Field(default="float32", description="of the stored vectors")
    seed: WholeNumber = Field(default=0, ge=0, le=(1 << 31) - 1)
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="resource")
    workers: int | None = Field(default=None, ge=1, description="resource: default one a core or GPU")
    batch_tokens: int | None = Field(default=None, ge=1, description="resource: padded tokens a batch")


class DatastoreAddRequest(_Model):
    """More corpora to a datastore: its next version, which shares all that is there already."""

    kind: Literal["datastore-add"] = "datastore-add"
    datastore: ReferenceText
    corpora: list[ReferenceText] = Field(min_length=1, description="corpora that are added")
    shards: int | None = Field(default=None, ge=1, le=100_000, description="new shards; default as in a build")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="resource")
    workers: int | None = Field(default=None, ge=1, description="resource: default one a core or GPU")
    batch_tokens: int | None = Field(default=None, ge=1, description="resource: padded tokens a batch")


class DatastoreDeleteRequest(_Model):
    """Documents out of a datastore: its next version, in which no search finds them."""

    kind: Literal["datastore-delete"] = "datastore-delete"
    datastore: ReferenceText
    documents: list[FieldName] = Field(min_length=1, description="ids of the documents")


class DatastoreCompactRequest(_Model):
    """A datastore written anew without what was deleted, its shards of even size and its index tuned again."""

    kind: Literal["datastore-compact"] = "datastore-compact"
    datastore: ReferenceText
    shards: int | None = Field(default=None, ge=1, le=100_000, description="default as in a build")
    workers: int | None = Field(default=None, ge=1, description="resource: default one a core")


class SearchOptions(_Model):
    """What a search keeps to. The same options stand in the body of a REST search and behind the CLI's flags."""

    k: int = Field(default=3, ge=1, le=10_000, description="hits a query")
    mode: SearchMode = Field(default="dense", description="dense, bm25, or both by reciprocal rank fusion")
    domains: list[str] | None = Field(default=None, description="only passages of these domains")
    where: str | None = Field(
        default=None,
        min_length=1,
        description="only passages for which this is true: SQL over the passages' columns, as in "
        "source = 'wiki' AND n_tokens >= 13",
    )
    subsample: Probability | None = Field(
        default=None, description="search a share of the store, drawn by the hash of seed and id"
    )
    subsample_by: SamplingUnit = Field(
        default="passage", description="what is drawn: passage, document or cluster"
    )
    seed: WholeNumber = Field(default=0, ge=0, le=(1 << 63) - 1, description="of the subsample")
    dedup: bool = Field(default=False, description="of each near-duplicate cluster only the best hit")
    decontaminate: StrictBool | list[str] | list[list[str]] | None = Field(
        default=None,
        description="no hit may contain one of these texts; lists of texts: one list for each query; true: the "
        "query itself",
    )
    ngram: int = Field(default=13, ge=1, le=100, description="decontaminate: words of an n-gram")
    containment: Probability = Field(
        default=0.8, description="decontaminate: share of a text's n-grams that a hit may not reach"
    )
    longest_run: int = Field(
        default=32, ge=1, le=10_000, description="decontaminate: words in a row that a hit may not share"
    )
    rerank: int = Field(
        default=0, ge=0, le=10_000, description="the best so many are ordered by a cross-encoder; 0: none"
    )
    exact: bool = Field(default=False, description="compare with every vector instead of using the index")
    nprobe: int | None = Field(default=None, ge=1, description="lists that are scanned; default: as tuned")
    ef_search: int | None = Field(default=None, ge=1, description="width of a walk in a graph; default: as tuned")
    allow_partial: bool = Field(
        default=False, description="answer without shards that do not answer, instead of refusing"
    )


class SearchRequest(SearchOptions):
    """Queries, as texts or as vectors of the store's encoder, and what the hits must be."""

    queries: list[str] | None = Field(default=None, max_length=1024)
    vectors: list[list[float]] | None = Field(
        default=None, max_length=1024, description="(q, dim): embedded queries, instead of texts"
    )

    @property
    def options(self) -> SearchOptions:
        """The request without its queries."""
        return SearchOptions.model_construct(**{name: getattr(self, name) for name in SearchOptions.model_fields})

    @model_validator(mode="after")
    def _queries_of_one_kind(self) -> Self:
        if (self.queries is None) == (self.vectors is None):
            raise ValueError("give either queries, which are texts, or vectors")
        if self.vectors is not None and (self.mode != "dense" or self.rerank):
            raise ValueError("vectors have no words: use mode dense without rerank, or give queries")
        if self.decontaminate is True and self.queries is None:
            raise ValueError("decontaminate true needs the texts of the queries: give queries, or texts to avoid")
        lists = self.decontaminate if isinstance(self.decontaminate, list) else []
        per_query = any(isinstance(each, list) for each in lists)
        if per_query and len(lists) != len(self.queries or self.vectors or []):
            raise ValueError("decontaminate has another number of lists than there are queries")
        return self


class Hit(_Model):
    """One passage that was found."""

    id: str
    document_id: str
    score: float = Field(description="inner product, BM25, fused ranks, or the cross-encoder's score")
    text: str
    start: int = Field(description="characters into the document's text")
    end: int
    source: str
    domain: str | None
    url: str | None
    cluster: str = Field(description="near-duplicate cluster: 16 hexadecimal digits")


class SearchResponse(_Model):
    """Hits, one list for each query, best first."""

    hits: list[list[Hit]]
    partial: bool = Field(default=False, description="true if some shard did not answer")
    shards_searched: int
    shards_total: int
    warnings: list[str] = []
