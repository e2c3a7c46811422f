"""Reading embeddings: vectors aligned row by row with a corpus."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixwright.corpora import Corpus
from mixwright.errors import AlignmentError, DataError
from mixwright.indexes.protocols import FloatArray, IdArray
from mixwright.indexes.vectors import StackedVectors
from mixwright.schemas.manifests import EmbeddingsManifest
from mixwright.store import Store


class Embeddings:
    """Published embeddings: ``manifest`` and the vectors behind it, opened by memory map."""

    def __init__(self, manifest: EmbeddingsManifest, directory: Path) -> None:
        self.manifest = manifest
        self.directory = directory

    @classmethod
    def open(cls, store: Store, reference: str, corpus: Corpus | None = None) -> Embeddings:
        """Open embeddings by reference, and check them against ``corpus`` if one is given.

        Raises NotFoundError, and AlignmentError if they are not of that corpus.
        """
        manifest = store.manifest(reference, "embeddings")
        if not isinstance(manifest, EmbeddingsManifest):
            raise DataError(f"{reference} is not embeddings: name embeddings")
        embeddings = cls(manifest, store.directory(manifest))
        if corpus is not None:
            embeddings.check_aligned(corpus)
        return embeddings

    def __len__(self) -> int:
        return self.manifest.n_rows

    @property
    def dim(self) -> int:
        """Coordinates a vector."""
        return self.manifest.dim

    def check_aligned(self, corpus: Corpus) -> None:
        """Raise AlignmentError unless row i of these vectors is row i of ``corpus``."""
        recorded = [each.fingerprint for each in self.manifest.inputs if each.kind == "corpus"]
        if recorded != [corpus.manifest.fingerprint] or len(self) != len(corpus):
            raise AlignmentError(
                f"embeddings {self.manifest.ref} ({len(self)} rows of {self.manifest.corpus}) are not of corpus "
                f"{corpus.manifest.ref} ({len(corpus)} rows): embed that corpus"
            )

    @cached_property
    def shards(self) -> list[npt.NDArray[Any]]:
        """The shards in row order, each (rows, dim) in the stored dtype, memory-mapped and read-only.

        Raises DataError naming a file that is missing or damaged.
        """
        return [self._open(entry.path, entry.n_rows) for entry in self.manifest.files]

    def matrix(self) -> FloatArray:
        """All vectors in memory: (n, dim), float32."""
        return self.rows(np.arange(len(self), dtype=np.int64))

    def rows(self, rows: IdArray) -> FloatArray:
        """Vectors (n, dim), float32, of the given row numbers (n,), in any order, repeats allowed.

        Raises DataError for a row outside of [0, len(self)).
        """
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise DataError(f"a row outside of {self.manifest.ref}: it has rows 0 to {len(self) - 1}")
        return self._stacked.rows(rows)

    @cached_property
    def _stacked(self) -> StackedVectors:
        return StackedVectors(self.shards, self.dim)

    def _open(self, relative: str, n_rows: int | None) -> npt.NDArray[Any]:
        try:
            shard: npt.NDArray[Any] = np.load(self.directory / relative, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"embeddings {self.manifest.ref}: {relative} is missing or damaged: embed again"
            ) from error
        if shard.shape != (n_rows, self.dim) or shard.dtype != self.manifest.dtype:
            raise DataError(
                f"embeddings {self.manifest.ref}: {relative} is {shard.shape} {shard.dtype}, the manifest says "
                f"({n_rows}, {self.dim}) {self.manifest.dtype}: restore the file or embed again"
            )
        return shard
