"""The page of a mixture: what it is made of, and what its selector wants a person to see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixwright.errors import NotFoundError
from mixwright.schemas.manifests import CorpusManifest, MixtureManifest
from mixwright.service.pages import plotted_page, projektor_view
from mixwright.service.pages.composition_view import domain_chart, mixture_bars, stage_bands, token_ticks
from mixwright.service.pages.html import render
from mixwright.service.pages.lineage_view import LineageDrawing
from mixwright.service.pages.paser_view import budget_unit, cluster_rows, comparisons
from mixwright.service.pages.sample_rows import Sample
from mixwright.service.pages.snippets import Here, export_help, reading_snippets
from mixwright.store import Store

_SIZES_AROUND = 30
"""The sizes of the slider reach so many times above what was asked for."""


@dataclass(frozen=True)
class Surroundings:
    """What the service knows beside the manifest. ``here`` is its own address.

    ``corpora`` are those of the mixture's that are still there.
    """

    here: Here
    corpora: Sequence[CorpusManifest]
    sample: Sample | None
    lineage: LineageDrawing | None

    @property
    def present(self) -> frozenset[str]:
        """Refs of the corpora that have a page."""
        return frozenset(each.ref for each in self.corpora)


_ALONE = Surroundings(Here(""), (), None, None)


def report_of(manifest: MixtureManifest) -> dict[str, Any]:
    """The selector's report; raises NotFoundError for a selector that makes none."""
    if not manifest.report:
        raise NotFoundError(
            f"mixture {manifest.ref} has no report, since {manifest.selector} makes none: ask for its manifest"
        )
    return manifest.report


def served_page(manifest: MixtureManifest, around: Surroundings = _ALONE) -> str:
    """The page as the service shows it, with the plots and the JSON at their addresses."""
    base = f"/v1/mixtures/{manifest.ref}"
    links = {"manifest": base}
    if manifest.report:
        links["report"] = f"{base}/report"
    return render(
        "mixture.html",
        **plotted_page.served(manifest, base),
        **_view(manifest, around),
        section="mixtures",
        crumbs=(("Catalog", "/"), ("Mixtures", "/mixtures")),
        scripts=("mixer.js",) if manifest.selector == "projektor" and manifest.report else (),
        links=links,
        reading=reading_snippets(manifest, around.here),
        exports=export_help(manifest, around.here),
    )


def page_in_one_file(store: Store, manifest: MixtureManifest) -> str:
    """The same page with styles and plots inside it, for a folder that also holds report.json and the plots.

    Raises DataError for a mixture whose tables cannot be read.
    """
    return render(
        "mixture.html",
        **plotted_page.in_one_file(store, manifest),
        **_view(manifest, _ALONE),
        links={"report": "report.json"},
        reading=[],
        exports=[],
    )


def _view(manifest: MixtureManifest, around: Surroundings) -> dict[str, Any]:
    bars = mixture_bars(manifest)
    return {
        "around": around,
        "bars": bars,
        "bands": stage_bands(manifest),
        "ticks": token_ticks(manifest.n_tokens),
        "domain_chart": domain_chart(around.corpora, bars.colours),
        **_report_view(manifest),
    }


def _report_view(manifest: MixtureManifest) -> dict[str, Any]:
    """What the template ``report-<selector>.html`` has beside the manifest and its report."""
    if manifest.selector == "paser":
        return {
            "clusters": cluster_rows(manifest),
            "comparisons": comparisons(manifest),
            "unit": budget_unit(manifest),
        }
    if manifest.selector == "projektor" and manifest.report:
        return {**projektor_view.page_view(manifest), "mixer": mixer_view(manifest.report)}
    return {}


def mixer_view(report: Mapping[str, Any]) -> dict[str, Any]:
    """The sliders: sources with the chosen shares, the largest first, and the ends of the sizes."""
    colours = projektor_view.source_colours(report)
    chosen = projektor_view.chosen_weights(report)
    asked = report["settings"]["size"]
    sizes = [run["size"] for run in report["runs"]]
    return {
        # In the report's order: the corners of the triangle are in that order, too.
        "sources": [
            {"name": each["name"], "share": chosen.get(each["name"], 0.0), "colour": colours[each["name"]]}
            for each in report["sources"]
        ],
        # Runs of one size say nothing of others.
        "sizes": len(set(sizes)) > 1,
        "smallest": max(min([*sizes, asked]), 1),
        "largest": 10 ** math.ceil(math.log10(max([*sizes, asked]) * _SIZES_AROUND)),
    }
