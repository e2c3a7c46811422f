"""The request of a mixture that is published at once. It is here because it holds a declaration."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from pydantic import Field

from mixwright.schemas.mixtures import Budget
from mixwright.schemas.references import ReferenceText
from mixwright.selectors.declaration import Declaration
from mixwright.selectors.declared import Declared
from mixwright.selectors.left_out import KeepOrDrop
from mixwright.selectors.requests import SelectRequest

MOST_SOURCES = 1000


@dataclass(frozen=True, kw_only=True)
class MixtureQuery(Declaration):
    """Corpora, and what mixture of them is wanted."""

    sources: Annotated[
        list[ReferenceText], Field(min_length=1, max_length=MOST_SOURCES, description="corpora of the pool")
    ]
    budget: Annotated[
        Budget | None, Field(description="how much; left out where the stages say how much they serve")
    ] = None
    near_duplicates: Annotated[
        KeepOrDrop, Field(description="drop: only the first of each cluster of near-duplicates")
    ] = "keep"
    contaminated: Annotated[KeepOrDrop, Field(description="drop: no document that holds an evaluation text")] = (
        "keep"
    )
    name: Annotated[
        ReferenceText | None,
        Field(description="name of the mixture, or name@version; default: made of its fingerprint"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.sources)) < len(self.sources):
            raise ValueError("a source is given twice: give each once")
        if self.budget is None and not self.sizes_itself:
            raise ValueError("there is no budget: give {tokens: N} or {documents: N}")

    def request(self) -> SelectRequest:
        """The same as a request of a select job, under a name that stands for any if there is none."""
        declared = {each.name: getattr(self, each.name) for each in fields(Declaration)}
        return SelectRequest(
            name=self.name or "query",
            sources=self.sources,
            selector=Declared(**declared),
            budget=self.budget,
            near_duplicates=self.near_duplicates,
            contaminated=self.contaminated,
        )
