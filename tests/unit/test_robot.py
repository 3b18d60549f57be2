"""`amp_core.robot`: what a robot.yaml may say, what the model must have, and what the loaded robot then knows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import yaml

from amp_core.errors import RobotRefused
from amp_core.formats import read_motion
from amp_core.recipe import PhysicsScale, Recipe
from amp_core.robot import Robot, bundled_robots
from amp_core.robot.spec import MAX_SPEC_BYTES, OPTIONAL_KEYS, REQUIRED_KEYS
from amp_core.rollout import replay
from amp_core.scoring import score

TRILEG = Path(__file__).parents[1] / "robots" / "trileg"
PUBLIC_SCENE = Path(__file__).parents[3] / "shared" / "data" / "wildrobot" / "mjcf" / "scene_flat_terrain.xml"

# One hopping leg: the smallest robot that a robot.yaml can describe.
HOPPER = """
<mujoco model="hopper">
  <compiler angle="radian" autolimits="true"/>
  <worldbody>
    <geom name="ground" type="plane" size="0 0 1"/>
    <body name="trunk" pos="0 0 0.6">
      <freejoint name="root"/>
      <geom name="trunk" type="box" size="0.1 0.1 0.1" mass="2"/>
      <body name="foot" pos="0 0 -0.3">
        <joint name="hip" axis="0 1 0" range="-1 1" damping="0.5"/>
        <geom name="toe" type="box" size="0.1 0.05 0.01" mass="0.5"/>
        <geom name="paint" type="box" size="0.1 0.05 0.01" mass="0" contype="0" conaffinity="0"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="hip" joint="hip" kp="20" kv="1"/>
  </actuator>
</mujoco>
"""

SPEC: dict[str, Any] = {
    "name": "hopper",
    "model": "hopper.xml",
    "control_dt": 0.02,
    "joints": ["hip"],
    "contact_channels": {"toe": ["toe"]},
    "ground_geom": "ground",
    "height_range": [0.2, 0.8],
    "expected_mass": 2.5,
}

WriteRobot = Callable[..., Path]


@pytest.fixture
def write_robot(tmp_path: Path) -> WriteRobot:
    """Writes the hopper with some keys replaced (None removes one) and some text of its MJCF replaced."""

    def write(replace: tuple[str, str] = ("", ""), **keys: Any) -> Path:
        spec = {key: value for key, value in (SPEC | keys).items() if value is not None}
        old, new = replace
        assert old in HOPPER
        (tmp_path / "hopper.xml").write_text(HOPPER.replace(old, new, 1) if old else HOPPER)
        path = tmp_path / "robot.yaml"
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        return path

    return write


# --- A robot that fits -----------------------------------------------------------------------------------------------------


def test_a_small_robot_loads_with_all_its_facts(write_robot: WriteRobot) -> None:
    path = write_robot()

    robot = Robot.load(path)

    assert (robot.name, robot.path) == ("hopper", path)
    assert (robot.control_dt, robot.sim_dt, robot.substeps) == (0.02, 0.002, 10)
    assert robot.joint_names == ("hip",)
    assert (robot.qpos_adr.tolist(), robot.qvel_adr.tolist(), robot.ctrl_adr.tolist()) == ([7], [6], [0])
    assert (robot.root_qpos_adr, robot.root_qvel_adr) == (0, 0)
    assert robot.joint_range.tolist() == [[-1.0, 1.0]]
    assert robot.channels == ("toe",)
    assert [[robot.model.geom(g).name for g in geoms] for geoms in robot.channel_geoms] == [["toe"]]
    assert [(foot.name, foot.channels) for foot in robot.feet] == [("foot", (0,))]
    assert robot.model.geom(robot.ground_geom).name == "ground"
    assert robot.height_range == (0.2, 0.8)
    assert robot.mass == pytest.approx(2.5)
    assert robot.mg == pytest.approx(2.5 * 9.81)
    assert robot.layout.dim == 2 * 1 + 7 + 1


def test_a_folder_stands_for_the_robot_yaml_in_it(write_robot: WriteRobot) -> None:
    path = write_robot()
    assert Robot.load(path.parent).digest == Robot.load(path).digest


def test_optional_keys_have_defaults(write_robot: WriteRobot) -> None:
    robot = Robot.load(write_robot(name=None, control_dt=None, ground_geom=None, expected_mass=None))
    assert (robot.name, robot.control_dt) == ("hopper", 0.02)
    assert robot.model.geom(robot.ground_geom).name == "ground"


def test_a_joint_without_limits_has_an_infinite_range(write_robot: WriteRobot) -> None:
    robot = Robot.load(write_robot(replace=(' range="-1 1"', "")))
    assert robot.joint_range.tolist() == [[-np.inf, np.inf]]


def test_arrays_are_read_only(write_robot: WriteRobot) -> None:
    robot = Robot.load(write_robot())
    for array in (robot.qpos_adr, robot.qvel_adr, robot.ctrl_adr, robot.joint_range):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_a_bad_state_stays_bad_and_nothing_is_logged_to_the_current_folder(
    write_robot: WriteRobot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    robot = Robot.load(write_robot())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    data = mujoco.MjData(robot.model)
    data.qpos[0] = np.nan
    mujoco.mj_step(robot.model, data)

    assert np.isnan(data.qpos).any()
    assert data.warning[mujoco.mjtWarning.mjWARN_BADQPOS].number > 0
    assert list(elsewhere.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_a_robot_with_other_joints_gets_its_own_layout_and_addresses() -> None:
    robot = Robot.load(TRILEG)

    assert robot.name == "trileg"
    assert robot.layout.dim == 2 * 6 + 7 + 2
    assert robot.substeps == 4
    # The clip's order is the file's, not the model's; each control moves the joint of the same name.
    for joint, name in enumerate(robot.joint_names):
        data = mujoco.MjData(robot.model)
        data.ctrl[robot.ctrl_adr[joint]] = 0.3
        mujoco.mj_step(robot.model, data, 20)
        angles = data.qpos[robot.qpos_adr]
        assert int(np.argmax(np.abs(angles))) == joint
        assert angles[joint] == data.joint(name).qpos[0] > 0.02


def test_channels_that_share_a_body_make_one_foot(write_robot: WriteRobot) -> None:
    heel = '<geom name="toe" type="box" size="0.1 0.05 0.01" mass="0.5"/>'
    robot = Robot.load(
        write_robot(
            replace=(heel, heel + '<geom name="heel" size="0.02" pos="-0.1 0 0" mass="0"/>'),
            contact_channels={"toe": ["toe"], "heel": ["heel"]},
        )
    )
    assert robot.channels == ("toe", "heel")
    assert [(foot.name, foot.channels, len(foot.geoms)) for foot in robot.feet] == [("foot", (0, 1), 2)]


def test_a_channel_may_touch_the_ground_through_an_explicit_pair(write_robot: WriteRobot) -> None:
    pair = '<contact><pair geom1="paint" geom2="ground"/></contact><actuator>'
    robot = Robot.load(write_robot(replace=("<actuator>", pair), contact_channels={"toe": ["paint"]}))
    assert robot.model.geom(robot.channel_geoms[0][0]).name == "paint"


@pytest.mark.skipif(not PUBLIC_SCENE.exists(), reason="the public WildRobot model is not on this machine (../shared)")
def test_the_public_model_loads_with_a_five_line_file(tmp_path: Path) -> None:
    lines = [
        f"model: {PUBLIC_SCENE}",
        "joints: [left_hip_pitch, left_hip_roll, left_knee_pitch, left_ankle_pitch, "
        "right_hip_pitch, right_hip_roll, right_knee_pitch, right_ankle_pitch]",
        "contact_channels: {left_toe: [left_toe], left_heel: [left_heel], right_toe: [right_toe], right_heel: [right_heel]}",
        "ground_geom: floor",
        "height_range: [0.35, 0.55]",
    ]
    path = tmp_path / "public.yaml"
    path.write_text("\n".join(lines) + "\n")

    robot = Robot.load(path)

    assert robot.layout.dim == 27
    assert robot.mass == pytest.approx(3.3828276, rel=1e-6)
    assert [foot.name for foot in robot.feet] == ["left_foot", "right_foot"]
    # A relative path says the same as an absolute one, and the digest does not depend on it.
    relative = tmp_path / "relative.yaml"
    relative.write_text("\n".join([f"model: {os.path.relpath(PUBLIC_SCENE, tmp_path)}", *lines[1:]]) + "\n")
    assert Robot.load(relative).digest == robot.digest


# --- The digest ------------------------------------------------------------------------------------------------------------


def test_the_digest_is_the_same_wherever_the_files_lie(tmp_path: Path) -> None:
    copied = shutil.copytree(TRILEG, tmp_path / "somewhere" / "else")
    assert Robot.load(copied).digest == Robot.load(TRILEG).digest
    assert Robot.load(TRILEG).digest.startswith("sha256:")


@pytest.mark.parametrize("file", ["trileg.xml", "parts/defaults.xml"])
def test_the_digest_covers_every_model_file(tmp_path: Path, file: str) -> None:
    copied = shutil.copytree(TRILEG, tmp_path / "changed")
    (copied / file).write_text((copied / file).read_text() + "\n")
    assert Robot.load(copied).digest != Robot.load(TRILEG).digest


def test_the_digest_covers_meshes(tmp_path: Path, write_robot: WriteRobot) -> None:
    (tmp_path / "toe.obj").write_text("v 0 0 0\nv .1 0 0\nv 0 .1 0\nv 0 0 .1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n")
    asset = '<asset><mesh name="m" file="toe.obj"/></asset><worldbody>'
    path = write_robot(replace=("<worldbody>", asset))
    before = Robot.load(path).digest
    (tmp_path / "toe.obj").write_text((tmp_path / "toe.obj").read_text() + "# worn\n")
    assert Robot.load(path).digest != before


@pytest.mark.parametrize(
    "change", [{"name": "other"}, {"control_dt": 0.01}, {"height_range": [0.2, 0.9]}, {"contact_channels": {"sole": ["toe"]}}]
)
def test_the_digest_covers_the_spec(write_robot: WriteRobot, change: dict[str, Any]) -> None:
    before = Robot.load(write_robot()).digest
    assert Robot.load(write_robot(**change)).digest != before


def test_the_digest_does_not_depend_on_comments_in_the_spec(write_robot: WriteRobot) -> None:
    path = write_robot()
    before = Robot.load(path).digest
    path.write_text("# A comment.\n" + path.read_text())
    assert Robot.load(path).digest == before


# --- Physics scales --------------------------------------------------------------------------------------------------------


def test_the_identity_scale_gives_the_same_model_back(write_robot: WriteRobot) -> None:
    robot = Robot.load(write_robot())
    assert robot.scaled_model(PhysicsScale()) is robot.model
    assert robot.mg_for(PhysicsScale()) == robot.mg


def test_friction_scales_every_geom_and_nothing_else(write_robot: WriteRobot) -> None:
    robot = Robot.load(write_robot())
    scaled = robot.scaled_model(PhysicsScale(friction=0.5))
    np.testing.assert_array_equal(scaled.geom_friction, 0.5 * robot.model.geom_friction)
    np.testing.assert_array_equal(scaled.body_mass, robot.model.body_mass)
    np.testing.assert_array_equal(scaled.dof_damping, robot.model.dof_damping)


def test_damping_scales_the_hinges_passive_damping(write_robot: WriteRobot) -> None:
    robot = Robot.load(write_robot())
    scaled = robot.scaled_model(PhysicsScale(damping=3.0))
    assert scaled.dof_damping[robot.qvel_adr].tolist() == [1.5]
    np.testing.assert_array_equal(scaled.dof_damping[:6], robot.model.dof_damping[:6])
    np.testing.assert_array_equal(scaled.actuator_biasprm, robot.model.actuator_biasprm)


def test_mass_scales_bodies_and_inertias_and_what_derives_from_them(write_robot: WriteRobot) -> None:
    robot = Robot.load(write_robot())
    scale = PhysicsScale(mass=1.2)

    scaled = robot.scaled_model(scale)

    np.testing.assert_allclose(scaled.body_mass, 1.2 * robot.model.body_mass)
    np.testing.assert_allclose(scaled.body_inertia, 1.2 * robot.model.body_inertia)
    # Constants that MuJoCo derives at compile time follow: a stale one would soften contacts.
    np.testing.assert_allclose(scaled.body_subtreemass, 1.2 * robot.model.body_subtreemass)
    np.testing.assert_allclose(scaled.body_invweight0[1:], robot.model.body_invweight0[1:] / 1.2)
    assert robot.mg_for(scale) == pytest.approx(1.2 * robot.mg)
    # The robot's own model is untouched.
    assert robot.model.body_subtreemass[robot.root_body] == pytest.approx(2.5)


# --- Refusals --------------------------------------------------------------------------------------------------------------


def refusal(source: str | Path) -> RobotRefused:
    with pytest.raises(RobotRefused) as caught:
        Robot.load(source)
    return caught.value


@pytest.mark.parametrize("source", ["no_such_robot", "some/where/robot.yaml", ""])
def test_an_unknown_robot_lists_the_bundled_ones(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = refusal(source)
    assert error.expected is not None
    assert all(name in error.expected for name in bundled_robots())


@pytest.mark.parametrize(
    ("keys", "key", "says"),
    [
        ({"colour": "red"}, "colour", "contact_channels"),
        ({"model": None}, "model", "missing"),
        ({"contact_channels": None}, "contact_channels", "missing"),
        ({"height_range": None}, "height_range", "missing"),
        ({"name": "../etc"}, "name", "cannot be a name"),
        ({"name": 7}, "name", "int 7"),
        ({"model": "nowhere.xml"}, "model", "hopper.xml"),
        ({"control_dt": 0.003}, "control_dt", "1.5 times"),
        ({"control_dt": 0.0005}, "control_dt", "whole multiple"),
        ({"control_dt": "2e-2"}, "control_dt", "reads 2e-2 as text"),
        ({"control_dt": True}, "control_dt", "bool"),
        ({"control_dt": float("nan")}, "control_dt", "positive number"),
        ({"control_dt": -0.02}, "control_dt", "positive number"),
        ({"joints": []}, "joints", "list of 0"),
        ({"joints": "hip"}, "joints", "text 'hip'"),
        ({"joints": ["hip", "hip"]}, "joints", "twice"),
        ({"joints": ["hip", 3]}, "joints", "int 3"),
        ({"joints": ["hop"]}, "joints", "hinge joints of the model: hip"),
        ({"contact_channels": []}, "contact_channels", "channel: [geom"),
        ({"contact_channels": {"toe": "toe"}}, "contact_channels.toe", "list"),
        ({"contact_channels": {"toe": ["tow"]}}, "contact_channels.toe", "ground, trunk, toe, paint"),
        ({"contact_channels": {"a": ["toe"], "b": ["toe"]}}, "contact_channels", "in two channels"),
        ({"contact_channels": {"toe": ["paint"]}}, "contact_channels.toe", "never touch the ground"),
        ({"contact_channels": {"toe": ["toe", "trunk"]}}, "contact_channels.toe", "several bodies: trunk, foot"),
        ({"contact_channels": {"toe": ["ground"]}}, "contact_channels.toe", "not part of the robot"),
        ({"ground_geom": "floor"}, "ground_geom", "ground, trunk, toe, paint"),
        ({"ground_geom": "toe"}, "ground_geom", "not a plane"),
        ({"height_range": [0.8, 0.2]}, "height_range", "low < high"),
        ({"height_range": [0.2]}, "height_range", "list of 1"),
        ({"height_range": [0.2, "x"]}, "height_range", "not a number"),
        ({"height_range": [0.2, float("inf")]}, "height_range", "low < high"),
        ({"expected_mass": 2.6}, "expected_mass", "2.5000 kg"),
        ({"expected_mass": [2.5]}, "expected_mass", "list of 1"),
    ],
)
def test_a_wrong_key_is_refused_by_name(write_robot: WriteRobot, keys: dict[str, Any], key: str, says: str) -> None:
    path = write_robot(**keys)
    error = refusal(path)
    assert (error.file, error.key) == (str(path), key)
    assert says in str(error)
    assert error.expected
    assert error.remedy


def test_a_mass_within_one_per_cent_is_accepted(write_robot: WriteRobot) -> None:
    assert Robot.load(write_robot(expected_mass=2.5 * 1.009)).mass == pytest.approx(2.5)


SLIDE = '<joint name="hip" type="slide"'
SECOND_TREE = '<body><joint name="door"/><geom size="0.1"/></body></worldbody>'


@pytest.mark.parametrize(
    ("replace", "says"),
    [
        (('<freejoint name="root"/>', '<joint name="hinge_root"/>'), "0 free joints"),
        (("</worldbody>", '<body><freejoint/><geom size="0.1"/></body></worldbody>'), "2 free joints"),
        (('<joint name="hip"', SLIDE), "is a slide joint"),
        (('<joint name="hip" axis="0 1 0" range="-1 1" damping="0.5"/>', '<joint name="hip" type="ball"/>'), "is a ball joint"),
        (("</worldbody>", SECOND_TREE), "'door' is not part of the robot"),
        (('<joint name="hip"', '<joint name="spare"/><joint name="hip"'), "also has the joints spare"),
        (('<position name="hip" joint="hip" kp="20" kv="1"/>', ""), "'hip' has 0 actuators"),
        (("</actuator>", '<position name="again" joint="hip"/></actuator>'), "'hip' has 2 actuators"),
        (('<position name="hip" joint="hip" kp="20" kv="1"/>', '<motor name="m" joint="hip"/>'), "'m' is not a position servo"),
        (('kp="20" kv="1"', 'kp="20" gear="2"'), "not a position servo"),
        (('kp="20" kv="1"', 'kp="20" timeconst="0.1"'), "not a position servo"),
        (('<position name="hip" joint="hip" kp="20" kv="1"/>', '<velocity name="v" joint="hip"/>'), "not a position servo"),
        (('type="plane" size="0 0 1"', 'type="plane" size="0 0 1" euler="0.1 0 0"'), "horizontal plane"),
        (('type="plane" size="0 0 1"', 'type="plane" size="0 0 1" pos="0 0 0.1"'), "its height at 0.1 m"),
        (("<worldbody>", '<option gravity="0 0 0"/><worldbody>'), "gravity"),
        (("<worldbody>", '<option gravity="1 0 -9.81"/><worldbody>'), "gravity"),
        (("<actuator>", '<contact><exclude body1="world" body2="foot"/></contact><actuator>'), "never touch the ground"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(write_robot: WriteRobot, replace: tuple[str, str], says: str) -> None:
    error = refusal(write_robot(replace=replace, expected_mass=None))
    assert says in str(error)
    assert error.expected


def test_two_planes_need_a_name(write_robot: WriteRobot) -> None:
    second = '<geom name="shelf" type="plane" size="1 1 1" pos="0 0 -1"/></worldbody>'
    error = refusal(write_robot(replace=("</worldbody>", second), ground_geom=None))
    assert error.key == "ground_geom"
    assert "ground, shelf" in str(error)


def test_a_name_is_made_of_the_models(write_robot: WriteRobot) -> None:
    assert Robot.load(write_robot(replace=('model="hopper"', 'model="my hopper"'), name=None)).name == "my_hopper"
    error = refusal(write_robot(replace=('model="hopper"', 'model="**"'), name=None))
    assert error.key == "name"


def test_an_mjcf_fault_is_reported_with_its_file(write_robot: WriteRobot, tmp_path: Path) -> None:
    error = refusal(write_robot(replace=("<freejoint", "<freejint")))
    assert error.file == str(tmp_path / "hopper.xml")
    assert "freejint" in str(error)


def test_a_missing_mesh_is_reported_by_path(write_robot: WriteRobot, tmp_path: Path) -> None:
    error = refusal(write_robot(replace=("<worldbody>", '<asset><mesh file="gone.stl"/></asset><worldbody>')))
    assert str(tmp_path / "gone.stl") in str(error)


def test_a_pipe_for_a_mesh_is_refused_rather_than_waited_for(write_robot: WriteRobot, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.stl")
    error = refusal(write_robot(replace=("<worldbody>", '<asset><mesh file="pipe.stl"/></asset><worldbody>')))
    assert "pipe.stl" in str(error)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds empty"),
        ("- a\n- b\n", "list of 2"),
        ('<mujoco model="x"/>\n', "this is XML, such as an MJCF model"),
        ("name: [\n", "not the YAML"),
        ("name: a\nname: b\n", "'name' appears twice"),
        ("name: &a hopper\nmodel: *a\n", "aliases"),
        ("? [a, b]\n: 1\n", "a key must be plain text"),
        ("name: !!python/object/apply:os.getcwd []\n", "python/object"),
        ("a: " + "[" * 20_000, "not the YAML"),
        ("name: \x07\n", "not the YAML"),
        ("# " + "x" * MAX_SPEC_BYTES, "bytes"),
        ("1: 2\n", "unknown key 1"),
    ],
)
def test_a_file_that_is_no_robot_yaml_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "robot.yaml"
    path.write_text(text)
    error = refusal(path)
    assert error.file == str(path)
    assert says in str(error)
    assert len(str(error)) < 1500


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "robot.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in str(refusal(path))


# --- Through the whole pipeline --------------------------------------------------------------------------------------------


def test_a_robot_with_other_joints_is_scored_like_any_other(tmp_path: Path) -> None:
    """Knee bends on the test robot: six joints in an order of their own, an elliptic cone, 100 Hz control."""
    robot = Robot.load(TRILEG)
    frames = 200
    bend = 0.15 * (1 - np.cos(2 * np.pi * np.arange(frames) / frames))
    leg = np.stack([bend, 2 * bend, -bend], axis=1)  # hip, knee, ankle: the sole stays level
    height = 0.52 - 0.48 * (1 - np.cos(bend))
    clip = tmp_path / "bend.npz"
    np.savez(
        clip,
        fps=100.0,
        root_pos=np.stack([0 * bend, 0 * bend, height], axis=1),
        root_rot=np.tile([0.0, 0.0, 0.0, 1.0], (frames, 1)),
        dof_pos=np.hstack([leg, leg]),
    )

    recipe = Recipe.for_mode("rollout")
    [result] = score([read_motion(clip, name="bend")], robot, recipe)

    assert result.tier == 1, result.tier_reason
    arrays = result.rollout.arrays()
    assert arrays["features"].shape == (frames, 21)
    assert arrays["features"].dtype == np.float32
    assert result.quality_metrics["mean_sum_fn_over_mg"] == pytest.approx(1.0, abs=0.02)
    assert result.quality_metrics["joint_rmse_rad"] is not None
    assert result.quality_metrics["joint_rmse_rad"] < 0.1
    qpos, qvel = replay(robot, arrays, recipe)
    np.testing.assert_array_equal(qpos, arrays["qpos"])
    np.testing.assert_array_equal(qvel, arrays["qvel"])


def test_every_key_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "robots.md").read_text()
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert rows >= {*REQUIRED_KEYS, *OPTIONAL_KEYS}
