"""The select and assign jobs with PASER: what they read, embed, publish and record, on any number of workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from support import document_table

from mixwright.attributes import Attributes
from mixwright.config import Settings
from mixwright.corpora import Corpus
from mixwright.errors import AlignmentError, DataError
from mixwright.fingerprint import fingerprint
from mixwright.indexes.embeddings import Embeddings
from mixwright.indexes.encoders import load_encoder
from mixwright.jobs.assign import run_assign
from mixwright.jobs.ray_pool import ray_session
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.manifests import ArtifactInput, AttributeColumn, AttributesManifest, CorpusManifest
from mixwright.schemas.mixtures import Budget
from mixwright.schemas.references import Reference
from mixwright.schemas.requests import AssignRequest
from mixwright.selectors.paser import Paser
from mixwright.selectors.paser_report import read_clustering
from mixwright.selectors.requests import SelectRequest
from mixwright.service.app import create_app
from mixwright.store import Store

ENCODER = "hashing:48"
TOPICS = ["river stone water", "engine piston wheel", "violin sonata bow", "bread flour oven"]


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    """One Ray for all tests of this file."""
    with ray_session(num_cpus=2):
        yield


def instructions(n: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    metadata = [
        json.dumps(
            {"instruction": f"tell me of {TOPICS[i % 4]} {rng.integers(100)}", "output": f"answer {i} {seed}"}
        )
        for i in range(n)
    ]
    return document_table([f"text {i} of {seed}" for i in range(n)], n_tokens=[20] * n, metadata=metadata)


def publish_scores(store: Store, corpus: CorpusManifest, scores: np.ndarray, name: str = "scores") -> None:
    """Attributes with one column, jsd, in shards like the corpus's."""
    identity = fingerprint("attributes", [corpus.fingerprint], {"scores": scores.tolist()})
    with store.stage("attributes", Reference(name), identity) as staging:
        files, start = [], 0
        for shard in corpus.shards:
            path = shard.path.rpartition("/")[2]
            part = scores[start : start + (shard.n_rows or 0)]
            pl.DataFrame({"jsd": pl.Series(part, dtype=pl.Float32)}).write_parquet(staging.path / path)
            files.append(staging.entry(path, len(part)))
            start += len(part)
        draft = AttributesManifest(
            name=name,
            version=1,
            fingerprint=identity,
            inputs=[ArtifactInput(kind="corpus", ref=corpus.ref, fingerprint=corpus.fingerprint)],
            files=files,
            created_at=datetime.now(UTC),
            corpus=corpus.ref,
            n_rows=len(scores),
            columns=[AttributeColumn(name="jsd", dtype="float", description="made up")],
        )
        store.publish(staging, draft)


def request(name: str, workers: int | None = None, **parameters: Any) -> SelectRequest:
    selector = Paser(**{"clusters": 4, "encoder": ENCODER, **parameters})
    return SelectRequest(
        name=name, sources=["pool"], selector=selector, budget=Budget(documents=60), workers=workers
    )


@pytest.fixture
def scored(store: Store, publish_corpus: Any) -> CorpusManifest:
    corpus: CorpusManifest = publish_corpus("pool", instructions(300), shard_rows=70)
    publish_scores(store, corpus, np.linspace(0.01, 0.6, 300))
    return corpus


def test_the_instructions_are_embedded_and_everything_read_is_an_input(
    store: Store, scored: CorpusManifest
) -> None:
    manifest = run_select(store, request("recovery"), NoProgress())
    assert manifest.n_rows == 60
    assert [(each.kind, each.ref) for each in manifest.inputs] == [
        ("corpus", "pool@1"),
        ("attributes", "scores@1"),
        ("embeddings", "pool.hashing-48@1"),
    ]
    embeddings = Embeddings.open(store, "pool.hashing-48", Corpus.open(store, "pool"))
    assert embeddings.manifest.template == "{instruction}"
    again = run_select(store, request("recovery"), NoProgress())
    assert again.ref == "recovery@1"
    publish_scores(store, scored, np.linspace(0.6, 0.01, 300))
    assert run_select(store, request("recovery"), NoProgress()).ref == "recovery@2"


def test_any_number_of_workers_selects_the_same(store: Store, scored: CorpusManifest) -> None:
    here = run_select(store, request("here"), NoProgress())
    there = run_select(store, request("there", workers=2), NoProgress())
    assert there.fingerprint == here.fingerprint
    assert [each.sha256 for each in there.files] == [each.sha256 for each in here.files]
    assert there.report == here.report
    assert not list((store.home / "staging").glob("mixture-*/"))


def test_assign_gives_the_pool_its_own_labels_and_new_documents_theirs(
    store: Store, scored: CorpusManifest, publish_corpus: Any
) -> None:
    mixture = run_select(store, request("recovery"), NoProgress())
    labels = pl.read_parquet(store.directory(mixture) / "documents.parquet").sort("row")["cluster"]
    manifest = run_assign(store, AssignRequest(corpus="pool", mixture="recovery"), NoProgress())
    found = Attributes.open(store, manifest.ref, Corpus.open(store, "pool")).scan().collect()
    assert found["cluster"].to_list() == labels.to_list()
    publish_corpus("later", instructions(80, seed=1), shard_rows=30)
    later = run_assign(store, AssignRequest(corpus="later", mixture="recovery"), NoProgress())
    assert later.name == "later.recovery-clusters"
    columns = Attributes.open(store, later.ref, Corpus.open(store, "later")).scan().collect()
    # By hand: the nearest landmarks of the same encoder's vectors.
    asked = Corpus.open(store, "later").scan().collect()["metadata"].to_list()
    vectors = load_encoder(ENCODER).encode([json.loads(each)["instruction"] for each in asked])
    clustering = read_clustering(store.directory(mixture))
    similarities = vectors @ clustering.landmarks.T
    np.testing.assert_allclose(columns["cluster_similarity"], similarities.max(axis=1), atol=1e-5)
    topics = np.arange(80) % 4
    for topic in range(4):
        assert len(set(columns["cluster"].to_numpy()[topics == topic])) == 1
    assert sum(later.counts.values()) == 80
    assert run_assign(store, AssignRequest(corpus="later", mixture="recovery"), NoProgress()).ref == later.ref


def test_assign_wants_a_mixture_by_paser(store: Store, scored: CorpusManifest) -> None:
    plain = SelectRequest.model_validate(
        {"name": "plain", "sources": ["pool"], "selector": {"kind": "uniform"}, "budget": {"documents": 9}}
    )
    run_select(store, plain, NoProgress())
    with pytest.raises(DataError, match="mixture plain was not selected by paser"):
        run_assign(store, AssignRequest(corpus="pool", mixture="plain"), NoProgress())


def test_a_pool_without_scores_is_refused_before_it_is_embedded(store: Store, publish_corpus: Any) -> None:
    publish_corpus("pool", instructions(30))
    with pytest.raises(DataError, match="run  mixwright score pool@1"):
        run_select(store, request("recovery"), NoProgress())
    assert list(store.references("embeddings")) == []


def test_the_newest_scores_of_this_corpus_are_read(
    store: Store, scored: CorpusManifest, publish_corpus: Any
) -> None:
    other = publish_corpus("other", instructions(300, seed=2), shard_rows=70)
    publish_scores(store, other, np.full(300, 0.5), name="others")
    corpus = Corpus.open(store, "pool")
    assert Attributes.newest(store, corpus, ["jsd", "nll"])["jsd"].manifest.ref == "scores@1"
    publish_scores(store, scored, np.full(300, 0.25))
    assert Attributes.newest(store, corpus, ["jsd"])["jsd"].manifest.ref == "scores@2"
    with pytest.raises(AlignmentError, match=r"attributes others@1 .* are not of corpus pool@1"):
        Attributes.open(store, "others", corpus)


def test_examples_are_embedded_and_recorded(store: Store, scored: CorpusManifest, publish_corpus: Any) -> None:
    publish_corpus("wanted", instructions(4, seed=5).slice(2, 1))
    manifest = run_select(store, request("near", target_examples="wanted", target_share=0.25), NoProgress())
    assert ("corpus", "wanted@1") in [(each.kind, each.ref) for each in manifest.inputs]
    (component,) = manifest.components
    rows = np.load(store.directory(manifest) / str(component.remainder_file))
    assert set(rows % 4) == {2}


def test_rows_of_attributes_are_served_in_the_corpuss_order(store: Store, scored: CorpusManifest) -> None:
    with TestClient(create_app(Settings(home=store.home), run_worker=False)) as client:
        page = client.get("/v1/attributes/scores/rows", params={"offset": 65, "length": 10}).json()
        assert client.get("/v1/attributes/others/rows").status_code == 404
    expected = np.linspace(0.01, 0.6, 300)[65:75]
    assert [row["row_idx"] for row in page["rows"]] == list(range(65, 75))
    np.testing.assert_allclose([row["row"]["jsd"] for row in page["rows"]], expected, rtol=1e-6)
    assert page["num_rows_total"] == 300
