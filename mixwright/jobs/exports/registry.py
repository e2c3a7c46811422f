"""The export formats, by name."""

from __future__ import annotations

from mixwright.jobs.exports.axolotl import AXOLOTL
from mixwright.jobs.exports.croissant import CROISSANT
from mixwright.jobs.exports.dolma import DOLMA
from mixwright.jobs.exports.format import ExportFormat
from mixwright.jobs.exports.gpt_neox import GPT_NEOX
from mixwright.jobs.exports.huggingface import HUGGINGFACE
from mixwright.jobs.exports.levanter import LEVANTER
from mixwright.jobs.exports.llama_factory import LLAMA_FACTORY
from mixwright.jobs.exports.mds import MDS
from mixwright.jobs.exports.megatron import MEGATRON
from mixwright.jobs.exports.mlflow import MLFLOW
from mixwright.jobs.exports.nemo import NEMO
from mixwright.jobs.exports.olmo_core import OLMO_CORE
from mixwright.jobs.exports.open_instruct import OPEN_INSTRUCT
from mixwright.jobs.exports.openlineage import OPENLINEAGE
from mixwright.jobs.exports.torchtitan import TORCHTITAN
from mixwright.jobs.exports.trl import TRL

_FORMATS: tuple[ExportFormat, ...] = (
    AXOLOTL,
    CROISSANT,
    DOLMA,
    GPT_NEOX,
    HUGGINGFACE,
    LEVANTER,
    LLAMA_FACTORY,
    MDS,
    MEGATRON,
    MLFLOW,
    NEMO,
    OLMO_CORE,
    OPENLINEAGE,
    OPEN_INSTRUCT,
    TORCHTITAN,
    TRL,
)

EXPORT_FORMATS: dict[str, ExportFormat] = {
    each.name: each for each in sorted(_FORMATS, key=lambda each: each.name)
}
