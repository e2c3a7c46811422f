"""What formats of tokens share: flat arrays of token ids, their integer type, and the end token."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mixwright.errors import ConfigError, DataError
from mixwright.jobs.exports.format import DataSet, Export
from mixwright.tokenization import load_tokenizer

Int64Array = npt.NDArray[np.int64]


def require_eos(export: Export, trainer: str) -> int:
    """The end token; raises ConfigError where none is named: without it documents run into each other."""
    if export.options.eos is None:
        raise ConfigError(
            f"{trainer} tells documents apart by an end token: give eos, its id in {export.tokenization.tokenizer}"
        )
    return export.options.eos


def vocabulary_size(export: Export) -> int:
    """One more than the largest id that can occur: the tokenizer's, the tags' special tokens, BOS and EOS."""
    tokenizer = load_tokenizer(export.tokenization.tokenizer)
    plan = export.manifest.tags
    if plan is not None:
        tokenizer = tokenizer.with_special_tokens(plan.special_tokens)
    options = export.options
    return max(tokenizer.vocabulary_size, (options.bos or 0) + 1, (options.eos or 0) + 1)


def token_rows(export: Export, data_set: DataSet) -> Iterator[tuple[pa.Table, Int64Array, npt.NDArray[np.bool_]]]:
    """Tables of a data set with their token ids and loss mask, both (n,) flat, row after row.

    Raises DataError for a row without any token: no trainer's format can hold one.
    """
    for table in data_set.tables(export.tokenization):
        empty = np.flatnonzero(lengths_of(table) == 0)
        if len(empty):
            raise DataError(
                f"document {table['id'][int(empty[0])].as_py()} of {data_set.component} has no token: name eos, "
                "so that each has one, or select without empty documents"
            )
        ids, mask = _flat(table["input_ids"]).astype(np.int64), _flat(table["loss_mask"]).astype(np.bool_)
        if (ids == export.options.eos).sum() > table.num_rows:
            export.warn(
                f"token {export.options.eos} stands inside documents too, and trainers will end them there: give "
                f"as eos a token of {export.tokenization.tokenizer} that no text has"
            )
        yield table, ids, mask


def lengths_of(table: pa.Table) -> Int64Array:
    """Tokens of each row (m,)."""
    lists = table["input_ids"].combine_chunks()
    return np.asarray(np.diff(lists.offsets.to_numpy()), dtype=np.int64)


def masks_tags(export: Export, data_sets: list[DataSet]) -> bool:
    """Whether some of these data sets have tags that must not count in the loss."""
    plan = export.manifest.tags
    return plan is not None and plan.mask and any(each.tagged for each in data_sets)


def shares(tokens: dict[str, int], data_sets: list[DataSet]) -> list[float]:
    """Each data set's share of the tokens that were written, by name; they sum to 1.

    Tags, BOS and EOS count: at these weights all data sets of a stage come to their end together.
    """
    total = sum(tokens[each.name] for each in data_sets)
    return [tokens[each.name] / total for each in data_sets]


def _flat(column: pa.ChunkedArray) -> npt.NDArray[np.generic]:
    values = column.combine_chunks().flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False))
