"""What page, plots and command line say of an evaluation: its numbers as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mixwright.schemas.evaluations import (
    Curve,
    CurvePointReport,
    Estimate,
    EvaluateReport,
    LanguageMetric,
    ScalingMetric,
    TargetFacts,
)

_DECIMALS = 3
_UNITS = ("", "k", "M", "B", "T")

LANGUAGE_NAMES: Mapping[LanguageMetric, str] = {
    "answer_nll": "NLL of answers, nats a token",
    "perplexity": "Perplexity of texts",
}


def metric_name(metric: ScalingMetric, k: int) -> str:
    """A metric as a heading; ``k`` are documents of a ranking."""
    if metric in ("answer_nll", "perplexity"):
        return LANGUAGE_NAMES[metric]
    return f"{'Recall' if metric == 'recall' else 'nDCG'}@{k}"


def is_better_low(metric: ScalingMetric) -> bool:
    """Whether a smaller score is a better one."""
    return metric in ("answer_nll", "perplexity")


def plot_name(metric: ScalingMetric) -> str:
    """The name of a curve's plot in addresses and file names."""
    return metric.replace("_", "-")


def number(value: float) -> str:
    """A score with three decimals, or from 100 on in whole numbers."""
    text = f"{value:.{_DECIMALS}f}" if abs(value) < 100 else f"{value:,.0f}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(value: Estimate | CurvePointReport) -> str:
    """The ends of a 95 % interval."""
    return f"{number(value.low)} to {number(value.high)}"


def size_text(n: float) -> str:
    """A number of tokens as on an axis: ``350``, ``1.5k``, ``20M``."""
    power = 0
    while abs(n) >= 999.5 and power < len(_UNITS) - 1:
        n, power = n / 1000, power + 1
    return f"{n:.3g}{_UNITS[power]}"


def targets_text(facts: TargetFacts) -> str:
    """What was scored: ``60 questions, 274 target tokens``."""
    windows = f" in {facts.n_targets:,} windows" if facts.unit == "document" else ""
    return f"{facts.n_units:,} {facts.unit}s{windows}, {facts.n_tokens:,} target tokens"


@dataclass(frozen=True)
class Row:
    """A line of a table of scores."""

    name: str
    value: str
    interval: str


def retrieval_rows(report: EvaluateReport) -> list[Row]:
    """Recall, nDCG and MRR of documents, and the recall of the index."""
    rows = []
    if found := report.retrieval:
        named = {f"Recall@{found.k}": found.recall, f"nDCG@{found.cutoff}": found.ndcg}
        named[f"MRR@{found.cutoff}"] = found.mrr
        rows = [Row(name, number(each.value), interval(each)) for name, each in named.items()]
    if report.index is not None:
        recall = report.index.recall
        name = f"Passages that the index finds of the nearest {report.index.k}"
        rows.append(Row(name, number(recall.value), interval(recall)))
    return rows


@dataclass(frozen=True)
class PointRow:
    """A line of a curve's table."""

    share: str
    passages: str
    tokens: str
    value: str
    interval: str
    change: str
    by_seed: str
    searched_again: str
    short: str


def point_rows(curve: Curve) -> list[PointRow]:
    """The points of a curve, the model alone first."""
    rows = []
    if curve.baseline is not None:
        base = curve.baseline
        rows.append(PointRow("model alone", "0", "0", number(base.value), interval(base), "", "", "", ""))
    for point in curve.points:
        rows.append(
            PointRow(
                f"{100 * point.probability:.6g} %",
                f"{point.n_passages:,.0f}",
                f"{point.n_tokens:,.0f}",
                number(point.value),
                interval(point),
                f"{number(point.change.value)} ({interval(point.change)})" if point.change else "",
                ", ".join(number(each) for each in point.by_seed),
                ", ".join(f"{n:,}" for n in point.searched_again),
                ", ".join(f"{n:,}" for n in point.short),
            )
        )
    return rows
