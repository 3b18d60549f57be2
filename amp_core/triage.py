"""Triage: what a clip lacks, found cheaply before anything is planned for it.

It considers the conditioning and one rollout of the clip's own joint angles, driven open loop. Mode `auto` plans for a clip
that lacks balance, a foothold or a little torque. A clip that runs, jumps or leans fails gates that are made for walking, and
one that never lifts a foot fails one whatever is planned for it; they are judged, and planned for, by the profile that
compares with the clip's own motion. Nothing is planned where the root is in another frame, because the plan would follow
another motion than the clip's, nor where the rollout is as good as any can be: Tier 0; or Tier 1, of a clip that itself fails a
Tier 0 gate of the profile or lifts no foot; or Rejected, of one that fails a gate of validity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amp_core.motion import IngestReport
from amp_core.robot import Robot
from amp_core.tiers import (
    CLIP_CODES,
    DYNAMIC_PROFILES,
    LYING_DEG,
    Gate,
    GateProfile,
    HeightShare,
    Tier,
    best_tier,
    clip_failures,
    holds,
)

SATURATED_SHARE = 0.05
"""Share of (actuator, frame) pairs at their limit above which the actuators are too weak."""

FOLLOWED: Mapping[str, float | HeightShare] = {
    "clip_flight_rate": 1.0,
    "clip_max_tilt_deg": LYING_DEG,
    "clip_ground_range_m": HeightShare(0.14),
}
"""How far a clip may fail a gate of its own and yet be a motion that a robot can follow on its feet on a flat floor: it flies,
but does not lie; and its ground varies by no more than twice what the root's height may be off."""

ALWAYS_STANDING = 0.99
"""Share of the clip's frames in which a foot stands above which it is never lifted."""


@dataclass(frozen=True)
class Lack:
    """One thing that a clip lacks.

    Args:
      what: `root_frame`, one of `tiers.CLIP_CODES`, `starts_in_air`, `ground_fit`, `reachable_joints`, `footwork`,
        `actuator_limits` or `balance`.
      detail: in words, with the measured values.
    """

    what: str
    detail: str


@dataclass(frozen=True)
class Triage:
    """What a clip lacks, and whether planning could make up for it.

    Args:
      lacks: in the order in which they would have to be mended.
      worth_planning: whether controls that balance the robot are missing, and could make the clip's tier better.
      reason: in words.
      relative: whether the clip itself asks for the profile that goes with the given one and compares with the clip
        (`tiers.DYNAMIC_PROFILES`).
    """

    lacks: tuple[Lack, ...]
    worth_planning: bool
    reason: str
    relative: bool = False


def triage(
    report: IngestReport,
    stance: Sequence[float],
    metrics: Mapping[str, float | int | None],
    tier: int,
    robot: Robot,
    profile: GateProfile,
    gates: Sequence[Gate] = (),
) -> Triage:
    """Judge a clip by its conditioning and by its rollout in mode `rollout`.

    Args:
      report: of the conditioning.
      stance: of each foot, the share of the clip's frames in which it stands (`kinematics.kinematic_contacts`).
      metrics, tier: of the rollout.
      robot: that of the clip.
      profile: of the rollout's gates.
      gates: their outcomes for the rollout.
    """
    lacks: list[Lack] = []
    if report.root_frame.suspect:
        lacks.append(Lack("root_frame", report.root_frame.detail))
    clip_gates = clip_failures(gates)
    lacks.extend(Lack(CLIP_CODES.get(gate.name, gate.name), gate.explain()) for gate in clip_gates)
    tilt = metrics.get("clip_max_tilt_deg") or 0.0
    lies = tilt > LYING_DEG
    lying = f"the clip leans by up to {tilt:.0f}°: it lies, gets up or turns over, which no plan on the feet follows"
    if lies and not any(gate.name == "clip_max_tilt_deg" for gate in clip_gates):
        lacks.append(Lack(CLIP_CODES["clip_max_tilt_deg"], lying))
    # A start so high that the robot's own first pose fails a gate: the plan begins with this pose, too.
    is_high = any(gate.name == "height_max" and not gate.passed for gate in gates)
    start = report.finding("starts_in_air") if is_high else None
    if start is not None:
        lacks.append(Lack("starts_in_air", start.message))
    ground, faults = [], report.ground_faults(robot)
    if "shift" in faults:
        ground.append(f"it was moved by {report.ground_shift_m:+.3f} m to the floor")
    if "spread" in faults:
        ground.append(f"the lowest foot point varies by {report.foot_height_spread_m:.3f} m (interquartile)")
    if "depth" in faults:
        ground.append(f"a foot is deep below the floor in {report.deep_penetration_rate:.0%} of the frames")
    if ground:
        lacks.append(Lack("ground_fit", "; ".join(ground)))
    if joints := report.unreachable_joints:
        excesses = ", ".join(f"{clip.joint} by up to {clip.max_excess_rad:.2f} rad in {clip.frames} frames" for clip in joints)
        lacks.append(Lack("reachable_joints", f"beyond the joints' limits: {excesses}"))
    contact, standing = profile.for_tier(Tier.TIER_0).get("contact_rate"), max(stance, default=0.0)
    # A profile that lets a foot stand all the time needs no footwork.
    if contact is not None and standing > ALWAYS_STANDING and not holds(standing, contact.op, contact.resolve((0.0, 0.0))):
        lacks.append(Lack("footwork", "a foot is meant to stand in every frame; a walking reference lifts each of them"))
    saturation, fell = metrics.get("actuator_saturation_rate"), metrics.get("fell_at_frame")
    if saturation is not None and saturation > SATURATED_SHARE:
        lacks.append(Lack("actuator_limits", f"actuators are at their force limit for {saturation:.0%} of the time"))
    if fell is not None:
        lacks.append(Lack("balance", f"driven open loop the robot falls at {(fell + 1) * robot.control_dt:.2f} s"))
    lacks_footwork = any(lack.what == "footwork" for lack in lacks)
    relative = (
        profile.name in DYNAMIC_PROFILES
        and not report.root_frame.suspect
        and start is None
        and bool(clip_gates or (lacks_footwork and tier == Tier.REJECTED))
        and all(_is_followed(gate, robot) for gate in clip_gates)
    )
    worth_planning = False
    if report.root_frame.suspect:
        reason = "the root's frame is not the robot's; nothing is planned for a motion that the clip does not mean"
    elif clip_gates:
        explanations = "; ".join(gate.explain() for gate in clip_gates)
        best = best_tier(clip_gates)
        outcome = "be Tier 0" if best == Tier.TIER_1 else "be more than Rejected"
        reason = f"by {profile.name} this clip cannot {outcome}, and no plan can mend a clip: {explanations}"
        worth_planning = Tier(tier).rank > best.rank and not lies
        if worth_planning:
            reason = f"the plain rollout is Rejected, and a plan may make it Tier 1; {reason}"
    elif start is not None:
        reason = f"{start.message}, higher than the robot can be, and no plan can mend that: {start.remedy}"
    elif lies and tier != Tier.TIER_0:
        reason = lying
    elif tier == Tier.TIER_0:
        reason = "the plain rollout is Tier 0"
    elif tier == Tier.TIER_1 and lacks_footwork:
        reason = "the plain rollout is Tier 1, and no plan makes more of a clip that lifts no foot"
    else:
        reason, worth_planning = "the plain rollout is not Tier 0", True
    if relative:
        reason += f"; it is judged by {DYNAMIC_PROFILES[profile.name]}, too, which compares with the clip's own motion"
    return Triage(tuple(lacks), worth_planning, reason, relative)


def _is_followed(gate: Gate, robot: Robot) -> bool:
    highest = FOLLOWED.get(gate.name)
    if isinstance(highest, HeightShare):
        highest = highest.resolve(robot.height_range)
    return highest is not None and gate.value is not None and gate.value <= highest
