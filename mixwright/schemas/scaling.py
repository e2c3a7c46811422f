"""Scaling laws: trainings in, predicted losses out."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Law = Literal["over-training", "data-constrained"]
Params = Annotated[float, Field(ge=1, le=1e18, description="N: parameters of the model")]
Tokens = Annotated[float, Field(ge=1, le=1e21, description="D: tokens of the training, repeats counted")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScalingRun(_Model):
    """A training that was done."""

    params: Params
    tokens: Tokens
    loss: float = Field(gt=0, le=1e3, description="nats a token, on one and the same text for all runs")
    error: float | None = Field(default=None, ge=0, le=1, description="mean error of downstream tasks")


class ScalingTarget(_Model):
    """A training that may be done."""

    params: Params
    tokens: Tokens
    unique_tokens: Tokens | None = Field(
        default=None, description="U, for data-constrained: tokens without repeats"
    )


class ScalingRequest(_Model):
    """Which law, what it is fitted to, and what is asked.

    ``over-training`` is fitted to ``runs``; ``data-constrained`` has published coefficients and takes none.
    """

    law: Law = "over-training"
    runs: list[ScalingRun] = Field(
        default=[], max_length=1000, description="trainings on one and the same mixture"
    )
    targets: list[ScalingTarget] = Field(default=[], max_length=1000, description="trainings to predict")

    @model_validator(mode="after")
    def _fits_the_law(self) -> Self:
        if self.law == "data-constrained":
            if self.runs:
                raise ValueError("data-constrained has published coefficients: leave the runs out")
            if not self.targets:
                raise ValueError("there is nothing to predict: give targets")
            if any(each.unique_tokens is None for each in self.targets):
                raise ValueError("data-constrained wants the unique tokens of every target: give unique_tokens")
        elif any(each.unique_tokens is not None for each in self.targets):
            raise ValueError(
                "over-training knows no repeats: leave unique_tokens out, or ask for data-constrained"
            )
        return self


class ScalingPrediction(_Model):
    """What the law says of one training."""

    params: float
    tokens: float
    tokens_per_param: float = Field(description="M = D / N")
    compute: float = Field(description="6 N D, in floating-point operations")
    loss: float
    error: float | None = Field(default=None, description="of downstream tasks, where runs have errors")
    unique_tokens: float | None = Field(default=None, description="data-constrained: U")
    epochs: float | None = Field(default=None, description="data-constrained: D / U")
    effective_tokens: float | None = Field(
        default=None, description="data-constrained: D', the fresh tokens that the training is worth"
    )


class ScalingResidual(_Model):
    """How far the law is from a run that it was fitted to."""

    params: float
    tokens: float
    loss: float
    predicted_loss: float
    relative: float = Field(description="(predicted - measured) / measured loss")
    error: float | None
    predicted_error: float | None = Field(description="from the predicted loss")


class ScalingAnswer(_Model):
    """The law with its coefficients, its predictions, and how well it fits."""

    law: Law
    formula: str
    coefficients: dict[str, float] = Field(description="of the loss")
    error_coefficients: dict[str, float] | None = Field(description="of the downstream error, where it was fitted")
    predictions: list[ScalingPrediction]
    residuals: list[ScalingResidual]
    warnings: list[str]
