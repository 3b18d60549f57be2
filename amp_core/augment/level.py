"""Levelling: what the ground under a clip's standing feet rises or falls, taken out of the root's height."""

from __future__ import annotations

import numpy as np

from amp_core.augment.poses import Poses
from amp_core.errors import MotionRefused
from amp_core.footing import Footing
from amp_core.motion.resampling import interpolate, interpolate_rotations, resampled_count
from amp_core.robot import Robot

_SMOOTH_SEC = 0.5


def level(poses: Poses, fps: float, robot: Robot, name: str) -> Poses:
    """The poses on level ground at z = 0: the height of the ground under them, as `Footing` has it, taken out of the root's.

    Raises:
      MotionRefused: no foot is ever on the ground; names the clip.
    """
    count, last = resampled_count(poses.num_frames, fps, 1.0 / robot.control_dt), poses.num_frames - 1
    times = np.minimum(np.arange(count) * (robot.control_dt * fps), last)
    ground = np.full(count, np.nan)
    if last > 0:
        root_rot = interpolate_rotations(poses.root_rot, times)
        ground = Footing.of(
            robot, robot.poses(interpolate(poses.root_pos, times), root_rot, interpolate(poses.dof_pos, times))
        ).ground
    stands = np.flatnonzero(~np.isnan(ground))
    if not len(stands):
        raise MotionRefused(
            "no foot is on the ground in any frame, so that there is none to level",
            file=name,
            key="root_pos",
            expected="a clip that stands or walks",
        )
    reach = round(_SMOOTH_SEC / 2 / robot.control_dt)
    course = np.pad(np.interp(np.arange(count), stands, ground[stands]), reach, mode="edge")
    # The median of the footing jumps by itself where a foot steps up, and a root must not.
    course = np.lib.stride_tricks.sliding_window_view(course, 2 * reach + 1).mean(axis=1)
    root_pos = poses.root_pos.copy()
    root_pos[:, 2] -= np.interp(np.arange(poses.num_frames), times, course)
    return poses._replace(root_pos=root_pos)
