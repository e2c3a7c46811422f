"""One ranking of several: reciprocal rank fusion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixwright.indexes.hits import MISSING_ID, merge_hits
from mixwright.indexes.protocols import Hits

RANK_CONSTANT = 60
"""The k of the paper, with which its experiments were made."""


def reciprocal_rank_fusion(rankings: Sequence[Hits], k: int) -> Hits:
    """The k rows with the highest Σ 1 / (60 + rank) over several rankings of the same queries.

    Each ranking is ((q, k_i), (q, k_i)), best first; ranks count from 1, and a row that a ranking lacks gets
    nothing from it. Equal sums go to the lower row. (Cormack, Clarke and Büttcher, SIGIR 2009.)
    """
    ids = np.hstack([ranking.ids for ranking in rankings])
    shares = np.hstack(
        [
            np.broadcast_to(1 / (RANK_CONSTANT + 1 + np.arange(ranking.ids.shape[1])), ranking.ids.shape)
            for ranking in rankings
        ]
    )
    order = np.argsort(ids, axis=1, kind="stable")
    ids, shares = np.take_along_axis(ids, order, 1), np.take_along_axis(shares, order, 1)
    # Equal rows stand side by side now: the sum of a run goes to its first, the others are missing.
    first = np.ones(ids.shape, dtype=np.bool_)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    sums = np.zeros(ids.shape)
    starts = np.maximum.accumulate(np.where(first, np.arange(ids.shape[1]), 0), axis=1)
    lines = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    np.add.at(sums, (lines, starts), shares)
    return merge_hits([Hits(np.where(first, ids, MISSING_ID), sums.astype(np.float32))], k)
