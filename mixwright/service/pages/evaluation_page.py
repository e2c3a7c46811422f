"""The page of an evaluation: what a datastore is worth, at one size or at many."""

from __future__ import annotations

from mixwright.schemas.manifests import EvaluationManifest
from mixwright.service.pages import evaluation_view, plotted_page
from mixwright.service.pages.html import render
from mixwright.service.pages.lineage_view import LineageDrawing
from mixwright.store import Store

_TEMPLATE = "evaluation.html"


def served_page(manifest: EvaluationManifest, lineage: LineageDrawing) -> str:
    """The page as the service shows it, with the plots and the JSON at their addresses."""
    base = f"/v1/evaluations/{manifest.ref}"
    store = next((each for each in lineage.ancestors if each.ref == manifest.datastore), None)
    return render(
        _TEMPLATE,
        **plotted_page.served(manifest, base),
        section="evaluations",
        crumbs=(("Catalog", "/"), ("Evaluations", "/evaluations")),
        links={"manifest": base, "report": f"{base}/report"},
        view=evaluation_view,
        lineage=lineage,
        store_address=store.address if store else None,
    )


def page_in_one_file(store: Store, manifest: EvaluationManifest) -> str:
    """The same page with styles and plots inside it, for a folder that also holds report.json and the plots."""
    context = plotted_page.in_one_file(store, manifest)
    links = {"report": "report.json"}
    return render(_TEMPLATE, **context, links=links, view=evaluation_view, lineage=None, store_address=None)
