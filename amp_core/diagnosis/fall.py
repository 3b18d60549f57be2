"""The finding of a fall: which way, from which foot, and what gave out."""

from __future__ import annotations

import math

import numpy as np

from amp_core.diagnosis.evidence import Evidence, FootPath, readable
from amp_core.diagnosis.findings import Finding
from amp_core.engine import mujoco
from amp_core.kinematics import FootTracker, iterate_poses
from amp_core.metrics import FALLEN_EXCESS_DEG, FALLEN_TILT_DEG
from amp_core.rotations import world_to_heading, yaw, z_axis
from amp_core.runs import find_runs

_LAST_SEC = 0.5  # before the fall, in which strain counts; twice as long for the balance
_LIFTED_SEC = 0.4  # before the loss of balance, in which a lifted foot counts
_LIFT_SEC = 0.1  # the shortest lift of a foot
_STRAINED_SHARE = 0.2


def describe_fall(evidence: Evidence, fell: int) -> Finding:
    """The fall at frame `fell`."""
    series, dt, onset = evidence.series, evidence.dt, evidence.onset
    # A robot that tips over is below its height range before it leans by 60°: the frames after it tell the two apart.
    tilt, limit = (series.tilt_excess, FALLEN_EXCESS_DEG) if series.relative else (series.tilt, FALLEN_TILT_DEG)
    tipped_rows = np.flatnonzero(tilt[fell : fell + round(2 * _LAST_SEC / dt)] > limit)
    cause = (
        f"falls {_describe_direction(evidence, fell + int(tipped_rows[0]))}"
        if len(tipped_rows)
        else f"sinks below {'the clip' if series.relative else 'its height range'}"
    )
    balance_end = _find_balance_end(evidence, fell)
    turning_point = onset if balance_end is None else balance_end

    loads = evidence.loads[max(0, turning_point - 5) : max(1, turning_point)].mean(axis=0)
    carrying = [
        readable(foot.name) for foot, load in zip(evidence.robot.feet, loads, strict=True) if load > evidence.least_load
    ]
    if not carrying:
        support = "with no foot on the ground"
    elif len(carrying) == len(evidence.robot.feet) > 1:
        support = "on both feet" if len(carrying) == 2 else "on all its feet"
    else:
        support = f"on its {' and '.join(carrying)}"
    if balance_end is not None:
        soles = "soles" if len(carrying) > 1 else "sole"
        support += f", with its centre of mass beyond the edge of the {soles} from {evidence.time(balance_end)} on"
    elif len(tipped_rows):
        support += f", tipping from {evidence.time(onset)} on"
    details = [support]

    lifted_foot = _find_last_lift(evidence, turning_point)
    if lifted_foot is not None:
        details.append(f"just before, the clip lifts the {readable(lifted_foot)}")

    last = slice(max(0, fell - round(_LAST_SEC / dt)), fell)
    strained_joints = list(evidence.strained_joints(last, _STRAINED_SHARE).items())[:2]
    if strained_joints:
        joints = " and ".join(f"the {readable(joint)} for {share:.0%}" for joint, share in strained_joints)
        details.append(f"at the force limit in its last {(last.stop - last.start) * dt:.2g} s: {joints}")
    elif last.stop > last.start and np.isfinite(evidence.robot.force_limit).any():
        details.append("no servo was at its force limit")

    has_tilted = bool(tilt[fell] > limit)
    lowest = float(series.clip_height[fell]) if series.relative else evidence.robot.height_range[0]
    return Finding(
        "fell",
        "failed",
        f"{cause} at {evidence.time(fell)}: " + "; ".join(details),
        frames=(min(onset, fell), fell + 1),
        value=float(tilt[fell] if has_tilted else series.height[fell]),
        limit=limit if has_tilted else lowest,
        unit="deg" if has_tilted else "m",
    )


def _describe_direction(evidence: Evidence, frame: int) -> str:
    """The direction in which the root leans, in the heading frame of the moment when it began to tip."""
    qpos = evidence.rollout.qpos[[max(0, min(evidence.onset, frame) - 1), frame]]
    start, end = evidence.robot.root_rotation(qpos)
    forward, left, _ = world_to_heading(yaw(start)[None], z_axis(end)[None])[0].tolist()
    least = 0.4 * math.hypot(forward, left)
    along = ("forward" if forward > 0 else "backward") if abs(forward) > least else ""
    sideways = ("to its left" if left > 0 else "to its right") if abs(left) > least else ""
    return " and ".join(word for word in (along, sideways) if word)


def _find_balance_end(evidence: Evidence, fell: int) -> int | None:
    """The frame from which on the centre of mass is not over the loaded soles any more, until the fall."""
    robot = evidence.robot
    rows = np.arange(max(0, fell - round(2 * _LAST_SEC / evidence.dt)), fell, evidence.stride)
    if len(rows) == 0:
        return None
    qpos = evidence.rollout.qpos[rows]
    centre = np.empty((len(rows), 2))
    for k, data in enumerate(iterate_poses(robot.model, qpos)):
        mujoco.mj_comPos(robot.model, data)
        centre[k] = data.subtree_com[robot.root_body][:2]
    distance = FootPath(FootTracker(robot).corners(qpos)).distance_outside(centre, evidence.loaded[rows])
    inside = np.flatnonzero(distance <= 0.0)
    if len(inside) == 0 or inside[-1] + 1 >= len(rows):
        return None
    first = int(inside[-1]) + 1
    # A jump into the air leaves no support, and is no loss of balance over an edge.
    return int(rows[first]) if np.isfinite(distance[first]) else None


def _find_last_lift(evidence: Evidence, frame: int) -> str | None:
    """The foot that the clip lifted last, shortly before `frame`."""
    stride, dt = evidence.stride, evidence.dt
    shortest = max(2, round(_LIFT_SEC / (stride * dt)))
    lifts = [
        (start * stride, foot.name)
        for i, foot in enumerate(evidence.robot.feet)
        for start, stop in find_runs(~evidence.standing[:, i])
        if start > 0 and stop - start >= shortest and frame - _LIFTED_SEC / dt <= start * stride <= frame
    ]
    return max(lifts)[1] if lifts else None
