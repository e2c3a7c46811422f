"""Mixtures as points, and their transport to a validation set: linear programs, closed forms, differences."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from scipy.sparse import block_array, eye_array, kron
from scipy.stats import wasserstein_distance
from support import total_variation

from mixwright.errors import ConfigError, ConvergenceError, DataError
from mixwright.indexes.kmeans import kmeans
from mixwright.selectors.projektor import transport as transport_module
from mixwright.selectors.projektor.costs import class_costs, compress, cost_blocks, feature_costs
from mixwright.selectors.projektor.problem import transport_problem
from mixwright.selectors.projektor.simplex import (
    dirichlet,
    inside_hull,
    project_to_simplex,
    simplex_grid,
)
from mixwright.selectors.projektor.transport import Points, TransportProblem

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def moved(costs: Array, masses: Array, target: Array) -> float:
    """The least cost of moving ``masses`` (n,) onto ``target`` (v,), by linear programming."""
    n, v = costs.shape
    rows, columns = kron(eye_array(n), np.ones((1, v))), kron(np.ones((1, n)), eye_array(v))
    solved = linprog(
        costs.ravel(),
        A_eq=block_array([[rows], [columns]]).tocsr(),
        b_eq=np.concatenate([masses, target]),
        method="highs",
    )
    assert solved.status == 0
    return float(solved.fun)


def samples(seed: int = 0, sizes: tuple[int, ...] = (9, 14, 6), v: int = 11, dim: int = 3) -> list[Points]:
    """Samples of some sources and, last, of a validation set; different means, masses and labels."""
    rng = np.random.default_rng(seed)
    return [
        Points(rng.normal(rng.normal(0, 1, dim), 1, (n, dim)), rng.dirichlet(np.ones(n)), rng.integers(0, 3, n))
        for n in (*sizes, v)
    ]


def problem_of(points: list[Points]) -> TransportProblem:
    return TransportProblem.of(points[:-1], points[-1], cost_blocks(points[:-1], points[-1], "none"))


def mixed(problem: TransportProblem, weights: Array) -> Array:
    return np.asarray(weights[problem.source] * problem.mass)


# Simplex


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0.02, 1.3)), min_size=1, max_size=8),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_projections_are_mixtures_and_meet_the_optimality_conditions(
    numbers: list[tuple[float, float]], capped: bool
) -> None:
    point, caps = (np.array(each) for each in zip(*numbers, strict=True))
    caps = caps * max(1.0, 1.0001 / caps.sum()) if capped else np.ones(len(caps))
    found = project_to_simplex(point, caps if capped else None)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert (found >= 0).all()
    assert (found <= np.minimum(caps, 1) + 1e-9).all()
    # One τ: shares between their bounds are point − τ, those at 0 want less, those at the cap want more.
    pulls = point - found
    at_zero, at_cap = found <= 1e-9, found >= np.minimum(caps, 1) - 1e-9
    between = ~at_zero & ~at_cap
    tau = pulls[between].mean() if between.any() else pulls[at_cap].min()
    np.testing.assert_allclose(pulls[between], tau, atol=1e-8)
    assert (pulls[at_zero & ~at_cap] <= tau + 1e-8).all()
    assert (pulls[at_cap & ~at_zero] >= tau - 1e-8).all()
    np.testing.assert_allclose(project_to_simplex(found, caps if capped else None), found, atol=1e-9)


@pytest.mark.parametrize("capped", [False, True])
def test_projections_are_those_of_a_quadratic_program(capped: bool) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(0, 1, (20, 4))
    caps = np.array([0.5, 0.2, 0.4, 1.0]) if capped else np.ones(4)
    found = project_to_simplex(points, caps)
    for point, each in zip(points, found, strict=True):
        solved = minimize(
            lambda p, point=point: float(((p - point) ** 2).sum()),
            np.full(4, 0.25),
            jac=lambda p, point=point: 2 * (p - point),
            method="SLSQP",
            bounds=[(0, cap) for cap in caps],
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(each, solved.x, atol=1e-6)


def test_no_grid_mixture_within_the_caps_is_nearer_than_the_projection() -> None:
    rng = np.random.default_rng(1)
    caps = np.array([0.6, 0.55, 0.35])
    grid = simplex_grid(3, 100)
    grid = grid[(grid <= caps + 1e-12).all(axis=1)]
    for point in rng.normal(0, 1, (30, 3)):
        nearest = ((grid - point) ** 2).sum(axis=1).min()
        found = ((project_to_simplex(point, caps) - point) ** 2).sum()
        assert nearest - 0.05 <= found <= nearest + 1e-12


def test_caps_that_leave_no_mixture_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"caps sum to 0\.900"):
        project_to_simplex(np.zeros(3), np.array([0.3, 0.3, 0.3]))
    caps = np.array([0.2, 0.3, 0.5])
    np.testing.assert_allclose(project_to_simplex(np.array([9.0, -9.0, 0.0]), caps), caps, atol=1e-9)


@pytest.mark.parametrize(("k", "steps", "n"), [(1, 7, 1), (2, 5, 6), (3, 40, 861), (4, 10, 286), (6, 1, 6)])
def test_grids_have_every_mixture_of_their_steps_once(k: int, steps: int, n: int) -> None:
    grid = simplex_grid(k, steps)
    assert grid.shape == (n, k)
    assert grid.min() >= 0
    np.testing.assert_allclose(grid.sum(axis=1), 1)
    np.testing.assert_allclose(grid * steps, np.round(grid * steps), atol=1e-9)
    assert len(np.unique(np.round(grid * steps), axis=0)) == n


def test_draws_are_seeded_and_their_concentration_is_that_of_dirichlet() -> None:
    for concentration in (0.2, 1.0):
        draws = dirichlet(4, 20_000, 3, concentration)
        np.testing.assert_array_equal(draws, dirichlet(4, 20_000, 3, concentration))
        np.testing.assert_allclose(draws.mean(axis=0), 0.25, atol=0.01)
        variance = 0.25 * 0.75 / (4 * concentration + 1)
        np.testing.assert_allclose(draws.var(axis=0), variance, rtol=0.05)
    assert (dirichlet(4, 10, 3) != dirichlet(4, 10, 4)).all()


def test_total_variation_is_the_share_that_moves() -> None:
    weights = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    np.testing.assert_allclose(total_variation(weights, weights), [[0, 0.5], [0.5, 0]])


def test_what_is_inside_the_hull_is_an_average_of_the_sampled() -> None:
    sampled = np.array([[1.0, 0, 0], [0, 1, 0], [0.2, 0.2, 0.6]])
    rng = np.random.default_rng(0)
    for shares in rng.dirichlet(np.ones(3), 20):
        assert inside_hull(shares @ sampled, sampled)
    # The third share is at most .6, and each unit of it needs a third of both others.
    assert not inside_hull(np.array([0.0, 0, 1]), sampled)
    assert not inside_hull(np.array([0.5, 0.0, 0.5]), sampled)
    # To the nearest average, (.18 + .2, .2, …), a total variation of exactly .05 is missing.
    outside = np.array([0.25, 0.1, 0.65])
    distances = total_variation(outside[None], simplex_grid(3, 50) @ sampled)
    assert not inside_hull(outside, sampled, tolerance=distances.min() - 0.01)
    assert inside_hull(outside, sampled, tolerance=distances.min() + 1e-9)


# Transport


@pytest.mark.parametrize("weights", [[0.2, 0.5, 0.3], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_transport_is_that_of_a_linear_program(seed: int, weights: list[float]) -> None:
    problem = problem_of(samples(seed))
    shares = np.array(weights)
    expected = moved(problem.costs.astype(np.float64), mixed(problem, shares), problem.target)
    assert problem.solve(shares).value == pytest.approx(expected, rel=1e-8)


def test_transport_of_a_line_is_that_of_the_quantiles() -> None:
    rng = np.random.default_rng(4)
    left, right, target = rng.normal(0, 1, 40), rng.normal(3, 2, 60), rng.normal(1, 1, 50)
    absolute = [np.abs(each[:, None] - target).astype(np.float32) for each in (left, right)]
    points = [Points.of(each[:, None]) for each in (left, right, target)]
    problem = TransportProblem.of(points[:2], points[2], absolute)
    for share in (0.0, 0.3, 1.0):
        masses = np.repeat([share / 40, (1 - share) / 60], [40, 60])
        expected = wasserstein_distance(np.concatenate([left, right]), target, masses)
        assert problem.solve(np.array([share, 1 - share])).value == pytest.approx(expected, rel=1e-5)
    # Half the squared distance: equal numbers of points go in their order.
    squared = transport_problem(points[:1], Points.of(target[:40, None]))
    expected = ((np.sort(left) - np.sort(target[:40])) ** 2).mean() / 2
    assert squared.solve(np.ones(1)).value == pytest.approx(expected, rel=1e-4)


def test_the_validation_set_is_at_no_distance_from_itself() -> None:
    points = samples()
    points.insert(1, points[-1])
    problem = problem_of(points)
    assert problem.solve(np.array([0.0, 1, 0, 0])).value == pytest.approx(0, abs=1e-6)
    assert problem.values(np.eye(4))[[0, 2, 3]].min() > 0.1


@given(st.integers(0, 10_000), st.sampled_from([(), (0,), (2,), (0, 1)]))
@settings(max_examples=25, deadline=None)
def test_the_gradient_is_that_of_finite_differences(seed: int, without: tuple[int, ...]) -> None:
    """From a mixture towards each source: also from where some sources have no share."""
    problem = problem_of(samples(5))
    weights = dirichlet(3, 1, seed)[0]
    weights[list(without)] = 0
    weights = 0.98 * weights / weights.sum()
    weights[[each for each in range(3) if each not in without]] += 0.02 / (3 - len(without))
    solved = problem.solve(weights)
    assert solved.gradient.sum() == pytest.approx(0, abs=1e-10)
    np.testing.assert_allclose(solved.gradient, solved.slopes - solved.slopes.mean(), atol=1e-12)
    scale, step = np.abs(solved.gradient).max(), 1e-7
    for source in range(3):
        towards = np.eye(3)[source] - weights
        found = (problem.solve(weights + step * towards).value - solved.value) / step
        assert found == pytest.approx(float(solved.gradient @ towards), abs=0.02 * scale)


def test_the_gradient_of_a_single_source_sees_the_others() -> None:
    rng = np.random.default_rng(8)
    # 150 and 151 points of equal mass: with as many on both sides the plan is an assignment, and OT has a kink.
    problem = problem_of([Points.of(rng.normal(mean, 1, (n, 2))) for mean, n in ((0, 150), (1, 150), (0.4, 151))])
    for start, source in ((np.array([1.0, 0.0]), 1), (np.array([0.0, 1.0]), 0)):
        solved, towards, step = problem.solve(start), np.eye(2)[source] - start, 1e-6
        found = (problem.solve(start + step * towards).value - solved.value) / step
        assert found == pytest.approx(float(solved.gradient @ towards), rel=0.02)


@given(st.integers(0, 10_000), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_transport_is_convex_along_segments(seed: int, share: float) -> None:
    problem = problem_of(samples(2))
    left, right = dirichlet(3, 2, seed, 0.5)
    between = problem.solve(share * left + (1 - share) * right).value
    assert between <= share * problem.solve(left).value + (1 - share) * problem.solve(right).value + 1e-8


def test_lower_bounds_are_below_everywhere_and_tight_where_it_was_solved() -> None:
    problem = problem_of(samples(3))
    grid = simplex_grid(3, 12)
    assert (problem.lower_bound(grid) == -np.inf).all()
    solved = np.array([[0.2, 0.3, 0.5], [1.0, 0, 0], [0.0, 0.6, 0.4], [0.0, 0.0, 1.0]])
    values = problem.values(solved)
    np.testing.assert_allclose(problem.lower_bound(solved), values, rtol=1e-9)
    bounds = problem.lower_bound(grid)
    slopes, intercepts = problem.cuts
    assert slopes.shape == (4, 3)
    np.testing.assert_allclose(bounds, (grid @ slopes.T + intercepts).max(axis=1))
    np.testing.assert_allclose(problem.bound_slopes(solved[0]), problem.solve(solved[0]).gradient, atol=1e-9)
    for value, weights in zip(values, solved, strict=True):
        tangent = value + (grid - weights) @ problem.solve(weights).slopes
        assert (tangent <= bounds + 1e-9).all()
    exact = problem_of(samples(3)).values(grid)
    assert (bounds <= exact + 1e-9).all()
    # Four tangents are not the whole of it; those of the grid are, there.
    assert (bounds < exact - 1e-3).any()
    problem.values(grid)
    np.testing.assert_allclose(problem.lower_bound(grid), exact, rtol=1e-7, atol=1e-9)
    assert len(problem.cuts[0]) == len(np.unique(np.round(np.vstack([solved, grid]), 9), axis=0))


def test_what_was_solved_before_changes_no_value() -> None:
    grid = simplex_grid(3, 6)
    cold = np.array([problem_of(samples(6)).solve(each).value for each in grid])
    for order in (np.arange(len(grid)), np.random.default_rng(0).permutation(len(grid))):
        warm = problem_of(samples(6))
        np.testing.assert_allclose(warm.values(grid[order]), cold[order], rtol=1e-9)


def test_a_mixture_is_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, calls = problem_of(samples()), []
    solve = problem._solve
    monkeypatch.setattr(problem, "_solve", lambda weights: calls.append(1) or solve(weights))
    weights = np.full(3, 1 / 3)
    assert problem.solve(weights) is problem.solve(weights + 1e-12)
    assert len(calls) == 1


@given(st.permutations(range(4)))
@settings(max_examples=15, deadline=None)
def test_permuting_the_sources_permutes_the_gradient(order: list[int]) -> None:
    points = samples(7, sizes=(9, 14, 6, 8))
    weights = np.array([0.1, 0.4, 0.3, 0.2])
    plain = problem_of(points).solve(weights)
    permuted = problem_of([points[each] for each in order] + points[-1:]).solve(weights[order])
    assert permuted.value == pytest.approx(plain.value, rel=1e-9)
    np.testing.assert_allclose(permuted.gradient, plain.gradient[order], atol=1e-7)


def test_a_solution_that_stops_early_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "_ITERATIONS", 2)
    with pytest.raises(ConvergenceError, match="fewer pilot or validation rows"):
        problem_of(samples()).solve(np.full(3, 1 / 3))


def test_samples_without_rows_or_with_other_labels_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        Points.of(np.empty((0, 3)))
    with pytest.raises(DataError, match="2 labels for 3 vectors"):
        Points.of(np.ones((3, 2)), np.array([0, 1]))
    np.testing.assert_allclose(Points.of(np.ones((4, 2))).mass, 0.25)


# Costs


def test_feature_costs_are_half_the_squared_distances() -> None:
    left, right = samples(1)[0].vectors, samples(1)[1].vectors
    expected = ((left[:, None] - right[None]) ** 2).sum(axis=2) / 2
    np.testing.assert_allclose(feature_costs(left, right), expected, rtol=1e-5, atol=1e-5)
    units = left / np.linalg.norm(left, axis=1, keepdims=True)
    np.testing.assert_allclose(feature_costs(units, units), 1 - units @ units.T, atol=1e-6)


def test_another_label_costs_as_much_as_the_median_text() -> None:
    *pilots, validation = samples(1)
    plain = cost_blocks(pilots, validation, "none")
    scale = np.median(np.concatenate([block.ravel() for block in plain]))
    for block, labelled, pilot in zip(plain, cost_blocks(pilots, validation, "zero_one"), pilots, strict=True):
        differ = pilot.labels[:, None] != validation.labels[None]
        assert 0 < differ.mean() < 1
        np.testing.assert_allclose(labelled, block + np.where(differ, scale, 0), rtol=1e-6)


def class_distance(left: Array, left_mass: Array, right: Array, right_mass: Array) -> float:
    costs = ((left[:, None] - right[None]) ** 2).sum(axis=2) / 2
    return moved(costs, left_mass / left_mass.sum(), right_mass / right_mass.sum())


def test_dataset_distance_adds_the_transport_between_the_classes() -> None:
    *pilots, validation = samples(1, sizes=(12, 15))
    pooled = np.concatenate([each.vectors for each in pilots])
    masses, labels = (np.concatenate([getattr(each, name) for each in pilots]) for name in ("mass", "labels"))
    between = np.zeros((3, 3))
    for c in range(3):
        for other in range(3):
            here, there = labels == c, validation.labels == other
            between[c, other] = class_distance(
                pooled[here], masses[here], validation.vectors[there], validation.mass[there]
            )
    np.testing.assert_allclose(class_costs(pilots, validation), between, rtol=1e-4, atol=1e-5)
    for block, found, pilot in zip(
        cost_blocks(pilots, validation, "none"), cost_blocks(pilots, validation, "otdd"), pilots, strict=True
    ):
        expected = block + between[pilot.labels][:, validation.labels]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("label_cost", ["zero_one", "otdd"])
def test_a_label_cost_wants_labels_of_all(label_cost: str) -> None:
    *pilots, validation = samples()
    for bare in (
        [[Points.of(pilots[0].vectors), *pilots[1:]], validation],
        [pilots, Points.of(validation.vectors)],
    ):
        with pytest.raises(DataError, match=f"label cost {label_cost} needs labels"):
            cost_blocks(*bare, label_cost)
        cost_blocks(*bare, "none")


def blobs(n: int, seed: int, labels: bool, spread: float = 1.0) -> Points:
    """Points far from unit length, of four groups that are the labels."""
    rng = np.random.default_rng(seed)
    groups = rng.choice(4, n, p=rng.dirichlet(np.full(4, 2.0)))
    middles = 5 + 3 * np.random.default_rng(99).normal(size=(4, 6))
    vectors = middles[groups] + spread * rng.normal(size=(n, 6))
    return Points.of(vectors, groups if labels else None)


@pytest.mark.parametrize("spread", [0.1, 1.0])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("n", [12, 50])
def test_centroids_keep_the_mass_of_every_label_and_the_mean(n: int, labels: bool, spread: float) -> None:
    points = blobs(900, 3, labels, spread)
    found = compress(points, n, seed=0)
    assert len(found.mass) == len(found.vectors)
    assert n - 4 <= len(found.mass) <= n + 4
    assert found.mass.min() > 0
    assert found.mass.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.mass @ found.vectors, points.mass @ points.vectors, rtol=1e-5)
    assert (found.labels is None) == (not labels)
    if labels:
        for label in range(4):
            assert found.mass[found.labels == label].sum() == pytest.approx((points.labels == label).mean())
            mine, all_of_it = found.labels == label, points.labels == label
            np.testing.assert_allclose(
                (found.mass[mine] @ found.vectors[mine]) / found.mass[mine].sum(),
                points.vectors[all_of_it].mean(axis=0),
                rtol=1e-5,
            )
    again = compress(points, n, seed=0)
    np.testing.assert_array_equal(again.vectors, found.vectors)


def test_small_samples_stay_as_they_are() -> None:
    points = blobs(40, 0, labels=True)
    assert compress(points, 40, seed=0) is points
    few = compress(points, 39, seed=0)
    assert len(few.mass) <= 40
    # A label with a row at least, however few centroids there are.
    assert set(compress(points, 2, seed=0).labels) == set(points.labels)


def test_centroids_have_masses_of_points_that_were_weighted() -> None:
    points = blobs(300, 1, labels=False)
    heavy = Points(points.vectors, np.random.default_rng(0).dirichlet(np.full(300, 0.3)))
    found = compress(heavy, 20, seed=0)
    np.testing.assert_allclose(found.mass @ found.vectors, heavy.mass @ heavy.vectors, rtol=1e-5)
    nearest = feature_costs(heavy.vectors, found.vectors).argmin(axis=1)
    agree = np.bincount(nearest, heavy.mass, minlength=len(found.mass))
    assert np.abs(agree - found.mass).sum() < 0.1


@pytest.mark.parametrize("label_cost", ["none", "zero_one", "otdd"])
def test_the_problem_of_centroids_is_close_to_the_exact_one(label_cost: str) -> None:
    *pilots, validation = [blobs(400, seed, labels=True) for seed in range(4)]
    weights = simplex_grid(3, 4)
    exact = transport_problem(pilots, validation, label_cost=label_cost, centroids=None)
    small = transport_problem(pilots, validation, label_cost=label_cost, centroids=64)
    assert exact.costs.shape == (1200, 400)
    assert small.costs.shape[0] <= 3 * 70
    values, approximate = exact.values(weights), small.values(weights)
    assert np.corrcoef(values, approximate)[0, 1] > 0.99
    assert np.abs(approximate - values).max() < 0.35 * values.mean()


def test_many_sources_have_fewer_centroids_each() -> None:
    pilots = [blobs(60, seed, labels=False) for seed in range(40)]
    problem = transport_problem(pilots, blobs(2000, 50, labels=False))
    assert problem.n_sources == 40
    assert problem.costs.shape[0] <= 1024
    assert problem.costs.size <= 1 << 18
    np.testing.assert_allclose(np.bincount(problem.source, problem.mass), 1)
    assert problem.target.sum() == pytest.approx(1)


def test_a_source_with_noisier_labels_is_farther_away() -> None:
    rng = np.random.default_rng(0)
    clean, validation = blobs(300, 20, labels=True), blobs(300, 20, labels=True)
    fifth, half = clean.labels.copy(), clean.labels.copy()
    for labels, share in ((fifth, 0.2), (half, 0.5)):
        wrong = rng.random(300) < share
        labels[wrong] = rng.integers(0, 4, wrong.sum())
    sources = [clean, Points.of(clean.vectors, fifth), Points.of(clean.vectors, half)]
    at_once = np.eye(3)
    by_label = transport_problem(sources, validation, label_cost="zero_one", centroids=None).values(at_once)
    assert by_label[0] < by_label[1] - 0.05
    assert by_label[1] < by_label[2] - 0.05
    blind = transport_problem(sources, validation, label_cost="none", centroids=None).values(at_once)
    np.testing.assert_allclose(blind, 0, atol=1e-4)


def test_centroids_of_any_vectors_are_means_of_those_nearest() -> None:
    vectors = blobs(500, 0, labels=False, spread=0.3).vectors.astype(np.float32)
    centroids = kmeans(vectors, 4, seed=0, iterations=30, restarts=5, spherical=False)
    nearest = ((vectors[:, None] - centroids[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert len(np.unique(nearest)) == 4
    for number in range(4):
        np.testing.assert_allclose(centroids[number], vectors[nearest == number].mean(axis=0), rtol=1e-4)
    assert np.linalg.norm(centroids, axis=1).min() > 2
