"""The curriculum has a row for each clip, mode and gate profile, and a superseded profile's verdict is no longer a clip's best.

The rows are made anew from the rollouts, because the best rollouts of earlier releases were ranked without their profile.

Revision: 0009; follows 0008.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_OF_CLIP = ("robot", "created_at", "duration_sec", "name_folded")
_COVERED_COLUMNS = ("best", "best_in_mode", "mode", "tier", "robot", "duration_sec")
_MARKS = ("best_in_mode", "best_by_profile")
GATE_PROFILE = "amp-0.12"
SUPERSEDED_PROFILES = ("amp-0.11",)
_ORDER = (
    f"p.scaled, CASE WHEN r.gate_profile IN ({', '.join(map(repr, SUPERSEDED_PROFILES))}) THEN 1 ELSE 0 END, "
    "CASE r.tier WHEN 0 THEN 0 WHEN 1 THEN 1 ELSE 2 END, "
    "CASE r.mode WHEN 'assisted' THEN 1 WHEN 'teacher_forced' THEN 2 ELSE 0 END, "
    "CASE WHEN r.tier = 0 THEN 0 ELSE -COALESCE(s.frames, 0) END, "
    f"CASE WHEN r.gate_profile = '{GATE_PROFILE}' THEN 0 ELSE 1 END, r.created_at DESC, r.id DESC"
)
"""The best rollout of a clip first."""


def _text(length: int) -> Any:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def _list_metrics() -> list[str]:
    """The metrics that the curriculum has by now: the columns that it shares with the rollouts, but for other kinds."""
    inspector = sa.inspect(op.get_bind())
    names, of_rollouts = ([column["name"] for column in inspector.get_columns(table)] for table in ("curriculum", "rollouts"))
    return [name for name in names if name in set(of_rollouts) - {"clip_id", "mode", "gate_profile", "tier", *_OF_CLIP}]


def _create_table(key: tuple[str, ...], profile_columns: list[sa.Column[Any]], metrics: list[str]) -> None:
    """The curriculum without its indexes."""
    op.create_table(
        "curriculum",
        sa.Column("clip_id", _text(40), nullable=False),
        sa.Column("mode", _text(40), nullable=False),
        sa.Column("best", sa.Integer(), nullable=False),
        *profile_columns,
        sa.Column("tier", sa.Integer(), nullable=True),
        sa.Column("robot", _text(200), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("duration_sec", sa.Double(), nullable=False),
        *(sa.Column(name, sa.Integer() if name == "fell_at_frame" else sa.Double(), nullable=True) for name in metrics),
        sa.Column("name_folded", _text(400), nullable=False),
        sa.Column("rollout_id", _text(40), nullable=True),
        sa.ForeignKeyConstraint(["clip_id"], ["clips.id"], name=op.f("fk_curriculum_clip_id_clips"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollouts.id"], name=op.f("fk_curriculum_rollout_id_rollouts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint(*key, name=op.f("pk_curriculum")),
    )


def _create_indexes(covered_columns: tuple[str, ...], metrics: list[str], *filters: str) -> None:
    for name in ("created_at", "duration_sec", *metrics):
        covered = [column for column in covered_columns if column != name]
        op.create_index(f"ix_curriculum_{name}", "curriculum", [name, "clip_id", *covered], unique=False)
    for name in ("mode", "tier", "robot", "rollout_id", *filters):
        op.create_index(f"ix_curriculum_{name}", "curriculum", [name], unique=False)
    op.create_index(
        "uq_curriculum_best",
        "curriculum",
        ["clip_id"],
        unique=True,
        sqlite_where=sa.text("best = 1"),
        postgresql_where=sa.text("best = 1"),
    )


def upgrade() -> None:
    metrics = _list_metrics()
    # The names were folded by Python, which knows more letters than SQL does.
    op.execute(f"CREATE TEMPORARY TABLE curriculum_clips AS SELECT DISTINCT clip_id, {', '.join(_OF_CLIP)} FROM curriculum")
    op.drop_table("curriculum")
    marks = [sa.Column(name, sa.Integer(), nullable=False) for name in _MARKS]
    _create_table(("clip_id", "mode", "gate_profile"), [sa.Column("gate_profile", _text(100), nullable=False), *marks], metrics)
    places = ", ".join(
        f"ROW_NUMBER() OVER (PARTITION BY r.clip_id{scope} ORDER BY {_ORDER}) AS {name}"
        for name, scope in (
            ("place", ""),
            ("place_in_mode", ", r.mode"),
            ("place_by_profile", ", r.gate_profile"),
            ("place_of_both", ", r.mode, r.gate_profile"),
        )
    )
    names = ("clip_id", "mode", "gate_profile", "tier", "rollout_id", *metrics, *_OF_CLIP, "best", *_MARKS)
    values = ["r.clip_id", "r.mode", "r.gate_profile", "r.tier", "r.id", *(f"r.{name}" for name in metrics)]
    values += [f"c.{name}" for name in _OF_CLIP]
    values += [f"CASE WHEN r.{place} = 1 THEN 1 ELSE 0 END" for place in ("place", "place_in_mode", "place_by_profile")]
    # In the order of the clips, which is the order that the table would have grown in.
    op.execute(
        f"INSERT INTO curriculum ({', '.join(names)}) SELECT {', '.join(values)} FROM "
        f"(SELECT r.*, {places} FROM rollouts AS r JOIN recipes AS p ON p.digest = r.recipe_digest LEFT JOIN "
        '(SELECT rollout_id, SUM("end" - start) AS frames FROM segments WHERE tier = 0 GROUP BY rollout_id) AS s '
        "ON s.rollout_id = r.id) AS r JOIN curriculum_clips AS c ON c.clip_id = r.clip_id WHERE r.place_of_both = 1 "
        "ORDER BY r.clip_id, r.mode, r.gate_profile"
    )
    columns = ", ".join(("clip_id", *_OF_CLIP))
    op.execute(
        f"INSERT INTO curriculum ({columns}, mode, gate_profile, best, {', '.join(_MARKS)}) SELECT {columns}, '', '', 1, 1, 1 "
        "FROM curriculum_clips WHERE clip_id NOT IN (SELECT clip_id FROM rollouts) ORDER BY clip_id"
    )
    op.execute("DROP TABLE curriculum_clips")
    _create_indexes(_COVERED_COLUMNS, metrics, "gate_profile")


def downgrade() -> None:
    metrics = _list_metrics()
    op.execute("CREATE TEMPORARY TABLE curriculum_rows AS SELECT * FROM curriculum WHERE best_in_mode = 1")
    op.drop_table("curriculum")
    _create_table(("clip_id", "mode"), [], metrics)
    names = ", ".join(("clip_id", "mode", "best", "tier", "rollout_id", *metrics, *_OF_CLIP))
    op.execute(f"INSERT INTO curriculum ({names}) SELECT {names} FROM curriculum_rows ORDER BY clip_id, mode")
    op.execute("DROP TABLE curriculum_rows")
    _create_indexes(tuple(name for name in _COVERED_COLUMNS if name != "best_in_mode"), metrics)
