"""Queries to evaluate a datastore with: their text, right answers, and which documents are relevant to them.

Two forms. A BEIR folder (arXiv 2104.08663) has ``queries.jsonl`` (``_id``, ``text``, and here ``answers`` or
``answer`` too) and the judgements ``qrels.tsv`` or ``qrels/test.tsv``: query id, document id and relevance, with
tabs between them and with or without a first line of names. Its documents are ingested as a corpus beforehand.
The other form is a file of rows with ``text``, and optionally ``_id`` or ``id``, ``answers`` or ``answer``, and
``positives``: the ids of relevant documents. Every fault is an error with file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import fsspec

from mixwright.errors import DataError
from mixwright.jobs.input_files import InputFile, find_input_files, open_decompressed
from mixwright.jobs.readers import BadRow, DamagedFileError, read_rows

_QRELS = ("qrels.tsv", "qrels/test.tsv")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_FORM = "a line of judgements is query id, document id and a whole number, with tabs between them"


@dataclass(frozen=True)
class EvaluationQuery:
    """A query; ``relevance`` by id of a document, where it is judged (0: not relevant, more is better)."""

    id: str
    text: str
    answers: tuple[str, ...] = ()
    relevance: Mapping[str, int] = field(default_factory=dict)

    @property
    def has_relevant(self) -> bool:
        """Whether a ranking can be right or wrong for it."""
        return any(relevance > 0 for relevance in self.relevance.values())


@dataclass(frozen=True)
class EvaluationQueries:
    """The queries, in the order of the file; ``n_unjudged`` queries of a BEIR folder are left out.

    Those have no relevant document in the judgements, as the training queries of a folder have none in the
    judgements of the test.
    """

    queries: list[EvaluationQuery]
    n_unjudged: int = 0


def read_evaluation_queries(path: str) -> EvaluationQueries:
    """The queries of a BEIR folder or of a file (JSON lines, Parquet or CSV), local or of any fsspec URL.

    Raises DataError, with file and line, for a row that cannot be read, lacks its text or repeats an id, for
    judgements of a query that is not there, and where nothing is left to evaluate.
    """
    file, qrels = _files(path)
    queries: dict[str, EvaluationQuery] = {}
    lines: dict[str, int] = {}
    for line, fields in _rows(file):
        query = _query(fields, line, file)
        if query.id in queries:
            raise _fault(file, line, f"the id {query.id!r} is that of line {lines[query.id]} too: make ids unique")
        queries[query.id], lines[query.id] = query, line
    if not queries:
        raise DataError(f"{file.name} has no queries: give some")
    if qrels is None:
        return EvaluationQueries(list(queries.values()))
    relevance = _judgements(qrels, queries)
    judged = [replace(query, relevance=relevance.get(query.id, {})) for query in queries.values()]
    usable = [query for query in judged if query.has_relevant]
    if not usable:
        raise DataError(f"{qrels.name}: no query has a relevant document: judge one with a relevance above 0")
    return EvaluationQueries(usable, len(judged) - len(usable))


def _files(path: str) -> tuple[InputFile, InputFile | None]:
    """The file of the queries and, of a BEIR folder, that of the judgements."""
    found, _ = find_input_files([path], "auto")
    filesystem, root = fsspec.core.url_to_fs(path)
    if not filesystem.isdir(root):
        if len(found) > 1 or found[0].form == "text":
            raise DataError(f"{path}: name one file of JSON lines, Parquet or CSV, or a BEIR folder")
        return found[0], None
    by_name = {each.path.removeprefix(f"{root.rstrip('/')}/"): each for each in found}
    qrels = next((by_name[name] for name in _QRELS if name in by_name), None)
    if "queries.jsonl" not in by_name or qrels is None:
        raise DataError(
            f"{path} is no BEIR folder: put queries.jsonl and {' or '.join(_QRELS)} into it, or name one file of "
            "queries"
        )
    return by_name["queries.jsonl"], qrels


def _rows(file: InputFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines and fields of the rows; raises DataError at the first that cannot be read."""
    try:
        for row in read_rows(file, "text", lambda n: None):
            if isinstance(row, BadRow):
                raise _fault(file, row.line, f"{row.reason}; correct it")
            yield row.line, row.fields
    except DamagedFileError as error:
        raise _fault(file, error.line, f"{error.reason}: mend the file") from error


def _fault(file: InputFile, line: int, reason: str) -> DataError:
    return DataError(f"{file.name}:{line}: {reason}")


def _query(fields: Mapping[str, Any], line: int, file: InputFile) -> EvaluationQuery:
    """A row as a query; one without an id is called by its line."""
    text = fields.get("text")
    if not isinstance(text, str) or not text.strip():
        raise _fault(file, line, "the query has no text: put it into the field text")
    ids, answers = (_strings(fields, names, line, file) for names in (("_id", "id"), ("answers", "answer")))
    if len(ids) > 1:
        raise _fault(file, line, "the query has several ids: keep one")
    positives = _strings(fields, ("positives",), line, file)
    return EvaluationQuery(ids[0] if ids else str(line), text, answers, dict.fromkeys(positives, 1))


def _strings(fields: Mapping[str, Any], names: Sequence[str], line: int, file: InputFile) -> tuple[str, ...]:
    """The texts or whole numbers of the first of some fields that is there, as texts; none where none is."""
    name = next((each for each in names if fields.get(each) not in (None, "")), None)
    if name is None:
        return ()
    values = fields[name] if isinstance(fields[name], list) else [fields[name]]
    for each in values:
        if not isinstance(each, str | int) or isinstance(each, bool) or not str(each).strip():
            raise _fault(file, line, f"{name}: {each!r} is neither text nor a whole number: correct it")
    return tuple(str(each) for each in values)


def _judgements(file: InputFile, queries: Mapping[str, EvaluationQuery]) -> dict[str, dict[str, int]]:
    """Relevance by query and document. The first line may name the columns."""
    relevance: dict[str, dict[str, int]] = {}
    for line, text in _lines(file):
        parts = [part.strip() for part in text.split("\t")]
        if len(parts) != 3 or not all(parts) or not _WHOLE.fullmatch(parts[2]):
            if line == 1 and len(parts) == 3 and parts[0] not in queries:
                continue
            raise _fault(file, line, f"{text[:80]!r}: {_FORM}")
        query, document, value = parts[0], parts[1], int(parts[2])
        if query not in queries:
            raise _fault(
                file, line, f"the query {query!r} is not among the queries: add it, or leave the line out"
            )
        if relevance.setdefault(query, {}).setdefault(document, value) != value:
            raise _fault(file, line, f"{query!r} and {document!r} have two relevances: keep one")
    return relevance


def _lines(file: InputFile) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    with open_decompressed(file, lambda n: None) as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise _fault(file, number, "not UTF-8: save the file as UTF-8") from error
            if text.strip():
                yield number, text
