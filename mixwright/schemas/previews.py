"""What a declared mixture would be, before it is published."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mixwright.schemas.mixtures import MixtureComponent, Stage, TagPlan


class MixturePreview(BaseModel):
    """Counts, shares, stages and warnings of a mixture that nothing was written of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ref: str | None = Field(description="name@version where it is published already, else null")
    name: str = Field(description="the name that it is published under unless another is given")
    fingerprint: str
    budget: dict[str, int]
    n_rows: int = Field(description="rows served, repeats counted")
    n_tokens: int = Field(description="tokens served, repeats counted")
    tokenizer: str
    components: list[MixtureComponent]
    stages: list[Stage]
    tags: TagPlan | None
    warnings: list[str]
    report: dict[str, Any]
