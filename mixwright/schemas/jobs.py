"""Jobs: a request, its state, its progress and its result."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mixwright.schemas.references import Kind

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINAL_STATES: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JobProgress(_Model):
    """How far the current stage of a job is."""

    stage: str
    done: int
    total: int | None = Field(description="null where it is not known beforehand")
    unit: str
    rate: float = Field(description="units a second since the stage began")
    eta_seconds: float | None = Field(description="seconds left in the stage, at that rate")


class JobResult(_Model):
    """The artifact that a job published, or found published."""

    kind: Kind
    ref: str = Field(description="name@version")
    fingerprint: str


class Job(_Model):
    """One job on the board."""

    id: str
    kind: str = Field(description="what is asked for: ingest, embed, index, score, select, assign, pilot …")
    request: dict[str, Any] = Field(description="the fields of the request, without its kind")
    state: JobState
    attempts: int = Field(description="times a worker has begun it")
    cancel_requested: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: JobProgress | None
    result: JobResult | None
    error: dict[str, Any] | None = Field(description="the problem document of a failed job")

    @property
    def is_final(self) -> bool:
        """True when the job will not change any more."""
        return self.state in FINAL_STATES
