"""Croissant 1.1: the mixture described in JSON-LD, with its rows as Parquet files beside it.

Asked of a service, the document stands alone and points at the service's rows, which are read as JSON lines. That
is what Croissant calls a live data set: a stream has no checksum, though its rows never change.

Licences: manifests of corpora have none, so the document says that none is recorded, in words: a licence that
somebody made up would be worse. ``prov:`` says which corpora the mixture is made of, and how.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from mixwright.fingerprint import file_sha256
from mixwright.jobs.exports.format import Export, ExportFormat
from mixwright.jobs.exports.lineage import (
    columns,
    corpora,
    description,
    identifier,
    mixture_url,
    parameters,
    rows_url,
)
from mixwright.schemas.manifests import CorpusManifest, MixtureManifest
from mixwright.selectors.streams import ROW_SCHEMA

DOCUMENT = "croissant.json"
MEDIA_TYPE = 'application/ld+json; profile="http://mlcommons.org/croissant/1.1"'
LICENCE = "unknown: none is recorded for the corpora of this mixture"
_ROWS_PER_FILE = 65_536
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def document(export: Export, distribution: list[dict[str, Any]], source: dict[str, Any]) -> dict[str, Any]:
    """The JSON-LD: ``distribution`` are its files, and ``source`` names those that hold the rows."""
    manifest = export.manifest
    service = export.service
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": manifest.ref,
        "description": description(manifest),
        "license": LICENCE,
        "url": mixture_url(service, manifest) if service else _identifier(manifest),
        "identifier": _identifier(manifest),
        "version": f"{manifest.version}.0.0",
        "datePublished": manifest.created_at.date().isoformat(),
        "dateCreated": manifest.created_at.date().isoformat(),
        "creator": {"@type": "sc:Organization", "name": f"mixwright, selector {manifest.selector}"},
        "citeAs": f"{_identifier(manifest)} ({manifest.created_at.date().isoformat()})",
        "keywords": ["language model training data", manifest.selector],
        **({"isLiveDataset": True} if service else {}),
        "prov:wasDerivedFrom": [_derived(each) for each in corpora(export)],
        "prov:wasGeneratedBy": _activity(manifest),
        "distribution": distribution,
        "recordSet": [_record_set(source)],
    }


def _identifier(manifest: MixtureManifest | CorpusManifest) -> str:
    return identifier(manifest.kind, manifest.ref, manifest.fingerprint)


def _derived(corpus: CorpusManifest) -> dict[str, Any]:
    return {
        "@id": _identifier(corpus),
        "@type": "prov:Entity",
        "prov:label": f"corpus {corpus.ref}: {corpus.n_documents:,} documents, {corpus.n_tokens:,} tokens",
        "identifier": corpus.fingerprint,
    }


def _activity(manifest: MixtureManifest) -> dict[str, Any]:
    """The selection: its parameters are values of a ``PropertyValue`` each, as JSON."""
    version = manifest.software.get("mixwright", "")
    return {
        "@type": "prov:Activity",
        "prov:label": f"selection by {manifest.selector}",
        "prov:endedAtTime": manifest.created_at.isoformat(),
        "prov:wasAssociatedWith": {"@type": "prov:SoftwareAgent", "prov:label": f"mixwright {version}".strip()},
        "additionalProperty": [
            {"@type": "sc:PropertyValue", "name": name, "value": value}
            for name, value in parameters(manifest).items()
        ],
    }


def _record_set(source: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "rows",
        "name": "rows",
        "description": "The rows in the order in which the mixture serves them, repeats included.",
        "key": {"@id": "rows/position"},
        "field": [_field(name, dtype, text, source) for name, dtype, text in columns()],
    }


def _field(name: str, dtype: pa.DataType, text: str, source: dict[str, Any]) -> dict[str, Any]:
    kind = "sc:Integer" if pa.types.is_integer(dtype) else "sc:Text"
    return {
        "@type": "cr:Field",
        "@id": f"rows/{name}",
        "name": name,
        "description": text,
        "dataType": kind,
        "source": {**source, "extract": {"column": name}},
    }


def files(export: Export, names: Sequence[str]) -> list[dict[str, Any]]:
    """The Parquet files of an export, and the set that they make: readers take the set from the folder itself."""
    objects = [_parquet(export, name) for name in names]
    together = {
        "@type": "cr:FileSet",
        "@id": "parquet",
        "name": "parquet",
        "description": "All rows; the files are in order.",
        "encodingFormat": "application/x-parquet",
        "includes": "data/*.parquet",
    }
    return [*objects, together]


def _parquet(export: Export, name: str) -> dict[str, Any]:
    path = export.folder / name
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": "application/x-parquet",
        "sha256": file_sha256(path),
    }


def stream(service: str, manifest: MixtureManifest) -> dict[str, Any]:
    """The service's rows as a file."""
    return {
        "@type": "cr:FileObject",
        "@id": "rows.jsonl",
        "name": "rows.jsonl",
        "contentUrl": rows_url(service, manifest),
        "encodingFormat": "application/jsonlines",
    }


def _write(export: Export) -> None:
    if export.service is not None:
        distribution = [stream(export.service, export.manifest)]
        described = document(export, distribution, {"fileObject": {"@id": "rows.jsonl"}})
    else:
        described = document(export, files(export, _write_rows(export)), {"fileSet": {"@id": "parquet"}})
    export.warn("no licence is recorded for the corpora: the document says so, and only you can name one")
    export.write_json(DOCUMENT, described)


def _write_rows(export: Export) -> list[str]:
    """Write the rows in order; returns the files."""
    names = []
    for number, start in enumerate(range(0, len(export.stream), _ROWS_PER_FILE)):
        name = f"data/part-{number:05d}.parquet"
        n_rows = export.write_parquet(name, export.stream.read(start, _ROWS_PER_FILE), ROW_SCHEMA)
        export.progress.advance(n_rows)
        names.append(name)
    return names


CROISSANT = ExportFormat(
    name="croissant",
    title="Croissant 1.1 (JSON-LD) beside the rows as Parquet",
    trainer="Croissant",
    tokenized=False,
    document=DOCUMENT,
    write=_write,
    snippet="""import mlcroissant

for row in mlcroissant.Dataset("{root}/croissant.json").records("rows"):
    ...""",
    masks=True,
    stages=True,
    media_type=MEDIA_TYPE,
)
