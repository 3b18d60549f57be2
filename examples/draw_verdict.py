"""Draws what a verdict rests on: the rollout as a strip of pictures, the load that the feet carry, and the contacts.

    pip install matplotlib pyopengl glfw          # for this script alone; ampref needs none of them
    MUJOCO_GL=egl python examples/draw_verdict.py [MOTION MOTION] [--out docs/img/verdict.png]

Rendering without a screen needs EGL (Debian: libegl1, libgl1-mesa-dri) or OSMesa (libosmesa6, MUJOCO_GL=osmesa).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from amp_core.engine import mujoco
from amp_core.formats import read_motion
from amp_core.motions import bundled_motions, reading_options
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.scoring import Score, score
from amp_core.tiers import Tier

matplotlib.use("Agg")

import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
SHOWN = ("walk", "walk_long_stride")
COLORS = {Tier.TIER_0: "#1a7f37", Tier.TIER_1: "#9a6700", Tier.REJECTED: "#cf222e"}
LOAD, CHANNEL = "#0550ae", "#57606a"
PEAK = 3.0  # the load axis ends here; a landing may go beyond it for a frame
PICTURES = 7
TILE = (300, 210)  # pixels, height and width


def strip(robot: Robot, qpos: NDArray[np.float64], seconds: float) -> NDArray[np.uint8]:
    """Pictures of evenly spaced frames side by side, the camera beside the robot: (height, PICTURES * width, 3)."""
    camera = mujoco.MjvCamera()
    camera.distance, camera.azimuth, camera.elevation = 1.05, 118.0, -12.0
    data = mujoco.MjData(robot.model)
    tiles = []
    with mujoco.Renderer(robot.model, *TILE) as renderer:
        for k in range(PICTURES):
            # Each picture stands in the middle of the stretch of time that it covers on the axis below.
            row = min(int((k + 0.5) / PICTURES * seconds / robot.control_dt), len(qpos) - 1)
            data.qpos[:] = qpos[row]
            mujoco.mj_forward(robot.model, data)
            camera.lookat[:] = [*data.qpos[robot.root_qpos_adr : robot.root_qpos_adr + 2], 0.33]
            renderer.update_scene(data, camera)
            tiles.append(renderer.render())
    return np.concatenate(tiles, axis=1)


def column(axes: list[Any], robot: Robot, result: Score, seconds: float) -> None:
    """One clip, from top to bottom: pictures, load, contacts, over the same seconds."""
    pictures, load, contacts = axes
    arrays = result.rollout.arrays()
    time = (np.arange(len(arrays["qpos"])) + 1) * robot.control_dt
    word, color = result.tier.label, COLORS[result.tier]
    fell = result.quality_metrics["fell_at_frame"]

    pictures.imshow(strip(robot, arrays["qpos"], seconds), extent=(0, seconds, 0, 1), aspect="auto")
    pictures.set_axis_off()
    mean, unloaded = (result.quality_metrics[name] for name in ("mean_sum_fn_over_mg", "unloaded_frame_rate"))
    pictures.set_title(f"{result.name}: {word}", color=color, fontweight="bold", loc="left")
    pictures.set_title(f"mean load {mean:.2f} mg, {unloaded:.0%} of frames unloaded", fontsize=9, loc="right")

    share = arrays["sum_fn_per_frame"] / robot.mg
    load.axhspan(0, 0.6, color="#cf222e", alpha=0.08, lw=0)
    load.plot(time, share, color=LOAD, lw=1)
    load.axhline(1.0, color="black", lw=0.6, ls=":")
    load.set_ylim(0, PEAK)
    load.set_ylabel("load on feet / weight")
    load.text(0.03, 0.1, "below 0.6: unloaded", color="#cf222e", fontsize=8)

    for channel in range(len(robot.channels)):
        on = arrays["foot_contacts"][:, channel] > 0
        contacts.fill_between(time, channel - 0.35, channel + 0.35, where=on, step="pre", color=CHANNEL, lw=0)
    contacts.set_yticks(range(len(robot.channels)), [name.replace("_", " ") for name in robot.channels])
    contacts.invert_yaxis()
    contacts.set_xlabel("time [s]")

    for axis in (load, contacts):
        axis.set_xlim(0, seconds)
        axis.spines[["top", "right"]].set_visible(False)
        if fell is not None:
            axis.axvline((fell + 1) * robot.control_dt, color="#cf222e", lw=1.2)
    if fell is not None:
        load.text((fell + 1) * robot.control_dt + 0.04, PEAK * 0.95, "fallen", color="#cf222e", fontsize=9, va="top")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw what two verdicts rest on.")
    parser.add_argument("motions", nargs="*", type=Path, help="two motion files (default: two bundled ones)")
    parser.add_argument("--robot", default="wildrobot")
    parser.add_argument("--seconds", type=float, default=5.0, help="how much of each rollout to show")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img" / "verdict.png")
    arguments = parser.parse_args()
    files = arguments.motions or [path for path in bundled_motions() if path.stem in SHOWN]
    robot = Robot.load(arguments.robot)
    motions = [read_motion(path, **reading_options(path)) for path in files]
    results = score(motions, robot, Recipe.for_mode("rollout"))

    figure, grid = plt.subplots(
        3, len(results), figsize=(6.4 * len(results), 5.2), height_ratios=(2.1, 1.6, 1), squeeze=False, layout="constrained"
    )
    for axes, result in zip(grid.T, results, strict=True):
        column(list(axes), robot, result, arguments.seconds)
    for axis in grid[1:, 1:].ravel():
        axis.set_ylabel("")
        axis.set_yticklabels([])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=110, pil_kwargs={"optimize": True})
    print(f"{arguments.out.stat().st_size} bytes  {arguments.out}")


if __name__ == "__main__":
    main()
