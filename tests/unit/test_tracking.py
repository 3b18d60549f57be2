"""The tracked mode: the planner's parts against known answers, and what its plans must keep."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

import amp_core
from amp_core.errors import RecipeRefused
from amp_core.formats import Motion, read_motion
from amp_core.kinematics import kinematic_contacts
from amp_core.motion import Conditioned, condition
from amp_core.recipe import Harness, PhysicsScale, Planner, Recipe, TrackingCost
from amp_core.robot import Robot
from amp_core.rollout import Rollout, generate, replay
from amp_core.tracking import plan
from amp_core.tracking.branch import Branch
from amp_core.tracking.gauss_newton import solve_riccati
from amp_core.tracking.model import planning_model
from amp_core.tracking.sampler import Samples
from amp_core.verdict import judge

MOTIONS = Path(amp_core.__file__).parent / "motions" if amp_core.__file__ else Path("amp_core/motions")
QUICK = Planner(samples=16, damping=(1.0,), horizon_sec=0.2, first_rounds=2, branch_sec=0.16, attempts=1)


@pytest.fixture(scope="module")
def wildrobot() -> Robot:
    return Robot.load("wildrobot")


@pytest.fixture(scope="module")
def trileg() -> Robot:
    return Robot.load(Path(__file__).parents[1] / "robots" / "trileg")


def clip(robot: Robot, name: str = "walk.pkl", frames: int | None = None) -> Conditioned:
    path = MOTIONS / name
    options: dict[str, Any] = {"fps": 50.0, "quat_order": "wxyz"} if path.suffix == ".csv" else {}
    motion = read_motion(path, name=path.stem, **options)
    if frames is not None:
        from dataclasses import replace

        motion = replace(
            motion, root_pos=motion.root_pos[:frames], root_rot=motion.root_rot[:frames], dof_pos=motion.dof_pos[:frames]
        )
    return condition(motion, robot)


def tracked(planner: Planner = QUICK, **changes: Any) -> Recipe:
    return Recipe(mode="tracked", harness=Harness.none(), planner=planner, **changes)


def bytes_of(rollout: Rollout) -> bytes:
    return b"".join(np.ascontiguousarray(array).tobytes() for array in rollout.arrays().values())


# --- The parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wildrobot", "trileg"])
def test_the_planning_model_weighs_and_is_driven_like_the_robot(name: str, request: pytest.FixtureRequest) -> None:
    robot: Robot = request.getfixturevalue(name)
    planning = planning_model(robot, PhysicsScale(), Planner())
    model, own = planning.model, robot.model
    assert (model.nq, model.nv, model.nu) == (own.nq, own.nv, own.nu)
    np.testing.assert_array_equal(model.body_mass, own.body_mass)
    np.testing.assert_array_equal(model.body_inertia, own.body_inertia)
    np.testing.assert_array_equal(model.actuator_gainprm, own.actuator_gainprm)
    assert planning.substeps * model.opt.timestep == pytest.approx(robot.control_dt)
    assert model.opt.timestep <= Planner().step_sec
    colliding = {int(g) for g in np.flatnonzero(model.geom_contype | model.geom_conaffinity)}
    assert colliding == {robot.ground_geom, *(int(sole) for sole in planning.soles)}


@pytest.mark.parametrize("name", ["wildrobot", "trileg"])
def test_the_soles_lie_where_the_feet_do(name: str, request: pytest.FixtureRequest) -> None:
    robot: Robot = request.getfixturevalue(name)
    planning = planning_model(robot, PhysicsScale(), Planner())
    boxes, real = mujoco.MjData(planning.model), mujoco.MjData(robot.model)
    for data, model in ((boxes, planning.model), (real, robot.model)):
        mujoco.mj_kinematics(model, data)
    for foot, sole in zip(robot.feet, planning.soles, strict=True):
        heights = [
            data.geom_xpos[g, 2] - np.abs(data.geom_xmat[g].reshape(3, 3)[2]) @ model.geom_aabb[g, 3:]
            for data, model, geoms in ((boxes, planning.model, (sole,)), (real, robot.model, foot.geoms))
            for g in geoms
        ]
        assert heights[0] == pytest.approx(min(heights[1:]), abs=0.002)


def test_the_planning_model_is_scaled_with_the_robot(wildrobot: Robot) -> None:
    heavy = planning_model(wildrobot, PhysicsScale(mass=1.2), Planner())
    assert heavy.model.body_mass.sum() == pytest.approx(1.2 * wildrobot.model.body_mass.sum())


def test_its_sensor_tells_the_velocity_of_the_centre_of_mass(wildrobot: Robot) -> None:
    planning = planning_model(wildrobot, PhysicsScale(), Planner())
    data = mujoco.MjData(planning.model)
    data.qvel[:] = np.linspace(-1, 1, planning.model.nv)
    mujoco.mj_forward(planning.model, data)
    mujoco.mj_subtreeVel(planning.model, data)
    told = data.sensordata[planning.com_velocity : planning.com_velocity + 3]
    np.testing.assert_allclose(told, data.subtree_linvel[wildrobot.root_body], atol=1e-12)


@pytest.fixture(scope="module")
def branch(wildrobot: Robot) -> Branch:
    motion = clip(wildrobot, frames=30)
    settings = Planner(samples=200, ridge=1e-6, pooling=0.0, discard=0.0, horizon_sec=0.1)
    return Branch(wildrobot, motion, tracked(settings), motion.initial_qvel, (0, 0, 0), 1)


def test_the_fit_finds_a_linear_system(branch: Branch, wildrobot: Robot) -> None:
    """Small differences, for which positions add like vectors, moved by a known matrix."""
    sampler = branch.sampler
    stream, steps, count, nx, nu = np.random.default_rng(1), 3, 200, sampler.nx, wildrobot.model.nu
    truth = np.eye(nx) + 0.1 * stream.standard_normal((nx, nx)) / np.sqrt(nx)
    drive, watch = 0.3 * stream.standard_normal((nx, nu)), stream.standard_normal((5, nx + nu))
    states = np.zeros((count, steps + 1, nx))
    states[:, 0] = 1e-4 * stream.standard_normal((count, nx))
    controls = 1e-4 * stream.standard_normal((count, steps, nu))
    states[0, 0], controls[0] = 0.0, 0.0
    for step in range(steps):
        states[:, step + 1] = states[:, step] @ truth.T + controls[:, step] @ drive.T
    qpos, qvel = np.zeros((count, steps + 1, 7 + nu)), states[:, :, nx // 2 :].copy()
    qpos[:, :, :3] = states[:, :, :3]
    qpos[:, :, 3] = 1.0
    qpos[:, :, 4:7] = states[:, :, 3:6] / 2
    qpos[:, :, wildrobot.qpos_adr] = states[:, :, 6 : nx // 2]
    qvel[:, :, wildrobot.qvel_adr] = states[:, :, nx // 2 + 6 :]
    both = np.concatenate([states[:, :-1], controls], axis=2)
    residuals = both @ watch.T
    # In the fit's own scales, which are those of real motion, differences this small would drown in the ridge.
    scaled = Samples(qpos, qvel, controls, residuals, np.arange(count, dtype=float))
    old = sampler.state_scale, sampler.ctrl_scale
    sampler.state_scale, sampler.ctrl_scale = np.full(nx, 1e-4), 1e-4
    try:
        dynamics, watched = sampler.fit(scaled)
    finally:
        sampler.state_scale, sampler.ctrl_scale = old
    np.testing.assert_allclose(dynamics[1], np.concatenate([truth, drive], axis=1), atol=2e-3)
    np.testing.assert_allclose(watched[1] / 1e-4, watch, atol=2e-2)


def test_the_recursion_solves_the_linear_problem(branch: Branch) -> None:
    """Against the dense least-squares solution of the same problem, all steps at once."""
    stream, steps, nx, nu = np.random.default_rng(2), 4, branch.sampler.nx, 8
    dynamics = 0.5 * stream.standard_normal((steps, nx, nx + nu)) / np.sqrt(nx)
    residuals, nominal = stream.standard_normal((steps, 12, nx + nu)), stream.standard_normal((steps, 12))
    residuals = np.concatenate([residuals, np.eye(nx + nu)[None, nx:].repeat(steps, axis=0)], axis=1)
    nominal = np.concatenate([nominal, np.zeros((steps, nu))], axis=1)
    gains, change = solve_riccati(dynamics, residuals, nominal, 1e-9)

    rows: list[np.ndarray[Any, Any]] = []
    state = np.zeros((nx, steps * nu))
    for step in range(steps):
        control = np.zeros((nu, steps * nu))
        control[:, step * nu : (step + 1) * nu] = np.eye(nu)
        both = np.concatenate([state, control])
        rows.append(residuals[step] @ both)
        state = dynamics[step] @ both
    best = np.linalg.lstsq(np.concatenate(rows), -nominal.reshape(-1), rcond=None)[0].reshape(steps, nu)
    reached, played = np.zeros(nx), []
    for step in range(steps):
        action = change[step] + gains[step] @ reached
        played.append(action)
        reached = dynamics[step] @ np.concatenate([reached, action])
    np.testing.assert_allclose(played, best, atol=1e-6)


def test_a_round_never_makes_the_plan_worse(branch: Branch, wildrobot: Robot) -> None:
    sampler = branch.sampler
    state, controls = sampler.read_state(branch.data), sampler.clip_controls(0)
    still = np.zeros((1, sampler.horizon, controls.shape[1]))
    costs = [sampler.simulate(state, 0, controls, None, still).cost[0]]
    trajectory = None
    for _ in range(3):
        trajectory = branch.improve(state, trajectory)
        costs.append(sampler.simulate(state, 0, trajectory.ctrl, None, still).cost[0])
        assert trajectory.cost.sum() == pytest.approx(costs[-1])
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(costs))
    assert costs[-1] < 0.9 * costs[0]


def test_a_branch_goes_on_from_the_best_ones_state(wildrobot: Robot) -> None:
    motion = clip(wildrobot, frames=30)
    first, second = (Branch(wildrobot, motion, tracked(), motion.initial_qvel, (0, 0, branch), 1) for branch in range(2))
    for branch in (first, second):
        branch.advance(8, lambda steps: None)
    assert not np.array_equal(first.data.qpos, second.data.qpos)
    second.restore(first.save())
    np.testing.assert_array_equal(first.executed, second.executed)
    assert first.score == second.score
    for branch in (first, second):
        branch.data.ctrl[:] = 0.0
        mujoco.mj_step(wildrobot.model, branch.data, nstep=50)
    np.testing.assert_array_equal(first.data.qpos, second.data.qpos)


def test_kinematic_contacts(wildrobot: Robot) -> None:
    still = clip(wildrobot, frames=20).qpos(wildrobot)[:1].repeat(20, axis=0)
    assert kinematic_contacts(wildrobot, still).all()
    raised = still.copy()
    raised[:, wildrobot.root_qpos_adr + 2] += 0.2
    assert not kinematic_contacts(wildrobot, raised).any()
    sliding = still.copy()
    sliding[:, wildrobot.root_qpos_adr] += 0.02 * np.arange(20)  # 1 m/s
    assert not kinematic_contacts(wildrobot, sliding).any()


# --- Plans ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def motions(wildrobot: Robot) -> list[Conditioned]:
    return [clip(wildrobot, "walk.pkl", frames=20), clip(wildrobot, "weight_shift.csv", frames=12)]


@pytest.fixture(scope="module")
def rollouts(wildrobot: Robot, motions: list[Conditioned]) -> list[Rollout]:
    return [generate(wildrobot, [motion], tracked())[0] for motion in motions]


def test_a_plan_is_the_same_on_any_threads_and_in_any_company(
    wildrobot: Robot, motions: list[Conditioned], rollouts: list[Rollout]
) -> None:
    alone = [bytes_of(rollout) for rollout in rollouts]
    assert [bytes_of(generate(wildrobot, [motion], tracked(), nthread=2)[0]) for motion in motions] == alone
    assert [bytes_of(rollout) for rollout in generate(wildrobot, motions, tracked(), nthread=2)] == alone
    mixed = generate(wildrobot, motions, [tracked(), Recipe.for_mode("rollout")], nthread=2)
    assert bytes_of(mixed[0]) == alone[0]
    assert mixed[1].plan is None


def test_a_plan_does_not_depend_on_the_threads_of_the_linear_algebra() -> None:
    """With so many samples that the products are divided between threads, which adds in another order."""
    program = (
        "import hashlib, sys; sys.path.insert(0, 'tests/unit')\n"
        "from test_tracking import Planner, Robot, bytes_of, clip, generate, tracked\n"
        "robot = Robot.load('wildrobot')\n"
        "recipe = tracked(Planner(samples=512, horizon_sec=0.2, first_rounds=1, branches=1))\n"
        "print(hashlib.sha256(bytes_of(generate(robot, [clip(robot, 'walk.pkl', frames=9)], recipe)[0])).hexdigest())\n"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(told) == 1


def test_it_moves_on_its_own_feet_and_replays_exactly(wildrobot: Robot, rollouts: list[Rollout]) -> None:
    for rollout in rollouts:
        assert not rollout.stab_force.any()
        qpos, qvel = replay(wildrobot, rollout, rollout.recipe)
        np.testing.assert_array_equal(qpos, rollout.qpos)
        np.testing.assert_array_equal(qvel, rollout.qvel)
        assert rollout.plan is not None
        np.testing.assert_array_equal(rollout.plan.ctrl, rollout.ctrl)


def test_seed_and_attempt_change_the_plan_and_nothing_else_does(
    wildrobot: Robot, motions: list[Conditioned], rollouts: list[Rollout]
) -> None:
    plans = [
        generate(wildrobot, motions[:1], tracked(seed=1))[0],
        generate(wildrobot, motions[:1], tracked(), attempt=1)[0],
        rollouts[0],
    ]
    assert len({bytes_of(rollout) for rollout in plans}) == 3
    # The further attempt samples twice as many; a round's candidates are as many as before.
    assert plans[1].plan is not None
    assert plans[2].plan is not None
    candidates = 2 + len(QUICK.damping) * len(QUICK.step_lengths)
    more = (QUICK.samples_of(1) + candidates) / (QUICK.samples + candidates)
    assert plans[1].plan.simulated_sec == pytest.approx(more * plans[2].plan.simulated_sec)


def test_a_motion_that_falls_by_itself_walks_when_it_is_tracked(wildrobot: Robot) -> None:
    motion = clip(wildrobot, "walk_long_stride.npz", frames=110)
    plain = judge(generate(wildrobot, [motion], Recipe.for_mode("rollout"))[0], wildrobot)
    assert plain.classification.tier == -1
    result = generate(wildrobot, [motion], tracked(Planner(branches=1)), nthread=2)[0]
    verdict = judge(result, wildrobot)
    assert verdict.classification.tier == 0, verdict.classification.tier_reason
    assert verdict.quality_metrics["fell_at_frame"] is None
    assert not result.stab_force.any()


def test_a_fall_ends_the_plan_and_is_rejected(wildrobot: Robot) -> None:
    """With next to no noise there is nothing to learn from, so the robot falls as it does open loop."""
    motion = clip(wildrobot, "walk_long_stride.npz")
    blind = Planner(samples=16, noise_rad=1e-4, horizon_sec=0.1, first_rounds=1, attempts=1, replan_sec=0.1)
    result = generate(wildrobot, [motion], tracked(blind))[0]
    assert result.plan is not None
    assert result.plan.fell_at is not None
    assert judge(result, wildrobot).classification.tier == -1
    np.testing.assert_allclose(result.ctrl[result.plan.fell_at :], motion.dof_pos[result.plan.fell_at :], atol=1e-12)


def test_another_robot_can_be_tracked(trileg: Robot) -> None:
    """A crouch that differs from leg to leg: controls in the wrong order would stand another way."""
    crouch = np.array([0.4, 0.8, -0.4, 0.35, 0.7, -0.35])
    assert list(trileg.ctrl_adr) != sorted(trileg.ctrl_adr)
    motion = Motion(
        name="crouch",
        source_digest="sha256:" + "0" * 64,
        source_format="npz",
        fps=100.0,
        root_pos=np.tile([0.0, 0.0, 0.5], (30, 1)),
        root_rot=np.tile([0.0, 0.0, 0.0, 1.0], (30, 1)),
        dof_pos=np.tile(crouch, (30, 1)),
    )
    rollout = generate(trileg, [condition(motion, trileg)], tracked())[0]
    assert rollout.failure is None
    assert rollout.plan is not None
    assert rollout.plan.fell_at is None
    assert np.sqrt(((rollout.dof_pos - crouch) ** 2).mean()) < 0.05


def test_a_scaled_robot_is_planned_for_with_its_own_weight(wildrobot: Robot, motions: list[Conditioned]) -> None:
    heavy = tracked(physics=PhysicsScale(mass=1.5))
    branch = Branch(wildrobot, motions[0], heavy, motions[0].initial_qvel, (0, 0, 0), 1)
    assert branch.sampler.weight == pytest.approx(1.5 * wildrobot.mg)
    rollout = generate(wildrobot, motions[:1], heavy)[0]
    np.testing.assert_array_equal(replay(wildrobot, rollout, heavy)[0], rollout.qpos)


def test_the_first_step_of_a_free_fall_accelerates_as_the_others_do(wildrobot: Robot, motions: list[Conditioned]) -> None:
    """The sensors lag behind by a physics step, the state that a simulation starts from does not."""
    branch = Branch(wildrobot, motions[0], tracked(), motions[0].initial_qvel, (0, 0, 0), 1)
    branch.data.qpos[wildrobot.root_qpos_adr + 2] += 1.0
    branch.data.qvel[:] = 0.0
    told: list[float] = []
    residuals = branch.sampler.residuals

    def watched(*arguments: Any) -> Any:
        result = residuals(*arguments)
        *_, velocity, elapsed = arguments
        told.append(float((result[2][0] - velocity[0]) / elapsed))
        return result

    branch.sampler.residuals = watched  # type: ignore[method-assign,assignment]
    controls = branch.sampler.clip_controls(0)
    branch.sampler.simulate(branch.sampler.read_state(branch.data), 0, controls, None, np.zeros((1, *controls.shape)))
    np.testing.assert_allclose(told[:4], -9.81, rtol=1e-3)


def test_a_state_that_cannot_be_simulated_gives_finite_controls(wildrobot: Robot, motions: list[Conditioned]) -> None:
    branch = Branch(wildrobot, motions[0], tracked(), motions[0].initial_qvel, (0, 0, 0), 1)
    branch.data.qvel[:] = 1e12
    trajectory = branch.improve(branch.sampler.read_state(branch.data), None)
    assert np.isfinite(trajectory.ctrl).all()
    assert np.isfinite(trajectory.gains).all()


def test_the_initial_velocity_is_the_recipes(wildrobot: Robot, motions: list[Conditioned]) -> None:
    rollout = generate(wildrobot, motions[:1], tracked(initial_velocity="zero"))[0]
    assert not rollout.initial_qvel.any()
    replayed = replay(wildrobot, rollout, rollout.recipe)
    np.testing.assert_array_equal(replayed[0], rollout.qpos)


@pytest.mark.parametrize("nthread", [1, 2])
def test_what_progress_raises_stops_the_work(wildrobot: Robot, motions: list[Conditioned], nthread: int) -> None:
    class StopHereError(Exception):
        pass

    def stop(share: float, text: str) -> None:
        raise StopHereError

    with pytest.raises(StopHereError):
        generate(wildrobot, motions, tracked(), nthread=nthread, progress=stop)


def test_progress_counts_frames(wildrobot: Robot, motions: list[Conditioned]) -> None:
    told: list[int] = []
    plan(wildrobot, motions[0], tracked(), motions[0].initial_qvel, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == len(motions[0].dof_pos)


# --- The recipe -----------------------------------------------------------------------------------------------------------


def test_a_tracked_recipe_reads_back() -> None:
    recipe = Recipe.for_mode("tracked", seed=3)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict({"mode": "tracked", "seed": 3}) == recipe
    other = Recipe.from_dict({"mode": "tracked", "seed": 3, "planner": {"samples": 32, "cost": {"joints": 4}}})
    assert other.planner is not None
    assert other.planner.samples == 32
    assert other.planner.cost == TrackingCost(joints=4.0)
    assert other.digest != recipe.digest


@pytest.mark.parametrize(
    ("planner", "key"),
    [
        ({"samples": 8}, "planner.samples"),
        ({"samples": 64.0}, "planner.samples"),
        ({"horizon_sec": 0}, "planner.horizon_sec"),
        ({"noise_rad": float("nan")}, "planner.noise_rad"),
        ({"damping": []}, "planner.damping"),
        ({"damping": [1, "a"]}, "planner.damping[1]"),
        ({"step_lengths": [0.0]}, "planner.step_lengths[0]"),
        ({"samples": 16, "damping": [1] * 8}, "planner.damping"),
        ({"cost": {"joints": -1}}, "planner.cost.joints"),
        ({"cost": {"joint": 1}}, "planner.cost"),
        ({"attempt_growth": 0.5}, "planner.attempt_growth"),
        ({"sample": 1}, "planner"),
        ([], "planner"),
    ],
)
def test_a_wrong_planner_is_refused(planner: object, key: str) -> None:
    with pytest.raises(RecipeRefused) as refused:
        Recipe.from_dict({"mode": "tracked", "planner": planner})
    assert refused.value.key == key


def test_only_the_tracked_mode_plans_and_it_has_no_harness() -> None:
    refusals: list[Callable[[], Recipe]] = [
        lambda: Recipe(mode="rollout", harness=Harness.none(), planner=Planner()),
        lambda: Recipe(mode="tracked", harness=Harness.none()),
        lambda: Recipe(mode="tracked", harness=Harness.assist(), planner=Planner()),
    ]
    for make in refusals:
        with pytest.raises(RecipeRefused):
            make()
