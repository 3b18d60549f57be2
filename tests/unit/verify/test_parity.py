"""Tests 1A to 5: what is sound passes them all, and every fault that is put in fails just those that are about it, by name."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from amp_core import features, policy
from amp_core.dataset import ColumnStats
from amp_core.formats import WIDE_LIMITS
from amp_core.motion import condition
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.rollout import generate
from amp_core.scoring import score
from amp_core.tracking import plan
from amp_core.verify import FAIL, PASS, SKIP, WARN, Artifacts, Clip, PolicySide, Subject, TestReport, faults, states
from amp_core.verify.context import sample
from amp_core.verify.report import Findings, Peak, check

Run = Callable[..., dict[str, TestReport]]
Changed = Callable[..., Subject]
Arrays = dict[str, Any]


def failing(found: dict[str, TestReport]) -> set[str]:
    return {test for test, report in found.items() if report.status == FAIL}


def reasons(found: dict[str, TestReport]) -> str:
    return " | ".join(f"{report.id}: {report.reason}" for report in found.values() if report.status == FAIL)


# --- What is sound --------------------------------------------------------------------------------------------------------


def test_a_sound_subject_passes_everything(sound: Subject, run: Run) -> None:
    found = run(sound)
    assert {test: report.status for test, report in found.items()} == dict.fromkeys(found, PASS), reasons(found)
    assert all(report.reason == "" and report.measured and report.rows for report in found.values())
    rows = {row.name: row for row in found["1A"].rows if row.where.startswith("observe_host")}
    assert {rows[f"mae.{block.name}"].value for block in sound.robot.layout.blocks} == {0.0}
    assert [entry["name"] for entry in found["1A"].figures["dimensions"]] == list(sound.robot.layout.names)
    rows = {row.name: row for row in found["1B"].rows}
    assert rows["replay.qpos"].value == rows["replay.qvel"].value == 0.0
    assert all(rows[f"finite_differences.{block}"].value > 0.005 for block in ("joint_vel", "root_lin_vel", "root_ang_vel"))
    assert "planned again" in found["1C"].measured


def test_reports_are_json(sound: Subject, run: Run) -> None:
    import json

    json.dumps([report.to_dict() for report in run(sound).values()], allow_nan=False)


def test_outcomes_do_not_depend_on_threads(sound: Subject, run: Run) -> None:
    from amp_core.verify import verify

    one, two = (verify(sound, only=("1C", "6"), nthread=nthread) for nthread in (1, 2))
    for first, second in zip(one.tests, two.tests, strict=True):
        assert first.rows == second.rows
        assert first.figures == second.figures


def test_without_jax_the_numpy_path_alone_is_tested_and_says_so(sound: Subject, run: Run) -> None:
    def missing(robot: Robot) -> PolicySide:
        raise ImportError("no JAX here")

    found = run(sound, policy=missing)
    assert found["1A"].status == SKIP
    assert "ampref[train]" in found["1A"].reason
    assert all(found[test].status == PASS for test in ("1B", "1C", "2", "3", "4", "5", "7")), reasons(found)
    assert "ampref[train]" in found["2"].measured
    assert all("ampref[train]" in found[test].reason for test in ("3", "4", "5"))


def test_without_sources_the_replay_still_counts_and_the_generator_is_open(sound: Subject, run: Run, changed: Changed) -> None:
    found = run(changed(sound, lambda arrays: None, sources=False), "1C", "3")
    assert (found["1C"].status, found["3"].status) == (SKIP, PASS)
    assert "the motions of 4 of 4 clips are not at hand (walk, side_step, walk_backward, tracked_step)" in found["1C"].reason
    assert "--motions" in found["1C"].reason
    assert {row.status for row in found["1C"].rows} == {PASS, SKIP}
    assert [row.name for row in found["3"].rows if row.status == SKIP] == ["conditioning"]


def forge_reference(arrays: Arrays) -> None:
    """The robot's own poses in the place of the clip's, so that every distance to the clip is 0."""
    for name in ("root_pos", "root_rot", "dof_pos"):
        arrays[f"reference_{name}"] = arrays[name].copy()


def test_one_missing_source_leaves_the_generator_open(sound: Subject, run: Run, changed: Changed) -> None:
    forged = changed(sound, forge_reference, "walk", sources=False)
    clips = [replace(clip, metrics=None) for clip in forged.clips]
    found = run(replace(forged, clips=tuple(clips)), "1C")["1C"]
    assert found.status == SKIP
    assert "the motions of 1 of 4 clips are not at hand (walk): their controls were replayed" in found.reason
    assert "3 of 4 clips" in found.measured
    # The others were generated, and none differs.
    assert [(row.value, row.status) for row in found.rows if row.name == "generated.differing"] == [(0, PASS)]


def test_a_forged_reference_is_found_where_its_motion_is_at_hand(sound: Subject, run: Run, changed: Changed) -> None:
    found = run(changed(sound, forge_reference, "walk"), "1C")["1C"]
    assert found.status == FAIL
    assert "clip walk: reference_root_pos, reference_root_rot, reference_dof_pos differ from the recorded bytes" in found.reason


def test_few_frames_are_generated_as_well_as_replayed(sound: Subject, run: Run, changed: Changed) -> None:
    total = sum(clip.frames for clip in sound.clips)
    found = run(sound, "1C", frames=20)["1C"]
    assert found.status == PASS
    assert found.measured.startswith(f"1 of 4 clips, evenly chosen (20 of {total} frames) generated again")
    assert f"1 of 4 clips, evenly chosen (20 of {total} frames) replayed" in found.measured
    found = run(changed(sound, forge_reference, "walk"), "1C", frames=20)["1C"]
    assert found.status == FAIL
    assert [row.value for row in found.rows if row.name == "generated.differing"] == [1]


def test_a_planned_clip_is_generated_as_far_as_its_plan_is_recorded(sound: Subject, run: Run, changed: Changed) -> None:
    """As of a simulation that failed midway."""

    def cut(arrays: Arrays) -> None:
        for key, array in arrays.items():
            if array.ndim and not key.startswith("initial_"):
                arrays[key] = array[:20]

    tracked = replace(changed(sound, cut, "tracked_step").clips[-1], metrics=None)
    found = run(replace(sound, clips=(tracked,)), "1C")["1C"]
    assert found.status == PASS, found.reason
    assert "all 1 clips (20 frames) generated again" in found.measured
    forged = changed(replace(sound, clips=(tracked,)), forge_reference)
    assert run(forged, "1C")["1C"].status == FAIL


def test_a_clip_that_a_raised_limit_let_in_is_generated_again(robot: Robot, sound: Subject, run: Run) -> None:
    motion = sound.clips[0].motion
    assert motion is not None
    walk = motion()
    rows = np.tile(np.r_[: walk.num_frames, walk.num_frames - 2 : 0 : -1], 100)[:6300]
    poses = {key: np.asarray(getattr(walk, key))[rows] for key in ("root_pos", "root_rot", "dof_pos")}
    long = replace(walk, name="long", **poses)
    assert long.duration_sec > 120.0
    (rollout,) = generate(robot, [condition(long, robot, WIDE_LIMITS)], Recipe.for_mode("rollout"), frames=[60])
    clip = Clip("long", 0, rollout.recipe, rollout.arrays, motion=lambda: long)
    found = run(Subject(robot, (clip,)), "1C", frames=40)["1C"]
    assert found.status == PASS, found.reason


def test_an_assisted_clip_is_generated_again_bit_for_bit(
    robot: Robot, tracked_recipe: Recipe, run: Run, sound: Subject
) -> None:
    assert tracked_recipe.planner is not None
    usual = Recipe.for_mode("assisted")
    recipe = replace(usual, planner=replace(tracked_recipe.planner, branches=1))
    motion = sound.clips[-1].motion
    assert motion is not None
    (assisted,) = score([motion()], robot, recipe)
    assert np.abs(assisted.rollout.stab_force).max() > 0.0
    subject = Subject.of_scores([assisted], [motion()], robot)
    found = run(subject, "1C")["1C"]
    assert found.status == PASS, found.reason
    assert "the beginnings of 1 of 1 tracked clips" in found.measured


@pytest.mark.parametrize("sources", [True, False])
def test_a_quality_metric_is_compared_to_the_last_bit(sound: Subject, run: Run, changed: Changed, sources: bool) -> None:
    subject = changed(sound, lambda arrays: None, sources=sources)
    clip = subject.clips[0]
    assert clip.metrics is not None
    slip = clip.metrics["mean_sum_fn_over_mg"]
    assert slip is not None
    falsified = replace(clip, metrics={**clip.metrics, "mean_sum_fn_over_mg": np.nextafter(slip, 2.0)})
    found = run(replace(subject, clips=(falsified, *subject.clips[1:])), "1C")["1C"]
    assert found.status == FAIL
    assert f"clip {clip.name}: the recorded quality metrics are not what its arrays give" in found.reason
    assert [row.value for row in found.rows if row.name == "metrics.differing"] == [1]


def test_a_teacher_forced_clip_is_replayed_with_its_overwrites(robot: Robot, sound: Subject, run: Run) -> None:
    motions = [clip.motion() for clip in sound.clips[:2] if clip.motion is not None]
    scores = score(motions, robot, Recipe.for_mode("teacher_forced"))
    found = run(Subject.of_scores(scores, motions, robot), "1A", "1B", "1C", "2", "3", "4", "5")
    # Feet that were put somewhere by force touch where no kinematics would have them.
    assert failing(found) == {"5"}, reasons(found)
    # Without the overwrites the robot moves otherwise, which is what the mode is.
    assert found["1C"].status == WARN
    assert "teacher_forced" in found["1C"].reason


def test_a_domain_randomization_bucket_is_replayed_in_its_own_physics(robot: Robot, sound: Subject, run: Run) -> None:
    from amp_core.recipe import PhysicsScale

    motions = [clip.motion() for clip in sound.clips[:2] if clip.motion is not None]
    scores = score(motions, robot, Recipe.for_mode("rollout", physics=PhysicsScale(friction=0.7, mass=1.1)))
    found = run(Subject.of_scores(scores, motions, robot), "1A", "1B", "1C", "2", "3")
    assert failing(found) == set(), reasons(found)


# --- Faults of the policy's side ------------------------------------------------------------------------------------------


def _xyzw(config: Any, qpos: Any) -> Any:
    return qpos[..., config.root_qpos_adr + 3 : config.root_qpos_adr + 7][..., [1, 2, 3, 0]]


def body_as_world(config: Any, qpos: Any, qvel: Any, prev_action: Any = None) -> Any:
    obs = policy.observe_host(config, qpos, qvel, prev_action)
    spin = qvel[..., config.root_qvel_adr + 3 : config.root_qvel_adr + 6]
    obs[..., config.obs.root_ang_vel] = features.world_to_heading(_xyzw(config, qpos), spin)
    return obs


def other_quaternion_order(config: Any, qpos: Any, qvel: Any, prev_action: Any = None) -> Any:
    mixed = np.array(qpos)
    mixed[..., config.root_qpos_adr + 3 : config.root_qpos_adr + 7] = _xyzw(config, qpos)
    return policy.observe_host(config, mixed, qvel, prev_action)


def half_the_headings(config: Any, qpos: Any, qvel: Any, prev_action: Any = None) -> Any:
    """The yaw by arctan(y/x), which takes a robot that faces backwards for one that faces forwards."""
    obs = policy.observe_host(config, qpos, qvel, prev_action)
    backwards = features.heading_direction(_xyzw(config, qpos))[..., 0] < 0.0
    for block in (config.obs.root_ang_vel, config.obs.root_lin_vel):
        horizontal = slice(block.start, block.start + 2)
        obs[..., horizontal] = np.where(backwards[..., None], -obs[..., horizontal], obs[..., horizontal])
    return obs


def positive_w(config: Any, qpos: Any, qvel: Any, prev_action: Any = None) -> Any:
    """In float32 and JAX: a rotation vector from a lone w, which knows one of the two signs."""
    obs = policy.observe(config, qpos, qvel, prev_action)
    sign = jnp.sign(qpos[..., config.root_qpos_adr + 3])
    return obs.at[..., config.obs.root_ang_vel].multiply(sign[..., None])


def joints_permuted(obs: Any, config: Any, *args: Any, **more: Any) -> Any:
    found = policy.extract_amp_features(obs, config, *args, **more)
    n = len(config.joint_names)
    order = np.arange(found.shape[-1])
    order[[0, n // 2]] = order[[n // 2, 0]]
    return found[..., order]


def degrees(obs: Any, config: Any, *args: Any, **more: Any) -> Any:
    found = policy.extract_amp_features(obs, config, *args, **more)
    n = len(config.joint_names)
    return found.at[..., :n].multiply(180.0 / np.pi)


def differences_of_joints(obs: Any, config: Any, *args: Any, **more: Any) -> Any:
    return policy.extract_amp_features(obs, config, *args, **more | {"use_obs_joint_vel": False})


def first_height_for_all(obs: Any, config: Any, root_height: Any, *args: Any, **more: Any) -> Any:
    mixed = jnp.full_like(root_height, root_height[0]) if root_height.ndim else root_height
    return policy.extract_amp_features(obs, config, mixed, *args, **more)


def toes_swapped(obs: Any, config: Any, root_height: Any) -> Any:
    return policy.estimate_contacts(obs, config, root_height)[..., np.array([2, 1, 0, 3])]


POLICY_FAULTS = [
    ({"observe_host": body_as_world}, {"1A", "2"}, faults.BODY_AS_WORLD),
    # Which way is up is then wrong, too, and with it where the feet are.
    ({"observe_host": other_quaternion_order}, {"1A", "2", "5"}, faults.QUATERNION_BACK),
    ({"observe_host": half_the_headings}, {"2"}, "depend on the heading"),
    ({"observe": positive_w}, {"3"}, "for −q than for q"),
    ({"extract": joints_permuted}, {"1A"}, "left_hip_pitch and right_hip_pitch look swapped"),
    ({"extract": degrees}, {"1A"}, f"joint_pos: {faults.DEGREES}"),
    ({"extract": differences_of_joints}, {"1A"}, f"joint_vel: {faults.DIFFERENCES}"),
    ({"extract": first_height_for_all}, {"1A", "4"}, "rows are mixed up"),
    ({"estimate_contacts": toes_swapped}, {"5"}, "left_toe and right_toe look swapped"),
]


@pytest.mark.parametrize(
    ("fault", "expected", "named"), POLICY_FAULTS, ids=[next(iter(f[0].values())).__name__ for f in POLICY_FAULTS]
)
def test_a_fault_of_the_policy_fails_what_is_about_it(
    sound: Subject, run: Run, fault: dict[str, Any], expected: set[str], named: str
) -> None:
    found = run(sound, policy=lambda robot: replace(PolicySide.of(robot), **fault))
    assert failing(found) == expected, reasons(found)
    assert named in reasons(found)
    assert "reference features" not in found["1A"].reason


# --- Faults of the recorded data ------------------------------------------------------------------------------------------


def _assembled(robot: Robot, arrays: Arrays, qvel: Any) -> Any:
    return states.compute_features(robot, arrays["qpos"], qvel, arrays["foot_contacts"])


def _start(arrays: Arrays) -> Any:
    return np.concatenate([arrays["initial_qpos"][None], arrays["qpos"][:-1]])


def _late(array: Any) -> Any:
    return np.concatenate([array[:1], array[:-1]])


def features_are_differences(robot: Robot, arrays: Arrays) -> None:
    arrays["features"] = _assembled(robot, arrays, states.finite_differences(robot, _start(arrays), arrays["qpos"]))


def qvel_is_differences(robot: Robot, arrays: Arrays) -> None:
    arrays["qvel"] = states.finite_differences(robot, _start(arrays), arrays["qpos"])
    arrays["features"] = _assembled(robot, arrays, arrays["qvel"])


def features_lag(robot: Robot, arrays: Arrays) -> None:
    arrays["features"] = _late(arrays["features"])


def qvel_lags(robot: Robot, arrays: Arrays) -> None:
    arrays["qvel"] = _late(arrays["qvel"])
    arrays["features"] = _assembled(robot, arrays, arrays["qvel"])


def features_read_body_as_world(robot: Robot, arrays: Arrays) -> None:
    here = robot.layout.block("root_ang_vel").slice
    xyzw = arrays["qpos"][:, robot.root_qpos_adr + 3 : robot.root_qpos_adr + 7][:, [1, 2, 3, 0]]
    arrays["features"][:, here] = features.world_to_heading(xyzw, arrays["qvel"][:, 3:6])


def features_in_degrees(robot: Robot, arrays: Arrays) -> None:
    here = robot.layout.block("joint_pos").slice
    arrays["features"][:, here] = np.degrees(arrays["features"][:, here])


def knees_swapped(robot: Robot, arrays: Arrays) -> None:
    left, right = (robot.layout.names.index(f"joint_vel.{side}_knee_pitch") for side in ("left", "right"))
    arrays["features"][:, [left, right]] = arrays["features"][:, [right, left]]


def contacts_swapped(robot: Robot, arrays: Arrays) -> None:
    arrays["foot_contacts"] = arrays["foot_contacts"][:, [2, 1, 0, 3]]
    arrays["features"] = _assembled(robot, arrays, arrays["qvel"])


def contacts_swapped_in_features(robot: Robot, arrays: Arrays) -> None:
    here = np.arange(*robot.layout.block("foot_contacts").slice.indices(robot.layout.dim))
    arrays["features"][:, here] = arrays["features"][:, here[[0, 3, 2, 1]]]


def another_control(robot: Robot, arrays: Arrays) -> None:
    arrays["ctrl"][20, 1] = np.nextafter(arrays["ctrl"][20, 1], 9.0)


def a_hidden_push(robot: Robot, arrays: Arrays) -> None:
    arrays["stab_force"][:] = 0.0


def not_finite(robot: Robot, arrays: Arrays) -> None:
    arrays["features"][7, 3] = np.nan


DATA_FAULTS = [
    (features_are_differences, {"1A", "1B", "1C"}, faults.DIFFERENCES),
    (qvel_is_differences, {"1B", "1C"}, "the recorded qvel is the finite differences of qpos"),
    # The contacts' block is late with the others.
    (features_lag, {"1A", "1B", "1C", "5"}, faults.LAG),
    (qvel_lags, {"1B", "1C"}, "the recorded qvel has a lag of one frame"),
    (features_read_body_as_world, {"1A", "1B", "1C"}, faults.BODY_AS_WORLD),
    (features_in_degrees, {"1A", "1B", "1C", "6"}, faults.DEGREES),
    (knees_swapped, {"1A", "1B", "1C"}, "left_knee_pitch and right_knee_pitch look swapped"),
    (contacts_swapped, {"1B", "1C", "5", "7"}, "left_toe and right_toe look swapped"),
    (contacts_swapped_in_features, {"1A", "1B", "1C", "5"}, "left_heel and right_heel look swapped"),
    (another_control, {"1B", "1C"}, "from frame 20 on"),
    (a_hidden_push, {"1B", "1C"}, "not what its controls do"),
    (not_finite, {"1A", "1B", "1C", "4", "6"}, "joint_pos.left_ankle_pitch is not finite at frame 7"),
]


@pytest.mark.parametrize(("fault", "expected", "named"), DATA_FAULTS, ids=[fault[0].__name__ for fault in DATA_FAULTS])
def test_a_fault_of_the_recording_fails_what_is_about_it(
    sound: Subject, run: Run, changed: Changed, fault: Callable[[Robot, Arrays], None], expected: set[str], named: str
) -> None:
    found = run(changed(sound, lambda arrays: fault(sound.robot, arrays)))
    assert failing(found) == expected, reasons(found)
    assert named in reasons(found)
    if "1A" in expected and fault is not not_finite:
        assert "the reference features" in found["1A"].reason


def test_without_its_source_a_feature_fault_is_not_the_generators(sound: Subject, run: Run, changed: Changed) -> None:
    """1C's other half, the replay, is about states alone."""
    found = run(changed(sound, lambda arrays: features_are_differences(sound.robot, arrays), sources=False))
    assert failing(found) == {"1A", "1B"}


def test_one_faulty_clip_among_several_is_named(sound: Subject, run: Run, changed: Changed) -> None:
    found = run(changed(sound, lambda arrays: knees_swapped(sound.robot, arrays), "side_step"), "1A", "1B", "1C")
    assert failing(found) == {"1A", "1B", "1C"}
    assert all("clip side_step" in found[test].reason for test in ("1A", "1B", "1C"))


# --- Faults of the generator and of the physics ---------------------------------------------------------------------------


def test_a_generator_without_a_fixed_seed(sound: Subject, run: Run) -> None:
    calls = itertools.count(1)

    def unseeded(robot: Robot, motions: Any, recipes: Any, **more: Any) -> Any:
        nudge = next(calls) * 1e-9
        return generate(robot, [replace(m, initial_qvel=m.initial_qvel + nudge) for m in motions], recipes, **more)

    found = run(sound, generate=unseeded)
    assert failing(found) == {"1C"}
    assert "two generations on this machine differ, too" in found["1C"].reason
    assert "features" in found["1C"].reason


def test_a_planner_without_a_fixed_seed(sound: Subject, run: Run) -> None:
    calls = itertools.count(1)

    def unseeded(robot: Robot, clip: Any, recipe: Recipe, start: Any, **more: Any) -> Any:
        return plan(robot, clip, replace(recipe, seed=next(calls)), start, **more)

    found = run(sound, plan=unseeded)
    assert failing(found) == {"1C"}
    assert "clip tracked_step: its controls are planned otherwise from frame 0 on; two plans" in found["1C"].reason


def test_a_tracked_clip_of_another_seed_than_it_names(sound: Subject, run: Run) -> None:
    clips = [replace(clip, recipe=replace(clip.recipe, seed=5)) if clip.recipe.planner else clip for clip in sound.clips]
    found = run(replace(sound, clips=tuple(clips)))
    assert failing(found) == {"1C"}
    assert "this machine plans the same twice" in found["1C"].reason
    assert "clip tracked_step" in found["1C"].reason


def test_another_recipe_than_it_was_made_with(sound: Subject, run: Run) -> None:
    *others, clip = sound.clips[:3]
    assert clip.arrays["initial_qvel"].any()
    other = replace(clip, recipe=replace(clip.recipe, initial_velocity="zero"))
    found = run(replace(sound, clips=(*others, other)))
    assert failing(found) == {"1C"}
    assert "this machine makes the same bytes twice" in found["1C"].reason


def test_wind_is_seen_by_the_yaw_test_alone(robot: Robot, sound: Subject, run: Run) -> None:
    """Everything about these clips is consistent; but the world has a direction."""
    model = copy.copy(robot.model)
    model.opt.wind[:], model.opt.density = (4.0, 0.0, 0.0), 1.2
    windy = replace(robot, model=model)
    motions = [clip.motion() for clip in sound.clips[:2] if clip.motion is not None]
    scores = score(motions, windy, Recipe.for_mode("rollout"))
    subject = Subject.of_scores(scores, motions, windy)
    found = run(replace(subject, clips=tuple(replace(clip, tier=0) for clip in subject.clips)))
    assert failing(found) == {"2"}, reasons(found)
    assert "no contact explains it: the physics or the controls know a direction" in found["2"].reason


# --- Coverage and the version's files -------------------------------------------------------------------------------------


def artifacts(subject: Subject) -> Artifacts:
    rows = np.concatenate([clip.version_features for clip in subject.clips])
    stats = ColumnStats(rows.shape[1])
    stats.add(rows)
    digest = "sha256:" + hashlib.sha256(rows.tobytes()).hexdigest()
    hashes = {"dataset_hash": digest, "feature_code_hash": features.feature_code_hash()}
    return Artifacts(rows, hashes | stats.to_dict(), hashes | {"clips": [{"name": clip.name} for clip in subject.clips]})


def locked(sound: Subject, fault: str) -> Subject:
    """The sound subject with its files, one of which has a fault."""
    files = artifacts(sound)
    stats, manifest, rows = dict(files.stats), dict(files.manifest), files.features
    if fault == "stale statistics":
        older = ColumnStats(rows.shape[1])
        older.add(rows[: len(sound.clips[0].version_features)])
        stats = stats | {"std": [*stats["std"][:20], older.to_dict()["std"][20], *stats["std"][21:]]}
    elif fault == "a clip is missing":
        rows = rows[: -len(sound.clips[-1].version_features)]
        manifest["clips"] = manifest["clips"][:-1]
    elif fault == "other order":
        rows = np.concatenate([clip.version_features for clip in reversed(sound.clips)])
    elif fault == "a bit":
        rows = rows.copy()
        rows[90, 2] = np.nextafter(rows[90, 2], np.float32(9.0))
    elif fault == "other feature code":
        stats["feature_code_hash"] = "sha256:" + "0" * 64
    elif fault == "another version's statistics":
        stats["dataset_hash"] = "sha256:" + "0" * 64
    return replace(sound, artifacts=Artifacts(rows, stats, manifest))


def test_a_locked_version_passes(sound: Subject, run: Run) -> None:
    found = run(locked(sound, ""), "4")
    assert found["4"].status == PASS, found["4"].reason
    assert "bit for bit" in found["4"].measured


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("stale statistics", "the normalization statistics are stale: std of root_ang_vel.y"),
        ("a clip is missing", "missing are tracked_step"),
        ("other order", "clips in another order"),
        ("a bit", "first: row 38 of clip side_step"),
        ("other feature code", "the stats was locked with other feature code"),
        ("another version's statistics", "the stats's dataset_hash"),
    ],
)
def test_a_fault_of_the_versions_files(sound: Subject, run: Run, fault: str, named: str) -> None:
    found = run(locked(sound, fault), "4")
    assert failing(found) == {"4"}
    assert named in found["4"].reason


def test_stale_statistics_are_the_matter_of_no_other_test(sound: Subject, run: Run) -> None:
    assert failing(run(locked(sound, "stale statistics"))) == {"4"}


def test_windows_must_lie_within_their_clip(sound: Subject, run: Run) -> None:
    frames = sound.clips[0].frames
    wrong = replace(sound.clips[0], ranges=((5, 30), (25, frames + 1)))
    found = run(replace(sound, clips=(wrong, *sound.clips[1:])))
    # No window was asked for by its gates.
    assert failing(found) - {"7"} == {"4"}, reasons(found)
    assert f"the range 25 … {frames + 1}" in found["4"].reason


def test_a_clip_without_rows_is_named(sound: Subject, run: Run, changed: Changed) -> None:
    def empty(arrays: Arrays) -> None:
        for key in arrays:
            if not key.startswith("initial") and arrays[key].ndim:
                arrays[key] = arrays[key][:0]

    found = run(changed(sound, empty, "walk", sources=False))
    assert failing(found) == {"4"}, reasons(found)
    assert "clip walk gives no frame" in found["4"].reason


# --- The small parts ------------------------------------------------------------------------------------------------------


def test_a_plans_prefix_is_that_of_the_whole_plan(robot: Robot, sound: Subject) -> None:
    clip = sound.clips[-1]
    assert clip.motion is not None
    clip_motion = condition(clip.motion(), robot)
    for wanted in (10, 24, 25, 48):
        made = plan(robot, clip_motion, clip.recipe, clip_motion.initial_qvel, frames=wanted)
        assert np.array_equal(made.ctrl[:wanted], clip.arrays["ctrl"][:wanted])
        assert made.ctrl.shape == clip.arrays["ctrl"].shape
    assert made.fell_at is None


def test_a_large_version_is_sampled_evenly(sound: Subject) -> None:
    clips = sound.clips * 50
    chosen = sample(clips, 1000)
    assert sum(frames for _, frames in chosen) <= 1000
    assert len({clip.name for clip, _ in chosen}) > 1
    assert all(frames == clip.frames for clip, frames in chosen[:-1])
    assert sample(sound.clips, 10_000) == [(clip, clip.frames) for clip in sound.clips]
    assert sample(sound.clips[:1], 20) == [(sound.clips[0], 20)]


def test_a_turn_keeps_what_has_no_direction(robot: Robot, sound: Subject) -> None:
    arrays = sound.clips[0].arrays
    qpos, qvel = arrays["qpos"], arrays["qvel"]
    moved, moving = states.rotate_states(robot, qpos, qvel, np.radians(37.0))
    back, backing = states.rotate_states(robot, moved, moving, np.radians(-37.0))
    np.testing.assert_allclose(back, qpos, atol=1e-14)
    np.testing.assert_allclose(backing, qvel, atol=1e-14)
    assert np.array_equal(moved[:, 7:], qpos[:, 7:])
    heading = np.arctan2(*features.heading_direction(moved[:, [4, 5, 6, 3]]).T[::-1])
    before = np.arctan2(*features.heading_direction(qpos[:, [4, 5, 6, 3]]).T[::-1])
    np.testing.assert_allclose(np.degrees(heading - before), 37.0, atol=1e-9)


def test_a_difference_that_no_usual_fault_explains_is_not_explained(robot: Robot, sound: Subject) -> None:
    clip = sound.clips[0]
    arrays = clip.arrays
    given = arrays["features"].copy()
    states_and_more = (arrays["qpos"], arrays["qvel"], states.start_poses(clip), arrays["foot_contacts"])
    assert faults.name_faults(robot, given, *states_and_more) == []
    given[:, 1] += np.sin(np.arange(len(given)), dtype=np.float32)
    assert faults.name_faults(robot, given, *states_and_more) == [
        "joint_pos: left_hip_roll differ, in a way that no usual fault explains"
    ]


def test_a_row_that_fails_is_told_where_no_reason_is() -> None:
    found = Findings("9", "nothing")
    assert found.add(check("a", 1.0, "<", 2.0))
    assert not found.add(check("b", float("nan"), "<", 2.0, where="there"))
    report = found.report("…")
    assert report.status == FAIL
    assert report.reason == "b is nan, asked < 2 (there)"


@pytest.mark.parametrize("values", [(0.0, np.nan, 1.0), (np.nan, 0.0, np.nan)])
def test_a_clip_with_nan_is_not_covered_up_by_the_clips_after_it(values: tuple[float, ...]) -> None:
    peak = Peak()
    for i, value in enumerate(values):
        peak.record(value, f"clip {i}")
    assert np.isnan(peak.value)
    assert peak.place == f"clip {int(np.argmax(np.isnan(values)))}"
