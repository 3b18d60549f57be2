"""The bundled G1: the public robot's figures, soles of the public outline, and hands that do not push the legs away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from amp_core.augment.symmetry import symmetry_of
from amp_core.errors import MotionRefused
from amp_core.formats import Motion
from amp_core.kinematics import sole_heights
from amp_core.motion import check_motion
from amp_core.robot import Robot, bundled_robots
from amp_core.robot_setup import inspect_robot

from .test_wildrobot import check_bodies

G1_DATA = Path(__file__).parents[3] / "shared" / "data" / "g1"
FACTS = G1_DATA / "robot_facts.json"
PUBLIC_ROBOT = G1_DATA / "mjlab" / "robot.yaml"
CLIPS = G1_DATA / "motions"

needs_facts = pytest.mark.skipif(not FACTS.exists(), reason="the robot's fact sheet is not on this machine (../shared)")
needs_public_model = pytest.mark.skipif(not PUBLIC_ROBOT.exists(), reason="the public G1 is not on this machine (../shared)")
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the clips of the G1 are not on this machine (../shared)")


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("g1")


@pytest.fixture(scope="module")
def public() -> Robot:
    return Robot.load(PUBLIC_ROBOT)


def test_a_clip_of_the_g1_is_told_its_robot_and_one_of_no_bundled_robot_is_not() -> None:
    for columns, remedy in ((29, "; of the bundled ones g1 has 29"), (7, "retargeted to")):
        frames = 50
        root_pos, rotation = np.tile([0.0, 0.0, 0.45], (frames, 1)), np.tile([0.0, 0.0, 0.0, 1.0], (frames, 1))
        motion = Motion("clip", 50.0, root_pos, rotation, np.zeros((frames, columns)), f"sha256:{columns:064x}", "made here")
        with pytest.raises(MotionRefused, match=f"has {columns} joints, the robot 'wildrobot' has 8") as refusal:
            check_motion(motion, Robot.load("wildrobot"))
        assert (refusal.value.remedy or "").endswith(remedy)


def random_poses(robot: Robot, count: int) -> np.ndarray[Any, Any]:
    """(count, nq) poses with every joint in its range and the root turned anyhow, 5 m above the ground."""
    rng = np.random.default_rng(7)
    poses = np.zeros((count, robot.model.nq))
    poses[:, 2] = 5.0
    rotations = rng.normal(size=(count, 4))
    poses[:, 3:7] = rotations / np.linalg.norm(rotations, axis=1, keepdims=True)
    poses[:, robot.qpos_adr] = rng.uniform(*robot.joint_range.T, size=(count, len(robot.joint_names)))
    return poses


def self_contacts(robot: Robot, qpos: Any) -> set[tuple[str, str]]:
    """The pairs of bodies of the robot that touch each other in the poses."""
    model, pairs = robot.model, set()
    data = mujoco.MjData(model)
    for pose in qpos:
        data.qpos[:] = pose
        mujoco.mj_kinematics(model, data)
        mujoco.mj_collision(model, data)
        for geoms in data.contact.geom[~(data.contact.geom == robot.ground_geom).any(axis=1)]:
            first, second = sorted(model.body(int(model.geom_bodyid[geom])).name for geom in geoms)
            pairs.add((first, second))
    return pairs


def simulate(robot: Robot, seconds: float, push: tuple[float, float] = (0.0, 0.0)) -> Any:
    """The state after some seconds from `home`, with its angles as targets."""
    data = mujoco.MjData(robot.model)
    mujoco.mj_resetDataKeyframe(robot.model, data, robot.model.key("home").id)
    data.ctrl[robot.ctrl_adr] = data.qpos[robot.qpos_adr]
    data.qvel[:2] = push
    for _ in range(round(seconds / robot.sim_dt)):
        mujoco.mj_step(robot.model, data)
    return data


def test_it_is_bundled_and_has_the_canonical_layout(robot: Robot) -> None:
    assert "g1" in bundled_robots()
    assert robot.layout.dim == 69
    assert (robot.model.nq, robot.model.nv, robot.model.nu) == (36, 35, 29)
    assert (robot.control_dt, robot.substeps) == (0.02, 4)
    assert robot.channels == ("left_toe", "left_heel", "right_toe", "right_heel")
    feet = [(foot.name, foot.channels) for foot in robot.feet]
    assert feet == [("left_ankle_roll_link", (0, 1)), ("right_ankle_roll_link", (2, 3))]


def test_it_needs_no_meshes(robot: Robot) -> None:
    assert robot.model.nmesh == 0


def test_nothing_is_to_be_said_of_it() -> None:
    assert inspect_robot("g1").notices == ()


def test_its_clips_can_be_mirrored(robot: Robot) -> None:
    symmetry = symmetry_of(robot)
    for name, partner, sign in zip(robot.joint_names, symmetry.partner, symmetry.sign, strict=True):
        other = name.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")
        assert robot.joint_names[partner] == other
        assert sign == (1.0 if "pitch" in name or "knee" in name or "elbow" in name else -1.0)


@needs_facts
def test_its_figures_are_those_of_the_fact_sheet(robot: Robot) -> None:
    facts = json.loads(FACTS.read_text())
    model = robot.model

    assert robot.mass == pytest.approx(facts["total_mass_kg"], rel=1e-6)
    assert model.opt.timestep == facts["timestep_s"]
    assert model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    np.testing.assert_array_equal(model.opt.gravity, facts["gravity"])
    check_bodies(model, facts["bodies"])
    assert robot.joint_names == tuple(joint["name"] for joint in facts["joints"][1:])
    for joint in facts["joints"][1:]:
        mine = model.joint(joint["name"])
        assert model.body(int(mine.bodyid[0])).name == joint["body"]
        np.testing.assert_allclose(mine.axis, joint["axis"])
        np.testing.assert_allclose(mine.range, joint["range"], atol=1e-8)
        for field in ("damping", "armature", "frictionloss"):
            np.testing.assert_allclose(getattr(mine, field), joint[field])
    for actuator in facts["actuators"]:
        mine = model.actuator(actuator["name"])
        assert model.joint(int(mine.trnid[0])).name == actuator["joint"]
        assert mine.gainprm[0] == actuator["kp"]
        np.testing.assert_allclose(mine.biasprm[:3], actuator["bias"])
        np.testing.assert_allclose(mine.forcerange, actuator["forcerange"])


@needs_public_model
def test_its_dynamics_are_those_of_the_public_model(robot: Robot, public: Robot) -> None:
    qvel = np.random.default_rng(8).normal(size=(20, robot.model.nv))
    for pose, velocity in zip(random_poses(robot, 20), qvel, strict=True):
        mass_matrices, biases = [], []
        for model in (robot.model, public.model):
            data = mujoco.MjData(model)
            data.qpos[:], data.qvel[:] = pose, velocity
            mujoco.mj_forward(model, data)
            full = np.zeros((model.nv, model.nv))
            mujoco.mj_fullM(model, data, full)
            mass_matrices.append(full)
            biases.append(data.qfrc_bias)
        # The fact sheet, which the model follows, rounds positions [m] and inertias [kg·m²] to 1e-8.
        np.testing.assert_allclose(*mass_matrices, atol=1e-7)
        np.testing.assert_allclose(*biases, atol=1e-5)


@needs_public_model
def test_its_soles_reach_as_low_as_those_of_the_public_model(robot: Robot, public: Robot) -> None:
    """In any orientation, so that a foot stands, rolls and tips over the same outline."""
    upright = np.array(robot.model.qpos0)[None]
    np.testing.assert_allclose(sole_heights(robot, upright), sole_heights(public, upright), atol=1e-6)
    poses = random_poses(robot, 1000)
    np.testing.assert_allclose(sole_heights(robot, poses), sole_heights(public, poses), atol=1e-3)


@needs_public_model
def test_its_soles_grip_as_those_of_the_public_model(robot: Robot, public: Robot) -> None:
    contacts = [mujoco.MjData(each.model) for each in (robot, public)]
    for each, data in zip((robot, public), contacts, strict=True):
        data.qpos[2] = 0.79
        mujoco.mj_forward(each.model, data)
    frictions, dims = zip(*[(data.contact.friction[0], data.contact.dim[0]) for data in contacts], strict=True)
    np.testing.assert_array_equal(*frictions)
    assert dims[0] == dims[1] == 3


def test_it_stands_in_its_home_pose_with_its_whole_weight_on_its_soles(robot: Robot) -> None:
    # The servos of this robot are too soft to balance it: it tips over within a second.
    data = simulate(robot, 0.3)
    force = np.zeros(6)
    load = 0.0
    for contact in range(data.ncon):
        mujoco.mj_contactForce(robot.model, data, contact, force)
        load += force[0]
    touching = {robot.model.geom(int(geom)).name for geom in data.contact.geom.ravel()}
    soles = {robot.model.geom(geom).name for geoms in robot.channel_geoms for geom in geoms}
    assert touching == soles | {"ground"}
    assert load == pytest.approx(robot.mg, rel=0.1)
    assert data.qpos[2] == pytest.approx(robot.model.key("home").qpos[2], abs=0.01)


@pytest.mark.parametrize("push", [(1.5, 0.0), (-1.5, 0.0), (0.0, 1.5), (0.0, -1.5)], ids=["front", "back", "left", "right"])
def test_a_fallen_robot_lies_on_the_floor(robot: Robot, push: tuple[float, float]) -> None:
    data = simulate(robot, 4.0, push)
    assert data.xmat[robot.root_body].reshape(3, 3)[2, 2] < 0.5, "the push did not tip it over"
    assert data.xipos[1:, 2].min() > 0.0
    assert data.qpos[2] < robot.height_range[0]
    assert np.abs(data.qvel).max() < 0.5


def test_only_the_legs_touch_each_other(robot: Robot) -> None:
    pairs = self_contacts(robot, random_poses(robot, 300))
    assert pairs, "two crossed legs must meet"
    for pair in pairs:
        assert [name.split("_")[0] for name in pair] == ["left", "right"]
        assert all(part in ("hip", "knee", "ankle") for part in (name.split("_")[1] for name in pair))


@needs_clips
def test_it_does_not_touch_itself_in_real_clips(robot: Robot) -> None:
    paths = sorted(CLIPS.glob("*.npz"))
    assert paths
    for path in paths:
        with np.load(path) as clip:
            assert self_contacts(robot, robot.poses(clip["root_pos"], clip["root_rot"], clip["dof_pos"])) == set()


def test_every_body_has_a_shape_that_meets_the_ground(robot: Robot) -> None:
    model = robot.model
    for body in range(1, model.nbody):
        assert np.any(model.geom_conaffinity[model.geom_bodyid == body] & 1), model.body(body).name


def test_a_foot_meets_the_ground_with_its_channels_alone(robot: Robot) -> None:
    model = robot.model
    for foot in robot.feet:
        meets_ground = np.flatnonzero((model.geom_bodyid == foot.body) & (model.geom_conaffinity & 1 > 0))
        assert sorted(foot.geoms) == meets_ground.tolist()
