"""A fleet as operators run one: API ×2, worker ×3, PostgreSQL, Redis and S3, each process with a data folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
import redis

from amp_core.digests import digest_of_file
from amp_core.formats import read_motion
from amp_core.motions import bundled_motions
from bench.servers import read_first_document

AMPREF = str(Path(sys.executable).with_name("ampref"))
ROOT = Path(__file__).parents[2]
MODE = ["--mode", "rollout"]  # What is tried here is who does the work.


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 120.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s until {what}"
        time.sleep(0.1)


@dataclass
class Fleet:
    """Processes that share a database, a blob store and, unless it is empty, a broker."""

    folder: Path
    database_url: str
    blob_url: str
    broker_url: str = ""
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    key: str = ""

    def environment(self, name: str, **more: str) -> dict[str, str]:
        """Of the process on the machine `name`: nothing of it lies where another looks."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("AMPREF_")}
        home = self.folder / name
        home.mkdir(exist_ok=True)
        values = {
            "HOME": str(home),
            "AMPREF_CACHE": str(home / "cache"),
            "AMPREF_DATA_DIR": str(home / "data"),
            "AMPREF_DATABASE_URL": self.database_url,
            "AMPREF_BLOB_URL": self.blob_url,
            "AMPREF_LOCK_TESTS": "1A,7",
            "AMPREF_LEASE_SEC": "3",
            "AMPREF_HEARTBEAT_SEC": "0.5",
            "AMPREF_SWEEP_SEC": "0.5",
            "AMPREF_RETRY_BACKOFF_SEC": "0.1",
            "AMPREF_JOB_NICE": "0",
        }
        values |= {"AMPREF_BROKER_URL": self.broker_url} if self.broker_url else {}
        return kept | values | ({"AMPREF_TOKEN": self.key} if self.key else {}) | more

    def start(self, name: str, *command: str) -> subprocess.Popen[str]:
        """`ampref` in the background."""
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                [AMPREF, *command], stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment(name), cwd=self.folder
            )
        self.processes[name] = process
        return process

    def start_api(self, name: str) -> str:
        """An API on a free port; its address."""
        facts = read_first_document(self.start(name, "api", "--port", "0", "--json"))
        assert "url" in facts, (facts, self.log(name))
        return str(facts["url"])

    def run(self, *command: str, at: str = "operator", code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        """`ampref` in the foreground; its exit code is checked."""
        environment = self.environment(at, **more)
        done = subprocess.run([AMPREF, *command], capture_output=True, text=True, env=environment, cwd=self.folder, timeout=300)
        assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        process = self.processes.pop(name)
        process.send_signal(number)
        code = process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
        return code

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def children(self, name: str) -> list[psutil.Process]:
        """Of a worker, those that do its jobs."""
        children = psutil.Process(self.processes[name].pid).children(recursive=True)
        return [child for child in children if "ampref_workers.child" in child.cmdline()]


@pytest.fixture
def fleet(tmp_path: Path, pg_empty: str, s3_url: str, redis_url: str) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, pg_empty, s3_url, redis_url)
    yield fleet
    for name in list(fleet.processes):
        fleet.kill(name)


def listening_ports(pid: int) -> set[int]:
    """Where a process or one of its descendants listens."""
    ports: set[int] = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                ports |= {one.laddr.port for one in process.net_connections() if one.status == psutil.CONN_LISTEN}
    return ports


def write_clips(folder: Path, count: int) -> None:
    """Different motions, each of a second or a little more."""
    folder.mkdir()
    motion = read_motion(next(path for path in bundled_motions() if path.stem == "march_in_place"))
    for number in range(count):
        frames = slice(number, number + 52)
        arrays = {key: getattr(motion, key)[frames] for key in ("root_pos", "root_rot", "dof_pos")}
        np.savez(folder / f"march_{number:02d}.npz", fps=motion.fps, **arrays)


def test_a_fleet_loses_nothing_whatever_is_killed(fleet: Fleet) -> None:
    fleet.run("migrate")
    fleet.key = json.loads(fleet.run("token", "create", "root", "--role", "operator", "--json").stdout)["token"]
    first, second = fleet.start_api("api-1"), fleet.start_api("api-2")
    for number in (1, 2, 3):
        fleet.start(f"worker-{number}", "worker")
    motions = fleet.folder / "motions"
    write_clips(motions, 12)
    headers = {"authorization": f"Bearer {fleet.key}"}
    assert httpx2.get(f"{second}/v1/clips").status_code == 401

    def jobs(address: str) -> list[dict[str, Any]]:
        page = httpx2.get(f"{address}/v1/jobs", params={"limit": 100}, headers=headers).json()
        return list(page["items"])

    # Half of the folder through one API, which is killed, the rest through the other: the journal knows what was told.
    some = fleet.folder / "some"
    some.mkdir()
    for path in sorted(motions.iterdir())[:6]:
        shutil.copy(path, some)
    fleet.run("submit", str(some), *MODE, "--journal", "journal.jsonl", AMPREF_URL=first)
    wait_until(lambda: any(fleet.children(name) for name in fleet.processes if "worker" in name), "a worker works")
    victim = next(name for name in fleet.processes if "worker" in name and fleet.children(name))
    orphans = fleet.children(victim)
    fleet.kill(victim)
    fleet.kill("api-1")
    assert not psutil.wait_procs(orphans, timeout=30)[1]
    with redis.Redis.from_url(fleet.broker_url) as broker:
        broker.flushall()
    refused = fleet.run("submit", str(motions), *MODE, "--timeout", "3", code=1, AMPREF_URL=first)
    assert "cannot be reached" in refused.stderr
    done = fleet.run("submit", str(motions), *MODE, "--wait", "--json", AMPREF_URL=second)
    assert len(json.loads(done.stdout)) == 12
    wait_until(lambda: all(job["state"] == "succeeded" for job in jobs(second)), "everything is scored")
    clips = json.loads(fleet.run("clips", "--all", "--json", AMPREF_URL=second).stdout)
    assert (len(clips), len(jobs(second))) == (12, 12)
    assert {clip["rollout"]["tier"] for clip in clips} <= {0, 1}
    assert {job["attempts"] for job in jobs(second)} == {1}, "a killed worker is no evidence against a clip"
    assert len({job["worker"] for job in jobs(second)}) >= 2

    # What one machine locks, another serves and a third pulls; no folder is shared.
    first = fleet.start_api("api-1")
    select = ["--tier", "0", "--tier", "1", "--robot", "wildrobot"]
    version = json.loads(fleet.run("dataset", "lock", "march", "1.0.0", *select, "--json", AMPREF_URL=second).stdout)
    pin = ["--manifest-sha256", version["manifest_sha256"]]
    for node, address in (("node-1", first), ("node-2", second)):
        target = fleet.folder / node / "files"
        fleet.run("pull", "march==1.0.0", *pin, "--to", str(target), at=node, AMPREF_URL=address)
        assert {path.name: digest_of_file(path) for path in target.iterdir()} == {
            file["name"]: file["sha256"] for file in version["files"]
        }
    report = json.loads(fleet.run("fsck", "--json").stdout)
    assert report["findings"] == []

    def live_workers() -> set[str]:
        items = httpx2.get(f"{first}/v1/workers", headers=headers).json()["items"]
        return {worker["id"] for worker in items if worker["live"]}

    wait_until(lambda: len(live_workers()) == 2, "the killed worker is seen to be gone")
    codes = {name: fleet.kill(name, signal.SIGTERM) for name in list(fleet.processes)}
    assert set(codes.values()) == {0}, codes
    for name in codes:
        assert "Traceback" not in fleet.log(name)


def test_the_slurm_script_empties_the_queue_without_a_broker_and_a_port(tmp_path: Path, pg_empty: str, s3_url: str) -> None:
    fleet = Fleet(tmp_path, pg_empty, s3_url)
    fleet.run("migrate")
    address = fleet.start_api("api")
    tasks: list[subprocess.Popen[bytes]] = []
    try:
        write_clips(tmp_path / "motions", 4)
        fleet.run("submit", str(tmp_path / "motions"), *MODE, AMPREF_URL=address)
        settings = tmp_path / "worker.env"
        settings.write_text(f"AMPREF_DATABASE_URL={pg_empty}\nAMPREF_BLOB_URL={s3_url}\n")
        script, scratch = ROOT / "deploy" / "slurm" / "ampref-workers.sbatch", tmp_path / "scratch"
        scratch.mkdir()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AMPREF_")}
        environment |= {"PATH": f"{Path(AMPREF).parent}:{os.environ['PATH']}", "SLURM_TMPDIR": str(scratch)}
        environment |= {"AMPREF_WORKER_ENV": str(settings), "SLURM_JOB_ID": "7"}
        for _ in range(2):
            command = ["bash", str(script)]
            tasks.append(
                subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True)
            )
        found: set[int] = set()
        for task in tasks:
            while task.poll() is None:
                found |= listening_ports(task.pid)
                time.sleep(0.2)
            assert task.stderr is not None
            with task.stderr:
                assert task.returncode == 0, task.stderr.read()
        assert found == set()
        states = [job["state"] for job in httpx2.get(f"{address}/v1/jobs").json()["items"]]
        assert states == ["succeeded"] * 4
        assert list(scratch.iterdir()) == []
        refused = subprocess.run(
            ["bash", str(script)],
            env=environment | {"AMPREF_WORKER_ENV": str(tmp_path / "none")},
            capture_output=True,
            text=True,
        )
        assert (refused.returncode, "is missing" in refused.stderr) == (2, True)
    finally:
        fleet.kill("api")
        for task in tasks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(task.pid, signal.SIGKILL)
