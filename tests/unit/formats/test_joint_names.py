"""The names of the joint columns: read from every format, and the columns put into the robot's order."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from amp_core.augment import Augmentation, make_variant
from amp_core.augment.cutting import cut_motion
from amp_core.errors import MotionRefused
from amp_core.formats import Motion, read_motion
from amp_core.formats.joint_names import match_joint_names
from amp_core.motion import check_clip, check_motion, condition, reorder_joints
from amp_core.robot import Robot

LEGS = ("hip_pitch", "hip_roll", "knee_pitch", "ankle_pitch")
ORDERS = {
    "robot": [f"{side}_{joint}" for side in ("left", "right") for joint in LEGS],
    "breadth-first": [f"{side}_{joint}" for joint in LEGS for side in ("left", "right")],
    "right first": [f"{side}_{joint}" for side in ("right", "left") for joint in LEGS],
    "reversed": [f"{side}_{joint}" for side in ("right", "left") for joint in reversed(LEGS)],
}
FORMS: dict[str, Callable[[list[str]], Any]] = {
    "list": list,
    "tuple": tuple,
    "bytes": lambda names: [name.encode() for name in names],
    "unicode array": np.array,
    "bytes array": lambda names: np.array([name.encode() for name in names]),
    "big-endian array": lambda names: np.array(names).astype(">U20"),
    "object array": lambda names: np.array(names, dtype=object),
    "numpy texts": lambda names: [np.str_(name) for name in names],
    "row": lambda names: np.array([names]),
    "one text": ", ".join,
}


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


def write(clip: dict[str, Any], kind: str, **more: Any) -> bytes:
    if kind == "npz":
        out = io.BytesIO()
        np.savez(out, **clip, **more)
        return out.getvalue()
    if kind == "json":
        fields = {**clip, **more}
        return json.dumps(
            {key: value.tolist() if hasattr(value, "tolist") else value for key, value in fields.items()}
        ).encode()
    return pickle.dumps({**clip, **more})


def reordered(clip: dict[str, Any], order: str) -> tuple[dict[str, Any], list[str]]:
    names = ORDERS[order]
    return {**clip, "dof_pos": clip["dof_pos"][:, [ORDERS["robot"].index(name) for name in names]]}, names


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["npz", "pkl", "json"])
@pytest.mark.parametrize("key", ["joint_names", "dof_names", "joints_list", "joint_order"])
def test_names_decide_the_order(clip: dict[str, Any], robot: Robot, form: str, kind: str, key: str) -> None:
    if kind == "json" and "bytes" in form:
        pytest.skip("JSON has no bytes")
    for order in ORDERS:
        changed, names = reordered(clip, order)
        motion = read_motion(write(changed, kind, **{key: FORMS[form](names)}), name="walk")
        assert motion.joint_names == tuple(names)
        np.testing.assert_array_equal(motion.dof_pos, changed["dof_pos"])
        ordered, report = reorder_joints(motion, robot)
        np.testing.assert_array_equal(ordered.dof_pos, clip["dof_pos"])
        assert ordered.joint_names == tuple(robot.joint_names)
        assert ordered.source_digest == motion.source_digest
        if order == "robot":
            assert report is None
        else:
            assert report is not None
            assert ", ".join(names) in report.message
            assert ", ".join(robot.joint_names) in report.message


def test_conditioning_and_variants_use_the_robots_order(clip: dict[str, Any], robot: Robot) -> None:
    plain = condition(read_motion(write(clip, "npz"), name="walk"), robot)
    changed, names = reordered(clip, "breadth-first")
    motion = read_motion(write(changed, "npz", joint_names=names), name="walk")
    named = condition(motion, robot)
    np.testing.assert_array_equal(named.dof_pos, plain.dof_pos)
    assert named.report.notes[0].startswith("Joint order: ")
    assert not any(note.startswith("Joint order") for note in plain.report.notes)
    variant = make_variant(motion, robot, Augmentation.parse("heading=30"))
    assert variant.motion.joint_names == tuple(robot.joint_names)
    np.testing.assert_array_equal(variant.motion.dof_pos, clip["dof_pos"])
    again = read_motion(variant.data, name=variant.motion.name)
    assert again.joint_names == variant.motion.joint_names
    check_motion(again, robot)


def test_names_of_another_robot_are_refused_with_both_lists(clip: dict[str, Any], robot: Robot) -> None:
    names = [f"{side}_{joint}" for side in ("left", "right") for joint in ("hip_yaw", "hip_roll", "knee", "ankle")]
    motion = read_motion(write(clip, "npz", joint_names=names), name="walk")
    for bind in (check_motion, condition, reorder_joints):
        with pytest.raises(MotionRefused) as caught:
            bind(motion, robot)
        assert caught.value.key == "joint_names"
        assert ", ".join(names) in str(caught.value)
        assert ", ".join(robot.joint_names) in str(caught.value)


def test_joints_that_the_robot_does_not_have(clip: dict[str, Any], robot: Robot) -> None:
    names = [*ORDERS["right first"][:5], "waist_yaw", *ORDERS["right first"][5:]]
    changed, _ = reordered(clip, "right first")
    for value in (0.0, 0.1):
        dof = np.insert(changed["dof_pos"], 5, value, axis=1)
        motion = read_motion(write({**clip, "dof_pos": dof}, "pkl", joint_names=names), name="walk")
        if value:
            with pytest.raises(MotionRefused, match="moves joints that the robot does not have \\(waist_yaw\\)"):
                reorder_joints(motion, robot)
        else:
            ordered, report = reorder_joints(motion, robot)
            np.testing.assert_array_equal(ordered.dof_pos, clip["dof_pos"])
            assert report is not None
            assert report.dropped == ("waist_yaw",)
            assert "waist_yaw" in report.message
    fewer = {**clip, "dof_pos": clip["dof_pos"][:, 1:]}
    motion = read_motion(write(fewer, "pkl", joint_names=ORDERS["robot"][1:]), name="walk")
    with pytest.raises(MotionRefused, match="names are not the robot's"):
        reorder_joints(motion, robot)


def test_numbered_columns_have_no_names(clip: dict[str, Any]) -> None:
    for pattern in ("joint_{}", "dof{}", "q{}", "{}", "J_{}"):
        names = [pattern.format(i) for i in range(8)]
        assert read_motion(write(clip, "json", joint_names=names), name="walk").joint_names is None
    for nothing in (None, []):
        assert read_motion(write(clip, "pkl", joint_names=nothing), name="walk").joint_names is None


def test_the_name_of_the_free_joint_is_left_out(clip: dict[str, Any]) -> None:
    names = ["floating_base_joint", *ORDERS["robot"]]
    assert read_motion(write(clip, "npz", joint_names=names), name="walk").joint_names == tuple(ORDERS["robot"])


@pytest.mark.parametrize(
    ("names", "needle"),
    [
        (ORDERS["robot"][:7], "7 names"),
        (ORDERS["robot"][:1], "dof_pos[:, 7:]"),
        ([*ORDERS["robot"], "waist"], "9 names"),
        ([*ORDERS["robot"][:7], ORDERS["robot"][0]], "appears twice"),
        (list(range(8)), "a list of 8"),
        (7, "a number"),
        ({"a": 1}, "a dict"),
        ([*ORDERS["robot"][:7], 3], "no list of names"),
        (np.zeros(8), "an array"),
        (["a" * 300] * 8, "no list of names"),
        (ORDERS["robot"] * 1000, "no list of names"),
        ([["a"]] * 8, "a list of 8"),
    ],
)
def test_names_that_cannot_be_used(clip: dict[str, Any], names: Any, needle: str) -> None:
    for kind in ("pkl", "json") if not isinstance(names, np.ndarray) else ("pkl", "npz"):
        with pytest.raises(MotionRefused) as caught:
            read_motion(write(clip, kind, joint_names=names), name="walk")
        assert caught.value.key == "joint_names"
        assert needle in str(caught.value), str(caught.value)
        assert caught.value.remedy
        assert len(str(caught.value)) < 2000


def test_two_lists_that_disagree(clip: dict[str, Any]) -> None:
    with pytest.raises(MotionRefused, match="name the columns differently"):
        read_motion(write(clip, "npz", joint_names=ORDERS["robot"], dof_names=ORDERS["reversed"]), name="walk")
    motion = read_motion(write(clip, "npz", joint_names=["a", "b"], dof_names=ORDERS["reversed"]), name="walk")
    assert motion.joint_names == tuple(ORDERS["reversed"])


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.upper(),
        lambda name: f"{name}_joint",
        lambda name: f"robot/{name}",
        lambda name: f"dof_{name} ",
        lambda name: name.replace("_", "-"),
        lambda name: name.title().replace("_", ""),
        lambda name: name.replace("left", "L").replace("right", "R"),
        lambda name: name.partition("_")[2] + "_" + name[0],
    ],
)
def test_names_are_matched_in_spite_of_how_they_are_written(change: Callable[[str], str]) -> None:
    joints, names = ORDERS["robot"], ORDERS["breadth-first"]
    expected = [names.index(joint) for joint in joints]
    assert match_joint_names([change(name) for name in names], joints) == expected
    assert match_joint_names(names, [change(joint) for joint in joints]) == expected


def test_names_that_are_ambiguous_or_missing_are_not_matched() -> None:
    assert match_joint_names(["l_hip", "left_hip"], ["hip_left"]) is None
    assert match_joint_names(["hip", "HIP"], ["Hip"]) is None
    assert match_joint_names(["left_hip"], ["left_hip", "right_hip"]) is None
    assert match_joint_names([], ["left_hip"]) is None


def test_a_motion_names_each_of_its_columns_once(clip: dict[str, Any]) -> None:
    arrays = (clip["root_pos"], clip["root_rot"], clip["dof_pos"])
    for names in (("a",), ("a",) * 8):
        with pytest.raises(MotionRefused, match="dof_pos has 8 columns"):
            Motion("walk", 50.0, *arrays, "sha256:0", "npz", joint_names=names)


def test_seven_columns_too_many(clip: dict[str, Any], robot: Robot) -> None:
    root = np.hstack([clip["root_pos"] + 0.3, np.roll(clip["root_rot"], 1, axis=1)])
    for dof, needle in (
        (np.hstack([root, clip["dof_pos"]]), "the first 7 columns look like the root"),
        (np.hstack([clip["dof_pos"], root]), "the last 7 columns look like an object"),
        (np.zeros((12, 15)), "15 joints"),
    ):
        motion = read_motion(write({**clip, "dof_pos": dof}, "npz"), name="walk")
        with pytest.raises(MotionRefused, match=needle):
            check_motion(motion, robot)


# --- Names under other keys -------------------------------------------------------------------------------------------


PLACES: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "joints": lambda names: {"joints": names},
    "jointNames": lambda names: {"jointNames": names},
    "JOINT_NAMES": lambda names: {"JOINT_NAMES": np.array(names)},
    "dof_joint_names": lambda names: {"dof_joint_names": [f"{name}_joint" for name in names]},
    "motor_names": lambda names: {"motor_names": ["free", *names]},
    "body_joints": lambda names: {"body_joints": names},
    "columns": lambda names: {"columns": [*"xyz", "qx", "qy", "qz", "qw", *names]},
    "labels": lambda names: {"labels": ", ".join(names)},
    "meta.joint_names": lambda names: {"meta": {"robot": "wildrobot", "joint_names": names}},
    "meta.robot.names": lambda names: {"meta": json.dumps({"robot": {"names": names}, "tags": ["walk"] * 8})},
    "index": lambda names: {"index": {name: place for place, name in enumerate(names)}},
    "meta.joints": lambda names: {"meta": {"joints": [{"name": name, "axis": [0, 1, 0]} for name in names]}},
}


@pytest.mark.parametrize("kind", ["npz", "pkl", "json"])
@pytest.mark.parametrize("key", PLACES)
def test_names_under_any_key_decide_the_order(clip: dict[str, Any], robot: Robot, kind: str, key: str) -> None:
    changed, names = reordered(clip, "breadth-first")
    tags = {"tags": ["walk", "slow"], "body_names": ["pelvis", *names], "contact": ["left_toe", "right_toe"]}
    motion = read_motion(write(changed, kind, **PLACES[key](names), **tags), name="walk")
    assert motion.joint_names is None
    ordered, report = reorder_joints(motion, robot)
    np.testing.assert_array_equal(ordered.dof_pos, clip["dof_pos"])
    assert ordered.joint_names == tuple(robot.joint_names)
    assert report is not None
    assert report.key == key
    assert f"({key})" in report.message
    part = read_motion(cut_motion(motion, 2, 9).data, name="part")
    ordered, report = reorder_joints(part, robot)
    np.testing.assert_array_equal(ordered.dof_pos, clip["dof_pos"][2:9])
    assert report is not None
    assert report.key == key


def test_bytes_of_json_in_an_npz(clip: dict[str, Any], robot: Robot) -> None:
    changed, names = reordered(clip, "reversed")
    meta = np.frombuffer(json.dumps({"joint_names": names}).encode(), np.uint8)
    ordered, _ = reorder_joints(read_motion(write(changed, "npz", meta=meta), name="walk"), robot)
    np.testing.assert_array_equal(ordered.dof_pos, clip["dof_pos"])


@pytest.mark.parametrize(
    "more",
    [
        {"body_names": ORDERS["reversed"]},
        {"node_names": ORDERS["reversed"]},
        {"links": [f"{name}_link" for name in ORDERS["reversed"]]},
        {"bodies": [f"{name}_link" for name in ORDERS["reversed"]]},
        {"list": [f"{name}_link" for name in ORDERS["reversed"]]},
        {"tags": ["walk", "slow", "forward", "indoor", "take 3", "left", "right", "knee"]},
        {"joints": [f"joint_{place}" for place in range(8)]},
        {"joint_types": ["hinge"] * 8},
        {"upper_joints": ORDERS["robot"][2:5]},
        {"description": "a walk that has eight words in all"},
        {"meta": {"joint_names": ["pelvis", "left_hip", "right_hip", "spine1", "left_knee"]}},
        {"meta": "{not json, left_hip_pitch"},
        {"joints": []},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["npz", "pkl", "json"])
def test_texts_that_name_no_columns_are_ignored(clip: dict[str, Any], robot: Robot, kind: str, more: dict[str, Any]) -> None:
    motion, report = reorder_joints(read_motion(write(clip, kind, **more), name="walk"), robot)
    np.testing.assert_array_equal(motion.dof_pos, clip["dof_pos"])
    assert report is None


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("joints", [*ORDERS["reversed"][:7], "waist"]),
        ("labels", [*ORDERS["reversed"][:5], "a", "b", "c"]),
        ("labels", [*ORDERS["reversed"][:7], ORDERS["reversed"][0]]),
        ("dof_joint_names", ["links_hip", "rechts_hip", *(f"gelenk_{letter}" for letter in "abcdef")]),
        ("joints", ORDERS["robot"][:6]),
    ],
)
def test_names_of_some_joints_are_refused_with_both_lists(
    clip: dict[str, Any], robot: Robot, key: str, names: list[str]
) -> None:
    motion = read_motion(write(clip, "pkl", **{key: names}), name="walk")
    finding = check_clip(motion, robot).refusal
    assert finding is not None
    assert (finding.code, finding.key) == ("joint_names_differ", key)
    assert ", ".join(names) in finding.message
    assert ", ".join(robot.joint_names) in str(finding.expected)


def test_two_lists_must_agree(clip: dict[str, Any], robot: Robot) -> None:
    changed, names = reordered(clip, "breadth-first")
    for more in (
        {"joint_names": names, "dof_names": [f"{name}_joint" for name in names]},
        {"joint_names": [name.upper() for name in names], "meta": {"joint_names": names}},
        {"joints": names, "labels": [f"robot/{name}" for name in names]},
    ):
        ordered, _ = reorder_joints(read_motion(write(changed, "pkl", **more), name="walk"), robot)
        np.testing.assert_array_equal(ordered.dof_pos, clip["dof_pos"])
    for first, second in (
        ("joint_names", "dof_names"),
        ("dof_names", "joints"),
        ("joints", "labels"),
        ("joints", "meta.joints"),
    ):
        fields = {first: names, second: ORDERS["robot"]}
        if second == "meta.joints":
            fields = {first: names, "meta": {"joints": ORDERS["robot"]}}  # type: ignore[dict-item]
        with pytest.raises(MotionRefused) as caught:
            reorder_joints(read_motion(write(changed, "pkl", **fields), name="walk"), robot)
        assert f"{first} and {second} name the columns differently" in str(caught.value)
        assert ", ".join(ORDERS["robot"]) in str(caught.value)
        assert ", ".join(names) in str(caught.value)


def test_the_search_for_names_ends(clip: dict[str, Any]) -> None:
    text = "é" * 40_000
    nested: list[Any] = [text] * 200
    for _ in range(8):
        nested = [nested] * 200
    motion = read_motion(write(clip, "pkl", a=nested, b=[json.dumps([[0]] * 30_000)] * 250, c=[["x"] * 256] * 250), name="walk")
    assert motion.name_lists == {}
