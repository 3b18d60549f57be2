"""Robots: a `robot.yaml`, the MJCF that it names, and the checks that the two fit.

`Robot.load("wildrobot")` loads a bundled robot, `Robot.load("my/robot.yaml")` one of your own. The file says which joints, in
which order, are a clip's columns, which geoms touch the ground, and how fast the controller runs. Nothing depends on position:
names come from the file, addresses from the compiled model, and a name that the model does not have is refused with the list of
the names that it has.

A robot file can make MuJoCo read any file on this machine (`<include>`, meshes), so robots are installed by the operator of the
service and are never accepted over HTTP.
"""

from amp_core.robot.model import Foot
from amp_core.robot.robot import Robot, bundled_robots, find_robot, load_robots

__all__ = ["Foot", "Robot", "bundled_robots", "find_robot", "load_robots"]
