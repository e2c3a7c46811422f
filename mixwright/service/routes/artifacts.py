"""What every kind of artifact has: a list, and a manifest at its own address."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mixwright.attributes import Attributes
from mixwright.jobs.pages import Page, decode_cursor, encode_cursor
from mixwright.results import Results, weights_of
from mixwright.schemas.catalog import (
    ArtifactSummary,
    AttributesDetail,
    EmbeddingsDetail,
    IndexDetail,
    ManifestDetail,
    ResultRun,
    ResultsDetail,
    RowsPage,
)
from mixwright.schemas.references import Kind
from mixwright.service.caching import cache_headers, not_modified
from mixwright.service.problems import problem_responses
from mixwright.service.queries import Cursor, Length, Limit, Offset, Ref
from mixwright.service.state import ServicesDep
from mixwright.service.viewer import ROWS_PER_PAGE, rows_page


def add_list(router: APIRouter, path: str, kind: Kind) -> None:
    """Add ``GET path``: the artifacts of one kind, newest first."""

    def artifacts(services: ServicesDep, limit: Limit = 100, cursor: Cursor = None) -> Page[ArtifactSummary]:
        return services.catalog.page(kind, limit, cursor)

    plural = path.rsplit("/", 1)[1]
    router.get(
        path,
        name=f"list_{plural}",
        summary=f"List {plural}",
        description=f"Every {plural} artifact of every version, newest first.",
    )(artifacts)


def add_manifest(router: APIRouter, path: str, kind: Kind, model: type[ManifestDetail]) -> None:
    """Add ``GET path/{ref}``: the manifest and its ref."""

    article = "" if kind.endswith("s") else "an " if kind[0] in "aei" else "a "

    def artifact(request: Request, services: ServicesDep, ref: Ref) -> Response:
        manifest = services.catalog.manifest(ref, kind)
        headers = cache_headers(ref, manifest.fingerprint)
        content = model.model_validate(dict(manifest)).model_dump_json()
        return not_modified(request, headers) or Response(content, headers=headers, media_type="application/json")

    router.get(
        f"{path}/{{ref}}",
        name=f"get_{kind}",
        summary=f"Manifest of {article}{kind}",
        description="The whole manifest, with its `ref`. The ETag is the fingerprint.",
        response_model=model,
        responses={304: {"description": "not changed"}, **problem_responses(404)},
    )(artifact)


router = APIRouter(tags=["attributes, embeddings, indexes and results"])
add_list(router, "/v1/attributes", "attributes")
add_manifest(router, "/v1/attributes", "attributes", AttributesDetail)


@router.get(
    "/v1/attributes/{ref}/rows",
    name="get_attributes_rows",
    summary="Rows of attributes",
    response_model=RowsPage,
    responses={304: {"description": "not changed"}, **problem_responses(404)},
)
def attributes_rows(
    request: Request, services: ServicesDep, ref: Ref, offset: Offset = 0, length: Length = ROWS_PER_PAGE
) -> Response:
    """A page of rows in the corpus's row order, with the field names of the Hugging Face dataset viewer."""
    manifest = services.catalog.manifest(ref, "attributes")
    headers = cache_headers(ref, manifest.fingerprint, "rows", offset, length)
    unchanged = not_modified(request, headers)
    if unchanged is not None:
        return unchanged
    attributes = Attributes.open(services.store, manifest.ref)
    page = rows_page(attributes.rows(offset, length), offset, attributes.manifest.n_rows)
    return Response(page.model_dump_json(), headers=headers, media_type="application/json")


add_list(router, "/v1/embeddings", "embeddings")
add_manifest(router, "/v1/embeddings", "embeddings", EmbeddingsDetail)
add_list(router, "/v1/indexes", "index")
add_manifest(router, "/v1/indexes", "index", IndexDetail)
add_list(router, "/v1/results", "results")
add_manifest(router, "/v1/results", "results", ResultsDetail)


@router.get(
    "/v1/results/{ref}/runs",
    name="get_results_runs",
    summary="Runs of results",
    response_model=Page[ResultRun],
    responses={304: {"description": "not changed"}, **problem_responses(404)},
)
def results_runs(
    request: Request, services: ServicesDep, ref: Ref, limit: Limit = 100, cursor: Cursor = None
) -> Response:
    """The trainings in the order in which they were asked for: mixture, size, score, seed and seconds."""
    manifest = services.catalog.manifest(ref, "results")
    start = max(decode_cursor(cursor, (int,))[0], 0) if cursor is not None else 0
    headers = cache_headers(ref, manifest.fingerprint, "runs", start, limit)
    unchanged = not_modified(request, headers)
    if unchanged is not None:
        return unchanged
    results = Results.open(services.store, manifest.ref)
    rows = results.table().slice(start, limit).iter_rows(named=True)
    page = Page[ResultRun](
        items=[
            ResultRun(
                weights=weights_of(row, results.manifest.sources),
                **{field: row[field] for field in ("size", "score", "seed", "seconds")},
            )
            for row in rows
        ],
        next_cursor=encode_cursor(start + limit) if start + limit < len(results) else None,
    )
    return Response(page.model_dump_json(), headers=headers, media_type="application/json")
