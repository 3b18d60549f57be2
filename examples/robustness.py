"""How far from luck a clip's tier is: scores it under other physics and after small pushes, and counts the tiers.

    python examples/robustness.py [MOTION...] [--robot NAME|robot.yaml]

Physics: friction times 0.8 to 1.2 with mass times 0.95 to 1.05, 35 pairs. Pushes: 30 draws (seed 0) added to the root velocity
before the first step, with a standard deviation of 0.03 m/s on each axis and 0.1 rad/s about each.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from amp_core.formats import read_motion
from amp_core.motion import Conditioned, condition
from amp_core.motions import bundled_motions, reading_options
from amp_core.recipe import PhysicsScale, Recipe
from amp_core.robot import Robot
from amp_core.rollout import generate
from amp_core.verdict import judge

FRICTIONS = (0.8, 0.9, 0.98, 1.0, 1.02, 1.1, 1.2)
MASSES = (0.95, 0.98, 1.0, 1.02, 1.05)
PUSHES = 30
PUSH_STD = np.array([0.03, 0.03, 0.03, 0.1, 0.1, 0.1])  # m/s and rad/s


def pushed(clip: Conditioned, robot: Robot, rng: np.random.Generator) -> Conditioned:
    """The clip with another root velocity to begin with."""
    qvel = clip.initial_qvel.copy()
    qvel[robot.root_qvel_adr : robot.root_qvel_adr + 6] += rng.normal(size=6) * PUSH_STD
    return replace(clip, initial_qvel=qvel)


def tiers(robot: Robot, clips: list[Conditioned], recipes: list[Recipe]) -> str:
    """Counts such as `35 × Tier 0`."""
    rollouts = generate(robot, clips, recipes, nthread=2)
    counts = Counter(judge(rollout, robot).tier for rollout in rollouts)
    return ", ".join(f"{count} × {tier.label}" for tier, count in counts.most_common())


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the tiers that a clip gets under other physics and after pushes.")
    parser.add_argument("motions", nargs="*", type=Path, help="default: the bundled ones")
    parser.add_argument("--robot", default="wildrobot")
    arguments = parser.parse_args()
    robot = Robot.load(arguments.robot)
    plain = Recipe.for_mode("rollout")
    scaled = [Recipe.for_mode("rollout", physics=PhysicsScale(friction=f, mass=m)) for f, m in product(FRICTIONS, MASSES)]
    print("| clip | other friction and mass | pushes |\n|---|---|---|")
    for path in arguments.motions or bundled_motions():
        clip = condition(read_motion(path, **reading_options(path)), robot)
        rng = np.random.default_rng(0)
        by_physics = tiers(robot, [clip] * len(scaled), scaled)
        by_push = tiers(robot, [pushed(clip, robot, rng) for _ in range(PUSHES)], [plain] * PUSHES)
        print(f"| {path.stem} | {by_physics} | {by_push} |")


if __name__ == "__main__":
    main()
