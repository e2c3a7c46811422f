"""GGUF files: dequantized once, and kept as an ordinary model folder that loads in a second."""

from __future__ import annotations

import shutil
from contextlib import redirect_stderr
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from os import getpid
from pathlib import Path
from typing import Any

from mixwright.errors import MissingExtraError
from mixwright.language_models.loading import LanguageModelSource, read_pretrained
from mixwright.progress import Progress


def unpack_gguf(source: LanguageModelSource, cache: Path, progress: Progress) -> LanguageModelSource:
    """The model in float32 under ``cache/models/SHA256``, made there at the first use; other models as they are.

    Raises MissingExtraError without the libraries that read GGUF, DataError for a file transformers cannot read.
    """
    if source.path is None or source.path.suffix != ".gguf":
        return source
    folder = cache.resolve() / "models" / source.revision
    if not folder.exists():
        for library in ("gguf", "accelerate"):
            if find_spec(library) is None:
                raise MissingExtraError(library, "gguf")
        progress.note(f"unpacking {source.name} into {folder}, this once")
        temporary = folder.with_name(f"{folder.name}.{getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        # transformers writes bars and advice there, also where they are turned off.
        with redirect_stderr(StringIO()):
            _dequantize(source, source.path, temporary)
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)
    return replace(source, path=folder)


def _dequantize(source: LanguageModelSource, file: Path, folder: Path) -> None:
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": file.name}
    folder_source = replace(source, path=file.parent)
    tokenizer = read_pretrained(transformers.AutoTokenizer.from_pretrained, folder_source, options)
    if hasattr(transformers, "GgufConfig"):
        # Newer versions leave the weights in their blocks unless told otherwise.
        options["quantization_config"] = transformers.GgufConfig(gguf_file=file.name, dequantize=True)
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = read_pretrained(load, folder_source, options | {"dtype": torch.float32})
    # transformers does not save a model that remembers having been quantized: its weights go into one that
    # does not.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    from_config: Any = transformers.AutoModelForCausalLM.from_config
    with torch.device("meta"):
        plain = from_config(model.config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
