"""The catalog's tables: one definition for SQLite and PostgreSQL. `docs/catalog.md` is the guided tour.

Times are seconds since 1970 (UTC) as doubles. Ids and names compare byte by byte on both databases, so that pages and
datasets come in the same order everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
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

from amp_core.lineage import LINEAGE_COLUMNS
from amp_core.metrics import METRICS
from amp_core.tiers import Tier

METRIC_COLUMNS: dict[str, type[float] | type[int]] = {metric.name: metric.type for metric in METRICS}
"""A metric is a column of `rollouts` and of `curriculum`; a new metric needs a migration, which a test asks for."""

JOB_STATES = ("queued", "running", "succeeded", "failed", "quarantined", "cancelled")
LIVE_STATES = ("queued", "running")
WEBHOOK_STATES = ("active", "quarantined")
WORKER_STATES = ("working", "paused", "stopping")

MOST_THUMBNAIL_FAILURES = 3
"""After so many a rollout has no thumbnail."""

_THUMBNAIL_MADE = text("digest IS NOT NULL")
_THUMBNAIL_DUE = text(f"digest IS NULL AND failures < {MOST_THUMBNAIL_FAILURES}")

REPEAT = "repeat"
"""The key in the payload of a rollout job whose result is there, and whose arrays are to be stored once more."""

UNSCORED = ""
"""The mode and the profile in `curriculum` of a clip that no rollout speaks for yet."""

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


def _check_one_of(column: str, values: Iterable[object]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(map(repr, values))})", name=column)


def _unique_while_live(kind: str, *columns: str) -> Index:
    """One live job of a kind for the same columns, however often it is requested."""
    live = text(f"kind = '{kind}' AND state IN {LIVE_STATES!r}")
    return Index(f"uq_jobs_live_{kind}", *columns, unique=True, sqlite_where=live, postgresql_where=live)


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
    # Of a variant: the clip that it was made from, where that is in this catalog, and its lineage. Null for an original.
    Column("parent_id", _ID),
    *(Column(name, _DIGEST if name.endswith("_digest") else _NAME) for name in LINEAGE_COLUMNS),
    Index("ix_clips_parent_id", "parent_id"),
    Index("ix_clips_parent_digest", "parent_digest"),
    Index("ix_clips_actor", "actor", "created_at", "size"),
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
    _check_one_of("tier", map(int, Tier)),
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

# The curriculum query's filters and sort columns, repeated from clips and rollouts and written in their transactions: for each
# clip one row a mode and gate profile, with its best rollout of the two (`UNSCORED` until there is one). Marks of 0 or 1 say
# whether that is also the best of the clip, in its mode, by its profile: a query that leaves one of the two open needs no
# grouping. The rows are narrow on purpose: reading all of them is the worst that a query can come to.
# The WebP of a rollout, and until it is made who makes it. Those of rollouts of earlier releases come with time.
rollout_thumbnails = Table(
    "rollout_thumbnails",
    metadata,
    Column("rollout_id", _ID, ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", _DIGEST),
    Column("size", _BIG),
    Column("failures", Integer, nullable=False),
    Column("lease_until", Double, nullable=False),
    # Without the rows that wait, or SQLite would look for those by it and sort them.
    Index("ix_rollout_thumbnails_digest", "digest", sqlite_where=_THUMBNAIL_MADE, postgresql_where=_THUMBNAIL_MADE),
    Index("ix_rollout_thumbnails_due", "rollout_id", sqlite_where=_THUMBNAIL_DUE, postgresql_where=_THUMBNAIL_DUE),
)

curriculum = Table(
    "curriculum",
    metadata,
    Column("clip_id", _ID, ForeignKey("clips.id", ondelete="CASCADE"), primary_key=True),
    Column("mode", _text(40), primary_key=True),
    Column("gate_profile", _text(100), primary_key=True),
    Column("best", Integer, nullable=False),
    Column("best_in_mode", Integer, nullable=False),
    Column("best_by_profile", Integer, nullable=False),
    Column("tier", Integer),
    Column("robot", _NAME, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("duration_sec", Double, nullable=False),
    *_metric_columns(),
    Column("name_folded", _text(400), nullable=False),
    Column("rollout_id", _ID, ForeignKey("rollouts.id", ondelete="CASCADE")),
    Index("ix_curriculum_mode", "mode"),
    Index("ix_curriculum_gate_profile", "gate_profile"),
    Index("ix_curriculum_tier", "tier"),
    # What clips are counted by; also finds the clips of a robot.
    Index("ix_curriculum_facets", "robot", "mode", "gate_profile", "tier", "best", "best_in_mode", "best_by_profile"),
    Index("ix_curriculum_rollout_id", "rollout_id"),
    Index("uq_curriculum_best", "clip_id", unique=True, sqlite_where=text("best = 1"), postgresql_where=text("best = 1")),
)

SORT_COLUMNS = ("created_at", "duration_sec", *METRIC_COLUMNS)
COVERED_COLUMNS = ("best", "best_in_mode", "mode", "tier", "robot", "duration_sec")
"""The filters that are checked within the index of the sort column, without a look at the row."""

for column in SORT_COLUMNS:
    covered_columns = [name for name in COVERED_COLUMNS if name != column]
    Index(f"ix_curriculum_{column}", *(curriculum.c[name] for name in (column, "clip_id", *covered_columns)))

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
    # The defaults are for rows of an older release, which may run beside this one during an upgrade.
    # The id of the key that queued it, empty without one: keys take turns.
    Column("owner", _NAME, nullable=False, server_default=""),
    Column("priority", Integer, nullable=False, server_default="0"),
    # The place among the jobs of an owner, lower is earlier: by priority, and behind all of them what workers were lost with.
    Column("rank", Integer, nullable=False, server_default="0"),
    # What a worker must have installed; an empty digest: any worker will do.
    Column("robot", _NAME, nullable=False, server_default=""),
    Column("robot_digest", _DIGEST, nullable=False, server_default=""),
    # Seconds of worker time that all attempts took, and those that one attempt may take.
    Column("worked_sec", Double, nullable=False, server_default="0"),
    Column("limit_sec", Double),
    # How often its worker was lost; how often in a row its worker's machine was at fault.
    Column("losses", Integer, nullable=False, server_default="0"),
    Column("faults", Integer, nullable=False, server_default="0"),
    # The row in `workers` that has it; the one that the last attempt failed on, or `several`; the one that is not to have it
    # before a moment.
    Column("worker_id", _ID),
    Column("failed_on", _ID),
    Column("avoid_worker", _ID),
    Column("avoid_until", Double),
    _check_one_of("state", JOB_STATES),
    Index("ix_jobs_state", "state", "created_at", "id"),
    # In the order of a claim. `not_before` is 0 for what is due.
    Index("ix_jobs_claim", "state", "not_before", "robot_digest", "owner", "rank", "created_at", "id"),
    Index("ix_jobs_owner", "owner", "started_at"),
    Index("ix_jobs_owner_state", "owner", "state"),
    _unique_while_live("rollout", "clip_id", "recipe_digest"),
    _unique_while_live("lock", "version_id"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("name", _NAME, nullable=False),
    Column("host", _NAME, nullable=False),
    # The same for every container of one machine.
    Column("machine", _NAME, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("release", _text(40), nullable=False),
    # Names and digests of what is installed there.
    Column("robots", JSON, nullable=False),
    Column("concurrency", Integer, nullable=False),
    Column("state", _text(20), nullable=False),
    Column("reason", String),
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("jobs", Integer, nullable=False),
    Column("host_faults", Integer, nullable=False),
    _check_one_of("state", WORKER_STATES),
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
    # Of an archived version: its features are not kept, and it does not hold its clips.
    Column("archived_at", Double),
    Column("archived_by", _NAME),
    Column("archive_reason", String),
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
    # A trigger keeps what a version holds; of an archived version clips and rollouts may be gone.
    Column("clip_id", _ID, nullable=False, index=True),
    Column("rollout_id", _ID, nullable=False, index=True),
    Column("name", _NAME, nullable=False),
    Column("start", Integer, nullable=False),
    Column("end", Integer, nullable=False),
    Column("tier", Integer, nullable=False),
)

# Who pulled a version; `ampref_service.pulls` counts, docs/datasets.md says what a pull is.
version_pulls = Table(
    "version_pulls",
    metadata,
    Column("version_id", _ID, ForeignKey("versions.id"), primary_key=True),
    Column("caller", _NAME, primary_key=True),
    Column("client", _text(40), primary_key=True),
    Column("first_at", Double, nullable=False),
    Column("last_at", Double, nullable=False),
    Column("pulls", _BIG, nullable=False),
)

# What is computed of a version's rows for people, once (`ampref_service.statistics`).
version_statistics = Table(
    "version_statistics",
    metadata,
    Column("version_id", _ID, ForeignKey("versions.id"), primary_key=True),
    Column("computed_at", Double, nullable=False),
    Column("statistics", JSON, nullable=False),
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

# Damage that was found, healed or not. The next damage of the same blob takes the row over; the audit log has all of it.
blob_damage = Table(
    "blob_damage",
    metadata,
    Column("digest", _DIGEST, primary_key=True),
    Column("found_at", Double, nullable=False),
    Column("fault", String, nullable=False),
    Column("place", String),
    Column("healed_at", Double),
    Index("ix_blob_damage_open", "digest", sqlite_where=text("healed_at IS NULL"), postgresql_where=text("healed_at IS NULL")),
)

# One row: the round through all blobs that is under way, who goes on with it, and the last one that came to its end.
blob_scrub = Table(
    "blob_scrub",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("cursor", _DIGEST, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("blobs", _BIG, nullable=False),
    Column("bytes", _BIG, nullable=False),
    Column("damaged", _BIG, nullable=False),
    Column("lease_until", Double, nullable=False),
    Column("complete_started_at", Double),
    Column("complete_finished_at", Double),
    Column("complete_blobs", _BIG),
    Column("complete_bytes", _BIG),
    Column("complete_damaged", _BIG),
    CheckConstraint("id = 1", name="one_row"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("name", _NAME, nullable=False),
    # SHA-256 of the whole key. It has 190 random bits, so that a slow hash would only slow down requests.
    Column("digest", _DIGEST, nullable=False, unique=True),
    Column("hint", _text(8), nullable=False),
    Column("scopes", JSON, nullable=False),
    # Names and patterns; null for all.
    Column("datasets", JSON(none_as_null=True)),
    Column("robots", JSON(none_as_null=True)),
    Column("created_at", Double, nullable=False),
    Column("created_by", _NAME, nullable=False),
    Column("expires_at", Double),
    Column("last_used_at", Double),
    Column("revoked_at", Double),
    Column("max_bytes", _BIG),
    Column("max_queued", Integer),
    Column("max_planning_sec", Double),
    Index(
        "uq_api_keys_live_name",
        "name",
        unique=True,
        sqlite_where=text("revoked_at IS NULL"),
        postgresql_where=text("revoked_at IS NULL"),
    ),
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", _text(40), primary_key=True),
    Column("value", _text(200), nullable=False),
)

# What happened, for whoever follows it; `audit_events` is who did what, and is never purged. A row has no `position` until it
# is committed, so that no reader passes by one whose transaction ends late: see `ampref_service.catalog.events`.
events = Table(
    "events",
    metadata,
    Column("number", _BIG, primary_key=True, autoincrement=True),
    Column("id", _ID, nullable=False, unique=True),
    Column("position", _BIG, unique=True),
    Column("at", Double, nullable=False),
    Column("kind", _text(40), nullable=False),
    Column("dataset", _text(100)),
    Column("robot", _NAME),
    Column("data", JSON, nullable=False),
    Index(
        "ix_events_unplaced",
        "number",
        sqlite_where=text("position IS NULL"),
        postgresql_where=text("position IS NULL"),
    ),
)

# `position` is how far it is, `failures` how often the next event failed in a row, `token` that of the lease. The secret is
# kept as it is, since it signs. `bound_…` are the bounds of the key that made it.
webhooks = Table(
    "webhooks",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("url", String, nullable=False),
    Column("secret", _text(100), nullable=False),
    Column("kinds", JSON, nullable=False),
    Column("dataset", _text(100)),
    Column("robot", _NAME),
    Column("bound_datasets", JSON(none_as_null=True)),
    Column("bound_robots", JSON(none_as_null=True)),
    Column("owner", _NAME, nullable=False),
    Column("key_id", _ID),
    Column("created_at", Double, nullable=False),
    Column("state", _text(20), nullable=False),
    Column("reason", String),
    Column("position", _BIG, nullable=False),
    Column("delivered_at", Double),
    Column("failures", Integer, nullable=False),
    Column("last_failure", String),
    Column("not_before", Double, nullable=False),
    Column("test", JSON(none_as_null=True)),
    Column("test_due", Integer, nullable=False),
    Column("token", Integer, nullable=False),
    Column("lease_until", Double, nullable=False),
    _check_one_of("state", WEBHOOK_STATES),
)

# One row, which whoever gives places to events locks.
event_stream = Table(
    "event_stream",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last_position", _BIG, nullable=False),
    Column("purged_through", _BIG, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)
