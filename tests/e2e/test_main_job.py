"""The main job through the real commands: up, submit, clips, lock, pull, load; and nothing left behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import numpy as np
import psutil
import pytest

from amp_core.cli import main as cli
from amp_core.client import load_dataset
from amp_core.errors import NotFound, NotReady
from amp_core.motions import bundled_motions, reading_options
from amp_core.readiness import TEST_IDS
from bench.servers import read_first_document

CSV = ["--fps", "30", "--quat-order", "wxyz"]
AMPREF = str(Path(sys.executable).with_name("ampref"))
TRAPS = ("service", "workers", "migrations", "amp_core", "ampref_service", "ampref_workers", "typer", "numpy")
"""Packages of the working directory that neither the command nor a process that it starts may take for the installed ones."""


def _environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AMPREF_")}
    return kept | {"HOME": str(home), "AMPREF_CACHE": str(home / "cache"), **more}


@dataclass
class Up:
    """A running `ampref up`."""

    process: subprocess.Popen[str]
    url: str
    home: Path

    def spawn(self, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """One `ampref` command against it, as a process of its own; its exit code is checked."""
        done = subprocess.run(
            [AMPREF, *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=900,
            cwd=self.home,
            env=_environment(self.home, **{"AMPREF_URL": self.url, **environment}),
        )
        assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """The same within this process, which is quicker."""
        out, err = io.StringIO(), io.StringIO()
        environment = _environment(self.home, AMPREF_URL=self.url)
        with mock.patch.dict(os.environ, environment), redirect_stdout(out), redirect_stderr(err):
            found = cli.run(arguments)
        assert found == code, f"{arguments}: exit {found}\n{out.getvalue()}\n{err.getvalue()}"
        return subprocess.CompletedProcess(arguments, found, out.getvalue(), err.getvalue())

    def json(self, *arguments: str) -> Any:
        """The JSON document that a command prints: all of stdout."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def stop(self, number: int = signal.SIGINT, within: float = 120.0) -> int:
        """Signal it and return its exit code."""
        self.process.send_signal(number)
        try:
            return self.process.wait(within)
        finally:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdout, self.process.stdin):
                if stream is not None:
                    stream.close()


TESTS = ("1A", "1C", "4", "7")
"""Of the readiness tests the quick ones; the demo, below, runs all of them before its lock."""


def start(home: Path, data: Path) -> Up:
    """`ampref up` on a free port."""
    with (home / "up.log").open("ab") as log:
        process = subprocess.Popen(
            [AMPREF, "up", "--port", "0", "--data-dir", str(data), "--workers", "2", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=home,
            env=_environment(home, AMPREF_LOCK_TESTS=",".join(TESTS), AMPREF_JOB_NICE="0", AMPREF_THUMBNAILS="false"),
            start_new_session=True,
        )
    facts = read_first_document(process)
    assert facts.get("pid") == process.pid, (facts, (home / "up.log").read_text())
    return Up(process, facts["url"], home)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, set_traps: Callable[..., Path]) -> Iterator[Up]:
    """A service whose working directory, like that of every command against it, holds the traps."""
    home = set_traps(tmp_path_factory.mktemp("up"), *TRAPS)
    service = start(home, home / "data")
    yield service
    if service.process.poll() is None:
        service.stop()


@pytest.fixture(scope="module")
def submitted(up: Up) -> list[dict[str, Any]]:
    """The bundled motions, scored as they are, which shows every tier."""
    done = up.spawn("submit", *map(str, bundled_motions()), *CSV, "--mode", "rollout", "--wait", "--tag", "e2e", "--json")
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def locked(up: Up, submitted: list[dict[str, Any]]) -> dict[str, Any]:
    """A locked version of everything that is Tier 0 or 1."""
    select = ["--tier", "0", "--tier", "1", "--tag", "e2e"]
    done = up.spawn("dataset", "lock", "walk", "0.11.0", *select, "--alias", "production", "--json")
    version: dict[str, Any] = json.loads(done.stdout)
    return version


def test_the_bundled_motions_are_scored_and_show_what_tiers_are_for(submitted: list[dict[str, Any]]) -> None:
    assert [Path(answer["file"]) for answer in submitted] == bundled_motions()
    assert all(answer["job"]["state"] == "succeeded" for answer in submitted)
    tiers = {answer["rollout"]["tier"] for answer in submitted}
    assert {-1, 1} <= tiers
    for answer in submitted:
        fell = answer["rollout"]["quality_metrics"]["fell_at_frame"]
        assert fell is None or answer["rollout"]["tier"] == -1


def test_what_the_service_keeps_is_for_its_user_alone(up: Up, submitted: list[dict[str, Any]]) -> None:
    data = up.home / "data"
    paths = [data, *data.rglob("*")]
    assert {"catalog.sqlite3", "uploads", "sha256"} <= {path.name for path in paths}
    assert {str(path) for path in paths if path.stat().st_mode & 0o077} == set()


def test_the_same_file_again_is_known_and_makes_no_job(up: Up, submitted: list[dict[str, Any]]) -> None:
    first = submitted[0]
    options = ["--fps", "30", "--quat-order", "wxyz"] if reading_options(Path(first["file"])) else []
    (again,) = up.json("submit", first["file"], *options, "--mode", "rollout")
    assert again["clip"]["id"] == first["clip"]["id"]
    assert again["rollout"]["id"] == first["rollout"]["id"]
    assert len(up.json("jobs", "--kind", "rollout", "--limit", "500")) == len(submitted)


def test_a_refused_file_does_not_hold_up_the_others(up: Up, tmp_path: Path, submitted: list[dict[str, Any]]) -> None:
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"PK\x03\x04 not a zip at all")
    done = up.run("submit", str(bad), submitted[0]["file"], "--mode", "rollout", "--quiet", code=1)
    assert done.stdout.split() == [submitted[0]["clip"]["id"]]
    assert done.stderr.startswith(f"error: {bad}")
    assert "what to do:" in done.stderr


def test_the_curriculum_query_filters_like_the_http_one(up: Up, submitted: list[dict[str, Any]]) -> None:
    for tier in (0, 1, -1):
        wanted = {answer["clip"]["id"] for answer in submitted if answer["rollout"]["tier"] == tier}
        assert {item["id"] for item in up.json("clips", "--tier", str(tier), "--tag", "e2e")} == wanted
    upright = up.json("clips", "--min", "mean_sum_fn_over_mg=0.9", "--max", "max_tilt_deg=30", "--sort", "-duration_sec")
    assert upright
    assert all(item["rollout"]["quality_metrics"]["mean_sum_fn_over_mg"] >= 0.9 for item in upright)
    lengths = [item["duration_sec"] for item in upright]
    assert lengths == sorted(lengths, reverse=True)
    page = httpx2.get(f"{up.url}/v1/clips", params={"tier": -1}).json()
    assert [item["id"] for item in up.json("clips", "--tier", "-1")] == [item["id"] for item in page["items"]]
    assert len(up.json("clips", "--limit", "2")) == 2
    assert len(up.json("clips", "--all")) == len(submitted)


def test_one_clip_shows_its_rollouts_and_is_not_deleted_while_a_version_holds_it(up: Up, locked: dict[str, Any]) -> None:
    held = up.json("clips", "--name", "squat")[0]
    clip = up.json("clip", held["id"])
    assert [rollout["tier"] for rollout in clip["rollouts"]] == [held["rollout"]["tier"]]
    refused = up.run("clip", held["id"], "--delete", code=1)
    assert "walk==0.11.0" in refused.stderr


@pytest.mark.filterwarnings("ignore:.* is not ready for training:amp_core.client.DatasetWarning")
def test_the_pulled_bytes_are_the_servers(up: Up, locked: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "files"
    pin = ["--manifest-sha256", locked["manifest_sha256"]]
    pulled = json.loads(up.spawn("pull", "walk==0.11.0", *pin, "--to", str(target), "--json").stdout)
    assert pulled["manifest_sha256"] == locked["manifest_sha256"]
    assert {path.name for path in target.iterdir()} == {file["name"] for file in locked["files"]}
    for file in locked["files"]:
        here = (target / file["name"]).read_bytes()
        assert here == httpx2.get(up.url + file["url"]).content
        assert f"sha256:{hashlib.sha256(here).hexdigest()}" == file["sha256"]
    pin_options: dict[str, Any] = {"manifest_sha256": locked["manifest_sha256"], "cache_dir": tmp_path / "cache"}
    with pytest.raises(NotReady, match="is not ready for training: "):
        load_dataset("walk==0.11.0", url=up.url, **pin_options)
    data = load_dataset("walk==0.11.0", url=up.url, **pin_options, allow_not_ready=True)
    assert data.features.shape == (locked["num_frames"], 27)
    assert data.features.dtype == np.float32
    assert f"sha256:{hashlib.sha256(data.features.tobytes()).hexdigest()}" == locked["dataset_hash"]
    with np.load(target / "features_v0.11.0.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["features"], data.features)
    assert np.isfinite(data.normalize(data.features)).all()


def test_a_second_pull_needs_no_server(up: Up, locked: dict[str, Any]) -> None:
    up.run("pull", "walk@production")
    asked = up.spawn("pull", "walk==0.11.0", code=1, AMPREF_URL="http://127.0.0.1:1")
    assert "cannot be reached" in asked.stderr
    again = json.loads(up.spawn("pull", "walk==0.11.0", "--offline", "--json").stdout)
    assert again["downloaded_bytes"] == 0
    assert again["manifest_sha256"] == locked["manifest_sha256"]
    assert "load_dataset(" in again["training_config"]
    assert locked["manifest_sha256"] in again["training_config"]
    missing = up.run("pull", "walk==0.99.0", "--offline", code=1)
    assert "what to do:" in missing.stderr


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(up: Up) -> None:
    proxies = {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1", "NO_PROXY": "", "no_proxy": ""}
    assert up.spawn("clips", "--json", **proxies).stdout


def test_a_locked_version_shows_its_readiness_and_can_be_tested_again(up: Up, locked: dict[str, Any], tmp_path: Path) -> None:
    at_the_lock = {test["id"]: test["status"] for test in locked["readiness"]["tests"] if test["status"] != "SKIP"}
    assert tuple(at_the_lock) == TESTS
    assert "Generator determinism" in up.run("dataset", "show", "walk==0.11.0").stdout
    assert "Training readiness" in httpx2.get(up.url + locked["verification_url"], params={"format": "html"}).text
    page = tmp_path / "page.html"
    only = [part for test in TESTS for part in ("--only", test)]
    done = up.run("verify", "walk==0.11.0", *only, "--json", "-", "--html", str(page))
    document = json.loads(done.stdout)
    again = {test["id"]: test["status"] for test in document["tests"] if test["status"] != "SKIP"}
    assert again == at_the_lock
    assert (document["subject"]["dataset"], document["subject"]["frames"]) == ("walk", locked["num_frames"])
    rows = {row["name"]: row for test in document["tests"] for row in test["rows"]}
    # Generated again from the bytes that the service gave back, and compared with the version's own files.
    assert rows["generated.differing"]["value"] == 0
    assert rows["artifact.rows"]["value"] == 0
    assert rows["artifact.statistics"]["value"] == 0
    assert "walk==0.11.0" in page.read_text()


def test_a_version_is_locked_once_and_versions_can_be_compared(up: Up, locked: dict[str, Any]) -> None:
    assert "error:" in up.run("dataset", "lock", "walk", "0.11.0", "--tier", "1", code=1).stderr
    up.run("dataset", "lock", "walk", "0.11.1", "--tier", "1", "--tag", "e2e")
    diff = up.json("dataset", "diff", "walk", "0.11.0", "0.11.1")
    assert {taken["name"] for taken in diff["removed"]} == {
        item["name"] for item in up.json("clips", "--tier", "0", "--tag", "e2e")
    }
    assert diff["same_features"] is False
    assert [item["name"] for item in up.json("dataset", "list")] == ["walk"]
    assert up.json("dataset", "show", "walk==0.11.0")["manifest_sha256"] == locked["manifest_sha256"]

    up.run("dataset", "yank", "walk", "0.11.1", "--reason", "made for a test")
    assert up.json("dataset", "show", "walk")["latest"] == "0.11.0"
    assert "made for a test" in up.run("pull", "walk==0.11.1").stderr
    up.run("dataset", "yank", "walk", "0.11.1", "--undo")
    assert up.json("dataset", "show", "walk")["latest"] == "0.11.1"
    up.run("dataset", "alias", "walk", "production", "0.11.1")
    assert up.json("dataset", "show", "walk@production")["version"] == "0.11.1"
    up.run("dataset", "alias", "walk", "production", "--delete")
    up.run("pull", "walk@production", code=1)


def test_an_unknown_version_is_refused_with_what_to_do(up: Up) -> None:
    done = up.run("pull", "nothing==1.0.0", code=1)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    with pytest.raises(NotFound):
        load_dataset("nothing==1.0.0", url=up.url, cache_dir=up.home / "other")


def test_ctrl_c_while_scoring_leaves_no_process_and_loses_no_clip(tmp_path: Path) -> None:
    service = start(tmp_path, tmp_path / "data")
    server = psutil.Process(service.process.pid)
    try:
        answers = service.json("submit", *(str(path) for path in bundled_motions()[:3]))
        children: list[psutil.Process] = []
        deadline = time.monotonic() + 240
        while not children and time.monotonic() < deadline:
            children = server.children(recursive=True)
            time.sleep(0.02)
        assert children, "no rollout was started"
    finally:
        code = service.stop(signal.SIGINT)
    assert code == 130
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    assert "Traceback" not in (tmp_path / "up.log").read_text()

    service = start(tmp_path, tmp_path / "data")
    try:
        for answer in answers:
            if answer["job"]:
                job = service.json("job", answer["job"]["id"], "--wait")
                assert job["state"] == "succeeded"
        assert len(service.json("clips", "--all")) == len(answers)
        assert all(item["rollout"] for item in service.json("clips", "--all"))
    finally:
        assert service.stop(signal.SIGTERM) == 0


def test_two_services_and_the_demo_run_at_once(up: Up, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    done = up.spawn("demo", "--json", TMPDIR=str(tmp_path), AMPREF_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    document = json.loads(done.stdout)
    assert document["features"][0] > 0
    # Every tier is shown, and what planning does for a clip that falls without it.
    assert {clip["tier"] for clip in document["clips"]} == {-1, 0, 1}
    tiers = {(clip["name"], clip["mode"]): clip["tier"] for clip in document["clips"]}
    assert (tiers["walk_long_stride", "rollout"], tiers["walk_long_stride", "tracked"]) == (-1, 0)
    # All ten tests ran before the lock.
    assert len([line for line in done.stderr.splitlines() if line.startswith("   PASS  ")]) == len(TEST_IDS)
    assert {"features_v0.11.0.npz", "normalization_stats_v0.11.0.json", "dataset_manifest_v0.11.0.json"} == set(
        document["files"]
    )
    assert set(tmp_path.iterdir()) == before, "the demo left files"
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(document["url"])
    assert up.process.poll() is None


def test_the_demo_that_is_killed_leaves_no_service(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [AMPREF, "demo"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(tmp_path, TMPDIR=str(tmp_path)),
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout:
        line = next(text for text in process.stdout if "http://" in text)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
    assert children
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(line.strip().partition(",")[0])
