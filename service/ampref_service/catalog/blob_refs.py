"""Which blobs the catalog names."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select, union, union_all

from ampref_service.catalog.engine import Session
from ampref_service.catalog.tables import clips, rollouts, version_files

_COLUMNS = (clips.c.blob_digest, rollouts.c.arrays_digest, version_files.c.digest)


def unreferenced(session: Session, digests: Iterable[str]) -> set[str]:
    """Which of some digests no clip, rollout or version names."""
    candidates = set(digests)
    if not candidates:
        return set()
    references = union_all(*(select(column.label("digest")).where(column.in_(candidates)) for column in _COLUMNS))
    return candidates - set(session.execute(references).scalars())


def list_all(session: Session) -> list[str]:
    """Every digest that a clip, rollout or version names, in order."""
    references = union(*(select(column.label("digest")) for column in _COLUMNS)).subquery()
    return list(session.execute(select(references.c.digest).order_by(references.c.digest)).scalars())
