"""Conditions over the fields of a row, written as in SQL's WHERE: parsed, checked, and made polars expressions.

Allowed are comparisons of fields with strings, numbers and true or false, IN, BETWEEN, LIKE, ILIKE, IS NULL, AND,
OR, NOT and parentheses. Nothing else is: no functions, no sub-queries, no aggregates. So a condition holds for a
row whatever the other rows are, and can read nothing but the row. As in SQL, a comparison with null is not true.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from mixwright.errors import ConfigError, first_line

if TYPE_CHECKING:
    from sqlglot import exp

LONGEST_CONDITION = 4096
"""Characters of a condition."""

_Literal = str | float | bool


class Condition(NamedTuple):
    """``expression`` is true, false or null of a row with the columns ``fields``, of any type."""

    fields: tuple[str, ...]
    expression: pl.Expr


@lru_cache(maxsize=256)
def parse_condition(text: str) -> Condition:
    """Parse a condition; raises ConfigError that says what is wrong and what one looks like.

    >>> parse_condition("source = 'wiki' AND n_tokens >= 13").fields
    ('source', 'n_tokens')
    """
    import sqlglot
    from sqlglot import exp

    if len(text) > LONGEST_CONDITION:
        raise ConfigError(f"the condition has {len(text)} characters: write at most {LONGEST_CONDITION}")
    try:
        tree = sqlglot.parse_one(text, dialect="postgres", into=exp.Condition)
        expression = _boolean(tree)
    except (sqlglot.errors.SqlglotError, RecursionError, re.error) as error:
        raise _refused(text, re.sub(r"\x1b\[\d*m", "", first_line(error))) from error
    except _NotAllowedError as error:
        raise _refused(text, str(error)) from error
    fields = tuple(dict.fromkeys(column.name for column in tree.find_all(exp.Column)))
    if not fields:
        raise _refused(text, "it names no field")
    return Condition(fields, expression)


class _NotAllowedError(Exception):
    """A part of a condition that is none of those allowed."""


def _refused(text: str, reason: str) -> ConfigError:
    return ConfigError(
        f"the condition {text[:200]!r} is not understood ({reason}): write comparisons of fields, joined by AND, "
        "OR and NOT, such as  source = 'wiki' AND n_tokens >= 13"
    )


def _boolean(tree: exp.Expr) -> pl.Expr:
    """The condition of a node that is true or false."""
    from sqlglot import exp

    match tree:
        case exp.Paren():
            return _boolean(tree.this)
        case exp.Not():
            return ~_boolean(tree.this)
        # Flat, because polars takes time that grows with the cube of the depth.
        case exp.And():
            return pl.all_horizontal([_boolean(each) for each in tree.flatten()])
        case exp.Or():
            return pl.any_horizontal([_boolean(each) for each in tree.flatten()])
        case exp.Is() if isinstance(tree.expression, exp.Null):
            found = pl.col(_field(tree.this))
            return found.is_not_null() if tree.args.get("negate") else found.is_null()
        case exp.In() if tree.expressions:
            values = [_literal(each) for each in tree.expressions]
            return pl.any_horizontal([_as_type_of(value, tree.this) == value for value in values])
        case exp.Between() if not tree.args.get("symmetric"):
            low, high = _literal(tree.args["low"]), _literal(tree.args["high"])
            return (_as_type_of(low, tree.this) >= low) & (_as_type_of(high, tree.this) <= high)
        case exp.Like() | exp.ILike():
            return _like(tree)
        case exp.EQ() | exp.NEQ() | exp.GT() | exp.GTE() | exp.LT() | exp.LTE():
            return _comparison(tree)
        case exp.Column():
            return pl.col(_field(tree)).cast(pl.String) == "true"
    raise _NotAllowedError(f"{tree.sql()!r} is not allowed")


def _comparison(tree: exp.Binary) -> pl.Expr:
    from sqlglot import exp

    operators = {
        exp.EQ: pl.Expr.eq,
        exp.NEQ: pl.Expr.ne,
        exp.GT: pl.Expr.gt,
        exp.GTE: pl.Expr.ge,
        exp.LT: pl.Expr.lt,
        exp.LTE: pl.Expr.le,
    }
    compare = operators[type(tree)]
    left, right = tree.this, tree.expression
    if isinstance(left, exp.Column):
        value = _literal(right)
        return compare(_as_type_of(value, left), pl.lit(value))
    value = _literal(left)
    return compare(pl.lit(value), _as_type_of(value, right))


def _like(tree: exp.Binary) -> pl.Expr:
    """LIKE as a regular expression: % is any text, _ any character."""
    from sqlglot import exp

    pattern = _literal(tree.expression)
    if not isinstance(pattern, str):
        raise _NotAllowedError("LIKE wants a string")
    parts = {"%": ".*", "_": "."}
    regex = "".join(parts.get(character, re.escape(character)) for character in pattern)
    flags = "(?si)" if isinstance(tree, exp.ILike) else "(?s)"
    found = pl.col(_field(tree.this)).cast(pl.String).str.contains(f"{flags}^{regex}$")
    # Versions of sqlglot differ in whether NOT LIKE is a LIKE that says so, or a NOT around one.
    return ~found if tree.args.get("negate") else found


def _as_type_of(value: _Literal, tree: exp.Expr) -> pl.Expr:
    """The field, as what it is compared with: a key of metadata holds numbers as text."""
    field = pl.col(_field(tree))
    if isinstance(value, bool):
        return field.cast(pl.String) == "true"
    if isinstance(value, str):
        return field.cast(pl.String)
    # To polars NaN, and so the text "nan", is greater than any number.
    return field.cast(pl.Float64, strict=False).fill_nan(None)


def _field(tree: exp.Expr) -> str:
    from sqlglot import exp

    if not isinstance(tree, exp.Column) or tree.table:
        raise _NotAllowedError(f"{tree.sql()!r} is no field; one with other characters stands in double quotes")
    return tree.name


def _literal(tree: exp.Expr) -> _Literal:
    from sqlglot import exp

    if isinstance(tree, exp.Neg):
        value = _literal(tree.this)
        if isinstance(value, float):
            return -value
    if isinstance(tree, exp.Boolean):
        return bool(tree.this)
    if isinstance(tree, exp.Literal):
        if tree.is_string:
            return str(tree.this)
        # Not every number of sqlglot's is one: 1e.
        with suppress(ValueError):
            return float(tree.this)
    raise _NotAllowedError(f"{tree.sql()!r} is neither a string in single quotes nor a number")
