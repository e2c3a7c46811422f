"""The page that says what is wrong, to a browser that asked for a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwright.service.pages.html import render


def error_page(problem: Mapping[str, Any]) -> str:
    """A problem document as a page."""
    return render("error.html", status=problem["status"], problem_title=problem["title"], detail=problem["detail"])
