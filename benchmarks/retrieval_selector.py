"""The retrieval selector on real text: how much of what it chooses is of the right kind, beside random.

    OMP_NUM_THREADS=1 python benchmarks/retrieval_selector.py [--data FOLDER] [--encoder all-minilm-l6-v2]
                      [--documents 100] [--seeds 5] [--cache FOLDER] [--size 1000000] [--targets 1000]

``--data`` holds ``corpus/medquad.jsonl``, ``recipes.jsonl``, ``tldr.jsonl`` and ``dc_code.jsonl`` (field ``text``)
and ``retrieval/qa_pubmedqa/queries.jsonl``. ``--cache`` keeps the vectors. Without ``--data`` the pool has
``--size`` documents of 20 made-up topics, and the target ``--targets`` examples of three of them: CPU
seconds, and the peak of memory above the pool itself.

Three targets; the pool is everything that is not in the target:

- half: a random half of the medical answers. Right are the answers of the other half;
- questions: the questions of PubMedQA, which are of another form. Right are all medical answers;
- blend: 20 documents each of the medical answers, the recipes and the shell commands. Right are those three.

Precision is the share of the chosen documents that are right, least is the smallest share that one of the right
sources got (of equal shares: one over their number), cosine is the mean over the target's examples of their best
cosine with a chosen document. Figures: mean ± standard deviation over the seeds, which draw the targets.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mixwright.indexes.encoders import load_encoder
from mixwright.indexes.vectors import ArrayVectors
from mixwright.schemas.defaults import DEFAULT_ENCODER
from mixwright.schemas.documents import DOCUMENT_SCHEMA, ID_LENGTH
from mixwright.schemas.mixtures import Budget
from mixwright.selectors.baselines import Random
from mixwright.selectors.documents import Documents
from mixwright.selectors.mixture import Mixture
from mixwright.selectors.pool import Pool
from mixwright.selectors.retrieval import Retrieval, target_vectors
from mixwright.selectors.retrieval_report import nearness

SOURCES = ("medquad", "recipes", "tldr", "dc_code")
ROWS_AT_ONCE = 50_000
BLEND, OF_EACH = ("medquad", "recipes", "tldr"), 20
METHODS: dict[str, dict[str, Any]] = {
    "random": {},
    "mean": {"rule": "mean"},
    "mean of 5 nearest": {"rule": "mean", "neighbours": 5},
    "max": {"rule": "max"},
    "round_robin": {},
    "round_robin, no dedup": {"dedup": False},
}


class Texts(NamedTuple):
    """Texts of one source and their vectors (n, d)."""

    texts: list[str]
    vectors: np.ndarray

    def take(self, rows: np.ndarray) -> Texts:
        return Texts([self.texts[row] for row in rows], self.vectors[rows])


class Task(NamedTuple):
    """A pool with its target, and the sources that are right."""

    name: str
    pool: Pool
    right: tuple[str, ...]


def read(path: Path, encoder: str, cache: Path | None) -> Texts:
    """The distinct texts of a file of JSON lines, embedded."""
    texts = list(dict.fromkeys(json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()))
    kept = cache / f"{path.parent.name}-{path.stem}.{encoder.replace('/', '-')}.npy" if cache else None
    if kept is not None and kept.exists():
        return Texts(texts, np.load(kept))
    vectors = load_encoder(encoder).encode(texts)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, vectors)
    return Texts(texts, vectors)


def table(name: str, texts: list[str]) -> pa.Table:
    n = len(texts)
    columns = {
        "id": [hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH] for text in texts],
        "text": texts,
        "source": [name] * n,
        "domain": [None] * n,
        "url": [None] * n,
        "n_tokens": [len(text.split()) for text in texts],
        "metadata": ["{}"] * n,
    }
    return pa.table(columns, schema=DOCUMENT_SCHEMA)


def pool_of(sources: dict[str, Texts], target: Texts) -> Pool:
    shown = {**sources, "target": target}
    return Pool.from_tables(
        {name: table(name, each.texts) for name, each in shown.items()},
        vectors={name: ArrayVectors(each.vectors) for name, each in shown.items()},
        examples="target",
    )


def tasks(sources: dict[str, Texts], questions: Texts, seed: int) -> Iterator[Task]:
    rng = np.random.default_rng(seed)
    medical = sources["medquad"]
    order = rng.permutation(len(medical.texts))
    half = len(order) // 2
    yield Task(
        "half",
        pool_of({**sources, "medquad": medical.take(order[half:])}, medical.take(order[:half])),
        ("medquad",),
    )
    yield Task("questions", pool_of(sources, questions), ("medquad",))
    drawn = {name: rng.permutation(len(sources[name].texts)) for name in BLEND}
    parts = [sources[name].take(rows[:OF_EACH]) for name, rows in drawn.items()]
    target = Texts(
        [text for part in parts for text in part.texts], np.concatenate([part.vectors for part in parts])
    )
    rest = {name: sources[name].take(rows[OF_EACH:]) for name, rows in drawn.items()}
    yield Task("blend", pool_of({**sources, **rest}, target), BLEND)


def measure(task: Task, method: str, n: int, seed: int) -> dict[str, float]:
    selector = Random(seed=seed) if method == "random" else Retrieval(seed=seed, **METHODS[method])
    mixture = selector.select(task.pool, Budget(documents=n))
    taken = {each.name: each.n_rows for each in mixture.components}
    right = [taken.get(name, 0) for name in task.right]
    _, _, targets = target_vectors(task.pool)
    best = nearness(Documents.of(task.pool), targets, numbers(mixture, task.pool)).best
    return {
        "precision": sum(right) / n,
        "least": min(right) / n,
        "cosine": float(best.mean()),
        "left out": mixture.report["documents"]["left_out"] if mixture.report else 0,
    }


def scale(n: int, n_targets: int, n_documents: int, dim: int = 384) -> None:
    """Print time and memory of one selection from n documents."""
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((20, dim), dtype=np.float32)

    def near(topic: np.ndarray) -> np.ndarray:
        vectors = topics[topic] + rng.standard_normal((len(topic), dim), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    vectors = np.empty((n, dim), dtype=np.float32)
    for start in range(0, n, ROWS_AT_ONCE):
        part = vectors[start : start + ROWS_AT_ONCE]
        part[:] = near(rng.integers(20, size=len(part)))
    documents = Texts([f"document {row}" for row in range(n)], vectors)
    target = Texts([f"example {row}" for row in range(n_targets)], near(rng.integers(3, size=n_targets)))
    pool = pool_of({"made": documents}, target)
    print("| documents | targets | chosen | rule | CPU s | MB |\n|---|---|---|---|---|---|")
    for rule in ("round_robin", "max"):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before, cpu = memory("VmRSS"), time.process_time()
        chosen = Retrieval(rule=rule).select(pool, Budget(documents=n_documents)).n_rows
        figures = f"{time.process_time() - cpu:.0f} | {memory('VmHWM') - before:.0f}"
        print(f"| {n:,} | {n_targets:,} | {chosen:,} | {rule} | {figures} |", flush=True)


def memory(field: str) -> float:
    """A field of /proc/self/status in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def numbers(mixture: Mixture, pool: Pool) -> np.ndarray:
    """The chosen documents by their number among the distinct ones."""
    documents = Documents.of(pool)
    names = [source.name for source in pool.sources]
    parts = []
    for component, selection in zip(mixture.components, mixture.selections, strict=True):
        rows = np.arange(selection.n_selected) if selection.passes else selection.remainder
        here = documents.source == names.index(component.name)
        parts.append(np.flatnonzero(here & np.isin(documents.row, rows)))
    return np.concatenate(parts)


def real(arguments: argparse.Namespace) -> None:
    """Print what was chosen from real text."""
    sources = {
        name: read(arguments.data / "corpus" / f"{name}.jsonl", arguments.encoder, arguments.cache)
        for name in SOURCES
    }
    questions = read(
        arguments.data / "retrieval" / "qa_pubmedqa" / "queries.jsonl", arguments.encoder, arguments.cache
    )
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    shares: dict[str, float] = {}
    for seed in range(arguments.seeds):
        for task in tasks(sources, questions, seed):
            sizes = {source.name: len(source.ids) for source in task.pool.sources}
            shares[task.name] = sum(sizes[name] for name in task.right) / sum(sizes.values())
            for method in METHODS:
                found.setdefault((task.name, method), []).append(measure(task, method, arguments.documents, seed))
    print(f"{arguments.documents} documents; right in the pool: ", end="")
    print(", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    print("| target | rule | precision | least | cosine | left out |\n|---|---|---|---|---|---|")
    for (task_name, method), figures in found.items():
        columns = [[each[name] for each in figures] for name in figures[0]]
        shown = " | ".join(f"{np.mean(column):.3f} ± {np.std(column):.3f}" for column in columns[:3])
        print(f"| {task_name} | {method} | {shown} | {np.mean(columns[3]):.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--targets", type=int, default=1000)
    arguments = parser.parse_args()
    if arguments.data is None:
        scale(arguments.size, arguments.targets, arguments.documents)
    else:
        real(arguments)


if __name__ == "__main__":
    main()
