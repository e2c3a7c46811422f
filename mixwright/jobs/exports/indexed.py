"""Megatron's indexed data sets: ``NAME.bin`` with the tokens of all documents, ``NAME.idx`` with their places.

The layout is that of ``IndexedDatasetBuilder`` in megatron-core, byte by byte; NeMo and GPT-NeoX read the same
files. All numbers are little-endian: the magic and the version, a code of the tokens' type, the numbers of
sequences and of document ends, then the lengths (int32), the byte offsets (int64) and the document ends (int64).
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixwright.jobs.exports.format import DataSet, Export
from mixwright.jobs.exports.tokens import Int64Array, lengths_of, token_rows, vocabulary_size

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_CODES = {"int32": 4, "uint16": 8}
_SMALL_VOCABULARY = 65_500
"""Megatron keeps ids in 16 bits below this size of the vocabulary."""
NO_LOSS = -100
"""The label of a token that does not count in the loss."""


def write_data_set(export: Export, data_set: DataSet, *, labels: bool = False) -> int:
    """Write one data set as ``data/NAME_text_document``, with ``labels`` its labels beside; returns its tokens.

    Labels are the token ids, and −100 where no loss is counted; they are not shifted.
    """
    dtype = np.dtype("<u2") if vocabulary_size(export) < _SMALL_VOCABULARY else np.dtype("<i4")
    tokens = _Builder(export.path(f"{prefix(data_set)}.bin"), dtype)
    label_path = export.path(f"{label_prefix(data_set)}.bin") if labels else None
    masked = _Builder(label_path, np.dtype("<i4")) if label_path else None
    for table, ids, mask in token_rows(export, data_set):
        lengths = lengths_of(table)
        tokens.add(ids, lengths)
        if masked is not None:
            masked.add(np.where(mask, ids, NO_LOSS), lengths)
    for builder in (tokens, masked):
        if builder is not None:
            builder.finish()
            export.count_rows(builder.path.relative_to(export.folder).as_posix(), data_set.n_rows)
    return tokens.n_tokens


def prefix(data_set: DataSet) -> str:
    """The path of a data set without .bin, relative to the export."""
    return f"data/{data_set.name}_text_document"


def label_prefix(data_set: DataSet) -> str:
    """The path of its labels without .bin, relative to the export."""
    return f"data/{data_set.name}_label_document"


class _Builder:
    """Appends documents to one pair of files; holds 4 bytes a document."""

    def __init__(self, path: Path, dtype: np.dtype[np.integer]) -> None:
        self.path = path
        self.n_tokens = 0
        self._dtype = dtype
        self._lengths: list[npt.NDArray[np.int32]] = []
        path.write_bytes(b"")

    def add(self, ids: Int64Array, lengths: Int64Array) -> None:
        with self.path.open("ab") as sink:
            sink.write(ids.astype(self._dtype).tobytes())
        self.n_tokens += len(ids)
        self._lengths.append(lengths.astype("<i4"))

    def finish(self) -> None:
        """Write the index: each document is one sequence."""
        lengths = np.concatenate(self._lengths)
        ends = np.cumsum(lengths, dtype="<i8") * self._dtype.itemsize
        with self.path.with_suffix(".idx").open("wb") as sink:
            sink.write(_MAGIC + struct.pack("<QB", _VERSION, _CODES[self._dtype.name]))
            sink.write(struct.pack("<QQ", len(lengths), len(lengths) + 1))
            sink.write(lengths.tobytes())
            sink.write((ends - lengths * self._dtype.itemsize).astype("<i8").tobytes())
            sink.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
