"""Predictions: what a mixture will score."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Body

from mixwright.jobs.study import study_of_mixture
from mixwright.schemas.manifests import MixtureManifest
from mixwright.schemas.predictions import MixturePrediction
from mixwright.schemas.scaling import ScalingAnswer, ScalingRequest
from mixwright.selectors.projektor.selector import Projektor
from mixwright.selectors.requests import PredictRequest
from mixwright.selectors.scaling_answers import scaling_answer
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
    services.confinement.check(request)
    if request.mixture is not None:
        manifest = cast(MixtureManifest, services.catalog.manifest(request.mixture, "mixture"))
        study = services.studies.of(*study_of_mixture(manifest))
    else:
        study = services.studies.of(request.sources or [], request.selector or Projektor(), None)
    return study.answer(request.weights, request.sizes)


_SCALING_EXAMPLES: dict[str, Any] = {
    "over-training": {
        "summary": "five small trainings to one that is larger and longer",
        "value": {
            "runs": [
                {"params": 11e6, "tokens": 220e6, "loss": 4.84, "error": 0.79},
                {"params": 79e6, "tokens": 1.58e9, "loss": 3.58, "error": 0.69},
                {"params": 154e6, "tokens": 3.08e9, "loss": 3.29, "error": 0.65},
                {"params": 411e6, "tokens": 8.2e9, "loss": 2.95, "error": 0.59},
                {"params": 11e6, "tokens": 3.52e9, "loss": 4.28, "error": 0.75},
            ],
            "targets": [{"params": 1.4e9, "tokens": 921e9}],
        },
    },
    "data-constrained": {
        "summary": "242 billion tokens of which 25 billion are different",
        "value": {
            "law": "data-constrained",
            "targets": [{"params": 6.34e9, "tokens": 242e9, "unique_tokens": 25e9}],
        },
    },
}


@router.post(
    "/v1/predict/scaling",
    name="predict_scaling",
    summary="Predict what a larger training will score",
    responses=problem_responses(400),
)
def predict_scaling(
    request: Annotated[ScalingRequest, Body(openapi_examples=_SCALING_EXAMPLES)],
) -> ScalingAnswer:
    """Loss and downstream error of trainings by a scaling law, with coefficients, residuals and what to doubt.

    `over-training` (arXiv 2403.08540) is fitted to `runs` of one mixture; `data-constrained` (arXiv 2305.16264)
    says by published coefficients what repeated tokens are worth. Nothing is published.
    """
    return scaling_answer(request)
