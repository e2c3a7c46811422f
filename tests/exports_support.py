"""Mixtures with every kind of tag plan, for the tests of exports; made once a session of a test file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from support import document_table, published_corpus

from mixwright.jobs.exports.export import export_mixture
from mixwright.jobs.exports.format import ExportOptions
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.exports import ExportResult
from mixwright.schemas.mixtures import Budget
from mixwright.selectors.requests import SelectRequest
from mixwright.selectors.streams import MixtureStream, Tokenization
from mixwright.store import Store

SIZES = {"wiki": 60, "Code": 9, "news": 40}
PLANS: dict[str, dict[str, Any]] = {
    "plain": {"kind": "uniform", "max_epochs": 30},
    "staged": {"kind": "domain-tags", "cooldown": 0.2},
    "dropout": {"kind": "domain-tags", "schedule": "dropout", "dropout": 0.3},
    "paragraph": {"kind": "domain-tags", "scope": "paragraph"},
    "window": {"kind": "domain-tags", "scope": "window"},
    "unmasked": {"kind": "domain-tags", "mask": False},
}


def published_mixtures(home: Path) -> Store:
    """A store with the mixtures of ``PLANS`` over three corpora; texts have several paragraphs and alphabets."""
    store = Store(home)
    for name, n in SIZES.items():
        texts = [f"{name} {i} één “quote”\n\n  second {{}} $x\n\n" + "word " * (i % 11) + "." for i in range(n)]
        domains = [f"{name.lower()}{i % 5}.org" if i % 4 else None for i in range(n)]
        published_corpus(store, name, document_table(texts, source=name, domains=domains), 20)
    for name, selector in PLANS.items():
        budget = Budget(tokens=1_300 if name == "plain" else 700)
        request = SelectRequest(name=name, sources=list(SIZES), selector=selector, budget=budget)
        run_select(store, request, NoProgress())
    return store


def export(
    store: Store, mixture: str, name: str, out: Path, service: str | None = None, **given: Any
) -> ExportResult:
    """Export a mixture into a new folder."""
    stream = MixtureStream.open(store, mixture)
    return export_mixture(store, stream, name, ExportOptions(**given), out, NoProgress(), service=service)


def served(store: Store, mixture: str, tokenization: Tokenization | None = None) -> list[dict[str, Any]]:
    """The rows of a mixture as its stream serves them."""
    tables = MixtureStream.open(store, mixture).read(tokenization=tokenization)
    return [row for table in tables for row in table.to_pylist()]


def by_data_set(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows by stage and component, in order."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["stage"], row["component"]].append(row)
    return dict(found)
