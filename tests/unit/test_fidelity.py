"""Fidelity: whether the robot did the clip's motion, by the metrics, by the gates, and from the stored arrays alone."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amp_core.errors import IntegrityError
from amp_core.footing import Footing, robot_bodies, still_frames, touches_ground
from amp_core.formats import Motion, read_motion
from amp_core.kinematics import body_poses
from amp_core.motion import condition
from amp_core.motions import bundled_motions
from amp_core.npz import mmap_member
from amp_core.quality import FrameSeries, measure
from amp_core.recipe import PhysicsScale, Recipe
from amp_core.robot import Robot
from amp_core.rollout import Rollout, generate
from amp_core.rotations import rotate_about_vertical, rotate_yaw
from amp_core.scoring import score
from amp_core.tiers import Tier
from amp_core.verdict import Verdict, judge
from amp_core.verify.stored import StoredArrays

ROLLOUT = Recipe.for_mode("rollout")
DYNAMIC = dataclasses.replace(ROLLOUT, gate_profile="amp-0.12-dynamic")
TRILEG = Path(__file__).parents[1] / "robots" / "trileg" / "robot.yaml"


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


def bundled(stem: str) -> Motion:
    path = next(path for path in bundled_motions() if path.stem == stem)
    return read_motion(path, name=stem)


@pytest.fixture(scope="module")
def walk(robot: Robot) -> Rollout:
    """A rollout that is Tier 0: the first five seconds of the bundled walk."""
    motion = bundled("walk")
    cut = {key: np.asarray(getattr(motion, key))[:167] for key in ("root_pos", "root_rot", "dof_pos")}
    return generate(robot, [condition(dataclasses.replace(motion, **cut), robot)], ROLLOUT)[0]


def verdict(rollout: Rollout, robot: Robot, recipe: Recipe = ROLLOUT, **changed: Any) -> Verdict:
    """The verdict on a rollout with some of its arrays replaced."""
    return judge(dataclasses.replace(rollout, recipe=recipe, **changed), robot)


def failed(found: Verdict) -> set[str]:
    """The gates of validity and Tier 0 that failed."""
    return {gate.name for gate in found.gates if not gate.passed and gate.tier != Tier.TIER_1}


# --- Nothing but the export ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("wildrobot", ROLLOUT),
        ("wildrobot", Recipe.for_mode("teacher_forced")),
        ("wildrobot", dataclasses.replace(DYNAMIC, physics=PhysicsScale(friction=0.7, mass=1.1))),
        (str(TRILEG), ROLLOUT),
    ],
)
def test_the_stored_arrays_alone_give_the_metrics_exactly(name: str, recipe: Recipe, tmp_path: Path) -> None:
    robot = Robot.load(name)
    if name == "wildrobot":
        motion = bundled("walk_long_stride")
    else:
        steps = 0.1 * np.sin(np.arange(80)[:, None] / 7 + np.arange(len(robot.joint_names)))
        root = np.tile([0.0, 0.0, sum(robot.height_range) / 2], (80, 1))
        motion = Motion("swing", 50.0, root, np.tile([0.0, 0.0, 0.0, 1.0], (80, 1)), steps, "sha256:0", "npz")
    found = score([motion], robot, recipe)[0]
    found.export(tmp_path / "clip.npz")
    stored = StoredArrays(tmp_path / "clip.npz")
    series = FrameSeries.from_export(stored, recipe, robot)
    assert measure(series) == found.quality_metrics
    assert [measure(series, s.start, s.stop) for s in found.segments] == [s.quality_metrics for s in found.segments]
    assert mmap_member(tmp_path / "clip.npz", "clip_frames") == found.frames


def test_a_simulation_that_stopped_is_measured_from_its_export_as_well(walk: Rollout, robot: Robot) -> None:
    arrays = walk.arrays() | {"clip_frames": np.array(500), "solver_warnings": np.array(2)}
    metrics = measure(FrameSeries.from_export(arrays, ROLLOUT, robot))
    assert (metrics["finite_frame_rate"], metrics["solver_warnings"]) == (len(walk.qpos) / 500, 2.0)


def test_an_export_of_an_older_release_is_refused_with_what_it_lacks(walk: Rollout, robot: Robot) -> None:
    arrays = {key: array for key, array in walk.arrays().items() if key != "reference_dof_pos_raw"}
    with pytest.raises(IntegrityError, match="lacks reference_dof_pos_raw"):
        FrameSeries.from_export(arrays, ROLLOUT, robot)


# --- Each metric -----------------------------------------------------------------------------------------------------------


def test_a_rollout_of_its_own_poses_has_no_error(walk: Rollout, robot: Robot) -> None:
    reference = {
        "reference_root_pos": walk.root_pos,
        "reference_root_rot": walk.root_rot,
        "reference_dof_pos": walk.dof_pos,
        "reference_dof_pos_raw": walk.dof_pos,
    }
    found = measure(FrameSeries.of(dataclasses.replace(walk, **reference), robot))
    for name in ("joint_rmse_rad", "joint_rmse_raw_rad", "mpjpe_m", "mpjpe_global_m", "height_error_m", "root_drift_m"):
        assert found[name] == 0.0, name
    for name in ("heading_error_deg", "tilt_error_deg", "pitch_excess_deg", "roll_excess_deg", "tilt_excess_deg"):
        assert found[name] == pytest.approx(0.0, abs=1e-4), name
    assert found["speed_ratio"] == 1.0


def test_the_bodies_are_compared_in_the_roots_frame_and_in_the_worlds(walk: Rollout, robot: Robot) -> None:
    shift = np.array([0.3, -0.4, 0.0])
    turned = rotate_yaw(walk.root_rot, 1.0)
    moved = {
        "reference_root_pos": walk.root_pos + shift,
        "reference_root_rot": turned,
        "reference_dof_pos": walk.dof_pos,
        "reference_dof_pos_raw": walk.dof_pos,
    }
    found = measure(FrameSeries.of(dataclasses.replace(walk, **moved), robot))
    assert found["mpjpe_m"] == pytest.approx(0.0, abs=1e-12)
    assert found["heading_error_deg"] == pytest.approx(math.degrees(1.0))
    assert found["tilt_error_deg"] == pytest.approx(0.0, abs=1e-4)
    assert found["root_drift_m"] == pytest.approx(0.5)
    bodies = body_poses(robot, walk.qpos)[0][:, robot_bodies(robot)]
    assert bodies.shape == (len(walk.qpos), robot.model.nbody - 1, 3)
    np.testing.assert_array_equal(bodies[:, 0], walk.root_pos)


def test_the_unclipped_clip_is_what_counts(robot: Robot) -> None:
    motion = bundled("squat")
    joints = np.array(motion.dof_pos)
    high = float(robot.joint_range[0, 1])
    joints[:, 0] = high + 0.19  # From 0.2 rad on the clip is refused.
    clip = condition(dataclasses.replace(motion, dof_pos=joints), robot)
    np.testing.assert_allclose(clip.dof_pos[:, 0], high)
    np.testing.assert_allclose(clip.dof_pos_raw[:, 0], high + 0.19)
    rollout = generate(robot, [clip], ROLLOUT)[0]
    np.testing.assert_array_equal(rollout.reference_dof_pos_raw, clip.dof_pos_raw[: len(rollout.qpos)])
    found = measure(FrameSeries.of(rollout, robot))
    assert found["joint_rmse_raw_rad"] > found["joint_rmse_rad"] + 0.03  # type: ignore[operator]


# --- What is not the clip's motion is not Tier 0 -----------------------------------------------------------------------------


def test_the_walk_as_it_is_is_tier_0(walk: Rollout, robot: Robot) -> None:
    assert verdict(walk, robot).tier == Tier.TIER_0


@pytest.mark.parametrize("angle", [90.0, 180.0, -30.0])
def test_a_heading_that_is_off(angle: float, walk: Rollout, robot: Robot) -> None:
    turned = rotate_yaw(walk.reference_root_rot, math.radians(angle))
    found = verdict(walk, robot, reference_root_rot=turned)
    assert found.tier == Tier.TIER_1
    assert "heading_error_deg" in failed(found)
    assert "stands, but is not the clip's motion: " in found.tier_reason
    assert "heading_error_deg" in found.tier_reason


def test_a_clip_that_is_turned_about_the_vertical_as_a_whole(walk: Rollout, robot: Robot) -> None:
    turned = rotate_about_vertical(walk.reference_root_pos, math.pi / 2)
    found = verdict(walk, robot, reference_root_pos=turned)
    assert found.tier == Tier.TIER_1
    assert {"root_drift_m", "clip_foot_slide"} <= failed(found)


def test_swaying_on_the_spot_is_no_travel(walk: Rollout, robot: Robot) -> None:
    shift = (walk.root_pos[0] - walk.root_pos) * [1.0, 0.0, 0.0]
    qpos = walk.qpos.copy()
    qpos[:, :3] += shift
    found = verdict(walk, robot, qpos=qpos, root_pos=walk.root_pos + shift)
    assert found.tier == Tier.TIER_1
    assert "speed_ratio" in failed(found)
    assert found.quality_metrics["speed_ratio"] == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("factor", [0.4, 2.0])
def test_a_root_that_travels_further_or_less_than_the_steps(factor: float, walk: Rollout, robot: Robot) -> None:
    path = walk.reference_root_pos * np.array([factor, factor, 1.0])
    found = verdict(walk, robot, reference_root_pos=path)
    assert found.tier == Tier.TIER_1
    assert "clip_path_ratio" in failed(found)
    assert not found.segments
    assert failed(found) & {"speed_ratio", "clip_foot_slide"}


@pytest.mark.parametrize("rise", [0.10, -0.10])
def test_a_slope_and_a_height_that_drifts(rise: float, walk: Rollout, robot: Robot) -> None:
    path = walk.reference_root_pos + np.linspace(-rise / 2, rise / 2, len(walk.qpos))[:, None] * np.array([0.0, 0.0, 1.0])
    found = verdict(walk, robot, reference_root_pos=path)
    assert found.tier == Tier.TIER_1
    assert {"clip_ground_range_m", "height_error_m"} <= failed(found)
    assert found.quality_metrics["clip_ground_range_m"] == pytest.approx(0.10, abs=0.01)
    assert found.quality_metrics["clip_flight_rate"] == 0.0
    # A second of a slope is nearly level, and yet no reference of a walk on the floor.
    assert not found.segments


def test_stairs(walk: Rollout, robot: Robot) -> None:
    path = walk.reference_root_pos.copy()
    path[:, 2] += 0.03 * np.floor(np.arange(len(path)) / 40)
    assert "clip_ground_range_m" in failed(verdict(walk, robot, reference_root_pos=path))


def test_a_jump_that_the_robot_leaves_out(walk: Rollout, robot: Robot) -> None:
    """A quarter of a second of five: no percentile and no mean of the clip sees it."""
    rise = np.zeros((len(walk.qpos), 3))
    t = np.arange(13) * 0.02
    rise[100:113, 2] = 4.905 * t * (t[-1] - t)
    found = verdict(walk, robot, reference_root_pos=walk.reference_root_pos + rise)
    assert found.tier == Tier.TIER_1
    assert failed(found) == {"height_error_m"}


def test_a_gesture_that_the_robot_leaves_out(walk: Rollout, robot: Robot) -> None:
    joints = np.array(walk.reference_dof_pos)
    joints[100:150, 0] += 0.7 * np.sin(np.linspace(0.0, np.pi, 50))
    found = verdict(walk, robot, reference_dof_pos=joints, reference_dof_pos_raw=joints)
    assert found.tier == Tier.TIER_1
    assert failed(found) == {"worst_second_mpjpe_m"}


def test_other_joints(walk: Rollout, robot: Robot) -> None:
    swapped = walk.reference_dof_pos[:, ::-1].copy()
    found = verdict(walk, robot, reference_dof_pos=swapped, reference_dof_pos_raw=swapped)
    assert {"joint_rmse_raw_rad", "mpjpe_m"} <= failed(found)


def test_a_clip_that_is_clipped_far_is_another_motion(walk: Rollout, robot: Robot) -> None:
    raw = walk.reference_dof_pos + np.array([1.0] + [0.0] * 7)
    found = verdict(walk, robot, reference_dof_pos_raw=raw)
    assert found.tier == Tier.TIER_1
    assert "joint_rmse_raw_rad" in failed(found)
    assert found.quality_metrics["joint_rmse_rad"] < 0.18  # type: ignore[operator]


def flip(walk: Rollout, frames: int = 30) -> dict[str, Any]:
    """A backflip in the middle of the clip: one turn about the y axis, thrown 40 cm into the air."""
    position, rotation = walk.reference_root_pos.copy(), walk.reference_root_rot.copy()
    phase = np.arange(frames) / (frames - 1)
    rows = slice(100, 100 + frames)
    position[rows, 2] += 1.6 * phase * (1 - phase)
    rotation[rows] = np.stack([0 * phase, -np.sin(np.pi * phase), 0 * phase, np.cos(np.pi * phase)], axis=1)
    return {"reference_root_pos": position, "reference_root_rot": rotation}


def test_a_backflip_is_no_walk(walk: Rollout, robot: Robot) -> None:
    found = verdict(walk, robot, **flip(walk))
    assert found.tier == Tier.REJECTED
    assert {"clip_max_tilt_deg", "tilt_error_deg"} <= failed(found)
    assert "Rejected: by amp-0.12 this clip cannot be Tier 0: clip_max_tilt_deg 174 is over 60" in found.tier_reason
    # By the dynamic profile the clip may turn over, but then the robot has to.
    found = verdict(walk, robot, DYNAMIC, **flip(walk))
    assert found.tier == Tier.TIER_1
    assert "tilt_error_deg" in failed(found)


def jump(walk: Rollout, height: float = 0.1, frames: int = 29) -> dict[str, Any]:
    """Three jumps on the spot instead of the clip's path, joints as they are."""
    lift = np.zeros(len(walk.qpos))
    phase = np.arange(frames) / (frames - 1)
    for start in (60, 120, 180):
        lift[start : start + frames] = 4 * height * phase * (1 - phase)
    return {"lift": lift, "rows": lift > 0.01}


def test_a_jump_that_never_leaves_the_floor_is_no_jump(walk: Rollout, robot: Robot) -> None:
    up = jump(walk)
    path = walk.reference_root_pos + up["lift"][:, None] * np.array([0.0, 0.0, 1.0])
    contacts = walk.reference_contacts & ~up["rows"][:, None]
    clip = {"reference_root_pos": path, "reference_contacts": contacts}
    plain = verdict(walk, robot, **clip)
    assert plain.quality_metrics["clip_flight_rate"] > 0.2  # type: ignore[operator]
    assert "clip_flight_rate" in failed(plain)
    still = verdict(walk, robot, DYNAMIC, **clip)
    assert still.tier == Tier.TIER_1
    assert "height_error_m" in failed(still)
    # The robot that leaves the floor with the clip is Tier 0 by the dynamic profile, and by no other.
    qpos, root = walk.qpos.copy(), walk.root_pos.copy()
    qpos[:, robot.root_qpos_adr + 2] += up["lift"]
    root[:, 2] += up["lift"]
    airborne = up["rows"]
    jumping = dataclasses.replace(
        walk,
        qpos=qpos,
        root_pos=root,
        foot_contacts=np.where(airborne[:, None], 0, walk.foot_contacts).astype(np.float32),
        channel_loads=np.where(airborne[:, None], 0, walk.channel_loads),
        sum_fn_per_frame=np.where(airborne, 0, walk.sum_fn_per_frame),
    )
    found = verdict(jumping, robot, DYNAMIC, **clip)
    assert found.tier == Tier.TIER_0, found.tier_reason
    assert verdict(jumping, robot, ROLLOUT, **clip).tier != Tier.TIER_0


def test_a_contact_of_the_body_counts_where_the_clip_has_none(walk: Rollout, robot: Robot) -> None:
    nonfoot = np.arange(len(walk.qpos)) >= 240
    found = verdict(walk, robot, DYNAMIC, nonfoot_contact=nonfoot)
    assert found.tier == Tier.REJECTED
    assert found.quality_metrics["nonfoot_excess"] == nonfoot.mean()
    lying = walk.reference_root_pos.copy()
    lying[240:, 2] = 0.05
    found = verdict(walk, robot, DYNAMIC, nonfoot_contact=nonfoot, reference_root_pos=lying)
    assert found.quality_metrics["nonfoot_excess"] == 0.0
    assert not touches_ground(robot, walk.qpos).any()


# --- The clip's footing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", [path.stem for path in bundled_motions()])
def test_the_bundled_clips_stand_on_level_ground_and_do_not_slide(stem: str, robot: Robot) -> None:
    path = next(path for path in bundled_motions() if path.stem == stem)
    kwargs: dict[str, Any] = {"fps": 30.0, "quat_order": "wxyz"} if path.suffix == ".csv" else {}
    clip = condition(read_motion(path, name=stem, **kwargs), robot)
    footing = Footing.of(robot, clip.qpos(robot))
    assert not footing.in_flight.any()
    assert np.median(footing.slide) < 0.05
    assert np.ptp(footing.ground) < 0.001


def hold(motion: Motion, seconds: float = 4.5) -> Motion:
    """The first pose of a motion, held."""
    frames = round(seconds * motion.fps)
    held = {key: np.repeat(getattr(motion, key)[:1], frames, axis=0) for key in ("root_pos", "root_rot", "dof_pos")}
    return dataclasses.replace(motion, **held)


@pytest.mark.parametrize("profile", ["amp-0.12", "amp-0.12-dynamic"])
def test_a_clip_that_stands_still_teaches_no_motion(profile: str, robot: Robot) -> None:
    [found] = score([hold(bundled("squat"))], robot, dataclasses.replace(ROLLOUT, gate_profile=profile))
    assert found.tier == Tier.TIER_1
    assert f"by {profile} this clip cannot be Tier 0: clip_still_rate 1 is over 0.95" in found.tier_reason
    assert found.segments == ()
    assert found.diagnosis is not None
    assert [finding.code for finding in found.diagnosis.findings].count("stands_still") == 1


def still_rate(motion: Motion, robot: Robot) -> float:
    clip = condition(motion, robot)
    height = sum(robot.height_range) / 2
    return float(still_frames(clip.root_pos, clip.root_rot, clip.dof_pos_raw, clip.dt, height).mean())


def test_a_pose_is_held_though_it_trembles_sways_slides_and_turns(robot: Robot) -> None:
    pose = hold(bundled("squat"))
    t, rng = np.arange(pose.num_frames) / pose.fps, np.random.default_rng(0)
    drift, zero = 0.04 * t, 0.0 * t
    sway = np.radians(3.0) * np.sin(2 * np.pi * 0.3 * t)[:, None]
    held = {
        "noise": {"dof_pos": pose.dof_pos + 0.01 * rng.normal(size=pose.dof_pos.shape)},
        "sway": {"dof_pos": pose.dof_pos + sway},
        "slides": {"root_pos": pose.root_pos + np.stack([drift, zero, zero], axis=1)},
        "bobs": {"root_pos": pose.root_pos + 0.005 * np.stack([zero, zero, np.sin(6.0 * t)], axis=1)},
        "turns": {"root_rot": np.stack([zero, zero, np.sin(drift), np.cos(drift)], axis=1)},
    }
    for name, arrays in held.items():
        assert still_rate(dataclasses.replace(pose, **arrays), robot) == 1.0, name


@pytest.mark.parametrize("stem", [path.stem for path in bundled_motions()])
def test_the_bundled_clips_move(stem: str, robot: Robot) -> None:
    path = next(path for path in bundled_motions() if path.stem == stem)
    kwargs: dict[str, Any] = {"fps": 30.0, "quat_order": "wxyz"} if path.suffix == ".csv" else {}
    assert still_rate(read_motion(path, name=stem, **kwargs), robot) < 0.4


def test_a_jump_a_kick_and_a_long_pose_inside_a_clip_are_motions(robot: Robot) -> None:
    pose = hold(bundled("squat"), 6.0)
    t = np.arange(pose.num_frames) / pose.fps
    swing = np.sin(np.pi * np.clip(t - 3.0, 0.0, 1.0))
    kick, position = np.array(pose.dof_pos), np.array(pose.root_pos)
    kick[:, robot.joint_names.index("left_hip_pitch")] += 0.8 * swing
    position[:, 2] += 4.905 * np.clip(t - 3.0, 0.0, 0.4) * np.clip(3.4 - t, 0.0, 0.4)
    for moving in (dataclasses.replace(pose, dof_pos=kick), dataclasses.replace(pose, root_pos=position)):
        assert 0.5 < still_rate(moving, robot) < 0.9


def test_a_run_is_in_flight_though_its_feet_stay_low(robot: Robot) -> None:
    # Both feet swing fast and a centimetre above the floor for a third of the time.
    clip = condition(bundled("walk"), robot)
    moving = np.arange(clip.num_frames) % 30 < 10
    root = clip.root_pos.copy()
    root[:, 0] += np.cumsum(moving) * 1.0 * robot.control_dt
    footing = Footing.of(robot, robot.poses(root, clip.root_rot, clip.dof_pos))
    assert footing.in_flight.mean() == pytest.approx(1 / 3, abs=0.05)


def test_the_footing_of_no_pose_and_of_one(robot: Robot) -> None:
    pose = condition(bundled("walk"), robot).qpos(robot)[:1]
    assert len(Footing.of(robot, pose[:0]).slide) == 0
    one = Footing.of(robot, pose)
    assert (one.slide[0], one.in_flight[0]) == (0.0, False)
