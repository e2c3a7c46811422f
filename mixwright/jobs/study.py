"""Asking about mixtures without publishing one: what ``predict``, ``compare`` and the service use."""

from __future__ import annotations

from collections.abc import Sequence

from mixwright.errors import DataError
from mixwright.jobs.samples import find_embeddings, make_embeddings
from mixwright.progress import Progress
from mixwright.schemas.manifests import MixtureManifest
from mixwright.schemas.mixtures import Budget
from mixwright.selectors.pool import Pool
from mixwright.selectors.projektor.selector import Projektor
from mixwright.selectors.projektor.study import Study
from mixwright.selectors.registry import SELECTOR_ADAPTER
from mixwright.store import Store


def open_pool(store: Store, sources: Sequence[str], selector: Projektor, progress: Progress | None) -> Pool:
    """The pool of these corpora as the selector wants it.

    Embeddings that are missing are made; where there is no ``progress`` to tell of it, they are a DataError.
    """
    requirements = selector.requirements()
    if progress is None:
        embeddings, samples = find_embeddings(store, sources, requirements)
    else:
        embeddings, samples = make_embeddings(store, sources, requirements, progress)
    return Pool.open(store, sources, requirements, embeddings, samples=samples)


def open_study(
    store: Store, sources: Sequence[str], selector: Projektor, budget: Budget | None, progress: Progress | None
) -> Study:
    """What is known of the mixtures of these corpora. Raises what ``open_pool`` and ``Study.of`` raise."""
    return Study.of(selector, open_pool(store, sources, selector, progress), budget)


def study_of_mixture(manifest: MixtureManifest) -> tuple[list[str], Projektor, Budget]:
    """Sources, selector and budget of a mixture by projektor.

    Raises DataError for one by another selector, and for one whose sources were not whole.
    """
    selector = SELECTOR_ADAPTER.validate_python(manifest.parameters.get("selector", {"kind": manifest.selector}))
    if not isinstance(selector, Projektor):
        raise DataError(f"mixture {manifest.ref} was not selected by projektor: name one that was")
    if "drop" in (manifest.parameters.get("near_duplicates"), manifest.parameters.get("contaminated")):
        raise DataError(
            f"mixture {manifest.ref} leaves documents of its sources out: ask with sources and selector instead"
        )
    sources = [source["ref"] for source in manifest.report["sources"]]
    return sources, selector, Budget.model_validate(manifest.budget)
