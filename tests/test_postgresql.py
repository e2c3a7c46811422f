"""The catalog and the job board on a real PostgreSQL: what SQLite would not show.

The contracts of the board, the catalog and the keys are tested over both databases in their own modules.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from conftest import PublishCorpus
from fastapi.testclient import TestClient
from sqlalchemy import text
from support import document_table

from mixwright.config import Settings
from mixwright.errors import ConfigError, MissingExtraError
from mixwright.jobs import database as database_module
from mixwright.jobs.board import Board
from mixwright.jobs.database import Database
from mixwright.service.app import create_app
from mixwright.service.catalog import Catalog
from mixwright.store import Store

if TYPE_CHECKING:
    from postgresql_server import Postgresql


@pytest.fixture
def url(postgresql: Postgresql) -> Iterator[str]:
    with postgresql.schema() as url:
        yield url


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    database.upgrade()
    yield database
    database.close()


@pytest.fixture
def settings(url: str, store: Store) -> Settings:
    return Settings(home=store.home, database_url=url)


def wait_for_job(client: TestClient, job_id: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while (job := client.get(f"/v1/jobs/{job_id}").json())["state"] in ("queued", "running"):
        assert time.monotonic() < end, job
        time.sleep(0.05)
    found: dict[str, Any] = job
    return found


def test_a_service_does_its_work(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "pages.jsonl"
    path.write_text('{"text": "one ✓ \\u0000 page", "host": "a.org"}\n{"text": "another"}\n')
    request = {"name": "wiki", "paths": [str(path)], "domain_field": "host", "tokenizer": "bytes"}
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        posted = client.post("/v1/jobs", json={"kind": "ingest", "request": request})
        assert posted.status_code == 202, posted.text
        job = wait_for_job(client, posted.json()["id"])
        assert job["state"] == "succeeded", job
        assert job["result"]["ref"] == "wiki@1"
        again = client.post("/v1/jobs", json={"kind": "ingest", "request": request})
        assert again.json()["id"] == job["id"]
        (listed,) = client.get("/v1/corpora").json()["items"]
        assert (listed["ref"], listed["n_rows"]) == ("wiki@1", 2)
        rows = client.get("/v1/corpora/wiki/rows").json()["rows"]
        assert [each["row"]["text"] for each in rows] == ["one ✓ \0 page", "another"]
        assert client.get("/v1/jobs", params={"state": "succeeded"}).json()["items"][0]["id"] == job["id"]
        assert client.get("/readyz").status_code == 200
    assert not (settings.home / "catalog.sqlite").exists()


@pytest.mark.parametrize("path", ["/v1/jobs/a%00b", "/v1/mixtures?domain=a%00b", "/v1/mixtures?selector=%00"])
def test_characters_that_it_does_not_hold_are_nothing_that_there_is(settings: Settings, path: str) -> None:
    with TestClient(create_app(settings, run_worker=False), raise_server_exceptions=False) as client:
        answer = client.get(path)
    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_any_domain_of_a_corpus_is_taken_and_found(
    database: Database, store: Store, publish_corpus: PublishCorpus
) -> None:
    letters = random.Random(0)
    # Too long for an index of PostgreSQL, also once compressed.
    long = "".join(chr(letters.randrange(0x4E00, 0x9000)) for _ in range(2000))
    found = ["münchen.de", "a\\b", "100%", "under_score", "new\nline", "'; DROP TABLE jobs; --", "\U0001f600"]
    domains = [*found, "nul\0.org", long, None]
    publish_corpus("wiki", document_table([str(number) for number in range(len(domains))], domains=domains))
    catalog = Catalog(database, store)
    catalog.sync()
    with database.reading() as session:
        held = session.scalars(text("SELECT domain FROM artifact_domains")).all()
    assert sorted(held) == sorted(found)
    assert [each.ref for each in catalog.page("corpus", 10, text="MÜNCHEN").items] == ["wiki@1"]
    assert catalog.page("corpus", 10, text="underXscore").items == []


def test_a_lost_server_is_told_and_forgotten(
    postgresql: Postgresql, settings: Settings, publish_corpus: PublishCorpus
) -> None:
    publish_corpus("wiki", document_table(["a"]))
    job = {"kind": "embed", "request": {"corpus": "wiki"}}
    with TestClient(create_app(settings, run_worker=False), raise_server_exceptions=False) as client:

        def answers() -> list[httpx2.Response]:
            # A write is under way: its connection was taken from the pool, and is a lost one.
            return [client.get("/readyz"), client.get("/v1/corpora"), client.post("/v1/jobs", json=job)]

        assert [each.status_code for each in answers()] == [200, 200, 202]
        postgresql.stop()
        try:
            time.sleep(1.1)  # an answer about the readiness is used for a second
            lost = answers()
        finally:
            postgresql.start()
        assert [each.status_code for each in lost] == [503, 503, 503]
        assert "MIXWRIGHT_DATABASE_URL" in lost[2].json()["detail"]
        time.sleep(1.1)
        assert [each.status_code for each in answers()] == [200, 200, 202]


def test_a_write_whose_server_goes_is_not_done_and_says_so(postgresql: Postgresql, settings: Settings) -> None:
    app = create_app(settings, run_worker=False)
    database: Database = app.state.services.database

    @app.get("/half-done", name="half_done")
    def half_done() -> None:
        with database.writing() as session:
            session.execute(text("CREATE TABLE half_done (n integer)"))
            postgresql.stop()
            postgresql.start()

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/half-done").status_code == 503
        with database.reading() as session:
            assert session.scalar(text("SELECT to_regclass('half_done')")) is None


def test_forty_threads_find_a_connection_each(database: Database) -> None:
    together = threading.Barrier(40)

    def hold() -> int:
        with database.reading() as session:
            together.wait(timeout=20)
            return int(session.scalar(text("SELECT 1")) or 0)

    with ThreadPoolExecutor(40) as pool:
        assert sum(pool.map(lambda _: hold(), range(40))) == 40
    assert database.engine.pool.checkedin() <= 10  # type: ignore[attr-defined]


def test_without_a_free_connection_a_request_is_told_to_come_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_POOL_SECONDS", 0.05)
    monkeypatch.setattr(database_module, "_MAX_CONNECTIONS", 1)
    monkeypatch.setattr(database_module, "_KEPT_CONNECTIONS", 1)
    app = create_app(settings, run_worker=False)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/v1/jobs").status_code == 200
        with app.state.services.database.engine.connect():
            answer = client.get("/v1/jobs")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


def test_submitting_the_same_from_many_threads_is_one_job(database: Database) -> None:
    board, together = Board(database), threading.Barrier(12)

    def submit() -> str:
        together.wait(timeout=20)
        return board.submit({"kind": "ingest", "name": "wiki", "paths": ["a"]}).id

    with ThreadPoolExecutor(12) as pool:
        assert len(set(pool.map(lambda _: submit(), range(12)))) == 1


def test_the_plain_url_takes_our_driver(url: str) -> None:
    database = Database(url.replace("postgresql+psycopg://", "postgresql://"))
    database.upgrade()
    database.check()
    database.close()


def test_a_server_that_is_not_there_is_one_line_without_the_password() -> None:
    with pytest.raises(ConfigError, match=r"does not open .*MIXWRIGHT_DATABASE_URL") as raised:
        Database("postgresql://me:hush@127.0.0.1:1/mixwright").upgrade()
    assert "hush" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_the_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"mixwright\[postgresql\]"):
        Database("postgresql://127.0.0.1/mixwright")
