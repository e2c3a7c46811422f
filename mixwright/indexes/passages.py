"""Cutting documents into passages, and making each of them fit what an encoder reads.

A passage is ``text[start:end]`` of its document, in characters (Unicode code points). Without overlap the passages
of a document follow one another, and the document is all of them joined: white space between two passages belongs
to the one before. ``rejoin`` gives back the document with and without overlap.

A *word* is a run of characters between white space, as ``str.split`` has it, with two exceptions, so that no text
is one endless word: in scripts that put no space between words (Han, kana, Thai, Lao, Burmese, Khmer) each
character is a word, together with the marks and the punctuation behind it; and a run longer than 100 characters is
one word for each 100 that it begins.

Words are found by NumPy for many documents at once; Python's own loops go over passages, not over words.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from mixwright.corpora import field_expression
from mixwright.errors import ConfigError, DataError
from mixwright.indexes.encoders import LoadedEncoder, TokenSpans
from mixwright.indexes.words import offsets_of, text_batches
from mixwright.schemas.datastores import LongPassages, PassageWindow, WindowUnit
from mixwright.schemas.documents import ID_LENGTH, PASSAGE_SCHEMA
from mixwright.templates import fill_templates, template_fields

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
CountTokens = Callable[[Sequence[str]], Sequence[int]]

LONGEST_WORD = 100
"""Characters. Longer runs (base64, a table of numbers without spaces) are cut into words of this length."""

_SPACE, _BODY, _ALONE, _TRAILING = range(4)
"""What a character is to words: between them, part of one, one by itself, or what stays with such a one."""

_UNSPACED_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # Han radicals
    (0x3005, 0x3007),
    (0x3041, 0x312F),  # kana, bopomofo
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # kana of half width
    (0x20000, 0x323AF),
)
_STAYS_WITH_THE_CHARACTER_BEFORE = frozenset({"Mn", "Mc", "Me", "Cf", "Pc", "Pd", "Pe", "Pf", "Po"})
_BASIC_PLANE = 0x10000
_ALL_CHARACTERS = 0x110000

_SENTENCE_LANGUAGE = "en"
"""Whose abbreviations end no sentence. Sentence ends of other languages and scripts are known to it as well."""

_SENTENCES_AT_ONCE = 2048
"""Characters. The library's time grows with the square of a paragraph that has no spaces."""

_PLAIN_SPACES = {code: " " for code in range(0x3001) if chr(code).isspace() and chr(code) != "\n"}
_PARAGRAPH_END = re.compile(r"\n *\n\s*")


class Spans(NamedTuple):
    """m passages: the row of each one's document, and its characters ``starts`` … ``ends - 1``; all (m,)."""

    documents: Int64Array
    starts: Int64Array
    ends: Int64Array

    @classmethod
    def whole(cls, documents: Sequence[str]) -> Spans:
        """Each document as one passage."""
        ends = np.array([len(text) for text in documents], dtype=np.int64)
        return cls(np.arange(len(documents), dtype=np.int64), np.zeros_like(ends), ends)

    def where(self, which: BoolArray) -> Spans:
        """The passages for which ``which`` (m,) is true."""
        return Spans(self.documents[which], self.starts[which], self.ends[which])

    def texts(self, documents: Sequence[str]) -> list[str]:
        """The text (m,) of each passage, out of those of the documents."""
        rows = zip(self.documents.tolist(), self.starts.tolist(), self.ends.tolist(), strict=True)
        return [documents[document][start:end] for document, start, end in rows]

    def ids(self, documents: Sequence[str]) -> list[str]:
        """The id (m,) of each passage, out of those of the documents: see PASSAGE_SCHEMA."""
        rows = zip(self.documents.tolist(), self.starts.tolist(), self.ends.tolist(), strict=True)
        names = (f"{documents[document]} {start} {end}" for document, start, end in rows)
        return [hashlib.sha256(name.encode()).hexdigest()[:ID_LENGTH] for name in names]


def passages_of(
    documents: pa.Table,
    window: PassageWindow,
    long_passages: LongPassages,
    encoder: LoadedEncoder | None,
    template: str,
    count_tokens: CountTokens,
) -> pa.Table:
    """The passages of documents, in order: a table of DOCUMENT_SCHEMA to one of PASSAGE_SCHEMA.

    What ``template`` makes of each passage fits into what the encoder reads; without an encoder there is no limit.
    ``count_tokens`` gives the n_tokens of texts. Where the encoder reads less than a window of tokens beside the
    rest of the template, these are cut smaller, and their overlap too, rather than split in two. Where the encoder
    reads vectors instead of words, every document is one passage.

    Raises DataError for a passage that is too long, if such are refused or what else the template embeds leaves no
    room for text, and ConfigError for windows of tokens without an encoder.
    """
    texts = documents["text"].to_pylist()
    parts = [PASSAGE_SCHEMA.empty_table()]
    for start, stop in text_batches(texts):
        batch = documents.slice(start, stop - start)
        reading = None if encoder is None else _Reading.of(batch, encoder, template, count_tokens)
        if encoder is None or encoder.reads_words:
            spans = _cut_to_fit(texts[start:stop], window, long_passages, reading)
        else:
            spans = Spans.whole(texts[start:stop])
        parts.append(passage_table(batch, spans, count_tokens))
    return pa.concat_tables(parts).combine_chunks()


def passage_table(documents: pa.Table, spans: Spans, count_tokens: CountTokens) -> pa.Table:
    """Passages as a table of PASSAGE_SCHEMA: what is not their own is copied from their documents."""
    texts = spans.texts(documents["text"].to_pylist())
    document_ids = documents["id"].to_pylist()
    own = {
        "id": spans.ids(document_ids),
        "text": texts,
        "n_tokens": list(count_tokens(texts)),
        "document_id": documents["id"].take(pa.array(spans.documents)),
        "start": spans.starts,
        "end": spans.ends,
    }
    rows = pa.array(spans.documents)
    columns = [own[name] if name in own else documents[name].take(rows) for name in PASSAGE_SCHEMA.names]
    return pa.table(dict(zip(PASSAGE_SCHEMA.names, columns, strict=True)), schema=PASSAGE_SCHEMA)


def cut(
    texts: Sequence[str],
    window: PassageWindow,
    encoder: LoadedEncoder | None = None,
    room: Int64Array | None = None,
) -> Spans:
    """The windows of each text, in order; each text has one at least. Takes some 30 bytes a character.

    A window ends between words; one of tokens ends inside a word only where that is longer than a window. ``room``
    (t,) are the tokens that a window of each text may have; where that is less than ``window.size``, windows are
    smaller, and their overlap in proportion. Raises ConfigError for windows of tokens without an encoder.
    """
    sizes = np.full(len(texts), window.size)
    if room is not None:
        sizes = np.minimum(sizes, np.maximum(room, 1))
    parts = []
    every = zip(texts, _cuts(texts, window.unit, sizes, encoder), sizes.tolist(), strict=True)
    for document, (text, cuts, size) in enumerate(every):
        ends = _sentence_ends(text, cuts) if window.unit == "sentences" else None
        begins, stops = _windows(cuts.counts, ends, size, window.overlap * size // window.size)
        parts.append((np.full(len(begins), document), cuts.places[begins], cuts.places[stops]))
    return _joined(parts)


def rejoin(texts: Sequence[str], starts: Sequence[int], ends: Sequence[int]) -> str:
    """The document whose passages these are, in any order: all (m,).

    Raises DataError where passages leave a gap, or disagree about the characters that they share.
    """
    passages = sorted(zip(starts, ends, texts, strict=True))
    parts: list[str] = []
    reached = 0
    for start, end, text in passages:
        if start > reached:
            raise DataError(f"no passage has character {reached}: give all passages of one document")
        if end > reached:
            parts.append(text[reached - start :])
            reached = end
    document = "".join(parts)
    for start, end, text in passages:
        if document[start:end] != text:
            raise DataError(
                f"the passage {start} to {end} is not of the same text as the others: give those of one"
            )
    return document


class _Cuts(NamedTuple):
    """Where a text may be cut: ``places`` (c,) from 0 to its length, with the words or tokens before each (c,)."""

    places: Int64Array
    counts: Sequence[int]


@dataclass(frozen=True)
class _Reading:
    """What an encoder reads of the passages of some documents; ``values`` are the documents' template fields."""

    encoder: LoadedEncoder
    template: str
    document_ids: list[str]
    values: pl.DataFrame
    count_tokens: CountTokens

    @classmethod
    def of(cls, documents: pa.Table, encoder: LoadedEncoder, template: str, count_tokens: CountTokens) -> _Reading:
        frame = pl.DataFrame(documents)
        values = frame.select([field_expression(name).alias(name) for name in template_fields(template)])
        return cls(encoder, template, documents["id"].to_pylist(), values, count_tokens)

    def token_counts(self, documents: Int64Array, texts: Sequence[str], ids: Sequence[str]) -> Int64Array:
        """Tokens (m,) that are embedded of passages with these texts and ids."""
        own: dict[str, Callable[[], Sequence[str]]] = {
            "text": lambda: texts,
            "id": lambda: ids,
            "n_tokens": lambda: [str(count) for count in self.count_tokens(texts)],
        }
        columns = {
            name: pl.Series(own[name](), dtype=pl.String) if name in own else self.values[name].gather(documents)
            for name in template_fields(self.template)
        }
        filled = fill_templates(self.template, pl.DataFrame(columns))
        return self.encoder.token_counts([text or "" for text in filled])

    def rooms(self, limit: int) -> Int64Array:
        """Tokens (t,) that a passage of each document may have: what else is embedded takes the others."""
        text = "a"
        rows = np.arange(len(self.document_ids))
        taken = self.token_counts(rows, [text] * len(rows), self.document_ids)
        return limit - taken + len(self.encoder.token_spans([text])[0].starts)

    def problem(self, spans: Spans, row: int, tokens: int, change: str) -> DataError:
        """The error that names a passage that is too long, and ends with what to change."""
        return DataError(
            f"document {self.document_ids[spans.documents[row]]}: of its characters {spans.starts[row]} to "
            f"{spans.ends[row]} the template {self.template!r} makes {tokens} tokens, and encoder "
            f"{self.encoder.name} reads {self.encoder.max_tokens}: {change}"
        )


def _cut_to_fit(
    texts: Sequence[str], window: PassageWindow, long_passages: LongPassages, reading: _Reading | None
) -> Spans:
    if reading is None:
        return cut(texts, window)
    limit = reading.encoder.max_tokens
    if limit is None:
        return cut(texts, window, reading.encoder)
    adapted = window.unit == "tokens" and long_passages == "split"
    spans = cut(texts, window, reading.encoder, reading.rooms(limit) if adapted else None)
    return _fit(texts, spans, long_passages, reading, limit)


def _fit(texts: Sequence[str], spans: Spans, long_passages: LongPassages, reading: _Reading, limit: int) -> Spans:
    """The passages, those split that are longer than ``limit`` tokens; in order, none twice.

    A part of a passage need not have the tokens that were its share of the whole, so that parts are counted and,
    where need be, split again.
    """
    done = []
    while len(spans.starts):
        tokens = reading.token_counts(spans.documents, spans.texts(texts), spans.ids(reading.document_ids))
        long = tokens > limit
        done.append(spans.where(~long))
        spans, tokens = spans.where(long), tokens[long]
        if len(tokens) and long_passages == "refuse":
            raise reading.problem(
                spans, 0, int(tokens[0]), "use smaller windows, have long passages split, or name another encoder"
            )
        spans = _split(texts, spans, tokens, reading, limit)
    # A part of one window may be what is left of the next one, where windows overlap.
    rows = np.unique(np.concatenate([np.stack(each, axis=1) for each in done]), axis=0)
    return Spans(*rows.T)


def _split(texts: Sequence[str], spans: Spans, tokens: Int64Array, reading: _Reading, limit: int) -> Spans:
    """Each passage in parts of about the same number of tokens; ``tokens`` (m,) are embedded of the whole ones."""
    passages = spans.texts(texts)
    parts = []
    token_spans = reading.encoder.token_spans(passages)
    for row, (text, words, places) in enumerate(zip(passages, _word_starts(passages), token_spans, strict=True)):
        room = limit - int(tokens[row]) + len(places.starts)
        cuts = _token_cuts(text, words, places, max(room, 1))
        bounds = spans.starts[row] + cuts.places[_even_parts(cuts.counts, max(room, 1))]
        if len(bounds) == 2 or room < 1:
            change = "they cannot be split further: shorten what else the template embeds, or name another encoder"
            raise reading.problem(spans, row, int(tokens[row]), change)
        parts.append((np.full(len(bounds) - 1, spans.documents[row]), bounds[:-1], bounds[1:]))
    return _joined(parts)


def _joined(parts: Sequence[tuple[Int64Array, Int64Array, Int64Array]]) -> Spans:
    empty = np.empty(0, dtype=np.int64)
    return Spans(*(np.concatenate(each) for each in zip((empty, empty, empty), *parts, strict=True)))


def _cuts(
    texts: Sequence[str], unit: WindowUnit, sizes: Int64Array, encoder: LoadedEncoder | None
) -> Iterator[_Cuts]:
    """Where windows of each text may begin and end; ``sizes`` (t,) are how long they may be."""
    word_starts = _word_starts(texts)
    if unit != "tokens":
        for text, words in zip(texts, word_starts, strict=True):
            yield _word_cuts(text, words)
        return
    if encoder is None:
        raise ConfigError("windows of tokens are of an encoder's tokens: name one, or use words or sentences")
    every = zip(texts, word_starts, encoder.token_spans(texts), sizes.tolist(), strict=True)
    for text, words, tokens, size in every:
        yield _token_cuts(text, words, tokens, size)


def _word_cuts(text: str, words: Int64Array) -> _Cuts:
    """Before each word (w,) but the first, and at both ends of the text."""
    return _Cuts(np.concatenate([[0], words[1:], [len(text)]]), range(len(words) + 1) if len(words) else [0, 0])


def _token_cuts(text: str, words: Int64Array, tokens: TokenSpans, longest: int) -> _Cuts:
    """Before each word (w,) that begins with a token, and before each token of a word longer than ``longest``."""
    places, before = np.unique(_token_begins(text, tokens), return_index=True)
    allowed = np.isin(places, words)
    allowed[:1] = True
    kept = np.flatnonzero(allowed)
    lengths = np.diff(np.append(before[kept], len(tokens.starts)))
    allowed |= np.repeat(lengths > longest, np.diff(np.append(kept, len(places))))
    inner = np.flatnonzero(allowed)[1:]
    counts = [0, *before[inner].tolist(), len(tokens.starts)]
    return _Cuts(np.concatenate([[0], places[inner], [len(text)]]), counts)


def _token_begins(text: str, tokens: TokenSpans) -> Int64Array:
    """Where each token (n,) begins behind the white space that many tokenizers count to it.

    A token that is white space and nothing else begins with it, so that it belongs to the word before.
    """
    printed = np.append(np.flatnonzero(_kinds_of(text) != _SPACE), len(text))
    begins = printed[np.searchsorted(printed, tokens.starts)]
    return np.maximum.accumulate(np.where(begins < tokens.ends, begins, tokens.starts))


def _windows(
    counts: Sequence[int], ends: Sequence[int] | None, size: int, overlap: int
) -> tuple[list[int], list[int]]:
    """Numbers of the cuts at which windows begin and end, both (w,).

    ``counts`` (c,) are the words or tokens before each cut. A window ends at the last of the cuts ``ends`` (which
    begin with 0; None: all) that is within ``size`` of its begin, or else at the last cut within; it goes beyond
    where there is none. The next one begins ``overlap`` earlier, or at the next cut from there.
    """
    begins, stops = [0], [0]
    while True:
        reach = max(bisect_right(counts, counts[begins[-1]] + size) - 1, stops[-1] + 1)
        whole = reach if ends is None else ends[bisect_right(ends, reach) - 1]
        stops.append(whole if whole > stops[-1] else reach)
        if stops[-1] == len(counts) - 1:
            return begins, stops[1:]
        stop = stops[-1]
        # The overlap gives way to a word that would not fit behind it.
        earliest = max(counts[stop] - overlap, counts[stop + 1] - size)
        begins.append(min(bisect_left(counts, earliest), stop))


def _even_parts(counts: Sequence[int], room: int) -> Int64Array:
    """Numbers of the cuts between as few parts of at most ``room`` tokens as go, and as even; both ends included.

    ``counts`` (c,) are the tokens before each cut. Every cut is taken where that is not enough.
    """
    before = np.asarray(counts, dtype=np.int64)
    for n_parts in range(max(-(-counts[-1] // room), 2), len(before)):
        targets = counts[-1] * np.arange(1, n_parts) / n_parts
        after = np.searchsorted(before, targets).clip(1)
        nearest = after - (targets - before[after - 1] < before[after] - targets)
        chosen = np.unique(np.concatenate([[0], nearest, [len(before) - 1]]))
        if np.diff(before[chosen]).max() <= room:
            return chosen
    return np.arange(len(before))


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """What each character is to words: (0x110000,). Takes 20 ms, once."""
    kinds = np.full(_ALL_CHARACTERS, _BODY, dtype=np.uint8)
    for first, last in _UNSPACED_RANGES:
        kinds[first : last + 1] = _ALONE
    for code in range(_BASIC_PLANE):
        if unicodedata.category(chr(code)) in _STAYS_WITH_THE_CHARACTER_BEFORE:
            kinds[code] = _TRAILING
        if chr(code).isspace():
            kinds[code] = _SPACE
    return kinds


def _kinds_of(text: str) -> npt.NDArray[np.uint8]:
    return _kinds().take(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4"))


def _word_starts(texts: Sequence[str]) -> list[Int64Array]:
    """Where the words of each text start in it, as the module's docstring has them."""
    # A line break behind each text keeps its last word from the next one's first.
    offsets = offsets_of(np.array([len(text) + 1 for text in texts], dtype=np.int64))
    starts = _starts_in(_kinds_of("\n".join(texts)))
    bounds = np.searchsorted(starts, offsets).tolist()
    pairs = zip(bounds[:-1], bounds[1:], offsets[:-1], strict=True)
    return [starts[first:last] - offset for first, last, offset in pairs]


def _starts_in(kinds: npt.NDArray[np.uint8]) -> Int64Array:
    """Characters at which words start, from what the characters are (c,)."""
    space, alone = kinds == _SPACE, kinds == _ALONE
    begins = ~space
    begins[1:] &= space[:-1]
    if alone.any():
        # Behind a character that is a word, and what stays with it, a word of another script begins.
        leading = np.where(kinds == _TRAILING, 0, np.arange(len(kinds)))
        leads = alone[np.maximum.accumulate(leading)]
        begins[1:] |= (kinds[1:] == _BODY) & leads[:-1]
        begins |= alone
    return _with_long_words_cut(np.flatnonzero(begins), np.flatnonzero(space), len(kinds))


def _with_long_words_cut(starts: Int64Array, spaces: Int64Array, length: int) -> Int64Array:
    """The starts of words (w,), and a further one each LONGEST_WORD characters of a word."""
    ends = np.append(starts[1:], length)
    long = np.flatnonzero(ends - starts > LONGEST_WORD)
    next_space = np.append(spaces, length)[np.searchsorted(spaces, starts[long])]
    n_more = (np.minimum(next_space, ends[long]) - starts[long] - 1) // LONGEST_WORD
    if not n_more.any():
        return starts
    steps = np.arange(int(n_more.sum())) - np.repeat(offsets_of(n_more)[:-1], n_more) + 1
    return np.sort(np.concatenate([starts, np.repeat(starts[long], n_more) + LONGEST_WORD * steps]))


def _sentence_ends(text: str, cuts: _Cuts) -> list[int]:
    """Numbers of the cuts at which sentences end, 0 before them; an end inside a word moves behind the word."""
    return [0, *np.unique(np.searchsorted(cuts.places, _sentence_places(text))).tolist()]


def _sentence_places(text: str) -> list[int]:
    """Characters at which sentences end, white space behind them included. A blank line ends one too."""
    # Line separators other than \n have made the library panic behind capital letters.
    plain = text.translate(_PLAIN_SPACES)
    found: list[int] = []
    start = 0
    for paragraph_end in [*(match.end() for match in _PARAGRAPH_END.finditer(plain)), len(plain)]:
        while start < paragraph_end:
            piece = plain[start : min(start + _SENTENCES_AT_ONCE, paragraph_end)]
            ends = [start + length for length in accumulate(map(len, _segment(piece)))]
            if start + len(piece) < paragraph_end:
                ends.pop()  # it may go on behind the piece
            found += ends
            start = ends[-1] if ends else start + len(piece)
    return found


def _segment(text: str) -> list[str]:
    """The sentences of a text, white space behind them included; the text itself where the library panics."""
    import sentencex

    try:
        sentences: list[str] = sentencex.segment(_SENTENCE_LANGUAGE, text)
    except BaseException as error:  # a panic of Rust code is no Exception
        if type(error).__name__ != "PanicException":
            raise
        return [text]
    return sentences
