"""projektor at size: what transport, fit and search cost with many sources and large pilot samples.

    OMP_NUM_THREADS=2 python benchmarks/projektor.py [--sources 3 10 100] [--rows 100000] [--runs 60] [--seeds 3]

Synthetic unit vectors (384 coordinates): 30 topics with noise, a source is a Dirichlet draw of topics, and the
validation set is an even mixture of the first few sources. Pilots are compressed one after the other, as the
selector does it, so that memory holds one at a time. The score of a run is linear in the exact transport, with
noise. Compression is also compared with all points where those are few enough (``--exact-rows`` a source, up to
ten sources): the Pearson correlation of OT over random mixtures. Figures: mean ± standard deviation over the
seeds, which draw everything; seconds are wall time.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from statistics import fmean, stdev
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mixwright.schemas.training_runs import Metric
from mixwright.selectors.projektor.optimization import best_mixture, least_transport
from mixwright.selectors.projektor.planning import plan_mixtures
from mixwright.selectors.projektor.problem import compressed_pilot, transport_problem
from mixwright.selectors.projektor.score_model import RunTable, fit_score_model
from mixwright.selectors.projektor.simplex import dirichlet
from mixwright.selectors.projektor.transport import Points

FloatArray = npt.NDArray[np.float64]
TOPICS, DIM, NOISE = 30, 384, 0.05
VALIDATION_ROWS, CENTROIDS, WANTED_SOURCES = 2000, 256, 3

_T = TypeVar("_T")


class World:
    """Topics, and the shares of them in each source."""

    def __init__(self, n_sources: int, seed: int) -> None:
        self._rng = np.random.default_rng([seed, n_sources])
        topics = self._rng.normal(size=(TOPICS, DIM))
        self._topics = topics / np.linalg.norm(topics, axis=1, keepdims=True)
        self.shares = self._rng.dirichlet(np.full(TOPICS, 0.2), n_sources)

    def sample(self, shares: FloatArray, n: int) -> Points:
        """``n`` unit vectors of these topics."""
        topic = self._rng.choice(TOPICS, n, p=shares)
        vectors = self._topics[topic].astype(np.float32)
        vectors += NOISE * self._rng.standard_normal((n, DIM), dtype=np.float32)
        return Points.of(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def validation(self, n: int) -> Points:
        """An even mixture of the first sources."""
        return self.sample(self.shares[:WANTED_SOURCES].mean(axis=0), n)


def timed(function: Callable[[], _T]) -> tuple[_T, float]:
    began = time.perf_counter()
    return function(), time.perf_counter() - began


def measure(n_sources: int, rows: int, n_runs: int, seed: int) -> dict[str, float]:
    """Seconds of every step for one world."""
    world, spent = World(n_sources, seed), 0.0
    pilots = []
    for shares in world.shares:
        points = world.sample(shares, rows)
        compressed, seconds = timed(lambda points=points: compressed_pilot(points, n_sources, CENTROIDS, seed))
        pilots.append(compressed)
        spent += seconds
    validation = world.validation(VALIDATION_ROWS)
    problem, seconds = timed(lambda: transport_problem(pilots, validation, centroids=CENTROIDS, seed=seed))
    found = {"compress all, s": spent, "cost blocks, s": seconds}
    mixtures = dirichlet(n_sources, 20, seed)
    _, found["first exact OT, ms"] = timed(lambda: problem.values(mixtures[:1]))
    _, found["exact OT, ms"] = timed(lambda: problem.values(mixtures[1:]))
    found["first exact OT, ms"] *= 1000
    found["exact OT, ms"] *= 1000 / (len(mixtures) - 1)
    many = dirichlet(n_sources, 10_000, seed + 1)
    _, seconds = timed(lambda: problem.lower_bound(many))
    found["bound, µs"] = seconds * 1e6 / len(many)
    caps = np.ones(n_sources)
    nearest, found["least transport, s"] = timed(lambda: least_transport(problem, caps))
    plan = plan_mixtures(n_sources, n_runs, seed=seed)
    noise = np.random.default_rng(seed).normal(0, 0.01, n_runs)
    table = RunTable(plan, np.full(n_runs, 1e6), 1 + 2 * problem.values(plan) + noise)
    model, found["fit, s"] = timed(lambda: fit_score_model(table, problem, Metric("loss", "minimize", 0.0)))
    starts = [np.full(n_sources, 1 / n_sources), nearest]
    best, found["optimise, s"] = timed(lambda: best_mixture(model, caps, 1e6, starts, seed))
    true = 1 + 2 * problem.values(np.asarray([best, *starts]))
    found["true loss: chosen"], found["uniform"], found["least transport"] = true
    return found


def correlation(n_sources: int, rows: int, seed: int) -> float:
    """Of OT by centroids with OT by all points, over random mixtures."""
    world = World(n_sources, seed)
    pilots = [world.sample(shares, rows) for shares in world.shares]
    validation = world.validation(rows)
    mixtures = dirichlet(n_sources, 20, seed)
    values = [
        transport_problem(pilots, validation, centroids=centroids, seed=seed).values(mixtures)
        for centroids in (None, CENTROIDS)
    ]
    return float(np.corrcoef(values[0], values[1])[0, 1])


def text(values: list[float]) -> str:
    return f"{fmean(values):.4g} ± {stdev(values) if len(values) > 1 else 0:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, nargs="+", default=[3, 10, 100])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--exact-rows", type=int, default=500)
    arguments = parser.parse_args()
    columns: dict[str, dict[str, str]] = {}
    for n_sources in arguments.sources:
        measured = [measure(n_sources, arguments.rows, arguments.runs, seed) for seed in range(arguments.seeds)]
        columns[f"{n_sources} sources"] = column = {
            name: text([each[name] for each in measured]) for name in measured[0]
        }
        if n_sources <= 10:
            found = [correlation(n_sources, arguments.exact_rows, seed) for seed in range(arguments.seeds)]
            column["correlation with all points"] = f"{min(found):.5f} at least"
    names = dict.fromkeys(name for column in columns.values() for name in column)
    print("| |", " | ".join(columns), "|")
    print("|---|" + "---|" * len(columns))
    for name in names:
        print(f"| {name} |", " | ".join(column.get(name, "") for column in columns.values()), "|")
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
