"""The catalog's tables: one definition for SQLite and PostgreSQL. `docs/catalog.md` is the guided tour.

Times are seconds since 1970 (UTC) as doubles. Ids and names compare byte by byte on both databases, so that pages and
datasets come in
the same order everywhere.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)

from amp_core.tiers import Tier

# A metric is a column in `rollouts` and `curriculum`. The list is frozen here and in the migrations; a test compares it with
# `amp_core.quality.METRICS` and asks for a migration when they differ.
METRIC_COLUMNS: dict[str, type[float] | type[int]] = {
    "mean_sum_fn_over_mg": float,
    "p10_sum_fn_over_mg": float,
    "p90_stab_force_over_mg": float,
    "unloaded_frame_rate": float,
    "contact_rate": float,
    "left_foot_contact_rate": float,
    "right_foot_contact_rate": float,
    "both_feet_contact_rate": float,
    "no_feet_contact_rate": float,
    "height_mean": float,
    "height_std": float,
    "height_variance": float,
    "height_min": float,
    "height_max": float,
    "p95_pitch_deg": float,
    "p95_roll_deg": float,
    "max_tilt_deg": float,
    "nonfoot_contact_rate": float,
    "slip_rate": float,
    "actuator_saturation_rate": float,
    "joint_rmse_rad": float,
    "root_drift_m": float,
    "contact_agreement": float,
    "finite_frame_rate": float,
    "solver_warnings": float,
    "fell_at_frame": int,
}

JOB_STATES = ("queued", "running", "succeeded", "failed", "quarantined", "cancelled")
TIERS = tuple(Tier)

_NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = MetaData(naming_convention=_NAMING)


def _text(length: int) -> String:
    """A string that compares by bytes on both databases (SQLite does anyway)."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


_ID = _text(40)
_DIGEST = _text(80)
_NAME = _text(200)
_BIG = BigInteger().with_variant(Integer, "sqlite")


def _metric_columns() -> list[Column[Any]]:
    return [Column(name, Double if kind is float else Integer) for name, kind in METRIC_COLUMNS.items()]


def _lineage_columns() -> list[Column[Any]]:
    return [
        Column("parent_id", _ID),
        Column("parent_digest", _DIGEST),
        Column("ancestor_digest", _DIGEST),
        Column("augmentation", _NAME),
    ]


clips = Table(
    "clips",
    metadata,
    Column("id", _ID, primary_key=True),
    # SHA-256 over source digest, how the source is read, and the robot's name and digest: what makes two uploads the same clip.
    Column("identity", _DIGEST, nullable=False, unique=True),
    Column("name", _NAME, nullable=False, index=True),
    Column("robot", _NAME, nullable=False),
    Column("robot_digest", _DIGEST, nullable=False),
    Column("source_digest", _DIGEST, nullable=False, index=True),
    Column("source_format", _text(40), nullable=False),
    Column("read_options", JSON, nullable=False),
    Column("blob_digest", _DIGEST, nullable=False, index=True),
    Column("size", _BIG, nullable=False),
    Column("frames_in", Integer, nullable=False),
    Column("fps_in", Double, nullable=False),
    Column("duration_sec", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("actor", _NAME, nullable=False),
    # Of a variant: the clip that it was made from (where that is here), the digests of that one's and of its family's first
    # bytes, and what was done. Null for an original.
    *_lineage_columns(),
    Index("ix_clips_parent_id", "parent_id"),
    Index("ix_clips_parent_digest", "parent_digest"),
)

clip_tags = Table(
    "clip_tags",
    metadata,
    Column("clip_id", _ID, ForeignKey("clips.id", ondelete="CASCADE"), primary_key=True),
    Column("tag", _text(100), primary_key=True),
    Index("ix_clip_tags_tag_clip_id", "tag", "clip_id"),
)

recipes = Table(
    "recipes",
    metadata,
    Column("digest", _DIGEST, primary_key=True),
    Column("mode", _text(40), nullable=False),
    Column("recipe", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    # 1 where the recipe's physics is not the robot's own.
    Column("scaled", Integer, nullable=False, server_default="0"),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("clip_id", _ID, ForeignKey("clips.id", ondelete="CASCADE"), nullable=False),
    Column("recipe_digest", _DIGEST, ForeignKey("recipes.digest"), nullable=False, index=True),
    Column("mode", _text(40), nullable=False),
    Column("tier", Integer, nullable=False),
    Column("tier_reason", String, nullable=False),
    Column("gate_profile", _text(100), nullable=False),
    Column("frames", Integer, nullable=False),
    Column("duration_sec", Double, nullable=False),
    Column("arrays_digest", _DIGEST, nullable=False, index=True),
    Column("arrays_size", _BIG, nullable=False),
    Column("feature_code_hash", _DIGEST, nullable=False),
    Column("mujoco_version", _text(40), nullable=False),
    Column("result", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    *_metric_columns(),
    UniqueConstraint("clip_id", "recipe_digest"),
    CheckConstraint(f"tier IN ({', '.join(map(str, TIERS))})", name="tier"),
)

segments = Table(
    "segments",
    metadata,
    Column("rollout_id", _ID, ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("start", Integer, nullable=False),
    Column("end", Integer, nullable=False),
    Column("tier", Integer, nullable=False),
    Column("score", Double),
    CheckConstraint('start >= 0 AND "end" > start', name="range"),
)

# What the curriculum query reads, whole: for each clip one row in the scope '*' (its best rollout, or none yet) and one in the
# scope of every mode that it was scored in. It repeats what clips, tags and rollouts say, and is written in their transactions.
# The columns that are filtered by come first: a row that is passed over is not read to its end.
curriculum = Table(
    "curriculum",
    metadata,
    Column("scope", _text(40), primary_key=True),
    Column("clip_id", _ID, ForeignKey("clips.id", ondelete="CASCADE"), primary_key=True),
    Column("rollout_id", _ID, ForeignKey("rollouts.id", ondelete="CASCADE")),
    Column("tier", Integer),
    Column("robot", _NAME, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("duration_sec", Double, nullable=False),
    Column("name_folded", _text(400), nullable=False),
    # All tags in order, each between commas (",run,walk,"), or nothing; a tag has no comma.
    Column("tags", String, nullable=False),
    *_metric_columns(),
    Column("name", _NAME, nullable=False),
    Column("robot_digest", _DIGEST, nullable=False),
    Column("source_digest", _DIGEST, nullable=False),
    Column("source_format", _text(40), nullable=False),
    # JSON as text, since hardly any clip has options and parsing is what a page's time goes into.
    Column("read_options", String, nullable=False),
    Column("size", _BIG, nullable=False),
    Column("frames_in", Integer, nullable=False),
    Column("fps_in", Double, nullable=False),
    Column("recipe_digest", _DIGEST),
    Column("mode", _text(40)),
    Column("tier_reason", String),
    Column("frames", Integer),
    Column("scored_at", Double),
    *_lineage_columns(),
    Index("ix_curriculum_clip_id", "clip_id"),
    Index("ix_curriculum_parent_id", "scope", "parent_id", "clip_id"),
    Index("ix_curriculum_rollout_id", "rollout_id"),
    Index("ix_curriculum_robot", "scope", "robot", "clip_id"),
    *(
        Index(f"ix_curriculum_{column}", "scope", column, "clip_id")
        for column in ("created_at", "duration_sec", "tier", *METRIC_COLUMNS)
    ),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("kind", _text(20), nullable=False),
    Column("state", _text(20), nullable=False),
    Column("clip_id", _ID, index=True),
    Column("recipe_digest", _DIGEST),
    Column("version_id", _ID),
    Column("payload", JSON, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("updated_at", Double, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("worker", _NAME),
    Column("token", Integer, nullable=False),
    Column("lease_until", Double),
    Column("rung_at", Double),
    Column("cancel_requested", Integer, nullable=False),
    Column("progress", Double, nullable=False),
    Column("message", String),
    Column("error", JSON(none_as_null=True)),
    Column("result", JSON(none_as_null=True)),
    Column("actor", _NAME, nullable=False),
    CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'quarantined', 'cancelled')", name="state"),
    Index("ix_jobs_state", "state", "created_at", "id"),
    # One live job scores a clip with a recipe, one locks a version, however often it is asked for.
    Index(
        "uq_jobs_live_rollout",
        "clip_id",
        "recipe_digest",
        unique=True,
        sqlite_where=text("kind = 'rollout' AND state IN ('queued', 'running')"),
        postgresql_where=text("kind = 'rollout' AND state IN ('queued', 'running')"),
    ),
    Index(
        "uq_jobs_live_lock",
        "version_id",
        unique=True,
        sqlite_where=text("kind = 'lock' AND state IN ('queued', 'running')"),
        postgresql_where=text("kind = 'lock' AND state IN ('queued', 'running')"),
    ),
)

datasets = Table(
    "datasets",
    metadata,
    Column("name", _text(100), primary_key=True),
    Column("created_at", Double, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("dataset", _text(100), ForeignKey("datasets.name"), nullable=False),
    Column("version", _text(64), nullable=False),
    Column("state", _text(20), nullable=False),
    Column("robot", _NAME, nullable=False),
    Column("select", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("locked_at", Double),
    Column("actor", _NAME, nullable=False),
    Column("dataset_hash", _DIGEST),
    Column("feature_code_hash", _DIGEST),
    Column("manifest_digest", _DIGEST),
    Column("num_clips", Integer),
    Column("num_frames", _BIG),
    Column("readiness", JSON(none_as_null=True)),
    Column("coverage", JSON(none_as_null=True)),
    Column("yanked_at", Double),
    Column("yank_reason", String),
    UniqueConstraint("dataset", "version"),
    CheckConstraint("state IN ('locking', 'locked')", name="state"),
    CheckConstraint("state <> 'locked' OR locked_at IS NOT NULL", name="locked_at"),
)

version_files = Table(
    "version_files",
    metadata,
    Column("version_id", _ID, ForeignKey("versions.id"), primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("digest", _DIGEST, nullable=False, index=True),
    Column("size", _BIG, nullable=False),
    Column("media_type", _text(100), nullable=False),
)

version_members = Table(
    "version_members",
    metadata,
    Column("version_id", _ID, ForeignKey("versions.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("clip_id", _ID, ForeignKey("clips.id"), nullable=False, index=True),
    Column("rollout_id", _ID, ForeignKey("rollouts.id"), nullable=False, index=True),
    Column("name", _NAME, nullable=False),
    Column("start", Integer, nullable=False),
    Column("end", Integer, nullable=False),
    Column("tier", Integer, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("dataset", _text(100), ForeignKey("datasets.name"), primary_key=True),
    Column("alias", _text(64), primary_key=True),
    Column("version_id", _ID, ForeignKey("versions.id"), nullable=False, index=True),
    Column("updated_at", Double, nullable=False),
)

audit_events = Table(
    "audit_events",
    metadata,
    Column("id", _BIG, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("actor", _NAME, nullable=False),
    Column("action", _text(60), nullable=False),
    Column("subject", _text(400), nullable=False),
    Column("detail", JSON, nullable=False),
    Index("ix_audit_events_subject", "subject", "id"),
)
