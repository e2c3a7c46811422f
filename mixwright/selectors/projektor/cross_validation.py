"""Which predictors to trust with these runs: K-fold errors of all of them, and their average ``auto``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mixwright.errors import DataError
from mixwright.selectors.projektor.design import Design
from mixwright.selectors.projektor.predictors import PREDICTORS, Fitted, PredictorName

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

AUTO_MEMBERS: dict[PredictorName, float] = {
    "ot_gp": 8,
    "mixmin_gp": 8,
    "rational_ot": 1,
    "rational": 1,
    "mixmin": 1,
    "ot_linear": 1,
}
"""What ``auto`` averages, as far as they can be fitted, and the shares that it shrinks their weights to.

The Gaussian processes did best or nearly so on every problem that was measured, see docs/selectors/projektor.md.
"""
_MUCH_WORSE = 1.5
_FOLDS = 6
_SHRINKAGE = 0.5
"""Of the average's weights, in variances of the losses: the folds of a few runs cannot tell the members apart."""


@dataclass(frozen=True)
class FoldErrors:
    """One predictor on runs that it was not fitted to. Errors in the metric's unit; None where it was not fitted.

    ``out_of_fold`` (n,) losses predicted; ``standardised`` the root mean square of the errors in the predictor's
    own deviations (without the noise of the runs, which the errors have); ``note`` why it was refused or what is
    doubtful.
    """

    predictor: str
    coefficients: int
    out_of_fold: FloatArray | None
    mean_absolute_error: float | None
    root_mean_square_error: float | None
    rank_correlation: float | None
    standardised: float | None
    note: str | None


@dataclass(frozen=True)
class CrossValidation:
    """The errors of all predictors at one size, and the weights (by name, summing to 1) of ``auto``."""

    errors: Mapping[str, FoldErrors]
    weights: Mapping[PredictorName, float]


def cross_validate(design: Design, losses: FloatArray, seed: int) -> CrossValidation:
    """K-fold errors of every predictor on n runs: ``losses`` (n,) of the mixtures of ``design``.

    Runs of one mixture are in one fold. With fewer than three different mixtures nothing is known.
    """
    folds = _folds(design.weights, seed)
    errors: dict[str, FoldErrors] = {}
    for name, predictor in PREDICTORS.items():
        note = predictor.refusal(design)
        found = None
        if note is None and folds.max() >= 2:
            found = _out_of_fold(name, design, losses, folds, seed)
            note = predictor.warning(design) if found is not None else "could not be fitted to every fold"
        elif note is None:
            note = "needs three different mixtures to be tried on others"
        errors[name] = _errors(name, predictor.coefficients(design.weights.shape[1]), found, losses, note)
    members = _members(errors)
    if not members:
        # Too few mixtures to hold any out: what needs no choice.
        unknown = _errors("auto", 0, None, losses, errors["ot_gp"].note)
        return CrossValidation({"auto": unknown, **errors}, {"ot_gp": 1.0})
    predicted = np.column_stack([np.asarray(errors[name].out_of_fold) for name in members])
    usual = np.asarray([AUTO_MEMBERS[name] for name in members])
    weights = _stacked(predicted, losses, usual / usual.sum())
    auto = _errors("auto", len(members) - 1, _OutOfFold(predicted @ weights), losses, None)
    return CrossValidation({"auto": auto, **errors}, dict(zip(members, weights.tolist(), strict=True)))


def _members(errors: Mapping[str, FoldErrors]) -> list[PredictorName]:
    """The predictors that ``auto`` averages: those known to be not much worse than the best of them."""
    squares = {name: errors[name].root_mean_square_error for name in AUTO_MEMBERS}
    known = {name: error for name, error in squares.items() if error is not None}
    least = min(known.values(), default=0.0)
    return [name for name, error in known.items() if error <= _MUCH_WORSE * least]


def _folds(weights: FloatArray, seed: int) -> Int64Array:
    """The fold (n,) of each run: equal mixtures together."""
    _, mixture = np.unique(np.round(weights, 9), axis=0, return_inverse=True)
    mixture = mixture.ravel()
    n_mixtures = int(mixture.max()) + 1
    order = np.random.default_rng(seed).permutation(n_mixtures)
    return np.asarray((order % min(n_mixtures, _FOLDS))[mixture], dtype=np.int64)


@dataclass(frozen=True)
class _OutOfFold:
    """Losses (n,) predicted from the other folds, and the predictor's deviations (n,) there, if it has any."""

    losses: FloatArray
    deviations: FloatArray | None = None


def _out_of_fold(
    name: PredictorName, design: Design, losses: FloatArray, folds: Int64Array, seed: int
) -> _OutOfFold | None:
    predictor, found, deviations = PREDICTORS[name], np.empty(len(losses)), np.zeros(len(losses))
    for fold in range(int(folds.max()) + 1):
        seen = folds != fold
        if predictor.refusal(design.take(seen)) is not None:
            return None
        fitted = predictor.fit(design.take(seen), losses[seen], seed)
        found[~seen] = fitted.mean(design.take(~seen))
        if fitted.deviation is not None:
            deviations[~seen] = fitted.deviation(design.take(~seen))
    return _OutOfFold(found, deviations if deviations.all() else None)


def _errors(
    name: str, coefficients: int, predicted: _OutOfFold | None, losses: FloatArray, note: str | None
) -> FoldErrors:
    if predicted is None:
        return FoldErrors(name, coefficients, None, None, None, None, None, note)
    found, deviations = predicted.losses, predicted.deviations
    gaps = found - losses
    return FoldErrors(
        predictor=name,
        coefficients=coefficients,
        out_of_fold=found,
        mean_absolute_error=float(np.abs(gaps).mean()),
        root_mean_square_error=float(np.sqrt((gaps**2).mean())),
        rank_correlation=_rank_correlation(found, losses),
        standardised=None if deviations is None else float(np.sqrt(((gaps / deviations) ** 2).mean())),
        note=note,
    )


def _rank_correlation(left: FloatArray, right: FloatArray) -> float | None:
    """Spearman's ρ; None where one of the two is constant."""
    from scipy.stats import spearmanr

    if np.ptp(left) <= 1e-12 * max(abs(left).max(), 1e-300) or np.ptp(right) == 0:
        return None
    return float(spearmanr(left, right).statistic)


def _stacked(out_of_fold: FloatArray, losses: FloatArray, usual: FloatArray) -> FloatArray:
    """Weights (m,) of the average with the least out-of-fold error (stacking, Wolpert 1992), shrunk to usual ones.

    ``out_of_fold`` (n, m) are the members' predictions, ``usual`` (m,) sums to 1.
    """
    from scipy.optimize import minimize

    m = len(usual)
    if m == 1:
        return usual
    gaps = out_of_fold - losses[:, None]
    products = gaps.T @ gaps / len(losses) / max(float(losses.var()), 1e-300)

    def objective(weights: FloatArray) -> tuple[float, FloatArray]:
        pull = weights - usual
        value = weights @ products @ weights + _SHRINKAGE * pull @ pull
        return float(value), 2 * products @ weights + 2 * _SHRINKAGE * pull

    solved = minimize(
        objective,
        usual,
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * m,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(m)},
    )
    weights = np.maximum(solved.x, 0.0)
    return np.asarray(weights / weights.sum())


@dataclass(frozen=True)
class Member:
    """A fitted predictor with its share of the average, and by how much its own deviations were too small."""

    weight: float
    fitted: Fitted
    inflation: float


@dataclass(frozen=True)
class Surface:
    """A fitted predictor of the loss at one size, with deviations that the folds have calibrated.

    ``spread`` is the root mean square of the out-of-fold errors, for members without deviations of their own.
    """

    members: tuple[Member, ...]
    spread: float
    validation: CrossValidation

    def mean(self, design: Design) -> FloatArray:
        """The expected loss (m,) at mixtures."""
        return np.asarray(np.sum([each.weight * each.fitted.mean(design) for each in self.members], axis=0))

    def deviation(self, design: Design) -> FloatArray:
        """The standard deviation (m,): of the members' average, and between them."""
        total, variances = self.mean(design), []
        for each in self.members:
            own = np.full(len(design), self.spread)
            if each.fitted.deviation is not None:
                own = each.inflation * each.fitted.deviation(design)
            variances.append(each.weight * (own**2 + (each.fitted.mean(design) - total) ** 2))
        return np.asarray(np.sqrt(np.sum(variances, axis=0)))


def fit_surface(design: Design, losses: FloatArray, predictor: str, seed: int) -> Surface:
    """Fit ``predictor`` (a name of PREDICTORS, or auto) to n runs, with the K-fold errors of all.

    Raises DataError where the predictor cannot be fitted to so few runs, or lacks what it needs.
    """
    validation = cross_validate(design, losses, seed)
    chosen: Mapping[PredictorName, float]
    if predictor == "auto":
        chosen = validation.weights
    else:
        name = next(each for each in PREDICTORS if each == predictor)
        if (reason := PREDICTORS[name].refusal(design)) is not None:
            raise DataError(f"predictor {name} {reason}: add runs, or use the predictor auto")
        chosen = {name: 1.0}
    members = tuple(
        Member(
            weight,
            PREDICTORS[name].fit(design, losses, seed),
            max(1.0, validation.errors[name].standardised or 1.0),
        )
        for name, weight in chosen.items()
    )
    spread = validation.errors[predictor].root_mean_square_error
    # With too few mixtures to hold any out, nothing better is known than how far the scores spread.
    return Surface(members, float(losses.std()) if spread is None else spread, validation)
