"""Objects under one prefix of a bucket (``s3://bucket/prefix``) or of a folder (``file:///folder``).

What an artifact store needs of them: list, read, write, and create: write unless the key exists, of which any
number of writers at once see one succeed. Credentials, region and endpoint come from where the AWS tools look for
them, and no message shows them. Requests that fail for a moment are repeated by the library, obstore.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from mixwright.errors import UnavailableError, first_line
from mixwright.remote.urls import open_storage

_PART_BYTES = 8 << 20
"""Of a download, and of an upload unless that made more than S3's 10,000 parts."""
_MAX_PARTS = 9_000
_PARTS_AT_ONCE = 4
_READER_BYTES = 64 << 10
_CODE = re.compile(r"<Code>([A-Za-z0-9]+)</Code>")
_STATUS = re.compile(r"status code: (\d{3} [A-Za-z -]+)")


class StoredObject(NamedTuple):
    """One object. ``key`` is relative to the prefix; ``tag`` changes when the object's bytes do."""

    key: str
    n_bytes: int
    modified: datetime
    tag: str


class ObjectStorage:
    """Objects under the prefix of one URL; any number of threads may use it at once.

    Every method raises UnavailableError, in one line, where the storage does not answer or refuses.
    """

    def __init__(self, url: str) -> None:
        """Raises ConfigError for a URL that is none of ours, or without credentials; MissingExtraError."""
        self.url = url.rstrip("/")
        self._opened = open_storage(url)
        self._store = self._opened.store

    def __repr__(self) -> str:
        return f"ObjectStorage({self.url})"

    def list(self, prefix: str) -> list[StoredObject]:
        """All objects whose keys are below ``prefix`` (a folder's name, or several with slashes)."""
        import obstore

        with self._one_line(prefix):
            return [_stored(each) for each in obstore.list(self._store, prefix).collect()]

    def head(self, key: str) -> StoredObject | None:
        """What is known of an object; None if there is none."""
        import obstore

        try:
            with self._one_line(key):
                return _stored(obstore.head(self._store, key))
        except FileNotFoundError:
            return None

    def read(self, key: str) -> bytes:
        """An object's bytes; raises FileNotFoundError."""
        import obstore

        with self._one_line(key):
            return obstore.get(self._store, key).bytes().to_bytes()

    def read_parts(self, key: str, n_bytes: int) -> Iterator[memoryview]:
        """The bytes of an object of that length, in order; raises FileNotFoundError, EOFError if it is shorter."""
        for start in range(0, n_bytes, _PART_BYTES):
            length = min(_PART_BYTES, n_bytes - start)
            part = self.read_range(key, start, length)
            if len(part) != length:
                raise EOFError(key)
            yield part

    def open(self, key: str, n_bytes: int) -> BinaryIO:
        """An object of that length as a file that fetches what is read; a read raises FileNotFoundError."""
        return cast(BinaryIO, io.BufferedReader(_Reader(self, key, n_bytes), _READER_BYTES))

    def read_range(self, key: str, start: int, n_bytes: int) -> memoryview:
        """Some bytes of an object, fewer at its end; raises FileNotFoundError."""
        import obstore

        with self._one_line(key):
            return memoryview(obstore.get_range(self._store, key, start=start, length=n_bytes))

    def write(self, key: str, content: bytes | Path) -> None:
        """Write an object whole or not at all; large files go in parts, several at once."""
        import obstore

        n_bytes = content.stat().st_size if isinstance(content, Path) else len(content)
        part = max(_PART_BYTES, -(-n_bytes // _MAX_PARTS))
        with self._one_line(key):
            obstore.put(self._store, key, content, chunk_size=part, max_concurrency=_PARTS_AT_ONCE)

    def create(self, key: str, content: bytes) -> bool:
        """Write a small object unless there is one of that key; False if there is.

        Also False where the object was written and the answer was lost: read it to know.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            with self._one_line(key):
                obstore.put(self._store, key, content, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are gone already are no error."""
        import obstore

        with self._one_line(f"{len(keys)} objects"):
            obstore.delete(self._store, keys)

    @contextmanager
    def _one_line(self, what: str) -> Iterator[None]:
        """Turn the library's errors, which quote whole responses, into lines without them."""
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            yield
        except AlreadyExistsError:
            raise
        except (FileNotFoundError, BaseError, OSError) as error:
            reason = self._reason(error)
            if reason is None:
                raise FileNotFoundError(f"{self.url}/{what}") from None
            raise UnavailableError(f"{self.url}: {reason}") from None

    def _reason(self, error: Exception) -> str | None:
        """What to tell of an error; None where there is no object of that key, and nothing else is wrong."""
        text = str(error)
        code = match[1] if (match := _CODE.search(text)) else ""
        status = match[1].strip() if (match := _STATUS.search(text)) else ""
        kind = type(error).__name__
        if code == "NoSuchBucket":
            return f"there is no bucket {self._opened.bucket}: create it, or correct MIXWRIGHT_STORE_URL"
        if isinstance(error, FileNotFoundError):
            return None
        if kind in ("PermissionDeniedError", "UnauthenticatedError") or status[:3] in ("401", "403"):
            return (
                f"access refused ({code or status or kind}): check the AWS credentials of this process, and what "
                "they may do in the bucket"
            )
        if "incorrectly configured region" in text or code in (
            "PermanentRedirect",
            "AuthorizationHeaderMalformed",
        ):
            return "the bucket is in another region: set AWS_REGION to it"
        if "error sending request" in text or "timed out" in text:
            return f"{self._opened.answers} does not answer: check AWS_ENDPOINT_URL and the network, and try again"
        shown = " ".join(filter(None, (status, code))) or first_line(error)[:200]
        return f"the storage failed ({shown}): try again in a moment, or look at its own log"


class _Reader(io.RawIOBase):
    """Reads an object from any position on."""

    def __init__(self, storage: ObjectStorage, key: str, n_bytes: int) -> None:
        self._storage = storage
        self._key = key
        self._n_bytes = n_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._n_bytes}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._n_bytes - self._position)
        if length <= 0:
            return 0
        data = self._storage.read_range(self._key, self._position, length)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _stored(meta: Any) -> StoredObject:
    return StoredObject(
        meta["path"], meta["size"], meta["last_modified"], meta["e_tag"] or str(meta["last_modified"])
    )
