"""declared: the mixture that a person declares, by conditions, shares, stages and tags.

docs/selectors/declared.md has the parameters, docs/schedules.md the stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.conditions import parse_condition
from mixwright.errors import ConfigError, DataError, ShortfallError
from mixwright.schemas.mixtures import Budget
from mixwright.selectors.allocation import temperature_weights
from mixwright.selectors.baselines import source_tokens
from mixwright.selectors.counted import ability_stage, dmt_stages, mix_counts
from mixwright.selectors.cuts import one_stage
from mixwright.selectors.declaration import Declaration
from mixwright.selectors.domain_tags import PreparedTags, tagged_stages, with_tags
from mixwright.selectors.left_out import renumbered
from mixwright.selectors.mixture import Mixture, mix
from mixwright.selectors.named import shares_of, source_numbers
from mixwright.selectors.narrowing import Narrowed, narrowed, narrowing_report
from mixwright.selectors.pool import Pool, Requirements
from mixwright.selectors.schedules import AbilityCaps, Dmt, Wsd, stage_sizes, wsd_weights
from mixwright.selectors.stages import CountedStage, PlannedStage, mix_stages

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


class _Documents(NamedTuple):
    """What is selected from: the sources that are in some stage, as given and narrowed, and their tags."""

    given: Pool
    narrowed: Narrowed
    tags: PreparedTags | None
    eligible: Narrowed

    @property
    def pool(self) -> Pool:
        return self.eligible.pool


@dataclass(frozen=True)
class Declared(Declaration):
    """Shares, conditions, stages and tags as they are declared; nothing is learned from the documents."""

    kind: Literal["declared"] = "declared"

    def requirements(self) -> Requirements:
        """The fields of the conditions, where jobs made columns of them; raises ConfigError for a bad one."""
        texts = [*([self.where] if self.where is not None else []), *self.source_where.values()]
        return Requirements(
            attributes=tuple({name: None for text in texts for name in parse_condition(text).fields})
        )

    def own_budget(self, pool: Pool) -> Budget:
        """The budget of a declaration that says itself how much it serves; raises ConfigError for any other."""
        if isinstance(self.schedule, Dmt):
            stages, _ = dmt_stages(self._documents(pool).pool, self.schedule, self._flags(2))
            return Budget(documents=int(sum(each.counts.sum() for each in stages)))
        if (budget := self.stages_budget) is None:
            raise ConfigError(
                "the declaration does not say how much to select: give a budget in tokens or documents"
            )
        return budget

    def select(self, pool: Pool, budget: Budget) -> Mixture:
        """Raises ConfigError for what contradicts itself or the pool, DataError, ShortfallError."""
        if (own := self.stages_budget) is not None and own != budget:
            raise ConfigError(
                f"the stages serve {_said(own)} and the budget is {_said(budget)}: leave the budget out"
            )
        documents = self._documents(pool)
        mixture = self._mixture(pool, documents, budget)
        if documents.tags is not None:
            mixture = self._tagged(mixture, documents, documents.tags)
        report = dict(mixture.report)
        if self.where is not None or self.source_where:
            report["where"] = narrowing_report(documents.given, documents.narrowed.pool)
        rows = dict(zip((each.ref for each in documents.given.sources), documents.eligible.rows, strict=True))
        pairs = zip(mixture.components, mixture.selections, strict=True)
        selections = tuple(renumbered(selection, rows[component.source]) for component, selection in pairs)
        return replace(mixture, selections=selections, report=report)

    # Documents

    def _documents(self, pool: Pool) -> _Documents:
        ones = np.ones(len(pool.sources), dtype=np.int64)
        used = np.asarray(self._weights(pool, ones).any(axis=0))
        given = replace(
            pool, sources=tuple(each for each, is_used in zip(pool.sources, used, strict=True) if is_used)
        )
        named = source_numbers(pool, self.source_where, "source_where")
        conditions = {pool.sources[number].name: text for number, text in named.items() if used[number]}
        met = narrowed(given, self.where, conditions)
        if self.tags is None:
            return _Documents(given, met, None, met)
        prepared = self.tags.prepare(met.pool)
        masks = [
            None if rows is None else np.isin(np.arange(len(source.n_tokens)), rows)
            for source, rows in zip(met.pool.sources, prepared.eligible, strict=True)
        ]
        for source, mask in zip(met.pool.sources, masks, strict=True):
            if mask is not None and not source.n_tokens[mask].sum():
                raise DataError(
                    f"source {source.name}: no document has a tag: leave the source out or change missing"
                )
        return _Documents(given, met, prepared, met.only(masks))

    # Shares

    def _weights(self, pool: Pool, tokens: Int64Array) -> FloatArray:
        """Shares (stages, k) of each stage's tokens, by the sources' tokens (k,). Raises ConfigError."""
        names = [source.name for source in pool.sources]
        if isinstance(self.schedule, (Dmt, AbilityCaps)):
            return np.full((1, len(names)), 1 / len(names))
        if isinstance(self.schedule, Wsd):
            named = source_numbers(pool, self.schedule.decay_sources, "decay_sources")
            pretraining = np.asarray([number not in named for number in range(len(names))])
            if not pretraining.any():
                raise ConfigError("every source is in decay_sources: leave the pretraining sources out of them")
            base = self._base(pool, tokens, pretraining, complete=True)
            decay = shares_of(pool, self.schedule.decay_sources, "decay_sources")
            return np.stack(wsd_weights(base, decay, self.schedule.pretrain_share_in_decay))
        everywhere = np.ones(len(names), dtype=np.bool_)
        if not self.stages:
            return self._base(pool, tokens, everywhere, complete=True)[None]
        rows = [
            shares_of(pool, stage.weights, f"the weights of stage {stage.name}")
            if stage.weights
            else self._base(pool, tokens, everywhere, complete=False)
            for stage in self.stages
        ]
        weights = np.stack(rows)
        given = [self.weights, *(stage.weights for stage in self.stages)]
        left_out = {number for each in given for number in source_numbers(pool, each, "weights")}
        for number in np.flatnonzero(~weights.any(axis=0)).tolist():
            if number not in left_out:
                raise ConfigError(
                    f"source {names[number]} is in no stage: give it a share in one, or leave it out"
                )
        return weights

    def _base(
        self, pool: Pool, tokens: Int64Array, members: npt.NDArray[np.bool_], *, complete: bool
    ) -> FloatArray:
        """Shares (k,) of the sources that are ``members`` (k,), which all must be named if ``complete``."""
        if self.weights:
            named = source_numbers(pool, self.weights, "weights")
            for number, source in enumerate(pool.sources):
                if complete and members[number] and number not in named:
                    raise ConfigError(f"weights do not name {source.name}: give it a share, 0 leaves it out")
                if not members[number] and number in named:
                    raise ConfigError(f"{source.name} is in weights and in decay_sources: name it in one of them")
            return shares_of(pool, self.weights, "weights")
        shares = np.zeros(len(tokens))
        if self.unimax is not None:
            shares[members] = 1 / members.sum()
        else:
            shares[members] = temperature_weights(np.maximum(tokens[members], 1), self.temperature or 1.0)
        return shares

    # Stages

    def _mixture(self, pool: Pool, documents: _Documents, budget: Budget) -> Mixture:
        """The mixture of the eligible documents, with its stages."""
        here = documents.pool
        if isinstance(self.schedule, Dmt):
            stages, warnings = dmt_stages(here, self.schedule, self._flags(2))
            return replace(self._counted(here, budget, stages), warnings=warnings)
        if isinstance(self.schedule, AbilityCaps):
            stage, caps = ability_stage(here, budget, self.schedule, self.passes)
            mixture = self._counted(here, budget, [stage])
            return replace(mixture, report={**mixture.report, "caps": caps})
        refs = {source.ref: number for number, source in enumerate(pool.sources)}
        columns = [refs[source.ref] for source in here.sources]
        tokens = np.zeros(len(pool.sources), dtype=np.int64)
        tokens[columns] = source_tokens(here)
        weights = self._weights(pool, tokens)[:, columns]
        if len(weights) == 1 and not self.stages:
            return self._one_stage(here, budget, weights[0])
        planned = self._planned(weights, budget.tokens or budget.documents or 0)
        return mix_stages(here, budget, planned, selector=self.kind, max_epochs=self.passes, seed=self.seed)

    def _counted(self, pool: Pool, budget: Budget, stages: Sequence[CountedStage]) -> Mixture:
        return mix_counts(pool, budget, stages, selector=self.kind, max_epochs=self.passes, seed=self.seed)

    def _one_stage(self, pool: Pool, budget: Budget, weights: FloatArray) -> Mixture:
        mixture = mix(pool, budget, weights, selector=self.kind, max_epochs=self.passes, seed=self.seed)
        served = {component.source for component in mixture.components}
        for source, share in zip(pool.sources, weights.tolist(), strict=True):
            if source.ref not in served:
                raise ShortfallError(
                    f"the share of {source.name} is {share:.2g} of {_said(budget)}, less than a document: raise "
                    "the budget or leave the source out",
                    source=source.name,
                    largest_budget=None,
                )
        return one_stage(mixture, pool, "main", tagged=False)

    def _planned(self, weights: FloatArray, total: int) -> list[PlannedStage]:
        if isinstance(self.schedule, Wsd):
            names = ["stable", "decay"]
            sizes = stage_sizes([1 - self.schedule.decay_share, self.schedule.decay_share], total)
            flags = self._flags(2)
        else:
            names = [each.name for each in self.stages]
            shares = [each.share or each.tokens or each.documents or 0 for each in self.stages]
            sizes = stage_sizes(shares, total)
            tagged = self.tags is not None
            flags = [tagged if each.tagged is None else each.tagged for each in self.stages]
        return [
            PlannedStage(name, flag, size, row)
            for name, flag, size, row in zip(names, flags, sizes.tolist(), weights, strict=True)
        ]

    # Tags

    def _flags(self, n_stages: int) -> list[bool]:
        """Which stages of a schedule are tagged: under cooldown all but the last."""
        if self.tags is None:
            return [False] * n_stages
        return [True] * (n_stages - 1) + [self.tags.plan().schedule != "cooldown"]

    def _tagged(self, mixture: Mixture, documents: _Documents, prepared: PreparedTags) -> Mixture:
        if not self.stages and not isinstance(self.schedule, (Wsd, Dmt)):
            mixture = tagged_stages(mixture, documents.pool, prepared.plan)
        elif prepared.plan.schedule != "dropout":
            schedule = "always" if all(stage.tagged for stage in mixture.stages) else "stages"
            prepared = prepared._replace(plan=prepared.plan.model_copy(update={"schedule": schedule}))
        return with_tags(mixture, documents.narrowed.pool, prepared)


def _said(budget: Budget) -> str:
    return " ".join(f"{amount:,} {unit}" for unit, amount in budget.as_dict().items())
