"""Searching a datastore for many queries, and ranking the documents of the passages that it finds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from mixwright.indexes.datastores.datastore import Datastore, Queries
from mixwright.indexes.datastores.shards import alive_rows
from mixwright.indexes.hits import missing_hits
from mixwright.indexes.protocols import Hits
from mixwright.indexes.retrieval_metrics import Float64Array
from mixwright.progress import Progress
from mixwright.schemas.datastores import SearchMode, SearchOptions

Int64Array = npt.NDArray[np.int64]
Texts = Sequence[Sequence[str]]

SEARCHED_AT_ONCE = 256
_ROWS_AT_ONCE = 1 << 16
_PASSAGES_A_DOCUMENT = 2
"""A search for documents asks for so many times as many passages, and for more where they are too few."""

_ROUNDING = 1e-6


@dataclass(frozen=True)
class PreparedQueries:
    """Queries, with vectors where the mode needs them; ``truncated`` (q,) are longer than the encoder reads."""

    queries: Queries
    truncated: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.truncated)

    def part(self, lines: Int64Array) -> PreparedQueries:
        """Some of the queries."""
        return PreparedQueries(self.queries.part(lines), self.truncated[lines])


def prepare_queries(
    datastore: Datastore, texts: Sequence[str], mode: SearchMode, progress: Progress
) -> PreparedQueries:
    """Embed queries, none of which is blank, as far as the mode of the search needs it."""
    progress.start("embed queries", total=len(texts), unit="queries")
    vectors, truncated = [], []
    for start in range(0, len(texts), SEARCHED_AT_ONCE):
        asked = list(texts[start : start + SEARCHED_AT_ONCE])
        if mode == "bm25":
            truncated.append(np.zeros(len(asked), dtype=np.bool_))
        else:
            found, too_long = datastore.encoder.encode(asked)
            vectors.append(found)
            truncated.append(np.isin(np.arange(len(asked)), too_long))
        progress.advance(len(asked))
    queries = Queries(list(texts), np.concatenate(vectors) if vectors else None)
    return PreparedQueries(queries, np.concatenate(truncated))


def find_hits(
    datastore: Datastore,
    queries: Queries,
    options: SearchOptions,
    forbidden: Texts | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Hits:
    """The best ``options.k`` rows for each of q queries, (q, k), some hundred queries at a time.

    ``forbidden`` are, for each query, texts that no hit may contain.
    """
    q = len(queries.texts or ())
    hits = missing_hits(q, options.k)
    for start in range(0, q, SEARCHED_AT_ONCE):
        lines = np.arange(start, min(start + SEARCHED_AT_ONCE, q))
        chosen = [list(forbidden[line]) for line in lines.tolist()] if forbidden is not None else None
        asked = options.model_copy(update={"decontaminate": chosen})
        hits.ids[lines], hits.scores[lines] = datastore.find(queries.part(lines), asked).hits
        advance(len(lines))
    return hits


def document_keys(datastore: Datastore, rows: Int64Array) -> list[list[int]]:
    """The documents of rows (q, k), by key, without those of missing rows (−1)."""
    distinct, places = np.unique(rows[rows >= 0], return_inverse=True)
    keys = datastore.pieces.take(distinct, ["document_key"])["document_key"].to_numpy()[places]
    ends = np.cumsum((rows >= 0).sum(axis=1))
    return [part.tolist() for part in np.split(keys, ends[:-1])]


def document_rankings(
    datastore: Datastore, queries: Queries, options: SearchOptions, n: int, progress: Progress | None = None
) -> list[list[int]]:
    """The n best documents for each query, by key, each at its best passage; fewer where the store has no more.

    ``options.k`` does not count: the search goes as deep as n different documents need.
    """
    q = len(queries.texts or ())
    rankings: list[list[int]] = [[] for _ in range(q)]
    lines, depth = np.arange(q), _PASSAGES_A_DOCUMENT * n
    while len(lines):
        asked = options.model_copy(update={"k": depth})
        rows = find_hits(datastore, queries.part(lines), asked).ids
        for line, found in zip(lines, document_keys(datastore, rows), strict=True):
            rankings[line] = list(dict.fromkeys(found))[:n]
        deeper = np.array([len(rankings[line]) < n for line in lines]) & (rows[:, -1] >= 0)
        if progress is not None:
            progress.advance(len(lines) - int(deeper.sum()))
        lines, depth = lines[deeper], 4 * depth
    return rankings


def index_recall(found: Hits, exact: Hits) -> Float64Array:
    """The share of the true nearest passages that an index found, (q,), from hits (q, k) of both.

    A hit that scores as well as the last true one is right: which of several equal passages is found is no error.
    """
    there = (exact.ids >= 0).sum(axis=1)
    last = np.take_along_axis(exact.scores, np.maximum(there - 1, 0)[:, None], axis=1)
    among = (found.ids[:, :, None] == exact.ids[:, None, :]).any(axis=2)
    right = (found.ids >= 0) & (among | (found.scores >= last - _ROUNDING * np.abs(last)))
    return np.asarray(np.where(there, right.sum(axis=1) / np.maximum(there, 1), 1.0))


@dataclass(frozen=True)
class JudgedDocuments:
    """Which documents of a store the ids of judgements name.

    ``names``: by key of a document, the id that names it. ``missing`` are ids that name none, and
    ``n_ambiguous`` ids name several: whichever is found counts.
    """

    names: dict[int, str]
    missing: list[str]
    n_ambiguous: int

    def ranking(self, documents: Sequence[int]) -> list[str | int]:
        """Documents as judgements call them; those that are not judged by their key."""
        return [self.names.get(document, document) for document in documents]


def find_judged(datastore: Datastore, ids: Collection[str], id_field: str, progress: Progress) -> JudgedDocuments:
    """Look for the documents that ``ids`` name, by a metadata key or column of theirs, else by their own id.

    Goes over all passages that are not deleted.
    """
    n = datastore.manifest.n_rows
    alive = alive_rows(datastore.directory, datastore.manifest)
    columns = list(dict.fromkeys([id_field, "document_id"]))
    progress.start("look for judged documents", total=n, unit="passages")
    by_field: dict[str, set[int]] = {}
    by_id: dict[str, set[int]] = {}
    wanted = pl.Series("id", sorted(ids), dtype=pl.String)
    for start in range(0, n, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, n)
        frame = datastore.pieces.frame(start, stop, columns).with_columns(
            pl.Series("key", datastore.pieces.keys(start, stop, "document_key"))
        )
        frame = frame.filter(pl.Series(alive[start:stop]))
        for column, found in ((id_field, by_field), ("document_id", by_id)):
            named = frame.filter(pl.col(column).cast(pl.String).is_in(wanted.implode()))
            for name, key in named.select(pl.col(column).cast(pl.String), "key").unique().iter_rows():
                found.setdefault(name, set()).add(key)
        progress.advance(stop - start)
    documents = {name: by_field.get(name) or by_id.get(name, set()) for name in wanted}
    return JudgedDocuments(
        {key: name for name, keys in documents.items() for key in keys},
        [name for name, keys in documents.items() if not keys],
        sum(len(keys) > 1 for keys in documents.values()),
    )
