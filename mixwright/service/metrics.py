"""What Prometheus reads at ``/metrics``: counted while the service works, or looked up when it asks.

Names and units follow Prometheus' conventions. No label has a value that a client can make up: a request is
counted under the template of its route. With several server processes each writes its figures into files of one
folder (``PROMETHEUS_MULTIPROC_DIR``, see ``mixwright.service.supervisor``), and whichever is asked adds them up.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from mixwright.schemas.jobs import Job

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_ANSWER_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STREAM_SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200)
_JOB_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 14_400, 43_200, 86_400, 259_200)
_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class Metrics:
    """The figures of one service (in this process)."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._counted = registry = CollectorRegistry()
        self.requests = Counter(
            "mixwright_http_requests_total",
            "Requests that were answered.",
            ["method", "route", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "mixwright_http_request_duration_seconds",
            "From the request to the end of its answer; streams are counted apart.",
            ["method", "route"],
            buckets=_ANSWER_SECONDS,
            registry=registry,
        )
        self.in_progress = _gauge("mixwright_http_requests_in_progress", "Requests being answered.", registry)
        self.streams = Counter(
            "mixwright_http_streams_total",
            "Streams that have ended: complete, left by the client, failed, or cut_off by a shutdown.",
            ["route", "outcome"],
            registry=registry,
        )
        self.streams_open = _gauge("mixwright_http_streams_open", "Streams being answered.", registry)
        self.stream_first_byte_seconds = Histogram(
            "mixwright_http_stream_first_byte_seconds",
            "From the request to the first byte of a stream.",
            ["route"],
            buckets=_ANSWER_SECONDS,
            registry=registry,
        )
        self.stream_seconds = Histogram(
            "mixwright_http_stream_duration_seconds",
            "From the request to the end of a stream.",
            ["route"],
            buckets=_STREAM_SECONDS,
            registry=registry,
        )
        self.stream_bytes = Counter(
            "mixwright_http_stream_bytes_total", "Bytes that were streamed.", ["route"], registry=registry
        )
        self.rows = Counter(
            "mixwright_rows_served_total", "Rows of mixtures that were streamed.", registry=registry
        )
        self.tokens = Counter(
            "mixwright_tokens_served_total", "Tokens of the rows that were streamed.", registry=registry
        )
        self.search_seconds = Histogram(
            "mixwright_datastore_search_duration_seconds",
            "Searches of a datastore; those that wait are searched together and count once.",
            buckets=_ANSWER_SECONDS,
            registry=registry,
        )
        self.search_queries = Histogram(
            "mixwright_datastore_search_batch_queries",
            "Queries that were searched together.",
            buckets=_QUERIES,
            registry=registry,
        )
        self.job_seconds = Histogram(
            "mixwright_job_duration_seconds",
            "From the last start of a job to its end, by kind and how it ended.",
            ["kind", "state"],
            buckets=_JOB_SECONDS,
            registry=registry,
        )
        self._asked = _registry_of_all(registry)

    def look_up(self, collector: Collector) -> None:
        """Have figures looked up whenever the metrics are asked for."""
        self._asked.register(collector)

    def exposition(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._asked)

    def counted(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The tables as they are; their rows and tokens (column ``n_tokens``) are counted once they are taken."""
        for table in tables:
            self.rows.inc(table.num_rows)
            self.tokens.inc(pc.sum(table["n_tokens"]).as_py() or 0)
            yield table

    def searched(self, n_queries: int, seconds: float) -> None:
        """A search of a datastore has ended."""
        self.search_queries.observe(n_queries)
        self.search_seconds.observe(seconds)

    def job_ended(self, job: Job) -> None:
        """A job has ended."""
        if job.started_at is not None and job.finished_at is not None:
            seconds = (job.finished_at - job.started_at).total_seconds()
            self.job_seconds.labels(job.kind, job.state).observe(seconds)


def _gauge(name: str, description: str, registry: CollectorRegistry) -> Gauge:
    # Those of a process that was killed do not count: the supervisor removes their files.
    return Gauge(name, description, registry=registry, multiprocess_mode="livesum")


def _registry_of_all(counted: CollectorRegistry) -> CollectorRegistry:
    """What is exposed: this process's figures, or those of all processes of the service."""
    folder = os.environ.get(DIRECTORY_VARIABLE)
    if folder is None:
        ProcessCollector(registry=counted)
        return counted
    together = CollectorRegistry()
    MultiProcessCollector(together, folder)  # type: ignore[no-untyped-call]
    together.register(_ProcessesCollector(Path(folder)))
    return together


class _ProcessesCollector(Collector):
    """CPU, memory and files of all processes of the service together; its start is that of the oldest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        values: defaultdict[str, list[float]] = defaultdict(list)
        for pid in self._pids():
            for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                families[family.name] = family
                values[family.name] += [sample.value for sample in family.samples]
        for name, family in families.items():
            combine = min if name.endswith("start_time_seconds") else sum
            sample = family.samples[0]
            family.samples = [sample._replace(value=combine(values[name]))]
            yield family

    def _pids(self) -> set[int]:
        """The processes that write here; the supervisor removes these files of those that have ended."""
        return {int(path.stem.rpartition("_")[2]) for path in self._folder.glob("gauge_livesum_*.db")}
