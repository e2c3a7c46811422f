"""Reading results: what small trainings scored, published by a job or in a table of the user's own."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from mixwright.errors import DataError, first_line
from mixwright.schemas.manifests import ResultsManifest
from mixwright.schemas.training_runs import Metric, TrainingRun
from mixwright.store import Store

RUNS_FILE = "runs.parquet"
LIKELIHOODS_FILE = "likelihoods.npy"
WEIGHT_PREFIX = "weight:"


class Results:
    """Published results: ``manifest`` and the runs behind it."""

    def __init__(self, manifest: ResultsManifest, directory: Path) -> None:
        self.manifest = manifest
        self.directory = directory

    @classmethod
    def open(cls, store: Store, reference: str) -> Results:
        """Open results by reference; raises NotFoundError."""
        manifest = store.manifest(reference, "results")
        if not isinstance(manifest, ResultsManifest):
            raise DataError(f"{reference} is not results: name results")
        return cls(manifest, store.directory(manifest))

    def __len__(self) -> int:
        return self.manifest.n_rows

    def table(self) -> pl.DataFrame:
        """One row a run: ``weight:NAME`` of each source, ``size``, ``score``, ``seed``, ``seconds``.

        Raises DataError for a file that is missing or damaged.
        """
        try:
            return pl.read_parquet(self.directory / RUNS_FILE)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(
                f"results {self.manifest.ref}: {RUNS_FILE} is missing or damaged: make them again"
            ) from (error)

    def runs(self) -> list[TrainingRun]:
        """The runs, in the order of the table; every run has a weight for every source."""
        return [
            TrainingRun(weights=weights_of(row, self.manifest.sources), size=row["size"], score=row["score"])
            for row in self.table().iter_rows(named=True)
        ]

    def likelihoods(self) -> npt.NDArray[np.float32] | None:
        """(u, m): the probability that the model of each source alone gives each of u validation units.

        None where the results have none. Raises DataError for a file that is missing or damaged.
        """
        if not self.manifest.likelihoods:
            return None
        try:
            found: npt.NDArray[np.float32] = np.load(self.directory / LIKELIHOODS_FILE, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"results {self.manifest.ref}: {LIKELIHOODS_FILE} is missing or damaged: make them again"
            ) from error
        return found


def weights_of(row: Mapping[str, Any], sources: Sequence[str]) -> dict[str, float]:
    """The weights of a row of a runs table, by source."""
    return {source: row[WEIGHT_PREFIX + source] for source in sources}


def runs_table(
    sources: Sequence[str],
    runs: Sequence[TrainingRun],
    seeds: Sequence[int | None] | None = None,
    seconds: Sequence[float | None] | None = None,
) -> pl.DataFrame:
    """The table that ``Results.table`` reads, of u runs; ``seeds`` (u,) and ``seconds`` (u,) may be unknown."""
    none = [None] * len(runs)
    weights = {
        WEIGHT_PREFIX + source: pl.Series([run.weights.get(source, 0.0) for run in runs], dtype=pl.Float64)
        for source in sources
    }
    return pl.DataFrame(
        {
            **weights,
            "size": pl.Series([run.size for run in runs], dtype=pl.Int64),
            "score": pl.Series([run.score for run in runs], dtype=pl.Float64),
            "seed": pl.Series(seeds or none, dtype=pl.Int64),
            "seconds": pl.Series(seconds or none, dtype=pl.Float64),
        }
    )


def range_warnings(metric: Metric, scores: Sequence[float]) -> list[str]:
    """A line if scores lie outside of what the metric can be."""
    low = -math.inf if metric.low is None else metric.low
    high = math.inf if metric.high is None else metric.high
    strange = [score for score in scores if not low <= score <= high]
    if not strange:
        return []
    return [
        f"{len(strange)} of {len(scores)} scores are outside of {low:g} to {high:g} ({strange[0]:g}, say): "
        f"correct the range of {metric.name}, or the scores"
    ]


# A user's own table


class _Row(NamedTuple):
    """A row of a table, and how a message names its place."""

    where: str
    values: Mapping[str, Any]

    def fail(self, message: str) -> DataError:
        return DataError(f"{self.where}: {message}")


def read_runs(path: Path, sources: Sequence[str] | None = None) -> tuple[TrainingRun, ...]:
    """Runs from a CSV table, a JSON list of objects, or JSON lines; weights are normalised to sum to 1.

    A row has ``size`` and ``score``, and its shares in columns ``weight:NAME``, in an object ``weights``, or in
    columns named like ``sources``, which also give the order. Other columns are ignored; an object may leave
    out sources of share 0. Raises DataError of one line that names file, row and what to change.
    """
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"{path}: no runs in it: give a row with weights, size and score for each training")
    shares = [_shares(row, sources) for row in rows]
    names = list(sources) if sources else list(dict.fromkeys(name for each in shares for name in each))
    return tuple(
        TrainingRun(weights=_normalised(row, each, names), size=_size(row), score=_number(row, "score"))
        for row, each in zip(rows, shares, strict=True)
    )


def _rows(path: Path) -> Iterator[_Row]:
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): name a CSV, JSON or JSON-lines file"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: give a CSV, JSON or JSON-lines file in UTF-8") from error
    start = text.lstrip()[:1]
    if start == "[":
        yield from _json_rows(path, text)
    elif start == "{":
        yield from _json_line_rows(path, text)
    elif start:
        yield from _csv_rows(path, text)


def _json_rows(path: Path, text: str) -> Iterator[_Row]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({first_line(error)}): correct it") from error
    for number, item in enumerate(items, 1):
        yield _checked_row(f"{path}, object {number}", item)


def _json_line_rows(path: Path, text: str) -> Iterator[_Row]:
    # Split at line breaks only: JSON may have other separators of lines inside its strings.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({first_line(error)}): give an object a line"
            ) from error
        yield _checked_row(f"{path}, line {number}", item)


def _checked_row(where: str, item: object) -> _Row:
    if not isinstance(item, dict):
        raise DataError(f'{where}: not an object: write {{"weights": {{…}}, "size": …, "score": …}}')
    return _Row(where, item)


def _csv_rows(path: Path, text: str) -> Iterator[_Row]:
    head = text.lstrip().split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text.lstrip()), delimiter=max(",;\t", key=head.count), strict=True)
    skipped = text[: len(text) - len(text.lstrip())].count("\n")
    columns: list[str] = []
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num + skipped}"
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = [cell.strip() for cell in cells]
                _refuse_repeated(where, columns)
            elif len(cells) != len(columns):
                raise DataError(
                    f"{where}: {len(cells)} cells under {len(columns)} columns: give one for each column"
                )
            else:
                yield _Row(where, dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num + skipped}: not CSV ({error}): correct it") from error


def _refuse_repeated(where: str, columns: Sequence[str]) -> None:
    for name in columns:
        if columns.count(name) > 1:
            raise DataError(f"{where}: column {name!r} is there twice: give each column once")


def _shares(row: _Row, sources: Sequence[str] | None) -> dict[str, float]:
    """The weights of a row as they are written, by source."""
    given = row.values.get("weights")
    if isinstance(given, dict):
        values = _Row(row.where, given)
        found = {str(name): _number(values, name, "weight of ") for name in given}
    else:
        prefixed = [name for name in row.values if name.startswith(WEIGHT_PREFIX) and name != WEIGHT_PREFIX]
        found = {name.removeprefix(WEIGHT_PREFIX): _number(row, name) for name in prefixed}
        if not prefixed and sources:
            found = {name: _number(row, name) for name in sources}
    if not found:
        raise row.fail(
            f"no weights: name its columns {WEIGHT_PREFIX}NAME, give an object weights, or name the sources whose "
            f"columns they are (there are {', '.join(map(str, row.values))})"
        )
    if sources and (unknown := sorted(found.keys() - set(sources))):
        raise row.fail(f"weight of {unknown[0]!r}, which is no source: name it as a source or take it out")
    for name, value in found.items():
        if value < 0:
            raise row.fail(f"weight of {name!r} is {value:g}: weights are 0 or more")
    return found


def _normalised(row: _Row, shares: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    total = sum(shares.values())
    if not total:
        raise row.fail("all weights are 0: give at least one source a weight")
    return {name: shares.get(name, 0.0) / total for name in names}


def _size(row: _Row) -> int:
    size = _number(row, "size")
    if size < 1 or size != int(size):
        raise row.fail(f"size is {size:g}: give a whole number of tokens or documents, 1 or more")
    return int(size)


def _number(row: _Row, name: str, of: str = "") -> float:
    value = row.values.get(name)
    if name not in row.values:
        raise row.fail(f"no {of}{name!r} (there are {', '.join(map(str, row.values))}): add it or rename a column")
    if value is None or (isinstance(value, str) and not value.strip()):
        raise row.fail(f"{of}{name!r} is empty: give a number")
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        raise row.fail(f"{of}{name!r} is {value!r}: give a number, such as 0.25") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise row.fail(f"{of}{name!r} is {value!r}: give a finite number")
    return number
