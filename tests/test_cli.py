"""The command line as a user meets it: real processes, their output and their exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROWS = [
    {"text": f"Document {i} speaks of topic {i % 3}.", "url": f"https://site{i % 3}.example.org/{i}", "n": i}
    for i in range(40)
]


def mixwright(
    *arguments: str, home: Path, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "mixwright", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "MIXWRIGHT_HOME": str(home), **environment},
        timeout=120,
        check=False,
    )
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result


def printed(*arguments: str, home: Path) -> Any:
    return json.loads(mixwright(*arguments, "--json", home=home).stdout)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two corpora and a mixture."""
    folder = tmp_path_factory.mktemp("cli")
    for name, rows in (("news", ROWS[:30]), ("blog", ROWS[20:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        printed("ingest", str(folder / f"{name}.jsonl"), "--name", name, home=folder / "home")
    printed(
        "select",
        "domain-tags",
        "--source",
        "news",
        "--source",
        "blog",
        "--name",
        "first",
        "--documents",
        "30",
        "--template",
        r"[{domain}]\n",
        home=folder / "home",
    )
    return folder / "home"


def test_ingest_prints_what_the_design_says(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "one"}\nbroken\n{"text": "two"}\n')
    result = printed("ingest", str(tmp_path / "a.jsonl"), "--name", "a", home=tmp_path / "home")
    assert list(result) == ["ref", "fingerprint", "n_documents", "n_duplicates", "n_quarantined", "n_tokens"]
    assert (result["ref"], result["n_documents"], result["n_duplicates"], result["n_quarantined"]) == (
        "a@1",
        2,
        1,
        1,
    )


def test_mixture_show_has_components_with_shares(home: Path) -> None:
    manifest = printed("mixture", "show", "first", home=home)
    assert manifest["ref"] == "first@1"
    assert {"source", "weight", "n_rows", "n_tokens", "epochs"} <= manifest["components"][0].keys()
    assert sum(component["weight"] for component in manifest["components"]) == pytest.approx(1)
    assert manifest["tags"]["template"] == "[{domain}]\n"


def test_rows_are_json_lines_that_ranks_share(home: Path) -> None:
    lines = mixwright("mixture", "rows", "first", home=home).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["position"] for row in rows] == list(range(30))
    assert list(rows[0]) == [
        "position",
        "stage",
        "component",
        "epoch",
        "id",
        "source",
        "domain",
        "url",
        "tag_text",
        "text",
        "n_tokens",
    ]
    by_rank = [
        mixwright("mixture", "rows", "first", "--rank", str(r), "--world-size", "3", home=home).stdout.splitlines()
        for r in range(3)
    ]
    assert [by_rank[i % 3][i // 3] for i in range(30)] == lines
    part = mixwright("mixture", "rows", "first", "--start", "7", "--count", "2", home=home).stdout.splitlines()
    assert part == lines[7:9]


def test_a_reader_that_has_enough_is_no_error(home: Path) -> None:
    command = f"{sys.executable} -m mixwright mixture rows first --home {home} | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert json.loads(result.stdout)["position"] == 0
    assert result.stderr == ""


def test_materialize_writes_the_stream(home: Path, tmp_path: Path) -> None:
    import polars as pl

    out = tmp_path / "out"
    result = printed("mixture", "materialize", "first", "--out", str(out), "--tokenizer", "bytes", home=home)
    assert [entry["n_rows"] for entry in result["files"]] == [30]
    lines = mixwright("mixture", "rows", "first", "--tokenizer", "bytes", home=home).stdout.splitlines()
    assert pl.read_parquet(out / "part-00000.parquet").to_dicts() == [json.loads(line) for line in lines]
    again = mixwright("mixture", "materialize", "first", "--out", str(out), home=home, status=1)
    assert "exists and is not empty" in again.stderr


def test_catalog_and_lineage(home: Path) -> None:
    listed = printed("catalog", "list", home=home)
    assert [(each["kind"], each["ref"]) for each in listed] == [
        ("corpus", "blog@1"),
        ("corpus", "news@1"),
        ("mixture", "first@1"),
    ]
    edges = printed("catalog", "lineage", "news", home=home)["edges"]
    assert {"source": "corpus:news@1", "target": "mixture:first@1"} in edges
    assert printed("catalog", "rebuild", home=home) == {"artifacts": 3}
    assert json.loads(mixwright("catalog", "show", "blog", home=home).stdout)["n_documents"] == 20
    assert printed("catalog", "gc", home=home) == {"removed": 0}
    assert printed("jobs", "list", home=home) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mixture", "show", "nothing"], "no mixture nothing: there are first"),
        (["mixture", "rows", "first", "--rank", "3", "--world-size", "3"], "rank 3 of world size 3"),
        (["mixture", "rows", "a/b"], "is not a reference"),
        (["mixture", "rows", "first", "--bos", "1"], "name a tokenizer too"),
        (["mixture", "rows", "first", "--tokenizer", "bytes", "--window", "0"], "window 0 is out of range"),
        (["ingest", "missing.jsonl", "--name", "x"], "missing.jsonl"),
        (["select", "uniform", "--source", "news", "--name", "x"], "tokens or documents"),
        (
            ["select", "uniform", "--source", "news", "--name", "x", "--tokens", "10", "--max-epochs", "-1"],
            "--max-epochs",
        ),
        (["select", "random", "--source", "news", "--name", "x", "--documents", "9999"], "at most 30 documents"),
        (["jobs", "show", "nothing"], "no job nothing"),
    ],
)
def test_an_error_is_one_line_and_exit_status_1(home: Path, arguments: list[str], message: str) -> None:
    result = mixwright(*arguments, home=home, status=1)
    # Progress may come before it.
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == result.stderr.splitlines()[-1:]
    assert message in errors[0]


def test_an_error_under_json_is_a_problem_document(home: Path) -> None:
    result = mixwright(
        "select", "uniform", "--source", "news", "--name", "x", "--tokens", "999999", "--json", home=home, status=1
    )
    problem = json.loads(result.stderr)
    assert {"type", "title", "status", "detail"} <= problem.keys()
    assert (problem["status"], problem["source"]) == (409, "news")


def test_wrong_usage_is_exit_status_2(home: Path) -> None:
    mixwright("mixture", "rows", home=home, status=2)
    mixwright("select", "uniform", "--sede", "3", home=home, status=2)


def test_a_wrong_setting_names_its_variable(home: Path) -> None:
    result = mixwright("catalog", "list", home=home, status=1, MIXWRIGHT_WORKERS="many")
    assert "MIXWRIGHT_WORKERS" in result.stderr


def test_help_starts_fast_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, mixwright.cli\n"
        "heavy = {'torch', 'ray', 'faiss', 'fastapi', 'sqlalchemy', 'sentence_transformers', 'transformers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
