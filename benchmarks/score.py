"""Speed of scoring by two language models on one core, and what half precision and the top-k cache cost.

    python benchmarks/score.py --original MODEL --pruned MODEL --data FILE.jsonl [--rows 60] [--top-k 16 64 256]

The file has ``instruction``, ``input`` and ``output`` fields; evenly spaced rows of it are taken. Speeds are per
second of CPU time of one thread, as a worker of the score job has it, and count both models' forward passes and
the comparison. Scores are compared document by document with those in float32 over the whole vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from mixwright.indexes.batching import length_batches
from mixwright.language_models.loading import find_language_model, load_language_model
from mixwright.language_models.matching import read_tokenizer
from mixwright.language_models.prompts import TokenizedPairs, choose_format, tokenize_pairs
from mixwright.language_models.responses import (
    ResponseBatch,
    compare_models,
    compare_with_top_tokens,
    original_top_tokens,
    response_batch,
    response_means,
)

BATCH_TOKENS = 2048


def read_pairs(file: Path, n: int, tokenizer: Any) -> TokenizedPairs:
    rows = [json.loads(line) for line in file.open()]
    rows = rows[:: max(len(rows) // n, 1)][:n]
    prompts = ["\n".join(each for each in (row["instruction"], row.get("input")) if each) for row in rows]
    chosen = choose_format(tokenizer, "auto", has_prompts=True)
    return tokenize_pairs(tokenizer, prompts, [row["output"] for row in rows], chosen, None)


def batches(pairs: TokenizedPairs) -> list[tuple[Any, ResponseBatch]]:
    made = []
    for rows in length_batches(pairs.n_prompt + pairs.n_response, BATCH_TOKENS):
        ids = [pairs.ids[row] for row in rows]
        made.append((rows, response_batch(ids, pairs.n_prompt[rows].tolist(), "cpu")))
    return made


def score(pairs: TokenizedPairs, compare: Any) -> tuple[Any, float]:
    """jsd of each document, and CPU seconds."""
    jsd, start = np.empty(len(pairs.ids), dtype=np.float32), time.process_time()
    for rows, batch in batches(pairs):
        jsd[rows] = response_means(compare(batch).jsd, pairs.n_response[rows])
    return jsd, time.process_time() - start


def told(name: str, jsd: Any, exact: Any) -> str:
    ranks = [np.argsort(np.argsort(each)) for each in (jsd, exact)]
    return (
        f"{name}: mean jsd {jsd.mean():.4f}, largest difference of a document {np.abs(jsd - exact).max():.4f}, "
        f"rank correlation {np.corrcoef(*ranks)[0, 1]:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--original", required=True)
    parser.add_argument("--pruned", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--top-k", type=int, nargs="*", default=[16, 64, 256])
    arguments = parser.parse_args()
    sources = [find_language_model(each) for each in (arguments.original, arguments.pruned)]
    pairs = read_pairs(arguments.data, arguments.rows, read_tokenizer(sources[0]))
    n_tokens = int((pairs.n_prompt + pairs.n_response).sum())
    print(f"{len(pairs.ids)} documents, {n_tokens:,} tokens, {pairs.n_response.sum():,} of them responses")
    exact = None
    for dtype in ("float32", "bfloat16"):
        one, other = (load_language_model(each, "cpu", dtype) for each in sources)
        size = min(one.vocabulary, other.vocabulary)
        jsd, seconds = score(pairs, lambda batch: compare_models(one, other, batch, size))  # noqa: B023
        exact = jsd if exact is None else exact
        rate = f"{len(jsd) / seconds:.2f} documents, {n_tokens / seconds:.0f} tokens a CPU second"
        print(f"{told(dtype, jsd, exact)}; {rate}")
        for k in arguments.top_k if dtype == "float32" else []:
            jsd, _ = score(
                pairs,
                lambda batch: compare_with_top_tokens(
                    original_top_tokens(one, batch, size, k),  # noqa: B023
                    other,  # noqa: B023
                    batch,
                    size,  # noqa: B023
                ),
            )
            print(told(f"float32, {k} likeliest tokens ({8 * k + 8:,} bytes a token)", jsd, exact))


if __name__ == "__main__":
    main()
