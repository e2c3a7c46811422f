"""The embed job: vectors against the encoder's own, kills of the job and of its workers, resumption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import (
    Recorder,
    document_table,
    identities,
    kill_half_way,
    processes,
    stat_field,
    wait_for,
)

import mixwright
from mixwright.corpora import Corpus
from mixwright.errors import AlignmentError, ConfigError, DataError, JobError, MixwrightError, NotFoundError
from mixwright.indexes.embeddings import Embeddings
from mixwright.indexes.encoders import find_encoder, load_encoder
from mixwright.jobs.embed import default_name, run_embed
from mixwright.jobs.ray_pool import ray_session, run_on_pool
from mixwright.progress import NoProgress
from mixwright.schemas.requests import EmbedRequest
from mixwright.store import Store

ENCODER = "hashing:64"
WORDS = ["river", "stone", "lamp", "winter", "market", "seven", "letter", "engine", "green", "walk"]


def texts_of(n: int, length: int = 12) -> list[str]:
    """``n`` different texts of up to ``length`` words."""
    generator = np.random.default_rng(n)
    drawn = [generator.choice(WORDS, size=generator.integers(1, length)) for _ in range(n)]
    return [f"{' '.join(words)} {number}" for number, words in enumerate(drawn)]


def own_actors() -> list[int]:
    """Process ids of the Ray actors that descend from this process."""
    found = []
    for pid in processes():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        parent = stat_field(stat_field(pid, 1), 1)  # actor ← raylet ← this process
        if command.startswith("ray::") and "Agent" not in command and "IDLE" not in command:
            found += [pid] if parent == os.getpid() else []
    return found


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One Ray for all tests of this file."""
    with ray_session(num_cpus=2):
        yield


def embed(store: Store, **fields: Any) -> Any:
    progress = fields.pop("progress", NoProgress())
    return run_embed(store, EmbedRequest(corpus="wiki", **({"encoder": ENCODER} | fields)), progress)


# Vectors


@pytest.mark.usefixtures("ray")
def test_a_template_says_what_is_embedded(store: Store, publish_corpus: Any) -> None:
    asked = ["river stone", "", "lamp"]
    metadata = [json.dumps({"instruction": each, "output": "winter"}) for each in asked]
    publish_corpus("wiki", document_table(texts_of(3), metadata=metadata))
    manifest = embed(store, template="ask {instruction}")
    embeddings = Embeddings.open(store, manifest.ref)
    expected = load_encoder(ENCODER).encode(["ask river stone", "", "ask lamp"])
    np.testing.assert_array_equal(embeddings.matrix(), expected)
    assert manifest.template == "ask {instruction}"
    assert embed(store).fingerprint != manifest.fingerprint
    with pytest.raises(ConfigError, match=r"have no field 'instrucion': name one of domain, id, instruction"):
        embed(store, template="{instrucion}")


@pytest.mark.usefixtures("ray")
def test_the_vectors_are_the_encoders_own_in_the_corpuss_order(store: Store, publish_corpus: Any) -> None:
    texts = texts_of(205)
    corpus = publish_corpus("wiki", document_table(texts), shard_rows=50)
    progress = Recorder()
    manifest = embed(store, progress=progress)
    expected = load_encoder(ENCODER).encode(texts)
    embeddings = Embeddings.open(store, "wiki.hashing-64", Corpus.open(store, "wiki"))
    np.testing.assert_array_equal(embeddings.matrix(), expected)
    order = np.random.default_rng(0).integers(0, 205, size=300)
    np.testing.assert_array_equal(embeddings.rows(order), expected[order])
    assert [shard.shape for shard in embeddings.shards] == [(50, 64)] * 4 + [(5, 64)]
    assert (progress.total, progress.done) == (205, 205)
    assert (manifest.n_rows, manifest.dim, manifest.dtype, manifest.normalized) == (205, 64, "float32", True)
    assert (manifest.corpus, manifest.inputs[0].fingerprint) == ("wiki@1", corpus.fingerprint)
    assert [entry.n_rows for entry in manifest.files] == [50, 50, 50, 50, 5]
    assert list((store.home / "staging").glob("embeddings-*/")) == []


@pytest.mark.usefixtures("ray")
def test_the_real_encoder_in_the_job(store: Store, publish_corpus: Any) -> None:
    texts = [*texts_of(11), "river stone " * 300]
    publish_corpus("wiki", document_table(texts), shard_rows=12)
    progress = Recorder()
    manifest = embed(store, encoder="all-minilm-l6-v2", device="cpu", batch_tokens=64, progress=progress)
    vectors = Embeddings.open(store, manifest.ref).matrix()
    expected = load_encoder("all-minilm-l6-v2", device="cpu").encode(texts)
    assert (vectors * expected).sum(axis=1).min() >= 0.999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (manifest.max_tokens, manifest.n_truncated, manifest.dim) == (256, 1, 384)
    assert manifest.warnings == ["1 of 12 documents are longer than 256 tokens: the vectors are of their starts"]
    assert progress.notes == [f"warning: {manifest.warnings[0]}"]


@pytest.mark.usefixtures("ray")
def test_resources_are_no_part_of_the_identity_but_the_dtype_is(store: Store, publish_corpus: Any) -> None:
    texts = texts_of(40)
    publish_corpus("wiki", document_table(texts), shard_rows=10)
    first = embed(store, workers=1, batch_tokens=8, name="first")
    second = embed(store, workers=9, device="cpu", name="second")
    half = embed(store, dtype="float16", name="half")
    assert first.fingerprint == second.fingerprint != half.fingerprint
    np.testing.assert_array_equal(
        Embeddings.open(store, "first").matrix(), Embeddings.open(store, "second").matrix()
    )
    expected = load_encoder(ENCODER).encode(texts).astype(np.float16)
    assert Embeddings.open(store, "half").shards[0].dtype == np.float16
    np.testing.assert_array_equal(Embeddings.open(store, "half").matrix(), expected.astype(np.float32))


@pytest.mark.usefixtures("ray")
def test_published_embeddings_are_returned_without_ray_or_encoder(
    store: Store, publish_corpus: Any, monkeypatch: Any
) -> None:
    publish_corpus("wiki", document_table(texts_of(10)))
    first = embed(store)

    def forbidden(*_: object) -> None:
        raise AssertionError("must not be called")

    monkeypatch.setattr("mixwright.jobs.marked_shards.ray_session", forbidden)
    monkeypatch.setattr("mixwright.jobs.worker_encoder.load_encoder", forbidden)
    assert embed(store) == first


def test_what_is_missing_is_named(store: Store, publish_corpus: Any) -> None:
    with pytest.raises(NotFoundError, match="wiki"):
        embed(store)
    publish_corpus("wiki", document_table(texts_of(3)))
    with pytest.raises(NotFoundError, match="somebody/else"):
        embed(store, encoder="somebody/else")
    assert list((store.home / "staging").glob("embeddings-*")) == []


def test_the_default_name_is_a_reference(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert default_name("wiki", find_encoder("hashing:8")) == "wiki.hashing-8"
    assert default_name("wiki", find_encoder("all-minilm-l6-v2")) == "wiki.all-minilm-l6-v2"
    assert len(default_name("w" * 128, find_encoder(str(tmp_path)))) == 128


# Reading


@pytest.mark.usefixtures("ray")
def test_embeddings_of_another_corpus_or_with_damaged_files_are_refused(store: Store, publish_corpus: Any) -> None:
    publish_corpus("wiki", document_table(texts_of(10)))
    publish_corpus("other", document_table(texts_of(11)))
    manifest = embed(store)
    with pytest.raises(AlignmentError, match="embed that corpus"):
        Embeddings.open(store, manifest.ref, Corpus.open(store, "other"))
    embeddings = Embeddings.open(store, manifest.ref)
    for rows in ([10], [-1]):
        with pytest.raises(DataError, match="rows 0 to 9"):
            embeddings.rows(np.array(rows))
    np.save(embeddings.directory / "shards" / "part-00000.npy", np.zeros((9, 64), dtype=np.float32))
    with pytest.raises(DataError, match=r"\(9, 64\) float32, the manifest says \(10, 64\)"):
        Embeddings.open(store, manifest.ref).matrix()
    (embeddings.directory / "shards" / "part-00000.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="missing or damaged"):
        Embeddings.open(store, manifest.ref).matrix()


# Kills

JOB = """
import sys
from pathlib import Path
from mixwright.jobs.embed import run_embed
from mixwright.progress import NoProgress
from mixwright.schemas.requests import EmbedRequest
from mixwright.store import Store
run_embed(Store(Path(sys.argv[1])), EmbedRequest(corpus="wiki", encoder=sys.argv[2], workers=2), NoProgress())
"""


@pytest.mark.usefixtures("ray")
def test_a_killed_job_goes_on_with_what_is_missing(store: Store, publish_corpus: Any) -> None:
    n_shards = 100
    texts = texts_of(20 * n_shards, length=300)
    publish_corpus("wiki", document_table(texts), shard_rows=20)
    staging = kill_half_way(JOB, [ENCODER], store.home, n_marks=6)
    marks = identities(staging, "marks/*.json")
    assert 6 <= len(marks) < n_shards
    shards = identities(staging, "shards/*.npy")
    # Two of the finished shards are damaged behind the job's back: one in its length, one in its content.
    names = sorted(marks)
    short, wrong = (staging / "shards" / name.replace(".json", ".npy") for name in names[:2])
    short.write_bytes(short.read_bytes()[:-1])
    wrong.write_bytes(wrong.read_bytes()[:-1] + bytes([wrong.read_bytes()[-1] ^ 1]))

    progress = Recorder()
    manifest = embed(store, workers=2, progress=progress)

    published = store.directory(manifest)
    again = identities(published, "marks/*.json")
    assert len(again) == n_shards
    assert {name for name in marks if again[name] != marks[name]} == set(names[:2])
    kept = {name.replace(".json", ".npy") for name in names[2:]}
    after = identities(published, "shards/*.npy")
    assert all(after[name] == shards[name] for name in kept)
    assert (progress.total, progress.done) == (len(texts), len(texts))
    expected = load_encoder(ENCODER).encode(texts)
    np.testing.assert_array_equal(Embeddings.open(store, manifest.ref).matrix(), expected)
    assert sorted(path.name for path in published.iterdir()) == ["manifest.json", "marks", "shards"]


@pytest.mark.usefixtures("ray")
def test_killed_workers_are_replaced_and_no_row_is_reported_twice(
    store: Store, publish_corpus: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = texts_of(6000, length=300)
    publish_corpus("wiki", document_table(texts), shard_rows=3000)

    def kill_all() -> None:
        for pid in own_actors():
            os.kill(pid, signal.SIGKILL)

    progress = Recorder(on_advance=kill_all)
    manifest = embed(store, workers=2, progress=progress)
    # The worker that advanced had a shard; the other one may still have been starting when both were killed.
    assert 1 <= sum("its worker died" in note for note in progress.notes) <= 2
    assert progress.done == len(texts)
    expected = load_encoder(ENCODER).encode(texts)
    np.testing.assert_array_equal(Embeddings.open(store, manifest.ref).matrix(), expected)
    assert capsys.readouterr() == ("", "")


# The pool


def pool_of(run: Callable[[Any, str], Iterator[Any]]) -> Callable[[], Any]:
    """Starts actors that run ``run``, which must be local to a test: workers cannot import this file."""

    class Worker:
        def ready(self) -> None:
            return None

    Worker.run = run  # type: ignore[attr-defined]

    def create() -> Any:
        import ray

        return ray.remote(num_cpus=1)(Worker).remote()

    return create


@pytest.mark.usefixtures("ray")
def test_a_pool_runs_every_task_though_ray_has_no_room_for_all_workers() -> None:
    def run(self: Any, task: str) -> Iterator[str]:
        yield task.upper()
        yield task * 2

    tasks = [f"t{number}" for number in range(9)]
    items = list(run_on_pool(pool_of(run), tasks, size=5, progress=NoProgress()))
    assert sorted(items) == sorted((task, item) for task in tasks for item in (task.upper(), task * 2))
    wait_for(lambda: own_actors() == [])


@pytest.mark.usefixtures("ray")
def test_a_task_that_kills_its_workers_is_named_after_three(tmp_path: Path) -> None:
    attempts = str(tmp_path / "attempts")

    def run(self: Any, task: str) -> Iterator[int]:
        yield 1
        if task == "part-00002":
            with open(attempts, "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)

    progress = Recorder()
    tasks = [f"part-{number:05d}" for number in range(4)]
    with pytest.raises(JobError, match=r"part-00002: the worker died 3 times"):
        list(run_on_pool(pool_of(run), tasks, size=2, progress=progress))
    assert Path(attempts).read_text() == "xxx"
    assert len(progress.notes) == 2
    wait_for(lambda: own_actors() == [])


@pytest.mark.usefixtures("ray")
def test_an_error_in_a_worker_is_one_clear_line() -> None:
    def fail(self: Any, task: str) -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("by zero\nand more")

    with pytest.raises(MixwrightError) as caught:
        list(run_on_pool(pool_of(fail), ["part-00007"], size=1, progress=NoProgress()))
    assert str(caught.value).startswith("part-00007 failed with ZeroDivisionError (by zero): ")

    def refuse(self: Any, task: str) -> Iterator[int]:
        from mixwright.errors import DataError

        yield 1
        raise DataError(f"{task}: use another encoder")

    with pytest.raises(DataError, match=r"^part-00007: use another encoder$"):
        list(run_on_pool(pool_of(refuse), ["part-00007"], size=1, progress=NoProgress()))
    wait_for(lambda: own_actors() == [])


# The session


@pytest.mark.usefixtures("ray")
def test_a_session_inside_another_starts_and_stops_nothing() -> None:
    import ray

    before = ray.get_runtime_context().get_job_id()
    with ray_session():
        assert ray.get_runtime_context().get_job_id() == before
    assert ray.is_initialized()


def test_the_folder_of_the_package_is_no_working_directory(monkeypatch: Any) -> None:
    monkeypatch.chdir(Path(mixwright.__file__).parent)
    with pytest.raises(ConfigError, match="work from another folder"), ray_session():
        pass


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("127.0.0.1:9", "no Ray answers there"),
        ("nonsense:port", "no Ray answers there"),
        ("ray://127.0.0.1:10001", "RAY_ADDRESS=auto"),
    ],
)
def test_a_cluster_that_is_not_there_is_named_at_once(store: Store, address: str, advice: str) -> None:
    code = (
        "from mixwright.jobs.ray_pool import ray_session\n"
        "from mixwright.errors import ConfigError\n"
        "try:\n    with ray_session(): pass\n"
        "except ConfigError as error: print(error)"
    )
    environment = os.environ | {"RAY_ADDRESS": address}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=20
    )
    assert done.stdout.startswith(f"RAY_ADDRESS={address}: ")
    assert advice in done.stdout


def test_a_job_runs_with_a_secret_of_its_own_from_any_folder(store: Store, publish_corpus: Any) -> None:
    """In a process of its own: no token file is written, and nothing is printed."""
    publish_corpus("wiki", document_table(texts_of(5)))
    home = store.home.parent / "user"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    code = JOB + "import os, json; print(json.dumps({k: v for k, v in os.environ.items() if 'RAY_AUTH' in k}))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.home), ENCODER],
        env=environment | {"HOME": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    secrets = json.loads(done.stdout)
    assert secrets["RAY_AUTH_MODE"] == "token"
    assert len(secrets["RAY_AUTH_TOKEN"]) == 64
    assert list(home.iterdir()) == []
    assert len(Embeddings.open(store, "wiki.hashing-64")) == 5
