"""Rollouts for people: a row each, and why those that are not Tier 0 are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from amp_core.cli.output import Output
from amp_core.cli.text import number, tier_name
from amp_core.recipe import GATE_PROFILE

Rollout = Mapping[str, Any]
FINDINGS_SHOWN, SUGGESTIONS_SHOWN, SEGMENTS_SHOWN = 3, 2, 3


def _metric(name: str, scale: float = 1.0, digits: int = 2) -> Callable[[Rollout], str]:
    def show(rollout: Rollout) -> str:
        value = rollout["quality_metrics"].get(name)
        return number(value and scale * value, digits)

    return show


RESULT_COLUMNS: dict[str, Callable[[Rollout], Any]] = {
    "Tier": lambda rollout: tier_name(rollout["tier"]),
    ">s": lambda rollout: number(rollout.get("duration_sec")),
    # Mean load on the feet and the harness's 90th percentile, in units of the weight.
    ">load/mg": _metric("mean_sum_fn_over_mg"),
    ">harness/mg": _metric("p90_stab_force_over_mg"),
    ">unloaded %": _metric("unloaded_frame_rate", 100.0, 1),
    ">fell": lambda r: None if (fell := r["quality_metrics"].get("fell_at_frame")) is None else f"frame {int(fell)}",
}
"""What a listed rollout shows."""


def print_results(out: Output, rollouts: Sequence[Rollout]) -> None:
    """Print rollouts as a table; below it why those that are not Tier 0 are not, and what a person should look at."""
    rows = [
        {"mode": None, **rollout, "name": rollout.get("clip_name") or rollout.get("name"), "profile": _profile_of(rollout)}
        for rollout in rollouts
    ]
    lines = []
    for rollout in rows:
        name, auto = rollout["name"], rollout.get("auto") or {}
        if rollout["profile"] != auto.get("recipe", {}).get("gate_profile", rollout["profile"]):
            lines.append(f"{name}: judged by {rollout['profile']}: {auto['triage']['reason']}")
        if rollout["tier"] != 0:
            lines += [f"{name}: {rollout['tier_reason']}", *(f"  {line}" for line in diagnosis_lines(rollout))]
        if warnings := rollout.get("contact_warnings"):
            lines.append(f"{name}: suspicious contacts: {'; '.join(warning['message'] for warning in warnings)}")
        notes = (rollout.get("ingest") or {}).get("notes", ())
        # A note that is a reason of the verdict is in the line before.
        lines += [f"{name}: {note}" for note in notes if note.partition(": ")[2].rstrip(".") not in rollout["tier_reason"]]
    n_segments = {">segments": lambda rollout: None if rollout.get("segments") is None else len(rollout["segments"])}
    profile = {"Profile": "profile"} if any(row["profile"] != GATE_PROFILE for row in rows) else {}
    out.print_table({"Motion": "name", "Mode": "mode", **profile, **RESULT_COLUMNS, **n_segments}, rows)
    for line in ("", *lines) if lines else ():
        out.print(line)


def _profile_of(rollout: Rollout) -> str:
    return str(rollout.get("gate_profile") or (rollout.get("provenance") or {}).get("gate_profile") or GATE_PROFILE)


def diagnosis_lines(rollout: Rollout) -> list[str]:
    """Why a rollout is not Tier 0, what would help, and its longest windows that are Tier 0: a few lines each at most."""
    diagnosis = rollout.get("diagnosis") or {}
    findings = diagnosis.get("findings") or ()
    # A note is worth a line only where nothing weightier was found.
    weighty = [finding for finding in findings if finding["severity"] != "note"] or findings
    lines = [f"why: {finding['message']}" for finding in weighty[:FINDINGS_SHOWN]]
    lines += [f"try: {suggestion['message']}" for suggestion in (diagnosis.get("suggestions") or ())[:SUGGESTIONS_SHOWN]]
    longest = sorted(rollout.get("segments") or (), key=lambda segment: segment["start"] - segment["end"])[:SEGMENTS_SHOWN]
    if longest and rollout.get("frames"):
        dt = rollout["duration_sec"] / rollout["frames"]
        windows = sorted((segment["start"] * dt, segment["end"] * dt) for segment in longest)
        lines.append("best segments: " + ", ".join(f"{start:.2f}–{end:.2f} s" for start, end in windows))
    return lines
