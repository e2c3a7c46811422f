"""Figures that are looked up when Prometheus asks: the job board, the catalog, what is up, which version."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import get_args

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from mixwright import __version__
from mixwright.jobs.database import ArtifactRow, Database, JobRow
from mixwright.schemas.jobs import JobState
from mixwright.schemas.references import KINDS
from mixwright.service.readiness import Readiness

_log = logging.getLogger(__name__)

_STATES: tuple[JobState, ...] = get_args(JobState)


class ServiceCollector(Collector):
    """Looks up the state of the service; what a broken database cannot tell is left out."""

    def __init__(self, database: Database, readiness: Readiness) -> None:
        self._database = database
        self._readiness = readiness

    def collect(self) -> Iterable[Metric]:
        yield _build()
        states = self._readiness.states()
        up = GaugeMetricFamily("mixwright_component_up", "1 where a component works.", labels=["component"])
        for name, state in states.items():
            if state.text != "off":
                up.add_metric([name], float(state.ok))
        yield up
        if not states["database"].ok:
            return
        try:
            yield from self._counts()
        except SQLAlchemyError as error:
            _log.warning("the database could not be asked for the metrics: %s", error)

    def _counts(self) -> list[Metric]:
        with self._database.reading() as session:
            artifacts = session.execute(select(ArtifactRow.kind, func.count()).group_by(ArtifactRow.kind)).all()
            grouped = select(JobRow.kind, JobRow.state, func.count()).group_by(JobRow.kind, JobRow.state)
            jobs = session.execute(grouped).all()
            oldest = session.scalar(select(func.min(JobRow.created_at)).where(JobRow.state == "queued"))
        counts = {(kind, state): n for kind, state, n in jobs}
        return [
            _artifacts({row.kind: row[1] for row in artifacts}),
            _jobs(counts),
            *_queue(sum(n for (_, state), n in counts.items() if state == "queued"), oldest),
        ]


def _build() -> Metric:
    family = GaugeMetricFamily(
        "mixwright_build_info", "The version that runs; always 1.", labels=["version", "python"]
    )
    family.add_metric([__version__, platform.python_version()], 1)
    return family


def _artifacts(counts: dict[str, int]) -> Metric:
    family = GaugeMetricFamily("mixwright_artifacts", "Artifacts in the catalog.", labels=["kind"])
    for kind in KINDS:
        family.add_metric([kind], counts.get(kind, 0))
    return family


def _jobs(counts: dict[tuple[str, str], int]) -> Metric:
    family = GaugeMetricFamily("mixwright_jobs", "Jobs on the board.", labels=["kind", "state"])
    for kind in sorted({kind for kind, _ in counts}):
        for state in _STATES:
            family.add_metric([kind, state], counts.get((kind, state), 0))
    return family


def _queue(depth: int, oldest: datetime | None) -> list[Metric]:
    age = 0.0 if oldest is None else max((datetime.now(UTC) - oldest).total_seconds(), 0.0)
    return [
        GaugeMetricFamily("mixwright_jobs_queue_depth", "Jobs that wait.", value=depth),
        GaugeMetricFamily(
            "mixwright_jobs_queue_oldest_age_seconds", "How long the oldest of them has waited.", value=age
        ),
    ]
