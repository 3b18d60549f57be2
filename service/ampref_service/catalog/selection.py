"""Which rollouts a version takes, what stands against that, and what they were generated from."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, distinct, exists, func, or_, select, union
from sqlalchemy import Select as Query

from amp_core.dataset.weights import WEIGHT_METRICS
from amp_core.errors import InputRefused
from amp_core.lineage import LINEAGE_COLUMNS
from amp_core.recipe import PhysicsScale
from amp_core.tiers import GATE_PROFILES, Tier
from ampref_service.catalog.engine import Session, chunked
from ampref_service.catalog.recipes import get_many as get_recipes
from ampref_service.catalog.recipes import group_by_bucket, physics_of
from ampref_service.catalog.records import RecipeRow, RolloutSource, Select, SelectedRollout
from ampref_service.catalog.rollouts import best_in_buckets
from ampref_service.catalog.tables import (
    LIVE_STATES,
    METRIC_COLUMNS,
    clip_tags,
    clips,
    curriculum,
    jobs,
    recipes,
    rollouts,
    segments,
)

_LOCKABLE = (Tier.TIER_0, Tier.TIER_1)
_CLIP_COLUMNS = ("name", "source_digest", "robot_digest", *LINEAGE_COLUMNS)
_ROLLOUT_COLUMNS = (
    "recipe_digest",
    "mode",
    "tier",
    "gate_profile",
    "frames",
    "arrays_digest",
    "feature_code_hash",
    "mujoco_version",
)


def check_select(criteria: Select) -> None:
    """Raise `InputRefused` for a selection that no version can have."""
    if not criteria.tiers or any(tier not in _LOCKABLE for tier in criteria.tiers):
        raise InputRefused(
            f"the tiers are {list(criteria.tiers)}",
            key="select.tier",
            expected="0 (training data), 1 (for a curriculum), or both: what was Rejected is in no version",
        )
    if criteria.mode == "auto":
        raise InputRefused(
            "no rollout is in mode auto",
            key="select.mode",
            expected="rollout, tracked, recorded or another mode that auto came to",
            remedy="Leave it out: then each clip is there once, by its best rollout",
        )
    if criteria.mode is not None and criteria.recipe is not None:
        raise InputRefused(
            "both a mode and a recipe are asked for", key="select.recipe", expected="one of them: a recipe has its mode in it"
        )
    if criteria.buckets is not None and criteria.recipe is not None:
        raise InputRefused(
            "both buckets and a recipe are asked for",
            key="select.recipe",
            expected="one of them: a recipe has its physics in it",
        )
    if criteria.buckets == ():
        raise InputRefused("the list of buckets is empty", key="select.buckets", expected="all, or at least one bucket")


def select_members(session: Session, criteria: Select, *, chunk: int = 500) -> Iterator[SelectedRollout]:
    """The rollouts that a version takes, by clip name, then source digest; streamed, in constant memory.

    See `Select` for which they are. Read them to the end within the session.
    """
    check_select(criteria)
    known_recipes: dict[str, RecipeRow] = {}
    query = _select_rollouts(session, criteria)
    with contextlib.closing(session.execute(query, execution_options={"yield_per": chunk})) as stream:
        for part in stream.mappings().partitions(chunk):
            known_recipes |= get_recipes(session, {row["recipe_digest"] for row in part} - known_recipes.keys())
            failures = [row["rollout_id"] for row in part if row["tier"] not in criteria.tiers]
            windows = _select_windows(session, failures, criteria.tiers) if failures else {}
            for row in part:
                ranges: Sequence[_Range] = windows.get(row["rollout_id"], ())
                if row["tier"] in criteria.tiers:
                    ranges = (((0, row["frames"], row["tier"]), {name: row[name] for name in WEIGHT_METRICS}),)
                if not ranges:
                    continue
                recipe = known_recipes[row["recipe_digest"]].recipe
                yield SelectedRollout(
                    **{name: value for name, value in row.items() if name not in METRIC_COLUMNS},
                    ranges=tuple(frames for frames, _ in ranges),
                    range_metrics=tuple(metrics for _, metrics in ranges),
                    metrics={name: row[name] for name in METRIC_COLUMNS},
                    physics=dataclasses.asdict(physics_of(recipe)),
                    generator_version=recipe.get("generator_version"),
                )


_Range = tuple[tuple[int, int, int], Mapping[str, Any]]
"""Start, end and tier of frames, and the metrics that their sampling weight is made of."""


def _select_rollouts(session: Session, criteria: Select) -> Query[Any]:
    query = select(
        clips.c.id.label("clip_id"),
        rollouts.c.id.label("rollout_id"),
        *(clips.c[name] for name in _CLIP_COLUMNS),
        *(rollouts.c[name] for name in (*_ROLLOUT_COLUMNS, *METRIC_COLUMNS)),
    ).order_by(clips.c.name, clips.c.source_digest, clips.c.id, rollouts.c.recipe_digest)
    if criteria.recipe is not None:
        query = query.join(rollouts, rollouts.c.clip_id == clips.c.id).where(rollouts.c.recipe_digest == criteria.recipe)
        if criteria.gate_profile is not None:
            query = query.where(rollouts.c.gate_profile == criteria.gate_profile)
    elif criteria.buckets is not None:
        groups = group_by_bucket(session, None if criteria.buckets == "all" else criteria.buckets)
        ranking = best_in_buckets(groups, criteria.mode, criteria.profile)
        query = (
            query.join(rollouts, rollouts.c.clip_id == clips.c.id)
            .join(ranking, ranking.c.id == rollouts.c.id)
            .where(ranking.c.place == 1)
        )
    else:
        query = (
            query.join(curriculum, curriculum.c.clip_id == clips.c.id)
            .join(rollouts, rollouts.c.id == curriculum.c.rollout_id)
            .join(recipes, recipes.c.digest == rollouts.c.recipe_digest)
            .where(curriculum.c.gate_profile == criteria.profile)
            .where(curriculum.c.best_by_profile == 1 if criteria.mode is None else curriculum.c.mode == criteria.mode)
            # Scaled physics stays out unless the caller names its recipe or buckets: nobody is to mix physics unawares.
            .where(recipes.c.scaled == 0)
        )
    passes: ColumnElement[bool] = rollouts.c.tier.in_(criteria.tiers)
    if criteria.segments:
        windows = exists().where(segments.c.rollout_id == rollouts.c.id, segments.c.tier.in_(criteria.tiers))
        passes = or_(passes, windows)
    return _filter_clips(query.where(passes), criteria)


def list_robots(session: Session, criteria: Select) -> list[str]:
    """The robots of the clips that fit by tags and names."""
    return sorted(session.execute(_filter_names(select(clips.c.robot), criteria).distinct()).scalars())


def _filter_clips(query: Query[Any], criteria: Select) -> Query[Any]:
    return _filter_names(query.where(clips.c.robot == criteria.robot), criteria)


def _filter_names(query: Query[Any], criteria: Select) -> Query[Any]:
    for tag in sorted(set(criteria.tags)):
        query = query.where(exists().where(clip_tags.c.clip_id == clips.c.id, clip_tags.c.tag == tag))
    if criteria.clips:
        query = query.where(or_(clips.c.id.in_(criteria.clips), clips.c.name.in_(criteria.clips)))
    return query


def _select_windows(session: Session, rollout_ids: Sequence[str], tiers: Sequence[int]) -> dict[str, list[_Range]]:
    """The windows of the selected tiers, by rollout; of one that was stored without metrics there are none."""
    metrics: dict[tuple[str, int, int], Mapping[str, Any]] = {}
    results = select(rollouts.c.id, rollouts.c.result["segments"]).where(rollouts.c.id.in_(rollout_ids))
    for rollout_id, windows in session.execute(results):
        for window in windows or ():
            values = window.get("quality_metrics", {})
            metrics[rollout_id, window["start"], window["end"]] = {name: values.get(name) for name in WEIGHT_METRICS}
    ranges: dict[str, list[_Range]] = {}
    query = (
        select(segments.c.rollout_id, segments.c.start, segments.c.end, segments.c.tier)
        .where(segments.c.rollout_id.in_(rollout_ids), segments.c.tier.in_(tiers))
        .order_by(segments.c.rollout_id, segments.c.start)
    )
    for rollout_id, start, end, tier in session.execute(query):
        ranges.setdefault(rollout_id, []).append(((start, end, tier), metrics.get((rollout_id, start, end), {})))
    return ranges


def missing_buckets(session: Session, criteria: Select) -> tuple[list[PhysicsScale], list[PhysicsScale]]:
    """The buckets of the selection without a rollout; and those with any or, where one is without, all that the clips have."""
    scales = criteria.buckets if isinstance(criteria.buckets, tuple) else ()
    missing = [
        scale
        for scale in scales
        if next(select_members(session, dataclasses.replace(criteria, buckets=(scale,)), chunk=1), None) is None
    ]
    if not missing:
        return [], sorted(scales)
    members = select_members(session, dataclasses.replace(criteria, buckets="all"))
    present = {PhysicsScale(**(member.physics or {})) for member in members}
    return missing, sorted(present)


def list_tiers(session: Session, criteria: Select, limit: int) -> list[tuple[str, Tier, str]]:
    """The first clips that the selection would hold if it took every tier: their names, tiers and gate profiles."""
    query = _select_rollouts(session, dataclasses.replace(criteria, tiers=tuple(Tier))).limit(limit)
    return [(row.name, Tier(row.tier), row.gate_profile) for row in session.execute(query)]


def missing_clips(session: Session, criteria: Select) -> list[str]:
    """Which of `Select.clips` are neither the id nor the name of a clip for this robot."""
    names: set[str] = set()
    for part in chunked(criteria.clips):
        query = select(clips.c.id, clips.c.name).where(
            clips.c.robot == criteria.robot, or_(clips.c.id.in_(part), clips.c.name.in_(part))
        )
        for row in session.execute(query):
            names |= {row.id, row.name}
    return [clip for clip in dict.fromkeys(criteria.clips) if clip not in names]


def unscored_clips(session: Session, criteria: Select) -> dict[str, str]:
    """Which of `Select.clips`, ids or names of clips that there are, give the selection nothing as yet, each with why.

    What was scored and is of another tier, say, is not among them: the selection leaves it out.
    """
    members: set[str] = set()
    query = _select_rollouts(session, criteria).order_by(None).with_only_columns(clips.c.id, clips.c.name)
    for clip_id, name in session.execute(query):
        members |= {clip_id, name}
    absent = [clip for clip in dict.fromkeys(criteria.clips) if clip not in members]
    reasons: dict[str, str] = {}
    for part in chunked(absent):
        is_named = [clips.c.robot == criteria.robot, or_(clips.c.id.in_(part), clips.c.name.in_(part))]
        without_result = ~exists().where(rollouts.c.clip_id == clips.c.id)
        for clip_id, name in session.execute(select(clips.c.id, clips.c.name).where(*is_named, without_result)):
            reasons[clip_id] = reasons[name] = "has no result"
        live = select(clips.c.id, clips.c.name, jobs.c.state).join(jobs, jobs.c.clip_id == clips.c.id)
        live = live.where(*is_named, jobs.c.kind == "rollout", jobs.c.state.in_(LIVE_STATES))
        for clip_id, name, state in session.execute(live):
            reasons[clip_id] = reasons[name] = f"is {state}"
    return {clip: reasons[clip] for clip in absent if clip in reasons}


def count_other_clips(session: Session, criteria: Select) -> int:
    """How many clips the selection would hold by another gate profile, and does not hold; 0 for one by a recipe."""
    if criteria.recipe is not None:
        return 0
    by_profile = {
        profile: _select_rollouts(session, dataclasses.replace(criteria, gate_profile=profile)).order_by(None).subquery()
        for profile in GATE_PROFILES
    }
    members = select(by_profile.pop(criteria.profile).c.clip_id)
    clip_ids = union(*(select(rows.c.clip_id) for rows in by_profile.values())).subquery()
    query = select(func.count()).select_from(clip_ids).where(clip_ids.c.clip_id.not_in(members))
    return int(session.execute(query).scalar_one())


def pending_clips(session: Session, criteria: Select) -> int:
    """How many clips that fit the selection by robot, tags and names have a scoring job that has not ended."""
    return int(session.execute(_filter_pending(select(func.count(distinct(clips.c.id))), criteria)).scalar_one())


def list_pending(session: Session, criteria: Select, limit: int) -> list[str]:
    """The names of the first clips that `pending_clips` counts."""
    query = _filter_pending(select(clips.c.id, clips.c.name).distinct(), criteria)
    return [row.name for row in session.execute(query.order_by(clips.c.name, clips.c.id).limit(limit))]


def _filter_pending(query: Query[Any], criteria: Select) -> Query[Any]:
    query = query.join(jobs, jobs.c.clip_id == clips.c.id)
    query = _filter_clips(query.where(jobs.c.kind == "rollout", jobs.c.state.in_(LIVE_STATES)), criteria)
    return query if criteria.recipe is None else query.where(jobs.c.recipe_digest == criteria.recipe)


def get_sources(session: Session, rollout_ids: Sequence[str]) -> dict[str, RolloutSource]:
    """What each of these rollouts was generated from, by the rollout's id."""
    query = (
        select(
            rollouts.c.id,
            recipes.c.recipe,
            rollouts.c.result["provenance"].label("provenance"),
            clips.c.blob_digest,
            clips.c.source_format,
            clips.c.read_options,
        )
        .join(clips, clips.c.id == rollouts.c.clip_id)
        .join(recipes, recipes.c.digest == rollouts.c.recipe_digest)
    )
    return {
        row.id: RolloutSource(
            recipe=row.recipe,
            attempt=int((row.provenance or {}).get("attempt") or 0),
            blob_digest=row.blob_digest,
            source_format=row.source_format,
            read_options=row.read_options,
        )
        for part in chunked(rollout_ids)
        for row in session.execute(query.where(rollouts.c.id.in_(part)))
    }
