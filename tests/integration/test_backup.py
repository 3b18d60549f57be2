"""A backup beside a running service, and everything of it in an empty place, on both databases and from one to the other."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from catalogkit import add_clip, add_rollout, lock, opened
from sqlalchemy import MetaData, exc, select, text
from test_client_service import running
from workerkit import Bench, script, settings_for

from amp_core.cli import main as cli
from amp_core.client import pull
from amp_core.errors import AmprefError, Conflict, IntegrityError, NotFound
from ampref_service import backup as backups
from ampref_service.app import create_app
from ampref_service.backup import Backup, read_backup, restore_backup, verify_backup, write_backup
from ampref_service.blobs import LocalBlobStore, open_blobs
from ampref_service.catalog import Catalog, blob_refs, clips, datasets, keys, locking, schema, webhooks
from ampref_service.catalog.records import EventFilter, Select
from ampref_service.catalog.tables import metadata
from ampref_service.jobs import JobQueue
from ampref_service.keys import SCOPES, make_bounds, make_key
from ampref_service.server import listen, make_server
from ampref_service.settings import Settings

# The version is locked without the ten tests.
pytestmark = pytest.mark.filterwarnings("ignore:.* is not ready for training:amp_core.client.DatasetWarning")


def rows_of(catalog: Catalog) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table that this release has, in the order of its key."""
    with catalog.session() as session:
        return {
            table.name: [dict(row) for row in session.execute(select(table).order_by(*table.primary_key)).mappings()]
            for table in metadata.sorted_tables
        }


def missing_blobs(catalog: Catalog, store: Any) -> list[str]:
    """Every blob that the rows name and that is not there byte for byte."""
    missing = []
    with catalog.session() as session:
        for digest in blob_refs.list_all(session):
            try:
                store.verify(digest)
            except AmprefError:
                missing.append(digest)
    return missing


@pytest.fixture
def other_url(tmp_path: Path, database_url: str, request: pytest.FixtureRequest) -> str:
    """An empty database of the other kind."""
    return str(request.getfixturevalue("pg_empty")) if "sqlite" in database_url else f"sqlite:///{tmp_path / 'r.sqlite3'}"


@pytest.fixture
def bench(tmp_path: Path, database_url: str) -> Iterator[Bench]:
    value = Bench(settings_for(tmp_path, database_url))
    yield value
    value.close()


@pytest.fixture
def small(tmp_path: Path, sqlite_url: str) -> Iterator[Bench]:
    """Two clips that wait to be scored, on SQLite."""
    value = Bench(settings_for(tmp_path, sqlite_url))
    value.submit_score("walk")
    value.submit_score("run")
    yield value
    value.close()


@contextlib.contextmanager
def uploading(bench: Bench) -> Iterator[None]:
    """Uploads that go on while the block runs; some have been accepted when it begins."""
    stop, begun = threading.Event(), threading.Event()

    def upload() -> None:
        number = 0
        while not stop.is_set():
            bench.submit_score(f"upload {number}", slip_rate=number / 1000)
            number += 1
            if number == 3:
                begun.set()

    thread = threading.Thread(target=upload)
    thread.start()
    try:
        assert begun.wait(60)
        yield
    finally:
        stop.set()
        thread.join()


def test_all_of_a_running_service_comes_back_in_an_empty_place(
    bench: Bench, other_url: str, tmp_path: Path, sqlite_template: Path
) -> None:
    folder = tmp_path / "backups" / "ampref"
    walk = bench.submit_score("walk")
    with bench.worker():
        bench.wait(walk)
        with bench.catalog.begin() as session:
            _, lock_job = locking.begin_version(session, "walk", "1.0.0", Select("wildrobot"))
        assert bench.wait(lock_job).state == "succeeded"
    with bench.catalog.begin() as session:
        assert walk.clip_id is not None
        clips.add_tags(session, walk.clip_id, ["slow", "füße"])
        version = datasets.set_alias(session, "walk", "best", "1.0.0")
        datasets.yank_version(session, "walk", "1.0.0", "for the test")
        text_of_key, key = make_key("alice", tuple(SCOPES), make_bounds((), ()))
        keys.add_key(session, key, actor="a test")
        hook: dict[str, Any] = {"owner": "", "key_id": None, "actor": "a test", "host": "hooks.example.org"}
        webhooks.add(session, "https://hooks.example.org/x", "whsec_eA==", EventFilter(), **hook)
    claim = JobQueue(bench.catalog).claim("a worker that is lost") if bench.submit_score("run") else None
    assert claim is not None

    with uploading(bench):
        first = write_backup(bench.catalog, bench.blobs, folder)
    assert verify_backup(first) == []
    assert first.tables["clips"] >= 2 + 3
    second = write_backup(bench.catalog, bench.blobs, folder)
    assert second.copied == second.num_blobs - first.num_blobs
    assert [path.name for path in folder.glob("catalog-*")] == [second.catalog]
    assert (folder.stat().st_mode & 0o777, (folder / second.catalog).stat().st_mode & 0o777) == (0o700, 0o700)

    settings = settings_for(tmp_path / "restored", other_url, port=0)
    store = open_blobs(settings.blob_url)
    assert restore_backup(read_backup(folder), settings.database_url, store, keep_webhooks=True) == []
    with opened(settings.database_url) as catalog:
        assert missing_blobs(catalog, store) == []
        before, after = rows_of(bench.catalog), rows_of(catalog)
        assert after["audit_events"].pop()["action"] == "catalog.restore"
        [running_job] = [row for row in before["jobs"] if row["state"] == "running"]
        [queued_job] = [row for row in after["jobs"] if row["id"] == running_job["id"]]
        assert (queued_job["state"], queued_job["attempts"], queued_job["lease_until"]) == ("queued", 0, None)
        changed = ("state", "attempts", "lease_until", "not_before", "updated_at", "message", "token", "revision")
        before["workers"] = []  # Those of another place.
        running_job.update({name: queued_job[name] for name in changed})
        assert after == before

        # The catalog guards its versions and its log, and numbers go on.
        for statement in ("DELETE FROM version_files", "UPDATE audit_events SET actor = 'x'"):
            with pytest.raises(exc.DatabaseError), catalog.begin() as session:
                session.execute(text(statement))
        with catalog.begin() as session:
            datasets.unyank_version(session, "walk", "1.0.0")
        assert len({row["id"] for row in rows_of(catalog)["audit_events"]}) == len(before["audit_events"]) + 2
        again = JobQueue(catalog).claim("a worker of the new place")
        assert again is not None
        assert again.job.attempts == 1

    listener = listen(settings)
    with running(make_server(create_app(settings), settings), listener):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        pulled = pull("walk==1.0.0", url=url, manifest_sha256=version.manifest_digest, token=text_of_key, cache_dir=tmp_path)
    assert pulled.version == "1.0.0"


def test_what_is_deleted_while_it_is_copied_is_in_no_backup(small: Bench, tmp_path: Path) -> None:
    class Store(LocalBlobStore):
        """Deletes the clip whose blob is about to be copied, as a request and the collector of garbage may."""

        deletions = 1

        def iter_verified(self, digest: str) -> Iterator[bytes]:
            if self.deletions:
                self.deletions -= 1
                with small.catalog.begin() as session:
                    clip = session.execute(select(metadata.tables["clips"].c.id).where(text(f"blob_digest = '{digest}'")))
                    clips.delete_clip(session, clip.scalar_one())
                self.delete(digest)
            return super().iter_verified(digest)

    made = write_backup(small.catalog, Store(small.settings.data_dir / "blobs"), tmp_path / "backup")
    assert (made.tables["clips"], made.num_blobs, made.absent) == (1, 1, ())
    assert verify_backup(made) == []


def previous_revision() -> str:
    script = ScriptDirectory.from_config(schema.config()).get_revision(schema.head())
    assert script is not None
    assert isinstance(script.down_revision, str)
    return script.down_revision


def test_a_backup_of_an_older_release_is_migrated(
    database_url: str, other_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalBlobStore(tmp_path / "store")
    revision = previous_revision()
    with opened(database_url) as catalog, opened(other_url) as copy:
        add_rollout(catalog, add_clip(catalog, "walk", tags=["a"]))
        lock(catalog)
        schema.downgrade(database_url, revision)
        old = MetaData()
        old.reflect(catalog.engine)
        old.remove(old.tables["alembic_version"])
        with monkeypatch.context() as release:
            release.setattr(backups, "metadata", old)
            release.setattr(backups, "blob_refs", SimpleNamespace(list_all=lambda _: [], unreferenced=lambda *_: set()))
            release.setattr(schema, "head", lambda: revision)
            made = write_backup(catalog, store, tmp_path / "backup")
        assert made.schema == revision
        restore_backup(made, other_url, store)  # Clips and files of this test have no bytes.
        schema.upgrade(database_url)
        schema.check(copy)
        before, after = rows_of(catalog), rows_of(copy)
        assert after["audit_events"].pop()["action"] == "catalog.restore"
        assert after == before


def test_a_backup_of_a_newer_release_is_refused(small: Bench, tmp_path: Path) -> None:
    made = write_backup(small.catalog, small.blobs, tmp_path / "backup")
    manifest = tmp_path / "backup" / "backup.json"
    manifest.write_text(json.dumps(made.to_dict() | {"schema": "9999", "release": "99.0"}))
    with pytest.raises(Conflict, match=r"schema 9999 of release 99\.0"):
        restore_backup(read_backup(tmp_path / "backup"), f"sqlite:///{tmp_path}/r.sqlite3", small.blobs)


def test_only_an_empty_database_is_restored_into(small: Bench, tmp_path: Path) -> None:
    made = write_backup(small.catalog, small.blobs, tmp_path / "backup")
    before = rows_of(small.catalog)
    with pytest.raises(Conflict, match="holds a catalog already"):
        restore_backup(made, small.settings.database_url, small.blobs)
    assert rows_of(small.catalog) == before
    # Migrated and without rows is empty, too.
    url = f"sqlite:///{tmp_path / 'migrated.sqlite3'}"
    schema.upgrade(url)
    assert restore_backup(made, url, open_blobs((tmp_path / "store").as_uri())) == []


def rot(path: Path) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.fixture
def made(small: Bench, tmp_path: Path) -> Backup:
    return write_backup(small.catalog, small.blobs, tmp_path / "backup")


@pytest.mark.parametrize("damage", [rot, Path.unlink, lambda path: (path.chmod(0o600), path.write_bytes(b""))])
def test_a_damaged_blob_is_told_and_not_restored(made: Backup, tmp_path: Path, damage: Any) -> None:
    digest, _, path = next(made.iter_blobs())
    damage(path)
    [fault] = verify_backup(made)
    assert fault.file == str(path)
    assert digest in fault.what
    url, store = f"sqlite:///{tmp_path / 'r.sqlite3'}", open_blobs((tmp_path / "store").as_uri())
    with pytest.raises(IntegrityError, match=rf"1 of 2 blobs.*no row was restored.*{digest}"):
        restore_backup(made, url, store)
    [fault] = restore_backup(made, url, store, allow_missing=True)
    with opened(url) as catalog:
        assert missing_blobs(catalog, store) == [digest]


@pytest.mark.parametrize("damage", [rot, Path.unlink])
@pytest.mark.parametrize("name", ["clips.jsonl.gz", "blobs.jsonl.gz"])
def test_damaged_rows_are_never_restored(made: Backup, tmp_path: Path, damage: Any, name: str) -> None:
    damage(made.folder / made.catalog / name)
    for attempt in (
        lambda: verify_backup(made),
        lambda: restore_backup(made, f"sqlite:///{tmp_path / 'r.sqlite3'}", open_blobs("memory://"), allow_missing=True),
    ):
        with pytest.raises(IntegrityError, match=f"{name}: a file of the backup is damaged or missing"):
            attempt()


def test_what_the_store_has_lost_is_told_and_kept_from_an_earlier_backup(small: Bench, tmp_path: Path) -> None:
    early = write_backup(small.catalog, small.blobs, tmp_path / "early")
    blobs = small.settings.data_dir / "blobs"
    (lost, _, _), (rotten, _, _) = early.iter_blobs()
    for digest, damage in ((lost, Path.unlink), (rotten, rot)):
        damage(blobs / f"sha256/{digest[7:9]}/{digest[9:]}")
    later = write_backup(small.catalog, small.blobs, tmp_path / "later")
    assert (later.num_blobs, sorted(later.absent)) == (0, sorted([lost, rotten]))
    assert len(verify_backup(read_backup(tmp_path / "later"))) == 2
    again = write_backup(small.catalog, small.blobs, tmp_path / "early")
    assert (again.num_blobs, again.absent) == (2, ())
    assert verify_backup(again) == []


def test_a_truncated_blob_costs_no_good_copy(small: Bench, tmp_path: Path) -> None:
    """As a loss of power leaves files."""
    early = write_backup(small.catalog, small.blobs, tmp_path / "early")
    digest = next(early.iter_blobs())[0]
    path = small.settings.data_dir / "blobs" / f"sha256/{digest[7:9]}/{digest[9:]}"
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size - 1)
    again = write_backup(small.catalog, small.blobs, tmp_path / "early")
    assert (again.absent, verify_backup(again)) == ((), [])
    # The other way round: the copy is the one that is cut.
    copy = tmp_path / "early" / "blobs" / f"sha256/{digest[7:9]}/{digest[9:]}"
    small.blobs.put_bytes(copy.read_bytes())
    copy.chmod(0o600)
    os.truncate(copy, 1)
    assert verify_backup(write_backup(small.catalog, small.blobs, tmp_path / "early")) == []


DYING = """
import os, resource, signal, sys
from pathlib import Path
from ampref_service import backup
from ampref_service.blobs import LocalBlobStore, open_blobs
from ampref_service.catalog import Catalog
from ampref_service.settings import Settings

end, folder = sys.argv[1], Path(sys.argv[2])
settings = Settings.load()
catalog, blobs = Catalog.open(settings.database_url), open_blobs(settings.blob_url)
if end == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
if end == "kill":
    put_chunks = LocalBlobStore.put_chunks
    def put_and_die(*arguments):
        put_chunks(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    LocalBlobStore.put_chunks = put_and_die
if end == "restore":
    backup.audit.record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    backup.restore_backup(backup.read_backup(folder), settings.database_url, blobs)
try:
    backup.write_backup(catalog, blobs, folder)
except Exception as error:
    print(type(error).__name__, error)
    sys.exit(7)
"""


def interrupt(settings: Settings, end: str, folder: Path) -> tuple[int, str]:
    """Run what does not come to its end; the exit code and the output."""
    log = folder.with_suffix(".log")
    settings.data_dir.parent.mkdir(exist_ok=True)
    with script(DYING, settings, end, str(folder), log=log) as process:
        return process.wait(120), log.read_text()


def test_a_backup_that_is_killed_is_the_one_before(small: Bench, made: Backup) -> None:
    small.submit_score("more")
    code, output = interrupt(small.settings, "kill", made.folder)
    assert code == -signal.SIGKILL, output
    assert read_backup(made.folder).to_dict() == made.to_dict()
    assert verify_backup(read_backup(made.folder)) == []
    assert write_backup(small.catalog, small.blobs, made.folder).num_blobs == 3


def test_a_full_disk_is_told_and_leaves_no_backup(small: Bench, tmp_path: Path) -> None:
    small.submit("score a clip of 5 kB " + "x" * 5000)
    folder = tmp_path / "full"
    code, output = interrupt(small.settings, "full", folder)
    assert code == 7, output
    assert f"DiskFull no space left in {folder}" in output
    with pytest.raises(NotFound, match="no complete backup is there"):
        read_backup(folder)
    assert write_backup(small.catalog, small.blobs, folder).num_blobs == 3


def test_a_restore_that_is_killed_is_run_again(made: Backup, tmp_path: Path, empty_database_url: str) -> None:
    settings = settings_for(tmp_path / "restored", empty_database_url)
    code, output = interrupt(settings, "restore", made.folder)
    assert code == -signal.SIGKILL, output
    store = open_blobs(settings.blob_url)
    assert restore_backup(made, settings.database_url, store) == []
    with opened(settings.database_url) as catalog:
        assert missing_blobs(catalog, store) == []


def test_a_folder_of_something_else_is_left_alone(small: Bench, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(Conflict, match=r"holds something that is no backup.*thesis\.tex"):
        write_backup(small.catalog, small.blobs, tmp_path)
    assert not (tmp_path / "backup.json").exists()


def test_what_only_looks_like_a_backups_own_is_left_alone(small: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    write_backup(small.catalog, small.blobs, folder)
    strangers = [folder / "catalog-photos" / "a.jpg", folder / "catalog-2024.csv", folder / "blobs" / "tmp" / "mine.txt"]
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        for old in (path, path.parent):
            os.utime(old, (0, 0))
    write_backup(small.catalog, small.blobs, folder)
    assert all(path.exists() for path in strangers)


def test_the_commands(
    small: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AMPREF_DATABASE_URL", small.settings.database_url)
    folder = tmp_path / "backup"
    assert cli.run(["backup", str(folder), "--data-dir", str(small.settings.data_dir), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["tables"]["clips"], document["blobs"]["count"], document["faults"]) == (2, 2, [])
    assert cli.run(["backup", str(folder), "--verify"]) == 0
    assert re.search(r"2 clips.*\n  verified   every byte\n", capsys.readouterr().out, re.DOTALL)
    for words in ("copied     2 blobs\n", "copied     0 blobs; the others were there\n"):
        assert cli.run(["backup", str(tmp_path / "other"), "--data-dir", str(small.settings.data_dir)]) == 0
        assert words in capsys.readouterr().out
    for inside in (small.settings.data_dir, small.settings.data_dir / "x" / "y"):
        assert cli.run(["backup", str(inside), "--data-dir", str(small.settings.data_dir)]) == 1
        assert "within what it is a backup of" in capsys.readouterr().err
    assert not (small.settings.data_dir / "x").exists()
    monkeypatch.delenv("AMPREF_DATABASE_URL")
    assert cli.run(["restore", str(folder), "--data-dir", str(tmp_path / "restored")]) == 0
    assert cli.run(["restore", str(folder), "--data-dir", str(tmp_path / "restored")]) == 1
    assert "holds a catalog already" in capsys.readouterr().err
    assert cli.run(["backup", str(tmp_path / "restored-backup"), "--data-dir", str(tmp_path / "restored"), "-q"]) == 0
    shutil.rmtree(tmp_path / "restored" / "blobs")
    assert cli.run(["backup", str(tmp_path / "no-blobs"), "--data-dir", str(tmp_path / "restored")]) == 1
    assert "the service's store lacks the blob sha256:" in capsys.readouterr().err
    assert cli.run(["backup", str(tmp_path / "no-blobs"), "--verify"]) == 1
    assert cli.run(["restore", str(tmp_path / "no-blobs"), "--data-dir", str(tmp_path / "third")]) == 1
    assert cli.run(["restore", str(tmp_path / "no-blobs"), "--data-dir", str(tmp_path / "third"), "--allow-missing"]) == 1
    assert cli.run(["restore", str(tmp_path / "nowhere"), "--data-dir", str(tmp_path / "fourth")]) == 1
    assert "no complete backup is there" in capsys.readouterr().err


def test_a_restored_copy_sends_nothing_to_webhooks_until_it_is_told(
    small: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small.catalog.begin() as session:
        facts: dict[str, Any] = {"owner": "", "key_id": None, "actor": "a test", "host": "hooks.example.org"}
        hook = webhooks.add(session, "https://hooks.example.org/x", "whsec_eA==", EventFilter(), **facts)
        webhooks.request_test(session, hook.id)
    small.submit_score("an event that was not delivered")
    write_backup(small.catalog, small.blobs, tmp_path / "backup")
    for folder, options in (("copy", []), ("successor", ["--keep-webhooks"])):
        assert cli.run(["restore", str(tmp_path / "backup"), "--data-dir", str(tmp_path / folder), *options]) == 0
        out = capsys.readouterr().out
        assert "those that waited or ran in the backup are run here" in out
        with opened(f"sqlite:///{tmp_path / folder / 'catalog.sqlite3'}") as catalog, catalog.begin() as session:
            copy = webhooks.get(session, hook.id)
            assert (copy.state, webhooks.is_due(session), "quarantined" in out) == (
                ("active", True, False) if options else ("quarantined", False, True)
            )
            if not options:
                assert "restored from a backup" in (copy.reason or "")
                webhooks.retry(session, hook.id, actor="operator")
                assert webhooks.get(session, hook.id).position == hook.position
