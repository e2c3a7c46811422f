"""What an evaluation reads: the datastore, queries with their judgements, a corpus of texts, a language model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mixwright.corpora import Corpus
from mixwright.errors import DataError
from mixwright.fingerprint import fingerprint
from mixwright.hashing import keyed_hash
from mixwright.indexes.datastores.datastore import Datastore
from mixwright.jobs.judgements import EvaluationQuery, read_evaluation_queries
from mixwright.language_models.loading import LanguageModelSource, find_language_model
from mixwright.progress import Progress
from mixwright.schemas.datastores import SearchOptions
from mixwright.schemas.evaluations import (
    EvaluateReport,
    EvaluateRequest,
    LanguageMetric,
    ScaleReport,
    ScaleRequest,
    SearchFacts,
    StoreFacts,
)
from mixwright.schemas.manifests import ArtifactInput, EvaluationManifest
from mixwright.schemas.references import Reference, parse_reference
from mixwright.store import Staging, Store, software_versions

Int64Array = npt.NDArray[np.int64]

SCORES_FILE = "scores.parquet"
WORK_FOLDER = "work"
_LIBRARIES = ("torch", "transformers", "tokenizers", "faiss-cpu", "numpy", "ray")
_LONGEST_NAME = 128
_SUFFIX = {"evaluate": "evaluation", "scale": "scaling"}

_NOT_IDENTITY = {"kind", "name", "datastore", "queries", "texts", "model", "device", "workers", "batch_tokens"}
"""Fields of a request that are resources, or stand for something else: a file for what it says, say."""


@dataclass(frozen=True)
class DrawnQueries:
    """The queries that are asked, in the order of their file, and how many were left out."""

    path: str
    queries: list[EvaluationQuery]
    n_not_drawn: int
    n_unjudged: int


@dataclass
class Findings:
    """What is known so far: fields of the report, tables of scores, and warnings."""

    report: dict[str, Any] = field(default_factory=dict)
    scores: list[pl.DataFrame] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EvaluationInputs:
    """All that a request names, opened, and what identifies the evaluation."""

    request: EvaluateRequest | ScaleRequest
    datastore: Datastore
    queries: DrawnQueries | None
    texts: Corpus | None
    model: LanguageModelSource | None
    reference: Reference
    parameters: dict[str, Any]
    identity: str

    @classmethod
    def open(cls, store: Store, request: EvaluateRequest | ScaleRequest) -> EvaluationInputs:
        """Open what a request names.

        Raises NotFoundError for what is not there, DataError for queries that cannot be read or a datastore
        without passages.
        """
        datastore = Datastore.open(store, request.datastore)
        if not len(datastore):
            raise DataError(f"datastore {datastore.manifest.ref} has no passages left: name another version")
        queries = _draw(request.queries, request.limit, request.seed) if request.queries is not None else None
        texts = Corpus.open(store, request.texts) if request.texts is not None else None
        model = find_language_model(request.model) if request.model is not None else None
        parameters = request.model_dump(mode="json", exclude=_NOT_IDENTITY) | {
            "job": request.kind,
            "queries": queries
            and fingerprint("queries", [], {"queries": [asdict(each) for each in queries.queries]}),
            "model_revision": model and model.revision,
        }
        inputs = [datastore.manifest.fingerprint, *([texts.manifest.fingerprint] if texts else [])]
        name = f"{datastore.manifest.name}.{_SUFFIX[request.kind]}"[:_LONGEST_NAME]
        return cls(
            request,
            datastore,
            queries,
            texts,
            model,
            parse_reference(request.name or name),
            parameters,
            fingerprint("evaluation", inputs, parameters),
        )

    @property
    def search_options(self) -> SearchOptions:
        """The options of every search, but for how many hits."""
        request = self.request
        return SearchOptions(
            mode=request.mode,
            dedup=request.dedup,
            exact=request.exact,
            ngram=request.ngram,
            containment=request.containment,
            longest_run=request.longest_run,
        )

    @property
    def store_facts(self) -> StoreFacts:
        """The datastore, for the report."""
        manifest = self.datastore.manifest
        return StoreFacts(
            ref=manifest.ref,
            n_passages=len(self.datastore),
            n_documents=manifest.n_documents,
            n_tokens=manifest.n_tokens,
            encoder=manifest.encoder,
            index_kind=manifest.index_kind,
        )

    @property
    def search_facts(self) -> SearchFacts:
        """How it is searched, for the report."""
        request = self.request
        flat = self.datastore.manifest.index_kind == "flat"
        return SearchFacts(
            mode=request.mode,
            exact=request.exact or flat or request.mode == "bm25",
            dedup=request.dedup,
            decontaminate=request.decontaminate,
        )

    @property
    def judged_lines(self) -> Int64Array:
        """Which of the queries have a relevant document, (j,)."""
        queries = self.queries.queries if self.queries is not None else []
        return np.array([line for line, query in enumerate(queries) if query.has_relevant], dtype=np.int64)

    @property
    def judged_queries(self) -> list[EvaluationQuery]:
        """Those queries."""
        return [query for query in self.queries.queries if query.has_relevant] if self.queries else []

    def language_metrics(self) -> list[LanguageMetric]:
        """What the model can be scored on.

        Raises DataError where there is nothing to evaluate, or nothing for the model.
        """
        has_answers = self.queries is not None and any(query.answers for query in self.queries.queries)
        if self.model is None:
            if not self.judged_queries:
                raise DataError(
                    f"{self.request.queries}: no query has a relevant document: add judgements or the field "
                    "positives, or name a model that answers are scored with"
                )
            return []
        metrics: list[LanguageMetric] = ["answer_nll"] if has_answers else []
        metrics += ["perplexity"] if self.texts is not None else []
        if not metrics:
            raise DataError(
                f"{self.request.queries}: no query has an answer that the model could be scored on: add the field "
                "answers, name texts, or leave the model out"
            )
        return metrics

    def publish(
        self,
        store: Store,
        staging: Staging,
        report: EvaluateReport | ScaleReport,
        found: Findings,
        progress: Progress,
    ) -> EvaluationManifest:
        """Publish the report with its scores."""
        for warning in found.warnings:
            progress.note(f"warning: {warning}")
        scores = pl.concat(found.scores)
        scores.write_parquet(staging.path / SCORES_FILE)
        manifests = [self.datastore.manifest, *([self.texts.manifest] if self.texts else [])]
        draft = EvaluationManifest(
            name=self.reference.name,
            version=1,
            fingerprint=self.identity,
            inputs=[
                ArtifactInput(kind=each.kind, ref=each.ref, fingerprint=each.fingerprint) for each in manifests
            ],
            parameters=self.parameters,
            files=[staging.entry(SCORES_FILE, scores.height)],
            created_at=datetime.now(UTC),
            software=software_versions(*_LIBRARIES),
            warnings=found.warnings,
            datastore=self.datastore.manifest.ref,
            n_rows=scores.height,
            report=report,
        )
        return store.publish(staging, draft, (WORK_FOLDER,))


def _draw(path: str, limit: int | None, seed: int) -> DrawnQueries:
    """The queries of a file or folder, and of more than ``limit`` those with the smallest hashes."""
    found = read_evaluation_queries(path)
    queries = found.queries
    if limit is not None and limit < len(queries):
        draws = keyed_hash(np.arange(len(queries), dtype=np.uint64), seed)
        queries = [queries[number] for number in np.sort(np.argsort(draws, kind="stable")[:limit])]
    return DrawnQueries(path, queries, len(found.queries) - len(queries), found.n_unjudged)
