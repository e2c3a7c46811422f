"""MLflow: the mixture as a data set entity, to be logged with a run.

The entity's fields are strings: the digest has 8 characters, as MLflow recommends; source, schema and profile are
JSON. The source is the service's address of the rows, or the mixture's folder where there is no service.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pyarrow as pa

from mixwright.jobs.exports.format import Export, ExportFormat
from mixwright.jobs.exports.lineage import corpora, rows_url
from mixwright.selectors.streams import ROW_SCHEMA

DOCUMENT = "mlflow-dataset.json"
_DIGEST_LENGTH = 8
_SNIPPET = """import json
import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag

entity = Dataset(**json.load(open("{root}/mlflow-dataset.json")))
with mlflow.start_run() as run:
    context = [InputTag("mlflow.data.context", "training")]
    mlflow.MlflowClient().log_inputs(run.info.run_id, [DatasetInput(entity, context)])"""


def entity(export: Export) -> dict[str, str]:
    """The fields of ``mlflow.entities.Dataset``."""
    manifest = export.manifest
    if export.service is not None:
        source_type, source = "http", {"url": rows_url(export.service, manifest)}
    else:
        source_type, source = "local", {"uri": str(export.store.directory(manifest).resolve())}
    return {
        "name": manifest.ref,
        "digest": manifest.fingerprint[:_DIGEST_LENGTH],
        "source_type": source_type,
        "source": _json(source),
        "schema": _json({"mlflow_colspec": [_column(field) for field in ROW_SCHEMA]}),
        "profile": _json(_profile(export)),
    }


def _column(field: pa.Field) -> dict[str, Any]:
    kind = "long" if pa.types.is_integer(field.type) else "string"
    return {"type": kind, "name": field.name, "required": not field.nullable}


def _profile(export: Export) -> dict[str, Any]:
    manifest = export.manifest
    return {
        "num_rows": manifest.n_rows,
        "num_tokens": manifest.n_tokens,
        "tokenizer": manifest.tokenizer,
        "selector": manifest.selector,
        "fingerprint": manifest.fingerprint,
        "weights": {each.name: each.weight for each in manifest.components},
        "stages": {each.name: {"num_rows": each.n_rows, "num_tokens": each.n_tokens} for each in manifest.stages},
        "corpora": {each.ref: each.fingerprint for each in corpora(export)},
    }


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _write(export: Export) -> None:
    export.write_json(DOCUMENT, entity(export))


MLFLOW = ExportFormat(
    name="mlflow",
    title="A data set entity to log with a run",
    trainer="MLflow",
    tokenized=False,
    document=DOCUMENT,
    write=_write,
    snippet=_SNIPPET,
    masks=True,
    stages=True,
)
