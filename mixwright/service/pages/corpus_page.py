"""The page of a corpus: how long its documents are, where they are from, what they say, what was made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mixwright.corpora import Corpus
from mixwright.schemas.catalog import CorpusStatistics, HistogramBin
from mixwright.schemas.manifests import CorpusManifest
from mixwright.service.pages.composition_view import Tick
from mixwright.service.pages.evaluation_view import size_text
from mixwright.service.pages.html import render
from mixwright.service.pages.lineage_view import LineageDrawing
from mixwright.service.pages.sample_rows import Sample
from mixwright.service.pages.snippets import Here, corpus_snippets
from mixwright.service.statistics import cached_statistics, statistics_path

COUNTED_AT_ONCE = 64 << 20
"""Bytes of text whose statistics a page counts by itself; of larger corpora somebody has to ask for them once."""


@dataclass(frozen=True)
class Bar:
    """A bar of the histogram, in hundredths of the drawing."""

    x: float
    width: float
    height: float
    label: str
    text: str


@dataclass(frozen=True)
class DomainRow:
    """Documents of a domain, and their tokens where somebody has counted them."""

    domain: str | None
    n_documents: int
    n_tokens: int | None


def corpus_page(
    manifest: CorpusManifest,
    statistics: CorpusStatistics | None,
    sample: Sample,
    lineage: LineageDrawing,
    here: Here,
) -> str:
    """The page; without statistics the domains are those of the manifest."""
    bins = statistics.token_histogram if statistics else []
    return render(
        "corpus.html",
        section="corpora",
        crumbs=(("Catalog", "/"), ("Corpora", "/corpora")),
        manifest=manifest,
        statistics=statistics,
        bars=histogram(bins),
        bar_ticks=_bar_ticks(bins),
        domains=_domains(manifest, statistics),
        sample=sample,
        lineage=lineage,
        snippets=corpus_snippets(manifest, here),
    )


def statistics_if_quick(corpus: Corpus, cache: Path, *, asked: bool) -> CorpusStatistics | None:
    """The statistics if they are kept, quick to count, or asked for; else None."""
    if asked or corpus.manifest.n_text_bytes <= COUNTED_AT_ONCE:
        return cached_statistics(corpus, cache)
    try:
        return CorpusStatistics.model_validate_json(statistics_path(corpus, cache).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _domains(manifest: CorpusManifest, statistics: CorpusStatistics | None) -> list[DomainRow]:
    """The commonest domains; none where no document has one."""
    if statistics:
        rows = [DomainRow(each.domain, each.n_documents, each.n_tokens) for each in statistics.domains]
        return rows if statistics.n_domains else []
    ranked = sorted(manifest.domains.items(), key=lambda item: (-item[1], item[0]))
    return [DomainRow(domain, n, None) for domain, n in ranked]


def histogram(bins: Sequence[HistogramBin]) -> list[Bar]:
    """Bars from the first bin to the last, those between them that are empty too."""
    if not bins:
        return []
    counts = {each.high: each.n_documents for each in bins}
    highs = _doubled(bins[0].high, bins[-1].high)
    most = max(counts.values())
    width = 100 / len(highs)
    bars = []
    for number, high in enumerate(highs):
        low, n = high // 2, counts.get(high, 0)
        span = f"{low:,} to {high - 1:,} tokens" if high - low > 1 else f"{low:,} tokens"
        bars.append(
            Bar(number * width + 0.2, width - 0.4, 100 * n / most, size_text(low), f"{span}: {n:,} documents")
        )
    return bars


def _doubled(first: int, last: int) -> Sequence[int]:
    found = [first]
    while found[-1] < last:
        found.append(2 * found[-1])
    return found


def _bar_ticks(bins: Sequence[HistogramBin]) -> list[Tick]:
    most = max((each.n_documents for each in bins), default=0)
    return [Tick(100 - 100 * share, size_text(most * share)) for share in (1, 0.5) if most * share >= 1]
