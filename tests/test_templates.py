"""Templates: what they make of a document, and how prompt and response are found."""

from __future__ import annotations

import polars as pl
import pytest

from mixwright.errors import ConfigError
from mixwright.templates import fill_template, fill_templates, instruction_templates, template_fields


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("{a}", {"a": "x"}, "x"),
        ("{a}\n{b}", {"a": "x", "b": "y"}, "x\ny"),
        ("{a}\n{b}", {"a": "x", "b": " \n "}, "x"),
        ("{a}\n{b}", {"a": None, "b": "y"}, "y"),
        ("{a}\n\nAnswer: {b}", {"a": "x"}, "x\n"),
        ("# Title\n{a} and {b}", {"a": "x"}, "# Title\nx and "),
        ("{{{a}}}", {"a": "two\nlines"}, "{two\nlines}"),
        ("# Title\n{a}", {"a": ""}, None),
        ("{a}", {}, None),
    ],
)
def test_a_line_without_a_value_is_left_out(
    template: str, values: dict[str, str | None], expected: str | None
) -> None:
    assert fill_template(template, values) == expected


def test_a_frame_is_filled_row_by_row() -> None:
    frame = pl.DataFrame({"b": ["1", None, ""], "a": ["x", "y", None], "c": ["-"] * 3})
    assert fill_templates("{a}\n{b}", frame) == ["x\n1", "y", None]


def test_fields_come_once_in_order() -> None:
    assert template_fields("{b} {a} {b}") == ("b", "a")


@pytest.mark.parametrize("template", ["{domain", "no field", "{}", "{0}", "{a!r}", "{a:>9}", "{a.b"])
def test_a_malformed_template_is_an_error(template: str) -> None:
    with pytest.raises(ConfigError, match="template"):
        template_fields(template)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["ability", "input", "instruction", "output"], ("{instruction}\n{input}", "{output}")),
        (["completion", "prompt"], ("{prompt}", "{completion}")),
        (["answer", "context", "question"], ("{question}\n{context}", "{answer}")),
        (["output"], ("{text}", "{output}")),
        (["input", "output"], ("{text}\n{input}", "{output}")),
        (["instruction", "topic"], ("{instruction}", "{text}")),
        (["topic"], ("", "{text}")),
    ],
)
def test_prompt_and_response_are_found(fields: list[str], expected: tuple[str, str]) -> None:
    assert instruction_templates(fields) == expected
