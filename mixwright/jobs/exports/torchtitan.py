"""torchtitan: JSON lines of segments, and Python configurations that mix packed data sets by shares of tokens.

torchtitan's weights count what a child yields: rows of a fixed number of tokens if each child is packed before it
is mixed, so shares of tokens are right as they are. ``mixture.py`` is for the data pipeline built on Grain
(``torchtitan.components.data``), with a processor that leaves tags out of the loss; ``mixture_0_3.py`` is for
release 0.3, which has no loss mask for text.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from typing import Any

from mixwright.jobs.exports.format import DataSet, Export, ExportFormat
from mixwright.jobs.exports.readme import code, data_set_table, write_readme
from mixwright.jobs.exports.segments import segments, tagged_rows, warn_of_windows
from mixwright.jobs.exports.tokens import masks_tags

_GRAIN = '''"""{title}"""

from dataclasses import dataclass

import numpy as np
from torchtitan.components.data import (
    ConcatThenSplitPackingConfig,
    DatasetMixConfig,
    IndexedJsonlSource,
    SampleProcessor,
    SingleDatasetConfig,
    TextSequence,
    WeightedDataset,
)
from torchtitan.components.loss import IGNORE_INDEX


class SegmentProcessor(SampleProcessor):
    """Tokenizes the segments of a row apart; those with a false label are not trained on."""

    @dataclass(kw_only=True, slots=True)
    class Config(SampleProcessor.Config):
        pass

    def __init__(self, config, *, context):
        self._tokenizer = context.tokenizer

    def __call__(self, sample, rng):
        begin, end = getattr(self._tokenizer, "bos_id", None), self._tokenizer.eos_id
        ids = [] if begin is None else [begin]
        counted = [False] * len(ids)
        for segment in sample["segments"]:
            piece = self._tokenizer.tokenizer.encode(segment["text"], add_special_tokens=False).ids
            ids += piece
            counted += [segment["label"]] * len(piece)
        if end is not None:
            ids, counted = [*ids, end], [*counted, True]
        if len(ids) < 2:
            return None
        tokens = np.asarray(ids, dtype=np.int64)
        labels = np.where(np.asarray(counted), tokens, IGNORE_INDEX)
        return TextSequence(input_ids=tokens[:-1], labels=labels[1:])


def has_tokens(sample):
    return sample is not None


def packed(path):
    rows = SingleDatasetConfig(
        source=IndexedJsonlSource.Config(patterns=(path,)),
        processor=SegmentProcessor.Config(),
        post_filters=(has_tokens,),
    )
    return ConcatThenSplitPackingConfig(dataset=rows)


STAGES = {
{stages}}
"""Use one as config.dataloader = GrainDataLoader.Config(dataset=STAGES[...])."""
'''
_RELEASE = '''"""{title}"""

from datasets import load_dataset
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import (
    DATASETS,
    HFDataSource,
    InterleavedHuggingFaceTextDataLoader,
)


def load_rows(path):
    return load_dataset("json", data_files=path, split="train")


def row_text(sample):
    return "".join(segment["text"] for segment in sample["segments"])


def source(name, path, weight):
    DATASETS[name] = DatasetConfig(path=path, loader=load_rows, sample_processor=row_text)
    return HFDataSource(dataset=name, weight=weight)


STAGES = {
{stages}}
"""Use one as config.dataloader = STAGES[...]."""
'''


def _write(export: Export) -> None:
    stages: dict[str, list[DataSet]] = {}
    for stage, data_sets in zip(export.manifest.stages, export.stages(), strict=True):
        stages[stage.name] = _weighted(export, data_sets)
        for data_set in data_sets:
            export.write_json_lines(_file(data_set), _rows(export, data_set))
    export.write_text("mixture.py", grain_configuration(export, stages))
    export.write_text("mixture_0_3.py", release_configuration(export, stages))
    warn_of_windows(export)
    if masks_tags(export, export.data_sets()):
        export.warn(
            "torchtitan 0.3 has no loss mask for text: mixture_0_3.py trains on the tags, mixture.py does not"
        )
    export.warn("torchtitan draws rows of each data set by its weight: the order of the rows is its own")
    _readme(export, list(stages))


def grain_configuration(export: Export, stages: dict[str, list[DataSet]]) -> str:
    """The Python file for the data pipeline built on Grain."""
    lines = []
    for name, data_sets in stages.items():
        lines.append(f"    {name!r}: DatasetMixConfig(\n        datasets=(\n")
        for each in data_sets:
            # Paths are patterns there: what is special in one is escaped.
            path = glob.escape(export.seen(_file(each)))
            lines.append(f"            WeightedDataset(dataset=packed({path!r}), weight={each.token_share!r}),\n")
        lines.append("        ),\n    ),\n")
    return _filled(_GRAIN, export, lines)


def release_configuration(export: Export, stages: dict[str, list[DataSet]]) -> str:
    """The Python file for release 0.3."""
    lines = []
    for name, data_sets in stages.items():
        lines.append(f"    {name!r}: InterleavedHuggingFaceTextDataLoader.Config(\n        sources=[\n")
        for each in data_sets:
            # The release looks names up in small letters.
            arguments = f"{each.name.lower()!r}, {export.seen(_file(each))!r}, {each.token_share!r}"
            lines.append(f"            source({arguments}),\n")
        lines.append(f"        ],\n        seed={export.manifest.seed},\n    ),\n")
    return _filled(_RELEASE, export, lines)


def _filled(template: str, export: Export, lines: list[str]) -> str:
    title = f"Mixture {export.manifest.ref}, fingerprint {export.manifest.fingerprint}."
    return template.replace("{title}", title).replace("{stages}", "".join(lines))


def _weighted(export: Export, data_sets: list[DataSet]) -> list[DataSet]:
    """The data sets that can have a weight: it must be above zero."""
    for each in data_sets:
        if not each.token_share:
            export.warn(f"data set {each.name} has no tokens and so no weight: torchtitan is not given it")
    return [each for each in data_sets if each.token_share]


def _file(data_set: DataSet) -> str:
    return f"data/{data_set.name}.jsonl"


def _rows(export: Export, data_set: DataSet) -> Iterator[dict[str, Any]]:
    plan = export.manifest.tags
    for table in data_set.tables():
        for document, (tag, text) in zip(table["id"].to_pylist(), tagged_rows(table), strict=True):
            yield {"id": document, "segments": segments(plan, tag, text)}


def _readme(export: Export, stages: list[str]) -> None:
    usage = [
        "Weights are shares of tokens, for children that are packed before they are mixed. In your configuration:",
        code(
            "from mixture import STAGES  # from mixture_0_3 with torchtitan 0.3\n"
            f"config.dataloader = GrainDataLoader.Config(dataset=STAGES[{stages[0]!r}])\n"
            f"config.dataloader = STAGES[{stages[0]!r}]  # with torchtitan 0.3",
            "python",
        ),
    ]
    if len(stages) > 1:
        sizes = "; ".join(f"{stage.name}: {stage.n_tokens:,} tokens" for stage in export.manifest.stages)
        usage.append(f"Stages, in order: {sizes}. Train on one after the other, each from the last checkpoint.")
    write_readme(export, "torchtitan", data_set_table(export.data_sets()), "\n\n".join(usage))


TORCHTITAN = ExportFormat(
    name="torchtitan",
    title="JSON lines of segments, and Python configurations",
    trainer="torchtitan",
    tokenized=False,
    document=None,
    write=_write,
    snippet="from mixture import STAGES   # {root}/mixture.py, or mixture_0_3.py with torchtitan 0.3",
    masks=True,
    stages=False,
)
