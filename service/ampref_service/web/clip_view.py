"""What the page of a clip says of a rollout, made of its result document alone: also for a file that no service has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amp_core.metrics import GRAVITY
from amp_core.tiers import MODE_GATE, Tier
from ampref_service.web.formats import format_value

Json = Mapping[str, Any]

CHARTED_GATES = (
    "mean_sum_fn_over_mg",
    "p90_stab_force_over_mg",
    "unloaded_frame_rate",
    "max_tilt_deg",
    "height_min",
    "height_max",
)
"""The gates whose thresholds stand in the charts as lines."""


_FORCES = {0: "0, free", 1: "1, held up", 2: "2, posed"}
"""What the values of the gate `mode` mean."""


@dataclass(frozen=True)
class GateRow:
    """A gate as a row of a table.

    Args:
      text: the value for people.
      level: `validity`, `Tier 0` or `Tier 1`: what needs it.
      margin: how far the value is within the threshold, in its own unit; negative beyond it, None where there is no value.
      share: the same as a share of the threshold, from -1 to 1.
    """

    name: str
    text: str
    gate: Json
    level: str
    passed: bool
    margin: float | None
    share: float | None


def list_gates(gates: Sequence[Json]) -> list[GateRow]:
    """The gates, those that failed first, then those with the least room."""
    rows = []
    for gate in gates:
        margin, share = _measure_margin(gate)
        level = gate["tier"] if gate["tier"] == "validity" else Tier(gate["tier"]).label
        text = _FORCES.get(gate["value"], "") if gate["name"] == MODE_GATE else format_value(gate["value"])
        rows.append(GateRow(gate["name"], text, gate, level, gate["passed"], margin, share))
    return sorted(rows, key=lambda row: (row.passed, math.inf if row.share is None else row.share))


def _measure_margin(gate: Json) -> tuple[float | None, float | None]:
    value, threshold = gate["value"], gate["threshold"]
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return None, None
    if isinstance(threshold, list | tuple):
        low, high = threshold
        margin, scale = min(value - low, high - value), (high - low) / 2
    elif gate["op"] == "==":
        margin, scale = -abs(value - threshold), abs(threshold)
    else:
        margin, scale = (value - threshold) if gate["op"] in (">=", ">") else (threshold - value), abs(threshold)
    share = margin / scale if scale > 0 else math.copysign(1.0, margin) if margin else 0.0
    return margin, max(-1.0, min(1.0, share))


def list_marks(result: Json) -> list[dict[str, Any]]:
    """What of a rollout is marked on its time line: the fall, the frame that stopped it, and the frames of each finding."""
    marks = []
    fell_at = result["quality_metrics"].get("fell_at_frame")
    if fell_at is not None:
        marks.append({"start": fell_at, "end": fell_at + 1, "text": f"fell at frame {fell_at}", "kind": "fall"})
    if failure := result.get("failure"):
        frame = failure["frame"]
        text = f"the simulation stopped: {failure['reason']}"
        marks.append({"start": frame, "end": frame + 1, "text": text, "kind": "failure"})
    for finding in (result.get("diagnosis") or {}).get("findings", ()):
        if finding.get("frames"):
            start, end = finding["frames"]
            marks.append({"start": start, "end": end, "text": finding["message"], "kind": finding["severity"]})
    return marks


def describe_replay(
    result: Json, *, rollout_id: str, label: str, frames_url: str, weight_n: float | None = None
) -> dict[str, Any]:
    """What the browser needs to replay a rollout, as JSON (`service/web/README.md`).

    Args:
      result: `Score.to_dict()`.
      weight_n: N, of the robot in the rollout's physics; by default of its mass.
    """
    frames = result["simulated_frames"]
    provenance = result["provenance"]
    physics_mass = provenance["recipe"].get("physics", {}).get("mass", 1.0)
    return {
        "id": rollout_id,
        "label": label,
        "mode": result["mode"],
        "tier": result["tier"],
        "frames_url": frames_url,
        "frames": frames,
        "control_dt": result["duration_sec"] / frames if frames else 0.02,
        "weight_n": weight_n or provenance["robot_mass_kg"] * physics_mass * GRAVITY,
        "fell_at_frame": result["quality_metrics"].get("fell_at_frame"),
        "failure_frame": (result.get("failure") or {}).get("frame"),
        "marks": list_marks(result),
        "segments": [{name: segment[name] for name in ("start", "end", "tier", "score")} for segment in result["segments"]],
        "thresholds": {
            gate["name"]: gate["threshold"]
            for gate in result["gates"]
            if gate["name"] in CHARTED_GATES and gate["tier"] in ("validity", int(Tier.TIER_0))
        },
    }


def describe_changes(ingest: Json) -> Iterator[tuple[str, str]]:
    """What conditioning changed in a clip, in words: a heading and a sentence each."""
    if ingest["fps_in"] != ingest["fps_out"] or ingest["frames_in"] != ingest["frames_out"]:
        source = f"{ingest['frames_in']} frames at {ingest['fps_in']:g} fps"
        yield "Resampled", f"{source} became {ingest['frames_out']} at {ingest['fps_out']:g} fps"
    first = ingest.get("first_frame") or {}
    if first.get("trimmed"):
        yield "First frames", f"{first['frames']} dropped: {first['detail']}"
    yield "Ground", f"the clip was moved by {1000 * ingest['ground_shift_m']:+.1f} mm, so that its feet reach the floor"
    if count := ingest["quaternions_renormalized"]:
        yield "Quaternions", f"{count} brought to unit length (off by up to {ingest['max_norm_error']:.2g})"
    if count := ingest["quaternions_flipped"]:
        yield "Quaternion signs", f"{count} changed, so that neighbours lie on one hemisphere"
    for joint in ingest["joints_clipped"]:
        yield (
            f"Joint {joint['joint']}",
            (f"clipped to its {joint['side']} limit in {joint['frames']} frames, by up to {joint['max_excess_rad']:.3f} rad"),
        )
