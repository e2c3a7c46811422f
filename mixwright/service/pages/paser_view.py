"""What page, plots and command line say of a PASER mixture: the numbers of its report as shares and rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from mixwright.schemas.manifests import MixtureManifest

Rows = Sequence[Mapping[str, Any]]


def budget_unit(manifest: MixtureManifest) -> str:
    """``tokens`` or ``documents``: what the budget, and so every share, is counted in."""
    (unit,) = manifest.budget
    return unit


def cluster_rows(manifest: MixtureManifest) -> list[dict[str, Any]]:
    """The report's clusters, the most degraded first, with what a person compares them by.

    Added to each: ``pool_share``, ``budget_share`` (what it was to give) and ``selected_share`` (what it gave), in
    the budget's unit; ``left_out``, the documents that consistency kept out in the end; ``label`` and
    ``degradation_text`` to be shown.
    """
    unit = budget_unit(manifest)
    clusters = manifest.report["clusters"]
    shares = {"pool_share": unit, "budget_share": "budget", "selected_share": f"selected_{unit}"}
    largest = max(each["degradation"] for each in clusters)
    totals = {share: sum(each[field] for each in clusters) for share, field in shares.items()}
    rows = [
        {
            **each,
            **{share: each[field] / max(totals[share], 1) for share, field in shares.items()},
            "left_out": each["duplicates"] + each["conflicts"] - each["relaxed"],
            "label": cluster_label(each, 3),
            "degradation_text": short(each["degradation"], like=largest),
        }
        for each in clusters
    ]
    return sorted(rows, key=lambda row: (-row["degradation"], row["cluster"]))


def cluster_label(cluster: Mapping[str, Any], n_terms: int) -> str:
    """Number and first terms: ``3 capital, city``."""
    return f"{cluster['cluster']} {', '.join(cluster['top_terms'][:n_terms])}".strip()


@dataclass(frozen=True)
class Comparison:
    """One number of the selection, and of as much drawn at random, once a seed."""

    name: str
    selected: float
    random: tuple[float, ...]

    @property
    def random_mean(self) -> float:
        """Mean over the draws."""
        return fmean(self.random)

    @property
    def random_spread(self) -> float:
        """Standard deviation over the draws."""
        return stdev(self.random) if len(self.random) > 1 else 0.0

    @property
    def random_text(self) -> str:
        """Mean ± standard deviation."""
        return f"{short(self.random_mean)} ± {short(self.random_spread, like=self.random_mean)}"


def comparisons(manifest: MixtureManifest) -> list[Comparison]:
    """Mean score, mean length and clusters reached, beside random; draws that hold no document are left out."""
    report = manifest.report
    measures: tuple[tuple[str, Callable[[Mapping[str, Any]], float]], ...] = (
        (f"mean {report['settings']['score_attribute']}", lambda draw: draw["mean_score"]),
        ("mean tokens a document", lambda draw: draw["tokens"] / draw["documents"]),
        ("clusters reached", lambda draw: draw["clusters"]),
    )
    selected = report["comparison"]["paser"]
    random = [draw for draw in report["comparison"]["random"] if draw["documents"]]
    return [Comparison(name, of(selected), tuple(map(of, random))) for name, of in measures]


def short(value: float, like: float | None = None) -> str:
    """A number in three figures (whole numbers whole), or with as many decimals as ``like`` has so."""
    if like is None and float(value).is_integer():
        return f"{value:,.0f}"
    scale = abs(value if like is None else like)
    decimals = 2 - math.floor(math.log10(scale)) if scale else 2
    return f"{value:,.{max(decimals, 0)}f}"
