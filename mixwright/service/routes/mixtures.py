"""Mixtures: manifests, lineage, and their rows as streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, cast

import msgspec
import pyarrow as pa
from fastapi import APIRouter, Depends, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from mixwright.jobs.pages import Page
from mixwright.schemas.catalog import ArtifactSummary, Lineage, MixtureDetail
from mixwright.schemas.manifests import MixtureManifest
from mixwright.schemas.references import ReferenceText
from mixwright.selectors.ordering import MAX_READERS
from mixwright.selectors.streams import ROW_SCHEMA, TOKEN_FIELDS, MixtureStream, Tokenization
from mixwright.service.caching import cache_headers, not_modified
from mixwright.service.heads import headers_only
from mixwright.service.pages.mixture_page import report_of
from mixwright.service.problems import problem_responses
from mixwright.service.queries import Cursor, Limit, Ref, Text, Tokenizer
from mixwright.service.routes.artifacts import add_manifest
from mixwright.service.routes.plots import add_plots
from mixwright.service.rows import ARROW, NDJSON, encode, negotiate, negotiate_encoding, opened, streamed
from mixwright.service.state import Services, ServicesDep

router = APIRouter(tags=["mixtures"])

_BATCH_ROWS = 1024
_FIRST_ROWS = 16
"""Rows of the first chunk: it is there sooner, and readers that begin together wait for each other's."""


@router.get("/v1/mixtures", name="list_mixtures", summary="List mixtures")
def mixtures(
    services: ServicesDep,
    source: Annotated[
        ReferenceText | None, Query(description="made from this corpus", examples=["wiki", "wiki@1"])
    ] = None,
    selector: Annotated[Text | None, Query(description="made by this selector", examples=["unimax"])] = None,
    domain: Annotated[
        Text | None, Query(description="this domain occurs in one of its corpora", examples=["en.wikipedia.org"])
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[ArtifactSummary]:
    """Mixtures of every version, newest first. Filters add up."""
    return services.catalog.page("mixture", limit, cursor, source=source, selector=selector, domain=domain)


add_manifest(router, "/v1/mixtures", "mixture", MixtureDetail)


@router.get(
    "/v1/mixtures/{ref}/lineage",
    name="get_mixture_lineage",
    summary="Lineage of a mixture",
    responses=problem_responses(404),
)
def mixture_lineage(services: ServicesDep, ref: Ref) -> Lineage:
    """Every artifact that the mixture was made from, or that was made from it, as a graph."""
    return services.catalog.lineage(ref, "mixture")


def _mixture(services: ServicesDep, ref: Ref) -> MixtureManifest:
    return cast(MixtureManifest, services.catalog.manifest(ref, "mixture"))


ExistingMixture = Annotated[MixtureManifest, Depends(_mixture)]


@router.get(
    "/v1/mixtures/{ref}/report",
    name="get_mixture_report",
    summary="Report of a mixture",
    response_model=dict[str, Any],
    responses={304: {"description": "not changed"}, **problem_responses(404)},
)
def mixture_report(request: Request, ref: Ref, manifest: ExistingMixture) -> Response:
    """What the selector wants a person to see, as it is in the manifest; its fields are the selector's own.

    404 where the selector makes no report.
    """
    headers = cache_headers(ref, manifest.fingerprint, "report")
    content = msgspec.json.encode(report_of(manifest))
    return not_modified(request, headers) or Response(content, headers=headers, media_type="application/json")


add_plots(router, "/v1/mixtures", "mixture", "for a selector that draws none")


@dataclass(frozen=True)
class RowsQuery:
    """Which rows, and how they are tokenized."""

    start: Annotated[int, Query(ge=0, description="first row, counted in the rank's own stream")] = 0
    count: Annotated[int | None, Query(ge=0, description="rows; default: to the end")] = None
    rank: Annotated[int, Query(ge=0, description="which of `world_size` readers this is")] = 0
    world_size: Annotated[int, Query(ge=1, le=MAX_READERS, description="readers that share the mixture")] = 1
    block_rows: Annotated[
        int,
        Query(
            ge=1, le=MAX_READERS, description="rows in a row that a rank reads before it is the next one's turn"
        ),
    ] = 1
    offset: Annotated[
        int,
        Query(ge=0, description="position from which on the ranks share the rows; those before it are left out"),
    ] = 0
    tokenizer: Annotated[
        Tokenizer | None,
        Query(description="add `input_ids` and `loss_mask` by this tokenizer", examples=["all-minilm-l6-v2"]),
    ] = None
    bos: Annotated[int | None, Query(ge=0, description="token id before each row, with `tokenizer`")] = None
    eos: Annotated[int | None, Query(ge=0, description="token id behind each row, with `tokenizer`")] = None
    window: Annotated[
        int | None, Query(ge=1, description="text tokens a training window, where tags repeat on each")
    ] = None

    def tokenization(self) -> Tokenization | None:
        """Raises ConfigError for token settings without a tokenizer, or out of range."""
        return Tokenization.of(self.tokenizer, self.bos, self.eos, self.window)

    def tables(self, stream: MixtureStream, tokenization: Tokenization | None) -> Iterator[pa.Table]:
        """The rows that are asked for."""
        return stream.read(
            self.start,
            self.count,
            self.rank,
            self.world_size,
            tokenization,
            block_rows=self.block_rows,
            offset=self.offset,
            batch_rows=_BATCH_ROWS,
            first_rows=_FIRST_ROWS,
        )


_EXAMPLE = (
    '{"position":0,"stage":"main","component":"wiki","epoch":0,"id":"8f4c…","source":"wiki","domain":'
    '"en.wikipedia.org","url":"https://en.wikipedia.org/wiki/A","tag_text":"","text":"A is …","n_tokens":42}\n'
)


@router.get(
    "/v1/mixtures/{ref}/rows",
    name="stream_mixture_rows",
    summary="Rows of a mixture",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "rows in order, one JSON object a line, or one Arrow IPC stream",
            "content": {
                NDJSON: {"schema": {"type": "string"}, "example": _EXAMPLE},
                ARROW: {"schema": {"type": "string", "format": "binary"}},
            },
        },
        304: {"description": "not changed"},
        **problem_responses(404, 406, 409),
    },
)
async def mixture_rows(
    request: Request, services: ServicesDep, ref: Ref, query: Annotated[RowsQuery, Depends()]
) -> Response:
    """The mixture as a training script reads it. Position → row is a pure function: any request can be repeated.

    Rank r of W reads positions r, r + W, r + 2W, …, or with `block_rows` b every W-th block of b rows; `start` and
    `count` count that rank's own rows. Ask with `Accept: application/vnd.apache.arrow.stream` for Arrow; the
    default is JSON lines. `Accept-Encoding` may ask for gzip or zstd. To go on with a stream that broke off, raise
    `start` by the rows that came.
    """
    return await opened(partial(_rows_response, request, services, ref, query))


def _rows_response(request: Request, services: Services, ref: str, query: RowsQuery) -> Response:
    services.confinement.check(query)
    media_type = negotiate(request.headers.get("accept"))
    if media_type is None:
        raise HTTPException(406, f"rows come as {NDJSON} or {ARROW}: ask for one of the two in Accept")
    encoding = negotiate_encoding(request.headers.get("accept-encoding"))
    if encoding is None:
        raise HTTPException(406, "rows come plain, as gzip or as zstd: allow one of them in Accept-Encoding")
    manifest = services.catalog.manifest(ref, "mixture")
    headers = cache_headers(ref, manifest.fingerprint, query, media_type, encoding)
    headers["Vary"] = "Accept, Accept-Encoding"
    unchanged = not_modified(request, headers)
    if unchanged is not None:
        return unchanged
    if encoding != "identity":
        headers["Content-Encoding"] = encoding
    tokenization = query.tokenization()
    tables = query.tables(services.mixture(manifest.ref, manifest.fingerprint), tokenization)
    tables = services.metrics.counted(tables)
    chunks = encode(tables, _schema(tokenization), media_type, encoding)
    # The first chunk is made before the answer begins: what is wrong with the data is still an error then.
    first = b"" if headers_only(request) else next(chunks, b"")
    return StreamingResponse(streamed(first, chunks), headers=headers, media_type=media_type)


def _schema(tokenization: Tokenization | None) -> pa.Schema:
    return ROW_SCHEMA if tokenization is None else pa.schema([*ROW_SCHEMA, *TOKEN_FIELDS])
