"""Generation: timing, harness, failures, and the same bits in any company."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amp_core.features import body_to_world, world_to_heading
from amp_core.formats import Motion
from amp_core.motion import Conditioned, condition
from amp_core.quality import FrameSeries
from amp_core.recipe import Harness, PhysicsScale, Recipe
from amp_core.robot import Robot
from amp_core.rollout import Rollout, generate, harness_force
from amp_core.rollout import batches as module

ROLLOUT, FORCED = Recipe.for_mode("rollout"), Recipe.for_mode("teacher_forced")
TRILEG = Path(__file__).parents[1] / "robots" / "trileg" / "robot.yaml"


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


def clip(robot: Robot, frames: int = 40, seed: int = 0, size: float = 0.05) -> Conditioned:
    """Smooth joint motion around straight legs."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames)[:, None] * robot.control_dt
    waves = np.sin(2 * np.pi * rng.uniform(0.5, 1.5, len(robot.joint_names)) * t + rng.uniform(0, 6, len(robot.joint_names)))
    low, high = np.clip(robot.joint_range, -1, 1).T
    middle = np.clip(0.0, low + size, high - size)
    root_pos = np.zeros((frames, 3))
    root_pos[:, 2] = sum(robot.height_range) / 2
    root_pos[:, 0] = 0.1 * t[:, 0]
    return condition(
        Motion(
            name=f"clip-{seed}",
            fps=1 / robot.control_dt,
            root_pos=root_pos,
            root_rot=np.tile([0.0, 0.0, 0.0, 1.0], (frames, 1)),
            dof_pos=middle + size * waves,
            source_digest=f"sha256:{seed:064x}",
            source_format="npz",
        ),
        robot,
    )


def same(a: Rollout, b: Rollout) -> None:
    first, second = a.arrays(), b.arrays()
    assert list(first) == list(second)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    assert a.failure == b.failure


# --- The harness ----------------------------------------------------------------------------------------------------------

LEVEL = (1.0, 0.0, 0.0, 0.0)


def test_the_harness_lifts_what_is_low_and_damps_what_moves() -> None:
    harness = Harness.assist()
    assert harness_force(harness, 0.45, 0.44, 0.0, LEVEL) == pytest.approx(0.6)
    assert harness_force(harness, 0.45, 0.46, 0.0, LEVEL) == pytest.approx(-0.6)
    assert harness_force(harness, 0.45, 0.45, 0.1, LEVEL) == pytest.approx(-1.0)
    assert harness_force(harness, 0.45, 0.05, 0.0, LEVEL) == 4.0
    assert harness_force(harness, 0.45, 0.85, 0.0, LEVEL) == -4.0
    assert harness_force(Harness.strong(), 0.45, 0.05, 0.0, LEVEL) == pytest.approx(200.0)
    assert harness_force(Harness.none(), 0.45, 0.05, 1.0, LEVEL) == 0.0


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_harness_lets_go_of_a_robot_that_leans(axis: int, sign: int) -> None:
    def leaning(angle: float) -> float:
        quat = [math.cos(angle / 2), 0.0, 0.0, 0.0]
        quat[axis] = sign * math.sin(angle / 2)
        return harness_force(Harness.assist(), 0.45, 0.44, 0.0, quat)

    assert leaning(0.43) == pytest.approx(0.6)
    assert leaning(0.44) == 0.0
    assert leaning(3.0) == 0.0


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.floats(-2, 2), st.floats(-50, 50))
def test_the_harness_never_pulls_harder_than_its_cap(quat: list[float], height: float, velocity: float) -> None:
    norm = math.hypot(*quat)
    unit = [part / norm for part in quat] if norm > 1e-3 else list(LEVEL)
    assert abs(harness_force(Harness.assist(), 0.45, height, velocity, unit)) <= 4.0


def test_the_recorded_force_is_the_harness_at_the_start_of_the_frame(robot: Robot) -> None:
    motion = clip(robot, 60)
    found = generate(robot, [motion], ROLLOUT)[0]
    target = float(motion.root_pos[:, 2].mean())
    states = [(found.initial_qpos, found.initial_qvel), *zip(found.qpos[:-1], found.qvel[:-1], strict=True)]
    expected = [harness_force(ROLLOUT.harness, target, q[2], v[2], q[3:7].tolist()) for q, v in states]
    np.testing.assert_array_equal(found.stab_force, expected)
    assert np.abs(found.stab_force).max() > 0.01
    off = generate(robot, [motion], dataclasses.replace(ROLLOUT, harness=Harness.none()))[0]
    assert not off.stab_force.any()


def test_the_first_frames_alone_are_those_of_the_whole_rollout(robot: Robot) -> None:
    """The harness holds the mean height of the whole clip, and a foot stands by the frames around it."""
    motions = [clip(robot, 60), clip(robot, 90, seed=3)]
    whole = generate(robot, motions, ROLLOUT)
    first, second = generate(robot, motions, ROLLOUT, frames=[20, None])
    assert (first.clip_frames, len(first.qpos)) == (60, 20)
    for name, array in first.arrays().items():
        rows = slice(20) if array.ndim and not name.startswith("initial_") else ...
        np.testing.assert_array_equal(array, whole[0].arrays()[name][rows], err_msg=name)
    same(second, whole[1])


# --- Timing and content ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wildrobot", str(TRILEG)])
def test_a_rollout_is_this_plain_loop(name: str) -> None:
    """Row k is the state after control step k, by a loop that anybody could write."""
    robot = Robot.load(name)
    motion = clip(robot, 45)
    found = generate(robot, [motion], dataclasses.replace(ROLLOUT, force_threshold=2.0))[0]
    data = mujoco.MjData(robot.model)
    data.qpos[:], data.qvel[:] = motion.initial_qpos, motion.initial_qvel
    low, high = robot.model.actuator_ctrlrange.T
    force = np.zeros(6)
    for k in range(45):
        for joint, servo in enumerate(robot.ctrl_adr):
            target = motion.dof_pos[k, joint]
            data.ctrl[servo] = np.clip(target, low[servo], high[servo]) if robot.model.actuator_ctrllimited[servo] else target
        data.qfrc_applied[robot.root_qvel_adr + 2] = found.stab_force[k]
        loads = np.zeros((robot.substeps, len(robot.channels)))
        for substep in range(robot.substeps):
            mujoco.mj_step(robot.model, data)
            for i in range(data.ncon):
                mujoco.mj_contactForce(robot.model, data, i, force)
                pair = set(data.contact[i].geom.tolist())
                for channel, geoms in enumerate(robot.channel_geoms):
                    loads[substep, channel] += force[0] if robot.ground_geom in pair and pair & set(geoms) else 0.0
        np.testing.assert_array_equal(found.ctrl[k], data.ctrl)
        np.testing.assert_array_equal(found.qpos[k], data.qpos)
        np.testing.assert_array_equal(found.qvel[k], data.qvel)
        np.testing.assert_allclose(found.channel_loads[k], loads.mean(axis=0), atol=1e-9)
        np.testing.assert_allclose(found.sum_fn_per_frame[k], loads.mean(axis=0).sum(), atol=1e-9)
        np.testing.assert_allclose(found.sum_fn_last_substep[k], loads[-1].sum(), atol=1e-9)
        np.testing.assert_array_equal(found.foot_contacts[k], loads[-1] > 2.0)
        saturated = np.abs(data.actuator_force) >= 0.99 * robot.model.actuator_forcerange[:, 1]
        saturated &= robot.model.actuator_forcelimited > 0
        assert FrameSeries.of(found, robot).saturation[k] == pytest.approx(saturated.mean())


def test_the_export_has_the_contracts_arrays_and_frames(robot: Robot) -> None:
    motion = clip(robot, 30, size=0.2)
    found = generate(robot, [motion], ROLLOUT)[0]
    arrays = found.arrays()
    shapes = {
        "features": (30, 27),
        "foot_contacts": (30, 4),
        "dof_pos": (30, 8),
        "dof_vel": (30, 8),
        "root_pos": (30, 3),
        "root_rot": (30, 4),
        "root_lin_vel": (30, 3),
        "root_ang_vel": (30, 3),
        "qpos": (30, 15),
        "qvel": (30, 14),
        "ctrl": (30, 8),
        "stab_force": (30,),
        "sum_fn_per_frame": (30,),
        "sum_fn_last_substep": (30,),
        "initial_qpos": (15,),
        "initial_qvel": (14,),
        "reference_root_pos": (30, 3),
        "reference_root_rot": (30, 4),
        "reference_dof_pos": (30, 8),
        "reference_dof_pos_raw": (30, 8),
        "reference_contacts": (30, 2),
        "nonfoot_contact": (30,),
        "actuator_force": (30, 8),
        "foot_speed": (30, 2),
        "clip_frames": (),
        "solver_warnings": (),
    }
    assert {name: arrays[name].shape for name in shapes} == shapes
    derived = ("stab_force_per_frame", "clip_frames", "solver_warnings")
    assert not any(array.flags.writeable for name, array in arrays.items() if name not in derived)
    assert arrays["features"].dtype == np.float32
    np.testing.assert_array_equal(found.root_rot, found.qpos[:, [4, 5, 6, 3]])
    np.testing.assert_array_equal(found.root_ang_vel, body_to_world(found.root_rot, found.qvel[:, 3:6]))
    np.testing.assert_array_equal(found.features[:, :8], found.qpos[:, robot.qpos_adr].astype(np.float32))
    np.testing.assert_array_equal(found.features[:, 8:16], found.qvel[:, robot.qvel_adr].astype(np.float32))
    local = world_to_heading(found.root_rot, found.root_ang_vel)
    np.testing.assert_array_equal(found.features[:, 19:22], local.astype(np.float32))
    np.testing.assert_array_equal(found.features[:, 23:], found.foot_contacts)
    np.testing.assert_array_equal(found.reference_dof_pos, motion.dof_pos)


def test_the_world_rate_is_the_one_that_turns_the_orientation(robot: Robot) -> None:
    """Finite differences of the recorded orientation agree with `root_ang_vel`, and not with the body's rates."""
    found = generate(robot, [clip(robot, 60, seed=3, size=0.3)], ROLLOUT)[0]
    world, body = [], []
    for k in range(1, 60):
        difference = np.zeros(3)
        mujoco.mju_subQuat(difference, found.qpos[k, 3:7], found.qpos[k - 1, 3:7])
        between = body_to_world(found.root_rot[k], difference) / robot.control_dt
        mean = (found.root_ang_vel[k] + found.root_ang_vel[k - 1]) / 2
        world.append(np.abs(between - mean).mean())
        body.append(np.abs(between - (found.qvel[k, 3:6] + found.qvel[k - 1, 3:6]) / 2).mean())
    assert np.mean(world) < 0.5 * np.mean(body)


def test_initial_velocity_is_the_recipes_choice(robot: Robot) -> None:
    motion = clip(robot, 20)
    assert np.abs(motion.initial_qvel).max() > 0.01
    rest = generate(robot, [motion], dataclasses.replace(ROLLOUT, initial_velocity="zero"))[0]
    assert not rest.initial_qvel.any()
    np.testing.assert_array_equal(generate(robot, [motion], ROLLOUT)[0].initial_qvel, motion.initial_qvel)


def test_teacher_forcing_writes_the_clips_pose_before_every_step(robot: Robot) -> None:
    motion = clip(robot, 30)
    found = generate(robot, [motion], FORCED)[0]
    assert found.forced_qpos is not None
    np.testing.assert_array_equal(found.forced_qpos[:, robot.qpos_adr], motion.dof_pos)
    np.testing.assert_array_equal(found.forced_qpos[:, :3], motion.root_pos)
    np.testing.assert_array_equal(found.forced_qpos[:, 3:7], motion.root_rot[:, [3, 0, 1, 2]])
    assert "forced_qpos" in found.arrays()
    assert "forced_qpos" not in generate(robot, [motion], ROLLOUT)[0].arrays()


def test_physics_scales_reach_the_simulation(robot: Robot) -> None:
    motion = clip(robot, 50)
    recipes = [
        ROLLOUT,
        *(dataclasses.replace(ROLLOUT, physics=PhysicsScale(**{key: 1.5})) for key in ("mass", "friction", "damping")),
    ]
    together = generate(robot, [motion] * 4, recipes)
    ends = {found.qpos[-1].tobytes() for found in together}
    assert len(ends) == 4
    for found, recipe in zip(together, recipes, strict=True):
        same(found, generate(robot, [motion], recipe)[0])


# --- Company --------------------------------------------------------------------------------------------------------------


def test_the_same_bits_alone_in_any_company_and_on_two_threads(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    motions = [clip(robot, frames, seed) for seed, frames in enumerate((33, 70, 70, 25, 64))]
    recipes = [ROLLOUT, FORCED, ROLLOUT, ROLLOUT, FORCED]
    alone = [generate(robot, [motion], recipe)[0] for motion, recipe in zip(motions, recipes, strict=True)]
    for nthread in (1, 2):
        for a, b in zip(alone, generate(robot, motions, recipes, nthread=nthread), strict=True):
            same(a, b)
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    for a, b in zip(alone, generate(robot, motions, recipes), strict=True):
        same(a, b)


def broken(motion: Conditioned, **changed: Any) -> Conditioned:
    return dataclasses.replace(motion, name="broken", **changed)


def test_a_control_that_is_not_a_number_stops_that_clip_alone(robot: Robot) -> None:
    good = clip(robot, 50)
    dof_pos = np.array(good.dof_pos)
    dof_pos[20, 3] = np.nan
    motions = [clip(robot, 40, 1), broken(good, dof_pos=dof_pos), clip(robot, 60, 2)]
    first, bad, last = generate(robot, motions, ROLLOUT)
    assert bad.failure is not None
    assert bad.failure.frame == 20
    assert bad.failure.warnings == {"BADCTRL": 1}
    assert bad.clip_frames == 50
    assert bad.solver_warnings == 1
    arrays = bad.arrays()
    assert (arrays["clip_frames"], arrays["solver_warnings"]) == (50, 1)
    assert {len(array) for name, array in arrays.items() if array.ndim and not name.startswith("initial")} == {20}
    assert all(np.isfinite(array).all() for name, array in arrays.items() if name != "reference_dof_pos")
    np.testing.assert_array_equal(bad.qpos, generate(robot, [good], ROLLOUT)[0].qpos[:20])
    same(first, generate(robot, [motions[0]], ROLLOUT)[0])
    same(last, generate(robot, [motions[2]], ROLLOUT)[0])


def test_a_state_that_explodes_at_once_leaves_no_row(robot: Robot) -> None:
    good = clip(robot, 30)
    fast = np.array(good.initial_qvel)
    fast[4] = 1e12
    bad, fine = generate(robot, [broken(good, initial_qvel=fast), good], ROLLOUT)
    assert bad.failure is not None
    assert bad.failure.frame == 0
    assert "BADQVEL" in bad.failure.warnings
    assert bad.features.shape == (0, 27)
    same(fine, generate(robot, [good], ROLLOUT)[0])


def test_when_every_clip_fails_the_batch_ends(robot: Robot) -> None:
    good = clip(robot, 30)
    dof_pos = np.array(good.dof_pos)
    dof_pos[5:] = np.nan
    assert [
        r.failure is not None and r.failure.frame for r in generate(robot, [broken(good, dof_pos=dof_pos)] * 2, ROLLOUT)
    ] == [5, 5]


def test_a_robot_that_mujoco_would_reset_is_not_reset(robot: Robot) -> None:
    """With automatic resets a bad state comes back at the model's default pose, finite and plausible."""
    assert robot.model.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)


# --- Progress -------------------------------------------------------------------------------------------------------------


def test_progress_rises_to_one_and_can_stop_the_work(robot: Robot) -> None:
    seen: list[float] = []
    generate(robot, [clip(robot, 120), clip(robot, 60)], ROLLOUT, progress=lambda share, text: seen.append(share))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) >= 3

    def stop(share: float, text: str) -> None:
        raise InterruptedError(text)

    with pytest.raises(InterruptedError, match="frames"):
        generate(robot, [clip(robot, 120)], ROLLOUT, progress=stop)


def test_planning_is_told_per_clip_and_shortly() -> None:
    assert module.describe_planning([("walk", 120, 304)]) == "planned 120 of 304 frames"
    clips = [("a", 100, 100), ("b", 40, 100), ("c", 1, 3), ("d", 0, 50)]
    assert module.describe_planning(clips) == "1 of 4 clips planned; b 40%, c 33%"
    assert module.describe_planning([(name, 0, 50) for name in "ab"]) == "0 of 2 clips planned"
    assert module.describe_planning([(name, 25, 50) for name in "abcd"]) == "0 of 4 clips planned; a 50%, b 50%, c 50%, …"


def test_one_recipe_a_motion(robot: Robot) -> None:
    assert generate(robot, [], ROLLOUT) == []
    with pytest.raises(ValueError, match="1 motions but 2 recipes"):
        generate(robot, [clip(robot)], [ROLLOUT, FORCED])
