"""Evaluation of an existing reference: what its own arrays prove, without generating it anew.

A reference is an export of this project, or any `.npz` by the specification's schema (`amp_core.reference`). Its metrics are
measured from its arrays, and its controls, simulated again, must give its states. Whether the clip's frames in it are those of
the clip can be told from the motion alone: with it the export is generated again, and all of it is proven. A file without
controls, loads or the clip's frames proves less. Where something is open the tier is the best that the file can have by what
was measured, and `unverified` names the rest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.consistency import FEATURE_SOURCES, ROUNDING, Fault, array_shapes, find_array_faults, find_meta_faults
from amp_core.errors import AmprefError, InputRefused, IntegrityError, PhysicsFailed, RecipeRefused
from amp_core.footing import touches_ground
from amp_core.formats import WIDE_LIMITS, Motion
from amp_core.kinematics import FootTracker
from amp_core.motion import condition, find_refusal
from amp_core.quality import EXPORT_ARRAYS, FrameSeries, contact_warnings, measure
from amp_core.recipe import MODES, Recipe
from amp_core.reference import FORCE_ARRAYS, META, PROVENANCE, REFERENCE_ARRAYS, decode_meta, read_members, read_meta
from amp_core.robot import Robot
from amp_core.segments import find_segments
from amp_core.strict_json import json_data
from amp_core.tiers import MODE_GATE, Gate, Tier, classify, describe_failures, gate_profile
from amp_core.verify import Clip, Context, Subject
from amp_core.verify.determinism import Source, find_differing, generate_again
from amp_core.verify.states import Drive, controls_member, simulate
from amp_core.verify.stored import StoredArrays

Arrays = dict[str, npt.NDArray[Any]]

_CLIP_METRICS = frozenset(
    {
        "joint_rmse_rad", "joint_rmse_raw_rad", "mpjpe_m", "mpjpe_global_m", "worst_second_mpjpe_m", "heading_error_deg",
        "tilt_error_deg", "height_error_m", "root_drift_m", "speed_ratio", "contact_agreement", "contact_rate_error",
        "unloaded_excess", "pitch_excess_deg", "roll_excess_deg", "tilt_excess_deg", "nonfoot_excess", "clip_foot_slide",
        "clip_path_ratio", "clip_still_rate", "clip_flight_rate", "clip_max_tilt_deg", "clip_ground_range_m",
    }
)  # fmt: skip
"""The metrics that need the clip's frames."""

_NEEDS: Mapping[str, frozenset[str]] = {
    "sum_fn_per_frame": frozenset({"mean_sum_fn_over_mg", "p10_sum_fn_over_mg", "unloaded_frame_rate", "unloaded_excess"}),
    "stab_force": frozenset({"p90_stab_force_over_mg"}),
    "foot_contacts": frozenset(
        {
            "contact_rate", "left_foot_contact_rate", "right_foot_contact_rate", "both_feet_contact_rate",
            "no_feet_contact_rate", "contact_agreement", "contact_rate_error",
        }
    ),
    "channel_loads": frozenset({"slip_rate"}),
    "actuator_force": frozenset({"actuator_saturation_rate"}),
    "reference_root_pos": _CLIP_METRICS,
    "reference_root_rot": _CLIP_METRICS,
    "reference_dof_pos": _CLIP_METRICS,
    "reference_dof_pos_raw": frozenset(
        {"joint_rmse_raw_rad", "mpjpe_m", "mpjpe_global_m", "worst_second_mpjpe_m", "clip_still_rate"}
    ),
    "reference_contacts": frozenset({"contact_agreement", "contact_rate_error"}),
    "solver_warnings": frozenset({"solver_warnings"}),
}  # fmt: skip
"""The metrics that have no value where an array is missing."""

_CLIP_ARRAYS = (
    "reference_root_pos", "reference_root_rot", "reference_dof_pos", "reference_dof_pos_raw", "reference_contacts",
    "clip_frames",
)  # fmt: skip
"""The arrays that say what the clip is."""

_SIMULATED = (
    "sum_fn_per_frame", "sum_fn_last_substep", "channel_loads", "foot_contacts", "actuator_force", "nonfoot_contact",
)  # fmt: skip
"""The arrays that a replay of the controls gives beside the states."""

_STATEMENTS = ("quality_metrics", "tier")
_POSE_ARRAYS = ("root_pos", "root_rot", "dof_pos")
_MAX_NAMES = 3
_RATE_TOLERANCE = 0.01
_FLOAT32_ROUNDING = 1e-6
"""A file may state its metrics in float32."""


@dataclass(frozen=True)
class CheckedClaim:
    """A statement of the file that was put to the test.

    Args:
      name: `replay`, `meta`, `arrays`, `features`, `generation`, `quality_metrics`, `tier` or the name of an array that the
        controls give.
      passed: whether it holds.
      detail: the figure, or what differs.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Gap:
    """Something that the file does not prove.

    Args:
      what: a gate, an array or a claim.
      reason: what is missing.
    """

    what: str
    reason: str


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The outcome for one reference.

    Args:
      tier: Rejected where a check fails; None where a gate that it rests on could not be measured.
      best_tier: the best that the measured gates permit.
      is_proven: every gate was measured, and nothing that the tier rests on is the file's word alone.
      gates: the measured ones.
      quality_metrics: None where a metric could not be measured.
      declared_tier, declared_metrics: the file's own, where it has them.
      checks: what the file states and what was found.
    """

    file: str
    name: str
    generation_mode: str | None
    gate_profile: str
    frames: int
    duration_sec: float
    tier: Tier | None
    best_tier: Tier
    tier_reason: str
    is_proven: bool
    gates: tuple[Gate, ...]
    quality_metrics: Mapping[str, float | int | None]
    segments: tuple[dict[str, Any], ...]
    contact_warnings: tuple[dict[str, Any], ...]
    declared_tier: int | None
    declared_metrics: Mapping[str, Any]
    checks: tuple[CheckedClaim, ...]
    unverified: tuple[Gap, ...]

    def to_dict(self) -> dict[str, Any]:
        """The `--json` object."""
        return {
            "file": self.file,
            "name": self.name,
            "frames": self.frames,
            "duration_sec": self.duration_sec,
            "mode": self.generation_mode,
            "gate_profile": self.gate_profile,
            "tier": None if self.tier is None else int(self.tier),
            "best_tier": int(self.best_tier),
            "tier_reason": self.tier_reason,
            "proven": self.is_proven,
            "declared_tier": self.declared_tier,
            "gates": [gate.to_dict() for gate in self.gates],
            "quality_metrics": dict(self.quality_metrics),
            "segments": list(self.segments),
            "contact_warnings": list(self.contact_warnings),
            "checks": json_data(self.checks),
            "unverified": json_data(self.unverified),
        }


def evaluate(
    path: str | os.PathLike[str], robot: Robot | None = None, profile: str | None = None, motion: Motion | None = None
) -> Evaluation:
    """Evaluate a reference: measure it, and compare it with what it states, with its controls and with its motion.

    Args:
      path: an `.npz`: an export, or one with the arrays of the specification's schema, at least `root_pos`, `root_rot` (xyzw)
        and `dof_pos` at the robot's control rate.
      robot: of the reference; None for the bundled one of the name that the file has, or `wildrobot`.
      profile: the gate profile; None for the file's own, or the usual one.
      motion: the one that the reference was made from, which its provenance names by digest. Without it the reference is not
        proven.

    Raises:
      InputRefused: arrays are missing or do not fit the robot; the motion is another one than the file names.
      IntegrityError: no archive.
      RobotRefused: the file names a robot that is not bundled.
      RecipeRefused: an unknown gate profile.
    """
    reader = _Reader(Path(path), robot)
    recipe = reader.recipe if profile is None else replace(reader.recipe, gate_profile=profile)
    gates_of = gate_profile(recipe.gate_profile)
    arrays, robot, gaps = reader.arrays, reader.robot, reader.gaps
    frames = len(arrays["dof_pos"])
    checks = [*_check_replay(reader, gaps), *_check_agreement(reader, gaps), *_check_generation(reader, motion, gaps)]
    missing = reader.fill()
    checks += _check_clip(reader)
    series = FrameSeries.from_export(arrays, recipe, robot)
    no_value = frozenset().union(*(_NEEDS[name] for name in missing))
    metrics = {name: None if name in no_value else value for name, value in measure(series).items()}
    verdict = classify(metrics, gates_of, recipe.mode, height_range=robot.height_range)
    open_names = {name for name in no_value if name in {gate.name for gate in verdict.gates}}
    if reader.mode is None:
        open_names.add(MODE_GATE)
    gates = tuple(gate for gate in verdict.gates if gate.name not in open_names)
    for gate_name in sorted(open_names):
        lacks = ", ".join(name for name in missing if gate_name in _NEEDS[name]) or "generation_mode"
        gaps.append(Gap(gate_name, f"the file lacks {lacks}"))
    checks += _check_claims(reader.claims, {name: value for name, value in metrics.items() if name not in no_value})
    failures = [gate for gate in gates if not gate.passed]
    levels = {gate.tier for gate in failures}
    tier = (
        Tier.TIER_0 if levels <= {Tier.TIER_1} else
        Tier.TIER_1 if levels <= {Tier.TIER_0} else Tier.REJECTED
    )  # fmt: skip
    # What a file states of its quality may be wrong; the measurement decides.
    causes = [f"{check.name}: {check.detail}" for check in checks if not check.passed and check.name not in _STATEMENTS]
    reason = "; ".join([*causes, *([describe_failures(failures, gates_of)] if failures else [])])
    if causes:
        tier = Tier.REJECTED
    if reader.declared_tier is not None:
        # A file that lacks something may deserve a worse tier than the best possible one, and never a better one.
        claim = Tier(reader.declared_tier)
        is_possible = Tier.worst((tier, claim)) == claim if open_names else tier == claim
        is_possible &= reader.claims.get("tier", claim) == claim
        checks.append(CheckedClaim("tier", is_possible, f"{claim.label} is stated, {tier.label} is measured"))
    is_proven = not gaps and not causes
    if tier is Tier.REJECTED:
        text = f"Rejected: {reason}"
    elif open_names:
        text = f"{tier.label} at best, and no tier yet: {len(open_names)} gates could not be measured"
        text += f"; not Tier 0: {reason}" if reason else ""
    else:
        names = ", ".join(gap.what for gap in gaps[:_MAX_NAMES])
        names += f" and {len(gaps) - _MAX_NAMES} more" * (len(gaps) > _MAX_NAMES)
        scope = "" if is_proven else f", at best: not verified are {names}"
        text = f"{tier.label}{scope}" + (f"; not Tier 0: {reason}" if reason else "")
    segments = () if open_names or causes else tuple(
        segment.to_dict() for segment in find_segments(series, gates_of, recipe.mode, robot.control_dt)
    )  # fmt: skip
    return Evaluation(
        file=str(path),
        name=reader.name,
        generation_mode=reader.mode,
        gate_profile=recipe.gate_profile,
        frames=frames,
        duration_sec=frames * robot.control_dt,
        tier=None if open_names and tier is not Tier.REJECTED else tier,
        best_tier=tier,
        tier_reason=text,
        is_proven=is_proven,
        gates=gates,
        quality_metrics=metrics,
        segments=segments,
        contact_warnings=() if "foot_contacts" in missing else tuple(contact_warnings(arrays["foot_contacts"], robot)),
        declared_tier=reader.declared_tier,
        declared_metrics=reader.claims,
        checks=tuple(checks),
        unverified=tuple(gaps),
    )


def source_digest(path: str | os.PathLike[str]) -> str | None:
    """The digest of the motion that an export was made from, as it says; None where it says nothing."""
    try:
        provenance = read_meta(path).get(PROVENANCE)
    except AmprefError:
        return None  # `evaluate` says what is wrong.
    return str(provenance.get("source_digest")) if isinstance(provenance, Mapping) else None


class _Reader:
    """A reference as its file has it.

    Attributes:
      arrays: by the names of an export.
      claims: the file's own quality metrics.
      mode: None where the file does not say how it was generated.
      facts: all of `meta`.
      own_recipe: None where the file has none that can be read.
    """

    def __init__(self, path: Path, robot: Robot | None) -> None:
        self.path, self.gaps = path, list[Gap]()
        self.arrays = self._read_members()
        meta = decode_meta(self.arrays.pop(META), str(path)) if META in self.arrays else {}
        self.meta = {name: value for name, value in meta.items() if name not in REFERENCE_ARRAYS}
        for name, member in list(self.arrays.items()):
            # A number or a text of a file without `meta`.
            if member.size == 1 and name not in EXPORT_ARRAYS and name not in REFERENCE_ARRAYS:
                self.meta.setdefault(name, member.reshape(-1)[0].item())
        if "joint_names" in self.arrays:
            self.meta.setdefault("joint_names", self.arrays["joint_names"].tolist())
        self.facts = meta | self.meta
        metrics = self.meta.get("quality_metrics")
        self.claims: dict[str, Any] = dict(metrics) if isinstance(metrics, Mapping) else {}
        self.declared_tier = next(
            (
                int(tier)
                for tier in (self.meta.get("tier"), self.claims.get("tier"))
                if isinstance(tier, int) and tier in set(Tier)
            ),
            None,
        )
        provenance = self.meta.get(PROVENANCE)
        self.provenance: Mapping[str, Any] = provenance if isinstance(provenance, Mapping) else {}
        attempt = self.provenance.get("attempt")
        self.attempt = attempt if isinstance(attempt, int) else 0
        self.robot = robot or Robot.load(str(self.meta.get("robot") or "wildrobot"))
        self.name: str = str(self.provenance.get("name") or path.stem)
        mode = self.meta.get("generation_mode")
        self.mode: str | None = mode if mode in MODES and mode != "auto" else None
        self.own_recipe: Recipe | None = None
        if "recipe" in self.provenance:
            try:
                recipe = Recipe.from_dict(self.provenance["recipe"])
                gate_profile(recipe.gate_profile)
                self.own_recipe = recipe
            except RecipeRefused as error:
                self.gaps.append(Gap("recipe", error.what))
        self.recipe = self.own_recipe or Recipe.for_mode(self.mode or "rollout")
        self._check_shapes()
        if (digest := self.provenance.get("robot_digest")) and digest != self.robot.digest:
            self.gaps.append(Gap("robot", "the file was made with another model of the robot than this one"))

    def _read_members(self) -> Arrays:
        names = [META, *REFERENCE_ARRAYS, *FORCE_ARRAYS, *EXPORT_ARRAYS]
        names += ["qvel", "ctrl", "ctrl_substeps", "initial_qpos", "initial_qvel", "forced_qpos", "sum_fn_last_substep"]
        names += ["fps", "dt", "tier", "generation_mode", "robot", "joint_names", "source_file", "generator_version"]
        names += ["feature_dim", "num_frames", "duration_sec", "generation_timestamp"]
        if not self.path.is_file():
            raise InputRefused(
                "it is a folder" if self.path.is_dir() else "there is no such file",
                file=str(self.path),
                expected="a reference: an .npz",
                remedy="Name the files: DIR/*.npz",
            )
        if self.path.suffix != ".npz":
            raise InputRefused(
                "it is no .npz",
                file=str(self.path),
                expected="an export, or an .npz with the arrays of the specification's schema",
                remedy="Where you trust a .pkl, write its arrays and fps with numpy.savez",
            )
        file_members = set(StoredArrays(self.path))
        members = [name for name in dict.fromkeys(names) if name in file_members]
        arrays: Arrays = {}
        for name in members:
            try:
                arrays[name] = read_members(self.path, [name])[name]
            except IntegrityError as error:
                self.gaps.append(Gap(name, f"the member cannot be read ({error.what})"))
        if "quality_metrics" in file_members:
            self.gaps.append(Gap("quality_metrics", "an object that only pickle reads; write it as JSON in meta"))
        if "stab_force" not in arrays and "stab_force_per_frame" in arrays:
            arrays["stab_force"] = arrays["stab_force_per_frame"]  # Without its sign, which no metric needs.
        return arrays

    def _check_shapes(self) -> None:
        """Refuse arrays that are not (N, …) of this robot at its control rate."""
        robot, arrays = self.robot, self.arrays
        missing = [name for name in _POSE_ARRAYS if name not in arrays]
        if missing:
            raise InputRefused(
                f"the file lacks {', '.join(missing)}",
                file=str(self.path),
                key=missing[0],
                expected=f"at least {', '.join(_POSE_ARRAYS)}",
                remedy="A motion that was not simulated is for: ampref score MOTION",
            )
        for name, shape in array_shapes(robot, frames := len(arrays["dof_pos"])).items():
            array = arrays.get(name)
            if array is not None and (array.shape != shape or array.dtype.kind not in "bfiu" or frames == 0):
                raise InputRefused(
                    f"the array is {array.dtype.name} of shape {array.shape}",
                    file=str(self.path),
                    key=name,
                    expected=f"numbers of shape {shape} for the robot {robot.name}",
                    remedy="Name the reference's robot with --robot",
                )
            if array is not None and not np.isfinite(array).all():
                frame = int(np.argwhere(~np.isfinite(np.atleast_1d(array)))[0][0])
                raise InputRefused("it holds a value that is not finite", file=str(self.path), key=name, frame=frame)
        fps, dt = (value if isinstance(value := self.meta.get(name), int | float) else None for name in ("fps", "dt"))
        fps = fps or (1.0 / dt if dt else None)
        if fps is None:
            self.gaps.append(Gap("fps", f"the file has none; {1.0 / robot.control_dt:g} was taken"))
        elif not math.isclose(float(fps), 1.0 / robot.control_dt, rel_tol=_RATE_TOLERANCE):
            raise InputRefused(
                f"the reference has {float(fps):g} frames per second",
                file=str(self.path),
                key="fps",
                expected=f"{1.0 / robot.control_dt:g}, the robot's control rate",
                remedy="Generate it at the control rate: ampref score MOTION --export DIR",
            )

    def fill(self) -> list[str]:
        """Put in what follows from the poses, and stand-ins for the rest; returns the names of the latter."""
        robot, arrays = self.robot, self.arrays
        frames = len(arrays["dof_pos"])
        if "qpos" not in arrays:
            arrays["qpos"] = robot.poses(*(np.asarray(arrays[name], np.float64) for name in _POSE_ARRAYS))
        qpos = arrays["qpos"]
        if "foot_speed" not in arrays:
            arrays["foot_speed"] = FootTracker(robot, size=frames + 1).speeds(np.concatenate([qpos[:1], qpos[:-1]]), qpos)
        if "nonfoot_contact" not in arrays:
            arrays["nonfoot_contact"] = touches_ground(robot, qpos)
            reason = "read off the poses at the ends of the frames; contacts within a frame are not seen"
            self.gaps.append(Gap("nonfoot_contact", reason))
        arrays.setdefault("clip_frames", np.array(frames))
        stand_ins: dict[str, npt.NDArray[Any]] = {
            "sum_fn_per_frame": np.zeros(frames),
            "stab_force": np.zeros(frames),
            "foot_contacts": np.zeros((frames, len(robot.channels))),
            "channel_loads": np.zeros((frames, len(robot.channels))),
            "actuator_force": np.zeros((frames, robot.model.nu)),
            "reference_root_pos": arrays["root_pos"],
            "reference_root_rot": arrays["root_rot"],
            "reference_dof_pos": arrays["dof_pos"],
            "reference_dof_pos_raw": arrays["dof_pos"],
            "reference_contacts": np.zeros((frames, len(robot.feet)), bool),
            "solver_warnings": np.array(0),
        }
        missing = [name for name in stand_ins if name not in arrays]
        for name in missing:
            arrays[name] = np.asarray(stand_ins[name])
        for name in (*_POSE_ARRAYS, "reference_root_pos", "reference_root_rot", "reference_dof_pos", "reference_dof_pos_raw"):
            arrays[name] = np.asarray(arrays[name], np.float64)
        return missing


def _check_replay(reader: _Reader, gaps: list[Gap]) -> list[CheckedClaim]:
    """The recorded controls, simulated again: states bit for bit, and the loads that they give."""
    arrays, robot = reader.arrays, reader.robot
    needs = ["ctrl", "initial_qpos", "initial_qvel", "stab_force", "qpos", "qvel"]
    needs += ["forced_qpos"] if reader.mode == "teacher_forced" else []
    missing = [name for name in needs if name not in arrays]
    if missing:
        cause = f"the file lacks {', '.join(missing)}"
        names = [name for name in ("ctrl", "stab_force", *_SIMULATED) if name in arrays]
        gaps += [Gap("replay", cause), Gap("loads", f"{', '.join(names) or 'all'} are the file's own claim: {cause}")]
        return []
    forced_qpos = arrays["forced_qpos"] if reader.mode == "teacher_forced" else None
    ctrl = arrays[controls_member(arrays)]
    drive = Drive(arrays["initial_qpos"], arrays["initial_qvel"], ctrl, arrays["stab_force"], forced_qpos)
    try:
        states = simulate(robot, robot.scaled_model(reader.recipe.physics), drive)
    except (AmprefError, ValueError) as error:
        raise PhysicsFailed(f"the controls cannot be simulated ({error})", file=str(reader.path), key="ctrl") from error
    differs = (states.qpos != arrays["qpos"]).any(axis=1) | (states.qvel != arrays["qvel"]).any(axis=1)
    detail = "the controls give the states bit for bit"
    if differs.any():
        detail = f"the controls do not give the recorded states, from frame {int(np.argmax(differs))} on"
    checks = [CheckedClaim("replay", not differs.any(), detail)]
    names = [name for name in _SIMULATED if name in arrays]
    if differs.any():
        gaps.append(Gap("loads", f"the states are not those of the controls; {', '.join(names)} are the file's own claim"))
        return checks
    replay: Arrays = {
        "sum_fn_per_frame": states.loads.sum(axis=1),
        "sum_fn_last_substep": states.last_loads.sum(axis=1),
        "channel_loads": states.loads,
        "foot_contacts": states.contacts(reader.recipe.force_threshold),
        "actuator_force": states.actuator_force,
        "nonfoot_contact": states.nonfoot,
    }
    for name in names:
        values, expected = (np.asarray(array, np.float64) for array in (arrays[name], replay[name]))
        errors = np.abs(values - expected)
        is_same = bool(errors.max() <= ROUNDING)
        detail = f"as simulated again, within {errors.max():.1g}"
        if not is_same:
            index = tuple(np.argwhere(errors > ROUNDING)[0].tolist())
            place = f"at frame {index[0]} ({values[index]:.6g} for {expected[index]:.6g})"
            detail = f"up to {errors.max():.3g} from what the controls give, first {place}"
        checks.append(CheckedClaim(name, is_same, detail))
    if not names:
        gaps.append(Gap("loads", "the file has none"))
    return checks


def _check_agreement(reader: _Reader, gaps: list[Gap]) -> list[CheckedClaim]:
    """What the file repeats: its `meta` against the arrays, the recipe and the robot, and arrays that follow from others."""
    arrays, robot = reader.arrays, reader.robot
    fact_faults = find_meta_faults(reader.facts, arrays, robot, reader.own_recipe)
    array_faults = find_array_faults(arrays, robot, reader.own_recipe, reader.attempt)
    feature_faults = [fault for fault in array_faults if fault.member == "features"]
    other_faults = [fault for fault in array_faults if fault.member != "features"]
    checks = []
    if reader.provenance or fact_faults:
        checks.append(_claim("meta", fact_faults, "as the arrays, the recipe and the robot give it"))
    if "qpos" in arrays or other_faults:
        checks.append(_claim("arrays", other_faults, "those that repeat each other agree"))
    missing = [name for name in ("features", *FEATURE_SOURCES) if name not in arrays]
    if missing:
        gaps.append(Gap("features", f"the file lacks {', '.join(missing)}"))
    else:
        checks.append(_claim("features", feature_faults, "as its states give them"))
    return checks


def _claim(name: str, faults: Sequence[Fault], detail: str) -> CheckedClaim:
    texts = [fault.explain() for fault in faults[:_MAX_NAMES]] + [f"{len(faults) - _MAX_NAMES} more"] * (
        len(faults) > _MAX_NAMES
    )
    return CheckedClaim(name, not faults, "; ".join(texts) or detail)


def _check_generation(reader: _Reader, motion: Motion | None, gaps: list[Gap]) -> list[CheckedClaim]:
    """The export generated again from its motion, every array bit for bit: the clip's frames among them."""
    arrays = reader.arrays
    digest = reader.provenance.get("source_digest")
    if motion is not None and motion.source_digest != digest:
        raise InputRefused(
            f"the motion {motion.name!r} has the digest {motion.source_digest}",
            file=str(reader.path),
            key="source_digest",
            expected=f"the motion that the file names, of the digest {digest}",
            remedy="Give the bytes that were scored; ampref evaluate REF --motions PATH finds them by their digest",
        )
    lacks = [name for name in ("features", "ctrl") if name not in arrays]
    lacks += [] if reader.own_recipe else ["recipe"]
    if motion is None or lacks:
        cause = (
            f"the file lacks {', '.join(lacks)}" if lacks else f"its motion ({digest}) is not at hand; --motions PATH names it"
        )
        names = [name for name in (*_CLIP_ARRAYS, "solver_warnings") if name in arrays]
        if names:  # Otherwise each gate that needs the clip is open.
            gaps.append(Gap("reference", f"{', '.join(names)} are the file's own claim, not compared with the clip: {cause}"))
        return []
    clip = Clip(reader.name, Tier.REJECTED, reader.recipe, lambda: arrays, attempt=reader.attempt)
    source = Source(clip, condition(motion, reader.robot, WIDE_LIMITS, mode=reader.recipe.mode), clip.frames)
    (result,) = generate_again(Context(Subject(reader.robot, (clip,))), [source])
    file_arrays = {name: arrays[name] for name in result if name in arrays}
    differing = find_differing(file_arrays, result, None if source.is_whole else source.frames)
    detail = f"{len(file_arrays)} arrays as they are generated from the motion again, bit for bit"
    if differing:
        more = f" and {len(differing) - _MAX_NAMES} more" * (len(differing) > _MAX_NAMES)
        detail = f"{', '.join(differing[:_MAX_NAMES])}{more} are not what the motion gives ({motion.name}, generated again)"
    return [CheckedClaim("generation", not differing, detail)]


def _check_clip(reader: _Reader) -> list[CheckedClaim]:
    """What `ampref check` says of the clip in the file, or of the file's own poses where it has no clip."""
    if len(reader.arrays["reference_dof_pos_raw"]) < 2:
        return []
    refusal = find_refusal(reader.name, reader.arrays, reader.robot)
    return [CheckedClaim("clip", refusal is None, "nothing in it is refused" if refusal is None else refusal.message)]


def _check_claims(claims: Mapping[str, Any], metrics: Mapping[str, float | int | None]) -> list[CheckedClaim]:
    """The file's own metrics against those that could be measured."""
    names = [name for name in metrics if name in claims]
    if not names:
        return []
    differing = []
    for name in names:
        value, claim = metrics[name], claims[name]
        is_same = value is claim or (
            value is not None
            and isinstance(claim, int | float)
            and math.isclose(value, claim, rel_tol=_FLOAT32_ROUNDING, abs_tol=_FLOAT32_ROUNDING)
        )
        if not is_same:
            differing.append(f"{name} {claim} for {value}")
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    detail = f"stated are {', '.join(differing[:3])}{more}" if differing else f"{len(names)} as its arrays give them"
    return [CheckedClaim("quality_metrics", not differing, detail)]
