"""From weights to a mixture: which documents each source gives, how often, and in which stages.

The documents of a partial pass are those with the smallest keyed hash of their id, so the choice depends on
what a document says and not on where it stands: permuting the rows of a source permutes the selection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mixwright.errors import ShortfallError
from mixwright.hashing import derive_key, keyed_hash
from mixwright.schemas.mixtures import Budget, MixtureComponent, Stage, TagPlan
from mixwright.selectors.allocation import binding_source, fill, largest_remainder, water_fill
from mixwright.selectors.ordering import permute
from mixwright.selectors.pool import Pool, Source

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_SELECTION, _ORDER = 1, 2
"""Uses of the seed that must not share a key: which documents, and in which order."""


@dataclass(frozen=True)
class Selection:
    """The documents of one component, as row numbers of its source.

    ``rows`` (n_selected,) are those of a whole pass, None for all rows of a source of ``n_selected`` rows;
    ``remainder`` (m,) those of the last, partial pass. Both sorted.
    """

    n_selected: int
    passes: int
    rows: Int64Array | None
    remainder: Int64Array

    @property
    def n_rows(self) -> int:
        """Rows served, repeats counted."""
        return self.passes * self.n_selected + len(self.remainder)

    def served(self, ordinals: Int64Array, seed: int, component: int) -> tuple[Int64Array, Int64Array]:
        """Row number and pass (both (m,)) of the component's ordinal-th served rows (m,).

        Each pass is another permutation, keyed by seed, component and pass; nothing is materialised.
        """
        pass_of = np.minimum(ordinals // max(self.n_selected, 1), self.passes)
        place = ordinals - pass_of * self.n_selected
        rows = np.empty_like(ordinals)
        for number in np.unique(pass_of):
            here = pass_of == number
            base = self.remainder if number == self.passes else self.rows
            n = self.n_selected if number < self.passes else len(self.remainder)
            index = permute(place[here], n, derive_key(_ORDER, seed, component, int(number)))
            rows[here] = index if base is None else base[index]
        return rows, pass_of


@dataclass(frozen=True)
class Mixture:
    """What to train on: the result of a selector, before it is published.

    ``tables`` are published with it, by name: what the tags need, what the selector lets a person question.
    """

    selector: str
    seed: int
    budget: Budget
    tokenizer: str
    components: tuple[MixtureComponent, ...]
    selections: tuple[Selection, ...]
    stages: tuple[Stage, ...]
    tags: TagPlan | None = None
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """Rows served, repeats counted."""
        return sum(component.n_rows for component in self.components)

    @property
    def n_tokens(self) -> int:
        """Tokens served, repeats counted."""
        return sum(component.n_tokens for component in self.components)


def mix(
    pool: Pool,
    budget: Budget,
    weights: FloatArray,
    *,
    selector: str,
    max_epochs: float,
    seed: int,
    eligible: Sequence[Int64Array | None] | None = None,
) -> Mixture:
    """The mixture that serves ``weights`` (k,) of the tokens from the pool's k sources.

    ``eligible`` limits a source to some of its rows. Where a share needs more than ``max_epochs`` passes it is
    capped and the rest goes to the others (water-filling). A budget in tokens is never exceeded, and falls short
    by less than the shortest document that could still be added; one in documents is met. Raises ShortfallError.
    """
    chosen = list(eligible) if eligible is not None else [None] * len(pool.sources)
    if budget.tokens is not None:
        selections = _select_tokens(pool, budget.tokens, weights, max_epochs, seed, chosen)
    else:
        selections = _select_documents(pool, budget.documents or 0, weights, max_epochs, seed, chosen)
    mixture = assemble(pool, budget, weights, selections, selector=selector, seed=seed)
    warnings = _cap_warnings(mixture.components, max_epochs)
    if budget.tokens is not None:
        warnings += long_document_warnings(mixture.components, max_epochs)
    return replace(mixture, warnings=warnings)


def assemble(
    pool: Pool,
    budget: Budget,
    weights: FloatArray,
    selections: Sequence[Selection],
    *,
    selector: str,
    seed: int,
) -> Mixture:
    """A one-stage mixture of these selections; sources that serve no row are left out."""
    kept = [i for i, selection in enumerate(selections) if selection.n_rows]
    tokens = [_served_tokens(pool.sources[i], selections[i]) for i in kept]
    total, aims = sum(tokens), weights / weights.sum()
    components = tuple(
        _component(pool.sources[i], selections[i], served, served / total, float(aims[i]))
        for i, served in zip(kept, tokens, strict=True)
    )
    stage = Stage(
        name="main",
        tagged=False,
        n_rows=sum(component.n_rows for component in components),
        n_tokens=total,
        starts=[0] * len(components),
        counts=[component.n_rows for component in components],
    )
    return Mixture(
        selector=selector,
        seed=seed,
        budget=budget,
        tokenizer=pool.tokenizer,
        components=components,
        selections=tuple(selections[i] for i in kept),
        stages=(stage,),
    )


def drawn_once(pool: Pool, chosen: Sequence[Int64Array]) -> list[Selection]:
    """The selections that serve the rows ``chosen`` of each source once; sorted row numbers."""
    empty = np.empty(0, dtype=np.int64)
    lengths = [len(source.ids) for source in pool.sources]
    return [
        Selection(length, 1, None, empty) if len(rows) == length else Selection(length, 0, None, rows)
        for length, rows in zip(lengths, chosen, strict=True)
    ]


def refuse_shortfall(pool: Pool, budget: Budget, tokens: Int64Array, what: str) -> None:
    """Raise ShortfallError unless documents with these ``tokens`` (n,) fill the budget, each taken once.

    ``what`` names them in the message: "the pool's", say.
    """
    sizes = [int(source.n_tokens.sum()) for source in pool.sources]
    smallest = pool.sources[int(np.argmin(sizes))].name
    asked, unit = (budget.tokens, "tokens") if budget.tokens else (budget.documents or 0, "documents")
    there = int(tokens.sum()) if budget.tokens else len(tokens)
    if asked > there:
        raise ShortfallError(
            f"{asked:,} {unit} are more than {what} {there:,}: ask for at most {there:,} {unit} "
            f"or add to the sources ({smallest} is the smallest)",
            source=smallest,
            largest_budget=there,
        )
    if budget.tokens and asked < int(tokens.min()):
        raise ShortfallError(
            f"no document has {asked:,} tokens or fewer: raise the budget to at least "
            f"{int(tokens.min()):,} tokens",
            source=smallest,
            largest_budget=None,
        )


def smallest_of(ids: npt.NDArray[np.uint64], n: int, seed: int = 0) -> Int64Array:
    """The ``n`` rows (n,) whose documents' keyed hashes are smallest: the first of ``smallest_hashes``."""
    return np.argsort(keyed_hash(ids, _SELECTION, seed), kind="stable")[:n]


def smallest_hashes(source: Source, rows: Int64Array | None, seed: int) -> Int64Array:
    """The rows of a source in the order of their documents' keyed hash; ties by row number."""
    candidates = np.arange(len(source.ids)) if rows is None else rows
    return candidates[np.argsort(keyed_hash(source.ids[candidates], _SELECTION, seed), kind="stable")]


def _select_tokens(
    pool: Pool,
    total: int,
    weights: FloatArray,
    max_epochs: float,
    seed: int,
    eligible: Sequence[Int64Array | None],
) -> list[Selection]:
    sizes = [tokens_of(source, rows) for source, rows in zip(pool.sources, eligible, strict=True)]
    capacities = np.asarray(sizes, dtype=np.float64) * max_epochs
    _check_capacity(pool, weights, capacities, total, "tokens", max_epochs)
    return select_amounts(pool, water_fill(weights, capacities, total), capacities, seed, eligible)


def select_amounts(
    pool: Pool,
    amounts: FloatArray,
    capacities: FloatArray,
    seed: int,
    eligible: Sequence[Int64Array | None],
) -> list[Selection]:
    """The selections that serve ``amounts`` (k,) of tokens, filled up to their sum within ``capacities`` (k,).

    Raises ShortfallError for an amount that is less than the shortest document.
    """
    total, selections = round(float(amounts.sum())), []
    for source, rows, amount in zip(pool.sources, eligible, amounts, strict=True):
        size = tokens_of(source, rows)
        # A share that is a whole number of tokens up to rounding is that number.
        target = int(amount + 1e-6)
        n_selected = len(source.n_tokens) if rows is None else len(rows)
        passes, left = divmod(target, size) if size else (0, 0)
        order = smallest_hashes(source, rows, seed) if left else np.empty(0, dtype=np.int64)
        remainder = fill(order, source.n_tokens, left)
        if target and not passes and not len(remainder):
            shortest = int(source.n_tokens[order].min())
            needed = int(np.ceil(total * shortest / target))
            raise ShortfallError(
                f"the share of {source.name} is {target:,} tokens, and its shortest document has "
                f"{shortest:,}: raise the budget to about {needed:,} tokens or leave the source out",
                source=source.name,
                largest_budget=None,
            )
        selections.append(Selection(n_selected, passes, rows, remainder))
    if not any(each.n_rows for each in selections):
        raise ShortfallError(
            f"no source's share of {total:,} tokens is one token: raise the budget or leave sources out",
            source=pool.sources[int(np.argmax(amounts))].name,
            largest_budget=None,
        )
    return _top_up(pool, selections, amounts, capacities, seed)


def _top_up(
    pool: Pool, selections: list[Selection], amounts: FloatArray, capacities: FloatArray, seed: int
) -> list[Selection]:
    """Add documents, within the caps, while one fits into what the documents' lengths left of the budget.

    The source furthest below its share comes first.
    """
    served = [_served_tokens(*each) for each in zip(pool.sources, selections, strict=True)]
    gaps = amounts - served
    left = int(gaps.sum() + 1e-6)
    topped = list(selections)
    for number in np.argsort(-gaps, kind="stable"):
        source, selection = pool.sources[number], selections[number]
        room = min(left, int(capacities[number]) - served[number])
        if not selection.n_rows or room <= 0:
            continue
        order = smallest_hashes(source, selection.rows, seed)
        rest = order[~np.isin(order, selection.remainder)]
        more = fill(rest, source.n_tokens, room)
        topped[number] = replace(selection, remainder=np.union1d(selection.remainder, more))
        # Where a long document of another source does not fit, the room can be more than the rest of this pass.
        whole, room = divmod(room - int(source.n_tokens[more].sum()), tokens_of(source, selection.rows))
        again = fill(order, source.n_tokens, room)
        if len(more) == len(rest) and (whole or source.n_tokens[again].any()):
            topped[number] = replace(selection, passes=selection.passes + 1 + whole, remainder=again)
        left -= _served_tokens(source, topped[number]) - served[number]
    return topped


def _select_documents(
    pool: Pool,
    total: int,
    weights: FloatArray,
    max_epochs: float,
    seed: int,
    eligible: Sequence[Int64Array | None],
) -> list[Selection]:
    n_docs = np.asarray(
        [len(s.n_tokens) if rows is None else len(rows) for s, rows in zip(pool.sources, eligible, strict=True)]
    )
    sizes = np.asarray([tokens_of(s, rows) for s, rows in zip(pool.sources, eligible, strict=True)])
    # Weights are shares of tokens: a source of long documents gets fewer of them.
    documents = np.divide(weights * n_docs, sizes, out=np.zeros(len(weights)), where=sizes > 0)
    capacities = np.floor(n_docs * max_epochs)
    _check_capacity(pool, documents, capacities, total, "documents", max_epochs)
    amounts = water_fill(documents, capacities, total)
    counts = largest_remainder(amounts, total, capacities.astype(np.int64))
    return select_counts(pool, counts, seed, eligible)


def select_counts(
    pool: Pool, counts: Int64Array, seed: int, eligible: Sequence[Int64Array | None]
) -> list[Selection]:
    """The selections that serve ``counts`` (k,) of documents."""
    selections = []
    for source, rows, count in zip(pool.sources, eligible, counts, strict=True):
        n_selected = len(source.n_tokens) if rows is None else len(rows)
        passes, left = divmod(int(count), n_selected) if n_selected else (0, 0)
        remainder = np.sort(smallest_hashes(source, rows, seed)[:left])
        selections.append(Selection(n_selected, passes, rows, remainder))
    return selections


def _check_capacity(
    pool: Pool, weights: FloatArray, capacities: FloatArray, total: int, unit: str, max_epochs: float
) -> None:
    largest = int(capacities[weights > 0].sum())
    if total > largest:
        source = pool.sources[binding_source(weights, capacities)].name
        raise ShortfallError(
            f"{total:,} {unit} are more than the pool gives in {max_epochs:g} epochs, and {source} runs out "
            f"first: ask for at most {largest:,} {unit}, raise max_epochs, or add sources",
            source=source,
            largest_budget=largest,
        )


def tokens_of(source: Source, rows: Int64Array | None) -> int:
    """The tokens of these rows of a source, None for all."""
    return int(source.n_tokens.sum() if rows is None else source.n_tokens[rows].sum())


def _served_tokens(source: Source, selection: Selection) -> int:
    whole = selection.passes * tokens_of(source, selection.rows)
    return whole + int(source.n_tokens[selection.remainder].sum())


def _component(
    source: Source, selection: Selection, tokens: int, weight: float, target: float
) -> MixtureComponent:
    return MixtureComponent(
        name=source.name,
        source=source.ref,
        fingerprint=source.fingerprint,
        weight=weight,
        target_weight=target,
        n_rows=selection.n_rows,
        n_tokens=tokens,
        epochs=tokens / tokens_of(source, selection.rows),
        n_selected=selection.n_selected,
        passes=selection.passes,
        n_remainder=len(selection.remainder),
    )


def _cap_warnings(components: Sequence[MixtureComponent], max_epochs: float) -> tuple[str, ...]:
    """A line for each source that the cap holds below its share."""
    return tuple(
        f"{component.name} is capped at {max_epochs:g} epochs: it serves {component.weight:.1%} of the tokens "
        f"instead of {component.target_weight:.1%}"
        for component in components
        if component.epochs > 0.99 * max_epochs and component.target_weight - component.weight > 0.001
    )


def long_document_warnings(components: Sequence[MixtureComponent], max_epochs: float) -> tuple[str, ...]:
    """A line for each source that serves less than half of its share of the tokens, though no cap holds it."""
    return tuple(
        f"{component.name} serves {component.weight:.1%} of the tokens instead of {component.target_weight:.1%}: "
        "its next documents are too long for its share"
        for component in components
        if component.epochs <= 0.99 * max_epochs
        and component.weight < component.target_weight / 2
        and component.target_weight - component.weight > 0.01
    )
