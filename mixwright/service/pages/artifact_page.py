"""One page for the kinds that have no page of their own: attributes, embeddings, indexes, results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixwright.schemas.manifests import (
    AnyManifest,
    AttributesManifest,
    EmbeddingsManifest,
    IndexManifest,
    ResultsManifest,
)
from mixwright.service.pages.html import bytes_text, render
from mixwright.service.pages.lineage_view import PLURALS, LineageDrawing

_FILES_SHOWN = 100
_ABOUT = {
    "attributes": "Extra columns of a corpus, row by row.",
    "embeddings": "Vectors of a corpus, row by row.",
    "index": "The nearest neighbours of a corpus's vectors.",
    "results": "What small trainings on mixtures scored.",
}


@dataclass(frozen=True)
class Table:
    """Rows of text; ``numbers`` are the places of the columns that are aligned to the right."""

    id: str
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: tuple[int, ...] = ()
    note: str = ""


def artifact_page(manifest: AnyManifest, lineage: LineageDrawing) -> str:
    """Facts, parameters, files and lineage."""
    plural = PLURALS[manifest.kind]
    return render(
        "artifact.html",
        section=None,
        crumbs=(("Catalog", "/"), (plural.capitalize(), f"/{plural}")),
        manifest=manifest,
        plural=plural,
        about=_ABOUT[manifest.kind],
        links=_links(manifest),
        facts=_facts(manifest),
        tables=[each for each in (*_own_tables(manifest), _parameters(manifest), _files(manifest)) if each.rows],
        lineage=lineage,
    )


def _links(manifest: AnyManifest) -> dict[str, str]:
    if isinstance(manifest, AttributesManifest):
        return {"rows": f"/v1/attributes/{manifest.ref}/rows?length=10"}
    if isinstance(manifest, ResultsManifest):
        return {"runs": f"/v1/results/{manifest.ref}/runs"}
    return {}


def _facts(manifest: AnyManifest) -> list[tuple[str, str]]:
    match manifest:
        case AttributesManifest():
            counts = [(name.replace("_", " "), f"{n:,}") for name, n in manifest.counts.items()]
            return [("Corpus", manifest.corpus), ("Rows", f"{manifest.n_rows:,}"), *counts]
        case EmbeddingsManifest():
            return [
                ("Corpus", manifest.corpus),
                ("Vectors", f"{manifest.n_rows:,}"),
                ("Dimensions", f"{manifest.dim:,}"),
                ("Stored as", manifest.dtype + (", unit length" if manifest.normalized else "")),
                ("Encoder", manifest.encoder),
                ("Embedded text", manifest.template),
                ("Documents that were cut", f"{manifest.n_truncated:,}"),
            ]
        case IndexManifest():
            return [
                ("Corpus", manifest.corpus),
                ("Embeddings", manifest.embeddings),
                ("Vectors", f"{manifest.n_rows:,}"),
                ("Index", f"{manifest.index_kind}, {manifest.factory}"),
                ("Size", bytes_text(manifest.n_bytes)),
                (f"Recall@{manifest.recall.k}", f"{manifest.recall.measured:.1%}"),
                ("At least, with 95 % certainty", f"{manifest.recall.lower_bound:.1%}"),
            ]
        case ResultsManifest():
            direction = "lower" if manifest.metric.direction == "minimize" else "higher"
            return [
                ("Runs", f"{manifest.n_rows:,}"),
                ("Sources", ", ".join(manifest.sources)),
                ("Metric", f"{manifest.metric.name}, {direction} is better"),
                ("Sizes in", manifest.unit),
                ("Evaluator", manifest.evaluator),
                ("Scored on", manifest.validation or "–"),
            ]
    return []


def _own_tables(manifest: AnyManifest) -> list[Table]:
    match manifest:
        case AttributesManifest():
            rows = [(each.name, each.dtype, each.description) for each in manifest.columns]
            return [Table("columns", "Columns", ("Column", "Type", "Is"), rows)]
        case IndexManifest():
            names = tuple(dict.fromkeys(name for each in manifest.candidates for name in each))
            cells = [tuple(_text(each.get(name)) for name in names) for each in manifest.candidates]
            return [Table("candidates", "What was tried", names, cells)]
    return []


def _parameters(manifest: AnyManifest) -> Table:
    rows = [(name, _text(value)) for name, value in _flat(manifest.parameters).items()]
    return Table("parameters", "Parameters", ("Parameter", "Value"), rows, note="They decide what it is.")


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def _files(manifest: AnyManifest) -> Table:
    shown, n = manifest.files[:_FILES_SHOWN], len(manifest.files)
    total = bytes_text(sum(each.n_bytes for each in manifest.files))
    return Table(
        "files",
        "Files",
        ("File", "Size", "Rows", "SHA-256"),
        [
            (
                each.path,
                bytes_text(each.n_bytes),
                f"{each.n_rows:,}" if each.n_rows else "",
                each.sha256[:16],
            )
            for each in shown
        ],
        numbers=(1, 2),
        note=f"{total} in all." + (f" The first {_FILES_SHOWN} of {n:,} files." if n > _FILES_SHOWN else ""),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
