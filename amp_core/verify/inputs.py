"""What several tests share: all frames of all clips as each side gets them, and tolerances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.verify import states
from amp_core.verify.context import Context, PolicySide, heights

if TYPE_CHECKING:
    from amp_core.robot import Robot
    from amp_core.verify.subject import Clip

Floats = npt.NDArray[np.float32]

ROUNDING = 1e-6
"""Relative: what float32 may change."""

SUSPICIOUS = 1e-5
"""Relative: more than rounding explains, though the seed's MAE may forgive it."""

REPLAYED_FRAMES = 60_000
"""Frames that 1B and 1C simulate again; a larger version is sampled."""

PATHS = ("observe_host", "observe")
"""The two ways to an observation: on the host in float64, and as training makes it."""

VELOCITIES = ("joint_vel", "root_lin_vel", "root_ang_vel")
"""The blocks of velocities."""


def rows_of(clips: Sequence[Clip], key: str) -> npt.NDArray[Any]:
    """An array of the exports, of all clips one after the other."""
    return np.concatenate([np.asarray(clip.arrays[key]) for clip in clips])


def with_rows(context: Context) -> list[Clip]:
    """The clips that have rows at all; test 4 speaks of the others."""
    return [clip for clip in context.subject.clips if clip.frames]


@dataclass(frozen=True, eq=False)
class PolicyInputs:
    """All frames of clips, as the policy's side gets them: observations on the host and in float32, and the rest."""

    host: Floats
    device: Floats
    height: Floats
    before: Floats
    contacts: Floats

    @classmethod
    def of(cls, side: PolicySide, robot: Robot, clips: Sequence[Clip]) -> PolicyInputs:
        qpos, qvel = rows_of(clips, "qpos"), rows_of(clips, "qvel")
        start = np.concatenate([states.before(clip) for clip in clips])
        return cls(
            host=side.on_host(qpos, qvel),
            device=side.on_device(qpos, qvel),
            height=np.concatenate([heights(robot, clip.arrays) for clip in clips]),
            before=start[:, robot.qpos_adr].astype(np.float32),
            contacts=rows_of(clips, "foot_contacts").astype(np.float32),
        )

    def of_path(self, path: str) -> tuple[Floats, Floats, Floats, Floats]:
        """What `PolicySide.features` takes."""
        return (self.host if path == "observe_host" else self.device), self.height, self.before, self.contacts
