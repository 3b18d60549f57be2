"""Rollouts, and which of a clip's rollouts is the best.

The order is `amp_core.tiers.merit_order`, then the newest first, written in SQL. The best rollout speaks for its clip in the
curriculum, and the best by one gate profile in a version, unless the caller names a mode, a profile or a recipe.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, Subquery, bindparam, case, func, insert, literal, select

from amp_core.errors import Conflict, InputRefused, NotFound
from amp_core.recipe import GATE_PROFILE, PhysicsScale
from amp_core.strict_json import finite_data
from amp_core.tiers import FORCED_MODES, SUPERSEDED_PROFILES, Tier
from ampref_service.catalog import audit, curriculum, job_rows, thumbnails
from ampref_service.catalog.engine import Session, finite, insert_new, new_id, now
from ampref_service.catalog.records import NewRollout, Rollout, RolloutResult, Segment
from ampref_service.catalog.tables import METRIC_COLUMNS, clips, recipes, rollouts, segments

_TIER_0_FRAMES = func.coalesce(
    select(func.sum(segments.c.end - segments.c.start))
    .where(segments.c.rollout_id == rollouts.c.id, segments.c.tier == int(Tier.TIER_0))
    .scalar_subquery(),
    0,
)
_BEST_FIRST: tuple[ColumnElement[Any], ...] = (
    recipes.c.scaled,
    case((rollouts.c.gate_profile.in_(SUPERSEDED_PROFILES), 1), else_=0),
    case({int(tier): tier.rank for tier in Tier}, value=rollouts.c.tier),
    case(dict(FORCED_MODES), value=rollouts.c.mode, else_=0),
    case((rollouts.c.tier == int(Tier.TIER_0), 0), else_=-_TIER_0_FRAMES),
    case((rollouts.c.gate_profile == GATE_PROFILE, 0), else_=1),
    rollouts.c.created_at.desc(),
    rollouts.c.id.desc(),
)
"""The order of `merit_order`, then the newest first; of `rollouts` joined with their `recipes`."""

_RANK_QUERY = (
    select(rollouts.c.id, rollouts.c.mode, rollouts.c.gate_profile)
    .join(recipes, recipes.c.digest == rollouts.c.recipe_digest)
    .where(rollouts.c.clip_id == bindparam("clip"))
    .order_by(*_BEST_FIRST)
)
_LOCK_CLIP = (
    select(clips.c.id, clips.c.name, clips.c.robot, clips.c.created_at, clips.c.duration_sec)
    .where(clips.c.id == bindparam("clip"))
    .with_for_update()
)
_ADD_SEGMENT = insert(segments)
_RESULT_COLUMNS = [field.name for field in fields(RolloutResult) if field.name not in ("metrics", "segments", "result")]


def add(
    session: Session, clip_id: str, recipe_digest: str, new: NewRollout, *, actor: str = audit.ANONYMOUS
) -> tuple[Rollout, bool]:
    """Store a result and let it speak for its clip where it is the best; in the caller's transaction.

    Returns it and True, or the rollout that this clip has under this recipe already and False: the first result stays. Raises
    `Conflict` when the clip was deleted, `InputRefused` when a metric is missing or unknown.
    """
    columns = _to_columns(new)
    clip = session.execute(_LOCK_CLIP, {"clip": clip_id}).mappings().one_or_none()
    if clip is None:
        raise Conflict(f"the clip {clip_id} was deleted before its result came")
    rollout_id = new_id("rollout")
    columns |= {"id": rollout_id, "clip_id": clip_id, "recipe_digest": recipe_digest, "created_at": now(session)}
    if not insert_new(session, rollouts, columns):
        first = find(session, clip_id, recipe_digest)
        assert first is not None
        return first, False
    thumbnails.add(session, rollout_id)
    windows = tuple(Segment(window.start, window.end, window.tier, finite(window.score)) for window in new.segments)
    if windows:
        rows = [asdict(window) | {"rollout_id": rollout_id, "position": i} for i, window in enumerate(windows)]
        session.execute(_ADD_SEGMENT, rows)
    ranking = session.execute(_RANK_QUERY, {"clip": clip_id}).all()
    in_mode = [row for row in ranking if row.mode == new.mode]
    by_profile = [row for row in ranking if row.gate_profile == new.gate_profile]
    if next(row.id for row in in_mode if row.gate_profile == new.gate_profile) == rollout_id:
        rankings = {"best": ranking, "best_in_mode": in_mode, "best_by_profile": by_profile}
        marks = {mark: int(candidates[0].id == rollout_id) for mark, candidates in rankings.items()}
        curriculum.set_best_rollout(session, dict(clip), columns, marks)
    audit.record(
        session, actor, "rollout.create", f"rollout:{rollout_id}", {"clip": clip_id, "recipe": recipe_digest, "tier": new.tier}
    )
    return _to_rollout(columns, windows), True


def _to_columns(new: NewRollout) -> dict[str, Any]:
    missing = [name for name in METRIC_COLUMNS if name not in new.metrics]
    unknown = [name for name in new.metrics if name not in METRIC_COLUMNS]
    if missing or unknown:
        raise InputRefused(
            f"a result's metrics are not the catalog's: missing {missing}, unknown {unknown}",
            expected=", ".join(METRIC_COLUMNS),
            remedy="Run the worker and the catalog from one release; run `ampref migrate` after an upgrade",
        )
    if new.tier not in tuple(Tier):
        raise InputRefused(f"a result's tier is {new.tier!r}", expected="0, 1 or -1")
    columns = {name: getattr(new, name) for name in _RESULT_COLUMNS}
    columns |= {"tier": int(new.tier), "result": finite_data(new.result)}  # psycopg takes an enum for its name
    for name, kind in METRIC_COLUMNS.items():
        number = finite(new.metrics[name])
        columns[name] = None if number is None else kind(number)
    return columns


def best_in_buckets(buckets: Mapping[PhysicsScale, Sequence[str]], mode: str | None, profile: str) -> Subquery:
    """A query for the rollouts of every clip in each bucket by one gate profile: `id`, and `place`, 1 for the best.

    Args:
      buckets: the digests of the recipes in each.
      mode: None for all.
    """
    digests = [digest for members in buckets.values() for digest in members]
    numbers = [(rollouts.c.recipe_digest.in_(members), i) for i, members in enumerate(buckets.values()) if members]
    bucket = case(*numbers, else_=-1) if numbers else literal(-1)
    place = func.row_number().over(partition_by=(rollouts.c.clip_id, bucket), order_by=_BEST_FIRST)
    query = (
        select(rollouts.c.id, place.label("place"))
        .join(recipes, recipes.c.digest == rollouts.c.recipe_digest)
        .where(rollouts.c.recipe_digest.in_(digests), rollouts.c.gate_profile == profile)
    )
    if mode is not None:
        query = query.where(rollouts.c.mode == mode)
    return query.subquery()


def get(session: Session, rollout_id: str) -> Rollout:
    """A rollout by id; raises `NotFound`."""
    row = session.execute(select(rollouts).where(rollouts.c.id == rollout_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no rollout {rollout_id[:80]!r}", remedy="`ampref clip ID` lists a clip's rollouts")
    return _to_rollouts(session, [row])[0]


def array_sizes(session: Session, digests: Collection[str], robots: Collection[str] | None = None) -> dict[str, int]:
    """The sizes in bytes of the exports with these digests, of those that any rollout has; None for all robots."""
    query = select(rollouts.c.arrays_digest, rollouts.c.arrays_size).where(rollouts.c.arrays_digest.in_(digests))
    if robots is not None:
        query = query.join(clips, clips.c.id == rollouts.c.clip_id).where(clips.c.robot.in_(robots))
    return {digest: size for digest, size in session.execute(query)}


def find(session: Session, clip_id: str, recipe_digest: str) -> Rollout | None:
    """The rollout of a clip under a recipe, if there is one."""
    query = select(rollouts).where(rollouts.c.clip_id == clip_id, rollouts.c.recipe_digest == recipe_digest)
    row = session.execute(query).mappings().one_or_none()
    return None if row is None else _to_rollouts(session, [row])[0]


def answer(session: Session, clip_id: str, recipe_digest: str) -> Rollout | None:
    """The rollout of a clip under a recipe or, for a recipe of mode `auto`, the best that its job made; None without either."""
    rollout = find(session, clip_id, recipe_digest)
    if rollout is None:
        rollout_id = job_rows.answer(session, clip_id, recipe_digest)
        # It may have been purged since.
        with contextlib.suppress(NotFound):
            rollout = None if rollout_id is None else get(session, rollout_id)
    return rollout


def for_clip(session: Session, clip_id: str) -> list[Rollout]:
    """A clip's rollouts, the best first."""
    query = select(rollouts).join(recipes, recipes.c.digest == rollouts.c.recipe_digest).where(rollouts.c.clip_id == clip_id)
    return _to_rollouts(session, session.execute(query.order_by(*_BEST_FIRST)).mappings().all())


def _to_rollouts(session: Session, rows: Sequence[RowMapping]) -> list[Rollout]:
    windows: dict[str, list[Segment]] = {row["id"]: [] for row in rows}
    query = select(segments).where(segments.c.rollout_id.in_(list(windows)))
    for row in session.execute(query.order_by(segments.c.rollout_id, segments.c.position)).mappings():
        windows[row["rollout_id"]].append(Segment(row["start"], row["end"], row["tier"], row["score"]))
    digests = thumbnails.list_digests(session, list(windows))
    return [_to_rollout(row, tuple(windows[row["id"]]), digests.get(row["id"])) for row in rows]


def _to_rollout(
    columns: Mapping[str, Any] | RowMapping, windows: tuple[Segment, ...], thumbnail_digest: str | None = None
) -> Rollout:
    return Rollout(
        **{name: value for name, value in columns.items() if name not in METRIC_COLUMNS},
        metrics={name: columns[name] for name in METRIC_COLUMNS},
        segments=windows,
        thumbnail_digest=thumbnail_digest,
    )
