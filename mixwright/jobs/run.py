"""Runs a request of any kind: what the CLI, the demo and the worker call."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter

from mixwright.jobs.assign import run_assign
from mixwright.jobs.embed import run_embed
from mixwright.jobs.index import run_index
from mixwright.jobs.ingest import run_ingest
from mixwright.jobs.pilot import run_pilot
from mixwright.jobs.score import run_score
from mixwright.jobs.select import run_select
from mixwright.progress import Progress
from mixwright.schemas.manifests import AnyManifest
from mixwright.schemas.requests import (
    AssignRequest,
    EmbedRequest,
    IndexRequest,
    IngestRequest,
    PilotRequest,
    ScoreRequest,
)
from mixwright.selectors.requests import SelectRequest
from mixwright.store import Store

AnyRequest = Annotated[
    IngestRequest | EmbedRequest | IndexRequest | ScoreRequest | SelectRequest | AssignRequest | PilotRequest,
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
