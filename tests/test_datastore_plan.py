"""What a plan says of a datastore, against published figures, numbers by hand, and files that are written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import document_table
from typer.testing import CliRunner

from mixwright.cli import app
from mixwright.cli.datastore_plan import size
from mixwright.corpora import Corpus
from mixwright.errors import DataError, MixwrightError
from mixwright.indexes import datastore_contents
from mixwright.indexes.bm25 import write_bm25
from mixwright.indexes.building import add_vectors, train_index
from mixwright.indexes.datastore_contents import (
    Contents,
    assumed_contents,
    measured_contents,
    split_to_fit,
)
from mixwright.indexes.datastore_plan import (
    embedding_hours,
    encoder_shape,
    passage_bytes,
    plan_datastore,
    plan_index,
    usual_shape,
)
from mixwright.indexes.datastores.pieces import write_passages
from mixwright.indexes.faiss_import import import_faiss
from mixwright.indexes.kinds import recipes
from mixwright.indexes.passages import passages_of
from mixwright.indexes.vectors import ArrayVectors
from mixwright.schemas.datastores import PassageWindow
from mixwright.store import Store

ROOT = Path(__file__).parent.parent
CONTRIEVER = usual_shape(768, 110e6)


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["datastore", "plan", *arguments], catch_exceptions=True)


def planned(*arguments: str) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


# Published figures (MassiveDS, arXiv 2407.12854, and what follows from them)


def test_a_billion_tokens_are_what_was_published() -> None:
    plan = plan_datastore(assumed_contents(1e9, 256), CONTRIEVER)
    assert plan.contents.passages == pytest.approx(3_518_123, rel=1e-4)
    assert plan.hours.embedding * 60 == pytest.approx(47, rel=1e-6)
    assert plan.warnings == ()


def test_a_trillion_tokens_are_what_was_published() -> None:
    found = planned("--tokens", "1e12", "--dim", "768", "--parameters", "110M", "--dtype", "float16")
    passages = found["contents"]["passages"]
    assert passages == pytest.approx(3.5e9, rel=0.01)
    assert found["hours"]["embedding"] == pytest.approx(780, rel=0.01)
    assert found["shards"] == pytest.approx(350, rel=0.01)
    assert found["disk"]["vectors"] == pytest.approx(5.4e12, rel=0.01)
    assert found["flops"] == 2 * 110e6 * 1e12
    # 0.42 TB of codes, in one piece; every shard has a copy of the lists besides.
    assert plan_index("rabitq", passages, 768, 1).resident == pytest.approx(0.42e12, rel=0.07)
    assert found["memory"]["index"] > 2 * 0.42e12
    assert [each for each in found["warnings"] if "copies of the lists" in each]
    larger = planned("--tokens", "1e12", "--dim", "768", "--shard-passages", "50M")
    assert larger["memory"]["index"] == pytest.approx(0.42e12 * 1.2, rel=0.02)
    assert larger["warnings"] == []


# By hand


def test_every_line_by_hand() -> None:
    contents = Contents(
        tokens=13_000_000,
        words=10_000_000,
        documents=20_000,
        passages=50_000,
        text_bytes=61_000_000,
        values_bytes=10**6,
    )
    plan = plan_datastore(contents, usual_shape(100, 2e6), device="H100", memory_per_machine=10**7)
    n = 50_000
    assert plan.disk.passages == 61_000_000 + 96 * n + 48 * 20_000 + 10**6
    assert plan.disk.keys == 16 * n
    assert plan.disk.clusters == 8 * n
    assert plan.disk.bm25 == 6 * 5_000_000 + 4 * n
    # Up to 100,000 rows the index is flat, in float32, and holds the vectors itself.
    assert plan.index_kind == "flat"
    assert plan.disk.vectors == 0
    assert plan.disk.index == plan.memory.index == recipes("flat", n, 100, 0.95)[0].n_bytes
    assert plan.memory.training == 0
    assert plan.memory.dense == plan.disk.index + 24 * n
    assert plan.memory.hybrid == plan.memory.dense + plan.disk.bm25
    assert plan.machines == {"dense": math.ceil(21_208_192 / 1e7), "hybrid": math.ceil(51_408_192 / 1e7)}
    assert plan.shards == 1
    assert plan.hours.embedding == pytest.approx(13e6 / 1e9 * 47 / 60 * 2 / 110 * 181 / 989)
    assert plan.flops == 2 * 2e6 * 13e6
    found = plan.as_dict()
    assert found["disk"]["total"] == sum(value for name, value in found["disk"].items() if name != "total")
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_vectors_of_other_kinds_are_stored_beside_the_index() -> None:
    contents = assumed_contents(1e8, 256)
    n = contents.passages
    half = plan_datastore(contents, CONTRIEVER, index_kind="ivf", dtype="float16")
    whole = plan_datastore(contents, CONTRIEVER, index_kind="ivf")
    assert half.disk.vectors == 2 * 768 * n
    assert whole.disk.vectors == 4 * 768 * n
    assert half.disk.index == half.memory.index == recipes("ivf", n, 768, 0.95)[0].n_bytes
    assert half.memory.training == recipes("ivf", n, 768, 0.95)[0].n_train * 768 * 4


def test_an_encoder_tells_its_size() -> None:
    shape = encoder_shape("all-minilm-l6-v2")
    assert (shape.dim, shape.max_tokens) == (384, 256)
    # 22,713,216 with positions, norms, biases and the pooler.
    assert shape.parameters == pytest.approx(22_713_216, rel=0.02)
    assert usual_shape(384).parameters == pytest.approx(shape.parameters, rel=0.01)
    assert usual_shape(768).parameters == pytest.approx(109_482_240, rel=0.02)
    on_cpu, on_gpu = (embedding_hours(10**9, shape.parameters, device) for device in ("cpu", "L40"))
    assert on_cpu / on_gpu > 100


@pytest.mark.parametrize("tokens", [1e3, 1e6, 1e9, 1e12, 1e15])
@pytest.mark.parametrize("kind", ["auto", "flat", "hnsw", "ivf", "ivf-pq", "rabitq"])
def test_every_size_and_kind_has_a_plan(tokens: float, kind: Any) -> None:
    plan = plan_datastore(assumed_contents(tokens, 256), CONTRIEVER, index_kind=kind)
    assert plan.shards == math.ceil(plan.contents.passages / 10_000_000)
    assert 0 < plan.memory.index <= plan.disk.index
    assert min(plan.hours.embedding, plan.hours.index, plan.hours.bm25) > 0
    if tokens >= 1e6:
        assert plan.contents.passages == pytest.approx(tokens / 1e9 * 3_518_123, rel=1e-3)
    if kind == "auto":
        assert plan.index_kind == ("flat" if plan.contents.passages <= 100_000 else "rabitq")


# Files that are really written


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "ivf-pq", "rabitq"])
def test_index_bytes_are_those_of_the_files(kind: Any, tmp_path: Path) -> None:
    faiss = import_faiss()
    n, dim, shards = 6000, 48, 3
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    recipe = recipes(kind, n, dim, 0.95)[0]
    written = 0
    for number in range(shards):
        index = train_index(recipe, ArrayVectors(vectors))
        add_vectors(index, ArrayVectors(vectors[n * number // shards : n * (number + 1) // shards]))
        faiss.write_index(index, str(tmp_path / "index"))
        written += (tmp_path / "index").stat().st_size
    plan = plan_index(kind, n, dim, shards)
    # A recipe rounds up: blocks of 32 codes in lists of few rows are not full.
    assert written <= plan.disk < written * (2 if "PQ" in recipe.factory else 1.2) + shards * 8192
    assert plan_index(kind, n, dim, 1).disk == recipe.n_bytes
    if "Refine" in recipe.factory:
        copy = faiss.downcast_index(index.refine_index)
        assert plan.disk - plan.resident == copy.code_size * n
    else:
        assert plan.resident == plan.disk


def test_a_plan_at_scale_keeps_the_codes_in_memory_and_not_the_copy() -> None:
    n, dim, shards = 5_000_000, 384, 5
    plan = plan_index("auto", n, dim, shards)
    lists = round(4 * math.sqrt(n))
    code = dim // 8 + 8
    rows = n * (code + 8)
    # Centroids and a block of 32 codes for each list, in each shard; rotations and headers are below 1 MB.
    copies = shards * lists * (4 * dim + 16 + 32 * code)
    assert plan.resident == pytest.approx(rows + copies, abs=shards * 2**20)
    assert plan.disk - plan.resident == n * dim
    assert plan.training == 64 * lists * dim * 4
    assert plan.lists == pytest.approx(copies, abs=shards * 2**20)


def real_text(copies: int) -> list[str]:
    pages = [path.read_text("utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))]
    return [f"{page}\n{number}" for number in range(copies) for page in pages]


def test_passages_and_postings_take_what_is_planned(tmp_path: Path) -> None:
    texts = real_text(10)
    urls = [f"https://example.org/docs/{number}/a-page-with-a-name" for number in range(len(texts))]
    metadata = [json.dumps({"title": f"page {number}", "more": "x" * 80}) for number in range(len(texts))]
    documents = document_table(texts, urls=urls, metadata=metadata)
    found = passages_of(documents, PassageWindow(), "split", None, "{text}", lambda each: [0] * len(each))
    with (tmp_path / "passages.arrow").open("wb") as file:
        write_passages(found, file)
    contents = Contents(
        tokens=1,
        words=sum(len(text.split()) for text in texts),
        documents=len(texts),
        passages=found.num_rows,
        text_bytes=sum(len(text.encode()) for text in texts),
        values_bytes=sum(len(value.encode()) for value in (*urls, *metadata)),
    )
    plan = plan_datastore(contents, CONTRIEVER)
    own = (tmp_path / "passages.arrow").stat().st_size - contents.text_bytes - contents.values_bytes
    assert passage_bytes(contents) + plan.disk.keys - contents.text_bytes - contents.values_bytes == pytest.approx(
        own, rel=0.15
    )
    write_bm25([found["text"].to_pylist()], tmp_path / "bm25")
    postings = len(np.load(tmp_path / "bm25" / "rows.npy"))
    written = sum(each.stat().st_size for each in (tmp_path / "bm25").glob("*.npy"))
    # Pages full of flags and paths have more different terms than prose.
    assert postings / contents.words == pytest.approx(0.5, rel=0.4)
    assert written / postings == pytest.approx(6, rel=0.3)


def test_corpora_are_counted(store: Store, publish_corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"word{i}" for i in rng.integers(0, 10**6, n)) for n in rng.integers(5, 1500, 900)]
    urls = [f"https://example.org/{number}" for number in range(900)]
    table = document_table(texts, urls=urls)
    publish_corpus("text", table, shard_rows=50)
    corpus = Corpus.open(store, "text")
    found = passages_of(table, PassageWindow(size=100), "split", None, "{text}", lambda each: [0] * len(each))
    contents = measured_contents([corpus], PassageWindow(size=100))
    words = sum(len(text.split()) for text in texts)
    assert contents == Contents(
        # The corpus counts bytes, which are no tokens of an encoder.
        tokens=round(1.3 * words),
        words=words,
        documents=900,
        passages=found.num_rows,
        text_bytes=sum(map(len, texts)),
        values_bytes=contents.values_bytes,
        measured_share=1.0,
    )
    # The metadata is {} everywhere, and stored once a piece.
    assert contents.values_bytes == pytest.approx(sum(map(len, urls)), rel=0.01)
    assert measured_contents([corpus], PassageWindow(), 2.0).tokens == 2 * words
    twice = measured_contents([corpus, corpus], PassageWindow(size=100))
    assert (twice.words, twice.passages) == (2 * words, 2 * found.num_rows)
    monkeypatch.setattr(datastore_contents, "SAMPLE_BYTES", 600_000)
    monkeypatch.setattr(datastore_contents, "_BATCH_ROWS", 10)
    sampled = measured_contents([corpus], PassageWindow(size=100))
    assert 0.05 < sampled.measured_share < 0.5
    assert sampled.documents == 900
    assert sampled.passages == pytest.approx(found.num_rows, rel=0.1)
    assert sampled.words == pytest.approx(words, rel=0.02)
    result = planned("text", "--words-per-passage", "100", "--home", str(store.home))
    assert result["contents"]["words"] == sampled.words
    assert any("of the text" in each for each in result["warnings"])


def test_an_empty_corpus_is_an_error(store: Store, publish_corpus: Any) -> None:
    publish_corpus("blank", document_table([" "]))
    with pytest.raises(DataError, match="no text to retrieve from"):
        measured_contents([Corpus.open(store, "blank")], PassageWindow())


@pytest.mark.parametrize("longest", [150, 2000])
def test_passages_are_split_as_often_as_a_loop_splits_them(longest: int) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, longest, 20_000)
    tokens_per_word, window, limit = 1.3, 256, 100
    whole = [min(window, int(length) - start) for length in lengths for start in range(0, int(length), window)]
    split = sum(math.ceil(words * tokens_per_word / (limit - 2)) for words in whole)
    words = int(lengths.sum())
    contents = Contents(round(words * tokens_per_word), words, len(lengths), len(whole), 1, 1)
    assert split_to_fit(contents, window, limit).passages == pytest.approx(split, rel=0.03)
    assert split_to_fit(contents, window, None) == contents
    assert split_to_fit(contents, window, 10_000) == contents


# The command


def test_the_default_encoder_reads_less_than_a_passage() -> None:
    found = planned("--tokens", "1B")
    assert found["encoder"]["dim"] == 384
    assert found["contents"]["passages"] > 1.5 * 3_518_123
    assert found["warnings"] == [
        "256 words are about 333 tokens and the encoder reads 256: passages are split, into 1.78 on average"
    ]
    short = planned("--tokens", "1B", "--words-per-passage", "190")
    assert short["warnings"] == []


def test_a_person_reads_sizes_in_decimal_units() -> None:
    size = ("--tokens", "1e12", "--dim", "768", "--parameters", "110M", "--dtype", "float16")
    result = invoke(*size, "--memory-per-machine", "256GB")
    assert result.exit_code == 0, result.output
    assert "3,518,098,224 passages of up to 256 words" in result.stdout
    for cell in ("5.40 TB", "783 L40 hours", "46.6 GB", "2.2e+20", "352", "of 256 GB, to serve"):
        assert cell in result.stdout
    on_cores = invoke("--tokens", "1e6", "--cpu")
    assert "core hours" in on_cores.stdout
    assert "L40" not in on_cores.stdout


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (999_999, "1.00 MB"),
        (46.6e9, "46.6 GB"),
        (123.4e9, "123 GB"),
        (5.4e12, "5.40 TB"),
        (3e21, "3,000 EB"),
    ],
)
def test_sizes(n_bytes: float, text: str) -> None:
    assert size(n_bytes) == text


def test_amounts_may_be_written_in_several_ways() -> None:
    for text in ("5e8", "500M", "0.5B", "500_000_000", "500,000,000", "0.5g"):
        assert planned("--tokens", text)["contents"]["tokens"] == 500_000_000
    memory = [
        planned("--tokens", "1M", "--memory-per-machine", text)["memory_per_machine"] for text in ("256GB", "1GiB")
    ]
    assert memory == [256 * 10**9, 2**30]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name corpora, or say by --tokens how much text there is"),
        (["wiki", "--tokens", "1e9"], "one of the two"),
        (["--tokens", "many"], "--tokens many: write a number such as 1e12 or 50M"),
        (["--tokens", "0"], "--tokens 0: it must be from 1"),
        (["--tokens", "1e30"], "it must be from 1 to 1e+24"),
        (["--tokens", "1e9", "--memory-per-machine", "256"], "such as 256GB"),
        (["--tokens", "1e9", "--memory-per-machine", "256 apples"], "such as 256GB"),
        (["--tokens", "1e9", "--gpu", "abacus"], "gpu ABACUS is none of T4, L4, L40, A100, H100"),
        (["--tokens", "1e9", "--gpu", "L40", "--cpu"], "exclude each other"),
        (["--tokens", "1e9", "--dtype", "int8"], "neither float32 nor float16"),
        (["--tokens", "1e9", "--encoder", "hashing"], "does not say its size in config.json"),
        (["--tokens", "1e9", "--encoder", "all-minilm-l6-v2", "--dim", "3"], "leave them out"),
        (["--tokens", "1e9", "--parameters", "1M"], "--parameters needs --dim"),
        (["--tokens", "1e9", "--dim", "0"], "dim and parameters must be 1 or more"),
        (["--tokens", "1e9", "--fill", "0.3"], "fill 0.3 is not from 0.5"),
        (["--tokens", "1e9", "--tokens-per-word", "0"], "must be above 0"),
        (["--tokens", "1e9", "--words-per-passage", "0"], "not from 1 to 1,000,000"),
        (["--tokens", "1e9", "--shard-passages", "0"], "--shard-passages 0"),
        (["wiki", "--fill", "0.9"], "--fill is counted where there are corpora"),
        (["nothing"], "no corpus nothing"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    error = invoke(*arguments, "--home", str(tmp_path)).exception
    assert isinstance(error, MixwrightError)
    assert message in str(error)
    assert "\n" not in str(error)
