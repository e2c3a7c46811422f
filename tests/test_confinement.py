"""What requests over REST may have the service read: attacks by every spelling, and that no field is forgotten."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import fsspec
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from pydantic import BaseModel
from sqlalchemy import delete
from support import api_routes, document_table, published_corpus

from mixwright.config import Settings
from mixwright.errors import ConfigError, ForbiddenError
from mixwright.jobs.board import Board
from mixwright.jobs.confinement import Confinement, confined
from mixwright.jobs.database import Database, JobRow
from mixwright.jobs.ingest import run_ingest
from mixwright.jobs.run import REQUEST_ADAPTER, AnyRequest
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.evaluations import EvaluateRequest
from mixwright.schemas.reads import Named, hints_of, marks, named_in
from mixwright.schemas.requests import EmbedRequest, IngestRequest, ScoreRequest
from mixwright.selectors.registry import SELECTORS
from mixwright.selectors.requests import SelectRequest
from mixwright.service.app import create_app
from mixwright.store import Store


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder that may be read, ``in``, and beside it what may not: a secret, and links to it from inside."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (
        inside / "sub",
        inside / "model",
        inside / ".hidden",
        outside / "model",
        tmp_path / "home" / "jobs",
    ):
        folder.mkdir(parents=True)
    for file in (
        inside / "a.jsonl",
        inside / "sub" / "b.jsonl",
        inside / "[x].jsonl",
        inside / "tokenizer.json",
        inside / ".hidden" / "c.jsonl",
        outside / "secret.jsonl",
        tmp_path / "in-evil.jsonl",
        tmp_path / "home" / "jobs" / "log.jsonl",
    ):
        file.write_text('{"text": "some text"}\n')
    (inside / ".env").write_text("KEY=secret")
    for model in (inside / "model", outside / "model"):
        (model / "config.json").write_text("{}")
    (inside / "link.jsonl").symlink_to(outside / "secret.jsonl")
    (inside / "sub" / "fine.jsonl").symlink_to(inside / "a.jsonl")
    (inside / "linked").symlink_to(outside)
    (inside / "dangling.jsonl").symlink_to(outside / "nothing.jsonl")
    (tmp_path / "home" / "inputs").mkdir()
    (tmp_path / "home" / "inputs" / "d.jsonl").write_text('{"text": "d"}\n')
    return tmp_path


def confinement(world: Path, **settings: Any) -> Confinement:
    return Confinement.of(Settings(home=world / "home", **{"allowed_paths": str(world / "in"), **settings}))


def ingest(path: str) -> IngestRequest:
    return IngestRequest(name="x", paths=[path])


ALLOWED = [
    "{in}/a.jsonl",
    "{in}/sub",
    "{in}/sub/",
    "{in}/sub/fine.jsonl",
    "{in}/sub/../a.jsonl",
    "{in}//a.jsonl",
    "{in}/./a.jsonl",
    "{in}/s*/b.jsonl",
    "{in}/s*/*",
    "{in}/[[]x[]].jsonl",
    "{in}/[x].jsonl",
    "file://{in}/a.jsonl",
    "file:{in}/a.jsonl",
    "local://{in}/a.jsonl",
    "{in}/not-there-yet.jsonl",
]

REFUSED = [
    "/etc/passwd",
    "//etc/passwd",
    "/etc/pass*",
    "/*/passwd",
    "/",
    "/proc/self/environ",
    "/dev/stdin",
    "~",
    "~/.ssh/id_rsa",
    "~root/x.jsonl",
    "file:///etc/passwd",
    "file:/etc/passwd",
    "file:~/x",
    "local:///etc/passwd",
    "local:/etc/passwd",
    "{out}/secret.jsonl",
    "{out}/not-there.jsonl",
    "{in}/../out/secret.jsonl",
    "{in}/sub/../../out/secret.jsonl",
    "{in}/../in-evil.jsonl",
    "{in}-evil.jsonl",
    "{in}/link.jsonl",
    "{in}/dangling.jsonl",
    "{in}/linked",
    "{in}/linked/secret.jsonl",
    "{in}/linked/*.jsonl",
    "{in}/*",
    "{in}",
    "{in}/*.jsonl",
    "{in}/**/../../out/secret.jsonl",
    "{in}/s*/../../out/secret.jsonl",
    "{in}/.env",
    "{in}/.hidden",
    "{in}/.hidden/c.jsonl",
    "{in}/sub/../.hidden/c.jsonl",
    "{home}/jobs/log.jsonl",
    "{home}/catalog.sqlite",
    "{home}",
    "{in}/a.jsonl\x00.png",
    "{in}/a\n.jsonl",
    "simplecache::file:///etc/passwd",
    "zip://passwd::file://{in}/a.zip",
    "filecache::{in}/a.jsonl",
    "file::{in}/a.jsonl",
    "tar://x::/etc/x.tar",
    "reference://::file:///etc/passwd",
    "memory://x",
    "data:text/plain,x",
    "data:,x",
    "http://169.254.169.254/latest/meta-data/",
    "http://localhost:8000/v1/jobs",
    "https://example.org/x.jsonl",
    "ftp://example.org/x",
    "s3://bucket/x.jsonl",
    "gs://bucket/x.jsonl",
    "hf://datasets/org/name/x.jsonl",
    "git://x@main/y",
    "dir://x",
    "FILE:///etc/passwd",
    "sftp://host/etc/passwd",
    "ssh://host/etc/passwd",
    "smb://host/share",
    "jupyter://localhost/x",
    "",
]


def spelled(text: str, world: Path) -> str:
    for name in ("in", "out", "home"):
        text = text.replace(f"{{{name}}}", str(world / name))
    return text


@pytest.mark.parametrize("text", ALLOWED)
def test_files_that_may_be_read(world: Path, text: str) -> None:
    confinement(world).check(ingest(spelled(text, world)))


@pytest.mark.parametrize("text", REFUSED)
def test_files_that_may_not(world: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what fsspec, which the jobs read with, makes of a path: it opens nothing that was refused here."""
    monkeypatch.chdir(world / "out")
    with pytest.raises(ForbiddenError) as refused:
        confinement(world).check(ingest(spelled(text, world)))
    line = str(refused.value)
    assert line.startswith("paths[0]: ")
    assert "\n" not in line
    assert refused.value.status == 403


def test_the_answer_does_not_say_what_is_there(world: Path) -> None:
    answers = set()
    for name in ("secret.jsonl", "absent.jsonl"):
        for request in (
            ingest(str(world / "out" / name)),
            EmbedRequest(corpus="c", encoder=str(world / "out" / name)),
        ):
            with pytest.raises(ForbiddenError) as refused:
                confinement(world).check(request)
            answers.add(str(refused.value).replace(name, "NAME"))
    assert len(answers) == 2


def test_a_root_may_itself_be_a_link_or_hidden(world: Path) -> None:
    (world / "way").symlink_to(world / "in" / "sub")
    (world / ".root").mkdir()
    (world / ".root" / "e.jsonl").write_text("{}")
    roots = os.pathsep.join([str(world / "way"), str(world / ".root"), "", str(world / "absent")])
    wide = confinement(world, allowed_paths=roots)
    for path in ("way/b.jsonl", "in/sub/b.jsonl", ".root/e.jsonl"):
        wide.check(ingest(str(world / path)))
    with pytest.raises(ForbiddenError):
        wide.check(ingest(str(world / "in/a.jsonl")))


def test_the_home_folder_below_a_root_stays_closed(world: Path) -> None:
    wide = confinement(world, allowed_paths=str(world))
    wide.check(ingest(str(world / "out/secret.jsonl")))
    for path in ("home/jobs/log.jsonl", "home", "home/inputs/d.jsonl", "h*/jobs/log.jsonl", "*"):
        with pytest.raises(ForbiddenError):
            wide.check(ingest(str(world / path)))


def test_by_default_the_own_folder_what_lies_beside_the_home_and_inputs(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = world / "in"
    (own / "service" / "home" / "inputs").mkdir(parents=True)
    (own / "service" / "home" / "inputs" / "d.jsonl").write_text('{"text": "d"}\n')
    (own / "service" / "e.jsonl").write_text('{"text": "e"}\n')
    settings = Settings(home=own / "service" / "home", allowed_paths=None)
    monkeypatch.chdir(own / "sub")
    default = Confinement.of(settings)
    for path in ("b.jsonl", str(own / "service/e.jsonl"), "../service/home/inputs/d.jsonl"):
        default.check(ingest(path))
    for path in ("/etc/passwd", "../a.jsonl", str(own / ".env"), str(own / "link.jsonl"), "../service/home"):
        with pytest.raises(ForbiddenError, match="MIXWRIGHT_ALLOWED_PATHS"):
            default.check(ingest(path))
    monkeypatch.chdir("/")
    with pytest.raises(ForbiddenError):
        Confinement.of(Settings(home=Path("/mixwright-home"), allowed_paths=None)).check(ingest("etc/passwd"))
    with pytest.raises(ForbiddenError):
        confinement(world, allowed_paths="").check(ingest(str(own / "a.jsonl")))


@pytest.mark.parametrize("allowed", [None, "home"])
def test_a_service_that_is_started_in_its_home_does_not_open_it(
    world: Path, monkeypatch: pytest.MonkeyPatch, allowed: str | None
) -> None:
    monkeypatch.chdir(world / "home")
    here = confinement(world, allowed_paths=allowed and str(world / allowed))
    for path in ("jobs/log.jsonl", "jobs", "*/log.jsonl", "."):
        with pytest.raises(ForbiddenError):
            here.check(ingest(path))


URLS = "s3://bucket/folder/, https://Data.example.org/public hf://datasets/org/ memory://"


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/folder/a.jsonl",
        "s3://bucket/folder/*/a.jsonl",
        "s3://bucket/folder",
        "s3a://bucket/folder/a",
        "s3:///bucket/folder/a",
        "https://data.example.org/public/a.jsonl?download=1",
        "https://DATA.example.org/public",
        "hf://datasets/org/name@~parquet/a.parquet",
        "memory://x",
    ],
)
def test_urls_below_an_allowed_one(world: Path, url: str) -> None:
    confinement(world, allowed_urls=URLS).check(ingest(url))


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/other/a.jsonl",
        "s3://bucket/folder-evil/a.jsonl",
        "s3://bucket-evil/folder/a.jsonl",
        "s3://bucket",
        "s3://bucket/",
        "s3://*/folder/a",
        "s3://BUCKET/folder/a",
        "S3://bucket/folder/a",
        "s3://bucket/folder/../other/a",
        "s3://bucket/folder/./a",
        "s3://bucket/folder/%2e%2e/other/a",
        "s3://bucket/folder/%252e%252e/other/a",
        "s3://bucket/folder/..%2fother/a",
        "s3://bucket/folder/x%5c..%5cother",
        "s3://bucket/folder\\..\\other",
        "s3://user:password@bucket/folder/a",
        "s3://bucket/folder/a\x00",
        "s3://bucket/folder/%00a",
        "zip://a::s3://bucket/folder/a.zip",
        "s3://bucket/folder/a::file:///etc/passwd",
        "http://data.example.org/public/a",
        "https://data.example.org.evil.net/public/a",
        "https://data.example.org@evil.net/public/a",
        "https://data.example.org:8443/public/a",
        "https://evil.net/https://data.example.org/public/a",
        "https://evil.net#@data.example.org/public/a",
        "https://evil.net?@data.example.org/public/a",
        "https://evil.net\\@data.example.org/public/a",
        "https:///data.example.org/public/a",
        "https://data.example.org/private/a",
        "https://169.254.169.254/public",
        "hf://datasets/organisation/name",
        "hf://models/org/name",
    ],
)
def test_urls_that_only_look_like_it(world: Path, url: str) -> None:
    with pytest.raises(ForbiddenError) as refused:
        confinement(world, allowed_urls=URLS).check(ingest(url))
    assert "password" not in str(refused.value)


@pytest.mark.parametrize("urls", ["bucket", "/data", "s3:/bucket", "s3://bucket/../x", "zip://x::s3://y"])
def test_prefixes_that_are_none(world: Path, urls: str) -> None:
    with pytest.raises(ConfigError, match="MIXWRIGHT_ALLOWED_URLS"):
        confinement(world, allowed_urls=urls)


MODELS = "org/model, other/*, {out}/model"


@pytest.mark.parametrize(
    "encoder",
    [
        "all-minilm-l6-v2",
        "hashing",
        "hashing:64",
        "numbers:3",
        "{in}/model",
        "org/model",
        "other/anything-1.5",
        "{out}/model",
    ],
)
def test_models_that_may_be_loaded(world: Path, encoder: str) -> None:
    allowed = confinement(world, allowed_models=spelled(MODELS, world))
    allowed.check(EmbedRequest(corpus="c", encoder=spelled(encoder, world)))


@pytest.mark.parametrize(
    "encoder",
    [
        "org/other-model",
        "org/model/../../etc",
        "other/../org/x",
        "other/a/b",
        "other",
        "other/",
        "other/.hidden",
        "evil",
        "BAAI/bge-small-en",
        "all-minilm-l6-v2/../..",
        "hashing:../../etc",
        "numbers:3\n",
        "/etc",
        "/etc/passwd",
        "~",
        "~/model",
        "{out}",
        "{out}/mod*",
        "{in}/../out/secret.jsonl",
        "{in}/linked/model",
        "{in}/absent",
        "{home}",
        "file:///etc",
        "https://evil.net/model",
        "s3://bucket/model",
        "",
        ".",
        "..",
    ],
)
def test_models_that_may_not(world: Path, encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world / "out")
    allowed = confinement(world, allowed_models=spelled(MODELS, world))
    with pytest.raises(ForbiddenError, match=r"MIXWRIGHT_ALLOWED_MODELS|characters"):
        allowed.check(EmbedRequest(corpus="c", encoder=spelled(encoder, world)))


def test_a_model_that_links_outside_may_not_be_loaded(world: Path) -> None:
    (world / "in/model/weights.bin").symlink_to(world / "out/secret.jsonl")
    with pytest.raises(ForbiddenError):
        confinement(world).check(EmbedRequest(corpus="c", encoder=str(world / "in/model")))


def test_a_hub_name_that_is_also_a_folder_outside(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loaders take a local folder before the hub, so a wildcard must not let one in."""
    monkeypatch.chdir(world / "out")
    (world / "out" / "other").mkdir()
    (world / "out" / "other" / "x").mkdir()
    with pytest.raises(ForbiddenError):
        confinement(world, allowed_models="other/*").check(EmbedRequest(corpus="c", encoder="other/x"))


# No field is forgotten

LOOKS_LIKE = re.compile(
    r"path|file|folder|dir|url|uri|location|model|encoder|tokenizer|reranker|original|pruned|queries|command|program"
    r"|checkpoint|input|output|source_of|reader|adapter|vocab|image|script|config|endpoint|host|address|bucket"
)
READS_NOTHING = {
    "IngestRequest.url_field": "name of a field",
    "SearchRequest.queries": "texts that are searched for",
}
"""Fields whose names look like it, and why they name nothing that is opened."""


def _types_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and not get_args(hint):
        yield hint
    for inner in get_args(hint):
        yield from _types_in(inner)


def _fields(cls: type) -> dict[str, Any]:
    return hints_of(cls) if issubclass(cls, BaseModel) or dataclasses.is_dataclass(cls) else {}


def _reachable(hints: list[Any]) -> set[type]:
    """Every model and dataclass inside these types."""
    found: set[type] = set()
    waiting = [each for hint in hints for each in _types_in(hint)]
    while waiting:
        cls = waiting.pop()
        if cls in found or not _fields(cls):
            continue
        found.add(cls)
        waiting += [each for hint in _fields(cls).values() for each in _types_in(hint)]
    return found


def _parameters(app: FastAPI) -> Iterator[tuple[APIRoute, str, Any]]:
    """Route, name and type of every parameter and body of every route, those of dependencies too."""

    def walk(route: APIRoute, dependant: Any) -> Iterator[tuple[APIRoute, str, Any]]:
        for kind in ("path", "query", "header", "cookie", "body"):
            for each in getattr(dependant, f"{kind}_params"):
                yield (
                    route,
                    each.name,
                    each.field_info.annotation if not each.field_info.metadata else _annotated(each),
                )
        for inner in dependant.dependencies:
            yield from walk(route, inner)

    routes = api_routes(app)
    assert len(routes) > 30
    for route in routes:
        yield from walk(route, route.dependant)


def _annotated(parameter: Any) -> Any:
    from typing import Annotated

    return Annotated[(parameter.field_info.annotation, *parameter.field_info.metadata)]


def test_every_field_that_looks_like_a_path_is_marked(tmp_path: Path) -> None:
    from mixwright.schemas.datastores import SearchRequest
    from mixwright.selectors.requests import PredictRequest

    app = create_app(Settings(home=tmp_path), run_worker=False)
    hints = [AnyRequest, PredictRequest, SearchRequest, *(each for _, _, each in _parameters(app))]
    models = _reachable(hints)
    assert {*SELECTORS.values(), IngestRequest, EmbedRequest, ScoreRequest, EvaluateRequest} <= models
    unmarked = {
        f"{cls.__name__}.{name}"
        for cls in models
        for name, hint in _fields(cls).items()
        if LOOKS_LIKE.search(name) and str in set(_types_in(hint)) and not marks(hint)
    }
    unmarked |= {
        f"{route.name}({name})"
        for route, name, hint in _parameters(app)
        if LOOKS_LIKE.search(name) and str in set(_types_in(hint)) and not marks(hint)
    }
    assert unmarked == set(READS_NOTHING)


def test_every_marked_field_of_every_job_is_refused(world: Path) -> None:
    """A request of each kind that may run, and then with each of its marked fields naming what may not be read."""
    file, model = str(world / "in/a.jsonl"), str(world / "in/model")
    selecting = {"name": "m", "sources": ["c"], "budget": {"tokens": 9}}
    pilot = {
        "name": "p",
        "sources": ["a"],
        "validation": "v",
        "evaluator": "linear_probe",
        "label": "l",
        "sizes": [1],
    }
    requests: list[tuple[str, dict[str, Any]]] = [
        ("ingest", {"name": "x", "paths": [file]}),
        ("embed", {"corpus": "c"}),
        ("score", {"corpus": "c", "original": model, "pruned": model}),
        ("index", {"corpus": "c"}),
        ("pilot", pilot),
        ("near-duplicates", {"corpus": "c", "method": "semantic"}),
        ("datastore", {"name": "d", "corpora": ["c"]}),
        ("evaluate", {"datastore": "d", "queries": file, "model": model}),
        ("scale", {"datastore": "d", "queries": file, "model": model}),
        *(("select", {**selecting, "selector": {"kind": kind}}) for kind in sorted(SELECTORS)),
    ]
    settings = Settings(home=world / "home", allowed_paths=str(world / "in"))
    n_attacks = 0
    with TestClient(create_app(settings, run_worker=False)) as client:
        for kind, request in requests:
            fields = _marked_fields(kind, request)
            for field in fields:
                attack = _replaced(request, field, "/etc/passwd")
                answer = client.post("/v1/jobs", json={"kind": kind, "request": attack})
                assert answer.status_code == 403, (kind, field, answer.text)
                assert answer.json()["detail"].startswith(field), answer.text
            n_attacks += len(fields)
            assert client.get("/v1/jobs").json()["items"] == []
            job = client.post("/v1/jobs", json={"kind": kind, "request": request})
            assert job.status_code == 202, job.text
            _forget_jobs(settings)
    assert n_attacks >= 16
    with_marks = {kind for kind in _KINDS if any(marks(hint) for hint in _fields(_request_class(kind)).values())}
    assert with_marks - {kind for kind, _ in requests} == set()


_KINDS = [cls.model_fields["kind"].default for cls in get_args(get_args(AnyRequest)[0])]


def _forget_jobs(settings: Settings) -> None:
    database = Database(settings.catalog_url)
    with database.writing() as session:
        session.execute(delete(JobRow))
    database.close()


def _replaced(request: dict[str, Any], field: str, value: str) -> dict[str, Any]:
    """The request with another value in a field such as ``selector.encoder``."""
    name, _, inner = field.partition(".")
    if inner:
        return {**request, name: _replaced(request[name], inner, value)}
    return {**request, name: [value] if isinstance(request.get(name), list) else value}


def _request_class(kind: str) -> type[BaseModel]:
    found: type[BaseModel] = next(
        cls for cls in get_args(get_args(AnyRequest)[0]) if cls.model_fields["kind"].default == kind
    )
    return found


def _marked_fields(kind: str, request: dict[str, Any]) -> list[str]:
    """Names of the marked fields of a request, those of its selector as ``selector.encoder``; not programs."""
    fields = _fields(_request_class(kind))
    found = [name for name, hint in fields.items() for mark in marks(hint) if mark.what != "program"]
    if "selector" in request:
        selector = SELECTORS[request["selector"]["kind"]]
        found += [f"selector.{name}" for name, hint in _fields(selector).items() if marks(hint)]
    return found


def test_marks_are_found_however_deep() -> None:
    request = SelectRequest.model_validate(
        {
            "name": "m",
            "sources": ["c"],
            "selector": {"kind": "retrieval", "target": "t", "encoder": "E"},
            "budget": {"tokens": 9},
        }
    )
    assert list(named_in(request)) == [Named("selector.encoder", "encoder", "E")]
    several = IngestRequest(name="x", paths=["a", "b"], tokenizer="T")
    assert list(named_in(several)) == [
        Named("paths[0]", "files", "a"),
        Named("paths[1]", "files", "b"),
        Named("tokenizer", "tokenizer", "T"),
    ]


def test_routes_that_read_by_name_are_confined(tmp_path: Path) -> None:
    """Every route with a marked field is asked for what may not be read; a new one fails here until it is."""
    store = Store(tmp_path / "home")
    published_corpus(store, "wiki", document_table([f"text {number}" for number in range(9)]))
    select = SelectRequest.model_validate(
        {"name": "blend", "sources": ["wiki"], "budget": {"documents": 5}, "selector": {"kind": "uniform"}}
    )
    run_select(store, select, NoProgress())
    app = create_app(Settings(home=store.home, allowed_paths=""), run_worker=False)
    selector = {"validation": "wiki", "encoder": "/etc"}
    attacks: dict[str, tuple[str, str, Any]] = {
        "submit_job": ("POST", "/v1/jobs", {"kind": "embed", "request": {"corpus": "wiki", "encoder": "/etc"}}),
        "predict_mixture": ("POST", "/v1/predict/mixture", {"sources": ["wiki"], "selector": selector}),
        "export_mixture": ("GET", "/v1/mixtures/blend/export?format=mds&tokenizer=/etc/passwd", None),
        "stream_mixture_rows": ("GET", "/v1/mixtures/blend/rows?tokenizer=/etc/passwd", None),
    }
    reading = {
        route.name
        for route, _, hint in _parameters(app)
        if marks(hint) or any(marks(each) for cls in _reachable([hint]) for each in _fields(cls).values())
    }
    with TestClient(app) as client:
        for method, path, body in attacks.values():
            answer = client.request(method, path, json=body)
            assert answer.status_code == 403, answer.text
            assert "MIXWRIGHT_ALLOWED_MODELS" in answer.json()["detail"]
        assert client.get("/v1/mixtures/blend/rows?tokenizer=bytes").status_code == 200
    assert reading - set(attacks) == set()


# Again, when a job runs


def test_a_link_that_appears_after_the_check_is_not_opened(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking at a path and opening it, the file is replaced by a link to the secret."""
    allowed, target = confinement(world), world / "in/a.jsonl"
    filesystem = fsspec.filesystem("file")
    allowed.open(filesystem, str(target)).close()
    real_open = type(filesystem).open

    def swap_and_open(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
        target.unlink()
        target.symlink_to(world / "out/secret.jsonl")
        return real_open(self, path, *arguments, **options)

    monkeypatch.setattr(type(filesystem), "open", swap_and_open)
    with pytest.raises(ForbiddenError):
        allowed.open(filesystem, str(target))


def test_a_link_that_is_there_only_while_it_is_opened(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret is opened through a link, and the harmless file is back before anybody looks at the path."""
    allowed, target = confinement(world), world / "in/a.jsonl"
    filesystem = fsspec.filesystem("file")
    real_open = type(filesystem).open

    def open_through_link(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
        target.rename(world / "in/kept.jsonl")
        target.symlink_to(world / "out/secret.jsonl")
        handle = real_open(self, path, *arguments, **options)
        target.unlink()
        (world / "in/kept.jsonl").rename(target)
        return handle

    monkeypatch.setattr(type(filesystem), "open", open_through_link)
    with pytest.raises(ForbiddenError):
        allowed.open(filesystem, str(target))


@pytest.mark.parametrize("path", ["in", "in/*.jsonl", "in/link.jsonl", "out/secret.jsonl", "in/linked"])
def test_a_confined_job_opens_nothing_outside(world: Path, path: str) -> None:
    """Without the check at its start: by a folder, by a glob, by a link."""
    (world / "in/dangling.jsonl").unlink()
    store = Store(world / "home")
    request = ingest(str(world / path))
    with confined(confinement(world)), pytest.raises(ForbiddenError):
        run_ingest(store, request, NoProgress())
    assert list(store.manifests()) == []
    # Commands on the machine itself are not confined.
    assert run_ingest(store, request, NoProgress()).n_documents > 0


def test_a_confined_job_fetches_nothing_else(world: Path) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/public/a.jsonl", b'{"text": "public"}\n')
    filesystem.pipe("/private/a.jsonl", b'{"text": "private"}\n')
    store = Store(world / "home")
    with confined(confinement(world, allowed_urls="memory://public")):
        run_ingest(store, IngestRequest(name="public", paths=["memory://public/a.jsonl"]), NoProgress())
        with pytest.raises(ForbiddenError):
            run_ingest(store, IngestRequest(name="private", paths=["memory://private/a.jsonl"]), NoProgress())


def test_the_process_of_a_job_checks_what_is_on_the_board(world: Path) -> None:
    """The board is shared: a request may come from another service, or from one before its settings changed."""
    settings = Settings(home=world / "home", allowed_paths=str(world / "in"))
    database = Database(settings.catalog_url)
    database.upgrade()
    board = Board(database)
    request = REQUEST_ADAPTER.validate_python(
        {"kind": "ingest", "name": "p", "paths": ["/etc/passwd"], "format": "text"}
    )
    job = board.submit(request.model_dump(mode="json"))
    assert board.claim("test") is not None
    command = [sys.executable, "-m", "mixwright", "jobs", "run", job.id, "--home", str(settings.home)]
    environment = os.environ | {"MIXWRIGHT_ALLOWED_PATHS": str(world / "in")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    failed = board.get(job.id)
    database.close()
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["type"] == "urn:mixwright:error:forbidden"
    assert "/etc/passwd" in failed.error["detail"]
    assert "root:" not in ended.stdout + ended.stderr
