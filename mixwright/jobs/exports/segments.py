"""Rows as pieces of text or as token labels, for trainers that can leave a tag out of the loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from mixwright.jobs.exports.format import Export
from mixwright.jobs.exports.indexed import NO_LOSS
from mixwright.jobs.exports.tokens import lengths_of
from mixwright.schemas.mixtures import TagPlan
from mixwright.selectors.tags import paragraphs

DEFAULT_LENGTH = 2_048
"""Tokens a training sequence where the user names no length."""


def segments(plan: TagPlan | None, tag: str, text: str) -> list[dict[str, Any]]:
    """A row as pieces ``{label, text}`` that join to it; ``label`` is false where no loss is counted.

    A tag is a piece of its own, before the document or before each of its paragraphs, as the plan says.
    """
    if plan is None or not tag:
        return [{"label": True, "text": text}]
    pieces = paragraphs(text) if plan.scope == "paragraph" else [text]
    return [
        each
        for piece in pieces
        for each in ({"label": not plan.mask, "text": tag}, {"label": True, "text": piece})
    ]


def tagged_rows(table: pa.Table) -> list[tuple[str, str]]:
    """Tag and text of each row."""
    return list(zip(table["tag_text"].to_pylist(), table["text"].to_pylist(), strict=True))


def labels(table: pa.Table) -> pa.Array:
    """Token ids of each row (m,), ``NO_LOSS`` where the loss mask is false; not shifted."""
    ids, mask = table["input_ids"].combine_chunks(), table["loss_mask"].combine_chunks()
    values = np.where(
        mask.flatten().to_numpy(zero_copy_only=False), ids.flatten().to_numpy(zero_copy_only=False), NO_LOSS
    )
    ends = np.concatenate([[0], np.cumsum(lengths_of(table))])
    return pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values.astype(np.int32)))


def stage_rows(export: Export, number: int, *, tokenized: bool = False) -> Iterator[pa.Table]:
    """Tables of one stage's rows in the order in which the mixture serves them, all components together."""
    stages = export.manifest.stages
    start = sum(stage.n_rows for stage in stages[:number])
    tokenization = export.tokenization if tokenized else None
    for table in export.stream.read(start, stages[number].n_rows, tokenization=tokenization):
        yield table
        export.progress.advance(table.num_rows)


class LongRows:
    """Counts the rows that are longer than a training sequence: by their tokens, or their text's as ingested."""

    def __init__(self, export: Export) -> None:
        self.length = export.options.sequence_length or DEFAULT_LENGTH
        self._export = export
        self._n_rows = 0

    def counted(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The same tables."""
        for table in tables:
            tokenized = "input_ids" in table.column_names
            lengths = lengths_of(table) if tokenized else table["n_tokens"].to_numpy()
            self._n_rows += int((lengths > self.length).sum())
            yield table

    def warn(self, trainer: str, what: str) -> None:
        """Say what the trainer does with them, if there are any."""
        if self._n_rows:
            self._export.warn(
                f"{self._n_rows:,} rows are longer than a training sequence of {self.length:,} tokens: {trainer} "
                f"{what}; export with a larger sequence_length, or select shorter documents"
            )


def warn_of_windows(export: Export) -> None:
    """Say that pieces of text cannot have a tag on every training window."""
    plan = export.manifest.tags
    if plan is not None and plan.scope == "window" and any(stage.tagged for stage in export.manifest.stages):
        export.warn("the tag stands once before each document here, and not on every training window")
