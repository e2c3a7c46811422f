"""Searching a datastore: hits against brute force in plain Python, filters after against filters before."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from support import (
    RETRIEVAL_DIM,
    RETRIEVAL_WORDS,
    document_table,
    published_corpus,
    retrieval_table,
    run_workers_here,
)

from mixwright.errors import ConfigError, DataError, NotFoundError
from mixwright.indexes import searching
from mixwright.indexes.bm25_terms import terms
from mixwright.indexes.datastores import encoding
from mixwright.indexes.datastores.datastore import Datastore
from mixwright.indexes.encoders import HashingEncoder, Prepared, find_encoder
from mixwright.indexes.protocols import Hits
from mixwright.indexes.rerankers import Reranker
from mixwright.jobs.datastores.build import run_datastore
from mixwright.progress import NoProgress
from mixwright.schemas.datastores import DatastoreRequest, Hit, PassageWindow, SearchRequest
from mixwright.store import Store

BUILD = {"index_kind": "flat", "recall": 0.9, "queries": 60, "window": PassageWindow(size=20)}

Scored = list[tuple[str, float]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with the corpus ``texts``, whose jobs run without Ray."""
    made = Store(tmp_path_factory.mktemp("datastores"))
    published_corpus(made, "texts", retrieval_table(), 50)
    with pytest.MonkeyPatch.context() as patch:
        run_workers_here(patch.setattr)
        yield made


@pytest.fixture(scope="module")
def opened(store: Store) -> Callable[..., Datastore]:
    """Opens a datastore that is built at the first call: ``opened(corpus="texts", **request)``."""
    found: dict[str, Datastore] = {}

    def build(corpus: str = "texts", **fields: Any) -> Datastore:
        fields = {"encoder": f"numbers:{RETRIEVAL_DIM}", "template": "{vector}"} | BUILD | fields
        key = json.dumps([corpus, fields], default=str)
        if key not in found:
            request = DatastoreRequest(name=f"store-{len(found)}", corpora=[corpus], **fields)
            found[key] = Datastore.open(store, run_datastore(store, request, NoProgress()).ref)
        return found[key]

    return build


@pytest.fixture(scope="module")
def texts_store(opened: Callable[..., Datastore]) -> Datastore:
    """Three flat shards of the same corpus, for queries in words."""
    return opened(encoder="hashing:64", template="{text}", shards=3)


def scored(hits: Sequence[Hit]) -> Scored:
    return [(hit.id, hit.score) for hit in hits]


def search(datastore: Datastore, **request: Any) -> list[list[Hit]]:
    return datastore.search(SearchRequest(**request)).hits


def ranked(datastore: Datastore, **request: Any) -> Hits:
    """The rows that are found, without what they say."""
    asked = SearchRequest(**request)
    return datastore.find(datastore.prepare([asked]), asked).hits


# Oracles


def mix(value: int) -> int:
    """SplitMix64's output function, of one whole number."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)


def is_drawn(key: int, share: float, seed: int) -> bool:
    return mix(mix(key) ^ mix(seed)) < Fraction(share) * 2**64


def contains(passage: str, forbidden: str, ngram: int = 13) -> bool:
    """Whether 0.8 of the distinct n-grams are shared, or a run of 32 words."""
    words, wanted = passage.split(), forbidden.split()

    def grams(of: list[str], n: int) -> set[tuple[str, ...]]:
        return {tuple(of[start : start + n]) for start in range(len(of) - n + 1)}

    n = min(ngram, len(wanted))
    share = Fraction(len(grams(words, n) & grams(wanted, n)), len(grams(wanted, n)))
    return share >= Fraction(4, 5) or bool(grams(words, 32) & grams(wanted, 32))


CONDITIONS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "n_tokens >= 90": lambda row: row["n_tokens"] >= 90,
    "year < 2005 AND domain IN ('a.org', 'c.org')": lambda row: (
        json.loads(row["metadata"])["year"] < 2005 and row["domain"] in ("a.org", "c.org")
    ),
    "NOT text LIKE '%barn%' OR \"start\" = 0": lambda row: "barn" not in row["text"] or row["start"] == 0,
    "domain IS NULL": lambda row: row["domain"] is None,
    "source = 'nowhere'": lambda row: False,
}


@dataclass
class Rows:
    """All rows of a store, in their order, and what of them is searched."""

    rows: list[dict[str, Any]]
    clusters: list[int]
    vectors: np.ndarray

    @classmethod
    def of(cls, datastore: Datastore) -> Rows:
        rows = datastore.pieces.rows(0, datastore.manifest.n_rows).to_pylist()
        vectors = [json.loads(json.loads(row["metadata"])["vector"]) for row in rows]
        return cls(rows, datastore.clusters.tolist(), np.array(vectors) / 2)

    def qualify(self, options: dict[str, Any]) -> list[int]:
        """The numbers of the rows that the options of a search let through, before anything is ranked."""
        found = []
        for number, row in enumerate(self.rows):
            if options.get("domains") is not None and row["domain"] not in options["domains"]:
                continue
            if options.get("where") and not CONDITIONS[options["where"]](row):
                continue
            keys = {
                "passage": int(row["id"][:16], 16),
                "document": int(row["document_id"][:16], 16),
                "cluster": self.clusters[number],
            }
            key = keys[options.get("subsample_by", "passage")]
            if is_drawn(key, options.get("subsample") or 1.0, options.get("seed", 0)):
                found.append(number)
        return found

    def best(self, scores: dict[int, float], options: dict[str, Any]) -> Scored:
        """The best k of rows with scores: equal ones by their number, without what options leave out."""
        hits: Scored = []
        seen: set[int] = set()
        for number in sorted(scores, key=lambda each: (-scores[each], each)):
            repeated = options.get("dedup") and self.clusters[number] in seen
            seen.add(self.clusters[number])
            dirty = any(contains(self.rows[number]["text"], each) for each in options.get("decontaminate") or [])
            if not (repeated or dirty):
                hits.append((self.rows[number]["id"], scores[number]))
        return hits[: options.get("k", 3)]

    def dense(self, query: Sequence[float], options: dict[str, Any]) -> Scored:
        scores = self.vectors @ np.asarray(query, dtype=np.float64)
        return self.best({number: float(scores[number]) for number in self.qualify(options)}, options)


def whole_queries(n: int, seed: int = 0) -> list[list[float]]:
    """Queries of small whole numbers: their products with the stored vectors are exact in float32."""
    return np.random.default_rng(seed).integers(-3, 4, size=(n, RETRIEVAL_DIM)).astype(float).tolist()


def drawn_options(seed: int) -> dict[str, Any]:
    """Some of the options of a search, each with one of its values."""
    generator = np.random.default_rng(seed)
    values: dict[str, list[Any]] = {
        "domains": [["a.org"], ["b.org", "c.org"], ["absent.org"], []],
        "where": list(CONDITIONS),
        "subsample": [0.02, 0.3, 0.6, 0.9, 1.0],
        "subsample_by": ["passage", "document", "cluster"],
        "seed": [0, 1, 2**63 - 1],
        "dedup": [True],
        "decontaminate": [["barn"], ["gelt", "milk tomb", "nobody wrote this"], []],
    }
    chosen = {
        name: each[generator.integers(len(each))] for name, each in values.items() if generator.random() < 0.4
    }
    return {"k": [1, 3, 20, 1000][generator.integers(4)], **chosen}


# Dense


@pytest.mark.parametrize("shards", [1, 2, 5, 7])
def test_flat_hits_are_brute_force_however_the_rows_are_sharded(
    opened: Callable[..., Datastore], shards: int
) -> None:
    datastore = opened(shards=shards)
    rows, queries = Rows.of(datastore), whole_queries(12)
    assert len(datastore.manifest.shards) == shards
    for k in (1, 3, 50, 10_000):
        found = search(datastore, vectors=queries, k=k)
        assert [scored(hits) for hits in found] == [rows.dense(query, {"k": k}) for query in queries]
    # There are ties at the edge of the hits, so that the rule for ties is tested.
    assert any(rows.dense(query, {"k": 4})[2][1] == rows.dense(query, {"k": 4})[3][1] for query in queries)


@pytest.mark.parametrize("part", range(3))
def test_every_way_to_search_is_a_search_of_what_remains(opened: Callable[..., Datastore], part: int) -> None:
    stores = [opened(shards=1), opened(shards=5), opened(index_kind="ivf", shards=3)]
    rows = Rows.of(stores[0])
    for seed in range(40 * part, 40 * part + 40):
        options, (query,) = drawn_options(seed), whole_queries(1, seed)
        expected = rows.dense(query, options)
        for datastore in stores:
            exact = datastore is stores[2]
            assert scored(search(datastore, vectors=[query], exact=exact, **options)[0]) == expected


def test_every_way_to_search_passages_of_several_words(
    opened: Callable[..., Datastore], texts_store: Datastore
) -> None:
    """As above, where documents have several passages: what is left of all rows, which are ranked right."""
    rows, query = Rows.of(texts_store), "barn felt gilk komb"
    assert len({row["document_id"] for row in rows.rows}) < len(rows.rows)
    (everything,) = search(texts_store, queries=[query], k=1000)
    vectors = texts_store.encoder.encode([query, *(row["text"] for row in rows.rows)])[0].astype(np.float64)
    found = {hit.id: hit.score for hit in everything}
    scores = {number: found[row["id"]] for number, row in enumerate(rows.rows)}
    assert list(scores.values()) == pytest.approx((vectors[1:] @ vectors[0]).tolist(), abs=1e-6)
    single = opened(encoder="hashing:64", template="{text}", shards=1)
    for seed in range(200, 240):
        options = drawn_options(seed)
        allowed = set(rows.qualify(options))
        expected = rows.best({number: score for number, score in scores.items() if number in allowed}, options)
        for datastore in (texts_store, single):
            assert scored(search(datastore, queries=[query], **options)[0]) == expected


def test_hits_tell_what_the_rows_have(opened: Callable[..., Datastore]) -> None:
    datastore = opened(shards=5)
    rows = Rows.of(datastore)
    by_id = {row["id"]: (row, cluster) for row, cluster in zip(rows.rows, rows.clusters, strict=True)}
    hits = search(datastore, vectors=whole_queries(3), k=200)
    for hit in (each for line in hits for each in line):
        row, cluster = by_id[hit.id]
        assert hit.model_dump(exclude={"score", "cluster"}) == {
            name: row[name] for name in Hit.model_fields if name in row
        }
        assert hit.cluster == f"{cluster:016x}"


@pytest.mark.parametrize("nprobe", [1, 2, 4, None])
def test_shards_with_one_training_find_what_one_inverted_file_finds(
    opened: Callable[..., Datastore], nprobe: int | None
) -> None:
    single = opened(index_kind="ivf", shards=1)
    rows = Rows.of(single)
    assert single.manifest.factory.startswith("IVF")
    queries = [*whole_queries(25), *(rows.vectors[:25]).tolist()]
    for shards in (3, 7):
        sharded = opened(index_kind="ivf", shards=shards)
        assert sharded.manifest.search_parameters == single.manifest.search_parameters
        for k in (1, 3, 10, 60):
            one = search(single, vectors=queries, k=k, nprobe=nprobe)
            assert search(sharded, vectors=queries, k=k, nprobe=nprobe) == one
            assert all(len(hits) == k for hits in one)


def test_an_inverted_file_compares_few_rows_and_all_if_asked(opened: Callable[..., Datastore]) -> None:
    datastore = opened(index_kind="ivf", shards=3)
    rows, queries = Rows.of(datastore), whole_queries(40)
    expected = [rows.dense(query, {"k": 10}) for query in queries]
    fewest = [scored(hits) for hits in search(datastore, vectors=queries, k=10, nprobe=1)]
    assert fewest != expected
    most = search(datastore, vectors=queries, k=10, nprobe=10_000)
    assert [scored(hits) for hits in most] == expected
    assert search(datastore, vectors=queries, k=10, exact=True) == most


@pytest.mark.parametrize("kind", ["ivf-pq", "rabitq", "hnsw"])
@pytest.mark.parametrize("shards", [1, 4])
def test_other_kinds_have_true_scores_and_the_recall_that_they_recorded(
    opened: Callable[..., Datastore], kind: str, shards: int
) -> None:
    datastore = opened(encoder="hashing:64", template="{text}", index_kind=kind, shards=shards)
    generator = np.random.default_rng(9)
    queries = [" ".join(generator.choice(RETRIEVAL_WORDS, size=12)) for _ in range(100)]
    truth = ranked(datastore, queries=queries, k=len(datastore), exact=True)
    for k in (3, 10, len(datastore)):
        hits = ranked(datastore, queries=queries, k=k)
        exact = np.empty_like(truth.scores)
        np.put_along_axis(exact, truth.ids, truth.scores, axis=1)
        np.testing.assert_array_equal(hits.scores, np.take_along_axis(exact, hits.ids, 1))
        assert (hits.scores >= truth.scores[:, [k - 1]]).mean() >= 0.9


@pytest.mark.parametrize("kind", ["ivf", "ivf-pq", "rabitq", "hnsw"])
def test_large_shards_are_filtered_inside_the_index(
    opened: Callable[..., Datastore], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few allowed rows are compared one by one; with more, as here all are, FAISS passes over the others."""
    monkeypatch.setattr(searching, "_FEW_ROWS", 0)
    datastore = opened(encoder="hashing:64", template="{text}", index_kind=kind, shards=3, near_duplicates="exact")
    generator = np.random.default_rng(9)
    queries = [" ".join(generator.choice(RETRIEVAL_WORDS, size=12)) for _ in range(40)]
    rows = Rows.of(datastore)
    for options in ({"domains": ["a.org"]}, {"subsample": 0.2, "where": "n_tokens >= 90"}):
        qualify = rows.qualify(options)
        for k in (5, 1000):
            found = ranked(datastore, queries=queries, k=k, **options)
            truth = ranked(datastore, queries=queries, k=k, exact=True, **options)
            n = min(k, len(qualify))
            assert (found.ids[:, :n] >= 0).all()
            assert set(found.ids[:, :n].ravel().tolist()) <= set(qualify)
            assert (found.ids[:, n:] < 0).all()
            assert (found.scores[:, :n] >= truth.scores[:, [n - 1]]).mean() >= 0.9


def test_settings_are_refused_where_the_kind_has_none(opened: Callable[..., Datastore]) -> None:
    vectors = whole_queries(1)
    flat, ivf = opened(shards=1), opened(index_kind="ivf", shards=3)
    with pytest.raises(ConfigError, match="index kind flat has no search parameter nprobe: it has none"):
        search(flat, vectors=vectors, nprobe=3)
    with pytest.raises(ConfigError, match=r"index kind ivf has no search parameter .*: it has nprobe"):
        search(ivf, vectors=vectors, ef_search=3)
    hnsw = opened(encoder="hashing:64", template="{text}", index_kind="hnsw", shards=1)
    with pytest.raises(ConfigError, match="index kind hnsw has no search parameter nprobe"):
        search(hnsw, queries=["barn"], nprobe=3)
    assert len(search(hnsw, queries=["barn"], ef_search=1, k=30)[0]) == 30


# Samples and near-duplicates


@pytest.mark.parametrize("unit", ["passage", "document", "cluster"])
def test_samples_are_nested_and_of_the_share_that_was_asked(opened: Callable[..., Datastore], unit: str) -> None:
    single, sharded = opened(shards=1), opened(shards=7)
    query = whole_queries(1)

    def kept(datastore: Datastore, share: float, seed: int) -> set[str]:
        hits = search(datastore, vectors=query, k=10_000, subsample=share, subsample_by=unit, seed=seed)
        return {hit.id for hit in hits[0]}

    n = len(single)
    counts = []
    for seed in range(8):
        samples = [kept(single, share, seed) for share in (0.1, 0.5, 0.8, 1.0)]
        assert samples[0] < samples[1] < samples[2] < samples[3]
        assert samples[1] == kept(sharded, 0.5, seed)
        counts.append(len(samples[1]))
    assert len(set(counts)) > 1  # another seed draws another sample
    groups = Counter(
        unit_of(row, cluster, unit)
        for row, cluster in zip(Rows.of(single).rows, single.clusters.tolist(), strict=True)
    )
    # Whole groups come and go: the variance of the kept rows is p (1 - p) Σ size².
    error = math.sqrt(0.25 * sum(size**2 for size in groups.values()) / len(counts))
    assert abs(np.mean(counts) - n / 2) < 4 * error


def unit_of(row: dict[str, Any], cluster: int, unit: str) -> Any:
    return {"passage": row["id"], "document": row["document_id"], "cluster": cluster}[unit]


@pytest.mark.parametrize(("share", "seed"), [(0.3, 0), (0.6, 5)])
def test_a_sample_of_documents_is_a_store_built_from_them(
    store: Store, opened: Callable[..., Datastore], share: float, seed: int
) -> None:
    table = retrieval_table()
    kept = [is_drawn(int(identity[:16], 16), share, seed) for identity in table["id"].to_pylist()]
    published_corpus(store, f"sample-{seed}", table.filter(pa.array(kept)), 50)
    words = {"encoder": "hashing:64", "template": "{text}"}
    whole, smaller = opened(**words, shards=3), opened(**words, corpus=f"sample-{seed}", shards=2)
    assert 0 < len(smaller) < len(whole)
    queries = [" ".join(np.random.default_rng(number).choice(RETRIEVAL_WORDS, 6)) for number in range(20)]
    for options in ({"k": 12}, {"k": 5, "dedup": True}, {"k": 1000, "domains": ["a.org"]}):
        sample = {"subsample": share, "subsample_by": "document", "seed": seed}
        after = search(whole, queries=queries, **options, **sample)
        before = search(smaller, queries=queries, **options)
        assert [scored(line) for line in after] == [scored(line) for line in before]


def test_clusters_do_not_depend_on_shards_and_dedup_leaves_one_of_each(opened: Callable[..., Datastore]) -> None:
    single, sharded = opened(shards=1), opened(shards=7)
    np.testing.assert_array_equal(single.clusters, sharded.clusters)
    sizes = Counter(single.clusters.tolist())
    assert max(sizes.values()) > 1
    assert single.manifest.n_clusters == len(sizes)
    hits = search(sharded, vectors=whole_queries(4), k=10_000, dedup=True)
    for line in hits:
        assert Counter(hit.cluster for hit in line) == {f"{cluster:016x}": 1 for cluster in sizes}


def test_a_search_goes_deeper_until_there_are_k(store: Store, opened: Callable[..., Datastore]) -> None:
    """A thousand copies come first, and then a thousand passages with a text that no hit may have."""
    copy = " ".join(RETRIEVAL_WORDS[:30])
    texts = [f"{copy} copy{number}" for number in range(1000)]
    texts += [
        f"{' '.join(np.random.default_rng(number).permutation(RETRIEVAL_WORDS))} secret words of the test"
        for number in range(500)
    ]
    texts += [
        f"{' '.join(np.random.default_rng(-number).permutation(RETRIEVAL_WORDS)[:20])} rest"
        for number in range(-5, 0)
    ]
    vectors = [[2] + [0] * 15] * 1000 + [[1, 1] + [0] * 14] * 500 + [[1, 2] + [0] * 14] * 5
    metadata = [json.dumps({"vector": json.dumps(vector)}) for vector in vectors]
    published_corpus(store, "copies", document_table(texts, metadata=metadata), 400)
    datastore = opened(corpus="copies", shards=4, window=PassageWindow(size=100), near_duplicates="minhash")
    query = [[1.0] + [0.0] * 15]
    hits = search(datastore, vectors=query, k=7, dedup=True, decontaminate=["secret words of the test"])[0]
    assert [hit.text.split()[-1] for hit in hits] == ["copy0", *["rest"] * 5]
    assert [hit.text for hit in hits[1:]] == texts[-5:]
    for k in (3, 6):
        assert (
            len(search(datastore, vectors=query, k=k, dedup=True, decontaminate=["secret words of the test"])[0])
            == k
        )


def test_decontamination_is_of_every_query_or_of_one(texts_store: Datastore) -> None:
    queries = [hit.text for hit in search(texts_store, queries=["barn felt gilk"], k=3)[0]]
    plain = search(texts_store, queries=queries, k=5)
    assert [line[0].text for line in plain] == queries

    def found(**options: Any) -> list[set[str]]:
        return [{hit.text for hit in line} for line in search(texts_store, queries=queries, k=5, **options)]

    everywhere = found(decontaminate=queries)
    assert all(not line & set(queries) for line in everywhere)
    own = found(decontaminate=[[queries[0]], [], [queries[2], "nobody wrote this"]])
    assert [query in line for query, line in zip(queries, own, strict=True)] == [False, True, False]
    assert all(len(line) == 5 for line in [*everywhere, *own])
    themselves = found(decontaminate=True)
    assert themselves == found(decontaminate=[[query] for query in queries])
    assert not any(query in line for query, line in zip(queries, themselves, strict=True))
    assert found(decontaminate=False) == found(decontaminate=[])
    with pytest.raises(ValidationError, match="needs the texts of the queries"):
        SearchRequest(vectors=[[0.0] * 64], decontaminate=True)
    assert found(decontaminate=[]) == [{hit.text for hit in line} for line in plain]
    # Half a passage is too little for 0.8 of its n-grams, unless less is asked for.
    half = " ".join([*queries[0].split()[4:], *RETRIEVAL_WORDS[:12]])
    assert queries[0] in found(decontaminate=[half])[0]
    assert queries[0] not in found(decontaminate=[half], ngram=3, containment=0.3)[0]
    assert queries[0] not in found(decontaminate=[half], longest_run=8)[0]


# Words


def bm25(texts: Sequence[str], query: str) -> dict[int, float]:
    """Lucene's BM25 of all texts that have a word of the query."""
    documents = [Counter(terms(text)) for text in texts]
    average = sum(document.total() for document in documents) / len(texts)
    scores: dict[int, float] = {}
    for number, document in enumerate(documents):
        score = 0.0
        for term, count in sorted(Counter(terms(query)).items()):
            n_with = sum(term in other for other in documents)
            idf = math.log(1 + (len(texts) - n_with + 0.5) / (n_with + 0.5))
            norm = 1.2 * (1 - 0.75 + 0.75 * document.total() / average)
            score += count * idf * document[term] / (document[term] + norm)
        if score > 0:
            scores[number] = score
    return scores


@pytest.mark.parametrize(
    "options", [{}, {"dedup": True, "k": 8}, {"domains": ["a.org"], "subsample": 0.6, "k": 400}]
)
def test_bm25_is_the_formula_over_all_passages(
    opened: Callable[..., Datastore], texts_store: Datastore, options: dict[str, Any]
) -> None:
    rows = Rows.of(texts_store)
    texts = [row["text"] for row in rows.rows]
    queries = ["barn felt n7", "the karn karn", "unheard-of word", "the of and"]
    found = search(texts_store, queries=queries, mode="bm25", **options)
    for query, hits in zip(queries, found, strict=True):
        every = bm25(texts, query)
        allowed = {number: every[number] for number in rows.qualify(options) if number in every}
        best = rows.best(allowed, options)
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in best], rel=1e-6)
        scores = {rows.rows[number]["id"]: score for number, score in allowed.items()}
        assert all(hit.score == pytest.approx(scores[hit.id], rel=1e-6) for hit in hits)
        assert len({hit.id for hit in hits}) == len(hits)
    assert len(found[0]) > 0
    assert found[2] == found[3] == []
    single = opened(encoder="hashing:64", template="{text}", shards=1)
    assert search(single, queries=queries, mode="bm25", **options) == found


@pytest.mark.parametrize("options", [{"k": 4}, {"k": 250}, {"k": 30, "domains": ["b.org"], "subsample": 0.5}])
def test_hybrid_is_the_sum_of_reciprocal_ranks(texts_store: Datastore, options: dict[str, Any]) -> None:
    queries = ["barn felt n7 gilk", "karn", "unheard-of word"]
    deep = options | {"k": max(options["k"], 200)}
    lists = [search(texts_store, queries=queries, mode=mode, **deep) for mode in ("dense", "bm25")]
    order = [row["id"] for row in texts_store.pieces.rows(0, len(texts_store)).to_pylist()]
    for line, hits in enumerate(search(texts_store, queries=queries, mode="hybrid", **options)):
        sums: dict[str, float] = {}
        for ranking in lists:
            for rank, hit in enumerate(ranking[line], 1):
                sums[hit.id] = sums.get(hit.id, 0.0) + 1 / (60 + rank)
        expected = sorted(sums, key=lambda identity: (-np.float32(sums[identity]), order.index(identity)))
        assert [hit.id for hit in hits] == expected[: options["k"]]
        assert [hit.score for hit in hits] == pytest.approx([sums[hit.id] for hit in hits], rel=1e-6)


# Queries


def test_queries_as_vectors_are_the_texts_embedded(texts_store: Datastore) -> None:
    queries = ["barn felt gilk", "komb"]
    vectors, truncated = texts_store.encoder.encode(queries)
    assert truncated == []
    assert search(texts_store, vectors=vectors.tolist()) == search(texts_store, queries=queries)


def test_a_query_template_is_put_around_each_query(opened: Callable[..., Datastore]) -> None:
    plain = opened(encoder="hashing:64", template="{text}", shards=1)
    asked = opened(encoder="hashing:64", template="{text}", shards=1, query_template="felt felt: {text}")
    assert search(asked, queries=["barn"], k=20) == search(plain, queries=["felt felt: barn"], k=20)
    assert search(asked, queries=["barn"], k=20) != search(plain, queries=["barn"], k=20)
    assert search(asked, queries=["barn"], mode="bm25") == search(plain, queries=["barn"], mode="bm25")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"queries": ["barn", " \t"]}, "query 1 is empty"),
        ({"vectors": [[0.0] * 64, [0.0] * 63]}, "a query vector has 63 coordinates, .* wants 64"),
        ({"vectors": [[math.nan] * 64]}, "not finite"),
        ({"vectors": [[1e300] * 64]}, "not finite"),
    ],
)
def test_queries_that_cannot_be_searched_for_are_named(
    texts_store: Datastore, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message), np.errstate(over="ignore"):
        search(texts_store, **request_)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"queries": ["a"], "vectors": [[1.0]]},
        {"vectors": [[1.0]], "mode": "bm25"},
        {"vectors": [[1.0]], "mode": "hybrid"},
        {"vectors": [[1.0]], "rerank": 3},
        {"queries": ["a", "b"], "decontaminate": [["x"]]},
        {"queries": ["a"], "decontaminate": ["x", ["y"]]},
        {"queries": ["a"], "k": 0},
        {"queries": ["a"], "subsample": 0.0},
        {"queries": ["a"], "subsample": 1.5},
        {"queries": ["a"], "nprob": 3},
    ],
)
def test_requests_that_make_no_sense_are_refused(request_: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SearchRequest(**request_)


def test_no_query_has_no_hits(texts_store: Datastore) -> None:
    for mode in ("dense", "bm25", "hybrid"):
        assert search(texts_store, queries=[], mode=mode) == []
    assert search(texts_store, vectors=[]) == []


def test_a_condition_that_is_none_is_refused(texts_store: Datastore) -> None:
    with pytest.raises(ConfigError, match="is not understood"):
        search(texts_store, queries=["barn"], where="DROP TABLE passages")


def test_a_condition_on_a_field_that_no_passage_has_is_answered_with_a_warning(texts_store: Datastore) -> None:
    answer = texts_store.search(SearchRequest(queries=["barn"], where="sorce = 'wiki' OR source = 'wiki'"))
    assert [each for each in answer.warnings if "no field sorce" in each and "source" in each]
    assert not texts_store.search(SearchRequest(queries=["barn"], where="source = 'wiki'")).warnings


class ShortReader(HashingEncoder):
    """An encoder that reads four words."""

    def prepare(self, texts: Sequence[str]) -> Prepared:
        found = super().prepare(texts)
        cut = [" ".join(text.split()[:4]) for text in texts]
        return Prepared(cut, np.minimum(found.lengths, 4), found.lengths > 4)


def test_a_query_that_is_not_read_whole_is_warned_of(
    store: Store, texts_store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ShortReader(find_encoder("hashing:64"), 64)
    monkeypatch.setattr(encoding, "load_encoder", lambda *_: short)
    datastore = Datastore.open(store, texts_store.manifest.ref)
    queries = ["barn felt", "barn felt gilk komb larn melt", "larn"]
    answer = datastore.search(SearchRequest(queries=queries))
    assert len(answer.warnings) == 1
    assert answer.warnings[0].startswith("query 1 is longer than the ")
    requests = [SearchRequest(queries=queries[:1]), SearchRequest(queries=queries[1:])]
    together = [each.as_response() for each in datastore.search_together(requests)]
    assert [len(each.warnings) for each in together] == [0, 1]
    assert together[1].warnings[0].startswith("query 0 is longer")
    assert [line for each in together for line in each.hits] == answer.hits
    assert datastore.search(SearchRequest(queries=queries, mode="bm25")).warnings == []


def test_another_encoder_than_the_stores_is_refused(
    store: Store, texts_store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "load_encoder", lambda *_: HashingEncoder(find_encoder("hashing:8"), 8))
    datastore = Datastore.open(store, texts_store.manifest.ref)
    with pytest.raises(ConfigError, match="encoder hashing:64 has other files"):
        search(datastore, queries=["barn"])


# Reranking


class Lengths:
    """A model that likes short passages, and counts the pairs that it has read."""

    def __init__(self) -> None:
        self.n_pairs = 0

    def predict(self, pairs: list[tuple[str, str]], **_: Any) -> Any:
        self.n_pairs += len(pairs)
        return np.array([-len(passage) for _, passage in pairs], dtype=np.float32)


def test_a_cross_encoder_orders_the_best_so_many(store: Store, texts_store: Datastore) -> None:
    model = Lengths()
    datastore = Datastore.open(store, texts_store.manifest.ref, Reranker("lengths", model, "cpu"))
    queries = ["barn felt gilk", "komb"]
    for options in ({}, {"mode": "hybrid", "dedup": True}, {"domains": ["absent.org"]}):
        model.n_pairs = 0
        first = search(texts_store, queries=queries, k=30, **options)
        found = search(datastore, queries=queries, k=4, rerank=30, **options)
        assert model.n_pairs == sum(len(line) for line in first)
        for line, hits in zip(first, found, strict=True):
            # The sort is stable only in the rows' order.
            best = sorted((-len(hit.text) for hit in line), reverse=True)[:4]
            assert [hit.score for hit in hits] == best
            assert {hit.id for hit in hits} <= {hit.id for hit in line}
            assert [hit.score for hit in hits] == [-len(hit.text) for hit in hits]
    with pytest.raises(ConfigError, match="there is no cross-encoder"):
        search(texts_store, queries=queries, rerank=30)


# Opening


def test_what_is_no_datastore_or_damaged_is_named(store: Store, opened: Callable[..., Datastore]) -> None:
    with pytest.raises(NotFoundError, match="no datastore nothing"):
        Datastore.open(store, "nothing")
    with pytest.raises(NotFoundError, match="no datastore texts"):
        Datastore.open(store, "texts")
    datastore = opened(shards=2, seed=77)
    ref, directory = datastore.manifest.ref, datastore.directory
    (directory / "clusters.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"clusters\.npy is missing or damaged"):
        Datastore.open(store, ref)
    for index in (directory / "indexes").iterdir():
        index.write_bytes(index.read_bytes()[:100])
    (directory / "clusters.npy").unlink()
    np.save(directory / "clusters.npy", datastore_clusters(opened))
    with pytest.raises(DataError, match=r"00000\.faiss is missing or damaged"):
        Datastore.open(store, ref)


def datastore_clusters(opened: Callable[..., Datastore]) -> np.ndarray:
    return np.asarray(opened(shards=1).clusters)


def test_threads_search_one_store_at_once(opened: Callable[..., Datastore], texts_store: Datastore) -> None:
    ivf = opened(encoder="hashing:64", template="{text}", index_kind="ivf", shards=3)
    tasks: list[tuple[Datastore, dict[str, Any]]] = [
        (datastore, {"queries": [word, "felt gilk"], "k": 5, "mode": mode, "where": "n_tokens > 6"})
        for datastore in (texts_store, ivf)
        for word in RETRIEVAL_WORDS[:10]
        for mode in ("dense", "bm25", "hybrid")
    ]
    alone = [search(datastore, **options) for datastore, options in tasks]
    found: list[Any] = [None] * len(tasks)

    def run(first: int) -> None:
        for number in range(first, len(tasks), 4):
            found[number] = search(tasks[number][0], **tasks[number][1])

    threads = [threading.Thread(target=run, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone
