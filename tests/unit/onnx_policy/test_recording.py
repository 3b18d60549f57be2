"""A policy on a clip: what is recorded, that it is always the same, and policies that misbehave."""

from __future__ import annotations

import io
import math
import sys
import time
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from policykit import (
    OPEN_LOOP,
    bundled_clip,
    endless_model,
    greedy_model,
    linear_model,
    onnx,
    run_policy,
    unary_model,
    write_files,
)

from amp_core.errors import PhysicsFailed, PolicyRefused, Unavailable
from amp_core.formats import read_motion
from amp_core.kinematics import reference_height
from amp_core.motion import Conditioned, condition
from amp_core.onnx_policy import ModelFile, PolicyLimits, PolicySession
from amp_core.recipe import Harness, Recipe
from amp_core.robot import Robot
from amp_core.rollout import generate

EYE = linear_model(np.eye(8))


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


@pytest.fixture(scope="module")
def clip(robot: Robot) -> Conditioned:
    return bundled_clip("walk_long_stride", robot)


@pytest.fixture(scope="module")
def short_clip(robot: Robot) -> Conditioned:
    return bundled_clip("walk", robot, 12)


def test_the_clips_own_angles_fall_as_the_rollout_without_a_harness(robot: Robot, clip: Conditioned, tmp_path: Path) -> None:
    recording = run_policy(tmp_path, EYE, OPEN_LOOP, robot, clip)
    (rollout,) = generate(robot, [clip], Recipe(mode="rollout", harness=Harness.none()))
    # The policy has single precision.
    np.testing.assert_allclose(recording.ctrl, rollout.ctrl, atol=1e-6)
    np.testing.assert_allclose(recording.qpos[:60], rollout.qpos[:60], atol=1e-4)
    assert recording.fell_at is not None
    assert abs(recording.fell_at - 97) <= 3
    assert recording.root_drift == pytest.approx(2.2, abs=0.5)


def test_an_action_of_zero_on_the_reference_falls_bit_for_bit_as_the_rollout(
    robot: Robot, clip: Conditioned, tmp_path: Path
) -> None:
    spec = {"observation": [{"kind": "joint_vel"}], "action": {"scale": 1, "offset": "reference"}}
    recording = run_policy(tmp_path, linear_model(np.zeros((8, 8))), spec, robot, clip)
    (rollout,) = generate(robot, [clip], Recipe(mode="rollout", harness=Harness.none()))
    np.testing.assert_array_equal(recording.ctrl, rollout.ctrl)
    np.testing.assert_array_equal(recording.qpos, rollout.qpos)
    assert recording.fell_at == 97


def test_the_recording_is_a_clip_that_replays_to_the_bit(robot: Robot, short_clip: Conditioned, tmp_path: Path) -> None:
    terms = [{"kind": "joint_pos_error"}, {"kind": "joint_vel"}, {"kind": "last_action"}]
    weights = np.random.default_rng(0).normal(0, 0.1, (24, 8))
    spec = {"observation": terms, "action": {"scale": 0.5, "offset": "reference"}}
    data = run_policy(tmp_path, linear_model(weights), spec, robot, short_clip).to_bytes()
    assert run_policy(tmp_path, linear_model(weights), spec, robot, short_clip).to_bytes() == data
    path = tmp_path / "recording.npz"
    path.write_bytes(data)
    motion = read_motion(path)
    assert (motion.fps, motion.num_frames) == (short_clip.fps, short_clip.num_frames)
    np.testing.assert_array_equal(motion.root_pos, short_clip.root_pos)
    np.testing.assert_array_equal(motion.dof_pos, short_clip.dof_pos_raw)
    arrays = np.load(path, allow_pickle=False)
    model, simulated = robot.model, mujoco.MjData(robot.model)
    assert arrays["ctrl"].shape == (motion.num_frames, model.nu)
    simulated.qpos[:], simulated.qvel[:] = arrays["initial_qpos"], arrays["initial_qvel"]
    for ctrl, qpos in zip(arrays["ctrl"], arrays["recorded_qpos"], strict=True):
        simulated.ctrl[:] = ctrl
        for _ in range(robot.substeps):
            mujoco.mj_step(model, simulated)
        np.testing.assert_array_equal(simulated.qpos, qpos)


def test_actions_are_of_named_joints_scaled_clipped_and_offset(robot: Robot, short_clip: Conditioned, tmp_path: Path) -> None:
    spec = {
        **{"joints": ["right_knee_pitch", "left_knee_pitch", "left_hip_roll"], "default_pose": {".*": 0.3}},
        "observation": [{"kind": "constant", "value": [1, 2]}],
        "action": {"joints": ["left_.*"], "scale": {".*knee.*": 0.1, ".*roll": 0.01}, "clip": [-1, 3]},
    }
    # Two actions: 1·1 + 2·0 and 2·2.
    recording = run_policy(tmp_path, linear_model([[1, 0], [0, 2]]), spec, robot, short_clip)
    column = robot.ctrl_adr[[robot.joint_names.index(name) for name in ("left_knee_pitch", "left_hip_roll", "left_hip_pitch")]]
    assert np.unique(recording.ctrl[:, column[0]]) == pytest.approx(0.3 + 0.1 * 1)
    # Beyond its range, to which the servo is clipped as in every rollout.
    assert np.unique(recording.ctrl[:, column[1]]) == pytest.approx(min(0.3 + 0.01 * 3, robot.ctrl_range[1][column[1]]))
    reference = short_clip.dof_pos[:, robot.joint_names.index("left_hip_pitch")]
    np.testing.assert_array_equal(recording.ctrl[:, column[2]], reference)


def test_a_slower_policy_is_asked_less_often(robot: Robot, short_clip: Conditioned, tmp_path: Path) -> None:
    """Each answer is held for two steps; the action is a hundredth of the number of the step."""
    spec = {"control_rate": 25, "observation": [{"kind": "time_step"}], "action": {"scale": 1, "offset": "zero"}}
    recording = run_policy(tmp_path, linear_model(np.full((1, 8), 0.01)), spec, robot, short_clip)
    column = robot.ctrl_adr[robot.joint_names.index("left_hip_pitch")]
    np.testing.assert_allclose(recording.ctrl[:6, column], [0, 0, 0.02, 0.02, 0.04, 0.04], atol=1e-7)
    with pytest.raises(PolicyRefused, match="at 40 Hz, and wildrobot is controlled at 50 Hz") as caught:
        run_policy(tmp_path, EYE, {**OPEN_LOOP, "control_rate": 40}, robot, short_clip)
    assert caught.value.key == "control_rate"


def test_a_time_step_and_a_state_are_fed(robot: Robot, short_clip: Conditioned, tmp_path: Path) -> None:
    """The state counts steps; the action is 0.01 · (state + time step)."""
    nodes = [
        onnx.node("Add", ["h_in", "one"], ["h_out"]),
        onnx.node("Add", ["h_in", "time_step"], ["sum"]),
        onnx.node("Mul", ["sum", "small"], ["wide"]),
        onnx.node("Add", ["wide", "obs"], ["actions"]),
    ]
    inputs = [onnx.value("obs", ["batch", 8]), onnx.value("time_step", [1, 1]), onnx.value("h_in", [1, 1])]
    outputs = [onnx.value("actions", ["batch", 8]), onnx.value("h_out", [1, 1])]
    weights = {"one": np.ones((1, 1), np.float32), "small": np.full((1, 1), 0.01, np.float32)}
    model = onnx.model(nodes, inputs, outputs, weights)
    spec = {**OPEN_LOOP, "observation": [{"kind": "constant", "value": [0] * 8}], "state": {"h_in": "h_out"}}
    recording = run_policy(tmp_path, model, spec, robot, short_clip)
    column = robot.ctrl_adr[robot.joint_names.index("left_hip_pitch")]
    expected = np.clip([0.02 * k for k in range(len(recording.ctrl))], *[bound[column] for bound in robot.ctrl_range])
    np.testing.assert_allclose(recording.ctrl[:, column], expected, atol=1e-7)
    with pytest.raises(PolicyRefused, match="does not say what the model's input 'h_in' has"):
        run_policy(tmp_path, model, {key: value for key, value in spec.items() if key != "state"}, robot, short_clip)
    with pytest.raises(PolicyRefused, match="the model has no output 'h'"):
        run_policy(tmp_path, model, {**spec, "state": {"h_in": "h"}}, robot, short_clip)


def test_an_export_of_beyondmimics_kind_needs_little_of_a_spec(tmp_path: Path) -> None:
    """160 numbers for a G1, a second input `time_step`, a motion in the file, and metadata for the rest."""
    g1 = Robot.load("g1")
    joints = sorted(g1.joint_names, key=lambda name: (name.count("_"), name))  # Not the robot's order.
    default_pose = {joint: round(0.01 * index, 3) for index, joint in enumerate(joints)}
    metadata = {
        "joint_names": ",".join(joints),
        "default_joint_pos": ",".join(f"{angle:.3f}" for angle in default_pose.values()),
        "action_scale": ",".join(["0.500"] * 29),
        "anchor_body_name": "torso_link",
        "joint_stiffness": ",".join(["40.179"] * 29),
    }
    weights = np.zeros((160, 29), np.float32)
    weights[3, 5] = 1.0  # The fourth angle of the command is the sixth action.
    nodes = [
        onnx.node("MatMul", ["obs", "W"], ["actions"]),
        onnx.node("Cast", ["time_step"], ["step"], to=7),
        onnx.node("Min", ["step", "last"], ["inside"]),
        onnx.node("Squeeze", ["inside", "axes"], ["flat"]),
        onnx.node("Gather", ["motion", "flat"], ["joint_pos"]),
    ]
    inputs = [onnx.value("obs", [1, 160]), onnx.value("time_step", [1, 1])]
    outputs = [onnx.value("actions", [1, 29]), onnx.value("joint_pos", [1, 29])]
    constants = {
        "W": weights,
        "axes": np.array([1], np.int64),
        "last": np.array(6, np.int64),
        "motion": np.ones((7, 29), np.float32),
    }
    model = onnx.model(nodes, inputs, outputs, constants, metadata)
    kinds = ("motion_command", "motion_anchor_pos", "motion_anchor_rotation", "base_lin_vel", "base_ang_vel")
    kinds += ("joint_pos_rel", "joint_vel", "last_action")
    clip = standing_clip(g1, frames=30)
    recording = run_policy(tmp_path, model, {"observation": [{"kind": kind} for kind in kinds], "action": {}}, g1, clip)
    assert [entry.size for entry in recording.slices] == [58, 3, 6, 3, 3, 29, 29, 29]
    sixth, fourth = g1.joint_names.index(joints[5]), g1.joint_names.index(joints[3])
    expected = default_pose[joints[5]] + 0.5 * clip.dof_pos[:, fourth]
    np.testing.assert_allclose(recording.ctrl[:, g1.ctrl_adr[sixth]], expected, atol=1e-6)
    first = g1.joint_names.index(joints[0])
    np.testing.assert_allclose(recording.ctrl[:, g1.ctrl_adr[first]], default_pose[joints[0]])


def standing_clip(robot: Robot, frames: int) -> Conditioned:
    """A robot that stands in its reference pose, its joints a little off."""
    angles = np.tile(np.clip(0.02, *robot.joint_range.T), (frames, 1))
    rotation = np.tile([0.0, 0.0, 0.0, 1.0], (frames, 1))
    place = np.tile([0.0, 0.0, reference_height(robot)], (frames, 1))
    stream = io.BytesIO()
    np.savez(stream, fps=50.0, root_pos=place, root_rot=rotation, dof_pos=angles)
    return condition(read_motion(stream.getvalue(), name="standing"), robot)


def test_sizes_that_do_not_fit_are_refused_with_every_term(robot: Robot, short_clip: Conditioned, tmp_path: Path) -> None:
    terms = [{"name": "command", "kind": "motion_command"}, {"kind": "projected_gravity", "history": 4}]
    with pytest.raises(PolicyRefused) as caught:
        run_policy(tmp_path, EYE, {**OPEN_LOOP, "observation": terms}, robot, short_clip)
    text = str(caught.value)
    assert "has 28 numbers, the model's input is obs float32 [1, 8]" in text
    assert "0 …     15     16  command (motion_command)" in text
    assert "16 …     27     12  projected_gravity (projected_gravity)" in text
    with pytest.raises(PolicyRefused, match="answers 8 actions for 4 joints"):
        run_policy(
            tmp_path, EYE, {**OPEN_LOOP, "action": {"joints": ["left_.*"], "scale": 1, "offset": "zero"}}, robot, short_clip
        )
    with pytest.raises(PolicyRefused, match="no input 'image'"):
        run_policy(tmp_path, EYE, {**OPEN_LOOP, "inputs": {"image": "observation"}}, robot, short_clip)
    with pytest.raises(PolicyRefused, match="no output 'mu'") as caught:
        run_policy(tmp_path, EYE, {**OPEN_LOOP, "action": {**OPEN_LOOP["action"], "output": "mu"}}, robot, short_clip)
    assert "outputs actions float32 [1, 8]" in str(caught.value)


def test_an_answer_that_is_not_finite_is_refused_with_its_frame(robot: Robot, short_clip: Conditioned, tmp_path: Path) -> None:
    spec = {**OPEN_LOOP, "observation": [{"kind": "time_step"}]}
    # log(5 - t) is not finite from frame 5 on.
    nodes = [
        onnx.node("Sub", ["five", "obs"], ["rest"]),
        onnx.node("Log", ["rest"], ["one"]),
        onnx.node("Expand", ["one", "shape"], ["actions"]),
    ]
    weights = {"five": np.full((1, 1), 5, np.float32), "shape": np.array([1, 8], np.int64)}
    model = onnx.model(nodes, [onnx.value("obs", [1, 1])], [onnx.value("actions", [1, 8])], weights)
    with pytest.raises(PolicyRefused, match="not finite: the action of 'left_hip_pitch'") as caught:
        run_policy(tmp_path, model, spec, robot, short_clip)
    assert caught.value.frame == 5


def test_a_simulation_that_explodes_is_told_with_its_frame(
    robot: Robot, short_clip: Conditioned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, count = mujoco.mj_step, iter(range(100))

    def explode(model: Any, data: Any, nstep: int = 1) -> None:
        step(model, data, nstep=nstep)
        if next(count) == 3:
            data.qvel[:] = math.inf

    monkeypatch.setattr(mujoco, "mj_step", explode)
    with pytest.raises(PhysicsFailed, match="the state is not finite") as caught:
        run_policy(tmp_path, EYE, OPEN_LOOP, robot, short_clip)
    assert caught.value.frame == 3


def session_of(folder: Path, model: bytes, **limits: Any) -> PolicySession:
    policy, _ = write_files(folder, model, OPEN_LOOP)
    return PolicySession(ModelFile.read(policy), PolicyLimits(**limits))


OBSERVATION = {"obs": np.ones((1, 8), np.float32)}


def test_a_model_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    with session_of(tmp_path, endless_model(), step_sec=0.5) as session:
        start = time.monotonic()
        with pytest.raises(PolicyRefused, match=r"was not run within 0\.5 s") as caught:
            session.run(OBSERVATION, ["actions"])
        assert time.monotonic() - start < 30
    assert "--step-time" in str(caught.value)


def test_all_answers_together_have_a_limit(tmp_path: Path) -> None:
    session = session_of(tmp_path, endless_model(), step_sec=60, total_sec=2.0)
    with session, pytest.raises(PolicyRefused, match="used up its 2 s") as caught:
        session.run(OBSERVATION, ["actions"])
    assert "--total-time" in str(caught.value)


def test_a_model_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    with session_of(tmp_path, greedy_model()) as session, pytest.raises(PolicyRefused, match="more than its 1,024 MiB"):
        session.run(OBSERVATION, ["actions"])


def test_a_model_that_cannot_be_loaded_or_run_says_why(tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused, match=r"cannot be loaded: .*Nonsense"):
        session_of(tmp_path, unary_model("Nonsense"))
    with session_of(tmp_path, EYE) as session:
        with pytest.raises(PolicyRefused, match=r"cannot be run: .*Invalid rank"):
            session.run({"obs": np.ones(8, np.float32)}, ["actions"])
        # It still answers.
        assert session.run(OBSERVATION, ["actions"])["actions"].tolist() == [[1.0] * 8]


CHILDREN = {
    "import os; os.abort()": (Unavailable, "did not come up"),
    "import sys; sys.exit('no such library')": (Unavailable, "no such library"),
    "import socket, sys; socket.socket(fileno=int(sys.argv[1])).sendall(b'x' * 100)": (Unavailable, "did not come up"),
}


@pytest.mark.parametrize("code", CHILDREN)
def test_a_child_that_does_not_come_up_is_told(code: str, tmp_path: Path) -> None:
    policy, _ = write_files(tmp_path, EYE, OPEN_LOOP)
    kind, text = CHILDREN[code]
    with pytest.raises(kind, match=text):
        PolicySession(ModelFile.read(policy), command=(sys.executable, "-c", code))


LYING = """
import socket, sys
from amp_core.onnx_policy.wire import receive, send
connection = socket.socket(fileno=int(sys.argv[1]))
send(connection, {"ready": "1"}, {})
receive(connection, 1 << 30)
send(connection, {}, {})
receive(connection, 1 << 30)
"""


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("connection.sendall(b'\\xff' * 8); receive(connection, 1)", "ended with"),
        ("connection.sendall(b'\\x02\\0\\0\\0\\0\\0\\0\\0{}'); receive(connection, 1)", "ended with"),
        ("send(connection, {}, {})", "answered something else"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
    ],
)
def test_a_child_that_lies_is_refused(answer: str, text: str, tmp_path: Path) -> None:
    """As a model could make it that has taken the child over."""
    policy, _ = write_files(tmp_path, EYE, OPEN_LOOP)
    session = PolicySession(ModelFile.read(policy), command=(sys.executable, "-P", "-c", LYING + answer))
    with session, pytest.raises(PolicyRefused, match=text):
        session.run(OBSERVATION, ["actions"])


def test_without_the_extra_no_child_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"extra \[track\]"):
        session_of(tmp_path, EYE)
