"""Reading attributes: extra columns of a corpus, aligned with it row by row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from mixwright.corpora import Corpus
from mixwright.errors import AlignmentError, DataError
from mixwright.schemas.manifests import AttributesManifest
from mixwright.store import Store


class Attributes:
    """Published attributes: ``manifest`` and the columns behind it."""

    def __init__(self, manifest: AttributesManifest, directory: Path) -> None:
        self.manifest = manifest
        self.directory = directory

    @classmethod
    def open(cls, store: Store, reference: str, corpus: Corpus | None = None) -> Attributes:
        """Open attributes by reference, and check them against ``corpus`` if one is given.

        Raises NotFoundError, and AlignmentError if they are not of that corpus.
        """
        manifest = store.manifest(reference, "attributes")
        if not isinstance(manifest, AttributesManifest):
            raise DataError(f"{reference} is not attributes: name attributes")
        attributes = cls(manifest, store.directory(manifest))
        if corpus is not None:
            attributes.check_aligned(corpus)
        return attributes

    @classmethod
    def newest(cls, store: Store, corpus: Corpus, columns: Sequence[str]) -> dict[str, Attributes]:
        """Where each of these columns is: the newest attributes of the corpus that have it, if any do."""
        found: dict[str, Attributes] = {}
        for manifest in _manifests_of(store, corpus):
            here = cls(manifest, store.directory(manifest))
            found |= {each.name: here for each in manifest.columns if each.name in columns}
        return found

    @classmethod
    def names(cls, store: Store, corpus: Corpus) -> list[str]:
        """The names of all columns that jobs made of the corpus, sorted."""
        return sorted({each.name for manifest in _manifests_of(store, corpus) for each in manifest.columns})

    def check_aligned(self, corpus: Corpus) -> None:
        """Raise AlignmentError unless row i of these columns is row i of ``corpus``."""
        if _corpus(self.manifest) != corpus.manifest.fingerprint or self.manifest.n_rows != len(corpus):
            raise AlignmentError(
                f"attributes {self.manifest.ref} ({self.manifest.n_rows} rows of {self.manifest.corpus}) are not "
                f"of corpus {corpus.manifest.ref} ({len(corpus)} rows): make them for that corpus"
            )

    def rows(self, offset: int, length: int) -> pa.Table:
        """Rows ``offset … offset + length - 1`` in row order (fewer at the end)."""
        return self.scan().slice(offset, length).collect().to_arrow()

    def scan(self) -> pl.LazyFrame:
        """All rows in row order, lazily."""
        return pl.scan_parquet([self.directory / entry.path for entry in self.manifest.shards])


def _manifests_of(store: Store, corpus: Corpus) -> list[AttributesManifest]:
    """The manifests of the attributes of a corpus, oldest first."""
    found = [
        each
        for each in store.manifests("attributes")
        if isinstance(each, AttributesManifest)
        and _corpus(each) == corpus.manifest.fingerprint
        and each.n_rows == len(corpus)
    ]
    return sorted(found, key=lambda each: each.created_at)


def _corpus(manifest: AttributesManifest) -> str | None:
    """The fingerprint of the corpus that attributes are of: of those they were made from, the first."""
    return next((each.fingerprint for each in manifest.inputs if each.kind == "corpus"), None)
