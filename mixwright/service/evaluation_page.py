"""The page of an evaluation: what a datastore is worth, at one size or at many."""

from __future__ import annotations

from mixwright.schemas.manifests import EvaluationManifest
from mixwright.service import evaluation_view, plotted_page
from mixwright.service.html import render
from mixwright.store import Store

_TEMPLATE = "evaluation.html"


def served_page(manifest: EvaluationManifest) -> str:
    """The page as the service shows it, with the plots and the JSON at their addresses."""
    base = f"/v1/evaluations/{manifest.ref}"
    links = {"manifest": base, "report": f"{base}/report"}
    return render(_TEMPLATE, **plotted_page.served(manifest, base), links=links, view=evaluation_view)


def page_in_one_file(store: Store, manifest: EvaluationManifest) -> str:
    """The same page with styles and plots inside it, for a folder that also holds report.json and the plots."""
    context = plotted_page.in_one_file(store, manifest)
    return render(_TEMPLATE, **context, links={"report": "report.json"}, view=evaluation_view)
