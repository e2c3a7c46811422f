"""What the pages of artifacts with plots share: where their plots and styles are."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, get_args

from mixwright.service.pages.html import STATIC, STYLES
from mixwright.service.plots.drawing import Format, Theme
from mixwright.service.plots.registry import Plotted, cached_plot, plots_of
from mixwright.store import Store


def served(manifest: Plotted, base: str) -> dict[str, Any]:
    """For a page of the service, with the plots at their addresses below ``base``."""

    def image(name: str, theme: Theme) -> str:
        return f"{base}/plots/{name}.svg" + ("?theme=dark" if theme == "dark" else "")

    return _context(manifest, image, f"{base}/plots/", styles=None)


def in_one_file(store: Store, manifest: Plotted) -> dict[str, Any]:
    """For a page with styles and plots inside it, in a folder that also holds the plots.

    Raises DataError for an artifact whose tables cannot be read.
    """
    plots = {plot.name: plot for plot in plots_of(manifest)}

    def image(name: str, theme: Theme) -> str:
        data = cached_plot(store, manifest, plots[name], "svg", theme)
        return f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"

    styles = "\n".join((STATIC / name).read_text("utf-8") for name in STYLES)
    return _context(manifest, image, "", styles)


def _context(
    manifest: Plotted, image: Callable[[str, Theme], str], plots_at: str, styles: str | None
) -> dict[str, Any]:
    return {
        "manifest": manifest,
        "report": manifest.report,
        "plots": {plot.name: plot for plot in plots_of(manifest)},
        "image": image,
        "files": lambda name: {each.upper(): f"{plots_at}{name}.{each}" for each in get_args(Format)},
        "styles": styles,
    }
