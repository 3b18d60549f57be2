"""Findings and suggestions: the codes, and what each holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Severity = Literal["fatal", "failed", "cause", "note"]

CODES: Mapping[str, str] = {
    "root_frame": "The clip's root is in another frame: it leans in a way that no upright motion does.",
    "clip_not_upright": "The clip itself lies, crawls or turns over.",
    "flight": "In the clip itself no foot is on the ground for a large part of the time.",
    "ground_not_flat": "The ground under the clip's standing feet rises or falls: a slope, stairs, or a height that drifts.",
    "clip_feet_slide": "The clip's own standing feet slide: its root travels further or another way than its steps.",
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
    "stands_still": "The clip holds a pose throughout, or the root's height is all but constant.",
    "joints_off": "The joints are far from the clip's.",
    "bodies_off": "The limbs are far from the clip's.",
    "heading_off": "The robot faces another way than the clip.",
    "tilt_off": "The robot leans otherwise than the clip.",
    "height_off": "The root is higher or lower than the clip's.",
    "drifts": "The root is far from the clip's.",
    "speed_off": "The robot travels further or less far than the clip.",
    "contacts_off": "The feet are not on the ground when the clip's are.",
    "torque_saturated": "A joint's actuator is at its force limit.",
    "joint_speed": "The clip moves a joint faster than its servo follows.",
    "joint_limit": "The clip leaves a joint's limits.",
    "feet_above_ground": "A foot of the clip hangs in the air where it should stand.",
    "feet_below_ground": "A foot of the clip is under the ground.",
    "starts_in_air": "The clip's first pose is above the ground.",
    "slips": "A standing foot slides.",
    "plan_parts": "The robot does not do what the planning model expects of it.",
    "recording_parts": "The recorded controls lead elsewhere than in the simulation that they come from.",
}
"""Every code of a finding, with its meaning."""

SUGGESTIONS: Mapping[str, str] = {
    "fix_root_frame": "Export the clip with an upright root.",
    "cut_start": "Cut off the start of the clip, in which no foot is on the ground.",
    "use_tracked": "Score it in mode `tracked`.",
    "slower": "Score a slower variant.",
    "shift_ground": "Move the clip up or down.",
    "level_feet": "Retarget the clip onto level ground.",
    "mend_joints": "Retarget the clip inside the joints' limits.",
    "other_seed": "Plan with another seed.",
    "lift_feet": "Use a clip that lifts its feet.",
    "dynamic_profile": "Score it by the gate profile for running, jumping and dancing.",
    "level_clip": "Take the rise of the ground out of the clip (ampref augment --level), if the floor was flat.",
    "match_steps": "Make the root travel as far as the steps.",
    "finer_plan": "Plan with a shorter step, or let the robot's servos be softer.",
    "match_recording": "Record the controls with this robot's own model.",
}
"""Every code of a suggestion, with its meaning."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
      code: one of `CODES`.
      severity: `fatal` (no rollout of this clip in this mode can be Tier 0), `failed` (what a failed gate measured), `cause`
        (what led to it or is likely to), `note`.
      message: one short sentence without a full stop.
      joint, foot: the joint or foot concerned, by the robot's names; None where it is no single one.
      frames: (start, end) of the rollout, `end` excluded; None where it is about the clip as a whole.
      value, limit: the measured value, and the bound that it breaks; None where there is none.
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


@dataclass(frozen=True)
class Suggestion:
    """A change that would help.

    Args:
      code: one of `SUGGESTIONS`.
      message: one short sentence without a full stop.
      because: the codes of the findings that it answers.
      value: the size of the change, such as a speed factor or metres; None where it has none.
    """

    code: str
    message: str
    because: tuple[str, ...]
    value: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Findings, the most severe first, and suggestions."""

    findings: tuple[Finding, ...]
    suggestions: tuple[Suggestion, ...]

    def without(self, suggestion: str) -> Diagnosis:
        """The diagnosis without the suggestions of one code: for a suggestion that has been followed."""
        return replace(self, suggestions=tuple(entry for entry in self.suggestions if entry.code != suggestion))
