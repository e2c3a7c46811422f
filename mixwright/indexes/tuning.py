"""From a recall target to an index: which recipe, and how hard it must search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np

from mixwright.errors import ConfigError, ConvergenceError
from mixwright.indexes.building import build_index
from mixwright.indexes.kinds import Recipe, Settings, recipes
from mixwright.indexes.protocols import FloatArray, Hits
from mixwright.indexes.recall import (
    Float64Array,
    Truth,
    bootstrap_lower_bound,
    recall_per_query,
    true_neighbours,
)
from mixwright.indexes.searching import Searcher
from mixwright.indexes.vectors import OtherVectors, Vectors, finite_rows
from mixwright.progress import Progress
from mixwright.schemas.manifests import RecallReport
from mixwright.schemas.requests import IndexKind

_T = TypeVar("_T")
Ladders = dict[str, tuple[int, ...]]
Measure = Callable[[Settings], Float64Array]


class Wishes(Protocol):
    """What is wished of an index: an ``IndexRequest``, or a datastore's request."""

    @property
    def index_kind(self) -> IndexKind: ...

    @property
    def recall(self) -> float: ...

    @property
    def memory_budget(self) -> int | None: ...

    @property
    def queries(self) -> int: ...

    @property
    def seed(self) -> int: ...


class Searchable(Protocol):
    """What can be tuned: a search with settings."""

    def search(self, queries: FloatArray, k: int, settings: Settings) -> Hits: ...


@dataclass(frozen=True)
class Attempt(Generic[_T]):
    """An index that was built and tuned, whether it meets the target or not."""

    index: _T
    settings: Settings
    recall: RecallReport


@dataclass(frozen=True)
class ChosenIndex:
    """An index in memory that meets the target, how it was made, and what else was considered."""

    index: Any
    recipe: Recipe
    settings: Settings
    recall: RecallReport
    candidates: list[dict[str, Any]]


@dataclass(frozen=True)
class Trial:
    """Rows to index and two sets of queries for them: one that tunes a search, another that measures it.

    ``outside``: the indexed rows are not all rows, since the queries are rows and not among them. ``drawn`` says
    where the queries came from.
    """

    vectors: Vectors
    tuning: Truth
    held_out: Truth
    outside: bool
    drawn: str


def tune(measure: Measure, ladders: Ladders, passes: Callable[[Float64Array], bool]) -> Settings:
    """The least effort on the ladders whose recalls pass; the top of every ladder where none does.

    Goes up one rung at a time, each time of the parameter that gains the most recall, and at the end down
    again wherever the recalls still pass. Speed is not measured: the same index is always tuned the same.
    """
    rungs = dict.fromkeys(ladders, 0)
    measured: dict[tuple[int, ...], Float64Array] = {}

    def recalls(at: dict[str, int]) -> Float64Array:
        key = tuple(at.values())
        if key not in measured:
            measured[key] = measure(_settings(ladders, at))
        return measured[key]

    while not passes(recalls(rungs)):
        higher = [rungs | {name: rung + 1} for name, rung in rungs.items() if rung + 1 < len(ladders[name])]
        if not higher:
            break
        rungs = max(higher, key=lambda at: recalls(at).mean())
    for name in rungs:
        while rungs[name] and passes(recalls(lower := rungs | {name: rungs[name] - 1})):
            rungs = lower
    return _settings(ladders, rungs)


def raised(settings: Settings, ladders: Ladders) -> Settings:
    """One rung up on every ladder; the same settings at the top of all of them."""
    rungs = {name: ladders[name].index(value) for name, value in settings.items()}
    return _settings(ladders, {name: min(rung + 1, len(ladders[name]) - 1) for name, rung in rungs.items()})


def choose_index(
    vectors: Vectors, request: Wishes, device: Literal["cpu", "gpu"], progress: Progress
) -> ChosenIndex:
    """Build the first recipe of the request's kind that keeps to the memory budget and meets the recall target.

    Raises ConfigError if the budget excludes all of them, ConvergenceError if none of the rest meets the target.
    """
    wanted = recipes_within_budget(len(vectors), vectors.dim, request)
    trial = draw_trial(vectors, request, device, progress)

    def attempt(recipe: Recipe) -> Attempt[Any]:
        progress.start(f"build {recipe.factory}", total=len(vectors), unit="vectors")
        index = build_index(recipe, trial.vectors, seed=request.seed, device=device, advance=progress.advance)
        settings, report = tuned_recall(Searcher(index, gpu=device == "gpu"), recipe, trial, request)
        return Attempt(index, settings, report)

    recipe, chosen, candidates = first_that_meets(wanted, request, attempt, progress)
    index = chosen.index
    if trial.outside:
        progress.start(f"build {recipe.factory} of all rows", total=len(vectors), unit="vectors")
        index = build_index(recipe, vectors, seed=request.seed, device=device, advance=progress.advance)
    return ChosenIndex(index, recipe, chosen.settings, chosen.recall, candidates)


def recipes_within_budget(n: int, dim: int, request: Wishes) -> list[Recipe]:
    """The recipes for n vectors that the request's kind allows, those over its memory budget included.

    Raises ConfigError if all of them are over it.
    """
    wanted = recipes(request.index_kind, n, dim, request.recall)
    _check_budget(wanted, request)
    return wanted


def first_that_meets(
    wanted: Sequence[Recipe], request: Wishes, attempt: Callable[[Recipe], Attempt[_T]], progress: Progress
) -> tuple[Recipe, Attempt[_T], list[dict[str, Any]]]:
    """The first recipe that keeps to the memory budget and meets the recall target, as ``attempt`` built it.

    Returns what became of every recipe, too. Raises ConvergenceError if none meets the target.
    """
    candidates: list[dict[str, Any]] = [
        {
            "kind": recipe.kind,
            "factory": recipe.factory,
            "estimated_bytes": recipe.n_bytes,
            "outcome": "not needed",
        }
        for recipe in wanted
    ]
    for recipe, candidate in zip(wanted, candidates, strict=True):
        if request.memory_budget is not None and recipe.n_bytes > request.memory_budget:
            candidate["outcome"] = f"over the memory budget of {request.memory_budget} bytes"
            continue
        tried = attempt(recipe)
        candidate |= {"recall": tried.recall.measured, "search_parameters": tried.settings}
        if tried.recall.measured >= request.recall:
            candidate["outcome"] = "chosen: the first that keeps to the budget and meets the target"
            return recipe, tried, candidates
        del tried  # before the next one is built
        candidate["outcome"] = f"recall {candidate['recall']:.4f} at its greatest effort misses the target"
        progress.note(f"{recipe.factory}: {candidate['outcome']}")
    best = max(candidate.get("recall", 0.0) for candidate in candidates)
    raise ConvergenceError(
        f"index kind {request.index_kind} reaches recall {best:.4f} of the asked {request.recall:g} at its "
        f"greatest effort: {_what_to_change(request, best)}"
    )


def _what_to_change(request: Wishes, best: float) -> str:
    changes = [f"ask for at most --recall {int(best * 1000) / 1000}"]
    if request.index_kind != "auto":
        changes.append("for kind auto")
    if request.memory_budget is not None:
        changes.append("for a larger memory budget")
    return ", or ".join(changes)


def draw_trial(vectors: Vectors, request: Wishes, device: Literal["cpu", "gpu"], progress: Progress) -> Trial:
    """Rows as queries: ``request.queries`` to tune and as many others to measure, fewer from a small corpus.

    A row in a graph is found more easily than a text that is new to it, since its own links lead to its
    neighbours; so a graph is measured without its queries in it. No such effect was found in the other kinds.
    """
    outside = request.index_kind == "hnsw"
    most = len(vectors) // 2 if outside else len(vectors) if len(vectors) > 1 else 0
    n = min(2 * request.queries, most)
    rows = np.random.default_rng([request.seed, 1]).choice(len(vectors), size=n, replace=False).astype(np.int64)
    indexed = OtherVectors(vectors, rows) if outside else vectors
    progress.start("true neighbours", total=len(indexed), unit="vectors")
    truth = true_neighbours(
        indexed,
        finite_rows(vectors, rows),
        None if outside else rows,
        device=device,
        advance=progress.advance,
    )
    left_out = "left out of the graph they measure" if outside else "each left out of its own neighbours"
    return Trial(
        indexed,
        truth.part(slice(0, n // 2)),
        truth.part(slice(n // 2, n)),
        outside,
        f"rows of the corpus, {left_out}, drawn",
    )


def tuned_recall(
    searcher: Searchable, recipe: Recipe, trial: Trial, request: Wishes
) -> tuple[Settings, RecallReport]:
    """Tune on one half of the queries, measure on the other.

    The tuned search meets the target with the lower bound of its recall. Where the held-out half, by the chance
    of the draw, still falls below, the search goes up rung by rung until it meets the target too.
    """

    def recalls(truth: Truth, settings: Settings) -> Float64Array:
        as_asked = settings if truth.rows is None else _with_room_for_itself(settings, truth.k)
        return recall_per_query(truth, lambda queries, k: searcher.search(queries, k, as_asked))

    settings = tune(
        lambda settings: recalls(trial.tuning, settings),
        recipe.ladders,
        lambda measured: bootstrap_lower_bound(measured, request.seed) >= request.recall,
    )
    measured = recalls(trial.held_out, settings)
    while len(measured) and measured.mean() < request.recall:
        higher = raised(settings, recipe.ladders)
        if higher == settings:
            break
        settings, measured = higher, recalls(trial.held_out, higher)
    return settings, _report(measured, trial, request)


def _with_room_for_itself(settings: Settings, k: int) -> Settings:
    """Settings under which k + 1 hits are chosen from k · k_factor + 1 candidates: one more than for k hits."""
    if "k_factor" not in settings:
        return settings
    return settings | {"k_factor": (k * settings["k_factor"] + 1.01) / (k + 1)}


def _report(measured: Float64Array, trial: Trial, request: Wishes) -> RecallReport:
    return RecallReport(
        k=trial.held_out.k,
        n_queries=len(measured),
        target=request.recall,
        measured=float(measured.mean()) if len(measured) else 1.0,
        lower_bound=bootstrap_lower_bound(measured, request.seed),
        queries=f"{trial.drawn} with seed {request.seed}; {len(trial.tuning.queries)} others tuned the search",
    )


def _check_budget(wanted: list[Recipe], request: Wishes) -> None:
    smallest = min(wanted, key=lambda recipe: recipe.n_bytes)
    if request.memory_budget is not None and smallest.n_bytes > request.memory_budget:
        raise ConfigError(
            f"memory budget {request.memory_budget} bytes: index kind {request.index_kind} takes at least "
            f"{smallest.n_bytes} bytes ({smallest.factory}): give it that much"
        )


def _settings(ladders: Ladders, rungs: dict[str, int]) -> Settings:
    return {name: ladders[name][rung] for name, rung in rungs.items()}
