"""Numbers of requests: what JSON calls a number, not the texts and truth values that Python takes for one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator


def _number(value: Any) -> Any:
    if isinstance(value, bool | str | bytes):
        raise ValueError("give a number")
    return value


WholeNumber = Annotated[int, BeforeValidator(_number)]
RealNumber = Annotated[float, BeforeValidator(_number)]
