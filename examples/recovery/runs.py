"""Recovery runs: each is one file, so that an interrupted experiment goes on where it was."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from recovery.data import Sample
from recovery.training import Recovery, recover, response_nll

Losses = dict[str, list[float]]
"""By sample id: the response's negative log-likelihood (nats, summed) and its number of tokens."""


@dataclass(frozen=True)
class Run:
    """One model trained, or with no samples left as it is, and evaluated. ``arm`` names what chose the samples."""

    arm: str
    seed: int
    lr: float
    samples: tuple[Sample, ...] = ()

    @property
    def file_name(self) -> str:
        """Unique to arm, seed, rate and choice."""
        digest = hashlib.sha256(" ".join(sorted(sample.id for sample in self.samples)).encode()).hexdigest()[:8]
        return f"{self.arm}.{self.seed}.{self.lr:g}.{digest}.json"


@dataclass(frozen=True)
class Bench:
    """What all runs share. ``model`` loads the model to start from; runs are kept in ``folder``."""

    model: str
    folder: Path
    recovery: Recovery
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]


@dataclass(frozen=True)
class Result:
    """What a run gave; ``seconds`` of training and evaluation."""

    arm: str
    seed: int
    lr: float
    n_samples: int
    n_tokens: int
    seconds: float
    validation: Losses
    test: Losses


def finished(bench: Bench, run: Run) -> Result | None:
    """The result of a run that was finished before."""
    path = bench.folder / run.file_name
    return Result(**json.loads(path.read_text())) if path.exists() else None


def execute(bench: Bench, runs: Sequence[Run], workers: int) -> Iterator[Result]:
    """Results as they come: those on disk first, and the others from ``workers`` processes of one thread each.

    One worker is this process, with all its threads.
    """
    missing = []
    for run in runs:
        if result := finished(bench, run):
            yield result
        else:
            missing.append(run)
    if workers == 1:
        yield from (_run(bench, run) for run in missing)
        return
    # One thread each: two OpenMP teams on the same cores would wait for each other.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        for future in as_completed([pool.submit(_run, bench, run) for run in missing]):
            yield future.result()


def _run(bench: Bench, run: Run) -> Result:
    start = time.perf_counter()
    model = load(bench.model, bench.recovery.device)
    if run.samples:
        model = recover(model, run.samples, bench.recovery, run.lr, run.seed)
    size, device = bench.recovery.batch_tokens, bench.recovery.device
    result = Result(
        arm=run.arm,
        seed=run.seed,
        lr=run.lr,
        n_samples=len(run.samples),
        n_tokens=sum(sample.n_tokens for sample in run.samples),
        validation=response_nll(model, bench.validation, size, device),
        test=response_nll(model, bench.test, size, device),
        seconds=round(time.perf_counter() - start, 1),
    )
    write_json(bench.folder / run.file_name, asdict(result))
    return result


def load(name: str, device: str) -> Any:
    """A model, in bfloat16 where the device computes in it."""
    from transformers import AutoModelForCausalLM

    from mixwright.language_models.loading import dtype_on
    from mixwright.torch_runtime import no_loading_bars

    with no_loading_bars():
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype_on(device)))
    return model.to(device)


def write_json(path: Path, value: Any) -> None:
    """Write a file that is whole or not there."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
