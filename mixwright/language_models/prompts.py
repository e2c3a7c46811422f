"""Prompts and responses to token ids, and where the response begins.

What is compared are the distributions over the response's tokens, so its first token must be known exactly. The
conversation is tokenized as a whole, as a trainer does it, and once more up to the response; the response begins
where the two differ. A token that the end of the prompt and the beginning of the response share is the
response's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError, DataError, first_line

Int64Array = npt.NDArray[np.int64]
ChosenFormat = Literal["chat", "plain", "none"]
Status = Literal["scored", "empty_response", "too_long"]
STATUSES: tuple[Status, ...] = ("scored", "empty_response", "too_long")

_PLAIN = "### Instruction:\n{prompt}\n\n### Response:\n"

_DATE = "01 Jan 2025"
"""Some models' chat templates write today's date into the prompt; the same data must give the same scores."""


class TokenizedPairs(NamedTuple):
    """n prompts and responses: ``ids`` of each pair as a whole, of which the first ``n_prompt`` (n,) are context
    and the other ``n_response`` (n,) are what is scored, if ``status`` is scored."""

    ids: list[list[int]]
    n_prompt: Int64Array
    n_response: Int64Array
    status: list[Status]


def choose_format(
    tokenizer: Any, asked: Literal["auto", "chat", "plain", "none"], *, has_prompts: bool
) -> ChosenFormat:
    """The prompt format: ``auto`` is chat where the tokenizer has a chat template, else plain, and none for
    documents without a prompt.

    Raises ConfigError for chat without a chat template.
    """
    if asked == "chat" and not tokenizer.chat_template:
        raise ConfigError("prompt format chat: the original's tokenizer has no chat template: use plain or none")
    if asked != "auto":
        return asked
    if not has_prompts:
        return "none"
    return "chat" if tokenizer.chat_template else "plain"


def tokenize_pairs(
    tokenizer: Any,
    prompts: Sequence[str],
    responses: Sequence[str],
    prompt_format: ChosenFormat,
    max_tokens: int | None,
) -> TokenizedPairs:
    """Token ids of n prompts with their responses.

    - ``chat``: the prompt is the user's turn, the response the assistant's, by the tokenizer's chat template;
      the token that ends the turn counts as the response's, what the template puts behind it does not.
    - ``plain``: ``### Instruction:``, the prompt, ``### Response:``, the response.
    - ``none``: the prompt, and the response directly behind it.

    A blank response is ``empty_response``, a pair of more than ``max_tokens`` tokens ``too_long``. Without any
    context (no prompt, and a tokenizer that begins a text with no token) the response's first token is taken as
    context. Raises DataError where the chat template refuses a conversation.
    """
    if prompt_format == "chat":
        heads, wholes = _conversations(tokenizer, prompts, responses)
    else:
        frame = _PLAIN if prompt_format == "plain" else "{prompt}"
        heads = [frame.replace("{prompt}", prompt) for prompt in prompts]
        wholes = [head + response for head, response in zip(heads, responses, strict=True)]
    head_ids = _encode(tokenizer, heads, special=prompt_format != "chat")
    whole_ids = _encode(tokenizer, wholes, special=prompt_format != "chat")
    if prompt_format == "chat":
        whole_ids = [_without_what_follows_the_turn(tokenizer, ids) for ids in whole_ids]
    n_prompt = np.array([_common(*pair) for pair in zip(head_ids, whole_ids, strict=True)], dtype=np.int64)
    n_ids = np.array([len(ids) for ids in whole_ids], dtype=np.int64)
    n_prompt = np.where((n_prompt == 0) & (n_ids > 0), 1, n_prompt)
    blank = np.array([not response.strip() for response in responses], dtype=np.bool_)
    n_response = np.where(blank, 0, n_ids - n_prompt)
    limit = n_ids.max(initial=0) if max_tokens is None else max_tokens
    status: list[Status] = [
        "empty_response" if n == 0 else "too_long" if total > limit else "scored"
        for n, total in zip(n_response, n_ids, strict=True)
    ]
    return TokenizedPairs(whole_ids, n_prompt, n_response, status)


def _conversations(
    tokenizer: Any, prompts: Sequence[str], responses: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Each conversation up to the assistant's answer, and whole, as the chat template writes it."""
    from jinja2.exceptions import TemplateError

    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    answered = [
        [*turns, {"role": "assistant", "content": response}]
        for turns, response in zip(asked, responses, strict=True)
    ]
    if not asked:
        return [], []
    options: dict[str, Any] = {"tokenize": False, "date_string": _DATE}
    try:
        return (
            tokenizer.apply_chat_template(asked, add_generation_prompt=True, **options),
            tokenizer.apply_chat_template(answered, **options),
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(
            f"the chat template of the original's tokenizer fails ({first_line(error)}): use --prompt-format plain"
        ) from error


def _encode(tokenizer: Any, texts: list[str], *, special: bool) -> list[list[int]]:
    """Ids of each text, whole; ``special`` adds the tokens that the tokenizer puts around any text."""
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=special, truncation=False, padding=False, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]


def _without_what_follows_the_turn(tokenizer: Any, ids: list[int]) -> list[int]:
    """The ids without the white space that a template puts behind the token that ends the turn."""
    end = len(ids)
    special = tokenizer.all_special_ids
    while end and ids[end - 1] not in special and not tokenizer.decode(ids[end - 1]).strip():
        end -= 1
    return ids[:end] if end and ids[end - 1] in special else ids


def _common(head: list[int], whole: list[int]) -> int:
    """Number of ids at the start that are the same."""
    if whole[: len(head)] == head:
        return len(head)
    return next(i for i, (one, other) in enumerate(zip(head, [*whole, -1], strict=False)) if one != other)
