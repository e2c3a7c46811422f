"""Content negotiation: which of the forms that an answer may have its client likes best (RFC 9110, section 12)."""

from __future__ import annotations

from collections.abc import Sequence


def qualities(header: str) -> dict[str, float]:
    """What a header such as Accept names, in lower case, with its q; one that is no number, or none, is 0."""
    named: dict[str, float] = {}
    for part in header.split(","):
        name, *parameters = (each.strip().lower() for each in part.split(";"))
        named[name] = _quality(parameters)
    return named


def best_offer(accept: str | None, offers: Sequence[str]) -> str | None:
    """The media type of ``offers`` that an Accept header likes best; None if it takes none of them.

    The highest q wins, then what is named more exactly, then the first offer.
    """
    if not accept:
        return offers[0]
    ranges = qualities(accept)

    def liking(offer: str) -> tuple[float, int]:
        # A parameter of an offer, as Croissant's profile, narrows it and need not be asked for.
        kind = offer.partition(";")[0]
        names = (kind, f"{kind.partition('/')[0]}/*", "*/*")
        return next(((ranges[name], -place) for place, name in enumerate(names) if name in ranges), (0.0, 0))

    best = max(offers, key=liking)
    return best if liking(best)[0] > 0 else None


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = float(parameter[2:])
            except ValueError:
                return 0.0
            return quality if 0 <= quality <= 1 else 0.0
    return 1.0
