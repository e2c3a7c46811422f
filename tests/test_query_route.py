"""Mixtures by declaration over HTTP: what is published, once, and what is refused."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
from conftest import PublishCorpus
from fastapi.testclient import TestClient
from support import document_table
from typer.testing import CliRunner

from mixwright.cli import app as cli
from mixwright.config import Settings
from mixwright.errors import BusyError
from mixwright.jobs import query as query_jobs
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.selectors.declaration import Declaration
from mixwright.selectors.requests import SelectRequest
from mixwright.service.app import create_app
from mixwright.store import Store

QUERY = {"sources": ["wiki", "web"], "weights": {"wiki": 0.7, "web": 0.3}, "budget": {"tokens": 3_000}}


def table(name: str, n: int, mean: int) -> Any:
    rng = np.random.default_rng(len(name))
    return document_table(
        [f"{name} {i}" for i in range(n)],
        source=name,
        domains=[f"{name}{i % 3}.org" for i in range(n)],
        n_tokens=rng.integers(1, 2 * mean, n).tolist(),
        metadata=[json.dumps({"year": 1990 + i % 30}) for i in range(n)],
    )


@pytest.fixture
def corpora(publish_corpus: PublishCorpus) -> None:
    publish_corpus("wiki", table("wiki", 150, 30), 40)
    publish_corpus("web", table("web", 300, 20), 70)


@pytest.fixture
def client(store: Store, corpora: None) -> Iterator[TestClient]:
    app = create_app(Settings(home=store.home), run_worker=False)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def query(client: TestClient, body: dict[str, Any], path: str = "query") -> httpx2.Response:
    return client.post(f"/v1/mixtures/{path}", json=body)


def refused(client: TestClient, body: dict[str, Any], status: int) -> dict[str, Any]:
    for path in ("query", "preview"):
        response = query(client, body, path)
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert "\n" not in problem["detail"]
    return problem


def test_a_declared_mixture_is_there_at_once(client: TestClient, store: Store) -> None:
    first = query(client, {**QUERY, "where": "year < 2010"})
    assert first.status_code == 201
    body = first.json()
    assert body["name"] == f"query-{body['fingerprint'][:16]}"
    assert first.headers["location"] == f"/v1/mixtures/{body['ref']}"
    assert client.get(first.headers["location"]).json() == body
    shares = {part["name"]: part["weight"] for part in body["components"]}
    assert shares == pytest.approx({"wiki": 0.7, "web": 0.3}, abs=0.01)
    rows = [json.loads(line) for line in client.get(f"{first.headers['location']}/rows").text.splitlines()]
    assert len(rows) == body["n_rows"]
    assert sum(row["n_tokens"] for row in rows) == body["n_tokens"] <= 3_000
    years = {id_: json.loads(each)["year"] for id_, each in ids_and_metadata()}
    assert max(years[row["id"]] for row in rows) < 2010
    listed = client.get("/v1/mixtures?selector=declared").json()["items"]
    assert [each["ref"] for each in listed] == [body["ref"]]


def ids_and_metadata() -> list[tuple[str, str]]:
    tables = [table("wiki", 150, 30), table("web", 300, 20)]
    return [
        pair for each in tables for pair in zip(each["id"].to_pylist(), each["metadata"].to_pylist(), strict=True)
    ]


def test_the_same_declaration_is_the_same_mixture(
    client: TestClient, store: Store, publish_corpus: PublishCorpus
) -> None:
    first = query(client, QUERY)
    spelled = {**QUERY, "sources": ["wiki@1", "web@1"], "seed": 0, "max_epochs": None, "stages": [], "where": None}
    for body in (QUERY, spelled):
        again = query(client, body)
        assert again.status_code == 200
        assert again.json() == first.json()
        assert again.headers["location"] == first.headers["location"]
    other = query(client, {**QUERY, "seed": 1})
    assert other.status_code == 201
    assert other.json()["ref"] != first.json()["ref"]
    # A newer version of a corpus is another input.
    publish_corpus("web", table("web", 299, 20), 70)
    newer = query(client, QUERY)
    assert newer.status_code == 201
    assert newer.json()["inputs"][1]["ref"] == "web@2"
    assert query(client, {**QUERY, "sources": ["wiki", "web@1"]}).json() == first.json()


def test_a_name_may_be_given(client: TestClient) -> None:
    assert query(client, {**QUERY, "name": "blend"}).json()["ref"] == "blend@1"
    assert query(client, {**QUERY, "name": "blend"}).status_code == 200
    assert query(client, {**QUERY, "name": "blend", "seed": 2}).json()["ref"] == "blend@2"
    assert query(client, {**QUERY, "name": "blend@1"}).json()["ref"] == "blend@1"
    conflict = query(client, {**QUERY, "name": "blend@1", "seed": 3})
    assert conflict.status_code == 409
    assert conflict.json()["type"] == "urn:mixwright:error:conflict"


def test_it_is_what_a_select_job_publishes(client: TestClient, store: Store) -> None:
    stages = [
        {"name": "main", "share": 0.8},
        {"name": "end", "share": 0.2, "weights": {"wiki": 1}, "tagged": False},
    ]
    declaration = {"temperature": 2.0, "tags": {"preset": "meco"}, "stages": stages}
    found = query(client, {"sources": ["wiki", "web"], "budget": {"tokens": 4_000}, **declaration}).json()
    request = SelectRequest.model_validate(
        {
            "name": "job",
            "sources": ["wiki", "web"],
            "selector": {"kind": "declared", **declaration},
            "budget": {"tokens": 4_000},
        }
    )
    manifest = run_select(store, request, NoProgress())
    assert manifest.fingerprint == found["fingerprint"]
    assert [each.sha256 for each in manifest.files] == [each["sha256"] for each in found["files"]]
    assert [each.model_dump() for each in manifest.stages] == found["stages"]


def test_one_post_and_many_at_once_are_the_same(client: TestClient, store: Store) -> None:
    start = threading.Barrier(6)

    def post(_: int) -> httpx2.Response:
        start.wait()
        return query(client, {**QUERY, "name": "blend"})

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(post, range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert {answer.json()["ref"] for answer in answers} == {"blend@1"}
    assert store.versions("mixture", "blend") == [1]


def test_it_waits_for_another_process_that_makes_the_same(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = query(client, QUERY, "preview").json()["fingerprint"]
    name = f"query-{fingerprint[:16]}"
    (store.home / "staging").mkdir(exist_ok=True)
    with (store.home / "staging" / f"mixture-{name}@1-{fingerprint[:16]}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waited = threading.Event()
        real_sleep = query_jobs.time.sleep

        def sleep(seconds: float) -> None:
            waited.set()
            real_sleep(seconds)

        monkeypatch.setattr(query_jobs.time, "sleep", sleep)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(query, client, QUERY)
            assert waited.wait(30)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert answer.result(30).status_code == 201
        monkeypatch.setattr(query_jobs, "_LONGEST_WAIT_SECONDS", 0.0)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # What is published needs no lock.
        assert query(client, QUERY).status_code == 200
    monkeypatch.setattr(query_jobs, "publish_selection", busy)
    assert query(client, {**QUERY, "seed": 9}).status_code == 409


def test_what_was_published_before_the_lock_was_had_is_not_published_again(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {**QUERY, "name": "blend"}
    first = query(client, body).json()
    real, looks = Store.existing, []

    def late(self: Store, *arguments: Any) -> Any:
        looks.append(arguments)
        return None if len(looks) == 1 else real(self, *arguments)

    monkeypatch.setattr(Store, "existing", late)
    again = query(client, body)
    assert (again.status_code, again.json()) == (200, first)
    assert store.versions("mixture", "blend") == [1]
    assert len(looks) == 2


def busy(*_: Any) -> None:
    raise BusyError("another process is working on mixture m: wait for it or stop it")


def test_a_preview_says_the_same_and_writes_nothing(client: TestClient, store: Store) -> None:
    before = sorted(path for path in store.home.rglob("*") if "cache" not in path.parts)
    body = {**QUERY, "where": "year < 2010"}
    seen = query(client, body, "preview")
    assert seen.status_code == 200
    assert sorted(path for path in store.home.rglob("*") if "cache" not in path.parts) == before
    assert seen.json()["ref"] is None
    found = query(client, body).json()
    preview = query(client, body, "preview").json()
    assert preview["ref"] == found["ref"]
    for field in ("name", "fingerprint", "budget", "n_rows", "n_tokens", "stages", "warnings", "report", "tags"):
        assert seen.json()[field] == preview[field] == found[field]
    files = {"rows_file", "remainder_file"}
    parts = [{key: value for key, value in part.items() if key not in files} for part in found["components"]]
    assert [
        {key: value for key, value in part.items() if key not in files} for part in preview["components"]
    ] == parts


def test_what_cannot_be_is_refused(client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = refused(client, {**QUERY, "sources": ["wiki", "wbe"]}, 404)
    assert "no corpus wbe: there are web, wiki" in missing["detail"]
    short = refused(client, {**QUERY, "budget": {"tokens": 10_000_000}}, 409)
    assert short["type"] == "urn:mixwright:error:shortfall"
    assert short["source"] in ("wiki", "web")
    works = query(client, {**QUERY, "budget": {"tokens": short["largest_budget"]}})
    assert works.status_code == 201
    assert "is not understood" in refused(client, {**QUERY, "where": "year <"}, 422)["detail"]
    assert "no source has a field 'yeer'" in refused(client, {**QUERY, "where": "yeer < 3"}, 422)["detail"]
    assert "weights" in refused(client, {**QUERY, "weights": {"wiki": -1}}, 422)["errors"][0]["field"]
    assert "give {tokens: N}" in refused(client, {"sources": ["wiki"]}, 422)["detail"]
    assert "budget.tokens" in refused(client, {**QUERY, "budget": {"tokens": 10**300}}, 422)["detail"]
    assert "there is no such field" in refused(client, {**QUERY, "wheer": "year < 3"}, 422)["detail"]
    assert "given twice" in refused(client, {**QUERY, "sources": ["wiki", "wiki"]}, 422)["detail"]
    for number in (True, "1000"):
        assert "give a number" in refused(client, {**QUERY, "budget": {"tokens": number}}, 422)["detail"]
        assert "give a number" in refused(client, {**QUERY, "weights": {"wiki": number}}, 422)["detail"]
        unshared = {name: value for name, value in QUERY.items() if name != "weights"}
        assert "valid number" in refused(client, {**unshared, "temperature": number}, 422)["detail"]
    assert "mixwright near-duplicates" in refused(client, {**QUERY, "near_duplicates": "drop"}, 422)["detail"]
    monkeypatch.setattr(query_jobs, "LARGEST_POOL", 449)
    assert "at most 449 are selected from" in refused(client, QUERY, 422)["detail"]
    assert [each.name for each in store.references("mixture")] == [works.json()["name"]]


def test_a_lone_surrogate_is_refused(client: TestClient) -> None:
    for field in ({"weights": {"wiki": 1, "\ud800": 1}}, {"tags": {"template": "\ud800{domain}"}}):
        content = json.dumps({**QUERY, **field})
        answer = client.post("/v1/mixtures/preview", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 422
        assert "lone surrogate, '\\ud800'" in answer.json()["detail"]


def test_a_recipe_says_its_budget_itself(client: TestClient) -> None:
    body = {"sources": ["wiki", "web"], "schedule": {"kind": "dmt", "specialised": ["wiki"], "rehearsal": 0.1}}
    found = query(client, body).json()
    assert found["budget"] == {"documents": 150 + 300 + 15}
    assert query(client, {**body, "budget": {"documents": 465}}).status_code == 200
    assert "leave the budget out" in refused(client, {**body, "budget": {"documents": 9}}, 422)["detail"]


def test_the_body_has_every_field_of_a_declaration(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    fields = schemas["MixtureQuery"]["properties"].keys()
    assert {each.name for each in dataclasses.fields(Declaration)} <= fields
    assert {"sources", "budget", "name", "near_duplicates", "contaminated"} <= fields
    assert schemas["MixtureQuery"]["required"] == ["sources"]


@pytest.mark.parametrize(
    ("declaration", "headings"),
    [
        (
            {
                "schedule": {"kind": "wsd", "decay_sources": {"web": 1}, "pretrain_share_in_decay": 0.5},
                "where": "n_tokens > 3",
                "tags": {},
                "budget": {"tokens": 3_000},
            },
            ["What each stage holds", "Documents that meet the conditions", "Coverage"],
        ),
        (
            {
                "schedule": {
                    "kind": "ability-caps",
                    "caps": {"web": 9},
                    "points": {"wiki": [[1, 0], [4, 1], [9, 5]]},
                },
                "budget": {"documents": 60},
            },
            ["Caps"],
        ),
        ({"budget": {"tokens": 3_000}}, []),
    ],
)
def test_the_page_shows_what_was_declared(
    client: TestClient, declaration: dict[str, Any], headings: list[str]
) -> None:
    found = query(client, {"sources": ["wiki", "web"], **declaration}).json()
    page = client.get(f"/mixtures/{found['ref']}", headers={"accept": "text/html"})
    assert page.status_code == 200
    every = ["What each stage holds", "Documents that meet the conditions", "Caps", "Coverage"]
    assert [heading for heading in every if f">{heading}</h2>" in page.text] == headings


def test_the_command_publishes_the_same(client: TestClient, store: Store, tmp_path: Any) -> None:
    found = query(client, QUERY).json()
    (tmp_path / "query.json").write_text(json.dumps(QUERY))
    for arguments in ([str(tmp_path / "query.json")], [json.dumps(QUERY)], ["-"], ["-", "--preview"]):
        result = CliRunner().invoke(
            cli,
            ["mixture", "query", *arguments, "--home", str(store.home), "--json"],
            input=json.dumps(QUERY),
            catch_exceptions=False,
        )
        assert json.loads(result.stdout)["ref"] == found["ref"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--temperature", "2.5"],
        ["--unimax", "2"],
        ["--max-epochs", "3", "--seed", "5"],
        ["--weights", "wiki=0.7,web=3"],
    ],
)
def test_numbers_on_the_command_line_are_numbers(store: Store, corpora: None, flags: list[str]) -> None:
    pool = ["--source", "wiki", "--source", "web", "--name", "blend", "--documents", "50"]
    result = CliRunner().invoke(cli, ["select", "declared", *pool, *flags, "--home", str(store.home), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["n_rows"] == 50
