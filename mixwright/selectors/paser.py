"""PASER: the data that recovers a pruned model.

Zhang et al., arXiv 2502.12594: cluster the instructions by what they ask of a model, give each cluster a budget by
how much pruning degraded the model there, take from each the documents that teach most for their cost, and leave
out what contradicts. ``mode="paper"`` keeps the published formulas, as the reference to compare with; what they
get wrong and what stands in their place is in docs/selectors/paser.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from mixwright.errors import ConfigError, DataError
from mixwright.schemas.defaults import DEFAULT_ENCODER
from mixwright.schemas.mixtures import Budget
from mixwright.schemas.reads import EncoderName
from mixwright.selectors.baselines import Seed
from mixwright.selectors.clustering import Clustering, fit_clustering
from mixwright.selectors.consistency import CONSISTENT, Conflicts, find_conflicts, left_out, near_duplicates
from mixwright.selectors.degradation import Cost, Pick, Weight, cluster_weights, efficiency, pick_order
from mixwright.selectors.documents import Documents
from mixwright.selectors.filling import Filled, fill_clusters, fill_with_graph
from mixwright.selectors.mixture import Mixture, assemble, drawn_once, refuse_shortfall
from mixwright.selectors.paser_paper import paper_clustering
from mixwright.selectors.paser_report import Evidence, paser_report, paser_tables
from mixwright.selectors.pool import Pool, Requirements

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]


class Settings(NamedTuple):
    """The parameters that depend on the mode, resolved."""

    cost: Cost
    pick: Pick
    consistency: Literal["off", "paper", "conflict"]


_BY_MODE = {
    # What did best in the recovery experiment, see docs/selectors/paser.md.
    "landmarks": Settings("none", "sample", "conflict"),
    "paper": Settings("paper", "top", "paper"),
}


@dataclass(frozen=True)
class Paser:
    """Clusters the pool, and trains where the scores say that a model has lost most.

    Any numeric attribute can be the score; more means better to train on.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}
    kind: Literal["paser"] = "paser"
    clusters: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"], Field(description="number of clusters, or auto")
    ] = 10
    mode: Annotated[
        Literal["landmarks", "paper"],
        Field(description="paper: the published formulas, for a few thousand documents"),
    ] = "landmarks"
    score_attribute: Annotated[
        str, Field(min_length=1, description="attribute or metadata key that says how much a document is needed")
    ] = "jsd"
    weight: Annotated[
        Weight, Field(description="a cluster's share: its mean score (cds), times its size, or its size alone")
    ] = "cds"
    cost: Annotated[
        Cost | None,
        Field(description="a document's cost against its score; default: none, paper under mode=paper"),
    ] = None
    pick: Annotated[
        Pick | None,
        Field(
            description="inside a cluster: the best (top), or drawn by them; default: sample, top under mode=paper"
        ),
    ] = None
    consistency: Annotated[
        Literal["off", "paper", "conflict"] | None,
        Field(description="what leaves documents out; default: conflict, paper under mode=paper"),
    ] = None
    similarity: Annotated[
        float, Field(gt=0, le=1, description="cosine above which two prompts may ask the same, under conflict")
    ] = 0.95
    target_clusters: Annotated[tuple[int, ...], Field(description="only these clusters")] = ()
    target_sources: Annotated[tuple[str, ...], Field(description="only these sources")] = ()
    target_examples: Annotated[
        str | None, Field(description="corpus of examples: only the documents nearest to them")
    ] = None
    target_share: Annotated[
        float, Field(gt=0, le=1, description="share of the pool that is near, under target_examples")
    ] = 0.25
    encoder: Annotated[EncoderName, Field(description="name, hub id or local folder of the encoder")] = (
        DEFAULT_ENCODER
    )
    embed: Annotated[
        Literal["instruction", "response", "both"], Field(description="what of a document is clustered")
    ] = "instruction"
    prompt: Annotated[str | None, Field(description="template of the prompt; default: by the fields' names")] = (
        None
    )
    response: Annotated[str | None, Field(description="template of the response; default: likewise")] = None
    seed: Seed = 0

    def requirements(self) -> Requirements:
        """What is read besides the corpora: scores, lengths and vectors."""
        return Requirements(
            score=self.score_attribute,
            attributes=("n_prompt_tokens", "n_response_tokens"),
            encoder=self.encoder,
            part=self.embed,
            prompt=self.prompt,
            response=self.response,
            examples=self.target_examples,
        )

    def settings(self) -> Settings:
        """Cost, pick and consistency: as given, or those of the mode."""
        usual = _BY_MODE[self.mode]
        return Settings(self.cost or usual.cost, self.pick or usual.pick, self.consistency or usual.consistency)

    def select(self, pool: Pool, budget: Budget) -> Mixture:
        """Raises DataError without scores or vectors, ConfigError for a wrong target, ShortfallError."""
        documents = Documents.of(pool)
        scores = self._scores(documents)
        clustering, labels, nearest = self._cluster(documents)
        eligible = np.isfinite(scores) & self._targets(documents, labels, clustering.n_clusters)
        refuse_shortfall(pool, budget, documents.n_tokens[eligible], "the eligible")
        values = efficiency(scores, *self._lengths(documents), self.settings().cost)
        evidence = Evidence(documents, labels, clustering, scores, values, eligible)
        conflicts = self._conflicts(evidence, nearest) if self.settings().consistency == "conflict" else None
        filled, weights = self._fill(evidence, budget, conflicts)
        chosen = [
            np.sort(documents.row[filled.chosen][documents.source[filled.chosen] == number])
            for number in range(len(pool.sources))
        ]
        tokens = np.asarray([s.n_tokens[rows].sum() for s, rows in zip(pool.sources, chosen, strict=True)], float)
        selections = drawn_once(pool, chosen)
        return replace(
            assemble(pool, budget, tokens, selections, selector=self.kind, seed=self.seed),
            tables=paser_tables(evidence, filled),
            report=paser_report(self, evidence, conflicts, filled, weights, budget),
            warnings=self._warnings(evidence, filled),
        )

    def _scores(self, documents: Documents) -> FloatArray:
        documents.pool.refuse_unscored(self.score_attribute)
        scores = documents.attribute(self.score_attribute)
        if scores is None or not np.isfinite(scores).any():
            raise DataError(
                f"no document has a value of {self.score_attribute} that is a finite number: score again"
            )
        return np.where(np.isfinite(scores), scores, np.nan)

    def _cluster(self, documents: Documents) -> tuple[Clustering, Int64Array, Int32Array]:
        """The clustering, the label of each document (n,) and its nearest landmarks (n, c)."""
        if self.mode == "paper":
            clustering = paper_clustering(documents, n_clusters=self._number_of_clusters(), seed=self.seed)
            # Every document is its own landmark, and all may be compared with all.
            return clustering, clustering.landmark_labels, np.zeros((len(documents), 1), dtype=np.int32)
        clustering = fit_clustering(documents, n_clusters=self.clusters, seed=self.seed, device="auto")
        nearest, similarities = documents.map_vectors(clustering.nearest_landmarks)
        return clustering, clustering.vote(nearest, similarities), nearest

    def _number_of_clusters(self) -> int:
        if self.clusters == "auto":
            raise ConfigError("mode paper has a fixed number of clusters (10 in the paper): set clusters")
        return self.clusters

    def _lengths(self, documents: Documents) -> tuple[FloatArray, FloatArray]:
        """Tokens of prompt and response (n,) each; a document that was not counted apart is all response."""
        prompt, response = (documents.attribute(name) for name in ("n_prompt_tokens", "n_response_tokens"))
        if prompt is None or response is None:
            return np.zeros(len(documents)), documents.n_tokens.astype(np.float64)
        counted = np.isfinite(prompt) & np.isfinite(response)
        return np.where(counted, prompt, 0.0), np.where(counted, response, documents.n_tokens)

    def _targets(self, documents: Documents, labels: Int64Array, n_clusters: int) -> BoolArray:
        """Which documents (n,) the target parameters leave."""
        kept = np.ones(len(documents), dtype=np.bool_)
        if self.target_clusters:
            if unknown := [number for number in self.target_clusters if not 0 <= number < n_clusters]:
                raise ConfigError(
                    f"target_clusters: there is no cluster {unknown[0]}: they are 0 to {n_clusters - 1}"
                )
            kept &= np.isin(labels, self.target_clusters)
        if self.target_sources:
            names = [source.name for source in documents.pool.sources]
            if missing := [name for name in self.target_sources if name not in names]:
                raise ConfigError(f"target_sources: {missing[0]} is none of the sources {', '.join(names)}")
            kept &= np.isin(documents.source, [names.index(name) for name in self.target_sources])
        if self.target_examples is not None:
            near = nearness(documents)
            n_kept = math.ceil(self.target_share * len(documents))
            kept &= np.isin(np.arange(len(documents)), np.lexsort((documents.ids, -near))[:n_kept])
        return kept

    def _conflicts(self, evidence: Evidence, nearest: Int32Array) -> Conflicts:
        """The pairs of eligible documents that ask the same, as document numbers."""
        documents, numbers = evidence.documents, np.flatnonzero(evidence.eligible)
        pairs = near_duplicates(documents.where(evidence.eligible), nearest[numbers], self.similarity)
        touched, places = np.unique(pairs, return_inverse=True)
        requirements, rows = self.requirements(), numbers[touched]
        prompts = documents.texts(requirements, "instruction", rows)
        responses = documents.texts(requirements, "response", rows)
        found = find_conflicts(places.reshape(-1, 2), prompts, responses)
        return Conflicts(numbers[touched][found.pairs], found.agree)

    def _fill(self, evidence: Evidence, budget: Budget, conflicts: Conflicts | None) -> tuple[Filled, FloatArray]:
        """What is chosen, and the weights (k,) of the clusters."""
        documents, labels, eligible = evidence.documents, evidence.labels, evidence.eligible
        settings = self.settings()
        order = pick_order(evidence.values, documents.ids, settings.pick, self.seed)
        order = order[eligible[order]]
        amounts = documents.n_tokens if budget.tokens else np.ones(len(documents), dtype=np.int64)
        sizes = np.bincount(labels[eligible], weights=amounts[eligible], minlength=evidence.n_clusters)
        weights = cluster_weights(evidence.degradation, sizes.astype(np.int64), self.weight)
        total = budget.tokens or budget.documents or 0
        if settings.consistency == "paper":
            texts = documents.texts(self.requirements(), "both", order)
            return fill_with_graph(order, labels, weights, amounts, total, texts), weights
        reasons = np.full(len(documents), CONSISTENT, dtype=np.int8)
        if conflicts is not None:
            reasons = left_out(conflicts, evidence.values, documents.ids)
        return fill_clusters(order, labels, weights, amounts, total, reasons), weights

    def _warnings(self, evidence: Evidence, filled: Filled) -> tuple[str, ...]:
        found = []
        n_unscored = int((~np.isfinite(evidence.scores)).sum())
        if n_unscored:
            found.append(
                f"{n_unscored:,} of {len(evidence.documents):,} documents have no {self.score_attribute} and "
                "cannot be selected"
            )
        if len(filled.relaxed):
            found.append(
                f"{len(filled.relaxed):,} documents that consistency had left out were taken, since the budget "
                "could not be filled without them"
            )
        return tuple(found)


def nearness(documents: Documents) -> FloatArray:
    """The largest cosine of each document (n,) with one of the pool's examples."""
    examples = documents.pool.examples
    if examples is None or examples.vectors is None:
        raise DataError("the pool has no embedded examples: name a corpus of examples that is embedded")
    shown = examples.vectors.rows(np.arange(len(examples.vectors), dtype=np.int64))
    (near,) = documents.map_vectors(lambda vectors: ((vectors @ shown.T).max(axis=1).astype(np.float64),))
    return near
