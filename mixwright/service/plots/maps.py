"""Maps: vectors as points in a plane, in labelled groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mixwright.service.plots.drawing import MARKERS, WIDTH, Theme, drawing, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

MAX_POINTS = 1500
_PCA_BELOW = 30
_HEIGHT = 5.6
_SIZE = np.asarray([WIDTH, _HEIGHT]) * 72
"""Of the map in typographic points, the unit of all that follows."""
_LABEL_SIZE, _LABEL_RISE = 8.0, 16.0


def map_figure(points: FloatArray, groups: Int64Array, labels: dict[int, str], theme: Theme) -> Figure:
    """Points (n, 2) marked by their group (n,), and the labels of the groups that are on the map."""
    shown = [group for group in sorted(labels) if group in groups]
    placed = _on_paper(points)
    middles = np.asarray([_middle(placed[groups == group]) for group in shown])
    places = _label_places(middles, [len(labels[group]) for group in shown])
    with drawing(theme) as colours:
        figure = new_figure(_HEIGHT, layout=None)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, _SIZE[0]), ylim=(0, _SIZE[1]))
        axes.set_axis_off()
        box = {"boxstyle": "round,pad=0.25", "facecolor": colours.paper, "alpha": 0.9}
        for number, group in enumerate(shown):
            # No two groups share both colour and marker, up to 30 of them.
            colour = colours.categories[number % len(colours.categories)]
            marker = MARKERS[number // len(colours.categories) % len(MARKERS)]
            x, y = placed[groups == group].T
            axes.scatter(x, y, s=14, color=colour, marker=marker, alpha=0.75, linewidths=0)
            axes.annotate(
                labels[group],
                tuple(middles[number]),
                tuple(places[number]),
                fontsize=_LABEL_SIZE,
                ha="center",
                va="center",
                bbox={**box, "edgecolor": colour},
                arrowprops={"arrowstyle": "-", "color": colours.soft, "linewidth": 0.7},
            )
    return figure


def sample_landmarks(groups: Int64Array, n: int = MAX_POINTS) -> Int64Array:
    """Places of about ``n`` of the groups' members (m,), every group in proportion and at least once."""
    order = np.argsort(groups, kind="stable")
    if len(order) <= n:
        return np.arange(len(order))
    _, first = np.unique(groups, return_index=True)
    return np.union1d(order[np.linspace(0, len(order) - 1, n).astype(np.int64)], first)


def layout(vectors: npt.NDArray[np.float32]) -> FloatArray:
    """Points (n, 2) of vectors (n, d), neighbours by angle near each other: t-SNE, or PCA of a few vectors.

    One thread, since the order of a parallel sum would show in the result.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if len(unit) < 3:
        return np.column_stack([np.arange(len(unit)), np.zeros(len(unit))])
    with threadpool_limits(1):
        if len(unit) < _PCA_BELOW:
            found = PCA(2, svd_solver="full").fit_transform(unit)
        else:
            perplexity = min(30.0, len(unit) / 5)
            tsne = TSNE(2, perplexity=perplexity, init="pca", max_iter=500, random_state=0, n_jobs=1)
            found = tsne.fit_transform(unit)
    return np.asarray(found, dtype=np.float64)


def _on_paper(points: FloatArray) -> FloatArray:
    """The points (n, 2) stretched over the map, with a margin for the labels."""
    low, high = points.min(axis=0), points.max(axis=0)
    share = np.where(high > low, (points - low) / np.maximum(high - low, 1e-12), 0.5)
    return _SIZE * (0.05 + 0.9 * share)


def _middle(points: FloatArray) -> FloatArray:
    """The point (2,) of a group (m, 2) that is nearest to all its others."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1).sum(axis=1)
    middle: FloatArray = points[int(distances.argmin())]
    return middle


def _label_places(middles: FloatArray, lengths: Sequence[int]) -> FloatArray:
    """Middles (k, 2) of the labels of so many letters: above those of the groups, pushed apart."""
    half = np.asarray([(0.62 * length + 1.5, 1.9) for length in lengths]) * _LABEL_SIZE / 2
    numbers = np.arange(len(half))
    later = np.where(numbers[:, None] > numbers, 1.0, -1.0)[..., None]
    places = middles + np.asarray([0, _LABEL_RISE])
    for _ in range(1000):
        places = np.clip(places, half, _SIZE - half)
        apart = places[:, None] - places
        overlap = half[:, None] + half - np.abs(apart)
        overlap[numbers, numbers] = 0
        met = (overlap > 0).all(axis=-1, keepdims=True)
        if not met.any():
            break
        # Each pair parts where it has the shorter way, half of it each.
        shorter = overlap == overlap.min(axis=-1, keepdims=True)
        away = np.where(apart == 0, later, np.sign(apart))
        places = places + np.where(met & shorter, away * (overlap / 2 + 0.1), 0).sum(axis=1)
    return np.asarray(places)
