"""How a score grows with the documents of one ability, and from where on more of them change nothing.

Song et al., Dynamics of Instruction Tuning (arXiv 2310.19651): abilities grow at different paces, and some stop
early. There the sources that have stopped are held at a number of documents, and the others share the rest
equally. The curve that finds the number is this project's: the paper reads it off its plots.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError
from mixwright.selectors.curve_fits import separable_fit

FloatArray = npt.NDArray[np.float64]

_EXPONENTS = (1e-3, 8.0)
"""Between which exponents are searched."""


class GrowthCurve(NamedTuple):
    """score(n) = limit - scale · n^(-exponent), with a scale that is not negative: it never falls."""

    limit: float
    scale: float
    exponent: float

    def score(self, documents: float) -> float:
        """The score after so many documents."""
        return float(self.limit - self.scale * documents**-self.exponent)


def fit_growth_curve(points: Sequence[tuple[int, float]]) -> GrowthCurve:
    """The curve of least squares through (documents, score) points; raises ConfigError below three sizes."""
    documents = np.asarray([n for n, _ in points], dtype=np.float64)
    scores = np.asarray([score for _, score in points], dtype=np.float64)
    if len(np.unique(documents)) < 3:
        raise ConfigError(
            f"a growth curve has three parameters, and there are {len(np.unique(documents))} sizes: give the "
            "score at three numbers of documents or more"
        )
    # In units of the first size and of the scores' spread, so that all parameters are near 1.
    first, middle, spread = documents.min(), scores.mean(), max(float(np.ptp(scores)), 1e-12)
    ones, size = np.ones(len(scores)), documents / first

    def columns(exponent: float) -> FloatArray:
        # The limit may be above the middle or below, and weights are not negative.
        return np.stack([ones, -ones, -(size**-exponent)], axis=1)

    exponent, (above, below, scale) = separable_fit(columns, (scores - middle) / spread, *_EXPONENTS)
    return GrowthCurve(
        limit=float(middle + spread * (above - below)),
        scale=float(spread * scale * first**exponent),
        exponent=exponent,
    )


def plateau(curve: GrowthCurve, grid: Sequence[int], gain: float) -> int | None:
    """The smallest n of an increasing ``grid`` whose gain to the next one is below ``gain``; None if none is."""
    for here, there in pairwise(grid):
        if curve.score(there) - curve.score(here) < gain:
            return here
    return None
