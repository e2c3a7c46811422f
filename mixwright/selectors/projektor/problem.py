"""From samples to the transport problem of their mixtures."""

from __future__ import annotations

from collections.abc import Sequence

from mixwright.selectors.projektor.costs import LabelCost, compress, cost_blocks
from mixwright.selectors.projektor.transport import Points, TransportProblem

_ALL_CENTROIDS = 1024
"""Points of all sources together, so that a solution takes milliseconds however many sources there are."""
_FEWEST_CENTROIDS = 8
_FEWEST_TARGETS = 256
_ALL_COSTS = 1 << 18
"""Entries of the cost matrix: 1,024 points of all sources leave 256 for the validation set."""


def transport_problem(
    pilots: Sequence[Points],
    validation: Points,
    *,
    label_cost: LabelCost = "none",
    centroids: int | None = 256,
    seed: int = 0,
) -> TransportProblem:
    """The problem of k pilot samples and a validation set.

    A sample with more points than ``centroids`` is compressed to about so many (fewer where there are many
    sources: 1,024 in all, 8 a source at least), the validation set to what keeps the cost matrix below 2¹⁸
    entries, at least 256 points. None keeps all points.
    """
    samples, target = list(pilots), validation
    if centroids is not None:
        samples = [compressed_pilot(points, len(pilots), centroids, seed) for points in pilots]
        n_points = sum(len(points.mass) for points in samples)
        target = compress(validation, max(_ALL_COSTS // n_points, _FEWEST_TARGETS), seed)
    return TransportProblem.of(samples, target, cost_blocks(samples, target, label_cost))


def compressed_pilot(points: Points, n_sources: int, centroids: int, seed: int) -> Points:
    """One of the pilots as ``transport_problem`` compresses it, so that they need not be in memory together."""
    return compress(points, max(min(centroids, _ALL_CENTROIDS // n_sources), _FEWEST_CENTROIDS), seed)
