"""What the checks of a clip find, and how a finding becomes a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from amp_core.errors import AmprefError, MotionRefused

Severity = Literal["refuses", "excludes", "warns", "notes"]
SEVERITIES: tuple[Severity, ...] = ("refuses", "excludes", "warns", "notes")

_DIGITS = 4  # Significant ones: figures are for people, and the last bits of a sum are no fact about a clip.


def rounded(value: float) -> float:
    """A figure to four significant digits."""
    return float(f"{float(value):.{_DIGITS}g}")


@dataclass(frozen=True)
class Finding:
    """One fault or property of a clip.

    Args:
      code: the kind, a stable identifier.
      severity: `refuses` (the clip cannot be meant like this), `excludes` (the gate profile cannot make Tier 0 of it),
        `warns` (a person should look) or `notes` (measured and mended).
      message: what was found, as one sentence without a full stop.
      key: the array of the file that has it.
      joint: the joint that has it.
      frames: the first and the last frame that have it, 0-based in the file.
      value, limit, unit: what was measured, and what it is compared with.
      expected: what would have been right.
      remedy: what to do next.
    """

    code: str
    severity: Severity
    message: str
    key: str | None = None
    joint: str | None = None
    frames: tuple[int, int] | None = None
    value: float | None = None
    limit: float | None = None
    unit: str | None = None
    expected: str | None = None
    remedy: str | None = None

    @classmethod
    def of_error(cls, error: AmprefError, code: str) -> Finding:
        """The finding that says the same as a refusal."""
        frames = None if error.frame is None else (error.frame, error.frame)
        return cls(code, "refuses", error.what, key=error.key, frames=frames, expected=error.expected, remedy=error.remedy)

    def to_error(self, file: str) -> MotionRefused:
        """The refusal that says the same."""
        frame = None if self.frames is None else self.frames[0]
        return MotionRefused(self.message, file=file, key=self.key, frame=frame, expected=self.expected, remedy=self.remedy)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: `code`, `severity`, `message`, and the other fields that have a value."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["frames"] = None if self.frames is None else list(self.frames)
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class ClipCheck:
    """What was found in a clip without simulating it.

    Args:
      findings: those that refuse first, each severity in the order of the checks.
      figures: what was measured, by name; None where it could not be.
    """

    findings: tuple[Finding, ...]
    figures: Mapping[str, float | None]

    @property
    def refusal(self) -> Finding | None:
        """The first finding that refuses the clip; None for a clip that can be scored."""
        return next((finding for finding in self.findings if finding.severity == "refuses"), None)

    def to_dict(self) -> dict[str, Any]:
        """`findings` and `figures`, JSON-ready."""
        return {"findings": [finding.to_dict() for finding in self.findings], "figures": dict(self.figures)}
