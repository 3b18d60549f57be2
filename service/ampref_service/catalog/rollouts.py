"""Rollouts, and the curriculum's projection of them.

Of a clip's rollouts the best is one in the robot's own physics before any in scaled physics (a domain-randomization bucket
tells how robust a clip is, not what it is), then one of the best tier (0, then 1, then Rejected), then one that was simulated
freely before one whose poses were forced; of those that are not Tier 0 as a whole, the one with more frames in Tier 0 segments;
then the newest. It speaks for the clip in the curriculum and in a version, unless the caller names a mode (then the best in
that mode does) or a recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import RowMapping, String, Subquery, bindparam, case, func, insert, literal, select, update

from amp_core.errors import Conflict, InputRefused, NotFound
from amp_core.recipe import PhysicsScale
from amp_core.tiers import FORCED_MODES, Tier, merit_order
from ampref_service.catalog import audit, job_rows
from ampref_service.catalog.engine import Session, finite, new_id, now
from ampref_service.catalog.records import NewRollout, Rollout, Segment
from ampref_service.catalog.tables import METRIC_COLUMNS, TIERS, clips, curriculum, recipes, rollouts, segments

ANY_MODE = "*"
"""The curriculum scope in which a clip's best rollout of all modes speaks for it."""

_TIER_RANK = {int(tier): tier.rank for tier in Tier}


def own_physics(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe leaves the robot's friction, mass and damping as the model has them."""
    return all(factor == 1 for factor in (recipe.get("physics") or {}).values())


def _best_first(session: Session, clip_id: str) -> list[tuple[str, str]]:
    """(id, mode) of a clip's rollouts, the best first."""
    ranked = [
        (
            (*merit_order(row.tier, row.mode, row.tier_0_frames or 0, scaled=row.scaled), -row.created_at),
            row.id,
            row.mode,
        )
        for row in session.execute(_RANKED, {"clip": clip_id})
    ]
    # The rows come with the highest id first, and sorting keeps equals in order.
    return [(rollout_id, mode) for _, rollout_id, mode in sorted(ranked, key=lambda entry: entry[0])]


def add(
    session: Session, clip_id: str, recipe_digest: str, new: NewRollout, *, actor: str = audit.ANONYMOUS
) -> tuple[Rollout, bool]:
    """Store a result and let it speak for its clip where it is the best; in the caller's transaction.

    Returns it and True, or the one that is there for this clip and recipe and False: the first result stays. Raises
    `Conflict` when the
    clip is gone, `InputRefused` when a metric is missing or unknown.
    """
    values = _values(new)
    if session.execute(_LOCK_CLIP, {"clip": clip_id}).one_or_none() is None:
        raise Conflict(f"the clip {clip_id} was deleted before its result came")
    rollout_id = new_id("rollout")
    values |= {"id": rollout_id, "clip_id": clip_id, "recipe_digest": recipe_digest, "created_at": now(session)}
    if not job_rows.insert_ignore(session, rollouts, values):
        there = find(session, clip_id, recipe_digest)
        assert there is not None
        return there, False
    found = tuple(Segment(one.start, one.end, one.tier, finite(one.score)) for one in new.segments)
    if found:
        session.execute(
            _ADD_SEGMENT,
            [
                {
                    "rollout_id": rollout_id,
                    "position": position,
                    "start": segment.start,
                    "end": segment.end,
                    "tier": segment.tier,
                    "score": segment.score,
                }
                for position, segment in enumerate(found)
            ],
        )
    _speak(session, values)
    audit.record(
        session, actor, "rollout.create", f"rollout:{rollout_id}", {"clip": clip_id, "recipe": recipe_digest, "tier": new.tier}
    )
    return _made(values, found), True


def _values(new: NewRollout) -> dict[str, Any]:
    missing = [name for name in METRIC_COLUMNS if name not in new.metrics]
    unknown = [name for name in new.metrics if name not in METRIC_COLUMNS]
    if missing or unknown:
        raise InputRefused(
            f"a result's metrics are not the catalog's: missing {missing}, unknown {unknown}",
            expected=", ".join(METRIC_COLUMNS),
            remedy="Run the worker and the catalog from one release; run `ampref migrate` after an upgrade",
        )
    if new.tier not in TIERS:
        raise InputRefused(f"a result's tier is {new.tier!r}", expected="0, 1 or -1")
    values: dict[str, Any] = {
        "mode": new.mode,
        "tier": new.tier,
        "tier_reason": new.tier_reason,
        "gate_profile": new.gate_profile,
        "frames": new.frames,
        "duration_sec": new.duration_sec,
        "arrays_digest": new.arrays_digest,
        "arrays_size": new.arrays_size,
        "feature_code_hash": new.feature_code_hash,
        "mujoco_version": new.mujoco_version,
        "result": _strict(dict(new.result)),
    }
    for name, kind in METRIC_COLUMNS.items():
        number = finite(new.metrics[name])
        values[name] = None if number is None else kind(number)
    return values


def _strict(value: Any) -> Any:
    """JSON has no NaN: a number that could not be computed is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def _speak(session: Session, values: Mapping[str, Any]) -> None:
    """Let a new rollout speak for its clip where it is the best: of all modes, of its own, or nowhere."""
    best_first = _best_first(session, values["clip_id"])
    spoken = {f"new_{name}": values[name] for name in METRIC_COLUMNS} | {
        "new_rollout_id": values["id"],
        "new_tier": values["tier"],
        "new_recipe_digest": values["recipe_digest"],
        "new_mode": values["mode"],
        "new_tier_reason": values["tier_reason"],
        "new_frames": values["frames"],
        "new_scored_at": values["created_at"],
        "of_clip": values["clip_id"],
    }
    if best_first[0][0] == values["id"]:
        session.execute(_SPEAK, spoken | {"of_scope": ANY_MODE})
    in_mode = [rollout_id for rollout_id, mode in best_first if mode == values["mode"]]
    if in_mode[0] == values["id"]:
        if len(in_mode) == 1:
            session.execute(_NEW_SCOPE, {"new_scope": values["mode"], "of_clip": values["clip_id"], "of_scope": ANY_MODE})
        session.execute(_SPEAK, spoken | {"of_scope": values["mode"]})


_ABOUT_ROLLOUT = ("rollout_id", "tier", "recipe_digest", "mode", "tier_reason", "frames", "scored_at", *METRIC_COLUMNS)
_ABOUT_CLIP = tuple(column.name for column in curriculum.c if column.name not in ("scope", *_ABOUT_ROLLOUT))
_OF = (curriculum.c.scope == bindparam("of_scope"), curriculum.c.clip_id == bindparam("of_clip"))
_SPEAK = update(curriculum).where(*_OF).values({name: bindparam(f"new_{name}") for name in _ABOUT_ROLLOUT})
_NEW_SCOPE = insert(curriculum).from_select(
    ["scope", *_ABOUT_CLIP],
    select(bindparam("new_scope", type_=String), *(curriculum.c[name] for name in _ABOUT_CLIP)).where(*_OF),
)
_TIER_0_FRAMES = (
    select(func.sum(segments.c.end - segments.c.start))
    .where(segments.c.rollout_id == rollouts.c.id, segments.c.tier == 0)
    .scalar_subquery()
)
_RANKED = (
    select(
        rollouts.c.id,
        rollouts.c.mode,
        rollouts.c.tier,
        rollouts.c.created_at,
        recipes.c.scaled,
        _TIER_0_FRAMES.label("tier_0_frames"),
    )
    .join(recipes, recipes.c.digest == rollouts.c.recipe_digest)
    .where(rollouts.c.clip_id == bindparam("clip"))
    .order_by(rollouts.c.id.desc())
)
_LOCK_CLIP = select(clips.c.id).where(clips.c.id == bindparam("clip")).with_for_update()
_ADD_SEGMENT = insert(segments)


def best_in(buckets: Mapping[PhysicsScale, Sequence[str]], mode: str | None) -> Subquery:
    """A query for the rollouts of every clip in each bucket, of all modes or of one: `id`, and `place`, 1 for the best.

    Args:
      buckets: the digests of the recipes in each.
    """
    digests = [digest for found in buckets.values() for digest in found]
    held = [(rollouts.c.recipe_digest.in_(found), i) for i, found in enumerate(buckets.values()) if found]
    bucket = case(*held, else_=-1) if held else literal(-1)
    tier_0 = func.coalesce(_TIER_0_FRAMES, 0)
    place = func.row_number().over(
        partition_by=(rollouts.c.clip_id, bucket),
        # `merit_order` in SQL; a bucket has one physics.
        order_by=(
            case(_TIER_RANK, value=rollouts.c.tier),
            case((rollouts.c.mode.in_(sorted(FORCED_MODES)), 1), else_=0),
            case((rollouts.c.tier == Tier.TIER_0.value, 0), else_=-tier_0),
            rollouts.c.created_at.desc(),
            rollouts.c.id.desc(),
        ),
    )
    query = select(rollouts.c.id, place.label("place")).where(rollouts.c.recipe_digest.in_(digests))
    if mode is not None:
        query = query.where(rollouts.c.mode == mode)
    return query.subquery()


def _made(values: Mapping[str, Any] | RowMapping, found: tuple[Segment, ...]) -> Rollout:
    return Rollout(
        **{name: value for name, value in values.items() if name not in METRIC_COLUMNS},
        metrics={name: values[name] for name in METRIC_COLUMNS},
        segments=found,
    )


def get(session: Session, rollout_id: str) -> Rollout:
    """A rollout by id; raises `NotFound`."""
    row = session.execute(select(rollouts).where(rollouts.c.id == rollout_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no rollout {rollout_id[:80]!r}", remedy="`ampref clip ID` lists a clip's rollouts")
    return _to_rollouts(session, [row])[0]


def find(session: Session, clip_id: str, recipe_digest: str) -> Rollout | None:
    """The rollout of a clip under a recipe, if there is one."""
    query = select(rollouts).where(rollouts.c.clip_id == clip_id, rollouts.c.recipe_digest == recipe_digest)
    row = session.execute(query).mappings().one_or_none()
    return None if row is None else _to_rollouts(session, [row])[0]


def answer(session: Session, clip_id: str, recipe_digest: str) -> Rollout | None:
    """What is known for a clip and a recipe: its rollout or, for a recipe of mode `auto`, the one that its job came to."""
    known = find(session, clip_id, recipe_digest)
    if known is None:
        rollout_id = job_rows.answer(session, clip_id, recipe_digest)
        known = None if rollout_id is None else get(session, rollout_id)
    return known


def for_clip(session: Session, clip_id: str) -> list[Rollout]:
    """A clip's rollouts, the best first."""
    rows = session.execute(select(rollouts).where(rollouts.c.clip_id == clip_id)).mappings().all()
    place = {rollout_id: i for i, (rollout_id, _) in enumerate(_best_first(session, clip_id))}
    return _to_rollouts(session, sorted(rows, key=lambda row: place[row["id"]]))


def _to_rollouts(session: Session, rows: list[RowMapping]) -> list[Rollout]:
    found: dict[str, list[Segment]] = {row["id"]: [] for row in rows}
    query = select(segments).where(segments.c.rollout_id.in_(list(found))).order_by(segments.c.rollout_id, segments.c.position)
    for row in session.execute(query).mappings():
        found[row["rollout_id"]].append(Segment(row["start"], row["end"], row["tier"], row["score"]))
    return [_made(row, tuple(found[row["id"]])) for row in rows]
