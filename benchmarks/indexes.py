"""Recall, speed, memory and build time of every kind of index, each tuned to the same recall target.

    python benchmarks/indexes.py [--rows 20000] [--dim 384] [--data FOLDER] [--recall 0.95] [--repeats 3]

``--data`` is a folder of .npy files (n, d), for instance the ``shards`` folder of embeddings; without it the
vectors are generated: unit vectors around rows / 100 centres. One thread. A figure is the median of the repeats,
with the least and the greatest in brackets.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import get_args

import numpy as np

from mixwright.errors import ConvergenceError
from mixwright.indexes.building import build_index
from mixwright.indexes.faiss_import import import_faiss, threads
from mixwright.indexes.protocols import FloatArray
from mixwright.indexes.searching import Searcher
from mixwright.indexes.tuning import ChosenIndex, choose_index
from mixwright.indexes.vectors import ArrayVectors
from mixwright.progress import NoProgress
from mixwright.schemas.requests import IndexKind, IndexRequest

BATCH = 64


def clustered_vectors(n: int, d: int, seed: int = 0) -> FloatArray:
    """Unit vectors (n, d) around n / 100 centres, each of cosine 0.8 or so with its centre."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(n // 100, 1), d))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = centres[rng.integers(0, len(centres), n)] + 0.7 / np.sqrt(d) * rng.standard_normal((n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def read_vectors(folder: Path) -> FloatArray:
    return np.concatenate([np.load(path).astype(np.float32) for path in sorted(folder.glob("*.npy"))])


def queries_a_second(chosen: ChosenIndex, queries: FloatArray, seconds: float = 1.0) -> float:
    """Speed of searches for k = 10 in batches of 64."""
    searcher = Searcher(chosen.index)
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = done % max(len(queries) - BATCH, 1)
        done += len(searcher.search(queries[start : start + BATCH], 10, chosen.settings).ids)
    return done / (time.perf_counter() - begin)


def cpu_seconds(chosen: ChosenIndex, vectors: ArrayVectors) -> float:
    begin = time.process_time()
    build_index(chosen.recipe, vectors)
    return time.process_time() - begin


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.4g} [{min(values):,.4g}–{max(values):,.4g}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=get_args(IndexKind))
    arguments = parser.parse_args()
    array = read_vectors(arguments.data) if arguments.data else clustered_vectors(arguments.rows, arguments.dim)
    vectors = ArrayVectors(array)
    queries = array[np.random.default_rng(1).choice(len(array), min(2048, len(array)), replace=False)]
    print(
        f"{len(array)} × {array.shape[1]}, recall target {arguments.recall}, k 10, batches of {BATCH}, one thread"
    )
    print("| kind | factory | search | recall@10 | queries/s | bytes/vector | build CPU s |")
    print("|---|---|---|---|---|---|---|")
    for kind in arguments.kinds:
        request = IndexRequest(
            corpus="benchmark", index_kind=kind, recall=arguments.recall, queries=arguments.queries
        )
        try:
            chosen = choose_index(vectors, request, "cpu", NoProgress())
        except ConvergenceError as error:
            print(f"| {kind} | {error} |")
            continue
        speeds = [queries_a_second(chosen, queries) for _ in range(arguments.repeats)]
        builds = [cpu_seconds(chosen, vectors) for _ in range(arguments.repeats)]
        n_bytes = import_faiss().serialize_index(chosen.index).nbytes / len(array)
        search = ", ".join(f"{name} {value}" for name, value in chosen.settings.items())
        recall = f"{chosen.recall.measured:.4f} (≥ {chosen.recall.lower_bound:.4f})"
        print(
            f"| {kind} | `{chosen.recipe.factory}` | {search} | {recall} | {spread(speeds)} | {n_bytes:,.0f} "
            f"| {spread(builds)} |",
            flush=True,
        )


if __name__ == "__main__":
    with threads(1):
        main()
