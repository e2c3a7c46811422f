"""Rows as they are served: compressed or not, in bounded memory, to many readers at once."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pyarrow as pa
import pytest
from backports.zstd import ZstdDecompressor
from conftest import PublishCorpus
from fastapi import FastAPI
from fastapi.testclient import TestClient
from support import document_table, served, wait_for

from mixwright.config import Settings
from mixwright.errors import NotFoundError
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.selectors.requests import SelectRequest
from mixwright.selectors.streams import ROW_SCHEMA, MixtureStream, to_ndjson
from mixwright.service import rows as rows_module
from mixwright.service.app import create_app
from mixwright.service.opened import OpenedOnce
from mixwright.service.rows import ARROW, NDJSON, Encoding, encode, negotiate_encoding
from mixwright.store import Store

N_ROWS = 700


@pytest.fixture
def app(store: Store, publish_corpus: PublishCorpus) -> FastAPI:
    """A service of the mixture ``m``, which has 700 rows."""
    publish_corpus("a", document_table([f"row {number} " + "ü" * (number % 50) for number in range(N_ROWS)]))
    request = {"name": "m", "sources": ["a"], "selector": {"kind": "uniform"}, "budget": {"documents": N_ROWS}}
    run_select(store, SelectRequest.model_validate(request), NoProgress())
    return create_app(Settings(home=store.home), run_worker=False)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


ROWS = "/v1/mixtures/m/rows"


# Compression


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, "identity"),
        ("", "identity"),
        ("identity", "identity"),
        ("gzip", "gzip"),
        ("X-GZIP", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1.0, zstd;q=0.5", "gzip"),
        ("br", "identity"),
        ("*", "identity"),
        ("gzip;q=0, *", "identity"),
        ("identity;q=0, *", "zstd"),
        ("identity;q=0.5, gzip;q=0.1", "identity"),
        ("gzip;q=0.001", "gzip"),
        ("zstd;q=nonsense, gzip;q=nan", "identity"),
        ("gzip;q=0", "identity"),
        ("identity;q=0", None),
        ("*;q=0", None),
        ("br, *;q=0", None),
    ],
)
def test_negotiation_of_encodings(header: str | None, expected: str | None) -> None:
    assert negotiate_encoding(header) == expected


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("media_type", [NDJSON, ARROW])
def test_compressed_rows_are_the_rows(client: TestClient, encoding: str, media_type: str) -> None:
    plain = client.get(ROWS, headers={"Accept": media_type, "Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    packed = client.get(ROWS, headers={"Accept": media_type, "Accept-Encoding": encoding})
    assert packed.headers["content-encoding"] == encoding
    assert packed.content == plain.content
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept, Accept-Encoding"
    assert packed.headers["etag"] != plain.headers["etag"]
    for answer, other in ((plain, packed), (packed, plain)):
        headers = {"Accept": media_type, "Accept-Encoding": answer.headers.get("content-encoding", "identity")}
        assert client.get(ROWS, headers={**headers, "If-None-Match": answer.headers["etag"]}).status_code == 304
        assert client.get(ROWS, headers={**headers, "If-None-Match": other.headers["etag"]}).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_chunk_can_be_read_when_it_has_come(encoding: Encoding) -> None:
    tables = [
        pa.Table.from_pylist([{**dict.fromkeys(ROW_SCHEMA.names, "x"), "position": n, "epoch": 0, "n_tokens": 1}])
        for n in range(5)
    ]
    decompressor: Any = zlib.decompressobj(wbits=31) if encoding == "gzip" else ZstdDecompressor()
    chunks = encode(iter(tables), ROW_SCHEMA, NDJSON, encoding)
    for table in tables:
        assert decompressor.decompress(next(chunks)) == to_ndjson(table)
    assert decompressor.decompress(next(chunks)) == b""
    assert next(chunks, None) is None
    assert decompressor.eof


def test_rows_in_no_encoding_that_there_is(client: TestClient) -> None:
    answer = client.get(ROWS, headers={"Accept-Encoding": "br, *;q=0"})
    assert answer.status_code == 406
    assert "gzip" in answer.json()["detail"]


def test_curl_reads_compressed_rows(app: FastAPI) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl here")
    with served(app) as url:
        got = subprocess.run([curl, "-sS", "--compressed", f"{url}{ROWS}"], capture_output=True, check=True)
        assert len(got.stdout.splitlines()) == N_ROWS
        assert got.stdout == httpx2.get(f"{url}{ROWS}").content


# Memory


def read_a_little(url: str) -> socket.socket:
    """A reader with small buffers who takes the beginning of the rows, and then nothing."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    host, port = url.removeprefix("http://").split(":")
    reader.connect((host, int(port)))
    reader.sendall(f"GET {ROWS} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert b"200 OK" in reader.recv(4096)
    return reader


def test_a_slow_reader_makes_the_service_buffer_a_chunk_or_two(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, taken, ended = [0], [0], threading.Event()
    chunk = b"x" * (1 << 20)

    def endless(*_: Any) -> Iterator[bytes]:
        try:
            while True:
                made[0] += len(chunk)
                yield chunk
        finally:
            ended.set()

    monkeypatch.setattr("mixwright.service.routes.mixtures.encode", endless)
    with served(app) as url, read_a_little(url) as reader:
        # What the kernel holds for a connection on loopback is no memory of the service's.
        wait_for(lambda: made[0] >= 2 << 20, 5)
        time.sleep(0.3)
        waiting = made[0]
        time.sleep(0.3)
        assert made[0] == waiting
        while taken[0] < 20 << 20:
            taken[0] += len(reader.recv(1 << 18))
        time.sleep(0.3)
        kernel = waiting - (2 << 20)
        assert made[0] - taken[0] <= kernel + (4 << 20)
        assert kernel <= 8 << 20
        assert not ended.is_set()
        reader.close()
        assert ended.wait(5)


def test_the_first_chunk_is_short_and_the_others_are_bounded(client: TestClient) -> None:
    with client.stream("GET", ROWS) as answer:
        assert answer.headers["content-type"] == NDJSON
        body = answer.read()
    rows = [json.loads(line) for line in body.splitlines()]
    assert [row["position"] for row in rows] == list(range(N_ROWS))
    stream = MixtureStream.open(client.app.state.services.store, "m")  # type: ignore[attr-defined]
    lengths = [table.num_rows for table in stream.read(batch_rows=256, first_rows=16)]
    assert lengths == [16, 32, 64, 128, 256, 204]


# Many readers


def many_connections(url: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, timeout=30, limits=httpx2.Limits(max_connections=None))


def test_streams_that_wait_do_not_hold_up_the_other_routes(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, waiting = threading.Event(), threading.Semaphore(0)
    read = MixtureStream.read

    def slow(*args: Any, **kwargs: Any) -> Iterator[pa.Table]:
        waiting.release()
        go_on.wait(20)
        return read(*args, **kwargs)

    monkeypatch.setattr(MixtureStream, "read", slow)
    with served(app) as url, many_connections(url) as client, ThreadPoolExecutor(60) as readers:
        try:
            answers = [readers.submit(client.get, f"{ROWS}?count=3") for _ in range(60)]
            waiting.acquire()
            began = time.monotonic()
            for _ in range(5):
                assert client.get("/v1/mixtures/m").status_code == 200
            assert time.monotonic() - began < 4
        finally:
            go_on.set()
        assert {answer.result().text.count("\n") for answer in answers} == {3}


def test_readers_at_once_get_what_they_ask_for(app: FastAPI) -> None:
    world_size = 40
    with served(app) as url, many_connections(url) as client, ThreadPoolExecutor(world_size) as readers:

        def positions(rank: int) -> list[int]:
            answer = client.get(f"{ROWS}?rank={rank}&world_size={world_size}")
            return [json.loads(line)["position"] for line in answer.content.splitlines()]

        read = list(readers.map(positions, range(world_size)))
    assert read == [list(range(rank, N_ROWS, world_size)) for rank in range(world_size)]


def test_chunks_are_made_in_threads_of_their_own(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, most = [0], [0]
    lock = threading.Lock()

    def counted(tables: Iterator[pa.Table]) -> Iterator[bytes]:
        for number, table in enumerate(tables):
            with lock:
                busy[0] += number > 0
                most[0] = max(most[0], busy[0])
            time.sleep(0.001)
            with lock:
                busy[0] -= number > 0
            yield to_ndjson(table)

    monkeypatch.setattr(rows_module, "_ndjson", counted)
    with served(app) as url, many_connections(url) as client, ThreadPoolExecutor(20) as readers:
        assert set(readers.map(lambda _: client.get(ROWS).status_code, range(20))) == {200}
    assert 1 <= most[0] <= rows_module._GOING_ON_THREADS


def test_what_many_ask_for_is_opened_once() -> None:
    opened: list[str] = []

    def slow(ref: str) -> object:
        opened.append(ref)
        time.sleep(0.1)
        return object()

    once = OpenedOnce(slow, most=2)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda number: once(f"m@{number % 2}", "f"), range(16)))
    assert sorted(opened) == ["m@0", "m@1"]
    assert len(set(map(id, found))) == 2
    assert once("m@0", "f") is found[0]
    # Another fingerprint is another artifact, and the one that was not used for longest is given up.
    assert once("m@0", "g") is not found[0]
    assert once("m@0", "f") is found[0]
    assert once("m@1", "f") is not found[1]


def test_what_failed_to_open_is_tried_again() -> None:
    calls: list[int] = []

    def failing(ref: str) -> str:
        calls.append(1)
        if len(calls) == 1:
            time.sleep(0.1)
            raise NotFoundError("not yet: wait")
        return ref

    once = OpenedOnce(failing, most=2)

    def attempt(_: int) -> str:
        try:
            return once("m@1", "f")
        except NotFoundError as error:
            return str(error)

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(attempt, range(4))) == {"not yet: wait"}
    assert once("m@1", "f") == "m@1"
