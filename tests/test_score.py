"""The score job: columns against the models' own logits, what cannot be scored, kills, workers, the cache."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from support import Recorder, document_table, identities, kill_half_way
from tiny_models import SENTENCES, make_model, pruned_by_magnitude, save_model
from typer.testing import CliRunner

from mixwright.attributes import Attributes
from mixwright.cli import app
from mixwright.corpora import Corpus
from mixwright.errors import ConfigError, DataError, NotFoundError
from mixwright.jobs import marked_shards, score_workers
from mixwright.jobs.marked_shards import Workers
from mixwright.jobs.ray_pool import ray_session
from mixwright.jobs.run import REQUEST_ADAPTER, run_request
from mixwright.jobs.score import run_score
from mixwright.progress import NoProgress, Progress
from mixwright.schemas.requests import ScoreRequest
from mixwright.store import Store

WORDS = " ".join(SENTENCES).split()


def instructions(n: int, longest: int = 12) -> Any:
    """``n`` documents with instruction, input (half of them none) and output."""
    generator = np.random.default_rng(n)
    rows = []
    for number in range(n):
        asked, given, answer = (
            " ".join(generator.choice(WORDS, size=generator.integers(1, longest))) for _ in range(3)
        )
        rows.append(
            {
                "instruction": f"{asked} {number}",
                "input": given if number % 2 else "",
                "output": answer,
                "n": number,
            }
        )
    texts = [f"{row['instruction']}\n{row['output']}" for row in rows]
    return document_table(texts, metadata=[json.dumps(row) for row in rows])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An original and a pruned model, with a chat template."""
    folder, model = tmp_path_factory.mktemp("models"), make_model()
    pruned = pruned_by_magnitude(model, 0.5)
    return (
        save_model(folder / "original", model, chat=True),
        save_model(folder / "pruned", pruned, chat=True),
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run workers in this process, one shard after the other, without Ray."""

    def run(workers: Workers, missing: list[str], progress: Progress) -> None:
        worker = workers.actor(*workers.arguments, "cpu")
        for shard in missing:
            progress.advance(list(worker.run(shard))[-1])

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(marked_shards, "_run", run)
    for module in ("marked_shards", "score"):
        monkeypatch.setattr(f"mixwright.jobs.{module}.ray_session", lambda *_: nullcontext())


def request(models: tuple[Path, Path], **fields: Any) -> ScoreRequest:
    fields = {"corpus": "tasks", "dtype": "float32", "device": "cpu"} | fields
    return ScoreRequest(original=str(models[0]), pruned=str(models[1]), **fields)


def columns(store: Store, reference: str) -> pl.DataFrame:
    return Attributes.open(store, reference, Corpus.open(store, "tasks")).scan().collect()


def score(store: Store, models: tuple[Path, Path], **fields: Any) -> pl.DataFrame:
    progress = fields.pop("progress", NoProgress())
    return columns(store, run_score(store, request(models, **fields), progress).ref)


def by_hand(models: tuple[Path, Path], ids: list[int], n_prompt: int) -> tuple[float, float, float]:
    """jsd and both likelihoods of one pair: whole logits in float64, SciPy's divergence."""
    from transformers import AutoModelForCausalLM

    logits = []
    for folder in models:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        with torch.no_grad():
            logits.append(model(torch.tensor([ids])).logits[0, n_prompt - 1 : -1])
    p, q = (torch.softmax(each, -1).numpy() for each in logits)
    targets = torch.tensor(ids[n_prompt:])
    nll = [torch.nn.functional.cross_entropy(each, targets).item() for each in logits]
    return float((np.asarray(jensenshannon(p, q, axis=1)) ** 2).mean()), nll[0], nll[1]


# Scores


@pytest.mark.usefixtures("here")
def test_each_row_has_the_scores_of_its_own_conversation(
    store: Store, publish_corpus: Any, models: tuple[Path, Path]
) -> None:
    from transformers import AutoTokenizer

    corpus = publish_corpus("tasks", instructions(25), shard_rows=10)
    progress = Recorder()
    manifest = run_score(store, request(models, batch_tokens=200), progress)
    found = columns(store, "tasks.scores")
    tokenizer = AutoTokenizer.from_pretrained(models[0])
    for row, metadata in enumerate(Corpus.open(store, "tasks").scan().collect()["metadata"]):
        fields = json.loads(metadata)
        asked = "\n".join(each for each in (fields["instruction"], fields["input"]) if each)
        head = f"<s><|turn|>user\n{asked}<|end|>\n<|turn|>assistant\n"
        ids = [tokenizer(each)["input_ids"] for each in (head, f"{fields['output']}<|end|>")]
        mine = found.row(row, named=True)
        assert (mine["n_prompt_tokens"], mine["n_response_tokens"]) == (len(ids[0]), len(ids[1]))
        expected = by_hand(models, ids[0] + ids[1], len(ids[0]))
        assert (mine["jsd"], mine["nll_original"], mine["nll_pruned"]) == pytest.approx(expected, abs=1e-5)
    assert found.dtypes == [pl.Float32] * 3 + [pl.Int32] * 2 + [pl.String]
    assert manifest.counts == {"scored": 25, "empty_response": 0, "too_long": 0}
    assert (progress.total, progress.done) == (25, 25)
    assert [entry.n_rows for entry in manifest.files] == [10, 10, 5]
    assert [each.name for each in manifest.columns] == found.columns
    assert "prompt format chat, computed in float32" in manifest.columns[0].description
    assert (manifest.corpus, manifest.inputs[0].fingerprint) == (corpus.ref, corpus.fingerprint)
    assert (manifest.parameters["prompt"], manifest.parameters["response"]) == (
        "{instruction}\n{input}",
        "{output}",
    )
    directory = store.directory(manifest)
    assert sorted(path.name for path in directory.iterdir()) == ["manifest.json", "marks", "shards"]


@pytest.mark.usefixtures("here")
def test_templates_and_formats_are_what_was_asked_for(
    store: Store, publish_corpus: Any, models: tuple[Path, Path]
) -> None:
    from transformers import AutoTokenizer

    publish_corpus("tasks", instructions(6))
    plain = score(store, models, prompt_format="plain", name="plain")
    none = score(store, models, prompt_format="none", name="none")
    swapped = score(store, models, prompt="{output}", response="{instruction}", name="swapped")
    text = score(store, models, prompt="", response="{text}", name="text")
    assert (plain["n_prompt_tokens"] > none["n_prompt_tokens"]).all()
    assert (plain["n_response_tokens"] == none["n_response_tokens"]).all()
    tokenizer = AutoTokenizer.from_pretrained(models[0])
    asked = [json.loads(each)["instruction"] for each in Corpus.open(store, "tasks").scan().collect()["metadata"]]
    assert swapped["n_response_tokens"].to_list() == [len(tokenizer(each)["input_ids"]) + 1 for each in asked]
    # A whole text has no context but its first token.
    assert text["n_prompt_tokens"].to_list() == [1] * 6
    for name, prompt_format in (("plain", "plain"), ("none", "none"), ("swapped", "chat"), ("text", "none")):
        described = Attributes.open(store, name).manifest.columns[0].description
        assert f"prompt format {prompt_format}," in described
    with pytest.raises(ConfigError, match="no field 'answer'"):
        score(store, models, response="{answer}")


@pytest.mark.usefixtures("here")
def test_rows_that_cannot_be_scored_are_counted_and_have_no_scores(
    store: Store, publish_corpus: Any, models: tuple[Path, Path]
) -> None:
    table = instructions(8).to_pydict()
    metadata = [json.loads(each) for each in table["metadata"]]
    metadata[1]["output"] = " "
    del metadata[2]["output"]
    metadata[5]["output"] = "long " * 300
    publish_corpus("tasks", document_table(table["text"], metadata=[json.dumps(each) for each in metadata]))
    progress = Recorder()
    found = score(store, models, max_tokens=100_000, progress=progress)
    # The models read 256 tokens, whatever is asked for.
    status = ["scored"] * 8
    status[1] = status[2] = "empty_response"
    status[5] = "too_long"
    assert found["score_status"].to_list() == status
    for name in ("jsd", "nll_original", "nll_pruned"):
        assert found[name].is_null().to_list() == [each != "scored" for each in status]
        assert found[name].is_nan().sum() == 0
    assert found["n_response_tokens"].to_list()[1:3] == [0, 0]
    assert found["n_response_tokens"][5] > 300
    manifest = Attributes.open(store, "tasks.scores").manifest
    assert manifest.counts == {"scored": 5, "empty_response": 2, "too_long": 1}
    assert [note.removeprefix("warning: ") for note in progress.notes] == manifest.warnings
    assert [warning.split(":")[0] for warning in manifest.warnings] == [
        "2 of 8 documents have no response ('{output}')",
        "1 of 8 documents have more than 256 tokens",
    ]
    with pytest.raises(DataError, match=r"no document of tasks@1 can be scored: .* have more than 2 tokens"):
        score(store, models, max_tokens=2, name="short")


@pytest.mark.usefixtures("here")
def test_the_more_is_pruned_the_higher_the_mean(store: Store, publish_corpus: Any, tmp_path: Path) -> None:
    publish_corpus("tasks", instructions(30))
    model = make_model("gpt2")
    original = save_model(tmp_path / "original", model)
    means = []
    for sparsity in (0, 0.1, 0.3, 0.5, 0.7, 0.9):
        pruned = save_model(tmp_path / f"pruned{sparsity}", pruned_by_magnitude(model, sparsity))
        means.append(score(store, (original, pruned))["jsd"].mean())
    assert means[0] == 0
    assert means == sorted(set(means)), means


# Passes


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("cache_top_k", [None, 8])
def test_every_scored_row_passes_each_model_once(
    store: Store,
    publish_corpus: Any,
    models: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    cache_top_k: int | None,
) -> None:
    table = instructions(23)
    publish_corpus("tasks", table, shard_rows=10)
    seen: Counter[str] = Counter()

    def load(source: Any, *arguments: Any) -> Any:
        loaded = original_load(source, *arguments)
        # What asks how the logits are made has passed a few tokens by now; from here on it is the documents.
        loaded._model.model.register_forward_pre_hook(
            lambda _, __, inputs: seen.update({source.path.name: len(inputs["input_ids"])}), with_kwargs=True
        )
        return loaded

    original_load = score_workers.load_language_model
    monkeypatch.setattr(score_workers, "load_language_model", load)
    score(store, models, batch_tokens=100, cache_top_k=cache_top_k)
    assert seen == {"original": 23, "pruned": 23}


@pytest.mark.usefixtures("here")
def test_one_model_after_the_other_gives_a_lower_bound_and_with_the_whole_vocabulary_the_same(
    store: Store, publish_corpus: Any, models: tuple[Path, Path]
) -> None:
    publish_corpus("tasks", instructions(25), shard_rows=10)
    exact = score(store, models)
    for k in (1, 32, 400, 5000):
        kept = score(store, models, cache_top_k=k, name=f"kept{k}")
        for name in ("nll_original", "nll_pruned"):
            np.testing.assert_allclose(kept[name], exact[name], atol=1e-6)
        assert (kept["jsd"] <= exact["jsd"] + 1e-6).all()
        assert (kept["jsd"] > 0).all()
        if k >= 400:
            np.testing.assert_allclose(kept["jsd"], exact["jsd"], atol=1e-6)
        manifest = Attributes.open(store, f"kept{k}").manifest
        assert sorted(path.name for path in store.directory(manifest).iterdir()) == [
            "manifest.json",
            "marks",
            "shards",
        ]
        assert f"by the original's {k} likeliest tokens" in manifest.columns[0].description


@pytest.mark.usefixtures("here")
def test_a_resumed_cache_is_filled_only_for_the_shards_that_are_missing(
    store: Store, publish_corpus: Any, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_corpus("tasks", instructions(40), shard_rows=10)
    expected = score(store, models, name="expected", cache_top_k=4)
    finish = marked_shards.ShardFolder.finish

    def dies(folder: Any, shard: str, *arguments: Any, **about: Any) -> None:
        finish(folder, shard, *arguments, **about)
        if folder.suffix == "parquet" and shard == "part-00001":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(marked_shards.ShardFolder, "finish", dies)
        with pytest.raises(KeyboardInterrupt):
            score(store, models, name="again", cache_top_k=4)
    (staging,) = (path for path in store.home.glob("staging/attributes-again-*") if path.is_dir())
    before = identities(staging, "marks/*.json"), identities(staging, "original/marks/*.json")
    assert [len(each) for each in before] == [2, 4]
    done = []
    monkeypatch.setattr(
        marked_shards.ShardFolder, "finish", lambda *a, **b: (done.append((a[0].suffix, a[1])), finish(*a, **b))
    )
    assert score(store, models, name="again", cache_top_k=4).equals(expected)
    assert done == [("parquet", "part-00002"), ("parquet", "part-00003")]


# What is refused


@pytest.mark.usefixtures("here")
def test_a_model_whose_output_is_not_finite_is_named_with_the_row(
    store: Store, publish_corpus: Any, models: tuple[Path, Path], tmp_path: Path
) -> None:
    publish_corpus("tasks", instructions(12), shard_rows=6)
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = float("nan")
    damaged = save_model(tmp_path / "damaged", model, chat=True)
    message = r"part-00000, row \d: model .*damaged gives a value that is not finite"
    for pair, k in (((models[0], damaged), None), ((damaged, models[1]), None), ((damaged, models[1]), 4)):
        with pytest.raises(DataError, match=message):
            score(store, pair, cache_top_k=k)
    assert not (store.home / "attributes" / "tasks.scores").exists()
    # float16 ends at 65,504.
    with torch.no_grad():
        model = make_model()
        model.model.embed_tokens.weight *= 1e5
    large = save_model(tmp_path / "large", model, chat=True)
    with pytest.raises(DataError, match="use --dtype float32"):
        score(store, (large, large), dtype="float16")


def test_what_is_missing_or_does_not_match_is_named(
    store: Store, publish_corpus: Any, models: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="tasks"):
        score(store, models)
    publish_corpus("tasks", instructions(3))
    with pytest.raises(NotFoundError, match="somebody/else"):
        score(store, (models[0], Path("somebody/else")))
    other = save_model(tmp_path / "other", make_model(), lowercase=True)
    with pytest.raises(DataError, match="have not the same tokenizer"):
        score(store, (models[0], other))
    untalkative = save_model(tmp_path / "plain", make_model())
    with pytest.raises(ConfigError, match="no chat template"):
        score(store, (untalkative, untalkative), prompt_format="chat")
    assert [path for path in store.home.glob("staging/*") if path.is_dir()] == []


# Identity


@pytest.mark.usefixtures("here")
def test_resources_are_no_part_of_the_identity_and_a_second_run_loads_nothing(
    store: Store, publish_corpus: Any, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_corpus("tasks", instructions(9), shard_rows=4)
    first = run_score(store, request(models), NoProgress())
    second = run_score(store, request(models, name="second", workers=3, batch_tokens=64), NoProgress())
    explicit = {"prompt": "{instruction}\n{input}", "response": "{output}"}
    assert first.fingerprint == second.fingerprint
    np.testing.assert_allclose(columns(store, "second")["jsd"], columns(store, "tasks.scores")["jsd"], atol=1e-6)
    for name, value in {"dtype": "auto", "max_tokens": 100, "prompt_format": "chat", "cache_top_k": 5}.items():
        other = run_score(store, request(models, name=f"other-{name}", **{name: value}), NoProgress())
        assert other.fingerprint != first.fingerprint, name

    def forbidden(*_: object) -> None:
        raise AssertionError("must not be called")

    monkeypatch.setattr("mixwright.jobs.score.check_same_tokenizer", forbidden)
    assert run_score(store, request(models, **explicit), NoProgress()) == first


def test_the_command_and_the_job_board_run_it(
    store: Store, publish_corpus: Any, models: tuple[Path, Path], here: None
) -> None:
    publish_corpus("tasks", instructions(5))
    flags = ["--original", str(models[0]), "--pruned", str(models[1]), "--dtype", "float32"]
    home = ["--home", str(store.home)]
    done = CliRunner().invoke(app, ["score", "tasks", *flags, *home, "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert list(printed) == ["ref", "fingerprint", "corpus", "n_rows", "counts", "columns"]
    assert (printed["ref"], printed["n_rows"], printed["counts"]["scored"]) == ("tasks.scores@1", 5, 5)
    mean = columns(store, "tasks.scores")["jsd"].mean()
    line = CliRunner().invoke(app, ["score", "tasks", *flags, *home]).stdout
    assert line == f"tasks.scores@1: mean jsd {mean:.4f}; 5 scored, 0 empty response, 0 too long\n"
    body = {"kind": "score", "corpus": "tasks", "original": str(models[0]), "pruned": str(models[1])}
    manifest = run_request(store, REQUEST_ADAPTER.validate_python({**body, "dtype": "float32"}), NoProgress())
    assert manifest.fingerprint == printed["fingerprint"]


# Ray


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One Ray for the tests below."""
    with ray_session(num_cpus=2):
        yield


def shard_bytes(store: Store, reference: str) -> list[bytes]:
    attributes = Attributes.open(store, reference)
    return [(attributes.directory / entry.path).read_bytes() for entry in attributes.manifest.files]


JOB = """
import sys
from pathlib import Path
from mixwright.jobs.score import run_score
from mixwright.progress import NoProgress
from mixwright.schemas.requests import ScoreRequest
from mixwright.store import Store
original, pruned = sys.argv[2:]
run_score(Store(Path(sys.argv[1])), ScoreRequest(corpus="tasks", original=original, pruned=pruned, workers=1,
    dtype="float32", device="cpu"), NoProgress())
"""


@pytest.mark.usefixtures("ray")
def test_a_killed_job_goes_on_with_any_number_of_workers_to_the_same_bytes(
    store: Store, publish_corpus: Any, models: tuple[Path, Path]
) -> None:
    n_shards = 60
    publish_corpus("tasks", instructions(n_shards * 15), shard_rows=15)
    staging = kill_half_way(JOB, [str(each) for each in models], store.home, n_marks=3)
    marks = identities(staging, "marks/*.json")
    assert 3 <= len(marks) < n_shards
    progress = Recorder()
    manifest = run_score(store, request(models, workers=2), progress)
    assert (progress.total, progress.done) == (n_shards * 15, n_shards * 15)
    again = identities(store.directory(manifest), "marks/*.json")
    assert len(again) == n_shards
    assert all(again[name] == mark for name, mark in marks.items())
    run_score(store, request(models, workers=1, name="alone"), NoProgress())
    assert shard_bytes(store, "alone") == shard_bytes(store, manifest.ref)
