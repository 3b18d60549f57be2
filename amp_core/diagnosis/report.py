"""The diagnosis of one rollout, from its findings to suggestions."""

from __future__ import annotations

import math
from typing import get_args

from amp_core.diagnosis.causes import describe_clip, describe_clip_gates, describe_slip, describe_strain
from amp_core.diagnosis.evidence import Evidence
from amp_core.diagnosis.fall import describe_fall
from amp_core.diagnosis.findings import Diagnosis, Finding, Severity
from amp_core.diagnosis.gates import describe_gates
from amp_core.diagnosis.suggestions import suggest
from amp_core.motion import Conditioned
from amp_core.motion.root_frame import SUSPECT_TILT
from amp_core.reproduction import PARTS_ROOT_M, Reproduction
from amp_core.robot import Robot
from amp_core.rollout import Rollout
from amp_core.tiers import Classification, Tier

PARTING_RAD = 0.05
"""A planning model that is off by more says little of the robot: those that walk are off by a tenth of it."""


def diagnose(
    rollout: Rollout, clip: Conditioned, robot: Robot, classification: Classification, reproduction: Reproduction | None = None
) -> Diagnosis | None:
    """Why a rollout is not Tier 0, or None where it is.

    Args:
      rollout: of `clip`.
      clip: conditioned for this robot.
      classification: the rollout's; thresholds are quoted as its gates have them.
      reproduction: of a recording.
    """
    if classification.tier == Tier.TIER_0:
        return None
    evidence = Evidence(rollout, clip, robot, classification)
    findings: list[Finding] = []
    root, failure, is_forced = clip.report.root_frame, rollout.failure, rollout.recipe.mode == "teacher_forced"
    if root.suspect:
        message = f"the clip's root is in another frame: it leans {root.first_tilt_deg:.0f}° in the first frame and "
        message += f"{root.mean_tilt_deg:.0f}° on average, which no upright motion does"
        limit = round(math.degrees(SUSPECT_TILT), 6)
        findings.append(Finding("root_frame", "fatal", message, value=root.mean_tilt_deg, limit=limit, unit="deg"))
    if failure is not None:
        message = f"the simulation stops at {evidence.time(failure.frame)}: {failure.reason}"
        frames = (failure.frame, rollout.clip_frames)
        findings.append(Finding("simulation_failed", "failed", message, frames=frames))
    if evidence.fell is not None:
        findings.append(describe_fall(evidence, evidence.fell))
    else:
        findings.extend(describe_gates(evidence))
    if is_forced:
        message = "every frame starts from the clip's own pose, so the feet prove nothing: Tier 1 at best"
        findings.append(Finding("pose_overwritten", "note" if findings else "fatal", message))
    if not root.suspect:  # Otherwise everything else that this clip shows is misleading.
        findings.extend(describe_clip_gates(evidence))
        findings.extend(describe_clip(evidence))
        if not is_forced:
            findings.extend(describe_strain(evidence))
            findings.extend(describe_slip(evidence))
    plan = rollout.plan
    if plan is not None and plan.parting_rad > PARTING_RAD:
        message = f"from one plan to the next the joints part by {plan.parting_rad:.2f} rad from what the plan expects"
        findings.append(Finding("plan_parts", "cause", message, value=plan.parting_rad, limit=PARTING_RAD, unit="rad"))
    if reproduction is not None and reproduction.parts_at_sec is not None:
        # The row whose state is reached then.
        first = max(0, round(reproduction.parts_at_sec / rollout.dt) - 1)
        message, frames = f"the recording does not reproduce: {reproduction.explain()}", (first, len(rollout.qpos))
        value, limit = reproduction.max_root_m, PARTS_ROOT_M
        findings.append(Finding("recording_parts", "cause", message, frames=frames, value=value, limit=limit, unit="m"))
    findings.sort(key=lambda finding: get_args(Severity).index(finding.severity))
    return Diagnosis(tuple(findings), tuple(suggest(evidence, findings)))
