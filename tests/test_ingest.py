"""The ingest job: files to a corpus, with Python's own json, hashlib and pyarrow as oracles."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixwright.corpora import Corpus, field_expression
from mixwright.errors import ConflictError, DataError, NotFoundError
from mixwright.jobs import documents, input_files, readers, shards
from mixwright.jobs.duplicates import DuplicateFinder
from mixwright.jobs.ingest import run_ingest
from mixwright.progress import NoProgress
from mixwright.schemas.documents import DOCUMENT_SCHEMA
from mixwright.schemas.manifests import CorpusManifest
from mixwright.schemas.requests import IngestRequest
from mixwright.store import Store
from mixwright.tokenization import load_tokenizer

Json = dict[str, Any]


class RecordedProgress:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None, str]] = []
        self.advanced: dict[str, int] = {}
        self.notes: list[str] = []

    def start(self, stage: str, total: int | None = None, unit: str = "documents") -> None:
        self.stages.append((stage, total, unit))
        self.advanced[stage] = 0

    def advance(self, n: int = 1) -> None:
        self.advanced[self.stages[-1][0]] += n

    def note(self, message: str) -> None:
        self.notes.append(message)


def ingest(store: Store, *paths: Path | str, **request: Any) -> CorpusManifest:
    values = {"name": "wiki", "tokenizer": "bytes", **request}
    return run_ingest(store, IngestRequest(paths=[str(path) for path in paths], **values), NoProgress())


def table_of(store: Store, manifest: CorpusManifest) -> pa.Table:
    """All rows, by pyarrow alone."""
    return pa.concat_tables(pq.read_table(path) for path in Corpus.open(store, manifest.ref).shards)


def rows_of(store: Store, manifest: CorpusManifest) -> list[Json]:
    rows: list[Json] = table_of(store, manifest).to_pylist()
    return [{**row, "metadata": json.loads(row["metadata"])} for row in rows]


def texts_of(store: Store, manifest: CorpusManifest) -> list[str]:
    return [row["text"] for row in rows_of(store, manifest)]


def quarantined(store: Store, manifest: CorpusManifest) -> list[Json]:
    path = store.directory(manifest) / "quarantine.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def json_lines(path: Path, rows: list[Json]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def nothing_is_left(store: Store) -> bool:
    staging = store.home / "staging"
    return not list(store.manifests()) and not any(path.is_dir() for path in staging.glob("*"))


# Rows


def test_a_row_becomes_a_document(store: Store, tmp_path: Path) -> None:
    row = {
        "id": "doc-1",
        "text": "Über den Wolken\r\n",
        "url": "HTTPS://User:Secret@DE.Wikipedia.org:443/wiki/Lied?mail=a@b",
        "source": "dump",
        "score": 0.5,
        "tags": ["a", {"b": None}],
    }
    manifest = ingest(store, json_lines(tmp_path / "a.jsonl", [row]))
    assert rows_of(store, manifest) == [
        {
            "id": hashlib.sha256(row["text"].encode()).hexdigest()[:32],
            "text": row["text"],
            "source": "wiki",
            "domain": "de.wikipedia.org",
            "url": "HTTPS://DE.Wikipedia.org:443/wiki/Lied?mail=a@b",
            "n_tokens": len(row["text"].encode()),
            "metadata": {"id": "doc-1", "source": "dump", "score": 0.5, "tags": ["a", {"b": None}]},
        }
    ]
    files = [path for path in store.directory(manifest).rglob("*") if path.is_file()]
    assert not any(b"Secret" in path.read_bytes() for path in files)


def test_shards_have_the_schema_and_the_manifest_the_totals(store: Store, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}" + "é" * (i % 7), "url": f"https://d{i % 250}.example/{i}"} for i in range(1050)]
    manifest = ingest(store, json_lines(tmp_path / "a.jsonl", rows), shard_rows=400)
    directory = store.directory(manifest)
    assert [(each.path, each.n_rows) for each in manifest.files] == [
        ("shards/part-00000.parquet", 400),
        ("shards/part-00001.parquet", 400),
        ("shards/part-00002.parquet", 250),
    ]
    for entry in manifest.files:
        data = (directory / entry.path).read_bytes()
        assert (entry.n_bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert pq.read_schema(directory / entry.path).equals(DOCUMENT_SCHEMA, check_metadata=False)
        assert pq.ParquetFile(directory / entry.path).metadata.row_group(0).column(1).compression == "ZSTD"
    assert sorted(path.name for path in directory.iterdir()) == ["manifest.json", "shards"]
    n_bytes = sum(len(row["text"].encode()) for row in rows)
    assert (manifest.n_documents, manifest.n_text_bytes, manifest.n_tokens) == (1050, n_bytes, n_bytes)
    counts: dict[str, int] = {}
    for i in range(1050):
        counts[f"d{i % 250}.example"] = counts.get(f"d{i % 250}.example", 0) + 1
    commonest = sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:100]
    assert list(manifest.domains.items()) == commonest
    assert manifest.n_domains == 250


def test_the_corpus_reads_what_was_ingested(store: Store, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "url": f"https://{i}.example/", "label": f"l{i}"} for i in range(500)]
    manifest = ingest(store, json_lines(tmp_path / "a.jsonl", rows), shard_rows=90)
    corpus = Corpus.open(store, "wiki")
    oracle = table_of(store, manifest)
    assert corpus.scan().collect().to_arrow().column("text").to_pylist() == [row["text"] for row in rows]
    assert corpus.rows(85, 20).equals(oracle.slice(85, 20))
    numbers = np.array([499, 0, 91, 90, 89, 0, 250])
    assert corpus.take(numbers).equals(oracle.take(numbers))
    labels = corpus.scan().select(field_expression("label")).collect()["label"]
    assert labels.to_list() == [row["label"] for row in rows]


JSON_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(min_size=1, max_size=60).filter(lambda text: not text.isspace())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.builds(lambda text, rest: rest | {"text": text}, TEXT, st.dictionaries(st.text(), JSON_VALUE))),
    st.booleans(),
)
def test_any_json_row_survives_exactly(rows: list[Json], ascii_only: bool) -> None:
    rows = [{name: value for name, value in row.items() if name != "url"} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        store, path = Store(Path(folder) / "home"), Path(folder) / "a.jsonl"
        lines = [json.dumps(row, ensure_ascii=ascii_only) for row in [{"text": "first"}, *rows]]
        path.write_bytes("\n".join(lines).encode())
        found = rows_of(store, ingest(store, path, duplicates="keep"))[1:]
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    expected = [{name: value for name, value in row.items() if name != "text"} for row in rows]
    # As text, so that 1 and 1.0 and True differ.
    assert [json.dumps(row["metadata"], sort_keys=True) for row in found] == [
        json.dumps(row, sort_keys=True) for row in expected
    ]


def test_fields_seen_late_and_of_many_types_survive(store: Store, tmp_path: Path) -> None:
    rows: list[Json] = [{"text": f"t{i}", "x": i if i % 2 else str(i)} for i in range(12_000)]
    rows[10_000]["late"] = {"since": 10_000}
    found = rows_of(store, ingest(store, json_lines(tmp_path / "a.jsonl", rows)))
    assert [row["metadata"] for row in found] == [
        {name: value for name, value in row.items() if name != "text"} for row in rows
    ]


@pytest.mark.parametrize(
    ("request_fields", "domains"),
    [
        ({}, ["a.example", None, None, None]),
        ({"domain": "WWW.Law.example"}, ["www.law.example"] * 4),
        ({"domain": "Case law"}, ["Case law"] * 4),
        ({"domain_field": "topic"}, ["science", "b.example", "7", None]),
    ],
)
def test_domains(store: Store, tmp_path: Path, request_fields: Json, domains: list[str | None]) -> None:
    rows = [
        {"text": "1", "url": "https://A.example/x", "topic": "Science"},
        {"text": "2", "url": None, "topic": "https://u:p@B.example/y"},
        {"text": "3", "url": "", "topic": 7},
        {"text": "4", "url": {"not": "a string"}, "topic": ["x"]},
    ]
    manifest = ingest(store, json_lines(tmp_path / "a.jsonl", rows), **request_fields)
    found = rows_of(store, manifest)
    assert [row["domain"] for row in found] == domains
    assert [row["url"] for row in found] == ["https://A.example/x", None, None, None]
    assert found[0]["metadata"] == {"topic": "Science"}
    assert found[3]["metadata"] == {"url": {"not": "a string"}, "topic": ["x"]}


def test_other_fields_and_a_constant_source(store: Store, tmp_path: Path) -> None:
    row = {"body": "hello", "text": "a summary", "link": "https://a.example/", "url": "kept"}
    path = json_lines(tmp_path / "a.jsonl", [row])
    (found,) = rows_of(store, ingest(store, path, text_field="body", url_field="link", source="crawl"))
    assert (found["text"], found["url"], found["source"]) == ("hello", "https://a.example/", "crawl")
    assert found["metadata"] == {"text": "a summary", "url": "kept"}


def test_a_template_makes_the_text_of_several_fields(store: Store, tmp_path: Path) -> None:
    lines = [
        {"instruction": "Add.", "input": "2 and 2", "output": 4, "url": "https://a.example/"},
        {"instruction": "Say hello.", "input": " ", "output": "Hello."},
        {"instruction": "", "other": "x"},
    ]
    path = json_lines(tmp_path / "a.jsonl", lines)
    template = "Q: {instruction}\n{input}\n\nA: {output}"
    manifest = ingest(store, path, text_template=template)
    assert texts_of(store, manifest) == ["Q: Add.\n2 and 2\n\nA: 4", "Q: Say hello.\n\nA: Hello."]
    assert rows_of(store, manifest)[0]["metadata"] == {"instruction": "Add.", "input": "2 and 2", "output": 4}
    (bad,) = quarantined(store, manifest)
    assert bad["line"] == 3
    assert "instruction, input, output) has a text" in bad["reason"]


def test_csv_parquet_and_text(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,n,url\n"one\ntwo",1,https://a.example/\n')
    pq.write_table(pa.table({"text": ["three"], "n": [1], "blob": [b"\xff"]}), tmp_path / "b.parquet")
    (tmp_path / "c.md").write_text("# four\n")
    found = rows_of(store, ingest(store, tmp_path / "a.csv", tmp_path / "b.parquet", tmp_path / "c.md"))
    assert [row["text"] for row in found] == ["one\ntwo", "three", "# four\n"]
    assert [row["metadata"] for row in found] == [{"n": "1"}, {"n": 1, "blob": "/w=="}, {}]
    assert [row["domain"] for row in found] == ["a.example", None, None]


def test_tokens_are_those_of_the_named_tokenizer(store: Store, tmp_path: Path) -> None:
    texts = ["Tokens, counted.", "word " * 700, "Ünïcode 漢字"]
    manifest = ingest(
        store,
        json_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts]),
        tokenizer="all-minilm-l6-v2",
    )
    tokenizer = load_tokenizer("all-minilm-l6-v2")
    assert [row["n_tokens"] for row in rows_of(store, manifest)] == [len(tokenizer.encode([t])[0]) for t in texts]
    assert manifest.tokenizer == "all-minilm-l6-v2"
    with pytest.raises(NotFoundError):
        ingest(store, tmp_path / "a.jsonl", tokenizer=str(tmp_path / "no-tokenizer"))


# Bad rows

GOOD = b'{"text": "good %d"}\n'


def test_exactly_the_corrupted_lines_are_quarantined(store: Store, tmp_path: Path) -> None:
    lines = [GOOD % i for i in range(3000)]
    corrupted = {17: b'{"text": "cut', 1999: b"\xff\xfe\xfd", 2500: b'{"text": 5}'}
    for line, data in corrupted.items():
        lines[line - 1] = data + b"\n"
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "bad.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "in" / "a.jsonl").write_bytes(b'{"text": "of another file"}\n')
    manifest = ingest(store, tmp_path / "in")
    assert [(row["file"], row["line"]) for row in quarantined(store, manifest)] == [
        ("sub/bad.jsonl", line) for line in corrupted
    ]
    assert manifest.n_quarantined == 3
    assert manifest.files[-1].path == "quarantine.jsonl"
    expected = [f"good {i}" for i in range(3000) if i + 1 not in corrupted]
    assert texts_of(store, manifest) == ["of another file", *expected]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{oops}", "invalid JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"body": "x", "n": 1}', "no field 'text' (its fields: body, n)"),
        (b"{}", "no field 'text' (its fields: none)"),
        (b'{"text": 5}', "of type int"),
        (b'{"text": null}', "null"),
        (b'{"text": ["a"]}', "of type list"),
        (b'{"text": ""}', "empty"),
        (b'{"text": " \\n\\t\\u3000"}', "empty"),
        (b'{"text": "\xff"}', "invalid UTF-8"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
    ],
)
def test_each_kind_of_bad_row(store: Store, tmp_path: Path, line: bytes, reason: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD % 1 + b"\n" + line + b"\n" + GOOD % 2)
    manifest = ingest(store, tmp_path / "a.jsonl")
    (entry,) = quarantined(store, manifest)
    assert set(entry) == {"file", "line", "reason", "raw"}
    assert (entry["file"], entry["line"]) == ("a.jsonl", 3)
    assert reason in entry["reason"]
    assert entry["raw"] == line.decode(errors="backslashreplace") + "\n"
    assert texts_of(store, manifest) == ["good 1", "good 2"]
    with pytest.raises(DataError) as caught:
        ingest(store, tmp_path / "a.jsonl", name="strict", on_bad_row="fail")
    assert "a.jsonl:3: " in str(caught.value)
    assert reason in str(caught.value)
    assert store.versions("corpus", "strict") == []


def test_the_quarantine_shows_a_thousand_characters_and_no_password(store: Store, tmp_path: Path) -> None:
    line = '{"url": "https://user:secret@a.example/", "x": "' + "漢" * 3000 + '"}'
    (tmp_path / "a.jsonl").write_bytes(GOOD % 1 + line.encode() + b"\n")
    (entry,) = quarantined(store, ingest(store, tmp_path / "a.jsonl"))
    assert "secret" not in entry["raw"]
    assert entry["raw"].startswith('{"url": "https://a.example/"')
    assert entry["raw"] == line[:1000].replace("user:secret@", "")


def test_bad_rows_of_csv_parquet_and_text(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,n\n"good\none",1\nragged\n ,2\n')
    pq.write_table(pa.table({"text": ["good two", None, ""], "n": [1, 2, 3]}), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_bytes(b"line\nli\xffne\n")
    (tmp_path / "d.txt").write_bytes(b" \n")
    manifest = ingest(store, tmp_path)
    assert texts_of(store, manifest) == ["good\none", "good two"]
    assert [(row["file"], row["line"]) for row in quarantined(store, manifest)] == [
        ("a.csv", 4),
        ("a.csv", 5),
        ("b.parquet", 2),
        ("b.parquet", 3),
        ("c.txt", 2),
        ("d.txt", 1),
    ]
    assert json.loads(quarantined(store, manifest)[2]["raw"]) == {"text": None, "n": 2}


def test_a_line_that_is_too_long_is_quarantined(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 10_000)
    (tmp_path / "a.jsonl").write_bytes(GOOD % 1 + b'{"text": "' + b"x" * 50_000 + b'"}\n' + GOOD % 2)
    manifest = ingest(store, tmp_path / "a.jsonl")
    (entry,) = quarantined(store, manifest)
    assert (entry["line"], len(entry["raw"])) == (2, 1000)
    assert texts_of(store, manifest) == ["good 1", "good 2"]


def test_no_text_field_anywhere_is_an_error_that_lists_the_fields(store: Store, tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"body": "x", "title": "y"}] * 3)
    with pytest.raises(DataError, match=r"no field 'text' \(its fields: body, title\).*text_field"):
        ingest(store, path)
    assert nothing_is_left(store)


def test_input_without_a_document_is_an_error(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    with pytest.raises(DataError, match="no row in the file"):
        ingest(store, tmp_path / "empty.jsonl")
    (tmp_path / "bad.jsonl").write_bytes(b"{}\nnope\n")
    with pytest.raises(DataError, match=r"2 bad rows the first is bad\.jsonl:1"):
        ingest(store, tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match="nowhere does not exist"):
        ingest(store, tmp_path / "nowhere")
    assert nothing_is_left(store)


# Damaged files


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "cut.jsonl.zst", "cut.parquet"])
def test_a_damaged_file_is_kept_up_to_the_damage_and_said_so(store: Store, tmp_path: Path, name: str) -> None:
    rng = random.Random(0)
    rows = [{"text": f"{i} {rng.getrandbits(256):x}"} for i in range(20_000)]
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "whole.parquet")
    whole = {
        "gz": gzip.compress(lines),
        "zst": pa.Codec("zstd").compress(lines, asbytes=True),
        "parquet": (tmp_path / "whole.parquet").read_bytes(),
    }[name.rpartition(".")[2]]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    json_lines(folder / "a.jsonl", [{"text": "whole"}])
    progress = RecordedProgress()
    request = IngestRequest(name="wiki", paths=[str(folder)], tokenizer="bytes")
    manifest = run_ingest(store, request, progress)
    (entry,) = quarantined(store, manifest)
    found = texts_of(store, manifest)[1:]
    assert found == [row["text"] for row in rows[: len(found)]]
    assert (entry["file"], entry["line"]) == (name, len(found) + 1)
    assert manifest.n_quarantined == 1
    assert name in manifest.warnings[0]
    assert any(name in note for note in progress.notes)
    if not name.endswith("parquet"):
        assert len(found) > 5000
    with pytest.raises(DataError, match=f"{name}:{len(found) + 1}: "):
        ingest(store, folder, name="strict", on_bad_row="fail")
    assert store.versions("corpus", "strict") == []


def test_a_file_without_a_good_row_and_a_skipped_file_are_warnings(store: Store, tmp_path: Path) -> None:
    json_lines(tmp_path / "a.jsonl", [{"text": "good"}])
    json_lines(tmp_path / "b.jsonl", [{"body": "x"}] * 4)
    (tmp_path / "README.pdf").write_bytes(b"x")
    manifest = ingest(store, tmp_path)
    assert len(manifest.warnings) == 2
    assert "README.pdf" in manifest.warnings[0]
    assert manifest.warnings[1] == "b.jsonl: none of its 4 rows is a document"


def test_a_file_that_changes_while_it_is_read_is_an_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"text": "one"}])

    class Appending(NoProgress):
        def start(self, stage: str, total: int | None = None, unit: str = "documents") -> None:
            if stage.startswith("ingest"):
                with path.open("a") as sink:
                    sink.write('{"text": "two"}\n')

    with pytest.raises(DataError, match=r"a\.jsonl changed while it was read"):
        run_ingest(store, IngestRequest(name="wiki", paths=[str(path)], tokenizer="bytes"), Appending())
    assert nothing_is_left(store)


# Duplicates


def test_the_first_of_equal_texts_is_kept(store: Store, tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [{"text": f"text {rng.randrange(3000)}", "n": i} for i in range(9000)]
    paths = [json_lines(tmp_path / f"{i}.jsonl", rows[i * 3000 : (i + 1) * 3000]) for i in range(3)]
    seen: dict[str, Json] = {}
    for row in rows:
        seen.setdefault(row["text"], row)
    dropped = ingest(store, *paths, shard_rows=500)
    assert [(row["text"], row["metadata"]["n"]) for row in rows_of(store, dropped)] == [
        (row["text"], row["n"]) for row in seen.values()
    ]
    assert dropped.n_duplicates == 9000 - len(seen)
    assert [entry.n_rows for entry in dropped.shards][:-1] == [500] * (len(seen) // 500)
    kept = ingest(store, *paths, name="all", duplicates="keep")
    assert texts_of(store, kept) == [row["text"] for row in rows]
    assert (kept.n_documents, kept.n_duplicates) == (9000, dropped.n_duplicates)


def test_dropping_duplicates_gives_the_rows_of_the_input_without_them(store: Store, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}"} for i in range(5000)]
    once = ingest(store, json_lines(tmp_path / "once.jsonl", rows), name="one", source="s")
    twice = ingest(store, json_lines(tmp_path / "twice.jsonl", rows + rows), name="two", source="s")
    assert table_of(store, once).equals(table_of(store, twice))
    assert (once.n_duplicates, twice.n_duplicates) == (0, 5000)
    assert (once.n_tokens, once.domains) == (twice.n_tokens, twice.domains)


@pytest.mark.parametrize("buffer_rows", [7, 1 << 18])
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=80), st.integers(1, 20))
def test_repeats_are_those_of_a_set(buffer_rows: int, values: list[int], step: int) -> None:
    ids = [hashlib.sha256(str(value).encode()).hexdigest()[:32] for value in values]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixwright.jobs.duplicates._BUFFER_ROWS", buffer_rows)
        finder = DuplicateFinder(Path(folder) / "duplicates")
        for start in range(0, len(ids), step):
            finder.add(ids[start : start + step])
        found = finder.repeats().tolist()
    assert found == [value in values[:i] for i, value in enumerate(values)]


def test_ids_that_differ_in_one_half_only_are_not_equal(tmp_path: Path) -> None:
    finder = DuplicateFinder(tmp_path / "duplicates")
    finder.add(["a" * 32, "a" * 16 + "b" * 16, "a" * 15 + "b" + "a" * 16, "a" * 32])
    assert finder.repeats().tolist() == [False, False, False, True]


def test_domains_are_counted_alike_in_one_part_and_in_many(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(2)
    rows = [{"text": str(i), "url": f"https://{int(rng.expovariate(0.01))}.example/"} for i in range(5000)]
    manifest = ingest(store, json_lines(tmp_path / "a.jsonl", rows), shard_rows=999)
    monkeypatch.setattr(shards, "_COUNTED_ROWS", 300)
    paths = Corpus.open(store, "wiki").shards
    assert shards.count_domains(paths, 5000) == (manifest.domains, manifest.n_domains)
    assert manifest.n_domains == len({row["url"] for row in rows})
    assert len(manifest.domains) == 100


# Identity


def test_the_same_files_and_parameters_are_found_published(store: Store, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}"} for i in range(50)]
    first = ingest(store, json_lines(tmp_path / "a.jsonl", rows))
    elsewhere = json_lines(tmp_path / "elsewhere" / "b.jsonl", rows)
    assert ingest(store, elsewhere, shard_rows=7) == first
    assert store.versions("corpus", "wiki") == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"text_field": "body"},
        {"text_template": "{text} {body}"},
        {"url_field": "link"},
        {"domain_field": "topic"},
        {"domain": "law"},
        {"source": "crawl"},
        {"tokenizer": "all-minilm-l6-v2"},
        {"duplicates": "keep"},
        {"on_bad_row": "fail"},
        {"name": "wiki@1"},
    ],
)
def test_what_changes_rows_changes_the_fingerprint(store: Store, tmp_path: Path, change: Json) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"text": "a", "body": "b"}])
    first = ingest(store, path)
    second = ingest(store, path, **change)
    assert (second.fingerprint == first.fingerprint) == ("name" in change)
    assert second.version == (1 if "name" in change else 2)


def test_order_and_bytes_of_the_files_change_the_fingerprint(store: Store, tmp_path: Path) -> None:
    a = json_lines(tmp_path / "a.jsonl", [{"text": "a"}])
    b = json_lines(tmp_path / "b.jsonl", [{"text": "b"}])
    assert ingest(store, a, b).fingerprint != ingest(store, b, a).fingerprint
    before = ingest(store, a, name="one")
    a.write_text('{"text": "other"}\n')
    after = ingest(store, a, name="one")
    assert (before.version, after.version) == (1, 2)
    with pytest.raises(ConflictError, match="one@1"):
        ingest(store, a, name="one@1")


def test_two_ingests_give_the_same_bytes_however_the_file_is_served(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [{"text": "".join(rng.choices("abcdef \n", k=rng.randrange(1, 4000)))} for _ in range(5000)]
    path = json_lines(tmp_path / "a.jsonl", rows)
    memory = fsspec.filesystem("memory")
    url = f"memory://{uuid.uuid4().hex}/a.jsonl"
    memory.pipe_file(url, path.read_bytes())
    stores = [Store(tmp_path / name) for name in ("one", "two")]
    try:
        manifests = [ingest(store, where) for store, where in zip(stores, (path, url), strict=True)]
    finally:
        memory.rm(url.removeprefix("memory:/").rpartition("/")[0], recursive=True)
    assert manifests[0].fingerprint == manifests[1].fingerprint
    assert manifests[0].files == manifests[1].files


def test_the_manifest_records_the_input_files(store: Store, tmp_path: Path) -> None:
    data = gzip.compress(b'{"text": "a"}\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jsonl.gz").write_bytes(data)
    json_lines(tmp_path / "b.jsonl", [{"text": "b"}])
    files = ingest(store, tmp_path).parameters["files"]
    assert [each["name"] for each in files] == ["b.jsonl", "sub/a.jsonl.gz"]
    assert files[1] == {
        "name": "sub/a.jsonl.gz",
        "format": "jsonl.gz",
        "n_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


# Scale, progress and death


def test_progress_counts_bytes_then_documents(store: Store, tmp_path: Path) -> None:
    rows = [{"text": f"text {i % 900}"} for i in range(1000)]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json_lines(tmp_path / "a.jsonl", rows).read_bytes()))
    progress = RecordedProgress()
    run_ingest(store, IngestRequest(name="wiki", paths=[str(path)], tokenizer="bytes"), progress)
    size = path.stat().st_size
    assert progress.stages == [
        ("hash wiki", size, "bytes"),
        ("ingest wiki", size, "bytes"),
        ("tokenize wiki", 900, "documents"),
    ]
    assert progress.advanced == {"hash wiki": size, "ingest wiki": size, "tokenize wiki": 900}


def test_a_shard_closes_at_its_bytes(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_SHARD_BYTES", 100_000)
    for module, name in ((shards, "_GROUP_BYTES"), (documents, "_BLOCK_BYTES")):
        monkeypatch.setattr(module, name, 10_000)
    texts = [f"{i} " + "x" * 1000 for i in range(1000)]
    manifest = ingest(store, json_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts]))
    assert texts_of(store, manifest) == texts
    assert 9 <= len(manifest.shards) <= 11


# Peak resident memory of an ingest, in bytes.
_MEASURED = """
import resource, sys
from pathlib import Path
from mixwright.jobs.ingest import run_ingest
from mixwright.progress import NoProgress
from mixwright.schemas.requests import IngestRequest
from mixwright.store import Store
store, paths = Store(Path(sys.argv[1])), sys.argv[2:]
manifest = run_ingest(store, IngestRequest(name="wiki", paths=paths, tokenizer="bytes"), NoProgress())
print(manifest.n_documents, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    rng = random.Random(4)
    words = [f"{rng.getrandbits(40):x}" for _ in range(5000)]

    def peak(n_files: int) -> int:
        command = [sys.executable, "-c", _MEASURED, str(tmp_path / f"home{n_files}"), *paths[:n_files]]
        n_documents, n_bytes = map(int, subprocess.check_output(command).split())
        assert n_documents == n_files * 4500
        return n_bytes

    paths = []
    for i in range(4):
        rows = [{"text": f"{i}-{j} " + " ".join(rng.choices(words, k=250))} for j in range(4500)]
        paths.append(str(json_lines(tmp_path / f"{i}.jsonl", rows)))
    added = sum(os.path.getsize(path) for path in paths[1:])
    assert added > 32 << 20
    # Blocks and shards in work are the same; what is allowed is the noise of an allocator.
    assert peak(4) - peak(1) < 16 << 20


_WAITS_AT = """
import sys, time
from pathlib import Path
from mixwright.jobs.ingest import run_ingest
from mixwright.progress import NoProgress
from mixwright.schemas.requests import IngestRequest
from mixwright.store import Store

class Waiting(NoProgress):
    def start(self, stage, total=None, unit="documents"):
        if stage.startswith(sys.argv[3]):
            print("waiting", flush=True)
            time.sleep(60)

request = IngestRequest(name="wiki", paths=[sys.argv[2]], tokenizer="bytes")
run_ingest(Store(Path(sys.argv[1])), request, Waiting())
"""


@pytest.mark.parametrize("stage", ["ingest", "tokenize"])
def test_a_killed_ingest_publishes_nothing_and_can_be_run_again(store: Store, tmp_path: Path, stage: str) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"text": f"text {i}"} for i in range(100)])
    command = [sys.executable, "-c", _WAITS_AT, str(store.home), str(path), stage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGKILL)
    assert list(store.manifests()) == []
    manifest = ingest(store, path)
    other = Store(tmp_path / "other")
    assert manifest.files == ingest(other, path).files
    assert store.collect_garbage() == 0


def test_suffixes_are_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "ingest.md").read_text()
    for suffix in [*input_files._SUFFIXES, *input_files._COMPRESSIONS]:
        assert f"`{suffix}`" in page
    for name in IngestRequest.model_fields:
        if name != "kind":
            assert f"`{name}`" in page


def test_a_corpus_has_shards_to_share_out_and_not_too_many() -> None:
    sizes = {n: shards.default_shard_rows(n) for n in (1, 100, 1_000, 100_000, 10**7)}
    assert sizes == {1: 128, 100: 128, 1_000: 128, 100_000: 1_563, 10**7: 10_000}
