"""Exports over HTTP and at the command line: the same files as an export into a folder."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support import document_table, published_corpus
from typer.testing import CliRunner

from mixwright.cli import app as program
from mixwright.config import Settings
from mixwright.errors import ConfigError
from mixwright.jobs.exports import export as export_module
from mixwright.jobs.exports import registry
from mixwright.jobs.exports.export import export_mixture
from mixwright.jobs.exports.format import Export, ExportFormat, ExportOptions
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.exports import ExportListing, ExportResult
from mixwright.selectors.requests import SelectRequest
from mixwright.selectors.streams import MixtureStream
from mixwright.service.app import create_app
from mixwright.service.exports import ExportCache, tar_chunks, tar_size
from mixwright.service.negotiation import best_offer
from mixwright.store import Store

URL = "/v1/mixtures/blend/export"
TAR = {"accept": "application/x-tar"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("routes") / "home")
    for name in ("wiki", "web"):
        texts = [f"{name} page {number} é" for number in range(30)]
        published_corpus(store, name, document_table(texts, source=name, domains=["a.org"] * 30))
    request = {"name": "blend", "sources": ["wiki", "web"], "budget": {"documents": 20}}
    selector = {"kind": "domain-tags", "preset": "meco", "cooldown": 0.3}
    run_select(store, SelectRequest.model_validate({**request, "selector": selector}), NoProgress())
    return store


@pytest.fixture(scope="module")
def client(store: Store) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=store.home), run_worker=False)) as client:
        yield client


def exports_of(store: Store) -> Path:
    return store.home / "cache" / "exports"


def members(content: bytes) -> dict[str, bytes]:
    """The files of a tar archive by path; it must have one folder."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {each.name: archive.extractfile(each).read() for each in archive if each.isfile()}  # type: ignore[union-attr]
    assert {path.split("/")[0] for path in files} == {next(iter(files)).split("/")[0]}
    return {path.partition("/")[2]: content for path, content in files.items()}


class TestRoute:
    def test_formats_are_listed_with_what_they_express(self, client: TestClient) -> None:
        found = client.get("/v1/export-formats").json()
        assert [each["name"] for each in found] == sorted(registry.EXPORT_FORMATS)
        for each in found:
            chosen = registry.EXPORT_FORMATS[each["name"]]
            assert (each["masks"], each["stages"], each["tokenized"]) == (
                chosen.masks,
                chosen.stages,
                chosen.tokenized,
            )
            assert "{stage}" not in each["snippet"]
            assert each["title"]

    @pytest.mark.parametrize("format", sorted(registry.EXPORT_FORMATS))
    def test_every_format_is_the_export_into_a_folder(
        self, format: str, client: TestClient, store: Store, tmp_path: Path
    ) -> None:
        options = ExportOptions(eos=257, root=".")
        stream = MixtureStream.open(store, "blend")
        chosen = registry.EXPORT_FORMATS[format]
        # A document points into the service that is asked for it.
        service = str(client.base_url) if chosen.document else None
        result = export_mixture(store, stream, format, options, tmp_path / "out", NoProgress(), service)
        answer = client.get(URL, params={"format": format, "eos": 257}, headers=TAR)
        assert answer.status_code == 200, answer.text
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert "blend-1-" in answer.headers["content-disposition"]
        there = {
            path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
            for path in (tmp_path / "out").rglob("*")
            if path.is_file()
        }
        assert members(answer.content) == there
        plain = client.get(URL, params={"format": format, "eos": 257})
        if chosen.document is not None:
            assert plain.headers["content-type"] == chosen.media_type
            assert plain.content == members(answer.content)[chosen.document]
            return
        listing = ExportListing.model_validate_json(plain.content)
        assert ExportResult(**{name: getattr(result, name) for name in type(result).model_fields}) == ExportResult(
            **listing.model_dump(exclude={"files", "snippet"}),
            files=[each.model_dump(exclude={"text"}) for each in listing.files],
        )
        texts = {each.path: each.text for each in listing.files if each.text is not None}
        assert texts
        assert texts == {path: there[path].decode() for path in texts}
        assert "{root}" not in listing.snippet

    def test_an_export_is_made_once_and_then_not_changed(
        self, client: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        params = {"format": "mds", "root": "/once"}
        first = client.get(URL, params=params)
        monkeypatch.setattr("mixwright.service.exports.export_mixture", None)
        assert client.get(URL, params=params).content == first.content
        again = client.get(URL, params=params, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        other = client.get(URL, params=params, headers=TAR)
        assert other.headers["etag"] != first.headers["etag"]
        assert (
            client.get(f"{URL.replace('blend', 'blend@1')}", params=params)
            .headers["cache-control"]
            .endswith("3600")
        )

    @pytest.mark.parametrize(
        ("params", "status", "detail"),
        [
            ({"format": "megatrom"}, 422, "use one of "),
            ({}, 422, "format: Field required"),
            ({"format": "megatron"}, 409, "give eos, its id in bytes"),
            ({"format": "nemo", "eos": "1", "root": "a b"}, 409, "white space"),
            ({"format": "mds", "eos": "-1"}, 422, "eos: "),
            ({"format": "mds", "eos": str(2**31)}, 422, "eos: "),
            ({"format": "mds", "sequence_length": "0"}, 422, "sequence_length: "),
            ({"format": "mds", "root": 'a"b'}, 422, "root: "),
            ({"format": "mds", "root": ""}, 422, "root: "),
            ({"format": "mds", "tokenizer": ""}, 422, "tokenizer: "),
            ({"format": "mds", "root": "a\x07b"}, 422, "root: "),
            ({"format": "mds", "tokeniser": "bytes"}, 422, "no query parameter 'tokeniser'"),
            ({"format": "mds", "tokenizer": "/etc/passwd"}, 403, "tokenizer"),
            ({"format": "mds", "tokenizer": "no/such-model"}, 403, "tokenizer"),
        ],
    )
    def test_what_is_wrong_is_said(
        self, params: dict[str, str], status: int, detail: str, client: TestClient
    ) -> None:
        answer = client.get(URL, params=params)
        assert answer.status_code == status, answer.text
        assert detail in answer.json()["detail"]
        assert client.get("/v1/mixtures/none/export", params={"format": "mds"}).status_code == 404

    def test_a_client_that_takes_neither_form_is_told_both(self, client: TestClient) -> None:
        answer = client.get(URL, params={"format": "mds"}, headers={"accept": "text/html"})
        assert answer.status_code == 406
        assert "application/json or application/x-tar" in answer.json()["detail"]

    def test_a_mixture_too_large_to_wait_for_names_the_command(self, store: Store) -> None:
        settings = Settings(home=store.home, export_max_tokens=5)
        with TestClient(create_app(settings, run_worker=False)) as small:
            answer = small.get(URL, params={"format": "huggingface", "root": "/large"})
            assert answer.status_code == 409
            detail = answer.json()["detail"]
            assert "mixwright mixture export blend@1 --format huggingface --out DIR" in detail
            assert "MIXWRIGHT_EXPORT_MAX_TOKENS" in detail

    def test_a_failed_export_leaves_nothing(self, client: TestClient, store: Store) -> None:
        before = sorted(exports_of(store).rglob("*"))
        assert client.get(URL, params={"format": "nemo", "root": "a b", "eos": 1}).status_code == 409
        assert sorted(exports_of(store).rglob("*")) == before


def test_what_accept_asks_for() -> None:
    offers = ["application/json", "application/x-tar"]
    for accept, expected in (
        (None, offers[0]),
        ("", offers[0]),
        ("*/*", offers[0]),
        ("application/*", offers[0]),
        ("application/x-tar", offers[1]),
        ("application/json;q=0.5, application/x-tar", offers[1]),
        ("application/json;q=0, */*;q=0.1", offers[1]),
        ("application/x-tar;q=2", None),
        ("text/html", None),
        ("*/*;q=0", None),
    ):
        assert best_offer(accept, offers) == expected, accept


class TestCache:
    """The cache with a format that counts how often it is made."""

    @pytest.fixture
    def probe(self) -> Iterator[list[str]]:
        made: list[str] = []

        def write(export: Export) -> None:
            made.append(export.root)
            export.write_text("data/text.txt", export.root * 100)

        registry.EXPORT_FORMATS["probe"] = ExportFormat(
            "probe", "Probe", "Probe", False, None, write, "{root}", masks=True, stages=True
        )
        yield made
        del registry.EXPORT_FORMATS["probe"]

    def opened(self, store: Store, home: Path, root: str, max_bytes: int = 10**9) -> Any:
        cache = ExportCache(Store(home), max_bytes, 10**9)
        options = ExportOptions(root=root)
        return cache.open(MixtureStream.open(store, "blend"), registry.EXPORT_FORMATS["probe"], options)

    def test_many_who_ask_at_once_get_one_export(self, store: Store, tmp_path: Path, probe: list[str]) -> None:
        barrier = threading.Barrier(8)

        def ask(_: int) -> bytes:
            barrier.wait()
            return b"".join(tar_chunks(self.opened(store, tmp_path, "/same"), "top"))

        with ThreadPoolExecutor(8) as pool:
            answers = set(pool.map(ask, range(8)))
        assert probe == ["/same"]
        assert len(answers) == 1

    def test_the_exports_read_longest_ago_go_first_but_none_in_use(
        self, store: Store, tmp_path: Path, probe: list[str]
    ) -> None:
        folders = {}
        for age, root in enumerate(("/a", "/b", "/c")):
            export = self.opened(store, tmp_path, root)
            folders[root] = export.folder
            os.utime(export.folder, (age, age))
            export.close()
        reading = self.opened(store, tmp_path, "/a")
        os.utime(folders["/a"], (0, 0))
        size = sum(path.stat().st_size for path in folders["/a"].rglob("*") if path.is_file())
        self.opened(store, tmp_path, "/d", max_bytes=3 * size + size // 2).close()
        assert {root for root, folder in folders.items() if folder.exists()} == {"/a", "/c"}
        # What is being read stays whole, and goes when it is not read any more.
        assert len(b"".join(tar_chunks(reading, "top"))) == tar_size(reading, "top")
        self.opened(store, tmp_path, "/e", max_bytes=0).close()
        left = sorted(path.name for path in folders["/a"].parent.iterdir())
        assert len(left) == 2
        assert left[1] == f"{left[0]}.lock"
        assert probe == ["/a", "/b", "/c", "/d", "/e"]

    def test_what_a_killed_process_left_goes(self, store: Store, tmp_path: Path, probe: list[str]) -> None:
        export = self.opened(store, tmp_path, "/killed")
        export.close()
        # As after SIGKILL half way: no export under its name, a folder in work beside, and the lock file.
        export.folder.rename(export.folder.with_name(f".{export.folder.name}.99.tmp"))
        self.opened(store, tmp_path, "/other").close()
        names = [path.name for path in export.folder.parent.iterdir()]
        assert len(names) == 2
        assert not [name for name in names if name.endswith(".tmp")]
        again = self.opened(store, tmp_path, "/killed")
        assert (again.folder / "data" / "text.txt").exists()
        again.close()
        assert probe == ["/killed", "/other", "/killed"]

    def test_a_refused_export_keeps_no_lock(self, store: Store, tmp_path: Path) -> None:
        cache = ExportCache(Store(tmp_path), 0, 10**9)
        with pytest.raises(ConfigError, match="give eos"):
            cache.open(
                MixtureStream.open(store, "blend"), export_module.export_format("megatron"), ExportOptions()
            )
        assert list((tmp_path / "cache" / "exports").iterdir()) == []


class TestCommand:
    def test_files_warnings_and_a_snippet(self, store: Store, tmp_path: Path) -> None:
        out = tmp_path / "out"
        command = ["mixture", "export", "blend", "--format", "megatron", "--out", str(out), "--eos", "257"]
        found = CliRunner().invoke(program, [*command, "--home", str(store.home)])
        assert found.exit_code == 0, found.output
        assert f"--data-args-path {out}/blend-tagged.txt" in found.stdout
        assert "warning: Megatron-LM has no loss mask" in found.stdout
        assert (out / "blend-tagged.txt").read_text().split()[1].startswith(f"{out}/data/")

    def test_json(self, store: Store, tmp_path: Path) -> None:
        out = tmp_path / "out"
        command = ["mixture", "export", "blend", "--format", "mds", "--out", str(out), "--json", "--root", "/r"]
        found = CliRunner().invoke(program, [*command, "--home", str(store.home)])
        printed = json.loads(found.stdout)
        assert printed.pop("out") == str(out)
        assert printed == json.loads((out / "export.json").read_text())
        assert found.stdout.count("\n") == 1
