"""Levanter: JSON lines and a YAML file with the stages as weights that change at a step.

Levanter draws sequences in blocks of ``mixture_block_size``: in each block every data set has weight × block size
of them, rounded down, so a small weight needs a large block; and a stage begins where step × batch size is a
multiple of the block. ``plan_schedule`` chooses block, batch and steps so that both hold.

Masked tags go in Levanter's supervised form: tag and text are tokenized apart, and the loss is on the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixwright.jobs.exports.format import DataSet, Export, ExportFormat
from mixwright.jobs.exports.readme import code, data_set_table, write_readme
from mixwright.jobs.exports.texts import joined_texts
from mixwright.jobs.exports.tokens import masks_tags
from mixwright.schemas.defaults import DEFAULT_TOKENIZER

_LARGEST_BLOCK = 2_048
_LARGEST_BATCH = 256
_SEQUENCE_LENGTH = 2_048
_SUPERVISED = {"type": "supervised", "input_key": "tag_text", "target_key": "text"}
_SUPERVISED_1_2 = {"type": "supervised", "input_field": "tag_text", "output_field": "text", "mask_inputs": True}


@dataclass(frozen=True)
class Schedule:
    """Block size, batch size (sequences), the step at which each stage begins, and the number of steps."""

    block: int
    batch: int
    starts: list[int]
    n_steps: int


def plan_schedule(sequences: Sequence[int], smallest_weight: float) -> Schedule:
    """A schedule for stages of these numbers of ``sequences`` (s,), s > 0; all sizes are powers of two.

    The block is the largest that leaves the smallest stage eight of them, but at least four sequences of the
    smallest weight, and at most 2048. A stage's beginning moves to the nearest multiple of the block, and every
    stage has one block at least.
    """
    block = _power_of_two(min(max(min(sequences) // 8, 4 / smallest_weight), _LARGEST_BLOCK))
    batch = min(block, _LARGEST_BATCH)
    starts, until = [0], 0
    for size in sequences[:-1]:
        until += size
        blocks = max(round(until / block), starts[-1] * batch // block + 1)
        starts.append(blocks * block // batch)
    n_steps = max(-(-sum(sequences) // batch), starts[-1] + block // batch)
    return Schedule(block, batch, starts, n_steps)


def _power_of_two(size: float) -> int:
    """The largest power of two up to ``size``."""
    return 1 << max(int(size), 1).bit_length() - 1


def _write(export: Export) -> None:
    stages = export.stages()
    supervised = {each.name for stage in stages if masks_tags(export, stage) for each in stage}
    for data_set in export.data_sets():
        rows = _rows(export, data_set, supervised=data_set.name in supervised)
        export.write_json_lines(_path(data_set), rows)
    length = export.options.sequence_length or _SEQUENCE_LENGTH
    sequences = [max(1, sum(each.n_tokens for each in stage) // length) for stage in stages]
    weights = [{each.name: each.token_share for each in stage if each.n_tokens} for stage in stages]
    # What has less than a sequence in its whole stage would not come into any block that fits the stage.
    drawn = [w for size, found in zip(sequences, weights, strict=True) for w in found.values() if w * size >= 1]
    schedule = plan_schedule(sequences, min(drawn, default=1.0))
    _warn(export, schedule, sequences, weights, supervised)
    staged = [[start, each] for start, each in zip(schedule.starts, weights, strict=True)]
    common = {
        "train_weights": staged if len(staged) > 1 else weights[0],
        "mixture_block_size": schedule.block,
        "stop_strategy": "restart",
        "tokenizer": export.tokenization.tokenizer,
        "shuffle": True,
        "permutation_type": "feistel",
    }
    trainer = {"train_batch_size": schedule.batch, "num_train_steps": schedule.n_steps}
    comment = (
        f"Steps are for sequences of {length:,} tokens and batches of {schedule.batch:,} sequences. For other "
        f"batches keep step x batch the same, and a multiple of {schedule.block:,}."
    )
    components = {each.name: _component(export, each, supervised) for each in export.data_sets()}
    export.write_yaml("levanter.yaml", {"data": {"components": components, **common}, "trainer": trainer}, comment)
    configs = {each.name: _configuration(export, each, supervised) for each in export.data_sets()}
    export.write_yaml("levanter-1.2.yaml", {"data": {"configs": configs, **common}, "trainer": trainer}, comment)
    write_readme(export, "Levanter", data_set_table(export.data_sets()), _usage(export, schedule, length))


def _rows(export: Export, data_set: DataSet, *, supervised: bool) -> Iterator[Mapping[str, Any]]:
    for table in data_set.tables():
        ids = table["id"].to_pylist()
        if supervised:
            tags, texts = table["tag_text"].to_pylist(), table["text"].to_pylist()
            for identifier, tag, text in zip(ids, tags, texts, strict=True):
                yield {"id": identifier, "tag_text": tag, "text": text}
        else:
            for identifier, text in zip(ids, joined_texts(export, table), strict=True):
                yield {"id": identifier, "text": text}


def _path(data_set: DataSet) -> str:
    return f"data/{data_set.name}.jsonl.gz"


def _component(export: Export, data_set: DataSet, supervised: set[str]) -> dict[str, Any]:
    """A component of Levanter as ``marin-levanter`` has it."""
    component: dict[str, Any] = {"source": {"type": "url", "train_urls": [export.seen(_path(data_set))]}}
    return component | ({"format": dict(_SUPERVISED)} if data_set.name in supervised else {})


def _configuration(export: Export, data_set: DataSet, supervised: set[str]) -> dict[str, Any]:
    """A data set of Levanter 1.2."""
    configuration: dict[str, Any] = {"train_urls": [export.seen(_path(data_set))]}
    return configuration | ({"format": dict(_SUPERVISED_1_2)} if data_set.name in supervised else {})


def _warn(
    export: Export,
    schedule: Schedule,
    sequences: list[int],
    weights: list[dict[str, float]],
    supervised: set[str],
) -> None:
    plan = export.manifest.tags
    for stage, found in zip(export.manifest.stages, weights, strict=True):
        lost = [name for name, weight in found.items() if weight * schedule.block < 1]
        if lost:
            export.warn(
                f"in stage {stage.name} the weights of {', '.join(lost)} are below one sequence in a block of "
                f"{schedule.block:,}: Levanter draws nothing from them"
            )
    until = 0
    for number, (stage, start) in enumerate(zip(export.manifest.stages[1:], schedule.starts[1:], strict=True)):
        until += sequences[number]
        moved = start * schedule.batch - until
        if abs(moved) > 0.01 * sequences[number]:
            export.warn(
                f"stage {stage.name} begins {abs(moved):,} sequences {'later' if moved > 0 else 'earlier'} than "
                f"in the mixture, for it must begin at a multiple of the block of {schedule.block:,}"
            )
    planned, total = schedule.n_steps * schedule.batch, sum(sequences)
    if planned > 1.1 * total:
        export.warn(
            f"the schedule has {planned:,} sequences and the mixture {total:,}, for steps and blocks are whole: "
            "data sets begin again"
        )
    if export.tokenization.tokenizer in (DEFAULT_TOKENIZER, "bytes"):
        export.warn(
            f"levanter.yaml names the tokenizer {export.tokenization.tokenizer}, which Levanter does not know: "
            "write the hub id or folder of one there, or name one as tokenizer of the export"
        )
    if supervised:
        export.warn(
            "Levanter 1.2 tokenizes tag and text in one string and masks as many tokens as the tag alone has; "
            "newer Levanter (levanter.yaml) tokenizes them apart"
        )
        if plan is not None and plan.scope != "document":
            export.warn(
                "the tag stands once before each document here, for Levanter's supervised form has one input"
            )
    export.warn(
        "Levanter packs and shuffles sequences inside each data set: the order of the rows is its own; weights "
        "are shares of the texts' tokens, without tags, BOS and EOS"
    )


def _usage(export: Export, schedule: Schedule, length: int) -> str:
    parts = [
        "`levanter.yaml` is for Levanter as `marin-levanter` (components), `levanter-1.2.yaml` for Levanter 1.2 "
        "(configs). Merge one into your configuration:",
        code(f"python -m levanter.main.train_lm --config_path {export.seen('levanter.yaml')}"),
        f"The schedule is {schedule.n_steps:,} steps of {schedule.batch:,} sequences of {length:,} tokens.",
    ]
    return "\n\n".join(parts)


LEVANTER = ExportFormat(
    name="levanter",
    title="JSON lines and YAML with staged weights",
    trainer="Levanter",
    tokenized=False,
    document=None,
    write=_write,
    snippet="python -m levanter.main.train_lm --config_path {root}/levanter.yaml",
    masks=True,
    stages=True,
)
