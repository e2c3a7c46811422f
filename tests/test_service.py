"""The catalog over HTTP: what it answers against what was published."""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx2
import numpy as np
import pyarrow as pa
import pytest
import uvicorn
from conftest import PublishCorpus
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError
from support import document_table, wait_for

from mixwright.config import Settings
from mixwright.errors import ConfigError, ShortfallError
from mixwright.jobs.board import Board, log_path
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.manifests import MANIFEST_ADAPTER
from mixwright.selectors.requests import SelectRequest
from mixwright.selectors.streams import MixtureStream
from mixwright.service import server as server_module
from mixwright.service.app import create_app
from mixwright.service.routes.jobs import without_tracebacks
from mixwright.service.rows import ARROW, NDJSON, negotiate
from mixwright.service.server import serve
from mixwright.service.statistics import corpus_statistics
from mixwright.service.viewer import rows_page
from mixwright.store import Store

TEXTS = [
    "plain",
    "ünïcode ✓ \U0001f600",
    'quotes " and \\',
    "lines\r\nand\ttabs\u2028",
    "",
    "nul \x00 inside",
    "<b>",
]
DOMAINS = ["en.wikipedia.org", None, "bbc.co.uk", "en.wikipedia.org", None, "example.com", "example.com"]
METADATA = [
    "{}",
    '{"a":1}',
    '{"nested":{"b":[1,2.5,null,true]}}',
    "{}",
    '{"n":12345678901234567890123}',
    "{}",
    "{}",
]


@pytest.fixture
def settings(store: Store) -> Settings:
    return Settings(home=store.home)


@pytest.fixture
def published(store: Store, publish_corpus: PublishCorpus) -> pa.Table:
    """Corpora wiki@1 and web@1, and the mixture blend@1 of both; returns wiki's rows."""
    table = document_table(TEXTS, domains=DOMAINS, metadata=METADATA, n_tokens=[0, 1, 2, 3, 4, 100, 7])
    publish_corpus("wiki", table, 3)
    publish_corpus("web", document_table([f"web page {number}" for number in range(40)], source="web"))
    request = {"name": "blend", "sources": ["wiki", "web"], "budget": {"documents": 30}}
    select = SelectRequest.model_validate({**request, "selector": {"kind": "proportional"}})
    run_select(store, select, NoProgress())
    return table


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings, run_worker=False)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def board(app: FastAPI) -> Board:
    board = app.state.services.board
    assert isinstance(board, Board)
    return board


def problem(response: httpx2.Response, status: int) -> dict[str, Any]:
    """The problem document of a refusal, whose form is the same everywhere."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert {"type", "title", "status", "detail", "instance"} <= body.keys()
    assert body["status"] == status
    assert "\n" not in body["detail"]
    assert "Traceback" not in response.text
    return body


# Artifacts


def test_lists_and_details(client: TestClient, store: Store, published: pa.Table) -> None:
    listed = client.get("/v1/corpora").json()
    assert [(each["ref"], each["n_rows"]) for each in listed["items"]] == [("web@1", 40), ("wiki@1", 7)]
    assert listed["next_cursor"] is None
    (mixture,) = client.get("/v1/mixtures").json()["items"]
    manifest = store.manifest("blend", "mixture")
    assert mixture["selector"] == "proportional"
    assert sum(part["weight"] for part in mixture["components"]) == pytest.approx(1)
    assert mixture["fingerprint"] == manifest.fingerprint
    for ref in ("blend", "blend@1"):
        detail = client.get(f"/v1/mixtures/{ref}").json()
        assert detail.pop("ref") == "blend@1"
        assert MANIFEST_ADAPTER.validate_python(detail) == manifest
    assert client.get("/v1/embeddings").json() == client.get("/v1/indexes").json()
    assert client.get("/v1/embeddings").json() == {"items": [], "next_cursor": None}


def test_mixtures_are_filtered_and_paged(client: TestClient, published: pa.Table) -> None:
    def refs(query: str) -> list[str]:
        return [each["ref"] for each in client.get(f"/v1/mixtures?{query}").json()["items"]]

    assert refs("source=wiki&selector=proportional&domain=bbc.co.uk") == ["blend@1"]
    assert refs("source=other") == refs("selector=unimax") == refs("domain=absent.org") == []
    first = client.get("/v1/corpora?limit=1").json()
    second = client.get("/v1/corpora", params={"limit": 1, "cursor": first["next_cursor"]}).json()
    assert [first["items"][0]["ref"], second["items"][0]["ref"]] == ["web@1", "wiki@1"]


def test_lineage(client: TestClient, published: pa.Table) -> None:
    body = client.get("/v1/mixtures/blend/lineage").json()
    assert {(edge["source"], edge["target"]) for edge in body["edges"]} == {
        ("corpus:wiki@1", "mixture:blend@1"),
        ("corpus:web@1", "mixture:blend@1"),
    }
    assert {node["id"] for node in body["nodes"]} == {"corpus:wiki@1", "corpus:web@1", "mixture:blend@1"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/mixtures/blend",
        "/v1/mixtures/blend/rows?count=3",
        "/v1/corpora/wiki",
        "/v1/corpora/wiki/rows?length=2",
        "/v1/corpora/wiki/statistics",
    ],
)
def test_etags(client: TestClient, published: pa.Table, path: str) -> None:
    first = client.get(path)
    tag = first.headers["etag"]
    for condition in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get(path, headers={"If-None-Match": condition})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(path, headers={"If-None-Match": '"other"'}).content == first.content
    assert "no-cache" in first.headers["cache-control"]
    assert (
        "max-age"
        in client.get(path.replace("wiki", "wiki@1").replace("blend", "blend@1")).headers["cache-control"]
    )


def test_etags_name_what_is_in_the_answer(client: TestClient, store: Store, published: pa.Table) -> None:
    fingerprint = store.manifest("blend", "mixture").fingerprint
    assert client.get("/v1/mixtures/blend").headers["etag"] == f'"{fingerprint}"'
    rows = "/v1/mixtures/blend/rows?count=2"
    answers = [client.get(rows), client.get(rows, headers={"Accept": ARROW})]
    answers += [client.get(f"{rows}&{more}") for more in ("start=1", "rank=1&world_size=2", "tokenizer=bytes")]
    answers += [client.get(f"/v1/corpora/wiki/rows?length={length}") for length in (1, 2)]
    tags = {answer.headers["etag"] for answer in answers}
    assert len(tags) == len(answers)


# Rows of a corpus


def test_rows_are_exact(client: TestClient, published: pa.Table) -> None:
    expected = [row | {"metadata": json.loads(row["metadata"])} for row in published.to_pylist()]
    body = client.get("/v1/corpora/wiki/rows").json()
    assert [row["row"] for row in body["rows"]] == expected
    assert [row["row_idx"] for row in body["rows"]] == list(range(7))
    assert all(row["truncated_cells"] == [] for row in body["rows"])
    assert (body["num_rows_total"], body["num_rows_per_page"], body["partial"]) == (7, 100, False)
    types = {feature["name"]: feature["type"] for feature in body["features"]}
    assert list(types) == published.schema.names
    assert types["text"] == {"dtype": "string", "_type": "Value"}
    assert types["n_tokens"] == {"dtype": "int64", "_type": "Value"}
    page = client.get("/v1/corpora/wiki/rows?offset=2&length=3").json()
    assert [row["row"] for row in page["rows"]] == expected[2:5]
    assert [row["row_idx"] for row in page["rows"]] == [2, 3, 4]
    assert client.get(f"/v1/corpora/wiki/rows?offset={10**30}").json()["rows"] == []


def test_only_pages_that_are_too_large_are_cut_and_say_so() -> None:
    table = document_table(["short", "x" * 50, "y" * 45])
    whole = rows_page(table, 0, 3, max_characters=100)
    assert [row.row["text"] for row in whole.rows] == ["short", "x" * 50, "y" * 45]
    cut = rows_page(table, 0, 3, max_characters=99)
    assert [row.row["text"] for row in cut.rows] == ["short", "x" * 33, "y" * 33]
    assert [row.truncated_cells for row in cut.rows] == [[], ["text"], ["text"]]


def test_statistics_agree_with_numpy(client: TestClient, published: pa.Table) -> None:
    body = client.get("/v1/corpora/wiki/statistics").json()
    tokens = np.array(published["n_tokens"].to_pylist())
    assert (body["n_documents"], body["n_tokens"]) == (7, int(tokens.sum()))
    assert body["n_text_bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert body["tokens"]["mean"] == pytest.approx(tokens.mean())
    for level, value in body["tokens"]["quantiles"].items():
        assert value == pytest.approx(np.quantile(tokens, float(level)))
    counted = {(part["low"], part["high"]): part["n_documents"] for part in body["token_histogram"]}
    edges = [0, 1, 2, 4, 8, 16, 32, 64, 128]
    expected = np.histogram(tokens, edges)[0]
    assert counted == {(edges[i], edges[i + 1]): int(n) for i, n in enumerate(expected) if n}
    assert (body["n_domains"], body["n_without_domain"]) == (3, 2)
    assert {(each["domain"], each["n_documents"], each["n_tokens"]) for each in body["domains"]} == {
        ("en.wikipedia.org", 2, 3),
        (None, 2, 5),
        ("example.com", 2, 107),
        ("bbc.co.uk", 1, 2),
    }


def test_statistics_are_kept_and_can_be_lost(client: TestClient, store: Store, published: pa.Table) -> None:
    first = client.get("/v1/corpora/wiki/statistics").json()
    (kept,) = (store.home / "cache" / "statistics").glob("*.json")
    kept.write_text(json.dumps({**first, "n_domains": 77}))
    assert client.get("/v1/corpora/wiki/statistics").json()["n_domains"] == 77
    kept.write_text("{")
    assert client.get("/v1/corpora/wiki/statistics").json() == first


def test_statistics_of_nothing(published: pa.Table) -> None:
    import polars as pl

    empty = corpus_statistics(pl.DataFrame(pl.from_arrow(published)).clear().lazy())
    assert (empty.n_documents, empty.tokens, empty.token_histogram, empty.domains) == (0, None, [], [])


# Rows of a mixture


def ndjson(response: httpx2.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == NDJSON
    assert response.text == "" or response.text.endswith("\n")
    return [json.loads(line) for line in response.content.split(b"\n")[:-1]]


def test_mixture_rows_are_the_documents_of_their_sources(
    client: TestClient, store: Store, published: pa.Table
) -> None:
    rows = ndjson(client.get("/v1/mixtures/blend/rows"))
    manifest = store.manifest("blend", "mixture").model_dump()
    assert [row["position"] for row in rows] == list(range(manifest["n_rows"]))
    assert sum(row["n_tokens"] for row in rows) == manifest["n_tokens"]
    documents = {
        row["id"]: row
        for ref in ("wiki", "web")
        for page in [client.get(f"/v1/corpora/{ref}/rows").json()]
        for row in (each["row"] for each in page["rows"])
    }
    for row in rows:
        original = documents[row["id"]]
        assert {field: row[field] for field in ("text", "domain", "url", "source", "n_tokens")} == {
            field: original[field] for field in ("text", "domain", "url", "source", "n_tokens")
        }
    fields = ["position", "stage", "component", "epoch", "id", "source", "domain", "url", "tag_text", "text"]
    assert list(rows[0]) == [*fields, "n_tokens"]


def test_ranks_and_restarts_share_the_rows(client: TestClient, published: pa.Table) -> None:
    everything = ndjson(client.get("/v1/mixtures/blend@1/rows"))
    for rank in range(3):
        own = ndjson(client.get(f"/v1/mixtures/blend/rows?rank={rank}&world_size=3"))
        assert own == everything[rank::3]
        part = ndjson(client.get(f"/v1/mixtures/blend/rows?rank={rank}&world_size=3&start=2&count=4"))
        assert part == everything[rank::3][2:6]
    assert ndjson(client.get("/v1/mixtures/blend/rows?count=0")) == []
    assert ndjson(client.get(f"/v1/mixtures/blend/rows?start={10**25}")) == []


@pytest.mark.parametrize("query", ["", "?count=0", "?tokenizer=bytes", "?start=3&count=5&rank=1&world_size=2"])
def test_arrow_has_the_same_rows(client: TestClient, published: pa.Table, query: str) -> None:
    answer = client.get(f"/v1/mixtures/blend/rows{query}", headers={"Accept": ARROW})
    assert answer.headers["content-type"] == ARROW
    table = pa.ipc.open_stream(io.BytesIO(answer.content)).read_all()
    assert table.to_pylist() == ndjson(client.get(f"/v1/mixtures/blend/rows{query}"))
    assert {"position", "text"} <= set(table.schema.names)
    assert ("input_ids" in table.schema.names) == ("tokenizer" in query)


def test_arrow_of_many_batches(client: TestClient, store: Store, publish_corpus: PublishCorpus) -> None:
    publish_corpus("long", document_table([f"row {number}" for number in range(1500)]))
    request = {"name": "long", "sources": ["long"], "selector": {"kind": "uniform"}, "budget": {"documents": 1500}}
    run_select(store, SelectRequest.model_validate(request), NoProgress())
    answer = client.get("/v1/mixtures/long/rows", headers={"Accept": ARROW})
    read = pa.ipc.open_stream(io.BytesIO(answer.content)).read_all()
    assert read.num_rows == 1500
    assert read.to_pylist() == ndjson(client.get("/v1/mixtures/long/rows"))


def test_tokens(client: TestClient, published: pa.Table) -> None:
    rows = ndjson(client.get("/v1/mixtures/blend/rows?tokenizer=bytes&bos=300&eos=301"))
    assert all(row["input_ids"] == [300, *row["text"].encode(), 301] for row in rows)
    assert all(len(row["loss_mask"]) == len(row["input_ids"]) for row in rows)
    assert "tokenizer" in problem(client.get("/v1/mixtures/blend/rows?bos=1"), 422)["detail"]
    assert "no-such" in problem(client.get("/v1/mixtures/blend/rows?tokenizer=no-such"), 403)["detail"]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, NDJSON),
        ("*/*", NDJSON),
        ("application/json", NDJSON),
        (ARROW, ARROW),
        (f"{ARROW}, */*", ARROW),
        (f"{NDJSON}, {ARROW};q=0.5", NDJSON),
        (f"{NDJSON};q=0.1, {ARROW.upper()}", ARROW),
        (f"{ARROW};q=0, text/html", None),
        ("text/html", None),
        (f"{ARROW};q=nonsense", None),
    ],
)
def test_negotiation(accept: str | None, expected: str | None) -> None:
    assert negotiate(accept) == expected


def test_rows_in_no_other_form(client: TestClient, published: pa.Table) -> None:
    body = problem(client.get("/v1/mixtures/blend/rows", headers={"Accept": "text/csv"}), 406)
    assert ARROW in body["detail"]


def test_a_client_that_goes_away_stops_the_work(
    app: FastAPI, published: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, closed = [], threading.Event()
    row = pa.table({"text": ["x" * 1_000_000], "n_tokens": [1]})

    def endless(*args: Any, **kwargs: Any) -> Iterator[pa.Table]:
        try:
            while True:
                made.append(1)
                yield row
        finally:
            closed.set()

    monkeypatch.setattr(MixtureStream, "read", endless)
    with running(app) as address:
        with httpx2.Client(base_url=address) as client, client.stream("GET", "/v1/mixtures/blend/rows") as answer:
            next(answer.iter_raw())
            time.sleep(0.5)
            # Nobody reads on: a little waits in buffers, and nothing more is made.
            waiting = len(made)
            time.sleep(0.5)
            assert len(made) == waiting < 100
        assert closed.wait(5)


# Refusals


REFUSALS: list[tuple[str, int, list[str]]] = [
    ("/v1/corpora/absent", 404, ["absent", "web", "wiki"]),
    ("/v1/corpora/wiki@9", 404, ["wiki@9"]),
    ("/v1/corpora/blend", 404, ["blend"]),
    ("/v1/corpora/mixture:blend", 422, ["corpus"]),
    ("/v1/corpora/..%2F..%2Fetc", 404, ["etc"]),
    ("/v1/corpora/-x-", 422, ["name@version"]),
    ("/v1/corpora/wiki/rows?length=101", 422, ["length", "100"]),
    ("/v1/corpora/wiki/rows?offset=-1", 422, ["offset"]),
    ("/v1/mixtures/blend/rows?world_sise=2", 422, ["world_sise", "world_size"]),
    ("/v1/mixtures/blend/rows?rank=0&rank=1&world_size=2", 422, ["rank", "2 times"]),
    ("/v1/mixtures/blend/rows?rank=2&world_size=2", 422, ["rank 2"]),
    ("/v1/mixtures/blend/rows?count=many", 422, ["count", "integer"]),
    ("/v1/mixtures?cursor=nonsense", 422, ["cursor"]),
    ("/v1/mixtures?cursor=", 422, ["cursor"]),
    ("/v1/mixtures?source=mixture:blend", 422, ["corpus"]),
    ("/v1/mixtures?source=%20", 422, ["name@version"]),
    ("/v1/mixtures?domain=%00", 422, ["domain"]),
    ("/v1/mixtures/blend?verbose=1", 422, ["verbose", "none"]),
    ("/v1/jobs?state=done", 422, ["state", "succeeded"]),
    ("/v1/jobs/absent", 404, ["absent"]),
    ("/v1/jobs/absent/events", 404, ["absent"]),
    ("/v1/nowhere", 404, ["/v1/nowhere", "openapi.json"]),
    ("/static/nothing.css", 404, ["nothing.css"]),
    ("/healthz?probe=1", 422, ["probe"]),
]


def test_refusals_are_problems(client: TestClient, published: pa.Table) -> None:
    for path, status, words in REFUSALS:
        body = problem(client.get(path), status)
        assert all(word in body["detail"] for word in words), body["detail"]
        assert body["instance"] == unquote(path.split("?")[0])


def test_the_members_of_an_error_are_kept(client: TestClient, app: FastAPI) -> None:
    @app.get("/short")
    def short() -> None:
        raise ShortfallError("too little: ask for less", source="wiki", largest_budget=7)

    body = problem(client.get("/short"), 409)
    assert (body["type"], body["source"], body["largest_budget"]) == ("urn:mixwright:error:shortfall", "wiki", 7)


def test_other_methods_are_refused(client: TestClient) -> None:
    for path, allowed in (
        ("/v1/jobs", "GET, HEAD, POST"),
        ("/v1/corpora", "GET, HEAD"),
        ("/", "GET, HEAD"),
        ("/static/home.js", "GET, HEAD"),
    ):
        answer = client.delete(path)
        assert "DELETE" in problem(answer, 405)["detail"]
        assert answer.headers["allow"].startswith(allowed)


def test_the_unforeseen_shows_nothing(client: TestClient, app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("the secret is 42")

    answer = client.get("/broken")
    body = problem(answer, 500)
    assert "secret" not in answer.text
    assert "RuntimeError" not in answer.text
    assert body["request_id"] in body["detail"]
    assert body["request_id"] in caplog.text
    assert "the secret is 42" in caplog.text


def test_a_silent_database_is_503(client: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*args: Any) -> None:
        raise OperationalError("SELECT 1", None, Exception("locked"))

    monkeypatch.setattr(app.state.services.database, "reading", silent)
    monkeypatch.setattr(app.state.services.database, "check", silent)
    assert "database" in problem(client.get("/v1/jobs"), 503)["detail"]
    assert "database" in problem(client.get("/readyz"), 503)["detail"]
    assert client.get("/healthz").json() == {"status": "ok"}


def test_readiness(client: TestClient, store: Store) -> None:
    works = {"database": "ok", "store": "ok", "worker": "off", "ray": "on demand"}
    assert client.get("/readyz").json() == {"status": "ready", **works}
    store.home.rename(store.home.with_name("moved"))
    # An answer is kept for a second.
    wait_for(lambda: client.get("/readyz").status_code == 503)
    broken = problem(client.get("/readyz"), 503)
    assert "store" in broken["detail"]
    assert str(store.home) not in json.dumps(broken)
    assert broken["store"] in broken["detail"]
    assert [broken[name] for name in ("database", "worker", "ray")] == ["ok", "off", "on demand"]
    store.home.with_name("moved").rename(store.home)


# Jobs

INGEST = {"kind": "ingest", "request": {"name": "new", "paths": ["texts.jsonl"]}}


def test_submitting_a_job(client: TestClient) -> None:
    answer = client.post("/v1/jobs", json=INGEST)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert client.get(answer.headers["location"]).json() == job
    assert (job["kind"], job["state"], job["result"], job["error"]) == ("ingest", "queued", None, None)
    assert {"name": "new", "paths": ["texts.jsonl"]}.items() <= job["request"].items()
    assert client.post("/v1/jobs", json=INGEST).json()["id"] == job["id"]
    assert [each["id"] for each in client.get("/v1/jobs?state=queued&kind=ingest").json()["items"]] == [job["id"]]


def test_a_result_that_is_gone_is_made_again(
    client: TestClient, board: Board, store: Store, publish_corpus: PublishCorpus, tmp_path: Path
) -> None:
    (tmp_path / "texts.jsonl").write_text("{}")
    submission = {"kind": "ingest", "request": {"name": "new", "paths": [str(tmp_path / "texts.jsonl")]}}
    first = client.post("/v1/jobs", json=submission).json()["id"]
    claim = board.claim("test")
    assert claim is not None
    manifest = publish_corpus("new", document_table(["a"]))
    board.succeed(claim, manifest)
    assert client.post("/v1/jobs", json=submission).json()["id"] == first
    store.directory(manifest).rename(tmp_path / "gone")
    assert client.post("/v1/jobs", json=submission).json()["id"] != first


WRONG_SUBMISSIONS: list[tuple[Any, list[str]]] = [
    ({"kind": "ingest"}, ["request"]),
    ({"kind": "digest", "request": {}}, ["kind", "ingest"]),
    ({"request": {}}, ["kind"]),
    ({"kind": "ingest", "request": {"name": "n"}}, ["request.paths"]),
    ({"kind": "ingest", "request": {"name": "n", "paths": [1]}}, ["request.paths[0]"]),
    ({"kind": "ingest", "request": {"name": "a b", "paths": ["x"]}}, ["request.name", "name@version"]),
    (
        {"kind": "ingest", "request": {"name": "n", "paths": ["x"], "pahts": 1}},
        ["request.pahts", "no such field"],
    ),
    ({"kind": "ingest", "request": {"name": "n", "paths": ["x"]}, "now": 1}, ["now", "no such field"]),
    ({"kind": "ingest", "request": {"kind": "embed", "name": "n", "paths": ["x"]}}, ["request.kind"]),
    ([], ["body"]),
]


def test_wrong_submissions_name_the_field(client: TestClient) -> None:
    for body, words in WRONG_SUBMISSIONS:
        refused = problem(client.post("/v1/jobs", json=body), 422)
        assert all(word in refused["detail"] for word in words), refused["detail"]
        assert refused["errors"]


def test_wrong_selectors_name_the_field(client: TestClient) -> None:
    request = {
        "name": "m",
        "sources": ["wiki"],
        "selector": {"kind": "uniform", "sed": 1},
        "budget": {"tokens": 9},
    }
    refused = problem(client.post("/v1/jobs", json={"kind": "select", "request": request}), 422)
    assert "sed" in refused["detail"]


def test_bodies_that_are_not_json_objects(client: TestClient) -> None:
    for content in ('{"kind": ', "", "null", '"\\ud800"', '{"kind": "\\ud800", "request": {}}'):
        problem(client.post("/v1/jobs", content=content, headers={"content-type": "application/json"}), 422)


def test_a_body_that_is_not_text(client: TestClient) -> None:
    answer = client.post("/v1/jobs", content=b'{"kind": "\x80"}', headers={"content-type": "application/json"})
    assert "UTF-8" in problem(answer, 400)["detail"]


def test_a_page_elsewhere_cannot_submit(client: TestClient) -> None:
    """Browsers send text/plain across origins without asking; it must not count as JSON."""
    answer = client.post("/v1/jobs", content=json.dumps(INGEST), headers={"content-type": "text/plain"})
    assert answer.status_code == 415


def test_following_a_job(client: TestClient, board: Board, publish_corpus: PublishCorpus) -> None:
    job = client.post("/v1/jobs", json=INGEST).json()
    manifest = publish_corpus("new", document_table(["a"]))

    def work() -> None:
        claim = board.claim("test")
        assert claim is not None
        time.sleep(0.8)
        board.succeed(claim, manifest)

    worker = threading.Thread(target=work)
    worker.start()
    answer = client.get(f"/v1/jobs/{job['id']}/events")
    worker.join()
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [
        json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data")
    ]
    assert [event["state"] for event in events][-2:] == ["running", "succeeded"]
    assert events[-1] == client.get(f"/v1/jobs/{job['id']}").json()
    assert events[-1]["result"] == {"kind": "corpus", "ref": "new@1", "fingerprint": manifest.fingerprint}
    assert set(re.findall(r"^event: (.*)$", answer.text, re.MULTILINE)) == {"job"}


def test_cancelling_a_job(client: TestClient, board: Board, publish_corpus: PublishCorpus) -> None:
    job = client.post("/v1/jobs", json=INGEST).json()
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    again = client.post("/v1/jobs", json=INGEST).json()
    assert again["id"] != job["id"]
    claim = board.claim("test")
    assert claim is not None
    board.succeed(claim, publish_corpus("new", document_table(["a"])))
    assert "succeeded" in problem(client.post(f"/v1/jobs/{again['id']}/cancel"), 409)["detail"]


def test_logs_come_without_stack_traces(client: TestClient, settings: Settings) -> None:
    job = client.post("/v1/jobs", json=INGEST).json()
    address = f"/v1/jobs/{job['id']}/logs"
    assert client.get(address).text == ""
    path = log_path(settings.home, job["id"])
    path.parent.mkdir()
    path.write_text(
        "reading files\n"
        "Traceback (most recent call last):\n"
        '  File "secret.py", line 1, in run\n'
        "    raise ValueError(secret)\n"
        "           ~~~~~~~~^^^^^^^^\n"
        "ValueError: no such column\n"
        "\n"
        "During handling of the above exception, another exception occurred:\n"
        "\n"
        "Traceback (most recent call last):\n"
        '  File "secret.py", line 2\n'
        "mixwright.errors.DataError: wrong\n"
        "(worker pid=1) Traceback (most recent call last):\n"
        '(worker pid=1)   File "secret.py", line 3\n'
        "(worker pid=1) KeyError: 'x'\n"
        "  an indented line\n"
        "the end\n"
    )
    text = client.get(address).text
    assert "secret" not in text
    assert "Traceback" not in text
    for line in (
        "reading files",
        "ValueError: no such column",
        "(worker pid=1) KeyError: 'x'",
        "  an indented line",
        "the end",
    ):
        assert line in text.splitlines()
    assert client.get(f"{address}?tail=2").text == "  an indented line\nthe end\n"


def test_lines_that_only_mention_traces_stay() -> None:
    lines = ["a", "  b", "", 'File "x"', "  c"]
    assert without_tracebacks(lines) == lines


# Pages and documents


def test_the_home_page_escapes_and_protects(client: TestClient, board: Board, published: pa.Table) -> None:
    evil = "<script>alert(1)</script>"
    client.post("/v1/jobs", json={"kind": "ingest", "request": {"name": "new", "paths": ["x"]}})
    claim = board.claim("test")
    assert claim is not None
    board.fail(claim, ConfigError(evil))
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert evil not in answer.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    for ref in ("/mixtures/blend@1", "/corpora/wiki@1", "/corpora/web@1"):
        assert f'href="{ref}"' in answer.text
    # Nothing comes from elsewhere, and everything the page names is there.
    named = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert all(address.startswith(("/", "#")) for address in named)
    for address in named:
        assert address.startswith("#") or client.get(address).status_code == 200, address


def test_the_home_page_of_an_empty_store(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "No mixture yet" in answer.text


def test_openapi_describes_every_operation(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operations = [each for path in document["paths"].values() for each in path.values()]
    ids = [each["operationId"] for each in operations]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[a-z_]+", each) for each in ids)
    tags = {tag["name"] for tag in document["tags"]}
    for operation in operations:
        assert operation["summary"]
        assert set(operation["tags"]) <= tags
        assert operation["description"]
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                (content,) = response["content"].items()
                assert content[0] == "application/problem+json"
                assert content[1]["example"]["status"] == int(status)
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= set(schemas)
    assert "HTTPValidationError" not in schemas
    assert {"ref", "components", "fingerprint"} <= set(schemas["MixtureDetail"]["properties"])


# The server


class running:  # noqa: N801  # reads as a context manager
    """A real server on a free port of this machine, in a thread."""

    def __init__(self, app: FastAPI) -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=2))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.02)
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def test_a_taken_port_is_one_line(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="taken"):
        serve(settings, "127.0.0.1", taken.getsockname()[1], pytest.fail)
    with pytest.raises(ConfigError, match="no address"):
        serve(settings, "no such host", 1, pytest.fail)


def test_serve_announces_its_address_and_ends(
    settings: Settings, published: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def ask_and_end(server: uvicorn.Server, address: str) -> None:
        heard.append(httpx2.get(f"{address}/readyz").json()["worker"])
        heard.append(httpx2.get(f"{address}/v1/mixtures").json()["items"][0]["ref"])
        server.should_exit = True

    class Recording(server_module._Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            threading.Thread(target=ask_and_end, args=(self, addresses[0])).start()

    addresses: list[str] = []
    monkeypatch.setattr(server_module, "_Server", Recording)
    serve(settings, "127.0.0.1", 0, addresses.append)
    assert heard == ["ok", "blend@1"]


def test_files_to_rows_through_a_real_service(tmp_path: Path) -> None:
    """The whole way: a process that serves, a job in a process of its own, rows as they were in the file."""
    documents = [
        {"text": f"{text} {number}", "url": f"https://example.org/{number}"}
        for number in range(3)
        for text in TEXTS
    ]
    (tmp_path / "texts.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in documents))
    command = [sys.executable, "-m", "mixwright", "serve", "--home", str(tmp_path / "home"), "--port", "0"]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    try:
        address = service.stdout.readline().split()[-1]
        with httpx2.Client(base_url=address, timeout=60) as client:
            request = {"name": "texts", "paths": [str(tmp_path / "texts.jsonl")]}
            job = client.post("/v1/jobs", json={"kind": "ingest", "request": request}).json()
            last = client.get(f"/v1/jobs/{job['id']}/events").text.strip().splitlines()[-1]
            assert json.loads(last.removeprefix("data: "))["result"]["ref"] == "texts@1", last
            rows = [each["row"] for each in client.get("/v1/corpora/texts/rows").json()["rows"]]
        assert [{"text": row["text"], "url": row["url"]} for row in rows] == documents
        assert {row["domain"] for row in rows} == {"example.org"}
    finally:
        service.terminate()
        service.communicate(timeout=30)
