"""Artifacts of a remote store, fetched to local disk and checked: what everything else opens by path.

::

    CACHE/artifacts/corpus-wiki@1-3f…/    one artifact, complete: renamed to this name when all files are there
    CACHE/artifacts/….partial/            one that is being fetched, or was when its process died
    CACHE/contents/SHA-256                each file once; the files of the artifacts are hard links to it

So versions that share files share them here too, and what a killed process had fetched is not fetched again. All
of it can be fetched again; with a limit, what was used longest ago goes first. Artifacts that a running process
has opened stay: files are opened when they are needed, long after the folder was asked for.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from mixwright.errors import DataError, UnavailableError
from mixwright.schemas.manifests import FileEntry, Manifest
from mixwright.store import MANIFEST_NAME, manifest_json, sync_folder, sync_tree

FILES_AT_ONCE = 4
_PARTIAL = ".partial"
_LOCKS = 64
_SHA256 = re.compile(r"[0-9a-f]{64}")
_STALE_SECONDS = 3600.0
"""A file in contents/ that no artifact has is left alone for so long: it may be on its way into one."""

ReadFile = Callable[[FileEntry], Iterator[memoryview]]
"""The bytes of a file of the remote store; raises FileNotFoundError, EOFError, UnavailableError."""


class FetchedArtifacts:
    """The artifacts of one remote store on this machine; any number of processes may share the folder."""

    def __init__(self, cache: Path, read: ReadFile, source: str, max_bytes: int | None) -> None:
        """``source`` names the remote store in messages; ``max_bytes`` is what artifacts may take here."""
        self._artifacts = cache / "artifacts"
        self._contents = cache / "contents"
        self._read = read
        self._source = source
        self._max_bytes = max_bytes

    def has(self, manifest: Manifest) -> bool:
        """Whether all files of the artifact are here."""
        return self._folder(manifest).is_dir()

    def directory(self, manifest: Manifest) -> Path:
        """The folder of the artifact; what is not here is fetched first.

        Waits for another thread or process that fetches the same. Raises DataError where the store's files are
        not those of the manifest, UnavailableError where it does not answer or the disk is full.
        """
        folder = self._folder(manifest)
        in_use(self._artifacts).hold(folder.name)
        if not folder.is_dir():
            with self._disk_errors(), _locked(folder):
                if not folder.is_dir():
                    self._fetch(manifest, folder)
            self.trim()
        # The time of its last use, for ``trim``.
        os.utime(folder)
        return folder

    def adopt(self, manifest: Manifest, staged: Path) -> None:
        """Take the folder that an artifact was just published from."""
        folder = self._folder(manifest)
        (staged / MANIFEST_NAME).write_bytes(manifest_json(manifest))
        sync_tree(staged)
        with self._disk_errors(), _locked(folder):
            self._contents.mkdir(parents=True, exist_ok=True)
            for entry in manifest.files:
                _link_unless_there(staged / entry.path, self._contents / entry.sha256)
            if folder.is_dir():
                shutil.rmtree(staged)
            else:
                staged.rename(folder)
                sync_folder(self._artifacts)
        self.trim()

    def clean(self) -> None:
        """Remove what processes that died left of their fetching, and what goes beyond the limit."""
        for partial in self._artifacts.glob(f"*{_PARTIAL}"):
            with _locked(partial.with_suffix(""), wait=False) as is_mine:
                if is_mine:
                    shutil.rmtree(partial, ignore_errors=True)
        self.trim()
        self._forget_contents()

    def trim(self) -> int:
        """Remove what was used longest ago until the rest is within the limit; returns how many artifacts."""
        if self._max_bytes is None or not self._artifacts.is_dir():
            return 0
        folders = [path for path in self._artifacts.iterdir() if path.is_dir() and path.suffix != _PARTIAL]
        inodes = {folder: _inodes(folder) for folder in folders}
        shared = Counter(inode for each in inodes.values() for inode in each)
        contents = {path.stat().st_ino: path for path in self._contents.glob("*")}
        n_bytes = sum({inode: size for each in inodes.values() for inode, size in each.items()}.values())
        removed = 0
        for folder in sorted(folders, key=_last_use):
            if n_bytes <= self._max_bytes:
                break
            if not in_use(self._artifacts).remove(folder):
                continue
            removed += 1
            shared.subtract(inodes[folder].keys())
            gone = {inode: size for inode, size in inodes[folder].items() if shared[inode] == 0}
            n_bytes -= sum(gone.values())
            for content in contents.keys() & gone.keys():
                contents[content].unlink(missing_ok=True)
        return removed

    def _folder(self, manifest: Manifest) -> Path:
        digest = hashlib.sha256(manifest.fingerprint.encode())
        for entry in manifest.files:
            digest.update(f"\0{entry.path}\0{entry.sha256}".encode())
        return self._artifacts / f"{manifest.kind}-{manifest.ref}-{digest.hexdigest()[:16]}"

    def _fetch(self, manifest: Manifest, folder: Path) -> None:
        partial = folder.with_name(f"{folder.name}{_PARTIAL}")
        partial.mkdir(parents=True, exist_ok=True)
        self._contents.mkdir(parents=True, exist_ok=True)
        what = f"{manifest.kind} {manifest.ref}"

        def bring(same: list[FileEntry]) -> None:
            for entry in same:
                self._bring(entry, partial, what)

        pool = ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="mixwright-fetch")
        try:
            list(pool.map(bring, _by_content(manifest)))
        finally:
            pool.shutdown(cancel_futures=True)
        (partial / MANIFEST_NAME).write_bytes(manifest_json(manifest))
        sync_tree(partial)
        partial.rename(folder)
        sync_folder(self._artifacts)

    def _bring(self, entry: FileEntry, partial: Path, what: str) -> None:
        """Put one file of an artifact into its folder."""
        parts = PurePosixPath(entry.path).parts
        if not parts or ".." in parts or parts[0] == "/" or not _SHA256.fullmatch(entry.sha256):
            raise DataError(
                f"the manifest of {what} in {self._source} names a file {entry.path!r} that cannot be one of its "
                "files: restore it or remove the artifact"
            )
        target = partial.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        content = self._contents / entry.sha256
        # Twice: another process may remove what is in no artifact yet.
        for _ in range(2):
            if not content.is_file() or content.stat().st_size != entry.n_bytes:
                self._download(entry, content, what)
            if _link(content, target):
                return
        raise DataError(f"{target} cannot be made: run again, while nothing else cleans {self._contents}")

    def _download(self, entry: FileEntry, content: Path, what: str) -> None:
        temporary = content.with_name(f"{content.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            for attempts_left in (1, 0):
                found = self._write(entry, temporary, what)
                if found == entry.sha256:
                    break
                if not attempts_left:
                    raise DataError(
                        f"{entry.path} of {what} in {self._source} is damaged (its SHA-256 is {found[:12]}…, not "
                        f"{entry.sha256[:12]}…): restore {file_key(entry)} from a copy, or remove the artifact"
                    )
            temporary.rename(content)
        finally:
            temporary.unlink(missing_ok=True)

    def _write(self, entry: FileEntry, path: Path, what: str) -> str:
        """Fetch a file; returns its SHA-256. What is written is on the disk."""
        digest = hashlib.sha256()
        try:
            with path.open("wb") as file:
                for part in self._read(entry):
                    digest.update(part)
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
        except FileNotFoundError as error:
            raise DataError(
                f"{entry.path} of {what} is missing in {self._source}: restore {file_key(entry)} from a copy, or "
                "remove the artifact"
            ) from error
        except EOFError:
            return "shorter than its manifest says"
        return digest.hexdigest()

    def _forget_contents(self) -> None:
        """Remove files that are in no artifact, but for those that may be on their way into one."""
        for path in self._contents.glob("*"):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            if found.st_nlink == 1 and time.time() - found.st_ctime > _STALE_SECONDS:
                path.unlink(missing_ok=True)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnavailableError(
                f"an artifact of {self._source} cannot be kept under {self._artifacts.parent} ({error.strerror}): "
                "free disk space, or set MIXWRIGHT_CACHE_BYTES and run mixwright catalog gc"
            ) from error


def _by_content(manifest: Manifest) -> list[list[FileEntry]]:
    """The files of an artifact, those with the same bytes together."""
    found: dict[str, list[FileEntry]] = {}
    for entry in manifest.files:
        found.setdefault(entry.sha256, []).append(entry)
    return list(found.values())


def file_key(entry: FileEntry) -> str:
    """Where a file is in a remote store: by its contents, so that it is there once."""
    return f"files/{entry.sha256[:2]}/{entry.sha256}"


class InUse:
    """Which artifacts of a folder the running processes have opened.

    Each is a byte of one file that a process locks; the kernel drops the locks of a process that ends, however it
    does. Such locks belong to the process, and closing the file anywhere in it would drop them all: it is opened
    once (``in_use``) and stays open.
    """

    def __init__(self, artifacts: Path) -> None:
        artifacts.mkdir(parents=True, exist_ok=True)
        self._file = os.open(artifacts / ".in-use", os.O_RDWR | os.O_CREAT, 0o666)
        self._held: set[str] = set()
        self._lock = threading.Lock()

    def hold(self, name: str) -> None:
        """Keep an artifact until this process ends."""
        with self._lock:
            if name not in self._held:
                fcntl.lockf(self._file, fcntl.LOCK_SH, 1, _offset(name))
                self._held.add(name)

    def remove(self, folder: Path) -> bool:
        """Remove an artifact's folder, unless a process has opened it."""
        with self._lock:
            if folder.name in self._held:
                return False
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(folder.name))
            except OSError:
                return False
            try:
                with _locked(folder, wait=False) as is_mine:
                    if not is_mine:
                        return False
                    # Out of sight at once: a folder is there with all its files, or not.
                    doomed = folder.with_name(f"{folder.name}{_PARTIAL}")
                    folder.rename(doomed)
                    shutil.rmtree(doomed)
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _offset(folder.name))
        return True


_in_use: dict[Path, InUse] = {}
_in_use_lock = threading.Lock()


def in_use(artifacts: Path) -> InUse:
    """The locks of this process on the artifacts of a folder."""
    with _in_use_lock:
        key = artifacts.resolve()
        if key not in _in_use:
            _in_use[key] = InUse(key)
        return _in_use[key]


def _offset(name: str) -> int:
    # Two names of one byte only keep each other longer than needed.
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Make or remove a folder alone among threads and processes; without ``wait`` false where another is at it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".lock-{_offset(folder.name) % _LOCKS}").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _link(content: Path, target: Path) -> bool:
    """Give a file its name in an artifact; False where it has gone meanwhile."""
    try:
        os.link(content, target)
    except FileNotFoundError:
        return False
    except OSError:  # a file system without hard links
        content.replace(target)
    return True


def _link_unless_there(file: Path, content: Path) -> None:
    try:
        os.link(file, content)
    except OSError:  # there already, or a file system without hard links: then it is fetched another time
        return


def _inodes(folder: Path) -> dict[int, int]:
    """Inode and bytes of each file under a folder."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return {each.st_ino: each.st_size for each in found}


def _last_use(folder: Path) -> float:
    return folder.stat().st_mtime
