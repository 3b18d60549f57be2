"""Buckets of physics, and clips compared in them, on the real physics."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amp_core.errors import RecipeRefused
from amp_core.formats import Motion, read_motion
from amp_core.motion import condition
from amp_core.motions import bundled_motions
from amp_core.randomization import DEFAULT_FACTORS, buckets, compare
from amp_core.recipe import PhysicsScale, Planner, Recipe
from amp_core.robot import Robot
from amp_core.rollout import generate
from amp_core.scoring import score

SLIPPERY = PhysicsScale(friction=0.7)
QUICK = Planner(samples=16, first_rounds=1, horizon_sec=0.2, attempts=1, branches=1)
"""Plans badly, and in no time."""


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


@pytest.fixture(scope="module")
def motions() -> dict[str, Motion]:
    wanted = ("walk", "side_step", "squat")
    return {path.stem: read_motion(path, name=path.stem) for path in bundled_motions() if path.stem in wanted}


def cut(motion: Motion, frames: int) -> Motion:
    return replace(
        motion, root_pos=motion.root_pos[:frames], root_rot=motion.root_rot[:frames], dof_pos=motion.dof_pos[:frames]
    )


factor = st.floats(0.1, 10.0, allow_nan=False)


@given(st.builds(PhysicsScale, friction=factor, mass=factor, damping=factor))
def test_a_scale_is_read_back_from_its_name(scale: PhysicsScale) -> None:
    assert PhysicsScale.parse(scale.name) == scale


@pytest.mark.parametrize(
    ("text", "scale", "name"),
    [
        ("canonical", PhysicsScale(), "canonical"),
        ("friction=1,mass=1.0", PhysicsScale(), "canonical"),
        (" mass=1.10 , friction=0.7", PhysicsScale(friction=0.7, mass=1.1), "friction=0.7,mass=1.1"),
        ("damping=2", PhysicsScale(damping=2.0), "damping=2"),
    ],
)
def test_names(text: str, scale: PhysicsScale, name: str) -> None:
    assert PhysicsScale.parse(text) == scale
    assert scale.name == name


@pytest.mark.parametrize(
    "text", ["", "friction", "friction=", "friction=a", "grip=1", "mass=1,mass=2", "friction=0", "mass=nan"]
)
def test_what_names_no_scale_is_refused(text: str) -> None:
    with pytest.raises(RecipeRefused) as caught:
        PhysicsScale.parse(text)
    assert str(caught.value.key).startswith("physics")


def test_one_quantity_at_a_time_or_all_combinations() -> None:
    names = ["canonical", "friction=0.7", "friction=1.3", "mass=0.9", "mass=1.1", "damping=0.7", "damping=1.3"]
    assert [scale.name for scale in buckets()] == names
    assert {name: factors for name, factors in DEFAULT_FACTORS.items() if 1.0 not in factors} == {}
    assert [scale.name for scale in buckets([0.7, 0.7], [1.1])] == ["canonical", "friction=0.7", "mass=1.1"]
    grid = ["canonical", "friction=0.7", "mass=1.1", "friction=0.7,mass=1.1"]
    assert [scale.name for scale in buckets([0.7], [1.1], grid=True)] == grid
    assert len(buckets(grid=True)) == 27
    with pytest.raises(RecipeRefused, match="out of range"):
        buckets(friction=[0.0])


def test_a_bucket_is_scored_as_if_it_were_alone(robot: Robot, motions: dict[str, Motion]) -> None:
    both = [motions["walk"], motions["squat"]]
    found = compare(both, robot, Recipe.for_mode("rollout"), [SLIPPERY], nthread=2)
    assert [scale.name for scale in found.buckets] == ["canonical", "friction=0.7"]
    for i, scale in enumerate(found.buckets):
        for clip, alone in zip(found.clips, score(both, robot, Recipe.for_mode("rollout", physics=scale)), strict=True):
            here = clip.outcomes[i]
            assert (here.tier, here.tier_reason, here.quality_metrics) == (alone.tier, alone.tier_reason, alone.quality_metrics)
            assert here.recipe_digest == alone.rollout.recipe.digest
            windows = sum(one.stop - one.start for one in alone.segments)
            assert here.tier_0_frames == (alone.frames if alone.tier == 0 else windows)


def test_shares_and_what_stays(robot: Robot, motions: dict[str, Motion]) -> None:
    """The bundled walk falls on a slippery floor, and the squat, whose feet never leave the ground, is Tier 1 everywhere."""
    found = compare([motions["walk"], motions["squat"]], robot, Recipe.for_mode("rollout"), [SLIPPERY], nthread=2)
    walk, squat = found.clips
    own, slippery = walk.outcomes
    assert (own.tier, own.share, own.stays, own.ranges) == (0, 1.0, 1.0, ((0, 400),))
    assert slippery.tier == -1
    assert 0.5 < slippery.share < 0.9
    assert slippery.stays == slippery.share, "all of it was Tier 0 before"
    assert slippery.tier_0_sec == pytest.approx(slippery.tier_0_frames * robot.control_dt)
    assert [(one.tier, one.share, one.stays) for one in squat.outcomes] == [(1, 0.0, None)] * 2
    first, second = found.sums()
    assert (first.clips_by_tier, first.stays) == ({0: 1, 1: 1, -1: 0}, 1.0)
    assert first.share == pytest.approx(400 / (400 + squat.frames))
    assert (second.clips_by_tier, second.stays) == ({0: 0, 1: 1, -1: 1}, slippery.share)
    assert second.share == pytest.approx(slippery.tier_0_frames / (400 + squat.frames))
    told = found.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert [bucket["name"] for bucket in told["clips"][0]["buckets"]] == ["canonical", "friction=0.7"]
    assert told["clips"][0]["buckets"][1]["share"] == slippery.share
    assert told["clips"][0]["buckets"][1]["replay"] is None
    assert told["buckets"][1]["physics"] == {"friction": 0.7, "mass": 1.0, "damping": 1.0}


def test_what_is_tier_0_elsewhere_does_not_stay(robot: Robot, motions: dict[str, Motion]) -> None:
    """A clip may gain frames in a bucket that it did not have before: those count for its share alone."""
    from amp_core.randomization import ClipBuckets, Comparison, Outcome

    def outcome(start: int, stop: int, stays: float | None) -> Outcome:
        count = stop - start
        return Outcome("rollout", -1, "", count, count * 0.02, count / 100, stays, ((start, stop),), {}, "sha256:0")

    clip = ClipBuckets("clip", "sha256:0", 100, 2.0, (outcome(0, 40, 1.0), outcome(20, 90, 0.5)))
    recipe = Recipe.for_mode("rollout")
    total = Comparison("robot", "sha256:0", recipe, (recipe.physics, SLIPPERY), (clip,)).sums()[1]
    assert (total.share, total.stays) == (0.7, 0.5)
    assert total.tier_0_sec == pytest.approx(1.4)


def test_replaying_open_loop_controls_is_simulating_again(robot: Robot, motions: dict[str, Motion]) -> None:
    found = compare([cut(motions["walk"], 60)], robot, Recipe.for_mode("rollout"), [SLIPPERY], replay=True)
    assert found.clips[0].replayed == found.clips[0].outcomes
    assert found.sums(replayed=True) == found.sums()
    assert found.to_dict()["clips"][0]["buckets"][1]["replay"]["share"] == found.clips[0].outcomes[1].share


def test_a_plan_is_replayed_in_other_physics_as_it_was_made(robot: Robot, motions: dict[str, Motion]) -> None:
    motion = cut(motions["walk"], 40)
    recipe = replace(Recipe.for_mode("tracked"), planner=QUICK)
    told: list[float] = []
    found = compare([motion], robot, recipe, [SLIPPERY], replay=True, progress=lambda share, _: told.append(share))
    clip = found.clips[0]
    assert clip.replayed[0] == clip.outcomes[0], "in its own physics a plan does what it did"
    assert clip.replayed[1].quality_metrics != clip.outcomes[1].quality_metrics, "planned anew is another plan"
    assert clip.replayed[1].recipe_digest == clip.outcomes[1].recipe_digest
    assert told == sorted(told)
    assert told[-1] == 1.0

    conditioned = condition(motion, robot)
    [made] = generate(robot, [conditioned], recipe)
    [again] = generate(robot, [conditioned], replace(recipe, physics=SLIPPERY), plans=[made.plan])
    assert np.array_equal(made.ctrl, again.ctrl)
    assert not np.array_equal(made.qpos, again.qpos)
