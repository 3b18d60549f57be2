"""The clip as terms see it: joints, root and bodies of every frame, with velocities from finite differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amp_core.features import body_to_world
from amp_core.kinematics import body_poses
from amp_core.motion import Conditioned
from amp_core.robot import Robot
from amp_core.rotations import rotation_vector

__all__ = ["ClipReference"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClipReference:
    """A conditioned clip of N frames for a robot with n joints.

    Velocities are central differences, one-sided at the clip's ends, as trackers' motion files have them.

    Args:
      joint_pos, joint_vel: (N, n) rad and rad/s, in the robot file's order.
      root_pos: (N, 3) m. root_rot: (N, 4) xyzw.
      root_lin_vel, root_ang_vel: (N, 3) m/s and rad/s, in the frame of the clip's own root.
      body_pos: (N, nbody, 3) m. body_axes: (N, nbody, 3, 3), body to world.
    """

    joint_pos: Array
    joint_vel: Array
    root_pos: Array
    root_rot: Array
    root_lin_vel: Array
    root_ang_vel: Array
    body_pos: Array
    body_axes: Array

    @property
    def num_frames(self) -> int:
        return len(self.joint_pos)

    @classmethod
    def of(cls, clip: Conditioned, robot: Robot) -> ClipReference:
        """The reference of a clip that was conditioned for this robot."""
        body_pos, axes = body_poses(robot, clip.qpos(robot))
        body_axes = axes.reshape(*axes.shape[:2], 3, 3)
        root_axes = body_axes[:, robot.root_body]
        frames = np.arange(clip.num_frames)
        first, last = np.maximum(frames - 1, 0), np.minimum(frames + 1, clip.num_frames - 1)
        spans = ((last - first) * clip.dt)[:, None]
        # A rotation vector is the same in the frame where it starts and in the one where it ends; the world's is common to all.
        turning = body_to_world(clip.root_rot[first], rotation_vector(clip.root_rot[first], clip.root_rot[last])) / spans
        moving = (clip.root_pos[last] - clip.root_pos[first]) / spans
        return cls(
            joint_pos=clip.dof_pos,
            joint_vel=(clip.dof_pos[last] - clip.dof_pos[first]) / spans,
            root_pos=clip.root_pos,
            root_rot=clip.root_rot,
            root_lin_vel=np.einsum("kij,ki->kj", root_axes, moving),
            root_ang_vel=np.einsum("kij,ki->kj", root_axes, turning),
            body_pos=body_pos,
            body_axes=body_axes,
        )
