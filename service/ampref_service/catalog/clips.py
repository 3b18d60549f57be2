"""Clips: adding, finding and deleting them."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping

from sqlalchemy import bindparam, delete, func, insert, select, update

from amp_core.errors import Conflict, InputRefused, NotFound
from amp_core.lineage import lineage_columns
from amp_core.strict_json import json_digest
from ampref_service.catalog import audit, blob_refs, job_rows, rollouts
from ampref_service.catalog.engine import Session, dumps, new_id, now
from ampref_service.catalog.records import Clip, DeletedClip, Job, NewClip, RecipeRow, Rollout, Submission
from ampref_service.catalog.tables import clip_tags, clips, curriculum, recipes, version_members, versions
from ampref_service.catalog.tables import rollouts as rollouts_table

MAX_TAGS = 50


def check_name(name: str) -> str:
    """A clip's name as it can be stored and shown; raises `InputRefused`."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputRefused("the clip's name is not text", key="name", expected="valid Unicode") from None
    if not name.strip() or len(name) > 200 or any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
        raise InputRefused(
            "the clip's name cannot be used", key="name", expected="1 to 200 characters, none of them a control character"
        )
    return name


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags in order, each once; raises `InputRefused`."""
    found = tuple(sorted(set(tags)))
    if len(found) > MAX_TAGS:
        raise InputRefused(f"{len(found)} tags on a clip", key="tags", expected=f"at most {MAX_TAGS}")
    for tag in found:
        if not tag or len(tag) > 64 or tag != tag.strip() or "," in tag or not tag.isprintable():
            raise InputRefused(
                f"the tag {tag[:80]!r} cannot be used",
                key="tags",
                expected="1 to 64 printable characters without a comma and without space at its ends",
            )
    return found


def _identity(new: NewClip) -> str:
    facts = [new.source_digest, new.source_format, dict(new.read_options), new.robot, new.robot_digest]
    return json_digest(facts)


def submit(
    session: Session,
    new: NewClip,
    recipe: RecipeRow,
    *,
    max_attempts: int = job_rows.DEFAULT_MAX_ATTEMPTS,
    actor: str = audit.ANONYMOUS,
) -> Submission:
    """Add a clip and the job that scores it, in the caller's transaction.

    The same bytes, read the same way, for the same robot are the same clip, however often and at whatever moment they come;
    the same
    recipe on it is the same job or result. Then nothing is added but tags. A job that failed, was quarantined or cancelled
    is not an
    answer: submitting again makes a new one.
    """
    check_name(new.name)
    tags = check_tags(new.tags)
    identity = _identity(new)
    clip_id = new_id("clip")
    at = now(session)
    clip = Clip(
        id=clip_id,
        name=new.name,
        robot=new.robot,
        robot_digest=new.robot_digest,
        source_digest=new.source_digest,
        source_format=new.source_format,
        read_options=dict(new.read_options),
        blob_digest=new.blob_digest,
        size=new.size,
        frames_in=new.frames_in,
        fps_in=new.fps_in,
        duration_sec=new.duration_sec,
        created_at=at,
        actor=actor,
        parent_id=new.parent_id or _parent_of(session, new),
        tags=tags,
        **lineage_columns(new.lineage),
    )
    row = {name: getattr(clip, name) for name in _COLUMN_NAMES} | {"identity": identity}
    if job_rows.insert_ignore(session, clips, row):
        listed = {name: row[name] for name in _LISTED_NAMES} | {
            "scope": rollouts.ANY_MODE,
            "clip_id": clip_id,
            "name_folded": new.name.casefold()[:400],
            "read_options": dumps(row["read_options"]),
            "tags": _joined(tags),
        }
        session.execute(_ADD_LISTED, listed)
        if tags:
            session.execute(_ADD_TAGS, [{"clip_id": clip_id, "tag": tag} for tag in tags])
        _adopt(session, clip)
        audit.record(session, actor, "clip.create", f"clip:{clip_id}", {"name": new.name, "source": new.source_digest})
        add_recipe(session, recipe)
        job, new_job = _enqueue(session, clip, recipe, max_attempts, actor)
        return Submission(clip, job, None, True, new_job)
    # The row is locked until the end, so that a deletion cannot fall between finding the clip and giving it a job.
    found = session.execute(select(clips.c.id).where(clips.c.identity == identity).with_for_update()).scalar_one_or_none()
    if found is None:
        raise Conflict("this clip was deleted while it was sent again", remedy="Send it once more")
    if tags:
        _add_tags(session, found, tags, actor)
    return _ask(session, found, recipe, max_attempts=max_attempts, actor=actor)


def _parent_of(session: Session, new: NewClip) -> str | None:
    """The oldest clip for the same robot with the bytes that a variant was made from."""
    if new.lineage is None:
        return None
    query = select(clips.c.id).where(clips.c.source_digest == new.lineage.parent, clips.c.robot == new.robot)
    return session.execute(query.order_by(clips.c.created_at, clips.c.id).limit(1)).scalar_one_or_none()


def _adopt(session: Session, clip: Clip) -> None:
    """Make a new clip the parent of the variants of its bytes that came before it."""
    orphans = session.execute(_ORPHANS, {"digest": clip.source_digest, "robot": clip.robot}).scalars().all()
    if orphans:
        session.execute(update(clips).where(clips.c.id.in_(orphans)).values(parent_id=clip.id))
        session.execute(update(curriculum).where(curriculum.c.clip_id.in_(orphans)).values(parent_id=clip.id))


def request_rollout(
    session: Session,
    clip_id: str,
    recipe: RecipeRow,
    *,
    max_attempts: int = job_rows.DEFAULT_MAX_ATTEMPTS,
    actor: str = audit.ANONYMOUS,
) -> Submission:
    """Ask for another rollout of a clip; as `submit` when the result or its job is there already. Raises `NotFound`."""
    if session.execute(select(clips.c.id).where(clips.c.id == clip_id).with_for_update()).scalar_one_or_none() is None:
        raise _no_clip(clip_id)
    return _ask(session, clip_id, recipe, max_attempts=max_attempts, actor=actor)


def _ask(session: Session, clip_id: str, recipe: RecipeRow, *, max_attempts: int, actor: str) -> Submission:
    clip = get(session, clip_id)
    add_recipe(session, recipe)
    rollout = rollouts.answer(session, clip_id, recipe.digest)
    if rollout is not None:
        return Submission(clip, job_rows.latest_for_rollout(session, clip_id, recipe.digest), rollout, False, False)
    job, new_job = _enqueue(session, clip, recipe, max_attempts, actor)
    return Submission(clip, job, None, False, new_job)


def _enqueue(session: Session, clip: Clip, recipe: RecipeRow, max_attempts: int, actor: str) -> tuple[Job, bool]:
    return job_rows.enqueue(
        session,
        "rollout",
        clip_id=clip.id,
        recipe_digest=recipe.digest,
        payload={"clip_name": clip.name},
        max_attempts=max_attempts,
        actor=actor,
    )


def add_recipe(session: Session, recipe: RecipeRow) -> None:
    """Keep a recipe; nothing happens when it is there."""
    if session.execute(_RECIPE_THERE, {"digest": recipe.digest}).scalar_one_or_none() is None:
        job_rows.insert_ignore(
            session,
            recipes,
            {
                "digest": recipe.digest,
                "mode": recipe.mode,
                "recipe": dict(recipe.recipe),
                "created_at": now(session),
                "scaled": int(not rollouts.own_physics(recipe.recipe)),
            },
        )


def get_recipe(session: Session, digest: str) -> RecipeRow:
    """A recipe by digest; raises `NotFound`."""
    found = get_recipes(session, (digest,))
    if digest not in found:
        raise NotFound(f"no recipe {digest[:80]!r}")
    return found[digest]


def get_recipes(session: Session, digests: Collection[str]) -> dict[str, RecipeRow]:
    """The recipes of these digests that there are."""
    rows = session.execute(
        select(recipes.c.digest, recipes.c.mode, recipes.c.recipe).where(recipes.c.digest.in_(tuple(digests)))
    )
    return {row.digest: RecipeRow(row.digest, row.mode, row.recipe) for row in rows}


def get(session: Session, clip_id: str) -> Clip:
    """A clip by id; raises `NotFound`."""
    row = session.execute(_BY_ID, {"id": clip_id}).one_or_none()
    if row is None:
        raise _no_clip(clip_id)
    make: Callable[..., Clip] = Clip
    return make(*row, tuple(session.execute(_TAGS_BY_ID, {"id": clip_id}).scalars()))


def get_with_rollouts(session: Session, clip_id: str) -> tuple[Clip, list[Rollout], list[Job]]:
    """A clip, its rollouts (best first) and its jobs (newest first); raises `NotFound`."""
    return get(session, clip_id), rollouts.for_clip(session, clip_id), job_rows.for_clip(session, clip_id)


_COLUMN_NAMES = tuple(field.name for field in dataclasses.fields(Clip) if field.name != "tags")
# What the curriculum repeats of a clip as it is.
_LISTED_NAMES = tuple(name for name in _COLUMN_NAMES if name in curriculum.c and name != "read_options")
_BY_ID = select(*(clips.c[name] for name in _COLUMN_NAMES)).where(clips.c.id == bindparam("id"))
_TAGS_BY_ID = select(clip_tags.c.tag).where(clip_tags.c.clip_id == bindparam("id")).order_by(clip_tags.c.tag)
_RECIPE_THERE = select(recipes.c.digest).where(recipes.c.digest == bindparam("digest"))
_ORPHANS = select(clips.c.id).where(
    clips.c.parent_digest == bindparam("digest"), clips.c.robot == bindparam("robot"), clips.c.parent_id.is_(None)
)
_ADD_LISTED = insert(curriculum).inline()
_ADD_TAGS = insert(clip_tags)


def _joined(tags: Iterable[str]) -> str:
    """Tags as the curriculum keeps them."""
    inside = ",".join(tags)
    return f",{inside}," if inside else ""


def add_tags(session: Session, clip_id: str, tags: Iterable[str], *, actor: str = audit.ANONYMOUS) -> Clip:
    """Add tags to a clip; raises `NotFound`, `InputRefused`."""
    if session.execute(select(clips.c.id).where(clips.c.id == clip_id).with_for_update()).scalar_one_or_none() is None:
        raise _no_clip(clip_id)
    _add_tags(session, clip_id, check_tags(tags), actor)
    return get(session, clip_id)


def _add_tags(session: Session, clip_id: str, tags: tuple[str, ...], actor: str) -> None:
    have = set(session.execute(_TAGS_BY_ID, {"id": clip_id}).scalars())
    fresh = [tag for tag in tags if tag not in have]
    if len(have) + len(fresh) > MAX_TAGS:
        raise InputRefused(f"{len(have) + len(fresh)} tags on a clip", key="tags", expected=f"at most {MAX_TAGS}")
    if fresh:
        session.execute(_ADD_TAGS, [{"clip_id": clip_id, "tag": tag} for tag in fresh])
        joined = _joined(sorted(have | set(fresh)))
        session.execute(update(curriculum).where(curriculum.c.clip_id == clip_id).values(tags=joined))
        audit.record(session, actor, "clip.tag", f"clip:{clip_id}", {"added": fresh})


def delete_clip(session: Session, clip_id: str, *, actor: str = audit.ANONYMOUS) -> DeletedClip:
    """Delete a clip with its rollouts, and cancel its jobs.

    Raises `NotFound`, and `Conflict` that names the locked versions that hold it. The blobs named in the answer may be
    deleted once
    the transaction is committed; the garbage collection does it otherwise.
    """
    row = session.execute(select(clips.c.id).where(clips.c.id == clip_id).with_for_update()).scalar_one_or_none()
    if row is None:
        raise _no_clip(clip_id)
    clip = get(session, clip_id)
    holders = held_by(session, clip_id)
    if holders:
        raise Conflict(
            f"the clip {clip.name!r} is part of {', '.join(holders[:5])}"
            + (f" and {len(holders) - 5} more" * (len(holders) > 5)),
            remedy="A locked version keeps its clips for good; yank the version if nobody should use it any more",
        )
    cancelled = job_rows.cancel_for_clip(session, clip_id, "the clip was deleted")
    digests = [
        clip.blob_digest,
        *session.execute(select(rollouts_table.c.arrays_digest).where(rollouts_table.c.clip_id == clip_id)).scalars(),
    ]
    # Variants stay, and keep the digests of where they come from.
    for table in (clips, curriculum):
        session.execute(update(table).where(table.c.parent_id == clip_id).values(parent_id=None))
    session.execute(delete(clips).where(clips.c.id == clip_id))
    audit.record(session, actor, "clip.delete", f"clip:{clip_id}", {"name": clip.name, "source": clip.source_digest})
    return DeletedClip(clip_id, clip.name, tuple(cancelled), tuple(sorted(blob_refs.unreferenced(session, digests))))


def held_by(session: Session, clip_id: str) -> list[str]:
    """The locked versions that hold a clip, as `name==version`."""
    query = (
        select(versions.c.dataset, versions.c.version)
        .join(version_members, version_members.c.version_id == versions.c.id)
        .where(version_members.c.clip_id == clip_id)
        .distinct()
        .order_by(versions.c.dataset, versions.c.version)
    )
    return [f"{row.dataset}=={row.version}" for row in session.execute(query)]


def robots(session: Session) -> frozenset[str]:
    """The robots that clips are for, installed or not."""
    return frozenset(session.execute(select(clips.c.robot).distinct()).scalars())


def count(session: Session) -> Mapping[str, int]:
    """Clips by the tier of their best rollout: `total`, `0`, `1`, `-1` and `unscored`."""
    query = select(curriculum.c.tier, func.count()).where(curriculum.c.scope == rollouts.ANY_MODE).group_by(curriculum.c.tier)
    by_tier = {("unscored" if tier is None else str(tier)): number for tier, number in session.execute(query)}
    found = {name: by_tier.get(name, 0) for name in ("0", "1", "-1", "unscored")}
    return {"total": sum(found.values()), **found}


def _no_clip(clip_id: str) -> NotFound:
    return NotFound(f"no clip {clip_id[:80]!r}", remedy="`ampref clips` lists what there is")
