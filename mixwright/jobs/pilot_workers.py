"""The Ray actors of the pilot job: one training after the other, each scored on the validation corpus."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from mixwright.corpora import Corpus, field_expression, id_bits
from mixwright.errors import DataError
from mixwright.indexes.embeddings import Embeddings
from mixwright.jobs.marked_shards import ShardFolder, ShardMark, use_one_thread
from mixwright.jobs.train_command import TrainCommand
from mixwright.language_models.ngram import NgramModel
from mixwright.schemas.mixtures import Budget
from mixwright.schemas.training_runs import Unit
from mixwright.selectors.mixture import Mixture, mix
from mixwright.selectors.ordering import interleave
from mixwright.selectors.pool import Pool, Source
from mixwright.selectors.streams import ROW_SCHEMA, to_ndjson
from mixwright.store import Store

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

MAX_UNITS = 200_000
"""Validation units of which likelihoods are kept; of more, as many at equal distances."""

_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class PilotRun:
    """One training. ``weights`` (k,) are the shares of the pool's sources, and sum to 1."""

    name: str
    weights: tuple[float, ...]
    size: int
    seed: int
    keeps_likelihoods: bool = False


@dataclass(frozen=True)
class PilotPlan:
    """What a worker is told beside its folder.

    ``embeddings`` and ``validation_embeddings`` are the refs of those of the linear probe, ``label`` its field.
    """

    store: Store
    sources: tuple[str, ...]
    validation: str
    evaluator: str
    unit: Unit
    max_epochs: float
    order: int
    label: str | None
    embeddings: dict[str, str]
    command: TrainCommand | None
    runs: dict[str, PilotRun]


class PilotMark(ShardMark):
    """A training is scored."""


class Outcome(NamedTuple):
    """The score of a training; ``likelihoods`` (u,): the probability it gives each validation unit, if known."""

    score: float
    likelihoods: FloatArray | None = None


class Evaluator(Protocol):
    """Trains on a mixture of a pool, and scores."""

    def evaluate(self, run: PilotRun, pool: Pool, mixture: Mixture) -> Outcome: ...


def pilot_mixture(pool: Pool, run: PilotRun, unit: Unit, max_epochs: float) -> Mixture:
    """What a run trains on: sources without a share in it are left out. Raises ShortfallError."""
    used = [number for number, weight in enumerate(run.weights) if weight > 0]
    part = replace(pool, sources=tuple(pool.sources[number] for number in used))
    weights = np.array([run.weights[number] for number in used])
    budget = Budget(tokens=run.size) if unit == "tokens" else Budget(documents=run.size)
    return mix(part, budget, weights, selector="pilot", max_epochs=max_epochs, seed=run.seed)


def mixture_rows(pool: Pool, mixture: Mixture) -> Iterator[pa.Table]:
    """The rows of a mixture of one stage that is not published, in the order of its stream (ROW_SCHEMA)."""
    (stage,) = mixture.stages
    for start in range(0, mixture.n_rows, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, mixture.n_rows)
        component, ordinal = interleave(np.asarray(stage.counts), start, stop)
        parts, places = [], []
        for number in np.unique(component):
            here = np.flatnonzero(component == number)
            rows, epochs = mixture.selections[number].served(ordinal[here], mixture.seed, int(number))
            parts.append(_rows(_source(pool, mixture, number), stage.name, rows, epochs))
            places.append(here)
        table = pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(places))))
        yield table.set_column(0, ROW_SCHEMA.field("position"), pa.array(np.arange(start, stop)))


def _rows(source: Source, stage: str, rows: Int64Array, epochs: Int64Array) -> pa.Table:
    documents, n = source.reader(rows), len(rows)
    columns = {
        "position": pa.array(rows),
        "stage": pa.repeat(stage, n),
        "component": pa.repeat(source.name, n),
        "epoch": pa.array(epochs),
        "tag_text": pa.array([""] * n, type=pa.large_string()),
    }
    return pa.table(
        {name: columns[name] if name in columns else documents[name] for name in ROW_SCHEMA.names},
        schema=ROW_SCHEMA,
    )


def _source(pool: Pool, mixture: Mixture, component: int) -> Source:
    return next(each for each in pool.sources if each.ref == mixture.components[component].source)


def served_rows(pool: Pool, mixture: Mixture) -> Iterator[tuple[Source, Int64Array, Int64Array]]:
    """Of each component: its source, the rows (n,) that it serves, and how often each (n,)."""
    for number, selection in enumerate(mixture.selections):
        source = _source(pool, mixture, number)
        counts = np.zeros(len(source.n_tokens), dtype=np.int64)
        counts[slice(None) if selection.rows is None else selection.rows] += selection.passes
        counts[selection.remainder] += 1
        rows = np.flatnonzero(counts)
        yield source, rows, counts[rows]


def evenly(values: FloatArray, limit: int = MAX_UNITS) -> FloatArray:
    """All of the values (n,), or ``limit`` of them at equal distances."""
    if len(values) <= limit:
        return values
    return values[np.arange(limit, dtype=np.int64) * len(values) // limit]


class PilotWorker:
    """Trains and scores; keeps the pool and the validation corpus in memory from the first run on."""

    def __init__(self, plan: PilotPlan, folder: ShardFolder[PilotMark], device: str) -> None:
        self._plan = plan
        self._folder = folder
        if plan.evaluator != "command":
            use_one_thread()

    def ready(self) -> None:
        """Answers as soon as Ray has found room for this worker."""

    def run(self, name: str) -> Iterator[int]:
        """Do one run; yields 1 at its end."""
        run, began = self._plan.runs[name], time.monotonic()
        mixture = pilot_mixture(self._pool, run, self._plan.unit, self._plan.max_epochs)
        outcome = self._evaluator.evaluate(run, self._pool, mixture)
        kept = outcome.likelihoods if run.keeps_likelihoods and outcome.likelihoods is not None else np.empty(0)
        with self._folder.writing(name) as file:
            np.savez(
                file,
                score=np.float64(outcome.score),
                seconds=np.float64(time.monotonic() - began),
                likelihoods=evenly(kept).astype(np.float32),
            )
        self._folder.finish(name, 1)
        yield 1

    @cached_property
    def _pool(self) -> Pool:
        return Pool.open(self._plan.store, self._plan.sources)

    @cached_property
    def _evaluator(self) -> Evaluator:
        validation = Corpus.open(self._plan.store, self._plan.validation)
        if self._plan.command is not None:
            return _Command(self._plan.command, self._plan.unit, validation, self._folder.root)
        if self._plan.evaluator == "linear_probe":
            return _Probe(self._plan.store, self._plan, validation)
        return _Ngram(self._plan.order, validation)


class _Ngram:
    """A byte n-gram model; bits a byte of the validation texts."""

    def __init__(self, order: int, validation: Corpus) -> None:
        self._order = order
        self._texts = _texts(validation.scan())

    def evaluate(self, run: PilotRun, pool: Pool, mixture: Mixture) -> Outcome:
        texts: list[str] = []
        for source, rows, counts in served_rows(pool, mixture):
            found = source.reader(rows)["text"].to_pylist()
            texts += [text for text, count in zip(found, counts, strict=True) for _ in range(count)]
        likelihoods = NgramModel.train(texts, self._order).probabilities(self._texts)
        return Outcome(float(-np.log2(likelihoods).mean()), likelihoods)


class _Probe:
    """A linear classifier of embeddings; accuracy on the validation documents that have a label."""

    def __init__(self, store: Store, plan: PilotPlan, validation: Corpus) -> None:
        self._label = plan.label or ""
        self._labels: dict[str, npt.NDArray[np.object_]] = {}
        self._vectors = {ref: Embeddings.open(store, each) for ref, each in plan.embeddings.items()}
        # By id where only a part of a corpus is embedded; None where rows are rows.
        self._parts = {ref: _part_ids(store, ref, each) for ref, each in self._vectors.items()}
        self._truth = labels_of(validation.scan(), self._label)
        self._labelled = np.flatnonzero(self._truth != None)  # noqa: E711  # element by element
        self._validation = self._vectors[validation.manifest.ref].rows(self._labelled)

    def evaluate(self, run: PilotRun, pool: Pool, mixture: Mixture) -> Outcome:
        from mixwright.selectors.projektor.linear_probe import linear_probe

        vectors, labels, weights = [], [], []
        for source, rows, counts in served_rows(pool, mixture):
            if source.ref not in self._labels:
                self._labels[source.ref] = labels_of(source.frame, self._label)
            here = self._labels[source.ref][rows]
            labelled = np.flatnonzero(here != None)  # noqa: E711  # element by element
            vectors.append(self._of(source, rows[labelled]))
            labels.extend(here[labelled].tolist())
            weights.append(counts[labelled])
        if not labels:
            raise DataError(f"{run.name}: no document of its mixture has a label: raise the sizes or add labels")
        return Outcome(
            *linear_probe(
                np.concatenate(vectors),
                labels,
                np.concatenate(weights),
                self._validation,
                self._truth[self._labelled].tolist(),
            )
        )

    def _of(self, source: Source, rows: Int64Array) -> npt.NDArray[np.float32]:
        """Vectors (n, d) of these rows of a source."""
        ids = self._parts[source.ref]
        if ids is not None:
            order = np.argsort(ids)
            rows = order[np.searchsorted(ids[order], source.ids[rows])]
        return self._vectors[source.ref].rows(rows)


def _part_ids(store: Store, ref: str, embeddings: Embeddings) -> npt.NDArray[np.uint64] | None:
    """The ids of the documents that are embedded, where they are a part of the corpus ``ref``."""
    corpus = Corpus.open(store, embeddings.manifest.corpus)
    embeddings.check_aligned(corpus)
    if corpus.manifest.ref == ref:
        return None
    return corpus.scan().select(id_bits()).collect().to_series().to_numpy()


class _Command:
    """A program that trains and scores."""

    def __init__(self, command: TrainCommand, unit: Unit, validation: Corpus, root: Path) -> None:
        self._command = command
        self._unit = unit
        self._validation = validation
        self._root = root

    def evaluate(self, run: PilotRun, pool: Pool, mixture: Mixture) -> Outcome:
        # A folder of this attempt's own: a killed one may have left a score, or be still at work.
        folder = self._root / "work" / f"{run.name}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        (self._root / "logs").mkdir(exist_ok=True)
        paths = {
            "mixture": folder / "mixture.json",
            "rows": folder / "rows.jsonl",
            "validation": folder / "validation.jsonl",
            "score": folder / "score",
        }
        self._write(paths, run, pool, mixture)
        values = {**paths, "size": run.size, "seed": run.seed}
        score = self._command.run(run.name, values, self._root / "logs" / run.name)
        shutil.rmtree(folder, ignore_errors=True)
        return Outcome(score)

    def _write(self, paths: dict[str, Path], run: PilotRun, pool: Pool, mixture: Mixture) -> None:
        about = {
            "weights": dict(zip((source.name for source in pool.sources), run.weights, strict=True)),
            "sources": {source.name: source.ref for source in pool.sources},
            "size": run.size,
            "unit": self._unit,
            "seed": run.seed,
        }
        paths["mixture"].write_text(json.dumps(about, indent=2) + "\n", "utf-8")
        if self._command.mentions("rows"):
            with paths["rows"].open("wb") as file:
                file.writelines(to_ndjson(table) for table in mixture_rows(pool, mixture))
        if self._command.mentions("validation"):
            with paths["validation"].open("wb") as file:
                for start in range(0, len(self._validation), _BLOCK_ROWS):
                    file.write(to_ndjson(self._validation.rows(start, _BLOCK_ROWS)))


def labels_of(frame: pl.LazyFrame, label: str) -> npt.NDArray[np.object_]:
    """The label of each document (n,) as a string, None where it has none or a blank one."""
    values = frame.select(field_expression(label).alias("label")).collect()["label"]
    blank = [value is None or not value.strip() for value in values]
    found = np.empty(len(values), dtype=object)
    found[:] = [None if empty else value for empty, value in zip(blank, values, strict=True)]
    return found


def _texts(frame: pl.LazyFrame) -> Sequence[str]:
    return frame.select("text").collect()["text"].to_list()
