"""Batches of texts of like length.

A batch is padded to its longest text, and padding is computed and thrown away: texts are therefore sorted by
length and cut into batches whose padded size stays within a budget of tokens.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]


def length_batches(lengths: Int64Array, budget: int) -> list[Int64Array]:
    """Indices of texts in batches of at most ``budget`` padded tokens (longest length × texts).

    ``lengths`` is (n,), tokens a text. Every index comes exactly once; batches go from the longest texts to
    the shortest, so that a batch too large for the memory shows at the start. A text longer than the budget
    is a batch of its own, and a text without tokens counts as one token.
    """
    order = np.argsort(-lengths, kind="stable").astype(np.int64)
    batches = []
    start = 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        stop = start + max(budget // longest, 1)
        batches.append(order[start:stop])
        start = stop
    return batches
