"""Templates: text made of a document's fields, written with ``{field}`` placeholders.

They make the text of a corpus from several input fields, and find prompt and response in instruction data.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping
from functools import cache

import polars as pl

from mixwright.errors import ConfigError

_RESPONSE_FIELDS = ("output", "response", "completion", "answer", "target", "targets")
_PROMPT_FIELDS = ("instruction", "prompt", "question", "query", "inputs")
_CONTEXT_FIELDS = ("input", "context")


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """The template as (literal, field behind it) pairs; the last field may be None.

    Raises ConfigError for unbalanced braces, an empty or numbered placeholder, or a format specification.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"template {template!r}: {error}; write {{field}}, or {{{{ for a brace") from error
    for _, name, spec, conversion in parsed:
        if name is not None and (not name or name.isdigit() or spec or conversion):
            raise ConfigError(f"template {template!r}: a placeholder is a field's name alone, {{domain}} say")
    return [(literal, name) for literal, name, _, _ in parsed]


@cache
def template_fields(template: str) -> tuple[str, ...]:
    """The fields a template names, each once, in order; raises ConfigError if it names none or is malformed."""
    names = [name for _, name in template_parts(template) if name is not None]
    if not names:
        raise ConfigError(f"template {template!r} names no field: write one, {{domain}} say")
    return tuple(dict.fromkeys(names))


@cache
def _lines(template: str) -> tuple[tuple[tuple[str, str | None], ...], ...]:
    return tuple(tuple(template_parts(line)) for line in template.split("\n"))


def fill_template(template: str, values: Mapping[str, str | None]) -> str | None:
    """The text a template makes of one document's fields; None if all of them are missing or blank.

    A line whose fields are all missing or blank is left out, so that ``{instruction}\\n{input}`` of a document
    without input is its instruction alone. Raises ConfigError for a malformed template.

    >>> fill_template("{instruction}\\n{input}", {"instruction": "Add 2 and 2.", "input": ""})
    'Add 2 and 2.'
    """
    lines, found = [], False
    for parts in _lines(template):
        names = [name for _, name in parts if name is not None]
        present = [name for name in names if (values.get(name) or "").strip()]
        if names and not present:
            continue
        found = found or bool(present)
        lines.append("".join(literal + ((values.get(name) or "") if name else "") for literal, name in parts))
    return "\n".join(lines) if found else None


def fill_templates(template: str, values: pl.DataFrame) -> list[str | None]:
    """``fill_template`` of each row of ``values``: a string column for each of the template's fields."""
    names = template_fields(template)
    columns = [values[name].to_list() for name in names]
    return [fill_template(template, dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def instruction_templates(fields: Collection[str]) -> tuple[str, str]:
    """Templates of prompt and response, by the names that instruction data commonly use.

    ``fields`` are the metadata keys of a corpus. What is named there neither as a prompt (instruction, prompt,
    question …) nor as a response (output, response, completion, answer …) is the document's text. Without both
    a document is all response: the prompt template is empty.
    """
    prompt = next((name for name in _PROMPT_FIELDS if name in fields), None)
    response = next((name for name in _RESPONSE_FIELDS if name in fields), None)
    if prompt is None and response is None:
        return "", "{text}"
    context = next((name for name in _CONTEXT_FIELDS if name in fields), None)
    asked = f"{{{prompt or 'text'}}}"
    return f"{asked}\n{{{context}}}" if context else asked, f"{{{response or 'text'}}}"
