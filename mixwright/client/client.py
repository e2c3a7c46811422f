"""The client: one method for each thing that a service offers, with the answers' own types."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, TypeAdapter

from mixwright.client.connection import BROKEN, Connection, PassingError
from mixwright.client.downloads import refuse_occupied, unpack_export
from mixwright.client.problems import error_of
from mixwright.client.rows import Pin, read_tables
from mixwright.errors import ConfigError, JobError, UnavailableError
from mixwright.schemas.catalog import ArtifactSummary, Lineage, MixtureDetail
from mixwright.schemas.datastores import SearchResponse
from mixwright.schemas.jobs import Job
from mixwright.schemas.predictions import MixturePrediction
from mixwright.schemas.references import parse_reference
from mixwright.selectors.ordering import Share

ModelT = TypeVar("ModelT", bound=BaseModel)

DEFAULT_URL = "http://127.0.0.1:8000"
_PAGE_ITEMS = 1000
_FIRST_POLL, _LONGEST_POLL = 0.1, 2.0
_SUMMARIES = TypeAdapter(list[ArtifactSummary])


class Client:
    """A mixwright service, from Python.

    ``base_url`` and ``api_key`` default to ``MIXWRIGHT_URL`` and ``MIXWRIGHT_API_KEY`` of the environment, which
    are read here and nowhere else. ``timeout`` is in seconds, for each wait on the network; ``retries`` is how
    many failures in a row are borne, with growing pauses, before UnavailableError. ``compress`` asks for
    compressed answers, for slow networks. A client may be shared by threads, and pickled.

    Errors of the service are raised as those of ``mixwright.errors`` that they were.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 8,
        compress: bool = False,
    ) -> None:
        self._connection = Connection(
            base_url or os.environ.get("MIXWRIGHT_URL") or DEFAULT_URL,
            api_key or os.environ.get("MIXWRIGHT_API_KEY") or None,
            timeout,
            retries,
            compress,
        )

    def __repr__(self) -> str:
        return f"Client({self._connection.base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The client can still be used, and opens new ones then."""
        self._connection.close()

    # The catalog

    def corpora(self) -> Iterator[ArtifactSummary]:
        """Corpora of every version, newest first; pages are fetched as they are needed."""
        return self._listed("/v1/corpora")

    def datastores(self) -> Iterator[ArtifactSummary]:
        """Datastores of every version, newest first."""
        return self._listed("/v1/datastores")

    def mixtures(
        self, *, source: str | None = None, selector: str | None = None, domain: str | None = None
    ) -> Iterator[ArtifactSummary]:
        """Mixtures of every version, newest first; by a corpus, a selector, or a domain of a corpus."""
        return self._listed("/v1/mixtures", source=source, selector=selector, domain=domain)

    def mixture(self, ref: str) -> MixtureDetail:
        """The manifest of a mixture, ``name`` (the newest version) or ``name@version``; raises NotFoundError."""
        return _model(MixtureDetail, self._connection.get(f"/v1/mixtures/{_checked(ref)}").content)

    def lineage(self, ref: str) -> Lineage:
        """Every artifact that a mixture was made from, or that was made from it."""
        return _model(Lineage, self._connection.get(f"/v1/mixtures/{_checked(ref)}/lineage").content)

    def query_mixture(self, declaration: Mapping[str, Any]) -> MixtureDetail:
        """The mixture of a declaration (sources, where, weights, budget, …), made at once or found.

        Raises ShortfallError where the sources cannot fill the budget, ConfigError for a wrong declaration.
        """
        return _model(MixtureDetail, self._connection.post("/v1/mixtures/query", dict(declaration)).content)

    # Rows

    def pin(self, ref: str) -> Pin:
        """The version, fingerprint and number of rows that a reference stands for now."""
        found = self.mixture(ref)
        return Pin(found.ref, found.fingerprint, found.n_rows)

    def tables(
        self,
        ref: str | Pin,
        start: int = 0,
        count: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        *,
        block_rows: int = 1,
        offset: int = 0,
        tokenizer: str | None = None,
        bos: int | None = None,
        eos: int | None = None,
        window: int | None = None,
    ) -> Iterator[pa.Table]:
        """Rows as Arrow tables, each of a few hundred rows or one mebibyte of text.

        Rank r of W reads positions r, r + W, r + 2W, …, or every W-th block of ``block_rows`` from ``offset`` on;
        ``start`` and ``count`` count that rank's own rows. A name without a version stands for its newest version
        at the call, to the end. A stream that breaks off goes on at exactly the next row. Raises NotFoundError and
        ConfigError at once.
        """
        share = Share(rank, world_size, block_rows, offset)
        tokens = {"tokenizer": tokenizer, "bos": bos, "eos": eos, "window": window}
        given = {name: value for name, value in tokens.items() if value is not None}
        pin = ref if isinstance(ref, Pin) else self.pin(ref)
        return read_tables(self._connection, pin, share, start, count, given)

    def rows(
        self,
        ref: str | Pin,
        start: int = 0,
        count: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        **options: Any,
    ) -> Iterator[dict[str, Any]]:
        """Rows as dicts, with the fields of docs/mixtures.md; takes what ``tables`` takes and reads as it."""
        tables = self.tables(ref, start, count, rank, world_size, **options)
        return (row for table in tables for row in table.to_pylist())

    def export(self, ref: str, format: str, out: str | Path, **options: Any) -> Path:
        """A mixture in a trainer's form, written into the new folder ``out``, all or nothing; returns it.

        ``options`` are those of the format. Raises ConflictError if ``out`` has something in it already.
        """
        refuse_occupied(Path(out))
        path = f"/v1/mixtures/{_checked(ref)}/export"
        params = {"format": format, **{name: value for name, value in options.items() if value is not None}}
        patience = self._connection.patience()
        while True:
            try:
                with self._connection.stream(
                    "GET", path, params=params, headers={"Accept": "application/x-tar"}
                ) as response:
                    return unpack_export(response, Path(out))
            except PassingError as failure:
                patience.wait(failure.error, failure.wait)
            except BROKEN as error:
                patience.wait(self._connection.unreachable(error))

    # Datastores and predictions

    def search(
        self,
        ref: str,
        queries: Sequence[str] | None = None,
        k: int = 3,
        *,
        vectors: Any = None,
        **options: Any,
    ) -> SearchResponse:
        """The ``k`` passages of a datastore nearest to each query, best first.

        ``queries`` are texts; ``vectors`` (q, dim) are embedded queries instead. ``options`` are those of a
        search: mode, domains, where, dedup, decontaminate, rerank, …
        """
        body: dict[str, Any] = {"k": k, **options}
        if isinstance(queries, str):
            raise ConfigError("queries is one text: give a list of texts")
        if queries is not None:
            body["queries"] = list(queries)
        if vectors is not None:
            body["vectors"] = np.asarray(vectors).tolist()
        return _model(
            SearchResponse, self._connection.post(f"/v1/datastores/{_checked(ref)}/search", body).content
        )

    def predict(self, request: Mapping[str, Any]) -> MixturePrediction:
        """What mixtures will score, by projektor; the request is that of ``POST /v1/predict/mixture``."""
        return _model(MixturePrediction, self._connection.post("/v1/predict/mixture", dict(request)).content)

    # Jobs

    def submit(self, kind: str, request: Mapping[str, Any] | BaseModel) -> Job:
        """Put a job on the board: ``submit("ingest", {"name": "wiki", "paths": ["wiki.jsonl"]})``.

        The same request while it is queued or runs is the same job.
        """
        fields = request.model_dump(mode="json") if isinstance(request, BaseModel) else dict(request)
        fields.pop("kind", None)
        return _model(Job, self._connection.post("/v1/jobs", {"kind": kind, "request": fields}).content)

    def job(self, id: str) -> Job:
        """A job: its state, its progress, its result or its error."""
        return _model(Job, self._connection.get(f"/v1/jobs/{_segment(id)}").content)

    def cancel(self, id: str) -> Job:
        """Ask a job to stop; raises ConflictError if it has ended."""
        return _model(Job, self._connection.post(f"/v1/jobs/{_segment(id)}/cancel").content)

    def logs(self, id: str, tail: int = 1000) -> str:
        """The last lines of what a job wrote."""
        return self._connection.get(f"/v1/jobs/{_segment(id)}/logs", {"tail": tail}).text

    def follow(self, id: str) -> Iterator[Job]:
        """The job now, and again at every change, until it has ended."""
        from httpx2 import EventSource

        path, seen = f"/v1/jobs/{_segment(id)}/events", None
        patience = self._connection.patience()
        while seen is None or not seen.is_final:
            try:
                with self._connection.stream("GET", path, headers={"Accept": "text/event-stream"}) as response:
                    for event in EventSource(response):
                        patience.reset()
                        found = _model(Job, event.data)
                        if event.event == "job" and found != seen:
                            seen = found
                            yield found
                if seen is None or not seen.is_final:
                    raise PassingError(UnavailableError(f"the events of job {id} ended early: ask for it"), None)
            except PassingError as failure:
                patience.wait(failure.error, failure.wait)
            except BROKEN as error:
                patience.wait(self._connection.unreachable(error))

    def wait(self, id: str, timeout: float | None = None) -> Job:
        """The job once it has succeeded.

        Raises the error of a job that failed, JobError for one that was cancelled, UnavailableError if it has not
        ended after ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_POLL
        while not (job := self.job(id)).is_final:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise UnavailableError(
                    f"job {id} is {job.state} after {timeout} seconds: wait longer, or cancel it"
                )
            time.sleep(pause if left is None else min(pause, left))
            pause = min(1.5 * pause, _LONGEST_POLL)
        if job.state == "failed":
            raise error_of(job.error or {})
        if job.state == "cancelled":
            raise JobError(f"job {id} was cancelled: submit it again")
        return job

    def _listed(self, path: str, **filters: str | None) -> Iterator[ArtifactSummary]:
        cursor: str | None = None
        while True:
            answer = self._connection.get(path, {**filters, "limit": _PAGE_ITEMS, "cursor": cursor}).json()
            yield from _SUMMARIES.validate_python(answer["items"], extra="ignore")
            cursor = answer["next_cursor"]
            if cursor is None:
                return


def _model(model: type[ModelT], content: bytes | str) -> ModelT:
    # A service of a later version may have more to say.
    return model.model_validate_json(content, extra="ignore")


def _checked(ref: str) -> str:
    """The reference for a path; raises ConfigError if it is none."""
    return str(parse_reference(ref))


def _segment(id: str) -> str:
    if not id.isalnum():
        raise ConfigError(f"{id!r} is no id of a job: it has letters and digits only")
    return id
