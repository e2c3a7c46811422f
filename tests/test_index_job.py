"""The index job: recorded recall against fresh measurements, choices of `auto`, identity, refusals."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from support import document_table

from mixwright.errors import (
    AlignmentError,
    ConfigError,
    ConvergenceError,
    DataError,
    NotFoundError,
)
from mixwright.fingerprint import fingerprint
from mixwright.indexes import kinds
from mixwright.indexes.faiss_index import INDEX_FILE, FaissIndex
from mixwright.indexes.hits import merge_hits
from mixwright.indexes.protocols import Hits
from mixwright.jobs import index as index_job
from mixwright.jobs.index import run_index
from mixwright.progress import NoProgress
from mixwright.schemas.manifests import ArtifactInput, CorpusManifest, EmbeddingsManifest, IndexManifest
from mixwright.schemas.references import Reference
from mixwright.schemas.requests import IndexRequest
from mixwright.store import Store

KINDS = ("flat", "hnsw", "ivf", "ivf-pq", "rabitq")
N, D = 4000, 48

Publish = Callable[..., EmbeddingsManifest]


def clustered(n: int, d: int, seed: int = 0, spread: float = 0.7) -> Any:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(n // 50, 1), d))
    found = centres[rng.integers(0, len(centres), n)] + spread * rng.standard_normal((n, d))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def publish(store: Store, publish_corpus: Any) -> Publish:
    """Publishes a corpus of as many documents as there are vectors, and the vectors as its embeddings."""

    def publish_both(
        vectors: Any,
        corpus: str = "wiki",
        encoder: str = "made-up",
        shard_rows: int = 1500,
        documents: CorpusManifest | None = None,
        age: int = 0,
    ) -> EmbeddingsManifest:
        made_of = documents or publish_corpus(
            corpus, document_table([f"{corpus} {row}" for row in range(len(vectors))]), shard_rows
        )
        name = f"{corpus}.{encoder}"
        identity = fingerprint("embeddings", [made_of.fingerprint], {"vectors": vectors.tobytes().hex()[:4000]})
        with store.stage("embeddings", Reference(name), identity) as staging:
            (staging.path / "shards").mkdir()
            files = []
            for number, start in enumerate(range(0, len(vectors), shard_rows)):
                shard, path = vectors[start : start + shard_rows], f"shards/part-{number:05d}.npy"
                np.save(staging.path / path, shard)
                files.append(staging.entry(path, len(shard)))
            draft = EmbeddingsManifest(
                name=name,
                version=1,
                fingerprint=identity,
                inputs=[ArtifactInput(kind="corpus", ref=made_of.ref, fingerprint=made_of.fingerprint)],
                files=files,
                created_at=datetime.now(UTC) - timedelta(days=age),
                corpus=made_of.ref,
                encoder=encoder,
                encoder_revision=encoder,
                max_tokens=None,
                n_rows=len(vectors),
                n_truncated=0,
                dim=vectors.shape[1],
                dtype=str(vectors.dtype),
                normalized=True,
            )
            return store.publish(staging, draft)

    return publish_both


def build(store: Store, **fields: Any) -> IndexManifest:
    return run_index(store, IndexRequest(**({"corpus": "wiki", "queries": 200} | fields)), NoProgress())


def nearest_others(vectors: Any, rows: Any, k: int) -> Any:
    """Exact scores (q, n) of the rows with all, themselves at −inf, and the k-th best of each (q,)."""
    scores = vectors[rows].astype(np.float64) @ vectors.astype(np.float64).T
    scores[np.arange(len(rows)), rows] = -np.inf
    return scores, np.partition(scores, -k, axis=1)[:, -k]


def measured_afresh(index: FaissIndex, vectors: Any, rows: Any, k: int) -> Any:
    """Recall@k of each of the rows (q,): how many of k hits, the row itself aside, score as well as the k-th."""
    scores, least = nearest_others(vectors, rows, k)
    recalls = []
    for line, ids in enumerate(index.search(vectors[rows], k + 1).ids):
        found = [each for each in ids if each != rows[line]][:k]
        recalls.append(np.mean(scores[line, found] >= least[line] - 1e-9))
    return np.array(recalls)


# Recall


@pytest.mark.parametrize("kind", [*KINDS, "auto"])
@pytest.mark.parametrize("target", [0.8, 0.95])
def test_the_recorded_recall_is_there_when_measured_afresh(
    store: Store, publish: Publish, kind: str, target: float
) -> None:
    vectors = clustered(N, D)
    publish(vectors)
    manifest = build(store, index_kind=kind, recall=target)
    report = manifest.recall
    assert (report.k, report.n_queries, report.target) == (10, 200, target)
    assert target <= report.measured <= 1
    assert report.lower_bound <= report.measured
    rows = np.random.default_rng(99).choice(N, 1000, replace=False)
    fresh = measured_afresh(FaissIndex.open(store, manifest.ref), vectors, rows, 10)
    assert fresh.mean() >= target - 3 * fresh.std() / np.sqrt(len(fresh))
    assert fresh.mean() >= report.lower_bound - 3 * fresh.std() / np.sqrt(len(fresh))
    if manifest.index_kind == "flat":
        assert fresh.mean() == report.measured == report.lower_bound == 1


def test_tuning_and_held_out_queries_are_different_rows(
    store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(clustered(500, 8))
    seen: list[Any] = []
    from mixwright.indexes import tuning

    draw = tuning.draw_trial
    monkeypatch.setattr(tuning, "draw_trial", lambda *given: seen.append(draw(*given)) or seen[-1])
    assert build(store, index_kind="ivf").recall.n_queries == 200
    build(store, index_kind="hnsw", name="graph")
    within, outside = seen
    assert len(within.tuning.rows) == len(within.held_out.rows) == 200
    assert not set(within.tuning.rows) & set(within.held_out.rows)
    assert len(within.vectors) == 500
    assert len(outside.vectors) == 500 - len(outside.tuning.queries) - len(outside.held_out.queries)
    indexed = {vector.tobytes() for vector in outside.vectors.rows(np.arange(len(outside.vectors)))}
    assert not indexed & {query.tobytes() for query in outside.held_out.queries}


@pytest.mark.parametrize("kind", [*KINDS, "auto"])
@pytest.mark.parametrize("n", [1, 2, 3, 11, 19])
def test_small_corpora(store: Store, publish: Publish, kind: str, n: int) -> None:
    vectors = clustered(n, 8)
    publish(vectors)
    manifest = build(store, index_kind=kind, recall=0.5)
    assert manifest.n_rows == n
    assert manifest.recall.k <= n
    hits = FaissIndex.open(store, manifest.ref).search(vectors, n + 2)
    assert (np.sort(hits.ids[:, :n]) == np.arange(n)).all()
    assert (hits.ids[:, n:] == -1).all()
    assert np.isneginf(hits.scores[:, n:]).all()


def test_a_kind_that_cannot_reach_the_target_says_what_it_reaches(store: Store, publish: Publish) -> None:
    publish(clustered(1000, 32, spread=1e-2))
    with pytest.raises(ConvergenceError, match=r"rabitq reaches recall 0\.\d+ of the asked 0\.99 .*kind auto"):
        build(store, index_kind="rabitq", recall=0.99)
    assert list(store.manifests("index")) == []
    assert [path for path in (store.home / "staging").iterdir() if path.is_dir()] == []
    assert build(store, index_kind="auto", recall=1.0).index_kind == "flat"


def test_a_job_killed_while_it_writes_leaves_nothing_and_runs_again(store: Store, publish: Publish) -> None:
    publish(clustered(100, 8))
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(store.home)], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any((store.home / "staging").glob("index-*/index.faiss"))
    assert list(store.manifests("index")) == []
    manifest = build(store)
    assert FaissIndex.open(store, manifest.ref).search(clustered(1, 8), 5).ids.shape == (1, 5)
    assert not any((store.home / "staging").glob("index-*/index.faiss"))


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from mixwright.jobs import index
from mixwright.progress import NoProgress
from mixwright.schemas.requests import IndexRequest
from mixwright.store import Store

def write_half(built, path):
    path.write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)

index.write_index = write_half
index.run_index(Store(Path(sys.argv[1])), IndexRequest(corpus="wiki", queries=200), NoProgress())
"""

# What auto chooses


def test_auto_prefers_exact_search_in_a_small_corpus(store: Store, publish: Publish) -> None:
    publish(clustered(N, D))
    manifest = build(store)
    assert manifest.index_kind == "flat"
    assert [each["outcome"][:6] for each in manifest.candidates] == ["chosen", "not ne", "not ne"]


def test_auto_keeps_to_the_memory_budget(store: Store, publish: Publish) -> None:
    publish(clustered(N, D))
    budget = 4 * N * D - 1
    manifest = build(store, memory_budget=budget)
    assert manifest.index_kind == "rabitq"
    assert manifest.n_bytes <= budget
    assert "over the memory budget" in manifest.candidates[0]["outcome"]
    assert "chosen" in manifest.candidates[1]["outcome"]


@pytest.mark.parametrize("kind", ["auto", "flat", "ivf-pq"])
def test_a_budget_that_excludes_all_names_the_smallest_that_works(
    store: Store, publish: Publish, kind: str
) -> None:
    publish(clustered(N, D))
    with pytest.raises(ConfigError, match=r"takes at least \d+ bytes") as caught:
        build(store, index_kind=kind, memory_budget=1000)
    smallest = int(str(caught.value).split("at least ")[1].split(" ")[0])
    with pytest.raises(ConfigError):
        build(store, index_kind=kind, memory_budget=smallest - 1)
    assert build(store, index_kind=kind, memory_budget=smallest).n_bytes <= smallest


def test_auto_goes_on_to_the_next_candidate(
    store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a large corpus: codes first. They cannot tell rows so close together apart, whole vectors can."""
    monkeypatch.setattr(kinds, "LARGEST_FLAT", 500)
    publish(clustered(1000, 32, spread=1e-2))
    manifest = build(store, recall=0.99)
    assert manifest.index_kind == "ivf"
    outcomes = [each["outcome"] for each in manifest.candidates]
    assert ["misses the target" in each for each in outcomes] == [True, True, False, False]
    assert outcomes[3] == "not needed"
    assert "IVF" in manifest.candidates[0]["factory"]
    with pytest.raises(ConvergenceError, match="larger memory budget"):
        build(store, recall=0.99, memory_budget=manifest.candidates[1]["estimated_bytes"])


def test_a_large_corpus_gets_codes_that_meet_the_target(
    store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "LARGEST_FLAT", 500)
    vectors = clustered(N, D)
    publish(vectors)
    manifest = build(store)
    assert manifest.factory.startswith(f"RR{D},IVF")
    assert set(manifest.search_parameters) == {"nprobe", "k_factor"}
    rows = np.arange(500)
    assert measured_afresh(FaissIndex.open(store, manifest.ref), vectors, rows, 10).mean() > 0.93
    assert build(store, recall=1.0).index_kind == "flat"


# Opened again


@pytest.mark.parametrize("kind", KINDS)
def test_an_opened_index_answers_as_the_one_that_was_built(
    store: Store, publish: Publish, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(1000, 16)
    publish(vectors)
    built: list[Any] = []
    write = index_job.write_index
    monkeypatch.setattr(index_job, "write_index", lambda index, path: (built.append(index), write(index, path)))
    manifest = build(store, index_kind=kind, recall=0.9)
    index = FaissIndex.open(store, manifest.ref)
    from mixwright.indexes.searching import Searcher

    expected = Searcher(built[0]).search(vectors[:100], 10, manifest.search_parameters)
    found = index.search(vectors[:100], 10)
    assert (found.ids == expected.ids).all()
    assert (found.scores == expected.scores).all()
    assert str(store.directory(manifest) / INDEX_FILE) in Path("/proc/self/maps").read_text()


def test_shards_of_a_corpus_merge_to_the_whole(store: Store, publish: Publish) -> None:
    vectors = clustered(900, 16)
    publish(vectors)
    whole = FaissIndex.open(store, build(store, index_kind="flat").ref).search(vectors[:50], 20)
    parts = []
    for number, start in enumerate(range(0, 900, 300)):
        publish(vectors[start : start + 300], corpus=f"part{number}")
        manifest = build(store, corpus=f"part{number}", index_kind="flat")
        hits = FaissIndex.open(store, manifest.ref).search(vectors[:50], 20)
        parts.append(Hits(hits.ids + start, hits.scores))
    merged = merge_hits(parts, 20)
    assert (merged.ids == whole.ids).all()
    assert (merged.scores == whole.scores).all()


def test_overrides_are_of_one_search_and_of_the_kind(store: Store, publish: Publish) -> None:
    vectors = clustered(N, D)
    publish(vectors)
    index = FaissIndex.open(store, build(store, index_kind="ivf").ref)
    usual = index.search(vectors[:200], 10)
    exact = index.search(vectors[:200], 10, nprobe=10_000)
    scores = vectors[:200].astype(np.float64) @ vectors.astype(np.float64).T
    assert (np.sort(exact.ids) == np.sort(np.argsort(-scores)[:, :10])).all()
    assert (index.search(vectors[:200], 10, nprobe=1).ids != exact.ids).any()
    assert (index.search(vectors[:200], 10).ids == usual.ids).all()
    with pytest.raises(ConfigError, match="no search parameter efSearch: it has nprobe"):
        index.search(vectors[:1], 10, efSearch=5)
    with pytest.raises(ConfigError, match="give at least 1"):
        index.search(vectors[:1], 10, nprobe=0)


@pytest.mark.parametrize("damage", [b"", b"short", b"IxFI" + bytes(100)])
def test_a_damaged_file_is_named(store: Store, publish: Publish, damage: bytes) -> None:
    publish(clustered(50, 8))
    manifest = build(store, index_kind="flat")
    (store.directory(manifest) / INDEX_FILE).write_bytes(damage)
    with pytest.raises(DataError, match="build it again"):
        FaissIndex.open(store, manifest.ref)


def test_a_file_of_another_index_is_found_out(store: Store, publish: Publish) -> None:
    publish(clustered(50, 8))
    manifest = build(store, index_kind="flat")
    other = faiss.IndexFlatIP(8)
    other.add(clustered(49, 8))
    faiss.write_index(other, str(store.directory(manifest) / INDEX_FILE))
    with pytest.raises(DataError, match="49 vectors of 8 coordinates, the manifest says 50 of 8"):
        FaissIndex.open(store, manifest.ref)


def test_a_missing_index_is_not_found(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no index wiki"):
        FaissIndex.open(store, "wiki")


# Identity and inputs


def test_the_same_request_is_free_and_resources_are_no_identity(store: Store, publish: Publish) -> None:
    embeddings = publish(clustered(300, 8))
    first = build(store, index_kind="ivf")
    assert (first.name, first.version) == ("wiki.made-up.ivf", 1)
    assert [(each.kind, each.ref) for each in first.inputs] == [
        ("corpus", "wiki@1"),
        ("embeddings", "wiki.made-up@1"),
    ]
    assert first.inputs[1].fingerprint == embeddings.fingerprint
    assert build(store, index_kind="ivf", threads=2, device="cpu") == first
    for changed in ({"recall": 0.9}, {"seed": 1}, {"queries": 100}, {"memory_budget": 10**9}):
        assert build(store, index_kind="ivf", **changed).fingerprint != first.fingerprint
    assert store.versions("index", "wiki.made-up.ivf") == [1, 2, 3, 4, 5]
    assert build(store, index_kind="ivf") == first


@pytest.mark.parametrize("kind", KINDS)
def test_how_the_vectors_are_sharded_changes_nothing(store: Store, publish: Publish, kind: str) -> None:
    vectors = clustered(1000, 16)
    for corpus, shard_rows in (("wiki", 1000), ("shards", 77)):
        publish(vectors, corpus=corpus, shard_rows=shard_rows)
    manifests = [build(store, corpus=corpus, index_kind=kind, recall=0.9) for corpus in ("wiki", "shards")]
    assert manifests[0].files[0].sha256 == manifests[1].files[0].sha256
    assert manifests[0].recall == manifests[1].recall


def test_half_precision_is_indexed_as_the_numbers_it_holds(store: Store, publish: Publish) -> None:
    vectors = clustered(300, 16).astype(np.float16)
    publish(vectors)
    hits = FaissIndex.open(store, build(store).ref).search(vectors[:20].astype(np.float32), 5)
    scores = vectors[:20].astype(np.float64) @ vectors.astype(np.float64).T
    assert (hits.ids == np.argsort(-scores)[:, :5]).all()


def test_the_newest_embeddings_are_taken_unless_one_is_named(store: Store, publish: Publish) -> None:
    old = publish(clustered(100, 8), encoder="old", age=2)
    documents = store.manifest("wiki", "corpus")
    for encoder, age in (("new", 0), ("older", 1)):
        publish(clustered(100, 8, seed=age + 1), encoder=encoder, documents=documents, age=age)
    assert build(store).embeddings == "wiki.new@1"
    assert build(store, encoder="old").embeddings == old.ref
    assert build(store, encoder="old", name="mine").name == "mine"


def test_a_corpus_without_embeddings_says_how_to_make_them(store: Store, publish: Publish) -> None:
    publish(clustered(100, 8))
    with pytest.raises(NotFoundError, match=r"mixwright embed wiki@1 --encoder hashing:8  first"):
        build(store, encoder="hashing:8")
    publish(clustered(120, 8), corpus="wiki", encoder="elsewhere")  # the corpus's second version
    with pytest.raises(NotFoundError, match=r"wiki@1 has no embeddings by encoder elsewhere|no embeddings"):
        build(store, corpus="wiki@1", encoder="hashing:8")
    assert build(store, corpus="wiki@1").n_rows == 100
    assert build(store, corpus="wiki@2").n_rows == 120


def test_embeddings_of_other_rows_are_refused(store: Store, publish: Publish) -> None:
    publish(clustered(100, 8))
    publish(clustered(90, 8), encoder="fewer", documents=store.manifest("wiki", "corpus"))
    with pytest.raises(AlignmentError, match=r"90 rows .*100 rows"):
        build(store)


def test_a_vector_that_is_not_finite_stops_the_job(store: Store, publish: Publish) -> None:
    vectors = clustered(100, 8)
    vectors[42, 3] = np.nan
    publish(vectors)
    with pytest.raises(DataError, match="vector 42 "):
        build(store, index_kind="flat")
    assert list(store.manifests("index")) == []


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_and_nothing_is_left(store: Store, publish: Publish) -> None:
    publish(clustered(100, 8))
    with pytest.raises(ConfigError, match="sees no GPU"):
        build(store, device="gpu")
    assert list(store.manifests("index")) == []
    assert build(store, device="auto").device == "cpu"
