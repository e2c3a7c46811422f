"""Predictions: what a mixture will score."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Body

from mixwright.jobs.study import study_of_mixture
from mixwright.schemas.manifests import MixtureManifest
from mixwright.schemas.predictions import MixturePrediction
from mixwright.selectors.projektor.selector import Projektor
from mixwright.selectors.requests import PredictRequest
from mixwright.service.problems import problem_responses
from mixwright.service.state import ServicesDep

router = APIRouter(tags=["predictions"])

_EXAMPLES: dict[str, Any] = {
    "mixture": {
        "summary": "other weights for a published mixture",
        "value": {"mixture": "blend", "weights": [{"wiki": 0.7, "web": 0.3}], "sizes": [1_000_000, 10_000_000]},
    },
    "results": {
        "summary": "sources, a validation corpus and a table of small trainings",
        "value": {
            "sources": ["wiki", "web"],
            "selector": {
                "validation": "target",
                "metric": "bits_per_byte",
                "direction": "minimize",
                "low": 0,
                "results": [
                    {"weights": {"wiki": 1, "web": 0}, "size": 100_000, "score": 2.31},
                    {"weights": {"wiki": 0.5, "web": 0.5}, "size": 100_000, "score": 2.25},
                    {"weights": {"wiki": 0, "web": 1}, "size": 100_000, "score": 2.62},
                ],
            },
            "weights": [{"wiki": 0.7, "web": 0.3}],
        },
    },
}


@router.post(
    "/v1/predict/mixture",
    name="predict_mixture",
    summary="Predict what a mixture will score",
    responses=problem_responses(400, 404, 409),
)
def predict_mixture(
    services: ServicesDep, request: Annotated[PredictRequest, Body(openapi_examples=_EXAMPLES)]
) -> MixturePrediction:
    """Scores of mixtures at training sizes with their uncertainty, the best mixture, and the evidence.

    Nothing is published and nothing is embedded: the corpora, or samples of them, must be embedded already.

    The first answer for a pool takes seconds, further ones of the same pool and parameters milliseconds.
    """
    if request.mixture is not None:
        manifest = cast(MixtureManifest, services.catalog.manifest(request.mixture, "mixture"))
        study = services.studies.of(*study_of_mixture(manifest))
    else:
        study = services.studies.of(request.sources or [], request.selector or Projektor(), None)
    return study.answer(request.weights, request.sizes)
