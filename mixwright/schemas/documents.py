"""The Arrow row schemas of corpora and datastores.

Documents and passages live in Arrow tables, never as one Python object a row.
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

PASSAGE_SCHEMA = pa.schema(
    [
        *DOCUMENT_SCHEMA,
        pa.field("document_id", pa.string(), nullable=False),
        # Characters (Unicode code points) of the document's text: ``text`` is its ``text[start:end]``.
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
    ]
)
"""A passage: its own ``id``, ``text`` and ``n_tokens``; the other fields are its document's.

Its id is the first 128 bits, in hexadecimal, of the SHA-256 of "DOCUMENT_ID START END": two documents may share
a paragraph, and each passage still has an id of its own, which does not depend on where it is stored.
"""
