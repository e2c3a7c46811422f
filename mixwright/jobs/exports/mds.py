"""MosaicML Streaming: MDS shards and an index for each data set, and llm-foundry's list of streams.

A shard (version 2) is the number of samples, the offsets of the samples from the start of the file (both uint32),
the shard's configuration as JSON, and the samples; a sample is the sizes (uint32) of its columns of no fixed size,
then all columns, in the order of their names. ``index.json`` lists the shards with their sizes and SHA-1. The
files are what the library's own writer would write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixwright.errors import DataError
from mixwright.jobs.exports.format import DataSet, Export, ExportFormat
from mixwright.jobs.exports.megatron import stage_suffixes
from mixwright.jobs.exports.readme import code, data_set_table, write_readme
from mixwright.jobs.exports.tokens import lengths_of, token_rows

_SIZE_LIMIT = 1 << 26
"""Bytes of a shard, as the library's writer has it."""
_LARGEST = 2**32 - 1
TEXT_COLUMNS = {"domain": "str", "id": "str", "source": "str", "tag_text": "str", "text": "str", "url": "str"}
TOKEN_COLUMNS = {
    "domain": "str",
    "indices": "ndarray:uint32",
    "input_ids": "ndarray:uint32",
    "length": "uint64",
    "mask": "ndarray:uint8",
}
_STREAMS = """import yaml
from streaming import Stream, StreamingDataset

streams = yaml.safe_load(open("{file}"))["train_loader"]["dataset"]["streams"]
data = StreamingDataset(streams=[Stream(**stream) for stream in streams.values()], batch_size=..., shuffle=True)"""


def _write(export: Export) -> None:
    tokenized = export.options.tokenizer is not None
    columns = TOKEN_COLUMNS if tokenized else TEXT_COLUMNS
    for data_set in export.data_sets():
        folder = f"data/{data_set.name}"
        writer = ShardWriter(export.path(f"{folder}/index.json").parent, columns)
        for sample in _token_samples(export, data_set) if tokenized else _text_samples(data_set):
            writer.add(sample)
        for name, n_samples in writer.finish():
            export.count_rows(f"{folder}/{name}", n_samples)
    suffixes = stage_suffixes(export)
    for stage, suffix in zip(export.stages(), suffixes, strict=True):
        export.write_yaml(f"streams{suffix}.yaml", _streams(export, stage))
    _warn(export, tokenized=tokenized)
    write_readme(export, "MosaicML Streaming", data_set_table(export.data_sets()), _usage(export, suffixes))


def _streams(export: Export, stage: list[DataSet]) -> dict[str, Any]:
    # `choose` is a number of samples: with `proportion` the library would repeat small streams unasked.
    streams = {each.name: {"local": export.seen(f"data/{each.name}"), "choose": each.n_rows} for each in stage}
    return {"train_loader": {"dataset": {"streams": streams}}}


def _warn(export: Export, *, tokenized: bool) -> None:
    plan = export.manifest.tags
    tagged = plan is not None and any(each.tagged for each in export.data_sets())
    if tagged and not tokenized:
        export.warn(
            "tags are the column tag_text, which llm-foundry does not read: join it to text in your own data set "
            "class, or name a tokenizer to have both as tokens, with the loss mask"
        )
    if tagged and tokenized and plan is not None and plan.mask:
        export.warn(
            "the loss mask is the column mask, as MeCo's loader reads it (labels[mask == 0] = -100): "
            "llm-foundry's own text data set does not"
        )
    if tokenized:
        export.warn("a sample is one document, whatever its length: the loader packs samples into sequences")
    export.warn(
        "MosaicML Streaming shuffles samples and interleaves streams: the order of the rows is its own (each is "
        "drawn once an epoch)"
    )


def _usage(export: Export, suffixes: list[str]) -> str:
    parts = [
        "`choose` is the number of rows: one epoch draws each row once, and repeats are rows already.",
        code(_STREAMS.replace("{file}", export.seen(f"streams{suffixes[0]}.yaml")), "python"),
    ]
    if len(suffixes) > 1:
        parts.append(
            "The mixture has stages, with one list of streams for each: train one epoch of it, and go on from the "
            "checkpoint with the next one's, without the state of the data loader."
        )
    return "\n\n".join(parts)


def _text_samples(data_set: DataSet) -> Iterator[list[bytes]]:
    for table in data_set.tables():
        columns = [table[name].to_pylist() for name in TEXT_COLUMNS]
        for row in zip(*columns, strict=True):
            yield [(value or "").encode() for value in row]


def _token_samples(export: Export, data_set: DataSet) -> Iterator[list[bytes]]:
    for table, ids, mask in token_rows(export, data_set):
        ends = np.cumsum(lengths_of(table))
        starts = ends - lengths_of(table)
        for domain, start, end in zip(table["domain"].to_pylist(), starts.tolist(), ends.tolist(), strict=True):
            n = end - start
            yield [
                (domain or "").encode(),
                _array(np.array([[0, n]], dtype="<u4")),
                _array(ids[start:end].astype("<u4")),
                np.array(n, dtype="<u8").tobytes(),
                _array(mask[start:end].astype("u1")),
            ]


def _array(values: npt.NDArray[Any]) -> bytes:
    """An array of a known type and any shape: number of axes and the type of its sizes, the sizes, the values."""
    code_of_sizes = next(bits for bits in (0, 1, 2, 3) if max(values.shape) < 1 << (8 << bits))
    sizes = np.array(values.shape, dtype=f"<u{1 << code_of_sizes}")
    return bytes([values.ndim << 2 | code_of_sizes]) + sizes.tobytes() + values.tobytes()


class ShardWriter:
    """Writes the samples of one data set as shards, in order; holds one shard in memory."""

    def __init__(self, folder: Path, columns: dict[str, str]) -> None:
        self._folder = folder
        sizes = [8 if encoding == "uint64" else None for encoding in columns.values()]
        self._fixed = [size is not None for size in sizes]
        self._configuration: dict[str, Any] = {
            "version": 2,
            "format": "mds",
            "compression": None,
            "hashes": ["sha1"],
            "size_limit": _SIZE_LIMIT,
            "column_names": list(columns),
            "column_encodings": list(columns.values()),
            "column_sizes": sizes,
        }
        self._header = json.dumps(self._configuration, sort_keys=True).encode()
        self._samples: list[bytes] = []
        self._shards: list[dict[str, Any]] = []
        self._size = 8 + len(self._header)

    def add(self, values: Sequence[bytes]) -> None:
        """Add one sample: its columns, encoded, in the order of their names."""
        sizes = [len(value) for value, fixed in zip(values, self._fixed, strict=True) if not fixed]
        sample = np.array(sizes, dtype="<u4").tobytes() + b"".join(values)
        if self._samples and self._size + len(sample) + 4 > _SIZE_LIMIT:
            self._flush()
        self._samples.append(sample)
        self._size += len(sample) + 4

    def finish(self) -> list[tuple[str, int]]:
        """Write what is left and the index; returns the shards' names and numbers of samples."""
        if self._samples:
            self._flush()
        index = {"version": 2, "shards": self._shards}
        (self._folder / "index.json").write_text(json.dumps(index, sort_keys=True))
        return [(shard["raw_data"]["basename"], shard["samples"]) for shard in self._shards]

    def _flush(self) -> None:
        n = len(self._samples)
        offsets = np.cumsum([0, *map(len, self._samples)]) + 4 + 4 * (n + 1) + len(self._header)
        if offsets[-1] > _LARGEST:
            raise DataError("a document is larger than the 4 GiB that an MDS shard holds: leave it out")
        parts = [np.array(n, dtype="<u4").tobytes(), offsets.astype("<u4").tobytes(), self._header]
        content = b"".join([*parts, *self._samples])
        name = f"shard.{len(self._shards):05d}.mds"
        (self._folder / name).write_bytes(content)
        found = {"basename": name, "bytes": len(content), "hashes": {"sha1": _sha1(content)}}
        self._shards.append({**self._configuration, "samples": n, "raw_data": found, "zip_data": None})
        self._samples, self._size = [], 8 + len(self._header)


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


MDS = ExportFormat(
    name="mds",
    title="MDS shards and streams; tokens with a loss mask where a tokenizer is named",
    trainer="MosaicML Streaming",
    tokenized=False,
    document=None,
    write=_write,
    snippet=_STREAMS.replace("{file}", "{root}/streams{stage}.yaml"),
    masks=True,
    stages=True,
)
