"""The mixture that is chosen and those to train next: linear programs, SciPy, grids, and scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from support import total_variation

from mixwright.errors import ConfigError, ConvergenceError
from mixwright.schemas.training_runs import Metric
from mixwright.selectors.projektor import cross_validation, mixmin
from mixwright.selectors.projektor.cross_validation import (
    AUTO_MEMBERS,
    CrossValidation,
    Member,
    Surface,
    fit_surface,
)
from mixwright.selectors.projektor.descent import descend
from mixwright.selectors.projektor.design import Design
from mixwright.selectors.projektor.gaussian_process import GaussianProcess
from mixwright.selectors.projektor.methods import choices
from mixwright.selectors.projektor.mixmin import ensemble_losses, ensemble_slopes, mixmin_weights
from mixwright.selectors.projektor.optimization import best_mixture, least_transport, loss_gradient
from mixwright.selectors.projektor.planning import plan_mixtures, plan_next, plan_with_model
from mixwright.selectors.projektor.predictors import PREDICTORS
from mixwright.selectors.projektor.problem import transport_problem
from mixwright.selectors.projektor.score_model import RunTable, ScoreModel, fit_score_model
from mixwright.selectors.projektor.simplex import dirichlet, project_to_simplex, simplex_grid
from mixwright.selectors.projektor.study import Study
from mixwright.selectors.projektor.transport import Points, TransportProblem

Array = npt.NDArray[np.float64]
FREE = np.ones(3)
CAPS = np.array([0.25, 0.6, 0.5])


def constrained(objective: Callable[[Array], float], caps: Array, slopes: Callable[[Array], Array]) -> float:
    """The least value over mixtures within caps, by SciPy."""
    solved = minimize(
        objective,
        project_to_simplex(np.full(len(caps), 1 / len(caps)), caps),
        jac=slopes,
        method="SLSQP",
        bounds=[(0, cap) for cap in caps],
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": lambda p: np.ones(len(p))},
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    return float(solved.fun)


def within(weights: Array, caps: Array) -> bool:
    """True if mixtures (…, k) are on the simplex and no share is above its cap."""
    sums = np.abs(weights.sum(axis=-1) - 1) < 1e-9
    return bool(sums.all() and (weights >= 0).all() and (weights <= caps + 1e-9).all())


# MixMin


def likelihoods_of(seed: int, k: int, n: int = 300, difference: float = 1.0) -> Array:
    """Of n units: hard and easy ones alike for all k models, which differ by so many standard deviations."""
    rng = np.random.default_rng(seed)
    return np.asarray(np.exp(rng.normal(-2, 1, (n, 1)) + difference * rng.normal(size=(n, k))))


@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([0.1, 1.0, 3.0]))
@settings(max_examples=30, deadline=None)
def test_mixmin_finds_the_optimum_that_scipy_finds(seed: int, k: int, difference: float) -> None:
    likelihoods = likelihoods_of(seed, k, difference=difference)
    found = mixmin_weights(likelihoods)
    assert within(found, np.ones(k))
    expected = constrained(
        lambda p: float(-np.log(likelihoods @ p).mean()),
        np.ones(k),
        lambda p: -(likelihoods / (likelihoods @ p)[:, None]).mean(axis=0),
    )
    assert ensemble_losses(found[None], likelihoods)[0] == pytest.approx(expected, abs=5e-5)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_capped_mixmin_obeys_the_caps_and_beats_a_grid(seed: int) -> None:
    likelihoods = likelihoods_of(seed, 3, difference=1.0)
    found = mixmin_weights(likelihoods, CAPS)
    assert within(found, CAPS)
    grid = simplex_grid(3, 40)
    grid = grid[(grid <= CAPS).all(axis=1)]
    assert ensemble_losses(found[None], likelihoods)[0] <= ensemble_losses(grid, likelihoods).min() + 1e-5


def test_caps_that_do_not_bind_change_nothing() -> None:
    likelihoods = likelihoods_of(3, 3)
    free = mixmin_weights(likelihoods)
    np.testing.assert_array_equal(mixmin_weights(likelihoods, np.minimum(free + 0.01, 1)), free)


def test_mixmin_recovers_the_mixture_that_the_validation_set_is_of() -> None:
    rng = np.random.default_rng(0)
    words = rng.dirichlet(np.full(50, 0.5), 3)
    truth = np.array([0.6, 0.3, 0.1])
    drawn = rng.choice(50, 20_000, p=truth @ words)
    np.testing.assert_allclose(mixmin_weights(words[:, drawn].T), truth, atol=0.03)


@pytest.mark.parametrize("seed", range(8))
def test_models_that_hardly_differ_are_no_reason_to_fail(seed: int) -> None:
    likelihoods = likelihoods_of(seed, 6, difference=0.005)
    # The first is about the average of all, so that the optimum is flat.
    likelihoods[:, 0] = likelihoods.mean(axis=1)
    found = mixmin_weights(likelihoods)
    assert ensemble_losses(found[None], likelihoods)[0] <= ensemble_losses(np.eye(6), likelihoods).min() + 1e-4


def test_mixmin_that_stops_early_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixmin, "_ITERATIONS", 2)
    with pytest.raises(ConvergenceError, match="MixMin stopped after 2 iterations"):
        mixmin_weights(likelihoods_of(0, 4))


def test_ensembles_are_averages_of_probabilities_in_blocks() -> None:
    likelihoods, weights = likelihoods_of(0, 4), dirichlet(4, 150, 0)
    expected = [-np.log((likelihoods * each).sum(axis=1)).mean() for each in weights]
    np.testing.assert_allclose(ensemble_losses(weights, likelihoods), expected)
    np.testing.assert_allclose(ensemble_losses(weights, likelihoods.astype(np.float32)), expected, rtol=1e-5)
    # A unit that no model can say costs much, but not everything.
    assert np.isfinite(ensemble_losses(weights, np.vstack([likelihoods, np.zeros(4)]))).all()


def test_the_slopes_of_the_ensemble_are_those_of_finite_differences() -> None:
    likelihoods, step = likelihoods_of(1, 4), 1e-6
    for point in dirichlet(4, 5, 1):
        ends = [ensemble_losses(point + sign * step * np.eye(4), likelihoods) for sign in (1, -1)]
        slopes = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(ensemble_slopes(point, likelihoods), slopes - slopes.mean(), rtol=1e-5)


# Descent


@given(st.integers(0, 10_000), st.integers(2, 8), st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_descent_finds_the_optimum_of_quadratics_within_caps(seed: int, k: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    root, middle = rng.normal(size=(k, k)), rng.normal(1 / k, 1, k)
    matrix = scale * (root @ root.T + 0.1 * np.eye(k))
    caps = rng.uniform(1.2 / k, 1, k)

    def evaluate(point: Array) -> tuple[float, Array]:
        gap = point - middle
        return float(gap @ matrix @ gap), 2 * matrix @ gap

    found, value = descend(evaluate, rng.dirichlet(np.ones(k)), caps)
    assert within(found, caps)
    assert value == evaluate(found)[0]
    expected = constrained(lambda p: evaluate(p)[0] / scale, caps, lambda p: evaluate(p)[1] / scale)
    assert value / scale == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_descent_goes_to_the_best_corner_of_a_plane_and_stays_where_it_is_flat() -> None:
    slopes = np.array([3.0, -1.0, 2.0])
    for caps, expected in ((FREE, [0, 1, 0]), (CAPS, [0, 0.6, 0.4])):
        found, value = descend(lambda p: (float(p @ slopes), slopes), np.array([1.0, 0, 0]), caps)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert value == pytest.approx(slopes @ expected)
    start = np.array([0.2, 0.3, 0.5])
    np.testing.assert_allclose(descend(lambda p: (7.0, np.zeros(3)), start, FREE)[0], start, atol=1e-9)


# The mixture of least transport


def clouds(n: int = 60, v: int = 50) -> list[Points]:
    """Three samples, and one of a validation set nearer to the second and third."""
    rng = np.random.default_rng(0)
    middles = ([0.0, 0.0], [3.0, 0.0], [0.0, 3.0])
    validation = np.concatenate([rng.normal(middles[i], 1, (m, 2)) for i, m in enumerate((v // 10, v // 2, v))])
    return [*(Points.of(rng.normal(middle, 1, (n, 2))) for middle in middles), Points.of(validation)]


@pytest.fixture(scope="module")
def problem() -> TransportProblem:
    *pilots, validation = clouds()
    return transport_problem(pilots, validation)


def least_by_linear_program(problem: TransportProblem, caps: Array) -> tuple[float, Array]:
    """min over plans and mixtures at once: what leaves a point is its source's share times its mass."""
    (n, v), k = problem.costs.shape, problem.n_sources
    leaving = np.kron(np.eye(n), np.ones(v))
    shares = -np.eye(k)[problem.source] * problem.mass[:, None]
    arriving = np.hstack([np.kron(np.ones(n), np.eye(v)), np.zeros((v, k))])
    solved = linprog(
        np.concatenate([problem.costs.astype(np.float64).ravel(), np.zeros(k)]),
        A_eq=np.vstack([np.hstack([leaving, shares]), arriving]),
        b_eq=np.concatenate([np.zeros(n), problem.target]),
        bounds=[(0, None)] * (n * v) + [(0, cap) for cap in caps],
        method="highs",
    )
    assert solved.status == 0
    return float(solved.fun), solved.x[-k:]


@pytest.mark.parametrize("caps", [FREE, CAPS], ids=["free", "capped"])
def test_the_nearest_mixture_is_that_of_a_linear_program(caps: Array) -> None:
    *pilots, validation = clouds(20, 16)
    problem = transport_problem(pilots, validation)
    found = least_transport(problem, caps)
    assert within(found, caps)
    value, weights = least_by_linear_program(problem, caps)
    assert problem.solve(found).value == pytest.approx(value, rel=1e-3)
    assert np.abs(found - weights).max() < 0.03


@pytest.mark.parametrize("caps", [FREE, CAPS], ids=["free", "capped"])
def test_no_mixture_of_a_grid_is_nearer(problem: TransportProblem, caps: Array) -> None:
    grid = simplex_grid(3, 20)
    grid = grid[(grid <= caps + 1e-12).all(axis=1)]
    found = least_transport(problem, caps)
    assert problem.solve(found).value <= problem.values(grid).min() * (1 + 1e-4)


def test_the_nearest_mixture_is_the_one_that_the_validation_set_was_drawn_from() -> None:
    rng = np.random.default_rng(1)
    middles = rng.normal(0, 2, (4, 5))
    truth = np.array([0.4, 0.3, 0.2, 0.1])
    validation = np.concatenate([rng.normal(middles[i], 1, (round(800 * truth[i]), 5)) for i in range(4)])
    pilots = [Points.of(rng.normal(middle, 1, (200, 5))) for middle in middles]
    found = least_transport(transport_problem(pilots, Points.of(validation), centroids=100), np.ones(4))
    assert total_variation(found[None], truth[None])[0, 0] < 0.05


# The mixture with the best prediction


class Fit(NamedTuple):
    predictor: str
    ensemble: bool = False


FITS = [Fit("ot_gp"), Fit("rational_ot"), Fit("mixmin_gp", True), Fit("auto", True)]
LOSS = Metric("loss", "minimize", low=0.0)


@pytest.fixture(scope="module")
def likelihoods() -> npt.NDArray[np.float32]:
    """Of 500 units: most are best known by the third model, some by the second, few by the first."""
    rng = np.random.default_rng(0)
    owner = rng.choice(3, 500, p=[0.1, 0.35, 0.55])
    return np.where(owner[:, None] == np.arange(3), 0.6, 0.1 * rng.uniform(0.2, 1, (500, 3))).astype(np.float32)


def true_loss(problem: TransportProblem, weights: Array) -> Array:
    """Saturating in every share, with the optimum inside the simplex; about the transport as well."""
    worth = np.array([0.2, 0.5, 0.6])
    return np.asarray(1 + 0.1 * problem.values(weights) + (worth * np.exp(-4 * weights)).sum(axis=1))


@pytest.fixture(scope="module")
def models(problem: TransportProblem, likelihoods: npt.NDArray[np.float32]) -> dict[Fit, ScoreModel]:
    weights = np.concatenate([np.full((1, 3), 1 / 3), np.eye(3), dirichlet(3, 10, 3)])
    losses = true_loss(problem, weights)
    table = RunTable(np.tile(weights, (2, 1)), np.repeat([100.0, 800], 14), np.concatenate([1.6 * losses, losses]))
    slow = ("regmix", "pq_ridge", "rational", "mixing_law")
    with pytest.MonkeyPatch.context() as patch:
        for name in slow:
            patch.delitem(PREDICTORS, name)
        patch.setattr(
            cross_validation,
            "AUTO_MEMBERS",
            {name: share for name, share in AUTO_MEMBERS.items() if name not in slow},
        )
        return {
            fit: fit_score_model(
                table, problem, LOSS, predictor=fit.predictor, likelihoods=likelihoods if fit.ensemble else None
            )
            for fit in FITS
        }


@pytest.mark.parametrize("size", [800, 5000])
@pytest.mark.parametrize("fit", FITS, ids=str)
def test_the_gradient_of_the_predicted_loss_is_that_of_finite_differences(
    models: dict[Fit, ScoreModel], fit: Fit, size: float
) -> None:
    model, step = models[fit], 1e-5
    for point in 0.9 * dirichlet(3, 4, 2) + 0.1 / 3:
        solved = model.problem.solve(point)
        value, gradient = loss_gradient(model, point, solved.value, solved.gradient, size)
        assert value == pytest.approx(model.losses(model.design(point[None]), size)[0])
        assert gradient.sum() == pytest.approx(0, abs=1e-9)
        for source in range(3):
            towards = np.eye(3)[source] - np.eye(3)[(source + 1) % 3]
            ends = np.stack([point + step * towards, point - step * towards])
            up, down = model.losses(model.design(ends), size)
            expected = (up - down) / (2 * step)
            assert gradient @ towards == pytest.approx(expected, abs=0.02 * np.abs(gradient).max())


@pytest.mark.parametrize("caps", [FREE, CAPS], ids=["free", "capped"])
@pytest.mark.parametrize("fit", FITS, ids=str)
def test_no_mixture_of_a_fine_grid_is_predicted_to_be_better(
    models: dict[Fit, ScoreModel], fit: Fit, caps: Array
) -> None:
    model = models[fit]
    found = best_mixture(model, caps, 800, [np.full(3, 1 / 3)], seed=0)
    assert within(found, caps)
    grid = simplex_grid(3, 40)
    grid = grid[(grid <= caps + 1e-12).all(axis=1)]
    losses = model.losses(model.design(grid), 800)
    assert model.losses(model.design(found[None]), 800)[0] <= losses.min() + 2e-3 * np.ptp(losses)


def test_the_chosen_mixture_is_nearly_the_best_in_truth(models: dict[Fit, ScoreModel]) -> None:
    model, grid = models[Fit("ot_gp")], simplex_grid(3, 40)
    truth = true_loss(model.problem, grid)
    for size in (800, 20_000):
        found = best_mixture(model, FREE, size, [np.full(3, 1 / 3)], seed=0)
        assert true_loss(model.problem, found[None])[0] - truth.min() < 0.03 * np.ptp(truth)


def test_many_sources_are_searched_by_draws() -> None:
    k = 12
    rng = np.random.default_rng(0)
    *pilots, validation = (Points.of(rng.normal(rng.normal(size=3), 1, (20, 3))) for _ in range(k + 1))
    problem = transport_problem(pilots, validation)
    weights = dirichlet(k, 20, 0, 0.5)
    target = rng.dirichlet(np.ones(k))
    runs = Design(weights, problem.values(weights))
    losses = ((np.sqrt(weights) - np.sqrt(target)) ** 2).sum(axis=1)
    process = GaussianProcess.fit(runs, losses)
    surface = Surface((Member(1.0, PREDICTORS["ot_gp"].fit(runs, losses, 0), 1.0),), 0.1, CrossValidation({}, {}))
    table = RunTable(weights, np.full(20, 9.0), losses)
    model = ScoreModel(table, problem, LOSS, "ot_gp", None, {9.0: surface}, None, False)
    caps = np.full(k, 0.3)
    found = best_mixture(model, caps, 9.0, [np.full(k, 1 / k), target], seed=0)
    assert within(found, caps)
    drawn = project_to_simplex(dirichlet(k, 400, 5), caps)
    assert model.losses(model.design(found[None]), 9.0)[0] <= process.mean(model.design(drawn)).min()


# What to train next


def hellinger(left: Array, right: Array) -> Array:
    return np.asarray(np.sqrt(((np.sqrt(left)[:, None] - np.sqrt(right)[None]) ** 2).sum(axis=2)))


def closest(mixtures: Array) -> float:
    """The distance of the two that are nearest to each other."""
    distances = hellinger(mixtures, mixtures)
    np.fill_diagonal(distances, np.inf)
    return float(distances.min())


def has(mixtures: Array, wanted: Array) -> bool:
    return bool((np.abs(mixtures[:, None] - wanted[None]).max(axis=2).min(axis=0) < 1e-9).all())


@pytest.mark.parametrize(("k", "n"), [(2, 5), (3, 12), (5, 16), (9, 20)])
def test_planned_mixtures_are_spread_better_than_random_ones(k: int, n: int) -> None:
    planned = plan_mixtures(k, n)
    assert planned.shape == (n, k)
    assert within(planned, np.ones(k))
    assert closest(planned) > 1.2 * max(closest(dirichlet(k, n, seed)) for seed in range(20))
    assert has(planned, np.full((1, k), 1 / k))
    assert has(planned, np.eye(k)) == (n >= 2 * k)
    np.testing.assert_array_equal(planned, plan_mixtures(k, n))


def test_few_mixtures_are_the_uniform_one_and_what_is_furthest() -> None:
    np.testing.assert_allclose(plan_mixtures(4, 1), np.full((1, 4), 0.25))
    second = plan_mixtures(3, 2)[1]
    # Single sources are the furthest from the uniform mixture.
    assert sorted(second) == pytest.approx([0, 0, 1])
    with pytest.raises(ConfigError, match="0 mixtures to plan"):
        plan_mixtures(3, 0)


def test_what_was_trained_is_not_planned_again() -> None:
    first = plan_mixtures(3, 8)
    later = plan_mixtures(3, 6, existing=first)
    assert len(later) == 6
    assert closest(np.concatenate([first, later])) > 0.1
    # Uniform and single sources were there.
    assert not has(later, np.full((1, 3), 1 / 3))
    # With what is there, single sources are asked for as soon as all are 2 k.
    assert has(plan_mixtures(3, 4, existing=np.array([[0.5, 0.5, 0], [0.1, 0.8, 0.1]])), np.eye(3))


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_planned_mixtures_keep_to_the_caps(seed: int, k: int, n: int) -> None:
    caps = np.random.default_rng(seed).uniform(1.3 / k, 1.1, k)
    planned = plan_mixtures(k, n, seed=seed, caps=caps)
    assert len(planned) == n
    assert within(planned, caps)
    assert n == 1 or closest(planned) > 1e-3


def test_no_more_is_planned_than_there_is() -> None:
    assert plan_mixtures(1, 3).tolist() == [[1.0]]
    only = np.array([0.2, 0.3, 0.5])
    np.testing.assert_allclose(plan_mixtures(3, 4, caps=only), only[None], atol=1e-9)
    assert len(plan_mixtures(3, 4, caps=only, existing=only[None])) == 0


def test_the_first_mixture_is_the_most_hopeful(models: dict[Fit, ScoreModel]) -> None:
    model, grid = models[Fit("ot_gp")], simplex_grid(3, 20)
    grid = grid[hellinger(grid, model.table.weights).min(axis=1) > 1e-3]
    forecast = model.predict(grid, 800, model.problem.lower_bound(grid))
    for bonus in (0.0, 1.0, 20.0):
        first = plan_with_model(model, 1, caps=FREE, bonus=bonus)
        assert first.shape == (1, 3)
        mine = model.predict(first, 800, model.problem.lower_bound(first))
        assert (mine.mean - bonus * mine.deviation)[0] <= (forecast.mean - bonus * forecast.deviation).min() + 1e-5
    for caps in (FREE, CAPS):
        planned = plan_with_model(model, 5, caps=caps, size=5000)
        assert within(planned, caps)
        assert closest(planned) > 1e-3
        assert hellinger(planned, model.table.weights).min() > 1e-3
    with pytest.raises(ConfigError, match="0 mixtures to plan"):
        plan_with_model(model, 0, caps=FREE)


def test_the_later_mixtures_are_where_least_is_known(models: dict[Fit, ScoreModel]) -> None:
    model, grid = models[Fit("ot_gp")], simplex_grid(3, 20)
    # With so large a bonus every mixture may be the best.
    planned = plan_with_model(model, 4, caps=FREE, bonus=1000.0)
    here = model.table.at(800)
    trained = model.design(model.table.weights[here])
    process = GaussianProcess.fit(trained, model.surfaces[800].mean(trained))
    asked = Design(grid, model.problem.lower_bound(grid))

    def unknown(mixtures: Array) -> float:
        return float(process.with_runs(Design(mixtures, model.problem.values(mixtures))).deviation(asked).max())

    for number in range(1, 4):
        later = process.with_runs(Design(planned[:number], model.problem.lower_bound(planned[:number])))
        chosen = Design(planned[[number]], model.problem.lower_bound(planned[[number]]))
        assert later.deviation(chosen)[0] >= later.deviation(asked).max() - 1e-6
    assert unknown(planned) < unknown(planned[:1])
    assert unknown(planned) < np.median([unknown(dirichlet(3, 4, seed)) for seed in range(15)])
    # With none, only what may still be the best is asked for, and no mixture that is surely worse.
    narrow = plan_with_model(model, 4, caps=FREE, bonus=1.0)
    forecast, best = model.predict(narrow), model.predict(grid)
    reach = (best.mean + best.deviation).min()
    assert (forecast.mean - forecast.deviation <= reach + 0.01 * np.ptp(best.mean)).all()


def test_nothing_is_left_to_plan_where_the_caps_leave_one_mixture(models: dict[Fit, ScoreModel]) -> None:
    model = models[Fit("ot_gp")]
    assert plan_with_model(model, 3, caps=np.full(3, 1 / 3)).shape == (0, 3)
    assert len(plan_with_model(model, 3, caps=np.array([0.2, 0.3, 0.5]))) == 1


def study_of(problem: TransportProblem, model: ScoreModel | None, caps: Array) -> Study:
    names = ("a", "b", "c")
    return Study(names, names, problem, model, "tokens", 800, np.full(3, 1e4), caps, (60, 60, 60), 0)


@pytest.mark.parametrize("caps", [FREE, CAPS], ids=["free", "capped"])
def test_every_method_chooses_by_its_own_rule(
    models: dict[Fit, ScoreModel], likelihoods: npt.NDArray[np.float32], caps: Array
) -> None:
    model = models[Fit("auto", True)]
    found = {each.method: each.weights for each in choices(study_of(model.problem, model, caps))}
    assert list(found) == ["projektor", "least transport", "mixmin", "regmix", "mixing_law"]
    assert all(within(each, caps + 1e-6) for each in found.values())
    grid = simplex_grid(3, 40)
    grid = grid[(grid <= caps + 1e-12).all(axis=1)]
    plain = Design(grid, np.zeros(len(grid)))
    runs = model.table.at(800)
    trained, scores = Design(model.table.weights[runs], np.zeros(int(runs.sum()))), model.table.scores[runs]

    def excess(method: str, losses: Callable[[Array], Array]) -> float:
        best = losses(grid)
        return float((losses(found[method][None])[0] - best.min()) / np.ptp(best))

    assert excess("projektor", lambda p: model.losses(model.design(p), 800)) < 0.01
    assert excess("least transport", model.problem.values) < 0.01
    assert excess("mixmin", lambda p: ensemble_losses(p, likelihoods)) < 0.01
    law = PREDICTORS["mixing_law"].fit(trained, scores, 0)
    assert excess("mixing_law", lambda p: law.mean(Design(p, np.zeros(len(p))))) < 0.01
    trees = PREDICTORS["regmix"].fit(trained, scores, 0)
    assert trees.mean(Design(found["regmix"][None], np.zeros(1)))[0] <= np.quantile(trees.mean(plain), 0.2)


def test_without_runs_only_the_transport_chooses(problem: TransportProblem) -> None:
    study = study_of(problem, None, CAPS)
    found = {each.method: each for each in choices(study)}
    np.testing.assert_array_equal(found["projektor"].weights, found["least transport"].weights)
    assert found["mixmin"].note == "needs single-source runs with likelihoods"
    assert found["regmix"].note == found["mixing_law"].note == "needs runs"
    np.testing.assert_array_equal(plan_next(study, 5), plan_mixtures(3, 5, caps=CAPS))


def test_the_next_mixtures_of_a_study_are_planned_by_its_model(models: dict[Fit, ScoreModel]) -> None:
    model = models[Fit("ot_gp")]
    planned = plan_next(study_of(model.problem, model, CAPS), 3)
    np.testing.assert_array_equal(planned, plan_with_model(model, 3, caps=CAPS, size=800.0))


# Handwritten digits


class Digits(NamedTuple):
    """Mixtures (n, 3), their transport and their accuracies at three sizes."""

    grid: Array
    problem: TransportProblem
    transport: Array
    accuracies: dict[int, Array]


@pytest.fixture(scope="module")
def digits() -> Digits:
    """Three sources with most documents of six, two and two classes; a validation set of all ten."""
    rng = np.random.default_rng(0)
    data = load_digits()
    order = rng.permutation(len(data.target))
    vectors, labels = (data.data[order] / 16).astype(np.float32), data.target[order]
    unseen, truth, vectors, labels = vectors[:500], labels[:500], vectors[500:], labels[500:]
    home = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
    source = np.where(rng.random(len(labels)) < 0.9, home[labels], rng.integers(0, 3, len(labels)))
    pools = [np.flatnonzero(source == number) for number in range(3)]

    def accuracy(weights: Array, size: int) -> float:
        """Of a classifier of ``size`` documents, the mean of two draws."""
        found = []
        for draw in range(2):
            own = np.random.default_rng([size, draw])
            rows = [own.choice(pool, round(w * size)) for pool, w in zip(pools, weights, strict=True)]
            chosen = np.concatenate(rows)
            model = LogisticRegression(max_iter=300).fit(vectors[chosen], labels[chosen])
            found.append(model.score(unseen, truth))
        return float(np.mean(found))

    grid = simplex_grid(3, 6)
    pilots = [Points.of(vectors[pool[:250]], labels[pool[:250]]) for pool in pools]
    problem = transport_problem(pilots, Points.of(unseen, truth), label_cost="zero_one", centroids=128)
    accuracies = {size: np.array([accuracy(each, size) for each in grid]) for size in (60, 240, 960)}
    return Digits(grid, problem, problem.values(grid), accuracies)


def split(digits: Digits, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """12 mixtures to train, and the rest."""
    order = np.random.default_rng(seed).permutation(len(digits.grid))
    return order[:12], order[12:]


SEEDS = (0, 1, 2)


def errors(digits: Digits, predictor: str) -> float:
    """Mean absolute error over the mixtures that were not trained, K = 12, over some draws."""
    found = []
    for seed in SEEDS:
        seen, rest = split(digits, seed)
        runs, asked = (Design(digits.grid[rows], digits.transport[rows]) for rows in (seen, rest))
        losses = -digits.accuracies[240]
        if predictor == "auto":
            predicted = fit_surface(runs, losses[seen], "auto", seed).mean(asked)
        else:
            predicted = PREDICTORS[predictor].fit(runs, losses[seen], seed).mean(asked)
        found.append(np.abs(predicted - losses[rest]).mean())
    return float(np.mean(found))


def test_transport_tells_good_mixtures_of_digits(digits: Digits) -> None:
    assert np.corrcoef(digits.transport, digits.accuracies[240])[0, 1] < -0.7


def test_auto_predicts_digits_better_than_their_mean(digits: Digits) -> None:
    assert errors(digits, "auto") < 0.75 * errors(digits, "mean")


def test_ridge_predicts_digits_no_worse_than_the_published_least_squares(digits: Digits) -> None:
    assert errors(digits, "pq_ridge") <= errors(digits, "pq_ols")


def test_the_nearest_mixture_of_digits_needs_no_training_to_be_good(digits: Digits) -> None:
    found = least_transport(digits.problem, FREE)
    near, uniform = (
        digits.accuracies[240][total_variation(digits.grid, each[None])[:, 0].argmin()]
        for each in (found, np.full(3, 1 / 3))
    )
    assert near > uniform - 0.01
    assert digits.accuracies[240].max() - near < 0.05


def test_a_shared_power_law_predicts_larger_trainings_on_digits_better_than_a_line(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slow in ("regmix", "pq_ridge"):
        monkeypatch.delitem(PREDICTORS, slow)
    seen, rest = split(digits, 0)
    scores = np.concatenate([digits.accuracies[size][seen] for size in (60, 240)])
    table = RunTable(np.tile(digits.grid[seen], (2, 1)), np.repeat([60.0, 240.0], 12), scores)
    metric = Metric("accuracy", "maximize", 0.0, 1.0)
    error = {}
    for projection in ("power_shared", "log_linear"):
        model = fit_score_model(table, digits.problem, metric, predictor="ot_gp", projection=projection)
        found = model.predict(digits.grid[rest], 960, digits.transport[rest]).mean
        error[projection] = np.abs(found - digits.accuracies[960][rest]).mean()
    assert error["power_shared"] < 0.8 * error["log_linear"]
