"""What an index is built from: vectors by row number, read in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mixwright.errors import DataError
from mixwright.indexes.protocols import FloatArray, IdArray

BLOCK_BYTES = 128 << 20
"""Memory of one block of vectors."""


class Vectors(Protocol):
    """Vectors (n, dim) by row number; ``Embeddings`` is one, on disk."""

    def __len__(self) -> int: ...

    @property
    def dim(self) -> int:
        """Coordinates a vector."""
        ...

    def rows(self, rows: IdArray) -> FloatArray:
        """Vectors (len(rows), dim), float32, in any order, repeats allowed."""
        ...


class ArrayVectors:
    """Vectors that are in memory, or mapped into it: ``array`` is (n, dim), float32 or float16."""

    def __init__(self, array: FloatArray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @property
    def dim(self) -> int:
        return int(self.array.shape[1])

    def rows(self, rows: IdArray) -> FloatArray:
        return np.asarray(self.array[rows], dtype=np.float32)


class StackedVectors:
    """Several arrays (n_i, dim), float32 or float16, memory-mapped as a rule, as one (Σ n_i, dim)."""

    def __init__(self, arrays: Sequence[npt.NDArray[Any]], dim: int) -> None:
        self._arrays = list(arrays)
        self._ends = np.cumsum([len(array) for array in arrays], dtype=np.int64)
        self._dim = dim

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def dim(self) -> int:
        return self._dim

    def followed_by(self, other: StackedVectors) -> StackedVectors:
        """These arrays, and those of ``other`` behind them."""
        return StackedVectors([*self._arrays, *other._arrays], self._dim)

    def rows(self, rows: IdArray) -> FloatArray:
        vectors = np.empty((len(rows), self._dim), dtype=np.float32)
        array_of = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(array_of):
            here = array_of == number
            array = self._arrays[number]
            vectors[here] = array[rows[here] - (self._ends[number] - len(array))]
        return vectors


class OtherVectors:
    """The vectors of ``vectors`` without the rows ``left_out`` (m,), in the same order."""

    def __init__(self, vectors: Vectors, left_out: IdArray) -> None:
        self._vectors = vectors
        self._rows = np.delete(np.arange(len(vectors), dtype=np.int64), left_out)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def dim(self) -> int:
        return self._vectors.dim

    def rows(self, rows: IdArray) -> FloatArray:
        return self._vectors.rows(self._rows[rows])


def blocks(vectors: Vectors) -> Iterator[tuple[int, FloatArray]]:
    """All vectors in row order as (first row, block (b, dim)).

    The size of a block depends on ``dim`` alone, not on how the vectors are stored: some kinds of index come
    out different when the same rows are added in other portions.
    """
    size = max(BLOCK_BYTES // (4 * vectors.dim), 1)
    for start in range(0, len(vectors), size):
        rows = np.arange(start, min(start + size, len(vectors)), dtype=np.int64)
        yield start, finite_rows(vectors, rows)


def finite_rows(vectors: Vectors, rows: IdArray) -> FloatArray:
    """``vectors.rows(rows)``; raises DataError naming the first row with a NaN or an infinity."""
    found = vectors.rows(rows)
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
        raise DataError(
            f"vector {int(rows[np.argmin(finite)])} has a coordinate that is not finite: embed the corpus again"
        )
    return found
