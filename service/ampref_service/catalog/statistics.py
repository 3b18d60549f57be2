"""What was computed of a version's rows, and what the catalog knows of the clips that they are from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import func, select

from ampref_service.catalog import recipes
from ampref_service.catalog.engine import Session, chunked, insert_new, now
from ampref_service.catalog.records import MemberOrigin
from ampref_service.catalog.tables import clip_tags, clips, rollouts, version_members, version_statistics

_BATCH = 2_000


def find_statistics(session: Session, version_id: str) -> dict[str, Any] | None:
    """The statistics of a version; None where they were not computed yet."""
    query = select(version_statistics.c.statistics).where(version_statistics.c.version_id == version_id)
    return session.execute(query).scalar_one_or_none()


def put_statistics(session: Session, version_id: str, statistics: dict[str, Any]) -> None:
    """Keep the statistics of a version, unless another process was faster."""
    insert_new(
        session,
        version_statistics,
        {"version_id": version_id, "computed_at": now(session), "statistics": statistics},
    )


def iterate_origins(session: Session, version_id: str) -> Iterator[MemberOrigin]:
    """Where the members of a version are from, in their order. What was deleted of an archived version is not known."""
    m = version_members.c
    columns = (m.position, m.clip_id, m.rollout_id, m.name, m.start, m.end, m.tier, rollouts.c.mode, rollouts.c.recipe_digest)
    query = (
        select(*columns, func.coalesce(clips.c.ancestor_digest, clips.c.source_digest).label("lineage"), clips.c.augmentation)
        .outerjoin(clips, clips.c.id == m.clip_id)
        .outerjoin(rollouts, rollouts.c.id == m.rollout_id)
        .where(m.version_id == version_id)
    )
    bucket_names: dict[str | None, str | None] = {None: None}
    last = -1
    while rows := session.execute(query.where(m.position > last).order_by(m.position).limit(_BATCH)).all():
        last = rows[-1].position
        clip_ids = list(dict.fromkeys(row.clip_id for row in rows))
        tags: dict[str, list[str]] = {clip_id: [] for clip_id in clip_ids}
        for part in chunked(clip_ids):
            tags_query = select(clip_tags.c.clip_id, clip_tags.c.tag).where(clip_tags.c.clip_id.in_(part))
            for clip_id, tag in session.execute(tags_query.order_by(clip_tags.c.tag)):
                tags[clip_id].append(tag)
        unknown = {row.recipe_digest for row in rows} - bucket_names.keys()
        for digest, recipe in recipes.get_many(session, [digest for digest in unknown if digest]).items():
            bucket_names[digest] = recipes.physics_of(recipe.recipe).name
        for row in rows:
            facts = row._asdict()
            yield MemberOrigin(**facts | {"bucket": bucket_names[facts.pop("recipe_digest")], "tags": tuple(tags[row.clip_id])})


def find_originals(session: Session, lineages: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The id and the name of the clip with each of some digests, the oldest first, where it is in the catalog."""
    query = select(clips.c.source_digest, clips.c.id, clips.c.name).order_by(clips.c.created_at.desc(), clips.c.id.desc())
    return {
        digest: (clip_id, name)
        for part in chunked(list(lineages))
        for digest, clip_id, name in session.execute(query.where(clips.c.source_digest.in_(part)))
    }
