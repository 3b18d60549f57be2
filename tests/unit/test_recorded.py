"""Mode `recorded`: controls that came with the clip, simulated as they are, and whether they reproduce."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from amp_core.augment import Augmentation, make_variant
from amp_core.cli import main as cli
from amp_core.consistency import find_faults
from amp_core.errors import MotionRefused, RecipeRefused
from amp_core.evaluation import evaluate
from amp_core.formats import Limits, Motion, Recording, read_motion
from amp_core.motion import Conditioned, check_clip, check_controls, condition
from amp_core.motions import bundled_motions
from amp_core.randomization import compare
from amp_core.recipe import Harness, PhysicsScale, Planner, Recipe
from amp_core.robot import Robot
from amp_core.rollout import replay
from amp_core.scoring import Score, check_scorable, score
from amp_core.tiers import GATE_PROFILES, Tier, merit_order
from amp_core.verify import Subject, verify

ROOT = Path(__file__).parents[2]
RECORDED = Recipe.for_mode("recorded")
QUICK = {"samples": 16, "first_rounds": 1, "horizon_sec": 0.2, "attempts": 1}
FRAMES = 60
Fields = dict[str, Any]


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


@cache
def march(robot: Robot) -> Conditioned:
    return condition(read_motion(next(path for path in bundled_motions() if path.stem == "march_in_place")), robot)


def record(
    robot: Robot,
    frames: int = FRAMES,
    *,
    model: Any = None,
    per_frame: int = 1,
    steps: int = 10,
    before: bool = False,
    noise: float = 0.0,
) -> Fields:
    """What a plain MuJoCo loop records: the march's joint angles, at `per_frame` controls of `steps` physics steps a frame.

    Args:
      model: another than the robot's.
      before: the rows of the kinematics are the states before the controls.
      noise: rad, of each control.
    """
    clip, model = march(robot), robot.model if model is None else model
    rng, data = np.random.default_rng(0), mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = clip.initial_qpos, clip.initial_qvel
    fields: Fields = {"initial_qpos": data.qpos.copy(), "initial_qvel": data.qvel.copy()}
    ctrl, rows, states = np.zeros((frames, per_frame, model.nu)), [], []
    duration = per_frame * steps * model.opt.timestep
    for k in range(frames):
        rows.append(data.qpos.copy())
        for s in range(per_frame):
            now = (k + s / per_frame) * duration / robot.control_dt
            target = clip.dof_pos[min(int(now), len(clip.dof_pos) - 1)]
            data.ctrl[robot.ctrl_adr] = target + noise * rng.standard_normal(len(target))
            ctrl[k, s] = data.ctrl
            for _ in range(steps):
                mujoco.mj_step(model, data)
        states.append(data.qpos.copy())
    poses = np.array(rows if before else states)
    root = robot.root_qpos_adr
    return fields | {
        "fps": 1.0 / duration,
        "root_pos": poses[:, root : root + 3],
        "root_rot": robot.root_rotation(poses),
        "dof_pos": poses[:, robot.qpos_adr],
        "ctrl": ctrl[:, 0] if per_frame == 1 else ctrl,
        "recorded_qpos": np.array(states),
    }


def to_npz(fields: Fields) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **fields)
    return stream.getvalue()


def to_json(fields: Fields) -> bytes:
    return json.dumps({key: getattr(value, "tolist", lambda value=value: value)() for key, value in fields.items()}).encode()


def read(fields: Fields, name: str = "clip") -> Motion:
    return read_motion(to_npz(fields), name=name)


def score_recorded(motion: Motion, robot: Robot, recipe: Recipe = RECORDED) -> Score:
    (result,) = score([motion], robot, recipe)
    return result


def exported(result: Score, path: Path) -> dict[str, Any]:
    result.export(path)
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.mark.parametrize("encode", [to_npz, to_json, pickle.dumps], ids=["npz", "json", "pkl"])
@pytest.mark.parametrize("per_frame", [1, 5])
def test_the_controls_are_simulated_as_they_are(
    robot: Robot, encode: Callable[[Fields], bytes], per_frame: int, tmp_path: Path
) -> None:
    fields = record(robot, per_frame=per_frame, steps=10 // per_frame, noise=0.02)
    motion = read_motion(encode(fields), name="march")
    assert motion.recording is not None
    assert motion.recording.ctrl.shape == (FRAMES, per_frame, 8)
    result = score_recorded(motion, robot)
    np.testing.assert_array_equal(result.rollout.qpos, fields["recorded_qpos"])
    assert result.reproduction is not None
    assert result.reproduction.exact
    assert not result.reproduction.parts
    assert result.ingest["recording"]["compared_states"] == FRAMES
    assert np.abs(result.rollout.stab_force).max() == 0.0
    # The certificate: by `replay`, and by a loop that knows nothing but the export.
    arrays = exported(result, tmp_path / "march.npz")
    assert ("ctrl_substeps" in arrays) == (per_frame > 1)
    qpos, qvel = replay(robot, arrays, RECORDED)
    np.testing.assert_array_equal(qpos, arrays["qpos"])
    np.testing.assert_array_equal(qvel, arrays["qvel"])
    if per_frame > 1:
        np.testing.assert_array_equal(arrays["ctrl"], arrays["ctrl_substeps"][:, -1])
        np.testing.assert_array_equal(arrays["ctrl_substeps"][:, ::2], fields["ctrl"])
    else:
        np.testing.assert_array_equal(arrays["ctrl"], fields["ctrl"])
    assert find_faults(arrays, robot) == []


def test_a_batch_of_recordings_and_others_gives_each_the_bytes_that_it_has_alone(robot: Robot) -> None:
    motions = [read(record(robot, n, per_frame=p, steps=10 // p, noise=0.02), f"{n}") for n, p in ((40, 1), (60, 5), (50, 2))]
    together = score(motions, robot, RECORDED, nthread=2)
    for motion, result in zip(motions, together, strict=True):
        alone = score_recorded(motion, robot)
        assert alone.rollout.qpos.tobytes() == result.rollout.qpos.tobytes()
        assert alone.rollout.features.tobytes() == result.rollout.features.tobytes()


def test_the_rows_of_another_rate_are_those_of_the_recording(robot: Robot) -> None:
    """Controls at 100 Hz and at 25 Hz: the robot's rows are at 50 Hz, and so are the clip's frames at the same times."""
    fast = score_recorded(read(record(robot, 2 * FRAMES, steps=5)), robot)
    assert len(fast.rollout.qpos) == FRAMES
    assert fast.reproduction is not None
    assert (fast.reproduction.exact, fast.reproduction.steps_per_control) == (True, 5)
    assert fast.reproduction.compared_states == FRAMES
    assert np.abs(fast.rollout.reference_dof_pos - fast.rollout.dof_pos).max() < 1e-12
    slow = score_recorded(read(record(robot, FRAMES // 2, steps=20)), robot)
    assert len(slow.rollout.qpos) == FRAMES
    assert slow.reproduction is not None
    assert (slow.reproduction.exact, slow.reproduction.compared_states) == (True, FRAMES // 2)
    # Between two frames, and before the first, the clip's are interpolated.
    assert np.abs(slow.rollout.reference_dof_pos - slow.rollout.dof_pos)[1::2].max() < 1e-12
    assert np.abs(slow.rollout.reference_dof_pos - slow.rollout.dof_pos)[0].max() < 0.05


def test_controls_may_change_where_no_control_step_of_the_robot_ends(robot: Robot, tmp_path: Path) -> None:
    """At 125 Hz, which is no multiple of the robot's 50 Hz: every other of its rows ends within a control."""
    result = score_recorded(read(record(robot, 125, steps=4, noise=0.02)), robot)
    assert result.reproduction is not None
    assert (len(result.rollout.qpos), result.reproduction.compared_states, result.reproduction.exact) == (50, 25, True)
    arrays = exported(result, tmp_path / "x.npz")
    assert arrays["ctrl_substeps"].shape == (50, 10, 8)
    np.testing.assert_array_equal(replay(robot, arrays, RECORDED)[0], arrays["qpos"])


def test_frames_before_their_controls_are_told_by_their_content(robot: Robot) -> None:
    fields = record(robot, before=True)
    after = score_recorded(read(record(robot)), robot)
    before = score_recorded(read(fields), robot)
    for result, rows in ((after, "after"), (before, "before")):
        assert result.reproduction is not None
        assert (result.reproduction.rows, result.reproduction.exact) == (rows, True)
        assert result.ingest["recording"]["rows_reason"]
        assert np.abs(result.rollout.reference_dof_pos - result.rollout.dof_pos).max() < 1e-12
    # No frame shows what came of the last controls.
    assert (len(after.rollout.qpos), len(before.rollout.qpos)) == (FRAMES, FRAMES - 1)
    assert before.reproduction is not None
    assert before.reproduction.dropped_sec == pytest.approx(0.02)
    # Without states of the simulation the frames themselves are compared, at the same times.
    del fields["recorded_qpos"]
    alone = score_recorded(read(fields), robot)
    assert alone.reproduction is not None
    assert (alone.reproduction.against, alone.reproduction.exact) == ("clip", True)
    assert alone.reproduction.compared_states == FRAMES - 1


def test_a_robot_that_stands_still_leaves_the_order_of_the_rows_open(robot: Robot) -> None:
    fields = record(robot)
    still = {key: np.repeat(fields[key][:1], FRAMES, axis=0) for key in ("root_pos", "root_rot", "dof_pos")}
    nearly = still["dof_pos"].copy()
    nearly[:, 0] += 1e-5 * np.arange(FRAMES)
    start = fields["initial_qpos"].copy()
    start[robot.qpos_adr], start[:3] = still["dof_pos"][0], still["root_pos"][0]
    start[3:7] = still["root_rot"][0][[3, 0, 1, 2]]
    start[robot.qpos_adr[0]] -= 1e-5
    clip = condition(read(fields | still | {"dof_pos": nearly, "initial_qpos": start}), robot, mode="recorded")
    assert clip.recording is not None
    assert clip.recording.rows == "after"
    assert "hardly moves" in clip.recording.rows_reason


def changed_model(robot: Robot, *, gain: float = 1.0, timestep: float | None = None) -> Any:
    model = copy.copy(robot.model)
    model.actuator_gainprm[:, 0] *= gain
    model.actuator_biasprm[:, 1] *= gain
    model.opt.timestep = timestep or model.opt.timestep
    return model


def test_other_gains_part_and_are_told_with_figures(robot: Robot) -> None:
    fields = record(robot, 150, model=changed_model(robot, gain=0.3))
    result = score_recorded(read(fields), robot)
    found = result.reproduction
    assert found is not None
    assert found.parts
    assert not found.exact
    # The figures are those of a plain comparison.
    errors = np.abs(result.rollout.dof_pos - fields["recorded_qpos"][:, robot.qpos_adr])
    root = np.linalg.norm(result.rollout.root_pos - fields["recorded_qpos"][:, :3], axis=1)
    assert found.max_joint_rad == pytest.approx(errors.max())
    assert found.worst_joint == robot.joint_names[int(errors.max(axis=0).argmax())]
    assert found.max_root_m == pytest.approx(root.max())
    assert found.final_root_m == pytest.approx(root[-1])
    assert found.parts_at_frame is not None
    assert found.parts_at_sec == pytest.approx((found.parts_at_frame + 1) * 0.02)
    early = slice(0, found.parts_at_frame)
    assert errors[early].max(initial=0.0) <= 0.05
    assert root[early].max(initial=0.0) <= 0.01
    assert "parts from the states that were recorded" in result.ingest["notes"][0]
    assert "servo gains" in result.ingest["notes"][0]
    if result.tier != Tier.TIER_0:
        assert result.diagnosis is not None
        assert "recording_parts" in [finding.code for finding in result.diagnosis.findings]


def test_a_parting_recording_is_a_finding_that_names_its_causes(robot: Robot) -> None:
    fields = record(robot, 150, model=changed_model(robot, gain=0.2, timestep=0.001), steps=20)
    fields |= {"timestep": 0.001, "mujoco_version": "3.2.0"}
    result = score_recorded(read(fields), robot)
    assert result.reproduction is not None
    causes = " ".join(result.reproduction.causes)
    assert "time step of 0.001 s, and this model has 0.002 s" in causes
    assert "MuJoCo 3.2.0" in causes
    assert result.tier != Tier.TIER_0
    assert result.diagnosis is not None
    finding = next(finding for finding in result.diagnosis.findings if finding.code == "recording_parts")
    assert "does not reproduce" in finding.message
    assert all(cause in finding.message for cause in result.reproduction.causes)
    assert finding.value == result.reproduction.max_root_m
    assert "match_recording" in [suggestion.code for suggestion in result.diagnosis.suggestions]


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (lambda f: f.pop("initial_qvel"), "initial_qvel", "without initial_qvel"),
        (lambda f: f.pop("ctrl"), "ctrl", "without ctrl"),
        (lambda f: [f.pop("initial_qvel"), f.pop("initial_qpos")], "initial_qpos", "without initial_qpos and initial_qvel"),
        (lambda f: f.update(ctrl=f["ctrl"][:-1]), "ctrl", "(59, 8)"),
        (lambda f: f.update(ctrl=f["ctrl"][:, :7]), "ctrl", "7 columns"),
        (lambda f: f.update(ctrl=f["ctrl"].astype(str)), "ctrl", "type"),
        (lambda f: f.update(initial_qpos=f["initial_qpos"][7:]), "initial_qpos", "(8,)"),
        (lambda f: f.update(initial_qvel=f["initial_qvel"][:8]), "initial_qvel", "(8,)"),
        (lambda f: f.update(recorded_qpos=f["recorded_qpos"][:, 1:]), "recorded_qpos", "(60, 14)"),
        (lambda f: f["ctrl"].__setitem__((7, 3), np.nan), "ctrl", "column 3 is nan"),
        (lambda f: f["initial_qvel"].__setitem__(2, np.inf), "initial_qvel", "column 2 is inf"),
        (lambda f: f["initial_qpos"].__setitem__(slice(3, 7), [0.9, 0.0, 0.0, 0.0]), "initial_qpos", "norm 0.9"),
        (lambda f: f.update(actuator_names=["a", "b"]), "actuator_names", "names 2 actuators"),
        (lambda f: f.update(actuator_names=list("abcdefgh")), "actuator_names", "not the robot's"),
        (lambda f: f.update(fps=60.0), "fps", "8.333 physics steps"),
        (lambda f: f.update(timestep=-1.0), "timestep", "-1.0"),
    ],
)
def test_controls_that_cannot_be_meant_are_refused_where_they_are_used(
    robot: Robot, change: Callable[[Fields], object], key: str, words: str
) -> None:
    fields = record(robot)
    if key != "recorded_qpos":
        del fields["recorded_qpos"]
    change(fields)
    motion = read(fields, "walk")
    with pytest.raises(MotionRefused) as refusal:
        check_scorable(motion, robot, RECORDED)
    assert (refusal.value.file, refusal.value.key) == ("walk", key)
    assert words in refusal.value.what
    assert refusal.value.expected
    with pytest.raises(MotionRefused):
        score([motion], robot, RECORDED)
    check_scorable(motion, robot, Recipe.for_mode("auto"))
    # The kinematics are as good as ever, so that mode auto does without the controls.
    (plain,) = score([motion], robot, Recipe.for_mode("rollout"))
    assert any("the controls that the file carries cannot be used" in note for note in plain.ingest["notes"])
    assert check_clip(motion, robot).refusal is None


JUNK: tuple[Any, ...] = (
    None, True, "text", "x" * 100_000, [], [[]], [[[]]], {}, 5, [[1.0, "x"]], [[[1.0]], 5], [1e308] * 15, [[1.0] * 8] * FRAMES,
    [[[1.0] * 8] * 3] * (FRAMES - 1), [[[1.0] * 8] * 3, [[1.0] * 8]] * (FRAMES // 2), [None] * 15,
)  # fmt: skip


@pytest.mark.parametrize("key", ["ctrl", "initial_qpos", "initial_qvel", "recorded_qpos", "actuator_names", "timestep", "meta"])
@pytest.mark.parametrize("kind", ["json", "pkl", "npz"])
def test_whatever_stands_under_its_keys_refuses_no_other_mode(robot: Robot, kind: str, key: str) -> None:
    fields = record(robot)
    for value in JUNK:
        if kind == "npz":
            try:
                data = to_npz(fields | {key: value})  # Some become object arrays, which only pickle reads.
            except ValueError:  # numpy makes no array of it.
                continue
        else:
            changed = {
                name: getattr(item, "tolist", lambda item=item: item)() for name, item in (fields | {key: value}).items()
            }
            data = json.dumps(changed).encode() if kind == "json" else pickle.dumps(fields | {key: value})
        motion = read_motion(data, name="x")
        assert motion.recording is None or motion.recording.ctrl.shape[2] in (1, 8)
        with contextlib.suppress(MotionRefused):
            check_controls(motion, robot, "recorded")
        check_controls(motion, robot, "rollout")


def test_a_large_member_that_no_clip_needs_takes_nothing_from_the_others(robot: Robot) -> None:
    fields = record(robot) | {"meta": np.zeros(60_000_000, np.uint8)}
    limits = Limits(max_values=8_000_000)
    assert read_motion(to_npz(fields), name="x", limits=limits).recording is not None


def test_names_of_actuators_order_the_joints_only_where_there_are_no_controls(robot: Robot) -> None:
    fields = record(robot)
    names = list(reversed(robot.joint_names))
    with_controls = read(fields | {"actuator_names": names})
    assert with_controls.name_lists == {}
    kinematics = {key: fields[key] for key in ("fps", "root_pos", "root_rot", "dof_pos")}
    assert read(kinematics | {"actuator_names": names}).name_lists == {"actuator_names": tuple(names)}


def test_a_quaternion_in_the_order_of_clips_is_named(robot: Robot) -> None:
    fields = record(robot)
    fields["initial_qpos"][3:7] = fields["initial_qpos"][[4, 5, 6, 3]]
    with pytest.raises(MotionRefused, match="as x, y, z, w") as refusal:
        score([read(fields)], robot, RECORDED)
    assert refusal.value.expected == "MuJoCo's order w, x, y, z"
    assert "[3, 0, 1, 2]" in str(refusal.value.remedy)


def test_a_clip_without_controls_is_refused_by_the_mode_alone(robot: Robot) -> None:
    motion = read({key: value for key, value in record(robot).items() if key in ("fps", "root_pos", "root_rot", "dof_pos")})
    with pytest.raises(MotionRefused, match="carries no controls") as refusal:
        check_scorable(motion, robot, RECORDED)
    assert refusal.value.key == "ctrl"
    check_scorable(motion, robot, Recipe.for_mode("auto"))


def test_a_motion_of_python_has_its_controls_checked(robot: Robot) -> None:
    fields = record(robot)
    poses = {key: fields[key] for key in ("fps", "root_pos", "root_rot", "dof_pos")}
    recording = Recording(fields["ctrl"], fields["initial_qpos"], fields["initial_qvel"])
    motion = Motion("x", **poses, source_digest="sha256:" + "1" * 64, source_format="npz", recording=recording)
    np.testing.assert_array_equal(score_recorded(motion, robot).rollout.qpos, fields["recorded_qpos"])
    with pytest.raises(MotionRefused, match="frames of dof_pos") as refusal:
        dataclasses.replace(motion, recording=recording.cut(10))
    assert refusal.value.key == "ctrl"


def test_columns_are_ordered_by_the_names_of_actuators(robot: Robot) -> None:
    fields = record(robot)
    order = np.random.default_rng(1).permutation(8)
    shuffled = fields | {"ctrl": fields["ctrl"][:, order], "actuator_names": [robot.joint_names[i] for i in order]}
    for encode in (to_npz, to_json):
        result = score_recorded(read_motion(encode(shuffled), name="x"), robot)
        np.testing.assert_array_equal(result.rollout.ctrl, fields["ctrl"])


def test_controls_beyond_the_range_are_clipped_as_mujoco_does_and_counted(robot: Robot) -> None:
    fields = record(robot)
    fields["ctrl"][10:12, 0] = 9.0
    result = score_recorded(read(fields), robot)
    assert result.reproduction is not None
    assert result.reproduction.clipped_controls == pytest.approx(2 / (FRAMES * 8))
    assert result.rollout.ctrl[10, 0] == robot.ctrl_range[1][0]


def test_the_start_is_the_recordings_wherever_the_clip_is_moved(robot: Robot) -> None:
    """A clip that floats is put on the floor; the recording stays in its own world."""
    fields = record(robot)
    lifted = fields["root_pos"] + np.array([0.0, 0.0, 0.03])
    result = score_recorded(read(fields | {"root_pos": lifted}), robot)
    assert result.ingest["ground_shift_m"] < -0.02
    np.testing.assert_array_equal(result.rollout.initial_qpos, fields["initial_qpos"])
    np.testing.assert_array_equal(result.rollout.initial_qvel, fields["initial_qvel"])
    np.testing.assert_array_equal(result.rollout.qpos, fields["recorded_qpos"])


def test_leading_frames_that_stand_apart_keep_their_controls(robot: Robot) -> None:
    fields = record(robot)
    fields["dof_pos"] = fields["dof_pos"].copy()
    fields["dof_pos"][0] += 0.4
    motion = read(fields)
    assert condition(motion, robot).report.first_frame.trimmed
    result = score_recorded(motion, robot)
    assert len(result.rollout.qpos) == FRAMES
    np.testing.assert_array_equal(result.rollout.qpos, fields["recorded_qpos"])
    assert any("kept, since they have controls" in note for note in result.ingest["notes"])


def test_auto_tries_the_recording_first(robot: Robot) -> None:
    clip = march(robot)
    poses = {"root_pos": clip.root_pos, "root_rot": clip.root_rot, "dof_pos": clip.dof_pos}
    fields = record(robot, 300) | poses
    (good,) = score([read(fields)], robot, Recipe.for_mode("auto"))
    assert good.auto is not None
    assert [tried.rollout.recipe.mode for tried in good.auto.tried] == ["recorded"]
    assert (good.tier, good.auto.triage.worth_planning) == (Tier.TIER_0, False)
    # The controls of a robot that falls: the clip is scored as one without controls, too.
    falling = fields | {"ctrl": np.zeros_like(fields["ctrl"])}
    quick = Recipe.from_dict({"mode": "auto", "planner": QUICK})
    (bad,) = score([read(falling)], robot, quick)
    assert bad.auto is not None
    assert [tried.rollout.recipe.mode for tried in bad.auto.tried][:2] == ["recorded", "rollout"]
    assert bad.auto.tried[0].tier != Tier.TIER_0
    plain = {key: value for key, value in fields.items() if key in ("fps", "root_pos", "root_rot", "dof_pos")}
    (alone,) = score([read(plain)], robot, Recipe.for_mode("rollout"))
    np.testing.assert_array_equal(bad.auto.tried[1].rollout.qpos, alone.rollout.qpos)
    # Controls that cannot be meant are not tried.
    (unusable,) = score([read(plain | {"ctrl": fields["ctrl"]})], robot, quick)
    assert unusable.auto is not None
    assert unusable.auto.tried[0].rollout.recipe.mode == "rollout"
    assert any("cannot be used: initial_qpos" in note for note in unusable.ingest["notes"])


def test_other_modes_ignore_the_controls_and_say_so(robot: Robot) -> None:
    fields = record(robot)
    (result,) = score([read(fields)], robot, Recipe.for_mode("rollout"))
    assert result.reproduction is None
    assert "recording" not in result.ingest
    assert any("carries the controls of 60 frames" in note for note in result.ingest["notes"])


def test_an_export_is_a_recording(robot: Robot, tmp_path: Path) -> None:
    fields = record(robot, per_frame=5, steps=2, noise=0.02)
    first = score_recorded(read(fields), robot)
    arrays = exported(first, tmp_path / "one.npz")
    motion = read_motion(tmp_path / "one.npz")
    assert (motion.fps, motion.num_frames) == (50.0, FRAMES)
    again = score_recorded(motion, robot)
    for name in ("qpos", "qvel", "features", "ctrl", "ctrl_substeps", "channel_loads"):
        np.testing.assert_array_equal(again.rollout.arrays()[name], arrays[name], err_msg=name)
    assert again.reproduction is not None
    assert again.reproduction.exact


def test_a_tracked_export_submitted_as_a_recording_is_the_same_motion(robot: Robot, tmp_path: Path) -> None:
    walk = read_motion(next(path for path in bundled_motions() if path.stem == "march_in_place"))
    short = {key: np.asarray(getattr(walk, key))[:30] for key in ("root_pos", "root_rot", "dof_pos")}
    quick = Recipe.from_dict({"mode": "tracked", "planner": QUICK})
    (tracked,) = score([dataclasses.replace(walk, **short)], robot, quick)
    tracked.export(tmp_path / "tracked.npz")
    result = score_recorded(read_motion(tmp_path / "tracked.npz"), robot)
    np.testing.assert_array_equal(result.rollout.qpos, tracked.rollout.qpos)
    np.testing.assert_array_equal(result.rollout.qvel, tracked.rollout.qvel)


def test_an_export_of_a_mode_with_a_harness_says_why_it_parts(robot: Robot, tmp_path: Path) -> None:
    (rollout,) = score([read_motion(next(p for p in bundled_motions() if p.stem == "walk"))], robot, Recipe.for_mode("rollout"))
    rollout.export(tmp_path / "walk.npz")
    result = score_recorded(read_motion(tmp_path / "walk.npz"), robot)
    assert result.reproduction is not None
    assert any("acted there, and none acts here" in cause for cause in result.reproduction.causes)


def test_the_tests_before_a_lock_pass_on_a_recording(robot: Robot, tmp_path: Path) -> None:
    fields = record(robot, per_frame=5, steps=2, noise=0.01)
    motion = read(fields)
    result = score_recorded(motion, robot)
    report = verify(Subject.of_scores([result], [motion], robot), only=("1B", "1C", "2", "3"))
    assert {test.id: test.status for test in report.tests if test.status == "FAIL"} == {}
    assert {test.id for test in report.tests if test.status in ("PASS", "WARN")} >= {"1B", "1C", "3"}


def test_evaluate_proves_an_export_of_a_recording(robot: Robot, tmp_path: Path) -> None:
    motion = read(record(robot, per_frame=5, steps=2, noise=0.01), "march")
    score_recorded(motion, robot).export(tmp_path / "march.npz")
    result = evaluate(tmp_path / "march.npz", motion=motion)
    assert {check.name for check in result.checks if not check.passed} == set()
    assert {"replay", "generation"} <= {check.name for check in result.checks}
    assert result.is_proven


def test_other_physics_are_scored_and_replayed(robot: Robot, tmp_path: Path) -> None:
    motion = read(record(robot))
    scale = PhysicsScale(friction=0.6, mass=1.1)
    result = score_recorded(motion, robot, Recipe.for_mode("recorded", physics=scale))
    arrays = exported(result, tmp_path / "x.npz")
    np.testing.assert_array_equal(replay(robot, arrays, result.rollout.recipe)[0], arrays["qpos"])
    assert result.reproduction is not None
    assert not result.reproduction.exact
    found = compare([motion], robot, RECORDED, [scale], replay=True)
    assert [outcome.tier for outcome in found.clips[0].replayed] == [outcome.tier for outcome in found.clips[0].outcomes]


@pytest.mark.parametrize("name", GATE_PROFILES)
def test_it_is_judged_by_the_gates_of_plans(name: str) -> None:
    profile = GATE_PROFILES[name]
    assert profile.for_mode("recorded") == profile.for_mode("tracked")
    assert merit_order(0, "recorded", 0) == merit_order(0, "tracked", 0)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"harness": Harness.assist()}, "harness.force_cap"),
        ({"planner": Planner()}, "planner"),
        ({"initial_velocity": "zero"}, "initial_velocity"),
    ],
)
def test_a_recipe_has_neither_harness_nor_plan(change: dict[str, Any], key: str) -> None:
    assert Recipe.from_dict(RECORDED.to_dict()) == RECORDED
    assert RECORDED.harness.is_off
    with pytest.raises(RecipeRefused) as refusal:
        dataclasses.replace(RECORDED, **change)
    assert refusal.value.key == key


def test_variants_keep_the_controls_that_make_them(robot: Robot) -> None:
    fields = record(robot)
    motion = read(fields)

    def variant(text: str) -> Motion:
        made = make_variant(motion, robot, Augmentation.parse(text))
        back = read_motion(made.data, name=made.motion.name)
        assert back.has_controls == (made.motion.recording is not None)
        return back

    twice = make_variant(variant("mirror"), robot, Augmentation.parse("mirror")).motion
    assert twice.recording is not None
    np.testing.assert_allclose(twice.recording.ctrl[:, 0], fields["ctrl"], atol=1e-12)
    np.testing.assert_allclose(twice.recording.initial_qpos, fields["initial_qpos"], atol=1e-12)
    np.testing.assert_allclose(twice.recording.initial_qvel, fields["initial_qvel"], atol=1e-12)
    turned = score_recorded(variant("heading=90"), robot)
    assert turned.reproduction is not None
    assert turned.reproduction.against == "recorded_qpos"
    assert not turned.reproduction.parts
    first = variant("cut=0:30")
    assert first.recording is not None
    np.testing.assert_array_equal(score_recorded(first, robot).rollout.qpos, fields["recorded_qpos"][:30])
    for text in ("cut=10:40", "warp=0.9", "level"):
        assert not variant(text).has_controls


def test_a_mirrored_recording_moves_as_the_mirror_image(robot: Robot) -> None:
    """In the air, where no contact tells a rounding error: as far as the robot's masses are symmetric."""
    model, data = robot.model, mujoco.MjData(robot.model)
    rng = np.random.default_rng(0)
    pose = rng.uniform(-0.3, 0.3, len(robot.joint_names)).clip(*robot.joint_range.T)
    yaw = np.array([[0.0, 0.0, np.sin(0.2), np.cos(0.2)]])
    data.qpos[:] = robot.poses(np.array([[0.1, 0.2, 0.6]]), yaw, pose[None])[0]
    data.qvel[:] = 0.2 * rng.standard_normal(model.nv)
    fields: Fields = {"initial_qpos": data.qpos.copy(), "initial_qvel": data.qvel.copy()}
    states, ctrl = [], []
    for k in range(8):
        data.ctrl[robot.ctrl_adr] = pose + 0.1 * np.sin(k + np.arange(len(pose)))
        ctrl.append(data.ctrl.copy())
        mujoco.mj_step(model, data, nstep=robot.substeps)
        states.append(data.qpos.copy())
    qpos = np.array(states)
    poses = {"root_pos": qpos[:, :3], "root_rot": robot.root_rotation(qpos), "dof_pos": qpos[:, robot.qpos_adr]}
    fields |= {"fps": 50.0, "ctrl": np.array(ctrl), "recorded_qpos": qpos, **poses}
    mirrored = make_variant(read(fields), robot, Augmentation.parse("mirror")).motion
    found = score_recorded(mirrored, robot).reproduction
    assert found is not None
    assert found.max_root_m is not None
    assert found.max_joint_rad is not None
    assert found.max_root_m < 5e-3
    assert found.max_joint_rad < 1e-2


def test_the_command_scores_a_recording_and_says_whether_it_reproduces(
    robot: Robot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = record(robot)
    good, bad, out = tmp_path / "good.npz", tmp_path / "bad.npz", tmp_path / "out.json"
    good.write_bytes(to_npz(fields))
    bad.write_bytes(to_npz({name: value for name, value in fields.items() if name != "ctrl"}))
    assert cli.run(["score", str(good), str(bad), "--mode", "recorded", "--json", str(out)]) == 1
    (document,) = json.loads(out.read_text())
    assert (document["mode"], document["ingest"]["recording"]["exact"]) == ("recorded", True)
    output = capsys.readouterr()
    assert "good: Recording: its 60 states are the states that were recorded, bit for bit." in output.out
    assert "bad.npz" in output.err
    assert "without ctrl" in output.err
    assert cli.run(["check", str(good), str(bad)]) == 0
    output = capsys.readouterr()
    assert "notes recording" in output.out
    assert "warns recording_unusable" in output.out


def test_the_example_records_what_is_tier_0(robot: Robot, tmp_path: Path) -> None:
    script, out = ROOT / "examples" / "record_from_mujoco.py", tmp_path / "march.npz"
    subprocess.run([sys.executable, str(script), str(out)], check=True, capture_output=True, timeout=120)
    result = score_recorded(read_motion(out), robot)
    assert result.tier == Tier.TIER_0
    assert result.reproduction is not None
    assert (result.reproduction.exact, result.reproduction.against) == (True, "recorded_qpos")
