"""Results that no pilot job makes: of a table of trainings that were made elsewhere, and of other results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from mixwright.errors import ConfigError, DataError
from mixwright.fingerprint import fingerprint
from mixwright.results import LIKELIHOODS_FILE, RUNS_FILE, Results, range_warnings, read_runs, runs_table
from mixwright.schemas.manifests import ArtifactInput, ResultsManifest
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


def merge_results(store: Store, references: Sequence[str], name: str) -> ResultsManifest:
    """Publish the runs of several results as one; equal results that are published already are returned.

    A run that occurs twice (mixture, size, seed and score) is there once. Likelihoods are those of the results
    with the largest runs. Raises DataError for results of other sources, another metric, unit or validation
    corpus, ConfigError for fewer than two, NotFoundError, ConflictError.
    """
    if len(references) < 2:
        raise ConfigError("there is nothing to merge: name two results or more")
    parts = [Results.open(store, each) for each in references]
    first = parts[0].manifest
    _refuse_different([part.manifest for part in parts])
    reference = parse_reference(name)
    identity = fingerprint("results", [part.manifest.fingerprint for part in parts], {"job": "merge"})
    existing = store.existing("results", reference, identity)
    if isinstance(existing, ResultsManifest):
        return existing
    columns = parts[0].table().columns
    table = pl.concat([part.table().select(columns) for part in parts])
    merged = table.unique([column for column in columns if column != "seconds"], keep="first", maintain_order=True)
    known = [part for part in parts if part.manifest.likelihoods]
    with store.stage("results", reference, identity) as staging:
        merged.write_parquet(staging.path / RUNS_FILE)
        files = [staging.entry(RUNS_FILE, merged.height)]
        if known:
            best = max(known, key=lambda part: max(run.size for run in part.runs()))
            order = [best.manifest.sources.index(source) for source in first.sources]
            likelihoods = np.asarray(best.likelihoods())[:, order]
            np.save(staging.path / LIKELIHOODS_FILE, likelihoods, allow_pickle=False)
            files.append(staging.entry(LIKELIHOODS_FILE, len(likelihoods)))
        repeated = table.height - merged.height
        draft = ResultsManifest(
            name=reference.name,
            version=1,
            fingerprint=identity,
            inputs=[
                ArtifactInput(kind="results", ref=part.manifest.ref, fingerprint=part.manifest.fingerprint)
                for part in parts
            ],
            parameters={"job": "merge"},
            files=files,
            created_at=datetime.now(UTC),
            software=software_versions("polars", "numpy"),
            warnings=[f"{repeated:,} runs that occur several times are there once"] if repeated else [],
            sources=first.sources,
            metric=first.metric,
            unit=first.unit,
            evaluator=", ".join(dict.fromkeys(part.manifest.evaluator for part in parts)),
            validation=next((part.manifest.validation for part in parts if part.manifest.validation), None),
            n_rows=merged.height,
            likelihoods=bool(known),
        )
        return store.publish(staging, draft)


def _refuse_different(manifests: Sequence[ResultsManifest]) -> None:
    """Raise DataError naming what two results do not share."""
    first = manifests[0]
    for other in manifests[1:]:
        pairs = {
            "sources": (sorted(first.sources), sorted(other.sources)),
            "metric": (first.metric, other.metric),
            "unit": (first.unit, other.unit),
            # Of imported results the validation corpus is not known.
            "validation": (first.validation or other.validation, other.validation or first.validation),
        }
        for what, (mine, others) in pairs.items():
            if mine != others:
                raise DataError(
                    f"{first.ref} and {other.ref} do not have the same {what} ({mine}, {others}): merge results "
                    "that can be compared"
                )
