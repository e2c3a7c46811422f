"""A published mixture as rows: position → row is a pure function of the manifest and its seed.

Any position, rank or restart costs the same and needs no saved state. What stands at a position (``Places``) is
arithmetic, and so are the bytes of its text: rows are read in batches that are bounded in rows and in bytes, so
that documents of many megabytes do not add up.

In every prefix of a stage the rows of a component are within (1 + (k - 2) w) / 2 of their share, see
``mixwright.selectors.ordering``. What that means for its tokens is in docs/mixtures.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from mixwright.corpora import Corpus, id_bits
from mixwright.errors import AlignmentError, ConfigError, DataError
from mixwright.schemas.documents import DOCUMENT_COLUMNS
from mixwright.schemas.manifests import MixtureManifest
from mixwright.schemas.mixtures import MixtureComponent, Stage
from mixwright.selectors.mixture import Selection
from mixwright.selectors.ordering import Share, locate, position_of
from mixwright.selectors.tags import DERIVED_FIELDS, field_values, tag_rows, tokenize_tagged
from mixwright.store import Store
from mixwright.templates import template_fields
from mixwright.tokenization import load_tokenizer

Int64Array = npt.NDArray[np.int64]

ROW_SCHEMA = pa.schema(
    [
        pa.field("position", pa.int64(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("component", pa.string(), nullable=False),
        pa.field("epoch", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("domain", pa.string()),
        pa.field("url", pa.string()),
        pa.field("tag_text", pa.large_string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("n_tokens", pa.int64(), nullable=False),
    ]
)
TOKEN_FIELDS = (
    pa.field("input_ids", pa.large_list(pa.int32()), nullable=False),
    pa.field("loss_mask", pa.large_list(pa.bool_()), nullable=False),
)

BATCH_BYTES = 1 << 20
"""Bytes of text that a batch of more than one row holds at most."""
_MAX_SPAN = 1 << 20
"""Rows that are counted at once: bounds the memory of a sum."""


@dataclass(frozen=True)
class Tokenization:
    """How rows are tokenized: adds ``input_ids`` and ``loss_mask`` (see ``tokenize_tagged``).

    Raises ConfigError for a token id that is no 32-bit number and for a window without a token.
    """

    tokenizer: str
    bos: int | None = None
    eos: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("bos", 0), ("eos", 0), ("window", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value < 2**31:
                raise ConfigError(f"{name} {value} is out of range: give a number from {least} to 2147483647")

    @classmethod
    def of(
        cls, tokenizer: str | None, bos: int | None, eos: int | None, window: int | None
    ) -> Tokenization | None:
        """None without a tokenizer; raises ConfigError for the other settings without one."""
        if tokenizer is not None:
            return cls(tokenizer, bos, eos, window)
        for name, value in (("bos", bos), ("eos", eos), ("window", window)):
            if value is not None:
                raise ConfigError(f"{name} is about tokens: name a tokenizer too, or leave {name} out")
        return None


@dataclass(frozen=True)
class Places:
    """What stands at some positions, before any text is read; all arrays (m,).

    ``row`` is the number of a document in the corpus of ``component``, ``n_bytes`` what it takes as text.
    """

    position: Int64Array
    stage: Int64Array
    component: Int64Array
    row: Int64Array
    epoch: Int64Array
    n_bytes: Int64Array

    def __len__(self) -> int:
        return len(self.position)

    def __getitem__(self, wanted: slice | Int64Array) -> Places:
        return Places(*(getattr(self, each.name)[wanted] for each in fields(self)))


def pieces(n_bytes: Int64Array, limit: int) -> Iterator[slice]:
    """Runs of rows (m,) of at most ``limit`` bytes together, or of one row."""
    begin, total = 0, 0
    for i, size in enumerate(n_bytes.tolist()):
        if i > begin and total + size > limit:
            yield slice(begin, i)
            begin, total = i, 0
        total += size
    if len(n_bytes):
        yield slice(begin, len(n_bytes))


class MixtureStream:
    """The rows of one mixture, in order."""

    def __init__(self, manifest: MixtureManifest, directory: Path, corpora: list[Corpus]) -> None:
        self.manifest = manifest
        self._corpora = corpora
        self._selections = [_read_selection(component, directory) for component in manifest.components]
        plan = manifest.tags
        self._kept = pl.read_parquet(directory / plan.kept_values_file) if plan and plan.kept_values_file else None
        self._stage_starts = np.cumsum([0, *(stage.n_rows for stage in manifest.stages)])
        names = {*DOCUMENT_COLUMNS, *DERIVED_FIELDS}
        from_metadata = plan is not None and not names.issuperset(template_fields(plan.template))
        self._columns = [name for name in DOCUMENT_COLUMNS if name != "metadata" or from_metadata]
        self._weighed = [name for name in ("text", "metadata") if name in self._columns]

    @classmethod
    def open(cls, store: Store, reference: str) -> MixtureStream:
        """Open a mixture by reference.

        Raises NotFoundError, and AlignmentError if a corpus is not the one the mixture was made from.
        """
        manifest = store.manifest(reference, "mixture")
        if not isinstance(manifest, MixtureManifest):
            raise DataError(f"{reference} is not a mixture: name a mixture")
        corpora = [Corpus.open(store, component.source) for component in manifest.components]
        for component, corpus in zip(manifest.components, corpora, strict=True):
            if corpus.manifest.fingerprint != component.fingerprint:
                raise AlignmentError(
                    f"corpus {component.source} is not the one that mixture {manifest.ref} was made from: "
                    "restore it or select again"
                )
        return cls(manifest, store.directory(manifest), corpora)

    def __len__(self) -> int:
        return self.manifest.n_rows

    def read(
        self,
        start: int = 0,
        count: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        tokenization: Tokenization | None = None,
        *,
        block_rows: int = 1,
        offset: int = 0,
        batch_rows: int = 1024,
        batch_bytes: int = BATCH_BYTES,
        first_rows: int | None = None,
    ) -> Iterator[pa.Table]:
        """Tables of rows (ROW_SCHEMA, and TOKEN_FIELDS if tokenized), in order.

        Rank r of W reads positions r, r + W, r + 2W, …, or every W-th block of ``block_rows`` from ``offset`` on
        (``Share``); ``start`` and ``count`` count that rank's own rows, and a stream ends after its last row.
        A table has at most ``batch_rows`` rows, and ``batch_bytes`` of text or one row; ``first_rows`` makes for a
        quick first table, from which they double. The arguments are checked at once: raises ConfigError,
        NotFoundError.
        """
        if start < 0 or (count is not None and count < 0):
            raise ConfigError(f"start {start} and count {count} must not be negative: give 0 or more")
        share = Share(rank, world_size, block_rows, offset)
        if tokenization is not None:
            # An unknown tokenizer or a missing window is an error now and not after the first bytes.
            tokenize_tagged(
                self.manifest.tags, [], [], load_tokenizer(tokenization.tokenizer), window=tokenization.window
            )
        own_rows = share.n_rows(len(self))
        stop = own_rows if count is None else min(start + count, own_rows)
        steps = _steps(start, stop, min(first_rows or batch_rows, batch_rows), batch_rows)
        return self._tables((self._places(share.positions(*each)) for each in steps), tokenization, batch_bytes)

    def component_rows(
        self, stage: int, component: int, tokenization: Tokenization | None = None, batch_rows: int = 1024
    ) -> Iterator[pa.Table]:
        """Tables of the rows that a stage serves of a component, in order, with their positions in the mixture."""
        served = self.manifest.stages[stage]
        counts, first = np.asarray(served.counts), int(self._stage_starts[stage])
        for begin in range(0, served.counts[component], batch_rows):
            rows = np.arange(begin, min(begin + batch_rows, served.counts[component]))
            positions = first + position_of(counts, component, rows)
            places = self._places_of(
                positions,
                np.full_like(rows, stage),
                np.full_like(rows, component),
                rows + served.starts[component],
            )
            yield from self._tables(iter([places]), tokenization, BATCH_BYTES)

    def component_tokens(self, stage: int, component: int) -> int:
        """Tokens of the rows that one stage serves of one component: text only, repeats counted."""
        served, manifest = self.manifest.stages[stage], self.manifest
        if len(manifest.stages) == 1:
            return manifest.components[component].n_tokens
        lengths = self._corpora[component].scan().select("n_tokens").collect().to_series().to_numpy()
        total = 0
        for begin in range(0, served.counts[component], _MAX_SPAN):
            ordinals = np.arange(begin, min(begin + _MAX_SPAN, served.counts[component]))
            rows, _ = self._selections[component].served(
                ordinals + served.starts[component], manifest.seed, component
            )
            total += int(lengths[rows].sum())
        return total

    def _places(self, positions: Int64Array) -> Places:
        """What stands at increasing positions (m,)."""
        parts = []
        bounds = np.searchsorted(positions, self._stage_starts)
        for number, stage in enumerate(self.manifest.stages):
            here = positions[bounds[number] : bounds[number + 1]] - self._stage_starts[number]
            component, ordinal = locate(np.asarray(stage.counts), here)
            parts.append((np.full_like(here, number), component, ordinal + np.asarray(stage.starts)[component]))
        return self._places_of(positions, *(np.concatenate(each) for each in zip(*parts, strict=True)))

    def _places_of(
        self, positions: Int64Array, stage: Int64Array, component: Int64Array, ordinal: Int64Array
    ) -> Places:
        """The documents of the ordinal-th rows that components serve, all (m,)."""
        row, epoch, n_bytes = (np.empty_like(ordinal) for _ in range(3))
        for number in np.unique(component).tolist():
            here = np.flatnonzero(component == number)
            row[here], epoch[here] = self._selections[number].served(ordinal[here], self.manifest.seed, number)
            n_bytes[here] = self._corpora[number].text_bytes(row[here], self._weighed)
        return Places(positions, stage, component, row, epoch, n_bytes)

    def _tables(
        self, batches: Iterator[Places], tokenization: Tokenization | None, batch_bytes: int
    ) -> Iterator[pa.Table]:
        for places in batches:
            for piece in pieces(places.n_bytes, batch_bytes):
                table = self._table(places[piece])
                yield table if tokenization is None else self._tokenized(table, tokenization)

    def _table(self, places: Places) -> pa.Table:
        """The rows at these places (m,), in their order."""
        parts, order = [], []
        group = places.stage * len(self._corpora) + places.component
        for number in np.unique(group):
            here = np.flatnonzero(group == number)
            parts.append(self._component_table(places[here]))
            order.append(here)
        if len(parts) == 1:
            return parts[0]
        return pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(order))))

    def _component_table(self, places: Places) -> pa.Table:
        """The rows at places of one component in one stage."""
        number, stage = int(places.component[0]), self.manifest.stages[int(places.stage[0])]
        documents = self._corpora[number].take(places.row, self._columns)
        n = len(places)
        columns = {
            "position": pa.array(places.position),
            "stage": pa.repeat(stage.name, n),
            "component": pa.repeat(self.manifest.components[number].name, n),
            "epoch": pa.array(places.epoch),
            "tag_text": self._tags(documents, places.epoch, stage),
        }
        return pa.table(
            {name: columns[name] if name in columns else documents[name] for name in ROW_SCHEMA.names},
            schema=ROW_SCHEMA,
        )

    def _tags(self, documents: pa.Table, epochs: Int64Array, stage: Stage) -> pa.Array:
        plan = self.manifest.tags
        if plan is None or not stage.tagged:
            return pa.repeat(pa.scalar("", pa.large_string()), documents.num_rows)
        frame = pl.DataFrame(pl.from_arrow(documents)).lazy()
        ids = frame.select(id_bits()).collect().to_series().to_numpy()
        values = field_values(frame, template_fields(plan.template))
        return (
            tag_rows(plan, values, self._kept, ids, epochs, self.manifest.seed).to_arrow().cast(pa.large_string())
        )

    def _tokenized(self, table: pa.Table, tokenization: Tokenization) -> pa.Table:
        ids, masks = tokenize_tagged(
            self.manifest.tags,
            table["tag_text"].to_pylist(),
            table["text"].to_pylist(),
            load_tokenizer(tokenization.tokenizer),
            bos=tokenization.bos,
            eos=tokenization.eos,
            window=tokenization.window,
        )
        for field, values in zip(TOKEN_FIELDS, (ids, masks), strict=True):
            table = table.append_column(field, pa.array(values, type=field.type))
        return table


def _steps(start: int, stop: int, first: int, most: int) -> Iterator[tuple[int, int]]:
    """``start … stop`` in steps that double from ``first`` to ``most``."""
    size = max(1, first)
    while start < stop:
        yield start, min(start + size, stop)
        start, size = start + size, max(1, min(2 * size, most))


def to_ndjson(table: pa.Table) -> bytes:
    """Rows as JSON lines in UTF-8, each ended by a line break."""
    return b"".join(msgspec.json.encode(row) + b"\n" for row in table.to_pylist())


def _read_selection(component: MixtureComponent, directory: Path) -> Selection:
    def rows(name: str | None) -> Int64Array | None:
        return np.load(directory / name, mmap_mode="r") if name else None

    remainder = rows(component.remainder_file)
    return Selection(
        n_selected=component.n_selected,
        passes=component.passes,
        rows=rows(component.rows_file),
        remainder=np.empty(0, dtype=np.int64) if remainder is None else remainder,
    )
