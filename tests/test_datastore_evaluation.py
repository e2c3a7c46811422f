"""The jobs evaluate and scale: scores against brute force and against stores that were really built smaller."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import sklearn.metrics
import torch
from fastapi.testclient import TestClient
from pydantic import ValidationError
from support import RETRIEVAL_WORDS, document_table, identities, published_corpus, run_workers_here
from tiny_models import make_model, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from mixwright.cli import app as command_line
from mixwright.config import Settings
from mixwright.errors import ConfigError, DataError
from mixwright.indexes.contamination import contaminated
from mixwright.indexes.datastores.datastore import Datastore
from mixwright.indexes.datastores.filters import sampled
from mixwright.indexes.encoders import load_encoder
from mixwright.indexes.protocols import Hits
from mixwright.indexes.retrieval_metrics import mean_band
from mixwright.jobs.datastores import context_scores, smaller_stores
from mixwright.jobs.datastores.build import run_datastore
from mixwright.jobs.datastores.changes import run_datastore_delete
from mixwright.jobs.datastores.context_scores import ContextWorker
from mixwright.jobs.datastores.evaluate import run_evaluate
from mixwright.jobs.datastores.evaluation_search import index_recall, prepare_queries
from mixwright.jobs.datastores.scale import run_scale
from mixwright.jobs.datastores.smaller_stores import SmallerStores, share_sizes
from mixwright.jobs.judgements import read_evaluation_queries
from mixwright.language_models.retrieval import perplexity_windows
from mixwright.progress import NoProgress
from mixwright.schemas.datastores import (
    DatastoreDeleteRequest,
    DatastoreRequest,
    PassageWindow,
    SamplingUnit,
    SearchMode,
    SearchOptions,
    SearchRequest,
)
from mixwright.schemas.evaluations import (
    Curve,
    Estimate,
    EvaluateReport,
    EvaluateRequest,
    LanguageReport,
    ScaleReport,
    ScaleRequest,
    ScalingMetric,
)
from mixwright.schemas.manifests import EvaluationManifest
from mixwright.service.app import create_app
from mixwright.service.pages.evaluation_view import number, size_text
from mixwright.service.plots.datastores import curve_figure
from mixwright.service.plots.drawing import COLOURS
from mixwright.store import Store

N, Q = 90, 24
SMALL = {"probabilities": [0.05, 0.3, 1.0], "seeds": 2}
SVG = "{http://www.w3.org/2000/svg}"


def documents(n: int = N, seed: int = 0) -> pa.Table:
    """Documents of one to three passages with an id of their own, of which every fifth repeats another one."""
    generator = np.random.default_rng(seed)
    texts: list[str] = []
    for i in range(n):
        words = generator.choice(RETRIEVAL_WORDS, size=generator.integers(5, 50)).tolist()
        if i % 5 == 4 and len(texts[i - 2].split()) > 20:
            words = [*texts[i - 2].split()[:-2], "other"]
        texts.append(" ".join([*words, f"n{i}"]))
    return document_table(texts, metadata=[json.dumps({"_id": f"d{i}"}) for i in range(n)])


TABLE = documents()


def queries(q: int = Q) -> list[dict[str, Any]]:
    """Queries of words of one document, which is relevant, as one drawn at random is a little less."""
    generator = np.random.default_rng(1)
    rows = []
    for i in range(q):
        words = TABLE["text"][3 * i].as_py().split()
        text = " ".join(generator.choice(words, size=4))
        rows.append({"_id": f"q{i}", "text": text, "answers": [words[0], f"{words[1]} {words[2]}"][: 1 + i % 2]})
    return rows


def relevance(q: int = Q) -> dict[str, dict[str, int]]:
    generator = np.random.default_rng(2)
    return {f"q{i}": {f"d{generator.integers(N)}": 1, f"d{3 * i}": 2} for i in range(q)}


def write_queries(folder: Path, judged: dict[str, dict[str, int]] | None = None) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    judged = relevance() if judged is None else judged
    (folder / "queries.jsonl").write_text("".join(json.dumps(each) + "\n" for each in queries()))
    lines = [f"{query}\t{name}\t{value}\n" for query, ids in judged.items() for name, value in ids.items()]
    (folder / "qrels.tsv").write_text("".join(lines))
    return str(folder)


def build(store: Store, name: str, corpus: str, **fields: Any) -> Datastore:
    usual = {"encoder": "hashing:64", "index_kind": "flat", "window": PassageWindow(size=20), "shards": 2}
    request = DatastoreRequest(name=name, corpora=[corpus], **(usual | fields))
    return Datastore.open(store, run_datastore(store, request, NoProgress()).ref)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The datastore ``whole`` of the corpus ``texts``; jobs run without Ray."""
    made = Store(tmp_path_factory.mktemp("evaluation") / "home")
    published_corpus(made, "texts", TABLE, 40)
    with pytest.MonkeyPatch.context() as patch:
        run_workers_here(patch.setattr)
        build(made, "whole", "texts")
        yield made


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_queries(tmp_path_factory.mktemp("queries") / "beir")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama that reads 256 tokens, and begins every text with <s>."""
    return str(save_model(tmp_path_factory.mktemp("models") / "tiny", make_model(), begin=True))


def evaluated(store: Store, **fields: Any) -> EvaluationManifest:
    usual = {"datastore": "whole", "dtype": "float32", "device": "cpu", "passages": 2}
    return run_evaluate(store, EvaluateRequest(**(usual | fields)), NoProgress())


def evaluation(store: Store, **fields: Any) -> EvaluateReport:
    report = evaluated(store, **fields).report
    assert isinstance(report, EvaluateReport)
    return report


def scaled(store: Store, **fields: Any) -> EvaluationManifest:
    usual = {"datastore": "whole", "dtype": "float32", "device": "cpu", "passages": 2}
    return run_scale(store, ScaleRequest(**(usual | SMALL | fields)), NoProgress())


def curves(store: Store, **fields: Any) -> dict[ScalingMetric, Curve]:
    report = scaled(store, **fields).report
    assert isinstance(report, ScaleReport)
    return {curve.metric: curve for curve in report.curves}


def kept_documents(share: float, seed: int) -> pa.Table:
    keys = np.array([int(each[:16], 16) for each in TABLE["id"].to_pylist()], dtype=np.uint64)
    return TABLE.filter(pa.array(sampled(keys, share, seed)))


# Rankings


def brute_force_documents(datastore: Datastore, texts: Sequence[str]) -> list[list[str]]:
    """Every document for each query, by its best passage, by inner products with all passages."""
    encoder = load_encoder("hashing:64")
    rows = datastore.pieces.rows(0, datastore.manifest.n_rows).to_pylist()
    scores = encoder.encode(texts) @ encoder.encode([row["text"] for row in rows]).T
    names = [json.loads(row["metadata"])["_id"] for row in rows]
    return [list(dict.fromkeys(names[i] for i in np.argsort(-line, kind="stable"))) for line in scores]


def test_scores_are_those_of_brute_force(store: Store, asked: str) -> None:
    report = evaluation(store, queries=asked, k=7)
    rankings = brute_force_documents(Datastore.open(store, "whole"), [each["text"] for each in queries()])
    recall, ndcg, mrr = [], [], []
    for ranking, judged in zip(rankings, relevance().values(), strict=True):
        gains = np.array([[judged.get(name, 0) for name in ranking]])
        recall.append(sum(name in judged for name in ranking[:7]) / len(judged))
        ndcg.append(sklearn.metrics.ndcg_score(gains, -np.arange(gains.size)[None], k=10))
        mrr.append(1 / (1 + next(i for i, gain in enumerate(gains[0]) if gain)) if gains[0, :10].any() else 0)
    assert report.retrieval is not None
    assert (report.retrieval.n_queries, report.retrieval.k) == (Q, 7)
    for found, expected in (
        (report.retrieval.recall, recall),
        (report.retrieval.ndcg, ndcg),
        (report.retrieval.mrr, mrr),
    ):
        assert (found.value, found.low, found.high) == pytest.approx(mean_band(np.array(expected)), rel=1e-9)
    assert report.index is not None
    assert report.index.recall.value == 1
    assert report.speed is not None
    assert report.speed.queries_per_second > 0
    assert report.search.exact


def test_passages_of_a_document_count_once_and_the_search_goes_as_deep_as_it_takes(
    store: Store, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluation(store, queries=asked, name="deep")
    monkeypatch.setattr("mixwright.jobs.datastores.evaluation_search._PASSAGES_A_DOCUMENT", 1)
    assert evaluation(store, queries=asked, name="shallow").retrieval == whole.retrieval


def test_scores_of_every_query_are_kept(store: Store, asked: str) -> None:
    manifest = evaluated(store, queries=asked)
    scores = pl.read_parquet(store.directory(manifest) / "scores.parquet")
    assert manifest.n_rows == scores.height == 3 * Q
    report = manifest.report
    assert isinstance(report, EvaluateReport)
    assert report.retrieval is not None
    means = scores.group_by("metric").agg(pl.col("total").sum() / pl.col("weight").sum())
    for metric, mean in means.iter_rows():
        assert mean == pytest.approx(getattr(report.retrieval, metric).value)
    assert scores.filter(pl.col("metric") == "recall")["id"].to_list() == [f"q{i}" for i in range(Q)]


def test_documents_are_judged_by_a_field_or_by_their_own_id(store: Store, tmp_path: Path) -> None:
    by_name = relevance()
    ids = dict(zip([f"d{i}" for i in range(N)], TABLE["id"].to_pylist(), strict=True))
    by_id = {query: {ids[name]: value for name, value in judged.items()} for query, judged in by_name.items()}
    expected = evaluation(store, queries=write_queries(tmp_path / "names", by_name)).retrieval
    assert evaluation(store, queries=write_queries(tmp_path / "ids", by_id)).retrieval == expected
    assert evaluation(store, queries=str(tmp_path / "ids"), id_field="id").retrieval == expected


def test_judged_documents_that_are_not_in_the_store_are_told_and_count_as_not_found(
    store: Store, asked: str, tmp_path: Path
) -> None:
    judged = relevance()
    gone = {query: {**ids, "absent": 1, "never": 0} for query, ids in judged.items()}
    manifest = evaluated(store, queries=write_queries(tmp_path / "gone", gone))
    report, whole = manifest.report, evaluation(store, queries=asked)
    assert isinstance(report, EvaluateReport)
    assert report.judgements is not None
    assert report.retrieval is not None
    assert whole.retrieval is not None
    assert (report.judgements.n_missing, report.judgements.missing) == (1, ["absent"])
    assert "1 of " in manifest.warnings[0]
    assert "absent for instance: they count as not found" in manifest.warnings[0]
    assert report.retrieval.recall.value == pytest.approx(
        np.mean([2 / 3 if len(ids) == 2 else 1 / 2 for ids in judged.values()]) * whole.retrieval.recall.value,
        abs=0.02,
    )
    build(store, "thinned", "texts")
    deleted = run_datastore_delete(
        store, DatastoreDeleteRequest(datastore="thinned", documents=[TABLE["id"][0].as_py()]), NoProgress()
    )
    left = evaluation(store, datastore=deleted.ref, queries=asked)
    assert left.judgements is not None
    assert left.judgements.missing == ["d0"]


def test_an_id_of_two_documents_is_told_and_either_counts(store: Store, tmp_path: Path) -> None:
    table = document_table(
        ["barn felt gilk", "tomb narn selt", "komb"], metadata=['{"_id": 7}', '{"_id": 7}', '{"_id": 8}']
    )
    published_corpus(store, "twice", table)
    build(store, "twice", "twice")
    path = tmp_path / "queries.jsonl"
    path.write_text('{"text": "tomb narn", "positives": [7]}\n')
    manifest = evaluated(store, datastore="twice", queries=str(path), k=1)
    report = manifest.report
    assert isinstance(report, EvaluateReport)
    assert report.judgements is not None
    assert report.retrieval is not None
    assert (report.judgements.n_relevant, report.judgements.n_ambiguous) == (1, 1)
    assert "1 ids are those of several documents" in manifest.warnings[0]
    assert (report.retrieval.recall.value, report.retrieval.mrr.value) == (1, 1)


def test_index_recall_is_counted_one_by_one() -> None:
    exact = Hits(
        np.array([[4, 2, 9], [1, -1, -1], [-1, -1, -1]]), np.array([[3, 2, 1], [5, 0, 0], [0, 0, 0]], np.float32)
    )
    exact.scores[exact.ids < 0] = -np.inf
    found = Hits(
        np.array([[4, 8, 7], [-1, -1, -1], [-1, -1, -1]]),
        np.array([[3, 1, 0.5], [0, 0, 0], [0, 0, 0]], np.float32),
    )
    found.scores[found.ids < 0] = -np.inf
    # 8 scores as well as the third: which of the two is found is no matter.
    assert index_recall(found, exact).tolist() == pytest.approx([2 / 3, 0, 1])


def test_an_approximate_index_is_measured_on_the_queries_themselves(store: Store, asked: str) -> None:
    datastore = build(store, "graph", "texts", index_kind="hnsw", recall=0.5, queries=20)
    report = evaluation(store, datastore="graph", queries=asked)
    texts = [each["text"] for each in queries()]
    ids = [
        [
            {hit.id for hit in hits}
            for hits in datastore.search(SearchRequest(queries=texts, k=10, exact=exact)).hits
        ]
        for exact in (False, True)
    ]
    assert report.index is not None
    at_least = np.mean([len(found & true) / len(true) for found, true in zip(*ids, strict=True)])
    assert at_least <= report.index.recall.value <= 1
    assert not report.search.exact
    manifest = scaled(store, datastore="graph", queries=asked, exact=False)
    assert manifest.warnings[-1].startswith("the index is approximate")
    assert scaled(store, datastore="graph", queries=asked).warnings == []


# Shares of a store


@pytest.fixture(scope="module")
def whole(store: Store) -> Datastore:
    return Datastore.open(store, "whole@1")


def shares(whole: Datastore, unit: SamplingUnit = "document", depth: int = 300, **options: Any) -> SmallerStores:
    texts = [each["text"] for each in queries()]
    forbidden = options.pop("forbidden", None)
    asked = SearchOptions(k=depth, exact=True, **options)
    prepared = prepare_queries(whole, texts, asked.mode, NoProgress())
    return SmallerStores.search(whole, prepared.queries, asked, unit, NoProgress(), forbidden)


def passage_texts(datastore: Datastore, rows: np.ndarray) -> list[list[str]]:
    """What the rows say, without the missing ones."""
    return [datastore.pieces.take(line[line >= 0], ["text"])["text"].to_pylist() for line in rows]


@pytest.mark.parametrize("depth", [300, 8])
def test_a_share_of_the_documents_finds_what_a_store_built_of_them_finds(
    store: Store, whole: Datastore, depth: int
) -> None:
    smaller = shares(whole, depth=depth)
    again = 0
    for share, seed in ((0.1, 0), (0.4, 1)):
        name = f"built-{share}-{seed}"
        published_corpus(store, name, kept_documents(share, seed))
        built = build(store, name, name, shards=1)
        texts = [each["text"] for each in queries()]
        expected = [[hit.text for hit in hits] for hits in built.search(SearchRequest(queries=texts, k=5)).hits]
        found = smaller.passages(share, seed, 5)
        assert passage_texts(whole, found.rows) == expected
        again += found.searched_again
        ranked = smaller.documents(share, seed, 5).rankings
        assert [len(each) for each in ranked] == [min(5, built.manifest.n_documents)] * Q
        sizes = share_sizes(whole, "document", [share], [seed])
        assert (sizes.passages.item(), sizes.tokens.item()) == (built.manifest.n_rows, built.manifest.n_tokens)
    # A deep list that is the whole store is never searched again; one of eight has not five of every tenth.
    assert (again > 0) == (depth == 8)


def test_a_share_of_the_passages_finds_what_a_store_of_those_passages_finds(
    store: Store, whole: Datastore
) -> None:
    rows = whole.pieces.rows(0, whole.manifest.n_rows)
    kept = rows.filter(pa.array(sampled(whole.pieces.keys(0, len(rows)), 0.2, 1)))
    published_corpus(store, "passages", document_table(kept["text"].to_pylist()))
    built = build(store, "passages", "passages", shards=1)
    texts = [each["text"] for each in queries()]
    expected = [[hit.text for hit in hits] for hits in built.search(SearchRequest(queries=texts, k=4)).hits]
    for depth in (300, 5):
        assert passage_texts(whole, shares(whole, "passage", depth).passages(0.2, 1, 4).rows) == expected


@pytest.mark.parametrize(
    ("mode", "unit", "dedup"),
    [
        ("dense", "passage", True),
        ("dense", "document", False),
        ("dense", "cluster", True),
        ("bm25", "passage", False),
        ("bm25", "document", True),
        ("hybrid", "cluster", False),
    ],
)
def test_a_share_of_deep_hits_is_a_search_of_that_share(
    whole: Datastore, mode: SearchMode, unit: SamplingUnit, dedup: bool
) -> None:
    texts = [each["text"] for each in queries()]
    forbidden = [[" ".join(text.split()[:2])] for text in texts]
    for depth in (300, 6):
        smaller = shares(whole, unit, depth, mode=mode, dedup=dedup, forbidden=forbidden)
        for share in (0.1, 1.0):
            asked = SearchRequest(
                queries=texts,
                k=4,
                mode=mode,
                dedup=dedup,
                subsample=share,
                subsample_by=unit,
                seed=3,
                decontaminate=forbidden,
            )
            expected = [[hit.text for hit in hits] for hits in whole.search(asked).hits]
            found = smaller.passages(share, 3, 4)
            assert passage_texts(whole, found.rows) == expected
            assert found.n_short == sum(len(hits) < 4 for hits in expected)
            assert (mode == "hybrid") <= (found.searched_again == Q)


def test_contaminated_hits_are_those_found_one_by_one(whole: Datastore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smaller_stores, "_PASSAGES_AT_ONCE", 7)
    rows = np.arange(whole.manifest.n_rows).reshape(2, -1)[:, :60]
    rows[1, -3:] = -1
    texts = whole.pieces.take(rows[0], ["text"])["text"].to_pylist()
    forbidden = [[texts[3], " ".join(texts[5].split()[:3])], []]
    found = smaller_stores.contaminated_hits(whole, rows, forbidden, SearchOptions(), NoProgress())
    assert (found[0] == contaminated(texts, forbidden[0]).any(axis=1)).all()
    assert found[0, [3, 5]].all()
    assert not found[1].any()


def test_a_curve_has_the_scores_of_the_stores_built(store: Store, asked: str, model: str) -> None:
    found = curves(
        store, queries=asked, model=model, subsample_by="document", depth=20, k=3, probabilities=[0.05, 1.0]
    )
    assert list(found) == ["recall", "ndcg", "answer_nll"]
    for place, share, seed in ((0, 0.05, 0), (0, 0.05, 1), (1, 1.0, 0)):
        name = f"curve-{share}-{seed}"
        published_corpus(store, name, kept_documents(share, seed))
        built = build(store, name, name, shards=1)
        expected = evaluation(store, datastore=name, queries=asked, model=model, k=3)
        [language] = expected.language
        assert expected.retrieval is not None
        scores: dict[ScalingMetric, Estimate] = {
            "recall": expected.retrieval.recall,
            "ndcg": expected.retrieval.ndcg,
            "answer_nll": language.retrieved,
        }
        for metric, score in scores.items():
            point = found[metric].points[place]
            assert point.by_seed[seed] == pytest.approx(score.value, rel=1e-5)
            assert point.tokens_by_seed[seed] == built.manifest.n_tokens
        assert found["answer_nll"].points[place].short[seed] == language.n_short
    baseline = found["answer_nll"].baseline
    assert baseline is not None
    assert baseline.model_dump() == pytest.approx(language.alone.model_dump(), rel=1e-5)
    last = found["answer_nll"].points[-1]
    assert last.change is not None
    assert last.change.model_dump() == pytest.approx(language.change.model_dump(), rel=1e-4)
    assert (last.low, last.high) == pytest.approx((language.retrieved.low, language.retrieved.high), rel=1e-4)


def test_a_context_that_several_shares_have_is_scored_once(
    store: Store, asked: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []
    score = ContextWorker._score

    def count(worker: ContextWorker, chunk: str) -> Iterator[int]:
        for n in score(worker, chunk):
            scored.append(n)
            yield n

    monkeypatch.setattr(ContextWorker, "_score", count)
    path = Path(asked).parent / "one-answer.jsonl"
    path.write_text("".join(json.dumps(each | {"answers": each["answers"][:1]}) + "\n" for each in queries()))
    manifest = scaled(store, queries=str(path), model=model, probabilities=[0.5, 0.9, 1.0])
    smaller = shares(Datastore.open(store, "whole"), "passage")
    distinct = {
        (line, *rows)
        for share in (0.5, 0.9, 1.0)
        for seed in (0, 1)
        for line, rows in enumerate(smaller.passages(share, seed, 2).rows.tolist())
    }
    assert isinstance(manifest.report, ScaleReport)
    [curve] = manifest.report.curves
    assert curve.targets is not None
    assert curve.targets.contexts.n_contexts == sum(scored) == len(distinct) + Q < 7 * Q
    scores = pl.read_parquet(store.directory(manifest) / "scores.parquet")
    assert scores.height == 7 * Q
    alone = scores.filter(pl.col("probability").is_null())
    assert curve.baseline is not None
    assert alone["total"].sum() / alone["weight"].sum() == pytest.approx(curve.baseline.value)


# The language model


def nll(model_folder: str, before: str, target: str) -> float:
    """NLL of a target behind a text, by one forward pass."""
    tokenizer, model = (
        AutoTokenizer.from_pretrained(model_folder),
        AutoModelForCausalLM.from_pretrained(model_folder),
    )
    ids = tokenizer(before + target)["input_ids"]
    start = len(tokenizer(before)["input_ids"])
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
    return float(-sum(log_p[i - 1, ids[i]] for i in range(start, len(ids))))


def language(report: EvaluateReport) -> LanguageReport:
    [found] = report.language
    return found


def test_answers_are_scored_as_one_forward_pass_each_does(store: Store, model: str, tmp_path: Path) -> None:
    rows = [{**each, "answers": [each["text"].split()[0]]} for each in queries()[:4]]
    path = tmp_path / "queries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    short = build(store, "short", "texts", window=PassageWindow(size=8))
    found = language(evaluation(store, datastore="short", queries=str(path), model=model))
    tokenizer = AutoTokenizer.from_pretrained(model)
    hits = short.search(SearchRequest(queries=[row["text"] for row in rows], k=2)).hits
    n_tokens, alone, retrieved = 0, [], []
    for row, [first, second] in zip(rows, hits, strict=True):
        question, answer = f"Question: {row['text']}\nAnswer:", f" {row['answers'][0]}"
        n_tokens += len(tokenizer.tokenize(answer))
        alone.append(nll(model, question, answer))
        retrieved.append(nll(model, f"{second.text}\n\n{first.text}\n\n{question}", answer))
    assert found.targets.n_tokens == n_tokens
    assert found.alone.value == pytest.approx(sum(alone) / n_tokens, rel=1e-5)
    assert found.retrieved.value == pytest.approx(sum(retrieved) / n_tokens, rel=1e-5)
    assert found.change.value == pytest.approx((sum(retrieved) - sum(alone)) / n_tokens, rel=1e-4)


def test_of_several_answers_the_one_that_is_likeliest_without_passages_is_scored(
    store: Store, model: str, tmp_path: Path
) -> None:
    row = {"text": "barn felt", "answers": ["tomb", "narn selt", "gilk"]}
    n_tokens = [len(AutoTokenizer.from_pretrained(model).tokenize(f" {each}")) for each in row["answers"]]
    means = [
        nll(model, "Question: barn felt\nAnswer:", f" {answer}") / n
        for answer, n in zip(row["answers"], n_tokens, strict=True)
    ]
    path = tmp_path / "queries.jsonl"
    path.write_text(json.dumps(row) + "\n")
    manifest = evaluated(store, queries=str(path), model=model, passages=1)
    assert isinstance(manifest.report, EvaluateReport)
    found = language(manifest.report)
    assert found.alone.value == pytest.approx(min(means), rel=1e-5)
    assert found.targets.n_tokens == n_tokens[int(np.argmin(means))]
    assert manifest.report.retrieval is None
    assert any("the interval of a single question says nothing" in each for each in manifest.warnings)


def test_perplexity_is_that_of_all_windows(store: Store, model: str) -> None:
    held_out = documents(6, seed=9)
    published_corpus(store, "held-out", held_out)
    report = evaluation(store, texts="held-out", model=model, window=64, stride=32, passages=1)
    found, tokenizer = language(report), AutoTokenizer.from_pretrained(model)
    windows = [
        pair
        for text in held_out["text"].to_pylist()
        for pair in perplexity_windows(tokenizer(text, add_special_tokens=False)["input_ids"], 64, 32)
    ]
    total = sum(nll(model, tokenizer.decode(pair.query), tokenizer.decode(pair.target)) for pair in windows)
    n_tokens = sum(len(pair.target) for pair in windows)
    assert (found.targets.n_targets, found.targets.n_units, found.targets.n_tokens) == (len(windows), 6, n_tokens)
    assert found.alone.value == pytest.approx(math.exp(total / n_tokens), rel=1e-4)
    assert report.texts == "held-out@1"
    drawn = language(
        evaluation(store, texts="held-out", model=model, window=64, stride=32, passages=1, limit=3, seed=4)
    ).targets
    assert (drawn.n_targets, drawn.n_not_drawn) == (3, len(windows) - 3)


def test_texts_that_are_in_the_store_are_found_unless_it_is_decontaminated(store: Store, model: str) -> None:
    asked = {"texts": "texts", "model": model, "window": 96, "stride": 48, "limit": 20, "passages": 1}
    plain = language(evaluation(store, **asked))
    clean = language(evaluation(store, **asked, decontaminate="query-and-answer", longest_run=6))
    assert plain.targets.n_decontaminated == 0
    # Nearly every window finds the document that it is from.
    assert clean.targets.n_decontaminated > 15
    assert clean.alone == plain.alone
    assert clean.retrieved != plain.retrieved
    curve = curves(store, **asked, decontaminate="query-and-answer", longest_run=6)["perplexity"]
    assert curve.points[-1].value == pytest.approx(clean.retrieved.value, rel=1e-5)
    assert curve.targets is not None
    assert curve.targets.n_decontaminated == clean.targets.n_decontaminated
    assert curve.baseline is not None
    assert curve.baseline.value == pytest.approx(clean.alone.value, rel=1e-6)


def test_passages_that_do_not_fit_into_the_model_are_cut_and_counted(store: Store, asked: str, model: str) -> None:
    manifest = evaluated(store, queries=asked, model=model, passages=4)
    assert isinstance(manifest.report, EvaluateReport)
    contexts = language(manifest.report).targets.contexts
    assert 0 < contexts.n_cut_contexts <= Q
    assert 0 < contexts.n_cut_tokens < contexts.n_passage_tokens
    assert any("did not fit into the model" in each for each in manifest.warnings)
    with pytest.raises(ConfigError, match="256 positions of the model"):
        evaluated(store, queries=asked, model=model, question_template=f"{'barn ' * 100}{{question}}")


# Publishing


def test_the_same_request_returns_what_is_published(store: Store, asked: str, tmp_path: Path) -> None:
    first = evaluated(store, queries=asked, name="same")
    copied = write_queries(tmp_path / "copy")
    again = evaluated(store, queries=copied, name="same", workers=2, batch_tokens=77)
    assert (again.ref, again.created_at) == (first.ref, first.created_at)
    assert [each.ref for each in first.inputs] == ["whole@1"]
    assert evaluated(store, queries=asked, name="same", limit=5).ref == "same@2"
    changed = write_queries(tmp_path / "changed", {**relevance(), "q0": {"d1": 1}})
    assert evaluated(store, queries=changed, name="same").ref == "same@3"
    assert evaluated(store, queries=asked).name == "whole.evaluation"
    assert scaled(store, queries=asked).name == "whole.scaling"


def test_a_limit_draws_queries_by_seed_and_a_larger_one_keeps_them(store: Store, asked: str) -> None:
    def drawn(**fields: Any) -> list[str]:
        manifest = evaluated(store, queries=asked, **fields)
        scores = pl.read_parquet(store.directory(manifest) / "scores.parquet")
        return scores.filter(pl.col("metric") == "recall")["id"].to_list()

    few, more, other = drawn(limit=5), drawn(limit=12), drawn(limit=5, seed=1)
    order = [f"q{i}" for i in range(Q)]
    assert [each for each in order if each in set(few)] == few
    assert set(few) < set(more)
    assert set(few) != set(other)
    assert drawn(limit=1000) == order
    report = evaluation(store, queries=asked, limit=5)
    assert report.queries is not None
    assert (report.queries.n_queries, report.queries.n_left_out) == (5, Q - 5)


def test_a_run_that_was_stopped_goes_on_with_the_chunks_that_are_missing(
    store: Store, asked: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_scores, "_CHUNK_TOKENS", 600)
    asked_for = {"queries": asked, "model": model, "metrics": ["answer_nll"], "probabilities": [0.2, 1.0]}
    run = ContextWorker.run
    scored: list[str] = []

    def stop(worker: ContextWorker, chunk: str) -> Iterator[int]:
        if len(scored) == 4:
            raise KeyboardInterrupt
        scored.append(f"{worker._plan.folder}/{chunk}")
        return run(worker, chunk)

    monkeypatch.setattr(ContextWorker, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        scaled(store, **asked_for, name="stopped")
    staging = next(store.home.glob("staging/evaluation-stopped-*/"))
    kept = {folder: identities(folder, "shards/*.npy") for folder in staging.glob("work/scores-*")}
    assert sum(map(len, kept.values())) == 4
    later: list[str] = []

    def check(worker: ContextWorker, chunk: str) -> Iterator[int]:
        later.append(f"{worker._plan.folder}/{chunk}")
        assert all(identities(folder, "shards/*.npy").items() >= files.items() for folder, files in kept.items())
        return run(worker, chunk)

    monkeypatch.setattr(ContextWorker, "run", check)
    manifest = scaled(store, **asked_for, name="stopped")
    assert later
    assert not set(later) & set(scored)
    assert not list(store.directory(manifest).glob("work"))
    monkeypatch.setattr(ContextWorker, "run", run)
    assert scaled(store, **asked_for, name="fresh").report == manifest.report


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "nothing to evaluate on"),
        ({"texts": "texts"}, "texts are read by a model"),
        ({"queries": "q", "window": 10, "stride": 10}, "stride must be below window"),
        ({"queries": "q", "metrics": ["answer_nll"]}, "answer_nll is measured with a model"),
        ({"queries": "q", "metrics": ["perplexity"]}, "perplexity is measured on texts"),
        ({"queries": "q", "probabilities": [0.5, 0.5]}, "a value twice"),
        ({"queries": "q", "probabilities": [0.0]}, "greater than 0"),
        ({"queries": "q", "depht": 5}, "Extra inputs"),
    ],
)
def test_requests_that_cannot_be_answered(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ScaleRequest(datastore="whole", **fields)


def test_queries_that_have_nothing_to_be_evaluated_by(store: Store, model: str, tmp_path: Path) -> None:
    bare, answered = tmp_path / "bare.jsonl", tmp_path / "answered.jsonl"
    bare.write_text('{"text": "barn felt", "positives": ["d1"]}\n')
    answered.write_text('{"text": "barn felt", "answer": "tomb"}\n')
    with pytest.raises(DataError, match=r"answered.jsonl: no query has a relevant document"):
        evaluated(store, queries=str(answered))
    with pytest.raises(DataError, match=r"bare.jsonl: no query has an answer"):
        evaluated(store, queries=str(bare), model=model)
    with pytest.raises(DataError, match=r"no query has a relevant document: add some, or leave recall out"):
        scaled(store, queries=str(answered), model=model, metrics=["recall"])
    with pytest.raises(DataError, match=r"no query has a answer: add some|no query has an answer"):
        scaled(store, queries=str(bare), model=model, texts="texts", metrics=["answer_nll"])
    assert len(read_evaluation_queries(str(bare)).queries) == 1


# Page, plots, command line


@pytest.fixture(scope="module")
def published(store: Store, asked: str, model: str) -> EvaluationManifest:
    return scaled(store, queries=asked, model=model, texts="texts", window=96, stride=48, limit=12, name="curves")


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=store.home), run_worker=False)) as client:
        yield client


def test_a_curve_is_drawn_as_it_was_measured(published: EvaluationManifest) -> None:
    assert isinstance(published.report, ScaleReport)
    curve = next(each for each in published.report.curves if each.metric == "answer_nll")
    assert curve.baseline is not None
    figure = curve_figure(curve, "dark")
    [axes] = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    mean = lines["mean over seeds"]
    assert mean.get_xdata() == pytest.approx([point.n_tokens for point in curve.points])
    assert mean.get_ydata() == pytest.approx([point.value for point in curve.points])
    assert set(lines["model alone"].get_ydata()) == {curve.baseline.value}
    [band] = axes.collections
    corners = {(round(x, 6), round(y, 6)) for x, y in band.get_paths()[0].vertices.tolist()}
    for point in curve.points:
        for end in (point.low, point.high):
            assert (round(point.n_tokens, 6), round(end, 6)) in corners
    assert axes.get_xscale() == "log"
    assert "lower is better" in axes.get_title(loc="left")


def test_sizes_and_scores_as_text() -> None:
    assert [size_text(n) for n in (350, 999, 1500, 20_000, 3.5e6, 1.44e12)] == [
        "350",
        "999",
        "1.5k",
        "20k",
        "3.5M",
        "1.44T",
    ]
    assert [number(value) for value in (0.12345, -2.0, 12345.6)] == ["0.123", "−2.000", "12,346"]


def test_the_page_has_the_numbers_of_the_report(client: TestClient, published: EvaluationManifest) -> None:
    answer = client.get(f"/evaluations/{published.ref}")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = answer.text
    assert " style=" not in page
    assert "<style" not in page
    assert isinstance(published.report, ScaleReport)
    assert [curve.metric for curve in published.report.curves] == ["recall", "ndcg", "answer_nll", "perplexity"]
    for curve in published.report.curves:
        for point in curve.points:
            share, passages = f"{100 * point.probability:g} %", f"{point.n_passages:,.0f}"
            assert re.search(rf"{share}</th>.*?{passages}</td>.*?>{number(point.value)}</td>", page)
    assert page.count("<img") == page.count("<source") == 4
    assert "curves@1" in client.get("/evaluations").text
    single = client.get("/evaluations/whole.evaluation").text
    assert "Recall@10" in single
    assert "<img" not in single
    for theme in ("light", "dark"):
        svg = client.get("/v1/evaluations/curves/plots/answer-nll.svg", params={"theme": theme})
        assert svg.headers["content-type"] == "image/svg+xml"
        assert COLOURS[theme].paper in svg.text
        texts = ["".join(text.itertext()) for text in ET.fromstring(svg.text).iter(f"{SVG}text")]
        assert "tokens in the datastore" in texts
        assert any(re.fullmatch(r"[0-9.]+k", text) for text in texts)


def test_evaluations_over_rest(client: TestClient, published: EvaluationManifest) -> None:
    listed = client.get("/v1/evaluations").json()["items"]
    assert (listed[0]["kind"], "curves@1" in [each["ref"] for each in listed]) == ("evaluation", True)
    detail = client.get("/v1/evaluations/curves").json()
    assert (detail["ref"], detail["datastore"]) == ("curves@1", published.datastore)
    report = client.get("/v1/evaluations/curves/report")
    assert report.json() == detail["report"] == published.report.model_dump(mode="json")
    unchanged = {"if-none-match": report.headers["etag"]}
    assert client.get("/v1/evaluations/curves/report", headers=unchanged).status_code == 304
    plots = client.get("/v1/evaluations/curves/plots").json()["items"]
    assert [each["name"] for each in plots] == ["recall", "ndcg", "answer-nll", "perplexity"]
    assert client.get(plots[-1]["png"]).content[:4] == b"\x89PNG"
    refused = client.get("/v1/evaluations/whole.evaluation/plots/recall.svg")
    assert (refused.status_code, "evaluate draws none" in refused.json()["detail"]) == (404, True)
    for kind in ("evaluate", "scale"):
        submitted = client.post(
            "/v1/jobs", json={"kind": kind, "request": {"datastore": "whole", "queries": "questions.jsonl"}}
        )
        assert (submitted.status_code, submitted.json()["kind"]) == (202, kind)
    wrong = client.post("/v1/jobs", json={"kind": "scale", "request": {"datastore": "whole"}})
    assert (wrong.status_code, "nothing to evaluate on" in wrong.text) == (422, True)


def test_the_command_line_prints_and_writes_the_report(
    store: Store, asked: str, model: str, tmp_path: Path
) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(command_line, ["datastore", *arguments, "--home", str(store.home)])
        assert done.exit_code == 0, done.output
        return done.stdout

    language_flags = ("--model", model, "--passages", "2", "--dtype", "float32", "--device", "cpu")
    printed = json.loads(run("evaluate", "whole", "--queries", asked, "-k", "5", *language_flags, "--json"))
    manifest = store.manifest(printed["ref"], "evaluation")
    assert isinstance(manifest, EvaluationManifest)
    assert printed == {
        "ref": manifest.ref,
        "fingerprint": manifest.fingerprint,
        **manifest.report.model_dump(mode="json"),
    }
    shown = run("evaluate", "whole", "--queries", asked, "-k", "5", *language_flags)
    for text in (
        "Recall@5",
        "NLL of answers, nats a token: with 2 passages",
        number(printed["language"][0]["alone"]["value"]),
    ):
        assert text in " ".join(shown.split())
    out = tmp_path / "report"
    shown = run(
        *(
            "scale",
            "whole",
            "--queries",
            asked,
            "--metric",
            "recall",
            "--probability",
            "0.5",
            "--probability",
            "1",
        ),
        *("--seeds", "2", "--out", str(out)),
    )
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "recall.png", "recall.svg", "report.json"]
    report = json.loads((out / "report.json").read_text())
    assert [point["probability"] for point in report["curves"][0]["points"]] == [0.5, 1]
    assert number(report["curves"][0]["points"][0]["value"]) in shown
    page = (out / "index.html").read_text()
    assert "data:image/svg+xml;base64," in page
    assert "/static/" not in page
    refused = CliRunner().invoke(command_line, ["datastore", "scale", "whole", "--home", str(store.home)])
    assert isinstance(refused.exception, ConfigError)
    assert "nothing to evaluate on" in str(refused.exception)


def test_the_example_prints_the_curve_and_finds_it_in_stores_really_built(
    store: Store, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
    import datastore_scaling

    monkeypatch.setattr(datastore_scaling, "ray_session", nullcontext)
    data = tmp_path / "data"
    write_queries(data)
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(TABLE["text"].to_pylist())]
    (data / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--data", str(data), "--out", str(tmp_path / "out"), "--model", model, "--encoder", "hashing:64"]
    arguments += ["--questions", "8", "--passages", "1", "--shares", "0.3", "1", "--seeds", "1", "--build", "0.3"]
    assert datastore_scaling.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "the same three passages in the same order: 100.0% of 24 questions" in printed
    compared = re.findall(r"(\w+): curve ([0-9.]+), built ([0-9.]+)", printed)
    assert [name for name, *_ in compared] == ["recall", "ndcg", "answer_nll"]
    for _, curve, built in compared:
        assert float(curve) == pytest.approx(float(built), rel=2e-3)
    assert (tmp_path / "out" / "report" / "index.html").exists()
