"""Connected components of pairs that come in portions: union-find over arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]


class DisjointSets:
    """The numbers 0 … n - 1, at first each a set of its own; the root of a set is its smallest number.

    A portion of pairs is joined at once: every root takes the smallest root that it is paired with for its parent,
    until no pair has two roots (Shiloach and Vishkin 1982, without the processors).
    """

    def __init__(self, n: int) -> None:
        self._parents = np.arange(n, dtype=np.int64)

    def roots(self, members: Int64Array) -> Int64Array:
        """The root (m,) of each member (m,)."""
        roots = self._parents[members]
        while not np.array_equal(above := self._parents[roots], roots):
            # Halving the paths on the way keeps a long chain from costing its length squared.
            self._parents[roots] = self._parents[above]
            roots = above
        self._parents[members] = roots
        return roots

    def all_roots(self) -> Int64Array:
        """The root (n,) of every number."""
        return self.roots(np.arange(len(self._parents), dtype=np.int64))

    def join(self, first: Int64Array, second: Int64Array) -> None:
        """Join the sets of each pair, (m,) and (m,)."""
        while len(first):
            first, second = self.roots(first), self.roots(second)
            apart = first != second
            first, second = first[apart], second[apart]
            np.minimum.at(self._parents, np.maximum(first, second), np.minimum(first, second))
