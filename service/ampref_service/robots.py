"""The robots that are installed: the bundled ones and those that the operator named."""

from __future__ import annotations

from pathlib import Path

from amp_core.errors import RobotRefused
from amp_core.robot import Robot, bundled_robots
from ampref_service.settings import Settings

__all__ = ["load_robots"]


def load_robots(settings: Settings) -> dict[str, Robot]:
    """The bundled robots and those of the settings, by name.

    Raises:
      RobotRefused: a robot cannot be used, or two have one name.
    """
    installed: dict[str, Robot] = {}
    sources: tuple[str | Path, ...] = (*bundled_robots(), *settings.robots)
    for source in sources:
        robot = Robot.load(source)
        if robot.name in installed:
            raise RobotRefused(
                f"two robots are called {robot.name!r}",
                file=str(source),
                expected="one name a robot",
                remedy="Change `name` in one of their files; AMPREF_ROBOTS lists them",
            )
        installed[robot.name] = robot
    return installed
