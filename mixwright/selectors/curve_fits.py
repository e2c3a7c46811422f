"""Least squares of curves that are linear in all parameters but one, as scaling laws are.

The one (an exponent, a rate) is searched over its whole range, and for each value of it the others are solved for
exactly (variable projection, Golub and Pereyra, 1973). So the best fit is found whatever the data: there are no
starting points that could be unlucky.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mixwright.errors import DataError

FloatArray = npt.NDArray[np.float64]

_GRID = 240
_POLISHING = 100
"""Evaluations at most that bring a fit from eight digits to all."""

Columns = Callable[[float], FloatArray]
"""The columns (n, p) that the other parameters weigh, at a value of the one."""


def separable_fit(columns: Columns, values: FloatArray, low: float, high: float) -> tuple[float, FloatArray]:
    """The one parameter between ``low`` and ``high``, and the others (p,), none negative, of least squares.

    ``columns(x) @ others`` comes nearest to ``values`` (n,). Raises DataError where the columns are not finite.
    """
    from scipy.optimize import minimize_scalar

    def cost(x: float) -> float:
        return _solved(columns(x), values)[1]

    grid = np.geomspace(low, high, _GRID)
    costs = np.asarray([cost(x) for x in grid])
    best = int(np.argmin(costs))
    near = (grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)])
    found = minimize_scalar(cost, bounds=near, method="bounded", options={"xatol": 1e-12})
    x = float(found.x) if found.fun < costs[best] else float(grid[best])
    return _polished(columns, values, x, _solved(columns(x), values)[0], low, high)


def _solved(matrix: FloatArray, values: FloatArray) -> tuple[FloatArray, float]:
    """The weights (p,) of a matrix's columns (n, p), none negative, and the sum of squares that is left."""
    from scipy.optimize import nnls

    lengths = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(lengths).all():
        raise DataError("no curve fits: the values are too large or too small to be computed with, check them")
    lengths = np.where(lengths > 0, lengths, 1.0)
    weights, left = nnls(matrix / lengths, values)
    return weights / lengths, float(left) ** 2


def _polished(
    columns: Columns, values: FloatArray, x: float, weights: FloatArray, low: float, high: float
) -> tuple[float, FloatArray]:
    """The same fit, with the digits that a search by values alone does not see."""
    from scipy.optimize import least_squares

    scales = np.where(weights > 0, weights, 1.0)

    def residuals(parameters: FloatArray) -> FloatArray:
        return np.asarray(columns(float(parameters[0])) @ (parameters[1:] * scales) - values)

    start = np.concatenate([[x], weights / scales])
    bounds = (
        np.concatenate([[low], np.zeros(len(weights))]),
        np.concatenate([[high], np.full(len(weights), np.inf)]),
    )
    found = least_squares(
        residuals, start, bounds=bounds, x_scale="jac", ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=_POLISHING
    )
    if 2 * found.cost < np.square(residuals(start)).sum():
        return float(found.x[0]), found.x[1:] * scales
    return x, weights
