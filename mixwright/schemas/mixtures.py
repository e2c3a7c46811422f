"""Mixtures: components, stages, tags and budgets."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mixwright.schemas.numbers import WholeNumber

LARGEST = 2**53
"""Tokens or documents that can be asked for: up to here whole numbers are exact as floating-point numbers."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Budget(_Model):
    """How much to select: a number of tokens or a number of documents, never both."""

    tokens: WholeNumber | None = Field(default=None, ge=1, le=LARGEST)
    documents: WholeNumber | None = Field(default=None, ge=1, le=LARGEST)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.tokens is None) == (self.documents is None):
            raise ValueError("a budget is either tokens or documents: give exactly one of the two")
        return self

    def as_dict(self) -> dict[str, int]:
        """``{'tokens': n}`` or ``{'documents': n}``."""
        return self.model_dump(exclude_none=True)


class MixtureComponent(_Model):
    """One source's part of a mixture.

    The component is served ``passes`` times whole (every selected document once a pass, each pass in another
    order), then once more for the ``n_remainder`` documents of the last, partial pass.
    """

    name: str = Field(description="unique inside the mixture; the corpus's name")
    source: str = Field(description="ref of the corpus, name@version")
    fingerprint: str = Field(description="fingerprint of that corpus")
    weight: float = Field(gt=0, le=1, description="share of the mixture's tokens, as served")
    target_weight: float = Field(ge=0, le=1, description="share the selector aimed at, before caps")
    n_rows: int = Field(ge=1, description="rows served, repeats counted")
    n_tokens: int = Field(ge=0, description="tokens served, repeats counted")
    epochs: float = Field(gt=0, description="n_tokens over the tokens of the selected documents")
    n_selected: int = Field(ge=1, description="documents of a whole pass")
    passes: int = Field(ge=0, description="whole passes")
    n_remainder: int = Field(ge=0, description="documents of the last, partial pass")
    rows_file: str | None = Field(default=None, description=".npy of row numbers; None: all rows of the source")
    remainder_file: str | None = Field(default=None, description=".npy of row numbers of the partial pass")


class Stage(_Model):
    """A stretch of rows. Component i serves its rows ``starts[i] … starts[i] + counts[i] - 1`` in it."""

    name: str
    tagged: bool
    n_rows: int = Field(ge=1)
    n_tokens: int = Field(ge=0)
    starts: list[int]
    counts: list[int]


TagScope = Literal["document", "paragraph", "window"]


class TagPlan(_Model):
    """How the tag of a row is made, and what a trainer must know to use it.

    Tag and text stay separate columns and are tokenized apart: joined, a byte-level BPE may merge the tag's
    last characters with the text's first, and no loss mask can then be exact.
    """

    template: str = Field(description="with {field} placeholders")
    empty: str = Field(default="", description="tag of a row whose tag was dropped out")
    mask: bool = Field(default=True, description="True: no loss on the tag's tokens (and on a BOS before it)")
    scope: TagScope = Field(default="document", description="what the tag stands at the start of")
    schedule: Literal["cooldown", "dropout", "always", "stages"] = Field(
        default="cooldown", description="stages: each stage says whether it is tagged"
    )
    cooldown: float = Field(default=0.1, ge=0, lt=1, description="last share of the tokens, served untagged")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="share of rows whose tag is dropped, by hash")
    missing: Literal["plain", "unknown", "skip", "fail"] = "plain"
    unknown: str = Field(default="unknown", description="value of a missing or rare field under 'unknown'")
    min_docs: int = Field(default=0, ge=0, description="rarer values count as missing")
    special_tokens: list[str] = Field(default=[], description="to add to the trainer's vocabulary")
    kept_values_file: str | None = Field(
        default=None, description="Parquet of the values with at least min_docs documents, by field"
    )
