"""Helpers that tests share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from mixwright.schemas.documents import DOCUMENT_SCHEMA, ID_LENGTH


def document_table(
    texts: Sequence[str],
    *,
    source: str = "wiki",
    domains: Sequence[str | None] | None = None,
    urls: Sequence[str | None] | None = None,
    n_tokens: Sequence[int] | None = None,
    metadata: Sequence[str] | None = None,
) -> pa.Table:
    """Document rows made by hand; tokens are words unless given."""
    n = len(texts)
    return pa.table(
        {
            "id": [hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH] for text in texts],
            "text": texts,
            "source": [source] * n,
            "domain": domains or [None] * n,
            "url": urls or [None] * n,
            "n_tokens": n_tokens if n_tokens is not None else [len(text.split()) for text in texts],
            "metadata": metadata or ["{}"] * n,
        },
        schema=DOCUMENT_SCHEMA,
    )
