"""Reading a spec: what is refused, where, and what is proposed instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from policykit import linear_model

from amp_core.errors import PolicyRefused
from amp_core.onnx_policy import ModelFile, PolicySpec, check_metadata, read_spec
from amp_core.robot import Robot

JOINTS = ["right_hip_pitch", "left_hip_pitch", "left_knee_pitch"]
ACTION: dict[str, Any] = {"scale": 0.5, "offset": "zero"}
TERM: dict[str, Any] = {"kind": "joint_pos"}


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


def read(folder: Path, robot: Robot, model: ModelFile | None = None, **spec: Any) -> PolicySpec:
    path = folder / "obs.yaml"
    path.write_text(yaml.safe_dump({"observation": [TERM], "action": ACTION, **spec}))
    return read_spec(path, robot, model)


def model_with(folder: Path, **metadata: str) -> ModelFile:
    path = folder / "policy.onnx"
    path.write_bytes(linear_model(np.zeros((3, 3)), metadata=metadata))
    return ModelFile.read(path)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"observations": []}, "observations", "did you mean 'observation'"),
    ({"observation": []}, "observation", "a list of 0"),
    ({"observation": [{"name": "x"}]}, "observation[0]", "'kind' is missing"),
    ({"observation": [{"kind": "joint_position"}]}, "observation[0].kind", "did you mean 'joint_pos"),
    ({"observation": [{"kind": "base_height", "joints": ["left_.*"]}]}, "observation[0].joints", "has no option 'joints'"),
    ({"observation": [{"kind": "joint_pos", "scal": 2}]}, "observation[0].scal", "did you mean 'scale'"),
    ({"observation": [{"kind": "joint_pos", "history": 65}]}, "observation[0].history", "from 1 to 64"),
    ({"observation": [{"kind": "joint_pos", "joints": ["left_elbow"]}]}, "observation[0].joints[0]", "matches no name"),
    ({"observation": [{"kind": "joint_pos", "joints": ["(a+)+$"]}]}, "observation[0].joints[0]", "is no pattern of names"),
    ({"observation": [{"kind": "joint_pos_rel"}]}, "observation[0].kind", "needs a default pose"),
    ({"observation": [{"kind": "body_pos"}]}, "observation[0]", "needs bodies"),
    ({"observation": [{"kind": "body_pos", "bodies": ["left_foo"]}]}, "observation[0].bodies", "did you mean 'left_foot'"),
    (
        {"observation": [{"kind": "reference_body_pos", "bodies": ["left_foot"], "frame": "world"}]},
        "observation[0].frame",
        "robot",
    ),
    ({"observation": [{"kind": "reference_joint_pos", "frames": [1.5]}]}, "observation[0].frames[0]", "a whole number"),
    ({"observation": [{"kind": "constant"}]}, "observation[0]", "'value' is missing"),
    ({"observation": [dict(TERM), dict(TERM)]}, "observation", "two terms are called 'joint_pos'"),
    (
        {"observation": [TERM, {"kind": "joint_vel", "history": 2}], "history_layout": "by_frame"},
        "history_layout",
        "several lengths",
    ),
    ({"joints": ["left_hip"]}, "joints", "did you mean 'left_hip"),
    ({"joints": ["left_hip_roll", "left_hip_roll"]}, "joints", "appears twice"),
    ({"anchor_body": "torso"}, "anchor_body", "has no body 'torso'"),
    ({"default_pose": {".*": 0, "left_.*": 1}}, "default_pose.left_.*", "from another pattern already"),
    ({"default_pose": {"left_.*": 1}}, "default_pose", "4 joints have no value, the first is 'right_hip_pitch'"),
    ({"default_pose": [0, 1]}, "default_pose", "2 numbers for 8 joints"),
    ({"action": {"offset": "zero"}}, "action", "'scale' is missing"),
    ({"action": {"scale": 1}}, "action", "default pose that is not declared"),
    ({"action": {"scale": 1, "offset": "zero", "clip": [1, 1]}}, "action.clip", "low < high"),
    ({"control_rate": "50"}, "control_rate", "the text '50'"),
    ({"inputs": {"obs": "image"}}, "inputs.obs", "observation, time_step"),
]


@pytest.mark.parametrize(("spec", "key", "text"), REFUSED, ids=[f"{key} {text}" for _, key, text in REFUSED])
def test_what_is_wrong_is_named(spec: dict[str, Any], key: str, text: str, robot: Robot, tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused) as caught:
        read(tmp_path, robot, **spec)
    assert caught.value.key == key
    assert text in str(caught.value)
    assert caught.value.file == str(tmp_path / "obs.yaml")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"a: [1", "not the YAML"),
        (b"a: &x 1\nb: *x\n", "aliases"),
        (b"observation: []\nobservation: []\n", "appears twice"),
        (b"- 1", "a list of 1"),
        (b"#" * 70_000, "over 65536 bytes"),
        (b"!!python/object/apply:os.system ['true']", "not the YAML"),
    ],
)
def test_other_files_are_refused(data: bytes, text: str, robot: Robot, tmp_path: Path) -> None:
    path = tmp_path / "obs.yaml"
    path.write_bytes(data)
    with pytest.raises(PolicyRefused, match=text):
        read_spec(path, robot)


def test_what_the_spec_leaves_out_is_taken_from_the_model(robot: Robot, tmp_path: Path) -> None:
    names = {"joint_names": ",".join(JOINTS), "default_joint_pos": "0.1,0.2,0.300", "action_scale": "0.25,0.5,0.75"}
    model = model_with(tmp_path, **names, anchor_body_name="left_foot", body_names="left_foot,waist")
    terms = [{"kind": "joint_pos_rel"}, {"kind": "body_pos"}]
    spec = read(tmp_path, robot, model, observation=terms, action={})
    assert spec.joints == tuple(JOINTS)
    assert spec.default_pose == (0.1, 0.2, 0.3)
    assert spec.action.scale == (0.25, 0.5, 0.75)
    assert (spec.anchor_body, spec.terms[1].bodies) == ("left_foot", ("left_foot", "waist"))
    assert spec.from_metadata == ("joints", "default_pose", "anchor_body", "bodies", "action.scale")
    assert check_metadata(model.metadata, model.file, spec, robot) == []


CONTRADICTIONS: list[tuple[dict[str, str], str, str]] = [
    ({"joint_names": "left_hip_pitch,right_hip_pitch,left_knee_pitch"}, "joint_names", "joint 0 is 'left_hip_pitch'"),
    (
        {"joint_names": "left_hip_pitch,right_hip_pitch"},
        "joint_names",
        "2 joints, the spec 3; not in the policy: left_knee_pitch",
    ),
    (
        {"default_joint_pos": "0.1,0.2,0.31"},
        "default_joint_pos",
        "'left_knee_pitch' has 0.31 in the policy and 0.3 in the spec",
    ),
    ({"default_joint_pos": "0.1,0.2"}, "default_joint_pos", "2 numbers"),
    ({"default_joint_pos": "0.1,x,1"}, "default_joint_pos", "no list of numbers"),
    ({"action_scale": "0.25"}, "action_scale", "0.25 in the policy and 0.5 in the spec"),
    ({"anchor_body_name": "left_foot"}, "anchor_body_name", "anchor is 'left_foot', the spec's 'waist'"),
    ({"body_names": "right_foot,left_foot"}, "body_names", "another order"),
]


@pytest.mark.parametrize(("metadata", "key", "text"), CONTRADICTIONS, ids=[text for *_, text in CONTRADICTIONS])
def test_metadata_that_contradict_the_spec_are_refused(
    metadata: dict[str, str], key: str, text: str, robot: Robot, tmp_path: Path
) -> None:
    model = model_with(tmp_path, **metadata)
    terms = [{"kind": "motion_anchor_pos"}, {"kind": "body_pos", "bodies": ["left_foot", "right_foot"]}]
    spec = read(tmp_path, robot, joints=JOINTS, default_pose=[0.1, 0.2, 0.3], anchor_body="waist", observation=terms)
    with pytest.raises(PolicyRefused) as caught:
        check_metadata(model.metadata, model.file, spec, robot)
    assert (caught.value.key, caught.value.file) == (key, model.file)
    assert text in str(caught.value)


def test_servos_of_another_robot_are_a_warning_in_figures(robot: Robot, tmp_path: Path) -> None:
    kp = robot.model.actuator_gainprm[robot.ctrl_adr[[4, 0, 2]], 0]
    spec = read(tmp_path, robot, joints=JOINTS)
    same = model_with(tmp_path, joint_names=",".join(JOINTS), joint_stiffness=",".join(f"{gain:.3f}" for gain in kp))
    assert check_metadata(same.metadata, same.file, spec, robot) == []
    stiff = model_with(tmp_path, joint_names=",".join(JOINTS), joint_stiffness=f"{kp[0]:.3f},{kp[1]:.3f},99.000")
    (warning,) = check_metadata(stiff.metadata, stiff.file, spec, robot)
    assert f"1 of 3 joints (kp in N·m/rad: left_knee_pitch 99 here {kp[2]:g})" in warning
