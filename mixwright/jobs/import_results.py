"""A table of trainings that were made elsewhere, to results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from mixwright.errors import ConfigError
from mixwright.fingerprint import fingerprint
from mixwright.results import RUNS_FILE, range_warnings, read_runs, runs_table
from mixwright.schemas.manifests import ResultsManifest
from mixwright.schemas.references import parse_reference
from mixwright.schemas.training_runs import Metric, Unit
from mixwright.store import Store, software_versions


def import_results(
    store: Store, path: Path, name: str, sources: Sequence[str] | None, metric: Metric, unit: Unit
) -> ResultsManifest:
    """Publish a table that ``read_runs`` reads; equal results that are published already are returned.

    Raises DataError for the table, ConfigError for a source twice and a range that is none, ConflictError.
    """
    if metric.low is not None and metric.high is not None and metric.low >= metric.high:
        raise ConfigError(f"scores are between {metric.low:g} and {metric.high:g}: low must be below high")
    if sources and len(set(sources)) < len(sources):
        raise ConfigError(f"a source of {', '.join(sources)} is given twice: give each once")
    reference, runs = parse_reference(name), read_runs(path, sources)
    names = list(runs[0].weights)
    parameters = {
        "job": "import",
        "sources": names,
        "metric": asdict(metric),
        "unit": unit,
        "runs": [[[run.weights[each] for each in names], run.size, run.score] for run in runs],
    }
    identity = fingerprint("results", [], parameters)
    existing = store.existing("results", reference, identity)
    if isinstance(existing, ResultsManifest):
        return existing
    with store.stage("results", reference, identity) as staging:
        runs_table(names, runs).write_parquet(staging.path / RUNS_FILE)
        draft = ResultsManifest(
            name=reference.name,
            version=1,
            fingerprint=identity,
            parameters={"job": "import", "file": path.name},
            files=[staging.entry(RUNS_FILE, len(runs))],
            created_at=datetime.now(UTC),
            software=software_versions("polars"),
            warnings=range_warnings(metric, [run.score for run in runs]),
            sources=names,
            metric=metric,
            unit=unit,
            evaluator="imported",
            n_rows=len(runs),
        )
        return store.publish(staging, draft)
