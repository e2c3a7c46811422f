"""Semantic clusters of embedded documents: landmarks, a graph of them, symmetric NMF, a vote of the nearest.

The scalable form of PASER's semantic-structural clustering (Zhang et al., arXiv 2502.12594, section 3.2; the
published form is in ``paser_paper``). O(n m d) time and O(m + n) memory above the vectors, for m landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError, DataError
from mixwright.indexes.faiss_import import Device, import_faiss
from mixwright.indexes.kmeans import kmeans
from mixwright.indexes.protocols import FloatArray
from mixwright.indexes.searching import Searcher
from mixwright.indexes.vectors import ArrayVectors, Vectors, finite_rows
from mixwright.selectors.spectral import (
    Float64Array,
    diffusion_coordinates,
    factorize,
    leading_eigenvectors,
    neighbour_graph,
    normalised,
    start_labels,
)

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]

LEAST_LANDMARKS, MOST_LANDMARKS = 2000, 5000
_DOCUMENTS_PER_LANDMARK = 8
_TRAINED_PER_LANDMARK = 8
_LANDMARK_ITERATIONS = 2

_ISOLATED = 0.9
"""An eigenvalue of the graph above this stands for a piece that hardly any edge leaves."""

_LEAST_PER_CLUSTER, _COARSEST = 20, 250

_MOST_CLUSTERS, _CANDIDATES, _STABILITY_SEEDS = 30, 5, 3
_SUBSAMPLE = 0.8
_SAME = 2e-5
"""Squared distance below which two landmarks are the same: unit vectors with a cosine of 0.99999."""

_EQUAL = 0.9999
"""Cosine from which on a document is a landmark's own place; k-means may mix another document into many copies."""

_BLOCK_ROWS, _COMPARED_AT_ONCE = 4096, 512
_COUNTED = 16_384


@dataclass(frozen=True)
class Clustering:
    """Clusters as landmarks with labels; any vector is assigned by the landmarks nearest to it.

    ``landmarks`` (m, d) float32 of unit length; ``landmark_labels`` (m,) in [0, n_clusters), clusters numbered by
    falling size; ``votes``: how many landmarks vote on a vector. Of the fit: ``memberships`` (m, n_clusters), rows
    that sum to 1; ``eigenvalues`` of the landmark graph, falling; ``candidates``, under ``auto`` one dict for each
    number of clusters that was tried (``k``, ``eigengap``, ``stability``, ``chosen``); ``residual``, the relative
    change of the last step of the factorization; ``seed`` and ``neighbours`` as given.
    """

    landmarks: FloatArray
    landmark_labels: Int64Array
    n_clusters: int
    votes: int = 5
    memberships: FloatArray = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))
    eigenvalues: Float64Array = field(default_factory=lambda: np.empty(0))
    candidates: tuple[dict[str, Any], ...] = ()
    residual: float = 0.0
    seed: int = 0
    neighbours: int = 0

    def nearest_landmarks(self, vectors: FloatArray) -> tuple[Int32Array, FloatArray]:
        """Ids and cosines (n, min(votes, m)) of the landmarks nearest to each of ``vectors`` (n, d), best first.

        A row's answer does not depend on the rows beside it, nor on the number of threads; equal cosines come by
        rising id. Raises DataError for another d or a coordinate that is not finite.
        """
        flat = import_faiss().IndexFlatIP(int(self.landmarks.shape[1]))
        flat.add(np.ascontiguousarray(self.landmarks, dtype=np.float32))
        searcher, k = Searcher(flat), min(self.votes, len(self.landmarks))
        ids = np.empty((len(vectors), k), dtype=np.int32)
        similarities = np.empty((len(vectors), k), dtype=np.float32)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            ids[block], similarities[block] = searcher.search(vectors[block], k, {})
        return ids, similarities

    def vote(self, ids: Int32Array, similarities: FloatArray) -> Int64Array:
        """Labels (n,) that most of the nearest landmarks (n, k) have; of equal shares, that of the nearest."""
        labels = self.landmark_labels[ids]
        columns = range(ids.shape[1])
        agreeing = np.stack([(labels == labels[:, [column]]).sum(axis=1) for column in columns], axis=1)
        winners: Int64Array = np.take_along_axis(labels, agreeing.argmax(axis=1)[:, None], axis=1)[:, 0]
        return winners

    def assign(self, vectors: FloatArray) -> Int64Array:
        """Labels (n,) of ``vectors`` (n, d), float32 of unit length: those that were fitted on, or later ones."""
        return self.vote(*self.nearest_landmarks(vectors))


class _Landmarks(NamedTuple):
    """Landmarks (m, d), and ``copies`` (m,): documents that each equals, by those a usual one stands for."""

    places: FloatArray
    copies: Float64Array


class _Spectrum(NamedTuple):
    landmarks: _Landmarks
    matrix: Any
    values: Float64Array
    vectors: Float64Array


def fit_clustering(
    vectors: FloatArray | Vectors,
    *,
    n_clusters: int | Literal["auto"],
    seed: int,
    neighbours: int = 30,
    votes: int = 5,
    device: Device = "cpu",
) -> Clustering:
    """Cluster ``vectors`` (n, d), float32 of unit length.

    At most ``n_clusters`` come out: fewer where there are fewer different vectors. At most 40,000 rows are read,
    whatever n is. The result depends on the order of the rows only through which of them are drawn for that, so
    rows sorted by an id give the same clusters whatever order they came in. Raises ConfigError for a parameter
    that is out of range, DataError without vectors or for one that is not finite.
    """
    reader = ArrayVectors(vectors) if isinstance(vectors, np.ndarray) else vectors
    _check(len(reader), n_clusters, neighbours, votes)
    sample = _sample(reader, seed)
    landmarks = _landmarks(sample, len(reader), seed, device)
    with _one_thread():
        clustering = _cluster(landmarks, n_clusters, seed, neighbours)
    clustering = replace(clustering, votes=votes, seed=seed, neighbours=neighbours)
    counted = clustering.assign(sample[:: -(-len(sample) // _COUNTED)])
    return numbered_by_size(clustering, counted)


def _check(n: int, n_clusters: int | Literal["auto"], neighbours: int, votes: int) -> None:
    if n == 0:
        raise DataError("there are no vectors to cluster: embed a corpus that is not empty")
    for name, value in [("n_clusters", n_clusters), ("neighbours", neighbours), ("votes", votes)]:
        if value != "auto" and value < 1:
            raise ConfigError(f"{name} is {value}: set 1 or more")


def _one_thread() -> Any:
    """Linear algebra on a few thousand rows gains nothing from threads, and rounds by their number.

    OpenMP's count too: which libraries share one depends on which of them the process has loaded first.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1)


def _sample(vectors: Vectors, seed: int) -> FloatArray:
    """The rows that landmarks are trained on."""
    n = len(vectors)
    wanted = min(n, _TRAINED_PER_LANDMARK * MOST_LANDMARKS)
    rows = np.random.default_rng(seed).choice(n, size=wanted, replace=False, shuffle=False)
    return finite_rows(vectors, np.sort(rows))


def _landmarks(sample: FloatArray, n: int, seed: int, device: Device) -> _Landmarks:
    """Landmarks of n documents: each different one, or centroids of k-means."""
    if n <= LEAST_LANDMARKS:
        places, counts = np.unique(sample, axis=0, return_counts=True)
        return _distinct(places, counts.astype(np.float64))
    m = min(max(n // _DOCUMENTS_PER_LANDMARK, LEAST_LANDMARKS), MOST_LANDMARKS)
    centroids = kmeans(sample, m, seed=seed, iterations=_LANDMARK_ITERATIONS, device=device)
    # Many documents may share one instruction; k-means then has centroids to spare, and puts them on one spot.
    places = _distinct(centroids, np.ones(m)).places
    counted = sample[:: -(-len(sample) // _COUNTED)]
    nearest, similarities = Clustering(places, np.zeros(len(places), np.int64), 1, votes=1).nearest_landmarks(
        counted
    )
    equal = np.bincount(nearest[similarities >= _EQUAL], minlength=len(places))
    return _Landmarks(places, np.maximum(equal * len(places) / len(counted), 1.0))


def _distinct(places: FloatArray, copies: Float64Array) -> _Landmarks:
    """The places (m, d) without those that an earlier one equals, to encoders' precision; copies are added up."""
    lengths = (places * places).sum(axis=1)
    first = np.arange(len(places))
    for start in range(0, len(places), _COMPARED_AT_ONCE):
        stop = min(start + _COMPARED_AT_ONCE, len(places))
        distances = lengths[start:stop, None] + lengths[:stop] - 2 * places[start:stop] @ places[:stop].T
        earlier = (distances < _SAME) & np.tri(stop - start, stop, start - 1, dtype=np.bool_)
        for row in np.flatnonzero(earlier.any(axis=1)):
            first[start + row] = first[earlier[row].argmax()]
    kept = first == np.arange(len(places))
    together = np.bincount(first, weights=copies, minlength=len(places))[kept]
    # Texts without a word have zeros for a vector: that they do makes them no cluster.
    return _Landmarks(places[kept], np.where(lengths[kept] > 0, together, 1.0))


def _cluster(landmarks: _Landmarks, n_clusters: int | Literal["auto"], seed: int, neighbours: int) -> Clustering:
    m = len(landmarks.places)
    most = min(_MOST_CLUSTERS, m // 2) if n_clusters == "auto" else n_clusters
    if m == 1 or most >= m:
        return Clustering(landmarks.places, np.arange(m), m, memberships=np.eye(m, dtype=np.float32))
    spectrum = _spectrum(landmarks, most, seed, neighbours)
    candidates = _candidates(spectrum, most, seed) if n_clusters == "auto" else ()
    k = next((each["k"] for each in candidates if each["chosen"]), 1 if n_clusters == "auto" else most)
    coordinates = diffusion_coordinates(spectrum.values[:k], spectrum.vectors[:, :k])
    copies = spectrum.landmarks.copies
    h, residual = factorize(spectrum.matrix, copies, start_labels(coordinates, copies, k, seed), k)
    memberships = (h / h.sum(axis=1, keepdims=True)).astype(np.float32)
    return Clustering(
        spectrum.landmarks.places,
        h.argmax(axis=1),
        k,
        memberships=memberships,
        eigenvalues=spectrum.values,
        candidates=candidates,
        residual=residual,
    )


def _spectrum(landmarks: _Landmarks, most: int, seed: int, neighbours: int) -> _Spectrum:
    """Graph and eigenvectors of the landmarks, or of fewer and coarser ones.

    Where the graph has more than ``most`` pieces that hardly any edge leaves (many texts of few templates), its
    leading eigenvectors say nothing of what the pieces have in common, and a few of them would be clusters while
    the rest is one. Then the landmarks are halved by k-means, until the neighbours of a landmark reach out of its
    piece.
    """
    while True:
        matrix = normalised(neighbour_graph(landmarks.places, neighbours), landmarks.copies)
        values, vectors = leading_eigenvectors(matrix, most + 1, seed)
        half = len(landmarks.places) // 2
        if values[most] < _ISOLATED or half < max(_COARSEST, _LEAST_PER_CLUSTER * most):
            return _Spectrum(landmarks, matrix, values, vectors)
        landmarks = _halved(landmarks, half, seed)


def _halved(landmarks: _Landmarks, half: int, seed: int) -> _Landmarks:
    """``half`` as many landmarks, each of which stands for twice as many documents."""
    places, copies = landmarks
    coarse = kmeans(places, half, seed=seed, iterations=_LANDMARK_ITERATIONS, weights=copies)
    nearest = (places @ coarse.T).argmax(axis=1)
    return _distinct(coarse, 1 + np.bincount(nearest, weights=copies - 1, minlength=half) / 2)


def _candidates(spectrum: _Spectrum, most: int, seed: int) -> tuple[dict[str, Any], ...]:
    """The numbers of clusters, 2 to ``most``, with the largest eigengaps, and how stable each is."""
    gaps = spectrum.values[1:most] - spectrum.values[2 : most + 1]
    tried = np.sort(np.argsort(-gaps, kind="stable")[:_CANDIDATES]) + 2
    found = [(int(k), float(gaps[k - 2]), _stability(spectrum, int(k), seed)) for k in tried]
    chosen = max(found, key=lambda each: each[1] * each[2])[0] if found else 1
    return tuple(
        {"k": k, "eigengap": gap, "stability": stability, "chosen": k == chosen} for k, gap, stability in found
    )


def _stability(spectrum: _Spectrum, k: int, seed: int) -> float:
    """Mean adjusted Rand index between the labels of the landmarks from starts on different subsamples."""
    from sklearn.metrics import adjusted_rand_score

    coordinates = diffusion_coordinates(spectrum.values[:k], spectrum.vectors[:, :k])
    m, labellings, copies = len(coordinates), [], spectrum.landmarks.copies
    for number in range(_STABILITY_SEEDS):
        draw = np.random.default_rng([seed, number])
        rows = draw.choice(m, size=max(int(_SUBSAMPLE * m), k), replace=False)
        start = start_labels(coordinates, copies, k, seed + number, rows)
        labellings.append(factorize(spectrum.matrix, copies, start, k).h.argmax(axis=1))
    return float(np.mean([adjusted_rand_score(a, b) for a, b in combinations(labellings, 2)]))


def numbered_by_size(clustering: Clustering, counted: Int64Array) -> Clustering:
    """The same clusters, without empty ones, numbered by falling share of the labels ``counted``."""
    k = clustering.n_clusters
    landmarks = np.bincount(clustering.landmark_labels, minlength=k)
    order = np.lexsort((-landmarks, -np.bincount(counted, minlength=k)))
    order = order[landmarks[order] > 0]
    number = np.empty(k, dtype=np.int64)
    number[order] = np.arange(len(order))
    memberships = clustering.memberships[:, order]
    return replace(
        clustering,
        landmark_labels=number[clustering.landmark_labels],
        n_clusters=len(order),
        memberships=memberships / memberships.sum(axis=1, keepdims=True),
    )
