"""What the page of a mixture draws: bars of shares, stages over the tokens, documents by domain.

Places and widths are hundredths of the drawing's width (from the left) or height (from the top): drawings are as
wide as the window, and their text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixwright.schemas.manifests import CorpusManifest, MixtureManifest
from mixwright.service.pages.evaluation_view import size_text
from mixwright.service.pages.projektor_view import COLOURS, Composition, Segment, composition

_LABEL_WIDTH, _SURE_WIDTH = 6.0, 25.0
"""Hundredths: a narrower stage has no name above it on a wide drawing, on a narrow one."""
_MAX_CURVES = COLOURS - 1


def ranked_colours(shares: Mapping[str, float]) -> dict[str, int]:
    """A colour for each name, own ones for the largest shares and one for all others."""
    ranked = sorted(shares, key=lambda name: -shares[name])
    return {name: min(rank, COLOURS - 1) for rank, name in enumerate(ranked)}


def composition_of(shares: Mapping[str, float]) -> Composition:
    """Shares, which need not sum to 1, as a bar with its legend."""
    total = sum(shares.values()) or 1.0
    scaled = {name: share / total for name, share in shares.items()}
    return composition(scaled, ranked_colours(scaled))


@dataclass(frozen=True)
class MixtureBars:
    """Two bars over one legend: what is served, and what the selector aimed at."""

    colours: Mapping[str, int]
    served: Composition
    aimed: Composition | None

    @property
    def differ(self) -> bool:
        """True where caps or rounding moved a share by half a percentage point or more."""
        aimed = {part.source: part.share for part in self.aimed.parts} if self.aimed else {}
        return any(abs(aimed.get(part.source, part.share) - part.share) >= 0.005 for part in self.served.parts)


def mixture_bars(manifest: MixtureManifest) -> MixtureBars:
    """Shares of the tokens by source, served and aimed at."""
    served = {part.name: part.weight for part in manifest.components}
    aimed = {part.name: part.target_weight for part in manifest.components}
    colours = ranked_colours(served)
    return MixtureBars(
        colours, composition(served, colours), composition(aimed, colours) if sum(aimed.values()) else None
    )


@dataclass(frozen=True)
class StageBand:
    """A stage on the time line: its place in hundredths of the tokens, and the parts of its column."""

    name: str
    tagged: bool
    start: float
    width: float
    n_rows: int
    n_tokens: int
    parts: tuple[Segment, ...]

    @property
    def named(self) -> bool:
        """Whether its name has room above it, on a wide drawing at least."""
        return self.width >= _LABEL_WIDTH

    @property
    def surely_named(self) -> bool:
        """Whether its name has room on a narrow drawing, too."""
        return self.width >= _SURE_WIDTH

    @property
    def middle(self) -> float:
        """Where its name stands."""
        return self.start + self.width / 2


def stage_bands(manifest: MixtureManifest) -> list[StageBand]:
    """The stages in order. A component's share of a stage is that of its rows times their mean tokens."""
    colours = ranked_colours({part.name: part.weight for part in manifest.components})
    means = {part.name: part.n_tokens / part.n_rows for part in manifest.components}
    total = sum(stage.n_tokens for stage in manifest.stages) or 1
    bands, start = [], 0.0
    for stage in manifest.stages:
        counts = {part.name: n for part, n in zip(manifest.components, stage.counts, strict=True)}
        tokens = {name: n * means[name] for name, n in counts.items()}
        whole = sum(tokens.values()) or 1.0
        shares = {name: each / whole for name, each in tokens.items()}
        width = 100 * stage.n_tokens / total
        parts = composition(shares, colours).bar
        bands.append(StageBand(stage.name, stage.tagged, start, width, stage.n_rows, stage.n_tokens, parts))
        start += width
    return bands


@dataclass(frozen=True)
class Tick:
    """A mark on an axis. ``minor`` ones are left out where there is little room."""

    place: float
    text: str
    minor: bool = False


def token_ticks(total: int, n: int = 5) -> list[Tick]:
    """Round numbers from 0 to ``total``, about ``n`` of them."""
    if total <= 0:
        return [Tick(0.0, "0")]
    rough = total / n
    power = 10 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= rough)
    numbers = range(math.floor(total / step) + 1)
    return [Tick(100 * i * step / total, size_text(i * step), minor=i % 2 == 1) for i in numbers]


@dataclass(frozen=True)
class Dot:
    """A point of a curve, and what it says."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class DomainCurve:
    """Documents of a corpus's domains, the commonest first; ``line`` are points for an SVG polyline."""

    corpus: str
    colour: int
    n_domains: int
    dots: tuple[Dot, ...]
    line: str


@dataclass(frozen=True)
class DomainChart:
    """Curves of documents over rank, both axes logarithmic."""

    curves: tuple[DomainCurve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    n_left_out: int


def domain_chart(corpora: Sequence[CorpusManifest], colours: Mapping[str, int]) -> DomainChart | None:
    """The chart of up to five corpora, the largest; None where no corpus has two domains.

    A manifest counts the commonest hundred domains, so nothing is read and the curve ends there.
    """
    named = [each for each in corpora if len(each.domains) > 1]
    shown = sorted(named, key=lambda each: -each.n_documents)[:_MAX_CURVES]
    if not shown:
        return None
    most = max(max(each.domains.values()) for each in shown)
    ranks = max(len(each.domains) for each in shown)
    x_decades, y_decades = math.log10(ranks), max(math.log10(max(most, 2)), 0.1)
    curves = []
    for each in shown:
        counts = sorted(each.domains.items(), key=lambda item: (-item[1], item[0]))
        dots = tuple(
            Dot(
                100 * math.log10(rank) / x_decades,
                100 - 100 * math.log10(max(n, 1)) / y_decades,
                f"{rank}. {domain}: {n:,} document{'s' * (n != 1)}",
            )
            for rank, (domain, n) in enumerate(counts, 1)
        )
        line = " ".join(f"{dot.x:.2f},{dot.y:.2f}" for dot in dots)
        colour = colours.get(each.name, COLOURS - 1)
        curves.append(DomainCurve(each.ref, colour, max(each.n_domains, len(dots)), dots, line))
    return DomainChart(
        tuple(curves),
        tuple(Tick(100 * math.log10(n) / x_decades, size_text(n), minor) for n, minor in _log_marks(ranks)),
        tuple(Tick(100 - 100 * math.log10(n) / y_decades, size_text(n), minor) for n, minor in _log_marks(most)),
        len(named) - len(shown),
    )


def _log_marks(most: int) -> list[tuple[int, bool]]:
    """1, 2, 5, 10, 20 … up to ``most``, and whether each is a minor one."""
    decades = range(int(math.log10(max(most, 1))) + 1)
    few = len(decades) < 3
    marks = [(factor * 10**decade, factor > 1) for decade in decades for factor in ((1, 2, 5) if few else (1,))]
    return [(n, minor) for n, minor in marks if n <= most]
