"""The store: publishing, reuse, versions, locks and what a killed process leaves behind."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mixwright.errors import ConflictError, DataError, NotFoundError
from mixwright.remote.listing import manifest_key
from mixwright.remote.object_storage import ObjectStorage
from mixwright.remote.store import RemoteStore
from mixwright.schemas.manifests import CorpusManifest
from mixwright.schemas.references import Kind, Reference
from mixwright.store import Staging, Store

if TYPE_CHECKING:
    from s3_server import S3Server

FINGERPRINTS = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(3)]

# Stages an artifact, writes half a file and waits to be killed.
_STAGE_AND_WAIT = """
import sys, time
from pathlib import Path
from mixwright.schemas.references import Reference
from mixwright.store import Store
with Store(Path(sys.argv[1])).stage("corpus", Reference("wiki"), sys.argv[2]) as staging:
    (staging.path / "part.bin").write_bytes(b"half")
    print("staged", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["home", "folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store: in a home folder, in a folder that machines share, and in a bucket."""
    if request.param == "home":
        return Store(tmp_path / "home")
    if request.param == "folder":
        (tmp_path / "shared").mkdir()
        return RemoteStore(tmp_path / "home", f"file://{tmp_path}/shared")
    server: S3Server = request.getfixturevalue("s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return RemoteStore(tmp_path / "home", server.new_url())


def overwrite_manifest(store: Store, manifest: CorpusManifest, content: bytes) -> Store:
    """Returns the store as another process sees it, which has not listed it a moment ago."""
    if not isinstance(store, RemoteStore):
        (store.directory(manifest) / "manifest.json").write_bytes(content)
        return store
    ObjectStorage(store.url).write(manifest_key(manifest.kind, manifest.name, manifest.version), content)
    return RemoteStore(store.home, store.url)


@contextmanager
def other_process_at_work(store: Store, identity: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _STAGE_AND_WAIT, str(store.home), identity],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "staged\n"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def draft(name: str, identity: str, staging: Staging) -> CorpusManifest:
    return CorpusManifest(
        name=name,
        version=1,
        fingerprint=identity,
        files=[staging.entry("part.bin", 3)],
        created_at=datetime.now(UTC),
        n_documents=3,
        n_duplicates=0,
        n_quarantined=0,
        n_tokens=3,
        n_text_bytes=3,
        tokenizer="bytes",
    )


def publish(store: Store, name: str, identity: str, version: int | None = None) -> CorpusManifest:
    reference = Reference(name, version)
    with store.stage("corpus", reference, identity) as staging:
        (staging.path / "part.bin").write_bytes(b"abc")
        return store.publish(staging, draft(name, identity, staging))


def staged_folders(store: Store) -> list[Path]:
    return [path for path in (store.home / "staging").iterdir() if path.is_dir()]


def test_a_published_artifact_is_read_back_with_its_files(store: Store) -> None:
    manifest = publish(store, "wiki", FINGERPRINTS[0])
    assert manifest.ref == "wiki@1"
    assert store.manifest("wiki") == store.manifest("corpus:wiki@1") == manifest
    assert (store.directory(manifest) / "part.bin").read_bytes() == b"abc"
    entry = manifest.files[0]
    assert (entry.n_bytes, entry.sha256) == (3, hashlib.sha256(b"abc").hexdigest())
    assert staged_folders(store) == []


def test_versions_count_up_and_a_name_means_the_newest(store: Store) -> None:
    for identity in FINGERPRINTS:
        publish(store, "wiki", identity)
    assert store.versions("corpus", "wiki") == [1, 2, 3]
    assert store.manifest("wiki").fingerprint == FINGERPRINTS[2]
    assert store.manifest("wiki@2").fingerprint == FINGERPRINTS[1]
    assert [each.ref for each in store.manifests()] == ["wiki@1", "wiki@2", "wiki@3"]


def test_version_ten_comes_after_version_nine(store: Store) -> None:
    for version in (9, 10):
        publish(store, "wiki", FINGERPRINTS[version - 9], version)
    assert store.versions("corpus", "wiki") == [9, 10]
    assert publish(store, "wiki", FINGERPRINTS[2]).ref == "wiki@11"


def test_existing_finds_the_same_in_any_version_and_refuses_another_in_that_version(store: Store) -> None:
    for identity in FINGERPRINTS[:2]:
        publish(store, "wiki", identity)

    def existing(reference: Reference, identity: str, kind: Kind = "corpus") -> str | None:
        found = store.existing(kind, reference, identity)
        return found.ref if found else None

    assert existing(Reference("wiki"), FINGERPRINTS[0]) == "wiki@1"
    assert existing(Reference("wiki", 2), FINGERPRINTS[1]) == "wiki@2"
    assert existing(Reference("wiki"), FINGERPRINTS[2]) is None
    assert existing(Reference("wiki", 3), FINGERPRINTS[0]) is None
    assert existing(Reference("wiki"), FINGERPRINTS[0], "embeddings") is None
    with pytest.raises(ConflictError, match="wiki@2 exists with other inputs"):
        existing(Reference("wiki", 2), FINGERPRINTS[0])


def test_a_version_taken_meanwhile_is_a_conflict_and_the_first_stays(store: Store) -> None:
    publish(store, "wiki", FINGERPRINTS[0], 1)
    with pytest.raises(ConflictError, match="published by another process"):
        publish(store, "wiki", FINGERPRINTS[1], 1)
    assert store.manifest("wiki@1").fingerprint == FINGERPRINTS[0]
    assert staged_folders(store) == []


def test_what_is_not_there_is_named_with_what_is(store: Store) -> None:
    publish(store, "wiki", FINGERPRINTS[0])
    with pytest.raises(NotFoundError, match="no artifact news: there are wiki"):
        store.manifest("news")
    with pytest.raises(NotFoundError, match="wiki@2"):
        store.manifest("wiki@2")
    with pytest.raises(NotFoundError, match="there is none"):
        store.manifest("wiki", "mixture")


def test_a_damaged_manifest_is_a_data_error(store: Store) -> None:
    manifest = publish(store, "wiki", FINGERPRINTS[0])
    seen = overwrite_manifest(store, manifest, b'{"kind": "corpus"')
    with pytest.raises(DataError, match="manifest of corpus wiki@1"):
        seen.manifest("wiki")


def test_a_failed_stage_publishes_nothing_and_leaves_nothing(store: Store) -> None:
    def fail() -> None:
        with store.stage("corpus", Reference("wiki"), FINGERPRINTS[0]) as staging:
            (staging.path / "part.bin").write_bytes(b"half")
            raise DataError("stop")

    with pytest.raises(DataError, match="stop"):
        fail()
    assert list(store.manifests()) == []
    assert staged_folders(store) == []


def test_a_resumed_stage_keeps_what_a_failed_one_wrote(store: Store) -> None:
    def fail() -> None:
        with store.stage("corpus", Reference("wiki"), FINGERPRINTS[0], resume=True) as staging:
            (staging.path / "part.bin").write_bytes(b"abc")
            raise DataError("stop")

    with pytest.raises(DataError, match="stop"):
        fail()
    with store.stage("corpus", Reference("wiki"), FINGERPRINTS[0], resume=True) as staging:
        assert (staging.path / "part.bin").read_bytes() == b"abc"
        store.publish(staging, draft("wiki", FINGERPRINTS[0], staging))
    assert store.manifest("wiki").ref == "wiki@1"


def test_two_processes_cannot_build_the_same_and_gc_leaves_work_alone(store: Store) -> None:
    with other_process_at_work(store, FINGERPRINTS[0]):
        with (
            pytest.raises(ConflictError, match="another process is working on corpus wiki"),
            store.stage("corpus", Reference("wiki"), FINGERPRINTS[0]),
        ):
            pass
        assert store.collect_garbage() == 0
        assert len(staged_folders(store)) == 1
        # Another artifact of the same name is none of the other process's business.
        assert publish(store, "wiki", FINGERPRINTS[1]).ref == "wiki@1"


def test_a_process_killed_while_staging_leaves_nothing_published(store: Store) -> None:
    with other_process_at_work(store, FINGERPRINTS[0]) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
    assert process.returncode == -signal.SIGKILL
    assert list(store.manifests()) == []
    with pytest.raises(NotFoundError):
        store.manifest("wiki")
    assert len(staged_folders(store)) == 1
    assert store.collect_garbage() == 1
    assert staged_folders(store) == []


def test_after_a_kill_the_same_work_starts_afresh(store: Store) -> None:
    with other_process_at_work(store, FINGERPRINTS[0]) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
    with store.stage("corpus", Reference("wiki"), FINGERPRINTS[0]) as staging:
        assert list(staging.path.iterdir()) == []
        (staging.path / "part.bin").write_bytes(b"abc")
        manifest = store.publish(staging, draft("wiki", FINGERPRINTS[0], staging))
    assert (store.directory(manifest) / "part.bin").read_bytes() == b"abc"
