"""PASER's clustering beside others: agreement with labels, CPU seconds, memory.

    OMP_NUM_THREADS=1 python benchmarks/paser.py [--data FOLDER] [--sizes 2000 20000 55185 200000 1000000]
                                                 [--encoder all-minilm-l6-v2] [--cache FOLDER] [--seeds 3]

Synthetic vectors: 12 topics; half of the vectors are in 300 tight islands, as texts of one template are, each
island within a topic. ``--data`` adds labelled text: ``labelled/banking77_train.csv`` and ``_test.csv`` (columns
``text`` and ``category``), ``instructions/mixed.jsonl`` and ``p3_sample.jsonl`` (fields ``instruction``,
``ability``, ``source``), 2,000 texts of each or what there is; the larger sizes are the BANKING77 vectors repeated
with noise (cosine 0.95). ``--encoder`` is a name that mixwright knows, or ``wordllama``; ``--cache`` keeps the
vectors.

The number of clusters is the number of labels. Every run has its own process; CPU seconds are of all threads,
memory is the peak above that with the libraries imported and the vectors loaded. Figures: mean ± standard
deviation over the seeds, which draw the texts too.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.indexes.encoders import load_encoder
from mixwright.indexes.kmeans import kmeans
from mixwright.indexes.protocols import FloatArray
from mixwright.schemas.defaults import DEFAULT_ENCODER
from mixwright.selectors.clustering import fit_clustering
from mixwright.selectors.paser_paper import LARGEST_PAPER, paper_clustering

Labels = npt.NDArray[np.int64]
TOPICS, ISLANDS, LABELLED = 12, 300, 2000
ROWS_AT_ONCE = 50_000


class Dataset(NamedTuple):
    """Vectors (n, d) and labels (n,) of one seed, by the name of the table's row."""

    name: str
    vectors: FloatArray
    labels: Labels


def mixwright(vectors: FloatArray, k: int, seed: int) -> Labels:
    return fit_clustering(vectors, n_clusters=k, seed=seed).assign(vectors)


def paper(vectors: FloatArray, k: int, seed: int) -> Labels:
    return paper_clustering(vectors, n_clusters=k, seed=seed).landmark_labels


def sklearn_spectral(affinity: str) -> Callable[[FloatArray, int, int], Labels]:
    def cluster(vectors: FloatArray, k: int, seed: int) -> Labels:
        from sklearn.cluster import SpectralClustering

        return SpectralClustering(k, affinity=affinity, random_state=seed).fit_predict(vectors)

    return cluster


def sklearn_kmeans(vectors: FloatArray, k: int, seed: int) -> Labels:
    from sklearn.cluster import KMeans

    return KMeans(k, random_state=seed).fit_predict(vectors)


def faiss_kmeans(vectors: FloatArray, k: int, seed: int) -> Labels:
    centroids = kmeans(vectors, k, seed=seed, iterations=25)
    parts = range(0, len(vectors), ROWS_AT_ONCE)
    return np.concatenate([(vectors[at : at + ROWS_AT_ONCE] @ centroids.T).argmax(axis=1) for at in parts])


METHODS: dict[str, tuple[Callable[[FloatArray, int, int], Labels], int, str]] = {
    "mixwright": (mixwright, 10**9, ""),
    "mode=paper": (paper, LARGEST_PAPER, "dense n × n matrices"),
    "sklearn spectral, rbf": (sklearn_spectral("rbf"), 4000, "dense n × n matrices"),
    "sklearn spectral, neighbours": (sklearn_spectral("nearest_neighbors"), 20_000, "minutes of eigenvectors"),
    "sklearn k-means": (sklearn_kmeans, 10**9, ""),
    "FAISS k-means": (faiss_kmeans, 10**9, ""),
}
"""Each method, the most vectors it is run on, and why."""


def memory(field: str) -> float:
    """A field of /proc/self/status in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def measure(method: str, folder: Path, k: int, seed: int) -> dict[str, float]:
    """One run, in a process of its own."""
    import warnings

    import faiss  # noqa: F401
    import scipy.sparse.linalg  # noqa: F401
    import sklearn.cluster
    import sklearn.decomposition  # noqa: F401
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    warnings.simplefilter("ignore")  # scikit-learn's, of graphs that are not connected
    vectors, labels = np.load(folder / "vectors.npy"), np.load(folder / "labels.npy")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, cpu, wall = memory("VmRSS"), time.process_time(), time.perf_counter()
    found = METHODS[method][0](vectors, k, seed)
    cpu, wall, peak = time.process_time() - cpu, time.perf_counter() - wall, memory("VmHWM")
    return {
        "ARI": adjusted_rand_score(labels, found),
        "NMI": normalized_mutual_info_score(labels, found),
        "largest": np.bincount(found).max() / len(found),
        "CPU s": cpu,
        "wall s": wall,
        "MB": peak - before,
    }


def near(middles: FloatArray, cosine: float, rng: np.random.Generator) -> FloatArray:
    """Unit vectors at about the given cosine to ``middles`` (n, d)."""
    noise = rng.standard_normal(middles.shape, dtype=np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    found = cosine * middles + np.float32(np.sqrt(1 - cosine**2)) * noise
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def in_parts(n: int, make: Callable[[int], FloatArray], dim: int) -> FloatArray:
    """Rows (n, dim) made part by part, so that only they are in memory."""
    vectors = np.empty((n, dim), dtype=np.float32)
    for start in range(0, n, ROWS_AT_ONCE):
        part = vectors[start : start + ROWS_AT_ONCE]
        part[:] = make(len(part))
    return vectors


def synthetic(n: int, dim: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    topics = near(np.zeros((TOPICS, dim), np.float32), 0, rng)
    island_topic = np.arange(ISLANDS) % TOPICS
    centres = near(topics[island_topic], 0.4, rng)
    labels = []

    def make(size: int) -> FloatArray:
        island, topic = rng.integers(ISLANDS, size=size), rng.integers(TOPICS, size=size)
        on_island = rng.random(size) < 0.5
        labels.append(np.where(on_island, island_topic[island], topic))
        return np.where(on_island[:, None], near(centres[island], 0.97, rng), near(topics[topic], 0.3, rng))

    vectors = in_parts(n, make, dim)
    return Dataset("synthetic islands", vectors, np.concatenate(labels))


def labelled_texts(folder: Path) -> Iterator[tuple[str, list[str], dict[str, list[str]]]]:
    """Name, texts and label columns of each labelled set."""
    rows: list[dict[str, str]] = []
    for part in ("train", "test"):
        with (folder / "labelled" / f"banking77_{part}.csv").open() as file:
            rows += csv.DictReader(file)
    yield "banking77", [row["text"] for row in rows], {"intent": [row["category"] for row in rows]}
    for name in ("mixed", "p3_sample"):
        lines = (folder / "instructions" / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        columns = {column: [row[column] for row in rows] for column in ("ability", "source")}
        yield name, [row["instruction"] for row in rows], columns


def embedded(name: str, texts: list[str], encoder: str, cache: Path) -> FloatArray:
    path = cache / f"{name}.{encoder.replace('/', '-')}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, encode(texts, encoder))
    return np.load(path)


def encode(texts: list[str], encoder: str) -> FloatArray:
    if encoder != "wordllama":
        return np.asarray(load_encoder(encoder).encode(texts), dtype=np.float32)
    import wordllama

    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    vectors = np.asarray(model.embed(texts, norm=True), dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def real(folder: Path, encoder: str, cache: Path, sizes: list[int]) -> Iterator[Callable[[int], Dataset]]:
    """A function of the seed for each real data set."""
    for name, texts, columns in labelled_texts(folder):
        vectors = embedded(name, texts, encoder, cache)
        for column, values in columns.items():
            labels = np.unique(values, return_inverse=True)[1]
            yield lambda seed, title=f"{name} {column}", v=vectors, y=labels: drawn(title, v, y, LABELLED, seed)
        if name == "banking77":
            intents = labels
            yield lambda seed, v=vectors, y=intents: drawn("banking77 intent", v, y, len(v), seed)
            for n in sizes:
                if n > len(vectors):
                    yield lambda seed, v=vectors, y=intents, n=n: repeated(v, y, n, seed)


def drawn(title: str, vectors: FloatArray, labels: Labels, n: int, seed: int) -> Dataset:
    rows = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:n])
    return Dataset(title, vectors[rows], labels[rows])


def repeated(vectors: FloatArray, labels: Labels, n: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    rows: list[Labels] = []

    def make(size: int) -> FloatArray:
        rows.append(rng.integers(len(vectors), size=size))
        return near(vectors[rows[-1]], 0.95, rng)

    made = in_parts(n, make, vectors.shape[1])
    return Dataset("banking77 intent, repeated with noise", made, labels[np.concatenate(rows)])


def run(make: Callable[[int], Dataset], methods: list[str], seeds: int) -> None:
    """Print one line a method."""
    figures: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for seed in range(seeds):
        data = make(seed)
        (n, dim), k = data.vectors.shape, len(np.unique(data.labels))
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "vectors.npy", data.vectors)
            np.save(Path(folder) / "labels.npy", data.labels)
            name, data = data.name, None  # type: ignore[assignment]
            for method in methods:
                if n <= METHODS[method][1]:
                    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                        figures[method].append(pool.submit(measure, method, Path(folder), k, seed).result())
    for method, found in figures.items():
        start = f"| {name} | {n:,} × {dim} | {k} | {method} |"
        print(line(start, found) if found else f"{start} not run: {METHODS[method][2]} |", flush=True)


def line(start: str, found: list[dict[str, float]]) -> str:
    def figure(name: str, digits: int) -> str:
        values = [each[name] for each in found]
        return f"{np.mean(values):,.{digits}f} ± {np.std(values):,.{digits}f}"

    columns: list[Any] = [("ARI", 3), ("NMI", 3), ("largest", 2), ("CPU s", 1), ("wall s", 1), ("MB", 0)]
    return f"{start} {' | '.join(figure(*column) for column in columns)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "mixwright-benchmark")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 20_000, 55_185, 200_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--no-synthetic", action="store_true")
    arguments = parser.parse_args()
    print(f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'all')}, encoder {arguments.encoder}")
    print("| data | vectors | K | method | ARI | NMI | largest cluster | CPU s | wall s | extra MB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    made: list[Callable[[int], Dataset]] = []
    if not arguments.no_synthetic:
        made += [lambda seed, n=n: synthetic(n, arguments.dim, seed) for n in arguments.sizes]
    if arguments.data:
        made += real(arguments.data, arguments.encoder, arguments.cache, arguments.sizes)
    for make in made:
        run(make, arguments.methods, arguments.seeds)


if __name__ == "__main__":
    main()
