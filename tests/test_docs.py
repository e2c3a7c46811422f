"""The docs name every command, option, route, setting and selector parameter."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mixwright.config import Settings
from mixwright.selectors.registry import SELECTORS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def test_the_command_line_page_is_what_the_program_says() -> None:
    spec = importlib.util.spec_from_file_location("make_cli_reference", DOCS / "make_cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (DOCS / "cli.md").read_text("utf-8")
    assert written == module.reference(), "run python docs/make_cli_reference.py"
    assert "mixwright select domain-tags" in written


def test_every_route_is_documented(tmp_path: Path) -> None:
    from mixwright.service.app import create_app

    page = (DOCS / "rest.md").read_text("utf-8")
    paths = create_app(Settings(home=tmp_path)).openapi()["paths"]
    assert len(paths) > 10
    missing = [path for path in paths if path not in page]
    assert missing == []


def test_every_setting_is_documented() -> None:
    page = (DOCS / "configuration.md").read_text("utf-8")
    for name in Settings.model_fields:
        assert f"MIXWRIGHT_{name.upper()}" in page


@pytest.mark.parametrize("kind", sorted(SELECTORS))
def test_every_selector_has_a_page_with_its_parameters(kind: str) -> None:
    page = (DOCS / "selectors" / f"{kind}.md").read_text("utf-8")
    for field in dataclasses.fields(SELECTORS[kind]):
        if field.name != "kind":
            assert f"`{field.name}`" in page, field.name


def test_every_dependency_has_its_reason() -> None:
    page = (DOCS / "dependencies.md").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[\[<>=;~ ]", each)[0] for group in groups for each in group} - {"mixwright"}
    assert [name for name in sorted(names) if name not in page] == []


def test_every_page_is_linked_and_every_link_leads_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
    linked = set()
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text("utf-8")):
            path = (page.parent / target).resolve()
            assert path.exists(), f"{page.name} links to {target}"
            linked.add(path)
    assert [page.name for page in DOCS.rglob("*.md") if page.resolve() not in linked] == []


def test_the_rooms_import_one_way() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("import-linter is not installed: make check installs it")
    result = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
