"""What the planner takes from the robot: nothing from the one that its settings are for, and the right things from others."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest

from amp_core.kinematics import sole_heights
from amp_core.recipe import Planner, Recipe
from amp_core.robot import Robot
from amp_core.tracking.feedforward import compute_controls
from amp_core.tracking.model import planning_model
from amp_core.tracking.scaling import Scaling

PHYSICS = Recipe.for_mode("tracked").physics


@pytest.fixture(scope="module")
def g1() -> Robot:
    return Robot.load("g1")


def test_for_the_robot_of_its_settings_nothing_is_changed() -> None:
    scaling = Scaling.of(Robot.load("wildrobot"))
    assert (scaling.size, scaling.speed, scaling.samples) == (1.0, 1.0, 1.0)
    assert scaling.active.tolist() == list(range(8))
    assert scaling.noise.tolist() == [1.0] * 8
    assert not scaling.has_many
    assert not scaling.is_soft
    assert scaling.count_branches(2, attempt=0) == 2
    assert scaling.step_effort(1) == 1
    assert scaling.is_for_goals(2)


def test_the_legs_and_the_waist_of_a_humanoid_are_active_and_its_arms_follow(g1: Robot) -> None:
    scaling = Scaling.of(g1)
    names = [g1.joint_names[i] for i in scaling.active]
    assert len(names) == 15
    assert all(any(part in name for part in ("hip", "knee", "ankle", "waist")) for name in names)
    assert scaling.size == pytest.approx(1.68, abs=0.02)
    assert scaling.has_many
    assert scaling.is_soft
    assert [scaling.count_branches(2, attempt) for attempt in (0, 1, 2)] == [1, 1, 2]
    assert [scaling.step_effort(attempt) for attempt in (0, 1, 2)] == [0, 0, 1]
    assert [scaling.is_for_goals(attempt) for attempt in (0, 1, 2)] == [True, True, False]


def stiffen(tmp_path: Path, factor: float) -> Robot:
    """The bundled G1 with servos that are so many times stiffer, and damped as well."""
    source = Robot.load("g1").model_path
    (tmp_path / "g1.xml").write_text(source.read_text())
    described = (source.parent / "robot.yaml").read_text()
    model = mujoco.MjModel.from_xml_path(str(source))
    servos = "".join(
        f"  {model.actuator(i).name}: {{kp: {factor * model.actuator_gainprm[i, 0]:.6g}, "
        f"kd: {-(factor**0.5) * model.actuator_biasprm[i, 2]:.6g}}}\n"
        for i in range(model.nu)
    )
    path = tmp_path / "robot.yaml"
    path.write_text(f"{described}\nservos:\n{servos}".replace("name: g1", "name: stiff"))
    return Robot.load(path)


def test_stiff_servos_have_a_short_step_and_little_noise(tmp_path: Path, g1: Robot) -> None:
    robot = stiffen(tmp_path, 12.0)
    assert robot.servo_frequency == pytest.approx(12.0**0.5 * g1.servo_frequency)
    scaling = Scaling.of(robot)
    assert not scaling.is_soft
    assert scaling.noise.max() < Scaling.of(g1).noise.min()
    settings = Planner()
    steps = {robot.name: planning_model(robot, PHYSICS, settings).model.opt.timestep for robot in (g1, robot)}
    assert steps == {"g1": 0.005, "stiff": 0.005}, "never finer than the robot's own"
    assert planning_model(Robot.load("wildrobot"), PHYSICS, settings).substeps == 3


def test_a_servos_response_is_that_of_its_joint_in_a_simulation(g1: Robot) -> None:
    model, joint = g1.model, g1.joint_names.index("left_elbow_joint")
    data = mujoco.MjData(model)
    data.qpos[2] = 5.0
    model = g1.kinematic_model
    model.opt.gravity[:] = 0.0
    data.ctrl[g1.ctrl_adr[joint]] = 0.01
    mujoco.mj_step(model, data, nstep=g1.substeps)
    assert data.qpos[g1.qpos_adr[joint]] / 0.01 == pytest.approx(g1.servo_response[joint], abs=0.05)


def test_the_first_guess_holds_a_pose_that_the_clips_angles_do_not(g1: Robot) -> None:
    pose = np.array(g1.model.key("home").qpos)[None]
    pose[0, 2] -= sole_heights(g1, pose).min()
    planning = planning_model(g1, PHYSICS, Planner())
    still = np.repeat(pose, 9, axis=0)
    controls = compute_controls(g1, planning.model, still, planning.soles, np.ones((9, 2)))
    errors = []
    for target in (controls[4], pose[0, g1.qpos_adr]):
        data = mujoco.MjData(g1.model)
        data.qpos[:] = pose[0]
        for _ in range(60):
            data.ctrl[g1.ctrl_adr] = target
            mujoco.mj_step(g1.model, data)
        errors.append(float(np.abs(data.qpos[g1.qpos_adr] - pose[0, g1.qpos_adr]).max()))
    assert errors[0] < 0.6 * errors[1]


def test_in_flight_nothing_holds_the_robot_up(g1: Robot) -> None:
    pose = np.repeat(np.array(g1.model.key("home").qpos)[None], 5, axis=0)
    planning = planning_model(g1, PHYSICS, Planner())
    controls = compute_controls(g1, planning.model, pose, planning.soles, np.zeros((5, 2)))
    standing = compute_controls(g1, planning.model, pose, planning.soles, np.ones((5, 2)))
    knee = g1.joint_names.index("left_knee_joint")
    assert abs(controls[2, knee] - pose[2, g1.qpos_adr[knee]]) < abs(standing[2, knee] - pose[2, g1.qpos_adr[knee]])


def test_a_sole_of_spheres_is_as_large_as_what_can_touch_the_floor(g1: Robot) -> None:
    planning = planning_model(g1, PHYSICS, Planner())
    for sole, foot in zip(planning.soles, g1.feet, strict=True):
        radius = float(g1.model.geom_size[foot.geoms[0], 0])
        widest = max(abs(float(g1.model.geom_pos[geom, 1])) + float(g1.model.geom_size[geom, 1]) for geom in foot.geoms)
        assert planning.model.geom_size[sole, 1] <= widest + 1e-9
        assert radius > 0.0
