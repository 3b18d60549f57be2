"""Who pulled a version: a row for each caller and kind of client, which is there as long as the version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from sqlalchemy import select, update

from ampref_service.catalog.engine import Session, insert_new, now
from ampref_service.catalog.records import Puller, VersionPulls
from ampref_service.catalog.tables import version_pulls

_COLUMNS = tuple(version_pulls.c[field.name] for field in fields(VersionPulls))


def add_pulls(session: Session, counts: Mapping[Puller, int]) -> None:
    """Count pulls that were begun a moment ago, by who began them."""
    at = now(session)
    for puller, count in sorted(counts.items()):
        key = puller._asdict()
        if not insert_new(session, version_pulls, key | {"first_at": at, "last_at": at, "pulls": count}):
            row = [version_pulls.c[name] == value for name, value in key.items()]
            session.execute(update(version_pulls).where(*row).values(last_at=at, pulls=version_pulls.c.pulls + count))


def list_pulls(session: Session, version_id: str, *, limit: int = 500) -> list[VersionPulls]:
    """Who pulled a version, the latest first."""
    query = select(*_COLUMNS).where(version_pulls.c.version_id == version_id)
    query = query.order_by(version_pulls.c.last_at.desc(), version_pulls.c.caller, version_pulls.c.client).limit(limit)
    return [VersionPulls(*row) for row in session.execute(query)]
