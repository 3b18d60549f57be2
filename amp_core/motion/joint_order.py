"""A motion's joint columns in the robot's order, by the names that its file gives them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from amp_core.errors import MotionRefused
from amp_core.formats.clip import Motion
from amp_core.formats.joint_names import ROOT_COLUMNS, count_joints, join_names, match_joint_names, refuse_difference
from amp_core.formats.name_lists import is_joint_key

if TYPE_CHECKING:
    from amp_core.robot import Robot

# A joint that the robot lacks may be in the file where it never leaves zero: that is how the robot holds it too.
ZERO_RAD = 1e-6
_UNIT_NORM = 0.05
LEAST_SHARE = 0.5
"""A list of texts of which so many are the robot's joints is about its joints; body names and tags have none."""


@dataclass(frozen=True)
class JointOrder:
    """How a file's joint columns were put into a robot's order.

    Args:
      key: where the file names them.
      file_names: the columns as the file has them.
      robot_names: the robot's joints, which is the order of the columns now.
      dropped: columns of joints that the robot does not have, all of them zero throughout.
    """

    key: str
    file_names: tuple[str, ...]
    robot_names: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def message(self) -> str:
        """What was changed, with both orders."""
        place = "" if self.key == "joint_names" else f" ({self.key})"
        text = (
            f"the file names its joints{place} in the order {join_names(self.file_names)}; the columns were put into the "
            f"robot's: {join_names(self.robot_names)}"
        )
        return f"{text}; dropped, since they are zero throughout: {join_names(self.dropped)}" if self.dropped else text


def reorder_joints(motion: Motion, robot: Robot) -> tuple[Motion, JointOrder | None]:
    """The motion with one column for each of the robot's joints, in the robot's order, named as the robot names them.

    A motion without names is returned as it is, if it has as many columns as the robot has joints. What was changed is in the
    second value, None where nothing was.

    Raises:
      MotionRefused: the names are not the robot's (both lists are in the error), or another number of columns.
    """
    joints = tuple(robot.joint_names)
    key, names = _choose_names(motion, robot)
    if names is None:
        if motion.dof_pos.shape[1] != len(joints):
            raise _refuse_count(motion, robot)
        return motion, None
    if names == joints:
        return (motion if motion.joint_names else replace(motion, joint_names=joints, name_lists={})), None
    places = match_joint_names(names, joints)
    extra = [place for place in range(len(names)) if place not in places] if places is not None else []
    moving = [place for place in extra if float(np.abs(motion.dof_pos[:, place]).max()) > ZERO_RAD]
    if places is None or moving:
        problem = f"the file's joint names are not the robot's: it has {join_names(names)}"
        if moving:
            problem = (
                f"the file moves joints that the robot does not have ({join_names([names[i] for i in moving])}): {problem}"
            )
        raise MotionRefused(
            problem,
            file=motion.name,
            key=key,
            expected=f"the joints of the robot {robot.name!r}: {join_names(joints)}",
            remedy="Choose the robot that the clip was retargeted to, or write the robot's names",
        )
    is_in_order = places == list(range(len(names)))
    report = None if is_in_order else JointOrder(key, names, joints, tuple(names[place] for place in extra))
    columns = motion.dof_pos if is_in_order else motion.dof_pos[:, places]
    return replace(motion, dof_pos=columns, joint_names=joints, name_lists={}), report


def _choose_names(motion: Motion, robot: Robot) -> tuple[str, tuple[str, ...] | None]:
    """The names of the columns and their key: those of the motion, or the list of texts that names the robot's joints.

    Raises:
      MotionRefused: two lists that name the joints in different orders, or a list that names them only in part.
    """
    if motion.joint_names is not None:
        return "joint_names", motion.joint_names
    joints, columns = tuple(robot.joint_names), motion.dof_pos.shape[1]
    fitting = {key: names for key, names in motion.name_lists.items() if len(names) == columns}
    places = {key: match_joint_names(names, joints) for key, names in fitting.items()}
    matching = [key for key, order in places.items() if order is not None]
    for key in matching:
        if places[key] != places[matching[0]]:
            raise refuse_difference(matching[0], fitting[matching[0]], key, fitting[key], motion.name)
    if matching:
        return matching[0], fitting[matching[0]]
    for key, names in motion.name_lists.items():
        count = count_joints(names, joints)
        # A key that says joints is meant so; under another it takes names of joints.
        if count >= LEAST_SHARE * columns or (is_joint_key(key) and len(names) == columns):
            raise MotionRefused(
                f"{key} names {count} of the robot's {len(joints)} joints: it has {len(names)} names for {columns} columns, "
                f"{join_names(names)}",
                file=motion.name,
                key=key,
                expected=f"one name for each column, the joints of the robot {robot.name!r}: {join_names(joints)}",
                remedy=f"Choose the robot that the clip was retargeted to, correct {key}, or leave it out",
            )
    return "joint_names", None


def _refuse_count(motion: Motion, robot: Robot) -> MotionRefused:
    """Another number of columns than the robot has joints; the root's or an object's seven among them are recognized."""
    count, joints = motion.dof_pos.shape[1], len(robot.joint_names)
    problem = f"the clip has {count} joints, the robot {robot.name!r} has {joints}"
    remedy = f"Choose the robot that the clip was retargeted to{_name_bundled(count)}"
    if count == joints + ROOT_COLUMNS:
        for start, description, rest in (
            (3, "the first 7 columns look like the root's position and quaternion", "dof_pos[:, 7:]"),
            (0, "the first 7 columns look like the root's quaternion and position", "dof_pos[:, 7:]"),
            (joints + 3, "the last 7 columns look like an object's position and quaternion", f"dof_pos[:, :{joints}]"),
        ):
            norms = np.linalg.norm(motion.dof_pos[:, start : start + 4], axis=1)
            if (np.abs(norms - 1.0) < _UNIT_NORM).all():
                problem += f"; {description}"
                remedy = f"Write the joints alone: dof_pos = {rest}"
                break
    return MotionRefused(
        problem,
        file=motion.name,
        key="dof_pos",
        expected=f"one column for each of {', '.join(robot.joint_names)}",
        remedy=remedy,
    )


def _name_bundled(count: int) -> str:
    """The bundled robots with so many joints, as the end of a remedy; who names no robot has the default one."""
    from amp_core.robot import Robot, bundled_robots  # noqa: PLC0415 - reading a motion needs no MuJoCo

    names = [name for name in bundled_robots() if len(Robot.load(name).joint_names) == count]
    return f"; of the bundled ones {' and '.join(names)} has {count}" if names else ""
