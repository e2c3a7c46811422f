"""open-instruct: JSON lines of messages, and scripts that mix them by counts.

``--dataset_mixer_list`` takes pairs of a path and an amount: ``1`` is one row, ``1.0`` all rows, ``3.0`` each
row three times. Here an amount is the number of rows in the file, a whole number: exactly all of them, once.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from mixwright.jobs.exports.format import DataSet, Export, ExportFormat
from mixwright.jobs.exports.megatron import stage_suffixes
from mixwright.jobs.exports.readme import code, data_set_table, write_readme
from mixwright.jobs.exports.texts import joined_texts


def _write(export: Export) -> None:
    for data_set in export.data_sets():
        export.write_json_lines(_file(data_set), _rows(export, data_set))
    names = [f"train{suffix}" for suffix in stage_suffixes(export)]
    for name, stage in zip(names, export.stages(), strict=True):
        export.write_text(f"{name}.sh", script(export, stage))
    export.warn(
        "open-instruct trains on conversations: each row is put into the model's chat template, with its text as "
        "the assistant's message"
    )
    export.warn("open-instruct shuffles all rows of its data sets together: the order of the rows is its own")
    _readme(export, names)


def script(export: Export, stage: list[DataSet]) -> str:
    """A shell script that trains on one stage, with the arguments that it is given."""
    pairs = [f"{shlex.quote(export.seen(_file(each)))} {each.n_rows}" for each in stage]
    # One split stands for all data sets; a list of them would be indexed in steps of two.
    arguments = ["--dataset_mixer_list", *pairs, "--dataset_mixer_list_splits train", "--num_train_epochs 1"]
    return "#!/bin/sh\n" + " \\\n  ".join(["exec python open_instruct/finetune.py", *arguments, '"$@"'])


def _file(data_set: DataSet) -> str:
    return f"data/{data_set.name}.jsonl"


def _rows(export: Export, data_set: DataSet) -> Iterator[dict[str, Any]]:
    prompted = _prompted(export, data_set)
    for table in data_set.tables():
        ids, tags = table["id"].to_pylist(), table["tag_text"].to_pylist()
        texts = table["text"].to_pylist() if prompted else joined_texts(export, table)
        for document, tag, text in zip(ids, tags, texts, strict=True):
            prompt = [{"role": "user", "content": tag}] if prompted and tag else []
            yield {"id": document, "messages": [*prompt, {"role": "assistant", "content": text}]}


def _prompted(export: Export, data_set: DataSet) -> bool:
    """Whether tags are the user's messages, on which no loss is counted."""
    plan = export.manifest.tags
    if plan is None or not plan.mask or not data_set.tagged:
        return False
    if plan.scope != "document":
        export.warn(f"the tag stands once before each document here, and not before each {plan.scope}")
    export.warn(
        "a tag is the user's message here, so that no loss is counted on it: the chat template's own words stand "
        "between tag and text"
    )
    return True


def _readme(export: Export, names: list[str]) -> None:
    usage = [
        "Each script names the rows of one stage by their counts, so that every row is read once, repeats "
        "included. Run it where open-instruct is, with the rest of the arguments:",
        code(f"sh {shlex.quote(export.seen(f'{names[0]}.sh'))} --model_name_or_path your-model …", "sh"),
    ]
    if len(names) > 1:
        files = ", ".join(f"`{name}.sh`" for name in names)
        usage.append(f"Stages, in order: {files}. Train on one after the other, each from the last checkpoint.")
    write_readme(export, "open-instruct", data_set_table(export.data_sets()), "\n\n".join(usage))


OPEN_INSTRUCT = ExportFormat(
    name="open-instruct",
    title="JSON lines of messages, and scripts with --dataset_mixer_list",
    trainer="open-instruct",
    tokenized=False,
    document=None,
    write=_write,
    snippet="sh {root}/train{stage}.sh --model_name_or_path your-model",
    masks=True,
    stages=False,
)
