"""Hits as arrays: order, merge, leave a row out. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixwright.errors import ConfigError
from mixwright.indexes.protocols import Hits, IdArray

MISSING_ID = -1
"""Id where an index has no further row. Its score is −inf, and it is never a row number."""


def missing_hits(q: int, k: int) -> Hits:
    """``q`` lines of ``k`` missing hits."""
    return Hits(np.full((q, k), MISSING_ID, np.int64), np.full((q, k), -np.inf, np.float32))


def order_hits(hits: Hits) -> Hits:
    """Each line by falling score, equal scores by rising id, missing hits last with score −inf."""
    missing = hits.ids < 0
    scores = np.where(missing, np.float32(-np.inf), hits.scores)
    order = np.lexsort((hits.ids, -scores, missing), axis=-1)
    return Hits(np.take_along_axis(hits.ids, order, 1), np.take_along_axis(scores, order, 1))


def pad_hits(hits: Hits, k: int) -> Hits:
    """The first k columns, with missing hits where there are fewer."""
    q, found = hits.ids.shape
    if found >= k:
        return Hits(hits.ids[:, :k], hits.scores[:, :k])
    rest = missing_hits(q, k - found)
    return Hits(np.hstack([hits.ids, rest.ids]), np.hstack([hits.scores, rest.scores]))


def merge_hits(parts: Sequence[Hits], k: int) -> Hits:
    """The k best of several indexes' hits for the same queries.

    Each part is ((q, k_i), (q, k_i)) with ids that are unique over all parts. From exact parts with k_i ≥ k
    (or every row of the part) the result is that of one exact index over all rows: equal scores go to the
    lower id whichever part they come from. Raises ConfigError without any part.
    """
    if not parts:
        raise ConfigError("there are no hits to merge: search at least one index")
    ids = np.hstack([part.ids for part in parts])
    scores = np.hstack([part.scores for part in parts])
    return pad_hits(order_hits(Hits(ids, scores)), k)


def leave_out(hits: Hits, rows: IdArray) -> Hits:
    """Each line without the row ``rows[line]``; (q, k + 1) in, (q, k) out.

    A line that does not have its row loses its last hit instead.
    """
    own = hits.ids == rows[:, None]
    own[~own.any(axis=1), -1] = True
    shape = (len(rows), hits.ids.shape[1] - 1)
    return Hits(hits.ids[~own].reshape(shape), hits.scores[~own].reshape(shape))
