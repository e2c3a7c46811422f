"""Conditions: what they keep, against SQLite, and what they refuse."""

from __future__ import annotations

import sqlite3
import time

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixwright.conditions import LONGEST_CONDITION, parse_condition
from mixwright.errors import ConfigError

ROWS = [
    ("wiki", "a.org", 5, "true"),
    ("wiki", None, 13, "false"),
    ("web", "b.org", 200, None),
    ("we'b", "B.org", -3, "true"),
    ("w%b", "b_org", 13, "12"),
]
FRAME = pl.DataFrame(ROWS, schema=["source", "domain", "n_tokens", "flag"], orient="row")


def kept(text: str) -> list[int]:
    condition = parse_condition(text)
    found = FRAME.select(kept=condition.expression)["kept"].fill_null(value=False)
    return [row for row, each in enumerate(found) if each]


def by_sqlite(text: str) -> list[int]:
    with sqlite3.connect(":memory:") as database:
        database.execute("PRAGMA case_sensitive_like = ON")
        database.execute("CREATE TABLE t (source TEXT, domain TEXT, n_tokens INTEGER, flag TEXT)")
        database.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", ROWS)
        found = [row - 1 for (row,) in database.execute(f"SELECT rowid FROM t WHERE {text} ORDER BY rowid")]
    database.close()
    return found


COMPARISONS = st.sampled_from(
    [
        "source = 'wiki'",
        "source <> 'wiki'",
        "source = 'we''b'",
        "domain IS NULL",
        "domain IS NOT NULL",
        "domain = 'b.org'",
        "domain LIKE '%.org'",
        "domain LIKE 'b_org'",
        "domain NOT LIKE '%.org'",
        "source NOT IN ('wiki', 'web')",
        "source IN ('wiki')",
        "n_tokens >= 13",
        "13 > n_tokens",
        "n_tokens = -3",
        "n_tokens BETWEEN 5 AND 13",
        "n_tokens NOT BETWEEN 5 AND 13",
    ]
)


@given(
    st.recursive(
        COMPARISONS,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(lambda each: f"({' '.join(each)})"),
            inner.map(lambda each: f"NOT ({each})"),
        ),
        max_leaves=6,
    )
)
def test_a_condition_keeps_what_sqlite_keeps(text: str) -> None:
    assert kept(text) == by_sqlite(text)


def test_flags_and_numbers_that_are_text() -> None:
    assert kept("flag") == [0, 3]
    assert kept("flag = true") == [0, 3]
    assert kept("flag = 12") == [4]
    assert kept("domain ILIKE 'b.%'") == [2, 3]
    assert kept("domain NOT ILIKE 'b.%'") == [0, 4]
    assert kept("NOT domain NOT ILIKE 'b.%'") == [2, 3]


def test_what_is_no_number_is_neither_less_nor_greater() -> None:
    frame = pl.DataFrame({"year": ["1999", "nan", "NaN", "x", None], "jsd": [0.5, float("nan"), 2.0, None, 0.0]})

    def found(text: str) -> list[bool | None]:
        return frame.select(kept=parse_condition(text).expression)["kept"].to_list()

    assert found("year > 5") == [True, None, None, None, None]
    assert found("NOT jsd > 1") == [True, None, False, None, True]


def test_a_long_condition_is_as_fast_as_a_short_one() -> None:
    began = time.process_time()
    assert kept(" OR ".join(["flag"] * (LONGEST_CONDITION // 8))) == [0, 3]
    assert kept(" AND ".join(["flag"] * (LONGEST_CONDITION // 9))) == [0, 3]
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "source =",
        "1 = 1",
        "n_tokens + 1 = 2",
        "lower(source) = 'wiki'",
        "source IN (SELECT 1)",
        "source IN (SELECT * FROM read_csv('/etc/passwd'))",
        "EXISTS (SELECT 1)",
        "sum(n_tokens) > 2",
        "source = 'a'; DROP TABLE t",
        "t.source = 'a'",
        "source = domain",
        "source LIKE 3",
        "n_tokens IN ()",
        "n_tokens IN source",
        "n_tokens > 1e",
        "n_tokens BETWEEN SYMMETRIC 13 AND 5",
        "(" * 2000 + "source = 'a'" + ")" * 2000,
        "source = '" + "a" * LONGEST_CONDITION + "'",
    ],
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"the condition .*: write "):
        parse_condition(text)
