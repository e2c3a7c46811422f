"""Fields of a request as options of a command: declared once, in the model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, get_args

import typer
from pydantic import BaseModel


def model_flags(model: type[BaseModel], without: Collection[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Annotation and default, by name, of the model's fields that are single values or lists of them."""
    flags = {}
    for name, field in model.model_fields.items():
        if name in without:
            continue
        help_text = (field.description or "").removeprefix("resource: ")
        option = typer.Option(help=help_text[:1].upper() + help_text[1:])
        default = ... if field.is_required() else field.default
        flags[name] = (Annotated[_plain(field.annotation), option], default)
    return flags


def _plain(hint: Any) -> Any:
    """The type without the checks that the model makes itself."""
    arguments = get_args(hint)
    if type(None) in arguments:
        (inner,) = [each for each in arguments if each is not type(None)]
        return _plain(inner) | None
    if getattr(hint, "__metadata__", None):
        return _plain(hint.__origin__)
    return hint
