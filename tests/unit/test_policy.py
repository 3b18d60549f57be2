"""The policy side: the reference's features again, from observations; and contacts by forward kinematics."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import pickle
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from amp_core import features
from amp_core.dataset import ColumnStats
from amp_core.formats import read_motion
from amp_core.motions import bundled_motions, reading_options
from amp_core.policy import (
    AMPFeatureConfig,
    channel_heights,
    estimate_contacts,
    extract_amp_features,
    observe,
    observe_host,
)
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.scoring import score

ROOT = Path(__file__).parents[2]
TRILEG = str(ROOT / "tests" / "robots" / "trileg" / "robot.yaml")
ROBOTS = ["wildrobot", TRILEG]

extract = jax.jit(extract_amp_features, static_argnames=("config", "use_obs_joint_vel"))
heights = jax.jit(channel_heights, static_argnames="config")
observed = jax.jit(observe, static_argnames="config")

ODD = """
<mujoco model="odd">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.002"/>
  <asset><mesh name="wedge" vertex="-.1 -.05 0  .1 -.05 0  .1 .05 0  -.1 .05 0  0 0 .08  .02 .01 .05"/></asset>
  <worldbody>
    <geom name="ground" type="plane" size="0 0 1"/>
    <body name="stand" pos="0.4 0.1 0"/>
    <body name="base" pos="0 0 1" quat="0.9 0.1 -0.3 0.2">
      <freejoint/>
      <geom name="belly" type="sphere" size="0.11" pos="0.02 0.01 -0.03"/>
      <body name="upper" pos="0.1 0.2 -0.05" quat="0.6 -0.3 0.5 0.2">
        <joint name="swing" axis="1 2 -1" pos="0.03 -0.02 0.05" ref="0.4" range="-3 3"/>
        <joint name="twist" axis="0 -1 0.5" pos="-0.04 0.01 0.02" ref="-0.2" range="-3 3"/>
        <geom name="rod" type="capsule" fromto="0 0 0 0.05 0.02 -0.3" size="0.03"/>
        <body name="spacer" pos="0.05 0.02 -0.3" quat="0.8 0 0.6 0">
          <geom name="drum" type="cylinder" size="0.05 0.08" pos="0.01 0.03 0" quat="0.5 0.5 -0.5 0.5"/>
          <body name="lower" pos="0 0.02 -0.1" quat="0.7 0.1 0.1 0.7">
            <joint name="knee" axis="0 1 0" pos="0 0 0.02" range="-3 3"/>
            <geom name="egg" type="ellipsoid" size="0.04 0.09 0.06" pos="0 0 -0.1" quat="0.3 0.4 0.8 0.1"/>
            <geom name="wedge" type="mesh" mesh="wedge" pos="0.02 0 -0.2" quat="0.2 0.9 0.1 0.3"/>
            <geom name="brick" type="box" size="0.05 0.02 0.08" pos="-0.03 0.01 -0.25" quat="0.9 0.3 0.2 0.1"/>
            <geom name="slab" type="box" size="0.01 0.09 0.04" pos="0.05 -0.02 -0.2"/>
            <geom name="knob" type="sphere" size="0.02" pos="0 0 -0.34"/>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position joint="twist" kp="10"/><position joint="knee" kp="10"/><position joint="swing" kp="10"/>
  </actuator>
</mujoco>
"""
ODD_SPEC = """
name: odd
model: odd.xml
joints: [knee, swing, twist]
contact_channels: {belly: [belly], rod: [rod], drum: [drum], egg: [egg], wedge: [wedge], sole: [brick, slab, knob]}
height_range: [0.1, 2.0]
"""


@cache
def loaded(name: str) -> Robot:
    return Robot.load(name)


@cache
def config_of(name: str) -> AMPFeatureConfig:
    return AMPFeatureConfig.for_robot(loaded(name))


@pytest.fixture
def odd(tmp_path: Path) -> Robot:
    (tmp_path / "odd.xml").write_text(ODD)
    (tmp_path / "robot.yaml").write_text(ODD_SPEC)
    return Robot.load(tmp_path)


def states(robot: Robot, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States in any attitude, with everything moving: (count, nq) and (count, nv)."""
    rng = np.random.default_rng(seed)
    qpos, qvel = rng.normal(size=(count, robot.model.nq)), 2 * rng.normal(size=(count, robot.model.nv))
    quat = slice(robot.root_qpos_adr + 3, robot.root_qpos_adr + 7)
    qpos[:, quat] /= np.linalg.norm(qpos[:, quat], axis=1, keepdims=True)
    return qpos, qvel


def reference_features(robot: Robot, qpos: np.ndarray, qvel: np.ndarray, contacts: np.ndarray) -> np.ndarray:
    """What a rollout exports for these states."""
    q, v = robot.root_qpos_adr, robot.root_qvel_adr
    rotation = qpos[:, q + 3 : q + 7][:, [1, 2, 3, 0]]
    return features.extract(
        joint_pos=qpos[:, robot.qpos_adr],
        joint_vel=qvel[:, robot.qvel_adr],
        root_rot=rotation,
        root_lin_vel=qvel[:, v : v + 3],
        root_ang_vel=features.body_to_world(rotation, qvel[:, v + 3 : v + 6]),
        root_height=qpos[:, q + 2],
        foot_contacts=contacts,
    )


def random_contacts(robot: Robot, count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2, (count, len(robot.channels))).astype(np.float32)


def about_z(angle: float, quat_wxyz: np.ndarray) -> np.ndarray:
    turned = np.empty(4)
    mujoco.mju_mulQuat(turned, np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)]), quat_wxyz)
    return turned


# --- Parity ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROBOTS)
def test_features_of_observations_are_the_references(name: str) -> None:
    robot, config = loaded(name), config_of(name)
    qpos, qvel = states(robot, 500)
    contacts = random_contacts(robot, 500)
    wanted = reference_features(robot, qpos, qvel, contacts)
    height = config.root_height(qpos)
    exact = extract(observe_host(config, qpos, qvel), config, height, None, 0.02, contacts, use_obs_joint_vel=True)
    assert exact.dtype == jnp.float32
    np.testing.assert_array_equal(exact, wanted)
    near = extract(observed(config, qpos, qvel), config, height, None, 0.02, contacts, use_obs_joint_vel=True)
    # Random attitudes include some whose x axis is nearly vertical, and there the heading magnifies rounding.
    np.testing.assert_allclose(near, wanted, atol=2e-4)
    assert np.abs(near - wanted).mean() < 1e-6


def test_features_of_a_rollout_are_its_own() -> None:
    robot, config = loaded("wildrobot"), config_of("wildrobot")
    motions = [read_motion(path, name=path.stem, **reading_options(path)) for path in bundled_motions() if path.stem == "walk"]
    (scored,) = score(motions, robot, Recipe.for_mode("rollout"))
    rollout = scored.rollout
    height = config.root_height(rollout.qpos)
    obs = observe_host(config, rollout.qpos, rollout.qvel)
    mine = extract(obs, config, height, None, robot.control_dt, rollout.foot_contacts, use_obs_joint_vel=True)
    np.testing.assert_array_equal(mine, rollout.features)
    obs = observed(config, rollout.qpos, rollout.qvel)
    mine = extract(obs, config, height, None, robot.control_dt, rollout.foot_contacts, use_obs_joint_vel=True)
    np.testing.assert_allclose(mine, rollout.features, atol=1e-5)
    # Contacts by kinematics: docs/benchmarks.md has 0.983 over the bundled motions that stay upright.
    estimated = np.asarray(extract(obs, config, height, None, 0.02, use_obs_joint_vel=True))[:, 23:]
    agreement = (estimated == rollout.foot_contacts).mean(axis=0)
    assert agreement.min() > 0.95, agreement


@pytest.mark.parametrize("name", ROBOTS)
def test_observations_are_what_mujoco_says(name: str) -> None:
    """Against MuJoCo's own frames and velocities, which share no code with ours."""
    robot, config = loaded(name), config_of(name)
    qpos, qvel = states(robot, 20)
    action = np.arange(20 * config.nu, dtype=np.float32).reshape(20, -1)
    made = observe_host(config, qpos, qvel, action)
    assert made.shape == (20, config.obs.dim)
    data, velocity = mujoco.MjData(robot.model), np.empty(6)
    for k in range(20):
        data.qpos, data.qvel = qpos[k], qvel[k]
        mujoco.mj_forward(robot.model, data)
        # Rotation, then translation, in the axes of the world.
        mujoco.mj_objectVelocity(robot.model, data, mujoco.mjtObj.mjOBJ_XBODY, robot.root_body, velocity, 0)
        matrix = data.xmat[robot.root_body].reshape(3, 3)
        yaw = np.arctan2(matrix[1, 0], matrix[0, 0])
        to_heading = np.array([[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        np.testing.assert_allclose(made[k, config.obs.up], matrix.T @ [0, 0, 1], atol=1e-6)
        np.testing.assert_allclose(made[k, config.obs.root_ang_vel], to_heading @ velocity[:3], atol=1e-5)
        np.testing.assert_allclose(made[k, config.obs.root_lin_vel], to_heading @ velocity[3:], atol=1e-5)
    np.testing.assert_array_equal(made[:, config.obs.joint_pos], qpos[:, robot.qpos_adr].astype(np.float32))
    np.testing.assert_array_equal(made[:, config.obs.joint_vel], qvel[:, robot.qvel_adr].astype(np.float32))
    np.testing.assert_array_equal(made[:, config.obs.prev_action], action)
    np.testing.assert_array_equal(observed(config, qpos, qvel, action)[:, config.obs.prev_action], action)


def test_the_seeds_indices() -> None:
    obs, layout = config_of("wildrobot").obs, config_of("wildrobot").layout
    assert (obs.up, obs.root_ang_vel, obs.root_lin_vel) == (slice(0, 3), slice(3, 6), slice(6, 9))
    assert (obs.joint_pos, obs.joint_vel, obs.prev_action) == (slice(9, 17), slice(17, 25), slice(25, 33))
    assert obs.dim == 33
    row = np.arange(100, 133, dtype=np.float32)
    made = extract(row, config_of("wildrobot"), 7.0, None, 0.02, np.array([0, 1, 1, 0]), use_obs_joint_vel=True)
    wanted = [*range(109, 117), *range(117, 125), 106, 107, 108, 103, 104, 105, 7, 0, 1, 1, 0]
    np.testing.assert_array_equal(made, wanted)
    assert layout.names == loaded("wildrobot").layout.names
    assert layout.is_canonical


def test_a_quaternion_and_its_negative_are_one_attitude() -> None:
    robot, config = loaded("wildrobot"), config_of("wildrobot")
    qpos, qvel = states(robot, 100)
    flipped = qpos.copy()
    flipped[:, 3:7] *= -1
    np.testing.assert_array_equal(observe_host(config, qpos, qvel), observe_host(config, flipped, qvel))
    np.testing.assert_array_equal(observed(config, qpos, qvel), observed(config, flipped, qvel))


@pytest.mark.parametrize("angle", [0.7, np.pi, -2.5])
def test_turning_the_world_changes_no_observation(angle: float) -> None:
    robot, config = loaded("wildrobot"), config_of("wildrobot")
    qpos, qvel = states(robot, 100)
    # Not those whose heading is hardly defined.
    level = np.abs(observe_host(config, qpos, qvel)[:, 0]) < 0.95
    qpos, qvel = qpos[level], qvel[level]
    turned_pos, turned_vel = qpos.copy(), qvel.copy()
    c, s = np.cos(angle), np.sin(angle)
    turned_pos[:, :2], turned_vel[:, :2] = qpos[:, :2] @ [[c, s], [-s, c]], qvel[:, :2] @ [[c, s], [-s, c]]
    turned_pos[:, 3:7] = [about_z(angle, quat) for quat in qpos[:, 3:7]]
    for see in (observe_host, observed):
        np.testing.assert_allclose(see(config, turned_pos, turned_vel), see(config, qpos, qvel), atol=1e-5)
    assert not np.allclose(turned_vel, qvel, atol=0.1)


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_with_the_nose_straight_up_or_down_the_heading_is_the_references(pitch: float) -> None:
    config = config_of("wildrobot")
    qpos, qvel = np.zeros(15), np.zeros(14)
    qpos[3:7] = about_z(0.4, np.array([np.cos(pitch / 2), 0, np.sin(pitch / 2), 0]))
    qvel[:6] = [1, 2, 3, 4, 5, 6]
    seen = observed(config, qpos, qvel)
    assert np.isfinite(seen).all()
    # The last bit of a vertical axis has no say here: the heading is the other axis', 0.4 rad.
    linear = np.array([np.cos(0.4) + 2 * np.sin(0.4), 2 * np.cos(0.4) - np.sin(0.4), 3])
    np.testing.assert_allclose(seen[config.obs.root_lin_vel], linear, atol=1e-5)
    np.testing.assert_allclose(observe_host(config, qpos, qvel), seen, atol=1e-5)


# --- Batches, jit, vmap ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROBOTS)
def test_batched_mapped_and_single_are_the_same(name: str) -> None:
    robot, config = loaded(name), config_of(name)
    qpos, qvel = states(robot, 24)
    before, dt = states(robot, 24, seed=3)[0][:, robot.qpos_adr], robot.control_dt
    obs, height = observe_host(config, qpos, qvel), config.root_height(qpos)

    def mine(obs: jax.Array, height: jax.Array, before: jax.Array) -> jax.Array:
        return extract(obs, config, height, before, dt)

    batch = mine(obs, height, before)
    assert batch.shape == (24, robot.layout.dim)
    mapped = jax.vmap(mine)(obs, height, before)
    single = [mine(obs[k], height[k], before[k]) for k in range(3)]
    cube = mine(obs.reshape(2, 3, 4, -1), height.reshape(2, 3, 4), before.reshape(2, 3, 4, -1))
    column = mine(obs, height[:, None], before)
    for other in (mapped, cube.reshape(24, -1), column):
        np.testing.assert_allclose(other, batch, rtol=1e-6)
    np.testing.assert_allclose(np.stack(single), batch[:3], rtol=1e-6)
    mapped = jax.vmap(lambda q, v: observed(config, q, v))(qpos, qvel)
    np.testing.assert_allclose(mapped, observed(config, qpos, qvel), atol=1e-6)


def test_equal_configs_are_one_static_argument() -> None:
    first, second = config_of("wildrobot"), AMPFeatureConfig.for_robot(loaded("wildrobot"))
    assert first is not second
    assert first == second
    assert hash(first) == hash(second)
    other = AMPFeatureConfig.for_robot(loaded("wildrobot"), drop_height=True)
    assert other not in {first, config_of(TRILEG)}
    compiled = jax.jit(lambda x, config: config.select(x), static_argnums=1)
    rows = np.zeros((2, 27), np.float32)
    assert [compiled(rows, config).shape for config in (first, second, other)] == [(2, 27), (2, 27), (2, 26)]
    assert compiled._cache_size() == 2


def test_a_config_travels_to_another_process() -> None:
    config = config_of("wildrobot")
    hash(config)
    payload = pickle.dumps(config)
    program = (
        "import pickle, sys; from amp_core.policy import AMPFeatureConfig; from amp_core.robot import Robot\n"
        "config = pickle.loads(sys.stdin.buffer.read())\n"
        "assert {config: 1}[AMPFeatureConfig.for_robot(Robot.load('wildrobot'))] == 1\n"
    )
    # The hash of a text is another in every process, and the config keeps its own.
    subprocess.run([sys.executable, "-c", program], input=payload, cwd=ROOT, check=True)


def test_a_config_is_the_same_after_json() -> None:
    for config in (config_of(TRILEG), AMPFeatureConfig.for_robot(loaded("wildrobot"), max_root_lin_vel=2.5)):
        copy = AMPFeatureConfig.from_json(config.to_json())
        assert (copy, hash(copy)) == (config, hash(config))
    with pytest.raises(TypeError, match="surplus"):
        AMPFeatureConfig.from_json(config.to_json().replace("{", '{"surplus": 1, ', 1))


# --- Finite differences ---------------------------------------------------------------------------------------------------


def test_finite_differences_are_the_fallback() -> None:
    robot, config = loaded("wildrobot"), config_of("wildrobot")
    qpos, qvel = states(robot, 30)
    obs, height, contacts = observe_host(config, qpos, qvel), config.root_height(qpos), random_contacts(robot, 30)
    before = qpos[:, robot.qpos_adr] - 0.02 * np.arange(8)
    block = config.layout.block("joint_vel").slice
    made = extract(obs, config, height, before, 0.02, contacts)
    np.testing.assert_allclose(made[:, block], np.tile(np.arange(8.0), (30, 1)), atol=2e-5)
    true = extract(obs, config, height, before, 0.02, contacts, use_obs_joint_vel=True)
    np.testing.assert_array_equal(np.delete(made, np.r_[block], axis=1), np.delete(true, np.r_[block], axis=1))
    np.testing.assert_array_equal(true[:, block], qvel[:, robot.qvel_adr].astype(np.float32))
    np.testing.assert_allclose(extract(obs, config, height, before, 0.04, contacts)[:, block], made[:, block] / 2, rtol=1e-6)


# --- Forward kinematics ---------------------------------------------------------------------------------------------------


def lowest_points(robot: Robot, qpos: np.ndarray) -> np.ndarray:
    """(N, C) m: by MuJoCo's own kinematics and its distance between the ground and each geom."""
    data, found = mujoco.MjData(robot.model), np.empty((len(qpos), len(robot.channels)))
    for k, row in enumerate(qpos):
        data.qpos = row
        mujoco.mj_kinematics(robot.model, data)
        for channel, geoms in enumerate(robot.channel_geoms):
            found[k, channel] = min(
                mujoco.mj_geomDistance(robot.model, data, robot.ground_geom, geom, 10.0, np.empty(6)) for geom in geoms
            )
    return found


def test_heights_are_those_of_mujocos_geoms(odd: Robot) -> None:
    for robot in (loaded("wildrobot"), loaded(TRILEG), odd):
        config = AMPFeatureConfig.for_robot(robot)
        qpos, qvel = states(robot, 60)
        qpos[:, robot.root_qpos_adr + 2] = np.linspace(-0.2, 1.5, 60)
        made = heights(observe_host(config, qpos, qvel), config, config.root_height(qpos))
        np.testing.assert_allclose(made, lowest_points(robot, qpos), atol=1e-6, err_msg=robot.name)
        made = heights(observed(config, qpos, qvel), config, config.root_height(qpos))
        np.testing.assert_allclose(made, lowest_points(robot, qpos), atol=1e-5, err_msg=robot.name)


def test_only_what_leads_to_a_channel_is_kept(odd: Robot) -> None:
    config = AMPFeatureConfig.for_robot(odd)
    assert [link.joint for link in config.links] == [1, 2, 0]  # swing, twist, knee, in feature order
    assert [link.ref for link in config.links] == [0.4, -0.2, 0.0]
    assert [len(soles) for soles in config.soles] == [1, 1, 1, 1, 1, 3]
    assert {sole.kind for soles in config.soles for sole in soles} == {
        *("sphere", "capsule", "cylinder", "ellipsoid", "points", "box"),
    }


def test_a_channel_touches_below_its_height() -> None:
    robot, config = loaded(TRILEG), config_of(TRILEG)
    obs = np.zeros(config.obs.dim, np.float32)
    obs[2] = 1.0  # upright, legs straight: soles 0.52 m below the root
    np.testing.assert_allclose(channel_heights(obs, config, 0.52), 0.0, atol=1e-6)
    assert estimate_contacts(obs, config, 0.5199).tolist() == [1.0, 1.0]
    assert estimate_contacts(obs, config, 0.5201).tolist() == [0.0, 0.0]
    wide = AMPFeatureConfig.for_robot(robot, contact_height=0.01)
    assert estimate_contacts(obs, wide, 0.5299).tolist() == [1.0, 1.0]
    assert estimate_contacts(obs, wide, 0.5301).tolist() == [0.0, 0.0]
    obs[config.obs.joint_pos] = [0.5, 1.0, -0.5, 0, 0, 0]  # the left knee bent: that foot is off the floor, and level
    made = extract_amp_features(obs, config, 0.5199, None, 0.01, use_obs_joint_vel=True)
    assert made.dtype == jnp.float32
    assert made[-2:].tolist() == [0.0, 1.0]


# --- Stage 0 --------------------------------------------------------------------------------------------------------------

CHOICES = {
    "drop_contacts": (False, True),
    "drop_height": (False, True),
    "max_root_lin_vel": (None, 1.5),
    "max_root_ang_vel": (None, 2.0),
    "root_lin_vel_scale": (None, 3.0),
    "root_ang_vel_scale": (None, 0.7),
}


def test_policy_and_reference_go_through_the_same_options() -> None:
    robot = loaded("wildrobot")
    qpos, qvel = states(robot, 50)
    contacts = random_contacts(robot, 50)
    reference = reference_features(robot, qpos, qvel, contacts)
    select = jax.jit(lambda x, config: config.select(x), static_argnums=1)
    for values in itertools.product(*CHOICES.values()):
        options = dict(zip(CHOICES, values, strict=True))
        config = AMPFeatureConfig.for_robot(robot, **options)
        obs, height = observe_host(config, qpos, qvel), config.root_height(qpos)
        wanted = config.select(reference)
        assert isinstance(wanted, np.ndarray)
        assert wanted.dtype == np.float32
        made = extract_amp_features(obs, config, height, None, 0.02, contacts, use_obs_joint_vel=True)
        np.testing.assert_array_equal(made, wanted, err_msg=str(options))
        dim = 27 - 4 * options["drop_contacts"] - options["drop_height"]
        assert config.layout.dim == wanted.shape[1] == len(config.layout.names) == config.layout.to_dict()["dim"] == dim
        assert config.layout.is_canonical == (dim == 27 and values[2:] == (None,) * 4)
    np.testing.assert_array_equal(select(reference, config), config.select(reference))


def test_options_do_what_they_say() -> None:
    robot = loaded("wildrobot")
    config = AMPFeatureConfig.for_robot(
        robot, drop_contacts=True, drop_height=True, max_root_lin_vel=1.5, root_ang_vel_scale=4.0, max_root_ang_vel=8.0
    )
    row = np.arange(27, dtype=np.float32)
    row[16:22] = [-3, 1, 1.6, 2, -20, 5]
    np.testing.assert_array_equal(config.select(row), [*range(16), -1.5, 1, 1.5, 0.5, -2, 1.25])
    layout = config.layout
    assert layout.dropped == ("root_height", "foot_contacts")
    assert [(b.name, b.start, b.stop, b.unit, b.transform) for b in layout.blocks] == [
        ("joint_pos", 0, 8, "rad", ""),
        ("joint_vel", 8, 16, "rad/s", ""),
        ("root_lin_vel", 16, 19, "m/s", "clipped to ±1.5"),
        ("root_ang_vel", 19, 22, "4 rad/s", "clipped to ±8, divided by 4"),
    ]
    assert layout.names == robot.layout.names[:22]
    with pytest.raises(KeyError, match=r"'root_height' was dropped; there are joint_pos"):
        layout.block("root_height")
    with pytest.raises(KeyError, match="does not exist"):
        layout.block("height")
    told = layout.to_dict()
    assert told["dropped"] == ["root_height", "foot_contacts"]
    assert told["blocks"][3]["transform"] == "clipped to ±8, divided by 4"
    assert config_of("wildrobot").layout.to_dict()["blocks"][0].items() >= robot.layout.to_dict()["blocks"][0].items()


def test_a_dropped_height_moves_contacts_up() -> None:
    config = AMPFeatureConfig.for_robot(loaded("wildrobot"), drop_height=True)
    row = np.arange(27, dtype=np.float32)
    np.testing.assert_array_equal(config.select(row), [*range(22), 23, 24, 25, 26])
    assert config.layout.block("foot_contacts").slice == slice(22, 26)


def test_statistics_are_of_the_same_features(monkeypatch: pytest.MonkeyPatch) -> None:
    robot = loaded("wildrobot")
    qpos, qvel = states(robot, 300)
    reference = reference_features(robot, qpos, qvel, random_contacts(robot, 300))
    monkeypatch.setattr("amp_core.policy.config.STATS_ROWS", 128)  # in more than one part
    artifact = ColumnStats(27)
    artifact.add(reference)
    assert config_of("wildrobot").stats(reference) == artifact.to_dict()
    config = AMPFeatureConfig.for_robot(robot, drop_contacts=True, max_root_lin_vel=0.5, root_lin_vel_scale=2.0)
    stats, selected = config.stats(reference), config.select(reference)
    assert list(stats) == ["mean", "std", "min", "max", "clip_low", "clip_high"]
    assert {len(values) for values in stats.values()} == {23}
    np.testing.assert_allclose(stats["mean"], selected.mean(axis=0, dtype=np.float64), atol=1e-12)
    np.testing.assert_allclose(stats["std"], selected.std(axis=0, dtype=np.float64), atol=1e-12)
    assert stats["max"][16:19] == [0.25, 0.25, 0.25]
    # Clipping narrows a spread, which no scaling of the version's own statistics could tell.
    assert max(stats["std"][16:19]) < min(artifact.to_dict()["std"][16:19]) / 2


# --- Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": np.zeros((5, 24))}, r"obs is \(5, 24\); expected \(…, 33\), or at least 25 entries"),
        ({"obs": np.zeros(())}, r"obs is \(\); expected"),
        ({"root_height": np.zeros(4)}, r"root_height is \(4,\); expected \(5,\)"),
        ({"root_height": np.zeros((5, 2))}, r"root_height is \(5, 2\); expected \(5,\)"),
        ({"prev_joint_pos": np.zeros((5, 7))}, r"prev_joint_pos is \(5, 7\); expected \(5, 8\)"),
        ({"prev_joint_pos": None}, "prev_joint_pos is None, but finite differences need it"),
        ({"foot_contacts_override": np.zeros((5, 2))}, r"foot_contacts_override is \(5, 2\); expected \(5, 4\)"),
        ({"foot_contacts_override": np.zeros(4)}, r"foot_contacts_override is \(4,\); expected \(5, 4\)"),
        ({"dt": 0.0}, "dt is 0.0; expected the control step in seconds"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, object], message: str) -> None:
    given = {"obs": np.zeros((5, 33)), "root_height": np.zeros(5), "prev_joint_pos": np.zeros((5, 8)), "dt": 0.02}
    with pytest.raises(ValueError, match=message):
        extract_amp_features(config=config_of("wildrobot"), **(given | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("see", [observe, observe_host])
def test_wrong_states_are_refused(see: object) -> None:
    config = config_of("wildrobot")
    for qpos, qvel in [((3, 14), (3, 14)), ((3, 15), (3, 15)), ((3, 15), (2, 14)), ((), ())]:
        with pytest.raises(ValueError, match=rf"qpos is {re.escape(str(qpos))}.*expected \(…, 15\) and \(…, 14\)"):
            see(config, np.zeros(qpos), np.zeros(qvel))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"prev_action is \(8,\); expected \(3, 8\)"):
        see(config, np.ones((3, 15)), np.ones((3, 14)), np.zeros(8))  # type: ignore[operator]


def test_wrong_options_and_features_are_refused() -> None:
    robot, config = loaded("wildrobot"), config_of("wildrobot")
    with pytest.raises(TypeError, match=r"no option 'drop_feet'; there are contact_height, drop_contacts, drop_height"):
        AMPFeatureConfig.for_robot(robot, drop_feet=True)
    with pytest.raises(TypeError, match="'nq'"):
        AMPFeatureConfig.for_robot(robot, nq=3)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"max_root_ang_vel is .*rad/s"):
            AMPFeatureConfig.for_robot(robot, max_root_ang_vel=value)
    with pytest.raises(ValueError, match="root_lin_vel_scale is 0; expected a positive number in m/s"):
        dataclasses.replace(config, root_lin_vel_scale=0)
    with pytest.raises(ValueError, match="contact_height is nan"):
        AMPFeatureConfig.for_robot(robot, contact_height=float("nan"))
    with pytest.raises(ValueError, match=r"features are \(3, 26\); expected \(…, 27\)"):
        config.select(np.zeros((3, 26), np.float32))
    with pytest.raises(ValueError, match=r"features are \(27,\); expected \(N, 27\)"):
        config.stats(np.zeros(27, np.float32))


# --- Who may know JAX -----------------------------------------------------------------------------------------------------


IN_JAX = (ROOT / "amp_core/policy/device.py", ROOT / "amp_core/verify/smoke_learner.py")
"""The modules that import JAX; others import these inside functions alone."""


def test_nothing_but_the_policy_side_imports_jax_at_once() -> None:
    """Inside a function it is for `amp_core.verify` alone, which the import contracts hold; at the top for none."""
    for path in (path for folder in ("amp_core", "service", "workers", "migrations") for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        lazy = {node for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(f)}
        typing_only = {node for i in ast.walk(tree) if isinstance(i, ast.If) for node in ast.walk(i)}
        for node in set(ast.walk(tree)) - lazy - typing_only:
            if isinstance(node, ast.Import | ast.ImportFrom) and path not in IN_JAX:
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not {name.partition(".")[0] for name in names} & {"jax", "optax", "jaxlib"}, f"{path}:{node.lineno}"
                assert not any(name == "amp_core.verify.smoke_learner" for name in names), f"{path}:{node.lineno}"
                if path.parent.name != "policy":
                    assert not any(name.startswith("amp_core.policy") for name in names), f"{path}:{node.lineno}"


def test_it_runs_without_mujoco_and_imports_without_jax() -> None:
    """A training node has JAX and a config that was made elsewhere; a config's numpy side needs neither."""
    rng = np.random.default_rng(0)
    config = AMPFeatureConfig.for_robot(loaded("wildrobot"), drop_height=True)
    qpos, qvel = states(loaded("wildrobot"), 5)
    obs, contacts = np.asarray(observe(config, qpos, qvel)), random_contacts(loaded("wildrobot"), 5)
    features = extract(obs, config, rng.random(5), None, 0.02, contacts, use_obs_joint_vel=True)
    plain = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    program = """
import dataclasses, importlib, pickle, sys
blocked = set(sys.argv[1:])
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
import amp_core.policy
config, plain, qpos, qvel, obs, contacts, expected = pickle.load(sys.stdin.buffer)
assert amp_core.policy.AMPFeatureConfig(**plain) == config
amp_core.policy.observe_host(config, qpos, qvel)
assert config.select(expected[:, [0] * 27]).shape == (5, 26)
try:
    height = expected[:, 0]
    made = amp_core.policy.extract_amp_features(obs, config, height, None, 0.02, contacts, use_obs_joint_vel=True)
    assert (made == expected).all() and amp_core.policy.estimate_contacts(obs, config, height).shape == (5, 4)
    assert "jax" not in blocked
except ImportError as error:
    assert "jax" in blocked and "needs JAX" in str(error), error
"""
    payload = pickle.dumps((config, plain, qpos, qvel, obs, contacts, np.asarray(features)))
    for blocked in (["mujoco", "yaml"], ["mujoco", "yaml", "jax", "jaxlib", "optax"]):
        subprocess.run([sys.executable, "-c", program, *blocked], input=payload, cwd=ROOT, check=True)


def test_the_contract_about_jax_sees_a_breach(tmp_path: Path) -> None:
    for package in ("amp_core", "amp_core/policy", "amp_core/verify", "service", "workers", "migrations"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    for file in ("amp_core/policy/device.py", "amp_core/verify/smoke.py", "amp_core/scoring.py"):
        (tmp_path / file).write_text("def f():\n    import jax\n")
    head, _, contracts = (ROOT / "pyproject.toml").read_text().partition("[tool.importlinter]")[2].partition("[[")
    mine = next(part for part in contracts.split("[[tool.importlinter.contracts]]") if "know JAX" in part)
    (tmp_path / "pyproject.toml").write_text(f"[tool.importlinter]{head}[[tool.importlinter.contracts]]{mine}")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "amp_core.scoring -> jax" in done.stdout
    assert "amp_core.policy.device -> jax" not in done.stdout
    assert "amp_core.verify.smoke -> jax" not in done.stdout


# --- The page -------------------------------------------------------------------------------------------------------------


def test_the_examples_of_the_page_run() -> None:
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "policy.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(examples) >= 2
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "docs/policy.md", "exec"), names)
