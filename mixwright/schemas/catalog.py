"""What the catalog answers with: lists, lineage, rows of a corpus and statistics."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field

from mixwright.schemas.manifests import (
    AttributesManifest,
    CorpusManifest,
    DatastoreManifest,
    EmbeddingsManifest,
    EvaluationManifest,
    IndexManifest,
    Manifest,
    MixtureManifest,
    ResultsManifest,
)
from mixwright.schemas.references import Kind


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ComponentSummary(_Model):
    """One source's share of a mixture."""

    source: str = Field(description="ref of the corpus, name@version")
    weight: float = Field(description="share of the mixture's tokens")
    n_rows: int
    n_tokens: int
    epochs: float


class ArtifactSummary(_Model):
    """One line of a list; the whole manifest is at the artifact's own address."""

    kind: Kind
    ref: str = Field(description="name@version")
    name: str
    version: int
    fingerprint: str
    created_at: datetime
    n_rows: int
    n_tokens: int | None = Field(description="null where the kind has none")
    selector: str | None = Field(default=None, description="of a mixture")
    components: list[ComponentSummary] = Field(default=[], description="of a mixture")


class ManifestDetail(Manifest):
    """A manifest as the catalog shows it: with its ref."""

    @computed_field(description="name@version")  # type: ignore[prop-decorator]  # pydantic's own way to write it
    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


class CorpusDetail(ManifestDetail, CorpusManifest):
    """The manifest of a corpus."""


class AttributesDetail(ManifestDetail, AttributesManifest):
    """The manifest of attributes."""


class EmbeddingsDetail(ManifestDetail, EmbeddingsManifest):
    """The manifest of embeddings."""


class IndexDetail(ManifestDetail, IndexManifest):
    """The manifest of an index."""


class MixtureDetail(ManifestDetail, MixtureManifest):
    """The manifest of a mixture."""


class DatastoreDetail(ManifestDetail, DatastoreManifest):
    """The manifest of a datastore."""


class ResultsDetail(ManifestDetail, ResultsManifest):
    """The manifest of results."""


class EvaluationDetail(ManifestDetail, EvaluationManifest):
    """The manifest of an evaluation."""


class ResultRun(_Model):
    """One training: its mixture, its size in the unit of the results, and its score."""

    weights: dict[str, float] = Field(description="share of the tokens by source; they sum to 1")
    size: int
    score: float
    seed: int | None = Field(description="null where a table has none")
    seconds: float | None = Field(description="what it took; no part of the identity")


class PlotLinks(_Model):
    """A plot of an artifact, and the addresses of its files; add `?theme=dark` for a dark page."""

    name: str
    title: str
    caption: str
    svg: str
    png: str


class LineageNode(_Model):
    """An artifact in a lineage."""

    id: str = Field(description="kind:name@version")
    kind: Kind
    ref: str
    fingerprint: str
    exists: bool = Field(description="false where the artifact is no longer in the store")


class LineageEdge(_Model):
    """``source`` was an input of ``target``; both are ids of nodes."""

    source: str
    target: str


class Lineage(_Model):
    """Everything an artifact was made from, and everything made from it."""

    nodes: list[LineageNode]
    edges: list[LineageEdge]


class Feature(_Model):
    """A column of a page of rows."""

    feature_idx: int
    name: str
    type: dict[str, Any]


class Row(_Model):
    """A row of a corpus."""

    row_idx: int
    row: dict[str, Any]
    truncated_cells: list[str] = Field(description="columns whose value was cut; ask for fewer rows to get it")


class RowsPage(_Model):
    """A page of rows, with the field names of the Hugging Face dataset viewer."""

    features: list[Feature]
    rows: list[Row]
    num_rows_total: int
    num_rows_per_page: int
    partial: bool


class Distribution(_Model):
    """How a number is spread over the documents; ``quantiles`` by level, such as ``"0.5"``."""

    min: int
    max: int
    mean: float
    total: int
    quantiles: dict[str, float]


class HistogramBin(_Model):
    """Documents with ``low <= n_tokens < high``."""

    low: int
    high: int
    n_documents: int


class DomainCount(_Model):
    """Documents and tokens of one domain; null is no domain."""

    domain: str | None
    n_documents: int
    n_tokens: int


class CorpusStatistics(_Model):
    """Statistics over all rows of a corpus."""

    n_documents: int
    n_tokens: int
    n_text_bytes: int
    n_without_domain: int
    n_domains: int
    tokens: Distribution | None = Field(description="tokens of a document; null for a corpus without rows")
    token_histogram: list[HistogramBin] = Field(description="by powers of two")
    domains: list[DomainCount] = Field(description="the commonest 100 domains")
