"""What the commands share: options, settings, running a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError

from mixwright.cli.output import progress_on_stderr
from mixwright.config import Settings, load_settings
from mixwright.errors import ConfigError
from mixwright.logs import configure_logging
from mixwright.progress import Progress
from mixwright.remote.store import store_of
from mixwright.schemas.manifests import (
    AttributesManifest,
    CorpusManifest,
    DatastoreManifest,
    EmbeddingsManifest,
    EvaluationManifest,
    IndexManifest,
    Manifest,
    MixtureManifest,
    ResultsManifest,
)
from mixwright.store import Store

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of artifacts and catalog; default $MIXWRIGHT_HOME or ./mixwright-home."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

if TYPE_CHECKING:
    from mixwright.jobs.board import Board
    from mixwright.jobs.database import Database
    from mixwright.service.catalog import Catalog

_ModelT = TypeVar("_ModelT", bound=BaseModel)
_AnyT = TypeVar("_AnyT")
_RequestT = TypeVar("_RequestT")
_ManifestT = TypeVar(
    "_ManifestT",
    CorpusManifest,
    DatastoreManifest,
    AttributesManifest,
    EmbeddingsManifest,
    IndexManifest,
    MixtureManifest,
    ResultsManifest,
    EvaluationManifest,
)


def open_store(home: Path | None) -> tuple[Settings, Store]:
    """The settings, and the store that they name."""
    settings = load_settings(home)
    configure_logging(settings)
    return settings, store_of(settings)


def build(model: type[_ModelT], **fields: Any) -> _ModelT:
    """A request from flags; raises ConfigError naming the flag that is wrong."""
    return validate(TypeAdapter(model), fields)


def validate(adapter: TypeAdapter[_AnyT], value: dict[str, Any]) -> _AnyT:
    """Validate flags; raises ConfigError naming the first that is wrong."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        # Members of unions stand in it too, as "constrained-int" say: no field is named like that.
        names = [part for part in first["loc"] if isinstance(part, str) and part.isidentifier()]
        flag = "--" + names[-1].replace("_", "-") if names else "the flags"
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{flag}: {message}") from error


def validate_document(adapter: TypeAdapter[_AnyT], value: Any) -> _AnyT:
    """Validate what was read from JSON; raises ConfigError naming the field that is wrong."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {message}" if where else message) from error


def shares_of(text: str, flag: str) -> dict[str, float]:
    """``wiki=0.7,web=0.3`` as shares by source; raises ConfigError naming the flag."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        source, separator, share = (each.strip() for each in part.rpartition("="))
        try:
            value = float(share)
        except ValueError:
            separator, value = "", 0.0
        if not separator or not source or source in shares:
            raise ConfigError(f"{flag}: {text!r} is not a mixture: write shares such as wiki=0.7,web=0.3")
        shares[source] = value
    return shares


_ValueT = TypeVar("_ValueT")


def unescaped(value: _ValueT) -> _ValueT | str:
    """A shell passes ``\\n`` as two characters; in a template it means a line break."""
    return value.replace("\\n", "\n").replace("\\t", "\t") if isinstance(value, str) else value


def run(
    settings: Settings,
    store: Store,
    job: Callable[[Store, _RequestT, Progress], _ManifestT],
    request: _RequestT,
    *,
    json: bool = False,
) -> _ManifestT:
    """Run a job with progress on standard error, and enter what it published into the catalog."""
    with progress_on_stderr(for_a_program=json) as progress:
        manifest = job(store, request, progress)
    with open_catalog(settings) as catalog:
        catalog.record(manifest)
    return manifest


def summary(manifest: Manifest, *fields: str) -> dict[str, Any]:
    """What ``--json`` prints of a new artifact: ref, fingerprint and these fields of its manifest."""
    values = manifest.model_dump(mode="json", include=set(fields))
    return {"ref": manifest.ref, "fingerprint": manifest.fingerprint} | {field: values[field] for field in fields}


@contextmanager
def open_catalog(settings: Settings) -> Iterator[Catalog]:
    """The catalog's database, at its newest schema."""
    from mixwright.service.catalog import Catalog

    with open_database(settings) as database:
        yield Catalog(database, store_of(settings))


@contextmanager
def open_board(settings: Settings) -> Iterator[Board]:
    """The job board, at its newest schema."""
    from mixwright.jobs.board import Board

    with open_database(settings) as database:
        yield Board(database)


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """The database of catalog, board and keys, at its newest schema."""
    from mixwright.jobs.database import Database

    database = Database(settings.catalog_url)
    try:
        database.upgrade()
        yield database
    finally:
        database.close()
