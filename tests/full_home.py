"""A home with an artifact of every kind, made by the jobs themselves; names and texts in it are hostile."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from support import RETRIEVAL_WORDS, run_workers_here

from mixwright.jobs import embeddings_of
from mixwright.jobs.datastores.build import run_datastore
from mixwright.jobs.datastores.evaluate import run_evaluate
from mixwright.jobs.datastores.scale import run_scale
from mixwright.jobs.embed import run_embed
from mixwright.jobs.index import run_index
from mixwright.jobs.ingest import run_ingest
from mixwright.jobs.near_duplicates import run_near_duplicates
from mixwright.jobs.results import import_results
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.datastores import DatastoreRequest
from mixwright.schemas.evaluations import EvaluateRequest, ScaleRequest
from mixwright.schemas.requests import (
    EmbedRequest,
    IndexRequest,
    IngestRequest,
    NearDuplicatesRequest,
)
from mixwright.schemas.training_runs import Metric
from mixwright.selectors.requests import SelectRequest
from mixwright.store import Store

EVIL = "<script>document.title='owned'</script>"
EVIL_URL = "javascript:document.title='owned'"
QUESTION = "barn delt"
ENCODER = "hashing:16"
SOURCES = ("wiki", "code", "news")


def _documents(source: str, n: int, seed: int) -> list[dict[str, object]]:
    """Texts whose words depend on the source; some rows try to be more than text."""
    generator = np.random.default_rng(seed)
    words = RETRIEVAL_WORDS[12 * seed : 12 * seed + 24]
    rows: list[dict[str, object]] = []
    for number in range(n):
        length = int(generator.integers(8, 60)) if number else 900
        text = " ".join([*generator.choice(words, size=length).tolist(), f"n{number}"])
        host = f"h{int(generator.integers(1, 12) ** 0.5 * 3)}.{source}.org"
        url = f"https://{host}/{number}"
        instruction, output = f"say {text[:30]}", text[-20:]
        rows.append(
            {"text": text, "url": url, "instruction": instruction, "output": output, "jsd": 0.1 + seed / 9}
        )
    rows[1] |= {"text": f"{EVIL} & {QUESTION}", "url": EVIL_URL, "source": source}
    rows[2] |= {"text": f"\u202e\u0007 {QUESTION} \U0001f600 日本語", "url": "//[::1"}
    return rows


def _ingest(store: Store, folder: Path, name: str, rows: list[dict[str, object]]) -> None:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    request = IngestRequest(name=name, paths=[str(path)], tokenizer="bytes")
    run_ingest(store, request, NoProgress())


def _select(store: Store, name: str, sources: tuple[str, ...], selector: dict[str, object], tokens: int) -> None:
    request = {"name": name, "sources": sources, "selector": selector, "budget": {"tokens": tokens}}
    run_select(store, SelectRequest.model_validate(request), NoProgress())


@lru_cache(maxsize=1)
def full_home() -> Path:
    """The home, made once for all test files of a process; jobs may be added, artifacts not."""
    home = Path(tempfile.mkdtemp(prefix="mixwright-full-home-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        run_workers_here(patch.setattr)
        patch.setattr(embeddings_of, "ray_session", lambda *_: nullcontext())
        _fill(Store(home / "home"), home)
    return home / "home"


def _fill(store: Store, folder: Path) -> None:
    for seed, (name, n) in enumerate((*((each, 40) for each in SOURCES), ("target", 20))):
        _ingest(store, folder, name, _documents(name, n, seed))
    run_embed(store, EmbedRequest(corpus="wiki", encoder=ENCODER), NoProgress())
    run_index(store, IndexRequest(corpus="wiki", encoder=ENCODER, queries=10, index_kind="flat"), NoProgress())
    run_near_duplicates(store, NearDuplicatesRequest(corpus="code"), NoProgress())
    _datastores(store, folder)
    _mixtures(store, folder)


def _datastores(store: Store, folder: Path) -> None:
    request = DatastoreRequest(name="library", corpora=["wiki", "news"], encoder=ENCODER, index_kind="flat")
    run_datastore(store, request, NoProgress())
    questions = folder / "questions.jsonl"
    rows = [{"_id": f"{EVIL}{i}", "text": f"{QUESTION} n{i}", "positives": ["0" * 32]} for i in range(12)]
    questions.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run_evaluate(store, EvaluateRequest(datastore="library", queries=str(questions)), NoProgress())
    asked = {"probabilities": [0.1, 1.0], "seeds": 2, "metrics": ["recall"]}
    scale = ScaleRequest(datastore="library", queries=str(questions), name="curve", **asked)
    run_scale(store, scale, NoProgress())


def _mixtures(store: Store, folder: Path) -> None:
    _select(store, "plain", ("wiki",), {"kind": "proportional"}, 5000)
    _select(store, "tagged", SOURCES, {"kind": "domain-tags"}, 15000)
    _select(store, "recovery", ("wiki", "code"), {"kind": "paser", "clusters": 3, "encoder": ENCODER}, 4000)
    _select(store, "near", SOURCES, {"kind": "retrieval", "target": "target", "encoder": ENCODER}, 4000)
    nearest: dict[str, object] = {"kind": "projektor", "validation": "target", "encoder": ENCODER}
    _select(store, "two", SOURCES[:2], nearest, 9000)
    runs = folder / "runs.csv"
    runs.write_text(_runs())
    metric = Metric("bits_per_byte", "minimize", 0.0, None)
    import_results(store, runs, "runs", list(SOURCES), metric, "tokens")
    _select(store, "three", SOURCES, {**nearest, "results": "runs"}, 9000)


def _runs() -> str:
    """Scores that are best where the first source has two thirds; few, since each predictor is tried on all."""
    lines = [",".join((*SOURCES, "size", "score"))]
    for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, 0.2, 0.2)):
        for size in (1000, 8000):
            score = 2 + (weights[0] - 2 / 3) ** 2 + 300 / size
            lines.append(",".join(map(str, (*weights, size, score))))
    return "\n".join(lines)
