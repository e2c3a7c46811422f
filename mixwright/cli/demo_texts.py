"""Real text that every machine with mixwright installed already has: the demo's input.

Python's own source, the reference that ``help()`` shows, docstrings and descriptions of the installed packages,
and their licences. Nothing is imported or run: files are read, and source is parsed.
"""

from __future__ import annotations

import ast
import email
import importlib.metadata
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

Row = dict[str, Any]

_SHORTEST, _LONGEST = 200, 20_000
"""Characters of a docstring, function or section that is worth a document."""
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_NOT_LIBRARY = ("test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "ensurepip", "pydoc_data")


@dataclass(frozen=True)
class DemoCorpus:
    """A corpus of the demo: how many documents at most, and where they come from."""

    name: str
    about: str
    limit: int
    rows: Callable[[], Iterator[Row]]
    domain: str | None = None


def write_rows(corpus: DemoCorpus, path: Path) -> int:
    """Write the corpus as JSON lines, all or nothing; returns the number of documents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    count = 0
    with temporary.open("wb") as sink:
        for row in islice(corpus.rows(), corpus.limit):
            sink.write(msgspec.json.encode(row) + b"\n")
            count += 1
    temporary.rename(path)
    return count


def python_source() -> Iterator[Row]:
    """Functions and classes of the standard library, as source."""
    for path, tree, text in _parsed(_library_files()):
        module = _module_name(path)
        url = f"https://github.com/python/cpython/blob/{_PYTHON}/Lib/{_library_path(path).as_posix()}"
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                segment = ast.get_source_segment(text, node) or ""
                if _SHORTEST <= len(segment) <= _LONGEST:
                    yield {"text": segment, "url": url, "title": f"{module}.{node.name}"}


def python_reference() -> Iterator[Row]:
    """The language reference that ``help()`` shows, and the standard library's docstrings."""
    topics = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    for title, text in _literal_topics(topics):
        yield {"text": text, "url": f"https://docs.python.org/{_PYTHON}/reference/", "title": title}
    for path, tree, _ in _parsed(_library_files()):
        module = _module_name(path)
        for title, text in _docstrings(tree, module):
            url = f"https://docs.python.org/{_PYTHON}/library/{module}.html"
            yield {"text": text, "url": url, "title": title}


def package_docs() -> Iterator[Row]:
    """Docstrings of installed packages, each under its package's own home page; packages take turns."""
    turns = [islice(_package_docstrings(each), 80) for each in _distributions() if _home_page(each)]
    while turns:
        for each in list(turns):
            row = next(each, None)
            if row is None:
                turns.remove(each)
            else:
                yield row


def package_descriptions() -> Iterator[Row]:
    """What installed packages say of themselves."""
    for each in _distributions():
        text = email.message_from_string(each.read_text("METADATA") or "").get_payload()
        if not isinstance(text, str):
            continue
        if len(text) >= _SHORTEST and (url := _home_page(each)):
            yield {"text": text[: 4 * _LONGEST], "url": url, "title": each.name}


def licences() -> Iterator[Row]:
    """Licence texts of Python and of the installed packages; many are the same text."""
    own = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    if own.is_file():
        yield {"text": own.read_text("utf-8"), "url": "https://docs.python.org/3/license.html", "title": "Python"}
    for each in _distributions():
        for path in sorted(each.files or [], key=str):
            if path.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE")) and path.suffix != ".py":
                text = _read(Path(str(each.locate_file(path))))
                if text is not None and len(text) >= _SHORTEST:
                    yield {"text": text, "url": _home_page(each), "title": f"{each.name} {path.name}"}


DEMO_CORPORA = (
    DemoCorpus("python-source", "source of the standard library", 900, python_source, "python.org"),
    DemoCorpus("python-reference", "reference and docstrings of Python", 800, python_reference),
    DemoCorpus("package-docs", "docstrings of the installed packages", 900, package_docs),
    DemoCorpus("package-descriptions", "long descriptions of the packages", 200, package_descriptions),
    DemoCorpus("licences", "licence texts", 400, licences),
)


# Where the texts are


def _library_files() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not set(path.relative_to(root).parts) & set(_NOT_LIBRARY):
            yield path


def _library_path(path: Path) -> Path:
    return path.relative_to(sysconfig.get_path("stdlib"))


def _module_name(path: Path) -> str:
    parts = _library_path(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _distributions() -> list[Distribution]:
    found = {each.name: each for each in importlib.metadata.distributions() if each.name}
    return [found[name] for name in sorted(found, key=str.lower)]


def _home_page(distribution: Distribution) -> str | None:
    """The package's own page: its home page, else the first of its project URLs."""
    home = (distribution.metadata.get_all("Home-page") or [""])[0]
    if home.startswith("http"):
        return str(home)
    pairs = [str(each).partition(",") for each in distribution.metadata.get_all("Project-URL") or []]
    urls = {label.strip().lower(): url.strip() for label, _, url in pairs}
    for label in ("homepage", "home", "documentation", "docs", "source", "repository"):
        if urls.get(label, "").startswith("http"):
            return urls[label]
    return next((url for url in urls.values() if url.startswith("http")), None)


def _package_docstrings(distribution: Distribution) -> Iterator[Row]:
    files = [path for path in distribution.files or [] if path.suffix == ".py"]
    kept = [path for path in files if not {"tests", "test", "_vendor", "vendor"} & set(path.parts)]
    paths = (Path(str(distribution.locate_file(path))) for path in sorted(kept, key=str))
    for path, tree, _ in _parsed(paths):
        for title, text in _docstrings(tree, f"{distribution.name}: {path.stem}"):
            yield {"text": text, "url": _home_page(distribution), "title": title}


# Reading them


def _read(path: Path) -> str | None:
    """A file's text; None for one that is not there or not UTF-8 (installed trees hold both)."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _parsed(paths: Iterator[Path]) -> Iterator[tuple[Path, ast.Module, str]]:
    """The files that parse (installed packages carry templates and other Pythons' syntax)."""
    for path in paths:
        text = _read(path)
        if text is None or len(text) > 1_000_000:
            continue
        try:
            tree = _quiet_parse(text)
        except (SyntaxError, ValueError, RecursionError):
            continue
        yield path, tree, text


def _quiet_parse(text: str) -> ast.Module:
    # Warnings about a package's old escape sequences are its authors' business.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def _docstrings(tree: ast.Module, prefix: str) -> Iterator[tuple[str, str]]:
    """Title and docstring of a module and of its top-level functions and classes (and their methods)."""
    nodes: list[tuple[str, ast.Module | ast.FunctionDef | ast.ClassDef]] = [(prefix, tree)]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            nodes.append((f"{prefix}.{node.name}", node))
            nodes.extend(
                (f"{prefix}.{node.name}.{inner.name}", inner)
                for inner in node.body
                if isinstance(inner, ast.FunctionDef)
            )
    for title, documented in nodes:
        text = ast.get_docstring(documented)
        if text and _SHORTEST <= len(text) <= _LONGEST:
            yield title, text


def _literal_topics(path: Path) -> Iterator[tuple[str, str]]:
    """The dictionary of texts in ``pydoc_data.topics``, read and not run."""
    text = _read(path)
    if text is None:
        return
    for node in _quiet_parse(text).body:
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict):
            yield from ast.literal_eval(value).items()
