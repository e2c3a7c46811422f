"""The select job: a pool and a selector to a published mixture."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.errors import ConfigError
from mixwright.fingerprint import fingerprint
from mixwright.jobs.samples import make_embeddings
from mixwright.jobs.vector_map import ray_vector_map
from mixwright.progress import Progress
from mixwright.schemas.manifests import FileEntry, MixtureManifest
from mixwright.schemas.mixtures import Budget, MixtureComponent
from mixwright.schemas.references import Reference, parse_reference
from mixwright.selectors.declared import Declared
from mixwright.selectors.domain_tags import KEPT_VALUES
from mixwright.selectors.left_out import in_corpora, leave_out
from mixwright.selectors.mixture import Mixture
from mixwright.selectors.pool import Pool, Requirements
from mixwright.selectors.requests import SelectRequest
from mixwright.store import Staging, Store, software_versions


def run_select(store: Store, request: SelectRequest, progress: Progress) -> MixtureManifest:
    """Select and publish; an equal mixture that is published already is returned.

    Corpora that the selector wants embedded, and that are not, are embedded first. Raises what the selector
    raises, NotFoundError for a missing corpus or encoder, ConflictError.
    """
    reference = parse_reference(request.name)
    return publish_selection(
        store, reference, request, open_selection(store, request, progress), progress
    ).manifest


class OpenSelection(NamedTuple):
    """What a request selects from, how much, and what the mixture is identified by."""

    pool: Pool
    budget: Budget
    parameters: dict[str, Any]
    fingerprint: str


class Publication(NamedTuple):
    """A published mixture, and whether it was published just now."""

    manifest: MixtureManifest
    is_new: bool


def open_selection(store: Store, request: SelectRequest, progress: Progress) -> OpenSelection:
    """Open the pool of a request and find its identity; raises what the selector raises, NotFoundError."""
    pool = _open_pool(store, request, progress)
    budget, selector = request.budget, request.selector
    if budget is None:
        if not isinstance(selector, Declared):
            raise ConfigError(f"{selector.kind} needs a budget: give tokens or documents")
        budget = selector.own_budget(pool)
    parameters: dict[str, Any] = {
        "selector": asdict(selector),
        "budget": budget.as_dict(),
        **dict.fromkeys(request.exclusions, "drop"),
    }
    identity = fingerprint("mixture", [each.fingerprint for each in pool.inputs], parameters)
    return OpenSelection(pool, budget, parameters, identity)


def publish_selection(
    store: Store, reference: Reference, request: SelectRequest, opened: OpenSelection, progress: Progress
) -> Publication:
    """Publish what is selected under a name, or find it published; raises BusyError while another makes it."""
    pool, budget, parameters, identity = opened
    existing = store.existing("mixture", reference, identity)
    if isinstance(existing, MixtureManifest):
        return Publication(existing, is_new=False)
    progress.start(f"select {reference}", total=1, unit="mixtures")
    with store.stage("mixture", reference, identity) as staging:
        # Another process may have published it between our look and our lock.
        existing = store.existing("mixture", reference, identity)
        if isinstance(existing, MixtureManifest):
            return Publication(existing, is_new=False)
        work = staging.path / "work"
        mapped = replace(pool, map_vectors=ray_vector_map(work.resolve(), request.workers, progress))
        mixture = in_corpora(request.selector.select(mapped, budget), pool)
        shutil.rmtree(work, ignore_errors=True)
        manifest = store.publish(staging, _manifest(mixture, pool, parameters, identity, staging))
    progress.advance()
    return Publication(manifest, is_new=True)


def _open_pool(store: Store, request: SelectRequest, progress: Progress) -> Pool:
    """What is selected from: the sources as the selector wants them, without what the request leaves out."""
    exclusions = list(request.exclusions.values())
    requirements = getattr(request.selector, "requirements", Requirements)()
    columns = (*requirements.attributes, *(each.column for each in exclusions))
    requirements = replace(requirements, attributes=columns)
    if requirements.score is not None or exclusions:
        # Before the corpora are embedded, which may take long.
        there = leave_out(Pool.open(store, request.sources, requirements), exclusions)
        if requirements.score is not None:
            there.refuse_unscored(requirements.score)
    embeddings, samples = make_embeddings(store, request.sources, requirements, progress)
    return leave_out(Pool.open(store, request.sources, requirements, embeddings, samples=samples), exclusions)


def _manifest(
    mixture: Mixture, pool: Pool, parameters: dict[str, Any], identity: str, staging: Staging
) -> MixtureManifest:
    """Write the mixture's arrays into the staging folder and describe it."""
    files: list[FileEntry] = []
    components = [
        _component(component, number, mixture, staging, files)
        for number, component in enumerate(mixture.components)
    ]
    tags = mixture.tags
    for name, table in mixture.tables.items():
        table.write_parquet(staging.path / f"{name}.parquet")
        files.append(staging.entry(f"{name}.parquet", table.height))
    if tags is not None and KEPT_VALUES in mixture.tables:
        tags = tags.model_copy(update={"kept_values_file": f"{KEPT_VALUES}.parquet"})
    unused = {source.ref for source in pool.sources} - {component.source for component in components}
    return MixtureManifest(
        name=staging.reference.name,
        version=staging.reference.version or 1,
        fingerprint=identity,
        inputs=[each for each in pool.inputs if each.kind != "corpus" or each.ref not in unused],
        parameters=parameters,
        files=files,
        created_at=datetime.now(UTC),
        software=software_versions("numpy", "polars", "pyarrow"),
        warnings=list(mixture.warnings),
        selector=mixture.selector,
        seed=mixture.seed,
        budget=mixture.budget.as_dict(),
        n_rows=mixture.n_rows,
        n_tokens=mixture.n_tokens,
        tokenizer=mixture.tokenizer,
        components=components,
        stages=list(mixture.stages),
        tags=tags,
        report=mixture.report,
    )


def _component(
    component: MixtureComponent, number: int, mixture: Mixture, staging: Staging, files: list[FileEntry]
) -> MixtureComponent:
    selection = mixture.selections[number]
    updates: dict[str, str] = {}
    for field, rows in (("rows_file", selection.rows), ("remainder_file", selection.remainder)):
        if rows is not None and len(rows):
            updates[field] = _write_rows(rows, f"{field.removesuffix('_file')}-{number:05d}.npy", staging, files)
    return component.model_copy(update=updates)


def _write_rows(rows: npt.NDArray[np.int64], name: str, staging: Staging, files: list[FileEntry]) -> str:
    np.save(staging.path / name, rows.astype(np.int64))
    files.append(staging.entry(name, len(rows)))
    return name
