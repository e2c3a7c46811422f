"""Input files: which files a request's paths name, and their bytes."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
from fsspec.core import has_magic

from mixwright.errors import ConfigError, DataError, MissingExtraError
from mixwright.jobs.confinement import open_input
from mixwright.schemas.requests import InputFormat

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
}
_COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
_BUFFER_BYTES = 1 << 20
# pyarrow's stream gives nothing of a read in which it finds the break: small reads lose little.
_ZSTD_READ_BYTES = 1 << 10

Advance = Callable[[int], None]


@dataclass(frozen=True)
class InputFile:
    """One file to read. ``name`` is its path below the folder that all input files have in common."""

    filesystem: Any
    path: str
    name: str
    form: str
    compression: str | None

    @property
    def format(self) -> str:
        """What the bytes are: ``jsonl``, ``csv.gz``, ``text.zst`` …"""
        return f"{self.form}.{self.compression}" if self.compression else self.form

    def state(self) -> str:
        """Changes when the file does, as far as its file system tells (size, time of change, ETag)."""
        with _unreadable_is_data_error(self.name):
            return str(self.filesystem.ukey(self.path))

    def size(self) -> int:
        """Bytes, as stored."""
        with _unreadable_is_data_error(self.name):
            return int(self.filesystem.size(self.path) or 0)


@dataclass
class _Found:
    """A file that a path names; ``chosen`` says that the path is this very file's."""

    filesystem: Any
    path: str
    chosen: bool

    @property
    def url(self) -> str:
        return str(self.filesystem.unstrip_protocol(self.path))


@dataclass
class _Skipped:
    paths: list[str] = field(default_factory=list)

    def warnings(self) -> list[str]:
        if not self.paths:
            return []
        shown = ", ".join(self.paths[:5]) + (" …" if len(self.paths) > 5 else "")
        return [f"skipped {len(self.paths)} files of unknown suffix ({shown}): give a format to read them"]


def find_input_files(paths: Sequence[str], format: InputFormat) -> tuple[list[InputFile], list[str]]:
    """The files that ``paths`` name, in reading order, each once, and warnings about files left out.

    A path is a file, a folder (read recursively in order of name, hidden files left out) or a glob, local or
    of any fsspec URL. Raises DataError where a path names nothing that can be read, ConfigError for a URL whose
    protocol is unknown or needs a package.
    """
    found: dict[str, tuple[_Found, str, str | None]] = {}
    skipped = _Skipped()
    for path in paths:
        readable = 0
        for each in _locate(path):
            form = _form(each, format)
            if form is None:
                skipped.paths.append(each.path.rpartition("/")[2])
                continue
            readable += 1
            found.setdefault(each.url, (each, *form))
        if not readable:
            raise DataError(f"{path}: no file to read there: name a file, folder or glob, or give its format")
    names = _relative_names(list(found))
    files = [
        InputFile(each.filesystem, each.path, name, form, compression)
        for name, (each, form, compression) in zip(names, found.values(), strict=True)
    ]
    return files, skipped.warnings()


@contextmanager
def open_stored(file: InputFile, advance: Advance) -> Iterator[BinaryIO]:
    """The file's bytes as stored; ``advance`` is told of every byte once, also of those never asked for.

    Raises DataError, at any read, where the file system fails, ForbiddenError for a file that a confined job
    may not read.
    """
    with _unreadable_is_data_error(file.name):
        handle = open_input(file.filesystem, file.path)
    raw = _CountedReader(handle, file.name, file.size(), advance)
    with cast(BinaryIO, io.BufferedReader(raw, _BUFFER_BYTES)) as stream:
        yield stream


@contextmanager
def open_decompressed(file: InputFile, advance: Advance) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed; multi-member .gz and multi-frame .zst files are read whole.

    A read raises EOFError, OSError or zlib.error where the compressed data is cut off or damaged.
    """
    with open_stored(file, advance) as stored:
        if file.compression == "gz":
            with gzip.GzipFile(fileobj=stored) as stream:
                yield cast(BinaryIO, stream)
        elif file.compression == "zst":
            yield cast(BinaryIO, io.BufferedReader(_ZstdReader(stored), _BUFFER_BYTES))
        else:
            yield stored


class _CountedReader(io.RawIOBase):
    """A file of any file system as a raw stream that reports progress and names the file in errors."""

    def __init__(self, handle: Any, name: str, size: int, advance: Advance) -> None:
        self._handle = handle
        self._name = name
        self._left = size
        self._advance = advance

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _unreadable_is_data_error(self._name):
            data = self._handle.read(len(buffer))
        buffer[: len(data)] = data
        self._report(len(data))
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._handle.seek(offset, whence))

    def tell(self) -> int:
        return int(self._handle.tell())

    def close(self) -> None:
        if not self.closed:
            self._report(self._left)
            self._handle.close()
        super().close()

    def _report(self, n_bytes: int) -> None:
        # Parquet's footer is read twice, and a damaged file not to its end.
        fresh = min(n_bytes, self._left)
        self._left -= fresh
        if fresh:
            self._advance(fresh)


class _ZstdReader(io.RawIOBase):
    def __init__(self, stored: BinaryIO) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(stored, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), _ZSTD_READ_BYTES))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def _unreadable_is_data_error(name: str) -> Iterator[None]:
    """A file system's failure must not pass for damaged data: that would be quarantined, and published."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error}): check that it is there and readable") from error


def _locate(path: str) -> list[_Found]:
    try:
        filesystem, root = fsspec.core.url_to_fs(path)
    except ImportError as error:
        if path.startswith(("s3://", "s3a://")):
            raise MissingExtraError("s3fs", "s3") from error
        raise ConfigError(f"{path}: {error}: install that package, or copy the files here") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}: give a local path or a URL that fsspec knows") from error
    with _unreadable_is_data_error(path):
        if filesystem.isdir(root):
            return [_Found(filesystem, each, False) for each in _visible_files(filesystem, root)]
        if filesystem.isfile(root):
            return [_Found(filesystem, root, True)]
        if has_magic(root):
            return [_Found(filesystem, each, False) for each in _matching_files(filesystem, root)]
    raise DataError(f"{path} does not exist: name a file, a folder or a glob")


def _visible_files(filesystem: Any, folder: str) -> list[str]:
    return [each for each in sorted(filesystem.find(folder)) if not _is_hidden(each, folder)]


def _matching_files(filesystem: Any, pattern: str) -> list[str]:
    """Files that match, and all files of folders that match, as a shell would hand them over."""
    segments = pattern.split("/")
    base = "/".join(segments[: next(i for i, segment in enumerate(segments) if has_magic(segment))])
    files: dict[str, None] = {}
    for match in sorted(filesystem.glob(pattern)):
        within = _visible_files(filesystem, match) if filesystem.isdir(match) else [match]
        files.update(dict.fromkeys(each for each in within if not _is_hidden(each, base)))
    return list(files)


def _is_hidden(path: str, folder: str) -> bool:
    below = path.removeprefix(folder.rstrip("/"))
    return any(part.startswith(".") for part in below.split("/"))


def _form(found: _Found, format: InputFormat) -> tuple[str, str | None] | None:
    """(form, compression) of a file; None for an unknown suffix of a file that nobody named."""
    stem = found.path.rpartition("/")[2].lower()
    compression = next((kind for suffix, kind in _COMPRESSIONS.items() if stem.endswith(suffix)), None)
    if compression:
        stem = stem.rpartition(".")[0]
    known = next((form for suffix, form in _SUFFIXES.items() if stem.endswith(suffix)), None)
    form: str | None = known if format == "auto" else format
    if format == "csv" and known == "tsv":
        form = "tsv"
    if form == "parquet" and compression:
        if found.chosen or format != "auto":
            raise DataError(f"{found.path}: Parquet compresses itself: decompress the file first")
        return None
    if form is None:
        if found.chosen:
            raise DataError(f"{found.path}: its suffix tells no format: give one (jsonl, parquet, csv, text)")
        return None
    return form, compression


def _relative_names(urls: Sequence[str]) -> list[str]:
    """The URLs without the folders that they all share."""
    parts = [url.split("/") for url in urls]
    shared = min(len(each) for each in parts) - 1
    while len({tuple(each[:shared]) for each in parts}) > 1:
        shared -= 1
    return ["/".join(each[shared:]) for each in parts]
