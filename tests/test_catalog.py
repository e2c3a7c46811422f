"""The database's schema, and the catalog against the store it indexes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from conftest import PublishCorpus
from sqlalchemy import inspect, text
from support import document_table

from mixwright.errors import ConfigError, NotFoundError
from mixwright.jobs.database import Base, Database, downgrade, upgrade
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.manifests import ArtifactInput, EmbeddingsManifest, IndexManifest, Manifest, RecallReport
from mixwright.schemas.references import Reference
from mixwright.selectors.requests import SelectRequest
from mixwright.service.catalog import Catalog
from mixwright.store import Store


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database_url" in metafunc.fixturenames and "sqlite" not in metafunc.function.__name__:
        metafunc.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def database(tmp_path: Path, database_url: str | None) -> Iterator[Database]:
    database = Database(database_url or f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    database.upgrade()
    yield database
    database.close()


@pytest.fixture
def catalog(database: Database, store: Store) -> Catalog:
    return Catalog(database, store)


def select(store: Store, name: str, sources: list[str], kind: str = "uniform", documents: int = 2) -> Manifest:
    request = SelectRequest.model_validate(
        {"name": name, "sources": sources, "selector": {"kind": kind}, "budget": {"documents": documents}}
    )
    return run_select(store, request, NoProgress())


def publish_vectors(store: Store, corpus: Manifest) -> tuple[Manifest, Manifest]:
    """Embeddings and an index that were never computed: only their manifests matter here."""
    made: dict[str, Any] = {"version": 1, "created_at": datetime.now(UTC), "n_rows": 3, "dim": 2}
    inputs = [ArtifactInput(kind="corpus", ref=corpus.ref, fingerprint=corpus.fingerprint)]
    embeddings = EmbeddingsManifest(
        **made,
        name="vectors",
        fingerprint="e" * 64,
        inputs=inputs,
        corpus=corpus.ref,
        encoder="none",
        encoder_revision="0",
        max_tokens=None,
        n_truncated=0,
        dtype="float32",
        normalized=True,
    )
    recall = RecallReport(k=10, n_queries=1, target=0.9, measured=1.0, lower_bound=1.0, queries="none")
    index = IndexManifest(
        **made,
        name="neighbours",
        fingerprint="f" * 64,
        inputs=[ArtifactInput(kind="embeddings", ref="vectors@1", fingerprint="e" * 64)],
        corpus=corpus.ref,
        embeddings="vectors@1",
        encoder="none",
        index_kind="flat",
        factory="Flat",
        search_parameters={},
        n_bytes=0,
        recall=recall,
    )
    for manifest in (embeddings, index):
        with store.stage(manifest.kind, Reference(manifest.name), manifest.fingerprint) as staging:
            store.publish(staging, manifest)
    return embeddings, index


# Schema


def test_models_and_migrations_agree(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_downgrade_empties_and_upgrade_restores(database: Database) -> None:
    def tables() -> set[str]:
        return set(inspect(database.engine).get_table_names())

    assert tables() == {*Base.metadata.tables, "alembic_version"}
    downgrade(database.engine, "base")
    assert tables() == {"alembic_version"}
    upgrade(database.engine)
    assert tables() == {*Base.metadata.tables, "alembic_version"}


def test_two_processes_upgrade_at_once(tmp_path: Path, database_url: str | None) -> None:
    code = "import sys; from mixwright.jobs.database import Database; Database(sys.argv[1]).upgrade()"
    url = database_url or f"sqlite:///{tmp_path / 'new' / 'catalog.sqlite'}"
    processes = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]


def test_sqlite_is_set_up_for_several_processes(database: Database) -> None:
    with database.engine.connect() as connection:
        pragmas = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30_000}


def test_a_newer_database_is_refused_in_one_line(database: Database) -> None:
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="another mixwright version"):
        database.upgrade()


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////proc/nowhere/catalog.sqlite", "oracle9000://x/y"])
def test_a_wrong_url_is_one_line(url: str) -> None:
    with pytest.raises(ConfigError, match=r"MIXWRIGHT_DATABASE_URL"):
        Database(url).upgrade()


# Catalog


def test_record_is_idempotent(catalog: Catalog, publish_corpus: PublishCorpus) -> None:
    manifest = publish_corpus("wiki", document_table(["a", "b"]))
    catalog.record(manifest)
    catalog.record(manifest)
    page = catalog.page("corpus", 10)
    assert [(each.ref, each.fingerprint, each.n_rows) for each in page.items] == [
        ("wiki@1", manifest.fingerprint, 2)
    ]


def test_what_another_process_publishes_is_seen_at_once(catalog: Catalog, publish_corpus: PublishCorpus) -> None:
    assert catalog.page("corpus", 10).items == []
    publish_corpus("wiki", document_table(["a"]))
    assert catalog.manifest("wiki", "corpus").ref == "wiki@1"
    publish_corpus("wiki", document_table(["b"]))
    assert catalog.manifest("wiki", "corpus").ref == "wiki@2"
    publish_corpus("web", document_table(["c"]))
    assert {each.ref for each in catalog.page("corpus", 10).items} == {"wiki@1", "wiki@2", "web@1"}


def test_manifests_come_back_as_they_were(catalog: Catalog, store: Store, publish_corpus: PublishCorpus) -> None:
    publish_corpus("wiki", document_table(["a", "b", "c"]))
    select(store, "blend", ["wiki"])
    catalog.sync()
    for kind, ref in (("corpus", "wiki@1"), ("mixture", "blend")):
        assert catalog.manifest(ref, kind) == store.manifest(ref, kind)


def test_removed_artifacts_leave_the_catalog(
    catalog: Catalog, store: Store, publish_corpus: PublishCorpus
) -> None:
    keep = publish_corpus("keep", document_table(["a"], domains=["a.org"]))
    lose = publish_corpus("lose", document_table(["b"], domains=["b.org"]))
    catalog.sync()
    shutil.rmtree(store.directory(lose))
    with pytest.raises(NotFoundError, match="lose"):
        catalog.manifest("lose@1", "corpus")
    catalog.sync()
    assert [each.ref for each in catalog.page("corpus", 10).items] == [keep.ref]


def test_rebuild_reads_what_changed_in_place(
    catalog: Catalog, store: Store, publish_corpus: PublishCorpus
) -> None:
    manifest = publish_corpus("wiki", document_table(["a"]))
    catalog.sync()
    other = manifest.model_copy(update={"fingerprint": "0" * 64})
    (store.directory(manifest) / "manifest.json").write_text(other.model_dump_json())
    assert catalog.rebuild() == 1
    assert catalog.manifest("wiki@1", "corpus").fingerprint == "0" * 64


def test_one_damaged_manifest_does_not_hide_the_others(
    catalog: Catalog, store: Store, publish_corpus: PublishCorpus, caplog: pytest.LogCaptureFixture
) -> None:
    publish_corpus("good", document_table(["a"]))
    damaged = publish_corpus("damaged", document_table(["b"]))
    (store.directory(damaged) / "manifest.json").write_text("{")
    assert [each.ref for each in catalog.page("corpus", 10).items] == ["good@1"]
    assert "damaged@1" in caplog.text


def test_a_reference_of_another_kind_is_refused(catalog: Catalog, publish_corpus: PublishCorpus) -> None:
    publish_corpus("wiki", document_table(["a"]))
    with pytest.raises(ConfigError, match="mixture"):
        catalog.manifest("mixture:wiki", "corpus")


def test_pages_are_stable_while_artifacts_are_added(
    catalog: Catalog, store: Store, publish_corpus: PublishCorpus
) -> None:
    before = [publish_corpus(f"corpus-{number}", document_table([f"text {number}"])) for number in range(7)]
    # Equal times must not lose or repeat a row: two artifacts share theirs.
    twin = before[3].model_copy(update={"created_at": before[4].created_at})
    (store.directory(twin) / "manifest.json").write_text(twin.model_dump_json())
    seen, cursor = [], None
    while True:
        page = catalog.page("corpus", 3, cursor)
        seen += [each.ref for each in page.items]
        publish_corpus(f"later-{len(seen)}", document_table([f"later {len(seen)}"]))
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(seen) == sorted(each.ref for each in before)
    assert seen[0] == "corpus-6@1"
    assert seen[-1] == "corpus-0@1"


@pytest.mark.parametrize("cursor", ["x", "e30", "WzFd", "WyIyMDI0IiwiYSIsMV0", "é", "=" * 9])
def test_a_foreign_cursor_is_refused(catalog: Catalog, cursor: str) -> None:
    with pytest.raises(ConfigError, match="cursor"):
        catalog.page("corpus", 10, cursor)


def test_filters_agree_with_reading_everything(
    catalog: Catalog, store: Store, publish_corpus: PublishCorpus
) -> None:
    # More domains than a manifest keeps: the rare ones must be found too.
    domains: dict[str, list[str | None]] = {
        "wiki": [f"site-{number}.org" for number in range(150)],
        "web": ["site-7.org", None, "shop.com"],
        "none": [None, None, None],
    }
    for name, values in domains.items():
        texts = [f"{name} {number}" for number in range(len(values))]
        publish_corpus(name, document_table(texts, domains=values))
    mixtures = {
        select(store, "a", ["wiki"]).ref: ("uniform", ["wiki"]),
        select(store, "b", ["wiki", "web"], "proportional", 102).ref: ("proportional", ["wiki", "web"]),
        select(store, "c", ["none"]).ref: ("uniform", ["none"]),
        select(store, "d", ["web", "none"]).ref: ("uniform", ["web", "none"]),
    }

    def found(**filters: str) -> set[str]:
        return {each.ref for each in catalog.page("mixture", 10, **filters).items}

    for source in ("wiki", "web", "none", "absent"):
        expected = {ref for ref, (_, sources) in mixtures.items() if source in sources}
        assert found(source=source) == found(source=f"{source}@1") == expected
        assert found(source=f"{source}@2") == set()
    for selector in ("uniform", "proportional", "unimax"):
        assert found(selector=selector) == {ref for ref, (kind, _) in mixtures.items() if kind == selector}
    for domain in ("site-7.org", "site-149.org", "shop.com", "absent.net"):
        holds = [name for name, values in domains.items() if domain in values]
        expected = {ref for ref, (_, sources) in mixtures.items() if set(sources) & set(holds)}
        assert found(domain=domain) == expected
    assert found(source="web", selector="uniform", domain="site-7.org") == {"d@1"}


def test_lineage_goes_up_and_down_but_not_sideways(
    catalog: Catalog, store: Store, publish_corpus: PublishCorpus
) -> None:
    wiki = publish_corpus("wiki", document_table(["a", "b", "c"]))
    publish_corpus("web", document_table(["d", "e", "f"]))
    publish_vectors(store, wiki)
    select(store, "both", ["wiki", "web"])
    select(store, "alone", ["web"])

    def lineage(ref: str, kind: Any) -> tuple[set[str], set[tuple[str, str]]]:
        found = catalog.lineage(ref, kind)
        assert all(node.exists for node in found.nodes)
        return {node.id for node in found.nodes}, {(edge.source, edge.target) for edge in found.edges}

    vectors = ("corpus:wiki@1", "embeddings:vectors@1")
    index = ("embeddings:vectors@1", "index:neighbours@1")
    into_both = {("corpus:wiki@1", "mixture:both@1"), ("corpus:web@1", "mixture:both@1")}
    assert lineage("neighbours", "index") == ({*vectors, *index}, {vectors, index})
    assert lineage("wiki", "corpus") == (
        {*vectors, *index, "mixture:both@1"},
        {vectors, index, ("corpus:wiki@1", "mixture:both@1")},
    )
    assert lineage("both", "mixture") == ({"corpus:wiki@1", "corpus:web@1", "mixture:both@1"}, into_both)


def test_lineage_keeps_the_name_of_what_is_gone(
    catalog: Catalog, store: Store, publish_corpus: PublishCorpus
) -> None:
    wiki = publish_corpus("wiki", document_table(["a", "b", "c"]))
    select(store, "blend", ["wiki"])
    catalog.sync()
    shutil.rmtree(store.directory(wiki))
    nodes = {node.id: node for node in catalog.lineage("blend", "mixture").nodes}
    assert not nodes["corpus:wiki@1"].exists
    assert nodes["corpus:wiki@1"].fingerprint == wiki.fingerprint


def test_times_keep_their_zone(catalog: Catalog, store: Store, publish_corpus: PublishCorpus) -> None:
    manifest = publish_corpus("wiki", document_table(["a"]))
    item = catalog.page("corpus", 1).items[0]
    assert item.created_at == manifest.created_at
    assert item.created_at.utcoffset() == timedelta(0)
