"""Load every export with the library that it is for: ``make check-exports``.

A small mixture with tags, stages and repeats is exported, loaded by the library as its users load it, and
compared with the rows as mixwright serves them. What is not installed is said and
left out. Other checks of the same files, without the libraries, are in tests/test_exports.py.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
import types
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
warnings.simplefilter("ignore")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from check_exports_loaders import LOADERS  # noqa: E402
from support import document_table, published_corpus  # noqa: E402

from mixwright.jobs.exports.export import export_mixture  # noqa: E402
from mixwright.jobs.exports.format import ExportOptions  # noqa: E402
from mixwright.jobs.select import run_select  # noqa: E402
from mixwright.progress import NoProgress  # noqa: E402
from mixwright.selectors.requests import SelectRequest  # noqa: E402
from mixwright.selectors.streams import MixtureStream  # noqa: E402
from mixwright.store import Store  # noqa: E402

BOS, EOS, LENGTH = 256, 257, 64
STAGES = ("tagged", "cooldown")


@dataclass(frozen=True)
class Sample:
    """The mixture, and where its exports go."""

    stream: MixtureStream
    store: Store
    folder: Path

    def export(self, name: str, label: str = "", **options: Any) -> Path:
        out = self.folder / f"{name}{label}"
        export_mixture(self.store, self.stream, name, ExportOptions(**options), out, NoProgress())
        return out

    def rows(self, stage: str | None = None, component: str | None = None) -> list[dict[str, Any]]:
        """Rows as the stream serves them."""
        rows = pa.concat_tables(self.stream.read()).to_pylist()
        return [row for row in rows if stage in (None, row["stage"]) and component in (None, row["component"])]

    def components(self) -> list[str]:
        return [each.name for each in self.stream.manifest.components]


def tokens(row: dict[str, Any]) -> tuple[list[int], list[bool]]:
    """Token ids and loss mask of a row, by its bytes."""
    tag, text = list(row["tag_text"].encode()), list(row["text"].encode())
    return [BOS, *tag, *text, EOS], [not tag] + [False] * len(tag) + [True] * (len(text) + 1)


def make_sample(folder: Path) -> Sample:
    store = Store(folder / "home")
    rng = np.random.default_rng(0)
    for name, n, longest in (("wiki", 60, 30), ("code", 12, 200), ("Web.2", 90, 8)):
        texts = [f"{name} {i} é\n" + "words " * int(rng.integers(1, longest)) for i in range(n)]
        domains = [f"{name}{i % 3}.org" if i % 4 else None for i in range(n)]
        counts = [len(text.encode()) for text in texts]
        table = document_table(texts, source=name, domains=domains, n_tokens=counts)
        published_corpus(store, name, table, shard_rows=20)
    selector = {"kind": "domain-tags", "preset": "meco", "weights": "uniform", "max_epochs": 9, "cooldown": 0.3}
    request = {"name": "sample", "sources": ["wiki", "code", "Web.2"], "selector": selector}
    run_select(store, SelectRequest.model_validate({**request, "budget": {"tokens": 40_000}}), NoProgress())
    return Sample(MixtureStream.open(store, "sample"), store, folder)


def check_megatron(sample: Sample) -> str:
    """Byte by byte what IndexedDatasetBuilder writes, and blended by BlendedMegatronDatasetBuilder."""
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
    from megatron.core.datasets.utils import get_blend_from_list

    out = sample.export("megatron", bos=BOS, eos=EOS)
    for stage in STAGES:
        prefixes, weights = get_blend_from_list((out / f"blend-{stage}.txt").read_text().split())
        same(json.loads((out / f"per-split-{stage}.json").read_text())["train"][1::2], prefixes)
        sizes = []
        for prefix, component in zip(prefixes, sample.components(), strict=True):
            found = [sequence.tolist() for sequence in IndexedDataset(prefix)]
            same(found, [tokens(row)[0] for row in sample.rows(stage, component)])
            builder = IndexedDatasetBuilder(str(out / "again.bin"), dtype=DType.optimal_dtype(EOS + 1))
            for sequence in found:
                builder.add_document(torch.tensor(sequence), [len(sequence)])
            builder.finalize(str(out / "again.idx"))
            for suffix in (".bin", ".idx"):
                same((out / f"again{suffix}").read_bytes(), Path(prefix + suffix).read_bytes())
            sizes.append(sum(map(len, found)))
        near(weights, [size / sum(sizes) for size in sizes], 1e-9)
        _blended(prefixes, weights, sizes, out)
    return "megatron-core"


def _blended(prefixes: list[str], weights: list[float], sizes: list[int], out: Path) -> None:
    """A stage drawn by Megatron's own blending draws each data set's tokens about once."""
    import torch
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    tokenizer = types.SimpleNamespace(
        eod=EOS, pad=0, vocab_size=EOS + 1, unique_identifiers={"name": "bytes"}, library="bytes"
    )
    configuration = GPTDatasetConfig(
        random_seed=0,
        sequence_length=LENGTH,
        blend=(prefixes, weights),
        split="100,0,0",
        path_to_cache=str(out / "cache"),
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        mid_level_dataset_surplus=0.005,
    )
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=0, world_size=1)
    n_samples = sum(sizes) // LENGTH
    built = BlendedMegatronDatasetBuilder(GPTDataset, [n_samples, 0, 0], lambda: True, configuration).build()
    drawn = Counter(int(built[0][number]["dataset_id"]) for number in range(n_samples))
    near([drawn[i] * LENGTH for i in range(len(sizes))], sizes, 2 * LENGTH)


def check_nemo(sample: Sample) -> str:
    """NeMo gives its list to Megatron's get_blend_from_list; NeMo itself is not loaded here."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import get_blend_from_list

    out = sample.export("nemo", bos=BOS, eos=EOS)
    for stage in STAGES:
        prefixes, weights = get_blend_from_list(json.loads((out / f"nemo2-{stage}.json").read_text())["paths"])
        first = yaml.safe_load((out / f"nemo1-{stage}.yaml").read_text())["model"]["data"]["data_prefix"]
        same([first[::2], first[1::2]], [weights, prefixes])
        for prefix, component in zip(prefixes, sample.components(), strict=True):
            same(len(IndexedDataset(prefix)), len(sample.rows(stage, component)))
    return "megatron-core"


def check_gpt_neox(sample: Sample) -> str:
    """GPT-NeoX is on no package index: its files are Megatron's, and megatron-core reads tokens and labels."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    out = sample.export("gpt-neox", bos=BOS, eos=EOS)
    configuration = yaml.safe_load((out / "data-tagged.yml").read_text())
    paths = zip(
        configuration["train_data_paths"],
        configuration["train_label_data_paths"],
        sample.components(),
        strict=True,
    )
    for path, label_path, component in paths:
        rows = [tokens(row) for row in sample.rows("tagged", component)]
        same([each.tolist() for each in IndexedDataset(path)], [ids for ids, _ in rows])
        labels = [np.where(mask, ids, -100).tolist() for ids, mask in rows]
        same([each.tolist() for each in IndexedDataset(label_path)], labels)
    return "megatron-core"


def check_olmo_core(sample: Sample) -> str:
    """Source mixtures are built, and instances of the composable loader have tokens and masks of the stream."""
    from olmo_core.data import TokenizerConfig
    from olmo_core.data.source_mixture import SourceMixtureDatasetConfig, SourceMixtureList

    out = sample.export("olmo-core", bos=BOS, eos=EOS)
    module = _load_module(out / "olmo_core_data.py")
    tokenizer = TokenizerConfig(vocab_size=EOS + 1, eos_token_id=EOS, pad_token_id=EOS)
    for stage in STAGES:
        sources = SourceMixtureList.from_dict(yaml.safe_load((out / f"sources-{stage}.yaml").read_text()))
        sources.validate()
        rows = [[tokens(row) for row in sample.rows(stage, each)] for each in sample.components()]
        sizes = [sum(len(ids) for ids, _ in part) for part in rows]
        asked = sum(sizes) // (4 * LENGTH) * 4 * LENGTH
        mixture = SourceMixtureDatasetConfig(
            source_list=sources, requested_tokens=asked, global_batch_size=4 * LENGTH, render_tables=False
        ).build(npdtype=np.uint16, sequence_length=LENGTH)
        near([sum(each.tokens for each in part.path_tokens) for part in mixture.sources], sizes, 5 * LENGTH)
        built = module.sources(stage, tokenizer, LENGTH).build(str(out / "work"))
        instances = [built[number] for number in range(len(built))]
        ids = [_cut([each for row, _ in part for each in row]) for part in rows]
        masks = [_cut([each for _, mask in part for each in mask]) for part in rows]
        same([np.asarray(each["input_ids"]).tolist() for each in instances], [one for part in ids for one in part])
        if stage == "tagged":
            found = [np.asarray(each["label_mask"]).tolist() for each in instances]
            same(found, [one for part in masks for one in part])
    return "ai2-olmo-core"


def _cut(flat: list[Any]) -> list[list[Any]]:
    return [flat[place : place + LENGTH] for place in range(0, len(flat) - LENGTH + 1, LENGTH)]


def check_mds(sample: Sample) -> str:
    """Shards are what MDSWriter writes, and one epoch of a stage draws each row once."""
    streaming = _streaming()
    from mixwright.jobs.exports.mds import TEXT_COLUMNS, TOKEN_COLUMNS

    for label, columns, options in (
        ("-text", TEXT_COLUMNS, {}),
        ("-tokens", TOKEN_COLUMNS, {"tokenizer": "bytes", "bos": BOS, "eos": EOS}),
    ):
        out = sample.export("mds", label, **options)
        for stage in STAGES:
            streams = yaml.safe_load((out / f"streams-{stage}.yaml").read_text())["train_loader"]["dataset"][
                "streams"
            ]
            parts = [streaming.Stream(**stream) for stream in streams.values()]
            data = streaming.StreamingDataset(
                streams=parts, batch_size=1, shuffle=True, shuffle_seed=1, validate_hash="sha1"
            )
            drawn = [_plain(each) for each in data]
            wanted = [_sample_of(row, columns) for row in sample.rows(stage)]
            same(sorted(map(repr, drawn)), sorted(map(repr, wanted)))
            for stream in streams.values():
                _written_again(streaming, Path(stream["local"]), columns)
    return "mosaicml-streaming"


def _written_again(streaming: Any, folder: Path, columns: dict[str, str]) -> None:
    again = folder.with_name(f"{folder.name}-again")
    with streaming.MDSWriter(out=str(again), columns=columns, hashes=["sha1"]) as writer:
        for each in streaming.LocalDataset(local=str(folder)):
            writer.write(each)
    for path in folder.iterdir():
        if path.suffix in (".mds", ".json"):
            same(path.read_bytes(), (again / path.name).read_bytes())


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: np.asarray(value).tolist() if isinstance(value, np.ndarray | np.generic) else value
        for name, value in sorted(found.items())
    }


def _sample_of(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    if "text" in columns:
        return {name: row[name] or "" for name in columns}
    ids, mask = tokens(row)
    return {
        "domain": row["domain"] or "",
        "indices": [[0, len(ids)]],
        "input_ids": ids,
        "length": len(ids),
        "mask": [int(each) for each in mask],
    }


def _streaming() -> Any:
    """The library, without torchvision: it imports it for images, and there is no small build of it."""
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            sys.modules[f"torchvision{name}"] = types.ModuleType(f"torchvision{name}")
        sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
        sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
    import streaming

    return streaming


def check_huggingface(sample: Sample) -> str:
    """The default configuration is the stream; the card's own program draws the stages."""
    import datasets

    datasets.disable_progress_bars()
    out = sample.export("huggingface")
    cache = str(sample.folder / "cache")
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=cache)
    same(loaded.to_list(), sample.rows())
    for stage in STAGES:
        for component in sample.components():
            part = datasets.load_dataset(str(out), f"{stage}-{component}", split="train", cache_dir=cache)
            same(part.to_list(), sample.rows(stage, component))
    programs = (out / "README.md").read_text().split("```python\n")[1:]
    names: dict[str, Any] = {}
    exec(programs[0].split("```")[0], names)
    same(list(names["rows"]), sample.rows())
    for stage, program in zip(STAGES, programs[1:], strict=True):
        exec(program.split("```")[0], names)
        drawn = Counter(row["component"] for row in names["rows"])
        wanted = Counter(row["component"] for row in sample.rows(stage))
        same(drawn.total(), wanted.total())
        near([drawn[each] for each in wanted], list(wanted.values()), 5 * drawn.total() ** 0.5)
    return "datasets"


def check_levanter(sample: Sample) -> str:
    """The configuration is decoded, its schedule accepted, and its supervised form masks just the tags."""
    import draccus
    from levanter.data import ListAsyncDataset
    from levanter.data.mixture import MixtureDataset, rescale_mixture_schedule_for_batch_schedule
    from levanter.data.text.datasets import LmDataConfig
    from levanter.schedule import BatchSchedule

    out = sample.export("levanter", sequence_length=LENGTH)
    configuration = yaml.safe_load((out / "levanter.yaml").read_text())
    data = draccus.decode(LmDataConfig, configuration["data"])
    schedule = BatchSchedule(configuration["trainer"]["train_batch_size"])
    parts = {name: ListAsyncDataset([name]) for name in data.components}
    weights = rescale_mixture_schedule_for_batch_schedule(data.train_weights, schedule)
    mixture = MixtureDataset(parts, weights, block_size=data.mixture_block_size, key=0)
    first, begin = mixture.weight_stages[0][1], weights[1][0]
    drawn = Counter(mixture.as_sync_dataset()[number] for number in range(begin))
    near([drawn[name] / begin for name in first], list(first.values()), len(first) / data.mixture_block_size)
    same({mixture.as_sync_dataset()[begin + number].split("-")[0] for number in range(20)}, {"cooldown"})
    processor = data.components["tagged-wiki"].format.build_preprocessor(_Bytes())
    for row, found in zip(sample.rows("tagged", "wiki"), processor(sample.rows("tagged", "wiki")), strict=True):
        # Levanter puts a space before the end token, and its weights are those of the next token.
        ids, mask = tokens(row)
        same(found["input_ids"].tolist(), [*ids[:-1], ord(" "), EOS])
        same(found["loss_weights"].tolist(), [float(each) for each in [*mask[1:-1], True, True]] + [0.0])
    return "marin-levanter"


class _Bytes:
    """The bytes tokenizer as Levanter takes tokenizers."""

    bos_token_id, eos_token_id, eos_token = BOS, EOS, "</s>"

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ended = text.endswith(self.eos_token)
        return list(text.removesuffix(self.eos_token).encode()) + [EOS] * ended


CHECKS: dict[str, Callable[[Sample], str]] = {
    "gpt-neox": check_gpt_neox,
    "huggingface": check_huggingface,
    "levanter": check_levanter,
    "mds": check_mds,
    "megatron": check_megatron,
    "nemo": check_nemo,
    "olmo-core": check_olmo_core,
    **LOADERS,
}


def same(found: Any, wanted: Any) -> None:
    if found != wanted:
        raise ValueError(f"found {str(found)[:200]}, wanted {str(wanted)[:200]}")


def near(found: list[float], wanted: list[float], tolerance: float) -> None:
    if not np.allclose(found, wanted, rtol=0, atol=tolerance):
        raise ValueError(f"found {found}, wanted {wanted} within {tolerance}")


def _load_module(path: Path) -> Any:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise ValueError(f"{path} is no module")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def main() -> int:
    wanted = sys.argv[1:] or list(CHECKS)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        sample = make_sample(Path(folder))
        for name in wanted:
            try:
                library = CHECKS[name](sample)
                print(f"{name}: loaded by {library} {importlib.metadata.version(library)}", flush=True)
            except ImportError as error:
                print(f"{name}: left out, {error}", flush=True)
            except Exception as error:  # noqa: BLE001 - a report of all formats, whatever their libraries raise
                failed += 1
                print(f"{name}: FAILED, {type(error).__name__}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
