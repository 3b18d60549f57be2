"""Buckets of physics over HTTP: what a selection may say, and what a version tells."""

from __future__ import annotations

import json
from typing import Any

import pytest


def _slug(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["type"]).removeprefix("urn:ampref:error:")


@pytest.mark.parametrize(
    "buckets",
    [[], "some", {}, [{"friction": 0}], [{"friction": "0.7"}], [{"grip": 0.7}], ["friction=0.7"], [{"mass": 11}], [None]],
)
def test_buckets_with_a_mistake_are_refused(idle: Any, buckets: Any) -> None:
    body = {"version": "0.1.0", "select": {"buckets": buckets}}
    assert _slug(idle.http.post("/v1/datasets/walk/versions", json=body), 422) == "parameter-refused"


def test_a_version_of_two_buckets(api: Any) -> None:
    api.scored(1, "turn")
    clip = api.scored(0, "walk")
    for factor in (0.7, 0.5):
        answer = api.post(0, name="walk", recipe=json.dumps({"mode": "rollout", "physics": {"friction": factor}}))
        assert answer.status_code == 202, answer.text
        assert answer.json()["clip"]["id"] == clip
        api.finish(tier=0 if factor == 0.7 else -1)

    canonical = api.lock(version="0.1.0")
    assert canonical.select["buckets"] is None
    both = api.lock(version="0.2.0", buckets=[{"friction": 0.7}, {}, {"mass": 1.0}])
    assert [scale["friction"] for scale in both.select["buckets"]] == [1.0, 0.7], "each once, the robot's own first"
    api.lock(version="0.3.0", buckets="all")
    get = api.http.get
    for version, names in (("0.1.0", ["canonical"]), ("0.2.0", ["canonical", "friction=0.7"])):
        buckets = get(f"/v1/datasets/walk/versions/{version}").json()["buckets"]
        assert [bucket["name"] for bucket in buckets] == names
        assert [bucket["num_clips"] for bucket in buckets] == [2, 1][: len(names)]
        assert buckets[-1]["num_frames"] == 50 * buckets[-1]["num_clips"]
    assert get("/v1/datasets/walk/versions/0.3.0").json()["buckets"] == buckets
    added = get("/v1/datasets/walk/diff?before=0.1.0&after=0.2.0").json()["added"]
    assert [(share["name"], share["bucket"]) for share in added] == [("walk", "friction=0.7")]

    body = {"version": "0.4.0", "select": {"buckets": [{"friction": 0.5}, {}]}}
    refused = api.http.post("/v1/datasets/walk/versions", json=body)
    assert _slug(refused, 422) == "input-refused"
    assert "'friction=0.5'" in refused.json()["what"]
    assert refused.json()["expected"] == "of canonical, friction=0.7"
    empty = {"version": "0.4.0", "select": {"buckets": "all", "tags": ["nope"]}}
    assert "empty" in api.http.post("/v1/datasets/walk/versions", json=empty).json()["what"]
    body["select"]["recipe"] = "sha256:" + "0" * 64  # type: ignore[index]
    assert "both buckets and a recipe" in api.http.post("/v1/datasets/walk/versions", json=body).json()["what"]
