"""Shards in Ray actors: the hits of shards in this process, and the answers while an actor is dead or stuck."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from support import wait_for

from mixwright.errors import ConfigError, DataError, MixwrightError, NotFoundError, UnavailableError
from mixwright.indexes.datastores.datastore import Datastore
from mixwright.indexes.datastores.filters import RowFilter
from mixwright.indexes.datastores.shards import LocalShards
from mixwright.jobs import shard_actors
from mixwright.jobs.datastores.build import run_datastore
from mixwright.jobs.ingest import run_ingest
from mixwright.jobs.ray_pool import ray_session
from mixwright.jobs.shard_actors import RayShards, ServingSession, open_sharded_datastore
from mixwright.progress import NoProgress
from mixwright.schemas.datastores import DatastoreRequest, Hit, SearchRequest
from mixwright.schemas.requests import IngestRequest
from mixwright.store import Store

DIM = 64
WORDS = [f"{first}{rest}" for first in "bdfgklmnprst" for rest in ("arn", "elt", "ilk", "omb", "ust")]
QUERIES = ["barn felt gilk", "komb must", "tarn relt silk pomb"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with the datastore ``qa`` of three shards, and one Ray with room for two actors."""
    folder = tmp_path_factory.mktemp("sharded")
    generator = np.random.default_rng(0)
    drawn = [generator.choice(WORDS, size=generator.integers(5, 30)) for _ in range(300)]
    lines = [
        json.dumps({"text": f"{' '.join(words)} {number}", "domain": ("web", "books")[number % 2]})
        for number, words in enumerate(drawn)
    ]
    (folder / "documents.jsonl").write_text("\n".join(lines))
    made = Store(folder / "home")
    with ray_session(num_cpus=2):
        paths = [str(folder / "documents.jsonl")]
        run_ingest(made, IngestRequest(name="texts", paths=paths, domain_field="domain"), NoProgress())
        request = DatastoreRequest(name="qa", corpora=["texts"], encoder=f"hashing:{DIM}", shards=3, workers=1)
        run_datastore(made, request, NoProgress())
        yield made


@pytest.fixture(scope="module")
def sharded(store: Store) -> Iterator[Datastore]:
    """The store in actors that nobody harms."""
    datastore = open_sharded_datastore(store, "qa")
    yield datastore
    datastore.close()


def shards_of(datastore: Datastore) -> RayShards:
    assert isinstance(datastore._shards, RayShards)
    return datastore._shards


def pid_of(actor: Any) -> int:
    """The process of an actor; waits for one that is being restarted."""
    import ray

    ask = actor.handle.__ray_call__.options(max_task_retries=-1)
    pid: int = ray.get(ask.remote(lambda _: os.getpid()))
    return pid


def search(datastore: Datastore, **options: Any) -> list[list[Hit]]:
    """The hits of a search that must not be partial."""
    response = datastore.search(SearchRequest(**({"queries": QUERIES, "k": 5} | options)))
    assert (response.partial, response.shards_searched, response.shards_total) == (False, 3, 3)
    return response.hits


def answers_fully(datastore: Datastore) -> bool:
    try:
        search(datastore)
    except UnavailableError:
        return False
    return True


def hits_without(datastore: Datastore, numbers: Any, **options: Any) -> list[list[Hit]]:
    """What shards in this process find, were those of these numbers not there."""
    left = [shard for number, shard in enumerate(datastore.manifest.shards) if number not in numbers]
    manifest = datastore.manifest.model_copy(update={"shards": left})
    local = Datastore(manifest, datastore.directory, LocalShards(datastore.directory, manifest))
    return local.search(SearchRequest(queries=QUERIES, k=5, **options)).hits


def check_partial(datastore: Datastore, numbers: Any) -> None:
    """Searches are refused while the shards of these numbers are gone, or answered by the others if asked so."""
    missing = f"^{len(numbers)} of the 3 shards of datastore qa@1 do not answer"
    with pytest.raises(UnavailableError, match=missing):
        search(datastore)
    for mode in ("dense", "bm25", "hybrid"):
        response = datastore.search(SearchRequest(queries=QUERIES, k=5, mode=mode, allow_partial=True))
        assert (response.partial, response.shards_searched) == (True, 3 - len(numbers))
        assert response.hits == hits_without(datastore, numbers, mode=mode)


# The same hits


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 300},
        {"mode": "bm25"},
        {"mode": "hybrid", "k": 20},
        {"mode": "hybrid", "domains": ["web"]},
        {"where": "n_tokens < 15 AND domain = 'books'", "k": 40},
        {"mode": "bm25", "subsample": 0.3, "seed": 4, "subsample_by": "document"},
        {"dedup": True, "exact": True},
    ],
    ids=str,
)
def test_actors_find_what_shards_in_this_process_find(
    store: Store, sharded: Datastore, options: dict[str, Any]
) -> None:
    found = search(sharded, **options)
    assert found == search(Datastore.open(store, "qa"), **options)
    assert all(found)


def test_many_queries_at_once_go_by_reference(store: Store, sharded: Datastore) -> None:
    vectors = np.random.default_rng(1).normal(size=(600, DIM)).astype(np.float32)
    assert vectors.nbytes > shard_actors._INLINE_BYTES
    options = {"queries": None, "vectors": vectors.tolist(), "k": 50}
    assert search(sharded, **options) == search(Datastore.open(store, "qa"), **options)


def test_threads_get_their_own_answers(store: Store, sharded: Datastore) -> None:
    queries = [f"{first} {second}" for first, second in zip(WORDS[:24], WORDS[24:48], strict=True)]
    expected = search(Datastore.open(store, "qa"), queries=queries, mode="hybrid")
    found: dict[int, list[Hit]] = {}

    def work(number: int) -> None:
        for line in range(number, len(queries), 4):
            found[line] = search(sharded, queries=[queries[line]], mode="hybrid")[0]

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [found[line] for line in range(len(queries))] == expected


# Errors


def test_what_a_shard_says_of_wrong_settings_is_said_to_the_client(store: Store, sharded: Datastore) -> None:
    with pytest.raises(ConfigError) as local:
        search(Datastore.open(store, "qa"), nprobe=3)
    with pytest.raises(ConfigError) as remote:
        search(sharded, nprobe=3)
    assert str(remote.value) == str(local.value)
    with pytest.raises(MixwrightError, match=r"^the actor of qa@1, shard .* failed with AttributeError "):
        shards_of(sharded).call("no_such_method")
    assert answers_fully(sharded)


def test_a_store_that_cannot_be_opened(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="no datastore other"):
        open_sharded_datastore(store, "other")
    directory = store.directory(store.manifest("qa", "datastore"))
    (directory / "clusters.npy").rename(directory / "away.npy")
    with pytest.raises(DataError, match=r"clusters\.npy is missing or damaged: restore it"):
        open_sharded_datastore(store, "qa")
    (directory / "away.npy").rename(directory / "clusters.npy")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ConfigError, match="Ray is not running: start a ServingSession"):
        open_sharded_datastore(store, "qa")


# The session


def test_a_session_leaves_alone_what_was_running_before_it(sharded: Datastore) -> None:
    session = ServingSession()
    session.start()
    session.stop()
    session.stop()
    assert answers_fully(sharded)


def test_a_session_outlives_the_thread_that_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[threading.Thread] = []

    @contextmanager
    def session_of_ray() -> Iterator[None]:
        inside.append(threading.current_thread())
        yield
        inside.append(threading.current_thread())

    monkeypatch.setattr(shard_actors, "ray_session", session_of_ray)
    session = ServingSession()
    starter = threading.Thread(target=session.start)
    starter.start()
    starter.join()
    assert [thread.is_alive() for thread in inside] == [True]
    session.stop()
    assert inside[0] is inside[1]
    assert not inside[0].is_alive()


def test_a_session_says_why_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def session_of_ray() -> Iterator[None]:
        raise ConfigError("no Ray answers there")
        yield

    monkeypatch.setattr(shard_actors, "ray_session", session_of_ray)
    session = ServingSession()
    with pytest.raises(ConfigError, match="no Ray answers there"):
        session.start()
    session.stop()


# Actors that do not answer


@pytest.fixture(scope="module")
def fragile(store: Store) -> Iterator[Datastore]:
    """The store in two actors, of shards 0 and 2 and of shard 1, that are harmed; a call has one second."""
    datastore = open_sharded_datastore(store, "qa", timeout_seconds=1.0)
    assert [list(actor.numbers) for actor in shards_of(datastore)._actors] == [[0, 2], [1]]
    yield datastore
    datastore.close()


def test_a_killed_actor_is_restarted_by_ray(store: Store, fragile: Datastore) -> None:
    actor = shards_of(fragile)._actors[0]
    os.kill(pid_of(actor), signal.SIGKILL)
    with pytest.raises(UnavailableError, match="2 of the 3 shards of datastore qa@1 do not answer"):
        search(fragile)
    wait_for(lambda: answers_fully(fragile))
    assert search(fragile) == search(Datastore.open(store, "qa"))
    assert shards_of(fragile)._actors[0] is actor


def test_a_restarted_actor_without_its_files_is_missing_until_they_are_back(
    store: Store, fragile: Datastore
) -> None:
    actor = shards_of(fragile)._actors[0]
    index = fragile.directory / "indexes" / f"{fragile.manifest.shards[2].name}.faiss"
    index.rename(index.with_name("away"))
    killed = pid_of(actor)
    os.kill(killed, signal.SIGKILL)
    assert pid_of(actor) != killed
    check_partial(fragile, [0, 2])
    index.with_name("away").rename(index)
    wait_for(lambda: answers_fully(fragile))
    assert search(fragile) == search(Datastore.open(store, "qa"))
    assert shards_of(fragile)._actors[0] is actor


def test_an_actor_that_is_late_is_not_waited_for_again(fragile: Datastore) -> None:
    actor = shards_of(fragile)._actors[1]
    pid = pid_of(actor)
    os.kill(pid, signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(UnavailableError, match="1 of the 3 shards"):
        search(fragile)
    late = time.monotonic()
    check_partial(fragile, [1])
    assert late - begin > 1 > time.monotonic() - late
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: answers_fully(fragile))
    assert shards_of(fragile)._actors[1] is actor


def test_an_actor_that_is_stuck_is_replaced(
    store: Store, fragile: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = shards_of(fragile)._actors[1]
    pid = pid_of(actor)
    os.kill(pid, signal.SIGSTOP)
    check_partial(fragile, [1])
    with monkeypatch.context() as patched:
        patched.setattr(shard_actors, "_PATIENCE_SECONDS", 0.0)
        assert not answers_fully(fragile)
    wait_for(lambda: answers_fully(fragile))
    os.kill(pid, signal.SIGKILL)
    assert shards_of(fragile)._actors[1] is not actor
    assert search(fragile) == search(Datastore.open(store, "qa"))


def test_an_actor_that_ray_has_given_up_is_replaced_until_the_store_is_closed(store: Store) -> None:
    import ray

    datastore = open_sharded_datastore(store, "qa")
    shards = shards_of(datastore)
    actor = shards._actors[1]
    ray.kill(actor.handle)
    wait_for(lambda: shards.call("n_qualifying", RowFilter()).n_missing == 1)
    wait_for(lambda: answers_fully(datastore))
    assert shards._actors[1] is not actor
    assert search(datastore) == search(Datastore.open(store, "qa"))
    datastore.close()
    with pytest.raises(UnavailableError, match="3 of the 3 shards"):
        search(datastore, allow_partial=True)
