"""Which plots an artifact has, and their files: drawn once, kept under ``HOME/cache/plots``."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import get_args

import polars as pl

from mixwright import __version__
from mixwright.errors import DataError, NotFoundError, first_line
from mixwright.schemas.manifests import EvaluationManifest, MixtureManifest
from mixwright.service.plots import datastores, paser, projektor
from mixwright.service.plots.drawing import Format, Plot, Theme, figure_bytes
from mixwright.store import Store

Plotted = MixtureManifest | EvaluationManifest
"""What may have plots."""

PLOTS: dict[str, Callable[[MixtureManifest], tuple[Plot, ...]]] = {
    "paser": lambda _: paser.PLOTS,
    "projektor": projektor.plots_of,
}
"""By selector: of some, which plots there are depends on what was found."""


def plots_of(manifest: Plotted) -> tuple[Plot, ...]:
    """The plots that an artifact has; of most selectors none."""
    if isinstance(manifest, EvaluationManifest):
        return datastores.plots_of(manifest)
    plots = PLOTS.get(manifest.selector)
    return plots(manifest) if plots else ()


def plot_file(manifest: Plotted, file: str) -> tuple[Plot, Format]:
    """The plot and the format that ``map.svg`` names; raises NotFoundError naming what there is."""
    plots = {f"{plot.name}.{format}": (plot, format) for plot in plots_of(manifest) for format in get_args(Format)}
    if file not in plots:
        maker = manifest.selector if isinstance(manifest, MixtureManifest) else manifest.report.job
        there = f"there are {', '.join(plots)}" if plots else f"{maker} draws none, ask for the report"
        raise NotFoundError(f"{manifest.kind} {manifest.ref} has no plot {file}: {there}")
    return plots[file]


def cached_plot(store: Store, manifest: Plotted, plot: Plot, format: Format, theme: Theme) -> bytes:
    """The file of a plot, from the cache if it is there. The cache may be deleted at any time.

    Raises DataError for an artifact whose tables cannot be read.
    """
    # Another release may draw otherwise.
    folder = store.home / "cache" / "plots" / manifest.fingerprint / __version__
    try:
        return (folder / f"{plot.name}-{theme}.{format}").read_bytes()
    except FileNotFoundError:
        drawn = _draw(store, manifest, plot)
    folder.mkdir(parents=True, exist_ok=True)
    for (each_theme, each_format), data in drawn.items():
        path = folder / f"{plot.name}-{each_theme}.{each_format}"
        temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        temporary.write_bytes(data)
        temporary.rename(path)
    return drawn[theme, format]


def _draw(store: Store, manifest: Plotted, plot: Plot) -> dict[tuple[Theme, Format], bytes]:
    """All files of a plot, since what takes long is the same for all of them."""

    def table(name: str) -> pl.DataFrame:
        try:
            return pl.read_parquet(store.directory(manifest) / f"{name}.parquet")
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(
                f"{name}.parquet of {manifest.kind} {manifest.ref} cannot be read ({first_line(error)}): restore "
                "it or select again"
            ) from error

    draw = plot.prepare(manifest, table)
    figures = {theme: draw(theme) for theme in get_args(Theme)}
    return {
        (theme, format): figure_bytes(figure, format)
        for theme, figure in figures.items()
        for format in get_args(Format)
    }
