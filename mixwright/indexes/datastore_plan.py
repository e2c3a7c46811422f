"""What a datastore will take: passages, bytes, memory, hours and shards, before anything is built.

Arithmetic on counts, from a thousand tokens to 10¹² and more. Where a figure stands for text or for a machine that
is not there yet, it is a constant below with its source; docs/datastore-plan.md has every formula, and
benchmarks/datastore_plan.py measures the constants again. Bytes of an index are those of its recipe.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from mixwright.errors import ConfigError, DataError
from mixwright.hub import cached_file
from mixwright.indexes.datastore_contents import Contents, split_to_fit
from mixwright.indexes.encoders import EncoderSource, find_encoder
from mixwright.indexes.kinds import Recipe, recipes
from mixwright.schemas.requests import IndexKind

# What is stored

PASSAGE_BYTES = 96
"""Of a passage in its Arrow file, without text and keys: id, numbers of dictionary entries, offsets, counts."""

KEY_BYTES = 16
"""The first 64 bits of a passage's id and of its document's."""

DOCUMENT_BYTES = 48
"""Of a document in the dictionaries of its passages: its id, and where URL and metadata are."""

CLUSTER_BYTES = 8
POSTINGS_PER_WORD = 0.5
"""Different terms of a passage over its words; stop words are no terms (0.43 to 0.51 measured)."""

POSTING_BYTES = 6
"""Row, frequency, and the share of a posting in the table of terms."""

LENGTH_BYTES = 4

SHARD_PASSAGES = 10_000_000
"""Passages of a shard, at most."""

# Machines

GPU_TOKENS_PER_SECOND = 1e9 / (47 * 60)
"""One L40 with an encoder of ``GPU_PARAMETERS``: 10⁹ tokens in 47 minutes (arXiv 2407.12854, Contriever)."""

GPU_PARAMETERS = 110e6
GPU_TERAFLOPS = {"T4": 65.0, "L4": 121.0, "L40": 181.0, "A100": 312.0, "H100": 989.0}
"""Peak of dense 16-bit matrix products, from the makers' data sheets: other GPUs are scaled by it from the L40."""

CPU_TOKENS_PER_SECOND = 3400.0
"""One core with AVX-512 and an encoder of ``CPU_PARAMETERS`` in float32 (5,800 in bfloat16)."""

CPU_PARAMETERS = 22.6e6
CPU_FLOPS = 80e9
"""One core with AVX-512, in the matrix products that assign vectors to lists."""

_KMEANS_ITERATIONS = 10
"""FAISS's own number for the lists of an inverted file."""

_CODE_SECONDS = 18e-9
"""To encode one coordinate of a vector (7 µs at 384)."""

_GRAPH_SECONDS = 13e-6
"""To insert a row into a graph, for each doubling of the rows (9 to 13 µs measured at 50,000 to 200,000 rows)."""

_FLAT_SECONDS = 5e-9
_QUERIES = 2000
"""Queries that tune and measure the recall, each compared with every row."""

_BM25_WORDS_PER_SECOND = 1.2e6
_RECALL = 0.95

_BERT_VOCABULARY = 30_522

Dtype = Literal["float32", "float16"]
_ITEM_BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2}


@dataclass(frozen=True)
class EncoderShape:
    """What of an encoder matters here; ``max_tokens`` None: it reads passages of any length."""

    name: str
    dim: int
    parameters: int
    max_tokens: int | None


@dataclass(frozen=True)
class Disk:
    """Bytes on disk."""

    passages: int
    keys: int
    vectors: int
    index: int
    bm25: int
    clusters: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Memory:
    """Bytes that must stay in memory while the store is searched; the rest is read from disk for hits alone.

    ``bm25`` is for the modes bm25 and hybrid; ``training`` is what training the index takes before, on a machine.
    """

    index: int
    keys_and_clusters: int
    bm25: int
    training: int

    @property
    def dense(self) -> int:
        """For searches by vectors."""
        return self.index + self.keys_and_clusters

    @property
    def hybrid(self) -> int:
        """For searches by vectors and words."""
        return self.dense + self.bm25


@dataclass(frozen=True)
class Hours:
    """``embedding`` are hours of one ``device``: a GPU, or a core; the others are of one core."""

    device: str
    embedding: float
    index: float
    bm25: float


@dataclass(frozen=True)
class DatastorePlan:
    """What a datastore will take. ``flops`` are those of embedding it."""

    contents: Contents
    encoder: EncoderShape
    words_per_passage: int
    dtype: Dtype
    index_kind: str
    factory: str
    shards: int
    passages_per_shard: int
    disk: Disk
    memory: Memory
    memory_per_machine: int | None
    hours: Hours
    flops: float
    warnings: tuple[str, ...]

    @property
    def machines(self) -> dict[str, int] | None:
        """How many hold what must be in memory, for dense and for hybrid search; None where their size is open."""
        if self.memory_per_machine is None:
            return None
        needed = {"dense": self.memory.dense, "hybrid": self.memory.hybrid}
        return {mode: -(-n_bytes // self.memory_per_machine) for mode, n_bytes in needed.items()}

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: exact."""
        return asdict(self) | {
            "disk": asdict(self.disk) | {"total": self.disk.total},
            "memory": asdict(self.memory) | {"dense": self.memory.dense, "hybrid": self.memory.hybrid},
            "machines": self.machines,
            "warnings": list(self.warnings),
        }


# The encoder


def usual_shape(dim: int, parameters: float | None = None, max_tokens: int | None = None) -> EncoderShape:
    """A BERT of that width: d / 64 layers of 12 d² parameters, as of MiniLM-L6 (384) and BERT-base (768).

    Raises ConfigError for a width or a number of parameters below 1.
    """
    if dim < 1 or (parameters is not None and not parameters >= 1):
        raise ConfigError("dim and parameters must be 1 or more: raise them")
    layers = max(round(dim / 64), 1)
    usual = 12 * layers * dim * dim + _BERT_VOCABULARY * dim
    return EncoderShape(f"a BERT of width {dim}", dim, round(parameters or usual), max_tokens)


def encoder_shape(name: str) -> EncoderShape:
    """The shape of an encoder by its files, without loading it.

    Raises NotFoundError for an encoder that is not there, ConfigError for one whose files do not say its shape,
    DataError for damaged files.
    """
    source = find_encoder(name)
    config, limits = _read(source, "config.json"), _read(source, "sentence_bert_config.json")
    try:
        width, layers = config["hidden_size"], config["num_hidden_layers"]
        inner, vocabulary = config["intermediate_size"], config["vocab_size"]
    except KeyError as error:
        raise ConfigError(
            f"encoder {name} does not say its size in config.json: give dim and parameters instead of it"
        ) from error
    parameters = layers * (4 * width * width + 2 * width * inner) + vocabulary * width
    return EncoderShape(name, width, parameters, limits.get("max_seq_length"))


def _read(source: EncoderSource, file: str) -> dict[str, Any]:
    """A JSON file of an encoder; empty where there is none."""
    path = source.path / file if source.path else cached_file(source.name, file)
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"encoder {source.name}: {file} is no JSON: restore the encoder's files") from error
    return found if isinstance(found, dict) else {}


# The plan


def plan_datastore(
    contents: Contents,
    encoder: EncoderShape,
    *,
    words_per_passage: int = 256,
    dtype: Dtype = "float32",
    index_kind: IndexKind = "auto",
    device: str = "L40",
    shard_passages: int = SHARD_PASSAGES,
    memory_per_machine: int | None = None,
) -> DatastorePlan:
    """What a datastore of these contents takes; ``device`` is a GPU of ``GPU_TERAFLOPS``, or ``cpu``.

    Raises ConfigError for a device that is not known, or for sizes below 1.
    """
    if min(shard_passages, memory_per_machine or 1) < 1:
        raise ConfigError("passages a shard and memory a machine must be 1 or more: raise them")
    whole = split_to_fit(contents, words_per_passage, encoder.max_tokens)
    shards = -(-whole.passages // shard_passages)
    index = plan_index(index_kind, whole.passages, encoder.dim, shards)
    bm25 = math.ceil(whole.words * POSTINGS_PER_WORD) * POSTING_BYTES + whole.passages * LENGTH_BYTES
    keys, clusters = whole.passages * KEY_BYTES, whole.passages * CLUSTER_BYTES
    vectors = 0 if index.kind == "flat" else whole.passages * encoder.dim * _ITEM_BYTES[dtype]
    return DatastorePlan(
        contents=whole,
        encoder=encoder,
        words_per_passage=words_per_passage,
        dtype=dtype,
        index_kind=index.kind,
        factory=index.factory,
        shards=shards,
        passages_per_shard=-(-whole.passages // shards),
        disk=Disk(passage_bytes(whole), keys, vectors, index.disk, bm25, clusters),
        memory=Memory(index.resident, keys + clusters, bm25, index.training),
        memory_per_machine=memory_per_machine,
        hours=_hours(whole, encoder, index, device),
        # Shao et al., arXiv 2407.12854: 2 · N_retriever · D_store.
        flops=2.0 * encoder.parameters * whole.tokens,
        warnings=tuple(_warnings(contents, whole, encoder, words_per_passage, index, memory_per_machine)),
    )


def _hours(contents: Contents, encoder: EncoderShape, index: IndexPlan, device: str) -> Hours:
    return Hours(
        device=device,
        embedding=embedding_hours(contents.tokens, encoder.parameters, device),
        index=index.cpu_seconds / 3600,
        bm25=contents.words / _BM25_WORDS_PER_SECOND / 3600,
    )


def passage_bytes(contents: Contents) -> int:
    """Bytes of the Arrow files of passages, without the keys in them."""
    passages = contents.passages * PASSAGE_BYTES
    return contents.text_bytes + passages + contents.documents * DOCUMENT_BYTES + contents.values_bytes


def embedding_hours(tokens: int, parameters: int, device: str) -> float:
    """Hours of one device; time goes with the encoder's parameters. Raises ConfigError for an unknown device."""
    if device == "cpu":
        return tokens / CPU_TOKENS_PER_SECOND * parameters / CPU_PARAMETERS / 3600
    if device not in GPU_TERAFLOPS:
        raise ConfigError(f"gpu {device} is none of {', '.join(GPU_TERAFLOPS)}: name one of them, or cpu")
    speed = GPU_TOKENS_PER_SECOND * GPU_TERAFLOPS[device] / GPU_TERAFLOPS["L40"]
    return tokens / speed * parameters / GPU_PARAMETERS / 3600


class IndexPlan(NamedTuple):
    """An index in shards: ``disk`` and ``resident`` bytes of all, ``lists`` those of copies of its centroids."""

    kind: str
    factory: str
    disk: int
    resident: int
    lists: int
    training: int
    cpu_seconds: float


def plan_index(kind: IndexKind, n: int, dim: int, shards: int) -> IndexPlan:
    """The index that a request for ``kind`` tries first, over n rows in shards that share one training.

    Every shard's file has its rows and a copy of what was trained. Both are taken from the recipe: how much longer
    it gets by one row, and what is left without rows.
    """
    recipe = recipes(kind, n, dim, _RECALL)[0]
    if recipe.kind == "hnsw":
        # Nothing is trained, and a row takes no whole number of bytes.
        size = shards * recipes("hnsw", -(-n // shards), dim, _RECALL)[0].n_bytes
        return IndexPlan("hnsw", recipe.factory, size, size, 0, 0, _build_seconds(recipe, n, dim))
    row = _bytes_of_one_row(recipe, n, dim)
    fixed = recipe.n_bytes - row * n
    disk = row * n + shards * fixed
    resident = disk - _second_copy(recipe, n, dim)
    training = recipe.n_train * dim * 4
    return IndexPlan(
        recipe.kind, recipe.factory, disk, resident, shards * fixed, training, _build_seconds(recipe, n, dim)
    )


def _bytes_of_one_row(recipe: Recipe, n: int, dim: int) -> int:
    """What one more row takes where it changes nothing else."""
    more = _same_kind(recipe, n + 1, dim)
    if more.factory == recipe.factory:
        return more.n_bytes - recipe.n_bytes
    return recipe.n_bytes - _same_kind(recipe, n - 1, dim).n_bytes


def _same_kind(recipe: Recipe, n: int, dim: int) -> Recipe:
    kind: Any = recipe.kind
    return recipes(kind, n, dim, _RECALL)[0]


def _second_copy(recipe: Recipe, n: int, dim: int) -> int:
    """Bytes of the copy that scores candidates again, one a coordinate: only they are read of it.

    The next recipe of the same kind has a copy of twice that, and else is the same.
    """
    kind: Any = recipe.kind
    found = recipes(kind, n, dim, _RECALL)
    return found[1].n_bytes - found[0].n_bytes if len(found) > 1 else 0


def _build_seconds(recipe: Recipe, n: int, dim: int) -> float:
    """Seconds of one core: training, adding, and the brute force that the recall is measured against."""
    if recipe.kind == "flat":
        return n * dim * _FLAT_SECONDS
    measuring = 2.0 * _QUERIES * n * dim / CPU_FLOPS
    if recipe.kind == "hnsw":
        return n * max(math.log2(n), 1.0) * _GRAPH_SECONDS + measuring
    coding = 0.0 if recipe.kind == "ivf" else n * dim * _CODE_SECONDS
    lists = recipe.ladders["nprobe"][-1] if "nprobe" in recipe.ladders else 0
    assigned = _KMEANS_ITERATIONS * recipe.n_train + n
    return 2.0 * assigned * lists * dim / CPU_FLOPS + coding + measuring


def _warnings(
    contents: Contents,
    split: Contents,
    encoder: EncoderShape,
    window: int,
    index: IndexPlan,
    memory_per_machine: int | None,
) -> Iterator[str]:
    if split.passages > contents.passages:
        tokens = window * contents.tokens / contents.words
        yield (
            f"{window} words are about {tokens:.0f} tokens and the encoder reads {encoder.max_tokens}: passages "
            f"are split, into {split.passages / contents.passages:.2f} on average"
        )
    if index.lists > index.resident - index.lists:
        yield "the shards' copies of the lists take more than the rows: make larger shards by shard_passages"
    if memory_per_machine is not None and index.training > memory_per_machine:
        yield f"training the index takes {index.training / 1e9:,.0f} GB on one machine: have one that is larger"
    if 0 < contents.measured_share < 1:
        yield f"the passages were counted in {contents.measured_share:.1%} of the text"
