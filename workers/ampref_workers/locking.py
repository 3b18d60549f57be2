"""A lock job's two halves: what is asked of the child, and what the child does.

`request` runs in the worker, `handle` in the child. Every member is checked again before its frames go in (`CHECKS`): what the
catalog remembers of a rollout is compared with its arrays' bytes, its gate profile and this machine's feature code, so that a
rotten disk or a hand-edited row cannot get into a version. The frames are read where they lie, through a memory map, one
member at a time. What the readiness tests found (`verifying`) is kept with the version: all of it in a report of its own,
 the statuses in the manifest, the checklist in the catalog.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amp_core.errors import AmprefError, Conflict, FeatureCodeMismatch, InputRefused, IntegrityError, PhysicsFailed

if TYPE_CHECKING:
    from amp_core.robot import Robot
    from amp_core.tiers import Classification
    from ampref_service.catalog.records import SelectedRollout
    from ampref_service.settings import Settings
    from ampref_workers.child import Report

__all__ = ["CHECKS", "OUT", "Check", "Checked", "check_members", "checked", "handle", "request"]

OUT = "version"
"""The folder of the three finished files, in the job folder."""

_CHUNK = 1 << 20


def request(
    members: Sequence[SelectedRollout],
    arrays: Mapping[str, Path],
    *,
    name: str,
    version: str,
    select: Mapping[str, Any],
    robot: str,
    settings: Settings,
    verification: Path | None = None,
    waivers: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """What the child needs to know of a lock job.

    Args:
      arrays: the exports' files, by digest.
      verification: what the readiness tests found; None where the operator turned all of them off.
      waivers: `{test, reason}` of the failures that are borne.
    """
    return {
        "kind": "lock",
        "name": name,
        "version": version,
        "select": dict(select),
        "robot": robot,
        "robots": [str(path) for path in settings.robots],
        "verification": None if verification is None else str(verification),
        "waivers": [dict(waiver) for waiver in waivers],
        "members": [asdict(member) | {"path": str(arrays[member.arrays_digest])} for member in members],
    }


def handle(job_dir: Path, request: dict[str, Any], report: Report) -> dict[str, Any]:
    """In the child: check the members, write the version's files into `version/`, return what they are."""
    from amp_core.dataset.lock import lock_bundle
    from amp_core.dataset.members import Member
    from amp_core.npz import mmap_member
    from amp_core.verify.checklist import document, outcome

    members = request["members"]
    robot, checks = checked(request, lambda share, text: report(0.5 * share, text))
    found = _found(request)
    out = job_dir / OUT
    out.mkdir()
    try:
        bundle = lock_bundle(
            (
                Member(
                    name=member["name"],
                    digest=member["source_digest"],
                    tier=member["tier"],
                    mode=member["mode"],
                    recipe_digest=member["recipe_digest"],
                    ranges=[(start, end) for start, end, _ in member["ranges"]],
                    range_tiers=[tier for _, _, tier in member["ranges"]],
                    range_metrics=member["range_metrics"],
                    quality_metrics=member["metrics"],
                    load=partial(mmap_member, member["path"], "features"),
                    gates=[gate.to_dict() for gate in _classify(member, robot).gates],
                    parent=member["parent_digest"],
                    lineage=member["ancestor_digest"] or "",
                    augmentation=member["augmentation"],
                    physics=member.get("physics"),
                )
                for member in members
            ),
            out,
            name=request["name"],
            version=request["version"],
            robot=robot,
            mujoco_version=members[0]["mujoco_version"],
            gate_profile=members[0]["gate_profile"],
            select=request["select"],
            waivers=request["waivers"],
            verification=checks | _statuses(found),
            progress=lambda done, total: report(0.5 + 0.5 * done / max(total, 1), "writing the frames"),
        )
    except PhysicsFailed as error:
        # The bytes are what they are: trying again would find the same.
        raise IntegrityError(
            error.what, file=error.file, key=error.key, frame=error.frame, expected=error.expected, remedy=error.remedy
        ) from error
    locked = {
        "normalization_stats": f"{bundle.normalization_stats.name} {bundle.normalization_stats.sha256}",
        "manifest": f"{bundle.manifest.name} {bundle.manifest.sha256}",
        "feature_code_hash": bundle.feature_code_hash,
    }
    report_of = document(found, request["waivers"], locked)
    return {
        "verification": _keep(out, request["version"], report_of),
        "files": [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in bundle.files],
        "manifest": bundle.manifest.name,
        "dataset_hash": bundle.dataset_hash,
        "feature_code_hash": bundle.feature_code_hash,
        "num_clips": bundle.num_clips,
        "num_frames": bundle.num_frames,
        "num_segments": bundle.num_segments,
        # Without the figures, which fill megabytes.
        "readiness": checks | {key: report_of[key] for key in _CHECKLIST} | {"tests": outcome(found)},
        "coverage": bundle.coverage,
    }


_CHECKLIST = ("ready", "groups", "waivers")


def checked(request: Mapping[str, Any], report: Report) -> tuple[Robot, dict[str, Any]]:
    """The robot of a request's members, and the outcome of checking them; raises what stands against a lock."""
    from ampref_workers.scoring import find_robot

    members = request["members"]
    if not members:
        raise InputRefused(
            "the selection holds no clip",
            key="select",
            expected="at least one rollout of the tiers asked for",
            remedy="Widen the selection, or score more clips: ampref clips lists what there is.",
        )
    report(0.0, "loading the robot")
    robot = find_robot(request["robot"], request["robots"], members[0]["robot_digest"])
    return robot, check_members(members, robot, lambda part: report(part, "checking the members"))


def _found(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the tests found; where none was to run, that they were not."""
    if request["verification"] is not None:
        report: dict[str, Any] = json.loads(Path(request["verification"]).read_bytes())
        return report
    from amp_core.readiness import TEST_IDS, skipped
    from ampref_workers.verifying import TURNED_OFF

    subject = {"robot": request["robot"], "dataset": request["name"], "version": request["version"]}
    return {"status": "SKIP", "subject": subject, "tests": [skipped(test, TURNED_OFF) for test in TEST_IDS]}


def _statuses(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest keeps, as `Verification.summary()`: no figure that was measured, as the last bit of one may differ
    between two machines, and the manifest's bytes may not."""
    return {"tests": [{key: test[key] for key in ("id", "name", "status")} for test in found["tests"]]}


def _keep(folder: Path, version: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """Write the whole report beside the version's files."""
    from ampref_service.catalog.sources import verification_name

    path = folder / verification_name(version)
    path.write_text(json.dumps(report, allow_nan=False, ensure_ascii=False), encoding="utf-8")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "size": path.stat().st_size, "sha256": f"sha256:{digest}"}


def _share(report: Callable[[float], None], before: int, of: int, part: float) -> None:
    report((before + part) / of)


Members = Sequence[Mapping[str, Any]]
Check = Callable[[Members, "Robot", Callable[[float], None]], "Checked"]
"""Looks at all members, may tell which part of them it has seen, and says what it found."""


@dataclass
class Checked:
    """What a check found: nothing in `problems` is a pass. `error` is what a failure is raised as."""

    name: str
    problems: list[str] = field(default_factory=list)
    error: type[AmprefError] = Conflict
    expected: str | None = None
    remedy: str | None = None


def check_members(members: Members, robot: Robot, report: Callable[[float], None] = lambda part: None) -> dict[str, Any]:
    """Run every check in `CHECKS` and return their outcomes, which the version keeps.

    Raises the first failed check's error, with every problem that any check found.
    """
    outcomes = []
    for number, check in enumerate(CHECKS):
        outcomes.append(check(members, robot, partial(_share, report, number, len(CHECKS))))
    failed = [outcome for outcome in outcomes if outcome.problems]
    if failed:
        problems = [problem for outcome in failed for problem in outcome.problems]
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise failed[0].error(
            f"the gate before the lock found {count}: {'; '.join(problems[:5])}{more}",
            key=failed[0].name,
            expected=failed[0].expected,
            remedy=failed[0].remedy,
        )
    return {"checks": [{"name": outcome.name, "passed": True, "members": len(members)} for outcome in outcomes]}


def _one_origin(members: Members, robot: Robot, report: Callable[[float], None]) -> Checked:
    """All members come from one robot model, one MuJoCo, one gate profile and this generator: one line of the manifest speaks
    for all."""
    from amp_core.version import GENERATOR_VERSION

    found = Checked(
        "one_origin",
        expected="one robot model, one MuJoCo version, one gate profile and this release's generator in a version",
        remedy="Score the odd ones again, or leave them out with select.clips.",
    )
    for key in ("robot_digest", "mujoco_version", "gate_profile"):
        values = sorted({str(member[key]) for member in members})
        if len(values) > 1:
            odd = next(member["name"] for member in members if str(member[key]) != values[0])
            found.problems.append(f"{key} is not the same for all ({', '.join(values)}; the second with clip {odd!r})")
    for member in members:
        if (made_by := member["generator_version"]) != GENERATOR_VERSION:
            found.problems.append(f"clip {member['name']!r} was made by generator {made_by}; this one is {GENERATOR_VERSION}")
    return found


def _feature_code(members: Members, robot: Robot, report: Callable[[float], None]) -> Checked:
    """The features were computed by the code that this machine has, which is what the version will promise."""
    from amp_core.features import feature_code_hash

    current = feature_code_hash()
    return Checked(
        "feature_code_hash",
        [
            f"clip {member['name']!r} has features of other code ({member['feature_code_hash']})"
            for member in members
            if member["feature_code_hash"] != current
        ],
        FeatureCodeMismatch,
        current,
        "Score these clips again with this version (POST /v1/clips/ID/rollouts), then lock.",
    )


def _tiers(members: Members, robot: Robot, report: Callable[[float], None]) -> Checked:
    """The stored metrics still give the stored tier under the stored gate profile."""
    found = Checked(
        "tier", expected="the tier that its metrics give", remedy="Score the clip again, or leave it out with select.clips."
    )
    for member in members:
        tier = _classify(member, robot).tier
        if tier != member["tier"]:
            found.problems.append(f"clip {member['name']!r} is stored as tier {member['tier']}, but its metrics give {tier}")
    return found


def _arrays(members: Members, robot: Robot, report: Callable[[float], None]) -> Checked:
    """The arrays' bytes are the ones that were scored."""
    found = Checked(
        "arrays",
        error=IntegrityError,
        expected="the bytes that were scored",
        remedy="Score the clip again, or restore the blob store.",
    )
    for number, member in enumerate(members):
        hasher = hashlib.sha256()
        try:
            with open(member["path"], "rb") as file:
                while chunk := file.read(_CHUNK):
                    hasher.update(chunk)
        except OSError as error:
            found.problems.append(f"the arrays of clip {member['name']!r} cannot be read ({error.strerror})")
            continue
        if f"sha256:{hasher.hexdigest()}" != member["arrays_digest"]:
            found.problems.append(f"the arrays of clip {member['name']!r} have another digest than when they were scored")
        report(number / len(members))
    return found


CHECKS: tuple[Check, ...] = (_one_origin, _feature_code, _tiers, _arrays)
"""What every member is asked, in order, before the readiness tests and again before its frames go in."""


def _classify(member: Mapping[str, Any], robot: Robot) -> Classification:
    from amp_core.tiers import classify, gate_profile

    return classify(member["metrics"], gate_profile(member["gate_profile"]), member["mode"], height_range=robot.height_range)
