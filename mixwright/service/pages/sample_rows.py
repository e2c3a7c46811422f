"""Rows as a person reads them: who they are from, the tag apart from the text, long texts clipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixwright.corpora import Corpus
from mixwright.errors import MixwrightError
from mixwright.schemas.manifests import MixtureManifest
from mixwright.selectors.streams import MixtureStream
from mixwright.service.pages.projektor_view import COLOURS

ROWS_SHOWN = 4
CLIPPED = 700
"""Characters of a text that are shown at once."""
UNFOLDED = 20_000
"""Characters of a text that are in the page at all."""


@dataclass(frozen=True)
class ShownText:
    """A text's start, and if it is longer the whole of it, or as much as a page takes."""

    start: str
    unfolded: str | None
    n_characters: int

    @property
    def is_cut(self) -> bool:
        """True where not even the unfolded text is all of it."""
        return self.n_characters > UNFOLDED


def shown_text(text: str) -> ShownText:
    """Clip at a space, if there is one near."""
    if len(text) <= CLIPPED + 80:
        return ShownText(text, None, len(text))
    space = text.rfind(" ", CLIPPED - 80, CLIPPED)
    return ShownText(text[: space if space > 0 else CLIPPED] + " …", text[:UNFOLDED], len(text))


@dataclass(frozen=True)
class SampleRow:
    """A row of a mixture or of a corpus. ``number`` is its position or row number, ``json`` where the whole is."""

    number: int
    facts: tuple[str, ...]
    source: str
    colour: int | None
    domain: str | None
    url: str | None
    tag: str
    text: ShownText
    n_tokens: int
    json: str


@dataclass(frozen=True)
class Sample:
    """Rows from ``start`` on of ``n_total``, or why there are none."""

    rows: tuple[SampleRow, ...]
    start: int
    n_total: int
    problem: str | None = None


def mixture_sample(
    stream: MixtureStream, start: int, colours: Mapping[str, int], n_rows: int = ROWS_SHOWN
) -> Sample:
    """Rows of a mixture as a training script gets them."""
    manifest = stream.manifest
    start = min(start, manifest.n_rows - 1)
    rows = [row for table in stream.read(start, n_rows) for row in table.to_pylist()]
    return Sample(tuple(_mixture_row(row, manifest, colours) for row in rows), start, manifest.n_rows)


def _mixture_row(row: Mapping[str, Any], manifest: MixtureManifest, colours: Mapping[str, int]) -> SampleRow:
    position = row["position"]
    facts = [f"epoch {row['epoch']}"]
    if len(manifest.stages) > 1:
        facts.insert(0, f"stage {row['stage']}")
    return SampleRow(
        number=position,
        facts=tuple(facts),
        source=row["component"],
        colour=colours.get(row["component"], COLOURS - 1),
        domain=row["domain"],
        url=row["url"],
        tag=row["tag_text"],
        text=shown_text(row["text"]),
        n_tokens=row["n_tokens"],
        json=f"/v1/mixtures/{manifest.ref}/rows?start={position}&count=1",
    )


def corpus_sample(corpus: Corpus, start: int, n_rows: int = ROWS_SHOWN) -> Sample:
    """Rows of a corpus in their order."""
    if not len(corpus):
        return Sample((), 0, 0, "the corpus has no rows")
    start = min(start, len(corpus) - 1)
    rows = corpus.rows(start, n_rows).to_pylist()
    return Sample(
        tuple(
            SampleRow(
                number=number,
                facts=(),
                source=row["source"],
                colour=None,
                domain=row["domain"],
                url=row["url"],
                tag="",
                text=shown_text(row["text"]),
                n_tokens=row["n_tokens"],
                json=f"/v1/corpora/{corpus.manifest.ref}/rows?offset={number}&length=1",
            )
            for number, row in enumerate(rows, start)
        ),
        start,
        len(corpus),
    )


def no_sample(error: MixwrightError, n_total: int) -> Sample:
    """Where rows cannot be read, the page says why and shows all else."""
    return Sample((), 0, n_total, str(error))
