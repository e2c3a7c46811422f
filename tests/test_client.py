"""The Python client against real services: the same answers, and every row once whatever happens to them."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import PublishCorpus
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from support import KillableService, document_table, published_corpus, served

import mixwright
from mixwright import errors
from mixwright.client import Client, connection
from mixwright.client.problems import error_of
from mixwright.config import Settings
from mixwright.jobs.board import Board, log_path
from mixwright.jobs.exports.export import export_mixture
from mixwright.jobs.exports.format import ExportOptions
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.datastores import SearchResponse
from mixwright.schemas.predictions import MixturePrediction
from mixwright.selectors.requests import SelectRequest
from mixwright.selectors.streams import MixtureStream, Tokenization
from mixwright.service.app import create_app
from mixwright.store import Store

SIZES = np.random.default_rng(0).integers(1, 4000, 900)


def select(store: Store, name: str, documents: int = 950) -> str:
    request = {
        "name": name,
        "sources": ["a", "b"],
        "selector": {"kind": "domain-tags", "cooldown": 0.3},
        "budget": {"documents": documents},
    }
    return run_select(store, SelectRequest.model_validate(request), NoProgress()).ref


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpora a and b, and the mixture m of both: some 2 MB in 950 rows."""
    store = Store(tmp_path_factory.mktemp("client") / "home")
    texts = [f"{number} " + "x" * int(size) for number, size in enumerate(SIZES)]
    published_corpus(store, "a", document_table(texts, source="a", domains=["a.org", None] * 450), 400)
    published_corpus(store, "b", document_table([f"b{number}" for number in range(200)], source="b"), 100)
    select(store, "m")
    return store.home


@pytest.fixture(scope="module")
def app(home: Path) -> FastAPI:
    return create_app(Settings(home=home), run_worker=False)


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with served(app) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(connection, "_LONGEST_WAIT", 0.05)


def read(home: Path, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
    """What the rows are, without a service."""
    stream = MixtureStream.open(Store(home), "m")
    return [row for table in stream.read(*args, **kwargs) for row in table.to_pylist()]


# Reading


@pytest.mark.parametrize("options", [{}, {"rank": 1, "world_size": 3}, {"start": 900}, {"start": 3, "count": 5}])
@pytest.mark.parametrize("blocks", [{}, {"block_rows": 7, "offset": 13}])
def test_rows_are_those_of_the_mixture(
    client: Client, home: Path, options: dict[str, int], blocks: dict[str, int]
) -> None:
    assert list(client.rows("m", **options, **blocks)) == read(home, **options, **blocks)


def test_rows_of_nothing(client: Client) -> None:
    assert list(client.rows("m", count=0)) == []
    assert list(client.rows("m@1", start=10**20)) == []
    assert list(client.rows("m", rank=5000, world_size=10_000)) == []


def test_rows_with_tokens(client: Client, home: Path) -> None:
    tokens = Tokenization("bytes", bos=256, eos=257)
    expected = read(home, 0, 20, tokenization=tokens)
    assert list(client.rows("m", count=20, tokenizer="bytes", bos=256, eos=257)) == expected


def test_tables_come_in_pieces(client: Client, home: Path) -> None:
    tables = list(client.tables("m"))
    assert len(tables) > 4
    assert pa.concat_tables(tables).to_pylist() == read(home)


def test_compressed_answers(url: str, home: Path) -> None:
    with Client(url, compress=True) as client:
        assert list(client.rows("m", count=50)) == read(home, 0, 50)


def test_the_catalog(client: Client, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixwright.client.client._PAGE_ITEMS", 1)
    assert [each.ref for each in client.corpora()] == ["b@1", "a@1"]
    assert [each.ref for each in client.mixtures()] == ["m@1"]
    assert list(client.mixtures(source="a", selector="uniform")) == []
    assert [each.ref for each in client.mixtures(source="a", domain="a.org")] == ["m@1"]
    assert list(client.datastores()) == []
    manifest = Store(home).manifest("m", "mixture")
    assert client.mixture("m").model_dump(exclude={"ref"}) == manifest.model_dump()
    assert {node.ref for node in client.lineage("m").nodes} == {"m@1", "a@1", "b@1"}


def test_the_package_offers_the_client() -> None:
    assert mixwright.Client is Client
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        _ = mixwright.Cleint


# Errors


KINDS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_is_the_same_behind_the_wire(kind: type[errors.MixwrightError]) -> None:
    arguments: dict[Any, tuple[tuple[Any, ...], dict[str, Any]]] = {
        errors.ShortfallError: (("too little",), {"source": "wiki", "largest_budget": 7}),
        errors.MissingExtraError: (("faiss", "cpu"), {}),
        errors.AuthError: (("no such scope",), {"status": 403}),
    }
    positional, named = arguments.get(kind, (("what is wrong: what to do",), {}))
    original = kind(*positional, **named)
    found = error_of(json.loads(json.dumps({**original.problem(), "instance": "/v1"})))
    assert type(found) is kind
    assert (str(found), found.status, found.problem()) == (str(original), original.status, original.problem())


def test_errors_of_the_service(client: Client, url: str) -> None:
    with pytest.raises(errors.NotFoundError, match="no mixture absent"):
        client.mixture("absent")
    with pytest.raises(errors.NotFoundError, match="no mixture absent"):
        client.rows("absent")
    with pytest.raises(errors.NotFoundError, match="datastore"):
        client.search("absent", ["q"])
    with pytest.raises(errors.ForbiddenError, match="tokenizer"):
        list(client.rows("m", tokenizer="no-such"))
    with pytest.raises(errors.ConfigError, match="name@version"):
        client.mixture("a b/../..")
    for wrong in ({"rank": 2, "world_size": 2}, {"start": -1}, {"count": -1}, {"block_rows": 0}):
        with pytest.raises(errors.ConfigError):
            client.tables("m", **wrong)
    with pytest.raises(errors.ConfigError, match="one text"):
        client.search("absent", "q")
    with pytest.raises(errors.ConfigError, match=r"request\.paths"):
        client.submit("ingest", {"name": "n"})
    with Client(f"{url}/nothing/here") as elsewhere, pytest.raises(errors.NotFoundError, match="/nothing/here"):
        elsewhere.mixture("m")


def test_answers_of_something_else() -> None:
    async def not_mixwright(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status = int(scope["path"].rpartition("/")[2])
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": b"<h1>No</h1>"})

    with served(not_mixwright) as url, Client(url, retries=1) as client:
        for status, kind in ((404, errors.NotFoundError), (502, errors.UnavailableError), (301, Exception)):
            with pytest.raises(kind, match=f"answered {status}.*base_url"):
                client.job(str(status))


@pytest.mark.parametrize("wrong", ["ftp://host", "host:8000", "", "http://", "http://user:secret@host"])
def test_addresses_that_are_none(wrong: str) -> None:
    with pytest.raises(errors.ConfigError, match="base_url") as caught:
        connection.Connection(wrong, None, 1, 0)
    assert "secret" not in str(caught.value)


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(connection, "_FIRST_WAIT", 0.25)
    monkeypatch.setattr(connection, "_LONGEST_WAIT", 3.0)
    monkeypatch.setattr(connection.time, "sleep", waits.append)
    with pytest.raises(errors.UnavailableError, match=r"127.0.0.1:9 does not answer.*MIXWRIGHT_URL"):
        Client("http://127.0.0.1:9", retries=6).mixture("m")
    assert len(waits) == 6
    for wait, longest in zip(waits, (0.25, 0.5, 1, 2, 3, 3), strict=True):
        assert longest / 2 <= wait <= longest


# The key


def test_the_environment_is_read_by_the_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXWRIGHT_URL", "http://127.0.0.1:9/prefix/")
    monkeypatch.setenv("MIXWRIGHT_API_KEY", "mw_1_secret")
    client = Client(retries=0)
    monkeypatch.delenv("MIXWRIGHT_URL")
    monkeypatch.delenv("MIXWRIGHT_API_KEY")
    assert repr(client) == "Client('http://127.0.0.1:9/prefix')"
    assert repr(Client()) == "Client('http://127.0.0.1:8000')"
    with pytest.raises(errors.UnavailableError) as caught:
        client.mixture("m")
    assert "secret" not in repr(caught.value)


def test_the_key_is_sent_and_never_shown() -> None:
    seen: list[bytes | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        seen.append(dict(scope["headers"]).get(b"authorization"))
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body"})

    with served(app) as url:
        for client in (Client(url), Client(url, "mw_1_secret"), pickle.loads(pickle.dumps(Client(url, "mw_2_b")))):
            with client, pytest.raises(errors.AuthError) as caught:
                client.job("1")
            assert "secret" not in f"{caught.value!r} {client!r} {client._connection!r}"
    assert seen == [None, b"Bearer mw_1_secret", b"Bearer mw_2_b"]


@pytest.mark.parametrize("key", ["mw_1\nHost: evil", " mw_1", "schlüssel"])
def test_a_key_that_is_none_is_not_repeated(key: str) -> None:
    with pytest.raises(errors.ConfigError, match="api_key") as caught:
        Client("http://127.0.0.1:9", key)
    assert key.strip() not in str(caught.value)


# Failures on the way


class Faulty:
    """An app whose streams of rows (or of events) break off at random places, in every way there is."""

    KINDS = ("refuse", "cut", "end early")

    def __init__(
        self,
        app: ASGIApp,
        seed: int,
        paths: str = "/rows",
        kinds: Sequence[str] = (*KINDS, "none"),
        bytes_from: int = 0,
        bytes_until: int = 300_000,
    ) -> None:
        self._app = app
        self._paths = paths
        self._kinds = kinds
        self._bytes = range(bytes_from, bytes_until)
        self._draw = random.Random(seed)
        self.faults: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith(self._paths):
            await self._app(scope, receive, send)
            return
        fault = self._draw.choice(self._kinds)
        if fault == "refuse":
            self.faults.append(fault)
            status = self._draw.choice([429, 502, 503, 504])
            headers = [(b"content-type", b"text/plain"), (b"retry-after", b"0")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body"})
            return
        left = self._draw.choice(self._bytes)
        ended = False

        async def breaking(message: Message) -> None:
            nonlocal left, ended
            if ended:
                return
            body = message.get("body", b"")
            if fault != "none" and message["type"] == "http.response.body" and len(body) >= left:
                ended = True
                self.faults.append(fault)
                await send({"type": "http.response.body", "body": body[:left], "more_body": fault == "cut"})
                raise ConnectionError(fault)
            left -= len(body)
            await send(message)

        try:
            await self._app(scope, receive, breaking)
        except ConnectionError:
            # The server, seeing an answer without an end, closes the connection.
            return


def test_no_row_is_lost_or_repeated_where_streams_break_off(app: FastAPI, home: Path) -> None:
    faulty = Faulty(app, 1)
    everything = read(home)
    tokens = Tokenization("bytes", eos=257)
    with_tokens = read(home, 0, 200, tokenization=tokens)
    with served(faulty) as url, Client(url, retries=100) as client:
        while {faulty.faults.count(kind) for kind in Faulty.KINDS} & {0, 1, 2}:
            for rank in range(3):
                assert list(client.rows("m", 5, rank=rank, world_size=3)) == everything[rank::3][5:]
            assert list(client.rows("m", count=200, tokenizer="bytes", eos=257)) == with_tokens


def test_progress_renews_patience(app: FastAPI, home: Path) -> None:
    """More failures than the client bears in a row, but some rows between them."""
    faulty = Faulty(app, 3, kinds=["cut"], bytes_from=200_000)
    with served(faulty) as url, Client(url, retries=1) as client:
        assert list(client.rows("m")) == read(home)
    assert len(faulty.faults) > 2


def test_too_many_failures_in_a_row_end_it(app: FastAPI) -> None:
    faulty = Faulty(app, 4, kinds=["cut"], bytes_until=100)
    with served(faulty) as url, Client(url, retries=3) as client, pytest.raises(errors.UnavailableError):
        list(client.rows("m"))
    assert faulty.faults == ["cut"] * 4


@pytest.mark.parametrize("after", ["7", "Wed, 21 Oct 2065 07:28:00 GMT", "soon"])
def test_a_wait_that_is_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    waits: list[float] = []
    answered: list[int] = []

    async def busy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answered.append(1)
        headers = [(b"retry-after", after.encode())]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body"})

    with served(busy) as url, Client(url, retries=2) as client, monkeypatch.context() as patch:
        patch.setattr(connection.time, "sleep", waits.append)
        with pytest.raises(errors.UnavailableError):
            client.job("1")
    assert len(answered) == 3
    if after == "7":
        assert waits == [7, 7]
    elif after == "soon":
        assert all(wait < 1 for wait in waits)
    else:
        assert all(wait > 3600 for wait in waits)


def altered(app: ASGIApp, change: Callable[[Scope, Message], None]) -> ASGIApp:
    """The app with something between it and its clients that means no good."""

    async def changed(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_changed(message: Message) -> None:
            if scope["path"].endswith("/rows"):
                change(scope, message)
            await send(message)

        await app(scope, receive, send_changed)

    return changed


def test_another_mixture_under_the_same_name_is_noticed(app: FastAPI) -> None:
    def other_tag(scope: Scope, message: Message) -> None:
        if "headers" in message:
            message["headers"] = [(k, b'"0000-00"' if k == b"etag" else v) for k, v in message["headers"]]

    with served(altered(app, other_tag)) as url, Client(url) as client:
        rows = client.rows("m")
        with pytest.raises(errors.ConflictError, match=r"m@1.*begin again"):
            next(rows)


def test_other_rows_are_noticed(app: FastAPI) -> None:
    async def shifted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/rows"):
            scope = {**scope, "query_string": scope["query_string"].replace(b"start=0", b"start=1")}
        await app(scope, receive, send)

    with served(shifted) as url, Client(url) as client:
        rows = client.rows("m")
        with pytest.raises(errors.DataError, match=r"other rows of m@1 .* row 0 "):
            next(rows)


def test_a_version_that_is_published_meanwhile_does_not_mix_in(
    store: Store, publish_corpus: PublishCorpus
) -> None:
    texts = [f"{n} " + "x" * 3000 for n in range(600)]
    publish_corpus("a", document_table(texts, source="a", domains=["a.org"] * 600))
    publish_corpus("b", document_table([f"b{n}" for n in range(50)], source="b"))
    assert select(store, "m", 500) == "m@1"
    faulty = Faulty(create_app(Settings(home=store.home), run_worker=False), 5, kinds=["cut"])
    with served(faulty) as url, Client(url, retries=50) as client:
        rows = client.rows("m")
        first = next(rows)
        assert select(store, "m", 501) == "m@2"
        got = [first, *rows]
        assert client.mixture("m").ref == "m@2"
    assert got == [row for table in MixtureStream.open(store, "m@1").read() for row in table.to_pylist()]
    assert faulty.faults


def test_rows_outlive_a_service_that_is_killed(home: Path) -> None:
    """SIGKILL at random moments in the middle of streams, and a new service at the same address each time."""
    everything = read(home)
    service = KillableService(home)
    try:
        service.start()
        draw = random.Random(0)
        ended = threading.Event()
        kills = 0

        def kill_again_and_again() -> None:
            nonlocal kills
            while not ended.wait(draw.uniform(0.05, 0.3)):
                service.kill()
                ended.wait(draw.uniform(0, 0.1))
                service.start()
                kills += 1

        killer = threading.Thread(target=kill_again_and_again)
        killer.start()
        try:
            with Client(service.url, retries=200) as client:
                while kills < 4:
                    for rank in range(2):
                        got = []
                        for table in client.tables("m", rank=rank, world_size=2):
                            got += table.to_pylist()
                            time.sleep(0.01)  # what a training step takes
                        assert got == everything[rank::2]
        finally:
            ended.set()
            killer.join()
    finally:
        service.close()


# Jobs


@pytest.fixture
def board(app: FastAPI) -> Board:
    board = app.state.services.board
    assert isinstance(board, Board)
    return board


def test_jobs(client: Client, board: Board, home: Path) -> None:
    job = client.submit("ingest", {"name": "one", "paths": ["texts.jsonl"]})
    assert (job.kind, job.state) == ("ingest", "queued")
    assert client.submit("ingest", {"name": "one", "paths": ["texts.jsonl"]}).id == job.id
    assert client.job(job.id) == job
    assert client.logs(job.id) == ""
    path = log_path(home, job.id)
    path.parent.mkdir(exist_ok=True)
    path.write_text("first\nlast\n")
    assert client.logs(job.id, tail=1) == "last\n"
    with pytest.raises(errors.UnavailableError, match=r"queued after 0\.2 seconds"):
        client.wait(job.id, timeout=0.2)
    assert client.cancel(job.id).state == "cancelled"
    with pytest.raises(errors.JobError, match="was cancelled"):
        client.wait(job.id)
    for wrong in ("../mixtures/m", "a/b", ""):
        with pytest.raises(errors.ConfigError, match="no id of a job"):
            client.job(wrong)


def test_a_failed_job_raises_what_it_failed_with(client: Client, board: Board) -> None:
    job = client.submit("ingest", {"name": "two", "paths": ["texts.jsonl"]})
    claim = board.claim("test")
    assert claim is not None
    board.fail(claim, errors.ShortfallError("too little: ask for less", source="wiki", largest_budget=7))
    with pytest.raises(errors.ShortfallError, match="too little") as caught:
        client.wait(job.id)
    assert (caught.value.source, caught.value.largest_budget) == ("wiki", 7)


def test_a_job_is_followed_to_its_end_through_broken_streams(app: FastAPI, board: Board, home: Path) -> None:
    faulty = Faulty(app, 6, paths="/events", bytes_until=500)
    manifest = Store(home).manifest("a", "corpus")
    with served(faulty) as url, Client(url, retries=100) as client:
        job = client.submit("ingest", {"name": "three", "paths": ["texts.jsonl"]})

        def work() -> None:
            time.sleep(0.2)
            claim = board.claim("test")
            assert claim is not None
            time.sleep(0.5)
            board.succeed(claim, manifest)

        worker = threading.Thread(target=work)
        worker.start()
        seen = list(client.follow(job.id))
        worker.join()
        assert client.wait(job.id, timeout=5) == seen[-1]
    assert [each.state for each in seen] == ["queued", "running", "succeeded"]
    assert seen[-1].result is not None
    assert seen[-1].result.ref == "a@1"
    assert faulty.faults


# Datastores, predictions, exports


def test_searches_and_predictions_are_sent_as_they_are_given() -> None:
    asked: list[tuple[str, Any]] = []
    answers: dict[str, str] = {
        "search": SearchResponse(hits=[[]], shards_searched=1, shards_total=1).model_dump_json(),
        "mixture": MixturePrediction(
            metric=None,
            unit="tokens",
            predictions=[],
            chosen=[],
            candidates=[],
            cross_validation=[],
            projection={},
            methods=[],
            warnings=["later versions have more members"],
        ).model_dump_json()[:-1]
        + ', "more": 1}',
    }

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append((scope["path"], json.loads((await receive())["body"])))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answers[scope["path"].rpartition("/")[2]].encode()})

    with served(app) as url, Client(url) as client:
        assert client.search("library", ["q"], 5, mode="bm25", domains=["a.org"]).hits == [[]]
        client.search("library@2", vectors=np.asarray([[0.5, 1.0]], dtype=np.float32), exact=True)
        assert client.predict({"mixture": "m", "weights": [{"a": 1}]}).warnings
    assert asked == [
        ("/v1/datastores/library/search", {"k": 5, "mode": "bm25", "domains": ["a.org"], "queries": ["q"]}),
        ("/v1/datastores/library@2/search", {"k": 3, "exact": True, "vectors": [[0.5, 1.0]]}),
        ("/v1/predict/mixture", {"mixture": "m", "weights": [{"a": 1}]}),
    ]


def test_a_declared_mixture(client: Client) -> None:
    declaration = {"sources": ["a", "b"], "weights": {"a": 0.7, "b": 0.3}, "budget": {"documents": 100}}
    made = client.query_mixture(declaration)
    assert made.n_rows == 100
    assert client.query_mixture(declaration) == made == client.mixture(made.ref)
    assert len(list(client.rows(made.ref))) == 100
    with pytest.raises(errors.ConfigError):
        client.query_mixture({**declaration, "wieghts": 1})


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_exports_are_folders(app: FastAPI, home: Path, tmp_path: Path) -> None:
    store = Store(home)
    stream = MixtureStream.open(store, "m")
    export_mixture(store, stream, "trl", ExportOptions(root="data"), tmp_path / "here", NoProgress())
    faulty = Faulty(app, 2, paths="/export", bytes_until=100_000)
    with served(faulty) as url, Client(url, retries=100) as client:
        while "cut" not in faulty.faults or "refuse" not in faulty.faults:
            out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
            assert client.export("m", "trl", out, root="data") == out
            assert files_of(out) == files_of(tmp_path / "here")
        with pytest.raises(errors.ConflictError, match="not empty"):
            client.export("m", "trl", out)
        with pytest.raises(errors.ConfigError):
            client.export("m", "no-such-format", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_exports_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    def archive(members: dict[str, bytes]) -> bytes:
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return sink.getvalue()

    def listed(content: bytes) -> bytes:
        entry = {"path": "rows.jsonl", "n_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        result = {"format": "trl", "mixture": "m@1", "fingerprint": "f", "files": [entry], "later": 1}
        return json.dumps(result).encode()

    answers = {
        "good": archive({"m/export.json": listed(b"row"), "m/rows.jsonl": b"row"}),
        "changed": archive({"m/export.json": listed(b"row"), "m/rows.jsonl": b"raw"}),
        "lacking": archive({"m/export.json": listed(b"row")}),
        "elsewhere": archive({"m/../../evil": b"x", "m/export.json": listed(b"")}),
        "garbage": b"no archive" * 200,
        "empty": archive({}),
    }

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": answers[scope["path"].split("/")[3]]})

    with served(app) as url, Client(url, retries=0) as client:
        for name in answers:
            if name == "good":
                assert files_of(client.export(name, "trl", tmp_path / "out"))["rows.jsonl"] == b"row"
            else:
                with pytest.raises(errors.DataError):
                    client.export(name, "trl", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
