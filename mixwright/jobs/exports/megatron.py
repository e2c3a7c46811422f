"""Megatron-LM: indexed data sets and blend files.

``--data-args-path`` reads a file of weights and prefixes, separated by white space; an even list in which some
weight is no number is read as prefixes without weights, silently. So every weight is written with a point, no
prefix has white space, and none reads as a number.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mixwright.errors import ConfigError
from mixwright.jobs.exports.format import DataSet, Export, ExportFormat
from mixwright.jobs.exports.indexed import prefix, write_data_set
from mixwright.jobs.exports.names import safe_names
from mixwright.jobs.exports.readme import code, data_set_table, write_readme
from mixwright.jobs.exports.tokens import require_eos, shares

_MAX_SOURCES = 32_766
"""The blend's index holds the number of a data set in 16 bits."""


def write_indexed(export: Export, trainer: str) -> dict[str, int]:
    """Write every data set; returns the tokens of each, by name.

    Raises ConfigError without an end token, for a root that a blend file cannot hold, for too many data sets.
    """
    require_eos(export, trainer)
    check_root(export, trainer)
    largest = max(len(stage) for stage in export.stages())
    if largest > _MAX_SOURCES:
        raise ConfigError(f"{trainer} blends at most {_MAX_SOURCES:,} data sets, and this mixture has {largest:,}")
    return {each.name: write_data_set(export, each) for each in export.data_sets()}


def check_root(export: Export, trainer: str) -> None:
    """Raise ConfigError for a root with white space, which would end a path in a list of paths."""
    if any(character.isspace() for character in export.root):
        raise ConfigError(
            f"{trainer} splits lists of paths at white space: give a root without it instead of {export.root!r}"
        )


def blend(export: Export, stage: list[DataSet], tokens: Mapping[str, int]) -> list[str]:
    """Weights and prefixes in turn, as strings: the weights are shares of the tokens written, and sum to 1."""
    weights = shares(dict(tokens), stage)
    pairs = [(weight_text(weight), export.seen(prefix(each))) for each, weight in zip(stage, weights, strict=True)]
    return [text for pair in pairs for text in pair]


def weight_text(weight: float) -> str:
    """The shortest decimal number that is exactly the weight, always with a point and never with an exponent."""
    return np.format_float_positional(weight, unique=True, trim="0")


def stage_suffixes(export: Export) -> list[str]:
    """What the file names of the stages end in: nothing for the only one."""
    names = [stage.name for stage in export.manifest.stages]
    return [""] if len(names) == 1 else [f"-{name}" for name in safe_names(names)]


def schedule_table(export: Export, tokens: Mapping[str, int]) -> str:
    """Tokens of each stage, and the training samples at which it ends where the sequence length is known."""
    length = export.options.sequence_length
    heads = ["stage", "tokens", "tokens until its end"]
    heads += [f"samples of {length:,} tokens until its end"] if length else []
    lines, until = [], 0
    for stage, data_sets in zip(export.manifest.stages, export.stages(), strict=True):
        size = sum(tokens[each.name] for each in data_sets)
        until += size
        line = [stage.name, f"{size:,}", f"{until:,}"]
        lines.append(line + ([f"{until // length:,}"] if length else []))
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines])


def _write(export: Export) -> None:
    tokens = write_indexed(export, "Megatron-LM")
    suffixes = stage_suffixes(export)
    for stage, suffix in zip(export.stages(), suffixes, strict=True):
        flat = blend(export, stage, tokens)
        lines = [" ".join(flat[place : place + 2]) for place in range(0, len(flat), 2)]
        export.write_text(f"blend{suffix}.txt", "\n".join(lines))
        export.write_json(f"per-split{suffix}.json", {"train": flat, "valid": None, "test": None})
    export.warn(
        "Megatron-LM shuffles inside each data set and interleaves them by weight: the order of rows is its own"
    )
    write_readme(
        export,
        "Megatron-LM",
        data_set_table(export.data_sets(), tokens),
        _usage(export, suffixes),
        "## How long a stage is\n\n" + schedule_table(export, tokens),
    )


def _usage(export: Export, suffixes: list[str]) -> str:
    first = f"--data-args-path {export.seen(f'blend{suffixes[0]}.txt')} --split 100,0,0 --eval-iters 0"
    parts = [
        "Weights are shares of the tokens written, so all data sets come to their end together.",
        code(first),
        "`--split 100,0,0` trains on every document. With validation data of your own, fill in `valid` and `test` "
        f"of `per-split{suffixes[0]}.json` instead and give `--per-split-data-args-path` without `--split`.",
        f"The tokenizer's end-of-document id must be {export.options.eos}, its tokenizer "
        f"{export.tokenization.tokenizer}.",
    ]
    if len(suffixes) > 1:
        parts.append(
            "The mixture has stages: there is one blend file for each. Name the iterations at which the stages "
            "end in `--phase-transition-iterations` (samples until its end, divided by the global batch size, "
            "which must be fixed); the program saves and exits there. Start it again with the next "
            "stage's blend file:"
        )
        parts += [
            code(f"--data-args-path {export.seen(f'blend{suffix}.txt')} --split 100,0,0") for suffix in suffixes
        ]
    return "\n\n".join(parts)


MEGATRON = ExportFormat(
    name="megatron",
    title="Indexed data sets (.bin, .idx) and blend files",
    trainer="Megatron-LM",
    tokenized=True,
    document=None,
    write=_write,
    snippet="--data-args-path {root}/blend{stage}.txt --split 100,0,0",
    masks=False,
    stages=True,
)
