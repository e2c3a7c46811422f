"""What documents about a mixture say of it: its corpora, how it was made, and its columns."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
import pyarrow as pa

from mixwright.jobs.exports.format import Export
from mixwright.schemas.manifests import CorpusManifest, MixtureManifest
from mixwright.selectors.streams import ROW_SCHEMA

COLUMNS = {
    "position": "place of the row in the mixture",
    "stage": "stretch of the mixture in which the row is served",
    "component": "part of the mixture that serves the row",
    "epoch": "pass of the component over its documents, from 0",
    "id": "the first 128 bits of the SHA-256 of the document's text, in hexadecimal",
    "source": "where the document came from",
    "domain": "host that the document came from",
    "url": "address that the document came from",
    "tag_text": "text that training puts before the document; empty for none",
    "text": "the document",
    "n_tokens": "tokens of the text by the mixture's tokenizer",
}
"""The columns of a row and what they hold."""


def columns() -> list[tuple[str, pa.DataType, str]]:
    """Name, type and meaning of each column of a row."""
    return [(field.name, field.type, COLUMNS[field.name]) for field in ROW_SCHEMA]


def corpora(export: Export) -> list[CorpusManifest]:
    """The corpora of the mixture's components, each once, in their order."""
    found: dict[str, CorpusManifest] = {}
    for component in export.manifest.components:
        manifest = export.store.manifest(component.source, "corpus")
        if isinstance(manifest, CorpusManifest):
            found.setdefault(manifest.ref, manifest)
    return list(found.values())


def parameters(manifest: MixtureManifest) -> dict[str, str]:
    """What the selector was told, as JSON by name, with the budget and the seed."""
    values: dict[str, Any] = {**manifest.parameters, "budget": manifest.budget, "seed": manifest.seed}
    return {name: msgspec.json.encode(value).decode() for name, value in values.items()}


def description(manifest: MixtureManifest) -> str:
    """The mixture in a sentence or two."""
    parts = ", ".join(f"{each.name} {each.weight:.1%}" for each in manifest.components)
    stages = ""
    if len(manifest.stages) > 1:
        stages = " Stages: " + ", ".join(f"{each.name} {each.n_rows:,} rows" for each in manifest.stages) + "."
    return (
        f"Training mixture {manifest.ref}, made by the selector {manifest.selector}: {manifest.n_rows:,} rows, "
        f"{manifest.n_tokens:,} tokens, repeats counted. Shares of the tokens: {parts}.{stages}"
    )


def identifier(kind: str, ref: str, fingerprint: str) -> str:
    """A URN that names one version of an artifact wherever it is kept."""
    return f"urn:mixwright:{kind}:{quote(ref, safe='@')}:{fingerprint}"


def rows_url(service: str, manifest: MixtureManifest) -> str:
    """The address of the mixture's rows."""
    return f"{mixture_url(service, manifest)}/rows"


def mixture_url(service: str, manifest: MixtureManifest) -> str:
    """The address of the mixture's manifest."""
    return f"{service.rstrip('/')}/v1/mixtures/{quote(manifest.ref, safe='@')}"
