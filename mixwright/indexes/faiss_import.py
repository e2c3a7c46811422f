"""The one door to FAISS: which library, which device, how many threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from mixwright.errors import ConfigError, MissingExtraError

_THRESHOLD_OF_1_15 = 128_000
_THRESHOLD = 8_000

Device = Literal["auto", "cpu", "gpu"]


def import_faiss() -> Any:
    """The module ``faiss``; raises MissingExtraError with the pip command where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss-cpu", "cpu") from error
    # FAISS 1.15 multiplies matrices from q · d = 128,000 on, a number measured on 80 threads and more; on few
    # threads that leaves a batch of 64 queries five times slower than it needs to be (facebookresearch/faiss
    # pull request 5109). Other versions have another rule, and are left alone.
    if faiss.cvar.distance_compute_blas_threshold == _THRESHOLD_OF_1_15:
        faiss.cvar.distance_compute_blas_threshold = _THRESHOLD
    return faiss


def gpu_count() -> int:
    """GPUs that FAISS can use: 0 for faiss-cpu, and for faiss-gpu on a machine that has none."""
    return int(import_faiss().get_num_gpus())


def resolve_device(device: Device) -> Literal["cpu", "gpu"]:
    """``auto`` is the GPU where there is one.

    Raises ConfigError for ``gpu`` without one: FAISS itself would go on silently with an empty index.
    """
    n_gpus = gpu_count()
    if device == "gpu" and n_gpus == 0:
        raise ConfigError(
            "device gpu: FAISS sees no GPU: use device cpu, or a machine with a GPU and 'mixwright[gpu]' "
            "installed in place of 'mixwright[cpu]'"
        )
    return "gpu" if n_gpus and device != "cpu" else "cpu"


@contextmanager
def threads(n: int | None) -> Iterator[None]:
    """Run FAISS with ``n`` threads inside the block; None leaves the number as it is."""
    faiss = import_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(n or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
