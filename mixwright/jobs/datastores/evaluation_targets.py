"""What a language model is scored on: answers to questions, or windows of a corpus's texts."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.corpora import Corpus
from mixwright.errors import DataError
from mixwright.hashing import keyed_hash
from mixwright.jobs.judgements import EvaluationQuery
from mixwright.jobs.texts import row_groups
from mixwright.language_models.retrieval import (
    AnswerTemplate,
    Float64Array,
    TargetPair,
    answer_pairs,
    likeliest_answers,
    perplexity_windows,
    query_texts,
    text_ids,
)
from mixwright.progress import Progress
from mixwright.schemas.evaluations import Decontamination, EvaluationRequest, LanguageMetric

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Targets:
    """n targets, and the queries (n,) for which passages are retrieved before them.

    The scores of the targets of one unit, a question or a document, are added: ``units`` (n,) are its numbers,
    rising from 0, and ``unit_ids`` its ids. ``forbidden`` (n,) are the texts that no passage may contain, None
    where any may be retrieved.
    """

    metric: LanguageMetric
    unit: Literal["question", "document"]
    queries: list[str]
    pairs: list[TargetPair]
    units: Int64Array
    unit_ids: list[str]
    forbidden: list[list[str]] | None
    n_left_out: int
    n_not_drawn: int = 0

    @property
    def n_tokens(self) -> Int64Array:
        """Target tokens of each unit, (u,)."""
        return np.bincount(self.units, weights=[len(pair.target) for pair in self.pairs]).astype(np.int64)

    def totals(self, nll: Float64Array) -> Float64Array:
        """NLL sums (…, n) of the targets as sums of the units, (…, u)."""
        starts = np.flatnonzero(np.diff(self.units, prepend=-1))
        return np.asarray(np.add.reduceat(nll, starts, axis=-1))


def answer_targets(
    queries: Sequence[EvaluationQuery],
    tokenizer: Any,
    request: EvaluationRequest,
    alone: Callable[[list[TargetPair]], Float64Array],
) -> Targets:
    """One answer to each question that has any: of several the one that the model alone finds likeliest.

    So what is scored is the same whatever is retrieved. ``alone`` gives the NLL of pairs without passages. Raises
    ConfigError for templates without their placeholders.
    """
    asked = [query for query in queries if query.answers]
    texts, answers = zip(*((query.text, answer) for query in asked for answer in query.answers), strict=True)
    template = AnswerTemplate(request.question_template, request.answer_template)
    pairs = answer_pairs(tokenizer, texts, answers, template)
    chosen = np.arange(len(asked))
    if len(pairs) > len(asked):
        questions = np.repeat(chosen, [len(query.answers) for query in asked])
        n_target = np.array([len(pair.target) for pair in pairs], dtype=np.int64)
        chosen = likeliest_answers(alone(pairs), n_target, questions, len(asked))
    return Targets(
        metric="answer_nll",
        unit="question",
        queries=[query.text for query in asked],
        pairs=[pairs[number] for number in chosen],
        units=np.arange(len(asked)),
        unit_ids=[query.id for query in asked],
        forbidden=_forbidden(
            [(query.text, [f"{query.text} {answer}" for answer in query.answers]) for query in asked],
            request.decontaminate,
        ),
        n_left_out=len(queries) - len(asked),
    )


class _Window(NamedTuple):
    """A window, ordered by ``draw``; ``row`` is its document's number."""

    draw: int
    number: int
    row: int
    document: str
    pair: TargetPair


def window_targets(corpus: Corpus, tokenizer: Any, request: EvaluationRequest, progress: Progress) -> Targets:
    """The windows of all documents, or as many of them as are drawn; see ``perplexity_windows``.

    Raises DataError where none is left.
    """
    too_short: list[str] = []
    n_windows = 0

    def windows() -> Iterator[_Window]:
        nonlocal n_windows
        for row, (document, ids) in enumerate(_token_ids(corpus, tokenizer, progress)):
            pairs = perplexity_windows(ids, request.window, request.stride)
            if not pairs:
                too_short.append(document)
            numbers = np.arange(n_windows, n_windows + len(pairs), dtype=np.uint64)
            for number, draw, pair in zip(
                numbers.tolist(), keyed_hash(numbers, request.seed).tolist(), pairs, strict=True
            ):
                yield _Window(draw, number, row, document, pair)
            n_windows += len(pairs)

    drawn: Iterable[_Window] = windows()
    if request.limit is not None:
        drawn = heapq.nsmallest(request.limit, drawn, key=lambda each: each.draw)
    chosen = sorted(drawn, key=lambda each: each.number)
    texts = query_texts(tokenizer, [each.pair for each in chosen])
    kept = [(window, text) for window, text in zip(chosen, texts, strict=True) if text.strip()]
    if not kept:
        raise DataError(f"corpus {corpus.manifest.ref} has no text of two tokens or more: name another by texts")
    targets = _of_windows([window for window, _ in kept], [text for _, text in kept], tokenizer, request)
    return replace(
        targets,
        n_left_out=len(too_short) + len(chosen) - len(kept),
        n_not_drawn=n_windows - len(chosen),
    )


def _of_windows(
    windows: Sequence[_Window], queries: list[str], tokenizer: Any, request: EvaluationRequest
) -> Targets:
    _, first, units = np.unique([each.row for each in windows], return_index=True, return_inverse=True)
    # A target follows its query, so the two are one text.
    whole = query_texts(tokenizer, [TargetPair([*each.pair.query, *each.pair.target], []) for each in windows])
    return Targets(
        metric="perplexity",
        unit="document",
        queries=queries,
        pairs=[each.pair for each in windows],
        units=units.astype(np.int64),
        unit_ids=[windows[place].document for place in first],
        forbidden=_forbidden(
            [(query, [both]) for query, both in zip(queries, whole, strict=True)], request.decontaminate
        ),
        n_left_out=0,
    )


def _token_ids(corpus: Corpus, tokenizer: Any, progress: Progress) -> Iterator[tuple[str, list[int]]]:
    """Id and tokens of every document, in row order."""
    progress.start("tokenize texts", total=len(corpus), unit="documents")
    for shard in corpus.shards:
        for table in row_groups(shard, ["id", "text"]):
            yield from zip(table["id"].to_pylist(), text_ids(tokenizer, table["text"].to_pylist()), strict=True)
            progress.advance(table.num_rows)


def _forbidden(texts: Sequence[tuple[str, list[str]]], against: Decontamination) -> list[list[str]] | None:
    """What no passage may contain, of each target: its query, and its query with what is scored."""
    if against == "off":
        return None
    return [[query, *(both if against == "query-and-answer" else [])] for query, both in texts]
