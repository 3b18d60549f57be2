"""Is a clip's root in another frame than the robot's? It then leans in every frame by the same angle.

So does a clip that crawls, lies or bends; but its root is lower than that of a robot that stands, or its feet make less sense
once the root is turned upright.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations
from amp_core.motion.plausibility import FootMeasure, Poses
from amp_core.motion.readings import MENDING_RATIO

if TYPE_CHECKING:
    from amp_core.robot import Robot

Array = NDArray[np.float64]

SUSPECT_TILT = math.radians(30.0)

STEADY_LEAN = math.radians(30.0)
"""A root in another frame leans this close to its mean lean in every frame: a walk sways by 19°, a clip that gets up by 82°."""

MOST_STEPS = 64


@dataclass(frozen=True)
class RootFrame:
    """How upright the root is.

    Args:
      suspect: the root seems to be in another frame: it leans above 30 degrees in the mean, by about the same in every frame,
        at a height at which the robot stands, and the clip is more plausible with the mean lean taken out.
      first_tilt_deg, mean_tilt_deg, max_tilt_deg: deg between the root's z axis and the world's.
      detail: the same in words; empty unless it is suspect.
    """

    suspect: bool
    first_tilt_deg: float
    mean_tilt_deg: float
    max_tilt_deg: float
    detail: str

    @classmethod
    def of(cls, poses: Poses, fps: float, robot: Robot) -> RootFrame:
        """The root frame of a clip with unit quaternions, of two frames or more."""
        tilt = rotations.tilt(poses.root_rot)
        first, mean, greatest = (math.degrees(angle) for angle in (tilt[0], tilt.mean(), tilt.max()))
        suspect = _is_mended_upright(poses, fps, robot)
        detail = (
            f"the root is tilted by {first:.0f} degrees in the first frame and {mean:.0f} on "
            "average; upright motion stays below 30, so its frame is probably not the robot's (z up, x forward): retarget the "
            "clip with the robot's own root frame; nothing was rotated here"
        )
        return cls(suspect, first, mean, greatest, detail if suspect else "")


def _is_mended_upright(poses: Poses, fps: float, robot: Robot) -> bool:
    """Whether the clip leans like a root in another frame, and makes more sense with its mean lean taken out."""
    up = rotations.up_in_body(poses.root_rot)
    mean_up = up.mean(axis=0)
    mean_up /= max(float(np.linalg.norm(mean_up)), 1e-9)
    low, high = robot.height_range
    if mean_up[2] > math.cos(SUSPECT_TILT) or not low <= float(poses.root_pos[:, 2].mean()) <= high:
        return False
    if float((up @ mean_up).min()) < math.cos(STEADY_LEAN):
        return False
    feet = FootMeasure(robot, size=4 * MOST_STEPS)
    rows = np.unique(np.linspace(0, len(up) - 2, MOST_STEPS).astype(np.int64))
    side = math.hypot(mean_up[0], mean_up[1])
    axis = np.array([-mean_up[1], mean_up[0], 0.0]) / side if side > 1e-9 else np.array([1.0, 0.0, 0.0])
    correction = rotations.from_rotation_vector(axis * math.atan2(side, mean_up[2]))
    upright = poses._replace(root_rot=rotations.multiply(poses.root_rot, correction))
    as_read, corrected = (feet.measure(frames.take(rows), frames.take(rows + 1), fps) for frames in (poses, upright))
    return corrected.score < MENDING_RATIO * as_read.score
