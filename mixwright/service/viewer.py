"""Pages of rows of a corpus or of attributes, with the field names of the Hugging Face dataset viewer."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from mixwright.schemas.catalog import Feature, Row, RowsPage

ROWS_PER_PAGE = 100
MAX_PAGE_CHARACTERS = 10_000_000


def rows_page(table: pa.Table, offset: int, n_total: int, max_characters: int = MAX_PAGE_CHARACTERS) -> RowsPage:
    """The page that shows ``table``, the rows from ``offset`` on of ``n_total`` rows.

    Texts are exact, unless all of them together have more than ``max_characters``: then each is cut to its equal
    share of that, and the row says so. Asking for fewer rows gets more of each.
    """
    rows = table.to_pylist()
    whole = sum(len(row.get("text", "")) for row in rows) <= max_characters
    limit = None if whole else max_characters // len(rows)
    return RowsPage(
        features=[
            Feature(feature_idx=number, name=field.name, type=_feature_type(field))
            for number, field in enumerate(table.schema)
        ],
        rows=[_row(offset + number, row, limit) for number, row in enumerate(rows)],
        num_rows_total=n_total,
        num_rows_per_page=ROWS_PER_PAGE,
        partial=False,
    )


def _row(row_idx: int, row: dict[str, Any], limit: int | None) -> Row:
    cut = limit is not None and len(row["text"]) > limit
    shown = row | {"metadata": json.loads(row["metadata"])} if "metadata" in row else row
    if cut:
        shown["text"] = row["text"][:limit]
    return Row(row_idx=row_idx, row=shown, truncated_cells=["text"] if cut else [])


def _feature_type(field: pa.Field) -> dict[str, Any]:
    if field.name == "metadata":
        return {"_type": "Json"}
    dtype = "string" if pa.types.is_large_string(field.type) else str(field.type)
    return {"dtype": dtype, "_type": "Value"}
