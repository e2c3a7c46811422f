"""What is trained and scored: a world of sources, and the scores of its trainings, kept as they come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mixwright.schemas.training_runs import Metric
from mixwright.selectors.projektor.costs import LabelCost
from mixwright.selectors.projektor.transport import TransportProblem

FloatArray = npt.NDArray[np.float64]

PILOT, TRUTH = 0, 1
"""What a training is for: predictors learn from pilots, and are judged by the mean of other trainings."""


class Trained(NamedTuple):
    """A model's ``score`` on the test rows; ``likelihoods()`` (u,) of the units of the validation rows."""

    score: float
    likelihoods: Callable[[], FloatArray]


class World(Protocol):
    """Sources, a validation set that the transport and MixMin see, and a test set that scores are of."""

    @property
    def sources(self) -> tuple[str, ...]: ...

    @property
    def metric(self) -> Metric: ...

    @property
    def label_costs(self) -> tuple[LabelCost, ...]:
        """The label costs that can be compared; predictors use the first."""

    @property
    def available(self) -> FloatArray:
        """How much the sources have (k,)."""

    def transport(self, label_cost: LabelCost) -> TransportProblem: ...

    def train(self, weights: FloatArray, size: int, rng: np.random.Generator) -> Trained:
        """A model of ``size`` rows or characters that are drawn in the proportions ``weights`` (k,)."""


class Trainings:
    """The trainings of a world and seed. Scores are lines of a file, so that none is made twice."""

    def __init__(self, world: World, seed: int, path: Path) -> None:
        self._world, self._seed, self._path = world, seed, path
        self._scores: dict[str, float] = {}
        if path.exists():
            # The last line is not whole where a process was killed.
            for line in path.read_text().splitlines():
                if line.endswith("}"):
                    row = json.loads(line)
                    self._scores[row["training"]] = row["score"]
            self._rewrite()

    def scores(self, weights: FloatArray, size: int, purpose: int, numbers: Iterable[int]) -> FloatArray:
        """Scores (r, m) of mixtures (m, k), one row a repetition."""
        found = [[self._score(each, size, purpose, number) for each in weights] for number in numbers]
        return np.asarray(found, dtype=np.float64)

    def likelihoods(self, size: int, number: int) -> FloatArray:
        """Of validation units (u,) by the models (k,) of the single sources, those of the pilots: (u, k)."""
        singles = np.eye(len(self._world.sources))
        models = [self._world.train(each, size, self._rng(each, size, PILOT, number)) for each in singles]
        return np.column_stack([model.likelihoods() for model in models])

    def _score(self, weights: FloatArray, size: int, purpose: int, number: int) -> float:
        key = f"{purpose} {number} {size} {' '.join(map(str, _millionths(weights)))}"
        if key not in self._scores:
            score = self._world.train(weights, size, self._rng(weights, size, purpose, number)).score
            self._scores[key] = score
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(key, score))
        return self._scores[key]

    def _rng(self, weights: FloatArray, size: int, purpose: int, number: int) -> np.random.Generator:
        """Its own for every training, so that their order does not matter."""
        return np.random.default_rng([self._seed, purpose, number, size, *_millionths(weights)])

    def _rewrite(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(_line(key, score) for key, score in self._scores.items()))
        temporary.rename(self._path)


def _line(training: str, score: float) -> str:
    return json.dumps({"training": training, "score": score}) + "\n"


def _millionths(weights: FloatArray) -> list[int]:
    return [int(each) for each in np.rint(weights * 1e6)]
