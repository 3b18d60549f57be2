"""The checks of a version's members, before the readiness tests and again before their frames are written.

What the catalog remembers of a rollout is compared with its arrays' bytes, its gate profile and this machine's feature code, so
that a rotten disk or a hand-edited row cannot get into a version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amp_core.digests import digest_of_file
from amp_core.errors import AmprefError, Conflict, FeatureCodeMismatch, InputRefused, IntegrityError
from amp_core.features import feature_code_hash
from amp_core.progress import Progress
from amp_core.robot import Robot
from amp_core.tiers import Classification, classify, gate_profile
from amp_core.version import GENERATOR_VERSION
from ampref_workers.protocol import Member, RobotReference
from ampref_workers.robots import load_robot

__all__ = ["CHECKS", "check_members", "classify_member", "load_and_check"]

_MOST_PROBLEMS = 5  # Quoted in an error.


@dataclass(frozen=True)
class Check:
    """The error that members which do not pass a check raise."""

    error: type[AmprefError]
    expected: str
    remedy: str


CHECKS: Mapping[str, Check] = {
    "one_origin": Check(
        Conflict,
        expected="one robot model, one MuJoCo version, one gate profile and this release's generator in a version",
        remedy="Score the odd ones again, or leave them out with select.clips or select.gate_profile.",
    ),
    "feature_code_hash": Check(
        FeatureCodeMismatch,
        expected=feature_code_hash(),
        remedy="Score these clips again with this version (ampref clip ID --score MODE), then lock.",
    ),
    "tier": Check(
        Conflict, expected="the tier that its metrics give", remedy="Score the clip again, or leave it out with select.clips."
    ),
    "arrays": Check(
        IntegrityError, expected="the bytes that were scored", remedy="Score the clip again, or restore the blob store."
    ),
}
"""In the order in which a failure is reported; the names stand in the manifest."""


def load_and_check(robot: RobotReference, members: Sequence[Member], report: Progress) -> tuple[Robot, dict[str, Any]]:
    """The robot of the members, and the outcome of every check.

    Raises:
      InputRefused: there are no members.
      RobotRefused: the robot is not installed here, or has changed.
      AmprefError: as `check_members`.
    """
    if not members:
        raise InputRefused(
            "the selection holds no clip",
            key="select",
            expected="at least one rollout of the tiers asked for",
            remedy="Widen the selection, or score more clips: ampref clips lists what there is.",
        )
    report(0.0, "loading the robot")
    model = load_robot(robot)
    return model, check_members(members, model, lambda fraction: report(fraction, "checking the members"))


def check_members(
    members: Sequence[Member], robot: Robot, report: Callable[[float], None] = lambda fraction: None
) -> dict[str, Any]:
    """Make every check in `CHECKS` and return their outcomes, which the version keeps.

    Args:
      report: called with the fraction of the members that was looked at.

    Raises:
      AmprefError: of the first failed check, with the problems that any check found.
    """
    problems = {
        "one_origin": _find_odd_origins(members),
        "feature_code_hash": [
            f"clip {member.name!r} has features of other code ({member.feature_code_hash})"
            for member in members
            if member.feature_code_hash != feature_code_hash()
        ],
        "tier": [
            f"clip {member.name!r} is stored as tier {member.tier}, but its metrics give {tier}"
            for member in members
            if (tier := classify_member(member, robot).tier) != member.tier
        ],
        "arrays": _find_changed_arrays(members, report),
    }
    failed_checks = [name for name in CHECKS if problems[name]]
    if failed_checks:
        check = CHECKS[failed_checks[0]]
        texts = [problem for name in failed_checks for problem in problems[name]]
        more = f"; and {len(texts) - _MOST_PROBLEMS} more" if len(texts) > _MOST_PROBLEMS else ""
        count = f"{len(texts)} problem{'s' * (len(texts) > 1)}"
        raise check.error(
            f"the gate before the lock found {count}: {'; '.join(texts[:_MOST_PROBLEMS])}{more}",
            key=failed_checks[0],
            expected=check.expected,
            remedy=check.remedy,
        )
    return {"checks": [{"name": name, "passed": True, "members": len(members)} for name in CHECKS]}


def classify_member(member: Member, robot: Robot) -> Classification:
    """The tier and gates that a member's stored metrics give under its gate profile."""
    return classify(member.metrics, gate_profile(member.gate_profile), member.mode, height_range=robot.height_range)


def _find_odd_origins(members: Sequence[Member]) -> list[str]:
    """Members with another robot model, MuJoCo or gate profile than the others, or of another generator than this one.

    The manifest has one line on the origin of all members.
    """
    problems = []
    for key in ("robot_digest", "mujoco_version", "gate_profile"):
        values = sorted({str(getattr(member, key)) for member in members})
        if len(values) > 1:
            odd = next(member.name for member in members if str(getattr(member, key)) != values[0])
            problems.append(f"{key} is not the same for all ({', '.join(values)}; the second with clip {odd!r})")
    for member in members:
        if member.generator_version != GENERATOR_VERSION:
            problems.append(
                f"clip {member.name!r} was made by generator {member.generator_version}; this one is {GENERATOR_VERSION}"
            )
    return problems


def _find_changed_arrays(members: Sequence[Member], report: Callable[[float], None]) -> list[str]:
    """Members whose arrays' bytes are not the ones that were scored."""
    problems = []
    for number, member in enumerate(members):
        try:
            digest = digest_of_file(member.path)
        except OSError as error:
            problems.append(f"the arrays of clip {member.name!r} cannot be read ({error.strerror})")
            continue
        if digest != member.arrays_digest:
            problems.append(f"the arrays of clip {member.name!r} have another digest than when they were scored")
        report(number / len(members))
    return problems
