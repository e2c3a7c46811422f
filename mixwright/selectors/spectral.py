"""From landmarks to clusters: graph of neighbours, eigenvectors, symmetric non-negative factorization.

Pure functions. What is dense is (m, K) or smaller: O(nnz K + m K²) time a step for m landmarks and K clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.indexes.hits import leave_out
from mixwright.indexes.kmeans import kmeans
from mixwright.indexes.protocols import FloatArray
from mixwright.indexes.recall import brute_force
from mixwright.indexes.vectors import ArrayVectors

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

LEAST_WEIGHT = 1e-3
"""Weight of an edge that joins pieces of the graph whose landmarks have no positive cosine."""

_DENSE = 256
"""Up to this many landmarks the eigenvectors come from LAPACK."""

_AT_ONCE = 512
_EIGEN_TOLERANCE = 1e-6
_START_ITERATIONS, _START_RESTARTS = 25, 10
_START_OFFSET = 0.2
_FACTOR_ITERATIONS, _FACTOR_TOLERANCE = 200, 1e-5
_TINY = 1e-12


class Factors(NamedTuple):
    """``h`` (m, K) with M ≈ H Hᵀ; ``residual``: the last step's change of H, relative to H."""

    h: Float64Array
    residual: float


def neighbour_graph(landmarks: FloatArray, neighbours: int) -> csr_array:
    """A = (W + Wᵀ) / 2, sparse and connected, of the ``neighbours`` nearest by cosine of each of m ≥ 2 landmarks.

    W has the cosines, negative ones as 0, and no diagonal. Where A falls into pieces, each landmark outside of the
    largest gets an edge to its nearest one in another piece, until A is connected: eigenvalue 1 would otherwise
    come once a piece, and the Lanczos method finds one eigenvector of several equal eigenvalues.
    """
    m = len(landmarks)
    k = min(neighbours, m - 1)
    hits = leave_out(brute_force(ArrayVectors(landmarks), landmarks, k + 1), np.arange(m))
    graph = _symmetric(np.repeat(np.arange(m), k), hits.ids.ravel(), np.maximum(hits.scores.ravel(), 0), m)
    while (joined := _join_pieces(graph, landmarks)) is not None:
        graph = joined
    return graph


def _join_pieces(graph: csr_array, landmarks: FloatArray) -> csr_array | None:
    """The graph with edges from all smaller pieces to their neighbours; None if it is connected."""
    from scipy.sparse.csgraph import connected_components

    n_pieces, piece = connected_components(graph, directed=False)
    if n_pieces == 1:
        return None
    rows = np.flatnonzero(piece != np.bincount(piece).argmax())
    nearest = np.empty(len(rows), dtype=np.int64)
    weights = np.empty(len(rows))
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        cosines = landmarks[part] @ landmarks.T
        cosines[piece[part][:, None] == piece[None, :]] = -np.inf
        nearest[start : start + _AT_ONCE] = cosines.argmax(axis=1)
        weights[start : start + _AT_ONCE] = np.maximum(cosines.max(axis=1), LEAST_WEIGHT)
    return graph + _symmetric(rows, nearest, weights, len(landmarks))


def _symmetric(rows: Int64Array, columns: Int64Array, weights: npt.NDArray[np.floating], m: int) -> csr_array:
    from scipy.sparse import csr_array

    directed = csr_array((weights.astype(np.float64), (rows, columns)), shape=(m, m))
    directed.eliminate_zeros()
    return (directed + directed.T).tocsr() / 2


def normalised(graph: csr_array, copies: Float64Array) -> csr_array:
    """M = D^-½ A D^-½ of a graph (m, m) without isolated nodes; its eigenvalues are in [−1, 1].

    Node i stands for ``copies`` (m,) ≥ 1 equal documents, joined to each other by edges of weight 1. M is that of
    the graph of all of them, on the vectors that do not tell copies apart: √(c_i c_j) A_ij / √(d_i d_j), and
    (c_i − 1) / d_i on the diagonal, for d_i = Σ_j c_j A_ij + c_i − 1.
    """
    from scipy.sparse import diags_array

    degrees = graph @ copies + copies - 1
    scale = diags_array(np.sqrt(copies / degrees))
    return (scale @ graph @ scale + diags_array((copies - 1) / degrees)).tocsr()


def leading_eigenvectors(matrix: csr_array, k: int, seed: int) -> tuple[Float64Array, Float64Array]:
    """The k largest eigenvalues (k,), falling, of a symmetric matrix (m, m), k ≤ m, and eigenvectors (m, k).

    The largest coordinate of each eigenvector is positive. The start of the Lanczos iterations is drawn by
    ``seed``.
    """
    from scipy.sparse.linalg import eigsh

    m = matrix.shape[0]
    if m <= _DENSE or k > m // 2:
        values, vectors = np.linalg.eigh(matrix.toarray())
    else:
        start = np.random.default_rng(seed).standard_normal(m)
        values, vectors = eigsh(matrix, k, which="LA", v0=start, tol=_EIGEN_TOLERANCE)
    order = np.argsort(-values, kind="stable")[:k]
    vectors = vectors[:, order]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(k)]
    return values[order], vectors * np.where(largest < 0, -1.0, 1.0)


def diffusion_coordinates(values: Float64Array, vectors: Float64Array) -> FloatArray:
    """Diffusion coordinates λψ (Coifman and Lafon, 2006, t = 1) of each landmark (m, k), scaled to unit length.

    The scaling makes ψ = D^-½ u and the eigenvectors u of M the same.
    """
    coordinates = vectors * np.maximum(values, 0)
    lengths = np.linalg.norm(coordinates, axis=1, keepdims=True)
    unit: FloatArray = (coordinates / np.maximum(lengths, _TINY)).astype(np.float32)
    return unit


def start_labels(
    coordinates: FloatArray, copies: Float64Array, k: int, seed: int, rows: Int64Array | None = None
) -> Int64Array:
    """Labels (m,) of k-means over the coordinates (m, ·), or over some ``rows`` of them that all others follow.

    Each counts as often as it has ``copies`` (m,).
    """
    trained = np.arange(len(coordinates)) if rows is None else rows
    centroids = kmeans(
        coordinates[trained],
        k,
        seed=seed,
        iterations=_START_ITERATIONS,
        restarts=_START_RESTARTS,
        weights=copies[trained],
    )
    labels: Int64Array = (coordinates @ centroids.T).argmax(axis=1)
    return labels


def factorize(
    matrix: csr_array, copies: Float64Array, labels: Int64Array, k: int, iterations: int = _FACTOR_ITERATIONS
) -> Factors:
    """H ≥ 0 (m, k) that makes ‖M − H Hᵀ‖ small, from hard labels (m,) of nodes with ``copies`` (m,).

    Each step is H ← H ∘ (½ + ½ M H / (H HᵀH)) (Ding, He and Simon, SDM 2005), under which the norm never grows.
    Stops after ``iterations``, or where H changes no more.
    """
    h = (np.eye(k)[labels] + _START_OFFSET) * np.sqrt(copies)[:, None]
    h *= np.sqrt(max(float(np.sum(h * (matrix @ h))), _TINY)) / np.linalg.norm(h.T @ h)
    residual = np.inf
    for _ in range(iterations):
        new = h * (0.5 + 0.5 * (matrix @ h) / np.maximum(h @ (h.T @ h), _TINY))
        residual = float(np.linalg.norm(new - h) / np.linalg.norm(h))
        h = new
        if residual < _FACTOR_TOLERANCE:
            break
    return Factors(h, residual)
