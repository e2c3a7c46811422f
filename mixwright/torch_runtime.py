"""What every model that runs in torch needs: its device, its precision, and silence while it loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mixwright.errors import ConfigError


def torch_device(device: str) -> str:
    """``cpu`` or ``cuda``; ``auto`` is a GPU where torch can use one.

    Raises ConfigError for a GPU that is not there.
    """
    import torch

    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise ConfigError("device cuda: torch sees no GPU: use device cpu, or install torch for CUDA")
    return "cuda" if cuda and device != "cpu" else "cpu"


def has_bfloat16(device: str) -> bool:
    """True if the device multiplies bfloat16 matrices: most GPUs, and CPUs with AVX512_BF16 (or AMX, beside it).

    Elsewhere torch emulates them, several times slower than float32.
    """
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """Keep the progress bars of transformers away inside the block."""
    import transformers

    logging: Any = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
