"""The contract that every selector keeps, and what is particular to one."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from support import document_table

from mixwright.errors import ConfigError, DataError, ShortfallError
from mixwright.fingerprint import fingerprint
from mixwright.indexes.encoders import load_encoder
from mixwright.indexes.vectors import ArrayVectors
from mixwright.schemas.mixtures import Budget
from mixwright.selectors.mixture import Mixture
from mixwright.selectors.pool import Pool
from mixwright.selectors.registry import SELECTOR_ADAPTER, SELECTORS

KINDS = sorted(SELECTORS)
BUDGETS = [Budget(tokens=9_000), Budget(documents=120)]


def table(name: str, n: int, mean: float, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return document_table(
        [f"document {i} of {name}" for i in range(n)],
        source=name,
        domains=[f"site{i * i % 7}.org" if i % 10 else None for i in range(n)],
        urls=[f"https://site{i * i % 7}.org/{i}" if i % 10 else None for i in range(n)],
        n_tokens=(rng.lognormal(np.log(mean), 0.8, n).astype(int) + 1).tolist(),
        metadata=[json.dumps({"topic": f"topic {i % 3}", "jsd": 0.1 + 0.5 * (i % 7) / 7}) for i in range(n)],
    )


TABLES = {"long": table("long", 200, 150), "small": table("small", 40, 60), "short": table("short", 900, 20)}


WANTED = document_table([f"document {i} of short and {i} of long" for i in range(60)], source="wanted")


def pool_of(tables: dict[str, pa.Table], tokenizer: str = "bytes") -> Pool:
    """A pool with what any selector wants: vectors and examples beside the tables' own attributes."""
    encoder, shown = load_encoder("hashing:32"), {**tables, "wanted": WANTED}
    vectors = {name: ArrayVectors(encoder.encode(each["text"].to_pylist())) for name, each in shown.items()}
    return Pool.from_tables(shown, tokenizer, vectors=vectors, examples="wanted")


@pytest.fixture(scope="module")
def pool() -> Pool:
    return pool_of(TABLES)


def served(mixture: Mixture, tables: dict[str, pa.Table]) -> Counter[tuple[str, str]]:
    """How often each document (component, id) is served: worked out row by row, apart from the stream."""
    counts: Counter[tuple[str, str]] = Counter()
    for component, selection in zip(mixture.components, mixture.selections, strict=True):
        ids = tables[component.source.split("@")[0]]["id"].to_pylist()
        whole = range(len(ids)) if selection.rows is None else selection.rows
        for row in whole:
            counts[component.name, ids[row]] += selection.passes
        for row in selection.remainder:
            counts[component.name, ids[row]] += 1
    return +counts


def shortest_left_out(mixture: Mixture, tables: dict[str, pa.Table]) -> list[int]:
    """The tokens of the shortest document of each source that the mixture's last pass leaves out."""
    shortest = []
    for component, selection in zip(mixture.components, mixture.selections, strict=True):
        tokens = tables[component.name]["n_tokens"].to_numpy()
        shortest.append(int(np.delete(tokens, selection.remainder).min()))
    return shortest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", BUDGETS, ids=["tokens", "documents"])
class TestContract:
    def select(self, kind: str, pool: Pool, budget: Budget, **parameters: Any) -> Mixture:
        return SELECTOR_ADAPTER.validate_python({"kind": kind, **parameters}).select(pool, budget)

    def test_deterministic(self, kind: str, budget: Budget, pool: Pool) -> None:
        first, second = (self.select(kind, pool_of(TABLES), budget) for _ in range(2))
        assert first.components == second.components
        assert first.stages == second.stages
        assert served(first, TABLES) == served(second, TABLES)

    def test_another_seed_selects_other_documents(self, kind: str, budget: Budget, pool: Pool) -> None:
        first, second = (self.select(kind, pool, budget, seed=seed) for seed in (0, 1))
        assert served(first, TABLES) != served(second, TABLES)

    def test_weights_are_the_shares_of_the_tokens(self, kind: str, budget: Budget, pool: Pool) -> None:
        mixture = self.select(kind, pool, budget)
        tokens = {
            (name, id_): n
            for name, each in TABLES.items()
            for id_, n in zip(each["id"].to_pylist(), each["n_tokens"].to_pylist(), strict=True)
        }
        counts = served(mixture, TABLES)
        assert sum(counts.values()) == mixture.n_rows
        for component in mixture.components:
            mine = {key: n for key, n in counts.items() if key[0] == component.name}
            assert sum(mine.values()) == component.n_rows
            assert sum(tokens[key] * n for key, n in mine.items()) == component.n_tokens
            assert component.weight == pytest.approx(component.n_tokens / mixture.n_tokens)
        assert all(component.weight > 0 for component in mixture.components)
        assert sum(component.weight for component in mixture.components) == pytest.approx(1)
        assert sum(stage.n_tokens for stage in mixture.stages) == mixture.n_tokens

    def test_the_budget_is_met(self, kind: str, budget: Budget, pool: Pool) -> None:
        mixture = self.select(kind, pool, budget)
        if budget.documents:
            assert mixture.n_rows == budget.documents
        else:
            # Never more, and less only by what no document is short enough for.
            shortest = min(shortest_left_out(mixture, TABLES))
            assert 0 <= budget.tokens - mixture.n_tokens < shortest

    def test_a_budget_too_large_names_source_and_limit(self, kind: str, budget: Budget, pool: Pool) -> None:
        unit = "documents" if budget.documents else "tokens"
        with pytest.raises(ShortfallError) as caught:
            self.select(kind, pool, Budget(**{unit: 10**9}))
        assert caught.value.source in TABLES
        assert caught.value.source in str(caught.value)
        largest = caught.value.largest_budget
        works = self.select(kind, pool, Budget(**{unit: largest}))
        assert (works.n_rows if budget.documents else works.n_tokens) == pytest.approx(largest, abs=60)
        with pytest.raises(ShortfallError):
            self.select(kind, pool, Budget(**{unit: largest + 1}))

    def test_permuting_the_rows_permutes_the_result(self, kind: str, budget: Budget, pool: Pool) -> None:
        rng = np.random.default_rng(5)
        shuffled = {name: each.take(rng.permutation(each.num_rows)) for name, each in TABLES.items()}
        first = self.select(kind, pool, budget)
        second = self.select(kind, pool_of(shuffled), budget)
        assert first.components == tuple(
            component.model_copy(update={"fingerprint": original.fingerprint})
            for component, original in zip(second.components, first.components, strict=True)
        )
        assert served(first, TABLES) == served(second, shuffled)

    def test_renaming_the_sources_renames_the_result(self, kind: str, budget: Budget, pool: Pool) -> None:
        renamed = {f"x-{name}": each for name, each in TABLES.items()}
        first, second = (self.select(kind, pool_of(each), budget) for each in (TABLES, renamed))
        assert {(f"x-{n}", i): c for (n, i), c in served(first, TABLES).items()} == served(second, renamed)

    def test_inputs_are_left_unchanged(self, kind: str, budget: Budget, pool: Pool) -> None:
        before = {name: each.to_pydict() for name, each in TABLES.items()}
        self.select(kind, pool, budget)
        assert {name: each.to_pydict() for name, each in TABLES.items()} == before

    def test_one_source_works(self, kind: str, budget: Budget, pool: Pool) -> None:
        small = Budget(tokens=500) if budget.tokens else Budget(documents=9)
        mixture = self.select(kind, pool_of({"small": TABLES["small"]}), small)
        assert [component.weight for component in mixture.components] == [1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_json_round_trip_keeps_the_fingerprint(kind: str) -> None:
    selector = SELECTOR_ADAPTER.validate_python({"kind": kind, "seed": 3})
    again = SELECTOR_ADAPTER.validate_json(SELECTOR_ADAPTER.dump_json(selector))
    assert again == selector
    assert fingerprint("mixture", [], asdict(again)) == fingerprint("mixture", [], asdict(selector))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_parameters_are_refused(kind: str) -> None:
    with pytest.raises(ValidationError, match="sede"):
        SELECTOR_ADAPTER.validate_python({"kind": kind, "sede": 3})


@pytest.mark.parametrize("seed", [False, "3", 1.0, -1])
def test_a_seed_is_a_whole_number(seed: object) -> None:
    with pytest.raises(ValidationError, match="seed"):
        SELECTOR_ADAPTER.validate_python({"kind": "random", "seed": seed})


def test_an_empty_pool_is_an_error() -> None:
    with pytest.raises(DataError, match="pool is empty"):
        pool_of({})
    with pytest.raises(DataError, match="source nothing has no tokens"):
        pool_of({"nothing": TABLES["small"].slice(0, 0)})


def test_different_tokenizers_are_an_error(pool: Pool) -> None:
    other = pool_of({"other": TABLES["small"]}, tokenizer="words")
    with pytest.raises(DataError, match="by bytes, other by words"):
        Pool((*pool.sources, *other.sources))


def weights_of(pool: Pool, budget: Budget, **selector: Any) -> dict[str, float]:
    mixture = SELECTOR_ADAPTER.validate_python(selector).select(pool, budget)
    return {component.name: component.weight for component in mixture.components}


def test_each_baseline_meets_its_closed_form(pool: Pool) -> None:
    sizes = {name: sum(each["n_tokens"].to_pylist()) for name, each in TABLES.items()}
    total, budget = sum(sizes.values()), Budget(tokens=8_000)
    flat = {name: n ** (1 / 2.0) for name, n in sizes.items()}
    expected = {
        "uniform": dict.fromkeys(sizes, 1 / 3),
        "proportional": {name: n / total for name, n in sizes.items()},
        "temperature": {name: n / sum(flat.values()) for name, n in flat.items()},
    }
    for kind, shares in expected.items():
        parameters = {"temperature": 2.0} if kind == "temperature" else {}
        assert weights_of(pool, budget, kind=kind, **parameters) == pytest.approx(shares, abs=0.003)


def test_a_small_source_is_capped_and_the_rest_shared(pool: Pool) -> None:
    small = sum(TABLES["small"]["n_tokens"].to_pylist())
    budget = 6 * small
    mixture = SELECTOR_ADAPTER.validate_python({"kind": "uniform", "max_epochs": 1.5}).select(
        pool, Budget(tokens=budget)
    )
    by_name = {component.name: component for component in mixture.components}
    assert by_name["small"].epochs == pytest.approx(1.5, abs=0.01)
    assert by_name["long"].n_tokens == pytest.approx((budget - 1.5 * small) / 2, rel=0.002)
    assert mixture.warnings == (
        f"small is capped at 1.5 epochs: it serves {by_name['small'].weight:.1%} of the tokens instead of 33.3%",
    )


def test_random_draws_each_document_equally_often(pool: Pool) -> None:
    n_documents = sum(each.num_rows for each in TABLES.values())
    drawn: Counter[tuple[str, str]] = Counter()
    for seed in range(200):
        selector = SELECTOR_ADAPTER.validate_python({"kind": "random", "seed": seed})
        drawn += served(selector.select(pool, Budget(documents=114)), TABLES)
    # 200 draws of 10 % each: binomial with mean 20 and standard deviation 4.2.
    assert sum(drawn.values()) == 200 * 114
    assert len(drawn) == n_documents
    assert max(drawn.values()) < 45


def test_a_share_smaller_than_every_document_names_the_source() -> None:
    tables = {"tiny": table("tiny", 50, 20), "giant": document_table(["a b"], source="giant", n_tokens=[5000])}
    with pytest.raises(ShortfallError, match=r"share of giant is 500 tokens") as caught:
        SELECTOR_ADAPTER.validate_python({"kind": "uniform"}).select(pool_of(tables), Budget(tokens=1000))
    assert caught.value.source == "giant"
    with pytest.raises(ShortfallError, match=r"no source's share of 1 tokens is one token"):
        SELECTOR_ADAPTER.validate_python({"kind": "uniform"}).select(pool_of(tables), Budget(tokens=1))


def test_room_that_a_long_document_leaves_is_filled_with_further_passes() -> None:
    lengths = [5, 5001]
    tables = {"tiny": table("tiny", 50, 20), "giant": document_table(["a", "b"], source="giant", n_tokens=lengths)}
    tiny = tables["tiny"]["n_tokens"].to_numpy()
    selector = SELECTOR_ADAPTER.validate_python({"kind": "uniform", "max_epochs": 20})
    mixture = selector.select(pool_of(tables), Budget(tokens=10_000))
    # Giant's share, 5,000 tokens, has no room for the document of 5,001: tiny fills it, beyond its own pass.
    assert 0 <= 10_000 - mixture.n_tokens < min(*tiny, *lengths)
    counts = served(mixture, tables)
    assert counts.total() == mixture.n_rows
    assert max(counts.values()) <= 20
    repeats = [n for (name, _), n in counts.items() if name == "tiny"]
    assert max(repeats) - min(repeats) <= 1
    assert mixture.warnings == (
        "giant serves 0.1% of the tokens instead of 50.0%: its next documents are too long for its share",
    )


def test_domain_tags_leave_the_last_tenth_plain(pool: Pool) -> None:
    mixture = SELECTOR_ADAPTER.validate_python({"kind": "domain-tags"}).select(pool, Budget(tokens=20_000))
    assert [(stage.name, stage.tagged) for stage in mixture.stages] == [("tagged", True), ("cooldown", False)]
    assert mixture.stages[1].n_tokens == pytest.approx(2_000, abs=200)
    assert mixture.warnings == ()


def test_domain_tags_always_warns(pool: Pool) -> None:
    mixture = SELECTOR_ADAPTER.validate_python({"kind": "domain-tags", "schedule": "always"}).select(
        pool, Budget(tokens=20_000)
    )
    assert [stage.tagged for stage in mixture.stages] == [True]
    assert len(mixture.warnings) == 1
    assert "short prompts" in mixture.warnings[0]


def test_the_coverage_report_counts_what_a_loop_counts(pool: Pool) -> None:
    mixture = SELECTOR_ADAPTER.validate_python({"kind": "domain-tags", "min_docs": 200}).select(
        pool, Budget(tokens=9_000)
    )
    report = mixture.report["coverage"]
    domains = Counter(d for each in TABLES.values() for d in each["domain"].to_pylist())
    missing = domains.pop(None)
    common = {domain for domain, n in domains.items() if n >= 200}
    assert report["documents"] == sum(each.num_rows for each in TABLES.values())
    assert report["tagged_documents"] == sum(domains[domain] for domain in common)
    assert report["fields"]["domain"]["missing_documents"] == missing
    assert report["fields"]["domain"]["distinct_values"] == len(domains)
    assert report["fields"]["domain"]["rare_documents"] == sum(domains.values()) - report["tagged_documents"]
    top = {entry["value"]: entry["documents"] for entry in report["fields"]["domain"]["top_values"]}
    assert top == dict(domains)


def test_missing_skip_serves_no_document_without_a_tag(pool: Pool) -> None:
    mixture = SELECTOR_ADAPTER.validate_python({"kind": "domain-tags", "missing": "skip"}).select(
        pool, Budget(tokens=9_000)
    )
    without = {
        id_
        for each in TABLES.values()
        for id_, domain in zip(each["id"].to_pylist(), each["domain"].to_pylist(), strict=True)
        if domain is None
    }
    assert not without & {id_ for _, id_ in served(mixture, TABLES)}


def test_missing_fail_names_the_first_document(pool: Pool) -> None:
    selector = SELECTOR_ADAPTER.validate_python({"kind": "domain-tags", "missing": "fail"})
    with pytest.raises(DataError, match=r"114 documents have no domain \(first: row 0 of long\)"):
        selector.select(pool, Budget(tokens=9_000))


def test_a_template_of_an_unknown_field_is_an_error(pool: Pool) -> None:
    selector = SELECTOR_ADAPTER.validate_python({"kind": "domain-tags", "template": "{domian}: "})
    with pytest.raises(DataError, match="no document has a value for domian"):
        selector.select(pool, Budget(tokens=9_000))


@pytest.mark.parametrize("template", ["{domain", "no field", "{}", "{0}", "{domain!r}", "{domain:>9}", "{a.b"])
def test_a_bad_template_is_an_error(pool: Pool, template: str) -> None:
    selector = SELECTOR_ADAPTER.validate_python({"kind": "domain-tags", "template": template})
    with pytest.raises(ConfigError, match="template"):
        selector.select(pool, Budget(tokens=9_000))


def test_ctrl_lists_its_control_codes(pool: Pool) -> None:
    selector = SELECTOR_ADAPTER.validate_python({"kind": "domain-tags", "preset": "ctrl"})
    mixture = selector.select(pool, Budget(tokens=9_000))
    assert mixture.tags is not None
    assert mixture.tags.special_tokens == ["<|long|>", "<|short|>", "<|small|>"]
