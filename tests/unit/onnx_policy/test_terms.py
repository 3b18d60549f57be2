"""Every kind of term against a computation of its own: MuJoCo's Jacobians and finite differences, rotations by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
import pytest
import yaml
from policykit import ROOT, bundled_clip

from amp_core.errors import PolicyRefused
from amp_core.motion import Conditioned
from amp_core.onnx_policy import ClipReference, Observer, read_spec
from amp_core.onnx_policy.kinds import KINDS
from amp_core.robot import Robot

Array = npt.NDArray[np.float64]

JOINTS = ["right_hip_pitch", "left_hip_roll", "left_knee_pitch", "right_ankle_pitch"]
"""Some of the robot's, in an order that is not its own."""
DEFAULTS = [0.1, -0.2, 0.3, 0.4]
BODIES = ["right_foot", "left_foot"]
FRAME = 7


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


@pytest.fixture(scope="module")
def clip(robot: Robot) -> Conditioned:
    return bundled_clip("walk", robot, 40)


@pytest.fixture(scope="module")
def state(robot: Robot) -> tuple[Array, Array]:
    """A state with nothing at zero."""
    rng = np.random.default_rng(0)
    model = robot.model
    qpos = model.qpos0 + 0.2 * rng.standard_normal(model.nq)
    qpos[3:7] = [0.8, 0.3, -0.4, 0.33]
    qpos[3:7] /= np.linalg.norm(qpos[3:7])
    return qpos, rng.standard_normal(model.nv)


class Truth:
    """What MuJoCo says of a state."""

    def __init__(self, robot: Robot, qpos: Array, qvel: Array) -> None:
        self.model, self.data, self.robot = robot.model, mujoco.MjData(robot.model), robot
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        mujoco.mj_forward(self.model, self.data)

    def place(self, body: str) -> Array:
        return self.data.body(body).xpos.copy()

    def axes(self, body: str) -> Array:
        return self.data.body(body).xmat.reshape(3, 3).copy()

    def velocities(self, body: str, point: Array) -> tuple[Array, Array]:
        """Of a point in the world, linear and angular, by the Jacobian."""
        jacp, jacr = np.zeros((2, 3, self.model.nv))
        mujoco.mj_jac(self.model, self.data, jacp, jacr, point, self.model.body(body).id)
        return jacp @ self.data.qvel, jacr @ self.data.qvel

    def joint(self, name: str) -> float:
        return float(self.data.joint(name).qpos[0])


ROOT_BODY = "waist"


def observe(robot: Robot, clip: Conditioned, folder: Path, state: tuple[Array, Array], term: dict[str, Any]) -> Array:
    spec = {
        **{"joints": JOINTS, "default_pose": DEFAULTS, "anchor_body": "upper_leg", "bodies": BODIES},
        **{"observation": [term], "action": {"scale": 1}},
    }
    path = folder / "obs.yaml"
    path.write_text(yaml.safe_dump(spec))
    observer = Observer(read_spec(path, robot), robot, ClipReference.of(clip, robot))
    action = np.arange(1.0, 1.0 + len(JOINTS))
    return observer.observe(*state, FRAME, action)


def rows6(matrix: Array) -> Array:
    return np.array([matrix[0, 0], matrix[0, 1], matrix[1, 0], matrix[1, 1], matrix[2, 0], matrix[2, 1]])


def columns6(matrix: Array) -> Array:
    return np.array([*matrix[:, 0], *matrix[:, 1]])


def column(clip: Conditioned, robot: Robot, values: Array, frame: int = FRAME) -> Array:
    return np.array([values[frame, robot.joint_names.index(joint)] for joint in JOINTS])


def clip_vel(clip: Conditioned, frame: int = FRAME) -> Array:
    return (clip.dof_pos[[frame + 1]] - clip.dof_pos[[frame - 1]]) / (2 * clip.dt)


def clip_truth(clip: Conditioned, robot: Robot, frame: int = FRAME) -> Truth:
    return Truth(robot, clip.qpos(robot)[frame], np.zeros(robot.model.nv))


def expected_values(robot: Robot, clip: Conditioned, state: tuple[Array, Array]) -> dict[str, Array]:
    here, there = Truth(robot, *state), clip_truth(clip, robot)
    anchor = "upper_leg"
    root = robot.model.body(robot.root_body).name
    joints = np.array([here.joint(joint) for joint in JOINTS])
    rates = np.array([float(here.data.joint(joint).qvel[0]) for joint in JOINTS])
    linear, angular = here.velocities(root, here.place(root))
    R, A, B = here.axes(root), here.axes(anchor), there.axes(anchor)
    target, target_vel = column(clip, robot, clip.dof_pos), column(clip, robot, clip_vel(clip), 0)
    qpos = clip.qpos(robot)
    clip_qvel = np.zeros(robot.model.nv)
    mujoco.mj_differentiatePos(robot.model, clip_qvel, 2 * clip.dt, qpos[FRAME - 1], qpos[FRAME + 1])
    S = there.axes(root)
    before = clip_truth(clip, robot, FRAME - 1).axes(root)
    roll, pitch = np.arctan2(R[2, 1], R[2, 2]), -np.arcsin(R[2, 0])
    clip_roll, clip_pitch = np.arctan2(S[2, 1], S[2, 2]), -np.arcsin(S[2, 0])
    return {
        "joint_pos": joints,
        "joint_pos_rel": joints - DEFAULTS,
        "joint_vel": rates,
        "base_lin_vel": R.T @ linear,
        "base_ang_vel": R.T @ angular,
        "projected_gravity": R.T @ [0, 0, -1],
        "roll_pitch": np.array([roll, pitch]),
        "base_height": state[0][2:3],
        "base_rotation": rows6(R),
        "body_pos": np.concatenate([A.T @ (here.place(body) - here.place(anchor)) for body in BODIES]),
        "body_rotation": np.concatenate([rows6(A.T @ here.axes(body)) for body in BODIES]),
        "last_action": np.array([1.0, 2.0, 3.0, 4.0]),
        "reference_joint_pos": target,
        "reference_joint_pos_rel": target - DEFAULTS,
        "reference_joint_vel": target_vel,
        "motion_command": np.concatenate([target, target_vel]),
        "reference_base_lin_vel": S.T @ clip_qvel[:3],
        # MuJoCo's difference is in the frame where it starts.
        "reference_base_ang_vel": S.T @ before @ clip_qvel[3:6],
        "reference_projected_gravity": S.T @ [0, 0, -1],
        "reference_roll_pitch": np.array([clip_roll, clip_pitch]),
        "reference_base_height": clip.root_pos[FRAME, 2:],
        "reference_body_pos": np.concatenate([B.T @ (there.place(body) - there.place(anchor)) for body in BODIES]),
        "reference_body_rotation": np.concatenate([rows6(B.T @ there.axes(body)) for body in BODIES]),
        "phase": np.array([FRAME / (clip.num_frames - 1)]),
        "time_step": np.array([float(FRAME)]),
        "joint_pos_error": target - joints,
        "joint_vel_error": target_vel - rates,
        "motion_anchor_pos": A.T @ (there.place(anchor) - here.place(anchor)),
        "motion_anchor_rotation": rows6(A.T @ B),
        "constant": np.array([3.0, -1.0]),
    }


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_term_is_what_mujoco_says(
    kind: str, robot: Robot, clip: Conditioned, state: tuple[Array, Array], tmp_path: Path
) -> None:
    term: dict[str, Any] = {"kind": kind, **({"value": [3, -1]} if kind == "constant" else {})}
    np.testing.assert_allclose(
        observe(robot, clip, tmp_path, state, term), expected_values(robot, clip, state)[kind], atol=1e-9
    )


def _other_options(robot: Robot, clip: Conditioned, state: tuple[Array, Array]) -> dict[str, tuple[dict[str, Any], Array]]:
    here, there = Truth(robot, *state), clip_truth(clip, robot)
    anchor, foot = "upper_leg", "right_foot"
    A, B, F = here.axes(anchor), there.axes(anchor), here.axes(foot)
    com = here.data.body(foot).xipos
    linear_com, angular = here.velocities(foot, com)
    point = np.array([0.1, -0.2, 0.05])
    linear_point, _ = here.velocities(foot, here.place(foot) + F @ point)
    relative = A.T @ B
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, relative.ravel())
    quat *= np.sign(quat[0])
    share = 2 * np.pi * FRAME / (clip.num_frames - 1)
    ahead = [column(clip, robot, clip.dof_pos, FRAME + k) for k in (0, 2, -3)]
    last = column(clip, robot, clip.dof_pos, clip.num_frames - 1)
    joints = np.array([here.joint(joint) for joint in JOINTS])
    return {
        "columns": ({"kind": "motion_anchor_rotation", "rotation": "6d_column_major"}, columns6(relative)),
        "wxyz": ({"kind": "motion_anchor_rotation", "rotation": "quat_wxyz"}, quat),
        "xyzw": ({"kind": "motion_anchor_rotation", "rotation": "quat_xyzw"}, quat[[1, 2, 3, 0]]),
        "com": ({"kind": "base_lin_vel", "body": foot, "point": "com"}, F.T @ linear_com),
        "point": ({"kind": "base_lin_vel", "body": foot, "point": point.tolist()}, F.T @ linear_point),
        "body's rate": ({"kind": "base_ang_vel", "body": foot}, F.T @ angular),
        "body's gravity": ({"kind": "projected_gravity", "body": foot}, F.T @ [0, 0, -1]),
        "seen from the robot": (
            {"kind": "reference_body_pos", "frame": "robot", "bodies": [foot]},
            A.T @ (there.place(foot) - here.place(anchor)),
        ),
        "sine and cosine": ({"kind": "phase", "form": "sin_cos"}, np.array([np.sin(share), np.cos(share)])),
        "ahead": ({"kind": "reference_joint_pos", "frames": [0, 2, -3]}, np.concatenate(ahead)),
        "beyond the end": ({"kind": "reference_joint_pos", "frames": [500]}, last),
        "some joints": ({"kind": "joint_pos", "joints": [".*_ankle_.*", ".*hip_pitch"]}, joints[[3, 0]]),
        "scale": ({"kind": "joint_pos", "scale": 0.25}, 0.25 * joints),
        "scales": ({"kind": "joint_pos", "scale": [1, 2, 3, 4]}, joints * [1, 2, 3, 4]),
        "clip": ({"kind": "joint_pos", "clip": [-0.05, 0.05], "scale": 2}, 2 * np.clip(joints, -0.05, 0.05)),
    }


OTHER_OPTIONS = (
    *("columns", "wxyz", "xyzw", "com", "point", "body's rate", "body's gravity", "seen from the robot", "sine and cosine"),
    *("ahead", "beyond the end", "some joints", "scale", "scales", "clip"),
)


@pytest.mark.parametrize("case", OTHER_OPTIONS)
def test_options_of_terms(case: str, robot: Robot, clip: Conditioned, state: tuple[Array, Array], tmp_path: Path) -> None:
    cases = _other_options(robot, clip, state)
    assert set(cases) == set(OTHER_OPTIONS)
    term, expected = cases[case]
    np.testing.assert_allclose(observe(robot, clip, tmp_path, state, term), expected, atol=1e-9)


def observations(robot: Robot, clip: Conditioned, folder: Path, steps: int, **spec: Any) -> list[Array]:
    path = folder / "obs.yaml"
    path.write_text(yaml.safe_dump({"action": {"scale": 1, "offset": "zero"}, **spec}))
    observer = Observer(read_spec(path, robot), robot, ClipReference.of(clip, robot))
    qpos, action = clip.qpos(robot), np.zeros(8)
    return [observer.observe(qpos[k], np.zeros(robot.model.nv), k, action) for k in range(steps)]


HISTORIES: list[tuple[dict[str, Any], Callable[[int], list[int | None]]]] = [
    ({"history": 3}, lambda k: [max(0, k - 2), max(0, k - 1), k]),
    ({"history": 3, "order": "newest_first"}, lambda k: [k, max(0, k - 1), max(0, k - 2)]),
    ({"history": 2, "delay": 1, "start": "zeros"}, lambda k: [k - 2 if k >= 2 else None, k - 1 if k >= 1 else None]),
    ({"history": 3, "start": "zeros"}, lambda k: [k - 2 if k >= 2 else None, k - 1 if k >= 1 else None, k]),
]


@pytest.mark.parametrize(("options", "steps"), HISTORIES)
def test_a_history(
    options: dict[str, Any], steps: Callable[[int], list[int | None]], robot: Robot, clip: Conditioned, tmp_path: Path
) -> None:
    """The height tells the steps apart; None is a zero."""
    rows = observations(robot, clip, tmp_path, 5, observation=[{"kind": "base_height", **options}])
    heights = clip.root_pos[:, 2]
    for k, row in enumerate(rows):
        np.testing.assert_allclose(row, [0.0 if step is None else heights[step] for step in steps(k)])


def test_a_history_by_frame_has_all_terms_of_each(robot: Robot, clip: Conditioned, tmp_path: Path) -> None:
    terms = [{"kind": "time_step", "history": 2}, {"kind": "constant", "value": [7], "history": 2}]
    assert observations(robot, clip, tmp_path, 3, observation=terms)[2].tolist() == [1, 2, 7, 7]
    rows = observations(robot, clip, tmp_path, 3, observation=terms, history_layout="by_frame")
    assert rows[2].tolist() == [1, 7, 2, 7]


def test_an_offset_moves_the_frame_that_is_seen(robot: Robot, clip: Conditioned, tmp_path: Path) -> None:
    rows = observations(robot, clip, tmp_path, 3, observation=[{"kind": "time_step"}], frame_offset=1)
    assert [row.tolist() for row in rows] == [[1], [2], [3]]


def test_scales_of_another_number_are_refused(
    robot: Robot, clip: Conditioned, state: tuple[Array, Array], tmp_path: Path
) -> None:
    with pytest.raises(PolicyRefused, match="4 numbers and 3 scales") as caught:
        observe(robot, clip, tmp_path, state, {"kind": "joint_pos", "scale": [1, 2, 3]})
    assert caught.value.key == "observation[0].scale"


def test_the_table_of_the_docs_has_every_kind() -> None:
    page = (ROOT / "docs/tracking-policies.md").read_text()
    missing = [kind for kind in KINDS if f"\n| `{kind}`" not in page]
    assert not missing
