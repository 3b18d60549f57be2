"""`ApiClient`, `pull` and `load_dataset` against the real service: HTTP, catalog, embedded worker and its child."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from workerkit import settings_for

import amp_core.motions
from amp_core.client import ApiClient, DatasetWarning, Retry, load_clips, load_dataset
from amp_core.errors import Conflict, InputRefused, NotFound, NotReady
from ampref_service.app import create_app
from ampref_service.catalog import schema
from ampref_service.server import listen, make_server
from ampref_workers.embedded import EmbeddedWorker

QUICK = Retry(attempts=2, timeout=20, wait_initial=0.01, wait_max=0.02)
MOTIONS = Path(amp_core.motions.__file__).parent
CLIPS = ("squat.json", "march_in_place.npz", "side_step.npz")
LOCKABLE = {"tier": [0, 1]}

# These versions are locked without all of the ten tests.
pytestmark = pytest.mark.filterwarnings("ignore:.* is not ready for training:amp_core.client.DatasetWarning")


@contextlib.contextmanager
def running(server: uvicorn.Server, listener: Any) -> Iterator[None]:
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    """A client of a service that works; three clips are scored."""
    folder = tmp_path_factory.mktemp("service")
    quick = {"lease_sec": 30.0, "heartbeat_sec": 1.0, "sweep_sec": 5.0, "job_memory_mb": 2048}
    settings = settings_for(folder, host="127.0.0.1", port=0, **quick)
    schema.upgrade(settings.database_url)
    worker = EmbeddedWorker(settings)
    listener = listen(settings)
    app = create_app(settings, notify=worker.notify, background=worker.running)
    with running(make_server(app, settings), listener):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with ApiClient(url, retry=QUICK) as api:
            for file in CLIPS:
                made = api.submit_clip(MOTIONS / file, robot="wildrobot", tags=["upright"])
                assert not made["known"]
                assert api.wait_for_job(made["job"]["id"], timeout=120)["state"] == "succeeded"
            for version, select in (("0.1.0", {"clips": ["squat"]}), ("0.2.0", {"clips": ["squat", "march_in_place"]})):
                answer = api.lock_version("still", version, select=LOCKABLE | select)
                assert api.wait_for_job(answer["job"]["id"], timeout=120)["state"] == "succeeded"
            yield api


def test_it_is_ready_and_knows_its_robots(service: ApiClient) -> None:
    assert service.ready()
    assert "wildrobot" in {robot["name"] for robot in service.list_robots()}


def test_pages_are_walked_by_their_cursors(service: ApiClient) -> None:
    assert [clip["name"] for clip in service.iter_clips(sort="created_at", limit=1)] == ["squat", "march_in_place", "side_step"]
    first = service.list_clips(tag="upright", limit=2)
    assert len(first["items"]) == 2
    assert len(service.list_clips(tag="upright", limit=2, cursor=first["next_cursor"])["items"]) == 1
    assert len(list(service.iter_jobs(limit=2))) == 5
    assert {job["kind"] for job in service.iter_jobs(kind="lock")} == {"lock"}


def test_a_clip_its_rollout_and_its_arrays(service: ApiClient, tmp_path: Path) -> None:
    [listed] = [clip for clip in service.iter_clips() if clip["name"] == "squat"]
    [summary] = service.get_clip(listed["id"])["rollouts"]
    rollout = service.get_rollout(summary["id"])
    with np.load(service.download_arrays(rollout["id"], tmp_path / "arrays.npz"), allow_pickle=False) as arrays:
        assert arrays["features"].shape == (rollout["frames"], 27)
    # It never lifts a foot, which the specification's checks of the contacts find suspicious. Nothing was planned.
    assert rollout["contact_warnings"]
    assert rollout["attempts"] == []


def test_clips_of_a_query_are_fetched_and_pinned(service: ApiClient, tmp_path: Path) -> None:
    clips = load_clips(tags=["upright"], min_duration_sec=5.0, sort="created_at", url=service.url, cache_dir=tmp_path / "a")
    assert [clip.name for clip in clips] == ["squat", "march_in_place", "side_step"]
    for clip in clips:
        exported = service.download_arrays(clip.rollout_id, tmp_path / "arrays.npz").read_bytes()
        assert clip.path.read_bytes() == exported
        assert clip.features.shape == (clip.frames, 27)
        assert clip.arrays["qpos"].shape == (clip.frames, 15)
    pin = clips.pin(tmp_path / "pin.json")
    again = load_clips(pinned=pin, url=service.url, cache_dir=tmp_path / "b")
    assert [clip.path.read_bytes() for clip in again] == [clip.path.read_bytes() for clip in clips]


def test_a_version_without_all_tests_is_not_ready(service: ApiClient, tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"still==0\.1\.0 is not ready for training: .* was not run"):
        load_dataset("still==0.1.0", url=service.url, cache_dir=tmp_path, retry=QUICK)
    data = load_dataset("still==0.1.0", url=service.url, cache_dir=tmp_path, retry=QUICK, allow_not_ready=True)
    assert data.readiness.ready is False
    assert any("Micro-train smoke test: open" in reason for reason in data.readiness.reasons)
    # Where nobody says so, the manifest does.
    for ref in (tmp_path / "refs").rglob("*.json"):
        ref.unlink()
    with pytest.raises(NotReady, match="was not run"):
        load_dataset("still==0.1.0", manifest_sha256=data.manifest_sha256, cache_dir=tmp_path, offline=True)


def test_the_same_bytes_are_known(service: ApiClient) -> None:
    assert service.submit_clip(MOTIONS / "squat.json", robot="wildrobot", tags=["upright"])["known"]


def test_what_is_refused_is_raised(service: ApiClient) -> None:
    with pytest.raises(NotFound):
        service.get_clip("clip_of_nobody")
    with pytest.raises(Conflict):
        service.lock_version("still", "0.1.0", select=LOCKABLE)
    with pytest.raises(InputRefused):
        service.lock_version("still", "latest", select=LOCKABLE)
    [held] = [clip for clip in service.iter_clips() if clip["name"] == "squat"]
    with pytest.raises(Conflict):
        service.delete_clip(held["id"])
    finished = next(service.iter_jobs())
    with pytest.raises(Conflict):
        service.cancel_job(finished["id"])


def test_versions_differ_by_their_clips(service: ApiClient) -> None:
    diff = service.diff_versions("still", "0.1.0", "0.2.0")
    assert [clip["name"] for clip in diff["added"]] == ["march_in_place"]
    assert (diff["removed"], diff["changed"], diff["unchanged"], diff["same_features"]) == ([], [], 1, False)


def test_an_alias_leads_to_a_version_until_it_is_forgotten(service: ApiClient, tmp_path: Path) -> None:
    assert service.set_alias("still", "production", "0.1.0")["version"] == "0.1.0"
    assert service.get_dataset("still")["aliases"]["production"] == "0.1.0"
    data = load_dataset("still@production", url=service.url, cache_dir=tmp_path, retry=QUICK, allow_not_ready=True)
    assert (data.version, data.manifest["num_clips"]) == ("0.1.0", 1)
    assert [segment["tier"] for segment in data.manifest["clips"][0]["segments"]] == [data.manifest["clips"][0]["tier"]]
    service.delete_alias("still", "production")
    with pytest.raises(NotFound, match="production"):
        load_dataset("still@production", url=service.url, cache_dir=tmp_path, retry=QUICK, allow_not_ready=True)


def test_a_yanked_version_warns_until_it_is_taken_back(service: ApiClient, tmp_path: Path) -> None:
    def load(spec: str) -> Any:
        return load_dataset(spec, url=service.url, cache_dir=tmp_path, retry=QUICK, allow_not_ready=True)

    assert service.yank_version("still", "0.2.0", "march_in_place leans")["yanked"]
    assert load("still").version == "0.1.0", "latest passes a yanked version by"
    with pytest.warns(DatasetWarning, match="march_in_place leans"):
        assert load("still==0.2.0").manifest["num_clips"] == 2
    service.yank_version("still", "0.1.0", "too short")
    with pytest.raises(NotFound, match=r"of its 2, 2 are yanked;.*still==0\.2\.0 can be pulled by its exact name"):
        load("still")
    service.unyank_version("still", "0.1.0")
    assert not service.unyank_version("still", "0.2.0")["yanked"]
    assert load("still").version == "0.2.0"
    assert [dataset["name"] for dataset in service.list_datasets()] == ["still"]
    assert service.get_version("still", "0.2.0")["manifest_sha256"] == load("still").manifest_sha256
