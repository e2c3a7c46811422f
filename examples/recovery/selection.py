"""The arms' choices: by mixwright's jobs, and two baselines that are written here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from mixwright.attributes import Attributes
from mixwright.corpora import Corpus
from mixwright.indexes.embeddings import Embeddings
from mixwright.jobs.embed import run_embed
from mixwright.jobs.ingest import run_ingest
from mixwright.jobs.score import run_score
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.mixtures import Budget
from mixwright.schemas.requests import EmbedRequest, IngestRequest, ScoreRequest
from mixwright.selectors.allocation import fill
from mixwright.selectors.degradation import cluster_budgets, cluster_means, cluster_weights
from mixwright.selectors.registry import AnySelector
from mixwright.selectors.requests import SelectRequest
from mixwright.selectors.streams import MixtureStream
from mixwright.store import Store
from recovery.data import PROMPT_TEMPLATE, TEXT_TEMPLATE, Sample, write_pool

_CORPUS = "pool"
_BINS = 10
_PROGRESS = NoProgress()


class ScoredPool:
    """The pool as a corpus in OUT/home: ingested, embedded and scored; what is published is not done again."""

    def __init__(
        self, out: Path, pool: Sequence[Sample], original: str, pruned: str, encoder: str, device: str
    ) -> None:
        self.store = Store(out / "home")
        self._encoder = encoder
        file = out / "pool.jsonl"
        write_pool(pool, file)
        run_ingest(
            self.store,
            IngestRequest(name=_CORPUS, paths=[str(file)], text_template=TEXT_TEMPLATE, tokenizer=original),
            _PROGRESS,
        )
        embed = EmbedRequest(corpus=_CORPUS, encoder=encoder, template=PROMPT_TEMPLATE, device=device)
        score = ScoreRequest(
            corpus=_CORPUS, original=original, pruned=pruned, prompt_format="plain", device=device
        )
        self._embeddings = run_embed(self.store, embed, _PROGRESS).ref
        self._scores = run_score(self.store, score, _PROGRESS).ref

    def select(self, name: str, parameters: dict[str, Any], budget: int) -> list[str]:
        """Ids of the documents that a selector with these parameters chooses for ``budget`` tokens."""
        if parameters["kind"] == "paser":
            parameters = {**parameters, "encoder": self._encoder}
        selector: Any = TypeAdapter(AnySelector).validate_python(parameters)
        request = SelectRequest(name=name, sources=[_CORPUS], selector=selector, budget=Budget(tokens=budget))
        manifest = run_select(self.store, request, _PROGRESS)
        stream = MixtureStream.open(self.store, f"mixture:{manifest.name}@{manifest.version}")
        return [identifier for table in stream.read() for identifier in table["id"].to_pylist()]

    def columns(self) -> tuple[list[str], npt.NDArray[np.float32], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Ids, vectors (n, d), divergences (n,) and tokens (n,) of the documents."""
        corpus = Corpus.open(self.store, _CORPUS)
        frame = corpus.scan().select("id", "n_tokens").collect()
        vectors = Embeddings.open(self.store, self._embeddings, corpus).matrix()
        jsd = Attributes.open(self.store, self._scores, corpus).scan().select("jsd").collect()["jsd"]
        return frame["id"].to_list(), vectors, jsd.to_numpy().astype(np.float64), frame["n_tokens"].to_numpy()


def kmeans_top(
    vectors: npt.NDArray[np.float32],
    jsd: npt.NDArray[np.float64],
    n_tokens: npt.NDArray[np.int64],
    budget: int,
    clusters: int,
    seed: int,
) -> list[int]:
    """Row numbers: k-means, tokens of a cluster by its mean divergence, in it the largest divergence first."""
    import faiss

    kmeans = faiss.Kmeans(vectors.shape[1], clusters, seed=seed, min_points_per_centroid=1)
    kmeans.train(vectors)
    labels = kmeans.index.search(vectors, 1)[1][:, 0]
    sizes = np.bincount(labels, weights=n_tokens, minlength=clusters).astype(np.int64)
    weights = cluster_weights(cluster_means(jsd, labels, clusters), sizes, "cds")
    order = np.argsort(-jsd, kind="stable")
    parts = [
        fill(order[labels[order] == cluster], n_tokens, int(share))
        for cluster, share in enumerate(cluster_budgets(weights, sizes, budget))
        if share
    ]
    taken = np.concatenate(parts)
    rest = order[~np.isin(order, taken)]
    more = fill(rest, n_tokens, budget - int(n_tokens[taken].sum()))
    return [int(row) for row in np.sort(np.concatenate([taken, more]))]


def random_of_lengths(pool: Sequence[Sample], chosen: Sequence[Sample], budget: int, seed: int) -> list[Sample]:
    """Random samples of the pool with the lengths of ``chosen``: as many tokens of each tenth of its lengths."""
    draw = np.random.default_rng(seed)
    edges = np.quantile([sample.n_tokens for sample in chosen], np.linspace(0, 1, _BINS + 1)[1:-1])
    lengths = np.asarray([sample.n_tokens for sample in pool])
    order = draw.permutation(len(pool))
    wanted = np.bincount(
        np.searchsorted(edges, [sample.n_tokens for sample in chosen]),
        weights=[sample.n_tokens for sample in chosen],
        minlength=_BINS,
    )
    bins = np.searchsorted(edges, lengths)[order]
    parts = [fill(order[bins == number], lengths, int(tokens)) for number, tokens in enumerate(wanted)]
    taken = np.concatenate(parts)
    rest = order[~np.isin(order, taken)]
    more = fill(rest, lengths, budget - int(lengths[taken].sum()))
    return [pool[row] for row in np.concatenate([taken, more])]
