"""Where the components of a mixture are cut into stages.

A component's documents come in one order, pass after pass. A stage serves a stretch of it, and the next stage goes
on where it ended: nothing is repeated before a source's pass is used up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mixwright.schemas.mixtures import Stage
from mixwright.selectors.mixture import Mixture, Selection, tokens_of
from mixwright.selectors.pool import Pool, Source

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


class ServedRows:
    """The tokens of a component's rows in the order in which they are served, a pass at a time."""

    def __init__(self, source: Source, selection: Selection, seed: int, component: int) -> None:
        self.per_pass = tokens_of(source, selection.rows)
        self._source, self._selection = source, selection
        self._seed, self._component = seed, component
        self._passes: dict[int, Int64Array] = {}

    def nearest(self, target: float) -> int:
        """The number of served rows that come nearest to ``target`` tokens."""
        number = min(int(target // self.per_pass), self._selection.passes)
        return number * self._selection.n_selected + int(np.argmin(np.abs(self._tokens(number) - target)))

    def before(self, ordinal: int) -> int:
        """The tokens of the first ``ordinal`` rows."""
        whole, rest = divmod(ordinal, self._selection.n_selected)
        if ordinal == self._selection.n_rows:
            last = self._source.n_tokens[self._selection.remainder]
            return self._selection.passes * self.per_pass + int(last.sum())
        return int(self._tokens(whole)[rest]) if rest else whole * self.per_pass

    def _tokens(self, number: int) -> Int64Array:
        """The tokens before each row of a pass, and behind its last."""
        if number not in self._passes:
            start = number * self._selection.n_selected
            stop = min(start + self._selection.n_selected, self._selection.n_rows)
            rows, _ = self._selection.served(np.arange(start, stop), self._seed, self._component)
            tokens = np.cumsum(self._source.n_tokens[rows], dtype=np.int64)
            self._passes[number] = np.concatenate([[0], tokens]) + number * self.per_pass
        return self._passes[number]


def served_rows(mixture: Mixture, pool: Pool) -> list[ServedRows]:
    sources = {source.ref: source for source in pool.sources}
    return [
        ServedRows(sources[component.source], selection, mixture.seed, number)
        for number, (component, selection) in enumerate(zip(mixture.components, mixture.selections, strict=True))
    ]


def split_stages(mixture: Mixture, pool: Pool, last_share: float) -> Mixture:
    """The mixture in two stages, tagged then plain: ``last_share`` of every component's tokens is in the second.

    Each component is cut where its served rows, in their served order, come nearest to that many tokens.
    """
    served = served_rows(mixture, pool)
    cuts = [
        rows.nearest(component.n_tokens * (1 - last_share))
        for component, rows in zip(mixture.components, served, strict=True)
    ]
    ends = np.asarray([cuts, [component.n_rows for component in mixture.components]])
    return staged(mixture, served, [("tagged", True), ("cooldown", False)], ends)


def one_stage(mixture: Mixture, pool: Pool, name: str, tagged: bool) -> Mixture:
    """The mixture in one stage of this name."""
    ends = np.asarray([[component.n_rows for component in mixture.components]])
    return staged(mixture, served_rows(mixture, pool), [(name, tagged)], ends)


def served_sources(mixture: Mixture, pool: Pool) -> list[int]:
    """The number in the pool of each component's source."""
    numbers = {source.ref: number for number, source in enumerate(pool.sources)}
    return [numbers[component.source] for component in mixture.components]


def staged(
    mixture: Mixture,
    served: Sequence[ServedRows],
    labels: Sequence[tuple[str, bool]],
    ends: Int64Array,
    targets: Sequence[Mapping[str, float]] = (),
) -> Mixture:
    """The mixture in stages, by where each component ends in them, (stages, components); none without a row.

    ``report["stages"]`` says what each holds of each component; ``targets`` are the shares of the tokens that are
    meant in each, by source, where they are not those of the mixture.
    """
    starts = np.concatenate([np.zeros((1, ends.shape[1]), dtype=np.int64), ends[:-1]])
    passed = np.asarray([[rows.before(int(end)) for rows, end in zip(served, row, strict=True)] for row in ends])
    tokens = np.diff(passed, axis=0, prepend=0)
    stages, described = [], []
    for number, (name, tagged) in enumerate(labels):
        counts = ends[number] - starts[number]
        if not counts.sum():
            continue
        stages.append(
            Stage(
                name=name,
                tagged=tagged,
                n_rows=int(counts.sum()),
                n_tokens=int(tokens[number].sum()),
                starts=starts[number].tolist(),
                counts=counts.tolist(),
            )
        )
        epochs = passed[number] / [rows.per_pass for rows in served]
        meant = targets[number] if targets else {each.name: each.target_weight for each in mixture.components}
        described.append(_described(mixture, stages[-1], tokens[number], epochs, meant))
    return replace(mixture, stages=tuple(stages), report={**mixture.report, "stages": described})


def _described(
    mixture: Mixture, stage: Stage, tokens: Int64Array, epochs: FloatArray, targets: Mapping[str, float]
) -> dict[str, Any]:
    """What a stage holds: its share of the mixture's tokens, and of each component what it serves of it.

    ``tokens`` and ``epochs`` (components,) are those in the stage, and the passes over the component by its end.
    """
    parts = zip(mixture.components, stage.counts, tokens.tolist(), epochs.tolist(), strict=True)
    return {
        "name": stage.name,
        "tagged": stage.tagged,
        "n_rows": stage.n_rows,
        "n_tokens": stage.n_tokens,
        "share": stage.n_tokens / mixture.n_tokens,
        "components": [
            {
                "name": component.name,
                "n_rows": count,
                "n_tokens": n_tokens,
                "weight": n_tokens / max(stage.n_tokens, 1),
                "target_weight": targets.get(component.name),
                "epochs": passes,
            }
            for component, count, n_tokens, passes in parts
            if count
        ],
    }
