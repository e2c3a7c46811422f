"""Which files, URLs and models a request from outside may have the service read.

A request over REST names paths, URLs and models, and whoever sends it need not be allowed to read what the
service's user can read. So three things may be named: files below the allowed folders, URLs that begin with an
allowed prefix, and models that are built in, allowed by name, or local files below the allowed folders. Everything
else is refused: the file of another folder by any spelling (``..``, ``~``, ``file://``, a symbolic link, a glob),
chains of file systems (``zip://…::file://…``), the home folder of the store, and hidden files.

It is checked when a job is submitted and, because links change and the job board is shared, again in the job's own
process: before it runs, and on every input file that it opens. Commands on the machine itself are not confined:
who types them can read the files anyway.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
from fsspec.core import has_magic, split_protocol
from fsspec.implementations.local import LocalFileSystem

from mixwright.config import Settings
from mixwright.errors import ConfigError, ForbiddenError
from mixwright.schemas.defaults import DEFAULT_ENCODER, DEFAULT_TOKENIZER
from mixwright.schemas.reads import Named, named_in

_MAX_FILES = 10_000
"""So many files of a folder or glob are looked at while a client waits; the job looks at every one it opens."""
_LOCAL = (None, "file", "local")
_OPEN_BELOW_HOME = ("inputs", "models")
_BUILT_IN = {
    "encoder": re.compile(rf"{re.escape(DEFAULT_ENCODER)}|hashing(:\d+)?|numbers:\d+"),
    "tokenizer": re.compile(rf"{re.escape(DEFAULT_TOKENIZER)}|bytes"),
}
_SAME_PROTOCOL = {"s3a": "s3", "gcs": "gs"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_HIDDEN_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Confinement:
    """What may be read. ``roots`` are real folders, ``home`` is the real home folder of the store."""

    roots: tuple[Path, ...]
    home: Path
    urls: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Confinement:
        """By the settings; raises ConfigError for an allowed URL that is none."""
        home = _real(settings.home)
        if settings.allowed_paths is None:
            # Where a person who works with the service has files: where it was started, and beside its home.
            # One started by an init system is in "/", of which everything is a part.
            folders = dict.fromkeys((_real(Path.cwd()), home.parent))
            roots = [each for each in folders if _is_for_work(each, home)]
            roots += [home / name for name in _OPEN_BELOW_HOME]
        else:
            roots = [
                _real(Path(each).expanduser()) for each in settings.allowed_paths.split(os.pathsep) if each.strip()
            ]
        urls = tuple(_listed(settings.allowed_urls))
        for each in urls:
            if _url_parts(each) is None:
                raise ConfigError(
                    f"MIXWRIGHT_ALLOWED_URLS: {each!r} is no URL to begin with: write one such as s3://bucket/folder/"
                )
        return cls(tuple(roots), home, urls, tuple(_listed(settings.allowed_models)))

    def check(self, request: Any) -> None:
        """Raise ForbiddenError for the first thing named in a validated request that may not be read.

        The answer does not depend on what is outside the allowed folders: nobody learns from it what is there.
        """
        for named in named_in(request):
            if named.what == "program":
                # Whether programs may be named at all is a setting of its own: jobs.train_command.
                continue
            if not _is_plain(named.text):
                raise ForbiddenError(f"{_shown(named)} has characters that no name has: correct it")
            if named.what == "files":
                self._check_files(named)
            elif not self._may_load(named):
                raise ForbiddenError(
                    f"{_shown(named)} is no {named.what} that requests may load: name a built-in one or a local "
                    "one that requests may read, or start the service with this name in MIXWRIGHT_ALLOWED_MODELS"
                )

    def may_read(self, path: str | Path) -> bool:
        """Whether a file or folder, all its links followed, lies where requests may read."""
        real = _real(path)
        return any(self._is_below(real, root) for root in self.roots)

    def may_fetch(self, url: str) -> bool:
        """Whether a URL lies below an allowed one, by its components."""
        parts = _url_parts(url)
        return parts is not None and any(_begins_with(parts, _url_parts(each) or parts) for each in self.urls)

    def open(self, filesystem: Any, path: str) -> Any:
        """Open a file to read, or raise ForbiddenError; what is opened is looked at, not only its name."""
        if not isinstance(filesystem, LocalFileSystem):
            url = str(filesystem.unstrip_protocol(path))
            if not self.may_fetch(url):
                raise _refused_url(url)
            return filesystem.open(path, "rb")
        with ExitStack() as unless_refused:
            handle = unless_refused.enter_context(filesystem.open(path, "rb"))
            real = _real(path)
            # A link may be put in place of the file between a look at the path and its opening.
            same = os.path.samestat(os.fstat(handle.fileno()), os.lstat(real))
            if not same or not self.may_read(real):
                raise _refused_path(path.rpartition("/")[2])
            unless_refused.pop_all()
        return handle

    def _is_below(self, real: Path, root: Path) -> bool:
        if root != real and root not in real.parents:
            return False
        if any(part.startswith(".") for part in real.relative_to(root).parts):
            return False
        # Below the home folder only what is named there: a root that is the home, or around it, does not open it.
        return self._outside_home(real) or self.home in root.parents

    def _outside_home(self, real: Path) -> bool:
        return real != self.home and self.home not in real.parents

    def _check_files(self, named: Named) -> None:
        text = named.text
        if "::" in text:
            raise ForbiddenError(f"{_shown(named)} is a chain of file systems: name the files themselves")
        if split_protocol(text)[0] not in _LOCAL:
            if not self.may_fetch(text):
                raise _refused_url(_shown(named))
            return
        # As the job itself will read the name: it may begin with file: or ~, or be relative.
        path = str(LocalFileSystem._strip_protocol(text))
        if not self._may_read_all(path):
            raise _refused_path(_shown(named))

    def _may_read_all(self, path: str) -> bool:
        """Whether a path, or what a glob or a folder stands for, may be read."""
        segments = path.split("/")
        fixed = next((i for i, each in enumerate(segments) if has_magic(each)), len(segments))
        base = "/".join(segments[:fixed])
        if ".." in segments[fixed:] or not self.may_read(path) or not self.may_read(base or "/"):
            return False
        return all(self.may_read(each) for each in islice(_visible_files(path, base), _MAX_FILES))

    def _may_load(self, named: Named) -> bool:
        built_in = _BUILT_IN.get(named.what)
        if (built_in and built_in.fullmatch(named.text)) or named.text in self.models:
            return True
        # Tokenizers are looked up under the name as it is.
        path = named.text if named.what == "tokenizer" else os.path.expanduser(named.text)
        if self.may_read(path) and os.path.exists(path):
            return self._may_read_all(os.path.abspath(path))
        if os.path.lexists(path) or not _HUB_NAME.fullmatch(named.text):
            return False
        return any(each.endswith("/*") and named.text.startswith(each[:-1]) for each in self.models)


_confinement: Confinement | None = None


@contextmanager
def confined(confinement: Confinement) -> Iterator[None]:
    """Confine the input files that this process opens, in all its threads: it runs one job and nothing else.

    The functions that read input files are deep inside jobs that know nothing of requests, so that this is of the
    process, as a changed root folder would be.
    """
    global _confinement
    before, _confinement = _confinement, confinement
    try:
        yield
    finally:
        _confinement = before


def open_input(filesystem: Any, path: str) -> Any:
    """Open an input file to read; raises ForbiddenError where this process is confined and may not."""
    return filesystem.open(path, "rb") if _confinement is None else _confinement.open(filesystem, path)


def _real(path: str | Path) -> Path:
    """The path with all links followed, also where it, or a part of it, does not exist."""
    return Path(os.path.realpath(path))


def _is_for_work(folder: Path, home: Path) -> bool:
    """Whether a person may have files there: not in "/", nor inside the home folder, nor at somebody else's."""
    inside_home = folder == home or home in folder.parents
    return folder != Path(folder.anchor) and not inside_home and os.access(folder, os.W_OK)


def _listed(text: str | None) -> list[str]:
    return re.split(r"[,\s]+", text.strip(", \t\n")) if text and text.strip(", \t\n") else []


def _is_plain(text: str) -> bool:
    if _HIDDEN_CHARACTERS.search(text):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _visible_files(path: str, base: str) -> Iterator[str]:
    """The files that a local path, glob or folder stands for, without hidden ones: no job reads those."""
    filesystem = fsspec.filesystem("file")
    for found in filesystem.glob(path):
        folders = [("", [], [found])] if filesystem.isfile(found) else filesystem.walk(found)
        for folder, _, names in folders:
            for name in names:
                file = f"{folder}/{name}" if folder else name
                if not any(part.startswith(".") for part in file.removeprefix(base).split("/")):
                    yield file


def _url_parts(url: str) -> list[str] | None:
    """Protocol, host or bucket, and the path's parts; None for a URL that another reader may read differently.

    Parts such as ``..``, and characters in percent-encoding that would make other parts, are refused rather than
    resolved: servers and clients do not agree on them.
    """
    protocol, separator, rest = url.partition("://")
    if not separator or "::" in url or "\\" in url or not _is_plain(url):
        return None
    web = protocol in ("http", "https")
    # Where there is no host, as in memory:///a, the path begins at once.
    host, *path = (rest if web else rest.lstrip("/")).split("/")
    parts = [_SAME_PROTOCOL.get(protocol, protocol), host.lower() if web else host, *path]
    for part in parts[1:]:
        decoded = _decoded(part)
        if decoded in (".", "..") or re.search(r"[/\\]|::", decoded) or not _is_plain(decoded):
            return None
    return parts


def _decoded(text: str) -> str:
    """Without percent-encoding, nor any inside it."""
    while (once := unquote(text)) != text:
        text = once
    return text


def _begins_with(parts: list[str], prefix: list[str]) -> bool:
    """Whether the parts are below the prefix's; ``s3://`` alone is every bucket."""
    while len(prefix) > 1 and not prefix[-1]:
        prefix = prefix[:-1]
    return parts[: len(prefix)] == prefix


def _shown(named: Named) -> str:
    """The field and what it says, on one line, without credentials."""
    text = re.sub(r"(?<=://)[^/@\s]+@", "", named.text)
    shown = text if len(text) <= 200 else f"{text[:200]}…"
    return f"{named.field}: {shown!r}"


def _refused_path(what: str) -> ForbiddenError:
    return ForbiddenError(
        f"{what} is not, or links to what is not, below a folder that requests may read: put it there, or start "
        "the service with its folder in MIXWRIGHT_ALLOWED_PATHS (never read are hidden files and the home folder, "
        "but for inputs and models in it)"
    )


def _refused_url(what: str) -> ForbiddenError:
    return ForbiddenError(
        f"{what} is no URL that requests may read: copy its files here, or start the service with the beginning "
        "of the URL in MIXWRIGHT_ALLOWED_URLS"
    )
