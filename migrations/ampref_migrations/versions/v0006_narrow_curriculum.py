"""The curriculum holds what a query filters and sorts by, one row for each clip and mode; clips and rollouts hold the rest.

The sort column's index has the other filters in it (tier, robot, mode, duration), and the clip's best row is marked instead of
being there twice.

Revision: 0006; follows 0005.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_METRICS = (
    "mean_sum_fn_over_mg",
    "p10_sum_fn_over_mg",
    "p90_stab_force_over_mg",
    "unloaded_frame_rate",
    "contact_rate",
    "left_foot_contact_rate",
    "right_foot_contact_rate",
    "both_feet_contact_rate",
    "no_feet_contact_rate",
    "height_mean",
    "height_std",
    "height_variance",
    "height_min",
    "height_max",
    "p95_pitch_deg",
    "p95_roll_deg",
    "max_tilt_deg",
    "nonfoot_contact_rate",
    "slip_rate",
    "actuator_saturation_rate",
    "joint_rmse_rad",
    "root_drift_m",
    "contact_agreement",
    "finite_frame_rate",
    "solver_warnings",
    "fell_at_frame",
)
_SORT_COLUMNS = ("created_at", "duration_sec", *_METRICS)
_COVERED_COLUMNS = ("best", "mode", "tier", "robot", "duration_sec")
_OF_CLIP = (
    "name",
    "robot_digest",
    "source_digest",
    "source_format",
    "size",
    "frames_in",
    "fps_in",
    "parent_id",
    "parent_digest",
    "ancestor_digest",
    "augmentation",
)
_OF_ROLLOUT = ("recipe_digest", "mode", "tier_reason", "frames")
_COMMON = ("clip_id", "rollout_id", "tier", "robot", "created_at", "duration_sec", "name_folded", *_METRICS)


def _text(length: int) -> Any:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def _constraints(*key: str) -> list[sa.schema.SchemaItem]:
    return [
        sa.ForeignKeyConstraint(["clip_id"], ["clips.id"], name=op.f("fk_curriculum_clip_id_clips"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollouts.id"], name=op.f("fk_curriculum_rollout_id_rollouts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint(*key, name=op.f("pk_curriculum")),
    ]


def _metric_columns() -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Integer() if name == "fell_at_frame" else sa.Double(), nullable=True) for name in _METRICS]


def upgrade() -> None:
    common = ", ".join(f"c.{name}" for name in _COMMON)
    # A row of a mode is its clip's best where the clip's row of all modes ('*') has the same rollout.
    op.execute(
        f"CREATE TEMPORARY TABLE curriculum_rows AS SELECT {common}, COALESCE(c.mode, '') AS mode, "
        "CASE WHEN b.rollout_id = c.rollout_id OR c.rollout_id IS NULL THEN 1 ELSE 0 END AS best "
        "FROM curriculum AS c JOIN curriculum AS b ON b.clip_id = c.clip_id AND b.scope = '*' "
        "WHERE c.scope <> '*' OR c.rollout_id IS NULL"
    )
    op.drop_table("curriculum")
    op.create_table(
        "curriculum",
        sa.Column("clip_id", _text(40), nullable=False),
        sa.Column("mode", _text(40), nullable=False),
        sa.Column("best", sa.Integer(), nullable=False),
        sa.Column("tier", sa.Integer(), nullable=True),
        sa.Column("robot", _text(200), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("duration_sec", sa.Double(), nullable=False),
        *_metric_columns(),
        sa.Column("name_folded", _text(400), nullable=False),
        sa.Column("rollout_id", _text(40), nullable=True),
        *_constraints("clip_id", "mode"),
    )
    columns = ", ".join((*_COMMON, "mode", "best"))
    # In the order of the clips, which is the order that the table would have grown in.
    op.execute(f"INSERT INTO curriculum ({columns}) SELECT {columns} FROM curriculum_rows ORDER BY clip_id, mode")
    op.execute("DROP TABLE curriculum_rows")
    for name in _SORT_COLUMNS:
        covered = [column for column in _COVERED_COLUMNS if column != name]
        op.create_index(f"ix_curriculum_{name}", "curriculum", [name, "clip_id", *covered], unique=False)
    for name in ("mode", "tier", "robot", "rollout_id"):
        op.create_index(f"ix_curriculum_{name}", "curriculum", [name], unique=False)
    op.create_index(
        "uq_curriculum_best",
        "curriculum",
        ["clip_id"],
        unique=True,
        sqlite_where=sa.text("best = 1"),
        postgresql_where=sa.text("best = 1"),
    )


def downgrade() -> None:
    op.execute("CREATE TEMPORARY TABLE curriculum_rows AS SELECT * FROM curriculum")
    op.drop_table("curriculum")
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
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("frames_in", sa.Integer(), nullable=False),
        sa.Column("fps_in", sa.Double(), nullable=False),
        sa.Column("recipe_digest", _text(80), nullable=True),
        sa.Column("mode", _text(40), nullable=True),
        sa.Column("tier_reason", sa.String(), nullable=True),
        sa.Column("frames", sa.Integer(), nullable=True),
        sa.Column("scored_at", sa.Double(), nullable=True),
        sa.Column("parent_id", _text(40), nullable=True),
        sa.Column("parent_digest", _text(80), nullable=True),
        sa.Column("ancestor_digest", _text(80), nullable=True),
        sa.Column("augmentation", _text(200), nullable=True),
        *_constraints("scope", "clip_id"),
    )
    if op.get_bind().dialect.name == "sqlite":
        tags, options = "group_concat(tag)", "p.read_options"
    else:
        tags, options = "string_agg(tag, ',')", "CAST(p.read_options AS VARCHAR)"
    op.execute(
        f"CREATE TEMPORARY TABLE curriculum_tags AS SELECT clip_id, ',' || {tags} || ',' AS tags "
        "FROM (SELECT clip_id, tag FROM clip_tags ORDER BY clip_id, tag) AS ordered GROUP BY clip_id"
    )
    names = ("scope", *_COMMON, *_OF_CLIP, *_OF_ROLLOUT, "read_options", "scored_at", "tags")
    values = [f"c.{name}" for name in _COMMON] + [f"p.{name}" for name in _OF_CLIP] + [f"r.{name}" for name in _OF_ROLLOUT]
    values += [options, "r.created_at", "COALESCE(t.tags, '')"]
    for scope, rows in (("'*'", "c.best = 1"), ("c.mode", "c.mode <> ''")):
        op.execute(
            f"INSERT INTO curriculum ({', '.join(names)}) SELECT {scope}, {', '.join(values)} FROM curriculum_rows AS c "
            "JOIN clips AS p ON p.id = c.clip_id LEFT JOIN rollouts AS r ON r.id = c.rollout_id "
            f"LEFT JOIN curriculum_tags AS t ON t.clip_id = c.clip_id WHERE {rows}"
        )
    for table in ("curriculum_rows", "curriculum_tags"):
        op.execute(f"DROP TABLE {table}")
    op.create_index("ix_curriculum_clip_id", "curriculum", ["clip_id"], unique=False)
    op.create_index("ix_curriculum_rollout_id", "curriculum", ["rollout_id"], unique=False)
    for name in ("parent_id", "robot", "tier", *_SORT_COLUMNS):
        op.create_index(f"ix_curriculum_{name}", "curriculum", ["scope", name, "clip_id"], unique=False)
