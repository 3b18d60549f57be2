"""What is to be drawn: the poses of a rollout with those of its clip, or those of a clip alone."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.errors import AmprefError, InputRefused, NotFound
from amp_core.formats import Motion
from amp_core.motion import reorder_joints
from amp_core.npz import mmap_member
from amp_core.reference import PROVENANCE, read_meta
from amp_core.robot import Robot, bundled_robots, find_robot
from amp_core.rotations import yaw
from amp_core.tiers import Tier

Array = npt.NDArray[np.float64]

_STATES = "qpos"
_REFERENCE = ("reference_root_pos", "reference_root_rot", "reference_dof_pos")


@dataclass(frozen=True, eq=False)
class Take:
    """Poses of a robot at equal times.

    Args:
      name: of the clip.
      qpos: (N, nq) the robot's.
      ghost_qpos: (N, nq) the clip's, where the robot's are those of a rollout.
      fps: poses a second.
      first_frame: the number of the first pose in the clip.
      facts: what is known of it, in words: the mode, the tier.
      fell_at: the frame from which the robot has fallen.
    """

    name: str
    robot: Robot
    qpos: Array
    ghost_qpos: Array | None
    fps: float
    first_frame: int = 0
    facts: tuple[str, ...] = ()
    fell_at: int | None = None

    @property
    def heading(self) -> float:
        """deg, where the robot looks in the first pose."""
        return float(np.degrees(yaw(self.robot.root_rotation(self.qpos[:1]))[0]))

    def seconds(self, row: int) -> float:
        """s since the clip began."""
        return (self.first_frame + row) / self.fps

    def has_fallen(self, row: int) -> bool:
        """Whether the robot has fallen in a pose."""
        return self.fell_at is not None and self.first_frame + row >= self.fell_at

    def cut(self, start: int, stop: int | None) -> Take:
        """The frames `start ≤ k < stop` of it.

        Raises:
          InputRefused: there are none.
        """
        last = len(self.qpos)
        if not 0 <= start < (stop := last if stop is None else stop) <= last:
            raise InputRefused(f"frames {start} to {stop} are not in it", key="frames", expected=f"within 0:{last}")
        rows = slice(start, stop)
        ghost = None if self.ghost_qpos is None else self.ghost_qpos[rows]
        return replace(self, qpos=self.qpos[rows], ghost_qpos=ghost, first_frame=self.first_frame + start)


def is_export(path: Path) -> bool:
    """Whether a file is the export of a rollout."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {f"{_STATES}.npy", f"{_REFERENCE[0]}.npy"} <= set(archive.namelist())


def find_robot_of(path: Path, label: str, files: Sequence[str]) -> Robot:
    """The robot that an export was made with: a bundled one, or one of some robot files.

    Args:
      label: what a refusal calls the export.

    Raises:
      InputRefused: it is another one, whose model is not here.
      RobotRefused: the file of this robot cannot be used.
    """
    try:
        name = str(read_meta(path)["robot"])
    except (NotFound, KeyError):
        name = ""
    robot = find_robot(name, files) if name else None
    if robot is None:
        raise InputRefused(
            f"it is of the robot {name!r}, which is not installed here" if name else "it does not say which robot it is of",
            file=label,
            expected=f"one of {', '.join(bundled_robots())}, or one whose robot.yaml AMPREF_ROBOTS names",
            remedy="Name its file: --robot PATH/robot.yaml",
        )
    return robot


def read_export(path: Path, robot: Robot, facts: Mapping[str, Any] | None = None) -> Take:
    """The take of an export.

    Args:
      facts: `name, tier, mode, fell_at` where they are known from elsewhere; what is not follows from the export's `meta`.

    Raises:
      InputRefused: it is of another robot.
      IntegrityError: no export.
    """
    try:
        meta = read_meta(path)
    except NotFound:
        meta = {}
    provenance = meta.get(PROVENANCE, {})
    if not isinstance(provenance, dict):
        raise InputRefused("its provenance is no object", file=str(path), expected="an export that ampref score wrote")
    for name in (_STATES, *_REFERENCE):
        kind = mmap_member(path, name).dtype.kind
        if kind not in "fiu":
            raise InputRefused(
                "it does not hold numbers", file=str(path), key=name, expected="an export that ampref score wrote"
            )
    known_facts = {key: value for key, value in (facts or {}).items() if value is not None}
    qpos = np.asarray(mmap_member(path, _STATES), np.float64)
    reference = [np.asarray(mmap_member(path, name), np.float64)[: len(qpos)] for name in _REFERENCE]
    if qpos.ndim != 2 or qpos.shape[1] != robot.model.nq or reference[2].shape[1:] != (len(robot.joint_names),):
        raise InputRefused(
            f"its states have {qpos.shape[-1]} numbers",
            file=str(path),
            expected=f"the {robot.model.nq} of the robot {robot.name!r}",
            remedy="Name the robot that it was made with: --robot PATH/robot.yaml",
        )
    if not np.isfinite(qpos).all():
        frame = int(np.flatnonzero(~np.isfinite(qpos).all(axis=1))[0])
        raise InputRefused("it holds a state that is not finite", file=str(path), key=_STATES, frame=frame)
    if not len(qpos):
        raise InputRefused("its simulation failed at once: there is no frame to draw", file=str(path))
    tier = known_facts.get("tier", meta.get("tier"))
    mode = known_facts.get("mode", meta.get("generation_mode"))
    return Take(
        name=str(known_facts.get("name") or provenance.get("name") or path.stem),
        robot=robot,
        qpos=qpos,
        ghost_qpos=robot.poses(*reference),
        fps=1.0 / float(meta.get("dt", robot.control_dt)),
        facts=tuple(str(fact) for fact in (mode, None if tier is None else Tier(tier).label) if fact),
        fell_at=known_facts.get("fell_at", meta.get("quality_metrics", {}).get("fell_at_frame")),
    )


def differs_in_model(path: Path, robot: Robot) -> bool:
    """Whether an export says that it was made with another model of the robot."""
    try:
        provenance = read_meta(path).get(PROVENANCE)
    except AmprefError:
        return False
    digest = provenance.get("robot_digest") if isinstance(provenance, dict) else None
    return digest not in (None, robot.digest)


def make_take(motion: Motion, robot: Robot) -> Take:
    """The take of a motion as its file has it: nothing is simulated, and nothing moved to the floor.

    Raises:
      MotionRefused: its joints are not the robot's.
    """
    motion, _ = reorder_joints(motion, robot)
    qpos = robot.poses(motion.root_pos, motion.root_rot, motion.dof_pos)
    return Take(name=motion.name, robot=robot, qpos=qpos, ghost_qpos=None, fps=motion.fps)
