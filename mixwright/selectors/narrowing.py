"""Conditions on a pool: sources without the documents that do not meet them.

A field of a condition is a column that a job made (an attribute), a column of the document or a key of its
metadata, looked for in this order, as everywhere in a pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mixwright.conditions import Condition, parse_condition
from mixwright.corpora import field_expression
from mixwright.errors import ConfigError, DataError, first_line
from mixwright.schemas.documents import DOCUMENT_COLUMNS
from mixwright.selectors.pool import Pool, Source

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Narrowed:
    """A pool without some documents; ``rows`` (n,) of each source are those that stay, None where all do."""

    pool: Pool
    rows: tuple[Int64Array | None, ...]

    def only(self, kept: Sequence[BoolArray | None]) -> Narrowed:
        """Fewer documents still: of each source those of a mask (n,), None for all."""
        sources, rows = [], []
        for source, before, mask in zip(self.pool.sources, self.rows, kept, strict=True):
            if mask is None or mask.all():
                sources.append(source)
                rows.append(before)
            else:
                here = np.flatnonzero(mask)
                sources.append(source.only(mask))
                rows.append(here if before is None else before[here])
        return Narrowed(replace(self.pool, sources=tuple(sources)), tuple(rows))


def narrowed(pool: Pool, where: str | None, source_where: Mapping[str, str]) -> Narrowed:
    """The documents that meet ``where``, and of each source those that meet its own condition too.

    Raises ConfigError for a condition that is not understood, names a field that no source has or is for no
    source; DataError for a source of which nothing is left.
    """
    names = [source.name for source in pool.sources]
    if strange := [name for name in source_where if name not in names]:
        raise ConfigError(f"source_where names {strange[0]}: the sources are {', '.join(names)}")
    shared = [] if where is None else [_condition(where, pool.sources)]
    kept: list[BoolArray | None] = []
    for source in pool.sources:
        own = source_where.get(source.name)
        conditions = [*shared, *([] if own is None else [_condition(own, [source])])]
        mask = _meets(source, conditions) if conditions else None
        if mask is not None and not source.n_tokens[mask].sum():
            texts = " and ".join(repr(text) for text in (where, own) if text is not None)
            raise DataError(
                f"source {source.name}: no document meets {texts}: leave the source out or change the condition"
            )
        kept.append(mask)
    return Narrowed(pool, (None,) * len(names)).only(kept)


def narrowing_report(before: Pool, after: Pool) -> list[dict[str, Any]]:
    """How many documents and tokens of each source there are, and how many are kept."""
    return [
        {
            "source": whole.name,
            "documents": len(whole.n_tokens),
            "tokens": int(whole.n_tokens.sum()),
            "kept_documents": len(part.n_tokens),
            "kept_tokens": int(part.n_tokens.sum()),
        }
        for whole, part in zip(before.sources, after.sources, strict=True)
    ]


def _condition(text: str, sources: Sequence[Source]) -> Condition:
    condition = parse_condition(text)
    for name in condition.fields:
        if not any(_has(source, name) for source in sources):
            raise ConfigError(
                f"the condition {text[:200]!r}: no source has a field {name!r}: there are "
                f"{', '.join(_known(sources))}"
            )
    return condition


def _has(source: Source, name: str) -> bool:
    if name in (*source.columns, *DOCUMENT_COLUMNS, *source.metadata_fields):
        return True
    # The fields that are known are those of some documents: look at all of them.
    found = source.frame.select(field_expression(name).is_not_null().any().alias("found"))
    try:
        return bool(found.collect().item())
    except pl.exceptions.PolarsError:
        # A name with control characters, which no path to a key can hold.
        return False


def _known(sources: Iterable[Source]) -> list[str]:
    own = {name for source in sources for name in (*source.attribute_names, *source.columns)}
    metadata = {name for source in sources for name in source.metadata_fields}
    return list(dict.fromkeys([*DOCUMENT_COLUMNS, *sorted(own), *sorted(metadata)]))


def _meets(source: Source, conditions: Sequence[Condition]) -> BoolArray:
    """Which documents (n,) meet all conditions."""
    fields = dict.fromkeys(name for each in conditions for name in each.fields)
    made = [source.columns[name].select(name) for name in fields if name in source.columns]
    rest = [_field(name) for name in fields if name not in source.columns]
    frames = [*made, *([source.frame.select(rest)] if rest else [])]
    frame = pl.concat(frames, how="horizontal") if len(frames) > 1 else frames[0]
    try:
        met = frame.select(kept=pl.all_horizontal([each.expression for each in conditions])).collect()
    except pl.exceptions.PolarsError as error:
        raise ConfigError(
            f"source {source.name}: its fields do not fit the condition ({first_line(error)}): compare each with "
            "a value of its own kind"
        ) from error
    return met["kept"].fill_null(value=False).to_numpy()


def _field(name: str) -> pl.Expr:
    return pl.col(name) if name in DOCUMENT_COLUMNS else field_expression(name).alias(name)
