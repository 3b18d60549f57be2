"""Rollouts for people: a row each, and why those that are not Tier 0 are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from amp_core.cli.output import Output
from amp_core.cli.text import number, tier_name

RESULT_COLUMNS = ("Motion", "Tier", ">s", ">load/mg", ">harness/mg", ">unloaded %", ">fell", ">segments")
FINDINGS_SHOWN, SUGGESTIONS_SHOWN, SEGMENTS_SHOWN = 3, 2, 3


def result_row(rollout: Mapping[str, Any]) -> tuple[Any, ...]:
    """A rollout as a row under `RESULT_COLUMNS`: mean load on the feet and p90 of the harness in units of the weight."""
    metrics = rollout["quality_metrics"]
    fell, unloaded, segments = metrics.get("fell_at_frame"), metrics.get("unloaded_frame_rate"), rollout.get("segments")
    return (
        rollout.get("clip_name") or rollout.get("name"),
        tier_name(rollout["tier"]),
        number(rollout.get("duration_sec")),
        number(metrics.get("mean_sum_fn_over_mg")),
        number(metrics.get("p90_stab_force_over_mg")),
        None if unloaded is None else number(100.0 * unloaded, 1),
        None if fell is None else f"frame {int(fell)}",
        None if segments is None else len(segments),
    )


def print_results(out: Output, rollouts: Sequence[Mapping[str, Any]]) -> None:
    """Print rollouts as a table; below it why those that are not Tier 0 are not, and what reading the motions brought up."""
    rows = []
    lines = []
    for rollout in rollouts:
        name, *values = result_row(rollout)
        rows.append((name, rollout.get("mode"), *values))
        if rollout["tier"] != 0:
            lines += [f"{name}: {rollout['tier_reason']}", *(f"  {line}" for line in diagnosis_lines(rollout))]
        notes = (rollout.get("ingest") or {}).get("notes", ())
        # A note that is a reason of the verdict is in the line before.
        lines += [f"{name}: {note}" for note in notes if note.partition(": ")[2].rstrip(".") not in rollout["tier_reason"]]
    out.print_table((RESULT_COLUMNS[0], "Mode", *RESULT_COLUMNS[1:]), rows)
    for line in ("", *lines) if lines else ():
        out.print(line)


def diagnosis_lines(rollout: Mapping[str, Any]) -> list[str]:
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
