"""Small trainings: a mixture, how much of it was trained on, and what the model scored.

Frozen dataclasses, because they are fields of a selector and so a share of its fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

Direction = Literal["maximize", "minimize"]
Unit = Literal["tokens", "documents"]


@dataclass(frozen=True)
class Metric:
    """What a score is: its name, which way is better, and between which values it can be (None: no bound)."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}
    name: Annotated[str, Field(min_length=1)] = "score"
    direction: Direction = "minimize"
    low: float | None = None
    high: float | None = None

    @property
    def best(self) -> float | None:
        """The best possible score, if it has a bound."""
        return self.low if self.direction == "minimize" else self.high


@dataclass(frozen=True)
class TrainingRun:
    """One training: shares by source name (normalised where they are read), size in the table's unit, score."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}
    weights: Annotated[dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]
    size: Annotated[int, Field(ge=1)]
    score: Annotated[float, Field(allow_inf_nan=False)]
