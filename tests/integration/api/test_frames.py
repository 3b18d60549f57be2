"""What a replay is drawn from: the scene of a robot, and rows of a rollout."""

from __future__ import annotations

import gzip
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from catalogkit import make_catalog
from starlette.testclient import TestClient

from amp_core.npz import write_npz
from amp_core.robot import Robot
from ampref_service import scenes
from ampref_service.app import create_app
from ampref_service.settings import Settings

FRAMES = 300
ARRAYS: dict[str, Any] = {
    "features": np.arange(FRAMES * 27, dtype=np.float32).reshape(FRAMES, 27),
    "qpos": np.random.default_rng(0).normal(size=(FRAMES, 15)),
    "foot_contacts": np.ones((FRAMES, 4), np.float32),
    "initial_qpos": np.zeros(15),
    "clip_frames": np.array(FRAMES),
}


def load(content: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


# The scene


def test_a_scene_is_the_robots_and_compressed_for_who_takes_it(api: Any) -> None:
    digest = api.http.get("/v1/robots/wildrobot").json()["digest"]
    answer = api.http.get("/v1/robots/wildrobot/scene", params={"digest": digest})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["vary"] == "accept-encoding"
    plain = api.http.get("/v1/robots/wildrobot/scene", headers={"accept-encoding": "gzip;q=0, br"})
    assert "content-encoding" not in plain.headers
    assert plain.content == answer.content == scenes.write_scene(Robot.load("wildrobot"))
    assert plain.headers["cache-control"] == "public, no-cache"
    assert int(answer.headers["content-length"]) < len(plain.content) / 3
    # The two have other bytes, and so other strong tags.
    assert plain.headers["etag"] != answer.headers["etag"]
    again = api.http.get("/v1/robots/wildrobot/scene", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]


def test_another_model_of_the_robot_is_not_drawn_as_this_one(api: Any) -> None:
    answer = api.http.get("/v1/robots/wildrobot/scene", params={"digest": "sha256:" + "0" * 64})
    assert answer.status_code == 404
    problem = answer.json()
    assert problem["key"] == "query.digest"
    assert problem["expected"] == api.http.get("/v1/robots/wildrobot").json()["digest"]
    assert api.http.get("/v1/robots/nobody/scene").status_code == 404
    assert api.http.get("/v1/robots/wildrobot/scene?digest=latest").status_code == 422


def test_a_scene_is_built_once(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def build(robot: Robot) -> bytes:
        calls.append(robot.name)
        return b"scene"

    monkeypatch.setattr(scenes, "write_scene", build)
    threads = [threading.Thread(target=api.http.get, args=("/v1/robots/wildrobot/scene",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["wildrobot"]
    assert gzip.decompress(api.app.state.services.scenes.get(Robot.load("wildrobot")).compressed) == b"scene"


# Frames


@pytest.fixture
def rollout(api: Any) -> str:
    buffer = io.BytesIO()
    write_npz(buffer, ARRAYS)
    api.post(1)
    return str(api.finish(arrays=buffer.getvalue()))


def test_rows_are_those_of_the_export(api: Any, rollout: str) -> None:
    export = load(api.http.get(f"/v1/rollouts/{rollout}/arrays").content)
    answer = api.http.get(f"/v1/rollouts/{rollout}/frames", params={"start": 20, "stop": 60})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    window = load(answer.content)
    assert list(window) == ["features", "qpos", "foot_contacts"]
    for name, rows in window.items():
        assert rows.dtype == export[name].dtype
        np.testing.assert_array_equal(rows, export[name][20:60])
    small = api.http.get(f"/v1/rollouts/{rollout}/frames", params={"arrays": "qpos", "dtype": "float32"})
    np.testing.assert_array_equal(load(small.content)["qpos"], export["qpos"].astype(np.float32))
    assert small.headers["etag"] != answer.headers["etag"]
    same = api.http.get(
        f"/v1/rollouts/{rollout}/frames",
        params={"arrays": "qpos,qpos", "dtype": "float32", "start": 0},
        headers={"if-none-match": small.headers["etag"]},
    )
    assert (same.status_code, same.content) == (304, b"")


@pytest.mark.parametrize(
    ("query", "key", "words"),
    [
        ({"arrays": "qpso"}, "query.arrays", "features, qpos, foot_contacts"),
        ({"arrays": "initial_qpos"}, "query.arrays", "initial_qpos"),
        ({"arrays": "qpos,"}, "query.arrays", "names of arrays"),
        ({"stop": 301}, "query.stop", "300 frames"),
        ({"start": 301}, "query.start", "300 frames"),
        ({"start": 5, "stop": 4}, "query.start", "rows 5 to 4"),
        ({"start": -1}, "query.start", "0"),
        ({"dtype": "float16"}, "query.dtype", "float32"),
        ({"frames": "0:5"}, "query.frames", "arrays, start, stop"),
    ],
)
def test_what_there_is_not_is_refused_and_named(api: Any, rollout: str, query: Any, key: str, words: str) -> None:
    answer = api.http.get(f"/v1/rollouts/{rollout}/frames", params=query)
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["type"] == "urn:ampref:error:parameter-refused"
    assert problem.get("key") == key or problem["errors"][0]["key"] == key
    assert words in answer.text


def test_a_window_is_bounded(api: Any, rollout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amp_core.frames.MAX_WINDOW_BYTES", 1 << 14)
    answer = api.http.get(f"/v1/rollouts/{rollout}/frames", params={"arrays": "qpos"})
    assert answer.status_code == 422
    assert "136 rows" in answer.json()["expected"]
    assert api.http.get(f"/v1/rollouts/{rollout}/frames", params={"arrays": "qpos", "stop": 136}).status_code == 200


def test_long_windows_have_few_places_and_short_ones_need_none(api: Any, rollout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ampref_service.api.frames._LARGE", 4000)
    assert api.http.get(f"/v1/rollouts/{rollout}/frames").status_code == 200
    monkeypatch.setattr("ampref_service.api.frames._PLACES", _NoPlaces())
    assert api.http.get(f"/v1/rollouts/{rollout}/frames").status_code == 503
    assert api.http.get(f"/v1/rollouts/{rollout}/frames?stop=3").status_code == 200


class _NoPlaces:
    """All places are taken."""

    def get(self) -> Any:
        import anyio

        limiter = anyio.CapacityLimiter(1)
        limiter.acquire_on_behalf_of_nowait(object())
        return limiter


def test_nothing_is_served_of_a_blob_with_other_bytes(api: Any, rollout: str) -> None:
    digest = api.http.get(f"/v1/rollouts/{rollout}/arrays").headers["etag"].strip('"')
    path = api.blobs.local_path(f"sha256:{digest}")
    assert api.http.get(f"/v1/rollouts/{rollout}/frames?arrays=qpos").status_code == 200
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    answer = api.http.get(f"/v1/rollouts/{rollout}/frames?arrays=features&stop=1")
    assert answer.status_code == 500
    assert answer.json()["type"] == "urn:ampref:error:integrity"
    assert "(walk)" in api.http.get(f"/v1/rollouts/{rollout}/frames?arrays=features&stop=1").json()["what"]


def test_frames_of_an_object_store_are_the_same(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", blob_url="memory://")
    make_catalog(settings.database_url)
    with TestClient(create_app(settings, notify=lambda job: None)) as http:
        services = http.app.state.services  # type: ignore[attr-defined]
        buffer = io.BytesIO()
        write_npz(buffer, ARRAYS)
        digest = services.blobs.put_bytes(buffer.getvalue())
        blob = services.blobs.verify_once(digest)
        with services.blobs.open_verified(blob) as file:
            assert file.read() == buffer.getvalue()
            file.seek(100)
            assert file.read(50) == buffer.getvalue()[100:150]


def test_there_is_no_such_rollout(api: Any) -> None:
    assert api.http.get("/v1/rollouts/rollout_1/frames").status_code == 404
