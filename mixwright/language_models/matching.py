"""Two models can be compared token by token only if they read and write the same tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

from mixwright.errors import DataError
from mixwright.language_models.loading import LanguageModelSource, read_pretrained

_PROBE = "Hello, world!  2 + 2 = 4\n\n\tdéjà vu — Ünïcödé 汉字 🙂 isn't\r\nfoo_bar(x)  ###"
"""Tokenizers with one vocabulary may still differ in how they normalize and split: this shows it."""


class SharedLimits(NamedTuple):
    """What two models share: the first ``vocabulary`` logits; texts of ``max_positions`` tokens (None: any)."""

    vocabulary: int
    max_positions: int | None


def read_tokenizer(source: LanguageModelSource) -> Any:
    """The model's tokenizer, of transformers; raises DataError for files that it cannot load."""
    from transformers import AutoTokenizer

    return read_pretrained(AutoTokenizer.from_pretrained, source, {})


def check_same_tokenizer(original: LanguageModelSource, pruned: LanguageModelSource) -> Any:
    """The tokenizer of both models; raises DataError naming both and what differs."""
    one, other = read_tokenizer(original), read_tokenizer(pruned)
    differs = (
        "their vocabularies differ"
        if one.get_vocab() != other.get_vocab()
        else "their special tokens differ"
        if any(getattr(one, each) != getattr(other, each) for each in ("bos_token", "eos_token", "unk_token"))
        else "they split text differently"
        if one(_PROBE)["input_ids"] != other(_PROBE)["input_ids"]
        else None
    )
    if differs:
        raise DataError(
            f"models {original.name} and {pruned.name} have not the same tokenizer ({differs}): compare a model "
            "with one pruned from it, and give both the original's tokenizer files"
        )
    return one


def shared_limits(original: LanguageModelSource, pruned: LanguageModelSource, tokenizer: Any) -> SharedLimits:
    """What both models can do.

    Models pad their vocabularies to round numbers, and not always to the same: only the shared part counts.
    Raises DataError where it does not cover the tokenizer.
    """
    from transformers import AutoConfig

    configs = [
        read_pretrained(AutoConfig.from_pretrained, each, {}).get_text_config() for each in (original, pruned)
    ]
    n_tokens = max(tokenizer.get_vocab().values()) + 1
    for source, config in zip((original, pruned), configs, strict=True):
        if config.vocab_size < n_tokens:
            raise DataError(
                f"model {source.name} has {config.vocab_size:,} logits and its tokenizer {n_tokens:,} tokens: "
                "give it the tokenizer it was made with"
            )
    positions = [limit for config in configs if (limit := getattr(config, "max_position_embeddings", None))]
    return SharedLimits(min(config.vocab_size for config in configs), min(positions, default=None))
