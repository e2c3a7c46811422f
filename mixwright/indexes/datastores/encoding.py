"""Queries to vectors: by the encoder that embedded the passages, loaded at the first query."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from mixwright.errors import ConfigError
from mixwright.indexes.encoders import LoadedEncoder, load_encoder
from mixwright.indexes.protocols import FloatArray
from mixwright.schemas.manifests import DatastoreManifest
from mixwright.templates import fill_template


class QueryEncoder:
    """The encoder of a datastore; one thread at a time uses it."""

    def __init__(self, manifest: DatastoreManifest, device: str = "auto") -> None:
        self._manifest = manifest
        self._device = device
        self._lock = threading.Lock()
        self._encoder: LoadedEncoder | None = None

    def encode(self, queries: Sequence[str]) -> tuple[FloatArray, list[int]]:
        """Vectors (q, dim) of the queries, and the numbers of those that are longer than the encoder reads.

        Raises ConfigError if the encoder on this machine has other files than the one that made the store.
        """
        texts = [fill_template(self._manifest.query_template, {"text": query}) or "" for query in queries]
        with self._lock:
            encoder = self._load()
            vectors = np.empty((len(texts), encoder.dim), dtype=np.float32)
            for batch in encoder.encode_batches(texts):
                vectors[batch.rows] = batch.vectors
            return vectors, np.flatnonzero(encoder.prepare(texts).truncated).tolist()

    def _load(self) -> LoadedEncoder:
        if self._encoder is None:
            encoder = load_encoder(self._manifest.encoder, self._device)
            if encoder.revision != self._manifest.encoder_revision:
                raise ConfigError(
                    f"encoder {self._manifest.encoder} has other files than when {self._manifest.ref} was "
                    "built: restore them, or build the store again"
                )
            self._encoder = encoder
        return self._encoder
