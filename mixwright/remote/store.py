"""A store whose artifacts are in a bucket, or in a folder that several machines mount.

::

    URL/artifacts/corpora/wiki/1/manifest.json    written last and only where there is none: the artifact exists
    URL/files/3f/3f…                              every file of every artifact, under the SHA-256 of its bytes
    URL/format.json                               which form of store this is

A publisher sends the files first. Until the manifest is there nobody sees them, and what a killed publisher has
sent the next one does not send again; ``collect_garbage`` removes what no manifest names. Two publishers of the
same bytes write the same object, and of two manifests for one version the bucket takes one. Artifacts are staged
in the home folder, and fetched into its cache to be read: see ``fetched``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from mixwright.config import Settings
from mixwright.errors import ConfigError, NotFoundError
from mixwright.remote.fetched import FILES_AT_ONCE, FetchedArtifacts, file_key
from mixwright.remote.listing import RemoteListing, manifest_key
from mixwright.remote.object_storage import ObjectStorage
from mixwright.schemas.manifests import AnyManifest, FileEntry, Manifest
from mixwright.schemas.references import Kind, Reference, parse_reference
from mixwright.store import Staging, Store, manifest_json, published_meanwhile

GARBAGE_AGE = timedelta(days=7)
"""Files without a manifest are kept so long: their publisher may still be sending others."""
_FORMAT_KEY = "format.json"
_FORMAT = b'{"format": "mixwright store", "version": 1}\n'
_MANIFESTS_AT_ONCE = 16

_ManifestT = TypeVar("_ManifestT", bound=Manifest)


def store_of(settings: Settings) -> Store:
    """The store that the settings name: in the home folder, or under ``MIXWRIGHT_STORE_URL``.

    Raises ConfigError for a wrong URL and without credentials for it, MissingExtraError.
    """
    if settings.store_url is None:
        return Store(settings.home)
    return RemoteStore(settings.home, settings.store_url, settings.cache_bytes)


class RemoteStore(Store):
    """Artifacts under a URL, staged and read in a home folder; any number of homes may share the URL."""

    def __init__(self, home: Path, url: str, cache_bytes: int | None = None) -> None:
        """``cache_bytes`` is what fetched artifacts may take under the home folder. Raises as ``store_of``."""
        super().__init__(home)
        self.url = url
        self._cache_bytes = cache_bytes
        self._storage = ObjectStorage(url)
        self._listing = RemoteListing(self._storage)
        self._fetched = FetchedArtifacts(home / "cache", self._read_file, url, cache_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.home.resolve(), self.url, self._cache_bytes)

    def check(self) -> None:
        # Of a bucket that does not exist, only a list tells so.
        self._storage.list(_FORMAT_KEY)

    # Reading

    def directory(self, manifest: Manifest) -> Path:
        return self._fetched.directory(manifest)

    def open(self, manifest: Manifest, path: str) -> BinaryIO:
        entry = next(each for each in manifest.files if each.path == path)
        if self._fetched.has(manifest):
            return super().open(manifest, path)
        return self._storage.open(file_key(entry), entry.n_bytes)

    def manifest(self, reference: str | Reference, kind: Kind | None = None) -> AnyManifest:
        wanted = parse_reference(reference) if isinstance(reference, str) else reference
        only = kind or wanted.kind
        if only is None:
            self._listing.look()
        try:
            return super().manifest(wanted, only)
        except NotFoundError:
            # Perhaps published since the last look.
            if only is None:
                self._listing.forget_all()
                self._listing.look()
            else:
                self._listing.forget(only, wanted.name)
            return super().manifest(wanted, only)

    def manifests(self, kind: Kind | None = None) -> Iterator[AnyManifest]:
        pool = ThreadPoolExecutor(_MANIFESTS_AT_ONCE, thread_name_prefix="mixwright-manifests")
        try:
            yield from pool.map(lambda each: self._read(*each), list(self._published(kind)))
        finally:
            pool.shutdown(cancel_futures=True)

    def versions(self, kind: Kind, name: str) -> list[int]:
        return sorted(self._listing.versions(kind, name))

    # Writing

    def publish(self, staging: Staging, draft: _ManifestT, scratch: Sequence[str] = ()) -> _ManifestT:
        """Send the files, then claim the next free version, or the one that was asked for.

        Where another home has published the same meanwhile, that is returned.
        """
        self._check_format()
        kept = self._send_all(staging.path, draft)
        while True:
            self._listing.forget(staging.kind, staging.reference.name)
            # One look for both: what is published between two could be the same, and would get a version more.
            taken = self.versions(staging.kind, staging.reference.name)
            published = self._same(staging.reference, taken, draft)
            if published is not None:
                shutil.rmtree(staging.path)
                return published
            version = staging.reference.version or (taken[-1] + 1 if taken else 1)
            manifest = draft.model_copy(update={"version": version})
            if self._claim(manifest):
                break
            if staging.reference.version is not None:
                raise published_meanwhile(staging)
        self._listing.forget_all()
        for entry in kept:
            # Garbage was perhaps being collected when the file was found.
            if self._storage.head(file_key(entry)) is None:
                self._storage.write(file_key(entry), staging.path / entry.path)
        for name in scratch:
            shutil.rmtree(staging.path / name, ignore_errors=True)
        self._fetched.adopt(manifest, staging.path)
        return manifest

    def collect_garbage(self) -> int:
        """Remove staging folders that no process holds, and files of the bucket that are in no artifact and older
        than GARBAGE_AGE; returns how many. Raises DataError where a manifest is damaged: its files are unknown.
        """
        removed = super().collect_garbage()
        limit = datetime.now(UTC) - GARBAGE_AGE
        old = [each.key for each in self._storage.list("files") if each.modified < limit]
        if old:
            self._listing.forget_all()
            named = {file_key(entry) for manifest in self.manifests() for entry in manifest.files}
            old = [key for key in old if key not in named]
            self._storage.delete(old)
        self._fetched.clean()
        return removed + len(old)

    # Details

    def _names(self, kind: Kind) -> list[str]:
        return self._listing.names(kind)

    def _manifest_json(self, kind: Kind, name: str, version: int) -> bytes:
        """The stored manifest, which this machine keeps: another one would have another tag."""
        key = manifest_key(kind, name, version)
        tag = self._listing.tag(kind, name, version)
        if tag is None:
            return self._storage.read(key)
        digest = hashlib.sha256("\0".join((self.url, key, tag)).encode()).hexdigest()
        path = self.home / "cache" / "manifests" / f"{digest[:32]}.json"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        # A power failure can leave a file without its end.
        if not content.endswith(b"}\n"):
            content = self._storage.read(key)
            _replace(path, content)
        return content

    def _read_file(self, entry: FileEntry) -> Iterator[memoryview]:
        return self._storage.read_parts(file_key(entry), entry.n_bytes)

    def _check_format(self) -> None:
        """Raise ConfigError for a store of another form, and a storage that lets two writers create one object."""
        if self._storage.create(_FORMAT_KEY, _FORMAT) and self._storage.create(_FORMAT_KEY, _FORMAT):
            raise ConfigError(
                f"{self.url}: the storage ignores If-None-Match, so that two jobs could publish one version: use "
                "one that supports conditional writes"
            )
        if self._storage.read(_FORMAT_KEY) != _FORMAT:
            raise ConfigError(
                f"{self.url} is a store of another form (see its {_FORMAT_KEY}): use the mixwright version that "
                "made it, or another prefix"
            )

    def _send_all(self, folder: Path, draft: Manifest) -> list[FileEntry]:
        """Send what the bucket does not have; returns the files that it had."""
        entries = list({entry.sha256: entry for entry in draft.files}.values())
        pool = ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="mixwright-send")
        try:
            sent = list(pool.map(lambda entry: self._send(folder, entry, draft.kind), entries))
        finally:
            pool.shutdown(cancel_futures=True)
        return [entry for entry, is_sent in zip(entries, sent, strict=True) if not is_sent]

    def _send(self, folder: Path, entry: FileEntry, kind: Kind) -> bool:
        found = self._storage.head(file_key(entry))
        if found is not None and found.n_bytes == entry.n_bytes:
            # Sending it again makes it young: garbage collection could take an old one that nothing names.
            is_young = datetime.now(UTC) - found.modified < GARBAGE_AGE / 2
            if is_young or self._is_named(entry, kind):
                return False
        self._storage.write(file_key(entry), folder / entry.path)
        return True

    def _is_named(self, entry: FileEntry, kind: Kind) -> bool:
        return any(entry.sha256 == each.sha256 for manifest in self.manifests(kind) for each in manifest.files)

    def _same(self, reference: Reference, taken: list[int], draft: _ManifestT) -> _ManifestT | None:
        """The artifact with the draft's fingerprint, in the version that is wanted, if it has been published."""
        for version in reversed(taken):
            if reference.version in (None, version):
                manifest = self._read(draft.kind, reference.name, version)
                if isinstance(manifest, type(draft)) and manifest.fingerprint == draft.fingerprint:
                    return manifest
        return None

    def _claim(self, manifest: Manifest) -> bool:
        key, content = manifest_key(manifest.kind, manifest.name, manifest.version), manifest_json(manifest)
        if self._storage.create(key, content):
            return True
        try:
            # Ours after all, where the answer to the first attempt was lost.
            return self._storage.read(key) == content
        except FileNotFoundError:
            return False


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    temporary.write_bytes(content)
    temporary.rename(path)
