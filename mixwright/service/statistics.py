"""Statistics of a corpus: computed once, kept under ``HOME/cache/statistics``."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from mixwright.corpora import Corpus
from mixwright.schemas.catalog import CorpusStatistics, Distribution, DomainCount, HistogramBin

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_MAX_DOMAINS = 100


def cached_statistics(corpus: Corpus, cache: Path) -> CorpusStatistics:
    """The statistics of a corpus, from the cache if they are there. ``cache`` may be deleted at any time."""
    path = statistics_path(corpus, cache)
    try:
        return CorpusStatistics.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        found = corpus_statistics(corpus.scan())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    temporary.write_text(found.model_dump_json())
    temporary.rename(path)
    return found


def statistics_path(corpus: Corpus, cache: Path) -> Path:
    """Where the statistics of a corpus are kept."""
    return cache / "statistics" / f"{corpus.manifest.fingerprint}.json"


def corpus_statistics(frame: pl.LazyFrame) -> CorpusStatistics:
    """Statistics over document rows (DOCUMENT_SCHEMA)."""
    tokens = pl.col("n_tokens")
    domain = pl.col("domain")
    # Bin 0 is {0}, bin b > 0 is [2^(b-1), 2^b): the number of binary digits of n_tokens.
    digits = pl.when(tokens > 0).then(64 - tokens.bitwise_leading_zeros()).otherwise(0).cast(pl.Int64)
    counts, bins, domains = pl.collect_all(
        [
            frame.select(
                n=pl.len(),
                total=tokens.sum(),
                min=tokens.min(),
                max=tokens.max(),
                mean=tokens.mean(),
                n_text_bytes=pl.col("text").str.len_bytes().sum(),
                n_without_domain=domain.null_count(),
                n_domains=domain.drop_nulls().n_unique(),
                **{str(level): tokens.quantile(level, "linear") for level in QUANTILES},
            ),
            frame.group_by(digits.alias("digits")).len("n_documents").sort("digits"),
            frame.group_by("domain")
            .agg(n_documents=pl.len(), n_tokens=tokens.sum())
            .sort(["n_documents", "domain"], descending=[True, False])
            .head(_MAX_DOMAINS),
        ]
    )
    row = counts.row(0, named=True)
    return CorpusStatistics(
        n_documents=row["n"],
        n_tokens=row["total"],
        n_text_bytes=row["n_text_bytes"],
        n_without_domain=row["n_without_domain"],
        n_domains=row["n_domains"],
        tokens=Distribution(
            **{field: row[field] for field in ("min", "max", "mean", "total")},
            quantiles={str(level): row[str(level)] for level in QUANTILES},
        )
        if row["n"]
        else None,
        token_histogram=[
            HistogramBin(low=2 ** (b - 1) if b else 0, high=2**b, n_documents=n) for b, n in bins.iter_rows()
        ],
        domains=[DomainCount(**each) for each in domains.iter_rows(named=True)],
    )
