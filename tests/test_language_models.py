"""Language models: divergence against SciPy and float64, prompts against ids written by hand, loading."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from support import Recorder
from tiny_models import make_model, pruned_by_magnitude, save_model, save_tokenizer

from mixwright.errors import ConfigError, DataError, MissingExtraError, NotFoundError
from mixwright.language_models.divergence import LN2, TokenScores, compare, compare_with_top, top_tokens
from mixwright.language_models.gguf import unpack_gguf
from mixwright.language_models.loading import (
    LoadedLanguageModel,
    check_files,
    find_language_model,
    load_language_model,
    weight_bytes,
)
from mixwright.language_models.matching import SharedLimits, check_same_tokenizer, shared_limits
from mixwright.language_models.prompts import choose_format, tokenize_pairs
from mixwright.language_models.responses import (
    compare_models,
    compare_with_top_tokens,
    original_top_tokens,
    response_batch,
    response_means,
)
from mixwright.progress import NoProgress

Float64Array = npt.NDArray[np.float64]


def scipy_divergence(original: torch.Tensor, pruned: torch.Tensor) -> Float64Array:
    """Jensen-Shannon divergence in nats, in float64, of (n, v) logits."""
    p, q = (torch.softmax(each.double(), -1).numpy() for each in (original, pruned))
    return np.asarray(jensenshannon(p, q, axis=1)) ** 2


def logits(seed: int, n: int = 60, v: int = 700, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(n, v, generator=torch.Generator().manual_seed(seed)) * scale


def first_tokens(like: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(like)) % like.shape[1]


def scores(original: torch.Tensor, pruned: torch.Tensor, chunk: int = 8192) -> TokenScores:
    return compare(original, pruned, first_tokens(original), chunk)


# Divergence


@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0])
def test_the_divergence_is_scipys_within_its_bounds_and_symmetric(scale: float) -> None:
    one, other = logits(1, scale=scale), logits(2, scale=scale)
    found = scores(one, other).jsd
    np.testing.assert_allclose(found, scipy_divergence(one, other), atol=1e-6, rtol=1e-4)
    assert found.min() >= 0
    assert found.max() <= LN2
    torch.testing.assert_close(scores(other, one).jsd, found, atol=1e-7, rtol=0)


def test_equal_distributions_are_at_zero_and_disjoint_ones_at_ln_2() -> None:
    one = logits(3)
    assert scores(one, one).jsd.abs().max() == 0
    # Logits are known up to a constant.
    assert scores(one, one + 5).jsd.max() < 1e-6
    left, right = torch.full((2, 4), -math.inf), torch.full((2, 4), -math.inf)
    left[:, :2], right[:, 2:] = 1.0, 1.0
    torch.testing.assert_close(scores(left, right).jsd, torch.full((2,), LN2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_costs_less_than_a_thousandth(dtype: torch.dtype) -> None:
    one, other = logits(4), logits(4) + logits(5, scale=0.5)
    found = scores(one.to(dtype), other.to(dtype))
    np.testing.assert_allclose(found.jsd, scipy_divergence(one.to(dtype), other.to(dtype)), atol=1e-6)
    # The rounding of the logits themselves, over a response.
    assert abs(found.jsd.mean().item() - scipy_divergence(one, other).mean()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gap", [90.0, 1e3, 1e4, math.inf])
def test_no_gap_between_logits_makes_a_nan(dtype: torch.dtype, gap: float) -> None:
    one, other = torch.zeros(3, 50, dtype=dtype), torch.zeros(3, 50, dtype=dtype)
    one[:, 25:], other[:, :25] = -gap, -gap
    one[0, 0] = other[0, 0] = 10.0
    found = compare(one, other, torch.zeros(3, dtype=torch.long)).jsd
    assert torch.isfinite(found).all()
    expected = scipy_divergence(one.clamp(min=-3e4), other.clamp(min=-3e4))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_negative_log_likelihoods_are_torchs() -> None:
    one, other = logits(6), logits(7)
    found = scores(one, other)
    for mine, of in ((found.nll_original, one), (found.nll_pruned, other)):
        expected = torch.nn.functional.cross_entropy(of.double(), first_tokens(of), reduction="none")
        torch.testing.assert_close(mine.double(), expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_that_gives_no_distribution_is_told_by_its_likelihood(bad: float) -> None:
    one, other = logits(8), logits(9)
    other[7, 100] = bad
    found = scores(one, other)
    assert torch.isfinite(found.nll_original).all()
    assert (~torch.isfinite(found.nll_pruned)).nonzero().flatten().tolist() == [7]


def test_the_chunks_of_the_vocabulary_do_not_matter() -> None:
    one, other = logits(10), logits(11)
    whole = scores(one, other)
    for chunk in (1, 13, 699, 700):
        for mine, expected in zip(scores(one, other, chunk), whole, strict=True):
            torch.testing.assert_close(mine, expected, atol=2e-6, rtol=1e-5)


# The original's likeliest tokens


def merged(values: torch.Tensor, ids: torch.Tensor) -> Float64Array:
    """Probabilities (n, k + 1) in float64: of the tokens ``ids`` (n, k), and of all others together."""
    p = torch.softmax(values.double(), -1)
    kept = p.gather(-1, ids)
    return torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1).clamp(min=0).numpy()


def test_the_kept_distribution_gives_scipys_divergence_of_the_merged_ones_a_lower_bound() -> None:
    one, other, targets = logits(12), logits(12) + logits(13, scale=1.0), first_tokens(logits(12))
    exact = compare(one, other, targets)
    before = torch.zeros(len(one))
    for k in (1, 8, 64, 512):
        top = top_tokens(one, targets, k)
        found = compare_with_top(top, other, targets)
        ids = one.topk(k).indices
        expected = np.asarray(jensenshannon(merged(one, ids), merged(other, ids), axis=1)) ** 2
        np.testing.assert_allclose(found.jsd, expected, atol=1e-6)
        assert (found.jsd <= exact.jsd + 1e-6).all()
        assert (found.jsd >= before - 1e-6).all()
        torch.testing.assert_close(found.nll_original, exact.nll_original)
        torch.testing.assert_close(found.nll_pruned, exact.nll_pruned)
        before = found.jsd
    for k in (700, 10_000):
        everything = compare_with_top(top_tokens(one, targets, k), other, targets)
        torch.testing.assert_close(everything.jsd, exact.jsd, atol=1e-6, rtol=1e-5)


# Models and batches


def loaded(model: Any, name: str = "model") -> LoadedLanguageModel:
    return LoadedLanguageModel(name, model, "cpu")


def random_pairs(vocab_size: int, n: int, seed: int = 0) -> tuple[list[list[int]], list[int]]:
    generator = np.random.default_rng(seed)
    pairs = [generator.integers(4, vocab_size, size=size).tolist() for size in generator.integers(3, 40, size=n)]
    return pairs, [int(generator.integers(1, len(ids))) for ids in pairs]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "granite"])
def test_scores_are_those_of_the_models_own_logits_one_pair_at_a_time(kind: str) -> None:
    """Gemma caps its logits and Granite scales them: only their own forward passes know."""
    one = make_model(kind)
    other = pruned_by_magnitude(one, 0.4)
    original, pruned = loaded(one), loaded(other)
    assert (original.max_batch_tokens is not None) == (kind in ("gemma2", "granite"))
    pairs, starts = random_pairs(400, 9)
    batch = response_batch(pairs, starts, "cpu")
    found = compare_models(original, pruned, batch, 400)
    at = 0
    for ids, start in zip(pairs, starts, strict=True):
        n = len(ids) - start
        with torch.no_grad():
            p, q = (each(torch.tensor([ids])).logits[0, start - 1 : -1].double() for each in (one, other))
        mine = TokenScores(*(each[at : at + n] for each in found))
        np.testing.assert_allclose(mine.jsd, scipy_divergence(p, q), atol=1e-5)
        for nll, values in ((mine.nll_original, p), (mine.nll_pruned, q)):
            expected = torch.nn.functional.cross_entropy(values, torch.tensor(ids[start:]), reduction="none")
            np.testing.assert_allclose(nll, expected, atol=1e-4)
        at += n
    assert at == len(found.jsd)


def test_neither_padding_nor_batching_nor_blocks_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    one = make_model()
    original, pruned = loaded(one), loaded(pruned_by_magnitude(one, 0.5))
    pairs, starts = random_pairs(400, 12, seed=1)
    lengths = np.array([len(ids) - start for ids, start in zip(pairs, starts, strict=True)])
    together = response_means(
        compare_models(original, pruned, response_batch(pairs, starts, "cpu"), 400).jsd, lengths
    )
    monkeypatch.setattr(LoadedLanguageModel, "block_positions", 3)
    for row, (ids, start) in enumerate(zip(pairs, starts, strict=True)):
        alone = compare_models(original, pruned, response_batch([ids], [start], "cpu"), 400).jsd
        assert together[row] == pytest.approx(alone.mean().item(), abs=1e-6)


def test_models_in_bfloat16_score_almost_as_in_float32() -> None:
    one = make_model()
    other = pruned_by_magnitude(one, 0.3)
    pairs, starts = random_pairs(400, 30, seed=2)
    batch = response_batch(pairs, starts, "cpu")
    exact = compare_models(loaded(one), loaded(other), batch, 400).jsd.mean()
    half = compare_models(loaded(one.bfloat16()), loaded(other.bfloat16()), batch, 400).jsd
    assert torch.isfinite(half).all()
    assert half.mean() == pytest.approx(exact.item(), abs=5e-3)
    same = compare_models(loaded(one), loaded(one), batch, 400).jsd
    assert same.max() == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_more_is_pruned_the_further_apart_the_models_are(kind: str) -> None:
    one = make_model(kind)
    pairs, starts = random_pairs(400, 40, seed=3)
    batch = response_batch(pairs, starts, "cpu")
    means = [
        compare_models(loaded(one), loaded(pruned_by_magnitude(one, sparsity)), batch, 400).jsd.mean().item()
        for sparsity in (0, 0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    assert means[0] == 0
    assert all(less < more for less, more in itertools.pairwise(means)), means
    assert means[-1] < LN2


def test_the_cache_on_whole_models_is_a_bound_and_exact_with_the_whole_vocabulary() -> None:
    one = make_model()
    original, pruned = loaded(one), loaded(pruned_by_magnitude(one, 0.5))
    pairs, starts = random_pairs(390, 8, seed=4)
    batch = response_batch(pairs, starts, "cpu")
    exact = compare_models(original, pruned, batch, 390)
    whole = compare_with_top_tokens(original_top_tokens(original, batch, 390, 390), pruned, batch, 390)
    torch.testing.assert_close(whole.jsd, exact.jsd, atol=1e-6, rtol=1e-5)
    some = compare_with_top_tokens(original_top_tokens(original, batch, 390, 16), pruned, batch, 390)
    assert (some.jsd <= exact.jsd + 1e-6).all()
    assert (some.jsd > 0).all()


# Prompts


def test_a_chat_is_cut_where_the_answer_begins_and_behind_the_end_of_its_turn(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path, chat=True)
    begin, turn, end = (tokenizer.convert_tokens_to_ids(each) for each in ("<s>", "<|turn|>", "<|end|>"))
    plain = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    found = tokenize_pairs(tokenizer, ["What is two?", "Add."], ["It is two.", "Four\n\n"], "chat", None)
    for row, (prompt, response) in enumerate([("What is two?", "It is two."), ("Add.", "Four\n\n")]):
        head = [begin, turn, *plain(f"user\n{prompt}"), end, *plain("\n"), turn, *plain("assistant\n")]
        assert found.ids[row] == [*head, *plain(response), end]
        assert (found.n_prompt[row], found.n_response[row]) == (len(head), len(plain(response)) + 1)
    assert found.status == ["scored", "scored"]


def test_a_plain_prompt_has_its_headings_and_the_response_begins_behind_them(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path, begin=True)
    found = tokenize_pairs(tokenizer, ["Add {prompt}."], ["Four"], "plain", None)
    head = tokenizer("### Instruction:\nAdd {prompt}.\n\n### Response:\n")["input_ids"]
    assert head[0] == tokenizer.bos_token_id
    assert found.ids == [head + tokenizer("Four", add_special_tokens=False)["input_ids"]]
    assert (found.n_prompt.tolist(), found.n_response.tolist()) == ([len(head)], [len(found.ids[0]) - len(head)])


def test_a_token_that_prompt_and_response_share_is_the_responses(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path)
    whole = tokenizer("the capital")["input_ids"]
    found = tokenize_pairs(tokenizer, ["the cap"], ["ital"], "none", None)
    assert found.ids == [whole]
    assert tokenizer.decode(whole[: found.n_prompt[0]]) == "the"
    assert found.n_prompt[0] + found.n_response[0] == len(whole)


def test_what_cannot_be_scored_is_told_apart(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path, chat=True)
    responses = ["", " \n", "word", "word " * 300, "x"]
    for prompt_format in ("chat", "plain", "none"):
        found = tokenize_pairs(tokenizer, ["Say."] * 5, responses, prompt_format, 100)
        assert found.status == ["empty_response"] * 2 + ["scored", "too_long", "scored"]
        assert found.n_response[:2].tolist() == [0, 0]
        assert found.n_response[3] > 100
    # Without any context the first token is context; a text of one token then has nothing to be scored.
    found = tokenize_pairs(tokenizer, ["", ""], ["word word", "x"], "none", 100)
    assert found.n_prompt.tolist() == [1, 1]
    assert found.status == ["scored", "empty_response"]
    assert tokenize_pairs(tokenizer, [], [], "chat", 100).status == []


def test_the_prompt_format_is_chat_only_where_there_is_a_template(tmp_path: Path) -> None:
    chat, plain = save_tokenizer(tmp_path / "a", chat=True), save_tokenizer(tmp_path / "b")
    assert choose_format(chat, "auto", has_prompts=True) == "chat"
    assert choose_format(chat, "auto", has_prompts=False) == "none"
    assert choose_format(plain, "auto", has_prompts=True) == "plain"
    assert choose_format(chat, "plain", has_prompts=True) == "plain"
    with pytest.raises(ConfigError, match="no chat template"):
        choose_format(plain, "chat", has_prompts=True)
    chat.chat_template = "{{ raise_exception('users only') }}"
    with pytest.raises(DataError, match="users only"):
        tokenize_pairs(chat, ["Add."], ["Four"], "chat", None)


# Loading


def test_a_folder_is_found_by_its_contents_and_loaded_whole(tmp_path: Path) -> None:
    model = make_model()
    folder = save_model(tmp_path / "model", model)
    source = find_language_model(str(folder))
    assert (source.name, source.path) == (str(folder.resolve()), folder.resolve())
    assert find_language_model(str(save_model(tmp_path / "copy", model))).revision == source.revision
    found = load_language_model(source, "cpu", "float32")
    assert (found.vocabulary, found.compute_dtype, found.device) == (400, "float32", "cpu")
    assert load_language_model(source, "cpu", "float16").compute_dtype == "float16"
    n_weights = sum(each.numel() for each in model.parameters())
    assert weight_bytes(source, "float32") == 4 * n_weights == 2 * weight_bytes(source, "bfloat16")
    check_files(source)
    save_model(folder, make_model(seed=1))
    with pytest.raises(ConfigError, match="other files"):
        check_files(source)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no model"):
        find_language_model(str(tmp_path / "empty"))
    with pytest.raises(NotFoundError, match="somebody/no-model"):
        find_language_model("somebody/no-model")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "llama", "hidden_size": 32}')
    with pytest.raises(DataError, match="transformers cannot load it"):
        load_language_model(find_language_model(str(broken)), "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no GPU"):
            load_language_model(find_language_model(str(save_model(tmp_path / "m", make_model()))), "cuda")


def test_a_model_with_missing_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_model(tmp_path / "model", make_model())
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 of its weights, model\.layers\.1\.mlp\.up_proj\.weight"):
        load_language_model(find_language_model(str(folder)), "cpu")


# Two models


def test_models_of_two_tokenizers_are_named(tmp_path: Path) -> None:
    model = make_model()
    one = find_language_model(str(save_model(tmp_path / "one", model)))
    check_same_tokenizer(one, find_language_model(str(save_model(tmp_path / "same", model, chat=True))))
    for name, options, difference in (
        ("smaller", {"vocab_size": 390}, "vocabularies"),
        ("folding", {"lowercase": True}, "split text"),
        ("begins", {"begin": True}, "split text"),
    ):
        other = find_language_model(str(save_model(tmp_path / name, model, **options)))
        with pytest.raises(DataError, match=rf"one and .*{name} have not the same tokenizer \(.*{difference}"):
            check_same_tokenizer(one, other)


def test_two_models_share_the_smaller_vocabulary_and_the_shorter_texts(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    padded = find_language_model(str(save_model(tmp_path / "padded", make_model("gpt2", vocab_size=512))))
    exact = find_language_model(str(save_model(tmp_path / "exact", make_model(vocab_size=448))))
    assert shared_limits(padded, exact, tokenizer) == SharedLimits(448, 128)
    small = find_language_model(str(save_model(tmp_path / "small", make_model(vocab_size=300))))
    with pytest.raises(DataError, match="300 logits and its tokenizer"):
        shared_limits(exact, small, tokenizer)


# GGUF


def test_gguf_without_its_libraries_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("mixwright.language_models.gguf.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"mixwright\[gguf\]"):
        unpack_gguf(find_language_model(str(tmp_path / "model.gguf")), tmp_path / "cache", NoProgress())


def test_a_folder_needs_no_unpacking(tmp_path: Path) -> None:
    source = find_language_model(str(save_model(tmp_path / "model", make_model())))
    assert unpack_gguf(source, tmp_path / "cache", NoProgress()) == source
    assert not (tmp_path / "cache").exists()


def write_gguf(path: Path, model: Any, folder: Path) -> None:
    """The model and the tokenizer of ``folder`` as a GGUF file of 8-bit blocks, as llama.cpp lays it out."""
    gguf = pytest.importorskip("gguf")
    config, weights = model.config, {name: each.numpy() for name, each in model.state_dict().items()}
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number < 4 else 1 for number in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in weights.items():
        for part, n in heads.items():
            if part in name:  # llama.cpp rotates neighbouring coordinates, transformers the two halves
                weight = weight.reshape(n, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        if weight.ndim == 2:
            packed = gguf.quantize(np.ascontiguousarray(weight), gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(names.get_name(name, (".weight",)), packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(names.get_name(name, (".weight",)), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_unpacked_once_and_scores_as_the_model_it_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate")
    model = make_model()
    folder = save_model(tmp_path / "model", model)
    write_gguf(tmp_path / "model.gguf", model, folder)
    packed = find_language_model(str(tmp_path / "model.gguf"))
    capsys.readouterr()
    progress = Recorder()
    source = unpack_gguf(packed, tmp_path / "cache", progress)
    assert capsys.readouterr() == ("", "")
    assert len(progress.notes) == 1
    assert source.path == tmp_path / "cache" / "models" / packed.revision
    check_files(source)
    tokenizer = check_same_tokenizer(source, source)
    assert tokenizer("What is two?")["input_ids"] == save_tokenizer(tmp_path / "t")("What is two?")["input_ids"]
    pairs, starts = random_pairs(400, 10, seed=5)
    batch = response_batch(pairs, starts, "cpu")
    unpacked = load_language_model(source, "cpu", "float32")
    # Eight bits a weight change a little, and a wrong layout would change everything.
    assert compare_models(loaded(model), unpacked, batch, 400).jsd.mean() < 1e-3
    assert compare_models(loaded(model), loaded(make_model(seed=1)), batch, 400).jsd.mean() > 0.1
    monkeypatch.setattr("mixwright.language_models.gguf._dequantize", None)
    assert unpack_gguf(packed, tmp_path / "cache", progress) == source
    assert len(progress.notes) == 1
