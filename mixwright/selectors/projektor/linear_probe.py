"""A linear classifier of embeddings: what a mixture of labelled documents teaches, in well under a second.

Multinomial logistic regression on frozen vectors. A document that a mixture serves several times weighs so
often, which is the same as training on its copies.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConvergenceError, DataError

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_INVERSE_PENALTY = 10.0
"""C of scikit-learn, on vectors of length 1: with its default of 1 few documents hardly move the weights."""
_ITERATIONS = 5000


class ProbeResult(NamedTuple):
    """``accuracy`` on the v validation documents; ``likelihoods`` (v,): probability of each one's own label."""

    accuracy: float
    likelihoods: FloatArray


def linear_probe(
    vectors: Float32Array | FloatArray,
    labels: Sequence[str],
    counts: Int64Array,
    validation: Float32Array | FloatArray,
    validation_labels: Sequence[str],
) -> ProbeResult:
    """Train on ``vectors`` (n, d) with ``labels``, each ``counts`` (n,) times; score on ``validation`` (v, d).

    A label that training has never seen has probability 0. With a single class in training every document is
    taken for that class. Raises DataError for nothing to train or score on, ConvergenceError.
    """
    known, truth = np.asarray(labels, dtype=str), np.asarray(validation_labels, dtype=str)
    if not len(known):
        raise DataError("no labelled document to train on: give the sources labels or larger sizes")
    if not len(truth):
        raise DataError("no labelled document to validate on: give the validation corpus labels")
    classes = np.unique(known)
    if len(classes) == 1:
        right = (truth == classes[0]).astype(np.float64)
        return ProbeResult(float(right.mean()), right)
    probabilities = _fit_and_predict(vectors, known, counts, validation)
    predicted = classes[probabilities.argmax(axis=1)]
    place = np.minimum(np.searchsorted(classes, truth), len(classes) - 1)
    own = probabilities[np.arange(len(truth)), place]
    return ProbeResult(float((predicted == truth).mean()), np.where(classes[place] == truth, own, 0.0))


def _fit_and_predict(
    vectors: Float32Array | FloatArray,
    labels: npt.NDArray[np.str_],
    counts: Int64Array,
    validation: Float32Array | FloatArray,
) -> FloatArray:
    """Class probabilities (v, classes), classes sorted."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=_ITERATIONS)
    with threadpool_limits(1), warnings.catch_warnings():
        # Said as an error below.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(vectors.astype(np.float64), labels, sample_weight=counts.astype(np.float64))
        probabilities: FloatArray = model.predict_proba(validation.astype(np.float64))
    if model.n_iter_.max() >= _ITERATIONS:
        raise ConvergenceError(
            f"the linear probe did not converge in {_ITERATIONS:,} iterations on {len(labels):,} documents: use "
            "an encoder whose vectors have length 1"
        )
    return probabilities
