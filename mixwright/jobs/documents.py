"""Rows to documents: one row's fields to the columns of a corpus, and blocks of documents as Arrow batches."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa

from mixwright.hosts import host_of, without_userinfo
from mixwright.schemas.documents import DOCUMENT_SCHEMA, ID_LENGTH
from mixwright.schemas.requests import IngestRequest
from mixwright.templates import fill_template, template_fields

UNCOUNTED_SCHEMA = DOCUMENT_SCHEMA.remove(DOCUMENT_SCHEMA.get_field_index("n_tokens"))
"""A document before its tokens are counted."""

_BLOCK_ROWS = 2048
_BLOCK_BYTES = 4 << 20
_SHOWN_FIELDS = 20
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class FieldMapping:
    """Which field of a row becomes which column."""

    text_field: str
    text_template: str | None
    url_field: str
    domain_field: str | None
    domain: str | None
    source: str

    @classmethod
    def of(cls, request: IngestRequest, corpus_name: str) -> FieldMapping:
        """The mapping that a request asks for; ``source`` is the corpus's name unless it says otherwise.

        Raises ConfigError for a malformed template.
        """
        if request.text_template is not None:
            template_fields(request.text_template)
        return cls(
            text_field=request.text_field,
            text_template=request.text_template,
            url_field=request.url_field,
            domain_field=request.domain_field,
            domain=normal_domain(request.domain),
            source=request.source or corpus_name,
        )


class DocumentBlock:
    """Collects documents until there are enough for one Arrow batch.

    Where a block ends depends on its rows only, so that shards do not depend on how a file system cuts its
    reads.
    """

    def __init__(self, mapping: FieldMapping) -> None:
        self._mapping = mapping
        self._clear()

    def _clear(self) -> None:
        self._rows: list[tuple[str, str, str, str | None, str | None, str]] = []
        self._n_bytes = 0

    @property
    def is_full(self) -> bool:
        return len(self._rows) >= _BLOCK_ROWS or self._n_bytes >= _BLOCK_BYTES

    def add(self, fields: dict[str, Any]) -> str | None:
        """Add a row; returns why it is no document instead, and then leaves ``fields`` as they are."""
        mapping = self._mapping
        if mapping.text_template is not None:
            text = _filled(mapping.text_template, fields)
            if text is None:
                return _no_text_of_template(fields, mapping.text_template)
        else:
            text = fields.get(mapping.text_field)
        if not isinstance(text, str):
            return _no_text(fields, mapping.text_field)
        if not text or text.isspace():
            return "the text is empty"
        try:
            data = text.encode()
        except UnicodeEncodeError:
            return "the text has a lone surrogate, which is no character"
        value = fields.get(mapping.url_field)
        url = (without_userinfo(value) or None) if isinstance(value, str) else None
        # A URL that is no string has no column: it stays where it can be seen.
        used = {mapping.url_field} if url is not None or not value else set()
        if mapping.text_template is None:
            used.add(mapping.text_field)
        metadata = _encode({name: each for name, each in fields.items() if name not in used}).decode()
        identifier = hashlib.sha256(data).hexdigest()[:ID_LENGTH]
        self._rows.append((identifier, text, mapping.source, self._domain(fields, url), url, metadata))
        self._n_bytes += len(data) + len(metadata)
        return None

    def take(self) -> Any:
        """The documents collected, as a batch of UNCOUNTED_SCHEMA; the block is empty then."""
        columns = zip(*self._rows, strict=True) if self._rows else [()] * len(UNCOUNTED_SCHEMA)
        arrays = [pa.array(values, type=each.type) for values, each in zip(columns, UNCOUNTED_SCHEMA, strict=True)]
        self._clear()
        return pa.record_batch(arrays, schema=UNCOUNTED_SCHEMA)

    def _domain(self, fields: dict[str, Any], url: str | None) -> str | None:
        if self._mapping.domain_field is not None:
            value = fields.get(self._mapping.domain_field)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return normal_domain(str(value) if is_number else value)
        return self._mapping.domain or host_of(url)


def normal_domain(value: Any) -> str | None:
    """A domain as a field or a person gives it: what is a host or a URL becomes the host, a label stays.

    None for what is no string, or empty.

    >>> normal_domain("https://EN.Wikipedia.org/wiki/Ham"), normal_domain("Science & Technology")
    ('en.wikipedia.org', 'Science & Technology')
    """
    if not isinstance(value, str) or not value.strip():
        return None
    value = without_userinfo(value.strip())
    host = host_of(value)
    if host is not None and ("//" in value or "." in host or host == value.lower()):
        return host
    return value or None


def _filled(template: str, fields: dict[str, Any]) -> str | None:
    """The text a template makes of a row; numbers as they are written, None if every field is missing."""
    values = {
        name: value if isinstance(value, str) else _encode(value).decode()
        for name in template_fields(template)
        if (value := fields.get(name)) is not None
    }
    return fill_template(template, values)


def _no_text_of_template(fields: dict[str, Any], template: str) -> str:
    names = ", ".join(template_fields(template))
    return f"none of the template's fields ({names}) has a text (its fields: {_shown(fields)})"


def _no_text(fields: dict[str, Any], text_field: str) -> str:
    if text_field in fields:
        value = fields[text_field]
        return f"the text is {'null' if value is None else f'of type {type(value).__name__}'}, not a string"
    return f"no field {text_field!r} (its fields: {_shown(fields)})"


def _shown(fields: dict[str, Any]) -> str:
    names = list(fields)
    return (", ".join(names[:_SHOWN_FIELDS]) + (" …" if len(names) > _SHOWN_FIELDS else "")) or "none"
