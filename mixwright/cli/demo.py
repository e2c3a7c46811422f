"""``mixwright demo``: the main job end to end, on real text that is already on the machine."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import typer

from mixwright.cli.common import Home, open_store, run
from mixwright.cli.demo_texts import DEMO_CORPORA, DemoCorpus, write_rows
from mixwright.cli.output import print_table
from mixwright.cli.select import print_mixture
from mixwright.config import Settings
from mixwright.schemas.manifests import CorpusManifest, EmbeddingsManifest, IndexManifest, MixtureManifest
from mixwright.schemas.mixtures import Budget
from mixwright.schemas.requests import EmbedRequest, IndexRequest, IngestRequest
from mixwright.selectors.baselines import Proportional, Uniform
from mixwright.selectors.domain_tags import DomainTags
from mixwright.selectors.requests import SelectRequest
from mixwright.store import Store

_SELECTORS = {
    "demo-domain-tags": DomainTags(preset="meco", weights="temperature", temperature=2.0),
    "demo-uniform": Uniform(),
    "demo-proportional": Proportional(),
}


def demo(
    home: Home = None,
    serve: Annotated[bool, typer.Option(help="Start the service when all is published.")] = True,
    port: Annotated[int, typer.Option(help="Port of the service.")] = 8000,
) -> None:
    """Real text to served mixtures, end to end: ingest, embed, index, select, publish, serve."""
    began = time.monotonic()
    settings, store = open_store(home)
    corpora = [_ingest(settings, store, corpus) for corpus in DEMO_CORPORA]
    indexes = _embed_and_index(settings, store, [corpus.ref for corpus in corpora])
    mixtures = _select(settings, store, corpora)
    _report(corpora, indexes, mixtures)
    typer.echo(f"\npublished under {settings.home} in {time.monotonic() - began:.0f} seconds")
    if serve:
        from mixwright.service.server import serve as serve_forever

        serve_forever(settings, "127.0.0.1", port, _show_what_to_look_at)
    else:
        flag = f" --home {home}" if home else ""
        typer.echo(f"start the service:  mixwright serve{flag} --port {port}")
        _show_what_to_look_at(f"http://127.0.0.1:{port}")


def _ingest(settings: Settings, store: Store, corpus: DemoCorpus) -> CorpusManifest:
    from mixwright.jobs.ingest import run_ingest

    path = settings.home / "demo-texts" / f"{corpus.name}.jsonl"
    if not path.exists():
        typer.echo(f"collecting {corpus.about} …", err=True)
        write_rows(corpus, path)
    request = IngestRequest(name=corpus.name, paths=[str(path)], domain=corpus.domain)
    return run(settings, store, run_ingest, request)


def _embed_and_index(settings: Settings, store: Store, corpora: list[str]) -> list[IndexManifest]:
    from mixwright.jobs.embed import run_embed
    from mixwright.jobs.index import run_index

    requests = [EmbedRequest(corpus=corpus, workers=settings.workers) for corpus in corpora]
    with _ray_for_all(store, corpora):
        for request in requests:
            run(settings, store, run_embed, request)
    return [run(settings, store, run_index, IndexRequest(corpus=corpus)) for corpus in corpora]


def _ray_for_all(store: Store, corpora: list[str]) -> AbstractContextManager[None]:
    """One Ray for all corpora, or none at all where an earlier run has embedded them."""
    from mixwright.jobs.ray_pool import ray_session

    embedded = {each.corpus for each in store.manifests("embeddings") if isinstance(each, EmbeddingsManifest)}
    return nullcontext() if embedded.issuperset(corpora) else ray_session()


def _select(settings: Settings, store: Store, corpora: list[CorpusManifest]) -> list[MixtureManifest]:
    from mixwright.jobs.select import run_select

    budget = Budget(tokens=sum(corpus.n_tokens for corpus in corpora) // 2)
    sources = [corpus.ref for corpus in corpora]
    return [
        run(settings, store, run_select, SelectRequest(name=name, sources=sources, selector=each, budget=budget))
        for name, each in _SELECTORS.items()
    ]


def _report(corpora: list[CorpusManifest], indexes: list[IndexManifest], mixtures: list[MixtureManifest]) -> None:
    rows = [
        (each.ref, each.n_documents, each.n_tokens, each.n_domains, index.factory, f"{index.recall.measured:.3f}")
        for each, index in zip(corpora, indexes, strict=True)
    ]
    typer.echo()
    print_table(("corpus", "documents", "tokens", "domains", "index", "recall@10"), rows)
    for mixture in mixtures:
        typer.echo()
        print_mixture(mixture)


def _show_what_to_look_at(address: str) -> None:
    typer.echo("look at it:")
    typer.echo(f"  curl {address}/v1/mixtures")
    typer.echo(f"  curl {address}/v1/mixtures/demo-domain-tags")
    typer.echo(f"  curl '{address}/v1/mixtures/demo-domain-tags/rows?count=3'")
    typer.echo(f"or open {address}/ in a browser; Ctrl-C ends the service")
