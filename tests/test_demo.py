"""The demo: its texts, and a small run of the whole chain with the real encoder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixwright.cli import app
from mixwright.cli import demo as demo_module
from mixwright.cli.demo_texts import DEMO_CORPORA, write_rows
from mixwright.hosts import host_of
from mixwright.schemas.manifests import IndexManifest, MixtureManifest
from mixwright.selectors.streams import MixtureStream
from mixwright.store import Store


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """The first hundred rows of each of the demo's corpora."""
    folder = tmp_path_factory.mktemp("texts")
    found = {}
    for corpus in DEMO_CORPORA:
        path = folder / f"{corpus.name}.jsonl"
        write_rows(dataclasses.replace(corpus, limit=100), path)
        found[corpus.name] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return found


def test_the_texts_are_real_and_of_at_least_four_domains(texts: dict[str, list[dict[str, str]]]) -> None:
    assert all(len(rows) >= 30 for rows in texts.values())
    assert all(len(row["text"]) >= 200 and row["title"] for rows in texts.values() for row in rows)
    hosts = {host_of(row["url"]) for rows in texts.values() for row in rows}
    assert len(hosts) >= 10
    assert any("class " in row["text"] or "def " in row["text"] for row in texts["python-source"])
    assert any("license" in row["text"].lower() for row in texts["licences"])


def test_the_texts_are_the_same_each_time(texts: dict[str, list[dict[str, str]]], tmp_path: Path) -> None:
    corpus = dataclasses.replace(DEMO_CORPORA[0], limit=100)
    write_rows(corpus, tmp_path / "again.jsonl")
    again = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text("utf-8").splitlines()]
    assert again == texts[corpus.name]


def test_the_chain_publishes_mixtures_and_a_second_run_reuses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tuple(dataclasses.replace(corpus, limit=12) for corpus in DEMO_CORPORA)
    monkeypatch.setattr(demo_module, "DEMO_CORPORA", few)
    arguments = ["demo", "--no-serve", "--home", str(tmp_path)]
    first = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert first.exit_code == 0
    assert first.stdout.count("curl ") == 3
    store = Store(tmp_path)
    mixtures = [each for each in store.manifests("mixture") if isinstance(each, MixtureManifest)]
    assert [each.selector for each in mixtures] == ["domain-tags", "proportional", "uniform"]
    indexes = [each for each in store.manifests("index") if isinstance(each, IndexManifest)]
    assert len(indexes) == len(DEMO_CORPORA)
    assert all(each.encoder == "all-minilm-l6-v2" and each.dim == 384 for each in indexes)
    rows = [row for table in MixtureStream.open(store, "demo-domain-tags").read() for row in table.to_pylist()]
    assert any(row["tag_text"] == f"URL: {row['domain']}\n\n" for row in rows)

    published = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")}
    second = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert second.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")} == published
