"""What an encoder and an index are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int64]


class Encoder(Protocol):
    """Turns texts into vectors. The one method is all an encoder needs."""

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of shape (len(texts), d), float32, one a text in the same order."""
        ...


class Hits(NamedTuple):
    """Nearest neighbours: ``ids`` (q, k) row numbers, ``scores`` (q, k) inner products, best first.

    Where fewer than k rows exist, the rest of a line is id −1 with score −inf.
    """

    ids: IdArray
    scores: FloatArray


class Index(Protocol):
    """Nearest neighbours by inner product."""

    def search(self, queries: FloatArray, k: int) -> Hits:
        """The k rows nearest to each query; ``queries`` is (q, d)."""
        ...
