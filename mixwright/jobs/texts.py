"""The texts of a corpus, a row group at a time, as jobs read them that go over a corpus in one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mixwright.corpora import Corpus, template_texts
from mixwright.schemas.documents import DOCUMENT_COLUMNS
from mixwright.templates import template_fields


def corpus_texts(corpus: Corpus, template: str) -> Iterator[list[str]]:
    """What a template makes of every document, in row order; "" where its fields are blank."""
    names = {name if name in DOCUMENT_COLUMNS else "metadata" for name in template_fields(template)}
    for shard in corpus.shards:
        for table in row_groups(shard, sorted(names)):
            yield template_texts(pl.LazyFrame(pl.from_arrow(table)), template)


def row_groups(shard: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of a shard, one row group after the other.

    As an ingest writes them, one has at most 2,048 documents, and little more than 4 MiB of text or one document.
    """
    file = pq.ParquetFile(shard)
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=list(columns))
