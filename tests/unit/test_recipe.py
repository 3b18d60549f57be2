"""Recipes: one value, one digest; nothing odd gets in."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amp_core.errors import RecipeRefused
from amp_core.recipe import MODES, Harness, PhysicsScale, Planner, Recipe
from amp_core.robot import Robot


def test_the_usual_recipes_have_the_seeds_harness() -> None:
    rollout, forced = Recipe.for_mode("rollout"), Recipe.for_mode("teacher_forced")
    assert rollout.harness == Harness(60.0, 10.0, 4.0, 0.436)
    assert (forced.harness.height_kp, forced.harness.height_kd, forced.harness.force_cap) == (500.0, 50.0, None)
    assert rollout.force_threshold == 1.0
    assert rollout.initial_velocity == "from_clip"


@pytest.mark.parametrize("mode", MODES)
def test_a_recipe_survives_json(mode: str) -> None:
    recipe = Recipe.for_mode(mode, seed=7, physics=PhysicsScale(0.8, 1.1, 2))
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert again.digest == recipe.digest


def test_every_setting_changes_the_digest() -> None:
    usual = Recipe.for_mode("rollout")
    others = [
        Recipe.for_mode("teacher_forced"),
        Recipe.for_mode("rollout", seed=1),
        dataclasses.replace(usual, physics=PhysicsScale(friction=0.9)),
        dataclasses.replace(usual, physics=PhysicsScale(mass=0.9)),
        dataclasses.replace(usual, physics=PhysicsScale(damping=0.9)),
        dataclasses.replace(usual, harness=Harness.none()),
        dataclasses.replace(usual, harness=dataclasses.replace(usual.harness, height_kp=61)),
        dataclasses.replace(usual, harness=dataclasses.replace(usual.harness, height_kd=11)),
        dataclasses.replace(usual, harness=dataclasses.replace(usual.harness, force_cap=5)),
        dataclasses.replace(usual, harness=dataclasses.replace(usual.harness, force_cap=None)),
        dataclasses.replace(usual, harness=dataclasses.replace(usual.harness, orient_gate=0.4)),
        dataclasses.replace(usual, gate_profile="other"),
        dataclasses.replace(usual, generator_version="0.11.0"),
        dataclasses.replace(usual, force_threshold=2),
        dataclasses.replace(usual, initial_velocity="zero"),
        Recipe.for_mode("tracked"),
        Recipe.from_dict({"mode": "tracked", "planner": {"attempt_growth": 1.5}}),
    ]
    digests = [recipe.digest for recipe in (usual, *others)]
    assert len(set(digests)) == len(digests)
    assert all(digest.startswith("sha256:") and len(digest) == 71 for digest in digests)


def test_equal_values_have_equal_digests_however_they_were_written() -> None:
    spelled = Recipe.from_dict({"mode": "rollout", "harness": {"force_cap": 4, "height_kp": 60}, "physics": {"mass": 1}})
    assert spelled.digest == Recipe.for_mode("rollout").digest
    zero = dataclasses.replace(spelled, harness=dataclasses.replace(spelled.harness, height_kd=-0.0))
    assert zero.digest == dataclasses.replace(spelled, harness=dataclasses.replace(spelled.harness, height_kd=0)).digest


def test_what_a_partial_recipe_leaves_out_is_the_modes_usual_value() -> None:
    forced = Recipe.from_dict({"mode": "teacher_forced", "harness": {"force_cap": 20.0}})
    assert forced.harness == Harness(500.0, 50.0, 20.0, 0.436)


@pytest.mark.parametrize("mode", ["rollout", "tracked"])
def test_auto_scores_under_the_usual_recipes_of_the_modes_that_it_comes_to(mode: str) -> None:
    physics = PhysicsScale(mass=1.1)
    auto = Recipe.for_mode("auto", seed=3, physics=physics)
    assert auto.stage(mode) == Recipe.for_mode(mode, seed=3, physics=physics)
    assert auto.digest != auto.stage(mode).digest


def test_autos_own_settings_reach_the_mode_that_has_them() -> None:
    auto = Recipe.from_dict(
        {"mode": "auto", "harness": {"force_cap": 0}, "planner": {"samples": 32}, "initial_velocity": "zero"}
    )
    assert Recipe.from_dict(auto.to_dict()) == auto
    plain, tracked = auto.stage("rollout"), auto.stage("tracked")
    assert (plain.harness.force_cap, plain.planner, plain.initial_velocity) == (0.0, None, "zero")
    assert tracked.harness == Harness.none()
    assert tracked.planner is not None
    assert (tracked.planner.samples, tracked.initial_velocity) == (32, "zero")


@pytest.mark.parametrize("mode", ["auto", "tracked"])
def test_a_mode_that_plans_needs_a_planner(mode: str) -> None:
    with pytest.raises(RecipeRefused, match="needs a planner"):
        dataclasses.replace(Recipe.for_mode(mode), planner=None)


@pytest.mark.parametrize(
    ("facts", "key"),
    [
        ({}, "mode"),
        ({"mode": "dance"}, "mode"),
        ({"mode": 3}, "mode"),
        ({"mode": "rollout", "colour": "red"}, "recipe"),
        ({"mode": "rollout", "harness": {"kp": 1}}, "harness"),
        ({"mode": "rollout", "harness": None}, "harness"),
        ({"mode": "rollout", "harness": {"height_kp": "60"}}, "harness.height_kp"),
        ({"mode": "rollout", "harness": {"height_kp": None}}, "harness.height_kp"),
        ({"mode": "rollout", "harness": {"force_cap": -1}}, "harness.force_cap"),
        ({"mode": "rollout", "harness": {"orient_gate": 4}}, "harness.orient_gate"),
        ({"mode": "rollout", "physics": {"mass": 0}}, "physics.mass"),
        ({"mode": "rollout", "physics": {"mass": 11}}, "physics.mass"),
        ({"mode": "rollout", "physics": {"friction": float("nan")}}, "physics.friction"),
        ({"mode": "rollout", "physics": {"damping": float("inf")}}, "physics.damping"),
        ({"mode": "rollout", "physics": [1, 1, 1]}, "physics"),
        ({"mode": "rollout", "seed": -1}, "seed"),
        ({"mode": "rollout", "seed": 1.0}, "seed"),
        ({"mode": "rollout", "seed": True}, "seed"),
        ({"mode": "rollout", "seed": 2**53}, "seed"),
        ({"mode": "rollout", "planner": {"samples": 64}}, "planner"),
        ({"mode": "auto", "planner": {"samples": 10}}, "planner.samples"),
        ({"mode": "auto", "planner": {"branches": 0}}, "planner.branches"),
        ({"mode": "auto", "planner": {"branches": 1.5}}, "planner.branches"),
        ({"mode": "rollout", "gate_profile": ""}, "gate_profile"),
        ({"mode": "rollout", "gate_profile": 7}, "gate_profile"),
        ({"mode": "rollout", "force_threshold": True}, "force_threshold"),
        ({"mode": "rollout", "initial_velocity": "fast"}, "initial_velocity"),
    ],
)
def test_a_bad_value_is_refused_by_name(facts: dict[str, object], key: str) -> None:
    with pytest.raises(RecipeRefused) as refusal:
        Recipe.from_dict(facts)
    assert refusal.value.key == key
    assert refusal.value.expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([field.name for field in dataclasses.fields(Recipe)]), json_values)
def test_any_json_gives_a_recipe_or_a_refusal(key: str, value: object) -> None:
    try:
        recipe = Recipe.from_dict({"mode": "rollout", key: value})
    except RecipeRefused as refusal:
        assert len(str(refusal)) < 500  # noqa: PT017 (either way is right)
    else:
        json.dumps(recipe.to_dict(), allow_nan=False)
        assert Recipe.from_dict(recipe.to_dict()).digest == recipe.digest


def test_the_harness_can_be_off() -> None:
    assert Harness.none().is_off
    assert not Harness.assist().is_off
    assert not Harness.strong().is_off


@pytest.mark.parametrize("mode", ["rollout", "teacher_forced", "tracked"])
def test_the_harness_acts_by_the_robots_weight_and_on_wildrobot_as_the_recipe_says(mode: str) -> None:
    recipe = Recipe.for_mode(mode)
    wildrobot, g1 = Robot.load("wildrobot"), Robot.load("g1")
    assert recipe.harness_of(0, wildrobot.mg) == recipe.harness
    assert recipe.harness_params(wildrobot.mg) == recipe.to_dict()["harness"]
    harness = recipe.harness_of(0, g1.mg)
    assert harness.to_dict() == recipe.harness_params(g1.mg)
    for key in ("height_kp", "height_kd", "force_cap"):
        number = getattr(recipe.harness, key)
        assert getattr(harness, key) == (None if number is None else pytest.approx(number * g1.mg / wildrobot.mg, rel=2e-3))
    assert harness.orient_gate == recipe.harness.orient_gate


def test_a_bucket_changes_the_robot_and_not_the_harness_in_newtons() -> None:
    mg = Robot.load("wildrobot").mg
    heavy = Recipe.for_mode("rollout", physics=PhysicsScale(mass=1.1))
    assert heavy.harness_of(0, 1.1 * mg) == Harness.assist()
    assisted = Recipe.for_mode("assisted", physics=PhysicsScale(mass=1.1))
    assert assisted.harness_of(3, 1.1 * mg).force_cap == pytest.approx(0.38 * 1.1 * mg)
    assert assisted.harness_params(1.1 * mg) == assisted.to_dict()["harness"], "shares, whatever the robot"


def test_further_attempts_get_more_samples_up_to_a_bound() -> None:
    planner = Planner(samples=64, attempts=3, attempt_growth=2.0)
    assert [planner.samples_of(attempt) for attempt in range(3)] == [64, 128, 256]
    assert Planner(samples=4096, attempt_growth=8.0).samples_of(15) == 4096
    assert planner.effort == 7.0
    assert dataclasses.replace(planner, attempt_growth=1.0).effort == 3.0
    # Half the horizon twice as often is as much work; another branch is half as much again.
    assert dataclasses.replace(planner, horizon_sec=0.4, replan_sec=0.04).effort == pytest.approx(7.0)
    assert dataclasses.replace(planner, branches=3).effort == pytest.approx(10.5)
