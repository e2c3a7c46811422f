"""What predictors see of mixtures: shares, transport and, if known, the ensemble of single-source models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """n mixtures: ``weights`` (n, k), ``transport`` (n,) to the validation set, ``ensemble`` (n,) or None.

    ``ensemble`` is the loss of the models of the single sources, averaged by the weights (see ``mixmin``).
    """

    weights: FloatArray
    transport: FloatArray
    ensemble: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.weights)

    def take(self, rows: npt.NDArray[Any]) -> Design:
        """The mixtures of these row numbers, or of this mask."""
        return Design(
            self.weights[rows], self.transport[rows], None if self.ensemble is None else self.ensemble[rows]
        )
