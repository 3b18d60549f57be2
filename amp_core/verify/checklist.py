"""The seed's training-readiness checklist, made of what the tests found.

    groups = checklist(verification, waivers=[{"test": "6", "reason": "…"}], locked={"manifest": …})
    ready(groups)

Each criterion rests on one test, on all of its rows or on those whose names begin in a certain way, and quotes the figure that
decides it. A criterion whose test was not run is open (`SKIP`); one whose test failed and was waived says `WAIVED`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amp_core.recipe import GATE_PROFILE
from amp_core.tiers import Op, Tier, gate_profile, holds
from amp_core.verify.report import FAIL, PASS, SKIP, WARN, Verification, worst

__all__ = [
    "WAIVED", "as_dict", "checklist", "decisive", "document", "number", "outcome", "plain", "quoted", "ready", "row_text"
]  # fmt: skip

WAIVED = "WAIVED"

Json = Mapping[str, Any]


@dataclass(frozen=True)
class _Criterion:
    """One line of the checklist.

    Args:
      name: as the seed has it, where it has it.
      test: the id of the test that decides it.
      rows: beginnings of the names of the rows that it looks at; all rows where none are given.
      limit: of its own, as `(op, threshold)`, where its name promises one: the test judges Tier 1 clips by Tier 1's.
    """

    name: str
    test: str
    rows: tuple[str, ...] = ()
    limit: tuple[Op, float] | None = None


_LOAD = gate_profile(GATE_PROFILE).for_tier(Tier.TIER_0)


def _load_criterion(label: str, gate: str) -> _Criterion:
    """A Tier 0 load gate as a criterion; `label` is a template for its threshold."""
    threshold = _LOAD[gate].threshold
    assert isinstance(threshold, float)
    return _Criterion(label.format(100 * threshold), "7", (gate,), (_LOAD[gate].op, threshold))


_GROUPS: Mapping[str, tuple[_Criterion, ...]] = {
    "Feature parity": (
        _Criterion("All components MAE < 0.0001", "1A", ("mae.",)),
        _Criterion("Velocity correlation > 0.99", "1A", ("corr.",)),
        _Criterion("True velocities in every channel", "1B"),
        _Criterion("Yaw invariance verified", "2"),
        _Criterion("Quaternion robustness verified", "3"),
        _Criterion("Batch coverage", "4"),
        _Criterion("Contact consistency verified", "5"),
    ),
    "Reference quality gates": (
        _Criterion("Tier 0 clips identified", "7", ("tier", "max_tilt_deg")),
        _load_criterion("Harness contribution <= {:g} % at p90", "p90_stab_force_over_mg"),
        _load_criterion("Load support >= {:g} % mean", "mean_sum_fn_over_mg"),
        _load_criterion("Unloaded frames <= {:g} %", "unloaded_frame_rate"),
        _Criterion("Contact sanity verified", "6", ("contact_rate.",)),
    ),
    "Determinism & sanity": (
        _Criterion("Generator determinism", "1C"),
        _Criterion("Distribution sanity", "6"),
        _Criterion("Micro-train smoke test", "smoke"),
    ),
}
_TIER_0 = "Tier 0 clips identified"
_NAMED = 5
LOCKED_GROUP = "Artifacts locked"
_ARTIFACTS = (
    ("Normalization stats artifact", "normalization_stats"),
    ("Dataset version manifest", "manifest"),
    ("Feature code hash locked", "feature_code_hash"),
)


def checklist(
    verification: Verification | Json, waivers: Iterable[Json] = (), locked: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The groups of the checklist, JSON-ready: `[{name, status, criteria: [{name, status, evidence, test, waiver}]}]`.

    Args:
      verification: what the tests found, or its `to_dict()`.
      waivers: `{test, reason}` of failures that are borne.
      locked: what was locked, by `normalization_stats`, `manifest` and `feature_code_hash`: a file's name or a digest. None
        while nothing is.
    """
    report = as_dict(verification)
    tests = {test["id"]: test for test in report["tests"]}
    borne = {waiver["test"]: str(waiver["reason"]) for waiver in waivers}
    groups = []
    for name, criteria in _GROUPS.items():
        groups.append(_group(name, [_decided(criterion, tests, report, borne) for criterion in criteria]))
    groups.append(_group(LOCKED_GROUP, [_artifact(name, key, locked) for name, key in _ARTIFACTS]))
    return groups


def ready(groups: Iterable[Json]) -> bool:
    """Whether nothing stands against training: no criterion failed, and none is open. What was waived is borne."""
    return all(criterion["status"] not in (FAIL, SKIP) for group in groups for criterion in group["criteria"])


def outcome(verification: Verification | Json) -> list[dict[str, str]]:
    """`{id, name, status, reason}` of each test, without its figures."""
    return [{key: test[key] for key in ("id", "name", "status", "reason")} for test in as_dict(verification)["tests"]]


def document(
    verification: Verification | Json, waivers: Iterable[Json] = (), locked: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The whole report as strict JSON has it: what the tests found, and beside it `ready`, `groups` and `waivers`."""
    borne = [dict(waiver) for waiver in waivers]
    found: dict[str, Any] = plain(dict(as_dict(verification)))
    groups = checklist(found, borne, locked)
    return found | {"ready": ready(groups), "groups": groups, "waivers": borne}


def plain(value: Any) -> Any:
    """A value as strict JSON has it: arrays as lists, a number that is none as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def as_dict(verification: Verification | Json) -> Json:
    """A verification as JSON has it."""
    return verification.to_dict() if isinstance(verification, Verification) else verification


def decisive(rows: Sequence[Json]) -> Json | None:
    """The row that says most about a test: one of the worst status, and of these the one furthest towards its threshold.

    A row without a threshold is told only where no other is.
    """
    if not rows:
        return None
    bad = worst([row["status"] for row in rows])
    rank: Callable[[Json], float] = lambda row: _share(row) if row["threshold"] is not None else -1.0  # noqa: E731
    return max((row for row in rows if row["status"] == bad), key=rank, default=rows[0])


def quoted(rows: Sequence[Json]) -> str:
    """The decisive row in words, and of how many it is."""
    row = decisive(rows)
    if row is None:
        return ""
    same = sum(1 for one in rows if one["threshold"] is not None)
    return row_text(row) + (f"; the worst of {same} figures" if same > 1 and row["threshold"] is not None else "")


def row_text(row: Json) -> str:
    """A row as `name 0.12 mg (<= 0.15 mg), walk`."""
    unit = f" {row['unit']}" if row.get("unit") else ""
    text = f"{row['name']} {number(row['value'])}{unit}"
    if row["threshold"] is not None:
        text += f" ({row['op']} {number(row['threshold'])}{unit})"
    return ", ".join(part for part in (text, row.get("where"), row.get("note")) if part)


def number(value: Any) -> str:
    """A figure for people: whole numbers as they are, others with four digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _share(row: Json) -> float:
    """How much of its threshold a row's value uses up: 1 is at the threshold, more is beyond it; what is no number is worst."""
    value, threshold = row["value"], row["threshold"]
    if isinstance(value, str) or value is None:
        return float("inf")
    value, threshold = float(value), float(threshold)
    if row["op"] == "==":
        return 0.0 if value == threshold else float("inf")
    if row["op"] in (">=", ">"):
        value, threshold = -value, -threshold
    # Around a threshold of 0 there are no shares; how far beyond it is says as much.
    scale = abs(threshold) or 1.0
    return 1.0 + (value - threshold) / scale


def _group(name: str, criteria: list[dict[str, Any]]) -> dict[str, Any]:
    statuses = [criterion["status"] for criterion in criteria]
    # Open weighs more than passed, as it keeps a version from being ready.
    status = next((one for one in (FAIL, SKIP, WAIVED, WARN, PASS) if one in statuses), SKIP)
    return {"name": name, "status": status, "criteria": criteria}


def _decided(criterion: _Criterion, tests: Mapping[str, Json], report: Json, borne: Mapping[str, str]) -> dict[str, Any]:
    test = tests.get(criterion.test)
    if test is None:
        return _line(criterion.name, SKIP, f"test {criterion.test} is not in the report", criterion.test)
    if test["status"] == SKIP:
        return _line(criterion.name, SKIP, f"test {criterion.test} was not run: {test['reason']}", criterion.test)
    rows = [row for row in test["rows"] if not criterion.rows or row["name"].startswith(criterion.rows)]
    waiver = borne.get(criterion.test)
    if criterion.name == _TIER_0:
        return _tier_0(report, test, rows, waiver)
    if criterion.limit is not None:
        rows = [_judged(row, *criterion.limit) for row in rows]
    judged = [row["status"] for row in rows if row["status"] != SKIP]
    # A test that broke has no such rows; then its own status speaks, and its reason is the evidence.
    status = worst(judged) if judged and criterion.rows else test["status"]
    evidence = quoted(rows) or test["measured"]
    if status in (FAIL, WARN) and not criterion.rows:
        evidence = test["reason"] or evidence
    elif not judged:
        evidence = test["reason"] or test["measured"]
    return _borne(criterion.name, status, evidence, criterion.test, waiver)


def _judged(row: Json, op: Op, threshold: float) -> Json:
    """The row under another threshold; a value that is no number fails."""
    value = row["value"]
    number_ = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    passed = number_ and holds(value, op, threshold)
    return {**row, "op": op, "threshold": threshold, "status": PASS if passed else FAIL}


def _borne(name: str, status: str, evidence: str, test: str, waiver: str | None) -> dict[str, Any]:
    if status == FAIL and waiver is not None:
        return _line(name, WAIVED, evidence, test, waiver)
    return _line(name, status, evidence, test)


def _tier_0(report: Json, test: Json, rows: Sequence[Json], waiver: str | None) -> dict[str, Any]:
    """Whether everything that is taken is Tier 0, and nothing of it lies on the ground: the rest is no training data."""
    clips = report["subject"].get("clips") or ()
    if not isinstance(clips, Sequence) or isinstance(clips, str):
        return _line(_TIER_0, test["status"], test["measured"], test["id"])
    others = [clip for clip in clips if not (isinstance(clip, Mapping) and clip.get("tier") == 0)]
    evidence = f"{len(clips) - len(others)} of {len(clips)} clips are Tier 0"
    if others:
        told = [f"{clip['name']} ({Tier(clip['tier']).label})" for clip in others if isinstance(clip, Mapping)]
        evidence += f"; not {', '.join(told[:_NAMED])}" + (f" and {len(told) - _NAMED} more" if len(told) > _NAMED else "")
    broken = [row for row in rows if row["status"] == FAIL and row["name"] != "tier"]
    if broken:
        evidence += "; " + quoted(broken)
    return _borne(_TIER_0, FAIL if others or broken or not clips else PASS, evidence, test["id"], waiver)


def _artifact(name: str, key: str, locked: Mapping[str, str] | None) -> dict[str, Any]:
    said = None if locked is None else locked.get(key)
    return _line(name, SKIP, "nothing is locked yet", None) if said is None else _line(name, PASS, said, None)


def _line(name: str, status: str, evidence: str, test: str | None, waiver: str | None = None) -> dict[str, Any]:
    return {"name": name, "status": status, "evidence": evidence, "test": test, "waiver": waiver}
