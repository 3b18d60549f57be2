"""Tests 1A and 1B: are the features the same on both sides, and do the recorded controls give the recorded states again?

Where features differ, the usual faults are tried on the states, so that the reason can name the one that fits (`faults`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.consistency import ROUNDING, relative_error
from amp_core.verify.context import REPLAYED_FRAMES, Context, describe_sample
from amp_core.verify.faults import DIFFERENCES, name_faults, name_velocity_fault
from amp_core.verify.policy_side import NO_JAX, PATHS, PolicyInputs
from amp_core.verify.report import PASS, WARN, Findings, Peak, Row, TestReport, check
from amp_core.verify.states import (
    SUSPICIOUS,
    VELOCITIES,
    Drive,
    States,
    compute_features,
    finite_differences,
    heading_length,
    max_magnitude,
    simulate,
    start_poses,
)
from amp_core.verify.subject import locate_row, stack_rows

if TYPE_CHECKING:
    from amp_core.features import FeatureBlock
    from amp_core.robot import Robot
    from amp_core.verify.subject import Clip

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

MAE = 1e-4
"""From the specification: mean absolute difference of a dimension between the policy's features and the reference's."""

CORRELATION = 0.99
"""From the specification: correlation of a velocity dimension of both."""

CONSTANT = 1e-3
"""A dimension whose std is below this is constant beside the permitted MAE: its correlation would be one of rounding errors."""


# --- 1A -------------------------------------------------------------------------------------------------------------------


def feature_assembly(context: Context) -> TestReport:
    """1A: the policy's extractor on the recorded states against the recorded features."""
    findings = Findings("1A")
    side, robot, clips = context.policy_side, context.subject.robot, context.subject.nonempty_clips
    if side is None:
        return findings.skip(NO_JAX)
    if not clips:
        return findings.skip("no clip has a frame")
    layout = robot.layout
    reference = stack_rows(clips, "features").astype(np.float64)
    qpos, qvel = stack_rows(clips, "qpos"), stack_rows(clips, "qvel")
    expected = compute_features(robot, qpos, qvel, stack_rows(clips, "foot_contacts")).astype(np.float64)
    inputs = PolicyInputs.of(robot, clips)
    constant = reference.std(axis=0) < CONSTANT
    # On its back or front a robot has hardly a heading, and float32 rounds that heading by as much more.
    certainty = heading_length(robot, qpos)
    dimensions: list[dict[str, Any]] = [{"name": name} for name in layout.names]
    for number, path in enumerate(PATHS):
        context.progress(number / len(PATHS), path)
        policy = side.features(side.observations(path, qpos, qvel), inputs, robot.control_dt).astype(np.float64)
        mae = np.abs(policy - reference).mean(axis=0)
        a, b = policy - policy.mean(axis=0), reference - reference.mean(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):  # Constant columns have none.
            correlation = (a * b).sum(axis=0) / np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
        for i, dimension in enumerate(dimensions):
            dimension[f"mae_{path}"] = float(mae[i])
            dimension[f"correlation_{path}"] = None if constant[i] else float(correlation[i])
        for block in layout.blocks:
            columns = block.slice
            worst = block.start + int(np.argmax(np.nan_to_num(mae[columns], nan=np.inf)))
            worst_place = f"{path}, worst dimension {layout.names[worst]}"
            is_pass = findings.check(f"mae.{block.name}", float(mae[worst]), "<", MAE, unit=block.unit, where=worst_place)
            error = relative_error(policy[:, columns], reference[:, columns])
            largest = float((error * certainty[:, None]).max() if path == "observe" else error.max())
            note = "more than float32 rounds" if largest > SUSPICIOUS else "relative"
            findings.check(f"max.{block.name}", largest, "<=", SUSPICIOUS, warn=True, where=path, note=note)
            if block.name in VELOCITIES:
                is_pass &= findings.add(_check_correlation(path, block, layout.names, correlation, constant))
            if not is_pass:
                is_reference, place, fault = _locate_fault(robot, clips, policy, reference, expected, block)
                features = "the reference features" if is_reference else f"the policy's features ({path})"
                fault = fault or f"{block.name}: MAE {mae[worst]:.3g} {block.unit} in {layout.names[worst]}"
                findings.add_reason(f"{features} are not what the states say, worst in {place}: {fault}")
    findings.figures["dimensions"] = dimensions
    if constant.any() and not findings.reasons:
        findings.figures["constant"] = ", ".join(layout.names[i] for i in np.flatnonzero(constant))
    return findings.report(
        f"`observe_host` and `observe` with `extract_amp_features(use_obs_joint_vel=True, foot_contacts_override=…)` on every "
        f"recorded state ({len(reference):,} frames of {len(clips)} clips) against the recorded `features`"
    )


def _locate_fault(
    robot: Robot, clips: Sequence[Clip], policy: Array, reference: Array, expected: Array, block: FeatureBlock
) -> tuple[bool, str, str]:
    """Whether the reference is the side that differs from the states, the worst clip and frame, and its fault in that block."""
    columns, lengths = block.slice, [clip.frames for clip in clips]
    reference_error = np.abs(reference[:, columns] - expected[:, columns]).mean()
    is_reference = bool(reference_error > np.abs(policy[:, columns] - expected[:, columns]).mean())
    row = int(np.argmax(np.nan_to_num(np.abs(policy - reference)[:, columns].max(axis=1), nan=np.inf)))
    number, frame = locate_row(row, lengths)
    clip, first = clips[number], sum(lengths[:number])
    features, arrays = (reference if is_reference else policy)[first : first + clip.frames], clip.arrays
    faults = name_faults(robot, features, arrays["qpos"], arrays["qvel"], start_poses(clip), arrays["foot_contacts"])
    fault = "; ".join(fault for fault in faults if block.name in fault.partition(":")[0])
    return is_reference, f"clip {clip.name} at frame {frame}", fault


def _check_correlation(
    path: str, block: FeatureBlock, names: Sequence[str], correlation: Array, constant: npt.NDArray[np.bool_]
) -> Row:
    dimensions = range(block.start, block.stop)
    moving = [i for i in dimensions if not constant[i]]
    constant_names = [names[i] for i in dimensions if constant[i]]
    note = f"constant, no correlation: {', '.join(constant_names)}" if constant_names else ""
    if not moving:
        return Row(f"corr.{block.name}", None, WARN, where=path, note=note)
    worst = min(moving, key=lambda i: np.nan_to_num(correlation[i], nan=-1.0))
    place = f"{path}, worst dimension {names[worst]}"
    return check(f"corr.{block.name}", float(correlation[worst]), ">", CORRELATION, where=place, note=note)


# --- 1B -------------------------------------------------------------------------------------------------------------------


def physics_integration(context: Context) -> TestReport:
    """1B: the recorded controls through a plain `mj_step` loop give the recorded states, contacts and features."""
    findings = Findings("1B")
    robot = context.subject.robot
    pairs = context.sample(context.subject.nonempty_clips, REPLAYED_FRAMES)
    if not pairs:
        return findings.skip("no clip has a frame")
    layout = robot.layout
    # Of a value of 0 the place is named as well.
    peaks: defaultdict[str, Peak] = defaultdict(lambda: Peak(-1.0))
    errors: dict[str, list[Array]] = {
        f"{name}.{kind}": [] for name in VELOCITIES for kind in ("true", "differences", "between")
    }
    flips = 0
    for number, (clip, frames) in enumerate(pairs):
        context.progress(number / len(pairs), f"replaying {clip.name}")
        arrays, place = clip.arrays, f"clip {clip.name}"
        replay = simulate(robot, robot.scaled_model(clip.recipe.physics), Drive.of(clip, frames))
        start = start_poses(clip)[:frames]
        if clip.recipe.mode != "teacher_forced":
            start = np.concatenate([start[:1], replay.qpos[:-1]])
        recorded_rows = np.asarray(arrays["features"][:frames], dtype=np.float64)
        contacts = replay.contacts(clip.recipe.force_threshold)
        expected = compute_features(robot, replay.qpos, replay.qvel, contacts).astype(np.float64)
        # The same poses, but velocities from their differences.
        differences = finite_differences(robot, start, replay.qpos)
        difference_rows = compute_features(robot, replay.qpos, differences, contacts)
        for block in layout.blocks:
            columns = block.slice
            error = float(relative_error(recorded_rows[:, columns], expected[:, columns]).max())
            peaks[f"features.{block.name}"].record(error, place)
            if block.name in VELOCITIES:
                errors[f"{block.name}.true"].append(recorded_rows[:, columns] - expected[:, columns])
                errors[f"{block.name}.differences"].append(recorded_rows[:, columns] - difference_rows[:, columns])
                errors[f"{block.name}.between"].append(expected[:, columns] - difference_rows[:, columns])
        replayed = {"qpos": replay.qpos, "qvel": replay.qvel, "sum_fn_per_frame": replay.loads.sum(axis=1)}
        replayed |= {"channel_loads": replay.loads} if "channel_loads" in arrays else {}
        for name, values in replayed.items():
            peaks[name].record(max_magnitude(arrays[name][:frames] - values), place)
        flips += int((arrays["foot_contacts"][:frames] != contacts).sum())
        _explain_replay(findings, robot, clip, frames, replay, start)

    for name in ("qpos", "qvel"):
        findings.check(f"replay.{name}", peaks[name].value, "==", 0.0, where=peaks[name].place, note="bit for bit")
    for block in layout.blocks:
        peak = peaks[f"features.{block.name}"]
        findings.check(f"features.{block.name}", peak.value, "<=", ROUNDING, where=peak.place, note="relative")
    for name in VELOCITIES:
        true, differences_, between = (
            float(np.abs(np.concatenate(errors[f"{name}.{kind}"])).mean()) for kind in ("true", "differences", "between")
        )
        note = "MAE of finite differences from the true qvel"
        findings.add(Row(f"finite_differences.{name}", between, PASS, unit=layout.block(name).unit, note=note))
        if between <= ROUNDING:
            note = "finite differences are the same here: nothing to tell apart"
            findings.add(Row(f"true_velocity.{name}", None, WARN, note=note))
            continue
        share = true / between
        note = "MAE from the true qvel, over the MAE between true qvel and finite differences"
        findings.check(f"true_velocity.{name}", share, "<", 0.01, note=note)
        if not share < 0.01 and differences_ < true:
            findings.add_reason(f"{name}: {DIFFERENCES}")
    findings.check("contacts.flips", flips, "==", 0, note="entries of foot_contacts that mj_contactForce contradicts")
    for name in ("channel_loads", "sum_fn_per_frame"):
        if name in peaks:
            value, place = peaks[name].value, peaks[name].place
            findings.check(f"loads.{name}", value, "<=", 1e-6, unit="N", where=place, note="mean over the substeps")
    return findings.report(
        f"{describe_sample(pairs, context.subject.clips)} simulated again from the recorded start and "
        "controls by `mujoco.mj_step` on the robot's own model, contacts by `mj_contactForce`; against the recorded states and "
        "features"
    )


def _explain_replay(findings: Findings, robot: Robot, clip: Clip, frames: int, replay: States, start: Array) -> None:
    """Add reasons for one clip whose recorded states, contacts or features are not the replay's."""
    qpos, qvel, features, recorded_contacts = (
        np.asarray(clip.arrays[key][:frames]) for key in ("qpos", "qvel", "features", "foot_contacts")
    )
    differs = (qpos != replay.qpos).any(axis=1) | (qvel != replay.qvel).any(axis=1)
    if differs.any():
        fault = name_velocity_fault(robot, qvel, replay.qvel, replay.qpos, start)
        fault = fault or "the recorded states are not what its controls do: other controls, another start, or other physics"
        findings.add_reason(f"clip {clip.name}: {fault}, from frame {int(np.argmax(differs))} on")
    contacts = replay.contacts(clip.recipe.force_threshold)
    expected = compute_features(robot, replay.qpos, replay.qvel, contacts)
    if relative_error(features, expected).max() <= ROUNDING:
        return
    faults = name_faults(robot, features, replay.qpos, replay.qvel, start, contacts)
    wrong = [robot.channels[c] for c in np.flatnonzero((recorded_contacts != contacts).any(axis=0))]
    if wrong and not any("foot_contacts" in fault for fault in faults):
        faults.append(f"foot_contacts: {', '.join(wrong)} are not what the forces say")
    if faults:
        findings.add_reason(f"clip {clip.name}: {'; '.join(faults)}")
