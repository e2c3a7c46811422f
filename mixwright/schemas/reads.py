"""Which fields of a request name something that is opened: files, models, tokenizers, programs.

Such a field's type carries a ``Reads``. A service confines what requests over REST may open by these marks, and a
field that is opened and not marked would escape it: tests/test_confinement.py looks at all fields of all requests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints

from pydantic import BaseModel

What = Literal["files", "encoder", "model", "tokenizer", "program"]


@dataclass(frozen=True)
class Reads:
    """Marks a text that names what is opened."""

    what: What


InputPath = Annotated[str, Reads("files")]
"""A file, folder or glob, or a URL of fsspec's."""
EncoderName = Annotated[str, Reads("encoder")]
"""A built-in encoder, a local folder, or a model of the hub."""
ModelName = Annotated[str, Reads("model")]
"""A language model: a local folder, a ``.gguf`` file, or a model of the hub."""
TokenizerName = Annotated[str, Reads("tokenizer")]
"""A built-in tokenizer, a local file or folder, or a model of the hub."""
Program = Annotated[str, Reads("program")]
"""A command line that is run."""


class Named(NamedTuple):
    """A text of a request that names what is opened: ``field`` is its place, as ``selector.encoder``."""

    field: str
    what: What
    text: str


def named_in(request: Any, field: str = "") -> Iterator[Named]:
    """Every text of a validated request, however deep, that names what is opened.

    ``request`` is a pydantic model or a dataclass; models inside it are looked at by what they are, so that a
    member of a union needs nothing of its own.
    """
    for name, hint in hints_of(type(request)).items():
        yield from _named(getattr(request, name, None), hint, f"{field}.{name}".removeprefix("."))


def _named(value: Any, hint: Any, field: str) -> Iterator[Named]:
    if isinstance(value, str):
        yield from (Named(field, mark.what, value) for mark in marks(hint))
    elif isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        yield from named_in(value, field)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _named(each, hint, f"{field}[{key}]")
    elif isinstance(value, list | tuple | set | frozenset):
        for number, each in enumerate(value):
            yield from _named(each, hint, f"{field}[{number}]")


def marks(hint: Any) -> list[Reads]:
    """The marks anywhere in a type: of a list's items, of a union's members."""
    return [mark for inner in get_args(hint) for mark in ([inner] if isinstance(inner, Reads) else marks(inner))]


def hints_of(cls: type[Any]) -> dict[str, Any]:
    """The types of a model's or a dataclass's fields, with what they are marked with."""
    if issubclass(cls, BaseModel):
        names = set(cls.model_fields)
    elif dataclasses.is_dataclass(cls):
        names = {each.name for each in dataclasses.fields(cls)}
    else:
        raise TypeError(f"{cls.__name__} is neither a model nor a dataclass")
    hints = get_type_hints(cls, include_extras=True)
    return {name: hint for name, hint in hints.items() if name in names}
