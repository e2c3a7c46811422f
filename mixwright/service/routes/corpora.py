"""Corpora: manifests, rows and statistics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from mixwright.schemas.catalog import CorpusDetail, CorpusStatistics, RowsPage
from mixwright.service.caching import cache_headers, not_modified
from mixwright.service.problems import problem_responses
from mixwright.service.queries import Length, Offset, Ref
from mixwright.service.routes.artifacts import add_list, add_manifest
from mixwright.service.state import ServicesDep
from mixwright.service.statistics import cached_statistics
from mixwright.service.viewer import ROWS_PER_PAGE, rows_page

router = APIRouter(tags=["corpora"])
add_list(router, "/v1/corpora", "corpus")
add_manifest(router, "/v1/corpora", "corpus", CorpusDetail)

_RESPONSES = {304: {"description": "not changed"}, **problem_responses(404)}


@router.get(
    "/v1/corpora/{ref}/rows",
    name="get_corpus_rows",
    summary="Rows of a corpus",
    response_model=RowsPage,
    responses=_RESPONSES,
)
def corpus_rows(
    request: Request,
    services: ServicesDep,
    ref: Ref,
    offset: Offset = 0,
    length: Length = ROWS_PER_PAGE,
) -> Response:
    """A page of rows in row order, with the field names of the Hugging Face dataset viewer.

    `metadata` is a JSON object. Texts are exact unless those of the page together have more than ten million
    characters; then each is cut to its share and named in `truncated_cells`: ask for fewer rows to get all of it.
    """
    manifest = services.catalog.manifest(ref, "corpus")
    headers = cache_headers(ref, manifest.fingerprint, "rows", offset, length)
    unchanged = not_modified(request, headers)
    if unchanged is not None:
        return unchanged
    corpus = services.corpus(manifest.ref, manifest.fingerprint)
    return _json(rows_page(corpus.rows(offset, length), offset, len(corpus)), headers)


@router.get(
    "/v1/corpora/{ref}/statistics",
    name="get_corpus_statistics",
    summary="Statistics of a corpus",
    response_model=CorpusStatistics,
    responses=_RESPONSES,
)
def corpus_statistics(request: Request, services: ServicesDep, ref: Ref) -> Response:
    """Counts, tokens a document (quantiles and histogram) and the commonest domains, over all rows.

    Computed at the first request and kept.
    """
    manifest = services.catalog.manifest(ref, "corpus")
    headers = cache_headers(ref, manifest.fingerprint, "statistics")
    unchanged = not_modified(request, headers)
    if unchanged is not None:
        return unchanged
    corpus = services.corpus(manifest.ref, manifest.fingerprint)
    return _json(cached_statistics(corpus, services.store.home / "cache"), headers)


def _json(model: BaseModel, headers: dict[str, str]) -> Response:
    return Response(model.model_dump_json(), headers=headers, media_type="application/json")
