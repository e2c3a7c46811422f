"""How much a datastore would hold: documents, words, passages and bytes, assumed of so many tokens or measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mixwright.corpora import Corpus
from mixwright.errors import ConfigError, DataError
from mixwright.indexes.passages import cut
from mixwright.schemas.datastores import PassageWindow
from mixwright.schemas.defaults import DEFAULT_TOKENIZER

TOKENS_PER_WORD = 1.3
"""Tokens of a subword vocabulary in a word of English prose (1.24 to 1.53 measured; code has more)."""

FILL = 0.8541
"""Words of a passage over those it may have, since the last passage of a document is short: what 3,518,123
passages of 256 words for 10⁹ tokens say (Shao et al., arXiv 2407.12854) at 1.3 tokens a word."""

BYTES_PER_WORD = 6.1
"""UTF-8 bytes of a word and the space behind it, in English prose (5.6 to 6.2 measured)."""

DOCUMENT_VALUES_BYTES = 150
"""URL and metadata of a document, where they are not known (34 to 157 measured)."""

SAMPLE_BYTES = 32 << 20
"""Text that is read of a corpus to count its passages; all of it where it has no more."""

_SAMPLED_SHARDS = 32
_BATCH_ROWS = 256
_SPECIAL_TOKENS = 2


@dataclass(frozen=True)
class Contents:
    """What is to be retrieved from. ``values_bytes`` are URLs and metadata of all documents.

    ``tokens`` are those that an encoder reads; ``measured_share`` is the share of the text that was read to know
    all this (0: it is assumed).
    """

    tokens: int
    words: int
    documents: int
    passages: int
    text_bytes: int
    values_bytes: int
    measured_share: float = 0.0


def assumed_contents(
    tokens: float, window: int, tokens_per_word: float = TOKENS_PER_WORD, fill: float = FILL
) -> Contents:
    """The contents of a store of so many tokens, cut into windows of so many words.

    A document of m passages has its last one half full in the mean, so that fill = (m − ½) / m.
    Raises ConfigError for what makes no text.
    """
    if not (tokens >= 1 and window >= 1 and tokens_per_word > 0):
        raise ConfigError("tokens, words a passage and tokens a word must be above 0: raise them")
    if not 0.5 <= fill < 1:
        raise ConfigError(f"fill {fill:g} is not from 0.5 (each document a passage) to below 1: change it")
    words = tokens / tokens_per_word
    passages = words / (window * fill)
    documents = max(2 * (1 - fill) * passages, 1)
    return Contents(
        tokens=round(tokens),
        words=round(words),
        documents=math.ceil(documents),
        passages=max(math.ceil(passages - 1e-6), 1),
        text_bytes=round(words * BYTES_PER_WORD),
        values_bytes=round(documents * DOCUMENT_VALUES_BYTES),
    )


def measured_contents(
    corpora: Sequence[Corpus], window: PassageWindow, tokens_per_word: float | None = None
) -> Contents:
    """The contents of a store of these corpora; passages are counted by cutting them, or a sample of them.

    Tokens are those that the default tokenizer counted, and else, or where it is given, ``tokens_per_word`` times
    the words. Raises ConfigError for such that is not above 0, DataError for corpora without text.
    """
    if tokens_per_word is not None and not tokens_per_word > 0:
        raise ConfigError(f"tokens a word {tokens_per_word:g} must be above 0: raise it")
    parts = [_measured(corpus, window, tokens_per_word) for corpus in corpora]
    if not sum(part.words for part in parts):
        raise DataError("the corpora have no text to retrieve from: ingest some")
    counts = {name: sum(getattr(part, name) for part in parts) for name in _COUNTS}
    text = sum(part.text_bytes for part in parts)
    read = sum(part.measured_share * part.text_bytes for part in parts)
    return Contents(**counts, measured_share=read / text)


_COUNTS = ("tokens", "words", "documents", "passages", "text_bytes", "values_bytes")


class _Sample(NamedTuple):
    documents: int
    passages: int
    words: int
    text_bytes: int
    values_bytes: int


def _measured(corpus: Corpus, window: PassageWindow, tokens_per_word: float | None) -> Contents:
    found = [_count(batch, window) for batch in _sampled(corpus)]
    sample = _Sample(*(int(column.sum()) for column in np.asarray(found, dtype=np.int64).reshape(-1, 5).T))
    manifest = corpus.manifest
    if not sample.text_bytes:
        return Contents(0, 0, manifest.n_documents, 0, 0, 0, 1.0)
    scale = manifest.n_text_bytes / sample.text_bytes
    words = round(sample.words * scale)
    counted = manifest.tokenizer == DEFAULT_TOKENIZER and tokens_per_word is None
    return Contents(
        tokens=manifest.n_tokens if counted else round(words * (tokens_per_word or TOKENS_PER_WORD)),
        words=words,
        documents=manifest.n_documents,
        # Every document has a passage, whatever is in the sample.
        passages=max(round(sample.passages * scale), manifest.n_documents),
        text_bytes=manifest.n_text_bytes,
        values_bytes=round(sample.values_bytes * manifest.n_documents / sample.documents),
        measured_share=1 / scale,
    )


def _sampled(corpus: Corpus) -> Iterator[pa.Table]:
    """Documents of a corpus: all, or the first of shards that are evenly spaced in it."""
    whole = corpus.manifest.n_text_bytes <= SAMPLE_BYTES
    shards = corpus.shards
    step = 1 if whole else max(len(shards) // _SAMPLED_SHARDS, 1)
    chosen = shards[::step]
    room = math.inf if whole else SAMPLE_BYTES / len(chosen)
    for shard in chosen:
        left = room
        for batch in pq.ParquetFile(shard).iter_batches(_BATCH_ROWS, columns=["text", "url", "metadata"]):
            yield batch
            left -= batch.nbytes
            if left <= 0:
                break


def _count(batch: pa.Table, window: PassageWindow) -> _Sample:
    texts = batch.column("text").to_pylist()
    # Equal values are stored once.
    values = {*batch.column("url").to_pylist(), *batch.column("metadata").to_pylist()}
    return _Sample(
        documents=len(texts),
        passages=len(cut(texts, window).starts),
        words=sum(len(text.split()) for text in texts),
        text_bytes=sum(len(text.encode()) for text in texts),
        values_bytes=sum(len(value.encode()) for value in values if value is not None),
    )


def split_to_fit(contents: Contents, window: int, max_tokens: int | None) -> Contents:
    """The contents with passages split that an encoder does not read whole.

    Of a document all passages but the last are full, and the last has any length alike up to the longest for which
    their mean is right.
    """
    if max_tokens is None or not contents.passages:
        return contents
    limit = max(max_tokens - _SPECIAL_TOKENS, 1)
    fill = contents.words / contents.passages / window
    last, longest = (1.0, max(round(2 * fill * window), 1)) if fill < 0.5 else (2 * (1 - fill), window)
    parts = np.ceil(np.arange(1, window + 1) * (contents.tokens / contents.words) / limit)
    factor = (1 - last) * parts[-1] + last * parts[:longest].mean()
    return replace(contents, passages=math.ceil(contents.passages * factor))
