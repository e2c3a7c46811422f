"""The Hugging Face hub and its local cache, asked so that a machine without a network has its answer at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixwright.errors import NotFoundError


def cached_file(name: str, file: str) -> Path | None:
    """A file of a hub repository in the local cache; None if it is not there or ``name`` is no repository's."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def newest_revision(name: str) -> str:
    """The newest commit of a repository; raises NotFoundError if there is none or the hub cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The bases of the hub's error are those of its HTTP library (requests, httpx, …), whichever it uses: a
    # connection that fails is one of theirs.
    failures: Any = (*HfHubHTTPError.__bases__, HFValidationError, OSError)
    try:
        revision = HfApi().model_info(name, timeout=5).sha
    except failures as error:
        raise NotFoundError(f"{name!r} is not on a reachable model hub: check the name") from error
    if not revision:
        raise NotFoundError(f"{name!r} has no revision on the hub: check the name")
    return revision


def fetched_file(name: str, file: str) -> Path:
    """A file of a hub repository, from the cache or downloaded; raises NotFoundError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if found := cached_file(name, file):
        return found
    # A download tries an unreachable hub again for most of a minute: see first whether it is there.
    revision = newest_revision(name)
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except EntryNotFoundError as error:
        raise NotFoundError(f"{name!r} has no {file} on the hub: check the name") from error
