"""Which blobs the catalog names: uploads, arrays, thumbnails, and files of versions but the features of archived ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import literal, or_, select, union, union_all

from ampref_service.catalog.engine import Session, chunked
from ampref_service.catalog.records import JSON_TYPE
from ampref_service.catalog.tables import clips, rollout_thumbnails, rollouts, version_files, versions

THUMBNAIL = "thumbnail of rollout "
"""How `list_owners` calls a thumbnail, which is made again where it is lost."""

_REFERENCES = {
    clips.c.blob_digest: select(clips.c.blob_digest.label("digest")),
    rollouts.c.arrays_digest: select(rollouts.c.arrays_digest.label("digest")),
    rollout_thumbnails.c.digest: select(rollout_thumbnails.c.digest.label("digest")).where(
        rollout_thumbnails.c.digest.is_not(None)
    ),
    version_files.c.digest: select(version_files.c.digest.label("digest"))
    .join(versions, versions.c.id == version_files.c.version_id)
    .where(or_(versions.c.archived_at.is_(None), version_files.c.media_type == JSON_TYPE)),
}


def unreferenced(session: Session, digests: Iterable[str]) -> set[str]:
    """Which of some digests no row names."""
    candidates = set(digests)
    if not candidates:
        return set()
    references = union_all(*(query.where(column.in_(candidates)) for column, query in _REFERENCES.items()))
    return candidates - set(session.execute(references).scalars())


def list_all(session: Session) -> list[str]:
    """Every digest that a row names, in order."""
    references = union(*_REFERENCES.values()).subquery()
    return list(session.execute(select(references.c.digest).order_by(references.c.digest)).scalars())


def list_after(session: Session, digest: str, limit: int) -> list[str]:
    """The next digests that a row names, in order."""
    parts = (
        select(query.where(column > digest).distinct().order_by(column).limit(limit).subquery().c.digest)
        for column, query in _REFERENCES.items()
    )
    references = union(*parts).subquery()
    return list(session.execute(select(references.c.digest).order_by(references.c.digest).limit(limit)).scalars())


def unreferenced_of_many(session: Session, digests: Sequence[str]) -> set[str]:
    """As `unreferenced`, of any number."""
    return {digest for part in chunked(digests) for digest in unreferenced(session, part)}


def list_rollouts(session: Session, digest: str) -> list[tuple[str, str, str]]:
    """The rollouts that arrays belong to: their clip, their recipe's digest, and the digest of the clip's upload."""
    query = select(rollouts.c.clip_id, rollouts.c.recipe_digest, clips.c.blob_digest).join(
        clips, clips.c.id == rollouts.c.clip_id
    )
    rows = session.execute(query.where(rollouts.c.arrays_digest == digest).order_by(rollouts.c.id))
    return [(clip_id, recipe_digest, blob) for clip_id, recipe_digest, blob in rows]


def list_owners(session: Session, digest: str, limit: int = 5) -> list[str]:
    """Whose blob it is, for people: files of versions, clips, rollouts, thumbnails; the last item says how many more."""
    query = union_all(
        select(literal(0), versions.c.dataset + "==" + versions.c.version + " " + version_files.c.name)
        .join(versions, versions.c.id == version_files.c.version_id)
        .where(version_files.c.digest == digest),
        select(literal(1), literal("clip ") + clips.c.id + " (" + clips.c.name + ")").where(clips.c.blob_digest == digest),
        select(literal(2), literal("rollout ") + rollouts.c.id + " of clip " + clips.c.id + " (" + clips.c.name + ")")
        .join(clips, clips.c.id == rollouts.c.clip_id)
        .where(rollouts.c.arrays_digest == digest),
        select(literal(3), literal(THUMBNAIL) + rollout_thumbnails.c.rollout_id).where(rollout_thumbnails.c.digest == digest),
    )
    names = [name for _, name in sorted(tuple(row) for row in session.execute(query))]
    return names if len(names) <= limit else [*names[:limit], f"{len(names) - limit} more"]
