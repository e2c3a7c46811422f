"""Filling a budget cluster by cluster. Pure functions over arrays.

The unit of ``amounts``, budgets and totals is documents (every amount 1) or tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mixwright.selectors.allocation import fill
from mixwright.selectors.consistency import CONFLICT, CONSISTENT, DUPLICATE, ConceptGraph, rake_phrases
from mixwright.selectors.degradation import cluster_budgets

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Int8Array = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Filled:
    """What was chosen: ``chosen`` (m,) sorted document numbers, ``budgets`` (k,) what each cluster was to give.

    ``reasons`` (n,) say why a document was to be left out (CONSISTENT: it was not); those of the chosen that
    have a reason were taken all the same, because nothing else was left.
    """

    chosen: Int64Array
    budgets: Int64Array
    reasons: Int8Array

    @property
    def relaxed(self) -> Int64Array:
        """The chosen documents that were to be left out."""
        relaxed: Int64Array = self.chosen[self.reasons[self.chosen] != CONSISTENT]
        return relaxed


def fill_clusters(
    order: Int64Array, labels: Int64Array, weights: FloatArray, amounts: Int64Array, total: int, reasons: Int8Array
) -> Filled:
    """Fill ``total`` by the clusters' ``weights`` (k,), in each cluster by ``order`` (m,), the documents' order.

    ``labels``, ``amounts`` and ``reasons`` are (n,). Documents without a reason to be left out come first; if
    they are too few, all of them are taken and then duplicates, and then what conflicts. The total is met, or
    falls short by less than the smallest amount that is left (of documents without a reason, while there are).
    """
    chosen, budgets, left = [], np.zeros(len(weights), dtype=np.int64), total
    for reason in (CONSISTENT, DUPLICATE, CONFLICT):
        here = order[reasons[order] == reason]
        capacities = np.bincount(labels[here], weights=amounts[here], minlength=len(weights)).astype(np.int64)
        shares = cluster_budgets(weights, capacities, left)
        taken = _fill_shares(here, labels, shares, amounts, min(left, int(capacities.sum())))
        chosen.append(taken)
        budgets += shares
        left -= int(amounts[taken].sum())
        if len(taken) < len(here) or left <= 0:
            break
    return Filled(np.sort(np.concatenate(chosen)), budgets, reasons)


def fill_with_graph(
    order: Int64Array,
    labels: Int64Array,
    weights: FloatArray,
    amounts: Int64Array,
    total: int,
    texts: Sequence[str],
) -> Filled:
    """The published procedure: cluster by cluster the documents in ``order`` that the concept graph accepts.

    ``texts`` (m,) are those of ``order`` (m,). It stops short of the total wherever the graph rejects too much;
    then the documents not looked at are offered to the graph, and at last the rejected ones are taken.
    """
    graph, seen = ConceptGraph(), np.zeros(len(labels), dtype=np.bool_)
    reasons = np.full(len(labels), CONSISTENT, dtype=np.int8)
    concepts = dict(zip(order.tolist(), texts, strict=True))
    capacities = np.bincount(labels[order], weights=amounts[order], minlength=len(weights)).astype(np.int64)
    budgets = cluster_budgets(weights, capacities, total)
    chosen: list[int] = []

    def offer(documents: Int64Array, budget: int) -> int:
        """Take what the graph accepts; returns what is left of the budget."""
        for document in documents.tolist():
            amount = int(amounts[document])
            if budget <= 0:
                break
            if seen[document] or amount > budget:
                continue
            seen[document] = True
            if graph.accept(rake_phrases(concepts[document])):
                chosen.append(document)
                budget -= amount
            else:
                reasons[document] = CONFLICT
        return budget

    left = sum(offer(members, int(budgets[cluster])) for cluster, members in _members(order, labels))
    left = offer(order, left)
    more = fill(order[reasons[order] == CONFLICT], amounts, left)
    return Filled(np.union1d(np.asarray(chosen, dtype=np.int64), more), budgets, reasons)


def _fill_shares(
    order: Int64Array, labels: Int64Array, shares: Int64Array, amounts: Int64Array, total: int
) -> Int64Array:
    """Each cluster's share, and then what the documents' amounts left of the total."""
    parts = [fill(members, amounts, int(shares[cluster])) for cluster, members in _members(order, labels)]
    taken = np.concatenate([np.empty(0, dtype=np.int64), *parts])
    rest = order[~np.isin(order, taken)]
    return np.concatenate([taken, fill(rest, amounts, total - int(amounts[taken].sum()))])


def _members(order: Int64Array, labels: Int64Array) -> Iterator[tuple[int, Int64Array]]:
    """The documents of each cluster, in the given order."""
    grouped = order[np.argsort(labels[order], kind="stable")]
    for members in np.split(grouped, np.flatnonzero(np.diff(labels[grouped])) + 1):
        if len(members):
            yield int(labels[members[0]]), members
