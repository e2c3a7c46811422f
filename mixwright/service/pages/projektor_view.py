"""What page, plots and command line say of a projektor mixture: the numbers of its report as text and shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mixwright.schemas.manifests import MixtureManifest
from mixwright.selectors.projektor.projection import LARGEST_NOISE_GAIN
from mixwright.service.pages.paser_view import short

Report = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]

LISTED = 12
"""So many sources of a mixture are named, the largest shares; the others are counted."""
COLOURS = 6
"""So many classes ``part-0`` … ``part-5`` the pages' styles have."""
TRANSPORT = "OT distance, lower is nearer"
"""What stands at axes where there are no scores."""
NOTHING = "–"
"""Stands for a number that there is not."""

PROJECTIONS = {
    "power_pooled": "a power law in the size, the mixtures' exponents shrunk to a common one",
    "power_shared": "a power law in the size, one exponent for all mixtures",
    "log_linear": "linear in the logarithm of the size",
    "power": "a power law in the size, an exponent for each mixture",
    "none": "none: what is predicted is for the runs' largest size",
}


@dataclass(frozen=True)
class Part:
    """A source of a composition, with the class ``part-<colour>`` it is drawn in."""

    source: str
    share: float
    colour: int


@dataclass(frozen=True)
class Segment:
    """A piece of a composition's bar, in hundredths of it; ``label`` names its source, or counts several."""

    label: str
    start: float
    width: float
    colour: int


@dataclass(frozen=True)
class Composition:
    """What a mixture is made of: the largest shares, how many others have one, and the bar."""

    parts: tuple[Part, ...]
    n_others: int
    others_share: float
    bar: tuple[Segment, ...]

    def others(self, n_named: int = LISTED) -> str:
        """``and 88 more with 14.2%``, or nothing where there are no more than ``n_named``."""
        unnamed = self.parts[n_named:]
        n_others = self.n_others + len(unnamed)
        share = self.others_share + sum(part.share for part in unnamed)
        return f"and {n_others:,} more with {share:.1%}" if n_others else ""

    def text(self, n_named: int = LISTED) -> str:
        """All of it in one line."""
        named = ", ".join(f"{part.source} {part.share:.1%}" for part in self.parts[:n_named])
        return f"{named} {self.others(n_named)}".strip()


@dataclass(frozen=True)
class Figures:
    """Scores as text, all with the same decimals. ``like`` has the right ones in three figures; None: own ones."""

    like: float | None

    def text(self, value: float | None) -> str:
        """The number, or a dash where there is none."""
        return NOTHING if value is None else short(value, like=self.like)

    def interval(self, low: float | None, high: float | None) -> str:
        """``1.85 to 2.01``."""
        return NOTHING if low is None or high is None else f"{self.text(low)} to {self.text(high)}"


def score_figures(report: Report) -> Figures:
    """Decimals that show two figures of the usual standard deviation, within reason: they are what is known."""
    predicted = [each for each in (*report["candidates"], *report["methods"]) if each["mean"] is not None]
    means = [abs(each["mean"]) for each in predicted] + [abs(run["score"]) for run in report["runs"]]
    largest = max(means, default=0.0)
    deviations = [each["sd"] for each in predicted if each["sd"]]
    if not deviations or not largest:
        return Figures(largest or None)
    return Figures(min(max(10 * median(deviations), largest / 10_000), largest))


def predicts(report: Report) -> bool:
    """Whether scores are predicted; without results mixtures are compared by their transport alone."""
    return any(each["mean"] is not None for each in report["candidates"])


def metric_text(report: Report) -> str:
    """``bits_per_byte, lower is better``; of a report without results what OT distances say."""
    metric = report["metric"]
    if metric is None:
        return TRANSPORT
    return f"{metric['name']}, {'lower' if metric['direction'] == 'minimize' else 'higher'} is better"


def chosen_weights(report: Report) -> Mapping[str, float]:
    """Share of each source in the chosen mixture."""
    weights: Mapping[str, float] = report["candidates"][0]["weights"]
    return weights


def by_chosen_share(report: Report) -> list[Mapping[str, Any]]:
    """The report's sources, the largest share of the chosen mixture first, else in their order."""
    weights = chosen_weights(report)
    return sorted(report["sources"], key=lambda source: -weights.get(source["name"], 0.0))


def source_colours(report: Report) -> dict[str, int]:
    """The colour of each source, the same in all compositions: own ones for the largest, grey for the others.

    The largest are those with most of all compared mixtures together, so that each bar shows something.
    """
    names = [source["name"] for source in report["sources"]]
    totals = {name: sum(each["weights"].get(name, 0.0) for each in report["candidates"]) for name in names}
    ranked = sorted(names, key=lambda name: -totals[name])
    return {name: min(rank, COLOURS - 1) for rank, name in enumerate(ranked)}


def composition(weights: Mapping[str, float], colours: Mapping[str, int]) -> Composition:
    """The mixture of ``weights`` in the sources' ``colours``; a source with no share is not part of it."""
    shares = {name: weights[name] for name in colours if weights.get(name, 0.0) > 0}
    largest = sorted(shares, key=lambda name: -shares[name])
    return Composition(
        parts=tuple(Part(name, shares[name], colours[name]) for name in largest[:LISTED]),
        n_others=len(largest[LISTED:]),
        others_share=sum(shares[name] for name in largest[LISTED:]),
        bar=_bar(shares, colours),
    )


def _bar(shares: Mapping[str, float], colours: Mapping[str, int]) -> tuple[Segment, ...]:
    """One segment a colour, in the colours' order: sources stand in the same order in every bar."""
    segments: list[Segment] = []
    start = 0.0
    for colour in range(COLOURS):
        here = [name for name in shares if colours[name] == colour]
        width = 100 * sum(shares[name] for name in here)
        if here:
            label = here[0] if len(here) == 1 else f"{len(here):,} other sources"
            segments.append(Segment(label, start, width, colour))
            start += width
    return tuple(segments)


def candidate_rows(report: Report) -> list[dict[str, Any]]:
    """The compared mixtures, each with its ``composition`` and its numbers as text."""
    figures, colours = score_figures(report), source_colours(report)
    return [
        {
            **each,
            "composition": composition(each["weights"], colours),
            "transport_text": short(each["transport"]),
            "mean_text": figures.text(each["mean"]),
            "interval_text": figures.interval(each["low"], each["high"]),
            "observed_text": figures.text(each["observed"]),
            "extrapolates_text": "yes, outside the runs" if each["extrapolates"] else "no, between the runs",
        }
        for each in report["candidates"]
    ]


def method_rows(report: Report) -> list[dict[str, Any]]:
    """What other methods choose; no ``composition`` where a method could choose nothing."""
    figures, colours = score_figures(report), source_colours(report)
    return [
        {
            **each,
            "composition": composition(each["weights"], colours) if each["weights"] else None,
            "mean_text": figures.text(each["mean"]),
            "sd_text": figures.text(each["sd"]),
        }
        for each in report["methods"]
    ]


def run_rows(report: Report) -> list[dict[str, Any]]:
    """The trainings that were learned from, the largest first, each with its ``composition``."""
    figures, colours = score_figures(report), source_colours(report)
    return [
        {
            **run,
            "composition": composition(run["weights"], colours),
            "score_text": figures.text(run["score"]),
            "predicted_text": figures.text(run["predicted"]),
            "transport_text": short(run["transport"]),
        }
        for run in sorted(report["runs"], key=lambda run: -run["size"])
    ]


def source_rows(report: Report) -> list[dict[str, Any]]:
    """The sources, the largest share of the chosen mixture first, each with that ``share``."""
    weights = chosen_weights(report)
    return [
        {**each, "share": weights.get(each["name"], 0.0), "transport_text": short(each["transport"])}
        for each in by_chosen_share(report)
    ]


def fold_rows(report: Report) -> list[dict[str, Any]]:
    """The K-fold table: the largest size first, and of each the predictor with the smallest mean absolute error.

    ``used_text`` says which predictor the prediction is from, or its share in ``auto``; ``is_used`` is that as a
    truth value. Predictors without a figure come last.
    """
    table, asked = report["cross_validation"], report["settings"]["predictor"]
    errors = [each["mean_absolute_error"] for each in table if each["mean_absolute_error"] is not None]
    figures = Figures(median(errors) or None if errors else None)
    rows = []
    for each in table:
        weight = each["weight"] or 0.0
        used = each["predictor"] == asked or weight > 0
        correlation = each["rank_correlation"]
        rows.append(
            {
                **each,
                "is_used": used,
                "used_text": f"{weight:.1%}" if weight > 0 else "yes" if used else NOTHING,
                "mean_absolute_error_text": figures.text(each["mean_absolute_error"]),
                "root_mean_square_error_text": figures.text(each["root_mean_square_error"]),
                "rank_correlation_text": NOTHING if correlation is None else f"{correlation:.2f}",
            }
        )
    return sorted(rows, key=lambda row: (-row["size"], _or_last(row["mean_absolute_error"])))


def best_folds(report: Report) -> list[dict[str, Any]]:
    """Those rows of the K-fold table that have an error, at the largest size that any has one at; best first."""
    known = [row for row in fold_rows(report) if row["mean_absolute_error"] is not None]
    return [row for row in known if row["size"] == known[0]["size"]]


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value


def projection_view(report: Report) -> dict[str, Any]:
    """How scores at the runs' sizes become one at the asked size, and a warning where noise grows too much."""
    projection, unit = report["projection"], report["settings"]["unit"]
    gain = projection["noise_gain"]
    warning = ""
    if gain is not None and gain > LARGEST_NOISE_GAIN:
        warning = (
            f"The projection multiplies chance differences between the runs by {short(gain)}, so the order of the "
            "mixtures may be chance as well: repeat runs with other seeds, train at sizes further apart, or at "
            f"one nearer to {report['settings']['size']:,} {unit}."
        )
    exponent = projection["exponent"]
    return {
        "kind_text": PROJECTIONS.get(projection["kind"], projection["kind"]),
        "sizes_text": ", ".join(f"{size:,}" for size in projection["sizes"]) or NOTHING,
        "exponent_text": NOTHING if exponent is None else short(exponent),
        "noise_gain_text": NOTHING if gain is None else short(gain),
        "warning": warning,
    }


def page_view(manifest: MixtureManifest) -> dict[str, Any]:
    """What the template ``report-projektor.html`` has beside the manifest and its report."""
    report = manifest.report
    if not report:
        return {}
    return {
        "candidates": candidate_rows(report),
        "folds": fold_rows(report),
        "listed": LISTED,
        "methods": method_rows(report),
        "metric_text": metric_text(report),
        "predicts": predicts(report),
        "projection": projection_view(report) if predicts(report) else {},
        "runs": run_rows(report),
        "sources": source_rows(report),
    }
