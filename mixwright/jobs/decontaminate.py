"""The decontaminate job: which documents of a corpus hold evaluation texts, as attributes and a table of matches.

It runs in one process: a document costs about 0.1 ms, whatever the number of evaluation texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mixwright.corpora import Corpus, check_template
from mixwright.errors import ConfigError, DataError
from mixwright.fingerprint import fingerprint
from mixwright.indexes.contamination import EvaluationTexts, Overlaps
from mixwright.indexes.words import word_spans
from mixwright.jobs.texts import corpus_texts, row_groups
from mixwright.progress import Progress
from mixwright.schemas.manifests import MATCHES_FILE, ArtifactInput, AttributeColumn, AttributesManifest, FileEntry
from mixwright.schemas.references import parse_reference
from mixwright.schemas.requests import DecontaminateRequest
from mixwright.store import Staging, Store, software_versions

Int64Array = npt.NDArray[np.int64]

MATCHES_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("evaluation_corpus", pa.string(), nullable=False),
        pa.field("evaluation_row", pa.int64(), nullable=False),
        pa.field("evaluation_id", pa.string(), nullable=False),
        pa.field("containment", pa.float64(), nullable=False),
        pa.field("longest_run", pa.int64(), nullable=False),
        # Characters of the document's text: ``text`` is its ``text[start:end]``, the longest common run.
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
    ]
)
"""One row for each document and evaluation text of which a measure reaches its limit."""

_LONGEST_NAME = 128
_FEW_WORDS = 5
_COLUMNS = [
    AttributeColumn(
        name="contaminated", dtype="bool", description="a measure of some evaluation text reaches its limit"
    ),
    AttributeColumn(
        name="contamination",
        dtype="float64",
        description="largest containment: the share of an evaluation text's n-grams that the document has",
    ),
    AttributeColumn(
        name="longest_run",
        dtype="int64",
        description="words of the longest run in common with an evaluation text; 0 if shorter than an n-gram",
    ),
]


@dataclass(frozen=True)
class _Evaluations:
    """The texts of the evaluation corpora, one after the other, with the corpus, row and id of each (t,)."""

    request: DecontaminateRequest
    index: EvaluationTexts
    corpora: Sequence[str]
    rows: Sequence[int]
    ids: Sequence[str]


def run_decontaminate(store: Store, request: DecontaminateRequest, progress: Progress) -> AttributesManifest:
    """Compare and publish; equal attributes that are published already are returned.

    Raises NotFoundError for a missing corpus, ConfigError for a template of unknown fields and for corpora that
    are given twice or compared with themselves, DataError for one without documents or words, ConflictError.
    """
    corpus, against = Corpus.open(store, request.corpus), [Corpus.open(store, each) for each in request.against]
    _refuse_wrong_corpora(corpus, against, request.template)
    reference = parse_reference(request.name or f"{corpus.manifest.name}.contamination"[:_LONGEST_NAME])
    parameters = {
        "job": "decontaminate",
        **request.model_dump(include={"template", "ngram", "containment", "longest_run"}),
    }
    read = [corpus.manifest, *(each.manifest for each in against)]
    identity = fingerprint("attributes", [each.fingerprint for each in read], parameters)
    existing = store.existing("attributes", reference, identity)
    if isinstance(existing, AttributesManifest):
        return existing
    evaluations = _read_evaluations(against, request, progress)
    warnings = _warnings(evaluations)
    for warning in warnings:
        progress.note(f"warning: {warning}")
    with store.stage("attributes", reference, identity) as staging:
        n_contaminated, n_matches = _write(corpus, evaluations, staging, progress)
        draft = AttributesManifest(
            name=reference.name,
            version=1,
            fingerprint=identity,
            inputs=[ArtifactInput(kind=each.kind, ref=each.ref, fingerprint=each.fingerprint) for each in read],
            parameters=parameters,
            files=_entries(corpus, staging, n_matches),
            created_at=datetime.now(UTC),
            software=software_versions("numpy", "polars", "pyarrow"),
            warnings=warnings,
            corpus=corpus.manifest.ref,
            n_rows=len(corpus),
            columns=_COLUMNS,
            counts={"contaminated": n_contaminated, "clean": len(corpus) - n_contaminated},
        )
        return store.publish(staging, draft)


def _entries(corpus: Corpus, staging: Staging, n_matches: int) -> list[FileEntry]:
    shards = zip(corpus.shards, corpus.manifest.shards, strict=True)
    attributes = [staging.entry(f"shards/{path.name}", entry.n_rows) for path, entry in shards]
    return [*attributes, staging.entry(MATCHES_FILE, n_matches)]


def read_matches(directory: Path) -> pl.DataFrame:
    """The table of matches of attributes by this job, by their folder."""
    return pl.read_parquet(directory / MATCHES_FILE)


def _refuse_wrong_corpora(corpus: Corpus, against: Sequence[Corpus], template: str) -> None:
    seen = {corpus.manifest.fingerprint: "is the corpus itself"}
    for each in against:
        if (reason := seen.get(each.manifest.fingerprint)) is not None:
            raise ConfigError(f"against: {each.manifest.ref} {reason}: name other corpora")
        seen[each.manifest.fingerprint] = "is given twice"
        check_template(each, template)
    if empty := [each for each in (corpus, *against) if len(each) == 0]:
        raise DataError(f"corpus {empty[0].manifest.ref} has no documents: ingest some")


def _read_evaluations(
    against: Sequence[Corpus], request: DecontaminateRequest, progress: Progress
) -> _Evaluations:
    """Raises DataError where no evaluation text has a word."""
    lengths = [len(each) for each in against]
    progress.start("read evaluation texts", total=sum(lengths), unit="texts")
    texts: list[str] = []
    for each in against:
        for batch in corpus_texts(each, request.template):
            texts += batch
            progress.advance(len(batch))
    index = EvaluationTexts(texts, ngram=request.ngram, longest_run=request.longest_run)
    if not index.n_words.any():
        raise DataError(f"no evaluation text has a word: name other corpora or fields than {request.template!r}")
    return _Evaluations(
        request,
        index,
        corpora=[each.manifest.ref for each in against for _ in range(len(each))],
        rows=[row for each in against for row in range(len(each))],
        ids=[id_ for each in against for id_ in each.scan().select("id").collect()["id"]],
    )


def _warnings(evaluations: _Evaluations) -> list[str]:
    n_words = evaluations.index.n_words
    few, none = int(((n_words > 0) & (n_words < _FEW_WORDS)).sum()), int((n_words == 0).sum())
    found = []
    if few:
        found.append(
            f"{few:,} of {len(n_words):,} evaluation texts have fewer than {_FEW_WORDS} words: any document that "
            "says them counts as contaminated; a template of more fields makes them longer"
        )
    if none:
        found.append(f"{none:,} of {len(n_words):,} evaluation texts have no words: they are not compared")
    return found


def _write(corpus: Corpus, evaluations: _Evaluations, staging: Staging, progress: Progress) -> tuple[int, int]:
    """Write the attributes' shards and the matches; returns the numbers of contaminated documents and matches."""
    progress.start(f"decontaminate {corpus.manifest.ref}", total=len(corpus))
    (staging.path / "shards").mkdir()
    n_contaminated = n_matches = row = 0
    with pq.ParquetWriter(staging.path / MATCHES_FILE, MATCHES_SCHEMA, compression="zstd") as sink:
        for path in corpus.shards:
            frames = []
            for documents in row_groups(path, ["id", "text"]):
                frame, matches = _compare(documents, row, evaluations)
                frames.append(frame)
                if matches:
                    sink.write_table(pa.Table.from_pylist(matches, schema=MATCHES_SCHEMA))
                n_contaminated += int(frame["contaminated"].sum())
                n_matches += len(matches)
                row += documents.num_rows
                progress.advance(documents.num_rows)
            pl.concat(frames).write_parquet(staging.path / "shards" / path.name)
    return n_contaminated, n_matches


def _compare(
    documents: pa.Table, first_row: int, evaluations: _Evaluations
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """The attributes of some documents, and their rows of the table of matches."""
    texts = documents["text"].to_pylist()
    overlaps = evaluations.index.check(texts)
    exceed = overlaps.exceed(evaluations.request.containment, evaluations.request.longest_run)
    contaminated = np.zeros(len(texts), dtype=np.bool_)
    containment, longest_run = np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64)
    contaminated[overlaps.text[exceed]] = True
    np.maximum.at(containment, overlaps.text, overlaps.containment)
    np.maximum.at(longest_run, overlaps.text, overlaps.longest_run)
    frame = pl.DataFrame({"contaminated": contaminated, "contamination": containment, "longest_run": longest_run})
    ids = documents["id"].to_pylist() if exceed.any() else []
    return frame, _matches(overlaps, np.flatnonzero(exceed), texts, ids, first_row, evaluations)


def _matches(
    overlaps: Overlaps,
    wanted: Int64Array,
    texts: Sequence[str],
    ids: Sequence[str],
    first_row: int,
    evaluations: _Evaluations,
) -> list[dict[str, Any]]:
    """Rows of the table of matches for the overlaps of the given numbers, which come text by text."""
    found = []
    spans_of, spans = -1, np.empty((0, 2), dtype=np.int64)
    for number in wanted.tolist():
        text, evaluation = int(overlaps.text[number]), int(overlaps.evaluation[number])
        if text != spans_of:
            spans_of, spans = text, word_spans(texts[text])
        first, words = int(overlaps.start[number]), int(overlaps.longest_run[number])
        start, end = int(spans[first, 0]), int(spans[first + words - 1, 1])
        found.append(
            {
                "row": first_row + text,
                "id": ids[text],
                "evaluation_corpus": evaluations.corpora[evaluation],
                "evaluation_row": evaluations.rows[evaluation],
                "evaluation_id": evaluations.ids[evaluation],
                "containment": float(overlaps.containment[number]),
                "longest_run": words,
                "start": start,
                "end": end,
                "text": texts[text][start:end],
            }
        )
    return found
