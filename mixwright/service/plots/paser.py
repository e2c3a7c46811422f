"""Plots of a PASER mixture. The figures are pure functions of what its report and tables say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mixwright.schemas.manifests import MixtureManifest
from mixwright.selectors.paser_report import LANDMARKS_TABLE
from mixwright.service.pages.paser_view import (
    Comparison,
    Rows,
    budget_unit,
    cluster_label,
    cluster_rows,
    comparisons,
    short,
)
from mixwright.service.plots.drawing import Draw, Plot, Tables, Theme, drawing, new_figure
from mixwright.service.plots.maps import layout, map_figure, sample_landmarks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS_WITH_TERMS = 30
"""So many labels find room on the map with a term beside the number."""


def degradation_figure(rows: Rows, score: str, unit: str, theme: Theme) -> Figure:
    """Bars of the clusters ``rows`` (see ``cluster_rows``): degradation, and shares of pool and budget."""
    with drawing(theme) as colours:
        figure = new_figure(1.1 + 0.3 * len(rows))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        y = np.arange(len(rows))
        bars = left.barh(y, [row["degradation"] for row in rows], height=0.7, color=colours.bar)
        left.bar_label(bars, [row["degradation_text"] for row in rows], padding=3, color=colours.soft, fontsize=8)
        left.margins(x=0.12)
        left.set_title(f"degradation: mean {score}")
        left.set_yticks(y, [_cut(row["label"]) for row in rows])
        left.set_ylim(len(rows) - 0.4, -0.6)
        for offset, share, name, colour in (
            (-0.18, "pool_share", "pool", colours.soft),
            (0.18, "budget_share", "budget", colours.second),
        ):
            right.barh(y + offset, [100 * row[share] for row in rows], height=0.33, color=colour, label=name)
        right.set_title(f"share of {unit}, %")
        figure.legend(loc="outside upper right", ncols=2, fontsize=8)
        for axes in (left, right):
            axes.grid(axis="x")
    return figure


def comparison_figure(comparisons: Sequence[Comparison], theme: Theme) -> Figure:
    """A strip for each number: the selection, and below it the random draws with their mean."""
    with drawing(theme) as colours:
        figure = new_figure(1.9)
        panels = figure.subplots(1, len(comparisons), sharey=True)
        for axes, each in zip(panels, comparisons, strict=True):
            mean = each.random_mean
            axes.plot(each.random, [1] * len(each.random), "o", color=colours.soft, alpha=0.6, markersize=5)
            axes.plot([mean], [1], "|", color=colours.ink, markersize=13, markeredgewidth=1.5)
            axes.plot([each.selected], [0], "D", color=colours.second, markersize=7)
            _value(axes, each.selected, 0, short(each.selected))
            _value(axes, mean, 1, each.random_text)
            axes.set_title(each.name)
            axes.set_yticks([0, 1], ["PASER", f"random × {len(each.random)}"])
            axes.set_ylim(1.5, -0.8)
            axes.set_xlim(*_limits([each.selected, *each.random]))
            whole = all(float(value).is_integer() for value in (each.selected, *each.random))
            axes.locator_params(axis="x", nbins=4, integer=whole)
            axes.grid(axis="x")
    return figure


def _cut(text: str, length: int = 32) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _value(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), (0, 9), textcoords="offset points", ha="center", va="bottom", fontsize=8)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Room for the values and for the text above them."""
    low, high = min(values), max(values)
    margin = 0.35 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _degradation(manifest: MixtureManifest, tables: Tables) -> Draw:
    score = manifest.report["settings"]["score_attribute"]
    return partial(degradation_figure, cluster_rows(manifest), score, budget_unit(manifest))


def _map(manifest: MixtureManifest, tables: Tables) -> Draw:
    landmarks = tables(LANDMARKS_TABLE)
    clusters = landmarks["cluster"].to_numpy()
    chosen = sample_landmarks(clusters)
    points = layout(landmarks["vector"].to_numpy()[chosen])
    rows = cluster_rows(manifest)
    n_terms = 1 if len(rows) <= _LABELS_WITH_TERMS else 0
    labels = {row["cluster"]: cluster_label(row, n_terms) for row in rows}
    return partial(map_figure, points, clusters[chosen], labels)


def _comparison(manifest: MixtureManifest, tables: Tables) -> Draw:
    return partial(comparison_figure, comparisons(manifest))


PLOTS = (
    Plot(
        "degradation",
        "Degradation and shares of the clusters",
        "The most degraded cluster first, and beside it what share of the pool it is and what share of the budget "
        "it was given.",
        _degradation,
    ),
    Plot(
        "map",
        "Map of the clusters",
        "Landmarks of the pool laid out in two dimensions: neighbours ask for similar things, and distances "
        "between far points say nothing. Each cluster is labelled with its number and first term.",
        _map,
    ),
    Plot(
        "comparison",
        "The selection beside random",
        "The selection, and as much drawn at random from the same documents with different seeds. The stroke is "
        "the mean of the draws, ± their standard deviation.",
        _comparison,
    ),
)
