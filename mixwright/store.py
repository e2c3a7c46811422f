"""The artifact store: immutable ``name@version`` folders, each with one manifest.

This is the store of one home folder; ``remote.store`` keeps artifacts in a bucket, and reads as this one does.

An artifact is written into a staging folder and published by one rename, so that a reader sees all of it or
nothing, and a process killed at any moment leaves at most a staging folder behind::

    HOME/corpora/wiki/1/manifest.json      published, never changed again
    HOME/staging/embeddings-wiki-3f…/      in work, locked by the process that writes it
    HOME/cache/…                           can be deleted at any time
"""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import ValidationError

from mixwright.errors import BusyError, ConflictError, DataError, NotFoundError, UnavailableError
from mixwright.fingerprint import file_sha256
from mixwright.schemas.manifests import MANIFEST_ADAPTER, AnyManifest, FileEntry, Manifest
from mixwright.schemas.references import KINDS, Kind, Reference, parse_reference

FOLDERS: dict[Kind, str] = {
    "corpus": "corpora",
    "attributes": "attributes",
    "embeddings": "embeddings",
    "index": "indexes",
    "mixture": "mixtures",
    "datastore": "datastores",
    "results": "results",
    "evaluation": "evaluations",
}
MANIFEST_NAME = "manifest.json"

_ManifestT = TypeVar("_ManifestT", bound=Manifest)


@dataclass(frozen=True)
class Staging:
    """A folder in work, locked for this process. Files written under ``path`` become the artifact's files."""

    path: Path
    kind: Kind
    reference: Reference

    def entry(self, relative: str, n_rows: int | None = None) -> FileEntry:
        """The manifest entry (size, SHA-256) of a file written under ``path``."""
        path = self.path / relative
        return FileEntry(path=relative, n_bytes=path.stat().st_size, sha256=file_sha256(path), n_rows=n_rows)


class Store:
    """Artifacts under one home folder."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __reduce__(self) -> tuple[Any, ...]:
        # Sent to another process, whose working directory is another one.
        return type(self), (self.home.resolve(),)

    def check(self) -> None:
        """Raise UnavailableError where the artifacts cannot be listed."""
        try:
            os.scandir(self.home).close()
        except OSError as error:
            raise UnavailableError(
                f"the home folder {self.home} cannot be read ({error.strerror}): check the folder and its owner"
            ) from error

    # Reading

    def directory(self, manifest: Manifest) -> Path:
        """The folder of a published artifact, with all its files in it."""
        return self._name_folder(manifest.kind, manifest.name) / str(manifest.version)

    def open(self, manifest: Manifest, path: str) -> BinaryIO:
        """One file of a published artifact, for who needs a part of it only; raises OSError."""
        return (self.directory(manifest) / path).open("rb")

    def manifest(self, reference: str | Reference, kind: Kind | None = None) -> AnyManifest:
        """The manifest that a reference names: the newest version where it names none.

        Raises NotFoundError listing what there is, ConflictError where a name without a kind is ambiguous.
        """
        wanted = parse_reference(reference) if isinstance(reference, str) else reference
        only = kind or wanted.kind
        kinds = (only,) if only else KINDS
        found = [(each, versions) for each in kinds if (versions := self.versions(each, wanted.name))]
        if len(found) > 1:
            choices = ", ".join(f"{each}:{wanted}" for each, _ in found)
            raise ConflictError(f"{wanted} names several artifacts: write one of {choices}")
        if not found or (wanted.version is not None and wanted.version not in found[0][1]):
            raise NotFoundError(self._not_found(wanted, kinds))
        found_kind, versions = found[0]
        return self._read(found_kind, wanted.name, wanted.version or versions[-1])

    def manifests(self, kind: Kind | None = None) -> Iterator[AnyManifest]:
        """Every published manifest, by kind, name and version."""
        for each, name, version in self._published(kind):
            yield self._read(each, name, version)

    def references(self, kind: Kind | None = None) -> Iterator[Reference]:
        """The references (with kind and version) of everything published, by kind, name and version."""
        for each, name, version in self._published(kind):
            yield Reference(name, version, each)

    def versions(self, kind: Kind, name: str) -> list[int]:
        """The published versions of a name, oldest first."""
        folder = self._name_folder(kind, name)
        found = [path.parent.name for path in folder.glob(f"*/{MANIFEST_NAME}")]
        return sorted(int(version) for version in found if version.isdigit())

    def existing(self, kind: Kind, reference: Reference, fingerprint: str) -> AnyManifest | None:
        """The published artifact of that name with that fingerprint, so that a job can be run again for free.

        Raises ConflictError if the reference names a version that exists with another fingerprint.
        """
        for version in reversed(self.versions(kind, reference.name)):
            if reference.version in (None, version):
                manifest = self._read(kind, reference.name, version)
                if manifest.fingerprint == fingerprint:
                    return manifest
                if reference.version == version:
                    raise ConflictError(
                        f"{kind} {reference} exists with other inputs or parameters: leave the version out "
                        "to publish the next one"
                    )
        return None

    # Writing

    @contextmanager
    def stage(
        self, kind: Kind, reference: Reference, fingerprint: str, *, resume: bool = False
    ) -> Iterator[Staging]:
        """Lock and open the staging folder of an artifact.

        With ``resume`` what an earlier, interrupted run left there is kept, else it is removed. The folder is
        removed on success (``publish`` renames it) and, without ``resume``, on failure. Raises BusyError
        if another process is building the same artifact.
        """
        root = self.home / "staging"
        root.mkdir(parents=True, exist_ok=True)
        path = root / f"{kind}-{reference}-{fingerprint[:16]}"
        with _locked(root / f"{path.name}.lock", f"{kind} {reference}"):
            if path.exists() and not resume:
                shutil.rmtree(path)
            path.mkdir(exist_ok=True)
            try:
                yield Staging(path, kind, reference)
            finally:
                if not resume and path.exists():
                    shutil.rmtree(path)

    def publish(self, staging: Staging, draft: _ManifestT, scratch: Sequence[str] = ()) -> _ManifestT:
        """Publish a staging folder under the next free version (or the one that was asked for).

        ``draft`` has any version; the published manifest is returned. The artifact is on disk (fsync) before
        the rename makes it visible. ``scratch`` are folders in it that are removed at the last moment, so that
        until then an interrupted job can go on with them.
        """
        folder = self._name_folder(staging.kind, staging.reference.name)
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            taken = self.versions(staging.kind, staging.reference.name)
            version = staging.reference.version or (taken[-1] + 1 if taken else 1)
            manifest = draft.model_copy(update={"version": version})
            (staging.path / MANIFEST_NAME).write_bytes(manifest_json(manifest))
            sync_tree(staging.path)
            for name in scratch:
                shutil.rmtree(staging.path / name, ignore_errors=True)
            try:
                staging.path.rename(folder / str(version))
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                if staging.reference.version is not None:
                    raise published_meanwhile(staging) from error
                continue
            sync_folder(folder)
            return manifest

    def collect_garbage(self) -> int:
        """Remove staging folders that no process holds; returns how many."""
        removed = 0
        for path in sorted((self.home / "staging").glob("*")):
            if not path.is_dir():
                continue
            try:
                with _locked(path.with_name(path.name + ".lock"), path.name):
                    shutil.rmtree(path)
                    removed += 1
            except ConflictError:
                continue
        return removed

    # Details

    def _name_folder(self, kind: Kind, name: str) -> Path:
        return self.home / FOLDERS[kind] / name

    def _published(self, kind: Kind | None) -> Iterator[tuple[Kind, str, int]]:
        for each in [kind] if kind else KINDS:
            for name in self._names(each):
                for version in self.versions(each, name):
                    yield each, name, version

    def _names(self, kind: Kind) -> list[str]:
        """The names under which something of this kind may be published, sorted."""
        return sorted(path.name for path in (self.home / FOLDERS[kind]).glob("*") if path.is_dir())

    def _manifest_json(self, kind: Kind, name: str, version: int) -> bytes:
        """The stored manifest; raises FileNotFoundError."""
        return (self._name_folder(kind, name) / str(version) / MANIFEST_NAME).read_bytes()

    def _read(self, kind: Kind, name: str, version: int) -> AnyManifest:
        try:
            return MANIFEST_ADAPTER.validate_json(self._manifest_json(kind, name, version))
        except FileNotFoundError as error:
            raise NotFoundError(f"{kind} {name}@{version} does not exist") from error
        except ValidationError as error:
            raise DataError(
                f"the manifest of {kind} {name}@{version} is damaged or of another mixwright version "
                f"({error.errors()[0]['msg']}): restore it or remove the artifact"
            ) from error

    def _not_found(self, wanted: Reference, kinds: tuple[Kind, ...]) -> str:
        what = kinds[0] if len(kinds) == 1 else "artifact"
        names = sorted({name for each in kinds for name in self._names(each)})
        known = f"there are {', '.join(names[:10])}{' …' if len(names) > 10 else ''}" if names else "there is none"
        return f"no {what} {wanted}: {known}"


def manifest_json(manifest: Manifest) -> bytes:
    """A manifest as it is stored."""
    return manifest.model_dump_json(indent=2).encode() + b"\n"


def published_meanwhile(staging: Staging) -> ConflictError:
    """What to raise where the version that was asked for is taken."""
    return ConflictError(
        f"{staging.kind} {staging.reference} was published by another process meanwhile: leave the version out to "
        "publish the next one"
    )


def link_or_copy(source: Path, target: Path) -> None:
    """Give a published file a second name, which it keeps when the first is removed; a copy where links fail."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def software_versions(*libraries: str) -> dict[str, str]:
    """Installed versions of mixwright and the given distributions, for a manifest."""
    versions = {}
    for library in ("mixwright", *libraries):
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; the kernel drops it when the process dies, however it dies."""
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"another process is working on {what}: wait for it or stop it") from error
        yield


def sync_tree(root: Path) -> None:
    """Have the disk hold a folder with all that is in it."""
    for path in sorted(root.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
    sync_folder(root)


def sync_folder(path: Path) -> None:
    """Have the disk hold the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
