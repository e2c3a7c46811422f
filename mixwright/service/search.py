"""What a person's words find in the catalog: names, selectors, sources and domains."""

from __future__ import annotations

from sqlalchemy import ColumnElement, String, and_, cast, exists, or_
from sqlalchemy.orm import aliased

from mixwright.jobs.database import ArtifactDomainRow, ArtifactInputRow, ArtifactRow


def mentions(text: str) -> ColumnElement[bool]:
    """True for artifacts that have every word of ``text`` somewhere, upper and lower case alike.

    Somewhere is in the artifact's own ref or selector, in the ref of what it was made from, or in a domain: of a
    corpus its own, of anything else those of the corpora that it was made from.
    """
    return and_(*(_mentions(word) for word in text.split()))


def _mentions(word: str) -> ColumnElement[bool]:
    source = aliased(ArtifactRow)
    made_from = ArtifactInputRow.artifact_id == ArtifactRow.id
    of_source = and_(
        source.kind == ArtifactInputRow.kind,
        source.name == ArtifactInputRow.name,
        source.version == ArtifactInputRow.version,
    )
    in_domain = ArtifactDomainRow.domain.icontains(word, autoescape=True)
    return or_(
        _ref(ArtifactRow).icontains(word, autoescape=True),
        ArtifactRow.selector.icontains(word, autoescape=True),
        exists().where(made_from, _ref(ArtifactInputRow).icontains(word, autoescape=True)),
        exists().where(ArtifactDomainRow.artifact_id == ArtifactRow.id, in_domain),
        exists().where(made_from, of_source, ArtifactDomainRow.artifact_id == source.id, in_domain),
    )


def _ref(table: type[ArtifactRow] | type[ArtifactInputRow]) -> ColumnElement[str]:
    """``name@version``."""
    return table.name + "@" + cast(table.version, String)
