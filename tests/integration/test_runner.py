"""The runner over a real job table and real children: every way in which an attempt can end."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from workerkit import CHILD, Bench, alive, settings_for, wait_until

from amp_core.errors import DiskFull, NotFound, Unavailable
from amp_core.formats import Lineage
from amp_core.recipe import Recipe
from ampref_service.catalog import clips, datasets, locking, selection
from ampref_service.catalog.members import list_members
from ampref_service.catalog.records import Select
from ampref_service.jobs import JobQueue
from ampref_service.recipes import plan_effort
from ampref_workers.attempt import child_limits
from ampref_workers.protocol import SandboxLimits
from ampref_workers.runner import NO_ROOM_PAUSE_SEC, Runner

QUICK_AUTO = Recipe.from_dict(
    {"mode": "auto", "planner": {"samples": 16, "first_rounds": 1, "horizon_sec": 0.2, "attempts": 1}}
)
"""Plans badly, and in no time."""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(settings_for(tmp_path))
    yield made
    made.close()


def runner(bench: Bench, **options: object) -> Runner:
    return Runner(bench.settings, bench.catalog, bench.blobs, command=CHILD, **options)  # type: ignore[arg-type]


def run_to_the_end(bench: Bench, job_id: str) -> list[str]:
    """Every attempt's end until the job is finished."""
    worker, ends = runner(bench), []
    while not bench.job(job_id).finished:
        ended = worker.run_once()
        if ended != "idle":
            ends.append(ended)
        assert len(ends) < 10
    return ends


def leftovers(bench: Bench) -> list[Path]:
    return list((bench.settings.data_dir / "work").glob("*"))


def test_nothing_due_is_idle(bench: Bench) -> None:
    assert runner(bench).run_once() == "idle"


def test_a_clip_is_scored_and_its_arrays_are_stored(bench: Bench) -> None:
    job = bench.submit_score("stand", frames=40)
    assert runner(bench).run_once() == "succeeded"
    done = bench.job(job.id)
    (rollout,) = bench.rollouts(job.clip_id)
    assert (done.state, done.progress, done.attempts) == ("succeeded", 1.0, 1)
    assert done.result == {"rollout_id": rollout.id, "tier": 0}
    assert (rollout.tier, rollout.frames) == (0, 40)
    assert bench.blobs.size(rollout.arrays_digest) == rollout.arrays_size
    assert [(s.start, s.end, s.tier) for s in rollout.segments] == [(0, 30, 0)]
    assert leftovers(bench) == []


@pytest.mark.parametrize("nice", [0, 7])
def test_a_childs_claim_on_the_processor_is_the_operators(tmp_path: Path, nice: int) -> None:
    with contextlib.closing(Bench(settings_for(tmp_path, job_nice=nice))) as bench:
        job = bench.submit("hang")
        with bench.worker():
            wait_until(lambda: bench.job(job.id).message == "doing hang", "its child works")
            [child] = alive(bench.settings.data_dir / "work")
            assert child.nice() == min(os.nice(0) + nice, 19)


def test_a_refusal_is_final_and_keeps_its_facts(bench: Bench) -> None:
    job = bench.submit("refuse", name="march.pkl")
    assert run_to_the_end(bench, job.id) == ["failed"]
    error = bench.job(job.id).error
    assert error is not None
    assert (error["type"], error["key"], error["frame"]) == ("motion-refused", "root_pos", 17)
    assert bench.rollouts(job.clip_id) == []


@pytest.mark.parametrize(
    ("what", "said"),
    [("hang", "timeout: still running after 1"), ("eat", "memory: "), ("segfault", "SIGSEGV"), ("explode", "not finite")],
)
def test_a_clip_that_never_goes_well_is_quarantined_with_its_reason(tmp_path: Path, what: str, said: str) -> None:
    bench = Bench(settings_for(tmp_path, job_timeout_sec=1.0 if what == "hang" else 30.0))
    job = bench.submit(what)
    assert run_to_the_end(bench, job.id) == ["queued", "queued", "quarantined"]
    ended = bench.job(job.id)
    assert (ended.state, ended.attempts) == ("quarantined", 3)
    assert ended.error is not None
    assert said in ended.error["detail"]
    assert alive(tmp_path) == []
    assert leftovers(bench) == []
    bench.close()
    # It cost its own attempts and nobody else's. The good clip gets more time: a slow machine may need more than a second.
    after = Bench(settings_for(tmp_path))
    good = after.submit_score("stand")
    assert runner(after).run_once() == "succeeded"
    assert after.job(good.id).attempts == 1
    after.close()


def test_a_job_that_is_cancelled_while_it_runs_stops(bench: Bench, tmp_path: Path) -> None:
    job = bench.submit("hang")
    ends: list[str] = []
    thread = threading.Thread(target=lambda: ends.append(runner(bench).run_once()))
    thread.start()
    wait_until(lambda: bench.job(job.id).message == "doing hang", "its progress is told")
    JobQueue(bench.catalog).cancel(job.id)
    thread.join(15)
    assert ends == ["cancelled"]
    assert bench.job(job.id).state == "cancelled"
    assert alive(tmp_path) == []


def test_auto_stores_what_it_tried_under_the_recipes_that_made_it(tmp_path: Path) -> None:
    bench = Bench(settings_for(tmp_path, job_memory_mb=2048))
    job = bench.submit_motion("walk_long_stride", QUICK_AUTO, 120)
    assert runner(bench).run_once() == "succeeded"
    done = bench.job(job.id)
    assert done.result is not None
    found = {one.mode: one for one in bench.rollouts(job.clip_id)}
    assert {mode: one.recipe_digest for mode, one in found.items()} == {
        mode: QUICK_AUTO.stage(mode).digest for mode in ("rollout", "tracked", "assisted")
    }
    assert [one["mode"] for one in done.result["tried"]] == ["rollout", "tracked", "assisted"]
    assert done.result["triage"]["worth_planning"]
    assert bench.rollouts(job.clip_id)[0].id == done.result["rollout_id"], "what the job shows speaks for the clip"
    for one in found.values():
        assert bench.blobs.size(one.arrays_digest) == one.arrays_size
        assert one.result["provenance"]["recipe_digest"] == one.recipe_digest
        assert one.result["auto"] is None
    assert leftovers(bench) == []
    bench.close()


def test_a_job_that_is_cancelled_while_it_plans_stops_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    bench = Bench(settings_for(tmp_path, job_memory_mb=2048, job_timeout_sec=300.0, lease_sec=30.0, heartbeat_sec=10.0))
    slow = Recipe.from_dict({"mode": "auto", "planner": {"samples": 64, "first_rounds": 1, "branches": 1}})
    job = bench.submit_motion("walk_long_stride", slow, 200)
    ends: list[str] = []
    thread = threading.Thread(target=lambda: ends.append(runner(bench).run_once()))
    thread.start()
    wait_until(lambda: "planned" in (bench.job(job.id).message or ""), "it plans")
    began = time.monotonic()
    JobQueue(bench.catalog).cancel(job.id)
    thread.join(15)
    # The heartbeat is 10 s, and this machine may be busy: what counts is that nobody waits for either.
    assert time.monotonic() - began < 4
    assert ends == ["cancelled"]
    assert bench.job(job.id).state == "cancelled"
    assert bench.rollouts(job.clip_id) == []
    assert alive(tmp_path) == []
    assert leftovers(bench) == []
    bench.close()


def test_planning_has_time_by_the_length_of_the_clip_and_the_plans(tmp_path: Path) -> None:
    bench = Bench(settings_for(tmp_path, job_timeout_sec=100.0, plan_timeout_factor=7.0))

    def limits_of(recipe: Recipe, duration_sec: float = 10.0) -> SandboxLimits:
        timeout_sec = bench.settings.rollout_timeout(duration_sec, plan_effort(recipe.to_dict()))
        return child_limits(bench.settings, timeout_sec, bench.settings.job_threads)

    limits = limits_of(Recipe.for_mode("auto"))
    planner = Recipe.for_mode("auto").planner
    assert planner is not None
    assert planner.effort == 1 + 2 + 4  # its attempts grow
    assisted_effort = 4 * 2  # Attempts of mode assisted, each with twice the simulations.
    assert limits.timeout_sec == 100.0 + 7.0 * 10.0 * (planner.effort + assisted_effort)
    twice = Recipe.from_dict({"mode": "auto", "planner": {"samples": 2 * planner.samples}})
    assert plan_effort(twice.to_dict()) == 2 * planner.effort + assisted_effort
    assert plan_effort(Recipe.for_mode("tracked").to_dict()) == planner.effort
    endless = Recipe.from_dict({"mode": "auto", "planner": {"samples": 4096, "rounds": 64, "attempts": 16}})
    assert bench.settings.longest_job_sec >= limits_of(endless, 1.0).timeout_sec
    assert limits.cpu_sec is not None
    assert limits.cpu_sec >= bench.settings.job_threads * limits.timeout_sec
    assert limits_of(Recipe.for_mode("rollout")).timeout_sec == 100.0
    assert bench.settings.longest_job_sec >= limits.timeout_sec
    bench.close()


def test_a_worker_told_to_stop_gives_its_job_back_unharmed(bench: Bench, tmp_path: Path) -> None:
    job = bench.submit("hang")
    stop = threading.Event()
    ends: list[str] = []
    thread = threading.Thread(target=lambda: ends.append(runner(bench).run_once(stop.is_set)))
    thread.start()
    wait_until(lambda: bench.job(job.id).state == "running", "it runs")
    stop.set()
    thread.join(15)
    assert ends == ["released"]
    assert (bench.job(job.id).state, bench.job(job.id).attempts) == ("queued", 0)
    assert alive(tmp_path) == []


def test_a_result_that_comes_after_the_lease_was_lost_is_dropped(bench: Bench) -> None:
    job = bench.submit_score("slow", sleep=2.0)
    ends: list[str] = []
    thread = threading.Thread(target=lambda: ends.append(runner(bench).run_once()))
    thread.start()
    wait_until(lambda: bench.job(job.id).state == "running", "it runs")
    with bench.catalog.begin() as session:  # What a sweep does once the lease is over, without the wait.
        from ampref_service.catalog.tables import jobs

        session.execute(jobs.update().where(jobs.c.id == job.id).values(lease_until=0))
    swept = JobQueue(bench.catalog, backoff_sec=0).sweep()
    assert swept.requeued == (job.id,)
    thread.join(15)
    assert ends == ["lost"]
    assert bench.rollouts(job.clip_id) == []
    assert run_to_the_end(bench, job.id) == ["succeeded"]
    assert len(bench.rollouts(job.clip_id)) == 1


def test_a_clip_deleted_while_it_is_scored_ends_quietly(bench: Bench) -> None:
    job = bench.submit_score("slow", sleep=1.5)
    ends: list[str] = []
    thread = threading.Thread(target=lambda: ends.append(runner(bench).run_once()))
    thread.start()
    wait_until(lambda: bench.job(job.id).state == "running", "it runs")
    assert job.clip_id is not None
    with bench.catalog.begin() as session:
        clips.delete_clip(session, job.clip_id)
    thread.join(15)
    assert ends == ["lost"]


def test_a_rotten_upload_is_told_and_not_retried(bench: Bench) -> None:
    job = bench.submit_score("stand")
    assert job.clip_id is not None
    with bench.catalog.session() as session:
        path = bench.blobs.local_path(clips.get(session, job.clip_id).blob_digest)
    assert path is not None
    path.chmod(0o644)
    path.write_bytes(b"do answer something else")
    assert run_to_the_end(bench, job.id) == ["failed"]
    error = bench.job(job.id).error
    assert error is not None
    assert error["type"] == "integrity"


def test_a_store_that_is_away_for_a_moment_costs_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.submit_score("stand")
    put, away = bench.blobs.put_file, [2]

    def flaky(path: Path) -> str:
        if away[0]:
            away[0] -= 1
            raise Unavailable("the store is away")
        return put(path)

    monkeypatch.setattr(bench.blobs, "put_file", flaky)
    assert runner(bench).run_once() == "succeeded"
    assert (bench.job(job.id).state, bench.job(job.id).attempts) == ("succeeded", 1)


def no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_store(*_: object, **__: object) -> None:
    raise DiskFull("no space left for blobs in /blobs")


@pytest.mark.parametrize(
    ("what", "target", "full", "folder"),
    [
        ("fill", None, None, "work"),
        ("score", "pathlib.Path.mkdir", no_room, "work"),
        ("score", "pathlib.Path.write_bytes", no_room, "work"),
        ("score", "ampref_workers.sandbox.os.pipe", no_room, "work"),
        ("score", "ampref_service.blobs.LocalBlobStore.put_file", full_store, "/blobs"),
        ("score", "ampref_service.jobs.JobQueue.complete_rollout", full_store, "/blobs"),
    ],
)
def test_a_full_disk_costs_no_attempt_and_the_job_waits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str, target: str | None, full: object, folder: str
) -> None:
    monkeypatch.setattr("ampref_workers.presence.FIRST_PROBE_SEC", 0.0)
    job = bench.submit("fill") if what == "fill" else bench.submit_score("stand")
    worker = runner(bench)
    with monkeypatch.context() as patch:
        if target is not None:
            patch.setattr(target, full)
        assert worker.run_once() == "queued"
        assert worker.run_once() in ("idle", "paused")  # The job waits, and perhaps the worker.
    waits = bench.job(job.id)
    assert (waits.state, waits.attempts) == ("queued", 0)
    assert waits.not_before - waits.updated_at == pytest.approx(NO_ROOM_PAUSE_SEC)
    expected = str(bench.settings.data_dir / "work") if folder == "work" else folder
    assert waits.error is not None
    assert "no space left" in waits.error["detail"]
    assert expected in waits.error["detail"]
    assert waits.message is not None
    assert expected in waits.message
    if what == "score":
        with bench.catalog.begin() as session:  # The minute is over, and there is room.
            from ampref_service.catalog.tables import jobs

            session.execute(jobs.update().where(jobs.c.id == job.id).values(not_before=0))
        assert worker.run_once() == "succeeded"
        assert bench.job(job.id).attempts == 1


def test_a_catalog_without_room_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the result nor the postponement can be written for longer than a lease; it still costs no attempt."""
    job = bench.submit("fill")
    worker, postpone = runner(bench), JobQueue.postpone
    began = time.monotonic()

    def write(queue: JobQueue, *arguments: object) -> object:
        if time.monotonic() - began < 2 * bench.settings.lease_sec:
            raise DiskFull("no space left for the catalog")
        return postpone(queue, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(JobQueue, "postpone", write)
    assert worker.run_once() == "queued"
    assert (bench.job(job.id).state, bench.job(job.id).attempts) == ("queued", 0)


def test_nothing_that_a_worker_meets_ends_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ampref_workers.presence.FIRST_PROBE_SEC", 0.0)
    job = bench.submit_score("stand")
    worker = runner(bench)

    def short_of_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(bench.blobs, "fetch", short_of_memory)
        assert worker.run_once() == "queued"
    with monkeypatch.context() as patch:
        patch.setattr(worker.jobs, "claim", short_of_memory)
        assert worker.run_once() == "unavailable"
    assert run_to_the_end(bench, job.id) == ["succeeded"]


def test_an_older_attempts_folder_is_removed(bench: Bench) -> None:
    job = bench.submit_score("stand")
    old = bench.settings.data_dir / "work" / f"{job.id}-0"
    old.mkdir(parents=True)
    (old / "half").write_bytes(b"x")
    assert runner(bench).run_once() == "succeeded"
    assert leftovers(bench) == []


def test_what_somebody_else_keeps_in_the_data_folder_is_left_alone(tmp_path: Path) -> None:
    """A data folder may be somebody's home."""
    bench = Bench(settings_for(tmp_path, blob_grace_sec=60.0))
    data_dir = bench.settings.data_dir
    own = [data_dir / "work" / "job_0-7" / "half", data_dir / "blobs" / "tmp" / ".put.1.0123456789ab.partial"]
    strangers = [data_dir / name / "thesis" / "chapter.tex" for name in ("work", "blobs/tmp")]
    strangers += [data_dir / "work" / "notes.txt", data_dir / "workers" / "pay-roll.csv", data_dir / "blobs" / "tmp" / "a.txt"]
    for path in own + strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))
        os.utime(path.parent, (0, 0))
    worker = runner(bench)
    worker.presence.enter()
    worker.sweep()
    worker.collect()
    worker.presence.leave()
    assert [path for path in strangers if not path.exists()] == []
    assert [path for path in own if path.exists()] == []
    bench.close()


def test_workers_of_one_machine_share_its_processors(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ampref_workers.presence.machine_cpus", lambda: 8)
    monkeypatch.setattr("ampref_service.settings.usable_cpus", lambda: 8)
    bench.settings = bench.settings.model_copy(update={"worker_concurrency": 1})
    first, second, elsewhere = (runner(bench).presence for _ in range(3))
    monkeypatch.setattr(elsewhere, "_machine", "another machine")
    threads = []
    for presence in (first, elsewhere, second):
        presence.enter()
        first._saved_at = None  # As after some seconds.
        first.refresh()
        threads.append(first.threads)
    assert threads == [8, 8, 4]
    second.leave()
    first._saved_at = None
    first.refresh()
    assert first.threads == 8
    for presence in (first, elsewhere):
        presence.leave()


# Locks -----------------------------------------------------------------------------------------------------------------------


def begin_lock(bench: Bench, version: str = "1.0.0", **select: object) -> tuple[str, str]:
    with bench.catalog.begin() as session:
        made, job = locking.begin_version(session, "walk", version, Select(robot="wildrobot", **select))  # type: ignore[arg-type]
    return made.id, job.id


def score_all(bench: Bench, count: int = 3) -> None:
    for number in range(count):
        bench.submit_score(f"clip{number}", frames=40 + number)
    for _ in range(count):
        assert runner(bench).run_once() == "succeeded"


def test_a_lock_publishes_the_whole_version(bench: Bench) -> None:
    score_all(bench)
    _, job_id = begin_lock(bench)
    assert runner(bench).run_once() == "succeeded"
    with bench.catalog.session() as session:
        version = datasets.get_version(session, "walk", "1.0.0")
        members = list_members(session, version.id)
    assert (version.state, version.num_clips, version.num_frames) == ("locked", 3, 40 + 41 + 42)
    assert [file.name for file in sorted(version.files, key=lambda file: file.name)] == [
        "dataset_manifest_v1.0.0.json",
        "features_v1.0.0.npz",
        "normalization_stats_v1.0.0.json",
    ]
    for file in version.files:
        bench.blobs.verify(file.digest)
        assert bench.blobs.size(file.digest) == file.size
    ranges = [(member.name, member.start, member.end) for member in members]
    assert ranges == [("clip0", 0, 40), ("clip1", 0, 41), ("clip2", 0, 42)]
    assert version.readiness is not None
    checks = {check["name"] for check in version.readiness["checks"]}
    assert checks == {"one_origin", "feature_code_hash", "tier", "arrays", "metrics"}
    assert bench.job(job_id).result == {"dataset": "walk", "version": "1.0.0", "dataset_hash": version.dataset_hash}
    assert leftovers(bench) == []
    with bench.catalog.session() as session:
        coverage = datasets.get_coverage(session, version.id)
    assert version.manifest_digest is not None
    with bench.blobs.open(version.manifest_digest) as file:
        manifest = json.load(file)
    assert coverage is not None
    assert coverage == manifest["coverage"]
    assert coverage["seconds"] == pytest.approx((40 + 41 + 42) * manifest["robot"]["control_dt"])
    assert [source["name"] for source in coverage["sources"]] == ["clip2", "clip1", "clip0"]


def test_a_large_version_is_stored_in_shards(bench: Bench) -> None:
    """Of at most 1 MiB in these tests, where the product's have 256."""
    for number in range(3):
        bench.submit_score(f"clip{number:0{number + 1}}", frames=5_000)
        assert runner(bench).run_once() == "succeeded"
    begin_lock(bench)
    assert runner(bench).run_once() == "succeeded"
    with bench.catalog.session() as session:
        version = datasets.get_version(session, "walk", "1.0.0")
    names = [file.name for file in version.files]
    shards = [f"features_v1.0.0-0000{number}-of-00004.npz" for number in (1, 2, 3, 4)]
    assert set(names) == {*shards, *(name for name in names if name.endswith(".json"))}
    rows = []
    for file in version.files:
        if file.name in shards:
            with bench.blobs.open(file.digest) as stored:
                rows.append(np.load(stored)["features"])
    assert [len(part) for part in rows] == [4_096, 4_096, 4_096, 15_000 - 3 * 4_096]
    assert version.dataset_hash == f"sha256:{hashlib.sha256(np.concatenate(rows).tobytes()).hexdigest()}"


def test_a_version_keeps_a_clip_and_its_variants_together(bench: Bench) -> None:
    # Members with the same features would count once.
    jobs = [bench.submit_score(name, frames=frames) for name, frames in (("clip0", 40), ("clip1", 41))]
    assert [runner(bench).run_once() for _ in jobs] == ["succeeded", "succeeded"]
    with bench.catalog.session() as session:
        origin = {clip.name: clip.source_digest for job in jobs if (clip := clips.get(session, str(job.clip_id)))}
    names = {
        "clip0+mirror": (origin["clip0"], "mirror"),
        "clip0+mirror+warp=0.9": ("sha256:" + "5" * 64, "mirror+warp=0.9"),
    }
    for name, (parent, augmentation) in names.items():
        bench.submit_score(name, frames=40, lineage=Lineage(parent, origin["clip0"], augmentation))
        assert runner(bench).run_once() == "succeeded"
    begin_lock(bench)
    assert runner(bench).run_once() == "succeeded"
    with bench.catalog.session() as session:
        version = datasets.get_version(session, "walk", "1.0.0")
    assert version.manifest_digest is not None
    with bench.blobs.open(version.manifest_digest) as file:
        manifest = json.load(file)
    held = {clip["name"]: clip for clip in manifest["clips"]}
    assert set(held) == {"clip0", "clip1", *names}
    assert held["clip0"]["lineage"] == held["clip0"]["digest"] == origin["clip0"]
    assert (held["clip0"]["parent"], held["clip0"]["augmentation"]) == (None, None)
    for name, (parent, augmentation) in names.items():
        assert (held[name]["lineage"], held[name]["parent"], held[name]["augmentation"]) == (
            origin["clip0"],
            parent,
            augmentation,
        )
    # Seconds are counted by source: the family is one.
    assert len(manifest["coverage"]["sources"]) == 2


def test_the_same_clips_lock_to_the_same_bytes(bench: Bench) -> None:
    score_all(bench)
    begin_lock(bench, "1.0.0")
    begin_lock(bench, "1.0.1")
    assert [runner(bench).run_once() for _ in range(2)] == ["succeeded", "succeeded"]
    with bench.catalog.session() as session:
        first, second = (datasets.get_version(session, "walk", version) for version in ("1.0.0", "1.0.1"))
    assert first.dataset_hash == second.dataset_hash
    features = [next(file.digest for file in version.files if "features" in file.name) for version in (first, second)]
    assert features[0] == features[1]

    # A third does not take over what has rotted in the meantime, but mends it for all of them.
    path = bench.blobs.local_path(features[0])
    assert path is not None
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    begin_lock(bench, "1.0.2")
    assert runner(bench).run_once() == "succeeded"
    bench.blobs.verify(features[0])


def test_a_version_whose_files_cannot_be_read_back_is_not_shown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    score_all(bench, 1)
    put, rotten = bench.blobs.put_file, []

    def put_on_a_bad_disk(path: Path) -> str:
        digest = put(path)
        if "features" in path.name and not rotten:
            rotten.append(digest)
            stored = bench.blobs.local_path(digest)
            assert stored is not None
            stored.chmod(0o600)
            stored.write_bytes(b"")
        return digest

    monkeypatch.setattr(bench.blobs, "put_file", put_on_a_bad_disk)
    _, job_id = begin_lock(bench)
    assert runner(bench).run_once() == "queued"
    with bench.catalog.session() as session, pytest.raises(NotFound):
        datasets.get_version(session, "walk", "1.0.0")
    error = bench.job(job_id).error
    assert error is not None
    assert "cannot be read back" in error["detail"]
    assert run_to_the_end(bench, job_id) == ["succeeded"]
    bench.blobs.verify(rotten[0])


def test_segments_of_clips_that_fail_as_a_whole_can_be_locked(bench: Bench) -> None:
    bench.submit_score("falls", frames=50, max_tilt_deg=90.0)
    assert runner(bench).run_once() == "succeeded"
    begin_lock(bench, segments=True)
    assert runner(bench).run_once() == "succeeded"
    with bench.catalog.session() as session:
        version = datasets.get_version(session, "walk", "1.0.0")
        (member,) = list_members(session, version.id)
    assert (version.num_frames, member.start, member.end, member.tier) == (30, 0, 30, 0)


@pytest.mark.parametrize("fault", ["arrays", "missing", "tier", "code", "nothing"])
def test_the_gate_before_the_lock_stops_what_is_not_as_it_was_scored(bench: Bench, fault: str) -> None:
    from ampref_service.catalog.tables import rollouts

    score_all(bench, 2)
    if fault in ("arrays", "missing"):
        with bench.catalog.session() as session:
            clip = {member.name: member for member in selection.select_members(session, Select(robot="wildrobot"))}["clip1"]
        path = bench.blobs.local_path(clip.arrays_digest)
        assert path is not None
        if fault == "missing":
            path.unlink()
        else:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.chmod(0o644)
            path.write_bytes(data)
    else:
        other_code = {"feature_code_hash": "sha256:" + "0" * 64}
        change = {"tier": {"max_tilt_deg": 80.0}, "code": other_code, "nothing": {"tier": 1}}[fault]
        where = rollouts.c.id.is_not(None)
        with bench.catalog.begin() as session:
            session.execute(rollouts.update().where(where).values(**change))
    _, job_id = begin_lock(bench, **({"tiers": (0,)} if fault == "nothing" else {}))
    ends = run_to_the_end(bench, job_id)
    job = bench.job(job_id)
    assert job.error is not None
    expected = {
        "arrays": ("failed", "integrity", "clip1"),
        "missing": ("failed", "integrity", "clip1"),
        "tier": ("failed", "conflict", "its metrics give -1"),
        "code": ("failed", "feature-code-mismatch", "clip0"),
        "nothing": ("failed", "input-refused", "holds no clip"),
    }[fault]
    assert (job.state, job.error["type"]) == expected[:2]
    assert expected[2] in job.error["detail"]
    assert ends[-1] == job.state
    # The name is free again.
    begin_lock(bench)


def test_remote_blobs_are_fetched_for_the_lock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    score_all(bench, 2)
    begin_lock(bench)
    monkeypatch.setattr(bench.blobs, "local_path", lambda digest: None)
    assert runner(bench).run_once() == "succeeded"
    with bench.catalog.session() as session:
        assert datasets.get_version(session, "walk", "1.0.0").num_clips == 2
    assert leftovers(bench) == []
