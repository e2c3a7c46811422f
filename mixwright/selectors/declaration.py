"""What a mixture is declared by: the fields that the selector, the REST body and the command line share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from mixwright.conditions import LONGEST_CONDITION
from mixwright.schemas.mixtures import LARGEST, Budget
from mixwright.selectors.baselines import Seed
from mixwright.selectors.domain_tags import TagForm
from mixwright.selectors.schedules import AbilityCaps, Dmt, Schedule, Shares, StageDeclaration, Wsd

DEFAULT_MAX_EPOCHS = 4.0
MOST_STAGES = 100

ConditionText = Annotated[str, Field(min_length=1, max_length=LONGEST_CONDITION)]
MOST_EPOCHS = 1e6


@dataclass(frozen=True)
class Declaration:
    """Which documents, in which shares, in which stages, with which tags.

    Weights come from at most one of ``weights``, ``temperature`` and ``unimax``; without any they are proportional
    to the sources' tokens.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}
    where: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=LONGEST_CONDITION,
            description="only documents that meet this condition, as in SQL's WHERE",
        ),
    ] = None
    source_where: Annotated[
        dict[str, ConditionText], Field(description="a condition for the documents of one source, by its name")
    ] = field(default_factory=dict)
    weights: Annotated[
        Shares, Field(description="share of the tokens of each source, by its name; 0 leaves it out")
    ] = field(default_factory=dict)
    temperature: Annotated[
        float | None,
        Field(
            gt=0,
            strict=True,
            allow_inf_nan=False,
            description="shares ∝ tokens^(1/τ): 1 is proportional, large is uniform",
        ),
    ] = None
    unimax: Annotated[
        float | None,
        Field(
            gt=0,
            strict=True,
            le=MOST_EPOCHS,
            description="shares as uniform as so many passes over each source allow",
        ),
    ] = None
    max_epochs: Annotated[
        float | None,
        Field(
            gt=0,
            strict=True,
            le=MOST_EPOCHS,
            description="passes over a source, at most; the rest is shared. Default: 4, or those of unimax",
        ),
    ] = None
    tags: Annotated[TagForm | None, Field(description="a tag before each document: see domain-tags")] = None
    stages: Annotated[
        tuple[StageDeclaration, ...],
        Field(max_length=MOST_STAGES, description="stages one after the other, each with weights of its own"),
    ] = ()
    schedule: Annotated[
        Schedule | None, Field(description="stages by a published recipe: wsd, dmt or ability-caps")
    ] = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        for refused in (
            _weights_refused(self),
            _stages_refused(self.stages),
            _combination_refused(self),
            _tags_refused(self),
        ):
            if refused is not None:
                raise ValueError(refused)

    @property
    def passes(self) -> float:
        """Passes over a source, at most."""
        return self.max_epochs or self.unimax or DEFAULT_MAX_EPOCHS

    @property
    def sizes_itself(self) -> bool:
        """Whether it says itself how much it serves, so that it needs no budget."""
        return isinstance(self.schedule, Dmt) or any(each.share is None for each in self.stages)

    @property
    def stages_budget(self) -> Budget | None:
        """What stages with sizes of their own serve together."""
        if not self.stages or self.stages[0].share is not None:
            return None
        tokens = sum(each.tokens or 0 for each in self.stages)
        documents = sum(each.documents or 0 for each in self.stages)
        return Budget(tokens=tokens or None, documents=documents or None)


def _weights_refused(declaration: Declaration) -> str | None:
    given = {
        "weights": bool(declaration.weights),
        "temperature": declaration.temperature is not None,
        "unimax": declaration.unimax is not None,
    }
    if sum(given.values()) > 1:
        names = " and ".join(name for name, there in given.items() if there)
        return f"{names} are given: give one of weights, temperature and unimax, or none for proportional shares"
    if declaration.weights and not any(declaration.weights.values()):
        return "all weights are 0: give one source a share"
    if declaration.unimax is not None and declaration.max_epochs is not None:
        return "unimax says how many passes a source has at most: leave max_epochs out"
    return None


def _stages_refused(stages: tuple[StageDeclaration, ...]) -> str | None:
    names = [each.name for each in stages]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        return f"two stages are named {repeated[0]}: give each a name of its own"
    sized = {
        unit for each in stages for unit in ("share", "tokens", "documents") if getattr(each, unit) is not None
    }
    if len(sized) > 1:
        return f"stages are sized by {' and '.join(sorted(sized))}: size all in one way"
    total = sum(each.share or 0 for each in stages)
    if sized == {"share"} and abs(total - 1) > 0.01:
        return f"the shares of the stages sum to {total:g}: make them sum to 1"
    if max(sum(each.tokens or 0 for each in stages), sum(each.documents or 0 for each in stages)) > LARGEST:
        return f"the stages serve more than {LARGEST:,} together: make them smaller"
    if empty := [each.name for each in stages if each.weights and not any(each.weights.values())]:
        return f"all weights of stage {empty[0]} are 0: give one source a share"
    return None


def _combination_refused(declaration: Declaration) -> str | None:
    shared = bool(declaration.weights) or declaration.temperature is not None
    schedule = declaration.schedule
    if declaration.stages and schedule is not None:
        return "stages and schedule are given: give one of the two"
    if declaration.stages and shared and all(each.weights for each in declaration.stages):
        return "every stage has weights of its own: leave weights and temperature out"
    if isinstance(schedule, (Dmt, AbilityCaps)) and (shared or declaration.unimax is not None):
        return f"{schedule.kind} counts documents: leave weights, temperature and unimax out"
    if isinstance(schedule, Wsd) and not any(schedule.decay_sources.values()):
        return "all decay_sources are 0: give one source a share"
    return None


def _tags_refused(declaration: Declaration) -> str | None:
    tagged = [each for each in declaration.stages if each.tagged]
    if tagged and declaration.tags is None:
        return f"stage {tagged[0].name} is tagged and there are no tags: declare tags"
    if declaration.tags and declaration.stages and all(each.tagged is False for each in declaration.stages):
        return "tags are declared and no stage is tagged: tag a stage or leave tags out"
    return None
