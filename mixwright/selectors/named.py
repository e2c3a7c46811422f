"""Values by source, as users write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError
from mixwright.selectors.pool import Pool

FloatArray = npt.NDArray[np.float64]

_ValueT = TypeVar("_ValueT")


def source_numbers(pool: Pool, named: Mapping[str, _ValueT], what: str) -> dict[int, _ValueT]:
    """Values by the number of their source in the pool; a source is named by its name or as name@version.

    Raises ConfigError, which begins with ``what``, for a name that is no source's or names one twice.
    """
    numbers = {source.ref: number for number, source in enumerate(pool.sources)}
    numbers |= {source.name: number for number, source in enumerate(pool.sources)}
    found: dict[int, _ValueT] = {}
    for name, value in named.items():
        if name not in numbers:
            known = ", ".join(source.name for source in pool.sources)
            raise ConfigError(f"{what}: {name!r} is no source: the sources are {known}")
        if numbers[name] in found:
            raise ConfigError(f"{what}: {name!r} names a source a second time: name each once")
        found[numbers[name]] = value
    return found


def shares_of(pool: Pool, named: Mapping[str, float], what: str) -> FloatArray:
    """Shares (k,) of the pool's sources that sum to 1, 0 for those not named. Raises ConfigError."""
    shares = np.zeros(len(pool.sources))
    for number, share in source_numbers(pool, named, what).items():
        shares[number] = share
    return np.asarray(shares / shares.sum())
