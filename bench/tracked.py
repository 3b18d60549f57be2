"""What the tracked mode makes of clips, beside plain rollout mode, and how long it takes.

    python -m bench.tracked [MOTION...] [--robot NAME|robot.yaml]... [--seed N] [--threads N] [--json FILE]

Without motions: the bundled ones on the bundled robot and, where this checkout has `../shared`, the real clips there, on the
bundled robot and on the public model. The time is that of scoring all clips of a robot together, from plan to verdict, over
their length. It passes when the real clips are what is required of them (Tier 0 with every goal met).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from amp_core.attempts import TRACKED_GOALS
from amp_core.cpus import usable_cpus
from amp_core.formats import Motion, read_motion
from amp_core.kernels import kernel_variables
from amp_core.motions import bundled_motions, reading_options
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.rollout import replay
from amp_core.rotations import pitch_roll_tilt
from amp_core.scoring import Score, score
from amp_core.tiers import Tier, holds

SHARED = Path(__file__).parents[2] / "shared" / "data"
PUBLIC_ROBOT = """\
name: public
model: {model}
joints: [left_hip_pitch, left_hip_roll, left_knee_pitch, left_ankle_pitch,
         right_hip_pitch, right_hip_roll, right_knee_pitch, right_ankle_pitch]
contact_channels: {{left_toe: [left_toe], left_heel: [left_heel], right_toe: [right_toe], right_heel: [right_heel]}}
height_range: [0.35, 0.55]
"""
OTHER_FRAME = "walking_slow01_gmr_orig"  # Its root is in another frame; it is refused.
COLUMNS = ("unloaded_frame_rate", "p95_pitch_deg", "p95_roll_deg", "joint_rmse_rad", "root_drift_m", "slip_rate")
SECONDS_PER_SECOND = 6.0
HEADER = (
    "| clip | robot | plain | tracked | unloaded | pitch (clip's) | roll (clip's) "
    "| RMSE | drift | slip | agreement | harness | replay |"
)


def _read(paths: list[Path]) -> list[Motion]:
    return [read_motion(path, name=path.stem, **reading_options(path)) for path in paths]


def measure(motions: list[Motion], robot: Robot, seed: int, threads: int) -> dict[str, Any]:
    """Score motions in both modes; the figures of the table, and the time."""
    plain = {result.name: result for result in score(motions, robot, Recipe.for_mode("rollout"), nthread=threads)}
    start = time.perf_counter()
    tracked_scores = score(motions, robot, Recipe.for_mode("tracked", seed=seed), nthread=threads)
    wall = time.perf_counter() - start
    seconds = sum(result.duration_sec for result in tracked_scores)
    return {
        "robot": robot.name,
        "clip_seconds": seconds,
        "wall_sec": wall,
        "sec_per_clip_sec": wall / seconds,
        "tier_0_sec": {
            "rollout": sum(result.duration_sec for result in plain.values() if result.tier == 0),
            "tracked": sum(result.duration_sec for result in tracked_scores if result.tier == 0),
        },
        "clips": [_clip(result, plain[result.name].tier, robot) for result in tracked_scores],
    }


def _clip(result: Score, plain_tier: int, robot: Robot) -> dict[str, Any]:
    rollout, metrics = result.rollout, result.quality_metrics
    qpos, qvel = replay(robot, rollout, rollout.recipe)
    exact = np.array_equal(qpos, rollout.qpos) and np.array_equal(qvel, rollout.qvel)
    harness = float(np.abs(rollout.stab_force).max(initial=0.0))
    within = all((value := metrics[key]) is not None and holds(value, *goal) for key, goal in TRACKED_GOALS.items())
    # The same figures of the clip itself, which the aim is stated against.
    leans = pitch_roll_tilt(rollout.reference_root_rot)[:2]
    source = [float(np.percentile(np.degrees(np.abs(angle)), 95)) for angle in leans]
    return {
        "name": result.name,
        "plain_tier": plain_tier,
        "tier": result.tier,
        "harness_n": harness,
        "replay_exact": exact,
        "contact_agreement": metrics["contact_agreement"],
        **{key: metrics[key] for key in COLUMNS},
        "source_p95_pitch_deg": source[0],
        "source_p95_roll_deg": source[1],
        "as_required": result.tier == Tier.TIER_0 and within and exact and harness == 0.0,
    }


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else format(value, form) + unit


def _tilt_of_clip(clip: dict[str, Any], angle: str) -> str:
    clip_tilt, source = (_figure(clip[f"{prefix}p95_{angle}_deg"], ".1f", "°") for prefix in ("", "source_"))
    return f"{clip_tilt} ({source})"


def show(scores: dict[str, Any]) -> None:
    for clip in scores["clips"]:
        cells = (
            clip["name"],
            scores["robot"],
            Tier(clip["plain_tier"]).label,
            Tier(clip["tier"]).label,
            _figure(clip["unloaded_frame_rate"], ".1%"),
            *(_tilt_of_clip(clip, angle) for angle in ("pitch", "roll")),
            _figure(clip["joint_rmse_rad"], ".3f", " rad"),
            _figure(clip["root_drift_m"], ".3f", " m"),
            _figure(clip["slip_rate"], ".1%"),
            _figure(clip["contact_agreement"], ".2f"),
            f"{clip['harness_n']:.0f} N",
            "exact" if clip["replay_exact"] else "DIFFERS",
        )
        print("| " + " | ".join(cells) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description="The tracked mode beside plain rollout mode.")
    parser.add_argument("motions", nargs="*", type=Path)
    parser.add_argument("--robot", action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not kernel_variables().items() <= os.environ.items():
        # Once more, with the linear algebra that `ampref` plans with.
        os.execve(sys.executable, [sys.executable, "-m", "bench.tracked", *sys.argv[1:]], os.environ | kernel_variables())

    jobs: list[tuple[list[Path], str, bool]] = []
    with tempfile.TemporaryDirectory() as folder:
        if arguments.motions:
            jobs = [(arguments.motions, robot, False) for robot in arguments.robot or ["wildrobot"]]
        else:
            jobs.append((bundled_motions(), "wildrobot", False))
            real = [path for path in sorted((SHARED / "motions").glob("*.pkl")) if path.stem != OTHER_FRAME]
            if real:
                public = Path(folder) / "robot.yaml"
                scene = SHARED / "wildrobot" / "mjcf" / "scene_flat_terrain.xml"
                public.write_text(PUBLIC_ROBOT.format(model=scene), encoding="utf-8")
                jobs += [(real, "wildrobot", True), (real, str(public), True)]
            else:
                print("no real clips here (../shared): the bundled motions only", file=sys.stderr)
        results = []
        print(HEADER)
        print("|" + "---|" * (HEADER.count("|") - 1))
        for paths, source, is_required in jobs:
            scores = measure(_read(paths), Robot.load(source), arguments.seed, arguments.threads) | {"required": is_required}
            show(scores)
            results.append(scores)
    for scores in results:
        tier_0 = scores["tier_0_sec"]
        print(
            f"{scores['robot']}: {scores['clip_seconds']:.1f} s of clips in {scores['wall_sec']:.0f} s, "
            f"{scores['sec_per_clip_sec']:.1f} s a second; "
            f"Tier 0: {tier_0['rollout']:.1f} s plain, {tier_0['tracked']:.1f} s tracked"
        )
    judged_scores = [scores for scores in results if scores["required"]]
    is_pass = all(
        scores["sec_per_clip_sec"] <= SECONDS_PER_SECOND and all(clip["as_required"] for clip in scores["clips"])
        for scores in judged_scores
    )
    document = json.dumps({"threads": arguments.threads, "results": results, "passed": is_pass})
    if arguments.json:
        arguments.json.write_text(document + "\n", encoding="utf-8")
    print(document)
    return 0 if is_pass else 1


if __name__ == "__main__":
    sys.exit(main())
