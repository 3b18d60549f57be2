"""The checks of a version's candidates, before the readiness tests and again before their frames are written.

What is remembered of a rollout is compared with its arrays, its gate profile and this machine's feature code, so that a rotten
disk or a hand-edited row cannot get into a version. Every metric that a version states is measured again from the arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from amp_core.dataset import Bundle, Member, lock_bundle
from amp_core.dataset.candidate import Candidate
from amp_core.dataset.weights import WEIGHT_METRICS
from amp_core.digests import digest_of_file
from amp_core.errors import AmprefError, Conflict, FeatureCodeMismatch, IntegrityError, PhysicsFailed
from amp_core.features import feature_code_hash
from amp_core.npz import mmap_member
from amp_core.quality import EXPORT_ARRAYS, FrameSeries, measure
from amp_core.recipe import PhysicsScale, Recipe
from amp_core.reference import read_members
from amp_core.robot import Robot
from amp_core.sequences import LazySequence
from amp_core.strict_json import format_json
from amp_core.tiers import Classification, Tier, classify, gate_profile
from amp_core.verify.checklist import document
from amp_core.version import GENERATOR_VERSION

__all__ = ["CHECKS", "admit", "assemble", "check_candidates", "classify_candidate"]

_MOST_PROBLEMS = 5  # Quoted in an error.
_ONE_ORIGIN = ("robot_digest", "mujoco_version", "gate_profile")


@dataclass(frozen=True)
class Check:
    """The error that members which do not pass a check raise."""

    error: type[AmprefError]
    expected: str


CHECKS: Mapping[str, Check] = {
    "one_origin": Check(
        Conflict,
        expected="one robot model, one MuJoCo version, one gate profile and this release's generator in a version",
    ),
    "feature_code_hash": Check(FeatureCodeMismatch, expected=feature_code_hash()),
    "tier": Check(Conflict, expected="the tier that its metrics give"),
    "arrays": Check(IntegrityError, expected="the bytes that were scored"),
    "metrics": Check(IntegrityError, expected="the metrics and tiers that the clip's arrays give"),
}
"""In the order in which a failure is reported; the names stand in the manifest."""


def check_candidates(
    members: Sequence[Candidate], robot: Robot, report: Callable[[float], None] = lambda fraction: None, *, remedy: str
) -> dict[str, Any]:
    """Make every check in `CHECKS` and return their outcomes, which the version keeps.

    Args:
      members: read once, and not held: each may be made on access.
      remedy: how the caller's user scores a clip again, or leaves it out.
      report: called with the fraction of the members that was looked at.

    Raises:
      AmprefError: of the first failed check, with the problems that any check found.
    """
    problems: dict[str, list[str]] = {name: [] for name in CHECKS}
    origins: dict[str, dict[str, str]] = {key: {} for key in _ONE_ORIGIN}
    generators = []
    for number, member in enumerate(members):
        report(number / len(members))
        for key, clips in origins.items():
            clips.setdefault(str(getattr(member, key)), member.name)
        if member.generator_version != GENERATOR_VERSION:
            generators.append(
                f"clip {member.name!r} was made by generator {member.generator_version}; this one is {GENERATOR_VERSION}"
            )
        if member.feature_code_hash != feature_code_hash():
            problem = f"clip {member.name!r} has features of other code ({member.feature_code_hash})"
            problems["feature_code_hash"].append(problem)
        if (tier := classify_candidate(member, robot).tier) != member.tier:
            problem = f"clip {member.name!r} is stored as tier {member.tier}, but its metrics give {tier}"
            problems["tier"].append(problem)
        if problem := _find_changed_arrays(member):
            problems["arrays"].append(problem)
        # Of arrays that are not the clip's, the figures say nothing.
        elif not problems["arrays"] and (problem := find_changed_metrics(member, robot)):
            problems["metrics"].append(problem)
    if problems["arrays"]:
        problems["metrics"] = []
    # The manifest has one line on the origin of all members.
    for key, clips in origins.items():
        if len(clips) > 1:
            odd = list(clips.values())[1]
            values = ", ".join(sorted(clips))
            problems["one_origin"].append(f"{key} is not the same for all ({values}; the second with clip {odd!r})")
    problems["one_origin"] += generators
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
            remedy=remedy,
        )
    return {"checks": [{"name": name, "passed": True, "members": len(members)} for name in CHECKS]}


def classify_candidate(member: Candidate, robot: Robot) -> Classification:
    """The tier and gates that a member's stored metrics give under its gate profile."""
    return classify(member.metrics, gate_profile(member.gate_profile), member.mode, height_range=robot.height_range)


def _find_changed_arrays(member: Candidate) -> str:
    """What is wrong with the bytes of a member's arrays; empty where they are the ones that were scored."""
    try:
        digest = digest_of_file(member.path)
    except OSError as error:
        return f"the arrays of clip {member.name!r} cannot be read ({error.strerror})"
    if digest != member.arrays_digest:
        return f"the arrays of clip {member.name!r} have another digest than when they were scored"
    return ""


def find_changed_metrics(member: Candidate, robot: Robot) -> str:
    """What of a member's stored metrics, or of the tiers of its windows, is not as its arrays give it; empty where all is."""
    recipe = Recipe.for_mode(member.mode, physics=PhysicsScale(**(member.physics or {})))
    try:
        series = FrameSeries.from_export(
            read_members(member.path, EXPORT_ARRAYS), replace(recipe, gate_profile=member.gate_profile), robot
        )
    except AmprefError as error:
        return f"the arrays of clip {member.name!r} cannot be measured ({error.what})"
    clip_metrics = measure(series)
    text = _compare_metrics(clip_metrics, member.metrics)
    for i, (start, end, tier) in enumerate(member.ranges):
        is_whole = (start, end) == (0, series.clip_frames)
        metrics = clip_metrics if is_whole else measure(series, start, min(end, len(series)))
        gates = classify(metrics, gate_profile(member.gate_profile), member.mode, height_range=robot.height_range)
        expected = member.tier if is_whole else gates.tier  # That of the whole clip is a check of its own.
        window = f"frames {start} to {end}"
        if end > len(series):
            text = text or f"{window} are taken of {len(series)}"
        elif expected != tier and Tier.worst((expected, tier)) != tier:
            text = text or f"{window} are stored as tier {tier} and give {expected}"
        elif i < len(member.range_metrics):
            weights = {name: metrics[name] for name in WEIGHT_METRICS if name in member.range_metrics[i]}
            change = _compare_metrics(weights, member.range_metrics[i])
            text = text or (f"{change} of {window}" if change else "")
    return f"clip {member.name!r} has other metrics than its arrays give ({text})" if text else ""


_ROUNDING = 1e-9
"""Relative: the most by which a metric may differ between two processors, which round sums in their own ways."""


def _compare_metrics(measured: Mapping[str, float | int | None], claims: Mapping[str, Any]) -> str:
    """The first stored metrics that are not the measured ones, in words; empty where all are."""
    texts = []
    for name, value in measured.items():
        claim = claims.get(name)
        is_same = value is claim or (
            None not in (value, claim) and math.isclose(float(value), float(claim), rel_tol=_ROUNDING, abs_tol=_ROUNDING)  # type: ignore[arg-type]
        )
        if not is_same:
            texts.append(f"{name} {claim} for {value}")
    return ", ".join(texts[:2]) + (f" and {len(texts) - 2} more" if len(texts) > 2 else "")


def admit(member: Candidate, robot: Robot) -> Member:
    """A candidate that passed the checks as a member of a version."""
    return Member(
        name=member.name,
        digest=member.source_digest,
        tier=member.tier,
        mode=member.mode,
        recipe_digest=member.recipe_digest,
        ranges=[(start, end) for start, end, _ in member.ranges],
        range_tiers=[tier for _, _, tier in member.ranges],
        range_metrics=member.range_metrics,
        quality_metrics=member.metrics,
        load=partial(mmap_member, member.path, "features"),
        gates=[{"name": gate.name, "passed": gate.passed} for gate in classify_candidate(member, robot).gates],
        parent=member.parent_digest,
        lineage=member.ancestor_digest or "",
        augmentation=member.augmentation,
        physics=member.physics,
    )


def assemble(
    members: Sequence[Candidate],
    folder: Path,
    *,
    name: str,
    version: str,
    robot: Robot,
    select: Mapping[str, Any],
    waivers: Sequence[Mapping[str, str]],
    checks: Mapping[str, Any],
    verification: Mapping[str, Any],
    report_name: str,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Bundle, dict[str, Any]]:
    """Write a version's three files and the report of its tests into `folder`; returns both, the report as a document.

    Args:
      select: what the members were selected by, for the manifest.
      checks: of `check_candidates`.
      verification: the tests' report, as `Verification.to_dict` gives it.
      report_name: the file for it, with its checklist.
      progress: called with frames done and frames in total.

    Raises:
      IntegrityError: a feature is not finite, or a member is not as it was scored.
    """
    # No figure that was measured: the last bit of one may differ between two machines, and the manifest's bytes may not.
    statuses = [{key: test[key] for key in ("id", "name", "status")} for test in verification["tests"]]
    try:
        bundle = lock_bundle(
            LazySequence(len(members), lambda number: admit(members[number], robot)),
            folder,
            name=name,
            version=version,
            robot=robot,
            mujoco_version=members[0].mujoco_version,
            gate_profile=members[0].gate_profile,
            select=select,
            waivers=waivers,
            verification={**checks, "tests": statuses},
            progress=progress,
        )
    except PhysicsFailed as error:
        # The bytes are what they are: another attempt would find the same.
        raise IntegrityError(**vars(error)) from error
    locked_values = {
        "normalization_stats": f"{bundle.normalization_stats.name} {bundle.normalization_stats.sha256}",
        "manifest": f"{bundle.manifest.name} {bundle.manifest.sha256}",
        "feature_code_hash": bundle.feature_code_hash,
    }
    report = document(verification, waivers, locked_values)
    (folder / report_name).write_bytes(format_json(report).encode())
    return bundle, report
