"""Suggestions: what would help against the findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from amp_core.diagnosis.evidence import Evidence, readable
from amp_core.diagnosis.findings import Finding, Suggestion
from amp_core.recipe import PLANNED_MODES
from amp_core.tiers import DYNAMIC_PROFILES, best_tier, clip_failures

SLOWER = 0.9
"""The speed factor that is suggested: the slowest that `ampref augment` makes."""

_UNPLANNED = {
    "rollout": "nothing balances the robot in this mode",
    "teacher_forced": "every frame starts from the clip's pose here",
    "recorded": "the recorded controls do not answer to what the robot does here",
}
"""The modes in which no plan was made, and what is wrong with each."""

_MOVING = 0.5  # rad/s; a saturated joint that moves at this speed is busy with inertia and not only with weight
_FALL_CODES = ("fell", "leans", "unloaded", "harness_carries", "pose_overwritten")
_FAR = (
    "joints_off", "bodies_off", "heading_off", "tilt_off", "height_off", "drifts", "speed_off", "contacts_off",
)  # fmt: skip
_OFF_PLAN = ("fell", "leans", "body_touches", "unloaded", "too_high", *_FAR)
_OFF_GROUND = ("feet_above_ground", "feet_below_ground")


def _codes(codes: Sequence[str], *answered: str) -> tuple[str, ...]:
    return tuple(code for code in codes if code in answered)


def suggest(evidence: Evidence, findings: Sequence[Finding]) -> Iterator[Suggestion]:
    """The suggestions that answer the findings, which are the most severe first."""
    codes = list(dict.fromkeys(finding.code for finding in findings if finding.severity != "note"))
    if "root_frame" in codes:
        tilt = evidence.clip.report.root_frame.mean_tilt_deg
        message = f"export the clip again with its root upright (it leans {tilt:.0f}°); nothing else can be judged before that"
        yield Suggestion("fix_root_frame", message, ("root_frame",), tilt)
        return
    clip_gates = clip_failures(evidence.failed_gates.values())
    start = evidence.clip.report.finding("starts_in_air")
    if start is not None and (in_air := _codes(codes, "starts_in_air", "too_high", "fell")):
        yield Suggestion("cut_start", f"cut off the start, in which the clip is in the air: {start.remedy}", in_air)
    # By its own gates the clip cannot have a better tier than this, however it is followed.
    is_best = bool(clip_gates) and best_tier(clip_gates) == evidence.tier
    fall_codes = () if is_best or (start is not None and "too_high" in codes) else _codes(codes, *_FALL_CODES, *_FAR)
    if "recording_parts" in codes:
        message = (
            f"record it with this robot's own model: steps of {evidence.robot.sim_dt:g} s, the servos of its robot.yaml, this "
        )
        yield Suggestion("match_recording", f"{message}MuJoCo; and write recorded_qpos", ("recording_parts",))
    if "plan_parts" in codes:
        message = "plan in shorter steps (half of planner.step_sec); ampref robot check says which servo is too stiff"
        yield Suggestion("finer_plan", message, ("plan_parts",))
    if fall_codes and evidence.mode in _UNPLANNED and not evidence.clip_lies:
        reason = _UNPLANNED[evidence.mode]
        yield Suggestion("use_tracked", f"score it with --mode tracked, which plans the balance; {reason}", fall_codes)
    yield from _suggest_slower(evidence, findings)
    off_ground = _codes(codes, *_OFF_GROUND)
    if off_ground:
        lowest = evidence.clip_feet.heights.min(axis=1)
        standing = lowest[evidence.is_still.any(axis=1)]
        typical = float(np.median(standing)) if len(standing) else 0.0
        if abs(typical) > evidence.off_ground:
            verb = "lower" if typical > 0 else "raise"
            yield Suggestion("shift_ground", f"{verb} the clip by {abs(typical):.2f} m", off_ground, -typical)
        else:
            low, high = (float(np.quantile(lowest, q)) for q in (0.05, 0.95))
            message = f"retarget the feet onto level ground: the lowest is at {low:+.2f} to {high:+.2f} m, which no shift mends"
            yield Suggestion("level_feet", message, off_ground, high - low)
    if "joint_limit" in codes:
        yield Suggestion("mend_joints", "retarget the clip inside the joints' limits", ("joint_limit",))
    if "never_lifts" in codes:
        highest = evidence.gates["contact_rate"].threshold
        assert isinstance(highest, tuple)
        airborne = 1 - highest[1]
        message = (
            f"use a clip that lifts its feet higher or longer: Tier 0 needs each in the air for {airborne:.0%} of the time"
        )
        yield Suggestion("lift_feet", message, ("never_lifts",), airborne)
    if evidence.rollout.recipe.gate_profile in DYNAMIC_PROFILES and (
        codes_of_motion := ()
        if "ground_not_flat" in codes or evidence.clip_lies
        else _codes(codes, "clip_not_upright", "flight")
    ):
        profile = DYNAMIC_PROFILES[evidence.rollout.recipe.gate_profile]
        message = f"score it with --profile {profile}, which compares with the clip's own flight and posture"
        yield Suggestion("dynamic_profile", message, codes_of_motion)
    if "ground_not_flat" in codes:
        message = "the simulated floor is flat: if the clip's was, ampref augment --level takes the rise out; or leave it out"
        yield Suggestion("level_clip", message, ("ground_not_flat",))
    if "clip_feet_slide" in codes:
        message = (
            "make the root travel as its feet step: check the frame rate, the heading, the joint order and the root's scale"
        )
        yield Suggestion("match_steps", message, ("clip_feet_slide",))
    off_plan = () if is_best else _codes(codes, *_OFF_PLAN)
    if evidence.mode in PLANNED_MODES and off_plan:
        yield Suggestion("other_seed", f"plan with another --seed than {evidence.rollout.recipe.seed}", off_plan)


def _suggest_slower(evidence: Evidence, findings: Sequence[Finding]) -> Iterator[Suggestion]:
    def moves(joint: str) -> bool:
        """Whether the joint moves, on average, while its actuator is at its limit."""
        j = evidence.robot.joint_names.index(joint)
        at_limit = evidence.saturated[evidence.upright, j]
        return bool(at_limit.any()) and float(evidence.clip_joint_speed[evidence.upright][at_limit, j].mean()) > _MOVING

    fast = [finding for finding in findings if finding.code == "joint_speed"]
    dynamic = [finding for finding in findings if finding.code == "torque_saturated" and finding.joint and moves(finding.joint)]
    if not fast and not dynamic:
        return
    message = f"slower: ampref augment --warp {SLOWER:g} takes joint speeds to {SLOWER:.0%} and the torques of acceleration to "
    message += f"{SLOWER * SLOWER:.0%}"
    factor = min((finding.limit / finding.value for finding in fast if finding.limit and finding.value), default=None)
    if factor is not None and factor < SLOWER:
        message += f" (the servo of the {readable(fast[0].joint or '')} would need ×{factor:.2f})"
    yield Suggestion("slower", message, tuple(dict.fromkeys(finding.code for finding in (*fast, *dynamic))), SLOWER)
