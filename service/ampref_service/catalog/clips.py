"""Clips: adding, finding and deleting them."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, update

from amp_core.errors import Conflict, InputRefused, NotFound
from amp_core.formats.names import LINE_SEPARATORS
from amp_core.lineage import lineage_columns
from amp_core.strict_json import json_digest
from ampref_service.catalog import audit, blob_refs, curriculum, events, job_rows, keys, recipes, rollouts, thumbnails
from ampref_service.catalog.engine import Session, chunked, insert_new, new_id, now
from ampref_service.catalog.records import (
    USUAL_TERMS,
    Clip,
    ClipUpload,
    DeletedClip,
    Job,
    JobTerms,
    NewClip,
    RecipeRow,
    Rollout,
    Submission,
)
from ampref_service.catalog.tables import REPEAT, clip_tags, clips, version_members, versions
from ampref_service.catalog.tables import curriculum as curriculum_table
from ampref_service.catalog.tables import rollouts as rollouts_table

MAX_TAGS = 50

_UPLOAD_FIELDS = tuple(field.name for field in dataclasses.fields(ClipUpload))
_COLUMNS = tuple(field.name for field in dataclasses.fields(Clip) if field.name != "tags")
_BY_ID = select(*(clips.c[name] for name in _COLUMNS)).where(clips.c.id == bindparam("id"))
_LOCK_BY_ID = select(clips.c.id).where(clips.c.id == bindparam("id")).with_for_update()
_TAGS_BY_ID = select(clip_tags.c.tag).where(clip_tags.c.clip_id == bindparam("id")).order_by(clip_tags.c.tag)
_ORPHANS = select(clips.c.id).where(
    clips.c.parent_digest == bindparam("digest"), clips.c.robot == bindparam("robot"), clips.c.parent_id.is_(None)
)
_ADD_TAGS = insert(clip_tags)


def check_name(name: str) -> str:
    """A clip's name as it can be stored and shown; raises `InputRefused`."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputRefused("the clip's name is not text", key="name", expected="valid Unicode") from None
    if (
        not name.strip()
        or len(name) > 200
        or any(unicodedata.category(char) in {"Cc", "Cs", *LINE_SEPARATORS} for char in name)
    ):
        raise InputRefused(
            "the clip's name cannot be used", key="name", expected="1 to 200 characters, none of them a control character"
        )
    return name


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags in order, each once; raises `InputRefused`."""
    unique = tuple(sorted(set(tags)))
    if len(unique) > MAX_TAGS:
        raise InputRefused(f"{len(unique)} tags on a clip", key="tags", expected=f"at most {MAX_TAGS}")
    for tag in unique:
        if not tag or len(tag) > 64 or tag != tag.strip() or "," in tag or not tag.isprintable():
            raise InputRefused(
                f"the tag {tag[:80]!r} cannot be used",
                key="tags",
                expected="1 to 64 printable characters without a comma and without space at its ends",
            )
    return unique


def submit(
    session: Session,
    new: NewClip,
    recipe: RecipeRow,
    *,
    terms: JobTerms = USUAL_TERMS,
    actor: str = audit.ANONYMOUS,
) -> Submission:
    """Add a clip and the job that scores it, in the caller's transaction.

    The same bytes, read the same way, for the same robot are the same clip, however often and at whatever moment they come;
    the same recipe on it is the same job or result. Then nothing is added but tags. A job that failed, was quarantined or
    cancelled is not an answer: submitting again makes a new one.
    """
    check_name(new.name)
    tags = check_tags(new.tags)
    identity = json_digest([new.source_digest, new.source_format, dict(new.read_options), new.robot, new.robot_digest])
    facts: dict[str, Any] = {name: getattr(new, name) for name in _UPLOAD_FIELDS} | {
        "parent_id": new.parent_id or (new.lineage and find_by_bytes(session, new.lineage.parent, new.robot)),
        "read_options": dict(new.read_options),
        "tags": tags,
        **lineage_columns(new.lineage),
    }
    clip = Clip(**facts, id=new_id("clip"), created_at=now(session), actor=actor)
    row = {name: getattr(clip, name) for name in _COLUMNS}
    if insert_new(session, clips, row | {"identity": identity}):
        if tags:
            session.execute(_ADD_TAGS, [{"clip_id": clip.id, "tag": tag} for tag in tags])
        curriculum.add_clip(session, row)
        # Variants of these bytes that came first have found their parent.
        orphans = session.execute(_ORPHANS, {"digest": clip.source_digest, "robot": clip.robot}).scalars().all()
        if orphans:
            session.execute(update(clips).where(clips.c.id.in_(orphans)).values(parent_id=clip.id))
        audit.record(session, actor, "clip.create", f"clip:{clip.id}", {"name": new.name, "source": new.source_digest})
        recipes.add(session, recipe)
        job, new_job = _enqueue(session, clip, recipe, terms, actor)
        if terms.key is not None:
            keys.check_bytes(session, terms.key)
        return Submission(clip, job, None, True, new_job)
    # The row is locked until the end, so that a deletion cannot fall between finding the clip and giving it a job.
    clip_id = session.execute(select(clips.c.id).where(clips.c.identity == identity).with_for_update()).scalar_one_or_none()
    if clip_id is None:
        raise Conflict("this clip was deleted while it was sent again", remedy="Send it once more")
    if tags:
        _add_tags(session, clip_id, tags, actor)
    if new.lineage is not None:  # It may have come before its parent, when its own word was all that there was.
        lineage = {"parent_id": facts["parent_id"], **lineage_columns(new.lineage)}
        session.execute(update(clips).where(clips.c.id == clip_id, clips.c.parent_digest.is_(None)).values(**lineage))
    return _request(session, clip_id, recipe, terms, actor)


def find_by_bytes(session: Session, digest: str, robot: str) -> str | None:
    """The id of the oldest clip for a robot whose bytes have a digest, None where there is none."""
    query = select(clips.c.id).where(clips.c.source_digest == digest, clips.c.robot == robot)
    return session.execute(query.order_by(clips.c.created_at, clips.c.id).limit(1)).scalar_one_or_none()


def request_rollout(
    session: Session,
    clip_id: str,
    recipe: RecipeRow,
    *,
    terms: JobTerms = USUAL_TERMS,
    actor: str = audit.ANONYMOUS,
) -> Submission:
    """Request another rollout of a clip; as `submit` when there is the result or its job already. Raises `NotFound`."""
    _lock_clip(session, clip_id)
    return _request(session, clip_id, recipe, terms, actor)


def _request(session: Session, clip_id: str, recipe: RecipeRow, terms: JobTerms, actor: str) -> Submission:
    clip = get(session, clip_id)
    recipes.add(session, recipe)
    rollout = rollouts.answer(session, clip_id, recipe.digest)
    if rollout is not None:
        return Submission(clip, job_rows.latest_for_rollout(session, clip_id, recipe.digest), rollout, False, False)
    job, new_job = _enqueue(session, clip, recipe, terms, actor)
    return Submission(clip, job, None, False, new_job)


def score_again(session: Session, clip_id: str, recipe_digest: str, *, terms: JobTerms, actor: str) -> Job:
    """Queue a rollout that there is already, so that the same bytes are stored again; or its job that is under way."""
    _lock_clip(session, clip_id)
    return _enqueue(session, get(session, clip_id), recipes.get(session, recipe_digest), terms, actor, is_repeat=True)[0]


def _enqueue(
    session: Session, clip: Clip, recipe: RecipeRow, terms: JobTerms, actor: str, *, is_repeat: bool = False
) -> tuple[Job, bool]:
    return job_rows.enqueue(
        session,
        "rollout",
        clip_id=clip.id,
        recipe_digest=recipe.digest,
        payload={"clip_name": clip.name} | ({REPEAT: True} if is_repeat else {}),
        robot=clip.robot,
        robot_digest=clip.robot_digest,
        limit_sec=terms.limit_rollout(clip.duration_sec, recipe) if terms.limit_rollout else None,
        terms=terms,
        actor=actor,
    )


def get(session: Session, clip_id: str) -> Clip:
    """A clip by id; raises `NotFound`."""
    row = session.execute(_BY_ID, {"id": clip_id}).mappings().one_or_none()
    if row is None:
        raise _no_clip(clip_id)
    return Clip(**row, tags=tuple(session.execute(_TAGS_BY_ID, {"id": clip_id}).scalars()))


def find_names(session: Session, clip_ids: Iterable[str]) -> dict[str, str]:
    """The names of these clips by id; clips that are not there are left out."""
    return {
        clip_id: name
        for part in chunked(sorted(set(clip_ids)))
        for clip_id, name in session.execute(select(clips.c.id, clips.c.name).where(clips.c.id.in_(part)))
    }


def get_with_rollouts(session: Session, clip_id: str) -> tuple[Clip, list[Rollout], list[Job]]:
    """A clip, its rollouts (best first) and its jobs (newest first); raises `NotFound`."""
    return get(session, clip_id), rollouts.for_clip(session, clip_id), job_rows.for_clip(session, clip_id)


def add_tags(session: Session, clip_id: str, tags: Iterable[str], *, actor: str = audit.ANONYMOUS) -> Clip:
    """Add tags to a clip; raises `NotFound`, `InputRefused`."""
    _lock_clip(session, clip_id)
    _add_tags(session, clip_id, check_tags(tags), actor)
    return get(session, clip_id)


def _add_tags(session: Session, clip_id: str, tags: tuple[str, ...], actor: str) -> None:
    present = set(session.execute(_TAGS_BY_ID, {"id": clip_id}).scalars())
    fresh = [tag for tag in tags if tag not in present]
    if len(present) + len(fresh) > MAX_TAGS:
        raise InputRefused(f"{len(present) + len(fresh)} tags on a clip", key="tags", expected=f"at most {MAX_TAGS}")
    if fresh:
        session.execute(_ADD_TAGS, [{"clip_id": clip_id, "tag": tag} for tag in fresh])
        audit.record(session, actor, "clip.tag", f"clip:{clip_id}", {"added": fresh})


def delete_clip(session: Session, clip_id: str, *, actor: str = audit.ANONYMOUS) -> DeletedClip:
    """Delete a clip with its rollouts, and cancel its jobs.

    Raises `NotFound`, and `Conflict` that names the locked versions that hold it. The blobs named in the answer may be deleted
    once the transaction is committed; the garbage collection does it otherwise.
    """
    _lock_clip(session, clip_id)
    clip = get(session, clip_id)
    query = (
        select(versions.c.dataset, versions.c.version)
        .join(version_members, version_members.c.version_id == versions.c.id)
        .where(version_members.c.clip_id == clip_id, versions.c.archived_at.is_(None))
        .distinct()
        .order_by(versions.c.dataset, versions.c.version)
    )
    holders = [f"{row.dataset}=={row.version}" for row in session.execute(query)]
    if holders:
        raise Conflict(
            f"the clip {clip.name!r} is part of {', '.join(holders[:5])}"
            + (f" and {len(holders) - 5} more" * (len(holders) > 5)),
            remedy="A locked version keeps its clips until it is archived; yank it if nobody should use it any more",
        )
    job_ids = job_rows.cancel_for_clip(session, clip_id, "the clip was deleted")
    arrays = session.execute(select(rollouts_table.c.arrays_digest).where(rollouts_table.c.clip_id == clip_id)).scalars()
    rollout_ids = select(rollouts_table.c.id).where(rollouts_table.c.clip_id == clip_id)
    pictures = thumbnails.list_digests(session, session.execute(rollout_ids).scalars().all()).values()
    digests = [clip.blob_digest, *arrays, *pictures]
    # Variants stay, and keep the digests of where they come from.
    session.execute(update(clips).where(clips.c.parent_id == clip_id).values(parent_id=None))
    session.execute(delete(clips).where(clips.c.id == clip_id))
    audit.record(session, actor, "clip.delete", f"clip:{clip_id}", {"name": clip.name, "source": clip.source_digest})
    events.record(session, "clip.deleted", {"clip_id": clip_id, "name": clip.name}, robot=clip.robot)
    return DeletedClip(clip_id, clip.name, tuple(job_ids), tuple(sorted(blob_refs.unreferenced(session, digests))))


def robots(session: Session) -> frozenset[str]:
    """The robots that clips are for, installed or not."""
    return frozenset(session.execute(select(clips.c.robot).distinct()).scalars())


def count(session: Session) -> Mapping[str, int]:
    """Clips by the tier of their best rollout: `total`, `0`, `1`, `-1` and `unscored`."""
    tier = curriculum_table.c.tier
    query = select(tier, func.count()).where(curriculum_table.c.best == 1).group_by(tier)
    by_tier: dict[int | None, int] = dict(session.execute(query).all())
    counts = {name: by_tier.get(value, 0) for name, value in (("0", 0), ("1", 1), ("-1", -1), ("unscored", None))}
    return {"total": sum(counts.values()), **counts}


def _lock_clip(session: Session, clip_id: str) -> None:
    """Keep a clip from being deleted until the transaction ends; raises `NotFound`."""
    if session.execute(_LOCK_BY_ID, {"id": clip_id}).scalar_one_or_none() is None:
        raise _no_clip(clip_id)


def _no_clip(clip_id: str) -> NotFound:
    return NotFound(f"no clip {clip_id[:80]!r}", remedy="`ampref clips` lists what there is")
