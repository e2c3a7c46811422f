"""The audit of dependencies: found, not found, and not looked up are three things."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "tools" / "audit_dependencies.py"
_spec = importlib.util.spec_from_file_location("audit_dependencies", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
audit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(audit)

CLEAN = {"name": "numpy", "version": "2.4.6", "vulns": []}
BAD = {
    "name": "jinja2",
    "version": "3.1.0",
    "vulns": [
        {"id": "PYSEC-2024-1", "fix_versions": ["3.1.3", "3.2"], "aliases": [], "description": ""},
        {"id": "PYSEC-2024-2", "fix_versions": [], "aliases": [], "description": ""},
    ],
}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch"}
EDITABLE = {"name": "mixwright", "skip_reason": "distribution marked as editable"}


@pytest.mark.parametrize("report", [None, {"dependencies": []}, {"dependencies": [SKIPPED, EDITABLE]}])
def test_what_was_not_looked_up_is_not_called_clean(report: Any) -> None:
    status, (line,) = audit.verdict(report, required=False)
    assert status == 0
    assert "nothing was audited" in line
    assert audit.verdict(report, required=True)[0] == 1


def test_what_is_found_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    status, lines = audit.verdict({"dependencies": [CLEAN, BAD, SKIPPED]}, required=False)
    assert status == 1
    assert lines == [
        "audit: jinja2 3.1.0 has PYSEC-2024-1: upgrade to 3.1.3 or 3.2",
        "audit: jinja2 3.1.0 has PYSEC-2024-2: no version mends it yet",
    ]
    monkeypatch.setattr(audit, "IGNORED", {each["id"]: "not used" for each in BAD["vulns"]})
    assert audit.verdict({"dependencies": [CLEAN, BAD]}, required=True)[0] == 0


def test_what_is_clean_says_what_else_there_is() -> None:
    status, (line,) = audit.verdict({"dependencies": [CLEAN, SKIPPED, EDITABLE]}, required=True)
    assert status == 0
    assert line == "audit: 1 packages, none with a known vulnerability; not known there: torch"


@pytest.mark.parametrize(
    ("program", "seconds", "expected"),
    [
        ("import sys; sys.exit('connection refused')", 30, None),
        ("import time; time.sleep(30)", 0.2, None),
        ("print('No known vulnerabilities found')", 30, None),
        ("print('{\"dependencies\": []}')", 30, {"dependencies": []}),
        ("print('Found 1\\n{\"dependencies\": []}'); raise SystemExit(1)", 30, {"dependencies": []}),
    ],
)
def test_what_pip_audit_says(monkeypatch: pytest.MonkeyPatch, program: str, seconds: float, expected: Any) -> None:
    monkeypatch.setattr(audit, "_COMMAND", [sys.executable, "-c", program])
    assert audit.reported(seconds) == expected


def test_make_check_audits() -> None:
    planned = subprocess.run(
        ["make", "--dry-run", "check"], cwd=SCRIPT.parent.parent, capture_output=True, text=True, check=False
    )
    assert "tools/audit_dependencies.py" in planned.stdout
