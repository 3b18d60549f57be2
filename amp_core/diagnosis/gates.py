"""The findings of a robot that stands: what each failed gate measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.diagnosis.evidence import Evidence, find_span, readable
from amp_core.diagnosis.findings import Finding
from amp_core.engine import mujoco
from amp_core.metrics import UNLOADED_BELOW
from amp_core.quality import percentile
from amp_core.rotations import pitch_roll_tilt
from amp_core.runs import find_runs
from amp_core.tiers import Gate

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


_ERRORS = (
    ("heading_error_deg", "heading_off", "heading_error", "the robot's heading is off the clip's", "°", 1),
    ("tilt_error_deg", "tilt_off", "tilt_error", "the robot leans otherwise than the clip", "°", 1),
    ("height_error_m", "height_off", "height_error", "the root's height is off the clip's", " mm", 1000),
)
"""Gates on an error: metric, code, series, what is wrong, the unit in words and what takes it there."""


def describe_gates(evidence: Evidence) -> Iterator[Finding]:
    """A finding for every failed gate, in the order of the gates' subjects: posture, support by the feet, fidelity."""
    if len(evidence.series) == 0:
        return
    yield from _describe_posture(evidence)
    yield from _describe_support(evidence)
    yield from _describe_fidelity(evidence)


def _finding(
    code: str, gate: Gate, message: str, unit: str, values: Array | Bools | None = None, joint: str | None = None
) -> Finding:
    """A failed gate as a finding; the frames whose `values` (N,) are over its threshold count against it."""
    assert not isinstance(gate.threshold, tuple)
    span = None if values is None else find_span(values > gate.threshold)
    return Finding(code, "failed", message, joint, None, span, gate.value, gate.threshold, unit)


def _describe_posture(evidence: Evidence) -> Iterator[Finding]:
    series, failed_gates, clip = evidence.series, evidence.failed_gates, evidence.clip
    for axis, angles in zip(("pitch", "roll"), pitch_roll_tilt(clip.root_rot), strict=False):
        if gate := failed_gates.get(f"p95_{axis}_deg"):
            clip_angle = percentile(np.degrees(np.abs(angles)), 95)
            message = f"leans {gate.value:.0f}° in {axis} (95th percentile; the clip itself {clip_angle:.0f}°)"
            yield _finding("leans", gate, message, "deg", getattr(series, axis))
        if gate := failed_gates.get(f"{axis}_excess_deg"):
            message = f"leans {gate.value:.0f}° further in {axis} than the clip (95th percentiles)"
            yield _finding("leans", gate, message, "deg")
    if gate := failed_gates.get("tilt_excess_deg"):
        message = f"leans up to {gate.value:.0f}° further than the clip in the same frame"
        yield _finding("leans", gate, message, "deg", series.tilt_excess)
    if gate := failed_gates.get("max_tilt_deg"):
        message = f"leans up to {gate.value:.0f}° without falling"
        yield _finding("leans", gate, message, "deg", series.tilt)
    if gate := failed_gates.get("height_max"):
        message = f"the root rises to {gate.value:.2f} m, over the robot's range (the clip's rises to "
        message += f"{clip.root_pos[:, 2].max():.2f} m)"
        yield _finding("too_high", gate, message, "m", series.height)
    if gate := failed_gates.get("nonfoot_contact_rate") or failed_gates.get("nonfoot_excess"):
        nonfoot = series.nonfoot if gate.name == "nonfoot_contact_rate" else series.nonfoot_excess
        first = int(np.argmax(nonfoot))
        # By name where the frame's last state still shows the contact.
        names = touching_geoms(evidence, evidence.rollout.qpos[first])
        subject = " and ".join(readable(name) for name in names[:2]) if names else "something that is no foot"
        message = f"{subject} touches the ground at {evidence.time(first)} ({gate.value:.0%} of the frames)"
        yield _finding("body_touches", gate, message, "1", nonfoot)


def touching_geoms(evidence: Evidence, qpos: Array) -> list[str]:
    """The geoms (or, where they have no name, the bodies) that touch the ground in a pose and are on no foot."""
    robot, model = evidence.robot, evidence.robot.model
    data: Any = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_collision(model, data)
    names: dict[str, None] = {}
    for pair in data.contact.geom.tolist():
        geoms = [geom for geom in pair if geom != robot.ground_geom]
        if len(geoms) == 1 and (body := int(model.geom_bodyid[geoms[0]])) not in robot.foot_bodies:
            names[str(model.geom(geoms[0]).name) or str(model.body(body).name) or f"body {body}"] = None
    return list(names)


def _describe_support(evidence: Evidence) -> Iterator[Finding]:
    series, failed_gates, lift = evidence.series, evidence.failed_gates, evidence.lift
    if gate := failed_gates.get("p90_stab_force_over_mg"):
        verb = "carries" if lift > 0 else "presses down with"
        message = f"the harness {verb} {gate.value:.0%} of the weight (90th percentile), {abs(lift):.0%} on average"
        yield _finding("harness_carries", gate, message, "1", series.stab)
    if "unloaded_frame_rate" in failed_gates or "mean_sum_fn_over_mg" in failed_gates:
        light = series.load < UNLOADED_BELOW
        message = f"the feet carry less than {UNLOADED_BELOW} of the weight in {light.mean():.0%} of the frames"
        message += f" ({series.load.mean():.2f} on average)"
        if light.any():
            start, stop = max(find_runs(light), key=lambda run: run[1] - run[0])
            message += f", longest at {evidence.period(start, stop)}"
        airborne = (~series.feet.any(axis=1)).mean()
        if airborne > 0.02:
            message += f"; no foot touches in {airborne:.0%}"
        if lift > 0.05:
            message += f"; the harness carries {lift:.0%} on average"
        gate = evidence.gates.get("unloaded_frame_rate")
        limit = gate.threshold if gate and not isinstance(gate.threshold, tuple) else None
        value = float(light.mean())
        yield Finding("unloaded", "failed", message, frames=find_span(light), value=value, limit=limit, unit="1")
    if gate := failed_gates.get("unloaded_excess"):
        message = (
            f"the feet carry less than {UNLOADED_BELOW} of the weight in {gate.value:.0%} more of the frames than the clip "
        )
        message += f"is in flight ({series.clip_flight.mean():.0%})"
        yield _finding("unloaded", gate, message, "1")
    if gate := failed_gates.get("contact_rate"):
        assert isinstance(gate.threshold, tuple)
        low, high = gate.threshold
        for i, foot in enumerate(evidence.robot.feet):
            rate = float(evidence.series.feet[:, i].mean())
            message = f"the {readable(foot.name)} is on the ground in {rate:.0%} of the frames"
            if rate > high:
                lift = 100 * max(0.0, float(evidence.clip_feet.heights[:, i].max()))
                message += f"; the clip lifts it by {lift:.1f} cm at most" if lift >= 0.1 else "; the clip never lifts it"
                yield Finding("never_lifts", "failed", message, foot=foot.name, value=rate, limit=high, unit="1")
            elif rate < low:
                message += f" only; the clip means {evidence.standing[:, i].mean():.0%}"
                yield Finding("rarely_stands", "failed", message, foot=foot.name, value=rate, limit=low, unit="1")


def _describe_fidelity(evidence: Evidence) -> Iterator[Finding]:
    series, failed_gates, rollout = evidence.series, evidence.failed_gates, evidence.rollout
    if (gate := failed_gates.get("height_std")) and "clip_still_rate" not in failed_gates:
        message = f"the root's height hardly changes: standard deviation {1e3 * series.height.std():.1f} mm (the clip's: "
        message += f"{1e3 * evidence.clip.root_pos[:, 2].std():.1f} mm)"
        yield _finding("stands_still", gate, message, "m")
    if gate := failed_gates.get("joint_rmse_rad") or failed_gates.get("joint_rmse_raw_rad"):
        joints = rollout.reference_dof_pos if gate.name == "joint_rmse_rad" else rollout.reference_dof_pos_raw
        error = np.sqrt(((rollout.dof_pos - joints) ** 2).mean(axis=0))
        worst = int(np.argmax(error))
        joint = evidence.robot.joint_names[worst]
        message = f"the joints are off the clip's by {gate.value:.2f} rad, most of all the {readable(joint)} "
        message += f"({error[worst]:.2f} rad)"
        yield _finding("joints_off", gate, message, "rad", joint=joint)
    if gate := failed_gates.get("mpjpe_m"):
        message = f"the bodies are {1e3 * series.body_error.mean():.0f} mm from the clip's on average, seen from the root"
        yield _finding("bodies_off", gate, message, "m", series.body_error)
    elif gate := failed_gates.get("worst_second_mpjpe_m"):
        assert gate.value is not None
        second = int(series.second_means(series.body_error).argmax())
        message = f"the bodies are {1e3 * gate.value:.0f} mm from the clip's, seen from the root, in the second from "
        message += f"{evidence.time(second)} on"
        yield _finding("bodies_off", gate, message, "m", series.body_error)
    for name, code, field, subject, unit, scale in _ERRORS:
        if gate := failed_gates.get(name):
            assert gate.value is not None
            extent = "at most" if name == "height_error_m" else "95th percentile"
            message = f"{subject} by {scale * gate.value:.0f}{unit} ({extent}), most of all at "
            message += evidence.time(int(np.argmax(getattr(series, field))))
            yield _finding(code, gate, message, "m" if scale > 1 else "deg", getattr(series, field))
    if gate := failed_gates.get("root_drift_m"):
        first = int(np.argmax(series.drift > gate.threshold))
        message = f"the root drifts up to {gate.value:.2f} m from the clip's, beyond {gate.threshold:g} m from "
        message += f"{evidence.time(first)} on"
        yield _finding("drifts", gate, message, "m", series.drift)
    if gate := failed_gates.get("speed_ratio"):
        assert isinstance(gate.threshold, tuple)
        assert gate.value is not None
        message = f"the root travels {gate.value:.2f} times as far as the clip's"
        limit = gate.threshold[gate.value > gate.threshold[1]]
        yield Finding("speed_off", "failed", message, value=gate.value, limit=limit, unit="1")
    for name in ("contact_rate_error", "contact_agreement"):
        if gate := failed_gates.get(name):
            worst_foot = int(np.argmax(np.abs(series.feet.mean(axis=0) - series.clip_feet.mean(axis=0))))
            rate, clip_rate = (float(feet[:, worst_foot].mean()) for feet in (series.feet, series.clip_feet))
            message = f"the {readable(evidence.robot.feet[worst_foot].name)} is on the ground in {rate:.0%} of the frames, the "
            agreement = series.agreeing.sum() / series.feet.size
            message += f"clip means {clip_rate:.0%}; the contacts are as the clip means them for {agreement:.0%} of the time"
            yield _finding("contacts_off", gate, message, "1")
