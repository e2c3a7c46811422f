"""The projektor selector: what it reads, chooses, reports and publishes; what predict, compare and plan answer."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from support import document_table
from typer.testing import CliRunner

from mixwright.cli import app
from mixwright.config import Settings
from mixwright.corpora import Corpus
from mixwright.errors import ConfigError, DataError, MixwrightError
from mixwright.indexes.encoders import load_encoder
from mixwright.indexes.vectors import ArrayVectors
from mixwright.jobs.ray_pool import ray_session
from mixwright.jobs.samples import find_embeddings, publish_sample
from mixwright.jobs.select import run_select
from mixwright.jobs.study import open_study
from mixwright.progress import NoProgress
from mixwright.results import read_runs
from mixwright.schemas.manifests import MixtureManifest
from mixwright.schemas.mixtures import Budget
from mixwright.schemas.training_runs import TrainingRun
from mixwright.selectors.pool import Pool
from mixwright.selectors.projektor.planning import plan_next
from mixwright.selectors.projektor.selector import Projektor
from mixwright.selectors.projektor.study import Study
from mixwright.selectors.requests import SelectRequest
from mixwright.service.app import create_app
from mixwright.store import Store

ENCODER = "hashing:48"
TOPICS = {
    "river": ["stone", "water", "bank", "ford", "reed"],
    "engine": ["piston", "wheel", "crank", "valve", "oil"],
    "music": ["violin", "sonata", "bow", "chord", "fugue"],
}
NAMES = list(TOPICS)
WANTED = np.asarray([0.6, 0.3, 0.1])
LARGE = dict.fromkeys(NAMES, 1_000_000)


def texts(topic: str, n: int, seed: int) -> list[str]:
    rng = np.random.default_rng([seed, NAMES.index(topic)])
    return [" ".join([topic, *rng.choice(TOPICS[topic], 6)]) + f" {seed}-{number}" for number in range(n)]


def corpora(n: int = 120, labels: bool = False) -> dict[str, pa.Table]:
    """A source for each topic, and a validation corpus with the shares WANTED of them."""
    made = {topic: texts(topic, n, 0) for topic in NAMES}
    made["wanted"] = [
        text for topic, share in zip(NAMES, WANTED, strict=True) for text in texts(topic, round(100 * share), 1)
    ]
    return {
        name: document_table(
            each,
            source=name,
            n_tokens=[10] * len(each),
            metadata=[json.dumps({"topic": text.split()[0]} if labels else {}) for text in each],
        )
        for name, each in made.items()
    }


def pool_of(tables: Mapping[str, pa.Table]) -> Pool:
    encoder = load_encoder(ENCODER)
    vectors = {name: ArrayVectors(encoder.encode(each["text"].to_pylist())) for name, each in tables.items()}
    return Pool.from_tables(tables, vectors=vectors, examples="wanted")


def true_loss(weights: np.ndarray, size: float) -> np.ndarray:
    """What a training scores: least at WANTED, and less with more data."""
    gap = (np.sqrt(np.atleast_2d(weights)) - np.sqrt(WANTED)) ** 2
    return (1 + 2 * gap.sum(axis=1)) * (size / 1000) ** -0.2


def runs(n: int = 14, sizes: tuple[int, ...] = (1000, 5000), seed: int = 0) -> tuple[TrainingRun, ...]:
    rng = np.random.default_rng(seed)
    mixtures = np.vstack([np.eye(3), rng.dirichlet(np.ones(3), n - 3)])
    return tuple(
        TrainingRun(
            dict(zip(NAMES, mixture.tolist(), strict=True)), size, float(true_loss(mixture, size)[0] + noise)
        )
        for size in sizes
        for mixture, noise in zip(mixtures, rng.normal(0, 0.005, n), strict=True)
    )


@pytest.fixture(scope="module")
def pool() -> Pool:
    return pool_of(corpora())


def study(pool: Pool, budget: Budget | None = None, **parameters: Any) -> Study:
    return Study.of(Projektor(**{"low": 0.0, **parameters}), pool, budget)


# Choosing


def test_without_results_the_shares_of_the_validation_set_are_found(pool: Pool) -> None:
    mixture = Projektor().select(pool, Budget(tokens=1000))
    found = {component.name: component.target_weight for component in mixture.components}
    np.testing.assert_allclose([found[name] for name in NAMES], WANTED, atol=0.05)
    assert mixture.warnings == (
        "there are no results: the mixture is the nearest to the validation set, no score is predicted",
    )
    assert mixture.report["metric"] is None
    assert all(each["mean"] is None for each in mixture.report["candidates"])


def test_with_results_the_best_score_is_found_and_predicted_at_another_size(pool: Pool) -> None:
    mixture = Projektor(results=runs(), low=0.0, size=20_000, declared_sizes=LARGE).select(
        pool, Budget(tokens=1000)
    )
    chosen, *others = mixture.report["candidates"]
    weights = np.asarray([chosen["weights"][name] for name in NAMES])
    np.testing.assert_allclose(weights, WANTED, atol=0.12)
    assert chosen["mean"] == pytest.approx(float(true_loss(weights, 20_000)[0]), rel=0.05)
    assert chosen["low"] < float(true_loss(weights, 20_000)[0]) < chosen["high"]
    assert all(chosen["mean"] <= other["mean"] + 1e-9 for other in others)
    assert {other["name"] for other in others} == {"uniform", "proportional", "best pilot", "least transport"}


def test_it_beats_random_mixtures_by_its_own_prediction(pool: Pool) -> None:
    found = study(pool, results=runs())
    drawn = np.random.default_rng(3).dirichlet(np.ones(3), 200)
    assert found.model is not None
    losses = found.model.predict(np.vstack([found.chosen, drawn])).mean
    assert losses[0] <= losses[1:].min() + 1e-6


def test_more_is_better_where_the_metric_says_so(pool: Pool) -> None:
    loss = study(pool, results=runs())
    upward = tuple(TrainingRun(run.weights, run.size, 5 - run.score) for run in runs())
    score = study(pool, results=upward, direction="maximize", low=None, high=5.0)
    np.testing.assert_allclose(score.chosen, loss.chosen, atol=1e-3)
    assert score.best_pilot is not None
    assert loss.best_pilot is not None
    assert score.best_pilot[1] == pytest.approx(5 - loss.best_pilot[1])


def test_caps_follow_what_is_there_and_what_is_declared(pool: Pool) -> None:
    # Each source has 1,200 tokens.
    tight = study(pool, Budget(tokens=3000), max_epochs=1.0)
    np.testing.assert_allclose(tight.caps, 0.4)
    assert tight.chosen.max() <= 0.4 + 1e-9
    wide = study(pool, Budget(tokens=3000), max_epochs=1.0, declared_sizes={"river": 10**6})
    np.testing.assert_allclose(wide.caps, [1.0, 0.4, 0.4])
    assert wide.chosen[0] > 0.5
    with pytest.raises(ConfigError, match="declared_sizes: lake is none of the sources river, engine, music"):
        study(pool, declared_sizes={"lake": 5})


def test_label_noise_is_seen_with_labels_alone() -> None:
    tables = corpora(labels=True)
    wrong = [json.dumps({"topic": NAMES[number % 3]}) for number in range(120)]
    noisy = tables["river"].set_column(
        tables["river"].schema.get_field_index("metadata"), "metadata", pa.array(wrong, pa.large_string())
    )
    pool = pool_of({"clean": tables["river"], "noisy": noisy, "wanted": tables["wanted"].slice(0, 60)})
    blind, seeing = study(pool), study(pool, label="topic")
    apart = blind.problem.values(np.eye(2))
    assert apart[0] == pytest.approx(apart[1])
    apart = seeing.problem.values(np.eye(2))
    assert apart[1] > apart[0] * 1.1
    assert seeing.chosen[0] > 0.9


def test_a_missing_label_names_source_and_field(pool: Pool) -> None:
    with pytest.raises(DataError, match="100 of 100 documents of wanted have no topic"):
        study(pool, label="topic")


def test_no_validation_set_and_foreign_runs_are_errors(pool: Pool) -> None:
    with pytest.raises(DataError, match="name a corpus of what the model will be judged on by validation"):
        study(Pool(pool.sources))
    with pytest.raises(DataError, match="run 1 has a share of lake"):
        study(pool, results=(TrainingRun({"lake": 1.0}, 10, 1.0),))
    with pytest.raises(ConfigError, match=r"low 3 is not below its high 2"):
        study(pool, results=runs(), low=3.0, high=2.0)


def test_sources_without_a_share_may_be_left_out_of_the_pool(pool: Pool) -> None:
    wider = tuple(TrainingRun({**run.weights, "lake": 0.0}, run.size, run.score) for run in runs())
    np.testing.assert_allclose(study(pool, results=wider).chosen, study(pool, results=runs()).chosen)


def test_one_size_predicts_that_size_and_says_so(pool: Pool) -> None:
    found = study(
        pool, Budget(tokens=100_000), results=runs(sizes=(1000,)), declared_sizes=dict.fromkeys(NAMES, 10**6)
    )
    assert found.predicted_size == 1000
    assert "the runs have one size only" in " ".join(found.warnings)


def test_what_lies_outside_of_the_runs_is_flagged(pool: Pool) -> None:
    inner = tuple(run for run in runs() if max(run.weights.values()) < 0.7)
    found = study(pool, results=inner)
    assert found.extrapolates(np.asarray([1.0, 0.0, 0.0]))
    assert not found.extrapolates(np.asarray([1 / 3, 1 / 3, 1 / 3]))


def test_plan_next_leaves_out_what_was_trained(pool: Pool) -> None:
    spread, informed = plan_next(study(pool), 6), plan_next(study(pool, results=runs()), 4)
    assert spread.shape == (6, 3)
    assert informed.shape == (4, 3)
    trained = np.asarray([[run.weights[name] for name in NAMES] for run in runs()])
    assert np.abs(informed[:, None] - trained).sum(axis=-1).min() > 1e-3


# The report


def test_the_report_says_what_the_study_says(pool: Pool) -> None:
    selector = Projektor(results=runs(), low=0.0)
    mixture = selector.select(pool, Budget(tokens=1000))
    found, report = Study.of(selector, pool, Budget(tokens=1000)), mixture.report
    assert found.model is not None
    assert [each["name"] for each in report["sources"]] == NAMES
    np.testing.assert_allclose(
        [each["transport"] for each in report["sources"]], found.problem.values(np.eye(3)), rtol=1e-6
    )
    assert len(report["runs"]) == 28
    gaps = [abs(each["predicted"] - each["score"]) for each in report["runs"] if each["size"] == 5000]
    auto = next(each for each in report["cross_validation"] if (each["predictor"], each["size"]) == ("auto", 5000))
    assert auto["mean_absolute_error"] == pytest.approx(np.mean(gaps))
    members = [each for each in report["cross_validation"] if each["size"] == 5000 and each["weight"]]
    assert sum(each["weight"] for each in members) == pytest.approx(1)
    assert report["projection"]["exponent"] == pytest.approx(0.2, abs=0.02)
    assert next(each["method"] for each in report["methods"]) == "projektor"
    best = min(each["mean"] for each in report["methods"] if each["mean"] is not None)
    assert report["methods"][0]["mean"] == pytest.approx(best, abs=0.01)
    json.dumps(report)


def test_the_tables_cover_the_simplex_and_every_source(pool: Pool) -> None:
    mixture = Projektor(results=runs(), low=0.0).select(pool, Budget(tokens=1000))
    surface, slices = mixture.tables["surface"], mixture.tables["slices"]
    assert surface.height == 861
    assert surface.select(f"weight:{name}" for name in NAMES).sum_horizontal().round(9).unique().to_list() == [1.0]
    best = surface.sort("mean").head(1)
    chosen = mixture.report["candidates"][0]
    assert chosen["mean"] <= best["mean"].item() + 0.01
    assert slices["source"].value_counts().sort("source").rows() == [(name, 41) for name in sorted(NAMES)]
    near = slices.filter(pl.col("source") == "river").sort((pl.col("share") - chosen["weights"]["river"]).abs())
    assert near["mean"][0] == pytest.approx(chosen["mean"], abs=0.02)


# The job


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    """One Ray for all tests of this file."""
    with ray_session(num_cpus=2):
        yield


@pytest.fixture
def published(store: Store, publish_corpus: Callable[..., Any]) -> Store:
    for name, table in corpora().items():
        publish_corpus(name, table)
    return store


def request(name: str = "blend", **parameters: Any) -> SelectRequest:
    selector = Projektor(**{"validation": "wanted", "encoder": ENCODER, **parameters})
    return SelectRequest(name=name, sources=NAMES, selector=selector, budget=Budget(tokens=1000))


def test_corpora_that_are_large_are_embedded_by_a_sample_with_the_same_answer(published: Store) -> None:
    sampled = run_select(published, request(pilot_rows=40, validation_rows=40), NoProgress())
    refs = [(each.kind, each.ref) for each in sampled.inputs]
    assert ("corpus", "river.sample-40@1") in refs
    assert ("embeddings", "river.sample-40.hashing-48@1") in refs
    assert ("corpus", "wanted@1") in refs
    run_select(published, request("whole"), NoProgress())
    # Now that the corpora are embedded whole, no sample is read, and the same documents stand for them.
    again = run_select(published, request("again", pilot_rows=40, validation_rows=40), NoProgress())
    assert not [each.ref for each in again.inputs if "sample" in each.ref]
    assert again.report["candidates"][0]["weights"] == pytest.approx(sampled.report["candidates"][0]["weights"])


def test_a_sample_is_published_once_and_follows_its_corpus(published: Store) -> None:
    corpus = Corpus.open(published, "river")
    first, second = (publish_sample(published, corpus, 30) for _ in range(2))
    assert first == second
    sample = Corpus.open(published, first.ref)
    ids = set(corpus.scan().collect()["id"].to_list())
    found = sample.scan().collect()["id"].to_list()
    assert len(found) == 30 == len(set(found) & ids)
    assert [(each.kind, each.ref) for each in first.inputs] == [("corpus", "river@1")]
    assert first.n_tokens == 300


def test_asking_without_embeddings_says_what_to_do(published: Store) -> None:
    selector = Projektor(validation="wanted", encoder=ENCODER)
    with pytest.raises(DataError, match="corpus river@1 is not embedded by hashing:48"):
        find_embeddings(published, NAMES, selector.requirements())


def write_table(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*NAMES, "size", "score"])
        writer.writerows([*run.weights.values(), run.size, run.score] for run in runs())


def test_a_table_at_the_command_line_gives_what_the_rows_give_by_request(published: Store, tmp_path: Path) -> None:
    write_table(tmp_path / "runs.csv")
    asked = request(results=read_runs(tmp_path / "runs.csv", NAMES), low=0.0)
    here = run_select(published, asked, NoProgress())
    sources = [flag for name in NAMES for flag in ("--source", name)]
    flags = ["--validation", "wanted", "--encoder", ENCODER, "--results", str(tmp_path / "runs.csv"), "--low", "0"]
    home = ["--home", str(published.home), "--json"]
    result = CliRunner().invoke(
        app, ["select", "projektor", *sources, *flags, "--name", "blend", "--tokens", "1000", *home]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["fingerprint"] == here.fingerprint
    predicted = CliRunner().invoke(
        app, ["predict", *sources, *flags, "--weights", "river=6,engine=3,music=1", "--size", "4000", *home]
    )
    assert predicted.exit_code == 0, predicted.output
    (answer,) = json.loads(predicted.stdout)["predictions"]
    assert answer["weights"] == pytest.approx(dict(zip(NAMES, WANTED.tolist(), strict=True)))
    assert answer["mean"] == pytest.approx(float(true_loss(WANTED, 4000)[0]), rel=0.05)
    for command in (["compare"], ["pilot", "plan", "--runs", "3"]):
        shown = CliRunner().invoke(app, [*command, *sources, *flags, *home[:2]])
        assert shown.exit_code == 0, shown.output
        assert "river" in shown.output


def test_declared_sizes_are_flags_too(published: Store) -> None:
    sources = [flag for name in NAMES for flag in ("--source", name)]
    common = [*sources, "--validation", "wanted", "--encoder", ENCODER, "--home", str(published.home), "--json"]
    result = CliRunner().invoke(app, ["predict", *common, "--declared-sizes", "river=5_000", "--size", "9600"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["chosen"][0]["weights"]["engine"] <= 0.5 + 1e-6
    wrong = CliRunner().invoke(app, ["predict", *common, "--declared-sizes", "river"])
    assert isinstance(wrong.exception, ConfigError)
    assert "--declared-sizes river: write NAME=VALUE" in str(wrong.exception)
    number = CliRunner().invoke(app, ["predict", *common, "--declared-sizes", "river=many"])
    assert isinstance(number.exception, MixwrightError)


# REST


@pytest.fixture
def client(published: Store) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=published.home), run_worker=False)) as client:
        yield client


def test_predictions_over_rest_are_those_of_the_study(published: Store, client: TestClient) -> None:
    manifest = run_select(published, request(results=runs(), low=0.0), NoProgress())
    assert isinstance(manifest, MixtureManifest)
    weights = {"river": 0.2, "engine": 0.2, "music": 0.6}
    body = {"mixture": "blend", "weights": [weights, {"river": 2, "music": 2}], "sizes": [5000, 40_000]}
    answer = client.post("/v1/predict/mixture", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    selector = Projektor(validation="wanted", encoder=ENCODER, results=runs(), low=0.0)
    own = open_study(published, NAMES, selector, Budget(tokens=1000), NoProgress())
    assert own.model is not None
    by_size = {(each["size"], each["weights"]["river"]): each for each in found["predictions"]}
    assert len(by_size) == 4
    for size in (5000, 40_000):
        forecast = own.model.predict(np.asarray([[0.2, 0.2, 0.6], [0.5, 0.0, 0.5]]), float(size))
        assert by_size[size, 0.2]["mean"] == pytest.approx(forecast.mean[0], rel=1e-6)
        assert by_size[size, 0.5]["sd"] == pytest.approx(forecast.deviation[1], rel=1e-6)
    assert found["chosen"][0]["weights"] == pytest.approx(manifest.report["candidates"][0]["weights"], abs=1e-6)
    assert found["metric"] == {"name": "score", "direction": "minimize", "low": 0.0, "high": None}
    # The same pool by its parts: the corpora are embedded now.
    rows = [{"weights": run.weights, "size": run.size, "score": run.score} for run in runs()]
    parts = {"validation": "wanted", "encoder": ENCODER, "results": rows, "low": 0}
    by_parts = client.post(
        "/v1/predict/mixture", json={"sources": NAMES, "selector": parts, "weights": [weights], "sizes": [5000]}
    )
    assert by_parts.status_code == 200, by_parts.text
    assert by_parts.json()["predictions"][0]["mean"] == pytest.approx(by_size[5000, 0.2]["mean"], rel=1e-6)


BAD_QUESTIONS: list[tuple[dict[str, Any], str]] = [
    ({"mixture": "blend", "weights": [{"lake": 1}]}, "weights: lake is none of the sources river, engine, music"),
    ({"mixture": "blend", "weights": [{"river": 0}]}, "give shares of 0 or more, one of them above 0"),
    ({"mixture": "blend", "weights": [{"river": -1}]}, "greater than or equal to 0"),
    ({"mixture": "blend", "sources": ["river"]}, "mixture has sources and selector of its own"),
    ({"sources": ["river"]}, "name a mixture by projektor, or give sources and selector"),
    ({"mixture": "plain"}, "mixture plain@1 was not selected by projektor"),
    ({"sources": ["river"], "selector": {"validation": "engine"}}, "corpus river@1 is not embedded by"),
]


def test_bad_questions_get_one_clear_line(published: Store, client: TestClient) -> None:
    run_select(published, request(), NoProgress())
    plain = {"name": "plain", "sources": NAMES, "selector": {"kind": "uniform"}, "budget": {"tokens": 500}}
    run_select(published, SelectRequest.model_validate(plain), NoProgress())
    for body, message in BAD_QUESTIONS:
        answer = client.post("/v1/predict/mixture", json=body)
        assert answer.status_code == 422, body
        assert message in answer.json()["detail"]


def test_a_mixture_that_is_not_there_is_not_found(client: TestClient) -> None:
    assert client.post("/v1/predict/mixture", json={"mixture": "nothing"}).status_code == 404
