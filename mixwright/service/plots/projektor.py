"""Plots of a projektor mixture. The figures are pure functions of what its report and tables say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mixwright.schemas.manifests import MixtureManifest
from mixwright.selectors.projektor.report import SLICES_TABLE, SURFACE_TABLE
from mixwright.service.pages.projektor_view import (
    TRANSPORT,
    Report,
    Rows,
    best_folds,
    by_chosen_share,
    candidate_rows,
    chosen_weights,
    metric_text,
    predicts,
)
from mixwright.service.plots.drawing import (
    MARKERS,
    WIDTH,
    Colours,
    Draw,
    Plot,
    Tables,
    Theme,
    drawing,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]

MAX_SLICES = 12

_HEIGHT = np.sqrt(3) / 2
_CORNERS = np.asarray([(0.0, 0.0), (1.0, 0.0), (0.5, _HEIGHT)])
_STAR, _CROSS, _DOT = 15, 9, 4
_LEVELS = 12


# Surface


def surface_figure(report: Report, surface: pl.DataFrame, theme: Theme) -> Figure:
    """All mixtures of three sources as a triangle, coloured by what they are predicted to score.

    ``surface`` has the columns ``weight:<source>`` and ``mean``, else ``transport``, on a simplex grid; the first
    source is at the lower left, the second at the lower right, the third on top.
    """
    names = [source["name"] for source in report["sources"]]
    weights = surface.select([f"weight:{name}" for name in names]).to_numpy()
    scored = "mean" in surface.columns
    values = surface["mean" if scored else "transport"].to_numpy()
    height = 4.9
    width = 0.62
    with drawing(theme) as colours:
        # Labels of contours are placed by the axes' size, which a layout would change afterwards.
        figure = new_figure(height, layout=None)
        box = (0.13, 0.1, width, width * WIDTH * _HEIGHT / height)
        axes = figure.add_axes(box, xlim=(0, 1), ylim=(0, _HEIGHT), aspect="equal")
        axes.set_axis_off()
        label = metric_text(report) if scored else TRANSPORT
        bar_axes = figure.add_axes((0.82, 0.16, 0.022, 0.68))
        _heat(axes, bar_axes, weights, values, _colour_map(report, scored), label)
        axes.plot(*_CORNERS[[0, 1, 2, 0]].T, color=colours.soft, linewidth=1, clip_on=False)
        _caps(axes, report, names)
        _marks(axes, report, names)
        _corner_labels(axes, names)
        figure.legend(loc="upper left", fontsize=8, facecolor="#8b949e", framealpha=0.25, frameon=True)
    return figure


def _colour_map(report: Report, scored: bool) -> Colormap:
    """Bright where it is better."""
    import matplotlib as mpl

    more = scored and report["metric"]["direction"] == "maximize"
    return mpl.colormaps["viridis" if more else "viridis_r"]


def _heat(
    axes: Axes, bar_axes: Axes, weights: FloatArray, values: FloatArray, colour_map: Colormap, label: str
) -> None:
    """Colours, contour lines with their numbers, and the colour bar."""
    from matplotlib.ticker import MaxNLocator
    from matplotlib.tri import Triangulation

    low, high = float(values.min()), float(values.max())
    margin = 1e-6 * max(abs(low), abs(high), 1e-6)
    if high - low <= margin:
        low, high = low - margin, high + margin
    levels = MaxNLocator(_LEVELS).tick_values(low, high)
    triangulation = Triangulation(*(weights @ _CORNERS).T, triangles=_triangles(weights))
    filled = axes.tricontourf(triangulation, values, levels=levels, cmap=colour_map)
    inside = levels[(levels > values.min()) & (levels < values.max())]
    if len(inside):
        # On dark colours lines are white, on bright ones black.
        shades = [
            "black" if np.dot(colour_map(filled.norm(level))[:3], (0.3, 0.59, 0.11)) > 0.5 else "white"
            for level in inside
        ]
        lines = axes.tricontour(triangulation, values, levels=inside, colors=shades, linewidths=0.6, alpha=0.7)
        axes.clabel(lines, inside[:: 2 if len(inside) > 4 else 1], fontsize=7, fmt=_level_text)
    bar = axes.figure.colorbar(filled, cax=bar_axes)
    bar.outline.set_visible(False)
    bar.set_label(_upright(label))


def _level_text(level: float) -> str:
    return np.format_float_positional(level, precision=10, trim="-")


def _triangles(weights: FloatArray) -> npt.NDArray[np.int64]:
    """Triangles (t, 3) between neighbours on the simplex grid ``weights`` (n, 3).

    Made from the grid itself: Delaunay's method adds slivers along the edges, where points are not quite in line.
    """
    steps = round(1 / weights[weights > 1e-9].min())
    places = np.rint(weights[:, :2] * steps).astype(np.int64)
    numbers = {(int(i), int(j)): number for number, (i, j) in enumerate(places)}
    found = []
    for i, j in numbers:
        for corners in (((i, j), (i + 1, j), (i, j + 1)), ((i + 1, j), (i + 1, j + 1), (i, j + 1))):
            if all(corner in numbers for corner in corners):
                found.append([numbers[corner] for corner in corners])
    return np.asarray(found, dtype=np.int64)


def _caps(axes: Axes, report: Report, names: Sequence[str]) -> None:
    """A dashed line where a source has no more to give, seen on dark colours and on bright ones."""
    label: str | None = "most a source can give"
    for number, source in enumerate(report["sources"]):
        share = source["largest_share"]
        if share < 1:
            ends = np.full((2, len(names)), 0.0)
            ends[:, number] = share
            ends[[0, 1], [other for other in range(len(names)) if other != number]] = 1 - share
            axes.plot(*(ends @ _CORNERS).T, "--", color="black", gapcolor="white", linewidth=1.3, label=label)
            label = None


def _marks(axes: Axes, report: Report, names: Sequence[str]) -> None:
    """Runs as dots, uniform as a cross, the chosen mixture as a star."""

    def place(mixtures: Sequence[Mapping[str, float]]) -> FloatArray:
        shares = [[weights.get(name, 0.0) for name in names] for weights in mixtures]
        return np.asarray(np.asarray(shares) @ _CORNERS)

    def mark(points: FloatArray, marker: str, size: float, label: str) -> None:
        style: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markeredgewidth": 0.8}
        axes.plot(*points.T, marker, markersize=size, label=label, linestyle="none", clip_on=False, **style)

    runs = [run["weights"] for run in report["runs"]]
    if runs:
        mark(np.unique(place(runs), axis=0), "o", _DOT, "runs")
    mark(place([dict.fromkeys(names, 1 / len(names))]), "X", _CROSS, "uniform")
    mark(place([chosen_weights(report)]), "*", _STAR, "chosen")


def _corner_labels(axes: Axes, names: Sequence[str]) -> None:
    for name, corner, offset, side in zip(names, _CORNERS, (-8, -8, 8), ("top", "top", "bottom"), strict=True):
        text = _cut(name, 24)
        axes.annotate(text, tuple(corner), (0, offset), textcoords="offset points", ha="center", va=side)


# Slices


def slices_figure(report: Report, slices: pl.DataFrame, theme: Theme) -> Figure:
    """A panel for each source: what is predicted as its share grows, the others in the chosen proportions.

    ``slices`` has the columns ``source``, ``share`` and ``mean``, ``low``, ``high``, else ``transport``.
    """
    chosen, shown = chosen_weights(report), sliced_sources(report)[:MAX_SLICES]
    n_rows = -(-len(shown) // 4)
    n_columns = -(-len(shown) // n_rows)
    scored = "mean" in slices.columns
    with drawing(theme) as colours:
        figure = new_figure(0.8 + 1.6 * n_rows)
        panels = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).ravel()
        for axes, name in zip(panels, shown, strict=False):
            rows = slices.filter(pl.col("source") == name).sort("share")
            share = 100 * rows["share"].to_numpy()
            value = rows["mean" if scored else "transport"].to_numpy()
            if scored:
                band = (rows["low"].to_numpy(), rows["high"].to_numpy())
                axes.fill_between(share, *band, color=colours.bar, alpha=0.25, linewidth=0)
            axes.plot(share, value, color=colours.bar, linewidth=1.5)
            here = 100 * chosen.get(name, 0.0)
            axes.axvline(here, color=colours.second, linewidth=1, linestyle=":")
            axes.plot([here], [np.interp(here, share, value)], "*", color=colours.second, markersize=9)
            axes.set_title(_cut(name, 80 // n_columns), fontsize=8)
            right = share.max() or 1.0
            axes.set_xlim(-0.03 * right, 1.03 * right)
            axes.locator_params(nbins=4)
            axes.grid()
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        figure.supxlabel("share of the source, %", fontsize=9)
        figure.supylabel(_upright(metric_text(report) if scored else TRANSPORT), fontsize=9)
    return figure


def sliced_sources(report: Report) -> list[str]:
    """Names in the panels' order: the largest share of the chosen mixture first. One source alone has no slice."""
    names = [source["name"] for source in by_chosen_share(report)]
    return names if len(names) > 1 else []


# Cross-validation


def fit_figure(report: Report, theme: Theme) -> Figure:
    """What the runs scored against what the others predict of them, a colour and a sign for each size."""
    runs = fitted_runs(report)
    sizes = sorted({run["size"] for run in runs})
    scores = [score for run in runs for score in (run["score"], run["predicted"])]
    limits = _limits(scores, 0.06)
    with drawing(theme) as colours:
        figure = new_figure(4.6)
        axes = figure.subplots()
        axes.plot(limits, limits, color=colours.soft, linewidth=1, linestyle="--")
        for number, size in enumerate(sizes):
            colour, marker = _sign(colours, number)
            here = [run for run in runs if run["size"] == size]
            axes.plot(
                [run["score"] for run in here],
                [run["predicted"] for run in here],
                marker,
                color=colour,
                alpha=0.8,
                markersize=5,
                markeredgewidth=0,
                label=f"{size:,} {report['settings']['unit']}",
            )
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.set_xlabel(f"observed: {metric_text(report)}")
        axes.set_ylabel("predicted, out of fold")
        axes.grid()
        figure.legend(loc="outside right upper", fontsize=8, title="size of the run", title_fontsize=8)
    return figure


def fitted_runs(report: Report) -> list[Mapping[str, Any]]:
    """The runs that were predicted out of fold."""
    return [run for run in report["runs"] if run["predicted"] is not None]


def _sign(colours: Colours, number: int) -> tuple[str, str]:
    """Colour and marker of a group; no two the same up to 30."""
    n = len(colours.categories)
    return colours.categories[number % n], MARKERS[number // n % len(MARKERS)]


def errors_figure(report: Report, theme: Theme) -> Figure:
    """Bars of the predictors' K-fold errors at the largest size, best first; those that are used coloured."""
    folds = best_folds(report)
    with drawing(theme) as colours:
        figure = new_figure(0.8 + 0.3 * len(folds))
        axes = figure.subplots()
        y = np.arange(len(folds))
        shades = [colours.second if each["is_used"] else colours.bar for each in folds]
        bars = axes.barh(y, [each["mean_absolute_error"] for each in folds], height=0.7, color=shades)
        axes.bar_label(bars, [_error_text(each) for each in folds], padding=3, color=colours.soft, fontsize=8)
        axes.margins(x=0.22)
        axes.set_yticks(y, [_cut(each["predictor"], 32) for each in folds])
        axes.set_ylim(len(folds) - 0.4, -0.6)
        unit = report["settings"]["unit"]
        axes.set_title(f"mean absolute error in {report['metric']['name']}, runs of {folds[0]['size']:,} {unit}")
        axes.grid(axis="x")
    return figure


def _error_text(fold: Mapping[str, Any]) -> str:
    text = str(fold["mean_absolute_error_text"])
    if not fold["is_used"]:
        return text
    return f"{text}, used" if fold["used_text"] == "yes" else f"{text}, used {fold['used_text']}"


# Candidates


def candidates_figure(report: Report, theme: Theme) -> Figure:
    """A dot for each compared mixture with its interval, hollow where it extrapolates; a cross for what it scored.

    Without predictions the dots are OT distances.
    """
    scored = predicts(report)
    rows = [row for row in candidate_rows(report) if not scored or row["mean"] is not None]
    with drawing(theme) as colours:
        figure = new_figure(1.1 + 0.42 * len(rows))
        axes = figure.subplots()
        for y, row in enumerate(rows):
            colour = colours.second if y == 0 else colours.bar
            _candidate(axes, row, y, colour, colours, "mean" if scored else "transport")
        axes.set_yticks(range(len(rows)), [_cut(row["name"], 32) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.75)
        fields = ("mean", "low", "high", "observed") if scored else ("transport",)
        values = [row[field] for row in rows for field in fields if row[field] is not None]
        axes.set_xlim(*_limits(values, 0.12))
        axes.set_xlabel(metric_text(report) if scored else TRANSPORT)
        axes.grid(axis="x")
        if scored:
            _candidates_legend(figure, rows, colours)
    return figure


def _candidate(axes: Axes, row: Mapping[str, Any], y: int, colour: str, colours: Colours, field: str) -> None:
    scored = field == "mean"
    if scored and row["low"] is not None:
        axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    face = colours.paper if scored and row["extrapolates"] else colour
    axes.plot([row[field]], [y], "o", markersize=7, color=face, markeredgecolor=colour, markeredgewidth=1.6)
    if scored and row["observed"] is not None:
        axes.plot([row["observed"]], [y], "x", markersize=7, color=colours.ink, markeredgewidth=1.4)
    axes.annotate(
        row[f"{field}_text"], (row[field], y), (0, 6), textcoords="offset points", ha="center", fontsize=8
    )


def _candidates_legend(figure: Figure, rows: Rows, colours: Colours) -> None:
    """Of the signs that the figure has."""
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {"linestyle": "none", "markeredgecolor": colours.bar, "markeredgewidth": 1.6}
    signs = [Line2D([], [], color=colours.bar, label="predicted, 95 % interval", marker="o", linewidth=1.6)]
    if any(row["extrapolates"] for row in rows):
        signs.append(Line2D([], [], color=colours.paper, label="extrapolates", marker="o", **dot))
    if any(row["observed"] is not None for row in rows):
        signs.append(Line2D([], [], color=colours.ink, label="observed", marker="x", linestyle="none"))
    figure.legend(handles=signs, loc="outside upper right", ncols=len(signs), fontsize=8)


# What figures share


def _upright(label: str) -> str:
    """A label in two lines, for the length of a vertical axis."""
    name, _, direction = label.rpartition(", ")
    return f"{_cut(name, 32)}\n{direction}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _limits(values: Sequence[float], share: float) -> tuple[float, float]:
    """From the lowest to the highest with a margin of ``share`` of what is between."""
    low, high = min(values), max(values)
    margin = share * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


# Which plots there are


def plots_of(manifest: MixtureManifest) -> tuple[Plot, ...]:
    """The plots of what was found: a surface of three sources alone, predictions only where there are results."""
    report = manifest.report
    if not report:
        return ()
    there = {
        "surface": len(report["sources"]) == 3,
        "slices": bool(sliced_sources(report)),
        "candidates": True,
        "fit": bool(fitted_runs(report)),
        "errors": bool(best_folds(report)),
    }
    return tuple(_captioned(plot, report) for plot in PLOTS if there[plot.name])


def _captioned(plot: Plot, report: Report) -> Plot:
    """The plot with what its caption has to say of this report."""
    more = ""
    if plot.name == "slices" and (n_left_out := len(sliced_sources(report)) - MAX_SLICES) > 0:
        more = f" Sources with smaller shares are left out: {n_left_out:,}."
    if plot.name == "errors" and (n_left_out := _n_without_error(report)) > 0:
        more = f" Predictors without a figure are left out: {n_left_out:,}; the table says why."
    if plot.name == "candidates":
        more = (
            " Where intervals are wider than the mixtures are apart, their order may be chance."
            if predicts(report)
            else " Without results the dots are distances to the validation set."
        )
    return replace(plot, caption=plot.caption + more)


def _n_without_error(report: Report) -> int:
    there = {each["predictor"] for each in best_folds(report)}
    return len({each["predictor"] for each in report["cross_validation"]} - there)


def _from_table(figure: Callable[[Report, pl.DataFrame, Theme], Figure], table: str) -> Callable[..., Draw]:
    def prepare(manifest: MixtureManifest, tables: Tables) -> Draw:
        return partial(figure, manifest.report, tables(table))

    return prepare


def _from_report(figure: Callable[[Report, Theme], Figure]) -> Callable[..., Draw]:
    def prepare(manifest: MixtureManifest, tables: Tables) -> Draw:
        return partial(figure, manifest.report)

    return prepare


PLOTS = (
    Plot(
        "surface",
        "All mixtures of the three sources",
        "Each point of the triangle is a mixture: a corner is one source alone, the middle all three alike. "
        "Brighter is better.",
        _from_table(surface_figure, SURFACE_TABLE),
    ),
    Plot(
        "candidates",
        "The compared mixtures",
        "The chosen mixture first.",
        _from_report(candidates_figure),
    ),
    Plot(
        "slices",
        "One source more or less",
        "As the share of one source changes, the others keep the proportions of the chosen mixture. The star is "
        "the chosen share.",
        _from_table(slices_figure, SLICES_TABLE),
    ),
    Plot(
        "fit",
        "Predicted and observed",
        "Each dot is a run, predicted at its own size from the runs that were not in its fold; on the dashed line "
        "both are the same.",
        _from_report(fit_figure),
    ),
    Plot(
        "errors",
        "Errors of the predictors",
        "Mean absolute error over the folds, the best predictor first.",
        _from_report(errors_figure),
    ),
)
