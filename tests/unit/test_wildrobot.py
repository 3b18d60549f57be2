"""The bundled WildRobot: the public robot's figures, and contacts that tell a fall from a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from amp_core.robot import Robot, bundled_robots

WILDROBOT_DATA = Path(__file__).parents[3] / "shared" / "data" / "wildrobot"
FACTS = WILDROBOT_DATA / "robot_facts.json"
PUBLIC_SCENE = WILDROBOT_DATA / "mjcf" / "scene_flat_terrain.xml"

needs_facts = pytest.mark.skipif(not FACTS.exists(), reason="the robot's fact sheet is not on this machine (../shared)")


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


def ground_contacts(robot: Robot, data: Any) -> set[str]:
    """The names of the geoms that touch the ground."""
    pairs = data.contact.geom
    touching = pairs[(pairs == robot.ground_geom).any(axis=1)]
    return {robot.model.geom(int(geom)).name for geom in touching.ravel() if geom != robot.ground_geom}


def test_it_is_bundled_and_has_the_canonical_layout(robot: Robot) -> None:
    assert "wildrobot" in bundled_robots()
    assert robot.layout.dim == 27
    assert (robot.model.nq, robot.model.nv, robot.model.nu) == (15, 14, 8)
    assert (robot.control_dt, robot.substeps) == (0.02, 10)
    assert robot.channels == ("left_toe", "left_heel", "right_toe", "right_heel")
    assert [(foot.name, foot.channels) for foot in robot.feet] == [("left_foot", (0, 1)), ("right_foot", (2, 3))]


def test_it_needs_no_meshes(robot: Robot) -> None:
    assert robot.model.nmesh == 0


def check_bodies(model: Any, bodies: list[dict[str, Any]]) -> None:
    """The model has the bodies of a fact sheet, with their places, masses and inertias."""
    assert [model.body(i).name for i in range(1, model.nbody)] == [body["name"] for body in bodies]
    for body in bodies:
        mine = model.body(body["name"])
        assert model.body(int(mine.parentid[0])).name == body["parent"]
        np.testing.assert_allclose(mine.mass, body["mass"])
        np.testing.assert_allclose(mine.pos, body["pos"], atol=1e-8)
        np.testing.assert_allclose(mine.ipos, body["com"], atol=1e-8)
        np.testing.assert_allclose(mine.inertia, body["diag_inertia"], atol=1e-8)
        for quat, fact in ((mine.quat, body["quat"]), (mine.iquat, body["inertia_quat"])):
            assert abs(np.dot(quat, fact)) == pytest.approx(1.0, abs=1e-6)


@needs_facts
def test_its_figures_are_those_of_the_fact_sheet(robot: Robot) -> None:
    facts = json.loads(FACTS.read_text())
    model = robot.model

    assert robot.mass == pytest.approx(facts["total_mass_kg"], rel=1e-3)
    assert model.opt.timestep == facts["timestep_s"]
    assert model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL
    assert model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_EULERDAMP
    check_bodies(model, facts["bodies"])
    for joint in facts["joints"]:
        mine = model.joint(joint["name"])
        assert model.body(int(mine.bodyid[0])).name == joint["body"]
        if joint["type"] == "hinge":
            np.testing.assert_allclose(mine.axis, joint["axis"])
            np.testing.assert_allclose(mine.range, joint["range"], atol=1e-8)
            for field in ("damping", "armature", "frictionloss"):
                np.testing.assert_allclose(getattr(mine, field), joint[field])
    for actuator in facts["actuators"]:
        mine = model.actuator(actuator["name"])
        assert model.joint(int(mine.trnid[0])).name == actuator["joint"]
        assert mine.gainprm[0] == actuator["kp"]
        np.testing.assert_allclose(mine.biasprm[:3], actuator["bias"])
        np.testing.assert_allclose(mine.ctrlrange, actuator["ctrlrange"], atol=1e-8)
        np.testing.assert_allclose(mine.forcerange, actuator["forcerange"])
    for geom in facts["foot_geoms"]:
        mine = model.geom(geom["name"])
        assert model.body(int(mine.bodyid[0])).name == geom["body"]
        np.testing.assert_allclose(mine.size, geom["bounding_box_half_size"], atol=1e-8)
        np.testing.assert_allclose(mine.pos, geom["bounding_box_centre_in_body"], atol=1e-8)
        assert abs(np.dot(mine.quat, geom["quat_in_body"])) == pytest.approx(1.0, abs=1e-6)
        np.testing.assert_allclose(mine.friction, geom["friction"])
    np.testing.assert_allclose(model.key("home").qpos, facts["keyframe_home_qpos"], atol=1e-8)


@pytest.mark.skipif(not PUBLIC_SCENE.exists(), reason="the public WildRobot model is not on this machine (../shared)")
def test_its_dynamics_are_those_of_the_public_model(robot: Robot) -> None:
    public = mujoco.MjModel.from_xml_path(str(PUBLIC_SCENE))
    rng = np.random.default_rng(7)
    for _ in range(10):
        qpos = np.concatenate([[0, 0, 5], rng.normal(size=4), rng.uniform(*robot.joint_range.T)])
        qpos[3:7] /= np.linalg.norm(qpos[3:7])
        qvel = rng.normal(size=14)
        mass_matrices, biases = [], []
        for model in (robot.model, public):
            data = mujoco.MjData(model)
            data.qpos[:], data.qvel[:] = qpos, qvel
            mujoco.mj_forward(model, data)
            full = np.zeros((model.nv, model.nv))
            mujoco.mj_fullM(model, data, full)
            mass_matrices.append(full)
            biases.append(data.qfrc_bias)
        np.testing.assert_allclose(*mass_matrices, atol=1e-6)
        np.testing.assert_allclose(*biases, atol=1e-5)


def test_it_stands_on_its_soles_with_its_whole_weight(robot: Robot) -> None:
    data = mujoco.MjData(robot.model)
    mujoco.mj_resetDataKeyframe(robot.model, data, robot.model.key("home").id)
    data.ctrl[robot.ctrl_adr] = data.qpos[robot.qpos_adr]

    touched = set()
    for _ in range(1000):
        mujoco.mj_step(robot.model, data)
        touched |= ground_contacts(robot, data)

    assert touched == set(robot.channels)
    force = np.zeros(6)
    load = 0.0
    for contact in range(data.ncon):
        mujoco.mj_contactForce(robot.model, data, contact, force)
        load += force[0]
    assert load == pytest.approx(robot.mg, rel=1e-3)
    assert robot.height_range[0] < data.qpos[2] < robot.height_range[1]


@pytest.mark.parametrize("push", [(1.5, 0.0), (-1.5, 0.0), (0.0, 1.5), (0.0, -1.5)], ids=["front", "back", "left", "right"])
def test_a_fallen_robot_lies_on_the_floor(robot: Robot, push: tuple[float, float]) -> None:
    data = mujoco.MjData(robot.model)
    mujoco.mj_resetDataKeyframe(robot.model, data, robot.model.key("home").id)
    data.ctrl[robot.ctrl_adr] = data.qpos[robot.qpos_adr]
    data.qvel[:2] = push

    heavy = robot.model.body_mass > 0.01
    lowest = np.inf
    for _ in range(1500):
        mujoco.mj_step(robot.model, data)
        # Every body's centre stays above the floor: nothing sinks in for want of a collision shape.
        lowest = min(lowest, data.xipos[heavy, 2].min())

    assert data.xmat[robot.root_body].reshape(3, 3)[2, 2] < 0.5, "the push did not tip it over"
    assert lowest > 0.0
    assert data.qpos[2] < robot.height_range[0]
    assert not ground_contacts(robot, data) <= set(robot.channels), "the floor must feel the fallen body"
    assert np.abs(data.qvel).max() < 1.0


def test_the_body_only_touches_the_ground_and_the_other_foot(robot: Robot) -> None:
    soles = set(robot.channels)
    rng = np.random.default_rng(3)
    data = mujoco.MjData(robot.model)
    for _ in range(200):
        data.qpos[:] = np.concatenate([[0, 0, 5], [1, 0, 0, 0], rng.uniform(*robot.joint_range.T)])
        mujoco.mj_kinematics(robot.model, data)
        mujoco.mj_collision(robot.model, data)
        for pair in data.contact.geom:
            names = {robot.model.geom(int(geom)).name for geom in pair}
            assert names <= soles
            assert {name.split("_")[0] for name in names} == {"left", "right"}

    knocked_feet = [0, 0, 5, 1, 0, 0, 0, 0, 0.174, 0, 0, 0, -0.174, 0, 0]
    data.qpos[:] = knocked_feet
    mujoco.mj_kinematics(robot.model, data)
    mujoco.mj_collision(robot.model, data)
    assert data.ncon > 0


def test_every_body_of_weight_has_a_shape_that_meets_the_ground(robot: Robot) -> None:
    model = robot.model
    bare = []
    for body in range(1, model.nbody):
        geoms = np.flatnonzero(model.geom_bodyid == body)
        if not np.any(model.geom_conaffinity[geoms] & 1):
            bare.append((model.body(body).name.rpartition("_")[2], model.body_mass[body]))
    assert bare == [("mimic", pytest.approx(0.001))] * 9  # docs/robots.md says so.
