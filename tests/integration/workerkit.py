"""What the tests of the workers share: short leases, uploads that misbehave, processes to kill, and a look at what is left."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from catalogkit import make_catalog

from amp_core.formats import Lineage, read_motion
from amp_core.motions import bundled_motions
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.tiers import classify, gate_profile
from ampref_service.blobs import open_blobs
from ampref_service.catalog import Catalog, clips, job_rows, rollouts
from ampref_service.catalog.records import Job, JobTerms, NewClip, RecipeRow, Rollout
from ampref_service.catalog.tables import METRIC_COLUMNS
from ampref_service.damage import CatalogDamageLog
from ampref_service.settings import Settings
from ampref_workers.embedded import EmbeddedWorker

CHILD = (sys.executable, "-P", str(Path(__file__).with_name("misbehaving_child.py")))
RECIPE = Recipe.for_mode("rollout")

STANDING = dict.fromkeys(METRIC_COLUMNS, 0.0) | {
    "mean_sum_fn_over_mg": 1.0,
    "p10_sum_fn_over_mg": 0.9,
    "contact_rate": 0.6,
    "height_mean": 0.45,
    "height_std": 0.01,
    "height_variance": 0.0001,
    "height_min": 0.44,
    "height_max": 0.46,
    "speed_ratio": 1.0,
    "clip_path_ratio": 1.0,
    "finite_frame_rate": 1.0,
    "fell_at_frame": None,
}
"""Metrics of a clip that passes every Tier 0 gate with the bundled robot."""


def settings_for(folder: Path, database_url: str = "", **overrides: Any) -> Settings:
    """Settings with leases short enough for a test to see them run out."""
    quick: dict[str, Any] = {
        "data_dir": folder / "data",
        "database_url": database_url,
        "lease_sec": 1.5,
        "heartbeat_sec": 0.3,
        "sweep_sec": 0.2,
        "poll_sec": 0.05,
        "retry_backoff_sec": 0.05,
        "job_timeout_sec": 30.0,
        "job_memory_mb": 512,
        # Tests wait for these children: behind those of other processes they would last.
        "job_nice": 0,
        # Most clips here are made-up numbers, which no readiness test would let pass.
        "lock_tests": "none",
        # Nor is there anything to draw in them.
        "thumbnails": False,
    }
    return Settings.load(**(quick | overrides))


def environment(settings: Settings) -> dict[str, str]:
    """Variables from which another process reads the same settings."""
    values = {f"AMPREF_{name.upper()}": str(value) for name, value in settings.model_dump().items() if value not in (None, ())}
    return {name: value for name, value in os.environ.items() if not name.startswith("AMPREF_")} | values


@functools.cache
def wildrobot() -> Robot:
    return Robot.load("wildrobot")


class Bench:
    """A catalog and blobs to put jobs on."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        make_catalog(settings.database_url)
        self.catalog = Catalog.open(settings.database_url)
        self.blobs = open_blobs(settings.blob_url, CatalogDamageLog(self.catalog))
        self.robot = wildrobot()

    def submit(self, what: str, name: str | None = None, lineage: Lineage | None = None) -> Job:
        """A clip whose child will do `what`: what the API does with an upload."""
        data = b"do " + what.encode()
        digest = self.blobs.put_bytes(data)
        new = NewClip(
            name=name or what.split()[0],
            robot="wildrobot",
            robot_digest=self.robot.digest,
            source_digest="sha256:" + hashlib.sha256(data).hexdigest(),
            source_format="json",
            blob_digest=digest,
            size=len(data),
            frames_in=2,
            fps_in=50.0,
            duration_sec=0.02,
            lineage=lineage,
        )
        with self.catalog.begin() as session:
            submitted = clips.submit(
                session,
                new,
                RecipeRow(RECIPE.digest, RECIPE.mode, RECIPE.to_dict()),
                terms=JobTerms(self.settings.max_attempts),
            )
        assert submitted.job is not None
        return submitted.job

    def submit_motion(self, stem: str, recipe: Recipe, frames: int) -> Job:
        """The first frames of a bundled motion, for the real child."""
        motion = read_motion(next(path for path in bundled_motions() if path.stem == stem), name=stem)
        buffer = io.BytesIO()
        np.savez(buffer, fps=motion.fps, **{key: getattr(motion, key)[:frames] for key in ("root_pos", "root_rot", "dof_pos")})
        data = buffer.getvalue()
        new = NewClip(
            name=stem,
            robot="wildrobot",
            robot_digest=self.robot.digest,
            source_digest="sha256:" + hashlib.sha256(data).hexdigest(),
            source_format="npz",
            blob_digest=self.blobs.put_bytes(data),
            size=len(data),
            frames_in=frames,
            fps_in=motion.fps,
            duration_sec=(frames - 1) / motion.fps,
        )
        row = RecipeRow(recipe.digest, recipe.mode, recipe.to_dict())
        with self.catalog.begin() as session:
            submitted = clips.submit(session, new, row, terms=JobTerms(self.settings.max_attempts))
        assert submitted.job is not None
        return submitted.job

    def submit_score(
        self, name: str, frames: int = 60, sleep: float = 0.0, lineage: Lineage | None = None, **metrics: float
    ) -> Job:
        """A clip whose child answers with a score of these metrics and random features, after a while."""
        values = STANDING | metrics
        verdict = classify(values, gate_profile(RECIPE.gate_profile), RECIPE.mode, height_range=tuple(self.robot.height_range))
        facts = {
            "name": name,
            "tier": verdict.tier,
            "tier_reason": verdict.tier_reason,
            "metrics": {metric: values.get(metric, 0.0) for metric in METRIC_COLUMNS},
            "frames": frames,
            "dim": self.robot.layout.dim,
            "gate_profile": RECIPE.gate_profile,
            "sleep": sleep,
        }
        return self.submit("score " + json.dumps(facts), name, lineage)

    def job(self, job_id: str) -> Job:
        with self.catalog.session() as session:
            return job_rows.get(session, job_id)

    def rollouts(self, clip_id: str | None) -> list[Rollout]:
        assert clip_id is not None
        with self.catalog.session() as session:
            return rollouts.for_clip(session, clip_id)

    def wait(self, job: Job, *states: str, timeout: float = 90.0) -> Job:
        """The job once it is in one of some states (or finished, when none is named)."""
        wait_until(
            lambda: self.job(job.id).state in states if states else self.job(job.id).finished,
            f"{job.id} is {' or '.join(states) or 'finished'}",
            timeout,
        )
        return self.job(job.id)

    @contextlib.contextmanager
    def worker(self) -> Iterator[None]:
        """A worker in threads of this process, which is quicker to start than another one."""
        with EmbeddedWorker(self.settings, command=CHILD).running(self):
            yield

    def close(self) -> None:
        self.catalog.close()


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s until {what}"
        time.sleep(0.05)


def alive(folder: Path) -> list[psutil.Process]:
    """Processes that were started for a folder of the test's own: its path is in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or ())
        if str(folder) in command and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(process)
    return found


@contextlib.contextmanager
def script(code: str, settings: Settings, *arguments: str, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that runs `code` under these settings; killed at the end."""
    path = log or settings.data_dir.parent / f"script-{time.monotonic_ns()}.log"
    with open(path, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=environment(settings),
            stdout=out,
            stderr=out,
            cwd=settings.data_dir.parent,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def kill(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    os.kill(process.pid, number)
    process.wait(15)


WORKER = f"""
import os, signal, sys, threading
from types import SimpleNamespace
from ampref_service.blobs import BlobStore, open_blobs
from ampref_service.catalog import Catalog, locking
from ampref_service.jobs import JobQueue
from ampref_service.damage import CatalogDamageLog
from ampref_service.settings import Settings
from ampref_workers.embedded import EmbeddedWorker

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

settings = Settings.load()
opened = SimpleNamespace(catalog=Catalog.open(settings.database_url), blobs=open_blobs(settings.blob_url))
at = sys.argv[1] if len(sys.argv) > 1 else ""
if at.startswith("put"):
    put, left = opened.blobs.put_file, [int(at[3:])]
    def put_file(path):
        left[0] -= 1
        if left[0] == 0:
            die()
        return put(path)
    opened.blobs.put_file = put_file
elif at == "complete":
    JobQueue.complete = die
elif at == "publish":
    publish = locking.publish_version
    locking.publish_version = lambda *args, **kwargs: (publish(*args, **kwargs), die())
stop = threading.Event()
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: stop.set())
with EmbeddedWorker(settings, command={CHILD!r}).running(opened):
    stop.wait()
"""
"""An embedded worker in a process of its own. With an argument it kills itself at that point: `put2` is the second blob that it
stores, `complete` the moment before a result is committed, `publish` the moment between a version's rows and their commit."""
