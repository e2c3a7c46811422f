"""Datastores: manifests, passages and search."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.responses import Response

from mixwright.indexes.datastores.pieces import Pieces
from mixwright.schemas.catalog import DatastoreDetail, RowsPage
from mixwright.schemas.datastores import SearchRequest, SearchResponse
from mixwright.schemas.manifests import DatastoreManifest
from mixwright.service.caching import cache_headers, not_modified
from mixwright.service.problems import problem_responses
from mixwright.service.queries import Length, Offset, Ref
from mixwright.service.routes.artifacts import add_list, add_manifest
from mixwright.service.state import ServicesDep
from mixwright.service.viewer import ROWS_PER_PAGE, rows_page

router = APIRouter(tags=["datastores"])
add_list(router, "/v1/datastores", "datastore")
add_manifest(router, "/v1/datastores", "datastore", DatastoreDetail)

_EXAMPLES: dict[str, Any] = {
    "texts": {
        "summary": "three passages for a question",
        "value": {"queries": ["How do plants make sugar?"], "k": 3},
    },
    "options": {
        "summary": "words and vectors together, of some domains, without near-duplicates",
        "value": {
            "queries": ["How do plants make sugar?"],
            "k": 5,
            "mode": "hybrid",
            "domains": ["en.wikipedia.org"],
            "where": "n_tokens >= 13",
            "dedup": True,
            "subsample": 0.5,
            "seed": 1,
        },
    },
    "decontaminated": {
        "summary": "no passage that has the question or its answer in it",
        "value": {
            "queries": ["What do plants make of light?"],
            "decontaminate": ["What do plants make of light?", "Plants make sugar out of light, water and air."],
        },
    },
}


async def _search_request(request: Request) -> SearchRequest:
    """The body, read in one step: a batch of vectors is some hundred thousand numbers.

    Raises RequestValidationError as the framework does for bodies that it reads itself.
    """
    body = await request.body()
    try:
        return SearchRequest.model_validate_json(body)
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise RequestValidationError(found, body=None) from error


@router.get(
    "/v1/datastores/{ref}/rows",
    name="get_datastore_rows",
    summary="Passages of a datastore",
    response_model=RowsPage,
    responses={304: {"description": "not changed"}, **problem_responses(404)},
)
def datastore_rows(
    request: Request, services: ServicesDep, ref: Ref, offset: Offset = 0, length: Length = ROWS_PER_PAGE
) -> Response:
    """A page of passages in row order, with the field names of the Hugging Face dataset viewer.

    Passages that were deleted are among them until the store is compacted.
    """
    manifest = cast(DatastoreManifest, services.catalog.manifest(ref, "datastore"))
    headers = cache_headers(ref, manifest.fingerprint, "rows", offset, length)
    unchanged = not_modified(request, headers)
    if unchanged is not None:
        return unchanged
    pieces = Pieces(services.store.directory(manifest), manifest.pieces, manifest.dim)
    page = rows_page(pieces.rows(offset, length), offset, len(pieces))
    return Response(page.model_dump_json(), headers=headers, media_type="application/json")


@router.post(
    "/v1/datastores/{ref}/search",
    name="search_datastore",
    summary="Search a datastore",
    response_model=SearchResponse,
    responses=problem_responses(400, 404, 503),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": SearchRequest.model_json_schema(), "examples": _EXAMPLES}},
        }
    },
)
def search_datastore(
    services: ServicesDep, ref: Ref, request: Annotated[SearchRequest, Depends(_search_request)]
) -> Response:
    """The passages nearest to each query, best first: one list a query.

    Every list has `k` hits as long as the store holds `k` passages that qualify: where near-duplicates or
    contaminated passages are left out, the search goes deeper by itself. In mode `bm25` a passage qualifies if it
    has a word of the query. Searches that arrive while another one runs are answered together.
    """
    manifest = services.catalog.manifest(ref, "datastore")
    with services.datastores.of(manifest.ref, manifest.fingerprint) as datastore:
        answer = datastore.search(request)
    return Response(answer.as_json(), media_type="application/json")
