"""Jobs of datastores: what a build, an addition, a deletion and a compaction publish, and kills at any moment."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support import (
    RETRIEVAL_WORDS,
    KillableJobs,
    Recorder,
    document_table,
    identities,
    kill_half_way,
    published_corpus,
    retrieval_table,
    run_workers_here,
)

from mixwright.errors import ConfigError, ConflictError, DataError, NotFoundError
from mixwright.fingerprint import file_sha256
from mixwright.indexes.datastores.datastore import Datastore
from mixwright.indexes.datastores.shards import stored_vectors
from mixwright.indexes.encoders import load_encoder
from mixwright.indexes.passages import rejoin
from mixwright.jobs.datastores import changes, indexing
from mixwright.jobs.run import run_request
from mixwright.progress import NoProgress
from mixwright.schemas.datastores import (
    DatastoreAddRequest,
    DatastoreCompactRequest,
    DatastoreDeleteRequest,
    DatastoreRequest,
    Hit,
    PassageWindow,
    SearchRequest,
)
from mixwright.schemas.manifests import DatastoreManifest
from mixwright.schemas.references import Reference
from mixwright.store import Store

ENCODER = "hashing:64"
MODES = ["dense", "bm25", "hybrid"]
QUERIES = ["barn felt gilk", "komb n7", "marn relt silk tomb farn gelt bilk"]


@pytest.fixture(scope="module", autouse=True)
def _here() -> Iterator[None]:
    """Jobs run without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        run_workers_here(patch.setattr)
        yield


@pytest.fixture(scope="module")
def killable() -> Iterator[KillableJobs]:
    jobs = KillableJobs()
    yield jobs
    jobs.close()


def asked(name: str, *corpora: str, **fields: Any) -> DatastoreRequest:
    """A request for a small store of flat shards, unless ``fields`` say otherwise."""
    usual = {
        "encoder": ENCODER,
        "index_kind": "flat",
        "recall": 0.9,
        "queries": 60,
        "window": PassageWindow(size=20),
        "shards": 2,
    }
    return DatastoreRequest(name=name, corpora=list(corpora), **(usual | fields))


def run(store: Store, request: Any, progress: Any = None) -> DatastoreManifest:
    manifest = run_request(store, request, progress or NoProgress())
    assert isinstance(manifest, DatastoreManifest)
    return manifest


def search(store: Store, ref: str, **request: Any) -> list[list[Hit]]:
    return Datastore.open(store, ref).search(SearchRequest(**({"queries": QUERIES, "k": 6} | request))).hits


def contents(store: Store, ref: str) -> dict[str, dict[str, Any]]:
    """The rows that are not deleted, by id, with what they say; checked to be there once each."""
    datastore = Datastore.open(store, ref)
    rows = datastore.pieces.rows(0, datastore.manifest.n_rows).to_pylist()
    deleted = datastore.directory / "deleted.npy"
    gone = set(np.load(deleted).tolist()) if datastore.manifest.n_deleted else set()
    alive = [row for number, row in enumerate(rows) if number not in gone]
    found = {row["id"]: row for row in alive}
    assert len(found) == len(alive) == len(datastore)
    return found


def described(manifest: DatastoreManifest) -> dict[str, Any]:
    """All that a manifest says, its files' hashes too, but when it was made, and under which name."""
    said = manifest.model_dump(exclude={"name", "version", "created_at"})
    return said | {"inputs": [(each.kind, each.fingerprint) for each in manifest.inputs]}


def check_files(store: Store, manifest: DatastoreManifest) -> None:
    """The published folder has the files that the manifest names, and nothing else."""
    folder = store.directory(manifest)
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert on_disk == {entry.path for entry in manifest.files} | {"manifest.json"}
    for entry in manifest.files:
        assert (folder / entry.path).stat().st_size == entry.n_bytes
        assert file_sha256(folder / entry.path) == entry.sha256
    assert all(any(path.iterdir()) for path in folder.iterdir() if path.is_dir())
    assert manifest.n_bytes == sum(entry.n_bytes for entry in manifest.files)
    assert [path.name for path in (store.home / "staging").glob("*/")] == []


# Building


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_passages_rejoin_to_documents_and_all_counts_agree(store: Store, kind: str) -> None:
    tables = [retrieval_table(90), retrieval_table(40, seed=1, source="web")]
    published_corpus(store, "wiki", tables[0], 40)
    published_corpus(store, "web", tables[1], 40)
    window = PassageWindow(size=15, overlap=4)
    manifest = run(store, asked("qa", "wiki", "web", index_kind=kind, shards=4, window=window))
    check_files(store, manifest)
    documents = {row["id"]: row for table in tables for row in table.to_pylist()}
    passages: dict[str, list[dict[str, Any]]] = defaultdict(list)
    rows = contents(store, "qa")
    for row in rows.values():
        passages[row["document_id"]].append(row)
    assert passages.keys() == documents.keys()
    for identity, parts in passages.items():
        document = documents[identity]
        columns = ([part[name] for part in parts] for name in ("text", "start", "end"))
        assert rejoin(*columns) == document["text"]
        for part, following in pairwise(parts):
            assert len(document["text"][following["start"] : part["end"]].split()) == 4
        assert all(len(part["text"].split()) <= 15 for part in parts)
        for name in ("source", "domain", "url", "metadata"):
            assert {part[name] for part in parts} == {document[name]}
    assert (manifest.n_rows, manifest.n_documents, manifest.n_repeats) == (len(rows), 130, 0)
    assert manifest.n_tokens == sum(row["n_tokens"] for row in rows.values())
    assert manifest.sources == {
        source: sum(row["source"] == source for row in rows.values()) for source in ("wiki", "web")
    }
    assert sum(manifest.pieces) == len(rows)
    assert [piece for piece in manifest.pieces if not piece] == []
    edges = [(shard.start, shard.stop) for shard in manifest.shards]
    assert [start for start, _ in edges] == [0, *(stop for _, stop in edges[:-1])]
    assert edges[-1][1] == len(rows)
    sizes = [stop - start for start, stop in edges]
    assert max(sizes) - min(sizes) <= 1
    vectors = stored_vectors(store.directory(manifest), manifest)
    expected = load_encoder(ENCODER).encode([row["text"] for row in rows.values()])
    np.testing.assert_array_equal(vectors.rows(np.arange(len(vectors))), expected)


def test_titles_are_embedded_and_searched_where_documents_have_them(store: Store) -> None:
    texts = ["barn felt", "gilk komb", "larn"]
    metadata = ['{"title": "About tomb"}', "{}", '{"title": "silk"}']
    published_corpus(store, "wiki", document_table(texts, metadata=metadata))
    manifest = run(store, asked("qa", "wiki"))
    assert manifest.template == "{title}\n{text}"
    vectors = stored_vectors(store.directory(manifest), manifest).rows(np.arange(3))
    embedded = ["About tomb\nbarn felt", "gilk komb", "silk\nlarn"]
    np.testing.assert_array_equal(vectors, load_encoder(ENCODER).encode(embedded))
    (hits,) = search(store, "qa", queries=["tomb"], mode="bm25")
    assert [hit.text for hit in hits] == ["barn felt"]
    assert run(store, asked("qa", "wiki", template="{text}")).ref == "qa@2"
    assert search(store, "qa", queries=["tomb"], mode="bm25") == [[]]


def test_documents_of_several_corpora_are_taken_once_or_kept(store: Store) -> None:
    table = retrieval_table(60)
    published_corpus(store, "all", table, 20)
    # Its last shard has nothing new: an empty piece at the end.
    published_corpus(store, "some", pa.concat_tables([retrieval_table(20, seed=3), table.slice(10, 20)]), 20)
    published_corpus(store, "new", retrieval_table(20, seed=3), 20)
    dropped = run(store, asked("dropped", "all", "some"))
    check_files(store, dropped)
    assert (dropped.n_documents, dropped.n_repeats, dropped.pieces[-1]) == (80, 20, 0)
    run(store, asked("distinct", "all", "new"))
    assert contents(store, "dropped") == contents(store, "distinct")
    assert search(store, "dropped") == search(store, "distinct")
    kept = run(store, asked("kept", "all", "some", duplicates="keep"))
    assert (kept.n_documents, kept.n_repeats) == (100, 0)
    assert kept.n_rows == sum(
        2 if row["document_id"] in set(table["id"][10:30].to_pylist()) else 1
        for row in contents(store, "dropped").values()
    )
    assert len(search(store, "kept", k=1000)[0]) == kept.n_rows
    assert len({hit.id for hit in search(store, "kept", k=1000, dedup=True)[0]}) == kept.n_clusters
    # An empty piece troubles no later job.
    identity = table["id"][0].as_py()
    deleted = run(store, DatastoreDeleteRequest(datastore="dropped", documents=[identity]))
    assert run(store, DatastoreAddRequest(datastore="dropped", corpora=["new"])) == deleted
    compacted = run(store, DatastoreCompactRequest(datastore="dropped"))
    assert (compacted.n_documents, compacted.n_deleted, 0 in compacted.pieces) == (79, 0, False)
    assert identity not in {row["document_id"] for row in contents(store, "dropped").values()}


def test_there_are_never_more_shards_than_passages(store: Store) -> None:
    published_corpus(store, "wiki", document_table(["barn felt", "gilk", "komb silk"]))
    for kind in ("flat", "ivf", "ivf-pq", "rabitq", "hnsw"):
        manifest = run(store, asked(kind, "wiki", index_kind=kind, shards=50, queries=10))
        assert [(shard.start, shard.stop) for shard in manifest.shards] == [(0, 1), (1, 2), (2, 3)]
        for mode in MODES:
            hits = search(store, kind, queries=["komb silk"], mode=mode)[0]
            assert hits[0].text == "komb silk"
            assert len(hits) == (1 if mode == "bm25" else 3)


def test_a_build_that_cannot_be_is_refused_and_leaves_nothing(store: Store) -> None:
    table = retrieval_table(60)
    published_corpus(store, "wiki", table)
    for request, error, message in (
        (asked("qa", "nothing"), NotFoundError, "no corpus nothing"),
        (asked("qa", "wiki", "wiki"), DataError, "corpus wiki@1 is named twice"),
        (asked("qa", "wiki", encoder="somebody/else"), NotFoundError, "somebody/else"),
        (asked("qa", "wiki", template="{titel}"), ConfigError, "have no field 'titel'"),
    ):
        with pytest.raises(error, match=message):
            run(store, request)
        assert list((store.home / "staging").glob("datastore-*/")) == []
    with pytest.raises(ConfigError, match="memory budget 1000 bytes: index kind flat takes at least"):
        run(store, asked("qa", "wiki", memory_budget=1000))
    assert store.versions("datastore", "qa") == []


def test_auto_keeps_to_the_memory_budget(store: Store) -> None:
    published_corpus(store, "wiki", retrieval_table(400))
    flat = run(store, asked("flat", "wiki", index_kind="auto"))
    assert (flat.index_kind, flat.recall.measured) == ("flat", 1.0)
    budget = flat.n_rows * 64 * 4 // 2
    small = run(store, asked("small", "wiki", index_kind="auto", memory_budget=budget))
    assert small.index_kind == "rabitq"
    assert "over the memory budget" in small.candidates[0]["outcome"]
    indexes = [entry.n_bytes for entry in small.files if entry.path.startswith("indexes/")]
    assert sum(indexes) <= budget


@pytest.mark.parametrize("kind", ["ivf", "rabitq"])
def test_the_recorded_recall_is_of_queries_that_tuned_nothing_and_is_met_by_others(
    store: Store, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(5)
    texts = [" ".join(generator.choice(RETRIEVAL_WORDS, size=20)) for _ in range(700)]
    published_corpus(store, "wiki", document_table(texts))
    trials = []

    def spy(*arguments: Any) -> Any:
        trials.append(indexing_draw(*arguments))
        return trials[-1]

    indexing_draw = indexing.draw_queries
    monkeypatch.setattr(indexing, "draw_queries", spy)
    manifest = run(store, asked("qa", "wiki", index_kind=kind, queries=150, recall=0.9, shards=3))
    (trial,) = trials
    assert len(trial.tuning.queries) == len(trial.held_out.queries) == manifest.recall.n_queries == 150
    tuned_on = {query.tobytes() for query in trial.tuning.queries}
    assert not any(query.tobytes() in tuned_on for query in trial.held_out.queries)
    datastore = Datastore.open(store, "qa")

    def recall(vectors: np.ndarray) -> float:
        found, truth = (
            search(store, "qa", queries=None, vectors=vectors.tolist(), k=10, exact=exact)
            for exact in (False, True)
        )
        pairs = zip(found, truth, strict=True)
        return float(np.mean([np.mean([hit.score >= true[-1].score for hit in hits]) for hits, true in pairs]))

    assert recall(trial.held_out.queries) == pytest.approx(manifest.recall.measured, abs=5e-3)
    assert manifest.recall.measured >= 0.9
    fresh = [" ".join(texts[number].split()[5:17]) for number in generator.choice(len(texts), size=200)]
    assert recall(datastore.encoder.encode(fresh)[0]) >= 0.88


def test_an_old_version_is_searched_while_a_new_one_is_made(store: Store) -> None:
    table = retrieval_table(60)
    published_corpus(store, "wiki", table, 20)
    published_corpus(store, "web", retrieval_table(40, seed=1, source="web"), 20)
    run(store, asked("qa", "wiki"))
    before = search(store, "qa")
    looks = []

    def look() -> None:
        assert store.versions("datastore", "qa") == [1]
        looks.append([search(store, ref) for ref in ("qa", "qa@1")])

    added = run(store, DatastoreAddRequest(datastore="qa", corpora=["web"]), Recorder(on_advance=look))
    assert (added.ref, looks) == ("qa@2", [[before, before]])
    assert search(store, "qa@1") == before != search(store, "qa")


# Kills


def test_a_build_that_is_killed_ten_times_is_that_of_one_that_was_not(
    store: Store, killable: KillableJobs
) -> None:
    published_corpus(store, "wiki", retrieval_table(120), 20)
    published_corpus(store, "web", retrieval_table(40, seed=1, source="web"), 20)
    request = asked("whole", "wiki", "web", index_kind="ivf", shards=3)
    n_changes = killable.run(store, request)
    assert n_changes is not None
    random = np.random.default_rng(0)
    killed = request.model_copy(update={"name": "killed"})
    n_kills, moment = 0, 1
    while killable.run(store, killed, moment) is None:
        n_kills += 1
        # The first kills come early in a run: each later run does again what is not finished.
        moment = int(random.integers(1, n_changes // 6 if n_kills < 8 else n_changes))
    assert n_kills >= 10
    whole, resumed = (store.manifest(name, "datastore") for name in ("whole", "killed"))
    assert isinstance(whole, DatastoreManifest)
    assert isinstance(resumed, DatastoreManifest)
    assert described(resumed) == described(whole)
    check_files(store, resumed)
    opened = [Datastore.open(store, name) for name in ("whole", "killed")]
    assert opened[0].pieces.rows(0, whole.n_rows).equals(opened[1].pieces.rows(0, whole.n_rows))
    for mode in MODES:
        assert search(store, "killed", mode=mode) == search(store, "whole", mode=mode)


@pytest.mark.parametrize("part", range(4))
def test_changes_that_are_killed_are_those_that_were_not(store: Store, killable: KillableJobs, part: int) -> None:
    """An addition, a deletion and a compaction, each killed at moments that are spread over it."""
    table = retrieval_table(60)
    published_corpus(store, "wiki", table, 20)
    published_corpus(store, "web", retrieval_table(40, seed=1, source="web"), 20)
    kind = ("flat", "ivf")[part % 2]
    for name in ("whole", "killed"):
        killable.run(store, asked(name, "wiki", index_kind=kind))
    steps: list[Any] = [
        lambda name: DatastoreAddRequest(datastore=name, corpora=["web"], shards=2),
        lambda name: DatastoreDeleteRequest(datastore=name, documents=table["id"][:25].to_pylist()),
        lambda name: DatastoreCompactRequest(datastore=name, shards=3),
    ]
    for step in steps:
        n_changes = killable.run(store, step("whole"))
        assert n_changes is not None
        killable.run(store, step("killed"), n_changes * (part + 1) // 5)
        killable.run(store, step("killed"))
        whole, resumed = (store.manifest(name, "datastore") for name in ("whole", "killed"))
        assert isinstance(whole, DatastoreManifest)
        assert isinstance(resumed, DatastoreManifest)
        assert described(resumed) == described(whole)
        check_files(store, resumed)


JOB = """
import sys
from pathlib import Path
from mixwright.jobs.run import REQUEST_ADAPTER, run_request
from mixwright.progress import NoProgress
from mixwright.store import Store
run_request(Store(Path(sys.argv[1])), REQUEST_ADAPTER.validate_json(sys.argv[2]), NoProgress())
"""


def test_a_build_on_ray_that_is_killed_with_its_workers_goes_on_with_what_is_missing(store: Store) -> None:
    published_corpus(store, "wiki", retrieval_table(300), 10)
    request = asked("qa", "wiki", index_kind="ivf", workers=2)
    staging = kill_half_way(JOB, [request.model_dump_json()], store.home, 5, "marks/passages/*.json")
    finished = identities(staging, "marks/passages/*.json")
    # One of the finished pieces is damaged behind the job's back.
    vectors = sorted((staging / "vectors").iterdir())[2]
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"!")
    passages = identities(staging, "passages/*.arrow")
    progress = Recorder()
    manifest = run(store, request, progress)
    check_files(store, manifest)
    kept = identities(store.directory(manifest), "passages/*.arrow")
    whole = {Path(name).with_suffix(".arrow").name for name in finished} - {vectors.with_suffix(".arrow").name}
    assert len(whole) >= 4
    assert {name for name in whole if kept[name] != passages[name]} == set()
    assert kept[vectors.with_suffix(".arrow").name] != passages[vectors.with_suffix(".arrow").name]
    uninterrupted = run(store, request.model_copy(update={"name": "other"}))
    assert described(manifest) == described(uninterrupted)


# Adding


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_an_addition_is_a_build_of_both(store: Store, kind: str) -> None:
    table = retrieval_table(90)
    published_corpus(store, "wiki", table, 40)
    # Half of the second corpus is in the store already.
    new = retrieval_table(40, seed=1, source="web")
    published_corpus(store, "web", pa.concat_tables([new.slice(0, 20), table.slice(0, 30), new.slice(20)]), 40)
    first = run(store, asked("grown", "wiki", index_kind=kind))
    before = search(store, "grown")
    files = {entry.path: entry.sha256 for entry in first.files}
    progress = Recorder()
    grown = run(store, DatastoreAddRequest(datastore="grown", corpora=["web"], shards=3), progress)
    check_files(store, grown)
    assert (grown.ref, len(grown.shards), grown.n_documents, grown.n_repeats) == ("grown@2", 5, 130, 30)
    assert [(each.kind, each.ref) for each in grown.inputs] == [("datastore", "grown@1"), ("corpus", "web@1")]
    both = run(store, asked("both", "wiki", "web", index_kind=kind, shards=1))
    assert contents(store, "grown") == contents(store, "both")
    opened = [Datastore.open(store, name) for name in ("grown", "both")]
    assert opened[0].pieces.rows(0, both.n_rows).equals(opened[1].pieces.rows(0, both.n_rows))
    np.testing.assert_array_equal(opened[0].clusters, opened[1].clusters)
    same = ("n_rows", "n_documents", "n_repeats", "n_tokens", "n_clusters", "sources", "pieces", "dim")
    assert {name: getattr(grown, name) for name in same} == {name: getattr(both, name) for name in same}
    for mode in MODES:
        for options in ({}, {"dedup": True, "k": 40}, {"subsample": 0.5, "where": "source = 'web'"}):
            asked_exactly = {"mode": mode, "exact": True, **options}
            assert search(store, "grown", **asked_exactly) == search(store, "both", **asked_exactly)
    # What both versions have is one file with two names, and the old version is as it was.
    shared = [path for path in files if path != "clusters.npy"]
    for path in shared:
        assert (store.directory(first) / path).samefile(store.directory(grown) / path)
    assert {entry.path: entry.sha256 for entry in first.files} == files
    check_files(store, first)
    assert search(store, "grown@1") == before
    assert run(store, DatastoreAddRequest(datastore="grown@1", corpora=["web"], shards=3)) == grown


def test_nothing_new_is_no_new_version(store: Store) -> None:
    published_corpus(store, "wiki", retrieval_table(30), 10)
    published_corpus(store, "part", retrieval_table(12))
    built = run(store, asked("qa", "wiki"))
    progress = Recorder()
    assert run(store, DatastoreAddRequest(datastore="qa", corpora=["part"]), progress) == built
    assert progress.notes == ["qa@1 has all documents of these corpora already: nothing was added"]
    check_files(store, built)
    kept = run(store, asked("kept", "wiki", duplicates="keep"))
    twice = run(store, DatastoreAddRequest(datastore="kept", corpora=["part"]))
    assert (twice.n_documents, twice.n_repeats) == (kept.n_documents + 12, 0)


def test_a_store_that_outgrew_its_training_says_so(store: Store) -> None:
    published_corpus(store, "few", retrieval_table(30))
    published_corpus(store, "many", retrieval_table(150, seed=1, source="web"))
    few = run(store, asked("qa", "few", index_kind="ivf"))
    grown = run(store, DatastoreAddRequest(datastore="qa", corpora=["many"]))
    assert (grown.n_trained, grown.factory) == (few.n_rows, few.factory)
    assert grown.warnings[0].endswith("run  mixwright datastore compact qa")
    assert str(few.n_rows) in grown.warnings[0]
    assert all(len(hits) == 50 for hits in search(store, "qa", k=50))
    compacted = run(store, DatastoreCompactRequest(datastore="qa"))
    assert (compacted.n_trained, compacted.warnings) == (grown.n_rows, [])
    assert compacted.factory != few.factory


def test_an_addition_by_another_encoder_or_tokenizer_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    published_corpus(store, "wiki", retrieval_table(30))
    web = published_corpus(store, "web", retrieval_table(30, seed=1, source="web"))
    run(store, asked("qa", "wiki"))
    manifest = store.directory(web) / "manifest.json"
    was = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(was) | {"tokenizer": "characters"}))
    with pytest.raises(DataError, match="corpus web@1 counts tokens by characters, not by bytes"):
        run(store, DatastoreAddRequest(datastore="qa", corpora=["web"]))
    with pytest.raises(DataError, match="not by bytes: ingest all corpora with one tokenizer"):
        run(store, asked("both", "wiki", "web"))
    manifest.write_text(was)
    source = changes.find_encoder(ENCODER)
    monkeypatch.setattr(changes, "find_encoder", lambda _: replace(source, revision="another"))
    with pytest.raises(DataError, match="encoder hashing:64 has changed since qa@1 was built"):
        run(store, DatastoreAddRequest(datastore="qa", corpora=["web"]))


# Deleting


def found_by_any_search(store: Store, ref: str) -> set[str]:
    """Documents of the hits of searches that find all that there is."""
    hits = [
        hit
        for options in (
            {},
            {"mode": "bm25"},
            {"mode": "hybrid"},
            {"exact": True},
            {"dedup": True},
            {"where": "n_tokens > 0"},
            {"subsample": 0.9999999},
        )
        for line in search(store, ref, queries=[" ".join(RETRIEVAL_WORDS)], k=1000, **options)
        for hit in line
    ]
    return {hit.document_id for hit in hits}


@pytest.mark.parametrize("kind", ["flat", "ivf", "rabitq", "hnsw"])
def test_a_deleted_document_is_found_by_no_search(store: Store, kind: str) -> None:
    table = retrieval_table(90)
    published_corpus(store, "wiki", table, 40)
    built = run(store, asked("qa", "wiki", index_kind=kind, shards=3))
    gone = [hits[0].document_id for hits in search(store, "qa")] + table["id"][:40].to_pylist()
    deleted = run(store, DatastoreDeleteRequest(datastore="qa", documents=gone))
    check_files(store, deleted)
    rows = contents(store, "qa@1")
    left = {identity: row for identity, row in rows.items() if row["document_id"] not in gone}
    assert contents(store, "qa@2") == left
    assert (deleted.ref, deleted.n_rows, deleted.n_deleted) == ("qa@2", len(rows), len(rows) - len(left))
    assert deleted.n_documents == len({row["document_id"] for row in left.values()})
    assert deleted.n_tokens == sum(row["n_tokens"] for row in left.values())
    assert found_by_any_search(store, "qa") == set(table["id"].to_pylist()) - set(gone)
    assert all(len(hits) == len(left) for hits in search(store, "qa", k=1000))
    assert found_by_any_search(store, "qa@1") == set(table["id"].to_pylist())
    for entry in built.files:
        assert (store.directory(built) / entry.path).samefile(store.directory(deleted) / entry.path)
    # Again, from either version, and in another order.
    assert run(store, DatastoreDeleteRequest(datastore="qa@1", documents=[*gone[::-1], gone[0]])) == deleted
    assert run(store, DatastoreDeleteRequest(datastore="qa", documents=gone[:2])) == deleted
    assert store.versions("datastore", "qa") == [1, 2]


def test_deleted_documents_can_come_back(store: Store) -> None:
    table = retrieval_table(60)
    published_corpus(store, "wiki", table, 20)
    run(store, asked("qa", "wiki", shards=1))
    first = search(store, "qa")
    gone = table["id"][5:30].to_pylist()
    run(store, DatastoreDeleteRequest(datastore="qa", documents=gone))
    assert search(store, "qa") != first
    back = run(store, DatastoreAddRequest(datastore="qa", corpora=["wiki"]))
    assert (back.n_documents, back.n_repeats) == (60, 35)
    assert contents(store, "qa@3") == contents(store, "qa@1")
    assert [[hit.score for hit in line] for line in search(store, "qa")] == [
        [hit.score for hit in line] for line in first
    ]
    again = run(store, DatastoreDeleteRequest(datastore="qa", documents=gone[:3]))
    assert again.n_documents == 57
    assert not {row["document_id"] for row in contents(store, "qa@4").values()} & set(gone[:3])


def test_a_deletion_that_makes_no_sense_is_refused(store: Store) -> None:
    table = retrieval_table(20)
    published_corpus(store, "wiki", table)
    run(store, asked("qa", "wiki"))
    ids = table["id"].to_pylist()
    with pytest.raises(NotFoundError, match=r"datastore qa@1 has no document 0, 1, 2, 3, 4 and 2 more: give the"):
        run(store, DatastoreDeleteRequest(datastore="qa", documents=[*map(str, range(7)), ids[0]]))
    with pytest.raises(NotFoundError, match="has no document"):
        run(store, DatastoreDeleteRequest(datastore="qa", documents=[search(store, "qa")[0][0].id]))
    with pytest.raises(DataError, match="would delete every document of qa@1"):
        run(store, DatastoreDeleteRequest(datastore="qa", documents=ids))
    with pytest.raises(NotFoundError, match="no datastore other"):
        run(store, DatastoreDeleteRequest(datastore="other", documents=ids[:1]))
    assert store.versions("datastore", "qa") == [1]
    assert list((store.home / "staging").glob("datastore-*/")) == []


def test_only_the_newest_version_is_changed(store: Store) -> None:
    table = retrieval_table(20)
    published_corpus(store, "wiki", table)
    run(store, asked("qa", "wiki"))
    ids = table["id"].to_pylist()
    run(store, DatastoreDeleteRequest(datastore="qa", documents=ids[:2]))
    for change in (
        DatastoreDeleteRequest(datastore="qa@1", documents=ids[2:3]),
        DatastoreAddRequest(datastore="qa@1", corpora=["wiki"]),
        DatastoreCompactRequest(datastore="qa@1"),
    ):
        with pytest.raises(ConflictError, match="qa@1 is not the newest version of qa, which is 2"):
            run(store, change)
    assert store.versions("datastore", "qa") == [1, 2]


def test_no_two_changes_of_a_store_are_made_at_once(store: Store) -> None:
    """The later one to be published would be made from a version without the earlier one."""
    table = retrieval_table(20)
    published_corpus(store, "wiki", table)
    published_corpus(store, "web", retrieval_table(30, seed=1, source="web"))
    run(store, asked("qa", "wiki"))
    delete = DatastoreDeleteRequest(datastore="qa", documents=table["id"][:3].to_pylist())
    refused = []

    def interfere() -> None:
        with pytest.raises(
            ConflictError, match="another process is working on datastore qa: wait for it"
        ) as caught:
            run(store, delete)
        refused.append(caught)

    run(store, DatastoreAddRequest(datastore="qa", corpora=["web"]), Recorder(on_advance=interfere))
    assert len(refused) == 1
    assert run(store, delete).n_documents == 47


# Compacting


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_a_compacted_store_is_a_build_of_the_documents_that_are_left(store: Store, kind: str) -> None:
    table = retrieval_table(90)
    published_corpus(store, "wiki", table, 40)
    published_corpus(store, "web", retrieval_table(40, seed=1, source="web"), 40)
    run(store, asked("qa", "wiki", index_kind=kind, shards=1, dtype="float16" if kind == "ivf" else "float32"))
    run(store, DatastoreAddRequest(datastore="qa", corpora=["web"], shards=4))
    # A whole piece is lost, and parts of others.
    gone = table["id"][20:85].to_pylist()
    run(store, DatastoreDeleteRequest(datastore="qa", documents=gone))
    compacted = run(store, DatastoreCompactRequest(datastore="qa", shards=3))
    check_files(store, compacted)
    assert (compacted.ref, compacted.n_deleted, len(compacted.shards)) == ("qa@4", 0, 3)
    assert [(each.kind, each.ref) for each in compacted.inputs] == [("datastore", "qa@3")]
    left = table.filter(pa.array([identity not in set(gone) for identity in table["id"].to_pylist()]))
    published_corpus(store, "left", left, 40)
    fresh = run(store, asked("fresh", "left", "web", index_kind=kind, shards=3, dtype=compacted.dtype))
    assert contents(store, "qa") == contents(store, "fresh") == contents(store, "qa@3")
    same = {
        "factory",
        "search_parameters",
        "recall",
        "n_clusters",
        "n_tokens",
        "n_documents",
        "n_trained",
        "shards",
    }
    assert compacted.model_dump(include=same) == fresh.model_dump(include=same)
    for mode in MODES:
        for options in ({}, {"dedup": True, "k": 40}, {"subsample": 0.5, "exact": True}):
            found, expected = (search(store, ref, mode=mode, **options) for ref in ("qa", "fresh"))
            assert found == expected
    assert search(store, "qa", mode="dense", exact=True) == search(store, "qa@3", mode="dense", exact=True)
    assert run(store, DatastoreCompactRequest(datastore="qa", shards=3)) == compacted
    assert run(store, DatastoreCompactRequest(datastore="qa@3", shards=3)) == compacted


# Again


def test_a_request_that_was_answered_is_answered_again(store: Store) -> None:
    table = retrieval_table(40)
    published_corpus(store, "wiki", table, 20)
    request = asked("qa", "wiki")
    built = run(store, request)
    resources = request.model_copy(update={"workers": 7, "device": "cpu", "batch_tokens": 100})
    assert run(store, resources) == built
    other = run(store, asked("other", "wiki"))
    assert described(other) == described(built)
    assert run(store, asked("qa", "wiki", seed=1)).ref == "qa@2"
    with pytest.raises(ConflictError, match="exists with other inputs or parameters"):
        run(store, asked("qa@1", "wiki", seed=1))
    assert run(store, asked("qa@1", "wiki")) == built
    elsewhere = store.stage("datastore", Reference("third"), built.fingerprint)
    with elsewhere, pytest.raises(ConflictError, match="another process is working on datastore third"):
        run(store, request.model_copy(update={"name": "third"}))
