"""Variants of clips over HTTP and by the command."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from amp_core.augment import Augmentation, make_variant
from amp_core.augment import motion_bytes as motion_data
from amp_core.augment.cutting import cut_motion
from amp_core.formats import Lineage, read_motion
from amp_core.robot import Robot
from ampref_service.catalog import selection
from ampref_service.catalog.records import Select


def motion_bytes(**changes: Any) -> bytes:
    """A clip for the bundled robot as JSON: standing, with a knee that moves a little."""
    dof = np.zeros((51, 8))
    dof[:, 2] = 0.2 + 0.05 * np.sin(2 * np.pi * np.arange(51) / 50)
    standing = {"root_pos": [[0.0, 0.0, 0.45]] * 51, "root_rot": [[0.0, 0.0, 0.0, 1.0]] * 51}
    return json.dumps({"fps": 50.0, **standing, "dof_pos": dof.tolist()} | changes).encode()


def augment(api: Any, clip: str, *texts: str, **body: Any) -> Any:
    return api.http.post(f"/v1/clips/{clip}/augment", json={"augmentations": list(texts), **body})


def test_variants_are_clips_of_their_own_with_their_parent(api: Any) -> None:
    parent = api.post(tags="slow").json()["clip"]
    assert (parent["parent"], parent["augmentation"], parent["lineage"]) == (None, None, parent["source_digest"])
    answer = augment(api, parent["id"], "mirror", "warp=0.9", "mirror", tags=["made"])
    assert answer.status_code == 202, answer.text
    variants = answer.json()["variants"]
    assert [item["augmentation"] for item in variants] == ["mirror", "warp=0.9"]
    for item in variants:
        clip = item["clip"]
        assert (clip["parent"], clip["parent_digest"]) == (parent["id"], parent["source_digest"])
        assert clip["lineage"] == parent["source_digest"]
        assert clip["tags"] == ["made", "slow"]
        assert item["job"]["state"] == "queued"
        assert item["job"]["id"] in api.rung
        with api.blobs.open(clip["source_digest"]) as stream:
            assert read_motion(stream.read(), name="x").lineage is not None
    listed = api.http.get("/v1/clips", params={"parent": parent["id"]}).json()["items"]
    assert {item["id"] for item in listed} == {item["clip"]["id"] for item in variants}
    assert {item["augmentation"] for item in listed} == {"mirror", "warp=0.9"}
    repeated = augment(api, parent["id"], "warp=0.9", "mirror", tags=["made"])
    assert repeated.status_code == 200
    assert {item["clip"]["id"] for item in repeated.json()["variants"]} == {item["clip"]["id"] for item in variants}
    mixed = augment(api, parent["id"], "mirror", "heading=90")
    assert mixed.status_code == 202


def test_a_part_is_a_clip_whose_bytes_are_those_of_the_command(api: Any) -> None:
    parent = api.post().json()["clip"]
    answer = augment(api, parent["id"], "cut=10:40")
    assert answer.status_code == 202, answer.text
    part = answer.json()["variants"][0]["clip"]
    assert (part["name"], part["frames_in"], part["augmentation"]) == ("walk_010-039", 30, "cut=10:40")
    source = read_motion(api.http.get(f"/v1/clips/{parent['id']}/file").content, name="walk", format="json")
    assert part["source_digest"] == cut_motion(source, 10, 40).motion.source_digest
    too_long = augment(api, parent["id"], "cut=10:52")
    assert too_long.status_code == 422
    assert "51 frames" in too_long.json()["detail"]


def test_a_variant_of_a_variant_has_the_first_as_ancestor(api: Any) -> None:
    parent = api.post().json()["clip"]
    child = augment(api, parent["id"], "mirror").json()["variants"][0]["clip"]
    grandchild = augment(api, child["id"], "warp=1.1").json()["variants"][0]["clip"]
    assert grandchild["parent"] == child["id"]
    assert grandchild["augmentation"] == "warp=1.1"
    assert grandchild["lineage"] == parent["source_digest"]
    assert api.http.delete(f"/v1/clips/{child['id']}").status_code == 204
    left = api.http.get(f"/v1/clips/{grandchild['id']}").json()
    assert (left["parent"], left["parent_digest"]) == (None, child["source_digest"])


def upload(api: Any, data: bytes) -> tuple[dict[str, Any], list[str]]:
    answer = api.http.post("/v1/clips", files={"file": ("variant.npz", data)})
    assert answer.status_code in (200, 202), answer.text
    return answer.json()["clip"], answer.json()["notes"]


def test_a_variant_that_was_uploaded_is_believed_once_it_can_be_made_again(api: Any) -> None:
    source = read_motion(motion_bytes(), name="walk")
    variant = make_variant(source, Robot.load("wildrobot"), Augmentation(mirror=True))
    clip, notes = upload(api, variant.data)
    assert (clip["parent"], clip["augmentation"], clip["lineage"]) == (None, None, clip["source_digest"])
    assert "kept as an original" in notes[0]
    parent = api.post(data=motion_bytes()).json()["clip"]
    assert api.http.get(f"/v1/clips/{clip['id']}").json()["parent"] is None
    again, notes = upload(api, variant.data)
    assert (again["id"], again["parent"], again["augmentation"], notes) == (clip["id"], parent["id"], "mirror", [])
    assert again["lineage"] == source.source_digest
    second = make_variant(read_motion(variant.data, name="walk"), Robot.load("wildrobot"), Augmentation(time_warp=0.9))
    grandchild, notes = upload(api, second.data)
    assert (grandchild["parent"], grandchild["lineage"], notes) == (clip["id"], source.source_digest, [])


@pytest.mark.parametrize(
    "changes",
    [
        {"lineage": Lineage("sha256:" + "0" * 64, "sha256:" + "0" * 64, "mirror")},
        {"ancestor": "sha256:" + "1" * 64},
        {"augmentation": "warp=0.9"},
        {"augmentation": "loop=2"},
        {"augmentation": "nonsense"},
    ],
)
def test_a_lineage_that_is_not_true_is_not_believed(api: Any, changes: dict[str, Any]) -> None:
    parent = api.post(data=motion_bytes()).json()["clip"]
    source = read_motion(motion_bytes(), name="walk")
    variant = make_variant(source, Robot.load("wildrobot"), Augmentation(mirror=True)).motion
    assert variant.lineage is not None
    lineage = changes.get("lineage") or replace(variant.lineage, **changes)
    arrays = (variant.root_pos, variant.root_rot, variant.dof_pos)
    clip, notes = upload(api, motion_data(variant.fps, *arrays, lineage=lineage))
    assert (clip["parent"], clip["parent_digest"], clip["augmentation"]) == (None, None, None)
    assert clip["lineage"] == clip["source_digest"] != parent["source_digest"]
    assert "kept as an original" in notes[0]
    child = augment(api, clip["id"], "heading=90").json()["variants"][0]["clip"]
    assert child["lineage"] == clip["source_digest"], "nor is it by what is made from it"


@pytest.mark.parametrize("texts", [["flip"], [], ["warp=0.5"], ["mirror+mirror"], ["loop=2"], ["mirror"] * 21])
def test_what_cannot_be_made_is_refused_and_nothing_is_kept(api: Any, texts: list[str]) -> None:
    # A ramp, which has no two like frames.
    ramp = np.linspace(0, 0.3, 51)
    dof = np.repeat(ramp[:, None], 8, axis=1) * [-1, -1, 1, 0.5, -1, 1, 1, 0.5]
    parent = api.post(data=motion_bytes(dof_pos=dof.tolist())).json()["clip"]
    answer = augment(api, parent["id"], "heading=10", *texts) if texts else augment(api, parent["id"])
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert api.http.get("/v1/clips", params={"parent": parent["id"]}).json()["items"] == []


def test_a_clip_that_is_not_there_is_404(api: Any) -> None:
    assert augment(api, "clip_none", "mirror").status_code == 404


def test_a_version_is_told_where_its_clips_come_from(api: Any) -> None:
    parent = api.post().json()["clip"]
    child = augment(api, parent["id"], "mirror").json()["variants"][0]["clip"]
    for _ in range(2):
        api.finish()
    with api.catalog.session() as session:
        items = {member.clip_id: member for member in selection.select_members(session, Select(robot="wildrobot"))}
    assert (items[parent["id"]].ancestor_digest, items[parent["id"]].augmentation) == (None, None)
    member = items[child["id"]]
    assert (member.parent_digest, member.ancestor_digest, member.augmentation) == (
        parent["source_digest"],
        parent["source_digest"],
        "mirror",
    )
