"""The robot that a request names."""

from __future__ import annotations

from amp_core import robot as robots
from amp_core.errors import RobotRefused
from ampref_workers.protocol import RobotReference

__all__ = ["load_robot"]


def load_robot(reference: RobotReference) -> robots.Robot:
    """The installed robot of that name: one of the operator's files, or a bundled one.

    Raises:
      RobotRefused: there is none, or its model is not the one that the digest names.
    """
    robot = robots.find_robot(reference.name, reference.paths)
    if robot is None:
        raise RobotRefused(
            f"no robot {reference.name!r} is installed on this worker",
            expected=f"one of {', '.join(robots.bundled_robots())}, or one of the files in AMPREF_ROBOTS",
            remedy="Give the worker the same AMPREF_ROBOTS as the API, then submit the clip again.",
        )
    if robot.digest != reference.digest:
        raise RobotRefused(
            f"robot {reference.name!r} has changed since the clip was uploaded (it is {robot.digest} now)",
            expected=reference.digest,
            remedy="Submit the clip again for the robot as it is now, or install the robot as it was.",
        )
    return robot
