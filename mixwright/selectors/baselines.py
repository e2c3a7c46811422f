"""Baselines: weights by the sources' sizes, and documents at random.

Each is a frozen dataclass whose fields are its configuration, its REST schema, its command-line flags and its
share of a fingerprint. Budgets are tokens or documents; shares are of tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from mixwright.hashing import keyed_hash
from mixwright.schemas.mixtures import Budget
from mixwright.selectors.allocation import fill, temperature_weights
from mixwright.selectors.mixture import Mixture, assemble, drawn_once, mix, refuse_shortfall
from mixwright.selectors.pool import Pool

FloatArray = npt.NDArray[np.float64]

Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63, description="which documents and which order")]
MaxEpochs = Annotated[float, Field(gt=0, description="passes over a source, at most; the rest is shared")]
TemperatureValue = Annotated[float, Field(gt=0, description="τ: 1 is proportional, large is uniform")]


def source_tokens(pool: Pool) -> npt.NDArray[np.int64]:
    """Tokens of each source, shape (k,)."""
    return np.asarray([int(source.n_tokens.sum()) for source in pool.sources])


@dataclass(frozen=True)
class WeightedSelector(ABC):
    """What the selectors by weight share: a cap on the passes, a seed, and water-filling under the cap."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}
    kind: str
    max_epochs: MaxEpochs = 4.0
    seed: Seed = 0

    @abstractmethod
    def weights(self, pool: Pool) -> FloatArray:
        """The share of the tokens that each source should have, shape (k,), positive, summing to 1."""

    def select(self, pool: Pool, budget: Budget) -> Mixture:
        """Raises ShortfallError where the sources cannot fill the budget in ``max_epochs`` passes."""
        return mix(
            pool,
            budget,
            self.weights(pool),
            selector=self.kind,
            max_epochs=self.max_epochs,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Uniform(WeightedSelector):
    """Every source the same share of the tokens: w_i = 1 / k."""

    kind: Literal["uniform"] = "uniform"

    def weights(self, pool: Pool) -> FloatArray:
        return np.full(len(pool.sources), 1 / len(pool.sources))


@dataclass(frozen=True)
class Proportional(WeightedSelector):
    """Every source its share of the pool's tokens: w_i = n_i / Σ n."""

    kind: Literal["proportional"] = "proportional"

    def weights(self, pool: Pool) -> FloatArray:
        return temperature_weights(source_tokens(pool), 1.0)


@dataclass(frozen=True)
class Temperature(WeightedSelector):
    """Shares flattened by a temperature: w_i ∝ n_i^(1/τ) (τ = 3.33 in XLM-R and mT5)."""

    kind: Literal["temperature"] = "temperature"
    temperature: TemperatureValue = 3.33

    def weights(self, pool: Pool) -> FloatArray:
        return temperature_weights(source_tokens(pool), self.temperature)


@dataclass(frozen=True)
class UniMax(Uniform):
    """UniMax (Chung et al., arXiv 2304.09151, Algorithm 1): as uniform as ``max_epochs`` passes allow.

    The same shares as ``uniform`` with the paper's cap as the default. The paper counts characters; here sizes
    are tokens. A budget that the caps cannot hold, which its normalisation hides, raises ShortfallError.
    """

    kind: Literal["unimax"] = "unimax"  # type: ignore[assignment]
    max_epochs: MaxEpochs = 1.0


@dataclass(frozen=True)
class Random:
    """Documents drawn uniformly from the whole pool, without replacement."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}
    kind: Literal["random"] = "random"
    seed: Seed = 0

    def select(self, pool: Pool, budget: Budget) -> Mixture:
        """Raises ShortfallError when the pool is smaller than the budget."""
        lengths = [len(source.n_tokens) for source in pool.sources]
        starts = np.cumsum([0, *lengths])
        tokens = np.concatenate([source.n_tokens for source in pool.sources])
        ids = np.concatenate([source.ids for source in pool.sources])
        refuse_shortfall(pool, budget, tokens, "the pool's")
        order = np.argsort(keyed_hash(ids, self.seed), kind="stable")
        if budget.tokens is not None:
            rows = fill(order, tokens, budget.tokens)
        else:
            rows = np.sort(order[: budget.documents])
        chosen = [
            rows[(rows >= start) & (rows < start + length)] - start
            for start, length in zip(starts[:-1], lengths, strict=True)
        ]
        weights = temperature_weights(source_tokens(pool), 1.0)
        selections = drawn_once(pool, chosen)
        return assemble(pool, budget, weights, selections, selector=self.kind, seed=self.seed)
