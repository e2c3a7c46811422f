"""Manifests: the one JSON file beside every artifact."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from mixwright.schemas.datastores import PassageWindow
from mixwright.schemas.evaluations import EvaluationReport
from mixwright.schemas.mixtures import MixtureComponent, Stage, TagPlan
from mixwright.schemas.references import Kind
from mixwright.schemas.training_runs import Metric, Unit

MATCHES_FILE = "matches.parquet"
"""What a decontamination found, beside the shards of its attributes."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArtifactInput(_Model):
    """An artifact that this one was made from."""

    kind: Kind
    ref: str = Field(description="name@version")
    fingerprint: str


class FileEntry(_Model):
    """One file of an artifact."""

    path: str = Field(description="relative to the artifact's folder, with forward slashes")
    n_bytes: int
    sha256: str
    n_rows: int | None = None


class Manifest(_Model):
    """What every manifest has. ``fingerprint`` identifies kind, inputs and parameters, never resources."""

    manifest_version: Literal[1] = 1
    kind: Kind
    name: str
    version: int = Field(ge=1)
    fingerprint: str
    inputs: list[ArtifactInput] = []
    parameters: dict[str, Any] = {}
    files: list[FileEntry] = []
    created_at: datetime
    software: dict[str, str] = Field(default={}, description="versions of the libraries that made it")
    warnings: list[str] = []

    @property
    def ref(self) -> str:
        """name@version."""
        return f"{self.name}@{self.version}"


class CorpusManifest(Manifest):
    """A corpus. ``files`` are the Parquet shards in row order, then the quarantine file if there is one."""

    kind: Literal["corpus"] = "corpus"
    n_documents: int
    n_duplicates: int = Field(description="rows whose text, or nearly, had been seen before (dropped by default)")
    n_quarantined: int = Field(description="bad rows, kept in quarantine.jsonl with file, line and reason")
    n_tokens: int
    n_text_bytes: int = Field(description="UTF-8 bytes of all texts")
    tokenizer: str
    domains: dict[str, int] = Field(default={}, description="documents of each of the 100 commonest domains")
    n_domains: int = 0

    @property
    def shards(self) -> list[FileEntry]:
        """The Parquet shards, in row order."""
        return [entry for entry in self.files if entry.path.endswith(".parquet")]


class AttributeColumn(_Model):
    """One column of attributes."""

    name: str
    dtype: str = Field(description="Arrow type of the values; null where a document has none")
    description: str


class AttributesManifest(Manifest):
    """Extra columns of a corpus, aligned row by row. ``files`` are Parquet shards, one for each of the corpus.

    What a decontamination found is in one more file, which is none of the shards.
    """

    kind: Literal["attributes"] = "attributes"
    corpus: str = Field(description="ref of the corpus")
    n_rows: int
    columns: list[AttributeColumn]
    counts: dict[str, int] = Field(default={}, description="documents by how the job dealt with them")

    @property
    def shards(self) -> list[FileEntry]:
        """The Parquet shards of the columns, in row order."""
        return [entry for entry in self.files if entry.path != MATCHES_FILE]


class EmbeddingsManifest(Manifest):
    """Embeddings (n_rows, dim) of a corpus. ``files`` are .npy shards, one for each shard of the corpus."""

    kind: Literal["embeddings"] = "embeddings"
    corpus: str = Field(description="ref of the corpus")
    encoder: str
    encoder_revision: str = Field(description="fingerprint of the encoder's files, or its hub revision")
    template: str = Field(default="{text}", description="what was embedded, with {field} placeholders")
    max_tokens: int | None = Field(description="the encoder reads no further than this; None: no limit")
    n_rows: int
    n_truncated: int = Field(description="documents longer than the encoder's limit, embedded by their start")
    dim: int
    dtype: str = Field(description="of the stored vectors")
    normalized: bool
    compute_dtypes: list[str] = Field(
        default=[], description="arithmetic of the forward passes: as the machines had it, and no identity"
    )


class RecallReport(_Model):
    """Recall@k of an index against brute force, on held-out queries."""

    k: int
    n_queries: int
    target: float
    measured: float
    lower_bound: float = Field(description="one-sided 95 % bootstrap bound of the measured recall")
    queries: str = Field(description="where the queries came from")


class IndexManifest(Manifest):
    """A FAISS index over embeddings; the ids are row numbers of the corpus."""

    kind: Literal["index"] = "index"
    corpus: str
    embeddings: str
    encoder: str
    index_kind: str = Field(description="flat, hnsw, ivf, ivf-pq or rabitq: what was built")
    factory: str = Field(description="the FAISS factory string")
    metric: Literal["inner_product"] = "inner_product"
    search_parameters: dict[str, int | float] = Field(description="nprobe, efSearch, k_factor … as tuned")
    n_rows: int
    dim: int
    n_bytes: int
    recall: RecallReport
    candidates: list[dict[str, Any]] = Field(default=[], description="what `auto` tried, and why it chose")
    device: str = Field(default="cpu", description="cpu or gpu: where it was built")


class MixtureManifest(Manifest):
    """A mixture: what to train on, in which proportion and order."""

    kind: Literal["mixture"] = "mixture"
    selector: str
    seed: int
    budget: dict[str, int] = Field(description="{'tokens': n} or {'documents': n}")
    n_rows: int
    n_tokens: int
    tokenizer: str
    components: list[MixtureComponent]
    stages: list[Stage]
    tags: TagPlan | None = None
    report: dict[str, Any] = Field(default={}, description="what the selector wants a person to see")


class ResultsManifest(Manifest):
    """What small trainings on mixtures of the sources scored. ``files`` are runs.parquet and likelihoods.npy."""

    kind: Literal["results"] = "results"
    sources: list[str] = Field(description="names, in the order of the columns")
    metric: Metric
    unit: Unit = Field(description="of the sizes of the runs")
    evaluator: str = Field(description="what trained and scored: ngram, linear_probe, command, or imported")
    validation: str | None = Field(default=None, description="ref of the corpus that they were scored on")
    n_rows: int = Field(description="runs")
    likelihoods: bool = Field(
        default=False,
        description="true if likelihoods.npy has what each source alone makes of the validation units",
    )


class DatastoreShard(_Model):
    """Rows ``start … stop - 1`` of a datastore, with a FAISS index and a BM25 index of their own."""

    name: str = Field(description="its folder under shards/")
    start: int
    stop: int


class DatastoreManifest(Manifest):
    """A datastore: passages with their vectors in pieces of rows, one for each shard of a corpus, and indexes.

    Rows are numbered through all pieces. ``files`` are in the order of their paths; those of a version that
    another one was made from are shared with it.
    """

    kind: Literal["datastore"] = "datastore"
    encoder: str
    encoder_revision: str
    template: str = Field(description="what was embedded of a passage")
    words_template: str = Field(description="what BM25 reads of a passage")
    query_template: str = Field(description="what is embedded of a query")
    window: PassageWindow
    max_tokens: int | None = Field(description="the encoder reads no further than this, and no passage is longer")
    dim: int
    dtype: str = Field(description="of the stored vectors")
    tokenizer: str = Field(description="counted n_tokens")
    n_rows: int = Field(description="passages, deleted ones included")
    n_deleted: int = Field(default=0, description="passages that no search finds")
    n_documents: int = Field(description="documents that are not deleted")
    n_repeats: int = Field(description="documents left out because another corpus has the same text")
    n_tokens: int = Field(description="of the passages that are not deleted")
    n_bytes: int = Field(description="of all files")
    pieces: list[int] = Field(description="passages of each piece")
    shards: list[DatastoreShard]
    sources: dict[str, int] = Field(description="passages of each source, deleted ones included")
    metadata_fields: list[str] = Field(description="keys of the documents' metadata, as shards of corpora begin")
    n_clusters: int = Field(description="near-duplicate clusters")
    n_trained: int = Field(description="rows of the store when its index was trained")
    index_kind: str = Field(description="flat, hnsw, ivf, ivf-pq or rabitq: what was built")
    factory: str = Field(description="the FAISS factory string")
    search_parameters: dict[str, int | float] = Field(description="nprobe, efSearch, k_factor … as tuned")
    recall: RecallReport
    candidates: list[dict[str, Any]] = Field(default=[], description="what `auto` tried, and why it chose")


class EvaluationManifest(Manifest):
    """What a datastore is worth: how well it finds, and what a language model makes of what it finds.

    ``files`` is scores.parquet: the scores of every query, which the report's means are taken over.
    """

    kind: Literal["evaluation"] = "evaluation"
    datastore: str = Field(description="ref of the datastore")
    n_rows: int = Field(description="scores")
    report: EvaluationReport


AnyManifest = Annotated[
    CorpusManifest
    | AttributesManifest
    | EmbeddingsManifest
    | IndexManifest
    | MixtureManifest
    | ResultsManifest
    | DatastoreManifest
    | EvaluationManifest,
    Field(discriminator="kind"),
]
MANIFEST_ADAPTER: TypeAdapter[AnyManifest] = TypeAdapter(AnyManifest)
"""Reads a manifest of any kind: ``MANIFEST_ADAPTER.validate_json(data)``."""
