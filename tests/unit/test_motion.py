"""Conditioning: what is refused, what is changed, and that the report says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from amp_core.errors import MotionRefused
from amp_core.formats import read_motion
from amp_core.motion import Conditioned, Limits, Motion, check_motion, condition, resampled_count
from amp_core.robot import Foot, Robot
from amp_core.robot.spec import RobotSpec

REAL = Path(__file__).parents[3] / "shared/data/motions"

# A root with one leg: a hip that pitches, an ankle, a foot of every shape, and a head that no clip drives.
LEG = """
<mujoco>
  <option timestep="0.002"/>
  <asset><mesh name="sole" vertex="-.05 -.02 -.01  .05 -.02 -.01  .05 .02 -.01  -.05 .02 -.01
                                    -.05 -.02 .01  .05 -.02 .01  .05 .02 .01  -.05 .02 .01"/></asset>
  <worldbody>
    <geom name="ground" type="plane" size="0 0 1"/>
    <body name="root" pos="0 0 1">
      <freejoint/>
      <geom type="sphere" size=".05" mass="1"/>
      <body name="head" pos="0 0 .2">
        <joint name="neck" axis="0 0 1" ref="17.2"/>
        <geom type="sphere" size=".05" mass=".1"/>
      </body>
      <body name="leg">
        <joint name="hip" axis="0 1 0" range="-1 1" limited="true"/>
        <geom type="capsule" fromto="0 0 0 0 0 -.4" size=".01" mass=".1"/>
        <body name="foot" pos="0 0 -.5">
          <joint name="ankle" axis="0 1 0" range="-1 1" limited="true"/>
          FOOT
        </body>
      </body>
    </body>
  </worldbody>
</mujoco>
"""
FEET = {
    # The foot's lowest point below its joint while the leg hangs straight down.
    "sphere": ('<geom name="sole" type="sphere" size=".03" mass=".1"/>', 0.03),
    "capsule": ('<geom name="sole" type="capsule" fromto="-.05 0 0 .05 0 0" size=".02" mass=".1"/>', 0.02),
    "cylinder": ('<geom name="sole" type="cylinder" size=".05 .015" mass=".1"/>', 0.015),
    "box": ('<geom name="sole" type="box" size=".05 .02 .01" pos="0 0 -.01" mass=".1"/>', 0.02),
    "ellipsoid": ('<geom name="sole" type="ellipsoid" size=".05 .02 .01" mass=".1"/>', 0.01),
    "mesh": ('<geom name="sole" type="mesh" mesh="sole" pos="0 0 -.01" mass=".1"/>', 0.02),
}


def leg_robot(foot: str = "sphere", control_dt: float = 0.02) -> Any:
    """A robot whose model has a joint that no clip drives, which `Robot.load` would refuse."""
    model = mujoco.MjModel.from_xml_string(LEG.replace("FOOT", FEET[foot][0]))
    joints = ("hip", "ankle")
    body, foot_geom = int(model.geom("sole").bodyid[0]), int(model.geom("sole").id)
    return Robot(
        name="leg",
        path=Path("leg.yaml"),
        digest="sha256:0",
        model_path=Path("leg.xml"),
        spec=RobotSpec("leg", "leg.xml", control_dt, joints, (("sole", ("sole",)),), "ground", (0.2, 0.9), None),
        model=model,
        substeps=round(control_dt / 0.002),
        ctrl_adr=np.arange(0),
        root_body=int(model.body("root").id),
        feet=(Foot("sole", (0,), body, (body,), (foot_geom,)),),
        mass=1.0,
        mg=9.81,
        control_dt=control_dt,
        joint_names=joints,
        joint_range=np.array([[-1.0, 1.0], [-1.0, 1.0]]),
        qpos_adr=np.array([model.jnt_qposadr[model.joint(j).id] for j in joints]),
        qvel_adr=np.array([model.jnt_dofadr[model.joint(j).id] for j in joints]),
        root_qpos_adr=0,
        root_qvel_adr=0,
        channels=("sole",),
        channel_geoms=((foot_geom,),),
        ground_geom=model.geom("ground").id,
        height_range=(0.4, 0.6),
    )


@pytest.fixture(scope="module")
def robot() -> Any:
    return leg_robot()


def quat(axis: int, angle: np.ndarray[Any, Any] | float) -> np.ndarray[Any, Any]:
    angle = np.atleast_1d(angle)
    out = np.zeros((len(angle), 4))
    out[:, axis] = np.sin(angle / 2)
    out[:, 3] = np.cos(angle / 2)
    return out


def make(frames: int = 60, fps: float = 50.0, **changes: Any) -> Motion:
    """Upright, turning, drifting along x, swinging the hip; the foot's height is left as it comes."""
    t = np.arange(frames) / fps
    fields = {
        "root_pos": np.stack([0.3 * t, 0.05 * np.sin(t), 0.53 + 0.004 * np.sin(6 * t)], axis=1),
        "root_rot": quat(2, 0.5 * t),
        "dof_pos": np.stack([0.02 * np.sin(5 * t), -0.02 * np.sin(5 * t)], axis=1),
    }
    return Motion("clip", fps, **{**fields, **changes}, source_digest="sha256:0", source_format="npz")


def refused(motion: Motion, robot: Any, *needles: str, key: str, frame: int | None = None, **options: Any) -> None:
    with pytest.raises(MotionRefused) as caught:
        check_motion(motion, robot, **options)
    text = str(caught.value)
    assert all(needle in text for needle in needles), text
    assert caught.value.key == key, text
    assert caught.value.file == "clip"
    assert caught.value.expected
    assert caught.value.remedy
    if frame is not None:
        assert caught.value.frame == frame, text
    with pytest.raises(MotionRefused, match=r"clip"):
        condition(motion, robot, **options)


# --- Resampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "fps_in", "fps_out", "expected"),
    [
        (106, 33.33, 50.0, 158),
        (106, 100 / 3, 50.0, 158),
        (50, 50.0, 50.0, 50),
        (2, 50.0, 50.0, 2),
        (121, 120.0, 50.0, 51),
        (31, 30.0, 50.0, 51),
        (31, 30.0, 60.0, 61),
        (301, 30.000000001, 50.0, 501),
    ],
)
def test_frame_count_rule(frames: int, fps_in: float, fps_out: float, expected: int) -> None:
    assert resampled_count(frames, fps_in, fps_out) == expected


@pytest.mark.parametrize(("fps", "control_dt"), [(100 / 3, 0.02), (120.0, 0.02), (30.0, 0.01), (50.0, 0.02), (1000.0, 0.02)])
def test_resampling_follows_the_motion(fps: float, control_dt: float) -> None:
    """Against the functions that the clip was sampled from: linear parts exactly, the rest to the order of the step squared."""
    motion = make(int(2 * fps), fps)
    out = condition(motion, leg_robot(control_dt=control_dt))
    t = np.arange(out.num_frames) * control_dt
    assert out.dt == control_dt
    assert out.fps == pytest.approx(1 / control_dt)
    assert out.num_frames == resampled_count(motion.num_frames, fps, 1 / control_dt)
    np.testing.assert_allclose(out.root_pos[:, 0], 0.3 * t, atol=1e-12)
    np.testing.assert_allclose(out.root_rot, quat(2, 0.5 * t), atol=1e-12)
    np.testing.assert_allclose(out.dof_pos[:, 0], 0.02 * np.sin(5 * t), atol=0.02 * 25 / (8 * min(fps, 50) ** 2) * 2.6)
    assert out.report.frames_in == motion.num_frames
    assert out.report.frames_out == out.num_frames
    assert out.report.fps_in == fps


def test_the_same_rate_changes_nothing_but_the_height() -> None:
    motion = make(fps=50.0)
    out = condition(motion, leg_robot())
    np.testing.assert_array_equal(out.root_pos[:, :2], motion.root_pos[:, :2])
    np.testing.assert_array_equal(out.dof_pos, motion.dof_pos)
    np.testing.assert_allclose(out.root_rot, motion.root_rot, atol=1e-15)


def test_slerp_keeps_the_rate_of_turning() -> None:
    """90 degrees in one source frame: linear interpolation of components would turn unevenly."""
    motion = make(2, 10.0, root_pos=np.full((2, 3), 0.5), root_rot=quat(2, np.array([0.0, np.pi / 2])))
    out = condition(motion, leg_robot())
    np.testing.assert_allclose(out.root_rot, quat(2, np.linspace(0, np.pi / 2, 6)), atol=1e-12)


def test_sign_flips_are_undone_and_counted() -> None:
    motion = make(40, 100 / 3)
    flipped = motion.root_rot.copy()
    flipped[5] *= -1
    flipped[20:30] *= -1
    out = condition(make(40, 100 / 3, root_rot=flipped), leg_robot())
    clean = condition(motion, leg_robot())
    np.testing.assert_array_equal(out.root_rot, clean.root_rot)
    np.testing.assert_array_equal(out.initial_qvel, clean.initial_qvel)
    assert out.report.quaternions_flipped == 11
    assert clean.report.quaternions_flipped == 0


def test_small_norm_errors_are_mended_and_counted() -> None:
    motion = make()
    off = motion.root_rot.copy()
    off[3:7] *= 1.004
    out = condition(make(root_rot=off), leg_robot())
    assert out.report.quaternions_renormalized == 4
    assert out.report.max_norm_error == pytest.approx(0.004)
    np.testing.assert_allclose(out.root_rot, condition(motion, leg_robot()).root_rot, atol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(out.root_rot, axis=1), 1.0, atol=1e-15)


# --- Joints -----------------------------------------------------------------------------------------------------------


def test_joints_are_clipped_and_named(robot: Any) -> None:
    motion = make()
    dof = motion.dof_pos.copy()
    dof[:, 1] = 1.5 * np.sin(np.arange(60) / 6)
    out = condition(make(dof_pos=dof), robot)
    (found,) = out.report.joints_clipped
    frames = int((np.abs(dof[:, 1]) > 1.0).sum())
    assert (found.joint, found.frames, found.side) == ("ankle", frames, "both")
    assert found.max_excess_rad == pytest.approx(0.5, abs=0.01)
    assert out.dof_pos[:, 1].max() == 1.0
    assert out.dof_pos[:, 1].min() == -1.0
    assert any(f"ankle in {frames} frames by up to 0.5" in note for note in out.report.notes)
    assert condition(motion, robot).report.joints_clipped == ()


# --- The ground -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("foot", FEET)
@pytest.mark.parametrize("offset", [0.033, -0.028, 0.0])
def test_ground_fit_for_every_shape(foot: str, offset: float) -> None:
    """A leg that hangs straight down and turns, at a known height above the floor."""
    still = np.tile([0.0, 0.0, 0.5 + FEET[foot][1] + offset], (30, 1))
    motion = make(30, root_pos=still, root_rot=quat(2, np.linspace(0, 1, 30)), dof_pos=np.zeros((30, 2)))
    out = condition(motion, leg_robot(foot))
    assert out.report.ground_shift_m == pytest.approx(-offset, abs=1e-7)
    assert out.report.foot_height_m == pytest.approx(offset, abs=1e-7)
    np.testing.assert_allclose(out.root_pos[:, 2], 0.5 + FEET[foot][1], atol=1e-7)
    assert out.initial_qpos[2] == out.root_pos[0, 2]


@pytest.mark.parametrize("foot", FEET)
def test_lowest_point_of_a_turned_foot(foot: str) -> None:
    """Against the distance that MuJoCo's own collision code finds between the foot and the floor."""
    rng = np.random.default_rng(0)
    robot = leg_robot(foot)
    dof = rng.uniform(-1, 1, (2, 2)).repeat(20, axis=0)[:1].repeat(20, axis=0)
    tilt = quat(0, 0.4).repeat(20, axis=0)
    motion = make(20, root_pos=np.full((20, 3), 0.62), root_rot=tilt, dof_pos=dof)
    out = condition(motion, robot)
    data = mujoco.MjData(robot.model)
    data.qpos[:] = out.initial_qpos
    data.qpos[2] += 0.1
    mujoco.mj_forward(robot.model, data)
    gap = mujoco.mj_geomDistance(robot.model, data, robot.ground_geom, robot.channel_geoms[0][0], 10.0, None)
    assert gap == pytest.approx(0.1, abs=2e-6)


def test_a_glitch_does_not_move_the_floor(robot: Any) -> None:
    motion = make()
    sunk = motion.root_pos.copy()
    sunk[:, 2] -= 0.15 * np.exp(-(((np.arange(60) - 31) / 6) ** 2))
    a, b = condition(motion, robot).report, condition(make(root_pos=sunk), robot).report
    assert b.ground_shift_m == pytest.approx(a.ground_shift_m, abs=2e-3)
    assert b.deepest_penetration_m > 0.14
    assert 0 < b.deep_penetration_rate < 0.4


def test_feet_without_a_floor_are_noted(robot: Any) -> None:
    motion = make()
    rising = motion.root_pos + np.linspace(0, 0.2, 60)[:, None] * [0, 0, 1]
    notes = condition(make(root_pos=rising), robot).report.notes
    assert any("no vertical shift" in note for note in notes)
    assert any("below the floor" in note for note in notes)
    assert not any("floor" in note for note in condition(motion, robot).report.notes)


# --- The initial state ------------------------------------------------------------------------------------------------


def test_initial_velocity_integrates_to_the_second_frame(robot: Any) -> None:
    """MuJoCo's own integration of frame 0 over one step, for a root that tumbles about a skew axis."""
    rng = np.random.default_rng(1)
    model = robot.model
    qpos, qvel = np.array(model.qpos0), rng.normal(size=model.nv)
    qvel[6] = 0.0
    quats = []
    for _ in range(5):
        quats.append(qpos[[4, 5, 6, 3]].copy())
        mujoco.mj_integratePos(model, qpos, qvel, 0.02)
    pos = np.arange(5)[:, None] * 0.02 * qvel[:3] + [0, 0, 0.6]
    dof = np.arange(5)[:, None] * 0.02 * qvel[robot.qvel_adr]
    out = condition(make(5, root_pos=pos, root_rot=np.array(quats), dof_pos=dof), robot)
    np.testing.assert_allclose(out.initial_qvel, qvel, atol=1e-9)
    step = out.initial_qpos.copy()
    mujoco.mj_integratePos(model, step, out.initial_qvel, out.dt)
    np.testing.assert_allclose(step[:3], out.root_pos[1], atol=1e-12)
    np.testing.assert_allclose(step[[4, 5, 6, 3]], out.root_rot[1], atol=1e-12)
    np.testing.assert_allclose(step[robot.qpos_adr], out.dof_pos[1], atol=1e-12)


def test_angular_velocity_is_in_the_body_frame(robot: Any) -> None:
    """A body that is rolled by 0.7 rad and turns about the world's z axis at 2 rad/s."""
    t = np.arange(10) / 50
    yaw, roll = quat(2, 2 * t), quat(0, 0.7)[0]
    turned = np.stack([_product(q, roll) for q in yaw])
    out = condition(make(10, root_pos=np.full((10, 3), 0.5), root_rot=turned, dof_pos=np.zeros((10, 2))), robot)
    np.testing.assert_allclose(out.initial_qvel[3:6], [0.0, 2.0 * np.sin(0.7), 2.0 * np.cos(0.7)], atol=1e-9)


def _product(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    out = np.zeros(4)
    mujoco.mju_mulQuat(out, a[[3, 0, 1, 2]], b[[3, 0, 1, 2]])
    return out[[1, 2, 3, 0]]


def test_joints_that_the_clip_does_not_have_stay(robot: Any) -> None:
    out = condition(make(), robot)
    neck = robot.model.joint("neck")
    assert out.initial_qpos[neck.qposadr[0]] == pytest.approx(0.3, abs=0.001)
    assert out.initial_qvel[neck.dofadr[0]] == 0.0
    assert out.initial_qpos.shape == (robot.model.nq,)
    np.testing.assert_array_equal(out.initial_qpos[3:7], out.root_rot[0, [3, 0, 1, 2]])


# --- Findings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["root_pos", "root_rot", "dof_pos"])
def test_a_first_frame_that_stands_apart_is_dropped_and_reported(robot: Any, key: str) -> None:
    motion = make()
    values = getattr(motion, key).copy()
    values[0] = quat(2, 0.5)[0] if key == "root_rot" else values[0] + (0.1 if key == "root_pos" else 0.6)
    out = condition(make(**{key: values}), robot)
    first = out.report.first_frame
    assert first.glitch
    assert first.trimmed
    assert key in first.detail
    assert getattr(first, f"{key}_ratio") > 5
    assert out.report.frames_in == 60
    assert out.num_frames == 59
    np.testing.assert_array_equal(out.dof_pos, motion.dof_pos[1:])
    assert any("it was dropped" in note for note in out.report.notes)


def test_ordinary_starts_are_kept(robot: Any) -> None:
    """A steady motion, one that starts from rest, and one that settles over a few frames as real solvers do."""
    t = np.arange(60) / 50
    settling = 0.05 * np.exp(-np.arange(60) * 0.7)
    for x in (0.4 * t, 0.4 * t**2, settling):
        out = condition(make(root_pos=np.stack([x, 0 * t, 0.53 + 0 * t], axis=1)), robot)
        assert not out.report.first_frame.glitch
        assert out.report.first_frame.detail == ""
        assert out.num_frames == 60


def test_speeds(robot: Any) -> None:
    report = condition(make(), robot).report
    assert report.root_speed_mean == pytest.approx(0.3, abs=0.01)
    assert report.root_speed_max >= report.root_speed_mean
    assert report.root_turn_rate_max == pytest.approx(0.5)
    assert report.joint_speed_max == pytest.approx(0.1, rel=0.01)
    assert report.forward_speed_mean > 0.25
    assert any("backwards" in n for n in condition(make(root_rot=quat(2, np.full(60, np.pi))), robot).report.notes)


def test_a_tilted_root_is_a_diagnosis_and_not_a_repair(robot: Any) -> None:
    tilted = quat(1, np.full(60, np.radians(50)))
    out = condition(make(root_rot=tilted), robot)
    assert out.report.root_frame.suspect
    assert out.report.root_frame.mean_tilt_deg == pytest.approx(50)
    assert "tilted by 50 degrees" in out.report.root_frame.detail
    np.testing.assert_allclose(out.root_rot, tilted, atol=1e-15)
    lean = condition(make(root_rot=quat(1, np.full(60, np.radians(25)))), robot).report
    assert not lean.root_frame.suspect
    assert lean.root_frame.detail == ""


def test_the_report_is_json(robot: Any) -> None:
    dof = make().dof_pos + np.array([0.0, 1.0])
    out = condition(make(dof_pos=dof), robot)
    facts = out.report.to_dict()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["joints_clipped"][0]["joint"] == "ankle"
    assert facts["root_frame_suspect"] is False
    assert facts["first_frame"]["glitch"] is False
    assert set(facts) >= {
        "fps_in",
        "fps_out",
        "ground_shift_m",
        "quaternions_renormalized",
        "quaternions_flipped",
        "root_speed_max",
    }


# --- Refusals ---------------------------------------------------------------------------------------------------------


def raised(height: float) -> np.ndarray[Any, Any]:
    return make().root_pos + np.array([0.0, 0.0, height])


@pytest.mark.parametrize(("factor", "unit"), [(100.0, "centimetres"), (1000.0, "millimetres")])
def test_another_unit_of_length(robot: Any, factor: float, unit: str) -> None:
    given = make()
    wrong = make(root_pos=given.root_pos * factor)
    refused(wrong, robot, f"right in {unit}", "metres with z up", f"by {1 / factor:g}", key="root_pos", frame=0)


@pytest.mark.parametrize("offset", [2.0, -2.0])
def test_a_root_far_off_the_floor(robot: Any, offset: float) -> None:
    refused(make(root_pos=raised(offset)), robot, "high on average", key="root_pos", frame=0)


def test_feet_far_off_the_floor(robot: Any) -> None:
    """Where the root's height alone does not tell."""
    wide = replace(robot, height_range=(0.0, 9.0))
    refused(make(root_pos=raised(2.0)), wide, "lowest foot point 2", "m above the floor", "is z up", key="root_pos")


@pytest.mark.parametrize(("offset", "word"), [(0.3, "lowered by 0.3"), (-0.3, "raised by 0.3")])
def test_a_large_shift_of_the_ground_is_noted(robot: Any, offset: float, word: str) -> None:
    small = condition(make(), robot)
    assert not any("whole clip was" in note for note in small.report.notes)
    lifted = condition(make(root_pos=raised(offset - small.report.foot_height_m)), robot)
    [note] = [note for note in lifted.report.notes if "whole clip was" in note]
    assert word in note
    assert "swapped" not in note


def test_y_up(robot: Any) -> None:
    swapped = make(root_pos=make().root_pos[:, [0, 2, 1]], root_rot=quat(2, np.zeros(60)))
    refused(swapped, robot, "y looks like the vertical", "(x, -z, y)", key="root_pos", frame=0)


def test_wrong_robot(robot: Any) -> None:
    refused(make(dof_pos=np.zeros((60, 8))), robot, "8 joints", "'leg' has 2", "hip, ankle", key="dof_pos")


def test_wxyz_given_as_xyzw(robot: Any) -> None:
    motion = make()
    refused(
        make(root_rot=motion.root_rot[:, [3, 0, 1, 2]]), robot, "look like wxyz", "quat_order=wxyz", key="root_rot", frame=0
    )


def _stride(heading: float, backwards: bool = False) -> dict[str, Any]:
    """A compass stride: the foot stays where it is while the root swings over it, 0.5 m above at most."""
    q = np.linspace(0.4, -0.4, 60) * (-1 if backwards else 1)
    ahead = -0.5 * np.sin(-q)[:, None] * [-np.cos(heading), -np.sin(heading)]
    ahead = ahead - ahead[0]
    return {
        "root_pos": np.concatenate([ahead, (0.03 + 0.5 * np.cos(q))[:, None]], axis=1),
        "root_rot": quat(2, np.full(60, heading)),
        "dof_pos": np.stack([-q, q], axis=1),
    }


@pytest.mark.parametrize(("heading", "key"), [(np.pi, "dof_pos"), (np.pi - 0.3, "root_rot"), (-np.pi + 0.2, "root_rot")])
def test_wxyz_of_a_clip_that_faces_backwards(robot: Any, heading: float, key: str) -> None:
    """There the wrong order is upright too, half a turn off; the standing foot tells: it slides when the heading is wrong.

    Exactly backwards it looks like no rotation at all, and is named beside the joints that would explain it as well.
    """
    stride = _stride(heading)
    straight = condition(make(**stride), robot).report
    assert straight.forward_speed_mean > 0.2
    wrong = make(**{**stride, "root_rot": stride["root_rot"][:, [3, 0, 1, 2]]})
    refused(wrong, robot, "look like wxyz", "feet slide at", key=key)


@pytest.mark.parametrize("heading", [0.0, np.pi])
def test_walking_backwards_is_allowed(robot: Any, heading: float) -> None:
    report = condition(make(**_stride(heading, backwards=True)), robot).report
    assert report.forward_speed_mean < -0.2
    assert any("backwards" in note for note in report.notes)


def test_teleports(robot: Any) -> None:
    motion = make()
    jumped = motion.root_pos.copy()
    jumped[40:] += [1.0, 0, 0]
    refused(make(root_pos=jumped), robot, "jumps 1.0", "frames 39 and 40", "--frames 0:40", key="root_pos", frame=40)
    jumped = motion.root_pos.copy()
    jumped[0] += [1.0, 0, 0]
    assert condition(make(root_pos=jumped), robot).report.first_frame.trimmed
    refused(make(root_pos=motion.root_pos * 1000), robot, "metres", key="root_pos")
    flipped = motion.root_rot.copy()
    flipped[33] = quat(0, np.pi)[0]
    refused(make(root_rot=flipped), robot, "turns by 180 degrees", "frames 32 and 33", key="root_rot", frame=33)


def test_degrees(robot: Any) -> None:
    motion = make()
    refused(make(dof_pos=np.degrees(motion.dof_pos * 10)), robot, "look like degrees", "np.radians", key="dof_pos")
    absurd = motion.dof_pos.copy()
    absurd[7, 1] = 1e6
    refused(make(dof_pos=absurd), robot, "ankle is 1e+06 rad", "two turns", key="dof_pos", frame=7)


def test_too_short_for_the_robot() -> None:
    refused(make(5, 1000.0), leg_robot(), "0.004 s", "control step", key="root_pos")
    assert condition(make(21, 1000.0), leg_robot()).num_frames == 2


def test_limits_are_checked_again_for_motions_made_in_code(robot: Any) -> None:
    refused(make(60, 0.5), robot, "fps is 0.5", key="fps")
    refused(make(), robot, "lasts 1.2 s", key="root_pos", limits=Limits(max_duration_sec=1.0))
    refused(make(root_rot=make().root_rot * 2), robot, "norm is 2", key="root_rot", frame=0)
    with pytest.raises(MotionRefused, match="at least 2 frames"):
        make(1)
    with pytest.raises(MotionRefused, match="dof_pos"):
        make(dof_pos=np.zeros((59, 2)))


# --- Determinism and immutability -------------------------------------------------------------------------------------


def _bytes(out: Conditioned) -> list[bytes]:
    return [getattr(out, key).tobytes() for key in ("root_pos", "root_rot", "dof_pos", "initial_qpos", "initial_qvel")]


def test_same_motion_same_bytes(robot: Any) -> None:
    a, b = condition(make(fps=100 / 3), robot), condition(make(fps=100 / 3), leg_robot())
    assert _bytes(a) == _bytes(b)
    assert a.report == b.report


def test_results_are_read_only(robot: Any) -> None:
    out = condition(make(), robot)
    for key in ("root_pos", "root_rot", "dof_pos", "initial_qpos", "initial_qvel"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(out, key)[0] = 0


# --- Real robot, real clips -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wildrobot() -> Any:
    from amp_core.robot import Robot

    return Robot.load("wildrobot")


def test_the_bundled_robot(wildrobot: Any) -> None:
    t = np.arange(60) / 50
    pos = np.stack([0 * t, 0 * t, 0.47 + 0 * t], axis=1)
    motion = make(root_pos=pos, root_rot=quat(2, 0 * t), dof_pos=np.tile([0.0] * 8, (60, 1)))
    out = condition(motion, wildrobot)
    assert out.initial_qpos.shape == (15,)
    assert out.initial_qvel.shape == (14,)
    np.testing.assert_array_equal(out.initial_qvel, 0.0)
    data = mujoco.MjData(wildrobot.model)
    data.qpos[:] = out.initial_qpos
    mujoco.mj_forward(wildrobot.model, data)
    gaps = [
        mujoco.mj_geomDistance(wildrobot.model, data, wildrobot.ground_geom, geom, 1.0, None)
        for channel in wildrobot.channel_geoms
        for geom in channel
    ]
    assert min(gaps) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real clips are not beside this checkout (../shared/data/motions)")
def test_real_clips(wildrobot: Any) -> None:
    reports = {}
    for path in sorted(REAL.glob("*.pkl")):
        motion = read_motion(path, name=path.stem)
        reports[path.stem] = condition(motion, wildrobot).report
        if path.stem != "walking_slow01_gmr_orig":
            wrong = Motion(
                path.stem, motion.fps, motion.root_pos, motion.root_rot[:, [3, 0, 1, 2]], motion.dof_pos, "sha256:0", "pkl"
            )
            with pytest.raises(MotionRefused, match="look like wxyz"):
                check_motion(wrong, wildrobot)
    assert reports["walking_medium01"].frames_in == 106
    assert reports["walking_medium01"].frames_out == 158
    suspects = [name for name, report in reports.items() if report.root_frame.suspect]
    assert suspects == ["walking_slow01_gmr_orig"]
    assert round(reports["walking_slow01_gmr_orig"].root_frame.first_tilt_deg) == 45
    assert round(reports["walking_slow01_gmr_orig"].root_frame.mean_tilt_deg) == 56
    # Two clips sink by almost 3 cm, the others stand within a centimetre of the floor.
    assert reports["walking_slow04"].ground_shift_m == pytest.approx(0.029, abs=0.003)
    assert all(abs(r.ground_shift_m) < 0.01 for name, r in reports.items() if "04" not in name)
    assert not any(report.first_frame.glitch for report in reports.values())
