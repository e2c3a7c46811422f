"""Domain tags: each document says where it comes from, for most of the training.

A model that sees the source's domain before a document learns which sources hold knowledge (Physics of Language
Models 3.3, section 10), and reaches the same quality with a third less data (MeCo). docs/selectors/domain-tags.md
has the presets' provenance and what the published experiments do not show.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import ConfigDict, Field

from mixwright.errors import DataError
from mixwright.schemas.mixtures import Budget, TagPlan, TagScope
from mixwright.selectors.baselines import (
    MaxEpochs,
    Proportional,
    Seed,
    Temperature,
    TemperatureValue,
    Uniform,
    UniMax,
    WeightedSelector,
)
from mixwright.selectors.cuts import one_stage, split_stages
from mixwright.selectors.mixture import Mixture, mix
from mixwright.selectors.pool import Pool, Source
from mixwright.selectors.tags import field_values, render
from mixwright.templates import template_fields

Int64Array = npt.NDArray[np.int64]
Preset = Literal["meco", "physics", "boc", "ctrl"]

PRESETS: dict[Preset, dict[str, Any]] = {
    # arXiv 2501.01956: template of section 2, loss on the document alone, last 10 % of the steps untagged.
    "meco": {"template": "URL: {domain}\n\n", "mask": True, "schedule": "cooldown"},
    # arXiv 2404.05405, section 10: the domain's name at the start of every piece; no mask, no cooldown given.
    "physics": {"template": "{domain} ", "mask": False, "scope": "paragraph", "schedule": "always"},
    # arXiv 2505.16570: the whole URL between two special tokens, empty for 10 % of the documents throughout.
    "boc": {
        "template": "<boc>{url}<eoc>",
        "empty": "<boc><eoc>",
        "mask": True,
        "schedule": "dropout",
        "special_tokens": ["<boc>", "<eoc>"],
    },
    # arXiv 1909.05858: one control code of the vocabulary before every training window, never a target.
    "ctrl": {
        "template": "<|{source}|>",
        "mask": True,
        "scope": "window",
        "schedule": "always",
        "as_token": True,
    },
}

KEPT_VALUES = "kept_values"
"""The mixture's table of the values that are common enough."""

ALWAYS_WARNING = (
    "every row is tagged: a model trained so expects a tag, and short prompts without one may do worse "
    "(arXiv 2504.17562); schedule=cooldown or dropout keeps part of the data plain"
)


class PreparedTags(NamedTuple):
    """The tags of a pool's documents, null where there is none, and the ``values`` of their fields, by source.

    ``kept`` has the values that are common enough, under ``min_docs``; ``eligible`` are the rows (m,) of each
    source that may be selected, None for all.
    """

    plan: TagPlan
    values: list[pl.DataFrame]
    tags: list[pl.Series]
    kept: pl.DataFrame | None
    eligible: list[Int64Array | None]

    @property
    def tables(self) -> dict[str, pl.DataFrame]:
        """What is published beside the plan."""
        return {} if self.kept is None else {KEPT_VALUES: self.kept}


@dataclass(frozen=True)
class TagForm:
    """A tag, by default the source's domain name, and when it stands before a document.

    ``preset`` fills every field that is not given.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}
    preset: Annotated[Preset, Field(description="published form that fills the fields left out")] = "meco"
    template: Annotated[str | None, Field(description="the tag, with {field} placeholders")] = None
    empty: Annotated[str | None, Field(description="what stands in place of a dropped tag")] = None
    mask: Annotated[bool | None, Field(description="no loss on the tag's tokens")] = None
    scope: Annotated[TagScope | None, Field(description="what each tag stands at the start of")] = None
    as_token: Annotated[bool | None, Field(description="each whole tag is one token of the vocabulary")] = None
    schedule: Annotated[
        Literal["cooldown", "dropout", "always"] | None, Field(description="when rows are tagged")
    ] = None
    cooldown: Annotated[float, Field(gt=0, lt=1, description="last share of the tokens, untagged")] = 0.1
    dropout: Annotated[float, Field(gt=0, lt=1, description="share of rows that lose their tag, by hash")] = 0.1
    missing: Annotated[
        Literal["plain", "unknown", "skip", "fail"],
        Field(description="a document without the field: untagged, tagged unknown, left out, or an error"),
    ] = "plain"
    unknown: Annotated[str, Field(min_length=1, description="value under missing=unknown")] = "unknown"
    min_docs: Annotated[int, Field(ge=0, description="a value of fewer documents counts as missing")] = 0

    def prepare(self, pool: Pool) -> PreparedTags:
        """The tags of the pool. Raises ConfigError for a bad template, DataError for what lacks its field."""
        plan = self.plan()
        names = template_fields(plan.template)
        values = [field_values(source.frame, names) for source in pool.sources]
        kept = _common_values(values, plan.min_docs) if plan.min_docs > 1 else None
        tags = [render(plan, frame, kept) for frame in values]
        self._refuse_missing(pool, plan, tags)
        eligible = [_tagged_rows(column) if plan.missing == "skip" else None for column in tags]
        if self._as_token():
            plan = plan.model_copy(update={"special_tokens": sorted(set(pl.concat(tags).drop_nulls()))})
        return PreparedTags(plan, values, tags, kept, eligible)

    def plan(self) -> TagPlan:
        """The tag plan: the preset's fields, and over them those that are given."""
        known = set(TagPlan.model_fields)
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name in known}
        preset = {name: value for name, value in PRESETS[self.preset].items() if name in known}
        # The dropped tag's form and the special tokens belong to the preset's own template.
        if self.template is not None:
            preset = {k: v for k, v in preset.items() if k not in ("empty", "special_tokens")}
        return TagPlan(**{**preset, **{name: value for name, value in given.items() if value is not None}})

    def _as_token(self) -> bool:
        preset = bool(PRESETS[self.preset].get("as_token", False)) and self.template is None
        return preset if self.as_token is None else self.as_token

    def _refuse_missing(self, pool: Pool, plan: TagPlan, tags: list[pl.Series]) -> None:
        total = sum(column.null_count() for column in tags)
        names = " and ".join(template_fields(plan.template))
        if plan.missing == "fail" and total:
            first = next(i for i, column in enumerate(tags) if column.null_count())
            source, row = pool.sources[first], int(tags[first].is_null().arg_max() or 0)
            raise DataError(
                f"{total:,} documents have no {names} (first: row {source.corpus_rows(np.array([row]))[0]} of "
                f"{source.name}): "
                "choose missing=plain, unknown or skip, or ingest them with a domain"
            )
        if total == sum(map(len, tags)):
            raise DataError(
                f"no document has a value for {names} (in {plan.min_docs} documents or more): check the "
                "template's fields and min_docs, or ingest with --domain or --domain-field"
            )


@dataclass(frozen=True)
class DomainTags(TagForm):
    """Prepends a tag, by default the source's domain name, to the documents of a mixture.

    ``preset`` fills every tag field that is not given. The mixture's weights come from ``weights``.
    """

    kind: Literal["domain-tags"] = "domain-tags"
    weights: Annotated[
        Literal["proportional", "uniform", "temperature", "unimax"], Field(description="share of each source")
    ] = "proportional"
    temperature: Annotated[TemperatureValue, Field(description="τ, under weights=temperature")] = 3.33
    max_epochs: MaxEpochs = 4.0
    seed: Seed = 0

    def select(self, pool: Pool, budget: Budget) -> Mixture:
        """Raises ConfigError for a bad template, DataError under missing=fail, ShortfallError."""
        prepared = self.prepare(pool)
        mixture = mix(
            pool,
            budget,
            self._weighted().weights(pool),
            selector=self.kind,
            max_epochs=self.max_epochs,
            seed=self.seed,
            eligible=prepared.eligible,
        )
        tagged = with_tags(tagged_stages(mixture, pool, prepared.plan), pool, prepared)
        return replace(tagged, report={"coverage": tagged.report["coverage"]})

    def _weighted(self) -> WeightedSelector:
        if self.weights == "temperature":
            return Temperature(temperature=self.temperature)
        return {"proportional": Proportional(), "uniform": Uniform(), "unimax": UniMax()}[self.weights]


def tagged_stages(mixture: Mixture, pool: Pool, plan: TagPlan) -> Mixture:
    """A mixture of one stage as the plan's schedule wants it: tagged, and under cooldown with a plain end."""
    if plan.schedule == "cooldown":
        return split_stages(mixture, pool, plan.cooldown)
    return one_stage(mixture, pool, "tagged", tagged=True)


def with_tags(mixture: Mixture, pool: Pool, prepared: PreparedTags) -> Mixture:
    """The mixture with the tags that its stages say."""
    warnings = (*mixture.warnings, *_schedule_warnings(prepared.plan, mixture))
    report = {**mixture.report, "coverage": coverage(pool, prepared)}
    return replace(mixture, tags=prepared.plan, tables=prepared.tables, report=report, warnings=warnings)


def coverage(pool: Pool, prepared: PreparedTags) -> dict[str, Any]:
    """What share of the pool can be tagged, by source and by field, and the 20 commonest values of each."""
    _, values, tags, kept, _ = prepared
    sources = [_source_coverage(source, column) for source, column in zip(pool.sources, tags, strict=True)]
    tokens = pl.Series("tokens", np.concatenate([source.n_tokens for source in pool.sources]))
    every, every_tag = pl.concat(values), pl.concat(tags)
    return {
        "documents": len(every_tag),
        "tagged_documents": len(every_tag) - every_tag.null_count(),
        "distinct_tags": every_tag.drop_nulls().n_unique(),
        "sources": sources,
        "fields": {name: _field_coverage(every[name], tokens, name, kept) for name in every.columns},
    }


def _source_coverage(source: Source, tags: pl.Series) -> dict[str, Any]:
    tagged = tags.is_not_null().to_numpy()
    return {
        "source": source.name,
        "documents": len(tags),
        "tagged_documents": int(tagged.sum()),
        "tagged_token_share": float(source.n_tokens[tagged].sum() / source.n_tokens.sum()),
        "distinct_tags": tags.drop_nulls().n_unique(),
    }


def _field_coverage(values: pl.Series, tokens: pl.Series, name: str, kept: pl.DataFrame | None) -> dict[str, Any]:
    table = (
        pl.DataFrame({"value": values, "tokens": tokens})
        .filter(pl.col("value").is_not_null())
        .group_by("value")
        .agg(documents=pl.len(), tokens=pl.col("tokens").sum())
        .sort(["documents", "value"], descending=[True, False])
    )
    rare = table.head(0)
    if kept is not None:
        common = kept.filter(pl.col("field") == name)["value"]
        rare = table.filter(~pl.col("value").is_in(common.implode()))
    return {
        "missing_documents": int(values.null_count()),
        "distinct_values": table.height,
        "rare_values": rare.height,
        "rare_documents": int(rare["documents"].sum()),
        "top_values": table.head(20).to_dicts(),
    }


def _common_values(values: list[pl.DataFrame], min_docs: int) -> pl.DataFrame:
    """Columns field and value: the values with at least ``min_docs`` documents in the pool."""
    every = pl.concat(values)
    counted = [
        every.group_by(pl.col(name).alias("value"))
        .len()
        .filter(pl.col("value").is_not_null() & (pl.col("len") >= min_docs))
        .select(pl.lit(name).alias("field"), pl.col("value"))
        for name in every.columns
    ]
    return pl.concat(counted).sort(["field", "value"])


def _tagged_rows(tags: pl.Series) -> Int64Array | None:
    if not tags.null_count():
        return None
    return np.flatnonzero(tags.is_not_null().to_numpy()).astype(np.int64)


def _schedule_warnings(plan: TagPlan, mixture: Mixture) -> list[str]:
    if plan.schedule == "always":
        return [ALWAYS_WARNING]
    if plan.schedule == "cooldown" and len(mixture.stages) == 1:
        return ["the mixture is too small for its cooldown: it holds no document of the last stage"]
    return []
