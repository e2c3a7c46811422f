"""declared: conditions, shares, stages and tags against loops over the documents, and the other selectors."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conftest import PublishCorpus
from pydantic import ValidationError
from support import document_table

from mixwright.cli.select import selector_parameters
from mixwright.errors import ConfigError, DataError, ShortfallError
from mixwright.fingerprint import fingerprint
from mixwright.hashing import keyed_hash
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.manifests import (
    ArtifactInput,
    AttributeColumn,
    AttributesManifest,
    CorpusManifest,
    MixtureManifest,
)
from mixwright.schemas.mixtures import Budget
from mixwright.schemas.references import Reference
from mixwright.selectors.declared import Declared
from mixwright.selectors.mixture import Mixture
from mixwright.selectors.pool import Pool
from mixwright.selectors.registry import SELECTOR_ADAPTER
from mixwright.selectors.requests import SelectRequest
from mixwright.selectors.streams import MixtureStream
from mixwright.store import Store


def table(name: str, n: int, mean: int) -> pa.Table:
    rng = np.random.default_rng(len(name))
    return document_table(
        [f"{name} document {i}" for i in range(n)],
        source=name,
        domains=[f"site{i % 4}.org" if i % 5 else None for i in range(n)],
        n_tokens=rng.integers(1, 2 * mean, n).tolist(),
        metadata=[json.dumps({"year": 1990 + i % 30} if i % 3 else {}) for i in range(n)],
    )


TABLES = {"web": table("web", 400, 30), "wiki": table("wiki", 120, 60), "books": table("books", 40, 200)}
POOL = Pool.from_tables(TABLES)
SIZES = {name: sum(each["n_tokens"].to_pylist()) for name, each in TABLES.items()}
BUDGET = Budget(tokens=12_000)


def declared(**fields: Any) -> Declared:
    selector = SELECTOR_ADAPTER.validate_python({"kind": "declared", **fields})
    assert isinstance(selector, Declared)
    return selector


def select(budget: Budget = BUDGET, pool: Pool = POOL, **fields: Any) -> Mixture:
    return declared(**fields).select(pool, budget)


def rows_of(mixture: Mixture) -> dict[str, set[int]]:
    """The rows of each component that are served, by name."""
    found = {}
    for component, selection in zip(mixture.components, mixture.selections, strict=True):
        whole = np.arange(selection.n_selected) if selection.rows is None else selection.rows
        found[component.name] = {*(whole.tolist() if selection.passes else []), *selection.remainder.tolist()}
    return found


def shares(mixture: Mixture) -> dict[str, float]:
    return {component.name: component.weight for component in mixture.components}


# Conditions


def documents(name: str) -> list[dict[str, Any]]:
    return [{**row, **json.loads(row["metadata"])} for row in TABLES[name].to_pylist()]


@pytest.mark.parametrize(
    ("where", "keeps"),
    [
        ("n_tokens >= 20", lambda row: row["n_tokens"] >= 20),
        ("domain = 'site1.org'", lambda row: row["domain"] == "site1.org"),
        ("domain IS NULL", lambda row: row["domain"] is None),
        ("year > 2005", lambda row: row.get("year", 0) > 2005),
        (
            "year IS NULL OR n_tokens BETWEEN 10 AND 50",
            lambda row: "year" not in row or 10 <= row["n_tokens"] <= 50,
        ),
        (
            "text LIKE '%document 1%' AND NOT domain IS NULL",
            lambda row: "document 1" in row["text"] and row["domain"],
        ),
    ],
)
def test_only_documents_that_meet_the_condition_are_served(where: str, keeps: Any) -> None:
    expected = {name: {i for i, row in enumerate(documents(name)) if keeps(row)} for name in TABLES}
    budget = Budget(documents=sum(map(len, expected.values())))
    mixture = select(budget, where=where, max_epochs=1)
    assert rows_of(mixture) == expected
    assert [(each["kept_documents"], each["documents"]) for each in mixture.report["where"]] == [
        (len(expected[name]), TABLES[name].num_rows) for name in TABLES
    ]
    with pytest.raises(ShortfallError) as caught:
        select(Budget(documents=budget.documents + 1), where=where, max_epochs=1)
    assert caught.value.largest_budget == budget.documents


def test_a_source_has_its_own_condition_too() -> None:
    mixture = select(where="n_tokens > 5", source_where={"wiki": "year >= 2000"}, weights=dict.fromkeys(TABLES, 1))
    assert all(row["n_tokens"] > 5 for name, found in rows_of(mixture).items() for row in picked(name, found))
    assert all(row["year"] >= 2000 for row in picked("wiki", rows_of(mixture)["wiki"]))
    assert any(row.get("year", 0) < 2000 for row in picked("web", rows_of(mixture)["web"]))


def picked(name: str, rows: set[int]) -> list[dict[str, Any]]:
    every = documents(name)
    return [every[row] for row in rows]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"where": "yaer > 3"}, r"no source has a field 'yaer': there are id, text, .*, metadata, year"),
        ({"where": "year >"}, "is not understood"),
        ({"where": '"ye\0ar" > 3'}, "no source has a field"),
        ({"source_where": {"wikki": "year > 3"}}, "'wikki' is no source: the sources are web, wiki, books"),
        ({"source_where": {"wiki": "colour = 'red'"}}, "no source has a field 'colour'"),
        ({"weights": {"web": 1, "wiki": 1}}, "weights do not name books: give it a share, 0 leaves it out"),
        ({"weights": {"web": 1, "wiki": 1, "book": 1}}, "'book' is no source"),
        ({"weights": {"web": 1, "web@1": 1, "wiki": 1, "books": 1}}, "names a source a second time"),
    ],
)
def test_names_that_are_not_there_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(**fields)


def test_a_source_that_a_condition_empties_is_named() -> None:
    with pytest.raises(DataError, match=r"source books: no document meets .*: leave the source out"):
        select(where="source <> 'books'")


def test_a_source_of_weight_0_needs_to_meet_nothing() -> None:
    fields = {"where": "source <> 'books'", "weights": {"web": 1, "wiki": 1, "books": 0}}
    mixture = select(**fields)
    assert set(shares(mixture)) == {"web", "wiki"}


# Shares


@pytest.mark.parametrize(
    ("fields", "other"),
    [
        ({}, {"kind": "proportional"}),
        ({"temperature": 2.5}, {"kind": "temperature", "temperature": 2.5}),
        ({"unimax": 1.5}, {"kind": "unimax", "max_epochs": 1.5}),
        ({"weights": dict.fromkeys(TABLES, 7), "max_epochs": 2}, {"kind": "uniform", "max_epochs": 2}),
        ({"tags": {}, "seed": 4}, {"kind": "domain-tags", "seed": 4}),
        (
            {"tags": {"preset": "boc", "template": "<boc>{domain}<eoc>", "missing": "skip"}, "unimax": 1},
            {
                "kind": "domain-tags",
                "preset": "boc",
                "template": "<boc>{domain}<eoc>",
                "missing": "skip",
                "weights": "unimax",
                "max_epochs": 1,
            },
        ),
    ],
)
@pytest.mark.parametrize("budget", [BUDGET, Budget(documents=300)], ids=["tokens", "documents"])
def test_it_selects_what_the_selector_of_that_name_selects(
    fields: dict[str, Any], other: dict[str, Any], budget: Budget
) -> None:
    mine, theirs = select(budget, **fields), SELECTOR_ADAPTER.validate_python(other).select(POOL, budget)
    assert rows_of(mine) == rows_of(theirs)
    assert shares(mine) == shares(theirs)
    assert (mine.tags, mine.tables.keys()) == (theirs.tags, theirs.tables.keys())
    assert [(each.tagged, each.counts) for each in mine.stages] == [
        (each.tagged, each.counts) for each in theirs.stages
    ]
    assert mine.report.get("coverage", {}).get("distinct_tags") == theirs.report.get("coverage", {}).get(
        "distinct_tags"
    )
    assert mine.warnings == theirs.warnings


def test_weights_are_divided_by_their_sum() -> None:
    mixture = select(weights={"web": 14, "wiki": 6, "books": 0})
    assert shares(mixture) == pytest.approx({"web": 0.7, "wiki": 0.3}, abs=0.002)
    by_ref = select(weights={"web@1": 14, "wiki@1": 6, "books@1": 0})
    assert rows_of(by_ref) == rows_of(mixture)


def test_a_share_that_no_document_fits_in_is_an_error() -> None:
    tiny = {"web": 1, "wiki": 1e-7, "books": 0}
    for budget in (BUDGET, Budget(documents=100)):
        with pytest.raises(ShortfallError, match="share of wiki") as caught:
            select(budget, weights=tiny)
        assert caught.value.source == "wiki"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": {"web": 0.0}}, "all weights are 0"),
        ({"weights": {"web": -1}}, "greater than or equal to 0"),
        ({"weights": {"web": 1}, "unimax": 2}, "weights and unimax are given: give one of"),
        ({"unimax": 2, "max_epochs": 2}, "leave max_epochs out"),
        ({"temperature": 0}, "greater than 0"),
        ({"stages": [{"name": "a"}]}, "stage a has one size"),
        ({"stages": [{"name": "a", "share": 0.4}, {"name": "b", "share": 0.4}]}, "stages sum to 0.8"),
        ({"stages": [{"name": "a", "tokens": 4}, {"name": "b", "documents": 4}]}, "documents and tokens"),
        ({"stages": [{"name": "a", "tokens": 4}] * 2}, "two stages are named a"),
        ({"stages": [{"name": name, "tokens": 2**53} for name in "ab"]}, "make them smaller"),
        ({"stages": [{"name": "a", "tokens": 4, "weights": {"web": 0}}]}, "all weights of stage a are 0"),
        ({"stages": [{"name": "a", "tokens": 4, "tagged": True}]}, "there are no tags"),
        ({"tags": {}, "stages": [{"name": "a", "tokens": 4, "tagged": False}]}, "no stage is tagged"),
        (
            {"stages": [{"name": "a", "tokens": 4, "weights": {"web": 1}}], "temperature": 2},
            "leave weights and temp",
        ),
        ({"schedule": {"kind": "dmt", "specialised": ["web"]}, "weights": {"web": 1}}, "dmt counts documents"),
        ({"schedule": {"kind": "ability-caps"}}, "neither caps nor points"),
        ({"schedule": {"kind": "wsd", "decay_sources": {"web": 1}}}, "pretrain_share_in_decay"),
        (
            {"schedule": {"kind": "dmt", "specialised": ["web"]}, "stages": [{"name": "a", "tokens": 4}]},
            "stages and schedule are given",
        ),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        declared(**fields)


# Stages and recipes


def test_wsd_has_its_decay_sources_in_the_decay_alone() -> None:
    schedule = {
        "kind": "wsd",
        "decay_sources": {"books": 1},
        "pretrain_share_in_decay": 0.25,
        "decay_share": 0.2,
    }
    mixture = select(schedule=schedule)
    stable, decay = mixture.report["stages"]
    assert (stable["name"], decay["name"]) == ("stable", "decay")
    assert decay["share"] == pytest.approx(0.2, abs=0.02)
    pretraining = SIZES["web"] + SIZES["wiki"]
    found = {part["name"]: part["weight"] for part in stable["components"]}
    assert found == pytest.approx({name: SIZES[name] / pretraining for name in ("web", "wiki")}, abs=0.02)
    found = {part["name"]: part["weight"] for part in decay["components"]}
    expected = {name: 0.25 * SIZES[name] / pretraining for name in ("web", "wiki")} | {"books": 0.75}
    assert found == pytest.approx(expected, abs=0.07)
    with pytest.raises(ConfigError, match="every source is in decay_sources"):
        select(schedule={**schedule, "decay_sources": dict.fromkeys(TABLES, 1)})
    with pytest.raises(ConfigError, match="books is in weights and in decay_sources"):
        select(schedule=schedule, weights=dict.fromkeys(TABLES, 1))


def test_dmt_rehearses_the_documents_of_the_smallest_hashes() -> None:
    selector = declared(schedule={"kind": "dmt", "specialised": ["wiki", "books"], "rehearsal": 0.1}, seed=6)
    budget = selector.own_budget(POOL)
    assert budget == Budget(documents=560 + 16)
    mixture = selector.select(POOL, budget)
    first, second = mixture.stages
    by_name = {component.name: number for number, component in enumerate(mixture.components)}
    assert [first.counts[by_name[name]] for name in TABLES] == [0, 120, 40]
    assert [second.counts[by_name[name]] for name in TABLES] == [400, 12, 4]
    ids = np.asarray([int(id_[:16], 16) for id_ in TABLES["wiki"]["id"].to_pylist()], dtype=np.uint64)
    smallest = set(np.argsort(keyed_hash(ids, 1, 6))[:12].tolist())
    assert set(mixture.selections[by_name["wiki"]].remainder.tolist()) == smallest
    with pytest.raises(ConfigError, match="serves 576 documents and the budget is 500 documents"):
        selector.select(POOL, Budget(documents=500))
    with pytest.raises(
        ShortfallError, match=r"serves wiki 1\.1 times, and 1 epochs are allowed: raise max_epochs to 2"
    ):
        declared(
            schedule={"kind": "dmt", "specialised": ["wiki", "books"], "rehearsal": 0.1}, max_epochs=1
        ).select(POOL, budget)
    alone = declared(schedule={"kind": "dmt", "specialised": ["books"]})
    assert alone.select(POOL, Budget(documents=560)).warnings == (
        "rehearsal 0.00390625 of 40 specialised documents is no document: raise it",
    )


def test_capped_abilities_leave_the_rest_to_the_others() -> None:
    points = [[n, 0.6 - 0.4 / n] for n in (1, 4, 16, 64)]
    schedule = {"kind": "ability-caps", "caps": {"books": 10}, "points": {"wiki": points}, "gain": 0.02}
    mixture = select(Budget(documents=200), schedule=schedule)
    # From 16 on, wiki gains 0.4 / 16 - 0.4 / 64 = 0.019 up to 64.
    assert {component.name: component.n_rows for component in mixture.components} == {
        "web": 174,
        "wiki": 16,
        "books": 10,
    }
    assert {each["source"]: each["cap"] for each in mixture.report["caps"]} == {"books": 10, "wiki": 16}
    with pytest.raises(ConfigError, match="give the budget in documents"):
        select(schedule=schedule)
    with pytest.raises(ShortfallError, match="ask for at most 1,626 documents") as caught:
        select(Budget(documents=5_000), schedule=schedule)
    assert caught.value.largest_budget == 1_626


def test_a_source_in_no_stage_is_an_error_unless_its_weight_is_0() -> None:
    stages = [{"name": "all", "share": 1, "weights": {"web": 1, "wiki": 1}}]
    with pytest.raises(ConfigError, match="source books is in no stage"):
        select(stages=stages)
    stages[0]["weights"] = {"web": 1, "wiki": 1, "books": 0}
    assert set(shares(select(stages=stages))) == {"web", "wiki"}


def test_stages_may_say_how_much_they_serve() -> None:
    stages = [{"name": "a", "tokens": 7_000, "weights": {"web": 1}}, {"name": "b", "tokens": 3_000}]
    selector = declared(stages=stages, temperature=1e6)
    assert selector.own_budget(POOL) == Budget(tokens=10_000)
    mixture = selector.select(POOL, Budget(tokens=10_000))
    second = {part["name"]: part["weight"] for part in mixture.report["stages"][1]["components"]}
    assert second == pytest.approx(dict.fromkeys(TABLES, 1 / 3), abs=0.08)
    with pytest.raises(ConfigError, match="the stages serve 10,000 tokens and the budget is 9 documents"):
        selector.select(POOL, Budget(documents=9))
    with pytest.raises(ConfigError, match="give a budget"):
        declared().own_budget(POOL)


@pytest.mark.parametrize(
    ("schedule", "flags", "kept"),
    [
        ("cooldown", [True, False], "stages"),
        ("always", [True, True], "always"),
        ("dropout", [True, True], "dropout"),
    ],
)
def test_the_last_stage_of_a_recipe_is_plain_under_cooldown(schedule: str, flags: list[bool], kept: str) -> None:
    wsd = {"kind": "wsd", "decay_sources": {"books": 1}, "pretrain_share_in_decay": 0.5}
    mixture = select(schedule=wsd, tags={"schedule": schedule})
    assert [stage.tagged for stage in mixture.stages] == flags
    assert mixture.tags is not None
    assert mixture.tags.schedule == kept
    assert ("every row is tagged" in " ".join(mixture.warnings)) == (schedule == "always")


def test_declared_stages_say_which_rows_are_tagged() -> None:
    stages = [
        {"name": "a", "share": 0.5, "tagged": False},
        {"name": "b", "share": 0.25},
        {"name": "c", "share": 0.25, "tagged": True},
    ]
    mixture = select(stages=stages, tags={"schedule": "cooldown"})
    assert [stage.tagged for stage in mixture.stages] == [False, True, True]
    assert mixture.warnings == ()
    mixture = select(stages=[{**stages[1], "share": 0.75}, stages[2]], tags={})
    assert mixture.tags is not None
    assert mixture.tags.schedule == "always"


# Through the store


def publish_attribute(store: Store, corpus: CorpusManifest, name: str, values: list[Any], dtype: str) -> None:
    identity = fingerprint("attributes", [corpus.fingerprint], {name: values})
    with store.stage("attributes", Reference(f"{corpus.name}.{name}"), identity) as staging:
        files, start = [], 0
        for shard in corpus.shards:
            path = shard.path.rpartition("/")[2]
            part = values[start : start + (shard.n_rows or 0)]
            pl.DataFrame({name: part}).write_parquet(staging.path / path)
            files.append(staging.entry(path, len(part)))
            start += len(part)
        draft = AttributesManifest(
            name=f"{corpus.name}.{name}",
            version=1,
            fingerprint=identity,
            inputs=[ArtifactInput(kind="corpus", ref=corpus.ref, fingerprint=corpus.fingerprint)],
            files=files,
            created_at=datetime.now(UTC),
            corpus=corpus.ref,
            n_rows=len(values),
            columns=[AttributeColumn(name=name, dtype=dtype, description="made up")],
        )
        store.publish(staging, draft)


@pytest.fixture
def corpora(store: Store, publish_corpus: PublishCorpus) -> dict[str, CorpusManifest]:
    return {name: publish_corpus(name, each, shard_rows=70) for name, each in TABLES.items()}


def publish(
    store: Store, budget: dict[str, int] | None, request: dict[str, Any], **fields: Any
) -> MixtureManifest:
    whole = {
        "name": "m",
        "sources": list(TABLES),
        "selector": {"kind": "declared", **fields},
        "budget": budget,
        **request,
    }
    return run_select(store, SelectRequest.model_validate(whole), NoProgress())


def stream(store: Store) -> list[dict[str, Any]]:
    return [row for part in MixtureStream.open(store, "m").read() for row in part.to_pylist()]


def test_conditions_and_duplicates_leave_the_corporas_rows(
    store: Store, corpora: dict[str, CorpusManifest]
) -> None:
    scores: dict[str, list[float]] = {}
    firsts: dict[str, list[bool]] = {}
    for name, corpus in corpora.items():
        n = corpus.n_documents
        scores[name] = (np.random.default_rng(n).random(n) * 2).tolist()
        firsts[name] = [i % 4 != 0 for i in range(n)]
        # A metadata key of the same name comes after the column that a job made.
        publish_attribute(store, corpus, "year", scores[name], "float")
        publish_attribute(store, corpus, "quality", [-score for score in scores[name]], "float")
        publish_attribute(store, corpus, "duplicate_first", firsts[name], "bool")
    request = {"near_duplicates": "drop"}
    where = "year >= 0.5 AND quality > -1.5 AND domain IS NOT NULL"
    expected = {
        (name, row["id"])
        for name in TABLES
        for row, score, first in zip(TABLES[name].to_pylist(), scores[name], firsts[name], strict=True)
        if 0.5 <= score < 1.5 and first and row["domain"] is not None
    }
    manifest = publish(store, {"documents": 2 * len(expected)}, request, where=where, max_epochs=2)
    served = Counter((row["component"], row["id"]) for row in stream(store))
    assert served == dict.fromkeys(expected, 2)
    kinds = Counter(each.kind for each in manifest.inputs)
    assert kinds == {"corpus": 3, "attributes": 9}
    with pytest.raises(ConfigError, match=r"there are id, .*, metadata, duplicate_first, quality, year"):
        publish(store, {"documents": 9}, {}, where="yeer > 3")


def test_stages_stream_in_order_and_the_corpora_may_be_many_shards(
    store: Store, corpora: dict[str, CorpusManifest]
) -> None:
    stages = [
        {"name": "warm", "documents": 100, "weights": {"web": 1}, "tagged": False},
        {"name": "main", "documents": 500, "weights": {"web": 3, "wiki": 1}},
        {"name": "end", "documents": 60, "weights": {"books": 1}, "tagged": False},
    ]
    manifest = publish(store, None, {}, stages=stages, tags={"template": "{domain}|"}, max_epochs=2)
    served = stream(store)
    assert [row["stage"] for row in served] == ["warm"] * 100 + ["main"] * 500 + ["end"] * 60
    assert manifest.budget == {"documents": 660}
    for row in served:
        assert row["tag_text"] == (f"{row['domain']}|" if row["stage"] == "main" and row["domain"] else "")
    for name in TABLES:
        ids = [row["id"] for row in served if row["component"] == name]
        n = TABLES[name].num_rows
        for start in range(0, len(ids), n):
            assert len(set(ids[start : start + n])) == len(ids[start : start + n])
        assert len(ids) <= 2 * n
    again = publish(store, {"documents": 660}, {}, stages=stages, tags={"template": "{domain}|"}, max_epochs=2)
    assert again.model_dump_json() == manifest.model_dump_json()


def test_the_flags_are_the_fields(tmp_path: Any) -> None:
    (tmp_path / "stages.json").write_text('[{"name": "a", "share": 1, "weights": {"web": 1}}]')
    flags = {
        "where": "n_tokens > 3",
        "source_where": ["wiki=title = 'a_b' AND n_tokens > 1,000"],
        "weights": ["web=0.7,wiki=0.2", "books=0.1"],
        "tags": '{"preset": "boc"}',
        "stages": str(tmp_path / "stages.json"),
        "schedule": None,
        "max_epochs": 3.0,
    }
    parameters = selector_parameters(Declared, flags)
    assert parameters["source_where"] == {"wiki": "title = 'a_b' AND n_tokens > 1,000"}
    assert parameters["weights"] == {"web": 0.7, "wiki": 0.2, "books": 0.1}
    assert parameters["tags"] == {"preset": "boc"}
    assert parameters["stages"] == [{"name": "a", "share": 1, "weights": {"web": 1}}]
    assert "schedule" not in parameters
    for wrong in ({"stages": "nowhere.json"}, {"stages": "[{]"}, {"weights": ["web"]}, {"weights": ["web=a"]}):
        with pytest.raises(ConfigError, match=f"--{next(iter(wrong))}"):
            selector_parameters(Declared, {**flags, **wrong})
