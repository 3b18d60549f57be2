"""Mode assisted: planned controls with as little harness as it takes, and never Tier 0."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import amp_core.scoring as module
from amp_core.errors import RecipeRefused
from amp_core.formats import Motion, read_motion
from amp_core.metrics import METRICS
from amp_core.motion import Conditioned, condition
from amp_core.motions import bundled_motions
from amp_core.recipe import ASSISTED_CAP, Harness, Recipe
from amp_core.robot import Robot
from amp_core.rollout import generate, harness_force, replay
from amp_core.scoring import score
from amp_core.tiers import GATE_PROFILES, Tier, classify, merit_order
from amp_core.tracking import Plan, harness_targets
from amp_core.tracking.branch import Branch

QUICK = {"samples": 24, "first_rounds": 1, "horizon_sec": 0.2, "attempts": 3, "branches": 1}
ASSISTED = Recipe.from_dict({"mode": "assisted", "planner": QUICK})
AUTO = Recipe.from_dict({"mode": "auto", "planner": QUICK | {"attempts": 1}})


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


def walk(frames: int = 30) -> Motion:
    motion = read_motion(next(path for path in bundled_motions() if path.stem == "walk"), name="walk")
    cut: dict[str, Any] = {key: np.asarray(getattr(motion, key))[:frames] for key in ("root_pos", "root_rot", "dof_pos")}
    return dataclasses.replace(motion, **cut)


@pytest.fixture(scope="module")
def clip(robot: Robot) -> Conditioned:
    return condition(walk(), robot)


# The recipe


def test_the_harness_is_a_share_of_the_weight_and_grows_from_attempt_to_attempt() -> None:
    harnesses = [ASSISTED.harness_of(attempt, 30.0) for attempt in range(3)]
    assert harnesses[0] == Harness.none()
    assert [harness.force_cap for harness in harnesses[1:]] == pytest.approx([0.19 * 30, 0.38 * 30])
    assert harnesses[1].height_kp == pytest.approx(10.0 * 30)
    assert ASSISTED.harness_of(2, 300.0).force_cap == pytest.approx(0.38 * 300)
    single = Recipe.from_dict({"mode": "assisted", "planner": QUICK | {"attempts": 1}})
    assert single.harness_of(0, 30.0).force_cap == pytest.approx(0.38 * 30)
    assert Recipe.for_mode("assisted").harness.force_cap <= ASSISTED_CAP


@pytest.mark.parametrize("harness", [{"force_cap": 0.41}, {"relative": False}, {"force_cap": None, "relative": False}])
def test_a_harness_that_carries_more_than_tier_1_allows_is_refused(harness: dict[str, Any]) -> None:
    with pytest.raises(RecipeRefused, match=r"at most 0\.4"):
        Recipe.from_dict({"mode": "assisted", "harness": harness})


def test_an_uncapped_harness_is_refused() -> None:
    with pytest.raises(RecipeRefused, match=r"at most 0\.4"):
        Recipe.from_dict({"mode": "assisted", "harness": {"force_cap": None}})


def test_recipes_of_other_modes_have_the_keys_that_they_had() -> None:
    assert set(Recipe.for_mode("rollout").to_dict()["harness"]) == {"height_kp", "height_kd", "force_cap", "orient_gate"}
    assert Recipe.for_mode("assisted").to_dict()["harness"]["relative"] is True
    recipe = Recipe.for_mode("assisted", seed=3)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.for_mode("auto", seed=3).stage("assisted") == recipe


# The tier


@pytest.mark.parametrize("profile", GATE_PROFILES)
def test_nothing_assisted_is_tier_0(profile: str) -> None:
    """Whatever the figures are: with those that are Tier 0 in mode tracked, the mode alone decides."""
    metrics: dict[str, float | int | None] = {metric.name: 0.0 for metric in METRICS}
    metrics |= {"finite_frame_rate": 1.0, "mean_sum_fn_over_mg": 1.0, "contact_rate": 0.6, "height_std": 0.005}
    metrics |= {"height_min": 0.45, "height_max": 0.46, "speed_ratio": 1.0, "contact_agreement": 1.0, "clip_path_ratio": 1.0}
    tracked, assisted = (
        classify(metrics, GATE_PROFILES[profile], mode, height_range=(0.35, 0.55)) for mode in ("tracked", "assisted")
    )
    assert tracked.tier == Tier.TIER_0, tracked.tier_reason
    assert assisted.tier == Tier.TIER_1
    assert "mode assisted may hold the robot up, so it is Tier 1 at best" in assisted.tier_reason
    assert [gate.name for gate in assisted.gates if not gate.passed] == ["mode"]


def test_a_clip_on_its_own_feet_comes_before_an_assisted_one_and_that_before_a_forced_one() -> None:
    orders = [merit_order(1, mode, 0) for mode in ("tracked", "assisted", "teacher_forced")]
    assert orders == sorted(orders)
    assert len(set(orders)) == 3


# The simulation


def test_the_rollout_is_what_the_planner_saw_force_by_force(robot: Robot, clip: Conditioned) -> None:
    branch = Branch(robot, clip, ASSISTED, clip.initial_qvel, (0, 2, 0), 1)
    branch.advance(clip.num_frames, lambda _: None)
    rollout = generate(robot, [clip], ASSISTED, attempt=2, plans=[Plan(branch.controls(), None, 0.0)])[0]
    assert np.array_equal(rollout.qpos[-1], branch.data.qpos)
    assert np.array_equal(rollout.qvel[-1], branch.data.qvel)
    harness, targets = ASSISTED.harness_of(2, robot.mg), harness_targets(clip.root_pos, ASSISTED)
    states = zip(
        targets.tolist(),
        np.concatenate([rollout.initial_qpos[None], rollout.qpos[:-1]]).tolist(),
        np.concatenate([rollout.initial_qvel[None], rollout.qvel[:-1]]).tolist(),
        strict=True,
    )
    assert rollout.stab_force.tolist() == [harness_force(harness, z, q[2], v[2], q[3:7]) for z, q, v in states]
    assert np.abs(rollout.stab_force).max() > 0.0
    assert np.abs(rollout.stab_force).max() <= 0.38 * robot.mg


def test_it_replays_bit_for_bit_and_depends_on_no_thread(robot: Robot, clip: Conditioned) -> None:
    first, second = (generate(robot, [clip], ASSISTED, attempt=1, nthread=threads)[0] for threads in (1, 2))
    for name, array in first.arrays().items():
        assert np.array_equal(array, second.arrays()[name]), name
    qpos, qvel = replay(robot, first, ASSISTED)
    assert np.array_equal(qpos, first.qpos)
    assert np.array_equal(qvel, first.qvel)
    stronger = generate(robot, [clip], ASSISTED, attempt=2)[0]
    assert not np.array_equal(stronger.stab_force, first.stab_force)
    assert not np.any(generate(robot, [clip], ASSISTED, attempt=0)[0].stab_force)


# Scoring


def judging(monkeypatch: pytest.MonkeyPatch, tiers: dict[str, list[int]]) -> None:
    """Let the rollouts of each mode have these tiers, one after the other."""
    judge, remaining = module.judge, {mode: list(values) for mode, values in tiers.items()}

    def fixed(rollout: Any, *args: Any) -> Any:
        verdict = judge(rollout, *args)
        tier = Tier(remaining[rollout.recipe.mode].pop(0))
        return dataclasses.replace(verdict, classification=dataclasses.replace(verdict.classification, tier=tier))

    monkeypatch.setattr(module, "judge", fixed)


def test_the_first_attempt_that_stays_up_has_harness_enough(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    judging(monkeypatch, {"assisted": [-1, 1]})
    result = score([walk(10)], robot, ASSISTED)[0]
    assert [attempt.attempt for attempt in result.attempts] == [0, 1]
    assert result.provenance["attempt"] == 1
    assert result.tier == Tier.TIER_1


def test_auto_assists_what_neither_stands_nor_can_be_tracked(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    judging(monkeypatch, {"rollout": [-1], "tracked": [-1], "assisted": [-1, 1]})
    result = score([walk(10)], robot, AUTO)[0]
    assert result.auto is not None
    assert [tried.rollout.recipe.mode for tried in result.auto.tried] == ["rollout", "tracked", "assisted"]
    assert result.auto.shown == 2
    # Mode tracked has tried it without a harness.
    assert [attempt.attempt for attempt in result.attempts] == [1, 2]


def test_auto_does_not_assist_what_stands_on_its_own(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    judging(monkeypatch, {"rollout": [-1], "tracked": [1]})
    result = score([walk(10)], robot, AUTO)[0]
    assert result.auto is not None
    assert [tried.rollout.recipe.mode for tried in result.auto.tried] == ["rollout", "tracked"]
