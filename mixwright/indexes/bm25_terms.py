"""Terms: what BM25 counts in a text.

A term is a stemmed word, a number, or a pair of characters where a script has no spaces between words. The same
analysis reads passages and queries, so what a passage spells is found by a query that spells it alike.

A white-space character always ends a term: the terms of a text are those of its white-space separated chunks, one
after the other. Building relies on it to analyse each distinct chunk once.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from operator import add

import numpy as np

from mixwright.hashing import UInt64Array
from mixwright.indexes.words import normalized

ANALYSIS = "words-snowball-3.1-english-pairs-1"
"""Names the analysis. It changes whenever ``terms`` gives other terms: an index answers queries of its own only.

Snowball's stems change between releases (3.1 has other ones than 3.0 for "interval" and "international"), so the
bounds of PyStemmer are narrow.
"""

_FUNCTION_WORDS = """
a an and are as at be been by for from has have in is it its of on or s t that the their this to was were with
"""

STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Left out: English words that are in most passages, and the rests of 's and 't. docs/bm25.md has the figures."""

_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u1100-\u11ff\uac00-\ud7ff"  # Korean: spaces stand between phrases, and particles stick to words
    "\u3005-\u3007\u3021-\u3029\u3031-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff"  # Japanese, Bopomofo
)
_HAN = "\u2e80-\u2fdf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SCRIPT_RUNS = re.compile(f"[{_UNSPACED}{_HAN}]+|[^{_UNSPACED}{_HAN}]+")
_STARTS_UNSPACED = re.compile(f"[{_UNSPACED}{_HAN}]")
_HAN_CHARACTER = re.compile(f"[{_HAN}]")

# Signs that would melt into the word or number before them: NFKC makes 61/2 of 6½ and wordTM of word™.
_DETACHED = re.compile("[\u00bc-\u00be\u2150-\u215f\u2189\u2120\u2122]")
# Invisible inside of a word: soft hyphen, joiners, byte order mark, variation selectors.
_INVISIBLE = "\u00ad\u034f\u200c\u200d\u2060\ufeff\ufe00-\ufe0f\U000e0100-\U000e01ef"
_INVISIBLE_CHARACTER = re.compile(f"[{_INVISIBLE}]+")
_LAST_MARK_BUT_SELECTORS = 0x1FFFF


def terms(text: str) -> list[str]:
    """The terms of a text in its order, with repeats, without stop words.

    Words are runs of letters, combining marks and digits in Unicode's form NFKC, casefolded, then stemmed by
    Snowball's English stemmer, which leaves words of other alphabets alone. In scripts without spaces every two
    neighbouring characters are a term, every Chinese character by itself too (a word of one character has no
    pair), and any character that stands alone.
    """
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    found: list[str] = []
    for word in _words(text):
        if _STARTS_UNSPACED.match(word):
            found += _character_terms(word)
        elif word not in STOP_WORDS:
            found.append(stemmer.stemWord(word))
    return found


def hash_terms(words: Sequence[str]) -> UInt64Array:
    """64-bit hashes (n,) of terms: BLAKE2b with a digest of 8 bytes, read least byte first.

    They are the same on every machine. Among 100 million terms, two share a hash with a probability of 0.0003.
    """
    digests = b"".join(hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _words(text: str) -> list[str]:
    """Words, and runs of a script without spaces, in the order of the text."""
    if text.isascii():
        return _word_pattern().findall(text.lower())
    words = _word_pattern().findall(normalized(_DETACHED.sub(r" \g<0> ", text)))
    visible = (_INVISIBLE_CHARACTER.sub("", word) for word in words)
    return [run for word in visible for run in _SCRIPT_RUNS.findall(word)]


def _character_terms(run: str) -> list[str]:
    if len(run) == 1:
        return [run]
    return [*map(add, run, run[1:]), *_HAN_CHARACTER.findall(run)]


@cache
def _word_pattern() -> re.Pattern[str]:
    """A letter or digit, then more of them and combining marks: what ``\\w`` is, but for marks and underscore."""
    marks = [chr(code) for code in range(_LAST_MARK_BUT_SELECTORS + 1) if _is_mark(chr(code))]
    return re.compile(f"[^\\W_]+(?:[{''.join(marks)}{_INVISIBLE}][^\\W_]*)*")


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")
