"""Which mixtures to train next."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError
from mixwright.selectors.projektor.gaussian_process import GaussianProcess
from mixwright.selectors.projektor.score_model import ScoreModel
from mixwright.selectors.projektor.simplex import dirichlet, finest_grid, project_to_simplex
from mixwright.selectors.projektor.study import Study

FloatArray = npt.NDArray[np.float64]

_CANDIDATES = 3000
_GRID = 1500
_TOO_NEAR = 0.02
"""Hellinger distance within which a second run would say little that is new."""


def plan_mixtures(
    n_sources: int,
    n: int,
    *,
    seed: int = 0,
    existing: FloatArray | None = None,
    caps: FloatArray | None = None,
) -> FloatArray:
    """The next ``n`` mixtures (n, k) to train when nothing is known of the scores: spread over the simplex.

    The uniform mixture, the single sources where there are runs for twice as many (they show what a source is
    worth alone, and MixMin needs them), then always the candidate that is furthest from all others in Hellinger
    distance (a maximin design, Johnson et al. 1990). ``existing`` (m, k) are trained already; ``caps`` (k,) the
    largest shares. Fewer than ``n`` where the caps leave no others. Raises ConfigError for n below 1.
    """
    if n < 1:
        raise ConfigError(f"{n} mixtures to plan: ask for 1 or more")
    limits = np.ones(n_sources) if caps is None else caps
    done = np.empty((0, n_sources)) if existing is None else existing
    first = [np.full((1, n_sources), 1 / n_sources)]
    if n + len(done) >= 2 * n_sources:
        first.append(np.eye(n_sources))
    wanted = _distinct(project_to_simplex(np.concatenate(first), limits), done)
    candidates = project_to_simplex(_candidates(n_sources, seed), limits)
    planned = list(wanted[:n])
    nearest = _hellinger(candidates, np.concatenate([done, *(each[None] for each in planned)])).min(
        axis=1, initial=np.inf
    )
    while len(planned) < n:
        chosen = int(np.argmax(nearest))
        if nearest[chosen] <= _TOO_NEAR:
            break
        planned.append(candidates[chosen])
        nearest = np.minimum(nearest, _hellinger(candidates, candidates[chosen][None])[:, 0])
    return np.asarray(planned)


def plan_with_model(
    model: ScoreModel, n: int, *, caps: FloatArray, size: float | None = None, seed: int = 0, bonus: float = 1.0
) -> FloatArray:
    """The next ``n`` mixtures (n, k) by what the runs have shown: GP-UCB-PE (Contal et al., arXiv 1304.5350).

    First the mixture that may be the best (the mean less ``bonus`` deviations), then always the one of which
    least is known, among those that may still be the best; what is planned counts as known. Fewer than ``n`` where
    the caps leave no others. Raises ConfigError for n below 1.
    """
    if n < 1:
        raise ConfigError(f"{n} mixtures to plan: ask for 1 or more")
    k = len(caps)
    candidates = project_to_simplex(_candidates(k, seed), caps)
    candidates = _distinct(candidates, model.table.weights)
    if not len(candidates):
        return candidates
    design = model.design(candidates, model.problem.lower_bound(candidates))
    forecast = model.forecast(design, size)
    losses = model.sign * forecast.mean
    hopeful, fearful = losses - bonus * forecast.deviation, losses + bonus * forecast.deviation
    relevant = hopeful <= fearful.min()
    chosen = [int(np.argmin(hopeful))]
    surface = model.surfaces[model.reference]
    trained = model.design(model.table.weights[model.at_reference])
    process = GaussianProcess.fit(trained, surface.mean(trained))
    while len(chosen) < min(n, len(candidates)):
        unsure = process.with_runs(design.take(np.asarray(chosen))).deviation(design)
        unsure[_hellinger(candidates, candidates[chosen]).min(axis=1) <= _TOO_NEAR] = -1.0
        if unsure.max() < 0:
            break
        allowed = relevant if relevant[unsure > 0].any() else np.ones(len(candidates), dtype=np.bool_)
        chosen.append(int(np.argmax(np.where(allowed, unsure, -1.0))))
    return np.asarray(candidates[chosen])


def plan_next(study: Study, n: int) -> FloatArray:
    """The next ``n`` mixtures (n, k) of a study, within its caps: by its results, or spread where it has none."""
    if study.model is None:
        return plan_mixtures(len(study.names), n, seed=study.seed, caps=study.caps)
    return plan_with_model(study.model, n, caps=study.caps, size=study.predicted_size, seed=study.seed)


def _candidates(n_sources: int, seed: int) -> FloatArray:
    """Mixtures to choose from: a grid as fine as it may be, and draws of several concentrations."""
    grid = finest_grid(n_sources, _GRID)
    draws = [dirichlet(n_sources, _CANDIDATES // 3, seed, concentration) for concentration in (1.0, 0.3, 0.1)]
    return np.concatenate([*([] if grid is None else [grid]), *draws])


def _hellinger(weights: FloatArray, others: FloatArray) -> FloatArray:
    """Hellinger distances (n, m), up to the factor √½, of mixtures (n, k) and (m, k)."""
    return np.asarray(np.sqrt(np.maximum(2 - 2 * np.sqrt(weights) @ np.sqrt(others).T, 0.0)))


def _distinct(weights: FloatArray, done: FloatArray) -> FloatArray:
    """The mixtures (n', k) that are neither among ``done`` (m, k) nor repeated, in their order."""
    _, first = np.unique(np.round(weights, 6), axis=0, return_index=True)
    kept = weights[np.sort(first)]
    if not len(done):
        return kept
    return np.asarray(kept[_hellinger(kept, done).min(axis=1) > _TOO_NEAR])
