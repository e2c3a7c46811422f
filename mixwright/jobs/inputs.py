"""What a request reads, as one short string that changes when the inputs do.

A request names files and artifacts; the files may be edited and a name may get a newer version. A finished job
answers the same request again only while this string is the same; where it cannot be had, the job runs again,
and finds by itself that there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import fsspec

from mixwright.fingerprint import fingerprint
from mixwright.schemas.references import Kind
from mixwright.schemas.requests import IngestRequest, PilotRequest
from mixwright.store import Store

_MAX_FILES = 10_000
"""With more files than this their state is not looked up while a client waits."""

_READS: dict[str, tuple[Kind, ...]] = {
    "embed": ("corpus",),
    "index": ("corpus", "embeddings"),
    "select": ("corpus", "attributes", "embeddings", "index", "results"),
    "assign": ("corpus", "embeddings", "mixture"),
    "pilot": ("corpus", "embeddings"),
    "datastore": ("corpus",),
    "datastore-add": ("corpus", "datastore"),
    "datastore-delete": ("datastore",),
    "datastore-compact": ("datastore",),
    "near-duplicates": ("corpus", "embeddings"),
    "decontaminate": ("corpus",),
}
"""Kinds of artifact that a kind of request may read. Score, evaluate and scale
requests read folders of models and other files too: not known."""


def inputs_state(store: Store, request: Any) -> str | None:
    """The state of everything the request may read; None where it is not known.

    Of artifacts, the newest version of every name that the job's kind may read counts: more than it does read,
    which costs at most a job that finds its result published.
    """
    if isinstance(request, IngestRequest):
        return _files_state(request.paths)
    if isinstance(request, PilotRequest) and request.evaluator == "command":
        # A program may read anything.
        return None
    kinds = _READS.get(request.kind)
    if kinds is None:
        return None
    versions = {(each.kind, each.name): each.version for kind in kinds for each in store.references(kind)}
    return fingerprint("artifacts", [], {"newest": [[*key, version] for key, version in versions.items()]})


def _files_state(paths: list[str]) -> str | None:
    """Name, size and time of change of every file under ``paths``, as far as their file systems tell."""
    keys: list[str] = []
    for path in paths:
        try:
            filesystem, root = fsspec.core.url_to_fs(path)
            found = list(islice(_files(filesystem, root), _MAX_FILES + 1))
            if not 0 < len(found) <= _MAX_FILES:
                return None
            keys += [f"{file}:{filesystem.ukey(file)}" for file in found]
        except (OSError, ValueError, ImportError, NotImplementedError):
            # The job itself will say what is wrong with the path.
            return None
    return fingerprint("files", sorted(keys), {})


def _files(filesystem: Any, root: str) -> Iterator[str]:
    for found in filesystem.glob(root):
        if filesystem.isfile(found):
            yield found
        for folder, _, names in filesystem.walk(found):
            yield from (f"{folder}/{name}" for name in names)
