"""Runs a request of any kind: what the CLI, the demo and the worker call."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter

from mixwright.jobs.assign import run_assign
from mixwright.jobs.datastores.build import run_datastore
from mixwright.jobs.datastores.changes import (
    run_datastore_add,
    run_datastore_compact,
    run_datastore_delete,
)
from mixwright.jobs.datastores.evaluate import run_evaluate
from mixwright.jobs.datastores.scale import run_scale
from mixwright.jobs.decontaminate import run_decontaminate
from mixwright.jobs.embed import run_embed
from mixwright.jobs.index import run_index
from mixwright.jobs.ingest import run_ingest
from mixwright.jobs.near_duplicates import run_near_duplicates
from mixwright.jobs.pilot import run_pilot
from mixwright.jobs.score import run_score
from mixwright.jobs.select import run_select
from mixwright.progress import Progress
from mixwright.schemas.datastores import (
    DatastoreAddRequest,
    DatastoreCompactRequest,
    DatastoreDeleteRequest,
    DatastoreRequest,
)
from mixwright.schemas.evaluations import EvaluateRequest, ScaleRequest
from mixwright.schemas.manifests import AnyManifest
from mixwright.schemas.requests import (
    AssignRequest,
    DecontaminateRequest,
    EmbedRequest,
    IndexRequest,
    IngestRequest,
    NearDuplicatesRequest,
    PilotRequest,
    ScoreRequest,
)
from mixwright.selectors.requests import SelectRequest
from mixwright.store import Store

AnyRequest = Annotated[
    IngestRequest
    | EmbedRequest
    | IndexRequest
    | ScoreRequest
    | SelectRequest
    | AssignRequest
    | PilotRequest
    | DatastoreRequest
    | DatastoreAddRequest
    | DatastoreDeleteRequest
    | DatastoreCompactRequest
    | EvaluateRequest
    | ScaleRequest
    | NearDuplicatesRequest
    | DecontaminateRequest,
    Field(discriminator="kind"),
]
REQUEST_ADAPTER: TypeAdapter[AnyRequest] = TypeAdapter(AnyRequest)
"""Reads a request of any kind."""


def run_request(store: Store, request: AnyRequest, progress: Progress) -> AnyManifest:
    """Do what the request asks and return the manifest of what it published (or found published)."""
    match request:
        case IngestRequest():
            return run_ingest(store, request, progress)
        case EmbedRequest():
            return run_embed(store, request, progress)
        case IndexRequest():
            return run_index(store, request, progress)
        case ScoreRequest():
            return run_score(store, request, progress)
        case SelectRequest():
            return run_select(store, request, progress)
        case AssignRequest():
            return run_assign(store, request, progress)
        case PilotRequest():
            return run_pilot(store, request, progress)
        case DatastoreRequest():
            return run_datastore(store, request, progress)
        case DatastoreAddRequest():
            return run_datastore_add(store, request, progress)
        case DatastoreDeleteRequest():
            return run_datastore_delete(store, request, progress)
        case DatastoreCompactRequest():
            return run_datastore_compact(store, request, progress)
        case EvaluateRequest():
            return run_evaluate(store, request, progress)
        case ScaleRequest():
            return run_scale(store, request, progress)
        case NearDuplicatesRequest():
            return run_near_duplicates(store, request, progress)
        case DecontaminateRequest():
            return run_decontaminate(store, request, progress)
