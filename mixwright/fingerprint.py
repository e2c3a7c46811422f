"""Fingerprints: what makes two artifacts the same.

A fingerprint is the SHA-256 of the canonical JSON (RFC 8785 for the values used here: sorted keys, no spaces,
UTF-8) of what identifies an artifact: its kind, the fingerprints of its inputs and its parameters. Paths,
worker counts and batch sizes are resources, and never part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

_BLOCK = 1 << 20


def fingerprint(kind: str, inputs: Iterable[str], parameters: dict[str, Any]) -> str:
    """The 64-digit fingerprint of an artifact.

    ``inputs`` are the inputs' fingerprints, in an order that matters; ``parameters`` is any JSON value.
    """
    identity = {"kind": kind, "inputs": list(inputs), "parameters": parameters}
    return hashlib.sha256(msgspec.json.encode(identity, order="sorted")).hexdigest()


def stream_sha256(stream: BinaryIO) -> tuple[str, int]:
    """The SHA-256 (hex) and the length in bytes of what is left in a binary stream, read in 1 MiB blocks."""
    digest, size = hashlib.sha256(), 0
    while block := stream.read(_BLOCK):
        digest.update(block)
        size += len(block)
    return digest.hexdigest(), size


def file_sha256(path: Path) -> str:
    """The SHA-256 (hex) of a local file."""
    with path.open("rb") as stream:
        return stream_sha256(stream)[0]


def folder_sha256(folder: Path) -> str:
    """SHA-256 over names and contents of a folder's files; hidden files (.cache, .git) do not count."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            digest.update(f"{relative.as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()
