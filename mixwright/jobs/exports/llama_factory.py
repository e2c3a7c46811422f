"""LLaMA-Factory: JSON lines, ``dataset_info.json`` and a training configuration for each stage.

Where tags must not count in the loss, the stage is ``sft`` with the template ``empty``: the tag is the prompt and
the text is the response, and nothing is put between. Otherwise it is ``pt`` on one text a row. Data sets are
concatenated, each with ``num_samples`` equal to its rows: every row once, repeats included.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mixwright.jobs.exports.format import DataSet, Export, ExportFormat
from mixwright.jobs.exports.megatron import stage_suffixes
from mixwright.jobs.exports.readme import code, data_set_table, write_readme
from mixwright.jobs.exports.segments import LongRows
from mixwright.jobs.exports.texts import joined_texts

_PROMPTED = {"prompt": "tag_text", "response": "text"}
_PLAIN = {"prompt": "text"}


def _write(export: Export) -> None:
    names = [f"train{suffix}" for suffix in stage_suffixes(export)]
    information: dict[str, Any] = {}
    for name, stage in zip(names, export.stages(), strict=True):
        prompted = _prompted(export, stage)
        long_rows = LongRows(export)
        for data_set in stage:
            file = f"data/{data_set.name}.jsonl"
            export.write_json_lines(file, _rows(export, data_set, long_rows, prompted=prompted))
            information[data_set.name] = {
                "file_name": file,
                "num_samples": data_set.n_rows,
                "columns": _PROMPTED if prompted else _PLAIN,
            }
        if prompted:
            long_rows.warn("LLaMA-Factory", "cuts them at cutoff_len in sft")
        else:
            export.warn(
                "LLaMA-Factory packs the rows of pt a thousand at a time into sequences of cutoff_len, and "
                "drops what does not fill one: raise preprocessing_batch_size to lose less"
            )
        configuration = _configuration(export, stage, long_rows.length, prompted=prompted)
        export.write_yaml(f"{name}.yaml", configuration)
    export.write_json("dataset_info.json", information)
    export.warn("LLaMA-Factory shuffles all rows of its data sets together: the order of the rows is its own")
    _readme(export, names)


def _prompted(export: Export, stage: list[DataSet]) -> bool:
    """Whether tags are prompts, on which no loss is counted."""
    plan = export.manifest.tags
    if plan is None or not plan.mask or not any(each.tagged for each in stage):
        return False
    if plan.scope != "document":
        export.warn(f"the tag stands once before each document here, and not before each {plan.scope}")
    export.warn(
        "the template 'empty' of LLaMA-Factory ends no text with an end token: give the stage's configuration a "
        "template of your own if the model needs one"
    )
    return True


def _rows(export: Export, data_set: DataSet, long_rows: LongRows, *, prompted: bool) -> Iterator[dict[str, str]]:
    for table in long_rows.counted(data_set.tables()):
        texts = table["text"].to_pylist() if prompted else joined_texts(export, table)
        tags = table["tag_text"].to_pylist()
        for document, tag, text in zip(table["id"].to_pylist(), tags, texts, strict=True):
            yield {"id": document, "tag_text": tag, "text": text} if prompted else {"id": document, "text": text}


def _configuration(export: Export, stage: list[DataSet], length: int, *, prompted: bool) -> dict[str, Any]:
    names = ",".join(each.name for each in stage)
    configuration: dict[str, Any] = {"stage": "sft" if prompted else "pt", "do_train": True}
    if prompted:
        configuration |= {"template": "empty", "train_on_prompt": False}
    return configuration | {
        "dataset_dir": export.root,
        "dataset": names,
        "mix_strategy": "concat",
        "cutoff_len": length,
        "num_train_epochs": 1.0,
    }


def _readme(export: Export, names: list[str]) -> None:
    usage = [
        "Put your model and its training into a copy of the stage's configuration:",
        code(f"llamafactory-cli train {names[0]}.yaml", "sh"),
    ]
    if len(names) > 1:
        files = ", ".join(f"`{name}.yaml`" for name in names)
        usage.append(f"Stages, in order: {files}. Train on one after the other, each from the last checkpoint.")
    write_readme(export, "LLaMA-Factory", data_set_table(export.data_sets()), "\n\n".join(usage))


LLAMA_FACTORY = ExportFormat(
    name="llama-factory",
    title="JSON lines, dataset_info.json and YAML",
    trainer="LLaMA-Factory",
    tokenized=False,
    document=None,
    write=_write,
    snippet="llamafactory-cli train {root}/train{stage}.yaml   # with your model's lines added",
    masks=True,
    stages=False,
)
