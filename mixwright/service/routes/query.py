"""Mixtures by declaration: published at once, or looked at before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from mixwright.jobs.query import preview_mixture, query_mixture, refuse_large_pool
from mixwright.jobs.select import Publication
from mixwright.progress import NoProgress
from mixwright.schemas.catalog import MixtureDetail
from mixwright.schemas.previews import MixturePreview
from mixwright.selectors.query import MixtureQuery
from mixwright.service.problems import problem_responses
from mixwright.service.state import Services, ServicesDep

router = APIRouter(tags=["mixtures"])

_AT_ONCE = 2
"""Selections at one time: each uses a core. Others wait, and hold none of the threads that answer requests."""

_ResultT = TypeVar("_ResultT")

_EXAMPLES: dict[str, Any] = {
    "weights": {
        "summary": "shares of two corpora, long documents only",
        "value": {
            "sources": ["wiki", "web"],
            "where": "n_tokens >= 100 AND domain IS NOT NULL",
            "weights": {"wiki": 0.7, "web": 0.3},
            "budget": {"tokens": 1_000_000},
        },
    },
    "tags": {
        "summary": "as uniform as four passes allow, tagged, the last tenth plain",
        "value": {
            "sources": ["wiki", "web"],
            "unimax": 4,
            "tags": {"preset": "meco"},
            "budget": {"tokens": 1_000_000},
        },
    },
    "stages": {
        "summary": "two stages with other shares",
        "value": {
            "sources": ["wiki", "web", "textbooks"],
            "stages": [
                {"name": "main", "share": 0.9, "weights": {"wiki": 0.3, "web": 0.7}},
                {"name": "anneal", "share": 0.1, "weights": {"wiki": 0.5, "textbooks": 0.5}},
            ],
            "budget": {"tokens": 1_000_000},
            "name": "two-stages",
        },
    },
    "wsd": {
        "summary": "textbooks in the decay of the learning rate only",
        "value": {
            "sources": ["wiki", "web", "textbooks"],
            "schedule": {"kind": "wsd", "decay_sources": {"textbooks": 1}, "pretrain_share_in_decay": 0.6},
            "budget": {"tokens": 1_000_000},
        },
    },
}
_Query = Annotated[MixtureQuery, Body(openapi_examples=_EXAMPLES)]
_LOCATION = {"headers": {"Location": {"description": "address of the mixture", "schema": {"type": "string"}}}}


@router.post(
    "/v1/mixtures/query",
    name="query_mixture",
    summary="Declare a mixture",
    status_code=201,
    response_model=MixtureDetail,
    responses={
        201: {"description": "published now", **_LOCATION},
        200: {"description": "published before", "model": MixtureDetail, **_LOCATION},
        **problem_responses(400, 404, 409),
    },
)
async def declare(request: Request, services: ServicesDep, query: _Query) -> Response:
    """Publish a mixture without a job: conditions, shares, stages and tags over corpora that are there.

    Idempotent: the same declaration of the same versions of the corpora is the same mixture, and without a `name`
    it is named by its fingerprint. The answer is that of `GET /v1/mixtures/{ref}`; the rows are at `Location` and
    `/rows`.

    409 where the corpora cannot fill the budget: `source` runs out first, and `largest_budget` is what there is.
    """
    found = await _inline(request, lambda: _published(services, query))
    content = MixtureDetail.model_validate(dict(found.manifest)).model_dump_json()
    headers = {"Location": f"/v1/mixtures/{found.manifest.ref}"}
    return Response(content, 201 if found.is_new else 200, headers, "application/json")


@router.post(
    "/v1/mixtures/preview",
    name="preview_mixture",
    summary="Preview a mixture",
    responses=problem_responses(400, 404, 409),
)
async def preview(request: Request, services: ServicesDep, query: _Query) -> MixturePreview:
    """What `POST /v1/mixtures/query` would publish: counts, shares, stages and warnings. Nothing is written."""

    def work() -> MixturePreview:
        refuse_large_pool(services.store, query)
        return preview_mixture(services.store, query)

    return await _inline(request, work)


def _published(services: Services, query: MixtureQuery) -> Publication:
    refuse_large_pool(services.store, query)
    found = query_mixture(services.store, query, NoProgress())
    services.catalog.record(found.manifest)
    return found


async def _inline(request: Request, work: Callable[[], _ResultT]) -> _ResultT:
    """The result of work that takes a while, in a thread."""
    state = request.app.state
    if not hasattr(state, "query_limiter"):
        state.query_limiter = anyio.CapacityLimiter(_AT_ONCE)
    return await anyio.to_thread.run_sync(work, limiter=state.query_limiter)
