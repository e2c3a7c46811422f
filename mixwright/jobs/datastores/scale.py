"""The scale job: scores against the size of a datastore, from one search of the whole of it.

A share of the store is what the hash of seed and key keeps (see ``datastore_scaling``), so that the hits of every
share are among the deep hits of the whole store: no smaller store is built. A language model is scored once on
every distinct context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from mixwright.errors import DataError
from mixwright.indexes.datastore_scaling import CurvePoint, scaling_curve
from mixwright.jobs.datastores.evaluation_inputs import (
    WORK_FOLDER,
    EvaluationInputs,
    Findings,
)
from mixwright.jobs.datastores.evaluation_search import PreparedQueries, prepare_queries
from mixwright.jobs.datastores.language_scores import (
    LanguageModel,
    count_decontaminated,
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
from mixwright.jobs.datastores.smaller_stores import ShareSizes, SmallerStores, share_sizes
from mixwright.progress import Progress
from mixwright.schemas.datastores import SearchOptions
from mixwright.schemas.evaluations import (
    CUTOFF,
    Curve,
    CurvePointReport,
    Estimate,
    LanguageMetric,
    ScaleReport,
    ScaleRequest,
    ScalingMetric,
)
from mixwright.schemas.manifests import EvaluationManifest
from mixwright.store import Store

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shares:
    """The shares of a curve, rising, the seeds that draw each, and how large they are."""

    probabilities: list[float]
    seeds: list[int]
    sizes: ShareSizes

    @property
    def cells(self) -> list[tuple[float, int]]:
        """Every share with every seed."""
        return list(product(self.probabilities, self.seeds))

    def by_share(self, values: Sequence[int]) -> Int64Array:
        """A number of each cell, as (P, S)."""
        return np.array(values, dtype=np.int64).reshape(len(self.probabilities), len(self.seeds))


def run_scale(store: Store, request: ScaleRequest, progress: Progress) -> EvaluationManifest:
    """Publish the curves of a datastore; equal ones that are published already are returned.

    Raises what ``run_evaluate`` raises, and DataError for a metric that the queries have nothing for.
    """
    inputs = EvaluationInputs.open(store, request)
    existing = store.existing("evaluation", inputs.reference, inputs.identity)
    if isinstance(existing, EvaluationManifest):
        return existing
    metrics = _metrics(inputs, request)
    with (
        store.stage("evaluation", inputs.reference, inputs.identity, resume=True) as staging,
        scoring_session(request),
    ):
        found, curves = Findings(), []
        shares = _shares(inputs, request)
        if inputs.queries is not None:
            texts = [query.text for query in inputs.queries.queries]
            prepared = prepare_queries(inputs.datastore, texts, request.mode, progress)
            found.report["queries"] = facts = query_facts(inputs.queries, prepared)
            found.warnings += query_warnings(facts)
            if {"recall", "ndcg"} & set(metrics):
                judged = prepared.part(inputs.judged_lines)
                curves += _retrieval_curves(inputs, request, metrics, judged, shares, found, progress)
        model = LanguageModel.open(store, inputs, staging.path / WORK_FOLDER, progress)
        if model is not None:
            chosen = [each for each in get_args(LanguageMetric) if each in metrics]
            curves += [_language_curve(model, metric, request, shares, found) for metric in chosen]
        report = ScaleReport(
            datastore=inputs.store_facts,
            search=inputs.search_facts,
            depth=0 if request.mode == "hybrid" else min(request.depth, inputs.datastore.manifest.n_rows),
            subsample_by=request.subsample_by,
            seeds=shares.seeds,
            texts=inputs.texts.manifest.ref if inputs.texts else None,
            curves=curves,
            **found.report,
        )
        found.warnings += _search_warnings(report)
        return inputs.publish(store, staging, report, found, progress)


def _metrics(inputs: EvaluationInputs, request: ScaleRequest) -> list[ScalingMetric]:
    """The metrics that are asked for, or all that the inputs allow."""
    possible: list[ScalingMetric] = list(inputs.language_metrics())
    if inputs.judged_queries:
        possible += ["recall", "ndcg"]
    for metric in request.metrics or []:
        if metric not in possible:
            lacks = "an answer" if metric == "answer_nll" else "a relevant document"
            raise DataError(f"{request.queries}: no query has {lacks}: add some, or leave {metric} out")
    return request.metrics or possible


def _shares(inputs: EvaluationInputs, request: ScaleRequest) -> Shares:
    probabilities, seeds = sorted(request.probabilities), list(range(request.seeds))
    return Shares(probabilities, seeds, share_sizes(inputs.datastore, request.subsample_by, probabilities, seeds))


def _retrieval_curves(
    inputs: EvaluationInputs,
    request: ScaleRequest,
    metrics: Sequence[ScalingMetric],
    prepared: PreparedQueries,
    shares: Shares,
    found: Findings,
    progress: Progress,
) -> list[Curve]:
    """Recall and nDCG of the judged queries in every share; what a share lacks counts as not found."""
    queries = inputs.judged_queries
    judged = judged_documents(inputs, queries, progress)
    found.report["judgements"] = facts = judgement_facts(queries, judged)
    found.warnings += retrieval_warnings(facts, request.id_field)
    options = _deep(inputs, request)
    stores = SmallerStores.search(inputs.datastore, prepared.queries, options, request.subsample_by, progress)
    cells = []
    progress.start("rank the documents of every share", total=len(shares.cells), unit="shares")
    for probability, seed in shares.cells:
        cells.append(stores.documents(probability, seed, max(request.k, CUTOFF)))
        progress.advance()
    scores = [ranking_scores(cell.rankings, queries, judged, request.k) for cell in cells]
    again = shares.by_share([cell.searched_again for cell in cells])
    curves = []
    for metric, k in (("recall", request.k), ("ndcg", CUTOFF)):
        if metric in metrics:
            short = shares.by_share([sum(len(each) < k for each in cell.rankings) for cell in cells])
            totals = np.stack([getattr(each, metric) for each in scores])
            points = scaling_curve(shares.probabilities, _cells(totals, shares), short)
            found.scores += _cell_frames(metric, shares, [query.id for query in queries], totals)
            curves.append(Curve(metric=metric, k=k, n_units=len(queries), points=_points(shares, points, again)))
    return curves


def _language_curve(
    model: LanguageModel, metric: LanguageMetric, request: ScaleRequest, shares: Shares, found: Findings
) -> Curve:
    """NLL of answers, or perplexity, behind what every share finds; the baseline is the model alone."""
    inputs, k = model.inputs, request.passages
    targets = model.targets(metric)
    prepared = model.prepare(targets)
    options = _deep(inputs, request)
    stores = SmallerStores.search(
        inputs.datastore, prepared.queries, options, request.subsample_by, model.progress, targets.forbidden
    )
    cells = [stores.passages(probability, seed, k) for probability, seed in shares.cells]
    scores = model.score(targets, np.stack([cell.rows for cell in cells]))
    n_decontaminated = count_decontaminated(
        inputs.datastore, targets, prepared, options.model_copy(update={"k": k})
    )
    facts = target_facts(targets, prepared, n_decontaminated, scores.contexts.cuts)
    found.report["model"] = model.facts(scores.contexts.compute_dtype)
    found.warnings += language_warnings(metric, facts)
    found.scores.append(score_frame(metric, None, None, targets.unit_ids, scores.alone, scores.weights))
    found.scores += _cell_frames(metric, shares, targets.unit_ids, scores.retrieved, scores.weights)
    totals = _cells(scores.retrieved, shares)
    n_short = shares.by_share([cell.n_short for cell in cells])
    points = scaling_curve(shares.probabilities, totals, n_short, scores.weights)
    changes = scaling_curve(shares.probabilities, totals - scores.alone, n_short, scores.weights)
    if metric == "perplexity":
        points = [point.exponential() for point in points]
    return Curve(
        metric=metric,
        k=k,
        n_units=len(targets.unit_ids),
        targets=facts,
        baseline=scores.estimate(metric, scores.alone),
        points=_points(shares, points, shares.by_share([cell.searched_again for cell in cells]), changes),
    )


def _deep(inputs: EvaluationInputs, request: ScaleRequest) -> SearchOptions:
    return inputs.search_options.model_copy(update={"k": request.depth})


def _cells(totals: Float64Array, shares: Shares) -> Float64Array:
    """Scores of cells (c, u) as (P, S, u)."""
    return totals.reshape(len(shares.probabilities), len(shares.seeds), -1)


def _cell_frames(
    metric: str, shares: Shares, ids: Sequence[str], totals: Float64Array, weights: Float64Array | None = None
) -> list[pl.DataFrame]:
    return [
        score_frame(metric, probability, seed, ids, each, weights)
        for (probability, seed), each in zip(shares.cells, totals, strict=True)
    ]


def _points(
    shares: Shares, points: Sequence[CurvePoint], again: Int64Array, changes: Sequence[CurvePoint] = ()
) -> list[CurvePointReport]:
    """The points of a curve with the sizes of their shares, and with their changes if there are any."""
    return [
        CurvePointReport(
            probability=point.probability,
            n_passages=float(shares.sizes.passages[i].mean()),
            n_tokens=float(shares.sizes.tokens[i].mean()),
            passages_by_seed=shares.sizes.passages[i].tolist(),
            tokens_by_seed=shares.sizes.tokens[i].tolist(),
            value=point.value,
            low=point.low,
            high=point.high,
            by_seed=list(point.by_seed),
            change=_estimate(changes[i]) if changes else None,
            searched_again=again[i].tolist(),
            short=list(point.short_queries),
        )
        for i, point in enumerate(points)
    ]


def _estimate(point: CurvePoint) -> Estimate:
    return Estimate(value=point.value, low=point.low, high=point.high)


def _search_warnings(report: ScaleReport) -> list[str]:
    if report.search.exact:
        return []
    return [
        "the index is approximate, and what it misses is not the same at every size: the curves are bent by that; "
        "use --exact"
    ]
