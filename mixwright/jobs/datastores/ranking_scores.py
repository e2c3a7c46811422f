"""How well the documents of a ranking are those that queries were judged to need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from mixwright.indexes.retrieval_metrics import ndcg_at, recall_at, reciprocal_rank_at
from mixwright.jobs.datastores.evaluation_inputs import DrawnQueries, EvaluationInputs
from mixwright.jobs.datastores.evaluation_search import JudgedDocuments, PreparedQueries, find_judged
from mixwright.jobs.judgements import EvaluationQuery
from mixwright.progress import Progress
from mixwright.schemas.evaluations import CUTOFF, JudgementFacts, QueryFacts

Float64Array = npt.NDArray[np.float64]

_SHOWN = 10


class RankingScores(NamedTuple):
    """recall@k, nDCG@10 and reciprocal rank of each query, (q,)."""

    recall: Float64Array
    ndcg: Float64Array
    mrr: Float64Array


def ranking_scores(
    rankings: Sequence[Sequence[int]], queries: Sequence[EvaluationQuery], judged: JudgedDocuments, k: int
) -> RankingScores:
    """Scores of rankings of documents, by key, for queries that each have a relevant one."""
    lines = []
    for documents, query in zip(rankings, queries, strict=True):
        ranking = judged.ranking(documents)
        relevance: dict[str | int, int] = dict(query.relevance.items())
        lines.append(
            (
                recall_at(ranking, relevance, k),
                ndcg_at(ranking, relevance, CUTOFF),
                reciprocal_rank_at(ranking, relevance, CUTOFF),
            )
        )
    return RankingScores(*np.array(lines, dtype=np.float64).reshape(-1, 3).T)


def judged_documents(
    inputs: EvaluationInputs, queries: Sequence[EvaluationQuery], progress: Progress
) -> JudgedDocuments:
    """The documents of the store that are relevant to some query."""
    ids = {name for query in queries for name, relevance in query.relevance.items() if relevance > 0}
    return find_judged(inputs.datastore, ids, inputs.request.id_field, progress)


def judgement_facts(queries: Sequence[EvaluationQuery], judged: JudgedDocuments) -> JudgementFacts:
    """The judgements, for a report."""
    return JudgementFacts(
        n_queries=len(queries),
        n_relevant=len(set(judged.names.values())) + len(judged.missing),
        n_missing=len(judged.missing),
        missing=judged.missing[:_SHOWN],
        n_ambiguous=judged.n_ambiguous,
    )


def query_facts(drawn: DrawnQueries, prepared: PreparedQueries) -> QueryFacts:
    """The queries, for a report."""
    return QueryFacts(
        path=drawn.path,
        n_queries=len(drawn.queries),
        n_left_out=drawn.n_not_drawn,
        n_unjudged=drawn.n_unjudged,
        n_truncated=int(prepared.truncated.sum()),
    )


def query_warnings(facts: QueryFacts) -> Iterator[str]:
    """What a reader of the scores should know of the queries."""
    if facts.n_truncated:
        yield (
            f"{facts.n_truncated:,} of {facts.n_queries:,} queries are longer than the encoder reads: they were "
            "searched for by their start"
        )


def retrieval_warnings(facts: JudgementFacts, id_field: str) -> Iterator[str]:
    """What a reader of the scores should know of the judgements."""
    if facts.n_missing:
        yield (
            f"{facts.n_missing:,} of {facts.n_relevant:,} relevant documents are not in the store, "
            f"{facts.missing[0]} for instance: they count as not found; ids are looked for in {id_field}, see "
            "--id-field"
        )
    if facts.n_ambiguous:
        yield (
            f"{facts.n_ambiguous:,} ids are those of several documents: whichever is found counts; build the "
            "store of corpora whose ids differ"
        )


def score_frame(
    metric: str,
    probability: float | None,
    seed: int | None,
    ids: Sequence[str],
    totals: Float64Array,
    weights: Float64Array | None = None,
) -> pl.DataFrame:
    """Scores of queries or documents (u,), as scores.parquet has them: the mean is Σ total / Σ weight."""
    n = len(ids)
    return pl.DataFrame(
        {
            "metric": pl.Series([metric] * n, dtype=pl.String),
            "probability": pl.Series([probability] * n, dtype=pl.Float64),
            "seed": pl.Series([seed] * n, dtype=pl.Int64),
            "id": pl.Series(list(ids), dtype=pl.String),
            "total": pl.Series(totals, dtype=pl.Float64),
            "weight": pl.Series(np.ones(n) if weights is None else weights, dtype=pl.Float64),
        }
    )
