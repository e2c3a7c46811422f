"""Searching a datastore: all shards, one answer.

The order of the steps is that under which filtering what was found equals filtering what is searched: rows that
qualify are chosen inside each shard, the shards' lists are merged by score, dense and BM25 lists are fused, then
near-duplicates and contaminated passages are left out, and the cross-encoder comes last. Where these steps leave
fewer than k hits, the search goes deeper by itself until there are k or no row is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from mixwright.conditions import parse_condition
from mixwright.errors import ConfigError, DataError, UnavailableError
from mixwright.hashing import UInt64Array
from mixwright.indexes.bm25 import bm25_query, distinct_terms, sum_statistics
from mixwright.indexes.contamination import contaminated
from mixwright.indexes.datastores.encoding import QueryEncoder
from mixwright.indexes.datastores.filters import BoolArray, RowFilter
from mixwright.indexes.datastores.fusion import reciprocal_rank_fusion
from mixwright.indexes.datastores.pieces import Pieces
from mixwright.indexes.datastores.shards import (
    CLUSTERS_FILE,
    DenseSearch,
    LocalShards,
    ShardGroup,
    open_rows,
    search_shards,
)
from mixwright.indexes.hits import merge_hits, missing_hits, order_hits, pad_hits
from mixwright.indexes.protocols import FloatArray, Hits, IdArray
from mixwright.indexes.rerankers import Reranker
from mixwright.indexes.searching import checked_queries
from mixwright.schemas.datastores import SearchOptions, SearchRequest, SearchResponse
from mixwright.schemas.documents import PASSAGE_SCHEMA
from mixwright.schemas.manifests import DatastoreManifest
from mixwright.store import Store

_HIT_COLUMNS = ("id", "document_id", "text", "start", "end", "source", "domain", "url")

_LEAST_FUSED = 200
"""Hits of each list that are fused, at least: so that the first few do not depend on k."""

_DEEPER = 4
"""A search that left too few hits is repeated so many times deeper."""

_NO_QUERY_TEXT = "queries are needed: mode bm25 and hybrid, and rerank, read the words of a query"


class Found(NamedTuple):
    """Store rows (q, k) with their scores, best first, missing ones last; and how many shards answered."""

    hits: Hits
    shards_searched: int


@dataclass(frozen=True)
class Queries:
    """Queries as texts (q,), as vectors (q, dim), or both: what a search reads of them has to be there.

    ``truncated`` are the numbers of those that are longer than the encoder reads.
    """

    texts: Sequence[str] | None
    vectors: FloatArray | None
    truncated: Sequence[int] = ()

    def part(self, lines: IdArray) -> Queries:
        """Some of the queries."""
        texts = None if self.texts is None else [self.texts[line] for line in lines]
        return Queries(texts, None if self.vectors is None else self.vectors[lines])


@dataclass(frozen=True)
class Answer:
    """The fields of a ``SearchResponse``, not yet made into one: for REST they go into JSON as they are."""

    hits: list[list[dict[str, Any]]]
    partial: bool
    shards_searched: int
    shards_total: int
    warnings: list[str]

    def as_response(self) -> SearchResponse:
        """The answer as the model that its schema is made of."""
        return SearchResponse.model_validate(vars(self))

    def as_json(self) -> bytes:
        """The answer as JSON."""
        return msgspec.json.encode(self)


class Datastore:
    """A published datastore, opened by memory map; any number of threads may search it at once."""

    def __init__(
        self,
        manifest: DatastoreManifest,
        directory: Path,
        shards: ShardGroup,
        reranker: Reranker | None = None,
    ) -> None:
        self.manifest = manifest
        self.directory = directory
        self.pieces = Pieces(directory, manifest.pieces, manifest.dim)
        self.encoder = QueryEncoder(manifest)
        self._shards = shards
        self._reranker = reranker

    @classmethod
    def open(cls, store: Store, reference: str, reranker: Reranker | None = None) -> Datastore:
        """Open a datastore by reference, its shards in this process; raises NotFoundError, DataError."""
        manifest = datastore_manifest(store, reference)
        directory = store.directory(manifest)
        return cls(manifest, directory, LocalShards(directory, manifest), reranker)

    def __len__(self) -> int:
        return self.manifest.n_rows - self.manifest.n_deleted

    def close(self) -> None:
        """Let go of the shards."""
        self._shards.close()

    @cached_property
    def clusters(self) -> UInt64Array:
        """The near-duplicate cluster of each row (n,)."""
        return open_rows(self.directory / CLUSTERS_FILE, self.manifest.n_rows)

    def search(self, request: SearchRequest) -> SearchResponse:
        """Answer a search.

        Raises ConfigError for options that do not fit the store, DataError for a query without text or vectors of
        another dimension, UnavailableError for a shard that does not answer (unless ``allow_partial``).
        """
        self.check(request)
        return self.search_together([request])[0].as_response()

    def check(self, request: SearchRequest) -> None:
        """Raise DataError for queries that cannot be searched for, so that they spoil no other search."""
        for number, query in enumerate(request.queries or []):
            if not query.strip():
                raise DataError(f"query {number} is empty: give its text")
        if request.vectors is not None:
            lengths = {len(vector) for vector in request.vectors} - {self.manifest.dim}
            if lengths:
                raise DataError(
                    f"a query vector has {lengths.pop()} coordinates, datastore {self.manifest.ref} wants "
                    f"{self.manifest.dim}: embed queries by {self.manifest.encoder}"
                )
            vectors = np.asarray(request.vectors, dtype=np.float32)
            checked_queries(vectors.reshape(-1, self.manifest.dim), self.manifest.dim)

    def search_together(self, requests: Sequence[SearchRequest]) -> list[Answer]:
        """Answer searches that differ in nothing but their queries, checked ones, in one go.

        Raises as ``search``; what one of them raises, all of them would.
        """
        queries = self.prepare(requests)
        found = self.find(queries, requests[0])
        hits, answers, start = self.passages(found.hits), [], 0
        for request in requests:
            stop = start + len(request.queries if request.queries is not None else request.vectors or [])
            truncated = [number - start for number in queries.truncated if start <= number < stop]
            answers.append(
                Answer(
                    hits=hits[start:stop],
                    partial=found.shards_searched < len(self._shards),
                    shards_searched=found.shards_searched,
                    shards_total=len(self._shards),
                    warnings=self._warnings(request, truncated),
                )
            )
            start = stop
        return answers

    def _warnings(self, request: SearchRequest, truncated: Sequence[int]) -> list[str]:
        """What the client should know: queries that were cut, and fields that no passage seems to have."""
        warnings = [
            f"query {number} is longer than the {self.manifest.max_tokens} tokens that the encoder reads: it was "
            "searched for by its start"
            for number in truncated
        ]
        if request.where is not None:
            known = {*PASSAGE_SCHEMA.names, *self.manifest.metadata_fields}
            warnings += [
                f"where: passages seem to have no field {field}: there are {', '.join(sorted(known))}"
                for field in parse_condition(request.where).fields
                if field not in known
            ]
        return warnings

    def prepare(self, requests: Sequence[SearchRequest]) -> Queries:
        """The queries of searches of one kind, one behind the other, with the vectors that their mode needs."""
        if requests[0].queries is None:
            vectors = [np.asarray(request.vectors, dtype=np.float32) for request in requests]
            return Queries(None, np.concatenate([each.reshape(-1, self.manifest.dim) for each in vectors]))
        texts = [query for request in requests for query in request.queries or []]
        if requests[0].mode == "bm25" or not texts:
            return Queries(texts, None if texts else np.empty((0, self.manifest.dim), np.float32))
        return Queries(texts, *self.encoder.encode(texts))

    def find(self, queries: Queries, options: SearchOptions) -> Found:
        """The best ``options.k`` rows for each query; see ``search``."""
        if options.rerank and self._reranker is None:
            raise ConfigError(
                "rerank: there is no cross-encoder: name one by --reranker or MIXWRIGHT_RERANKER, or leave it out"
            )
        if options.decontaminate is True:
            own = [[text] for text in queries.texts or []]
            options = options.model_copy(update={"decontaminate": own})
        wanted = max(options.k, options.rerank)
        n_queries = len(queries.texts if queries.texts is not None else self._vectors(queries))
        hits, n_shards = missing_hits(n_queries, wanted), len(self._shards)
        lines = np.arange(n_queries)
        depth = wanted * (_DEEPER if options.dedup or options.decontaminate else 1)
        while len(lines):
            ranked = self._ranked(queries.part(lines), depth, options)
            n_shards = min(n_shards, ranked.shards_searched)
            left = self._without_unwanted(ranked.hits, lines, options, wanted)
            hits.ids[lines], hits.scores[lines] = left
            exhausted = ranked.hits.ids[:, -1] < 0
            lines, depth = lines[(left.ids[:, -1] < 0) & ~exhausted], depth * _DEEPER
        if options.rerank:
            hits = self._reranked(queries, hits)
        return Found(Hits(hits.ids[:, : options.k], hits.scores[:, : options.k]), n_shards)

    def passages(self, hits: Hits) -> list[list[dict[str, Any]]]:
        """The hits (q, k) as the fields of ``Hit``, without the missing ones."""
        rows = np.unique(hits.ids[hits.ids >= 0])
        passages = self.pieces.fields(rows, _HIT_COLUMNS)
        clusters = self.clusters[rows].tolist()
        fields = {
            row: {**passage, "cluster": f"{cluster:016x}"}
            for row, passage, cluster in zip(rows.tolist(), passages, clusters, strict=True)
        }
        return [
            [{"score": score, **fields[row]} for row, score in zip(ids, scores, strict=True) if row >= 0]
            for ids, scores in zip(hits.ids.tolist(), hits.scores.tolist(), strict=True)
        ]

    # Rankings

    def _ranked(self, queries: Queries, depth: int, options: SearchOptions) -> Found:
        """The best ``depth`` rows that qualify, by the mode of the search."""
        rows = RowFilter.of(options)
        if options.mode == "dense":
            return self._dense(queries, depth, rows, options)
        if options.mode == "bm25":
            return self._bm25(queries, depth, rows, options)
        each = max(depth, _LEAST_FUSED)
        found = [self._dense(queries, each, rows, options), self._bm25(queries, each, rows, options)]
        fused = reciprocal_rank_fusion([each.hits for each in found], depth)
        return Found(fused, min(each.shards_searched for each in found))

    def _dense(self, queries: Queries, depth: int, rows: RowFilter, options: SearchOptions) -> Found:
        overrides = {"nprobe": options.nprobe, "efSearch": options.ef_search}
        how = DenseSearch(
            options.exact, tuple((name, float(value)) for name, value in overrides.items() if value is not None)
        )
        answered = len(self._shards)

        def search(vectors: FloatArray, effort: int) -> list[Hits]:
            nonlocal answered
            parts = self._call(options, "dense", vectors, depth, rows, replace(how, effort=effort))
            answered = min(answered, len(parts))
            return parts

        def n_rows() -> int:
            return sum(self._call(options, "n_qualifying", rows))

        return Found(search_shards(search, self._vectors(queries), depth, n_rows), answered)

    def _bm25(self, queries: Queries, depth: int, rows: RowFilter, options: SearchOptions) -> Found:
        if queries.texts is None:
            raise ConfigError(_NO_QUERY_TEXT)
        asked = [bm25_query(text) for text in queries.texts]
        statistics = sum_statistics(self._call(options, "bm25_statistics", distinct_terms(asked)))
        parts = self._call(options, "bm25", asked, statistics, depth, rows)
        return Found(merge_hits(parts, depth), len(parts))

    def _call(self, options: SearchOptions, method: str, *arguments: Any) -> list[Any]:
        """What every shard answers; raises UnavailableError where one does not and the client wants all."""
        answers = self._shards.call(method, *arguments)
        if answers.n_missing and not (options.allow_partial and answers.results):
            raise UnavailableError(
                f"{answers.n_missing} of the {len(self._shards)} shards of datastore {self.manifest.ref} do not "
                "answer: try again in some seconds, or set allow_partial to search the others"
            )
        return answers.results

    @staticmethod
    def _vectors(queries: Queries) -> FloatArray:
        if queries.vectors is None:
            raise ConfigError("the queries have no vectors: use mode bm25")
        return queries.vectors

    # What is left out afterwards

    def _without_unwanted(self, ranked: Hits, lines: IdArray, options: SearchOptions, wanted: int) -> Hits:
        """The first ``wanted`` hits of each line that are neither near-duplicates nor contaminated."""
        kept = ranked.ids >= 0
        if options.dedup:
            kept &= first_of_each(self.clusters[np.maximum(ranked.ids, 0)])
        if options.decontaminate:
            kept &= ~self._contaminated(ranked.ids, kept, lines, options)
        order = np.argsort(~kept, axis=1, kind="stable")[:, :wanted]
        ids = np.take_along_axis(np.where(kept, ranked.ids, -1), order, 1)
        scores = np.take_along_axis(np.where(kept, ranked.scores, -np.inf), order, 1)
        return pad_hits(Hits(ids, scores.astype(np.float32)), wanted)

    def _contaminated(
        self, ids: IdArray, candidates: BoolArray, lines: IdArray, options: SearchOptions
    ) -> BoolArray:
        """(q, k): which of the candidates contain a text that they must not."""
        found = np.zeros(ids.shape, dtype=np.bool_)
        for line, number in enumerate(lines):
            texts = options.decontaminate if isinstance(options.decontaminate, list) else []
            own = texts[number] if isinstance(texts[0], list) else texts
            places = np.flatnonzero(candidates[line])
            passages = self.pieces.take(ids[line, places], ["text"])["text"].to_pylist()
            matches = contaminated(
                passages,
                own,
                ngram=options.ngram,
                containment=options.containment,
                longest_run=options.longest_run,
            )
            found[line, places] = matches.any(axis=1)
        return found

    def _reranked(self, queries: Queries, hits: Hits) -> Hits:
        """The hits of each query by the cross-encoder's scores."""
        if queries.texts is None or self._reranker is None:
            raise ConfigError(_NO_QUERY_TEXT)
        scores = hits.scores.copy()
        for line, query in enumerate(queries.texts):
            found = np.flatnonzero(hits.ids[line] >= 0)
            passages = self.pieces.take(hits.ids[line, found], ["text"])["text"].to_pylist()
            scores[line, found] = self._reranker.scores(query, passages)
        return order_hits(Hits(hits.ids, scores))


def datastore_manifest(store: Store, reference: str) -> DatastoreManifest:
    """The manifest of a datastore; raises NotFoundError."""
    manifest = store.manifest(reference, "datastore")
    if not isinstance(manifest, DatastoreManifest):
        raise DataError(f"{reference} is not a datastore: name a datastore")
    return manifest


def first_of_each(values: UInt64Array) -> BoolArray:
    """(q, k): where a value is the first of its kind in its line (q, k).

    >>> first_of_each(np.array([[7, 3, 7, 3, 1]], dtype=np.uint64)).tolist()
    [[True, True, False, False, True]]
    """
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, 1)
    first = np.ones(values.shape, dtype=np.bool_)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    found = np.empty(values.shape, dtype=np.bool_)
    np.put_along_axis(found, order, first, 1)
    return found
