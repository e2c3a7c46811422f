"""Writes docs/cli.md from the program itself: ``python docs/make_cli_reference.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from mixwright.cli import app

HEAD = """# Command line

Written by `python docs/make_cli_reference.py` from the program itself.

Every command that prints takes `--json`. The exit status is 0, 1 with one line on standard error for an error, or
2 for wrong usage; under `--json` the error is a problem document `{type, title, status, detail}`. Long work shows
a progress bar on a terminal and plain lines otherwise, on standard error.
"""


def commands(command: Any, path: tuple[str, ...] = ("mixwright",)) -> Iterator[tuple[str, Any]]:
    """Every visible command that does something, with its full name."""
    children = getattr(command, "commands", None)
    if not children:
        yield " ".join(path), command
        return
    for name, child in children.items():
        if not child.hidden:
            yield from commands(child, (*path, name))


def section(name: str, command: Any) -> str:
    """One command: what it does, its arguments and options."""
    lines = [f"## {name}", "", (command.help or "").strip(), "", "| option | default | is |", "|---|---|---|"]
    for parameter in command.params:
        if parameter.name == "help":
            continue
        if parameter.param_type_name == "argument":
            flag = parameter.metavar or parameter.name.upper()
        else:
            flag = " / ".join([*parameter.opts, *parameter.secondary_opts])
        default = parameter.default
        text = str(default).replace("\n", "\\n")
        shown = "required" if parameter.required else "" if default in (None, False, ()) else f"`{text}`"
        lines.append(f"| `{flag}` | {shown} | {parameter.help or ''} |")
    return "\n".join(lines) + "\n"


def reference() -> str:
    """The whole page."""
    root = typer.main.get_command(app)
    return "\n".join([HEAD, *(section(name, command) for name, command in commands(root))])


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(reference(), encoding="utf-8")
