"""A mixture's rows: the same whatever the position, rank or restart, and true to the manifest."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conftest import PublishCorpus
from hypothesis import given, settings
from hypothesis import strategies as st
from support import document_table

from mixwright import corpora as corpora_module
from mixwright.corpora import Corpus
from mixwright.errors import AlignmentError, ConfigError, ConflictError
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.manifests import MixtureManifest
from mixwright.schemas.mixtures import Budget
from mixwright.selectors.requests import SelectRequest
from mixwright.selectors.streams import MixtureStream, Tokenization, pieces
from mixwright.store import Store


def corpus_table(name: str, n: int, mean: int) -> pa.Table:
    rng = np.random.default_rng(len(name))
    return document_table(
        [f"{name} {i} " + "x" * int(rng.integers(1, mean)) for i in range(n)],
        source=name,
        domains=[f"{name}{i % 5}.org" if i % 4 else None for i in range(n)],
        n_tokens=rng.integers(1, 2 * mean, n).tolist(),
    )


TABLES = {"a": corpus_table("a", 230, 40), "bb": corpus_table("bb", 30, 10), "ccc": corpus_table("ccc", 500, 9)}


@pytest.fixture
def corpora(publish_corpus: PublishCorpus) -> None:
    for name, table in TABLES.items():
        publish_corpus(name, table, shard_rows=70)


def select(store: Store, name: str, budget: int, **selector: Any) -> MixtureManifest:
    request = SelectRequest(name=name, sources=list(TABLES), selector=selector, budget=Budget(tokens=budget))
    return run_select(store, request, NoProgress())


def rows(stream: MixtureStream, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
    return [row for table in stream.read(*args, **kwargs) for row in table.to_pylist()]


@pytest.mark.usefixtures("corpora")
class TestStream:
    def test_the_rows_are_the_documents_and_the_shares_are_the_weights(self, store: Store) -> None:
        manifest = select(store, "m", 12_000, kind="uniform", max_epochs=30)
        served = rows(MixtureStream.open(store, "m"))
        documents = {(name, row["id"]): row for name, table in TABLES.items() for row in table.to_pylist()}
        tokens: Counter[str] = Counter()
        for position, row in enumerate(served):
            assert row["position"] == position
            original = documents[row["component"], row["id"]]
            shared = ("text", "source", "domain", "url", "n_tokens")
            assert {key: row[key] for key in shared} == {key: original[key] for key in shared}
            tokens[row["component"]] += row["n_tokens"]
        for component in manifest.components:
            assert tokens[component.name] == component.n_tokens
            assert tokens[component.name] / tokens.total() == pytest.approx(component.weight)
            assert component.weight == pytest.approx(1 / 3, abs=0.002)
        assert len(served) == manifest.n_rows

    def test_every_pass_serves_every_document_once_in_another_order(self, store: Store) -> None:
        manifest = select(store, "m", 12_000, kind="uniform", max_epochs=30)
        component = next(each for each in manifest.components if each.name == "bb")
        assert component.passes >= 2
        passes: dict[int, list[str]] = defaultdict(list)
        for row in rows(MixtureStream.open(store, "m")):
            if row["component"] == "bb":
                passes[row["epoch"]].append(row["id"])
        everything = sorted(TABLES["bb"]["id"].to_pylist())
        assert all(sorted(passes[number]) == everything for number in range(component.passes))
        assert len({tuple(order) for order in passes.values()}) == len(passes)
        last = passes[component.passes]
        assert len(last) == len(set(last)) == component.n_remainder

    def test_any_start_count_and_rank_reads_a_part_of_the_one_stream(self, store: Store) -> None:
        manifest = select(store, "m", 6_000, kind="domain-tags", weights="uniform", max_epochs=30)
        stream = MixtureStream.open(store, "m")
        everything = rows(stream)
        near_the_end = st.integers(0, manifest.n_rows + 5)

        @settings(max_examples=60, deadline=None)
        @given(st.data(), st.integers(1, 9), st.integers(1, 40), near_the_end, near_the_end)
        def check(data: st.DataObject, world_size: int, block_rows: int, offset: int, start: int) -> None:
            rank = data.draw(st.integers(0, world_size - 1))
            count = data.draw(st.one_of(st.none(), st.integers(0, 50)))
            part = rows(
                stream,
                start,
                count,
                rank,
                world_size,
                block_rows=block_rows,
                offset=offset,
                batch_rows=data.draw(st.integers(1, 40)),
                batch_bytes=data.draw(st.integers(1, 2000)),
                first_rows=data.draw(st.one_of(st.none(), st.integers(1, 40))),
            )
            numbered = enumerate(everything[offset:])
            own = [row for number, row in numbered if number // block_rows % world_size == rank][start:]
            assert part == (own if count is None else own[:count])

        check()

    def test_the_ranks_together_read_every_row_once(self, store: Store) -> None:
        """Two stages, tags that are dropped out, and three passes."""
        manifest = select(store, "m", 9_000, kind="domain-tags", cooldown=0.3, weights="uniform", max_epochs=30)
        stream = MixtureStream.open(store, "m")
        everything = rows(stream)
        assert [row["position"] for row in everything] == list(range(manifest.n_rows))
        assert len({row["stage"] for row in everything}) == 2
        for world_size, block_rows, offset in ((3, 1, 0), (7, 5, 100), (64, 3, 11)):
            read = [
                row
                for rank in range(world_size)
                for row in rows(stream, 0, None, rank, world_size, block_rows=block_rows, offset=offset)
            ]
            assert sorted(read, key=lambda row: row["position"]) == everything[offset:]

    def test_shares_hold_in_every_prefix(self, store: Store) -> None:
        manifest = select(store, "m", 20_000, kind="temperature", max_epochs=30)
        served = rows(MixtureStream.open(store, "m"))
        for component in manifest.components:
            count = np.cumsum([row["component"] == component.name for row in served])
            expected = np.arange(1, len(served) + 1) * component.n_rows / manifest.n_rows
            share = component.n_rows / manifest.n_rows
            assert np.abs(count - expected).max() <= (1 + (len(TABLES) - 2) * share) / 2 + 1e-9

    def test_cooldown_rows_are_plain_and_the_others_tagged(self, store: Store) -> None:
        manifest = select(store, "m", 4_000, kind="domain-tags")
        served = rows(MixtureStream.open(store, "m"))
        boundary = manifest.stages[0].n_rows
        for row in served:
            tagged = row["position"] < boundary and row["domain"] is not None
            assert row["stage"] == ("tagged" if row["position"] < boundary else "cooldown")
            assert row["tag_text"] == (f"URL: {row['domain']}\n\n" if tagged else "")
        cooled = sum(row["n_tokens"] for row in served[boundary:])
        assert cooled == manifest.stages[1].n_tokens
        assert cooled / manifest.n_tokens == pytest.approx(0.1, abs=0.02)
        ids = Counter((row["component"], row["id"]) for row in served)
        assert max(ids.values()) == 1

    def test_dropout_rows_follow_the_rate_and_the_document(self, store: Store) -> None:
        select(
            store,
            "m",
            15_000,
            kind="domain-tags",
            preset="boc",
            template="<boc>{domain}<eoc>",
            empty="<boc><eoc>",
            dropout=0.3,
            max_epochs=8,
        )
        served = [row for row in rows(MixtureStream.open(store, "m")) if row["domain"]]
        dropped = [row["tag_text"] == "<boc><eoc>" for row in served]
        assert np.mean(dropped) == pytest.approx(0.3, abs=0.06)
        per_pass = {(row["component"], row["id"], row["epoch"]): d for row, d in zip(served, dropped, strict=True)}
        assert len(per_pass) == len(served)

    def test_rare_domains_lose_their_tag(self, store: Store) -> None:
        select(store, "m", 3_000, kind="domain-tags", min_docs=40, schedule="always")
        counts = Counter(d for table in TABLES.values() for d in table["domain"].to_pylist())
        for row in rows(MixtureStream.open(store, "m")):
            common = row["domain"] is not None and counts[row["domain"]] >= 40
            assert row["tag_text"] == (f"URL: {row['domain']}\n\n" if common else "")

    def test_tokenized_rows_hold_tag_and_text_and_an_exact_mask(self, store: Store) -> None:
        select(store, "m", 3_000, kind="domain-tags")
        for row in rows(MixtureStream.open(store, "m"), tokenization=Tokenization("bytes", bos=256, eos=257)):
            tag, text = row["tag_text"].encode(), row["text"].encode()
            assert row["input_ids"] == [256, *tag, *text, 257]
            assert row["loss_mask"] == [not tag] * (1 + len(tag)) + [True] * (len(text) + 1)

    def test_wrong_arguments_are_refused_before_the_first_row(self, store: Store) -> None:
        select(store, "m", 3_000, kind="domain-tags", preset="ctrl")
        stream = MixtureStream.open(store, "m")
        for arguments in ({"start": -1}, {"count": -1}, {"rank": 2, "world_size": 2}, {"world_size": 0}):
            with pytest.raises(ConfigError):
                stream.read(**arguments)
        with pytest.raises(ConfigError, match="how many tokens a window has"):
            stream.read(tokenization=Tokenization("all-minilm-l6-v2"))

    def test_the_same_request_is_the_same_mixture(self, store: Store) -> None:
        first = select(store, "m", 3_000, kind="uniform")
        assert select(store, "m", 3_000, kind="uniform") == first
        assert select(store, "m", 3_001, kind="uniform").ref == "m@2"
        with pytest.raises(ConflictError):
            select(store, "m@1", 3_002, kind="uniform")

    def test_a_replaced_corpus_is_noticed(self, store: Store, publish_corpus: PublishCorpus) -> None:
        select(store, "m", 3_000, kind="uniform")
        corpus = store.manifest("bb", "corpus")
        (store.directory(corpus) / "manifest.json").write_text(
            corpus.model_copy(update={"fingerprint": "0" * 64}).model_dump_json()
        )
        with pytest.raises(AlignmentError, match="corpus bb@1 is not the one"):
            MixtureStream.open(store, "m")


@pytest.mark.usefixtures("corpora")
def test_a_row_is_found_through_many_shards(store: Store) -> None:
    corpus = Corpus.open(store, "ccc")
    everything = pl.read_parquet(corpus.shards)
    wanted = np.random.default_rng(0).integers(0, len(corpus), 300)
    assert corpus.take(wanted).to_pylist() == everything[wanted].to_dicts()
    assert corpus.rows(495, 100).num_rows == 5
    assert len(list(Path(store.home / "cache").rglob("*.arrow"))) == 8


def test_the_same_rows_in_other_shards_are_not_mixed_up(store: Store, publish_corpus: PublishCorpus) -> None:
    table = TABLES["a"]
    first, second = (publish_corpus(name, table, shard_rows=n) for name, n in (("few", 11), ("many", 100)))
    assert first.fingerprint == second.fingerprint
    for name in ("few", "many"):
        assert Corpus.open(store, name).rows(0, table.num_rows).to_pylist() == table.to_pylist()


@pytest.mark.parametrize("wrong", [{"window": 0}, {"bos": -1}, {"eos": 2**31}])
def test_token_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        Tokenization("bytes", **wrong)


# Memory


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 60))
def test_pieces_are_as_long_as_they_may_be(sizes: list[int], limit: int) -> None:
    found = list(pieces(np.asarray(sizes, dtype=np.int64), limit))
    assert [each for piece in found for each in sizes[piece]] == sizes
    for number, piece in enumerate(found):
        assert sum(sizes[piece]) <= limit or piece.stop - piece.start == 1
        if number + 1 < len(found):
            assert sum(sizes[piece]) + sizes[found[number + 1].start] > limit


def test_batches_are_bounded_in_bytes(store: Store, publish_corpus: PublishCorpus) -> None:
    sizes = np.random.default_rng(0).integers(1, 3000, 80)
    sizes[[7, 40]] = 50_000
    # Two bytes a letter: bytes count, not letters.
    texts = [f"{number} " + "é" * int(size) for number, size in enumerate(sizes)]
    publish_corpus("mixed", document_table(texts, source="mixed"), shard_rows=30)
    request = SelectRequest(name="m", sources=["mixed"], selector={"kind": "uniform"}, budget=Budget(documents=80))
    run_select(store, request, NoProgress())
    tables = list(MixtureStream.open(store, "m").read(batch_bytes=20_000))
    total = 0
    for table in tables:
        n_bytes = sum(len(text.encode()) for text in table["text"].to_pylist())
        assert n_bytes <= 20_000 or table.num_rows == 1
        total += n_bytes
    assert total == sum(len(text.encode()) for text in texts)
    # As full as they can be: two neighbours do not fit into one.
    assert len(tables) <= 2 * total / 20_000 + 2


def test_text_is_weighed_without_reading_it(store: Store, publish_corpus: PublishCorpus) -> None:
    texts = [f"{number}ü" * (number % 7) for number in range(100)]
    metadata = [json.dumps({"n": "x" * (number % 5)}) for number in range(100)]
    publish_corpus("c", document_table(texts, metadata=metadata), shard_rows=33)
    wanted = np.random.default_rng(0).integers(0, 100, 60)
    corpus = Corpus.open(store, "c")
    assert corpus.text_bytes(wanted).tolist() == [len(texts[each].encode()) for each in wanted]
    both = corpus.text_bytes(wanted, ("text", "metadata"))
    assert both.tolist() == [len(texts[each].encode()) + len(metadata[each]) for each in wanted]


def test_a_shard_is_copied_once_for_all_who_wait(
    store: Store, publish_corpus: PublishCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_corpus("c", TABLES["a"], shard_rows=100)
    written: list[str] = []

    def slow(table: pa.Table, path: Path) -> None:
        written.append(path.name)
        time.sleep(0.05)
        write_arrow(table, path)

    write_arrow = corpora_module._write_arrow
    monkeypatch.setattr(corpora_module, "_write_arrow", slow)
    expected = TABLES["a"]["text"].to_pylist()
    with ThreadPoolExecutor(6) as threads:
        # A corpus object each, as two mixtures of one corpus have.
        read = list(threads.map(lambda _: Corpus.open(store, "c").rows(0, 230)["text"].to_pylist(), range(6)))
    assert read == [expected] * 6
    assert len(written) == 3


def test_a_copy_that_failed_leaves_nothing(
    store: Store, publish_corpus: PublishCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_corpus("c", TABLES["a"])

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(corpora_module.os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            Corpus.open(store, "c").rows(0, 1)
    assert [path.name for path in (store.home / "cache").rglob("*.arrow*")] == []
    assert Corpus.open(store, "c").rows(0, 1).num_rows == 1
