"""Answers of the scaling laws: predictions, how well the law fits, and what to doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from mixwright.errors import DataError
from mixwright.schemas.scaling import (
    ScalingAnswer,
    ScalingPrediction,
    ScalingRequest,
    ScalingResidual,
    ScalingRun,
    ScalingTarget,
)
from mixwright.selectors.scaling_laws import (
    EXPONENTS,
    FEWEST_LOSSES,
    DataConstrainedLaw,
    ErrorLaw,
    OverTrainingLaw,
    fit_error,
    fit_over_training,
)

FloatArray = npt.NDArray[np.float64]

FARTHEST = 300.0
"""Times the compute of the largest run: as far as the paper's predictions went."""

_OVER_TRAINING = "L = alpha N^b + beta 6^(b/2) D^b + E;  error = ceiling - scale exp(-rate L)"
_DATA_CONSTRAINED = "L = E + A / N'^alpha + B / D'^beta;  D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)), N' likewise"
_C4_WARNING = (
    "the coefficients were fitted to whole trainings on C4: for other data, and for one source inside a mixture, "
    "they are an extrapolation"
)


def scaling_answer(request: ScalingRequest) -> ScalingAnswer:
    """What the law says of the targets; raises ConfigError for too few runs, DataError where no law fits."""
    if request.law == "data-constrained":
        return _data_constrained(request.targets)
    law = fit_over_training(request.runs)
    errors, warnings = _fit_errors(request)
    return ScalingAnswer(
        law=request.law,
        formula=_OVER_TRAINING,
        coefficients={
            "alpha": law.alpha,
            "beta": law.beta,
            "b": law.exponent,
            "E": law.irreducible,
        },
        error_coefficients=None if errors is None else asdict(errors),
        predictions=[_predicted(each, law, errors) for each in request.targets],
        residuals=[_residual(each, law, errors) for each in request.runs],
        warnings=[*_doubts(request, law), *warnings],
    )


def _fit_errors(request: ScalingRequest) -> tuple[ErrorLaw | None, list[str]]:
    measured = [(run.loss, run.error) for run in request.runs if run.error is not None]
    if not measured:
        return None, []
    losses, errors = np.asarray(measured, dtype=np.float64).T
    try:
        return fit_error(losses, errors), []
    except DataError as error:
        return None, [f"no errors are predicted: {error}"]


def _predicted(target: ScalingTarget, law: OverTrainingLaw, errors: ErrorLaw | None) -> ScalingPrediction:
    loss = _loss(target, law)
    return ScalingPrediction(
        params=target.params,
        tokens=target.tokens,
        tokens_per_param=target.tokens / target.params,
        compute=_compute(target),
        loss=loss,
        error=None if errors is None else float(errors.error(np.asarray(loss))),
    )


def _residual(run: ScalingRun, law: OverTrainingLaw, errors: ErrorLaw | None) -> ScalingResidual:
    loss = _loss(run, law)
    return ScalingResidual(
        params=run.params,
        tokens=run.tokens,
        loss=run.loss,
        predicted_loss=loss,
        relative=(loss - run.loss) / run.loss,
        error=run.error,
        predicted_error=None if errors is None else float(errors.error(np.asarray(loss))),
    )


def _loss(training: ScalingRun | ScalingTarget, law: OverTrainingLaw) -> float:
    return float(law.loss(np.asarray(training.params), np.asarray(training.tokens)))


def _compute(training: ScalingRun | ScalingTarget) -> float:
    return 6 * training.params * training.tokens


def _doubts(request: ScalingRequest, law: OverTrainingLaw) -> list[str]:
    """A line for each reason to doubt the predictions."""
    runs, found = request.runs, []
    ratios = np.asarray([run.tokens / run.params for run in runs])
    if len(runs) <= FEWEST_LOSSES:
        found.append(
            f"{len(runs)} runs fit a law of {FEWEST_LOSSES} parameters whatever they are, and the residuals say "
            "nothing: add a run (the paper takes 5 for the loss)"
        )
    if np.ptp(np.log(ratios)) < 0.01:
        found.append(
            f"all runs have {ratios.mean():.3g} tokens a parameter: alpha and beta cannot be told apart, so trust "
            "predictions at this ratio only, or add a run with another (in the paper one of five has 16 times it)"
        )
    if len({run.params for run in runs}) == 1:
        found.append("all runs have the same parameters: what more of them change is not known, add another size")
    if not 1.01 * EXPONENTS[0] < -law.exponent < 0.99 * EXPONENTS[1]:
        found.append(f"the exponent {law.exponent:.2g} is at the edge of its range: the runs do not determine it")
    largest = max(_compute(run) for run in runs)
    factors = [_compute(target) / largest for target in request.targets]
    if n_far := sum(factor > FARTHEST for factor in factors):
        found.append(
            f"{n_far} of {len(factors)} targets take more than {FARTHEST:.0f} times the compute of the largest "
            f"run, up to {max(factors):.3g} times, and the paper's predictions go no farther: add larger runs"
        )
    return found


def _data_constrained(targets: Sequence[ScalingTarget]) -> ScalingAnswer:
    law = DataConstrainedLaw()
    predictions = []
    for target in targets:
        unique = target.unique_tokens or target.tokens
        predictions.append(
            ScalingPrediction(
                params=target.params,
                tokens=target.tokens,
                tokens_per_param=target.tokens / target.params,
                compute=_compute(target),
                loss=law.loss(target.params, target.tokens, unique),
                unique_tokens=unique,
                epochs=target.tokens / unique,
                effective_tokens=law.effective_tokens(target.tokens, unique),
            )
        )
    return ScalingAnswer(
        law="data-constrained",
        formula=_DATA_CONSTRAINED,
        coefficients={
            "A": law.a,
            "B": law.b,
            "E": law.irreducible,
            "alpha": law.alpha,
            "beta": law.beta,
            "R_D": law.repeats,
            "R_N": law.surplus,
        },
        error_coefficients=None,
        predictions=predictions,
        residuals=[],
        warnings=[_C4_WARNING],
    )
