"""Attempts of the tracked mode, and mode auto: what is tried, what is kept, and what is told of it."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amp_core.scoring as module
from amp_core import rotations
from amp_core.attempts import Attempt, best_attempt, share_of_goal
from amp_core.errors import MotionRefused
from amp_core.formats import Motion, read_motion
from amp_core.motion import condition
from amp_core.motions import bundled_motions
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.rollout import generate
from amp_core.scoring import Score, check_scorable, score
from amp_core.tiers import GATE_PROFILES, GateProfile, GateSpec, Tier
from amp_core.tracking.scaling import Scaling
from amp_core.triage import triage

PROFILE = GATE_PROFILES["amp-0.11"]
QUICK = {"samples": 16, "first_rounds": 1, "horizon_sec": 0.2, "attempts": 2}
TRACKED = Recipe.from_dict({"mode": "tracked", "planner": QUICK})
AUTO = Recipe.from_dict({"mode": "auto", "planner": QUICK})


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


def bundled(stem: str, frames: int = 30) -> Motion:
    """The first frames of a bundled motion."""
    path = next(path for path in bundled_motions() if path.stem == stem)
    motion = read_motion(path, name=stem)
    cut: dict[str, Any] = {key: np.asarray(getattr(motion, key))[:frames] for key in ("root_pos", "root_rot", "dof_pos")}
    return dataclasses.replace(motion, **cut)


def toppling(robot: Robot, frames: int = 60) -> Motion:
    """One hip swings forward and stays there, which nobody can stand on."""
    motion = bundled("squat", frames)
    dof_pos = np.array(motion.dof_pos)
    dof_pos[:, robot.joint_names.index("left_hip_pitch")] = np.minimum(1.2, 0.1 * np.arange(frames))
    return dataclasses.replace(motion, dof_pos=dof_pos, name="topple")


def lying(frames: int = 30) -> Motion:
    """A clip whose root is in another frame: x is up."""
    motion = bundled("walk", frames)
    turned = np.tile([0.0, np.sin(np.pi / 4), 0.0, np.cos(np.pi / 4)], (frames, 1))
    return dataclasses.replace(motion, root_rot=turned, name="lying")


def dropping(robot: Robot) -> Motion:
    """A walk that begins 25 cm in the air, higher than the robot can be."""
    motion = bundled("walk", 60)
    root_pos = np.array(motion.root_pos)
    root_pos[:10, 2] += 0.25 * (1.0 - np.arange(10) / 10.0) ** 2
    return dataclasses.replace(motion, root_pos=root_pos, name="drops in")


def test_nothing_is_planned_for_a_start_that_the_robot_cannot_reach(robot: Robot) -> None:
    (result,) = score([dropping(robot)], robot, AUTO)
    assert result.tier == Tier.REJECTED
    assert result.auto is not None
    assert not result.auto.triage.worth_planning
    assert "starts_in_air" in [lack.what for lack in result.auto.triage.lacks]
    assert "ampref cut CLIP --frames" in result.auto.triage.reason
    assert result.diagnosis is not None
    assert next(suggestion.code for suggestion in result.diagnosis.suggestions) == "cut_start"
    assert "use_tracked" not in [suggestion.code for suggestion in result.diagnosis.suggestions]


class Heard:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self.texts: list[str] = []

    def __call__(self, share: float, text: str) -> None:
        self.shares.append(share)
        self.texts.append(text)


def test_a_clip_that_misses_its_goals_is_tried_again_and_the_best_attempt_is_kept(robot: Robot) -> None:
    heard = Heard()
    found = score([toppling(robot)], robot, TRACKED, progress=heard)[0]
    assert [one.attempt for one in found.attempts] == [0, 1]
    best = min(found.attempts, key=lambda one: (one.tier != 0, one.worst, one.attempt))
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["provenance"]["attempt"] == best.attempt
    assert facts["attempts"][best.attempt]["figures"]["joint_rmse_rad"] == found.quality_metrics["joint_rmse_rad"]
    assert best.worst > 1 or found.tier != 0
    # The two are plans of their own, and the one that was kept can be made again by its number.
    ready = condition(toppling(robot), robot)
    made = [generate(robot, [ready], TRACKED, attempt=number)[0].ctrl for number in (0, 1)]
    assert not np.array_equal(*made)
    np.testing.assert_array_equal(found.rollout.ctrl, made[best.attempt])
    assert heard.shares == sorted(heard.shares)
    assert heard.shares[-1] == 1.0
    # The second attempt has twice the simulations, and may not be told as a small rest.
    assert next(share for share, text in zip(heard.shares, heard.texts, strict=True) if "attempt 2: " in text) < 0.4
    assert any(text.startswith("attempt 2: ") for text in heard.texts)


def test_one_attempt_is_enough_where_the_goals_are_met(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = module.judge

    def kind(*args: Any) -> Any:
        verdict = judge(*args)
        metrics = verdict.quality_metrics | dict.fromkeys(("joint_rmse_rad", "root_drift_m", "slip_rate"), 0.01)
        metrics |= {"unloaded_frame_rate": 0.0, "contact_agreement": None}  # One that is not known is no reason.
        return dataclasses.replace(
            verdict, quality_metrics=metrics, classification=dataclasses.replace(verdict.classification, tier=0)
        )

    monkeypatch.setattr(module, "judge", kind)
    found = score([bundled("walk", 10)], robot, TRACKED)[0]
    assert [one.attempt for one in found.attempts] == [0]
    assert found.attempts[0].missed == ()
    assert found.to_dict()["provenance"]["attempt"] == 0


def test_goals_alone_are_not_worth_an_attempt_that_costs_several_times_as_much(
    robot: Robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, tiers = module.judge, iter([1, 0, 0, 0])

    def miss(*args: Any) -> Any:
        verdict = judge(*args)
        metrics = verdict.quality_metrics | {"root_drift_m": 0.2}
        tier = Tier(next(tiers))
        classification = dataclasses.replace(verdict.classification, tier=tier, gates=())
        return dataclasses.replace(verdict, quality_metrics=metrics, classification=classification)

    monkeypatch.setattr(module, "judge", miss)
    recipe = Recipe.from_dict({"mode": "tracked", "planner": QUICK | {"attempts": 3, "attempt_growth": 1.0}})
    monkeypatch.setattr(Scaling, "is_for_goals", lambda self, attempt: attempt <= 1)
    found = score([bundled("walk", 10)], robot, recipe)[0]
    assert [(one.attempt, one.tier, one.missed) for one in found.attempts][1:] == [(1, 0, ("root_drift_m",))]
    tiers = iter([1, 1, 0])
    found = score([bundled("walk", 10)], robot, recipe)[0]
    assert [one.tier for one in found.attempts] == [1, 1, 0], "until one is Tier 0 all are made"


def test_the_goals_of_a_run_leave_out_what_its_flight_decides(robot: Robot) -> None:
    recipe = dataclasses.replace(TRACKED, gate_profile="amp-0.12-dynamic")
    figures = score([bundled("walk", 10)], robot, recipe)[0].attempts[0].figures
    assert set(figures) == {"unloaded_excess", "joint_rmse_rad", "root_drift_m", "contact_agreement"}
    assert share_of_goal("unloaded_excess", 0.1) == pytest.approx(2.0)


def attempt(number: int, tier: int, worst: float) -> Attempt:
    return Attempt(number, tier, "", worst, (), {})


@pytest.mark.parametrize(
    ("attempts", "kept"),
    [
        ([attempt(0, 1, 0.5), attempt(1, 0, 3.0)], 1),
        ([attempt(0, 0, 1.5), attempt(1, 0, 1.2)], 1),
        ([attempt(0, -1, 2.0), attempt(1, 1, 2.5)], 1),
        ([attempt(0, -1, 2.0), attempt(1, -1, 1.5)], 1),
        ([attempt(0, 0, 1.5), attempt(1, 0, 1.5)], 0),
    ],
)
def test_the_tier_comes_before_the_goals_and_the_goals_before_the_order(attempts: list[Attempt], kept: int) -> None:
    assert best_attempt(attempts) == kept


def test_a_goal_from_below_and_one_from_above() -> None:
    assert share_of_goal("root_drift_m", 0.3) == pytest.approx(2.0)
    assert share_of_goal("contact_agreement", 0.35) == pytest.approx(2.0)
    assert share_of_goal("contact_agreement", 0.0) <= 1e9
    assert share_of_goal("contact_agreement", 0.9) < 1.0


def test_the_same_attempts_alone_in_a_batch_and_on_any_number_of_threads(robot: Robot) -> None:
    alone = score([toppling(robot, 20)], robot, TRACKED)[0]
    batch = score([bundled("walk", 20), toppling(robot, 20)], robot, TRACKED, nthread=2)[1]
    assert alone.attempts == batch.attempts
    assert alone.provenance == batch.provenance
    np.testing.assert_array_equal(alone.rollout.features, batch.rollout.features)


def test_auto_plans_nothing_for_a_clip_that_is_tier_0_as_it_is(robot: Robot) -> None:
    heard = Heard()
    found = score([bundled("walk", 150)], robot, AUTO, progress=heard)[0]
    assert (found.tier, found.rollout.recipe) == (0, AUTO.stage("rollout"))
    assert found.auto is not None
    assert [one.rollout.recipe.mode for one in found.auto.tried] == ["rollout"]
    assert not found.auto.triage.worth_planning
    assert not any("planned" in text for text in heard.texts)
    plain = score([bundled("walk", 150)], robot, AUTO.stage("rollout"))[0]
    assert [_timeless(found.auto.tried[0])] == [_timeless(plain)]
    assert heard.shares[-1] == 1.0


def by_clip(mode: str) -> Recipe:
    return dataclasses.replace(AUTO.stage(mode), gate_profile="amp-0.12-dynamic")


def _timeless(found: Score) -> dict[str, Any]:
    return {key: value for key, value in found.to_dict().items() if key != "wall_sec"}


def test_auto_tries_the_tracked_mode_and_keeps_both(robot: Robot) -> None:
    heard = Heard()
    found = score([toppling(robot, 40), bundled("walk", 60)], robot, AUTO, progress=heard)[0]
    assert found.auto is not None
    # It lifts no foot, which is no fault by the other profile; nobody can stand on it, so that a harness is tried last.
    stages = [AUTO.stage("rollout"), by_clip("rollout"), by_clip("tracked"), AUTO.stage("assisted")]
    assert [one.rollout.recipe for one in found.auto.tried] == stages
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["mode"] == facts["auto"]["tried"][facts["auto"]["shown"]]["mode"]
    assert facts["auto"]["recipe_digest"] == AUTO.digest
    assert facts["provenance"]["recipe_digest"] == stages[facts["auto"]["shown"]].digest
    assert [one["gate_profile"] for one in facts["auto"]["tried"]] == [stage.gate_profile for stage in stages]
    assert "balance" in [lack["what"] for lack in facts["auto"]["triage"]["lacks"]]
    # What is kept of each is what its own recipe alone gives.
    tracked = score([toppling(robot, 40)], robot, by_clip("tracked"))[0]
    assert _timeless(found.auto.tried[2]) == _timeless(tracked)
    assert heard.shares == sorted(heard.shares)
    # Nobody is told to try what was tried.
    for one in found.auto.tried:
        assert one.diagnosis is None or "use_tracked" not in [advice.code for advice in one.diagnosis.suggestions]


def test_a_root_in_another_frame_is_rejected_with_that_diagnosis_and_not_planned_for(robot: Robot) -> None:
    found = score([lying()], robot, AUTO)[0]
    assert found.tier == -1
    assert found.tier_reason.startswith("Rejected: the root is tilted by 90 degrees")
    assert found.auto is not None
    assert [one.rollout.recipe.mode for one in found.auto.tried] == ["rollout"]
    assert found.auto.triage.lacks[0].what == "root_frame"


def test_a_root_in_another_frame_is_refused_where_it_would_be_tracked(robot: Robot) -> None:
    with pytest.raises(MotionRefused, match="its frame is probably not the robot's") as refusal:
        score([lying()], robot, TRACKED)
    assert refusal.value.key == "root_rot"
    with pytest.raises(MotionRefused, match="its frame is probably not the robot's"):
        check_scorable(lying(), robot, TRACKED)
    check_scorable(lying(), robot, AUTO)


def test_a_clip_that_lifts_no_foot_is_not_planned_for(robot: Robot) -> None:
    found = score([bundled("squat", 100)], robot, AUTO)[0]
    assert found.auto is not None
    assert found.tier == 1
    assert [lack.what for lack in found.auto.triage.lacks] == ["footwork"]
    assert len(found.auto.tried) == 1


def test_a_motion_that_is_none_of_walking_is_judged_by_the_profile_for_it(
    robot: Robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = module.judge

    def lean(*args: Any) -> Any:
        """A walk that by the profile for walking leans too far, by 70 degrees."""
        verdict = judge(*args)
        gates = tuple(
            dataclasses.replace(gate, value=70.0, passed=False) if gate.name == "clip_max_tilt_deg" else gate
            for gate in verdict.gates
        )
        tier = Tier.TIER_0 if all(gate.passed for gate in gates) else Tier.REJECTED
        return dataclasses.replace(verdict, classification=dataclasses.replace(verdict.classification, tier=tier, gates=gates))

    monkeypatch.setattr(module, "judge", lean)
    found = score([bundled("walk", 150)], robot, AUTO)[0]
    assert found.auto is not None
    assert found.auto.triage.relative
    assert found.auto.triage.reason.endswith("it is judged by amp-0.12-dynamic, too, which compares with the clip's own motion")
    tried = [(one.tier, one.rollout.recipe) for one in found.auto.tried]
    assert tried == [(-1, AUTO.stage("rollout")), (0, by_clip("rollout"))]
    assert (found.tier, found.rollout.recipe) == (0, by_clip("rollout"))
    # What it carries controls for is simulated first, by both profiles.
    made = io.BytesIO()
    found.export(made)
    recording = read_motion(made.getvalue(), name="recording")
    assert recording.has_controls
    again = score([recording], robot, AUTO)[0]
    assert again.auto is not None
    tried = [(one.tier, one.rollout.recipe) for one in again.auto.tried]
    assert tried == [(-1, AUTO.stage("recorded")), (-1, AUTO.stage("rollout")), (0, by_clip("recorded"))]
    # The older profile has none that goes with it.
    older = dataclasses.replace(AUTO, gate_profile="amp-0.11")
    auto = score([bundled("walk", 30)], robot, older)[0].auto
    assert auto is not None
    assert {one.rollout.recipe.gate_profile for one in auto.tried} == {"amp-0.11"}


@pytest.mark.parametrize("profile", ["amp-0.12", "amp-0.12-dynamic"])
def test_a_clip_that_lies_is_not_planned_for_by_any_profile(robot: Robot, profile: str) -> None:
    motion = bundled("walk", 60)
    angle = np.linspace(0.0, np.radians(97.0), 60) / 2
    turn = np.stack([0 * angle, np.sin(angle), 0 * angle, np.cos(angle)], axis=1)
    falling = dataclasses.replace(motion, root_rot=rotations.multiply(motion.root_rot, turn))
    found = score([falling], robot, dataclasses.replace(AUTO, gate_profile=profile))[0]
    assert found.tier != Tier.TIER_0
    assert found.auto is not None
    assert {one.rollout.recipe.mode for one in found.auto.tried} == {"rollout"}
    assert "clip_not_upright" in [lack.what for lack in found.auto.triage.lacks]
    assert found.diagnosis is not None
    assert not {"use_tracked", "dynamic_profile"} & {one.code for one in found.diagnosis.suggestions}


def test_a_robot_that_stands_through_a_static_pose_is_tier_0_by_no_profile(robot: Robot) -> None:
    motion = bundled("squat", 100)
    still: dict[str, Any] = {
        key: np.repeat(getattr(motion, key)[:1], 100, axis=0) for key in ("root_pos", "root_rot", "dof_pos")
    }
    found = score([dataclasses.replace(motion, **still)], robot, AUTO)[0]
    assert found.tier != Tier.TIER_0
    assert found.auto is not None
    assert not found.auto.triage.relative


def test_a_clip_that_excludes_itself_is_not_planned_for(robot: Robot) -> None:
    motion = bundled("walk", 100)
    path = np.array(motion.root_pos)
    path[:, :2] *= 3.0
    found = score([dataclasses.replace(motion, root_pos=path)], robot, AUTO)[0]
    assert found.tier == Tier.TIER_1
    assert found.auto is not None
    assert len(found.auto.tried) == 1
    assert "clip_feet_slide" in [lack.what for lack in found.auto.triage.lacks]
    assert "no plan can mend a clip: clip_foot_slide" in found.auto.triage.reason
    assert found.diagnosis is not None
    assert "clip_feet_slide" in [finding.code for finding in found.diagnosis.findings if finding.severity == "fatal"]


def hopping(robot: Robot, frames: int = 30) -> Motion:
    """Its feet are in the air for over a quarter of the time, and nobody can stand on its hip."""
    motion = toppling(robot, frames)
    path, seconds = np.array(motion.root_pos), np.arange(frames) / motion.fps
    phase = np.mod(seconds, 0.8)
    path[:, 2] += np.where(phase < 0.4, 4.905 * phase * (0.4 - phase), 0.0)
    return dataclasses.replace(motion, root_pos=path, name="hops")


def test_a_clip_that_cannot_be_tier_0_is_planned_for_where_the_rollout_is_rejected(robot: Robot) -> None:
    found = score([hopping(robot)], robot, AUTO)[0]
    assert found.auto is not None
    plain, again, tracked, *_ = found.auto.tried
    assert (plain.tier, again.tier) == (Tier.REJECTED, Tier.REJECTED)
    assert [one.rollout.recipe for one in found.auto.tried[:3]] == [
        AUTO.stage("rollout"),
        by_clip("rollout"),
        by_clip("tracked"),
    ]
    failed = [gate.name for gate in plain.gates if not gate.passed and gate.name.startswith("clip_")]
    assert failed == ["clip_flight_rate"]
    assert found.auto.triage.worth_planning
    assert "a plan may make it Tier 1; by amp-0.12 this clip cannot be Tier 0" in found.auto.triage.reason
    assert "flight" in [lack.what for lack in found.auto.triage.lacks]
    # Where tracked is Rejected, too, the harness is tried last.
    modes = [one.rollout.recipe.mode for one in found.auto.tried[3:]]
    assert modes == (["assisted"] if tracked.tier == Tier.REJECTED else [])


def test_a_plain_rollout_suggests_the_mode_that_could_make_it_tier_1(robot: Robot) -> None:
    found = score([hopping(robot)], robot, AUTO.stage("rollout"))[0]
    assert found.diagnosis is not None
    assert "use_tracked" in [advice.code for advice in found.diagnosis.suggestions]


def test_one_attempt_is_enough_where_the_clip_can_have_no_better_tier(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = module.judge

    def stands(*args: Any) -> Any:
        """Whatever it does, it is Tier 1: the clip's own gate is the only one that fails."""
        verdict = judge(*args)
        gates = tuple(dataclasses.replace(gate, passed=gate.name != "clip_flight_rate") for gate in verdict.gates)
        tier = Tier.TIER_1 if any(not gate.passed for gate in gates) else Tier.TIER_0
        return dataclasses.replace(verdict, classification=dataclasses.replace(verdict.classification, tier=tier, gates=gates))

    monkeypatch.setattr(module, "judge", stands)
    found = score([hopping(robot, 20)], robot, TRACKED)[0]
    assert (found.tier, [one.attempt for one in found.attempts]) == (Tier.TIER_1, [0])
    older = dataclasses.replace(TRACKED, gate_profile="amp-0.11")
    assert [one.attempt for one in score([hopping(robot, 20)], robot, older)[0].attempts] == [0, 1]


@pytest.mark.parametrize(
    ("tier", "values", "is_planned", "words"),
    [
        (Tier.REJECTED, {}, True, "the plain rollout is not Tier 0"),
        (Tier.REJECTED, {"clip_flight_rate": 0.3}, True, "a plan may make it Tier 1; by amp-0.12 this clip cannot be Tier 0"),
        (Tier.TIER_1, {"clip_flight_rate": 0.3}, False, "by amp-0.12 this clip cannot be Tier 0, and no plan can mend a clip"),
        (Tier.REJECTED, {"clip_max_tilt_deg": 90.0}, False, "by amp-0.12 this clip cannot be more than Rejected"),
        (Tier.REJECTED, {"clip_max_tilt_deg": 70.0}, False, "it is judged by amp-0.12-dynamic, too"),
        (Tier.TIER_1, {"clip_ground_range_m": 0.06}, False, "it is judged by amp-0.12-dynamic, too"),
        (Tier.TIER_1, {"clip_ground_range_m": 0.07}, False, "no plan can mend a clip: clip_ground_range_m 0.07 is over 0.045"),
        (Tier.REJECTED, {"clip_max_tilt_deg": 90.0, "clip_flight_rate": 0.3}, False, "cannot be more than Rejected"),
    ],
)
def test_a_plan_is_made_where_it_could_make_the_tier_better(
    robot: Robot, tier: Tier, values: dict[str, float], is_planned: bool, words: str
) -> None:
    profile, sound = GATE_PROFILES["amp-0.12"], {"clip_max_tilt_deg": 5.0, "clip_flight_rate": 0.0, "clip_ground_range_m": 0.0}
    gates = [gate.evaluate(sound | values, "rollout", (0.35, 0.55)) for gate in profile.gates if gate.name in sound]
    found = triage(condition(bundled("walk"), robot).report, (0.6, 0.6), {}, tier, robot, profile, gates)
    assert (found.worth_planning, words in found.reason) == (is_planned, True), found.reason


def test_triage_asks_for_footwork_only_where_the_profile_does(robot: Robot) -> None:
    report = condition(bundled("walk"), robot).report
    standing = GateProfile("standing-1", (GateSpec("contact_rate", "in", (0.3, 1.0), Tier.TIER_0),))
    assert [lack.what for lack in triage(report, (1.0, 1.0), {}, Tier.TIER_1, robot, PROFILE).lacks] == ["footwork"]
    found = triage(report, (1.0, 1.0), {}, Tier.TIER_1, robot, standing)
    assert (found.lacks, found.worth_planning) == ((), True)


def test_triage_names_what_the_clip_lacks(robot: Robot) -> None:
    report = condition(bundled("walk"), robot).report
    bad = dataclasses.replace(report, ground_shift_m=-0.2, foot_height_spread_m=0.05)
    metrics = {"actuator_saturation_rate": 0.3, "fell_at_frame": 40}
    found = triage(bad, (0.6, 0.6), metrics, -1, robot, PROFILE)
    assert [lack.what for lack in found.lacks] == ["ground_fit", "actuator_limits", "balance"]
    assert "falls at 0.82 s" in found.lacks[-1].detail
    assert "-0.200 m" in found.lacks[0].detail
    assert found.worth_planning
    assert triage(report, (0.6, 0.6), {}, 0, robot, PROFILE).worth_planning is False


def test_a_rollout_is_never_generated_in_mode_auto(robot: Robot) -> None:
    with pytest.raises(ValueError, match="chooses for mode auto"):
        generate(robot, [condition(bundled("walk"), robot)], AUTO)


REAL = Path(__file__).parents[3] / "shared/data/motions/walking_slow01_gmr_orig.pkl"


@pytest.mark.skipif(not REAL.exists(), reason="the real clips are not beside this checkout (../shared/data/motions)")
def test_the_real_clip_with_its_root_in_another_frame_is_never_repaired(robot: Robot) -> None:
    motion = read_motion(REAL, name=REAL.stem)
    with pytest.raises(MotionRefused, match="root"):
        score([motion], robot, Recipe.for_mode("tracked"))
    [result] = score([motion], robot, Recipe.for_mode("auto"))
    assert result.tier == -1
    assert result.auto is not None
    assert [one.rollout.recipe.mode for one in result.auto.tried] == ["rollout"]
    assert "root" in result.tier_reason.split(";")[0]
