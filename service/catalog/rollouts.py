"""Rollouts, and the curriculum's projection of them.

Of a clip's rollouts the best is the one of the best tier (0, then 1, then Rejected), among those the newest. It speaks for
the clip in
the curriculum and in a version, unless the caller names a mode (then the best in that mode does) or a recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import RowMapping, bindparam, case, insert, select, update

from amp_core.errors import Conflict, InputRefused, NotFound
from service.catalog import audit, job_rows
from service.catalog.engine import Session, finite, new_id, now
from service.catalog.records import NewRollout, Rollout, RolloutSummary, Segment
from service.catalog.tables import METRIC_COLUMNS, TIERS, clips, curriculum, rollouts, segments

ANY_MODE = "*"
"""The curriculum scope in which a clip's best rollout of all modes speaks for it."""

_RANK = case({0: 0, 1: 1}, value=rollouts.c.tier, else_=2)
_BEST_FIRST = (_RANK, rollouts.c.created_at.desc(), rollouts.c.id.desc())
_SUMMARY_FIELDS = ("id", "recipe_digest", "mode", "tier", "tier_reason", "frames")
_METRIC_NAMES = tuple(METRIC_COLUMNS)
_SUMMARIES = select(*(rollouts.c[name] for name in (*_SUMMARY_FIELDS, "created_at", *_METRIC_NAMES))).where(
    rollouts.c.id.in_(bindparam("ids", expanding=True))
)


def add(
    session: Session, clip_id: str, recipe_digest: str, new: NewRollout, *, actor: str = audit.ANONYMOUS
) -> tuple[Rollout, bool]:
    """Store a result and let it speak for its clip where it is the best; in the caller's transaction.

    Returns it and True, or the one that is there for this clip and recipe and False: the first result stays. Raises
    `Conflict` when the
    clip is gone, `InputRefused` when a metric is missing or unknown.
    """
    values = _values(new)
    clip = session.execute(select(clips).where(clips.c.id == clip_id).with_for_update()).mappings().one_or_none()
    if clip is None:
        raise Conflict(f"the clip {clip_id} was deleted before its result came")
    rollout_id = new_id("rollout")
    values |= {"id": rollout_id, "clip_id": clip_id, "recipe_digest": recipe_digest, "created_at": now(session)}
    if not job_rows.insert_ignore(session, rollouts, values):
        there = find(session, clip_id, recipe_digest)
        assert there is not None
        return there, False
    if new.segments:
        session.execute(
            insert(segments),
            [
                {
                    "rollout_id": rollout_id,
                    "position": position,
                    "start": segment.start,
                    "end": segment.end,
                    "tier": segment.tier,
                    "score": finite(segment.score),
                }
                for position, segment in enumerate(new.segments)
            ],
        )
    for scope in (ANY_MODE, new.mode):
        _project(session, clip, scope)
    audit.record(
        session, actor, "rollout.create", f"rollout:{rollout_id}", {"clip": clip_id, "recipe": recipe_digest, "tier": new.tier}
    )
    return get(session, rollout_id), True


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


def _project(session: Session, clip: RowMapping, scope: str) -> None:
    best = select(rollouts).where(rollouts.c.clip_id == clip["id"]).order_by(*_BEST_FIRST).limit(1)
    if scope != ANY_MODE:
        best = best.where(rollouts.c.mode == scope)
    row = session.execute(best).mappings().one_or_none()
    spoken = {"rollout_id": None, "tier": None, **dict.fromkeys(METRIC_COLUMNS)}
    if row is not None:
        spoken = {"rollout_id": row["id"], "tier": row["tier"], **{name: row[name] for name in METRIC_COLUMNS}}
    where = (curriculum.c.scope == scope, curriculum.c.clip_id == clip["id"])
    if session.execute(update(curriculum).where(*where).values(spoken)).rowcount:
        return
    session.execute(
        insert(curriculum).values(
            scope=scope,
            clip_id=clip["id"],
            name_folded=clip["name"].casefold()[:400],
            robot=clip["robot"],
            created_at=clip["created_at"],
            duration_sec=clip["duration_sec"],
            **spoken,
        )
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


def for_clip(session: Session, clip_id: str) -> list[Rollout]:
    """A clip's rollouts, the best first."""
    rows = session.execute(select(rollouts).where(rollouts.c.clip_id == clip_id).order_by(*_BEST_FIRST)).mappings().all()
    return _to_rollouts(session, list(rows))


def summaries(session: Session, ids: list[str]) -> dict[str, RolloutSummary]:
    """Some rollouts without their documents."""
    # Positional, because a page of the curriculum makes hundreds of them.
    count = len(_SUMMARY_FIELDS)
    make: Callable[..., RolloutSummary] = RolloutSummary
    rows: Sequence[Sequence[Any]] = session.execute(_SUMMARIES, {"ids": ids}).all()
    return {row[0]: make(*row[:count], dict(zip(_METRIC_NAMES, row[count + 1 :], strict=True)), row[count]) for row in rows}


def _to_rollouts(session: Session, rows: list[RowMapping]) -> list[Rollout]:
    found: dict[str, list[Segment]] = {row["id"]: [] for row in rows}
    query = select(segments).where(segments.c.rollout_id.in_(list(found))).order_by(segments.c.rollout_id, segments.c.position)
    for row in session.execute(query).mappings():
        found[row["rollout_id"]].append(Segment(row["start"], row["end"], row["tier"], row["score"]))
    return [
        Rollout(
            **{name: value for name, value in row.items() if name not in METRIC_COLUMNS},
            metrics={name: row[name] for name in METRIC_COLUMNS},
            segments=tuple(found[row["id"]]),
        )
        for row in rows
    ]
