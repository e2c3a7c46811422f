"""Handwritten digits in three sources: with different classes, or with differently many wrong labels."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from mixwright.schemas.training_runs import Metric
from mixwright.selectors.allocation import largest_remainder
from mixwright.selectors.projektor.costs import LabelCost
from mixwright.selectors.projektor.linear_probe import linear_probe
from mixwright.selectors.projektor.problem import transport_problem
from mixwright.selectors.projektor.transport import Points, TransportProblem
from projektor_study.world import FloatArray, Trained

Int64Array = npt.NDArray[np.int64]

_HELD_OUT = 300
"""Rows of validation, and of test."""
_CLASSES = ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))
_STRAY = 0.022
"""Probability that a row is in one of the two sources that its class does not belong to, for each of them."""
_WRONG_LABELS = (0.1, 0.35, 0.6)


class Digits:
    """scikit-learn's digits, as vectors of length 1. ``kind``: skew (of classes) or quality (of labels)."""

    metric = Metric("accuracy", "maximize", 0.0, 1.0)
    label_costs: tuple[LabelCost, ...] = ("zero_one", "otdd", "none")

    def __init__(self, kind: str, seed: int) -> None:
        from sklearn.datasets import load_digits

        rng = np.random.default_rng(seed)
        pixels, labels = load_digits(return_X_y=True)
        order = rng.permutation(len(labels))
        vectors, labels = pixels[order] / np.linalg.norm(pixels[order], axis=1, keepdims=True), labels[order]
        self._validation = vectors[:_HELD_OUT], labels[:_HELD_OUT]
        self._test = vectors[_HELD_OUT : 2 * _HELD_OUT], labels[_HELD_OUT : 2 * _HELD_OUT]
        self._vectors, self._labels = vectors[2 * _HELD_OUT :], labels[2 * _HELD_OUT :].copy()
        n = len(self._labels)
        if kind == "skew":
            home = np.asarray([next(s for s, own in enumerate(_CLASSES) if c in own) for c in self._labels])
            moved = rng.integers(1, 3, n) * (rng.random(n) < 2 * _STRAY)
            self._source = (home + moved) % 3
            self.sources = tuple(f"digits {own[0]}–{own[-1]}" for own in _CLASSES)
        else:
            self._source = rng.integers(0, 3, n)
            wrong = rng.random(n) < np.asarray(_WRONG_LABELS)[self._source]
            self._labels[wrong] = rng.integers(0, 10, int(wrong.sum()))
            self.sources = tuple(f"{share:.0%} random labels" for share in _WRONG_LABELS)

    @property
    def available(self) -> FloatArray:
        return np.bincount(self._source, minlength=3).astype(np.float64)

    @cached_property
    def _rows(self) -> list[Int64Array]:
        return [np.flatnonzero(self._source == source) for source in range(3)]

    def transport(self, label_cost: LabelCost) -> TransportProblem:
        pilots = [Points.of(self._vectors[rows], self._labels[rows]) for rows in self._rows]
        return transport_problem(pilots, Points.of(*self._validation), label_cost=label_cost)

    def train(self, weights: FloatArray, size: int, rng: np.random.Generator) -> Trained:
        """Logistic regression on rows that are drawn with replacement."""
        wanted = largest_remainder(weights * size, size, np.full(3, size))
        drawn = [rng.choice(rows, n) for rows, n in zip(self._rows, wanted, strict=True)]
        counts = np.bincount(np.concatenate(drawn), minlength=len(self._labels))
        rows = np.flatnonzero(counts)
        labels = [str(each) for each in self._labels[rows]]

        def judged(held_out: tuple[FloatArray, Int64Array]) -> tuple[float, FloatArray]:
            vectors, truth = held_out
            return linear_probe(self._vectors[rows], labels, counts[rows], vectors, [str(each) for each in truth])

        return Trained(judged(self._test)[0], lambda: judged(self._validation)[1])
