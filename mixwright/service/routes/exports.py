"""Exports: a mixture in the form that a trainer reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, cast

import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from fastapi import APIRouter, Depends, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from mixwright import __version__
from mixwright.errors import ConfigError, ConflictError, DataError
from mixwright.jobs.exports.export import export_format, snippet
from mixwright.jobs.exports.format import NAME_PATTERN, ROOT_PATTERN, ExportFormat, ExportOptions
from mixwright.jobs.exports.registry import EXPORT_FORMATS
from mixwright.schemas.exports import ExportedFile, ExportFormatInfo, ExportListing
from mixwright.schemas.manifests import MixtureManifest
from mixwright.schemas.reads import TokenizerName
from mixwright.service.caching import cache_headers, not_modified
from mixwright.service.exports import ExportCache, OpenExport, tar_chunks, tar_size
from mixwright.service.heads import headers_only
from mixwright.service.negotiation import best_offer
from mixwright.service.problems import problem_responses
from mixwright.service.queries import Ref
from mixwright.service.rows import streamed
from mixwright.service.state import Services, ServicesDep

router = APIRouter(tags=["exports"])

JSON, TAR = "application/json", "application/x-tar"
_EXPORTS_AT_A_TIME = 2
"""Exports are work of the processor: more at a time would only wait for each other, and slow the other routes."""
_threads: RunVar[CapacityLimiter] = RunVar("exports")


@router.get("/v1/export-formats", name="list_export_formats", summary="List export formats")
def export_formats() -> list[ExportFormatInfo]:
    """What mixtures can be exported as, and what each format expresses of them."""
    return [
        ExportFormatInfo(
            **{name: value for name, value in asdict(each).items() if name not in ("write", "snippet")},
            snippet=snippet(each),
        )
        for each in EXPORT_FORMATS.values()
    ]


@dataclass(frozen=True)
class ExportQuery:
    """Which format, and its options."""

    format: Annotated[
        str,
        Query(description="see `/v1/export-formats`", json_schema_extra={"enum": list(EXPORT_FORMATS)}),
    ]
    tokenizer: Annotated[
        TokenizerName | None,
        Query(pattern=NAME_PATTERN, description="tokenizer of a format of tokens; default: the mixture's"),
    ] = None
    bos: Annotated[int | None, Query(ge=0, lt=2**31, description="token id before each document")] = None
    eos: Annotated[int | None, Query(ge=0, lt=2**31, description="token id behind each document")] = None
    sequence_length: Annotated[
        int | None, Query(ge=1, lt=2**31, description="tokens of the trainer's sequences")
    ] = None
    root: Annotated[
        str | None,
        Query(pattern=ROOT_PATTERN, description="path under which the trainer sees the folder; default: `.`"),
    ] = None

    def options(self) -> ExportOptions:
        """Raises ConfigError for an option that is wrong."""
        return ExportOptions(self.tokenizer, self.bos, self.eos, self.sequence_length, self.root or ".")


@router.get(
    "/v1/mixtures/{ref}/export",
    name="export_mixture",
    summary="Export of a mixture",
    # The last two are documents of other standards.
    response_model=ExportListing | dict[str, Any] | list[Any],
    responses={
        200: {
            "description": "what the export holds; all of it as a tar archive; or the one document that it is",
            "content": {
                TAR: {"schema": {"type": "string", "format": "binary"}},
                "application/ld+json": {"schema": {"type": "object"}},
            },
        },
        304: {"description": "not changed"},
        **problem_responses(403, 404, 406, 409),
    },
)
async def mixture_export(
    request: Request, services: ServicesDep, ref: Ref, query: Annotated[ExportQuery, Depends()]
) -> Response:
    """The mixture in the form that a trainer reads: rows, weights and stages, and warnings of what it leaves out.

    409 where the format cannot hold this mixture with these options: Megatron without an end token, say.

    The default answer lists the files, with the text of small ones; ask with `Accept: application/x-tar` for all
    of them. A format that is one JSON document is answered as that document. An export is made at the first
    request and kept in the service's cache; a mixture that is too large for that is refused with the command to
    run.
    """
    try:
        threads = _threads.get()
    except LookupError:
        threads = CapacityLimiter(_EXPORTS_AT_A_TIME)
        _threads.set(threads)
    return await anyio.to_thread.run_sync(partial(_answer, request, services, ref, query), limiter=threads)


def _answer(request: Request, services: Services, ref: str, query: ExportQuery) -> Response:
    chosen, options = export_format(query.format), query.options()
    # A document is JSON, whatever more its own type says.
    offers = list(dict.fromkeys([chosen.media_type if chosen.document else JSON, JSON, TAR]))
    media_type = best_offer(request.headers.get("accept"), offers)
    if media_type is None:
        raise HTTPException(406, f"the export comes as {' or '.join(offers)}: ask for one of them in Accept")
    manifest = cast(MixtureManifest, services.catalog.manifest(ref, "mixture"))
    # A document points into this service, by the name under which it was asked.
    service = str(request.base_url) if chosen.document else None
    headers = cache_headers(ref, manifest.fingerprint, manifest.ref, query, media_type, service, __version__)
    headers["Vary"] = "Accept"
    unchanged = not_modified(request, headers)
    if unchanged is not None:
        return unchanged
    settings = services.settings
    services.confinement.check(options)
    cache = ExportCache(services.store, settings.export_cache_bytes, settings.export_max_tokens)
    try:
        export = cache.open(services.mixture(manifest.ref, manifest.fingerprint), chosen, options, service)
    except (ConfigError, DataError) as error:
        # Each parameter is right by itself: it is this mixture that the format cannot hold with them.
        raise ConflictError(str(error)) from error
    try:
        return _response(request, export, chosen, options, manifest, media_type, headers)
    except BaseException:
        export.close()
        raise


def _response(
    request: Request,
    export: OpenExport,
    chosen: ExportFormat,
    options: ExportOptions,
    manifest: MixtureManifest,
    media_type: str,
    headers: dict[str, str],
) -> Response:
    """The answer, which closes the export."""
    if media_type == TAR:
        top = f"{export.result.mixture.replace('@', '-')}-{chosen.name}"
        headers["Content-Disposition"] = f'attachment; filename="{top}.tar"'
        headers["Content-Length"] = str(tar_size(export, top))
        if headers_only(request):
            export.close()
            return Response(headers=headers, media_type=TAR)
        # Begun here: only a generator that has begun closes the export when its client goes away.
        chunks = tar_chunks(export, top)
        return StreamingResponse(streamed(next(chunks), chunks), headers=headers, media_type=TAR)
    if chosen.document is not None:
        content = (export.folder / chosen.document).read_bytes()
    else:
        content = _listing(export, chosen, options.root or ".", manifest).model_dump_json().encode()
    export.close()
    return Response(content, headers=headers, media_type=media_type)


def _listing(export: OpenExport, chosen: ExportFormat, root: str, manifest: MixtureManifest) -> ExportListing:
    texts = export.texts()
    return ExportListing(
        **export.result.model_dump(exclude={"files"}),
        files=[ExportedFile(**entry.model_dump(), text=texts.get(entry.path)) for entry in export.result.files],
        snippet=snippet(chosen, root, manifest),
    )
