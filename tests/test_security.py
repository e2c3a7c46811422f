"""The service as an attacker meets it: every row of every table is sent to the real app."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import uvicorn
from conftest import PublishCorpus
from fastapi import FastAPI
from fastapi.testclient import TestClient
from support import api_routes, document_table

from mixwright.config import Settings
from mixwright.errors import ConfigError
from mixwright.jobs.board import Board, log_path
from mixwright.jobs.database import Database
from mixwright.jobs.worker import environment_of
from mixwright.schemas.requests import IngestRequest
from mixwright.service.app import create_app
from mixwright.service.problems import MEDIA_TYPE
from mixwright.service.security import protocol
from mixwright.service.security.access import COOKIE, needed_scope
from mixwright.service.security.guard import warn_without_keys
from mixwright.service.security.keys import Keys, Scope
from mixwright.service.security.limits import Limits
from mixwright.service.security.origins import is_loopback, safe_next
from mixwright.service.security.protocol import MAX_HEADER_BYTES, BoundedHeaders
from mixwright.store import Store

JSON = {"content-type": "application/json"}
SEARCH = b'{"queries": ["q"]}'
EMBED = {"kind": "embed", "request": {"corpus": "wiki"}}


@contextmanager
def service(store: Store, *, host: str = "127.0.0.1", base_url: str = "http://testserver", **settings: Any) -> Any:
    """A client of a service that listens on ``host``."""
    app = create_app(Settings(home=store.home, **settings), run_worker=False, host=host)
    with TestClient(app, base_url=base_url, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.fixture
def keys(store: Store) -> Iterator[dict[Scope, str]]:
    """A key of each scope."""
    with _keys_of(store) as made:
        yield {scope: made.create(scope, scope)[1] for scope in ("read", "write", "admin")}


@contextmanager
def _keys_of(store: Store) -> Iterator[Keys]:
    database = Database(Settings(home=store.home).catalog_url)
    database.upgrade()
    yield Keys(database)
    database.close()


@pytest.fixture
def guarded(store: Store, keys: dict[Scope, str]) -> Iterator[TestClient]:
    """A service on the network, which asks for keys."""
    with service(store, host="0.0.0.0") as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def app_of(client: TestClient) -> FastAPI:
    app = client.app
    assert isinstance(app, FastAPI)
    return app


def operations(client: TestClient) -> list[tuple[str, str]]:
    """Method and a path for every route of the app, the pages' and what is hidden from OpenAPI among them."""
    return [
        (method, re.sub(r"\{[^}]*\}", "blend", route.path))
        for route in api_routes(app_of(client))
        for method in route.methods
    ]


# Keys

OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/login"), ("POST", "/login")}


def test_nothing_opens_without_a_key(guarded: TestClient) -> None:
    """Every route there is, so that one that is added later is not forgotten."""
    asked = operations(guarded)
    assert set(asked) >= OPEN
    assert len(asked) > 30
    for method, path in asked:
        if (method, path) in OPEN:
            continue
        answer = guarded.request(method, path)
        if answer.status_code == 303:
            assert method == "GET"
            assert not path.startswith(("/v1", "/metrics", "/openapi"))
            assert urlsplit(answer.headers["location"]).path == "/login"
            assert parse_qs(urlsplit(answer.headers["location"]).query) == {"next": [path]}
        else:
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == 'Bearer realm="mixwright"'
            assert answer.headers["content-type"] == MEDIA_TYPE
            assert answer.json()["status"] == 401
        assert "set-cookie" not in answer.headers
    for path in ("/openapi.json", "/metrics", "/docs", "/v1", "/v1/", "/nowhere", "//v1/corpora", "/V1/corpora"):
        assert guarded.get(path).status_code in (303, 401), path


def test_who_may_what(guarded: TestClient, keys: dict[Scope, str]) -> None:
    """By each route: a scope that is enough is never 403, one that is not always is."""
    order: list[Scope] = ["read", "write", "admin"]
    seen: dict[Scope, list[str]] = {"read": [], "write": [], "admin": []}
    for method, path in operations(guarded):
        needed = needed_scope(method, path)
        if needed is None or path == "/logout":
            continue
        seen[needed].append(f"{method} {path}")
        for scope in order:
            answer = guarded.request(method, path, headers=bearer(keys[scope]))
            if order.index(scope) >= order.index(needed):
                assert answer.status_code not in (401, 403), (method, path, answer.text)
            else:
                assert answer.status_code == 403, (method, path)
                assert f"scope {needed}" in answer.json()["detail"]
                assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    assert "POST /v1/jobs" in seen["write"]
    assert "POST /v1/jobs/blend/cancel" in seen["write"]
    assert "POST /v1/datastores/blend/search" in seen["read"]
    assert "POST /v1/predict/mixture" in seen["read"]
    assert "POST /v1/mixtures/preview" in seen["read"]
    assert "POST /v1/mixtures/query" in seen["write"]
    assert [each for each in seen["write"] if each.startswith("GET")] == []


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Bearer mw_000000000000_" + "A" * 43,
        "Bearer mw_{id}_" + "A" * 43,
        "Bearer {key}x",
        "Bearer {key}, Bearer {key}",
        "Basic {key}",
        "{key}",
        "Bearer {KEY}",
        "Bearer \x00",
        "Bearer " + "x" * 10_000,
    ],
)
def test_wrong_keys(guarded: TestClient, keys: dict[Scope, str], header: str) -> None:
    key = keys["admin"]
    filled = header.replace("{key}", key).replace("{KEY}", key.upper()).replace("{id}", key.split("_")[1])
    answer = guarded.get("/v1/corpora", headers={"Authorization": filled.encode()})
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert key not in answer.text
    assert guarded.get(f"/v1/corpora?key={key}").status_code == 401
    assert guarded.get("/v1/corpora", headers={"X-API-Key": key}).status_code == 401


def test_a_revoked_key_is_out_within_seconds(store: Store, guarded: TestClient, keys: dict[Scope, str]) -> None:
    key = keys["read"]
    assert guarded.get("/v1/corpora", headers=bearer(key)).status_code == 200
    with _keys_of(store) as other_process:
        other_process.revoke(key.split("_")[1])
    # How long is kept is tested with the keys.
    app_of(guarded).state.security.credentials._recent._seconds = 0.1
    end = time.monotonic() + 5
    while guarded.get("/v1/corpora", headers=bearer(key)).status_code == 200:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert guarded.get("/v1/corpora", headers=bearer(key)).status_code == 401
    assert guarded.get("/v1/corpora", headers=bearer(keys["write"])).status_code == 200


def test_use_of_a_key_is_noted(store: Store, guarded: TestClient, keys: dict[Scope, str]) -> None:
    guarded.get("/v1/corpora", headers=bearer(keys["read"]))
    guarded.get("/v1/corpora", headers=bearer("mw_" + keys["write"].split("_")[1] + "_" + "A" * 43))
    with _keys_of(store) as found:
        used = {key.name: key.last_used_at for key in found.list()}
    assert used["read"] is not None
    assert used["write"] is used["admin"] is None


def test_a_silent_database_lets_nobody_in(
    guarded: TestClient, keys: dict[Scope, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    def silent(*_: Any) -> None:
        raise OperationalError("SELECT 1", None, Exception("locked"))

    monkeypatch.setattr(app_of(guarded).state.services.database, "reading", silent)
    answer = guarded.get("/v1/corpora", headers=bearer(keys["read"]))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert "locked" not in answer.text


def test_openapi_says_how_to_sign_in(store: Store, guarded: TestClient, keys: dict[Scope, str]) -> None:
    schema = guarded.get("/openapi.json", headers=bearer(keys["read"])).json()
    assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert {"key": []} in schema["security"]
    open_paths = {
        path
        for path, operations_ in schema["paths"].items()
        for each in operations_.values()
        if each.get("security") == []
    }
    assert open_paths == {"/healthz", "/readyz"}
    with service(store) as client:
        assert "security" not in client.get("/openapi.json").json()


# Where keys are asked for


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.5", False),
        ("192.0.2.7", False),
        ("fe80::1%eth0", False),
        ("no-such-host.invalid", False),
        ("127.0.0.1.example.invalid", False),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_keys_are_asked_for_wherever_the_network_reaches(store: Store) -> None:
    with service(store, host="127.0.0.1") as client:
        assert client.get("/v1/corpora").status_code == 200
    with service(store, host="127.0.0.1", auth="on") as client:
        assert client.get("/v1/corpora").status_code == 401
    with service(store, host="::", auth="auto") as client:
        assert client.get("/v1/corpora").status_code == 401
    with pytest.raises(ValueError, match="auth"):
        Settings(home=store.home, auth="off")  # type: ignore[arg-type]


def test_an_app_that_was_told_loopback_does_not_serve_the_network(store: Store) -> None:
    """Whatever runs the app: the address that a connection came in by decides."""
    app = create_app(Settings(home=store.home), run_worker=False)
    for server, status in ((("127.0.0.1", 80), 200), (("::1", 80), 200), (("10.0.0.5", 80), 403), (None, 200)):
        scope = http_scope("GET", "/healthz", {"host": "localhost"}, server=server)
        assert asyncio.run(ask(app, scope))[0] == status


def test_serving_without_a_key_says_how_to_make_one(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(home=store.home)
    with _keys_of(store) as keys:
        warn_without_keys(settings, "127.0.0.1")
        assert caplog.text == ""
        warn_without_keys(settings, "0.0.0.0")
        assert caplog.text.count("\n") == 1
        assert f"mixwright keys create NAME --scope read --home {store.home}" in caplog.text
        caplog.clear()
        key, _ = keys.create("me", "read")
        warn_without_keys(settings, "0.0.0.0")
        assert caplog.text == ""
        keys.revoke(key.id)
        warn_without_keys(settings, "0.0.0.0")
        assert "keys create" in caplog.text


# Browsers on the machine of a service that asks for no key

HOSTS = [
    ("localhost", 200),
    ("localhost:8000", 200),
    ("LOCALHOST:8000", 200),
    ("localhost.:8000", 200),
    ("127.0.0.1:8000", 200),
    ("127.1.2.3", 200),
    ("[::1]:8000", 200),
    ("mine.example:8000", 200),
    ("evil.example", 421),
    ("evil.example:8000", 421),
    ("localhost.evil.example", 421),
    ("127.0.0.1.evil.example", 421),
    ("evil.example:localhost", 421),
    ("localhost:8000@evil.example", 421),
    ("10.0.0.5", 421),
    ("0.0.0.0", 421),
    ("[::]", 421),
    ("mine.example.evil", 421),
    ("", 421),
]


@pytest.mark.parametrize(("host", "status"), HOSTS)
def test_rebound_names(store: Store, host: str, status: int) -> None:
    with service(store, allowed_hosts="mine.example") as client:
        for path in ("/v1/corpora", "/healthz"):
            answer = client.get(path, headers={"Host": host})
            assert answer.status_code == status, path
        if status == 421:
            assert "MIXWRIGHT_ALLOWED_HOSTS" in answer.json()["detail"]


def test_behind_a_proxy_keys_are_needed(store: Store) -> None:
    with service(store) as client:
        for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Forwarded-Host"):
            answer = client.get("/v1/corpora", headers={name: "203.0.113.9"})
            assert answer.status_code == 403
            assert "MIXWRIGHT_AUTH=on" in answer.json()["detail"]


CROSS_SITE = [
    ({}, 202),
    ({"Origin": "http://testserver"}, 202),
    ({"Origin": "http://testserver:80"}, 202),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "http://testserver"}, 202),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "http://testserver:8080"}, 403),
    ({"Origin": "http://testserver.evil.example"}, 403),
    ({"Origin": "http://evil.example/http://testserver"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": "file://"}, 403),
    ({"Origin": ""}, 403),
    ({"Origin": "http://[::1"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"}, 403),
    ({"Content-Type": "text/plain"}, 415),
    ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
    ({"Content-Type": "text/plain; application/json"}, 415),
    ({"Content-Type": "application/jsonp"}, 415),
    ({"Content-Type": ""}, 415),
    ({"Content-Type": "application/json; charset=utf-8"}, 202),
]


@pytest.mark.parametrize(("headers", "status"), CROSS_SITE)
def test_what_pages_of_other_sites_may_send(store: Store, headers: dict[str, str], status: int) -> None:
    with service(store) as client:
        answer = client.post("/v1/jobs", json=EMBED, headers=headers)
        assert answer.status_code == status, answer.text
        assert len(client.get("/v1/jobs").json()["items"]) == (status == 202)


def test_requests_without_a_body_from_other_sites(store: Store) -> None:
    with service(store) as client:
        job = client.post("/v1/jobs", json=EMBED).json()["id"]
        cancel = f"/v1/jobs/{job}/cancel"
        for headers in (
            {"Origin": "http://evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Content-Type": "application/x-www-form-urlencoded"},
        ):
            assert client.post(cancel, headers=headers).status_code in (403, 415)
        assert client.get(f"/v1/jobs/{job}").json()["state"] == "queued"
        assert client.post(cancel).json()["state"] == "cancelled"


def test_a_body_without_a_type_is_no_json(store: Store) -> None:
    """A page can send one to any site without being asked: as a Blob that has no type."""
    with service(store) as client:
        assert client.post("/v1/jobs", content=b"{}").status_code == 415
        assert client.post("/v1/datastores/x/search", content=SEARCH).status_code == 415
        assert client.post("/v1/datastores/x/search", content=SEARCH, headers=JSON).status_code == 404


# Pages


def sign_in(client: TestClient, key: str, next: str = "/", **headers: str) -> Any:
    return client.post("/login", data={"key": key, "next": next}, headers=headers)


def test_signing_in_and_out(guarded: TestClient, keys: dict[Scope, str]) -> None:
    redirect = guarded.get("/mixtures/blend?tab=rows&x=%2F")
    assert redirect.status_code == 303
    page = guarded.get(redirect.headers["location"])
    assert page.status_code == 200
    assert 'value="/mixtures/blend?tab=rows&amp;x=%2F"' in page.text
    assert "form-action 'self'" in page.headers["content-security-policy"]
    signed_in = sign_in(guarded, keys["write"], "/mixtures/blend?tab=rows")
    assert signed_in.status_code == 303
    assert signed_in.headers["location"] == "/mixtures/blend?tab=rows"
    cookie = signed_in.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(re.split(r"; ", cookie))
    assert "Secure" not in cookie
    assert keys["write"] not in cookie
    assert keys["write"].split("_", 2)[2] not in cookie
    assert guarded.get("/v1/corpora").status_code == 200
    assert "scope write" in guarded.get("/login").text
    assert guarded.post("/v1/jobs", json=EMBED, headers={"Origin": "http://testserver"}).status_code == 202
    token = guarded.cookies[COOKIE]
    out = guarded.post("/logout", headers={"Origin": "http://testserver"})
    assert (out.status_code, out.headers["location"]) == (303, "/login")
    assert COOKIE not in guarded.cookies
    assert guarded.get("/v1/corpora", headers={"Cookie": f"{COOKIE}={token}"}).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Origin": "http://testserver"}, 202),
        ({"Sec-Fetch-Site": "same-origin"}, 202),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://testserver", "Content-Type": "text/plain"}, 415),
    ],
)
def test_a_cookie_is_for_the_own_pages(
    guarded: TestClient, keys: dict[Scope, str], headers: dict[str, str], status: int
) -> None:
    sign_in(guarded, keys["write"])
    assert guarded.post("/v1/jobs", json=EMBED, headers=headers).status_code == status
    if status == 403:
        # A key in a header is no cookie: no page of another site can send it.
        assert (
            guarded.post("/v1/jobs", json=EMBED, headers={**headers, **bearer(keys["write"])}).status_code == 202
        )
        assert guarded.post("/logout", headers=headers).status_code == 403
        assert guarded.get("/v1/corpora").status_code == 200


def test_a_session_has_its_keys_scope_and_ends_with_it(
    store: Store, guarded: TestClient, keys: dict[Scope, str]
) -> None:
    sign_in(guarded, keys["read"])
    refused = guarded.post("/v1/jobs", json=EMBED)
    assert refused.status_code == 403
    assert "scope write" in refused.json()["detail"]
    with _keys_of(store) as other_process:
        other_process.revoke(keys["read"].split("_")[1])
    # How long is kept is tested with the keys.
    app_of(guarded).state.security.credentials._recent._seconds = 0.1
    end = time.monotonic() + 5
    while guarded.get("/v1/corpora").status_code == 200:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert guarded.get("/").status_code == 303


@pytest.mark.parametrize("key", ["", "x", "mw_000000000000_" + "A" * 43, "<script>alert(1)</script>", "\x00"])
def test_signing_in_with_what_is_no_key(guarded: TestClient, keys: dict[Scope, str], key: str) -> None:
    answer = sign_in(guarded, key, '/"><script>')
    assert answer.status_code == 401
    assert answer.headers["content-type"].startswith("text/html")
    assert "<script>" not in answer.text.replace('<script src="/static/', "")
    assert "set-cookie" not in answer.headers
    assert guarded.get("/v1/corpora").status_code == 401
    for token in ("", "x", keys["read"], "A" * 43):
        assert guarded.get("/v1/corpora", headers={"Cookie": f"{COOKIE}={token}"}).status_code == 401


def test_a_form_with_too_many_fields(guarded: TestClient) -> None:
    assert guarded.post("/login", data={f"field{i}": "x" for i in range(100)}).status_code == 401


def test_another_site_cannot_sign_somebody_in(guarded: TestClient, keys: dict[Scope, str]) -> None:
    assert sign_in(guarded, keys["read"], Origin="http://evil.example").status_code == 403
    assert COOKIE not in guarded.cookies


def test_cookies_are_secure_under_tls(store: Store, keys: dict[Scope, str]) -> None:
    with service(store, host="0.0.0.0", base_url="https://testserver") as client:
        answer = sign_in(client, keys["read"])
        assert "Secure" in answer.headers["set-cookie"].split("; ")
        assert answer.headers["strict-transport-security"].startswith("max-age=")
        # http on the same host is another site to it.
        assert client.post("/logout", headers={"Origin": "http://testserver"}).status_code == 403
        assert client.post("/logout", headers={"Origin": "https://testserver"}).status_code == 303
    with service(store, host="0.0.0.0") as client:
        assert "strict-transport-security" not in client.get("/healthz").headers


SAFE = ["/", "/mixtures/blend@1", "/jobs?state=running&x=//y", "/a%2f%2fb", "/a:b", "/?next=https://x.example"]
UNSAFE = [
    "",
    "https://evil.example",
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    " /x",
    "javascript:alert(1)",
    "evil.example",
    "@evil.example",
    "http:/evil.example",
    "/x\r\nSet-Cookie: a=b",
]


@pytest.mark.parametrize("address", SAFE + UNSAFE)
def test_nobody_is_led_elsewhere(guarded: TestClient, keys: dict[Scope, str], address: str) -> None:
    answer = sign_in(guarded, keys["read"], address)
    assert answer.headers["location"] == (address if address in SAFE else "/")
    assert safe_next(None) == "/"


def test_there_is_nothing_to_sign_in_to_without_keys(store: Store) -> None:
    with service(store) as client:
        answer = client.get("/login?next=/jobs")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")


# Limits


def http_scope(
    method: str, path: str, headers: dict[str, str], server: tuple[str, int] | None = ("127.0.0.1", 80)
) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": server,
    }


async def ask(
    app: Any, scope: dict[str, Any], receive: Callable[[], Any] | None = None
) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer to one request."""
    answers: list[dict[str, Any]] = []

    async def nothing() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        answers.append(message)

    await app(scope, receive or nothing, send)
    start = answers[0]
    return start["status"], {name.decode().lower(): value.decode() for name, value in start["headers"]}


def test_bodies_that_are_too_long(store: Store) -> None:
    with service(store, max_body_bytes=2048) as client:
        path = "/v1/datastores/x/search"
        assert client.post(path, content=SEARCH.ljust(2048), headers=JSON).status_code == 404
        announced = client.post(path, content=SEARCH.ljust(2049), headers=JSON)
        assert announced.status_code == 413
        assert "MIXWRIGHT_MAX_BODY_BYTES" in announced.json()["detail"]
        assert announced.headers["connection"] == "close"
        for other in ("/v1/jobs", "/login", "/v1/nowhere"):
            content_type = "application/x-www-form-urlencoded" if other == "/login" else "application/json"
            headers = {"content-type": content_type}
            assert client.post(other, content=b"x" * 2049, headers=headers).status_code == 413


def test_a_body_of_unknown_length_is_cut_off(store: Store) -> None:
    """A client that announces no length and never stops: no more is read than the limit and one message."""
    n_sent = 0

    async def endless() -> dict[str, Any]:
        nonlocal n_sent
        n_sent += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    app = create_app(Settings(home=store.home, max_body_bytes=10_000), run_worker=False)
    headers = {"host": "localhost", "transfer-encoding": "chunked", **JSON}
    for method, path in (("POST", "/v1/jobs"), ("GET", "/healthz"), ("DELETE", "/v1/jobs")):
        n_sent = 0
        status, answered = asyncio.run(ask(app, http_scope(method, path, headers), endless))
        assert (status, n_sent) == (413, 11)
        assert answered["connection"] == "close"


def test_a_length_that_is_a_lie(store: Store) -> None:
    async def long() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 20_000, "more_body": False}

    app = create_app(Settings(home=store.home, max_body_bytes=10_000), run_worker=False)
    headers = {"host": "localhost", "content-length": "5", **JSON}
    assert asyncio.run(ask(app, http_scope("POST", "/v1/jobs", headers), long))[0] == 413


def test_a_body_that_trickles_in(store: Store) -> None:
    async def trickle() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    app = create_app(Settings(home=store.home, body_timeout_seconds=0.2), run_worker=False)
    headers = {"host": "localhost", "content-length": "5000", **JSON}
    began = time.monotonic()
    status, answered = asyncio.run(ask(app, http_scope("POST", "/v1/jobs", headers), trickle))
    assert status == 408
    assert answered["connection"] == "close"
    assert time.monotonic() - began < 2


def test_how_often(store: Store, keys: dict[Scope, str]) -> None:
    with service(store, host="0.0.0.0", rate_limit="3/minute") as client:
        assert [client.get("/v1/corpora", headers=bearer(keys["read"])).status_code for _ in range(3)] == [200] * 3
        refused = client.get("/v1/corpora", headers=bearer(keys["read"]))
        assert refused.status_code == 429
        assert refused.headers["content-type"] == MEDIA_TYPE
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        # Each key has its own, and so has an address without one, whatever it sends.
        assert client.get("/v1/corpora", headers=bearer(keys["write"])).status_code == 200
        wrong = [
            client.get("/v1/corpora", headers=bearer(f"mw_{n:012x}_{'A' * 43}")).status_code for n in range(5)
        ]
        assert wrong == [401, 401, 401, 429, 429]
        assert client.post("/login", data={"key": "x"}).status_code == 429
        assert {client.get(path).status_code for path in ("/healthz", "/readyz") for _ in range(9)} == {200}


def test_no_limit_on_loopback_unless_one_is_set(store: Store) -> None:
    with service(store) as client:
        assert {client.get("/v1/corpora").status_code for _ in range(50)} == {200}
    with service(store, rate_limit="2/hour;9/day") as client:
        assert [client.get("/v1/corpora").status_code for _ in range(3)] == [200, 200, 429]
    with service(store, host="0.0.0.0", rate_limit="none") as client:
        assert {client.get("/v1/corpora").status_code for _ in range(50)} == {401}
    for rate in ("often", "5", "5/fortnight", ""):
        if rate:
            with pytest.raises(ConfigError, match="MIXWRIGHT_RATE_LIMIT"):
                create_app(Settings(home=store.home, rate_limit=rate), run_worker=False)


def test_how_much_at_a_time() -> None:
    from starlette.exceptions import HTTPException

    limits = Limits(None, 2)
    with limits.running("a"), limits.running("a"), limits.running("b"):
        with pytest.raises(HTTPException) as refused, limits.running("a"):
            pytest.fail("a third one ran")
        assert refused.value.status_code == 429
        assert refused.value.headers == {"Retry-After": "1"}
    with limits.running("a"), limits.running("a"):
        pass


def test_streams_count_as_long_as_they_run(store: Store, keys: dict[Scope, str]) -> None:
    app = create_app(Settings(home=store.home, max_concurrent_requests=1), run_worker=False, host="0.0.0.0")
    headers = {"host": "localhost", **bearer(keys["read"])}
    statuses: list[int] = []

    async def two_at_a_time() -> None:
        never = asyncio.Event()

        async def stream(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await never.wait()

        app.mount("/v1/stream", stream)
        first = asyncio.create_task(ask(app, http_scope("GET", "/v1/stream/x", headers)))
        while not app.state.security.limits._running:
            await asyncio.sleep(0.01)
        statuses.append((await ask(app, http_scope("GET", "/v1/corpora", headers)))[0])
        never.set()
        await first
        statuses.append((await ask(app, http_scope("GET", "/v1/corpora", headers)))[0])

    app.state.services.database.upgrade()
    asyncio.run(two_at_a_time())
    assert statuses == [429, 200]


def test_an_answer_that_does_not_come(store: Store) -> None:
    app = create_app(Settings(home=store.home, request_timeout_seconds=0.1), run_worker=False)
    let_go = threading.Event()

    @app.get("/v1/slow")
    def slow() -> None:
        let_go.wait(5)

    async def answered_before_the_end() -> int:
        task = asyncio.create_task(first_status(app, http_scope("GET", "/v1/slow", {"host": "localhost"})))
        status = await asyncio.wait_for(task, 3)
        let_go.set()
        return status

    assert asyncio.run(answered_before_the_end()) == 503


async def first_status(app: Any, scope: dict[str, Any]) -> int:
    """The status as soon as there is one; the app works on, and may say nothing more."""
    statuses: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    running = asyncio.create_task(app(scope, receive, statuses.put))
    first = await statuses.get()
    second = await statuses.get()
    assert b"MIXWRIGHT_REQUEST_TIMEOUT_SECONDS" in second["body"]

    def nothing_more(_: Any) -> None:
        assert statuses.empty()

    running.add_done_callback(nothing_more)
    return int(first["status"])


@contextmanager
def real_server(app: FastAPI) -> Iterator[int]:
    config = uvicorn.Config(app, log_config=None, ws="none", http=BoundedHeaders, server_header=False)
    server, listener = uvicorn.Server(config), socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def raw(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """All that a server answers until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except OSError:
            pass  # it has closed already: read what it said
        answer = b""
        try:
            while chunk := connection.recv(1 << 16):
                answer += chunk
        except ConnectionResetError:
            pass
        return answer


def test_headers_are_bounded_in_length_and_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    begin = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n"
    with real_server(create_app(Settings(home=store.home), run_worker=False)) as port:
        good = raw(port, begin + b"connection: close\r\n\r\n")
        assert good.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nserver:" not in good.lower()
        assert b"uvicorn" not in good
        # The whole in one piece, and a header without an end.
        whole = raw(port, begin + b"a: " + b"x" * (MAX_HEADER_BYTES + 10) + b"\r\n\r\n")
        assert re.match(rb"HTTP/1.1 4(00|31) ", whole)
        endless = raw(port, begin, *[b"a: " + b"x" * 20_000] * 8, pause=0.01)
        assert re.match(rb"HTTP/1.1 (431|400) ", endless)
        many = raw(port, begin, b"".join(b"h%d: x\r\n" % n for n in range(20_000)))
        assert re.match(rb"HTTP/1.1 (431|400) ", many)
        # A byte now and then, and nothing at all.
        began = time.monotonic()
        assert raw(port, begin, *[b"x"] * 50, pause=0.02).startswith(b"HTTP/1.1 408 ")
        assert raw(port) == b""
        assert time.monotonic() - began < 4
        # Requests that come one after the other have their time each.
        later = raw(port, begin + b"\r\n", begin + b"\r\n", begin + b"connection: close\r\n\r\n", pause=0.2)
        assert later.count(b"HTTP/1.1 200") == 3


SMUGGLED = [
    b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
    b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
    b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
    b"GET /v1/jobs HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
    b"GET /v1/jobs HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
    b"GET http://evil.example/v1/jobs HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
    b"GET /v1/jobs HTTP/1.1\r\nconnection: close\r\n\r\n",
    b"GET /v1/jobs HTTP/1.0\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /v1/../../etc/passwd HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    b"GET /static/../../../etc/passwd HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    b"GET /static/%2e%2e/%2e%2e/config.py HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    b"GET /static//etc/passwd HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    b"CONNECT evil.example:80 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
]


def test_requests_that_are_made_to_be_misread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    with real_server(create_app(Settings(home=store.home), run_worker=False)) as port:
        for each in SMUGGLED:
            answer = raw(port, each)
            assert re.match(rb"HTTP/1.1 4\d\d ", answer), (each, answer)
            assert answer.count(b"HTTP/1.1 ") == 1
            assert b"root:" not in answer


# Answers


def test_every_answer_is_safe_for_a_browser(store: Store, publish_corpus: PublishCorpus) -> None:
    publish_corpus("wiki", document_table(["a"]))
    with service(store, max_body_bytes=1024) as client:
        app_of(client).get("/v1/broken")(_broken)
        answers = [
            *(
                client.get(path)
                for path in ("/v1/corpora", "/v1/corpora/wiki", "/v1/nowhere", "/healthz", "/v1/broken")
            ),
            client.get("/static/icon.svg"),
            client.get("/openapi.json"),
            client.get("/v1/corpora", headers={"Host": "evil"}),
            client.post("/v1/jobs", content=b"x" * 2000, headers=JSON),
            client.delete("/v1/jobs"),
            client.head("/v1/corpora"),
        ]
        assert {each.status_code for each in answers} >= {200, 404, 405, 413, 421, 500}
        for answer in answers:
            headers = answer.headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["x-frame-options"] == "DENY"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert "access-control-allow-origin" not in headers
            assert "server" not in headers
            if "/static/" not in str(answer.url):
                assert re.search("no-store|private", headers["cache-control"]), answer.url


def _broken() -> None:
    raise RuntimeError("the secret is 42")


def test_stack_traces_are_for_admins(store: Store, guarded: TestClient, keys: dict[Scope, str]) -> None:
    board: Board = app_of(guarded).state.services.board
    job = board.submit(IngestRequest(name="x", paths=["a"]).model_dump(mode="json"))
    path = log_path(store.home, job.id)
    path.parent.mkdir(parents=True)
    path.write_text('begin\nTraceback (most recent call last):\n  File "/srv/x.py", line 1\nValueError: no\nend\n')
    log = f"/v1/jobs/{job.id}/logs"
    for scope in ("read", "write", "admin"):
        plain = guarded.get(log, headers=bearer(keys[scope]))
        assert plain.text == "begin\nValueError: no\nend\n"
        full = guarded.get(f"{log}?tracebacks=true", headers=bearer(keys[scope]))
        if scope == "admin":
            assert full.text == path.read_text()
            assert guarded.get(f"{log}?tracebacks=true&tail=1", headers=bearer(keys[scope])).text == "end\n"
        else:
            assert full.status_code == 403
            assert "scope admin" in full.json()["detail"]
            assert "/srv" not in full.text
    with service(store) as client:
        assert client.get(f"{log}?tracebacks=true").text == path.read_text()


PASSWORD = "hunter2-in-the-url"


def test_the_database_password_is_nowhere(
    store: Store, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"postgresql+psycopg://user:{PASSWORD}@127.0.0.1:1/none?connect_timeout=1"
    settings = Settings(home=store.home, database_url=url)
    texts = [repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()]
    assert settings.catalog_url == url
    # A job's process must reach the database all the same.
    assert environment_of(settings)["MIXWRIGHT_DATABASE_URL"] == url
    for wrong in (url, f"nosuch://user:{PASSWORD}@host/x", f"postgresql+psycopg://user:{PASSWORD}@host:port/x"):
        try:
            database = Database(wrong)
            database.upgrade()
        except (ConfigError, ValueError) as error:
            while error is not None:
                texts.append(f"{error} {error!r}")
                error = error.__cause__  # type: ignore[assignment]
        else:
            pytest.fail(f"{wrong} opened")
    app = create_app(settings, run_worker=False)
    for path in ("/readyz", "/v1/jobs", "/"):
        status, _ = asyncio.run(ask(app, http_scope("GET", path, {"host": "localhost"})))
        assert status in (500, 503)
    texts += [caplog.text, *capfd.readouterr()]
    assert not any(PASSWORD in text for text in texts)


def test_readiness_tells_strangers_nothing(store: Store, guarded: TestClient) -> None:
    store.home.rename(store.home.with_name("moved"))
    answer = guarded.get("/readyz")
    assert answer.status_code == 503
    assert str(store.home) not in answer.text
    assert store.home.name not in answer.json()["detail"].replace("home folder", "")
    assert "sqlite" not in answer.text
    Path(store.home.with_name("moved")).rename(store.home)


def test_keys_do_not_stand_in_the_log(
    guarded: TestClient, keys: dict[Scope, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = keys["read"]
    guarded.get("/v1/corpora", headers=bearer(key))
    guarded.get(f"/v1/corpora?key={key}", headers=bearer(f"{key}x"))
    sign_in(guarded, key)
    guarded.get("/v1/nowhere")
    lines = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records if "mixwright" in record.name]
    assert any(key.split("_")[1] in line for line in lines)
    assert not any(key.split("_", 2)[2] in line or guarded.cookies[COOKIE] in line for line in lines)
