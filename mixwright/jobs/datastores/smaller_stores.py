"""What smaller stores would find, without building them: one deep search of the whole store, and shares of it.

Where a share leaves a query with too few of the deep list's hits, that share is searched by itself for the query,
with a filter inside the index: the same answer, as far down as it takes. Ranks of a fused list depend on what else
is in the store, so mode hybrid has no deep list, and every share is searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mixwright.indexes.contamination import EvaluationTexts
from mixwright.indexes.datastore_scaling import DeepHits, subset_hits
from mixwright.indexes.datastores.datastore import Datastore, Queries
from mixwright.indexes.datastores.filters import sampled
from mixwright.indexes.datastores.shards import alive_rows
from mixwright.jobs.datastores.evaluation_search import Texts, document_keys, document_rankings, find_hits
from mixwright.progress import Progress
from mixwright.schemas.datastores import SamplingUnit, SearchOptions

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

_ROWS_AT_ONCE = 1 << 16
_PASSAGES_AT_ONCE = 4096
_KEY_COLUMNS = {"passage": "key", "document": "document_key"}


class ShareHits(NamedTuple):
    """What a share of the store finds: rows (q, k), best first, −1 where it has no further one.

    ``searched_again`` queries had too few hits in the deep list.
    """

    rows: Int64Array
    searched_again: int

    @property
    def n_short(self) -> int:
        """Queries for which the share has too few passages."""
        return int((self.rows[:, -1] < 0).sum())


class ShareRankings(NamedTuple):
    """The same of documents, by key."""

    rankings: list[list[int]]
    searched_again: int


@dataclass(frozen=True)
class SmallerStores:
    """Shares of a datastore, for q queries.

    ``options`` are those of the search in the whole store, with its dedup; ``deep`` its hits. ``complete`` (q,)
    says of which queries the deep list is all there is. No hit may contain one of the texts that ``forbidden``
    has for its query.
    """

    datastore: Datastore
    queries: Queries
    options: SearchOptions
    unit: SamplingUnit
    deep: DeepHits
    complete: BoolArray
    forbidden: Texts | None = None

    @classmethod
    def search(
        cls,
        datastore: Datastore,
        queries: Queries,
        options: SearchOptions,
        unit: SamplingUnit,
        progress: Progress,
        forbidden: Texts | None = None,
    ) -> SmallerStores:
        """Search the whole store for its ``options.k`` best hits, once a query."""
        q = len(queries.texts or ())
        rows = np.empty((q, 0), dtype=np.int64)
        if options.mode != "hybrid":
            depth = min(options.k, datastore.manifest.n_rows)
            progress.start(f"search for the best {depth:,} of each", total=q, unit="queries")
            plain = options.model_copy(update={"k": depth, "dedup": False})
            rows = find_hits(datastore, queries, plain, None, progress.advance).ids
        complete = rows[:, -1] < 0 if rows.shape[1] else np.zeros(q, dtype=np.bool_)
        if rows.shape[1] == datastore.manifest.n_rows:
            complete[:] = True
        deep = DeepHits(
            rows,
            _keys(datastore, rows, unit),
            datastore.clusters[np.maximum(rows, 0)] if options.dedup else None,
            contaminated_hits(datastore, rows, forbidden, options, progress) if forbidden is not None else None,
        )
        return cls(datastore, queries, options, unit, deep, complete, forbidden)

    def passages(self, probability: float, seed: int, k: int) -> ShareHits:
        """The k best passages for each query in the share that ``sampled`` keeps."""
        found = subset_hits(self.deep, k, probability, seed)
        rows = self._rows(found.columns)
        lines = np.flatnonzero(found.short & ~self.complete)
        if len(lines):
            chosen = [self.forbidden[line] for line in lines.tolist()] if self.forbidden is not None else None
            asked = self._share(probability, seed, k)
            rows[lines] = find_hits(self.datastore, self.queries.part(lines), asked, chosen).ids
        return ShareHits(rows, len(lines))

    def documents(self, probability: float, seed: int, n: int) -> ShareRankings:
        """The n best documents for each query in a share, each at its best passage."""
        found = subset_hits(self.deep, self.deep.ids.shape[1], probability, seed)
        if self.deep.ids.shape[1]:
            rankings = document_keys(self.datastore, self._rows(found.columns))
        else:
            rankings = [[] for _ in self.complete]
        rankings = [list(dict.fromkeys(each))[:n] for each in rankings]
        short = np.array([len(each) < n for each in rankings])
        lines = np.flatnonzero(short & ~self.complete)
        if len(lines):
            asked = self._share(probability, seed, n)
            again = document_rankings(self.datastore, self.queries.part(lines), asked, n)
            for line, ranking in zip(lines, again, strict=True):
                rankings[line] = ranking
        return ShareRankings(rankings, len(lines))

    def _rows(self, columns: Int64Array) -> Int64Array:
        """The store rows at ``columns`` of the deep list, (q, k), −1 where there is none."""
        if not self.deep.ids.shape[1]:
            return np.full(columns.shape, -1, dtype=np.int64)
        return np.where(columns >= 0, np.take_along_axis(self.deep.ids, np.maximum(columns, 0), axis=1), -1)

    def _share(self, probability: float, seed: int, k: int) -> SearchOptions:
        share = {"k": k, "subsample": probability, "subsample_by": self.unit, "seed": seed}
        return self.options.model_copy(update=share)


def _keys(datastore: Datastore, rows: Int64Array, unit: SamplingUnit) -> UInt64Array:
    """What is drawn of each of the rows (q, K); 0 where there is none."""
    keys = np.zeros(rows.shape, dtype=np.uint64)
    there = rows >= 0
    if unit == "cluster":
        keys[there] = datastore.clusters[rows[there]]
        return keys
    distinct, places = np.unique(rows[there], return_inverse=True)
    column = _KEY_COLUMNS[unit]
    keys[there] = datastore.pieces.take(distinct, [column])[column].to_numpy()[places]
    return keys


def contaminated_hits(
    datastore: Datastore, rows: Int64Array, forbidden: Texts, options: SearchOptions, progress: Progress
) -> BoolArray:
    """(q, K): which of the rows (q, K) contain a text that is forbidden to their query; each is read once."""
    texts = [text for each in forbidden for text in each]
    owners = np.repeat(np.arange(len(forbidden)), [len(each) for each in forbidden])
    evaluation = EvaluationTexts(texts, ngram=options.ngram, longest_run=options.longest_run)
    distinct, places = np.unique(rows[rows >= 0], return_inverse=True)
    progress.start("compare passages with the evaluation", total=len(distinct), unit="passages")
    codes = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(distinct), _PASSAGES_AT_ONCE):
        part = distinct[start : start + _PASSAGES_AT_ONCE]
        overlaps = evaluation.check(datastore.pieces.take(part, ["text"])["text"].to_pylist())
        exceed = overlaps.exceed(options.containment, options.longest_run)
        codes.append((overlaps.text[exceed] + start) * len(forbidden) + owners[overlaps.evaluation[exceed]])
        progress.advance(len(part))
    found = np.zeros(rows.shape, dtype=np.bool_)
    lines = np.nonzero(rows >= 0)[0]
    found[rows >= 0] = np.isin(places * len(forbidden) + lines, np.concatenate(codes))
    return found


class ShareSizes(NamedTuple):
    """How large shares are: passages and tokens, both (P, S), of P shares and S seeds."""

    passages: Int64Array
    tokens: Int64Array


def share_sizes(
    datastore: Datastore, unit: SamplingUnit, probabilities: Sequence[float], seeds: Sequence[int]
) -> ShareSizes:
    """Passages and tokens of every share, without those that are deleted."""
    n = datastore.manifest.n_rows
    alive = alive_rows(datastore.directory, datastore.manifest)
    sizes = np.zeros((2, len(probabilities), len(seeds)), dtype=np.int64)
    for start in range(0, n, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, n)
        here = alive[start:stop]
        keys = (
            datastore.clusters[start:stop]
            if unit == "cluster"
            else datastore.pieces.keys(start, stop, _KEY_COLUMNS[unit])
        )
        n_tokens = datastore.pieces.frame(start, stop, ["n_tokens"])["n_tokens"].to_numpy()
        for i, probability in enumerate(probabilities):
            for j, seed in enumerate(seeds):
                kept = sampled(keys, probability, seed) & here
                sizes[:, i, j] += (int(kept.sum()), int(n_tokens[kept].sum()))
    return ShareSizes(sizes[0], sizes[1])
