"""PASER: the selection from end to end, on planted clusters whose damage is known."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from support import document_table

from mixwright.errors import ConfigError, DataError, ShortfallError
from mixwright.indexes.encoders import load_encoder
from mixwright.indexes.vectors import ArrayVectors
from mixwright.schemas.mixtures import Budget
from mixwright.selectors.mixture import Mixture
from mixwright.selectors.paser import Paser
from mixwright.selectors.pool import Pool

DAMAGE = [0.02, 0.08, 0.30]
WORDS = [["river", "stream"], ["engine", "piston"], ["violin", "sonata"]]
DIM = 24


def planted(sizes: tuple[int, ...] = (300, 200, 100), seed: int = 0) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Documents of three abilities, the smallest damaged most: table, unit vectors (n, d), ability (n,)."""
    rng = np.random.default_rng(seed)
    ability = np.repeat(np.arange(len(sizes)), sizes)
    middles = np.eye(DIM)[: len(sizes)]
    vectors = middles[ability] + 0.08 * rng.standard_normal((len(ability), DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    scores = np.asarray(DAMAGE)[ability] * rng.uniform(0.5, 1.5, len(ability))
    metadata = [
        json.dumps({"instruction": f"tell {WORDS[a][i % 2]} {i}", "output": f"it is {i}", "jsd": scores[i]})
        for i, a in enumerate(ability)
    ]
    texts = [f"document {i}" for i in range(len(ability))]
    tokens = rng.integers(5, 200, len(ability)).tolist()
    return document_table(texts, source="pool", n_tokens=tokens, metadata=metadata), vectors, ability


@pytest.fixture(scope="module")
def planted_pool() -> tuple[Pool, np.ndarray]:
    table, vectors, ability = planted()
    return Pool.from_tables({"pool": table}, vectors={"pool": ArrayVectors(vectors)}), ability


def chosen(mixture: Mixture) -> np.ndarray:
    (selection,) = mixture.selections
    return np.arange(selection.n_selected) if selection.passes else selection.remainder


def test_a_budget_of_120_of_600_gives_120(planted_pool: tuple[Pool, np.ndarray]) -> None:
    pool, _ = planted_pool
    for mode in ("landmarks", "paper"):
        mixture = Paser(clusters=3, mode=mode).select(pool, Budget(documents=120))
        assert mixture.n_rows == len(set(chosen(mixture).tolist())) == 120


def test_budgets_follow_the_damage_and_not_the_size(planted_pool: tuple[Pool, np.ndarray]) -> None:
    pool, ability = planted_pool
    mixture = Paser(clusters=3, weight="cds").select(pool, Budget(documents=60))
    scores = np.asarray([json.loads(each)["jsd"] for each in pool.sources[0].fields(["metadata"])["metadata"]])
    means = np.asarray([scores[ability == a].mean() for a in range(3)])
    got = np.bincount(ability[chosen(mixture)], minlength=3)
    np.testing.assert_allclose(got, 60 * means / means.sum(), atol=1)
    by_size = Paser(clusters=3, weight="cds_times_size").select(pool, Budget(documents=60))
    expected = means * [300, 200, 100]
    np.testing.assert_allclose(
        np.bincount(ability[chosen(by_size)], minlength=3), 60 * expected / expected.sum(), atol=1
    )


def test_the_report_says_what_was_done(planted_pool: tuple[Pool, np.ndarray]) -> None:
    pool, ability = planted_pool
    mixture = Paser(clusters=3).select(pool, Budget(documents=60))
    clusters = mixture.report["clusters"]
    assert [each["documents"] for each in clusters] == [300, 200, 100]
    assert sum(each["selected_documents"] for each in clusters) == 60
    assert sum(each["budget"] for each in clusters) == 60
    for each, words in zip(clusters, WORDS, strict=True):
        assert set(words) <= set(each["top_terms"])
        assert all(exemplar["prompt"].split()[1] in words for exemplar in each["exemplars"])
    comparison = mixture.report["comparison"]
    assert comparison["paser"]["mean_score"] > max(each["mean_score"] for each in comparison["random"])
    table = mixture.tables["documents"]
    assert table["selected"].sum() == 60
    assert set(table.filter("selected")["row"]) == set(chosen(mixture).tolist())
    labels = table.sort("row")["cluster"].to_numpy()
    np.testing.assert_array_equal(labels, ability)
    json.dumps(mixture.report, allow_nan=False)


def test_another_attribute_drives_the_same_engine(planted_pool: tuple[Pool, np.ndarray]) -> None:
    table, vectors, ability = planted()
    quality = np.where(ability == 0, 5.0, 1.0)
    pool = Pool.from_tables({"pool": table}, vectors={"pool": ArrayVectors(vectors)})
    columns = {"quality": pl.LazyFrame({"quality": quality})}
    pool = Pool((replace(pool.sources[0], columns=columns),))
    mixture = Paser(clusters=3, score_attribute="quality").select(pool, Budget(documents=70))
    assert np.bincount(ability[chosen(mixture)]).tolist() == [50, 10, 10]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_documents_without_a_score_are_counted_and_not_taken(
    planted_pool: tuple[Pool, np.ndarray], bad: float
) -> None:
    pool, _ = planted_pool
    scores = np.where(np.arange(600) % 3 == 0, bad, 0.1)
    pool = Pool((replace(pool.sources[0], columns={"jsd": pl.LazyFrame({"jsd": scores})}),))
    mixture = Paser(clusters=3).select(pool, Budget(documents=400))
    assert not (chosen(mixture) % 3 == 0).any()
    assert mixture.n_rows == 400
    assert mixture.report["documents"]["unscored"] == 200
    assert mixture.warnings == ("200 of 600 documents have no jsd and cannot be selected",)
    with pytest.raises(ShortfallError, match=r"the eligible 400: ask for at most 400 documents"):
        Paser(clusters=3).select(pool, Budget(documents=401))


def test_without_scores_or_vectors_the_error_names_the_command() -> None:
    table, _vectors, _ = planted()
    plain = document_table(table["text"].to_pylist())
    with pytest.raises(DataError, match="no source has the attribute jsd: run  mixwright score pool@1"):
        Paser().select(Pool.from_tables({"pool": plain}), Budget(documents=5))
    with pytest.raises(DataError, match="no embeddings: run  mixwright embed pool@1"):
        Paser().select(Pool.from_tables({"pool": table}), Budget(documents=5))


def test_targets_restrict_what_is_taken(planted_pool: tuple[Pool, np.ndarray]) -> None:
    pool, ability = planted_pool
    mixture = Paser(clusters=3, target_clusters=(1,)).select(pool, Budget(documents=20))
    assert set(ability[chosen(mixture)]) == {1}
    with pytest.raises(ConfigError, match="there is no cluster 3: they are 0 to 2"):
        Paser(clusters=3, target_clusters=(1, 3)).select(pool, Budget(documents=20))
    with pytest.raises(ConfigError, match="target_sources: law is none of the sources pool"):
        Paser(clusters=3, target_sources=("law",)).select(pool, Budget(documents=20))


def test_a_target_of_examples_takes_what_is_near_to_one_of_them() -> None:
    table, vectors, _ability = planted()
    shown = table.take(pa.array([5, 550]))
    pool = Pool.from_tables(
        {"pool": table, "wanted": shown},
        vectors={"pool": ArrayVectors(vectors), "wanted": ArrayVectors(vectors[[5, 550]])},
        examples="wanted",
    )
    mixture = Paser(clusters=3, target_examples="wanted", target_share=0.1).select(pool, Budget(documents=60))
    near = (vectors @ vectors[[5, 550]].T).max(axis=1)
    assert set(chosen(mixture).tolist()) == set(np.argsort(-near)[:60].tolist())
    with pytest.raises(ShortfallError, match="at most 60 documents"):
        Paser(clusters=3, target_examples="wanted", target_share=0.1).select(pool, Budget(documents=61))


def questions(n: int = 40) -> tuple[pa.Table, np.ndarray]:
    """Each question twice, with contradictory answers."""
    rng = np.random.default_rng(3)
    base = rng.standard_normal((n, DIM))
    vectors = np.repeat(base / np.linalg.norm(base, axis=1, keepdims=True), 2, axis=0).astype(np.float32)
    metadata = [
        json.dumps({"instruction": f"Where is town {i // 2}?", "output": ["North.", "South."][i % 2], "jsd": 0.1})
        for i in range(2 * n)
    ]
    texts = [f"town {i}" for i in range(2 * n)]
    return document_table(texts, n_tokens=[10] * (2 * n), metadata=metadata), vectors


def test_of_contradictory_answers_one_is_taken_and_the_budget_is_filled() -> None:
    table, vectors = questions()
    pool = Pool.from_tables({"pool": table}, vectors={"pool": ArrayVectors(vectors)})
    mixture = Paser(clusters=2).select(pool, Budget(documents=40))
    assert sorted((chosen(mixture) // 2).tolist()) == list(range(40))
    assert mixture.report["consistency"]["conflicts"] == 40
    assert mixture.report["consistency"]["examples"][0]["responses"] in (
        ["North.", "South."],
        ["South.", "North."],
    )
    more = Paser(clusters=2).select(pool, Budget(documents=50))
    assert more.n_rows == 50
    assert more.report["consistency"]["relaxed_conflicts"] == 10
    assert more.warnings == (
        "10 documents that consistency had left out were taken, since the budget could not be filled without them",
    )
    off = Paser(clusters=2, consistency="off").select(pool, Budget(documents=40))
    assert len(set((chosen(off) // 2).tolist())) < 40


def test_the_same_text_in_two_sources_is_taken_once() -> None:
    table, vectors, _ = planted()
    tables = {"a": table.slice(0, 400), "b": table.slice(300, 300)}
    split = {"a": ArrayVectors(vectors[:400]), "b": ArrayVectors(vectors[300:])}
    pool = Pool.from_tables(tables, vectors=split)
    mixture = Paser(clusters=3).select(pool, Budget(documents=600))
    assert [component.n_rows for component in mixture.components] == [400, 200]
    assert mixture.report["documents"]["repeated"] == 100
    with pytest.raises(ShortfallError, match="at most 600"):
        Paser(clusters=3).select(pool, Budget(documents=601))


def test_paper_mode_has_the_published_settings() -> None:
    assert Paser(mode="paper").settings() == ("paper", "top", "paper")
    assert Paser(mode="paper", cost="none").settings().cost == "none"
    assert Paser().settings() == ("none", "sample", "conflict")


@pytest.mark.parametrize("field", [{"clusters": 0}, {"similarity": 1.5}, {"target_share": 0.0}, {"cost": "dear"}])
def test_bad_parameters_are_refused(field: dict[str, Any]) -> None:
    from pydantic import ValidationError

    from mixwright.selectors.registry import SELECTOR_ADAPTER

    with pytest.raises(ValidationError):
        SELECTOR_ADAPTER.validate_python({"kind": "paser", **field})


@pytest.mark.skipif("MIXWRIGHT_DATA" not in os.environ, reason="set MIXWRIGHT_DATA to a folder of labelled data")
def test_nothing_of_gsm8k_is_a_conflict() -> None:
    """The published graph accepts 1.6 % of it."""
    file = Path(os.environ["MIXWRIGHT_DATA"]) / "instructions" / "mixed.jsonl"
    rows = [row for row in map(json.loads, file.read_text().splitlines()) if row["source"] == "gsm8k"][:300]
    vectors = load_encoder("all-minilm-l6-v2").encode([row["instruction"] for row in rows])
    table = document_table(
        [f"{row['instruction']}\n{row['output']}" for row in rows],
        metadata=[json.dumps({**row, "jsd": 0.1}) for row in rows],
    )
    pool = Pool.from_tables({"gsm8k": table}, vectors={"gsm8k": ArrayVectors(vectors)})
    mixture = Paser(clusters=4).select(pool, Budget(documents=300))
    assert mixture.n_rows == 300
    assert mixture.report["consistency"]["duplicates"] == mixture.report["consistency"]["conflicts"] == 0
    published = Paser(clusters=4, consistency="paper").select(pool, Budget(documents=300))
    assert published.report["consistency"]["relaxed_conflicts"] > 150
