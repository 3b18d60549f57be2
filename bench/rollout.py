"""How fast `rollout` is, against a bare `mj_step` loop over the same controls on the same machine in the same minute.

    python -m bench.rollout [--repeats 5] [--clips 64] [--seconds 10] [--json FILE]

The loop is the least that anyone could do: the robot's own model, a Python loop that sets `ctrl` and the harness force once a
frame and calls `mujoco.mj_step(model, data)` once a substep, on one thread, recording nothing. It replays the recorded controls
and forces, so that both sides compute the very same states. Ours does everything that a score needs: simulation with contact
sensors, features, metrics, gates and segments. Repeats of both are interleaved and the ratio is of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from amp_core.cpus import usable_cpus
from amp_core.engine import mujoco
from amp_core.motion import Conditioned, Motion, condition
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.rollout import Rollout, generate
from amp_core.verdict import judge

# The bounds of the project's plan.
ONE_CLIP_AT_MOST = 1.25
MANY_CLIPS_AT_LEAST = 1.6


def clip(robot: Robot, seconds: float, seed: int) -> Conditioned:
    """A robot that sways on its ankles, a little different for every seed; upright for its whole length."""
    rng = np.random.default_rng(seed)
    frames = round(seconds / robot.control_dt)
    t = np.arange(frames) * robot.control_dt
    sway = 0.015 * np.sin(2 * np.pi * rng.uniform(0.3, 0.7) * t)
    dof_pos = np.zeros((frames, len(robot.joint_names)))
    for joint, name in enumerate(robot.joint_names):
        if "ankle" in name:
            dof_pos[:, joint] = sway
    root_pos = np.zeros((frames, 3))
    root_pos[:, 2] = sum(robot.height_range) / 2
    root_rot = np.tile([0.0, 0.0, 0.0, 1.0], (frames, 1))
    motion = Motion(
        name=f"shift-{seed}",
        fps=1.0 / robot.control_dt,
        root_pos=root_pos,
        root_rot=root_rot,
        dof_pos=dof_pos,
        source_digest=f"sha256:{seed:064x}",
        source_format="made here",
    )
    return condition(motion, robot)


def bare_loop(robot: Robot, rollout: Rollout) -> None:
    """The yardstick."""
    model, substeps, vertical = robot.model, robot.substeps, robot.root_qvel_adr + 2
    data = mujoco.MjData(model)
    data.qpos[:] = rollout.initial_qpos
    data.qvel[:] = rollout.initial_qvel
    for ctrl, force in zip(rollout.ctrl, rollout.stab_force, strict=True):
        data.ctrl[:] = ctrl
        data.qfrc_applied[vertical] = force
        for _ in range(substeps):
            mujoco.mj_step(model, data)
    if not np.array_equal(data.qpos, rollout.qpos[-1]):
        raise SystemExit("the loop did not end in the recorded state, so the comparison means nothing")


def roll_out(robot: Robot, clips: list[Conditioned], nthread: int) -> list[Rollout]:
    rollouts = generate(robot, clips, Recipe.for_mode("rollout"), nthread=nthread)
    for rollout in rollouts:
        judge(rollout, robot)
    return rollouts


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(robot: Robot, clips: list[Conditioned], seconds: float, repeats: int) -> dict[str, Any]:
    first = roll_out(robot, clips[:1], 1)[0]  # also compiles the instrumented model, once a process
    bare_loop(robot, first)
    all_of_them = roll_out(robot, clips, 2)
    loop, single, many = [], [], []
    for repeat in range(repeats):
        loop.append(seconds_of(lambda: bare_loop(robot, first)))
        single.append(seconds_of(lambda: roll_out(robot, clips[:1], 1)))
        loop.append(seconds_of(lambda: bare_loop(robot, first)))
        if repeat < max(3, repeats // 2):
            many.append(seconds_of(lambda: roll_out(robot, clips, 2)))
    loop_sec, one_sec, many_sec = (statistics.median(values) for values in (loop, single, many))
    loop_rate, many_rate = seconds / loop_sec, len(clips) * seconds / many_sec
    return {
        "robot": robot.name,
        "clip_sec": seconds,
        "upright_to_the_end": bool(min(r.root_pos[-1, 2] for r in all_of_them) > robot.height_range[0]),
        "loop_sec": loop_sec,
        "one_clip_sec": one_sec,
        "one_clip_over_loop": one_sec / loop_sec,
        "one_clip_at_most": ONE_CLIP_AT_MOST,
        "clips": len(clips),
        "many_clips_sec": many_sec,
        "loop_clip_seconds_per_sec": loop_rate,
        "many_clip_seconds_per_sec": many_rate,
        "many_over_loop": many_rate / loop_rate,
        "many_at_least": MANY_CLIPS_AT_LEAST,
        "repeats": repeats,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="rollout against a bare mj_step loop")
    parser.add_argument("--robot", action="append", help="name or robot.yaml; may be repeated (default: wildrobot)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--clips", type=int, default=64, help="clips in the large batch")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()

    results = []
    for name in options.robot or ["wildrobot"]:
        robot = Robot.load(name)
        clips = [clip(robot, options.seconds, seed) for seed in range(options.clips)]
        results.append(measure(robot, clips, options.seconds, options.repeats))
    report = {
        "benchmark": "rollout",
        "machine": {
            "cpus": usable_cpus(),
            "processor": _processor(),
            "python": platform.python_version(),
            "mujoco": mujoco.__version__,
            "load_1min": os.getloadavg()[0],
        },
        "results": results,
    }
    sys.stdout.write(f"{'what':58} {'measured':>9} {'bound':>8}\n")
    for r in results:
        head = f"{r['robot']}, {r['clip_sec']:g} s clips"
        sys.stdout.write(f"{head}: bare loop, one thread [clip-s/s]                  "[:58])
        sys.stdout.write(f" {r['loop_clip_seconds_per_sec']:9.1f}\n")
        sys.stdout.write(f"{head}: one clip, one thread, time over loop".ljust(58))
        sys.stdout.write(f" {r['one_clip_over_loop']:9.3f} {'<= ' + format(r['one_clip_at_most'], '.2f'):>8}\n")
        sys.stdout.write(f"{head}: {r['clips']} clips, two threads, rate over loop".ljust(58))
        sys.stdout.write(f" {r['many_over_loop']:9.3f} {'>= ' + format(r['many_at_least'], '.2f'):>8}\n")
    text = json.dumps(report, indent=2)
    sys.stdout.write(text + "\n")
    if options.json:
        options.json.write_text(text + "\n")
    bounds_met = all(
        r["one_clip_over_loop"] <= r["one_clip_at_most"] and r["many_over_loop"] >= r["many_at_least"] for r in results
    )
    return 0 if bounds_met else 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
