"""Predictions: what the service answers of mixtures that may never be trained."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mixwright.schemas.training_runs import Metric, Unit


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Prediction(_Model):
    """One mixture at one training size. Scores are null where there are no results."""

    weights: dict[str, float] = Field(description="shares by source, summing to 1")
    size: int = Field(description="of the training, in the answer's unit")
    transport: float = Field(description="optimal transport distance to the validation set")
    mean: float | None = Field(description="predicted score, in the metric's own direction")
    sd: float | None = Field(description="its standard deviation")
    low: float | None = Field(description="95 % interval, inside the metric's range")
    high: float | None
    extrapolates: bool = Field(description="true if it is no average of mixtures that were trained")
    noise_gain: float | None = Field(description="how much the runs' noise grows on the way to the size")


class MixturePrediction(_Model):
    """The answer about mixtures: predictions, and what they rest on."""

    metric: Metric | None
    unit: Unit
    predictions: list[Prediction] = Field(description="of the mixtures asked for, at each size")
    chosen: list[Prediction] = Field(description="of the best mixture at the selector's size, at each size")
    candidates: list[dict[str, Any]] = Field(
        description="chosen, uniform, proportional, best pilot, least transport, at the selector's size"
    )
    cross_validation: list[dict[str, Any]] = Field(description="K-fold errors of all predictors")
    projection: dict[str, Any]
    methods: list[dict[str, Any]] = Field(description="what other methods would choose")
    warnings: list[str]
