"""Near-duplicates: words, sets, clusters, the job, and the ingest and selections that leave them out.

The oracles are plain Python over strings, scipy's connected components, and corpora without the duplicates.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from support import Recorder, document_table
from typer.testing import CliRunner

from mixwright.attributes import Attributes
from mixwright.cli import app
from mixwright.corpora import Corpus
from mixwright.errors import AlignmentError, ConfigError, DataError
from mixwright.indexes import hash_files, sketches
from mixwright.indexes.disjoint_sets import DisjointSets
from mixwright.indexes.near_duplicates import Clusters, near_duplicate_clusters
from mixwright.indexes.protocols import Hits
from mixwright.indexes.semantic_duplicates import semantic_clusters
from mixwright.indexes.sketches import minhash, rows_per_band, shingles, whole_texts
from mixwright.indexes.vectors import ArrayVectors
from mixwright.indexes.words import Ragged, hashed_words, offsets_of, word_spans
from mixwright.jobs import near_duplicates as job
from mixwright.jobs.ingest import run_ingest
from mixwright.jobs.inputs import inputs_state
from mixwright.jobs.near_duplicates import run_near_duplicates
from mixwright.jobs.run import REQUEST_ADAPTER, run_request
from mixwright.jobs.select import run_select
from mixwright.jobs.study import study_of_mixture
from mixwright.progress import NoProgress
from mixwright.schemas.manifests import (
    ArtifactInput,
    AttributesManifest,
    CorpusManifest,
    EmbeddingsManifest,
    MixtureManifest,
)
from mixwright.schemas.mixtures import Budget
from mixwright.schemas.references import Reference
from mixwright.schemas.requests import EmbedRequest, IngestRequest, NearDuplicatesRequest
from mixwright.selectors.baselines import Proportional, Random
from mixwright.selectors.domain_tags import DomainTags
from mixwright.selectors.left_out import CONTAMINATED, NEAR_DUPLICATES, in_corpora, leave_out
from mixwright.selectors.paser import Paser
from mixwright.selectors.pool import Pool
from mixwright.selectors.requests import SelectRequest
from mixwright.selectors.streams import MixtureStream
from mixwright.store import Store

VOCABULARY = [f"word{number}" for number in range(300)]


def words_of(text: str) -> list[str]:
    """Words by the rules of the docs, character by character."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words, inside = [], False
    for character in folded:
        category = unicodedata.category(character)
        if category == "Cf" or "\ufe00" <= character <= "\ufe0f":
            continue
        name = unicodedata.name(character, "")
        alone = (
            name.startswith(("CJK", "HIRAGANA", "KATAKANA", "COMBINING KATAKANA", "THAI")) and category[0] in "LMN"
        )
        if alone or category[0] not in "LMN":
            words += [character] if alone else []
            inside = False
        elif inside:
            words[-1] += character
        else:
            words.append(character)
            inside = True
    return words


def set_of(text: str) -> set[tuple[str, ...]]:
    """The runs of five words of a text, or all words of a shorter one."""
    words = words_of(text)
    if not words:
        return {(" ".join(text.split()),)} if text.split() else set()
    return {tuple(words[i : i + 5]) for i in range(max(len(words) - 4, 1))}


def components(n: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    first, second = np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def expected_ids(keys: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """The smallest key of each row's connected component."""
    labels = components(len(keys), pairs)
    return np.asarray([keys[labels == label].min() for label in labels], dtype=np.uint64)


def brute_force(texts: Sequence[str], threshold: float) -> list[tuple[int, int]]:
    sets = [set_of(text) for text in texts]
    return [
        (i, j)
        for i, j in itertools.combinations(range(len(texts)), 2)
        if (sets[i] or sets[j]) and len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j])
    ]


def keys_of(texts: Sequence[str]) -> np.ndarray:
    digests = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]
    return np.asarray([int(digest, 16) for digest in digests], dtype=np.uint64)


def in_batches(texts: Sequence[str], size: int = 7) -> Callable[[], Iterator[Sequence[str]]]:
    return lambda: (texts[start : start + size] for start in range(0, len(texts), size))


def clusters_of(texts: Sequence[str], tmp_path: Path, size: int = 7, **options: Any) -> Clusters:
    found = near_duplicate_clusters(
        in_batches(texts, size), keys_of(texts), tmp_path / "work", NoProgress(), **options
    )
    assert not (tmp_path / "work").exists()
    return found


def edited(text: str, n_words: int, rng: np.random.Generator) -> str:
    words = text.split()
    for place in rng.integers(0, len(words), n_words):
        words[place] = str(rng.choice(VOCABULARY))
    return " ".join(words)


def families(rng: np.random.Generator, n: int = 25) -> list[str]:
    """Texts of 3 to 120 words, each with a few copies of which some words are others, in no order."""
    texts = []
    for _ in range(n):
        text = " ".join(rng.choice(VOCABULARY, rng.integers(3, 120)))
        texts += [text, *(edited(text, int(rng.integers(0, 5)), rng) for _ in range(rng.integers(0, 4)))]
    return [texts[number] for number in rng.permutation(len(texts))]


# Words


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.sampled_from("aB9 ._-'éÉß\u0301\u00ad\ufe0fﬁ東タｶﾞไทहि한ﾡ½👍\n")), max_size=6))
def test_hashes_of_words_are_equal_where_the_words_are(texts: list[str]) -> None:
    expected = [words_of(text) for text in texts]
    found = hashed_words(texts)
    np.testing.assert_array_equal(np.diff(found.offsets), [len(words) for words in expected])
    pairs = set(zip(itertools.chain(*expected), found.values.tolist(), strict=True))
    assert len(pairs) == len({word for word, _ in pairs}) == len({value for _, value in pairs})


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("aB9 .'éÉß\u0301\u00adﬁ東タｶﾞไहि½👍\n")))
def test_spans_are_where_the_words_are(text: str) -> None:
    spans, hashes = word_spans(text), hashed_words([text]).values
    assert len(spans) == len(hashes)
    assert (np.diff(spans, axis=1) > 0).all()
    assert (np.diff(spans[:, 0]) >= 0).all()
    for (start, end), value in zip(spans.tolist(), hashes.tolist(), strict=True):
        # A character that stands for several words is the place of each.
        assert value in hashed_words([text[start:end]]).values.tolist()


def test_letters_that_are_joined_have_the_place_of_their_stretch() -> None:
    text = "so ﾡￂ ok"  # half-width Korean letters, which normalization joins to one syllable
    assert [text[start:end] for start, end in word_spans(text).tolist()] == ["so", "ﾡￂ", "ok"]


def test_words_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one two three", "", "Four; five", "東京 six"] * 3
    whole = hashed_words(texts)
    monkeypatch.setattr("mixwright.indexes.words.BATCH_CHARACTERS", 10)
    for one, other in zip(whole, hashed_words(texts), strict=True):
        np.testing.assert_array_equal(one, other)


# Sets and sketches


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab .!é東")), max_size=8))
def test_sets_of_texts_are_as_large_and_as_alike_as_those_of_words(texts: list[str]) -> None:
    worded = [text for text in texts if words_of(text)]
    found = shingles(texts)
    assert len(found.offsets) == len(texts) + 1
    sets = [
        set(found.values[start:end].tolist())
        for text, start, end in zip(texts, found.offsets[:-1], found.offsets[1:], strict=True)
        if words_of(text)
    ]
    expected = [set_of(text) for text in worded]
    for i, j in itertools.combinations_with_replacement(range(len(worded)), 2):
        assert len(sets[i] & sets[j]) == len(expected[i] & expected[j])
        assert len(sets[i] | sets[j]) == len(expected[i] | expected[j])


def test_whole_texts_are_equal_by_their_normalized_form() -> None:
    alike = ["The  Straße\n", "the strasse", " THE STRASSE ", "the ｓtrasse"]
    values = whole_texts([*alike, "the strasse!", " "])
    assert np.diff(values.offsets).tolist() == [2, 2, 2, 2, 2, 0]
    assert len(np.unique(values.values.reshape(-1, 2), axis=0)) == 2


def test_signatures_agree_as_often_as_sets_are_alike() -> None:
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 1 << 63, 300, dtype=np.uint64)
    for n_shared in (30, 150, 270):
        one = np.concatenate([shared[:n_shared], rng.integers(0, 1 << 63, 300 - n_shared, dtype=np.uint64)])
        other = np.concatenate([shared[:n_shared], rng.integers(0, 1 << 63, 300 - n_shared, dtype=np.uint64)])
        sets = Ragged(np.concatenate([one, other]), offsets_of(np.array([300, 300])))
        signatures = minhash(sets, 4096)
        similarity = n_shared / (600 - n_shared)
        deviation = math.sqrt(similarity * (1 - similarity) / 4096)
        assert abs((signatures[0] == signatures[1]).mean() - similarity) < 4 * deviation
    smallest = minhash(Ragged(one, np.array([0, 300])), 2).min()
    assert smallest < (1 << 64) / 300 * 10


def test_bands_miss_hardly_a_pair_at_the_threshold() -> None:
    assert {threshold: rows_per_band(threshold) for threshold in (0.3, 0.5, 0.8, 0.95, 1.0)} == {
        0.3: 1,
        0.5: 2,
        0.8: 4,
        0.95: 8,
        1.0: 8,
    }
    for threshold in np.linspace(0.05, 1, 20):
        rows = rows_per_band(float(threshold))
        assert rows == 1 or (1 - threshold**rows) ** (128 / rows) <= 1e-3


# Clusters


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_clusters_are_the_connected_components_of_all_like_pairs(threshold: float, tmp_path: Path) -> None:
    for seed in range(4):
        texts = families(np.random.default_rng(seed))
        expected = expected_ids(keys_of(texts), brute_force(texts, threshold))
        found = clusters_of(texts, tmp_path, threshold=threshold)
        np.testing.assert_array_equal(found.ids, expected)
        assert found.warnings == ()


def test_order_and_batches_do_not_change_a_texts_cluster(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    texts = families(rng)
    found = clusters_of(texts, tmp_path).ids
    order = rng.permutation(len(texts))
    shuffled = clusters_of([texts[number] for number in order], tmp_path, size=100).ids
    np.testing.assert_array_equal(shuffled, found[order])


def test_many_files_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = families(np.random.default_rng(2))
    whole = clusters_of(texts, tmp_path).ids
    monkeypatch.setattr(hash_files, "_FILE_BYTES", 1000)
    monkeypatch.setattr(hash_files, "_BUFFER_BYTES", 500)
    np.testing.assert_array_equal(clusters_of(texts, tmp_path).ids, whole)


def test_short_texts_are_compared_whole_and_empty_ones_are_alone(tmp_path: Path) -> None:
    texts = [
        "Yes!",
        "yes",
        "no",
        "👍",
        "👍 ",
        "👎",
        "",
        "  ",
        "one two three",
        "One, two: THREE",
        "one two",
        "a b c d e",
    ]
    expected = expected_ids(keys_of(texts), [(0, 1), (3, 4), (8, 9)])
    np.testing.assert_array_equal(clusters_of(texts, tmp_path).ids, expected)
    np.testing.assert_array_equal(
        clusters_of(texts, tmp_path, method="exact").ids, expected_ids(keys_of(texts), [(3, 4)])
    )


def test_exact_clusters_have_one_normalized_form(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    texts = [
        "".join(rng.choice(["a", "A", "ß", "ss", " ", "\t\n", "ﬁ", "fi"], rng.integers(1, 5))) for _ in range(300)
    ]
    forms = [" ".join(unicodedata.normalize("NFKC", text.casefold()).split()) for text in texts]
    pairs = [(i, j) for i, j in itertools.combinations(range(300), 2) if forms[i] == forms[j] and forms[i]]
    expected = expected_ids(keys_of(texts), pairs)
    np.testing.assert_array_equal(clusters_of(texts, tmp_path, method="exact").ids, expected)


def test_groups_too_large_to_compare_all_with_all_are_linked_through_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sketches, "_MOST_COMPARED", 3)
    same = ["this text is the same wherever it stands " * 3] * 40
    found = clusters_of(same, tmp_path)
    assert found.sizes().tolist() == [40] * 40
    assert found.warnings == ()
    # Pages of one frame: they share bands, and most are not alike.
    rng = np.random.default_rng(4)
    frame = " ".join(VOCABULARY[:60])
    pages = [f"{frame} {' '.join(rng.choice(VOCABULARY, 25))}" for _ in range(40)]
    found = clusters_of(pages, tmp_path)
    assert len(found.warnings) == 1
    assert "were too large" in found.warnings[0]
    order = rng.permutation(40)
    np.testing.assert_array_equal(clusters_of([pages[i] for i in order], tmp_path).ids, found.ids[order])


def test_no_text_has_no_cluster(tmp_path: Path) -> None:
    assert clusters_of([], tmp_path).ids.shape == (0,)
    assert clusters_of([""], tmp_path).ids.tolist() == keys_of([""]).tolist()
    empty = ArrayVectors(np.empty((0, 4), dtype=np.float32))
    assert semantic_clusters(empty, keys_of([]), NoProgress()).ids.shape == (0,)


def test_another_number_of_texts_than_keys_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AlignmentError, match="3 texts for 2 keys: give each text its key"):
        near_duplicate_clusters(
            in_batches(["a", "b", "c"]), np.arange(2, dtype=np.uint64), tmp_path / "w", NoProgress()
        )
    assert not (tmp_path / "w").exists()


def test_what_clusters_say_of_their_rows() -> None:
    keys = np.array([5, 9, 2, 2, 7, 9], dtype=np.uint64)
    clusters = Clusters(np.array([2, 9, 2, 2, 7, 9], dtype=np.uint64))
    assert clusters.sizes().tolist() == [3, 2, 3, 3, 1, 2]
    assert clusters.smallest(keys).tolist() == [False, True, True, False, True, False]
    assert clusters.repeats().tolist() == [False, False, True, True, False, True]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.data())
def test_disjoint_sets_are_connected_components(n: int, data: st.DataObject) -> None:
    number = st.integers(0, n - 1)
    portions = data.draw(st.lists(st.lists(st.tuples(number, number), max_size=20), max_size=4))
    sets = DisjointSets(n)
    for portion in portions:
        first, second = np.asarray(portion, dtype=np.int64).reshape(-1, 2).T
        sets.join(first, second)
    labels = components(n, list(itertools.chain(*portions)))
    assert sets.all_roots().tolist() == [int(np.flatnonzero(labels == label)[0]) for label in labels]


def test_a_long_chain_is_joined_in_no_time() -> None:
    order = np.random.default_rng(0).permutation(100_000)
    sets = DisjointSets(100_000)
    sets.join(order[:-1], order[1:])
    assert not sets.all_roots().any()


# Vectors


def like_vectors(rng: np.random.Generator, n: int = 400, d: int = 16) -> np.ndarray:
    centres = rng.normal(size=(n // 4, d))
    vectors = np.repeat(centres, 4, axis=0) + rng.normal(size=(n, d)) * rng.choice([0.0, 0.1, 0.4], (n, 1))
    return np.asarray(vectors * rng.uniform(0.1, 9, (n, 1)), dtype=np.float32)


def cosine_pairs(vectors: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return [(i, j) for i, j in np.argwhere(unit @ unit.T >= threshold).tolist() if i < j]


class BruteIndex:
    """All rows by inner product, best first."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def search(self, queries: np.ndarray, k: int) -> Hits:
        scores = queries @ self._vectors.T
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Hits(ids, np.take_along_axis(scores, ids, 1))


@pytest.mark.parametrize("threshold", [0.8, 0.95, 1.0])
def test_vectors_are_linked_by_their_cosine(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixwright.indexes.semantic_duplicates._BLOCK", 150)
    monkeypatch.setattr("mixwright.indexes.semantic_duplicates._TILE", 64)
    rng = np.random.default_rng(0)
    vectors, keys = like_vectors(rng), rng.integers(0, 1 << 63, 400, dtype=np.uint64)
    expected = expected_ids(keys, cosine_pairs(vectors, threshold - 1e-6))
    assert len(np.unique(expected)) < 400
    found = semantic_clusters(ArrayVectors(vectors), keys, NoProgress(), threshold=threshold)
    np.testing.assert_array_equal(found.ids, expected)
    order = rng.permutation(400)
    shuffled = semantic_clusters(ArrayVectors(vectors[order]), keys[order], NoProgress(), threshold=threshold)
    np.testing.assert_array_equal(shuffled.ids, expected[order])
    by_index = semantic_clusters(
        ArrayVectors(vectors), keys, NoProgress(), threshold=threshold, index=BruteIndex(vectors)
    )
    np.testing.assert_array_equal(by_index.ids, expected)


def test_a_vector_of_zeros_is_like_none_and_one_that_is_not_finite_an_error() -> None:
    vectors = np.zeros((3, 4), dtype=np.float32)
    keys = np.arange(3, dtype=np.uint64)
    assert semantic_clusters(ArrayVectors(vectors), keys, NoProgress()).ids.tolist() == [0, 1, 2]
    vectors[1, 1] = np.nan
    with pytest.raises(DataError, match="vector 1 has a coordinate that is not finite"):
        semantic_clusters(ArrayVectors(vectors), keys, NoProgress())


# The job


@pytest.fixture
def texts() -> list[str]:
    return list(dict.fromkeys(families(np.random.default_rng(5), 30)))


@pytest.fixture
def corpus(publish_corpus: Any, texts: list[str]) -> CorpusManifest:
    return publish_corpus("web", document_table(texts), shard_rows=20)


def run(store: Store, progress: Any = None, **request: Any) -> AttributesManifest:
    values = {"corpus": "web", **request}
    return run_near_duplicates(store, NearDuplicatesRequest(**values), progress or NoProgress())


def columns_of(store: Store, manifest: AttributesManifest) -> pl.DataFrame:
    return Attributes.open(store, manifest.ref, Corpus.open(store, "web")).scan().collect()


def test_the_job_publishes_clusters_sizes_and_the_document_that_stays(
    store: Store, corpus: CorpusManifest, texts: list[str]
) -> None:
    manifest = run(store)
    assert manifest.ref == "web.near-duplicates@1"
    assert [each.n_rows for each in manifest.files] == [each.n_rows for each in corpus.shards]
    assert [each.name for each in manifest.columns] == ["duplicate_cluster", "duplicate_size", "duplicate_first"]
    found = columns_of(store, manifest)
    expected = expected_ids(keys_of(texts), brute_force(texts, 0.8))
    assert found["duplicate_cluster"].to_list() == [f"{each:016x}" for each in expected.tolist()]
    assert found["duplicate_size"].to_list() == [int((expected == each).sum()) for each in expected]
    ids = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    first = {min(id_ for id_, other in zip(ids, expected, strict=True) if other == each) for each in expected}
    assert found["duplicate_first"].to_list() == [id_ in first for id_ in ids]
    assert manifest.counts["first"] == len(first) == len(texts) - manifest.counts["duplicates"]
    assert run(store, workers=3) == manifest
    assert run(store, threshold=0.8, method="minhash") == manifest
    assert run(store, threshold=0.5).ref == "web.near-duplicates@2"
    assert not [path for path in (store.home / "staging").iterdir() if path.is_dir()]


def test_a_job_that_was_killed_gives_the_same_when_it_runs_again(
    store: Store, corpus: CorpusManifest, tmp_path: Path
) -> None:
    def stop() -> None:
        shutil.copytree(store.home / "staging", tmp_path / "left")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, Recorder(stop))
    # A killed process removes nothing.
    shutil.copytree(tmp_path / "left", store.home / "staging", dirs_exist_ok=True)
    assert list((store.home / "staging").glob("*/work/bands"))
    again, elsewhere = run(store), run(store, name="elsewhere")
    assert [each.sha256 for each in again.files] == [each.sha256 for each in elsewhere.files]
    assert again.fingerprint == elsewhere.fingerprint


def test_the_service_and_the_worker_know_the_job(store: Store, corpus: CorpusManifest) -> None:
    asked = REQUEST_ADAPTER.validate_python({"kind": "near-duplicates", "corpus": "web", "threshold": 0.7})
    state = inputs_state(store, asked)
    assert state is not None
    assert run_request(store, asked, NoProgress()) == run(store, threshold=0.7)
    # Its own result is nothing that it reads.
    assert inputs_state(store, asked) == state


def test_a_template_says_what_is_compared(store: Store, publish_corpus: Any) -> None:
    metadata = [json.dumps({"question": question}) for question in ("Why?", "why", "How?", "")]
    publish_corpus("web", document_table(["one", "two", "three", "four"], metadata=metadata), shard_rows=3)
    manifest = run(store, template="{question}")
    assert columns_of(store, manifest)["duplicate_size"].to_list() == [2, 2, 1, 1]
    with pytest.raises(ConfigError, match="have no field 'answer'"):
        run(store, template="{answer}")


def publish_vectors(store: Store, vectors: np.ndarray, request: EmbedRequest) -> EmbeddingsManifest:
    """Embeddings of a corpus of one shard, in place of the embed job."""
    made_of = store.manifest(request.corpus, "corpus")
    with store.stage("embeddings", Reference("web.made"), "made") as staging:
        (staging.path / "shards").mkdir()
        np.save(staging.path / "shards" / "part-00000.npy", vectors)
        draft = EmbeddingsManifest(
            name="web.made",
            version=1,
            fingerprint="made",
            inputs=[ArtifactInput(kind="corpus", ref=made_of.ref, fingerprint=made_of.fingerprint)],
            files=[staging.entry("shards/part-00000.npy", len(vectors))],
            created_at=datetime.now(UTC),
            corpus=made_of.ref,
            encoder=request.encoder,
            encoder_revision=request.encoder,
            template=request.template,
            max_tokens=None,
            n_rows=len(vectors),
            n_truncated=0,
            dim=vectors.shape[1],
            dtype="float32",
            normalized=True,
        )
        return store.publish(staging, draft)


def test_vectors_link_documents_and_an_index_finds_the_neighbours_of_many(
    store: Store, publish_corpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = like_vectors(np.random.default_rng(7), 60)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = [f"text {i}" for i in range(60)]
    publish_corpus("web", document_table(texts))
    asked = []

    def run_embed(store: Store, request: EmbedRequest, progress: Any) -> EmbeddingsManifest:
        asked.append(request)
        return publish_vectors(store, vectors, request)

    monkeypatch.setattr(job, "run_embed", run_embed)
    manifest = run(store, method="semantic", encoder="hashing:16", template="{source} {text}", threshold=0.9)
    assert [(each.encoder, each.template) for each in asked] == [("hashing:16", "{source} {text}")]
    assert [each.ref for each in manifest.inputs] == ["web@1", "web.made@1"]
    found = columns_of(store, manifest)["duplicate_cluster"].to_list()
    expected = expected_ids(keys_of(texts), cosine_pairs(vectors, 0.9 - 1e-6))
    assert found == [f"{each:016x}" for each in expected.tolist()]
    monkeypatch.setattr(job, "MOST_COMPARED", 10)
    by_index = run(store, method="semantic", encoder="hashing:16", threshold=0.9, name="by-index")
    assert columns_of(store, by_index)["duplicate_cluster"].to_list() == found
    assert "too many to compare all with all" in by_index.warnings[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "exact", "threshold": 0.9}, "exact has no threshold: leave it out"),
        ({"method": "minhash", "encoder": "hashing:32"}, "minhash needs no encoder: leave it out"),
        ({"threshold": 1.5}, "less than or equal to 1"),
    ],
)
def test_parameters_that_a_method_has_not_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NearDuplicatesRequest(corpus="web", **fields)


# Ingest


def test_an_ingest_drops_what_is_nearly_an_earlier_document(store: Store, tmp_path: Path) -> None:
    texts = families(np.random.default_rng(6), 20)
    texts += texts[:5]
    path = tmp_path / "web.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def ingest(duplicates: str) -> CorpusManifest:
        request = IngestRequest(name="web", paths=[str(path)], tokenizer="bytes", duplicates=duplicates)
        return run_ingest(store, request, NoProgress())

    labels = components(len(texts), brute_force(texts, 0.8))
    first = [int(np.flatnonzero(labels == label)[0]) for label in labels]
    manifest = ingest("drop-near")
    found = Corpus.open(store, manifest.ref).scan().select("text").collect()["text"].to_list()
    assert found == [text for number, text in enumerate(texts) if first[number] == number]
    assert manifest.n_duplicates == len(texts) - len(found)
    assert ingest("drop-near") == manifest
    plain = ingest("drop")
    assert (plain.ref, plain.n_duplicates) == ("web@2", len(texts) - len(set(texts)))
    assert "near_duplicate_threshold" not in plain.parameters


# Selection


def served_ids(store: Store, reference: str) -> list[str]:
    return [id_ for table in MixtureStream.open(store, reference).read() for id_ in table["id"].to_pylist()]


@pytest.mark.parametrize(
    "selector",
    [Random(seed=3), Proportional(seed=3, max_epochs=2), DomainTags(seed=3, template="{source}: ")],
    ids=lambda each: each.kind,
)
def test_a_selection_without_near_duplicates_is_that_of_corpora_without_them(
    selector: Any, store: Store, publish_corpus: Any, corpus: CorpusManifest, texts: list[str]
) -> None:
    others = [*families(np.random.default_rng(8), 12), *texts[:9]]
    publish_corpus("blog", document_table(others, source="blog"), shard_rows=11)
    budget = Budget(tokens=2500)
    for name in ("web", "blog"):
        run(store, corpus=name)
    request = SelectRequest(
        name="clean", sources=["web", "blog"], selector=selector, budget=budget, near_duplicates="drop"
    )
    manifest = run_select(store, request, NoProgress())
    assert [each.ref for each in manifest.inputs if each.kind == "attributes"] == [
        "web.near-duplicates@1",
        "blog.near-duplicates@1",
    ]
    kept: list[list[str]] = []
    for each in (texts, others):
        firsts = Attributes.open(store, f"{'blog' if kept else 'web'}.near-duplicates").scan().collect()
        stays = [text for text, first in zip(each, firsts["duplicate_first"], strict=True) if first]
        kept.append([text for text in stays if not kept or text not in kept[0]])
    publish_corpus("web", document_table(kept[0]), shard_rows=11)
    publish_corpus("blog", document_table(kept[1], source="blog"), shard_rows=20)
    plain = SelectRequest(name="plain", sources=["web", "blog"], selector=selector, budget=budget)
    oracle = run_select(store, plain, NoProgress())
    assert served_ids(store, "clean") == served_ids(store, "plain")
    assert manifest.stages == oracle.stages
    assert manifest.report == oracle.report
    assert "near_duplicates" not in oracle.parameters


def test_selectors_by_vectors_and_scores_see_the_documents_that_stay() -> None:
    rng = np.random.default_rng(9)
    n = 120
    metadata = [json.dumps({"jsd": float(score)}) for score in rng.uniform(0.1, 1, n)]
    table = document_table([f"text {i} {rng.choice(VOCABULARY)}" for i in range(n)], metadata=metadata)
    vectors = np.asarray(np.repeat(np.eye(4, 8), 30, axis=0) + 0.05 * rng.normal(size=(n, 8)), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kept = rng.random(n) < 0.6
    columns = {"duplicate_first": pl.LazyFrame({"duplicate_first": kept})}

    whole = Pool.from_tables({"web": table}, vectors={"web": ArrayVectors(vectors)})
    source = replace(whole.sources[0], columns=columns, metadata_fields=["jsd"])
    pool = leave_out(replace(whole, sources=(source,)), [NEAR_DUPLICATES])
    rows = np.flatnonzero(kept)
    alone = Pool.from_tables({"web": table.take(rows)}, vectors={"web": ArrayVectors(vectors[rows])})
    paser = Paser(clusters=4, consistency="off", embed="both", response="{text}", prompt="")
    found = in_corpora(paser.select(pool, Budget(documents=30)), pool)
    expected = paser.select(alone, Budget(documents=30))
    served = [each.served(np.arange(30), 0, 0)[0] for each in (found.selections[0], expected.selections[0])]
    np.testing.assert_array_equal(served[0], rows[served[1]])
    mine, theirs = found.tables["documents"], expected.tables["documents"]
    assert mine["row"].to_list() == rows[theirs["row"].to_numpy()].tolist()
    assert mine.drop("row").equals(theirs.drop("row"))
    exemplars = [each["row"] for cluster in found.report["clusters"] for each in cluster["exemplars"]]
    assert exemplars
    assert set(exemplars) <= set(rows.tolist())


def test_a_sample_stands_for_the_documents_that_stay() -> None:
    table = document_table([f"text {i}" for i in range(20)])
    kept = np.arange(20) % 3 > 0
    pool = Pool.from_tables({"web": table, "part": table.slice(5, 9)})
    source, part = pool.sources
    column = {"contaminated": pl.LazyFrame({"contaminated": ~kept})}
    left = leave_out(Pool((replace(source, columns=column, sample=part),)), [CONTAMINATED]).sources[0]
    assert left.sample is not None
    assert left.sample.corpus_rows(np.arange(len(left.sample.ids))).tolist() == [0, 2, 3, 5, 6, 8]
    assert left.corpus_rows(np.arange(len(left.ids))).tolist() == np.flatnonzero(kept).tolist()


def test_a_source_without_clusters_is_an_error_that_names_the_command(
    store: Store, corpus: CorpusManifest
) -> None:
    request = SelectRequest(
        name="x", sources=["web"], selector=Random(), budget=Budget(documents=1), near_duplicates="drop"
    )
    with pytest.raises(
        DataError, match="no attribute duplicate_first: run  mixwright near-duplicates web@1  first"
    ):
        run_select(store, request, NoProgress())


def test_predictions_about_a_mixture_of_parts_of_its_sources_are_refused() -> None:
    parameters = {"selector": {"kind": "projektor", "validation": "target"}, "contaminated": "drop"}
    manifest = MixtureManifest.model_construct(
        name="blend", version=1, selector="projektor", parameters=parameters
    )
    with pytest.raises(
        DataError, match="blend@1 leaves documents of its sources out: ask with sources and selector"
    ):
        study_of_mixture(manifest)


# The command line


def test_the_command_prints_counts(store: Store, corpus: CorpusManifest, texts: list[str]) -> None:
    def mixwright(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments, "--home", str(store.home)], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    printed = json.loads(mixwright("near-duplicates", "web", "--json"))
    assert list(printed) == ["ref", "fingerprint", "corpus", "n_rows", "counts", "columns", "warnings"]
    assert printed["counts"] == run(store).counts
    line = mixwright("near-duplicates", "web")
    assert line.startswith(f"web.near-duplicates@1: {len(texts)} documents, {printed['counts']['alone']} of them ")
    select = (
        "select",
        "random",
        "--source",
        "web",
        "--name",
        "m",
        "--documents",
        "5",
        "--near-duplicates",
        "drop",
    )
    mixture = json.loads(mixwright(*select, "--json"))
    assert mixture["components"][0]["n_selected"] == printed["counts"]["first"]
    with pytest.raises(ConfigError, match="exact has no threshold"):
        mixwright("near-duplicates", "web", "--method", "exact", "--threshold", "0.5")
