"""Mixtures that are declared and published at once, in the process that is asked: no job, no Ray."""

from __future__ import annotations

import time

from mixwright.corpora import Corpus
from mixwright.errors import BusyError, ConfigError
from mixwright.jobs.select import OpenSelection, Publication, open_selection, publish_selection
from mixwright.progress import NoProgress, Progress
from mixwright.schemas.previews import MixturePreview
from mixwright.schemas.references import Reference, parse_reference
from mixwright.selectors.query import MixtureQuery
from mixwright.store import Store

LARGEST_POOL = 10_000_000
"""Documents of the sources together that are selected from while a client waits."""

_NAME_DIGITS = 16
_POLL_SECONDS = 0.05
_LONGEST_WAIT_SECONDS = 300.0


def query_mixture(store: Store, query: MixtureQuery, progress: Progress) -> Publication:
    """Publish the mixture, or find it published: the same query of the same corpora is the same mixture.

    Where another thread or process is making it at this moment, waits for that. Raises what ``run_select`` raises.
    """
    request = query.request()
    opened = open_selection(store, request, progress)
    reference = parse_reference(query.name) if query.name else _own_reference(opened)
    end = time.monotonic() + _LONGEST_WAIT_SECONDS
    while True:
        try:
            return publish_selection(store, reference, request, opened, progress)
        except BusyError:
            if time.monotonic() > end:
                raise
            time.sleep(_POLL_SECONDS)


def preview_mixture(store: Store, query: MixtureQuery) -> MixturePreview:
    """What the mixture would be; nothing is written. Raises what ``query_mixture`` raises, but no BusyError."""
    request = query.request()
    opened = open_selection(store, request, NoProgress())
    reference = parse_reference(query.name) if query.name else _own_reference(opened)
    existing = store.existing("mixture", reference, opened.fingerprint)
    mixture = request.selector.select(opened.pool, opened.budget)
    return MixturePreview(
        ref=existing.ref if existing is not None else None,
        name=reference.name,
        fingerprint=opened.fingerprint,
        budget=mixture.budget.as_dict(),
        n_rows=mixture.n_rows,
        n_tokens=mixture.n_tokens,
        tokenizer=mixture.tokenizer,
        components=list(mixture.components),
        stages=list(mixture.stages),
        tags=mixture.tags,
        warnings=list(mixture.warnings),
        report=mixture.report,
    )


def refuse_large_pool(store: Store, query: MixtureQuery) -> None:
    """Raise ConfigError for more documents than a client should wait for, NotFoundError without a corpus."""
    n_documents = sum(len(Corpus.open(store, source)) for source in query.sources)
    if n_documents > LARGEST_POOL:
        raise ConfigError(
            f"the sources have {n_documents:,} documents, and at most {LARGEST_POOL:,} are selected from while "
            "you wait: post a select job with the same selector, kind declared, to /v1/jobs"
        )


def _own_reference(opened: OpenSelection) -> Reference:
    # With its version, so that the one of two who publishes second finds the other's and makes no second version.
    return Reference(f"query-{opened.fingerprint[:_NAME_DIGITS]}", 1)
