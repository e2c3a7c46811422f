"""Exports for torchtitan, open-instruct, LLaMA-Factory, axolotl, TRL and Dolma, read by their published rules."""

from __future__ import annotations

import glob
import gzip
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from exports_support import by_data_set, export, published_mixtures, served

from mixwright.errors import ConfigError
from mixwright.jobs.exports.dolma import tag_spans
from mixwright.schemas.mixtures import TagPlan
from mixwright.selectors.streams import Tokenization
from mixwright.store import Store

TOKENIZER = "all-minilm-l6-v2"
TOKENS = {"tokenizer": TOKENIZER, "bos": 101, "eos": 102}
EXACT = ["plain", "staged", "dropout", "paragraph", "unmasked"]
"""Plans that pieces of text can express: a tag on every training window needs tokens."""


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return published_mixtures(tmp_path_factory.mktemp("home"))


def json_lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [json.loads(line) for line in lines]


def pieces(mixture: str, row: dict[str, Any]) -> list[tuple[bool, str]]:
    """A row as text with and without loss: made from the corpus's texts, which have three known paragraphs."""
    if not row["tag_text"]:
        return [(True, row["text"])]
    parts = [row["text"]]
    if mixture == "paragraph":
        found = re.fullmatch(r"(.*?\n\n  )(second.*?\n\n)(.*)", row["text"], re.DOTALL)
        assert found is not None
        parts = list(found.groups())
    return [each for part in parts for each in ((mixture == "unmasked", row["tag_text"]), (True, part))]


def joined(mixture: str, row: dict[str, Any]) -> str:
    return "".join(text for _, text in pieces(mixture, row))


def stage_names(store: Store, mixture: str) -> list[str]:
    return [stage.name for stage in store.manifest(mixture, "mixture").stages]  # type: ignore[union-attr]


def data_set_name(store: Store, mixture: str, stage: str, component: str) -> str:
    return component if len(stage_names(store, mixture)) == 1 else f"{stage}-{component}"


class TestAxolotl:
    @pytest.mark.parametrize("mixture", EXACT)
    def test_segments_are_the_rows_in_order_and_only_masked_tags_have_no_loss(
        self, mixtures: Store, tmp_path: Path, mixture: str
    ) -> None:
        export(mixtures, mixture, "axolotl", tmp_path / "out")
        found = json_lines(tmp_path / "out/mixture.jsonl")
        expected = [pieces(mixture, row) for row in served(mixtures, mixture)]
        assert [[(each["label"], each["text"]) for each in row["segments"]] for row in found] == expected

    @pytest.mark.parametrize("mixture", [*EXACT, "window"])
    def test_tokens_have_the_label_minus_100_where_the_stream_counts_no_loss(
        self, mixtures: Store, tmp_path: Path, mixture: str
    ) -> None:
        export(mixtures, mixture, "axolotl", tmp_path / "out", **TOKENS, sequence_length=6)
        found = pq.read_table(tmp_path / "out/mixture.parquet").to_pylist()
        rows = served(mixtures, mixture, Tokenization(TOKENIZER, 101, 102, 6))
        assert [row["input_ids"] for row in found] == [row["input_ids"] for row in rows]
        assert all(set(row["attention_mask"]) == {1} for row in found)
        for row, original in zip(found, rows, strict=True):
            pairs = zip(original["input_ids"], original["loss_mask"], strict=True)
            assert row["labels"] == [token if counted else -100 for token, counted in pairs]
        masked = sum(label == -100 for row in found for label in row["labels"])
        assert (masked > 0) == (mixture not in ("plain", "unmasked"))

    def test_the_configuration_keeps_the_order_and_stops_at_rows_that_are_too_long(
        self, mixtures: Store, tmp_path: Path
    ) -> None:
        result = export(mixtures, "staged", "axolotl", tmp_path / "out", root="/data/my mix", sequence_length=12)
        given = yaml.safe_load((tmp_path / "out/axolotl.yaml").read_text())
        data_set = {"path": "/data/my mix/mixture.jsonl", "ds_type": "json", "type": "input_output"}
        assert given["datasets"] == [data_set]
        assert given["curriculum_sampling"] is True
        assert given["shuffle_merged_datasets"] is False
        assert given["train_on_inputs"] is False
        assert (given["sequence_len"], given["excess_length_strategy"]) == (12, "raise")
        long = sum(row["n_tokens"] > 12 for row in served(mixtures, "staged"))
        assert any(line.startswith(f"{long} rows are longer than") for line in result.warnings)

    def test_an_empty_type_says_that_rows_are_tokens(self, mixtures: Store, tmp_path: Path) -> None:
        export(mixtures, "staged", "axolotl", tmp_path / "out", **TOKENS)
        (data_set,) = yaml.safe_load((tmp_path / "out/axolotl.yaml").read_text())["datasets"]
        assert (data_set["ds_type"], data_set["type"]) == ("parquet", None)

    def test_stages_are_no_warning_for_their_order_is_kept(self, mixtures: Store, tmp_path: Path) -> None:
        warnings = export(mixtures, "staged", "axolotl", tmp_path / "out", **TOKENS).warnings
        assert warnings == []


class TestTrl:
    @pytest.mark.parametrize("mixture", EXACT)
    def test_each_stage_is_a_file_of_its_rows_in_order(
        self, mixtures: Store, tmp_path: Path, mixture: str
    ) -> None:
        export(mixtures, mixture, "trl", tmp_path / "out")
        names = stage_names(mixtures, mixture)
        for stage in names:
            file = "train.parquet" if len(names) == 1 else f"train-{stage}.parquet"
            found = pq.read_table(tmp_path / "out" / file).to_pylist()
            rows = [row for row in served(mixtures, mixture) if row["stage"] == stage]
            if mixture in ("staged", "dropout") and stage != "cooldown":
                expected = [(row["id"], row["tag_text"], row["text"]) for row in rows]
                assert [(row["id"], row["prompt"], row["completion"]) for row in found] == expected
                assert any(row["prompt"] for row in found)
            else:
                assert [(row["id"], row["text"]) for row in found] == [
                    (row["id"], joined(mixture, row)) for row in rows
                ]

    def test_tokens_come_with_labels(self, mixtures: Store, tmp_path: Path) -> None:
        result = export(mixtures, "paragraph", "trl", tmp_path / "out", **TOKENS)
        found = pq.read_table(tmp_path / "out/train-tagged.parquet")
        assert found.column_names == ["id", "input_ids", "labels"]
        rows = served(mixtures, "paragraph", Tokenization(TOKENIZER, 101, 102))
        rows = [row for row in rows if row["stage"] == "tagged"]
        for row, original in zip(found.to_pylist(), rows, strict=True):
            assert row["input_ids"] == original["input_ids"]
            assert [label != -100 for label in row["labels"]] == original["loss_mask"]
        assert not any("trained on" in line or "seam" in line for line in result.warnings)

    def test_what_text_cannot_mask_is_a_warning(self, mixtures: Store, tmp_path: Path) -> None:
        warnings = export(mixtures, "paragraph", "trl", tmp_path / "out").warnings
        assert any("before each paragraph: the tags are trained on" in line for line in warnings)
        assert any("knows no stages" in line for line in warnings)


class TestOpenInstruct:
    @pytest.mark.parametrize("mixture", ["plain", "staged", "unmasked"])
    def test_the_script_mixes_every_row_once(self, mixtures: Store, tmp_path: Path, mixture: str) -> None:
        out = tmp_path / "my mix"
        export(mixtures, mixture, "open-instruct", out)
        names = stage_names(mixtures, mixture)
        data_sets = by_data_set(served(mixtures, mixture))
        for stage in names:
            file = out / ("train.sh" if len(names) == 1 else f"train-{stage}.sh")
            words = shlex.split(file.read_text().replace("\\\n", " "), comments=True)
            begin, end = words.index("--dataset_mixer_list") + 1, words.index("--dataset_mixer_list_splits")
            pairs = list(zip(words[begin:end:2], words[begin + 1 : end : 2], strict=True))
            assert words[end + 1] == "train"
            assert words[end + 2].startswith("--")
            assert words[-1] == "$@"
            mixed = []
            for path, amount in pairs:
                rows = json_lines(Path(path))
                # The published rule: a number with a point is a share of the file, one without is a count.
                assert (float(amount) * len(rows) if "." in amount else int(amount)) == len(rows)
                mixed += [(row["id"], row["messages"]) for row in rows]
            expected = [
                (row["id"], messages(mixture, row))
                for (of, _), rows in data_sets.items()
                if of == stage
                for row in rows
            ]
            assert sorted(map(str, mixed)) == sorted(map(str, expected))

    def test_it_says_that_rows_become_conversations(self, mixtures: Store, tmp_path: Path) -> None:
        warnings = export(mixtures, "staged", "open-instruct", tmp_path / "out").warnings
        assert any("chat template" in line for line in warnings)
        assert any("the user's message" in line for line in warnings)


def messages(mixture: str, row: dict[str, Any]) -> list[dict[str, str]]:
    if mixture == "staged" and row["tag_text"]:
        return [{"role": "user", "content": row["tag_text"]}, {"role": "assistant", "content": row["text"]}]
    return [{"role": "assistant", "content": joined(mixture, row)}]


class TestLlamaFactory:
    @pytest.mark.parametrize("mixture", EXACT)
    def test_data_sets_are_described_and_counted(self, mixtures: Store, tmp_path: Path, mixture: str) -> None:
        out = tmp_path / "out"
        export(mixtures, mixture, "llama-factory", out)
        information = json.loads((out / "dataset_info.json").read_text())
        data_sets = by_data_set(served(mixtures, mixture))
        assert len(information) == len(data_sets)
        for (stage, component), rows in data_sets.items():
            entry = information[data_set_name(mixtures, mixture, stage, component)]
            found = json_lines(out / entry["file_name"])
            assert entry["num_samples"] == len(found) == len(rows)
            columns = entry["columns"]
            texts = [row[columns["prompt"]] + row.get(columns.get("response"), "") for row in found]
            as_prompt = "response" in columns
            assert as_prompt == (mixture in ("staged", "dropout", "paragraph") and stage != "cooldown")
            assert texts == [row["tag_text"] + row["text"] if as_prompt else joined(mixture, row) for row in rows]

    def test_the_configurations_are_valid_together(self, mixtures: Store, tmp_path: Path) -> None:
        out = tmp_path / "out"
        export(mixtures, "staged", "llama-factory", out, root="/data", sequence_length=512)
        information = json.loads((out / "dataset_info.json").read_text())
        named = []
        for stage, kind in (("tagged", "sft"), ("cooldown", "pt")):
            given = yaml.safe_load((out / f"train-{stage}.yaml").read_text())
            assert given["stage"] == kind
            # interleave_probs is refused with concat, and sft without a template that exists.
            assert given["mix_strategy"] == "concat"
            assert "interleave_probs" not in given
            assert given.get("template") == ("empty" if kind == "sft" else None)
            assert (given["dataset_dir"], given["cutoff_len"]) == ("/data", 512)
            named += given["dataset"].split(",")
        assert sorted(named) == sorted(information)

    def test_what_is_cut_or_dropped_is_a_warning(self, mixtures: Store, tmp_path: Path) -> None:
        warnings = export(mixtures, "staged", "llama-factory", tmp_path / "out", sequence_length=12).warnings
        long = sum(row["n_tokens"] > 12 and row["stage"] == "tagged" for row in served(mixtures, "staged"))
        assert any(line.startswith(f"{long} rows are longer") and "cuts them" in line for line in warnings)
        assert any("drops what does not fill one" in line for line in warnings)
        assert any("ends no text with an end token" in line for line in warnings)


class Keywords:
    """Stands in for a class of torchtitan: keeps what it was given."""

    def __init__(self, **given: Any) -> None:
        self.__dict__ |= given


class Configured(Keywords):
    class Config(Keywords):
        pass


def stand_ins(monkeypatch: pytest.MonkeyPatch, **modules: dict[str, Any]) -> None:
    """Modules of torchtitan with these names in them; packages above them are empty."""
    for dotted, names in modules.items():
        path = dotted.split("__")
        for end in range(1, len(path) + 1):
            name = ".".join(path[:end])
            module = ModuleType(name)
            module.__dict__.update(names if end == len(path) else {"__path__": []})
            if end == len(path) or name not in sys.modules:
                monkeypatch.setitem(sys.modules, name, module)


class CharacterTokenizer:
    """One token a character, with a begin and an end token, in the form of torchtitan's tokenizer."""

    bos_id, eos_id = 1, 2

    def __init__(self) -> None:
        self.tokenizer = self

    def encode(self, text: str, add_special_tokens: bool) -> SimpleNamespace:
        assert not add_special_tokens
        return SimpleNamespace(ids=[ord(character) for character in text])


def grain_stages(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    names = [
        *("ConcatThenSplitPackingConfig", "DatasetMixConfig", "IndexedJsonlSource", "SampleProcessor"),
        *("SingleDatasetConfig", "TextSequence", "WeightedDataset"),
    ]
    data = {name: type(name, (Configured,), {}) for name in names}
    stand_ins(monkeypatch, torchtitan__components__data=data, torchtitan__components__loss={"IGNORE_INDEX": -100})
    return runpy.run_path(str(folder / "mixture.py"))


class TestTorchtitan:
    @pytest.mark.parametrize("mixture", EXACT)
    def test_packed_children_are_mixed_by_shares_of_tokens(
        self, mixtures: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixture: str
    ) -> None:
        out = tmp_path / "a [mix]*"
        export(mixtures, mixture, "torchtitan", out)
        stages = grain_stages(monkeypatch, out)["STAGES"]
        rows = served(mixtures, mixture)
        data_sets = by_data_set(rows)
        assert list(stages) == stage_names(mixtures, mixture)
        for stage, mix in stages.items():
            total = sum(row["n_tokens"] for row in rows if row["stage"] == stage)
            weights = {}
            for child in mix.datasets:
                assert type(child.dataset).__name__ == "ConcatThenSplitPackingConfig"
                (pattern,) = child.dataset.dataset.source.patterns
                (file,) = glob.glob(pattern)
                found = json_lines(Path(file))
                component = Path(file).stem.removeprefix(f"{stage}-")
                expected = [pieces(mixture, row) for row in data_sets[stage, component]]
                assert [[(each["label"], each["text"]) for each in row["segments"]] for row in found] == expected
                weights[component] = child.weight
                tokens = sum(row["n_tokens"] for row in data_sets[stage, component])
                assert child.weight == pytest.approx(tokens / total, rel=1e-12)
            assert all(weight > 0 for weight in weights.values())
            assert sum(weights.values()) == pytest.approx(1)
            assert set(weights) == {component for of, component in data_sets if of == stage}

    def test_the_processor_shifts_tokens_and_leaves_tags_out_of_the_loss(
        self, mixtures: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        export(mixtures, "staged", "torchtitan", tmp_path / "out")
        loaded = grain_stages(monkeypatch, tmp_path / "out")
        processor = loaded["SegmentProcessor"](None, context=SimpleNamespace(tokenizer=CharacterTokenizer()))
        row = {"segments": [{"label": False, "text": "TAG"}, {"label": True, "text": "ab"}]}
        made = processor(row, None)
        assert made.input_ids.tolist() == [1, *map(ord, "TAGab")]
        # The begin token and the tag are not trained on; the text's first token is, from the tag's last.
        assert made.labels.tolist() == [-100, -100, -100, *map(ord, "ab"), 2]
        assert not loaded["has_tokens"](None)

    def test_release_0_3_gets_the_same_weights_and_text(
        self, mixtures: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        result = export(mixtures, "staged", "torchtitan", out)
        registered: dict[str, Any] = {}
        release = {"DATASETS": registered, "HFDataSource": type("HFDataSource", (Keywords,), {})}
        loader = {"InterleavedHuggingFaceTextDataLoader": type("Loader", (Configured,), {})}
        stand_ins(
            monkeypatch,
            datasets={"load_dataset": None},
            torchtitan__hf_datasets={"DatasetConfig": type("DatasetConfig", (Keywords,), {}), "__path__": []},
        )
        text_datasets = ModuleType("torchtitan.hf_datasets.text_datasets")
        text_datasets.__dict__.update(release | loader)
        monkeypatch.setitem(sys.modules, text_datasets.__name__, text_datasets)
        loaded = runpy.run_path(str(out / "mixture_0_3.py"))
        grain = grain_stages(monkeypatch, out)["STAGES"]
        for stage, config in loaded["STAGES"].items():
            assert [each.weight for each in config.sources] == [each.weight for each in grain[stage].datasets]
            for each in config.sources:
                # The release puts every name into small letters before it looks it up.
                assert each.dataset == each.dataset.lower()
                assert Path(registered[each.dataset].path).is_file()
        row = {"segments": [{"label": False, "text": "TAG"}, {"label": True, "text": "ab"}]}
        assert loaded["row_text"](row) == "TAGab"
        assert any("0.3 has no loss mask" in line for line in result.warnings)


def mixed_by_dolma(root: Path, stream: dict[str, Any], threshold: float | None = None) -> list[dict[str, Any]]:
    """What ``dolma mix`` makes of a stream, by its documentation: attributes, filter, spans of characters."""
    (pattern,) = stream["documents"]
    (include,) = stream["filter"]["include"]
    found = re.fullmatch(r"\$\.attributes\[\?\(@\.(\w+)\[0\]\[2\] < ([\d.]+)\)\]", include)
    assert found is not None
    limit = float(found[2]) if threshold is None else threshold
    mixed = []
    for file in sorted(glob.glob(pattern)):
        beside = file.replace("/documents/", f"/attributes/{stream['attributes'][0]}/")
        for row, extra in zip(json_lines(Path(file)), json_lines(Path(beside)), strict=True):
            assert row["id"] == extra["id"]
            if extra["attributes"][found[1]][0][2] < limit:
                mixed.append(row | {"text": replaced(row, extra["attributes"], stream)})
    return mixed


def replaced(row: dict[str, Any], attributes: dict[str, Any], stream: dict[str, Any]) -> str:
    text = str(row["text"])
    for rule in stream.get("span_replacement", []):
        spans = attributes[rule["span"].removeprefix("$.attributes.")]
        for start, end, score in sorted(spans, reverse=True):
            assert end > start  # a span without length swallows the character behind it
            if score >= rule["min_score"]:
                value = row["metadata"][rule["replacement"].removeprefix("$.metadata.")]
                text = text[:start] + value.replace("{}", text[start:end]) + text[end:]
    return text


class TestDolma:
    @pytest.mark.parametrize("mixture", EXACT)
    def test_mixing_makes_the_rows_of_each_stage(self, mixtures: Store, tmp_path: Path, mixture: str) -> None:
        export(mixtures, mixture, "dolma", tmp_path / "out")
        given = yaml.safe_load((tmp_path / "out/mix.yaml").read_text())
        assert given["shuffle"] is False
        data_sets = by_data_set(served(mixtures, mixture))
        assert len(given["streams"]) == len(data_sets)
        seen = set()
        for (stage, component), rows in data_sets.items():
            name = data_set_name(mixtures, mixture, stage, component)
            (stream,) = [each for each in given["streams"] if each["name"] == name]
            mixed = mixed_by_dolma(tmp_path / "out", stream)
            assert [row["text"] for row in mixed] == [joined(mixture, row) for row in rows]
            assert [row["metadata"]["document_id"] for row in mixed] == [row["id"] for row in rows]
            assert not seen.intersection(row["id"] for row in mixed)
            assert len({row["id"] for row in mixed}) == len(mixed)
            seen |= {row["id"] for row in mixed}

    def test_documents_have_the_fields_of_dolma(self, mixtures: Store, tmp_path: Path) -> None:
        export(mixtures, "plain", "dolma", tmp_path / "out")
        created = mixtures.manifest("news", "corpus").created_at.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        for row in json_lines(tmp_path / "out/documents/news/00000.jsonl.gz"):
            assert list(row) == ["id", "text", "source", "added", "created", "metadata"]
            assert row["source"] == "news"
            assert row["added"] == row["created"] == created

    def test_a_lower_threshold_is_the_first_part_of_each_stage(self, mixtures: Store, tmp_path: Path) -> None:
        export(mixtures, "staged", "dolma", tmp_path / "out")
        given = yaml.safe_load((tmp_path / "out/mix.yaml").read_text())
        mixed = [row for each in given["streams"] for row in mixed_by_dolma(tmp_path / "out", each, 0.5)]
        expected = set()
        for stage in stage_names(mixtures, "staged"):
            rows = [row["position"] for row in served(mixtures, "staged") if row["stage"] == stage]
            expected |= set(rows[: -(-len(rows) // 2)])
        assert {row["metadata"]["position"] for row in mixed} == expected

    def test_a_root_below_a_folder_named_documents_is_refused(self, mixtures: Store, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="give a root without one"):
            export(mixtures, "plain", "dolma", tmp_path / "documents" / "out")
        assert not (tmp_path / "documents" / "out").exists()
        export(mixtures, "plain", "dolma", tmp_path / "documents" / "out", root="/data/mix")

    def test_spans_count_characters_and_not_bytes(self) -> None:
        plan = TagPlan(template="{domain} ", scope="paragraph")
        assert tag_spans(plan, "a.org ", "één\n\n“b”") == [[0, 1, 1.0], [5, 6, 1.0]]
        assert tag_spans(plan, "", "één") == []


class TestWindows:
    @pytest.mark.parametrize("name", ["axolotl", "dolma", "torchtitan", "trl", "llama-factory", "open-instruct"])
    def test_a_tag_on_each_window_cannot_be_text(self, mixtures: Store, tmp_path: Path, name: str) -> None:
        warnings = export(mixtures, "window", name, tmp_path / "out").warnings
        assert any("window" in line for line in warnings)
