"""The distinct documents of a pool, in an order that depends on what they say alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mixwright.indexes.protocols import FloatArray as VectorArray
from mixwright.selectors.pool import Part, Pool, Requirements, RowFunction, Source, vectors_of

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Documents:
    """The documents of a pool, each text once, sorted by id; all arrays have one entry a document.

    ``source`` is the number of the source in the pool and ``row`` the row there. Where several sources hold the
    same text, the first of them gives it.
    """

    pool: Pool
    source: Int64Array
    row: Int64Array
    ids: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, pool: Pool) -> Documents:
        """All documents of the pool."""
        lengths = [len(source.ids) for source in pool.sources]
        ids = np.concatenate([source.ids for source in pool.sources])
        source = np.repeat(np.arange(len(lengths)), lengths)
        row = np.concatenate([np.arange(n) for n in lengths])
        # np.unique gives the first of equal ids, and so the earliest source.
        distinct, first = np.unique(ids, return_index=True)
        return cls(pool, source[first], row[first], distinct)

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, kept: BoolArray) -> Documents:
        """Those of the documents that ``kept`` (n,) says."""
        return Documents(self.pool, self.source[kept], self.row[kept], self.ids[kept])

    @cached_property
    def n_tokens(self) -> Int64Array:
        """Tokens of each document, as its corpus counts them."""
        return self.column(lambda source: source.n_tokens)

    @cached_property
    def corpus_row(self) -> Int64Array:
        """The row of each document in its corpus: another one than ``row`` where the source leaves some out."""
        return self.column(lambda source: source.corpus_rows(np.arange(len(source.ids), dtype=np.int64)))

    def column(self, of: Callable[[Source], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """A column (n, …) that ``of`` gives for all rows of a source, in the order of the documents."""
        return self._gathered([of(source) for source in self.pool.sources])

    def _gathered(self, parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """One column (n, …) of the sources' columns."""
        gathered = np.empty((len(self), *parts[0].shape[1:]), dtype=np.result_type(*parts))
        for number, part in enumerate(parts):
            here = self.source == number
            gathered[here] = part[self.row[here]]
        return gathered

    def attribute(self, name: str) -> FloatArray | None:
        """A numeric attribute (n,), NaN where a document has none; None if no source has it."""
        found = [source.attribute(name) for source in self.pool.sources]
        if all(each is None for each in found):
            return None
        missing = [np.full(len(source.ids), np.nan) for source in self.pool.sources]
        return self._gathered([gap if each is None else each for each, gap in zip(found, missing, strict=True)])

    @property
    def dim(self) -> int:
        """Coordinates of the documents' vectors."""
        return vectors_of(self.pool.sources[0]).dim

    def rows(self, rows: Int64Array) -> VectorArray:
        """Vectors (m, d), float32, of the documents of the given numbers (m,)."""
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        for number in np.unique(self.source[rows]):
            here = self.source[rows] == number
            vectors[here] = vectors_of(self.pool.sources[number]).rows(self.row[rows[here]])
        return vectors

    def map_vectors(self, function: RowFunction) -> tuple[npt.NDArray[Any], ...]:
        """The arrays (n, …) that a function of rows makes of the documents' vectors.

        The vectors are read as they are stored, every block once and in order.
        """
        made = [self.pool.map_vectors(source, function) for source in self.pool.sources]
        return tuple(self._gathered(list(parts)) for parts in zip(*made, strict=True))

    def texts(self, requirements: Requirements, part: Part, rows: Int64Array) -> list[str]:
        """Instruction, response or both of the documents of the given numbers (m,)."""
        texts = np.empty(len(rows), dtype=object)
        for number in np.unique(self.source[rows]):
            here = self.source[rows] == number
            source = self.pool.sources[number]
            template = requirements.template(source.metadata_fields, part)
            texts[here] = source.texts(template, self.row[rows[here]])
        return list(texts)
