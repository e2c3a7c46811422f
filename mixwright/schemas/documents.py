"""The Arrow row schema of a corpus.

Documents live in Arrow tables, never as one Python object a row.
"""

from __future__ import annotations

import pyarrow as pa

ID_LENGTH = 32
"""Hexadecimal digits of an id: the first 128 bits of the SHA-256 of the text's UTF-8 bytes."""

DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("domain", pa.string()),
        pa.field("url", pa.string()),
        pa.field("n_tokens", pa.int64(), nullable=False),
        # One JSON object a row, so that any input field survives whatever its type: {} where there is none.
        pa.field("metadata", pa.large_string(), nullable=False),
    ]
)
DOCUMENT_COLUMNS: tuple[str, ...] = tuple(DOCUMENT_SCHEMA.names)
