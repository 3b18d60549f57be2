"""Celery on a real Redis: ringing, flushing, killing, and a broker that is not there."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from workerkit import CHILD, Bench, alive, environment, kill, script, settings_for, wait_until

from amp_core.cli import main as cli
from amp_core.errors import Unavailable
from ampref_service.broker import QUEUE, Doorbell, Notifier, check_broker, make_celery
from ampref_workers.app import check_workers
from ampref_workers.runner import Runner

WORKER = f"""
import sys
from ampref_workers.app import main
main(command={CHILD!r}, arguments=["--hostname=" + sys.argv[1] + "@test"])
"""


@pytest.fixture
def bench(tmp_path: Path, redis_url: str) -> Iterator[Bench]:
    made = Bench(settings_for(tmp_path, broker_url=redis_url, worker_concurrency=2))
    yield made
    made.close()


def work_folder(bench: Bench) -> Path:
    return bench.settings.data_dir / "work"


def assert_all_scored_once(bench: Bench, jobs: list) -> None:
    for job in jobs:
        assert bench.wait(job, timeout=60).state == "succeeded"
        assert len(bench.rollouts(job.clip_id)) == 1


def test_two_workers_killed_and_flushed_lose_nothing_and_score_nothing_twice(bench: Bench) -> None:
    notify = Notifier(bench.settings)
    with script(WORKER, bench.settings, "one") as first, script(WORKER, bench.settings, "two"):
        jobs = [bench.submit_score(f"clip{number}", sleep=0.5, frames=20) for number in range(8)]
        for job in jobs:
            notify(job.id)
        wait_until(lambda: len(alive(work_folder(bench))) >= 2, "children run", 60)
        with redis.Redis.from_url(str(bench.settings.broker_url)) as connection:
            connection.flushall()
        kill(first)
        assert_all_scored_once(bench, jobs)
    wait_until(lambda: alive(work_folder(bench)) == [], "no child is left")


def test_jobs_that_were_never_rung_for_are_found(bench: Bench) -> None:
    jobs = [bench.submit_score("before", frames=20)]
    with script(WORKER, bench.settings, "one"):
        assert_all_scored_once(bench, jobs)
        jobs = [bench.submit_score("after", frames=20)]
        assert_all_scored_once(bench, jobs)


def test_sigterm_gives_running_jobs_back(bench: Bench) -> None:
    job = bench.submit("hang")
    with script(WORKER, bench.settings, "one") as process:
        bench.wait(job, "running", timeout=60)
        wait_until(lambda: alive(work_folder(bench)), "its child runs")
        kill(process, signal.SIGTERM)
    assert (bench.job(job.id).state, bench.job(job.id).attempts) == ("queued", 0)
    assert alive(work_folder(bench)) == []


def test_a_clip_that_crashes_its_child_costs_the_worker_nothing(bench: Bench) -> None:
    poison, good = bench.submit("segfault"), bench.submit_score("stand")
    with script(WORKER, bench.settings, "one") as process:
        assert_all_scored_once(bench, [good])
        ended = bench.wait(poison, timeout=60)
        assert process.poll() is None
    assert (ended.state, ended.attempts) == ("quarantined", 3)


def test_a_worker_answers_and_says_so(bench: Bench) -> None:
    settings = bench.settings
    with pytest.raises(Unavailable, match="no worker answers"):
        check_workers(settings, timeout=0.3)
    with script(WORKER, settings, "celery"):
        wait_until(lambda: _answers(settings), "the worker answers", 60)
        assert check_workers(settings, hostname="test") == ["celery@test"]


def test_the_check_tells_why_a_worker_that_answers_is_paused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment(bench.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ampref_workers.cli.worker.check_workers", lambda settings, hostname: [f"ampref-1@{hostname}"])
    presence = Runner(bench.settings, bench.catalog, bench.blobs, name="here:1", command=CHILD).presence
    presence.note_fault("the scratch folder cannot be written")
    assert cli.run(["worker", "--check"]) == 0
    assert "here:1 is paused: the scratch folder cannot be written" in capsys.readouterr().out
    # A catalog that cannot be read is no fault of the worker's.
    monkeypatch.setenv("AMPREF_DATABASE_URL", f"sqlite:///{bench.settings.data_dir / 'none' / 'x'}")
    assert cli.run(["worker", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"answers": [f"ampref-1@{platform.node()}"], "workers": []}
    assert not (bench.settings.data_dir / "none").exists()


def test_two_workers_of_one_machine_have_two_names() -> None:
    code = "from ampref_workers.app import node_name; print(node_name())"
    names = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(names) == 2
    # `ampref worker --check` asks for every worker of its machine.
    assert {name.strip().partition("@")[2] for name in names} == {platform.node()}


def _answers(settings) -> bool:  # type: ignore[no-untyped-def]
    try:
        return bool(check_workers(settings, timeout=1.0))
    except Unavailable:
        return False


@pytest.mark.parametrize(
    "command",
    [
        ["ampref", "worker"],
        # With a pool of processes for a change. Celery looks for the application in the working directory first.
        ["celery", "-A", "ampref_workers.app", "worker", "--pool=prefork", "--concurrency=1"],
    ],
    ids=lambda command: command[0],
)
def test_a_worker_starts_in_a_folder_that_holds_packages_with_common_names(
    command: list[str], bench: Bench, set_traps: Callable[..., Path]
) -> None:
    job = bench.submit_score("stand", frames=20)
    set_traps(bench.settings.data_dir, "service", "workers", "migrations")
    command = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    # The real child refuses these bytes, which is an answer as well: the message has reached it.
    with open(bench.settings.data_dir / "log", "wb") as log:
        where = bench.settings.data_dir
        process = subprocess.Popen(command, env=environment(bench.settings), stdout=log, stderr=log, cwd=where)
    try:
        assert bench.wait(job, timeout=60).state == "failed"
        assert "Umask:\t0077" in Path(f"/proc/{process.pid}/status").read_text(), "what it makes is for its user alone"
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(10)


def test_importing_the_application_reads_no_setting() -> None:
    code = "import ampref_workers.app; print('imported')"
    bad = os.environ | {"AMPREF_PORT": "not a number"}
    done = subprocess.run([sys.executable, "-c", code], env=bad, capture_output=True, text=True, check=False)
    assert done.stdout == "imported\n", done.stderr


def test_rings_do_not_pile_up_while_nobody_listens(bench: Bench) -> None:
    bell = Doorbell(bench.settings)
    ids = [f"job{number}" for number in range(20)]
    for _ in range(3):
        assert bell.ring(ids)
    assert bell.waiting() == 20


def test_a_broker_that_is_away_delays_no_request(tmp_path: Path) -> None:
    with socket.socket() as silent:  # It accepts connections and never says a word.
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = settings_for(tmp_path, broker_url=f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        notify = Notifier(settings)
        began = time.monotonic()
        for number in range(20_000):  # more than it keeps
            notify(f"job{number}")
        assert time.monotonic() - began < 60  # against 2 s for each, if they waited
        with pytest.raises(Unavailable, match="broker cannot be reached"):
            check_broker(settings)
    with pytest.raises(Unavailable, match="broker cannot be reached"):
        check_broker(settings)
    assert not Doorbell(settings).ring(["job"])


def test_messages_are_json_and_outlive_their_worker(bench: Bench) -> None:
    conf = make_celery(bench.settings).conf
    assert conf.accept_content == ["json"]
    assert (conf.task_acks_late, conf.task_reject_on_worker_lost, conf.worker_prefetch_multiplier) == (True, True, 1)
    longest = bench.settings.longest_job_sec
    assert conf.broker_transport_options["visibility_timeout"] > longest


def test_a_pickled_message_is_thrown_away_unread(bench: Bench, tmp_path: Path) -> None:
    """Whoever can write to Redis must not be able to run code in a worker."""
    import base64
    import json
    import pickle

    class Bomb:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (tmp_path / "exploded",))

    message = {
        "body": base64.b64encode(pickle.dumps(((Bomb(),), {}, {}))).decode(),
        "content-encoding": "binary",
        "content-type": "application/x-python-serialize",
        "headers": {"task": "ampref.ring", "id": "1", "lang": "py"},
        "properties": {
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "delivery_mode": 2,
            "delivery_tag": "1",
        },
    }
    with redis.Redis.from_url(str(bench.settings.broker_url)) as connection:
        connection.lpush(QUEUE, json.dumps(message))
        job = bench.submit_score("stand", frames=20)
        with script(WORKER, bench.settings, "one"):
            assert_all_scored_once(bench, [job])
            wait_until(lambda: connection.llen(QUEUE) == 0, "the message was taken")
    assert not (tmp_path / "exploded").exists()
