"""Contacts: the forces are the true ones under either cone, and looking changes nothing."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import mujoco
import numpy as np
import pytest

from amp_core.contacts import instrument
from amp_core.errors import PhysicsFailed
from amp_core.kinematics import FootTracker
from amp_core.recipe import PhysicsScale
from amp_core.robot import Robot

CONES = {"pyramidal": int(mujoco.mjtCone.mjCONE_PYRAMIDAL), "elliptic": int(mujoco.mjtCone.mjCONE_ELLIPTIC)}
TRILEG = Path(__file__).parents[1] / "robots" / "trileg" / "robot.yaml"
IDENTITY = PhysicsScale()


def with_cone(robot: Robot, cone: str) -> Robot:
    model = copy.copy(robot.model)
    model.opt.cone = CONES[cone]
    return dataclasses.replace(robot, model=model)


def placed(robot: Robot, model: mujoco.MjModel, height: float, quat: tuple[float, ...] = (1, 0, 0, 0)) -> mujoco.MjData:
    data = mujoco.MjData(model)
    data.qpos[robot.root_qpos_adr + 2] = height
    data.qpos[robot.root_qpos_adr + 3 : robot.root_qpos_adr + 7] = quat
    return data


def true_loads(robot: Robot, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Normal force a channel by `mj_contactForce`, the slow way."""
    loads, force = np.zeros(len(robot.channels)), np.zeros(6)
    for i in range(data.ncon):
        pair = set(data.contact[i].geom.tolist())
        mujoco.mj_contactForce(model, data, i, force)
        for channel, geoms in enumerate(robot.channel_geoms):
            if robot.ground_geom in pair and pair & set(geoms):
                loads[channel] += force[0]
    return loads


@pytest.mark.parametrize("cone", CONES)
@pytest.mark.parametrize("name", ["wildrobot", str(TRILEG)])
def test_loads_are_the_contact_forces_and_carry_the_weight(name: str, cone: str) -> None:
    robot = with_cone(Robot.load(name), cone)
    probe = instrument(robot, IDENTITY)
    data = placed(robot, probe.model, 0.52)
    loads = np.zeros((400, len(robot.channels)))
    # Falling on the feet, bouncing and leaning: at every moment the sensors say what the contact list says.
    for step in range(400):
        mujoco.mj_step(probe.model, data)
        loads[step] = probe.loads(data.sensordata)
        np.testing.assert_allclose(loads[step], true_loads(robot, probe.model, data), atol=1e-9)
    assert loads.max() > 1.0
    assert loads.min() >= 0.0


@pytest.mark.parametrize("cone", CONES)
def test_standing_still_the_feet_carry_the_weight(cone: str) -> None:
    robot = with_cone(Robot.load("wildrobot"), cone)
    probe = instrument(robot, IDENTITY)
    data = placed(robot, probe.model, 0.47)
    for _ in range(1500):
        mujoco.mj_step(probe.model, data)
    assert probe.loads(data.sensordata).sum() / robot.mg == pytest.approx(1.0, abs=1e-3)
    assert not probe.nonfoot(data.sensordata)


@pytest.mark.parametrize("scale", [IDENTITY, PhysicsScale(friction=0.5, mass=1.2, damping=2.0)])
@pytest.mark.parametrize("name", ["wildrobot", str(TRILEG)])
def test_the_sensors_change_no_bit_of_the_dynamics(name: str, scale: PhysicsScale) -> None:
    robot = Robot.load(name)
    plain, probe = robot.scaled_model(scale), instrument(robot, scale)
    rng = np.random.default_rng(1)
    ours, theirs = placed(robot, probe.model, 0.5), placed(robot, plain, 0.5)
    for _ in range(60):
        ours.ctrl[:] = theirs.ctrl[:] = rng.uniform(-0.3, 0.3, plain.nu)
        for _ in range(10):
            mujoco.mj_step(probe.model, ours)
            mujoco.mj_step(plain, theirs)
        np.testing.assert_array_equal(ours.qpos, theirs.qpos)
        np.testing.assert_array_equal(ours.qvel, theirs.qvel)


def test_a_scale_reaches_the_probe() -> None:
    robot = Robot.load("wildrobot")
    probe = instrument(robot, PhysicsScale(friction=0.5, mass=2.0, damping=3.0))
    usual = instrument(robot, IDENTITY)
    assert probe is instrument(robot, PhysicsScale(friction=0.5, mass=2.0, damping=3.0))
    np.testing.assert_array_equal(probe.model.geom_friction, 0.5 * usual.model.geom_friction)
    np.testing.assert_array_equal(probe.model.body_mass, 2.0 * usual.model.body_mass)
    np.testing.assert_array_equal(probe.model.dof_damping[robot.qvel_adr], 3.0 * usual.model.dof_damping[robot.qvel_adr])


def test_lying_on_the_floor_is_not_standing() -> None:
    robot = Robot.load("wildrobot")
    probe = instrument(robot, IDENTITY)
    data = placed(robot, probe.model, 0.15, (np.cos(np.pi / 4), 0.0, np.sin(np.pi / 4), 0.0))
    touched = []
    for _ in range(1000):
        mujoco.mj_step(probe.model, data)
        touched.append(bool(probe.nonfoot(data.sensordata)))
    assert touched[-1]
    assert not touched[0]


def test_loads_add_up_over_the_geoms_of_a_channel() -> None:
    robot = Robot.load("wildrobot")
    merged = dataclasses.replace(
        robot,
        channels=("left", "right"),
        channel_geoms=tuple(foot.geoms for foot in robot.feet),
        feet=tuple(dataclasses.replace(foot, channels=(i,)) for i, foot in enumerate(robot.feet)),
    )
    single, double = instrument(robot, IDENTITY), instrument(merged, IDENTITY)
    rows = []
    for one, probe in ((robot, single), (merged, double)):
        data = placed(one, probe.model, 0.47)
        for _ in range(200):
            mujoco.mj_step(probe.model, data)
        rows.append(probe.loads(np.tile(data.sensordata, (3, 2, 1))))
    assert rows[0].shape == (3, 2, 4)
    assert rows[1].shape == (3, 2, 2)
    np.testing.assert_allclose(rows[0].reshape(3, 2, 2, 2).sum(axis=-1), rows[1], rtol=1e-12)


def test_elements_without_names_can_be_watched(tmp_path: Path) -> None:
    """The ground and the foot's body have no name; only the channel's geom has to have one."""
    (tmp_path / "r.xml").write_text(
        """<mujoco><worldbody>
        <geom type="box" size=".01 .01 .01" pos="9 9 0"/>
        <geom type="plane" size="0 0 1"/>
        <body pos="0 0 0.5"><freejoint/><geom type="box" size=".1 .1 .1" mass="1"/>
          <body pos="0 0 -0.2"><joint name="j" axis="0 1 0" range="-1 1"/>
            <geom name="sole" type="box" size=".1 .1 .02" pos="0 0 -0.2" mass="1"/></body></body>
        </worldbody><actuator><position joint="j" kp="50" kv="1"/></actuator></mujoco>"""
    )
    (tmp_path / "robot.yaml").write_text(
        "name: hopper\nmodel: r.xml\njoints: [j]\ncontact_channels: {sole: [sole]}\nheight_range: [0.2, 0.6]\n"
    )
    robot = Robot.load(tmp_path)
    probe = instrument(robot, IDENTITY)
    data = placed(robot, probe.model, 0.42)
    for _ in range(1000):
        mujoco.mj_step(probe.model, data)
    assert probe.loads(data.sensordata).sum() == pytest.approx(robot.mg, rel=1e-3)
    assert not probe.nonfoot(data.sensordata)


def test_a_model_file_that_changed_is_noticed(tmp_path: Path) -> None:
    source = Robot.load("wildrobot")
    (tmp_path / "wildrobot.xml").write_text(source.model_path.read_text())
    (tmp_path / "robot.yaml").write_text(source.path.read_text())
    robot = Robot.load(tmp_path)
    changed = source.model_path.read_text().replace(
        '<body name="pelvis_mimic" pos="0 0 0">', '<body name="new"/><body name="pelvis_mimic">'
    )
    assert changed != source.model_path.read_text()
    (tmp_path / "wildrobot.xml").write_text(changed)
    with pytest.raises(PhysicsFailed, match="has changed since the robot was loaded"):
        instrument(robot, IDENTITY)


def moved(robot: Robot, rows: int, step: float) -> np.ndarray:
    """(rows + 1, nq) a robot that is pushed along x without moving a joint, by `step` m a frame."""
    qpos = np.tile(placed(robot, robot.model, 0.47).qpos, (rows + 1, 1))
    qpos[:, robot.root_qpos_adr] = step * np.arange(rows + 1)
    return qpos


def test_a_foot_that_slides_has_its_speed() -> None:
    robot = Robot.load("wildrobot")
    path = moved(robot, 10, 0.004)
    np.testing.assert_allclose(FootTracker(robot).speeds(path[:-1], path[1:]), 0.2, rtol=1e-9)


def test_a_foot_that_turns_about_its_corner_does_not_slide() -> None:
    robot = Robot.load("wildrobot")
    tracker = FootTracker(robot)
    path = moved(robot, 1, 0.0)
    ankle = robot.qpos_adr[robot.joint_names.index("left_ankle_pitch")]
    path[1, ankle] += 0.02  # 1 rad/s
    turned = tracker.speeds(path[:-1], path[1:])
    assert turned[0, 1] == 0.0
    # The corners of a sole 7 cm from the axis move at 0.07 m/s, mostly up and down.
    assert turned[0, 0] < 0.1


def test_many_states_and_many_threads_give_the_same_speeds() -> None:
    robot = Robot.load("wildrobot")
    rng = np.random.default_rng(0)
    path = moved(robot, 100, 0.003)
    path[:, robot.qpos_adr] += rng.normal(0, 0.1, (101, 8))
    expected = FootTracker(robot).speeds(path[:-1], path[1:])
    np.testing.assert_array_equal(FootTracker(robot, nthread=2, size=7).speeds(path[:-1], path[1:]), expected)
    # Frames that do not start where the one before ended are measured at both ends.
    before = path[:-1].copy()
    before[50] = path[0]
    broken = FootTracker(robot).speeds(before, path[1:])
    np.testing.assert_array_equal(np.delete(broken, 50, axis=0), np.delete(expected, 50, axis=0))
    assert (broken[50] > expected[50]).all()


@pytest.mark.parametrize("nthread", [1, 2])
def test_feet_of_a_robot_that_may_sleep_are_followed(nthread: int) -> None:
    robot = Robot.load("wildrobot")
    model = copy.copy(robot.model)
    model.opt.enableflags |= int(mujoco.mjtEnableBit.mjENBL_SLEEP)
    path = moved(robot, 10, 0.004)
    speeds = FootTracker(dataclasses.replace(robot, model=model), nthread=nthread).speeds(path[:-1], path[1:])
    np.testing.assert_array_equal(speeds, FootTracker(robot).speeds(path[:-1], path[1:]))
