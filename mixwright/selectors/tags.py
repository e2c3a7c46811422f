"""Tags: text that says where a document comes from, put before it in training.

Published forms: MeCo (arXiv 2501.01956), Physics of Language Models 3.3, section 10 (arXiv 2404.05405),
``<boc>…<eoc>`` of URLs Help, Topics Guide (arXiv 2505.16570) and CTRL's control codes (arXiv 1909.05858).
Tag and text are separate columns and are tokenized apart: only then is the loss mask exact.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from mixwright.corpora import field_expression
from mixwright.errors import ConfigError
from mixwright.hashing import keyed_hash
from mixwright.hosts import registered_domain_of, suffix_of
from mixwright.schemas.mixtures import TagPlan
from mixwright.templates import template_fields, template_parts
from mixwright.tokenization import Tokenizer

BoolArray = npt.NDArray[np.bool_]

_DROPOUT = 3
"""The use of the seed that decides which rows lose their tag."""


def _hashed(domain: str | None) -> str | None:
    return hashlib.sha256(domain.encode()).hexdigest()[:12] if domain else None


DERIVED_FIELDS: dict[str, Callable[[str | None], str | None]] = {
    "registered_domain": registered_domain_of,
    "suffix": suffix_of,
    "domain_hash": _hashed,
}
"""Placeholders computed from the document's domain: ``bbc.co.uk``, ``co.uk``, and 12 hexadecimal digits."""


def field_values(frame: pl.LazyFrame, names: Sequence[str]) -> pl.DataFrame:
    """The template fields of each document as strings, one column a field; null where missing or blank.

    Runs of white space become one space: a line break in a value would end the tag early.
    """
    needed = dict.fromkeys("domain" if name in DERIVED_FIELDS else name for name in names)
    columns = frame.select([field_expression(name).alias(name) for name in needed]).collect()
    return columns.select([_clean(_value(columns, name)).alias(name) for name in names])


def _value(columns: pl.DataFrame, name: str) -> pl.Series:
    if name not in DERIVED_FIELDS:
        return columns[name]
    # A domain recurs in many rows: derive once a distinct value.
    distinct = columns["domain"].unique()
    derived = [DERIVED_FIELDS[name](domain) for domain in distinct]
    return columns["domain"].replace_strict(distinct, derived, return_dtype=pl.String)


def _clean(values: pl.Series) -> pl.Series:
    spaced = values.str.replace_all(r"\s+", " ").str.strip_chars()
    return spaced.set(spaced == "", None)


def render(plan: TagPlan, values: pl.DataFrame, kept: pl.DataFrame | None) -> pl.Series:
    """The tag of each document, null where a field is missing (or rare) and the plan says ``plain``.

    ``values`` has one column a template field; ``kept`` the columns field and value, the values that are
    common enough, where the plan has ``min_docs``.
    """
    columns = {name: _common(values[name], name, kept) for name in template_fields(plan.template)}
    if plan.missing == "unknown":
        columns = {name: column.fill_null(plan.unknown) for name, column in columns.items()}
    parts: list[pl.Expr] = []
    for literal, name in template_parts(plan.template):
        if literal:
            parts.append(pl.lit(literal))
        if name is not None:
            parts.append(pl.col(name))
    return pl.DataFrame(columns).select(pl.concat_str(parts).alias("tag")).to_series()


def _common(values: pl.Series, name: str, kept: pl.DataFrame | None) -> pl.Series:
    if kept is None:
        return values
    common = kept.filter(pl.col("field") == name)["value"]
    return values.set(~values.is_in(common.implode()), None)


def tag_rows(
    plan: TagPlan,
    values: pl.DataFrame,
    kept: pl.DataFrame | None,
    ids: npt.NDArray[np.uint64],
    epoch: npt.NDArray[np.int64],
    seed: int,
) -> pl.Series:
    """The tags of rows in a tagged stage, "" for a plain row; ``ids`` and ``epoch`` are (n,).

    Under ``dropout`` a row loses its tag iff hash(seed, epoch, id) / 2^64 < rate: a fixed function of the
    document and the pass.
    """
    tags = render(plan, values, kept).fill_null("")
    if plan.schedule != "dropout":
        return tags
    dropped = np.zeros(len(ids), dtype=bool)
    for number in np.unique(epoch):
        here = epoch == number
        dropped[here] = dropped_out(ids[here], plan.dropout, seed, int(number))
    # Only a row that has a tag can lose it.
    return tags.set(pl.Series(dropped) & (tags != ""), plan.empty)


def dropped_out(ids: npt.NDArray[np.uint64], rate: float, seed: int, epoch: int) -> BoolArray:
    """Which documents (n,) lose their tag in a pass."""
    return keyed_hash(ids, _DROPOUT, seed, epoch) < np.uint64(min(int(rate * 2**64), 2**64 - 1))


# Tokens and loss masks


_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")


def paragraphs(text: str) -> list[str]:
    """The text cut behind each blank line; joined they give the text back."""
    starts = [0, *(match.end() for match in _PARAGRAPH_END.finditer(text) if match.end() < len(text))]
    return [text[start:stop] for start, stop in zip(starts, [*starts[1:], len(text)], strict=True)]


def tokenize_tagged(
    plan: TagPlan | None,
    tags: Sequence[str],
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    bos: int | None = None,
    eos: int | None = None,
    window: int | None = None,
) -> tuple[list[list[int]], list[list[bool]]]:
    """Token ids and loss mask of each row: BOS, tag and text tokenized apart, EOS.

    The mask is True where the token counts in the loss: everywhere but on a masked plan's tag and the BOS
    before it (MeCo: ``mask[: 1 + len(tag)] = 0``). The tag stands before the document, before each of its
    paragraphs, or before each window of ``window`` text tokens, as the plan's scope says. Special tokens of
    the plan are single tokens inside tags, and plain text inside texts. Raises ConfigError if the scope is
    window and no window length is given.
    """
    scope = plan.scope if plan else "document"
    if scope == "window" and window is None:
        raise ConfigError("the tag stands on every training window: say how many tokens a window has")
    tagger = tokenizer.with_special_tokens(plan.special_tokens) if plan else tokenizer
    known = sorted(set(tags))
    distinct = dict(zip(known, tagger.encode(known), strict=True))
    ids, masks = [], []
    for tag, pieces in zip(tags, _pieces(texts, tokenizer, scope, window), strict=True):
        tag_ids = distinct[tag] if tag else []
        counted = not (plan and plan.mask)
        row = [] if bos is None else [bos]
        mask = [counted or not tag_ids] * len(row)
        for piece in pieces:
            row += tag_ids + piece
            mask += [counted] * len(tag_ids) + [True] * len(piece)
        ids.append(row if eos is None else [*row, eos])
        masks.append(mask if eos is None else [*mask, True])
    return ids, masks


def _pieces(texts: Sequence[str], tokenizer: Tokenizer, scope: str, window: int | None) -> list[list[list[int]]]:
    """Token ids of each text, cut where the tag is repeated."""
    if scope == "paragraph":
        cut = [paragraphs(text) for text in texts]
        encoded = iter(tokenizer.encode([piece for pieces in cut for piece in pieces]))
        return [[next(encoded) for _ in pieces] for pieces in cut]
    whole = tokenizer.encode(texts)
    if scope == "window" and window is not None:
        return [[ids[i : i + window] for i in range(0, max(len(ids), 1), window)] for ids in whole]
    return [[ids] for ids in whole]
