"""mixwright curates and selects training data for language models.

Importing the package loads none of the heavy libraries (torch, faiss, Ray, FastAPI): each of them is
imported inside the function that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixwright.client import Client

__version__ = "0.1.0"
__all__ = ["Client", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from mixwright.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
