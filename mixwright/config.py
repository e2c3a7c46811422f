"""Settings of the process: environment variables ``MIXWRIGHT_*``, read once at the edge and passed in.

They say where things are and how much to use; they never enter a fingerprint. docs/configuration.md lists
every one of them.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from mixwright.errors import ConfigError


class Settings(BaseSettings):
    """Settings of one process."""

    model_config = SettingsConfigDict(env_prefix="MIXWRIGHT_", extra="ignore", frozen=True)

    home: Path = Field(default=Path("mixwright-home"), description="Folder of artifacts, catalog and logs.")
    database_url: str | None = Field(
        default=None, description="SQLAlchemy URL of the catalog; default: SQLite inside the home folder."
    )
    log_level: Literal["CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"] = Field(
        default="WARNING", description="Level of the log on standard error."
    )
    workers: int | None = Field(
        default=None, ge=1, description="Worker processes of a job; default: one per CPU core or GPU."
    )
    reranker: str | None = Field(
        default=None,
        description="Cross-encoder that orders hits of searches with rerank: a local folder or a hub id.",
    )
    search_on: Literal["process", "ray"] = Field(
        default="process",
        description="Where the service searches datastores: in its own process, or in a Ray actor for each shard.",
    )
    allow_train_commands: bool = Field(
        default=False, description="Whether the service runs the programs that a pilot job names as train_command."
    )

    @property
    def catalog_url(self) -> str:
        """The SQLAlchemy URL of the catalog."""
        return self.database_url or f"sqlite:///{self.home.resolve() / 'catalog.sqlite'}"


def load_settings(home: Path | None = None) -> Settings:
    """Read the environment once; ``home`` (a command-line flag) wins over ``MIXWRIGHT_HOME``.

    Raises ConfigError naming the variable that has a wrong value.
    """
    try:
        return Settings() if home is None else Settings(home=home)
    except ValidationError as error:
        first = error.errors()[0]
        name = "MIXWRIGHT_" + str(first["loc"][0]).upper()
        raise ConfigError(f"{name}: {first['msg']}; correct or unset the variable") from error


def configure_logging(settings: Settings) -> None:
    """Send the log of this process to standard error; for the edge of a program, once."""
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
