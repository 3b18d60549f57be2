"""Thumbnails beside the jobs: drawn by a real GL in a real child, and by one that crashes."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from catalogkit import result
from PIL import Image
from sqlalchemy import delete, select
from workerkit import CHILD, RECIPE, WORKER, Bench, alive, kill, script, settings_for, wait_until

from amp_core.cli import main as cli
from amp_core.recipe import Recipe
from amp_core.render import gl
from ampref_service.backup import restore_backup, verify_backup, write_backup
from ampref_service.blobs import open_blobs
from ampref_service.catalog import Catalog, blob_refs, clips, rollouts, thumbnails
from ampref_service.catalog.records import RecipeRow
from ampref_service.catalog.tables import rollout_thumbnails
from ampref_service.damage import CatalogDamageLog
from ampref_service.garbage import delete_unreferenced
from ampref_service.integrity import scrub
from ampref_service.jobs import JobQueue
from ampref_workers import thumbnails as module
from ampref_workers.runner import Runner
from ampref_workers.sandbox import CHILD as REAL_CHILD
from ampref_workers.sweeper import making_thumbnails
from ampref_workers.thumbnails import Thumbnailer, ThumbnailsOff

FIVE = ("one", "two", "three", "four", "five")


@pytest.fixture
def bench(tmp_path: Path, database_url: str) -> Iterator[Bench]:
    with contextlib.closing(Bench(settings_for(tmp_path, database_url, thumbnails=True, job_memory_mb=2048))) as bench:
        yield bench


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(Bench(settings_for(tmp_path, thumbnails=True, job_memory_mb=2048))) as bench:
        yield bench


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GL that the misbehaving child draws with, as the bytes of an export say."""
    monkeypatch.setattr(module, "_find_platform", lambda nice: "pretended")


def never() -> bool:
    return False


def make_thumbnailer(bench: Bench, command: Any = CHILD, **robots: str) -> Thumbnailer:
    return Thumbnailer(bench.settings, bench.catalog, bench.blobs, robots or {"wildrobot": bench.robot.digest}, command)


def add_rollouts(bench: Bench, *names: str, arrays: dict[str, bytes] | None = None) -> dict[str, str]:
    """Scored clips whose exports are some bytes; their rollouts' ids by name, the oldest first."""
    queue, recipe, ids = JobQueue(bench.catalog), RecipeRow(RECIPE.digest, RECIPE.mode, RECIPE.to_dict()), {}
    for name in names:
        bench.submit_score(name)
        claim = queue.claim("a test")
        assert claim is not None
        data = (arrays or {}).get(name, name.encode())
        new = replace(result(), arrays_digest=bench.blobs.put_bytes(data), arrays_size=len(data), recipe=recipe)
        ids[name] = str((queue.complete_rollout(claim, new).result or {})["rollout_id"])
    return ids


def rows(bench: Bench) -> dict[str, Any]:
    with bench.catalog.session() as session:
        return {row.rollout_id: row for row in session.execute(select(rollout_thumbnails))}


# What is drawn


def test_a_rollout_gets_a_filmstrip_that_everybody_is_told_of(local: Bench) -> None:
    job = local.submit_motion("walk", Recipe.for_mode("rollout"), 40)
    runner = Runner(local.settings, local.catalog, local.blobs)
    assert runner.run_once() == "succeeded"
    [rollout] = local.rollouts(job.clip_id)
    assert rollout.thumbnail_url is None
    with making_thumbnails(runner, every_sec=0.05):
        wait_until(lambda: local.rollouts(job.clip_id)[0].thumbnail_digest, "it is drawn")
    [rollout] = local.rollouts(job.clip_id)
    assert rollout.thumbnail_url == f"/v1/rollouts/{rollout.id}/thumbnail"
    assert rollout.thumbnail_digest is not None
    data = local.blobs.read_bytes(rollout.thumbnail_digest)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("WEBP", (480, 96))
    assert len(data) < 20_000
    assert not list((local.settings.data_dir / "work").iterdir())


def test_the_newest_come_first_and_each_is_drawn_once(bench: Bench, pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 2)
    ids = add_rollouts(bench, *FIVE)
    order: list[str] = []
    finish = thumbnails.finish

    def note(session: Any, rollout_id: str, thumbnail: Any) -> None:
        order.append(rollout_id)
        finish(session, rollout_id, thumbnail)

    monkeypatch.setattr(thumbnails, "finish", note)
    threads = [threading.Thread(target=make_thumbnailer(bench).make_due, args=(never,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order) == sorted(ids.values())
    assert all(row.digest for row in rows(bench).values())
    make_thumbnailer(bench).make_due(never)
    assert len(order) == 5
    # One after the other they come newest first.
    with bench.catalog.begin() as session:
        thumbnails.forget(session, [row.digest for row in rows(bench).values()])
    order.clear()
    make_thumbnailer(bench).make_due(never)
    assert order == list(reversed(ids.values()))


def test_rollouts_of_earlier_releases_are_drawn_too(bench: Bench, pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "_ADOPTED_AT_ONCE", 2)
    ids = add_rollouts(bench, *FIVE)
    with bench.catalog.begin() as session:
        session.execute(delete(rollout_thumbnails))
    make_thumbnailer(bench).make_due(never)
    assert set(rows(bench)) == set(ids.values())
    assert all(row.digest for row in rows(bench).values())


def test_another_robots_rollouts_are_left_to_workers_that_have_it(bench: Bench, pretended: None) -> None:
    add_rollouts(bench, "walk")
    make_thumbnailer(bench, wildrobot="sha256:" + "0" * 64).make_due(never)
    assert [row.digest for row in rows(bench).values()] == [None]


# What goes wrong


def test_a_gl_that_crashes_costs_its_own_rollout_three_attempts_and_nothing_else(
    bench: Bench, pretended: None, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = add_rollouts(bench, *FIVE, arrays={"three": b"crash the GL"})
    make_thumbnailer(bench).make_due(never)
    result = rows(bench)
    assert [bool(result[rollout_id].digest) for rollout_id in ids.values()] == [True, True, False, True, True]
    assert result[ids["three"]].failures == 3
    assert {row.lease_until for row in result.values()} == {0.0}
    assert not alive(bench.settings.data_dir)
    make_thumbnailer(bench).make_due(never)
    assert rows(bench)[ids["three"]].failures == 3


def test_an_export_that_is_none_is_given_up_at_once(local: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up exports are not what the real child can draw."""
    add_rollouts(local, "walk")
    monkeypatch.setattr(module, "_find_platform", lambda nice: "egl")
    make_thumbnailer(local).make_due(never)
    [row] = rows(local).values()
    assert (row.digest, row.failures) == (None, 3)


def test_a_gl_that_hangs_is_ended_with_the_worker(local: Bench, pretended: None) -> None:
    add_rollouts(local, "walk", arrays={"walk": b"hang the GL"})
    runner = Runner(local.settings, local.catalog, local.blobs, command=CHILD)
    with making_thumbnails(runner, every_sec=0.05):
        wait_until(lambda: alive(local.settings.data_dir), "it hangs")
        start = time.monotonic()
    assert time.monotonic() - start < 10
    assert not alive(local.settings.data_dir)
    [row] = rows(local).values()
    assert (row.failures, row.lease_until) == (0, 0.0)


def test_a_gl_that_hangs_is_ended_by_the_clock(local: Bench, pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_SEC", 0.5)
    add_rollouts(local, "walk", arrays={"walk": b"hang the GL"})
    make_thumbnailer(local).make_due(never)
    assert next(iter(rows(local).values())).failures == 3


def test_a_damaged_export_is_a_failure_of_its_own(local: Bench, pretended: None) -> None:
    ids = add_rollouts(local, "one", "two")
    with local.catalog.session() as session:
        digest = rollouts.get(session, ids["one"]).arrays_digest
    local.blobs.delete(digest)
    make_thumbnailer(local).make_due(never)
    result = rows(local)
    assert result[ids["two"]].digest
    assert result[ids["one"]].failures == 3


def test_a_killed_worker_leaves_them_to_another_after_the_lease(
    bench: Bench, pretended: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = add_rollouts(bench, "walk")
    with bench.catalog.begin() as session:
        assert [claim.rollout_id for claim in thumbnails.claim(session, [bench.robot.digest], limit=5, lease_sec=0.5)] == [
            ids["walk"]
        ]
        assert not thumbnails.is_due(session)
        assert thumbnails.claim(session, [bench.robot.digest], limit=5, lease_sec=0.5) == []
    time.sleep(0.6)
    make_thumbnailer(bench).make_due(never)
    assert rows(bench)[ids["walk"]].digest


@pytest.mark.parametrize("fault", ["crash", "package"])
def test_without_a_gl_or_the_extra_it_is_said_once(
    local: Bench, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_rollouts(local, "walk")
    calls: list[str] = []
    if fault == "package":
        find_spec = module.importlib.util.find_spec
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "PIL" else find_spec(name))
    else:
        monkeypatch.setattr(gl, "_TRIAL", "import os; os.kill(os.getpid(), 11)")
    monkeypatch.setattr("ampref_workers.sweeper.log", SimpleNamespace(warning=lambda event, **facts: calls.append(event)))
    with pytest.raises(ThumbnailsOff, match="PIL" if fault == "package" else "crashed"):
        make_thumbnailer(local).make_due(never)
    runner = Runner(local.settings, local.catalog, local.blobs, command=CHILD)
    with making_thumbnails(runner, every_sec=0.05):
        wait_until(lambda: calls, "it is said")
        time.sleep(0.5)
    assert calls == ["thumbnails_off"]
    assert next(iter(rows(local).values())).failures == 0


def test_they_can_be_turned_off(tmp_path: Path) -> None:
    with contextlib.closing(Bench(settings_for(tmp_path, thumbnails=False))) as bench:
        add_rollouts(bench, "walk")
        names = {thread.name for thread in threading.enumerate()}
        with bench.worker():
            assert "thumbnails" not in {thread.name for thread in threading.enumerate()} - names


def test_a_worker_that_is_killed_takes_its_child_along(local: Bench) -> None:
    """With a real worker process and the real GL, killed while it draws."""
    local.submit_motion("walk", RECIPE, 40)
    runner = Runner(local.settings, local.catalog, local.blobs, command=REAL_CHILD)
    assert runner.run_once() == "succeeded"
    code = WORKER.replace(f"command={CHILD!r}", f"command={REAL_CHILD!r}")
    with script(code, local.settings) as process:
        wait_until(lambda: _thumbnail_children(process.pid), "it draws")
        [child, *_] = _thumbnail_children(process.pid)
        kill(process)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child is gone")


def _thumbnail_children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child for child in psutil.Process(pid).children() if any("thumbnails-" in part for part in child.cmdline())]
    return []


# Their blobs


def test_collection_scrub_and_fsck_know_them_and_a_lost_one_is_made_again(
    local: Bench, pretended: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = add_rollouts(local, *FIVE[:3])
    make_thumbnailer(local).make_due(never)
    digests = {name: rows(local)[ids[name]].digest for name in ids}
    with local.catalog.session() as session:
        assert set(digests.values()) <= set(blob_refs.list_all(session))
        assert set(digests.values()) <= set(blob_refs.list_after(session, "", 1000))
        assert blob_refs.list_owners(session, digests["one"]) == [f"thumbnail of rollout {ids['one']}"]
    assert not set(delete_unreferenced(local.catalog, local.blobs, grace_sec=0)) & set(digests.values())
    # Rot that the scrub finds.
    path = local.blobs.local_path(digests["one"])
    assert path is not None
    path.chmod(0o600)
    path.write_bytes(b"rot")
    scrub(local.catalog, local.blobs, mb_per_sec=0, round_days=1, end=threading.Event())
    assert rows(local)[ids["one"]].digest is None
    # A loss that fsck finds.
    local.blobs.delete(digests["two"])
    for name, value in (("AMPREF_DATA_DIR", str(local.settings.data_dir)),):
        monkeypatch.setenv(name, value)
    assert cli.run(["fsck", "--json"]) == 1
    assert cli.run(["fsck", "--repair", "--json"]) == 1
    assert rows(local)[ids["two"]].digest is None
    make_thumbnailer(local).make_due(never)
    assert {name: rows(local)[ids[name]].digest for name in ids} == digests
    assert cli.run(["fsck", "--json"]) == 0


def test_a_deleted_clip_takes_its_thumbnail_along(bench: Bench, pretended: None) -> None:
    ids = add_rollouts(bench, "walk")
    make_thumbnailer(bench).make_due(never)
    digest = rows(bench)[ids["walk"]].digest
    with bench.catalog.begin() as session:
        clip_id = rollouts.get(session, ids["walk"]).clip_id
        deletion = clips.delete_clip(session, clip_id)
    assert digest in deletion.blobs
    assert rows(bench) == {}
    assert digest in delete_unreferenced(bench.catalog, bench.blobs, grace_sec=0)
    # One that is drawn meanwhile is dropped.
    with bench.catalog.begin() as session:
        thumbnails.finish(session, ids["walk"], thumbnails.Thumbnail(digest, 5))
    assert rows(bench) == {}


def test_a_backup_has_them_and_does_without(local: Bench, pretended: None, tmp_path: Path) -> None:
    ids = add_rollouts(local, *FIVE[:3])
    make_thumbnailer(local).make_due(never)
    digests = {name: rows(local)[ids[name]].digest for name in ids}
    local.blobs.delete(digests["one"])
    backup = write_backup(local.catalog, local.blobs, tmp_path / "backup")
    assert backup.absent == ()
    [path] = [path for digest, _, path in backup.iter_blobs() if digest == digests["two"]]
    path.chmod(0o600)
    path.write_bytes(b"rot")
    assert verify_backup(backup) == []
    url = f"sqlite:///{tmp_path / 'restored.sqlite3'}"
    store = open_blobs(f"file://{tmp_path / 'blobs'}")
    assert restore_backup(backup, url, store) == []
    with contextlib.closing(Catalog.open(url)) as catalog, catalog.session() as session:
        state = {name: thumbnails.find(session, ids[name]) for name in ids}
        assert (state["one"], state["two"]) == (None, None)
        assert state["three"] is not None
        assert store.read_bytes(digests["three"])
        assert thumbnails.is_due(session)
    assert isinstance(local.blobs.damage_log, CatalogDamageLog)


def test_beside_jobs_a_batch_comes_now_and_then(local: Bench, pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = add_rollouts(local, *FIVE)
    runner = Runner(local.settings, local.catalog, local.blobs, command=CHILD)
    monkeypatch.setattr(Runner, "is_busy", True)
    with making_thumbnails(runner, every_sec=0.05):
        time.sleep(0.7)
        assert not any(row.digest for row in rows(local).values())
    monkeypatch.setattr("ampref_workers.sweeper._BUSY_THUMBNAILS_SEC", 0.1)
    with making_thumbnails(runner, every_sec=0.05):
        wait_until(lambda: all(row.digest for row in rows(local).values()), "all are drawn")
    assert len(rows(local)) == len(ids)
