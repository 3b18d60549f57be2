"""Records a controller of one's own in MuJoCo as a clip for mode `recorded`.

    .venv/bin/python examples/record_from_mujoco.py march.npz [--gain 0.3]
    .venv/bin/ampref score march.npz --mode recorded

The controller stands for any other, such as a policy: it follows the bundled march in place, and leans the ankles and the hips
against the tilt of the root. The file has what the controller was to do (the march), what it did (the controls of every frame,
and the state before the first) and what came of it (the state after each), which says whether the recording reproduces.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from amp_core import Robot, read_motion
from amp_core.engine import mujoco
from amp_core.motion import condition
from amp_core.motions import bundled_motions

MOTION = "march_in_place"
DAMPING_SEC = 0.1
"""s; how far ahead of the tilt the controller looks."""


def record(path: Path, gain: float) -> None:
    """Simulate the controller, and write the recording to `path`.

    Args:
      gain: rad of a joint's target for a radian of tilt; 0 plays the march open loop.
    """
    robot = Robot.load("wildrobot")
    motion = next(read_motion(file) for file in bundled_motions() if file.stem == MOTION)
    march = condition(motion, robot)
    model, data = robot.model, mujoco.MjData(robot.model)
    data.qpos[:], data.qvel[:] = march.initial_qpos, march.initial_qvel
    initial_qpos, initial_qvel = data.qpos.copy(), data.qvel.copy()
    turn_rates = slice(robot.root_qvel_adr + 3, robot.root_qvel_adr + 6)
    names = list(robot.joint_names)
    ctrl, qpos = [], []
    for joints in march.dof_pos:
        # The body's z axis in the world leans by these angles; the turn rate is in the body's frame.
        up = data.body(robot.root_body).xmat.reshape(3, 3)[:, 2] if data.time > 0 else np.array([0.0, 0.0, 1.0])
        roll_rate, pitch_rate, _ = data.qvel[turn_rates]
        pitch, roll = up[0] + DAMPING_SEC * pitch_rate, -up[1] + DAMPING_SEC * roll_rate
        targets = dict(zip(names, joints, strict=True))
        for side in ("left", "right"):
            targets[f"{side}_ankle_pitch"] += gain * pitch
            targets[f"{side}_hip_roll"] -= gain * roll
        data.ctrl[robot.ctrl_adr] = np.clip([targets[name] for name in names], *robot.joint_range.T)
        ctrl.append(data.ctrl.copy())
        mujoco.mj_step(model, data, nstep=robot.substeps)
        qpos.append(data.qpos.copy())
    states = np.array(qpos)
    root = robot.root_qpos_adr
    np.savez(
        path,
        fps=1.0 / robot.control_dt,
        root_pos=march.root_pos,
        root_rot=march.root_rot,
        dof_pos=march.dof_pos,
        joint_names=names,
        ctrl=np.array(ctrl),
        initial_qpos=initial_qpos,
        initial_qvel=initial_qvel,
        recorded_qpos=states,
        timestep=model.opt.timestep,
        mujoco_version=mujoco.__version__,
    )
    print(f"{path}: {len(states)} frames, the root ends at {states[-1][root : root + 3].round(3)} m")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the .npz to write")
    parser.add_argument("--gain", type=float, default=0.3, help="rad of a joint's target for a radian of tilt")
    options = parser.parse_args()
    record(options.out, options.gain)
