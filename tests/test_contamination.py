"""Contamination: containment and longest common runs against plain Python, the job, its matches, selections."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Recorder, document_table
from typer.testing import CliRunner

from mixwright.attributes import Attributes
from mixwright.cli import app
from mixwright.corpora import Corpus
from mixwright.errors import ConfigError, DataError
from mixwright.indexes import contamination
from mixwright.indexes.contamination import EvaluationTexts, contaminated
from mixwright.jobs.decontaminate import MATCHES_SCHEMA, read_matches, run_decontaminate
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.manifests import AttributesManifest, CorpusManifest
from mixwright.schemas.mixtures import Budget
from mixwright.schemas.requests import DecontaminateRequest
from mixwright.selectors.baselines import Random
from mixwright.selectors.requests import SelectRequest
from mixwright.selectors.streams import MixtureStream
from mixwright.store import Store

QUESTION = "Where was Frédéric Chopin born?"
PASSAGE = (
    "The guide asked us, as they all do in Warsaw: »Where was FRE\u0301DE\u0301RIC Chopin, born?« Nobody knew. "
    + "He told us of a village that none had heard of, and of a manor house with white walls. " * 20
)


def longest_common_run(one: Sequence[str], other: Sequence[str]) -> int:
    """By dynamic programming over all pairs of words."""
    best, previous = 0, [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for j, other_word in enumerate(other):
            row.append(previous[j] + 1 if word == other_word else 0)
        best, previous = max(best, *row), row
    return best


def containment_of(evaluation: Sequence[str], text: Sequence[str], ngram: int) -> float:
    n = min(ngram, len(evaluation))
    if not n:
        return 0.0
    grams, others = ({tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in (evaluation, text))
    return len(grams & others) / len(grams)


few_words = st.lists(st.sampled_from("abc"), max_size=14)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(few_words, max_size=4),
    st.lists(few_words, max_size=4),
    st.integers(1, 6),
    st.integers(1, 8),
)
def test_both_measures_are_those_of_sets_and_dynamic_programming(
    texts: list[list[str]], evaluations: list[list[str]], ngram: int, longest_run: int
) -> None:
    index = EvaluationTexts([" ".join(each) for each in evaluations], ngram=ngram, longest_run=longest_run)
    found = index.check([" ".join(each) for each in texts])
    pairs = list(zip(found.text.tolist(), found.evaluation.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    for number, (text, evaluation) in enumerate(pairs):
        one, other = texts[text], evaluations[evaluation]
        run = int(found.longest_run[number])
        assert run == longest_common_run(one, other)
        assert found.containment[number] == pytest.approx(containment_of(other, one, ngram))
        start = int(found.start[number])
        assert " ".join(one[start : start + run]) in " ".join(other)
    for text, one in enumerate(texts):
        for evaluation, other in enumerate(evaluations):
            if (text, evaluation) not in pairs:
                assert containment_of(other, one, ngram) == 0
                assert longest_common_run(one, other) < max(min(ngram, longest_run, len(other)), 1)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(few_words, max_size=4),
    st.lists(few_words, max_size=4),
    st.integers(1, 6),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
    st.integers(1, 8),
)
def test_passages_are_contaminated_where_a_measure_reaches_its_limit(
    passages: list[list[str]], texts: list[list[str]], ngram: int, containment: float, longest_run: int
) -> None:
    found = contaminated(
        [" ".join(each) for each in passages],
        [" ".join(each) for each in texts],
        ngram=ngram,
        containment=containment,
        longest_run=longest_run,
    )
    expected = [
        [
            bool(text)
            and (
                containment_of(text, passage, ngram) >= containment
                or longest_common_run(passage, text) >= longest_run
            )
            for text in texts
        ]
        for passage in passages
    ]
    assert found.shape == (len(passages), len(texts))
    assert found.tolist() == expected


def test_a_short_question_inside_a_long_passage_is_found() -> None:
    other = "Where was the composer of these nocturnes born?"
    assert contaminated([PASSAGE, other], [QUESTION, other]).tolist() == [[True, False], [False, True]]
    found = EvaluationTexts([QUESTION]).check([PASSAGE])
    assert (found.containment.tolist(), found.longest_run.tolist(), found.start.tolist()) == ([1.0], [5], [10])


def test_a_long_stretch_is_found_where_the_containment_is_small() -> None:
    rng = np.random.default_rng(0)
    evaluation = [f"w{each}" for each in rng.integers(0, 10_000, 400)]
    passage = ["before", *evaluation[200:232], "after"]
    assert contaminated([" ".join(passage)], [" ".join(evaluation)]).tolist() == [[True]]
    assert contaminated([" ".join(passage[2:])], [" ".join(evaluation)]).tolist() == [[False]]
    below_the_ngram = contaminated([" ".join(passage)], [" ".join(evaluation)], ngram=40, longest_run=20)
    assert below_the_ngram.tolist() == [[True]]


def test_words_of_scripts_without_spaces_are_their_characters() -> None:
    question = "フレデリック・ショパンはどこで生まれましたか"
    assert contaminated([f"彼は聞いた。「{question}」と。", "どこで"], [question]).tolist() == [[True], [False]]


def test_texts_are_worked_on_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(list("abcd"), 30)) for _ in range(20)]
    evaluations = [" ".join(rng.choice(list("abcd"), 10)) for _ in range(30)]
    whole = EvaluationTexts(evaluations, ngram=3).check(texts)
    monkeypatch.setattr(contamination, "_MOST_MATCHES", 50)
    parts = EvaluationTexts(evaluations, ngram=3).check(texts)
    monkeypatch.setattr("mixwright.indexes.words.BATCH_CHARACTERS", 100)
    batches = EvaluationTexts(evaluations, ngram=3).check(texts)
    assert len(whole.text) > 100
    for found in (parts, batches):
        for name, values in vars(whole).items():
            np.testing.assert_array_equal(getattr(found, name), values)


def test_nothing_contaminates_nothing() -> None:
    assert contaminated([], ["a"]).shape == (0, 1)
    assert contaminated(["a"], []).shape == (1, 0)
    assert not contaminated(["", "!"], ["", "?"]).any()


# The job


def words_of(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character if character.isalnum() else " " for character in plain).split()


DOCUMENTS = [
    "Nothing of note happens in this document, and nobody minds.",
    PASSAGE,
    "A tale of two cities: it was the best of times, it was the worst of times, it was the age of wisdom.",
    "Chopin was born, they say; but where?",
    "Question: what is the capital of France? Answer: Paris.",
]
QUIZ = [
    ("Where was Frederic Chopin born", "Żelazowa Wola"),
    ("WHERE was Frédéric   Chopin born", "Żelazowa Wola"),
    ("What is the capital of France", "Paris"),
]
BOOK = [
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness "
    + "and so on until the end of the book, which is long. " * 5
]


@pytest.fixture
def corpora(publish_corpus: Any) -> list[CorpusManifest]:
    answers = [json.dumps({"answer": answer}) for _, answer in QUIZ]
    return [
        publish_corpus("web", document_table(DOCUMENTS), shard_rows=2),
        publish_corpus("quiz", document_table([question for question, _ in QUIZ], metadata=answers), shard_rows=2),
        publish_corpus("book", document_table(BOOK)),
    ]


def run(store: Store, progress: Any = None, **request: Any) -> AttributesManifest:
    values = {"corpus": "web", "against": ["quiz", "book"], "longest_run": 16, **request}
    return run_decontaminate(store, DecontaminateRequest(**values), progress or NoProgress())


def columns_of(store: Store, manifest: AttributesManifest) -> pl.DataFrame:
    return Attributes.open(store, manifest.ref, Corpus.open(store, "web")).scan().collect()


def test_the_job_publishes_columns_and_matches(store: Store, corpora: list[CorpusManifest]) -> None:
    manifest = run(store)
    assert manifest.ref == "web.contamination@1"
    assert [each.ref for each in manifest.inputs] == ["web@1", "quiz@1", "book@1"]
    assert [each.path for each in manifest.files if each not in manifest.shards] == ["matches.parquet"]
    found = columns_of(store, manifest)
    evaluations = [question for question, _ in QUIZ] + BOOK
    for row, document in enumerate(DOCUMENTS):
        pairs = [(words_of(document), words_of(each)) for each in evaluations]
        containment = max(containment_of(other, one, 13) for one, other in pairs)
        runs = [longest_common_run(one, other) for one, other in pairs]
        long_enough = [run for run, (_, other) in zip(runs, pairs, strict=True) if run >= min(13, len(other))]
        assert found["contamination"][row] == pytest.approx(containment)
        assert found["longest_run"][row] == max(long_enough, default=0)
    assert found["contaminated"].to_list() == [False, True, True, False, True]
    assert manifest.counts == {"contaminated": 3, "clean": 2}

    matches = read_matches(store.directory(manifest))
    assert matches.columns == MATCHES_SCHEMA.names
    where = matches.select("row", "evaluation_corpus", "evaluation_row", "containment").rows()
    assert [each[:3] for each in where] == [(1, "quiz@1", 1), (2, "book@1", 0), (4, "quiz@1", 2)]
    assert where[1][3] < 0.8
    web, quiz = Corpus.open(store, "web"), Corpus.open(store, "quiz")
    for match in matches.iter_rows(named=True):
        document = web.rows(match["row"], 1).to_pylist()[0]
        assert document["id"] == match["id"]
        assert document["text"][match["start"] : match["end"]] == match["text"]
        assert len(words_of(match["text"])) == match["longest_run"]
    assert matches["text"][0] == "Where was FRE\u0301DE\u0301RIC Chopin, born"
    assert matches["evaluation_id"][2] == quiz.rows(2, 1)["id"][0].as_py()


def test_the_job_is_done_once_and_goes_on_after_it_was_stopped(
    store: Store, corpora: list[CorpusManifest]
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, Recorder(stop))
    manifest = run(store)
    assert run(store) == manifest
    elsewhere = run(store, name="elsewhere")
    assert [each.sha256 for each in elsewhere.files] == [each.sha256 for each in manifest.files]
    assert run(store, containment=0.5).ref == "web.contamination@2"


def test_a_template_makes_the_evaluation_texts(store: Store, corpora: list[CorpusManifest]) -> None:
    manifest = run(store, against=["quiz"], template="{text} Answer {answer}")
    assert columns_of(store, manifest)["contaminated"].to_list() == [False, False, False, False, True]
    with pytest.raises(ConfigError, match="documents of book@1 have no field 'answer'"):
        run(store, template="{text} {answer}")


def test_short_and_wordless_evaluation_texts_are_told_of(
    store: Store, corpora: list[CorpusManifest], publish_corpus: Any
) -> None:
    publish_corpus("short", document_table(["Paris", "?!", "No, they say"]))
    progress = Recorder()
    manifest = run(store, progress, against=["short"])
    assert manifest.warnings == [
        "2 of 3 evaluation texts have fewer than 5 words: any document that says them counts as contaminated; a "
        "template of more fields makes them longer",
        "1 of 3 evaluation texts have no words: they are not compared",
    ]
    assert progress.notes == [f"warning: {each}" for each in manifest.warnings]
    assert columns_of(store, manifest)["contaminated"].to_list() == [False, False, False, False, True]
    publish_corpus("wordless", document_table(["?!", "…"]))
    with pytest.raises(DataError, match="no evaluation text has a word: name other corpora or fields"):
        run(store, against=["wordless"])


@pytest.mark.parametrize(
    ("against", "message"),
    [(["quiz", "web"], "web@1 is the corpus itself"), (["quiz", "quiz@1"], "quiz@1 is given twice")],
)
def test_a_corpus_that_says_nothing_is_refused(
    against: list[str], message: str, store: Store, corpora: list[CorpusManifest]
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(store, against=against)


def test_a_selection_without_contaminated_documents(store: Store, corpora: list[CorpusManifest]) -> None:
    request = SelectRequest(
        name="clean", sources=["web"], selector=Random(), budget=Budget(documents=2), contaminated="drop"
    )
    with pytest.raises(DataError, match="no attribute contaminated: run  mixwright decontaminate web@1 --against"):
        run_select(store, request, NoProgress())
    run(store)
    manifest = run_select(store, request, NoProgress())
    texts = [
        text for table in MixtureStream.open(store, manifest.ref).read() for text in table["text"].to_pylist()
    ]
    assert sorted(texts) == sorted([DOCUMENTS[0], DOCUMENTS[3]])
    assert manifest.parameters["contaminated"] == "drop"
    run(store, against=["quiz"])
    assert run_select(store, request, NoProgress()).ref == "clean@2"


def test_the_command_prints_counts_and_the_worst_matches(store: Store, corpora: list[CorpusManifest]) -> None:
    def mixwright(*arguments: str) -> str:
        command = ["decontaminate", "web", "--against", "quiz", "--against", "book", "--longest-run", "16"]
        home = ["--home", str(store.home)]
        done = CliRunner().invoke(app, [*command, *arguments, *home], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    printed = json.loads(mixwright("--json"))
    assert list(printed) == ["ref", "fingerprint", "corpus", "n_rows", "counts", "columns", "warnings"]
    assert printed["counts"] == {"contaminated": 3, "clean": 2}
    lines = mixwright().splitlines()
    assert lines[0] == "web.contamination@1: 3 of 5 documents are contaminated by 3 evaluation texts"
    assert lines[1] == "row 4 has 100% of quiz@1 row 2, 6 words in a row: what is the capital of France"
    assert lines[3].startswith("row 2 has ")
    assert len(lines) == 4
