"""Artifacts in a bucket: two homes that share it, and everything that can go wrong on the way."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from support import document_table, published_corpus, run_workers_here

from mixwright.config import Settings
from mixwright.corpora import Corpus
from mixwright.errors import ConfigError, DataError, MissingExtraError, NotFoundError, UnavailableError
from mixwright.jobs.run import REQUEST_ADAPTER, run_request
from mixwright.jobs.worker import environment_of
from mixwright.progress import NoProgress
from mixwright.remote.fetched import file_key
from mixwright.remote.listing import manifest_key
from mixwright.remote.object_storage import ObjectStorage
from mixwright.remote.store import GARBAGE_AGE, RemoteStore, store_of
from mixwright.schemas.manifests import CorpusManifest, Manifest
from mixwright.schemas.references import Reference
from mixwright.service.app import create_app
from mixwright.store import Store

if TYPE_CHECKING:
    from s3_server import S3Server

SECRET = "a-secret-that-nobody-may-see"


@pytest.fixture
def server(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    s3.requests()
    yield s3
    s3.forget_orders()


@pytest.fixture
def url(server: S3Server) -> str:
    return server.new_url()


@pytest.fixture
def here(url: str, tmp_path: Path) -> RemoteStore:
    return RemoteStore(tmp_path / "here", url)


@pytest.fixture
def there(url: str, tmp_path: Path) -> RemoteStore:
    """The same bucket from another machine."""
    return RemoteStore(tmp_path / "there", url)


@pytest.fixture
def folder_url(tmp_path: Path) -> str:
    (tmp_path / "shared").mkdir()
    return f"file://{tmp_path}/shared"


def publish(store: Store, name: str, contents: dict[str, bytes], identity: str = "a") -> CorpusManifest:
    """An artifact of these files."""
    with store.stage("corpus", Reference(name), identity * 64) as staging:
        for path, content in contents.items():
            (staging.path / path).parent.mkdir(parents=True, exist_ok=True)
            (staging.path / path).write_bytes(content)
        (staging.path / "scratch").mkdir()
        (staging.path / "scratch" / "notes").write_bytes(b"not published")
        draft = CorpusManifest(
            name=name,
            version=1,
            fingerprint=identity * 64,
            files=[staging.entry(path) for path in contents],
            created_at=datetime.now(UTC),
            n_documents=0,
            n_duplicates=0,
            n_quarantined=0,
            n_tokens=0,
            n_text_bytes=0,
            tokenizer="bytes",
        )
        return store.publish(staging, draft, ["scratch"])


def contents(store: Store, manifest: Manifest) -> dict[str, bytes]:
    folder = store.directory(manifest)
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "manifest.json"}


def kinds(requests: list[str]) -> list[str]:
    """GET, PUT … of files and of manifests; other requests are left out."""
    return [
        f"{each.split()[0]} {'file' if '/files/' in each else 'manifest'}"
        for each in requests
        if "/files/" in each or each.endswith("/manifest.json")
    ]


FILES = {"shards/0.bin": b"first" * 1000, "shards/1.bin": b"second", "empty": b"", "copy": b"second"}


# Publishing and reading


def test_what_one_home_publishes_another_reads(here: RemoteStore, there: RemoteStore, server: S3Server) -> None:
    manifest = publish(here, "wiki", FILES)
    assert kinds(server.requests()).count("PUT file") == 3  # two of the four have the same bytes
    assert there.manifest("wiki") == manifest
    assert contents(there, manifest) == contents(here, manifest) == FILES
    # Only the reader fetched, each content once.
    assert kinds(server.requests()) == ["GET manifest", *["GET file"] * 2]
    assert contents(there, there.manifest("wiki@1")) == FILES
    assert kinds(server.requests()) == []


def test_a_new_process_fetches_nothing_twice(here: RemoteStore, there: RemoteStore, server: S3Server) -> None:
    manifest = publish(here, "wiki", FILES)
    contents(there, there.manifest("wiki"))
    server.requests()
    again = RemoteStore(there.home, there.url)
    assert contents(again, again.manifest("wiki")) == FILES
    assert kinds(server.requests()) == []
    shutil.rmtree(there.home / "cache")
    assert contents(RemoteStore(there.home, there.url), manifest) == FILES


def test_large_files_go_in_parts_and_arrive(here: RemoteStore, there: RemoteStore, server: S3Server) -> None:
    large = np.random.default_rng(0).bytes((20 << 20) + 7)
    manifest = publish(here, "wiki", {"large": large})
    assert len([each for each in server.requests() if each.startswith("PUT") and "/files/" in each]) == 3
    assert contents(there, manifest) == {"large": large}
    assert kinds(server.requests()).count("GET file") == 3
    with there.open(manifest, "large") as file:
        file.seek(-4, os.SEEK_END)
        assert file.read() == large[-4:]


def test_a_part_of_a_file_is_read_without_the_rest(
    here: RemoteStore, there: RemoteStore, server: S3Server
) -> None:
    import pyarrow.parquet as pq

    table = document_table([f"text {number} " * 2000 for number in range(200)], domains=["a.org", "b.org"] * 100)
    manifest = published_corpus(here, "wiki", table)
    server.requests()
    with there.open(manifest, manifest.files[0].path) as file:
        column = pq.read_table(file, columns=["domain"])["domain"]
    assert column.to_pylist() == ["a.org", "b.org"] * 100
    assert not (there.home / "cache" / "artifacts").exists()
    with pytest.raises(FileNotFoundError), there.open(_without_file(manifest), manifest.files[0].path) as file:
        file.read()


def test_versions_share_files_in_the_bucket_and_on_disk(
    here: RemoteStore, there: RemoteStore, server: S3Server
) -> None:
    first = publish(here, "wiki", FILES, "a")
    contents(there, first)
    server.requests()
    second = publish(there, "wiki", FILES | {"more": b"more"}, "b")
    assert second.ref == "wiki@2"
    assert kinds(server.requests()).count("PUT file") == 1
    assert contents(here, second) == FILES | {"more": b"more"}
    assert kinds(server.requests()).count("GET file") == 1
    folders = [here.directory(each) for each in (first, second)]
    assert (folders[0] / "shards/0.bin").samefile(folders[1] / "shards/0.bin")


def test_an_artifact_is_seen_at_once_by_its_version(here: RemoteStore, there: RemoteStore) -> None:
    publish(here, "wiki", FILES, "a")
    assert there.versions("corpus", "wiki") == [1]
    publish(here, "wiki", FILES, "b")
    publish(here, "news", FILES, "c")
    assert there.manifest("wiki@2").fingerprint == "b" * 64
    assert there.manifest("news", "corpus").fingerprint == "c" * 64
    time.sleep(1.1)
    assert [each.ref for each in there.manifests()] == ["news@1", "wiki@1", "wiki@2"]


def test_a_listing_is_used_for_many_questions(here: RemoteStore, server: S3Server) -> None:
    publish(here, "wiki", FILES)
    here.manifest("wiki")
    server.requests()
    for _ in range(50):
        here.manifest("wiki", "corpus")
        list(here.references())
    assert len(server.requests()) <= 4


def test_names_that_are_nowhere_are_not_remembered(here: RemoteStore) -> None:
    publish(here, "wiki", FILES)
    for number in range(5):
        with pytest.raises(NotFoundError, match="there are wiki"):
            here.manifest(f"none-{number}", "corpus")
    assert not any(name.startswith("none") for _, name in here._listing._until)


def test_other_objects_under_the_prefix_are_left_alone(here: RemoteStore) -> None:
    publish(here, "wiki", FILES)
    storage = ObjectStorage(here.url)
    for key in ("artifacts/corpora/wiki/x/manifest.json", "artifacts/other/a/1/manifest.json", "artifacts/README"):
        storage.write(key, b"{}")
    seen = RemoteStore(here.home, here.url)
    assert [str(each) for each in seen.references()] == ["wiki@1"]


# Several at once


@pytest.mark.parametrize("same", [False, True])
def test_homes_that_publish_at_once_take_a_version_each(url: str, tmp_path: Path, same: bool) -> None:
    n = 6
    stores = [RemoteStore(tmp_path / str(number), url) for number in range(n)]
    together = threading.Barrier(n)

    def work(number: int) -> CorpusManifest:
        together.wait(timeout=30)
        files = {"own": b"" if same else str(number).encode(), "shared": b"shared"}
        return publish(stores[number], "wiki", files, "a" if same else "abcdef"[number])

    with ThreadPoolExecutor(n) as pool:
        made = list(pool.map(work, range(n)))
    reader = RemoteStore(tmp_path / "reader", url)
    found = {each.version: each for each in reader.manifests()}
    if same:
        # Whoever comes second finds that it has been done.
        assert all(each == found[1] for each in made)
        assert found.keys() == {1}
        return
    assert sorted(each.version for each in made) == list(range(1, n + 1))
    for number, each in enumerate(made):
        assert found[each.version] == each
        assert contents(reader, each)["own"] == str(number).encode()


def test_threads_and_processes_fetch_an_artifact_once(
    here: RemoteStore, there: RemoteStore, server: S3Server
) -> None:
    manifest = publish(here, "wiki", {str(number): bytes([number]) for number in range(20)})
    server.requests()
    others = [RemoteStore(there.home, there.url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda store: contents(store, manifest), others))
    assert all(each == {str(number): bytes([number]) for number in range(20)} for each in found)
    assert kinds(server.requests()).count("GET file") == 20


# Killed at every step

_KILLED = """
import json, os, signal, sys, threading
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import test_remote_store as tests
from mixwright.remote import fetched, object_storage
from mixwright.remote.store import RemoteStore


def die_before(last):
    calls, lock = 0, threading.Lock()

    def counted(method):
        def call(*arguments, **more):
            nonlocal calls
            with lock:
                calls += 1
                if calls == last:
                    os.kill(os.getpid(), signal.SIGKILL)
            return method(*arguments, **more)
        return call

    for name in ("list", "head", "read", "read_range", "write", "create"):
        setattr(object_storage.ObjectStorage, name, counted(getattr(object_storage.ObjectStorage, name)))
    fetched.FetchedArtifacts.adopt = counted(fetched.FetchedArtifacts.adopt)


for line in sys.stdin:
    home, url, what, last = json.loads(line)
    child = os.fork()
    if not child:
        die_before(last)
        store = RemoteStore(Path(home), url)
        if what == "publish":
            tests.publish(store, "wiki", tests.FILES)
        else:
            store.directory(store.manifest("wiki"))
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Victims:
    """Processes that die of SIGKILL just before a given step: a request, or what follows the last."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, home: Path, url: str, what: str, last: int) -> bool:
        """True if it was killed, False if it had done its work before."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps([str(home), url, what, last]), file=self._server.stdin, flush=True)
        status = int(self._server.stdout.readline())
        assert status in (0, 9)
        return status == 9

    def close(self) -> None:
        self._server.communicate()


@pytest.fixture(scope="module")
def victims(s3: S3Server) -> Iterator[Victims]:
    before = dict(os.environ)
    os.environ.update(s3.environment)
    victims = Victims()
    os.environ.clear()
    os.environ.update(before)
    yield victims
    victims.close()


def test_a_publisher_killed_at_any_step_publishes_all_or_nothing(victims: Victims, tmp_path: Path) -> None:
    outcomes = []
    for last in range(1, 100):
        home = tmp_path / str(last)
        (home / "shared").mkdir(parents=True)
        url = f"file://{home}/shared"
        killed = victims.run(home, url, "publish", last)
        reader = RemoteStore(tmp_path / f"reader-{last}", url)
        visible = [each.ref for each in reader.manifests()]
        outcomes.append((killed, visible))
        for manifest in reader.manifests():
            assert contents(reader, manifest) == FILES
        store = RemoteStore(home, url)
        manifest = publish(store, "wiki", FILES)
        assert manifest.ref == "wiki@1"
        assert contents(store, manifest) == contents(reader, manifest) == FILES
        store.collect_garbage()
        assert [path for path in (home / "staging").iterdir() if path.is_dir()] == []
        if not killed:
            break
    assert outcomes[0] == (True, [])
    assert (True, ["wiki@1"]) in outcomes
    assert outcomes[-1] == (False, ["wiki@1"])
    assert len(outcomes) > 10


def test_a_reader_killed_at_any_step_goes_on_where_it_was(
    victims: Victims, here: RemoteStore, server: S3Server, tmp_path: Path
) -> None:
    manifest = publish(here, "wiki", FILES)
    n_fetched = []
    for last in range(1, 100):
        home = tmp_path / f"reader-{last}"
        server.requests()
        killed = victims.run(home, here.url, "fetch", last)
        reader = RemoteStore(home, here.url)
        assert contents(reader, manifest) == FILES
        reader.collect_garbage()
        assert not list(home.glob("cache/artifacts/*.partial"))
        # Two files with bytes in them; what a thread was fetching as it died is fetched again.
        n_fetched.append(kinds(server.requests()).count("GET file"))
        if not killed:
            break
    assert n_fetched[-1] == 2
    assert len(n_fetched) > 3
    assert max(n_fetched) <= 4


# Failures of the storage


def test_an_answer_that_is_lost_does_not_cost_a_version(here: RemoteStore, server: S3Server) -> None:
    for part in ("/files/", "manifest.json"):
        server.order(do="lose", method="PUT", path=part)
    assert publish(here, "wiki", FILES).ref == "wiki@1"
    assert RemoteStore(here.home, here.url).versions("corpus", "wiki") == [1]


def test_failures_for_a_moment_are_not_noticed(here: RemoteStore, there: RemoteStore, server: S3Server) -> None:
    server.order(do="fail", times=2, method="PUT")
    manifest = publish(here, "wiki", FILES)
    server.order(do="fail", times=2, method="GET")
    assert contents(there, there.manifest("wiki")) == FILES
    assert manifest.ref == "wiki@1"


def test_a_storage_that_fails_on_is_one_line_and_publishes_nothing(
    here: RemoteStore, there: RemoteStore, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.order(do="fail", times=1000, method="PUT", path="/files/")
    monkeypatch.setattr("mixwright.remote.urls._MAX_RETRIES", 1)
    with pytest.raises(UnavailableError, match=r"503 .*SlowDown") as raised:
        publish(RemoteStore(here.home, here.url), "wiki", FILES)
    assert "\n" not in str(raised.value)
    server.forget_orders()
    assert list(there.manifests()) == []
    assert publish(here, "wiki", FILES).ref == "wiki@1"


def test_a_damaged_answer_is_fetched_again_and_a_damaged_file_is_named(
    here: RemoteStore, there: RemoteStore, server: S3Server
) -> None:
    manifest = publish(here, "wiki", FILES)
    server.order(do="damage", method="GET", path="/files/")
    assert contents(there, manifest) == FILES
    shutil.rmtree(there.home / "cache")
    entry = next(each for each in manifest.files if each.path == "shards/1.bin")
    other = RemoteStore(there.home.with_name("other"), there.url)
    for broken in (b"sEcond", b"sec", b"second and more"):
        ObjectStorage(here.url).write(file_key(entry), broken)
        if len(broken) <= entry.n_bytes:
            with pytest.raises(DataError, match=rf"1.bin of corpus wiki@1 in s3://.* is damaged .*{entry.sha256}"):
                other.directory(manifest)
            assert not [path for path in other.home.glob("cache/artifacts/corpus-*") if path.suffix != ".partial"]
    ObjectStorage(here.url).delete([file_key(entry)])
    with pytest.raises(DataError, match=rf"is missing in .*{entry.sha256}"):
        other.directory(manifest)
    ObjectStorage(here.url).write(file_key(entry), b"second")
    assert contents(other, manifest) == FILES


def test_a_storage_without_conditional_writes_is_refused(here: RemoteStore, server: S3Server) -> None:
    server.order(do="ignore_conditions", times=1000)
    with pytest.raises(ConfigError, match="ignores If-None-Match"):
        publish(here, "wiki", FILES)


def test_a_store_of_another_form_is_refused(here: RemoteStore) -> None:
    ObjectStorage(here.url).write("format.json", b'{"format": "mixwright store", "version": 2}\n')
    with pytest.raises(ConfigError, match="store of another form"):
        publish(here, "wiki", FILES)


def test_threads_that_wait_for_a_lost_storage_wait_once(
    here: RemoteStore, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fail(self: ObjectStorage, prefix: str) -> Any:
        asked.append(prefix)
        time.sleep(0.3)
        raise UnavailableError("the storage has gone: bring it back")

    monkeypatch.setattr(ObjectStorage, "list", fail)

    def ask() -> None:
        with pytest.raises(UnavailableError, match="bring it back"):
            here.versions("corpus", "wiki")

    with ThreadPoolExecutor(20) as pool:
        for done in [pool.submit(ask) for _ in range(20)]:
            done.result()
    assert len(asked) == 1


def test_what_is_known_is_served_while_the_storage_is_away(
    here: RemoteStore, there: RemoteStore, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(here, "news", FILES, "b")
    manifest = publish(here, "wiki", FILES)
    monkeypatch.setattr("mixwright.remote.urls._MAX_RETRIES", 0)
    reader = RemoteStore(there.home, there.url)
    reader.directory(reader.manifest("wiki", "corpus"))
    server.order(do="fail", times=1000)
    time.sleep(1.1)
    assert reader.manifest("wiki", "corpus") == manifest
    assert contents(reader, reader.manifest("wiki@1", "corpus")) == FILES
    for ask in (lambda: reader.manifest("news", "corpus"), lambda: list(reader.references()), reader.check):
        with pytest.raises(UnavailableError):
            ask()


@pytest.mark.parametrize("path", ["../../outside", "/etc/outside", "a/../../outside"])
def test_a_manifest_cannot_name_a_file_outside(there: RemoteStore, path: str, here: RemoteStore) -> None:
    manifest = publish(here, "wiki", FILES)
    entry = manifest.files[0].model_copy(update={"path": path})
    with pytest.raises(DataError, match="cannot be one of its files"):
        there.directory(manifest.model_copy(update={"files": [entry]}))
    assert not list(there.home.parent.rglob("outside"))


def test_a_full_disk_is_one_line(here: RemoteStore, there: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = publish(here, "wiki", FILES)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match=r"No space left on device.*MIXWRIGHT_CACHE_BYTES"):
        there.directory(manifest)


def test_a_manifest_kept_here_without_its_end_is_read_again(here: RemoteStore, there: RemoteStore) -> None:
    manifest = publish(here, "wiki", FILES)
    there.manifest("wiki")
    (kept,) = (there.home / "cache" / "manifests").iterdir()
    for content in (b"", kept.read_bytes()[:100]):
        kept.write_bytes(content)
        assert there.manifest("wiki") == manifest


# Garbage and the cache


def age(url: str, key: str, by: timedelta) -> None:
    path = Path(url.removeprefix("file://"), key)
    then = (datetime.now(UTC) - by).timestamp()
    os.utime(path, (then, then))


def modified(url: str, key: str) -> float:
    return Path(url.removeprefix("file://"), key).stat().st_mtime


def test_only_old_files_of_no_artifact_are_garbage(tmp_path: Path, folder_url: str) -> None:
    store = RemoteStore(tmp_path / "home", folder_url)
    manifest = publish(store, "wiki", FILES)
    storage = ObjectStorage(folder_url)
    for key in ("files/00/old", "files/00/young"):
        storage.write(key, b"left by a killed publisher")
    for entry in manifest.files:
        age(folder_url, file_key(entry), 2 * GARBAGE_AGE)
    age(folder_url, "files/00/old", GARBAGE_AGE + timedelta(minutes=1))
    age(folder_url, "files/00/young", GARBAGE_AGE - timedelta(minutes=1))
    assert store.collect_garbage() == 1
    left = {each.key for each in storage.list("files")}
    assert left == {file_key(entry) for entry in manifest.files} | {"files/00/young"}
    # Once the artifact is removed its files are garbage, too.
    storage.delete([manifest_key("corpus", "wiki", 1)])
    assert RemoteStore(tmp_path / "home", folder_url).collect_garbage() == 3
    assert [each.key for each in storage.list("files")] == ["files/00/young"]


def test_nothing_is_garbage_while_a_manifest_cannot_be_read(tmp_path: Path, folder_url: str) -> None:
    store = RemoteStore(tmp_path / "home", folder_url)
    manifest = publish(store, "wiki", FILES)
    for entry in manifest.files:
        age(folder_url, file_key(entry), 2 * GARBAGE_AGE)
    ObjectStorage(folder_url).write(manifest_key("corpus", "wiki", 1), b"{}\n")
    with pytest.raises(DataError, match="manifest of corpus wiki@1"):
        RemoteStore(tmp_path / "home", folder_url).collect_garbage()
    assert len(ObjectStorage(folder_url).list("files")) == 3


def test_an_old_file_that_nothing_names_is_sent_again(tmp_path: Path, folder_url: str) -> None:
    store = RemoteStore(tmp_path / "home", folder_url)
    first = publish(store, "wiki", {"a": b"named"}, "a")
    named = file_key(first.files[0])
    storage = ObjectStorage(folder_url)
    loose = publish(store, "gone", {"a": b"loose"}, "b")
    storage.delete([manifest_key("corpus", "gone", 1)])
    for key in (named, file_key(loose.files[0])):
        age(folder_url, key, GARBAGE_AGE - timedelta(hours=1))
    old = modified(folder_url, named)
    publish(RemoteStore(tmp_path / "home", folder_url), "wiki", {"a": b"named", "b": b"loose"}, "c")
    assert modified(folder_url, named) == old
    assert modified(folder_url, file_key(loose.files[0])) > old


def test_a_file_collected_while_it_was_found_is_sent_once_more(
    tmp_path: Path, folder_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RemoteStore(tmp_path / "home", folder_url)
    publish(store, "wiki", FILES, "a")
    create = ObjectStorage.create

    def collect_meanwhile(self: ObjectStorage, key: str, content: bytes) -> bool:
        if key.endswith("manifest.json"):
            self.delete([each.key for each in self.list("files")])
        return create(self, key, content)

    monkeypatch.setattr(ObjectStorage, "create", collect_meanwhile)
    manifest = publish(store, "wiki", FILES, "b")
    assert contents(RemoteStore(tmp_path / "other", folder_url), manifest) == FILES


_FETCH = """
import sys
from pathlib import Path
from mixwright.remote.store import RemoteStore
store = RemoteStore(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
for ref in sys.argv[4:]:
    store.directory(store.manifest(ref))
print(store.collect_garbage(), flush=True)
sys.stdin.read()
"""


def test_what_was_used_longest_ago_makes_room_but_nothing_that_is_open(tmp_path: Path, folder_url: str) -> None:
    home, big = tmp_path / "home", 10_000
    source = RemoteStore(tmp_path / "source", folder_url)
    made = {name: publish(source, name, {"f": name.encode() * big, "g": b"shared"}) for name in "abcde"}
    reader = RemoteStore(home, folder_url, cache_bytes=4 * big - 1)
    held = reader.directory(made["a"])
    command = [sys.executable, "-c", _FETCH, str(home), folder_url, str(4 * big - 1)]
    # a, the oldest, is held by this process; b and c by one that ends, and d pushes b out.
    subprocess.run([*command, "b", "c"], input="", text=True, check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen([*command, "d"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        there = {path.name.split("@")[0] for path in (home / "cache" / "artifacts").glob("corpus-*")}
        assert there == {"corpus-a", "corpus-c", "corpus-d"}
        # c goes for e; a and d are open, though d is another process's.
        reader.directory(made["e"])
        there = {path.name.split("@")[0] for path in (home / "cache" / "artifacts").glob("corpus-*")}
        assert there == {"corpus-a", "corpus-d", "corpus-e"}
        files = [
            path.stat() for path in (home / "cache").rglob("*") if path.is_file() and "manifests" not in str(path)
        ]
        assert sum({each.st_ino: each.st_size for each in files}.values()) < 4 * big
        other.communicate("")
    assert (held / "f").read_bytes() == b"a" * big
    assert contents(reader, made["b"])["g"] == b"shared"


def test_a_file_that_goes_stays_readable_where_it_is_mapped(tmp_path: Path, folder_url: str) -> None:
    store = RemoteStore(tmp_path / "home", folder_url)
    manifest = publish(store, "wiki", {"f": b"mapped" * 5000})
    mapped = np.memmap(store.directory(manifest) / "f", mode="r")
    command = [sys.executable, "-c", _FETCH, str(store.home), folder_url, "0"]
    subprocess.run(command, input="", text=True, check=True, stdout=subprocess.DEVNULL)
    assert bytes(mapped) == b"mapped" * 5000
    assert store.directory(manifest).is_dir()


# Jobs and the service of several homes


def work(store: Store, **request: Any) -> Manifest:
    return run_request(store, REQUEST_ADAPTER.validate_python(request), NoProgress())


def test_jobs_of_two_homes_make_what_those_of_one_do(
    here: RemoteStore, there: RemoteStore, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_workers_here(monkeypatch.setattr)
    path = tmp_path / "pages.jsonl"
    lines = [{"text": f"page {number} of {number % 7}", "host": f"{number % 3}.org"} for number in range(90)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    alone = Store(tmp_path / "alone")
    made: list[list[Manifest]] = []
    for first, second in ((here, there), (alone, alone)):
        made.append(
            [
                work(first, kind="ingest", name="wiki", paths=[str(path)], domain_field="host", tokenizer="bytes"),
                work(second, kind="embed", corpus="wiki", encoder="hashing:16"),
                work(first, kind="index", corpus="wiki", encoder="hashing:16"),
                work(
                    second,
                    kind="select",
                    name="blend",
                    sources=["wiki"],
                    selector={"kind": "random"},
                    budget={"documents": 40},
                ),
                work(first, kind="datastore", corpora=["wiki"], name="library", encoder="hashing:16"),
            ]
        )
    assert [each.fingerprint for each in made[0]] == [each.fingerprint for each in made[1]]
    server.requests()
    gone = Corpus.open(there, "wiki").rows(0, 30)["id"].to_pylist()
    work(there, kind="datastore-delete", datastore="library", documents=gone)
    assert kinds(server.requests()).count("PUT file") <= 2
    assert [str(each) for each in here.references("datastore")] == ["library@1", "library@2"]
    rows = []
    for settings in (Settings(home=here.home, store_url=here.url), Settings(home=alone.home)):
        with TestClient(create_app(settings, run_worker=False)) as client:
            assert client.get("/readyz").status_code == 200
            assert client.get("/v1/mixtures?domain=1.org").json()["items"][0]["ref"] == "blend@1"
            rows.append(client.get("/v1/mixtures/blend/rows?count=40").text)
    assert rows[0] == rows[1]
    assert len(rows[0].splitlines()) == 40


def test_a_service_without_its_bucket_says_so(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path / "home", store_url=url)
    monkeypatch.setattr("mixwright.remote.urls._MAX_RETRIES", 0)
    with TestClient(create_app(settings, run_worker=False), raise_server_exceptions=False) as client:
        assert client.get("/v1/corpora").json()["items"] == []
        monkeypatch.setattr(ObjectStorage, "list", _gone)
        time.sleep(1.1)
        answers = [client.get(path) for path in ("/v1/corpora", "/v1/corpora/wiki", "/readyz")]
    assert [each.status_code for each in answers] == [503, 503, 503]
    assert answers[2].json()["store"].startswith("does not answer: check MIXWRIGHT_STORE_URL")


def _gone(self: ObjectStorage, prefix: str) -> Any:
    raise UnavailableError("the storage has gone: bring it back")


def test_the_program_in_the_docs_moves_a_home_into_a_bucket(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "storage.md").read_text("utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    old = Store(Path("old-home"))
    manifests = [publish(old, "wiki", FILES, "a"), publish(old, "wiki", {"other": b"1"}, "b")]
    exec(program.replace("s3://training-data/mixwright", url), {})
    moved = RemoteStore(tmp_path / "elsewhere", url)
    assert list(moved.manifests()) == manifests
    assert contents(moved, manifests[0]) == contents(old, manifests[0]) == FILES


# URLs, credentials, settings


@pytest.mark.parametrize(
    "wrong",
    [
        "s3://AKIAKEY:hush@bucket/x",
        "s3://hush@bucket",
        "s3://bucket/x?secret=hush",
        "s3://bucket/x#hush",
        "s3://",
        "s3://Bad_Bucket/x",
        "s3://bucket/../x",
        "gs://bucket",
        "bucket",
        "file://host/folder",
        "file:///",
        "file:///no/such/folder",
    ],
)
def test_a_wrong_url_is_one_line_without_secrets(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ConfigError, match="MIXWRIGHT_STORE_URL") as raised:
        store_of(Settings(home=tmp_path, store_url=wrong))
    assert "hush" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_credentials_it_is_said_what_to_set(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
        RemoteStore(tmp_path, url)


def test_a_profile_is_enough(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(s3.environment):
        monkeypatch.delenv(name, raising=False)
    credentials, config = tmp_path / "credentials", tmp_path / "config"
    credentials.write_text("[lab]\naws_access_key_id = key\naws_secret_access_key = hush\n")
    config.write_text(f"[profile lab]\nregion = eu-west-1\nendpoint_url = {s3.endpoint}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    store = RemoteStore(tmp_path / "home", s3.new_url())
    assert publish(store, "wiki", FILES).ref == "wiki@1"


def test_no_bucket_and_no_server_are_one_line_each(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnavailableError, match="no bucket no-such-bucket: create it"):
        RemoteStore(tmp_path, "s3://no-such-bucket/x").check()
    with pytest.raises(UnavailableError, match="no bucket no-such-bucket: create it"):
        publish(RemoteStore(tmp_path, "s3://no-such-bucket/x"), "wiki", FILES)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hush@127.0.0.1:1")
    monkeypatch.setattr("mixwright.remote.urls._MAX_RETRIES", 1)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1 does not answer: check AWS_ENDPOINT_URL") as raised:
        RemoteStore(tmp_path, "s3://bucket/x").check()
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize("module", ["obstore.store", "botocore.session"])
def test_without_the_libraries_the_extra_is_named(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"mixwright\[s3\]"):
        RemoteStore(tmp_path, url)


def test_a_store_goes_to_another_process_without_its_credentials(here: RemoteStore) -> None:
    manifest = publish(here, "wiki", FILES)
    sent = pickle.dumps(here)
    assert SECRET.encode() not in sent
    copy = pickle.loads(sent)
    assert isinstance(copy, RemoteStore)
    assert (copy.home, copy.url) == (here.home.resolve(), here.url)
    assert copy.manifest("wiki") == manifest


def test_credentials_are_in_no_file_and_no_text(here: RemoteStore, there: RemoteStore, server: S3Server) -> None:
    manifest = publish(here, "wiki", FILES)
    contents(there, manifest)
    for path in here.home.parent.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes()
    assert SECRET not in repr(here._storage)


def test_the_settings_travel_to_jobs(url: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, store_url=url, cache_bytes=1 << 30)
    environment = environment_of(settings)
    assert environment["MIXWRIGHT_STORE_URL"] == url
    assert environment["MIXWRIGHT_CACHE_BYTES"] == str(1 << 30)
    assert isinstance(store_of(settings), RemoteStore)
    assert type(store_of(Settings(home=tmp_path, store_url=None))) is Store


def _without_file(manifest: CorpusManifest) -> CorpusManifest:
    """The same artifact, but the bucket has no such file."""
    entry = manifest.files[0].model_copy(update={"sha256": "0" * 64})
    return manifest.model_copy(update={"files": [entry]})
