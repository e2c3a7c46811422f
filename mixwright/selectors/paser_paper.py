"""PASER's published clustering, dense: the reference that the scalable form is compared with.

Zhang et al., arXiv 2502.12594, section 3.2: A_ij = exp(−‖e_i − e_j‖² / 2σ²) with σ the median distance,
L = I − D⁻¹A, its K smallest eigenvectors V, S = |V Vᵀ|, S ≈ W H by non-negative factorization, label argmax W_i.
"""

from __future__ import annotations

import warnings

import numpy as np

from mixwright.errors import ConfigError, DataError
from mixwright.indexes.protocols import FloatArray
from mixwright.indexes.vectors import ArrayVectors, Vectors, finite_rows
from mixwright.selectors.clustering import Clustering, numbered_by_size
from mixwright.selectors.spectral import Float64Array

LARGEST_PAPER = 4000
"""Documents up to which the dense (n, n) matrices are made."""

_BYTES_PER_PAIR = 40
_FACTOR_ITERATIONS = 200
_TINY = 1e-12


def paper_clustering(vectors: FloatArray | Vectors, *, n_clusters: int = 10, seed: int) -> Clustering:
    """Cluster ``vectors`` (n, d), n ≤ 4,000, by the published formulas; each is its own landmark, in order.

    O(n²) memory. At most ``n_clusters`` come out. Raises ConfigError for more vectors, DataError without any or
    for one that is not finite.
    """
    reader = ArrayVectors(vectors) if isinstance(vectors, np.ndarray) else vectors
    n = len(reader)
    if n == 0:
        raise DataError("there are no vectors to cluster: embed a corpus that is not empty")
    if n_clusters < 1:
        raise ConfigError(f"n_clusters is {n_clusters}: set 1 or more")
    if n > LARGEST_PAPER:
        gigabytes = _BYTES_PER_PAIR * n * n / 1e9
        raise ConfigError(
            f"mode paper takes up to {LARGEST_PAPER:,} documents, there are {n:,}: its dense matrices would take "
            f"{gigabytes:,.1f} GB; use mode landmarks, or a smaller pool"
        )
    points = finite_rows(reader, np.arange(n, dtype=np.int64))
    k = min(n_clusters, n)
    values, eigenvectors = laplacian_eigenvectors(gaussian_affinity(points), k)
    w = factor_absolute_projection(eigenvectors, k, seed)
    memberships = (w + _TINY) / (w + _TINY).sum(axis=1, keepdims=True)
    labels = w.argmax(axis=1)
    clustering = Clustering(
        points, labels, k, memberships=memberships.astype(np.float32), eigenvalues=1 - values, seed=seed
    )
    return numbered_by_size(clustering, labels)


def gaussian_affinity(points: FloatArray) -> Float64Array:
    """exp(−‖e_i − e_j‖² / 2σ²) (n, n), σ the median distance of two different points; ones where that is 0."""
    from scipy.spatial.distance import pdist, squareform

    squared = pdist(points.astype(np.float64), "sqeuclidean")
    sigma_squared = float(np.median(np.sqrt(squared))) ** 2 if len(squared) else 0.0
    if sigma_squared == 0.0:
        return np.ones((len(points), len(points)))
    affinity: Float64Array = np.exp(-squareform(squared) / (2 * sigma_squared))
    return affinity


def laplacian_eigenvectors(affinity: Float64Array, k: int) -> tuple[Float64Array, Float64Array]:
    """The k smallest eigenvalues (k,), rising, of I − D⁻¹A (n, n), and its eigenvectors (n, k) of unit length."""
    from scipy.linalg import eigh

    n = len(affinity)
    scale = 1 / np.sqrt(affinity.sum(axis=1))
    # D^-½ A D^-½ is symmetric and has the eigenvalues of D⁻¹A; D^-½ takes its eigenvectors to those of D⁻¹A.
    values, vectors = eigh(scale[:, None] * affinity * scale, subset_by_index=[n - k, n - 1])
    vectors = scale[:, None] * vectors[:, ::-1]
    return 1 - values[::-1], vectors / np.linalg.norm(vectors, axis=0)


def factor_absolute_projection(eigenvectors: Float64Array, k: int, seed: int) -> Float64Array:
    """W (n, k) of |V Vᵀ| ≈ W H, for V (n, k)."""
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # The last bits of the norm do not change which entry of a row is the largest.
        warnings.simplefilter("ignore", ConvergenceWarning)
        factorization = NMF(k, init="nndsvda", random_state=seed % 2**32, max_iter=_FACTOR_ITERATIONS)
        w: Float64Array = factorization.fit_transform(np.abs(eigenvectors @ eigenvectors.T))
    return w
