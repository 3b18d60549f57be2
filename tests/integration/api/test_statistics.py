"""Statistics of a version: what its features say, computed once, of one file and of shards."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasetkit import JOINTS, LAYOUT, make_bundle

from amp_core.errors import Unavailable
from ampref_service import statistics
from ampref_service.catalog import datasets

STATISTICS = "/v1/datasets/walk/versions/0.1.0/statistics"
RANGES = ((0, 25), (26, 50))


def lock(api: Any, folder: Path, **options: Any) -> np.ndarray:
    """Lock a version of three clips with made-up rows; the rows."""
    for number in range(3):
        api.scored(number, name=f"clip{number}", tags="slow" if number else "slow,first")
    answer = api.http.post("/v1/datasets/walk/versions", json={"version": "0.1.0", "select": {}})
    assert answer.status_code == 202, answer.text
    bundle = make_bundle(folder, version="0.1.0", **options)
    api.publish(api.claim(), bundle, RANGES)
    return np.concatenate([np.load(shard.path)["features"] for shard in bundle.shards])


@pytest.mark.parametrize("shard_bytes", [None, 1])
def test_statistics_are_those_of_the_stored_rows(api: Any, tmp_path: Path, shard_bytes: int | None) -> None:
    rows = lock(api, tmp_path, shard_bytes=shard_bytes)
    body = api.http.get(STATISTICS).json()
    assert (body["version"], body["num_frames"], body["control_dt"]) == ("0.1.0", 150, 0.02)
    features = {feature["name"]: feature for feature in body["features"]}
    assert list(features) == list(LAYOUT.names)
    knee = features[f"joint_vel.{JOINTS[0]}"]
    assert (knee["unit"], knee["block"]) == ("rad/s", "joint_vel")
    column = LAYOUT.names.index(knee["name"])
    assert knee["max"] == rows[:, column].max()
    assert knee["p50"] == pytest.approx(np.median(rows[:, column]), abs=0.05)
    assert features["root_height.z"]["histogram"] is None
    assert sum(phase["frames"] for phase in body["phases"]) == len(rows)
    assert sum(map(sum, body["turning"]["frames"])) == len(rows)
    balance = body["balance"]
    assert (balance["num_sources"], len(balance["sources"])) == (3, 3)
    assert {share["name"]: share["seconds"] for share in balance["tags"]} == {"slow": 2.94, "first": 0.98}
    assert [share["name"] for share in balance["augmentations"]] == ["original"]
    assert sum(share["weight_share"] for share in balance["sources"]) == pytest.approx(1, abs=1e-5)
    clip = api.http.get("/v1/clips?name=clip0").json()["items"][0]
    source = next(share for share in balance["sources"] if share["name"] == "clip0")
    assert source.items() >= {"clip_id": clip["id"], "digest": clip["lineage"], "clips": 1, "seconds": 0.98}.items()


def test_an_outlier_names_its_clip_and_frame(api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amp_core.dataset.spread.OUTLIER_Z", 2.0)
    rows = lock(api, tmp_path)
    body = api.http.get(STATISTICS).json()
    feature = body["features"][0]
    worst = feature["outliers"][0]
    row = int(np.argmax(np.abs(rows[:, 0] - rows[:, 0].mean())))
    number, place = divmod(row, 49)
    assert worst["value"] == rows[row, 0]
    assert (worst["name"], worst["frame"]) == (f"clip{number}", place + (1 if place >= 25 else 0))
    clip = api.http.get(f"/v1/clips/{worst['clip_id']}").json()
    assert (clip["name"], worst["rollout_id"]) == (worst["name"], clip["rollouts"][0]["id"])


def test_they_are_computed_once_and_outlive_the_features(api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock(api, tmp_path)
    version = api.http.get("/v1/datasets/walk/versions/0.1.0").json()
    first = api.http.get(STATISTICS).json()
    monkeypatch.setattr(statistics, "compute_statistics", lambda *_: pytest.fail("they are there"))
    archive = {"reason": "old", "expected_manifest_sha256": version["manifest_sha256"]}
    assert api.http.post("/v1/datasets/walk/versions/0.1.0/archive", json=archive).status_code == 200
    assert api.http.get(STATISTICS).json() == first


def test_an_archived_version_whose_statistics_nobody_asked_for_is_gone(api: Any, tmp_path: Path) -> None:
    lock(api, tmp_path)
    with api.catalog.begin() as session:
        manifest = datasets.get_version(session, "walk", "0.1.0").manifest_digest
        datasets.archive_version(session, "walk", "0.1.0", "old", expected_manifest=manifest)
    answer = api.http.get(STATISTICS)
    assert (answer.status_code, answer.json()["type"]) == (410, "urn:ampref:error:gone")


def test_who_asks_while_they_are_computed_is_told_to_come_again(
    api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock(api, tmp_path)
    go_on, original = threading.Event(), statistics.compute_statistics

    def compute_slowly(*arguments: Any) -> dict[str, Any]:
        assert go_on.wait(30)
        return original(*arguments)

    monkeypatch.setattr(statistics, "compute_statistics", compute_slowly)
    monkeypatch.setattr(statistics, "WAIT_SEC", 0.1)
    for _ in range(2):
        answer = api.http.get(STATISTICS)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:ampref:error:busy")
        assert int(answer.headers["retry-after"]) > 0
    go_on.set()
    monkeypatch.setattr(statistics, "WAIT_SEC", 30.0)
    assert api.http.get(STATISTICS).status_code == 200


def test_a_service_that_ends_gives_up_what_it_computes(api: Any, tmp_path: Path) -> None:
    lock(api, tmp_path)
    with api.catalog.session() as session:
        version = datasets.get_version(session, "walk", "0.1.0")
    with pytest.raises(Unavailable, match="the service ends"):
        statistics.compute_statistics(api.app.state.services, version, lambda: True)


def test_a_damaged_file_is_named(api: Any) -> None:
    api.scored(0)
    api.lock()  # Its manifest is no manifest.
    answer = api.http.get(STATISTICS)
    assert answer.status_code == 500
    assert answer.json()["type"] == "urn:ampref:error:integrity"
