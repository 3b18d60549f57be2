"""Which blobs the catalog names."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select, union_all

from ampref_service.catalog.engine import Session
from ampref_service.catalog.tables import clips, rollouts, version_files

_COLUMNS = (clips.c.blob_digest, rollouts.c.arrays_digest, version_files.c.digest)


def unreferenced(session: Session, digests: Iterable[str]) -> set[str]:
    """Those of some digests that no clip, rollout or version names."""
    asked = set(digests)
    if not asked:
        return set()
    used = union_all(*(select(column.label("digest")).where(column.in_(asked)) for column in _COLUMNS))
    return asked - set(session.execute(used).scalars())
