"""The outcome of a verification: plain data, JSON-ready."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amp_core.readiness import TEST_TITLES

PASS, WARN, FAIL, SKIP = "PASS", "WARN", "FAIL", "SKIP"


@dataclass(frozen=True)
class Row:
    """One figure of a test beside its threshold.

    Args:
      name: the measured quantity, for example `mae.root_ang_vel`; a clip's name goes into `where`.
      value: the figure; None where there is none.
      op, threshold: `<=`, `<`, `>=`, `>` or `==`; both None for a figure without a requirement.
      status: PASS, WARN, FAIL or SKIP.
      unit: of value and threshold.
      where: clip, frame, dimension, heading …: where the figure comes from.
      note: a few words.
    """

    name: str
    value: float | int | bool | None
    status: str
    op: str | None = None
    threshold: float | None = None
    unit: str = ""
    where: str = ""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a value that is not finite becomes a text."""
        finite = not isinstance(self.value, float) or math.isfinite(self.value)
        return vars(self) | {"value": self.value if finite else str(self.value)}

    def to_sentence(self) -> str:
        """The row in words, for the reason of a failure."""
        place = f" ({self.where})" if self.where else ""
        note = f": {self.note}" if self.note else ""
        if self.value is None:
            return f"{self.name}{place}{note or ' has no value'}"
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        requirement = "" if self.op is None else f", asked {self.op} {self.threshold:g}"
        return f"{self.name} is {value}{requirement}{place}{note}"


@dataclass(frozen=True)
class TestReport:
    """One test's outcome.

    Args:
      id: as in the specification: `1A`, `1B`, `1C`, `2` … `7`, `smoke`.
      title: in words; `name` is both.
      status: the worst of its rows, unless the test or a part of it was skipped.
      reason: of a FAIL the fault, where it is and what to do; of a SKIP what is missing.
      measured: in a sentence, what was compared with what.
      rows: the figures beside their thresholds.
      figures: further evidence, JSON-ready: arrays a frame, histograms, loss curves.
      wall_sec: s.
    """

    __test__ = False  # The name is not for pytest to collect.

    id: str
    title: str
    status: str
    reason: str = ""
    measured: str = ""
    rows: tuple[Row, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    wall_sec: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.id} {self.title}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "id": self.id,
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "measured": self.measured,
            "rows": [row.to_dict() for row in self.rows],
            "figures": dict(self.figures),
            "wall_sec": round(self.wall_sec, 3),
        }


@dataclass(frozen=True)
class Verification:
    """The outcome of all tests on one subject.

    Args:
      subject: the tested subject, JSON-ready: robot, clips, frames, seconds, versions of the code.
      tests: in the specification's order.
    """

    subject: Mapping[str, Any]
    tests: tuple[TestReport, ...]

    @property
    def failed(self) -> tuple[TestReport, ...]:
        return tuple(test for test in self.tests if test.status == FAIL)

    @property
    def status(self) -> str:
        """FAIL if any test failed, else WARN if any warned, else PASS; SKIP when none ran."""
        return worst([test.status for test in self.tests])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: everything."""
        return {"status": self.status, "subject": dict(self.subject), "tests": [test.to_dict() for test in self.tests]}

    def summary(self) -> dict[str, Any]:
        """Each test's id, name and status, for the manifest.

        It holds no measured figure: those may differ in the last bit between two processors, and equal inputs must give equal
        manifests.
        """
        return {"tests": [{"id": test.id, "name": test.name, "status": test.status} for test in self.tests]}


@dataclass
class Findings:
    """The rows, reasons and figures that one test collects for its report."""

    id: str
    title: str = ""
    rows: list[Row] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    start_time: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.title = self.title or TEST_TITLES[self.id]

    def add(self, *rows: Row) -> bool:
        """Add rows; returns whether none of them is a FAIL."""
        self.rows += rows
        return all(row.status != FAIL for row in rows)

    def check(self, name: str, value: float, op: str, threshold: float, *, reason: str = "", **more: Any) -> bool:
        """Add the row of `check`, and the reason if it is a FAIL; returns whether it is none."""
        is_pass = self.add(check(name, value, op, threshold, **more))
        if not is_pass:
            self.add_reason(reason)
        return is_pass

    def add_reason(self, reason: str) -> None:
        """Add a reason; an empty one, or one that is in the list, changes nothing."""
        if reason and reason not in self.reasons:
            self.reasons.append(reason)

    def report(self, measured: str, *, is_open: bool = False) -> TestReport:
        """The report. Without any reason, the first rows that failed or warned are named in its place.

        Args:
          is_open: a part of the test could not run, so that it is a SKIP unless it failed.
        """
        status = worst([row.status for row in self.rows])
        if is_open and status != FAIL:
            status = SKIP
        if not self.reasons and status in (FAIL, WARN):
            rows = [row for row in self.rows if row.status == status]
            self.reasons += [row.to_sentence() for row in rows[:3]]
            if len(rows) > 3:
                self.reasons.append(f"and {len(rows) - 3} more rows")
        return TestReport(
            id=self.id,
            title=self.title,
            status=status,
            reason="; ".join(self.reasons),
            measured=measured,
            rows=tuple(self.rows),
            figures=self.figures,
            wall_sec=time.perf_counter() - self.start_time,
        )

    def skip(self, reason: str) -> TestReport:
        """The report of a test that could not run."""
        return TestReport(self.id, self.title, SKIP, reason, wall_sec=time.perf_counter() - self.start_time)


@dataclass
class Peak:
    """The largest of some values that are at least 0, and its place.

    NaN, which passes no threshold, is larger than any number.
    """

    value: float = 0.0
    place: str = ""

    def record(self, value: float, place: str) -> None:
        if value > self.value or (math.isnan(value) and not math.isnan(self.value)):
            self.value, self.place = value, place


def worst(statuses: Sequence[str]) -> str:
    """FAIL before WARN before PASS; SKIP when there is nothing else."""
    return next((status for status in (FAIL, WARN, PASS) if status in statuses), SKIP)


def check(name: str, value: float, op: str, threshold: float, *, warn: bool = False, **more: Any) -> Row:
    """A row that passes when `value op threshold`; a miss is a FAIL, or a WARN with `warn`. NaN never passes."""
    is_pass = {
        "<=": value <= threshold,
        "<": value < threshold,
        ">=": value >= threshold,
        ">": value > threshold,
        "==": value == threshold,
    }[op]
    return Row(name, value, PASS if is_pass else WARN if warn else FAIL, op, threshold, **more)
