"""Workers whose machine is at fault: no clip pays for it, the worker stops and says so, and goes on by itself."""

from __future__ import annotations

import resource
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workerkit import CHILD, RECIPE, WORKER, Bench, kill, script, settings_for, wait_until

from amp_core.errors import Unavailable
from ampref_service.catalog import worker_rows
from ampref_service.catalog.records import Worker
from ampref_service.catalog.tables import clips, jobs
from ampref_service.jobs import ALONE_FROM_LOSSES
from ampref_workers.embedded import EmbeddedWorker
from ampref_workers.runner import Runner


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(settings_for(tmp_path))
    yield made
    made.close()


def runner(bench: Bench, command: tuple[str, ...] = CHILD, robots: dict[str, str] | None = None) -> Runner:
    return Runner(bench.settings, bench.catalog, bench.blobs, command=command, robots=robots)


def workers(bench: Bench) -> list[Worker]:
    with bench.catalog.session() as session:
        return worker_rows.list_workers(session)


def put_file_at_work_folder(bench: Bench) -> Callable[[], None]:
    path = bench.settings.data_dir / "work"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("not a folder")
    return path.unlink


def take_blobs_away(bench: Bench) -> Callable[[], None]:
    blobs = bench.settings.data_dir / "blobs"
    away = blobs.rename(bench.settings.data_dir / "away")
    blobs.write_text("not a folder")

    def bring_back() -> None:
        blobs.unlink()
        away.rename(blobs)

    return bring_back


def use_up_descriptors(bench: Bench) -> Callable[[], None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with bench.catalog.session():  # The connection stays open in its pool.
        pass
    with open("/dev/null") as lowest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno() + 1, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("break_host", [put_file_at_work_folder, take_blobs_away, use_up_descriptors])
def test_a_machine_that_cannot_work_costs_no_clip_anything(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, break_host: Callable[[Bench], Callable[[], None]]
) -> None:
    monkeypatch.setattr("ampref_workers.presence.FIRST_PROBE_SEC", 0.0)
    submitted = [bench.submit_score(f"clip{number}", frames=20) for number in range(2)]
    worker = runner(bench)
    repair = break_host(bench)
    try:
        endings = [worker.run_once() for _ in range(4)]
    finally:
        repair()
    assert set(endings) <= {"queued", "paused"}
    assert endings[-1] == "paused"
    assert [(bench.job(job.id).state, bench.job(job.id).attempts) for job in submitted] == [("queued", 0)] * 2
    (row,) = workers(bench)
    assert (row.state, row.host_faults > 0) == ("paused", True)
    assert row.reason
    # It tries by itself, and goes on.
    wait_until(lambda: all(bench.job(job.id).finished or worker.run_once() == "" for job in submitted), "all are scored")
    assert {bench.job(job.id).state for job in submitted} == {"succeeded"}
    assert workers(bench)[0].state == "working"


def test_another_worker_takes_what_a_broken_one_gave_back(bench: Bench) -> None:
    submitted = [bench.submit_score(f"clip{number}", frames=20) for number in range(2)]
    broken = runner(bench, ("/bin/false",))
    good = runner(bench)
    good.presence.enter()
    assert [broken.run_once() for _ in range(3)] == ["queued", "paused", "paused"], (
        "at the first, as no child ever worked there"
    )
    assert [good.run_once() for _ in range(2)] == ["succeeded"] * 2
    assert [bench.job(job.id).attempts for job in submitted] == [1] * 2
    assert [row.state for row in workers(bench)] == ["working", "paused"]
    good.presence.leave()


def test_a_worker_that_has_worked_before_stops_at_the_third_fault(bench: Bench, tmp_path: Path) -> None:
    bench.submit_score("first", frames=20)
    gate = tmp_path / "gate.py"
    shutil.copyfile(CHILD[-1], gate)
    worker = runner(bench, (sys.executable, "-P", str(gate)))
    assert worker.run_once() == "succeeded"
    gate.write_text("raise ImportError('a release half installed')")
    for number in range(4):
        bench.submit_score(f"clip{number}", frames=20)
    assert [worker.run_once() for _ in range(4)] == ["queued", "queued", "queued", "paused"]
    assert "a release half installed" in (workers(bench)[0].reason or "")


def test_a_robot_that_changed_on_a_worker_is_the_workers_fault(bench: Bench) -> None:
    """It claims no job of a robot that it lacks; where its files changed since it started, the child says so."""
    job = bench.submit_motion("walk_long_stride", RECIPE, 20)
    lacks = runner(bench, robots={"wildrobot": "sha256:another"})
    assert lacks.run_once() == "idle"
    assert (bench.job(job.id).state, bench.job(job.id).attempts) == ("queued", 0)
    with bench.catalog.begin() as session:
        session.execute(clips.update().values(robot_digest="sha256:another"))
        session.execute(jobs.update().values(robot_digest="sha256:another"))
    assert lacks.run_once() == "queued"
    found = bench.job(job.id)
    assert (found.attempts, found.faults) == (0, 1)
    assert found.error is not None
    assert "has changed since the clip was uploaded" in found.error["detail"]


def test_an_embedded_worker_that_is_paused_makes_the_service_not_ready(bench: Bench) -> None:
    repair = put_file_at_work_folder(bench)
    worker = EmbeddedWorker(bench.settings, command=CHILD)
    worker.check()
    with worker.running(bench):
        with pytest.raises(Unavailable, match="are paused"):
            worker.check()
        repair()
    worker.check()
    assert workers(bench) == [], "it ended in order"


def test_a_killed_workers_jobs_are_taken_back_by_the_next_in_its_folder(tmp_path: Path) -> None:
    """However long the lease: the kernel says that it is dead."""
    bench = Bench(settings_for(tmp_path, lease_sec=3600.0, heartbeat_sec=1.0))
    job = bench.submit_score("slow", sleep=1.0, frames=20)
    with script(WORKER, bench.settings) as process:
        bench.wait(job, "running")
        kill(process)
    with bench.worker():
        done = bench.wait(job)
    assert (done.state, done.attempts, done.losses) == ("succeeded", 1, 1)
    assert [row.pid for row in workers(bench)] == []
    bench.close()


def test_a_job_with_which_workers_were_lost_runs_alone(bench: Bench) -> None:
    suspect = bench.submit("hang")
    with bench.catalog.begin() as session:
        session.execute(jobs.update().values(losses=ALONE_FROM_LOSSES, rank=100))
    worker, stop = runner(bench), threading.Event()
    thread = threading.Thread(target=worker.run_once, args=(stop.is_set,))
    thread.start()
    bench.wait(suspect, "running")
    bench.submit_score("other", frames=20)
    assert worker.run_once() == "idle"
    stop.set()
    thread.join()
