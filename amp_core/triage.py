"""Triage: what a clip lacks, found out cheaply, before anything is planned for it.

It looks at what conditioning found and at one plain rollout, the clip's joint angles driven open loop. Mode `auto` goes by it:
a clip that only lacks balance (or a foothold, or a little torque) is worth planning for; one whose root is in another frame is
not, because what would be planned would be another motion than the clip says; and one that never lifts a foot is no walking
reference however well it is followed, so that what it gives without a plan is what it can give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amp_core.motion.report import CLIPPED_NOTE_RAD, CLIPPED_NOTE_SHARE, SHIFT_NOTE_M, SPREAD_NOTE_M
from amp_core.tiers import GateProfile, Tier, holds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from amp_core.motion import IngestReport

SATURATED_SHARE = 0.05
"""Share of (actuator, frame) pairs at their limit from which on the actuators are called too weak."""

ALWAYS_STANDING = 0.99
"""Share of the clip's frames in which a foot is meant to stand from which on it is never lifted."""

DEEP_SHARE = 0.02
"""Share of frames with a foot deep below the floor from which on the ground does not fit."""


@dataclass(frozen=True)
class Lack:
    """One thing that a clip lacks.

    Args:
      what: `root_frame`, `ground_fit`, `reachable_joints`, `footwork`, `actuator_limits` or `balance`.
      detail: in words, with figures.
    """

    what: str
    detail: str


@dataclass(frozen=True)
class Triage:
    """What a clip lacks, and whether planning could make up for it.

    Args:
      lacks: in the order in which they would have to be mended.
      worth_planning: whether controls that balance the robot are what is missing.
      reason: why, in words.
    """

    lacks: tuple[Lack, ...]
    worth_planning: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        lacks = [{"what": lack.what, "detail": lack.detail} for lack in self.lacks]
        return {"lacks": lacks, "worth_planning": self.worth_planning, "reason": self.reason}


def triage(
    report: IngestReport,
    stance: Sequence[float],
    metrics: Mapping[str, float | int | None],
    tier: int,
    dt: float,
    profile: GateProfile,
) -> Triage:
    """Judge a clip by its conditioning and by its plain rollout.

    Args:
      report: of the conditioning.
      stance: of each foot, the share of the clip's frames in which it is meant to stand (`kinematics.kinematic_contacts`).
      metrics, tier: of the rollout in mode `rollout`.
      dt: s, a frame.
      profile: that decided the tier.
    """
    lacks = tuple(_lacks(report, stance, metrics, dt, profile))
    if report.root_frame.suspect:
        return Triage(
            lacks, False, "the root's frame is not the robot's; nothing is planned for a motion that the clip does not mean"
        )
    if tier == Tier.TIER_0:
        return Triage(lacks, False, "the plain rollout is Tier 0")
    if tier == Tier.TIER_1 and any(lack.what == "footwork" for lack in lacks):
        return Triage(lacks, False, "the plain rollout is Tier 1, and no plan makes more of a clip that lifts no foot")
    return Triage(lacks, True, "the plain rollout is not Tier 0")


def _lacks(
    report: IngestReport,
    stance: Sequence[float],
    metrics: Mapping[str, float | int | None],
    dt: float,
    profile: GateProfile,
) -> list[Lack]:
    found = []
    if report.root_frame.suspect:
        found.append(Lack("root_frame", report.root_frame.detail))
    ground = []
    if abs(report.ground_shift_m) > SHIFT_NOTE_M:
        ground.append(f"it was moved by {report.ground_shift_m:+.3f} m to the floor")
    if report.foot_height_spread_m > SPREAD_NOTE_M:
        ground.append(f"the lowest foot point varies by {report.foot_height_spread_m:.3f} m (interquartile)")
    if report.deep_penetration_rate > DEEP_SHARE:
        ground.append(f"a foot is deep below the floor in {report.deep_penetration_rate:.0%} of the frames")
    if ground:
        found.append(Lack("ground_fit", "; ".join(ground)))
    often = CLIPPED_NOTE_SHARE * report.frames_in
    beyond = [c for c in report.joints_clipped if c.max_excess_rad > CLIPPED_NOTE_RAD or c.frames > often]
    if beyond:
        said = ", ".join(f"{c.joint} by up to {c.max_excess_rad:.2f} rad in {c.frames} frames" for c in beyond)
        found.append(Lack("reachable_joints", f"beyond the joints' limits: {said}"))
    contact = profile.for_tier(Tier.TIER_0).get("contact_rate")
    standing = max(stance, default=0.0)
    # A profile that lets a foot stand all the time asks for no footwork.
    if contact is not None and standing > ALWAYS_STANDING and not holds(standing, contact.op, contact.resolve((0.0, 0.0))):
        found.append(Lack("footwork", "a foot is meant to stand in every frame; a walking reference lifts each of them"))
    saturated = metrics.get("actuator_saturation_rate")
    if saturated is not None and saturated > SATURATED_SHARE:
        found.append(Lack("actuator_limits", f"actuators are at their force limit for {saturated:.0%} of the time"))
    fell = metrics.get("fell_at_frame")
    if fell is not None:
        found.append(Lack("balance", f"driven open loop the robot falls at {fell * dt:.2f} s"))
    return found
