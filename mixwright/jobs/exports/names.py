"""Names of data sets: safe as file names, in YAML, and in lists where numbers are weights."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null", "none", "default"})
"""Values of YAML, and the configuration that Hugging Face datasets takes where none is named."""


def safe_names(wanted: Sequence[str]) -> list[str]:
    """A unique name for each wanted one: letters, digits and ``-_.`` only, and none that reads as a number.

    Megatron takes ``2020`` in a list of paths as a weight, YAML takes ``1e3`` as a number and ``no`` as false.
    """
    found: list[str] = []
    taken: set[str] = set()
    for name in wanted:
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "data"
        # The second of two names "1e" would be "1e-2".
        if _reads_as_value(base) or _reads_as_value(f"{base}-2"):
            base = f"data-{base}"
        candidate, number = base, 2
        # Some file systems do not tell capitals from small letters.
        while candidate.casefold() in taken:
            candidate, number = f"{base}-{number}", number + 1
        taken.add(candidate.casefold())
        found.append(candidate)
    return found


def _reads_as_value(name: str) -> bool:
    if name.casefold() in _WORDS or re.fullmatch(r"[0-9_.-]+", name):
        return True
    try:
        # YAML has forms of its own, "0._e-2" for one; a date that is none is an error.
        if not isinstance(yaml.safe_load(name), str):
            return True
    except ValueError:
        return True
    try:
        float(name)
    except ValueError:
        return False
    return True
