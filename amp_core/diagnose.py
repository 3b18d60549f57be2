"""Diagnosis: why a clip is not Tier 0, in physical words, each with its figures.

Everything is computed from the rollout, the clip and the model; no sentence is written without a measurement behind it. What
comes after a fall is the fall's doing, so causes are looked for in the frames before the robot begins to tip.

`CODES` and `SUGGESTIONS` name everything that can be said; docs/diagnosis.md explains each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from amp_core import kinematics
from amp_core.engine import mujoco
from amp_core.quality import (
    FALLEN_TILT_DEG,
    LOADED_ABOVE,
    SLIP_SPEED,
    UNLOADED_BELOW,
    FrameSeries,
    percentile,
)
from amp_core.rollout import saturated_actuators
from amp_core.rotations import pitch_roll_tilt, world_to_heading, yaw, z_axis
from amp_core.runs import find_runs
from amp_core.tiers import Classification, Gate, Tier

if TYPE_CHECKING:
    from amp_core.motion import Conditioned
    from amp_core.robot import Robot
    from amp_core.rollout import Rollout

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Severity = Literal["fatal", "failed", "cause", "note"]

CODES: Mapping[str, str] = {
    "root_frame": "The clip's root is in another frame: it leans in a way that no upright motion does.",
    "simulation_failed": "The physics engine had to stop.",
    "pose_overwritten": "The mode writes the clip's poses into the simulation.",
    "fell": "The robot fell.",
    "leans": "The robot leans too far without falling.",
    "too_high": "The root is above the robot's height range.",
    "body_touches": "Something other than a foot touches the ground.",
    "harness_carries": "The harness carries a large part of the weight.",
    "unloaded": "The feet carry too little of the weight.",
    "never_lifts": "A foot hardly ever leaves the ground.",
    "rarely_stands": "A foot hardly ever touches the ground.",
    "stands_still": "The root's height is all but constant.",
    "joints_off": "The joints are far from the clip's.",
    "drifts": "The root is far from the clip's.",
    "torque_saturated": "A joint's actuator is at its force limit.",
    "joint_speed": "The clip moves a joint faster than its servo follows.",
    "joint_limit": "The clip leaves a joint's limits.",
    "feet_above_ground": "A foot of the clip hangs in the air where it should stand.",
    "feet_below_ground": "A foot of the clip is under the ground.",
    "starts_in_air": "The clip's first pose is above the ground.",
    "slips": "A standing foot slides.",
}
"""Every code of a finding, and what it stands for."""

SUGGESTIONS: Mapping[str, str] = {
    "fix_root_frame": "Export the clip with an upright root.",
    "use_tracked": "Score it in mode `tracked`.",
    "slower": "Score a slower variant.",
    "shift_ground": "Move the clip up or down.",
    "level_feet": "Retarget the clip onto level ground.",
    "mend_joints": "Retarget the clip inside the joints' limits.",
    "other_seed": "Plan with another seed.",
    "lift_feet": "Use a clip that lifts its feet.",
}
"""Every code of a suggestion, and what it asks for."""

_ORDER: Mapping[Severity, int] = {"fatal": 0, "failed": 1, "cause": 2, "note": 3}

SLOWER = 0.9
"""The speed factor that is suggested: the slowest that `ampref augment` makes."""

_TIPPING_DEG = 10.0  # over the clip's own tilt: from here on the robot is on its way down
_BEFORE_FALL_SEC = 0.5
_LIFTED_BEFORE_SEC = 0.4
_LOOKED_AT_SEC = 0.04  # s between the poses of the clip that are looked at
_SATURATED_SHARE = 0.1
_SATURATED_IN_FALL = 0.2
_MOVING = 0.5  # rad/s; a saturated joint that moves at this speed is busy with inertia and not only with weight
_FAST = 3.0  # rad/s; slower than this, what looks like lag is load
_FOLLOWED = 0.75
_LAG_RAD = 0.15
_LIMIT_RAD = 0.05
_LIMIT_SHARE = 0.05
_OFF_GROUND_M = 0.02
_STILL = (0.25, 0.1)  # m/s, horizontally and vertically: slower than this, a foot of the clip is meant to stand
_STANCE_SEC = 0.1
_SLIPPING_SHARE = 0.15
_SLIP_OVER_SEC = 0.5  # a share of less stance than this is a frame or two
_AT_MOST = 3  # findings of one code that concern different joints
_DIRECTIONS = 32  # in which a support polygon's width is measured


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
      code: one of `CODES`.
      severity: `fatal` (no run of this clip in this mode can be Tier 0), `failed` (what a failed gate saw), `cause` (what led
        to it or is likely to), `note`.
      message: one short sentence without a full stop.
      joint, foot: what it concerns, by the robot's names; None where it is no single one.
      frames: (start, end) of the rollout, `end` excluded; None where it is about the clip as a whole.
      value, limit: the figure, and what it should not exceed (or fall below); None where there is none.
      unit: of both; "1" for a share.
    """

    code: str
    severity: Severity
    message: str
    joint: str | None = None
    foot: str | None = None
    frames: tuple[int, int] | None = None
    value: float | None = None
    limit: float | None = None
    unit: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "joint": self.joint,
            "foot": self.foot,
            "frames": None if self.frames is None else list(self.frames),
            "value": self.value,
            "limit": self.limit,
            "unit": self.unit,
        }


@dataclass(frozen=True)
class Suggestion:
    """What would help.

    Args:
      code: one of `SUGGESTIONS`.
      message: one short sentence without a full stop.
      because: the codes of the findings that it answers.
      value: its figure, such as the speed factor or metres; None where there is none.
    """

    code: str
    message: str
    because: tuple[str, ...]
    value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "because": list(self.because), "value": self.value}


@dataclass(frozen=True)
class Diagnosis:
    """Findings, what matters most first, and suggestions."""

    findings: tuple[Finding, ...]
    suggestions: tuple[Suggestion, ...]

    def without(self, suggestion: str) -> Diagnosis:
        """The same without one suggestion: the one that was followed already."""
        return Diagnosis(self.findings, tuple(one for one in self.suggestions if one.code != suggestion))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "findings": [finding.to_dict() for finding in self.findings],
            "suggestions": [suggestion.to_dict() for suggestion in self.suggestions],
        }


def diagnose(rollout: Rollout, clip: Conditioned, robot: Robot, classification: Classification) -> Diagnosis | None:
    """Why a rollout is not Tier 0, or None where it is.

    Args:
      rollout: of `clip`.
      clip: conditioned for this robot.
      classification: the rollout's.
    """
    if classification.tier == Tier.TIER_0:
        return None
    case = _Case(rollout, clip, robot, classification)
    findings = sorted(case.findings(), key=lambda finding: _ORDER[finding.severity])
    return Diagnosis(tuple(findings), tuple(case.suggestions(findings)))


class _Case:
    """One clip that is not Tier 0: the evidence, and what it shows."""

    def __init__(self, rollout: Rollout, clip: Conditioned, robot: Robot, classification: Classification) -> None:
        self.rollout, self.clip, self.robot = rollout, clip, robot
        self.dt = rollout.dt
        self.rows = len(rollout.qpos)
        self.mode = rollout.recipe.mode
        # What Tier 0 needs, as the rollout's profile asks it; the looser gates of Tier 1 explain nothing more.
        self.gates = {gate.name: gate for gate in classification.gates if gate.tier != Tier.TIER_1}
        self.failed = {name: gate for name, gate in self.gates.items() if not gate.passed}
        self.series = FrameSeries.of(rollout, robot)
        fallen = np.flatnonzero(self.series.fallen)
        self.fell = int(fallen[0]) if len(fallen) else None
        # Where the robot begins to tip: the last frame in which it leans no more than the clip does, give or take.
        leaning = np.degrees(pitch_roll_tilt(clip.root_rot[: self.rows])[2])
        last = self.rows if self.fell is None else self.fell
        calm = np.flatnonzero(self.series.tilt[:last] <= leaning[:last] + _TIPPING_DEG)
        self.onset = last if self.fell is None else int(calm[-1]) + 1 if len(calm) else 0
        # The frames that tell causes; too few of them tell nothing.
        self.calm = slice(0, self.onset)

    def findings(self) -> list[Finding]:
        found: list[Finding] = []
        found.extend(self._root_frame())
        found.extend(self._failure())
        if self.fell is not None:
            found.append(self._fall(self.fell))
        else:
            found.extend(self._gates())
        if self.mode == "teacher_forced":
            found.append(
                Finding(
                    "pose_overwritten",
                    "fatal" if not found else "note",
                    "every frame starts from the clip's own pose, so the feet prove nothing: Tier 1 at best",
                )
            )
        if any(finding.code == "root_frame" for finding in found):
            return found  # Nothing else that this clip shows means what it seems to.
        found.extend(self._clip())
        if self.mode != "teacher_forced":
            found.extend(self._strain())
            found.extend(self._slip())
        return found

    # What the run shows ----------------------------------------------------------------------------------------------------

    def _root_frame(self) -> Iterable[Finding]:
        root = self.clip.report.root_frame
        if root.suspect:
            yield Finding(
                "root_frame",
                "fatal",
                f"the clip's root is in another frame: it leans {root.first_tilt_deg:.0f}° in the first frame and "
                f"{root.mean_tilt_deg:.0f}° on average, which no upright motion does",
                value=root.mean_tilt_deg,
                limit=30.0,
                unit="deg",
            )

    def _failure(self) -> Iterable[Finding]:
        failure = self.rollout.failure
        if failure is not None:
            yield Finding(
                "simulation_failed",
                "failed",
                f"the simulation stops at {self._at(failure.frame)}: {failure.reason}",
                frames=(failure.frame, self.rollout.clip_frames),
            )

    def _fall(self, fell: int) -> Finding:
        # A robot that tips over is below its height range before it leans by 60°: what it does next tells the two apart.
        tilt = self.series.tilt[fell : fell + round(2 * _BEFORE_FALL_SEC / self.dt)]
        tipped = np.flatnonzero(tilt > FALLEN_TILT_DEG)
        how = f"falls {self._direction(fell + int(tipped[0]))}" if len(tipped) else "sinks below its height range"
        told = []
        left = self._balance_lost(fell)
        carrying = self._carrying(self.onset if left is None else left)
        on = f"on {_listed(carrying, len(self.robot.feet))}" if carrying else "with no foot on the ground"
        if left is not None:
            told.append(
                f"{on}, with its centre of mass beyond the edge of the sole{'s' * (len(carrying) > 1)} from {self._at(left)} on"
            )
        else:
            told.append(on + (f", tipping from {self._at(self.onset)} on" if len(tipped) else ""))
        lifted = self._lifted(self.onset if left is None else left)
        if lifted is not None:
            told.append(f"just before, the clip lifts the {_plain(lifted)}")
        before = slice(max(0, fell - round(_BEFORE_FALL_SEC / self.dt)), fell)
        strained = {joint: share for joint, share in self._saturation(before).items() if share >= _SATURATED_IN_FALL}
        if strained:
            names = sorted(strained, key=lambda joint: -strained[joint])[:2]
            shares = " and ".join(f"the {_plain(name)} for {strained[name]:.0%}" for name in names)
            told.append(f"at the force limit in its last {(before.stop - before.start) * self.dt:.2g} s: {shares}")
        elif before.stop > before.start and self.robot.model.actuator_forcelimited.any():
            told.append("no servo was at its force limit")
        tilted = bool(self.series.tilt[fell] > FALLEN_TILT_DEG)
        return Finding(
            "fell",
            "failed",
            f"{how} at {self._at(fell)}: " + "; ".join(told),
            frames=(min(self.onset, fell), fell + 1),
            value=float(self.series.tilt[fell] if tilted else self.series.height[fell]),
            limit=FALLEN_TILT_DEG if tilted else self.robot.height_range[0],
            unit="deg" if tilted else "m",
        )

    def _direction(self, frame: int) -> str:
        """Which way the root leans, seen from the heading that it had when it began to tip."""
        start, end = self.robot.root_rotation(self.rollout.qpos[[max(0, min(self.onset, frame) - 1), frame]])
        ahead, left, _ = world_to_heading(yaw(start)[None], z_axis(end)[None])[0].tolist()
        along = ("forward" if ahead > 0 else "backward") if abs(ahead) > 0.4 * math.hypot(ahead, left) else ""
        aside = ("to its left" if left > 0 else "to its right") if abs(left) > 0.4 * math.hypot(ahead, left) else ""
        return " and ".join(word for word in (along, aside) if word)

    def _carrying(self, frame: int) -> list[str]:
        """The feet that carry the weight in the five frames before `frame`, as people say them."""
        loads = self._loads[max(0, frame - 5) : max(1, frame)].mean(axis=0)
        return [
            _plain(foot.name) for foot, load in zip(self.robot.feet, loads, strict=True) if load > LOADED_ABOVE * self._weight
        ]

    def _balance_lost(self, fell: int) -> int | None:
        """The frame from which on the centre of mass is not over the loaded soles any more, until the fall."""
        first = max(0, fell - round(2 * _BEFORE_FALL_SEC / self.dt))
        rows = np.arange(first, fell, self._every)
        if len(rows) == 0:
            return None
        places = self._places(self.rollout.qpos[rows])
        loaded = self._loads[rows] > LOADED_ABOVE * self._weight
        beyond = places.outside(places.com[:, :2], loaded)
        inside = np.flatnonzero(beyond <= 0.0)
        if len(inside) == 0 or inside[-1] + 1 >= len(rows):
            return None
        # A jump into the air leaves no support, and is no loss of balance over an edge.
        left = int(inside[-1]) + 1
        return int(rows[left]) if np.isfinite(beyond[left]) else None

    def _lifted(self, frame: int) -> str | None:
        """The foot that the clip lifted last, shortly before `frame`."""
        meant, every = self._meant, self._every
        shortest = max(2, round(0.1 / (every * self.dt)))
        latest: tuple[int, str] | None = None
        for i, foot in enumerate(self.robot.feet):
            for start, stop in find_runs(~meant[:, i]):
                lifted = start * every
                if start > 0 and stop - start >= shortest and frame - _LIFTED_BEFORE_SEC / self.dt <= lifted <= frame:
                    latest = max(latest or (lifted, foot.name), (lifted, foot.name))
        return None if latest is None else latest[1]

    def _gates(self) -> Iterable[Finding]:
        """What the failed gates of a robot that stands saw."""
        series, failed, rows = self.series, self.failed, self.rows
        if rows == 0:
            return
        for axis in ("pitch", "roll"):
            gate = failed.get(f"p95_{axis}_deg")
            if gate is not None and gate.value is not None:
                values: Array = getattr(series, axis)
                own = pitch_roll_tilt(self.clip.root_rot)[0 if axis == "pitch" else 1]
                clips = percentile(np.degrees(np.abs(own)), 95)
                yield Finding(
                    "leans",
                    "failed",
                    f"leans {gate.value:.0f}° in {axis} (95th percentile; the clip itself {clips:.0f}°)",
                    frames=_span(values > _threshold(gate)),
                    value=gate.value,
                    limit=_threshold(gate),
                    unit="deg",
                )
        tilt = failed.get("max_tilt_deg")
        if tilt is not None and tilt.value is not None:
            yield Finding(
                "leans",
                "failed",
                f"leans up to {tilt.value:.0f}° without falling",
                frames=_span(series.tilt > _threshold(tilt)),
                value=tilt.value,
                limit=_threshold(tilt),
                unit="deg",
            )
        if "height_max" in failed:
            high = _threshold(failed["height_max"])
            yield Finding(
                "too_high",
                "failed",
                f"the root rises to {series.height.max():.2f} m, over the robot's range (the clip's rises to "
                f"{self.clip.root_pos[:, 2].max():.2f} m)",
                frames=_span(series.height > high),
                value=float(series.height.max()),
                limit=high,
                unit="m",
            )
        if "nonfoot_contact_rate" in failed:
            yield self._touching()
        stab = failed.get("p90_stab_force_over_mg")
        if stab is not None and stab.value is not None:
            does = "carries" if self._lift > 0 else "presses down with"
            yield Finding(
                "harness_carries",
                "failed",
                f"the harness {does} {stab.value:.0%} of the weight (90th percentile), {abs(self._lift):.0%} on average",
                frames=_span(series.stab > _threshold(stab)),
                value=stab.value,
                limit=_threshold(stab),
                unit="1",
            )
        if "unloaded_frame_rate" in failed or "mean_sum_fn_over_mg" in failed:
            yield self._unloaded()
        if "contact_rate" in failed:
            yield from self._contact_rates()
        if "height_std" in failed:
            yield Finding(
                "stands_still",
                "failed",
                f"the root's height hardly changes: standard deviation {1e3 * series.height.std():.1f} mm (the clip's: "
                f"{1e3 * self.clip.root_pos[:, 2].std():.1f} mm)",
                value=float(series.height.std()),
                limit=_threshold(failed["height_std"]),
                unit="m",
            )
        if "joint_rmse_rad" in failed:
            error = np.sqrt(((self.rollout.dof_pos - self.rollout.reference_dof_pos) ** 2).mean(axis=0))
            worst = int(np.argmax(error))
            joint = self.robot.joint_names[worst]
            yield Finding(
                "joints_off",
                "failed",
                f"the joints are off the clip's by {failed['joint_rmse_rad'].value:.2f} rad, most of all the {_plain(joint)} "
                f"({error[worst]:.2f} rad)",
                joint=joint,
                value=failed["joint_rmse_rad"].value,
                limit=_threshold(failed["joint_rmse_rad"]),
                unit="rad",
            )
        if "root_drift_m" in failed:
            limit = _threshold(failed["root_drift_m"])
            beyond = series.drift > limit
            yield Finding(
                "drifts",
                "failed",
                f"the root drifts up to {series.drift.max():.2f} m from the clip's, beyond {limit:g} m from "
                f"{self._at(int(np.argmax(beyond)))} on",
                frames=_span(beyond),
                value=float(series.drift.max()),
                limit=limit,
                unit="m",
            )

    def _touching(self) -> Finding:
        """The first touch of something that is no foot, by name where the frame's last state still shows it."""
        series = self.series
        frame = int(np.argmax(series.nonfoot))
        rate = float(series.nonfoot.mean())
        names = self._on_ground(self.rollout.qpos[frame])
        what = " and ".join(_plain(name) for name in names[:2]) if names else "something that is no foot"
        return Finding(
            "body_touches",
            "failed",
            f"{what} touches the ground at {self._at(frame)} ({rate:.0%} of the frames)",
            frames=_span(series.nonfoot),
            value=rate,
            limit=_threshold(self.failed["nonfoot_contact_rate"]),
            unit="1",
        )

    def _on_ground(self, qpos: Array) -> list[str]:
        """The geoms (or, where they have no name, the bodies) that touch the ground in a pose and are on no foot."""
        model, feet = self.robot.model, {foot.body for foot in self.robot.feet}
        data = mujoco.MjData(model)
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        names: dict[str, None] = {}
        for pair in data.contact.geom.tolist():
            others = [geom for geom in pair if geom != self.robot.ground_geom]
            if len(others) == 1 and int(model.geom_bodyid[others[0]]) not in feet:
                body = int(model.geom_bodyid[others[0]])
                names[str(model.geom(others[0]).name) or str(model.body(body).name) or f"body {body}"] = None
        return list(names)

    def _unloaded(self) -> Finding:
        series = self.series
        light = series.load < UNLOADED_BELOW
        air = ~series.feet.any(axis=1)
        start, stop = max(find_runs(light), key=lambda run: run[1] - run[0], default=(0, 0))
        message = f"the feet carry less than {UNLOADED_BELOW} of the weight in {light.mean():.0%} of the frames"
        message += f" ({series.load.mean():.2f} on average)"
        if stop > start:
            message += f", longest at {self._during(start, stop)}"
        if air.mean() > 0.02:
            message += f"; no foot touches in {air.mean():.0%}"
        if self._lift > 0.05:
            message += f"; the harness carries {self._lift:.0%} on average"
        gate = self.gates.get("unloaded_frame_rate")
        return Finding(
            "unloaded",
            "failed",
            message,
            frames=_span(light),
            value=float(light.mean()),
            limit=None if gate is None else _threshold(gate),
            unit="1",
        )

    def _contact_rates(self) -> Iterable[Finding]:
        low, high = self._contact_range
        for i, foot in enumerate(self.robot.feet):
            rate = float(self.series.feet[:, i].mean())
            if rate > high:
                lift = 100 * max(0.0, float(self._clip_places.heights()[:, i].max()))
                yield Finding(
                    "never_lifts",
                    "failed",
                    f"the {_plain(foot.name)} is on the ground in {rate:.0%} of the frames"
                    + (f"; the clip lifts it by {lift:.1f} cm at most" if lift >= 0.1 else "; the clip never lifts it"),
                    foot=foot.name,
                    value=rate,
                    limit=high,
                    unit="1",
                )
            elif rate < low:
                meant = float(self._meant[:, i].mean())
                yield Finding(
                    "rarely_stands",
                    "failed",
                    f"the {_plain(foot.name)} is on the ground in {rate:.0%} of the frames only; the clip means {meant:.0%}",
                    foot=foot.name,
                    value=rate,
                    limit=low,
                    unit="1",
                )

    @property
    def _contact_range(self) -> tuple[float, float]:
        threshold = self.gates["contact_rate"].threshold
        assert isinstance(threshold, tuple)
        return threshold

    # What led to it --------------------------------------------------------------------------------------------------------

    def _strain(self) -> Iterable[Finding]:
        """Torque and speed of the joints, before the robot tips over."""
        if self.onset < 5:
            return
        robot, rollout = self.robot, self.rollout
        limits = np.abs(robot.model.actuator_forcerange).max(axis=1)
        shares = self._saturation(self.calm)
        busy = sorted((joint for joint in shares if shares[joint] >= _SATURATED_SHARE), key=lambda joint: -shares[joint])
        for joint in busy[:_AT_MOST]:
            limit = float(limits[robot.ctrl_adr[robot.joint_names.index(joint)]])
            yield Finding(
                "torque_saturated",
                "cause",
                f"torque saturated at the {_plain(joint)} for {shares[joint]:.0%} of the frames"
                + (" before it tips" if self.fell is not None else "")
                + f" (limit {limit:g} N·m)",
                joint=joint,
                frames=(0, self.onset),
                value=shares[joint],
                limit=_SATURATED_SHARE,
                unit="1",
            )
        asked = self._clip_speed[: self.onset]
        lag = np.abs(rollout.reference_dof_pos - rollout.dof_pos)[self.calm]
        peaks = [int(frame) for frame in asked.argmax(axis=0)]
        slow: list[tuple[float, Finding]] = []
        for j, frame in enumerate(peaks):
            near = slice(max(0, frame - 3), frame + 4)
            reached, speed = float(np.abs(rollout.dof_vel[self.calm][near, j]).max()), float(asked[frame, j])
            if speed >= _FAST and reached < _FOLLOWED * speed and lag[near, j].max() >= _LAG_RAD:
                joint = robot.joint_names[j]
                message = (
                    f"the clip moves the {_plain(joint)} at {speed:.1f} rad/s at {self._at(frame)}, the servo reaches "
                    f"{reached:.1f} and is {lag[near, j].max():.2f} rad behind"
                )
                frames = (near.start, min(near.stop, self.onset))
                slow.append(
                    (
                        reached / speed,
                        Finding("joint_speed", "cause", message, joint, None, frames, speed, reached, "rad/s"),
                    )
                )
        for _, finding in sorted(slow, key=lambda entry: entry[0])[:_AT_MOST]:
            yield finding

    def _slip(self) -> Iterable[Finding]:
        for i, foot in enumerate(self.robot.feet):
            standing = self._loads[self.calm, i] > LOADED_ABOVE * self._weight
            slipping = standing & (self.rollout.foot_speed[self.calm, i] > SLIP_SPEED)
            if standing.sum() < _SLIP_OVER_SEC / self.dt:
                continue
            share = float(slipping.sum() / standing.sum())
            if share >= _SLIPPING_SHARE:
                speed = float(self.rollout.foot_speed[self.calm, i][slipping].max())
                yield Finding(
                    "slips",
                    "note",
                    f"the {_plain(foot.name)} slides in {share:.0%} of its stance"
                    + (" before the robot tips" if self.fell is not None else "")
                    + f", at up to {speed:.2f} m/s",
                    foot=foot.name,
                    frames=_span(slipping),
                    value=share,
                    limit=_SLIPPING_SHARE,
                    unit="1",
                )

    def _clip(self) -> Iterable[Finding]:
        """What is wrong with the clip itself."""
        report = self.clip.report
        if report.initial_clearance_m > _OFF_GROUND_M:
            yield Finding(
                "starts_in_air",
                "cause",
                f"the clip starts {report.initial_clearance_m:.2f} m above the ground, so the robot drops first",
                frames=(0, 1),
                value=report.initial_clearance_m,
                limit=_OFF_GROUND_M,
                unit="m",
            )
        yield from self._off_ground()
        beyond = [
            joint
            for joint in report.joints_clipped
            if joint.max_excess_rad >= _LIMIT_RAD and joint.frames >= _LIMIT_SHARE * report.frames_in
        ]
        for clipped in sorted(beyond, key=lambda joint: -joint.max_excess_rad)[:_AT_MOST]:
            yield Finding(
                "joint_limit",
                "cause",
                f"the clip bends the {_plain(clipped.joint)} up to {clipped.max_excess_rad:.2f} rad beyond its limit "
                f"({clipped.frames} of {report.frames_in} source frames); it was clipped",
                joint=clipped.joint,
                value=clipped.max_excess_rad,
                limit=0.0,
                unit="rad",
            )

    def _off_ground(self) -> Iterable[Finding]:
        """Feet of the clip that stand above the ground, or in it."""
        heights, still = self._clip_places.heights(), self._still
        lowest = heights.min(axis=1)
        shortest = max(2, round(_STANCE_SEC / (self._every * self.dt)))
        for i, foot in enumerate(self.robot.feet):
            # Of two feet that are still, the higher one may just hang at the top of a step.
            for code, off in (
                ("feet_above_ground", still[:, i] & (heights[:, i] == lowest) & (heights[:, i] > _OFF_GROUND_M)),
                ("feet_below_ground", heights[:, i] < -_OFF_GROUND_M),
            ):
                runs = [run for run in find_runs(off) if run[1] - run[0] >= shortest]
                if not runs:
                    continue
                start, stop = max(runs, key=lambda run: float(np.abs(heights[run[0] : run[1], i]).mean()))
                extreme = heights[start:stop, i]
                value = float(extreme[int(np.abs(extreme).argmax())])
                frames = (start * self._every, min(stop * self._every, self.clip.num_frames))
                where = "above the ground where it should stand" if code == "feet_above_ground" else "under the ground"
                often = f", {len(runs)} times in all" if len(runs) > 1 else ""
                yield Finding(
                    code,
                    "cause",
                    f"the clip's {_plain(foot.name)} is {abs(value):.2f} m {where} at {self._during(*frames)}{often}",
                    foot=foot.name,
                    frames=frames,
                    value=value,
                    limit=_OFF_GROUND_M,
                    unit="m",
                )

    # What would help -------------------------------------------------------------------------------------------------------

    def suggestions(self, findings: list[Finding]) -> Iterable[Suggestion]:
        codes = list(dict.fromkeys(finding.code for finding in findings if finding.severity != "note"))
        if "root_frame" in codes:
            yield Suggestion(
                "fix_root_frame",
                f"export the clip again with its root upright (it leans {self.clip.report.root_frame.mean_tilt_deg:.0f}°); "
                "nothing else can be judged before that",
                ("root_frame",),
                self.clip.report.root_frame.mean_tilt_deg,
            )
            return
        beaten = tuple(code for code in codes if code in ("fell", "leans", "unloaded", "harness_carries", "pose_overwritten"))
        if beaten and self.mode in ("rollout", "teacher_forced"):
            why = (
                "nothing balances the robot in this mode"
                if self.mode == "rollout"
                else "every frame starts from the clip's pose here"
            )
            yield Suggestion("use_tracked", f"score it with --mode tracked, which plans the balance; {why}", beaten)
        slower = self._slower(findings)
        if slower is not None:
            yield slower
        yield from self._ground(codes)
        if "joint_limit" in codes:
            yield Suggestion("mend_joints", "retarget the clip inside the joints' limits", ("joint_limit",))
        if "never_lifts" in codes:
            lifted = 1 - self._contact_range[1]
            yield Suggestion(
                "lift_feet",
                f"use a clip that lifts its feet higher or longer: Tier 0 needs each in the air for {lifted:.0%} of the time",
                ("never_lifts",),
                lifted,
            )
        missed = tuple(
            code for code in codes if code in ("fell", "leans", "body_touches", "unloaded", "joints_off", "drifts", "too_high")
        )
        if self.mode == "tracked" and missed:
            yield Suggestion("other_seed", f"plan with another --seed than {self.rollout.recipe.seed}", missed)

    def _slower(self, findings: list[Finding]) -> Suggestion | None:
        speeds = [finding for finding in findings if finding.code == "joint_speed"]
        dynamic = [finding for finding in findings if finding.code == "torque_saturated" and self._moves(finding.joint)]
        if not speeds and not dynamic:
            return None
        message = (
            f"slower: ampref augment --warp {SLOWER:g} takes joint speeds to {SLOWER:.0%} and the torques of acceleration to "
        )
        message += f"{SLOWER * SLOWER:.0%}"
        needed = min((finding.limit / finding.value for finding in speeds if finding.limit and finding.value), default=None)
        if needed is not None and needed < SLOWER:
            message += f" (the servo of the {_plain(speeds[0].joint or '')} would need ×{needed:.2f})"
        because = tuple(dict.fromkeys(finding.code for finding in (*speeds, *dynamic)))
        return Suggestion("slower", message, because, SLOWER)

    def _moves(self, joint: str | None) -> bool:
        """Whether a joint moves, on average, while its actuator is at its limit."""
        if joint is None:
            return False
        j = self.robot.joint_names.index(joint)
        strained = self._saturated[self.calm, j]
        return bool(strained.any()) and float(self._clip_speed[: self.onset][strained, j].mean()) > _MOVING

    def _ground(self, codes: list[str]) -> Iterable[Suggestion]:
        off = tuple(code for code in codes if code in ("feet_above_ground", "feet_below_ground"))
        if not off:
            return
        heights = self._clip_places.heights()
        lowest = heights.min(axis=1)
        standing = lowest[(self._still & (heights == lowest[:, None])).any(axis=1)]
        typical = float(np.median(standing)) if len(standing) else 0.0
        if abs(typical) > _OFF_GROUND_M:
            word = "lower" if typical > 0 else "raise"
            yield Suggestion("shift_ground", f"{word} the clip by {abs(typical):.2f} m", off, -typical)
        else:
            low, high = (float(np.quantile(lowest, q)) for q in (0.05, 0.95))
            yield Suggestion(
                "level_feet",
                f"retarget the feet onto level ground: the lowest is at {low:+.2f} to {high:+.2f} m, which no shift mends",
                off,
                high - low,
            )

    # Evidence --------------------------------------------------------------------------------------------------------------

    @cached_property
    def _weight(self) -> float:
        return self.robot.mg_for(self.rollout.recipe.physics)

    @cached_property
    def _lift(self) -> float:
        """The harness force over the weight, on average; positive is up."""
        return float(self.rollout.stab_force.mean()) / self._weight

    @cached_property
    def _loads(self) -> Array:
        """(N, F) N."""
        loads = [self.rollout.channel_loads[:, list(foot.channels)].sum(axis=1) for foot in self.robot.feet]
        return np.stack(loads, axis=1)

    @cached_property
    def _saturated(self) -> Bools:
        """(N, n) which joints' actuators are at their limit."""
        return saturated_actuators(self.robot.model, self.rollout.actuator_force)[:, self.robot.ctrl_adr]

    def _saturation(self, rows: slice) -> dict[str, float]:
        """The share of the frames in which each joint is at its limit."""
        chosen = self._saturated[rows]
        if len(chosen) == 0:
            return {}
        return {joint: float(share) for joint, share in zip(self.robot.joint_names, chosen.mean(axis=0), strict=True)}

    @cached_property
    def _clip_speed(self) -> Array:
        """(M, n) rad/s of the clip's joints; the first frame's is that of the step after it."""
        speed = np.abs(np.diff(self.clip.dof_pos, axis=0, prepend=self.clip.dof_pos[:1])) / self.dt
        if len(speed) > 1:
            speed[0] = speed[1]
        return speed

    @cached_property
    def _every(self) -> int:
        """Frames from one pose of the clip that is looked at to the next: enough to see a stance, at a fraction of the time."""
        return max(1, round(_LOOKED_AT_SEC / self.dt))

    @cached_property
    def _clip_places(self) -> _Places:
        """Of the clip, as far as the robot came: what the clip does after a fall is no reason for it."""
        stop = self.clip.num_frames if self.fell is None else self.fell + 1
        return self._places(self.clip.qpos(self.robot)[: stop : self._every])

    def _places(self, qpos: Array) -> _Places:
        com = np.empty((len(qpos), 3))
        for k, data in enumerate(kinematics.iterate_poses(self.robot.model, qpos)):
            mujoco.mj_comPos(self.robot.model, data)
            com[k] = data.subtree_com[self.robot.root_body]
        return _Places(com, kinematics.FootTracker(self.robot).corners(qpos))

    @cached_property
    def _clip_speeds(self) -> tuple[Array, Array]:
        return self._clip_places.speeds(self._every * self.dt)

    @cached_property
    def _still(self) -> Bools:
        """(K, F) which feet of the clip neither slide nor rise."""
        along, upward = self._clip_speeds
        return (along < _STILL[0]) & (np.abs(upward) < _STILL[1])

    @cached_property
    def _meant(self) -> Bools:
        """(K, F) which feet the clip means to stand on: `kinematics.kinematic_contacts` of the poses that are looked at."""
        return (self._clip_places.heights() < kinematics.KINEMATIC_HEIGHT) & (self._clip_speeds[0] < kinematics.KINEMATIC_SPEED)

    def _at(self, frame: int) -> str:
        return f"{frame * self.dt:.2f} s"

    def _during(self, start: int, stop: int) -> str:
        return f"{start * self.dt:.2f}–{stop * self.dt:.2f} s"


@dataclass(frozen=True, eq=False)
class _Places:
    """Where a robot is in K poses: (K, 3) m its centre of mass, and for each foot (K, corners, 3) m its corners."""

    com: Array
    corners: tuple[Array, ...]

    def heights(self) -> Array:
        """(K, F) m: of the lowest corner of each foot."""
        return np.stack([corners[:, :, 2].min(axis=1) for corners in self.corners], axis=1)

    def speeds(self, step: float) -> tuple[Array, Array]:
        """(K, F) m/s: how fast the slowest corner of each foot moves horizontally, and its lowest point upwards."""
        along, upward = np.zeros((2, len(self.com), len(self.corners)))
        if len(self.com) > 1:
            for i, corners in enumerate(self.corners):
                moved = np.diff(corners[:, :, :2], axis=0)
                along[1:, i] = np.sqrt((moved**2).sum(axis=2)).min(axis=1) / step
                upward[1:, i] = np.diff(corners[:, :, 2].min(axis=1)) / step
            along[0], upward[0] = along[1], upward[1]
        return along, upward

    def outside(self, points: Array, feet: Bools) -> Array:
        """(K,) m: how far each point, (K, 2), is outside the hull of the soles of the chosen feet, (K, F).

        It is negative inside and infinite where no foot is chosen. The hull is seen from 32 directions.
        """
        angles = np.arange(_DIRECTIONS) * 2 * math.pi / _DIRECTIONS
        axes = np.stack([np.cos(angles), np.sin(angles)])
        reach = np.full((len(points), _DIRECTIONS), -np.inf)
        for i, corners in enumerate(self.corners):
            own = (corners[:, :, :1] * axes[0] + corners[:, :, 1:2] * axes[1]).max(axis=1)
            reach = np.maximum(reach, np.where(feet[:, i, None], own, -np.inf))
        beyond: Array = (points[:, :1] * axes[0] + points[:, 1:] * axes[1] - reach).max(axis=1)
        return beyond


def _span(values: Bools) -> tuple[int, int] | None:
    """From the first True to the last."""
    found = np.flatnonzero(values)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else None


def _listed(feet: list[str], of: int) -> str:
    """Feet in words: `both feet`, `its left foot`."""
    if len(feet) == of > 1:
        return "both feet" if of == 2 else "all its feet"
    return f"its {' and '.join(feet)}"


def _threshold(gate: Gate) -> float:
    assert not isinstance(gate.threshold, tuple)
    return gate.threshold


def _plain(name: str) -> str:
    """A name as people say it."""
    return name.replace("_", " ")
