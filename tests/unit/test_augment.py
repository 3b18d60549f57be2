"""Augmentation: variants of clips, their bytes and their lineage."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest

from amp_core.augment import Augmentation, augment, make_variant, motion_bytes, symmetry_of
from amp_core.errors import InputRefused, MotionRefused
from amp_core.formats import Lineage, Motion, read_motion
from amp_core.motion import check_motion, condition
from amp_core.motions import bundled_motions, reading_options
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.scoring import score

TRILEG = Path(__file__).parents[1] / "robots" / "trileg"
FILES = {path.stem: path for path in bundled_motions()}


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


def clip(name: str = "walk") -> Motion:
    return read_motion(FILES[name], name=name, **reading_options(FILES[name]))


def walking(robot: Robot, seconds: float = 4.0, period: float = 1.0) -> Motion:
    """A made-up gait that moves on along a curve, from its first frame to its last."""
    t = np.arange(round(seconds * 50) + 1) / 50.0
    phase = 2 * np.pi * t / period
    dof = np.stack([0.2 * np.sin(phase + shift) + 0.25 for shift in np.linspace(0, np.pi, 8)], axis=1)
    dof = np.clip(dof, robot.joint_range[:, 0], robot.joint_range[:, 1])
    yaw = 0.2 * t
    position = np.stack([0.3 * np.sin(yaw) / 0.2, 0.3 * (1 - np.cos(yaw)) / 0.2, 0.45 + 0.005 * np.sin(2 * phase)], axis=1)
    rotation = np.stack([0 * t, 0 * t, np.sin(yaw / 2), np.cos(yaw / 2)], axis=1)
    return Motion("gait", 50.0, position, rotation, dof, "sha256:" + "a" * 64, "npz")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("mirror", "mirror"),
        ("warp=0.90", "warp=0.9"),
        ("heading=-90", "heading=-90"),
        ("heading=270", "heading=-90"),
        ("loop=3", "loop=3"),
        ("loop=3:0.2", "loop=3"),
        ("loop=3:0.35", "loop=3:0.35"),
        ("heading=90+warp=1.1+mirror", "mirror+warp=1.1+heading=90"),
        ("cut=007:40", "cut=7:40"),
        ("mirror+level", "level+mirror"),
    ],
)
def test_texts_are_canonical(text: str, canonical: str) -> None:
    assert Augmentation.parse(text).text == canonical
    assert Augmentation.parse(canonical) == Augmentation.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "mirror+mirror", "mirror+", "flip", "m" * 10_000),
        *("warp=0.89", "warp=1.11", "warp=1", "warp=nan", "warp=0.9+warp=1.1"),
        *("heading=361", "heading=360", "loop=1", "loop=51", "loop=2:9", "loop=x"),
        *("cut=5", "cut=5:6", "cut=9:3", "cut=-1:9", "cut=0:20+mirror", "cut=0:20+cut=0:30"),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputRefused):
        Augmentation.parse(text)


def feet(robot: Robot, motion: Motion) -> np.ndarray:
    data = mujoco.MjData(robot.model)
    found = []
    for k in range(0, motion.num_frames, 7):
        root = robot.root_qpos_adr
        data.qpos[root : root + 3] = motion.root_pos[k]
        data.qpos[root + 3 : root + 7] = motion.root_rot[k, [3, 0, 1, 2]]
        data.qpos[robot.qpos_adr] = motion.dof_pos[k]
        mujoco.mj_kinematics(robot.model, data)
        found.append([data.geom_xpos[list(foot.geoms)].mean(axis=0) for foot in robot.feet])
    return np.array(found)


@pytest.mark.parametrize("name", ["walk", "side_step", "weight_shift"])
def test_the_feet_of_a_mirrored_clip_are_the_mirror_image(robot: Robot, name: str) -> None:
    source = clip(name)
    mirrored = augment(source, robot, Augmentation(mirror=True))
    pairs = list(symmetry_of(robot).feet)
    assert pairs == [1, 0]
    # The model's own two sides differ by 2 mm.
    np.testing.assert_allclose(feet(robot, mirrored)[:, pairs], feet(robot, source) * [1, -1, 1], atol=0.004)


@pytest.mark.parametrize("which", ["wildrobot", "trileg"])
def test_mirrored_twice_is_the_clip(which: str) -> None:
    robot = Robot.load("wildrobot" if which == "wildrobot" else TRILEG)
    rng = np.random.default_rng(0)
    middle = robot.joint_range.mean(axis=1)
    rotation = np.tile([0.05, 0.1, 0.2, 0.97], (20, 1))
    rotation /= np.linalg.norm(rotation, axis=1, keepdims=True)
    joints = middle + 0.05 * rng.standard_normal((20, len(middle)))
    source = Motion("x", 50.0, rng.standard_normal((20, 3)), rotation, joints, "sha256:" + "b" * 64, "npz")
    once = augment(source, robot, Augmentation(mirror=True))
    twice = augment(once, robot, Augmentation(mirror=True))
    assert not np.allclose(once.dof_pos, source.dof_pos)
    for key in ("root_pos", "root_rot", "dof_pos"):
        np.testing.assert_allclose(getattr(twice, key), getattr(source, key), atol=1e-12)
    assert twice.lineage == Lineage(once.source_digest, source.source_digest, "mirror")


@pytest.mark.parametrize(("old", "new"), [('pos="0 0.08 0"', 'pos="0.05 0.11 0"'), ("fromto", "fromto")])
def test_a_robot_without_symmetry_is_refused_by_name(tmp_path: Path, old: str, new: str) -> None:
    folder = tmp_path / "robot"
    shutil.copytree(TRILEG, folder)
    model = folder / "trileg.xml"
    text = model.read_text().replace(old, new)
    if old == new:  # Kinematics alike, one foot plate elsewhere.
        text = text.replace(
            'name="sole_l" type="box" size="0.09 0.05 0.01" pos="0.03 0',
            'name="sole_l" type="box" size="0.09 0.05 0.01" pos="0.03 0.04',
        )
    model.write_text(text)
    with pytest.raises(InputRefused, match=r"no left-right symmetry: .*(hip_|foot_)"):
        symmetry_of(Robot.load(folder))


@pytest.mark.parametrize("factor", [0.9, 0.95, 1.1])
def test_a_warp_below_one_is_slower(robot: Robot, factor: float) -> None:
    source = clip()
    warped = augment(source, robot, Augmentation(time_warp=factor))
    assert warped.fps == source.fps
    assert warped.duration_sec == pytest.approx(source.duration_sec / factor, abs=1 / source.fps)
    k = np.array([10, 50, 100])
    at = k * factor
    low = np.floor(at).astype(int)
    part = (at - low)[:, None]
    expected = (1 - part) * source.dof_pos[low] + part * source.dof_pos[low + 1]
    np.testing.assert_allclose(warped.dof_pos[k], expected, atol=1e-12)
    check_motion(warped, robot)


def test_a_heading_changes_nothing_that_features_see(robot: Robot) -> None:
    source = clip("side_step")
    turned = augment(source, robot, Augmentation(heading=77))
    np.testing.assert_allclose(turned.root_pos[0], source.root_pos[0], atol=1e-12)
    assert np.array_equal(turned.dof_pos, source.dof_pos)
    a, b = condition(source, robot), condition(turned, robot)

    def local(made: object) -> np.ndarray:
        x, y, z, w = made.root_rot.T  # type: ignore[attr-defined]
        yaw = np.arctan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z))[:-1]
        velocity = np.diff(made.root_pos, axis=0)  # type: ignore[attr-defined]
        forward = np.cos(yaw) * velocity[:, 0] + np.sin(yaw) * velocity[:, 1]
        return np.stack([forward, np.cos(yaw) * velocity[:, 1] - np.sin(yaw) * velocity[:, 0], velocity[:, 2]], axis=1)

    np.testing.assert_allclose(local(a), local(b), atol=1e-9)
    np.testing.assert_allclose(a.root_pos[:, 2], b.root_pos[:, 2], atol=1e-9)
    quarter = source
    for _ in range(4):
        quarter = augment(quarter, robot, Augmentation(heading=90))
    np.testing.assert_allclose(quarter.root_pos, source.root_pos, atol=1e-12)


def steps(motion: Motion) -> dict[str, float]:
    return {
        "root_pos": float(np.linalg.norm(np.diff(motion.root_pos, axis=0), axis=1).max()),
        "root_rot": float(1 - np.abs(np.einsum("ij,ij->i", motion.root_rot[1:], motion.root_rot[:-1])).min()),
        "dof_pos": float(np.abs(np.diff(motion.dof_pos, axis=0)).max()),
    }


def test_a_loop_goes_on_where_the_cycle_ended(robot: Robot) -> None:
    source = walking(robot)
    made = make_variant(source, robot, Augmentation(loop=4))
    seam = made.seam
    assert seam is not None
    # A cycle of this gait is a second; a frame more is within what counts as alike.
    assert abs((seam.end - seam.start + 25) % 50 - 25) <= 1
    assert seam.residual <= 0.25
    assert made.motion.num_frames == source.num_frames + 3 * (seam.end - seam.start)
    for key, largest in steps(source).items():
        assert steps(made.motion)[key] <= 1.1 * largest + 1e-9, key
    # Along the same circle as before: the root's path was chained, not repeated in place.
    centre = np.array([0.0, 1.5])
    radius = np.linalg.norm(made.motion.root_pos[:, :2] - centre, axis=1)
    np.testing.assert_allclose(radius, 1.5, atol=0.02)
    jumps = np.abs(np.diff(source.dof_pos, 2, axis=0)).max()
    assert np.abs(np.diff(made.motion.dof_pos, 2, axis=0)).max() <= 1.5 * jumps


def test_a_clip_without_two_like_frames_cannot_be_looped(robot: Robot) -> None:
    source = walking(robot)
    ramp = source.root_pos + np.linspace(0, 1, source.num_frames)[:, None] ** 2 * [2.0, 0.0, 0.4]
    joints = source.dof_pos * np.linspace(0.1, 1, source.num_frames)[:, None]
    ramped = Motion("ramp", 50.0, ramp, source.root_rot, joints, source.source_digest, "npz")
    with pytest.raises(MotionRefused, match=r"alike enough to loop.*the residual is \d"):
        augment(ramped, robot, Augmentation(loop=2))
    short = Motion("short", 50.0, ramp[:20], source.root_rot[:20], joints[:20], source.source_digest, "npz")
    with pytest.raises(MotionRefused, match="too short to loop"):
        augment(short, robot, Augmentation(loop=2))


@pytest.mark.parametrize("course", [np.linspace(0.0, 0.15, 2), np.array([0.0, -0.08, 0.05, 0.0])])
def test_a_levelled_clip_stands_on_level_ground_and_is_the_walk_again(robot: Robot, course: np.ndarray) -> None:
    walk = clip()
    rise = np.interp(np.linspace(0.0, 1.0, walk.num_frames), np.linspace(0.0, 1.0, len(course)), course)
    drifting = replace(walk, root_pos=walk.root_pos + rise[:, None] * [0, 0, 1])
    levelled = augment(drifting, robot, Augmentation(level=True))
    before, after = (score([motion], robot, Recipe.for_mode("rollout"))[0] for motion in (drifting, levelled))
    assert before.tier != 0
    assert before.quality_metrics["clip_ground_range_m"] > 0.9 * np.ptp(course)
    assert "--level" in next(found.message for found in before.diagnosis.suggestions if found.code == "level_clip")
    assert after.tier == 0, after.tier_reason
    assert after.quality_metrics["clip_ground_range_m"] < 0.02
    # Only the height has changed, and it is that of the walk but for a constant.
    assert np.array_equal(levelled.dof_pos, walk.dof_pos)
    assert np.array_equal(levelled.root_pos[:, :2], walk.root_pos[:, :2])
    assert np.ptp(levelled.root_pos[:, 2] - walk.root_pos[:, 2]) < 0.02
    assert np.abs(np.diff(levelled.root_pos[:, 2] - drifting.root_pos[:, 2])).max() * walk.fps < 0.15, "m/s: no step"


def test_a_clip_that_stands_on_nothing_cannot_be_levelled(robot: Robot) -> None:
    walk = clip()
    flying = replace(walk, root_pos=walk.root_pos + np.arange(walk.num_frames)[:, None] / walk.fps * [20.0, 0, 0])
    with pytest.raises(MotionRefused, match="no foot is on the ground"):
        augment(flying, robot, Augmentation(level=True))


@pytest.mark.parametrize(
    "text", ["level", "mirror", "warp=0.9", "heading=30", "loop=2", "level+mirror+warp=1.05+loop=2:0.3+heading=-45"]
)
def test_the_bytes_are_the_same_and_read_back_with_their_lineage(robot: Robot, text: str) -> None:
    source = clip()
    first, again = (make_variant(source, robot, Augmentation.parse(text)) for _ in range(2))
    assert first.data == again.data
    read = read_motion(first.data, name=first.motion.name)
    assert read.name == f"walk+{text}"
    assert read.source_digest == first.motion.source_digest
    assert read.lineage == Lineage(source.source_digest, source.source_digest, text)
    assert read.ancestor == source.ancestor == source.source_digest
    for key in ("root_pos", "root_rot", "dof_pos"):
        assert np.array_equal(getattr(read, key), getattr(first.motion, key))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ampref_parent", np.array("sha256:short")),
        ("ampref_ancestor", np.array("x" * 400)),
        ("ampref_ancestor", np.array("x" * 4000)),
        ("ampref_augmentation", np.array("<script>")),
        ("ampref_augmentation", np.array(["mirror"])),
        ("ampref_augmentation", np.array(b"mirror")),
        ("ampref_parent", np.zeros(3)),
        ("ampref_parent", None),
    ],
)
def test_a_lineage_that_is_none_is_refused(tmp_path: Path, key: str, value: np.ndarray | None) -> None:
    source = clip()
    members = {"fps": source.fps, "root_pos": source.root_pos, "root_rot": source.root_rot, "dof_pos": source.dof_pos}
    digest = np.array("sha256:" + "0" * 64)
    members |= {"ampref_parent": digest, "ampref_ancestor": digest, "ampref_augmentation": np.array("mirror")}
    np.savez(tmp_path / "good.npz", **members)
    assert read_motion(tmp_path / "good.npz", name="good").lineage is not None
    members |= {key: value} if value is not None else {}
    if value is None:
        del members[key]
    np.savez(tmp_path / "bad.npz", **members)
    with pytest.raises(MotionRefused):
        read_motion(tmp_path / "bad.npz", name="bad")


def test_an_original_has_no_lineage() -> None:
    source = clip()
    data = motion_bytes(source.fps, source.root_pos, source.root_rot, source.dof_pos)
    assert read_motion(data, name="x").lineage is None
