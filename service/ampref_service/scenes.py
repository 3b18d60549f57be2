"""The scenes of the installed robots, each built once by a process, when it is first asked for."""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass

from amp_core.digests import digest_of
from amp_core.robot import Robot
from amp_core.scene import write_scene


@dataclass(frozen=True)
class Scene:
    """A robot's scene as it is sent: plain, and as gzip has it."""

    plain: bytes
    compressed: bytes
    digest: str


class SceneStore:
    """The scenes that were built. Safe to share between threads: one builds a scene, the others wait for it."""

    def __init__(self) -> None:
        self._scenes: dict[str, Scene] = {}
        self._lock = threading.Lock()

    def get(self, robot: Robot) -> Scene:
        """The scene of a robot."""
        if (scene := self._scenes.get(robot.digest)) is not None:
            return scene
        with self._lock:
            if (scene := self._scenes.get(robot.digest)) is None:
                plain = write_scene(robot)
                scene = self._scenes[robot.digest] = Scene(plain, gzip.compress(plain, 6, mtime=0), digest_of(plain))
            return scene
