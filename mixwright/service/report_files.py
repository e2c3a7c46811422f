"""A report as files: the page, the JSON and the plots, for a mail or an archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec

from mixwright.jobs.materialize import new_folder
from mixwright.schemas.manifests import EvaluationManifest, MixtureManifest
from mixwright.service.pages import evaluation_page, mixture_page
from mixwright.service.plots.drawing import Format
from mixwright.service.plots.registry import Plotted, cached_plot, plots_of
from mixwright.store import Store


def write_report(store: Store, manifest: MixtureManifest, out: Path) -> list[str]:
    """Write ``report.html``, ``report.json`` and each plot as SVG and PNG into a new folder; returns their names.

    Raises NotFoundError for a selector that makes no report, ConflictError if ``out`` has something in it already,
    DataError for a mixture whose tables cannot be read.
    """
    page = {"report.html": mixture_page.page_in_one_file(store, manifest)}
    return _write(store, manifest, mixture_page.report_of(manifest), page, out)


def write_evaluation(store: Store, manifest: EvaluationManifest, out: Path) -> list[str]:
    """Write ``index.html``, ``report.json`` and each plot as SVG and PNG into a new folder; returns their names.

    Raises ConflictError if ``out`` has something in it already.
    """
    page = {"index.html": evaluation_page.page_in_one_file(store, manifest)}
    return _write(store, manifest, manifest.report.model_dump(mode="json"), page, out)


def _write(store: Store, manifest: Plotted, report: dict[str, Any], page: dict[str, str], out: Path) -> list[str]:
    files = {
        "report.json": msgspec.json.format(msgspec.json.encode(report)) + b"\n",
        **{name: text.encode() for name, text in page.items()},
        **{
            f"{plot.name}.{format}": cached_plot(store, manifest, plot, format, "light")
            for plot in plots_of(manifest)
            for format in get_args(Format)
        },
    }
    with new_folder(out) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return list(files)
