"""What a robot.yaml changes in a public model: servos for motors, fixed joints, a floor, feet without names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import yaml

from amp_core.contacts import instrument
from amp_core.errors import RobotRefused
from amp_core.recipe import PhysicsScale
from amp_core.robot import Robot

# As such models are published: motors or no actuators, a name with a space, feet without names on a welded body, no floor.
WALKER = """
<mujoco model="two legs">
  <compiler angle="degree"/>
  <worldbody>
    <body name="trunk" pos="0 0 0.75">
      <freejoint name="root"/>
      <geom type="box" size="0.1 0.15 0.1" mass="4"/>
      <body name="arm" pos="0 0 0.2" euler="0 20 0">
        <joint name="shoulder" axis="0 2 0" pos="0.01 0 0.02" ref="10" range="-90 90"/>
        <geom name="arm" type="capsule" fromto="0 0 0 0.2 0 0" size="0.02" mass="0.3"/>
        <body name="hand" pos="0.2 0 0">
          <joint name="grip" type="slide" axis="1 0 0" range="0 0.1"/>
          <geom name="hand" type="sphere" size="0.03" mass="0.1"/>
        </body>
      </body>
      {legs}
    </body>
  </worldbody>
  <actuator>
    <motor name="shoulder" joint="shoulder" gear="3"/>
    {motors}
  </actuator>
  <sensor><jointpos joint="grip"/></sensor>
  <keyframe><key name="home" qpos="0 0 0.75 1 0 0 0 0 0 {zeros}"/></keyframe>
</mujoco>
"""
LEG = """
<body name="{side}_thigh" pos="0 {y} -0.1">
  <joint name="{side}_hip" axis="0 1 0" range="-60 60"/>
  <geom type="capsule" fromto="0 0 0 0 0 -0.3" size="0.04" mass="1"/>
  <body name="{side}_shin" pos="0 0 -0.3">
    <joint name="{side}_knee" axis="0 1 0" range="0 120" actuatorfrcrange="-30 30"/>
    <geom type="capsule" fromto="0 0 0 0 0 -0.25" size="0.03" mass="0.6"/>
    <body name="{side}_sole" pos="0 0 -0.3">
      <geom type="sphere" size="0.02" pos="0.08 0.03 0" mass="0.1"/>
      <geom type="sphere" size="0.02" pos="-0.05 0.03 0" mass="0.1"/>
      <body name="{side}_rubber" pos="0.1 0 0" euler="0 0 90"><geom type="box" size="0.03 0.01 0.02" mass="0.05"/></body>
    </body>
  </body>
</body>
"""
SIDES = {"left": 0.1, "right": -0.1}
MOTORS = "".join(f'<motor name="{s}_{j}" joint="{s}_{j}" ctrlrange="-20 20" gear="2"/>' for s in SIDES for j in ("hip", "knee"))
MODEL = WALKER.format(legs="".join(LEG.format(side=s, y=y) for s, y in SIDES.items()), motors=MOTORS, zeros="0 0 0 0")

SPEC: dict[str, Any] = {
    "model": "walker.xml",
    "servos": {".*_(hip|knee)": {"kp": 60, "kd": 2, "armature": 0.01}, "shoulder": {"kp": 20, "kd": 1, "limit": 5}},
    "fixed": {"grip": 0.05},
    "contact_channels": {"left": {"body": "left_sole"}, "right": {"body": "right_rubber"}},
    "height_range": [0.4, 0.9],
}

WriteWalker = Callable[..., Path]


@pytest.fixture
def write_walker(tmp_path: Path) -> WriteWalker:
    """Writes the walker with some keys replaced, and some text of its MJCF."""

    def write(replace: tuple[str, str] = ("", ""), **keys: Any) -> Path:
        old, new = replace
        assert old in MODEL
        (tmp_path / "walker.xml").write_text(MODEL.replace(old, new, 1) if old else MODEL)
        path = tmp_path / "robot.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in (SPEC | keys).items() if value is not None}))
        return path

    return write


def test_a_published_model_loads_by_a_short_file(write_walker: WriteWalker) -> None:
    robot = Robot.load(write_walker())
    assert robot.name == "two_legs"
    assert robot.joint_names == ("shoulder", "left_hip", "left_knee", "right_hip", "right_knee")
    assert (robot.model.nq, robot.model.nv, robot.model.nu) == (12, 11, 5)
    assert robot.model.geom(robot.ground_geom).name == "floor"
    assert [(foot.name, len(foot.geoms), len(foot.bodies)) for foot in robot.feet] == [
        ("left_sole", 3, 3),
        ("right_rubber", 1, 3),
    ]


def test_a_servo_has_its_gains_and_the_limit_of_the_motor_in_its_place(write_walker: WriteWalker) -> None:
    robot = Robot.load(write_walker())
    assert robot.force_limit.tolist() == [5.0, 40.0, 30.0, 40.0, 30.0], "the joint's own limit, where it is lower"
    armature = robot.model.dof_armature[robot.qvel_adr]
    assert armature.tolist() == [0.0, 0.01, 0.01, 0.01, 0.01]
    data = mujoco.MjData(robot.model)
    rng = np.random.default_rng(0)
    data.qpos[7:], data.qvel[6:] = 0.2 * rng.standard_normal((2, 5))
    data.ctrl[robot.ctrl_adr] = 0.3
    mujoco.mj_forward(robot.model, data)
    kp, kd = np.array([20.0, 60, 60, 60, 60]), np.array([1.0, 2, 2, 2, 2])
    torque = kp * (0.3 - data.qpos[robot.qpos_adr]) - kd * data.qvel[robot.qvel_adr]
    limit = np.array([5.0, 40, 40, 40, 40])
    np.testing.assert_allclose(data.actuator_force[robot.ctrl_adr], np.clip(torque, -limit, limit), rtol=1e-12)


@pytest.mark.parametrize(("angle", "distance"), [(0.0, 0.0), (0.7, 0.05), (-1.2, 0.1)])
def test_a_fixed_joint_holds_its_body_where_the_joint_would(write_walker: WriteWalker, angle: float, distance: float) -> None:
    robot = Robot.load(write_walker(servos={".*_(hip|knee)": {"kp": 60, "kd": 2}}, fixed={"shoulder": angle, "grip": distance}))
    assert robot.joint_names == ("left_hip", "left_knee", "right_hip", "right_knee")
    free = mujoco.MjModel.from_xml_string(MODEL)
    posed, welded = mujoco.MjData(free), mujoco.MjData(robot.model)
    mujoco.mj_resetData(robot.model, welded)
    posed.joint("shoulder").qpos[0], posed.joint("grip").qpos[0] = angle, distance
    mujoco.mj_kinematics(free, posed)
    mujoco.mj_kinematics(robot.model, welded)
    for geom in ("arm", "hand"):
        np.testing.assert_allclose(welded.geom(geom).xpos, posed.geom(geom).xpos, atol=1e-12)
        np.testing.assert_allclose(welded.geom(geom).xmat, posed.geom(geom).xmat, atol=1e-12)
    assert robot.mass == pytest.approx(float(free.body_subtreemass[1]))


def test_a_joint_in_a_frame_is_fixed_there(write_walker: WriteWalker) -> None:
    arm = '<body name="arm" pos="0 0 0.2" euler="0 20 0">'
    closing = '</body>\n      \n<body name="left_thigh"'
    assert closing in MODEL
    framed = MODEL.replace(arm, f'<frame pos="0.1 0 0" euler="0 0 40">{arm}').replace(
        closing, closing.replace(">", "></frame>", 1)
    )
    path = write_walker(servos={".*_(hip|knee)": {"kp": 60, "kd": 2}}, fixed={"shoulder": 0.6, "grip": 0.0})
    (path.parent / "walker.xml").write_text(framed)
    robot, free = Robot.load(path), mujoco.MjModel.from_xml_string(framed)
    posed, welded = mujoco.MjData(free), mujoco.MjData(robot.model)
    posed.joint("shoulder").qpos[0] = 0.6
    mujoco.mj_kinematics(free, posed)
    mujoco.mj_kinematics(robot.model, welded)
    np.testing.assert_allclose(welded.geom("hand").xpos, posed.geom("hand").xpos, atol=1e-12)


def test_what_is_welded_to_a_foot_is_no_other_contact(write_walker: WriteWalker) -> None:
    robot = Robot.load(write_walker(contact_channels={"left": {"body": "left_sole"}, "right": {"body": "right_sole"}}))
    probe = instrument(robot, PhysicsScale())
    data = mujoco.MjData(probe.model)
    for _ in range(400):
        mujoco.mj_step(probe.model, data)
        assert not probe.nonfoot(data.sensordata) or data.qpos[2] < 0.5
        if data.ncon:
            break
    for _ in range(40):
        mujoco.mj_step(probe.model, data)
    assert probe.loads(data.sensordata).min() > 0.0
    assert not probe.nonfoot(data.sensordata)


def test_the_digest_covers_the_changes_and_no_other_robot_has_another(write_walker: WriteWalker) -> None:
    digest = Robot.load(write_walker()).digest
    assert Robot.load(write_walker(fixed={"grip": 0.06})).digest != digest
    stiffer = {**SPEC["servos"], "shoulder": {"kp": 21, "kd": 1, "limit": 5}}
    assert Robot.load(write_walker(servos=stiffer)).digest != digest
    listed = ["shoulder", "left_hip", "left_knee", "right_hip", "right_knee"]
    assert Robot.load(write_walker(joints=listed)).digest == digest


def test_meshes_are_found_where_the_compiler_finds_them(write_walker: WriteWalker, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    mesh = tmp_path / "b" / "m.obj"
    mesh.write_text("v 0 0 0\nv .1 0 0\nv 0 .1 0\nv 0 0 .1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n")
    twice = '<compiler angle="degree" meshdir="a"/><compiler meshdir="b"/><asset><mesh name="m" file="m.obj"/></asset>'
    path = write_walker(replace=('<compiler angle="degree"/>', twice))
    digest = Robot.load(path).digest
    mesh.write_text(mesh.read_text() + "# worn\n")
    assert Robot.load(path).digest != digest


@pytest.mark.parametrize(
    ("keys", "key", "says"),
    [
        ({"servos": {"hip": {"kp": 1, "kd": 1}}}, "servos", "no joint of the model matches 'hip'"),
        ({"servos": {".*": {"kp": 1, "kd": 1}, "l.*": {"kp": 1, "kd": 1}}}, "servos", "matches both '.*' and 'l.*'"),
        ({"servos": {"*_hip": {"kp": 1, "kd": 1}}}, "servos", "no regular expression"),
        ({"servos": {".*": {"kp": 1}}}, "servos..*", "'kd' is missing"),
        ({"servos": {".*": {"kp": 1, "kd": 1, "kv": 1}}}, "servos..*", "unknown key 'kv'"),
        ({"servos": {".*": {"kp": 0, "kd": 1}}}, "servos..*.kp", "positive"),
        ({"servos": {".*": {"kp": 1, "kd": -1}}}, "servos..*.kd", "at least 0"),
        ({"servos": []}, "servos", "list of 0"),
        ({"servos": None}, "joints", "is not a position servo"),
        ({"fixed": {"grip": "open"}}, "fixed.grip", "angle in rad"),
        ({"fixed": {"thumb": 0}}, "fixed", "no joint of the model matches 'thumb'"),
        ({"fixed": None}, "model", "'grip' is a slide joint"),
        ({"contact_channels": {"left": {"body": "left_foot"}}}, "contact_channels.left.body", "left_thigh"),
        ({"contact_channels": {"left": {"geom": "x"}}}, "contact_channels.left", "{body: NAME}"),
        ({"contact_channels": {"left": ["sole"]}}, "contact_channels.left", "left_sole (2 geoms)"),
        ({"contact_channels": {"l": {"body": "left_sole"}, "r": {"body": "left_rubber"}}}, "contact_channels.r", "also in"),
        ({"ground_geom": "floor"}, "ground_geom", "no geom 'floor'"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_by_its_key(
    write_walker: WriteWalker, keys: dict[str, Any], key: str, says: str
) -> None:
    with pytest.raises(RobotRefused) as caught:
        Robot.load(write_walker(**keys))
    assert caught.value.key == key
    assert says in str(caught.value)
    assert caught.value.remedy


def test_the_first_of_two_joints_of_a_body_can_be_fixed_and_the_second_not(write_walker: WriteWalker) -> None:
    pair = ('<joint name="grip" type="slide"', '<joint name="twist" axis="1 0 0"/><joint name="grip" type="slide"')
    with pytest.raises(RobotRefused, match="'twist' comes first, and moves"):
        Robot.load(write_walker(replace=pair))
    assert Robot.load(write_walker(replace=pair, fixed={"grip": 0, "twist": 0})).joint_names[0] == "shoulder"


def test_a_passive_joint_is_named_with_what_to_do(write_walker: WriteWalker) -> None:
    with pytest.raises(RobotRefused) as caught:
        Robot.load(
            write_walker(
                replace=('<motor name="shoulder" joint="shoulder" gear="3"/>', ""), servos={".*_.*": {"kp": 9, "kd": 1}}
            )
        )
    assert "'shoulder' has 0 actuators" in str(caught.value)
    assert "fixed" in str(caught.value.remedy)
