"""Descent on the simplex: the one search that transport, predictions, MixMin and mixing laws share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mixwright.selectors.projektor.simplex import project_to_simplex

FloatArray = npt.NDArray[np.float64]
Evaluate = Callable[[FloatArray], tuple[float, FloatArray]]
"""Value and gradient (k,) at a mixture (k,)."""

_STEPS = 200
_PATIENCE = 25
_PROGRESS = 1e-5
_MEMORY = 8
"""Values that a step may be worse than, since the objectives have kinks."""
_SHORTEST, _LONGEST = 1e-8, 1e4


def descend(
    evaluate: Evaluate, start: FloatArray, caps: FloatArray, steps: int = _STEPS
) -> tuple[FloatArray, float]:
    """The best mixture (k,) that projected gradient descent from ``start`` finds, and its value.

    The spectral projected gradient method (Birgin, Martínez and Raydan 2000): Barzilai–Borwein step lengths, and a
    line search that compares with the worst of the last values. Ends when 25 steps improve by less than 10⁻⁵.
    """
    point = project_to_simplex(start, caps)
    value, slope = evaluate(point)
    best, best_value, best_step = point, value, 0
    recent = deque([value], maxlen=_MEMORY)
    length = 0.1 / max(float(np.abs(slope).max()), 1e-12)
    for step in range(1, steps + 1):
        direction = project_to_simplex(point - length * slope, caps) - point
        descent = float(slope @ direction)
        if descent > -1e-12 * max(abs(value), 1e-12):
            break
        share = 1.0
        while True:
            later = point + share * direction
            later_value, later_slope = evaluate(later)
            if later_value <= max(recent) + 1e-4 * share * descent or share < 1e-3:
                break
            share /= 2
        moved, turned = later - point, later_slope - slope
        curvature = float(moved @ turned)
        length = float(np.clip(moved @ moved / curvature, _SHORTEST, _LONGEST)) if curvature > 0 else _LONGEST
        point, value, slope = later, later_value, later_slope
        recent.append(value)
        if value < best_value:
            if value < best_value - _PROGRESS * max(abs(best_value), 1e-12):
                best_step = step
            best, best_value = point, value
        if step - best_step >= _PATIENCE:
            break
    return best, best_value
