"""The shards of a datastore in Ray actors: each in a process of its own, on this machine or all over a cluster.

Every actor maps its shards' files from the file system that all machines share, so that starting one copies
nothing, and Ray may start it again anywhere. The store's other half, which encodes queries, merges hits and reads
passages, stays in the process that asks (``Datastore``).

An actor that died, or did not answer in time, is left out at once: no search waits for it. From then on one probe
waits at it, and the actor is asked again as soon as the probe is answered. Ray itself restarts an actor whose
process or machine died; one that Ray has given up, or that is stuck, is replaced by a new one.
"""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixwright.errors import ConfigError, MixwrightError, UnavailableError, first_line
from mixwright.indexes.datastores.datastore import Datastore, datastore_manifest
from mixwright.indexes.datastores.shards import Answers, Shard
from mixwright.indexes.faiss_import import threads
from mixwright.indexes.rerankers import Reranker
from mixwright.jobs.ray_pool import as_mixwright_error, ray_session
from mixwright.schemas.manifests import DatastoreManifest
from mixwright.store import Store

_log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0
"""An actor that has not answered a call by then is left out."""

_START_SECONDS = 120.0
"""What the actors of a store get to start, at first."""

_PATIENCE_SECONDS = 60.0
"""An actor whose probe is not answered by then is replaced. A restart takes seconds, on a busy machine more."""

_INLINE_BYTES = 100 * 1024
"""Ray sends arguments up to this size along with a call, and would store greater ones once for every actor."""

_CALLS_AT_ONCE = 8
"""Threads of an actor. Searches beyond that wait; a probe has a thread of its own."""

_PROBES = "probes"

_MEMORY = 1 << 20
"""What an actor asks of Ray. It waits for no free core, as searches are to be answered while jobs use them all;
but actors that ask for nothing are put anywhere, not spread."""


class ServingSession:
    """Ray for as long as a service lives; what was running before ``start`` runs on after ``stop``.

    With ``RAY_ADDRESS`` that cluster, else a Ray of this process's own: see ``ray_session``. Any thread may start
    and stop it. Linux ends the processes of a Ray of one's own with the thread that started them, so they are
    started in a thread that lives until ``stop``.
    """

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start Ray or connect to it, in some seconds; raises ConfigError if the cluster cannot be reached."""
        started: Future[None] = Future()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._hold, args=(started,), name="mixwright-ray", daemon=True)
        self._thread.start()
        started.result()

    def stop(self) -> None:
        """Leave Ray; without effect if it was not started. Close the datastores first."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _hold(self, started: Future[None]) -> None:
        try:
            with ray_session():
                started.set_result(None)
                self._stopping.wait()
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)


def open_sharded_datastore(
    store: Store, reference: str, reranker: Reranker | None = None, timeout_seconds: float = TIMEOUT_SECONDS
) -> Datastore:
    """Open a datastore by reference, its shards in Ray actors; ``Datastore.close`` ends them.

    Raises NotFoundError, DataError for damaged files, ConfigError without a ``ServingSession`` (or a
    ``ray_session``), UnavailableError if the actors do not start.
    """
    manifest = datastore_manifest(store, reference)
    directory = store.directory(manifest).resolve()
    return Datastore(manifest, directory, RayShards(directory, manifest, timeout_seconds), reranker)


class ShardActor:
    """Some shards of one store, in an actor's process; any number of threads may call at once."""

    def __init__(
        self, directory: Path, manifest: DatastoreManifest, numbers: Sequence[int], n_threads: int
    ) -> None:
        """``numbers`` are those of the shards in the manifest, ``n_threads`` FAISS's for one call."""
        self._directory = directory
        self._manifest = manifest
        self._numbers = numbers
        self._n_threads = n_threads
        self._shards: list[Shard] | None = None
        self._lock = threading.Lock()
        # Ray gives an actor up that cannot be made. So what is wrong is said by ``ready``, and may be mended.
        with suppress(MixwrightError):
            self._open()

    def ready(self) -> None:
        """Answers once the shards are open; raises DataError for damaged files."""
        self._open()

    def call(self, request: bytes) -> list[Any]:
        """What each shard answers to a method with arguments, pickled; raises what a shard raises.

        Raises UnavailableError if a shard cannot be opened.
        """
        try:
            shards = self._open()
        except MixwrightError as error:
            raise UnavailableError(f"a shard cannot be opened: {error}") from error
        method, arguments = pickle.loads(request)
        # A number of threads that is set in one thread of a process holds for that thread alone.
        with threads(self._n_threads):
            return [getattr(shard, method)(*arguments) for shard in shards]

    def _open(self) -> list[Shard]:
        with self._lock:
            if self._shards is None:
                shards = [self._manifest.shards[number] for number in self._numbers]
                self._shards = [Shard(self._directory, self._manifest, shard) for shard in shards]
            return self._shards


@dataclass(eq=False)
class _Actor:
    """An actor with the shards of these numbers. It is called unless an answer to a ``probe`` is awaited."""

    handle: Any
    numbers: Sequence[int]
    probe: Any = None
    probed_at: float = 0.0

    def send_probe(self) -> None:
        """Await an answer; the probe outlives restarts of the actor, and fails only when Ray gives it up."""
        options = self.handle.ready.options(max_task_retries=-1, concurrency_group=_PROBES)
        self.probe, self.probed_at = options.remote(), time.monotonic()


class RayShards:
    """The shards of a store in Ray actors: a ``ShardGroup``. Any number of threads may call at once."""

    def __init__(
        self, directory: Path, manifest: DatastoreManifest, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        """Start an actor a shard, but no more than Ray has cores: then each has several. Returns when all answer.

        ``directory`` is absolute, and the same on all machines. Raises as ``open_sharded_datastore``.
        """
        import ray

        if not ray.is_initialized():
            raise ConfigError("Ray is not running: start a ServingSession before a sharded datastore is opened")
        self._directory = directory
        # Ray keeps what an actor is started with; the list of files is long, and no shard reads it.
        self._manifest = manifest.model_copy(update={"files": []})
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        n_cores = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        n_actors = min(len(self), n_cores)
        self._n_threads = n_cores // n_actors
        self._actors = [self._start(range(first, len(self), n_actors)) for first in range(n_actors)]
        try:
            self._wait_for_all()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._manifest.shards)

    def call(self, method: str, *arguments: Any) -> Answers:
        """Call a method of every shard; an actor that is dead or late counts as missing.

        Raises what a shard raises, as a MixwrightError.
        """
        import ray

        actors = self._answering()
        if not actors:
            return Answers([], len(self))
        request = _packed(method, arguments)
        called = {actor.handle.call.remote(request): actor for actor in actors}
        done, late = ray.wait(list(called), num_returns=len(called), timeout=self._timeout_seconds)
        for answer in late:
            ray.cancel(answer)  # unless it is at work already, the actor will not begin
            self._leave_out(called[answer], f"no answer in {self._timeout_seconds:g} s")
        results: dict[int, Any] = {}
        for answer in done:
            results.update(self._results(called[answer], answer))
        return Answers([results[number] for number in sorted(results)], len(self) - len(results))

    def close(self) -> None:
        """End the actors; calls that are running lose them."""
        import ray

        with self._lock:
            actors, self._actors = self._actors, []
        for actor in actors:
            if ray.is_initialized():
                ray.kill(actor.handle)

    def _results(self, actor: _Actor, answer: Any) -> dict[int, Any]:
        """What the shards of an actor answered, by number; nothing if it failed. Raises what a shard raised."""
        import ray

        try:
            return dict(zip(actor.numbers, ray.get(answer), strict=True))
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, UnavailableError):
                raise as_mixwright_error(error, self._name(actor)) from error
            self._leave_out(actor, str(error.cause))
        except ray.exceptions.RayError as error:
            self._leave_out(actor, first_line(error))
        return {}

    def _leave_out(self, actor: _Actor, reason: str) -> None:
        """Call an actor no more before it has answered a probe."""
        with self._lock:
            if actor.probe is not None or actor not in self._actors:
                return
            actor.send_probe()
        _log.warning("%s: %s; searches go on without it until it answers", self._name(actor), reason)

    def _answering(self) -> list[_Actor]:
        """The actors to call; those that have been left out are looked at again."""
        with self._lock:
            self._actors = [self._looked_at(actor) for actor in self._actors]
            return [actor for actor in self._actors if actor.probe is None]

    def _looked_at(self, actor: _Actor) -> _Actor:
        """The actor, back among those that are called if its probe was answered; or one in its place."""
        import ray

        if actor.probe is None:
            return actor
        answered, _ = ray.wait([actor.probe], timeout=0)
        if not answered:
            stuck = time.monotonic() - actor.probed_at > _PATIENCE_SECONDS
            return self._replacement(actor, "it is stuck") if stuck else actor
        try:
            ray.get(actor.probe)
        except ray.exceptions.RayTaskError:
            actor.send_probe()  # its files are not there yet
        except ray.exceptions.RayError as error:
            return self._replacement(actor, first_line(error))
        else:
            actor.probe = None
            _log.warning("%s: answers again", self._name(actor))
        return actor

    def _replacement(self, actor: _Actor, reason: str) -> _Actor:
        import ray

        _log.warning("%s: %s; it is started anew", self._name(actor), reason)
        ray.kill(actor.handle)
        return self._start(actor.numbers)

    def _start(self, numbers: Sequence[int]) -> _Actor:
        """An actor that is being started; its probe is answered once it is."""
        import ray

        remote = ray.remote(
            num_cpus=0,
            memory=_MEMORY,
            max_restarts=-1,
            max_concurrency=_CALLS_AT_ONCE,
            concurrency_groups={_PROBES: 1},
            scheduling_strategy="SPREAD",
        )(ShardActor)
        actor = _Actor(remote.remote(self._directory, self._manifest, numbers, self._n_threads), numbers)
        actor.send_probe()
        return actor

    def _wait_for_all(self) -> None:
        import ray

        end = time.monotonic() + _START_SECONDS
        for actor in self._actors:
            try:
                ray.get(actor.probe, timeout=max(end - time.monotonic(), 0))
            except ray.exceptions.RayTaskError as error:
                raise as_mixwright_error(error, self._name(actor)) from error
            except ray.exceptions.RayError as error:
                raise UnavailableError(
                    f"{self._name(actor)} did not start ({first_line(error)}): look whether Ray's machines are "
                    "up and have memory, and try again"
                ) from error
            actor.probe = None

    def _name(self, actor: _Actor) -> str:
        numbers = ", ".join(self._manifest.shards[number].name for number in actor.numbers)
        return f"the actor of {self._manifest.ref}, shard {numbers}"


def _packed(method: str, arguments: Sequence[Any]) -> Any:
    """A call's method and arguments, pickled once for all actors; by reference where they are large."""
    import ray

    request = pickle.dumps((method, arguments), protocol=pickle.HIGHEST_PROTOCOL)
    return ray.put(request) if len(request) > _INLINE_BYTES else request
