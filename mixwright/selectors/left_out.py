"""Documents that a selection leaves out whatever the selector: near-duplicates, and what is contaminated.

Attributes say which they are. Selectors see a pool without them and count its rows; the mixture has the corpora's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.errors import DataError
from mixwright.selectors.mixture import Mixture, Selection
from mixwright.selectors.pool import Pool, Source

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]
KeepOrDrop = Literal["keep", "drop"]


class Exclusion(NamedTuple):
    """The boolean attribute that says which documents stay, with the value of those, and the job that makes it."""

    column: str
    stays: bool
    command: str


NEAR_DUPLICATES = Exclusion("duplicate_first", True, "mixwright near-duplicates {ref}")
CONTAMINATED = Exclusion("contaminated", False, "mixwright decontaminate {ref} --against EVALUATIONS")


def leave_out(pool: Pool, exclusions: Sequence[Exclusion]) -> Pool:
    """The pool without the documents that any of the exclusions names.

    Without near-duplicates, of a text that is in several sources the first source keeps it. Raises DataError for a
    source without the attribute, with the command that makes it, and for one of which nothing stays.
    """
    if not exclusions:
        return pool
    sources: list[Source] = []
    seen = np.empty(0, dtype=np.uint64)
    for source in pool.sources:
        stays = np.logical_and.reduce([_stays(source, each) for each in exclusions])
        if NEAR_DUPLICATES in exclusions:
            stays &= ~np.isin(source.ids, seen)
        if not stays.any():
            columns = " and ".join(each.column for each in exclusions)
            raise DataError(f"source {source.name}: no document is left by {columns}: leave the source out")
        seen = np.concatenate([seen, source.ids[stays]])
        sources.append(source.only(stays))
    return replace(pool, sources=tuple(sources))


def in_corpora(mixture: Mixture, pool: Pool) -> Mixture:
    """The mixture with rows of the corpora in place of rows of the pool's sources."""
    sources = {source.ref: source for source in pool.sources}
    pairs = zip(mixture.components, mixture.selections, strict=True)
    return replace(mixture, selections=tuple(renumbered(each, sources[part.source].stays) for part, each in pairs))


def renumbered(selection: Selection, numbers: Int64Array | None) -> Selection:
    """The selection with ``numbers`` (n,) for its row numbers; None changes nothing."""
    if numbers is None:
        return selection
    rows = numbers if selection.rows is None else numbers[selection.rows]
    return replace(selection, rows=rows, remainder=numbers[selection.remainder])


def _stays(source: Source, exclusion: Exclusion) -> BoolArray:
    column = source.columns.get(exclusion.column)
    if column is None:
        command = exclusion.command.format(ref=source.ref)
        raise DataError(f"source {source.name} has no attribute {exclusion.column}: run  {command}  first")
    values = column.select(exclusion.column).collect().to_series()
    return np.asarray(values.to_numpy() == exclusion.stays)
