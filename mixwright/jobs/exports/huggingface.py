"""Hugging Face datasets: Parquet and a dataset card whose configurations are the stream and its data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from mixwright.jobs.exports.files import yaml_text
from mixwright.jobs.exports.format import DataSet, Export, ExportFormat
from mixwright.jobs.exports.readme import code, data_set_table, write_readme
from mixwright.selectors.streams import ROW_SCHEMA, TOKEN_FIELDS, Tokenization

_ROWS_PER_FILE = 65_536
_SIZES = (10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9, 10**10, 10**11, 10**12)
_STREAM = """from datasets import load_dataset

rows = load_dataset("{root}", split="train", streaming=True)   # the mixture, in its order"""


def _write(export: Export) -> None:
    options = export.options
    tokenization = None if options.tokenizer is None else export.tokenization
    schema = ROW_SCHEMA if tokenization is None else pa.schema([*ROW_SCHEMA, *TOKEN_FIELDS])
    _write_parts(export, "stream", export.stream.read(tokenization=tokenization), schema)
    for data_set in export.data_sets():
        _write_parts(export, f"data/{data_set.name}", data_set.tables(tokenization), schema)
    _warn(export, tokenization)
    _write_card(export)


def _write_parts(export: Export, folder: str, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    """Files of at most ``_ROWS_PER_FILE`` rows, in order."""
    for number, part in enumerate(_cut(tables)):
        export.write_parquet(f"{folder}/part-{number:05d}.parquet", part, schema)


def _cut(tables: Iterator[pa.Table]) -> Iterator[list[pa.Table]]:
    waiting: list[pa.Table] = []
    n_rows = 0
    for table in tables:
        while n_rows + table.num_rows > _ROWS_PER_FILE:
            room = _ROWS_PER_FILE - n_rows
            yield [*waiting, table.slice(0, room)]
            waiting, n_rows, table = [], 0, table.slice(room)
        waiting.append(table)
        n_rows += table.num_rows
    if n_rows:
        yield waiting


def _warn(export: Export, tokenization: Tokenization | None) -> None:
    if any(each.tagged for each in export.data_sets()) and tokenization is None:
        export.warn(
            "tags are the column tag_text, apart from text: a trainer that reads text alone trains without them "
            "(name a tokenizer to have both as input_ids, with loss_mask)"
        )
    export.warn(
        "the default configuration is the mixture in its order; each data set is there once more as a "
        "configuration of its own, so the folder is twice the mixture's size"
    )


def _write_card(export: Export) -> None:
    manifest = export.manifest
    size = export.manifest.n_rows
    card: dict[str, Any] = {
        "pretty_name": manifest.ref,
        "tags": ["mixwright", "mixture"],
        "task_categories": ["text-generation"],
        "size_categories": [_size_category(size)],
        "configs": [
            _configuration("default", "stream", default=True),
            *(_configuration(each.name, f"data/{each.name}") for each in export.data_sets()),
        ],
    }
    usage = [code(_STREAM.replace("{root}", export.root), "python")]
    usage += [_drawn(export, stage) for stage in export.stages()]
    write_readme(export, "Hugging Face datasets", data_set_table(export.data_sets()), *usage)
    text = export.path("README.md").read_text(encoding="utf-8")
    export.write_text("README.md", f"---\n{yaml_text(card)}---\n\n{text}")


def _configuration(name: str, folder: str, *, default: bool = False) -> dict[str, Any]:
    files = [{"split": "train", "path": f"{folder}/*.parquet"}]
    return {"config_name": name, **({"default": True} if default else {}), "data_files": files}


def _drawn(export: Export, stage: list[DataSet]) -> str:
    """How to draw a stage at random, at the odds of documents that give its shares of tokens."""
    lines = [
        "from datasets import interleave_datasets, load_dataset",
        "",
        f"odds = {{{', '.join(f'{each.name!r}: {each.document_odds!r}' for each in stage)}}}",
        f"parts = [load_dataset({export.root!r}, name, split='train', streaming=True) for name in odds]",
        "rows = interleave_datasets(",
        "    [part.repeat(None) for part in parts], probabilities=list(odds.values()), seed=0,",
        "    stopping_strategy='first_exhausted',",
        f").take({sum(each.n_rows for each in stage)})",
    ]
    return f"Stage {stage[0].stage}, drawn at random anew; the odds are of documents:\n\n" + code(
        "\n".join(lines), "python"
    )


def _size_category(n: int) -> str:
    """The hub's name of a number of rows: n<1K, 1K<n<10K, …"""
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    if n < _SIZES[0]:
        return f"n<{names[0]}"
    for number in range(1, len(_SIZES)):
        if n < _SIZES[number]:
            return f"{names[number - 1]}<n<{names[number]}"
    return f"n>{names[-1]}"


HUGGINGFACE = ExportFormat(
    name="huggingface",
    title="Parquet and a dataset card",
    trainer="Hugging Face datasets",
    tokenized=False,
    document=None,
    write=_write,
    snippet=_STREAM,
    masks=True,
    stages=True,
)
