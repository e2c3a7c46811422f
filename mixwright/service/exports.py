"""Exports over HTTP: made once into the cache, kept while somebody reads them, and sent as JSON or tar.

An export lies in ``HOME/cache/exports/FINGERPRINT-FORMAT-OPTIONS``, beside a lock file. Whoever reads it holds the
lock shared, whoever makes or removes it holds it alone; the kernel drops the locks of a process that dies. When
the cache is above its limit, the exports that were read longest ago go, but none that is being read.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tarfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import IOBase
from pathlib import Path

from mixwright import __version__
from mixwright.errors import ConfigError
from mixwright.jobs.exports.export import EXPORT_NAME, export_mixture
from mixwright.jobs.exports.format import ExportFormat, ExportOptions
from mixwright.progress import NoProgress
from mixwright.schemas.exports import ExportResult
from mixwright.schemas.manifests import MixtureManifest
from mixwright.selectors.streams import MixtureStream
from mixwright.store import Store

_BLOCK = 1 << 20
_TEXT_SUFFIXES = frozenset({".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"})
_LARGEST_TEXT = 64 << 10
_LARGEST_TEXTS = 1 << 20
"""Bytes of one text and of all texts that a listing holds."""


@dataclass(frozen=True)
class OpenExport:
    """An export that stays until ``close``."""

    folder: Path
    result: ExportResult
    _lock: IOBase

    def close(self) -> None:
        """Let it be removed."""
        self._lock.close()

    @property
    def paths(self) -> list[str]:
        """All files, relative to the folder, export.json first."""
        return [EXPORT_NAME, *(entry.path for entry in self.result.files)]

    def texts(self) -> dict[str, str]:
        """The small files that people read, by path."""
        found: dict[str, str] = {}
        left = _LARGEST_TEXTS
        for entry in self.result.files:
            if Path(entry.path).suffix in _TEXT_SUFFIXES and entry.n_bytes <= min(_LARGEST_TEXT, left):
                found[entry.path] = (self.folder / entry.path).read_text(encoding="utf-8")
                left -= entry.n_bytes
        return found


class ExportCache:
    """Exports under a store's cache, at most ``max_bytes`` of them that nobody reads."""

    def __init__(self, store: Store, max_bytes: int, max_tokens: int) -> None:
        self._store = store
        self._root = store.home / "cache" / "exports"
        self._max_bytes, self._max_tokens = max_bytes, max_tokens

    def open(
        self, stream: MixtureStream, chosen: ExportFormat, options: ExportOptions, service: str | None = None
    ) -> OpenExport:
        """The export, made now if it is not there; waits for another request that makes it.

        ``service`` is the URL that a document points into: no rows are written beside the document then.
        Raises ConfigError for an export that is too large to make while a client waits.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        folder = self._root / _name(stream.manifest, chosen, options, service)
        while True:
            lock = _locked(folder, fcntl.LOCK_SH)
            if (folder / EXPORT_NAME).exists():
                os.utime(folder)
                result = ExportResult.model_validate_json((folder / EXPORT_NAME).read_bytes())
                return OpenExport(folder, result, lock)
            lock.close()
            self._make(stream, chosen, options, folder, service)

    def _make(
        self,
        stream: MixtureStream,
        chosen: ExportFormat,
        options: ExportOptions,
        folder: Path,
        service: str | None,
    ) -> None:
        if chosen.document is None:
            refuse_large(stream.manifest, chosen, self._max_tokens)
        lock = _locked(folder, fcntl.LOCK_EX)
        try:
            if not (folder / EXPORT_NAME).exists():
                _remove(folder)
                export_mixture(self._store, stream, chosen.name, options, folder, NoProgress(), service)
        finally:
            if not folder.exists():
                _lock_path(folder).unlink(missing_ok=True)
            lock.close()
        self._evict(keep=folder)

    def _evict(self, keep: Path) -> None:
        """Remove unfinished exports, and those read longest ago until the rest is within the limit."""
        names = {path.name.removesuffix(".lock") for path in self._root.glob("*.lock")}
        folders = sorted((self._root / name for name in names), key=_read_at)
        sizes = {folder: _size(folder) for folder in folders}
        total = sum(sizes.values())
        for folder in folders:
            finished = (folder / EXPORT_NAME).exists()
            if folder != keep and (total > self._max_bytes or not finished):
                with _if_free(folder) as free:
                    if free:
                        _remove(folder)
                        _lock_path(folder).unlink(missing_ok=True)
                        total -= sizes[folder]


def refuse_large(manifest: MixtureManifest, chosen: ExportFormat, max_tokens: int) -> None:
    """Raise ConfigError for a mixture of more tokens than the service exports while a client waits."""
    if manifest.n_tokens > max_tokens:
        command = f"mixwright mixture export {manifest.ref} --format {chosen.name} --out DIR"
        raise ConfigError(
            f"{manifest.ref} has {manifest.n_tokens:,} tokens, and the service exports at most {max_tokens:,} "
            f"while a client waits: run  {command}  where the service runs, or raise MIXWRIGHT_EXPORT_MAX_TOKENS"
        )


def tar_size(export: OpenExport, top: str) -> int:
    """Bytes of ``tar_chunks``."""
    members = [len(_header(export, top, path)) + _padded(_bytes_of(export, path)) for path in export.paths]
    return sum(members) + 2 * tarfile.BLOCKSIZE


def tar_chunks(export: OpenExport, top: str) -> Generator[bytes, None, None]:
    """The export as a tar archive of one folder, block by block; closes the export at the end."""
    try:
        for path in export.paths:
            yield _header(export, top, path)
            size = _bytes_of(export, path)
            with (export.folder / path).open("rb") as source:
                while block := source.read(_BLOCK):
                    yield block
            yield b"\0" * (_padded(size) - size)
        yield b"\0" * 2 * tarfile.BLOCKSIZE
    finally:
        export.close()


def _name(manifest: MixtureManifest, chosen: ExportFormat, options: ExportOptions, service: str | None) -> str:
    # It names the mixture, of which two may have one fingerprint; and another mixwright may write otherwise.
    variant = repr((manifest.ref, sorted(options.given().items()), service, __version__))
    return f"{manifest.fingerprint}-{chosen.name}-{hashlib.sha256(variant.encode()).hexdigest()[:16]}"


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _locked(folder: Path, kind: int) -> IOBase:
    """The lock of an export, once it is free; closing it lets it go."""
    path = _lock_path(folder)
    while True:
        handle = path.open("a")
        try:
            fcntl.flock(handle, kind)
            if _is_same(handle.fileno(), path):
                return handle
        except BaseException:
            handle.close()
            raise
        # It was removed while we waited: whoever comes now has a new one.
        handle.close()


@contextmanager
def _if_free(folder: Path) -> Generator[bool, None, None]:
    """Whether nobody has the lock of an export; it is held meanwhile."""
    path = _lock_path(folder)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield _is_same(handle.fileno(), path)


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove(folder: Path) -> None:
    """Remove an export, and what a killed process left of its making; its lock must be held alone."""
    if folder.exists():
        # Renamed first: a process killed here leaves no half of an export under its name.
        folder.rename(folder.with_name(f".{folder.name}.removed.tmp"))
    for path in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(path)


def _read_at(folder: Path) -> float:
    return folder.stat().st_mtime if folder.exists() else 0.0


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _bytes_of(export: OpenExport, path: str) -> int:
    return (export.folder / path).stat().st_size


def _header(export: OpenExport, top: str, path: str) -> bytes:
    information = tarfile.TarInfo(f"{top}/{path}")
    information.size = _bytes_of(export, path)
    information.mode = 0o644
    return information.tobuf(tarfile.PAX_FORMAT)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
