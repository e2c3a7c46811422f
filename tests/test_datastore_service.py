"""Datastores over HTTP and on the command line: what they answer against what ``Datastore.search`` finds."""

from __future__ import annotations

import html
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from support import published_corpus, retrieval_table, run_workers_here, wait_for
from typer.testing import CliRunner

from mixwright.cli import app as command_line
from mixwright.config import Settings
from mixwright.errors import ConfigError, MixwrightError, NotFoundError
from mixwright.indexes.datastores.datastore import Answer, Datastore
from mixwright.indexes.datastores.shards import Answers, LocalShards
from mixwright.jobs.run import REQUEST_ADAPTER, run_request
from mixwright.progress import NoProgress
from mixwright.schemas.datastores import DatastoreDeleteRequest, DatastoreRequest, PassageWindow, SearchRequest
from mixwright.schemas.manifests import MANIFEST_ADAPTER, DatastoreManifest
from mixwright.service.app import create_app
from mixwright.service.datastores import GatheredSearch, OpenDatastores
from mixwright.store import Store

QUERIES = ["barn felt gilk", "komb n7"]
SMALL = {"encoder": "hashing:64", "recall": 0.9, "queries": 60, "window": PassageWindow(size=20), "shards": 3}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The corpora ``wiki`` and ``web``, and of the first the datastores ``qa``, which is flat, and ``ivf``."""
    made = Store(tmp_path_factory.mktemp("service") / "home")
    published_corpus(made, "wiki", retrieval_table(120), 40)
    published_corpus(made, "web", retrieval_table(30, seed=1, source="web"), 40)
    with pytest.MonkeyPatch.context() as patch:
        run_workers_here(patch.setattr)
        for name, kind in (("qa", "flat"), ("ivf", "ivf")):
            request = DatastoreRequest(name=name, corpora=["wiki"], index_kind=kind, **SMALL)
            run_request(made, request, NoProgress())
        yield made


@pytest.fixture(scope="module")
def client(store: Store) -> Iterator[TestClient]:
    app = create_app(Settings(home=store.home), run_worker=False)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def datastore(store: Store) -> Datastore:
    return Datastore.open(store, "qa@1")


def problem(response: httpx2.Response, status: int) -> str:
    """The detail of a refusal."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in response.text
    body = response.json()
    assert (body["status"], "\n" in body["detail"]) == (status, False)
    return str(body["detail"])


def answer(datastore: Datastore, **request: Any) -> dict[str, Any]:
    return datastore.search(SearchRequest(**request)).model_dump(mode="json")


# REST


def test_datastores_are_listed_and_described(client: TestClient, store: Store, datastore: Datastore) -> None:
    listed = client.get("/v1/datastores").json()
    assert [each["ref"] for each in listed["items"]] == ["ivf@1", "qa@1"]
    assert {each["n_rows"] for each in listed["items"]} == {len(datastore)}
    answer = client.get("/v1/datastores/qa")
    detail = answer.json()
    assert detail.pop("ref") == "qa@1"
    assert MANIFEST_ADAPTER.validate_python(detail) == datastore.manifest
    again = client.get("/v1/datastores/qa", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/v1/datastores/qa@1", headers={"If-None-Match": '"another"'}).status_code == 200
    assert "nothing" in problem(client.get("/v1/datastores/nothing"), 404)
    assert "qa@7" in problem(client.get("/v1/datastores/qa@7"), 404)
    assert "wiki" in problem(client.get("/v1/datastores/wiki"), 404)


def test_the_home_page_lists_them_with_a_search_to_copy(client: TestClient, datastore: Datastore) -> None:
    page = client.get("/").text
    assert '<a href="/datastores/qa@1">qa@1</a>' in page
    assert f'<td class="number">{datastore.manifest.n_tokens:,}</td>' in page
    command = html.unescape(page[page.index("curl &#39;http") :])
    assert "/v1/datastores/" in command
    body = command[command.index("{") : command.index("}") + 1]
    sent = {"content": body, "headers": {"content-type": "application/json"}}
    assert client.post("/v1/datastores/qa/search", **sent).status_code == 200


def test_passages_are_read_in_pages(client: TestClient, datastore: Datastore) -> None:
    rows = datastore.pieces.rows(0, len(datastore)).to_pylist()
    answer = client.get("/v1/datastores/qa/rows?offset=70&length=50")
    page = answer.json()
    assert page["num_rows_total"] == len(rows)
    assert [each["row_idx"] for each in page["rows"]] == list(range(70, 120))
    for each in page["rows"]:
        row = rows[each["row_idx"]]
        assert {name: each["row"][name] for name in ("id", "document_id", "text", "start", "end")} == {
            name: row[name] for name in ("id", "document_id", "text", "start", "end")
        }
    address = "/v1/datastores/qa/rows?offset=70&length=50"
    assert client.get(address, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert client.get("/v1/datastores/qa/rows?offset=1000000").json()["rows"] == []
    problem(client.get("/v1/datastores/qa/rows?length=1000"), 422)


@pytest.mark.parametrize(
    "request_",
    [
        {"queries": QUERIES},
        {"queries": QUERIES, "k": 7, "mode": "bm25"},
        {"queries": QUERIES, "k": 300, "mode": "hybrid", "dedup": True},
        {"queries": QUERIES, "domains": ["a.org"], "where": "year < 2005", "subsample": 0.5, "seed": 3},
        {"queries": QUERIES, "decontaminate": [["barn"], []], "k": 20},
        {"queries": QUERIES, "where": "source = 'nowhere'"},
        {"queries": []},
        {"vectors": [[1.0] + [0.0] * 63], "exact": True},
    ],
)
def test_a_search_is_that_of_the_datastore(
    client: TestClient, datastore: Datastore, request_: dict[str, Any]
) -> None:
    found = client.post("/v1/datastores/qa/search", json=request_)
    assert found.status_code == 200
    assert found.headers["content-type"] == "application/json"
    expected = answer(datastore, **request_)
    assert found.json() == expected
    assert (expected["partial"], expected["shards_searched"], expected["shards_total"]) == (False, 3, 3)


@pytest.mark.parametrize(
    ("ref", "request_", "status", "words"),
    [
        ("nothing", {"queries": ["a"]}, 404, "nothing"),
        ("qa@9", {"queries": ["a"]}, 404, "qa@9"),
        ("qa", {"queries": [" "]}, 422, "query 0 is empty"),
        ("qa", {"queries": ["a"], "k": 0}, 422, "k: "),
        ("qa", {"queries": ["a"], "kk": 3}, 422, "kk: there is no such field"),
        ("qa", {}, 422, "give either queries"),
        ("qa", {"vectors": [[1.0, 2.0]]}, 422, "has 2 coordinates, datastore qa@1 wants 64"),
        ("qa", {"queries": ["a"], "nprobe": 3}, 422, "no search parameter nprobe"),
        ("qa", {"queries": ["a"], "where": "1 = 1"}, 422, "'1' is no field"),
        ("qa", {"queries": ["a"], "where": "text ="}, 422, "is not understood"),
        ("qa", {"queries": ["a"], "rerank": 5}, 422, "there is no cross-encoder"),
        ("qa", {"queries": ["a"] * 1025}, 422, "queries: "),
        ("qa", {"queries": ["a"], "decontaminate": [["b"], ["c"]]}, 422, "decontaminate"),
    ],
)
def test_what_cannot_be_answered_is_a_problem(
    client: TestClient, ref: str, request_: dict[str, Any], status: int, words: str
) -> None:
    assert words in problem(client.post(f"/v1/datastores/{ref}/search", json=request_), status)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b'{"queries": "a"}', b"[" * 100_000])
def test_a_body_that_is_no_request_is_refused(client: TestClient, body: bytes) -> None:
    problem(
        client.post("/v1/datastores/qa/search", content=body, headers={"content-type": "application/json"}), 422
    )


def test_shards_that_do_not_answer_are_a_problem_or_left_out(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = client.post("/v1/datastores/qa/search", json={"queries": QUERIES, "k": 300}).json()
    call = LocalShards.call
    monkeypatch.setattr(LocalShards, "call", lambda *args: Answers(call(*args).results[:2], 1))
    detail = problem(client.post("/v1/datastores/qa/search", json={"queries": QUERIES}), 503)
    assert detail.startswith("1 of the 3 shards of datastore qa@1 do not answer")
    partial = client.post("/v1/datastores/qa/search", json={"queries": QUERIES, "k": 300, "allow_partial": True})
    found = partial.json()
    assert (found["partial"], found["shards_searched"], found["shards_total"]) == (True, 2, 3)
    whole = [[hit["id"] for hit in line] for line in everything["hits"]]
    for line, hits in zip(whole, found["hits"], strict=True):
        some = [hit["id"] for hit in hits]
        assert some == [identity for identity in line if identity in set(some)]
        assert 0 < len(some) < len(line)


def test_the_schema_has_the_routes_and_the_kinds_of_jobs(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    paths = {path: sorted(methods) for path, methods in schema["paths"].items() if "datastores" in path}
    assert paths == {
        "/v1/datastores": ["get"],
        "/v1/datastores/{ref}": ["get"],
        "/v1/datastores/{ref}/rows": ["get"],
        "/v1/datastores/{ref}/search": ["post"],
    }
    search = schema["paths"]["/v1/datastores/{ref}/search"]["post"]
    assert {"200", "404", "422", "503"} <= search["responses"].keys()
    # References are to the document's own components, not to a schema that was pasted into it.
    assert "#/$defs/" not in json.dumps(schema)
    body = search["requestBody"]["content"]["application/json"]
    fields = body["schema"].get("properties") or schema["components"]["schemas"]["SearchRequest"]["properties"]
    assert SearchRequest.model_fields.keys() == fields.keys()
    for example in body["examples"].values():
        SearchRequest.model_validate(example["value"])


@pytest.mark.parametrize(
    ("kind", "request_"),
    [
        ("datastore", {"name": "more", "corpora": ["wiki", "web"], "shards": 2}),
        ("datastore-add", {"datastore": "qa", "corpora": ["web"]}),
        ("datastore-delete", {"datastore": "qa", "documents": ["0" * 32]}),
        ("datastore-compact", {"datastore": "qa", "shards": 1}),
    ],
)
def test_jobs_are_submitted(client: TestClient, kind: str, request_: dict[str, Any]) -> None:
    submitted = client.post("/v1/jobs", json={"kind": kind, "request": request_})
    assert submitted.status_code in (200, 201, 202)
    job = submitted.json()
    assert (job["kind"], job["state"]) == (kind, "queued")
    read = REQUEST_ADAPTER.validate_python({"kind": kind, **job["request"]})
    assert read == REQUEST_ADAPTER.validate_python({"kind": kind, **request_})
    assert client.post("/v1/jobs", json={"kind": kind, "request": request_}).json()["id"] == job["id"]
    problem(client.post("/v1/jobs", json={"kind": kind, "request": request_ | {"shardz": 1}}), 422)


def test_a_deletion_takes_effect_at_once(client: TestClient, store: Store) -> None:
    request = DatastoreRequest(name="living", corpora=["wiki"], index_kind="flat", **SMALL)
    run_request(store, request, NoProgress())
    before = client.post("/v1/datastores/living/search", json={"queries": QUERIES}).json()["hits"]
    gone = before[0][0]["document_id"]
    run_request(store, DatastoreDeleteRequest(datastore="living", documents=[gone]), NoProgress())
    for mode in ("dense", "bm25", "hybrid"):
        body = {"queries": QUERIES, "mode": mode, "k": 300}
        hits = client.post("/v1/datastores/living/search", json=body).json()["hits"]
        assert gone not in {hit["document_id"] for line in hits for hit in line}
    assert client.post("/v1/datastores/living@1/search", json={"queries": QUERIES}).json()["hits"] == before
    assert client.get("/v1/datastores/living").json()["n_deleted"] > 0


# Searches that are gathered


def test_searches_of_many_threads_are_answered_as_alone(client: TestClient, datastore: Datastore) -> None:
    requests: list[dict[str, Any]] = [
        {"queries": [f"barn felt n{number}", "komb"][: 1 + number % 2], "k": 4} | options
        for number in range(12)
        for options in ({}, {"mode": "hybrid"}, {"decontaminate": ["gelt"]}, {"nprobe": 1}, {"domains": ["b.org"]})
    ]

    def ask(request: dict[str, Any]) -> Any:
        return client.post("/v1/datastores/qa/search", json=request)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, requests))
    for request, response in zip(requests, found, strict=True):
        if "nprobe" in request:
            assert "no search parameter nprobe" in problem(response, 422)
        else:
            assert response.json() == answer(datastore, **request)


class Slow:
    """A datastore whose searches wait, and that remembers how many requests it got at a time."""

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore
        self.go_on = threading.Event()
        self.together: list[int] = []
        self.closed = False

    def check(self, request: SearchRequest) -> None:
        self._datastore.check(request)

    def search_together(self, requests: list[SearchRequest]) -> list[Answer]:
        self.together.append(len(requests))
        assert self.go_on.wait(20)
        return self._datastore.search_together(requests)

    def close(self) -> None:
        self.closed = True


def test_those_who_wait_are_answered_together_and_spoil_nothing_for_each_other(datastore: Datastore) -> None:
    slow = Slow(datastore)
    gathered = GatheredSearch(slow)  # type: ignore[arg-type]
    requests = [SearchRequest(queries=[f"barn n{number}"], k=4) for number in range(6)]
    requests += [SearchRequest(queries=["felt"], nprobe=2), SearchRequest(queries=["felt", "komb"], k=4)]
    requests += [SearchRequest(queries=["barn n1"], k=4, decontaminate=["barn"])]
    found: list[Any] = [None] * len(requests)

    def ask(number: int) -> None:
        try:
            found[number] = gathered.search(requests[number])
        except MixwrightError as error:
            found[number] = error

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(requests))]
    threads[0].start()
    wait_for(lambda: slow.together == [1])
    for thread in threads[1:]:
        thread.start()
    wait_for(lambda: len(gathered._waiting) == len(requests) - 1)
    with pytest.raises(MixwrightError, match="query 0 is empty"):
        gathered.search(SearchRequest(queries=[""], k=4))
    slow.go_on.set()
    for thread in threads:
        thread.join()
    assert sorted(slow.together) == [1, 1, 1, 6]
    for request, outcome in zip(requests, found, strict=True):
        if request.nprobe:
            assert isinstance(outcome, ConfigError)
        else:
            assert outcome.as_response() == datastore.search(request)


def test_a_datastore_is_closed_only_when_nobody_searches_it(datastore: Datastore) -> None:
    made: dict[str, Slow] = {}

    def open_datastore(ref: str) -> Any:
        if ref == "broken":
            raise NotFoundError("there is no such datastore")
        made[ref] = Slow(datastore)
        return made[ref]

    datastores = OpenDatastores(open_datastore)
    with datastores.of("first", "") as first:
        for number in range(20):
            with datastores.of(f"store-{number}", ""), datastores.of(f"store-{number}", "other"):
                pass
        with pytest.raises(NotFoundError), datastores.of("broken", ""):
            pass
        assert not made["first"].closed
        made["first"].go_on.set()
        assert first.search(SearchRequest(queries=["barn"])).hits
    assert made["first"].closed
    assert [name for name, each in made.items() if not each.closed] == [f"store-{n}" for n in range(16, 20)]
    datastores.close()
    assert all(each.closed for each in made.values())


# The command line


def printed(store: Store, *arguments: str) -> Any:
    result = CliRunner().invoke(
        command_line, ["datastore", *arguments, "--home", str(store.home), "--json"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_store_lives_on_the_command_line(store: Store) -> None:
    flags = ("--encoder", "hashing:64", "--window-size", "20", "--shards", "2", "--index-kind", "ivf")
    flags += ("--recall", "0.8", "--queries", "30", "--near-duplicates", "exact")
    built = printed(store, "build", "wiki", "--name", "cli", *flags)
    manifest = store.manifest("cli", "datastore")
    assert isinstance(manifest, DatastoreManifest)
    assert (built["ref"], built["n_shards"], built["index_kind"]) == ("cli@1", 2, "ivf")
    assert (built["n_passages"], built["n_documents"]) == (manifest.n_rows, 120)
    assert built["recall"]["measured"] >= 0.8
    assert (manifest.window, manifest.parameters["near_duplicates"]) == (PassageWindow(size=20), "exact")
    search = ("search", "cli", *QUERIES, "-k", "2", "--domain", "a.org", "--domain", "b.org", "--dedup")
    found = printed(store, *search, "--mode", "hybrid", "--decontaminate", "gelt", "--subsample", "0.7")
    expected = {
        "queries": QUERIES,
        "k": 2,
        "domains": ["a.org", "b.org"],
        "dedup": True,
        "mode": "hybrid",
        "decontaminate": ["gelt"],
        "subsample": 0.7,
    }
    assert found == answer(Datastore.open(store, "cli@1"), **expected)
    added = printed(store, "add", "cli", "web", "--shards", "1")
    assert (added["ref"], added["n_documents"], added["n_shards"]) == ("cli@2", 150, 3)
    gone = found["hits"][0][0]["document_id"]
    deleted = printed(store, "delete", "cli", gone)
    assert (deleted["ref"], deleted["n_documents"], deleted["n_deleted"] > 0) == ("cli@3", 149, True)
    compacted = printed(store, "compact", "cli", "--shards", "1")
    assert (compacted["ref"], compacted["n_deleted"], compacted["n_shards"]) == ("cli@4", 0, 1)
    assert compacted["n_passages"] == deleted["n_passages"]
    arguments = ["catalog", "lineage", "datastore:cli@4", "--home", str(store.home), "--json"]
    lineage = CliRunner().invoke(command_line, arguments, catch_exceptions=False).stdout
    assert all(ref in lineage for ref in ("cli@3", "cli@2", "cli@1", "wiki@1", "web@1"))


def test_hits_are_shown_to_people(store: Store) -> None:
    arguments = ["datastore", "search", "qa", *QUERIES, "--home", str(store.home)]
    shown = CliRunner().invoke(command_line, arguments, catch_exceptions=False).stdout
    hits = Datastore.open(store, "qa").search(SearchRequest(queries=QUERIES)).hits
    for query, line in zip(QUERIES, hits, strict=True):
        assert query in shown
        for hit in line:
            assert f"{hit.score:.4f}" in shown
            assert hit.document_id in shown
    nothing = CliRunner().invoke(command_line, [*arguments, "--where", "source = 'x'"], catch_exceptions=False)
    assert nothing.stdout.count("no passage qualifies") == 2
    with pytest.raises(ConfigError, match="--subsample"):
        CliRunner().invoke(command_line, [*arguments, "--subsample", "1.5"], catch_exceptions=False)


def test_two_processes_serve_one_store(client: TestClient, store: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mixwright", "datastore", "search", "ivf", *QUERIES, "-k", "40", "--json"]
    other = subprocess.Popen(
        [*command, "--home", str(store.home)], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    body = {"queries": QUERIES, "k": 40}
    found = [client.post("/v1/datastores/ivf/search", json=body).json() for _ in range(10)]
    output, _ = other.communicate(timeout=60)
    assert other.returncode == 0
    assert all(each == json.loads(output) for each in found)
