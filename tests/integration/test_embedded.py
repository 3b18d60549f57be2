"""Workers inside a process: waking, stopping, and two processes on one database."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from workerkit import CHILD, WORKER, Bench, alive, kill, script, settings_for, wait_until

from amp_core.errors import Unavailable
from ampref_service.jobs import JobQueue
from ampref_workers.embedded import EmbeddedWorker
from ampref_workers.sweeper import collecting_blobs, sweeping_jobs


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(settings_for(tmp_path))
    yield made
    made.close()


def test_a_ring_wakes_an_idle_worker(tmp_path: Path) -> None:
    # It would look by itself only after the test's patience is over.
    bench = Bench(settings_for(tmp_path, poll_sec=600.0, sweep_sec=600.0))
    worker = EmbeddedWorker(bench.settings, command=CHILD)
    with worker.running(bench):
        first = bench.submit_score("one")
        worker.notify(first.id)
        assert bench.wait(first).state == "succeeded"
        second = bench.submit_score("two")
        worker.notify(second.id)
        assert bench.wait(second).state == "succeeded"
    bench.close()


def test_a_worker_finds_jobs_that_nobody_rang_for(bench: Bench) -> None:
    with EmbeddedWorker(bench.settings, command=CHILD).running(bench):
        assert bench.wait(bench.submit_score("one")).state == "succeeded"


def test_stopping_is_quick_and_costs_no_attempt(bench: Bench, tmp_path: Path) -> None:
    job = bench.submit("hang")
    before = set(threading.enumerate())
    with EmbeddedWorker(bench.settings, command=CHILD).running(bench):
        bench.wait(job, "running")
        wait_until(lambda: alive(tmp_path), "its child runs")
    assert (bench.job(job.id).state, bench.job(job.id).attempts) == ("queued", 0)
    assert alive(tmp_path) == []
    assert set(threading.enumerate()) <= before


def test_several_jobs_run_at_a_time(tmp_path: Path) -> None:
    bench = Bench(settings_for(tmp_path, worker_concurrency=2))
    jobs = [bench.submit("hang"), bench.submit("spin")]
    with EmbeddedWorker(bench.settings, command=CHILD).running(bench):
        for job in jobs:
            bench.wait(job, "running")
    bench.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_process_with_its_children(bench: Bench, tmp_path: Path, number: int) -> None:
    job = bench.submit("hang")
    with script(WORKER, bench.settings) as process:
        bench.wait(job, "running")
        wait_until(lambda: alive(bench.settings.data_dir / "work"), "its child runs")
        kill(process, number)
        assert process.returncode == 0
    assert (bench.job(job.id).state, bench.job(job.id).attempts) == ("queued", 0)
    assert alive(bench.settings.data_dir / "work") == []


def test_two_processes_share_one_database(tmp_path: Path, database_url: str) -> None:
    bench = Bench(settings_for(tmp_path, database_url, worker_concurrency=2))
    jobs = [bench.submit_score(f"clip{number}", frames=30) for number in range(10)]
    with script(WORKER, bench.settings), script(WORKER, bench.settings):
        for job in jobs:
            assert bench.wait(job, timeout=60).state == "succeeded"
        workers = {str(bench.job(job.id).worker).rsplit(":", 1)[0] for job in jobs}
    assert [bench.job(job.id).attempts for job in jobs] == [1] * len(jobs)
    assert [len(bench.rollouts(job.clip_id)) for job in jobs] == [1] * len(jobs)
    assert 1 <= len(workers) <= 2
    bench.close()


UNTIL_EMPTY = f"""
import signal, sys
from types import SimpleNamespace
from ampref_service.blobs import open_blobs
from ampref_service.catalog import Catalog
from ampref_service.settings import Settings
from ampref_workers.embedded import EmbeddedWorker

settings = Settings.load()
opened = SimpleNamespace(catalog=Catalog.open(settings.database_url), blobs=open_blobs(settings.blob_url))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # As the command does.
EmbeddedWorker(settings, command={CHILD!r}).run_until_empty(opened)
"""


def test_a_batch_of_workers_ends_when_nothing_is_left(bench: Bench) -> None:
    jobs = [bench.submit_score(f"clip{number}", frames=30) for number in range(4)]
    poison = bench.submit("segfault")
    with script(UNTIL_EMPTY, bench.settings) as one, script(UNTIL_EMPTY, bench.settings) as two:
        assert [one.wait(120), two.wait(120)] == [0, 0]
    assert [bench.job(job.id).state for job in jobs] == ["succeeded"] * 4
    assert bench.job(poison.id).state == "quarantined", "its pauses were waited for"


def test_a_worker_of_a_batch_gives_its_job_back_when_its_time_is_up(bench: Bench) -> None:
    job = bench.submit("hang")
    with script(UNTIL_EMPTY, bench.settings) as worker:
        wait_until(lambda: bench.job(job.id).state == "running", "it has the job")
        worker.terminate()
        worker.wait(60)
    assert (bench.job(job.id).state, bench.job(job.id).attempts, bench.job(job.id).losses) == ("queued", 0, 0)


def test_a_worker_of_a_batch_does_not_wait_for_good_for_a_catalog(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise Unavailable("the catalog cannot be reached")

    monkeypatch.setattr("ampref_workers.embedded._PATIENCE_SEC", 0.3)
    monkeypatch.setattr("ampref_workers.embedded.JobQueue.is_empty", fail)
    with pytest.raises(Unavailable, match="the catalog cannot be reached"):
        EmbeddedWorker(bench.settings, command=CHILD).run_until_empty(bench)


def test_a_worker_of_a_batch_waits_for_what_runs_elsewhere(bench: Bench) -> None:
    job = bench.submit_score("lost", frames=30)
    claim = JobQueue(bench.catalog, lease_sec=bench.settings.lease_sec).claim("elsewhere")
    assert claim is not None
    # That worker never comes back: the job is taken up here when its lease is over.
    EmbeddedWorker(bench.settings, command=CHILD).run_until_empty(bench)
    assert (bench.job(job.id).state, bench.job(job.id).losses) == ("succeeded", 1)


def test_the_sweeper_outlives_what_it_meets() -> None:
    class Broken:
        def __init__(self) -> None:
            self.sweeps = 0

        def sweep(self) -> Any:
            self.sweeps += 1
            raise MemoryError

    broken = Broken()
    with sweeping_jobs(broken, lambda ids: None, every_sec=0.01):
        wait_until(lambda: broken.sweeps >= 3, "it has swept three times")


def test_the_sweeper_stops_without_waiting_for_its_next_round() -> None:
    class Idle:
        def sweep(self) -> Any:
            raise RuntimeError

    began = time.monotonic()
    with sweeping_jobs(Idle(), lambda ids: None, every_sec=600.0):
        pass
    assert time.monotonic() - began < 300


def test_garbage_is_collected_while_it_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ampref_workers.sweeper.collecting_blobs", partial(collecting_blobs, first_after_sec=0.0))
    kept = bench.submit_score("kept", frames=20)
    old, young = bench.blobs.put_bytes(b"left by a killed upload"), bench.blobs.put_bytes(b"an upload that is under way")
    for digest, _ in list(bench.blobs.iter_digests()):
        path = bench.blobs.local_path(digest)
        assert path is not None
        if digest != young:
            os.utime(path, (1.0, 1.0))
    with EmbeddedWorker(bench.settings, command=CHILD).running(bench):
        wait_until(lambda: not bench.blobs.exists(old), "the old one is gone")
        assert bench.wait(kept).state == "succeeded"
    assert bench.blobs.exists(young)


def test_a_collector_outlives_what_it_meets_and_stops_in_the_middle() -> None:
    class Slow:
        rounds = 0

        def collect(self, should_stop: Callable[[], bool]) -> list[str]:
            self.rounds += 1
            if self.rounds == 1:
                raise OSError
            wait_until(should_stop, "it is told to stop")
            return []

    slow = Slow()
    with collecting_blobs(slow, every_sec=0.01, first_after_sec=0.0):
        wait_until(lambda: slow.rounds == 2, "it collects again after an error")
    assert slow.rounds == 2
