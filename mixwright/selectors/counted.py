"""Schedules that count documents: DMT's two stages, and sources held at a number of documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError, ShortfallError
from mixwright.schemas.mixtures import Budget
from mixwright.selectors.allocation import binding_source
from mixwright.selectors.growth import fit_growth_curve, plateau
from mixwright.selectors.mixture import Mixture
from mixwright.selectors.named import source_numbers
from mixwright.selectors.pool import Pool
from mixwright.selectors.schedules import AbilityCaps, Dmt, Points, capped_counts, dmt_counts
from mixwright.selectors.stages import CountedStage, serve_counts

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


def mix_counts(
    pool: Pool, budget: Budget, stages: Sequence[CountedStage], *, selector: str, max_epochs: float, seed: int
) -> Mixture:
    """The mixture with these documents in each stage; raises ConfigError for another budget, ShortfallError."""
    counts = np.stack([each.counts for each in stages])
    if budget.documents != counts.sum():
        raise ConfigError(
            f"the schedule serves {counts.sum():,} documents and the budget is "
            f"{budget.documents or budget.tokens or 0:,} {'documents' if budget.documents else 'tokens'}: leave "
            "the budget out"
        )
    documents = documents_of(pool)
    for number in np.flatnonzero(counts.sum(axis=0) > np.floor(documents * max_epochs)).tolist():
        needed = int(counts[:, number].sum()) / int(documents[number])
        raise ShortfallError(
            f"the schedule serves {pool.sources[number].name} {needed:.3g} times, and {max_epochs:g} epochs are "
            f"allowed: raise max_epochs to {np.ceil(needed):g} or add documents to the source",
            source=pool.sources[number].name,
            largest_budget=None,
        )
    tokens = counts * np.asarray([source.n_tokens.mean() for source in pool.sources])
    shares = tokens / tokens.sum(axis=1, keepdims=True)
    targets = [dict(zip((each.name for each in pool.sources), row, strict=True)) for row in shares.tolist()]
    aims = tokens.sum(axis=0) / tokens.sum()
    return serve_counts(pool, budget, stages, aims, selector=selector, seed=seed, targets=targets)


def dmt_stages(pool: Pool, schedule: Dmt, tagged: Sequence[bool]) -> tuple[list[CountedStage], tuple[str, ...]]:
    """The two stages, and a warning where nothing is rehearsed. Raises ConfigError."""
    named = source_numbers(pool, dict.fromkeys(schedule.specialised, True), "specialised")
    specialised = np.asarray([number in named for number in range(len(pool.sources))])
    if specialised.all():
        raise ConfigError(
            "every source is specialised: name those of the first stage only, the others are general"
        )
    counts = dmt_counts(documents_of(pool), specialised, schedule.rehearsal)
    stages = [
        CountedStage(name, flag, row)
        for name, flag, row in zip(("specialised", "general"), tagged, counts, strict=True)
    ]
    if counts[1][specialised].sum():
        return stages, ()
    none = (
        f"rehearsal {schedule.rehearsal:g} of {counts[0].sum():,} specialised documents is no document: raise it"
    )
    return stages, (none,)


def ability_stage(
    pool: Pool, budget: Budget, schedule: AbilityCaps, max_epochs: float
) -> tuple[CountedStage, list[dict[str, Any]]]:
    """One stage of equal shares under caps, and what the caps are made of; raises ConfigError, ShortfallError."""
    if budget.documents is None:
        raise ConfigError("ability-caps counts documents: give the budget in documents")
    limits = np.floor(documents_of(pool) * max_epochs).astype(np.int64)
    caps = limits.copy()
    report = []
    for number, cap in source_numbers(pool, schedule.caps, "caps").items():
        caps[number] = min(cap, limits[number])
        report.append({"source": pool.sources[number].name, "cap": cap, "curve": None})
    for number, points in source_numbers(pool, schedule.points, "points").items():
        found, curve = _read_off(points, schedule.gain)
        caps[number] = min(found or limits[number], limits[number])
        report.append({"source": pool.sources[number].name, "cap": found, "curve": curve})
    if budget.documents > caps.sum():
        source = pool.sources[binding_source(np.ones(len(caps)), caps.astype(np.float64))].name
        raise ShortfallError(
            f"{budget.documents:,} documents are more than the caps and {max_epochs:g} epochs leave, and {source} "
            f"is full first: ask for at most {caps.sum():,} documents, raise caps or max_epochs, or add sources",
            source=source,
            largest_budget=int(caps.sum()),
        )
    counts = capped_counts(caps, budget.documents)
    if not counts.all():
        name = pool.sources[int(np.argmin(counts))].name
        raise ShortfallError(
            f"{budget.documents:,} documents are fewer than the sources, and {name} gets none: raise the budget "
            "or leave the source out",
            source=name,
            largest_budget=None,
        )
    return CountedStage("main", False, counts), report


def _read_off(points: Points, gain: float) -> tuple[int | None, dict[str, float]]:
    """The number of documents from which on there is less to gain, and the curve through the points."""
    curve = fit_growth_curve(points)
    return plateau(curve, sorted({documents for documents, _ in points}), gain), curve._asdict()


def documents_of(pool: Pool) -> Int64Array:
    """Documents of each source, shape (k,)."""
    return np.asarray([len(source.n_tokens) for source in pool.sources])
