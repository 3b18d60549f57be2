"""Scores motion files on several robots and in several modes, and prints one Markdown table.

    python examples/tier_table.py MOTION... [--robot NAME|robot.yaml]... [--mode MODE]...

For one robot and one mode, `ampref score` says more; this is for comparing. The tables in docs/ were made with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amp_core.formats import read_motion
from amp_core.motions import reading_options
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.scoring import Score, score

HEADER = ("clip", "mode", "robot", "tier", "fell at", "load", "unloaded", "tilt", "root height", "gates that failed")


def row(result: Score, mode: str, robot: Robot, label: str) -> tuple[str, ...]:
    """One line: what happened, in the units of the table's header."""
    metrics = result.quality_metrics
    fell = metrics["fell_at_frame"]
    # Every gate that failed says so itself; the profile's legacy cap on a mode has no value and is left to the text.
    failed = list(dict.fromkeys(gate.name for gate in result.gates if not gate.passed))
    return (
        result.name,
        mode,
        label,
        result.tier.label,
        "–" if fell is None else f"{(fell + 1) * robot.control_dt:.2f} s",
        f"{metrics['mean_sum_fn_over_mg']:.2f} mg",
        f"{metrics['unloaded_frame_rate']:.0%}",
        f"{metrics['max_tilt_deg']:.0f}°",
        f"{metrics['height_min']:.2f}–{metrics['height_max']:.2f} m",
        ", ".join(failed) or "none",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare tiers over robots and modes.")
    parser.add_argument("motions", nargs="+", type=Path)
    parser.add_argument("--robot", action="append", help="bundled name or robot.yaml; may be repeated (default: wildrobot)")
    parser.add_argument("--mode", action="append", help="may be repeated (default: rollout)")
    arguments = parser.parse_args()
    motions = [read_motion(path, **reading_options(path)) for path in arguments.motions]
    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER))
    for mode in arguments.mode or ["rollout"]:
        for source in arguments.robot or ["wildrobot"]:
            robot = Robot.load(source)
            for result in score(motions, robot, Recipe.for_mode(mode), nthread=2):
                print("| " + " | ".join(row(result, mode, robot, robot.name)) + " |")


if __name__ == "__main__":
    main()
