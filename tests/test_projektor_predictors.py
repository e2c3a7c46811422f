"""Predictors of a mixture's score, their folds, and other sizes: textbook formulas, planted laws, closed forms."""

from __future__ import annotations

import typing
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad
from scipy.stats import spearmanr

from mixwright.errors import ConfigError, DataError
from mixwright.schemas.training_runs import Metric, TrainingRun
from mixwright.selectors.projektor import cross_validation, gaussian_process
from mixwright.selectors.projektor.cross_validation import (
    AUTO_MEMBERS,
    CrossValidation,
    Member,
    Surface,
    _folds,
    _stacked,
    cross_validate,
    fit_surface,
)
from mixwright.selectors.projektor.design import Design
from mixwright.selectors.projektor.gaussian_process import GaussianProcess
from mixwright.selectors.projektor.predictors import PREDICTORS, Fitted
from mixwright.selectors.projektor.problem import transport_problem
from mixwright.selectors.projektor.projection import (
    Exponent,
    ProjectionName,
    noise_gain,
    project_log_linear,
    project_power,
    project_power_shared,
    shared_exponent,
    shared_noise_gain,
)
from mixwright.selectors.projektor.score_model import Forecast, RunTable, ScoreModel, fit_score_model
from mixwright.selectors.projektor.simplex import dirichlet, simplex_grid
from mixwright.selectors.projektor.transport import Points, TransportProblem

Array = npt.NDArray[np.float64]
PROJECTIONS = typing.get_args(ProjectionName)


def design_of(n: int, k: int = 3, seed: int = 0) -> Design:
    """n random mixtures with a made-up convex transport and ensemble loss."""
    weights = dirichlet(k, n, seed)
    target = np.arange(1, k + 1) / np.arange(1, k + 1).sum()
    return Design(weights, np.linalg.norm(weights - target, axis=1), -np.log(weights @ np.linspace(0.1, 0.9, k)))


def drop_slow_predictors(patch: pytest.MonkeyPatch) -> None:
    """What is tested of a model does not depend on how many predictors its folds compare."""
    slow = ("regmix", "pq_ridge", "rational", "rational_ot", "mixing_law")
    for name in slow:
        patch.delitem(PREDICTORS, name)
    patch.setattr(
        cross_validation, "AUTO_MEMBERS", {name: share for name, share in AUTO_MEMBERS.items() if name not in slow}
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    drop_slow_predictors(monkeypatch)


# The Gaussian process


@pytest.mark.parametrize("k", [2, 3, 7])
def test_the_gradient_of_the_posterior_is_that_of_finite_differences(k: int) -> None:
    rng = np.random.default_rng(0)
    roots, linear, targets = rng.normal(size=(9, k)), rng.normal(size=(9, k + 1)), rng.normal(size=9)
    for x in rng.normal([1.0, -0.5, -1.5, 0, 0], 0.7, (5, 5)):
        objective = [
            lambda x, part=part: gaussian_process._negative_log_posterior(x, roots, linear, targets)[part]
            for part in (0, 1)
        ]
        assert check_grad(*objective, x) < 1e-4 * np.linalg.norm(objective[1](x))


def dense_process(process: GaussianProcess, runs: Design, losses: Array, asked: Design) -> tuple[Array, Array]:
    """Mean and deviation by Rasmussen and Williams, equations 2.25 and 2.26, with plain inverses."""
    length, of_f, of_noise, of_transport, of_shares = np.exp(process._hyperparameters)
    k = runs.weights.shape[1]
    scale = np.sqrt(runs.weights).std(axis=0).mean()

    def features(design: Design) -> Array:
        """The numbers whose dot product is the covariance of a + b · OT + c · √p."""
        transport = (design.transport - runs.transport.mean()) / runs.transport.std()
        roots = np.sqrt(design.weights) - np.sqrt(runs.weights).mean(axis=0)
        roots = roots / np.sqrt(runs.weights).std(axis=0) * np.sqrt(3 / max(k, 3))
        return np.column_stack([np.ones(len(design)), of_transport * transport, of_shares * roots])

    def covariance(left: Design, right: Design) -> Array:
        distances = ((np.sqrt(left.weights)[:, None] - np.sqrt(right.weights)[None]) ** 2).sum(axis=2)
        kernel = of_f**2 * np.exp(-distances / (2 * (length * scale) ** 2))
        return kernel + features(left) @ features(right).T

    inverse = np.linalg.inv(covariance(runs, runs) + (of_noise**2 + 1e-5) * np.eye(len(runs)))
    across = covariance(asked, runs)
    mean = losses.mean() + across @ inverse @ (losses - losses.mean())
    variance = np.diag(covariance(asked, asked) - across @ inverse @ across.T)
    return mean, losses.std() * np.sqrt(np.maximum(variance, 0))


@pytest.mark.parametrize("k", [3, 5])
def test_the_process_is_that_of_the_textbook(k: int) -> None:
    runs, asked = design_of(15, k), design_of(40, k, seed=1)
    losses = 30 + 5 * (np.exp(-3 * runs.weights[:, 0]) + runs.transport)
    losses += np.random.default_rng(0).normal(0, 0.2, 15)
    process = GaussianProcess.fit(runs, losses)
    mean, deviation = dense_process(process, runs, losses, asked)
    np.testing.assert_allclose(process.mean(asked), mean, rtol=1e-6)
    np.testing.assert_allclose(process.deviation(asked), deviation, rtol=1e-4)


def test_the_process_is_sure_where_runs_are_and_unsure_elsewhere() -> None:
    runs, corners = design_of(12), Design(np.eye(3), np.full(3, 0.6))
    losses = np.exp(-3 * runs.weights[:, 0]) + runs.weights[:, 1] ** 2
    process = GaussianProcess.fit(runs, losses)
    assert process.deviation(runs).max() < 0.06 * losses.std()
    assert process.deviation(corners).min() > 3 * process.deviation(runs).max()
    np.testing.assert_allclose(process.mean(runs), losses, atol=0.05 * losses.std())


def test_the_unit_of_the_losses_does_not_matter() -> None:
    runs, asked = design_of(12), design_of(30, seed=1)
    losses = runs.weights[:, 0] ** 2 + runs.transport
    plain, other = GaussianProcess.fit(runs, losses), GaussianProcess.fit(runs, 1000 * losses - 5)
    np.testing.assert_allclose(other.mean(asked), 1000 * plain.mean(asked) - 5, rtol=1e-4)
    np.testing.assert_allclose(other.deviation(asked), 1000 * plain.deviation(asked), rtol=1e-3)


def test_runs_that_score_what_is_predicted_only_make_it_surer() -> None:
    runs, more, asked = design_of(8), design_of(5, seed=2), design_of(60, seed=1)
    losses = 7 + np.exp(-4 * runs.weights[:, 0]) + runs.transport
    process = GaussianProcess.fit(runs, losses)
    later = process.with_runs(more)
    np.testing.assert_allclose(later.mean(asked), process.mean(asked), rtol=1e-7)
    assert (later.deviation(asked) <= process.deviation(asked) + 1e-9).all()
    assert later.deviation(more).max() < 0.5 * process.deviation(more).max()
    twice = process.with_runs(more.take(np.array([0, 1]))).with_runs(more.take(np.array([2, 3, 4])))
    np.testing.assert_allclose(twice.mean(asked), process.mean(asked), rtol=1e-7)
    np.testing.assert_allclose(twice.deviation(asked), later.deviation(asked), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["ot_gp", "pq_ridge"])
def test_a_transport_that_does_not_vary_among_the_runs_says_nothing(name: str) -> None:
    runs = Design(dirichlet(3, 12, 0), np.full(12, 0.4))
    fitted = PREDICTORS[name].fit(runs, runs.weights @ [1.0, 2, 4], 0)
    asked = dirichlet(3, 20, 1)
    near, far = (fitted.mean(Design(asked, np.full(20, at))) for at in (0.4, 4.0))
    if name == "ot_gp":
        np.testing.assert_allclose(near, far, rtol=1e-9)
    else:
        assert np.abs(far).max() < 100


# Predictors

GENERATORS: dict[str, Callable[[Design], Array]] = {
    "mean": lambda d: np.full(len(d), 2.5),
    "linear": lambda d: 3 + d.weights @ [1.0, -2, 0.5],
    "pseudo_quadratic": lambda d: 3 + d.weights @ [1.0, -2, 0.5] + d.weights**2 @ [0.3, 2, -1],
    "quadratic": lambda d: 1 + 4 * d.weights[:, 0] * d.weights[:, 1] - d.weights[:, 1] * d.weights[:, 2],
    "ot_linear": lambda d: 0.3 + 2 * d.transport,
    "mixmin": lambda d: 0.3 + 2 * d.ensemble,
    "pq_ols": lambda d: (
        (d.weights**2 @ [1.0, 2, -1] + d.weights @ [0.5, 0, 1] + 0.2) * d.transport
        + d.weights**2 @ [0.3, 2, -1]
        + d.weights @ [1.0, -2, 0.5]
    ),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_least_squares_recovers_what_generated_the_scores(name: str) -> None:
    # As many runs as coefficients are enough.
    runs, asked = design_of(max(PREDICTORS[name].coefficients(3), 2)), design_of(50, seed=1)
    fitted = PREDICTORS[name].fit(runs, GENERATORS[name](runs), 0)
    np.testing.assert_allclose(fitted.mean(asked), GENERATORS[name](asked), atol=1e-6)
    assert fitted.deviation is None
    # One less is not, so that the coefficients are as many as is said.
    if name != "mean":
        few = runs.take(np.arange(len(runs) - 1))
        missed = PREDICTORS[name].fit(few, GENERATORS[name](few), 0).mean(asked) - GENERATORS[name](asked)
        assert np.abs(missed).max() > 1e-3 or name in ("ot_linear", "mixmin")


RATES = np.array([[2.5, 0.6, 1.2], [0.5, 1.8, 0.9], [1.0, 0.4, 2.2]])


@pytest.mark.parametrize(
    "name", ["mixing_law", "rational", "rational_ot", "ot_gp", "mixmin_gp", "pq_ridge", "regmix"]
)
def test_planted_laws_are_recovered(name: str) -> None:
    laws = {
        "mixing_law": lambda d: 1.5 + np.exp(0.3 + d.weights @ [-2.0, 0.5, -1]),
        "rational": lambda d: 0.2 + (1 / (d.weights @ RATES.T)).sum(axis=1),
        "rational_ot": lambda d: 0.2 + (1 / (d.weights @ RATES.T)).sum(axis=1) + 3 * d.transport,
        "ot_gp": lambda d: 2 + 3 * d.transport + np.sqrt(d.weights) @ [0.2, -0.3, 0.4],
        "mixmin_gp": lambda d: 2 + 3 * d.ensemble + np.sqrt(d.weights) @ [0.2, -0.3, 0.4],
        "pq_ridge": GENERATORS["pq_ols"],
        "regmix": lambda d: 2.0 * (d.weights[:, 0] > 0.3) + d.weights[:, 1],
    }
    allowed = {"mixing_law": 0.02, "ot_gp": 0.02, "mixmin_gp": 0.02, "regmix": 0.25}.get(name, 0.08)
    runs, asked = design_of(30), design_of(200, seed=1)
    losses, truth = laws[name](runs), laws[name](asked)
    found = PREDICTORS[name].fit(runs, losses, 0).mean(asked)
    assert np.abs(found - truth).mean() < allowed * np.abs(truth - losses.mean()).mean()
    np.testing.assert_array_equal(found, PREDICTORS[name].fit(runs, losses, 0).mean(asked))


@pytest.mark.parametrize("name", PREDICTORS)
def test_every_predictor_has_finite_answers_at_the_corners_and_for_equal_scores(name: str) -> None:
    corners = Design(np.eye(3), np.full(3, 5.0), np.full(3, 20.0))
    for losses in (np.full(14, 0.7), 1e6 * design_of(14).transport, 1e-6 * design_of(14).weights[:, 0]):
        found = PREDICTORS[name].fit(design_of(14), losses, 0).mean(corners)
        assert np.isfinite(found).all()
        # Not beyond what the scores' own size explains: no pole, no blown-up noise.
        assert np.abs(found).max() <= 1000 * np.abs(losses).max()
    np.testing.assert_allclose(
        PREDICTORS[name].fit(design_of(14), np.full(14, 0.7), 0).mean(corners), 0.7, atol=0.01
    )


def test_predictors_are_refused_without_enough_runs_or_likelihoods() -> None:
    def notes(n: int, k: int = 3, ensemble: bool = True) -> dict[str, tuple[str | None, str | None]]:
        design = design_of(n, k)
        design = design if ensemble else Design(design.weights, design.transport)
        return {name: (each.refusal(design), each.warning(design)) for name, each in PREDICTORS.items()}

    found = notes(11)
    assert found["pq_ols"] == ("needs 24 runs or more", "11 runs are fewer than 24, twice its coefficients")
    assert found["quadratic"] == (None, "11 runs are fewer than 12, twice its coefficients")
    for name in ("mean", "linear", "ot_linear", "ot_gp", "pq_ridge", "rational", "mixing_law", "regmix", "mixmin"):
        assert found[name] == (None, None)
    assert notes(12)["pq_ols"] == (None, "12 runs are fewer than 24, twice its coefficients")
    assert notes(24)["pq_ols"] == (None, None)
    bare = notes(24, ensemble=False)
    assert bare["mixmin"][0] == bare["mixmin_gp"][0] == "needs single-source runs with likelihoods"
    assert notes(24, k=9)["rational_ot"][0] == "is for at most 8 sources"
    assert notes(24, k=8)["rational_ot"][0] is None


# Cross-validation


@given(st.lists(st.integers(0, 9), min_size=3, max_size=40), st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_runs_of_one_mixture_are_in_one_fold(mixtures: list[int], seed: int) -> None:
    weights = dirichlet(3, 10, 0)[mixtures]
    folds = _folds(weights + 1e-13, seed)
    n_mixtures = len(set(mixtures))
    assert set(folds) == set(range(min(n_mixtures, 6)))
    pairs = set(zip(mixtures, folds.tolist(), strict=True))
    assert len(pairs) == n_mixtures
    sizes = np.bincount([fold for _, fold in pairs])
    assert sizes.max() - sizes.min() <= 1


def noisy(design: Design, seed: int = 0, noise: float = 0.02) -> Array:
    rng = np.random.default_rng(seed)
    bends, slopes = rng.uniform(0.3, 2, 3), rng.normal(0, 0.3, 3)
    return (
        (bends * np.exp(-3 * design.weights)).sum(axis=1)
        + design.weights @ slopes
        + rng.normal(0, noise, len(design))
    )


@pytest.fixture(scope="module")
def validated() -> tuple[Design, Array, CrossValidation]:
    runs = design_of(26)
    losses = noisy(runs)
    return runs, losses, cross_validate(runs, losses, seed=0)


def test_errors_are_those_on_runs_that_were_left_out(validated: tuple[Design, Array, CrossValidation]) -> None:
    runs, losses, found = validated
    folds = _folds(runs.weights, 0)
    inputs = np.column_stack([np.ones(26), runs.transport])
    expected = np.empty(26)
    for fold in range(6):
        seen = folds != fold
        expected[~seen] = inputs[~seen] @ np.linalg.lstsq(inputs[seen], losses[seen], rcond=None)[0]
    errors = found.errors["ot_linear"]
    np.testing.assert_allclose(errors.out_of_fold, expected)
    assert errors.mean_absolute_error == pytest.approx(np.abs(expected - losses).mean())
    assert errors.root_mean_square_error == pytest.approx(np.sqrt(((expected - losses) ** 2).mean()))
    assert errors.rank_correlation == pytest.approx(spearmanr(expected, losses).statistic)
    assert errors.coefficients == 2
    # The mean of the others is wrong by the spread, and ranks nothing well.
    assert found.errors["mean"].root_mean_square_error == pytest.approx(losses.std(), rel=0.15)


def test_every_predictor_is_in_the_table_with_what_is_doubtful(
    validated: tuple[Design, Array, CrossValidation],
) -> None:
    runs, losses, found = validated
    assert set(found.errors) == {"auto", *PREDICTORS}
    assert next(iter(found.errors)) == "auto"
    assert all(errors.out_of_fold is not None for errors in found.errors.values())
    few = cross_validate(runs.take(np.arange(12)), losses[:12], seed=0)
    # 12 runs are enough for 12 coefficients, 10 in a fold are not.
    assert few.errors["pq_ols"].mean_absolute_error is None
    assert few.errors["pq_ols"].note == "could not be fitted to every fold"
    assert few.errors["pseudo_quadratic"].note is None
    assert few.errors["linear"].mean_absolute_error > 0


def test_auto_is_an_average_and_about_as_good_as_its_best_member(
    validated: tuple[Design, Array, CrossValidation],
) -> None:
    _, losses, found = validated
    assert sum(found.weights.values()) == pytest.approx(1)
    assert min(found.weights.values()) >= 0
    rmse = {name: found.errors[name].root_mean_square_error for name in AUTO_MEMBERS}
    assert set(found.weights) == {name for name in rmse if rmse[name] <= 1.5 * min(rmse.values())}
    assert 1 < len(found.weights) < len(AUTO_MEMBERS)
    average = sum(weight * found.errors[name].out_of_fold for name, weight in found.weights.items())
    np.testing.assert_allclose(found.errors["auto"].out_of_fold, average)
    assert found.errors["auto"].root_mean_square_error <= 1.25 * min(rmse.values())
    assert found.errors["auto"].root_mean_square_error < 0.5 * losses.std()


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_stacking_weights_have_the_least_shrunk_error_on_the_simplex(seed: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    losses = rng.normal(size=14)
    predicted = (
        losses[:, None] + rng.normal(size=(14, m)) * rng.uniform(0.05, 2, m) + 0.3 * rng.normal(size=(14, 1))
    )
    usual = rng.dirichlet(np.ones(m))
    weights = _stacked(predicted, losses, usual)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0

    def error(each: Array) -> Array:
        gaps = predicted @ each.T - losses[:, None]
        return (gaps**2).mean(axis=0) / losses.var() + 0.5 * ((each - usual) ** 2).sum(axis=1)

    assert error(weights[None])[0] <= error(simplex_grid(m, 20)).min() + 1e-5


def test_fewer_than_three_mixtures_leave_nothing_to_hold_out() -> None:
    weights = np.array([[1.0, 0, 0], [1.0, 0, 0], [0, 0.5, 0.5]])
    runs, losses = Design(weights, np.array([0.3, 0.3, 0.1])), np.array([2.0, 2.2, 1.0])
    surface = fit_surface(runs, losses, "auto", 0)
    assert all(each.mean_absolute_error is None for each in surface.validation.errors.values())
    assert surface.validation.weights == {"ot_gp": 1.0}
    assert surface.spread == pytest.approx(losses.std())
    np.testing.assert_allclose(surface.mean(runs), [2.1, 2.1, 1.0], atol=0.2)
    assert (surface.deviation(design_of(20)) > 0).all()


def test_the_deviation_is_that_of_a_mixture_of_the_members() -> None:
    sure = Fitted(lambda d: np.full(len(d), 1.0), lambda d: np.full(len(d), 0.8))
    bare = Fitted(lambda d: np.full(len(d), 3.0))
    surface = Surface((Member(0.25, sure, 2.0), Member(0.75, bare, 1.0)), 0.5, CrossValidation({}, {}))
    draws = np.random.default_rng(0).normal(size=400_000)
    draws = np.where(np.arange(400_000) % 4 == 0, 1.0 + 2 * 0.8 * draws, 3.0 + 0.5 * draws)
    asked = design_of(3)
    np.testing.assert_allclose(surface.mean(asked), draws.mean(), rtol=0.005)
    np.testing.assert_allclose(surface.deviation(asked), draws.std(), rtol=0.005)


@pytest.mark.usefixtures("quick")
def test_a_predictor_by_name_is_fitted_alone_or_refused() -> None:
    runs = design_of(9)
    losses = noisy(runs)
    process = fit_surface(runs, losses, "ot_gp", 0)
    own = GaussianProcess.fit(runs, losses)
    # By hand: how many of its own deviations each fold is off, on average, and never less than one.
    folds, off = _folds(runs.weights, 0), np.empty(len(losses))
    for fold in range(folds.max() + 1):
        out = folds == fold
        other = GaussianProcess.fit(runs.take(~out), losses[~out])
        off[out] = (other.mean(runs.take(out)) - losses[out]) / other.deviation(runs.take(out))
    inflation = max(np.sqrt((off**2).mean()), 1)
    np.testing.assert_allclose(process.deviation(runs), inflation * own.deviation(runs), rtol=1e-6)
    surface = fit_surface(runs, losses, "linear", 0)
    np.testing.assert_allclose(surface.mean(runs), PREDICTORS["linear"].fit(runs, losses, 0).mean(runs))
    assert surface.spread == surface.validation.errors["linear"].root_mean_square_error
    np.testing.assert_allclose(surface.deviation(runs), surface.spread)
    with pytest.raises(DataError, match="predictor pq_ols needs 24 runs or more: add runs"):
        fit_surface(runs, losses, "pq_ols", 0)


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_intervals_cover_what_they_should_and_say_something(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for slow in ("regmix", "pq_ridge"):
        monkeypatch.delitem(PREDICTORS, slow)
    covered, asked = [], design_of(200, seed=77)
    for seed in range(2):
        runs = design_of(16, seed=seed)
        losses = noisy(runs, seed, noise)
        truth = noisy(asked, seed, 0)
        surface = fit_surface(runs, losses, "auto", 0)
        deviation = surface.deviation(asked)
        covered.append(np.abs(surface.mean(asked) - truth) <= 1.96 * deviation)
        assert deviation.mean() < 0.6 * truth.std()
    assert 0.8 <= np.mean(covered) <= 1


# From size to size

positive = st.floats(0.01, 100)


@given(positive, positive, st.floats(1, 1e6), st.floats(1.01, 100))
@settings(max_examples=200, deadline=None)
def test_projections_are_what_was_fitted_at_both_sizes(
    small: float, large: float, low: float, ratio: float
) -> None:
    best, sizes = -1.0, (low, low * ratio)
    losses = np.array([small]), np.array([large])
    for at, expected in zip(sizes, losses, strict=True):
        np.testing.assert_allclose(project_log_linear(*losses, sizes, at), expected, rtol=1e-6)
        np.testing.assert_allclose(project_power(*losses, best, sizes, at), expected, rtol=1e-6)
    np.testing.assert_allclose(project_power_shared(losses[1], best, 0.7, 1.0), losses[1])


def test_projections_are_those_of_their_formulas() -> None:
    small, large = np.array([3.0, 5.0]), np.array([2.0, 3.0])
    np.testing.assert_allclose(project_log_linear(small, large, (100, 1000), 10_000), [1, 1])
    np.testing.assert_allclose(project_log_linear(small, large, (100, 1000), 10**2.5), [2.5, 4])
    # Unbounded, as published.
    np.testing.assert_allclose(project_log_linear(small, large, (100, 1000), 10**7), [-2, -5])
    np.testing.assert_allclose(project_power(small, large, 1.0, (100, 1000), 10_000), [1.5, 2])
    np.testing.assert_allclose(project_power_shared(large, 1.0, np.log10(2), 10), [1.5, 2])
    # Losses that are better than the best possible cannot improve.
    np.testing.assert_allclose(project_power_shared(np.array([0.5]), 1.0, 0.3, 10), [1.0])


@given(st.floats(-0.5, 1.5), st.integers(2, 8), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_shared_exponent_is_the_one_that_was_planted(gamma: float, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mixtures = dirichlet(3, n, seed)
    weights = mixtures[np.concatenate([np.arange(n), np.arange(n), rng.integers(0, n, n)])]
    sizes = np.concatenate([np.full(n, 200.0), np.full(n, 1800.0), rng.uniform(100, 5000, n)])
    excess = np.exp(weights @ rng.normal(size=3)) * sizes**-gamma
    found = shared_exponent(weights, sizes, excess)
    assert found.value == pytest.approx(gamma, abs=1e-9)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_the_error_of_the_exponent_is_that_of_least_squares() -> None:
    mixtures, sizes = np.repeat(dirichlet(3, 8, 0), 2, axis=0), np.tile([100.0, 1000.0], 8)
    rng = np.random.default_rng(0)
    found = [
        shared_exponent(mixtures, sizes, np.exp(0.3 * mixtures[:, 0] + rng.normal(0, 0.1, 16)) * sizes**-0.4)
        for _ in range(2000)
    ]
    values = np.array([each.value for each in found])
    assert values.mean() == pytest.approx(0.4, abs=0.003)
    assert np.sqrt(np.mean([each.error**2 for each in found])) == pytest.approx(values.std(), rel=0.05)
    # Two runs half a log apart each on both sides of the mean, eight times.
    assert found[0].information == pytest.approx(8 * np.log(10) ** 2 / 2)


def test_mixtures_at_one_size_and_perfect_scores_say_nothing_of_the_exponent() -> None:
    weights = dirichlet(3, 4, 0)
    assert shared_exponent(weights, np.array([1.0, 10, 100, 1000]), np.ones(4)) is None
    twice, sizes = np.repeat(weights, 2, axis=0), np.tile([100.0, 1000.0], 4)
    excess = (1 + twice[:, 0]) * sizes**-0.4
    excess[3] = 0.0
    assert shared_exponent(twice, sizes, excess).value == pytest.approx(0.4)
    assert shared_exponent(twice, sizes, np.zeros(8)) is None


def test_noise_grows_as_in_the_published_example() -> None:
    assert noise_gain((1000, 1500), 10_000) == pytest.approx(7.4, abs=0.05)
    noise = np.random.default_rng(0).normal(size=(2, 400_000))
    for sizes, at in (((1000, 1500), 10_000), ((100, 1000), 4000)):
        assert project_log_linear(*noise, sizes, at).std() == pytest.approx(noise_gain(sizes, at), rel=0.01)
    assert noise_gain((100, 1000), 1000) == pytest.approx(1)
    exponent = Exponent(0.3, 0.1, 0.1, information=4.0)
    assert shared_noise_gain(exponent, 1.0) == 1
    assert shared_noise_gain(exponent, np.exp(4)) == pytest.approx(np.sqrt(5))


# Score models

SIZES = (100.0, 800.0)


@pytest.fixture(scope="module")
def problem() -> TransportProblem:
    rng = np.random.default_rng(0)
    *pilots, validation = (Points.of(rng.normal(mean, 1, (30, 2))) for mean in (0.0, 1.0, 3.0, 1.5))
    return transport_problem(pilots, validation)


Excess = Callable[[Array, npt.NDArray[typing.Any]], Array]


@pytest.fixture(scope="module")
def excess(problem: TransportProblem) -> Excess:
    """A law that ``ot_linear`` can fit exactly at every size, with the shared exponent .25."""
    return lambda weights, sizes: (0.1 + 0.2 * problem.values(weights)) * (np.asarray(sizes) / 800) ** -0.25


def table_of(
    law: Excess, weights: Array, sizes: npt.NDArray[typing.Any], sign: int = 1, best: float = 0
) -> RunTable:
    return RunTable(weights, np.asarray(sizes, dtype=np.float64), sign * (best + law(weights, sizes)))


def two_sizes(n: int = 12) -> tuple[Array, Array]:
    return np.tile(dirichlet(3, n, 0), (2, 1)), np.repeat(SIZES, n)


LOSS = Metric("loss", "minimize", low=0.0)


@pytest.fixture(scope="module")
def models(problem: TransportProblem, excess: Excess) -> dict[str, ScoreModel]:
    """A model for each projection, of runs with a little noise, fitted once."""
    table = table_of(excess, *two_sizes())
    noise = np.exp(np.random.default_rng(0).normal(0, 0.01, 24))
    table = RunTable(table.weights, table.sizes, table.scores * noise)
    with pytest.MonkeyPatch.context() as patch:
        drop_slow_predictors(patch)
        return {
            name: fit_score_model(table, problem, LOSS, predictor="ot_linear", projection=name)
            for name in PROJECTIONS
        }


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_model_is_its_surfaces_at_the_sizes_of_the_runs(models: dict[str, ScoreModel], projection: str) -> None:
    model, asked = models[projection], dirichlet(3, 20, 5)
    assert model.sizes == SIZES
    assert (model.reference, model.pooled, model.notes) == (800.0, False, ())
    design = model.design(asked)
    for size in SIZES:
        np.testing.assert_allclose(model.predict(asked, size).mean, model.surfaces[size].mean(design))
        np.testing.assert_allclose(model.predict(asked, size).deviation, model.surfaces[size].deviation(design))
        assert model.noise_gain(size) is None
    np.testing.assert_array_equal(model.predict(asked).mean, model.predict(asked, 800).mean)
    np.testing.assert_allclose(model.predict(asked, 801).mean, model.predict(asked, 800).mean, rtol=1e-3)
    np.testing.assert_allclose(model.predict(asked, 801).deviation, model.predict(asked, 800).deviation, rtol=0.05)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_planted_law_is_followed_to_other_sizes(
    models: dict[str, ScoreModel], excess: Excess, projection: str
) -> None:
    model, asked = models[projection], dirichlet(3, 20, 5)
    for size in (300, 4000):
        found = model.predict(asked, size).mean
        if projection == "log_linear":
            design = model.design(asked)
            low, high = (model.surfaces[each].mean(design) for each in SIZES)
            expected = low + (high - low) * np.log(size / 100) / np.log(8)
            np.testing.assert_allclose(found, expected)
            assert (np.abs(found - excess(asked, size)) > 0.02 * found).all()
        else:
            np.testing.assert_allclose(found, excess(asked, size), rtol=0.02)


def test_a_shared_exponent_keeps_the_ranking(models: dict[str, ScoreModel]) -> None:
    model, asked = models["power_shared"], dirichlet(3, 40, 5)
    assert model.exponent.value == pytest.approx(0.25, abs=0.01)
    order = np.argsort(model.predict(asked, 800).mean)
    assert (np.argsort(model.predict(asked, 100_000).mean) == order).all()


@pytest.mark.parametrize("projection", ["power", "log_linear"])
def test_deviations_are_carried_on_as_the_losses_are(models: dict[str, ScoreModel], projection: str) -> None:
    model, asked, rng = models[projection], dirichlet(3, 5, 5), np.random.default_rng(0)
    design = model.design(asked)
    low, high = (
        model.surfaces[size].mean(design)[:, None]
        + model.surfaces[size].deviation(design)[:, None] * rng.normal(size=(5, 100_000))
        for size in SIZES
    )
    drawn = project_log_linear(low, high, SIZES, 4000)
    if projection == "power":
        drawn = project_power(low, high, 0.0, SIZES, 4000)
    np.testing.assert_allclose(model.predict(asked, 4000).deviation, drawn.std(axis=1), rtol=0.03)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_what_is_carried_further_is_less_sure(models: dict[str, ScoreModel], projection: str) -> None:
    model, design = models[projection], models[projection].design(dirichlet(3, 5, 5))
    sizes = (800, 2000, 8000, 30_000)
    deviations = np.array([model.deviations(design, size) for size in sizes])
    if projection != "log_linear":
        deviations /= [model.losses(design, size) for size in sizes]
    assert (np.diff(deviations, axis=0) > 0).all()
    gains = [model.noise_gain(size) for size in (2000, 8000)]
    assert 1 <= gains[0] < gains[1]
    assert gains[1] <= models["log_linear"].noise_gain(8000)


def test_scores_and_intervals_stay_in_the_range_of_the_metric() -> None:
    metric = Metric("accuracy", "maximize", low=0.0, high=1.0)
    low, high = Forecast(np.array([0.02, 0.5, 0.99]), np.full(3, 0.1), metric).interval
    np.testing.assert_allclose(low, [0, 0.304, 0.794])
    np.testing.assert_allclose(high, [0.216, 0.696, 1])


@pytest.mark.usefixtures("quick")
def test_a_projection_beyond_the_range_is_clipped(problem: TransportProblem, excess: Excess) -> None:
    weights, sizes = two_sizes(6)
    table = RunTable(weights, sizes, 1 - excess(weights, sizes))
    metric = Metric("accuracy", "maximize", low=0.0, high=1.0)
    model = fit_score_model(table, problem, metric, predictor="ot_linear", projection="log_linear")
    asked = dirichlet(3, 5, 5)
    assert (model.predict(asked, 10**7).mean == 1).all()
    # What is optimised is not clipped, or all mixtures were equal.
    assert np.ptp(model.losses(model.design(asked), 10**7)) > 0.01


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_score_and_its_negative_have_mirrored_predictions(
    problem: TransportProblem, excess: Excess, projection: ProjectionName
) -> None:
    weights, sizes = two_sizes(6)
    up, down = (
        fit_score_model(table_of(excess, weights, sizes, sign), problem, metric, projection=projection)
        for sign, metric in ((-1, Metric("gain", "maximize", high=0.0)), (1, LOSS))
    )
    asked = dirichlet(3, 20, 5)
    for size in (100, 800, 5000):
        mine, other = up.predict(asked, size), down.predict(asked, size)
        np.testing.assert_allclose(mine.mean, -other.mean)
        np.testing.assert_allclose(mine.deviation, other.deviation)
        np.testing.assert_allclose(mine.interval, -np.array(other.interval)[::-1])
    assert up.surfaces[800].validation.weights == down.surfaces[800].validation.weights


@pytest.mark.usefixtures("quick")
def test_runs_of_one_size_say_nothing_of_others(problem: TransportProblem, excess: Excess) -> None:
    weights = dirichlet(3, 8, 0)
    model = fit_score_model(table_of(excess, weights, np.full(8, 500)), problem, LOSS, predictor="ot_linear")
    np.testing.assert_allclose(model.predict(weights).mean, excess(weights, 500), rtol=1e-6)
    assert model.projection is None
    assert model.noise_gain(900) is None
    with pytest.raises(ConfigError, match=r"one size only \(500\), which says nothing of 900"):
        model.predict(weights, 900)


@pytest.mark.usefixtures("quick")
def test_runs_of_many_sizes_are_carried_to_the_largest(problem: TransportProblem, excess: Excess) -> None:
    mixtures = dirichlet(3, 9, 0)
    # All at another size each, but for two mixtures that were trained again.
    weights = np.concatenate([mixtures, mixtures[:2]])
    sizes = np.array([100, 130, 150, 190, 260, 300, 350, 410, 500, 1000, 1200])
    model = fit_score_model(table_of(excess, weights, sizes), problem, LOSS, predictor="ot_linear")
    assert (model.pooled, model.reference, model.projection) == (True, 1200, "power_shared")
    asked = dirichlet(3, 20, 5)
    for size in (100, 1200, 9000):
        np.testing.assert_allclose(model.predict(asked, size).mean, excess(asked, size), rtol=1e-6)
    other = fit_score_model(
        table_of(excess, weights, sizes), problem, LOSS, predictor="ot_linear", projection="power"
    )
    assert other.projection == "power_shared"
    assert "projection power wants 4 mixtures at each of two sizes" in other.notes


def test_runs_that_share_no_size_and_no_mixture_are_refused(problem: TransportProblem, excess: Excess) -> None:
    table = table_of(excess, dirichlet(3, 9, 0), np.arange(100, 109))
    with pytest.raises(DataError, match="give runs of about the same size one size"):
        fit_score_model(table, problem, LOSS)


@pytest.mark.usefixtures("quick")
def test_few_runs_at_the_largest_size_only_give_the_exponent(problem: TransportProblem, excess: Excess) -> None:
    mixtures = dirichlet(3, 10, 0)
    weights, sizes = np.concatenate([mixtures, mixtures[:2]]), np.repeat([100, 1600], [10, 2])
    model = fit_score_model(table_of(excess, weights, sizes), problem, LOSS, predictor="ot_linear")
    assert (model.pooled, list(model.surfaces)) == (True, [1600.0])
    np.testing.assert_allclose(model.predict(mixtures, 1600).mean, excess(mixtures, 1600), rtol=1e-6)
    # Without a best value the two cannot be compared with the ten.
    free = fit_score_model(table_of(excess, weights, sizes), problem, Metric("loss"), predictor="ot_linear")
    assert (free.pooled, list(free.surfaces), free.projection) == (False, [100.0], None)
    assert free.notes == (
        "loss has no best possible value, so that nothing is projected: give the metric its low",
    )


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_metric_without_a_best_value_is_projected_by_a_line(
    problem: TransportProblem, excess: Excess, projection: ProjectionName
) -> None:
    table = table_of(excess, *two_sizes(6))
    model = fit_score_model(table, problem, Metric("bits"), predictor="ot_linear", projection=projection)
    assert model.projection == "log_linear"
    assert len(model.notes) == (projection != "log_linear")
    assert all("bits has no best possible value" in note and "log_linear" in note for note in model.notes)
    assert "give the metric its high" in "".join(
        fit_score_model(table, problem, Metric("bits", "maximize"), predictor="ot_linear").notes
    )


@pytest.mark.usefixtures("quick")
def test_sizes_that_are_close_are_noted(problem: TransportProblem, excess: Excess) -> None:
    weights, _ = two_sizes(6)
    table = table_of(excess, weights, np.repeat([1000, 1500], 6))
    model = fit_score_model(table, problem, LOSS, predictor="ot_linear", projection="log_linear")
    assert model.notes == ("the sizes of the runs are only 1.5 times apart: projections want 4 or more",)
    assert model.noise_gain(10_000) == pytest.approx(7.36, abs=0.01)


def test_a_table_has_shares_in_the_order_of_the_sources() -> None:
    runs = [TrainingRun({"wiki": 3, "news": 1}, 100, 0.5), TrainingRun({"news": 2}, 400, 0.4)]
    table = RunTable.of(runs, ["news", "code", "wiki"])
    np.testing.assert_allclose(table.weights, [[0.25, 0, 0.75], [1, 0, 0]])
    assert (table.sizes.tolist(), table.scores.tolist(), len(table)) == ([100, 400], [0.5, 0.4], 2)
    assert table.at(400).tolist() == [False, True]
    assert (table.n_mixtures(), table.n_mixtures(400)) == (2, 1)
    with pytest.raises(DataError, match="run 2 has a share of wiki, which is none of the sources news, code"):
        RunTable.of([TrainingRun({"news": 1}, 1, 0.0), *runs], ["news", "code"])
    with pytest.raises(DataError, match="run 1 has no share above 0"):
        RunTable.of([TrainingRun({"news": 0}, 1, 0.0)], ["news"])


def test_runs_that_cannot_be_right_are_refused(problem: TransportProblem, excess: Excess) -> None:
    table = table_of(excess, *two_sizes(6))
    percent = RunTable(table.weights, table.sizes, 100 * (1 - table.scores))
    with pytest.raises(DataError, match=r"run 1 has the accuracy .*, above the metric's bound 1: .*percent"):
        fit_score_model(percent, problem, Metric("accuracy", "maximize", 0.0, 1.0))
    with pytest.raises(DataError, match=r"run \d+ has the loss .*, below the metric's bound 0\.2"):
        fit_score_model(table, problem, Metric("loss", low=0.2))
    for few in (table.at(-1), np.arange(12) % 6 == 0):
        with pytest.raises(DataError, match="fewer than two different mixtures"):
            fit_score_model(RunTable(table.weights[few], table.sizes[few], table.scores[few]), problem, LOSS)


@pytest.mark.usefixtures("quick")
def test_likelihoods_give_the_ensemble_and_are_thinned_alike_for_all(
    problem: TransportProblem, excess: Excess
) -> None:
    weights = dirichlet(3, 8, 0)
    likelihoods = np.random.default_rng(0).uniform(0.05, 1, (45_000, 3))
    table = table_of(excess, weights, np.full(8, 500))
    model = fit_score_model(table, problem, LOSS, predictor="mixmin", likelihoods=likelihoods)
    np.testing.assert_array_equal(model.likelihoods, likelihoods[::3])
    expected = -np.log(likelihoods[::3] @ weights.T).mean(axis=0)
    np.testing.assert_allclose(model.design(weights).ensemble, expected)
    assert fit_score_model(table, problem, LOSS, predictor="mean").design(weights).ensemble is None
