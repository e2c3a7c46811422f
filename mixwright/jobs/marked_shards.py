"""Jobs that go over a corpus one shard at a time, on as many workers as there are.

A finished shard is a file and then a mark that has its checksum, each written under another name, synced and
renamed. A run that is killed, at any moment, leaves them in the staging folder, and the next run of the same
request goes on with what is missing.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mixwright.corpora import Corpus
from mixwright.errors import ConfigError
from mixwright.fingerprint import file_sha256
from mixwright.jobs.ray_pool import cpu_count, ray_session, run_on_pool
from mixwright.progress import Progress
from mixwright.schemas.manifests import FileEntry

_REPORT_SECONDS = 0.2


class ShardMark(BaseModel):
    """A shard is finished; jobs add what their manifest says of it. ``files`` are under the folder's root."""

    model_config = ConfigDict(frozen=True)

    n_rows: int
    files: list[FileEntry]


MarkT = TypeVar("MarkT", bound=ShardMark)


@dataclass(frozen=True)
class ShardFolder(Generic[MarkT]):
    """``shards/part-00000.SUFFIX`` and ``marks/part-00000.json`` under ``root``, for each shard of a corpus.

    ``name`` is written for ``shards``. Without a suffix a shard is a folder of files. ``beside`` are further
    files that every shard has, as (folder, suffix).
    """

    root: Path
    suffix: str
    mark_type: type[MarkT]
    name: str = "shards"
    beside: tuple[tuple[str, str], ...] = ()

    def path(self, shard: str) -> Path:
        """The file, or the folder, of a shard."""
        return _with_suffix(self.root / self.name, shard, self.suffix)

    def paths_beside(self, shard: str) -> list[Path]:
        """The further files of a shard."""
        return [_with_suffix(self.root / folder, shard, suffix) for folder, suffix in self.beside]

    def prepare(self) -> None:
        """Make the folders, and remove what a killed run left half written."""
        self.tidy()
        folders = (self.root / self.name, self._marks, *(self.root / each for each, _ in self.beside))
        for folder in (self._temporary, *folders):
            folder.mkdir(parents=True, exist_ok=True)

    def tidy(self) -> None:
        """Remove what is half written."""
        shutil.rmtree(self._temporary, ignore_errors=True)

    def mark(self, shard: str) -> MarkT:
        """The mark of a finished shard; raises FileNotFoundError, and ValidationError for one that is damaged."""
        return self.mark_type.model_validate_json(self._mark_path(shard).read_bytes())

    def finished(self, shards: Mapping[str, int]) -> dict[str, MarkT]:
        """The marks of those shards (their names, and their numbers of rows) whose files are there and whole."""
        marks = {}
        for shard, n_rows in shards.items():
            with suppress(FileNotFoundError, ValidationError):
                mark = self.mark(shard)
                if mark.n_rows == n_rows and all(
                    each == self._entry(self.root / each.path) for each in mark.files
                ):
                    marks[shard] = mark
        return marks

    @contextmanager
    def writing(self, shard: str, beside: int | None = None) -> Iterator[BinaryIO]:
        """A file of a shard, its own or one beside, open for writing; it is there once the block has ended."""
        path = self.path(shard) if beside is None else self.paths_beside(shard)[beside]
        with self._whole(path) as file:
            yield file

    @contextmanager
    def filling(self, shard: str) -> Iterator[Path]:
        """An empty folder to fill with the files of a shard; they are there only once the block has ended well."""
        temporary = self._temporary / f"{self.name}-{shard}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(self.path(shard), ignore_errors=True)
        temporary.rename(self.path(shard))

    def finish(self, shard: str, n_rows: int, **about: Any) -> None:
        """Say that the files of a shard are complete; ``about`` are the fields that the job's mark adds."""
        own = self.path(shard)
        paths = [*(sorted(own.iterdir()) if own.is_dir() else [own]), *self.paths_beside(shard)]
        mark = self.mark_type(n_rows=n_rows, files=[self._entry(path) for path in paths], **about)
        with self._whole(self._mark_path(shard)) as file:
            file.write(mark.model_dump_json().encode())

    def entries(self, marks: Mapping[str, MarkT]) -> list[FileEntry]:
        """The shards' files for a manifest, in the order of the marks."""
        return [
            entry.model_copy(update={"n_rows": mark.n_rows}) for mark in marks.values() for entry in mark.files
        ]

    @property
    def _temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def _marks(self) -> Path:
        return self.root / "marks" / self.name if self.name != "shards" else self.root / "marks"

    def _mark_path(self, shard: str) -> Path:
        return self._marks / f"{shard}.json"

    def _entry(self, path: Path) -> FileEntry:
        relative = path.relative_to(self.root).as_posix()
        return FileEntry(path=relative, n_bytes=path.stat().st_size, sha256=file_sha256(path))

    @contextmanager
    def _whole(self, path: Path) -> Iterator[BinaryIO]:
        temporary = self._temporary / f"{path.parent.name}-{path.name}.{os.getpid()}"
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)


def _with_suffix(folder: Path, shard: str, suffix: str) -> Path:
    return folder / (f"{shard}.{suffix}" if suffix else shard)


@dataclass(frozen=True)
class Workers:
    """The Ray actors of a job: ``actor(*arguments, device)``, with the methods that ``run_on_pool`` calls.

    ``number`` None means one a core, or one a GPU; ``memory`` is what each needs, in bytes, as far as it is
    known: Ray starts no more of them on a machine than fit.
    """

    actor: type
    arguments: tuple[Any, ...]
    device: Literal["auto", "cpu", "cuda"]
    number: int | None
    memory: int = 0


def shards_of(corpus: Corpus) -> dict[str, int]:
    """Name and number of rows of each shard of a corpus, in row order."""
    paths, entries = corpus.shards, corpus.manifest.shards
    return {path.stem: entry.n_rows or 0 for path, entry in zip(paths, entries, strict=True)}


def finish_shards(
    folder: ShardFolder[MarkT],
    shards: Mapping[str, int],
    workers: Workers,
    stage: str,
    progress: Progress,
    unit: str = "documents",
) -> dict[str, MarkT]:
    """Do the shards that no earlier run finished; returns the marks of all.

    A worker's ``run(shard)`` leaves the shard finished in ``folder`` and yields the number of rows done so far.
    """
    folder.prepare()
    marks = folder.finished(shards)
    progress.start(stage, total=sum(shards.values()), unit=unit)
    progress.advance(sum(mark.n_rows for mark in marks.values()))
    missing = [shard for shard in shards if shard not in marks]
    if missing:
        with ray_session(max(cpu_count(), workers.number or 1)):
            _run(workers, missing, progress)
    folder.tidy()
    return {shard: marks.get(shard) or folder.mark(shard) for shard in shards}


def paced(batches: Iterator[int]) -> Iterator[int]:
    """From rows done in each batch to rows done so far, a few times a second and at the end."""
    done, reported = 0, time.monotonic()
    for n in batches:
        done += n
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            yield done
    yield done


def use_one_thread() -> None:
    """For a worker on the CPU, before it imports torch: there is a worker a core, so one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _run(workers: Workers, missing: list[str], progress: Progress) -> None:
    import ray

    size, device, resources = _placement(workers, len(missing))
    actor = ray.remote(**resources)(workers.actor)

    def create() -> Any:
        return actor.remote(*workers.arguments, device)

    # A shard that another worker takes over is counted from its start again: report only what is new.
    reported = dict.fromkeys(missing, 0)
    for shard, done in run_on_pool(create, missing, size, progress):
        progress.advance(max(done - reported[shard], 0))
        reported[shard] = max(done, reported[shard])


def _placement(workers: Workers, n_shards: int) -> tuple[int, str, dict[str, Any]]:
    """Number of workers, their device, and what each takes of Ray: a GPU, or a core, and memory."""
    import ray

    total = ray.cluster_resources()
    gpus, cpus = int(total.get("GPU", 0)), max(int(total.get("CPU", 1)), 1)
    # A worker that needs more than the largest machine has is started all the same, alone.
    largest = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
    resources: dict[str, Any] = {"num_cpus": 1}
    if workers.memory:
        resources["memory"] = int(min(workers.memory, largest))
    device = workers.device
    if device == "auto":
        device = "cuda" if gpus and _torch_sees_gpu() else "cpu"
    if device == "cpu":
        return min(n_shards, workers.number or cpus), "cpu", resources
    if not gpus:
        raise ConfigError("device cuda: Ray sees no GPU: use device cpu, or a machine that has one")
    return min(n_shards, workers.number or gpus, gpus), "cuda", resources | {"num_gpus": 1}


def _torch_sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
