"""Dolma: documents, attributes beside them, and a configuration of ``dolma mix``.

Documents are the plain texts of the rows, repeats included. The attribute files have the same names and the same
rows, and say of each row how far on it stands in its stage (``mixwright__served``, 0 to 1), which pass of its
document it is (``mixwright__epoch``) and where a tag belongs (``mixwright__tag``). ``mix.yaml`` selects by a
threshold on the first and puts the tags in by span replacement: as written, ``dolma mix`` makes the whole mixture,
and with a lower threshold a shorter one in the same proportions.

A span's replacement comes from a field of the document in which ``{}`` stands for the text of the span, and a span
without length would swallow the character behind it: so a span is the first character, and the field the tag and
``{}``. Places are counted in characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from mixwright.errors import ConfigError
from mixwright.jobs.exports.format import DataSet, Export, ExportFormat
from mixwright.jobs.exports.readme import code, data_set_table, write_readme
from mixwright.jobs.exports.segments import warn_of_windows
from mixwright.schemas.mixtures import TagPlan
from mixwright.selectors.tags import paragraphs

ATTRIBUTES = "mixwright"
_MAX_FILE_BYTES = 4_000_000_000
_KEEP = f"$.attributes[?(@.{ATTRIBUTES}__served[0][2] < 1.0)]"


def _write(export: Export) -> None:
    if "/documents/" in export.seen(""):
        raise ConfigError(
            f"Dolma puts attributes/{ATTRIBUTES} for every folder named documents in a path: give a root without "
            f"one instead of {export.root!r}"
        )
    starts = dict(zip([stage.name for stage in export.manifest.stages], _starts(export), strict=True))
    for data_set in export.data_sets():
        file = f"{data_set.name}/00000.jsonl.gz"
        rows = _Rows(export, data_set, starts[data_set.stage])
        export.write_json_lines(f"documents/{file}", rows.documents())
        export.write_json_lines(f"attributes/{ATTRIBUTES}/{file}", rows.attributes())
    export.write_yaml("mix.yaml", configuration(export))
    warn_of_windows(export)
    if any(each.tagged for each in export.data_sets()):
        export.warn(
            "dolma mix makes tag and text one string: Dolma tokenizes them together, and tokens at the seam may "
            "differ from those of tag and text apart"
        )
    export.warn(
        "rows do not say when their texts were made: created is when the corpus was ingested, as added is, and so "
        "no earlier than the truth"
    )
    _readme(export)


def configuration(export: Export) -> dict[str, Any]:
    """What ``dolma mix`` does: one stream for each data set."""
    return {
        "streams": [_stream(export, each) for each in export.data_sets()],
        "processes": 1,
        # Without it Dolma cuts and shuffles files; the rows are in the order in which the mixture serves them.
        "shuffle": False,
    }


def _stream(export: Export, data_set: DataSet) -> dict[str, Any]:
    stream: dict[str, Any] = {
        "name": data_set.name,
        "documents": [export.seen(f"documents/{data_set.name}/*.jsonl.gz")],
        "attributes": [ATTRIBUTES],
        "filter": {"include": [_KEEP], "exclude": [], "syntax": "jsonpath"},
    }
    if data_set.tagged:
        stream["span_replacement"] = [
            {
                "span": f"$.attributes.{ATTRIBUTES}__tag",
                "min_score": 0.5,
                "replacement": "$.metadata.tag_replacement",
                "syntax": "jsonpath",
            }
        ]
    # Dolma puts documents/NAME/ behind the path.
    return stream | {"output": {"path": export.seen("mixed"), "max_size_in_bytes": _MAX_FILE_BYTES}}


class _Rows:
    """The rows of one data set as Dolma's documents and as their attributes, in the same order."""

    def __init__(self, export: Export, data_set: DataSet, start: int) -> None:
        self._export = export
        self._data_set = data_set
        self._start = start
        self._added = _added(export, data_set)
        manifest = export.manifest
        self._place = (
            [stage.name for stage in manifest.stages].index(data_set.stage),
            [component.name for component in manifest.components].index(data_set.component),
        )
        self._n_rows = manifest.stages[self._place[0]].n_rows

    def documents(self) -> Iterator[dict[str, Any]]:
        """``{id, text, source, added, created, metadata}``; the text has no tag in it."""
        for row in (row for table in self._data_set.tables() for row in table.to_pylist()):
            if "{}" in row["tag_text"]:
                self._export.warn(
                    "some tags hold {}, for which Dolma puts the first character of the text: change the template "
                    "of the tags, or add them yourself from metadata.tag_text"
                )
            fields = ("stage", "component", "domain", "url", "epoch", "position", "n_tokens", "tag_text")
            yield {
                "id": _row_id(row),
                "text": row["text"],
                "source": row["source"],
                "added": self._added,
                "created": self._added,
                "metadata": {name: row[name] for name in fields}
                | {"document_id": row["id"], "tag_replacement": row["tag_text"] + "{}"},
            }

    def attributes(self) -> Iterator[dict[str, Any]]:
        """``{id, source, attributes}``: spans ``[start, end, score]``."""
        plan, stream = self._export.manifest.tags, self._export.stream
        # Read from the stream itself: the progress has counted these rows already.
        tables = stream.component_rows(*self._place)
        for row in (row for table in tables for row in table.to_pylist()):
            end = len(row["text"])
            served = (row["position"] - self._start) / self._n_rows
            yield {
                "id": _row_id(row),
                "source": row["source"],
                "attributes": {
                    f"{ATTRIBUTES}__served": [[0, end, served]],
                    f"{ATTRIBUTES}__epoch": [[0, end, float(row["epoch"])]],
                    f"{ATTRIBUTES}__tag": tag_spans(plan, row["tag_text"], row["text"]),
                },
            }


def tag_spans(plan: TagPlan | None, tag: str, text: str) -> list[list[float]]:
    """The first character of what the tag stands before: the document, or each of its paragraphs."""
    if plan is None or not tag:
        return []
    pieces = paragraphs(text) if plan.scope == "paragraph" else [text]
    starts = accumulate((len(piece) for piece in pieces[:-1]), initial=0)
    return [[start, start + 1, 1.0] for start in starts]


def _row_id(row: dict[str, Any]) -> str:
    """The document's id, with the pass behind it from the second on: Dolma wants each id once."""
    return str(row["id"]) if not row["epoch"] else f"{row['id']}-{row['epoch']}"


def _added(export: Export, data_set: DataSet) -> str:
    sources = {each.name: each.source for each in export.manifest.components}
    created: datetime = export.store.manifest(sources[data_set.component], "corpus").created_at
    return created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _starts(export: Export) -> list[int]:
    """The position of each stage's first row."""
    stages = export.manifest.stages
    return [sum(each.n_rows for each in stages[:number]) for number in range(len(stages))]


def _readme(export: Export) -> None:
    usage = [
        "`dolma mix` writes the mixture into `mixed/documents/`, one folder for each data set. Rows are in the "
        "order in which the mixture serves them; `metadata.position` is their place in the whole of it.",
        code(
            "dolma -c mix.yaml mix\ndolma tokens --documents 'mixed/documents/*/*.gz' --destination tokens …", "sh"
        ),
        f"`{ATTRIBUTES}__served` says how far on in its stage a row stands: with 0.5 for 1.0 in the filters you "
        "get the first half of each stage, in the same proportions. "
        f"`@.{ATTRIBUTES}__epoch[0][2] < 1` leaves out repeats.",
    ]
    write_readme(export, "Dolma", data_set_table(export.data_sets()), "\n\n".join(usage))


DOLMA = ExportFormat(
    name="dolma",
    title="Documents and attributes, and a configuration of dolma mix",
    trainer="Dolma",
    tokenized=False,
    document=None,
    write=_write,
    snippet="dolma -c {root}/mix.yaml mix",
    masks=False,
    stages=True,
)
