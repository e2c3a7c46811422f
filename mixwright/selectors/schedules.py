"""Schedules: what each stage of a training holds. Pure functions from counts to stages.

- WSD (Hu et al., MiniCPM, arXiv 2404.06395): high-quality data only in the last stretch, while the learning rate
  decays;
- DMT (Dong et al., arXiv 2310.05492): all specialised data, then all general data with a little of the first;
- ability caps (Song et al., arXiv 2310.19651): sources that gain nothing more are held at a number of documents;
- explicit stages, each with a size and weights of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from mixwright.schemas.mixtures import LARGEST
from mixwright.schemas.numbers import RealNumber, WholeNumber
from mixwright.selectors.allocation import largest_remainder, water_fill

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

Shares = dict[str, Annotated[RealNumber, Field(ge=0, le=1e12, allow_inf_nan=False)]]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")]


@dataclass(frozen=True)
class StageDeclaration:
    """A stage as it is declared. Its size is a share of the budget, or tokens, or documents."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}
    name: Annotated[Name, Field(description="stands in every row of the stage")]
    share: Annotated[RealNumber | None, Field(gt=0, le=1, description="share of the budget")] = None
    tokens: Annotated[WholeNumber | None, Field(ge=1, le=LARGEST, description="size in tokens")] = None
    documents: Annotated[WholeNumber | None, Field(ge=1, le=LARGEST, description="size in documents")] = None
    weights: Annotated[
        Shares, Field(description="shares by source; others are not in it; default: those of the mixture")
    ] = field(default_factory=dict)
    tagged: Annotated[bool | None, Field(description="whether tags stand in it; default: if there are tags")] = (
        None
    )

    def __post_init__(self) -> None:
        if sum(size is not None for size in (self.share, self.tokens, self.documents)) != 1:
            raise ValueError(f"stage {self.name} has one size: give share, tokens or documents")


@dataclass(frozen=True)
class Wsd:
    """Warmup, stable, decay (MiniCPM): pretraining sources, and in the last stretch high-quality sources too."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}
    decay_sources: Annotated[Shares, Field(min_length=1, description="shares of the sources only in the decay")]
    pretrain_share_in_decay: Annotated[
        RealNumber, Field(ge=0, lt=1, description="share of the decay that pretraining sources keep")
    ]
    decay_share: Annotated[RealNumber, Field(gt=0, lt=1, description="share of the budget in the decay")] = 0.1
    kind: Literal["wsd"] = "wsd"


@dataclass(frozen=True)
class Dmt:
    """Dual-stage mixed fine-tuning: all specialised documents, then all general ones and a few specialised."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}
    specialised: Annotated[
        tuple[str, ...], Field(min_length=1, description="sources of the first stage; the others are general")
    ]
    rehearsal: Annotated[
        RealNumber, Field(gt=0, le=1, description="k: share of the specialised documents in the second stage")
    ] = 1 / 256
    kind: Literal["dmt"] = "dmt"


Points = Annotated[
    tuple[
        tuple[
            Annotated[int, Field(ge=1, le=LARGEST)],
            Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)],
        ],
        ...,
    ],
    Field(min_length=3, max_length=1000),
]


@dataclass(frozen=True)
class AbilityCaps:
    """Sources held at a number of documents, given or read off growth curves; the others share the rest."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}
    caps: Annotated[
        dict[str, Annotated[WholeNumber, Field(ge=1, le=LARGEST)]],
        Field(description="documents at most, by source"),
    ] = field(default_factory=dict)
    points: Annotated[
        dict[str, Points], Field(description="[documents, score] points by source, of which its cap is made")
    ] = field(default_factory=dict)
    gain: Annotated[
        RealNumber, Field(gt=0, allow_inf_nan=False, description="the gain to the next point that is too small")
    ] = 0.01
    kind: Literal["ability-caps"] = "ability-caps"

    def __post_init__(self) -> None:
        if not self.caps and not self.points:
            raise ValueError("ability-caps has neither caps nor points: give one of the two for a source")
        if both := sorted(self.caps.keys() & self.points.keys()):
            raise ValueError(f"{both[0]} has a cap and points: give one of the two")


Schedule = Annotated[Wsd | Dmt | AbilityCaps, Field(discriminator="kind")]


def stage_sizes(shares: Sequence[float], total: int) -> Int64Array:
    """Whole sizes (s,) that sum to ``total``, by largest remainder of the shares (s,) over their sum."""
    parts = np.asarray(shares, dtype=np.float64) / np.sum(shares)
    return largest_remainder(parts * total, total, np.full(len(parts), total))


def wsd_weights(pretraining: FloatArray, high_quality: FloatArray, kept: float) -> tuple[FloatArray, FloatArray]:
    """Weights (k,) of the stable and the decay stage, from those of the two kinds of sources, each summing to 1.

    ``kept`` of the decay is pretraining data, the rest high-quality data (arXiv 2404.06395 mixes the two from the
    start of the decay).
    """
    return pretraining, kept * pretraining + (1 - kept) * high_quality


def dmt_counts(documents: Int64Array, specialised: npt.NDArray[np.bool_], rehearsal: float) -> Int64Array:
    """Documents (2, k) of the two stages, from those (k,) of the sources.

    Of all n specialised documents the second stage repeats round(k n) (arXiv 2310.05492, where k = 1/256 is best),
    each source its share of them by largest remainder.
    """
    first = np.where(specialised, documents, 0)
    n_repeated = round(rehearsal * int(first.sum()))
    repeated = largest_remainder(first * (n_repeated / max(int(first.sum()), 1)), n_repeated, first)
    return np.stack([first, np.where(specialised, repeated, documents)])


def capped_counts(caps: Int64Array, total: int) -> Int64Array:
    """Documents (k,) that sum to ``total``: equal shares under ``caps`` (k,), by water-filling.

    Needs caps.sum() ≥ total.
    """
    amounts = water_fill(np.full(len(caps), 1 / len(caps)), caps.astype(np.float64), total)
    return largest_remainder(amounts, total, caps)
