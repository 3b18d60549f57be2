"""The specification's training-readiness checklist, derived from the tests' outcomes.

    groups = checklist(verification, waivers=[{"test": "6", "reason": "…"}], locked={"manifest": …})
    is_ready(groups)

Each criterion rests on one test, on all of its rows or on those with certain names, and quotes the figure that decides it. A
criterion whose test was not run, or not on every clip, is open (`SKIP`); one whose test failed and was waived is `WAIVED`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amp_core.recipe import GATE_PROFILE
from amp_core.strict_json import finite_data
from amp_core.tiers import Op, Tier, gate_profile, holds
from amp_core.verify.report import FAIL, PASS, SKIP, WARN, Verification, worst

__all__ = [
    "WAIVED", "as_dict", "checklist", "decisive_row", "document", "format_number", "is_ready", "outcome", "quote_decisive_row",
    "row_text",
]  # fmt: skip

WAIVED = "WAIVED"

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Criterion:
    """One line of the checklist.

    Args:
      name: as the specification has it, where it has it.
      test: the id of the test that decides it.
      rows: prefixes of the names of the test's rows that decide it; empty for all rows.
      limit: its own `(op, threshold)`, where its name promises one: the test applies Tier 1's gates to Tier 1 clips.
    """

    name: str
    test: str
    rows: tuple[str, ...] = ()
    limit: tuple[Op, float] | None = None

    @classmethod
    def of_gate(cls, name: str, gate: str) -> Criterion:
        """A Tier 0 load gate as a criterion; `name` is a template for its threshold in percent."""
        spec = gate_profile(GATE_PROFILE).for_tier(Tier.TIER_0)[gate]
        assert isinstance(spec.threshold, float)
        return cls(name.format(100 * spec.threshold), "7", (gate,), (spec.op, spec.threshold))

    def decide(self, report: Json, waivers: Mapping[str, str]) -> dict[str, Any]:
        """The criterion's line for a verification; `waivers` are reasons by test."""
        test = next((test for test in report["tests"] if test["id"] == self.test), None)
        if test is None or test["status"] == SKIP:
            if test is None:
                problem = "is not in the report"
            else:
                # A test with figures could run on some clips.
                problem = f"{'is open' if test['rows'] else 'was not run'}: {test['reason']}"
            return _line(self.name, SKIP, f"test {self.test} {problem}", self.test)
        status, evidence = self._judge_tiers(report, test) if self.name == _TIER_0 else self._judge_rows(test)
        waiver = waivers.get(self.test) if status == FAIL else None
        return _line(self.name, status if waiver is None else WAIVED, evidence, self.test, waiver)

    def _judge_rows(self, test: Json) -> tuple[str, str]:
        """Status and evidence from the test's rows."""
        rows = [row for row in test["rows"] if not self.rows or row["name"].startswith(self.rows)]
        if self.limit is not None:
            op, threshold = self.limit
            # Every row under the criterion's own threshold; a value that is not a finite number fails.
            values = [row["value"] if isinstance(row["value"], int | float) else math.nan for row in rows]
            rows = [
                row
                | {
                    "op": op,
                    "threshold": threshold,
                    "status": PASS if math.isfinite(value) and holds(value, op, threshold) else FAIL,
                }
                for row, value in zip(rows, values, strict=True)
            ]
        statuses = [row["status"] for row in rows if row["status"] != SKIP]
        # A test that broke has no such rows; its own status decides then, and its reason is the evidence.
        status = worst(statuses) if statuses and self.rows else test["status"]
        evidence = quote_decisive_row(rows) or test["measured"]
        if status in (FAIL, WARN) and not self.rows:
            evidence = test["reason"] or evidence
        elif not statuses:
            evidence = test["reason"] or test["measured"]
        return status, evidence

    def _judge_tiers(self, report: Json, test: Json) -> tuple[str, str]:
        """Whether all clips of the version are Tier 0, and none of their frames lies on the ground."""
        clips = report["subject"].get("clips") or ()
        if not isinstance(clips, Sequence) or isinstance(clips, str):
            return test["status"], test["measured"]
        lower = [clip for clip in clips if not (isinstance(clip, Mapping) and clip.get("tier") == Tier.TIER_0)]
        evidence = f"{len(clips) - len(lower)} of {len(clips)} clips are Tier 0"
        if lower:
            names = [f"{clip['name']} ({Tier(clip['tier']).label})" for clip in lower if isinstance(clip, Mapping)]
            evidence += f"; not {', '.join(names[:_MAX_NAMES])}" + (
                f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
            )
        failures = [row for row in test["rows"] if row["status"] == FAIL and row["name"].startswith("max_tilt_deg")]
        if failures:
            evidence += "; " + quote_decisive_row(failures)
        return FAIL if lower or failures or not clips else PASS, evidence


_TIER_0 = "Tier 0 clips identified"
_MAX_NAMES = 5
_GROUPS: Mapping[str, tuple[Criterion, ...]] = {
    "Feature parity": (
        Criterion("All components MAE < 0.0001", "1A", ("mae.",)),
        Criterion("Velocity correlation > 0.99", "1A", ("corr.",)),
        Criterion("True velocities in every channel", "1B"),
        Criterion("Yaw invariance verified", "2"),
        Criterion("Quaternion robustness verified", "3"),
        Criterion("Batch coverage", "4"),
        Criterion("Contact consistency verified", "5"),
    ),
    "Reference quality gates": (
        Criterion(_TIER_0, "7"),
        Criterion.of_gate("Harness contribution <= {:g} % at p90", "p90_stab_force_over_mg"),
        Criterion.of_gate("Load support >= {:g} % mean", "mean_sum_fn_over_mg"),
        Criterion.of_gate("Unloaded frames <= {:g} %", "unloaded_frame_rate"),
        Criterion("Contact sanity verified", "6", ("contact_rate.", "contact_sanity.")),
        Criterion("Clips are what their profile asks for", "7", ("gates.",)),
    ),
    "Determinism & sanity": (
        Criterion("Generator determinism", "1C"),
        Criterion("Distribution sanity", "6"),
        Criterion("Micro-train smoke test", "smoke"),
    ),
}
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
      verification: the outcome, or its `to_dict()`.
      waivers: `{test, reason}` of accepted failures.
      locked: a file's name or a digest for each of `normalization_stats`, `manifest` and `feature_code_hash` that is locked;
        None for a subject that is not locked.
    """
    report = as_dict(verification)
    reasons = {waiver["test"]: str(waiver["reason"]) for waiver in waivers}
    groups = {name: [criterion.decide(report, reasons) for criterion in criteria] for name, criteria in _GROUPS.items()}
    artifacts = [(name, (locked or {}).get(key)) for name, key in _ARTIFACTS]
    groups[LOCKED_GROUP] = [
        _line(name, SKIP, "nothing is locked yet", None) if file is None else _line(name, PASS, file, None)
        for name, file in artifacts
    ]
    # An open criterion weighs more than a passed one, because it keeps a version from being ready.
    order = (FAIL, SKIP, WAIVED, WARN, PASS)
    return [
        {"name": name, "status": min((c["status"] for c in criteria), key=order.index), "criteria": criteria}
        for name, criteria in groups.items()
    ]


def is_ready(groups: Iterable[Json]) -> bool:
    """Whether a checklist permits training: no criterion failed without a waiver, and none is open."""
    return all(criterion["status"] not in (FAIL, SKIP) for group in groups for criterion in group["criteria"])


def outcome(verification: Verification | Json) -> list[dict[str, str]]:
    """`{id, name, status, reason}` of each test, without its figures."""
    return [{key: test[key] for key in ("id", "name", "status", "reason")} for test in as_dict(verification)["tests"]]


def document(
    verification: Verification | Json, waivers: Iterable[Json] = (), locked: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The whole report as strict JSON has it: the tests' outcomes, and beside them `ready`, `groups` and `waivers`."""
    waivers = [dict(waiver) for waiver in waivers]
    report: dict[str, Any] = finite_data(dict(as_dict(verification)))
    groups = checklist(report, waivers, locked)
    return report | {"ready": is_ready(groups), "groups": groups, "waivers": waivers}


def as_dict(verification: Verification | Json) -> Json:
    """A verification as JSON has it."""
    return verification.to_dict() if isinstance(verification, Verification) else verification


def decisive_row(rows: Sequence[Json]) -> Json | None:
    """The row that says most about a test: among those of the worst status the one furthest towards its threshold.

    Rows without a threshold count only where no other row has that status.
    """
    status = worst([row["status"] for row in rows])

    def threshold_share(row: Json) -> float:
        """1 at the threshold, more beyond it; infinite for a value that is not a number, -1 without a threshold."""
        value, threshold = row["value"], row["threshold"]
        if threshold is None:
            return -1.0
        if isinstance(value, str) or value is None:
            return math.inf
        if row["op"] == "==":
            return 0.0 if float(value) == float(threshold) else math.inf
        sign = -1.0 if row["op"] in (">=", ">") else 1.0
        # There is no share of a threshold of 0; the distance beyond it serves as well.
        return 1.0 + sign * (float(value) - float(threshold)) / (abs(float(threshold)) or 1.0)

    return max((row for row in rows if row["status"] == status), key=threshold_share, default=rows[0] if rows else None)


def quote_decisive_row(rows: Sequence[Json]) -> str:
    """The decisive row in words, and the number of figures that it is the worst of; empty without rows."""
    row = decisive_row(rows)
    if row is None:
        return ""
    count = sum(row["threshold"] is not None for row in rows)
    return row_text(row) + (f"; the worst of {count} figures" if count > 1 and row["threshold"] is not None else "")


def row_text(row: Json) -> str:
    """A row as `name 0.12 mg (<= 0.15 mg), walk`."""
    unit = f" {row['unit']}" if row.get("unit") else ""
    text = f"{row['name']} {format_number(row['value'])}{unit}"
    if row["threshold"] is not None:
        text += f" ({row['op']} {format_number(row['threshold'])}{unit})"
    return ", ".join(part for part in (text, row.get("where"), row.get("note")) if part)


def format_number(value: Any) -> str:
    """A figure for people: whole numbers as they are, others with four digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(name: str, status: str, evidence: str, test: str | None, waiver: str | None = None) -> dict[str, Any]:
    return {"name": name, "status": status, "evidence": evidence, "test": test, "waiver": waiver}
