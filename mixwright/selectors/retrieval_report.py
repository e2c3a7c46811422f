"""What a retrieval selection shows a person: where it is from, how near it is, which targets it serves.

Everything here is JSON or a table that is published with the mixture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from mixwright.hashing import keyed_hash
from mixwright.schemas.mixtures import Budget
from mixwright.selectors.allocation import fill
from mixwright.selectors.documents import Documents
from mixwright.selectors.pool import Requirements, Source
from mixwright.selectors.retrieval_turns import CosineArray, Taken, cosines, pieces

if TYPE_CHECKING:
    from mixwright.selectors.retrieval import Retrieval

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

RANKING_TABLE = "ranking"
"""A mixture's table: the chosen documents in the order in which they were taken, with what each added."""

RANDOM_SEEDS = 5
COVERED = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Cosines from which a target example counts as covered."""

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_LEAST_COVERED, _SHOWN_CHARACTERS = 5, 160


class Nearness(NamedTuple):
    """How near some documents (m,) are to the targets (t,), taken in order.

    ``nearest`` (m,) is each document's nearest target and ``similarity`` (m,) their cosine; ``best`` (t,) each
    target's best cosine with one of them, at least 0; ``gain`` (m,) what a document adds to the mean of those.
    """

    nearest: Int64Array
    similarity: CosineArray
    best: CosineArray
    gain: FloatArray


def nearness(documents: Documents, targets: FloatArray, numbers: Int64Array) -> Nearness:
    """How near the documents of the given numbers (m,) are to the targets (t, d)."""
    nearest, similarity = np.empty(len(numbers), dtype=np.int64), np.empty(len(numbers), dtype=np.float32)
    gain, best = np.empty(len(numbers)), np.zeros(len(targets), dtype=np.float32)
    for piece in pieces(len(numbers), len(targets)):
        found = cosines(documents.rows(numbers[piece]), targets)
        nearest[piece] = found.argmax(axis=1)
        similarity[piece] = found.max(axis=1)
        so_far = np.maximum.accumulate(np.vstack([best, found]), axis=0)
        gain[piece] = np.diff(so_far.mean(axis=1, dtype=np.float64))
        best = so_far[-1]
    return Nearness(nearest, similarity, best, gain)


@dataclass(frozen=True)
class Evidence:
    """What a selection goes by. ``target_rows`` (t,) are rows of ``examples``, ``targets`` (t, d) their vectors.

    ``eligible`` and ``clusters`` have one entry for each of the n documents.
    """

    documents: Documents
    examples: Source
    target_rows: Int64Array
    targets: FloatArray
    eligible: BoolArray
    clusters: Int64Array
    taken: Taken

    @property
    def n_blank(self) -> int:
        """Examples of the target without a vector."""
        return len(self.examples.ids) - len(self.target_rows)

    @cached_property
    def nearness(self) -> Nearness:
        """Of the chosen documents, in the order in which they were taken."""
        return nearness(self.documents, self.targets, self.taken.chosen)


def retrieval_tables(selector: Retrieval, evidence: Evidence) -> dict[str, pl.DataFrame]:
    """The tables that are published with the mixture."""
    documents, taken, near = evidence.documents, evidence.taken, evidence.nearness
    names = dict(enumerate(source.name for source in documents.pool.sources))
    turns = evidence.target_rows[taken.turns] if selector.rule == "round_robin" else None
    return {
        RANKING_TABLE: pl.DataFrame(
            {
                "source": pl.Series(documents.source[taken.chosen]).replace_strict(names, return_dtype=pl.String),
                "row": documents.corpus_row[taken.chosen],
                "turn_of": pl.Series(turns if turns is not None else [None] * len(taken.chosen), dtype=pl.Int64),
                "score": _scores(selector, evidence),
                "nearest_target": evidence.target_rows[near.nearest],
                "similarity": near.similarity,
                "gain": near.gain,
            }
        )
    }


def _scores(selector: Retrieval, evidence: Evidence) -> CosineArray:
    """What each chosen document was taken for (m,): the cosine with whose turn it was, or what ranked it."""
    chosen, turns = evidence.taken.chosen, evidence.taken.turns
    parts = [np.empty(0, dtype=np.float32)]
    for piece in pieces(len(chosen), len(evidence.targets)):
        found = cosines(evidence.documents.rows(chosen[piece]), evidence.targets)
        in_turns = selector.rule == "round_robin"
        parts.append(found[np.arange(len(found)), turns[piece]] if in_turns else selector.scores(found))
    return np.concatenate(parts)


def retrieval_report(
    selector: Retrieval, requirements: Requirements, evidence: Evidence, budget: Budget
) -> dict[str, Any]:
    """The report: see docs/selectors/retrieval.md for its fields."""
    documents, taken = evidence.documents, evidence.taken
    draws = [nearness(documents, evidence.targets, numbers) for numbers in _random(evidence, budget)]
    return {
        "documents": {
            "distinct": len(documents),
            "repeated": sum(len(source.ids) for source in documents.pool.sources) - len(documents),
            "in_target": int((~evidence.eligible).sum()),
            "left_out": len(taken.refused) - taken.relaxed,
            "relaxed": taken.relaxed,
        },
        "target": {
            "corpus": evidence.examples.ref,
            "examples": len(evidence.targets),
            "blank": evidence.n_blank,
        },
        "settings": {
            "rule": selector.rule,
            "neighbours": selector.neighbours,
            "dedup": selector.dedup,
            "dedup_threshold": selector.dedup_threshold,
            "in_clusters": _in_clusters(evidence.clusters),
        },
        "sources": _sources(evidence),
        "similarity": _quantiles(evidence.nearness.similarity, [each.similarity for each in draws]),
        "served": _served(evidence.nearness.best, [each.best for each in draws]),
        "gains": _gains(evidence.nearness.gain),
        "comparison": {
            "retrieval": _mean(evidence.nearness.best),
            "random": [_mean(each.best) for each in draws],
        },
        "least_covered": _least_covered(evidence, requirements),
    }


def _in_clusters(clusters: Int64Array) -> int:
    """How many documents share their near-duplicate cluster with another."""
    sizes = np.bincount(clusters[clusters >= 0])
    return int(sizes[sizes > 1].sum())


def _random(evidence: Evidence, budget: Budget) -> list[Int64Array]:
    """As much as the budget, drawn from the eligible documents, once a seed."""
    documents, eligible = evidence.documents, np.flatnonzero(evidence.eligible)
    amounts = documents.n_tokens if budget.tokens else np.ones(len(documents), dtype=np.int64)
    total = budget.tokens or budget.documents or 0
    return [
        fill(eligible[np.argsort(keyed_hash(documents.ids[eligible], seed), kind="stable")], amounts, total)
        for seed in range(RANDOM_SEEDS)
    ]


def _sources(evidence: Evidence) -> list[dict[str, Any]]:
    documents, chosen = evidence.documents, evidence.taken.chosen
    found = []
    for number, source in enumerate(documents.pool.sources):
        here, taken = documents.source == number, documents.source[chosen] == number
        found.append(
            {
                "source": source.name,
                "documents": int(here.sum()),
                "tokens": int(documents.n_tokens[here].sum()),
                "selected_documents": int(taken.sum()),
                "selected_tokens": int(documents.n_tokens[chosen[taken]].sum()),
                "mean_similarity": _mean(evidence.nearness.similarity[taken]),
            }
        )
    return found


def _quantiles(selected: CosineArray, random: list[CosineArray]) -> list[dict[str, Any]]:
    """Of the cosines with the nearest target: of what is selected, and of all random draws together."""
    drawn = np.concatenate(random)
    return [
        {
            "quantile": quantile,
            "selected": float(np.quantile(selected, quantile)) if len(selected) else None,
            "random": float(np.quantile(drawn, quantile)) if len(drawn) else None,
        }
        for quantile in QUANTILES
    ]


def _served(selected: CosineArray, random: list[CosineArray]) -> list[dict[str, Any]]:
    """How many targets have a document at least so near: in what is selected, and in the mean of the draws."""
    return [
        {
            "similarity": cosine,
            "selected": int((selected >= cosine).sum()),
            "random": float(np.mean([(best >= cosine).sum() for best in random])),
        }
        for cosine in COVERED
    ]


def _gains(gain: FloatArray) -> list[dict[str, Any]]:
    """The mean over the targets of the best cosine, after 1, 2, 4, … and all documents."""
    so_far = np.cumsum(gain)
    counts = sorted({*(1 << power for power in range(len(gain).bit_length())), len(gain)} - {0})
    return [{"documents": n, "mean_best": float(so_far[n - 1])} for n in counts]


def _least_covered(evidence: Evidence, requirements: Requirements) -> list[dict[str, Any]]:
    """The targets that the selection serves worst, by what they say."""
    examples, best = evidence.examples, evidence.nearness.best
    # Targets are sorted by id, so a stable order does not depend on their rows.
    worst = np.argsort(best, kind="stable")[:_LEAST_COVERED]
    texts = examples.texts(requirements.template(examples.metadata_fields), evidence.target_rows[worst])
    return [
        {"row": int(evidence.target_rows[number]), "similarity": float(best[number]), "text": _shortened(text)}
        for number, text in zip(worst.tolist(), texts, strict=True)
    ]


def _mean(values: CosineArray) -> float | None:
    return float(values.mean(dtype=np.float64)) if len(values) else None


def _shortened(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= _SHOWN_CHARACTERS else f"{one_line[:_SHOWN_CHARACTERS]} …"
