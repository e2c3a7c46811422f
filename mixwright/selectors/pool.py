"""The pool that a selector chooses from: corpora with their ids, token counts and fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from mixwright.corpora import Corpus, field_expression, id_bits
from mixwright.errors import ConfigError, DataError
from mixwright.fingerprint import fingerprint
from mixwright.schemas.manifests import ArtifactInput
from mixwright.store import Store

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Source:
    """One corpus of a pool. ``frame`` holds its document rows in row order, lazily."""

    name: str
    ref: str
    fingerprint: str
    tokenizer: str
    frame: pl.LazyFrame

    @cached_property
    def n_tokens(self) -> Int64Array:
        """Tokens of each document, shape (n,)."""
        return self.frame.select("n_tokens").collect().to_series().to_numpy()

    @cached_property
    def ids(self) -> UInt64Array:
        """The first 64 bits of each document's id, shape (n,): what selections are keyed by."""
        return self.frame.select(id_bits()).collect().to_series().to_numpy()

    def fields(self, names: Sequence[str]) -> pl.DataFrame:
        """Document fields (columns or metadata keys) as strings, one row a document, in row order."""
        return self.frame.select([field_expression(name).alias(name) for name in names]).collect()


@dataclass(frozen=True)
class Pool:
    """Sources with different names whose tokens were counted by one tokenizer.

    Raises DataError for an empty pool, an empty source or different tokenizers, ConfigError for a source twice.
    """

    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        if not self.sources:
            raise DataError("the pool is empty: give at least one source")
        names = [source.name for source in self.sources]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"source {sorted(repeated)[0]} is given twice: give each corpus once")
        for source in self.sources:
            if not len(source.n_tokens) or not source.n_tokens.sum():
                raise DataError(f"source {source.name} has no tokens: leave it out or ingest it again")
        tokenizers = {source.tokenizer: source.name for source in self.sources}
        if len(tokenizers) > 1:
            found = ", ".join(f"{name} by {tokenizer}" for tokenizer, name in tokenizers.items())
            raise DataError(
                f"tokens were counted by different tokenizers ({found}): ingest the sources with one tokenizer"
            )

    @classmethod
    def open(cls, store: Store, references: Sequence[str]) -> Pool:
        """The pool of these corpora; two versions of one corpus are told apart by their version."""
        corpora = [Corpus.open(store, reference) for reference in references]
        names = [corpus.manifest.name for corpus in corpora]
        return cls(
            tuple(
                Source(
                    name=name if names.count(name) == 1 else corpus.manifest.ref,
                    ref=corpus.manifest.ref,
                    fingerprint=corpus.manifest.fingerprint,
                    tokenizer=corpus.manifest.tokenizer,
                    frame=corpus.scan(),
                )
                for name, corpus in zip(names, corpora, strict=True)
            )
        )

    @classmethod
    def from_tables(cls, tables: Mapping[str, pa.Table], tokenizer: str = "bytes") -> Pool:
        """A pool of tables in memory with the document columns, named by the mapping's keys."""
        return cls(
            tuple(
                Source(
                    name=name,
                    ref=f"{name}@1",
                    fingerprint=fingerprint("table", table["id"].to_pylist(), {}),
                    tokenizer=tokenizer,
                    frame=pl.LazyFrame(pl.from_arrow(table)),
                )
                for name, table in tables.items()
            )
        )

    @property
    def tokenizer(self) -> str:
        """The tokenizer that counted the tokens."""
        return self.sources[0].tokenizer

    @property
    def inputs(self) -> list[ArtifactInput]:
        """The sources as a manifest names its inputs."""
        return [
            ArtifactInput(kind="corpus", ref=source.ref, fingerprint=source.fingerprint) for source in self.sources
        ]
