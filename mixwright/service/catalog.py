"""The catalog: an index over the store's manifests that can list, filter and follow the lineage.

The store is the truth. The catalog looks there before it answers that something does not exist, before it lists,
and before it takes a name without a version for the newest; so what another process publishes is seen at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import ColumnElement, and_, delete, exists, func, insert, or_, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from mixwright.errors import ConfigError, DataError, NotFoundError
from mixwright.jobs.database import ArtifactDomainRow, ArtifactInputRow, ArtifactRow, Database
from mixwright.jobs.pages import Page, decode_cursor, encode_cursor
from mixwright.schemas.catalog import ArtifactSummary, ComponentSummary, Lineage, LineageEdge, LineageNode
from mixwright.schemas.manifests import MANIFEST_ADAPTER, AnyManifest, CorpusManifest, MixtureManifest
from mixwright.schemas.references import Kind, Reference, parse_reference
from mixwright.service.search import mentions
from mixwright.store import Store

_log = logging.getLogger(__name__)


class _Key(NamedTuple):
    """What names an artifact in the database."""

    kind: Kind
    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}@{self.version}"


class Catalog:
    """The catalog of one store in one database."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store

    # Keeping up with the store

    def record(self, manifest: AnyManifest) -> None:
        """Add a published artifact; again and again if you like."""
        key = _Key(manifest.kind, manifest.name, manifest.version)
        domains = self._domains(manifest)
        try:
            with self._database.writing() as session:
                present = session.scalars(select(ArtifactRow).where(_is(key))).one_or_none()
                if present is not None and present.fingerprint == manifest.fingerprint:
                    return
                if present is not None:
                    session.delete(present)
                    session.flush()
                _add(session, manifest, domains)
        except IntegrityError:
            # Another process recorded it between our look and our write.
            return

    def sync(self) -> None:
        """Add what is new in the store and drop what is gone from it; reads only new manifests."""
        published = {_published_key(each) for each in self._store.references()}
        with self._database.reading() as session:
            known = {_key(row) for row in session.execute(select(*_KEY_COLUMNS))}
        for key in sorted(published - known):
            self._record_published(key)
        gone = sorted(known - published)
        if gone:
            with self._database.writing() as session:
                for key in gone:
                    session.execute(delete(ArtifactRow).where(_is(key)))

    def rebuild(self) -> int:
        """Forget everything and read every manifest of the store; returns how many artifacts there are."""
        with self._database.writing() as session:
            session.execute(delete(ArtifactRow))
        self.sync()
        with self._database.reading() as session:
            return len(session.execute(select(ArtifactRow.id)).all())

    # Answers

    def manifest(self, reference: str, kind: Kind) -> AnyManifest:
        """The manifest of ``name@version``, or of the newest version of ``name``.

        Raises ConfigError for what is not a reference to this kind, NotFoundError naming what there is.
        """
        wanted = _parsed(reference, kind)
        versions = self._store.versions(kind, wanted.name)
        if not versions or wanted.version not in (None, *versions):
            self._store.manifest(wanted, kind)
        key = _Key(kind, wanted.name, wanted.version or versions[-1])
        with self._database.reading() as session:
            row = session.scalars(select(ArtifactRow).where(_is(key))).one_or_none()
            if row is not None:
                return MANIFEST_ADAPTER.validate_python(row.manifest)
        manifest = self._store.manifest(Reference(*key[1:]), kind)
        self.record(manifest)
        return manifest

    def page(
        self,
        kind: Kind,
        limit: int,
        cursor: str | None = None,
        *,
        source: str | None = None,
        selector: str | None = None,
        domain: str | None = None,
        text: str | None = None,
    ) -> Page[ArtifactSummary]:
        """Artifacts of one kind, newest first.

        Of mixtures, ``source`` keeps those made from that corpus (any version where it names none), ``selector``
        those of that selector, ``domain`` those with a corpus in which the domain occurs. Of any kind, ``text``
        keeps those that a search for it finds (see ``search.mentions``). Raises ConfigError for a cursor that is
        not of this list.
        """
        self.sync()
        order = (ArtifactRow.created_at, ArtifactRow.name, ArtifactRow.version)
        query = select(ArtifactRow).where(ArtifactRow.kind == kind)
        query = query.order_by(*(column.desc() for column in order)).limit(limit + 1)
        if cursor is not None:
            query = query.where(_before(decode_cursor(cursor, (datetime, str, int))))
        if selector is not None:
            query = query.where(ArtifactRow.selector == selector)
        if source is not None:
            query = query.where(_made_from(_parsed(source, "corpus")))
        if domain is not None:
            query = query.where(_has_domain(domain))
        if text:
            query = query.where(mentions(text))
        with self._database.reading() as session:
            items = [_summary(row) for row in session.scalars(query)]
        if len(items) <= limit:
            return Page(items=items, next_cursor=None)
        last = items[limit - 1]
        return Page(items=items[:limit], next_cursor=encode_cursor(last.created_at, last.name, last.version))

    def counts(self, text: str | None = None) -> dict[str, int]:
        """How many artifacts of each kind a search finds, or there are; kinds without any are left out."""
        self.sync()
        query = select(ArtifactRow.kind, func.count()).group_by(ArtifactRow.kind)
        if text:
            query = query.where(mentions(text))
        with self._database.reading() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def lineage(self, reference: str, kind: Kind) -> Lineage:
        """What the artifact was made from, back to the first corpus, and what was made from it, to the last."""
        manifest = self.manifest(reference, kind)
        self.sync()
        start = _Key(kind, manifest.name, manifest.version)
        with self._database.reading() as session:
            edges = _walk(session, start, up=True) | _walk(session, start, up=False)
            keys = {start} | {key for edge in edges for key in edge[:2]}
            rows = session.execute(select(*_KEY_COLUMNS, ArtifactRow.fingerprint).where(_key_tuple().in_(keys)))
            present = {_key(row[:3]): row[3] for row in rows}
        named = {source: fingerprint for source, _, fingerprint in edges}
        return Lineage(
            nodes=[
                LineageNode(
                    id=str(key),
                    kind=key.kind,
                    ref=f"{key.name}@{key.version}",
                    fingerprint=present.get(key) or named[key],
                    exists=key in present,
                )
                for key in sorted(keys)
            ],
            edges=[LineageEdge(source=str(a), target=str(b)) for a, b in sorted({edge[:2] for edge in edges})],
        )

    # Details

    def _record_published(self, key: _Key) -> None:
        try:
            self.record(self._store.manifest(Reference(key.name, key.version), key.kind))
        except (DataError, NotFoundError) as error:
            # One damaged artifact must not hide all the others.
            _log.warning("left out of the catalog: %s", error)

    def _domains(self, manifest: AnyManifest) -> list[str]:
        """Every domain of a corpus; the manifest has only the commonest."""
        if not isinstance(manifest, CorpusManifest) or not manifest.shards:
            return []
        if manifest.domains and manifest.n_domains == len(manifest.domains):
            return list(filter(_can_be_found, manifest.domains))
        found: set[str | None] = set()
        try:
            for entry in manifest.shards:
                # Of a corpus in a bucket only this column is fetched.
                with self._store.open(manifest, entry.path) as file:
                    column = pq.read_table(file, columns=["domain"])["domain"]
                found.update(column.unique().to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"corpus {manifest.ref} cannot be read ({error}): restore it or remove it") from error
        return [each for each in found if each is not None and _can_be_found(each)]


_KEY_COLUMNS = (ArtifactRow.kind, ArtifactRow.name, ArtifactRow.version)
_LONGEST_DOMAIN = 2000
_Edge = tuple[_Key, _Key, str]
"""Input, artifact made from it, fingerprint of the input."""


def _can_be_found(domain: str) -> bool:
    """Whether every database can hold and index it: PostgreSQL takes no NUL, and 2,704 bytes. No host has more."""
    return "\0" not in domain and len(domain.encode()) <= _LONGEST_DOMAIN


def _parsed(reference: str, kind: Kind) -> Reference:
    wanted = parse_reference(reference)
    if wanted.kind not in (None, kind):
        raise ConfigError(f"{reference} does not name a {kind}: leave '{wanted.kind}:' out")
    return wanted


def _published_key(reference: Reference) -> _Key:
    if reference.kind is None or reference.version is None:
        raise DataError(f"{reference} has no kind or version: list references with Store.references")
    return _Key(reference.kind, reference.name, reference.version)


def _key(values: Sequence[Any]) -> _Key:
    kind, name, version = values
    return _Key(kind, name, version)


def _key_tuple() -> Any:
    return tuple_(*_KEY_COLUMNS)


def _is(key: _Key) -> ColumnElement[bool]:
    return and_(ArtifactRow.kind == key.kind, ArtifactRow.name == key.name, ArtifactRow.version == key.version)


def _add(session: Session, manifest: AnyManifest, domains: Iterable[str]) -> None:
    row = ArtifactRow(
        kind=manifest.kind,
        name=manifest.name,
        version=manifest.version,
        fingerprint=manifest.fingerprint,
        created_at=manifest.created_at,
        n_rows=manifest.n_documents if isinstance(manifest, CorpusManifest) else manifest.n_rows,
        n_tokens=getattr(manifest, "n_tokens", None),
        selector=manifest.selector if isinstance(manifest, MixtureManifest) else None,
        manifest=manifest.model_dump(mode="json"),
    )
    for position, each in enumerate(manifest.inputs):
        wanted = parse_reference(each.ref)
        row.inputs.append(
            ArtifactInputRow(
                position=position,
                kind=each.kind,
                name=wanted.name,
                version=wanted.version or 1,
                fingerprint=each.fingerprint,
            )
        )
    session.add(row)
    session.flush()
    if domains:
        values = [{"artifact_id": row.id, "domain": domain} for domain in domains]
        session.execute(insert(ArtifactDomainRow), values)


def _before(key: Sequence[Any]) -> ColumnElement[bool]:
    """Rows that come after ``key`` in a list that runs from new to old."""
    created_at, name, version = key
    return or_(
        ArtifactRow.created_at < created_at,
        and_(ArtifactRow.created_at == created_at, ArtifactRow.name < name),
        and_(ArtifactRow.created_at == created_at, ArtifactRow.name == name, ArtifactRow.version < version),
    )


def _made_from(source: Reference) -> ColumnElement[bool]:
    used = and_(
        ArtifactInputRow.artifact_id == ArtifactRow.id,
        ArtifactInputRow.kind == "corpus",
        ArtifactInputRow.name == source.name,
    )
    if source.version is not None:
        used = and_(used, ArtifactInputRow.version == source.version)
    return exists().where(used)


def _has_domain(domain: str) -> ColumnElement[bool]:
    corpus = aliased(ArtifactRow)
    return exists().where(
        ArtifactInputRow.artifact_id == ArtifactRow.id,
        corpus.kind == ArtifactInputRow.kind,
        corpus.name == ArtifactInputRow.name,
        corpus.version == ArtifactInputRow.version,
        ArtifactDomainRow.artifact_id == corpus.id,
        ArtifactDomainRow.domain == domain,
    )


def _walk(session: Session, start: _Key, *, up: bool) -> set[_Edge]:
    """The edges on every path from ``start`` to its ancestors (``up``) or to its descendants."""
    inputs = (ArtifactInputRow.kind, ArtifactInputRow.name, ArtifactInputRow.version)
    near, far = (_KEY_COLUMNS, inputs) if up else (inputs, _KEY_COLUMNS)
    edges: set[_Edge] = set()
    seen, frontier = {start}, {start}
    while frontier:
        query = (
            select(*inputs, *_KEY_COLUMNS, ArtifactInputRow.fingerprint)
            .join(ArtifactRow, ArtifactRow.id == ArtifactInputRow.artifact_id)
            .where(tuple_(*near).in_(sorted(frontier)))
        )
        found = {(_key(row[:3]), _key(row[3:6]), row[6]) for row in session.execute(query)}
        edges |= found
        frontier = {edge[0] if far is inputs else edge[1] for edge in found} - seen
        seen |= frontier
    return edges


def _summary(row: ArtifactRow) -> ArtifactSummary:
    components = row.manifest["components"] if row.kind == "mixture" else []
    return ArtifactSummary(
        kind=row.kind,
        ref=f"{row.name}@{row.version}",
        name=row.name,
        version=row.version,
        fingerprint=row.fingerprint,
        created_at=row.created_at,
        n_rows=row.n_rows,
        n_tokens=row.n_tokens,
        selector=row.selector,
        components=[
            ComponentSummary(**{field: each[field] for field in ComponentSummary.model_fields})
            for each in components
        ],
    )
