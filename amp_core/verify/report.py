"""What a verification found: plain data, JSON-ready."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PASS, WARN, FAIL, SKIP = "PASS", "WARN", "FAIL", "SKIP"
STATUSES = (PASS, WARN, FAIL, SKIP)
_WORST_FIRST = (FAIL, WARN, PASS)


@dataclass(frozen=True)
class Row:
    """One figure of a test beside its threshold.

    Args:
      name: what was measured, for example `mae.root_ang_vel`; a clip's name goes into `where`.
      value: the figure; None where there is none.
      op, threshold: `<=`, `<`, `>=`, `>` or `==`; both None where the figure is only told.
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
        """JSON-ready; what is not finite becomes a text."""
        return {
            "name": self.name,
            "value": _finite(self.value),
            "op": self.op,
            "threshold": self.threshold,
            "unit": self.unit,
            "status": self.status,
            "where": self.where,
            "note": self.note,
        }


@dataclass(frozen=True)
class TestReport:
    """One test's outcome.

    Args:
      id: the seed's: `1A`, `1B`, `1C`, `2` … `7`, `smoke`.
      title: in words; `name` is both.
      status: the worst of its rows, unless it was skipped.
      reason: what a person should know: of a FAIL the fault, where it is and what to do; of a SKIP what is missing.
      measured: in a sentence, what was compared with what.
      rows: the figures beside their thresholds.
      figures: further evidence, JSON-ready: arrays a frame, histograms, loss curves.
      wall_sec: s.
    """

    __test__ = False  # not a test of pytest's

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
      subject: what was tested, JSON-ready: robot, clips, frames, seconds, versions of the code.
      tests: in the seed's order.
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
        """What the manifest keeps: each test's name and status. No measured figure, as those may differ in the last bit between
        two processors, and the same inputs are to give the same manifest."""
        return {"tests": [{"id": test.id, "name": test.name, "status": test.status} for test in self.tests]}


def worst(statuses: Sequence[str]) -> str:
    """FAIL before WARN before PASS; SKIP when there is nothing else."""
    return next((status for status in _WORST_FIRST if status in statuses), SKIP)


def check(name: str, value: float, op: str, threshold: float, *, warn: bool = False, **more: Any) -> Row:
    """A row that passes when `value op threshold`; a miss is a FAIL, or a WARN with `warn`. NaN never passes."""
    met = {
        "<=": value <= threshold,
        "<": value < threshold,
        ">=": value >= threshold,
        ">": value > threshold,
        "==": value == threshold,
    }[op]
    return Row(name, value, PASS if met else WARN if warn else FAIL, op, threshold, **more)


def _finite(value: float | int | bool | None) -> float | int | bool | str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
