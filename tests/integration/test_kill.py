"""SIGKILL at every place. No accepted clip is lost, each is scored once in effect, and no process is left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import httpx2
import pytest
from workerkit import CHILD, WORKER, Bench, alive, kill, script, settings_for, wait_until

from amp_core.errors import NotFound
from amp_core.recipe import Recipe
from ampref_service.catalog import datasets, locking
from ampref_service.catalog.members import list_members
from ampref_service.catalog.records import Job, Select
from ampref_service.jobs import JobQueue
from ampref_workers.runner import Runner


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(settings_for(tmp_path))
    yield made
    made.close()


@pytest.fixture
def on_both(tmp_path: Path, database_url: str) -> Iterator[Bench]:
    """The same, once on SQLite and once on PostgreSQL."""
    made = Bench(settings_for(tmp_path, database_url))
    yield made
    made.close()


def work_folder(bench: Bench) -> Path:
    return bench.settings.data_dir / "work"


def begin_lock(bench: Bench) -> Job:
    with bench.catalog.begin() as session:
        return locking.begin_version(session, "walk", "1.0.0", Select(robot="wildrobot"))[1]


def assert_scored_once(bench: Bench, job: Job) -> None:
    assert bench.wait(job).state == "succeeded"
    assert len(bench.rollouts(job.clip_id)) == 1
    wait_until(lambda: alive(work_folder(bench)) == [], "no child is left")


def test_a_worker_killed_in_the_middle_of_a_job(on_both: Bench) -> None:
    bench = on_both
    job = bench.submit_score("slow", sleep=1.5)
    with script(WORKER, bench.settings) as process:
        wait_until(lambda: alive(work_folder(bench)), "its child runs")
        kill(process)
        wait_until(lambda: alive(work_folder(bench)) == [], "its child died with it")
    assert bench.job(job.id).state == "running"  # until the lease is over
    with bench.worker():
        assert_scored_once(bench, job)
    assert (bench.job(job.id).attempts, bench.job(job.id).losses) == (1, 1)


@pytest.mark.parametrize("at", ["put1", "complete"])
def test_a_worker_killed_between_the_result_and_the_commit(bench: Bench, at: str) -> None:
    job = bench.submit_score("stand")
    with script(WORKER, bench.settings, at) as process:
        assert process.wait(90) == -signal.SIGKILL
    assert bench.rollouts(job.clip_id) == []
    with bench.worker():
        assert_scored_once(bench, job)


@pytest.mark.parametrize("at", ["put2", "complete"])
def test_a_worker_killed_with_one_of_two_results_stored_stores_both_or_none(tmp_path: Path, at: str) -> None:
    bench = Bench(settings_for(tmp_path, job_memory_mb=2048))
    auto = Recipe.from_dict({"mode": "auto", "planner": {"samples": 16, "first_rounds": 1, "horizon_sec": 0.2, "attempts": 1}})
    job = bench.submit_motion("walk_long_stride", auto, 60)
    with script(WORKER, bench.settings, at) as process:
        assert process.wait(90) == -signal.SIGKILL
    assert bench.rollouts(job.clip_id) == []
    with bench.worker():
        assert bench.wait(job).state == "succeeded"
    assert sorted(one.mode for one in bench.rollouts(job.clip_id)) == ["rollout", "tracked"]
    wait_until(lambda: alive(work_folder(bench)) == [], "no child is left")
    bench.close()


def test_a_child_killed_from_outside_costs_one_attempt(bench: Bench) -> None:
    job = bench.submit_score("slow", sleep=1.5)
    with script(WORKER, bench.settings) as process:
        wait_until(lambda: bench.job(job.id).message == "simulating", "its child works")
        os.kill(alive(work_folder(bench))[0].pid, signal.SIGKILL)
        assert_scored_once(bench, job)
        assert process.poll() is None  # The worker did not care.
    assert bench.job(job.id).attempts == 2


def test_a_clip_whose_worker_is_killed_every_time_is_never_quarantined(bench: Bench) -> None:
    unlucky = bench.submit("hang")
    for losses in range(1, bench.settings.max_attempts + 2):
        with script(WORKER, bench.settings) as process:
            wait_until(lambda: alive(work_folder(bench)), "its child runs")
            kill(process)
        wait_until(lambda: alive(work_folder(bench)) == [], "its child died with it")
        # The next worker in this data folder takes the job back at once, whatever is left of the lease.
        presence = Runner(bench.settings, bench.catalog, bench.blobs, command=CHILD).presence
        presence.enter()
        presence.leave()
        found = bench.job(unlucky.id)
        assert (found.state, found.attempts, found.losses) == ("queued", 0, losses)
    assert found.error is not None
    assert found.error["type"] == "worker-lost"
    assert JobQueue(bench.catalog).cancel(unlucky.id).state == "cancelled"


@pytest.mark.parametrize("at", ["put1", "put3", "complete"])
def test_a_worker_killed_while_it_locks_leaves_no_half_version(bench: Bench, at: str) -> None:
    kill_and_lock_again(bench, at)


def test_a_worker_killed_in_the_transaction_of_a_lock_on_either_database(on_both: Bench) -> None:
    kill_and_lock_again(on_both, "publish")


def kill_and_lock_again(bench: Bench, at: str) -> None:
    with bench.worker():
        for job in [bench.submit_score(f"clip{number}", frames=60 + number) for number in range(2)]:
            bench.wait(job)
    job = begin_lock(bench)
    with script(WORKER, bench.settings, at) as process:
        assert process.wait(90) == -signal.SIGKILL
    with bench.catalog.session() as session:
        with pytest.raises(NotFound):
            datasets.get_version(session, "walk", "1.0.0")
        assert datasets.list_datasets(session) == []
    with bench.worker():
        assert bench.wait(job).state == "succeeded"
    with bench.catalog.session() as session:
        version = datasets.get_version(session, "walk", "1.0.0")
        assert (len(version.files), version.num_clips) == (3, 2)
        assert len(list_members(session, version.id)) == 2
    for file in version.files:
        bench.blobs.verify(file.digest)


def test_the_child_of_a_lock_killed_again_and_again_frees_the_name(tmp_path: Path) -> None:
    bench = Bench(settings_for(tmp_path, lock_tests="6"))
    with bench.worker():
        bench.wait(bench.submit_score("hangs"))
        job = begin_lock(bench)
        killed: set[int] = set()
        while not bench.job(job.id).finished:
            if "half" in (bench.job(job.id).message or ""):  # It works: what dies before has not begun.
                for child in alive(work_folder(bench)):
                    child.kill()
                    killed.add(child.pid)
        ended = bench.job(job.id)
    assert (ended.state, len(killed)) == ("quarantined", 3)
    begin_lock(bench)  # The name can be taken again.
    bench.close()


def post_until_it_dies(url: str, data: dict, first: int, accepted: list[str]) -> None:
    """Upload one new clip after the other, and note those that were answered with 202."""
    with httpx2.Client(timeout=20) as client:
        for number in range(first, first + 100):
            # Other bytes are another clip.
            content = json.dumps(data | {"note": number}).encode()
            try:
                answer = client.post(
                    f"{url}/v1/clips",
                    files={"file": ("squat.json", content)},
                    data={"name": f"clip{number}", "robot": "wildrobot"},
                )
            except httpx2.HTTPError:
                return
            assert answer.status_code == 202, answer.text
            accepted.append(answer.json()["job"]["id"])


def test_the_api_killed_in_the_middle_of_a_burst_of_uploads_loses_no_clip_that_it_accepted(tmp_path: Path) -> None:
    """`ampref up`, the real child and real motions."""
    bench = Bench(settings_for(tmp_path, job_memory_mb=1024, worker_concurrency=2))
    with resources.as_file(resources.files("amp_core.motions") / "squat.json") as path:
        data = json.loads(path.read_bytes())
    accepted: list[str] = []
    with up(bench) as (process, url):
        posting = [threading.Thread(target=post_until_it_dies, args=(url, data, 100 * n, accepted)) for n in range(3)]
        for thread in posting:
            thread.start()
        wait_until(lambda: len(accepted) >= 6, "some clips were accepted", 60)
        kill(process)
        for thread in posting:
            thread.join(30)
    wait_until(lambda: alive(work_folder(bench)) == [], "no child is left")
    # Not every clip has its turn here: a few that were accepted first and last stand for them.
    chosen = {*accepted[:2], *accepted[-2:]}
    assert all(not bench.job(job_id).finished or bench.job(job_id).state == "succeeded" for job_id in accepted)
    for job_id in set(accepted) - chosen:
        if not bench.job(job_id).finished and bench.job(job_id).state == "queued":
            JobQueue(bench.catalog).cancel(job_id)
    with up(bench):
        for job_id in chosen:
            assert_scored_once(bench, bench.job(job_id))
    wait_until(lambda: alive(work_folder(bench)) == [], "no child is left")
    bench.close()


@contextlib.contextmanager
def up(bench: Bench) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`ampref up` on a free port, ready to be asked."""
    log = bench.settings.data_dir.parent / "up.log"
    log.unlink(missing_ok=True)
    code = "from amp_core.cli.main import main; main()"
    with script(code, bench.settings, "up", "--port", "0", "--json", log=log) as process:
        # One document on standard output tells where it is; log lines may come before and after it.
        wait_until(lambda: re.search(rb"http://127\.0\.0\.1:\d+", log.read_bytes()), "it says where it listens", 60)
        found = re.search(rb"http://127\.0\.0\.1:\d+", log.read_bytes())
        assert found is not None
        yield process, found.group().decode()
