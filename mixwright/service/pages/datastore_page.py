"""The page of a datastore: what it is, and a search in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mixwright.errors import MixwrightError
from mixwright.schemas.datastores import Hit, SearchMode, SearchRequest, SearchResponse
from mixwright.schemas.manifests import DatastoreManifest
from mixwright.service.pages.html import render
from mixwright.service.pages.lineage_view import LineageDrawing
from mixwright.service.pages.snippets import Here, shell_json
from mixwright.service.state import Services

_WORD = re.compile(r"\w+")
_SHORTEST_MARKED = 4
_SCORE_NAMES: dict[str, str] = {"dense": "inner product", "bm25": "BM25", "hybrid": "fused ranks"}


@dataclass(frozen=True)
class Asked:
    """What stands in the form."""

    q: str = ""
    k: int = 5
    mode: SearchMode = "dense"
    domain: str = ""
    where: str = ""

    def body(self) -> dict[str, Any]:
        """The same as the body of a REST search."""
        body: dict[str, Any] = {"queries": [self.q or "your question"], "k": self.k, "mode": self.mode}
        if self.domain:
            body["domains"] = [self.domain]
        if self.where:
            body["where"] = self.where
        return body


@dataclass(frozen=True)
class ShownHit:
    """A hit as the page shows it: ``parts`` are pieces of its text, and whether each is a word of the question."""

    score: str
    score_name: str
    width: float
    source: str
    domain: str | None
    url: str | None
    document_id: str
    start: int
    end: int
    parts: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Found:
    """The hits of a question, or what is wrong with it. ``hits`` is None where nothing was asked."""

    hits: list[ShownHit] | None = None
    warnings: tuple[str, ...] = ()
    problem: str | None = None


def search(services: Services, manifest: DatastoreManifest, asked: Asked) -> Found:
    """Answer the form; what is wrong with it is said beside it."""
    if not asked.q.strip():
        return Found()
    try:
        request = SearchRequest.model_validate(asked.body())
        with services.datastores.of(manifest.ref, manifest.fingerprint) as datastore:
            answer = SearchResponse.model_validate_json(datastore.search(request).as_json())
    except ValidationError as error:
        return Found(problem=str(error.errors()[0]["msg"]))
    except MixwrightError as error:
        return Found(problem=str(error))
    return Found(shown_hits(answer.hits[0], asked), tuple(answer.warnings))


def shown_hits(hits: Sequence[Hit], asked: Asked) -> list[ShownHit]:
    """Hits with bars beside the best one's."""
    best = max((hit.score for hit in hits), default=0.0)
    return [
        ShownHit(
            score=f"{hit.score:.3f}",
            score_name=_SCORE_NAMES[asked.mode],
            width=100 * max(hit.score, 0.0) / best if best > 0 else 0.0,
            source=hit.source,
            domain=hit.domain,
            url=hit.url,
            document_id=hit.document_id,
            start=hit.start,
            end=hit.end,
            parts=marked(hit.text, asked.q),
        )
        for hit in hits
    ]


def marked(text: str, question: str) -> tuple[tuple[str, bool], ...]:
    """The text in pieces, those of them marked that are words of the question.

    Short words are in every text; of them only numbers and abbreviations are marked.
    """
    words = _WORD.findall(question)
    telling = [word for word in words if len(word) >= _SHORTEST_MARKED or word.isupper() or word.isdigit()]
    wanted = {word.casefold() for word in telling}
    parts: list[tuple[str, bool]] = []
    place = 0
    for match in _WORD.finditer(text):
        if match[0].casefold() in wanted:
            parts += [(text[place : match.start()], False), (match[0], True)]
            place = match.end()
    parts.append((text[place:], False))
    return tuple(part for part in parts if part[0])


def datastore_page(
    manifest: DatastoreManifest, asked: Asked, found: Found, lineage: LineageDrawing, here: Here
) -> str:
    """The page, with what the form asked for."""
    return render(
        "datastore.html",
        section="datastores",
        crumbs=(("Catalog", "/"), ("Datastores", "/datastores")),
        scripts=("datastore.js",),
        manifest=manifest,
        asked=asked,
        hits=found.hits,
        warnings=found.warnings,
        problem=found.problem,
        sources=sorted(manifest.sources.items(), key=lambda item: -item[1]),
        lineage=lineage,
        curl_start=here.curl_post(f"/v1/datastores/{manifest.ref}/search"),
        curl_body=shell_json(asked.body()),
    )
