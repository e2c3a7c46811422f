"""GPT-NeoX: indexed data sets, label files for loss masks, and a configuration file for each stage."""

from __future__ import annotations

from typing import Any

from mixwright.jobs.exports.format import DataSet, Export, ExportFormat
from mixwright.jobs.exports.indexed import label_prefix, prefix, write_data_set
from mixwright.jobs.exports.megatron import check_root, schedule_table, stage_suffixes
from mixwright.jobs.exports.readme import code, data_set_table, write_readme
from mixwright.jobs.exports.tokens import masks_tags, require_eos, shares


def _write(export: Export) -> None:
    require_eos(export, "GPT-NeoX")
    check_root(export, "GPT-NeoX")
    suffixes = stage_suffixes(export)
    tokens: dict[str, int] = {}
    for stage, suffix in zip(export.stages(), suffixes, strict=True):
        labels = masks_tags(export, stage)
        for data_set in stage:
            tokens[data_set.name] = write_data_set(export, data_set, labels=labels)
        export.write_yaml(f"data{suffix}.yml", _configuration(export, stage, tokens, labels=labels))
    export.warn(
        "GPT-NeoX shuffles inside each data set and interleaves them by weight: the order of the rows is its own"
    )
    export.warn(
        "GPT-NeoX refuses train_data_paths without valid_data_paths and test_data_paths: add paths and weights of "
        "held-out data in your own configuration file, for a mixture has none"
    )
    _readme(export, tokens, suffixes)


def _configuration(
    export: Export, stage: list[DataSet], tokens: dict[str, int], *, labels: bool
) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "train_data_paths": [export.seen(prefix(each)) for each in stage],
        "train_data_weights": shares(tokens, stage),
        # True would put the weights aside and weight by numbers of documents instead.
        "weight_by_num_documents": False,
        "data_impl": "mmap",
    }
    if labels:
        # GPT-NeoX wants labels of all data sets or of none.
        configuration["train_label_data_paths"] = [export.seen(label_prefix(each)) for each in stage]
    return configuration


def _readme(export: Export, tokens: dict[str, int], suffixes: list[str]) -> None:
    usage = [
        "Weights are shares of the tokens written, so all data sets come to their end together.",
        code(f"python deepy.py train.py YOUR_MODEL.yml {export.seen(f'data{suffixes[0]}.yml')}"),
        f"Your configuration adds `valid_data_paths`, `test_data_paths` and their weights; its tokenizer is "
        f"{export.tokenization.tokenizer}, whose end-of-document id must be {export.options.eos}.",
    ]
    if len(suffixes) > 1:
        usage.append(
            "The mixture has stages, with one file for each: train on one until the samples where it ends, and go "
            "on from the checkpoint with the next one's file."
        )
    write_readme(
        export,
        "GPT-NeoX",
        data_set_table(export.data_sets(), tokens),
        "\n\n".join(usage),
        "## How long a stage is\n\n" + schedule_table(export, tokens),
    )


GPT_NEOX = ExportFormat(
    name="gpt-neox",
    title="Indexed data sets (.bin, .idx), labels for loss masks, and YAML",
    trainer="GPT-NeoX",
    tokenized=True,
    document=None,
    write=_write,
    snippet="python deepy.py train.py YOUR_MODEL.yml {root}/data{stage}.yml",
    masks=True,
    stages=True,
)
