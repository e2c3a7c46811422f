"""Stages: mixtures whose shares change on the way.

Every stage shares out its size by weights of its own, under what earlier stages left of the sources' passes:
epochs are counted over all stages. Then each component is cut where the stages' shares of it end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.errors import ShortfallError
from mixwright.schemas.mixtures import Budget
from mixwright.selectors.allocation import binding_source, largest_remainder, water_fill
from mixwright.selectors.cuts import served_rows, served_sources, staged
from mixwright.selectors.mixture import (
    Mixture,
    assemble,
    long_document_warnings,
    select_amounts,
    select_counts,
    tokens_of,
)
from mixwright.selectors.pool import Pool

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_WORTH_A_WARNING = 0.001
"""The share of a stage's tokens that a cap may move without a word."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage before documents are chosen.

    ``size`` is in the budget's unit; ``weights`` (k,) are shares of the stage's tokens that sum to 1, and 0 for a
    source that is not in it.
    """

    name: str
    tagged: bool
    size: int
    weights: FloatArray


class CountedStage(NamedTuple):
    """A stage whose documents are counted: ``counts`` (k,) of each source."""

    name: str
    tagged: bool
    counts: Int64Array


def mix_stages(
    pool: Pool, budget: Budget, planned: Sequence[PlannedStage], *, selector: str, max_epochs: float, seed: int
) -> Mixture:
    """The mixture that serves these stages, one after the other, from the pool's k sources.

    A share that needs more than what earlier stages left of a source's ``max_epochs`` passes is capped there, and
    the rest goes to the stage's other sources. A budget in documents is met exactly in every stage. One in tokens
    is never exceeded; each source is cut where it comes nearest to its stages' shares, so that a stage has its
    share of what the source serves to within the source's longest document. Only where a stage would have none
    does a cut move, to give it one document. Raises ShortfallError for a stage that cannot be filled, and for a
    source with no document for one.
    """
    sizes = np.asarray([each.size for each in planned])
    weights = np.stack([each.weights for each in planned])
    aims = (sizes / sizes.sum()) @ weights
    lengths = np.asarray([len(source.n_tokens) for source in pool.sources])
    tokens = np.asarray([tokens_of(source, None) for source in pool.sources])
    targets = [dict(zip((source.name for source in pool.sources), row, strict=True)) for row in weights.tolist()]
    if budget.tokens is not None:
        least = np.asarray([source.n_tokens.min() for source in pool.sources])
        room = _Room(pool, tokens * float(max_epochs), np.maximum(least, 1), "tokens", max_epochs)
        amounts = _shared_out(room, planned, weights, water_fill)
        _refuse_small_shares(pool, planned, amounts)
        nothing = [None] * len(pool.sources)
        selections = select_amounts(pool, amounts.sum(axis=0), room.capacities, seed, nothing)
        mixture = assemble(pool, budget, aims, selections, selector=selector, seed=seed)
        mixture = _cut_by_tokens(mixture, pool, planned, amounts, targets)
        warnings = _cap_warnings(room, planned, weights, amounts)
        warnings += long_document_warnings(mixture.components, max_epochs)
    else:
        documents = weights * lengths / tokens
        room = _Room(pool, np.floor(lengths * max_epochs), np.ones(len(lengths)), "documents", max_epochs)
        amounts = _shared_out(room, planned, documents, _whole)
        stages = [
            CountedStage(each.name, each.tagged, counts)
            for each, counts in zip(planned, amounts.astype(np.int64), strict=True)
        ]
        mixture = serve_counts(pool, budget, stages, aims, selector=selector, seed=seed, targets=targets)
        warnings = _cap_warnings(room, planned, documents / documents.sum(axis=1, keepdims=True), amounts)
    return replace(mixture, warnings=warnings)


def serve_counts(
    pool: Pool,
    budget: Budget,
    stages: Sequence[CountedStage],
    aims: FloatArray,
    *,
    selector: str,
    seed: int,
    targets: Sequence[Mapping[str, float]] = (),
) -> Mixture:
    """The mixture with exactly these documents in each stage.

    The documents of the last, partial pass of a source are those with the smallest keyed hashes. ``aims`` (k,) are
    the shares of the tokens that are meant, ``targets`` those of each stage by source.
    """
    counts = np.stack([each.counts for each in stages])
    selections = select_counts(pool, counts.sum(axis=0), seed, [None] * len(pool.sources))
    mixture = assemble(pool, budget, aims, selections, selector=selector, seed=seed)
    ends = np.cumsum(counts, axis=0)[:, served_sources(mixture, pool)]
    labels = [(each.name, each.tagged) for each in stages]
    return staged(mixture, served_rows(mixture, pool), labels, ends, targets)


# Sharing out


_Fill = Callable[[FloatArray, FloatArray, float], FloatArray]
"""Amounts (k,) by weights, capacities and total, as ``water_fill`` gives them."""


@dataclass(frozen=True)
class _Room:
    """What a pool gives: ``capacities`` (k,) in ``max_epochs`` passes, ``least`` (k,) for a stage to have any."""

    pool: Pool
    capacities: FloatArray
    least: FloatArray
    unit: str
    max_epochs: float


def _whole(weights: FloatArray, capacities: FloatArray, total: float) -> FloatArray:
    """Water-filling in whole documents."""
    amounts = water_fill(weights, capacities, total)
    limits = np.where(weights > 0, capacities, 0).astype(np.int64)
    return largest_remainder(amounts, int(total), limits).astype(np.float64)


def _shared_out(room: _Room, planned: Sequence[PlannedStage], weights: FloatArray, fill: _Fill) -> FloatArray:
    """What each stage takes of each source, shape (stages, k). Raises ShortfallError."""
    sizes = np.asarray([each.size for each in planned])
    amounts, failed = _try(room, weights, sizes, fill)
    if failed is None:
        for number, empty in np.argwhere((weights > 0) & (amounts == 0)).tolist():
            raise _too_small(room.pool, planned[number], empty, f"no {room.unit.removesuffix('s')}", None)
        return amounts
    stage, left = planned[failed], np.maximum(room.capacities - amounts.sum(axis=0), 0)
    source = room.pool.sources[binding_source(weights[failed], left)].name
    largest = _largest_total(room, weights, sizes, fill)
    advice = f"ask for at most {largest:,} {room.unit} in all" if largest else "change the stages' weights"
    raise ShortfallError(
        f"stage {stage.name} wants {stage.size:,} {room.unit}, more than there is left for it in "
        f"{room.max_epochs:g} epochs, and {source} runs out first: {advice}, raise max_epochs, or add sources",
        source=source,
        largest_budget=largest or None,
    )


def _try(room: _Room, weights: FloatArray, sizes: Int64Array, fill: _Fill) -> tuple[FloatArray, int | None]:
    """What each stage takes (stages, k), and the number of the first stage that cannot be filled."""
    amounts = np.zeros(weights.shape)
    for number, size in enumerate(sizes):
        left, within = room.capacities - amounts.sum(axis=0), weights[number] > 0
        if size > left[within].sum() or (left < room.least)[within].any():
            return amounts, number
        amounts[number] = fill(weights[number], left, float(size))
    return amounts, None


def _largest_total(room: _Room, weights: FloatArray, sizes: Int64Array, fill: _Fill) -> int:
    """The largest budget that fills stages in the same proportions; 0 if none does."""

    def works(total: int) -> bool:
        parts = largest_remainder(sizes / sizes.sum() * total, total, np.full(len(sizes), total))
        return _try(room, weights, parts, fill)[1] is None

    low, high = 0, int(room.capacities.sum())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if works(middle) else (low, middle - 1)
    return low


def _refuse_small_shares(pool: Pool, planned: Sequence[PlannedStage], amounts: FloatArray) -> None:
    """Raise ShortfallError for a share of a stage that is less than its source's shortest document."""
    total = sum(each.size for each in planned)
    for number, source in np.argwhere(amounts > 0).tolist():
        shortest, share = int(pool.sources[source].n_tokens.min()), float(amounts[number, source])
        if share < shortest:
            needed = int(np.ceil(total * shortest / share))
            raise _too_small(pool, planned[number], source, f"{share:,.0f} tokens", (shortest, needed))


def _too_small(
    pool: Pool, stage: PlannedStage, source: int, share: str, needs: tuple[int, int] | None
) -> ShortfallError:
    name = pool.sources[source].name
    shortest = f", and its shortest document has {needs[0]:,}" if needs else ""
    budget = f" to about {needs[1]:,} tokens" if needs else ""
    return ShortfallError(
        f"the share of {name} in stage {stage.name} is {share}{shortest}: raise the budget{budget} or leave the "
        "source out of the stage",
        source=name,
        largest_budget=None,
    )


def _cap_warnings(
    room: _Room, planned: Sequence[PlannedStage], aims: FloatArray, amounts: FloatArray
) -> tuple[str, ...]:
    """A line for each source that the cap holds below its share ``aims`` of a stage; shapes (stages, k)."""
    shares = amounts / amounts.sum(axis=1, keepdims=True)
    # A share that whole documents cannot meet is not capped.
    short = (aims - shares > _WORTH_A_WARNING) & (amounts.sum(axis=0) > 0.99 * room.capacities)
    return tuple(
        f"{room.pool.sources[source].name} is capped at {room.max_epochs:g} epochs: in stage "
        f"{planned[stage].name} it serves {shares[stage, source]:.1%} instead of {aims[stage, source]:.1%}"
        for stage, source in np.argwhere(short).tolist()
    )


# Cutting


def _cut_by_tokens(
    mixture: Mixture,
    pool: Pool,
    planned: Sequence[PlannedStage],
    amounts: FloatArray,
    targets: Sequence[Mapping[str, float]],
) -> Mixture:
    """The mixture in stages, each component cut where it comes nearest to its ``amounts`` (stages, k)."""
    ends, served = [], served_rows(mixture, pool)
    for source, component, rows in zip(served_sources(mixture, pool), mixture.components, served, strict=True):
        parts = amounts[:, source]
        present = np.flatnonzero(parts > 0)
        if component.n_rows < len(present):
            stage = planned[int(present[component.n_rows])]
            raise _too_small(
                pool, stage, source, f"{parts[present].min():,.0f} tokens, less than a document", None
            )
        aims = np.cumsum(parts[present]) / parts.sum() * component.n_tokens
        cuts = np.asarray([*(rows.nearest(aim) for aim in aims[:-1]), component.n_rows])
        ends.append(_stretched(_each_one(cuts), present, len(planned)))
    labels = [(each.name, each.tagged) for each in planned]
    return staged(mixture, served, labels, np.stack(ends, axis=1), targets)


def _each_one(cuts: Int64Array) -> Int64Array:
    """The cuts (m,), moved as little as leaves each stretch between them one row or more; the last one stays.

    Needs cuts[-1] ≥ m.
    """
    places = np.arange(len(cuts))
    spread = np.maximum.accumulate(np.maximum(cuts - places, 1)) + places
    return np.asarray(np.minimum(spread, cuts[-1] - places[::-1]))


def _stretched(cuts: Int64Array, present: Int64Array, n_stages: int) -> Int64Array:
    """The ends (n_stages,) of a component's stretches, from those of the stages that it is ``present`` in."""
    ends = np.zeros(n_stages, dtype=np.int64)
    ends[present] = cuts
    return np.asarray(np.maximum.accumulate(ends))
