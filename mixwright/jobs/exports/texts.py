"""Tag and text as one string, for trainers that read one text a document."""

from __future__ import annotations

import pyarrow as pa

from mixwright.jobs.exports.format import Export
from mixwright.selectors.tags import paragraphs


def joined_texts(export: Export, table: pa.Table) -> list[str]:
    """The text of each row behind its tag: before the document or, if the plan says so, before each paragraph.

    Warns of what a string does not keep: the exact seam, and a tag on every training window.
    """
    plan = export.manifest.tags
    tags, texts = table["tag_text"].to_pylist(), table["text"].to_pylist()
    if plan is None or not any(tags):
        return [str(text) for text in texts]
    export.warn(
        "tag and text are one string here: the trainer tokenizes them together, and tokens at the seam may differ "
        "from those of tag and text apart"
    )
    if plan.scope == "window":
        export.warn("the tag stands once before each document here, and not on every training window")
    if plan.scope == "paragraph":
        return ["".join(tag + piece for piece in paragraphs(text)) for tag, text in zip(tags, texts, strict=True)]
    return [tag + text for tag, text in zip(tags, texts, strict=True)]
