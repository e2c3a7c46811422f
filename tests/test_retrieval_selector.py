"""The retrieval selector: against a choice from the whole matrix of cosines, and from end to end."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from support import document_table
from typer.testing import CliRunner

from mixwright.cli import app
from mixwright.errors import ConfigError, DataError, ShortfallError
from mixwright.hashing import keyed_hash
from mixwright.indexes.vectors import ArrayVectors
from mixwright.schemas.manifests import MixtureManifest
from mixwright.schemas.mixtures import Budget
from mixwright.selectors import retrieval_turns
from mixwright.selectors.mixture import Mixture
from mixwright.selectors.pool import Pool, Source
from mixwright.selectors.retrieval import Retrieval
from mixwright.service.pages.mixture_page import page_in_one_file, served_page
from mixwright.store import Store

DIM, COPIES = 8, 30


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def made_table(name: str, n: int, rng: np.random.Generator) -> pa.Table:
    return document_table([f"{name} {i}" for i in range(n)], source=name, n_tokens=rng.integers(1, 60, n).tolist())


def made_pool(seed: int = 0, n_targets: int = 7) -> Pool:
    """Two sources of random directions, with copies and near copies of vectors, around some of the targets."""
    rng = np.random.default_rng(seed)
    tables = {"a": made_table("a", 150, rng), "b": made_table("b", 90, rng)}
    targets = unit(rng.standard_normal((n_targets, DIM)))
    vectors = {name: unit(rng.standard_normal((each.num_rows, DIM))) for name, each in tables.items()}
    vectors["a"][:COPIES] = vectors["b"][:COPIES]
    vectors["a"][COPIES : 2 * COPIES] = unit(
        vectors["b"][COPIES : 2 * COPIES] + 0.05 * rng.standard_normal((COPIES, DIM))
    )
    shown = {**tables, "target": made_table("target", n_targets, rng)}
    held = {name: ArrayVectors(each) for name, each in {**vectors, "target": targets}.items()}
    return Pool.from_tables(shown, vectors=held, examples="target")


def key(text: str) -> int:
    """The number that ties are broken by: the first 64 bits of the id."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)


def all_vectors(source: Source) -> np.ndarray:
    assert source.vectors is not None
    return source.vectors.rows(np.arange(len(source.vectors))).astype(np.float64)


class Oracle:
    """The choice as it is defined, from all cosines at once."""

    def __init__(self, pool: Pool, threshold: float | None = None, clusters: list[Any] | None = None) -> None:
        assert pool.examples is not None
        texts = [text for source in pool.sources for text in source.fields(["text"])["text"]]
        self.keys = [key(text) for text in texts]
        self.tokens = [int(n) for source in pool.sources for n in source.n_tokens]
        vectors = [
            source.vectors.rows(np.arange(len(source.vectors))) for source in pool.sources if source.vectors
        ]
        self.vectors = np.concatenate(vectors).astype(np.float64)
        self.targets = pool.examples.vectors.rows(np.arange(len(pool.examples.vectors))).astype(np.float64)
        self.target_keys = [key(text) for text in pool.examples.fields(["text"])["text"]]
        self.cosines = np.round(self.vectors @ self.targets.T, 7)
        self.threshold, self.clusters = threshold, clusters

    def order(self, seed: int) -> list[int]:
        """Whose turn comes when: targets by their hash under the seed."""
        return np.argsort(keyed_hash(np.asarray(self.target_keys, dtype=np.uint64), seed)).tolist()

    def repeating(self, row: int) -> np.ndarray:
        """Which rows (n,) repeat ``row``."""
        if self.threshold is None:
            return np.zeros(len(self.keys), dtype=np.bool_)
        repeating = self.vectors @ self.vectors[row] > self.threshold - 1e-6
        if self.clusters is not None and self.clusters[row] is not None:
            repeating |= np.asarray([name == self.clusters[row] for name in self.clusters])
        return repeating

    def choose(self, scores: np.ndarray, budget: Budget) -> list[int]:
        """By the columns of ``scores`` (n, t) in turns; rows of all sources, one after the other."""
        left, chosen = budget.tokens or budget.documents or 0, list[int]()
        amounts = np.asarray(self.tokens if budget.tokens else [1] * len(self.tokens))
        rest, repeated = np.ones(len(self.keys), dtype=np.bool_), np.zeros(len(self.keys), dtype=np.bool_)
        while left:
            before = len(chosen)
            for column in scores.T:
                fits = np.flatnonzero(rest & ~repeated & (amounts <= left)).tolist()
                if fits:
                    best = min(fits, key=lambda row: (-column[row], self.keys[row]))
                    chosen.append(best)
                    rest[best] = False
                    repeated |= self.repeating(best)
                    left -= int(amounts[best])
            if len(chosen) == before:
                if self.threshold is None or (rest & ~repeated).any():
                    break
                # All that is left repeats something: the repeats are taken now.
                self.threshold, repeated = None, np.zeros(len(self.keys), dtype=np.bool_)
        return chosen


def ranking(mixture: Mixture, pool: Pool) -> list[int]:
    """The chosen rows, counted through all sources, in the order in which they were taken."""
    lengths = [len(source.ids) for source in pool.sources]
    starts = dict(zip([source.name for source in pool.sources], np.cumsum([0, *lengths]), strict=False))
    table = mixture.tables["ranking"]
    return [int(starts[name]) + row for name, row in zip(table["source"], table["row"], strict=True)]


BUDGETS = [
    Budget(documents=1),
    Budget(documents=45),
    Budget(documents=225),
    Budget(tokens=900),
    Budget(tokens=6500),
]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("dedup", [True, False])
@pytest.mark.parametrize("small", [True, False], ids=["short lists", "long lists"])
def test_turns_are_those_of_the_whole_matrix(
    budget: Budget, dedup: bool, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        # Pieces of 3 documents and lists of 4, which run out and are made again all the time.
        monkeypatch.setattr(retrieval_turns, "CELLS", 21)
        monkeypatch.setattr(retrieval_turns, "LIST_ENTRIES", 28)
        monkeypatch.setattr(retrieval_turns, "_LOOK_AT", 3)
        monkeypatch.setattr(retrieval_turns, "_WINDOW", 2)
    pool = made_pool()
    mixture = Retrieval(dedup=dedup, seed=3).select(pool, budget)
    oracle = Oracle(pool, 0.95 if dedup else None)
    assert ranking(mixture, pool) == oracle.choose(oracle.cosines[:, oracle.order(3)], budget)


@pytest.mark.parametrize(("rule", "neighbours"), [("max", None), ("mean", None), ("mean", 3)])
@pytest.mark.parametrize("budget", [Budget(documents=80), Budget(tokens=900)], ids=str)
def test_other_rules_take_the_documents_by_one_score(rule: Any, neighbours: int | None, budget: Budget) -> None:
    pool = made_pool(seed=1)
    mixture = Retrieval(rule=rule, neighbours=neighbours).select(pool, budget)
    oracle = Oracle(pool, 0.95)
    count = {"max": 1, "mean": neighbours or 7}[rule]
    scores = np.sort(oracle.cosines, axis=1)[:, -count:].mean(axis=1)
    table = mixture.tables["ranking"]
    np.testing.assert_allclose(table["score"], scores[ranking(mixture, pool)], atol=1e-6)
    assert ranking(mixture, pool) == oracle.choose(np.round(scores, 7)[:, None], budget)
    assert table["turn_of"].null_count() == table.height


def test_a_duplicate_cluster_is_taken_from_once() -> None:
    pool = made_pool()
    rng = np.random.default_rng(4)
    named = [
        [None if rng.random() < 0.2 else f"c{rng.integers(60)}" for _ in source.ids] for source in pool.sources
    ]
    columns = [{"duplicate_cluster": pl.LazyFrame({"duplicate_cluster": each})} for each in named]
    sources = tuple(replace(source, columns=each) for source, each in zip(pool.sources, columns, strict=True))
    clustered = replace(pool, sources=sources)
    for budget in (Budget(documents=50), Budget(documents=200), Budget(tokens=900)):
        mixture = Retrieval(seed=1).select(clustered, budget)
        oracle = Oracle(pool, 0.95, [name for each in named for name in each])
        assert ranking(mixture, pool) == oracle.choose(oracle.cosines[:, oracle.order(1)], budget)
    # A key of the metadata does as well as an attribute, and a source may be without.
    metadata = [json.dumps({"duplicate_cluster": name}) for name in named[0]]
    tables = [each.frame.collect().to_arrow() for each in pool.sources]
    assert pool.examples is not None
    of_metadata = Pool.from_tables(
        {
            "a": tables[0].set_column(6, "metadata", pa.array(metadata, pa.large_string())),
            "b": tables[1],
            "target": pool.examples.frame.collect().to_arrow(),
        },
        vectors={each.name: each.vectors for each in (*pool.sources, pool.examples) if each.vectors},
        examples="target",
    )
    mixture = Retrieval().select(of_metadata, Budget(documents=50))
    oracle = Oracle(pool, 0.95, [*named[0], *[None] * 90])
    assert ranking(mixture, pool) == oracle.choose(oracle.cosines[:, oracle.order(0)], Budget(documents=50))
    sizes = Counter(name for name in named[0] if name is not None)
    assert mixture.report["settings"]["in_clusters"] == sum(size for size in sizes.values() if size > 1)


def test_repeats_come_last_and_are_counted() -> None:
    pool = made_pool()
    mixture = Retrieval().select(pool, Budget(documents=230))
    documents = mixture.report["documents"]
    assert documents["distinct"] == 240
    # 30 copies and 30 near copies were planted, and each pair loses one.
    assert documents["left_out"] + documents["relaxed"] == 2 * COPIES
    assert documents["relaxed"] == 230 - 180
    assert any("50 documents that dedup had left out were taken" in each for each in mixture.warnings)
    fewer = Retrieval().select(pool, Budget(documents=120)).report["documents"]
    assert fewer["relaxed"] == 0
    assert Retrieval(dedup=False).select(pool, Budget(documents=230)).report["documents"]["left_out"] == 0


def test_what_is_in_the_target_is_never_taken() -> None:
    pool = made_pool()
    assert pool.examples is not None
    rows = [3, 40, 77]
    table = pool.sources[0].frame.collect().to_arrow()
    vectors = pool.sources[0].vectors
    assert vectors is not None
    wanted = Pool.from_tables(
        {"a": table, "target": table.take(rows)},
        vectors={"a": vectors, "target": ArrayVectors(vectors.rows(np.asarray(rows)))},
        examples="target",
    )
    mixture = Retrieval(dedup=False).select(wanted, Budget(documents=147))
    assert not {*rows} & {*mixture.tables["ranking"]["row"]}
    assert mixture.report["documents"]["in_target"] == 3
    assert "3 documents of the pool are in the target themselves and were left out" in mixture.warnings
    with pytest.raises(ShortfallError, match="more than the eligible 147: ask for at most 147 documents"):
        Retrieval().select(wanted, Budget(documents=148))
    only = Pool.from_tables(
        {"a": table.take(rows), "target": table},
        vectors={"a": ArrayVectors(vectors.rows(np.asarray(rows))), "target": vectors},
        examples="target",
    )
    with pytest.raises(DataError, match="every document of the pool is in the target target@1: add other sources"):
        Retrieval().select(only, Budget(documents=1))


def test_turns_share_a_budget_that_the_largest_cosine_gives_to_one() -> None:
    """One target has a hundred close documents, the other ten that are farther: a budget of twenty."""
    rng = np.random.default_rng(0)
    near = np.eye(DIM)[0] + 0.05 * rng.standard_normal((100, DIM))
    far = np.eye(DIM)[1] + 0.3 * rng.standard_normal((10, DIM))
    table = made_table("a", 110, rng)
    pool = Pool.from_tables(
        {"a": table, "target": made_table("target", 2, rng)},
        vectors={
            "a": ArrayVectors(unit(np.concatenate([near, far]))),
            "target": ArrayVectors(np.eye(DIM)[:2].astype(np.float32)),
        },
        examples="target",
    )
    far_rows = set(range(100, 110))
    in_turns = Retrieval(dedup=False).select(pool, Budget(documents=20)).tables["ranking"]
    by_max = Retrieval(rule="max", dedup=False).select(pool, Budget(documents=20)).tables["ranking"]
    assert far_rows <= set(in_turns["row"])
    assert not far_rows & set(by_max["row"])
    assert in_turns["turn_of"].to_list()[:4] in ([0, 1, 0, 1], [1, 0, 1, 0])


def test_another_order_of_the_target_changes_nothing() -> None:
    pool = made_pool()
    assert pool.examples is not None
    assert pool.examples.vectors is not None
    rows = np.random.default_rng(2).permutation(7)
    table = pool.examples.frame.collect().to_arrow().take(rows)
    vectors = {source.name: source.vectors for source in pool.sources if source.vectors}
    shuffled = Pool.from_tables(
        {**{source.name: source.frame.collect().to_arrow() for source in pool.sources}, "target": table},
        vectors={**vectors, "target": ArrayVectors(pool.examples.vectors.rows(rows))},
        examples="target",
    )
    for rule in ("round_robin", "max", "mean"):
        first, second = (Retrieval(rule=rule).select(each, Budget(tokens=900)) for each in (pool, shuffled))
        assert ranking(first, pool) == ranking(second, pool)
        one, other = first.tables["ranking"], second.tables["ranking"]
        assert [rows.tolist().index(row) for row in one["nearest_target"]] == other["nearest_target"].to_list()


def test_the_report_counts_what_loops_count() -> None:
    pool = made_pool()
    mixture = Retrieval().select(pool, Budget(tokens=1500))
    report, oracle, chosen = mixture.report, Oracle(pool), ranking(mixture, pool)
    table, cosines = mixture.tables["ranking"], oracle.cosines[ranking(mixture, pool)]
    assert table["nearest_target"].to_list() == cosines.argmax(axis=1).tolist()
    np.testing.assert_allclose(table["similarity"], cosines.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(
        table["score"], [line[turn] for line, turn in zip(cosines, table["turn_of"], strict=True)], atol=1e-6
    )
    best = np.maximum(cosines.max(axis=0), 0)
    before = 0.0
    for n, gain in enumerate(table["gain"], start=1):
        after = float(np.maximum(cosines[:n].max(axis=0), 0).mean())
        assert gain == pytest.approx(after - before, abs=1e-6)
        before = after
    assert report["gains"][-1] == {"documents": len(chosen), "mean_best": pytest.approx(best.mean(), abs=1e-6)}
    assert [each["documents"] for each in report["gains"]][:3] == [1, 2, 4]
    for each in report["served"]:
        assert each["selected"] == int((best >= each["similarity"]).sum())
        assert each["selected"] >= each["random"]
    assert report["comparison"]["retrieval"] == pytest.approx(best.mean(), abs=1e-6)
    assert report["comparison"]["retrieval"] > max(report["comparison"]["random"])
    assert [each["row"] for each in report["least_covered"]] == np.argsort(best)[:5].tolist()
    assert report["least_covered"][0]["text"] == f"target {int(np.argmin(best))}"
    assert [each["selected_documents"] for each in report["sources"]] == [
        sum(row < 150 for row in chosen),
        sum(row >= 150 for row in chosen),
    ]
    assert sum(each["selected_tokens"] for each in report["sources"]) == mixture.n_tokens
    median = next(each for each in report["similarity"] if each["quantile"] == 0.5)
    assert median["selected"] == pytest.approx(float(np.median(cosines.max(axis=1))), abs=1e-6)
    json.dumps(report, allow_nan=False)


def test_rows_are_those_of_the_corpus_where_documents_are_left_out() -> None:
    pool = made_pool()
    kept = np.arange(150) % 3 > 0
    smaller = replace(pool, sources=(pool.sources[0].only(kept), pool.sources[1]))
    mixture = Retrieval().select(smaller, Budget(documents=60))
    oracle = Oracle(pool, 0.95)
    # What is left out is far from every target.
    oracle.cosines[:150][~kept] = -2
    assert ranking(mixture, pool) == oracle.choose(oracle.cosines[:, oracle.order(0)], Budget(documents=60))


def test_examples_without_text_take_no_turns() -> None:
    pool = made_pool()
    assert pool.examples is not None
    assert pool.examples.vectors is not None
    vectors = pool.examples.vectors.rows(np.arange(7))
    vectors[[1, 4]] = 0
    blank = replace(pool, examples=replace(pool.examples, vectors=ArrayVectors(vectors)))
    mixture = Retrieval().select(blank, Budget(documents=40))
    assert set(mixture.tables["ranking"]["turn_of"]) == {0, 2, 3, 5, 6}
    assert "2 target examples have no text to compare with and take no turns" in mixture.warnings
    nothing = replace(pool, examples=replace(pool.examples, vectors=ArrayVectors(np.zeros_like(vectors))))
    with pytest.raises(DataError, match="no example of the target target@1 has text to compare with"):
        Retrieval().select(nothing, Budget(documents=40))


def test_what_is_missing_is_named() -> None:
    pool = made_pool()
    with pytest.raises(ConfigError, match="name a corpus of examples by target"):
        Retrieval().requirements()
    with pytest.raises(DataError, match="name a corpus of examples by target"):
        Retrieval().select(replace(pool, examples=None), Budget(documents=5))
    with pytest.raises(ConfigError, match="neighbours is for rule=mean, not max"):
        Retrieval(rule="max", neighbours=3).select(pool, Budget(documents=5))
    bare = tuple(replace(source, vectors=None) for source in pool.sources)
    with pytest.raises(DataError, match="no embeddings: run  mixwright embed a@1"):
        Retrieval().select(replace(pool, sources=bare), Budget(documents=5))


def test_a_document_near_a_target_is_pointed_out() -> None:
    pool = made_pool()
    assert pool.examples is not None
    assert pool.examples.vectors is not None
    first = pool.sources[0].vectors
    assert first is not None
    leaked = replace(pool, examples=replace(pool.examples, vectors=ArrayVectors(first.rows(np.arange(7) + 100))))
    mixture = Retrieval().select(leaked, Budget(documents=30))
    assert any(each.startswith("7 chosen documents have a cosine of 0.95 or more") for each in mixture.warnings)


# From the command line to the page


@pytest.fixture
def published(store: Store, monkeypatch: pytest.MonkeyPatch) -> MixtureManifest:
    """A mixture that the command line published; what would be embedded by Ray is there already."""
    pool = made_pool()
    asked: dict[str, Any] = {}

    def open_pool(_store: Store, references: Any, requirements: Any, *_: Any, **__: Any) -> Pool:
        asked["requirements"] = requirements
        return pool

    monkeypatch.setattr(Pool, "open", open_pool)
    monkeypatch.setattr("mixwright.jobs.select.make_embeddings", lambda *_: ({}, {}))
    command = ["select", "retrieval", "--source", "a", "--source", "b", "--target", "wanted", "--name", "near"]
    command += ["--tokens", "900", "--home", str(store.home)]
    for_a_person = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "by retrieval" in for_a_person.stdout
    result = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    assert asked["requirements"].examples == "wanted"
    assert asked["requirements"].attributes == ("duplicate_cluster",)
    manifest = store.manifest("near", "mixture")
    assert isinstance(manifest, MixtureManifest)
    assert json.loads(result.stdout)["n_tokens"] == manifest.n_tokens
    return manifest


def test_the_page_shows_the_report(published: MixtureManifest, store: Store) -> None:
    table = pl.read_parquet(store.directory(published) / "ranking.parquet")
    assert table.height == published.n_rows
    for page in (served_page(published), page_in_one_file(store, published)):
        for source in published.report["sources"]:
            assert f'<td class="number">{source["selected_documents"]}</td>' in page
        worst = published.report["least_covered"][0]
        assert f"<q>{worst['text']}</q>" in page
        assert "Examples served worst" in page
