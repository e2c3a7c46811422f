"""What a PASER selection shows a person: its clusters, what consistency did, and how random would have done.

Everything here is JSON or a table that is published with the mixture; pages and plots are made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mixwright.hashing import keyed_hash
from mixwright.schemas.mixtures import Budget
from mixwright.selectors.allocation import fill
from mixwright.selectors.clustering import Clustering
from mixwright.selectors.consistency import CONFLICT, CONSISTENT, DUPLICATE, Conflicts
from mixwright.selectors.degradation import cluster_means
from mixwright.selectors.documents import Documents
from mixwright.selectors.filling import Filled
from mixwright.selectors.pool import Requirements

if TYPE_CHECKING:
    from mixwright.selectors.paser import Paser

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

DOCUMENTS_TABLE, LANDMARKS_TABLE = "documents", "landmarks"
"""A mixture's tables: every document of the pool with its cluster and fate, and what ``assign`` needs."""

RANDOM_SEEDS = 5
_REASONS = {CONSISTENT: "", DUPLICATE: "duplicate", CONFLICT: "conflict"}
_EXEMPLARS, _TERMS, _PAIRS, _SHOWN_CHARACTERS = 3, 8, 5, 160
_READ_FOR_TERMS = 300
"""Documents of a cluster whose prompts give its terms."""


@dataclass(frozen=True)
class Evidence:
    """What a selection goes by; arrays have one entry for each of the n documents."""

    documents: Documents
    labels: Int64Array
    clustering: Clustering
    scores: FloatArray
    values: FloatArray
    eligible: BoolArray

    @property
    def n_clusters(self) -> int:
        """Clusters, empty ones too."""
        return self.clustering.n_clusters

    @cached_property
    def degradation(self) -> FloatArray:
        """The mean score (k,) of each cluster's eligible documents: the capability degradation score."""
        return cluster_means(np.where(self.eligible, self.scores, np.nan), self.labels, self.n_clusters)

    def count(self, which: npt.NDArray[Any] | None = None, weights: npt.NDArray[Any] | None = None) -> Int64Array:
        """Documents of each cluster (k,), or their ``weights`` (n,), among ``which`` (a mask or numbers)."""
        where = slice(None) if which is None else which
        weighed = None if weights is None else weights[where]
        return np.bincount(self.labels[where], weights=weighed, minlength=self.n_clusters).astype(np.int64)


def paser_tables(evidence: Evidence, filled: Filled) -> dict[str, pl.DataFrame]:
    """The tables that are published with the mixture."""
    documents, clustering = evidence.documents, evidence.clustering
    names = [source.name for source in documents.pool.sources]
    selected = np.zeros(len(documents), dtype=np.bool_)
    selected[filled.chosen] = True
    left_out = pl.Series(filled.reasons).replace_strict(_REASONS, return_dtype=pl.String)
    return {
        DOCUMENTS_TABLE: pl.DataFrame(
            {
                "source": pl.Series(documents.source).replace_strict(
                    dict(enumerate(names)), return_dtype=pl.String
                ),
                "row": documents.corpus_row,
                "cluster": evidence.labels.astype(np.int32),
                "score": pl.Series(evidence.scores, dtype=pl.Float32).fill_nan(None),
                "efficiency": pl.Series(evidence.values, dtype=pl.Float32).fill_nan(None),
                "eligible": evidence.eligible,
                "left_out": left_out.replace("", None),
                "selected": selected,
            }
        ),
        LANDMARKS_TABLE: pl.DataFrame(
            {
                "cluster": clustering.landmark_labels.astype(np.int32),
                "vector": pl.Series(
                    clustering.landmarks, dtype=pl.Array(pl.Float32, clustering.landmarks.shape[1])
                ),
            }
        ),
    }


def read_clustering(directory: Path) -> Clustering:
    """The clustering of a published mixture, by which later documents are labelled."""
    table = pl.read_parquet(directory / f"{LANDMARKS_TABLE}.parquet")
    return Clustering(
        landmarks=table["vector"].to_numpy(),
        landmark_labels=table["cluster"].to_numpy().astype(np.int64),
        n_clusters=int(table["cluster"].to_numpy().max()) + 1,
    )


def paser_report(
    selector: Paser,
    evidence: Evidence,
    conflicts: Conflicts | None,
    filled: Filled,
    weights: FloatArray,
    budget: Budget,
) -> dict[str, Any]:
    """The report: see docs/selectors/paser.md for its fields."""
    documents = evidence.documents
    requirements = selector.requirements()
    return {
        "documents": {
            "distinct": len(documents),
            "repeated": sum(len(source.ids) for source in documents.pool.sources) - len(documents),
            "unscored": int((~np.isfinite(evidence.scores)).sum()),
            "eligible": int(evidence.eligible.sum()),
        },
        "settings": {"score_attribute": selector.score_attribute, **selector.settings()._asdict()},
        "clustering": {
            "mode": selector.mode,
            "n_clusters": evidence.n_clusters,
            "n_landmarks": len(evidence.clustering.landmarks),
            "candidates": list(evidence.clustering.candidates),
        },
        "clusters": _clusters(evidence, filled, weights, requirements),
        "consistency": _consistency(evidence, conflicts, filled, requirements),
        "comparison": _comparison(evidence, filled, budget),
    }


def _clusters(
    evidence: Evidence, filled: Filled, weights: FloatArray, requirements: Requirements
) -> list[dict[str, Any]]:
    tokens = evidence.documents.n_tokens
    chosen, relaxed = filled.chosen, filled.relaxed
    columns = {
        "documents": evidence.count(),
        "tokens": evidence.count(weights=tokens),
        "eligible_documents": evidence.count(evidence.eligible),
        "degradation": evidence.degradation,
        "weight": weights,
        "budget": filled.budgets,
        "selected_documents": evidence.count(chosen),
        "selected_tokens": evidence.count(chosen, tokens),
        "duplicates": evidence.count(filled.reasons == DUPLICATE),
        "conflicts": evidence.count(filled.reasons == CONFLICT),
        "relaxed": evidence.count(relaxed),
    }
    terms = _terms(evidence, requirements)
    return [
        {
            "cluster": number,
            **{name: column[number].item() for name, column in columns.items()},
            "top_terms": terms[number],
            "exemplars": _exemplars(evidence, chosen[evidence.labels[chosen] == number], number, requirements),
        }
        for number in range(evidence.n_clusters)
    ]


def _exemplars(
    evidence: Evidence, chosen: Int64Array, cluster: int, requirements: Requirements
) -> list[dict[str, Any]]:
    """The chosen documents nearest to the middle of the cluster's landmarks."""
    documents, clustering = evidence.documents, evidence.clustering
    sample = chosen[np.argsort(documents.ids[chosen])][:_READ_FOR_TERMS]
    if not len(sample):
        return []
    middle = clustering.landmarks[clustering.landmark_labels == cluster].mean(axis=0)
    near = sample[np.argsort(-(documents.rows(sample) @ middle), kind="stable")][:_EXEMPLARS]
    return [
        {
            "source": documents.pool.sources[documents.source[number]].name,
            "row": int(documents.corpus_row[number]),
            "score": float(evidence.scores[number]),
            "prompt": _shortened(text),
        }
        for number, text in zip(near.tolist(), documents.texts(requirements, "instruction", near), strict=True)
    ]


def _terms(evidence: Evidence, requirements: Requirements) -> list[list[str]]:
    """The words that set each cluster's prompts apart: class-based TF-IDF (Grootendorst, arXiv 2203.05794, Eq. 2).

    Words count once a prompt, so that a long one does not give all the terms.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    documents, texts, labels = evidence.documents, list[str](), list[int]()
    for cluster in range(evidence.n_clusters):
        members = np.flatnonzero(evidence.labels == cluster)
        sample = members[np.argsort(keyed_hash(documents.ids[members]), kind="stable")][:_READ_FOR_TERMS]
        texts += documents.texts(requirements, "instruction", np.sort(sample))
        labels += [cluster] * len(sample)
    vectorizer = CountVectorizer(stop_words="english", binary=True, token_pattern=r"(?u)\b[^\W\d_]{2,}\b")
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:  # no word in any prompt
        return [[] for _ in range(evidence.n_clusters)]
    words = vectorizer.get_feature_names_out()
    totals = np.asarray(counts.sum(axis=0)).ravel()
    found = []
    for cluster in range(evidence.n_clusters):
        here = counts[np.asarray(labels) == cluster]
        frequency = np.asarray(here.sum(axis=0)).ravel() / max(here.shape[0], 1)
        scores = frequency * np.log1p(counts.sum() / evidence.n_clusters / totals)
        best = np.argsort(-scores, kind="stable")[:_TERMS]
        found.append([str(words[place]) for place in best if scores[place] > 0])
    return found


def _consistency(
    evidence: Evidence,
    conflicts: Conflicts | None,
    filled: Filled,
    requirements: Requirements,
) -> dict[str, Any]:
    relaxed = filled.reasons[filled.relaxed]
    counts = {
        "duplicates": int((filled.reasons == DUPLICATE).sum()),
        "conflicts": int((filled.reasons == CONFLICT).sum()),
        "relaxed_duplicates": int((relaxed == DUPLICATE).sum()),
        "relaxed_conflicts": int((relaxed == CONFLICT).sum()),
    }
    if conflicts is None:
        return counts
    documents = evidence.documents
    against = conflicts.pairs[~conflicts.agree]
    against = against[np.argsort(documents.ids[against[:, 0]], kind="stable")][:_PAIRS]
    numbers = against.ravel()
    prompts = documents.texts(requirements, "instruction", numbers)
    responses = documents.texts(requirements, "response", numbers)
    examples = [
        {
            "prompts": [_shortened(text) for text in prompts[place : place + 2]],
            "responses": [_shortened(text) for text in responses[place : place + 2]],
        }
        for place in range(0, len(numbers), 2)
    ]
    return {**counts, "disagreeing_pairs": int((~conflicts.agree).sum()), "examples": examples}


def _comparison(evidence: Evidence, filled: Filled, budget: Budget) -> dict[str, Any]:
    """The selection beside as much drawn at random, with five seeds: mean score, length, clusters reached."""
    documents = evidence.documents
    eligible = np.flatnonzero(evidence.eligible)
    amounts = documents.n_tokens if budget.tokens else np.ones(len(documents), dtype=np.int64)
    total = budget.tokens or budget.documents or 0
    drawn = [
        fill(eligible[np.argsort(keyed_hash(documents.ids[eligible], seed), kind="stable")], amounts, total)
        for seed in range(RANDOM_SEEDS)
    ]
    return {
        "paser": _summary(evidence, filled.chosen),
        "random": [_summary(evidence, numbers) for numbers in drawn],
    }


def _summary(evidence: Evidence, numbers: Int64Array) -> dict[str, Any]:
    return {
        "documents": len(numbers),
        "tokens": int(evidence.documents.n_tokens[numbers].sum()),
        "mean_score": float(evidence.scores[numbers].mean()) if len(numbers) else None,
        "mean_efficiency": float(evidence.values[numbers].mean()) if len(numbers) else None,
        "clusters": int((evidence.count(numbers) > 0).sum()),
    }


def _shortened(text: str) -> str:
    """Start and end of a long text: what all prompts of a task share often comes first."""
    one_line = " ".join(text.split())
    if len(one_line) <= _SHOWN_CHARACTERS:
        return one_line
    end = _SHOWN_CHARACTERS // 3
    return f"{one_line[: _SHOWN_CHARACTERS - end]} … {one_line[-end:]}"
