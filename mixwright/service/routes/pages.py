"""The pages for people: addresses of what the page modules make."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated, cast

from fastapi import APIRouter, Query, Request
from pydantic import StringConstraints
from starlette.responses import RedirectResponse, Response

from mixwright.errors import MixwrightError
from mixwright.schemas.datastores import SearchMode
from mixwright.schemas.manifests import (
    AnyManifest,
    CorpusManifest,
    DatastoreManifest,
    MixtureManifest,
)
from mixwright.schemas.references import Kind
from mixwright.service.pages import corpus_page, datastore_page, evaluation_page, home_page, job_page, mixture_page
from mixwright.service.pages.artifact_page import artifact_page
from mixwright.service.pages.composition_view import mixture_bars
from mixwright.service.pages.lineage_view import PLURALS, LineageDrawing, lineage_drawing, page_address
from mixwright.service.pages.page_response import page_response
from mixwright.service.pages.sample_rows import ROWS_SHOWN, Sample, corpus_sample, mixture_sample, no_sample
from mixwright.service.pages.snippets import Here
from mixwright.service.queries import Cursor, Offset, Ref
from mixwright.service.routes.evaluations import ExistingEvaluation
from mixwright.service.routes.jobs import ExistingJob, job_log
from mixwright.service.routes.mixtures import ExistingMixture
from mixwright.service.state import Services, ServicesDep

router = APIRouter(include_in_schema=False)

_Words = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=200, strip_whitespace=True)]
_Word = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=2000)]


@router.get("/", name="home")
def home(request: Request, services: ServicesDep, q: _Words = "") -> Response:
    """Every kind of artifact and the jobs at a glance, or what a search finds."""
    return page_response(request, home_page.home_page(services, q, Here.of(request)))


def _add_list(kind: Kind) -> None:
    """Add ``GET /<plural>``: all artifacts of a kind."""

    def artifacts(request: Request, services: ServicesDep, q: _Words = "", cursor: Cursor = None) -> Response:
        return page_response(request, home_page.list_page(services, kind, q, cursor))

    router.get(f"/{PLURALS[kind]}", name=f"{PLURALS[kind]}_page")(artifacts)


for _kind in PLURALS:
    _add_list(_kind)


@router.get("/jobs", name="jobs_page")
def jobs(
    request: Request, services: ServicesDep, state: _Words = "", kind: _Words = "", cursor: Cursor = None
) -> Response:
    """All jobs, or those in a state or of a kind."""
    return page_response(request, home_page.jobs_page(services, state, kind, cursor, Here.of(request)))


@router.get("/jobs/{id}", name="job_page")
def job(request: Request, services: ServicesDep, job: ExistingJob) -> Response:
    """One job."""
    return page_response(request, job_page.job_page(job, job_log(request, services, job, job_page.LOG_LINES)))


def _lineage(services: Services, manifest: AnyManifest) -> LineageDrawing:
    found = services.catalog.lineage(manifest.ref, manifest.kind)
    return lineage_drawing(found, manifest.kind, manifest.ref)


@router.get("/mixtures/{ref}", name="mixture_page")
def mixture(request: Request, services: ServicesDep, manifest: ExistingMixture, start: Offset = 0) -> Response:
    """One mixture: composition, stages, tags, rows, report, lineage, and how to read and export it."""
    around = mixture_page.Surroundings(
        here=Here.of(request),
        corpora=_corpora(services, manifest),
        sample=_mixture_sample(services, manifest, start),
        lineage=_lineage(services, manifest),
    )
    return page_response(request, mixture_page.served_page(manifest, around))


def _corpora(services: Services, manifest: MixtureManifest) -> list[CorpusManifest]:
    found = []
    for component in manifest.components:
        try:
            found.append(cast(CorpusManifest, services.catalog.manifest(component.source, "corpus")))
        except MixwrightError:
            # A corpus may be gone or damaged: the mixture's page says so where rows would stand.
            continue
    return found


def _readable(read: Callable[[], Sample], n_total: int) -> Sample:
    try:
        return read()
    except MixwrightError as error:
        return no_sample(error, n_total)


def _mixture_sample(services: Services, manifest: MixtureManifest, start: int) -> Sample:
    colours = mixture_bars(manifest).colours

    def read() -> Sample:
        return mixture_sample(services.mixture(manifest.ref, manifest.fingerprint), start, colours)

    return _readable(read, manifest.n_rows)


@router.get("/mixtures/{ref}/sample", name="mixture_sample")
def another_mixture_sample(manifest: ExistingMixture) -> Response:
    """Rows at a random position."""
    return _elsewhere(page_address("mixture", manifest.ref), manifest.n_rows)


def _elsewhere(address: str, n_rows: int) -> Response:
    start = random.randrange(max(n_rows - ROWS_SHOWN + 1, 1))
    return RedirectResponse(f"{address}?start={start}#rows", 303, {"Cache-Control": "no-store"})


def _manifest(services: Services, ref: str, kind: Kind) -> AnyManifest:
    return services.catalog.manifest(ref, kind)


@router.get("/corpora/{ref}", name="corpus_page")
def corpus(
    request: Request,
    services: ServicesDep,
    ref: Ref,
    start: Offset = 0,
    statistics: Annotated[str, Query()] = "",
) -> Response:
    """One corpus: lengths, domains, rows, and what was made of it."""
    manifest = cast(CorpusManifest, _manifest(services, ref, "corpus"))
    opened = services.corpus(manifest.ref, manifest.fingerprint)
    html = corpus_page.corpus_page(
        manifest,
        corpus_page.statistics_if_quick(opened, services.store.home / "cache", asked=statistics == "yes"),
        _readable(lambda: corpus_sample(opened, start), manifest.n_documents),
        _lineage(services, manifest),
        Here.of(request),
    )
    return page_response(request, html)


@router.get("/corpora/{ref}/sample", name="corpus_sample")
def another_corpus_sample(services: ServicesDep, ref: Ref) -> Response:
    """Rows at a random place."""
    manifest = cast(CorpusManifest, _manifest(services, ref, "corpus"))
    return _elsewhere(page_address("corpus", manifest.ref), manifest.n_documents)


@router.get("/datastores/{ref}", name="datastore_page")
def datastore(
    request: Request,
    services: ServicesDep,
    ref: Ref,
    q: _Word = "",
    k: Annotated[int, Query(ge=1, le=50)] = 5,
    mode: SearchMode = "dense",
    domain: _Word = "",
    where: _Word = "",
) -> Response:
    """One datastore, and what a search in it finds."""
    manifest = cast(DatastoreManifest, _manifest(services, ref, "datastore"))
    asked = datastore_page.Asked(q, k, mode, domain.strip(), where.strip())
    found = datastore_page.search(services, manifest, asked)
    html = datastore_page.datastore_page(manifest, asked, found, _lineage(services, manifest), Here.of(request))
    return page_response(request, html, 422 if found.problem else 200)


@router.get("/evaluations/{ref}", name="evaluation_page")
def evaluation(request: Request, services: ServicesDep, manifest: ExistingEvaluation) -> Response:
    """One evaluation of a datastore."""
    return page_response(request, evaluation_page.served_page(manifest, _lineage(services, manifest)))


def _add_artifact(kind: Kind) -> None:
    """Add ``GET /<plural>/{ref}`` for a kind without a page of its own."""

    def artifact(request: Request, services: ServicesDep, ref: Ref) -> Response:
        manifest = _manifest(services, ref, kind)
        return page_response(request, artifact_page(manifest, _lineage(services, manifest)))

    router.get(f"/{PLURALS[kind]}/{{ref}}", name=f"{kind}_page")(artifact)


for _kind in ("attributes", "embeddings", "index", "results"):
    _add_artifact(_kind)
