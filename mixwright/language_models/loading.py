"""Causal language models by name, and loaded.

Three kinds of name: the path of a folder that transformers can load, the path of a ``.gguf`` file, and a model
of the Hugging Face hub, taken from its local cache where it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixwright.errors import ConfigError, DataError, NotFoundError, first_line
from mixwright.fingerprint import file_sha256, folder_sha256
from mixwright.hub import cached_file, newest_revision
from mixwright.torch_runtime import has_bfloat16, no_loading_bars, torch_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mixwright.language_models.responses import ResponseBatch

_BLOCK_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits of one model that exist at a time, by device: positions times vocabulary."""

_OWN_LOGITS = {"cpu": 1 << 28, "cuda": 1 << 30}
"""The same of a model whose logits only its own forward pass can make: they exist for a whole batch."""


@dataclass(frozen=True)
class LanguageModelSource:
    """Where a language model is, without loading it.

    ``name`` finds it from any working directory; ``revision`` is the SHA-256 of its files, or its commit on the
    hub; ``path`` is its folder or its ``.gguf`` file (None: the hub).
    """

    name: str
    revision: str
    path: Path | None = None


class LoadedLanguageModel:
    """A causal language model in memory, for inference.

    ``vocabulary`` is the number of its logits, ``compute_dtype`` the arithmetic of its forward pass, ``device``
    cpu or cuda.
    """

    def __init__(self, name: str, model: Any, device: str) -> None:
        head = model.get_output_embeddings()
        if head is None:
            raise DataError(f"model {name} gives no logits: name a causal language model")
        self.name = name
        self.device = device
        self.vocabulary = int(head.weight.shape[0])
        self.compute_dtype = str(model.dtype).removeprefix("torch.")
        self._model = model
        # Most architectures' logits are the output embedding of the last hidden states; then they need not
        # exist at once for a whole batch. Others scale or cap them, and only their own code knows how.
        self._head = head if _head_alone_makes_logits(model, head) else None

    @property
    def block_positions(self) -> int:
        """Positions whose logits are to exist at a time."""
        return max(_BLOCK_LOGITS[self.device] // self.vocabulary, 1)

    @property
    def max_batch_tokens(self) -> int | None:
        """Padded tokens a batch may have, where the logits of all of them exist at once; None: any number."""
        return max(_OWN_LOGITS[self.device] // self.vocabulary, 1) if self._head is None else None

    def response_states(self, batch: ResponseBatch) -> Tensor:
        """One forward pass: what ``logits`` makes the logits of, at each of the batch's response tokens.

        Row i of the result stands for the distribution that response token i was to be drawn from.
        """
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
        if self._head is None:
            values: Tensor = self._model(**inputs).logits
        else:
            values = self._model.base_model(**inputs).last_hidden_state
        return values.flatten(0, 1)[batch.positions]

    def logits(self, states: Tensor) -> Tensor:
        """Logits (n, vocabulary) of n rows of ``response_states``."""
        if self._head is None:
            return states
        logits: Tensor = self._head(states)
        return logits


def find_language_model(name: str) -> LanguageModelSource:
    """Name and revision of a model, without torch and without loading it.

    Raises NotFoundError for a name that is nowhere, DataError for a folder that holds no model.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        path = path.resolve()
        return LanguageModelSource(str(path), file_sha256(path), path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(
                f"the folder {name} holds no model (no config.json): name the folder that save_pretrained wrote, "
                "or a .gguf file"
            )
        path = path.resolve()
        return LanguageModelSource(str(path), folder_sha256(path), path)
    if cached := cached_file(name, "config.json"):
        return LanguageModelSource(name, cached.parent.name)
    try:
        return LanguageModelSource(name, newest_revision(name))
    except NotFoundError as error:
        raise NotFoundError(
            f"model {name!r} is neither a folder, nor a .gguf file, nor on a reachable model hub: name one that is"
        ) from error


def load_language_model(
    source: LanguageModelSource, device: str = "auto", dtype: str = "auto"
) -> LoadedLanguageModel:
    """Load a model (a GGUF file must have been unpacked) onto a device.

    ``dtype`` is float32, bfloat16, float16, or auto: bfloat16 where the device computes in it, else float32.
    Raises ConfigError for a device that is not there, DataError for files that transformers cannot load, or
    that lack some of the weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    target = torch_device(device)
    wanted: torch.dtype = getattr(torch, dtype_on(target) if dtype == "auto" else dtype)
    options = {"dtype": wanted, "output_loading_info": True}
    model, report = read_pretrained(AutoModelForCausalLM.from_pretrained, source, options)
    if lacking := sorted([*report["missing_keys"], *report["mismatched_keys"]], key=str):
        # transformers would have filled them at random and gone on.
        raise DataError(
            f"model {source.name} lacks {len(lacking)} of its weights, {lacking[0]} for instance: save it again "
            "with save_pretrained"
        )
    return LoadedLanguageModel(source.name, model.to(target).eval(), target)


def weight_bytes(source: LanguageModelSource, dtype: str = "auto") -> int:
    """Bytes that the model's weights take in memory, by its configuration alone.

    Raises DataError for a configuration that is no causal language model's.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(name: str, **options: Any) -> Any:
        make_model: Any = AutoModelForCausalLM.from_config
        return make_model(AutoConfig.from_pretrained(name, **options))

    with torch.device("meta"):
        model = read_pretrained(make, source, {})
    wanted: torch.dtype = getattr(torch, dtype_on("cpu") if dtype == "auto" else dtype)
    return int(sum(each.numel() for each in model.parameters()) * wanted.itemsize)


def dtype_on(device: str) -> str:
    """The arithmetic that ``auto`` means on cpu or cuda."""
    return "bfloat16" if has_bfloat16(device) else "float32"


def check_files(source: LanguageModelSource) -> None:
    """Raise ConfigError unless this machine's folder of a model has the files that ``source`` was found with."""
    if source.path == Path(source.name) and find_language_model(source.name).revision != source.revision:
        raise ConfigError(
            f"model {source.name} has other files on the worker's machine: copy the same ones to every machine"
        )


def read_pretrained(load: Callable[..., Any], source: LanguageModelSource, options: Mapping[str, Any]) -> Any:
    """Call a ``from_pretrained`` of transformers, without bars; no code that comes with a model is run.

    Raises DataError with the reason in one line.
    """
    from safetensors import SafetensorError

    try:
        with no_loading_bars():
            if source.path is not None:
                return load(str(source.path), local_files_only=True, **options)
            try:
                return load(source.name, revision=source.revision, local_files_only=True, **options)
            except OSError:  # not in the local cache, or not all of it
                return load(source.name, revision=source.revision, **options)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise DataError(
            f"model {source.name}: transformers cannot load it ({first_line(error)}): mend its files or name "
            "another causal language model"
        ) from error


def _head_alone_makes_logits(model: Any, head: Any) -> bool:
    """True if the model's logits of a few tokens are, to the last bit, the head applied to its hidden states."""
    import torch

    if model.base_model is model:
        return False
    ids = torch.arange(8, device=model.device)[None] % int(head.weight.shape[0])
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        if states.shape[-1] != head.weight.shape[-1]:
            return False
        return torch.equal(head(states).float(), expected.float())
