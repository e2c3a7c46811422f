"""What retrieved passages are worth to a language model: the NLL of text and of answers, with passages before it.

Retrieval in context (Ram et al. 2023, arXiv 2302.00083; MassiveDS, arXiv 2407.12854): the passages found for a
query are put before it, the best one next to it, and the loss counts on the target behind the query alone. Target
and query are the same tokens whatever is retrieved, so that two datastores are compared on the same loss:

    tokens that begin every text · passage k … passage 2 · passage 1 · query · target

A query and its target are either a window of a text (``perplexity_windows``) or a question with one of its
answers (``answer_pairs``). NLL is −log P in nats, and a perplexity exp(Σ NLL / Σ target tokens): one mean over
tokens, not a mean of means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError, DataError
from mixwright.language_models.responses import response_batch

if TYPE_CHECKING:
    from torch import Tensor

    from mixwright.language_models.loading import LoadedLanguageModel

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

WINDOW = 1024
STRIDE = 512

_BATCH_TOKENS = {"cpu": 2048, "cuda": 32_768}


class TargetPair(NamedTuple):
    """Token ids of a query, which passages are retrieved for, and of the target behind it. Neither is empty."""

    query: list[int]
    target: list[int]


class ContextSequence(NamedTuple):
    """What a model reads: ``ids``, of which the first ``n_context`` are context and the others the target.

    ``n_passage_tokens`` were retrieved, of which ``n_cut`` did not fit into the model.
    """

    ids: list[int]
    n_context: int
    n_passage_tokens: int
    n_cut: int

    @property
    def n_target(self) -> int:
        """Tokens that are scored."""
        return len(self.ids) - self.n_context


class CutCounts(NamedTuple):
    """Of all sequences: how many, those whose passages were cut, retrieved tokens, and those that were cut."""

    n_sequences: int
    n_cut_sequences: int
    n_passage_tokens: int
    n_cut_tokens: int


@dataclass(frozen=True)
class AnswerTemplate:
    """What a question becomes: ``question`` with ``{question}``, then ``answer`` with ``{answer}``.

    The white space between the two belongs to the answer, where most tokenizers have it too.
    """

    question: str = "Question: {question}\nAnswer:"
    answer: str = " {answer}"

    def __post_init__(self) -> None:
        for name in ("question", "answer"):
            if f"{{{name}}}" not in getattr(self, name):
                raise ConfigError(f"answer template: {name} has no {{{name}}} in it: write where it goes")


def perplexity_windows(ids: Sequence[int], window: int = WINDOW, stride: int = STRIDE) -> list[TargetPair]:
    """The windows of one text's n token ids: each ``stride`` tokens are a target, what precedes is the query.

    The query of a target is the ``window − stride`` tokens before it. The first target begins where a whole
    query is before it, or, in a text shorter than a window, where the query has the same share of the text:
    with 1024 and 512, half of it. From there on every token is a target exactly once, and the last target may
    be short. What precedes the first target is never a target: nothing could be retrieved for it. A text of
    fewer than two tokens has no window.

    Raises ConfigError unless 1 ≤ stride < window.
    """
    if not 1 <= stride < window:
        raise ConfigError(f"windows of {window} tokens, {stride} apart: the stride must be at least 1 and smaller")
    n_query = window - stride
    first = max(min(n_query, len(ids) * n_query // window), 1)
    return [
        TargetPair(list(ids[max(start - n_query, 0) : start]), list(ids[start : start + stride]))
        for start in range(first, len(ids), stride)
    ]


def answer_pairs(
    tokenizer: Any, questions: Sequence[str], answers: Sequence[str], template: AnswerTemplate
) -> list[TargetPair]:
    """The question as query and the answer as target, of n questions with one answer each.

    Both are tokenized together, as the model would see them; the tokens that the question alone does not begin
    with are the answer's. Raises DataError for an answer that is blank.
    """
    heads = [template.question.replace("{question}", question) for question in questions]
    tails = [template.answer.replace("{answer}", answer) for answer in answers]
    head_ids = text_ids(tokenizer, heads)
    whole_ids = text_ids(tokenizer, [head + tail for head, tail in zip(heads, tails, strict=True)])
    pairs = []
    for number, (head, whole) in enumerate(zip(head_ids, whole_ids, strict=True)):
        if not answers[number].strip() or len(whole) < 2:
            raise DataError(f"the question {questions[number]!r} has a blank answer: leave that answer out")
        # A tokenizer may join the two at their border: the answer keeps what is left of it.
        start = min(max(_common_length(head, whole), 1), len(whole) - 1)
        pairs.append(TargetPair(whole[:start], whole[start:]))
    return pairs


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Ids at the start of both."""
    differs = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other)))


def text_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, whole, without the tokens that the tokenizer puts around any text."""
    if not texts:
        return []
    options: dict[str, Any] = {"truncation": False, "padding": False, "verbose": False}
    encoded = tokenizer(list(texts), add_special_tokens=False, **options)
    return [list(ids) for ids in encoded["input_ids"]]


def passage_ids(tokenizer: Any, passages: Sequence[str], separator: str = "\n\n") -> list[list[int]]:
    """Token ids of passages as they stand in a context: each with the separator that parts it from the next."""
    return text_ids(tokenizer, [passage + separator for passage in passages])


def beginning_ids(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before every text: one that begins a text, or none."""
    bare = text_ids(tokenizer, ["a"])[0]
    whole = list(tokenizer("a")["input_ids"])
    return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare), [])


def query_texts(tokenizer: Any, pairs: Sequence[TargetPair]) -> list[str]:
    """The queries as text, for the retriever. A character that the window cuts through is left out."""
    options: dict[str, Any] = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return [str(tokenizer.decode(pair.query, **options)).strip("\N{REPLACEMENT CHARACTER}") for pair in pairs]


def context_sequence(
    pair: TargetPair, passages: Sequence[Sequence[int]], beginning: Sequence[int], max_positions: int | None
) -> ContextSequence:
    """A query and its target behind ``passages`` (``passage_ids``, best first), in reverse order.

    Where all of it is more than the model's ``max_positions`` (None: any number), passages are cut from the far
    end: the beginning of the worst one first. Query and target are never cut: raises ConfigError where they
    alone do not fit.
    """
    retrieved = list(chain.from_iterable(reversed(passages)))
    room = len(retrieved)
    if max_positions is not None:
        room = max_positions - len(beginning) - len(pair.query) - len(pair.target)
        if room < 0:
            raise ConfigError(
                f"a query of {len(pair.query):,} tokens and its target of {len(pair.target):,} do not fit into "
                f"the {max_positions:,} positions of the model: take a smaller window or shorter questions, "
                "or a model that reads more"
            )
    n_cut = max(len(retrieved) - room, 0)
    context = [*beginning, *retrieved[n_cut:], *pair.query]
    return ContextSequence([*context, *pair.target], len(context), len(retrieved), n_cut)


def cut_counts(sequences: Iterable[ContextSequence]) -> CutCounts:
    """How much of what was retrieved the model could not read."""
    counts = np.array([(1, each.n_cut > 0, each.n_passage_tokens, each.n_cut) for each in sequences])
    return CutCounts(*counts.reshape(-1, 4).sum(axis=0).astype(int).tolist())


def batch_budget(model: LoadedLanguageModel, asked: int | None = None) -> int:
    """Padded tokens a batch: what is asked for, else what suits the device, but not more than the model allows."""
    budget = asked or _BATCH_TOKENS[model.device]
    return min(budget, model.max_batch_tokens or budget)


def target_nll(
    model: LoadedLanguageModel,
    sequences: Sequence[ContextSequence],
    batches: Iterable[Int64Array],
    advance: Callable[[int], None] = lambda n: None,
) -> Float64Array:
    """The NLL of each sequence's target, summed over its tokens, in nats, shape (n,) float64.

    ``batches`` are numbers of sequences that are read together, each number once: the caller sorts by length
    (``length_batches``). ``advance`` is told of the sequences done. Raises DataError where the model gives a
    value that is not finite.
    """
    import torch

    sums = np.full(len(sequences), np.nan)
    for rows in batches:
        chosen = [sequences[row] for row in rows]
        with torch.inference_mode():
            values = _token_nll(model, chosen).double().cpu().numpy()
        lengths = np.array([each.n_target for each in chosen])
        sums[rows] = np.add.reduceat(values, np.cumsum(lengths) - lengths)
        advance(len(rows))
    if not np.isfinite(sums).all():
        raise DataError(
            f"model {model.name} gives a value that is not finite: mend its weights, or use --dtype float32 if it "
            "computes in half precision"
        )
    return sums


def _token_nll(model: LoadedLanguageModel, sequences: Sequence[ContextSequence]) -> Tensor:
    """−log P of the target tokens of all sequences, one after the other, by one forward pass; float32."""
    import torch

    ids, n_context = [each.ids for each in sequences], [each.n_context for each in sequences]
    batch = response_batch(ids, n_context, model.device)
    # Not all logits exist at once: a large vocabulary's would take more memory than the model.
    parts = (torch.split(each, model.block_positions) for each in (model.response_states(batch), batch.targets))
    cross_entropy = torch.nn.functional.cross_entropy
    return torch.cat(
        [
            cross_entropy(model.logits(part).float(), targets, reduction="none")
            for part, targets in zip(*parts, strict=True)
        ]
    )


def perplexity(nll: Float64Array, n_target: Int64Array) -> float:
    """exp(Σ NLL / Σ tokens) of sums (n,) in nats over ``n_target`` (n,) tokens each."""
    return float(np.exp(nll.sum() / n_target.sum()))


def likeliest_answers(nll: Float64Array, n_target: Int64Array, questions: Int64Array, n: int) -> Int64Array:
    """Of the right answers to each of n questions, the number of the one that the model finds likeliest, (n,).

    That is the smallest NLL per token, the first of several: a question is as well answered as its best answer
    is, and a longer answer is no worse for its length. ``questions`` (m,) says whose answer each is; −1 stands
    where a question has none.
    """
    order = np.lexsort((np.arange(len(nll)), nll / n_target, questions))
    found, first = np.unique(questions[order], return_index=True)
    best = np.full(n, -1, dtype=np.int64)
    best[found] = order[first]
    return best
