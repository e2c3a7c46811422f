"""k-means with FAISS: centroids that a bounded sample of vectors is near to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError
from mixwright.indexes.faiss_import import Device, import_faiss, resolve_device
from mixwright.indexes.protocols import FloatArray

_LARGEST_SEED = 2**31 - 1


def kmeans(
    vectors: FloatArray,
    k: int,
    *,
    seed: int,
    iterations: int,
    spherical: bool = True,
    restarts: int = 1,
    weights: npt.NDArray[np.floating] | None = None,
    device: Device = "cpu",
) -> FloatArray:
    """Centroids (k, d), float32, of ``vectors`` (n, d) with n ≥ k.

    ``spherical``: rows are of unit length, and so are the centroids; otherwise any vectors, and means of them.
    ``weights`` (n,) say how often each vector counts; default: once. All vectors are trained on: choose the
    sample before. Of several ``restarts`` the best is kept. A spherical centroid is zero only where all
    vectors are. On a CPU the same input and seed give the same bytes whatever the number of threads.
    Raises ConfigError for k outside of [1, n], or a GPU that is not there.
    """
    if not 1 <= k <= len(vectors):
        raise ConfigError(f"k-means of {len(vectors):,} vectors into {k:,}: ask for 1 to {len(vectors):,}")
    found = import_faiss().Kmeans(
        int(vectors.shape[1]),
        k,
        niter=iterations,
        nredo=restarts,
        seed=seed % _LARGEST_SEED,
        spherical=spherical,
        gpu=resolve_device(device) == "gpu",
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors),
    )
    weighed = None if weights is None else np.ascontiguousarray(weights, dtype=np.float32)
    found.train(np.ascontiguousarray(vectors, dtype=np.float32), weights=weighed)
    centroids: FloatArray = found.centroids
    return centroids
