"""The evidence of a diagnosis: measurements of the rollout and of the clip that several findings share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from amp_core.kinematics import KINEMATIC_HEIGHT, KINEMATIC_SPEED, FootTracker
from amp_core.metrics import LOADED_ABOVE
from amp_core.motion import Conditioned
from amp_core.quality import FrameSeries, foot_loads
from amp_core.robot import Robot
from amp_core.rollout import Rollout, saturated_actuators
from amp_core.rotations import pitch_roll_tilt
from amp_core.tiers import LYING_DEG, Classification, Tier

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_TIPPING_DEG = 10.0  # over the clip's own tilt: from here on the robot is on its way down
_SAMPLED_SEC = 0.04  # s between the poses of the clip whose feet are measured
# For a robot of WildRobot's height:
_OFF_GROUND = 0.02  # m
_STILL_SPEEDS = (0.25, 0.1)  # m/s, horizontally and vertically: a slower foot of the clip stands
_DIRECTIONS = 32  # in which a support polygon's width is measured


class Evidence:
    """One rollout that is not Tier 0.

    Attributes:
      gates: the gates of Tier 0 by name, as the rollout's profile has them; the looser gates of Tier 1 explain nothing more.
      failed_gates: those of them that failed.
      fell: the first frame in which the robot has fallen; None where it never has.
      onset: the frame from which on it tips; the number of rows where it does not fall.
      upright: the frames before `onset`, in which causes are looked for.
      clip_lies: whether the clip leans so far at any time that no plan follows it on the feet.
      off_ground: m; a standing foot of the clip further from the ground than this is a finding.
      stride: frames between the sampled poses of the clip: enough to see a stance, at a fraction of the time.
    """

    def __init__(self, rollout: Rollout, clip: Conditioned, robot: Robot, classification: Classification) -> None:
        self.rollout, self.clip, self.robot = rollout, clip, robot
        self.dt = rollout.dt
        self.mode, self.tier = rollout.recipe.mode, classification.tier
        self.gates = {gate.name: gate for gate in classification.gates if gate.tier != Tier.TIER_1}
        self.failed_gates = {name: gate for name, gate in self.gates.items() if not gate.passed}
        self.series = FrameSeries.of(rollout, robot)
        rows = len(rollout.qpos)
        clip_tilt = np.degrees(pitch_roll_tilt(clip.root_rot)[2])
        fallen = np.flatnonzero(self.series.fallen)
        self.fell = int(fallen[0]) if len(fallen) else None
        self.onset = rows
        if self.fell is not None:
            # The frame after the last one in which it leans no more than the clip does, give or take.
            calm = np.flatnonzero(self.series.tilt[: self.fell] <= clip_tilt[: self.fell] + _TIPPING_DEG)
            self.onset = int(calm[-1]) + 1 if len(calm) else 0
        self.upright = slice(0, self.onset)
        self.stride = max(1, round(_SAMPLED_SEC / self.dt))
        self.clip_lies = float(clip_tilt.max()) > LYING_DEG
        self.off_ground = _OFF_GROUND * robot.height_factor
        weight = robot.mg_for(rollout.recipe.physics)
        self.loads = foot_loads(rollout.channel_loads, robot)
        self.least_load = LOADED_ABOVE * weight
        self.loaded: Bools = self.loads > self.least_load
        # The harness force over the weight, on average; positive is up.
        self.lift = float(rollout.stab_force.mean()) / weight if rows else 0.0

    @cached_property
    def saturated(self) -> Bools:
        """(N, n) which joints' actuators are at their limit."""
        return saturated_actuators(self.robot.model, self.rollout.actuator_force)[:, self.robot.ctrl_adr]

    def strained_joints(self, rows: slice, least: float) -> dict[str, float]:
        """The joints whose actuator is at its limit in at least this share of the frames, and the share; the greatest first."""
        at_limit = self.saturated[rows]
        if len(at_limit) == 0:
            return {}
        shares = zip(self.robot.joint_names, at_limit.mean(axis=0).tolist(), strict=True)
        return {joint: share for joint, share in sorted(shares, key=lambda entry: -entry[1]) if share >= least}

    @cached_property
    def clip_joint_speed(self) -> Array:
        """(M, n) rad/s of the clip's joints; the first frame's is that of the step after it."""
        speed = np.abs(np.diff(self.clip.dof_pos, axis=0, prepend=self.clip.dof_pos[:1])) / self.dt
        if len(speed) > 1:
            speed[0] = speed[1]
        return speed

    @cached_property
    def clip_feet(self) -> FootPath:
        """The clip's feet in K sampled poses, up to a fall: what the clip does after it is no reason for it."""
        stop = self.clip.num_frames if self.fell is None else self.fell + 1
        return FootPath(FootTracker(self.robot).corners(self.clip.qpos(self.robot)[: stop : self.stride]))

    @cached_property
    def _clip_foot_speeds(self) -> tuple[Array, Array]:
        return self.clip_feet.speeds(self.stride * self.dt)

    @cached_property
    def is_still(self) -> Bools:
        """(K, F) the lowest feet of the clip, where they neither slide nor rise.

        Of two feet that are still, the higher one may just hang at the top of a step.
        """
        (along, upward), heights = self._clip_foot_speeds, self.clip_feet.heights
        speed = math.sqrt(self.robot.height_factor)
        is_slow = (along < _STILL_SPEEDS[0] * speed) & (np.abs(upward) < _STILL_SPEEDS[1] * speed)
        return np.asarray(is_slow & (heights == heights.min(axis=1, keepdims=True)))

    @cached_property
    def standing(self) -> Bools:
        """(K, F) which feet stand in the clip: `kinematics.kinematic_contacts` of the sampled poses."""
        return (self.clip_feet.heights < KINEMATIC_HEIGHT) & (self._clip_foot_speeds[0] < KINEMATIC_SPEED)

    def threshold(self, gate: str) -> float:
        """The threshold of a gate of Tier 0; infinite where the profile has no such gate."""
        threshold = self.gates[gate].threshold if gate in self.gates else math.inf
        assert not isinstance(threshold, tuple)
        return threshold

    def time(self, frame: int) -> str:
        """When a frame's state is reached: row k of a rollout is the state at the end of control step k."""
        return f"{(frame + 1) * self.dt:.2f} s"

    def period(self, start: int, stop: int) -> str:
        """From the start of the control step of frame `start` to the end of that of the last one, `stop - 1`."""
        return f"{start * self.dt:.2f}–{stop * self.dt:.2f} s"


@dataclass(frozen=True, eq=False)
class FootPath:
    """The places of a robot's feet in K poses: for each foot (K, corners, 3) m its corners."""

    corners: tuple[Array, ...]

    @cached_property
    def heights(self) -> Array:
        """(K, F) m: of the lowest corner of each foot."""
        return np.stack([corners[:, :, 2].min(axis=1) for corners in self.corners], axis=1)

    def speeds(self, step: float) -> tuple[Array, Array]:
        """(K, F) m/s: how fast the slowest corner of each foot moves horizontally, and its lowest point upwards.

        Args:
          step: s between two poses.
        """
        along, upward = np.zeros((2, *self.heights.shape))
        if len(self.heights) > 1:
            for i, corners in enumerate(self.corners):
                moves = np.diff(corners[:, :, :2], axis=0)
                along[1:, i] = np.sqrt((moves**2).sum(axis=2)).min(axis=1) / step
            upward[1:] = np.diff(self.heights, axis=0) / step
            along[0], upward[0] = along[1], upward[1]
        return along, upward

    def distance_outside(self, points: Array, feet: Bools) -> Array:
        """(K,) m: how far each point (K, 2) is outside the hull of the soles of some feet.

        It is negative inside and infinite where there is no foot. The hull is seen from 32 directions.

        Args:
          feet: (K, F) the feet in each pose.
        """
        angles = np.arange(_DIRECTIONS) * 2 * math.pi / _DIRECTIONS
        axes = np.stack([np.cos(angles), np.sin(angles)])
        reach = np.full((len(points), _DIRECTIONS), -np.inf)
        for i, corners in enumerate(self.corners):
            extent = (corners[:, :, :1] * axes[0] + corners[:, :, 1:2] * axes[1]).max(axis=1)
            reach = np.maximum(reach, np.where(feet[:, i, None], extent, -np.inf))
        distance: Array = (points[:, :1] * axes[0] + points[:, 1:] * axes[1] - reach).max(axis=1)
        return distance


def find_span(values: Bools) -> tuple[int, int] | None:
    """Half-open, from the first True to the last."""
    frames = np.flatnonzero(values)
    return (int(frames[0]), int(frames[-1]) + 1) if len(frames) else None


def readable(name: str) -> str:
    """A name of the robot's file in words."""
    return name.replace("_", " ")
