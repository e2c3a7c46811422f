"""The pilot job: trainings by every evaluator against models made by hand, kills, workers, refusals."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from support import Recorder, document_table, identities, kill_half_way, stat_field, wait_for
from typer.testing import CliRunner

from mixwright.cli import app
from mixwright.config import Settings
from mixwright.corpora import Corpus
from mixwright.errors import ConfigError, ConvergenceError, DataError, MixwrightError, ShortfallError
from mixwright.indexes.embeddings import Embeddings
from mixwright.jobs import pilot, train_command_guard
from mixwright.jobs.embed import run_embed
from mixwright.jobs.inputs import inputs_state
from mixwright.jobs.pilot import run_pilot
from mixwright.jobs.pilot_workers import PilotRun, evenly, mixture_rows, pilot_mixture, served_rows
from mixwright.jobs.ray_pool import ray_session
from mixwright.jobs.run import REQUEST_ADAPTER, run_request
from mixwright.jobs.select import run_select
from mixwright.jobs.train_command import TrainCommand
from mixwright.language_models.ngram import NgramModel
from mixwright.progress import NoProgress, Progress
from mixwright.results import Results
from mixwright.schemas.manifests import ResultsManifest
from mixwright.schemas.requests import EmbedRequest, PilotRequest
from mixwright.selectors.pool import Pool
from mixwright.selectors.projektor import linear_probe as probe_module
from mixwright.selectors.projektor.linear_probe import linear_probe
from mixwright.selectors.requests import SelectRequest
from mixwright.selectors.streams import MixtureStream, to_ndjson
from mixwright.service.app import create_app
from mixwright.store import Store

ENCODER = "hashing:48"
MIXTURES = [{"sea": 1.0}, {"bread": 1.0}, {"sea": 0.5, "bread": 0.5}]
WORDS = {
    "sea": ["ship", "sail", "wave", "storm", "harbour", "anchor", "deck", "mast", "tide", "gull"],
    "bread": ["flour", "yeast", "dough", "oven", "crust", "loaf", "salt", "water", "knead", "rise"],
}


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    """One Ray for all tests of this file."""
    with ray_session(num_cpus=2):
        yield


def documents(topic: str, n: int, seed: int = 0, noise: float = 0.2) -> Any:
    """``n`` documents of 5 to 15 words of a topic, some from the other, with the topic as metadata."""
    rng = np.random.default_rng([seed, len(topic)])
    other = next(each for each in WORDS if each != topic)
    texts = [
        " ".join(
            str(rng.choice(WORDS[other if rng.random() < noise else topic])) for _ in range(rng.integers(5, 15))
        )
        + f" {seed} {number}"
        for number in range(n)
    ]
    return document_table(texts, source=topic, metadata=[json.dumps({"topic": topic})] * n)


@pytest.fixture
def corpora(store: Store, publish_corpus: Any) -> None:
    """Sources sea and bread, and held-out, half of each."""
    for topic in WORDS:
        publish_corpus(topic, documents(topic, 120), shard_rows=50)
    held_out = [documents(topic, 15, seed=9).to_pydict() for topic in WORDS]
    both = {field: held_out[0][field] + held_out[1][field] for field in ("text", "metadata")}
    publish_corpus("held-out", document_table(both["text"], metadata=both["metadata"]))


def request(**fields: Any) -> PilotRequest:
    defaults = {
        "name": "pilots",
        "sources": ["sea", "bread"],
        "validation": "held-out",
        "evaluator": "ngram",
        "mixtures": MIXTURES,
        "sizes": [100, 300],
        "order": 4,
    }
    return PilotRequest.model_validate(defaults | fields)


def run(store: Store, progress: Progress = NoProgress(), **fields: Any) -> ResultsManifest:  # noqa: B008
    return run_pilot(store, request(**fields), progress)


def runs_of(store: Store, ref: str) -> Any:
    """The table without the seconds."""
    return Results.open(store, ref).table().drop("seconds")


def texts_of(store: Store, name: str) -> list[str]:
    texts: list[str] = Corpus.open(store, name).scan().collect()["text"].to_list()
    return texts


# The n-gram evaluator


@pytest.mark.usefixtures("corpora")
def test_each_run_is_a_model_of_its_own_mixture(store: Store) -> None:
    progress = Recorder()
    manifest = run(store, progress, repeats=2)
    assert (progress.total, progress.done) == (12, 12)
    assert (manifest.ref, manifest.n_rows, manifest.sources) == ("pilots@1", 12, ["sea", "bread"])
    assert (manifest.metric.name, manifest.metric.direction, manifest.metric.low) == (
        "bits_per_byte",
        "minimize",
        0,
    )
    assert [(each.kind, each.ref) for each in manifest.inputs] == [
        ("corpus", "sea@1"),
        ("corpus", "bread@1"),
        ("corpus", "held-out@1"),
    ]
    table = Results.open(store, "pilots").table()
    assert table.columns == ["weight:sea", "weight:bread", "size", "score", "seed", "seconds"]
    assert table["size"].to_list() == [100, 100, 300, 300] * 3
    assert table["seed"].to_list() == [0, 1] * 6
    # By hand: what a stream of the same mixture serves, through the model.
    select = SelectRequest.model_validate(
        {
            "name": "by-hand",
            "sources": ["sea", "bread"],
            "selector": {"kind": "uniform", "max_epochs": 4, "seed": 1},
            "budget": {"tokens": 300},
        }
    )
    run_select(store, select, NoProgress())
    served = [text for part in MixtureStream.open(store, "by-hand").read() for text in part["text"].to_pylist()]
    expected = NgramModel.train(served, 4).bits_per_byte(texts_of(store, "held-out"))
    assert table["score"][11] == pytest.approx(expected, rel=1e-12)
    scores = table["score"].to_numpy().reshape(3, 2, 2)
    assert (scores[:, 1] < scores[:, 0]).all()
    assert (scores[2, 1] < scores[:2, 1]).all()
    assert len(set(table["score"])) == 12


@pytest.mark.usefixtures("corpora")
def test_likelihoods_are_those_of_the_single_sources_at_the_largest_size(store: Store) -> None:
    manifest = run(store, repeats=2)
    assert manifest.likelihoods
    found = Results.open(store, "pilots").likelihoods()
    table = Results.open(store, "pilots").table()
    assert found is not None
    assert found.dtype == np.float32
    assert found.shape == (sum(len(text) for text in texts_of(store, "held-out")), 2)
    bits = -np.log2(found.astype(np.float64)).mean(axis=0)
    np.testing.assert_allclose(bits, table["score"].to_numpy()[[2, 6]], rtol=1e-5)
    assert not run(store, mixtures=MIXTURES[1:], name="some").likelihoods
    assert Results.open(store, "some").likelihoods() is None


def test_units_are_sampled_evenly() -> None:
    np.testing.assert_array_equal(evenly(np.arange(10.0), 10), np.arange(10))
    np.testing.assert_array_equal(evenly(np.arange(10.0), 4), [0, 2, 5, 7])


@pytest.mark.usefixtures("corpora")
def test_rows_are_those_of_the_stream_in_its_order(store: Store) -> None:
    pool = Pool.open(store, ["sea", "bread"])
    mixture = pilot_mixture(pool, PilotRun("run", (0.5, 0.5), 3000, 7), "tokens", 4.0)
    select = SelectRequest.model_validate(
        {
            "name": "by-hand",
            "sources": ["sea", "bread"],
            "selector": {"kind": "uniform", "max_epochs": 4, "seed": 7},
            "budget": {"tokens": 3000},
        }
    )
    run_select(store, select, NoProgress())
    expected = b"".join(to_ndjson(table) for table in MixtureStream.open(store, "by-hand").read())
    assert b"".join(to_ndjson(table) for table in mixture_rows(pool, mixture)) == expected
    served = Counter(json.loads(line)["id"] for line in expected.splitlines())
    counted: Counter[str] = Counter()
    for source, rows, counts in served_rows(pool, mixture):
        counted.update(dict(zip(source.reader(rows)["id"].to_pylist(), counts.tolist(), strict=True)))
    assert counted == served
    assert max(served.values()) > 1


# The linear probe


@pytest.mark.usefixtures("corpora")
def test_the_linear_probe_learns_the_classes_of_its_mixture(store: Store, publish_corpus: Any) -> None:
    from sklearn.linear_model import LogisticRegression

    fields = {"evaluator": "linear_probe", "label": "topic", "encoder": ENCODER, "unit": "documents"}
    manifest = run(store, **fields, sizes=[40, 160])
    assert (manifest.metric.name, manifest.metric.direction) == ("accuracy", "maximize")
    assert [each.ref for each in manifest.inputs if each.kind == "embeddings"] == [
        f"{name}.hashing-48@1" for name in ("sea", "bread", "held-out")
    ]
    scores = runs_of(store, "pilots")["score"].to_numpy().reshape(3, 2)
    # A single class is what half of the validation documents are.
    np.testing.assert_array_equal(scores[:2], 0.5)
    assert (scores[2] > 0.85).all()
    likelihoods = Results.open(store, "pilots").likelihoods()
    np.testing.assert_array_equal(likelihoods, np.repeat([[1, 0], [0, 1]], 15, axis=0))
    # By hand: copies of the documents instead of weights.
    pool = Pool.open(store, ["sea", "bread"])
    mixture = pilot_mixture(pool, PilotRun("run", (0.5, 0.5), 160, 0), "documents", 4.0)
    vectors, labels = [], []
    for source, rows, counts in served_rows(pool, mixture):
        copies = np.repeat(rows, counts)
        vectors.append(Embeddings.open(store, f"{source.name}.hashing-48").rows(copies))
        labels += [source.name] * len(copies)
    assert len(labels) == 160
    model = LogisticRegression(C=probe_module._INVERSE_PENALTY, max_iter=1000).fit(np.concatenate(vectors), labels)
    asked = Embeddings.open(store, "held-out.hashing-48").matrix()
    assert scores[2, 1] == model.score(asked, ["sea"] * 15 + ["bread"] * 15)


@pytest.mark.usefixtures("corpora")
def test_only_documents_that_are_served_are_embedded_with_the_same_scores(store: Store) -> None:
    fields = {
        "evaluator": "linear_probe",
        "label": "topic",
        "encoder": ENCODER,
        "unit": "documents",
        "sizes": [10, 20],
    }
    manifest = run(store, name="few", **fields)
    embedded = [each.ref for each in manifest.inputs if each.kind == "embeddings"]
    assert [ref.partition("-")[0] for ref in embedded] == ["sea.pilot", "bread.pilot", "held"]
    part = Embeddings.open(store, embedded[0])
    assert len(part) == 20
    # Once the corpora are embedded whole, a job of another name reads those, and scores the same.
    for name in ("sea", "bread"):
        run_embed(store, EmbedRequest(corpus=name, encoder=ENCODER), NoProgress())
    again = run(store, name="whole", **fields)
    assert "sea.hashing-48@1" in [each.ref for each in again.inputs if each.kind == "embeddings"]
    assert runs_of(store, "whole")["score"].to_list() == runs_of(store, "few")["score"].to_list()


@pytest.mark.usefixtures("corpora")
def test_documents_without_a_label_are_left_out_and_told(store: Store, publish_corpus: Any) -> None:
    table = documents("bread", 40, seed=3).to_pydict()
    table["metadata"] = ['{"topic": "bread"}'] * 20 + ["{}"] * 10 + ['{"topic": " "}'] * 10
    publish_corpus("partly", document_table(table["text"], metadata=table["metadata"]))
    publish_corpus("other", document_table(["one two three", "four five six"]))
    fields = {
        "evaluator": "linear_probe",
        "label": "topic",
        "encoder": ENCODER,
        "unit": "documents",
        "sizes": [40],
    }
    manifest = run(store, **fields, sources=["sea", "partly"], mixtures=[{"sea": 0.5, "partly": 0.5}])
    assert "20 of 40 documents of partly@1 have no 'topic': they are left out" in manifest.warnings
    with pytest.raises(DataError, match="no document of other@1 has a label 'topic'"):
        run(store, **fields, sources=["sea", "other"], mixtures=[{"sea": 1}])
    manifest = run(store, **fields, sources=["sea"], mixtures=[{"sea": 1}], name="one")
    assert "no source has the class 'bread' of held-out@1: it cannot be learnt" in manifest.warnings


def test_the_probe_alone() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 4)) + np.repeat(np.eye(4)[:3] * 3, 10, axis=0)
    labels = ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    counts = rng.integers(1, 4, size=30)
    truth = ["a", "b", "c", "never"]
    asked = np.vstack([np.eye(4)[:3] * 3, np.ones(4)])
    found = linear_probe(vectors, labels, counts, asked, truth)
    copies = linear_probe(
        np.repeat(vectors, counts, axis=0),
        np.repeat(labels, counts).tolist(),
        np.ones(counts.sum(), dtype=np.int64),
        asked,
        truth,
    )
    assert found.accuracy == copies.accuracy == 0.75
    np.testing.assert_allclose(found.likelihoods, copies.likelihoods, atol=1e-4)
    assert found.likelihoods[3] == 0
    with pytest.raises(DataError, match="to train on"):
        linear_probe(vectors[:0], [], counts[:0], asked, truth)
    with pytest.raises(DataError, match="to validate on"):
        linear_probe(vectors, labels, counts, asked[:0], [])


def test_a_probe_that_does_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_ITERATIONS", 1)
    vectors = np.random.default_rng(0).normal(size=(20, 3)) * [1e3, 1, 1e-3]
    with pytest.raises(ConvergenceError, match="1 iterations on 20 documents"):
        linear_probe(vectors, ["a", "b"] * 10, np.ones(20, dtype=np.int64), vectors, ["a", "b"] * 10)


# The command


TRAIN = """
import json, os, sys
mixture, rows, validation, size, seed, score = sys.argv[1:]
about = json.load(open(mixture))
ids = [json.loads(line)["id"] for line in open(rows, encoding="utf-8")]
held_out = [json.loads(line)["text"] for line in open(validation, encoding="utf-8")]
assert about["size"] == int(size) and about["seed"] == int(seed) and "RAY_JOB_ID" not in os.environ
print(json.dumps([about, len(ids), len(held_out), os.getcwd()]))
json.dump({"score": len(ids) + len(held_out) / 100}, open(score, "w"))
"""


def command(tmp_path: Path, code: str, arguments: str = "") -> dict[str, Any]:
    """Fields of a request that runs some Python."""
    path = tmp_path / "train.py"
    path.write_text(code)
    return {"evaluator": "command", "train_command": shlex.join([sys.executable, str(path)]) + " " + arguments}


@pytest.mark.usefixtures("corpora")
def test_a_program_gets_the_mixture_and_gives_the_score(store: Store, tmp_path: Path) -> None:
    fields = command(tmp_path, TRAIN, "{mixture} {rows} {validation} {size} {seed} {score}")
    metric = {"name": "count", "direction": "maximize", "high": 3}
    manifest = run(store, **fields, metric=metric, sizes=[10], unit="documents", seed=5)
    assert (manifest.metric.name, manifest.evaluator, manifest.likelihoods) == ("count", "command", False)
    assert runs_of(store, "pilots")["score"].to_list() == [10.3] * 3
    assert manifest.warnings[-1].startswith("3 of 3 scores are outside of -inf to 3 (10.3, say)")
    folder = store.directory(manifest)
    assert sorted(path.name for path in folder.iterdir()) == [
        "logs",
        "manifest.json",
        "marks",
        "runs.parquet",
        "shards",
    ]
    about, *counts, cwd = json.loads((folder / "logs" / "run-00002.stdout").read_text())
    assert about == {
        "weights": {"sea": 0.5, "bread": 0.5},
        "sources": {"sea": "sea@1", "bread": "bread@1"},
        "size": 10,
        "unit": "documents",
        "seed": 5,
    }
    assert (counts, cwd) == ([10, 30], str(Path.cwd()))


@pytest.mark.usefixtures("corpora")
def test_a_score_may_be_the_last_line_that_is_printed(store: Store, tmp_path: Path) -> None:
    manifest = run(store, **command(tmp_path, "print('step 1')\nprint(0.25)\nprint()"), sizes=[20])
    assert runs_of(store, manifest.ref)["score"].to_list() == [0.25] * 3
    assert manifest.metric.name == "score"


@pytest.mark.usefixtures("corpora")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import sys; sys.exit('out of\\nluck')",
            r"run-00000: the train command ended with exit status 1 \(luck\)",
        ),
        ("import os; os.kill(os.getpid(), 9)", r"exit status 137 \(nothing on standard error\)"),
        ("print('loss: 3')", "run-00000: the train command printed last 'loss: 3': write one finite number"),
        ("print('nan')", "printed last 'nan'"),
        ("print('{\"loss\": 1}')", "printed last"),
        ("print('true')", "printed last 'true'"),
        ("print('1' * 5000)", "printed last"),
        ("pass", "the train command wrote no score"),
        ("import sys; open(sys.argv[1], 'w').write('[1]'); print(3)", r"the train command wrote '\[1\]'"),
    ],
)
def test_a_program_that_fails_is_told_with_its_run(store: Store, tmp_path: Path, code: str, message: str) -> None:
    fields = command(tmp_path, code, "{score}")
    with pytest.raises(MixwrightError, match=message) as caught:
        run(store, **fields, sizes=[10], mixtures=[{"sea": 1}])
    assert "\n" not in str(caught.value)
    log = Path(str(caught.value).rpartition("(its output: ")[2].removesuffix(".*)"))
    assert log.with_suffix(".stderr").exists()
    assert log.with_suffix(".stdout").exists()
    assert list(store.references("results")) == []


SLEEP = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""


def alive(pids: Path) -> bool:
    return any(stat_field(int(pid), 1) != -1 for pid in pids.read_text().split())


@pytest.mark.usefixtures("corpora")
def test_a_program_that_takes_too_long_is_ended_with_its_children(store: Store, tmp_path: Path) -> None:
    fields = command(tmp_path, SLEEP, str(tmp_path / "pids"))
    with pytest.raises(MixwrightError, match=r"run-00000: the train command ran longer than 1\.5 seconds"):
        run(store, **fields, timeout_seconds=1.5, sizes=[10], mixtures=[{"sea": 1}])
    wait_for(lambda: not alive(tmp_path / "pids"), 5)


def test_a_program_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "sleep.py").write_text(SLEEP)
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys\n"
        "guard = [sys.executable, '-I', sys.argv[1], str(os.getpid()), str(os.getpid())]\n"
        "subprocess.run(guard + sys.argv[2:], start_new_session=True)"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            train_command_guard.__file__,
            sys.executable,
            str(tmp_path / "sleep.py"),
            str(pids),
        ]
    )
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    assert alive(pids)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not alive(pids), 5)


def test_a_program_ends_with_its_job_while_the_worker_lives_on(tmp_path: Path) -> None:
    (tmp_path / "sleep.py").write_text(SLEEP)
    pids, job = tmp_path / "pids", subprocess.Popen(["sleep", "600"])
    guard = [sys.executable, "-I", train_command_guard.__file__, str(os.getpid()), str(job.pid)]
    process = subprocess.Popen(
        [*guard, sys.executable, str(tmp_path / "sleep.py"), str(pids)], start_new_session=True
    )
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    assert alive(pids)
    job.kill()
    job.wait()
    assert process.wait(5) == -signal.SIGKILL
    wait_for(lambda: not alive(pids), 5)


def test_command_lines_are_checked_at_once() -> None:
    for text, message in {
        "train {weights}": r"unknown placeholder \{weights\}: use one of \{mixture\}",
        "train 'open": "cannot be split",
        "  ": "is empty",
    }.items():
        with pytest.raises(ConfigError, match=message):
            TrainCommand.parse(text, None)
    parsed = TrainCommand.parse("train --at={score}.txt '{size} x' {{}} {}", None)
    assert parsed.filled({"score": "/a b/s", "size": 3}) == ["train", "--at=/a b/s.txt", "3 x", "{{}}", "{}"]
    assert parsed.mentions("score")
    assert not parsed.mentions("rows")


# What is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluator": "linear_probe"}, "linear_probe needs label"),
        ({"evaluator": "command"}, "command needs train_command"),
        ({"label": "topic"}, "label is for the evaluator linear_probe"),
        ({"train_command": "x"}, "train_command is for the evaluator command"),
        ({"timeout_seconds": 3}, "timeout_seconds is for the evaluator command"),
        ({"metric": {}}, "metric is for the evaluator command"),
        (
            {"evaluator": "command", "train_command": "x", "metric": {"low": 1, "high": 0}},
            "low must be below high",
        ),
        ({"evaluator": "command", "train_command": "x", "metric": {"nam": "x"}}, "nam"),
        ({"sizes": [10, 10]}, "a size twice"),
        ({"sizes": []}, "sizes"),
        ({"sizes": [0]}, "sizes"),
        ({"mixtures": []}, "mixtures"),
        ({"mixtures": [{}]}, "mixtures"),
        ({"mixtures": [{"sea": 0}]}, "without a share above 0"),
        ({"mixtures": [{"sea": -1}]}, "mixtures"),
        ({"mixtures": [{"sea": float("nan")}]}, "mixtures"),
        ({"max_epochs": float("inf")}, "max_epochs"),
        ({"order": 9}, "order"),
    ],
)
def test_requests_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        request(**fields)


@pytest.mark.usefixtures("corpora")
def test_mixtures_are_checked_before_anything_is_trained(
    store: Store, publish_corpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("must not be called")

    monkeypatch.setattr(pilot, "finish_shards", forbidden)
    with pytest.raises(ConfigError, match="names 'see', which is no source: name sea, bread"):
        run(store, mixtures=[{"see": 1}])
    with pytest.raises(ConfigError, match="mixtures 1 and 3 are the same"):
        run(store, mixtures=[{"sea": 1, "bread@1": 1}, {"sea": 1}, {"sea": 3, "bread": 3}])
    tokens = sum(Corpus.open(store, "sea").scan().collect()["n_tokens"])
    with pytest.raises(ShortfallError, match=r"mixture sea=0.8,bread=0.2 at .* takes more of sea") as caught:
        run(store, mixtures=[{"sea": 0.8, "bread": 0.2}], sizes=[100, 9000])
    assert (caught.value.source, caught.value.largest_budget) == ("sea", int(tokens * 4 / 0.8))
    monkeypatch.undo()
    assert run(store, mixtures=[{"sea": 0.8, "bread": 0.2}], sizes=[caught.value.largest_budget or 0]).n_rows == 1
    monkeypatch.setattr(pilot, "finish_shards", forbidden)
    with pytest.raises(ShortfallError, match=r"mixture sea=0.99,bread=0.01 at 100 tokens: the share of bread"):
        run(store, mixtures=[{"sea": 0.99, "bread": 0.01}])
    with pytest.raises(
        ShortfallError, match=r"are more than the sources give in 4 epochs: use sizes up to"
    ) as caught:
        run(store, mixtures=None, sizes=[20_000])
    with pytest.raises(ShortfallError, match=r"at 500 documents takes more of sea .* use sizes up to 480"):
        run(store, mixtures=[{"sea": 1}], sizes=[500], unit="documents")
    publish_corpus("empty", document_table([""]))
    with pytest.raises(DataError, match="validation corpus empty@1 has no text"):
        run(store, validation="empty")


@pytest.mark.usefixtures("corpora")
def test_what_spoils_scores_is_told(store: Store, publish_corpus: Any) -> None:
    progress = Recorder()
    manifest = run(store, progress, validation="sea", sizes=[100])
    assert manifest.warnings == [
        "120 of 120 documents of sea@1 are in sea@1 too, where scores measure memory: hold documents out that no "
        "source has"
    ]
    assert progress.notes == [f"warning: {warning}" for warning in manifest.warnings]
    publish_corpus("long", document_table([f"{'word ' * 60} {number}" for number in range(20)]))
    mixture = {"sea": 0.5, "long": 0.5}
    manifest = run(store, sources=["sea", "long"], mixtures=[mixture], sizes=[150], name="long")
    assert manifest.warnings[0].startswith("documents are long for such small trainings: in run-00000")


@pytest.mark.usefixtures("corpora")
@pytest.mark.parametrize("fields", [{}, {"unit": "documents", "sizes": [20, 430]}, {"sizes": [60, 4600]}])
def test_planned_mixtures_can_all_be_served(store: Store, fields: dict[str, Any]) -> None:
    manifest = run(store, mixtures=None, runs=9, order=1, **fields)
    table = runs_of(store, manifest.ref)
    weights = table.select("weight:sea", "weight:bread").to_numpy()
    assert len(np.unique(weights, axis=0)) >= 4
    assert len(table) == len(np.unique(weights, axis=0)) * 2
    np.testing.assert_allclose(weights.sum(axis=1), 1)


# Identity


@pytest.mark.usefixtures("corpora")
def test_resources_are_no_part_of_the_identity_and_a_second_run_trains_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(store)
    same = {"mixtures": [{"sea": 2}, {"bread@1": 5}, {"bread": 3, "sea": 3}], "workers": 2, "runs": 5}
    monkeypatch.setattr(pilot, "finish_shards", lambda *_: pytest.fail("must not train"))
    assert run(store, **same) == first
    monkeypatch.undo()
    monkeypatch.setattr(pilot, "_manifest", lambda *_: pytest.fail("must not finish"))
    monkeypatch.setattr(pilot, "finish_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for name, value in {"sizes": [100], "seed": 1, "order": 3, "max_epochs": 5, "repeats": 2}.items():
        with pytest.raises(KeyboardInterrupt):
            run(store, **{name: value})
        assert value is not None
    assert inputs_state(store, request()) is not None
    assert inputs_state(store, request(evaluator="command", train_command="x")) is None


# Ray


JOB = """
import sys
from pathlib import Path
from mixwright.jobs.pilot import run_pilot
from mixwright.progress import NoProgress
from mixwright.schemas.requests import EmbedRequest, PilotRequest
from mixwright.store import Store
run_pilot(Store(Path(sys.argv[1])), PilotRequest.model_validate_json(sys.argv[2]), NoProgress())
"""


@pytest.mark.usefixtures("corpora")
def test_a_killed_job_goes_on_with_any_number_of_workers_to_the_same_results(store: Store, tmp_path: Path) -> None:
    n_runs = 60
    slow = command(tmp_path, "import sys, time; time.sleep(0.05); print(int(sys.argv[1]) / 7)", "{seed}")
    fields = {**slow, "mixtures": [{"sea": 1}], "sizes": [50], "repeats": n_runs, "workers": 1}
    staging = kill_half_way(JOB, [request(**fields).model_dump_json()], store.home, n_marks=3)
    marks = identities(staging, "marks/*.json")
    assert 3 <= len(marks) < n_runs
    progress = Recorder()
    manifest = run(store, progress, **fields | {"workers": 2})
    assert (progress.total, progress.done) == (n_runs, n_runs)
    again = identities(store.directory(manifest), "marks/*.json")
    assert len(again) == n_runs
    assert {name: again[name] for name in marks} == marks
    assert runs_of(store, manifest.ref)["score"].to_list() == [seed / 7 for seed in range(n_runs)]


@pytest.mark.usefixtures("corpora")
def test_one_worker_and_two_give_the_same(store: Store) -> None:
    one = run(store, workers=1, name="one")
    two = run(store, workers=2, name="two")
    assert runs_of(store, "one").equals(runs_of(store, "two"))
    assert one.fingerprint == two.fingerprint
    likelihoods = [next(each.sha256 for each in found.files if each.path.endswith(".npy")) for found in (one, two)]
    assert likelihoods[0] == likelihoods[1]


# The command line and the service


@pytest.mark.usefixtures("corpora")
def test_the_command_line_runs_and_shows(store: Store) -> None:
    home = ["--home", str(store.home)]
    flags = [
        "--source",
        "sea",
        "--source",
        "bread",
        "--validation",
        "held-out",
        "--evaluator",
        "ngram",
        "--name",
        "cli",
    ]
    mixtures = ["--mixture", "sea=1", "--mixture", "sea=0.5, bread=.5"]
    done = CliRunner().invoke(app, ["pilot", "run", *flags, *mixtures, "--size", "100", *home, "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert list(printed) == ["ref", "fingerprint", "n_rows", "metric", "sources"]
    shown = CliRunner().invoke(app, ["pilot", "show", "cli", *home]).stdout.splitlines()
    assert shown[0] == "cli@1: 2 trainings by ngram on held-out@1; lower bits_per_byte is better"
    assert shown[3].split()[:3] == ["50.00%", "50.00%", "100"]
    manifest = run_request(
        store,
        REQUEST_ADAPTER.validate_python(
            {
                **request(
                    name="cli", sizes=[100], order=6, mixtures=[{"sea": 1}, {"sea": 1, "bread": 1}]
                ).model_dump()
            }
        ),
        NoProgress(),
    )
    assert manifest.fingerprint == printed["fingerprint"]
    for text in ("sea", "sea=x", "=1", "sea=1,sea=2"):
        failed = CliRunner().invoke(app, ["pilot", "run", *flags, "--mixture", text, "--size", "9", *home])
        assert isinstance(failed.exception, ConfigError), text
        assert "write shares such as wiki=0.7,web=0.3" in str(failed.exception)


@pytest.mark.usefixtures("corpora")
def test_a_program_over_rest_is_refused_unless_the_settings_allow_it(store: Store, tmp_path: Path) -> None:
    fields = command(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w').close(); print(1)")
    body = request(**fields, sizes=[50], mixtures=[{"sea": 1}]).model_dump(mode="json")
    submission = {"kind": body.pop("kind"), "request": body}
    with TestClient(create_app(Settings(home=store.home), run_worker=False)) as client:
        refused = client.post("/v1/jobs", json=submission)
        assert refused.status_code == 422
        assert "MIXWRIGHT_ALLOW_TRAIN_COMMANDS=true" in refused.json()["detail"]
        assert client.get("/v1/jobs").json()["items"] == []
    allowed = Settings(home=store.home, allow_train_commands=True)
    with TestClient(create_app(allowed, run_worker=False)) as client:
        job = client.post("/v1/jobs", json=submission).json()
    # A worker whose own settings do not allow it refuses what is on the board already.
    assert ended(Settings(home=store.home), job["id"])["error"]["type"] == "urn:mixwright:error:config"
    assert not (tmp_path / "ran").exists()
    with TestClient(create_app(allowed, run_worker=False)) as client:
        job = client.post("/v1/jobs", json=submission).json()
    found = ended(allowed, job["id"])
    assert found["result"]["ref"] == "pilots@1", found
    assert (tmp_path / "ran").exists()


def ended(settings: Settings, job_id: str) -> dict[str, Any]:
    """The job once a service with these settings has done it."""
    with TestClient(create_app(settings)) as client:
        end = time.monotonic() + 60
        while (job := client.get(f"/v1/jobs/{job_id}").json())["state"] in ("queued", "running"):
            assert time.monotonic() < end, job
            time.sleep(0.1)
    found: dict[str, Any] = job
    return found
