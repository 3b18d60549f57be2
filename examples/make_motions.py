"""Writes the bundled motions: seven short clips for the bundled WildRobot, made by analytic leg kinematics.

    python examples/make_motions.py [--out DIR]

Nothing here knows about balance or about the simulator's reply. A clip says where the feet should go, a leg's two links give
the joint angles, and the lowest sole gives the root's height. What the robot makes of it is the job of `ampref score`.

The gaits' numbers (period, lift, lean, sway …) were found by random search: each candidate was rolled out open loop, three
times with disturbed friction, mass and push, and kept when it stood and travelled as far as its steps. docs/robots.md says how
robust they are.

The output is the same on every run: no clock, no random numbers, and values rounded to a micrometre or microradian.
"""

from __future__ import annotations

import argparse
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amp_core.kinematics import iterate_poses, sole_heights
from amp_core.npz import write_npz
from amp_core.robot import Robot
from amp_core.rotations import to_wxyz

Array = NDArray[np.float64]

OUT = Path(__file__).parents[1] / "amp_core" / "motions"
LEG = 0.42  # m, from the hip's roll axis to the ground in a gait's crouch
GMR_FPS = 100.0 / 3.0  # GMR's retargeted files run at about 33.3 frames a second.


@dataclass(frozen=True)
class Clip:
    """A motion as the formats hold it: root position (N,3) [m], rotation (N,4) xyzw, joints (N,n) [rad]."""

    name: str
    fps: float
    root_pos: Array
    root_rot: Array
    dof_pos: Array


@dataclass(frozen=True)
class Gait:
    """A periodic step pattern; the legs run half a period apart.

    Args:
      period: s, of a left and a right step.
      duty: share of the period that a foot is meant to be on the ground.
      lift: m, how far a swinging foot is drawn up.
      stride: m, how far a foot travels backward past the hip in stance.
      sidestep: m, how far it travels to the right, which takes the robot to the left.
      hip_height: m, hip pitch axis above the ankle.
      lean: rad, the trunk's pitch, forward positive.
      toe_down: rad, the sole's pitch.
      foot_x: m, the mean foot position ahead of the hip.
      sway: rad, both hips' roll, leaning the trunk over the stance leg once a period.
      sway_phase: rad.
    """

    period: float
    duty: float
    lift: float
    hip_height: float = 0.34
    stride: float = 0.0
    sidestep: float = 0.0
    lean: float = 0.0
    toe_down: float = 0.0
    foot_x: float = 0.0
    sway: float = 0.0
    sway_phase: float = 0.0


MARCH = Gait(period=0.4, duty=0.65, lift=0.025)
WALK = Gait(
    period=0.57,
    duty=0.545,
    lift=0.039,
    hip_height=0.342,
    stride=0.073,
    lean=0.077,
    toe_down=0.05,
    foot_x=-0.005,
    sway=0.041,
    sway_phase=-0.432,
)
WALK_BACKWARD = Gait(
    period=0.5495,
    duty=0.4748,
    lift=0.0243,
    hip_height=0.3217,
    stride=-0.03745,
    lean=0.0369,
    toe_down=-0.0441,
    foot_x=0.0654,
    sway=0.1328,
    sway_phase=-1.2959,
)
SIDE_STEP = Gait(
    period=0.521,
    duty=0.71,
    lift=0.057,
    hip_height=0.333,
    sidestep=0.0747,
    lean=-0.031,
    toe_down=0.032,
    foot_x=0.01,
    sway=0.105,
    sway_phase=-1.155,
)
# Over twice the stride and no lean: a gait that looks right and falls without feedback.
LONG_STRIDE = Gait(period=0.7, duty=0.6, lift=0.04, stride=0.18)


class Legs:
    """Kinematics of the bundled robot's legs, measured on its model rather than written down twice."""

    def __init__(self, robot: Robot) -> None:
        self.robot = robot
        upright = np.zeros(robot.model.nq)
        upright[robot.root_qpos_adr + 3] = 1.0
        data = next(iterate_poses(robot.model, upright[None]))
        hip, knee, ankle = (data.joint(f"left_{name}_pitch").xanchor[[0, 2]] for name in ("hip", "knee", "ankle"))
        self.thigh = float(np.linalg.norm(hip - knee))
        self.shank = float(np.linalg.norm(knee - ankle))

    def angles(self, x: Array, height: Array, lean: Array, toe_down: float) -> tuple[Array, Array, Array]:
        """Hip flexion, knee flexion and ankle angle that put the ankle `x` ahead of the hip and `height` below it [m].

        The two links and the line from hip to ankle form a triangle; the knee points forward. The ankle keeps the sole at
        `toe_down` to the ground.
        """
        a, b = self.thigh, self.shank
        reach = np.minimum(np.hypot(x, height), (a + b) * 0.9999)
        knee = np.pi - np.arccos(np.clip((a**2 + b**2 - reach**2) / (2 * a * b), -1, 1))
        hip = np.arctan2(x, height) + np.arccos(np.clip((a**2 + reach**2 - b**2) / (2 * a * reach), -1, 1))
        ankle = hip - knee + toe_down
        return hip + lean, knee, ankle

    def clip(
        self,
        name: str,
        fps: float,
        feet_x: tuple[Array, Array],
        heights: tuple[Array, Array],
        rolls: tuple[Array, Array],
        root_xy: tuple[Array, Array],
        lean: Array,
        toe_down: float = 0.0,
    ) -> Clip:
        """A clip from what the left and the right leg do, with the root as high as its lowest sole asks."""
        left = self.angles(feet_x[0], heights[0], lean, toe_down)
        right = self.angles(feet_x[1], heights[1], lean, toe_down)
        by_joint = {
            "left_hip_pitch": left[0],
            "left_knee_pitch": left[1],
            "left_ankle_pitch": left[2],
            "right_hip_pitch": -right[0],  # the right hip's axis points the other way
            "right_knee_pitch": right[1],
            "right_ankle_pitch": right[2],
            "left_hip_roll": rolls[0],
            "right_hip_roll": rolls[1],
        }
        dof_pos = np.stack([by_joint[joint] for joint in self.robot.joint_names], axis=1)
        dof_pos = np.clip(dof_pos, self.robot.joint_range[:, 0], self.robot.joint_range[:, 1])
        root_rot = np.stack([0 * lean, np.sin(lean / 2), 0 * lean, np.cos(lean / 2)], axis=1)
        at_origin = self.robot.poses(np.zeros((len(lean), 3)), root_rot, dof_pos)
        root_pos = np.stack([*root_xy, -sole_heights(self.robot, at_origin).min(axis=1)], axis=1)
        return Clip(name, fps, root_pos.round(6), root_rot.round(6), dof_pos.round(6))


def fade(t: Array, start: float, length: float) -> Array:
    """A smooth step from 0 to 1 that begins at `start` and takes `length` [s]."""
    s = np.clip((t - start) / length, 0, 1)
    return s * s * (3 - 2 * s)


def stepping(legs: Legs, name: str, gait: Gait, duration: float, fps: float) -> Clip:
    """Stand for 0.3 s, fade the gait in over 0.6 s, step, fade out, stand."""
    still, blend = 0.3, 0.6
    t = np.arange(round(duration * fps)) / fps
    amount = fade(t, still, blend) * fade(t[-1] - t, still, blend)
    cycle = (t - still) / gait.period
    sway = amount * gait.sway * np.sin(2 * np.pi * cycle + gait.sway_phase)
    feet_x, heights, rolls = [], [], []
    for offset in (0.0, 0.5):
        phase = (cycle + offset) % 1.0
        swing = np.clip(phase / (1 - gait.duty), 0, 1)
        stance = np.clip((phase - (1 - gait.duty)) / gait.duty, 0, 1)
        travel = amount * np.where(swing < 1, fade(swing, 0, 1) - 0.5, 0.5 - stance)
        feet_x.append(gait.foot_x + gait.stride * travel)
        heights.append(gait.hip_height - amount * gait.lift * np.sin(np.pi * swing) ** 2)
        # A negative roll swings either leg to the left.
        rolls.append(sway - gait.sidestep * travel / LEG)
    pace = amount / (gait.duty * gait.period)
    distance = np.concatenate([[0.0], np.cumsum((pace[1:] + pace[:-1]) / (2 * fps))])
    return legs.clip(
        name,
        fps,
        (feet_x[0], feet_x[1]),
        (heights[0], heights[1]),
        (rolls[0], rolls[1]),
        # The trunk sways over feet that stay where they are.
        (gait.stride * distance, gait.sidestep * distance + LEG * sway),
        np.full_like(t, gait.lean),
        gait.toe_down,
    )


def squat(legs: Legs, name: str, duration: float, fps: float) -> Clip:
    """Three knee bends of 5 cm, the trunk leaning a little into each; the feet stay where they are."""
    t = np.arange(round(duration * fps)) / fps
    depth = np.sin(np.pi * 3 * np.clip((t - 0.25) / (duration - 0.5), 0, 1)) ** 2
    height = 0.35 - 0.05 * depth
    return legs.clip(name, fps, (0 * t, 0 * t), (height, height), (0 * t, 0 * t), (0 * t, 0 * t), 0.12 * depth)


def weight_shift(legs: Legs, name: str, duration: float, fps: float) -> Clip:
    """One knee bends and then the other, by 2 cm: the weight goes over to the bent leg and no foot leaves the ground."""
    t = np.arange(round(duration * fps)) / fps
    amount = 0.02 * fade(t, 0.25, 0.75) * fade(t[-1] - t, 0.25, 0.75)
    side = np.sin(2 * np.pi * t / 1.6)
    heights = (0.345 - amount * np.maximum(side, 0), 0.345 - amount * np.maximum(-side, 0))
    return legs.clip(name, fps, (0 * t, 0 * t), heights, (0 * t, 0 * t), (0 * t, 0 * t), 0 * t)


# --- The four formats -----------------------------------------------------------------------------------------------------


def write(clip: Clip, file: Path, joint_names: tuple[str, ...]) -> None:
    """Writes a clip in the format that the file's suffix names."""
    if file.suffix == ".npz":
        arrays = {key: getattr(clip, key).astype(np.float32) for key in ("root_pos", "root_rot", "dof_pos")}
        write_npz(file, {"fps": np.float64(clip.fps), **arrays})
    elif file.suffix == ".pkl":
        # The keys that GMR writes; ampref reads the first four and ignores the rest.
        document = {
            "fps": clip.fps,
            "root_pos": clip.root_pos,
            "root_rot": clip.root_rot,
            "dof_pos": clip.dof_pos,
            "local_body_pos": None,
            "link_body_list": None,
        }
        file.write_bytes(pickle.dumps(document, protocol=4))
    elif file.suffix == ".json":
        rows = ",\n ".join(
            f'"{key}": [\n  ' + ",\n  ".join(json.dumps(row) for row in getattr(clip, key).round(5).tolist()) + "]"
            for key in ("root_pos", "root_rot", "dof_pos")
        )
        file.write_text(f'{{"fps": {clip.fps:g},\n {rows}}}\n', encoding="utf-8")
    elif file.suffix == ".csv":
        header = ["x", "y", "z", "qw", "qx", "qy", "qz", *joint_names]
        table = np.hstack([clip.root_pos, to_wxyz(clip.root_rot), clip.dof_pos])
        lines = [",".join(header), *(",".join(f"{value:.6g}" for value in row) for row in table.tolist())]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        raise ValueError(f"no writer for {file.suffix!r}")


def make(out: Path) -> list[Path]:
    """Writes every bundled motion into `out` and returns the files."""
    legs = Legs(Robot.load("wildrobot"))
    clips = {
        "march_in_place.npz": stepping(legs, "march_in_place", MARCH, duration=6.0, fps=50.0),
        "walk.pkl": stepping(legs, "walk", WALK, duration=8.0, fps=GMR_FPS),
        "walk_backward.npz": stepping(legs, "walk_backward", WALK_BACKWARD, duration=8.0, fps=50.0),
        "side_step.npz": stepping(legs, "side_step", SIDE_STEP, duration=8.0, fps=50.0),
        "walk_long_stride.npz": stepping(legs, "walk_long_stride", LONG_STRIDE, duration=5.0, fps=50.0),
        "squat.json": squat(legs, "squat", duration=6.0, fps=50.0),
        "weight_shift.csv": weight_shift(legs, "weight_shift", duration=6.0, fps=30.0),
    }
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, clip in clips.items():
        write(clip, out / name, legs.robot.joint_names)
        files.append(out / name)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the bundled motions.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to (default: the package's own)")
    for file in make(parser.parse_args().out):
        print(f"{file.stat().st_size:7d} bytes  {file}")


if __name__ == "__main__":
    main()
