"""A published mixture as rows: position → row is a pure function of the manifest and its seed.

Any position, rank or restart costs the same and needs no saved state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from mixwright.corpora import Corpus, id_bits
from mixwright.errors import AlignmentError, ConfigError, DataError
from mixwright.schemas.manifests import MixtureManifest
from mixwright.schemas.mixtures import MixtureComponent, Stage
from mixwright.selectors.mixture import Selection
from mixwright.selectors.ordering import interleave
from mixwright.selectors.tags import field_values, tag_rows, tokenize_tagged
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

_MAX_SPAN = 1 << 20
"""Positions that one batch may span: bounds the memory of a rank among many."""


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


class MixtureStream:
    """The rows of one mixture, in order."""

    def __init__(self, manifest: MixtureManifest, directory: Path, corpora: list[Corpus]) -> None:
        self.manifest = manifest
        self._corpora = corpora
        self._selections = [_read_selection(component, directory) for component in manifest.components]
        plan = manifest.tags
        self._kept = pl.read_parquet(directory / plan.kept_values_file) if plan and plan.kept_values_file else None
        self._stage_starts = np.cumsum([0, *(stage.n_rows for stage in manifest.stages)])

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
        batch_rows: int = 1024,
    ) -> Iterator[pa.Table]:
        """Tables of rows (ROW_SCHEMA, and TOKEN_FIELDS if tokenized), in order.

        Rank r of W reads positions r, r + W, r + 2W, …; ``start`` and ``count`` count that rank's own rows, and
        a stream ends after its last row. The arguments are checked at once: raises ConfigError, NotFoundError.
        """
        if start < 0 or (count is not None and count < 0):
            raise ConfigError(f"start {start} and count {count} must not be negative: give 0 or more")
        if world_size < 1 or not 0 <= rank < world_size:
            raise ConfigError(
                f"rank {rank} of world size {world_size}: a rank is between 0 and the world size less one"
            )
        if tokenization is not None:
            # An unknown tokenizer or a missing window is an error now and not after the first bytes.
            tokenize_tagged(
                self.manifest.tags, [], [], load_tokenizer(tokenization.tokenizer), window=tokenization.window
            )
        own_rows = max(0, -(-(len(self) - rank) // world_size))
        stop = own_rows if count is None else min(start + count, own_rows)
        step = max(1, min(batch_rows, _MAX_SPAN // world_size))
        return (
            self._table(rank + world_size * np.arange(begin, min(begin + step, stop)), tokenization)
            for begin in range(start, stop, step)
        )

    def _table(self, positions: Int64Array, tokenization: Tokenization | None) -> pa.Table:
        """The rows at increasing positions (m,)."""
        parts = []
        for number, stage in enumerate(self.manifest.stages):
            first, last = self._stage_starts[number], self._stage_starts[number + 1]
            here = positions[(positions >= first) & (positions < last)]
            if len(here):
                parts.append(self._stage_table(stage, here, int(first)))
        table = pa.concat_tables(parts)
        return table if tokenization is None else self._tokenized(table, tokenization)

    def _stage_table(self, stage: Stage, positions: Int64Array, first: int) -> pa.Table:
        local = positions - first
        component, ordinal = interleave(np.asarray(stage.counts), int(local[0]), int(local[-1]) + 1)
        wanted = local - local[0]
        component, ordinal = component[wanted], ordinal[wanted]
        parts, places = [], []
        for number in np.unique(component):
            here = np.flatnonzero(component == number)
            parts.append(self._component_table(int(number), ordinal[here] + stage.starts[number], stage))
            places.append(here)
        order = np.argsort(np.concatenate(places))
        table = pa.concat_tables(parts).take(pa.array(order))
        return table.set_column(0, ROW_SCHEMA.field("position"), pa.array(positions))

    def _component_table(self, number: int, ordinals: Int64Array, stage: Stage) -> pa.Table:
        """Rows of one component, with a position still to be set."""
        rows, epochs = self._selections[number].served(ordinals, self.manifest.seed, number)
        documents = self._corpora[number].take(rows)
        n = len(rows)
        columns = {
            "position": pa.array(ordinals),
            "stage": pa.repeat(stage.name, n),
            "component": pa.repeat(self.manifest.components[number].name, n),
            "epoch": pa.array(epochs),
            "tag_text": self._tags(documents, epochs, stage).to_arrow().cast(pa.large_string()),
        }
        return pa.table(
            {name: columns[name] if name in columns else documents[name] for name in ROW_SCHEMA.names},
            schema=ROW_SCHEMA,
        )

    def _tags(self, documents: pa.Table, epochs: Int64Array, stage: Stage) -> pl.Series:
        plan = self.manifest.tags
        if plan is None or not stage.tagged:
            return pl.repeat("", documents.num_rows, dtype=pl.String, eager=True)
        frame = pl.DataFrame(pl.from_arrow(documents)).lazy()
        ids = frame.select(id_bits()).collect().to_series().to_numpy()
        values = field_values(frame, template_fields(plan.template))
        return tag_rows(plan, values, self._kept, ids, epochs, self.manifest.seed)

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
