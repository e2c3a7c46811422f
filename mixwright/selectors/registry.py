"""Every selector: the one list that the CLI, REST and the job runner read."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter

from mixwright.selectors.baselines import Proportional, Random, Temperature, Uniform, UniMax
from mixwright.selectors.declared import Declared
from mixwright.selectors.domain_tags import DomainTags
from mixwright.selectors.paser import Paser
from mixwright.selectors.projektor.selector import Projektor
from mixwright.selectors.retrieval import Retrieval

AnySelector = Annotated[
    Uniform | Proportional | Temperature | UniMax | Random | Declared | DomainTags | Paser | Projektor | Retrieval,
    Field(discriminator="kind"),
]
SELECTOR_ADAPTER: TypeAdapter[AnySelector] = TypeAdapter(AnySelector)
"""Reads a selector: ``SELECTOR_ADAPTER.validate_python({"kind": "uniform"})``."""

SELECTORS = {
    each.kind: each
    for each in (
        Uniform,
        Proportional,
        Temperature,
        UniMax,
        Random,
        Declared,
        DomainTags,
        Paser,
        Projektor,
        Retrieval,
    )
}
"""Selector classes by kind."""
