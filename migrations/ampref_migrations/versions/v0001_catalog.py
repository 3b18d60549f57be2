"""The catalog's first schema.

Revision: 0001; follows nothing.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Frozen: a metric that is added later is a column of a later migration.
_METRICS: tuple[tuple[str, Any], ...] = (
    ("mean_sum_fn_over_mg", sa.Double()),
    ("p10_sum_fn_over_mg", sa.Double()),
    ("p90_stab_force_over_mg", sa.Double()),
    ("unloaded_frame_rate", sa.Double()),
    ("contact_rate", sa.Double()),
    ("left_foot_contact_rate", sa.Double()),
    ("right_foot_contact_rate", sa.Double()),
    ("both_feet_contact_rate", sa.Double()),
    ("no_feet_contact_rate", sa.Double()),
    ("height_mean", sa.Double()),
    ("height_std", sa.Double()),
    ("height_variance", sa.Double()),
    ("height_min", sa.Double()),
    ("height_max", sa.Double()),
    ("p95_pitch_deg", sa.Double()),
    ("p95_roll_deg", sa.Double()),
    ("max_tilt_deg", sa.Double()),
    ("nonfoot_contact_rate", sa.Double()),
    ("slip_rate", sa.Double()),
    ("actuator_saturation_rate", sa.Double()),
    ("joint_rmse_rad", sa.Double()),
    ("root_drift_m", sa.Double()),
    ("finite_frame_rate", sa.Double()),
    ("solver_warnings", sa.Double()),
    ("fell_at_frame", sa.Integer()),
)

# A locked version is for good, whoever writes: these columns of `versions` may change only while it is being locked.
_FINAL = (
    'id, dataset, version, state, robot, "select", created_at, locked_at, actor, dataset_hash, '
    "feature_code_hash, manifest_digest, num_clips, num_frames, readiness"
)
_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TABLES = (
    "version_members",
    "version_files",
    "aliases",
    "versions",
    "datasets",
    "jobs",
    "curriculum",
    "segments",
    "rollouts",
    "recipes",
    "clip_tags",
    "clips",
    "audit_events",
)


def _text(length: int) -> Any:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def _metric_columns() -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=True) for name, kind in _METRICS]


def upgrade() -> None:
    op.create_table(
        "audit_events",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", _text(200), nullable=False),
        sa.Column("action", _text(60), nullable=False),
        sa.Column("subject", _text(400), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
    )
    op.create_index("ix_audit_events_subject", "audit_events", ["subject", "id"], unique=False)
    op.create_table(
        "clips",
        sa.Column("id", _text(40), nullable=False),
        sa.Column("identity", _text(80), nullable=False),
        sa.Column("name", _text(200), nullable=False),
        sa.Column("robot", _text(200), nullable=False),
        sa.Column("robot_digest", _text(80), nullable=False),
        sa.Column("source_digest", _text(80), nullable=False),
        sa.Column("source_format", _text(40), nullable=False),
        sa.Column("read_options", sa.JSON(), nullable=False),
        sa.Column("blob_digest", _text(80), nullable=False),
        sa.Column("size", _BIG, nullable=False),
        sa.Column("frames_in", sa.Integer(), nullable=False),
        sa.Column("fps_in", sa.Double(), nullable=False),
        sa.Column("duration_sec", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("actor", _text(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clips")),
        sa.UniqueConstraint("identity", name=op.f("uq_clips_identity")),
    )
    op.create_index(op.f("ix_clips_blob_digest"), "clips", ["blob_digest"], unique=False)
    op.create_index(op.f("ix_clips_name"), "clips", ["name"], unique=False)
    op.create_index(op.f("ix_clips_source_digest"), "clips", ["source_digest"], unique=False)
    op.create_table(
        "datasets",
        sa.Column("name", _text(100), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_datasets")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", _text(40), nullable=False),
        sa.Column("kind", _text(20), nullable=False),
        sa.Column("state", _text(20), nullable=False),
        sa.Column("clip_id", _text(40), nullable=True),
        sa.Column("recipe_digest", _text(80), nullable=True),
        sa.Column("version_id", _text(40), nullable=True),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("worker", _text(200), nullable=True),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("rung_at", sa.Double(), nullable=True),
        sa.Column("cancel_requested", sa.Integer(), nullable=False),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("message", sa.String(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("actor", _text(200), nullable=False),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'failed', 'quarantined', 'cancelled')", name=op.f("ck_jobs_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_clip_id"), "jobs", ["clip_id"], unique=False)
    op.create_index("ix_jobs_state", "jobs", ["state", "created_at", "id"], unique=False)
    op.create_index(
        "uq_jobs_live_lock",
        "jobs",
        ["version_id"],
        unique=True,
        sqlite_where=sa.text("kind = 'lock' AND state IN ('queued', 'running')"),
        postgresql_where=sa.text("kind = 'lock' AND state IN ('queued', 'running')"),
    )
    op.create_index(
        "uq_jobs_live_rollout",
        "jobs",
        ["clip_id", "recipe_digest"],
        unique=True,
        sqlite_where=sa.text("kind = 'rollout' AND state IN ('queued', 'running')"),
        postgresql_where=sa.text("kind = 'rollout' AND state IN ('queued', 'running')"),
    )
    op.create_table(
        "recipes",
        sa.Column("digest", _text(80), nullable=False),
        sa.Column("mode", _text(40), nullable=False),
        sa.Column("recipe", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_recipes")),
    )
    op.create_table(
        "clip_tags",
        sa.Column("clip_id", _text(40), nullable=False),
        sa.Column("tag", _text(100), nullable=False),
        sa.ForeignKeyConstraint(["clip_id"], ["clips.id"], name=op.f("fk_clip_tags_clip_id_clips"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("clip_id", "tag", name=op.f("pk_clip_tags")),
    )
    op.create_index("ix_clip_tags_tag_clip_id", "clip_tags", ["tag", "clip_id"], unique=False)
    op.create_table(
        "rollouts",
        sa.Column("id", _text(40), nullable=False),
        sa.Column("clip_id", _text(40), nullable=False),
        sa.Column("recipe_digest", _text(80), nullable=False),
        sa.Column("mode", _text(40), nullable=False),
        sa.Column("tier", sa.Integer(), nullable=False),
        sa.Column("tier_reason", sa.String(), nullable=False),
        sa.Column("gate_profile", _text(100), nullable=False),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("duration_sec", sa.Double(), nullable=False),
        sa.Column("arrays_digest", _text(80), nullable=False),
        sa.Column("arrays_size", _BIG, nullable=False),
        sa.Column("feature_code_hash", _text(80), nullable=False),
        sa.Column("mujoco_version", _text(40), nullable=False),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        *_metric_columns(),
        sa.CheckConstraint("tier IN (0, 1, -1)", name=op.f("ck_rollouts_tier")),
        sa.ForeignKeyConstraint(["clip_id"], ["clips.id"], name=op.f("fk_rollouts_clip_id_clips"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["recipe_digest"], ["recipes.digest"], name=op.f("fk_rollouts_recipe_digest_recipes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollouts")),
        sa.UniqueConstraint("clip_id", "recipe_digest", name=op.f("uq_rollouts_clip_id_recipe_digest")),
    )
    op.create_index(op.f("ix_rollouts_arrays_digest"), "rollouts", ["arrays_digest"], unique=False)
    op.create_index(op.f("ix_rollouts_recipe_digest"), "rollouts", ["recipe_digest"], unique=False)
    op.create_table(
        "versions",
        sa.Column("id", _text(40), nullable=False),
        sa.Column("dataset", _text(100), nullable=False),
        sa.Column("version", _text(64), nullable=False),
        sa.Column("state", _text(20), nullable=False),
        sa.Column("robot", _text(200), nullable=False),
        sa.Column("select", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("locked_at", sa.Double(), nullable=True),
        sa.Column("actor", _text(200), nullable=False),
        sa.Column("dataset_hash", _text(80), nullable=True),
        sa.Column("feature_code_hash", _text(80), nullable=True),
        sa.Column("manifest_digest", _text(80), nullable=True),
        sa.Column("num_clips", sa.Integer(), nullable=True),
        sa.Column("num_frames", _BIG, nullable=True),
        sa.Column("readiness", sa.JSON(), nullable=True),
        sa.Column("yanked_at", sa.Double(), nullable=True),
        sa.Column("yank_reason", sa.String(), nullable=True),
        sa.CheckConstraint("state <> 'locked' OR locked_at IS NOT NULL", name=op.f("ck_versions_locked_at")),
        sa.CheckConstraint("state IN ('locking', 'locked')", name=op.f("ck_versions_state")),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.name"], name=op.f("fk_versions_dataset_datasets")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("dataset", "version", name=op.f("uq_versions_dataset_version")),
    )
    op.create_table(
        "aliases",
        sa.Column("dataset", _text(100), nullable=False),
        sa.Column("alias", _text(64), nullable=False),
        sa.Column("version_id", _text(40), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.name"], name=op.f("fk_aliases_dataset_datasets")),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_aliases_version_id_versions")),
        sa.PrimaryKeyConstraint("dataset", "alias", name=op.f("pk_aliases")),
    )
    op.create_index(op.f("ix_aliases_version_id"), "aliases", ["version_id"], unique=False)
    op.create_table(
        "curriculum",
        sa.Column("scope", _text(40), nullable=False),
        sa.Column("clip_id", _text(40), nullable=False),
        sa.Column("rollout_id", _text(40), nullable=True),
        sa.Column("tier", sa.Integer(), nullable=True),
        sa.Column("robot", _text(200), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("duration_sec", sa.Double(), nullable=False),
        sa.Column("name_folded", _text(400), nullable=False),
        sa.Column("tags", sa.String(), nullable=False),
        *_metric_columns(),
        sa.Column("name", _text(200), nullable=False),
        sa.Column("robot_digest", _text(80), nullable=False),
        sa.Column("source_digest", _text(80), nullable=False),
        sa.Column("source_format", _text(40), nullable=False),
        sa.Column("read_options", sa.String(), nullable=False),
        sa.Column("size", _BIG, nullable=False),
        sa.Column("frames_in", sa.Integer(), nullable=False),
        sa.Column("fps_in", sa.Double(), nullable=False),
        sa.Column("recipe_digest", _text(80), nullable=True),
        sa.Column("mode", _text(40), nullable=True),
        sa.Column("tier_reason", sa.String(), nullable=True),
        sa.Column("frames", sa.Integer(), nullable=True),
        sa.Column("scored_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["clip_id"], ["clips.id"], name=op.f("fk_curriculum_clip_id_clips"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollouts.id"], name=op.f("fk_curriculum_rollout_id_rollouts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("scope", "clip_id", name=op.f("pk_curriculum")),
    )
    op.create_index("ix_curriculum_clip_id", "curriculum", ["clip_id"], unique=False)
    op.create_index("ix_curriculum_created_at", "curriculum", ["scope", "created_at", "clip_id"], unique=False)
    op.create_index("ix_curriculum_duration_sec", "curriculum", ["scope", "duration_sec", "clip_id"], unique=False)
    op.create_index("ix_curriculum_robot", "curriculum", ["scope", "robot", "clip_id"], unique=False)
    op.create_index("ix_curriculum_rollout_id", "curriculum", ["rollout_id"], unique=False)
    op.create_index("ix_curriculum_tier", "curriculum", ["scope", "tier", "clip_id"], unique=False)
    op.create_table(
        "segments",
        sa.Column("rollout_id", _text(40), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("end", sa.Integer(), nullable=False),
        sa.Column("tier", sa.Integer(), nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.CheckConstraint('start >= 0 AND "end" > start', name=op.f("ck_segments_range")),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollouts.id"], name=op.f("fk_segments_rollout_id_rollouts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout_id", "position", name=op.f("pk_segments")),
    )
    op.create_table(
        "version_files",
        sa.Column("version_id", _text(40), nullable=False),
        sa.Column("name", _text(200), nullable=False),
        sa.Column("digest", _text(80), nullable=False),
        sa.Column("size", _BIG, nullable=False),
        sa.Column("media_type", _text(100), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_version_files_version_id_versions")),
        sa.PrimaryKeyConstraint("version_id", "name", name=op.f("pk_version_files")),
    )
    op.create_index(op.f("ix_version_files_digest"), "version_files", ["digest"], unique=False)
    op.create_table(
        "version_members",
        sa.Column("version_id", _text(40), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("clip_id", _text(40), nullable=False),
        sa.Column("rollout_id", _text(40), nullable=False),
        sa.Column("name", _text(200), nullable=False),
        sa.Column("start", sa.Integer(), nullable=False),
        sa.Column("end", sa.Integer(), nullable=False),
        sa.Column("tier", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["clip_id"], ["clips.id"], name=op.f("fk_version_members_clip_id_clips")),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollouts.id"], name=op.f("fk_version_members_rollout_id_rollouts")),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_version_members_version_id_versions")),
        sa.PrimaryKeyConstraint("version_id", "position", name=op.f("pk_version_members")),
    )
    op.create_index(op.f("ix_version_members_clip_id"), "version_members", ["clip_id"], unique=False)
    op.create_index(op.f("ix_version_members_rollout_id"), "version_members", ["rollout_id"], unique=False)
    for name, _ in _METRICS:
        op.create_index(f"ix_curriculum_{name}", "curriculum", ["scope", name, "clip_id"], unique=False)
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgresql()


def _guard_sqlite() -> None:
    refuse = "BEGIN SELECT RAISE(ABORT, 'a locked version never changes'); END"
    op.execute(f"CREATE TRIGGER versions_fixed BEFORE UPDATE OF {_FINAL} ON versions WHEN OLD.state = 'locked' {refuse}")
    op.execute(f"CREATE TRIGGER versions_kept BEFORE DELETE ON versions WHEN OLD.state = 'locked' {refuse}")
    for table in ("version_members", "version_files"):
        for event, rows in (("INSERT", ("NEW",)), ("UPDATE", ("OLD", "NEW")), ("DELETE", ("OLD",))):
            ids = ", ".join(f"{row}.version_id" for row in rows)
            op.execute(
                f"CREATE TRIGGER {table}_{event.lower()} BEFORE {event} ON {table} "
                f"WHEN EXISTS (SELECT 1 FROM versions WHERE id IN ({ids}) AND state = 'locked') {refuse}"
            )
    for event in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_events_{event.lower()} BEFORE {event} ON audit_events "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END"
        )


def _guard_postgresql() -> None:
    op.execute(
        """
        CREATE FUNCTION ampref_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';
        END $$
        """
    )
    op.execute(
        """
        CREATE FUNCTION ampref_refuse_if_locked() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (
                SELECT 1 FROM versions WHERE state = 'locked' AND (
                    (TG_OP <> 'INSERT' AND id = OLD.version_id) OR (TG_OP <> 'DELETE' AND id = NEW.version_id)
                )
            ) THEN
                RAISE EXCEPTION 'a locked version never changes' USING ERRCODE = 'integrity_constraint_violation';
            END IF;
            IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
            RETURN NEW;
        END $$
        """
    )
    refuse = "EXECUTE FUNCTION ampref_refuse('a locked version never changes')"
    op.execute(
        f"CREATE TRIGGER versions_fixed BEFORE UPDATE OF {_FINAL} ON versions FOR EACH ROW WHEN (OLD.state = 'locked') {refuse}"
    )
    op.execute(f"CREATE TRIGGER versions_kept BEFORE DELETE ON versions FOR EACH ROW WHEN (OLD.state = 'locked') {refuse}")
    for table in ("version_members", "version_files"):
        op.execute(
            f"CREATE TRIGGER {table}_fixed BEFORE INSERT OR UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION ampref_refuse_if_locked()"
        )
    for table in ("versions", "version_members", "version_files"):
        op.execute(f"CREATE TRIGGER {table}_not_emptied BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {refuse}")
    only_added = "EXECUTE FUNCTION ampref_refuse('the audit log is only added to')"
    op.execute(f"CREATE TRIGGER audit_events_kept BEFORE UPDATE OR DELETE ON audit_events FOR EACH ROW {only_added}")
    op.execute(f"CREATE TRIGGER audit_events_not_emptied BEFORE TRUNCATE ON audit_events FOR EACH STATEMENT {only_added}")


def downgrade() -> None:
    # Triggers and indexes go with their tables.
    for table in _TABLES:
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION ampref_refuse()")
        op.execute("DROP FUNCTION ampref_refuse_if_locked()")
