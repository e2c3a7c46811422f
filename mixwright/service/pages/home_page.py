"""The catalog's home and its lists: what there is, found by a person's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from mixwright.jobs.pages import Page
from mixwright.schemas.catalog import ArtifactSummary
from mixwright.schemas.jobs import FINAL_STATES, Job
from mixwright.schemas.references import Kind
from mixwright.service.pages.composition_view import composition_of
from mixwright.service.pages.html import render
from mixwright.service.pages.lineage_view import PLURALS, page_address
from mixwright.service.pages.snippets import Here, ingest_command, rows_command, search_command
from mixwright.service.state import Services

ON_HOME = 8
ON_LIST = 50

_TITLES: dict[Kind, str] = {
    "mixture": "Mixtures",
    "corpus": "Corpora",
    "datastore": "Datastores",
    "evaluation": "Evaluations of datastores",
    "attributes": "Attributes",
    "embeddings": "Embeddings",
    "index": "Indexes",
    "results": "Results of pilots",
}
_ABOUT: dict[Kind, str] = {
    "mixture": "What to train on, in which proportion and order.",
    "corpus": "Named, versioned documents.",
    "datastore": "What a language model retrieves from.",
    "evaluation": "What a datastore is worth, at one size or at many.",
    "attributes": "Extra columns of a corpus: scores, clusters, near-duplicates, contamination.",
    "embeddings": "Vectors of a corpus.",
    "index": "Nearest neighbours of a corpus's vectors.",
    "results": "What small trainings on mixtures scored.",
}

_AT_A_GLANCE: tuple[Kind, ...] = ("mixture", "corpus", "datastore", "evaluation")
"""What the home page shows unasked; the other kinds are what these are made with."""


@dataclass(frozen=True)
class _Section:
    """One kind on the home page."""

    kind: Kind
    plural: str
    title: str
    rows: Sequence[Any]
    n: int
    command: str


def home_page(services: Services, text: str, here: Here) -> str:
    """Every kind with its newest artifacts, or with those that have all words of ``text``."""
    counts = services.catalog.counts(text)
    shown = [kind for kind in PLURALS if counts.get(kind) and (text or kind in _AT_A_GLANCE)]
    sections = [_section(services, kind, text, counts[kind], here) for kind in shown]
    jobs = services.board.page(ON_HOME)
    return render(
        "home.html",
        section="",
        text=text,
        query=_query(q=text),
        kinds=[(kind, PLURALS[kind], counts[kind]) for kind in PLURALS if counts.get(kind)],
        sections=sections,
        has_mixtures=bool(counts.get("mixture")),
        has_corpora=bool(counts.get("corpus")),
        jobs=jobs,
        busy=_busy(jobs.items),
        ingest=ingest_command(here),
        page_address=page_address,
    )


def _section(services: Services, kind: Kind, text: str, n: int, here: Here) -> _Section:
    items = services.catalog.page(kind, ON_HOME, text=text).items
    return _Section(kind, PLURALS[kind], _TITLES[kind], _rows(kind, items), n, _command(kind, items, here))


def _command(kind: Kind, items: Sequence[ArtifactSummary], here: Here) -> str:
    """What one does with the newest of a kind."""
    if not items:
        return ""
    if kind in ("mixture", "corpus"):
        return rows_command(here, PLURALS[kind], items[0].ref)
    if kind == "datastore":
        return search_command(here, items[0].ref)
    return ""


def _rows(kind: Kind, items: Sequence[ArtifactSummary]) -> Sequence[Any]:
    if kind != "mixture":
        return items
    return [(each, composition_of({part.source: part.weight for part in each.components})) for each in items]


def list_page(services: Services, kind: Kind, text: str, cursor: str | None) -> str:
    """One kind, newest first. Raises ConfigError for a cursor that is not of this list."""
    page: Page[ArtifactSummary] = services.catalog.page(kind, ON_LIST, cursor, text=text)
    plural = PLURALS[kind]
    return render(
        "list.html",
        section=plural,
        crumbs=(("Catalog", "/"),),
        kind=kind,
        plural=plural,
        title=_TITLES[kind],
        about=_ABOUT[kind],
        text=text,
        n=services.catalog.counts(text).get(kind, 0),
        rows=_rows(kind, page.items),
        cursor=cursor,
        query=_query(q=text),
        next=_query(q=text, cursor=page.next_cursor) if page.next_cursor else None,
    )


def jobs_page(services: Services, state: str, kind: str, cursor: str | None, here: Here) -> str:
    """Jobs, newest first, in a state or of a kind. Raises ConfigError for a cursor that is not of this list."""
    from mixwright.service.pages.job_page import JOB_KINDS, JOB_STATES

    known = next((each for each in JOB_STATES if each == state), None)
    page = services.board.page(ON_LIST, cursor, known, kind or None)
    return render(
        "jobs.html",
        section="jobs",
        crumbs=(("Catalog", "/"),),
        jobs=page,
        states=JOB_STATES,
        job_kinds=JOB_KINDS,
        state=state,
        kind=kind,
        cursor=cursor,
        query=_query(state=state, kind=kind),
        next=_query(state=state, kind=kind, cursor=page.next_cursor) if page.next_cursor else None,
        busy=_busy(page.items),
        ingest=ingest_command(here),
        page_address=page_address,
    )


def _busy(jobs: Sequence[Job]) -> bool:
    return any(job.state not in FINAL_STATES for job in jobs)


def _query(**fields: str | None) -> str:
    given = {name: value for name, value in fields.items() if value}
    return f"?{urlencode(given)}" if given else ""
