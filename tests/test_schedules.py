"""Stages: what each holds against counts worked out by hand, by brute force and document by document."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import document_table

from mixwright.errors import ConfigError, ShortfallError
from mixwright.schemas.mixtures import Budget
from mixwright.selectors.growth import GrowthCurve, fit_growth_curve, plateau
from mixwright.selectors.mixture import Mixture
from mixwright.selectors.pool import Pool
from mixwright.selectors.schedules import capped_counts, dmt_counts, stage_sizes
from mixwright.selectors.stages import PlannedStage, mix_stages


def table(name: str, n_tokens: list[int]) -> pa.Table:
    return document_table([f"{name} {i}" for i in range(len(n_tokens))], source=name, n_tokens=n_tokens)


def lengths(n: int, mean: int, seed: int) -> list[int]:
    return (np.random.default_rng(seed).integers(1, 2 * mean, n)).tolist()


TABLES = {"a": table("a", lengths(300, 40, 0)), "b": table("b", lengths(80, 90, 1)), "c": table("c", [25] * 200)}
POOL = Pool.from_tables(TABLES)
SIZES = {name: sum(each["n_tokens"].to_pylist()) for name, each in TABLES.items()}


def served(mixture: Mixture, tables: dict[str, pa.Table]) -> list[dict[str, list[int]]]:
    """The row numbers of each component in each stage, in order, by walking through every ordinal."""
    stages = []
    for stage in mixture.stages:
        rows = {}
        for number, component in enumerate(mixture.components):
            ordinals = np.arange(stage.starts[number], stage.starts[number] + stage.counts[number])
            found, _ = mixture.selections[number].served(ordinals, mixture.seed, number)
            rows[component.name] = found.tolist()
        stages.append(rows)
    return stages


def tokens(name: str, rows: list[int], tables: dict[str, pa.Table] = TABLES) -> int:
    counts = tables[name]["n_tokens"].to_pylist()
    return sum(counts[row] for row in rows)


def mixed(budget: Budget, *stages: tuple[str, int, list[float]], max_epochs: float = 4.0) -> Mixture:
    planned = [PlannedStage(name, False, size, np.asarray(weights)) for name, size, weights in stages]
    return mix_stages(POOL, budget, planned, selector="test", max_epochs=max_epochs, seed=3)


# Token shares of stages


def test_stages_have_their_tokens_and_go_on_where_the_last_one_ended() -> None:
    plan = [("one", 12_000, [0.5, 0.25, 0.25]), ("two", 6_000, [0.2, 0.8, 0.0]), ("three", 2_000, [0.5, 0.0, 0.5])]
    mixture = mixed(Budget(tokens=20_000), *plan)
    walked = served(mixture, TABLES)
    seen: dict[str, list[int]] = {name: [] for name in TABLES}
    for (name, size, weights), stage, rows in zip(plan, mixture.stages, walked, strict=True):
        assert stage.name == name
        assert stage.n_rows == sum(map(len, rows.values()))
        assert stage.n_tokens == sum(tokens(each, found) for each, found in rows.items())
        for source, weight in zip(TABLES, weights, strict=True):
            longest = max(TABLES[source]["n_tokens"].to_pylist())
            assert abs(tokens(source, rows[source]) - weight * size) <= longest
            assert bool(rows[source]) == (weight > 0)
            seen[source] += rows[source]
    for name, rows in seen.items():
        n = TABLES[name].num_rows
        # Nothing is repeated before the pass is used up, whatever the stage.
        for start in range(0, len(rows), n):
            part = rows[start : start + n]
            assert len(set(part)) == len(part)
    assert 0 <= 20_000 - mixture.n_tokens < min(min(each["n_tokens"].to_pylist()) for each in TABLES.values()) + 1


def test_each_source_is_cut_where_it_is_nearest_to_its_shares() -> None:
    plan = [("one", 6_100, [0.5, 0.25, 0.25]), ("two", 3_300, [0.2, 0.5, 0.3]), ("three", 1_700, [0.4, 0.2, 0.4])]
    mixture = mixed(Budget(tokens=11_100), *plan)
    walked = served(mixture, TABLES)
    for number, component in enumerate(mixture.components):
        lengths_served = [tokens(component.name, [row]) for rows in walked for row in rows[component.name]]
        passed = np.concatenate([[0], np.cumsum(lengths_served)])
        shares = np.cumsum([size * weights[number] for _, size, weights in plan])
        for stage, share in zip(mixture.stages[:-1], shares[:-1], strict=True):
            target = share / shares[-1] * component.n_tokens
            end = stage.starts[number] + stage.counts[number]
            assert abs(passed[end] - target) == np.abs(passed - target).min()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_bound_holds_for_any_stages(data: st.DataObject) -> None:
    n_stages = data.draw(st.integers(1, 5))
    sizes = data.draw(st.lists(st.integers(1_500, 9_000), min_size=n_stages, max_size=n_stages))
    rows = st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any)
    weights = [np.asarray(data.draw(rows), dtype=float) for _ in range(n_stages)]
    plan = [
        (f"s{i}", size, (w / w.sum()).tolist()) for i, (size, w) in enumerate(zip(sizes, weights, strict=True))
    ]
    total = sum(sizes)
    mixture = mixed(Budget(tokens=total), *plan, max_epochs=1000)
    assert total - sum(SIZES.values()) < mixture.n_tokens <= total
    walked = served(mixture, TABLES)
    for component in mixture.components:
        number = list(TABLES).index(component.name)
        shares = np.asarray([size * weights[number] for _, size, weights in plan])
        longest = max(TABLES[component.name]["n_tokens"].to_pylist())
        mine = np.asarray([tokens(component.name, rows[component.name]) for rows in walked])
        assert ((shares > 0) == np.asarray([len(rows[component.name]) > 0 for rows in walked])).all()
        if shares[shares > 0].min() >= longest:
            assert np.abs(mine - component.n_tokens * shares / shares.sum()).max() <= longest


def test_a_source_in_a_stage_by_a_hair_has_a_document_there() -> None:
    mixture = mixed(Budget(tokens=8_000), ("one", 4_000, [0.5, 0.5, 0]), ("two", 4_000, [0.993, 0.007, 0]))
    assert mixture.components[1].name == "b"
    assert min(stage.counts[1] for stage in mixture.stages) >= 1


def test_documents_are_shared_exactly() -> None:
    plan = [("one", 100, [0.5, 0.25, 0.25]), ("two", 51, [0.0, 0.5, 0.5])]
    mixture = mixed(Budget(documents=151), *plan)
    mean = {name: SIZES[name] / each.num_rows for name, each in TABLES.items()}
    for (_, size, weights), stage in zip(plan, mixture.stages, strict=True):
        assert stage.n_rows == size == sum(stage.counts)
        wanted = np.asarray([weight / mean[name] for name, weight in zip(TABLES, weights, strict=True)])
        assert np.abs(np.asarray(stage.counts) - size * wanted / wanted.sum()).max() < 1


def test_epochs_are_counted_over_all_stages() -> None:
    mixture = mixed(
        Budget(tokens=10_000), ("one", 5_000, [0, 0.5, 0.5]), ("two", 5_000, [0.2, 0, 0.8]), max_epochs=1
    )
    by_name = {component.name: component for component in mixture.components}
    # c has 5,000 tokens: 2,500 of them are gone before stage two asks for 4,000.
    assert by_name["c"].n_tokens == 5_000
    assert by_name["c"].epochs == 1
    assert mixture.warnings == ("c is capped at 1 epochs: in stage two it serves 50.0% instead of 80.0%",)
    assert mixture.report["stages"][1]["components"][1]["epochs"] == 1


@pytest.mark.parametrize("unit", ["tokens", "documents"])
def test_too_much_names_the_source_and_the_largest_budget(unit: str) -> None:
    def plan(total: int) -> Mixture:
        one, two = stage_sizes([0.5, 0.5], total).tolist()
        stages = [("one", one, [0.5, 0, 0.5]), ("two", two, [0, 0, 1.0])]
        return mixed(Budget(**{unit: total}), *stages, max_epochs=2)

    with pytest.raises(ShortfallError, match=r"stage .* and c runs out first: ask for at most") as caught:
        plan(100_000 if unit == "tokens" else 2_000)
    largest = caught.value.largest_budget
    assert caught.value.source == "c"
    assert largest is not None
    if unit == "tokens":
        # c gives 10,000 tokens in two passes: a quarter of the budget and then half of it.
        assert largest == pytest.approx(10_000 / 0.75, abs=2)
    plan(largest)
    with pytest.raises(ShortfallError):
        plan(largest + 2)


def test_a_source_that_earlier_stages_used_up_is_named() -> None:
    stages = [("one", 5_000, [0, 0, 1.0]), ("two", 3_000, [0.9, 0, 0.1])]
    with pytest.raises(ShortfallError, match=r"stage two .* c runs out first: ask for at most") as caught:
        mixed(Budget(tokens=8_000), *stages, max_epochs=1)
    assert caught.value.source == "c"


def test_a_share_smaller_than_a_document_is_an_error() -> None:
    with pytest.raises(
        ShortfallError, match=r"share of c in stage two is 10 tokens, .* has 25: raise the budget to"
    ):
        mixed(Budget(tokens=5_000), ("one", 4_000, [0.5, 0.5, 0]), ("two", 1_000, [0.99, 0, 0.01]))
    with pytest.raises(ShortfallError, match="share of b in stage two is no document: raise the budget or leave"):
        mixed(Budget(documents=50), ("one", 48, [0.5, 0.5, 0]), ("two", 2, [0.6, 0.3, 0.1]))


# Recipes


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5000), st.booleans()), min_size=1, max_size=8),
    st.sampled_from([1 / 256, 1 / 64, 1 / 16, 0.25, 1.0]),
)
def test_dmt_serves_all_and_rehearses_a_fraction(sources: list[tuple[int, bool]], k: float) -> None:
    documents = np.asarray([n for n, _ in sources])
    special = np.asarray([is_special for _, is_special in sources])
    first, second = dmt_counts(documents, special, k)
    n_special = sum(n for n, is_special in sources if is_special)
    assert first.tolist() == [n if is_special else 0 for n, is_special in sources]
    assert second[~special].tolist() == documents[~special].tolist()
    assert second[special].sum() == round(k * n_special)
    assert (np.abs(second[special] - k * documents[special]) <= 1.5).all()


def test_dmt_of_the_published_sizes() -> None:
    # 110,000 answers to GSM8K, 20,000 of Code Alpaca, 90,000 of ShareGPT: 1/256 of the first two is 508.
    counts = dmt_counts(np.asarray([110_000, 20_000, 90_000]), np.asarray([True, True, False]), 1 / 256)
    assert counts.tolist() == [[110_000, 20_000, 0], [430, 78, 90_000]]


def brute_force_caps(caps: list[int], total: int) -> list[int]:
    """One document at a time, to whichever source has the fewest and has room."""
    counts = [0] * len(caps)
    for _ in range(total):
        open_ = [i for i, cap in enumerate(caps) if counts[i] < cap]
        counts[min(open_, key=lambda i: counts[i])] += 1
    return counts


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.data())
def test_capped_shares_are_those_of_dealing_one_by_one(caps: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(1, sum(caps)))
    counts = capped_counts(np.asarray(caps), total)
    assert sorted(counts.tolist()) == sorted(brute_force_caps(caps, total))
    assert counts.sum() == total
    assert (counts <= caps).all()


def test_the_reconstruction_of_ten_abilities() -> None:
    # Two abilities at 64 and one at 1,000 documents of 10,000: the seven others have what is left, equally.
    caps = np.asarray([64, 64, 1000, *[10_000] * 7])
    counts = capped_counts(caps, 10_000)
    assert counts[:3].tolist() == [64, 64, 1000]
    assert set(counts[3:].tolist()) == {1267, 1268}


@pytest.mark.parametrize(
    "curve", [GrowthCurve(0.71, 0.6, 0.35), GrowthCurve(55.0, 30.0, 1.4), GrowthCurve(-1.5, 0.2, 0.08)]
)
def test_a_growth_curve_is_recovered(curve: GrowthCurve) -> None:
    grid = [1, 4, 16, 64, 256, 1000]
    found = fit_growth_curve([(n, curve.score(n)) for n in grid])
    assert found == pytest.approx(curve, rel=1e-4)
    gains = [curve.score(b) - curve.score(a) for a, b in pairwise(grid)]
    for small in (1e-3, 0.01, 0.1):
        expected = next((n for n, gain in zip(grid, gains, strict=False) if gain < small), None)
        assert plateau(found, grid, small) == expected


def test_scores_that_fall_have_their_plateau_at_once() -> None:
    points = [(1, 0.5), (4, 0.45), (16, 0.4)]
    assert plateau(fit_growth_curve(points), [1, 4, 16], 0.01) == 1
    with pytest.raises(ConfigError, match="there are 2 sizes: give the score at three"):
        fit_growth_curve([(1, 0.5), (4, 0.4), (4, 0.5)])


def test_sizes_sum_to_the_budget() -> None:
    assert stage_sizes([0.9, 0.1], 10_005).tolist() == [9005, 1000]
    assert stage_sizes([1, 1, 1], 10).tolist() == [4, 3, 3]


def stage_shares(mixture: Mixture) -> list[dict[str, Any]]:
    return [{part["name"]: part["weight"] for part in stage["components"]} for stage in mixture.report["stages"]]


def test_the_report_of_stages_is_what_is_served() -> None:
    plan = [("one", 12_000, [0.5, 0.25, 0.25]), ("two", 6_000, [0.2, 0.8, 0.0])]
    mixture = mixed(Budget(tokens=18_000), *plan)
    for reported, rows in zip(mixture.report["stages"], served(mixture, TABLES), strict=True):
        for part in reported["components"]:
            assert part["n_rows"] == len(rows[part["name"]])
            assert part["n_tokens"] == tokens(part["name"], rows[part["name"]])
        assert sum(part["weight"] for part in reported["components"]) == pytest.approx(1)
        assert reported["share"] == pytest.approx(reported["n_tokens"] / mixture.n_tokens)
    last = {part["name"]: part["epochs"] for part in mixture.report["stages"][1]["components"]}
    for component in mixture.components:
        if component.name in last:
            assert last[component.name] == pytest.approx(component.n_tokens / SIZES[component.name])
    assert stage_shares(mixture)[1] == pytest.approx({"a": 0.2, "b": 0.8}, abs=0.02)
