"""What the runs say: rates chosen on validation, test loss by ability, differences with their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from recovery.data import Sample
from recovery.runs import Losses, Result

FloatArray = npt.NDArray[np.float64]
_RESAMPLES = 4000


def by_ability(losses: Losses, samples: Sequence[Sample]) -> dict[str, float]:
    """Nats per response token of each ability."""
    return {ability: float(total / n) for ability, (total, n) in _sums(losses, samples).items()}


def macro(losses: Losses, samples: Sequence[Sample]) -> float:
    """The mean over abilities of the nats per response token."""
    return float(np.mean(list(by_ability(losses, samples).values())))


def best_rate(results: Sequence[Result], validation: Sequence[Sample]) -> float:
    """The learning rate whose result has the lowest validation loss; test losses are not looked at."""
    return min(results, key=lambda each: (macro(each.validation, validation), each.lr)).lr


def differences(
    one: Sequence[Result], other: Sequence[Result], test: Sequence[Sample], seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Mean test loss of the runs ``one`` less that of ``other``, with a 95 % bootstrap interval.

    By ability, and ``mean`` over the abilities. Paired: test samples are drawn again within each ability, the same
    for both sides; runs of several seeds are drawn again as well, so that the interval holds what a new seed would
    change.
    """
    draw = np.random.default_rng(seed)
    drawn = [draw.integers(0, len(side), size=(len(side), _RESAMPLES)) for side in (one, other)]
    found: dict[str, tuple[float, float, float]] = {}
    gaps = []
    for ability in sorted({sample.ability for sample in test}):
        members = [sample.id for sample in test if sample.ability == ability]
        counts = draw.multinomial(len(members), np.full(len(members), 1 / len(members)), size=_RESAMPLES)
        sides = [
            np.take_along_axis(_losses(side, members, counts), runs, axis=0).mean(axis=0)
            for side, runs in zip((one, other), drawn, strict=True)
        ]
        gaps.append(sides[0] - sides[1])
        whole = np.ones((1, len(members)))
        middle = float(_losses(one, members, whole).mean() - _losses(other, members, whole).mean())
        found[ability] = _interval(middle, gaps[-1])
    return {
        "mean": _interval(float(np.mean([each[0] for each in found.values()])), np.mean(gaps, axis=0)),
        **found,
    }


def summary(arms: Mapping[str, Sequence[Result]], test: Sequence[Sample], baseline: str) -> list[dict[str, Any]]:
    """One row an arm: its test loss, in the mean over its seeds, by ability, and less that of ``baseline``."""
    rows = []
    for arm, results in arms.items():
        losses = [by_ability(each.test, test) for each in results]
        macros = [macro(each.test, test) for each in results]
        row: dict[str, Any] = {
            "arm": arm,
            "seeds": len(results),
            "lr": results[0].lr,
            "n_samples": float(np.mean([each.n_samples for each in results])),
            "n_tokens": float(np.mean([each.n_tokens for each in results])),
            "abilities": {name: float(np.mean([each[name] for each in losses])) for name in losses[0]},
            "macro": float(np.mean(macros)),
            "macro_sd": float(np.std(macros, ddof=1)) if len(macros) > 1 else None,
        }
        if baseline in arms and arm != baseline:
            row["differences"] = differences(results, arms[baseline], test)
        rows.append(row)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Two tables: the losses, and what they are less than the baseline's (bold: the interval leaves out zero)."""
    abilities = list(rows[0]["abilities"])
    losses, gaps = [], []
    for row in rows:
        spread = "" if row["macro_sd"] is None else f" ± {row['macro_sd']:.3f}"
        trained = [f"{row['n_samples']:.0f}", f"{row['n_tokens']:,.0f}", f"{row['lr']:g}"]
        means = [f"{row['abilities'][name]:.3f}" for name in abilities]
        losses.append(
            [row["arm"], *(trained if row["n_samples"] else [""] * 3), *means, f"{row['macro']:.3f}{spread}"]
        )
        if "differences" in row and row["n_samples"]:
            gaps.append([row["arm"], *(_gap(row["differences"][name]) for name in (*abilities, "mean"))])
    heads = ["arm", "samples", "tokens", "rate", *abilities, "mean"]
    first = f"Nats a response token, and the standard deviation over seeds.\n\n{_table(heads, losses)}"
    second = f"Less that of {baseline}, with 95 % intervals.\n\n{_table(['arm', *abilities, 'mean'], gaps)}"
    return f"{first}\n\n{second}"


def _gap(difference: tuple[float, float, float]) -> str:
    middle, low, high = difference
    text = f"{middle:+.3f}"
    return f"{f'**{text}**' if low > 0 or high < 0 else text} ({low:+.3f} to {high:+.3f})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def _sums(losses: Losses, samples: Sequence[Sample]) -> dict[str, FloatArray]:
    sums: dict[str, FloatArray] = {}
    for sample in samples:
        sums[sample.ability] = sums.get(sample.ability, np.zeros(2)) + losses[sample.id]
    return sums


def _losses(results: Sequence[Result], members: Sequence[str], counts: npt.NDArray[Any]) -> FloatArray:
    """Nats per response token, (runs, resamples), of samples (m,) taken as often as ``counts`` (resamples, m)."""
    sums = [counts @ np.asarray([result.test[each] for each in members]) for result in results]
    return np.stack([nll_and_n[:, 0] / nll_and_n[:, 1] for nll_and_n in sums])


def _interval(middle: float, resampled: FloatArray) -> tuple[float, float, float]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return middle, float(low), float(high)
