"""One history of migrations, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from catalogkit import Clock, add_clip, add_rollout, opened, recipe, result
from sqlalchemy import column, event, insert, inspect, select, text, update
from sqlalchemy import table as lightweight
from starlette.testclient import TestClient

from amp_core.errors import DiskFull, Unavailable
from amp_core.lineage import Lineage
from amp_core.metrics import METRICS
from amp_core.recipe import GATE_PROFILE
from amp_core.tiers import SUPERSEDED_PROFILES
from ampref_migrations.versions import v0009_profiles
from ampref_service.app import create_app
from ampref_service.catalog import Catalog, Session, audit, schema
from ampref_service.catalog.records import Segment
from ampref_service.catalog.tables import METRIC_COLUMNS, audit_events, curriculum, metadata, recipes, rollouts
from ampref_service.settings import Settings

ROOT = Path(__file__).parents[2]


def tables(url: str) -> set[str]:
    catalog = Catalog.open(url)
    try:
        return set(inspect(catalog.engine).get_table_names())
    finally:
        catalog.close()


def test_up_and_down_and_up_again(empty_database_url: str) -> None:
    assert schema.upgrade(empty_database_url) == schema.head()
    assert tables(empty_database_url) == {*metadata.tables, "alembic_version"}
    assert schema.upgrade(empty_database_url) == schema.head(), "upgrading twice must do nothing"
    assert schema.downgrade(empty_database_url, "base") == "base"
    assert tables(empty_database_url) == {"alembic_version"}
    assert schema.upgrade(empty_database_url) == schema.head()


def test_every_revision_goes_up_and_down(empty_database_url: str) -> None:
    from alembic.script import ScriptDirectory

    history = ScriptDirectory.from_config(schema.config())
    revisions = [script.revision for script in history.walk_revisions()][::-1]
    # Who asks for the head reads the names of the files, without Alembic.
    assert history.get_current_head() == schema.head() == revisions[-1]
    assert all(map(schema.is_known, revisions))
    before = "base"
    for revision in revisions:
        assert schema.upgrade(empty_database_url, revision) == revision
        assert schema.downgrade(empty_database_url, before) == before
        assert schema.upgrade(empty_database_url, revision) == revision
        before = revision


def test_recipes_that_were_there_learn_whether_their_physics_is_scaled(empty_database_url: str) -> None:
    schema.upgrade(empty_database_url, "0001")
    there = {"own": {"friction": 1.0, "mass": 1}, "none": {}, "slippery": {"friction": 0.5, "mass": 1.0}}
    catalog = Catalog.open(empty_database_url)
    try:
        with catalog.begin() as session:
            for digest, physics in there.items():
                values = {"digest": digest, "mode": "rollout", "recipe": {"physics": physics}, "created_at": 0.0}
                # As revision 0001 had the table: without the new column.
                old = lightweight("recipes", *(column(name, recipes.c[name].type) for name in values))
                session.execute(insert(old).values(values))
        schema.upgrade(empty_database_url)
        with catalog.session() as session:
            found = {row.digest: row.scaled for row in session.execute(select(recipes.c.digest, recipes.c.scaled))}
        assert found == {"own": 0, "none": 0, "slippery": 1}
        schema.downgrade(empty_database_url, "0001")
        schema.upgrade(empty_database_url)
        with catalog.session() as session:
            assert session.execute(select(recipes.c.digest).where(recipes.c.scaled == 1)).scalars().all() == ["slippery"]
    finally:
        catalog.close()


def test_the_curriculum_holds_the_same_before_and_after_it_was_narrowed(database_url: str) -> None:
    def rows(session: Session, query: str) -> list[dict[str, Any]]:
        return [dict(row) for row in session.execute(text(query)).mappings()]

    with opened(database_url) as catalog:
        parent = add_clip(catalog, "walk", tags=["b", "a"], read_options={"fps": 30.0})
        variant = add_clip(catalog, "Walk+mirror", lineage=Lineage(parent.source_digest, parent.source_digest, "mirror"))
        best = add_rollout(catalog, parent, result(0), recipe())
        forced = add_rollout(catalog, parent, result(1, "teacher_forced", fell_at_frame=7), recipe("teacher_forced"))
        # Metrics that came later are not kept by a schema that has no column for them.
        schema.downgrade(database_url, "0006")
        with catalog.session() as session:
            narrow = rows(session, "SELECT * FROM curriculum ORDER BY clip_id, mode")
        assert len(narrow) == 3
        schema.downgrade(database_url, "0005")
        with catalog.session() as session:
            wide = {(row["scope"], row["clip_id"]): row for row in rows(session, "SELECT * FROM curriculum")}
        assert {key: row["rollout_id"] for key, row in wide.items()} == {
            ("*", parent.id): best.id,
            ("rollout", parent.id): best.id,
            ("teacher_forced", parent.id): forced.id,
            ("*", variant.id): None,
        }
        row = wide["teacher_forced", parent.id]
        assert (row["tags"], row["read_options"], row["scored_at"]) == (",a,b,", '{"fps":30.0}', forced.created_at)
        assert (row["tier"], row["mode"], row["tier_reason"], row["fell_at_frame"]) == (1, "teacher_forced", "because 1", 7)
        row = wide["*", variant.id]
        assert (row["name"], row["name_folded"], row["tags"], row["mode"]) == ("Walk+mirror", "walk+mirror", "", None)
        assert (row["parent_id"], row["augmentation"]) == (parent.id, "mirror")
        schema.upgrade(database_url, "0006")
        with catalog.session() as session:
            assert rows(session, "SELECT * FROM curriculum ORDER BY clip_id, mode") == narrow


def test_the_best_rollouts_of_earlier_releases_are_ranked_by_profile(database_url: str) -> None:
    """Before revision 0009 the best tier by any profile was a clip's best."""
    with opened(database_url, Clock()) as catalog:
        names = ("Ice", "squat", "run", "none")
        ice, squat, run, _ = (add_clip(catalog, name) for name in names)
        add_rollout(catalog, ice, result(1))
        add_rollout(catalog, ice, result(0, profile="amp-0.11"))
        add_rollout(catalog, ice, result(-1, "tracked"))
        add_rollout(catalog, squat, result(1, "teacher_forced", profile="amp-0.11"))
        add_rollout(catalog, squat, result(-1, segments=(Segment(0, 30, 0, 0.5),)), recipe(seed=1))
        add_rollout(catalog, squat, result(-1, segments=(Segment(0, 20, 0, 0.5),)), recipe(seed=2))
        for profile in (GATE_PROFILE, "amp-0.12-dynamic"):
            add_rollout(catalog, run, result(1, "tracked", profile=profile))
        add_rollout(catalog, run, result(0, profile="amp-0.12-dynamic", slip_rate=0.25))
        add_rollout(catalog, run, result(0), recipe(seed=3, friction=0.7))

        def rows() -> list[dict[str, Any]]:
            query = select(curriculum).order_by(curriculum.c.clip_id, curriculum.c.mode, curriculum.c.gate_profile)
            with catalog.session() as session:
                return [dict(row) for row in session.execute(query).mappings()]

        ranked = rows()
        assert [sum(row["best"] for row in ranked if row["name_folded"] == name.casefold()) for name in names] == [1] * 4
        schema.downgrade(database_url, "0008")
        with catalog.begin() as session:  # As 0.11 had it: the Tier 0 of amp-0.11 before the verdict of today.
            old = lightweight("curriculum", *(column(name) for name in ("clip_id", "mode", "tier", "rollout_id")))
            ids = select(rollouts.c.id).where(rollouts.c.clip_id == ice.id, rollouts.c.gate_profile == "amp-0.11")
            of_ice = (old.c.clip_id == ice.id, old.c.mode == "rollout")
            session.execute(update(old).where(*of_ice).values(tier=0, rollout_id=ids.scalar_subquery()))
        schema.upgrade(database_url)
        assert rows() == ranked


def test_the_last_ranking_has_the_profiles_of_this_release() -> None:
    """The catalog stores which rollout is a clip's best: other profiles need a migration that ranks them anew."""
    assert v0009_profiles.SUPERSEDED_PROFILES == SUPERSEDED_PROFILES
    assert v0009_profiles.GATE_PROFILE == GATE_PROFILE


def test_the_migrated_schema_is_the_models(database_url: str) -> None:
    catalog = Catalog.open(database_url)
    try:
        with catalog.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []
    finally:
        catalog.close()


def test_postgresql_compares_ids_by_bytes(pg_url: str) -> None:
    catalog = Catalog.open(pg_url)
    try:
        with catalog.session() as session:
            found = session.execute(
                text(
                    "SELECT DISTINCT collation_name FROM information_schema.columns WHERE table_name = 'clips' AND "
                    "column_name IN ('id', 'name')"
                )
            ).scalars()
            assert list(found) == ["C"]
    finally:
        catalog.close()


def test_every_metric_is_a_column_of_its_type() -> None:
    for table in (rollouts, curriculum):
        assert {metric.name: table.c[metric.name].type.python_type for metric in METRICS} == METRIC_COLUMNS


def test_two_processes_may_migrate_at_once(empty_database_url: str) -> None:
    code = "import sys\nfrom ampref_service.catalog import schema\nprint(schema.upgrade(sys.argv[1]))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, empty_database_url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert [out.strip() for out, _ in told] == [schema.head()] * 2
    catalog = Catalog.open(empty_database_url)
    schema.check(catalog)
    catalog.close()


def test_a_migration_that_is_killed_leaves_the_database_as_it_was(empty_database_url: str) -> None:
    # The transaction is left open at its end, where every table is made, and the process is killed there.
    code = (
        "import os, signal, sys\nfrom alembic import command\n"
        "from ampref_service.catalog import schema\nreal = command.upgrade\n"
        "def upgrade(*args):\n    real(*args)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "command.upgrade = upgrade\nschema.upgrade(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, empty_database_url], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert tables(empty_database_url) == set()
    assert schema.upgrade(empty_database_url) == schema.head()


def test_a_database_without_the_schema_says_what_to_type(empty_database_url: str) -> None:
    catalog = Catalog.open(empty_database_url)
    try:
        with pytest.raises(Unavailable, match="Run `ampref migrate`"):
            schema.check(catalog)
        with pytest.raises(Unavailable, match="Run `ampref migrate`"), catalog.session() as session:
            session.execute(select(audit_events))
    finally:
        catalog.close()


def set_revision(catalog: Catalog, revision: str) -> None:
    with catalog.begin() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def test_a_database_of_another_release_says_so(database_url: str) -> None:
    with opened(database_url) as catalog:
        set_revision(catalog, "9999")
        with pytest.raises(Unavailable, match="schema 9999, of a newer release than this one") as refusal:
            schema.check(catalog)
        assert "ampref migrate" not in str(refusal.value), "which would change nothing"


def test_a_release_goes_on_beside_the_next_one_that_has_migrated(sqlite_url: str, tmp_path: Path) -> None:
    """A revision of the same hundred is one that running code of older releases can live with."""
    with opened(sqlite_url) as catalog:
        set_revision(catalog, schema.head()[:-2] + "99")
        schema.check(catalog)
        # A copy without the newer release's tables would be no backup.
        with pytest.raises(Unavailable, match="newer release"):
            schema.check(catalog, exact=True)
    settings = Settings(data_dir=tmp_path, database_url=sqlite_url)
    with TestClient(create_app(settings)) as client:
        assert {part["name"]: part["ok"] for part in client.get("/readyz").json()["components"]}["database"] is True
        assert client.get("/v1/clips").status_code == 200
    # An old worker that is started again, as when its pod moves.
    environment = {**os.environ, "AMPREF_DATABASE_URL": sqlite_url, "AMPREF_DATA_DIR": str(tmp_path)}
    command = [str(Path(sys.executable).with_name("ampref")), "worker", "--until-empty"]
    worker = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert worker.returncode == 0, worker.stderr


def test_a_server_that_is_not_there_is_unavailable_and_its_password_is_not_told() -> None:
    catalog = Catalog.open("postgresql://somebody:secret@127.0.0.1:1/none")
    try:
        with pytest.raises(Unavailable, match="AMPREF_DATABASE_URL") as refused:
            schema.check(catalog)
        assert "secret" not in str(refused.value)
    finally:
        catalog.close()


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite3").write_bytes(b"not a database, but a text of some length" * 50)
    with pytest.raises(Unavailable):
        schema.upgrade(f"sqlite:///{tmp_path / 'x.sqlite3'}")


def test_a_full_disk_is_told_by_the_catalogs_folder(sqlite_url: str) -> None:
    catalog = Catalog.open(sqlite_url)
    event.listen(catalog.engine, "connect", lambda raw, _: raw.execute("PRAGMA max_page_count = 1"))  # no less than it has now
    try:
        with pytest.raises(DiskFull) as full, catalog.begin() as session:
            audit.record(session, "tester", "test", "test", {"long": "x" * 500_000})
        assert f"no space left for the catalog in {Path(sqlite_url.removeprefix('sqlite:///')).parent}" in str(full.value)
    finally:
        catalog.close()


def test_a_full_disk_of_the_database_server_is_told_as_one(pg_url: str) -> None:
    catalog = Catalog.open(pg_url)
    says = "DO $$ BEGIN RAISE EXCEPTION 'could not extend file \"base/1\"' USING ERRCODE = 'disk_full'; END $$"
    try:
        with (
            pytest.raises(DiskFull, match=r"no space left on the database server.*could not extend file"),
            catalog.begin() as session,
        ):
            session.execute(text(says))
    finally:
        catalog.close()


def test_sqlite_is_set_up_to_survive_and_to_share(sqlite_url: str) -> None:
    catalog = Catalog.open(sqlite_url)
    try:
        with catalog.session() as session:
            said = {
                name: session.execute(text(f"PRAGMA {name}")).scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        assert said == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
    finally:
        catalog.close()


def test_a_write_takes_its_lock_at_the_start(sqlite_url: str) -> None:
    catalog = Catalog.open(sqlite_url)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), timeout=0, isolation_level=None)
    try:
        with catalog.begin(), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        with catalog.session() as session:
            session.execute(select(audit_events))
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
    finally:
        other.close()
        catalog.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y", "nonsense", ""])
def test_a_url_that_cannot_hold_a_catalog_is_refused(url: str) -> None:
    with pytest.raises(Exception, match="expected sqlite:///FILE"):
        Catalog.open(url)
