"""Looks up the installed packages in the advisories of PyPI, and says honestly what it could not look up.

``make audit`` runs it. Exit status 1 for a known vulnerability; 0 where the advisories cannot be reached, which is
one line that says so, unless MIXWRIGHT_AUDIT=required. pip-audit alone calls that "no known vulnerabilities" where
an index answers that it knows none of the packages, as a mirror does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

SECONDS = 60.0
_PROBE_SECONDS = 10.0
IGNORED: dict[str, str] = {}
"""Advisories that do not matter here, by id, each with the reason."""

_COMMAND = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json", "--timeout", "5"]


def audit() -> dict[str, Any] | None:
    """The report of this environment; None if there is none. One package is looked up first: that fails fast."""
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one.txt"
        one.write_text(f"pip-audit=={version('pip-audit')}\n")
        probe = reported(_PROBE_SECONDS, "--no-deps", "--disable-pip", "--requirement", str(one))
    if not probe or not any("vulns" in each for each in probe["dependencies"]):
        return None
    return reported(SECONDS, "--skip-editable")


def reported(seconds: float, *options: str) -> dict[str, Any] | None:
    """What pip-audit reports; None if it fails or takes too long."""
    try:
        ended = subprocess.run([*_COMMAND, *options], capture_output=True, text=True, timeout=seconds, check=False)
        report: dict[str, Any] = json.loads(ended.stdout[ended.stdout.index("{") :])
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return report


def verdict(report: dict[str, Any] | None, *, required: bool) -> tuple[int, list[str]]:
    """Exit status, and the lines to print."""
    packages = report["dependencies"] if report else []
    known = [each for each in packages if "vulns" in each]
    if not known:
        line = "audit: nothing was audited, the advisories of PyPI cannot be reached from here"
        return int(required), [f"{line} (MIXWRIGHT_AUDIT=required makes this an error)" if not required else line]
    lines = [
        f"audit: {package['name']} {package['version']} has {found['id']}: "
        + (
            f"upgrade to {' or '.join(found['fix_versions'])}"
            if found["fix_versions"]
            else "no version mends it yet"
        )
        for package in known
        for found in package["vulns"]
        if found["id"] not in IGNORED
    ]
    unknown = [each["name"] for each in packages if "vulns" not in each and each["name"] != "mixwright"]
    rest = f"; not known there: {', '.join(unknown)}" if unknown else ""
    if lines:
        return 1, lines
    return 0, [f"audit: {len(known)} packages, none with a known vulnerability{rest}"]


if __name__ == "__main__":
    status, messages = verdict(audit(), required=os.environ.get("MIXWRIGHT_AUDIT") == "required")
    sys.stdout.write("".join(f"{message}\n" for message in messages))
    sys.exit(status)
