"""retrieval: the documents that are nearest to a target set.

The cosine between the vectors of a document and of a target example says how much alike they are. Ivison et al.,
arXiv 2503.01807 (RDS+), found that choosing by it holds up against costlier methods in large pools, and let the
examples take turns, so that none of them gets the whole budget. docs/selectors/retrieval.md has the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import ConfigDict, Field

from mixwright.errors import ConfigError, DataError
from mixwright.hashing import keyed_hash
from mixwright.schemas.defaults import DEFAULT_ENCODER
from mixwright.schemas.mixtures import Budget
from mixwright.schemas.reads import EncoderName
from mixwright.selectors.baselines import Seed
from mixwright.selectors.documents import Documents
from mixwright.selectors.mixture import Mixture, assemble, drawn_once, refuse_shortfall
from mixwright.selectors.pool import Pool, Requirements, RowFunction, Source, vectors_of
from mixwright.selectors.retrieval_report import Evidence, retrieval_report, retrieval_tables
from mixwright.selectors.retrieval_turns import (
    CosineArray,
    Lists,
    Repeats,
    Taken,
    cosines,
    nearest_lists,
    pieces,
    take_turns,
)

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

CLUSTER_ATTRIBUTE = "duplicate_cluster"
"""Attribute with a name that all near-duplicates of a document share."""


@dataclass(frozen=True)
class Retrieval:
    """The documents nearest to the examples of a target corpus: what the model will be judged on, say.

    A text that is itself in the target is never taken.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}
    kind: Literal["retrieval"] = "retrieval"
    target: Annotated[str, Field(description="corpus of examples of what is wanted")] = ""
    rule: Annotated[
        Literal["round_robin", "max", "mean"],
        Field(description="examples take turns, or documents are ranked by their largest or mean cosine"),
    ] = "round_robin"
    neighbours: Annotated[
        int | None, Field(ge=1, description="under mean: over so many nearest examples; default: all")
    ] = None
    dedup: Annotated[bool, Field(description="leave out what repeats a chosen document, while there is other")] = (
        True
    )
    dedup_threshold: Annotated[
        float, Field(gt=0, le=1, description="cosine from which two documents repeat each other, under dedup")
    ] = 0.95
    encoder: Annotated[EncoderName, Field(description="name, hub id or local folder of the encoder")] = (
        DEFAULT_ENCODER
    )
    embed: Annotated[
        Literal["instruction", "response", "both"], Field(description="what of a document is compared")
    ] = "both"
    prompt: Annotated[str | None, Field(description="template of the prompt; default: by the fields' names")] = (
        None
    )
    response: Annotated[str | None, Field(description="template of the response; default: likewise")] = None
    seed: Seed = 0

    def requirements(self) -> Requirements:
        """What is read besides the corpora: vectors, the target, clusters; raises ConfigError without a target."""
        if not self.target:
            raise ConfigError("retrieval has no target: name a corpus of examples by target")
        return self._reads()

    def _reads(self) -> Requirements:
        return Requirements(
            attributes=(CLUSTER_ATTRIBUTE,) if self.dedup else (),
            encoder=self.encoder,
            part=self.embed,
            prompt=self.prompt,
            response=self.response,
            examples=self.target or None,
        )

    def select(self, pool: Pool, budget: Budget) -> Mixture:
        """Raises DataError without a target or vectors, ConfigError for a contradiction, ShortfallError."""
        if self.neighbours is not None and self.rule != "mean":
            raise ConfigError(f"neighbours is for rule=mean, not {self.rule}: leave it out")
        documents = Documents.of(pool)
        examples, rows, targets = target_vectors(pool)
        eligible = ~np.isin(documents.ids, examples.ids)
        if not eligible.any():
            raise DataError(f"every document of the pool is in the target {examples.ref}: add other sources")
        refuse_shortfall(pool, budget, documents.n_tokens[eligible], "the eligible")
        clusters = duplicate_clusters(documents) if self.dedup else np.full(len(documents), -1, dtype=np.int64)
        taken = self._take(documents, examples.ids[rows], targets, eligible, clusters, budget)
        evidence = Evidence(documents, examples, rows, targets, eligible, clusters, taken)
        chosen = [
            np.sort(documents.row[taken.chosen][documents.source[taken.chosen] == number])
            for number in range(len(pool.sources))
        ]
        tokens = np.asarray([s.n_tokens[rows].sum() for s, rows in zip(pool.sources, chosen, strict=True)], float)
        mixture = assemble(pool, budget, tokens, drawn_once(pool, chosen), selector=self.kind, seed=self.seed)
        return replace(
            mixture,
            tables=retrieval_tables(self, evidence),
            report=retrieval_report(self, self._reads(), evidence, budget),
            warnings=self._warnings(evidence),
        )

    def _take(
        self,
        documents: Documents,
        target_ids: npt.NDArray[np.uint64],
        targets: FloatArray,
        eligible: BoolArray,
        clusters: Int64Array,
        budget: Budget,
    ) -> Taken:
        """What is chosen: by the targets in turns, or from one list of all documents."""
        amounts = documents.n_tokens if budget.tokens else np.ones(len(documents), dtype=np.int64)
        total = budget.tokens or budget.documents or 0
        repeats = Repeats(documents, self.dedup_threshold, clusters) if self.dedup else None
        if self.rule == "round_robin":
            order = np.argsort(keyed_hash(target_ids, self.seed), kind="stable")

            def make_lists(wanted: BoolArray, length: int) -> Lists:
                return nearest_lists(documents, targets, wanted, length)

            return take_turns(make_lists, order, amounts, total, eligible, repeats)
        (scores,) = documents.map_vectors(row_scores(self, targets))
        ranking = np.argsort(-scores, kind="stable")

        def one_list(wanted: BoolArray, length: int) -> Lists:
            return Lists(ranking[wanted[ranking]][None], complete=True)

        return take_turns(one_list, np.zeros(1, dtype=np.int64), amounts, total, eligible, repeats)

    def scores(self, similarities: CosineArray) -> CosineArray:
        """What ranks documents under the rules max and mean (b,), from their cosines (b, t) with the targets."""
        if self.rule != "mean":
            return np.asarray(similarities.max(axis=1))
        n = min(self.neighbours or similarities.shape[1], similarities.shape[1])
        # Sorted, so that the order of the targets does not reach the last bits of the sum.
        nearest = np.sort(similarities, axis=1)[:, -n:]
        return np.asarray(nearest.mean(axis=1, dtype=np.float64), dtype=np.float32)

    def _warnings(self, evidence: Evidence) -> tuple[str, ...]:
        found, taken = [], evidence.taken
        if n_same := int((~evidence.eligible).sum()):
            found.append(f"{n_same:,} documents of the pool are in the target themselves and were left out")
        if n_near := int((evidence.nearness.similarity >= self.dedup_threshold).sum()):
            found.append(
                f"{n_near:,} chosen documents have a cosine of {self.dedup_threshold:g} or more with a target "
                "example: if the target is what you evaluate on, look at them"
            )
        if taken.relaxed:
            found.append(
                f"{taken.relaxed:,} documents that dedup had left out were taken, since the budget could not be "
                "filled without them"
            )
        if evidence.n_blank:
            found.append(f"{evidence.n_blank:,} target examples have no text to compare with and take no turns")
        return tuple(found)


def target_vectors(pool: Pool) -> tuple[Source, Int64Array, FloatArray]:
    """The target corpus, the rows (t,) there that have a vector, sorted by id, and those vectors (t, d).

    Raises DataError without a target, or with one of which no example has a vector.
    """
    examples = pool.examples
    if examples is None:
        raise DataError("the pool has no target: name a corpus of examples by target")
    rows = np.argsort(examples.ids, kind="stable")
    vectors = vectors_of(examples).rows(rows).astype(np.float64)
    # An encoder finds nothing to read in some texts and gives them zeros.
    there = vectors.any(axis=1)
    if not there.any():
        raise DataError(f"no example of the target {examples.ref} has text to compare with: name another corpus")
    return examples, rows[there], vectors[there]


def row_scores(selector: Retrieval, targets: FloatArray) -> RowFunction:
    """A function from vectors (b, d) to their scores (b,) under the rules max and mean."""

    def scores(vectors: CosineArray) -> tuple[CosineArray]:
        parts = [selector.scores(cosines(vectors[piece], targets)) for piece in pieces(len(vectors), len(targets))]
        return (np.concatenate(parts),)

    return scores


def duplicate_clusters(documents: Documents) -> Int64Array:
    """The number of each document's near-duplicate cluster (n,), −1 where it has none.

    Clusters are the values of the attribute ``duplicate_cluster``; equal values of two sources are one cluster.
    """
    values = [_cluster_names(source) for source in documents.pool.sources]
    codes = pl.concat(values).rank("dense").fill_null(0).to_numpy().astype(np.int64) - 1
    ends = np.cumsum([len(each) for each in values])
    starts = ends - [len(each) for each in values]
    return codes[starts[documents.source] + documents.row]


def _cluster_names(source: Source) -> pl.Series:
    if CLUSTER_ATTRIBUTE in source.columns:
        frame = source.columns[CLUSTER_ATTRIBUTE].select(pl.col(CLUSTER_ATTRIBUTE).cast(pl.String)).collect()
        return frame.to_series()
    return source.fields([CLUSTER_ATTRIBUTE]).to_series()
