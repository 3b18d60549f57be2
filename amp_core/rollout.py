"""Generation: conditioned motions in, simulated rollouts out, many clips in one batch.

Timing. A clip of N frames gives N rows. Control step k holds `ctrl[k]` and the harness force `stab_force[k]` over all its
physics substeps; row k of every array is the state after that step and is compared with frame k of the clip. `ctrl[k]` is the
clip's joint angles of frame k or, in tracked mode, what was planned for it, clipped to the servos' range. The simulation starts
from the clip's frame 0.

A simulation that raises a warning or leaves the finite numbers at frame k is stopped there: rows 0 … k−1 are kept, `failure`
says why. It cannot disturb the others in its batch: each clip's rows are the same bits alone, in any company, and on any number
of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from amp_core import contacts, features, kinematics, rotations
from amp_core.engine import Batch, SimulationError, mujoco
from amp_core.errors import PhysicsFailed
from amp_core.recipe import GENERATED_MODES, Harness, Recipe
from amp_core.tracking import Plan, plan

if TYPE_CHECKING:
    from amp_core.motion import Conditioned
    from amp_core.robot import Robot

Array = npt.NDArray[np.float64]
Progress = Callable[[float, str], None]
"""Called with the share that is done, in [0, 1], and a few words. It may raise to stop the work."""

BATCH_SIZE = 64
"""Clips that are simulated side by side. More would cost memory and gain nothing."""

_BLOCK = 2048  # rows (clips times frames) of sensor data, about, that are kept before they are condensed
_PROGRESS_EVERY = 50  # frames
_CLIPS_TOLD = 3  # of those that are planned at a time, in a line of progress
_PLANNING_TICK = 0.1  # s between two looks at what several planners have done

_SLEEP = int(mujoco.mjtEnableBit.mjENBL_SLEEP)


@dataclass(frozen=True)
class Failure:
    """Why a simulation stopped.

    Args:
      frame: the first frame that could not be simulated.
      reason: in words.
      warnings: MuJoCo's warnings by name, how often each was raised.
    """

    frame: int
    reason: str
    warnings: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        return {"frame": self.frame, "reason": self.reason, "warnings": dict(self.warnings)}


@dataclass(frozen=True, eq=False)
class Rollout:
    """One simulated clip: n joints, C channels, F feet, N rows. Arrays are read-only.

    Args:
      name, source_digest: the motion's.
      recipe: what it was generated with.
      clip_frames: frames of the conditioned clip; N, unless the simulation failed.
      failure: why there are fewer rows, or None.
      features: (N, 2n+7+C) float32, canonical layout.
      foot_contacts: (N, C) float32 0/1: the channel's normal force in the last substep is above the recipe's threshold,
        which is what an environment reads after stepping.
      channel_loads: (N, C) N, normal force on each channel, mean over the frame's substeps.
      sum_fn_per_frame: (N,) N, its sum over the channels.
      sum_fn_last_substep: (N,) N, the same sum in the last substep alone.
      dof_pos, dof_vel: (N, n) rad, rad/s, in feature order.
      root_pos: (N, 3) m; root_rot: (N, 4) xyzw; root_lin_vel: (N, 3) m/s; root_ang_vel: (N, 3) rad/s. All in the world frame.
      qpos, qvel: (N, nq), (N, nv) as MuJoCo has them.
      ctrl: (N, nu) rad. stab_force: (N,) N, signed, positive is up.
      initial_qpos, initial_qvel: (nq,), (nv,) the state before the first control step.
      forced_qpos: (N, nq) what was written into `qpos` before each control step; None unless the mode is `teacher_forced`.
      reference_root_pos, reference_root_rot (xyzw), reference_dof_pos: (N, …) the clip's frames.
      reference_contacts: (N, F) bool, which feet the clip means to stand on (`kinematics.kinematic_contacts`); None unless the
        mode is `tracked`.
      plan: what planned the controls; None unless the mode is `tracked`.
      nonfoot_contact: (N,) bool, anything but a foot touched the ground in any substep.
      actuator_force: (N, nu) N·m (N for a slide), what each actuator did in the last substep.
      saturation: (N,) share of the actuators at their force limit in the last substep.
      foot_speed: (N, F) m/s, see `kinematics.FootTracker`.
      dt: s, a frame.
    """

    name: str
    source_digest: str
    recipe: Recipe
    clip_frames: int
    failure: Failure | None
    features: npt.NDArray[np.float32]
    foot_contacts: npt.NDArray[np.float32]
    channel_loads: Array
    sum_fn_per_frame: Array
    sum_fn_last_substep: Array
    dof_pos: Array
    dof_vel: Array
    root_pos: Array
    root_rot: Array
    root_lin_vel: Array
    root_ang_vel: Array
    qpos: Array
    qvel: Array
    ctrl: Array
    stab_force: Array
    initial_qpos: Array
    initial_qvel: Array
    forced_qpos: Array | None
    reference_root_pos: Array
    reference_root_rot: Array
    reference_dof_pos: Array
    reference_contacts: npt.NDArray[np.bool_] | None
    plan: Plan | None
    nonfoot_contact: npt.NDArray[np.bool_]
    actuator_force: Array
    saturation: Array
    foot_speed: Array
    dt: float

    @property
    def solver_warnings(self) -> int:
        """How many warnings MuJoCo raised."""
        return sum(self.failure.warnings.values()) if self.failure else 0

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The export, in its order. `forced_qpos` is there in `teacher_forced` mode only."""
        names = (
            "features",
            "foot_contacts",
            "dof_pos",
            "dof_vel",
            "root_pos",
            "root_rot",
            "root_lin_vel",
            "root_ang_vel",
            "qpos",
            "qvel",
            "ctrl",
            "stab_force",
            "sum_fn_per_frame",
            "sum_fn_last_substep",
            "channel_loads",
            "initial_qpos",
            "initial_qvel",
            "reference_root_pos",
            "reference_root_rot",
            "reference_dof_pos",
        )
        found: dict[str, npt.NDArray[Any]] = {name: getattr(self, name) for name in names}
        # The seed's name for the series, beside the contract's.
        found["stab_force_per_frame"] = np.abs(self.stab_force)
        if self.forced_qpos is not None:
            found["forced_qpos"] = self.forced_qpos
        return found


def harness_force(harness: Harness, target: float, height: float, velocity: float, quat_wxyz: Sequence[float]) -> float:
    """N, the vertical force on the root for one control step; positive is up.

    `clip(kp·(target − height) − kd·velocity, ±cap)`, and 0 while |pitch| or |roll| is at the gate or beyond. Plain floats and
    libm on purpose: numpy's vector kernels may round differently in batches of another size.
    """
    if harness.is_off:
        return 0.0
    gate, cap = harness.orient_gate, harness.force_cap
    pitch, roll = rotations.pitch_roll_of_frame(quat_wxyz)
    if not (-gate < pitch < gate and -gate < roll < gate):
        return 0.0
    force = harness.height_kp * (target - height) - harness.height_kd * velocity
    if cap is None:
        return force
    return cap if force > cap else -cap if force < -cap else force


def _offset(model: Any, state: mujoco.mjtState) -> int:
    """Where a component of the state begins in a row: they are ordered by their bits."""
    return int(mujoco.mj_stateSize(model, int(state) - 1))


def generate(
    robot: Robot,
    motions: Sequence[Conditioned],
    recipes: Recipe | Sequence[Recipe],
    *,
    nthread: int = 1,
    progress: Progress | None = None,
    attempt: int = 0,
    plans: Sequence[Plan | None] | None = None,
) -> list[Rollout]:
    """Simulate every motion, in batches; what is to be tracked is planned first.

    Args:
      robot: the robot that all of them are for.
      motions: conditioned for this robot.
      recipes: one for each motion, or one for all.
      nthread: threads that step the physics; the result does not depend on it.
      progress: called now and then; what it raises stops the work and is passed on.
      attempt: another number plans with other noise.
      plans: one for each motion, made before and perhaps for other physics: they are simulated, and nothing is planned.

    Returns:
      One rollout a motion, in order. A simulation that fails gives a rollout with its `failure`, not an exception.
    """
    per_motion = [recipes] * len(motions) if isinstance(recipes, Recipe) else list(recipes)
    if len(per_motion) != len(motions):
        raise ValueError(f"{len(motions)} motions but {len(per_motion)} recipes")
    if any(recipe.mode not in GENERATED_MODES for recipe in per_motion):
        raise ValueError(f"a rollout's mode is one of {', '.join(GENERATED_MODES)}; `amp_core.score` chooses for mode auto")
    if plans is None:
        planned = _plan_all(robot, motions, per_motion, attempt, nthread, progress)
    else:
        planned = {i: plan for i, plan in enumerate(plans) if plan is not None}
    if plans is None and planned and progress is not None:
        whole, progress = progress, None  # What remains is quick beside planning.
        whole(1.0, "planned")
    total = sum(len(motion.dof_pos) for motion in motions)
    # Clips of like length side by side: a batch is only full until its shortest clip ends.
    order = sorted(range(len(motions)), key=lambda i: -len(motions[i].dof_pos))
    rollouts: dict[int, Rollout] = {}
    done = 0
    for first in range(0, len(order), BATCH_SIZE):
        chosen = order[first : first + BATCH_SIZE]
        driving = [planned.get(i) for i in chosen]
        stage = _Stage(robot, [motions[i] for i in chosen], [per_motion[i] for i in chosen], nthread, driving)
        before = done

        def report(frames: int, before: int = before) -> None:
            if progress is not None:
                progress(min(1.0, (before + frames) / total), f"{before + frames} of {total} frames")

        stage.run(report)
        for slot, i in enumerate(chosen):
            rollouts[i] = stage.rollout(slot)
            done += len(motions[i].dof_pos)
    return [rollouts[i] for i in range(len(motions))]


def _plan_all(
    robot: Robot,
    motions: Sequence[Conditioned],
    recipes: Sequence[Recipe],
    attempt: int,
    nthread: int,
    progress: Progress | None,
) -> dict[int, Plan]:
    """The plans of the motions that are to be tracked, by their index."""
    tracked = [i for i, recipe in enumerate(recipes) if recipe.mode == "tracked"]
    total = sum(len(motions[i].dof_pos) for i in tracked)
    done = dict.fromkeys(tracked, 0)
    stopped = threading.Event()

    def work(i: int, threads: int) -> Plan:
        def planned(frames: int) -> None:
            if stopped.is_set():
                raise _Stopped
            done[i] = frames

        start = np.zeros_like(motions[i].initial_qvel) if recipes[i].initial_velocity == "zero" else motions[i].initial_qvel
        made = plan(robot, motions[i], recipes[i], start, attempt=attempt, nthread=threads, progress=planned)
        done[i] = len(motions[i].dof_pos)  # Also where the robot was lost before.
        return made

    def report() -> None:
        if progress is not None:
            clips = [(motions[i].name, done[i], len(motions[i].dof_pos)) for i in tracked]
            progress(sum(done.values()) / total, _planned(clips))

    if not tracked:
        return {}
    # A clip a thread: while one waits for its simulations, another thinks. The longest first, so that none is left for last.
    # A single clip has a thread of its own, too: this one is free to be interrupted, and then tells the others to stop.
    threads = max(1, nthread // max(1, len(tracked)))
    # Linear algebra on several threads adds in another order, and is slower for matrices of this size.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(nthread, len(tracked))) as pool:
        order = sorted(tracked, key=lambda i: -len(motions[i].dof_pos))
        pending = {i: pool.submit(work, i, threads) for i in order}
        try:
            while wait(pending.values(), timeout=_PLANNING_TICK).not_done:
                if any(future.done() and future.exception() for future in pending.values()):
                    break
                report()
        finally:
            stopped.set()  # Of no effect on those that have ended.
            for future in pending.values():
                future.cancel()
    errors = [None if future.cancelled() else future.exception() for future in pending.values()]
    for error in errors:
        # What stopped the others, and not what they say of it.
        if error is not None and not isinstance(error, _Stopped):
            raise error
    return {i: pending[i].result() for i in tracked}


def _planned(clips: Sequence[tuple[str, int, int]]) -> str:
    """How far planning has come, in a few words, from each clip's name, planned frames and frames."""
    if len(clips) == 1:
        return f"planned {clips[0][1]} of {clips[0][2]} frames"
    ended = sum(done == frames for _, done, frames in clips)
    under_way = [f"{name} {done / frames:.0%}" for name, done, frames in clips if 0 < done < frames]
    shown = ", ".join(under_way[:_CLIPS_TOLD]) + (", …" if len(under_way) > _CLIPS_TOLD else "")
    return f"{ended} of {len(clips)} clips planned" + (f"; {shown}" if shown else "")


class _Stopped(Exception):
    """Another thread's work has ended early."""


class _Stage:
    """The simulation of one batch of clips, from their first frame to their last."""

    def __init__(
        self, robot: Robot, motions: list[Conditioned], recipes: list[Recipe], nthread: int, plans: Sequence[Plan | None]
    ) -> None:
        self.robot = robot
        self.plans = plans
        self.motions = motions
        self.recipes = recipes
        self.tracker = kinematics.FootTracker(robot, nthread=nthread, size=max(len(motion.dof_pos) for motion in motions) + 1)
        self.probes = [contacts.instrument(robot, recipe.physics) for recipe in recipes]
        self.lengths = [len(motion.dof_pos) for motion in motions]
        model = self.probes[0].model
        nsim, frames = len(motions), max(self.lengths)

        # Sleeping islands keep state outside the rows that a batch normally swaps in and out.
        self.batch = Batch(model, nsim, nthread=nthread, persistent=bool(model.opt.enableflags & _SLEEP))
        if any(probe is not self.probes[0] for probe in self.probes):
            self.batch.set_models([probe.model for probe in self.probes])
        self.qpos, self.qvel = self.batch.bind("qpos"), self.batch.bind("qvel")
        # In a row of the state, qpos and qvel lie side by side, and so do ctrl and qfrc_applied: one copy takes both.
        position, control = (_offset(model, state) for state in (mujoco.mjtState.mjSTATE_QPOS, mujoco.mjtState.mjSTATE_CTRL))
        inputs = model.nu + robot.root_qvel_adr + 3
        self.moving = self.batch.state[:, position : position + model.nq + model.nv]
        self.driven = self.batch.state[:, control : control + inputs]
        self.force = self.batch.bind("actuator_force")

        # What drives each frame: the controls, and the applied forces up to the root's vertical one.
        self.inputs = np.zeros((nsim, frames, inputs))
        self.controls, self.stab = self.inputs[:, :, : model.nu], self.inputs[:, :, -1]
        self.targets = [float(motion.root_pos[:, 2].mean()) for motion in motions]
        self.initial_qpos = np.array([motion.initial_qpos for motion in motions])
        self.initial_qvel = np.array([motion.initial_qvel for motion in motions])
        self.forced: list[Array | None] = []
        for i, (motion, recipe) in enumerate(zip(motions, recipes, strict=True)):
            planned = plans[i]
            if planned is None:
                self.controls[i, : self.lengths[i], robot.ctrl_adr] = motion.dof_pos.T
            else:
                self.controls[i, : self.lengths[i]] = planned.ctrl
            if recipe.initial_velocity == "zero":
                self.initial_qvel[i] = 0.0
            self.forced.append(motion.qpos(robot) if recipe.mode == "teacher_forced" else None)
        limited = model.actuator_ctrllimited.astype(bool)
        low = np.where(limited, model.actuator_ctrlrange[:, 0], -np.inf)
        high = np.where(limited, model.actuator_ctrlrange[:, 1], np.inf)
        np.clip(self.controls, low, high, out=self.controls)

        channels = len(robot.channels)
        self.rows_moving = np.empty((nsim, frames, model.nq + model.nv))
        self.rows_qpos, self.rows_qvel = np.split(self.rows_moving, [model.nq], axis=2)
        self.rows_force = np.empty((nsim, frames, model.nu))
        self.loads = np.empty((nsim, frames, channels))
        self.last_loads = np.empty((nsim, frames, channels))
        self.nonfoot = np.zeros((nsim, frames), dtype=bool)
        self.failures: list[Failure | None] = [None] * nsim
        self.warned = self.batch.warning[:, :, 1]  # how often each simulation raised each warning; never reset

        # A fresh row has a zero warm start, as a fresh MjData has; the certificate starts from the same.
        self.qpos[:] = self.initial_qpos
        self.qvel[:] = self.initial_qvel

    def run(self, report: Callable[[int], None]) -> None:
        model, substeps, nsensor = self.batch.model, self.robot.substeps, self.probes[0].model.nsensordata
        # What the harness looks at, in one view: height, quaternion, …, vertical velocity.
        seen = self.moving[:, self.robot.root_qpos_adr + 2 : model.nq + self.robot.root_qvel_adr + 3]
        harnesses = [recipe.harness for recipe in self.recipes]
        step, recorded, warnings = self.batch.rollout, ("sensordata",), self.batch.warning
        frame, done, warned = 0, 0, 0
        while active := [i for i, length in enumerate(self.lengths) if frame < length and self.failures[i] is None]:
            # Until one of these clips ends or fails, nothing but their states changes.
            start, stop = frame, min(frame + max(1, _BLOCK // len(active)), *(self.lengths[i] for i in active))
            block = np.empty((stop - start, len(active), substeps, nsensor))
            ids = np.array(active, dtype=np.int64)
            everyone = len(ids) == len(self.lengths)
            chosen, called = (slice(None), None) if everyone else (ids, ids)
            forcing = [(i, poses) for i in active if (poses := self.forced[i]) is not None]
            for rows in block:
                for i, poses in forcing:
                    self.qpos[i] = poses[frame]
                self.stab[chosen, frame] = [
                    harness_force(harnesses[i], self.targets[i], now[0], now[-1], now[1:5])
                    for i, now in zip(active, seen[chosen].tolist(), strict=True)
                ]
                self.driven[chosen] = self.inputs[chosen, frame]
                errors: dict[int, str] = {}
                try:
                    step(substeps, record=recorded, ids=called, out={"sensordata": rows})
                except SimulationError as error:
                    errors = {int(i): self.batch.error(int(i)) for i in error.ids}
                self.rows_moving[chosen, frame] = self.moving[chosen]
                self.rows_force[chosen, frame] = self.force[chosen]
                frame += 1
                done += len(active)
                if frame % _PROGRESS_EVERY == 1:
                    report(done)
                # A simulation that still runs has none, so that its first warning always adds to the count.
                if errors or np.count_nonzero(warnings) != warned:
                    for i in active:
                        self.failures[i] = self._diagnose(i, frame - 1, errors.get(i))
                    warned = int(np.count_nonzero(warnings))
                    break
            self._condense(block[: frame - start], ids, start)
        report(sum(self.lengths))

    def _diagnose(self, i: int, frame: int, error: str | None) -> Failure | None:
        raised = self._raised(i)
        if error is not None:
            return Failure(frame, f"MuJoCo failed at frame {frame}: {error}", raised)
        if raised:
            return Failure(frame, f"MuJoCo warned at frame {frame}: {', '.join(raised)}", raised)
        return None

    def _raised(self, i: int) -> dict[str, int]:
        """Simulation i's warnings, by name."""
        counts = self.warned[i]
        return {mujoco.mjtWarning(w).name.removeprefix("mjWARN_"): int(counts[w]) for w in np.flatnonzero(counts)}

    def _first_failure(self, i: int) -> Failure | None:
        """Simulation i's failure; a row that is not finite counts where it is, though MuJoCo only warns a step later."""
        failure = self.failures[i]
        rows = self.lengths[i] if failure is None else failure.frame
        finite = np.isfinite(self.rows_qpos[i, :rows]).all(axis=1) & np.isfinite(self.rows_qvel[i, :rows]).all(axis=1)
        if finite.all():
            return failure
        frame = int(np.argmin(finite))
        return Failure(frame, f"the state is not finite at frame {frame}", self._raised(i))

    def _condense(self, block: Array, ids: npt.NDArray[np.int64], start: int) -> None:
        """Turn a block of sensor data, (frames, sims, substeps, sensors), into loads and contacts a frame."""
        if len(block) == 0:
            return
        stop = start + len(block)
        probe = self.probes[0]  # The sensors' layout does not depend on the physics scale.
        loads = probe.loads(block)
        nonfoot = probe.nonfoot(block).any(axis=2)
        # An explicit sum over the substeps, so that the order of additions is the same in every batch.
        total = loads[:, :, 0].copy()
        for substep in range(1, loads.shape[2]):
            total += loads[:, :, substep]
        total /= loads.shape[2]
        self.loads[ids, start:stop] = total.swapaxes(0, 1)
        self.last_loads[ids, start:stop] = loads[:, :, -1].swapaxes(0, 1)
        self.nonfoot[ids, start:stop] = nonfoot.T

    def rollout(self, i: int) -> Rollout:
        """The result of the batch's clip i."""
        robot, motion, recipe, failure = self.robot, self.motions[i], self.recipes[i], self._first_failure(i)
        rows = self.lengths[i] if failure is None else failure.frame
        qpos, qvel = self.rows_qpos[i, :rows].copy(), self.rows_qvel[i, :rows].copy()
        root_q, root_v = robot.root_qpos_adr, robot.root_qvel_adr
        root_rot = robot.root_rotation(qpos)
        root_lin_vel = qvel[:, root_v : root_v + 3].copy()
        root_ang_vel = features.body_to_world(root_rot, qvel[:, root_v + 3 : root_v + 6])
        dof_pos, dof_vel = qpos[:, robot.qpos_adr], qvel[:, robot.qvel_adr]
        last = self.last_loads[i, :rows]
        touching = (last > recipe.force_threshold).astype(np.float32)
        forced = self.forced[i]
        before = np.concatenate([self.initial_qpos[i][None], qpos[:-1]])[:rows] if forced is None else forced[:rows]
        loads = self.loads[i, :rows].copy()
        arrays: dict[str, npt.NDArray[Any]] = {
            "features": features.extract(
                joint_pos=dof_pos,
                joint_vel=dof_vel,
                root_rot=root_rot,
                root_lin_vel=root_lin_vel,
                root_ang_vel=root_ang_vel,
                root_height=qpos[:, root_q + 2],
                foot_contacts=touching,
            ),
            "foot_contacts": touching,
            "channel_loads": loads,
            "sum_fn_per_frame": loads.sum(axis=1),
            "sum_fn_last_substep": last.sum(axis=1),
            "dof_pos": dof_pos,
            "dof_vel": dof_vel,
            "root_pos": qpos[:, root_q : root_q + 3].copy(),
            "root_rot": root_rot,
            "root_lin_vel": root_lin_vel,
            "root_ang_vel": root_ang_vel,
            "qpos": qpos,
            "qvel": qvel,
            "ctrl": self.controls[i, :rows].copy(),
            "stab_force": self.stab[i, :rows].copy(),
            "initial_qpos": self.initial_qpos[i].copy(),
            "initial_qvel": self.initial_qvel[i].copy(),
            "reference_root_pos": np.array(motion.root_pos[:rows], dtype=np.float64),
            "reference_root_rot": np.array(motion.root_rot[:rows], dtype=np.float64),
            "reference_dof_pos": np.array(motion.dof_pos[:rows], dtype=np.float64),
            "nonfoot_contact": self.nonfoot[i, :rows].copy(),
            "actuator_force": self.rows_force[i, :rows].copy(),
            "saturation": self._saturation(i, rows),
            "foot_speed": self.tracker.speeds(before, qpos),
        }
        forced = None if forced is None else forced[:rows].copy()
        for array in (*arrays.values(), *(() if forced is None else (forced,))):
            array.setflags(write=False)
        return Rollout(
            name=motion.name,
            source_digest=motion.source_digest,
            recipe=recipe,
            clip_frames=self.lengths[i],
            failure=failure,
            forced_qpos=forced,
            reference_contacts=self._reference_contacts(i, rows),
            plan=self.plans[i],
            dt=robot.control_dt,
            **arrays,
        )

    def _reference_contacts(self, i: int, rows: int) -> npt.NDArray[np.bool_] | None:
        if self.plans[i] is None:
            return None
        found = kinematics.kinematic_contacts(self.robot, self.motions[i].qpos(self.robot))[:rows].copy()
        found.setflags(write=False)
        return found

    def _saturation(self, i: int, rows: int) -> Array:
        share: Array = saturated(self.probes[i].model, self.rows_force[i, :rows]).mean(axis=1)
        return share


def saturated(model: Any, force: Array) -> npt.NDArray[np.bool_]:
    """(N, nu) which actuators are at their force limit, from their forces (N, nu)."""
    from amp_core.quality import SATURATED_FROM

    low, high = model.actuator_forcerange.T
    limited = model.actuator_forcelimited.astype(bool)
    # A side whose limit is 0 cannot push that way at all; being there is no sign of strain.
    at_high = (high > 0) & (force >= SATURATED_FROM * high)
    at_low = (low < 0) & (force <= SATURATED_FROM * low)
    found: npt.NDArray[np.bool_] = limited & (at_high | at_low)
    return found


def replay(robot: Robot, rollout: Rollout | Mapping[str, npt.NDArray[Any]], recipe: Recipe) -> tuple[Array, Array]:
    """Run the recorded controls again, from a fresh `MjData`, on the robot's own model.

    A fresh `MjData` at `initial_qpos` and `initial_qvel`; then, for every row: write `forced_qpos[k]` into `qpos` where there
    is one, set `ctrl` and the vertical `qfrc_applied` of the root, and step `substeps` times. The **replay certificate** is
    that the result equals the recorded `qpos` and `qvel` bit for bit.

    Args:
      rollout: a rollout, or the arrays of its export.
      recipe: of the rollout, for its physics scale.

    Returns:
      (N, nq) and (N, nv).

    Raises:
      PhysicsFailed: an array is missing.
    """
    arrays = rollout if isinstance(rollout, Mapping) else rollout.arrays()
    needed = ("initial_qpos", "initial_qvel", "ctrl", "stab_force")
    for key in (*needed, *(("forced_qpos",) if recipe.mode == "teacher_forced" else ())):
        if key not in arrays:
            raise PhysicsFailed("the export lacks an array that the replay needs", key=key, expected=", ".join(needed))
    model = robot.scaled_model(recipe.physics)
    data = mujoco.MjData(model)
    data.qpos[:] = arrays["initial_qpos"]
    data.qvel[:] = arrays["initial_qvel"]
    forced = arrays.get("forced_qpos")
    rows = len(arrays["ctrl"])
    qpos, qvel = np.empty((rows, model.nq)), np.empty((rows, model.nv))
    for k in range(rows):
        if forced is not None:
            data.qpos[:] = forced[k]
        data.ctrl[:] = arrays["ctrl"][k]
        data.qfrc_applied[robot.root_qvel_adr + 2] = arrays["stab_force"][k]
        mujoco.mj_step(model, data, nstep=robot.substeps)
        qpos[k], qvel[k] = data.qpos, data.qvel
    return qpos, qvel
