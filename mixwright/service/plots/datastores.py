"""Plots of a datastore's scores against its size. The figures are pure functions of the report."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mixwright.schemas.evaluations import Curve, ScaleReport
from mixwright.schemas.manifests import EvaluationManifest
from mixwright.service.pages.evaluation_view import is_better_low, metric_name, number, plot_name, size_text
from mixwright.service.plots.drawing import Draw, Plot, Tables, Theme, drawing, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT = 4.0


def curve_figure(curve: Curve, theme: Theme) -> Figure:
    """A score over the tokens of the store, on a logarithmic axis: means with their band, and every seed's.

    The model alone, which reads no passage, is a line across. A share without a passage has no place on the axis.
    """
    points = [point for point in curve.points if point.n_tokens]
    sizes = [point.n_tokens for point in points]
    with drawing(theme) as colours:
        figure = new_figure(_HEIGHT)
        axes = figure.subplots()
        if curve.baseline is not None:
            base = curve.baseline
            axes.axhline(base.value, color=colours.second, linestyle="--", linewidth=1.4, label="model alone")
            axes.axhspan(base.low, base.high, color=colours.second, alpha=0.12, linewidth=0)
        low, high = ([getattr(point, end) for point in points] for end in ("low", "high"))
        axes.fill_between(sizes, low, high, color=colours.bar, alpha=0.2, linewidth=0, label="95 % interval")
        for point in points:
            # All seeds of the whole store are one.
            tokens = [n for n in point.tokens_by_seed if n]
            seeds = [value for value, n in zip(point.by_seed, point.tokens_by_seed, strict=True) if n]
            axes.plot(tokens, seeds, "o", color=colours.soft, alpha=0.6, markersize=3.5, linewidth=0)
        axes.plot(sizes, [point.value for point in points], "o-", color=colours.bar, label="mean over seeds")
        _label_ends(axes, curve)
        _size_axis(axes)
        better = "lower" if is_better_low(curve.metric) else "higher"
        axes.set_title(f"{metric_name(curve.metric, curve.k)} ({better} is better)")
        axes.set_xlabel("tokens in the datastore")
        axes.grid()
        axes.margins(y=0.12)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _label_ends(axes: Axes, curve: Curve) -> None:
    """The numbers of the first and the last point, on the side of the curve that is free."""
    drawn = [point for point in curve.points if point.n_tokens]
    for point in {drawn[0].probability: drawn[0], drawn[-1].probability: drawn[-1]}.values():
        axes.annotate(
            number(point.value),
            (point.n_tokens, point.value),
            (0, 8),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
        )


def _size_axis(axes: Axes) -> None:
    """Logarithmic, with sizes as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: size_text(n)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def plots_of(manifest: EvaluationManifest) -> tuple[Plot, ...]:
    """One plot for each curve; none of an evaluation of a single size."""
    report = manifest.report
    if not isinstance(report, ScaleReport):
        return ()
    return tuple(_plot(curve) for curve in report.curves if any(point.n_tokens for point in curve.points))


def _plot(curve: Curve) -> Plot:
    def prepare(manifest: EvaluationManifest, tables: Tables) -> Draw:
        return partial(curve_figure, curve)

    alone = " The dashed line is the model without any passage." if curve.baseline is not None else ""
    return Plot(
        plot_name(curve.metric),
        f"{metric_name(curve.metric, curve.k)} against the size of the datastore",
        f"Each share of the store is drawn by several seeds (small points).{alone} Bands are 95 % intervals over "
        "queries and seeds.",
        prepare,
    )
