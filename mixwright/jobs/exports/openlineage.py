"""OpenLineage: how the mixture came to be, as the START and the COMPLETE event of one run.

Events follow OpenLineage 2-0-2, and facets the versions of their schemas named below. The run's id is a UUID
(version 5) of the mixture's fingerprint, and both events bear the time at which the mixture was published, the
only one that is known: the same mixture always gives the same events.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from mixwright.jobs.exports.format import Export, ExportFormat
from mixwright.jobs.exports.lineage import columns, corpora, description, identifier, mixture_url, parameters
from mixwright.schemas.manifests import CorpusManifest, MixtureManifest
from mixwright.schemas.mixtures import MixtureComponent

DOCUMENT = "openlineage.json"
NAMESPACE = "mixwright"
PRODUCER = "urn:mixwright:exports:openlineage"
_SPEC = "https://openlineage.io/spec"
_RUN_EVENT = f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
_FACETS = {
    "DatasetVersionDatasetFacet": "1-0-1",
    "DocumentationDatasetFacet": "1-1-0",
    "DocumentationJobFacet": "1-1-0",
    "ExecutionParametersRunFacet": "1-0-0",
    "InputStatisticsInputDatasetFacet": "1-0-0",
    "JobTypeJobFacet": "2-0-4",
    "OutputStatisticsOutputDatasetFacet": "1-0-2",
    "ProcessingEngineRunFacet": "1-1-1",
    "SchemaDatasetFacet": "1-2-0",
    "TagsDatasetFacet": "1-0-0",
}
"""The facets in use, and the versions of their schemas."""


def events(export: Export) -> list[dict[str, Any]]:
    """The two events, as ``RunEvent`` objects."""
    manifest = export.manifest
    common = {
        "eventTime": _time(manifest.created_at),
        "producer": PRODUCER,
        "schemaURL": _RUN_EVENT,
        "run": {"runId": run_id(manifest), "facets": _run_facets(manifest)},
        "job": {
            "namespace": _namespace(export),
            "name": f"select.{manifest.name}",
            "facets": _job_facets(manifest),
        },
        "inputs": [_input(export, each) for each in corpora(export)],
        "outputs": [_output(export)],
    }
    return [{"eventType": kind, **common} for kind in ("START", "COMPLETE")]


def run_id(manifest: MixtureManifest) -> str:
    """The id of the run that made the mixture: always the same for the same mixture."""
    return str(uuid5(NAMESPACE_URL, identifier("mixture", manifest.ref, manifest.fingerprint)))


def _namespace(export: Export) -> str:
    return NAMESPACE if export.service is None else export.service.rstrip("/")


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _facet(kind: str, /, **fields: Any) -> dict[str, Any]:
    schema = f"{_SPEC}/facets/{_FACETS[kind]}/{kind}.json#/$defs/{kind}"
    return {"_producer": PRODUCER, "_schemaURL": schema, **fields}


def _run_facets(manifest: MixtureManifest) -> dict[str, Any]:
    told = [{"key": name, "value": value} for name, value in parameters(manifest).items()]
    facets = {"executionParameters": _facet("ExecutionParametersRunFacet", parameters=told)}
    version = manifest.software.get("mixwright")
    if version is not None:
        facets["processing_engine"] = _facet("ProcessingEngineRunFacet", version=version, name="mixwright")
    return facets


def _job_facets(manifest: MixtureManifest) -> dict[str, Any]:
    return {
        "jobType": _facet("JobTypeJobFacet", processingType="BATCH", integration="MIXWRIGHT", jobType="SELECT"),
        "documentation": _facet(
            "DocumentationJobFacet",
            description=f"Selects a training mixture with the selector {manifest.selector}.",
            contentType="text/plain",
        ),
    }


def _schema() -> dict[str, Any]:
    fields = [
        {"name": name, "type": str(dtype), "description": text, "ordinal_position": number}
        for number, (name, dtype, text) in enumerate(columns(), start=1)
    ]
    return _facet("SchemaDatasetFacet", fields=fields)


def _input(export: Export, corpus: CorpusManifest) -> dict[str, Any]:
    served = [each for each in export.manifest.components if each.source == corpus.ref]
    return {
        "namespace": _namespace(export),
        "name": f"corpora/{corpus.name}",
        "facets": {
            "version": _facet("DatasetVersionDatasetFacet", datasetVersion=_version(corpus)),
            "documentation": _facet(
                "DocumentationDatasetFacet",
                description=f"Corpus {corpus.ref}: {corpus.n_documents:,} documents, {corpus.n_tokens:,} tokens.",
                contentType="text/plain",
            ),
            "tags": _tags({"fingerprint": corpus.fingerprint, **_shares(served)}),
        },
        "inputFacets": {
            "inputStatistics": _facet(
                "InputStatisticsInputDatasetFacet",
                rowCount=corpus.n_documents,
                size=sum(each.n_bytes for each in corpus.shards),
                fileCount=len(corpus.shards),
            )
        },
    }


def _shares(components: list[MixtureComponent]) -> dict[str, str]:
    """What the mixture takes of a corpus."""
    found: dict[str, str] = {}
    for each in components:
        values = {"weight": each.weight, "rows": each.n_rows, "tokens": each.n_tokens, "epochs": each.epochs}
        found |= {f"{each.name}.{name}": str(value) for name, value in values.items()}
    return found


def _output(export: Export) -> dict[str, Any]:
    manifest = export.manifest
    tags = {
        "fingerprint": manifest.fingerprint,
        "selector": manifest.selector,
        "tokenizer": manifest.tokenizer,
        "tokens": str(manifest.n_tokens),
    }
    if export.service is not None:
        tags["url"] = mixture_url(export.service, manifest)
    return {
        "namespace": _namespace(export),
        "name": f"mixtures/{manifest.name}",
        "facets": {
            "version": _facet("DatasetVersionDatasetFacet", datasetVersion=_version(manifest)),
            "schema": _schema(),
            "documentation": _facet(
                "DocumentationDatasetFacet", description=description(manifest), contentType="text/plain"
            ),
            "tags": _tags(tags),
        },
        "outputFacets": {
            "outputStatistics": _facet(
                "OutputStatisticsOutputDatasetFacet",
                rowCount=manifest.n_rows,
                size=sum(each.n_bytes for each in manifest.files),
                fileCount=len(manifest.files),
            )
        },
    }


def _tags(values: dict[str, str]) -> dict[str, Any]:
    tags = [{"key": key, "value": value, "source": "MIXWRIGHT"} for key, value in values.items()]
    return _facet("TagsDatasetFacet", tags=tags)


def _version(manifest: CorpusManifest | MixtureManifest) -> str:
    return f"{manifest.version}"


def _write(export: Export) -> None:
    export.write_json(DOCUMENT, events(export))


OPENLINEAGE = ExportFormat(
    name="openlineage",
    title="The run that made the mixture: a START and a COMPLETE event",
    trainer="OpenLineage",
    tokenized=False,
    document=DOCUMENT,
    write=_write,
    snippet="""import json
import requests

for event in json.load(open("{root}/openlineage.json")):
    requests.post("http://marquez:5000/api/v1/lineage", json=event).raise_for_status()""",
    masks=True,
    stages=True,
)
