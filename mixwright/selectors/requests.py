"""The request of a select job. It is here because it holds a selector, and schemas know none."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mixwright.schemas.mixtures import Budget
from mixwright.schemas.references import ReferenceText
from mixwright.selectors.registry import AnySelector


class SelectRequest(BaseModel):
    """A pool of corpora to a mixture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["select"] = "select"
    name: ReferenceText = Field(description="name of the mixture, or name@version")
    sources: list[ReferenceText] = Field(min_length=1, description="corpora of the pool")
    selector: AnySelector
    budget: Budget
    workers: int | None = Field(
        default=None, ge=1, description="resource: Ray workers; default: none below 2 million vectors"
    )
