"""NeMo: Megatron's indexed data sets, listed for NeMo 2.0 (Python) and NeMo 1 (YAML)."""

from __future__ import annotations

from mixwright.jobs.exports.format import Export, ExportFormat
from mixwright.jobs.exports.indexed import prefix
from mixwright.jobs.exports.megatron import blend, schedule_table, stage_suffixes, write_indexed
from mixwright.jobs.exports.readme import code, data_set_table, write_readme
from mixwright.jobs.exports.tokens import shares

_SPLIT = "100,0,0"
_NEMO_2 = """import json
from nemo.collections.llm.gpt.data import PreTrainingDataModule

paths = json.load(open("{file}"))["paths"]
data = PreTrainingDataModule(paths=paths, split="100,0,0", seq_length=..., tokenizer=...)  # limit_val_batches=0"""


def _write(export: Export) -> None:
    tokens = write_indexed(export, "NeMo")
    suffixes = stage_suffixes(export)
    for stage, suffix in zip(export.stages(), suffixes, strict=True):
        export.write_json(f"nemo2{suffix}.json", {"paths": blend(export, stage, tokens), "split": _SPLIT})
        weights = shares(tokens, stage)
        pairs = [(weight, export.seen(prefix(each))) for each, weight in zip(stage, weights, strict=True)]
        data = {"data_prefix": [item for pair in pairs for item in pair], "splits_string": _SPLIT}
        export.write_yaml(f"nemo1{suffix}.yaml", {"model": {"data": data}})
    export.warn(
        "NeMo shuffles inside each data set and interleaves them by weight: the order of the rows is its own"
    )
    _readme(export, tokens, suffixes)


def _readme(export: Export, tokens: dict[str, int], suffixes: list[str]) -> None:
    usage = [
        "Weights are shares of the tokens written, so all data sets come to their end together. NeMo 2.0:",
        code(_NEMO_2.replace("{file}", export.seen(f"nemo2{suffixes[0]}.json")), "python"),
        f"NeMo 1: merge `nemo1{suffixes[0]}.yaml` into your configuration.",
    ]
    if len(suffixes) > 1:
        usage.append(
            "The mixture has stages, with one file for each: train on one, stop at the samples where it ends, and "
            "go on from the checkpoint with the next one's file."
        )
    write_readme(
        export,
        "NeMo",
        data_set_table(export.data_sets(), tokens),
        "\n\n".join(usage),
        "## How long a stage is\n\n" + schedule_table(export, tokens),
    )


NEMO = ExportFormat(
    name="nemo",
    title="Indexed data sets (.bin, .idx) with lists for NeMo 2.0 and NeMo 1",
    trainer="NeMo",
    tokenized=True,
    document=None,
    write=_write,
    snippet=_NEMO_2.replace("{file}", "{root}/nemo2{stage}.json"),
    masks=False,
    stages=True,
)
