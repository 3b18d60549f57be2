"""The simulation of one batch of clips, and the harness that acts in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from amp_core import contacts, features
from amp_core.engine import Batch, SimulationError, mujoco
from amp_core.kinematics import FootTracker, kinematic_contacts
from amp_core.motion import BoundRecording, Conditioned
from amp_core.recipe import RECORDED, Recipe
from amp_core.robot import Robot
from amp_core.rollout.record import Failure, Rollout
from amp_core.tracking import Plan, harness_force, harness_targets

Array = npt.NDArray[np.float64]

_BLOCK = 2048  # rows (clips times frames) of sensor data, about, that are kept before they are condensed
_REPORT_EVERY = 50  # frames

_CTRL = int(mujoco.mjtState.mjSTATE_CTRL)
_SLEEP = int(mujoco.mjtEnableBit.mjENBL_SLEEP)


def start_velocity(clip: Conditioned, recipe: Recipe) -> Array:
    """(nv,) the velocity with which the clip's simulation starts."""
    return np.zeros_like(clip.initial_qvel) if recipe.initial_velocity == "zero" else clip.initial_qvel


def _recording_of(clip: Conditioned) -> BoundRecording:
    if clip.recording is None:
        raise ValueError(f"the clip {clip.name!r} was not conditioned for mode {RECORDED}")
    return clip.recording


class Simulation:
    """One batch of clips, side by side from their first frame to their last.

    Args:
      plans: of each clip, the planned controls, or None to drive it by its own joint angles.
      lengths: the frames to simulate of each clip, from its first.
      attempts: of each clip's plan; in mode `assisted` it decides how strong the harness is.
    """

    def __init__(
        self,
        robot: Robot,
        clips: Sequence[Conditioned],
        recipes: Sequence[Recipe],
        plans: Sequence[Plan | None],
        lengths: Sequence[int],
        nthread: int,
        attempts: Sequence[int],
    ) -> None:
        self.robot, self.clips, self.recipes, self.plans, self.lengths = robot, clips, recipes, plans, lengths
        self.tracker = FootTracker(robot, nthread=nthread, size=max(self.lengths) + 1)
        self.probes = [contacts.instrument(robot, recipe.physics) for recipe in recipes]
        model = self.probes[0].model
        nsim, frames = len(clips), max(self.lengths)

        # Sleeping islands keep state outside the rows that a batch normally swaps in and out.
        self.batch = Batch(model, nsim, nthread=nthread, persistent=bool(model.opt.enableflags & _SLEEP))
        if any(probe is not self.probes[0] for probe in self.probes):
            self.batch.set_models([probe.model for probe in self.probes])
        self.qpos = self.batch.bind("qpos")
        # In a row of the state, qpos and qvel lie side by side, and so do ctrl and qfrc_applied: one copy takes both. The
        # components of the state are ordered by their bits.
        position, control = (
            int(mujoco.mj_stateSize(model, int(state) - 1))
            for state in (mujoco.mjtState.mjSTATE_QPOS, mujoco.mjtState.mjSTATE_CTRL)
        )
        inputs = model.nu + robot.root_qvel_adr + 3
        self.moving = self.batch.state[:, position : position + model.nq + model.nv]
        self.driven = self.batch.state[:, control : control + inputs]
        self.force = self.batch.bind("actuator_force")

        # The inputs of each frame: the controls, and the applied forces up to the root's vertical one.
        self.inputs = np.zeros((nsim, frames, inputs))
        self.controls, self.stab = self.inputs[:, :, : model.nu], self.inputs[:, :, -1]
        for i, (clip, plan) in enumerate(zip(clips, plans, strict=True)):
            if plan is not None:
                self.controls[i, : lengths[i]] = plan.ctrl[: lengths[i]]
            elif recipes[i].mode == RECORDED:
                self.controls[i, : lengths[i]] = _recording_of(clip).ctrl[: lengths[i], -1]
            else:
                self.controls[i, : lengths[i], robot.ctrl_adr] = clip.dof_pos[: lengths[i]].T
        np.clip(self.controls, *robot.ctrl_range, out=self.controls)
        # Controls that change within a frame, (frames, substeps, nu) each; `controls` has the last of each frame.
        self.substep_controls = {
            i: np.clip(_recording_of(clip).ctrl[: lengths[i]], *robot.ctrl_range)
            for i, clip in enumerate(clips)
            if recipes[i].mode == RECORDED and plans[i] is None and _recording_of(clip).varies
        }
        self.harnesses = [
            recipe.harness_of(attempt, robot.mg_for(recipe.physics)) for recipe, attempt in zip(recipes, attempts, strict=True)
        ]
        self.targets = [harness_targets(clip.root_pos, recipe).tolist() for clip, recipe in zip(clips, recipes, strict=True)]
        self.forced = [
            clip.qpos(robot) if recipe.mode == "teacher_forced" else None for clip, recipe in zip(clips, recipes, strict=True)
        ]

        self.rows_moving = np.empty((nsim, frames, model.nq + model.nv))
        self.rows_force = np.empty((nsim, frames, model.nu))
        self.loads = np.empty((nsim, frames, len(robot.channels)))
        self.last_loads = np.empty_like(self.loads)
        self.nonfoot = np.zeros((nsim, frames), dtype=bool)
        self.failures: list[Failure | None] = [None] * nsim

        # A fresh row has a zero warm start, as a fresh MjData has; the certificate starts from the same.
        self.qpos[:] = self.initial_qpos = np.array([clip.initial_qpos for clip in clips])
        self.initial_qvel = np.array([start_velocity(clip, recipe) for clip, recipe in zip(clips, recipes, strict=True)])
        self.batch.bind("qvel")[:] = self.initial_qvel

    def run(self, report: Callable[[int], None]) -> None:
        """Simulate to the end of the longest clip; `report` is called now and then with the number of frames that are done."""
        model, substeps, nsensor = self.batch.model, self.robot.substeps, self.probes[0].model.nsensordata
        # The harness's inputs in one view: height, quaternion, …, vertical velocity.
        root = self.moving[:, self.robot.root_qpos_adr + 2 : model.nq + self.robot.root_qvel_adr + 3]
        harnesses = self.harnesses
        step, fields, warnings = self.batch.rollout, ("sensordata",), self.batch.warning
        frame, total, num_warnings = 0, 0, 0
        while active := [i for i, length in enumerate(self.lengths) if frame < length and self.failures[i] is None]:
            # Until one of these clips ends or fails, nothing but their states changes.
            start, stop = frame, min(frame + max(1, _BLOCK // len(active)), *(self.lengths[i] for i in active))
            block = np.empty((stop - start, len(active), substeps, nsensor))
            ids = np.array(active, dtype=np.int64)
            rows, batch_ids = (slice(None), None) if len(ids) == len(self.lengths) else (ids, ids)
            forcing = [(i, poses) for i in active if (poses := self.forced[i]) is not None]
            for sensors in block:
                for i, poses in forcing:
                    self.qpos[i] = poses[frame]
                self.stab[rows, frame] = [
                    harness_force(harnesses[i], self.targets[i][frame], state[0], state[-1], state[1:5])
                    for i, state in zip(active, root[rows].tolist(), strict=True)
                ]
                self.driven[rows] = self.inputs[rows, frame]
                ctrl = None
                if any(i in self.substep_controls for i in active):
                    # The controls of all, so that those that are held take the same way.
                    ctrl = np.repeat(self.controls[rows, frame][:, None], substeps, axis=1)
                    for place, i in enumerate(active):
                        if i in self.substep_controls:
                            ctrl[place] = self.substep_controls[i][frame]
                errors: dict[int, str] = {}
                try:
                    step(substeps, ctrl, _CTRL, fields, batch_ids, {"sensordata": sensors})
                except SimulationError as error:
                    errors = {int(i): self.batch.error(int(i)) for i in error.ids}
                self.rows_moving[rows, frame] = self.moving[rows]
                self.rows_force[rows, frame] = self.force[rows]
                frame += 1
                total += len(active)
                if frame % _REPORT_EVERY == 1:
                    report(total)
                # A simulation that still runs has no warning, so that its first one always adds to the count.
                if errors or np.count_nonzero(warnings) != num_warnings:
                    for i in active:
                        if (clip_warnings := self._warnings(i)) or i in errors:
                            verb, cause = ("failed", errors[i]) if i in errors else ("warned", ", ".join(clip_warnings))
                            self.failures[i] = Failure(frame - 1, f"MuJoCo {verb} at frame {frame - 1}: {cause}", clip_warnings)
                    num_warnings = int(np.count_nonzero(warnings))
                    break
            self._condense(block[: frame - start], ids, start)
        report(sum(self.lengths))

    def _warnings(self, i: int) -> dict[str, int]:
        """How often simulation i raised each warning, by name."""
        counts = self.batch.warning[i, :, 1]  # never reset
        return {mujoco.mjtWarning(w).name.removeprefix("mjWARN_"): int(counts[w]) for w in np.flatnonzero(counts)}

    def _condense(self, block: Array, ids: npt.NDArray[np.int64], start: int) -> None:
        """Turn a block of sensor data, (frames, sims, substeps, sensors), into loads and contacts a frame."""
        stop = start + len(block)
        probe = self.probes[0]  # The sensors' layout does not depend on the physics scale.
        loads = probe.loads(block)
        # An explicit sum over the substeps, so that the order of additions is the same in every batch.
        total = loads[:, :, 0].copy()
        for substep in range(1, loads.shape[2]):
            total += loads[:, :, substep]
        total /= loads.shape[2]
        self.loads[ids, start:stop] = total.swapaxes(0, 1)
        self.last_loads[ids, start:stop] = loads[:, :, -1].swapaxes(0, 1)
        self.nonfoot[ids, start:stop] = probe.nonfoot(block).any(axis=2).T

    def rollout(self, i: int) -> Rollout:
        """The result of the batch's clip i, after `run`."""
        robot, clip, recipe, failure = self.robot, self.clips[i], self.recipes[i], self.failures[i]
        rows = self.lengths[i] if failure is None else failure.frame
        finite = np.isfinite(self.rows_moving[i, :rows]).all(axis=1)
        if not finite.all():
            # MuJoCo warns of such a state a step later.
            rows = int(np.argmin(finite))
            failure = Failure(rows, f"the state is not finite at frame {rows}", self._warnings(i))
        qpos, qvel = (part.copy() for part in np.split(self.rows_moving[i, :rows], [self.batch.model.nq], axis=1))
        root_q, root_v = robot.root_qpos_adr, robot.root_qvel_adr
        root_rot = robot.root_rotation(qpos)
        root_lin_vel = qvel[:, root_v : root_v + 3].copy()
        root_ang_vel = features.body_to_world(root_rot, qvel[:, root_v + 3 : root_v + 6])
        dof_pos, dof_vel = qpos[:, robot.qpos_adr], qvel[:, robot.qvel_adr]
        loads, last_loads = self.loads[i, :rows].copy(), self.last_loads[i, :rows]
        touching = (last_loads > recipe.force_threshold).astype(np.float32)
        forces = self.rows_force[i, :rows].copy()
        forced_qpos = self.forced[i]
        starts = np.concatenate([self.initial_qpos[i][None], qpos[:-1]])[:rows] if forced_qpos is None else forced_qpos[:rows]
        return Rollout(
            name=clip.name,
            source_digest=clip.source_digest,
            recipe=recipe,
            clip_frames=clip.num_frames,
            failure=failure,
            features=features.extract(
                joint_pos=dof_pos,
                joint_vel=dof_vel,
                root_rot=root_rot,
                root_lin_vel=root_lin_vel,
                root_ang_vel=root_ang_vel,
                root_height=qpos[:, root_q + 2],
                foot_contacts=touching,
            ),
            foot_contacts=touching,
            channel_loads=loads,
            sum_fn_per_frame=loads.sum(axis=1),
            sum_fn_last_substep=last_loads.sum(axis=1),
            dof_pos=dof_pos,
            dof_vel=dof_vel,
            root_pos=qpos[:, root_q : root_q + 3].copy(),
            root_rot=root_rot,
            root_lin_vel=root_lin_vel,
            root_ang_vel=root_ang_vel,
            qpos=qpos,
            qvel=qvel,
            ctrl=self.controls[i, :rows].copy(),
            stab_force=self.stab[i, :rows].copy(),
            initial_qpos=self.initial_qpos[i].copy(),
            initial_qvel=self.initial_qvel[i].copy(),
            reference_root_pos=clip.root_pos[:rows].copy(),
            reference_root_rot=clip.root_rot[:rows].copy(),
            reference_dof_pos=clip.dof_pos[:rows].copy(),
            reference_dof_pos_raw=clip.dof_pos_raw[:rows].copy(),
            reference_contacts=kinematic_contacts(robot, clip.qpos(robot))[:rows].copy(),
            nonfoot_contact=self.nonfoot[i, :rows].copy(),
            actuator_force=forces,
            foot_speed=self.tracker.speeds(starts, qpos),
            forced_qpos=None if forced_qpos is None else forced_qpos[:rows].copy(),
            plan=self.plans[i],
            dt=robot.control_dt,
            ctrl_substeps=self.substep_controls[i][:rows].copy() if i in self.substep_controls else None,
        )
