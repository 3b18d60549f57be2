"""Scoring: standing, falling and failing robots, and the object that everyone reads."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest

import amp_core.scoring as module
from amp_core.errors import RecipeRefused
from amp_core.features import feature_code_hash
from amp_core.formats import Motion
from amp_core.metrics import METRICS
from amp_core.motion import Conditioned, condition
from amp_core.recipe import Harness, PhysicsScale, Recipe
from amp_core.robot import Robot
from amp_core.scoring import score
from amp_core.verdict import judge

ROLLOUT = Recipe.for_mode("rollout")


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


def standing(robot: Robot, frames: int = 50, name: str = "stand") -> Motion:
    root_pos = np.zeros((frames, 3))
    root_pos[:, 2] = 0.47
    return Motion(
        name=name,
        fps=1 / robot.control_dt,
        root_pos=root_pos,
        root_rot=np.tile([0.0, 0.0, 0.0, 1.0], (frames, 1)),
        dof_pos=np.zeros((frames, len(robot.joint_names))),
        source_digest="sha256:" + "0" * 64,
        source_format="npz",
    )


def toppling(robot: Robot, frames: int = 150) -> Motion:
    """One hip swings forward and stays there; the robot falls, and then lies still for two seconds."""
    motion = standing(robot, frames, "topple")
    dof_pos = np.array(motion.dof_pos)
    dof_pos[:, robot.joint_names.index("left_hip_pitch")] = np.minimum(1.2, 0.06 * np.arange(frames))
    return dataclasses.replace(motion, dof_pos=dof_pos)


@pytest.mark.parametrize("mass", [1.0, 1.3])
def test_standing_still_carries_its_own_weight(robot: Robot, mass: float) -> None:
    recipe = dataclasses.replace(ROLLOUT, harness=Harness.none(), physics=PhysicsScale(mass=mass))
    found = score([standing(robot, 100)], robot, recipe)[0]
    assert found.rollout.sum_fn_per_frame[50:].mean() / (robot.mg * mass) == pytest.approx(1.0, abs=2e-3)
    assert found.quality_metrics["left_foot_contact_rate"] == 1.0
    assert found.quality_metrics["fell_at_frame"] is None
    # A robot that never lifts a foot is no walking reference: valid, but not Tier 0.
    assert found.tier == 1
    assert "contact_rate 1 is outside [0.3, 0.95]" in found.tier_reason


@pytest.mark.parametrize("mode", ["rollout", "teacher_forced"])
def test_a_robot_on_the_floor_is_rejected_though_its_feet_carry_weight(robot: Robot, mode: str) -> None:
    motion = toppling(robot)
    recipe = dataclasses.replace(Recipe.for_mode(mode), harness=Harness.none())
    if mode == "teacher_forced":
        # The clip itself leans ever further: its poses are forced, so the robot leans as well.
        half = np.minimum(0.65, 0.01 * np.arange(len(motion.root_pos)))
        zeros = np.zeros_like(half)
        lying = np.stack([zeros, np.sin(half), zeros, np.cos(half)], axis=1)
        motion = dataclasses.replace(motion, root_rot=lying)
    found = score([motion], robot, recipe)[0]
    assert found.tier == -1
    assert found.quality_metrics["fell_at_frame"] is not None
    assert "max_tilt_deg" in found.tier_reason
    assert all(segment.stop <= found.quality_metrics["fell_at_frame"] for segment in found.segments)  # type: ignore[operator]
    if mode == "rollout":
        assert "height_min" in found.tier_reason
        assert "nonfoot_contact_rate" in found.tier_reason
        # It lies there and its feet still carry a share of the weight.
        assert found.quality_metrics["mean_sum_fn_over_mg"] > 0.3  # type: ignore[operator]


def test_the_same_load_with_a_knee_on_the_floor_is_rejected(robot: Robot) -> None:
    found = score([standing(robot)], robot, ROLLOUT)[0]
    lying = dataclasses.replace(found.rollout, nonfoot_contact=np.ones(50, dtype=bool))
    verdict = judge(lying, robot)
    assert verdict.quality_metrics["mean_sum_fn_over_mg"] == found.quality_metrics["mean_sum_fn_over_mg"]
    assert verdict.classification.tier == -1


def test_the_object_is_json_and_complete(robot: Robot) -> None:
    found = score([standing(robot)], robot, ROLLOUT)[0]
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert {
        "name",
        "source_digest",
        "frames",
        "duration_sec",
        "mode",
        "tier",
        "tier_reason",
        "gates",
        "quality_metrics",
        "segments",
        "ingest",
        "provenance",
        "wall_sec",
        "contact_warnings",
    } <= set(facts)
    assert facts["frames"] == 50
    assert facts["duration_sec"] == pytest.approx(1.0)
    assert list(facts["quality_metrics"]) == [metric.name for metric in METRICS]
    assert {"name", "value", "threshold", "passed"} <= set(facts["gates"][0])
    provenance = facts["provenance"]
    assert provenance["recipe_digest"] == ROLLOUT.digest
    assert Recipe.from_dict(provenance["recipe"]) == ROLLOUT
    assert provenance["robot_digest"] == robot.digest
    assert provenance["feature_code_hash"] == feature_code_hash()
    assert provenance["gate_profile"] == "amp-0.12"
    assert provenance["harness_params"]["force_cap"] == 4.0
    assert {warning["kind"] for warning in facts["contact_warnings"]} >= {"always_on", "all_feet_grounded"}


def test_a_clip_that_blows_up_is_rejected_with_the_frame(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(motion: Motion, *rest: object) -> Conditioned:
        clip = condition(motion, robot)
        dof_pos = np.array(clip.dof_pos)
        if motion.name == "bad":
            dof_pos[30, 0] = np.nan
        return dataclasses.replace(clip, dof_pos=dof_pos)

    monkeypatch.setattr(module, "condition", poisoned)
    good, bad = score([standing(robot), standing(robot, name="bad")], robot, ROLLOUT)
    assert good.tier == 1
    assert bad.tier == -1
    assert "finite_frame_rate 0.6 is below 1" in bad.tier_reason
    assert "solver_warnings 1 is not 0" in bad.tier_reason
    assert bad.tier_reason.startswith("Rejected: MuJoCo warned at frame 30: BADCTRL; finite_frame_rate")
    assert "frame 30" not in good.tier_reason
    facts = bad.to_dict()
    json.dumps(facts, allow_nan=False)
    assert facts["failure"] == {"frame": 30, "reason": "MuJoCo warned at frame 30: BADCTRL", "warnings": {"BADCTRL": 1}}
    assert (facts["frames"], facts["simulated_frames"]) == (50, 30)


def exported(found: module.Score) -> bytes:
    target = io.BytesIO()
    found.export(target)
    return target.getvalue()


def test_the_export_is_the_same_bytes_alone_in_a_batch_and_on_two_threads(robot: Robot, tmp_path: Path) -> None:
    motions = [standing(robot), toppling(robot, 80)]
    alone = [score([motion], robot, ROLLOUT)[0] for motion in motions]
    together = score(motions, robot, ROLLOUT, nthread=2)
    for a, b in zip(alone, together, strict=True):
        assert exported(a) == exported(b)
        facts, others = a.to_dict(), b.to_dict()
        del facts["wall_sec"], others["wall_sec"]
        assert facts == others
    alone[0].export(tmp_path / "stand.npz")
    assert (tmp_path / "stand.npz").read_bytes() == exported(alone[0])
    with np.load(tmp_path / "stand.npz", allow_pickle=False) as archive:
        assert archive["features"].shape == (50, 27)
        assert archive["features"].dtype == np.float32
        np.testing.assert_array_equal(archive["stab_force_per_frame"], np.abs(archive["stab_force"]))


def test_progress_ends_at_one(robot: Robot) -> None:
    seen: list[tuple[float, str]] = []
    score([standing(robot)], robot, ROLLOUT, progress=lambda share, text: seen.append((share, text)))
    assert seen[-1] == (1.0, "scored")
    assert [share for share, _ in seen] == sorted(share for share, _ in seen)


def test_an_unknown_gate_profile_is_refused_before_the_work(robot: Robot) -> None:
    with pytest.raises(RecipeRefused, match="amp-9"):
        score([standing(robot)], robot, dataclasses.replace(ROLLOUT, gate_profile="amp-9"))


def test_another_releases_generator_is_refused_before_the_work(robot: Robot) -> None:
    """Its results would say that they were made by a code that did not make them."""
    with pytest.raises(RecipeRefused, match=r"0\.1") as refused:
        score([standing(robot)], robot, dataclasses.replace(ROLLOUT, generator_version="0.1"))
    assert refused.value.key == "generator_version"


def test_no_motions_no_scores(robot: Robot) -> None:
    assert score([], robot, ROLLOUT) == []
