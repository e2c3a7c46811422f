"""What an operator relies on: metrics, the log, request ids, readiness, HEAD, open datastores, the container."""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import PublishCorpus
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import OperationalError
from support import document_table, wait_for

from mixwright.config import Settings
from mixwright.errors import ConfigError, DataError, UnavailableError
from mixwright.jobs import ray_pool
from mixwright.jobs.board import Board
from mixwright.jobs.ray_pool import ray_state
from mixwright.jobs.select import run_select
from mixwright.jobs.worker import Worker
from mixwright.logs import StandardErrorHandler, configure_logging
from mixwright.progress import NoProgress
from mixwright.schemas.datastores import SearchRequest
from mixwright.schemas.jobs import Job, JobProgress
from mixwright.selectors.requests import SelectRequest
from mixwright.selectors.streams import MixtureStream
from mixwright.service import state as state_module
from mixwright.service.app import create_app
from mixwright.service.datastores import GatheredSearch, OpenDatastores
from mixwright.service.metrics import Metrics
from mixwright.service.readiness import BrokenError, Readiness
from mixwright.service.requests import HEADER
from mixwright.store import Store

ROOT = Path(__file__).parent.parent
N_TOKENS = [5, 0, 7, 11, 2, 3]
ROWS = "/v1/mixtures/blend/rows"
PLAIN = {"Accept-Encoding": "identity"}


@pytest.fixture
def app(store: Store, publish_corpus: PublishCorpus) -> FastAPI:
    """A service of the corpus wiki and the mixture blend of all its rows."""
    publish_corpus("wiki", document_table([f"page {n}" for n in range(len(N_TOKENS))], n_tokens=N_TOKENS))
    request = {"name": "blend", "sources": ["wiki"], "budget": {"documents": len(N_TOKENS)}}
    run_select(store, SelectRequest.model_validate({**request, "selector": {"kind": "uniform"}}), NoProgress())
    return create_app(Settings(home=store.home), run_worker=False)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


# Metrics


class Figures(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """What ``/metrics`` says, read by the library's own parser."""

    @classmethod
    def of(cls, client: TestClient) -> Figures:
        answer = client.get("/metrics")
        assert answer.status_code == 200
        families = list(text_string_to_metric_families(answer.text))
        return cls({(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples})

    def __call__(self, name: str, **labels: object) -> float:
        return self[f"mixwright_{name}", frozenset((key, str(value)) for key, value in labels.items())]

    def values_of(self, label: str) -> set[str]:
        return {dict(labels)[label] for _, labels in self if label in dict(labels)}


def test_requests_are_counted_by_their_templates(client: TestClient) -> None:
    for n in range(30):
        assert client.get(f"/v1/mixtures/absent{n}").status_code == 404
        assert client.get(f"/nowhere/{n}").status_code == 404
        client.get(f"/static/{n}.css")
    client.request("PUT", "/v1/jobs")
    client.request("BREW", "/v1/corpora/wiki")
    client.head("/v1/corpora/wiki")
    figures = Figures.of(client)
    assert figures("http_requests_total", method="GET", route="/v1/mixtures/{ref}", status=404) == 30
    assert figures("http_requests_total", method="GET", route="unmatched", status=404) == 30
    assert figures("http_requests_total", method="GET", route="/static/{path}", status=404) == 30
    assert figures("http_requests_total", method="PUT", route="/v1/jobs", status=405) == 1
    assert figures("http_requests_total", method="other", route="/v1/corpora/{ref}", status=405) == 1
    assert figures("http_requests_total", method="HEAD", route="/v1/corpora/{ref}", status=200) == 1
    assert figures("http_request_duration_seconds_count", method="GET", route="/v1/mixtures/{ref}") == 30
    assert figures("http_requests_in_progress") == 1
    templates = set(client.get("/openapi.json").json()["paths"])
    assert figures.values_of("route") - {"unmatched", "/static/{path}", "/openapi.json"} <= templates


def test_what_is_refused_before_it_is_routed_has_its_template_too(client: TestClient) -> None:
    assert client.get("/v1/mixtures/blend", headers={"Host": "elsewhere.example"}).status_code == 421
    assert Figures.of(client)("http_requests_total", method="GET", route="/v1/mixtures/{ref}", status=421) == 1


def test_streams_are_counted_apart(client: TestClient) -> None:
    answers = [client.get(ROWS), client.get(f"{ROWS}?count=2", headers=PLAIN)]
    rows = [json.loads(line) for answer in answers for line in answer.text.splitlines()]
    assert len(rows) == len(N_TOKENS) + 2
    figures = Figures.of(client)
    route = "/v1/mixtures/{ref}/rows"
    assert figures("rows_served_total") == len(rows)
    assert figures("tokens_served_total") == sum(row["n_tokens"] for row in rows)
    assert figures("http_streams_total", route=route, outcome="complete") == 2
    assert figures("http_streams_open") == 0
    assert figures("http_stream_first_byte_seconds_count", route=route) == 2
    first, whole = (figures(f"http_stream_{each}_seconds_sum", route=route) for each in ("first_byte", "duration"))
    assert 0 < first <= whole
    assert (
        len(answers[1].content)
        <= figures("http_stream_bytes_total", route=route)
        <= sum(len(answer.content) for answer in answers)
    )
    assert (
        "mixwright_http_request_duration_seconds_count",
        frozenset({("method", "GET"), ("route", route)}),
    ) not in figures


def test_how_streams_end(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    table = document_table(["a"])

    def broken(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield table
        raise DataError("the file is gone: publish it again")

    monkeypatch.setattr(MixtureStream, "read", broken)
    client.get(ROWS, headers=PLAIN)
    assert Figures.of(client)("http_streams_total", route="/v1/mixtures/{ref}/rows", outcome="failed") == 1


def test_jobs_and_artifacts_are_looked_up(client: TestClient, app: FastAPI) -> None:
    board: Board = app.state.services.board
    jobs = [board.submit({"kind": "embed", "corpus": f"wiki{n}"}) for n in range(4)]
    board.cancel(jobs[3].id)
    claim = board.claim("test")
    assert claim is not None
    asked_at = datetime.now(UTC)
    figures = Figures.of(client)
    states = {
        state: figures("jobs", kind="embed", state=state) for state in ("queued", "running", "cancelled", "failed")
    }
    assert states == {"queued": 2, "running": 1, "cancelled": 1, "failed": 0}
    assert figures("jobs_queue_depth") == 2
    waited = (asked_at - min(board.get(job.id).created_at for job in jobs[1:3])).total_seconds()
    assert figures("jobs_queue_oldest_age_seconds") == pytest.approx(waited, abs=1)
    assert figures("artifacts", kind="corpus") == figures("artifacts", kind="mixture") == 1
    assert figures("artifacts", kind="index") == 0
    assert figures("component_up", component="store") == 1
    assert figures("build_info", version="0.1.0", python=sys.version.split()[0]) == 1


def test_a_silent_database_leaves_the_other_figures(
    client: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OperationalError("SELECT 1", {}, Exception("gone"))

    monkeypatch.setattr(app.state.services.database, "check", fail)
    figures = Figures.of(client)
    assert figures("component_up", component="database") == 0
    assert figures("component_up", component="store") == 1
    assert "mixwright_jobs_queue_depth" not in {name for name, _ in figures}


def test_the_worker_tells_how_jobs_end(store: Store, app: FastAPI) -> None:
    services = app.state.services
    services.database.upgrade()
    ended: list[Job] = []

    def end(job: Job) -> None:
        services.metrics.job_ended(job)
        ended.append(job)

    worker = Worker(Settings(home=store.home), services.board, lambda _: None, on_end=end)
    services.board.submit({"kind": "embed", "corpus": "absent"})
    worker.start()
    try:
        wait_for(lambda: bool(ended))
    finally:
        worker.stop()
    (job,) = ended
    assert (job.kind, job.state) == ("embed", "failed")
    assert job.started_at is not None
    assert job.finished_at is not None
    labels = frozenset({("kind", "embed"), ("state", "failed")})
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(services.metrics.exposition().decode())
        for sample in family.samples
    }
    seconds = (job.finished_at - job.started_at).total_seconds()
    assert samples["mixwright_job_duration_seconds_sum", labels] == pytest.approx(seconds)


def test_the_page_of_operations_lists_every_metric(client: TestClient) -> None:
    board: Board = client.app.state.services.board  # type: ignore[attr-defined]
    board.submit({"kind": "embed", "corpus": "wiki"})
    client.get(ROWS)
    client.get("/healthz")
    Metrics.job_ended(client.app.state.services.metrics, _ended_job())  # type: ignore[attr-defined]
    families = list(text_string_to_metric_families(client.get("/metrics").text))
    real = {}
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        real[name] = (family.type, labels)
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    rows = re.findall(r"^\| `(mixwright_\w+|process_\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert documented == real
    for name, (kind, _) in real.items():
        # Prometheus' rules: base units, and _total for what only grows.
        assert (kind == "counter") == name.endswith("_total")
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|percent)(_|$)", name)


def _ended_job() -> Job:
    now = datetime.now(UTC)
    return Job(
        id="1",
        kind="embed",
        request={},
        state="succeeded",
        attempts=1,
        cancel_requested=False,
        created_at=now,
        started_at=now,
        finished_at=now,
        progress=JobProgress(stage="", done=1, total=1, unit="", rate=1, eta_seconds=0),
        result=None,
        error=None,
    )


# Request ids and the log


@contextmanager
def logged(form: str) -> Iterator[io.StringIO]:
    """What the log has in the form of a setting, at level INFO."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    root.handlers.clear()
    try:
        configure_logging(Settings(log_format=form, log_level="INFO"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            yield stream
    finally:
        root.handlers[:] = before
        root.setLevel(level)


@pytest.mark.parametrize(
    ("given", "is_taken"),
    [
        ("3f9a-7.b_c:d", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("a b", False),
        ('a"', False),
        ("é", False),
    ],
)
def test_ids_are_taken_if_they_are_harmless(client: TestClient, given: str, is_taken: bool) -> None:
    found = client.get("/healthz", headers={HEADER: given.encode("utf-8")}).headers[HEADER]
    assert (found == given) == is_taken
    assert re.fullmatch(r"[0-9a-f]{32}", found) or is_taken


def test_every_answer_has_an_id_of_its_own(client: TestClient) -> None:
    paths = ["/healthz", "/nowhere", "/static/icon.svg", ROWS, "/v1/jobs?state=no", "/openapi.json"]
    ids = [client.get(path).headers[HEADER] for path in paths for _ in range(2)]
    assert len(set(ids)) == len(ids)


def test_an_error_and_its_lines_have_the_id_of_the_request(
    client: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        logging.getLogger("mixwright.deep").warning("on the way")
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(app.state.services.catalog, "page", fail)
    with logged("json") as stream:
        answer = client.get("/v1/corpora", headers={HEADER: "mine"})
    assert (answer.status_code, answer.headers[HEADER], answer.json()["request_id"]) == (500, "mine", "mine")
    assert "secret" not in answer.text
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    ours = [line for line in lines if line["logger"].startswith("mixwright")]
    # The first is written in a thread that works for the request.
    assert [line["message"].split(" failed")[0] for line in ours][:2] == [
        "on the way",
        "request mine (GET /v1/corpora)",
    ]
    assert {line["request_id"] for line in ours} == {"mine"}
    assert "ZeroDivisionError" in ours[1]["exc_info"]
    assert (ours[2]["status"], ours[2]["route"]) == (500, "/v1/corpora")


def test_a_line_of_the_log_for_each_request(client: TestClient) -> None:
    with logged("json") as stream:
        client.get(
            "/v1/corpora?limit=7&key=hidden", headers={"Authorization": "Bearer hidden", "Cookie": "a=hidden"}
        )
        client.get("/v1/corpora/a%0Ab%22c")
        answer = client.get(ROWS, headers=PLAIN)
        client.post("/v1/jobs", json={"kind": "embed", "request": {"corpus": "wiki"}}, headers={HEADER: "job-1"})
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    lines = [line for line in lines if line["logger"] != "httpx2"]  # the client
    assert "hidden" not in json.dumps(lines)
    requests = [line for line in lines if line["logger"] == "mixwright.access"]
    listed, odd, rows, submitted = requests
    assert all(datetime.fromisoformat(line["time"]).tzinfo is not None for line in requests)
    assert {line["level"] for line in requests} == {"INFO"}
    assert (listed["method"], listed["path"], listed["status"]) == ("GET", "/v1/corpora", 422)
    assert (odd["path"], odd["route"]) == ("/v1/corpora/a%0Ab%22c", "/v1/corpora/{ref}")
    assert (rows["bytes"], rows["outcome"], rows["route"]) == (
        len(answer.content),
        "complete",
        "/v1/mixtures/{ref}/rows",
    )
    assert 0 < rows["seconds"] < 30
    assert rows["client"] == "testclient"
    (job,) = [line for line in lines if "submitted" in line["message"]]
    assert job["request_id"] == submitted["request_id"] == "job-1"


def test_the_text_form_has_a_line_each_too(client: TestClient) -> None:
    with logged("text") as stream:
        client.get("/v1/corpora/a%0Ab", headers={HEADER: "mine"})
    (line,) = [line for line in stream.getvalue().splitlines() if "mixwright.access" in line]
    assert re.search(
        r"INFO mixwright.access: GET /v1/corpora/a%0Ab 422 [\d.]+ s \d+ bytes \[request mine\]$", line
    )


def test_the_log_follows_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = io.StringIO(), io.StringIO()
    logger = logging.Logger("alone")
    monkeypatch.setattr(sys, "stderr", first)
    logger.addHandler(StandardErrorHandler())
    logger.warning("one")
    first_text = first.getvalue()
    first.close()
    monkeypatch.setattr(sys, "stderr", second)
    logger.warning("two")
    assert (first_text, second.getvalue()) == ("one\n", "two\n")


def test_the_log_of_ray_joins_ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ray's handler writes to the standard error of when it was imported. Where that is closed, it complains."""
    closed, seen = io.StringIO(), io.StringIO()
    closed.close()
    logger = logging.getLogger("ray")
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(closed)])
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(seen)])
    ray_pool._join_logs()
    logger.error("the head is gone")
    assert seen.getvalue() == "the head is gone\n"
    assert capsys.readouterr().err == ""


# Readiness


def test_a_part_that_hangs_is_late_and_asked_once() -> None:
    go_on, asked = threading.Event(), []

    def hang() -> str:
        asked.append(1)
        go_on.wait(10)
        return "ok"

    def broken() -> str:
        raise BrokenError("is broken: mend it")

    def odd() -> str:
        raise ZeroDivisionError("/secret/path")

    readiness = Readiness(
        {"slow": hang, "fast": lambda: "off", "broken": broken, "odd": odd}, timeout_seconds=0.2, kept_seconds=60
    )
    began = time.monotonic()
    for _ in range(3):
        states = readiness.states()
    assert time.monotonic() - began < 2
    assert len(asked) == 1
    assert {name: state.ok for name, state in states.items()} == {
        "slow": False, "fast": True, "broken": False, "odd": False,
    }  # fmt: skip
    assert "0.2 s" in states["slow"].text
    assert states["broken"].text == "is broken: mend it"
    assert "secret" not in states["odd"].text
    go_on.set()
    wait_for(lambda: readiness.states()["slow"].ok)


def test_an_answer_is_kept_for_a_while() -> None:
    answers = iter(["ok", "off"])
    readiness = Readiness({"part": lambda: next(answers)}, kept_seconds=0.3)
    assert [readiness.states()["part"].text for _ in range(3)] == ["ok"] * 3
    wait_for(lambda: readiness.states()["part"].text == "off", 5)


def test_a_service_that_is_told_to_stop_is_not_ready(client: TestClient, app: FastAPI) -> None:
    app.state.services.life.stopping = True
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["store"]) == (503, "ok")
    assert "about to stop" in answer.json()["detail"]
    # Who follows a job that has not ended is let go.
    job = app.state.services.board.submit({"kind": "embed", "corpus": "wiki"})
    events = client.get(f"/v1/jobs/{job.id}/events").text
    assert events.count("event: job") == 1


class _Head:
    """Something that listens like the head of a Ray cluster, and answers with some bytes, or not at all."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        self._connections.append(connection)
        if self._answer is not None:
            connection.recv(100)
            connection.sendall(self._answer)

    def close(self) -> None:
        for each in (self._listener, *self._connections):
            each.close()


@pytest.mark.parametrize(
    ("answer", "is_ray"),
    [(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", True), (b"HTTP/1.1 400 Bad Request\r\n\r\n", False), (None, False)],
    ids=["settings", "http", "silent"],
)
def test_ray_is_asked_for_an_answer(answer: bytes | None, is_ray: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    head = _Head(answer)
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    try:
        if is_ray:
            assert ray_state(5) == "ok"
        else:
            with pytest.raises(ConfigError, match="no Ray answers there"):
                ray_state(0.3)
    finally:
        head.close()


def test_ray_on_demand_or_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_state(1) == "on demand"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ConfigError, match="RAY_ADDRESS=auto"):
        ray_state(1)
    head = _Head(bytes(3) + ray_pool._HTTP2_SETTINGS + bytes(5))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(head.address)
    assert ray_state(5) == "ok"
    head.close()


def test_the_wait_for_shards_is_a_setting(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(
        state_module, "open_sharded_datastore", lambda store, ref, reranker, seconds: asked.append(seconds)
    )
    settings = Settings(home=store.home, search_on="ray", search_timeout_seconds=1.5)
    services = state_module.make_services(settings, run_worker=False)
    with services.datastores.of("library@1", "f"):
        pass
    assert asked == [1.5]


# HEAD


def test_head_is_get_without_a_body(client: TestClient) -> None:
    paths = [
        "/",
        "/healthz",
        "/v1/corpora",
        "/v1/corpora/wiki",
        "/v1/mixtures/blend",
        ROWS,
        "/v1/jobs",
        "/nowhere",
    ]
    paths += ["/v1/corpora/wiki/rows", "/openapi.json", "/static/icon.svg", "/v1/mixtures/blend?verbose=1"]
    differing = {"x-request-id", "date", "transfer-encoding"}
    for path in paths:
        get, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        headers = [{k: v for k, v in each.headers.items() if k not in differing} for each in (get, head)]
        assert headers[0] == headers[1], path
    tag = client.head(ROWS).headers["etag"]
    assert client.head(ROWS, headers={"If-None-Match": tag}).status_code == 304


def test_every_get_route_answers_head(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        status = client.head(
            path.replace("{ref}", "absent").replace("{id}", "absent").replace("{plot}", "a.svg")
        ).status_code
        if "get" in operations:
            assert status != 405, path
    assert client.head("/v1/jobs/absent/cancel").status_code == 405


def test_head_makes_no_stream(client: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def read(*args: Any, **kwargs: Any) -> Iterator[Any]:
        made.append(1)
        yield document_table(["a"])

    monkeypatch.setattr(MixtureStream, "read", read)
    head = client.head(ROWS)
    assert (head.status_code, made) == (200, [])
    assert head.headers["content-type"] == client.get(ROWS).headers["content-type"]
    assert made == [1]
    tar = "/v1/mixtures/blend/export?format=axolotl"
    monkeypatch.undo()
    get = client.get(tar, headers={"Accept": "application/x-tar"})
    head = client.head(tar, headers={"Accept": "application/x-tar"})
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(get.content)))
    job = app.state.services.board.submit({"kind": "embed", "corpus": "wiki"})
    began = time.monotonic()
    events = client.head(f"/v1/jobs/{job.id}/events")  # as GET it goes on as long as the job does
    assert events.status_code == 200
    assert events.headers["content-type"].startswith("text/event-stream")
    assert time.monotonic() - began < 5


# Open datastores


class FakeDatastore:
    """Answers a search with the texts of its queries. ``bad`` raises, unless it is searched alone and harmless."""

    def __init__(self, ref: str = "") -> None:
        self.ref = ref
        self.closed = False
        self.searched: list[int] = []

    def check(self, request: SearchRequest) -> None:
        return None

    def search_together(self, requests: list[SearchRequest]) -> list[Any]:
        self.searched.append(len(requests))
        queries = [query for request in requests for query in request.queries or []]
        if "bad" in queries:
            raise ZeroDivisionError("bad")
        if "gone" in queries:
            raise UnavailableError("gone: come again")
        return [_answer(request) for request in requests]

    def close(self) -> None:
        self.closed = True


def _answer(request: SearchRequest) -> Any:
    from mixwright.indexes.datastores.datastore import Answer

    answer = object.__new__(Answer)
    object.__setattr__(answer, "queries", request.queries)
    return answer


def in_threads(works: list[Callable[[], Any]]) -> list[Any]:
    """Run all at once; returns what each returned or raised."""
    results: list[Any] = [None] * len(works)

    def run(number: int) -> None:
        try:
            results[number] = works[number]()
        except Exception as error:  # noqa: BLE001
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def test_a_search_that_breaks_breaks_only_its_own_request(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeDatastore()
    observed: list[int] = []
    gathered = GatheredSearch(store, lambda n, seconds: observed.append(n))  # type: ignore[arg-type]
    queries = [["a"], ["bad"], ["b", "c"], ["d"]]
    works = [lambda q=q: gathered.search(SearchRequest(queries=q)) for q in queries]
    with gathered._searching:
        threads = threading.Thread(target=lambda: results.extend(in_threads(works)))
        results: list[Any] = []
        threads.start()
        wait_for(lambda: len(gathered._waiting) == len(queries))
    threads.join(30)
    assert isinstance(results[1], ZeroDivisionError)
    assert [results[n].queries for n in (0, 2, 3)] == [["a"], ["b", "c"], ["d"]]
    assert store.searched == [4, 1, 1, 1, 1]
    assert sorted(observed) == [1, 1, 2]
    (line,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "4 searches failed together" in line.getMessage()
    # An error of one of the parts is everybody's, and not tried again.
    with pytest.raises(UnavailableError):
        gathered.search(SearchRequest(queries=["gone"]))


def test_opening_one_datastore_holds_up_nobody_else() -> None:
    go_on, opened = threading.Event(), []

    def open_datastore(ref: str) -> Any:
        opened.append(ref)
        if ref == "slow@1" and not go_on.wait(20):
            raise TimeoutError
        return FakeDatastore(ref)

    datastores = OpenDatastores(open_datastore)

    def use(ref: str) -> str:
        with datastores.of(ref, "f") as found:
            return found.datastore.ref

    results: list[Any] = []
    waiting = threading.Thread(target=lambda: results.extend(in_threads([lambda: use("slow@1")] * 5)))
    waiting.start()
    wait_for(lambda: opened == ["slow@1"])
    assert use("fast@1") == "fast@1"
    assert opened == ["slow@1", "fast@1"]
    go_on.set()
    waiting.join(30)
    assert results == ["slow@1"] * 5
    assert opened == ["slow@1", "fast@1"]
    datastores.close()


def test_a_datastore_that_does_not_open_is_tried_again() -> None:
    attempts: list[str] = []

    def open_datastore(ref: str) -> Any:
        attempts.append(ref)
        if len(attempts) == 1:
            raise DataError("damaged: publish it again")
        return FakeDatastore(ref)

    datastores = OpenDatastores(open_datastore)
    with pytest.raises(DataError), datastores.of("a@1", "f"):
        pass
    with datastores.of("a@1", "f") as found:
        store = found.datastore
        datastores.close()
        assert not store.closed  # type: ignore[attr-defined]  # it is in use
    assert store.closed  # type: ignore[attr-defined]
    assert attempts == ["a@1", "a@1"]


# The container

INSTRUCTIONS = {
    "ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "LABEL", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD",
    "ENTRYPOINT",
}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and what is behind them."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines()) if name
    ]


def test_the_container_is_of_known_instructions_and_pinned() -> None:
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    bases = [rest.split()[0] for name, rest in found if name == "FROM"]
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:\$\{PYTHON\}-slim-\w+", base) for base in bases)
    for name, rest in found:
        if name in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(each, str) for each in json.loads(rest))
        if name == "HEALTHCHECK":
            json.loads(rest.partition("CMD")[2])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = next(rest.partition("=")[2] for name, rest in found if name == "ARG" and rest.startswith("PYTHON="))
    low, high = re.findall(r"3\.(\d+)", project["requires-python"])
    assert int(low) <= int(python.removeprefix("3.")) < int(high)
    (torch,) = [each for each in project["dependencies"] if each.startswith("torch>")]
    assert torch in (ROOT / "Dockerfile").read_text()
    extras = next(rest.partition("=")[2] for name, rest in found if name == "ARG" and rest.startswith("EXTRAS="))
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


def test_the_container_does_not_run_as_root_and_has_no_secrets() -> None:
    found = instructions()
    last_stage = found[max(number for number, (name, _) in enumerate(found) if name == "FROM") :]
    user = [rest for name, rest in last_stage if name == "USER"][-1]
    assert int(user) >= 1000
    assert [name for name, _ in last_stage].index("USER") < [name for name, _ in last_stage].index("ENTRYPOINT")
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"(?i)(password|secret|token|api_key)\s*=", text)
    assert not any(name == "ADD" for name, _ in found)


def test_what_the_container_copies_is_there_and_not_ignored() -> None:
    rules = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert rules[0] == "*"
    copied = [
        path
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for path in shlex.split(rest)[:-1]
    ]
    assert "mixwright" in copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert f"!{path}" in rules, path
    assert not any(fnmatch(".git", rule.removeprefix("!")) for rule in rules if rule.startswith("!"))


def test_the_container_serves_to_the_outside() -> None:
    last = dict(instructions())
    assert json.loads(last["ENTRYPOINT"]) + json.loads(last["CMD"])[:3] == [
        "mixwright",
        "serve",
        "--host",
        "0.0.0.0",
    ]
    assert "MIXWRIGHT_HOME=/data" in last["ENV"]
    assert last["VOLUME"] == "/data"
    assert httpx2.URL(re.findall(r"http://[^']+", last["HEALTHCHECK"])[0]).port == int(last["EXPOSE"])
