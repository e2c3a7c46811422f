"""Exports: files of other programs, decoded here by their published layouts and compared with the stream."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from support import document_table, published_corpus

from mixwright.errors import ConfigError, ConflictError, DataError
from mixwright.jobs.exports import registry
from mixwright.jobs.exports.export import export_mixture, snippet
from mixwright.jobs.exports.format import Export, ExportFormat, ExportOptions
from mixwright.jobs.exports.levanter import plan_schedule
from mixwright.jobs.exports.megatron import weight_text
from mixwright.jobs.exports.names import safe_names
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.exports import ExportResult
from mixwright.selectors.ordering import interleave, position_of
from mixwright.selectors.requests import SelectRequest
from mixwright.selectors.streams import MixtureStream
from mixwright.store import Store

BOS, EOS = 256, 257
"""Of the bytes tokenizer: the first ids that no text has."""
OWN = ("gpt-neox", "huggingface", "levanter", "mds", "megatron", "nemo", "olmo-core")
OPTIONS = ExportOptions(bos=BOS, eos=EOS)


def corpus(name: str, n: int, longest: int) -> pa.Table:
    """Texts of one to ``longest`` paragraphs, counted in bytes as the tokenizer counts them."""
    rng = np.random.default_rng(n)
    texts = [f"{name} {i} é\n\n" + "word \n\n" * int(rng.integers(1, longest)) for i in range(n)]
    return document_table(
        texts,
        source=name,
        domains=[f"site{i % 3}.org" if i % 4 else None for i in range(n)],
        n_tokens=[len(text.encode()) for text in texts],
    )


@dataclass(frozen=True)
class Mixtures:
    """A store with mixtures, and their rows as the stream serves them."""

    store: Store
    rows: dict[str, pa.Table] = field(repr=False)

    def export(self, name: str, format: str, out: Path, options: ExportOptions = OPTIONS) -> ExportResult:
        stream = MixtureStream.open(self.store, name)
        return export_mixture(self.store, stream, format, options, out, NoProgress())

    def parts(self, name: str) -> list[tuple[str, str, pa.Table]]:
        """(stage, component, rows) of each data set, from the stream alone."""
        rows = self.rows[name]
        pairs = dict.fromkeys(zip(rows["stage"].to_pylist(), rows["component"].to_pylist(), strict=True))
        manifest = MixtureStream.open(self.store, name).manifest
        order = [
            (stage.name, each.name)
            for stage in manifest.stages
            for each in manifest.components
            if (stage.name, each.name) in pairs
        ]
        return [
            (stage, part, rows.filter(pc.and_(pc.equal(rows["stage"], stage), pc.equal(rows["component"], part))))
            for stage, part in order
        ]


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Mixtures:
    store = Store(tmp_path_factory.mktemp("exports") / "home")
    # One name reads as a number, one has capitals: both must survive lists of weights and paths.
    for name, n, longest in (("2020", 40, 30), ("wiki", 25, 4), ("Code", 9, 90)):
        published_corpus(store, name, corpus(name, n, longest), shard_rows=20)
    selectors: dict[str, dict[str, Any]] = {
        "tagged": {
            "kind": "domain-tags",
            "preset": "meco",
            "weights": "uniform",
            "max_epochs": 9,
            "cooldown": 0.3,
        },
        "plain": {"kind": "uniform", "max_epochs": 9},
        "paragraphs": {
            "kind": "domain-tags",
            "preset": "meco",
            "scope": "paragraph",
            "schedule": "always",
            "max_epochs": 9,
        },
        "windows": {"kind": "domain-tags", "preset": "meco", "scope": "window", "max_epochs": 9},
    }
    for name, selector in selectors.items():
        request = {"name": name, "sources": ["2020", "wiki", "Code"], "selector": selector}
        run_select(store, SelectRequest.model_validate(request | {"budget": {"tokens": 12_000}}), NoProgress())
    return Mixtures(store, {name: pa.concat_tables(MixtureStream.open(store, name).read()) for name in selectors})


def expected_tokens(
    row: dict[str, Any], bos: int | None = BOS, eos: int | None = EOS
) -> tuple[list[int], list[bool]]:
    """BOS, tag, text, EOS as bytes; no loss on a tag and the BOS before it."""
    tag, text = list(row["tag_text"].encode()), list(row["text"].encode())
    before, behind = [] if bos is None else [bos], [] if eos is None else [eos]
    mask = [not tag] * len(before) + [False] * len(tag) + [True] * (len(text) + len(behind))
    return before + tag + text + behind, mask


def all_tokens(rows: pa.Table) -> tuple[list[list[int]], list[list[bool]]]:
    pairs = [expected_tokens(row) for row in rows.to_pylist()]
    return [ids for ids, _ in pairs], [mask for _, mask in pairs]


def names_of(mixtures: Mixtures, name: str) -> list[str]:
    """The names that the data sets must have: written out, for they are what users type."""
    parts = mixtures.parts(name)
    if name == "plain":
        return [{"2020": "data-2020"}.get(part, part) for _, part, _ in parts]
    return [
        {"2020": "data-2020"}.get(part, part) if name == "paragraphs" else f"{stage}-{part}"
        for stage, part, _ in parts
    ]


class TestCore:
    def test_data_sets_are_the_stream_cut_by_stage_and_component(self, mixtures: Mixtures, tmp_path: Path) -> None:
        for name in mixtures.rows:
            found: list[Any] = []

            def write(export: Export, found: list[Any] = found) -> None:
                found += [(each, pa.concat_tables(each.tables())) for each in export.data_sets()]

            with_format(write, lambda name=name: mixtures.export(name, "probe", tmp_path / name))
            parts = mixtures.parts(name)
            assert [(each.stage, each.component) for each, _ in found] == [(s, c) for s, c, _ in parts]
            assert [each.name for each, _ in found] == names_of(mixtures, name)
            for (each, table), (stage, _, rows) in zip(found, parts, strict=True):
                assert table.equals(rows)
                assert (each.n_rows, each.n_tokens) == (rows.num_rows, pc.sum(rows["n_tokens"]).as_py())
                whole = mixtures.rows[name].filter(pc.equal(mixtures.rows[name]["stage"], stage))
                tokens = pc.sum(whole["n_tokens"]).as_py()
                assert each.token_share == pytest.approx(each.n_tokens / tokens, rel=1e-12)

    def test_documents_drawn_at_the_odds_give_the_shares_of_tokens(
        self, mixtures: Mixtures, tmp_path: Path
    ) -> None:
        found: list[Any] = []
        with_format(
            lambda export: found.extend(export.data_sets()),
            lambda: mixtures.export("tagged", "probe", tmp_path / "o"),
        )
        for stage in ("tagged", "cooldown"):
            parts = [each for each in found if each.stage == stage]
            assert sum(each.document_odds for each in parts) == pytest.approx(1)
            # The formula of the module's docstring, written out.
            raw = [each.token_share / (each.n_tokens / each.n_rows) for each in parts]
            assert [each.document_odds for each in parts] == pytest.approx([each / sum(raw) for each in raw])
            drawn = [each.document_odds * each.n_tokens / each.n_rows for each in parts]
            assert [each / sum(drawn) for each in drawn] == pytest.approx([each.token_share for each in parts])

    @given(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any))
    def test_positions_are_the_inverse_of_the_order(self, counts: list[int]) -> None:
        component, row = interleave(np.array(counts), 0, sum(counts))
        for number, count in enumerate(counts):
            places = position_of(np.array(counts), number, np.arange(count)) if count else np.empty(0)
            assert places.tolist() == np.flatnonzero(component == number).tolist()
            assert row[component == number].tolist() == list(range(count))

    @given(st.lists(st.text(max_size=8), max_size=12))
    @example(["1e", "1E", "a b", "a-b", "A-B"])
    def test_names_are_unique_safe_and_no_numbers(self, wanted: list[str]) -> None:
        names = safe_names(wanted)
        assert len({name.casefold() for name in names}) == len(wanted)
        for name in names:
            assert name
            assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
            assert isinstance(yaml.safe_load(name), str)
            with pytest.raises(ValueError, match="could not convert"):
                float(name)

    @pytest.mark.parametrize(
        "name", ["2020", "1e5", "nan", "Infinity", "1_000", "-", "..", "no", "0x10", "1:30", "default"]
    )
    def test_names_that_read_as_something_else_are_changed(self, name: str) -> None:
        (found,) = safe_names([name])
        assert found != name
        assert found.startswith("data")

    @pytest.mark.parametrize("format", OWN)
    def test_the_same_mixture_gives_the_same_files(self, format: str, mixtures: Mixtures, tmp_path: Path) -> None:
        options = ExportOptions(bos=BOS, eos=EOS, root="/data")
        results = [mixtures.export("tagged", format, tmp_path / each, options) for each in "ab"]
        assert results[0] == results[1]
        folder = tmp_path / "a"
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert there == {"export.json", *(entry.path for entry in results[0].files)}
        for entry in results[0].files:
            content = (folder / entry.path).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (entry.n_bytes, entry.sha256)
        assert ExportResult.model_validate_json((folder / "export.json").read_text()) == results[0]
        # Nothing may point at the folder that it was made in.
        assert all(str(tmp_path).encode() not in (folder / path).read_bytes() for path in there)

    def test_an_export_is_all_or_nothing(self, mixtures: Mixtures, tmp_path: Path) -> None:
        def write(export: Export) -> None:
            export.write_text("half", "half")
            raise DataError("broken: mend it")

        with pytest.raises(DataError, match="broken"):
            with_format(write, lambda: mixtures.export("plain", "probe", tmp_path / "out"))
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine").write_text("keep")
        with pytest.raises(ConflictError, match="full exists and is not empty"):
            mixtures.export("plain", "mds", tmp_path / "full")
        assert (tmp_path / "full" / "mine").read_text() == "keep"

    def test_unknown_formats_and_wrong_options_are_refused(self, mixtures: Mixtures, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no export format 'megatrom': use one of .*mds, megatron"):
            mixtures.export("plain", "megatrom", tmp_path / "out")
        for wrong in (
            {"eos": -1},
            {"bos": 2**31},
            {"sequence_length": 0},
            {"root": ""},
            {"root": 'a"b'},
            {"tokenizer": "\n"},
        ):
            with pytest.raises(ConfigError, match=next(iter(wrong))):
                ExportOptions(**wrong)  # type: ignore[arg-type]

    def test_what_a_format_leaves_out_is_said(self, mixtures: Mixtures, tmp_path: Path) -> None:
        tagged = " ".join(mixtures.export("tagged", "megatron", tmp_path / "tagged").warnings)
        assert "no loss mask" in tagged
        assert "order of rows" in tagged
        plain = " ".join(mixtures.export("plain", "megatron", tmp_path / "plain").warnings)
        assert "no loss mask" not in plain
        names: Callable[[Export], None] = lambda export: None  # noqa: E731
        result = with_format(names, lambda: mixtures.export("tagged", "probe", tmp_path / "probe"))
        assert [each for each in result.warnings if "knows no stages: the mixture has tagged, cooldown" in each]

    def test_snippets_name_files_that_are_there(self, mixtures: Mixtures, tmp_path: Path) -> None:
        for name in ("tagged", "plain"):
            manifest = MixtureStream.open(mixtures.store, name).manifest
            for format in OWN:
                out = tmp_path / f"{name}-{format}"
                result = mixtures.export(name, format, out)
                text = snippet(registry.EXPORT_FORMATS[format], str(out), manifest)
                named = [word.strip("\"'(),") for word in text.replace('"', " ").split() if str(out) in word]
                assert named
                assert all(Path(each).exists() for each in named), named
                assert "{" not in text.replace("{root}", "{")
                assert (out / "README.md").read_text().count(result.mixture)


def with_format(write: Callable[[Export], None], run: Callable[[], Any]) -> Any:
    """Run with one more format, "probe", which can nothing."""
    probe = ExportFormat("probe", "Probe", "Probe", False, None, write, "{root}", masks=False, stages=False)
    registry.EXPORT_FORMATS["probe"] = probe
    try:
        return run()
    finally:
        del registry.EXPORT_FORMATS["probe"]


def read_indexed(prefix: Path) -> tuple[list[list[int]], np.dtype[Any]]:
    """The sequences of a Megatron data set, read by the layout that megatron-core documents."""
    index = prefix.with_name(prefix.name + ".idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, n_sequences, n_documents = struct.unpack_from("<QBQQ", index, 9)
    assert version == 1
    dtype = np.dtype({1: "u1", 4: "<i4", 8: "<u2"}[code])
    place = 9 + struct.calcsize("<QBQQ")
    lengths = np.frombuffer(index, "<i4", n_sequences, place)
    pointers = np.frombuffer(index, "<i8", n_sequences, place + 4 * n_sequences)
    documents = np.frombuffer(index, "<i8", n_documents, place + 12 * n_sequences)
    assert place + 12 * n_sequences + 8 * n_documents == len(index)
    assert documents.tolist() == list(range(n_sequences + 1))
    content = prefix.with_name(prefix.name + ".bin").read_bytes()
    assert len(content) == lengths.sum() * dtype.itemsize
    sequences = [
        np.frombuffer(content, dtype, length, pointer).tolist()
        for length, pointer in zip(lengths, pointers, strict=True)
    ]
    return sequences, dtype


def blend(path: Path) -> tuple[list[float], list[str]]:
    """A blend file as Megatron reads it: an even list of numbers and prefixes."""
    words = path.read_text().split()
    assert len(words) % 2 == 0
    assert all("." in word and "e" not in word for word in words[::2])
    return [float(word) for word in words[::2]], words[1::2]


class TestMegatron:
    def test_files_hold_the_rows_as_tokens(self, mixtures: Mixtures, tmp_path: Path) -> None:
        mixtures.export("tagged", "megatron", tmp_path / "out")
        for name, (_, _, rows) in zip(names_of(mixtures, "tagged"), mixtures.parts("tagged"), strict=True):
            sequences, dtype = read_indexed(tmp_path / "out" / "data" / f"{name}_text_document")
            assert sequences == all_tokens(rows)[0]
            assert dtype == np.uint16

    def test_large_ids_take_32_bits(self, mixtures: Mixtures, tmp_path: Path) -> None:
        for eos, expected in ((65_498, np.uint16), (65_499, np.int32), (70_000, np.int32)):
            out = tmp_path / str(eos)
            mixtures.export("plain", "megatron", out, ExportOptions(eos=eos))
            sequences, dtype = read_indexed(out / "data" / "wiki_text_document")
            assert dtype == expected
            assert {sequence[-1] for sequence in sequences} == {eos}

    def test_blends_are_the_shares_of_the_tokens_written(self, mixtures: Mixtures, tmp_path: Path) -> None:
        out = tmp_path / "out"
        mixtures.export("tagged", "megatron", out)
        for stage in ("tagged", "cooldown"):
            weights, prefixes = blend(out / f"blend-{stage}.txt")
            tokens = [sum(map(len, read_indexed(Path(prefix))[0])) for prefix in prefixes]
            assert weights == pytest.approx([each / sum(tokens) for each in tokens], rel=1e-12)
            assert sum(weights) == pytest.approx(1)
            split = json.loads((out / f"per-split-{stage}.json").read_text())
            assert set(split) == {"train", "valid", "test"}
            assert (split["valid"], split["test"]) == (None, None)
            assert split["train"] == (out / f"blend-{stage}.txt").read_text().split()
        assert "--phase-transition-iterations" in (out / "README.md").read_text()
        mixtures.export("plain", "megatron", tmp_path / "plain", ExportOptions(eos=EOS, root="/mnt/plain"))
        weights, prefixes = blend(tmp_path / "plain" / "blend.txt")
        assert prefixes[0] == "/mnt/plain/data/data-2020_text_document"

    def test_what_a_blend_cannot_hold_is_refused(self, mixtures: Mixtures, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="give eos, its id in bytes"):
            mixtures.export("plain", "megatron", tmp_path / "out", ExportOptions())
        for format in ("megatron", "nemo", "gpt-neox"):
            with pytest.raises(ConfigError, match="white space: give a root without it"):
                mixtures.export("plain", format, tmp_path / "a folder")

    def test_tags_on_every_window_need_its_length(self, mixtures: Mixtures, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="stand on every training window: give sequence_length"):
            mixtures.export("windows", "megatron", tmp_path / "out")
        mixtures.export("windows", "megatron", tmp_path / "out", ExportOptions(eos=EOS, sequence_length=16))
        row = mixtures.parts("windows")[0][2].to_pylist()[0]
        (found, *_), _ = read_indexed(tmp_path / "out" / "data" / "tagged-2020_text_document")
        text, tag = list(row["text"].encode()), list(row["tag_text"].encode())
        windows = [tag + text[place : place + 16] for place in range(0, len(text), 16)]
        assert found == [*chain.from_iterable(windows), EOS]

    def test_an_end_token_inside_documents_is_said(self, mixtures: Mixtures, tmp_path: Path) -> None:
        result = mixtures.export("plain", "megatron", tmp_path / "out", ExportOptions(eos=10))
        assert [each for each in result.warnings if each.startswith("token 10 stands inside documents too")]
        assert not [
            each for each in mixtures.export("plain", "nemo", tmp_path / "n").warnings if "stands inside" in each
        ]

    @given(st.floats(1e-12, 1.0, exclude_min=True))
    def test_weights_are_written_exactly(self, weight: float) -> None:
        assert float(weight_text(weight)) == weight
        assert "." in weight_text(weight)
        assert set(weight_text(weight)) <= set("0123456789.")

    def test_the_library_reads_and_writes_the_same(self, mixtures: Mixtures, tmp_path: Path) -> None:
        pytest.importorskip("megatron.core", exc_type=ImportError)
        torch = pytest.importorskip("torch")
        from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

        out = tmp_path / "out"
        mixtures.export("plain", "megatron", out)
        for prefix in (out / "data").glob("*.bin"):
            ours = IndexedDataset(str(prefix.with_suffix("")))
            builder = IndexedDatasetBuilder(str(tmp_path / "again.bin"), dtype=DType.optimal_dtype(EOS + 1))
            for sequence in ours:
                builder.add_document(torch.from_numpy(sequence.astype(np.int64)), [len(sequence)])
            builder.finalize(str(tmp_path / "again.idx"))
            for suffix in (".bin", ".idx"):
                assert (tmp_path / f"again{suffix}").read_bytes() == prefix.with_suffix(suffix).read_bytes()


class TestNeMoAndNeoX:
    def test_nemo_lists_the_same_files(self, mixtures: Mixtures, tmp_path: Path) -> None:
        out = tmp_path / "out"
        mixtures.export("tagged", "nemo", out)
        mixtures.export(
            "tagged", "megatron", tmp_path / "megatron", ExportOptions(bos=BOS, eos=EOS, root=str(out))
        )
        for stage in ("tagged", "cooldown"):
            weights, prefixes = blend(tmp_path / "megatron" / f"blend-{stage}.txt")
            second = json.loads((out / f"nemo2-{stage}.json").read_text())
            assert [float(each) for each in second["paths"][::2]] == weights
            assert second["paths"][1::2] == prefixes
            first = yaml.safe_load((out / f"nemo1-{stage}.yaml").read_text())["model"]["data"]
            assert first["data_prefix"] == [each for pair in zip(weights, prefixes, strict=True) for each in pair]
            assert all(Path(f"{each}.bin").exists() for each in prefixes)

    def test_neox_labels_say_where_no_loss_is(self, mixtures: Mixtures, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = mixtures.export("tagged", "gpt-neox", out)
        parts = dict(zip(names_of(mixtures, "tagged"), mixtures.parts("tagged"), strict=True))
        for stage in ("tagged", "cooldown"):
            configuration = yaml.safe_load((out / f"data-{stage}.yml").read_text())
            assert configuration["weight_by_num_documents"] is False
            assert sum(configuration["train_data_weights"]) == pytest.approx(1)
            labels = configuration.get("train_label_data_paths", [])
            assert len(labels) == (3 if stage == "tagged" else 0)
            for path, label_path in zip(configuration["train_data_paths"], labels, strict=bool(labels)):
                tokens, masks = all_tokens(parts[Path(path).name.removesuffix("_text_document")][2])
                assert read_indexed(Path(path))[0] == tokens
                found, dtype = read_indexed(Path(label_path))
                assert dtype == np.int32
                assert found == [
                    [token if counts else -100 for token, counts in zip(*each, strict=True)]
                    for each in zip(tokens, masks, strict=True)
                ]
        assert any("valid_data_paths" in each for each in result.warnings)


class TestOlmoCore:
    def test_files_are_raw_arrays_with_masks(self, mixtures: Mixtures, tmp_path: Path) -> None:
        out = tmp_path / "out"
        mixtures.export("tagged", "olmo-core", out)
        source = (out / "olmo_core_data.py").read_text()
        (stages,) = [
            ast.literal_eval(node.value) for node in ast.parse(source).body if isinstance(node, ast.Assign)
        ]
        assert "NumpyDatasetDType.uint16" in source
        parts = dict(zip(names_of(mixtures, "tagged"), mixtures.parts("tagged"), strict=True))
        assert [each["label"] for stage in stages.values() for each in stage] == list(parts)
        for stage, data_sets in stages.items():
            for each in data_sets:
                tokens, masks = all_tokens(parts[each["label"]][2])
                # uint16, for EOS is 257; no header of NumPy's.
                assert np.fromfile(each["tokens"], "<u2").tolist() == [*chain.from_iterable(tokens)]
                assert (each["label_mask"] is not None) == (stage == "tagged")
                if each["label_mask"]:
                    assert Path(each["label_mask"]).read_bytes() == bytes(chain.from_iterable(masks))
        assert not list((out / "data").rglob("*mask*"))

    def test_sources_ask_for_every_token_once(self, mixtures: Mixtures, tmp_path: Path) -> None:
        out = tmp_path / "out"
        mixtures.export("plain", "olmo-core", out, ExportOptions(eos=EOS))
        sources = yaml.safe_load((out / "sources.yaml").read_text())["sources"]
        sizes = [Path(each["paths"][0]).stat().st_size // 2 for each in sources]
        assert sum(each["target_ratio"] for each in sources) == pytest.approx(1)
        for each, size in zip(sources, sizes, strict=True):
            assert size - 1 <= int(sum(sizes) * each["target_ratio"]) <= size
            assert each["max_repetition_ratio"] == 1.0

    def test_ids_take_the_bits_that_olmo_core_would_take(self, mixtures: Mixtures, tmp_path: Path) -> None:
        for eos, dtype in ((255, "uint8"), (256, "uint16"), (65_535, "uint16"), (65_536, "uint32")):
            out = tmp_path / str(eos)
            mixtures.export("plain", "olmo-core", out, ExportOptions(eos=eos))
            assert f"NumpyDatasetDType.{dtype}" in (out / "olmo_core_data.py").read_text()
            assert np.fromfile(out / "data" / "wiki" / "tokens.npy", dtype)[-1] == eos


def read_mds(folder: Path) -> Iterator[dict[str, Any]]:
    """The samples of an MDS data set, read by the layout of version 2."""
    index = json.loads((folder / "index.json").read_text())
    assert index["version"] == 2
    for shard in index["shards"]:
        content = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(content) == shard["raw_data"]["bytes"]
        assert hashlib.sha1(content).hexdigest() == shard["raw_data"]["hashes"]["sha1"]
        (n,) = struct.unpack_from("<I", content)
        assert n == shard["samples"]
        offsets = struct.unpack_from(f"<{n + 1}I", content, 4)
        header = json.loads(content[4 * (n + 2) : offsets[0]])
        assert header == {key: shard[key] for key in header}
        for begin, end in pairwise(offsets):
            yield read_sample(content[begin:end], shard)
        assert offsets[-1] == len(content)


def read_sample(data: bytes, shard: dict[str, Any]) -> dict[str, Any]:
    sizes, place = [], 0
    for fixed in shard["column_sizes"]:
        if fixed is None:
            sizes.append(struct.unpack_from("<I", data, place)[0])
            place += 4
        else:
            sizes.append(fixed)
    found = {}
    for name, encoding, size in zip(shard["column_names"], shard["column_encodings"], sizes, strict=True):
        found[name] = read_value(data[place : place + size], encoding)
        place += size
    assert place == len(data)
    return found


def read_value(data: bytes, encoding: str) -> Any:
    if encoding == "str":
        return data.decode()
    if encoding == "uint64":
        return struct.unpack("<Q", data)[0]
    n_axes, code = data[0] >> 2, data[0] & 3
    sizes = np.frombuffer(data, f"<u{1 << code}", n_axes, 1)
    values = np.frombuffer(data, np.dtype(encoding.removeprefix("ndarray:")), offset=1 + n_axes * (1 << code))
    return values.reshape(sizes).tolist()


class TestMds:
    def test_text_samples_are_the_rows(self, mixtures: Mixtures, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = mixtures.export("tagged", "mds", out, ExportOptions())
        for name, (_, _, rows) in zip(names_of(mixtures, "tagged"), mixtures.parts("tagged"), strict=True):
            samples = list(read_mds(out / "data" / name))
            columns = ("domain", "id", "source", "tag_text", "text", "url")
            assert samples == [{key: row[key] or "" for key in columns} for row in rows.to_pylist()]
        assert any("llm-foundry does not read" in each for each in result.warnings)
        for stage in ("tagged", "cooldown"):
            streams = yaml.safe_load((out / f"streams-{stage}.yaml").read_text())["train_loader"]["dataset"][
                "streams"
            ]
            assert len(streams) == 3
            for stream in streams.values():
                assert stream["choose"] == len(list(read_mds(Path(stream["local"]))))

    def test_token_samples_have_meco_s_columns(self, mixtures: Mixtures, tmp_path: Path) -> None:
        out = tmp_path / "out"
        mixtures.export("tagged", "mds", out, ExportOptions(tokenizer="bytes", bos=BOS, eos=EOS))
        for name, (_, _, rows) in zip(names_of(mixtures, "tagged"), mixtures.parts("tagged"), strict=True):
            tokens, masks = all_tokens(rows)
            for sample, ids, mask, domain in zip(
                read_mds(out / "data" / name), tokens, masks, rows["domain"].to_pylist(), strict=True
            ):
                assert sample == {
                    "domain": domain or "",
                    "indices": [[0, len(ids)]],
                    "input_ids": ids,
                    "length": len(ids),
                    "mask": [int(each) for each in mask],
                }

    def test_shards_end_where_they_are_full(
        self, mixtures: Mixtures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mixwright.jobs.exports.mds._SIZE_LIMIT", 3_000)
        mixtures.export("plain", "mds", tmp_path / "out", ExportOptions())
        folder = tmp_path / "out" / "data" / "wiki"
        sizes = [path.stat().st_size for path in sorted(folder.glob("*.mds"))]
        assert len(sizes) > 2
        assert max(sizes) <= 3_000
        (rows,) = [rows for _, part, rows in mixtures.parts("plain") if part == "wiki"]
        assert [each["id"] for each in read_mds(folder)] == rows["id"].to_pylist()

    def test_the_library_writes_the_same(self, mixtures: Mixtures, tmp_path: Path) -> None:
        streaming = pytest.importorskip("streaming", exc_type=ImportError)
        from mixwright.jobs.exports.mds import TEXT_COLUMNS

        mixtures.export("plain", "mds", tmp_path / "out", ExportOptions())
        for folder in (tmp_path / "out" / "data").iterdir():
            again = tmp_path / folder.name
            with streaming.MDSWriter(out=str(again), columns=TEXT_COLUMNS, hashes=["sha1"]) as writer:
                for sample in read_mds(folder):
                    writer.write(sample)
            for path in folder.iterdir():
                assert path.read_bytes() == (again / path.name).read_bytes()


class TestHuggingFace:
    def test_the_default_configuration_is_the_stream(self, mixtures: Mixtures, tmp_path: Path) -> None:
        out = tmp_path / "out"
        mixtures.export("tagged", "huggingface", out, ExportOptions())
        _, front, _ = (out / "README.md").read_text().split("---\n", 2)
        card = yaml.safe_load(front)
        paths = {each["config_name"]: each["data_files"][0]["path"] for each in card["configs"]}
        assert [each["config_name"] for each in card["configs"] if each.get("default")] == ["default"]
        assert list(paths) == ["default", *names_of(mixtures, "tagged")]
        assert card["size_categories"] == ["n<1K"]
        tables = {
            name: pa.concat_tables(pq.read_table(each) for each in sorted(out.glob(path)))
            for name, path in paths.items()
        }
        assert tables["default"].equals(mixtures.rows["tagged"])
        for name, (_, _, rows) in zip(names_of(mixtures, "tagged"), mixtures.parts("tagged"), strict=True):
            assert tables[name].equals(rows)

    def test_tokens_come_with_a_mask(self, mixtures: Mixtures, tmp_path: Path) -> None:
        out = tmp_path / "out"
        mixtures.export("tagged", "huggingface", out, ExportOptions(tokenizer="bytes", bos=BOS, eos=EOS))
        table = pq.read_table(out / "stream" / "part-00000.parquet")
        tokens, masks = all_tokens(mixtures.rows["tagged"])
        assert table["input_ids"].to_pylist() == tokens
        assert table["loss_mask"].to_pylist() == masks

    def test_files_are_cut_at_a_number_of_rows(
        self, mixtures: Mixtures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mixwright.jobs.exports.huggingface._ROWS_PER_FILE", 7)
        result = mixtures.export("plain", "huggingface", tmp_path / "out", ExportOptions())
        counts = [entry.n_rows for entry in result.files if entry.path.startswith("stream/")]
        n = mixtures.rows["plain"].num_rows
        assert counts == [7] * (n // 7) + [n % 7] * bool(n % 7)
        parts = [pq.read_table(path) for path in sorted((tmp_path / "out" / "stream").iterdir())]
        assert pa.concat_tables(parts).equals(mixtures.rows["plain"])

    def test_the_library_loads_it(self, mixtures: Mixtures, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets", exc_type=ImportError)
        mixtures.export("tagged", "huggingface", tmp_path / "out", ExportOptions())
        loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded["text"] == mixtures.rows["tagged"]["text"].to_pylist()


class TestLevanter:
    def test_rows_and_configurations(self, mixtures: Mixtures, tmp_path: Path) -> None:
        out = tmp_path / "out"
        mixtures.export("tagged", "levanter", out, ExportOptions(sequence_length=64))
        names = names_of(mixtures, "tagged")
        for name, (stage, _, rows) in zip(names, mixtures.parts("tagged"), strict=True):
            lines = gzip.decompress((out / "data" / f"{name}.jsonl.gz").read_bytes()).splitlines()
            columns = ("id", "tag_text", "text") if stage == "tagged" else ("id", "text")
            assert [json.loads(line) for line in lines] == [
                {key: row[key] for key in columns} for row in rows.to_pylist()
            ]
        new = yaml.safe_load((out / "levanter.yaml").read_text())
        old = yaml.safe_load((out / "levanter-1.2.yaml").read_text())["data"]
        data = new["data"]
        assert set(data["components"]) == set(old["configs"]) == set(names)
        (first, tagged), (start, cooldown) = data["train_weights"]
        assert first == 0
        assert start * new["trainer"]["train_batch_size"] % data["mixture_block_size"] == 0
        assert (set(tagged), set(cooldown)) == (set(names[:3]), set(names[3:]))
        assert sum(tagged.values()) == pytest.approx(1)
        for name in names:
            component, configuration = data["components"][name], old["configs"][name]
            assert ("format" in component) == ("format" in configuration) == name.startswith("tagged")
            assert component["source"]["train_urls"] == configuration["train_urls"]
            assert Path(configuration["train_urls"][0]).exists()

    def test_tags_that_count_are_part_of_the_text(self, mixtures: Mixtures, tmp_path: Path) -> None:
        result = mixtures.export("paragraphs", "levanter", tmp_path / "out", ExportOptions())
        assert any("the tag stands once" in each for each in result.warnings)

    def test_a_speck_of_a_source_does_not_stretch_the_schedule(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "home")
        for name, n, tokens in (("web", 400, 100), ("speck", 1, 1)):
            texts = [f"{name} {i}" for i in range(n)]
            published_corpus(store, name, document_table(texts, source=name, n_tokens=[tokens] * n))
        request = {"name": "mixed", "sources": ["web", "speck"], "selector": {"kind": "proportional"}}
        run_select(store, SelectRequest.model_validate(request | {"budget": {"tokens": 40_001}}), NoProgress())
        for length, steps in ((100, 13), (20_000, 1)):
            out = tmp_path / str(length)
            result = Mixtures(store, {}).export("mixed", "levanter", out, ExportOptions(sequence_length=length))
            trainer = yaml.safe_load((out / "levanter.yaml").read_text())["trainer"]
            assert trainer["num_train_steps"] == steps
            assert any("Levanter draws nothing from them" in each for each in result.warnings)
            assert any("the tokenizer bytes, which Levanter does not know" in each for each in result.warnings)
            # Where a batch is more than the mixture has, it says so.
            n_sequences = trainer["num_train_steps"] * trainer["train_batch_size"]
            assert n_sequences >= 40_001 // length
            assert any("data sets begin again" in each for each in result.warnings) == (
                n_sequences > 1.1 * (40_001 // length)
            )

    @given(
        st.lists(st.integers(1, 10**6), min_size=1, max_size=4),
        st.floats(1e-3, 1.0),
    )
    def test_stages_begin_where_levanter_can_begin_them(self, sequences: list[int], smallest: float) -> None:
        schedule = plan_schedule(sequences, smallest)
        assert schedule.starts[0] == 0
        assert schedule.block % schedule.batch == 0
        assert schedule.block < 2**16
        assert all(start * schedule.batch % schedule.block == 0 for start in schedule.starts)
        assert all(before < after for before, after in pairwise([*schedule.starts, schedule.n_steps]))
        # A block has at least one sequence of the smallest weight.
        assert schedule.block * smallest >= 1 or schedule.block == 2048
        if len(sequences) == 2 and sequences[0] >= schedule.block:
            assert abs(schedule.starts[1] * schedule.batch - sequences[0]) <= schedule.block / 2
