"""A Gaussian process over mixtures whose mean is linear in the transport: the predictor for few runs.

loss(p) = a + b · OT(p) + c · √p + f(√p) + noise, with f of squared exponential covariance, and normal priors on
b and c (Rasmussen and Williams 2006, sections 2.2, 2.7 and 5.4). √p, and not p: scores change fastest where a
source's share comes from nothing, so that the step from 0 to 1 % is as long as the one from 81 to 100 %; the
Euclidean distance of the roots is the Hellinger distance of the mixtures. The hyperparameters are the most
probable ones under weak priors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mixwright.selectors.projektor.design import Design

FloatArray = npt.NDArray[np.float64]

# Of log length scale (in mean standard deviations of √p), log σ of f, of the noise, of b and of c,
# all for scores and features of standard deviation 1.
_PRIOR_MEANS = np.asarray([1.0, -0.5, -2.0, 0.0, 0.0])
_PRIOR_DEVIATIONS = np.asarray([0.8, 1.0, 1.0, 0.7, 0.7])
_STARTS = np.asarray([[1.0, -0.5, -2.0, 0.0, 0.0], [0.3, 0.0, -1.5, 0.0, -0.5], [2.0, 0.0, -3.0, 0.0, 0.0]])
_FEW_SOURCES = 3
"""With more sources c has more numbers, and each is smaller, so that together they explain as much."""
_JITTER = 1e-5
_CONSTANT_VARIANCE = 1.0
"""Of a, beside scores that are centred."""


@dataclass(frozen=True)
class _Scaling:
    """Standardised inputs of a design: ``roots`` for the kernel, ``linear`` for the mean."""

    root_scale: float
    means: FloatArray
    deviations: FloatArray

    @classmethod
    def of(cls, design: Design) -> _Scaling:
        roots, linear = np.sqrt(design.weights), _linear_features(design)
        return cls(float(roots.std(axis=0).mean()) + 1e-9, linear.mean(axis=0), linear.std(axis=0) + 1e-12)

    def apply(self, design: Design) -> tuple[FloatArray, FloatArray]:
        linear = (_linear_features(design) - self.means) / self.deviations
        # A feature that does not vary among the runs says nothing of what lies beyond them.
        linear = np.where(self.deviations > 1e-9, linear, 0.0)
        linear[:, 1:] *= np.sqrt(_FEW_SOURCES / max(design.weights.shape[1], _FEW_SOURCES))
        return np.sqrt(design.weights) / self.root_scale, linear


def _linear_features(design: Design) -> FloatArray:
    return np.column_stack([design.transport, np.sqrt(design.weights)])


class GaussianProcess:
    """A fitted process; losses of any unit."""

    def __init__(
        self,
        scaling: _Scaling,
        hyperparameters: FloatArray,
        design: Design,
        losses: FloatArray,
        unit: tuple[float, float],
    ) -> None:
        self._scaling = scaling
        self._hyperparameters = hyperparameters
        self._design = design
        # Mean and deviation of the losses that the process was fitted to.
        self._mean, self._deviation = unit
        self._roots, self._linear = scaling.apply(design)
        self._cholesky = _cholesky(
            _covariance(self._roots, self._linear, self._roots, self._linear, hyperparameters)
            + (_noise(hyperparameters)) * np.eye(len(losses))
        )
        self._alpha = _solve(self._cholesky, (losses - self._mean) / self._deviation)

    @classmethod
    def fit(cls, design: Design, losses: FloatArray) -> GaussianProcess:
        """The process of n ≥ 2 runs: ``losses`` (n,) of the mixtures of ``design``."""
        from scipy.optimize import minimize

        scaling = _Scaling.of(design)
        roots, linear = scaling.apply(design)
        targets = (losses - losses.mean()) / _deviation(losses)
        found = [
            minimize(_negative_log_posterior, start, args=(roots, linear, targets), jac=True, method="L-BFGS-B")
            for start in _STARTS
        ]
        best = min(found, key=lambda each: float(each.fun))
        return cls(scaling, best.x, design, losses, (float(losses.mean()), _deviation(losses)))

    def mean(self, design: Design) -> FloatArray:
        """The expected loss (m,) at mixtures."""
        return np.asarray(self._mean + self._deviation * (self._cross(design) @ self._alpha))

    def deviation(self, design: Design) -> FloatArray:
        """The standard deviation (m,) of the noise-free loss at mixtures."""
        prior = _variances(self._scaling.apply(design)[1], self._hyperparameters)
        explained = (_forward(self._cholesky, self._cross(design).T) ** 2).sum(axis=0)
        return np.asarray(self._deviation * np.sqrt(np.maximum(prior - explained, 0.0)))

    def _cross(self, design: Design) -> FloatArray:
        roots, linear = self._scaling.apply(design)
        return _covariance(roots, linear, self._roots, self._linear, self._hyperparameters)

    def with_runs(self, design: Design) -> GaussianProcess:
        """The process after runs at more mixtures, each scoring what is predicted: only deviations change."""
        joined = Design(
            np.concatenate([self._design.weights, design.weights]),
            np.concatenate([self._design.transport, design.transport]),
        )
        losses = np.concatenate([self._losses(), self.mean(design)])
        unit = self._mean, self._deviation
        return GaussianProcess(self._scaling, self._hyperparameters, joined, losses, unit)

    def _losses(self) -> FloatArray:
        return np.asarray(self._mean + self._deviation * (self._cholesky @ (self._cholesky.T @ self._alpha)))


def _deviation(losses: FloatArray) -> float:
    return float(losses.std()) or 1.0


def _noise(hyperparameters: FloatArray) -> float:
    return float(np.exp(2 * hyperparameters[2])) + _JITTER


def _covariance(
    roots: FloatArray, linear: FloatArray, others: FloatArray, other_linear: FloatArray, x: FloatArray
) -> FloatArray:
    """Prior covariance (n, m) of the noise-free losses of n and m mixtures."""
    kernel = np.exp(-_squared_distances(roots, others) / (2 * np.exp(2 * x[0])))
    slopes = (linear * _slope_variances(linear, x)) @ other_linear.T
    return np.asarray(np.exp(2 * x[1]) * kernel + slopes + _CONSTANT_VARIANCE)


def _variances(linear: FloatArray, x: FloatArray) -> FloatArray:
    """The diagonal (n,) of the prior covariance."""
    slopes = (linear**2 * _slope_variances(linear, x)).sum(axis=1)
    return np.asarray(np.exp(2 * x[1]) + slopes + _CONSTANT_VARIANCE)


def _slope_variances(linear: FloatArray, x: FloatArray) -> FloatArray:
    """Prior variances of b and of the numbers of c."""
    return np.asarray(np.exp(2 * np.append(x[3], np.full(linear.shape[1] - 1, x[4]))))


def _squared_distances(left: FloatArray, right: FloatArray) -> FloatArray:
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None] - 2 * left @ right.T
    return np.asarray(np.maximum(squares, 0.0))


def _negative_log_posterior(
    x: FloatArray, roots: FloatArray, linear: FloatArray, targets: FloatArray
) -> tuple[float, FloatArray]:
    """−log p(targets, x) up to a constant, and its gradient (5,) (Rasmussen and Williams 2006, eq. 5.9)."""
    distances = _squared_distances(roots, roots) / np.exp(2 * x[0])
    smooth = np.exp(2 * x[1]) * np.exp(-distances / 2)
    by_transport = np.exp(2 * x[3]) * np.outer(linear[:, 0], linear[:, 0])
    by_share = np.exp(2 * x[4]) * (linear[:, 1:] @ linear[:, 1:].T)
    n = len(targets)
    covariance = smooth + by_transport + by_share + _CONSTANT_VARIANCE + _noise(x) * np.eye(n)
    pull = (x - _PRIOR_MEANS) / _PRIOR_DEVIATIONS
    try:
        cholesky = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return 1e10, np.zeros(len(x))
    alpha = _solve(cholesky, targets)
    value = 0.5 * targets @ alpha + np.log(np.diag(cholesky)).sum() + 0.5 * (pull**2).sum()
    inner = _solve(cholesky, np.eye(n)) - np.outer(alpha, alpha)
    parts = (smooth * distances, 2 * smooth, 2 * np.exp(2 * x[2]) * np.eye(n), 2 * by_transport, 2 * by_share)
    gradient = np.asarray([0.5 * (inner * part).sum() for part in parts]) + pull / _PRIOR_DEVIATIONS
    return float(value), gradient


def _cholesky(covariance: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)


def _forward(cholesky: FloatArray, right: FloatArray) -> FloatArray:
    from scipy.linalg import solve_triangular

    return np.asarray(solve_triangular(cholesky, right, lower=True, check_finite=False))


def _solve(cholesky: FloatArray, right: FloatArray) -> FloatArray:
    from scipy.linalg import cho_solve

    return np.asarray(cho_solve((cholesky, True), right, check_finite=False))
