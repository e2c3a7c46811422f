"""What a datastore is worth: windows and NLL against one forward pass each, metrics against scikit-learn and
brute force, curves against stores that were really made smaller, queries read from files."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
import sklearn.metrics
import torch
from tiny_models import SENTENCES, make_model, save_tokenizer

from mixwright.errors import ConfigError, DataError
from mixwright.hashing import keyed_hash
from mixwright.indexes.batching import length_batches
from mixwright.indexes.datastore_scaling import (
    PROBABILITIES,
    DeepHits,
    SubsetHits,
    scaling_curve,
    subset_hits,
    survival_probability,
)
from mixwright.indexes.datastores.filters import sampled
from mixwright.indexes.retrieval_metrics import mean_band, ndcg_at, recall_at, reciprocal_rank_at
from mixwright.jobs.judgements import EvaluationQuery, read_evaluation_queries
from mixwright.language_models.loading import LoadedLanguageModel
from mixwright.language_models.retrieval import (
    AnswerTemplate,
    ContextSequence,
    TargetPair,
    answer_pairs,
    batch_budget,
    beginning_ids,
    context_sequence,
    cut_counts,
    likeliest_answers,
    passage_ids,
    perplexity,
    perplexity_windows,
    query_texts,
    target_nll,
    text_ids,
)

Float64Array = npt.NDArray[np.float64]

# Windows


@pytest.mark.parametrize(("window", "stride"), [(1024, 512), (10, 5), (10, 3), (7, 6), (2, 1)])
@pytest.mark.parametrize("n", [2, 3, 5, 9, 10, 11, 25, 1023, 1024, 1025, 2600])
def test_every_token_behind_the_first_query_is_a_target_once(window: int, stride: int, n: int) -> None:
    pairs = perplexity_windows(list(range(n)), window, stride)
    targets = [token for pair in pairs for token in pair.target]
    assert targets == list(range(targets[0], n))
    for pair in pairs:
        # The query is what precedes, all of it or as much as a window has room for.
        assert pair.query == list(range(max(pair.target[0] - (window - stride), 0), pair.target[0]))
        assert pair.query
        assert 1 <= len(pair.target) <= stride
    if n >= window:
        # The published windows: they begin at 0, stride, 2 stride, …, and their first part is the query.
        assert pairs[0] == (list(range(window - stride)), list(range(window - stride, window)))
        assert [pair.query[0] for pair in pairs] == list(range(0, stride * len(pairs), stride))
    else:
        assert len(pairs) == 1
        assert len(pairs[0].query) == max(n * (window - stride) // window, 1)


def test_a_text_that_has_no_query_and_target_has_no_window() -> None:
    assert perplexity_windows([]) == perplexity_windows([5]) == []
    for window, stride in ((512, 512), (512, 0), (1, 1)):
        with pytest.raises(ConfigError, match="stride"):
            perplexity_windows([1, 2, 3], window, stride)


# Contexts


def test_the_best_passage_is_next_to_the_query_and_the_worst_is_cut_first() -> None:
    pair, passages = TargetPair([7, 8], [9]), [[1, 1], [2, 2, 2], [3, 4]]
    whole = context_sequence(pair, passages, [0], None)
    assert whole == ([0, 3, 4, 2, 2, 2, 1, 1, 7, 8, 9], 10, 7, 0)
    assert context_sequence(pair, passages, [0], 11) == whole
    assert context_sequence(pair, passages, [0], 10) == ([0, 4, 2, 2, 2, 1, 1, 7, 8, 9], 9, 7, 1)
    assert context_sequence(pair, passages, [], 6) == ([2, 1, 1, 7, 8, 9], 5, 7, 4)
    none_fits = context_sequence(pair, passages, [0], 4)
    assert none_fits == ([0, 7, 8, 9], 3, 7, 7)
    assert context_sequence(pair, [], [0], 4) == ([0, 7, 8, 9], 3, 0, 0)
    assert cut_counts([whole, none_fits]) == (2, 1, 14, 7)
    assert cut_counts([]) == (0, 0, 0, 0)
    with pytest.raises(ConfigError, match="3 positions"):
        context_sequence(pair, passages, [0], 3)


@pytest.mark.parametrize("begin", [False, True])
def test_passages_and_texts_are_tokenized_without_what_begins_a_text(tmp_path: Path, begin: bool) -> None:
    tokenizer = save_tokenizer(tmp_path, begin=begin)
    assert beginning_ids(tokenizer) == ([0] if begin else [])
    [ids] = text_ids(tokenizer, [SENTENCES[0]])
    assert tokenizer.decode(ids) == SENTENCES[0]
    assert beginning_ids(tokenizer) + ids == tokenizer(SENTENCES[0])["input_ids"]
    assert [tokenizer.decode(each) for each in passage_ids(tokenizer, SENTENCES[:2], "\n")] == [
        f"{sentence}\n" for sentence in SENTENCES[:2]
    ]
    assert text_ids(tokenizer, []) == []


def test_a_query_is_text_again_without_a_character_cut_in_two(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path)
    [ids] = text_ids(tokenizer, ["é the river 汉"])
    assert query_texts(tokenizer, [TargetPair(ids[1:-1], ids[-1:])]) == [" the river "]


def test_an_answer_is_what_the_question_does_not_begin_with(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path, begin=True)
    [pair] = answer_pairs(tokenizer, ["Where {answer}?"], ["Paris {question}"], AnswerTemplate())
    assert tokenizer.decode(pair.query) == "Question: Where {answer}?\nAnswer:"
    assert tokenizer.decode(pair.target) == " Paris {question}"
    assert answer_pairs(tokenizer, [], [], AnswerTemplate()) == []
    # "is Par" and "is" with " Paris" behind it are other tokens: nothing is lost between query and target.
    [pair] = answer_pairs(tokenizer, ["capital of Fr"], ["ance is"], AnswerTemplate("{question}", "{answer}"))
    assert pair.query + pair.target == text_ids(tokenizer, ["capital of France is"])[0]
    with pytest.raises(DataError, match="'Where' has a blank answer"):
        answer_pairs(tokenizer, ["Who", "Where"], ["I", " "], AnswerTemplate())
    with pytest.raises(ConfigError, match="question has no"):
        AnswerTemplate(question="Q: {text}")


# NLL


def one_at_a_time(model: Any, sequences: list[ContextSequence]) -> Float64Array:
    """NLL sums by one forward pass each, without padding, in float64 from the logits on."""
    sums = []
    with torch.no_grad():
        for each in sequences:
            logits = model(input_ids=torch.tensor([each.ids])).logits[0].double()
            log_p = torch.log_softmax(logits, -1)
            sums.append(-sum(log_p[i - 1, each.ids[i]].item() for i in range(each.n_context, len(each.ids))))
    return np.array(sums)


def random_sequences(seed: int, n: int = 23, positions: int = 80) -> list[ContextSequence]:
    generator = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> list[int]:
        return generator.integers(4, 400, generator.integers(low, high)).tolist()

    return [
        context_sequence(
            TargetPair(tokens(1, 40), tokens(1, 30)), [tokens(1, 30) for _ in range(i % 4)], [0], positions
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_batches_score_the_targets_as_one_forward_pass_each_does(kind: str) -> None:
    plain = make_model(kind)
    model, sequences = LoadedLanguageModel("tiny", plain, "cpu"), random_sequences(1)
    assert {each.n_cut > 0 for each in sequences} == {True, False}
    expected = one_at_a_time(plain, sequences)
    lengths = np.array([len(each.ids) for each in sequences])
    done: list[int] = []
    for budget in (1, 300, 10_000):
        found = target_nll(model, sequences, length_batches(lengths, budget), done.append)
        np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert sum(done) == 3 * len(sequences)


def test_logits_in_blocks_are_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sequences = LoadedLanguageModel("tiny", make_model(), "cpu"), random_sequences(2, n=5)
    whole = target_nll(model, sequences, [np.arange(5)])
    monkeypatch.setattr(LoadedLanguageModel, "block_positions", 3)
    np.testing.assert_allclose(target_nll(model, sequences, [np.arange(5)]), whole, rtol=1e-6)


def test_the_batch_budget_is_the_models_where_all_its_logits_exist_at_once() -> None:
    whole, parts = (LoadedLanguageModel("tiny", make_model(kind), "cpu") for kind in ("gemma2", "llama"))
    assert batch_budget(parts) == 2048
    assert batch_budget(parts, 1 << 30) == 1 << 30
    assert batch_budget(whole, 1 << 30) == whole.max_batch_tokens


def test_a_perplexity_is_weighted_by_tokens_and_the_same_by_hand() -> None:
    plain = make_model(seed=3)
    model = LoadedLanguageModel("tiny", plain, "cpu")
    text = np.random.default_rng(5).integers(4, 400, 90).tolist()
    sequences = [context_sequence(pair, [], [], 128) for pair in perplexity_windows(text, 32, 16)]
    nll = target_nll(model, sequences, [np.arange(len(sequences))])
    n_target = np.array([each.n_target for each in sequences])
    assert n_target.tolist() == [16, 16, 16, 16, 10]
    expected = one_at_a_time(plain, sequences)
    assert perplexity(nll, n_target) == pytest.approx(math.exp(expected.sum() / 74), rel=1e-5)


def test_a_model_that_gives_no_distribution_is_an_error() -> None:
    plain = make_model()
    with torch.no_grad():
        plain.lm_head.weight[17] = math.nan
    with pytest.raises(DataError, match="tiny gives a value that is not finite"):
        target_nll(LoadedLanguageModel("tiny", plain, "cpu"), random_sequences(3, n=2), [np.arange(2)])


def test_of_several_right_answers_the_likeliest_token_for_token_counts() -> None:
    nll, n_target = np.array([6.0, 2.0, 9.0, 1.0, 2.0]), np.array([6, 1, 3, 1, 2])
    best = likeliest_answers(nll, n_target, questions=np.array([2, 2, 0, 3, 3]), n=4)
    assert best.tolist() == [2, -1, 0, 3]
    assert likeliest_answers(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64), 1).tolist() == [-1]


# Metrics


def test_ndcg_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        relevance = generator.integers(0, 4, 30)
        relevance[0] = 2
        scores = generator.permutation(30)
        ranking = np.argsort(-scores).tolist()
        judged = dict(enumerate(relevance.tolist()))
        for k in (1, 3, 10, 30):
            expected = sklearn.metrics.ndcg_score(relevance[None], scores[None], k=k)
            assert ndcg_at(ranking, judged, k) == pytest.approx(expected, rel=1e-12)


def test_recall_and_reciprocal_rank_are_those_counted_one_by_one() -> None:
    generator = np.random.default_rng(1)
    for _ in range(100):
        ids = [f"d{i}" for i in range(20)]
        judged = {each: int(generator.integers(-1, 3)) for each in ids[:12]} | {"far": 1}
        ranking = [ids[i] for i in generator.permutation(20)]
        k = int(generator.integers(1, 25))
        relevant = {each for each, relevance in judged.items() if relevance > 0}
        ranks = [rank for rank in range(1, min(k, 20) + 1) if ranking[rank - 1] in relevant]
        assert recall_at(ranking, judged, k) == len(ranks) / len(relevant)
        assert reciprocal_rank_at(ranking, judged, k) == (1 / min(ranks) if ranks else 0)


def test_metrics_of_a_ranking_by_hand() -> None:
    judged = {"a": 2, "b": 1, "c": 0, "d": -1}
    # c, a, d, a again, b: the second passage of a takes no rank.
    ranking = ["c", "a", "d", "a", "b"]
    assert ndcg_at(ranking, judged, 4) == pytest.approx(
        (2 / math.log2(3) + 1 / math.log2(5)) / (2 / math.log2(2) + 1 / math.log2(3))
    )
    assert recall_at(ranking, judged, 3) == 0.5
    assert recall_at(ranking, judged, 4) == 1
    assert reciprocal_rank_at(ranking, judged, 1) == 0
    assert recall_at([], judged, 3) == ndcg_at([], judged, 3) == reciprocal_rank_at([], judged, 3) == 0
    # More relevant documents than ranks: the best ranking of k has gain 1.
    assert ndcg_at(["a"], {"a": 1, "b": 1, "e": 1}, 1) == 1
    for metric in (ndcg_at, recall_at, reciprocal_rank_at):
        with pytest.raises(DataError, match="no relevant document"):
            metric(ranking, {"c": 0}, 3)


def test_a_band_is_scipys_bootstrap() -> None:
    generator = np.random.default_rng(2)
    tokens = generator.integers(1, 40, 200).astype(np.float64)
    nll = tokens * generator.gamma(2.0, 1.5, 200)
    for weights in (None, tokens):
        ones = np.ones(200) if weights is None else weights
        found = mean_band(nll, weights)
        expected = scipy.stats.bootstrap(
            (nll, ones),
            lambda t, w, axis: t.sum(axis) / w.sum(axis),
            paired=True,
            method="percentile",
            n_resamples=10_000,
            rng=1,
        )
        assert found.value == pytest.approx(nll.sum() / ones.sum())
        width = expected.confidence_interval.high - expected.confidence_interval.low
        assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.05 * width)
        assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.05 * width)
    assert mean_band(nll) == mean_band(nll)
    with pytest.raises(DataError, match="no queries"):
        mean_band(np.zeros(0))


# Scaling


def test_a_share_is_kept_by_its_hash_and_contains_every_smaller_one() -> None:
    keys = np.arange(20_000, dtype=np.uint64)
    for seed in (0, 1):
        hashes = [int(each) for each in keyed_hash(keys, seed)]
        for probability in (1e-300, 0.01, 0.3, 1 - 2**-53, 1.0):
            expected = [Fraction(each, 2**64) < Fraction(probability) for each in hashes]
            assert sampled(keys, probability, seed).tolist() == expected
        members = [sampled(keys, probability, seed) for probability in PROBABILITIES]
        assert all((small <= large).all() for small, large in pairwise(members))
        assert [each.mean() for each in members] == pytest.approx(PROBABILITIES, abs=0.01)
    assert (sampled(keys, 0.5, 0) != sampled(keys, 0.5, 1)).any()


class Passages:
    """A store of n passages, several a document and several a cluster, of which every score is known."""

    def __init__(self, n: int = 300, q: int = 12) -> None:
        generator = np.random.default_rng(7)
        self.scores = generator.normal(size=(q, n))
        self.clusters = generator.integers(0, n // 2, n).astype(np.uint64)
        self.keys = {
            "passage": np.arange(n, dtype=np.uint64) + np.uint64(1 << 63),
            "document": np.repeat(np.arange(n // 3), 3).astype(np.uint64),
            "cluster": self.clusters,
        }
        self.contaminated = generator.random((q, n)) < 0.2

    def deep(self, unit: str, depth: int, *, dedup: bool, clean: bool) -> DeepHits:
        ids = np.argsort(-self.scores, axis=1)[:, :depth]
        return DeepHits(
            ids,
            self.keys[unit][ids],
            self.clusters[ids] if dedup else None,
            np.take_along_axis(self.contaminated, ids, axis=1) if clean else None,
        )

    def rebuilt(
        self, line: int, unit: str, probability: float, seed: int, *, dedup: bool, clean: bool
    ) -> list[int]:
        """All usable passages for a query, best first, of a store that has only the members."""
        members = np.flatnonzero(sampled(self.keys[unit], probability, seed))
        found, seen = [], set()
        for passage in members[np.argsort(-self.scores[line, members])].tolist():
            if not (dedup and self.clusters[passage] in seen):
                seen.add(self.clusters[passage])
                if not (clean and self.contaminated[line, passage]):
                    found.append(passage)
        return found


@pytest.mark.parametrize("unit", ["passage", "document", "cluster"])
@pytest.mark.parametrize("dedup", [False, True])
@pytest.mark.parametrize("clean", [False, True])
def test_a_subset_of_deep_hits_is_what_the_smaller_store_finds(unit: str, dedup: bool, clean: bool) -> None:
    passages = Passages()
    deep = passages.deep(unit, 300, dedup=dedup, clean=clean)
    for probability in (0.02, 0.3, 1.0):
        for seed in (0, 1):
            found = subset_hits(deep, 5, probability, seed)
            for line, columns in enumerate(found.columns):
                expected = passages.rebuilt(line, unit, probability, seed, dedup=dedup, clean=clean)
                hits = [int(deep.ids[line, column]) for column in columns if column >= 0]
                assert hits == expected[:5]
                assert found.n_survivors[line] == len(expected)
                assert found.short[line] == (len(expected) < 5)


def test_with_clusters_drawn_it_does_not_matter_what_comes_first() -> None:
    passages = Passages()
    deep = passages.deep("cluster", 300, dedup=True, clean=False)
    best = deep.best_of_clusters(np.ones(deep.ids.shape, dtype=np.bool_))
    first = subset_hits(DeepHits(np.where(best, deep.ids, -1), deep.keys), 5, 0.3, 0)
    np.testing.assert_array_equal(first.columns, subset_hits(deep, 5, 0.3, 0).columns)


def test_a_shallow_list_says_what_it_lacks_and_missing_hits_are_none() -> None:
    passages = Passages()
    deep = passages.deep("passage", 40, dedup=False, clean=False)
    found = subset_hits(deep, 5, 0.05, 0)
    whole = subset_hits(passages.deep("passage", 300, dedup=False, clean=False), 5, 0.05, 0)
    assert found.short.any()
    for line in range(len(found.columns)):
        n = min(found.n_survivors[line], 5)
        assert (found.columns[line, :n] == whole.columns[line, :n]).all()
        assert (found.columns[line, n:] == -1).all()
    ids = deep.ids.copy()
    ids[:, 3:] = -1
    missing = subset_hits(DeepHits(ids, deep.keys), 5, 1.0, 0)
    assert missing.columns.tolist() == [[0, 1, 2, -1, -1]] * len(ids)
    assert missing.short.all()
    none = subset_hits(DeepHits(ids[:, :0], deep.keys[:, :0], deep.keys[:, :0]), 2, 1.0, 0)
    assert isinstance(none, SubsetHits)
    assert none.columns.tolist() == [[-1, -1]] * len(ids)


def test_the_probability_of_enough_survivors_is_the_binomials() -> None:
    for depth, expected in ((1000, 0.9973), (500, 0.877), (200, 0.32)):
        assert survival_probability(depth, 0.01, 3) == pytest.approx(expected, abs=6e-3 if depth == 200 else 6e-4)
    for n in (1, 2, 7, 60, 1000):
        for probability in PROBABILITIES:
            for k in (0, 1, 3, 50):
                expected = scipy.stats.binom.sf(k - 1, n, probability)
                assert survival_probability(n, probability, k) == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert survival_probability(0, 0.5, 1) == 0


def test_a_curve_is_means_over_queries_and_seeds() -> None:
    generator = np.random.default_rng(3)
    totals, n_short = generator.normal(5.0, 1.0, (2, 3, 400)), np.array([[4, 5, 6], [0, 0, 0]])
    totals[1] = totals[1, 0]
    low, full = scaling_curve([0.1, 1.0], totals, n_short)
    assert low.by_seed == pytest.approx(totals[0].mean(axis=1).tolist())
    assert low.value == pytest.approx(totals[0].mean())
    assert (low.short_queries, full.short_queries) == ((4, 5, 6), (0, 0, 0))
    # Where all seeds are the same store, the interval is that over queries alone.
    alone = scipy.stats.norm.interval(0.95, totals[1, 0].mean(), totals[1, 0].std() / 20)
    assert (full.low, full.high) == pytest.approx(alone, abs=0.01)
    assert json.loads(json.dumps(asdict(low)))["probability"] == 0.1


def test_the_interval_of_a_curve_is_over_queries_and_seeds() -> None:
    generator = np.random.default_rng(4)
    by_seed, by_query = generator.normal(0, 1, 30), generator.normal(0, 4, 200)
    totals = (5 + by_seed[:, None] + by_query)[None]
    [point] = scaling_curve([0.5], totals, np.zeros((1, 30), dtype=np.int64))
    # Two independent resamplings: their variances add.
    deviation = math.sqrt(by_seed.var() / 30 + by_query.var() / 200)
    expected = scipy.stats.norm.interval(0.95, totals.mean(), deviation)
    assert (point.low, point.high) == pytest.approx(expected, abs=0.05 * 4 * deviation)


def test_a_curve_of_perplexities_is_weighted_by_tokens() -> None:
    nll, tokens = np.array([[[4.0, 9.0], [2.0, 9.0]]]), np.array([2.0, 3.0])
    [point] = scaling_curve([0.1], nll, np.zeros((1, 2), dtype=np.int64), tokens)
    assert point.by_seed == pytest.approx((13 / 5, 11 / 5))
    grown = point.exponential()
    assert grown.by_seed == pytest.approx((perplexity(nll[0, 0], tokens), perplexity(nll[0, 1], tokens)))
    assert grown.value == pytest.approx(math.exp(12 / 5))
    assert (grown.low, grown.high) == pytest.approx((math.exp(point.low), math.exp(point.high)))
    assert grown.low <= grown.value <= grown.high


# Queries


def write_beir(folder: Path, queries: list[dict[str, Any]], qrels: str, name: str = "qrels.tsv") -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "queries.jsonl").write_text("".join(json.dumps(each) + "\n" for each in queries))
    (folder / "corpus.jsonl").write_text("")
    (folder / name).write_text(qrels)
    return str(folder)


QUERIES: list[dict[str, Any]] = [
    {"_id": "q1", "text": "How many?", "answers": ["308", "three hundred"]},
    {"_id": "q2", "text": "Does it?", "answer": "yes", "metadata": {}},
    {"_id": "q3", "text": "A training query"},
]


@pytest.mark.parametrize("header", ["", "query-id\tcorpus-id\tscore\n"])
@pytest.mark.parametrize("name", ["qrels.tsv", "qrels/test.tsv"])
def test_a_beir_folder_is_read_and_its_unjudged_queries_are_counted(
    tmp_path: Path, header: str, name: str
) -> None:
    qrels = f"{header}q1\td1\t2\nq1\td2\t0\n\nq2\t7\t1\r\nq3\td1\t0\n"
    found = read_evaluation_queries(write_beir(tmp_path, QUERIES, qrels, name))
    assert found.queries == [
        EvaluationQuery("q1", "How many?", ("308", "three hundred"), {"d1": 2, "d2": 0}),
        EvaluationQuery("q2", "Does it?", ("yes",), {"7": 1}),
    ]
    assert found.n_unjudged == 1


def test_a_file_of_queries_is_read(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    rows = [{"text": "One?"}, {"id": 7, "text": "Two?", "answers": None, "answer": 4, "positives": ["d1", 5]}]
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    found = read_evaluation_queries(str(path))
    assert found.queries == [
        EvaluationQuery("1", "One?"),
        EvaluationQuery("7", "Two?", ("4",), {"d1": 1, "5": 1}),
    ]
    assert [each.has_relevant for each in found.queries] == [False, True]
    csv = tmp_path / "queries.csv"
    csv.write_text('_id,text,answer\nq,"What, then?",\n')
    assert read_evaluation_queries(str(csv)).queries == [EvaluationQuery("q", "What, then?")]


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("q1\td1\t1\nq1 d2 1\n", r"qrels\.tsv:2: 'q1 d2 1': a line of judgements is"),
        ("q1\td1\tmuch\nq1\td1\t1\n", r"qrels\.tsv:1: "),
        ("query-id\tcorpus-id\tscore\nq1\td1\t1.5\n", r"qrels\.tsv:2: "),
        ("q1\t\t1\n", r"qrels\.tsv:1: "),
        ("q1\td1\t1\nq9\td1\t1\n", r"qrels\.tsv:2: the query 'q9' is not among the queries"),
        ("q1\td1\t1\nq1\td1\t2\n", r"qrels\.tsv:2: 'q1' and 'd1' have two relevances"),
        ("q1\td1\t0\n", r"qrels\.tsv: no query has a relevant document"),
        ("", r"qrels\.tsv: no query has a relevant document"),
    ],
)
def test_a_wrong_judgement_is_told_with_its_line(tmp_path: Path, qrels: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_evaluation_queries(write_beir(tmp_path, QUERIES, qrels))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"text": "One"}\n{"text": ', r"q\.jsonl:2: invalid JSON"),
        ('{"text": " "}\n', r"q\.jsonl:1: the query has no text"),
        ('{"question": "Who?"}\n', r"q\.jsonl:1: the query has no text"),
        (
            '{"id": "a", "text": "1"}\n\n{"id": "a", "text": "2"}\n',
            r"q\.jsonl:3: the id 'a' is that of line 1 too",
        ),
        ('{"id": ["a", "b"], "text": "1"}\n', r"q\.jsonl:1: the query has several ids"),
        ('{"text": "1", "answers": [{"text": "yes"}]}\n', r"q\.jsonl:1: answers: \{'text'"),
        ('{"text": "1", "answers": ["yes", ""]}\n', r"q\.jsonl:1: answers: ''"),
        ('{"text": "1", "positives": [true]}\n', r"q\.jsonl:1: positives: True"),
        ("\n", r"q\.jsonl has no queries"),
    ],
)
def test_a_wrong_query_is_told_with_its_line(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(lines)
    with pytest.raises(DataError, match=message):
        read_evaluation_queries(str(path))


def test_what_holds_no_queries_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    write_beir(folder, QUERIES, "q1\td1\t1\n", "qrels/dev.tsv")
    with pytest.raises(DataError, match="no BEIR folder"):
        read_evaluation_queries(str(folder))
    (tmp_path / "queries.txt").write_text("Who?\nWhere?\n")
    with pytest.raises(DataError, match="JSON lines"):
        read_evaluation_queries(str(tmp_path / "queries.txt"))
    with pytest.raises(DataError, match="does not exist"):
        read_evaluation_queries(str(tmp_path / "nothing"))
    (folder / "qrels" / "test.tsv").write_bytes(b"q1\td1\t1\nq\xff\td1\t1\n")
    with pytest.raises(DataError, match=r"test\.tsv:2: not UTF-8"):
        read_evaluation_queries(str(folder))
