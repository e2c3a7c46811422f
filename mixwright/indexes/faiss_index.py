"""A published FAISS index: opened by memory map, searched from any number of threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixwright.errors import ConfigError, DataError
from mixwright.indexes.faiss_import import Device, import_faiss, resolve_device
from mixwright.indexes.kinds import Settings
from mixwright.indexes.protocols import FloatArray, Hits
from mixwright.indexes.searching import Searcher
from mixwright.schemas.manifests import IndexManifest
from mixwright.store import Store

INDEX_FILE = "index.faiss"


class FaissIndex:
    """A published index: ``manifest`` and the search behind it; hits' ids are row numbers of the corpus."""

    def __init__(self, manifest: IndexManifest, searcher: Searcher) -> None:
        self.manifest = manifest
        self._searcher = searcher

    @classmethod
    def open(cls, store: Store, reference: str, *, device: Device = "cpu") -> FaissIndex:
        """Open an index by reference. The file is mapped: pages are read when a search first touches them.

        With a GPU, a flat or ivf index is copied there. Raises NotFoundError, DataError for a damaged file,
        ConfigError for device ``gpu`` without one, MissingExtraError without FAISS.
        """
        manifest = store.manifest(reference, "index")
        if not isinstance(manifest, IndexManifest):
            raise DataError(f"{reference} is not an index: name an index")
        index = _read(store.directory(manifest) / INDEX_FILE, manifest)
        return cls(manifest, Searcher(index, gpu=resolve_device(device) == "gpu"))

    def __len__(self) -> int:
        return self.manifest.n_rows

    @property
    def dim(self) -> int:
        """Coordinates a vector."""
        return self.manifest.dim

    def search(self, queries: FloatArray, k: int, **overrides: float) -> Hits:
        """The k rows nearest to each query: ``queries`` (q, dim) → ids (q, k), scores (q, k).

        ``overrides`` replace the tuned search parameters (``manifest.search_parameters``) for this call alone.
        The tuned ones meet the recall target for k = 10. Raises ConfigError for a parameter that the kind does
        not have, DataError for queries of another form.
        """
        return self._searcher.search(queries, k, self._settings(overrides))

    def _settings(self, overrides: dict[str, float]) -> Settings:
        tuned: Settings = dict(self.manifest.search_parameters)
        for name, value in overrides.items():
            if name not in tuned:
                known = ", ".join(tuned) or "none"
                raise ConfigError(
                    f"an index of kind {self.manifest.index_kind} has no search parameter {name}: it has {known}"
                )
            if value < 1:
                raise ConfigError(f"search parameter {name} is {value}: give at least 1")
        return tuned | overrides


def write_index(index: Any, path: Path) -> None:
    """Write a FAISS index as one file."""
    import_faiss().write_index(index, str(path))


def _read(path: Path, manifest: IndexManifest) -> Any:
    faiss = import_faiss()
    try:
        # The mapping of every part of the file; IO_FLAG_MMAP maps inverted lists only.
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise DataError(f"index {manifest.ref}: {path.name} is missing or damaged: build it again") from error
    if (index.ntotal, index.d) != (manifest.n_rows, manifest.dim):
        raise DataError(
            f"index {manifest.ref}: {path.name} holds {index.ntotal} vectors of {index.d} coordinates, the "
            f"manifest says {manifest.n_rows} of {manifest.dim}: restore the file or build it again"
        )
    return index
