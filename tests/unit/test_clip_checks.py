"""Clip checks: each kind of fault is found in clips of several robots, and nothing is found in good clips."""

from __future__ import annotations

import json
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import FAULTS, NUMBERS, heading, spoiled, turned

from amp_core import rotations
from amp_core.cli import main as cli
from amp_core.errors import MotionRefused, RecipeRefused
from amp_core.formats import Limits, Motion, read_motion
from amp_core.motion import RootFrame, check_clip, check_motion, condition
from amp_core.motion.plausibility import Poses
from amp_core.motions import bundled_motions
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.scoring import check_scorable, score
from amp_core.tiers import GATE_PROFILES

SHARED = Path(__file__).parents[3] / "shared"
CASES = SHARED / "cases/motions"
TRILEG = Path(__file__).parents[1] / "robots/trileg/robot.yaml"
CSV = {"fps": 30.0, "quat_order": "wxyz"}


def load(path: Path, **options: Any) -> Motion:
    return read_motion(path, name=path.stem, **(options if path.suffix == ".csv" else {}))


@pytest.fixture(scope="module")
def wildrobot() -> Robot:
    return Robot.load("wildrobot")


@pytest.fixture(scope="module")
def walk(wildrobot: Robot) -> Motion:
    [path] = [path for path in bundled_motions() if path.stem == "walk_long_stride"]
    return load(path)


@pytest.fixture(scope="module")
def trileg() -> Robot:
    return Robot.load(TRILEG)


def stepping(robot: Robot, seconds: float = 5.0, fps: float = 50.0, stride: float = 0.2) -> Motion:
    """A walk of `trileg`, by inverse kinematics: its standing foot stays where it is."""
    from amp_core.motion.plausibility import FootMeasure

    thigh, shank = 0.24, 0.24
    t = np.arange(round(seconds * fps)) / fps
    period, ground = 0.8, 0.04
    speed = 2.0 * stride / period
    base = 0.97 * (thigh + shank)
    joints = np.zeros((len(t), 6))
    for foot in (0, 1):
        phase = np.mod(t / period + 0.5 * foot, 1.0)
        stance = phase < 0.5
        swing = (phase - 0.5) / 0.5
        # Smooth at both ends of the swing, and moving backwards with the ground when it lands.
        ahead = np.where(
            stance,
            stride * (0.5 - 2.0 * phase),
            -0.5 * stride + stride * (swing - 2.0 * np.sin(2 * np.pi * swing) / (2 * np.pi)),
        )
        lift = np.where(stance, 0.0, 0.04 * np.sin(np.pi * np.clip(swing, 0, 1)) ** 2)
        reach, drop = ahead, base - lift
        length = np.hypot(reach, drop)
        knee = np.pi - np.arccos(np.clip((thigh**2 + shank**2 - length**2) / (2 * thigh * shank), -1, 1))
        hip = np.arctan2(reach, drop) + np.arcsin(np.clip(shank * np.sin(knee) / length, -1, 1))
        joints[:, 3 * foot : 3 * foot + 3] = np.stack([hip, knee, hip - knee], axis=1)
    zero = np.zeros_like(t)
    position = np.stack([speed * t, zero, zero + base + ground], axis=1)
    rotation = np.stack([zero, zero, zero, zero + 1.0], axis=1)
    motion = Motion("steps", fps, position, rotation, joints, "sha256:" + "0" * 64, "npz")
    low = FootMeasure(robot)._tracker.heights(robot.poses(position, rotation, joints)).min()
    return replace(motion, root_pos=position - [0.0, 0.0, float(low)])


def part(motion: Motion, start: int, stop: int) -> Motion:
    return replace(motion, **{key: getattr(motion, key)[start:stop] for key in ("root_pos", "root_rot", "dof_pos")})


def codes(motion: Motion, robot: Robot, *severities: str) -> list[str]:
    return [f.code for f in check_clip(motion, robot).findings if not severities or f.severity in severities]


# --- Good clips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", bundled_motions(), ids=lambda path: path.stem)
def test_bundled_motions_are_not_refused(wildrobot: Robot, path: Path) -> None:
    assert codes(load(path, **CSV), wildrobot, "refuses", "warns") == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real clips are not beside this checkout (../shared/data/motions)")
def test_real_walks_are_good(wildrobot: Robot) -> None:
    for path in sorted((SHARED / "data/motions").glob("*.pkl")):
        found = codes(load(path), wildrobot, "refuses", "excludes")
        assert found == (["root_frame", "clip_feet_slide"] if path.stem == "walking_slow01_gmr_orig" else []), path.stem


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real clips are not beside this checkout (../shared/data/motions)")
@pytest.mark.parametrize("seconds", [0.8, 1.5])
@pytest.mark.parametrize("name", ["walking_medium04", "walking_medium05", "walking_slow04"])
def test_short_parts_of_real_walks_are_not_read_otherwise(wildrobot: Robot, name: str, seconds: float) -> None:
    """A step on a sliding foot is no evidence against a joint or the heading."""
    walk, stride = load(SHARED / f"data/motions/{name}.pkl"), 6
    count = int(seconds * walk.fps)
    for first in range(0, walk.num_frames - count + 1, stride):
        refusals = codes(part(walk, first, first + count), wildrobot, "refuses")
        assert {"joint_sign", "sides", "heading", "joint_order"}.isdisjoint(refusals), first


@pytest.mark.skipif(not SHARED.is_dir(), reason="the clips of the G1 are not beside this checkout (../shared/data/g1)")
@pytest.mark.parametrize("model", ["mjlab", "menagerie"])
def test_clips_of_a_g1_are_not_refused(model: str) -> None:
    robot = Robot.load(SHARED / "data/g1" / model)
    for path in sorted((SHARED / "data/g1/motions").iterdir()):
        motion = load(path, fps=30.0, quat_order="xyzw")
        found = set(codes(motion, robot, "refuses", "excludes"))
        expected: set[str] = set()
        if any(word in path.stem for word in ("run", "jump")):
            expected = {"flight", "ground_not_flat"} if "asap" in path.stem else {"flight"}
        elif "getup" in path.stem or "kick" in path.stem:
            expected = {"clip_not_upright"}
        elif "asap" in path.stem or "pbhc" in path.stem:
            # Their feet are on heights that differ by 9 to 12 cm, and the feet of the squat slide as it goes down.
            expected = {"ground_not_flat", "flight", "clip_feet_slide"}
        assert found <= expected, path.stem


@pytest.mark.parametrize("path", bundled_motions(), ids=lambda path: path.stem)
def test_noise_of_the_retargeter_is_no_sliding_foot(wildrobot: Robot, path: Path) -> None:
    """2 mm and 4 mrad from frame to frame."""
    motion, rng = load(path, **CSV), np.random.default_rng(3)
    joints = motion.dof_pos + rng.normal(0.0, 0.004, motion.dof_pos.shape)
    noisy = replace(motion, root_pos=motion.root_pos + rng.normal(0.0, 0.002, motion.root_pos.shape), dof_pos=joints)
    result = check_clip(noisy, wildrobot)
    assert result.figures["clip_foot_slide"] < 0.1
    assert [finding.code for finding in result.findings if finding.severity in ("refuses", "excludes")] == []


def test_what_the_clips_of_the_tests_are_is_good(trileg: Robot) -> None:
    assert codes(stepping(trileg), trileg, "refuses", "excludes") == []


# --- Each fault -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_a_walk_is_named(wildrobot: Robot, walk: Motion, name: str) -> None:
    clip = spoiled(name, walk, wildrobot)
    if clip is None:
        pytest.skip("this clip cannot have it")
    found = check_clip(clip, wildrobot).findings
    assert [finding for finding in found if finding.code in FAULTS[name].codes], [f.code for f in found]
    for finding in found:
        assert finding.message
        assert not finding.message.endswith(".")
        if finding.severity in ("refuses", "excludes"):
            assert finding.key
            assert finding.expected
            assert finding.remedy


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_another_robots_walk_is_named(trileg: Robot, name: str) -> None:
    clip = spoiled(name, stepping(trileg), trileg)
    # Legs that change places are the same walk half a cycle later, where no joint leaves the plane.
    if clip is None or name in ("right side first", "alphabetical", "an ankle from another zero"):
        pytest.skip("this clip cannot have it")
    found = codes(clip, trileg)
    assert [code for code in found if code in FAULTS[name].codes], found


@pytest.mark.parametrize("name", ["alphabetical", "rolled by one", "knees and ankles exchanged", "knees for ankles"])
def test_the_column_order_that_is_offered_is_the_robots(wildrobot: Robot, walk: Motion, name: str) -> None:
    clip = spoiled(name, walk, wildrobot)
    assert clip is not None
    [refusal] = [finding for finding in check_clip(clip, wildrobot).findings if finding.severity == "refuses"]
    orders = re.findall(r"dof_pos = dof_pos\[:, (\[[\d, ]+\])\]", refusal.remedy or "")
    assert any(np.abs(clip.dof_pos[:, json.loads(order)] - walk.dof_pos).max() < 0.05 for order in orders), refusal.remedy


@pytest.mark.parametrize("degrees", [15, 20, 30, 45, 60, 135, -120, 90, 180])
def test_the_heading_is_told_by_the_path_that_the_feet_make(wildrobot: Robot, walk: Motion, degrees: int) -> None:
    clip = heading(degrees)(turned(walk, 70.0), wildrobot)
    assert clip is not None
    [refusal] = [finding for finding in check_clip(clip, wildrobot).findings if finding.severity == "refuses"]
    assert refusal.code == "heading"
    turns = [int(turn) for turn in re.findall(r"Turn root_rot by ([+-]\d+) degrees", refusal.remedy or "")]
    assert any(abs((turn + degrees + 180) % 360 - 180) <= 4 for turn in turns), refusal.remedy


@pytest.mark.skipif(not SHARED.is_dir(), reason="the walks are not beside this checkout (../shared/data/motions)")
@pytest.mark.parametrize(("name", "share"), [("walking_medium01", 0.4), ("walking_medium05", 0.7), ("walking_slow02", 0.0)])
def test_a_sole_that_leans_in_a_pose_that_is_held_is_no_other_reading(wildrobot: Robot, name: str, share: float) -> None:
    motion = load(SHARED / f"data/motions/{name}.pkl")
    rows = np.full(150, round(share * motion.num_frames))
    pose = replace(motion, **{key: getattr(motion, key)[rows] for key in ("root_pos", "root_rot", "dof_pos")})
    assert codes(pose, wildrobot, "refuses") == []


def test_readings_that_fit_as_well_are_named(wildrobot: Robot, walk: Motion) -> None:
    """A walk that is the same on both sides: hip pitches of the other sign are legs in one another's place."""
    clip = spoiled("both hip pitches' sign", walk, wildrobot)
    assert clip is not None
    [refusal] = [finding for finding in check_clip(clip, wildrobot).findings if finding.severity == "refuses"]
    assert "which fits about as well" in refusal.message
    assert "Negate the columns 0, 4 of dof_pos" in (refusal.remedy or "")


def test_rotations_that_do_nothing_have_no_other_order(wildrobot: Robot, walk: Motion) -> None:
    """With the sign of both hip rolls wrong, wxyz of none is half a turn, and so would look better."""
    [side_step] = [load(path, **CSV) for path in bundled_motions() if path.stem == "side_step"]
    for clip in (walk, side_step):
        signs = [-1.0 if "hip_roll" in name else 1.0 for name in wildrobot.joint_names]
        found = codes(replace(clip, dof_pos=clip.dof_pos * signs), wildrobot, "refuses")
        assert not {"quaternion_order", "inverse_rotation"} & set(found)


@pytest.mark.parametrize("name", [name for name in NUMBERS if "unsolved" not in name and "norm" not in name])
def test_the_cut_that_is_offered_mends_the_clip(wildrobot: Robot, walk: Motion, name: str) -> None:
    clip = spoiled(name, walk, wildrobot)
    if clip is None:
        pytest.skip("this clip cannot have it")
    remedy = next(f.remedy for f in check_clip(clip, wildrobot).findings if f.code in FAULTS[name].codes) or ""
    if "--frames" not in remedy:
        pytest.skip("no cut mends it")
    start, stop = (int(word) for word in remedy.partition("--frames ")[2].split()[0].split(":"))
    assert codes(part(clip, start, stop), wildrobot, "refuses") == []


def test_leading_frames_are_dropped_before_any_speed_is_checked(wildrobot: Robot, walk: Motion) -> None:
    for count in (1, 2, 3):
        clip = spoiled("one unsolved frame" if count == 1 else "three unsolved frames", walk, wildrobot)
        assert clip is not None
        out = condition(clip, wildrobot)
        assert out.report.first_frame.trimmed
        assert out.num_frames < condition(walk, wildrobot).num_frames
        assert [f.code for f in out.report.findings] == ["leading_frames_dropped"]
        facts = out.report.to_dict()
        assert facts["findings"][0]["frames"] == [0, facts["first_frame"]["frames"] - 1]


def test_what_is_dropped_is_not_measured(wildrobot: Robot, walk: Motion) -> None:
    """The frame that the retargeter had not solved lies, is far away, turned fast and is off unit norm."""
    position, rotation, joints = (np.array(values) for values in (walk.root_pos, walk.root_rot, walk.dof_pos))
    position[0, 0] += 3.0
    rotation[0] = [0.0, 0.97 * np.sin(0.6), 0.0, 0.97 * np.cos(0.6)]
    joints[0] = 0.0
    clip = replace(walk, root_pos=position, root_rot=rotation, dof_pos=joints)
    rest = replace(walk, **{key: getattr(walk, key)[1:] for key in ("root_pos", "root_rot", "dof_pos")})
    facts, kept = (condition(motion, wildrobot).report.to_dict() for motion in (clip, rest))
    differ = {name for name in facts if facts[name] != kept[name]}
    assert differ == {"frames_in", "duration_in_sec", "first_frame", "findings", "notes"}
    assert [finding["code"] for finding in facts["findings"]] == ["leading_frames_dropped"]
    check_scorable(clip, wildrobot, Recipe.for_mode("tracked"))


KINDS = [("hops", "flight"), ("backflip", "clip_not_upright"), ("drifts up", "ground_not_flat")]


@pytest.mark.parametrize(("kind", "code"), KINDS)
def test_a_kind_of_motion_is_excluded_by_the_profile_that_has_a_gate_for_it(
    wildrobot: Robot, walk: Motion, kind: str, code: str
) -> None:
    clip = spoiled(kind, walk, wildrobot)
    assert clip is not None
    excluded = {
        profile: [f.code for f in check_clip(clip, wildrobot, profile=profile).findings if f.severity == "excludes"]
        for profile in GATE_PROFILES
    }
    assert code in excluded["amp-0.12"]
    assert excluded["amp-0.12-dynamic"] == excluded["amp-0.11"] == []
    # A slope is worth a look by every profile.
    warnings = [f.code for f in check_clip(clip, wildrobot, profile="amp-0.12-dynamic").findings if f.severity == "warns"]
    assert ("ground_not_flat" in warnings) == (code == "ground_not_flat")
    with pytest.raises(RecipeRefused, match="no gate profile"):
        check_clip(clip, wildrobot, profile="amp-9")


def test_the_account_of_a_clip_repeats_no_other_profiles_exclusions(wildrobot: Robot, walk: Motion) -> None:
    clip = spoiled("hops", walk, wildrobot)
    assert clip is not None
    notes = {profile: condition(clip, wildrobot, profile=profile).report.notes for profile in GATE_PROFILES}
    assert any(note.startswith("Flight: ") for note in notes["amp-0.12"])
    assert not any(note.startswith("Flight: ") for note in notes["amp-0.12-dynamic"])
    [result] = score([clip], wildrobot, replace(Recipe.for_mode("rollout"), gate_profile="amp-0.12-dynamic"))
    assert tuple(result.ingest["notes"]) == notes["amp-0.12-dynamic"]


def lean_forward(motion: Motion, degrees: float, rows: slice = slice(None)) -> Motion:
    """The root turned about the body's y axis, in some frames."""
    rotation, half = np.array(motion.root_rot), np.radians(degrees) / 2
    rotation[rows] = rotations.multiply(rotation[rows], np.array([0.0, np.sin(half), 0.0, np.cos(half)]))
    return replace(motion, root_rot=rotation)


def test_a_root_that_leans_by_the_same_angle_is_in_another_frame(wildrobot: Robot, walk: Motion) -> None:
    for degrees in (35.0, -45.0, 90.0):
        clip = lean_forward(walk, degrees)
        assert condition(clip, wildrobot).report.root_frame.suspect
        found = codes(clip, wildrobot)
        assert ("root_frame" in found and "clip_not_upright" not in found) or codes(clip, wildrobot, "refuses"), found
        with pytest.raises(MotionRefused, match="its frame is probably not the robot's"):
            check_scorable(clip, wildrobot, replace(Recipe.for_mode("tracked"), gate_profile="amp-0.12-dynamic"))


def test_a_clip_that_bends_lies_or_gets_up_is_in_the_robots_frame(wildrobot: Robot, walk: Motion) -> None:
    bent = lean_forward(walk, 40.0)
    joints = np.array(walk.dof_pos)
    # The hips give back what the root leans: the legs stand as they did.
    joints[:, [0, 4]] += np.radians(40.0) * np.array([1.0, -1.0])
    lying = lean_forward(walk, 90.0)
    clips = {
        "bent": replace(bent, dof_pos=joints),
        "crouched start": lean_forward(walk, 45.0, slice(0, 12)),
        "lying": replace(lying, root_pos=lying.root_pos - [0.0, 0.0, 0.36]),
        "gets up": lean_forward(walk, 90.0, slice(0, walk.num_frames // 2)),
    }
    for name, clip in clips.items():
        frame = RootFrame.of(Poses(clip.root_pos, clip.root_rot, clip.dof_pos), clip.fps, wildrobot)
        assert max(frame.first_tilt_deg, frame.mean_tilt_deg) > 30.0, name
        assert not frame.suspect, name
        assert frame.detail == "", name


def test_a_lean_is_no_other_reading(wildrobot: Robot, walk: Motion) -> None:
    """A pose that leans has some rotation that leans less; only the feet of a clip that walks say which is meant."""
    for degrees in (10.0, 23.0, 40.0):
        angle = np.radians(degrees) / 2
        still = np.tile([0.0, 0.0, 0.44], (80, 1)), np.tile([0.0, np.sin(angle), 0.0, np.cos(angle)], (80, 1))
        clip = replace(walk, root_pos=still[0], root_rot=still[1], dof_pos=np.zeros((80, 8)))
        assert codes(clip, wildrobot, "refuses") == []


def test_a_wrong_order_is_never_called_degrees(wildrobot: Robot, walk: Motion) -> None:
    rng = np.random.default_rng(0)
    for _ in range(12):
        clip = replace(walk, dof_pos=walk.dof_pos[:, rng.permutation(8)])
        assert "degrees" not in codes(clip, wildrobot)


def test_findings_are_json_and_refusals_say_the_same(wildrobot: Robot, walk: Motion) -> None:
    clip = spoiled("knee spike 1 rad", walk, wildrobot)
    assert clip is not None
    result = check_clip(clip, wildrobot)
    facts = result.to_dict()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    [finding] = [finding for finding in facts["findings"] if finding["severity"] == "refuses"]
    with pytest.raises(MotionRefused) as caught:
        check_motion(clip, wildrobot)
    assert caught.value.what == finding["message"]
    assert caught.value.frame == finding["frames"][0]
    assert finding["joint"] == "left_knee_pitch"


def test_the_work_is_bounded(wildrobot: Robot) -> None:
    """Two minutes at a thousand frames a second, of noise."""
    rng = np.random.default_rng(0)
    frames = 119_000
    rotation = rng.normal(size=(frames, 4))
    clip = Motion(
        "noise", 1000.0, rng.normal(size=(frames, 3)), rotation / np.linalg.norm(rotation, axis=1, keepdims=True),
        rng.normal(size=(frames, 8)), "sha256:0", "npz",
    )  # fmt: skip
    start = time.perf_counter()
    assert check_clip(clip, wildrobot, Limits()).refusal is not None
    assert time.perf_counter() - start < 5.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e5, -1e6, 1e200, 1e308])
@pytest.mark.parametrize("frame", [0, 40])
def test_huge_angles_are_refused_without_overflow(wildrobot: Robot, walk: Motion, value: float, frame: int) -> None:
    joints = np.array(walk.dof_pos)
    joints[frame : frame + 2, 3] = value, -value
    result = check_clip(replace(walk, dof_pos=joints), wildrobot)
    json.dumps(result.to_dict(), allow_nan=False)
    assert result.refusal is not None or frame == 0


@pytest.mark.parametrize("frames", [2, 3, 4, 7, 15, 17])
def test_short_clips_are_checked_without_a_crash(wildrobot: Robot, walk: Motion, frames: int) -> None:
    assert codes(part(walk, 40, 40 + frames), wildrobot, "refuses") == []


# --- The inputs made from public reports ------------------------------------------------------------------------------

EXPECTED = {
    "b06_right_hip_sign.pkl": "joint_sign",
    "b06b_knee_sign.pkl": "joint_sign",
    "b08_degrees.pkl": "degrees",
    "b01_bfs_order_named.npz": "joints_reordered",
    "b04_right_leg_first_named.npz": "joints_reordered",
    "b09_knees_ankles_swapped_named.npz": "joints_reordered",
    "c01_wxyz.pkl": "quaternion_order",
    "c03_conjugate_quat.pkl": "inverse_rotation",
    "c06_cm.pkl": "unit",
    "c08_ice_skating.pkl": "clip_feet_slide",
    "c10_heading_off_180.pkl": "heading",
    "c12_float_10cm.pkl": None,
    "c13_height_drift.pkl": "ground_not_flat",
    "c13r_height_drift_down.pkl": "ground_not_flat",
    "c14_sink_6cm.pkl": None,
    "c16_root_jump_25cm.pkl": "root_jump",
    "c18_joint_spike.pkl": "joint_spike",
    "c19_jitter.pkl": "jitter",
    "c20_loop_seam_refused.pkl": "root_jump",
    "c22_sign_flips.pkl": None,
    "c23_first_frame_far.pkl": "leading_frames_dropped",
    "c25_drops_in.pkl": "starts_in_air",
    "c30_frozen_tail.pkl": "frozen_tail",
    "c31_quat_norm_0983.pkl": "quaternions_normalized",
    "a02_50fps_labelled_120.pkl": "rate",
    "d01_static.pkl": "stands_still",
    "d03_run.pkl": "flight",
    "d05_backflip.pkl": "clip_not_upright",
    "d06_stairs.pkl": "ground_not_flat",
    "d07_slope.pkl": "ground_not_flat",
    "d09_one_leg.pkl": "one_leg",
    "d13_two_frames.pkl": "stands_still",
    "base_walk.pkl": None,
}


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout (../shared/cases/motions)")
@pytest.mark.parametrize("name", EXPECTED)
def test_cases(wildrobot: Robot, name: str) -> None:
    found = codes(load(CASES / name), wildrobot)
    expected = EXPECTED[name]
    assert expected in found if expected else found == []


# --- The verbs --------------------------------------------------------------------------------------------------------


def write(path: Path, motion: Motion) -> Path:
    np.savez(path, fps=motion.fps, root_pos=motion.root_pos, root_rot=motion.root_rot, dof_pos=motion.dof_pos)
    return path


def test_check_says_what_is_wrong_and_exits_with_1(
    tmp_path: Path, wildrobot: Robot, walk: Motion, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "good.npz", walk)
    clip = spoiled("frozen tail", walk, wildrobot)
    assert clip is not None
    bad = write(tmp_path / "bad clip.npz", clip)
    assert cli.run(["check", str(good)]) == 0
    assert cli.run(["check", str(good), "--quiet"]) == 0
    assert capsys.readouterr().out.endswith(f"{good}\tok\n")
    assert cli.run(["check", str(bad), str(good), str(tmp_path / "none.npz")]) == 1
    text = capsys.readouterr().out
    assert "bad clip refuses frozen_tail" in text
    assert f"ampref cut '{bad}' --frames 0:" in text
    assert "none refuses unreadable" in text
    assert "3 checked: 2 refused" in text
    assert cli.run(["check", str(bad), str(good), "--json"]) == 1
    documents = json.loads(capsys.readouterr().out)
    assert [document["verdict"] for document in documents] == ["refused", "ok"]
    assert documents[0]["findings"][0]["code"] == "frozen_tail"
    assert documents[1]["figures"]["speed"] > 0.1
    assert documents[1]["ms"] > 0
    hops = spoiled("hops", walk, wildrobot)
    assert hops is not None
    air = write(tmp_path / "hops.npz", hops)
    for profile in ([], ["--profile", "amp-0.12-dynamic"]):
        assert cli.run(["check", str(air), "--quiet", *profile]) == 0
    assert [line.partition("\t")[2] for line in capsys.readouterr().out.splitlines()] == ["no Tier 0", "ok"]
    assert cli.run(["check", str(good), "--profile", "amp-9"]) == 2
    assert cli.run(["check"]) == 2
    assert cli.run(["check", str(good), "--max-duration", "-1"]) == 2
    assert cli.run(["check", str(good), "--max-duration", "1"]) == 1
    assert "ampref cut" in capsys.readouterr().out


def test_the_commands_of_remedies_can_be_typed(
    tmp_path: Path, wildrobot: Robot, walk: Motion, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    frozen = spoiled("frozen tail", walk, wildrobot)
    assert frozen is not None
    folder = Path("my clips")
    folder.mkdir()
    source = write(folder / "source.npz", frozen)
    zeros = np.array(walk.root_rot)
    zeros[-9:] = 0.0
    padded = dict(np.load(write(folder / "padded.npz", walk)))
    np.savez(folder / "padded.npz", **(padded | {"root_rot": zeros}))
    for verb in ("check", "score"):
        for name in ("-walk.npz", "a walk's.npz", "$HOME;x.npz"):
            for content in (source, folder / "padded.npz"):
                Path(name).write_bytes(content.read_bytes())
                assert cli.run([verb, "--", name]) == 1
                # Where the text is wide, it is broken at spaces.
                text = " ".join("".join(capsys.readouterr()).split())
                command = text[text.index("ampref cut ") :]
                words = shlex.split(command[: command.index(" --frames ") + 20])[1:5]
                assert words[:3] == ["cut", f"./{name}" if name.startswith("-") else name, "--frames"]
                assert cli.run([*words[:3], words[3].strip(".;)"), "--out", str(folder)]) == 0
                assert "ampref check 'my clips'/*.npz" in capsys.readouterr().out
    assert cli.run(["check", str(folder)]) == 1
    assert "'my clips'/*.pkl" in " ".join("".join(capsys.readouterr()).split())


def test_cut_counts_frames_in_the_file(tmp_path: Path, walk: Motion, capsys: pytest.CaptureFixture[str]) -> None:
    joints = np.array(walk.dof_pos)
    joints[48] = np.nan
    path = tmp_path / "walk.npz"
    np.savez(path, fps=walk.fps, root_pos=walk.root_pos, root_rot=walk.root_rot, dof_pos=joints)
    assert cli.run(["cut", str(path), "--frames", "40:60"]) == 1
    text = " ".join("".join(capsys.readouterr()).split())
    assert "frame 48" in text
    assert "--frames 49:60" in text


def test_cut_writes_parts_that_remember_the_clip(tmp_path: Path, walk: Motion, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "long.npz", walk)
    out = tmp_path / "parts"
    assert cli.run(["cut", str(source), "--every", "2s", "--out", str(out), "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)
    assert [part["frames"] for part in parts[:2]] == [[0, 99], [100, 199]]
    whole = read_motion(source)
    for part in parts:
        motion = read_motion(part["file"])
        first, last = part["frames"]
        np.testing.assert_array_equal(motion.dof_pos, whole.dof_pos[first : last + 1])
        assert motion.lineage is not None
        assert motion.lineage.parent == motion.lineage.ancestor == whole.source_digest
        assert motion.lineage.augmentation == f"cut={first}:{last + 1}"
        assert motion.source_digest == part["source_digest"]
    assert [Path(part["file"]).name for part in parts[:2]] == ["long_000-099.npz", "long_100-199.npz"]
    assert cli.run(["cut", str(source), "--frames", "50:", "--frames", ":40"]) == 0
    assert (tmp_path / f"long_050-{whole.num_frames - 1:03d}.npz").exists()
    assert (tmp_path / "long_000-039.npz").exists()


def test_cut_mends_a_damaged_end_and_clips_of_minutes(tmp_path: Path, walk: Motion) -> None:
    joints = np.array(walk.dof_pos)
    joints[-5:] = np.nan
    damaged = tmp_path / "damaged.npz"
    np.savez(damaged, fps=50.0, root_pos=walk.root_pos, root_rot=walk.root_rot, dof_pos=joints)
    assert cli.run(["check", str(damaged)]) == 1
    assert cli.run(["cut", str(damaged), "--frames", "0:200"]) == 0
    assert cli.run(["check", str(tmp_path / "damaged_000-199.npz")]) == 0
    frames = 9000
    still = [np.tile(values[:1], (frames, 1)) for values in (walk.root_pos, walk.root_rot, walk.dof_pos)]
    long = tmp_path / "long.npz"
    np.savez(long, fps=50.0, root_pos=still[0], root_rot=still[1], dof_pos=still[2])
    assert cli.run(["check", str(long)]) == 1
    assert cli.run(["check", str(long), "--max-duration", "200"]) == 0
    assert cli.run(["cut", str(long), "--every", "100s", "--out", str(tmp_path / "o")]) == 0
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["long_0000-4999.npz", "long_5000-8999.npz"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--frames", "5:6"], 2),
        (["--frames", "a:b"], 2),
        (["--frames", ":"], 2),
        (["--frames", "9:3"], 2),
        (["--every", "0.5"], 2),
        (["--every", "x"], 2),
        (["--every", "2", "--frames", "1:9"], 2),
        (["--frames", "1000:2000"], 1),
        (["--frames", "0:99999"], 1),
        (["--every", "100"], 1),
    ],
)
def test_cut_refuses_nonsense(tmp_path: Path, walk: Motion, arguments: list[str], code: int) -> None:
    source = write(tmp_path / "walk.npz", walk)
    assert cli.run(["cut", str(source), *arguments]) == code
    assert [path.name for path in tmp_path.iterdir()] == ["walk.npz"]
