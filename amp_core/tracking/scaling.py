"""What the planner takes from the robot: its settings are those of a recipe, for a robot like the bundled WildRobot.

A robot of that size, with as few joints and with servos like its own, is planned for exactly as the recipe says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.kinematics import reference_height
from amp_core.robot import Robot

Array = npt.NDArray[np.float64]

STEP_SHARE = 0.4
"""Of 1 over the frequency of the stiffest servo, the longest step: the joints of a plan with a longer one are no robot's."""

_HEIGHT = 0.47  # m, of WildRobot's root above its soles
_JOINTS = 8
_RESPONSE = 0.23  # of a servo to its target in one control step, up to which a plan needs all of the recipe's noise
_LIGHT_SHARE = 0.15  # of the robot's mass: a joint that moves less, and no foot, is not steered
_SAG = 2.0  # rad, by which a servo would give under the robot's weight at the length of its legs
_MANY = 1.3  # times the regressors of WildRobot


@dataclass(frozen=True, eq=False)
class Scaling:
    """A robot against the one that a recipe's planner is for.

    Args:
      size: the height of its root above its soles, over that of WildRobot, to two digits. The cost's lengths go with it, and
        its speeds with its square root (Froude's law).
      active: (m,) indices of the joints that are steered, by noise and feedback: all but those that move little mass and no
        foot, such as arms, which follow the clip.
      noise: (m,) share of the recipe's noise for each of them: a servo that answers fast moves its joint as far with less.
      samples: factor on the simulations of a round, in proportion to the regressors of a model.
      has_many: whether those are so many that a round costs several times that of WildRobot. Then the first two attempts
        have one branch, a plan at whose end the robot leans over gets further rounds, and joints are kept within their range.
      is_soft: whether the servos sag so far under the robot's weight that a plan has to begin beyond the clip's angles.
    """

    size: float
    active: npt.NDArray[np.int64]
    noise: Array
    samples: float
    has_many: bool
    is_soft: bool

    @classmethod
    def of(cls, robot: Robot) -> Scaling:
        model = robot.model
        height = reference_height(robot)
        active = np.array(
            [i for i, dof in enumerate(robot.qvel_adr.tolist()) if _bears(robot, int(model.dof_bodyid[dof]))], dtype=np.int64
        )
        regressors = (12 + 3 * len(active)) / (12 + 3 * _JOINTS)
        kp = float(np.median(model.actuator_gainprm[robot.ctrl_adr[active], 0]))
        return cls(
            size=round(height / _HEIGHT, 2),
            active=active,
            noise=np.minimum(1.0, _RESPONSE / robot.servo_response[active]),
            samples=max(1.0, regressors),
            has_many=regressors > _MANY,
            is_soft=robot.mg * height / kp > _SAG,
        )

    @property
    def speed(self) -> float:
        """The factor on speeds."""
        return math.sqrt(self.size)

    def count_branches(self, branches: int, attempt: int) -> int:
        """Planners of an attempt that work side by side."""
        return 1 if self.has_many and attempt <= 1 else branches

    def is_for_goals(self, attempt: int) -> bool:
        """Whether an attempt is worth its cost for a clip that is Tier 0 and misses a goal; all are for one that is not."""
        return not self.has_many or attempt <= 1

    def step_effort(self, attempt: int) -> int:
        """Of which attempt of a recipe an attempt has the simulations.

        Where a round costs several times as much, the second attempt is the first one again with other noise: that is
        worth more than twice the simulations, and costs a quarter.
        """
        return max(0, attempt - 1) if self.has_many else attempt

    def effort(self, branches: int, attempt: int) -> int:
        """Simulations of an attempt, relative to those of one branch of the recipe's first."""
        return self.count_branches(branches, attempt) << self.step_effort(attempt)


def _bears(robot: Robot, body: int) -> bool:
    """Whether a body carries a foot, or much of the robot's mass."""
    model = robot.model
    if float(model.body_subtreemass[body]) > _LIGHT_SHARE * robot.mass:
        return True
    return any(carries_foot(model, body, foot.body) for foot in robot.feet)


def carries_foot(model: Any, body: int, foot: int) -> bool:
    """Whether a foot's body hangs on a body, or is it."""
    while foot and foot != body:
        foot = int(model.body_parentid[foot])
    return foot == body
