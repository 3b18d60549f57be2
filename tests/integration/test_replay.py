"""The replay certificate: what was exported runs again from a fresh `MjData`, bit for bit."""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path

import mujoco
import numpy as np
import pytest

from amp_core.errors import PhysicsFailed
from amp_core.formats import Motion, read_motion
from amp_core.recipe import PhysicsScale, Recipe
from amp_core.robot import Robot
from amp_core.rollout import replay
from amp_core.scoring import Score, score

TESTS = Path(__file__).parents[1]
TRILEG = TESTS / "robots" / "trileg" / "robot.yaml"
SHARED = TESTS.parents[1] / "shared" / "data"
MODES = ("rollout", "teacher_forced")

PUBLIC_ROBOT = """\
name: wildrobot-public
model: {model}
joints: [left_hip_pitch, left_hip_roll, left_knee_pitch, left_ankle_pitch,
         right_hip_pitch, right_hip_roll, right_knee_pitch, right_ankle_pitch]
contact_channels: {{left_toe: [left_toe], left_heel: [left_heel], right_toe: [right_toe], right_heel: [right_heel]}}
height_range: [0.35, 0.55]
"""


def stepping(robot: Robot, frames: int = 90) -> Motion:
    """Legs that swing in turn, wide enough to fall over: contacts, limits and collisions all come into it."""
    t = np.arange(frames) * robot.control_dt
    low, high = np.clip(robot.joint_range, -1.0, 1.0).T
    phase = np.arange(len(robot.joint_names))
    share = 0.5 + 0.4 * np.sin(2 * np.pi * 1.2 * t[:, None] + phase)
    root_pos = np.zeros((frames, 3))
    root_pos[:, 0] = 0.2 * t
    root_pos[:, 2] = sum(robot.height_range) / 2
    return Motion(
        name="stepping",
        fps=1 / robot.control_dt,
        root_pos=root_pos,
        root_rot=np.tile([0.0, 0.0, 0.38, 0.92], (frames, 1)),
        dof_pos=low + (high - low) * share,
        source_digest="sha256:" + "1" * 64,
        source_format="npz",
    )


def assert_certified(robot: Robot, found: Score, path: Path) -> None:
    """By `replay`, and by a loop that knows nothing but the export."""
    found.export(path)
    recipe = found.rollout.recipe
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    qpos, qvel = replay(robot, arrays, recipe)
    np.testing.assert_array_equal(qpos, arrays["qpos"])
    np.testing.assert_array_equal(qvel, arrays["qvel"])

    model = robot.scaled_model(recipe.physics)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = arrays["initial_qpos"], arrays["initial_qvel"]
    for k in range(len(arrays["ctrl"])):
        if "forced_qpos" in arrays:
            data.qpos[:] = arrays["forced_qpos"][k]
        data.ctrl[:] = arrays["ctrl"][k]
        data.qfrc_applied[robot.root_qvel_adr + 2] = arrays["stab_force"][k]
        for _ in range(robot.substeps):
            mujoco.mj_step(model, data)
        np.testing.assert_array_equal(data.qpos, arrays["qpos"][k])
        np.testing.assert_array_equal(data.qvel, arrays["qvel"][k])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "scale", [PhysicsScale(), PhysicsScale(friction=0.6, mass=1.2, damping=1.5)], ids=["nominal", "scaled"]
)
@pytest.mark.parametrize("name", ["wildrobot", str(TRILEG)], ids=["wildrobot", "trileg"])
def test_every_export_replays_bit_for_bit(name: str, scale: PhysicsScale, mode: str, tmp_path: Path) -> None:
    robot = Robot.load(name)
    recipe = Recipe.for_mode(mode, physics=scale)
    found = score([stepping(robot)], robot, recipe)[0]
    assert found.rollout.failure is None
    assert np.abs(found.rollout.stab_force).max() > 0
    assert_certified(robot, found, tmp_path / "x.npz")


@pytest.mark.parametrize("cone", [mujoco.mjtCone.mjCONE_PYRAMIDAL, mujoco.mjtCone.mjCONE_ELLIPTIC])
def test_under_either_cone(cone: mujoco.mjtCone, tmp_path: Path) -> None:
    wildrobot = Robot.load("wildrobot")
    model = copy.copy(wildrobot.model)
    model.opt.cone = int(cone)
    robot = dataclasses.replace(wildrobot, model=model)
    assert_certified(robot, score([stepping(robot)], robot, Recipe.for_mode("rollout"))[0], tmp_path / "x.npz")


def test_from_a_batch_and_from_threads(tmp_path: Path) -> None:
    robot = Robot.load("wildrobot")
    motions = [stepping(robot, frames) for frames in (40, 90, 65)]
    for i, found in enumerate(score(motions, robot, Recipe.for_mode("rollout"), nthread=2)):
        assert_certified(robot, found, tmp_path / f"{i}.npz")


def test_a_changed_control_breaks_the_certificate() -> None:
    """The certificate can fail: one ulp in one control is enough."""
    robot, recipe = Robot.load("wildrobot"), Recipe.for_mode("rollout")
    arrays = dict(score([stepping(robot)], robot, recipe)[0].rollout.arrays())
    arrays["ctrl"] = arrays["ctrl"].copy()
    arrays["ctrl"][10, 2] = np.nextafter(arrays["ctrl"][10, 2], np.inf)
    qpos, _ = replay(robot, arrays, recipe)
    np.testing.assert_array_equal(qpos[:10], arrays["qpos"][:10])
    assert not np.array_equal(qpos, arrays["qpos"])


@pytest.mark.parametrize("missing", ["ctrl", "stab_force", "initial_qpos", "initial_qvel", "forced_qpos"])
def test_an_export_that_lacks_an_array_is_refused(missing: str) -> None:
    robot, recipe = Robot.load("wildrobot"), Recipe.for_mode("teacher_forced")
    arrays = dict(score([stepping(robot, 30)], robot, recipe)[0].rollout.arrays())
    del arrays[missing]
    with pytest.raises(PhysicsFailed, match=missing):
        replay(robot, arrays, recipe)


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="the retargeted clips and the public model lie beside the repository, not in it"
)
@pytest.mark.parametrize("public", [False, True], ids=["wildrobot", "public"])
def test_real_clips_replay_and_no_fallen_one_passes(public: bool, tmp_path: Path) -> None:
    if public:
        model = os.path.relpath(SHARED / "wildrobot" / "mjcf" / "scene_flat_terrain.xml", tmp_path)
        (tmp_path / "robot.yaml").write_text(PUBLIC_ROBOT.format(model=model))
    robot = Robot.load(tmp_path if public else "wildrobot")
    motions = [read_motion(path, name=path.stem) for path in sorted((SHARED / "motions").glob("*.pkl"))]
    assert motions
    for found in score(motions, robot, Recipe.for_mode("rollout"), nthread=2):
        assert_certified(robot, found, tmp_path / f"{found.name}.npz")
        # Open loop, every one of these clips falls; what has fallen is Rejected, whatever its feet carry.
        assert found.quality_metrics["fell_at_frame"] is not None
        assert found.tier == -1
