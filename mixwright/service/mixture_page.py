"""The page of a mixture: what it is made of, and what its selector wants a person to see."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from mixwright.errors import NotFoundError
from mixwright.schemas.manifests import MixtureManifest
from mixwright.service import projektor_view
from mixwright.service.html import STATIC, render
from mixwright.service.paser_view import budget_unit, cluster_rows, comparisons
from mixwright.service.plots.drawing import Format, Theme
from mixwright.service.plots.registry import cached_plot, plots_of
from mixwright.store import Store

STYLES = ("home.css", "mixture.css")


def report_of(manifest: MixtureManifest) -> dict[str, Any]:
    """The selector's report; raises NotFoundError for a selector that makes none."""
    if not manifest.report:
        raise NotFoundError(
            f"mixture {manifest.ref} has no report, since {manifest.selector} makes none: ask for its manifest"
        )
    return manifest.report


def served_page(manifest: MixtureManifest) -> str:
    """The page as the service shows it, with the plots and the JSON at their addresses."""
    base = f"/v1/mixtures/{manifest.ref}"

    def image(name: str, theme: Theme) -> str:
        return f"{base}/plots/{name}.svg" + ("?theme=dark" if theme == "dark" else "")

    links = {"manifest": base, "rows": f"{base}/rows?count=5", "lineage": f"{base}/lineage"}
    if manifest.report:
        links["report"] = f"{base}/report"
    return _page(manifest, image, links, f"{base}/plots/", styles=None)


def page_in_one_file(store: Store, manifest: MixtureManifest) -> str:
    """The same page with styles and plots inside it, for a folder that also holds report.json and the plots.

    Raises DataError for a mixture whose tables cannot be read.
    """
    plots = {plot.name: plot for plot in plots_of(manifest)}

    def image(name: str, theme: Theme) -> str:
        data = cached_plot(store, manifest, plots[name], "svg", theme)
        return f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"

    styles = "\n".join((STATIC / name).read_text("utf-8") for name in STYLES)
    return _page(manifest, image, {"report": "report.json"}, "", styles)


def _page(
    manifest: MixtureManifest,
    image: Callable[[str, Theme], str],
    links: dict[str, str],
    plots_at: str,
    styles: str | None,
) -> str:
    formats: tuple[Format, ...] = ("svg", "png")
    return render(
        "mixture.html",
        manifest=manifest,
        report=manifest.report,
        plots={plot.name: plot for plot in plots_of(manifest)},
        image=image,
        links=links,
        files=lambda name: {each.upper(): f"{plots_at}{name}.{each}" for each in formats},
        styles=styles,
        style_files=STYLES,
        **_view(manifest),
    )


def _view(manifest: MixtureManifest) -> dict[str, Any]:
    """What the template ``report-<selector>.html`` has beside the manifest and its report."""
    if manifest.selector == "paser":
        return {
            "clusters": cluster_rows(manifest),
            "comparisons": comparisons(manifest),
            "unit": budget_unit(manifest),
        }
    if manifest.selector == "projektor":
        return projektor_view.page_view(manifest)
    return {}
