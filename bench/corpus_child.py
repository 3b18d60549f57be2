"""Scores one window after another for `bench.corpus`, on one thread.

    python -m bench.corpus_child SOCKET PARENT ROBOT RECIPE

Requests and answers are JSON objects, one a line, on the socket whose descriptor is SOCKET; RECIPE is a recipe as JSON. An
answer has `score`, `refusal` (an error's facts) or `fault` (a traceback), and the time that the window took.
"""

from __future__ import annotations

import json
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from amp_core.augment.cutting import cut_motion
from amp_core.children import tie_to_parent
from amp_core.cli.options import MAX_SECONDS
from amp_core.errors import AmprefError, InputRefused
from amp_core.formats import Limits, Motion, read_motion
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.scoring import Score, score
from amp_core.strict_json import format_json

METRICS = (
    "mpjpe_m",
    "worst_second_mpjpe_m",
    "joint_rmse_rad",
    "root_drift_m",
    "slip_rate",
    "unloaded_frame_rate",
    "contact_agreement",
    "fell_at_frame",
)
"""The metrics that a line has, of all that a score has."""

EXPLAINING = ("fatal", "failed")
"""The severities of the findings that say why a window is not Tier 0."""


def read_window(request: dict[str, Any]) -> Motion:
    """The clip of a request, or the part of it that its `frames` (first and last) name."""
    path, frames, options = Path(request["path"]), request["frames"], request["options"]
    if frames is None:
        motion = read_motion(path, **options)
    else:
        first, last = frames
        motion = read_motion(path, frames=(first, last + 1), limits=Limits(max_duration_sec=MAX_SECONDS), **options)
    if motion.source_digest != request["source_digest"]:
        raise InputRefused("it has changed since the run began", remedy="Start the run again")
    return motion if frames is None else cut_motion(motion, frames[0], digits=request["digits"]).motion


def describe_score(result: Score) -> dict[str, Any]:
    """What a line has of a score."""
    findings = () if result.diagnosis is None else result.diagnosis.findings
    return {
        "name": result.name,
        "clip_sec": result.duration_sec,
        "tier": int(result.tier),
        "reason": result.tier_reason,
        "findings": [
            {"code": entry.code, "severity": entry.severity, "message": entry.message}
            for entry in findings
            if entry.severity in EXPLAINING
        ],
        "mode": result.rollout.recipe.mode,
        "modes": [result.rollout.recipe.mode]
        if result.auto is None
        else [entry.rollout.recipe.mode for entry in result.auto.tried],
        "attempt": result.provenance["attempt"],
        "attempts": len(result.attempts),
        "metrics": {name: result.quality_metrics[name] for name in METRICS},
    }


def answer(request: dict[str, Any], robot: Robot, recipe: Recipe) -> dict[str, Any]:
    """Read and score a window; what comes of it, and its time."""
    start, cpu_start = time.perf_counter(), time.process_time()
    document: dict[str, Any]
    try:
        document = {"score": describe_score(score([read_window(request)], robot, recipe)[0])}
    except AmprefError as error:
        error.file = request["file"]
        document = {"refusal": error.to_dict()}
    except OSError as error:
        document = {"refusal": InputRefused(f"cannot be read: {error.strerror or error}", file=request["file"]).to_dict()}
    except Exception:
        document = {"fault": traceback.format_exc(limit=-6)}
    return document | {"wall_sec": time.perf_counter() - start, "cpu_sec": time.process_time() - cpu_start}


def main() -> None:
    descriptor, parent = map(int, sys.argv[1:3])
    tie_to_parent(parent)
    robot, recipe = Robot.load(sys.argv[3]), Recipe.from_dict(json.loads(sys.argv[4]))
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rwb") as stream:
        stream.write(b"{}\n")
        stream.flush()
        for line in stream:
            stream.write(format_json(answer(json.loads(line), robot, recipe), ensure_ascii=True).encode() + b"\n")
            stream.flush()


if __name__ == "__main__":
    main()
