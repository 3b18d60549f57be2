"""The environment: the generator's physics, the reference's states, the same on any number of threads."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from amp_core.formats import read_motion
from amp_core.motions import bundled_motions
from amp_core.recipe import Harness, PhysicsScale, Recipe
from amp_core.robot import Robot
from amp_core.rollout import Rollout, generate
from amp_core.rotations import pitch_roll_tilt
from amp_core.verify.environment import ACTION_SCALE, Environment, mean_pose, random_policy_rollout
from amp_core.verify.states import compute_features

TRILEG = str(Path(__file__).parents[2] / "robots" / "trileg" / "robot.yaml")


@cache
def robot() -> Robot:
    return Robot.load("wildrobot")


@cache
def walk(physics: PhysicsScale | None = None) -> Rollout:
    """The bundled walk without a harness, which the environment has none of."""
    from dataclasses import replace

    from amp_core.motion import condition

    path = next(path for path in bundled_motions() if path.stem == "walk")
    recipe = replace(Recipe.for_mode("rollout"), harness=Harness.none(), physics=physics or PhysicsScale())
    return generate(robot(), [condition(read_motion(path, name="walk"), robot())], recipe)[0]


def starts() -> tuple[np.ndarray, np.ndarray]:
    return walk().qpos[:200], walk().qvel[:200]


@pytest.mark.parametrize("scale", [PhysicsScale(), PhysicsScale(friction=0.7, mass=1.1)])
def test_recorded_controls_give_the_generators_rollout_again_bit_for_bit(scale):
    recorded = walk(scale)
    env = Environment(robot(), recorded.initial_qpos[None], recorded.initial_qvel[None], count=2, scale=scale)
    for k in range(120):
        env.step(np.tile(recorded.ctrl[k], (2, 1)))
        for world in range(2):
            assert np.array_equal(env.qpos[world], recorded.qpos[k])
            assert np.array_equal(env.qvel[world], recorded.qvel[k])
            assert np.array_equal(env.contacts[world], recorded.foot_contacts[k])


def test_features_of_states_are_the_rollouts_own():
    recorded = walk()
    found = compute_features(robot(), recorded.qpos, recorded.qvel, recorded.foot_contacts)
    assert np.array_equal(found, recorded.features)


def test_worlds_start_from_states_of_the_reference():
    qpos, qvel = starts()
    env = Environment(robot(), qpos, qvel, count=32, seed=3, starts_contacts=walk().foot_contacts[:200])
    rows = [int(np.flatnonzero((qpos == state).all(axis=1))[0]) for state in env.qpos]
    assert len(set(rows)) > 20
    assert np.array_equal(env.qvel, qvel[rows])
    assert np.array_equal(env.contacts, walk().foot_contacts[:200][rows])
    # Where nobody recorded contacts, forces in the state decide: alike but for the frames in which a contact begins or ends.
    measured = Environment(robot(), qpos, qvel, count=32, seed=3)
    assert np.array_equal(measured.qpos, env.qpos)
    assert (measured.contacts == env.contacts).mean() > 0.9
    assert 0.1 < measured.contacts.mean() < 0.9


def test_a_reset_leaves_nothing_behind():
    recorded = walk()
    env = Environment(robot(), recorded.initial_qpos[None], recorded.initial_qvel[None], count=2)
    for k in range(20):
        env.step(np.tile(recorded.ctrl[k + 7], (2, 1)))
    env.reset(np.array([True, False]))
    assert env.episodes.tolist() == [1, 0]
    assert env.age.tolist() == [0, 20]
    for k in range(30):
        env.step(np.tile(recorded.ctrl[k], (2, 1)))
        assert np.array_equal(env.qpos[0], recorded.qpos[k])
    assert not np.array_equal(env.qpos[1], recorded.qpos[29])


def test_a_fall_ends_an_episode_and_so_does_its_limit():
    qpos, qvel = starts()
    env = Environment(robot(), qpos, qvel, count=8, episode_frames=40)
    # Half of the robots stand with straight legs, the others bow until they fall.
    ctrl = np.zeros((8, robot().model.nu))
    ctrl[4:] = env.ctrl_high
    seen_fall = seen_limit = False
    for _ in range(60):
        done = env.step(ctrl)
        root = robot().root_qpos_adr
        tilt = np.degrees(pitch_roll_tilt(robot().root_rotation(env.qpos))[2])
        low, high = robot().height_range
        height = env.qpos[:, root + 2]
        assert np.array_equal(env.has_fallen(), (tilt > 60.0) | (height < low) | (height > high))
        assert np.array_equal(done, env.has_fallen() | env.truncated)
        assert not (env.truncated & env.has_fallen()).any()
        assert (env.age[env.truncated] >= 40).all()
        seen_fall |= bool(env.has_fallen().any())
        seen_limit |= bool(env.truncated.any())
        env.reset(done)
    assert seen_fall
    assert seen_limit


@pytest.mark.parametrize("angle_deg", [55.0, 65.0])
def test_a_lean_of_more_than_60_degrees_is_a_fall(angle_deg):
    qpos, qvel = (array[:1].copy() for array in starts())
    half = np.radians(angle_deg) / 2
    qpos[0, robot().root_qpos_adr + 3 : robot().root_qpos_adr + 7] = [np.cos(half), np.sin(half), 0.0, 0.0]
    env = Environment(robot(), qpos, qvel, count=1)
    assert env.has_fallen().tolist() == [angle_deg > 60.0]


@pytest.mark.parametrize("value", [np.nan, 1e20])
def test_a_state_that_is_not_finite_is_broken_and_seen_and_disturbs_no_other(value):
    qpos, qvel = starts()
    env, other = (Environment(robot(), qpos, qvel, count=4, seed=1) for _ in range(2))
    ctrl = np.tile(walk().ctrl[0], (4, 1))
    env.qvel[2, 0] = value
    done = env.step(ctrl)
    other.step(ctrl)
    assert done[2]
    assert env.broken.tolist() == [False, False, True, False]
    rest = [0, 1, 3]
    assert np.array_equal(env.qpos[rest], other.qpos[rest])
    env.reset(done)
    assert np.isfinite(env.qpos).all()
    assert not env.broken.any()
    # A warning that was raised once does not end later episodes.
    env.step(ctrl)
    assert not env.broken.any()


def test_controls_are_held_to_the_servos_range():
    qpos, qvel = starts()
    env, same = (Environment(robot(), qpos, qvel, count=2) for _ in range(2))
    assert np.isfinite(env.ctrl_high).all()
    env.step(np.full((2, robot().model.nu), 1e6))
    same.step(np.tile(same.ctrl_high, (2, 1)))
    assert np.array_equal(env.qpos, same.qpos)


def test_a_random_policys_rollout_has_the_asked_shape_and_moves_as_it_says():
    qpos, qvel = starts()
    found = random_policy_rollout(robot(), qpos, qvel, frames=3001, seed=5)
    model, layout = robot().model, robot().layout
    assert {key: array.shape for key, array in found.items()} == {
        "qpos": (3001, model.nq),
        "qvel": (3001, model.nv),
        "foot_contacts": (3001, len(robot().channels)),
        "features": (3001, layout.dim),
        "episode": (3001,),
    }
    assert found["features"].dtype == np.float32
    assert np.array_equal(found["features"], compute_features(robot(), found["qpos"], found["qvel"], found["foot_contacts"]))
    assert set(np.unique(found["foot_contacts"])) == {0.0, 1.0}
    assert np.isfinite(found["features"]).all()
    # Targets are Gaussian about the reference's mean pose; the joints follow with what the servos can do.
    joints = found["features"][:, layout.block("joint_pos").slice]
    assert np.abs(joints.mean(axis=0) - mean_pose(robot(), qpos)).max() < 0.2
    assert (joints.std(axis=0) < ACTION_SCALE).all()
    assert (joints.std(axis=0) > 0.02).all()
    # It falls, and starts again: rows of an episode follow each other, and in an episode time goes on.
    episode = found["episode"]
    assert (np.diff(episode) >= 0).all()
    assert episode[0] == 0
    assert len(np.unique(episode)) > 64
    moved = np.abs(np.diff(found["qpos"][:, 0]))
    within = np.diff(episode) == 0
    assert moved[within].max() < 0.1


def test_the_rollout_depends_on_the_seed_and_not_on_threads():
    qpos, qvel = starts()
    one, two = (random_policy_rollout(robot(), qpos, qvel, frames=640, seed=7, nthread=n) for n in (1, 2))
    for key in one:
        assert np.array_equal(one[key], two[key]), key
    other = random_policy_rollout(robot(), qpos, qvel, frames=640, seed=8)
    assert not np.array_equal(one["qpos"], other["qpos"])


def test_the_physics_scale_and_the_noise_are_used():
    qpos, qvel = starts()
    base = random_policy_rollout(robot(), qpos, qvel, frames=320)
    heavy = random_policy_rollout(robot(), qpos, qvel, frames=320, scale=PhysicsScale(mass=1.1))
    calm = random_policy_rollout(robot(), qpos, qvel, frames=320, action_std=0.05)
    deaf = random_policy_rollout(robot(), qpos, qvel, frames=320, force_threshold=1e9)
    assert not np.array_equal(base["qpos"], heavy["qpos"])
    columns = robot().layout.block("joint_vel").slice
    assert (calm["features"][:, columns].std(axis=0) < base["features"][:, columns].std(axis=0)).all()
    assert np.array_equal(base["qpos"], deaf["qpos"])
    assert not deaf["foot_contacts"].any()


def test_another_robot_works_too():
    trileg = Robot.load(TRILEG)
    data_q = trileg.model.qpos0.copy()
    data_q[trileg.root_qpos_adr + 2] = sum(trileg.height_range) / 2
    found = random_policy_rollout(trileg, data_q[None], np.zeros((1, trileg.model.nv)), frames=65, action_std=0.1)
    assert found["features"].shape == (65, trileg.layout.dim)
    assert np.isfinite(found["features"]).all()


def test_bad_starts_are_refused_with_what_was_expected():
    qpos, qvel = starts()
    with pytest.raises(ValueError, match=r"start states are \(200, 14\).*expected \(S, 15\)"):
        Environment(robot(), qpos[:, :-1], qvel)
    with pytest.raises(ValueError, match="at least one row"):
        Environment(robot(), qpos[:0], qvel[:0])
    bad = qvel.copy()
    bad[17, 2] = np.nan
    with pytest.raises(ValueError, match="start state 17 is not finite"):
        Environment(robot(), qpos, bad)
    with pytest.raises(ValueError, match=r"starts_contacts is \(3, 4\)"):
        Environment(robot(), qpos, qvel, starts_contacts=np.zeros((3, 4)))
    with pytest.raises(ValueError, match="at least 1"):
        random_policy_rollout(robot(), qpos, qvel, frames=0)


def test_it_is_numpy_and_mujoco_alone():
    code = "import sys, amp_core.verify.environment; sys.exit(any(name in sys.modules for name in ('jax', 'optax')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
