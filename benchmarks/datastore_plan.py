"""The constants of ``mixwright datastore plan``, measured again: what text, files and one core of this machine do.

    OMP_NUM_THREADS=1 python benchmarks/datastore_plan.py --data FOLDER [--encoder all-minilm-l6-v2] [--rows N]

``--data`` is a folder of .jsonl files with a ``text`` field (and ``url``; other fields are metadata). Each file is
cut into passages of 256 words and written as a datastore writes them; ``split`` is the number of passages once
those are split that the encoder does not read whole, beside what the plan says. Then the speed of the encoder in
float32 and bfloat16, and of building indexes over N generated vectors; times are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mixwright.indexes.bm25 import write_bm25
from mixwright.indexes.datastore_contents import Contents, split_to_fit
from mixwright.indexes.datastore_plan import KEY_BYTES
from mixwright.indexes.datastores.pieces import write_passages
from mixwright.indexes.encoders import LoadedEncoder, SentenceEncoder, find_encoder, load_encoder
from mixwright.indexes.faiss_import import import_faiss
from mixwright.indexes.passages import passages_of
from mixwright.schemas.datastores import PassageWindow
from mixwright.schemas.documents import DOCUMENT_SCHEMA, ID_LENGTH

WINDOW = 256
COLUMNS = ("words", "fill", "tokens/word", "bytes/word", "bytes/passage", "URL and metadata/document")
MORE = ("postings/word", "bytes/posting", "BM25 words/s", "split", "planned")


def documents_of(path: Path) -> pa.Table:
    rows = {row["text"]: row for row in map(json.loads, path.read_text("utf-8").splitlines())}
    n = len(rows)
    columns = {
        "id": [hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH] for text in rows],
        "text": list(rows),
        "source": [path.stem] * n,
        "domain": [row.get("domain") for row in rows.values()],
        "url": [row.get("url") for row in rows.values()],
        "n_tokens": [0] * n,
        "metadata": [
            json.dumps({k: v for k, v in row.items() if k not in DOCUMENT_SCHEMA.names}) for row in rows.values()
        ],
    }
    return pa.table(columns, schema=DOCUMENT_SCHEMA)


def passages(documents: pa.Table, encoder: LoadedEncoder | None) -> pa.Table:
    window = PassageWindow(size=WINDOW)
    return passages_of(documents, window, "split", encoder, "{text}", lambda texts: [0] * len(texts))


def text_figures(path: Path, encoder: LoadedEncoder) -> list[str]:
    documents = documents_of(path)
    texts, found = documents["text"].to_pylist(), passages(documents, None)
    n_words, n_bytes = sum(len(text.split()) for text in texts), sum(len(text.encode()) for text in texts)
    n_tokens = int(encoder.token_counts(texts).sum())
    # Equal ones are stored once.
    distinct = [value for name in ("url", "metadata") for value in set(documents[name].to_pylist())]
    values = sum(len((value or "").encode()) for value in distinct)
    with tempfile.TemporaryDirectory() as folder:
        arrow = Path(folder) / "passages.arrow"
        with arrow.open("wb") as file:
            write_passages(found, file)
        of_documents = n_bytes + values + 48 * len(texts)
        own = (arrow.stat().st_size - of_documents) / found.num_rows - KEY_BYTES
        index = Path(folder) / "bm25"
        seconds = cpu_seconds(write_bm25, [found["text"].to_pylist()], index)
        n_postings = len(np.load(index / "rows.npy"))
        bm25 = sum(each.stat().st_size for each in index.glob("*.npy")) - 4 * found.num_rows
    split = passages(documents, encoder).num_rows
    contents = Contents(n_tokens, n_words, len(texts), found.num_rows, n_bytes, values)
    planned = split_to_fit(contents, WINDOW, encoder.max_tokens).passages
    return [
        f"{n_words:,}",
        f"{n_words / found.num_rows / WINDOW:.3f}",
        f"{n_tokens / n_words:.2f}",
        f"{n_bytes / n_words:.2f}",
        f"{own:.0f}",
        f"{values / len(texts):.0f}",
        f"{n_postings / n_words:.2f}",
        f"{bm25 / n_postings:.2f}",
        f"{n_words / seconds:,.0f}",
        f"{split:,}",
        f"{planned:,}",
    ]


def cpu_seconds(work: Callable[..., Any], *arguments: Any) -> float:
    begin = time.process_time()
    work(*arguments)
    return time.process_time() - begin


def encoder_speeds(name: str, texts: list[str]) -> None:
    """Print tokens a second of one thread."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    source = find_encoder(name)
    for dtype in ("float32", "bfloat16"):
        model = SentenceTransformer(str(source.path or name), device="cpu").to(getattr(torch, dtype)).eval()
        encoder = SentenceEncoder(source, model)
        n_tokens = int(encoder.prepare(texts).lengths.sum())
        encoder.encode(texts[:8])
        seconds = min(cpu_seconds(encoder.encode, texts) for _ in range(3))
        print(f"{name}, {dtype}: {n_tokens / seconds:,.0f} tokens/s, {n_tokens / len(texts):.0f} tokens a text")


def index_speeds(n: int, dim: int = 384, lists: int = 1024) -> None:
    """Print what building costs a row, and how fast the products of training and adding are."""
    faiss = import_faiss()
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(n // 100, 1), dim), dtype=np.float32)
    vectors = centres[rng.integers(len(centres), size=n)] + 0.7 * rng.standard_normal((n, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sample = vectors[: min(64 * lists, n)]
    assigning = 2.0 * n * lists * dim
    for factory in (
        f"IVF{lists},Flat",
        f"RR{dim},IVF{lists},RaBitQfs,Refine(SQ8)",
        f"IVF{lists},PQ{dim // 4}x4fsr,Refine(SQ8)",
    ):
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        training = cpu_seconds(index.train, sample)
        adding = cpu_seconds(index.add, vectors)
        products = 10 * 2.0 * len(sample) * lists * dim
        print(
            f"{factory}: train {training:.1f} s ({products / training / 1e9:.0f} GFLOP/s if all of it were ",
            end="",
        )
        print(f"products), add {adding:.1f} s ({assigning / adding / 1e9:.0f} GFLOP/s)")
    graph = faiss.index_factory(dim, "HNSW32,Flat", faiss.METRIC_INNER_PRODUCT)
    seconds = cpu_seconds(graph.add, vectors)
    print(f"HNSW32: {seconds / n * 1e6:.0f} µs a row, {seconds / n / np.log2(n) * 1e6:.1f} for each doubling")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", default="all-minilm-l6-v2")
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.encoder)
    print(f"| text | {' | '.join(COLUMNS + MORE)} |\n|---|{'---|' * len(COLUMNS + MORE)}")
    paths = sorted(arguments.data.glob("*.jsonl"))
    for path in paths:
        print(f"| {path.stem} | {' | '.join(text_figures(path, encoder))} |", flush=True)
    texts = [text for path in paths for text in documents_of(path)["text"].to_pylist() if len(text.split()) > 200]
    encoder_speeds(arguments.encoder, [" ".join(text.split()[:190]) for text in texts[:48]])
    index_speeds(arguments.rows)


if __name__ == "__main__":
    main()
