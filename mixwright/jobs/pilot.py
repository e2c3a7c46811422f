"""The pilot job: small trainings on mixtures of the sources, each scored on a validation corpus, to results."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from mixwright.corpora import Corpus, id_bits
from mixwright.errors import ConfigError, DataError, ShortfallError
from mixwright.fingerprint import fingerprint
from mixwright.indexes.embeddings import Embeddings
from mixwright.indexes.encoders import find_encoder
from mixwright.jobs.embeddings_of import embeddings_of, published_embeddings
from mixwright.jobs.marked_shards import ShardFolder, Workers, finish_shards
from mixwright.jobs.pilot_workers import (
    PilotMark,
    PilotPlan,
    PilotRun,
    PilotWorker,
    labels_of,
    pilot_mixture,
    served_rows,
)
from mixwright.jobs.samples import WORTH_IT, publish_rows
from mixwright.jobs.train_command import TrainCommand
from mixwright.progress import Progress
from mixwright.results import LIKELIHOODS_FILE, RUNS_FILE, range_warnings, runs_table
from mixwright.schemas.manifests import ArtifactInput, FileEntry, ResultsManifest
from mixwright.schemas.references import parse_reference
from mixwright.schemas.requests import PilotRequest
from mixwright.schemas.training_runs import Metric, TrainingRun
from mixwright.selectors.mixture import Mixture
from mixwright.selectors.pool import Pool
from mixwright.selectors.projektor.planning import plan_mixtures
from mixwright.store import Staging, Store, software_versions

FloatArray = npt.NDArray[np.float64]

_METRICS = {
    "ngram": Metric("bits_per_byte", "minimize", low=0.0),
    "linear_probe": Metric("accuracy", "maximize", low=0.0, high=1.0),
}
_LIBRARIES = ("numpy", "scikit-learn", "polars", "ray")
_CAP_MARGIN = 0.001
"""Planned shares stay this far below what a source can give: they are rounded afterwards."""
_SHARE_TOLERANCE = 0.05
"""Served shares that differ by more from those that were asked for are worth a warning."""


def run_pilot(store: Store, request: PilotRequest, progress: Progress) -> ResultsManifest:
    """Train, score and publish; equal results that are published already are returned.

    Raises NotFoundError for a missing corpus or encoder, ConfigError for a mixture of unknown sources and a
    malformed command, ShortfallError before anything is trained if a source cannot fill its share of a run,
    DataError for a validation corpus or labels that are empty, ConflictError if another process is at work on the
    same, MixwrightError naming the run whose training failed; finished runs are kept.
    """
    pool, validation = Pool.open(store, request.sources), Corpus.open(store, request.validation)
    command = None
    if request.train_command is not None:
        command = TrainCommand.parse(request.train_command, request.timeout_seconds)
    if not validation.manifest.n_text_bytes:
        raise DataError(f"validation corpus {validation.manifest.ref} has no text: ingest some")
    runs = _runs(_mixtures(pool, request), request)
    reference, parameters = parse_reference(request.name), _parameters(pool, runs, request)
    inputs = [*(source.fingerprint for source in pool.sources), validation.manifest.fingerprint]
    identity = fingerprint("results", inputs, parameters)
    existing = store.existing("results", reference, identity)
    if isinstance(existing, ResultsManifest):
        return existing
    warnings = [*_check_shares(pool, runs, request), *_overlaps(pool, validation)]
    if request.label is not None:
        warnings += _check_labels(pool, validation, request.label)
    for warning in warnings:
        # Now, when nothing is trained yet.
        progress.note(f"warning: {warning}")
    embeddings = _embeddings(store, pool, validation, request, runs, progress)
    with store.stage("results", reference, identity, resume=True) as staging:
        folder = ShardFolder(staging.path.resolve(), "npz", PilotMark)
        plan = _plan(store, pool, validation, request, embeddings, command, runs)
        workers = Workers(PilotWorker, (plan, folder), "cpu", request.workers)
        if command is not None:
            # A program of the user's has the machine to itself unless told otherwise, and may use a GPU.
            workers = replace(workers, device="auto", number=request.workers or 1)
        finish_shards(folder, dict.fromkeys(plan.runs, 1), workers, f"pilot {request.name}", progress, "trainings")
        shutil.rmtree(folder.root / "work", ignore_errors=True)
        draft = _manifest(pool, validation, embeddings, request, runs, parameters, identity, warnings, staging)
        return store.publish(staging, draft)


# Which trainings


def _mixtures(pool: Pool, request: PilotRequest) -> FloatArray:
    """Shares (n, k), each row summing to 1, rows different: as asked for, or planned."""
    if request.mixtures is None:
        return _planned(pool, request)
    rows = np.array([_shares(pool, each) for each in request.mixtures])
    for number, row in enumerate(rows):
        for other in range(number):
            if np.allclose(row, rows[other], rtol=0, atol=1e-12):
                raise ConfigError(
                    f"mixtures {other + 1} and {number + 1} are the same: leave one out, or train each several "
                    "times by repeats"
                )
    return rows


def _shares(pool: Pool, mixture: Mapping[str, float]) -> FloatArray:
    places = {key: number for number, source in enumerate(pool.sources) for key in (source.name, source.ref)}
    shares = np.zeros(len(pool.sources))
    for key, share in mixture.items():
        if key not in places:
            names = ", ".join(source.name for source in pool.sources)
            raise ConfigError(f"a mixture names {key!r}, which is no source: name {names}")
        shares[places[key]] += share
    return np.asarray(shares / shares.sum())


def _planned(pool: Pool, request: PilotRequest) -> FloatArray:
    """Planned mixtures that every size can serve: no share above what a source has, or below one document."""
    caps = _caps(pool, request)
    if caps.sum() < 1:
        most = int(max(request.sizes) * caps.sum())
        raise ShortfallError(
            f"{max(request.sizes):,} {request.unit} are more than the sources give in {request.max_epochs:g} "
            f"epochs: use sizes up to {most:,}, raise max_epochs, or add sources",
            source=pool.sources[int(caps.argmin())].name,
            largest_budget=most,
        )
    planned = plan_mixtures(len(pool.sources), request.runs, seed=request.seed, caps=caps)
    least = np.zeros(len(pool.sources))
    if request.unit == "tokens":
        least = np.array([source.n_tokens.min() for source in pool.sources]) / min(request.sizes)
    shares = np.where(planned < least, 0.0, np.round(planned, 4))
    shares = shares[shares.sum(axis=1) > 0]
    if not len(shares):
        raise ShortfallError(
            f"no share of {min(request.sizes):,} tokens has room for a document: use larger sizes",
            source=pool.sources[int(least.argmax())].name,
            largest_budget=None,
        )
    return np.array(list(dict.fromkeys(map(tuple, shares / shares.sum(axis=1, keepdims=True)))))


def _caps(pool: Pool, request: PilotRequest) -> FloatArray:
    """The largest share (k,) of the tokens that each source can give at every size."""
    capacity, rate = _capacities(pool, request)
    caps = np.minimum(capacity / max(request.sizes), 1.0)
    if request.unit == "documents":
        # A share of the documents is the most where the other sources' documents are the longest.
        caps = caps * rate.min() / (rate * (1 - caps) + caps * rate.min())
    return np.where(caps < 1, np.maximum(caps - _CAP_MARGIN, 0.0), caps)


def _capacities(pool: Pool, request: PilotRequest) -> tuple[FloatArray, FloatArray]:
    """What each source can serve, and how much of the unit a token of it is; both (k,)."""
    tokens = np.array([float(source.n_tokens.sum()) for source in pool.sources])
    documents = np.array([float(len(source.n_tokens)) for source in pool.sources])
    if request.unit == "tokens":
        return tokens * request.max_epochs, np.ones(len(tokens))
    return np.floor(documents * request.max_epochs), documents / tokens


def _runs(mixtures: FloatArray, request: PilotRequest) -> list[PilotRun]:
    """The trainings, by mixture, size and repeat."""
    k = mixtures.shape[1]
    vertices = [row for row in mixtures if row.max() == 1.0]
    wanted = request.evaluator != "command" and len(vertices) == k
    return [
        PilotRun(
            name=f"run-{number:05d}",
            weights=tuple(float(weight) for weight in row),
            size=size,
            seed=request.seed + repeat,
            keeps_likelihoods=wanted and row.max() == 1.0 and size == max(request.sizes) and repeat == 0,
        )
        for number, (row, size, repeat) in enumerate(
            (row, size, repeat) for row in mixtures for size in request.sizes for repeat in range(request.repeats)
        )
    ]


def _parameters(pool: Pool, runs: Sequence[PilotRun], request: PilotRequest) -> dict[str, Any]:
    """What identifies the results beside the corpora."""
    own: dict[str, Any]
    match request.evaluator:
        case "ngram":
            own = {"order": request.order}
        case "linear_probe":
            # The revision stands for the encoder's files, so that a second run of a job needs no vectors.
            revision = find_encoder(request.encoder).revision
            own = {"encoder_revision": revision, "label": request.label, "template": request.template}
        case "command":
            own = request.model_dump(include={"train_command", "metric"}, mode="json")
    return {
        "job": "pilot",
        "sources": [source.name for source in pool.sources],
        "mixtures": [list(weights) for weights in dict.fromkeys(run.weights for run in runs)],
        **request.model_dump(include={"sizes", "unit", "repeats", "seed", "max_epochs", "evaluator"}),
        **own,
    }


# What can be known before anything is trained


def _check_shares(pool: Pool, runs: Sequence[PilotRun], request: PilotRequest) -> list[str]:
    """Draw every mixture. Raises ShortfallError; returns a warning if shares are not what was asked for."""
    capacity, rate = _capacities(pool, request)
    needed = np.array([np.array(run.weights) * rate / (np.array(run.weights) @ rate) for run in runs])
    with np.errstate(divide="ignore"):
        largest = np.floor(np.where(needed > 0, capacity / needed, np.inf) * (1 + 1e-9))
    run, source = map(int, np.unravel_index(int(largest.argmin()), largest.shape))
    if largest[run, source] < max(request.sizes):
        name, most = pool.sources[source].name, int(largest[run, source])
        raise ShortfallError(
            f"mixture {_told(pool, runs[run])} at {max(request.sizes):,} {request.unit} takes more of {name} than "
            f"it has in {request.max_epochs:g} epochs: use sizes up to {most:,}, raise max_epochs, or add to it",
            source=name,
            largest_budget=most,
        )
    worst = max(((_difference(_drawn(pool, run, request)), run) for run in runs), key=lambda found: found[0])
    if worst[0] <= _SHARE_TOLERANCE:
        return []
    return [
        f"documents are long for such small trainings: in {worst[1].name} ({_told(pool, worst[1])} at "
        f"{worst[1].size:,} {request.unit}) a share differs by {worst[0]:.1%} from what was asked for: use larger "
        "sizes"
    ]


def _drawn(pool: Pool, run: PilotRun, request: PilotRequest) -> Mixture:
    try:
        return pilot_mixture(pool, run, request.unit, request.max_epochs)
    except ShortfallError as error:
        raise ShortfallError(
            f"mixture {_told(pool, run)} at {run.size:,} {request.unit}: {error}",
            source=error.source,
            largest_budget=error.largest_budget,
        ) from error


def _difference(mixture: Mixture) -> float:
    """The largest difference between a share as served and as asked for, also of sources that serve nothing."""
    missing = 1 - sum(each.target_weight for each in mixture.components)
    return max(missing, *(abs(each.weight - each.target_weight) for each in mixture.components))


def _told(pool: Pool, run: PilotRun) -> str:
    shares = zip(pool.sources, run.weights, strict=True)
    return ",".join(f"{source.name}={weight:.4g}" for source, weight in shares if weight)


def _overlaps(pool: Pool, validation: Corpus) -> Iterator[str]:
    """A warning for each source that has documents of the validation corpus."""
    ids = validation.scan().select(id_bits()).collect().to_series().to_numpy()
    for source in pool.sources:
        shared = int(np.isin(ids, source.ids).sum())
        if shared:
            yield (
                f"{shared:,} of {len(ids):,} documents of {validation.manifest.ref} are in {source.ref} too, "
                "where scores measure memory: hold documents out that no source has"
            )


def _check_labels(pool: Pool, validation: Corpus, label: str) -> Iterator[str]:
    """Warnings of documents without a label; raises DataError for a corpus without any."""
    found = {source.ref: labels_of(source.frame, label) for source in pool.sources}
    known = {each for labels in found.values() for each in labels} - {None}
    found[validation.manifest.ref] = truth = labels_of(validation.scan(), label)
    for ref, labels in found.items():
        missing = sum(each is None for each in labels)
        if missing == len(labels):
            raise DataError(f"no document of {ref} has a label {label!r}: name the field that has the classes")
        if missing:
            yield f"{missing:,} of {len(labels):,} documents of {ref} have no {label!r}: they are left out"
    if unknown := {each for each in truth if each is not None} - known:
        yield f"no source has the class {sorted(unknown)[0]!r} of {validation.manifest.ref}: it cannot be learnt"


# Doing it


def _embeddings(
    store: Store,
    pool: Pool,
    validation: Corpus,
    request: PilotRequest,
    runs: Sequence[PilotRun],
    progress: Progress,
) -> dict[str, Embeddings]:
    """Of the linear probe, the embeddings by corpus: of all its documents, or of those that the runs serve."""
    if request.evaluator != "linear_probe":
        return {}
    served = {source.ref: np.zeros(len(source.n_tokens), dtype=np.bool_) for source in pool.sources}
    for run in runs:
        for source, rows, _ in served_rows(pool, pilot_mixture(pool, run, request.unit, request.max_epochs)):
            served[source.ref][rows] = True
    embedded = {}
    for source in pool.sources:
        rows, corpus = np.flatnonzero(served[source.ref]), Corpus.open(store, source.ref)
        whole = published_embeddings(store, corpus, request.encoder, request.template) is not None
        part = 0 < WORTH_IT * len(rows) < len(corpus) and not whole
        embedded[source.ref] = publish_rows(store, corpus, rows, "pilot").ref if part else source.ref
    embedded[validation.manifest.ref] = validation.manifest.ref
    refs = list(dict.fromkeys(embedded.values()))
    made = embeddings_of(store, refs, request.encoder, lambda _: request.template, progress, request.workers)
    return {ref: made[part] for ref, part in embedded.items()}


def _plan(
    store: Store,
    pool: Pool,
    validation: Corpus,
    request: PilotRequest,
    embeddings: Mapping[str, Embeddings],
    command: TrainCommand | None,
    runs: Sequence[PilotRun],
) -> PilotPlan:
    return PilotPlan(
        store=store,
        sources=tuple(source.ref for source in pool.sources),
        validation=validation.manifest.ref,
        evaluator=request.evaluator,
        unit=request.unit,
        max_epochs=request.max_epochs,
        order=request.order,
        label=request.label,
        embeddings={ref: each.manifest.ref for ref, each in embeddings.items()},
        command=command,
        runs={run.name: run for run in runs},
    )


def _manifest(
    pool: Pool,
    validation: Corpus,
    embeddings: Mapping[str, Embeddings],
    request: PilotRequest,
    runs: Sequence[PilotRun],
    parameters: dict[str, Any],
    identity: str,
    warnings: Sequence[str],
    staging: Staging,
) -> ResultsManifest:
    """Write the results' files from those of the runs, and describe them."""
    names = [source.name for source in pool.sources]
    metric = _METRICS.get(request.evaluator) or request.metric or Metric()
    found = [np.load(staging.path / "shards" / f"{run.name}.npz", allow_pickle=False) for run in runs]
    scores, seconds = ([float(each[field]) for each in found] for field in ("score", "seconds"))
    trained = [
        TrainingRun(dict(zip(names, run.weights, strict=True)), run.size, score)
        for run, score in zip(runs, scores, strict=True)
    ]
    runs_table(names, trained, [run.seed for run in runs], seconds).write_parquet(staging.path / RUNS_FILE)
    files = [staging.entry(RUNS_FILE, len(runs))]
    singles = {
        int(np.argmax(run.weights)): each["likelihoods"]
        for run, each in zip(runs, found, strict=True)
        if run.keeps_likelihoods
    }
    if singles:
        columns = np.stack([singles[number] for number in range(len(names))], axis=1)
        files.append(_write_likelihoods(columns, staging))
    corpora = {source.ref: source.fingerprint for source in pool.sources}
    corpora.setdefault(validation.manifest.ref, validation.manifest.fingerprint)
    made_from = [ArtifactInput(kind="corpus", ref=ref, fingerprint=each) for ref, each in corpora.items()]
    used = {each.manifest.ref: each.manifest.fingerprint for each in embeddings.values()}
    made_from += [ArtifactInput(kind="embeddings", ref=ref, fingerprint=each) for ref, each in used.items()]
    return ResultsManifest(
        name=staging.reference.name,
        version=1,
        fingerprint=identity,
        inputs=made_from,
        parameters=parameters,
        files=files,
        created_at=datetime.now(UTC),
        software=software_versions(*_LIBRARIES),
        warnings=[*warnings, *range_warnings(metric, scores)],
        sources=names,
        metric=metric,
        unit=request.unit,
        evaluator=request.evaluator,
        validation=validation.manifest.ref,
        n_rows=len(runs),
        likelihoods=bool(singles),
    )


def _write_likelihoods(columns: npt.NDArray[np.float32], staging: Staging) -> FileEntry:
    np.save(staging.path / LIKELIHOODS_FILE, columns.astype(np.float32), allow_pickle=False)
    return staging.entry(LIKELIHOODS_FILE, len(columns))
