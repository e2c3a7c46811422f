"""Settings of the process: environment variables ``MIXWRIGHT_*``, read once at the edge and passed in.

They say where things are and how much to use; they never enter a fingerprint. docs/configuration.md lists
every one of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from mixwright.errors import ConfigError


class Settings(BaseSettings):
    """Settings of one process."""

    model_config = SettingsConfigDict(env_prefix="MIXWRIGHT_", extra="ignore", frozen=True)

    home: Path = Field(default=Path("mixwright-home"), description="Folder of artifacts, catalog and logs.")
    database_url: SecretStr | None = Field(
        default=None, description="SQLAlchemy URL of the catalog; default: SQLite inside the home folder."
    )
    log_level: Literal["CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"] = Field(
        default="WARNING", description="Level of the log on standard error."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Form of the log: lines for people, or one JSON object a line."
    )
    shutdown_seconds: int = Field(
        default=30, ge=0, description="What open answers get to end by themselves when the service stops."
    )
    drain_seconds: int = Field(
        default=0,
        ge=0,
        description="How long a service that was told to stop, and is not ready, still takes connections.",
    )
    store_url: str | None = Field(
        default=None, description="Where artifacts are published: s3://bucket/prefix; default: the home folder."
    )
    cache_bytes: int | None = Field(
        default=None, ge=0, description="What artifacts fetched from the store's URL may take in the home folder."
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
    search_timeout_seconds: float = Field(
        default=30.0, gt=0, description="How long a search waits for the Ray actors of a datastore's shards."
    )
    export_max_tokens: int = Field(
        default=20_000_000, ge=0, description="Tokens of the largest mixture that the service exports."
    )
    export_cache_bytes: int = Field(
        default=10 << 30, ge=0, description="Exports that the service keeps; the ones read longest ago go first."
    )
    allow_train_commands: bool = Field(
        default=False, description="Whether the service runs the programs that a pilot job names as train_command."
    )
    auth: Literal["auto", "on"] = Field(
        default="auto",
        description="Whether requests need an API key; auto: unless the service listens on loopback.",
    )
    allowed_hosts: str | None = Field(
        default=None,
        description="Names that a Host header may have besides loopback's, where no key is asked for.",
    )
    allowed_paths: str | None = Field(
        default=None,
        description="Folders below which requests over REST may name files; default: the one that the service was "
        "started in, and inputs and models in the home folder.",
    )
    allowed_urls: str | None = Field(
        default=None, description="Beginnings of URLs that requests over REST may read; default: none."
    )
    allowed_models: str | None = Field(
        default=None, description="Hub ids of models that requests over REST may name; org/* is all of org's."
    )
    max_body_bytes: int = Field(default=16 << 20, ge=1024, description="Longest body of a request.")
    body_timeout_seconds: float = Field(default=60.0, gt=0, description="How long a body may take to arrive.")
    request_timeout_seconds: float = Field(
        default=300.0, gt=0, description="How long a request may take until its answer begins."
    )
    rate_limit: str | None = Field(
        default=None,
        description="Requests of a key, or without one of an address; default: 6000/minute where keys are asked "
        "for.",
    )
    max_concurrent_requests: int = Field(
        default=1000, ge=1, description="Requests of a key that are answered at a time, streams among them."
    )

    @property
    def catalog_url(self) -> str:
        """The SQLAlchemy URL of the catalog."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home.resolve() / 'catalog.sqlite'}"


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
