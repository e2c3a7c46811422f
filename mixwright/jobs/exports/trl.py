"""TRL: a Parquet file for each stage, in the order of the mixture, for ``SFTTrainer``.

A stage with tags has rows of ``prompt`` (the tag) and ``completion`` (the text), and TRL counts the loss on the
completion; a stage without has rows of ``text``. TRL tokenizes prompt and completion together and finds the seam
by comparing tokens, so only rows of tokens have exact masks: name a tokenizer, and rows have ``input_ids`` and
``labels``, which TRL takes as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from mixwright.jobs.exports.format import Export, ExportFormat
from mixwright.jobs.exports.megatron import stage_suffixes
from mixwright.jobs.exports.readme import code, data_set_table, write_readme
from mixwright.jobs.exports.segments import DEFAULT_LENGTH, labels, stage_rows
from mixwright.jobs.exports.texts import joined_texts

_SNIPPET = """from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

rows = load_dataset("parquet", data_files="{file}", split="train")
config = SFTConfig(
    output_dir="out",
    max_length={length},
    packing=True,  # without it TRL cuts every row at max_length
    packing_strategy="wrapped",
    train_sampling_strategy="sequential",  # the mixture's own order
)
SFTTrainer(model="your-model", args=config, train_dataset=rows).train()"""


def _write(export: Export) -> None:
    tokenized = export.options.tokenizer is not None
    names = [f"train{suffix}" for suffix in stage_suffixes(export)]
    for number, name in enumerate(names):
        tables = stage_rows(export, number, tokenized=tokenized)
        export.write_parquet(f"{name}.parquet", _rows(export, number, tables))
    _readme(export, names, tokenized=tokenized)


def _rows(export: Export, number: int, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for table in tables:
        if "input_ids" in table.column_names:
            columns = {"id": table["id"], "input_ids": table["input_ids"], "labels": labels(table)}
        elif _prompted(export, number):
            columns = {"id": table["id"], "prompt": table["tag_text"], "completion": table["text"]}
        else:
            texts = pa.array(joined_texts(export, table), pa.large_string())
            columns = {"id": table["id"], "text": texts}
        yield pa.table(columns)


def _prompted(export: Export, number: int) -> bool:
    """Whether tags are prompts: not if they count in the loss, or stand before each paragraph."""
    plan = export.manifest.tags
    if plan is None or not plan.mask or not export.manifest.stages[number].tagged:
        return False
    if plan.scope == "document":
        export.warn(
            "TRL tokenizes tag and text together: where a token spans the seam, the mask ends at that token's "
            "start; name a tokenizer for exact masks"
        )
        return True
    export.warn(
        f"TRL masks the start of a row only, and the tag stands before each {plan.scope}: the tags are trained "
        "on; name a tokenizer for exact masks"
    )
    return False


def _readme(export: Export, names: list[str], *, tokenized: bool) -> None:
    usage = [
        "Each file has the rows of one stage in the order in which the mixture serves them, repeats included.",
        code(_snippet(export, f"{names[0]}.parquet"), "python"),
    ]
    if tokenized:
        usage.append(
            f"Rows are token ids of {export.tokenization.tokenizer}: the model's tokenizer must be the same."
        )
    if len(names) > 1:
        files = ", ".join(f"`{name}.parquet`" for name in names)
        usage.append(f"Stages, in order: {files}. Train on one after the other, each from the last checkpoint.")
    write_readme(export, "TRL", data_set_table(export.data_sets()), "\n\n".join(usage))


def _snippet(export: Export, file: str) -> str:
    length = export.options.sequence_length or DEFAULT_LENGTH
    return _SNIPPET.replace("{file}", export.seen(file)).replace("{length}", str(length))


TRL = ExportFormat(
    name="trl",
    title="Parquet of prompts and completions, or of tokens and labels, in order",
    trainer="TRL",
    tokenized=False,
    document=None,
    write=_write,
    snippet=_SNIPPET.replace("{file}", "{root}/train{stage}.parquet").replace("{length}", str(DEFAULT_LENGTH)),
    masks=True,
    stages=False,
)
