"""OLMo-core: raw token files, label masks, and a source mixture for each stage.

OLMo-core's ``.npy`` files are raw arrays without NumPy's header: a header would be read as tokens. A label mask is
one byte a token, 1 where the token counts in the loss. ``SourceMixtureList`` reads the YAML, and has no masks;
the composable data loader has them, so ``olmo_core_data.py`` builds the same stages with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixwright.jobs.exports.format import DataSet, Export, ExportFormat
from mixwright.jobs.exports.megatron import schedule_table, stage_suffixes
from mixwright.jobs.exports.readme import code, data_set_table, write_readme
from mixwright.jobs.exports.tokens import masks_tags, require_eos, shares, token_rows, vocabulary_size

_MIXTURE = """import yaml
from olmo_core.data.source_mixture import SourceMixtureDatasetConfig, SourceMixtureList

sources = SourceMixtureList.from_dict(yaml.safe_load(open("{file}")))
mixture = SourceMixtureDatasetConfig(source_list=sources, requested_tokens=..., global_batch_size=...)"""
_COMPOSABLE = '''"""The stages of this mixture as instance sources of OLMo-core: each token once, with its mask."""

from olmo_core.data import NumpyDatasetDType, TokenizerConfig
from olmo_core.data.composable import ConcatAndChunkInstanceSourceConfig, ConcatenatedInstanceSourceConfig

STAGES = {stages}


def sources(stage: str, tokenizer: TokenizerConfig, sequence_length: int) -> ConcatenatedInstanceSourceConfig:
    """All data sets of a stage, one after the other; the data loader shuffles their instances."""
    return ConcatenatedInstanceSourceConfig(
        sources=[
            ConcatAndChunkInstanceSourceConfig.from_npy(
                part["tokens"],
                tokenizer=tokenizer,
                sequence_length=sequence_length,
                dtype=NumpyDatasetDType.{dtype},
                label_mask_paths=[part["label_mask"]] if part["label_mask"] else None,
                label=part["label"],
            )
            for part in STAGES[stage]
        ]
    )
'''


def _write(export: Export) -> None:
    require_eos(export, "OLMo-core")
    dtype = _dtype(vocabulary_size(export))
    tokens: dict[str, int] = {}
    parts: dict[str, list[dict[str, str | None]]] = {}
    suffixes = stage_suffixes(export)
    for stage, suffix in zip(export.stages(), suffixes, strict=True):
        masked = masks_tags(export, stage)
        for data_set in stage:
            tokens[data_set.name] = _write_data_set(export, data_set, dtype, masked=masked)
        export.write_yaml(f"sources{suffix}.yaml", _sources(export, stage, tokens))
        parts[stage[0].stage] = [_part(export, each, masked=masked) for each in stage]
        if masked:
            export.warn(
                f"OLMo-core's source mixtures have no label masks: with sources{suffix}.yaml the tags are trained "
                "on; use olmo_core_data.py, which gives the masks"
            )
    export.write_text("olmo_core_data.py", _module(parts, dtype.name))
    export.warn("OLMo-core cuts each data set into instances and shuffles them: the order of the rows is its own")
    _readme(export, tokens, suffixes, dtype.name)


def _write_data_set(export: Export, data_set: DataSet, dtype: np.dtype[np.integer], *, masked: bool) -> int:
    """Write the tokens, and the mask if there is one; returns the number of tokens."""
    n_tokens = 0
    token_path, mask_path = export.path(_tokens(data_set)), export.path(_mask(data_set)) if masked else None
    token_path.write_bytes(b"")
    for _, ids, mask in token_rows(export, data_set):
        with token_path.open("ab") as sink:
            ids.astype(dtype).tofile(sink)
        if mask_path is not None:
            with mask_path.open("ab") as sink:
                mask.tofile(sink)
        n_tokens += len(ids)
    export.count_rows(_tokens(data_set), data_set.n_rows)
    return n_tokens


def _tokens(data_set: DataSet) -> str:
    return f"data/{data_set.name}/tokens.npy"


def _mask(data_set: DataSet) -> str:
    # In a folder of its own: a pattern such as data/*/*.npy must not take masks for tokens.
    return f"label_masks/{data_set.name}/mask.npy"


def _dtype(vocabulary: int) -> np.dtype[np.integer]:
    """The smallest unsigned integers that hold the ids: what OLMo-core takes where none is named."""
    for bits in (8, 16, 32):
        if vocabulary - 1 <= np.iinfo(f"u{bits // 8}").max:
            return np.dtype(f"<u{bits // 8}")
    return np.dtype("<u8")


def _sources(export: Export, stage: list[DataSet], tokens: dict[str, int]) -> dict[str, Any]:
    return {
        "sources": [
            {
                "source_name": each.name,
                "target_ratio": share,
                # Repeats are in the files already.
                "max_repetition_ratio": 1.0,
                "max_source_fraction": 1.0,
                "paths": [export.seen(_tokens(each))],
            }
            for each, share in zip(stage, shares(tokens, stage), strict=True)
        ]
    }


def _part(export: Export, data_set: DataSet, *, masked: bool) -> dict[str, str | None]:
    return {
        "label": data_set.name,
        "tokens": export.seen(_tokens(data_set)),
        "label_mask": export.seen(_mask(data_set)) if masked else None,
    }


def _module(parts: dict[str, list[dict[str, str | None]]], dtype: str) -> str:
    lines = ["{"]
    for stage, data_sets in parts.items():
        lines += [f"    {stage!r}: [", *(f"        {each!r}," for each in data_sets), "    ],"]
    return _COMPOSABLE.replace("{stages}", "\n".join([*lines, "}"])).replace("{dtype}", dtype)


def _readme(export: Export, tokens: dict[str, int], suffixes: list[str], dtype: str) -> None:
    usage = [
        f"Files are raw {dtype} arrays. `TokenizerConfig` has `eos_token_id={export.options.eos}`; its tokenizer "
        f"is {export.tokenization.tokenizer}.",
        "With the composable loader, every token once and with its label mask:",
        code(
            "import olmo_core_data\n"
            "source = olmo_core_data.sources("
            f"{export.manifest.stages[0].name!r}, tokenizer, sequence_length=...).build(work_dir)",
            "python",
        ),
        "As a source mixture, where `requested_tokens` is at most the stage's tokens below:",
        code(_MIXTURE.replace("{file}", export.seen(f"sources{suffixes[0]}.yaml")), "python"),
    ]
    if len(suffixes) > 1:
        usage.append(
            "The mixture has stages: train on one, and go on from the checkpoint with the next one's sources."
        )
    write_readme(
        export,
        "OLMo-core",
        data_set_table(export.data_sets(), tokens),
        "\n\n".join(usage),
        "## How long a stage is\n\n" + schedule_table(export, tokens),
    )


OLMO_CORE = ExportFormat(
    name="olmo-core",
    title="Raw token files, label masks, source mixtures and a Python module",
    trainer="OLMo-core",
    tokenized=True,
    document=None,
    write=_write,
    snippet=_MIXTURE.replace("{file}", "{root}/sources{stage}.yaml"),
    masks=True,
    stages=True,
)
