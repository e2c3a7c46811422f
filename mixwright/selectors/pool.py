"""The pool that a selector chooses from: corpora with their fields, attributes and vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from mixwright.attributes import Attributes
from mixwright.corpora import Corpus, field_expression, id_bits, metadata_fields, template_texts
from mixwright.errors import AlignmentError, ConfigError, DataError
from mixwright.fingerprint import fingerprint
from mixwright.indexes.embeddings import Embeddings
from mixwright.indexes.protocols import FloatArray as VectorArray
from mixwright.indexes.vectors import OtherVectors, Vectors, blocks
from mixwright.results import Results
from mixwright.schemas.manifests import ArtifactInput
from mixwright.store import Store
from mixwright.templates import instruction_templates

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]
FloatArray = npt.NDArray[np.float64]


Part = Literal["instruction", "response", "both"]
_KEPT = "__kept"


@dataclass(frozen=True)
class Requirements:
    """What a selector reads besides the corpora themselves.

    ``score`` is an attribute that the documents must have, ``attributes`` are read where they have them.
    ``encoder`` (None: no vectors) embeds what ``template`` makes of a document; ``sample`` documents of each
    corpus are enough (None: all); ``examples`` is a corpus that shows what is wanted; ``results`` are small
    trainings.
    """

    score: str | None = None
    attributes: tuple[str, ...] = ()
    encoder: str | None = None
    part: Part = "both"
    prompt: str | None = None
    response: str | None = None
    examples: str | None = None
    sample: int | None = None
    results: str | None = None

    def templates(self, fields: Sequence[str]) -> tuple[str, str]:
        """Templates of prompt and response, as given or by the names of a corpus's metadata ``fields``."""
        prompt, response = instruction_templates(fields)
        return self.prompt if self.prompt is not None else prompt, self.response or response

    def template(self, fields: Sequence[str], part: Part | None = None) -> str:
        """What is read of the documents of a corpus with these metadata fields; default: what is embedded.

        A document without a prompt is its own instruction.
        """
        prompt, response = self.templates(fields)
        part = part or self.part
        if part == "instruction":
            return prompt or response
        return response if part == "response" or not prompt else f"{prompt}\n\n{response}"


@dataclass(frozen=True)
class Source:
    """One corpus of a pool.

    ``frame`` holds its document rows in row order, lazily, and ``reader`` gives some of them fast; ``columns``
    are frames, in the same order, of attributes by name; ``vectors`` (n, d) embed its documents. Where only a
    ``sample`` of it is embedded, that is a source of its own. Of a corpus of which documents are left out, all
    of this is of those that stay, and ``stays`` (n,) are their rows in the corpus. ``attribute_names`` are
    those of all attributes that there are, read or not.
    """

    name: str
    ref: str
    fingerprint: str
    tokenizer: str
    frame: pl.LazyFrame
    reader: Callable[[Int64Array], pa.Table]
    columns: Mapping[str, pl.LazyFrame] = field(default_factory=dict)
    vectors: Vectors | None = None
    metadata_fields: Sequence[str] = ()
    made_from: tuple[ArtifactInput, ...] = ()
    sample: Source | None = None
    stays: Int64Array | None = None
    attribute_names: Sequence[str] = ()

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

    def attribute(self, name: str) -> FloatArray | None:
        """A numeric attribute of each document (n,), NaN where it has none; None if no document has one.

        Attributes that a job made come before columns and metadata of the input with the same name. Raises
        DataError for a value that is no number.
        """
        if name in self.columns:
            values = self.columns[name].select(pl.col(name).cast(pl.Float64)).collect().to_series()
            return values.fill_null(float("nan")).to_numpy()
        texts = self.fields([name]).to_series()
        numbers = texts.cast(pl.Float64, strict=False)
        if len(strange := texts.filter(texts.is_not_null() & numbers.is_null())):
            raise DataError(f"source {self.name}: its attribute {name} has the value {strange[0]!r}: give numbers")
        return None if numbers.null_count() == len(numbers) else numbers.fill_null(float("nan")).to_numpy()

    def texts(self, template: str, rows: Int64Array) -> list[str]:
        """What a template makes of the documents of the given row numbers (m,); "" where its fields are blank."""
        return template_texts(pl.LazyFrame(pl.from_arrow(self.reader(rows))), template)

    def corpus_rows(self, rows: Int64Array) -> Int64Array:
        """The rows (m,) in the corpus that rows (m,) of this source are."""
        return rows if self.stays is None else self.stays[rows]

    def only(self, kept: npt.NDArray[np.bool_]) -> Source:
        """This source without the documents that ``kept`` (n,) leaves out."""
        rows = np.flatnonzero(kept)
        sample = self.sample
        return replace(
            self,
            frame=_rows_of(self.frame, kept),
            reader=lambda local: self.reader(rows[local]),
            columns={name: _rows_of(frame, kept) for name, frame in self.columns.items()},
            vectors=None if self.vectors is None else OtherVectors(self.vectors, np.flatnonzero(~kept)),
            sample=None if sample is None else sample.only(np.isin(sample.ids, self.ids[rows])),
            stays=self.corpus_rows(rows),
        )


RowFunction = Callable[[VectorArray], tuple[npt.NDArray[Any], ...]]
"""Arrays (b, …) of a block of vectors (b, d), each row by itself."""

VectorMap = Callable[[Source, RowFunction], tuple[npt.NDArray[Any], ...]]
"""The arrays (n, …) that a function of rows makes of all vectors of a source: here, or on other machines."""


def map_here(source: Source, function: RowFunction) -> tuple[npt.NDArray[Any], ...]:
    """Apply a function of rows to the vectors of a source, block by block, in this process."""
    made = [function(block) for _, block in blocks(vectors_of(source))]
    return tuple(np.concatenate(column) for column in zip(*made, strict=True))


def vectors_of(source: Source) -> Vectors:
    """The vectors of a source; raises DataError with the command that makes them."""
    if source.vectors is None:
        raise DataError(f"source {source.name} has no embeddings: run  mixwright embed {source.ref}  first")
    return source.vectors


@dataclass(frozen=True)
class Pool:
    """Sources with different names whose tokens were counted by one tokenizer.

    ``examples`` and ``results``, where a selector asked for them, are no part of what is selected from. Raises
    DataError for an empty pool, an empty source or different tokenizers, ConfigError for a source twice,
    AlignmentError for vectors of different encoders.
    """

    sources: tuple[Source, ...]
    examples: Source | None = None
    map_vectors: VectorMap = map_here
    results: Results | None = None

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
        embedded = [each.sample or each for each in self._with_examples]
        dims = {each.vectors.dim: each.name for each in embedded if each.vectors is not None}
        if len(dims) > 1:
            found = ", ".join(f"{name} {dim}" for dim, name in dims.items())
            raise AlignmentError(f"vectors have different dimensions ({found}): embed all by one encoder")

    @classmethod
    def open(
        cls,
        store: Store,
        references: Sequence[str],
        requirements: Requirements = Requirements(),
        embeddings: Mapping[str, Embeddings] | None = None,
        map_vectors: VectorMap = map_here,
        samples: Mapping[str, str] | None = None,
    ) -> Pool:
        """The pool of these corpora; two versions of one corpus are told apart by their version.

        ``embeddings`` are those of the corpora, and of the examples, by the corpora's refs; ``samples`` name,
        likewise, the corpora that were drawn from them where only those are embedded.
        """
        corpora = [Corpus.open(store, reference) for reference in references]
        names = [corpus.manifest.name for corpus in corpora]
        unique = [
            name if names.count(name) == 1 else corpus.manifest.ref
            for name, corpus in zip(names, corpora, strict=True)
        ]
        vectors = embeddings or {}

        def open_source(name: str, corpus: Corpus) -> Source:
            source = _open_source(store, name, corpus, requirements, vectors.get(corpus.manifest.ref))
            drawn = (samples or {}).get(corpus.manifest.ref)
            return replace(source, sample=open_source(name, Corpus.open(store, drawn))) if drawn else source

        examples = Corpus.open(store, requirements.examples) if requirements.examples else None
        return cls(
            tuple(open_source(name, corpus) for name, corpus in zip(unique, corpora, strict=True)),
            open_source(examples.manifest.ref, examples) if examples else None,
            map_vectors,
            Results.open(store, requirements.results) if requirements.results else None,
        )

    @classmethod
    def from_tables(
        cls,
        tables: Mapping[str, pa.Table],
        tokenizer: str = "bytes",
        vectors: Mapping[str, Vectors] | None = None,
        examples: str | None = None,
    ) -> Pool:
        """A pool of tables in memory with the document columns, named by the mapping's keys.

        ``vectors`` embed the tables' rows, by the same names; ``examples`` is one of the names.
        """
        sources = {
            name: Source(
                name=name,
                ref=f"{name}@1",
                fingerprint=fingerprint("table", table["id"].to_pylist(), {}),
                tokenizer=tokenizer,
                frame=pl.LazyFrame(pl.from_arrow(table)),
                reader=_taker(table),
                vectors=(vectors or {}).get(name),
                metadata_fields=metadata_fields(table),
            )
            for name, table in tables.items()
        }
        shown = sources.pop(examples) if examples is not None else None
        return cls(tuple(sources.values()), shown)

    def refuse_unscored(self, score: str) -> None:
        """Raise DataError, with what to do, if no source has the attribute ``score``."""
        if all(source.attribute(score) is None for source in self.sources):
            raise DataError(
                f"no source has the attribute {score}: run  mixwright score {self.sources[0].ref} --original "
                "MODEL --pruned MODEL  first, or name another by score_attribute"
            )

    @property
    def tokenizer(self) -> str:
        """The tokenizer that counted the tokens."""
        return self.sources[0].tokenizer

    @property
    def inputs(self) -> list[ArtifactInput]:
        """The sources, and the attributes and embeddings read with them, as a manifest names its inputs."""
        read = [
            made
            for source in self._with_examples
            for each in (source, source.sample)
            if each is not None
            for made in (
                ArtifactInput(kind="corpus", ref=each.ref, fingerprint=each.fingerprint),
                *each.made_from,
            )
        ]
        if self.results is not None:
            manifest = self.results.manifest
            read.append(ArtifactInput(kind="results", ref=manifest.ref, fingerprint=manifest.fingerprint))
        return list({(each.kind, each.ref): each for each in read}.values())

    @property
    def _with_examples(self) -> tuple[Source, ...]:
        return (*self.sources, self.examples) if self.examples else self.sources


def _open_source(
    store: Store, name: str, corpus: Corpus, requirements: Requirements, embeddings: Embeddings | None
) -> Source:
    if embeddings is not None:
        embeddings.check_aligned(corpus)
    wanted = (*requirements.attributes, *([requirements.score] if requirements.score else []))
    found = Attributes.newest(store, corpus, wanted)
    read = [each.manifest for each in (*found.values(), embeddings) if each is not None]
    return Source(
        name=name,
        ref=corpus.manifest.ref,
        fingerprint=corpus.manifest.fingerprint,
        tokenizer=corpus.manifest.tokenizer,
        frame=corpus.scan(),
        reader=corpus.take,
        columns={column: attributes.scan() for column, attributes in found.items()},
        vectors=embeddings,
        metadata_fields=corpus.metadata_fields,
        made_from=tuple(
            ArtifactInput(kind=each.kind, ref=each.ref, fingerprint=each.fingerprint)
            for each in {each.ref: each for each in read}.values()
        ),
        attribute_names=Attributes.names(store, corpus) if wanted else (),
    )


def _rows_of(frame: pl.LazyFrame, kept: npt.NDArray[np.bool_]) -> pl.LazyFrame:
    """The rows of a frame that a mask says, in their order."""
    mask = pl.LazyFrame({_KEPT: kept})
    return pl.concat([frame, mask], how="horizontal").filter(pl.col(_KEPT)).drop(_KEPT)


def _taker(table: pa.Table) -> Callable[[Int64Array], pa.Table]:
    return lambda rows: table.take(pa.array(rows))
