"""Jobs: submit, follow, cancel."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse

from mixwright.errors import NotFoundError
from mixwright.jobs.board import log_path
from mixwright.jobs.inputs import inputs_state
from mixwright.jobs.pages import Page
from mixwright.jobs.run import AnyRequest
from mixwright.jobs.train_command import refuse_train_command
from mixwright.schemas.jobs import Job, JobState
from mixwright.schemas.requests import PilotRequest
from mixwright.service.problems import problem_responses
from mixwright.service.queries import Cursor, Limit, Text
from mixwright.service.security.access import require
from mixwright.service.state import Services, ServicesDep

_log = logging.getLogger(__name__)

router = APIRouter(tags=["jobs"])

_POLL_SECONDS = 0.5
_MAX_LOG_BYTES = 4 << 20


class _Submission(BaseModel):
    """What is asked for. ``request`` has the fields of that kind of request."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    request: BaseModel


def _submission(request: type[BaseModel]) -> type[_Submission]:
    (kind,) = get_args(request.model_fields["kind"].annotation)
    fields: Any = {"kind": (Literal[kind], ...), "request": (request, ...)}
    return create_model(
        f"{kind.title().replace('-', '')}Job", __base__=_Submission, __doc__=request.__doc__, **fields
    )


if TYPE_CHECKING:
    AnySubmission = _Submission
else:
    # One body model for each request that jobs.run knows, so that a new kind needs no change here.
    _requests = get_args(get_args(AnyRequest)[0])
    _union = _submission(_requests[0])
    for _each in _requests[1:]:
        _union = _union | _submission(_each)
    AnySubmission = Annotated[_union, Field(discriminator="kind")]

_EXAMPLES: dict[str, Any] = {
    "ingest": {
        "summary": "files to a corpus",
        "value": {"kind": "ingest", "request": {"name": "wiki", "paths": ["wiki.jsonl.gz"]}},
    },
    "embed": {"summary": "a corpus to embeddings", "value": {"kind": "embed", "request": {"corpus": "wiki"}}},
    "index": {"summary": "embeddings to an index", "value": {"kind": "index", "request": {"corpus": "wiki"}}},
    "score": {
        "summary": "a corpus and two language models to attributes",
        "value": {
            "kind": "score",
            "request": {"corpus": "instructions", "original": "models/original", "pruned": "models/pruned"},
        },
    },
    "select": {
        "summary": "corpora to a mixture",
        "value": {
            "kind": "select",
            "request": {
                "name": "blend",
                "sources": ["wiki", "web"],
                "selector": {"kind": "unimax"},
                "budget": {"tokens": 1_000_000},
            },
        },
    },
    "datastore": {
        "summary": "corpora to a datastore",
        "value": {"kind": "datastore", "request": {"name": "library", "corpora": ["wiki", "web"]}},
    },
    "datastore-add": {
        "summary": "more corpora to a datastore",
        "value": {"kind": "datastore-add", "request": {"datastore": "library", "corpora": ["news"]}},
    },
    "datastore-delete": {
        "summary": "documents out of a datastore",
        "value": {
            "kind": "datastore-delete",
            "request": {"datastore": "library", "documents": ["0123456789abcdef0123456789abcdef"]},
        },
    },
    "datastore-compact": {
        "summary": "a datastore without what was deleted",
        "value": {"kind": "datastore-compact", "request": {"datastore": "library"}},
    },
    "evaluate": {
        "summary": "a datastore, queries and a language model to an evaluation",
        "value": {
            "kind": "evaluate",
            "request": {"datastore": "library", "queries": "questions.jsonl", "model": "models/lm"},
        },
    },
    "scale": {
        "summary": "the same against the size of the datastore",
        "value": {
            "kind": "scale",
            "request": {"datastore": "library", "queries": "questions.jsonl", "metrics": ["recall"]},
        },
    },
    "pilot": {
        "summary": "small trainings on mixtures to results",
        "value": {
            "kind": "pilot",
            "request": {
                "name": "pilots",
                "sources": ["wiki", "web"],
                "validation": "held-out",
                "evaluator": "ngram",
                "sizes": [20_000, 80_000],
            },
        },
    },
}


@router.post(
    "/v1/jobs", name="submit_job", summary="Submit a job", status_code=202, responses=problem_responses(400)
)
def submit_job(
    services: ServicesDep,
    response: Response,
    submission: Annotated[AnySubmission, Body(openapi_examples=_EXAMPLES)],
) -> Job:
    """Put a request on the job board; `Location` is the job's address.

    The same request while one is queued or running is the same job. So is one that has succeeded, as long as what
    it read and what it made are there unchanged. A failed or cancelled job may be submitted again.
    """
    if isinstance(submission.request, PilotRequest):
        refuse_train_command(submission.request.evaluator, services.settings)
    services.confinement.check(submission.request)
    request = submission.request.model_dump(mode="json")
    state = inputs_state(services.store, submission.request)
    job = services.board.submit(request, state)
    if job.result is not None and not _published(services, job):
        job = services.board.submit(request)
    _log.info("job %s (%s) submitted: %s", job.id, job.kind, job.state)
    if services.worker is not None:
        services.worker.wake()
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


def _published(services: Services, job: Job) -> bool:
    try:
        found = services.store.manifest(job.result.ref, job.result.kind) if job.result else None
    except NotFoundError:
        return False
    return found is not None and job.result is not None and found.fingerprint == job.result.fingerprint


@router.get("/v1/jobs", name="list_jobs", summary="List jobs")
def list_jobs(
    services: ServicesDep,
    state: Annotated[JobState | None, Query(description="only jobs in this state")] = None,
    kind: Annotated[Text | None, Query(description="only jobs of this kind", examples=["ingest"])] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[Job]:
    """Jobs, newest first."""
    return services.board.page(limit, cursor, state, kind)


def _job(services: ServicesDep, id: str) -> Job:
    return services.board.get(id)


ExistingJob = Annotated[Job, Depends(_job)]


@router.get("/v1/jobs/{id}", name="get_job", summary="A job", responses=problem_responses(404))
def get_job(job: ExistingJob) -> Job:
    """State, progress, and the result or the error."""
    return job


@router.get(
    "/v1/jobs/{id}/events",
    name="follow_job",
    summary="Follow a job",
    response_class=EventSourceResponse,
    responses=problem_responses(404),
)
async def follow_job(services: ServicesDep, job: ExistingJob) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: the job now, and again at every change, until it has ended.

    Each event is named `job` and its data is the job as `GET /v1/jobs/{id}` gives it. After the event of a final
    state the stream ends; an `EventSource` closes itself there or it would connect again. The stream ends earlier
    when the service stops: connect again.
    """
    yield ServerSentEvent(event="job", data=job)
    while not job.is_final and not services.life.stopping:
        await asyncio.sleep(_POLL_SECONDS)
        seen = await run_in_threadpool(services.board.get, job.id)
        if seen != job:
            job = seen
            yield ServerSentEvent(event="job", data=job)


@router.post(
    "/v1/jobs/{id}/cancel", name="cancel_job", summary="Cancel a job", responses=problem_responses(404, 409)
)
def cancel_job(services: ServicesDep, job: ExistingJob) -> Job:
    """A queued job is cancelled at once; a running one is asked to stop, and is cancelled seconds later."""
    return services.board.cancel(job.id)


@router.get(
    "/v1/jobs/{id}/logs",
    name="get_job_log",
    summary="Log of a job",
    response_class=PlainTextResponse,
    responses=problem_responses(404),
)
def job_log(
    http_request: Request,
    services: ServicesDep,
    job: ExistingJob,
    tail: Annotated[int, Query(ge=1, le=100_000, description="last lines, at most")] = 1000,
    tracebacks: Annotated[bool, Query(description="with stack traces; for keys of scope admin")] = False,
) -> str:
    """What the job wrote. Stack traces say much about the machine: only a key of scope `admin` may have them."""
    if tracebacks:
        require(http_request, "admin")
    path = log_path(services.settings.home, job.id)
    if not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _MAX_LOG_BYTES))
        text = log.read().decode(errors="replace")
    lines = text.splitlines() if tracebacks else without_tracebacks(text.splitlines())
    return "".join(f"{line}\n" for line in lines[-tail:])


_TRACE_BEGINS = re.compile(r"Traceback \(most recent call last\)|Stack \(most recent call last\)")
_PROCESS_PREFIX = re.compile(r"^(\([^)]*\) )?")
_INSIDE_TRACE = re.compile(r"^(\s|$)")


def without_tracebacks(lines: list[str]) -> list[str]:
    """The lines without the frames of Python's stack traces; the line that names the exception stays."""
    kept, inside = [], False
    for line in lines:
        if _TRACE_BEGINS.search(line):
            inside = True
        elif not inside or not _INSIDE_TRACE.match(_PROCESS_PREFIX.sub("", line)):
            inside = False
            kept.append(line)
    return kept
