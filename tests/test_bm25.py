"""BM25: its terms against examples written by hand, its scores against the formula in plain Python."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixwright.errors import ConfigError, DataError
from mixwright.indexes import bm25 as bm25_module
from mixwright.indexes import bm25_building
from mixwright.indexes.bm25 import (
    Bm25Shard,
    Bm25Statistics,
    bm25_query,
    distinct_terms,
    sum_statistics,
    write_bm25,
)
from mixwright.indexes.bm25_terms import STOP_WORDS, hash_terms, terms
from mixwright.indexes.hits import merge_hits
from mixwright.indexes.protocols import Hits

FILES = ["frequencies.npy", "lengths.npy", "offsets.npy", "rows.npy", "terms.npy"]
K1, B = 1.2, 0.75

# Few words, so that frequencies above 1, equal rows and equal scores are common.
WORDS = st.sampled_from(["cats", "cat", "dog", "fish", "the", "猫", "黒猫", "7"])
TEXTS = st.lists(st.lists(WORDS, max_size=6).map(" ".join), min_size=1, max_size=30)
QUERIES = st.lists(st.lists(WORDS | st.just("unknown"), max_size=4).map(" ".join), min_size=1, max_size=4)


def build(folder: Path, texts: Sequence[str]) -> Bm25Shard:
    write_bm25([texts], folder)
    return Bm25Shard.open(folder)


def search(shards: Sequence[Bm25Shard], queries: Sequence[str], k: int, allowed: Any = None) -> Hits:
    """The hits of all shards as of one, rows numbered through."""
    asked = [bm25_query(query) for query in queries]
    statistics = sum_statistics([shard.statistics(distinct_terms(asked)) for shard in shards])
    parts = []
    start = 0
    for shard in shards:
        stop = start + shard.n_rows
        found = shard.search(asked, statistics, k, None if allowed is None else allowed[start:stop])
        parts.append(Hits(np.where(found.ids < 0, -1, found.ids + start), found.scores))
        start = stop
    return merge_hits(parts, k)


def oracle(texts: Sequence[str], query: str) -> list[float]:
    """Scores of all texts by the formula, with sums in the order in which the query has its terms."""
    documents = [Counter(terms(text)) for text in texts]
    average = sum(document.total() for document in documents) / len(texts)
    scores = []
    for document in documents:
        score = 0.0
        for term, count in Counter(terms(query)).items():
            n_with = sum(term in other for other in documents)
            idf = math.log(1 + (len(texts) - n_with + 0.5) / (n_with + 0.5))
            if term in document:
                share = 1 - B + B * document.total() / average
                score += count * idf * document[term] / (document[term] + K1 * share)
        scores.append(score)
    return scores


def assert_best(hits: Hits, line: int, scores: Sequence[float], k: int) -> None:
    """The line has the rows of positive score, the k best, in their order; equal ones by rising row."""
    ids, found = hits.ids[line], hits.scores[line]
    n_hits = min(k, sum(score > 0 for score in scores))
    assert (ids[:n_hits] >= 0).all()
    assert (ids[n_hits:] == -1).all()
    assert np.isneginf(found[n_hits:]).all()
    ids, found = ids[:n_hits], found[:n_hits]
    np.testing.assert_allclose(found, [scores[row] for row in ids], rtol=1e-6)
    np.testing.assert_allclose(found, sorted(scores, reverse=True)[:n_hits], rtol=1e-6)
    keys = list(zip((-found).tolist(), ids.tolist(), strict=True))
    assert keys == sorted(set(keys))
    # Equal scores at the edge: a row that is left out has a higher number than all that are in with its score.
    for row, score in enumerate(scores):
        if n_hits and row not in ids and score > 0 and np.float32(score) == found[-1]:
            assert row > max(each for each, value in zip(ids, found, strict=True) if value == found[-1])


# Terms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t.,;!", []),
        ("The role of mitochondria", ["role", "mitochondria"]),
        ("to be THE and OF", []),
        ("connected connecting connection", ["connect"] * 3),
        ("The cats' whiskers don't", ["cat", "whisker", "don"]),
        ("snake_case re-use", ["snake", "case", "re", "use"]),
        ("308 points, 3.14 or 1,000", ["308", "point", "3", "14", "1", "000"]),
        ("6½ cups™ 10⁶", ["6", "1", "2", "cup", "tm", "106"]),
        ("Straße STRASSE", ["strass", "strass"]),
        ("ＡＢＣ ﬁne №5", ["abc", "fine", "no5"]),
        ("e\u0301t\u00e9 \u00e9te\u0301", ["\u00e9t\u00e9", "\u00e9t\u00e9"]),
        ("co\u00adoperate \ufeffcats", ["cooper", "cat"]),
        ("\u00ad \u200d", []),
        ("Москва москва", ["москва", "москва"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("猫", ["猫"]),
        ("黒猫が。", ["黒猫", "猫が", "黒", "猫"]),
        ("葛\U000e0100城", ["葛城", "葛", "城"]),
        ("GPT4模型", ["gpt4", "模型", "模", "型"]),
        ("ｶﾞｽ", ["ガス"]),
        ("한국어를 배", ["한국", "국어", "어를", "배"]),
        ("ไทย", ["ไท", "ทย"]),
        ("\ud800 cat", ["cat"]),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


@given(st.text())
def test_terms_end_at_white_space(text: str) -> None:
    assert terms(text) == list(chain.from_iterable(terms(chunk) for chunk in text.split()))


@given(st.text(st.characters(codec="ascii")))
def test_terms_do_not_change_with_case_or_width(text: str) -> None:
    wide = text.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)})
    assert terms(text) == terms(text.upper()) == terms(wide)


def test_stop_words_are_words() -> None:
    assert all(terms(word + " x") == ["x"] for word in STOP_WORDS)


def test_hashes_are_blake2b() -> None:
    """As ``b2sum -l 64`` prints them, least byte first."""
    expected = [int.from_bytes(bytes.fromhex(each), "little") for each in ("3327dd2c7b9d982f", "3825438160567439")]
    assert hash_terms(["cat", "猫"]).tolist() == expected
    assert hash_terms([]).tolist() == []


# Building


def assert_files(folder: Path, texts: Sequence[str]) -> None:
    """The files hold the counts of the texts' terms."""
    assert sorted(path.name for path in folder.iterdir()) == FILES
    arrays = {name: np.load(folder / name) for name in FILES}
    documents = [Counter(terms(text)) for text in texts]
    postings = sorted(
        (int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "little"), row, count)
        for row, document in enumerate(documents)
        for term, count in document.items()
    )
    counts = Counter(term for term, _, _ in postings)
    assert arrays["terms.npy"].tolist() == sorted(counts)
    assert np.diff(arrays["offsets.npy"]).tolist() == [counts[term] for term in sorted(counts)]
    assert arrays["offsets.npy"][0] == 0
    assert arrays["rows.npy"].tolist() == [row for _, row, _ in postings]
    assert arrays["frequencies.npy"].tolist() == [count for _, _, count in postings]
    assert arrays["lengths.npy"].tolist() == [document.total() for document in documents]


@settings(max_examples=30, deadline=None)
@given(texts=TEXTS, limits=st.tuples(*[st.integers(1, 20)] * 4))
def test_files_hold_the_counts_however_runs_are_cut(texts: list[str], limits: tuple[int, int, int, int]) -> None:
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as name:
        names = ("RUN_TERMS", "PART_POSTINGS", "_MOST_ENTRIES", "_LONGEST_REMEMBERED")
        for constant, limit in zip(names, limits, strict=True):
            patch.setattr(bm25_building, constant, limit)
        write_bm25([texts[:3], [], texts[3:]], Path(name))
        assert_files(Path(name), texts)


def test_the_same_texts_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"passage {row} about topic {row % 7} and " + "word " * (row % 5) for row in range(300)]
    write_bm25([texts], tmp_path / "a")
    monkeypatch.setattr(bm25_building, "RUN_TERMS", 100)
    monkeypatch.setattr(bm25_building, "PART_POSTINGS", 64)
    write_bm25(([text] for text in texts), tmp_path / "b")
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        np.save(tmp_path / file, np.load(tmp_path / "a" / file))
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / file).read_bytes()


@pytest.mark.parametrize(
    ("repeats", "kind"), [(255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.uint32)]
)
def test_no_frequency_is_capped(tmp_path: Path, repeats: int, kind: type) -> None:
    texts = ["cat", "cat " * repeats, "dog"]
    shard = build(tmp_path, texts)
    assert_files(tmp_path, texts)
    assert np.load(tmp_path / "frequencies.npy").dtype == kind
    assert_best(search([shard], ["cat"], 3), 0, oracle(texts, "cat"), 3)


def test_memory_does_not_grow_with_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 words, all different and half of them long."""
    monkeypatch.setattr(bm25_building, "RUN_TERMS", 1000)
    monkeypatch.setattr(bm25_building, "PART_POSTINGS", 1000)
    monkeypatch.setattr(bm25_building, "_MOST_ENTRIES", 1000)
    batches = [[f"{batch}x{row} {batch}y{row}{'z' * 100}" for row in range(100)] for batch in range(100)]
    tracemalloc.start()
    try:
        write_bm25(batches, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert Bm25Shard.open(tmp_path).total_length == 20_000
    assert peak < 2_000_000


def test_more_rows_than_can_be_numbered_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bm25_building, "MOST_ROWS", 3)
    write_bm25([["cat"] * 3], tmp_path / "most")
    with pytest.raises(DataError, match="more than 3 texts: build more shards"):
        write_bm25([["cat"] * 4], tmp_path / "more")


# Scores


def test_scores_of_two_texts_by_hand(tmp_path: Path) -> None:
    """N = 2, lengths 1 and 3, average 2; "cat" in one row, once."""
    shard = build(tmp_path, ["cat", "dog dog fish"])
    hits = search([shard], ["cat", "dog"], 2)
    assert hits.ids.tolist() == [[0, -1], [1, -1]]
    np.testing.assert_allclose(hits.scores[0, 0], math.log(2) / (1 + 1.2 * (0.25 + 0.75 / 2)), rtol=1e-7)
    np.testing.assert_allclose(hits.scores[1, 0], math.log(2) * 2 / (2 + 1.2 * (0.25 + 0.75 * 1.5)), rtol=1e-7)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, queries=QUERIES, k=st.integers(1, 35), window=st.integers(1, 40), groups=st.integers(1, 8))
def test_scores_are_the_formula(texts: list[str], queries: list[str], k: int, window: int, groups: int) -> None:
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as name:
        patch.setattr(bm25_module, "_WINDOW", window)
        patch.setattr(bm25_module, "_GROUPS", groups)
        hits = search([build(Path(name), texts)], queries, k)
        assert hits.ids.shape == hits.scores.shape == (len(queries), k)
        assert (hits.ids.dtype, hits.scores.dtype) == (np.int64, np.float32)
        for line, query in enumerate(queries):
            assert_best(hits, line, oracle(texts, query), k)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, queries=QUERIES, k=st.integers(1, 35), data=st.data())
def test_any_shards_answer_exactly_as_one(texts: list[str], queries: list[str], k: int, data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=4)))
    allowed = data.draw(
        st.none() | st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)).map(np.array)
    )
    with TemporaryDirectory() as name:
        edges = [0, *cuts, len(texts)]
        shards = [
            build(Path(name) / str(number), texts[start:stop])
            for number, (start, stop) in enumerate(pairwise(edges))
        ]
        expected = search([build(Path(name) / "one", texts)], queries, k, allowed)
        found = search(shards, queries, k, allowed)
    assert (found.ids == expected.ids).all()
    assert (found.scores == expected.scores).all()


@settings(max_examples=40, deadline=None)
@given(texts=TEXTS, queries=QUERIES, k=st.integers(1, 35), data=st.data())
def test_rows_that_are_not_allowed_leave_the_other_scores(
    texts: list[str], queries: list[str], k: int, data: Any
) -> None:
    """As an index of the allowed rows alone answers when it is given the statistics of all rows."""
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))))
    asked = [bm25_query(query) for query in queries]
    with TemporaryDirectory() as name:
        shard = build(Path(name) / "all", texts)
        fewer = build(Path(name) / "allowed", [text for text, kept in zip(texts, allowed, strict=True) if kept])
        statistics = shard.statistics(distinct_terms(asked))
        found, expected = shard.search(asked, statistics, k, allowed), fewer.search(asked, statistics, k)
    rows = np.append(np.flatnonzero(allowed), -1)
    assert (found.ids == rows[expected.ids]).all()
    assert (found.scores == expected.scores).all()


def test_equal_scores_at_the_edge_go_to_the_lower_rows(tmp_path: Path) -> None:
    """Over several windows, with the better rows behind the equal ones."""
    texts = ["cat dog"] * 5000 + ["fish fish"] * 300 + ["cat cat"] * 2 + ["cat dog"] * 50
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bm25_module, "_WINDOW", 1000)
        patch.setattr(bm25_module, "_GROUPS", 100)
        hits = search([build(tmp_path, texts)], ["cat"], 6)
        allowed = np.arange(len(texts)) % 2 == 1
        odd = search([Bm25Shard.open(tmp_path)], ["cat"], 4, allowed)
    assert hits.ids.tolist() == [[5300, 5301, 0, 1, 2, 3]]
    assert odd.ids.tolist() == [[5301, 1, 3, 5]]


def test_a_larger_store_by_its_defaults(tmp_path: Path) -> None:
    """More rows than a window, and the bound that spares most of them."""
    rng = np.random.default_rng(0)
    n = bm25_module._WINDOW + 50_000
    words = np.array(["cat", "dog", "fish", "bird", "horse", "cow"])[rng.integers(0, 6, (n, 3))]
    texts = [" ".join(line) for line in words]
    hits = search([build(tmp_path, texts)], ["cat cow", "bird"], 3000)
    n_with = (words[:, None] == np.array(["cat", "cow", "bird"])[:, None]).sum(axis=2)
    idf = np.log(1 + (n - (n_with > 0).sum(axis=0) + 0.5) / ((n_with > 0).sum(axis=0) + 0.5))
    scores = n_with / (n_with + 1.2) * idf
    for line, expected in enumerate((scores[:, 0] + scores[:, 1], scores[:, 2])):
        best = np.lexsort((np.arange(n), -expected.astype(np.float32)))[:3000]
        np.testing.assert_allclose(hits.scores[line], expected[best], rtol=1e-6)
        assert (hits.ids[line] == best).all()


def test_chinese_and_japanese_are_found_by_words_within_a_sentence(tmp_path: Path) -> None:
    shard = build(tmp_path, ["我们在北京大学学习", "上海的天气很好", "黒猫が好きです。", "cats and dogs"])
    hits = search([shard], ["北京", "天气", "猫", "dog"], 1)
    assert hits.ids.ravel().tolist() == [0, 1, 2, 3]


# Edges


@pytest.mark.parametrize("texts", [[], ["", " ", "the"]])
def test_without_any_term_nothing_is_found(tmp_path: Path, texts: list[str]) -> None:
    shard = build(tmp_path, texts)
    assert (shard.n_rows, shard.total_length) == (len(texts), 0)
    assert search([shard], ["cat", ""], 2).ids.tolist() == [[-1, -1]] * 2


@pytest.mark.parametrize("query", ["", "the", "unknown", "?"])
def test_queries_without_a_known_term_find_nothing(tmp_path: Path, query: str) -> None:
    hits = search([build(tmp_path, ["cat", "dog"])], [query], 3)
    assert hits.ids.tolist() == [[-1] * 3]
    assert np.isneginf(hits.scores).all()


def test_no_queries(tmp_path: Path) -> None:
    shard = build(tmp_path, ["cat"])
    assert shard.search([], shard.statistics(distinct_terms([])), 2).ids.shape == (0, 2)


def test_statistics_add_up(tmp_path: Path) -> None:
    texts = ["cat dog", "cat", "", "fish cat cat"]
    wanted = np.sort(hash_terms(["cat", "dog", "unknown"]))
    one = build(tmp_path / "one", texts).statistics(wanted)
    two = sum_statistics([build(tmp_path / str(i), texts[i::2]).statistics(wanted) for i in range(2)])
    counts = dict(zip(hash_terms(["cat", "dog", "unknown"]).tolist(), [3, 1, 0], strict=True))
    for statistics in (one, two):
        assert dict(zip(statistics.terms.tolist(), statistics.frequencies.tolist(), strict=True)) == counts
        assert (statistics.n_rows, statistics.total_length) == (4, 6)


def test_statistics_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    shard = build(tmp_path, ["cat", "dog"])
    of_dog = shard.statistics(bm25_query("dog").terms)
    with pytest.raises(ConfigError, match="lack a term"):
        shard.search([bm25_query("cat")], of_dog, 1)
    with pytest.raises(ConfigError, match="different terms"):
        sum_statistics([of_dog, shard.statistics(bm25_query("cat").terms)])
    with pytest.raises(ConfigError, match="at least one shard"):
        sum_statistics([])


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    shard = build(tmp_path, ["cat", "dog"])
    statistics = Bm25Statistics(np.empty(0, np.uint64), np.empty(0, np.int64), 2, 2)
    with pytest.raises(ConfigError, match="at least 1"):
        shard.search([], statistics, 0)
    for allowed in (np.ones(3, np.bool_), np.array([0, 1])):
        with pytest.raises(DataError, match="one bool for each of 2 rows"):
            shard.search([], statistics, 1, allowed)


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_missing_or_damaged_is_named(tmp_path: Path, file: str) -> None:
    build(tmp_path, ["cat dog", "dog", "fish"])
    path = tmp_path / file
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", b"\0" * len(whole)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{file} is missing or damaged: build it again"):
            Bm25Shard.open(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=rf"{file} is missing"):
        Bm25Shard.open(tmp_path)
    np.save(path, np.zeros((2, 2), np.float32))
    with pytest.raises(DataError, match=rf"{file} is float32 \(2, 2\), which does not fit"):
        Bm25Shard.open(tmp_path)


@pytest.mark.parametrize("file", ["frequencies.npy", "offsets.npy", "rows.npy"])
def test_files_of_two_indexes_are_not_mixed(tmp_path: Path, file: str) -> None:
    build(tmp_path / "a", ["cat dog", "dog", "fish"])
    build(tmp_path / "b", ["cat", "dog"])
    (tmp_path / "a" / file).write_bytes((tmp_path / "b" / file).read_bytes())
    with pytest.raises(DataError, match=rf"{file} is .* does not fit the files beside it: build it again"):
        Bm25Shard.open(tmp_path / "a")


def test_threads_share_a_shard(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shard = build(tmp_path, [f"w{a} w{b} w{c}" for a, b, c in rng.zipf(1.5, (3000, 3)) % 50])
    queries = [f"w{number} w{number + 1}" for number in range(40)]
    expected = [search([shard], [query], 5) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: search([shard], [query], 5), queries * 5))
    for number, hits in enumerate(found):
        assert (hits.ids == expected[number % 40].ids).all()
        assert (hits.scores == expected[number % 40].scores).all()
