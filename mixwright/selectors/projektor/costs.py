"""What moving a pilot document onto a validation document costs: features, and labels where there are any.

Optimal transport dataset distance (Alvarez-Melis and Fusi, arXiv 2002.02923): half the squared distance of the
features plus a distance of the labels. Kang et al., arXiv 2307.02460, section 3.1, use it for mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mixwright.errors import DataError
from mixwright.indexes.kmeans import kmeans
from mixwright.selectors.projektor.transport import (
    CostArray,
    FloatArray,
    Int64Array,
    Points,
    VectorArray,
    import_pot,
)

LabelCost = Literal["zero_one", "otdd", "none"]

_CLASS_ROWS = 64
"""Rows that stand for a class where classes are compared with each other."""
_KMEANS_ITERATIONS = 20
_TRAINED_ROWS_PER_CENTROID = 64
_BLOCK = 16_384
"""Rows that are assigned to centroids at a time."""


def cost_blocks(pilots: Sequence[Points], validation: Points, label_cost: LabelCost) -> list[CostArray]:
    """A block (n_i, v), float32, for each pilot: ‖x − y‖² / 2, plus the cost of the labels.

    ``zero_one``: λ where the labels differ, with λ the median feature cost over all blocks, so that a wrong
    label weighs as much as another text does. ``otdd``: half the squared Wasserstein distance of the two
    classes' features. Raises DataError for a label cost where pilots or validation have no labels.
    """
    blocks = [feature_costs(each.vectors, validation.vectors) for each in pilots]
    if label_cost == "none":
        return blocks
    for each in (*pilots, validation):
        if each.labels is None:
            raise DataError(
                f"label cost {label_cost} needs labels of sources and validation: name them, or use none"
            )
    if label_cost == "zero_one":
        scale = np.float32(np.median(np.concatenate([block.ravel() for block in blocks])))
        between = None
    else:
        between = class_costs(pilots, validation)
        scale = np.float32(0)
    for block, each in zip(blocks, pilots, strict=True):
        left, right = _labels(each), _labels(validation)
        if between is None:
            block += scale * (left[:, None] != right[None])
        else:
            block += between[left][:, right]
    return blocks


def feature_costs(vectors: VectorArray, others: VectorArray) -> CostArray:
    """Half the squared Euclidean distances (n, v), float32, of (n, d) and (v, d): 1 − cosine of unit vectors."""
    # Around a common point, so that vectors far from the origin lose no digits to each other.
    centre = others.mean(axis=0, dtype=np.float64)
    left, right = ((each - centre).astype(np.float32) for each in (vectors, others))
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None]
    return np.asarray(np.maximum(squares / 2 - left @ right.T, 0), dtype=np.float32)


def class_costs(pilots: Sequence[Points], validation: Points) -> CostArray:
    """Half the squared 2-Wasserstein distance (c, c), float32, of each class of pilots and validation set.

    Classes are pooled over the pilots and stand with at most 64 rows each, by their masses; indexes are the label
    numbers.
    """
    ot = import_pot()
    n_classes = 1 + max(int(_labels(each).max()) for each in (*pilots, validation))
    pooled = Points(
        np.concatenate([each.vectors for each in pilots]),
        np.concatenate([each.mass for each in pilots]),
        np.concatenate([_labels(each) for each in pilots]),
    )
    found = np.zeros((n_classes, n_classes), dtype=np.float32)
    left, right = ({c: _some(each, c) for c in np.unique(_labels(each))} for each in (pooled, validation))
    for c, rows in left.items():
        for other, columns in right.items():
            costs = feature_costs(rows.vectors, columns.vectors).astype(np.float64)
            found[c, other] = ot.emd2(rows.mass, columns.mass, costs)
    return found


def compress(points: Points, n: int, seed: int) -> Points:
    """At most about ``n`` centroids that stand for the points, each with the mass of those nearest to it.

    k-means inside each label, whose centroids are as many as its share of the mass (one at least). Points that are
    hardly more than ``n`` stay as they are.
    """
    labels = np.zeros(len(points.mass), dtype=np.int64) if points.labels is None else points.labels
    distinct = np.unique(labels)
    # Every label rounds up by less than one point: what was compressed already is left alone.
    if len(points.mass) < n + len(distinct):
        return points
    vectors, masses, kept = [], [], []
    for label in distinct:
        here = np.flatnonzero(labels == label)
        wanted = max(1, min(len(here), round(n * float(points.mass[here].sum()))))
        centroids, mass = _centroids(points.vectors[here], points.mass[here], wanted, seed)
        vectors.append(centroids)
        masses.append(mass)
        kept.append(np.full(len(mass), label))
    return Points(
        np.concatenate(vectors), np.concatenate(masses), None if points.labels is None else np.concatenate(kept)
    )


def _centroids(vectors: VectorArray, mass: FloatArray, k: int, seed: int) -> tuple[VectorArray, FloatArray]:
    """Means (k', d) of the rows (n, d) nearest to each of k ≥ k' centroids, and their masses."""
    rows = np.asarray(vectors, dtype=np.float32)
    if k >= len(rows):
        return rows, mass
    trained = rows
    if len(rows) > k * _TRAINED_ROWS_PER_CENTROID:
        order = np.random.default_rng(seed).permutation(len(rows))
        trained = rows[np.sort(order[: k * _TRAINED_ROWS_PER_CENTROID])]
    centroids = kmeans(trained, k, seed=seed, iterations=_KMEANS_ITERATIONS, spherical=False)
    nearest = np.concatenate(
        [
            feature_costs(rows[start : start + _BLOCK], centroids).argmin(axis=1)
            for start in range(0, len(rows), _BLOCK)
        ]
    )
    masses = np.bincount(nearest, weights=mass, minlength=k).astype(np.float64)
    used = masses > 0
    means = np.zeros((k, rows.shape[1]))
    np.add.at(means, nearest, rows * mass[:, None])
    return (means[used] / masses[used, None]).astype(np.float32), masses[used]


def _labels(points: Points) -> Int64Array:
    if points.labels is None:
        raise DataError("a sample has no labels: give all samples labels, or none of them")
    return points.labels


def _some(points: Points, label: int) -> Points:
    """At most 64 points of a class, evenly spread over it, with masses that sum to 1."""
    rows = np.flatnonzero(_labels(points) == label)
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _CLASS_ROWS)).astype(np.int64)]
    return Points(points.vectors[rows], points.mass[rows] / points.mass[rows].sum())
