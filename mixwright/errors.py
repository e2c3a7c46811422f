"""Every error that mixwright raises on purpose, and its HTTP status.

::

    MixwrightError                500  the base: catch this to catch them all
    ├── ConfigError               422  a setting, flag or parameter is wrong
    ├── DataError                 422  the input data is wrong
    │   └── AlignmentError        422  two artifacts that must have the same rows do not
    ├── ShortfallError            409  the data cannot fill the budget
    ├── NotFoundError             404  no artifact or job of that name
    ├── ConflictError             409  the name is taken by something else, or somebody else is at work on it
    │   └── BusyError             409  somebody else is building the same artifact: it will be there soon
    ├── AuthError                 401  no valid API key (403: the key lacks the scope)
    ├── ForbiddenError            403  a request names a file, URL or model that the service may not read
    ├── UnavailableError          503  a part that has to answer does not, for now
    ├── ConvergenceError          500  an iterative method did not converge
    └── MissingExtraError         501  an optional dependency is not installed

Every message ends with what to change. ``problem()`` is the ``application/problem+json`` body (RFC 9457)
that the service returns and that ``--json`` commands print on standard error.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar


class MixwrightError(Exception):
    """Base of the tree. ``str(error)`` is the one line a user reads."""

    status: int = 500
    title: ClassVar[str] = "mixwright error"

    @classmethod
    def urn(cls) -> str:
        """The ``type`` of the problem documents of this kind of error."""
        slug = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__.removesuffix("Error")).lower()
        return f"urn:mixwright:error:{slug}"

    def extras(self) -> dict[str, Any]:
        """Machine-readable members of the problem document beside type, title, status and detail."""
        return {}

    def problem(self) -> dict[str, Any]:
        """The error as an RFC 9457 problem document."""
        return {
            "type": self.urn(),
            "title": self.title,
            "status": self.status,
            "detail": str(self),
            **self.extras(),
        }


class ConfigError(MixwrightError):
    """A setting, command-line flag or parameter is wrong."""

    status = 422
    title = "Invalid configuration"


class DataError(MixwrightError):
    """The input data is wrong: unreadable, empty, or of the wrong form."""

    status = 422
    title = "Invalid data"


class AlignmentError(DataError):
    """Two artifacts that must describe the same rows do not (other length, other corpus fingerprint)."""

    title = "Artifacts do not align"


class ShortfallError(MixwrightError):
    """The pool cannot fill the budget.

    ``source`` is the source that binds; ``largest_budget`` is the largest budget that works, in the unit of
    the request (``None`` where no budget works, for instance when one is too small for every document).
    """

    status = 409
    title = "Budget cannot be met"

    def __init__(self, message: str, *, source: str, largest_budget: int | None) -> None:
        super().__init__(message)
        self.source = source
        self.largest_budget = largest_budget

    def extras(self) -> dict[str, Any]:
        return {"source": self.source, "largest_budget": self.largest_budget}


class NotFoundError(MixwrightError):
    """No artifact, job or file of that name."""

    status = 404
    title = "Not found"


class ConflictError(MixwrightError):
    """The same name@version exists with another fingerprint, or another process holds the work."""

    status = 409
    title = "Conflict"


class BusyError(ConflictError):
    """Somebody else is building the same artifact: wait for it, and ask again."""


class AuthError(MixwrightError):
    """No valid API key (401), or a key without the needed scope (403)."""

    status = 401
    title = "Not authorized"

    def __init__(self, message: str, *, status: int = 401) -> None:
        super().__init__(message)
        self.status = status


class ForbiddenError(MixwrightError):
    """A request from outside names a file, a URL or a model that the service's settings do not let it read."""

    status = 403
    title = "Not allowed"


class UnavailableError(MixwrightError):
    """A part of the system that has to answer does not, for now: a shard that is being started again, say."""

    status = 503
    title = "Not available"


class ConvergenceError(MixwrightError):
    """An iterative method stopped too early; the message has iterations, residual and what to raise."""

    title = "No convergence"


class JobError(MixwrightError):
    """The process of a job died without saying why."""

    title = "Job died"


class MissingExtraError(MixwrightError):
    """An optional dependency is missing; the message has the pip command that installs it."""

    status = 501
    title = "Optional dependency missing"

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed: run  pip install 'mixwright[{extra}]'")
        self.library = library
        self.extra = extra

    def extras(self) -> dict[str, Any]:
        return {"library": self.library, "extra": self.extra}


def first_line(error: BaseException) -> str:
    """The first line of another library's message, for one of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
