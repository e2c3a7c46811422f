"""Scaling laws: what a larger or longer training will score, before it is done.

Over-training (Gadre et al., arXiv 2403.08540): loss by parameters N and tokens for each, M = D / N, fitted to a
few small trainings; downstream error by loss. Data-constrained (Muennighoff et al., arXiv 2305.16264): what tokens
are worth that are seen again, with the published coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError, DataError
from mixwright.schemas.scaling import ScalingRun
from mixwright.selectors.curve_fits import separable_fit

FloatArray = npt.NDArray[np.float64]

FEWEST_LOSSES = 4
FEWEST_ERRORS = 3
"""As many runs as a law has parameters to fit."""
EXPONENTS = (1e-4, 4.0)
"""Between which -b is searched."""
_RATES = (1e-3, 20.0)
"""Between which the rate is searched, for losses that are 1 apart."""
_LEAST_SPREAD = 0.05
"""How far losses must be apart, as a share of the least."""


@dataclass(frozen=True)
class OverTrainingLaw:
    """L(N, D) = alpha N^b + beta 6^(b/2) D^b + irreducible, with b < 0.

    Of compute C = 6 N D and M = D / N it is the paper's E + (a M^η + a' M^(-η)) C^(-η), with b = -2η,
    alpha = a 6^(-η) and beta = a': the two terms are those of N and of D.
    """

    alpha: float
    beta: float
    exponent: float
    irreducible: float

    def loss(self, params: FloatArray, tokens: FloatArray) -> FloatArray:
        """Losses (n,) of trainings with so many parameters and tokens (n,)."""
        b = self.exponent
        return np.asarray(self.alpha * params**b + self.beta * 6 ** (b / 2) * tokens**b + self.irreducible)


@dataclass(frozen=True)
class ErrorLaw:
    """error(L) = ceiling - scale exp(-rate L)."""

    ceiling: float
    scale: float
    rate: float

    def error(self, loss: FloatArray) -> FloatArray:
        """Downstream errors (n,) at losses (n,)."""
        return np.asarray(self.ceiling - self.scale * np.exp(-self.rate * loss))


def fit_over_training(runs: Sequence[ScalingRun]) -> OverTrainingLaw:
    """The law of least squares through the losses of the runs, which all count the same, as in the paper's code.

    The paper's code takes the best of 64 starts; here the best fit is found directly. Raises ConfigError for fewer
    than four different trainings.
    """
    params = np.asarray([run.params for run in runs])
    tokens = np.asarray([run.tokens for run in runs])
    losses = np.asarray([run.loss for run in runs])
    if (different := len(set(zip(params, tokens, strict=True)))) < FEWEST_LOSSES:
        raise ConfigError(
            f"the law has {FEWEST_LOSSES} parameters, and there are {different} different trainings: give "
            f"{FEWEST_LOSSES} or more, with other params or tokens each"
        )
    # In units of the middle training, so that no power is too large or too small.
    params_unit, tokens_unit = np.exp(np.log(params).mean()), np.exp(np.log(tokens).mean())
    small, short, ones = params / params_unit, tokens / tokens_unit, np.ones(len(runs))

    def columns(exponent: float) -> FloatArray:
        return np.stack([small**-exponent, short**-exponent, ones], axis=1)

    exponent, (alpha, beta, irreducible) = separable_fit(columns, losses, *EXPONENTS)
    return OverTrainingLaw(
        alpha=float(alpha * params_unit**exponent),
        beta=float(beta * tokens_unit**exponent / 6 ** (-exponent / 2)),
        exponent=-exponent,
        irreducible=float(irreducible),
    )


def fit_error(losses: FloatArray, errors: FloatArray) -> ErrorLaw:
    """The law of least squares through downstream errors (n,) at losses (n,).

    Raises DataError for fewer than three different losses, or for losses so near that no rate can be told.
    """
    if len(np.unique(losses)) < FEWEST_ERRORS:
        raise DataError(f"fewer than {FEWEST_ERRORS} different losses have an error: give more runs")
    lowest, spread = float(losses.min()), float(np.ptp(losses))
    if spread < _LEAST_SPREAD * lowest:
        raise DataError("the losses of the runs are too near to one another: give runs of more different sizes")
    above, ones = (losses - lowest) / spread, np.ones(len(losses))

    def columns(rate: float) -> FloatArray:
        return np.stack([ones, -np.exp(-rate * above)], axis=1)

    rate, (ceiling, scale) = separable_fit(columns, errors, *_RATES)
    return ErrorLaw(
        ceiling=float(ceiling), scale=float(scale * np.exp(rate * lowest / spread)), rate=float(rate / spread)
    )


# Repeated data


@dataclass(frozen=True)
class DataConstrainedLaw:
    """L(N, D, U) = E + A / N'^alpha + B / D'^beta, where repeats and parameters beyond what U needs count less.

    D' = U + U R_D* (1 - exp(-(D/U - 1) / R_D*)), and N' likewise from the parameters that are best for U tokens.
    The values are those of the published code, fitted to trainings on C4.
    """

    a: float = exp(6.255414)
    b: float = exp(7.3049974)
    irreducible: float = exp(0.6254804)
    alpha: float = 0.3526596
    beta: float = 0.3526596
    repeats: float = 15.387756
    """R_D*: so many repeats reach 1 - 1/e of what any number of them can give."""
    surplus: float = 5.309743
    """R_N*: the same of parameters."""

    def loss(self, params: float, tokens: float, unique: float) -> float:
        """The loss after ``tokens`` of which ``unique`` are different; all are, where unique is more."""
        fresh = min(unique, tokens)
        needed = min(params, self.params_for(fresh))
        worth_params = _worth(needed, params, self.surplus)
        worth_tokens = self.effective_tokens(tokens, unique)
        return float(self.irreducible + self.a / worth_params**self.alpha + self.b / worth_tokens**self.beta)

    def effective_tokens(self, tokens: float, unique: float) -> float:
        """D': how many fresh tokens the tokens are worth."""
        return _worth(min(unique, tokens), tokens, self.repeats)

    def params_for(self, tokens: float) -> float:
        """The parameters that spend a compute budget best together with so many fresh tokens."""
        g = ((self.alpha * self.a) / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        return float((tokens * g) ** (self.beta / self.alpha) * g)


def _worth(base: float, whole: float, half_life: float) -> float:
    """What ``whole`` is worth, of which what exceeds ``base`` counts less and less."""
    return float(base + base * half_life * (1 - np.exp(-(whole / base - 1) / half_life)))
