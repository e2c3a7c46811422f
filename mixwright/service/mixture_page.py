"""The page of a mixture: what it is made of, and what its selector wants a person to see."""

from __future__ import annotations

from typing import Any

from mixwright.errors import NotFoundError
from mixwright.schemas.manifests import MixtureManifest
from mixwright.service import plotted_page, projektor_view
from mixwright.service.html import render
from mixwright.service.paser_view import budget_unit, cluster_rows, comparisons
from mixwright.store import Store


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
    links = {"manifest": base, "rows": f"{base}/rows?count=5", "lineage": f"{base}/lineage"}
    if manifest.report:
        links["report"] = f"{base}/report"
    return render("mixture.html", **plotted_page.served(manifest, base), links=links, **_view(manifest))


def page_in_one_file(store: Store, manifest: MixtureManifest) -> str:
    """The same page with styles and plots inside it, for a folder that also holds report.json and the plots.

    Raises DataError for a mixture whose tables cannot be read.
    """
    context = plotted_page.in_one_file(store, manifest)
    return render("mixture.html", **context, links={"report": "report.json"}, **_view(manifest))


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
