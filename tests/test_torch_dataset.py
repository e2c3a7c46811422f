"""The PyTorch data set: every row once, in one order for any number of workers, resumed exactly."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from support import KillableService, document_table, published_corpus, wait_for
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from mixwright import torch_dataset
from mixwright.client import Client
from mixwright.client.read_ahead import ReadAhead
from mixwright.errors import ConfigError, NotFoundError, UnavailableError
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.selectors.requests import SelectRequest
from mixwright.store import Store
from mixwright.torch_dataset import MixtureDataset

# More workers than the cores of this machine are what is tested.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata's own
]

N_ROWS = 101
BATCH = 8


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillableService]:
    """A service in another process (workers are forked from this one) of m@1 and m@2."""
    store = Store(tmp_path_factory.mktemp("torch") / "home")
    published_corpus(store, "a", document_table([f"row {number}" for number in range(N_ROWS)]))
    for seed in (0, 1):
        request = {
            "name": "m",
            "sources": ["a"],
            "selector": {"kind": "uniform", "seed": seed},
            "budget": {"documents": N_ROWS},
        }
        run_select(store, SelectRequest.model_validate(request), NoProgress())
    service = KillableService(store.home)
    service.start()
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service: KillableService) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


def positions(rows: list[dict[str, Any]]) -> list[int]:
    return [row["position"] for row in rows]


def dataset_of(client: Client, rank: int = 0, world_size: int = 1, **options: Any) -> MixtureDataset:
    return MixtureDataset(client, "m@1", rank, world_size, **{"block_rows": BATCH, **options})


def batches(dataset: MixtureDataset, workers: int, loader: type[DataLoader] = DataLoader, **options: Any) -> Any:
    method = {"multiprocessing_context": "fork"} if workers else {}
    return loader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=positions, **{**method, **options})


def blocks(rank: int = 0, world_size: int = 1, offset: int = 0) -> list[list[int]]:
    """The batches of a rank: every W-th block of the mixture."""
    everything = list(range(offset, N_ROWS))
    return [everything[i : i + BATCH] for i in range(rank * BATCH, len(everything), world_size * BATCH)]


# Order


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_the_batches_are_the_same_for_any_number_of_workers(
    client: Client, workers: int, rank: int, world_size: int
) -> None:
    assert list(batches(dataset_of(client, rank, world_size), workers)) == blocks(rank, world_size)


def test_workers_may_be_spawned(client: Client) -> None:
    dataset = dataset_of(client)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=1, collate_fn=list, multiprocessing_context="spawn")
    assert list(map(positions, loader)) == blocks()


def test_every_row_once_where_batches_are_no_blocks(client: Client) -> None:
    loader = batches(dataset_of(client, block_rows=3), 2)
    assert sorted(position for batch in loader for position in batch) == list(range(N_ROWS))


def test_tokens_are_tensors(client: Client) -> None:
    dataset = MixtureDataset(client, "m@1", 0, 1, tokenizer="bytes", bos=256, eos=257)
    for row in dataset:
        assert row["input_ids"].dtype == torch.int64
        assert row["input_ids"].tolist() == [256, *row["text"].encode(), 257]
        assert row["loss_mask"].dtype == torch.bool
        assert row["loss_mask"].tolist() == [True] * len(row["input_ids"])
    plain = next(iter(MixtureDataset(client, "m@1", 0, 1)))
    assert "input_ids" not in plain


def test_ranks_default_to_those_of_the_process_group(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = MixtureDataset(client, "m@1")
    assert (dataset.share.rank, dataset.share.world_size) == (0, 1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 5)
        dataset = MixtureDataset(client, "m@1")
        assert (dataset.share.rank, dataset.share.world_size) == (3, 5)
    finally:
        monkeypatch.undo()
        torch.distributed.destroy_process_group()


def test_a_name_is_fixed_to_its_version(client: Client) -> None:
    assert MixtureDataset(client, "m").pin.ref == "m@2"
    with pytest.raises(NotFoundError):
        MixtureDataset(client, "absent")


def test_wrong_settings(client: Client) -> None:
    for wrong in ({"rank": 1}, {"world_size": 2}, {"rank": 2, "world_size": 2}, {"read_ahead_rows": 0}):
        with pytest.raises(ConfigError):
            MixtureDataset(client, "m@1", **wrong)


# Resuming


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 5, 13])
def test_a_stateful_loader_goes_on_at_the_next_batch(client: Client, workers: int, done: int) -> None:
    expected = blocks()
    loader = batches(dataset_of(client), workers, StatefulDataLoader)
    reader = iter(loader)
    assert [next(reader) for _ in range(done)] == expected[:done]
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    del reader, loader
    resumed = batches(dataset_of(client), workers, StatefulDataLoader)
    resumed.load_state_dict(state)
    assert list(resumed) == expected[done:]
    # The pass after it is a whole one.
    assert list(resumed) == expected


def test_a_state_in_the_middle_of_a_batch(client: Client) -> None:
    dataset = dataset_of(client, 1, 2)
    reader = iter(dataset)
    read = [next(reader)["position"] for _ in range(11)]
    state = dataset.state_dict()
    resumed = dataset_of(client, 1, 2)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert read + positions(list(resumed)) == [position for block in blocks(1, 2) for position in block]
    assert positions(list(resumed)) == [position for block in blocks(1, 2) for position in block]


class Worker:
    def __init__(self, id: int, num_workers: int) -> None:
        self.id, self.num_workers = id, num_workers


def read_as(dataset: MixtureDataset, workers: int, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The blocks that a loader's workers read, without processes."""
    read = []
    for number in range(workers):
        with monkeypatch.context() as patch:
            patch.setattr(torch_dataset, "get_worker_info", lambda number=number: Worker(number, workers))
            copy = pickle.loads(pickle.dumps(dataset))
            read.append(positions(list(copy)))
    return read


@pytest.mark.parametrize(
    ("before", "after"),
    [((1, 8, 5), (2, 3, 4)), ((2, 4, 12), (3, 2, 8)), ((3, 5, 10), (1, 2, 6)), ((2, 8, 16), (2, 1, 3))],
    ids=str,
)
def test_other_ranks_and_workers_go_on_behind_what_was_read(
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    before: tuple[int, int, int],
    after: tuple[int, int, int],
) -> None:
    """What all ranks read before and after a change of ranks, workers and blocks is every position, once."""
    world_size, block_rows, done = before
    ranks = [dataset_of(client, rank, world_size, block_rows=block_rows) for rank in range(world_size)]
    read = [position for rank in ranks for position in positions(list(islice(rank, done)))]
    assert sorted(read) == list(range(done * world_size))
    # Any rank's state will do.
    state = ranks[-1].state_after(done)
    world_size, workers, block_rows = after
    for rank in range(world_size):
        dataset = dataset_of(client, rank, world_size, block_rows=block_rows)
        dataset.load_state_dict(state)
        read += [position for part in read_as(dataset, workers, monkeypatch) for position in part]
    assert sorted(read) == list(range(N_ROWS))


def test_a_plain_loader_with_workers_resumes_from_a_count(client: Client) -> None:
    expected = blocks(0, 2)
    dataset = dataset_of(client, 0, 2)
    reader = iter(batches(dataset, 2))
    done = [next(reader) for _ in range(3)]
    state = dataset.state_after(3 * BATCH)
    del reader
    resumed = dataset_of(client, 0, 2)
    resumed.load_state_dict(state)
    reader = iter(batches(resumed, 3))
    done += [next(reader) for _ in range(2)]
    state = resumed.state_after(2 * BATCH)
    del reader
    last = dataset_of(client, 0, 2)
    last.load_state_dict(state)
    assert done + list(batches(last, 0)) == expected
    # One rank alone reads what both have left.
    alone = dataset_of(client)
    alone.load_state_dict(state)
    assert list(batches(alone, 0)) == blocks(offset=5 * BATCH * 2)


def test_states_that_do_not_fit_are_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dataset_of(client, 0, 2)
    with pytest.raises(ConfigError, match="middle of a block of 8"):
        dataset_of(client, 0, 3).load_state_dict(dataset.state_after(5))
    with pytest.raises(ConfigError, match=r"m@1, and this data set reads m@2"):
        MixtureDataset(client, "m@2", 0, 2, block_rows=BATCH).load_state_dict(dataset.state_after(8))
    with pytest.raises(ConfigError, match="negative"):
        dataset.state_after(-1)
    monkeypatch.setattr(torch_dataset, "get_worker_info", lambda: Worker(1, 2))
    iter(dataset)
    state = dataset.state_dict()
    monkeypatch.setattr(torch_dataset, "get_worker_info", lambda: Worker(1, 3))
    other = dataset_of(client, 0, 2)
    other.load_state_dict(state)
    with pytest.raises(ConfigError, match=r"worker 1 of 2 .* worker 1 of 3 .* state_after"):
        iter(other)


def test_a_service_that_is_killed_costs_no_row(service: KillableService) -> None:
    with Client(service.url, retries=50) as client:
        reader = iter(dataset_of(client, read_ahead_rows=1))
        read = [next(reader)]
        service.kill()
        service.start()
        assert positions([*read, *reader]) == list(range(N_ROWS))


# The example


def test_the_example_trains_and_resumes(
    service: KillableService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
    from train_from_service import main

    words = ["--url", service.url, "--mixture", "m@1", "--checkpoint", str(tmp_path / "checkpoint.pt")]
    assert main([*words, "--steps", "5", "--save-every", "3"]) == list(range(40))
    assert "step 5: loss" in capsys.readouterr().out
    # Killed after step 5 and started again with workers: at the next row, to the end of the mixture.
    assert main([*words, "--steps", "50", "--workers", "2"]) == list(range(40, N_ROWS))


# Reading ahead


def tables_of(sizes: list[int], made: list[int]) -> Iterator[pa.Table]:
    try:
        for size in sizes:
            made.append(size)
            yield pa.table({"text": ["x" * 100] * size})
    finally:
        made.append(-1)


@pytest.mark.parametrize(("rows", "n_bytes", "ahead"), [(25, 1 << 20, 2), (1 << 20, 3200, 3), (1, 1, 1)])
def test_reading_ahead_is_bounded(rows: int, n_bytes: int, ahead: int) -> None:
    made: list[int] = []
    sizes = [10] * 20
    with ReadAhead(tables_of(sizes, made), rows, n_bytes) as reader:
        taken = 0
        for _ in reader:
            taken += 1
            # What waits, and the one that has no room yet.
            wait_for(lambda taken=taken: len([each for each in made if each > 0]) >= min(20, taken + ahead), 5)
            time.sleep(0.005)
            assert len([each for each in made if each > 0]) <= taken + ahead + 1
        assert taken == 20


def test_an_error_comes_in_its_turn() -> None:
    def failing() -> Iterator[pa.Table]:
        yield pa.table({"n": [1]})
        raise UnavailableError("gone: start it")

    with ReadAhead(failing(), 10, 1000) as reader:
        seen = iter(reader)
        assert next(seen).num_rows == 1
        with pytest.raises(UnavailableError, match="gone"):
            next(seen)


def test_leaving_ends_the_thread() -> None:
    made: list[int] = []
    with ReadAhead(tables_of([10] * 1000, made), 50, 1 << 20) as reader:
        next(iter(reader))
    assert made[-1] == -1
    assert len(made) < 20
    assert not [thread for thread in threading.enumerate() if thread.name == "mixwright-read-ahead"]
