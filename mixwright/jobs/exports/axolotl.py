"""axolotl: one file with all rows in the order of the mixture, and the data part of a configuration.

axolotl mixes data sets by concatenation only, so the mixture comes as one: with ``curriculum_sampling`` and
``shuffle_merged_datasets: false`` it is read in its order, stage after stage. Rows are segments (template-free
``input_output``), tokenized apart by axolotl and left out of the loss where they are tags; or, if a tokenizer is
named, tokens with labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from mixwright.jobs.exports.format import Export, ExportFormat
from mixwright.jobs.exports.readme import code, data_set_table, write_readme
from mixwright.jobs.exports.segments import (
    LongRows,
    labels,
    segments,
    stage_rows,
    tagged_rows,
    warn_of_windows,
)


def _write(export: Export) -> None:
    tokenized = export.options.tokenizer is not None
    long_rows = LongRows(export)
    stages = range(len(export.manifest.stages))
    served = (table for number in stages for table in stage_rows(export, number, tokenized=tokenized))
    tables = long_rows.counted(served)
    if tokenized:
        name = "mixture.parquet"
        export.write_parquet(name, _token_rows(tables))
    else:
        name = "mixture.jsonl"
        export.write_json_lines(name, _segment_rows(export, tables))
        warn_of_windows(export)
        export.warn(
            "axolotl adds no token before or behind segments, and the trainer's are not known here: name a "
            "tokenizer with its bos and eos, and rows are tokens that have them"
        )
    long_rows.warn("axolotl", "stops at them, as excess_length_strategy says")
    export.write_yaml("axolotl.yaml", _configuration(export, name, long_rows.length, tokenized=tokenized))
    _readme(export)


def _configuration(export: Export, name: str, length: int, *, tokenized: bool) -> dict[str, Any]:
    data_set: dict[str, Any] = {"path": export.seen(name), "ds_type": "parquet" if tokenized else "json"}
    # An empty type is how axolotl is told that rows are tokens already.
    data_set["type"] = None if tokenized else "input_output"
    return {
        "datasets": [data_set],
        "train_on_inputs": False,
        "shuffle_merged_datasets": False,
        "curriculum_sampling": True,
        "sequence_len": length,
        "excess_length_strategy": "raise",
        "val_set_size": 0.0,
        "dataset_exact_deduplication": False,
    }


def _token_rows(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for table in tables:
        ids = table["input_ids"].combine_chunks()
        ones = pa.array([1] * len(ids.values), pa.int8())
        yield pa.table(
            {
                "input_ids": ids,
                "attention_mask": pa.LargeListArray.from_arrays(ids.offsets, ones),
                "labels": labels(table),
            }
        )


def _segment_rows(export: Export, tables: Iterator[pa.Table]) -> Iterator[dict[str, Any]]:
    plan = export.manifest.tags
    for table in tables:
        for tag, text in tagged_rows(table):
            yield {"segments": segments(plan, tag, text)}


def _readme(export: Export) -> None:
    usage = [
        "Put your model and its training into a copy of `axolotl.yaml`; its lines keep the rows in the mixture's "
        "order. With `sample_packing` add `sample_packing_sequentially: true` to keep it there too.",
        code("axolotl train axolotl.yaml"),
    ]
    if export.options.tokenizer is not None:
        usage.append(
            f"Rows are token ids of {export.tokenization.tokenizer}: the model's tokenizer must be the same."
        )
    ends, until = [], 0
    for stage in export.manifest.stages:
        until += stage.n_rows
        ends.append(f"{stage.name} ends with row {until:,}")
    if len(ends) > 1:
        usage.append(f"The stages follow each other in the file: {'; '.join(ends)}.")
    write_readme(export, "axolotl", data_set_table(export.data_sets()), "\n\n".join(usage))


AXOLOTL = ExportFormat(
    name="axolotl",
    title="One file of segments, or of tokens and labels, in order, and YAML",
    trainer="axolotl",
    tokenized=False,
    document=None,
    write=_write,
    snippet="axolotl train {root}/axolotl.yaml   # with your model's lines added",
    masks=True,
    stages=True,
)
