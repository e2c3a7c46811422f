"""Evaluations of datastores: manifests, reports and plots."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from mixwright.schemas.catalog import EvaluationDetail
from mixwright.schemas.evaluations import EvaluationReport
from mixwright.schemas.manifests import EvaluationManifest
from mixwright.service.caching import cache_headers, not_modified
from mixwright.service.problems import problem_responses
from mixwright.service.queries import Ref
from mixwright.service.routes.artifacts import add_list, add_manifest
from mixwright.service.routes.plots import add_plots
from mixwright.service.state import ServicesDep

router = APIRouter(tags=["evaluations"])
add_list(router, "/v1/evaluations", "evaluation")
add_manifest(router, "/v1/evaluations", "evaluation", EvaluationDetail)
add_plots(router, "/v1/evaluations", "evaluation", "of a single size")


def _evaluation(services: ServicesDep, ref: Ref) -> EvaluationManifest:
    return cast(EvaluationManifest, services.catalog.manifest(ref, "evaluation"))


ExistingEvaluation = Annotated[EvaluationManifest, Depends(_evaluation)]


@router.get(
    "/v1/evaluations/{ref}/report",
    name="get_evaluation_report",
    summary="Report of an evaluation",
    response_model=EvaluationReport,
    responses={304: {"description": "not changed"}, **problem_responses(404)},
)
def evaluation_report(request: Request, ref: Ref, manifest: ExistingEvaluation) -> Response:
    """What was found, as it is in the manifest."""
    headers = cache_headers(ref, manifest.fingerprint, "report")
    content = manifest.report.model_dump_json()
    return not_modified(request, headers) or Response(content, headers=headers, media_type="application/json")
