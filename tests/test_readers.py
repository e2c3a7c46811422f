"""Files to rows: which files are read, and every row of them, good or bad, with its line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import uuid
import zlib
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from mixwright.errors import ConfigError, DataError, MissingExtraError
from mixwright.jobs import readers
from mixwright.jobs.input_files import InputFile, find_input_files, open_stored
from mixwright.jobs.readers import BadRow, DamagedFileError, Row, read_rows


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read(path: Path, format: Any = "auto") -> tuple[list[Row | BadRow], DamagedFileError | None]:
    """All rows of one file, and the damage that ended it."""
    (file,), _ = find_input_files([str(path)], format)
    rows: list[Row | BadRow] = []
    try:
        for row in read_rows(file, "text", lambda n: None):
            rows.append(row)
    except DamagedFileError as damage:
        return rows, damage
    return rows, None


def good(path: Path, format: Any = "auto") -> list[tuple[int, dict[str, Any]]]:
    """(line, fields) of a file in which everything must be good."""
    rows, damage = read(path, format)
    assert damage is None
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [(row.line, row.fields) for row in rows if isinstance(row, Row)]


def bad(path: Path) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in read(path)[0] if isinstance(row, BadRow)]


def names(paths: Sequence[Path | str], format: Any = "auto") -> list[str]:
    return [file.name for file in find_input_files([str(path) for path in paths], format)[0]]


# Which files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name in ("b.jsonl", "a.jsonl", "sub/c.csv.gz", "sub/deep/d.txt", ".hidden.jsonl", ".git/e.jsonl", "f.pdf"):
        write(root / name, b"x")
    return root


def test_a_folder_is_read_recursively_in_order_without_hidden_and_unknown_files(folder: Path) -> None:
    files, warnings = find_input_files([str(folder)], "auto")
    assert [file.name for file in files] == ["a.jsonl", "b.jsonl", "sub/c.csv.gz", "sub/deep/d.txt"]
    assert [file.format for file in files] == ["jsonl", "jsonl", "csv.gz", "text"]
    assert len(warnings) == 1
    assert "f.pdf" in warnings[0]


def test_a_given_format_takes_files_of_any_suffix(folder: Path) -> None:
    assert "f.pdf" in names([folder], "text")
    assert names([folder / "f.pdf"], "jsonl") == ["f.pdf"]


def test_globs(folder: Path) -> None:
    assert names([f"{folder}/*.jsonl"]) == ["a.jsonl", "b.jsonl"]
    assert names([f"{folder}/**/*.txt"]) == ["d.txt"]
    assert names([f"{folder}/**"]) == names([folder])
    assert names([f"{folder}/s*"]) == ["c.csv.gz", "deep/d.txt"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    assert names([write(tmp_path / "part[1].jsonl", b"x")]) == ["part[1].jsonl"]


def test_each_file_is_read_once_in_the_order_of_the_paths(folder: Path) -> None:
    assert names([folder / "b.jsonl", folder, folder / "a.jsonl"])[:2] == ["b.jsonl", "a.jsonl"]
    assert len(names([folder, folder])) == 4


def test_names_tell_files_of_the_same_name_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path / name / "x.jsonl", b"x") for name in ("one", "two")]
    assert names(paths) == ["one/x.jsonl", "two/x.jsonl"]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".JSONL", ".jsonl.gz", ".jsonl.zst"])
def test_suffixes_of_json_lines(tmp_path: Path, suffix: str) -> None:
    (file,), _ = find_input_files([str(write(tmp_path / f"a{suffix}", b""))], "auto")
    assert file.form == "jsonl"


def test_a_url_without_its_package_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules makes an import fail, whether the package is installed or not.
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mixwright\[s3\]'"):
        find_input_files(["s3://bucket/a.jsonl"], "auto")


def test_paths_that_name_nothing_are_errors_that_name_them(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.jsonl does not exist"):
        names([folder, tmp_path / "missing.jsonl"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no file to read"):
        names([folder, tmp_path / "empty"])
    with pytest.raises(DataError, match=r"\*\.csv: no file to read"):
        names([f"{folder}/*.csv"])
    with pytest.raises(DataError, match=r"f\.pdf: its suffix tells no format"):
        names([folder / "f.pdf"])
    with pytest.raises(DataError, match="Parquet compresses itself"):
        names([write(tmp_path / "a.parquet.gz", b"x")])
    with pytest.raises(ConfigError, match="nonsense"):
        names(["nonsense://bucket/a.jsonl"])


def test_fsspec_urls(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    root = f"/{uuid.uuid4().hex}"
    for name in ("a.jsonl", "sub/b.jsonl"):
        memory.pipe_file(f"{root}/{name}", b'{"text": "in memory"}\n')
    try:
        assert names([f"memory:/{root}"]) == ["a.jsonl", "sub/b.jsonl"]
        assert names([f"memory:/{root}/*.jsonl"]) == ["a.jsonl"]
        (file,), _ = find_input_files([f"memory:/{root}/sub/b.jsonl"], "auto")
        assert next(read_rows(file, "text", lambda n: None)).line == 1
    finally:
        memory.rm(root, recursive=True)
    assert names([f"file://{folder}/a.jsonl"]) == ["a.jsonl"]


def test_progress_adds_up_to_the_stored_size_whatever_the_format(tmp_path: Path) -> None:
    rows = [{"text": f"document {i}"} for i in range(2000)]
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name, data in (
        ("a.jsonl", lines),
        ("a.jsonl.gz", gzip.compress(lines)),
        ("cut.jsonl.gz", gzip.compress(lines)[:-20]),
        ("cut at once.jsonl.gz", b"x" * (3 << 20)),
        ("a.jsonl.zst", zstd(lines)),
        ("a.parquet", (tmp_path / "a.parquet").read_bytes()),
    ):
        (file,), _ = find_input_files([str(write(tmp_path / name, data))], "auto")
        seen: list[int] = []
        try:
            list(read_rows(file, "text", seen.append))
        except DamagedFileError:
            assert name.startswith("cut")
        assert sum(seen) == len(data), name


# JSON lines


def test_lines_are_counted_with_blank_ones_and_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"text": "one"}\r\n\r\n  \n{"text": "f\xc3\xbcnf", "n": 1}\n{"text": "six"}'
    assert good(write(tmp_path / "a.jsonl", data)) == [
        (1, {"text": "one"}),
        (4, {"text": "fünf", "n": 1}),
        (5, {"text": "six"}),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "invalid JSON: Expecting"),
        (b"hello", "invalid JSON: Expecting value at character 1"),
        (b'{"text": "a"} {"text": "b"}', "invalid JSON: Extra data"),
        (b'{"text": "\xff\xfe"}', "invalid UTF-8 at byte 11"),
        (b'{"text": "\\ud800 alone"}', "lone surrogate"),
        (b'{"text": "a", "x": "\\udc00"}', "lone surrogate"),
        (b'{"text": "a", "x": NaN}', "NaN"),
        (b'{"text": "a", "x": 1e999}', "beyond a float"),
        (b'["a"]', "not a JSON object"),
        (b'"a"', "not a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"text": "a", "x": ' + b"9" * 10_000 + b"}", "number too long"),
    ],
)
def test_bad_json_lines_say_where_and_why(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    rows, damage = read(path)
    assert damage is None
    assert [type(row) for row in rows] == [Row, BadRow, Row]
    assert isinstance(rows[1], BadRow)
    assert rows[1].line == 2
    assert reason in rows[1].reason
    assert rows[1].raw == line + b"\n"


def test_a_line_that_is_too_long_is_bad_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 1000)
    fits = json.dumps({"text": "x" * 900}).encode()
    data = b'{"text": "a"}\n{"text": "' + b"x" * 5000 + b'"}\n' + fits + b"\n" + b"y" * 3000
    rows, _ = read(write(tmp_path / "a.jsonl", data))
    assert [(type(row), row.line) for row in rows] == [(Row, 1), (BadRow, 2), (Row, 3), (BadRow, 4)]
    assert "MiB" in bad(tmp_path / "a.jsonl")[0][1]


def test_a_document_of_ten_megabytes(tmp_path: Path) -> None:
    text = "0123456789" * 1_000_000
    lines = json.dumps({"text": text}).encode() + b"\n"
    for name, data in (("a.jsonl", lines), ("a.jsonl.gz", gzip.compress(lines, 1)), ("a.jsonl.zst", zstd(lines))):
        assert good(write(tmp_path / name, data)) == [(1, {"text": text})]
    assert good(write(tmp_path / "a.csv", b"text\n" + text.encode() + b"\n")) == [(2, {"text": text})]
    pq.write_table(pa.table({"text": [text] * 3}), tmp_path / "a.parquet")
    assert [len(fields["text"]) for _, fields in good(tmp_path / "a.parquet")] == [len(text)] * 3


# Compression


LINES = b"".join(
    json.dumps({"text": f"{i} {uuid.UUID(int=i * 7919 << 64)}"}).encode() + b"\n" for i in range(50_000)
)


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_files_of_several_members_or_frames_are_read_whole(tmp_path: Path, compress: Any) -> None:
    suffix = "gz" if compress is gzip.compress else "zst"
    cuts = [0, 100_000, 100_001, len(LINES)]
    data = b"".join(compress(LINES[a:b]) for a, b in pairwise(cuts))
    rows = good(write(tmp_path / f"a.jsonl.{suffix}", data))
    assert [fields for _, fields in rows] == [json.loads(line) for line in LINES.splitlines()]


@pytest.mark.parametrize(("compress", "lost"), [(gzip.compress, 0), (zstd, 1 << 10)])
@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_a_truncated_file_gives_the_rows_before_the_break(
    tmp_path: Path, compress: Any, lost: int, share: float
) -> None:
    suffix = "gz" if compress is gzip.compress else "zst"
    whole = compress(LINES)
    path = write(tmp_path / f"a.jsonl.{suffix}", whole[: min(int(len(whole) * share), len(whole) - 1)])
    rows, damage = read(path)
    expected = [json.loads(line) for line in LINES.splitlines()]
    assert [row.fields for row in rows if isinstance(row, Row)] == expected[: len(rows)]
    assert damage is not None
    assert damage.line == len(rows) + 1
    if suffix == "gz":
        # Oracle: what zlib makes of the same bytes.
        available = zlib.decompressobj(31).decompress(path.read_bytes())
        assert available.count(b"\n") - len(rows) <= lost
    else:
        assert len(rows) > 0.9 * share * len(expected) - 4000


def test_a_damaged_gz_ends_at_the_damage(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(LINES))
    data[len(data) // 2 : len(data) // 2 + 200] = b"\0" * 200
    rows, damage = read(write(tmp_path / "a.jsonl.gz", bytes(data)))
    assert damage is not None
    sound = [row for row in rows if isinstance(row, Row)]
    assert len(sound) > 10_000
    assert damage.line > 10_000


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.csv.gz", "a.txt.zst", "a.parquet"])
def test_a_file_that_is_not_what_its_suffix_says_has_no_rows(tmp_path: Path, name: str) -> None:
    rows, damage = read(write(tmp_path / name, b'{"text": "plain"}\n' * 10))
    assert rows == []
    assert damage is not None
    assert damage.line == 1


class _FailingFile(io.BytesIO):
    """Serves 100,000 bytes, then the network goes."""

    served = 0

    def read(self, n: int | None = -1) -> bytes:
        data = super().read(n)
        self.served += len(data)
        if self.served > 100_000:
            raise OSError("connection reset")
        return data


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.parquet"])
def test_a_file_system_that_fails_is_no_damaged_file(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in LINES.splitlines()]), tmp_path / "x")
    stored = {".gz": gzip.compress(LINES), ".zst": zstd(LINES), ".parquet": (tmp_path / "x").read_bytes()}
    data = stored.get(Path(name).suffix, LINES)
    (file,), _ = find_input_files([str(write(tmp_path / name, data))], "auto")
    monkeypatch.setattr(LocalFileSystem, "open", lambda *args, **kwargs: _FailingFile(data))
    with pytest.raises(DataError, match="connection reset") as caught:
        list(read_rows(file, "text", lambda n: None))
    assert not isinstance(caught.value, DamagedFileError)


def test_a_file_that_vanishes_is_a_data_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"{}")
    (file,), _ = find_input_files([str(path)], "auto")
    path.unlink()
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read"), open_stored(file, lambda n: None):
        pass


# CSV

FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=20)


@given(st.lists(st.lists(FIELD, min_size=3, max_size=3), min_size=1, max_size=20))
def test_any_csv_that_python_writes_is_read_back(records: list[list[str]]) -> None:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "b", "c"])
    lines = []
    for record in records:
        lines.append(sink.getvalue().count("\n") + 1)
        writer.writerow(record)
    memory = fsspec.filesystem("memory")
    path = f"/{uuid.uuid4().hex}.csv"
    memory.pipe_file(path, sink.getvalue().encode())
    try:
        rows = list(read_rows(InputFile(memory, path, "a.csv", "csv", None), "text", lambda n: None))
    finally:
        memory.rm(path)
    assert [(row.line, list(row.fields.values())) for row in rows if isinstance(row, Row)] == list(
        zip(lines, records, strict=True)
    )


def test_csv_with_byte_order_mark_carriage_returns_and_blank_lines(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbftext,label\r\n"one, two",1\r\n\r\n"three\r\nfour",2\r\nlast,\r\n'
    assert good(write(tmp_path / "a.csv", data)) == [
        (2, {"text": "one, two", "label": "1"}),
        (4, {"text": "three\r\nfour", "label": "2"}),
        (6, {"text": "last", "label": ""}),
    ]


def test_tsv(tmp_path: Path) -> None:
    data = b'text\tlabel\none, two\t"a\tb"\n'
    assert good(write(tmp_path / "a.tsv", data)) == [(2, {"text": "one, two", "label": "a\tb"})]
    assert good(write(tmp_path / "b.tsv", data), "csv") == [(2, {"text": "one, two", "label": "a\tb"})]


def test_bad_csv_records_have_their_first_line(tmp_path: Path) -> None:
    data = (
        b"text,label\n"
        b"good,1\n"
        b"too,many,fields\n"  # 3
        b'"two\nlines",1\n'  # 4 and 5, good
        b"few\n"  # 6
        b"\xff\xfe,1\n"  # 7
        b'"quoted" and more,1\n'  # 8
        b'"ragged\nover lines"\n'  # 9 and 10
        b"good,2\n"  # 11
        b'"never closed,3\n'  # 12 …
        b"swallowed,4\n"
    )
    path = write(tmp_path / "a.csv", data)
    rows, damage = read(path)
    assert damage is None
    assert [row.line for row in rows if isinstance(row, Row)] == [2, 4, 11]
    reasons = bad(path)
    assert [line for line, _ in reasons] == [3, 6, 7, 8, 9, 12]
    assert reasons[0][1] == "3 fields where the header has 2"
    assert reasons[1][1] == "1 fields where the header has 2"
    assert reasons[2][1] == "invalid UTF-8"
    assert "lines 9–10" in reasons[4][1]
    assert "lines 12–13" in reasons[5][1]
    raw = [row.raw for row in rows if isinstance(row, BadRow)]
    assert raw[4] == b'"ragged\nover lines"\n'
    assert raw[5] == b'"never closed,3\nswallowed,4\n'


def test_a_csv_record_that_is_too_long_ends_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 200)
    data = b'text,label\n"open,1\n' + b"swallowed,2\n" * 20 + b"good,3\n"
    rows, _ = read(write(tmp_path / "a.csv", data))
    assert isinstance(rows[0], BadRow)
    assert rows[0].line == 2
    assert [row.fields["label"] for row in rows[1:] if isinstance(row, Row)][-1] == "3"


@pytest.mark.parametrize("header", [b"text,text", b"\xff,b", b'"a"b,c'])
def test_a_bad_csv_header_makes_the_file_unreadable(tmp_path: Path, header: bytes) -> None:
    rows, damage = read(write(tmp_path / "a.csv", header + b"\nx,y\n"))
    assert rows == []
    assert damage is not None
    assert damage.line == 1


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl", "b.csv.gz"):
        assert good(write(tmp_path / name, gzip.compress(b"") if name.endswith("gz") else b"")) == []


# Text


def test_a_text_file_is_one_row(tmp_path: Path) -> None:
    data = b"Zeile eins\r\nZeile zwei\n"
    assert good(write(tmp_path / "a.md", b"\xef\xbb\xbf" + data)) == [(1, {"text": data.decode()})]
    assert good(write(tmp_path / "a.txt.zst", zstd(data))) == [(1, {"text": data.decode()})]


def test_a_text_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    assert bad(write(tmp_path / "a.txt", b"one\ntwo\nthr\xffee\n")) == [(3, "invalid UTF-8")]


def test_a_text_file_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 1000)
    assert [line for line, _ in bad(write(tmp_path / "a.txt", b"x" * 1001))] == [1]
    assert len(good(write(tmp_path / "b.txt", b"x" * 1000))) == 1


def test_a_truncated_text_file_is_no_row(tmp_path: Path) -> None:
    rows, damage = read(write(tmp_path / "a.txt.gz", gzip.compress(LINES)[:-9]))
    assert rows == []
    assert damage is not None


# Parquet


def test_parquet_values_keep_their_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["a", "b"], pa.large_string()),
            "kind": pa.array(["x", "y"]).dictionary_encode(),
            "date": pa.array([date(2020, 1, 2), None]),
            "ns": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns")),
            "nested": pa.array([[{"at": 1}], []], pa.list_(pa.struct([("at", pa.timestamp("ns"))]))),
            "us": pa.array([datetime(2020, 1, 2, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
            "price": pa.array([Decimal("1.10"), None]),
            "blob": pa.array([b"\xff\0", None]),
            "n": pa.array([2**63, None], pa.uint64()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    (line, fields), (second, _) = good(tmp_path / "a.parquet")
    assert (line, second) == (1, 2)
    assert fields == {
        "text": "a",
        "kind": "x",
        "date": date(2020, 1, 2),
        "ns": "2023-11-14 22:13:20.123456789",
        "nested": [{"at": "1970-01-01 00:00:00.000000001"}],
        "us": datetime(2020, 1, 2, tzinfo=UTC),
        "price": Decimal("1.10"),
        "blob": b"\xff\0",
        "n": 2**63,
    }


def test_parquet_rows_whose_text_is_not_utf8_are_bad_and_the_others_read(tmp_path: Path) -> None:
    offsets, data = pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")
    table = pa.table({"text": pa.StringArray.from_buffers(3, offsets, data), "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    rows, damage = read(tmp_path / "a.parquet")
    assert damage is None
    assert [row.fields for row in rows if isinstance(row, Row)] == [{"text": "a", "n": 1}, {"text": "c", "n": 3}]
    assert bad(tmp_path / "a.parquet") == [(2, "invalid UTF-8 in column 'text'")]


def test_parquet_cut_off_has_no_rows_and_damaged_pages_end_it(tmp_path: Path) -> None:
    n = 4000
    rows = [{"text": f"{i} {uuid.UUID(int=i * 7919 << 64)}"} for i in range(n)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000, write_page_checksum=True)
    whole = path.read_bytes()
    assert [fields for _, fields in good(path)] == rows

    read_cut, damage = read(write(tmp_path / "cut.parquet", whole[: len(whole) // 2]))
    assert (read_cut, damage.line if damage else None) == ([], 1)

    third_group = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    damaged = bytearray(whole)
    damaged[third_group + 200 : third_group + 260] = b"\0" * 60
    some, damage = read(write(tmp_path / "damaged.parquet", bytes(damaged)))
    assert damage is not None
    assert damage.line == len(some) + 1
    assert [row.fields for row in some if isinstance(row, Row)] == rows[: len(some)]
    assert len(some) == 2000
