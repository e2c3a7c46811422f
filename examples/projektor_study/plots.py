"""Plots of the study, as SVG and PNG: errors by predictor, predicted and true scores, transport and scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixwright.service.plots.drawing import Colours, drawing, figure_bytes, new_figure
from projektor_study.report import PREDICTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COST_NAMES = {"none": "features alone", "zero_one": "features and zero_one labels", "otdd": "features and otdd"}


def write_plots(results: Mapping[str, Any], folder: Path) -> None:
    """Write ``errors``, ``predicted`` and ``transport``, each as .svg and .png."""
    figures = (("errors", errors_figure), ("predicted", predicted_figure), ("transport", transport_figure))
    for name, draw in figures:
        with drawing("light") as colours:
            figure = draw(results, colours)
        for suffix in ("svg", "png"):
            (folder / f"{name}.{suffix}").write_bytes(figure_bytes(figure, suffix))


def errors_figure(results: Mapping[str, Any], colours: Colours) -> Figure:
    """Mean absolute errors by predictor, a panel a problem, with standard errors."""
    with _panels(results, 4.6, sharey=True) as (figure, panels):
        for number, (problem, axes) in enumerate(panels.items()):
            table = results["tables"][problem]["stage1"]
            rows = [name for name in PREDICTED if name in table]
            for offset, (runs, colour) in enumerate(zip(results["runs"], colours.categories, strict=False)):
                shown = [(y, table[name][str(runs)]) for y, name in enumerate(rows) if str(runs) in table[name]]
                axes.errorbar(
                    [value[0] for _, value in shown],
                    [y + 0.24 * (offset - 0.5) for y, _ in shown],
                    xerr=[value[1] or 0.0 for _, value in shown],
                    fmt="os^Dv"[offset % 5],
                    color=colour,
                    markersize=4.5,
                    linewidth=1,
                    label=None if number else f"K = {runs}",
                )
            # An error far beyond the others would hide what they differ by.
            values = np.asarray([value[0] for row in table.values() for value in row.values()])
            limit = min(values.max() * 1.08, 2.2 * table["mean"][str(results["runs"][0])][0])
            axes.set_xlim(0, limit)
            for y, name in enumerate(rows):
                if beyond := [value[0] for value in table[name].values() if value[0] > limit]:
                    text = ", ".join(f"{value:,.{0 if limit > 5 else 2}f}" for value in beyond)
                    axes.text(limit, y, f"{text} →", ha="right", va="center", fontsize=8, color=colours.soft)
            axes.set_yticks(range(len(rows)), rows)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.axhspan(rows.index("auto") - 0.5, rows.index("auto") + 0.5, color=colours.line, alpha=0.5, lw=0)
            axes.set_title(f"{problem}: mean absolute error, {results['unit']}")
            axes.grid(axis="x")
        figure.legend(loc="outside upper right", ncols=len(results["runs"]), fontsize=8)
    return figure


def predicted_figure(results: Mapping[str, Any], colours: Colours) -> Figure:
    """What auto predicts from the fewest runs, against the truth, for mixtures that it has not seen."""
    runs = min(results["runs"])
    scale = results["scale"]
    with _panels(results, 3.7) as (figure, panels):
        for problem, axes in panels.items():
            points = []
            for seed in results["problems"][problem]["seeds"]:
                truth = np.asarray(seed["truth"][1])
                for draw in (each for each in seed["draws"] if each["runs"] == runs):
                    rows = np.setdiff1d(np.arange(len(truth)), draw["rows"])
                    points.append(np.column_stack([truth, draw["predicted"]["auto"]])[rows] * scale)
            shown = np.concatenate(points)
            ends = [shown.min(), shown.max()]
            axes.plot(ends, ends, color=colours.soft, linewidth=1)
            axes.scatter(*shown.T, s=7, color=colours.bar, alpha=0.35, linewidths=0)
            axes.set_aspect("equal", "box")
            error = results["tables"][problem]["stage1"]["auto"][str(runs)][0]
            axes.set_title(f"{problem}, K = {runs}: error {error:.{2 if scale > 1 else 3}f}")
            axes.set_xlabel(f"true {_score_name(results, problem)}")
            axes.grid()
        next(iter(panels.values())).set_ylabel("predicted by auto")
    return figure


def transport_figure(results: Mapping[str, Any], colours: Colours) -> Figure:
    """Transport of all mixtures of the first seed against their true scores at N1, by label cost."""
    problems = results["problems"]
    costs = list(results["tables"][next(iter(problems))]["correlation"])
    figure = new_figure(0.5 + 2.5 * len(problems))
    panels = figure.subplots(len(problems), len(costs), squeeze=False, sharey="row")
    for row, problem in zip(panels, problems, strict=True):
        seed = problems[problem]["seeds"][0]
        for axes, cost in zip(row, costs, strict=True):
            scores = results["scale"] * np.asarray(seed["truth"][1])
            axes.scatter(seed["transports"][cost], scores, s=12, color=colours.bar, alpha=0.7, linewidths=0)
            r = results["tables"][problem]["correlation"][cost]["r"][0]
            axes.set_title(f"{_COST_NAMES[cost]}\nmean r of the seeds {r:.2f}", fontsize=8)
            axes.grid()
        row[0].set_ylabel(f"{problem}: {_score_name(results, problem)}")
    for axes in panels[-1]:
        axes.set_xlabel("transport to the validation set")
    return figure


def _score_name(results: Mapping[str, Any], problem: str) -> str:
    metric = results["problems"][problem]["metric"]
    return f"{metric}, {results['unit']}" if metric != results["unit"] else metric


@contextmanager
def _panels(
    results: Mapping[str, Any], height: float, sharey: bool = False
) -> Iterator[tuple[Figure, dict[str, Axes]]]:
    """A figure with a panel for each problem."""
    figure = new_figure(height)
    axes = figure.subplots(1, len(results["problems"]), squeeze=False, sharey=sharey)[0]
    yield figure, dict(zip(results["problems"], axes, strict=True))
