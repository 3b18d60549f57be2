"""Whether a locked version passed the checklist that permits training, and what it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amp_core.errors import NotReady

__all__ = ["Readiness"]

_OPEN = ("FAIL", "SKIP")  # The states of a criterion that keep a version from being ready.
_MAX_REASONS = 20


@dataclass(frozen=True)
class Readiness:
    """The outcome of a version's training-readiness checklist, as of its lock.

    Args:
      ready: whether it permits training; None for a version that was locked without a checklist.
      reasons: what it lacks, one criterion each: failed, or open because its test was not run on every clip.
      waivers: accepted failures, as `test: reason`.
    """

    ready: bool | None = None
    reasons: tuple[str, ...] = ()
    waivers: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, facts: Any) -> Readiness:
        """The readiness in a service's answer, or in what `to_dict` wrote; nothing is known where it cannot be read."""
        if not isinstance(facts, Mapping) or not isinstance(facts.get("ready"), bool):
            return cls()
        reasons = [text for text in _mappings_or_texts(facts.get("reasons")) if isinstance(text, str)]
        for group in _mappings_or_texts(facts.get("groups")):
            if isinstance(group, Mapping):
                reasons += _describe_criteria(group)
        waivers = [
            item if isinstance(item, str) else f"{item.get('test')}: {item.get('reason')}"
            for item in _mappings_or_texts(facts.get("waivers"))
        ]
        return cls(facts["ready"], () if facts["ready"] else tuple(reasons[:_MAX_REASONS]), tuple(waivers[:_MAX_REASONS]))

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Readiness:
        """What the manifest alone tells, where no service was asked: tests that are open or failed, and frames below Tier 0."""
        verification = manifest.get("verification")
        tests = _mappings_or_texts(verification.get("tests")) if isinstance(verification, Mapping) else []
        states = [test for test in tests if isinstance(test, Mapping)]
        if not states:
            return cls()
        waivers = {str(waiver.get("test")): str(waiver.get("reason")) for waiver in manifest.get("waivers") or ()}
        reasons = [
            f"{test.get('name')}: {'was not run, or not on every clip' if test.get('status') == 'SKIP' else 'failed'}"
            for test in states
            if test.get("status") == "SKIP" or (test.get("status") == "FAIL" and str(test.get("id")) not in waivers)
        ]
        lower = [str(clip["name"]) for clip in manifest["clips"] if any(segment["tier"] != 0 for segment in clip["segments"])]
        if lower and "7" not in waivers:
            reasons.append(f"Tier 0 clips identified: not Tier 0 are {', '.join(lower[:5])}{' and more' * (len(lower) > 5)}")
        return cls(not reasons, tuple(reasons[:_MAX_REASONS]), tuple(f"{test}: {reason}" for test, reason in waivers.items()))

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-ready data."""
        return {"ready": self.ready, "reasons": list(self.reasons), "waivers": list(self.waivers)}

    def describe(self, label: str) -> str:
        """Why the version of this label is not ready, in one sentence without a full stop."""
        reasons = "; ".join(self.reasons)
        return f"{label} is not ready for training{f': {reasons}' if reasons else ''}"

    def check(self, name: str, version: str) -> None:
        """Raise `NotReady` with the reasons for a version that is not ready; one without a checklist passes."""
        if self.ready is False:
            raise NotReady(
                self.describe(f"{name}=={version}"),
                expected="a version whose checklist permits training",
                remedy=f"'ampref dataset show {name} {version}' prints the checklist. "
                "To load it all the same, pass allow_not_ready=True.",
            )


def _describe_criteria(group: Mapping[str, Any]) -> list[str]:
    """The criteria of one group of the checklist that failed or are open, with their evidence."""
    return [
        f"{criterion.get('name')}: {'open' if criterion['status'] == 'SKIP' else 'failed'}, {criterion.get('evidence')}"
        for criterion in _mappings_or_texts(group.get("criteria"))
        if isinstance(criterion, Mapping) and criterion.get("status") in _OPEN
    ]


def _mappings_or_texts(value: Any) -> list[Any]:
    """The items of a JSON list that are objects or strings."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return [item for item in value if isinstance(item, Mapping | str)] if is_list else []
