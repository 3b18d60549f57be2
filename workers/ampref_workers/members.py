"""The checks of a version's members, before the readiness tests and again before their frames are written.

What the catalog remembers of a rollout is compared with its arrays' bytes, its gate profile and this machine's feature code, so
that a rotten disk or a hand-edited row cannot get into a version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from amp_core.errors import AmprefError, Conflict, FeatureCodeMismatch, InputRefused, IntegrityError
from amp_core.features import feature_code_hash
from amp_core.robot import Robot
from amp_core.tiers import Classification, classify, gate_profile
from amp_core.version import GENERATOR_VERSION
from ampref_workers.protocol import Member, Progress, RobotReference
from ampref_workers.robots import load_robot

__all__ = ["CHECKS", "Check", "check_members", "classify_member", "load_and_check"]

_MOST_PROBLEMS = 5  # Quoted in an error.

Report = Callable[[float], None]
"""Called with the fraction of the members that was looked at."""


FindProblems = Callable[[Sequence[Member], Robot, Report], list[str]]


@dataclass(frozen=True)
class Check:
    """A check of all members.

    Args:
      name: the key in the manifest.
      find_problems: no problem is a pass.
      error, expected, remedy: of a failure.
    """

    name: str
    find_problems: FindProblems
    error: type[AmprefError]
    expected: str
    remedy: str


CHECKS: list[Check] = []
"""In the order in which they run."""


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


def check_members(members: Sequence[Member], robot: Robot, report: Report = lambda fraction: None) -> dict[str, Any]:
    """Run every check in `CHECKS` and return their outcomes, which the version keeps.

    Raises:
      AmprefError: of the first failed check, with the problems that any check found.
    """

    failed, problems = [], []
    for check in CHECKS:
        if texts := check.find_problems(members, robot, report):
            failed.append(check)
            problems += texts
    if failed:
        more = f"; and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise failed[0].error(
            f"the gate before the lock found {count}: {'; '.join(problems[:_MOST_PROBLEMS])}{more}",
            key=failed[0].name,
            expected=failed[0].expected,
            remedy=failed[0].remedy,
        )
    return {"checks": [{"name": check.name, "passed": True, "members": len(members)} for check in CHECKS]}


def classify_member(member: Member, robot: Robot) -> Classification:
    """The tier and gates that a member's stored metrics give under its gate profile."""
    return classify(member.metrics, gate_profile(member.gate_profile), member.mode, height_range=robot.height_range)


def _register(name: str, error: type[AmprefError], expected: str, remedy: str) -> Callable[[FindProblems], FindProblems]:
    """Add a function to `CHECKS`."""

    def register(find_problems: FindProblems) -> FindProblems:
        CHECKS.append(Check(name, find_problems, error, expected, remedy))
        return find_problems

    return register


@_register(
    "one_origin",
    Conflict,
    expected="one robot model, one MuJoCo version, one gate profile and this release's generator in a version",
    remedy="Score the odd ones again, or leave them out with select.clips.",
)
def _check_origin(members: Sequence[Member], robot: Robot, report: Report) -> list[str]:
    """One robot model, one MuJoCo, one gate profile and this generator: one line of the manifest speaks for all members."""
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


@_register(
    "feature_code_hash",
    FeatureCodeMismatch,
    expected=feature_code_hash(),
    remedy="Score these clips again with this version (POST /v1/clips/ID/rollouts), then lock.",
)
def _check_feature_code(members: Sequence[Member], robot: Robot, report: Report) -> list[str]:
    """The features were computed by the code that this machine has, which is what the version will promise."""
    return [
        f"clip {member.name!r} has features of other code ({member.feature_code_hash})"
        for member in members
        if member.feature_code_hash != feature_code_hash()
    ]


@_register(
    "tier",
    Conflict,
    expected="the tier that its metrics give",
    remedy="Score the clip again, or leave it out with select.clips.",
)
def _check_tiers(members: Sequence[Member], robot: Robot, report: Report) -> list[str]:
    """The stored metrics still give the stored tier under the stored gate profile."""
    tiers = [(member, classify_member(member, robot).tier) for member in members]
    return [
        f"clip {member.name!r} is stored as tier {member.tier}, but its metrics give {tier}"
        for member, tier in tiers
        if tier != member.tier
    ]


@_register(
    "arrays", IntegrityError, expected="the bytes that were scored", remedy="Score the clip again, or restore the blob store."
)
def _check_arrays(members: Sequence[Member], robot: Robot, report: Report) -> list[str]:
    """The arrays' bytes are the ones that were scored."""
    problems = []
    for number, member in enumerate(members):
        try:
            with open(member.path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            problems.append(f"the arrays of clip {member.name!r} cannot be read ({error.strerror})")
            continue
        if f"sha256:{digest}" != member.arrays_digest:
            problems.append(f"the arrays of clip {member.name!r} have another digest than when they were scored")
        report(number / len(members))
    return problems
