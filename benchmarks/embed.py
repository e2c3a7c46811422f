"""Texts a second of the default encoder: float32 against bfloat16, one worker against two.

    python benchmarks/embed.py [--data FOLDER] [--texts 96] [--repeats 3] [--workers 1 2]

``--data`` is a folder of .jsonl files with a ``text`` field; without it the texts are generated. Each worker
is a Ray actor with one core and one thread, as in the embed job, and holds its texts before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from mixwright.indexes.encoders import SentenceEncoder, find_encoder
from mixwright.jobs.ray_pool import ray_session
from mixwright.schemas.defaults import DEFAULT_ENCODER


class Worker:
    """Encodes its part of the texts."""

    def __init__(self, dtype: str, texts: list[str]) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(1)
        source = find_encoder(DEFAULT_ENCODER)
        model = SentenceTransformer(str(source.path), device="cpu", local_files_only=True)
        self._encoder = SentenceEncoder(source, model.to(getattr(torch, dtype)).eval())
        self._texts = texts

    def encode(self) -> Any:
        return self._encoder.encode(self._texts)


def generated_texts(n: int) -> list[str]:
    """Texts of 20 to 400 words, drawn from 2,000 pronounceable ones."""
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(2000)]
    return [" ".join(draw.choices(words, k=draw.randint(20, 400))) for _ in range(n)]


def read_texts(folder: Path, n: int) -> list[str]:
    texts = [
        json.loads(line)["text"] for path in sorted(folder.glob("*.jsonl")) for line in path.open() if line.strip()
    ]
    return random.Random(0).sample(texts, min(n, len(texts)))


def measure(dtype: str, n_workers: int, texts: list[str], repeats: int) -> tuple[list[float], Any]:
    """Texts a second of each repeat, and the vectors in the texts' order."""
    import ray

    parts = [list(range(number, len(texts), n_workers)) for number in range(n_workers)]
    workers = [ray.remote(num_cpus=1)(Worker).remote(dtype, [texts[row] for row in part]) for part in parts]
    encoded = ray.get([worker.encode.remote() for worker in workers])  # loads and warms up
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        encoded = ray.get([worker.encode.remote() for worker in workers])
        rates.append(len(texts) / (time.perf_counter() - start))
    for worker in workers:
        ray.kill(worker)
    vectors = np.empty((len(texts), encoded[0].shape[1]), dtype=np.float32)
    for part, some in zip(parts, encoded, strict=True):
        vectors[part] = some
    return rates, vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    n = arguments.texts
    texts = read_texts(arguments.data, n) if arguments.data else generated_texts(n)
    start = time.perf_counter()
    with ray_session(max(arguments.workers)):
        print(f"Ray started in {time.perf_counter() - start:.1f} s; {len(texts)} texts")
        print("dtype     workers  texts/s: median (least–most)")
        exact = None
        for dtype in ("float32", "bfloat16"):
            for n_workers in arguments.workers:
                rates, vectors = measure(dtype, n_workers, texts, arguments.repeats)
                exact = vectors if exact is None else exact
                print(
                    f"{dtype:9} {n_workers:7}  {statistics.median(rates):.1f} ({min(rates):.1f}–{max(rates):.1f})"
                )
    cosines = (vectors * exact).sum(axis=1)
    print(f"bfloat16 against float32: least cosine {cosines.min():.6f}, ", end="")
    print(f"largest difference of a coordinate {np.abs(vectors - exact).max():.4f}")


if __name__ == "__main__":
    main()
