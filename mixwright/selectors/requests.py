"""The request of a select job. It is here because it holds a selector, and schemas know none."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mixwright.schemas.mixtures import Budget
from mixwright.schemas.references import ReferenceText
from mixwright.selectors.left_out import CONTAMINATED, NEAR_DUPLICATES, Exclusion, KeepOrDrop
from mixwright.selectors.projektor.selector import Projektor
from mixwright.selectors.registry import AnySelector


class SelectRequest(BaseModel):
    """A pool of corpora to a mixture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["select"] = "select"
    name: ReferenceText = Field(description="name of the mixture, or name@version")
    sources: list[ReferenceText] = Field(min_length=1, description="corpora of the pool")
    selector: AnySelector
    budget: Budget | None = Field(
        default=None, description="tokens or documents; left out where stages say how much they serve"
    )
    near_duplicates: KeepOrDrop = Field(
        default="keep", description="drop: of each cluster of near-duplicates only the first is selected from"
    )
    contaminated: KeepOrDrop = Field(
        default="keep", description="drop: no document is selected that holds an evaluation text"
    )
    workers: int | None = Field(
        default=None, ge=1, description="resource: Ray workers; default: none below 2 million vectors"
    )

    @model_validator(mode="after")
    def _has_a_size(self) -> Self:
        if self.budget is None and not getattr(self.selector, "sizes_itself", False):
            raise ValueError("a budget is either tokens or documents: give exactly one of the two")
        return self

    @property
    def exclusions(self) -> dict[str, Exclusion]:
        """What is left out of the sources, by the field that asks for it."""
        asked = {"near_duplicates": NEAR_DUPLICATES, "contaminated": CONTAMINATED}
        return {field: each for field, each in asked.items() if getattr(self, field) == "drop"}


Shares = Annotated[dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]


class PredictRequest(BaseModel):
    """What mixtures will score: those that are asked for, and the one that is predicted to be best.

    Either ``mixture`` names one by projektor, whose sources and parameters are meant, or ``sources`` and
    ``selector`` say them. Shares are divided by their sum.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mixture: ReferenceText | None = Field(default=None, description="a published mixture by projektor")
    sources: list[ReferenceText] | None = Field(default=None, min_length=1, description="corpora of the pool")
    selector: Projektor | None = Field(default=None, description="validation, results and other parameters")
    weights: list[Shares] = Field(default=[], max_length=1000, description="mixtures: shares by source name")
    sizes: list[Annotated[int, Field(ge=1)]] = Field(
        default=[],
        max_length=100,
        description="training sizes, in the unit of the results; default: the selector's",
    )

    @model_validator(mode="after")
    def _one_pool(self) -> Self:
        if self.mixture is None and (self.sources is None or self.selector is None):
            raise ValueError("name a mixture by projektor, or give sources and selector")
        if self.mixture is not None and (self.sources is not None or self.selector is not None):
            raise ValueError("mixture has sources and selector of its own: give it alone, or the two without it")
        return self
