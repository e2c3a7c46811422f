"""A mixture's report as files: the page, the JSON and the plots, for a mail or an archive."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec

from mixwright.jobs.materialize import new_folder
from mixwright.schemas.manifests import MixtureManifest
from mixwright.service.mixture_page import page_in_one_file, report_of
from mixwright.service.plots.drawing import Format
from mixwright.service.plots.registry import cached_plot, plots_of
from mixwright.store import Store


def write_report(store: Store, manifest: MixtureManifest, out: Path) -> list[str]:
    """Write ``report.html``, ``report.json`` and each plot as SVG and PNG into a new folder; returns their names.

    Raises NotFoundError for a selector that makes no report, ConflictError if ``out`` has something in it already,
    DataError for a mixture whose tables cannot be read.
    """
    files = {
        "report.json": msgspec.json.format(msgspec.json.encode(report_of(manifest))) + b"\n",
        "report.html": page_in_one_file(store, manifest).encode(),
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
