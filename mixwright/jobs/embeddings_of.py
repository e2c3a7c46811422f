"""The embeddings that a job wants of some corpora: found, or made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from mixwright.corpora import Corpus
from mixwright.indexes.embeddings import Embeddings
from mixwright.indexes.encoders import find_encoder
from mixwright.jobs.embed import run_embed
from mixwright.jobs.ray_pool import cpu_count, ray_session
from mixwright.progress import Progress
from mixwright.schemas.manifests import EmbeddingsManifest
from mixwright.schemas.requests import EmbedRequest
from mixwright.store import Store


def embeddings_of(
    store: Store,
    references: Sequence[str],
    encoder: str,
    template: Callable[[Sequence[str]], str],
    progress: Progress,
    workers: int | None = None,
) -> dict[str, Embeddings]:
    """The embeddings of these corpora, by ref; ``template`` makes what is embedded of their metadata fields.

    Raises what ``run_embed`` raises.
    """
    corpora = [Corpus.open(store, reference) for reference in references]
    templates = [template(corpus.metadata_fields) for corpus in corpora]
    missing = [
        corpus
        for corpus, each in zip(corpora, templates, strict=True)
        if published_embeddings(store, corpus, encoder, each) is None
    ]
    found = {}
    # Where several are made, Ray is started once for all of them.
    with ray_session(max(cpu_count(), workers or 1)) if len(missing) > 1 else nullcontext():
        for corpus, each in zip(corpora, templates, strict=True):
            embed = EmbedRequest(corpus=corpus.manifest.ref, encoder=encoder, template=each, workers=workers)
            found[corpus.manifest.ref] = Embeddings.open(store, run_embed(store, embed, progress).ref, corpus)
    return found


def published_embeddings(store: Store, corpus: Corpus, encoder: str, template: str) -> Embeddings | None:
    """The newest embeddings of a corpus by this encoder and template, if there are any."""
    revision = find_encoder(encoder).revision
    found = [
        each
        for each in store.manifests("embeddings")
        if isinstance(each, EmbeddingsManifest)
        and [made.fingerprint for made in each.inputs if made.kind == "corpus"] == [corpus.manifest.fingerprint]
        and (each.encoder_revision, each.template, each.n_rows) == (revision, template, len(corpus))
    ]
    newest = max(found, key=lambda each: each.created_at, default=None)
    return Embeddings.open(store, newest.ref, corpus) if newest is not None else None
