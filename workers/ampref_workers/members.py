"""The members of a version to be, their robot, and their checks."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amp_core.admission import check_candidates
from amp_core.errors import InputRefused
from amp_core.progress import Progress
from amp_core.robot import Robot
from amp_core.sequences import LazySequence
from ampref_workers.protocol import MEMBERS, Member, RobotReference, decode
from ampref_workers.robots import load_robot

__all__ = ["load_and_check", "open_members"]

# The same recipe on the same clip is known and not generated again.
_REMEDY = (
    "Have the clip scored anew (ampref clip ID --delete, then ampref submit FILE), or leave it out: name the others, each with "
    "--clip (select.clips)"
)


def open_members(job_dir: Path) -> Sequence[Member]:
    """The members in a job's folder; each is read when it is asked for."""
    path = job_dir / MEMBERS
    ends = array("q", [0])
    with open(path, "rb") as file:
        for line in file:
            ends.append(ends[-1] + len(line))

    def read(number: int) -> Member:
        file.seek(ends[number])
        return decode(file.read(ends[number + 1] - ends[number]), Member)

    file = open(path, "rb")  # noqa: SIM115 - as long as the members are
    return LazySequence(len(ends) - 1, read)


def load_and_check(robot: RobotReference, members: Sequence[Member], report: Progress) -> tuple[Robot, dict[str, Any]]:
    """The robot of the members, and the outcome of every check.

    Raises:
      InputRefused: there are no members.
      RobotRefused: the robot is not installed here, or has changed.
      AmprefError: as `check_candidates`.
    """
    if not members:
        raise InputRefused(
            f"the selection holds no clip of the robot {robot.name}",
            key="select",
            expected="at least one rollout of the tiers asked for",
            remedy="Name another robot, widen the selection, or score more clips: ampref clips lists what there is.",
        )
    report(0.0, "loading the robot")
    model = load_robot(robot)
    return model, check_candidates(members, model, lambda fraction: report(fraction, "checking the members"), remedy=_REMEDY)
