"""Recordings over HTTP: the real API, catalog, embedded worker and its child."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from workerkit import settings_for

from amp_core.client import ApiClient, Retry
from amp_core.errors import AmprefError
from amp_core.motions import bundled_motions
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.rollout import replay
from ampref_service.app import create_app
from ampref_service.catalog import schema
from ampref_service.server import listen, make_server
from ampref_workers.embedded import EmbeddedWorker

EXAMPLE = Path(__file__).parents[2] / "examples" / "record_from_mujoco.py"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "march.npz"
    subprocess.run([sys.executable, str(EXAMPLE), str(path)], check=True, capture_output=True, timeout=120)
    return path


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    folder = tmp_path_factory.mktemp("service")
    settings = settings_for(folder, host="127.0.0.1", port=0, lease_sec=30.0, heartbeat_sec=1.0, job_memory_mb=2048)
    schema.upgrade(settings.database_url)
    worker, listener = EmbeddedWorker(settings), listen(settings)
    server = make_server(create_app(settings, notify=worker.notify, background=worker.running), settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with ApiClient(f"http://127.0.0.1:{listener.getsockname()[1]}", retry=Retry(attempts=2, timeout=20)) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def test_a_recording_is_scored_queried_and_scored_again(api: ApiClient, recording: Path, tmp_path: Path) -> None:
    answer = api.submit_clip(recording, mode="recorded")
    job = api.wait_for_job(answer["job"]["id"], timeout=120)
    assert job["state"] == "succeeded"
    rollout = api.get_rollout(job["result"]["rollout_id"])
    assert (rollout["mode"], rollout["tier"]) == ("recorded", 0)
    assert rollout["ingest"]["recording"]["exact"]
    assert rollout["ingest"]["recording"]["rows"] == "before"
    assert [clip["name"] for clip in api.iter_clips(mode="recorded", tier=0)] == ["march"]
    # What was exported is a recording itself, and gives the same states.
    path = api.download_arrays(rollout["id"], tmp_path / "export.npz")
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    robot = Robot.load("wildrobot")
    np.testing.assert_array_equal(replay(robot, arrays, Recipe.for_mode("recorded"))[0], arrays["qpos"])
    answer = api.submit_clip(path, mode="auto")
    job = api.wait_for_job(answer["job"]["id"], timeout=120)
    assert [entry["mode"] for entry in job["result"]["tried"]] == ["recorded", "rollout"][: len(job["result"]["tried"])]
    tried = api.get_rollout(job["result"]["tried"][0]["rollout_id"])
    assert tried["ingest"]["recording"]["exact"]


def test_a_clip_without_controls_is_refused_before_it_is_stored(api: ApiClient) -> None:
    squat = next(path for path in bundled_motions() if path.stem == "squat")
    with pytest.raises(AmprefError, match="carries no controls") as refusal:
        api.submit_clip(squat, mode="recorded")
    assert refusal.value.key == "ctrl"
    assert all(clip["name"] != "squat" for clip in api.iter_clips())


def test_controls_without_a_start_are_refused_by_name(api: ApiClient, recording: Path, tmp_path: Path) -> None:
    with np.load(recording) as archive:
        fields = {name: archive[name] for name in archive.files if name != "initial_qvel"}
    np.savez(tmp_path / "broken.npz", **fields)
    with pytest.raises(AmprefError, match="without initial_qvel") as refusal:
        api.submit_clip(tmp_path / "broken.npz", mode="recorded")
    assert refusal.value.key == "initial_qvel"


def test_the_usual_recipe_is_listed(api: ApiClient) -> None:
    with urllib.request.urlopen(f"{api.url}/v1/schema/modes") as answer:
        modes = {entry["name"]: entry for entry in json.load(answer)["items"]}
    assert modes["recorded"]["recipe_digest"] == Recipe.for_mode("recorded").digest
