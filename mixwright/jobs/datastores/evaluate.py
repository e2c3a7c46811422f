"""The evaluate job: how well a datastore finds, and what its passages are worth to a language model.

Queries with judgements give recall, nDCG and MRR over documents, and the recall of the index on queries that it
was not tuned on. With a model, queries with answers give the NLL of the answers with and without retrieval, and a
corpus of texts its perplexity.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from mixwright.indexes.datastores.datastore import Datastore
from mixwright.indexes.retrieval_metrics import mean_band
from mixwright.jobs.datastores.evaluation_inputs import (
    WORK_FOLDER,
    DrawnQueries,
    EvaluationInputs,
    Findings,
)
from mixwright.jobs.datastores.evaluation_search import (
    SEARCHED_AT_ONCE,
    PreparedQueries,
    document_rankings,
    find_hits,
    index_recall,
    prepare_queries,
)
from mixwright.jobs.datastores.language_scores import (
    LanguageModel,
    count_decontaminated,
    estimate,
    language_warnings,
    scoring_session,
    target_facts,
)
from mixwright.jobs.datastores.ranking_scores import (
    judged_documents,
    judgement_facts,
    query_facts,
    query_warnings,
    ranking_scores,
    retrieval_warnings,
    score_frame,
)
from mixwright.progress import Progress
from mixwright.schemas.datastores import SearchOptions
from mixwright.schemas.evaluations import (
    CUTOFF,
    EvaluateReport,
    EvaluateRequest,
    IndexRecallReport,
    LanguageMetric,
    LanguageReport,
    RetrievalReport,
    SpeedReport,
)
from mixwright.schemas.manifests import EvaluationManifest
from mixwright.store import Store

_TIMED = 1000
"""Queries whose answers are timed, at most."""


def run_evaluate(store: Store, request: EvaluateRequest, progress: Progress) -> EvaluationManifest:
    """Evaluate a datastore and publish the report; an equal one that is published already is returned.

    Raises NotFoundError for a missing datastore, corpus or model, DataError for queries that cannot be read or
    have nothing to be evaluated by, ConfigError for a window or a question that the model cannot read,
    ConflictError if another process is evaluating the same.
    """
    inputs = EvaluationInputs.open(store, request)
    existing = store.existing("evaluation", inputs.reference, inputs.identity)
    if isinstance(existing, EvaluationManifest):
        return existing
    metrics = inputs.language_metrics()
    with (
        store.stage("evaluation", inputs.reference, inputs.identity, resume=True) as staging,
        scoring_session(request),
    ):
        found = Findings()
        if inputs.queries is not None:
            _evaluate_queries(inputs, inputs.queries, found, progress)
        model = LanguageModel.open(store, inputs, staging.path / WORK_FOLDER, progress)
        if model is not None:
            found.report["language"] = [_evaluate_language(model, metric, found) for metric in metrics]
        report = EvaluateReport(
            datastore=inputs.store_facts,
            search=inputs.search_facts,
            texts=inputs.texts.manifest.ref if inputs.texts else None,
            **found.report,
        )
        return inputs.publish(store, staging, report, found, progress)


def _evaluate_queries(inputs: EvaluationInputs, drawn: DrawnQueries, found: Findings, progress: Progress) -> None:
    """Rankings against judgements, the index against exact search, and the speed."""
    datastore, request = inputs.datastore, inputs.request
    if request.mode != "bm25":
        # The encoder is loaded before the clock runs.
        datastore.encoder.encode([drawn.queries[0].text])
    start = time.perf_counter()
    prepared = prepare_queries(datastore, [query.text for query in drawn.queries], request.mode, progress)
    embedding_seconds = time.perf_counter() - start
    found.report["queries"] = facts = query_facts(drawn, prepared)
    found.warnings += query_warnings(facts)
    if inputs.judged_queries:
        _evaluate_rankings(inputs, prepared.part(inputs.judged_lines), found, progress)
    found.report["speed"] = SpeedReport(
        batch=SEARCHED_AT_ONCE,
        queries_per_second=_search_speed(datastore, prepared, inputs.search_options, request.k),
        embedded_per_second=None if request.mode == "bm25" else len(prepared) / embedding_seconds,
    )
    if request.mode != "bm25":
        found.report["index"] = _index_recall(datastore, prepared, request.k)


def _evaluate_rankings(
    inputs: EvaluationInputs, prepared: PreparedQueries, found: Findings, progress: Progress
) -> None:
    """Recall, nDCG and MRR of the judged queries, which are ``prepared``."""
    queries = inputs.judged_queries
    judged = judged_documents(inputs, queries, progress)
    found.report["judgements"] = facts = judgement_facts(queries, judged)
    found.warnings += retrieval_warnings(facts, inputs.request.id_field)
    k = inputs.request.k
    progress.start("search", total=len(queries), unit="queries")
    rankings = document_rankings(
        inputs.datastore, prepared.queries, inputs.search_options, max(k, CUTOFF), progress
    )
    scores = ranking_scores(rankings, queries, judged, k)
    found.scores += [
        score_frame(metric, 1.0, None, [query.id for query in queries], values)
        for metric, values in scores._asdict().items()
    ]
    found.report["retrieval"] = RetrievalReport(
        n_queries=len(queries),
        k=k,
        cutoff=CUTOFF,
        **{metric: estimate(mean_band(values)) for metric, values in scores._asdict().items()},
    )


def _search_speed(datastore: Datastore, prepared: PreparedQueries, options: SearchOptions, k: int) -> float:
    """Queries a second, once files are mapped and caches are warm."""
    timed = prepared.part(np.arange(min(len(prepared), _TIMED)))
    asked = options.model_copy(update={"k": k})
    find_hits(datastore, timed.part(np.arange(1)).queries, asked)
    start = time.perf_counter()
    find_hits(datastore, timed.queries, asked)
    return len(timed) / (time.perf_counter() - start)


def _index_recall(datastore: Datastore, prepared: PreparedQueries, k: int) -> IndexRecallReport:
    """The index as it was tuned, against a comparison with every vector."""
    found, exact = (
        find_hits(datastore, prepared.queries, SearchOptions(k=k, exact=exact)) for exact in (False, True)
    )
    recall = estimate(mean_band(index_recall(found, exact)))
    return IndexRecallReport(k=k, n_queries=len(prepared), recall=recall)


def _evaluate_language(model: LanguageModel, metric: LanguageMetric, found: Findings) -> LanguageReport:
    """NLL or perplexity, with retrieval and without."""
    inputs, k = model.inputs, model.inputs.request.passages
    targets = model.targets(metric)
    prepared = model.prepare(targets)
    options = inputs.search_options.model_copy(update={"k": k})
    rows = find_hits(inputs.datastore, prepared.queries, options, targets.forbidden).ids
    scores = model.score(targets, rows[None])
    n_decontaminated = count_decontaminated(inputs.datastore, targets, prepared, options)
    facts = target_facts(targets, prepared, n_decontaminated, scores.contexts.cuts)
    found.report["model"] = model.facts(scores.contexts.compute_dtype)
    found.warnings += language_warnings(metric, facts)
    [retrieved] = scores.retrieved
    found.scores += _language_frames(metric, targets.unit_ids, scores.alone, retrieved, scores.weights)
    return LanguageReport(
        metric=metric,
        passages=k,
        targets=facts,
        n_short=int((rows[:, -1] < 0).sum()),
        alone=scores.estimate(metric, scores.alone),
        retrieved=scores.estimate(metric, retrieved),
        change=scores.change(retrieved),
    )


def _language_frames(
    metric: str, ids: Sequence[str], alone: Any, retrieved: Any, weights: Any
) -> list[pl.DataFrame]:
    """NLL sums of every unit, over its tokens; without a probability those of the model alone."""
    return [
        score_frame(metric, probability, None, ids, totals, weights)
        for probability, totals in ((None, alone), (1.0, retrieved))
    ]
