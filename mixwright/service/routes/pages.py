"""The pages for people."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from mixwright.service import evaluation_page
from mixwright.service.html import render
from mixwright.service.mixture_page import served_page
from mixwright.service.routes.evaluations import ExistingEvaluation
from mixwright.service.routes.mixtures import ExistingMixture
from mixwright.service.state import ServicesDep

router = APIRouter(include_in_schema=False)

_SHOWN = 50
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-cache",
}


@router.get("/", name="home", response_class=HTMLResponse)
def home(request: Request, services: ServicesDep) -> Response:
    """Corpora, mixtures, datastores, evaluations and jobs at a glance."""
    jobs = services.board.page(_SHOWN)
    context = {
        "corpora": services.catalog.page("corpus", _SHOWN),
        "mixtures": services.catalog.page("mixture", _SHOWN),
        "datastores": services.catalog.page("datastore", _SHOWN),
        "evaluations": services.catalog.page("evaluation", _SHOWN),
        "jobs": jobs,
        "busy": any(not job.is_final for job in jobs.items),
        "base": str(request.base_url).rstrip("/"),
    }
    return HTMLResponse(render("home.html", **context), headers=_HEADERS)


@router.get("/mixtures/{ref}", name="mixture", response_class=HTMLResponse)
def mixture(manifest: ExistingMixture) -> Response:
    """One mixture and its report."""
    return HTMLResponse(served_page(manifest), headers=_HEADERS)


@router.get("/evaluations/{ref}", name="evaluation", response_class=HTMLResponse)
def evaluation(manifest: ExistingEvaluation) -> Response:
    """One evaluation of a datastore."""
    return HTMLResponse(evaluation_page.served_page(manifest), headers=_HEADERS)
