"""Which rows of a datastore qualify for a search: a fixed function of the row, whoever asks and in what order.

A subsample keeps a row where hash64(seed, key) / 2⁶⁴ < p, with the key of its passage, its document or its
near-duplicate cluster: samples of one seed are nested, need no storage, and do not depend on how rows are
sharded or found. So a search with a filter equals a search of a store that holds the remaining rows alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from mixwright.conditions import parse_condition
from mixwright.hashing import UInt64Array, keyed_hash
from mixwright.indexes.datastores.pieces import Pieces
from mixwright.schemas.datastores import SamplingUnit, SearchOptions

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RowFilter:
    """What a row must be; hashable, so that the mask of a shard can be kept for the next search."""

    domains: tuple[str, ...] | None = None
    where: str | None = None
    subsample: float | None = None
    subsample_by: SamplingUnit = "passage"
    seed: int = 0

    @classmethod
    def of(cls, options: SearchOptions) -> Self:
        """The filter that a search asks for; raises ConfigError for a condition that is no expression."""
        if options.where is not None:
            parse_condition(options.where)
        domains = None if options.domains is None else tuple(sorted(set(options.domains)))
        if options.subsample is None or options.subsample == 1:
            return cls(domains, options.where)
        return cls(domains, options.where, options.subsample, options.subsample_by, options.seed)

    @property
    def is_open(self) -> bool:
        """Whether every row qualifies."""
        return self.domains is None and self.where is None and self.subsample is None


def sampled(keys: UInt64Array, share: float, seed: int) -> BoolArray:
    """(n,): which keys (n,) a sample of this share and seed keeps: those with hash64(seed, key) / 2⁶⁴ < share.

    >>> import numpy as np
    >>> bool(sampled(np.arange(10, dtype=np.uint64), 1.0, 0).all())
    True
    """
    if share >= 1:
        return np.ones(len(keys), dtype=np.bool_)
    return np.asarray(keyed_hash(keys, seed) < np.uint64(share * 2.0**64))


def qualifying(rows: RowFilter, pieces: Pieces, start: int, stop: int, clusters: UInt64Array) -> BoolArray:
    """(stop - start,): which of the rows ``start … stop - 1`` the filter keeps; ``clusters`` are those rows'.

    Raises ConfigError for a condition that does not fit the passages.
    """
    kept = np.ones(stop - start, dtype=np.bool_)
    if rows.domains is not None:
        domains = pieces.frame(start, stop, ["domain"])["domain"]
        kept &= domains.is_in(list(rows.domains)).fill_null(value=False).to_numpy()
    if rows.where is not None:
        kept &= _where(rows.where, pieces, start, stop)
    if rows.subsample is not None:
        column = {"passage": "key", "document": "document_key"}.get(rows.subsample_by)
        keys = clusters if column is None else pieces.keys(start, stop, column)
        kept &= sampled(keys, rows.subsample, rows.seed)
    return kept


def _where(where: str, pieces: Pieces, start: int, stop: int) -> BoolArray:
    condition = parse_condition(where)
    frame = pieces.frame(start, stop, condition.fields)
    return frame.select(kept=condition.expression)["kept"].fill_null(value=False).to_numpy()
