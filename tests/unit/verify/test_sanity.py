"""Tests 6 and 7: what is sound passes them, and a reference that no policy should learn from fails the one that is about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from faults import FAULTS, spoiled

from amp_core.errors import InputRefused
from amp_core.formats import Motion
from amp_core.motion import condition
from amp_core.motion.findings import ClipCheck
from amp_core.recipe import Harness, Recipe
from amp_core.robot import Robot
from amp_core.scoring import score
from amp_core.verify import FAIL, PASS, SKIP, TESTS, WARN, Clip, Subject, TestReport, sanity, verify
from amp_core.verify.report import Findings
from amp_core.verify.sanity import check_limits, check_speeds

Run = Callable[..., dict[str, TestReport]]
Changed = Callable[..., Subject]
Arrays = dict[str, Any]


def failing(found: dict[str, TestReport]) -> set[str]:
    return {test for test, report in found.items() if report.status == FAIL}


def rows(report: TestReport, name: str) -> list[Any]:
    return [row for row in report.rows if row.name == name]


def of(motions: list[Motion], robot: Robot, recipe: Recipe, tier: int | None = None) -> Subject:
    subject = Subject.of_scores(score(motions, robot, recipe), motions, robot)
    return subject if tier is None else replace(subject, clips=tuple(replace(clip, tier=tier) for clip in subject.clips))


def whole(name: str) -> Motion:
    from amp_core.formats import read_motion
    from amp_core.motions import bundled_motions

    return read_motion(next(path for path in bundled_motions() if path.stem == name), name=name)


# --- 6 --------------------------------------------------------------------------------------------------------------------


def test_a_row_for_every_dimension_and_a_histogram(sound: Subject, run: Run) -> None:
    report = run(sound, "6")["6"]
    assert report.status == PASS, report.reason
    names = sound.robot.layout.names
    assert [row.name.partition(".")[2] for row in report.rows if row.name.startswith("std.")] == list(names)
    assert [row.name.partition(".")[2] for row in report.rows if row.name.startswith("overlap.")] == list(names)
    assert len([row for row in report.rows if row.name.startswith("wasserstein.")]) == len(sound.robot.layout.blocks)
    assert len([row for row in report.rows if row.name.startswith("contact_rate_difference.")]) == len(sound.robot.feet)
    for figure in report.figures["dimensions"]:
        assert sum(figure["reference_share"]) == pytest.approx(1.0, abs=1e-2)
        assert sum(figure["policy_share"]) == pytest.approx(1.0, abs=1e-2)
    # Walking moves the root by millimetres; what the specification asks of every dimension is asked of the others.
    asked = {row.name: row.threshold for row in report.rows if row.name.startswith("std.")}
    assert asked.pop("std.root_height.z") == 0.001
    assert set(asked.values()) == {0.01}


def test_a_robot_that_stands_still_is_near_constant(robot: Robot, sound: Subject, run: Run) -> None:
    """It is Tier 0 by nothing but its label here; everything about it is consistent."""
    still = whole("squat")
    pose = {key: np.repeat(getattr(still, key)[:1], 60, axis=0) for key in ("root_pos", "root_rot", "dof_pos")}
    found = run(of([replace(still, **pose)], robot, Recipe.for_mode("rollout"), tier=0))
    assert failing(found) == {"6", "7"}, [report.reason for report in found.values()]
    assert "is taken as Tier 0, but by amp-0.12 contact_rate 1 is outside [0.3, 0.95]" in found["7"].reason
    assert "root_height.z is near-constant" in found["6"].reason
    assert "touches the ground" in found["6"].reason


def test_one_near_constant_dimension_is_named(sound: Subject, run: Run, changed: Changed) -> None:
    column = sound.robot.layout.names.index("joint_pos.left_hip_roll")

    def freeze(arrays: Arrays) -> None:
        arrays["features"][:, column] = 0.02

    report = run(changed(sound, freeze, sources=False), "6")["6"]
    assert report.status == FAIL
    assert "std.joint_pos.left_hip_roll" in [row.name for row in report.rows if row.status == FAIL]
    assert "joint_pos.left_hip_roll is near-constant" in report.reason


def test_degenerate_contacts_are_named(sound: Subject, run: Run, changed: Changed) -> None:
    toe = sound.robot.layout.block("foot_contacts").start

    def always(arrays: Arrays) -> None:
        arrays["features"][:, toe] = 1.0

    report = run(changed(sound, always), "6")["6"]
    assert report.status == FAIL
    assert "left_toe nearly always touches the ground (100.0% of the frames)" in report.reason


def test_speeds_beyond_reason_fail_and_single_frames_warn(sound: Subject, run: Run, changed: Changed) -> None:
    here = sound.robot.layout.block("root_ang_vel").slice

    def degrees(arrays: Arrays) -> None:
        arrays["features"][:, here] = np.degrees(arrays["features"][:, here])

    def one_frame(arrays: Arrays) -> None:
        arrays["features"][30, here] = (0.0, 9.0, 0.0)

    report = run(changed(sound, degrees), "6")["6"]
    assert report.status == FAIL
    assert "root_ang_vel is implausible" in report.reason
    report = run(changed(sound, one_frame, "walk"), "6")["6"]
    assert report.status == WARN, report.reason
    assert [row.name for row in report.rows if row.status == WARN] == ["speed.root_ang_vel.max"]
    assert "clip walk" in rows(report, "speed.root_ang_vel.max")[0].where


def test_joints_beyond_their_limits_fail_and_single_frames_warn(sound: Subject, run: Run, changed: Changed) -> None:
    knee = list(sound.robot.joint_names).index("left_knee_pitch")
    high = sound.robot.joint_range[knee, 1]

    def permuted(arrays: Arrays) -> None:
        arrays["features"][:, knee] += 1.0

    def one_frame(arrays: Arrays) -> None:
        arrays["features"][12, knee] = high + 0.05

    report = run(changed(sound, permuted), "6")["6"]
    assert report.status == FAIL
    assert "left_knee_pitch is up to" in report.reason
    assert "other units, joint order, or robot" in report.reason
    report = run(changed(sound, one_frame, "walk"), "6")["6"]
    assert [row.name for row in report.rows if row.status != PASS] == ["limit.left_knee_pitch.max"]
    assert report.status == WARN


def test_a_joint_that_is_pressed_into_its_soft_limit_is_of_the_right_robot() -> None:
    """As the ankles of a Unitree G1 in a dance."""
    robot, findings = Robot.load("g1"), Findings("6")
    rows = np.zeros((200, robot.layout.dim))
    rows[:, robot.joint_names.index("left_knee_joint")] = robot.joint_range[robot.joint_names.index("left_knee_joint"), 1] + 0.1
    check_limits(findings, robot, rows)
    (reason,) = findings.reasons
    assert "left_knee_joint is up to 0.1 rad beyond its limits: pressed into the model's soft limit" in reason
    assert "joint order" not in reason
    assert findings.report("").status == FAIL


def test_a_larger_robot_goes_faster(sound: Subject) -> None:
    for robot, limit in ((sound.robot, 2.0), (Robot.load("g1"), 2.0 * (0.7 / 0.45) ** 0.5)):
        findings = Findings("6")
        check_speeds(findings, robot, np.zeros((sound.clips[0].frames, robot.layout.dim)), sound.clips[:1])
        assert [row.threshold for row in findings.report("").rows if row.name.endswith(".p99")] == [pytest.approx(limit), 5.0]


def test_a_root_outside_its_range_fails(sound: Subject, run: Run, changed: Changed) -> None:
    column = sound.robot.layout.block("root_height").start

    def sunk(arrays: Arrays) -> None:
        arrays["features"][:, column] -= 0.3

    report = run(changed(sound, sunk), "6")["6"]
    assert report.status == FAIL
    assert "outside the robot's 0.35 … 0.55 m" in report.reason


def test_what_a_random_policy_never_looks_like_is_a_warning(sound: Subject, run: Run, random_rollout: Any) -> None:
    column = sound.robot.layout.names.index("root_lin_vel.x")

    def elsewhere(*args: Any, **more: Any) -> Any:
        found = dict(random_rollout(*args, **more))
        found["features"] = found["features"].copy()
        found["features"][:, column] += 5.0
        return found

    report = run(sound, "6", random_policy_rollout=elsewhere)["6"]
    assert report.status == WARN
    assert [row.name for row in report.rows if row.status == WARN] == ["overlap.root_lin_vel.x"]


def test_a_random_policy_that_breaks_the_physics_fails(sound: Subject, run: Run, random_rollout: Any) -> None:
    def broken(*args: Any, **more: Any) -> Any:
        found = dict(random_rollout(*args, **more))
        found["features"] = found["features"].copy()
        found["features"][5] = np.nan
        return found

    report = run(sound, "6", random_policy_rollout=broken)["6"]
    assert report.status == FAIL
    assert "its physics is unstable" in report.reason


def test_no_tier_0_clip_nothing_to_look_at(sound: Subject, run: Run) -> None:
    subject = replace(sound, clips=tuple(replace(clip, tier=1) for clip in sound.clips))
    report = run(subject, "6")["6"]
    assert report.status == SKIP
    assert "no Tier 0 clip" in report.reason


def test_the_policy_starts_from_the_reference_in_the_same_physics(robot: Robot, sound: Subject, run: Run) -> None:
    from amp_core.recipe import PhysicsScale

    asked = []

    def watched(robot: Robot, qpos: Any, qvel: Any, **more: Any) -> Any:
        asked.append((len(qpos), more["scale"], more["frames"]))
        return {"features": sound.clips[0].arrays["features"]}

    slippery = PhysicsScale(friction=0.7)
    first, second, *_ = sound.clips
    other = replace(second, recipe=replace(second.recipe, physics=slippery), ranges=((0, 20),))
    run(replace(sound, clips=(first, other)), "6", random_policy_rollout=watched)
    total = first.frames + 20
    assert asked == [
        (first.frames, PhysicsScale(), round(10_000 * first.frames / total)),
        (20, slippery, round(10_000 * 20 / total)),
    ]


def test_wasserstein_is_the_area_between_the_distribution_functions() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=500)
    assert sanity.wasserstein(values, values) == 0.0
    assert sanity.wasserstein(values, values + 0.3) == pytest.approx(0.3)
    assert sanity.wasserstein(np.zeros(10), np.array([0.0, 1.0])) == pytest.approx(0.5)
    assert sanity.wasserstein(np.array([0.0, 1.0]), np.array([0.0, 0.0, 0.0, 1.0])) == pytest.approx(0.25)


# --- 7 --------------------------------------------------------------------------------------------------------------------


def test_the_gates_are_recomputed_with_the_seeds_figures(sound: Subject, run: Run) -> None:
    report = run(sound, "7")["7"]
    assert report.status == PASS
    asked = {(row.name, row.op, row.threshold) for row in report.rows if row.name not in ("max_tilt_deg", "gates.failed")}
    assert asked == {
        ("mean_sum_fn_over_mg", ">=", 0.85),
        ("p90_stab_force_over_mg", "<=", 0.15),
        ("unloaded_frame_rate", "<=", 0.10),
    }
    evidence = report.figures["clips"][0]
    assert len(evidence["sum_fn_over_mg"]) == sound.clips[0].frames
    assert np.mean(evidence["sum_fn_over_mg"]) == pytest.approx(rows(report, "mean_sum_fn_over_mg")[0].value, abs=1e-3)


def test_a_harness_left_on_fails_test_7_alone(robot: Robot, run: Run) -> None:
    """It carries a third of the weight, and the clips are labelled Tier 0 as by somebody who trusts the label."""
    strong = replace(Recipe.for_mode("rollout"), harness=Harness(600.0, 50.0, None, 0.445))
    names = ("side_step", "walk")
    motions = [whole(name) for name in names]
    cut = {key: slice(0, 70) for key in ("root_pos", "root_rot", "dof_pos")}
    motions = [replace(m, **{key: getattr(m, key)[rows] for key, rows in cut.items()}) for m in motions]
    found = run(of(motions, robot, strong, tier=0))
    assert failing(found) == {"7"}, {test: report.reason for test, report in found.items()}
    assert "the harness carries up to" in found["7"].reason
    assert "kp 600 N/m, no cap" in found["7"].reason


def test_a_fallen_robot_that_is_taken_as_tier_0(robot: Robot, run: Run) -> None:
    subject = of([whole("walk_long_stride")], robot, Recipe.for_mode("rollout"), tier=0)
    found = run(subject, "1A", "1B", "1C", "3", "4", "7")
    assert failing(found) == {"7"}
    assert "clip walk_long_stride: the robot has fallen" in found["7"].reason
    # Its beginning, before the fall, may be taken.
    window = replace(subject.clips[0], tier=-1, ranges=((13, 38),))
    assert run(replace(subject, clips=(window,)), "7")["7"].status == PASS
    falling = replace(window, ranges=((13, 38), (120, 200)))
    report = run(replace(subject, clips=(falling,)), "7")["7"]
    assert report.status == FAIL
    assert "frames 120 … 200: the robot has fallen" in report.reason


def test_rejected_clips_fail_and_tier_1_warns(sound: Subject, run: Run) -> None:
    rejected = replace(sound.clips[0], tier=-1)
    report = run(replace(sound, clips=(rejected, *sound.clips[1:])), "7")["7"]
    assert report.status == FAIL
    assert "clip walk is Rejected" in report.reason
    curriculum = replace(sound.clips[0], tier=1)
    report = run(replace(sound, clips=(curriculum, *sound.clips[1:])), "7")["7"]
    assert report.status == WARN
    assert report.reason == "clip walk is Tier 1: curriculum only"
    assert {row.threshold for row in rows(report, "mean_sum_fn_over_mg") if row.where == "clip walk"} == {0.60}


def test_tier_1_is_held_against_its_own_gates(sound: Subject, run: Run, changed: Changed) -> None:
    def hangs(arrays: Arrays) -> None:
        arrays["sum_fn_per_frame"] *= 0.75

    hanging = changed(sound, hangs, "walk", sources=False)
    report = run(hanging, "7")["7"]
    assert report.status == FAIL
    assert "clip walk: the feet carry 0.7" in report.reason
    first = replace(hanging.clips[0], tier=1)
    assert run(replace(hanging, clips=(first, *hanging.clips[1:])), "7")["7"].status == WARN


def test_the_weight_is_that_of_the_bucket(sound: Subject, run: Run) -> None:
    from amp_core.recipe import PhysicsScale

    heavier = replace(sound.clips[0], recipe=replace(sound.clips[0].recipe, physics=PhysicsScale(mass=1.25)))
    plain, scaled = (
        rows(run(replace(sound, clips=(clip,)), "7")["7"], "mean_sum_fn_over_mg")[0].value for clip in (sound.clips[0], heavier)
    )
    assert scaled == pytest.approx(plain / 1.25)


# --- verify() -------------------------------------------------------------------------------------------------------------


def test_tests_are_in_the_seeds_order_and_the_unwanted_are_skipped(sound: Subject) -> None:
    found = verify(sound, only=["7"], nthread=1)
    assert [test.id for test in found.tests] == ["1A", "1B", "1C", "2", "3", "4", "5", "6", "7", "smoke"]
    assert [test.id for test in TESTS] == [test.id for test in found.tests]
    assert {test.id: test.reason for test in found.tests if test.status == SKIP} == {
        test.id: "not asked for" for test in found.tests if test.id != "7"
    }
    assert all(test.name.startswith(test.id + " ") for test in found.tests)
    assert found.status == PASS
    assert found.failed == ()
    assert found.subject["frames"] == sum(clip.frames for clip in sound.clips)
    assert found.subject["clips"][0]["name"] == "walk"
    assert found.summary()["tests"][8] == {"id": "7", "name": "7 harness contribution", "status": PASS}


def test_an_unknown_test_is_refused(sound: Subject) -> None:
    with pytest.raises(InputRefused, match="there is no test '8'"):
        verify(sound, only=["8"])


def test_an_error_in_a_test_is_its_failure_and_not_the_end(sound: Subject, run: Run) -> None:
    def breaks(*args: Any, **more: Any) -> Any:
        raise ZeroDivisionError("somewhere")

    found = run(sound, "1C", "7", generate=breaks)
    assert found["1C"].status == FAIL
    assert found["1C"].reason == "the test itself failed: ZeroDivisionError: somewhere"
    assert found["7"].status == PASS

    def unreadable() -> Any:
        raise OSError("the blob is gone")

    lost = Clip("lost", 0, sound.clips[0].recipe, unreadable)
    found = run(replace(sound, clips=(lost,)), "4", "7")
    assert {report.status for report in found.values()} == {FAIL}
    assert "the blob is gone" in found["4"].reason


def test_progress_goes_forwards_and_may_stop_the_work(sound: Subject) -> None:
    told: list[float] = []
    verify(sound, only=["1A", "1B", "4", "7"], nthread=1, progress=lambda share, text: told.append(share))
    assert told == sorted(told)
    assert told[0] == 0.0
    assert told[-1] == 1.0

    class Stopped(Exception):
        pass

    def stop(share: float, text: str) -> None:
        if share > 0.1:
            raise Stopped

    with pytest.raises(Stopped):
        verify(sound, only=["1B", "4"], nthread=1, progress=stop)


def test_conditioning_the_test_clips_changes_nothing_else(sound: Subject) -> None:
    """The kit's clips are as long as their exports, so that 1C compares whole arrays."""
    for clip in sound.clips:
        assert clip.motion is not None
        assert len(condition(clip.motion(), sound.robot).dof_pos) == clip.frames


# --- Gates of this release ------------------------------------------------------------------------------------------------


def test_a_clip_that_an_older_profile_took_is_asked_again(robot: Robot, run: Run) -> None:
    """amp-0.11 did not look at the clip: legs that do not step as far as the root travels are Tier 0 by it."""
    walk = whole("walk")
    twice = replace(walk, root_pos=walk.root_pos * np.array([2.0, 1.0, 1.0]))
    older = of([twice], robot, replace(Recipe.for_mode("rollout"), gate_profile="amp-0.11"))
    assert older.clips[0].tier == 0
    report = run(older, "7")["7"]
    assert report.status == FAIL
    assert "clip walk is taken as Tier 0, but by amp-0.12 clip_foot_slide" in report.reason
    assert {row.name for row in report.rows if row.status == FAIL} >= {"gates.clip_foot_slide", "gates.failed"}


FAULTY = (
    "backflip", "breadth first", "right side first", "heading 90", "path twice as long", "knee spike 1 rad", "frozen tail",
    "root jump 25 cm", "one knee's sign", "drifts down",
)  # fmt: skip


def test_ten_faulty_clips_that_were_taken_as_tier_0_are_refused_together(
    robot: Robot, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a release would have stored them that had neither the checks of a clip nor the gates of its fidelity."""
    walk = whole("walk_long_stride")
    spoiled_clips = [spoiled(name, walk, robot) for name in FAULTY]
    clips = [replace(clip, name=f"clip {name}") for name, clip in zip(FAULTY, spoiled_clips, strict=True) if clip is not None]
    with monkeypatch.context() as patch:
        patch.setattr("amp_core.motion.conditioning.check_clip", lambda *_: ClipCheck((), {}))
        patch.setattr("amp_core.scoring.check_motion", lambda *_: None)
        subject = of(clips, robot, replace(Recipe.for_mode("rollout"), gate_profile="amp-0.11"), tier=0)
    report = run(subject, "7")["7"]
    assert report.status == FAIL
    for name in FAULTY:
        rows = {row.name for row in report.rows if row.status == FAIL and row.where.startswith(f"clip clip {name}")}
        codes = {row.removeprefix("clip.") for row in rows if row.startswith("clip.")}
        if FAULTS[name].codes[0] in ("clip_not_upright", "clip_feet_slide", "ground_not_flat"):
            assert {"gates.clip_max_tilt_deg", "gates.clip_foot_slide", "gates.clip_ground_range_m"} & rows, name
        else:
            assert codes & set(FAULTS[name].codes), (name, rows)


def test_contact_warnings_are_shown_clip_by_clip(sound: Subject, run: Run) -> None:
    report = run(sound, "6")["6"]
    patterns = [row for row in report.rows if row.name.startswith("contact_sanity.")]
    assert all(row.status == WARN and row.where.startswith("clip ") for row in patterns)


def test_an_export_of_an_older_release_is_not_asked(sound: Subject, run: Run, changed: Changed) -> None:
    def drop(arrays: Arrays) -> None:
        del arrays["reference_dof_pos_raw"]

    report = run(changed(sound, drop, "walk", sources=False), "7")["7"]
    assert report.status == PASS
    assert [row.where for row in report.rows if row.status == SKIP] == ["clip walk"]
